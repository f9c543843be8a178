//! Namespaces to test in, attachments to test with, and other eyes to look with.

use podwire_attach::{
    Attachment, IngressPolicy, Masquerade, Owner, OwnerId, PodAddress, PortMapping, Protocol, SourceCheck,
    Traffic,
};
use podwire_kernel::MacAddr;
use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::nft::Nft;
pub(crate) use podwire_kernel::testing::{in_new_netns, run, socket};

pub(crate) fn nft() -> Nft {
    Nft::open().expect("a socket for nftables")
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
