//! Namespaces to test in.

use std::panic;
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, unshare};
use podwire_kernel::link::{self, BridgeSpec, LOOPBACK, Link, LinkChange, LinkRef, VethSpec};
use podwire_kernel::{MacAddr, Netlink, Netns};

/// Runs a test on a thread with a network namespace of its own, in which the loopback link is up.
pub(crate) fn in_new_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new()
        .name(thread::current().name().unwrap_or("test").to_owned())
        .spawn(|| {
            enter_new_netns();
            test()
        })
        .expect("a thread");
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

#[expect(clippy::disallowed_methods, reason = "called on threads of the tests' own")]
pub(crate) fn enter_new_netns() {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!(
            "cannot make a network namespace: {errno}; these tests need CAP_SYS_ADMIN and CAP_NET_ADMIN (root)"
        );
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    socket().apply(&link::change(LinkRef::Index(LOOPBACK), &up)).expect("lo up");
}

/// A new namespace, kept by the file alone.
pub(crate) fn new_netns() -> Netns {
    in_new_netns(|| Netns::current().expect("/proc"))
}

pub(crate) fn socket() -> Netlink {
    Netlink::open().expect("a netlink socket")
}

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

/// Waits for a state that the kernel reaches by itself, 5 s at most.
#[expect(clippy::disallowed_methods, reason = "the kernel's timers send no event for these states")]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
