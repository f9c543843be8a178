use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::protocol::CniVersion;

mod recorded;
mod refused;
mod traffic;
mod tuning;

fn environment(verb: &str, args: &str) -> Environment {
    let variables = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    Environment::parse(variables.map(|(name, value)| (name.into(), value.into()))).unwrap().unwrap()
}

/// A small configuration, its keys replaced by these.
fn with(changes: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.1.0",
        "name": "pods",
        "type": "podwire",
        "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"},
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn parse_for(verb: &str, changes: Value) -> Result<Config, CniError> {
    Config::parse(with(changes).to_string().as_bytes(), &environment(verb, ""))
}

fn parse(changes: Value) -> Config {
    parse_for("ADD", changes).unwrap()
}

fn in_process(config: Config) -> IpamConfig {
    match config.ipam {
        Ipam::InProcess(config) => *config,
        other => panic!("not in process: {other:?}"),
    }
}

fn ipam(changes: Value) -> IpamConfig {
    in_process(parse(changes))
}

fn sets(config: &IpamConfig) -> Vec<String> {
    config.sets.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_the_reference_plugins() {
    let config = parse(json!({}));
    assert_eq!(config.bridge, BridgeConfig::default());
    assert_eq!((config.bridge.name.as_str(), config.bridge.mtu), ("cni0", None));
    assert_eq!(
        (config.state_dir.to_str(), config.run_dir.to_str()),
        (Some("/var/lib/podwire"), Some("/run/podwire"))
    );
    assert_eq!(
        (&config.dns, &config.mac, &config.prev_result, &config.runtime_dns),
        (&None, &None, &None, &None)
    );
    assert_eq!(
        config.network,
        Network { version: CniVersion::V1_1_0, name: "pods".into(), plugin: "podwire".into() }
    );
    let ipam = in_process(config);
    assert_eq!(ipam.plugin, InProcess::HostLocal);
    assert_eq!((ipam.data_dir.to_str(), ipam.quarantine_ms), (Some("/var/lib/cni/networks"), 60_000));
    assert_eq!(
        (ipam.routes, ipam.requested, ipam.resolv_conf, ipam.node_ranges),
        (vec![], vec![], None, false)
    );
}

#[test]
fn null_is_the_default_and_unknown_keys_are_ignored() {
    let keys = [
        "bridge",
        "mtu",
        "isGateway",
        "isDefaultGateway",
        "forceAddress",
        "ipMasq",
        "ipMasqBackend",
        "hairpinMode",
        "promiscMode",
        "vlan",
        "vlanTrunk",
        "preserveDefaultVlan",
        "macspoofchk",
        "enabledad",
        "disableContainerInterface",
        "portIsolation",
        "masqueradeRandom",
        "clusterRanges",
        "snat",
        "masqAll",
        "markMasqBit",
        "externalSetMarkChain",
        "backend",
        "conditionsV4",
        "conditionsV6",
        "ingressRate",
        "ingressBurst",
        "egressRate",
        "egressBurst",
        "ingressPolicy",
        "addressCheck",
        "sysctl",
        "mac",
        "promisc",
        "allmulti",
        "txQLen",
        "dns",
        "args",
        "runtimeConfig",
        "prevResult",
        "stateDir",
        "runDir",
        "capabilities",
        "somethingNewer",
    ];
    let nulls: Value =
        keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect::<serde_json::Map<_, _>>().into();
    let mut plain = parse(json!({}));
    let config = parse(nulls);
    plain.stdin.clone_from(&config.stdin);
    assert_eq!(config, plain);
    let unknown = json!({"somethingNewer": {"a": [1]}, "runtimeConfig": {"cgroupPath": "/a", "io.kubernetes.cri.pod-annotations": {}}});
    plain.stdin = with(unknown.clone()).to_string().into_bytes();
    assert_eq!(parse(unknown), plain);
}

#[test]
fn every_key_of_the_bridge_is_read_in_any_case() {
    let expected = BridgeConfig {
        name: "br7".into(),
        mtu: Some(1400),
        is_gateway: true,
        is_default_gateway: true,
        force_address: true,
        hairpin_mode: true,
        promisc_mode: false,
        port_isolation: true,
        enable_dad: true,
        disable_container_interface: false,
        vlan: None,
    };
    let keys = json!({
        "bridge": "br7", "mtu": 1400, "isDefaultGateway": true, "forceAddress": true, "hairpinMode": true,
        "portIsolation": true, "enabledad": true, "preserveDefaultVlan": false, "ipMasqBackend": "nftables", "vlan": 0, "vlanTrunk": [],
    });
    assert_eq!(parse(keys.clone()).bridge, expected);
    let shouted = with(keys).to_string();
    let shouted =
        shouted.replace("\"isDefaultGateway\"", "\"ISDEFAULTGATEWAY\"").replace("\"bridge\":", "\"Bridge\":");
    assert_eq!(Config::parse(shouted.as_bytes(), &environment("ADD", "")).unwrap().bridge, expected);

    assert!(!parse(json!({"isGateway": false})).bridge.is_gateway);
    let gateway = parse(json!({"isGateway": true})).bridge;
    assert!(gateway.is_gateway && !gateway.is_default_gateway);
    assert!(parse(json!({"promiscMode": true})).bridge.promisc_mode);
    assert_eq!(parse(json!({"mtu": 0})).bridge.mtu, None);
    assert_eq!(parse(json!({"bridge": ""})).bridge.name, "cni0");
}

#[test]
fn no_ipam_means_layer_2() {
    for l2 in [json!(null), json!({}), json!({"type": ""}), json!({"type": null, "subnet": "10.1.0.0/24"})] {
        let config = parse(json!({"ipam": l2, "disableContainerInterface": true, "isGateway": true}));
        assert_eq!(config.ipam, Ipam::None);
        assert!(config.bridge.disable_container_interface);
    }
    let mut document = with(json!({}));
    document.as_object_mut().unwrap().remove("ipam");
    assert_eq!(
        Config::parse(document.to_string().as_bytes(), &environment("ADD", "")).unwrap().ipam,
        Ipam::None
    );
    let old = parse_for("ADD", json!({"cniVersion": "0.2.0", "ipam": {}})).unwrap_err();
    assert_eq!(old.msg, "CNI version 0.2.0 has no result without an IP address: ipam is needed");
}

#[test]
fn ipam_of_other_types_is_delegated() {
    for name in ["static", "dhcp", "whereabouts", "podwire-ipam2", "HOST-LOCAL"] {
        let config = parse(json!({"ipam": {"type": name, "subnet": ["what", "ever"]}}));
        assert_eq!(config.ipam, Ipam::Delegated { plugin: name.into() });
    }
}

#[test]
fn range_sets_come_in_host_locals_order() {
    let config = ipam(json!({
        "ipam": {
            "type": "host-local", "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "gateway": "10.1.0.2",
            "ranges": [[{"subnet": "fd00::/64"}], [{"subnet": "10.3.0.0/24", "rangeEnd": "10.3.0.20"}, {"subnet": "10.4.0.0/24"}]],
        },
        "runtimeConfig": {"ipRanges": [[{"Subnet": "10.2.0.0/24", "RangeStart": "10.2.0.5", "RangeEnd": "10.2.0.7"}]]},
    }));
    assert_eq!(
        sets(&config),
        [
            "10.2.0.5-10.2.0.7",
            "10.1.0.9-10.1.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
            "10.3.0.1-10.3.0.20,10.4.0.1-10.4.0.254"
        ]
    );
    assert_eq!(config.sets[1].ranges()[0].gateway().to_string(), "10.1.0.2");
    assert_eq!(config.sets[3].ranges()[0].gateway().to_string(), "10.3.0.1");
    // Ranges without a subnet beside them are not an old-style range.
    let config = ipam(
        json!({"ipam": {"type": "host-local", "gateway": "10.1.0.1", "ranges": [[{"subnet": "10.3.0.0/24", "gateway": ""}]]}}),
    );
    assert_eq!(sets(&config), ["10.3.0.1-10.3.0.254"]);
}

#[test]
fn our_own_ipam_without_ranges_asks_the_agent() {
    let config = ipam(json!({"ipam": {"type": "podwire-ipam"}}));
    assert_eq!((config.plugin, config.node_ranges, config.sets), (InProcess::PodwireIpam, true, vec![]));
    let config = ipam(json!({"ipam": {"type": "podwire-ipam", "ranges": [[{"subnet": "10.3.0.0/24"}]]}}));
    assert!(!config.node_ranges && config.sets.len() == 1);
    let config = ipam(
        json!({"ipam": {"type": "podwire-ipam"}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/24"}]]}}),
    );
    assert!(!config.node_ranges && config.sets.len() == 1);
}

#[test]
fn the_rest_of_ipam_is_read() {
    let config = ipam(json!({"ipam": {
        "type": "host-local", "subnet": "10.1.0.0/24", "dataDir": "/data", "resolvConf": "/etc/resolv.conf", "quarantineSeconds": 0,
        "routes": [{"dst": "0.0.0.0/0"}, {"Dst": "fd01::/48", "GW": "fd00::9", "mtu": 1400, "advmss": 1340, "priority": 7, "table": 100, "scope": 253}],
    }}));
    assert_eq!((config.data_dir.to_str(), config.quarantine_ms), (Some("/data"), 0));
    assert_eq!(config.resolv_conf, Some(PathBuf::from("/etc/resolv.conf")));
    let [default, other] = config.routes.as_slice() else { panic!("two routes") };
    assert_eq!((default.dst.to_string(), default.gw), ("0.0.0.0/0".into(), None));
    assert_eq!((other.gw, other.mtu, other.advmss), ("fd00::9".parse().ok(), Some(1400), Some(1340)));
    assert_eq!((other.priority, other.table, other.scope), (Some(7), Some(100), Some(253)));
}

#[test]
fn addresses_are_requested_in_three_places_each_counted_once() {
    let document = with(json!({
        "args": {"cni": {"ips": ["10.1.0.8", "10.1.0.7/24"]}},
        "runtimeConfig": {"IPs": ["10.1.0.9/16", "10.1.0.8", "fd00::7"]},
    }));
    let config = Config::parse(document.to_string().as_bytes(), &environment("ADD", "IP=10.1.0.7")).unwrap();
    let expected: Vec<IpAddr> =
        ["10.1.0.7", "10.1.0.8", "10.1.0.9", "fd00::7"].map(|ip| ip.parse().unwrap()).into();
    assert_eq!(in_process(config).requested, expected);
}

#[test]
fn a_mac_address_of_the_runtime_wins() {
    let (env, args, runtime) = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03");
    let of_args = json!({"args": {"cni": {"mac": args}}});
    let of_both = json!({"args": {"cni": {"mac": args}}, "runtimeConfig": {"Mac": runtime}});
    let empty = json!({"args": {"cni": {"mac": ""}}, "runtimeConfig": {"mac": ""}});
    for (changes, expected) in [(json!({}), env), (of_args, args), (of_both, runtime), (empty, env)] {
        let document = with(changes).to_string();
        let config = Config::parse(document.as_bytes(), &environment("ADD", &format!("MAC={env}"))).unwrap();
        assert_eq!(config.mac.unwrap().to_string(), expected, "{document}");
    }
}

#[test]
fn dns_is_set_even_by_an_empty_list() {
    for unset in [json!(null), json!({}), json!({"domain": ""}), json!({"nameservers": null})] {
        assert_eq!(parse(json!({"dns": unset})).dns, None, "{unset}");
    }
    assert_eq!(parse(json!({"dns": {"search": []}})).dns, Some(Dns::default()));
    let dns = parse(json!({"dns": {"Nameservers": ["10.96.0.10"], "domain": "local"}})).dns.unwrap();
    assert_eq!((dns.nameservers, dns.domain.as_str()), (vec!["10.96.0.10".to_owned()], "local"));
    let runtime = json!({"dns": {"Servers": ["10.96.0.10"], "Searches": ["svc"], "Options": ["ndots:5"]}});
    let config = parse(json!({"runtimeConfig": runtime}));
    let expected = Dns {
        nameservers: vec!["10.96.0.10".into()],
        domain: String::new(),
        search: vec!["svc".into()],
        options: vec!["ndots:5".into()],
    };
    assert_eq!((config.dns, config.runtime_dns), (None, Some(expected)));
}

#[test]
fn what_gc_may_remove_depends_on_the_key_being_there() {
    let gc = |document: Value| parse_for("GC", document).map(|config| config.valid_attachments);
    let key = "cni.dev/valid-attachments";
    assert_eq!(gc(json!({})), Ok(ValidAttachments::Absent));
    assert_eq!(gc(json!({key: null})), Ok(ValidAttachments::Only(vec![])));
    assert_eq!(gc(json!({key: []})), Ok(ValidAttachments::Only(vec![])));
    let one = ValidAttachment { container: "c1".into(), ifname: "eth0".into() };
    assert_eq!(
        gc(json!({key: [{"containerID": "c1", "ifname": "eth0"}]})),
        Ok(ValidAttachments::Only(vec![one.clone()]))
    );
    assert_eq!(
        gc(json!({"CNI.dev/Valid-Attachments": [{"ContainerId": "c1", "IfName": "eth0"}]})),
        Ok(ValidAttachments::Only(vec![one]))
    );
    for wrong in [
        json!({}),
        json!("c1"),
        json!(["c1"]),
        json!([{}]),
        json!([{"containerID": "c1"}]),
        json!([{"containerID": "", "ifname": "eth0"}]),
        json!([null]),
    ] {
        // To go on would remove what is alive.
        let error = gc(json!({key: wrong})).unwrap_err();
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG);
        assert!(error.msg.starts_with("invalid cni.dev/valid-attachments"), "{error}");
    }
    assert_eq!(parse(json!({key: []})).valid_attachments, ValidAttachments::Absent);
}

#[test]
fn a_previous_result_is_read() {
    let previous = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.7/24"}});
    let result = parse(json!({"prevResult": previous})).prev_result.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.7/24");
    assert_eq!(parse(json!({"prevResult": {}})).prev_result, Some(CniResult::default()));
}

#[test]
fn directories_and_the_document_are_kept() {
    let config = parse(json!({"stateDir": "/a/b", "runDir": "/c"}));
    assert_eq!((config.state_dir.to_str(), config.run_dir.to_str()), (Some("/a/b"), Some("/c")));
    let document = b" {\"NAME\" :\"pods\", \"cniVersion\":\"0.4.0\"}\n";
    let config = Config::parse(document, &environment("ADD", "")).unwrap();
    assert_eq!(config.stdin, document);
}

#[test]
fn resolv_conf_is_read_as_host_local_reads_it() {
    let content = "# comment\n; comment\n\nnameserver 10.96.0.10\n nameserver\tfd00::a extra\nnameserver\ndomain a.local\ndomain b.local\n\
                   search one two\nsearch three\noptions ndots:5 edns0\nsortlist 1.2.3.4\noption x\nsearch\n";
    let expected = Dns {
        nameservers: vec!["10.96.0.10".into(), "fd00::a".into()],
        domain: "b.local".into(),
        search: vec!["one".into(), "two".into(), "three".into()],
        options: vec!["ndots:5".into(), "edns0".into()],
    };
    assert_eq!(parse_resolv_conf(content), expected);
    assert_eq!(parse_resolv_conf(""), Dns::default());
}
