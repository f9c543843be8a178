//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use podwire_ipam::Dirs;

/// Shows, explains and checks what podwire does on a node
///
/// Asks the agent (podwired) of this node. `explain`, `doctor`, `trace`, `pods`, `nodes` and `ipam` work without it too:
/// they look at the kernel, the address store, and what the node remembers of its cluster.
#[derive(Debug, Parser)]
#[command(name = "podwirectl", version, after_help = AFTER_HELP, after_long_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Where the agent keeps what outlives a reboot
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PODWIRED_STATE_DIR",
        default_value = "/var/lib/podwire",
        help_heading = "Global options"
    )]
    state_dir: PathBuf,

    /// Where the agent has its sockets
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "PODWIRED_RUN_DIR",
        default_value = "/run/podwire",
        help_heading = "Global options"
    )]
    run_dir: PathBuf,

    /// Write JSON, for programs. The shapes are in docs/podwirectl.md and stay as they are; fields may be added
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  all is well, or done
  1  a problem was found: what was looked at is not as it should be
  2  the command line is wrong, or names something that does not exist
  3  the agent does not answer, and the command needs it
  4  something else failed: not permitted, refused, or an error on the way

Environment:
  NO_COLOR  no colours, if it is set; nor are there any where the output is no
            terminal

Files:
  <run-dir>/podwired.sock    the agent's control socket, for root alone
  <state-dir>/ipam           the store of addresses, read if no agent runs
  <state-dir>/cluster.json   what the node remembers of its cluster";

impl Cli {
    pub(crate) fn dirs(&self) -> Dirs {
        Dirs::new(&self.state_dir, &self.run_dir)
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show this node: problems first, then what it is and does
    ///
    /// Exit code 1 if the node is not ready, or has a problem that is an error.
    Status(Status),
    /// List the nodes of the cluster, and how packets get there
    ///
    /// With a name: all that is known of that node. Without an agent: what this node remembers. Exit code 1 if a node is not
    /// reached.
    Nodes(Nodes),
    /// List this node's pods
    ///
    /// Of all namespaces, unless one is named. With a pod: only its interfaces, exit code 2 if there is none.
    Pods(Pods),
    /// Look at the addresses of this node's pods, and put them in order
    #[command(subcommand)]
    Ipam(Ipam),
    /// Explain how packets get from one pod to another, hop by hop, and which hop is broken
    ///
    /// From the pod's lease over its interface, the bridge, the kernel's own choice of a route, the tunnel's neighbour and
    /// forwarding entry, and the link between the nodes, to the packet filter's verdict and the agent's probes. It only looks, and
    /// works without the agent. One of the two must be on this node. Exit code 1 if a hop is broken.
    Explain(Explain),
    /// Watch the packets between two pods as they pass this node
    ///
    /// At the pod's interface, the bridge, the VXLAN device and the link between the nodes, with the inner and the outer headers
    /// side by side, and where a packet was not seen. It sends nothing: have the pods talk meanwhile. One of the two must be on
    /// this node. With --json one object a line for each packet, then one with the totals. Exit code 1 if no packet was seen, or
    /// one not everywhere.
    Trace(Trace),
    /// Look for everything on this node that keeps, or may keep, pods from reaching each other
    ///
    /// Settings of the kernel, rules and routes of other programs, links of the wrong size, leases without interfaces, and what the
    /// agent reports. Each finding says what is so, why it matters and what to do. Nothing is changed. Exit code 1 if anything but
    /// notes was found.
    Doctor(Doctor),
    /// Change which nodes the cluster has
    #[command(subcommand)]
    Node(Node),
    /// Look at the settings that all nodes share, and change them
    #[command(subcommand)]
    Cluster(Cluster),
    /// Move this node from another pod network to podwire while its pods run
    #[command(subcommand)]
    Migrate(Migrate),
    /// Print the completions for a shell
    ///
    /// `make install` puts them in place. By hand, for bash: podwirectl completions bash >
    /// /usr/share/bash-completion/completions/podwirectl
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Status {}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Only this one, with all that is known of it
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Pods {
    /// Only this one: NAMESPACE/NAME, a pod's name, an address, or the beginning of a container's id
    #[arg(value_name = "POD|IP")]
    pub(crate) pod: Option<String>,

    /// Those of all namespaces, which are listed anyway
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,

    /// Only those of this Kubernetes namespace
    #[arg(long, short = 'n', value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// Only those of this network
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,

    /// Only their names, a line for each: for completions
    #[arg(long, hide = true, conflicts_with = "pod")]
    pub(crate) names: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ipam {
    /// List the addresses that pods have
    ///
    /// Asks the agent; where none runs, opens the store.
    Show {
        /// Only those of this network
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
    },
    /// Compare the leases with the node's interfaces
    ///
    /// Exit code 1 if they do not agree.
    Check {
        /// Only those of this network
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
    },
    /// End the leases whose interface is gone
    ///
    /// The agent does so by itself after some minutes, and runtimes that call GC do. Their addresses are free then, after a
    /// rest.
    Gc {
        /// Only those of this network
        #[arg(long, value_name = "NAME")]
        network: Option<String>,

        /// Only say which
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a network's addresses as a directory of host-local: the way back to it
    ///
    /// Before that, stop giving addresses of the network by podwire: take its configuration away, or change its type
    /// back. Pods that run keep their addresses and are removed as usual by the bridge plugin.
    Export {
        /// The network's name in its configuration
        #[arg(long, value_name = "NAME")]
        network: String,

        /// host-local's dataDir. The files go into the directory of the network's name in it
        #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/networks")]
        dir: PathBuf,

        /// Replace the addresses that are there
        #[arg(long)]
        force: bool,
    },
}

/// Two ends and what is sent between them.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// From whom: an address, NAMESPACE/NAME, a pod's name, or the beginning of a container's id
    #[arg(value_name = "POD|IP")]
    pub(crate) from: String,

    /// To whom
    #[arg(value_name = "POD|IP")]
    pub(crate) to: String,

    /// What the packet filter does with a TCP connection to this port, instead of a ping
    #[arg(long, value_name = "PORT", conflicts_with = "udp")]
    pub(crate) tcp: Option<u16>,

    /// The same for a UDP datagram
    #[arg(long, value_name = "PORT")]
    pub(crate) udp: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// One of the two: an address, NAMESPACE/NAME, a pod's name, or the beginning of a container's id
    #[arg(value_name = "POD|IP")]
    pub(crate) from: String,

    /// The other
    #[arg(value_name = "POD|IP")]
    pub(crate) to: String,

    /// End after so many packets
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) count: u64,

    /// End after so many seconds
    #[arg(long, short = 't', value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,

    /// Which addresses, where the two have both; IPv4 if nothing is said
    #[arg(long, value_name = "FAMILY")]
    pub(crate) family: Option<Family>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

impl Family {
    /// Whether an address is of it.
    pub(crate) fn is(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::Ipv4)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The CNI configuration that podwired writes: others in its directory that come before it are told
    #[arg(long, value_name = "FILE", default_value = "/etc/cni/net.d/10-podwire.conflist")]
    pub(crate) conflist: PathBuf,

    /// The bridge of the pods; found by itself where pods run
    #[arg(long, value_name = "NAME")]
    pub(crate) bridge: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// End another node's membership
    ///
    /// For a machine that does not come back: its subnets rest for ten minutes and are free then. A node that is present is not
    /// removed without --force; it would be cut off from the others.
    Rm {
        /// Its name, as `podwirectl nodes` shows it
        #[arg(value_name = "NAME")]
        name: String,

        /// Also if it is present
        #[arg(long)]
        force: bool,
    },
    /// End this node's own membership
    ///
    /// Before a machine is taken away for good. It takes no new pods then until its agent is started again.
    Leave {
        /// Also if pods run here: they lose the connection to other nodes when another node gets the subnet
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Show the settings that all nodes share
    Show,
    /// Change settings that all nodes share
    ///
    /// Keys: vni and port (the encapsulation; both may be given at once), direct-routing (never, auto, always), underlay (ipv4,
    /// ipv6, or both in order: ipv4,ipv6), reclaim-after (hours, at least 24, or never). Name and ranges cannot be changed while
    /// there are nodes.
    ///
    /// A change of vni or port loses no packet: each node receives on both, and sends on the new one once all others receive it.
    /// `podwirectl status` shows how far it is.
    Set {
        /// What to change
        #[arg(value_name = "KEY=VALUE", required = true)]
        changes: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// From flannel with VXLAN; with --back, to it again
    ///
    /// podwire goes on with flannel's devices and bridge, under their names and with their MAC addresses, so no pod is restarted
    /// and no packet lost. The steps are shown first; each is made only if it is not done already, so a migration that was
    /// interrupted is begun again by the same command. docs/migrate-from-flannel.md has the whole cluster's move. Exit code 1 if
    /// something stands in the way: nothing is changed then.
    Flannel(Flannel),
}

#[derive(Debug, Args)]
pub(crate) struct Flannel {
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Give the node back to flannel. The agent must not run; afterwards flannel may
    #[arg(long, conflicts_with_all = ["flannel_is_gone", "wait"])]
    pub(crate) back: bool,

    /// Do not ask the API server whether flannel's DaemonSet and pods are kept away from this node: they are
    #[arg(long)]
    pub(crate) flannel_is_gone: bool,

    /// The agent's configuration
    #[arg(long, value_name = "FILE", env = podwire_overlay::config::FILE_VARIABLE)]
    pub(crate) config: Option<PathBuf>,

    /// How long the agent may take until the node is ready
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) wait: u64,

    /// What flannel says of this node
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["podwirectl", "ipam", "show", "--json", "--state-dir", "/s"]).unwrap();
        assert!(cli.json() && cli.dirs().state == *"/s");
    }

    #[test]
    fn pods_are_asked_for_as_kubectl_is() {
        for words in
            ["-A", "--all-namespaces", "-n kube-system", "--namespace=a default/web", "default/web", ""]
        {
            let words = ["podwirectl", "pods"].into_iter().chain(words.split_whitespace());
            assert!(matches!(Cli::try_parse_from(words).unwrap().command, Command::Pods(_)));
        }
        assert!(Cli::try_parse_from(["podwirectl", "pods", "-A", "-n", "a"]).is_err());
    }
}
