//! Namespaces to test in, attachments to test with, and other eyes to look with.

use std::panic;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use podwire_attach::{
    Attachment, IngressPolicy, Masquerade, Owner, OwnerId, PodAddress, PortMapping, Protocol, SourceCheck,
    Traffic,
};
use podwire_kernel::link::{self, LOOPBACK, LinkChange, LinkRef};
use podwire_kernel::nft::Nft;
use podwire_kernel::{MacAddr, Netlink};

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
fn enter_new_netns() {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!(
            "cannot make a network namespace: {errno}; these tests need CAP_SYS_ADMIN and CAP_NET_ADMIN (root)"
        );
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    socket().apply(&link::change(LinkRef::Index(LOOPBACK), &up)).expect("lo up");
}

pub(crate) fn socket() -> Netlink {
    Netlink::open().expect("a netlink socket")
}

pub(crate) fn nft() -> Nft {
    Nft::open().expect("a socket for nftables")
}

/// What a program prints, run in the calling thread's namespace.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

pub(crate) fn owner(container: &str) -> Owner {
    Owner::new("net", container, "eth0")
}

pub(crate) fn id(container: &str) -> OwnerId {
    owner(container).id()
}

pub(crate) fn port(
    protocol: Protocol,
    host_ip: Option<&str>,
    host_port: u16,
    container_port: u16,
) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().expect("an address"));
    PortMapping { protocol, host_ip, host_port, container_port }
}

/// A pod with these addresses on bridge br0 that is masqueraded.
pub(crate) fn pod(container: &str, addresses: &[&str]) -> Attachment {
    let address = |text: &&str| PodAddress { address: text.parse().expect("a network"), gateway: None };
    let owner = owner(container);
    let inside = ["10.1.0.0/16", "fd01::/32"].map(|text| text.parse().expect("a network"));
    let traffic = Traffic {
        device: "br0".to_owned(),
        host_end: owner.link_name(),
        masquerade: Some(Masquerade { inside: inside.into(), fully_random: true }),
        ..Traffic::default()
    };
    Attachment {
        link: Some(owner.link_name()),
        owner,
        addresses: addresses.iter().map(address).collect(),
        mac: None,
        bridge: Some("br0".to_owned()),
        netns: "/run/netns/pod".to_owned(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: Some(traffic),
    }
}

/// The `number`-th pod, with everything that has rules.
pub(crate) fn full_pod(number: u8) -> Attachment {
    let mut pod =
        pod(&format!("c{number}"), &[&format!("10.1.0.{number}/24"), &format!("fd01::{number:x}/64")]);
    let traffic = pod.traffic.as_mut().expect("traffic");
    traffic.ports = vec![
        port(Protocol::Tcp, None, 8000 + u16::from(number), 80),
        port(Protocol::Udp, Some("192.0.2.1"), 8000 + u16::from(number), 53),
    ];
    traffic.port_access.conditions_v4 = vec!["ip saddr != 203.0.113.0/24".to_owned()];
    traffic.ingress = IngressPolicy::Isolated;
    traffic.source_check = Some(SourceCheck { mac: MacAddr([2, 0, 0, 0, 0, number]), addresses: true });
    pod
}

/// The pod with these host ports.
pub(crate) fn with_ports(mut pod: Attachment, ports: &[PortMapping]) -> Attachment {
    pod.traffic.as_mut().expect("traffic").ports = ports.to_vec();
    pod
}

/// A link of that name, up: the pods' bridge, as far as rules are concerned.
pub(crate) fn bridge(name: &str) {
    let mac = MacAddr([2, 0, 0, 0, 0, 0xfe]);
    let spec = link::BridgeSpec {
        name,
        mac,
        mtu: None,
        mcast_snooping: None,
        mcast_querier: None,
        vlan_filtering: None,
    };
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let mut requests = vec![link::create_bridge(&spec)];
    requests.extend(link::change(LinkRef::Name(name), &up));
    socket().apply(&requests).expect("a bridge");
}
