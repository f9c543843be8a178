//! What other nodes say of themselves, and what is made of it. The first byte chooses the settings; a second snapshot may
//! follow the first behind a line that is `---`.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use podwire_kernel::Family;
use podwire_overlay::cluster::topology::Topology;
use podwire_overlay::cluster::{ClusterConfig, NodeRecord, Snapshot};
use podwire_overlay::desired::{Desired, Local, UnderlayFacts, UnderlayLink, Via};
use podwire_overlay::plan::{Deletes, Observed, delta, plan};
use podwire_overlay::store::Membership;

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let mut parts = text.split("\n---\n").filter_map(|text| snapshot(*choice, text));
    let Some(first) = parts.next() else { return };
    let membership = Membership {
        subnets: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        generation: 1,
        claimed: 1,
        addresses: Vec::new(),
    };
    let Ok(mut topology) = Topology::new("n1", &membership, &first) else { return };
    let old = desired(&topology);
    consistent(&topology, &old);
    for next in parts {
        if topology.update(&membership, &next).is_err() {
            continue;
        }
        let new = desired(&topology);
        consistent(&topology, &new);
        for step in delta(&old, &new, Deletes::Allowed).steps {
            let _ = step.operation.to_string();
        }
        // The same as if there had been nothing before.
        let anew = Topology::new("n1", &membership, &next).expect("an update took it");
        assert_eq!(topology.peers(), anew.peers());
        assert_eq!(topology.problems(), anew.problems());
    }
});

/// A whole snapshot, or records alone, line by line, for settings that make sense.
fn snapshot(choice: u8, text: &str) -> Option<Snapshot> {
    if choice & 1 == 0 {
        return serde_json::from_str(text).ok();
    }
    let routing = ["never", "auto", "always"][usize::from(choice >> 1) % 3];
    let config = format!(
        r#"{{"name":"lab","ranges":[{{"range":"10.244.0.0/16","subnetPrefix":24}},
            {{"range":"fd00:10:244::/48","subnetPrefix":64}}],"directRouting":"{routing}",
            "alsoReceive":[{{"vni":7,"port":4789}}]}}"#
    );
    let config: ClusterConfig = serde_json::from_str(&config).expect("settings");
    let records = text.lines().filter_map(|line| serde_json::from_str::<NodeRecord>(line).ok());
    let nodes: BTreeMap<_, _> = records.map(|record| (record.name.clone(), Arc::new(record))).collect();
    Some(Snapshot { config, nodes })
}

fn desired(topology: &Topology) -> Desired {
    let link = |address: &str, network: &str| UnderlayLink {
        index: 2,
        name: "eth0".to_owned(),
        mtu: 1500,
        address: address.parse().unwrap(),
        networks: vec![network.parse().unwrap()],
    };
    let links = vec![link("192.0.2.1", "192.0.2.0/24"), link("2001:db8::1", "2001:db8::/64")];
    Desired::new(topology, &UnderlayFacts { links }, &Local { bridge: Some("podwire0"), ..Local::default() })
}

/// What the kernel, and nodes that mean well, rely on.
fn consistent(topology: &Topology, desired: &Desired) {
    let (mut subnets, mut macs) = (BTreeSet::new(), BTreeSet::new());
    for path in &desired.paths {
        for route in path.routes() {
            assert!(desired.cluster_ranges.iter().any(|range| range.contains(route.destination.network())));
            assert!(!topology.membership().subnets.contains(&route.destination));
            assert!(subnets.insert(route.destination), "two routes to {}", route.destination);
            assert!(route.mtu.is_none_or(|mtu| (1280..1500).contains(&mtu)));
            assert!(route.destination.is_ipv4() || route.gateway.is_ipv6());
            assert!(matches!(route.via, Via::Device(_) | Via::Link(2)));
        }
        for entry in path.fdb() {
            assert!(macs.insert((entry.device, entry.mac)), "two entries for {}", entry.mac);
            assert!(entry.mac.is_unicast());
            assert_eq!(Family::of(entry.remote), entry.device.family);
            assert!(desired.devices.iter().all(|device| device.mac != entry.mac));
            assert!(!desired.cluster_ranges.iter().any(|range| range.contains(entry.remote)));
        }
    }
    for problem in topology.problems().iter().chain(&desired.problems) {
        assert!(problem.text.len() < 20_000 && !problem.text.contains('\n'), "{problem}");
    }
    assert!(delta(desired, desired, Deletes::Allowed).is_empty());
    for step in plan(desired, &Observed::default(), Deletes::Allowed).steps {
        assert!(step.peer.is_none_or(|peer| (peer as usize) < desired.paths.len()));
        let _ = step.operation.to_string();
    }
}
