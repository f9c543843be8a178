use podwire_attach::{Owner, PodAddress};
use serde_json::{Value, json};

use super::*;
use crate::Environment;

fn config(extra: Value) -> Config {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "podwire",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]}});
    for (key, value) in extra.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let environment =
        ["COMMAND=ADD", "CONTAINERID=c1", "NETNS=/run/netns/x", "IFNAME=eth0", "PATH=/opt/cni/bin"];
    let pairs = environment.iter().filter_map(|pair| pair.split_once('='));
    let env = Environment::parse(pairs.map(|(name, value)| (format!("CNI_{name}").into(), value.into())))
        .expect("valid")
        .expect("a command");
    Config::parse(config.to_string().as_bytes(), &env).expect("valid")
}

fn addressing(addresses: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)]) -> Addressing {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let network = |text: &str| text.parse::<IpNetwork>().expect("a network");
    Addressing {
        addresses: addresses
            .iter()
            .map(|(address, gateway)| PodAddress { address: network(address), gateway: gateway.map(ip) })
            .collect(),
        routes: routes.iter().map(|(dst, gw)| Route { gw: gw.map(ip), ..Route::to(network(dst)) }).collect(),
        dns: Dns::default(),
    }
}

fn attachment() -> Attachment {
    let owner = Owner::new("net", "c1", "eth0");
    Attachment {
        link: Some(owner.link_name()),
        owner,
        addresses: Vec::new(),
        mac: None,
        bridge: Some("cni0".into()),
        netns: "/run/netns/x".into(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: None,
    }
}

/// The pod's routes and the bridge's gateways that these settings lead to.
fn lines(extra: Value, given: Addressing) -> Vec<String> {
    let config = config(extra);
    let addressing = complete(&config, given);
    let wanted = wanted(&config, attachment(), &addressing, &NodeFacts::default());
    let gateways = wanted.bridge.gateways.iter().map(|gateway| format!("bridge {gateway}"));
    let routes = wanted.routes.iter().map(|route| match route.gateway {
        Some(gateway) => format!("{} via {gateway}", route.destination),
        None => format!("{} on link", route.destination),
    });
    gateways.chain(routes).collect()
}

const DUAL: [(&str, Option<&str>); 2] = [("10.1.0.2/24", Some("10.1.0.1")), ("fd00::2/64", Some("fd00::1"))];

#[test]
fn gateways_and_routes_follow_from_the_settings_as_in_the_reference_plugin() {
    let none: [(&str, Option<&str>); 0] = [];
    let defaults = [("0.0.0.0/0", None), ("::/0", None)];
    let cases: [(Value, Addressing, &[&str]); 8] = [
        // A route without a gateway gets its family's, also where the bridge is no gateway.
        (json!({}), addressing(&DUAL, &defaults), &["0.0.0.0/0 via 10.1.0.1", "::/0 via fd00::1"]),
        (json!({"isGateway": true}), addressing(&DUAL, &none), &["bridge 10.1.0.1/24", "bridge fd00::1/64"]),
        (
            json!({"isDefaultGateway": true}),
            addressing(&DUAL, &none),
            &["bridge 10.1.0.1/24", "bridge fd00::1/64", "0.0.0.0/0 via 10.1.0.1", "::/0 via fd00::1"],
        ),
        // The IPAM's own default route is no conflict, and no second route.
        (
            json!({"isDefaultGateway": true}),
            addressing(&DUAL[..1], &[("0.0.0.0/0", Some("10.1.0.9"))]),
            &["bridge 10.1.0.1/24", "0.0.0.0/0 via 10.1.0.9"],
        ),
        // An IPAM plugin that names no gateway: the subnet's first address.
        (json!({"isGateway": true}), addressing(&[("10.7.0.9/16", None)], &none), &["bridge 10.7.0.1/16"]),
        (json!({}), addressing(&[("10.7.0.9/16", None)], &[("10.9.0.0/16", None)]), &["10.9.0.0/16 on link"]),
        // Two addresses of one range share their gateway.
        (
            json!({"isGateway": true}),
            addressing(&[DUAL[0], ("10.1.0.7/24", Some("10.1.0.1"))], &none),
            &["bridge 10.1.0.1/24"],
        ),
        (json!({"isDefaultGateway": true}), addressing(&[], &none), &[]),
    ];
    for (extra, given, expected) in cases {
        assert_eq!(lines(extra.clone(), given), expected, "{extra}");
    }
}

#[test]
fn a_gateway_at_the_end_of_the_address_space_is_no_panic() {
    let all_ones = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128";
    assert_eq!(lines(json!({"isGateway": true}), addressing(&[(all_ones, None)], &[])), [""; 0]);
}

#[test]
fn the_agent_says_the_mtu_unless_the_configuration_does() {
    let agent = NodeConfig { mtu: Some(1450), ..NodeConfig::default() };
    let node = NodeFacts { id: String::new(), agent: Some(agent) };
    let given = addressing(&DUAL, &[]);
    assert_eq!(wanted(&config(json!({})), attachment(), &given, &node).mtu, Some(1450));
    assert_eq!(wanted(&config(json!({"mtu": 1400})), attachment(), &given, &node).mtu, Some(1400));
    assert_eq!(wanted(&config(json!({})), attachment(), &given, &NodeFacts::default()).mtu, None);
}

#[test]
fn the_result_names_bridge_host_end_and_pod_end_in_the_reference_order() {
    let config = config(json!({"isGateway": true}));
    let addressing = complete(&config, addressing(&DUAL, &[]));
    let wanted = wanted(&config, attachment(), &addressing, &NodeFacts::default());
    let mac = podwire_kernel::MacAddr([2, 0, 0, 0, 0, 7]);
    let attached =
        Attached { bridge_mac: Some(mac), host_mac: None, pod_mac: mac, mtu: 1500, notices: Vec::new() };
    let text = result(&wanted, &attached, &addressing).to_json(config.network.version).expect("valid");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let names: Vec<_> =
        value["interfaces"].as_array().expect("a list").iter().map(|i| i["name"].clone()).collect();
    assert_eq!(names, [json!("cni0"), json!(wanted.attachment.owner.link_name()), json!("eth0")]);
    assert_eq!(value["interfaces"][2]["sandbox"], "/run/netns/x");
    assert_eq!(value["interfaces"][2]["mtu"], 1500);
    assert_eq!(value["ips"][1], json!({"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"}));
}

#[test]
fn a_default_route_in_table_0_is_one_in_the_main_table() {
    let config = config(json!({"isDefaultGateway": true}));
    let mut given = addressing(&[("10.1.0.2/24", None)], &[("0.0.0.0/0", None)]);
    given.routes[0].table = Some(0);
    assert_eq!(complete(&config, given.clone()).routes, given.routes);
}
