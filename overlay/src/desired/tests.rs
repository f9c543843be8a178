use podwire_kernel::MacAddr;

use crate::cluster::sample::{
    announcing, config, flannel, ip, network, record, snapshot, topology, underlay,
};
use crate::cluster::{ClusterConfig, DirectRouting, Encapsulation, IpFamily, NodeRecord};

use super::*;

fn desired(
    config: ClusterConfig,
    records: impl IntoIterator<Item = NodeRecord>,
    facts: &UnderlayFacts,
) -> Desired {
    Desired::new(&topology(&snapshot(config, records)), facts, &Local::default())
}

fn texts(desired: &Desired) -> Vec<&str> {
    desired.problems.iter().map(|problem| problem.text.as_str()).collect()
}

#[test]
fn a_node_tells_what_it_has_and_pods_what_fits() {
    let desired = desired(config(), [record(2)], &underlay());
    let told = &desired.announcement;
    assert_eq!(told.addresses, [ip("192.0.2.1"), ip("2001:db8::1")]);
    assert_eq!((told.mtu, told.sends), (Some(1500), Some(Encapsulation::default())));
    let mac = vtep_mac("lab", "n1", 1);
    assert_eq!(told.receives, [Vtep { encapsulation: Encapsulation::default(), mac, mac6: None }]);
    assert_eq!(
        desired.pods,
        PodSettings {
            subnets: vec![network("10.244.1.0/24"), network("fd00:10:244:1::/64")],
            gateways: vec![ip("10.244.1.1"), ip("fd00:10:244:1::1")],
            // No peer is reached by IPv6, whose headers are longer.
            mtu: Some(1450),
        }
    );
    assert_eq!(desired.senders().len(), 2);
    assert_eq!(texts(&desired), [""; 0]);
}

#[test]
fn pods_mtu_is_that_of_the_narrowest_way_in_use() {
    let only6 = NodeRecord { addresses: vec![ip("2001:db8::3")], ..record(3) };
    assert_eq!(desired(config(), [record(2), only6], &underlay()).pods.mtu, Some(1430));
    let direct = ClusterConfig { direct_routing: DirectRouting::Always, ..config() };
    assert_eq!(desired(direct, [record(2)], &underlay()).pods.mtu, Some(1500));
    let auto = ClusterConfig { direct_routing: DirectRouting::Auto, ..config() };
    assert_eq!(desired(auto, [record(2)], &underlay()).pods.mtu, Some(1450));
    assert_eq!(desired(config(), [record(2)], &UnderlayFacts::default()).pods.mtu, None);
}

#[test]
fn the_first_family_that_both_have_carries_the_packets() {
    let only = |n: u16, v4: bool| {
        let mut record = record(n);
        record.addresses.retain(|address| address.is_ipv4() == v4);
        record
    };
    let chosen = |config: ClusterConfig, record: NodeRecord| {
        let desired = desired(config, [record], &underlay());
        desired.paths[0].tunnel(Family::V4).map(|tunnel| tunnel.device.family)
    };
    let turned = || ClusterConfig { underlay: vec![IpFamily::Ipv6, IpFamily::Ipv4], ..config() };
    assert_eq!(chosen(config(), record(2)), Some(Family::V4));
    assert_eq!(chosen(turned(), record(2)), Some(Family::V6));
    assert_eq!(chosen(turned(), only(2, true)), Some(Family::V4));
    assert_eq!(chosen(config(), only(2, false)), Some(Family::V6));
    let v4_only = ClusterConfig { underlay: vec![IpFamily::Ipv4], ..config() };
    assert_eq!(chosen(v4_only.clone(), only(2, false)), None);
    let problems = desired(v4_only, [only(2, false)], &underlay());
    assert_eq!(
        texts(&problems),
        ["node n2: it has no address of a family that this node has too: no route leads there"]
    );
}

#[test]
fn each_peer_is_sent_the_best_that_it_receives() {
    let [old, new, odd] = [(1, 8472), (7, 4789), (9, 9)].map(|(vni, port)| Encapsulation { vni, port });
    let config = ClusterConfig { encapsulation: new, also_receive: vec![old], ..config() };
    let records =
        [announcing(2, &[old], old), announcing(3, &[old, new], old), announcing(4, &[odd], odd), record(5)];
    let desired = desired(config, records, &underlay());
    let sent: Vec<_> =
        desired.paths.iter().map(|path| path.tunnel(Family::V4).map(|t| t.device.encapsulation)).collect();
    assert_eq!(sent, [Some(old), Some(new), None, Some(new)]);
    assert_eq!(desired.announcement.sends, Some(old));
    assert_eq!(
        texts(&desired),
        [
            "node n4: it receives nothing that this node can send: no route leads there until it follows the cluster's \
          settings"
        ]
    );
}

#[test]
fn ipv6_pods_go_directly_by_an_ipv6_address_alone() {
    let only4 = NodeRecord { addresses: vec![ip("192.0.2.3")], ..record(3) };
    let auto = ClusterConfig { direct_routing: DirectRouting::Auto, ..config() };
    let both = desired(auto, [record(2), only4.clone()], &underlay());
    assert!(
        matches!(both.paths[0].hop(Family::V6), Hop::Direct(direct) if direct.gateway == ip("2001:db8::2"))
    );
    assert!(matches!(both.paths[1].hop(Family::V4), Hop::Direct(_)));
    assert!(matches!(both.paths[1].hop(Family::V6), Hop::Tunnel(_)));
    let always = ClusterConfig { direct_routing: DirectRouting::Always, ..config() };
    let problems = desired(always, [only4], &underlay());
    assert_eq!(
        texts(&problems),
        [
            "node n3: its IPv6 pods cannot be reached directly by an IPv4 address: give both nodes IPv6 addresses, or let \
          direct_routing be auto"
        ]
    );
}

#[test]
fn a_peer_at_our_own_address_is_left_out() {
    let mut facts = underlay();
    facts.links[0].address = ip("192.0.2.2");
    let desired = desired(config(), [record(2), record(3)], &facts);
    assert_eq!(desired.paths[0].routes().count(), 0);
    assert_eq!(desired.paths[1].routes().count(), 2);
    assert_eq!(
        texts(&desired),
        ["node n2: it says that it is at this node's own address 192.0.2.2: it is left out"]
    );
}

#[test]
fn a_node_within_the_pods_range_is_told_so() {
    let mut facts = underlay();
    facts.links[0].address = ip("10.244.200.7");
    let desired = desired(config(), [record(2)], &facts);
    assert!(desired.devices.iter().all(|device| device.id.family == Family::V6));
    assert!(texts(&desired)[0].contains("10.244.200.7 on eth0 lies within the pods' range 10.244.0.0/16"));
}

#[test]
fn pods_of_a_flannel_node_are_reached_by_their_own_family_alone() {
    let desired = desired(config(), [flannel(2)], &underlay());
    let path = &desired.paths[0];
    let shown: Vec<_> = path
        .tunnels()
        .map(|tunnel| format!("{} {} {}", tunnel.device.name(), tunnel.mac, tunnel.remote))
        .collect();
    assert_eq!(shown, ["podwire.1 2a:00:00:00:04:02 192.0.2.2", "podwire6.1 2a:00:00:00:06:02 2001:db8::2"]);
    assert_eq!(path.fdb().count(), 2);
    let devices: Vec<_> = path.neighbours().map(|item| (item.address, item.device.family)).collect();
    assert_eq!(devices, [(ip("10.244.2.0"), Family::V4), (ip("fd00:10:244:2::"), Family::V6)]);
    // Both devices are in use.
    assert_eq!(desired.pods.mtu, Some(1430));
    assert_eq!(texts(&desired), [""; 0]);
}

#[test]
fn what_a_flannel_node_lacks_harms_that_family_alone() {
    let lacks = |v4: bool| {
        let mut record = flannel(2);
        record.addresses.retain(|address| address.is_ipv4() != v4);
        record
    };
    for (v4, routes, family) in [(false, "10.244.2.0/24", "IPv6"), (true, "fd00:10:244:2::/64", "IPv4")] {
        let desired = desired(config(), [lacks(v4)], &underlay());
        let left: Vec<_> = desired.paths[0].routes().map(|route| route.destination.to_string()).collect();
        assert_eq!(left, [routes]);
        assert_eq!(
            texts(&desired),
            [format!(
                "node n2: its {family} pods are reached by {family} alone, as flannel has it, and not both of its node and \
                 this one have an {family} address for that: no route leads to them"
            )]
        );
    }
    // The same where this node lacks it, or may not use it.
    let v4_only = ClusterConfig { underlay: vec![IpFamily::Ipv4], ..config() };
    let desired = desired(v4_only, [flannel(2)], &underlay());
    assert_eq!((desired.paths[0].routes().count(), desired.problems.len()), (1, 1));
}

#[test]
fn a_flannel_node_on_the_link_is_routed_to_by_the_same_families() {
    let auto = ClusterConfig {
        direct_routing: DirectRouting::Auto,
        underlay: vec![IpFamily::Ipv6, IpFamily::Ipv4],
        ..config()
    };
    let desired = desired(auto, [flannel(2), record(3)], &underlay());
    let gateways = |path: &Path| path.routes().map(|route| route.gateway).collect::<Vec<_>>();
    assert_eq!(gateways(&desired.paths[0]), [ip("192.0.2.2"), ip("2001:db8::2")]);
    assert_eq!(gateways(&desired.paths[1]), [ip("2001:db8::3"), ip("2001:db8::3")]);
}

#[test]
fn adopted_devices_keep_name_and_address_and_others_are_told_both() {
    let naming = Naming::default()
        .adopt(Family::V4, Encapsulation::default(), "flannel.1", MacAddr([0x2a, 0, 0, 0, 4, 1]))
        .adopt(Family::V6, Encapsulation::default(), "flannel-v6.1", MacAddr([0x2a, 0, 0, 0, 6, 1]));
    let wish = |config, records: Vec<NodeRecord>| {
        let local = Local { naming: &naming, ..Local::default() };
        Desired::new(&topology(&snapshot(config, records)), &underlay(), &local)
    };
    let desired = wish(config(), vec![record(2)]);
    let names: Vec<_> = desired.devices.iter().map(|device| device.id.name()).collect();
    assert_eq!(names, ["flannel.1", "flannel-v6.1"]);
    let told = Vtep {
        encapsulation: Encapsulation::default(),
        mac: MacAddr([0x2a, 0, 0, 0, 4, 1]),
        mac6: Some(MacAddr([0x2a, 0, 0, 0, 6, 1])),
    };
    assert_eq!(desired.announcement.receives, [told]);
    assert!(desired.sysctls.contains_key("net/ipv4/conf/flannel.1/rp_filter"));
    // Other segments are called as ever.
    let other = ClusterConfig { encapsulation: Encapsulation { vni: 7, port: 8472 }, ..config() };
    assert_eq!(wish(other, Vec::new()).devices[0].id.name(), "podwire.7");
    // A peer that has adopted: each family of the underlay has its own address.
    let adopted = NodeRecord { receives: vec![told], ..record(3) };
    for (family, mac) in [(IpFamily::Ipv4, told.mac), (IpFamily::Ipv6, told.over(Family::V6))] {
        let config = ClusterConfig { underlay: vec![family], ..config() };
        let seen = tests::desired(config, [adopted.clone()], &underlay());
        let of = |family| seen.paths[0].tunnel(family).map(|tunnel| tunnel.mac);
        assert_eq!([Family::V4, Family::V6].map(of), [Some(mac); 2]);
    }
    // That is this node's own.
    let desired = wish(config(), vec![adopted]);
    assert_eq!(desired.paths[0].routes().count(), 0);
    assert_eq!(
        texts(&desired),
        ["node n3: it claims this node's own VTEP MAC address 2a:00:00:00:04:01: it is left out"]
    );
}

#[test]
fn pods_of_an_earlier_subnet_keep_their_gateway_unless_another_node_has_it() {
    let naming = Naming::default();
    let addresses = |former: &[&str], records: Vec<NodeRecord>| -> Vec<String> {
        let former: Vec<IpNetwork> = former.iter().map(|subnet| network(subnet)).collect();
        let local = Local { bridge: Some("podwire0"), naming: &naming, former: &former, ..Local::default() };
        let desired = Desired::new(&topology(&snapshot(config(), records)), &underlay(), &local);
        desired.bridge.iter().flat_map(|bridge| &bridge.addresses).map(ToString::to_string).collect()
    };
    let own = ["10.244.1.1/24", "fd00:10:244:1::1/64"];
    assert_eq!(addresses(&[], vec![record(2)]), own);
    let both = addresses(&["10.244.9.0/24", "fd00:10:244:9::/64"], vec![record(2)]);
    assert_eq!(both, [&own[..], &["10.244.9.1/24", "fd00:10:244:9::1/64"]].concat());
    // Another node's, the one that is still this node's, and one that is no pod's of this cluster.
    assert_eq!(addresses(&["10.244.2.0/24", "10.244.1.0/24", "10.9.0.0/24"], vec![record(2)]), own);
    // Of a range that was cut otherwise before.
    assert_eq!(addresses(&["10.244.2.128/25", "10.244.2.0/23"], vec![record(2)]), own);
}
