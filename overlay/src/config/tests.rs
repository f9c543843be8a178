use proptest::prelude::*;

use super::*;
use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily};

fn resolve(
    file: Option<&str>,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Resolved, ConfigErrors> {
    let environment =
        environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let flag = |(key, value): &(&str, &str)| Flag {
        shown: format!("--set {key}"),
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    let flags: Vec<Flag> = flags.iter().map(flag).collect();
    Config::resolve(&Sources {
        file: file.map(|text| SourceFile { name: "podwired.toml", text }),
        environment: &environment,
        flags: &flags,
        host_name: "worker-1",
    })
}

fn of_file(text: &str) -> Config {
    resolve(Some(text), &[], &[]).unwrap().config
}

fn mistakes(text: &str) -> String {
    resolve(Some(text), &[], &[]).unwrap_err().to_string()
}

#[test]
fn without_anything_it_holds_addresses_alone() {
    let config = resolve(None, &[], &[]).unwrap().config;
    assert_eq!(config.node_name, "worker-1");
    assert_eq!(
        (config.state_dir.to_str(), config.run_dir.to_str()),
        (Some("/var/lib/podwire"), Some("/run/podwire"))
    );
    assert_eq!(config.log, Log { format: LogFormat::Text, level: "info".to_owned() });
    assert_eq!((config.cluster, config.telemetry.listen), (None, None));
}

#[test]
fn every_key_can_be_given() {
    let text = r#"
        node_name = "n1"
        state_dir = "/s"
        run_dir = "/r"
        [log]
        format = "json"
        level = "info,podwired=debug"
        [cluster]
        store = "etcd"
        leave_at_shutdown = true
        name = "west"
        direct_routing = "auto"
        underlay = ["ipv6"]
        reclaim_after_hours = 48
        encapsulation = { vni = 7, port = 4789 }
        also_receive = [{ vni = 1, port = 8472 }]
        [[cluster.range]]
        range = "10.244.0.0/16"
        subnet_prefix = 24
        [[cluster.range]]
        range = "fd00:10::/48"
        subnet_prefix = 64
        [cluster.etcd]
        endpoints = ["https://10.0.0.1:2379", "https://[fd00::2]:2379/", "https://etcd.example:2379"]
        prefix = "/pods/west/"
        ca = "/etc/ca.pem"
        certificate = "/etc/node.pem"
        key = "/etc/node.key"
        username = "n1"
        password_file = "/etc/password"
        [overlay]
        interface = "eth1"
        addresses = ["192.0.2.1", "2001:db8::1"]
        [network]
        name = "pods"
        bridge = "pods0"
        conflist = ""
        masquerade = false
        hairpin = false
        mac_check = false
        address_check = false
        port_mappings = false
        bandwidth = false
        [telemetry]
        listen = "[::]:9999"
        [probes]
        enabled = false
        interval_seconds = 5
        timeout_ms = 250
        peers = 8
        port = 9000"#;
    let path = |path: &str| Some(PathBuf::from(path));
    let range = |range: &str, subnet_prefix| ClusterRange { range: range.parse().unwrap(), subnet_prefix };
    let initial = ClusterConfig {
        name: "west".to_owned(),
        ranges: vec![range("10.244.0.0/16", 24), range("fd00:10::/48", 64)],
        encapsulation: Encapsulation { vni: 7, port: 4789 },
        also_receive: vec![Encapsulation { vni: 1, port: 8472 }],
        direct_routing: DirectRouting::Auto,
        underlay: vec![IpFamily::Ipv6],
        reclaim_after_seconds: Some(48 * 3600),
    };
    let etcd = Etcd {
        endpoints: ["https://10.0.0.1:2379", "https://[fd00::2]:2379", "https://etcd.example:2379"]
            .map(str::to_owned)
            .to_vec(),
        prefix: "/pods/west".to_owned(),
        ca: path("/etc/ca.pem"),
        certificate: path("/etc/node.pem"),
        key: path("/etc/node.key"),
        username: Some("n1".to_owned()),
        password_file: path("/etc/password"),
        initial: Some(initial),
    };
    let expected = Config {
        node_name: "n1".to_owned(),
        state_dir: "/s".into(),
        run_dir: "/r".into(),
        log: Log { format: LogFormat::Json, level: "info,podwired=debug".to_owned() },
        cluster: Some(Cluster { store: Store::Etcd(Box::new(etcd)), leave_at_shutdown: true }),
        overlay: Overlay {
            interface: Some("eth1".to_owned()),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        },
        network: Network {
            name: "pods".to_owned(),
            bridge: "pods0".to_owned(),
            conflist: None,
            masquerade: false,
            hairpin: false,
            mac_check: false,
            address_check: false,
            port_mappings: false,
            bandwidth: false,
        },
        telemetry: Telemetry { listen: Some("[::]:9999".parse().unwrap()) },
        probes: Probes {
            enabled: false,
            interval: Duration::from_secs(5),
            timeout: Duration::from_millis(250),
            peers: 8,
            port: 9000,
        },
    };
    let resolved = resolve(Some(text), &[], &[]).unwrap();
    assert_eq!(resolved.config, expected);
    let left: Vec<_> = resolved
        .settings
        .iter()
        .filter(|setting| {
            let is_other_store =
                ["cluster.file.", "cluster.kubernetes."].iter().any(|store| setting.key.starts_with(store));
            setting.origin == "default" && !is_other_store
        })
        .collect();
    assert!(left.is_empty(), "this test gives every key: {left:?}");

    // What is shown is a configuration itself: the same one.
    let shown = resolved.settings.iter().filter(|setting| setting.origin != "default");
    let shown: String = shown.map(|setting| format!("{} = {}\n", setting.key, setting.value)).collect();
    assert_eq!(of_file(&shown), expected);
}

#[test]
fn a_cluster_of_kubernetes_has_its_settings_in_each_node_s_file() {
    let text = r#"
        [cluster]
        store = "kubernetes"
        range = [{ range = "10.244.0.0/16", subnet_prefix = 24 }]
        direct_routing = "auto"
        [cluster.kubernetes]
        kubeconfig = "/etc/podwire/kubeconfig"
        flannel_peers = true"#;
    let Some(Cluster { store: Store::Kubernetes(kubernetes), .. }) = of_file(text).cluster else { panic!() };
    assert_eq!(kubernetes.kubeconfig, Some("/etc/podwire/kubeconfig".into()));
    assert!(kubernetes.flannel_peers);
    let ClusterConfig { name, ranges, direct_routing, .. } = kubernetes.shared;
    assert_eq!((name.as_str(), ranges.len(), direct_routing), ("podwire", 1, DirectRouting::Auto));

    let wrong = |more: &str| {
        let text = format!("[cluster]\nstore = \"kubernetes\"\n{more}");
        resolve(Some(&text), &[], &[]).unwrap_err().to_string()
    };
    let range = "range = [{ range = \"10.244.0.0/16\", subnet_prefix = 24 }]\n";
    for (more, why) in [
        (String::new(), "podwired.toml:2: cluster.range: is missing: the ranges that Kubernetes takes"),
        (
            format!("{range}reclaim_after_hours = 48"),
            "podwired.toml:4: cluster.reclaim_after_hours: is of no use",
        ),
        (
            format!("{range}leave_at_shutdown = true"),
            "podwired.toml:4: cluster.leave_at_shutdown: is of no use",
        ),
        (format!("{range}kubernetes.kubeconfig = \"x\""), "\"x\" is not a file's absolute path"),
        (format!("{range}[probes]\nport = 8472"), "tunnel and probes need a UDP port each"),
    ] {
        let told = wrong(&more);
        assert!(told.contains(why), "{more}: {told}");
    }
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let file = Some("[log]\nlevel = \"warn\"\n[probes]\npeers = 2");
    let environment = [("PODWIRED_LOG_LEVEL", "debug"), ("PODWIRED_PROBES_PEERS", "3"), ("OTHER", "x")];
    let resolved = resolve(file, &environment, &[("log.level", "trace")]).unwrap();
    assert_eq!((resolved.config.log.level.as_str(), resolved.config.probes.peers), ("trace", 3));
    let origin =
        |key: &str| resolved.settings.iter().find(|setting| setting.key == key).unwrap().origin.clone();
    assert_eq!(origin("log.level"), "--set log.level");
    assert_eq!(origin("probes.peers"), "PODWIRED_PROBES_PEERS");
    assert_eq!(origin("log.format"), "default");
    let file_alone = resolve(file, &[], &[]).unwrap();
    assert_eq!(
        file_alone.settings.iter().find(|setting| setting.key == "probes.peers").unwrap().origin,
        "podwired.toml:4"
    );
    assert_eq!(file_alone.changed(&resolved), ["log.level", "probes.peers"]);
    assert_eq!(resolved.notices, [""; 0]);
}

#[test]
fn texts_become_lists_and_tables() {
    let environment = [
        ("PODWIRED_CLUSTER_STORE", "etcd"),
        ("PODWIRED_CLUSTER_ETCD_ENDPOINTS", "http://a:2379, http://b:2379"),
        ("PODWIRED_CLUSTER_RANGE", "[{ range = \"10.0.0.0/8\", subnet_prefix = 24 }]"),
        ("PODWIRED_CLUSTER_UNDERLAY", "ipv6,ipv4"),
        ("PODWIRED_TELEMETRY_LISTEN", ""),
    ];
    let config = resolve(None, &environment, &[]).unwrap().config;
    let Some(Cluster { store: Store::Etcd(etcd), .. }) = config.cluster else { panic!("no etcd") };
    assert_eq!(etcd.endpoints, ["http://a:2379", "http://b:2379"]);
    let initial = etcd.initial.unwrap();
    assert_eq!((initial.ranges.len(), initial.underlay), (1, vec![IpFamily::Ipv6, IpFamily::Ipv4]));
    assert_eq!(config.telemetry.listen, None);
}

#[test]
fn a_variable_that_sets_nothing_is_told() {
    let environment = [("PODWIRED_CONFIG", "/x"), ("PODWIRED_LOG_LEVLE", "debug")];
    let notices = resolve(None, &environment, &[]).unwrap().notices;
    assert_eq!(notices, ["the environment has PODWIRED_LOG_LEVLE, which sets nothing"]);
}

#[test]
fn a_cluster_has_metrics_on_the_loopback_address_unless_told_otherwise() {
    let listen = |text: &str| of_file(text).telemetry.listen.map(|address| address.to_string());
    let cluster = "[cluster]\nstore = \"file\"\n";
    assert_eq!(listen(cluster).as_deref(), Some("127.0.0.1:9474"));
    assert_eq!(listen(&format!("{cluster}[telemetry]\nlisten = \"\"")), None);
    assert_eq!(listen("[telemetry]\nlisten = \"127.0.0.1:1\"").as_deref(), Some("127.0.0.1:1"));
}

#[test]
fn each_mistake_is_told_with_its_line_its_value_and_what_is_allowed() {
    let etcd = |keys: &str| {
        format!("[cluster]\nstore = \"etcd\"\n[cluster.etcd]\nendpoints = [\"https://a:2379\"]\n{keys}")
    };
    let with_range = |entry: &str| {
        format!(
            "[cluster]\nstore = \"etcd\"\nrange = [{entry}]\n[cluster.etcd]\nendpoints = [\"https://a:2379\"]"
        )
    };
    let cases: &[(&str, &str)] = &[
        ("node_name = \"a b\"", "podwired.toml:1: node_name: \"a b\" is not a name of 1 to 253"),
        ("node_name = 7", "podwired.toml:1: node_name: 7 is not a name"),
        ("state_dir = \"var\"", "podwired.toml:1: state_dir: \"var\" is not a directory's absolute path"),
        ("run_dir = \"\"", "run_dir: \"\" is not a directory's absolute path"),
        ("x = 1", "podwired.toml:1: x: no such key: there are node_name, state_dir, run_dir"),
        ("node_nam = 1", "node_nam: no such key: did you mean node_name?"),
        ("log = 1", "log: 1 is not a table: write [log]"),
        ("\n[log]\nlevels = \"info\"", "podwired.toml:3: log.levels: no such key: did you mean log.level?"),
        ("[log]\nformat = \"xml\"", "podwired.toml:2: log.format: \"xml\" is not one of \"text\", \"json\""),
        ("[log]\nlevel = \"\"", "log.level: \"\" is not error, warn,"),
        ("[log]\nlevel = \"nge 2=\u{fffd}\u{fffd}\u{fffd}= 24 }]\"", "log.level: \"nge 2="),
        ("[log]\nlevel = \"a=b=c\"", "log.level: \"a=b=c\" is not error, warn,"),
        ("[cluster]\nstore = \"zk\"", "cluster.store: \"zk\" is not one of \"none\", \"file\", \"etcd\""),
        ("[cluster]\nname = \"x\"", "podwired.toml:2: cluster.store: is missing while cluster.name is given"),
        (
            "[cluster]\nstore = \"file\"\nname = \"x\"",
            "podwired.toml:3: cluster.name: stands in the peers file",
        ),
        (
            "[cluster]\nstore = \"file\"\nfile.path = \"x\"",
            "cluster.file.path: \"x\" is not a file's absolute path",
        ),
        (
            "[cluster]\nstore = \"file\"\nfile.path = \"\"",
            "cluster.file.path: \"\" is not a file's absolute path",
        ),
        (
            "[cluster]\nstore = \"etcd\"",
            "cluster.etcd.endpoints: is empty: name an endpoint such as https://",
        ),
        (
            &etcd("prefix = \"podwire\""),
            "podwired.toml:5: cluster.etcd.prefix: \"podwire\" is not a prefix such as",
        ),
        (&etcd("prefix = \"/\""), "cluster.etcd.prefix: \"/\" is not a prefix"),
        (&etcd("prefix = \"/a//b\""), "cluster.etcd.prefix: \"/a//b\" is not a prefix"),
        (
            &etcd("key = \"/k\""),
            "podwired.toml:5: cluster.etcd.certificate: is missing: cluster.etcd.key needs it",
        ),
        (&etcd("username = \"u\""), "cluster.etcd.password_file: is missing: cluster.etcd.username needs it"),
        (&etcd("password = \"u\""), "no such key: did you mean cluster.etcd.password_file?"),
        (
            &etcd("[cluster.encapsulation]\nvni = 2"),
            "podwired.toml:6: cluster.range: is missing while cluster.encapsulation.vni",
        ),
        (&with_range("1"), "podwired.toml:3: cluster.range: 1 is not a table of range, subnet_prefix"),
        (&with_range("{ range = \"10.0.0.0/8\" }"), "cluster.range: subnet_prefix is missing"),
        (
            &with_range("{ range = \"10.0.0.0/8\", subnet_prefix = 24, x = 1 }"),
            "cluster.range.x: no such key",
        ),
        (
            &with_range("{ range = \"10.0.0.0\", subnet_prefix = 24 }"),
            "range: \"10.0.0.0\" is not a range such as",
        ),
        (&with_range("{ range = \"10.0.0.1/8\", subnet_prefix = 24 }"), "did you mean 10.0.0.0/8?"),
        (
            &with_range("{ range = \"10.0.0.0/16\", subnet_prefix = 8 }"),
            "subnet_prefix: 8 is not a prefix length from 16 to 30",
        ),
        (&with_range("{ range = \"10.0.0.0/16\", subnet_prefix = 31 }"), "subnet_prefix: 31 is not"),
        (
            &with_range("{ range = \"fd00::/8\", subnet_prefix = 64 }"),
            "64 is not a prefix length from 8 to 40",
        ),
        (
            &with_range("{ range = \"0.0.0.0/0\", subnet_prefix = 24 }"),
            "is not a range of addresses that pods can have",
        ),
        (
            &with_range("{ range = \"224.0.0.0/8\", subnet_prefix = 24 }"),
            "is not a range of addresses that pods",
        ),
        (
            &with_range(
                "{ range = \"10.0.0.0/8\", subnet_prefix = 24 }, { range = \"11.0.0.0/8\", subnet_prefix = 24 }",
            ),
            "a second IPv4 range",
        ),
        (
            "[cluster]\nstore = \"none\"\nunderlay = []",
            "cluster.underlay: [] is not a list of \"ipv4\", \"ipv6\" or both",
        ),
        ("[cluster]\nstore = \"none\"\nunderlay = [\"ipv4\", \"ipv4\"]", "\"ipv4\" is not given once"),
        (
            "[cluster]\nstore = \"none\"\nencapsulation = { vni = 0 }",
            "vni: 0 is not a VXLAN network identifier from 1 to 16777215",
        ),
        (
            "[cluster]\nstore = \"none\"\nreclaim_after_hours = 3",
            "3 is not 0 for never, or a number of hours, at least 24",
        ),
        (
            "[cluster]\nstore = \"none\"\nalso_receive = [{ vni = 1 }]",
            "cluster.also_receive: port is missing",
        ),
        ("[overlay]\naddresses = [\"127.0.0.1\"]", "\"127.0.0.1\" is not an address that other nodes reach"),
        ("[overlay]\naddresses = [\"10.0.0.1\", \"10.0.0.2\"]", "10.0.0.2 is a second IPv4 address"),
        ("[overlay]\ninterface = \"eth0:1\"", "overlay.interface: \"eth0:1\" is not an interface's name"),
        (
            "[network]\nbridge = \"sixteen-letters0\"",
            "network.bridge: \"sixteen-letters0\" is not an interface's name",
        ),
        ("[network]\nname = \"../x\"", "network.name: \"../x\" is not a network's name"),
        (
            "[network]\nconflist = \"/etc/x.conf\"",
            "network.conflist: \"/etc/x.conf\" is not an absolute path that ends in",
        ),
        ("[network]\nhairpin = \"yes\"", "network.hairpin: \"yes\" is not true or false"),
        (
            "[telemetry]\nlisten = \"9474\"",
            "telemetry.listen: \"9474\" is not an address with a port such as",
        ),
        ("[probes]\npeers = 0", "probes.peers: 0 is not peers from 1 to 4096"),
        ("[probes]\ninterval_seconds = 1.5", "probes.interval_seconds: 1.5 is not seconds from 1 to 3600"),
        ("[probes]\ninterval_seconds = 1\ntimeout_ms = 2000", "probes.timeout_ms: 2000 ms is more than"),
        ("a = \n", "podwired.toml:1: "),
    ];
    for (text, expected) in cases {
        let told = mistakes(text);
        assert!(told.contains(expected), "{text}\n{told}\nexpected {expected}");
        assert_eq!(told.lines().count(), 1, "one mistake, one line: {told}");
    }
}

#[test]
fn endpoints_are_checked() {
    let told =
        |endpoint: &str| mistakes(&format!("[cluster]\nstore = \"etcd\"\netcd.endpoints = {endpoint}"));
    for endpoint in [
        "10.0.0.1:2379",
        "https://a",
        "https://a:0",
        "https://a:x",
        "ftp://a:1",
        "https://u@a:1",
        "https://:1",
    ] {
        assert!(told(&format!("[{endpoint:?}]")).contains("is not an endpoint such as"), "{endpoint}");
    }
    assert!(told("[\"https://a:1\", \"http://b:1\"]").contains("some are https:// and some are http://"));
    let text = "[cluster]\nstore = \"etcd\"\netcd = { endpoints = [\"http://a:1\"], ca = \"/ca\" }";
    assert!(mistakes(text).contains("cluster.etcd.ca: is of no use"), "{}", mistakes(text));
}

#[test]
fn all_mistakes_are_told_at_once_wherever_they_stand() {
    let environment = [("PODWIRED_PROBES_PEERS", "many"), ("PODWIRED_NETWORK_HAIRPIN", "1")];
    let errors =
        resolve(Some("x = 1"), &environment, &[("log.format", "xml"), ("nothing", "1")]).unwrap_err();
    let places: Vec<&str> = errors.0.iter().map(|mistake| mistake.place.as_str()).collect();
    assert_eq!(
        places,
        [
            "podwired.toml:1",
            "--set nothing",
            "--set log.format",
            "PODWIRED_NETWORK_HAIRPIN",
            "PODWIRED_PROBES_PEERS"
        ]
    );
}

#[test]
fn a_host_without_a_usable_name_needs_one() {
    let sources = Sources { file: None, environment: &BTreeMap::new(), flags: &[], host_name: "(none)" };
    let told = Config::resolve(&sources).unwrap_err().to_string();
    assert!(told.contains("node_name: is not given, and the host's name \"(none)\" is not a name"), "{told}");
}

#[test]
fn the_example_has_every_key_with_its_default_in_the_order_of_the_table() {
    let text = include_str!("../../../conf/podwired.toml");
    assert_eq!(of_file(text), resolve(None, &[], &[]).unwrap().config, "as installed it changes nothing");
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        }
        // `#key = value`; what is no key has a space behind the mark.
        if let Some((key, value)) = line
            .strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '))
            .and_then(|rest| rest.split_once(" = "))
        {
            found.push((format!("{table}{key}"), value.to_owned()));
        }
    }
    let expected: Vec<(String, String)> =
        KEYS.iter().map(|key| (key.name.to_owned(), key.default.to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_key_is_documented_with_its_default() {
    let text = include_str!("../../../docs/agent.md");
    for key in KEYS {
        let row = format!("| `{}` | `{}` |", key.name, key.default);
        assert!(text.lines().any(|line| line.starts_with(&row)), "docs/agent.md has no row {row}");
    }
}

proptest! {
    #[test]
    fn no_text_is_a_panic(text in "\\PC{0,200}", key in 0..KEYS.len()) {
        let _ = resolve(Some(&text), &[], &[]);
        let _ = resolve(None, &[], &[(KEYS[key].name, &text)]);
        let _ = resolve(Some(&format!("{} = {text}", KEYS[key].name)), &[], &[]);
    }
}

#[test]
fn tunnel_and_probes_cannot_have_one_port() {
    let cluster = "cluster.store = \"etcd\"\ncluster.etcd.endpoints = [\"http://a:2379\"]\n\
                   cluster.range = [{ range = \"10.244.0.0/16\", subnet_prefix = 24 }]\n";
    let told = mistakes(&format!("{cluster}cluster.encapsulation.port = 8473"));
    assert!(told.contains("probes.port") && told.contains("cluster.encapsulation.port"), "{told}");
    assert!(told.contains("podwired.toml:4"), "{told}");
    let told = mistakes(&format!("{cluster}probes.port = 8472"));
    assert!(told.contains("probes.port") && told.contains("cluster.encapsulation.port"), "{told}");
    let told = mistakes(&format!("{cluster}cluster.also_receive = [{{ vni = 2, port = 8473 }}]"));
    assert!(told.contains("probes.port") && told.contains("cluster.also_receive"), "{told}");
    of_file(&format!("{cluster}cluster.encapsulation.port = 8473\nprobes.port = 8472"));
}
