//! How packets get from one pod to another, hop by hop, and which hop is broken. PURE.
//!
//! ```text
//! lease → interface → bridge → forwarding → node → device → route → neighbour → FDB → underlay → filter → probe
//! ```
//! What stands in the stores is compared with what the kernel says now; for routes the kernel itself is asked what it
//! would do with the packet. So the answer needs no agent: without one, the cluster is what the node remembers.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::addr::Address;
use podwire_kernel::link::{Link, Vxlan};
use podwire_kernel::neighbour::{FdbEntry, Neighbour};
use podwire_kernel::route::{Lookup, Route};
use serde::Serialize;

use crate::cluster::topology::vtep_mac;
use crate::cluster::{ClusterConfig, Encapsulation, NodeRecord, Vtep};
use crate::ruleset::{Content, Ruleset};
use crate::status::{PodStatus, ProbeStatus};

mod ends;
mod filter;
mod path;
mod text;

pub use ends::{End, ResolveError, find, resolve};
pub use text::text;

/// The alias of the devices that are podwire's.
pub const DEVICE_ALIAS: &str = "podwire overlay";

/// What is known of a node of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is this one.
    pub is_self: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The subnets of its pods.
    pub subnets: Vec<IpNetwork>,
    /// Its tunnel's ends; empty where they are not known.
    pub vteps: Vec<Vtep>,
    /// Whether it has lost contact to the store; `None` where nobody knows.
    pub is_absent: Option<bool>,
    /// Why no packets are sent to it: what its record says makes no sense, or would harm others.
    pub left_out: Option<String>,
    /// What the agent's probes found.
    pub probes: Vec<ProbeStatus>,
}

/// What was read before.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// All links.
    pub links: Vec<Link>,
    /// All their addresses.
    pub addresses: Vec<Address>,
    /// The packet filter.
    pub ruleset: Ruleset,
    /// In which families legacy iptables drops what is forwarded from and to the bridge.
    pub legacy_drops: Vec<Family>,
    /// The nodes of the cluster; `None` if this node has never been a member of one, or it cannot be told.
    pub nodes: Option<Vec<Node>>,
    /// The ranges of all pods.
    pub ranges: Vec<IpNetwork>,
    /// Whether the agent answers.
    pub has_agent: bool,
}

/// What is asked of the kernel on the way.
pub trait Kernel {
    /// What the kernel would do with a packet.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    fn route_to(&mut self, lookup: &Lookup) -> Result<Option<Route>, String>;

    /// A link's neighbours.
    ///
    /// # Errors
    /// As above.
    fn neighbours(&mut self, ifindex: u32) -> Result<Vec<Neighbour>, String>;

    /// A VXLAN device's forwarding entries.
    ///
    /// # Errors
    /// As above.
    fn fdb(&mut self, ifindex: u32) -> Result<Vec<FdbEntry>, String>;

    /// A sysctl's value.
    ///
    /// # Errors
    /// As above.
    fn sysctl(&mut self, name: &str) -> Result<String, String>;
}

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HopKind {
    /// The pod's lease in the address store.
    Lease,
    /// The host's end of its veth.
    Interface,
    /// The bridge that joins the node's pods.
    Bridge,
    /// Whether the node passes packets on at all.
    Forwarding,
    /// The other node's record.
    Node,
    /// The VXLAN device.
    Device,
    /// The node's route.
    Route,
    /// The MAC address of the other end of the tunnel.
    Neighbour,
    /// The node behind that MAC address.
    Fdb,
    /// The way between the nodes.
    Underlay,
    /// The packet filter's verdict.
    Filter,
    /// The agent's own packets on the same way.
    Probe,
}

impl fmt::Display for HopKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Interface => "interface",
            Self::Bridge => "bridge",
            Self::Forwarding => "forwarding",
            Self::Node => "node",
            Self::Device => "device",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Fdb => "FDB",
            Self::Underlay => "underlay",
            Self::Filter => "filter",
            Self::Probe => "probe",
        })
    }
}

/// How a hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HopState {
    /// As it should be.
    Ok,
    /// Packets do not get further.
    Broken,
    /// Packets may not get further.
    Doubtful,
    /// It cannot be told.
    Unknown,
}

/// One hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// What it is.
    pub hop: HopKind,
    /// How it is.
    pub state: HopState,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The packets' source.
    pub from: End,
    /// Their destination.
    pub to: End,
    /// The first broken hop; `None` if none is.
    pub broken: Option<HopKind>,
    /// All hops, in the order in which a packet meets them.
    pub hops: Vec<Hop>,
}

/// Explains the way of packets between two addresses of one family.
pub fn explain(
    scene: &Scene,
    kernel: &mut dyn Kernel,
    from: &End,
    to: &End,
    content: Content,
) -> Explanation {
    let mut walk = Walk { scene, kernel, from, to, content, hops: Vec::new() };
    walk.go();
    let hops = walk.hops;
    let broken = hops.iter().find(|hop| hop.state == HopState::Broken).map(|hop| hop.hop);
    Explanation { from: from.clone(), to: to.clone(), broken, hops }
}

/// The way, as far as it was gone.
struct Walk<'a> {
    scene: &'a Scene,
    kernel: &'a mut dyn Kernel,
    from: &'a End,
    to: &'a End,
    content: Content,
    hops: Vec<Hop>,
}

impl Walk<'_> {
    fn go(&mut self) {
        match (self.is_here(self.from), self.is_here(self.to)) {
            (true, true) => self.within_node(),
            (true, false) => self.outbound(),
            (false, true) => self.inbound(),
            (false, false) => {
                let names: Vec<&str> = [self.from, self.to]
                    .iter()
                    .filter_map(|end| self.node_of(end.address))
                    .map(|node| node.name.as_str())
                    .collect();
                let advice = match names.as_slice() {
                    [] => "run it on a node that has one of the two pods".to_owned(),
                    names => format!("run it on node {}", names.join(" or ")),
                };
                self.say(HopKind::Lease, HopState::Unknown, "neither of the two is on this node", advice);
            }
        }
    }

    /// Whether an end is a pod of this node, or would be one.
    fn is_here(&self, end: &End) -> bool {
        end.pod.is_some()
            || self.is_own(end.address)
            || self.node_of(end.address).is_some_and(|node| node.is_self)
    }

    /// Whether it is this machine's own address.
    fn is_own(&self, address: IpAddr) -> bool {
        self.scene.addresses.iter().any(|own| own.address.ip() == address)
    }

    fn node_of(&self, address: IpAddr) -> Option<&Node> {
        let nodes = self.scene.nodes.as_ref()?;
        nodes.iter().find(|node| node.subnets.iter().any(|subnet| subnet.contains(address)))
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.scene.links.iter().find(|link| link.index == index)
    }

    fn link_name(&self, index: Option<u32>) -> String {
        match index {
            Some(index) => self.link(index).map_or_else(|| format!("link {index}"), |link| link.name.clone()),
            None => "no link".to_owned(),
        }
    }

    fn named(&self, name: &str) -> Option<&Link> {
        self.scene.links.iter().find(|link| link.name == name)
    }

    /// Podwire's own VXLAN devices.
    fn devices(&self) -> Vec<(Link, Vxlan)> {
        let ours = self.scene.links.iter().filter(|link| link.alias.as_deref() == Some(DEVICE_ALIAS));
        ours.filter_map(|link| Some((link.clone(), link.vxlan?))).collect()
    }

    fn family(&self) -> Family {
        Family::of(self.to.address)
    }

    fn say(&mut self, hop: HopKind, state: HopState, found: impl Into<String>, advice: impl Into<String>) {
        self.hops.push(Hop { hop, state, found: found.into(), advice: advice.into() });
    }

    fn ok(&mut self, hop: HopKind, found: impl Into<String>) {
        self.say(hop, HopState::Ok, found, "");
    }

    fn broken(&mut self, hop: HopKind, found: impl Into<String>, advice: impl Into<String>) {
        self.say(hop, HopState::Broken, found, advice);
    }
}

/// The ends of a node's tunnels: what it announces, or where it announces nothing, what follows from the shared settings.
pub fn vteps(record: &NodeRecord, config: Option<&ClusterConfig>) -> Vec<Vtep> {
    if !record.receives.is_empty() {
        return record.receives.clone();
    }
    let Some(config) = config else { return Vec::new() };
    let all = std::iter::once(&config.encapsulation).chain(&config.also_receive);
    let vtep = |segment: &Encapsulation| Vtep {
        encapsulation: *segment,
        mac: vtep_mac(&config.name, &record.name, segment.vni),
        mac6: None,
    };
    all.map(vtep).collect()
}

/// Something that the agent would put right, and by hand if there is none.
fn repaired(by_hand: &str, has_agent: bool) -> String {
    if has_agent {
        format!(
            "the agent puts it right within 10 s; if it does not, `podwirectl status` says why ({by_hand})"
        )
    } else {
        format!("start the agent (podwired), which puts it right; {by_hand}")
    }
}

/// A pod's name for people.
pub(crate) fn pod_name(pod: &PodStatus) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(_), Some(_)) => handle(pod),
        _ => format!("container {}", pod.container),
    }
}

/// By what [`find`] finds it: `namespace/name`, or its container's id where the runtime named no pod.
pub fn handle(pod: &PodStatus) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => pod.container.clone(),
    }
}

#[cfg(test)]
mod tests;
