//! The devices, routes and addresses that join the nodes.

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::addr::PROTOCOL;
use podwire_kernel::link::Link;
use podwire_kernel::route::Route;

use super::{Facts, Findings};
use crate::cluster::{DirectRouting, Encapsulation};
use crate::explain::{self, DEVICE_ALIAS};

/// RTPROT_KERNEL: what comes with an address.
const BY_KERNEL: u8 = 2;

/// The scope of addresses that other machines can use (RT_SCOPE_UNIVERSE).
const GLOBAL: u8 = 0;

pub(super) fn examine(facts: &Facts, findings: &mut Findings) {
    devices(facts, findings);
    sizes(facts, findings);
    routes(facts, findings);
    bridge(facts, findings);
    port(facts, findings);
}

fn devices(facts: &Facts, findings: &mut Findings) {
    let wants_tunnel =
        facts.config.as_ref().is_some_and(|config| config.direct_routing != DirectRouting::Always);
    if facts.others().next().is_some() && wants_tunnel && facts.devices().next().is_none() {
        findings.error(
            "no-device",
            "this node has no VXLAN device of podwire's",
            "packets to pods of other nodes have no way",
            "the agent makes it: `podwirectl status` says why it did not",
        );
    }
    for (device, vxlan) in facts.devices() {
        let name = &device.name;
        if !device.flags.up {
            findings.error(
                "device-down",
                format!("{name} is down"),
                "the kernel drops its routes and neighbours with it: no pod of another node is reached",
                "the agent sets it up within a second; without it: start podwired",
            );
        }
        if vxlan.unusual || vxlan.learning || vxlan.remote.is_some() {
            findings.warning(
                "device-changed",
                format!("{name} has settings that podwire never makes"),
                "frames may be learned from, or sent to, nodes that are not members",
                "`ip -d link show` shows them; the agent makes the device anew if they cannot be taken back",
            );
        }
        let own = facts.peers.iter().find(|peer| peer.is_self);
        let announced = own.and_then(|own| {
            let vteps = explain::vteps(&own.record, facts.config.as_ref());
            let segment = Encapsulation { vni: vxlan.vni, port: vxlan.port };
            let vtep = vteps.iter().find(|vtep| vtep.encapsulation == segment)?;
            Some(vtep.over(vxlan.local.map_or(Family::V4, Family::of)))
        });
        if let (Some(announced), Some(mac)) = (announced, device.mac)
            && announced != mac
        {
            findings.error(
                "vtep-mac",
                format!("{name} has MAC address {mac}, and other nodes were told {announced}"),
                "they send frames to an address that nobody has; systemd-udevd's MACAddressPolicy does this to links that are \
                 made without one",
                format!("a .link file for {name} with MACAddressPolicy=none; the agent puts the address back"),
            );
        }
        for other in facts.links.iter().filter(|other| other.index != device.index) {
            let Some(theirs) = &other.vxlan else { continue };
            let is_ours = other.alias.as_deref() == Some(DEVICE_ALIAS);
            if (theirs.vni, theirs.port) == (vxlan.vni, vxlan.port) && !is_ours {
                foreign_vxlan(findings, other);
            }
        }
    }
    // Ours cannot be made where another has its place.
    if let Some(config) = &facts.config
        && facts.devices().next().is_none()
    {
        for other in &facts.links {
            let taken = other.vxlan.as_ref().is_some_and(|theirs| {
                (theirs.vni, theirs.port) == (config.encapsulation.vni, config.encapsulation.port)
            });
            if taken && other.alias.as_deref() != Some(DEVICE_ALIAS) {
                foreign_vxlan(findings, other);
            }
        }
    }
}

fn foreign_vxlan(findings: &mut Findings, other: &Link) {
    let (vni, port) = other.vxlan.as_ref().map_or((0, 0), |vxlan| (vxlan.vni, vxlan.port));
    findings.error(
        "foreign-vxlan",
        format!("{} is another program's VXLAN device with VNI {vni} on port {port}", other.name),
        "the kernel has one device of a VNI and port: podwire's cannot be made, or gets none of the packets",
        match super::kubernetes::is_flannels(&other.name) {
            true => "`podwirectl migrate flannel` takes it over while pods run",
            false => "remove it, or give the cluster another VNI: podwirectl cluster set vni=…",
        },
    );
}

fn sizes(facts: &Facts, findings: &mut Findings) {
    let Some(underlay) = facts.underlay() else { return };
    let mut smallest = None;
    for (device, vxlan) in facts.devices() {
        let overhead = if vxlan.local.is_some_and(|local| local.is_ipv6()) { 70 } else { 50 };
        smallest = Some(smallest.unwrap_or(device.mtu).min(device.mtu));
        if device.mtu + overhead > underlay.mtu {
            findings.error(
                "mtu",
                format!(
                    "{} takes packets of {} bytes, and {} carries {} at most: {overhead} are for the tunnel itself",
                    device.name, device.mtu, underlay.name, underlay.mtu
                ),
                "large packets are lost without a word, small ones pass",
                "the agent follows the link's MTU; without it: start podwired",
            );
        }
    }
    let Some(path) = smallest else { return };
    let is_pod = |link: &&Link| link.alias.as_deref().and_then(podwire_attach::alias::parse).is_some();
    let larger = facts.links.iter().filter(is_pod).filter(|link| link.mtu > path).count();
    if larger > 0 {
        findings.note(
            "pod-mtu",
            format!("{larger} pods have a larger MTU than the tunnel's {path}"),
            "their packets to other nodes depend on path MTU discovery, which works unless ICMP is dropped on the way",
            "pods that are made anew get the right one; nothing has to be done",
        );
    }
}

fn routes(facts: &Facts, findings: &mut Findings) {
    let subnets: Vec<(&str, IpNetwork)> = facts
        .others()
        .flat_map(|peer| peer.record.subnets.iter().map(|subnet| (peer.record.name.as_str(), *subnet)))
        .collect();
    let bridge = facts.link(&facts.bridge).map(|link| link.index);
    for route in &facts.routes {
        let out = route.nexthops.first().and_then(|hop| hop.oif);
        let is_ours = route.protocol == PROTOCOL || (route.protocol == BY_KERNEL && out == bridge);
        if is_ours || route.destination.prefix() == 0 {
            continue;
        }
        let taken: Vec<&(&str, IpNetwork)> =
            subnets.iter().filter(|(_, subnet)| wins(route, *subnet, &facts.routes)).collect();
        if let Some((node, subnet)) = taken.first() {
            let dev = out.map(|out| facts.link_name(out)).unwrap_or_default();
            let more =
                if taken.len() > 1 { format!(" (and {} more)", taken.len() - 1) } else { String::new() };
            findings.error(
                "foreign-route",
                format!(
                    "route {} dev {dev} (protocol {}) wins for subnet {subnet} of node {node}{more}",
                    route.destination, route.protocol
                ),
                "packets to that node's pods go where the route says; podwire never touches routes of others",
                format!("find out who made it, and: ip route del {}", route.destination),
            );
        }
    }
    let ranges: Vec<IpNetwork> =
        facts.config.iter().flat_map(|config| config.ranges.iter().map(|range| range.range)).collect();
    let ours: Vec<u32> = facts.devices().map(|(device, _)| device.index).chain(bridge).collect();
    for own in facts.addresses.iter().filter(|own| own.scope == GLOBAL && !ours.contains(&own.ifindex)) {
        if let Some(range) = ranges.iter().find(|range| range.contains(own.address.ip())) {
            let dev = facts.link_name(own.ifindex);
            findings.error(
                "address-in-range",
                format!("{} on {dev} lies in the pods' range {range}", own.address),
                "it is a pod's address for every other node, and its network a way that competes with podwire's",
                "renumber the link, or give the cluster another range",
            );
        }
    }
}

/// Whether a route of somebody else's decides about some packets to a subnet.
fn wins(route: &Route, subnet: IpNetwork, all: &[Route]) -> bool {
    let is_inside =
        subnet.contains(route.destination.network()) && route.destination.prefix() >= subnet.prefix();
    if !is_inside {
        return false;
    }
    if route.destination.prefix() > subnet.prefix() {
        return true;
    }
    // The same prefix: the lower metric wins.
    let ours = all.iter().find(|other| other.protocol == PROTOCOL && other.destination == route.destination);
    ours.is_none_or(|ours| route.priority.unwrap_or(0) < ours.priority.unwrap_or(0))
}

fn bridge(facts: &Facts, findings: &mut Findings) {
    let Some(bridge) = facts.link(&facts.bridge) else { return };
    let name = &bridge.name;
    let has_pods = facts.links.iter().any(|link| link.controller == Some(bridge.index));
    if !bridge.flags.up && has_pods {
        findings.error(
            "bridge-down",
            format!("{name} is down"),
            "its pods have no network",
            format!("ip link set dev {name} up"),
        );
    }
    let on_bridge: Vec<IpNetwork> = facts
        .addresses
        .iter()
        .filter(|own| own.ifindex == bridge.index && own.scope == GLOBAL)
        .map(|own| own.address)
        .collect();
    // Without a cluster the network's configuration says which addresses are right.
    for subnet in &facts.subnets {
        if has_pods && on_bridge.iter().all(|own| !subnet.contains(own.ip())) {
            findings.error(
                "bridge-address",
                format!("{name} has no address in this node's subnet {subnet}"),
                "its pods have no gateway",
                "the agent puts it back; without it: start podwired",
            );
        }
    }
    let pods = facts.links.iter().filter_map(|link| podwire_attach::alias::parse(link.alias.as_deref()?));
    let pods: Vec<IpNetwork> = pods.flat_map(|pod| pod.addresses).collect();
    // Pods of an earlier subnet have their gateway as long as they live; the agent tells of them.
    let is_kept = |own: &IpNetwork| pods.iter().any(|pod| own.contains(pod.ip()));
    for own in on_bridge.iter().filter(|own| !facts.subnets.is_empty() && !is_kept(own)) {
        if facts.subnets.iter().all(|subnet| !subnet.contains(own.ip())) {
            findings.warning(
                "bridge-address",
                format!("{name} has {own}, which is in none of this node's subnets"),
                "another program uses the bridge, or it is left from an earlier subnet: packets may leave with a source that \
                 pods of other nodes cannot answer",
                format!("ip address del {own} dev {name}"),
            );
        }
    }
}

/// The tunnel's port among those that the kernel gives to clients.
fn port(facts: &Facts, findings: &mut Findings) {
    let range = facts.sysctl("net/ipv4/ip_local_port_range").and_then(|text| {
        let mut numbers = text.split_whitespace().filter_map(|number| number.parse::<u16>().ok());
        Some(numbers.next()?..=numbers.next()?)
    });
    let Some(range) = range else { return };
    let reserved = facts.sysctl("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let mut ports: Vec<u16> = facts.devices().map(|(_, vxlan)| vxlan.port).collect();
    ports.extend(facts.config.as_ref().map(|config| config.encapsulation.port));
    ports.sort_unstable();
    ports.dedup();
    for port in ports.into_iter().filter(|port| range.contains(port) && !is_reserved(reserved, *port)) {
        findings.warning(
            "ephemeral-port",
            format!("the tunnel's port {port} is in net.ipv4.ip_local_port_range ({}-{})", range.start(), range.end()),
            "the kernel may give it to a client, or to masqueraded connections, before the tunnel has it",
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={port}, or another port: podwirectl cluster set port=…"),
        );
    }
}

/// Whether a port is in a list such as `8080,9000-9100`.
fn is_reserved(list: &str, port: u16) -> bool {
    list.split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let bounds = (from.trim().parse::<u16>(), to.trim().parse::<u16>());
        matches!(bounds, (Ok(from), Ok(to)) if (from..=to).contains(&port))
    })
}
