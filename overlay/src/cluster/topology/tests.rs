use std::sync::Arc;

use super::*;
use crate::cluster::sample::{
    announcing, config, flannel, ip, membership, network, record, snapshot, topology,
};
use crate::cluster::{ClusterRange, IpFamily};

fn names(topology: &Topology) -> Vec<&str> {
    topology.peers().iter().map(|peer| peer.name()).collect()
}

fn texts(topology: &Topology) -> Vec<String> {
    topology.problems().iter().map(Problem::to_string).collect()
}

#[test]
fn other_nodes_are_peers_with_derived_macs_and_metrics() {
    let topology = topology(&snapshot(config(), (1..=3).map(record)));
    assert_eq!(names(&topology), ["n2", "n3"]);
    assert_eq!(texts(&topology), [""; 0]);
    let peer = &topology.peers()[0];
    assert_eq!(peer.vtep(Encapsulation::default()).map(|vtep| vtep.mac), Some(vtep_mac("lab", "n2", 1)));
    assert_eq!(
        peer.subnets,
        [
            PeerSubnet { network: network("10.244.2.0/24"), metric: 3 },
            PeerSubnet { network: network("fd00:10:244:2::/64"), metric: METRIC6 },
        ]
    );
}

/// Other nodes compute it too: it must never change.
#[test]
fn the_mac_follows_from_cluster_node_and_vni_alone() {
    assert_eq!(vtep_mac("lab", "n2", 1).to_string(), "62:10:b3:58:b5:64");
    let mut macs: Vec<_> = [("lab", "n2", 1), ("lab", "n2", 2), ("lab", "n3", 1), ("la", "bn2", 1)]
        .map(|(cluster, node, vni)| vtep_mac(cluster, node, vni))
        .into();
    macs.sort();
    macs.dedup();
    assert_eq!(macs.len(), 4);
    assert!(macs.iter().all(|mac| mac.is_unicast() && mac.0[0] & 2 != 0));
}

#[test]
fn a_record_that_makes_no_sense_harms_nobody_else() {
    type Change = fn(&mut NodeRecord);
    let table: &[(&str, Change)] = &[
        ("lies within the pods' range 10.244.0.0/16", |r| r.addresses = vec![ip("10.244.9.9")]),
        ("lies within the pods' range fd00:10:244::/48", |r| r.addresses[1] = ip("fd00:10:244:9::9")),
        ("it is a loopback address", |r| r.addresses[0] = ip("127.0.0.1")),
        ("it is a loopback address", |r| r.addresses[1] = ip("::1")),
        ("it is a multicast address", |r| r.addresses[0] = ip("224.0.0.9")),
        ("it is a multicast address", |r| r.addresses[1] = ip("ff02::1")),
        ("it is unspecified", |r| r.addresses[0] = ip("0.0.0.0")),
        ("it is unspecified", |r| r.addresses[1] = ip("::")),
        ("it is a link-local address", |r| r.addresses[0] = ip("169.254.1.1")),
        ("it is a link-local address", |r| r.addresses[1] = ip("fe80::1")),
        ("it is a reserved address", |r| r.addresses[0] = ip("255.255.255.255")),
        ("it is a reserved address", |r| r.addresses[0] = ip("0.1.2.3")),
        ("it is an IPv4-mapped address", |r| r.addresses[1] = ip("::ffff:192.0.2.1")),
        ("more than one address of a family", |r| r.addresses = vec![ip("192.0.2.7"), ip("192.0.2.8")]),
        ("more than one address of a family", |r| r.addresses = vec![ip("192.0.2.7"); 100_000]),
        ("it claims this node's own subnet 10.244.1.0/24", |r| r.subnets[0] = network("10.244.1.0/24")),
        ("0.0.0.0/0 is none of the cluster's ranges", |r| r.subnets[0] = network("0.0.0.0/0")),
        ("::/0 is none of the cluster's ranges", |r| r.subnets[1] = network("::/0")),
        ("10.244.0.0/16 is none of", |r| r.subnets[0] = network("10.244.0.0/16")),
        ("10.244.8.0/25 is none of", |r| r.subnets[0] = network("10.244.8.0/25")),
        ("10.245.8.0/24 is none of", |r| r.subnets[0] = network("10.245.8.0/24")),
        ("192.0.2.0/24 is none of", |r| r.subnets[0] = network("192.0.2.0/24")),
        ("10.244.8.1/24 has host bits set", |r| r.subnets[0] = network("10.244.8.1/24")),
        ("more than one subnet of a family", |r| r.subnets[1] = network("10.244.9.0/24")),
        ("its name has 10000 bytes", |r| r.name = "n8".repeat(5_000)),
        ("its name is empty", |r| r.name = String::new()),
        ("contains white space", |r| r.name = "n8\nready 1".to_owned()),
        ("contains white space, a slash", |r| r.name = "../n8".to_owned()),
        ("its instance has 10000 bytes", |r| r.instance = "x".repeat(10_000)),
        ("is none that a node can have", |r| r.receives[0].mac = MacAddr([0x33, 0x33, 0, 0, 0, 1])),
        ("is none that a node can have", |r| r.receives[0].mac = MacAddr([0; 6])),
        ("is none that a node can have", |r| r.receives[0].mac = MacAddr([0xff; 6])),
        ("its own VTEP MAC", |r| r.receives[0].mac = vtep_mac("lab", "n1", 1)),
        ("its own VTEP MAC", |r| {
            let encapsulation = Encapsulation { vni: 77, port: 4789 };
            r.receives.push(Vtep { encapsulation, mac: vtep_mac("lab", "n1", 77), mac6: None });
        }),
        ("VNI 16777216 has more than 24 bits", |r| r.receives[0].encapsulation.vni = 1 << 24),
        ("UDP port 0", |r| r.receives[0].encapsulation.port = 0),
        ("what it sends makes no sense: UDP port 0", |r| r.sends = Some(Encapsulation { vni: 1, port: 0 })),
        ("it receives 100000 encapsulations", |r| r.receives = vec![r.receives[0]; 100_000]),
        ("which is n2's by older right", |r| r.subnets[0] = network("10.244.2.0/24")),
        ("which is n2's by older right", |r| r.subnets[1] = network("fd00:10:244:2::/64")),
        // Whoever claims it first: a MAC address that follows from a name is that node's.
        ("which is n2's by older right", |r| {
            r.claimed = 0;
            r.receives[0].mac = vtep_mac("lab", "n2", 1);
        }),
    ];
    for (expected, change) in table {
        let mut wrong = announcing(8, &[Encapsulation::default()], Encapsulation::default());
        change(&mut wrong);
        let expected = expected.replace("its own VTEP MAC", "this node's own VTEP MAC");
        let topology = topology(&snapshot(config(), [record(1), record(2), record(3), wrong]));
        assert_eq!(names(&topology), ["n2", "n3"], "{expected}");
        let texts = texts(&topology);
        assert!(texts.len() == 1 && texts[0].contains(&expected), "{expected}: {texts:?}");
        assert!(texts[0].len() < 400, "{texts:?}");
        assert!(!texts[0].contains('\n'), "{texts:?}");
    }
}

#[test]
fn a_record_of_a_later_version_is_taken_for_what_is_known_of_it() {
    let text = r#"{"name":"n9","instance":"ab","generation":3,"addresses":["192.0.2.9"],"subnets":["10.244.9.0/24"],
        "claimed":7,"receives":[{"vni":1,"port":8472,"mac":"02:00:00:00:00:09","gbp":true}],
        "sends":{"vni":1,"port":8472,"cipher":"none"},"zone":{"name":"a","weights":[1,2]}}"#;
    let record: NodeRecord = serde_json::from_str(text).expect("a record");
    let topology = topology(&snapshot(config(), [record]));
    assert_eq!(names(&topology), ["n9"]);
    assert_eq!(topology.peers()[0].vtep(Encapsulation::default()).unwrap().mac, MacAddr([2, 0, 0, 0, 0, 9]));
}

#[test]
fn a_record_under_anothers_name_is_left_out() {
    let mut snapshot = snapshot(config(), [record(2)]);
    snapshot.nodes.insert("n3".to_owned(), Arc::new(record(2)));
    let topology = topology(&snapshot);
    assert_eq!(names(&topology), ["n2"]);
    assert_eq!(texts(&topology), ["node n3: it calls itself by another name: it is left out"]);
}

#[test]
fn who_has_nothing_yet_is_no_peer_and_no_problem() {
    let homeless = NodeRecord { subnets: Vec::new(), ..record(2) };
    let silent = NodeRecord { addresses: Vec::new(), ..record(3) };
    let topology = topology(&snapshot(config(), [homeless, silent]));
    assert_eq!((names(&topology), texts(&topology)), (vec![], vec![]));
}

#[test]
fn of_two_with_one_subnet_the_older_claim_wins_and_then_the_lower_name() {
    let claim =
        |n, subnet: &str, claimed| NodeRecord { subnets: vec![network(subnet)], claimed, ..record(n) };
    let all = snapshot(
        config(),
        [
            claim(2, "10.244.7.0/24", 9),
            claim(3, "10.244.7.0/24", 4),
            claim(4, "10.244.7.0/24", 4),
            claim(5, "10.244.8.0/24", 1),
        ],
    );
    let mut seen = topology(&all);
    assert_eq!(names(&seen), ["n3", "n5"]);
    assert_eq!(
        texts(&seen),
        [
            "node n2: it claims subnet 10.244.7.0/24, which is n3's by older right: it is left out until one of them \
             is changed or removed",
            "node n4: it claims subnet 10.244.7.0/24, which is n3's by older right: it is left out until one of them \
             is changed or removed",
        ]
    );
    // When the winner goes, the next one has it.
    let mut without = all.clone();
    without.nodes.remove("n3");
    assert_eq!(seen.update(&membership(), &without), Ok(true));
    assert_eq!(names(&seen), ["n4", "n5"]);
    assert_eq!(seen.update(&membership(), &all), Ok(true));
    assert_eq!(names(&seen), ["n3", "n5"]);
    assert_eq!(seen.update(&membership(), &all), Ok(false));
}

#[test]
fn two_nodes_at_one_address_are_named_and_kept() {
    let twin = NodeRecord { addresses: vec![ip("192.0.2.2")], ..record(3) };
    let topology = topology(&snapshot(config(), [record(2), twin]));
    assert_eq!(names(&topology), ["n2", "n3"]);
    let problems = topology.problems();
    assert_eq!(problems.len(), 2);
    assert!(problems.iter().all(|problem| problem.kind == ProblemKind::SameAddress));
    assert!(problems[0].text.contains("192.0.2.2, and so do others (n2, n3)"), "{}", problems[0]);
}

#[test]
fn what_has_not_changed_is_the_same_peer() {
    let first = snapshot(config(), (1..=50).map(record));
    let mut topology = topology(&first);
    let before = topology.peers().to_vec();
    let mut second = first.clone();
    second.nodes.insert("n7".to_owned(), Arc::new(NodeRecord { mtu: Some(1400), ..record(7) }));
    // The same content in another allocation.
    second.nodes.insert("n8".to_owned(), Arc::new(record(8)));
    assert_eq!(topology.update(&membership(), &second), Ok(true));
    let changed: Vec<_> = before
        .iter()
        .zip(topology.peers())
        .filter(|(a, b)| !Arc::ptr_eq(a, b))
        .map(|(_, peer)| peer.name())
        .collect();
    assert_eq!(changed, ["n7"]);
}

#[test]
fn two_that_swap_what_they_have_lose_nothing_by_it() {
    let first = snapshot(config(), (1..=50).map(record));
    let mut topology = topology(&first);
    let mut second = first.clone();
    for (one, other) in [(7, 8), (8, 7)] {
        let NodeRecord { addresses, subnets, .. } = record(other);
        let swapped = NodeRecord { addresses, subnets, ..record(one) };
        second.nodes.insert(format!("n{one}"), Arc::new(swapped));
    }
    assert_eq!(topology.update(&membership(), &second), Ok(true));
    assert_eq!(topology.peers(), Topology::new("n1", &membership(), &second).unwrap().peers());
    assert_eq!(topology.peers().len(), 49);
    assert_eq!(topology.problems(), []);
}

#[test]
fn settings_that_make_no_sense_change_nothing() {
    type Change = fn(&mut ClusterConfig);
    let table: &[(&str, Change)] = &[
        ("name is empty", |c| c.name.clear()),
        ("there is no range", |c| c.ranges.clear()),
        ("there is another one of its family", |c| {
            c.ranges[1] = ClusterRange { range: network("10.9.0.0/16"), subnet_prefix: 24 };
        }),
        ("a subnet prefix of 8 is not between its own 16 and 30", |c| c.ranges[0].subnet_prefix = 8),
        ("a subnet prefix of 31", |c| c.ranges[0].subnet_prefix = 31),
        ("a subnet prefix of 127", |c| c.ranges[1].subnet_prefix = 127),
        ("host bits set: write 10.244.0.0/16", |c| c.ranges[0].range = network("10.244.1.0/16")),
        ("overlaps 0.0.0.0/8", |c| c.ranges[0].range = network("0.0.0.0/0")),
        ("overlaps 127.0.0.0/8", |c| c.ranges[0].range = network("127.0.0.0/8")),
        ("overlaps 224.0.0.0/3", |c| c.ranges[0].range = network("239.0.0.0/16")),
        ("overlaps fe80::/10", |c| c.ranges[1].range = network("fe80::/48")),
        ("overlaps ::/127", |c| c.ranges[1].range = network("::/0")),
        ("VNI 16777216", |c| c.encapsulation.vni = 1 << 24),
        ("UDP port 0", |c| c.also_receive = vec![Encapsulation { vni: 1, port: 0 }]),
        ("also_receive: at most 7", |c| c.also_receive = vec![c.encapsulation; 1000]),
        ("name at least one address family", |c| c.underlay.clear()),
        ("the same address family twice", |c| c.underlay = vec![IpFamily::Ipv4; 2]),
        ("more than two address families", |c| c.underlay = vec![IpFamily::Ipv4; 3]),
        ("reclaim after 60 s", |c| c.reclaim_after_seconds = Some(60)),
    ];
    let good = snapshot(config(), (1..=3).map(record));
    let mut topology = topology(&good);
    for (expected, change) in table {
        let mut bad = good.clone();
        change(&mut bad.config);
        let error = topology.update(&membership(), &bad).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(names(&topology), ["n2", "n3"]);
        assert_eq!(topology.config(), &config());
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = NodeRecord> {
        (2..12_u16, 2..6_u16, 2..8_u16, 0..3_u64, 0..4_u8).prop_map(|(n, subnet, address, claimed, mac)| {
            let mut record = announcing(n, &[Encapsulation::default()], Encapsulation::default());
            record.subnets = crate::cluster::sample::subnets(subnet);
            record.addresses = vec![ip(&format!("192.0.2.{address}"))];
            record.claimed = claimed;
            if mac == 0 {
                record.receives[0].mac = vtep_mac("lab", &format!("n{address}"), 1);
            }
            record
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Bringing a topology up to date step by step comes to the same as making it anew, and no two peers share
        /// what only one can have.
        #[test]
        fn steps_and_a_leap_lead_to_the_same(steps in prop::collection::vec((any_record(), any::<bool>()), 1..24)) {
            let mut now = snapshot(config(), [record(1)]);
            let mut seen = topology(&now);
            for (record, goes) in steps {
                if goes {
                    now.nodes.remove(&record.name);
                } else {
                    now.nodes.insert(record.name.clone(), Arc::new(record));
                }
                seen.update(&membership(), &now).expect("settings that make sense");
                let anew = topology(&now);
                prop_assert_eq!(seen.peers(), anew.peers());
                prop_assert_eq!(seen.problems(), anew.problems());
                let (mut subnets, mut macs) = (Vec::new(), Vec::new());
                for peer in seen.peers() {
                    subnets.extend(peer.subnets.iter().map(|subnet| subnet.network));
                    macs.extend(peer.vtep(Encapsulation::default()).map(|vtep| vtep.mac));
                }
                let count = (subnets.len(), macs.len());
                subnets.sort();
                subnets.dedup();
                macs.sort();
                macs.dedup();
                prop_assert_eq!(count, (subnets.len(), macs.len()));
            }
        }
    }
}

#[test]
fn an_address_over_ipv6_is_claimed_and_judged_as_any_other() {
    let with = |n: u16, mac6: MacAddr| {
        let mut record = flannel(n);
        record.receives[0].mac6 = Some(mac6);
        record
    };
    let seen = |records: [NodeRecord; 2]| {
        let topology = topology(&snapshot(config(), records));
        (names(&topology).join(" "), texts(&topology).join("; "))
    };
    let four = flannel(2).receives[0].mac;
    let (left, why) = seen([flannel(2), with(3, four)]);
    assert_eq!(left, "n2");
    assert!(why.contains("n3: it claims VTEP MAC address 2a:00:00:00:04:02 (VNI 1), which is n2's"), "{why}");
    let (left, why) = seen([flannel(2), with(3, MacAddr([0xff; 6]))]);
    assert_eq!(left, "n2");
    assert!(why.contains("ff:ff:ff:ff:ff:ff is none that a node can have"), "{why}");
    let (left, why) = seen([flannel(2), with(3, vtep_mac("lab", "n1", 1))]);
    assert_eq!(left, "n2");
    assert!(why.contains("this node's own VTEP MAC address"), "{why}");
    // Both of its devices may have one.
    let mut same = flannel(3);
    same.receives[0].mac6 = Some(same.receives[0].mac);
    assert_eq!(seen([flannel(2), same]).0, "n2 n3");
}
