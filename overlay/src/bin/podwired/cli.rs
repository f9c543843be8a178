//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use podwire_ipam::Dirs;
use podwire_overlay::config::{Config, ConfigErrors, FILE_VARIABLE, Flag, Resolved};
use podwire_overlay::config_file;

/// The podwire agent of a node
///
/// Holds the store of pod addresses open and serves it to the CNI plugins on a Unix socket, so that an ADD need not open
/// it; removes pods' interfaces without making DEL wait for the kernel; ends the leases of pods that died unnoticed.
/// Pods start without it too, only slower: then the plugin opens the store itself. Whoever holds the store's lock is
/// the one that gives addresses, so a second agent waits until the first has ended.
///
/// With a cluster in its configuration it also connects this node's pods with those of other nodes.
#[derive(Debug, Parser)]
#[command(name = "podwired", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// The configuration. It must be there if it is named; /etc/podwire/podwired.toml is used if it is
    #[arg(long, global = true, value_name = "FILE", env = FILE_VARIABLE)]
    config: Option<PathBuf>,

    /// What outlives a reboot: the address store and its lock. The plugins' key `stateDir` must say the same
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,

    /// What does not: the socket. The plugins' key `runDir` must say the same
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<String>,

    /// This node's name in its cluster
    #[arg(long, global = true, value_name = "NAME")]
    node_name: Option<String>,

    /// How each line of the log looks: text or json. It goes to standard error
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,

    /// What is logged: error, warn, info, debug or trace, or a list such as info,podwired=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Set any key of the configuration, such as cluster.store=file. Lists as a,b or in TOML. May be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,

    /// The same as `podwired check`
    #[arg(long)]
    check: bool,

    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Configuration:
  A flag goes before the environment, that before the file, that before the
  default. The variable of a key is PODWIRED_ and the key in capitals with _
  for each dot: PODWIRED_LOG_LEVEL, PODWIRED_CLUSTER_ETCD_ENDPOINTS.

Files:
  /etc/podwire/podwired.toml  the configuration
  <state-dir>/ipam       the address store. One that cannot be read is renamed
                         to ipam.broken-<time> and rebuilt from the node's
                         interfaces
  <state-dir>/ipam.lock  held by whoever gives addresses
  <run-dir>/ipam.sock    the socket, for root alone

SIGTERM and SIGINT end it in order: what has been begun is answered, then the
lock is released.";

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a key and a value are wanted, with = between them")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Cli {
    /// What is to be done.
    pub(crate) fn task(&self) -> Command {
        match &self.command {
            Some(command) => command.clone(),
            None if self.check => Command::Check(Check { json: false }),
            None => Command::Run,
        }
    }

    /// Reads the configuration, now.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(crate) fn settings(&self) -> Result<Resolved, ConfigErrors> {
        config_file::load(self.config.as_deref(), &self.flags())
    }

    fn flags(&self) -> Vec<Flag> {
        let named = [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("node_name", &self.node_name),
            ("log.format", &self.log_format),
            ("log.level", &self.log_level),
        ];
        let set = self.set.iter().map(|(key, value)| Flag {
            shown: format!("--set {key}"),
            key: key.clone(),
            value: value.clone(),
        });
        let named = named.into_iter().filter_map(|(key, value)| {
            let shown = format!("--{}", key.replace(['.', '_'], "-"));
            Some(Flag { shown, key: key.to_owned(), value: value.clone()? })
        });
        set.chain(named).collect()
    }
}

/// Where the files of a configuration are.
pub(crate) fn dirs(config: &Config) -> Dirs {
    Dirs::new(&config.state_dir, &config.run_dir)
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Serve the plugins until SIGTERM (the default)
    Run,
    /// Say whether the configuration is right, and what would be used
    ///
    /// Reads the configuration with the flags and the environment of this call, and the files that it names. Prints each
    /// key with its value and where that comes from; the output is a configuration itself. Changes nothing.
    Check(Check),
    /// Remove what podwire has made on this node, apart from pods
    ///
    /// The CNI configuration that the agent wrote, what it told plugins, its VXLAN devices and routes, tables inet podwire,
    /// bridge podwire and inet podwire-node, its accept rules in other programs' forward chains, and the bridge if no pod is on
    /// it. For uninstalling: pods that still run are cut off from other nodes, and lose their host ports, their masquerade
    /// and their checks. The agent must not run, it would put everything back. Run twice, it finds nothing more to do. The
    /// store of addresses and the node's identity stay; so does its part in a cluster that meets in etcd, which
    /// "podwirectl node rm" on another node ends.
    Cleanup,
    /// Put the programs that lie beside this one into a directory of a node
    ///
    /// For the init container of a Kubernetes node: podwire, podwire-ipam, podwired and podwirectl, each in one step, so that a
    /// runtime never starts half a program; podwire-tuning, which is podwire under that name; and loopback, which every pod needs,
    /// where there is none. What is the same already is left, and nothing is removed. The agent writes the CNI configuration
    /// later, when the node can serve pods.
    Install {
        /// The directory where the runtime looks for CNI plugins, /opt/cni/bin on most nodes. It is made if need be
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Print the completions for a shell
    ///
    /// For bash: podwired completions bash > /etc/bash_completion.d/podwired
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Check {
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(arguments: &[&str]) -> Cli {
        Cli::try_parse_from([&["podwired", "--config", "/dev/null"], arguments].concat()).unwrap()
    }

    #[test]
    fn without_a_command_it_serves() {
        let cli = parse(&["--state-dir", "/s", "--run-dir", "/r"]);
        assert_eq!(dirs(&cli.settings().unwrap().config), Dirs::new("/s", "/r"));
        assert!(matches!(cli.task(), Command::Run));
        assert!(matches!(parse(&["--check"]).task(), Command::Check(Check { json: false })));
    }

    #[test]
    fn flags_may_stand_behind_the_command() {
        let cli = parse(&["check", "--json", "--state-dir", "/s"]);
        assert_eq!(cli.settings().unwrap().config.state_dir, PathBuf::from("/s"));
        let cli = parse(&["run", "--log-level", "debug", "--set", "probes.peers=3", "--set", "run_dir=/r=r"]);
        let config = cli.settings().unwrap().config;
        assert_eq!((config.log.level.as_str(), config.probes.peers), ("debug", 3));
        assert_eq!(config.run_dir, PathBuf::from("/r=r"));
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let cli = Cli::try_parse_from(["podwired", "--config", "/does/not/exist"]).unwrap();
        let errors = cli.settings().unwrap_err();
        assert!(errors.to_string().starts_with("/does/not/exist: cannot be read: "), "{errors}");
        let errors = parse(&["--log-level", "a=b=c"]).settings().unwrap_err();
        assert!(errors.to_string().starts_with("--log-level: log.level: \"a=b=c\" is not"), "{errors}");
    }
}
