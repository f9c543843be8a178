//! Plans of nodes in many situations.

use podwire_ipam::import::Existing;
use podwire_kernel::link::Vxlan;
use podwire_kernel::route::{Nexthop, ROUTE_PROTOCOL};

use super::*;
use crate::cluster::{ClusterConfig, Encapsulation};
use crate::status::{StoreState, StoreStatus};
use crate::terminal::Style;

const CONFLIST: &str = r#"{
  "name": "cbr0", "cniVersion": "0.3.1",
  "plugins": [
    { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/48\n\
                          FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn device(index: u32, name: &str, vni: u32, mac: &str) -> Link {
    let local = if name.contains("v6") { "2001:db8::1" } else { "192.0.2.1" };
    Link {
        index,
        name: name.to_owned(),
        mac: Some(mac.parse().unwrap()),
        kind: Some("vxlan".to_owned()),
        vxlan: Some(Vxlan::new(vni, 8472, Some(local.parse().unwrap()))),
        ..Link::default()
    }
}

fn route(destination: &str, gateway: &str, oif: u32, protocol: u8, priority: Option<u32>) -> Route {
    let hop = Nexthop { gateway: Some(gateway.parse().unwrap()), oif: Some(oif) };
    Route { protocol, priority, ..Route::new(destination.parse().unwrap(), vec![hop]) }
}

fn conflist(path: &str) -> Conflist {
    Conflist::parse(path.as_ref(), CONFLIST).unwrap()
}

/// A dual-stack node as flannel leaves it, with podwire's agent waiting.
fn untouched() -> Facts {
    let address = |ifindex, text: &str| Address {
        ifindex,
        address: text.parse().unwrap(),
        flags: podwire_kernel::addr::AddressFlags::default(),
        scope: if text.starts_with("fe80") { 253 } else { 0 },
        protocol: 0,
    };
    let port =
        |index, name: &str| Link { index, name: name.to_owned(), controller: Some(5), ..Link::default() };
    let bridge =
        Link { index: 5, name: "cni0".to_owned(), kind: Some("bridge".to_owned()), ..Link::default() };
    let config: ClusterConfig = serde_json::from_str(
        r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24},{"range":"fd00:10:244::/48","subnetPrefix":64}]}"#,
    )
    .unwrap();
    Facts {
        version: "1.0.0".to_owned(),
        state_dir: "/var/lib/podwire".into(),
        links: vec![
            device(7, "flannel.1", 1, "2a:00:00:00:00:01"),
            device(8, "flannel-v6.1", 1, "2a:00:00:00:00:02"),
            bridge,
            port(10, "veth1"),
            port(11, "veth2"),
        ],
        addresses: vec![
            address(5, "10.244.1.1/24"),
            address(5, "fd00:10:244:1::1/64"),
            address(5, "fe80::1/64"),
        ],
        routes: vec![route("10.244.2.0/24", "10.244.2.0", 7, 3, None)],
        subnet_env: Some(SubnetEnv::parse(SUBNET_ENV)),
        conflists: vec![conflist("/etc/cni/net.d/10-flannel.conflist")],
        chains: Vec::new(),
        host_ports: 0,
        has_legacy: false,
        pods_to_take_in: 2,
        agent: Status {
            version: "1.0.0".to_owned(),
            store: Some(StoreStatus {
                description: "Kubernetes".to_owned(),
                state: StoreState::Connected,
                ..StoreStatus::default()
            }),
            subnets: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            config: Some(config),
            ..Status::default()
        },
        network: Some(Network {
            name: "podwire".to_owned(),
            bridge: "podwire0".to_owned(),
            conflist: Some("/etc/cni/net.d/10-podwire.conflist".into()),
            masquerade: true,
            hairpin: true,
            mac_check: true,
            address_check: true,
            port_mappings: true,
            bandwidth: true,
        }),
        flannel_peers: Some(true),
        kept_away: KeptAway::Yes,
        adoption: None,
    }
}

/// The same node after so many steps.
fn after(steps: usize) -> Facts {
    let mut facts = untouched();
    for _ in 0..steps {
        let plan = Plan::new(&facts);
        let next = plan.steps.iter().find(|step| !step.is_done).expect("something is left").action.clone();
        match next {
            Action::Adopt(adoption) => facts.adoption = Some(*adoption),
            Action::TakeOver => {
                facts.agent.ready = true;
                facts.agent.adopted = ["flannel.1", "flannel-v6.1", "cni0"].map(str::to_owned).to_vec();
                facts.routes.push(route("10.244.2.0/24", "10.244.2.0", 7, ROUTE_PROTOCOL, Some(3)));
            }
            Action::TakeIn => facts.pods_to_take_in = 0,
            Action::SetAside(_) => facts.conflists.clear(),
            Action::TakeInLast => {
                facts.adoption.as_mut().unwrap().before.taken_in = true;
                facts.pods_to_take_in = 0;
            }
            Action::RemoveRoutes => facts.routes.retain(|route| route.protocol == ROUTE_PROTOCOL),
        }
    }
    facts
}

fn states(plan: &Plan<Action>) -> Vec<bool> {
    plan.steps.iter().map(|step| step.is_done).collect()
}

#[test]
fn the_plan_says_what_and_why() {
    let text = text::whole(&Plan::new(&untouched()), Style::default());
    let expected = "\
on this node:
  device flannel.1: VNI 1, port 8472, 2a:00:00:00:00:01
  device flannel-v6.1: VNI 1, port 8472, 2a:00:00:00:00:02
  bridge cni0: 10.244.1.1/24 fd00:10:244:1::1/64, 2 ports
  1 routes of flannel's to other nodes
  configuration /etc/cni/net.d/10-flannel.conflist of network cbr0
  2 pods' interfaces in /var/lib/cni/networks/cbr0
  1. write /var/lib/podwire/adopted.json: flannel.1, flannel-v6.1, cni0 are podwire's
     the kernel has one device for each VNI and port, and pods keep their bridge; other nodes know the MAC address
  2. have podwired work with them, and wait until the node is ready
     from then on it mends them, and has routes of its own beside flannel's
  3. take the pods in /var/lib/cni/networks/cbr0 into podwire's store
     new pods get no address that one of them has, and podwire's DEL frees theirs
  4. rename /etc/cni/net.d/10-flannel.conflist to /etc/cni/net.d/10-flannel.conflist.podwire-migrated
     runtimes make new pods by podwire's configuration instead
  5. take in pods that began meanwhile
     a runtime may have been making one by flannel's configuration
  6. remove flannel's routes to other nodes where podwire has its own
     those of IPv4 have no metric and win, and nobody would change them any more
";
    assert_eq!(text, expected);
}

#[test]
fn a_migration_that_was_interrupted_goes_on_where_it_was() {
    for done in 0..=6 {
        let plan = Plan::new(&after(done));
        assert_eq!(plan.refused, Vec::<String>::new(), "after {done}");
        let expected: Vec<bool> = (0..6).map(|step| step < done).collect();
        assert_eq!(states(&plan), expected, "after {done}");
        assert_eq!(plan.is_done(), done == 6);
    }
    // The agent has been started anew and is not ready yet; the node was rebooted, and its devices are to be made again.
    let mut facts = after(6);
    facts.agent.ready = false;
    facts.links.retain(|link| link.vxlan.is_none());
    let plan = Plan::new(&facts);
    assert_eq!(plan.refused, Vec::<String>::new());
    assert_eq!(states(&plan), [true, false, true, true, true, false]);
    assert_eq!(facts.wanted(), facts.adoption.clone().unwrap());
}

#[test]
fn a_configuration_that_comes_back_is_set_aside_again() {
    let mut facts = after(6);
    facts.conflists =
        vec![conflist("/etc/cni/net.d/10-flannel.conflist"), conflist("/etc/cni/net.d/99-other.conflist")];
    facts.pods_to_take_in = 1;
    let plan = Plan::new(&facts);
    let renamed: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::SetAside(set_aside) => Some((set_aside.path.display().to_string(), step.is_done)),
            _ => None,
        })
        .collect();
    assert_eq!(
        renamed,
        [
            ("/etc/cni/net.d/10-flannel.conflist".to_owned(), false),
            ("/etc/cni/net.d/99-other.conflist".to_owned(), false)
        ]
    );
    assert_eq!(states(&plan)[..3], [false, false, false], "the second file is to be remembered first");
    assert!(!plan.is_done());
}

#[test]
fn nodes_without_a_bridge_or_with_one_family_are_moved_too() {
    let mut facts = untouched();
    facts
        .links
        .retain(|link| link.vxlan.as_ref().is_none_or(|_| link.name == "flannel.1") && link.name != "cni0");
    let plan = Plan::new(&facts);
    assert_eq!(plan.refused, Vec::<String>::new());
    let wanted = facts.wanted();
    assert_eq!((wanted.devices.len(), wanted.bridge), (1, None));
    // A VNI that is not in the name: not flannel's.
    facts.links[0].name = "flannel.2".to_owned();
    assert_eq!(facts.wanted().devices, []);
}

/// A change of a node that is ready to be moved, and what must be told.
type Obstacle = (&'static str, fn(&mut Facts), &'static str);

#[test]
fn whatever_stands_in_the_way_is_told_and_nothing_is_done() {
    let obstacles: [Obstacle; 16] = [
        (
            "another backend",
            |facts| facts.links.retain(|link| link.vxlan.is_none()),
            "no device of flannel's",
        ),
        (
            "flannel is here",
            |facts| facts.kept_away = KeptAway::No(vec!["pod a/b is still on this node".to_owned()]),
            "pod a/b",
        ),
        ("no API", |facts| facts.kept_away = KeptAway::Unasked, "--flannel-is-gone"),
        ("no right to ask", |facts| facts.kept_away = KeptAway::Unknown("forbidden".to_owned()), "forbidden"),
        ("another version", |facts| facts.agent.version = "0.9.0".to_owned(), "podwired 0.9.0"),
        ("no cluster", |facts| facts.agent.store = None, "no cluster"),
        (
            "no contact",
            |facts| facts.agent.store.as_mut().unwrap().state = StoreState::Lost,
            "no contact to Kubernetes",
        ),
        ("no podCIDR", |facts| facts.agent.subnets.clear(), "no subnet yet"),
        ("no flannel peers", |facts| facts.flannel_peers = Some(false), "flannel_peers = true"),
        ("no conflist", |facts| facts.network.as_mut().unwrap().conflist = None, "network.conflist"),
        ("no configuration", |facts| facts.network = None, "--config"),
        (
            "another VNI",
            |facts| facts.agent.config.as_mut().unwrap().encapsulation = Encapsulation { vni: 7, port: 8472 },
            "flannel.1 has VNI 1 and port 8472, podwire's cluster 7 and 8472",
        ),
        (
            "another underlay",
            |facts| facts.agent.config.as_mut().unwrap().underlay = vec![IpFamily::Ipv4],
            "add ipv6",
        ),
        (
            "another podCIDR",
            |facts| facts.subnet_env = Some(SubnetEnv::parse("FLANNEL_SUBNET=10.244.9.1/24")),
            "flannel's subnet of this node is 10.244.9.0/24",
        ),
        (
            "a bridge of another subnet",
            |facts| facts.addresses[0].address = "10.244.8.1/24".parse().unwrap(),
            "bridge cni0 has 10.244.8.1/24",
        ),
        (
            "another main plugin",
            |facts| {
                let text = CONFLIST.replace("\"hairpinMode\": true", "\"type\": \"ipvlan\"");
                facts.conflists = vec![Conflist::parse("/x/10-flannel.conflist".as_ref(), &text).unwrap()];
            },
            "\"ipvlan\"",
        ),
    ];
    for (what, change, told) in obstacles {
        let mut facts = untouched();
        change(&mut facts);
        let plan = Plan::new(&facts);
        assert!(plan.refused.iter().any(|why| why.contains(told)), "{what}: {:#?}", plan.refused);
        assert!(plan.steps.is_empty() && !plan.is_done(), "{what}");
    }
}

#[test]
fn what_is_left_to_an_administrator_comes_with_commands() {
    let mut facts = after(6);
    let chain = |family: &str, table: &str, chain: Option<&str>| Chain {
        family: family.to_owned(),
        table: table.to_owned(),
        chain: chain.map(str::to_owned),
    };
    facts.chains = vec![
        chain("ip", "flannel-ipv4", None),
        chain("ip", "nat", Some("FLANNEL-POSTRTG")),
        chain("ip6", "filter", Some("FLANNEL-FWD")),
    ];
    facts.routes.push(route("10.244.9.0/24", "10.244.9.0", 7, 3, None));
    let plan = Plan::new(&facts);
    assert!(plan.is_done(), "a route to nobody is no reason to begin again");
    assert_eq!(
        plan.commands,
        [
            "nft delete table ip flannel-ipv4",
            "iptables -t nat -D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG",
            "iptables -t nat -F FLANNEL-POSTRTG",
            "iptables -t nat -X FLANNEL-POSTRTG",
            "ip6tables -t filter -D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
            "ip6tables -t filter -F FLANNEL-FWD",
            "ip6tables -t filter -X FLANNEL-FWD",
            "ip route del 10.244.9.0/24 dev flannel.1 metric 0",
        ]
    );
    assert!(
        plan.notes.iter().any(|note| note.contains("10.244.9.0/24 leads to no node")),
        "{:?}",
        plan.notes
    );
    let told = |facts: &Facts, words: &str| Plan::new(facts).notes.iter().any(|note| note.contains(words));
    (facts.host_ports, facts.has_legacy) = (3, true);
    assert!(told(&facts, "3 host ports") && !told(&facts, "legacy"), "they were found");
    facts.chains.clear();
    assert!(told(&facts, "iptables-legacy-save"));
    assert!(Plan::new(&untouched()).commands.is_empty(), "before podwire has routes, nobody knows");
}

#[test]
fn programs_read_the_plan_without_what_is_ours_alone() {
    let told = serde_json::to_value(Plan::new(&after(1))).unwrap();
    assert_eq!(told["steps"][0]["isDone"], true);
    assert_eq!(told["steps"][1]["isDone"], false);
    assert_eq!(told["steps"][0].as_object().unwrap().len(), 3);
    assert_eq!(told["refused"], serde_json::json!([]));
}

/// A node that has been moved, its agent gone.
fn moved() -> back::Facts {
    let facts = after(6);
    back::Facts {
        state_dir: facts.state_dir.clone(),
        agent_runs: false,
        adoption: facts.adoption.clone(),
        routes: facts.routes,
        aside: vec!["/etc/cni/net.d/10-flannel.conflist.podwire-migrated".into()],
        has_own_conflist: true,
        leases: Vec::new(),
    }
}

#[test]
fn the_way_back_needs_no_agent_and_can_be_interrupted() {
    let mut facts = moved();
    facts.agent_runs = true;
    assert!(back::plan(&facts).refused[0].contains("podwired runs"));
    facts.agent_runs = false;
    let undone = |facts: &back::Facts| -> Vec<back::Action> {
        back::plan(facts).steps.into_iter().filter(|step| !step.is_done).map(|step| step.action).collect()
    };
    let set_aside = facts.adoption.as_ref().unwrap().before.conflists[0].clone();
    let own = PathBuf::from("/etc/cni/net.d/10-podwire.conflist");
    assert_eq!(
        undone(&facts),
        [
            back::Action::PutBack(set_aside),
            back::Action::RemoveConflist(own),
            back::Action::Routes,
            back::Action::Release,
            back::Action::Forget
        ]
    );
    let existing = |facts: &back::Facts| back::plan(facts).steps[0].action.clone();
    assert_eq!(existing(&facts), back::Action::HandOver(Existing::Replace));
    facts.aside.clear();
    assert_eq!(existing(&facts), back::Action::HandOver(Existing::Keep), "host-local gives addresses by now");
    facts.has_own_conflist = false;
    facts.routes.clear();
    assert_eq!(undone(&facts), [back::Action::Release, back::Action::Forget]);
    facts.adoption = None;
    assert!(back::plan(&facts).is_done());
}

#[test]
fn flannels_plugin_is_told_of_a_pod_as_it_would_have_told_itself() {
    let told = conflist("/etc/cni/net.d/10-flannel.conflist").told_to_bridge(&SubnetEnv::parse(SUBNET_ENV));
    let expected = serde_json::json!({
        "name": "cbr0", "cniVersion": "0.3.1", "type": "bridge", "isDefaultGateway": true, "isGateway": true,
        "hairpinMode": true, "ipMasq": false, "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]],
            "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "fd00:10:244::/48" }]
        }
    });
    assert_eq!(told, expected);
}

#[test]
fn podwire_begins_half_a_subnet_behind_host_local() {
    for (last, subnet, expected) in [
        ("10.244.1.7", "10.244.1.0/24", "10.244.1.135"),
        ("10.244.1.200", "10.244.1.0/24", "10.244.1.72"),
        ("10.244.1.1", "10.244.1.0/31", "10.244.1.0"),
        ("fd00:10:244:1::7", "fd00:10:244:1::/64", "fd00:10:244:1:8000::7"),
        ("fd00::8000:0:0:7", "fd00::/64", "fd00::7"),
        ("10.0.0.1", "fd00::/64", "10.0.0.1"),
    ] {
        let last = last.parse().unwrap();
        assert_eq!(
            files::far_from(last, subnet.parse().unwrap()),
            expected.parse::<std::net::IpAddr>().unwrap()
        );
    }
}
