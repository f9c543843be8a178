use std::collections::BTreeMap;

use podwire_kernel::MacAddr;
use podwire_kernel::link::{BridgePort, LinkFlags};
use podwire_kernel::neighbour::State;
use podwire_kernel::nft;
use podwire_kernel::route::Nexthop;

use super::*;
use crate::cluster::IpFamily;
use crate::terminal::Style;

/// A kernel whose tables are what a test says.
#[derive(Clone)]
struct Fake {
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
    fdb: Vec<FdbEntry>,
    sysctls: BTreeMap<String, String>,
}

impl Kernel for Fake {
    fn route_to(&mut self, lookup: &Lookup) -> Result<Option<Route>, String> {
        let fits = self.routes.iter().filter(|route| route.destination.contains(lookup.destination));
        Ok(fits.max_by_key(|route| (route.destination.prefix(), std::cmp::Reverse(route.priority))).cloned())
    }

    fn neighbours(&mut self, ifindex: u32) -> Result<Vec<Neighbour>, String> {
        Ok(self.neighbours.iter().filter(|found| found.ifindex == ifindex).copied().collect())
    }

    fn fdb(&mut self, ifindex: u32) -> Result<Vec<FdbEntry>, String> {
        Ok(self.fdb.iter().filter(|found| found.ifindex == ifindex).copied().collect())
    }

    fn sysctl(&mut self, name: &str) -> Result<String, String> {
        self.sysctls.get(name).cloned().ok_or_else(|| format!("there is no {name}"))
    }
}

fn link(index: u32, name: &str, mtu: u32) -> Link {
    let flags = LinkFlags { up: true, running: true, ..LinkFlags::default() };
    Link { index, name: name.to_owned(), mtu, flags, ..Link::default() }
}

fn route(to: &str, via: Option<&str>, oif: u32, protocol: u8, metric: u32) -> Route {
    let nexthop = Nexthop { gateway: via.map(|via| via.parse().unwrap()), oif: Some(oif) };
    let mut route = Route::new(to.parse().unwrap(), vec![nexthop]);
    (route.protocol, route.priority) = (protocol, Some(metric));
    route
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn pod(name: &str, container: &str, address: &str, link: &str) -> PodStatus {
    PodStatus {
        network: "podwire".to_owned(),
        namespace: Some("default".to_owned()),
        name: Some(name.to_owned()),
        container: container.to_owned(),
        ifname: "eth0".to_owned(),
        state: "attached".to_owned(),
        addresses: vec![address.parse().unwrap()],
        link: Some(link.to_owned()),
        bridge: Some("podwire0".to_owned()),
        ..PodStatus::default()
    }
}

fn port(index: u32, name: &str) -> Link {
    let port = Some(BridgePort::default());
    Link { controller: Some(3), kind: Some("veth".to_owned()), port, ..link(index, name, 1450) }
}

fn node(name: &str, subnet: &str, own: &str, vtep: u8) -> Node {
    Node {
        name: name.to_owned(),
        addresses: vec![own.parse().unwrap()],
        subnets: vec![subnet.parse().unwrap()],
        vteps: vec![Vtep { encapsulation: Encapsulation::default(), mac: mac(vtep), mac6: None }],
        ..Node::default()
    }
}

fn address(ifindex: u32, text: &str) -> Address {
    Address { ifindex, address: text.parse().unwrap(), flags: Default::default(), scope: 0, protocol: 0 }
}

/// Node a, whose pods reach those of node b.
fn well() -> (Scene, Fake, Vec<PodStatus>) {
    let mut device = link(4, "podwire.1", 1450);
    device.alias = Some(DEVICE_ALIAS.to_owned());
    device.vxlan = Some(Vxlan::new(1, 8472, Some("192.168.0.1".parse().unwrap())));
    let bridge = Link { kind: Some("bridge".to_owned()), ..link(3, "podwire0", 1450) };
    let probe = serde_json::json!({"node": "b", "family": IpFamily::Ipv4, "ok": true, "rttMillis": 0.31, "ageSeconds": 2.0});
    let mut b = node("b", "10.244.2.0/24", "192.168.0.2", 2);
    b.probes = vec![serde_json::from_value(probe).unwrap()];
    let scene = Scene {
        links: vec![link(2, "eth0", 1500), bridge, device, port(5, "pw1"), port(6, "pw2")],
        addresses: vec![
            address(2, "192.168.0.1/24"),
            address(3, "10.244.1.1/24"),
            address(4, "10.244.1.0/32"),
        ],
        nodes: Some(vec![Node { is_self: true, ..node("a", "10.244.1.0/24", "192.168.0.1", 1) }, b]),
        ranges: vec!["10.244.0.0/16".parse().unwrap()],
        has_agent: true,
        ..Scene::default()
    };
    let kernel = Fake {
        routes: vec![
            route("0.0.0.0/0", Some("192.168.0.254"), 2, 3, 0),
            route("192.168.0.0/24", None, 2, 2, 0),
            route("10.244.1.0/24", None, 3, 2, 0),
            route("10.244.2.0/24", Some("10.244.2.0"), 4, 0x70, 3),
        ],
        neighbours: vec![Neighbour::permanent(4, "10.244.2.0".parse().unwrap(), mac(2))],
        fdb: vec![FdbEntry::permanent(4, mac(2), "192.168.0.2".parse().unwrap())],
        sysctls: [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    };
    let pods =
        vec![pod("web", "c0ffee01", "10.244.1.7/24", "pw1"), pod("db", "c0ffee02", "10.244.1.8/24", "pw2")];
    (scene, kernel, pods)
}

fn ask(scene: &Scene, kernel: &mut Fake, pods: &[PodStatus], from: &str, to: &str) -> Explanation {
    let (from, to) = resolve(from, to, pods).unwrap().remove(0);
    explain(scene, kernel, &from, &to, Content::Ping)
}

#[test]
fn a_way_on_which_all_is_well() {
    let (scene, mut kernel, pods) = well();
    let found = ask(&scene, &mut kernel, &pods, "default/web", "10.244.2.9");
    assert_eq!(
        text(&found, Style::default()),
        "\
10.244.1.7 (default/web) → 10.244.2.9
  HOP         STATE  FOUND
  lease       ok     10.244.1.7 is the address of default/web
  interface   ok     pw1 leads to default/web, MTU 1450
  bridge      ok     podwire0 is up, gateway 10.244.1.1/24
  forwarding  ok     the node forwards IPv4 packets
  node        ok     10.244.2.9 is on node b at 192.168.0.2
  device      ok     podwire.1, VNI 1, port 8472, MTU 1450
  route       ok     10.244.2.0/24 via 10.244.2.0 dev podwire.1 metric 3 (protocol 112)
  neighbour   ok     10.244.2.0 on podwire.1 is 02:00:00:00:00:02
  FDB         ok     02:00:00:00:00:02 is behind 192.168.0.2
  underlay    ok     192.168.0.2 is reached by eth0, on the link, MTU 1500
  filter      ok     no rule drops the packets
  probe       ok     node b answered in 0.31 ms, 2 s ago
nothing is broken on this node
"
    );
}

#[test]
fn the_way_back_and_the_way_within_a_node() {
    let (scene, mut kernel, pods) = well();
    let inbound = ask(&scene, &mut kernel, &pods, "10.244.2.9", "web");
    assert_eq!(inbound.broken, None);
    assert!(inbound.hops.iter().all(|hop| hop.state == HopState::Ok), "{inbound:#?}");
    let within = ask(&scene, &mut kernel, &pods, "web", "db");
    let kinds: Vec<HopKind> = within.hops.iter().map(|hop| hop.hop).collect();
    use HopKind::{Bridge, Filter, Interface, Lease};
    assert_eq!(kinds, [Lease, Interface, Lease, Interface, Bridge, Filter]);
    assert_eq!(within.broken, None);
    let elsewhere = ask(&scene, &mut kernel, &pods, "10.244.2.9", "10.244.2.10");
    assert_eq!(elsewhere.hops[0].state, HopState::Unknown);
    assert!(elsewhere.hops[0].advice.contains("node b"), "{elsewhere:?}");
}

#[test]
fn each_broken_hop_is_named() {
    type Break = fn(&mut Scene, &mut Fake, &mut Vec<PodStatus>);
    let drop_forward: Break = |scene, _, _| {
        let base = nft::Base {
            kind: nft::ChainKind::Filter,
            hook: nft::Hook::Forward,
            priority: 0,
            policy: nft::Policy::Drop,
            device: None,
        };
        let chain = nft::Chain { name: "FORWARD".to_owned(), base: Some(base), comment: None };
        let (family, table) = (nft::Family::Ip, "filter".to_owned());
        scene.ruleset.chains.push(nft::Found { family, table, handle: 1, object: chain });
    };
    let cases: [(HopKind, &str, Break); 24] = [
        (HopKind::Lease, "no lease", |_, _, pods| pods.clear()),
        (HopKind::Lease, "reserved", |_, _, pods| pods[0].state = "reserved".to_owned()),
        (HopKind::Interface, "gone", |scene, _, _| scene.links.retain(|link| link.name != "pw1")),
        (HopKind::Interface, "down", |scene, _, _| scene.links[3].flags.up = false),
        (HopKind::Interface, "no carrier", |scene, _, _| scene.links[3].flags.running = false),
        (HopKind::Interface, "no port", |scene, _, _| scene.links[3].controller = None),
        (HopKind::Bridge, "no address", |scene, _, _| {
            scene.addresses.remove(1);
        }),
        (HopKind::Bridge, "down", |scene, _, _| scene.links[1].flags.up = false),
        (HopKind::Forwarding, "does not forward", |_, kernel, _| {
            kernel.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned());
        }),
        (HopKind::Node, "no node", |scene, _, _| scene.nodes.as_mut().unwrap().truncate(1)),
        (HopKind::Node, "left out", |scene, _, _| {
            scene.nodes.as_mut().unwrap()[1].left_out = Some("its subnet is another's".to_owned());
        }),
        (HopKind::Device, "no VXLAN device", |scene, _, _| scene.links.retain(|link| link.vxlan.is_none())),
        (HopKind::Device, "down", |scene, kernel, _| {
            // As the kernel does: its routes and neighbours go.
            scene.links[2].flags.up = false;
            kernel.routes.pop();
            kernel.neighbours.clear();
        }),
        (HopKind::Device, "no address of this node", |scene, _, _| {
            scene.addresses.remove(0);
        }),
        (HopKind::Route, "default route", |_, kernel, _| {
            kernel.routes.pop();
        }),
        (HopKind::Route, "no route", |_, kernel, _| {
            kernel.routes.pop();
            kernel.routes.remove(0);
        }),
        (HopKind::Route, "another program", |_, kernel, _| {
            kernel.routes.push(route("10.244.2.0/25", Some("192.168.0.9"), 2, 186, 0));
        }),
        (HopKind::Neighbour, "no MAC address", |_, kernel, _| kernel.neighbours.clear()),
        (HopKind::Neighbour, "02:00:00:00:00:09", |_, kernel, _| kernel.neighbours[0].mac = Some(mac(9))),
        (HopKind::Fdb, "does not know", |_, kernel, _| kernel.fdb.clear()),
        (HopKind::Fdb, "192.168.0.77", |_, kernel, _| {
            kernel.fdb[0].destination = Some("192.168.0.77".parse().unwrap());
        }),
        (HopKind::Underlay, "nobody answers", |_, kernel, _| {
            let remote = "192.168.0.2".parse().unwrap();
            let silent =
                Neighbour { mac: None, state: State::Failed, ..Neighbour::permanent(2, remote, mac(2)) };
            kernel.neighbours.push(silent);
        }),
        (HopKind::Filter, "ip filter, chain FORWARD", drop_forward),
        (HopKind::Probe, "does not answer", |scene, _, _| {
            scene.nodes.as_mut().unwrap()[1].probes[0].ok = false;
        }),
    ];
    for (hop, says, spoil) in cases {
        let (mut scene, mut kernel, mut pods) = well();
        spoil(&mut scene, &mut kernel, &mut pods);
        let found = ask(&scene, &mut kernel, &pods, "10.244.1.7", "10.244.2.9");
        assert_eq!(found.broken, Some(hop), "{says}: {}", text(&found, Style::default()));
        let broken =
            found.hops.iter().find(|found| found.hop == hop && found.state == HopState::Broken).unwrap();
        assert!(broken.found.contains(says), "{says}: {broken:?}");
        assert!(!broken.advice.is_empty(), "{says}: {broken:?}");
    }
}

#[test]
fn without_agent_and_memory_the_kernel_alone_is_asked() {
    let (mut scene, mut kernel, pods) = well();
    (scene.nodes, scene.has_agent) = (None, false);
    let found = ask(&scene, &mut kernel, &pods, "web", "10.244.2.9");
    assert_eq!(found.broken, None, "{}", text(&found, Style::default()));
    kernel.fdb.clear();
    let found = ask(&scene, &mut kernel, &pods, "web", "10.244.2.9");
    assert_eq!(found.broken, Some(HopKind::Fdb), "{}", text(&found, Style::default()));
    assert!(found.hops.last().unwrap().advice.starts_with("start the agent"), "{found:?}");
}

#[test]
fn a_direct_route_has_no_tunnel() {
    let (scene, mut kernel, pods) = well();
    kernel.routes.pop();
    kernel.routes.push(route("10.244.2.0/24", Some("192.168.0.2"), 2, 0x70, 3));
    let found = ask(&scene, &mut kernel, &pods, "web", "10.244.2.9");
    assert_eq!(found.broken, None);
    assert!(found.hops.iter().all(|hop| hop.hop != HopKind::Device), "{found:?}");
}

#[test]
fn pods_are_known_by_several_names() {
    let (_, _, mut pods) = well();
    for name in ["web", "default/web", "10.244.1.7", "c0ffee01"] {
        let pairs = resolve(name, "10.244.2.9", &pods).unwrap();
        assert_eq!(pairs[0].0.pod.as_ref().unwrap().container, "c0ffee01", "{name}");
    }
    let unknown = resolve("nobody", "10.244.2.9", &pods);
    assert_eq!(unknown, Err(ResolveError::Unknown("nobody".to_owned())));
    assert!(matches!(resolve("c0ff", "web", &pods), Err(ResolveError::Ambiguous { .. })));
    assert_eq!(resolve("web", "fd00::1", &pods), Err(ResolveError::NoFamily));
    pods[0].addresses.clear();
    assert!(matches!(resolve("web", "db", &pods), Err(ResolveError::WithoutAddress(_))));
}
