//! Who drops packets.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::addr::Address;
use podwire_kernel::link::Link;
use podwire_kernel::nft::Hook;

use super::{Facts, Findings};
use crate::ruleset::{Content, Fate, Packet, Place, Ruleset};

/// Why a drop matters.
const FORWARDED: &str = "pods of different nodes do not reach each other: each chain of the packet filter decides for itself, \
                         and no rule of podwire's can undo another's drop";

pub(super) fn examine(facts: &Facts, findings: &mut Findings) {
    for family in &facts.legacy_drops {
        let program = match family {
            Family::V4 => "iptables-legacy",
            Family::V6 => "ip6tables-legacy",
        };
        let bridge = &facts.bridge;
        findings.error(
            "forward-drop-legacy",
            format!("legacy iptables drops forwarded {family} packets of {bridge}"),
            FORWARDED,
            format!("{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT"),
        );
    }
    for (family, port) in &facts.legacy_tunnel_drops {
        let program = match family {
            Family::V4 => "iptables-legacy",
            Family::V6 => "ip6tables-legacy",
        };
        findings.error(
            "tunnel-drop-legacy",
            format!("legacy iptables drops {family} packets that come in to UDP port {port}, the tunnel's"),
            "nothing comes from pods of other nodes",
            format!("{program} -I INPUT -p udp --dport {port} -j ACCEPT, better with -s for the nodes' own network"),
        );
    }
    let Some(ruleset) = &facts.ruleset else { return };
    let Some(bridge) = facts.link(&facts.bridge) else { return };
    let mut found: Vec<Place> = Vec::new();
    let mut perhaps: Vec<Place> = Vec::new();
    for family in facts.families() {
        let Some((here, there)) = ends(facts, family) else { continue };
        // To other nodes by the tunnel, or by the link itself.
        let outs: Vec<&Link> = facts.devices().map(|(device, _)| device).chain(facts.underlay()).collect();
        let is_direct = facts.devices().next().is_none();
        for out in outs.into_iter().filter(|out| is_direct || out.vxlan.is_some()) {
            let to = Packet::new(here, there, Content::Ping)
                .by(bridge.index, &bridge.name)
                .out(out.index, &out.name);
            let from = Packet::new(there, here, Content::Ping)
                .by(out.index, &out.name)
                .out(bridge.index, &bridge.name);
            for packet in [to, from] {
                for hook in [Hook::Prerouting, Hook::Forward, Hook::Postrouting] {
                    sort(ruleset.fate(hook, &packet, false), &mut found, &mut perhaps);
                }
            }
        }
    }
    found.dedup();
    for place in distinct(found) {
        let (code, advice) = advice(&place, &facts.bridge);
        findings.error(
            code,
            format!("packets between pods of different nodes are dropped: {place}"),
            FORWARDED,
            advice,
        );
    }
    for place in distinct(perhaps) {
        // A rule of ours that depends on what cannot be told from here.
        if !is_ours(&place) {
            let (code, advice) = advice(&place, &facts.bridge);
            findings.warning(
                code,
                format!("packets between pods of different nodes may be dropped: {place}"),
                FORWARDED,
                advice,
            );
        }
    }
    tunnel(facts, ruleset, findings);
}

/// Whether what carries the tunnel gets in.
fn tunnel(facts: &Facts, ruleset: &Ruleset, findings: &mut Findings) {
    let Some(underlay) = facts.underlay() else { return };
    let mut found = Vec::new();
    let mut perhaps = Vec::new();
    for (_, vxlan) in facts.devices() {
        let Some(own) = vxlan.local else { continue };
        let peer = facts
            .others()
            .flat_map(|peer| &peer.record.addresses)
            .find(|address| address.is_ipv4() == own.is_ipv4());
        let Some(peer) = peer else { continue };
        let content = Content::Udp(vxlan.port);
        let got = Packet::new(*peer, own, content).by(underlay.index, &underlay.name).local();
        let sent = Packet::new(own, *peer, content).out(underlay.index, &underlay.name);
        for (packet, hooks) in
            [(got, [Hook::Prerouting, Hook::Input]), (sent, [Hook::Output, Hook::Postrouting])]
        {
            for hook in hooks {
                sort(ruleset.fate(hook, &packet, false), &mut found, &mut perhaps);
            }
        }
    }
    if found.is_empty() {
        probes(facts, ruleset, findings);
    }
    for place in distinct(found) {
        let advice = if is_ours(&place) {
            "podwire lets members in alone: if the other node is one, the agent adds it within a second"
                .to_owned()
        } else {
            "let UDP to the tunnel's port in from the other nodes, before that rule".to_owned()
        };
        findings.error(
            "tunnel-drop",
            format!("the tunnel's own packets are dropped: {place}"),
            "nothing comes from pods of other nodes",
            advice,
        );
    }
}

/// Whether agents' questions to each other get in, which come out of the tunnel.
fn probes(facts: &Facts, ruleset: &Ruleset, findings: &mut Findings) {
    let Some(port) = facts.status.as_ref().and_then(|status| status.probe_port) else { return };
    let (mut found, mut perhaps) = (Vec::new(), Vec::new());
    for own in facts.subnets.iter().map(IpNetwork::network) {
        // A node's own address inside the overlay is the first of its subnet.
        let theirs = facts.others().flat_map(|peer| &peer.record.subnets).map(IpNetwork::network);
        let Some(peer) = theirs.into_iter().find(|peer| peer.is_ipv4() == own.is_ipv4()) else { continue };
        for (device, _) in facts.devices() {
            let packet = Packet::new(peer, own, Content::Udp(port)).by(device.index, &device.name).local();
            for hook in [Hook::Prerouting, Hook::Input] {
                sort(ruleset.fate(hook, &packet, false), &mut found, &mut perhaps);
            }
        }
    }
    for place in distinct(found) {
        findings.warning(
            "probe-drop",
            format!("probes of other nodes are dropped: {place}"),
            "pods reach each other all the same, but nodes call this one unreachable, and nobody notices when it is",
            format!("let UDP to port {port} in from the VXLAN devices, before that rule"),
        );
    }
}

fn sort(fate: Fate, found: &mut Vec<Place>, perhaps: &mut Vec<Place>) {
    match fate {
        Fate::Passes => {}
        Fate::Dropped(place) => found.push(place),
        Fate::MayBeDropped(places) => perhaps.extend(places),
    }
}

fn distinct(mut places: Vec<Place>) -> Vec<Place> {
    places.sort();
    places.dedup();
    places
}

fn is_ours(place: &Place) -> bool {
    ["inet podwire", "bridge podwire", "inet podwire-node"].contains(&place.table.as_str())
}

fn advice(place: &Place, bridge: &str) -> (&'static str, String) {
    match place.table.as_str() {
        "inet firewalld" | "ip firewalld" | "ip6 firewalld" => (
            "firewalld",
            format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={bridge} --add-interface=<the VXLAN device>; \
                 firewall-cmd --reload"
            ),
        ),
        table => (
            "forward-drop",
            format!(
                "take the rule away, or let the pods pass before it: nft insert rule {table} {} iifname {bridge} accept; \
                 nft insert rule {table} {0} oifname {bridge} accept",
                place.base
            ),
        ),
    }
}

/// An address of a pod here, and one of a pod elsewhere.
fn ends(facts: &Facts, family: Family) -> Option<(IpAddr, IpAddr)> {
    let is_family = |address: &IpAddr| Family::of(*address) == family;
    let bridge = facts.link(&facts.bridge)?;
    let on_bridge = |own: &&Address| own.ifindex == bridge.index;
    let subnet = facts.subnets.iter().copied().find(|subnet| is_family(&subnet.ip()));
    let subnet = subnet.or_else(|| {
        let own = facts.addresses.iter().filter(on_bridge).map(|own| own.address);
        own.into_iter().find(|own| is_family(&own.ip()) && own.prefix() < 128)
    });
    let here = some_pod(subnet?)?;
    let there = facts
        .others()
        .flat_map(|peer| peer.record.subnets.iter().copied())
        .find(|subnet| is_family(&subnet.ip()));
    Some((here, some_pod(there?)?))
}

/// An address in a subnet that a pod may have.
fn some_pod(subnet: IpNetwork) -> Option<IpAddr> {
    let offset = 9;
    match subnet.network() {
        IpAddr::V4(first) => u32::from(first).checked_add(offset).map(|address| IpAddr::V4(address.into())),
        IpAddr::V6(first) => {
            u128::from(first).checked_add(offset.into()).map(|address| IpAddr::V6(address.into()))
        }
    }
}
