//! The node and an attachment as the kernel shows them.

use std::fs;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address};
use podwire_kernel::link::{Link, LinkRef};
use podwire_kernel::route::{Route, RouteFilter};
use podwire_kernel::{Error, Family, Netlink, Netns, sysctl, vlan};

use crate::drift::{HostEnd, ObservedAttachment, PodEnd};
use crate::plan::{BridgeAddress, Forwarding, Observed, ObservedBridge, Wanted};
use crate::shaping::{ObservedShaping, observe_shaping};
use crate::tuning::{TuningError, observe_tuning};
use crate::{Traffic, Tuning};

/// The bridge and the node's forwarding.
///
/// # Errors
/// When the kernel does not answer.
pub fn observe_node(host: &mut Netlink, bridge: &str) -> Result<Observed, Error> {
    Ok(Observed { bridge: bridge_of(host, bridge)?, forwarding: forwarding()? })
}

pub(super) fn bridge_of(host: &mut Netlink, name: &str) -> Result<Option<ObservedBridge>, Error> {
    let Some(link) = host.link(LinkRef::Name(name))? else { return Ok(None) };
    let addresses = host.addresses(Some(link.index))?;
    let address = |a: &Address| BridgeAddress { address: a.address, ours: a.protocol == addr::PROTOCOL };
    Ok(Some(ObservedBridge {
        index: link.index,
        up: link.flags.up,
        promiscuous: link.flags.promisc,
        mac: link.mac,
        addresses: addresses.iter().map(address).collect(),
        vlan_filtering: link.bridge.as_ref().and_then(|bridge| bridge.vlan_filtering),
        kind: link.kind,
    }))
}

fn forwarding() -> Result<Forwarding, Error> {
    // A kernel without IPv6 has no such file, and forwards none.
    let on = |family| match sysctl::read(forwarding_sysctl(family)) {
        Ok(value) => Ok(value != "0"),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    };
    Ok(Forwarding { v4: on(Family::V4)?, v6: on(Family::V6)? })
}

pub(super) fn forwarding_sysctl(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

/// One attachment as the kernel shows it. `pod` is `None` when the netns is gone.
///
/// # Errors
/// When the kernel does not answer, or the pod's netns cannot be entered.
pub fn observe_attachment(
    host: &mut Netlink,
    pod: Option<&Netns>,
    wanted: &Wanted,
) -> Result<ObservedAttachment, Error> {
    let owner = &wanted.attachment.owner;
    let node = observe_node(host, &wanted.bridge.name)?;
    let host_link = host.link(LinkRef::Name(&owner.link_name()))?;
    let mut tuning = Tuning::default();
    let pod = match pod {
        None => None,
        Some(netns) if wanted.tuning.is_empty() => netns.run(|| pod_end(&owner.ifname))??,
        Some(netns) => {
            let end = netns.run(|| pod_end(&owner.ifname))??;
            if end.is_some() {
                tuning = tuning_of(netns, &owner.ifname, &wanted.tuning)?;
            }
            end
        }
    };
    let is_shaped = wanted.attachment.traffic.as_ref().is_some_and(Traffic::is_shaped);
    let shaping = match &host_link {
        Some(link) if is_shaped => observe_shaping(host, owner.id(), link.index)?,
        _ => ObservedShaping::default(),
    };
    let host_end = |link: Link| HostEnd {
        index: link.index,
        peer_index: link.peer_index,
        alias: link.alias,
        up: link.flags.up,
        mtu: link.mtu,
        controller: link.controller,
        hairpin: link.port.as_ref().map(|port| port.hairpin),
        isolated: link.port.as_ref().map(|port| port.isolated),
    };
    Ok(ObservedAttachment {
        host: host_link.map(host_end),
        bridge: node.bridge,
        pod,
        forwarding: node.forwarding,
        shaping,
        tuning,
    })
}

/// The tuned settings as they are; none if the interface has just gone.
pub(super) fn tuning_of(netns: &Netns, ifname: &str, wanted: &Tuning) -> Result<Tuning, Error> {
    match observe_tuning(netns, &mut netns.netlink()?, ifname, wanted) {
        Ok(observed) => Ok(observed),
        Err(TuningError::Kernel(error)) => Err(error),
        Err(_) => Ok(Tuning::default()),
    }
}

/// Whether this node's bridges can tell VLANs apart: by what the bridge shows, or else by a bridge in a network
/// namespace made to ask.
///
/// # Errors
/// When the kernel does not answer, or no namespace can be made.
pub fn can_filter_vlans(observed: &Observed) -> Result<bool, Error> {
    match &observed.bridge {
        Some(bridge) if bridge.kind.as_deref() == Some("bridge") => Ok(bridge.vlan_filtering.is_some()),
        _ => vlan::is_supported(),
    }
}

fn pod_end(ifname: &str) -> Result<Option<PodEnd>, Error> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(LinkRef::Name(ifname))? else { return Ok(None) };
    let addresses = netlink.addresses(Some(link.index))?;
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        let over_link = RouteFilter { family, table: None, oif: Some(link.index), protocol: None };
        routes.extend(netlink.routes(&over_link)?);
    }
    let hops = |route: &Route| {
        let destination: IpNetwork = route.destination;
        route.nexthops.iter().map(move |hop| (destination, hop.gateway)).collect::<Vec<_>>()
    };
    Ok(Some(PodEnd {
        index: link.index,
        peer_index: link.peer_index,
        mac: link.mac,
        mtu: link.mtu,
        up: link.flags.up,
        addresses: addresses.iter().map(|a| a.address).collect(),
        routes: routes.iter().flat_map(hops).collect(),
    }))
}

/// What tells this node from others: the machine id, or else the host's name. The bridge's MAC address is made of it.
pub fn node_id() -> String {
    ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}
