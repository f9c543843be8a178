//! What the kernel tells by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_kernel::events::{Caused, Event, Events, Topics};
use podwire_kernel::link::{self, LinkChange, LinkRef, Vxlan};
use podwire_kernel::neighbour::{self, State};
use podwire_kernel::netconf::{Netconf, Scope};
use podwire_kernel::route::{self, Nexthop, Route};
use podwire_kernel::{Family, MacAddr, addr};

use crate::lab::{bridge, in_new_netns, network, pair, socket};

/// Runs on one thread, so that the socket is opened in the test's namespace.
fn on_tokio<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

/// The first event that `pick` accepts, and those before it.
async fn until<T>(events: &mut Events, mut pick: impl FnMut(&Event) -> Option<T>) -> (T, Vec<Event>) {
    let mut before = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
        let event = event
            .unwrap_or_else(|_| {
                panic!("not within 5 s; {} before, the last {:?}", before.len(), before.last())
            })
            .expect("an event");
        if let Some(found) = pick(&event) {
            return (found, before);
        }
        before.push(event);
    }
}

#[test]
fn a_link_that_goes_is_told_and_one_that_leaves_its_bridge_has_not_gone() {
    in_new_netns(|| {
        let mut netlink = socket();
        let bridge = bridge(&mut netlink, "podwire0");
        on_tokio(async {
            let mut events = Events::open(Topics::LINKS).expect("listening");
            let (link, _pod) = pair(&mut netlink, "left");
            let made = until(&mut events, |event| match event {
                Event::Link(link) if link.name == "left" => Some(link.index),
                _ => None,
            });
            assert_eq!(made.await.0, link.index);
            for controller in [bridge.index, 0] {
                let change = LinkChange { controller: Some(controller), ..LinkChange::default() };
                netlink.apply(&link::change(LinkRef::Index(link.index), &change)).expect("changed");
            }
            let marker = LinkChange { alias: Some("marker".to_owned()), ..LinkChange::default() };
            netlink.apply(&link::change(LinkRef::Index(link.index), &marker)).expect("changed");
            let (_, before) = until(&mut events, |event| match event {
                Event::Link(link) if link.alias.as_deref() == Some("marker") => Some(()),
                _ => None,
            })
            .await;
            assert!(
                before.iter().all(|event| !matches!(event, Event::LinkRemoved { .. } | Event::Overrun)),
                "{before:?}"
            );
            netlink.apply(&[link::delete(link.index, "left")]).expect("removed");
            let ((index, name), _) = until(&mut events, |event| match event {
                Event::LinkRemoved { index, name } => Some((*index, name.clone())),
                _ => None,
            })
            .await;
            assert_eq!((index, name.as_str()), (link.index, "left"));
        });
    });
}

#[test]
fn addresses_and_routes_are_told() {
    in_new_netns(|| {
        let mut netlink = socket();
        let (link, _pod) = pair(&mut netlink, "left");
        on_tokio(async {
            let mut events = Events::open(Topics::ALL).expect("listening");
            for (address, destination, gateway) in
                [("10.1.0.1/24", "10.2.0.0/16", "10.1.0.2"), ("fd00::1/64", "fd02::/64", "fd00::2")]
            {
                let (address, destination) = (network(address), network(destination));
                let hop = Nexthop { gateway: gateway.parse().ok(), oif: Some(link.index) };
                let route = Route::new(destination, vec![hop]);
                let there = [addr::add(link.index, address, true), route::add(&route)];
                netlink.apply(&there).expect("added");
                // In any order: an IPv6 address is told of when the kernel's worker has dealt with it.
                let (mut address_told, mut route_told) = (false, false);
                until(&mut events, |event| {
                    address_told |= matches!(event, Event::Address(there) if there.address == address);
                    route_told |= matches!(event, Event::Route(there)
                        if there.destination == destination && there.nexthops == [hop]);
                    (address_told && route_told).then_some(())
                })
                .await;
                netlink.apply(&[route::remove(&route), addr::remove(link.index, address)]).expect("removed");
                let (mut address_gone, mut route_gone) = (false, false);
                until(&mut events, |event| {
                    address_gone |= matches!(event, Event::AddressRemoved(gone) if gone.address == address);
                    route_gone |=
                        matches!(event, Event::RouteRemoved(gone) if gone.destination == destination);
                    (address_gone && route_gone).then_some(())
                })
                .await;
            }
        });
    });
}

#[test]
fn lost_events_are_told() {
    in_new_netns(|| {
        let mut netlink = socket();
        let (link, _pod) = pair(&mut netlink, "left");
        on_tokio(async {
            let mut events = Events::open(Topics::LINKS).expect("listening");
            let aliases = ["one", "other"]
                .map(|alias| LinkChange { alias: Some(alias.to_owned()), ..LinkChange::default() });
            let requests: Vec<_> =
                (0..10_000).flat_map(|i| link::change(LinkRef::Index(link.index), &aliases[i % 2])).collect();
            netlink.apply(&requests).expect("changed");
            until(&mut events, |event| matches!(event, Event::Overrun).then_some(())).await;
            // And it goes on after that.
            netlink.apply(&[link::delete(link.index, "left")]).expect("removed");
            until(&mut events, |event| matches!(event, Event::LinkRemoved { .. }).then_some(())).await;
        });
    });
}

/// What the documentation of `Caused::port` says.
#[test]
fn a_change_names_the_socket_that_asked_for_it_where_the_kernel_knows() {
    in_new_netns(|| {
        let mut netlink = socket();
        on_tokio(async {
            let mut events = Events::open(Topics::ALL).expect("listening");
            let (mac, ip) = (MacAddr([2, 0, 0, 0, 1, 5]), |text: &str| text.parse().expect("an address"));
            let settings = Vxlan::new(1, 8472, Some(ip("192.0.2.1")));
            let mut requests =
                vec![link::create_vxlan("podwire.1", MacAddr([2, 0, 0, 0, 0, 1]), None, &settings)];
            requests.extend(link::change(LinkRef::Name("podwire.1"), &crate::lab::up()));
            let made = netlink.apply_then_link(&requests, LinkRef::Name("podwire.1"));
            let index = made.expect("made").expect("there").index;
            let route = |prefix: &str, gateway: &str| {
                let nexthop = Nexthop { gateway: Some(ip(gateway)), oif: Some(index) };
                Route { onlink: true, ..Route::new(network(prefix), vec![nexthop]) }
            };
            let (v4, v6) = (route("10.5.0.0/24", "10.5.0.0"), route("fd05::/64", "fd05::"));
            let change = [
                route::replace(&v4),
                route::replace(&v6),
                neighbour::replace(index, ip("10.5.0.0"), mac),
                neighbour::replace(index, ip("fd05::"), mac),
                neighbour::replace_fdb(index, mac, ip("192.0.2.5")),
                addr::add(index, network("10.1.0.0/32"), true),
                addr::add(index, network("fd01::/128"), true),
                // A replacement by the same again is told for IPv6 routes alone.
                route::replace(&v4),
                route::replace(&v6),
                neighbour::replace(index, ip("10.5.0.0"), mac),
                route::remove(&v4),
                route::remove(&v6),
                neighbour::remove(index, ip("10.5.0.0")),
                neighbour::remove_fdb(index, mac, None),
                // The last IPv4 address takes the routes with it.
                addr::remove(index, network("10.1.0.0/32")),
                addr::remove(index, network("fd01::/128")),
                link::delete(index, "podwire.1"),
            ];
            netlink.apply(&change).expect("applied");
            let mut seen = BTreeSet::new();
            loop {
                let caused = tokio::time::timeout(Duration::from_secs(5), events.next_caused()).await;
                let Caused { event, port } = caused.expect("the link's end").expect("an event");
                let ours = port.map(|port| port == netlink.port());
                let of_ours =
                    |address: IpNetwork| [network("10.1.0.0/32"), network("fd01::/128")].contains(&address);
                match event {
                    Event::Link(_) => seen.insert(("link", ours)),
                    Event::Address(a) if a.address.is_ipv4() => seen.insert(("IPv4 address", ours)),
                    Event::AddressRemoved(a) if a.address.is_ipv4() => {
                        seen.insert(("IPv4 address removed", ours))
                    }
                    Event::Address(a) if of_ours(a.address) => seen.insert(("IPv6 address", ours)),
                    Event::AddressRemoved(a) if of_ours(a.address) => {
                        seen.insert(("IPv6 address removed", ours))
                    }
                    Event::Route(r) if r.destination == v4.destination => seen.insert(("IPv4 route", ours)),
                    Event::RouteRemoved(r) if r.destination == v4.destination => {
                        seen.insert(("IPv4 route removed", ours))
                    }
                    Event::Route(r) if r.destination == v6.destination => seen.insert(("IPv6 route", ours)),
                    Event::RouteRemoved(r) if r.destination == v6.destination => {
                        seen.insert(("IPv6 route removed", ours))
                    }
                    Event::Neighbour(n) if n.mac == Some(mac) => seen.insert(("neighbour", ours)),
                    Event::Neighbour(n) if n.state == State::Failed => {
                        seen.insert(("neighbour failed", ours))
                    }
                    Event::NeighbourRemoved(n) if n.address == ip("10.5.0.0") => {
                        seen.insert(("neighbour removed", ours))
                    }
                    Event::Fdb(_) => seen.insert(("FDB", ours)),
                    Event::FdbRemoved(_) => seen.insert(("FDB removed", ours)),
                    Event::LinkRemoved { .. } => break,
                    _ => false,
                };
            }
            // A new IPv6 address is told a moment later, and not if it is gone by then.
            seen.remove(&("IPv6 address", None));
            let expected = BTreeSet::from([
                ("link", None),
                ("IPv4 address", Some(true)),
                ("IPv4 address removed", Some(true)),
                ("IPv6 address removed", None),
                ("IPv4 route", Some(true)),
                ("IPv4 route removed", Some(true)),
                ("IPv6 route", Some(true)),
                ("IPv6 route removed", Some(true)),
                ("neighbour", Some(true)),
                ("neighbour failed", Some(true)),
                ("neighbour removed", None),
                ("FDB", None),
                ("FDB removed", None),
            ]);
            assert_eq!(seen, expected);
        });
    });
}

#[test]
fn forwarding_that_is_switched_off_or_on_is_told() {
    in_new_netns(|| {
        let index = bridge(&mut socket(), "podwire0").index;
        on_tokio(async {
            let topics =
                Topics { netconf: true, links: false, addresses: false, routes: false, neighbours: false };
            let mut events = Events::open(topics).expect("listening");
            let steps = [
                ("net/ipv4/ip_forward", "1", Family::V4, Scope::All, Some(true), None),
                ("net/ipv4/ip_forward", "0", Family::V4, Scope::All, Some(false), None),
                ("net/ipv6/conf/all/forwarding", "1", Family::V6, Scope::All, Some(true), None),
                ("net/ipv6/conf/all/forwarding", "0", Family::V6, Scope::All, Some(false), None),
                ("net/ipv4/conf/podwire0/rp_filter", "2", Family::V4, Scope::Link(index), None, Some(2)),
                ("net/ipv4/conf/podwire0/rp_filter", "1", Family::V4, Scope::Link(index), None, Some(1)),
            ];
            for (name, value, family, scope, forwarding, rp_filter) in steps {
                std::fs::write(format!("/proc/sys/{name}"), value).expect(name);
                let expected = Event::Netconf(Netconf { family, scope, forwarding, rp_filter });
                until(&mut events, |event| (*event == expected).then_some(())).await;
            }
        });
    });
}
