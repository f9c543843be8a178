//! VXLAN devices and what stands behind them: neighbours, forwarding entries, and what the kernel does to them.

use std::net::IpAddr;

use podwire_kernel::link::{self, Df, Link, LinkChange, LinkRef, Vxlan};
use podwire_kernel::neighbour::{self, FdbEntry, Neighbour, State};
use podwire_kernel::route::{self, Lookup, Nexthop, ROUTE_PROTOCOL, Route, RouteFilter};
use podwire_kernel::{Family, MacAddr, Netlink, addr};

use crate::lab::{bridge, eventually, in_new_netns, network, socket, up};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The MAC address of the peer of that number.
fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 1, number])
}

/// A VXLAN device that is up.
pub(crate) fn vxlan(netlink: &mut Netlink, name: &str, settings: &Vxlan) -> Link {
    let mut requests = vec![link::create_vxlan(name, OWN, Some(1450), settings)];
    requests.extend(link::change(LinkRef::Name(name), &up()));
    netlink.apply_then_link(&requests, LinkRef::Name(name)).expect("a vxlan").expect("it is there")
}

fn v4() -> Vxlan {
    Vxlan::new(1, 8472, Some(ip("192.0.2.1")))
}

#[test]
fn a_device_reads_back_as_it_was_asked_for_and_differs_where_it_differs() {
    in_new_netns(|| {
        let mut netlink = socket();
        let parent = bridge(&mut netlink, "parent").index;
        let v6 = Vxlan {
            zero_checksum6_tx: true,
            zero_checksum6_rx: true,
            ..Vxlan::new(1, 8472, Some(ip("2001:db8::1")))
        };
        let odd = Vxlan {
            parent: Some(parent),
            remote: Some(ip("192.0.2.9")),
            learning: true,
            ttl: 3,
            df: Df::Inherit,
            udp_checksum: true,
            ..Vxlan::new(9, 4789, Some(ip("192.0.2.1")))
        };
        let external = Vxlan { external: true, ..Vxlan::new(0, 4790, None) };
        for (name, settings) in [("v4", v4()), ("v6", v6), ("odd", odd), ("external", external)] {
            let link = vxlan(&mut netlink, name, &settings);
            assert_eq!(link.vxlan, Some(settings), "{name}");
            assert_eq!(
                (link.mac, link.mtu, link.kind.as_deref()),
                (Some(OWN), 1450, Some("vxlan")),
                "{name}"
            );
        }
        // One device of a VNI, port and family, whatever its local address.
        let again = Vxlan { local: Some(ip("192.0.2.2")), ..v4() };
        let error = netlink.apply(&[link::create_vxlan("again", OWN, None, &again)]).expect_err("taken");
        assert!(error.is_exists(), "{error}");
        // Options that are never set here show.
        let made = std::process::Command::new("ip")
            .args([
                "link",
                "add",
                "proxy",
                "type",
                "vxlan",
                "id",
                "77",
                "dstport",
                "8472",
                "proxy",
                "nolearning",
            ])
            .args(["local", "192.0.2.1", "noudpcsum"])
            .status();
        assert!(made.expect("the ip program").success());
        let link = netlink.link(LinkRef::Name("proxy")).expect("read").expect("there");
        let expected = Vxlan { vni: 77, ttl: 0, unusual: true, ..v4() };
        assert_eq!(link.vxlan, Some(expected));
    });
}

fn peers(device: u32) -> (Vec<Route>, [Neighbour; 2], [FdbEntry; 2]) {
    let route = |prefix: &str, gateway: &str, metric| {
        let nexthop = Nexthop { gateway: Some(ip(gateway)), oif: Some(device) };
        let mut route = Route::new(network(prefix), vec![nexthop]);
        (route.onlink, route.protocol, route.priority) = (true, ROUTE_PROTOCOL, Some(metric));
        route
    };
    let mut routes = vec![route("10.244.5.0/24", "10.244.5.0", 6), route("fd00:5::/64", "fd00:5::", 1024)];
    routes[0].mtu = Some(1400);
    let neighbours =
        ["10.244.5.0", "fd00:5::"].map(|gateway| Neighbour::permanent(device, ip(gateway), mac(5)));
    let entries = [(5, "192.0.2.5"), (6, "192.0.2.6")]
        .map(|(number, to)| FdbEntry::permanent(device, mac(number), ip(to)));
    (routes, neighbours, entries)
}

fn requests(
    routes: &[Route],
    neighbours: &[Neighbour],
    entries: &[FdbEntry],
) -> Vec<podwire_kernel::Request<'static>> {
    let mut requests = Vec::new();
    requests
        .extend(neighbours.iter().map(|n| neighbour::replace(n.ifindex, n.address, n.mac.expect("a MAC"))));
    requests.extend(
        entries.iter().map(|e| neighbour::replace_fdb(e.ifindex, e.mac, e.destination.expect("set"))),
    );
    requests.extend(routes.iter().map(route::replace));
    requests
}

/// All our routes, of both families.
fn ours(netlink: &mut Netlink) -> Vec<Route> {
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        let filter = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::main(family) };
        routes.extend(netlink.routes(&filter).expect("listed"));
    }
    routes
}

#[test]
fn peers_read_back_exactly_and_are_replaced_and_removed_one_by_one() {
    in_new_netns(|| {
        let mut netlink = socket();
        let device = vxlan(&mut netlink, "podwire.1", &v4()).index;
        let other = vxlan(&mut netlink, "other", &Vxlan { vni: 2, ..v4() }).index;
        let (mut routes, mut neighbours, mut entries) = peers(device);
        // Twice: to replace what is there as it should be changes nothing and is no error.
        for _ in 0..2 {
            assert_eq!(netlink.apply_all(&requests(&routes, &neighbours, &entries)).expect("sent"), []);
        }
        netlink
            .apply(&[
                neighbour::add(other, ip("10.9.9.9"), mac(9)),
                neighbour::add_fdb(other, mac(9), ip("192.0.2.9")),
            ])
            .expect("another device's");
        let permanent = |netlink: &mut Netlink| {
            let mut found = netlink.neighbours(device).expect("listed");
            // The kernel makes multicast neighbours of its own when it sends to a group.
            found.retain(|found| found.state != State::Noarp);
            found.sort_by_key(|neighbour| neighbour.address);
            found
        };
        let sorted = |netlink: &mut Netlink| {
            let mut found = netlink.fdb(device).expect("listed");
            found.sort_by_key(|entry| entry.mac);
            found
        };
        assert_eq!(ours(&mut netlink), routes);
        assert_eq!(permanent(&mut netlink), neighbours);
        assert_eq!(sorted(&mut netlink), entries);
        assert_eq!(netlink.neighbour(device, ip("fd00:5::")).expect("read"), Some(neighbours[1]));
        assert_eq!(netlink.neighbour(device, ip("fd00:6::")).expect("read"), None);
        let exists = netlink
            .apply_all(&[
                neighbour::add(device, ip("10.244.5.0"), mac(7)),
                neighbour::add_fdb(device, mac(5), ip("192.0.2.5")),
                route::add(&routes[0]),
            ])
            .expect("sent");
        assert_eq!(exists.iter().filter(|error| error.is_exists()).count(), 3, "{exists:?}");

        for neighbour in &mut neighbours {
            neighbour.mac = Some(mac(8));
        }
        entries[0].destination = Some(ip("192.0.2.8"));
        (routes[0].mtu, routes[1].mtu) = (None, Some(1300));
        for (route, gateway) in routes.iter_mut().zip(["10.244.5.1", "fd00:5::1"]) {
            route.nexthops[0].gateway = Some(ip(gateway));
        }
        netlink.apply(&requests(&routes, &neighbours, &entries)).expect("replaced");
        assert_eq!(ours(&mut netlink), routes);
        assert_eq!(permanent(&mut netlink), neighbours);
        assert_eq!(sorted(&mut netlink), entries);

        // Exactly: a route that differs in its gateway or metric is another one.
        for (i, change) in [(0, "10.244.5.9"), (1, "fd00:5::9")] {
            let mut another = routes[i].clone();
            another.nexthops[0].gateway = Some(ip(change));
            assert!(netlink.apply(&[route::remove(&another)]).expect_err("another").is_missing());
            let mut another = routes[i].clone();
            another.priority = Some(77);
            assert!(netlink.apply(&[route::remove(&another)]).expect_err("another").is_missing());
        }
        let mut removals: Vec<_> = routes.iter().map(route::remove).collect();
        removals.extend(neighbours.iter().map(|n| neighbour::remove(n.ifindex, n.address)));
        removals.push(neighbour::remove_fdb(device, mac(5), Some(ip("192.0.2.8"))));
        removals.push(neighbour::remove_fdb(device, mac(6), None));
        netlink.apply(&removals).expect("removed");
        assert_eq!((ours(&mut netlink), sorted(&mut netlink)), (vec![], vec![]));
        assert!(permanent(&mut netlink).iter().all(|left| left.state == State::Failed));
        let missing = netlink.apply_all(&removals).expect("sent");
        let indices: Vec<_> = missing.iter().map(|error| error.index).collect();
        assert!(missing.iter().all(podwire_kernel::Error::is_missing), "{missing:?}");
        // A neighbour that was just removed may still be there, as failed.
        assert!([0, 1, 4, 5].iter().all(|index| indices.contains(&Some(*index))), "{indices:?}");
        assert_eq!(netlink.fdb(other).expect("listed").len(), 1);
        assert_eq!(netlink.neighbours(4711).expect("no such link"), []);
        assert_eq!(netlink.fdb(4711).expect("no such link"), []);
    });
}

#[test]
fn each_of_several_failures_is_told_with_its_number_and_the_rest_is_done() {
    in_new_netns(|| {
        let mut netlink = socket();
        let device = vxlan(&mut netlink, "podwire.1", &v4()).index;
        let address = |i: usize| {
            IpAddr::from([10, 0, u8::try_from(i / 256).expect("few"), u8::try_from(i % 256).expect("a byte")])
        };
        // Of 1000 requests, in five sends, every 7th names a link that does not exist.
        let wrong = |i: &usize| i % 7 == 3;
        let requests: Vec<_> = (0..1000)
            .map(|i| neighbour::replace(if wrong(&i) { 4711 } else { device }, address(i), mac(5)))
            .collect();
        let failures = netlink.apply_all(&requests).expect("sent");
        let indices: Vec<_> = failures.iter().filter_map(|error| error.index).collect();
        assert_eq!(indices, (0..1000).filter(wrong).collect::<Vec<_>>());
        assert!(
            failures[0].to_string().starts_with("replace neighbour 10.0.0.3 dev 4711 lladdr"),
            "{}",
            failures[0]
        );
        assert_eq!(
            netlink
                .neighbours(device)
                .expect("listed")
                .iter()
                .filter(|n| n.address.is_ipv4() && n.state == State::Permanent)
                .count(),
            1000 - indices.len()
        );
        let first = netlink.apply(&requests).expect_err("the first of them");
        assert_eq!(first.index, Some(3));
    });
}

#[test]
fn what_the_kernel_forgets_when_a_device_goes_down_or_changes() {
    in_new_netns(|| {
        let mut netlink = socket();
        let device = vxlan(&mut netlink, "podwire.1", &v4()).index;
        netlink
            .apply(&[
                addr::add(device, network("10.244.1.0/32"), true),
                addr::add(device, network("fd00:1::/128"), true),
            ])
            .expect("addresses");
        let (routes, neighbours, entries) = peers(device);
        let count = |netlink: &mut Netlink| {
            let permanent = netlink.neighbours(device).expect("listed");
            let permanent = permanent.iter().filter(|found| found.state == State::Permanent).count();
            (ours(netlink).len(), permanent, netlink.fdb(device).expect("listed").len())
        };
        let link = LinkRef::Index(device);
        let whole = requests(&routes, &neighbours, &entries);
        netlink.apply(&whole).expect("programmed");
        assert_eq!(count(&mut netlink), (2, 2, 2));

        let strange = Vxlan { learning: true, ttl: 3, df: Df::Set, ..v4() };
        for wanted in [strange, Vxlan { local: Some(ip("192.0.2.77")), ..v4() }] {
            netlink.apply(&[link::change_vxlan(link, &wanted)]).expect("other settings");
            assert_eq!(netlink.link(link).expect("read").expect("there").vxlan, Some(wanted));
        }
        assert_eq!(count(&mut netlink), (2, 2, 2));

        netlink
            .apply(&link::change(link, &LinkChange { mac: Some(mac(99)), ..LinkChange::default() }))
            .expect("another MAC");
        assert_eq!(count(&mut netlink), (2, 0, 2));
        netlink.apply(&whole).expect("programmed");

        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        netlink.apply(&link::change(link, &down)).expect("down");
        assert_eq!(count(&mut netlink), (0, 0, 2));
    });
}

#[test]
fn a_lookup_finds_the_route_that_the_kernel_would_take() {
    in_new_netns(|| {
        let mut netlink = socket();
        let device = vxlan(&mut netlink, "podwire.1", &v4()).index;
        netlink
            .apply(&[
                addr::add(device, network("10.244.1.0/32"), true),
                addr::add(device, network("fd00:1::/128"), true),
            ])
            .expect("addresses");
        let (routes, neighbours, entries) = peers(device);
        netlink.apply(&requests(&routes, &neighbours, &entries)).expect("programmed");
        for (route, inside) in routes.iter().zip(["10.244.5.77", "fd00:5::77"]) {
            let found = netlink.route_to(&Lookup::to(ip(inside))).expect("looked up");
            assert_eq!(found.as_ref(), Some(route));
        }
        for nowhere in ["10.245.0.1", "fd99::1"] {
            assert_eq!(netlink.route_to(&Lookup::to(ip(nowhere))).expect("looked up"), None);
        }
        for local in ["10.244.1.0", "fd00:1::"] {
            // IPv6 gives a new address its local route a moment later.
            eventually("a local route", || {
                let found = netlink.route_to(&Lookup::to(ip(local))).expect("looked up")?;
                (found.destination.ip() == ip(local) && found.kind == 2).then_some(())
            });
        }
        let mut refused = Route::new(network("10.244.5.128/25"), vec![]);
        (refused.kind, refused.scope) = (8, 0);
        netlink.apply(&[route::add(&refused)]).expect("added");
        assert!(netlink.route_to(&Lookup::to(ip("10.244.5.200"))).expect_err("prohibited").is_denied());
    });
}
