use super::*;
use crate::plan::{self, Bridge, BridgeAddress, Forwarding, Port};
use crate::{
    Attachment, IngressPolicy, Owner, PodAddress, PortMapping, Protocol, RateLimit, Traffic, Tuning,
};
use podwire_kernel::qdisc::TokenBucketState;

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn wanted() -> Wanted {
    let owner = Owner::new("net", "c1", "eth0");
    let address = |address: &str, gateway: &str| PodAddress {
        address: network(address),
        gateway: Some(gateway.parse().expect("an address")),
    };
    let route = |destination: &str, gateway: &str| PodRoute {
        destination: network(destination),
        gateway: Some(gateway.parse().expect("an address")),
        table: None,
        scope: None,
        priority: None,
        mtu: None,
        advmss: None,
    };
    Wanted {
        mac: plan::pod_mac(&owner),
        attachment: Attachment {
            link: Some(owner.link_name()),
            owner,
            addresses: vec![address("10.1.0.2/24", "10.1.0.1"), address("fd00::2/64", "fd00::1")],
            mac: None,
            bridge: Some("cni0".into()),
            netns: "/run/netns/x".into(),
            netns_identity: None,
            pod: None,
            runtime: None,
            given: Vec::new(),
            traffic: None,
        },
        bridge: Bridge {
            name: "cni0".into(),
            mac: plan::bridge_mac("node", "cni0"),
            mtu: None,
            gateways: vec![network("10.1.0.1/24"), network("fd00::1/64")],
            force_address: false,
            promiscuous: false,
        },
        port: Port { hairpin: true, isolated: false },
        mtu: Some(1450),
        routes: vec![route("0.0.0.0/0", "10.1.0.1"), route("::/0", "fd00::1")],
        dad: false,
        pod_link_down: false,
        announce: false,
        forwarding: Forwarding { v4: true, v6: true },
        tuning: Tuning::default(),
        vlan: None,
    }
}

/// What the kernel shows right after ADD.
fn intact(wanted: &Wanted) -> ObservedAttachment {
    let owner = &wanted.attachment.owner;
    let addresses: Vec<IpNetwork> = wanted.attachment.addresses.iter().map(|a| a.address).collect();
    ObservedAttachment {
        host: Some(HostEnd {
            index: 9,
            peer_index: Some(2),
            alias: Some(alias::format(owner, &addresses)),
            up: true,
            mtu: 1450,
            controller: Some(5),
            hairpin: Some(true),
            isolated: Some(false),
        }),
        bridge: Some(ObservedBridge {
            index: 5,
            kind: Some("bridge".into()),
            up: true,
            promiscuous: false,
            mac: Some(wanted.bridge.mac),
            addresses: wanted
                .bridge
                .gateways
                .iter()
                .map(|&address| BridgeAddress { address, ours: true })
                .collect(),
            vlan_filtering: None,
        }),
        pod: Some(PodEnd {
            index: 2,
            peer_index: Some(9),
            mac: Some(wanted.mac),
            mtu: 1450,
            up: true,
            addresses: [addresses, vec![network("fe80::1/64")]].concat(),
            routes: wanted.routes.iter().map(|route| (route.destination, route.gateway)).collect(),
        }),
        forwarding: Forwarding { v4: true, v6: true },
        shaping: ObservedShaping::default(),
        tuning: wanted.tuning.clone(),
    }
}

#[test]
fn limits_and_tuned_settings_are_part_of_an_attachment() {
    let mut wanted = wanted();
    let limit = RateLimit { rate: 8_000_000, burst: None };
    wanted.attachment.traffic =
        Some(Traffic { shaping: Shaping { to_pod: Some(limit), from_pod: None }, ..Traffic::default() });
    wanted.tuning.tx_queue_length = Some(5);
    let mut observed = intact(&wanted);
    let shaped = Drift::Shaping(wanted.attachment.owner.link_name(), "to the pod");
    assert_eq!(drift(&wanted, &observed), [shaped]);
    let bucket = shaping::bucket(&limit, 1450);
    let burst_ticks = u32::try_from(u64::from(bucket.burst) * 1_000_000_000 / bucket.rate / 64).unwrap();
    observed.shaping.to_pod = Some(TokenBucketState { rate: bucket.rate, burst_ticks, limit: bucket.limit });
    assert_eq!(drift(&wanted, &observed), []);
    observed.tuning.tx_queue_length = Some(1000);
    assert_eq!(drift(&wanted, &observed), [Drift::TxQueueLength("eth0".into(), 5, Some(1000))]);
    observed.pod = None;
    assert_eq!(drift(&wanted, &observed), [Drift::NoPodLink("eth0".into())]);
}

#[test]
fn a_port_behaves_as_its_pods_traffic_asks() {
    let mut wanted = wanted();
    wanted.port = Port::default();
    let port = PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port: 80, container_port: 80 };
    wanted.attachment.traffic =
        Some(Traffic { ports: vec![port], ingress: IngressPolicy::Isolated, ..Traffic::default() });
    assert_eq!(wanted.port(), Port { hairpin: true, isolated: true });
    let name = wanted.attachment.owner.link_name();
    assert_eq!(drift(&wanted, &intact(&wanted)), [Drift::PortSetting(name, "port isolation", true)]);
}

#[test]
fn an_intact_attachment_has_no_drift() {
    assert_eq!(drift(&wanted(), &intact(&wanted())), []);
}

#[test]
fn each_kind_of_tampering_is_named() {
    type Tamper = fn(&mut ObservedAttachment);
    let cases: [(Tamper, &str); 17] = [
        (|o| o.bridge = None, "bridge cni0 is missing"),
        (|o| o.bridge.as_mut().unwrap().kind = Some("veth".into()), "cni0 is not a bridge"),
        (|o| o.bridge.as_mut().unwrap().up = false, "bridge cni0 is down"),
        (
            |o| o.bridge.as_mut().unwrap().addresses.truncate(1),
            "bridge cni0 lacks the gateway address fd00::1/64",
        ),
        (|o| o.forwarding.v4 = false, "net.ipv4.ip_forward is 0, the node does not forward"),
        (|o| o.forwarding.v6 = false, "net.ipv6.conf.all.forwarding is 0, the node does not forward"),
        (|o| o.host = None, "host link LINK is missing"),
        (|o| o.host.as_mut().unwrap().alias = None, "host link LINK does not carry this attachment's alias"),
        (|o| o.host.as_mut().unwrap().up = false, "host link LINK is down"),
        (|o| o.host.as_mut().unwrap().controller = None, "host link LINK is not a port of bridge cni0"),
        (|o| o.host.as_mut().unwrap().hairpin = Some(false), "hairpin mode of bridge port LINK is off"),
        (|o| o.pod = None, "interface eth0 is missing in the container"),
        (
            |o| o.pod.as_mut().unwrap().peer_index = Some(77),
            "interface eth0 in the container is not the peer of our host link",
        ),
        (|o| o.pod.as_mut().unwrap().up = false, "interface eth0 is down in the container"),
        (|o| o.pod.as_mut().unwrap().mtu = 1500, "interface eth0 has MTU 1500 instead of 1450"),
        (
            |o| o.pod.as_mut().unwrap().addresses.retain(|a| !a.is_ipv4()),
            "address 10.1.0.2/24 is missing on interface eth0",
        ),
        (
            |o| o.pod.as_mut().unwrap().routes.truncate(1),
            "route to ::/0 via fd00::1 is missing in the container",
        ),
    ];
    let wanted = wanted();
    for (tamper, expected) in cases {
        let mut observed = intact(&wanted);
        tamper(&mut observed);
        let named: Vec<String> = drift(&wanted, &observed).iter().map(ToString::to_string).collect();
        let expected = expected.replace("LINK", &wanted.attachment.owner.link_name());
        assert!(named.contains(&expected), "{expected}: {named:?}");
    }
}

#[test]
fn a_route_that_a_later_plugin_moved_to_another_table_is_tolerated() {
    // The observation lists routes of all tables: what counts is destination and gateway.
    let wanted = wanted();
    let mut observed = intact(&wanted);
    let pod = observed.pod.as_mut().expect("there");
    pod.routes.push((network("10.9.0.0/16"), None));
    assert_eq!(drift(&wanted, &observed), []);
}

#[test]
fn a_changed_mac_is_named_with_both() {
    let wanted = wanted();
    let mut observed = intact(&wanted);
    observed.pod.as_mut().expect("there").mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    assert_eq!(
        drift(&wanted, &observed),
        [Drift::PodMac("eth0".into(), wanted.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])))]
    );
}
