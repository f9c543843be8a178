//! Veth pairs, bridges, ports.

use podwire_kernel::link::{
    self, AddrGenMode, BridgePort, BridgeSpec, LinkChange, LinkRef, MAX_ALIAS, VethSpec,
};
use podwire_kernel::{MacAddr, addr, sysctl};

use crate::lab::{bridge, eventually, in_new_netns, network, new_netns, pair, socket, up, veth};

const NAME: &str = "pw0123456789abc";

#[test]
fn a_pods_veth_is_made_by_one_send_on_the_host_and_one_in_the_pod() {
    in_new_netns(|| {
        let mut host = socket();
        let bridge = bridge(&mut host, "podwire0");
        let pod = new_netns();
        let spec = VethSpec {
            mtu: Some(1450),
            mac: Some(MacAddr([2, 0, 0, 0, 1, 1])),
            controller: Some(bridge.index),
            group: Some(7),
            peer_mac: Some(MacAddr([2, 0, 0, 0, 1, 2])),
            ..veth(NAME, &pod)
        };
        let alias = "ü".repeat(MAX_ALIAS / 2);
        let mut requests = vec![link::create_veth(&spec)];
        let settings = LinkChange {
            alias: Some(alias.clone()),
            addr_gen_mode: Some(AddrGenMode::None),
            hairpin: Some(true),
            isolated: Some(true),
            up: Some(true),
            ..LinkChange::default()
        };
        requests.extend(link::change(LinkRef::Name(NAME), &settings));
        let link = host.apply_then_link(&requests, LinkRef::Name(NAME)).expect("made").expect("there");

        assert_eq!((link.name.as_str(), link.kind.as_deref()), (NAME, Some("veth")));
        assert_eq!((link.mtu, link.mac, link.group), (1450, spec.mac, 7));
        assert_eq!((link.controller, link.alias), (Some(bridge.index), Some(alias)));
        assert_eq!(link.port, Some(BridgePort { hairpin: true, isolated: true, mcast_flood: true }));
        assert_eq!(link.addr_gen_mode, Some(AddrGenMode::None));
        assert!(link.flags.up && !link.flags.running, "{:?}", link.flags);

        let nsid = link.peer_nsid.expect("the pod's namespace has an id here");
        let eth0 = host.peer_link(nsid, LinkRef::Name("eth0")).expect("asked").expect("there");
        assert_eq!(Some(eth0.index), link.peer_index);
        assert_eq!((eth0.mtu, eth0.mac, eth0.flags.up), (1450, spec.peer_mac, false));

        let address = network("10.1.0.2/24");
        let mut requests = link::change(LinkRef::Index(link::LOOPBACK), &up());
        requests.push(addr::add(eth0.index, address, true));
        requests.extend(link::change(LinkRef::Index(eth0.index), &up()));
        pod.run(|| socket().apply(&requests)).expect("enter").expect("configured");
        eventually("carrier", || host.link(LinkRef::Name(NAME)).expect("asked")?.flags.running.then_some(()));
        let seen = host.peer_addresses(nsid, eth0.index).expect("listed");
        assert!(seen.iter().any(|found| found.address == address), "{seen:?}");
        // The end in the bridge makes itself no IPv6 address: each would cost every other pod DAD and MLD packets.
        assert_eq!(host.addresses(Some(link.index)).expect("listed"), []);
    });
}

#[test]
fn a_name_that_is_taken_is_said_with_the_kernels_words_and_the_rest_still_runs() {
    in_new_netns(|| {
        let (mut host, pod) = (socket(), new_netns());
        let create = link::create_veth(&veth(NAME, &pod));
        host.apply(std::slice::from_ref(&create)).expect("made");
        let alias = LinkChange { alias: Some("behind".to_owned()), ..LinkChange::default() };
        let mut requests = vec![create];
        requests.extend(link::change(LinkRef::Name(NAME), &alias));
        let error = host.apply(&requests).expect_err("taken");
        assert!(error.is_exists(), "{error}");
        assert_eq!(error.index, Some(0));
        assert!(
            error.to_string().starts_with(&format!("create veth {NAME}: File exists (EEXIST)")),
            "{error}"
        );
        let link = host.link(LinkRef::Name(NAME)).expect("asked").expect("there");
        assert_eq!(link.alias.as_deref(), Some("behind"));

        let huge = LinkChange { mtu: Some(70_000), ..LinkChange::default() };
        let error = host.apply(&link::change(LinkRef::Name(NAME), &huge)).expect_err("too large");
        assert_eq!(
            error.to_string(),
            format!("change link {NAME}: Invalid argument (EINVAL): mtu greater than device maximum")
        );
    });
}

#[test]
fn missing_links_are_none_and_removing_them_again_is_missing() {
    in_new_netns(|| {
        let mut host = socket();
        let (link, _pod) = pair(&mut host, NAME);
        assert_eq!(host.link(LinkRef::Name("nobody")).expect("asked"), None);
        assert_eq!(host.link(LinkRef::Index(4_000)).expect("asked"), None);
        assert_eq!(host.apply_then_link(&[], LinkRef::Name("nobody")).expect("asked"), None);
        assert_eq!(host.link(LinkRef::Name(&"n".repeat(40))).expect("asked"), None);
        host.apply(&[link::delete(link.index, NAME)]).expect("removed");
        assert_eq!(host.link(LinkRef::Name(NAME)).expect("asked"), None);
        let error = host.apply(&[link::delete(link.index, NAME)]).expect_err("gone");
        assert!(error.is_missing(), "{error}");
        assert!(host.apply(&[link::delete_named(NAME)]).expect_err("gone").is_missing());
        assert_eq!(host.addresses(Some(link.index)).expect("listed"), []);
    });
}

#[test]
fn a_bridge_keeps_the_mac_address_that_it_was_made_with() {
    in_new_netns(|| {
        let (mut host, pod) = (socket(), new_netns());
        let mac = MacAddr([0x0e, 1, 2, 3, 4, 5]);
        let spec = BridgeSpec {
            name: "podwire0",
            mac,
            mtu: Some(1400),
            mcast_snooping: Some(true),
            mcast_querier: Some(true),
            vlan_filtering: None,
        };
        let mut requests = vec![link::create_bridge(&spec)];
        let settings = LinkChange { addr_gen_mode: Some(AddrGenMode::None), promisc: Some(true), ..up() };
        requests.extend(link::change(LinkRef::Name("podwire0"), &settings));
        let bridge =
            host.apply_then_link(&requests, LinkRef::Name("podwire0")).expect("made").expect("there");
        assert_eq!((bridge.mac, bridge.mtu, bridge.kind.as_deref()), (Some(mac), 1400, Some("bridge")));
        assert_eq!(bridge.addr_gen_mode, Some(AddrGenMode::None));
        assert!(bridge.flags.up && bridge.flags.promisc);
        let state = bridge.bridge.expect("a bridge's settings");
        assert!(state.mcast_snooping && state.mcast_querier && state.vlan_filtering != Some(true));
        assert_eq!(host.addresses(Some(bridge.index)).expect("listed"), []);

        // A bridge without one of its own would now take this, the lowest.
        let low = MacAddr([2, 0, 0, 0, 0, 1]);
        let port = VethSpec { mac: Some(low), controller: Some(bridge.index), ..veth(NAME, &pod) };
        host.apply(&[link::create_veth(&port)]).expect("made");
        assert_eq!(host.link(LinkRef::Name("podwire0")).expect("asked").expect("there").mac, Some(mac));

        let off = LinkChange { mcast_querier: Some(false), promisc: Some(false), ..LinkChange::default() };
        host.apply(&link::change(LinkRef::Index(bridge.index), &off)).expect("changed");
        let bridge = host.link(LinkRef::Index(bridge.index)).expect("asked").expect("there");
        assert!(!bridge.bridge.expect("settings").mcast_querier && !bridge.flags.promisc && bridge.flags.up);
    });
}

#[test]
fn one_change_makes_a_link_a_port_sets_the_port_and_brings_it_up() {
    in_new_netns(|| {
        let mut host = socket();
        let bridge = bridge(&mut host, "podwire0");
        let (link, _pod) = pair(&mut host, "before");
        let change = LinkChange {
            name: Some("after".to_owned()),
            controller: Some(bridge.index),
            hairpin: Some(true),
            mcast_flood: Some(false),
            alias: Some("x".to_owned()),
            arp_notify: Some(true),
            ..up()
        };
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        host.apply(&link::change(LinkRef::Index(link.index), &down)).expect("down");
        host.apply(&link::change(LinkRef::Index(link.index), &change)).expect("changed");
        let after = host.link(LinkRef::Name("after")).expect("asked").expect("there");
        assert_eq!((after.index, after.controller), (link.index, Some(bridge.index)));
        assert_eq!(after.port, Some(BridgePort { hairpin: true, isolated: false, mcast_flood: false }));
        assert!(after.flags.up);
        assert_eq!(sysctl::read("net/ipv4/conf/after/arp_notify").expect("read"), "1");

        let free = LinkChange {
            controller: Some(0),
            alias: Some(String::new()),
            arp_notify: Some(false),
            ..LinkChange::default()
        };
        host.apply(&link::change(LinkRef::Index(link.index), &free)).expect("changed");
        let freed = host.link(LinkRef::Name("after")).expect("asked").expect("there");
        assert_eq!((freed.controller, freed.port, freed.alias), (None, None, None));
        assert_eq!(sysctl::read("net/ipv4/conf/after/arp_notify").expect("read"), "0");
    });
}

#[test]
fn a_group_is_removed_by_one_request_and_group_0_is_not() {
    in_new_netns(|| {
        let (mut host, pod) = (socket(), new_netns());
        let names: Vec<(String, String)> = (0..20).map(|i| (format!("pw{i}"), format!("eth{i}"))).collect();
        let requests: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, (name, peer_name))| {
                let group = Some(if i < 19 { 4242 } else { 4243 });
                link::create_veth(&VethSpec { peer_name, group, ..veth(name, &pod) })
            })
            .collect();
        host.apply(&requests).expect("made");
        host.apply(&[link::delete_group(4242)]).expect("removed");
        let left: Vec<String> = host.links().expect("listed").into_iter().map(|link| link.name).collect();
        assert_eq!(left, ["lo", "pw19"]);
        let error = host.apply(&[link::delete_group(0)]).expect_err("every ordinary link is in group 0");
        assert!(error.is_denied(), "{error}");
    });
}
