//! Host ports, masquerade, shaping, policy and VLANs.

use ipnetwork::IpNetwork;
use podwire_attach::plan::{Vlan, VlanMembership};
use podwire_attach::{IngressPolicy, Masquerade, PortMapping, Protocol, RateLimit, Shaping, Snat};

use super::*;

fn traffic(changes: Value) -> TrafficConfig {
    parse(changes).traffic
}

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ports(mappings: Value) -> Vec<String> {
    let ports = traffic(json!({"runtimeConfig": {"portMappings": mappings}})).ports;
    ports.iter().map(|port| format!("{port} to {}", port.container_port)).collect()
}

#[test]
fn nothing_is_done_to_traffic_unless_asked_for() {
    assert_eq!(traffic(json!({})), TrafficConfig::default());
    assert_eq!(TrafficConfig::default().port_access.snat, Snat::Needed);
    for nothing in [
        json!({"vlan": 0, "vlanTrunk": [], "macspoofchk": false, "ipMasq": false, "ipMasqBackend": "iptables"}),
        json!({"runtimeConfig": {"portMappings": [], "bandwidth": {"ingressRate": 0, "egressBurst": 0}}}),
        json!({"runtimeConfig": {"portMappings": null, "bandwidth": null}}),
        json!({"ingressRate": 0, "ingressBurst": 0, "ingressPolicy": "", "backend": "", "conditionsV4": []}),
        json!({"ingressPolicy": "open", "backend": "nftables", "snat": true, "markMasqBit": 13, "addressCheck": false}),
    ] {
        assert_eq!(traffic(nothing.clone()), TrafficConfig::default(), "{nothing}");
    }
}

#[test]
fn masquerade_leaves_pods_alone() {
    let config = traffic(json!({"ipMasq": true, "clusterRanges": ["10.244.0.0/16", "fd00:10::/32"]}));
    let subnets = networks(&["10.1.0.7/24", "fd00:10:1::7/64", "10.244.3.0/24"]);
    let masquerade = config.masquerade_for(&subnets, &networks(&["10.244.0.0/16", "10.9.0.0/16"])).unwrap();
    let inside = networks(&["10.1.0.0/24", "10.9.0.0/16", "10.244.0.0/16", "fd00:10::/32"]);
    assert_eq!(masquerade, Masquerade { inside, fully_random: true });
    let plain = traffic(json!({"ipMasq": true, "masqueradeRandom": false, "ipMasqBackend": "iptables"}));
    assert_eq!(plain.masquerade_for(&[], &[]), Some(Masquerade { inside: vec![], fully_random: false }));
    let off = traffic(json!({"clusterRanges": ["10.244.0.0/16"], "masqueradeRandom": true}));
    assert_eq!(off.masquerade_for(&subnets, &[]), None);
}

#[test]
fn host_ports_are_read_whoever_writes_them() {
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"HostPort": 53, "ContainerPort": 5353, "Protocol": "UDP", "HostIP": ""},
        {"hostPort": 8080, "containerPort": 81, "protocol": "sctp", "hostIP": "0.0.0.0"},
        {"hostPort": 65535, "containerPort": 65535, "hostIP": "::", "protocol": null},
        {"hostPort": 1, "containerPort": 1, "hostIP": "::ffff:192.0.2.1"},
        {"hostPort": 8080, "containerPort": 82, "hostIP": "2001:db8::1"},
    ]);
    assert_eq!(
        ports(mappings),
        [
            "8080/tcp to 80",
            "53/udp to 5353",
            "0.0.0.0:8080/sctp to 81",
            "[::]:65535/tcp to 65535",
            "192.0.2.1:1/tcp to 1",
            "[2001:db8::1]:8080/tcp to 82",
        ]
    );
}

#[test]
fn a_port_is_on_the_families_that_the_pod_has() {
    let mappings = json!([
        {"hostPort": 80, "containerPort": 80},
        {"hostPort": 81, "containerPort": 80, "hostIP": "0.0.0.0"},
        {"hostPort": 82, "containerPort": 80, "hostIP": "::"},
        {"hostPort": 83, "containerPort": 80, "hostIP": "192.0.2.1"},
        {"hostPort": 84, "containerPort": 80, "hostIP": "2001:db8::1"},
    ]);
    let config = traffic(json!({"runtimeConfig": {"portMappings": mappings}}));
    let of = |addresses: &[&str]| -> Vec<String> {
        config.ports_for(networks(addresses)).iter().map(PortMapping::to_string).collect()
    };
    let (v4, v6) = (["0.0.0.0:81/tcp", "192.0.2.1:83/tcp"], ["[::]:82/tcp", "[2001:db8::1]:84/tcp"]);
    assert_eq!(of(&["10.1.0.7/24"]), ["0.0.0.0:80/tcp", v4[0], v4[1]]);
    assert_eq!(of(&["fd00::7/64"]), ["[::]:80/tcp", v6[0], v6[1]]);
    assert_eq!(of(&["10.1.0.7/24", "fd00::7/64"]), ["80/tcp", v4[0], v6[0], v4[1], v6[1]]);
    assert_eq!(of(&[]), Vec::<String>::new());
}

#[test]
fn one_port_leads_to_one_place() {
    let two = |one: Value, other: Value| {
        let mapping = |mut keys: Value| {
            keys["hostPort"] = 80.into();
            keys["containerPort"] = 8080.into();
            keys
        };
        parse_for(
            "ADD",
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1}, mapping(one), mapping(other)]}}),
        )
    };
    for (one, other) in [
        (json!({}), json!({})),
        (json!({}), json!({"hostIP": "0.0.0.0"})),
        (json!({"hostIP": "::"}), json!({})),
        (json!({"hostIP": "::1"}), json!({"hostIP": "0:0::1"})),
        (
            json!({"hostIP": "192.0.2.1", "protocol": "tcp"}),
            json!({"hostIP": "192.0.2.1", "protocol": "TCP"}),
        ),
    ] {
        let error = two(one.clone(), other.clone()).unwrap_err();
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG);
        let start = "invalid runtimeConfig.portMappings[2]: host port ";
        let end = "80/tcp is the same as that of runtimeConfig.portMappings[1]";
        assert!(error.msg.starts_with(start) && error.msg.ends_with(end), "{one} {other}: {error}");
    }
    for (one, other) in [
        (json!({}), json!({"protocol": "udp"})),
        (json!({"hostIP": "0.0.0.0"}), json!({"hostIP": "::"})),
        // An address of its own goes before any address.
        (json!({}), json!({"hostIP": "127.0.0.1"})),
        (json!({"hostIP": "192.0.2.1"}), json!({"hostIP": "192.0.2.2"})),
    ] {
        assert!(two(one.clone(), other.clone()).is_ok(), "{one} {other}");
    }
}

#[test]
fn host_ports_are_reached_as_portmap_has_it() {
    for (keys, expected) in [
        (json!({}), Snat::Needed),
        (json!({"snat": true}), Snat::Needed),
        (json!({"masqAll": true}), Snat::All),
        (json!({"snat": false}), Snat::Off),
        (json!({"snat": false, "masqAll": true}), Snat::Off),
        (json!({"snat": null, "masqAll": null}), Snat::Needed),
        (json!({"markMasqBit": 0}), Snat::Needed),
        (json!({"externalSetMarkChain": "KUBE-MARK-MASQ", "backend": "iptables"}), Snat::Needed),
    ] {
        assert_eq!(traffic(keys.clone()).port_access.snat, expected, "{keys}");
    }
    let conditions = json!({"conditionsV4": ["ip saddr 192.0.2.0/24"], "conditionsV6": ["ip6 saddr 2001:db8::/32", "tcp sport 1-1023"]});
    let access = traffic(conditions).port_access;
    assert_eq!(access.conditions_v4, ["ip saddr 192.0.2.0/24"]);
    assert_eq!(access.conditions_v6, ["ip6 saddr 2001:db8::/32", "tcp sport 1-1023"]);
}

#[test]
fn an_error_about_a_condition_has_an_end() {
    let error = parse_for("ADD", json!({"conditionsV4": ["x".repeat(100_000)]})).unwrap_err();
    assert!(error.msg.starts_with("invalid conditionsV4: \"xxx") && error.msg.len() < 500, "{error}");
}

#[test]
fn rates_of_the_network_beat_those_of_the_runtime() {
    let limit = |rate, burst| Some(RateLimit { rate, burst });
    let runtime = json!({"bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295u64, "EgressRate": 2_000_000, "EgressBurst": 80_000}});
    let shaping = |mut keys: Value| {
        keys["runtimeConfig"] = runtime.clone();
        traffic(keys).shaping
    };
    let of_runtime = Shaping { to_pod: limit(1_000_000, None), from_pod: limit(2_000_000, Some(80_000)) };
    assert_eq!(shaping(json!({})), of_runtime);
    assert_eq!(shaping(json!({"ingressRate": null, "egressBurst": null})), of_runtime);
    let own = json!({"ingressRate": 8, "ingressBurst": 34_359_738_359u64});
    assert_eq!(shaping(own), Shaping { to_pod: limit(8, Some(34_359_738_359)), from_pod: None });
    assert_eq!(shaping(json!({"egressRate": 0, "egressBurst": 0})), Shaping::default());
    let greatest = json!({"egressRate": u64::MAX, "egressBurst": 1});
    assert_eq!(shaping(greatest), Shaping { to_pod: None, from_pod: limit(u64::MAX, Some(1)) });
}

#[test]
fn policies_and_checks() {
    for (text, expected) in [
        ("open", IngressPolicy::Open),
        ("same-bridge", IngressPolicy::SameBridge),
        ("isolated", IngressPolicy::Isolated),
    ] {
        assert_eq!(traffic(json!({"ingressPolicy": text})).ingress, expected);
    }
    let checks = |keys: Value| {
        let config = traffic(keys);
        (config.mac_check, config.address_check)
    };
    assert_eq!(checks(json!({"macspoofchk": true})), (true, false));
    assert_eq!(checks(json!({"addressCheck": true})), (true, true));
    assert_eq!(checks(json!({"macspoofchk": false, "addressCheck": true})), (true, true));
    assert_eq!(checks(json!({"macspoofchk": true, "ipam": {}})), (true, false));
}

#[test]
fn addresses_are_checked_where_they_are_known() {
    let l2 = json!({"ipam": {}, "addressCheck": true});
    let error = parse_for("ADD", l2.clone()).unwrap_err();
    assert_eq!(error.msg, "addressCheck needs ipam: without it podwire does not know the pod's addresses");
    for verb in ["STATUS", "DEL", "GC"] {
        assert!(parse_for(verb, l2.clone()).is_ok(), "{verb}");
    }
    // Behind another plugin they are that plugin's.
    let chained =
        json!({"ipam": {}, "addressCheck": true, "prevResult": {"ips": [{"address": "10.1.0.7/24"}]}});
    assert!(traffic(chained).address_check);
    assert!(traffic(json!({"ipam": {"type": "dhcp"}, "addressCheck": true})).address_check);
}

#[test]
fn vlans_of_a_port() {
    let vlan = |keys: Value| parse(keys).bridge.vlan;
    let access =
        |id, preserve_default| Some(Vlan { membership: VlanMembership::Access(id), preserve_default });
    assert_eq!(vlan(json!({"vlan": 0, "preserveDefaultVlan": false})), None);
    assert_eq!(vlan(json!({"vlan": 1})), access(1, true));
    assert_eq!(
        vlan(json!({"vlan": 4094, "preserveDefaultVlan": false, "vlanTrunk": []})),
        access(4094, false)
    );
    for (items, expected) in [
        (json!([{"id": 7}]), vec![7..=7]),
        (json!([{"ID": 9, "minID": 20, "maxID": 30}, {"id": 10}]), vec![9..=10, 20..=30]),
        (json!([{"minID": 1, "maxID": 4094}, {"minID": 5, "maxID": 6}, {"id": 4094}]), vec![1..=4094]),
        (json!([{"minID": 7, "maxID": 7}, {}, {"id": null}, null]), vec![7..=7]),
    ] {
        let membership = VlanMembership::Trunk(expected);
        assert_eq!(
            vlan(json!({"vlanTrunk": items})),
            Some(Vlan { membership, preserve_default: true }),
            "{items}"
        );
    }
    assert_eq!(vlan(json!({"vlanTrunk": [{}]})), None);
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    let port = |key: &str, value: Value| {
        let mut mapping = json!({"hostPort": 80, "containerPort": 8080, "protocol": "tcp"});
        mapping[key] = value;
        json!({"runtimeConfig": {"portMappings": [mapping]}})
    };
    let bandwidth = |keys: Value| json!({"runtimeConfig": {"bandwidth": keys}});
    for (changes, named) in [
        (json!({"ipMasq": "x"}), r#"invalid ipMasq: "x" "#),
        (json!({"ipMasqBackend": 1}), "invalid ipMasqBackend: 1 "),
        (
            json!({"ipMasqBackend": "ebtables"}),
            r#"invalid ipMasqBackend: "ebtables" (expected iptables or nftables)"#,
        ),
        (json!({"masqueradeRandom": "yes"}), r#"invalid masqueradeRandom: "yes" "#),
        (json!({"clusterRanges": "10.0.0.0/8"}), r#"invalid clusterRanges: "10.0.0.0/8" (expected a list)"#),
        (json!({"clusterRanges": ["10.0.0.0"]}), r#"invalid clusterRanges[0]: "10.0.0.0" "#),
        (json!({"clusterRanges": ["10.0.0.0/8", ""]}), r#"invalid clusterRanges[1]: "" "#),
        (
            json!({"clusterRanges": ["10.1.0.0/8"]}),
            r#"invalid clusterRanges[0]: "10.1.0.0/8" (expected a network: did you mean 10.0.0.0/8?)"#,
        ),
        (json!({"runtimeConfig": {"portMappings": {}}}), "invalid runtimeConfig.portMappings: {} "),
        (json!({"runtimeConfig": {"portMappings": [80]}}), "invalid runtimeConfig.portMappings[0]: 80 "),
        (
            json!({"runtimeConfig": {"portMappings": [{}]}}),
            "invalid runtimeConfig.portMappings[0].hostPort: null ",
        ),
        (
            port("hostPort", json!(0)),
            "invalid runtimeConfig.portMappings[0].hostPort: 0 (expected a whole number from 1 to 65535)",
        ),
        (port("hostPort", json!(65536)), "invalid runtimeConfig.portMappings[0].hostPort: 65536 "),
        (port("hostPort", json!(-1)), "invalid runtimeConfig.portMappings[0].hostPort: -1 "),
        (port("hostPort", json!("80")), r#"invalid runtimeConfig.portMappings[0].hostPort: "80" "#),
        (port("containerPort", json!(0)), "invalid runtimeConfig.portMappings[0].containerPort: 0 "),
        (port("containerPort", json!(65536)), "invalid runtimeConfig.portMappings[0].containerPort: 65536 "),
        (
            port("containerPort", json!(null)),
            "invalid runtimeConfig.portMappings[0].containerPort: null (expected a port from 1 to 65535)",
        ),
        (
            port("protocol", json!("icmp")),
            r#"invalid runtimeConfig.portMappings[0].protocol: "icmp" (expected tcp, udp or sctp)"#,
        ),
        (port("protocol", json!(6)), "invalid runtimeConfig.portMappings[0].protocol: 6 "),
        (port("hostIP", json!("localhost")), r#"invalid runtimeConfig.portMappings[0].hostIP: "localhost" "#),
        (
            port("hostIP", json!("192.0.2.1/24")),
            r#"invalid runtimeConfig.portMappings[0].hostIP: "192.0.2.1/24" "#,
        ),
        (
            port("hostIP", json!("fe80::1%eth0")),
            r#"invalid runtimeConfig.portMappings[0].hostIP: "fe80::1%eth0" "#,
        ),
        (port("hostIP", json!(1)), "invalid runtimeConfig.portMappings[0].hostIP: 1 "),
        (json!({"snat": 1}), "invalid snat: 1 "),
        (json!({"masqAll": "x"}), r#"invalid masqAll: "x" "#),
        (json!({"markMasqBit": 32}), "invalid markMasqBit: 32 (expected a whole number from 0 to 31)"),
        (json!({"markMasqBit": -1}), "invalid markMasqBit: -1 "),
        (json!({"externalSetMarkChain": 1}), "invalid externalSetMarkChain: 1 "),
        (
            json!({"markMasqBit": 13, "externalSetMarkChain": "X"}),
            "markMasqBit and externalSetMarkChain cannot both be set",
        ),
        (json!({"backend": "x"}), r#"invalid backend: "x" "#),
        (json!({"conditionsV4": "ip saddr 10.0.0.1"}), "invalid conditionsV4: "),
        (json!({"conditionsV4": [""]}), r#"invalid conditionsV4[0]: "" "#),
        (json!({"conditionsV6": [5]}), "invalid conditionsV6[0]: 5 "),
        (json!({"conditionsV4": ["ip", "saddr"]}), "invalid conditionsV4: nothing where a value is expected"),
        (
            json!({"conditionsV4": ["-s", "192.0.2.0/24"]}),
            r#"invalid conditionsV4: "-s" where ip, ip6, tcp, udp, sctp, th, meta, iifname, oifname, mark or ct is expected; write matches of nft, such as "ip saddr 192.0.2.0/24""#,
        ),
        (
            json!({"conditionsV6": ["ip saddr 192.0.2.0/24"]}),
            r#"invalid conditionsV6: "ip" where ip6 is expected"#,
        ),
        (json!({"runtimeConfig": {"bandwidth": 5}}), "invalid runtimeConfig.bandwidth: 5 "),
        (
            bandwidth(json!({"ingressRate": 1000})),
            "invalid runtimeConfig.bandwidth.ingressBurst: null (expected bits, since runtimeConfig.bandwidth.ingressRate is set)",
        ),
        (
            bandwidth(json!({"egressBurst": 1000})),
            "invalid runtimeConfig.bandwidth.egressRate: null (expected bits per second, since runtimeConfig.bandwidth.egressBurst is set)",
        ),
        (bandwidth(json!({"ingressRate": -1})), "invalid runtimeConfig.bandwidth.ingressRate: -1 "),
        (bandwidth(json!({"ingressRate": "1M"})), r#"invalid runtimeConfig.bandwidth.ingressRate: "1M" "#),
        (
            json!({"ingressRate": 1000, "ingressBurst": 0}),
            "invalid ingressBurst: 0 (expected bits, since ingressRate is set)",
        ),
        (
            json!({"egressRate": 7, "egressBurst": 8}),
            "invalid egressRate: 7 (expected 0 for no limit, or at least 8 bits per second)",
        ),
        (
            json!({"egressRate": 8, "egressBurst": 34_359_738_360u64}),
            "invalid egressBurst: 34359738360 (expected a whole number from 0 to 34359738359)",
        ),
        // Where the network's own keys win, the runtime's are read all the same.
        (
            json!({"egressRate": 8, "egressBurst": 8, "runtimeConfig": {"bandwidth": {"ingressRate": 8}}}),
            "invalid runtimeConfig.bandwidth.ingressBurst: null ",
        ),
        (json!({"shapedSubnets": 5}), "invalid shapedSubnets: 5 "),
        (
            json!({"ingressPolicy": "closed"}),
            r#"invalid ingressPolicy: "closed" (expected open, same-bridge or isolated)"#,
        ),
        (json!({"ingressPolicy": true}), "invalid ingressPolicy: true "),
        (json!({"macspoofchk": 1}), "invalid macspoofchk: 1 "),
        (json!({"addressCheck": "on"}), r#"invalid addressCheck: "on" "#),
        (json!({"vlan": "5"}), r#"invalid vlan: "5" "#),
        (json!({"vlan": 4095}), "invalid vlan: 4095 (expected a whole number from 0 to 4094)"),
        (json!({"vlan": -1}), "invalid vlan: -1 "),
        (json!({"vlanTrunk": 5}), "invalid vlanTrunk: 5 "),
        (json!({"vlanTrunk": [5]}), "invalid vlanTrunk[0]: 5 "),
        (json!({"vlanTrunk": [{"id": 0}]}), "invalid vlanTrunk[0].id: 0 "),
        (json!({"vlanTrunk": [{"id": 4095}]}), "invalid vlanTrunk[0].id: 4095 "),
        (
            json!({"vlanTrunk": [{"minID": 5}]}),
            "invalid vlanTrunk[0].maxID: null (expected a VLAN id, since minID is set)",
        ),
        (
            json!({"vlanTrunk": [{"maxID": 5}]}),
            "invalid vlanTrunk[0].minID: null (expected a VLAN id, since maxID is set)",
        ),
        (
            json!({"vlanTrunk": [{"minID": 6, "maxID": 5}]}),
            "invalid vlanTrunk[0].minID: 6 (expected at most maxID, which is 5)",
        ),
        (json!({"vlan": 5, "vlanTrunk": [{"id": 6}]}), "vlan and vlanTrunk cannot both be set"),
        (json!({"preserveDefaultVlan": 1}), "invalid preserveDefaultVlan: 1 "),
    ] {
        for verb in ["ADD", "CHECK", "STATUS"] {
            let error = parse_for(verb, changes.clone()).unwrap_err();
            assert_eq!(error.code, code::INVALID_NETWORK_CONFIG, "{changes}: {error}");
            assert!(error.msg.starts_with(named), "{changes}: {error}");
        }
        for verb in ["DEL", "GC"] {
            assert!(parse_for(verb, changes.clone()).is_ok(), "{verb} {changes}");
        }
    }
}

#[test]
fn removal_knows_nothing_of_ports() {
    let keys = json!({
        "ipMasq": true, "macspoofchk": true, "ingressPolicy": "isolated", "vlan": 5, "sysctl": {"net.core.somaxconn": "1"},
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}], "bandwidth": {"ingressRate": 8, "ingressBurst": 8}},
    });
    for verb in ["DEL", "GC"] {
        let config = parse_for(verb, keys.clone()).unwrap();
        assert_eq!((config.traffic, config.bridge.vlan), (TrafficConfig::default(), None));
        assert_eq!((config.tuning, config.ignored), (TuningSettings::default(), vec![]));
    }
    assert_eq!(traffic(keys).ports.first().map(|port| port.protocol), Some(Protocol::Tcp));
}

#[test]
fn behind_another_plugin_only_what_can_be_added() {
    let chained = |keys: Value| {
        let mut document = with(json!({"ipam": null, "prevResult": {"ips": []}}));
        for (key, value) in keys.as_object().unwrap() {
            document[key] = value.clone();
        }
        check_chained(&Config::parse(document.to_string().as_bytes(), &environment("ADD", "")).unwrap())
    };
    for fine in [
        json!({}),
        json!({"ipam": {}, "bridge": "", "isGateway": false, "vlan": 0, "vlanTrunk": [], "dns": {}}),
        json!({"mtu": 1400, "mac": "02:00:00:00:00:01", "promisc": true, "ipMasq": true, "macspoofchk": true, "ingressRate": 8, "ingressBurst": 8}),
    ] {
        assert_eq!(chained(fine.clone()), Ok(()), "{fine}");
    }
    for (key, value) in [
        ("ipam", json!({"type": "host-local", "subnet": "10.1.0.0/24"})),
        ("bridge", json!("br0")),
        ("isGateway", json!(true)),
        ("isDefaultGateway", json!(true)),
        ("forceAddress", json!(true)),
        ("hairpinMode", json!(true)),
        ("promiscMode", json!(true)),
        ("portIsolation", json!(true)),
        ("enabledad", json!(true)),
        ("disableContainerInterface", json!(true)),
        ("vlan", json!(5)),
        ("vlanTrunk", json!([{"id": 5}])),
        ("dns", json!({"search": []})),
    ] {
        let error = chained(json!({key: value})).unwrap_err();
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG);
        assert!(error.msg.contains(&format!("whose part {key} would be")), "{error}");
    }
}
