//! How long the pure part of the overlay takes: from a snapshot to a plan, for 15,000 peers or as many as the argument
//! says. `cargo run --release -p podwire-overlay --example plan_speed`
//!
//! The kernel's side is made up here: what it would have after the first plan.
#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for developers")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;
use podwire_kernel::link::{AddrGenMode, Link, LinkFlags};
use podwire_kernel::neighbour::{FdbEntry, Neighbour};
use podwire_overlay::cluster::topology::Topology;
use podwire_overlay::cluster::{ClusterConfig, ClusterRange, DirectRouting, IpFamily, NodeRecord, Snapshot};
use podwire_overlay::desired::{Desired, Local, MARK, UnderlayFacts, UnderlayLink};
use podwire_overlay::plan::{Deletes, Observed, delta, plan};
use podwire_overlay::store::Membership;

const INDEX: u32 = 7;

fn network(address: u128, prefix: u8) -> IpNetwork {
    let address = match u32::try_from(address) {
        Ok(four) => IpAddr::V4(four.into()),
        Err(_) => IpAddr::V6(address.into()),
    };
    IpNetwork::new(address, prefix).expect("a network")
}

fn record(n: u32, moved: u32) -> NodeRecord {
    let n128 = u128::from(n);
    NodeRecord {
        name: format!("node{n:05}"),
        instance: String::new(),
        generation: 1,
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0xac10_0000 + n + moved))],
        subnets: vec![
            network(u128::from(0x0a40_0000 + n * 256), 24),
            network((0xfd00_0064 << 96) + (n128 << 64), 64),
        ],
        claimed: u64::from(n),
        mtu: Some(1500),
        receives: Vec::new(),
        sends: None,
        same_family: false,
    }
}

fn main() {
    let peers = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(15_000);
    let config = ClusterConfig {
        name: "scale".to_owned(),
        ranges: vec![
            ClusterRange { range: network(0x0a40_0000, 10), subnet_prefix: 24 },
            ClusterRange { range: network(0xfd00_0064 << 96, 48), subnet_prefix: 64 },
        ],
        encapsulation: podwire_overlay::cluster::Encapsulation::default(),
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4],
        reclaim_after_seconds: None,
    };
    let records = (0..=peers).map(|n| record(n, 0));
    let nodes: BTreeMap<_, _> = records.map(|record| (record.name.clone(), Arc::new(record))).collect();
    let snapshot = Snapshot { config, nodes };
    let membership =
        Membership { subnets: record(0, 0).subnets, generation: 1, claimed: 0, ..Membership::default() };
    let underlay = UnderlayFacts {
        links: vec![UnderlayLink {
            index: 2,
            name: "eth0".to_owned(),
            mtu: 1500,
            address: IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)),
            networks: vec![network(0xac10_0000, 12)],
        }],
    };
    let local = Local::default();

    let began = Instant::now();
    let mut topology = Topology::new("node00000", &membership, &snapshot).expect("settings that make sense");
    println!("topology of {} peers, anew: {:?}", topology.peers().len(), began.elapsed());
    let desired = Desired::new(&topology, &underlay, &local);
    let kernel = kernel(&desired);
    let (mut full, mut one) = (Vec::new(), Vec::new());
    let mut before = desired;
    let mut now = snapshot;
    for round in 1..=51 {
        let began = Instant::now();
        let desired = Desired::new(&topology, &underlay, &local);
        let steps = plan(&before, &kernel, Deletes::Allowed).steps.len();
        full.push((began.elapsed(), steps, desired.paths.len()));

        // A store hands out a new map in which one record is another.
        let mut next = now.clone();
        let changed = record(peers / 2, 20_000 + round);
        next.nodes.insert(changed.name.clone(), Arc::new(changed));
        let began = Instant::now();
        topology.update(&membership, &next).expect("settings that make sense");
        let desired = Desired::new(&topology, &underlay, &local);
        let changes = delta(&before, &desired, Deletes::Allowed);
        one.push((began.elapsed(), changes.steps.len(), 1));
        now = next;
        before = desired;
    }
    for (what, mut took) in [("desired and a plan", full), ("one peer's change", one)] {
        took.sort();
        let steps = took.first().map_or(0, |(_, steps, _)| *steps);
        let [median, most] = [took.len() / 2, took.len() - 1].map(|place| took.get(place).map(|took| took.0));
        println!("{what} ({steps} steps at least): median {median:?}, most {most:?}");
    }
}

/// What the kernel has once everything is done.
fn kernel(desired: &Desired) -> Observed {
    let mut kernel = Observed { sysctls: desired.sysctls.clone(), ..Observed::default() };
    for family in &desired.forwarding {
        kernel.sysctls.insert(podwire_overlay::plan::forwarding_sysctl(*family).to_owned(), "1".to_owned());
    }
    let device = desired.devices.first().expect("one device");
    kernel.links.push(Link {
        index: INDEX,
        name: device.id.name().to_owned(),
        mac: Some(device.mac),
        mtu: device.mtu,
        kind: Some("vxlan".to_owned()),
        alias: Some(MARK.to_owned()),
        vxlan: Some(device.vxlan()),
        addr_gen_mode: Some(AddrGenMode::None),
        flags: LinkFlags { up: true, ..LinkFlags::default() },
        ..Link::default()
    });
    for address in &desired.addresses {
        kernel.addresses.push(podwire_kernel::addr::Address {
            ifindex: INDEX,
            address: *address,
            flags: podwire_kernel::addr::AddressFlags::default(),
            scope: 0,
            protocol: podwire_kernel::addr::PROTOCOL,
        });
    }
    for path in &desired.paths {
        let neighbours = path.neighbours().map(|item| Neighbour::permanent(INDEX, item.address, item.mac));
        kernel.neighbours.extend(neighbours);
        kernel.fdb.extend(path.fdb().map(|item| FdbEntry::permanent(INDEX, item.mac, item.remote)));
        kernel.routes.extend(path.routes().map(|route| route.route(INDEX)));
    }
    kernel
}
