//! Namespaces to test in.

use ipnetwork::IpNetwork;
use podwire_kernel::link::{self, BridgeSpec, Link, LinkChange, LinkRef, VethSpec};
pub(crate) use podwire_kernel::testing::{enter_new_netns, eventually, in_new_netns, new_netns, socket};
use podwire_kernel::{MacAddr, Netlink, Netns};

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

pub(crate) fn veth<'a>(name: &'a str, pod: &'a Netns) -> VethSpec<'a> {
    use std::os::fd::AsFd;
    VethSpec {
        name,
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: "eth0",
        peer_netns: pod.as_fd(),
        peer_mac: None,
    }
}

pub(crate) fn up() -> LinkChange {
    LinkChange { up: Some(true), ..LinkChange::default() }
}

pub(crate) fn bridge(netlink: &mut Netlink, name: &str) -> Link {
    let mac = MacAddr([2, 0, 0, 0, 0, 0xfe]);
    let spec =
        BridgeSpec { name, mac, mtu: None, mcast_snooping: None, mcast_querier: None, vlan_filtering: None };
    let mut requests = vec![link::create_bridge(&spec)];
    requests.extend(link::change(LinkRef::Name(name), &up()));
    netlink.apply_then_link(&requests, LinkRef::Name(name)).expect("a bridge").expect("it is there")
}

/// A veth pair from here into a new namespace, both ends up; this end `left`, that one `eth0`.
pub(crate) fn pair(netlink: &mut Netlink, left: &str) -> (Link, Netns) {
    let pod = new_netns();
    let mut requests = vec![link::create_veth(&veth(left, &pod))];
    requests.extend(link::change(LinkRef::Name(left), &up()));
    let link = netlink.apply_then_link(&requests, LinkRef::Name(left)).expect("a veth").expect("it is there");
    pod.run(|| socket().apply(&link::change(LinkRef::Name("eth0"), &up())).expect("eth0 up")).expect("enter");
    (link, pod)
}
