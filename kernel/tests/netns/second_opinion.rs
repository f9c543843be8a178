//! The same namespace read by podwire's decoder and by rtnetlink's: two implementations of one protocol must see
//! the same links, addresses and routes.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use podwire_kernel::link::{self, LinkRef};
use podwire_kernel::route::{self, Nexthop, Route, RouteFilter};
use podwire_kernel::{Family, addr};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::lab::{bridge, in_new_netns, network, pair, socket};

fn asked<T>(question: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
        let connection = tokio::spawn(connection);
        let answer = question(handle).await;
        connection.abort();
        answer
    })
}

#[test]
fn rtnetlink_sees_the_same_links_addresses_and_routes() {
    in_new_netns(|| {
        let mut host = socket();
        let bridge = bridge(&mut host, "br0");
        let (veth, _pod) = pair(&mut host, "left");
        let port = link::LinkChange {
            controller: Some(bridge.index),
            alias: Some("an alias".to_owned()),
            mtu: Some(1400),
            ..Default::default()
        };
        host.apply(&link::change(LinkRef::Index(veth.index), &port)).expect("a port");
        let gateway: IpAddr = "10.1.0.9".parse().expect("an address");
        let via = Route {
            priority: Some(7),
            mtu: Some(1300),
            ..Route::new(
                network("10.7.0.0/16"),
                vec![Nexthop { gateway: Some(gateway), oif: Some(bridge.index) }],
            )
        };
        host.apply(&[
            addr::add(bridge.index, network("10.1.0.1/24"), true),
            addr::add(bridge.index, network("fd00::1/64"), true),
            route::add(&via),
        ])
        .expect("addresses and a route");

        let links =
            asked(async |handle| handle.link().get().execute().try_collect::<Vec<_>>().await.expect("links"));
        let mut theirs: Vec<_> = links
            .iter()
            .map(|link| {
                let mut seen = (link.header.index, String::new(), 0, None, None);
                for attribute in &link.attributes {
                    match attribute {
                        LinkAttribute::IfName(name) => seen.1.clone_from(name),
                        LinkAttribute::Mtu(mtu) => seen.2 = *mtu,
                        LinkAttribute::Controller(index) => seen.3 = Some(*index),
                        LinkAttribute::IfAlias(alias) => seen.4 = Some(alias.clone()),
                        _ => {}
                    }
                }
                (seen, link.header.flags.contains(LinkFlags::Up))
            })
            .collect();
        let ours = host.links().expect("links").into_iter();
        let mut ours: Vec<_> =
            ours.map(|l| ((l.index, l.name, l.mtu, l.controller, l.alias), l.flags.up)).collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);

        // The kernel gives links their own link-local addresses at a time of its choosing, also between two looks.
        let lasting =
            |(_, ip, _): &(u32, IpAddr, u8)| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let addresses = asked(async |handle| {
            handle.address().get().execute().try_collect::<Vec<_>>().await.expect("addresses")
        });
        let mut theirs: Vec<_> = addresses
            .iter()
            .filter_map(|message| {
                let ip = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })?;
                Some((message.header.index, ip, message.header.prefix_len))
            })
            .filter(lasting)
            .collect();
        let ours = host.addresses(None).expect("addresses").into_iter();
        let ours = ours.map(|a| (a.ifindex, a.address.ip(), a.address.prefix()));
        let mut ours: Vec<_> = ours.filter(lasting).collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);

        let request = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let routes = asked(async |handle| {
            handle.route().get(request).execute().try_collect::<Vec<_>>().await.expect("routes")
        });
        let mut theirs: Vec<_> = routes
            .iter()
            .filter(|message| message.header.table == 254)
            .map(|message| {
                let mut seen = (String::new(), None, None);
                for attribute in &message.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(ip)) => seen.0 = ip.to_string(),
                        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => seen.1 = Some(IpAddr::V4(*ip)),
                        RouteAttribute::Priority(metric) => seen.2 = Some(*metric),
                        _ => {}
                    }
                }
                (seen.0, message.header.destination_prefix_length, seen.1, seen.2)
            })
            .collect();
        let ours = host.routes(&RouteFilter::main(Family::V4)).expect("routes").into_iter();
        let mut ours: Vec<_> = ours
            .map(|r| {
                let gateway = r.nexthops.first().and_then(|hop| hop.gateway);
                (r.destination.ip().to_string(), r.destination.prefix(), gateway, r.priority)
            })
            .collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
        assert!(ours.contains(&("10.7.0.0".to_owned(), 16, Some(gateway), Some(7))), "{ours:?}");
    });
}
