//! Routes.

use std::net::IpAddr;

use podwire_kernel::route::{self, MAIN_TABLE, Nexthop, Route, RouteFilter};
use podwire_kernel::{Family, Netlink, addr};

use crate::lab::{in_new_netns, network, pair, socket};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn via(gateway: &str, oif: u32) -> Nexthop {
    Nexthop { gateway: Some(ip(gateway)), oif: Some(oif) }
}

/// A link with 10.1.0.1/24 and fd00::1/64.
fn connected(netlink: &mut Netlink) -> u32 {
    let (link, pod) = pair(netlink, "left");
    let requests = [
        addr::add(link.index, network("10.1.0.1/24"), true),
        addr::add(link.index, network("fd00::1/64"), true),
    ];
    netlink.apply(&requests).expect("addresses");
    // The other end stays with its namespace, which the link's life now hangs on: leak it into this test.
    std::mem::forget(pod);
    link.index
}

fn find(netlink: &mut Netlink, filter: &RouteFilter, destination: &str) -> Option<Route> {
    let wanted = network(destination);
    netlink.routes(filter).expect("listed").into_iter().find(|route| route.destination == wanted)
}

#[test]
fn routes_read_back_with_all_that_was_asked_for() {
    in_new_netns(|| {
        let mut netlink = socket();
        let oif = connected(&mut netlink);
        let mut v4 = Route::new(network("10.9.0.0/16"), vec![via("10.1.0.254", oif)]);
        (v4.priority, v4.mtu, v4.advmss, v4.source) = (Some(7), Some(1400), Some(1360), Some(ip("10.1.0.1")));
        let mut v6 = Route::new(network("fd09::/32"), vec![via("fd00::fe", oif)]);
        (v6.priority, v6.mtu, v6.advmss) = (Some(9), Some(1300), Some(1240));
        let direct = Route::new(network("10.8.0.0/16"), vec![Nexthop { gateway: None, oif: Some(oif) }]);
        let mut onlink = Route::new(network("10.7.0.0/16"), vec![via("192.0.2.1", oif)]);
        onlink.onlink = true;
        let mut elsewhere = Route::new(network("0.0.0.0/0"), vec![via("10.1.0.254", oif)]);
        (elsewhere.table, elsewhere.protocol) = (1000, 99);
        let mixed = Route::new(network("10.6.0.0/16"), vec![via("fd00::fe", oif)]);
        let mut blackhole = Route::new(network("10.5.0.0/16"), vec![]);
        (blackhole.kind, blackhole.scope) = (6, 0);

        let all = [&v4, &v6, &direct, &onlink, &elsewhere, &mixed, &blackhole];
        let requests: Vec<_> = all.iter().map(|route| route::add(route)).collect();
        netlink.apply(&requests).expect("added");
        for expected in all {
            let filter = RouteFilter { table: Some(expected.table), ..RouteFilter::main(expected.family()) };
            let found = find(&mut netlink, &filter, &expected.destination.to_string());
            let mut found = found.unwrap_or_else(|| panic!("{expected} is missing"));
            if expected.priority.is_none() {
                found.priority = None;
            }
            assert_eq!(found, *expected);
        }

        let ours = RouteFilter { family: Family::V4, table: None, oif: Some(oif), protocol: Some(99) };
        assert_eq!(netlink.routes(&ours).expect("listed"), [elsewhere.clone()]);
        let other = RouteFilter { oif: Some(1), ..ours };
        assert_eq!(netlink.routes(&other).expect("listed"), []);
        let nowhere = RouteFilter { table: Some(31_337), ..RouteFilter::main(Family::V4) };
        assert_eq!(netlink.routes(&nowhere).expect("a table that is not there is empty"), []);

        let error = netlink.apply(&[route::add(&v4)]).expect_err("there already");
        assert!(error.is_exists(), "{error}");
        let started =
            format!("add route 10.9.0.0/16 via 10.1.0.254 dev {oif} metric 7: File exists (EEXIST)");
        assert!(error.to_string().starts_with(&started), "{error}");
        v4.mtu = Some(1300);
        netlink.apply(&[route::replace(&v4)]).expect("replaced");
        assert_eq!(find(&mut netlink, &RouteFilter::main(Family::V4), "10.9.0.0/16"), Some(v4));

        let removals: Vec<_> = [&v6, &elsewhere].iter().map(|route| route::remove(route)).collect();
        netlink.apply(&removals).expect("removed");
        let error = netlink.apply(&removals).expect_err("gone");
        assert!(error.is_missing(), "{error}");
    });
}

#[test]
fn two_gateways_for_one_destination_share_the_traffic() {
    in_new_netns(|| {
        let mut netlink = socket();
        let oif = connected(&mut netlink);
        for (destination, gateways) in
            [("10.9.0.0/16", ["10.1.0.2", "10.1.0.3"]), ("fd09::/32", ["fd00::2", "fd00::3"])]
        {
            let nexthops: Vec<_> = gateways.iter().map(|gateway| via(gateway, oif)).collect();
            let route = Route::new(network(destination), nexthops.clone());
            netlink.apply(&[route::add(&route)]).expect("added");
            let filter = RouteFilter::main(route.family());
            let found = find(&mut netlink, &filter, destination).expect("there");
            assert_eq!(found.nexthops, nexthops);
            assert_eq!(found.table, MAIN_TABLE);
            let one = Route { nexthops: vec![nexthops[1]], ..route };
            netlink.apply(&[route::replace(&one)]).expect("replaced");
            assert_eq!(find(&mut netlink, &filter, destination).expect("there").nexthops, [nexthops[1]]);
        }
    });
}

#[test]
fn host_bits_do_not_make_a_route_fail_and_a_link_can_be_left_to_the_kernel() {
    in_new_netns(|| {
        let mut netlink = socket();
        let oif = connected(&mut netlink);
        let hop = Nexthop { gateway: Some(ip("10.1.0.9")), oif: None };
        netlink.apply(&[route::add(&Route::new(network("10.9.1.2/16"), vec![hop]))]).expect("added");
        let found = find(&mut netlink, &RouteFilter::main(Family::V4), "10.9.0.0/16").expect("there");
        assert_eq!(found.nexthops, [via("10.1.0.9", oif)]);
    });
}
