//! Whom to ask. PURE.

use std::net::IpAddr;
use std::sync::Arc;

use podwire_kernel::{Family, MacAddr};

use crate::desired::{Desired, Hop, Tunnel, UnderlayFacts};

/// All that can be asked, and who may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// This node's name, for its answers.
    pub node: Arc<str>,
    /// Which installation of that name this is, for its answers; may be empty.
    pub instance: Arc<str>,
    /// The inner addresses of this node's VTEP, from which it asks: one for each family at most.
    pub own: Vec<IpAddr>,
    /// The peers, by name.
    pub peers: Vec<Peer>,
}

/// A node that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: Arc<str>,
    /// Which installation of that name it is; empty where nobody knows.
    pub instance: Arc<str>,
    /// Where it can be asked: one for each family of its pods.
    pub ends: Vec<End>,
}

/// Where a peer can be asked in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The inner address of its VTEP: the first of its subnet.
    pub address: IpAddr,
    /// The largest packet that pods are told they may send there, in bytes with its IP header.
    pub mtu: u32,
    /// The tunnel that leads there; `None` where none does.
    pub tunnel: Option<Arc<TunnelEnd>>,
}

/// A tunnel to a peer, as far as frames for it are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The name of this node's VXLAN device.
    pub device: Arc<str>,
    /// That device's Ethernet address.
    pub source: MacAddr,
    /// The Ethernet address of the peer's VTEP.
    pub destination: MacAddr,
}

impl Targets {
    /// What follows from what the kernel should have. Peers to which no packet leads are left out: that they cannot be
    /// reached is known without asking.
    pub fn new(desired: &Desired, underlay: &UnderlayFacts, node: &str, instance: &str) -> Self {
        let devices: Vec<(_, Arc<str>)> =
            desired.devices.iter().map(|device| (device, device.id.name().into())).collect();
        let tunnel_end = |tunnel: Tunnel| {
            let (device, name) = devices.iter().find(|(device, _)| device.id == tunnel.device)?;
            let end = TunnelEnd { device: name.clone(), source: device.mac, destination: tunnel.mac };
            Some((Arc::new(end), tunnel.mtu.unwrap_or(device.mtu)))
        };
        let peers = desired.paths.iter().filter_map(|path| {
            // One for both families, as a rule.
            let mut known: Option<(Tunnel, (Arc<TunnelEnd>, u32))> = None;
            let mut end_of = |tunnel: Tunnel| match &known {
                Some((same, end)) if *same == tunnel => Some(end.clone()),
                _ => Some(known.insert((tunnel, tunnel_end(tunnel)?)).1.clone()),
            };
            let ends: Vec<_> = path
                .peer
                .subnets
                .iter()
                .filter_map(|subnet| {
                    let address = subnet.network.network();
                    match path.hop(Family::of(address)) {
                        Hop::Tunnel(tunnel) => {
                            let (tunnel, mtu) = end_of(tunnel)?;
                            Some(End { address, mtu, tunnel: Some(tunnel) })
                        }
                        Hop::Direct(direct) => {
                            let link = underlay.links.iter().find(|link| link.index == direct.link);
                            let mtu = direct.mtu.or(link.map(|link| link.mtu))?;
                            Some(End { address, mtu, tunnel: None })
                        }
                        Hop::None => None,
                    }
                })
                .collect();
            let (node, instance) = (path.peer.name().into(), path.peer.record.instance.as_str().into());
            (!ends.is_empty()).then_some(Peer { node, instance, ends })
        });
        Self {
            node: node.into(),
            instance: instance.into(),
            own: desired.addresses.iter().map(|address| address.ip()).collect(),
            peers: peers.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::topology::{Topology, vtep_mac};
    use crate::cluster::{
        ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily, NodeRecord, Snapshot,
    };
    use crate::desired::{Local, UnderlayLink};
    use crate::store::Membership;

    fn record(number: u8, address: &str, mtu: u32) -> Arc<NodeRecord> {
        Arc::new(NodeRecord {
            name: format!("n{number}"),
            instance: format!("i{number}"),
            generation: 0,
            addresses: vec![address.parse().expect("an address")],
            subnets: vec![
                format!("10.244.{number}.0/24").parse().expect("a subnet"),
                format!("fd00:0:0:{number}::/64").parse().expect("a subnet"),
            ],
            claimed: 0,
            mtu: Some(mtu),
            receives: Vec::new(),
            sends: None,
            same_family: false,
        })
    }

    #[test]
    fn each_peer_is_asked_in_each_family_by_the_way_its_packets_take() {
        let range = |range: &str, subnet_prefix| ClusterRange {
            range: range.parse().expect("a range"),
            subnet_prefix,
        };
        let config = ClusterConfig {
            name: "lab".to_owned(),
            ranges: vec![range("10.244.0.0/16", 24), range("fd00::/48", 64)],
            encapsulation: Encapsulation::default(),
            also_receive: Vec::new(),
            direct_routing: DirectRouting::Auto,
            underlay: vec![IpFamily::Ipv4],
            reclaim_after_seconds: None,
        };
        let records =
            [record(1, "192.0.2.1", 1500), record(2, "192.0.2.2", 1400), record(3, "198.51.100.3", 1400)];
        let membership = Membership {
            subnets: records[0].subnets.clone(),
            generation: 0,
            claimed: 0,
            ..Membership::default()
        };
        let nodes: BTreeMap<_, _> = records.into_iter().map(|record| (record.name.clone(), record)).collect();
        let topology = Topology::new("n1", &membership, &Snapshot { config, nodes }).expect("a topology");
        let link = UnderlayLink {
            index: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            address: "192.0.2.1".parse().expect("an address"),
            networks: vec!["192.0.2.0/24".parse().expect("a network")],
        };
        let underlay = UnderlayFacts { links: vec![link] };
        let desired = Desired::new(&topology, &underlay, &Local::default());
        let targets = Targets::new(&desired, &underlay, "n1", "i1");

        assert_eq!((&*targets.node, &*targets.instance), ("n1", "i1"));
        let own: Vec<_> = targets.own.iter().map(ToString::to_string).collect();
        assert_eq!(own, ["10.244.1.0", "fd00:0:0:1::"]);
        let tunnel = |name: &str| TunnelEnd {
            device: "podwire.1".into(),
            source: vtep_mac("lab", "n1", 1),
            destination: vtep_mac("lab", name, 1),
        };
        // The second is on the link: its IPv4 packets need no tunnel; IPv6 has no gateway there.
        let expected = [
            ("n2", "10.244.2.0", 1400, false),
            ("n2", "fd00:0:0:2::", 1350, true),
            ("n3", "10.244.3.0", 1350, true),
            ("n3", "fd00:0:0:3::", 1350, true),
        ];
        let found = targets.peers.iter().flat_map(|peer| peer.ends.iter().map(move |end| (peer, end)));
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), expected.len());
        for ((peer, end), (name, address, mtu, is_tunnel)) in found.into_iter().zip(expected) {
            assert_eq!((&*peer.node, end.address.to_string(), end.mtu), (name, address.to_owned(), mtu));
            assert_eq!(*peer.instance, *name.replace('n', "i"));
            assert_eq!(end.tunnel.as_deref(), is_tunnel.then(|| tunnel(name)).as_ref(), "{name} {address}");
        }
    }

    #[test]
    fn a_flannel_node_is_asked_through_the_device_of_each_family() {
        use crate::cluster::sample::{config, flannel, snapshot, topology, underlay};
        let facts = underlay();
        let desired = Desired::new(&topology(&snapshot(config(), [flannel(2)])), &facts, &Local::default());
        let targets = Targets::new(&desired, &facts, "n1", "");
        let ends: Vec<_> = targets.peers[0]
            .ends
            .iter()
            .map(|end| {
                let tunnel = end.tunnel.as_ref().expect("a tunnel");
                format!("{} by {} to {}, {}", end.address, tunnel.device, tunnel.destination, end.mtu)
            })
            .collect();
        assert_eq!(
            ends,
            [
                "10.244.2.0 by podwire.1 to 2a:00:00:00:04:02, 1450",
                "fd00:10:244:2:: by podwire6.1 to 2a:00:00:00:06:02, 1430",
            ]
        );
    }
}
