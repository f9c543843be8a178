//! What the kernel tells by itself.

use std::time::Duration;

use podwire_kernel::addr;
use podwire_kernel::events::{Event, Events, Topics};
use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::route::{self, Nexthop, Route};

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
