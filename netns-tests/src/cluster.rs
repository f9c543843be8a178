//! Several nodes on an underlay, each with an agent, and pods on them by real CNI calls.
//!
//! ```no_run
//! # use podwire_netns_tests::cluster::{Cluster, Options};
//! # fn main() -> podwire_netns_tests::Result<()> {
//! let mut cluster = Cluster::start("doc", &Options::default())?;      // two nodes, both families, peers file, ready
//! let (a, b) = (cluster.pod(0, "a")?, cluster.pod(1, "b")?);
//! let mut flows = cluster.flows(&a, &b)?;                             // both ways, both families, 1,000 packets/s each
//! cluster.member(0).sh("ip link set podwire.1 down")?;
//! flows.all_flow(std::time::Duration::from_secs(5))?;
//! println!("{:?}", flows.laps());
//! # Ok(()) }
//! ```

mod member;
mod outlive;
mod peers;
mod scene;

pub use member::{ClusterPod, Member};
pub use outlive::Meeting;
pub use peers::{Peer, Peers};
pub use scene::{AT_LAST, AT_ONCE, Scene};

use std::net::IpAddr;
use std::time::Duration;

use crate::error::{LabError, Result};
use crate::kubernetes::ControlPlane;
use crate::lab::Lab;
use crate::traffic::{Flow, Flows};
use crate::underlay::{Families, Layout, Underlay};

/// The name of the pod network that agents make.
pub const NETWORK: &str = "podwire";
/// Its bridge.
pub const BRIDGE: &str = "podwire0";
/// Where the peers file is, in each node.
pub const PEERS: &str = "/etc/podwire/peers.toml";

/// The ranges of clusters whose pods have both families, each with the prefix length of a node's subnet.
pub const RANGES: [(&str, u8); 2] = [("10.240.0.0/13", 24), ("fd00:10:244::/48", 64)];

/// How long an agent may take until it is ready: far more than it needs, for a machine that is busy.
pub const READY: Duration = Duration::from_secs(20);

/// What a cluster is like.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// The nodes' own addresses.
    pub underlay: Families,
    /// Whether they share a link.
    pub layout: Layout,
    /// The pods' addresses.
    pub pods: Families,
    /// Settings of the cluster, such as `direct_routing = "auto"`: lines of the peers file at its top, or with Kubernetes of
    /// the table `[cluster]` of each agent.
    pub settings: String,
    /// Lines at the end of the agents' configuration, such as `[probes]` and what belongs to it.
    pub agent: String,
    /// Where the nodes meet.
    pub store: Store,
    /// Leave /opt/cni/bin empty.
    pub no_plugins: bool,
    /// Whether a node can be rebooted: its state directory is on the machine's disk then.
    pub reboots: bool,
}

/// Where the nodes of a cluster meet.
#[derive(Debug, Clone, Default)]
pub enum Store {
    /// In the peers file that each has a copy of: [`Cluster::peers`].
    #[default]
    Peers,
    /// Where these lines of the agents' configuration say.
    Settings(String),
    /// In the Kubernetes API. Each node of the cluster is made a Node of it, with the addresses and subnets of its number.
    Kubernetes(ControlPlane),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            underlay: Families::Dual,
            layout: Layout::Flat,
            pods: Families::Dual,
            settings: String::new(),
            agent: String::new(),
            store: Store::Peers,
            no_plugins: false,
            reboots: false,
        }
    }
}

/// Nodes on an underlay of their own.
pub struct Cluster {
    lab: Lab,
    underlay: Underlay,
    options: Options,
    members: Vec<Member>,
    /// What the peers files of nodes say that have none of their own.
    pub peers: Peers,
}

impl Cluster {
    /// Makes the nodes and starts their agents; they are ready when this returns.
    ///
    /// # Errors
    /// If one of them is not; its log is in the message.
    pub fn start(name: &str, options: &Options) -> Result<Self> {
        let mut cluster = Self::prepare(name, options)?;
        cluster.start_agents()?;
        Ok(cluster)
    }

    /// Makes the nodes, with their configuration and without agents.
    ///
    /// # Errors
    /// If a node or a link cannot be made.
    pub fn prepare(name: &str, options: &Options) -> Result<Self> {
        let lab = Lab::new(name)?;
        let underlay = Underlay::new(options.underlay, options.layout)?;
        Self::prepare_on(&lab, &underlay, options)
    }

    /// The same on an underlay that is there, whose other nodes have numbers above those of this cluster.
    ///
    /// # Errors
    /// If a node or a link cannot be made.
    pub fn prepare_on(lab: &Lab, underlay: &Underlay, options: &Options) -> Result<Self> {
        let mut peers = Peers::new(options.pods, &options.settings);
        let mut members = Vec::new();
        for number in 0..options.nodes {
            let member = Member::create(lab, underlay, number, options)?;
            peers.nodes.push(peers.peer(number, underlay.addresses(number)));
            members.push(member);
        }
        let cluster =
            Self { lab: lab.clone(), underlay: underlay.clone(), options: options.clone(), members, peers };
        cluster.write_peers()?;
        Ok(cluster)
    }

    /// One more node, with its configuration and without an agent. It is in nobody's peers file.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn add_node(&mut self) -> Result<usize> {
        let at = self.members.len();
        let number = u8::try_from(at).map_err(LabError::because("number a node"))?;
        self.members.push(Member::create(&self.lab, &self.underlay, number, &self.options)?);
        Ok(at)
    }

    /// Starts the agents that do not run, and waits until they are ready.
    ///
    /// # Errors
    /// If one of them is not; its log is in the message.
    pub fn start_agents(&mut self) -> Result<()> {
        for member in &mut self.members {
            if !member.has_agent() {
                member.spawn_agent()?;
            }
        }
        self.members.iter_mut().try_for_each(|member| member.agent_mut()?.wait_until_ready(READY))
    }

    /// Writes [`Cluster::peers`] to each node, as one change: a new file, renamed.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn write_peers(&self) -> Result<()> {
        let text = self.peers.to_toml();
        self.members.iter().try_for_each(|member| member.write_peers(&text))
    }

    /// A node by number.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn member(&self, number: usize) -> &Member {
        &self.members[number]
    }

    /// A node by number, to start and stop its agent.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn member_mut(&mut self, number: usize) -> &mut Member {
        &mut self.members[number]
    }

    /// All nodes.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The subnets of the node of that number, one for each family of the pods.
    pub fn subnets_of(&self, number: u8) -> Vec<String> {
        subnets(self.options.pods, u16::from(number))
    }

    /// The lab that the nodes are in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What connects the nodes.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Reboots a node: everything that is not on its disk is gone, pods and all; it has its addresses again and another
    /// boot id. Its agent does not run yet. Needs [`Options::reboots`].
    ///
    /// # Errors
    /// If the node cannot be made again.
    pub fn reboot(&mut self, number: u8) -> Result<()> {
        if !self.options.reboots {
            return Err(LabError::new("this cluster's nodes keep nothing on disk: see Options::reboots"));
        }
        let at = usize::from(number);
        // First without it: its port of the underlay goes with its namespace.
        drop(self.members.remove(at));
        let port = format!("p{number}");
        self.underlay.sh(&format!("ip link del {port} 2>/dev/null || true"))?;
        let member = Member::create(&self.lab, &self.underlay, number, &self.options)?;
        let boot = format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), count());
        member.node().set_boot_id(&boot)?;
        member.write_peers(&self.peers.to_toml())?;
        self.members.insert(at, member);
        Ok(())
    }

    /// A pod on the node of that number, by an ADD with the configuration that the node's agent wrote.
    ///
    /// # Errors
    /// If ADD fails.
    pub fn pod(&self, number: usize, name: &str) -> Result<ClusterPod> {
        self.member(number).pod(name)
    }

    /// 1,000 packets a second between two pods, each way and in each family that both have. Returns when they arrive.
    ///
    /// # Errors
    /// If they do not.
    pub fn flows(&self, one: &ClusterPod, other: &ClusterPod) -> Result<Flows> {
        let mut flows = Flows::default();
        for (from, to) in [(one, other), (other, one)] {
            for address in &to.addresses {
                flows.0.push(Flow::start(from.pod(), to.pod(), *address)?);
            }
        }
        Ok(flows)
    }

    /// Fails unless the two pods reach each other, with pings in each family, both ways.
    ///
    /// # Errors
    /// With the way that does not work.
    pub fn assert_reach(&self, one: &ClusterPod, other: &ClusterPod) -> Result<()> {
        let pairs = [(one, other), (other, one)];
        let ways =
            pairs.iter().flat_map(|(from, to)| to.addresses.iter().map(move |address| (from, address)));
        ways.into_iter().try_for_each(|(from, address)| from.pod().ping(*address).map(drop))
    }
}

/// The node's name in the cluster.
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// The subnets of the node of that number, one for each family of the pods.
pub fn subnets(pods: Families, number: u16) -> Vec<String> {
    let [high, low] = (number + 1).to_be_bytes();
    let four = pods.ipv4().then(|| format!("10.{}.{low}.0/24", 240 + u32::from(high)));
    let six = pods.ipv6().then(|| format!("fd00:10:244:{:x}::/64", number + 1));
    four.into_iter().chain(six).collect()
}

/// The ranges of clusters whose pods have those families, as TOML tables of that name.
pub fn range_lines(pods: Families, table: &str) -> String {
    let ranges = [pods.ipv4(), pods.ipv6()].into_iter().zip(RANGES).filter(|(wanted, _)| *wanted);
    let line = |(range, prefix)| format!("\n[[{table}]]\nrange = \"{range}\"\nsubnet_prefix = {prefix}\n");
    ranges.map(|(_, range)| line(range)).collect()
}

/// The gateway of the subnet: its first address.
///
/// # Errors
/// If the text is no subnet.
pub fn first_address(subnet: &str) -> Result<IpAddr> {
    let base: IpAddr = subnet
        .split('/')
        .next()
        .unwrap_or_default()
        .parse()
        .map_err(LabError::because(format!("the first address of {subnet}")))?;
    Ok(match base {
        IpAddr::V4(base) => IpAddr::from((u32::from(base) + 1).to_be_bytes()),
        IpAddr::V6(base) => IpAddr::from((u128::from(base) + 1).to_be_bytes()),
    })
}

fn count() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
