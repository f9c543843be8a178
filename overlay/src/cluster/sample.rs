//! A cluster for tests: node n is at 192.0.2.n and 2001:db8::n and has 10.244.n.0/24 and fd00:10:244:n::/64.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::topology::Topology;
use super::{
    ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily, NodeRecord, Snapshot, Vtep,
};
use crate::desired::{UnderlayFacts, UnderlayLink};
use crate::store::Membership;

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn config() -> ClusterConfig {
    ClusterConfig {
        name: "lab".to_owned(),
        ranges: vec![
            ClusterRange { range: network("10.244.0.0/16"), subnet_prefix: 24 },
            ClusterRange { range: network("fd00:10:244::/48"), subnet_prefix: 64 },
        ],
        encapsulation: Encapsulation::default(),
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4, IpFamily::Ipv6],
        reclaim_after_seconds: None,
    }
}

pub(crate) fn subnets(n: u16) -> Vec<IpNetwork> {
    vec![network(&format!("10.244.{n}.0/24")), network(&format!("fd00:10:244:{n:x}::/64"))]
}

/// A node's record, as the file store makes it.
pub(crate) fn record(n: u16) -> NodeRecord {
    NodeRecord {
        name: format!("n{n}"),
        instance: String::new(),
        generation: 0,
        addresses: vec![ip(&format!("192.0.2.{n}")), ip(&format!("2001:db8::{n:x}"))],
        subnets: subnets(n),
        claimed: u64::from(n),
        mtu: None,
        receives: Vec::new(),
        sends: None,
        same_family: false,
    }
}

/// A node's record that says what it receives.
pub(crate) fn announcing(n: u16, receives: &[Encapsulation], sends: Encapsulation) -> NodeRecord {
    let name = format!("n{n}");
    let vtep = |encapsulation: &Encapsulation| Vtep {
        encapsulation: *encapsulation,
        mac: super::topology::vtep_mac("lab", &name, encapsulation.vni),
        mac6: None,
    };
    NodeRecord { receives: receives.iter().map(vtep).collect(), sends: Some(sends), ..record(n) }
}

/// A flannel node's record, whose devices have an Ethernet address each.
pub(crate) fn flannel(n: u16) -> NodeRecord {
    let mac = |last| Some(podwire_kernel::MacAddr([0x2a, 0, 0, 0, last, u8::try_from(n).ok()?]));
    let (mac, mac6) = (mac(4).expect("few nodes"), mac(6));
    let receives = vec![Vtep { encapsulation: Encapsulation::default(), mac, mac6 }];
    NodeRecord { receives, same_family: true, ..record(n) }
}

pub(crate) fn snapshot(config: ClusterConfig, records: impl IntoIterator<Item = NodeRecord>) -> Snapshot {
    let nodes = records.into_iter().map(|record| (record.name.clone(), Arc::new(record))).collect();
    Snapshot { config, nodes }
}

/// That of node 1.
pub(crate) fn membership() -> Membership {
    Membership { subnets: subnets(1), generation: 1, claimed: 1, ..Membership::default() }
}

/// As node 1 sees it, which has a subnet of each range.
pub(crate) fn topology(snapshot: &Snapshot) -> Topology {
    let mut membership = membership();
    membership.subnets.truncate(snapshot.config.ranges.len());
    Topology::new("n1", &membership, snapshot).expect("settings that make sense")
}

/// Those of node 1.
pub(crate) fn underlay() -> UnderlayFacts {
    let link = |address, network_: &str| UnderlayLink {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        address: ip(address),
        networks: vec![network(network_)],
    };
    UnderlayFacts { links: vec![link("192.0.2.1", "192.0.2.1/24"), link("2001:db8::1", "2001:db8::1/64")] }
}
