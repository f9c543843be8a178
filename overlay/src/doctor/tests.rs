use podwire_kernel::link::LinkFlags;
use podwire_kernel::nft;
use podwire_kernel::route::Nexthop;

use super::*;
use crate::cluster::{NodeRecord, Vtep};
use crate::status::{Notice, PeerState, ProbeStatus, StoreStatus};
use crate::terminal::Style;

fn link(index: u32, name: &str, mtu: u32) -> Link {
    let flags = LinkFlags { up: true, running: true, ..LinkFlags::default() };
    Link { index, name: name.to_owned(), mtu, flags, ..Link::default() }
}

fn address(ifindex: u32, text: &str) -> Address {
    serde_address(ifindex, text.parse().unwrap())
}

fn serde_address(ifindex: u32, address: IpNetwork) -> Address {
    Address { ifindex, address, flags: Default::default(), scope: 0, protocol: 0 }
}

fn route(to: &str, oif: u32, protocol: u8, metric: u32) -> Route {
    let nexthop = Nexthop { gateway: None, oif: Some(oif) };
    let mut route = Route::new(to.parse().unwrap(), vec![nexthop]);
    (route.protocol, route.priority) = (protocol, Some(metric));
    route
}

fn peer(name: &str, subnet: &str, own: &str) -> PeerStatus {
    PeerStatus {
        record: NodeRecord {
            name: name.to_owned(),
            addresses: vec![own.parse().unwrap()],
            subnets: vec![subnet.parse().unwrap()],
            ..NodeRecord::default()
        },
        is_self: false,
        is_present: None,
        state: PeerState::Tunnel,
        paths: Vec::new(),
        problems: Vec::new(),
        probes: Vec::new(),
    }
}

/// A node on which all is well.
fn well() -> Facts {
    let mut device = link(4, "podwire.1", 1450);
    device.alias = Some(DEVICE_ALIAS.to_owned());
    device.kind = Some("vxlan".to_owned());
    device.mac = Some("02:00:00:00:00:01".parse().unwrap());
    device.vxlan = Some(Vxlan::new(1, 8472, Some("192.168.0.1".parse().unwrap())));
    let mut bridge = link(3, "podwire0", 1500);
    bridge.kind = Some("bridge".to_owned());
    let mut pod = link(5, "pw0123456789abc", 1450);
    pod.controller = Some(3);
    let mut own = peer("a", "10.244.1.0/24", "192.168.0.1");
    (own.is_self, own.state) = (true, PeerState::Own);
    let encapsulation = Default::default();
    own.record.receives = vec![Vtep { encapsulation, mac: "02:00:00:00:00:01".parse().unwrap(), mac6: None }];
    let config = r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24}]}"#;
    let status = Status { ready: true, store: Some(StoreStatus::default()), ..Status::default() };
    let sysctls = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/podwire.1/rp_filter", "2"),
        ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ("net/ipv4/ip_local_reserved_ports", ""),
    ];
    Facts {
        status: Some(status),
        peers: vec![own, peer("b", "10.244.2.0/24", "192.168.0.2")],
        config: serde_json::from_str(config).unwrap(),
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        links: vec![link(2, "eth0", 1500), bridge, device, pod],
        addresses: vec![
            address(2, "192.168.0.1/24"),
            address(3, "10.244.1.1/24"),
            address(4, "10.244.1.0/32"),
        ],
        routes: vec![
            route("0.0.0.0/0", 2, 3, 100),
            route("192.168.0.0/24", 2, 2, 0),
            route("10.244.1.0/24", 3, 2, 0),
            route("10.244.2.0/24", 4, 0x70, 3),
        ],
        bridge: "podwire0".to_owned(),
        ruleset: Some(Ruleset::default()),
        sysctls: sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        release: "6.1.0-18-amd64".to_owned(),
        ..Facts::default()
    }
}

fn codes(facts: &Facts) -> Vec<String> {
    let found = examine(facts);
    found.iter().filter(|finding| is_problem(finding)).map(|finding| finding.code.clone()).collect()
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(examine(&well()), []);
    assert_eq!(text(&[], Style::default()), "nothing is wrong\n");
}

#[test]
fn each_planted_problem_is_found_alone() {
    type Plant = fn(&mut Facts);
    let drop_policy: Plant = |facts| {
        let base = nft::Base {
            kind: nft::ChainKind::Filter,
            hook: nft::Hook::Forward,
            priority: 0,
            policy: nft::Policy::Drop,
            device: None,
        };
        let chain = nft::Chain { name: "FORWARD".to_owned(), base: Some(base), comment: None };
        let (family, table) = (nft::Family::Ip, "filter".to_owned());
        facts.ruleset = Some(Ruleset {
            chains: vec![nft::Found { family, table, handle: 1, object: chain }],
            ..Ruleset::default()
        });
    };
    let input_drop: Plant = |facts| {
        let base = nft::Base {
            kind: nft::ChainKind::Filter,
            hook: nft::Hook::Input,
            priority: 0,
            policy: nft::Policy::Drop,
            device: None,
        };
        let chain = nft::Chain { name: "input".to_owned(), base: Some(base), comment: None };
        let (family, table) = (nft::Family::Inet, "firewall".to_owned());
        facts.ruleset = Some(Ruleset {
            chains: vec![nft::Found { family, table, handle: 1, object: chain }],
            ..Ruleset::default()
        });
    };
    let cases: [(&str, Plant); 32] = [
        ("agent-down", |facts| facts.status = None),
        ("agent-store", |facts| {
            let notice =
                Notice { code: "store".to_owned(), message: "etcd is gone".to_owned(), ..Notice::default() };
            facts.status.as_mut().unwrap().problems.push(notice);
        }),
        ("not-ready", |facts| facts.status.as_mut().unwrap().ready = false),
        ("refuses-pods", |facts| facts.status.as_mut().unwrap().refuse = Some("fenced".to_owned())),
        ("record-left-out", |facts| facts.peers[1].state = PeerState::LeftOut),
        ("no-path", |facts| facts.peers[1].state = PeerState::Unreachable),
        ("peer-unreachable", |facts| {
            let family = crate::cluster::IpFamily::Ipv4;
            let probe =
                serde_json::from_value(serde_json::json!({"node": "b", "family": family, "ok": false}));
            facts.peers[1].probes = vec![serde_json::from_value::<ProbeStatus>(probe.unwrap()).unwrap()];
        }),
        ("rival-conflist", |facts| facts.rivals = vec!["/etc/cni/net.d/05-flannel.conflist".to_owned()]),
        ("clock", |facts| facts.now = Some(SystemTime::UNIX_EPOCH)),
        ("clock", |facts| {
            let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
            facts.now = Some(now);
            facts.newest_file = Some(now + std::time::Duration::from_secs(4000));
        }),
        ("no-device", |facts| {
            facts.links.remove(2);
            facts.addresses.truncate(2);
        }),
        ("device-down", |facts| facts.links[2].flags.up = false),
        ("device-changed", |facts| facts.links[2].vxlan.as_mut().unwrap().learning = true),
        ("vtep-mac", |facts| facts.links[2].mac = Some("02:00:00:00:00:09".parse().unwrap())),
        ("foreign-vxlan", |facts| {
            let mut foreign = link(9, "flannel.1", 1450);
            foreign.vxlan = Some(Vxlan::new(1, 8472, None));
            facts.links.push(foreign);
        }),
        ("mtu", |facts| facts.links[0].mtu = 1400),
        ("foreign-route", |facts| facts.routes.push(route("10.244.2.128/25", 2, 3, 0))),
        ("foreign-route", |facts| facts.routes.push(route("10.244.2.0/24", 2, 186, 2))),
        ("address-in-range", |facts| facts.addresses.push(address(2, "10.244.9.9/32"))),
        ("bridge-address", |facts| {
            facts.addresses.remove(1);
        }),
        ("bridge-address", |facts| facts.addresses.push(address(3, "10.88.0.1/16"))),
        ("bridge-down", |facts| facts.links[1].flags.up = false),
        ("ephemeral-port", |facts| {
            facts.sysctls.insert("net/ipv4/ip_local_port_range".to_owned(), "1024 65535".to_owned());
        }),
        ("forward-drop", drop_policy),
        ("tunnel-drop", input_drop),
        ("probe-drop", |facts| {
            // Another port than the tunnel's: what comes by its device alone is dropped.
            let base = nft::Base {
                kind: nft::ChainKind::Filter,
                hook: nft::Hook::Input,
                priority: 0,
                policy: nft::Policy::Drop,
                device: None,
            };
            let chain = nft::Chain { name: "input".to_owned(), base: Some(base), comment: None };
            let (family, table) = (nft::Family::Inet, "firewall".to_owned());
            facts.ruleset = Some(Ruleset {
                chains: vec![nft::Found { family, table, handle: 1, object: chain }],
                ..Ruleset::default()
            });
            // A tunnel whose other end is not known: nothing can be said of it.
            facts.peers[1].record.addresses.clear();
            facts.status.as_mut().unwrap().probe_port = Some(8473);
        }),
        ("forward-drop-legacy", |facts| facts.legacy_drops = vec![Family::V4]),
        ("forwarding", |facts| {
            facts.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
        }),
        ("rp-filter", |facts| {
            facts.sysctls.insert("net/ipv4/conf/podwire.1/rp_filter".to_owned(), "1".to_owned());
        }),
        ("networkd", |facts| facts.networkd = Some(Networkd::default())),
        ("accept-ra", |facts| {
            facts.routes.push(route("::/0", 2, PROTOCOL_RA, 1024));
            facts.sysctls.insert("net/ipv6/conf/eth0/accept_ra".to_owned(), "1".to_owned());
        }),
        ("kernel", |facts| facts.release = "4.19.0".to_owned()),
    ];
    for (code, plant) in cases {
        let mut facts = well();
        plant(&mut facts);
        assert_eq!(codes(&facts), [code], "{:#?}", examine(&facts));
    }
}

use podwire_kernel::route::PROTOCOL_RA;

#[test]
fn what_is_no_problem_is_no_problem() {
    let mut facts = well();
    facts.networkd = Some(Networkd { manages_foreign_routes: Some(false), leaves_ours_alone: false });
    facts.sysctls.insert("net/ipv4/ip_local_port_range".to_owned(), "1024 65535".to_owned());
    facts.sysctls.insert("net/ipv4/ip_local_reserved_ports".to_owned(), "22,8000-9000".to_owned());
    facts.sysctls.insert("net/bridge/bridge-nf-call-iptables".to_owned(), "1".to_owned());
    facts.sysctls.insert("net/ipv4/conf/all/rp_filter".to_owned(), "1".to_owned());
    facts.without_offload.push("podwire.1".to_owned());
    // A less specific route does not win, nor does one with a higher metric.
    facts.routes.push(route("10.0.0.0/8", 2, 3, 0));
    facts.routes.push(route("10.244.2.0/24", 2, 186, 20));
    assert_eq!(codes(&facts), [""; 0]);
    assert_eq!(examine(&facts).len(), 2, "two notes");
}

#[test]
fn findings_are_told_with_why_and_what_to_do() {
    let mut facts = well();
    facts.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
    facts.peers[1].state = PeerState::LeftOut;
    facts.peers[1].record.name = "b\u{1b}[2J".to_owned();
    facts.peers[1].problems = vec!["it has another node's subnet".to_owned()];
    assert_eq!(
        text(&examine(&facts), Style::default()),
        "\
ERROR    net.ipv4.ip_forward is 0 [forwarding]
    why  the node passes no packet on: pods reach nobody but each other on this node
    do   sysctl -w net.ipv4.ip_forward=1; find out who set it back (the agent sets it)
warning  node b\\u{1b}[2J is left out: it has another node's subnet [record-left-out]
    why  its pods and this node's do not reach each other
    do   put its record right: restart its agent, or `podwirectl node rm b\\u{1b}[2J`
1 errors, 1 warnings
"
    );
}

/// A node of a Kubernetes cluster on which all is well.
fn kubernetes() -> Facts {
    let mut facts = well();
    facts.is_kubernetes = true;
    facts.sysctls.insert("net/bridge/bridge-nf-call-iptables".to_owned(), "1".to_owned());
    if let Some(status) = &mut facts.status {
        status.store_addresses = vec!["192.168.0.1".parse().unwrap()];
    }
    facts
}

#[test]
fn what_kubernetes_needs_is_looked_at_where_it_is_the_store() {
    assert_eq!(codes(&kubernetes()), [""; 0]);
    let mut facts = kubernetes();
    facts.sysctls.insert("net/bridge/bridge-nf-call-iptables".to_owned(), "0".to_owned());
    assert_eq!(codes(&facts), ["bridge-nf-call"]);
    facts.sysctls.remove("net/bridge/bridge-nf-call-iptables");
    assert_eq!(codes(&facts), ["bridge-nf-call"], "the module is not there");
    facts.is_kubernetes = false;
    assert_eq!(codes(&facts), [""; 0], "elsewhere it may be either");

    let mut facts = kubernetes();
    if let Some(status) = &mut facts.status {
        status.store_addresses = vec!["203.0.113.7".parse().unwrap()];
    }
    assert_eq!(codes(&facts), ["node-address"]);

    let mut facts = kubernetes();
    facts.subnets = vec!["10.244.1.0/25".parse().unwrap()];
    assert_eq!(codes(&facts), ["subnet"]);
    facts.subnets = vec!["10.245.1.0/24".parse().unwrap()];
    assert!(codes(&facts).contains(&"subnet".to_owned()));
}

#[test]
fn what_is_left_of_flannel_is_named_until_it_is_podwires() {
    let mut facts = kubernetes();
    let mut device = link(9, "flannel.1", 1450);
    device.vxlan = Some(Vxlan::new(9, 8472, None));
    facts.links.push(device);
    facts.flannel =
        Flannel { processes: vec![4711], conflists: vec!["/etc/cni/net.d/10-flannel.conflist".to_owned()] };
    let found = examine(&facts);
    let texts: Vec<&str> = found.iter().map(|finding| finding.found.as_str()).collect();
    assert_eq!(codes(&facts), ["flannel", "flannel", "flannel"]);
    assert!(texts[0].contains("4711"), "what works against podwire comes first: {texts:?}");
    // Taken over by name.
    facts.flannel = Flannel::default();
    facts.links.last_mut().unwrap().alias = Some(DEVICE_ALIAS.to_owned());
    assert!(!codes(&facts).contains(&"flannel".to_owned()));
}

#[test]
fn legacy_iptables_that_keeps_the_tunnel_out_is_named() {
    let facts = Facts { legacy_tunnel_drops: vec![(Family::V4, 8472)], ..well() };
    assert_eq!(codes(&facts), ["tunnel-drop-legacy"]);
}

#[test]
fn the_gateway_of_pods_of_an_earlier_subnet_is_no_strangers() {
    let mut facts = well();
    facts.addresses.push(address(3, "10.244.9.1/24"));
    assert_eq!(codes(&facts), ["bridge-address"]);
    let owner = podwire_attach::Owner::new("podwire", "a", "eth0");
    let mut pod = link(7, &owner.link_name(), 1450);
    pod.alias = Some(podwire_attach::alias::format(&owner, &["10.244.9.7/24".parse().unwrap()]));
    pod.controller = Some(3);
    facts.links.push(pod);
    assert_eq!(codes(&facts), [""; 0]);
}
