//! What holds for every cluster, every state of the kernel and every failure.

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address, AddressFlags};
use podwire_kernel::neighbour::{FdbEntry, Neighbour, State};
use podwire_kernel::route::{Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Family, MacAddr};
use proptest::prelude::*;

use super::model::Kernel;
use crate::cluster::sample::{
    announcing, config, flannel, ip, network, record, snapshot, topology, underlay,
};
use crate::cluster::{ClusterConfig, DirectRouting, Encapsulation, IpFamily, NodeRecord, Snapshot};
use crate::desired::{Desired, DeviceId, Local, UnderlayFacts, Via};
use crate::plan::{Deletes, delta, plan};

const ENCAPSULATIONS: [Encapsulation; 3] = [
    Encapsulation { vni: 1, port: 8472 },
    Encapsulation { vni: 2, port: 8472 },
    Encapsulation { vni: 1, port: 4789 },
];

fn configs() -> impl Strategy<Value = ClusterConfig> {
    let routing =
        prop_oneof![Just(DirectRouting::Never), Just(DirectRouting::Auto), Just(DirectRouting::Always)];
    let underlays = prop_oneof![
        Just(vec![IpFamily::Ipv4]),
        Just(vec![IpFamily::Ipv6]),
        Just(vec![IpFamily::Ipv4, IpFamily::Ipv6]),
        Just(vec![IpFamily::Ipv6, IpFamily::Ipv4]),
    ];
    (routing, underlays, 0..3_usize, prop::option::of(0..3_usize)).prop_map(
        |(direct_routing, underlay, sent, also)| ClusterConfig {
            direct_routing,
            underlay,
            encapsulation: ENCAPSULATIONS[sent],
            also_receive: also.map(|also| ENCAPSULATIONS[also]).into_iter().collect(),
            ..config()
        },
    )
}

/// Nodes 2 to 9, on or off the link, of either or both families, with each other's subnets and addresses at times.
fn records() -> impl Strategy<Value = NodeRecord> {
    let receives = prop::sample::subsequence(ENCAPSULATIONS.to_vec(), 0..=3);
    let mtu = prop_oneof![Just(None), Just(Some(1500)), Just(Some(1300)), Just(Some(100)), Just(Some(9000))];
    let is_flannel = prop::bool::weighted(0.3);
    (2..10_u16, 2..10_u16, 2..10_u16, any::<bool>(), 1..4_u8, 1..4_u8, receives, mtu, is_flannel).prop_map(
        |(n, subnet, address, near, families, pods, receives, mtu, is_flannel)| {
            let base = match (is_flannel, receives.is_empty()) {
                (true, _) => flannel(n),
                (false, true) => record(n),
                (false, false) => announcing(n, &receives, receives[0]),
            };
            let pick = |which: u8, v4: bool| which & if v4 { 1 } else { 2 } != 0;
            let mut addresses = if near {
                record(address).addresses
            } else {
                vec![ip(&format!("198.51.100.{address}")), ip(&format!("2001:db8:1::{address:x}"))]
            };
            addresses.retain(|address| pick(families, address.is_ipv4()));
            let mut subnets = crate::cluster::sample::subnets(subnet);
            subnets.retain(|subnet| pick(pods, subnet.is_ipv4()));
            NodeRecord { addresses, subnets, mtu, ..base }
        },
    )
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    (configs(), prop::collection::vec(records(), 0..8))
        .prop_map(|(config, records)| snapshot(config, records))
}

fn facts() -> impl Strategy<Value = UnderlayFacts> {
    (0..4_u8, prop_oneof![Just(1500_u32), Just(1400), Just(1300)], 1..3_u8, 2..4_u32).prop_map(
        |(families, mtu, address, index)| {
            let mut facts = underlay();
            facts
                .links
                .retain(|link| families == 0 || families & if link.address.is_ipv4() { 1 } else { 2 } != 0);
            for link in &mut facts.links {
                link.mtu = mtu;
                link.index = index;
                if address == 2 {
                    link.address =
                        if link.address.is_ipv4() { ip("192.0.2.200") } else { ip("2001:db8::200") };
                }
            }
            facts
        },
    )
}

/// A node that is new, or was flannel's.
fn nodes() -> impl Strategy<Value = Kernel> {
    let was_flannels = prop::option::weighted(0.4, prop::collection::btree_set(2..12_u16, 0..8));
    was_flannels.prop_map(|peers| match peers {
        None => Kernel::new(),
        Some(peers) => {
            let subnets: Vec<_> = peers.into_iter().flat_map(crate::cluster::sample::subnets).collect();
            Kernel::of_flannel(&subnets)
        }
    })
}

/// What somebody does to the node.
#[derive(Debug, Clone)]
enum Mischief {
    Down(usize),
    Delete(usize),
    Mac(usize),
    Mtu(usize),
    Alias(usize),
    Settings(usize, u8),
    RemoveAddress(usize),
    AddAddress(usize, u8),
    RemoveRoute(usize),
    MoveRoute(usize, u32),
    StrayRoute(u8, u32),
    ForeignRoute(u8, u32),
    RemoveNeighbour(usize),
    AlterNeighbour(usize, u8),
    StrayNeighbour(u8, bool),
    RemoveFdb(usize),
    AlterFdb(usize, u8),
    StrayFdb(u8, u8),
    Sysctl(usize),
    ForeignDevice,
}

fn mischief() -> impl Strategy<Value = Mischief> {
    use Mischief::*;
    let i = 0..64_usize;
    prop_oneof![
        i.clone().prop_map(Down),
        i.clone().prop_map(Delete),
        i.clone().prop_map(Mac),
        i.clone().prop_map(Mtu),
        i.clone().prop_map(Alias),
        (i.clone(), 0..4_u8).prop_map(|(i, what)| Settings(i, what)),
        i.clone().prop_map(RemoveAddress),
        (i.clone(), any::<u8>()).prop_map(|(i, n)| AddAddress(i, n)),
        i.clone().prop_map(RemoveRoute),
        (i.clone(), 0..9_u32).prop_map(|(i, metric)| MoveRoute(i, metric)),
        (any::<u8>(), 0..9_u32).prop_map(|(n, metric)| StrayRoute(n, metric)),
        (2..10_u8, 0..9_u32).prop_map(|(n, metric)| ForeignRoute(n, metric)),
        i.clone().prop_map(RemoveNeighbour),
        (i.clone(), any::<u8>()).prop_map(|(i, n)| AlterNeighbour(i, n)),
        (any::<u8>(), any::<bool>()).prop_map(|(n, permanent)| StrayNeighbour(n, permanent)),
        i.clone().prop_map(RemoveFdb),
        (i.clone(), any::<u8>()).prop_map(|(i, n)| AlterFdb(i, n)),
        (0..4_u8, any::<u8>()).prop_map(|(n, to)| StrayFdb(n, to)),
        i.prop_map(Sysctl),
        Just(ForeignDevice),
    ]
}

fn odd(n: u8) -> MacAddr {
    MacAddr([2, 9, 9, 9, 9, n])
}

fn commit(kernel: &mut Kernel, mischief: &Mischief) {
    let devices: Vec<u32> = kernel
        .state
        .links
        .iter()
        .filter(|link| kernel.naming.parse(&link.name).is_some())
        .map(|link| link.index)
        .collect();
    let device = |i: usize| devices.get(i % devices.len().max(1)).copied();
    let at = |i: usize, count: usize| if count == 0 { None } else { Some(i % count) };
    let link = |kernel: &mut Kernel, i: usize, change: &dyn Fn(&mut podwire_kernel::link::Link)| {
        let index = device(i);
        kernel.state.links.iter_mut().filter(|link| Some(link.index) == index).for_each(change);
    };
    let ours: Vec<usize> = (0..kernel.state.routes.len())
        .filter(|i| kernel.state.routes[*i].protocol == ROUTE_PROTOCOL)
        .collect();
    let route = |i: usize| ours.get(i % ours.len().max(1)).copied();
    let routed = |kernel: &Kernel, route: Route| {
        let key = |r: &Route| (r.destination, r.priority);
        !kernel.state.routes.iter().any(|found| key(found) == key(&route))
    };
    match *mischief {
        Mischief::Down(i) => device(i).into_iter().for_each(|index| kernel.down(index)),
        Mischief::Delete(i) => device(i).into_iter().for_each(|index| kernel.delete_link(index)),
        Mischief::Mac(i) => device(i).into_iter().for_each(|index| kernel.change_mac(index, odd(1))),
        Mischief::Mtu(i) => link(kernel, i, &|link| link.mtu = 4000),
        Mischief::Alias(i) => link(kernel, i, &|link| link.alias = None),
        Mischief::Settings(i, what) => link(kernel, i, &|link| {
            if let Some(vxlan) = &mut link.vxlan {
                match what {
                    0 => vxlan.learning = true,
                    1 => vxlan.udp_checksum = true,
                    2 => vxlan.unusual = true,
                    _ => vxlan.ttl = 3,
                }
            }
        }),
        Mischief::RemoveAddress(i) => {
            if let Some(i) = at(i, kernel.state.addresses.len()) {
                let Address { ifindex, address, .. } = kernel.state.addresses[i];
                kernel.remove_address(ifindex, address);
            }
        }
        Mischief::AddAddress(i, n) => {
            if let Some(ifindex) = device(i) {
                let address = IpNetwork::from(ip(&format!("10.244.77.{n}")));
                let there = |a: &Address| a.ifindex == ifindex && a.address == address;
                if !kernel.state.addresses.iter().any(there) {
                    let flags = AddressFlags::default();
                    let protocol = if n % 2 == 0 { 0 } else { addr::PROTOCOL };
                    kernel.state.addresses.push(Address { ifindex, address, flags, scope: 0, protocol });
                }
            }
        }
        Mischief::RemoveRoute(i) => {
            route(i).into_iter().for_each(|i| drop(kernel.state.routes.remove(i)));
        }
        Mischief::MoveRoute(i, metric) => {
            if let Some(i) = route(i) {
                let moved = Route { priority: Some(metric), ..kernel.state.routes[i].clone() };
                if routed(kernel, moved.clone()) {
                    kernel.state.routes[i] = moved;
                }
            }
        }
        Mischief::StrayRoute(n, metric) => {
            let nexthop = Nexthop { gateway: Some(ip("192.0.2.99")), oif: Some(2 + u32::from(n % 2)) };
            let destination = network(&format!("10.244.{}.0/24", n % 16));
            let stray = Route {
                priority: Some(metric),
                protocol: ROUTE_PROTOCOL,
                ..Route::new(destination, vec![nexthop])
            };
            if routed(kernel, stray.clone()) {
                kernel.state.routes.push(stray);
            }
        }
        Mischief::ForeignRoute(n, metric) => {
            let nexthop = Nexthop { gateway: Some(ip("192.0.2.99")), oif: Some(2) };
            let destination = network(&format!("10.244.{n}.0/24"));
            let foreign =
                Route { priority: Some(metric), protocol: 3, ..Route::new(destination, vec![nexthop]) };
            if routed(kernel, foreign.clone()) {
                kernel.state.routes.push(foreign);
            }
        }
        Mischief::RemoveNeighbour(i) => {
            if let Some(i) = at(i, kernel.state.neighbours.len()) {
                kernel.state.neighbours.remove(i);
            }
        }
        Mischief::AlterNeighbour(i, n) => {
            if let Some(i) = at(i, kernel.state.neighbours.len()) {
                kernel.state.neighbours[i].mac = Some(odd(n));
            }
        }
        Mischief::StrayNeighbour(n, permanent) => {
            if let Some(ifindex) = device(n.into()) {
                let mut stray = Neighbour::permanent(ifindex, ip(&format!("10.244.{}.0", n % 16)), odd(n));
                if !permanent {
                    (stray.state, stray.mac) = (State::Failed, None);
                }
                let same = |n: &Neighbour| (n.ifindex, n.address) == (stray.ifindex, stray.address);
                kernel.state.neighbours.retain(|n| !same(n));
                kernel.state.neighbours.push(stray);
            }
        }
        Mischief::RemoveFdb(i) => {
            if let Some(i) = at(i, kernel.state.fdb.len()) {
                kernel.state.fdb.remove(i);
            }
        }
        Mischief::AlterFdb(i, n) => {
            if let Some(i) = at(i, kernel.state.fdb.len()) {
                let entry = &mut kernel.state.fdb[i];
                match n % 3 {
                    0 => entry.destination = Some(ip("203.0.113.9")),
                    1 => entry.port = Some(9),
                    _ => entry.state = State::Stale,
                }
            }
        }
        Mischief::StrayFdb(n, to) => {
            if let Some(ifindex) = device(n.into()) {
                // All zeros: where frames to unknown addresses go. Somebody appends.
                let mac = if n == 0 { MacAddr([0; 6]) } else { odd(n) };
                let entry = FdbEntry::permanent(ifindex, mac, ip(&format!("203.0.113.{to}")));
                if !kernel.state.fdb.contains(&entry) {
                    kernel.state.fdb.push(entry);
                }
            }
        }
        Mischief::Sysctl(i) => {
            let keys: Vec<_> = kernel.state.sysctls.keys().cloned().collect();
            if let Some(i) = at(i, keys.len()) {
                kernel.state.sysctls.insert(keys[i].clone(), "9".to_owned());
            }
        }
        Mischief::ForeignDevice => {
            let index = 90 + u32::try_from(kernel.state.links.len()).expect("few");
            kernel.state.links.push(podwire_kernel::link::Link {
                index,
                name: format!("other{index}"),
                ..podwire_kernel::link::Link::default()
            });
            kernel.state.neighbours.push(Neighbour::permanent(index, ip("10.244.2.0"), odd(5)));
        }
    }
}

fn desired(snapshot: &Snapshot, facts: &UnderlayFacts, kernel: &Kernel) -> Desired {
    let held = kernel.state.held(&kernel.naming);
    let local = Local { bridge: Some("podwire0"), held: &held, naming: &kernel.naming, ..Local::default() };
    Desired::new(&topology(snapshot), facts, &local)
}

/// The kernel's routes, neighbours and entries are the desired ones, to the last.
fn assert_is(kernel: &Kernel, desired: &Desired) -> Result<(), TestCaseError> {
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let index = |device: DeviceId| kernel.index(device.name()).expect("a device that was made");
    let taken = |route: &crate::desired::PeerRoute| {
        kernel.state.routes.iter().any(|found| {
            found.protocol != ROUTE_PROTOCOL
                && (found.destination, found.priority) == (route.destination, Some(route.metric))
        })
    };
    let routes =
        desired.paths.iter().flat_map(|path| path.routes()).filter(|route| !taken(route)).map(|route| {
            let index = match route.via {
                Via::Device(device) => index(device),
                Via::Link(index) => index,
            };
            format!("{:?}", route.route(index))
        });
    let found = kernel.state.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
    prop_assert_eq!(sorted(found.map(|route| format!("{route:?}")).collect()), sorted(routes.collect()));
    let devices: Vec<_> = desired.devices.iter().map(|device| index(device.id)).collect();
    let neighbours = desired
        .paths
        .iter()
        .flat_map(|path| path.neighbours())
        .map(|item| format!("{:?}", Neighbour::permanent(index(item.device), item.address, item.mac)));
    let found = kernel
        .state
        .neighbours
        .iter()
        .filter(|found| devices.contains(&found.ifindex) && found.state == State::Permanent);
    prop_assert_eq!(sorted(found.map(|found| format!("{found:?}")).collect()), sorted(neighbours.collect()));
    let fdb = desired
        .paths
        .iter()
        .flat_map(|path| path.fdb())
        .map(|item| format!("{:?}", FdbEntry::permanent(index(item.device), item.mac, item.remote)));
    let found = kernel.state.fdb.iter().map(|found| format!("{found:?}"));
    prop_assert_eq!(sorted(found.collect()), sorted(fdb.collect()));
    for device in &desired.devices {
        let link = kernel.state.links.iter().find(|link| link.name == device.id.name()).expect("made");
        prop_assert!(link.flags.up && link.mtu == device.mtu && link.mac == Some(device.mac));
        prop_assert_eq!(link.vxlan, link.vxlan.map(|vxlan| device.vxlan_of(&vxlan)));
        prop_assert!(link.vxlan.is_some_and(|vxlan| !vxlan.learning && vxlan.local == Some(device.local)));
        for wanted in &desired.addresses {
            let has = |a: &Address| a.ifindex == link.index && a.address == *wanted;
            prop_assert_eq!(kernel.state.addresses.iter().filter(|a| has(a)).count(), 1);
        }
    }
    for (key, value) in &desired.sysctls {
        prop_assert_eq!(kernel.state.sysctls.get(key), Some(value));
    }
    for family in &desired.forwarding {
        prop_assert_eq!(kernel.state.sysctls[crate::plan::forwarding_sysctl(*family)].as_str(), "1");
    }
    let ours = kernel.state.held(&kernel.naming);
    prop_assert_eq!(ours.len(), desired.devices.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// From one cluster to another, whatever happened to the node meanwhile and whichever steps fail: repeated passes
    /// lead to the desired state, the last one finds nothing to do, and nobody else's things change.
    #[test]
    fn every_state_leads_to_the_desired_one(
        (first, facts, mischiefs) in (snapshots(), facts(), prop::collection::vec(mischief(), 0..10)),
        (second, later) in (snapshots(), facts()),
        failing in prop::collection::vec(0..40_usize, 0..5),
        mut kernel in nodes(),
    ) {
        let start = desired(&first, &facts, &kernel);
        kernel.carry_out(&plan(&start, &kernel.state, Deletes::Allowed), &[]);
        for mischief in &mischiefs {
            commit(&mut kernel, mischief);
        }
        let foreign = kernel.foreign(&start);
        // The first pass goes wrong in places, or the agent is killed in its midst.
        let goal = desired(&second, &later, &kernel);
        kernel.carry_out(&plan(&goal, &kernel.state, Deletes::Allowed), &failing);
        for _ in 0..4 {
            let goal = desired(&second, &later, &kernel);
            kernel.carry_out(&plan(&goal, &kernel.state, Deletes::Allowed), &[]);
        }
        let goal = desired(&second, &later, &kernel);
        let rest = plan(&goal, &kernel.state, Deletes::Allowed);
        let rest: Vec<_> = rest.steps.iter().map(|step| step.operation.to_string()).collect();
        prop_assert_eq!(rest, Vec::<String>::new());
        if goal.retained.is_empty() {
            assert_is(&kernel, &goal)?;
        }
        prop_assert_eq!(kernel.foreign(&start), foreign);
    }

    /// One pass without failures is enough.
    #[test]
    fn one_pass_is_enough(
        (first, second, facts) in (snapshots(), snapshots(), facts()),
        mischiefs in prop::collection::vec(mischief(), 0..6),
        mut kernel in nodes(),
    ) {
        let start = desired(&first, &facts, &kernel);
        kernel.carry_out(&plan(&start, &kernel.state, Deletes::Allowed), &[]);
        for mischief in &mischiefs {
            commit(&mut kernel, mischief);
        }
        let goal = desired(&second, &facts, &kernel);
        let failures = kernel.carry_out(&plan(&goal, &kernel.state, Deletes::Allowed), &[]);
        prop_assert_eq!(failures, Vec::<String>::new());
        let rest = plan(&goal, &kernel.state, Deletes::Allowed);
        let rest: Vec<_> = rest.steps.iter().map(|step| step.operation.to_string()).collect();
        prop_assert_eq!(rest, Vec::<String>::new());
    }

    /// The fast way leads where the slow one does.
    #[test]
    fn a_delta_leads_to_the_same((config, first, second, facts, mut kernel) in (
        configs(),
        prop::collection::vec(records(), 0..8),
        prop::collection::vec(records(), 0..8),
        facts(),
        prop_oneof![Just(Kernel::new()), Just(Kernel::of_flannel(&[]))],
    )) {
        let first = snapshot(config.clone(), first);
        let second = snapshot(config, second);
        let old = desired(&first, &facts, &kernel);
        kernel.carry_out(&plan(&old, &kernel.state, Deletes::Allowed), &[]);
        let new = desired(&second, &facts, &kernel);
        let quick = delta(&old, &new, Deletes::Allowed);
        prop_assume!(!quick.needs_look);
        prop_assert_eq!(kernel.carry_out(&quick, &[]), Vec::<String>::new());
        let rest = plan(&new, &kernel.state, Deletes::Allowed);
        let rest: Vec<_> = rest.steps.iter().map(|step| step.operation.to_string()).collect();
        prop_assert_eq!(rest, Vec::<String>::new());
        let mut senders = old.senders();
        senders.extend(quick.senders.add);
        senders.retain(|sender| !quick.senders.remove.contains(sender));
        prop_assert_eq!(senders, new.senders());
    }

    /// Before the store has answered, nothing goes: whatever led to a peer goes on to do so.
    #[test]
    fn what_is_remembered_takes_nothing_away(
        (first, second, facts, mut kernel) in (snapshots(), snapshots(), facts(), nodes()),
    ) {
        let start = desired(&first, &facts, &kernel);
        kernel.carry_out(&plan(&start, &kernel.state, Deletes::Allowed), &[]);
        let before = kernel.state.clone();
        let goal = desired(&second, &facts, &kernel);
        kernel.carry_out(&plan(&goal, &kernel.state, Deletes::Withheld), &[]);
        for route in &before.routes {
            let there = |found: &Route| {
                (found.destination, found.priority) == (route.destination, route.priority)
            };
            prop_assert!(kernel.state.routes.iter().any(there), "{} is gone", route);
        }
        for link in &before.links {
            prop_assert!(kernel.state.links.iter().any(|found| found.index == link.index));
        }
    }

    /// Whatever peers say, each family's routes fit the link, and nothing is below what IPv6 needs.
    #[test]
    fn mtus_stay_in_bounds((snapshot, facts) in (snapshots(), facts())) {
        let desired = desired(&snapshot, &facts, &Kernel::new());
        for route in desired.paths.iter().flat_map(|path| path.routes()) {
            let link = match route.via {
                Via::Device(device) => desired.devices.iter().find(|d| d.id == device).expect("a device").mtu,
                Via::Link(_) => facts.links[0].mtu,
            };
            prop_assert!(link >= 1280);
            prop_assert!(route.mtu.is_none_or(|mtu| (1280..link).contains(&mtu)));
            // The kernel has no IPv6 route by way of an IPv4 router.
            prop_assert!(Family::of(route.destination.ip()) == Family::V4 || route.gateway.is_ipv6());
        }
    }
}
