use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(interface: u32, address: &str, gateway: &str) -> IpConfig {
    IpConfig { interface: Some(interface), address: network(address), gateway: gateway.parse().ok() }
}

/// A result that says everything it can.
fn full() -> CniResult {
    let interface = |name: &str, sandbox: &str| Interface {
        name: name.into(),
        mac: "02:00:5e:10:00:01".into(),
        sandbox: sandbox.into(),
        mtu: Some(1450),
        socket_path: String::new(),
        pci_id: String::new(),
    };
    CniResult {
        interfaces: vec![interface("podwire0", ""), interface("eth0", "/run/netns/a")],
        ips: vec![ip(1, "10.1.0.7/24", "10.1.0.1"), ip(0, "fd00::7/64", "")],
        routes: vec![
            Route::to(network("0.0.0.0/0")),
            Route {
                dst: network("fd01::/48"),
                gw: "fd00::9".parse().ok(),
                mtu: Some(1400),
                advmss: Some(1340),
                priority: Some(7),
                table: Some(0),
                scope: Some(0),
            },
        ],
        dns: Dns::default(),
    }
}

fn json(result: &CniResult, version: CniVersion) -> Value {
    serde_json::from_str(&result.to_json(version).unwrap()).unwrap()
}

#[test]
fn a_result_of_1_1_says_everything() {
    let expected = concat!(
        r#"{"cniVersion":"1.1.0","interfaces":["#,
        r#"{"name":"podwire0","mac":"02:00:5e:10:00:01","mtu":1450},"#,
        r#"{"name":"eth0","mac":"02:00:5e:10:00:01","mtu":1450,"sandbox":"/run/netns/a"}],"#,
        r#""ips":[{"interface":1,"address":"10.1.0.7/24","gateway":"10.1.0.1"},{"interface":0,"address":"fd00::7/64"}],"#,
        r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"fd01::/48","gw":"fd00::9","mtu":1400,"advmss":1340,"priority":7,"table":0,"scope":0}]}"#,
    );
    assert_eq!(full().to_json(CniVersion::V1_1_0).unwrap(), expected);
}

#[test]
fn a_result_of_1_0_has_neither_mtus_nor_route_attributes() {
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "podwire0", "mac": "02:00:5e:10:00:01"},
            {"name": "eth0", "mac": "02:00:5e:10:00:01", "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"interface": 1, "address": "10.1.0.7/24", "gateway": "10.1.0.1"},
            {"interface": 0, "address": "fd00::7/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/48", "gw": "fd00::9"}],
    });
    assert_eq!(json(&full(), CniVersion::V1_0_0), expected);
}

#[test]
fn results_of_0_3_and_0_4_name_the_family_and_always_have_dns() {
    for version in [CniVersion::V0_3_0, CniVersion::V0_3_1, CniVersion::V0_4_0] {
        let result = json(&full(), version);
        assert_eq!(result["cniVersion"], version.as_str());
        assert_eq!(
            result["ips"][0],
            json!({"version": "4", "interface": 1, "address": "10.1.0.7/24", "gateway": "10.1.0.1"})
        );
        assert_eq!(result["ips"][1], json!({"version": "6", "interface": 0, "address": "fd00::7/64"}));
        assert_eq!(result["dns"], json!({}));
        assert_eq!(result["interfaces"], json(&full(), CniVersion::V1_0_0)["interfaces"]);
    }
}

#[test]
fn results_before_0_3_have_one_address_for_each_family() {
    for version in [CniVersion::V0_1_0, CniVersion::V0_2_0] {
        let expected = json!({
            "cniVersion": version.as_str(),
            "ip4": {"ip": "10.1.0.7/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00::7/64", "routes": [{"dst": "fd01::/48", "gw": "fd00::9"}]},
            "dns": {},
        });
        assert_eq!(json(&full(), version), expected);

        let mut more = full();
        more.ips.push(ip(1, "10.2.0.7/24", ""));
        let mut none = full();
        none.ips.clear();
        for (result, why) in [(more, "there are more"), (none, "there is no IP address")] {
            let error = result.to_json(version).unwrap_err();
            assert_eq!(error.code, code::INVALID_NETWORK_CONFIG);
            assert!(error.msg.contains(why) && error.msg.contains(version.as_str()), "{error}");
        }
    }
}

#[test]
fn dns_is_printed_where_it_says_something() {
    let dns = Dns {
        nameservers: vec!["10.96.0.10".into()],
        domain: "local".into(),
        search: vec!["default.svc".into()],
        options: vec!["ndots:5".into()],
    };
    let expected = json!({"nameservers": ["10.96.0.10"], "domain": "local", "search": ["default.svc"], "options": ["ndots:5"]});
    for version in CniVersion::ALL {
        assert_eq!(json(&CniResult { dns: dns.clone(), ..full() }, version)["dns"], expected, "{version}");
    }
    let empty = CniResult::default();
    assert_eq!(empty.to_json(CniVersion::V1_0_0).unwrap(), r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(empty.to_json(CniVersion::V0_4_0).unwrap(), r#"{"cniVersion":"0.4.0","dns":{}}"#);
}

#[test]
fn any_case_of_keys_and_any_form_is_read() {
    let read = |document: Value| CniResult::parse(document.to_string().as_bytes());
    let result = read(json!({
        "CNIVersion": "1.1.0",
        "Interfaces": [{"Name": "eth0", "MAC": "x", "SocketPath": "/s", "PciID": "0000:00:1f.6", "Mtu": 0, "Sandbox": null}],
        "IPs": [{"Interface": 0, "Address": "10.1.0.7/24", "Gateway": ""}, {"interface": -1, "address": "fd00::7/64"}],
        "Routes": null,
        "DNS": {"NameServers": ["1.1.1.1"]},
        "something": {"newer": true},
    }));
    let result = result.unwrap();
    assert_eq!(
        result.interfaces[0],
        Interface {
            name: "eth0".into(),
            mac: "x".into(),
            socket_path: "/s".into(),
            pci_id: "0000:00:1f.6".into(),
            ..Interface::default()
        }
    );
    assert_eq!(
        result.ips[0],
        IpConfig { interface: Some(0), address: network("10.1.0.7/24"), gateway: None }
    );
    assert_eq!(result.ips[1].interface, None);
    assert_eq!(result.dns.nameservers, ["1.1.1.1"]);

    // A plugin that writes the old form under a new version.
    let result = read(
        json!({"cniVersion": "1.0.0", "IP4": {"ip": "10.1.0.7/24", "routes": [{"Dst": "0.0.0.0/0", "GW": "10.1.0.1"}]}}),
    );
    assert_eq!(result.unwrap().routes[0].gw, "10.1.0.1".parse().ok());
    assert_eq!(read(json!({})), Ok(CniResult::default()));
}

#[test]
fn a_wrong_value_is_named() {
    for (document, named) in [
        (json!({"ips": [{"address": "10.1.0.7"}]}), r#"ips[0].address: "10.1.0.7""#),
        (json!({"ips": [{}]}), "ips[0].address: null"),
        (json!({"ips": [{"address": "10.1.0.7/24", "gateway": "x"}]}), r#"ips[0].gateway: "x""#),
        (json!({"ips": [{"address": "10.1.0.7/24", "interface": -2}]}), "ips[0].interface: -2"),
        (json!({"ips": ["10.1.0.7/24"]}), r#"ips[0]: "10.1.0.7/24""#),
        (json!({"ips": {}}), "ips: {}"),
        (json!({"ip4": {}}), "ip4.ip: null"),
        (json!({"ip6": []}), "ip6: []"),
        (json!({"interfaces": [{"name": 1}]}), "interfaces[0].name: 1"),
        (json!({"interfaces": [{"mtu": -1}]}), "interfaces[0].mtu: -1"),
        (json!({"routes": [{"dst": "default"}]}), r#"routes[0].dst: "default""#),
        (json!({"routes": [{"dst": "::/0", "scope": 256}]}), "routes[0].scope: 256"),
        (json!({"routes": [{"dst": "::/0", "table": 4294967296u64}]}), "routes[0].table: 4294967296"),
        (json!({"dns": {"search": "a"}}), r#"dns.search: "a""#),
        (json!([]), "document: []"),
        (json!(null), "document: null"),
    ] {
        let error = CniResult::parse(document.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG, "{document}");
        assert!(error.msg.starts_with(&format!("invalid {named} ")), "{document}: {error}");
    }
}

fn any_network() -> impl Strategy<Value = IpNetwork> {
    any::<(IpAddr, u8)>().prop_map(|(address, prefix)| {
        let longest = if address.is_ipv4() { 33 } else { 129 };
        IpNetwork::new(address, prefix % longest).unwrap()
    })
}

/// Addresses as they are written: a mapped IPv4 address is read as what it means.
fn any_address() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|address| address.to_canonical())
}

fn any_positive() -> impl Strategy<Value = Option<u32>> {
    proptest::option::of(1..u32::MAX)
}

prop_compose! {
    fn any_interface()(name in "[a-z0-9]{0,15}", mac in ".{0,20}", sandbox in ".{0,20}", mtu in any_positive(), socket_path in ".{0,9}", pci_id in ".{0,9}") -> Interface {
        Interface { name, mac, sandbox, mtu, socket_path, pci_id }
    }
}

prop_compose! {
    fn any_route()(dst in any_network(), gw in proptest::option::of(any_address()), attributes in any::<[bool; 3]>(), numbers in any::<[u16; 3]>(), table in any::<Option<u32>>(), scope in any::<Option<u8>>()) -> Route {
        let [mtu, advmss, priority] = [0, 1, 2].map(|i| attributes[i].then_some(u32::from(numbers[i]) + 1));
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn any_result()(
        interfaces in prop::collection::vec(any_interface(), 0..4),
        ips in prop::collection::vec((any::<Option<u32>>(), any_network(), proptest::option::of(any_address())), 0..4),
        routes in prop::collection::vec(any_route(), 0..4),
        dns in (prop::collection::vec(".{0,9}", 0..3), ".{0,9}", prop::collection::vec(".{0,9}", 0..3)),
    ) -> CniResult {
        let ips = ips.into_iter().map(|(interface, address, gateway)| IpConfig { interface, address, gateway }).collect();
        let (nameservers, domain, search) = dns;
        CniResult { interfaces, ips, routes, dns: Dns { nameservers, domain, search, options: vec![] } }
    }
}

proptest! {
    #[test]
    fn what_a_version_can_say_survives(mut result in any_result()) {
        for version in [CniVersion::V1_1_0, CniVersion::V1_0_0, CniVersion::V0_4_0, CniVersion::V0_3_1, CniVersion::V0_3_0] {
            if version < CniVersion::V1_1_0 {
                for interface in &mut result.interfaces {
                    *interface = Interface { mtu: None, socket_path: String::new(), pci_id: String::new(), ..interface.clone() };
                }
                for route in &mut result.routes {
                    *route = Route { gw: route.gw, ..Route::to(route.dst) };
                }
            }
            let text = result.to_json(version).unwrap();
            prop_assert_eq!(CniResult::parse(text.as_bytes()), Ok(result.clone()));
            // Go would read it with its keys in any case.
            let upper = text.replace("\"ips\":", "\"IPS\":").replace("\"routes\":", "\"Routes\":");
            prop_assert_eq!(CniResult::parse(upper.as_bytes()), Ok(result.clone()));
        }
    }

    #[test]
    fn old_versions_keep_addresses_and_routes(mut result in any_result()) {
        for version in [CniVersion::V0_1_0, CniVersion::V0_2_0] {
            let many = [true, false].map(|ipv4| result.ips.iter().filter(|ip| ip.address.is_ipv4() == ipv4).count());
            match result.to_json(version) {
                Err(_) => prop_assert!(many == [0, 0] || many.iter().any(|n| *n > 1)),
                Ok(text) => {
                    let read = CniResult::parse(text.as_bytes()).unwrap();
                    result.ips.sort_by_key(|ip| ip.address.is_ipv6());
                    let addresses = |result: &CniResult| result.ips.iter().map(|ip| (ip.address, ip.gateway)).collect::<Vec<_>>();
                    prop_assert_eq!(addresses(&read), addresses(&result));
                    // A route of a family without an address has nowhere to stand.
                    let kept = |route: &&Route| result.ips.iter().any(|ip| ip.address.is_ipv4() == route.dst.is_ipv4());
                    prop_assert_eq!(read.routes.len(), result.routes.iter().filter(kept).count());
                    let again = CniResult::parse(read.to_json(version).unwrap().as_bytes());
                    prop_assert_eq!(again, Ok(read));
                }
            }
        }
    }

    #[test]
    fn no_document_panics(text in r#"(\{|\}|\[|\]|:|,|"ips"|"ip4"|"routes"|"dst"|"address"|"10.0.0.0/8"|null|-?[0-9]|"){0,30}"#) {
        let _ = CniResult::parse(text.as_bytes());
    }
}
