//! What differs between an attachment as it should be and as the kernel shows it. CHECK names each
//! difference; ADD takes an attachment without any as its own earlier work.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;

use crate::plan::{ObservedBridge, PodRoute, Port, Wanted};
use crate::shaping::{self, ObservedShaping};
use crate::tuning::tuning_drift;
use crate::{Shaping, Tuning, alias};

/// One attachment as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedAttachment {
    /// The link that has the host end's name.
    pub host: Option<HostEnd>,
    /// The link that has the bridge's name.
    pub bridge: Option<ObservedBridge>,
    /// The link in the pod's netns that has the pod interface's name.
    pub pod: Option<PodEnd>,
    /// Where the node forwards.
    pub forwarding: crate::plan::Forwarding,
    /// The host end's token buckets, where the attachment is to have some.
    pub shaping: ObservedShaping,
    /// The tuned settings as they are.
    pub tuning: Tuning,
}

/// The host's end of a veth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    /// Its index in the host's netns.
    pub index: u32,
    /// Its peer's index in the peer's netns.
    pub peer_index: Option<u32>,
    /// Its alias.
    pub alias: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The index of the bridge it is a port of.
    pub controller: Option<u32>,
    /// Its port's hairpin mode; `None` while it is no port.
    pub hairpin: Option<bool>,
    /// Its port's isolation; `None` while it is no port.
    pub isolated: Option<bool>,
}

/// The pod's end of a veth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEnd {
    /// Its index in the pod's netns.
    pub index: u32,
    /// Its peer's index in the host's netns.
    pub peer_index: Option<u32>,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// All unicast routes over it, in any table: destination and gateway.
    pub routes: Vec<(IpNetwork, Option<IpAddr>)>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// There is no link of the host end's name.
    NoHostLink(String),
    /// A link has that name, but its alias names another owner or none.
    ForeignHostLink(String),
    /// The host's end is down.
    HostLinkDown(String),
    /// There is no bridge.
    NoBridge(String),
    /// A link has the bridge's name but is none.
    NotABridge(String),
    /// The bridge is down.
    BridgeDown(String),
    /// The bridge lacks a gateway's address.
    NoGateway(String, IpNetwork),
    /// The host's end is not a port of the bridge.
    NotAPort(String, String),
    /// A port's setting differs: port, setting, wanted.
    PortSetting(String, &'static str, bool),
    /// The pod has no such interface.
    NoPodLink(String),
    /// The pod's interface is not the other end of the host's link.
    NotOurPeer(String),
    /// The pod's interface is down.
    PodLinkDown(String),
    /// The pod's interface's MAC address differs: interface, wanted, found.
    PodMac(String, MacAddr, Option<MacAddr>),
    /// The pod's interface's MTU in bytes differs: interface, wanted, found.
    PodMtu(String, u32, u32),
    /// The pod's interface lacks an address.
    NoAddress(String, IpNetwork),
    /// The pod lacks a route.
    NoRoute(IpNetwork, Option<IpAddr>),
    /// The node does not forward in that family (its sysctl).
    NoForwarding(&'static str),
    /// The traffic over the host's end is not limited as it should be in that direction: host end, direction.
    Shaping(String, &'static str),
    /// A sysctl of the pod differs: its path below /proc/sys, wanted, found.
    Sysctl(String, String, Option<String>),
    /// A mode of the pod's interface differs: interface, mode, wanted.
    PodFlag(String, &'static str, bool),
    /// The pod's interface's transmit queue has another length in packets: interface, wanted, found.
    TxQueueLength(String, u32, Option<u32>),
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHostLink(name) => write!(f, "host link {name} is missing"),
            Self::ForeignHostLink(name) => {
                write!(f, "host link {name} does not carry this attachment's alias")
            }
            Self::HostLinkDown(name) => write!(f, "host link {name} is down"),
            Self::NoBridge(name) => write!(f, "bridge {name} is missing"),
            Self::NotABridge(name) => write!(f, "{name} is not a bridge"),
            Self::BridgeDown(name) => write!(f, "bridge {name} is down"),
            Self::NoGateway(name, address) => write!(f, "bridge {name} lacks the gateway address {address}"),
            Self::NotAPort(name, bridge) => write!(f, "host link {name} is not a port of bridge {bridge}"),
            Self::PortSetting(name, setting, wanted) => {
                write!(f, "{setting} of bridge port {name} is {}", if *wanted { "off" } else { "on" })
            }
            Self::NoPodLink(name) => write!(f, "interface {name} is missing in the container"),
            Self::NotOurPeer(name) => {
                write!(f, "interface {name} in the container is not the peer of our host link")
            }
            Self::PodLinkDown(name) => write!(f, "interface {name} is down in the container"),
            Self::PodMac(name, wanted, Some(found)) => {
                write!(f, "interface {name} has MAC address {found} instead of {wanted}")
            }
            Self::PodMac(name, wanted, None) => {
                write!(f, "interface {name} has no MAC address instead of {wanted}")
            }
            Self::PodMtu(name, wanted, found) => {
                write!(f, "interface {name} has MTU {found} instead of {wanted}")
            }
            Self::NoAddress(name, address) => write!(f, "address {address} is missing on interface {name}"),
            Self::NoRoute(destination, Some(gateway)) => {
                write!(f, "route to {destination} via {gateway} is missing in the container")
            }
            Self::NoRoute(destination, None) => {
                write!(f, "route to {destination} is missing in the container")
            }
            Self::NoForwarding(sysctl) => write!(f, "{sysctl} is 0, the node does not forward"),
            Self::Shaping(link, direction) => {
                write!(f, "the traffic {direction} over link {link} is not limited as configured")
            }
            Self::Sysctl(name, wanted, Some(found)) => {
                write!(f, "sysctl {name} is {found:?} in the container instead of {wanted:?}")
            }
            Self::Sysctl(name, wanted, None) => {
                write!(f, "sysctl {name} is missing in the container instead of {wanted:?}")
            }
            Self::PodFlag(name, mode, wanted) => {
                write!(
                    f,
                    "{mode} of interface {name} is {} in the container",
                    if *wanted { "off" } else { "on" }
                )
            }
            Self::TxQueueLength(name, wanted, found) => {
                let found = found.unwrap_or(0);
                write!(f, "interface {name} has a transmit queue of {found} packets instead of {wanted}")
            }
        }
    }
}

/// All differences, in the order a packet meets them from the bridge to the pod's routes.
pub fn drift(wanted: &Wanted, observed: &ObservedAttachment) -> Vec<Drift> {
    let mut found = Vec::new();
    let owner = &wanted.attachment.owner;
    bridge_drift(wanted, observed, &mut found);
    host_drift(wanted, observed, &mut found);
    match &observed.pod {
        None => found.push(Drift::NoPodLink(owner.ifname.clone())),
        Some(pod) => {
            let host_index = observed.host.as_ref().map(|host| host.index);
            // Indexes are per netns: only both directions together tell that these two are one pair.
            let peers = observed.host.as_ref().is_some_and(|host| host.peer_index == Some(pod.index));
            if !peers || pod.peer_index != host_index {
                found.push(Drift::NotOurPeer(owner.ifname.clone()));
            }
            pod_drift(wanted, pod, &mut found);
        }
    }
    if let (Some(host), Some(traffic)) = (&observed.host, &wanted.attachment.traffic) {
        found.extend(shaping_drift(&owner.link_name(), host.mtu, &traffic.shaping, &observed.shaping));
    }
    if observed.pod.is_some() {
        found.extend(tuning_drift(&wanted.tuning, &observed.tuning, &owner.ifname));
    }
    found
}

/// What of the limits over a host's end is not as it should be.
pub fn shaping_drift(host_end: &str, mtu: u32, wanted: &Shaping, observed: &ObservedShaping) -> Vec<Drift> {
    let differences = shaping::differences(wanted, mtu, observed);
    differences.into_iter().map(|direction| Drift::Shaping(host_end.to_owned(), direction)).collect()
}

fn bridge_drift(wanted: &Wanted, observed: &ObservedAttachment, found: &mut Vec<Drift>) {
    let name = || wanted.bridge.name.clone();
    match &observed.bridge {
        None => found.push(Drift::NoBridge(name())),
        Some(bridge) if bridge.kind.as_deref() != Some("bridge") => found.push(Drift::NotABridge(name())),
        Some(bridge) => {
            if !bridge.up {
                found.push(Drift::BridgeDown(name()));
            }
            let lacking = |gateway: &&IpNetwork| !bridge.addresses.iter().any(|a| a.address == **gateway);
            let gateways = wanted.bridge.gateways.iter().filter(lacking);
            found.extend(gateways.map(|&gateway| Drift::NoGateway(name(), gateway)));
        }
    }
    if wanted.forwarding.v4 && !observed.forwarding.v4 {
        found.push(Drift::NoForwarding("net.ipv4.ip_forward"));
    }
    if wanted.forwarding.v6 && !observed.forwarding.v6 {
        found.push(Drift::NoForwarding("net.ipv6.conf.all.forwarding"));
    }
}

fn host_drift(wanted: &Wanted, observed: &ObservedAttachment, found: &mut Vec<Drift>) {
    let owner = &wanted.attachment.owner;
    let name = owner.link_name();
    let Some(host) = &observed.host else {
        found.push(Drift::NoHostLink(name));
        return;
    };
    if !is_ours(owner, host.alias.as_deref()) {
        found.push(Drift::ForeignHostLink(name));
        return;
    }
    if !host.up {
        found.push(Drift::HostLinkDown(name.clone()));
    }
    let bridge = observed.bridge.as_ref().map(|bridge| bridge.index);
    if bridge.is_none() || host.controller != bridge {
        found.push(Drift::NotAPort(name, wanted.bridge.name.clone()));
        return;
    }
    port_drift(&name, wanted.port(), host.hairpin, host.isolated, found);
}

/// What of a bridge port's settings is not as it should be.
pub(crate) fn port_drift(
    name: &str,
    wanted: Port,
    hairpin: Option<bool>,
    isolated: Option<bool>,
    found: &mut Vec<Drift>,
) {
    let settings = [("hairpin mode", hairpin, wanted.hairpin), ("port isolation", isolated, wanted.isolated)];
    for (setting, is, should) in settings {
        if is.is_some_and(|is| is != should) {
            found.push(Drift::PortSetting(name.to_owned(), setting, should));
        }
    }
}

fn pod_drift(wanted: &Wanted, pod: &PodEnd, found: &mut Vec<Drift>) {
    let name = || wanted.attachment.owner.ifname.clone();
    if !pod.up && !wanted.pod_link_down {
        found.push(Drift::PodLinkDown(name()));
    }
    if pod.mac != Some(wanted.mac) {
        found.push(Drift::PodMac(name(), wanted.mac, pod.mac));
    }
    if let Some(mtu) = wanted.mtu
        && pod.mtu != mtu
    {
        found.push(Drift::PodMtu(name(), mtu, pod.mtu));
    }
    let lacking = |address: &IpNetwork| !pod.addresses.contains(address);
    let addresses = wanted.attachment.addresses.iter().map(|a| a.address).filter(lacking);
    found.extend(addresses.map(|address| Drift::NoAddress(name(), address)));
    // A later plugin of the chain may move a route to another table or give it other attributes: it has to
    // lead to the same place by the same gateway, no more.
    let lacking = |route: &&PodRoute| {
        !pod.routes.iter().any(|(destination, gateway)| {
            *destination == route.destination && (route.gateway.is_none() || *gateway == route.gateway)
        })
    };
    let routes = wanted.routes.iter().filter(lacking);
    found.extend(routes.map(|route| Drift::NoRoute(route.destination, route.gateway)));
}

/// Whether a host link with this alias is this owner's.
pub fn is_ours(owner: &crate::Owner, link_alias: Option<&str>) -> bool {
    link_alias.and_then(alias::parse).is_some_and(|alias| alias.owner_id == owner.id())
}

#[cfg(test)]
mod tests;
