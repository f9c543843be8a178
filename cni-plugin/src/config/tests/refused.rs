//! What is wrong, and what is not supported: each names key and value.

use proptest::prelude::*;

use super::*;

fn error(changes: Value) -> CniError {
    match parse_for("ADD", changes.clone()) {
        Ok(config) => panic!("{changes} was taken: {config:?}"),
        Err(error) => error,
    }
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    for (changes, named) in [
        (json!({"mtu": "1500"}), r#"invalid mtu: "1500" "#),
        (json!({"mtu": -1}), "invalid mtu: -1 "),
        (json!({"mtu": 1500.5}), "invalid mtu: 1500.5 "),
        (json!({"mtu": 67}), "invalid mtu: 67 "),
        (json!({"mtu": 65536}), "invalid mtu: 65536 "),
        (
            json!({"mtu": 1279, "ipam": {"type": "host-local", "subnet": "fd00::/64"}}),
            "invalid mtu: 1279 (expected at least 1280 bytes, since ipam has an IPv6 range)",
        ),
        (json!({"bridge": "sixteen_bytes_xy"}), r#"invalid bridge: "sixteen_bytes_xy" "#),
        (json!({"bridge": "a/b"}), r#"invalid bridge: "a/b" "#),
        (json!({"bridge": 5}), "invalid bridge: 5 "),
        (json!({"isGateway": "yes"}), r#"invalid isGateway: "yes" (expected true or false)"#),
        (json!({"isDefaultGateway": 1}), "invalid isDefaultGateway: 1 "),
        (json!({"forceAddress": []}), "invalid forceAddress: [] "),
        (json!({"hairpinMode": {}}), "invalid hairpinMode: {} "),
        (json!({"promiscMode": 0}), "invalid promiscMode: 0 "),
        (json!({"portIsolation": ""}), r#"invalid portIsolation: "" "#),
        (json!({"enabledad": "1"}), r#"invalid enabledad: "1" "#),
        (json!({"disableContainerInterface": 1}), "invalid disableContainerInterface: 1 "),
        (json!({"preserveDefaultVlan": 1}), "invalid preserveDefaultVlan: 1 "),
        (json!({"macspoofchk": 1}), "invalid macspoofchk: 1 "),
        (json!({"ipMasq": "x"}), r#"invalid ipMasq: "x" "#),
        (json!({"ipMasqBackend": 1}), "invalid ipMasqBackend: 1 "),
        (json!({"vlan": "5"}), r#"invalid vlan: "5" "#),
        (json!({"vlanTrunk": 5}), "invalid vlanTrunk: 5 "),
        (json!({"dns": []}), "invalid dns: [] "),
        (json!({"dns": {"nameservers": "1.1.1.1"}}), r#"invalid dns.nameservers: "1.1.1.1" "#),
        (json!({"dns": {"search": [1]}}), "invalid dns.search[0]: 1 "),
        (json!({"stateDir": "var"}), r#"invalid stateDir: "var" (expected an absolute path)"#),
        (json!({"runDir": 1}), "invalid runDir: 1 "),
        (json!({"args": 1}), "invalid args: 1 "),
        (json!({"args": {"cni": "x"}}), r#"invalid args.cni: "x" "#),
        (json!({"args": {"cni": {"mac": "x"}}}), r#"invalid args.cni.mac: "x" "#),
        (
            json!({"args": {"cni": {"mac": "x"}}, "runtimeConfig": {"mac": "02:00:00:00:00:01"}}),
            r#"invalid args.cni.mac: "x" "#,
        ),
        (json!({"args": {"cni": {"ips": "10.1.0.7"}}}), r#"invalid args.cni.ips: "10.1.0.7" "#),
        (json!({"args": {"cni": {"ips": ["10.1.0"]}}}), r#"invalid args.cni.ips[0]: "10.1.0" "#),
        (json!({"runtimeConfig": []}), "invalid runtimeConfig: [] "),
        (
            json!({"runtimeConfig": {"mac": "03:00:00:00:00:01"}}),
            r#"invalid runtimeConfig.mac: "03:00:00:00:00:01" "#,
        ),
        (json!({"runtimeConfig": {"ips": ["10.1.0.7", ""]}}), r#"invalid runtimeConfig.ips[1]: "" "#),
        (json!({"runtimeConfig": {"dns": {"servers": [5]}}}), "invalid runtimeConfig.dns.servers[0]: 5 "),
        (json!({"runtimeConfig": {"portMappings": {}}}), "invalid runtimeConfig.portMappings: {} "),
        (json!({"runtimeConfig": {"bandwidth": 5}}), "invalid runtimeConfig.bandwidth: 5 "),
        (json!({"prevResult": 5}), "invalid prevResult: 5 "),
        (json!({"prevResult": {"ips": [{}]}}), "invalid prevResult.ips[0].address: null "),
        (json!({"ipam": 5}), "invalid ipam: 5 "),
        (json!({"ipam": {"type": 5}}), "invalid ipam.type: 5 "),
        (json!({"name": 5}), "invalid name: 5 "),
        (json!({"name": "../pods"}), r#"invalid name: "../pods" "#),
        (json!({"name": "-pods"}), r#"invalid name: "-pods" "#),
        (json!({"name": null}), "missing network name"),
        (json!({"name": ""}), "missing network name"),
        (
            json!({"hairpinMode": true, "promiscMode": true}),
            "hairpinMode and promiscMode cannot both be true",
        ),
        (json!({"disableContainerInterface": true}), "disableContainerInterface is for L2 attachments"),
    ] {
        let error = error(changes.clone());
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG, "{changes}");
        assert!(error.msg.starts_with(named), "{changes}: {error}");
    }
}

#[test]
fn each_mistake_of_ipam_has_an_error_of_its_own() {
    for (changes, named) in [
        (json!({"subnet": null}), "no IP ranges specified"),
        (json!({"subnet": "", "ranges": []}), "no IP ranges specified"),
        (json!({"subnet": "10.1.0.0"}), r#"invalid ipam.subnet: "10.1.0.0" (expected a subnet"#),
        (json!({"subnet": "10.1.0.7/24"}), "invalid ipam: "),
        (json!({"subnet": "10.1.0.0/31"}), "invalid ipam: "),
        (json!({"rangeStart": "10.2.0.1"}), "invalid ipam: "),
        (json!({"rangeEnd": "10.2.0.1"}), "invalid ipam: "),
        (json!({"rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}), "invalid ipam: "),
        (json!({"gateway": "10.2.0.1"}), "invalid ipam: "),
        (json!({"rangeStart": "x"}), r#"invalid ipam.rangeStart: "x" "#),
        (json!({"rangeEnd": 5}), "invalid ipam.rangeEnd: 5 "),
        (json!({"gateway": "x"}), r#"invalid ipam.gateway: "x" "#),
        (json!({"ranges": {}}), "invalid ipam.ranges: {} "),
        (
            json!({"ranges": [{"subnet": "10.2.0.0/24"}]}),
            r#"invalid ipam.ranges[0]: {"subnet":"10.2.0.0/24"} (expected a list)"#,
        ),
        (json!({"ranges": [[]]}), "invalid ipam.ranges[0]: empty range set"),
        (json!({"ranges": [[{}]]}), "invalid ipam.ranges[0][0].subnet: null "),
        (
            json!({"ranges": [["10.2.0.0/24"]]}),
            r#"invalid ipam.ranges[0][0]: "10.2.0.0/24" (expected an object)"#,
        ),
        (
            json!({"ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "10.3.0.1/24"}]]}),
            "invalid ipam.ranges[1][0]: ",
        ),
        (
            json!({"ranges": [[{"subnet": "10.2.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "invalid ipam.ranges[0]: ",
        ),
        (
            json!({"ranges": [[{"subnet": "10.2.0.0/24"}, {"subnet": "10.2.0.0/25"}]]}),
            "invalid ipam.ranges[0]: ",
        ),
        (json!({"ranges": [[{"subnet": "10.1.0.0/16"}]]}), "range set 0 overlaps with range set 1"),
        (json!({"routes": {}}), "invalid ipam.routes: {} "),
        (json!({"routes": ["default"]}), r#"invalid ipam.routes[0]: "default" "#),
        (json!({"routes": [{}]}), "invalid ipam.routes[0].dst: null "),
        (json!({"routes": [{"dst": "10.0.0.0"}]}), r#"invalid ipam.routes[0].dst: "10.0.0.0" "#),
        (
            json!({"routes": [{"dst": "10.1.2.3/8"}]}),
            r#"invalid ipam.routes[0].dst: "10.1.2.3/8" (expected a network: did you mean 10.0.0.0/8?)"#,
        ),
        (
            json!({"routes": [{"dst": "::/0", "gw": "10.1.0.1"}]}),
            r#"invalid ipam.routes[0].gw: "10.1.0.1" (expected a gateway of the family of dst ::/0)"#,
        ),
        (json!({"routes": [{"dst": "::/0", "gw": "x"}]}), r#"invalid ipam.routes[0].gw: "x" "#),
        (json!({"routes": [{"dst": "::/0", "priority": -1}]}), "invalid ipam.routes[0].priority: -1 "),
        (json!({"routes": [{"dst": "::/0", "scope": 256}]}), "invalid ipam.routes[0].scope: 256 "),
        (json!({"routes": [{"dst": "::/0", "table": "main"}]}), r#"invalid ipam.routes[0].table: "main" "#),
        (
            json!({"routes": [{"dst": "::/0", "mtu": 4294967296u64}]}),
            "invalid ipam.routes[0].mtu: 4294967296 ",
        ),
        (json!({"routes": [{"dst": "::/0", "advmss": "x"}]}), r#"invalid ipam.routes[0].advmss: "x" "#),
        (json!({"dataDir": "relative"}), r#"invalid ipam.dataDir: "relative" "#),
        (json!({"resolvConf": 5}), "invalid ipam.resolvConf: 5 "),
        (json!({"quarantineSeconds": 3601}), "invalid ipam.quarantineSeconds: 3601 "),
        (json!({"type": "../bin/sh"}), r#"invalid ipam.type: "../bin/sh" "#),
        (json!({"type": ".."}), r#"invalid ipam.type: ".." "#),
        (json!({"type": "a\u{0}b"}), "invalid ipam.type: "),
        (json!({"type": "podwire"}), r#"invalid ipam.type: "podwire" "#),
        (json!({"type": "loopback"}), r#"invalid ipam.type: "loopback" "#),
    ] {
        let mut ipam = json!({"type": "host-local", "subnet": "10.1.0.0/24"});
        for (key, value) in changes.as_object().unwrap() {
            ipam[key] = value.clone();
        }
        let error = error(json!({"ipam": ipam}));
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG, "{changes}");
        assert!(error.msg.starts_with(named), "{changes}: {error}");
    }
    // Whatever this program is installed as: it would call itself for ever.
    assert!(error(json!({"type": "mynet", "ipam": {"type": "mynet"}})).msg.starts_with("invalid ipam.type"));
    let error = error(json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.2.0.1/24"}]]}}));
    assert!(error.msg.starts_with("invalid runtimeConfig.ipRanges[0][0]: "), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    for (changes, named) in [
        (json!({"backend": "firewalld"}), r#"unsupported backend: "firewalld" "#),
        (json!({"ipMasqBackend": "firewalld"}), r#"unsupported ipMasqBackend: "firewalld" "#),
        (
            json!({"runtimeConfig": {"bandwidth": {"unshapedSubnets": ["10.0.0.0/8"]}}}),
            r#"unsupported runtimeConfig.bandwidth.unshapedSubnets: ["10.0.0.0/8"] "#,
        ),
        (
            json!({"vlan": 5, "isGateway": true}),
            "unsupported vlan: 5 (isGateway makes the bridge a gateway in ",
        ),
        (json!({"vlan": 5, "isDefaultGateway": true}), "unsupported vlan: 5 "),
        (json!({"shapedSubnets": ["10.0.0.0/8"]}), r#"unsupported shapedSubnets: ["10.0.0.0/8"] "#),
    ] {
        let error = error(changes.clone());
        assert_eq!(error.code, code::UNSUPPORTED_FIELD, "{changes}");
        assert!(error.msg.starts_with(named), "{changes}: {error}");
        for verb in ["CHECK", "STATUS"] {
            assert_eq!(parse_for(verb, changes.clone()).unwrap_err().code, code::UNSUPPORTED_FIELD, "{verb}");
        }
        // What is removed stands in the leases.
        for verb in ["DEL", "GC"] {
            assert_eq!(parse_for(verb, changes.clone()).unwrap().ignored, Vec::<String>::new(), "{verb}");
        }
    }
}

#[test]
fn removal_gets_by_with_what_is_left() {
    let broken = json!({
        "mtu": "x", "bridge": 5, "isGateway": "yes", "ipMasq": true, "dns": 5, "prevResult": {"ips": 5}, "args": 5, "runtimeConfig": 7,
        "ipam": {"type": "host-local", "subnet": "nonsense", "routes": 5, "dataDir": "/data", "quarantineSeconds": "x"},
    });
    for verb in ["DEL", "GC"] {
        let config = parse_for(verb, broken.clone()).unwrap();
        // dataDir is what an import needs.
        assert_eq!(config.ignored.len(), 11, "{:#?}", config.ignored);
        assert_eq!((config.prev_result.clone(), config.bridge.clone()), (None, BridgeConfig::default()));
        let ipam = in_process(config);
        assert_eq!((ipam.data_dir.to_str(), ipam.sets.len(), ipam.quarantine_ms), (Some("/data"), 0, 60_000));
    }
    // Without these it would look in the wrong place, or answer in the wrong form.
    for (changes, wanted) in [
        (json!({"name": null}), code::INVALID_NETWORK_CONFIG),
        (json!({"cniVersion": "x"}), code::DECODING_FAILURE),
        (json!({"cniVersion": 1}), code::DECODING_FAILURE),
        (json!({"cniVersion": "9.9.9"}), code::INCOMPATIBLE_VERSION),
        (json!({"stateDir": 5}), code::INVALID_NETWORK_CONFIG),
    ] {
        assert_eq!(parse_for("DEL", changes.clone()).unwrap_err().code, wanted, "{changes}");
    }
    let config = parse_for("DEL", json!({"ipam": {"type": "host-local", "dataDir": "relative"}})).unwrap();
    assert_eq!(in_process(config).data_dir.to_str(), Some("/var/lib/cni/networks"));
    // A delegate that must not be run is not run.
    let config = parse_for("DEL", json!({"ipam": {"type": "podwire"}})).unwrap();
    assert_eq!((config.ipam, config.ignored.len()), (Ipam::None, 1));
}

#[test]
fn old_versions_hold_one_address_of_a_family() {
    let ranges =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]});
    for verb in ["ADD", "DEL"] {
        let error = parse_for(verb, json!({"cniVersion": "0.2.0", "ipam": ranges})).unwrap_err();
        assert_eq!(error.msg, "CNI version 0.2.0 does not support more than 1 address per family");
        assert!(parse_for(verb, json!({"cniVersion": "0.3.0", "ipam": ranges})).is_ok());
    }
    let dual =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]});
    assert!(parse_for("ADD", json!({"cniVersion": "0.1.0", "ipam": dual})).is_ok());
}

#[test]
fn input_that_is_no_configuration() {
    for wrong in ["", "[]", "null", "5", "\"name\"", "{", "{}{}"] {
        let error = Config::parse(wrong.as_bytes(), &environment("ADD", "")).unwrap_err();
        assert_eq!(error.code, code::DECODING_FAILURE, "{wrong}");
        assert_eq!(Config::parse(wrong.as_bytes(), &environment("DEL", "")).unwrap_err(), error);
        assert_eq!(LoopbackConfig::parse(wrong.as_bytes(), Verb::Add).unwrap_err(), error);
    }
}

#[test]
fn an_error_is_written_in_the_configurations_version() {
    let version = |document: &str| Network::version_of(document.as_bytes());
    assert_eq!(version(r#"{"CNIVersion":"0.3.1","mtu":"x"}"#), CniVersion::V0_3_1);
    assert_eq!(version("{}"), CniVersion::V0_1_0);
    for unknown in ["", "[", r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVersion":1}"#] {
        assert_eq!(version(unknown), CniVersion::LATEST, "{unknown}");
    }
}

#[test]
fn verbs_are_refused_before_their_version() {
    for (verb, version, allowed) in [
        ("CHECK", "0.3.1", false),
        ("CHECK", "0.4.0", true),
        ("GC", "1.0.0", false),
        ("STATUS", "1.0.0", false),
        ("STATUS", "1.1.0", true),
    ] {
        let outcome = parse_for(verb, json!({"cniVersion": version}));
        assert_eq!(
            outcome.as_ref().err().map(|error| error.code),
            (!allowed).then_some(code::INCOMPATIBLE_VERSION),
            "{verb} {version}"
        );
    }
}

/// A configuration with every key.
fn whole() -> Value {
    with(json!({
        "bridge": "br0", "mtu": 1400, "isGateway": true, "vlan": 0, "preserveDefaultVlan": true, "vlanTrunk": [{"id": 1, "minID": 4, "maxID": 5}], "dns": {"nameservers": ["a"]},
        "args": {"cni": {"ips": ["10.1.0.7"], "mac": "02:00:00:00:00:01", "sysctl": {"net.a": "1"}, "promisc": true, "txQLen": 1}},
        "ipMasq": true, "ipMasqBackend": "nftables", "masqueradeRandom": false, "clusterRanges": ["10.0.0.0/8"],
        "snat": true, "masqAll": false, "markMasqBit": 13, "backend": "iptables", "conditionsV4": ["ip saddr 10.0.0.1"], "conditionsV6": [],
        "ingressRate": 8, "ingressBurst": 8, "egressRate": 8, "egressBurst": 8, "ingressPolicy": "isolated", "macspoofchk": true, "addressCheck": true,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "5"}, "mac": "02:00:00:00:00:02", "promisc": true, "allmulti": true, "txQLen": 5,
        "runtimeConfig": {"ips": ["10.1.0.8/24"], "ipRanges": [[{"subnet": "10.2.0.0/24"}]], "portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "tcp", "hostIP": "::"}], "bandwidth": {"ingressRate": 8, "ingressBurst": 9}},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}]], "routes": [{"dst": "0.0.0.0/0", "table": 5}]},
        "prevResult": {"ips": [{"address": "10.1.0.7/24", "interface": 0}], "interfaces": [{"name": "a"}], "routes": [{"dst": "::/0"}]},
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "b"}],
    }))
}

#[test]
fn a_configuration_with_every_key_is_taken() {
    for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
        let environment = environment(verb, "");
        let document = whole().to_string();
        assert_eq!(Config::parse(document.as_bytes(), &environment).map(|config| config.ignored), Ok(vec![]));
        assert!(TuningConfig::parse(document.as_bytes(), &environment).is_ok());
    }
}

/// A configuration in which one value, anywhere, is replaced by one of another kind.
fn spoilt() -> impl Strategy<Value = Value> {
    let good = whole();
    let mut pointers = Vec::new();
    collect(&good, String::new(), &mut pointers);
    let other = prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[{}]])),
        Just(json!(true)),
        Just(json!(-1)),
        Just(json!(1.5)),
        Just(json!(u64::MAX)),
        Just(json!("")),
        "[0-9a-f:./]{1,20}".prop_map(Value::from),
        ".{1,20}".prop_map(Value::from),
    ];
    (proptest::sample::select(pointers), other).prop_map(move |(pointer, other)| {
        let mut spoilt = good.clone();
        *spoilt.pointer_mut(&pointer).expect("collected from it") = other;
        spoilt
    })
}

fn collect(value: &Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| {
                collect(value, format!("{pointer}/{}", key.replace('/', "~1")), pointers)
            });
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| collect(value, format!("{pointer}/{i}"), pointers))
        }
        _ => {}
    }
    pointers.push(pointer);
}

proptest! {
    #[test]
    fn one_wrong_value_is_an_error_or_nothing_and_never_a_panic(document in spoilt()) {
        let document = document.to_string();
        for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
            let environment = environment(verb, "");
            let main = Config::parse(document.as_bytes(), &environment).map(|config| check_chained(&config).err());
            let tuning = TuningConfig::parse(document.as_bytes(), &environment).map(|_| None);
            for error in [main, tuning].into_iter().filter_map(|outcome| outcome.unwrap_or_else(Some)) {
                prop_assert!(matches!(error.code, 1 | 2 | 6 | 7), "{}", error);
                prop_assert!(!error.msg.is_empty() && error.msg.len() < 1000);
            }
        }
    }
}
