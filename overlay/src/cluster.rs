//! What the nodes of a cluster tell each other, as it stands in a cluster store. PURE.
//!
//! Whatever comes from a store was written by another node, another version, or by hand: [`Topology`] is what is left of a
//! snapshot after everything that makes no sense, or would harm others, has been left out by name.
//!
//! [`Topology`]: topology::Topology

#[cfg(test)]
pub(crate) mod sample;
pub mod topology;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use podwire_kernel::{Family, MacAddr};
use serde::{Deserialize, Serialize};

/// The settings that all nodes of a cluster share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterConfig {
    /// The cluster's name; part of what each node's VTEP MAC address is made of.
    pub name: String,
    /// Where the nodes' subnets are taken from: one range for each address family that pods have.
    pub ranges: Vec<ClusterRange>,
    /// How packets travel between nodes that do not share a link.
    #[serde(default)]
    pub encapsulation: Encapsulation,
    /// Which other encapsulations nodes go on to receive: those of a change that is under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_receive: Vec<Encapsulation>,
    /// Whether nodes that share a link do without encapsulation.
    #[serde(default)]
    pub direct_routing: DirectRouting,
    /// By which of the nodes' own address families packets travel: the first that both nodes have.
    #[serde(default = "both_families")]
    pub underlay: Vec<IpFamily>,
    /// After how many seconds of a node's absence its subnets become free; `None`: never. At least a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_after_seconds: Option<u64>,
}

impl ClusterConfig {
    /// The UDP ports on which nodes receive packets of the tunnel: no other socket of a node can have them.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        std::iter::once(&self.encapsulation).chain(&self.also_receive).map(|encapsulation| encapsulation.port)
    }
}

fn both_families() -> Vec<IpFamily> {
    vec![IpFamily::Ipv4, IpFamily::Ipv6]
}

/// A range out of which each node has a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRange {
    /// The range.
    pub range: IpNetwork,
    /// The prefix length of each node's subnet, in bits.
    pub subnet_prefix: u8,
}

/// A VXLAN segment: what makes two VTEPs understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Encapsulation {
    /// The VXLAN network identifier, below 2²⁴.
    pub vni: u32,
    /// The UDP port that VTEPs receive on.
    pub port: u16,
}

impl Default for Encapsulation {
    /// VNI 1 on port 8472, as flannel and Linux have it.
    fn default() -> Self {
        Self { vni: 1, port: 8472 }
    }
}

/// Whether packets to nodes on the same link go there without encapsulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirectRouting {
    /// All nodes are reached through the tunnel.
    #[default]
    Never,
    /// Nodes on the same link are reached directly, others through the tunnel.
    Auto,
    /// No tunnel: nodes that are not on the same link are reached by whatever routes others make.
    Always,
}

/// IPv4 or IPv6, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// The node's identity within the cluster.
    pub name: String,
    /// Which installation of that name it is: random, kept on the node's disk. Empty where the store has none.
    #[serde(default)]
    pub instance: String,
    /// Grows with each life of the name: a node that is made again is a newer one. 0 where the store has none.
    #[serde(default)]
    pub generation: u64,
    /// Its own addresses, by which other nodes reach it: one for each family at most.
    pub addresses: Vec<IpAddr>,
    /// The subnets of its pods: one for each family at most.
    pub subnets: Vec<IpNetwork>,
    /// When it claimed its subnets, as an order among nodes: of two that have the same subnet the lower is right.
    #[serde(default)]
    pub claimed: u64,
    /// The largest packet that its own link takes, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What it receives. Empty where the store does not say: then what the cluster's configuration says, with the MAC
    /// addresses that follow from the name.
    #[serde(default)]
    pub receives: Vec<Vtep>,
    /// What it sends; `None` where the store does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends: Option<Encapsulation>,
    /// Whether each family of its pods travels over the same family of the underlay, IPv6 in IPv6 and IPv4 in IPv4, as
    /// flannel has it. Otherwise one tunnel carries both.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_family: bool,
}

/// One end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Vtep {
    /// Its segment.
    #[serde(flatten)]
    pub encapsulation: Encapsulation,
    /// Its inner Ethernet address.
    pub mac: MacAddr,
    /// That of its device over IPv6, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac6: Option<MacAddr>,
}

impl Vtep {
    /// The Ethernet address of its device over that family of the underlay.
    pub fn over(&self, family: Family) -> MacAddr {
        match family {
            Family::V4 => self.mac,
            Family::V6 => self.mac6.unwrap_or(self.mac),
        }
    }
}

/// All that a store knows, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The shared settings.
    pub config: ClusterConfig,
    /// All nodes by name, this one among them. Shared, because a cluster may have thousands and one changes at a time:
    /// what is the same `Arc` as before has not changed.
    pub nodes: BTreeMap<String, Arc<NodeRecord>>,
}
