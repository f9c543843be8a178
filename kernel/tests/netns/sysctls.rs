//! Sysctls, and the default route that IPv6 forwarding would cost.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};
use podwire_kernel::link::{self, Link, LinkChange, LinkRef};
use podwire_kernel::route::{PROTOCOL_RA, RouteFilter};
use podwire_kernel::{Family, Netlink, Netns, addr, sysctl};

use crate::lab::{eventually, in_new_netns, network, pair};

#[test]
fn sysctls_are_those_of_the_threads_namespace_and_written_only_if_they_differ() {
    in_new_netns(|| {
        const NAME: &str = "net/ipv4/ip_forward";
        assert_eq!(sysctl::read(NAME).expect("read"), "0");
        assert!(sysctl::write(NAME, "1").expect("written"));
        assert!(!sysctl::write(NAME, "1").expect("left alone"));
        assert_eq!(sysctl::read(NAME).expect("read"), "1");
        let other = crate::lab::new_netns();
        assert_eq!(other.run(|| sysctl::read(NAME).expect("read")).expect("enter"), "0");

        let error = sysctl::write(NAME, "many").expect_err("no number");
        assert_eq!(
            error.to_string(),
            "write sysctl net/ipv4/ip_forward: Invalid argument (EINVAL): value \"many\""
        );
        assert!(sysctl::read("net/ipv4/conf/nobody/forwarding").expect_err("no such link").is_missing());
        for name in ["net/ipv4/conf/../../../../etc/hostname", "/etc/hostname", "", "net/./../x"] {
            let error = sysctl::read(name).expect_err("not a name");
            assert!(error.to_string().ends_with("not a name below /proc/sys"), "{error}");
        }
    });
}

#[test]
fn a_links_name_may_have_dots() {
    in_new_netns(|| {
        let mut netlink = crate::lab::socket();
        let (_link, _pod) = pair(&mut netlink, "eth0.7.x");
        assert!(sysctl::write("net/ipv4/conf/eth0.7.x/arp_notify", "1").expect("written"));
        assert_eq!(sysctl::read("net/ipv4/conf/eth0.7.x/arp_notify").expect("read"), "1");
    });
}

/// A link with a default route from a real router advertisement, sent by the other end.
fn advertised(netlink: &mut Netlink) -> (Link, Netns) {
    let (link, router) = pair(netlink, "uplink");
    let advertise = || {
        let mut netlink = crate::lab::socket();
        let eth0 = netlink.link(LinkRef::Name("eth0")).expect("asked").expect("there");
        // Usable at once, instead of the one that DAD keeps waiting. From the second time on it is there.
        let _ = netlink.apply(&[addr::add(eth0.index, network("fe80::1/64"), true)]);
        advertise(eth0.index);
    };
    // Again and again, as routers do: the link may not listen yet.
    eventually("the advertised route", || {
        router.run(advertise).expect("enter");
        learned(netlink, &link).then_some(())
    });
    (link, router)
}

/// ICMPv6 type 134 (RFC 4861, section 4.2): a default router for 1,800 s.
fn advertise(ifindex: u32) {
    let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)
        .expect("a raw socket");
    // Receivers drop what may have crossed a router.
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).expect("hop limit");
    let from = SockaddrIn6::from(SocketAddrV6::new("fe80::1".parse().expect("an address"), 0, 0, ifindex));
    nix::sys::socket::bind(socket.as_raw_fd(), &from).expect("the router's address");
    let all_nodes = Ipv6Addr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]);
    let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, ifindex));
    let lifetime = 1800_u16.to_be_bytes();
    // The kernel fills in the checksum.
    let packet = [134, 0, 0, 0, 64, 0, lifetime[0], lifetime[1], 0, 0, 0, 0, 0, 0, 0, 0];
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).expect("sent");
}

fn learned(netlink: &mut Netlink, link: &Link) -> bool {
    let filter =
        RouteFilter { protocol: Some(PROTOCOL_RA), oif: Some(link.index), ..RouteFilter::main(Family::V6) };
    let routes = netlink.routes(&filter).expect("listed");
    routes.iter().any(|route| route.destination.prefix() == 0)
}

#[test]
fn a_default_route_from_a_router_advertisement_outlives_forwarding() {
    in_new_netns(|| {
        let mut netlink = crate::lab::socket();
        // Another link without such a route is left alone.
        let (quiet, _far) = pair(&mut netlink, "quiet");
        let (link, _router) = advertised(&mut netlink);
        assert!(sysctl::enable_forwarding(&mut netlink, Family::V6).expect("switched on"));
        assert_eq!(sysctl::read("net/ipv6/conf/all/forwarding").expect("read"), "1");
        assert!(learned(&mut netlink, &link), "the default route is gone");
        assert_eq!(sysctl::read("net/ipv6/conf/uplink/accept_ra").expect("read"), "2");
        assert_eq!(sysctl::read(&format!("net/ipv6/conf/{}/accept_ra", quiet.name)).expect("read"), "1");
        assert!(!sysctl::enable_forwarding(&mut netlink, Family::V6).expect("it is on"));
        assert!(sysctl::enable_forwarding(&mut netlink, Family::V4).expect("switched on"));
        assert!(!sysctl::enable_forwarding(&mut netlink, Family::V4).expect("it is on"));
    });
}

/// What the test above guards against. If the kernel ever stops to do this, the care can go.
#[test]
fn forwarding_alone_costs_the_advertised_default_route() {
    in_new_netns(|| {
        let mut netlink = crate::lab::socket();
        let (link, _router) = advertised(&mut netlink);
        assert!(sysctl::write("net/ipv6/conf/all/forwarding", "1").expect("written"));
        assert!(!learned(&mut netlink, &link));
    });
}

/// A program such as systemd-networkd listens to advertisements itself (accept_ra 0) and makes routes of the same
/// protocol: the kernel keeps them, and must not begin to listen too.
#[test]
fn a_link_that_user_space_looks_after_is_left_alone() {
    in_new_netns(|| {
        use podwire_kernel::route::{self, Nexthop, Route};
        let mut netlink = crate::lab::socket();
        let (link, _router) = pair(&mut netlink, "uplink");
        sysctl::write("net/ipv6/conf/uplink/accept_ra", "0").expect("written");
        let down_up = [LinkChange { up: Some(false), ..LinkChange::default() }, crate::lab::up()];
        for change in &down_up {
            netlink.apply(&link::change(LinkRef::Index(link.index), change)).expect("changed");
        }
        let gateway = "fe80::1".parse().ok();
        let mut route = Route::new(network("::/0"), vec![Nexthop { gateway, oif: Some(link.index) }]);
        route.protocol = PROTOCOL_RA;
        netlink.apply(&[route::add(&route)]).expect("added");
        sysctl::enable_forwarding(&mut netlink, Family::V6).expect("switched on");
        assert!(learned(&mut netlink, &link));
        assert_eq!(sysctl::read("net/ipv6/conf/uplink/accept_ra").expect("read"), "0");
    });
}
