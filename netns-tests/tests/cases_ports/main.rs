//! Host ports: who reaches a pod by a port of its node, what the pod sees of them, and when that ends.
//!
//! All rows are replayed twice: with bridge netfilter, as kube-proxy needs it, and without.

mod hosts;
mod life;

use podwire_netns_tests::cases::{
    BridgeNetfilter, Call, Case, Plugin, Reference, Step, Subject, Versions, add, differences, replay_with,
};
use serde_json::{Value, json};

#[test]
fn port_cases() {
    if let Err(report) = replay_with(&cases(), Subject::from_environment(), BridgeNetfilter::Off) {
        panic!("{report}");
    }
}

#[test]
fn port_cases_with_bridge_netfilter() {
    if let Err(report) = replay_with(&cases(), Subject::from_environment(), BridgeNetfilter::On) {
        panic!("{report}");
    }
}

#[test]
fn port_differences_are_documented() {
    assert_eq!(differences("Host ports", &cases()), Ok(()));
}

const TOO_OLD: &str = "Debian's package (1.1.1 of the plugins) is older than the key and ignores it.";

fn cases() -> Vec<Case> {
    let mut cases = hosts::hosts();
    cases.extend(hosts::access());
    cases.extend(life::life());
    cases
}

/// A network with a gateway, IPv4 and IPv6. Its first pod has 10.1.0.2 and fd01::2, its second .3 and ::3.
fn plain() -> Value {
    json!({
        "bridge": "br0", "isDefaultGateway": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }
    })
}

/// Another network of the node, on a bridge of its own. Its first pod has 10.2.0.2 and fd02::2.
fn another() -> Value {
    json!({
        "name": "other", "bridge": "br1",
        "ipam": { "ranges": [[{ "subnet": "10.2.0.0/24" }], [{ "subnet": "fd02::/64" }]] }
    })
}

/// The runtime's `portMappings`: protocol, host port, container port.
fn ports(ports: &[(&str, u64, u64)]) -> Value {
    on("", ports)
}

/// The same on one address of the host.
fn on(host_ip: &str, ports: &[(&str, u64, u64)]) -> Value {
    let mappings: Vec<Value> = ports
        .iter()
        .map(|(protocol, host, container)| {
            json!({ "hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": host_ip })
        })
        .collect();
    json!({ "runtimeConfig": { "portMappings": mappings } })
}

/// ADD of a pod with TCP and UDP port 80 on 8080.
fn add_web(pod: &'static str) -> Call {
    add(pod).config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)]))
}

fn row(name: &'static str, config: Value, steps: Vec<Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(&["1.0.0"]), plugin: Plugin::Network, config, steps, reference }
}

/// Text of a row that is made up.
fn text(text: String) -> &'static str {
    text.leak()
}
