//! What a Node says of a node, and what this node writes down of itself at its own. PURE.
//!
//! Whoever may change a Node can write there, other versions of podwire among them. What cannot be read is left out by name; it
//! is never taken for absent. Whether what can be read makes sense beside everything else, the
//! [topology](crate::cluster::topology) says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::flannel;
use super::object::Node;
use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, NodeRecord, Vtep};
use crate::config::Kubernetes;
use crate::config::shared::is_host_address;
use crate::store::{Announcement, Membership};

/// The annotation in which a node's agent, and nobody else, says what the node is to others, as JSON.
pub const NODE: &str = "podwire.dev/node";
/// The annotation in which an administrator says by which addresses others reach the node, with commas between: one for each
/// family at most. For nodes behind network address translation.
pub const ADDRESSES: &str = "podwire.dev/addresses";

/// The version of [`Published`] that is written, and the newest that is read.
const VERSION: u32 = 1;

/// The largest annotation that is read, in bytes. Ours have some 300.
pub const LARGEST: usize = 16 << 10;

/// What stands at [`NODE`]. Fields that this version does not know are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Published {
    version: u32,
    /// The installation that wrote it: what its agent answers probes with, and so tells two machines with one name apart.
    #[serde(default)]
    instance: String,
    addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default)]
    receives: Vec<Vtep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sends: Option<Encapsulation>,
}

/// The version alone, which every program can read.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The record of a Node; `None`: neither podwire nor, where that counts, flannel has said anything of it.
///
/// # Errors
/// What stands there cannot be used, and why.
pub fn read(node: &Node, kubernetes: &Kubernetes) -> Result<Option<NodeRecord>, String> {
    let shared = &kubernetes.shared;
    let said = match published(node)? {
        Some(published) => NodeRecord {
            instance: published.instance,
            addresses: published.addresses,
            mtu: published.mtu,
            receives: published.receives,
            sends: published.sends,
            ..NodeRecord::default()
        },
        None if !kubernetes.flannel_peers => return Ok(None),
        None => match flannel::read(node, shared.encapsulation.port)? {
            Some(said) => said,
            None => return Ok(None),
        },
    };
    let created = node.created();
    Ok(Some(NodeRecord {
        name: node.metadata.name.clone(),
        generation: created,
        claimed: created,
        addresses: reached_by(node, &said.addresses, kubernetes)?,
        subnets: subnets(node, &shared.ranges)?,
        ..said
    }))
}

/// This node's part of the cluster, as its own Node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// It is a member.
    Member {
        /// With this part.
        membership: Membership,
        /// What an administrator should know of it.
        notices: Vec<String>,
    },
    /// It has no subnet yet, and what gives it one.
    None(String),
    /// What it has is nothing that podwire could use, and why.
    Unusable(String),
}

/// Reads this node's own Node.
pub fn own(node: &Node, kubernetes: &Kubernetes) -> Part {
    let name = &node.metadata.name;
    let shared = &kubernetes.shared;
    let subnets = match subnets(node, &shared.ranges) {
        Ok(subnets) => subnets,
        Err(why) => return Part::Unusable(format!("Node {name}: {why}")),
    };
    if subnets.is_empty() {
        return Part::None(format!(
            "Node {name} has no spec.podCIDR yet: Kubernetes' controller manager gives it one if it runs with \
             --allocate-node-cidrs and --cluster-cidr (kubeadm: podSubnet)"
        ));
    }
    for subnet in &subnets {
        if let Err(why) = check_subnet(*subnet, shared) {
            return Part::Unusable(format!("Node {name}: {why}"));
        }
    }
    let mut notices = Vec::new();
    for range in &shared.ranges {
        if !subnets.iter().any(|subnet| range.range.is_ipv4() == subnet.is_ipv4()) {
            notices.push(format!(
                "Node {name} has no podCIDR of {}: its pods have no address of that family until the Node is made again",
                range.range
            ));
        }
    }
    let addresses = own_addresses(node, kubernetes).unwrap_or_else(|why| {
        notices.push(format!("Node {name}: {why}: it is passed over"));
        internal_addresses(node)
    });
    let created = node.created();
    Part::Member {
        membership: Membership { subnets, generation: created, claimed: created, addresses },
        notices,
    }
}

/// The annotations of its own Node that this node has to change for its Node to say what is so: the text that is to stand there,
/// or that nothing is. Empty: all is as it should be, or there is nothing to say yet.
pub fn changes(
    node: &Node,
    announcement: &Announcement,
    instance: &str,
    kubernetes: &Kubernetes,
) -> BTreeMap<&'static str, Option<String>> {
    let Announcement { addresses, mtu, receives, sends } = announcement;
    // Without devices others would make up what they have: MAC addresses that follow from the name.
    let is_in = !receives.is_empty() || kubernetes.shared.direct_routing == DirectRouting::Always;
    if addresses.is_empty() || !is_in {
        return BTreeMap::new();
    }
    let says = &node.metadata.annotations;
    let published = Published {
        version: VERSION,
        instance: instance.to_owned(),
        addresses: addresses.clone(),
        mtu: *mtu,
        receives: receives.clone(),
        sends: *sends,
    };
    // These types have no keys that are not strings, and no writer that fails.
    let text = serde_json::to_string(&published).unwrap_or_default();
    let mut wanted = match receives.iter().find(|vtep| vtep.encapsulation == kubernetes.shared.encapsulation)
    {
        Some(vtep) if kubernetes.flannel_peers => {
            let reached_by = reached_by(node, addresses, kubernetes).unwrap_or_else(|_| addresses.clone());
            let subnets = subnets(node, &[]).unwrap_or_default();
            flannel::written(vtep, &reached_by, |is_right| {
                subnets.iter().any(|subnet| is_right(&subnet.ip()))
            })
        }
        Some(_) => {
            let before = self::published(node).ok().flatten().map(|published| published.receives);
            flannel::withdrawn(says, &before.unwrap_or_default())
        }
        None => BTreeMap::new(),
    };
    wanted.retain(|key, wanted| flannel::at(says, key) != wanted.as_deref());
    if says.node.as_deref() != Some(&text) {
        wanted.insert(NODE, Some(text));
    }
    wanted
}

/// A merge patch that makes these changes, of that life of the Node alone.
pub fn patch(node: &Node, changes: &BTreeMap<&'static str, Option<String>>) -> Value {
    json!({ "metadata": { "uid": node.metadata.uid, "annotations": changes } })
}

fn published(node: &Node) -> Result<Option<Published>, String> {
    let Some(text) = &node.metadata.annotations.node else { return Ok(None) };
    if text.len() > LARGEST {
        return Err(format!("annotation {NODE} has {} bytes, more than {LARGEST}", text.len()));
    }
    let unreadable = |error: serde_json::Error| {
        format!("annotation {NODE} cannot be read: {}", cut(&error.to_string(), 100))
    };
    let Version { version } = serde_json::from_str(text).map_err(unreadable)?;
    if version > VERSION {
        return Err(format!(
            "annotation {NODE} has version {version}, and this podwired reads {VERSION}: is there a newer one?"
        ));
    }
    serde_json::from_str(text).map(Some).map_err(unreadable)
}

/// By which addresses others reach a node that says to be at `own`.
fn reached_by(node: &Node, own: &[IpAddr], kubernetes: &Kubernetes) -> Result<Vec<IpAddr>, String> {
    if let Some(given) = given_addresses(node)? {
        return Ok(given);
    }
    let mut addresses = own.to_vec();
    if kubernetes.flannel_peers {
        for given in flannel::overwritten(&node.metadata.annotations)? {
            addresses.retain(|address| address.is_ipv4() != given.is_ipv4());
            addresses.push(given);
        }
        addresses.sort_by_key(IpAddr::is_ipv6);
    }
    Ok(addresses)
}

/// The same for this node, which says by it which of its own addresses it is to use.
fn own_addresses(node: &Node, kubernetes: &Kubernetes) -> Result<Vec<IpAddr>, String> {
    reached_by(node, &internal_addresses(node), kubernetes)
}

/// The first internal address of each family.
fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in internal.filter_map(|address| address.address.parse::<IpAddr>().ok()) {
        let is_new = addresses.iter().all(|other| other.is_ipv4() != address.is_ipv4());
        if is_new && is_host_address(address) {
            addresses.push(address);
        }
    }
    addresses
}

fn given_addresses(node: &Node) -> Result<Option<Vec<IpAddr>>, String> {
    let Some(text) = &node.metadata.annotations.addresses else { return Ok(None) };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = |why| format!("annotation {ADDRESSES}: {:?} {why}", cut(part, 100));
        let address = part.parse().map_err(|_| wrong("is no address"))?;
        if !is_host_address(address) {
            return Err(wrong("is no address that other nodes reach"));
        }
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(wrong("is a second address of its family"));
        }
        addresses.push(address);
    }
    Ok(Some(addresses).filter(|addresses| !addresses.is_empty()))
}

/// A Node's subnets, in the order of the cluster's ranges: Kubernetes has them in either order.
fn subnets(node: &Node, ranges: &[ClusterRange]) -> Result<Vec<IpNetwork>, String> {
    let mut subnets = Vec::new();
    for text in node.pod_cidrs() {
        match text.parse::<IpNetwork>() {
            Ok(subnet) if text.contains('/') => subnets.push(subnet),
            _ => return Err(format!("spec.podCIDRs: {:?} is no subnet", cut(text, 100))),
        }
    }
    let place = |subnet: &IpNetwork| {
        ranges.iter().position(|range| range.range.is_ipv4() == subnet.is_ipv4()).unwrap_or(ranges.len())
    };
    subnets.sort_by_key(place);
    Ok(subnets)
}

fn check_subnet(subnet: IpNetwork, shared: &ClusterConfig) -> Result<(), String> {
    let range = shared.ranges.iter().find(|range| range.range.contains(subnet.network()));
    match range {
        None => {
            let ranges: Vec<String> = shared.ranges.iter().map(|range| range.range.to_string()).collect();
            Err(format!(
                "podCIDR {subnet} lies in none of this node's cluster.range ({}): set it to Kubernetes' --cluster-cidr",
                ranges.join(", ")
            ))
        }
        Some(range) if range.subnet_prefix != subnet.prefix() => Err(format!(
            "podCIDR {subnet} is a /{}, and cluster.range gives nodes a /{} of {}: set its subnet_prefix to the controller \
             manager's --node-cidr-mask-size",
            subnet.prefix(),
            range.subnet_prefix,
            range.range
        )),
        Some(_) if subnet.network() != subnet.ip() => Err(format!("podCIDR {subnet} has host bits set")),
        Some(_) => Ok(()),
    }
}

/// So many characters of a text at most, none of them a control character, for a message.
pub(super) fn cut(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

#[cfg(test)]
mod tests;
