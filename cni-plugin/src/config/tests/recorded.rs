//! The recorded calls of real runtimes.

use std::fs;
use std::path::Path;

use podwire_attach::{PortMapping, Protocol, RateLimit, Shaping};

use super::*;

struct Call {
    name: String,
    plugin: String,
    variables: Vec<(String, String)>,
    stdin: Value,
}

/// Every call recorded, below netns-tests/fixtures.
fn calls() -> Vec<Call> {
    let mut calls = Vec::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../netns-tests/fixtures")), &mut calls);
    calls
}

fn collect(directory: &Path, calls: &mut Vec<Call>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, calls);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let call: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let variables = call["env"].as_object().unwrap().iter();
            calls.push(Call {
                name: path.display().to_string(),
                plugin: call["plugin"].as_str().unwrap().to_owned(),
                variables: variables
                    .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                    .collect(),
                stdin: call["stdin"].clone(),
            });
        }
    }
}

impl Call {
    fn environment(&self) -> Environment {
        let variables = self.variables.iter().map(|(name, value)| (name.into(), value.into()));
        Environment::parse(variables).unwrap_or_else(|error| panic!("{}: {error}", self.name)).unwrap()
    }

    fn parse(&self, stdin: &Value) -> Result<Config, CniError> {
        Config::parse(stdin.to_string().as_bytes(), &self.environment())
    }
}

#[test]
fn every_call_is_read() {
    let calls = calls();
    assert_eq!(calls.len(), 214);
    let mut bridges = 0;
    for call in
        calls.iter().filter(|call| call.plugin == "bridge" && call.environment().verb != Verb::Version)
    {
        let mut stdin = call.stdin.clone();
        stdin["type"] = "podwire".into();
        let config = call.parse(&stdin).unwrap_or_else(|error| panic!("{}: {error}", call.name));
        assert_eq!(config.ignored, Vec::<String>::new(), "{}", call.name);
        assert_eq!(config.bridge.name, stdin["bridge"].as_str().unwrap(), "{}", call.name);
        assert!(config.bridge.is_gateway, "{}", call.name);
        assert_eq!(config.prev_result.is_some(), stdin.get("prevResult").is_some(), "{}", call.name);
        let servers = &stdin["runtimeConfig"]["dns"]["Servers"];
        let runtime_dns = config.runtime_dns.as_ref().map(|dns| dns.nameservers.clone());
        assert_eq!(
            json!(runtime_dns.unwrap_or_default()),
            json!(servers.as_array().cloned().unwrap_or_default()),
            "{}",
            call.name
        );
        let ipam = in_process(config);
        assert_eq!(ipam.plugin, InProcess::HostLocal);
        assert_eq!(ipam.sets.len(), stdin["ipam"]["ranges"].as_array().unwrap().len(), "{}", call.name);
        assert_eq!(ipam.routes.len(), stdin["ipam"]["routes"].as_array().unwrap().len(), "{}", call.name);
        bridges += 1;
    }
    assert_eq!(bridges, 116);
}

#[test]
fn masquerading_is_read() {
    let mut found = 0;
    for call in calls().iter().filter(|call| call.stdin["ipMasq"] == true) {
        let mut stdin = call.stdin.clone();
        stdin["type"] = "podwire".into();
        let config = call.parse(&stdin).unwrap_or_else(|error| panic!("{}: {error}", call.name));
        let expected = MasqueradeConfig { fully_random: true, cluster_ranges: vec![] };
        let expected = Some(expected).filter(|_| !call.environment().verb.is_removal());
        assert_eq!(config.traffic.masquerade, expected, "{}", call.name);
        found += 1;
    }
    assert_eq!(found, 105);
}

#[test]
fn calls_of_loopback_and_of_version_are_read() {
    let mut count = 0;
    for call in calls() {
        let environment = call.environment();
        if call.plugin == "loopback" {
            let config = LoopbackConfig::parse(call.stdin.to_string().as_bytes(), environment.verb).unwrap();
            assert_eq!(config.network.name, "cni-loopback", "{}", call.name);
            count += 1;
        }
        if environment.verb == Verb::Version {
            count += 1;
        }
    }
    assert_eq!(count, 83 + 3);
}

#[test]
fn host_ports_and_bandwidth_are_found_whatever_their_case() {
    let port = |protocol, host_ip: Option<&str>, host_port, container_port| PortMapping {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port,
    };
    let ports = [
        port(Protocol::Tcp, None, 18081, 8080),
        port(Protocol::Udp, Some("127.0.0.1"), 15353, 53),
        port(Protocol::Sctp, None, 19999, 9999),
    ];
    let limit = |rate| Some(RateLimit { rate, burst: None });
    let shaping = Shaping { to_pod: limit(10_000_000), from_pod: limit(5_000_000) };
    let mut found = 0;
    for call in calls().iter().filter(|call| matches!(call.plugin.as_str(), "portmap" | "bandwidth")) {
        for spelling in [str::to_owned, lower_camel] {
            let mut stdin = renamed(&call.stdin, spelling);
            stdin["type"] = "podwire".into();
            let config = call.parse(&stdin).unwrap_or_else(|error| panic!("{}: {error}", call.name));
            assert_eq!(check_chained(&config), Ok(()), "{}", call.name);
            let expected = match (call.environment().verb, call.plugin.as_str()) {
                (Verb::Del, _) => TrafficConfig::default(),
                (_, "portmap") => TrafficConfig { ports: ports.to_vec(), ..TrafficConfig::default() },
                _ => TrafficConfig { shaping, ..TrafficConfig::default() },
            };
            assert_eq!(config.traffic, expected, "{}", call.name);
        }
        found += 1;
    }
    assert_eq!(found, 12);
}

/// As podman and libcni write what containerd writes with capitals.
fn lower_camel(key: &str) -> String {
    let mut chars = key.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

fn renamed(value: &Value, name: fn(&str) -> String) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (name(key), renamed(value, name))).collect(),
        Value::Array(list) => list.iter().map(|value| renamed(value, name)).collect(),
        other => other.clone(),
    }
}

#[test]
fn previous_results_survive() {
    let mut found = 0;
    for call in calls() {
        let previous = &call.stdin["prevResult"];
        if previous.is_null() {
            continue;
        }
        let result = CniResult::parse(previous.to_string().as_bytes()).unwrap();
        let version = CniVersion::parse(previous["cniVersion"].as_str().unwrap()).unwrap();
        let mut again: Value = serde_json::from_str(&result.to_json(version).unwrap()).unwrap();
        if version == CniVersion::V1_0_0 && previous.get("dns").is_some() {
            // Debian's older plugins print it empty.
            again["dns"] = json!({});
        }
        assert_eq!(&again, previous, "{}", call.name);
        found += 1;
    }
    assert_eq!(found, 48);
}
