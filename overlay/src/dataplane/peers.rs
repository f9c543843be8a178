//! The nodes of the cluster, as a report and an administrator see them. PURE.

use std::collections::BTreeMap;

use podwire_kernel::Family;

use super::Input;
use crate::cluster::IpFamily;
use crate::cluster::topology::Problem;
use crate::desired::{Desired, Hop, Path, UnderlayFacts, Via};
use crate::status::{DeviceStatus, PathStatus, PeerCounts, PeerState, PeerStatus};

/// All nodes but this one, counted by how they are reached. `broken` are those of which something failed.
pub(super) fn counts(desired: Option<&Desired>, input: Option<&Input>, broken: usize) -> PeerCounts {
    let mut counts = PeerCounts::default();
    let Some(desired) = desired else { return counts };
    for path in &desired.paths {
        match state(path) {
            PeerState::Tunnel => counts.tunnel += 1,
            PeerState::Direct => counts.direct += 1,
            _ => counts.unreachable += 1,
        }
    }
    // Which of the two it would have been does not matter here.
    let broken = broken.min(counts.tunnel + counts.direct);
    let of_tunnel = broken.min(counts.tunnel);
    counts.tunnel -= of_tunnel;
    counts.direct -= broken - of_tunnel;
    counts.unreachable += broken;
    counts.total =
        input.map_or(0, |input| input.snapshot.nodes.len()).saturating_sub(1).max(desired.paths.len());
    // Nodes without subnets yet are neither reached nor left out for anything.
    let without = input
        .map_or(0, |input| input.snapshot.nodes.values().filter(|record| record.subnets.is_empty()).count());
    counts.left_out = counts.total.saturating_sub(desired.paths.len()).saturating_sub(without);
    counts
}

/// Our devices.
pub(super) fn devices(desired: Option<&Desired>) -> Vec<DeviceStatus> {
    let devices = desired.map_or(&[][..], |desired| &desired.devices);
    let device = |device: &crate::desired::Device| DeviceStatus {
        name: device.id.name().to_owned(),
        underlay: match device.id.family {
            Family::V4 => IpFamily::Ipv4,
            Family::V6 => IpFamily::Ipv6,
        },
        encapsulation: device.id.encapsulation,
        mtu: device.mtu,
    };
    devices.iter().map(device).collect()
}

/// All nodes, this one among them.
pub(super) fn peers(
    own: &str,
    desired: Option<&Desired>,
    input: Option<&Input>,
    underlay: &UnderlayFacts,
    problems: &[Problem],
    broken: &BTreeMap<String, String>,
) -> Vec<PeerStatus> {
    let Some(input) = input else { return Vec::new() };
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for problem in problems {
        if let Some(node) = &problem.node {
            by_node.entry(node).or_default().push(problem.text.clone());
        }
    }
    let one = |(name, record): (&String, &std::sync::Arc<crate::cluster::NodeRecord>)| {
        let path = desired.and_then(|desired| desired.path(name));
        let is_self = name == own;
        let mut problems = by_node.get(name.as_str()).cloned().unwrap_or_default();
        problems.extend(broken.get(name).cloned());
        let state = match path {
            _ if is_self => PeerState::Own,
            Some(_) if broken.contains_key(name) => PeerState::Unreachable,
            Some(path) => state(path),
            None if record.subnets.is_empty() => PeerState::Unreachable,
            None => PeerState::LeftOut,
        };
        PeerStatus {
            record: (**record).clone(),
            is_self,
            is_present: None,
            state,
            paths: path.map(|path| paths(path, underlay)).unwrap_or_default(),
            problems,
            probes: Vec::new(),
        }
    };
    input.snapshot.nodes.iter().map(one).collect()
}

fn state(path: &Path) -> PeerState {
    let hops = path.peer.subnets.iter().map(|subnet| path.hop(Family::of(subnet.network.network())));
    let mut state = PeerState::Unreachable;
    for hop in hops {
        match hop {
            // One that needs the tunnel for one family is reached through it.
            Hop::Tunnel(_) => return PeerState::Tunnel,
            Hop::Direct(_) => state = PeerState::Direct,
            Hop::None => {}
        }
    }
    state
}

fn paths(path: &Path, underlay: &UnderlayFacts) -> Vec<PathStatus> {
    let device = |via: Via| match via {
        Via::Device(device) => device.name().to_owned(),
        Via::Link(index) => {
            let link = underlay.links.iter().find(|link| link.index == index);
            link.map_or_else(|| index.to_string(), |link| link.name.clone())
        }
    };
    let one = |route: crate::desired::PeerRoute| PathStatus {
        subnet: route.destination,
        is_direct: matches!(route.via, Via::Link(_)),
        device: device(route.via),
        via: Some(route.gateway),
        mtu: route.mtu,
    };
    path.routes().map(one).collect()
}
