//! Settings of the pod, in podwire's configuration and in podwire-tuning's.

use podwire_attach::Tuning;

use super::*;

fn settings(changes: Value) -> TuningSettings {
    parse(changes).tuning
}

fn paths(settings: &TuningSettings) -> Vec<String> {
    settings.sysctls.iter().map(|sysctl| format!("{}={}", sysctl.path, sysctl.value)).collect()
}

#[test]
fn sysctls_keep_their_order_and_their_case() {
    let document = r#"{"name": "n", "cniVersion": "1.0.0", "SysCtl": {
        "net.ipv6.conf.IFNAME.accept_ra": "0", "net.ipv4.conf.all.rp_filter": "1", "net/ipv4/conf/Eth0.5/arp_filter": " ",
        "net.core.somaxconn": "5\t6"}}"#;
    let config = Config::parse(document.as_bytes(), &environment("ADD", "")).unwrap();
    assert_eq!(
        paths(&config.tuning),
        [
            "net/ipv6/conf/eth0/accept_ra=0",
            "net/ipv4/conf/all/rp_filter=1",
            "net/ipv4/conf/Eth0.5/arp_filter= ",
            "net/core/somaxconn=5\t6"
        ]
    );
    assert_eq!(config.tuning.sysctls[0].key, "net.ipv6.conf.IFNAME.accept_ra");
}

#[test]
fn arguments_beat_the_configuration() {
    let keys = json!({
        "sysctl": {"net.core.somaxconn": "1", "net.core.rmem_max": "2"}, "mac": "02:00:00:00:00:01", "mtu": 1400, "promisc": true, "txQLen": 5, "allmulti": true,
        "args": {"cni": {"sysctl": {"net/core/somaxconn": "7", "net.core.wmem_max": "8"}, "mac": "02:00:00:00:00:02", "mtu": 1300, "promisc": false, "txQLen": 0, "allmulti": false}},
    });
    let config = parse(keys.clone());
    let mut found = paths(&config.tuning);
    found.sort();
    assert_eq!(found, ["net/core/rmem_max=2", "net/core/somaxconn=7", "net/core/wmem_max=8"]);
    assert_eq!(config.mac.unwrap().to_string(), "02:00:00:00:00:02");
    assert_eq!((config.bridge.mtu, config.tuning.mtu), (Some(1400), Some(1300)));
    let tuning = config.tuning.of_own_interface();
    assert_eq!((tuning.mac, tuning.mtu, tuning.promiscuous), (None, None, None));
    assert_eq!((tuning.all_multicast, tuning.tx_queue_length), (Some(false), Some(0)));
    let own = settings(json!({"mac": "02:00:00:00:00:01", "mtu": 1400, "promisc": true, "txQLen": 5}));
    assert_eq!(
        own.of_given_interface(),
        Tuning {
            sysctls: vec![],
            mac: "02:00:00:00:00:01".parse().ok(),
            mtu: Some(1400),
            promiscuous: Some(true),
            all_multicast: None,
            tx_queue_length: Some(5),
        }
    );
    assert_eq!(parse(json!({"mac": "02:00:00:00:00:01"})).mac.unwrap().to_string(), "02:00:00:00:00:01");
    assert!(
        settings(json!({"promisc": false, "mtu": 0, "mac": "", "sysctl": {}}))
            .of_given_interface()
            .is_empty()
    );
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    let below_net = "(expected a name below net, such as net.ipv4.conf.IFNAME.arp_filter, and a text)";
    for (changes, named) in [
        (json!({"sysctl": 5}), "invalid sysctl: 5 (expected an object)".to_owned()),
        (json!({"sysctl": [["net.core.somaxconn", "1"]]}), "invalid sysctl: [[".to_owned()),
        (
            json!({"sysctl": {"kernel.hostname": "x"}}),
            format!(r#"invalid sysctl["kernel.hostname"]: "x" {below_net}"#),
        ),
        (
            json!({"sysctl": {"net.../../kernel/hostname": "x"}}),
            r#"invalid sysctl["net.../../kernel/hostname"]: "x" "#.to_owned(),
        ),
        (
            json!({"sysctl": {"net.core.somaxconn": 5}}),
            r#"invalid sysctl["net.core.somaxconn"]: 5 (expected a text)"#.to_owned(),
        ),
        (
            json!({"sysctl": {"net.core.somaxconn": ""}}),
            r#"invalid sysctl["net.core.somaxconn"]: "" (expected a text that is not empty)"#.to_owned(),
        ),
        (
            json!({"sysctl": {"net.core.somaxconn": null}}),
            r#"invalid sysctl["net.core.somaxconn"]: null "#.to_owned(),
        ),
        (
            json!({"sysctl": {"net.core.somaxconn": "1\n2"}}),
            r#"invalid sysctl["net.core.somaxconn"]: "1\n2" (expected a text of one line)"#.to_owned(),
        ),
        (
            json!({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "1"}}),
            r#"invalid sysctl["net/core/somaxconn"]: "1" (expected one value for net/core/somaxconn"#
                .to_owned(),
        ),
        (
            json!({"args": {"cni": {"sysctl": {"vm.swappiness": "1"}}}}),
            r#"invalid args.cni.sysctl["vm.swappiness"]: "1" "#.to_owned(),
        ),
        (json!({"mac": "x"}), r#"invalid mac: "x" "#.to_owned()),
        (json!({"mac": "01:00:5e:00:00:01"}), r#"invalid mac: "01:00:5e:00:00:01" "#.to_owned()),
        (json!({"promisc": 1}), "invalid promisc: 1 ".to_owned()),
        (json!({"allmulti": "x"}), r#"invalid allmulti: "x" "#.to_owned()),
        (json!({"txQLen": -1}), "invalid txQLen: -1 ".to_owned()),
        (json!({"txQLen": 4_294_967_296u64}), "invalid txQLen: 4294967296 ".to_owned()),
        (json!({"args": {"cni": {"mtu": 67}}}), "invalid args.cni.mtu: 67 ".to_owned()),
        (json!({"args": {"cni": {"promisc": "x"}}}), r#"invalid args.cni.promisc: "x" "#.to_owned()),
        (json!({"args": {"cni": {"allmulti": 1}}}), "invalid args.cni.allmulti: 1 ".to_owned()),
        (json!({"args": {"cni": {"txQLen": "x"}}}), r#"invalid args.cni.txQLen: "x" "#.to_owned()),
    ] {
        let error = parse_for("ADD", changes.clone()).unwrap_err();
        assert_eq!(error.code, code::INVALID_NETWORK_CONFIG, "{changes}: {error}");
        assert!(error.msg.starts_with(&named), "{changes}: {error}");
        let mut chained = changes.clone();
        chained["prevResult"] = json!({});
        assert_eq!(tuning("ADD", chained.clone()).unwrap_err(), error, "{changes}");
        assert!(tuning("DEL", chained).is_ok(), "{changes}");
        assert!(parse_for("DEL", changes.clone()).is_ok(), "{changes}");
    }
    // The same name twice is not what JSON's library would keep.
    let twice = r#"{"name": "n", "cniVersion": "1.0.0", "sysctl": {"net.core.somaxconn": "1", "net.core.somaxconn": "2"}}"#;
    let error = Config::parse(twice.as_bytes(), &environment("ADD", "")).unwrap_err();
    assert!(error.msg.contains("which has one already"), "{error}");
}

fn tuning(verb: &str, changes: Value) -> Result<TuningConfig, CniError> {
    TuningConfig::parse(with(changes).to_string().as_bytes(), &environment(verb, "MAC=02:00:00:00:00:09"))
}

#[test]
fn podwire_tuning_stands_behind_another_plugin() {
    for verb in ["ADD", "CHECK"] {
        let error = tuning(verb, json!({"mtu": 1400})).unwrap_err();
        assert_eq!(
            error.msg,
            "podwire-tuning needs prevResult: it must stand behind another plugin of the chain"
        );
    }
    for verb in ["DEL", "GC", "STATUS"] {
        assert!(tuning(verb, json!({"mtu": 1400})).is_ok(), "{verb}");
    }
    let config = tuning(
        "ADD",
        json!({"prevResult": {"ips": [{"address": "10.1.0.7/24"}]}, "mac": "02:00:00:00:00:01"}),
    )
    .unwrap();
    assert_eq!(config.prev_result.ips.len(), 1);
    assert_eq!(config.data_dir.to_str(), Some("/run/cni/tuning"));
    // What the runtime asks for goes before the configuration.
    assert_eq!(config.settings.mac.unwrap().to_string(), "02:00:00:00:00:09");
    assert_eq!(tuning("DEL", json!({"dataDir": "/a"})).unwrap().data_dir.to_str(), Some("/a"));
    for verb in ["ADD", "DEL"] {
        let error = tuning(verb, json!({"dataDir": "a", "prevResult": {}})).unwrap_err();
        assert!(error.msg.starts_with(r#"invalid dataDir: "a" "#), "{error}");
    }
}
