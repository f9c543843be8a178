//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use podwire_ipam::Dirs;

/// The podwire agent of a node
///
/// Holds the store of pod addresses open and serves it to the CNI plugins on a Unix socket, so that an ADD need not open
/// it; removes pods' interfaces without making DEL wait for the kernel; ends the leases of pods that died unnoticed.
/// Pods start without it too, only slower: then the plugin opens the store itself. Whoever holds the store's lock is
/// the one that gives addresses, so a second agent waits until the first has ended.
#[derive(Debug, Parser)]
#[command(name = "podwired", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// What outlives a reboot: the address store and its lock. The plugins' key `stateDir` must say the same
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PODWIRED_STATE_DIR",
        default_value = "/var/lib/podwire"
    )]
    state_dir: PathBuf,

    /// What does not: the socket. The plugins' key `runDir` must say the same
    #[arg(long, global = true, value_name = "DIR", env = "PODWIRED_RUN_DIR", default_value = "/run/podwire")]
    run_dir: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const AFTER_HELP: &str = "\
Files:
  <state-dir>/ipam       the address store. One that cannot be read is renamed
                         to ipam.broken-<time> and rebuilt from the node's
                         interfaces
  <state-dir>/ipam.lock  held by whoever gives addresses
  <run-dir>/ipam.sock    the socket, for root alone

SIGTERM and SIGINT end it in order: what has been begun is answered, then the
lock is released.";

impl Cli {
    pub(crate) fn dirs(&self) -> Dirs {
        Dirs::new(&self.state_dir, &self.run_dir)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the plugins until SIGTERM (the default)
    Run(Run),
    /// Look at the addresses of this node's pods
    #[command(subcommand)]
    Ipam(Ipam),
    /// Remove what podwire has in the node's packet filter
    ///
    /// Its own tables (inet podwire, bridge podwire) and the accept rules that it has put into other programs' forward
    /// chains. For uninstalling: pods that still run lose their host ports, their masquerade and their checks. The agent
    /// must not run, it would put everything back; so does the next ADD of a pod.
    Cleanup,
    /// Print the completions for a shell
    ///
    /// For bash: podwired completions bash > /etc/bash_completion.d/podwired
    Completions {
        /// For which shell
        shell: Shell,
    },
}

impl Default for Command {
    fn default() -> Self {
        Self::Run(Run { log_format: LogFormat::Text, log_level: "info".to_owned() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// How each line of the log looks; it goes to standard error
    #[arg(long, value_name = "FORMAT", env = "PODWIRED_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or a list such as info,podwired=debug
    #[arg(long, value_name = "LEVEL", env = "PODWIRED_LOG_LEVEL", default_value = "info")]
    pub(crate) log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text
    Text,
    /// A JSON object
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// List the addresses that pods have
    ///
    /// Asks the agent; where none runs, opens the store.
    List(List),
    /// Write a network's addresses as a directory of host-local: the way back to it
    ///
    /// Before that, stop giving addresses of the network by podwire: take its configuration away, or change its type
    /// back. Pods that run keep their addresses and are removed as usual by the bridge plugin.
    Export(Export),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this network
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,

    /// Print a JSON array, with an object for each lease
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The network's name in its configuration
    #[arg(long, value_name = "NAME")]
    pub(crate) network: String,

    /// host-local's dataDir. The files go into the directory of the network's name in it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
    pub(crate) dir: PathBuf,

    /// Replace the addresses that are there
    #[arg(long)]
    pub(crate) force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_serves() {
        let cli = Cli::try_parse_from(["podwired", "--state-dir", "/s", "--run-dir", "/r"]).unwrap();
        assert_eq!(cli.dirs(), Dirs::new("/s", "/r"));
        assert!(matches!(cli.command.unwrap_or_default(), Command::Run(_)));
    }

    #[test]
    fn directories_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["podwired", "ipam", "list", "--json", "--state-dir", "/s"]).unwrap();
        assert_eq!(cli.dirs().state, PathBuf::from("/s"));
    }
}
