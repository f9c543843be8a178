//! What the node does to a pod's traffic beside host ports: masquerade, isolation, checks of what it sends, shaping.

mod isolation;
mod masquerade;
mod shaping;
mod spoofing;
mod tuning;

use podwire_netns_tests::cases::{
    BridgeNetfilter, Case, Plugin, Reference, Step, Subject, Versions, differences, replay_with,
};
use serde_json::{Value, json};

fn replayed(cases: &[Case], netfilter: BridgeNetfilter) {
    if let Err(report) = replay_with(cases, Subject::from_environment(), netfilter) {
        panic!("{report}");
    }
}

#[test]
fn masquerade_cases() {
    replayed(&masquerade::cases(), BridgeNetfilter::Off);
}

#[test]
fn masquerade_cases_with_bridge_netfilter() {
    replayed(&masquerade::cases(), BridgeNetfilter::On);
}

#[test]
fn isolation_cases() {
    replayed(&isolation::cases(), BridgeNetfilter::Off);
}

#[test]
fn isolation_cases_with_bridge_netfilter() {
    replayed(&isolation::cases(), BridgeNetfilter::On);
}

#[test]
fn spoofing_cases() {
    replayed(&spoofing::cases(), BridgeNetfilter::On);
}

#[test]
fn shaping_cases() {
    replayed(&shaping::cases(), BridgeNetfilter::AsItIs);
}

#[test]
fn tuning_cases() {
    replayed(&tuning::cases(), BridgeNetfilter::AsItIs);
}

#[test]
fn traffic_differences_are_documented() {
    assert_eq!(differences("Masquerade", &masquerade::cases()), Ok(()));
    let mut isolation = isolation::cases();
    isolation.extend(spoofing::cases());
    assert_eq!(differences("Isolation", &isolation), Ok(()));
    assert_eq!(differences("Shaping", &shaping::cases()), Ok(()));
    assert_eq!(differences("Tuning", &tuning::cases()), Ok(()));
}

/// A network with a gateway, IPv4 and IPv6, and these keys beside. Its first pod has 10.1.0.2 and fd01::2.
fn network(more: Value) -> Value {
    merged(
        json!({
            "bridge": "br0", "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }
        }),
        more,
    )
}

/// Another network of the node, on a bridge of its own. Its first pod has 10.2.0.2 and fd02::2.
fn another() -> Value {
    json!({
        "name": "other", "bridge": "br1",
        "ipam": { "ranges": [[{ "subnet": "10.2.0.0/24" }], [{ "subnet": "fd02::/64" }]] }
    })
}

fn merged(mut config: Value, more: Value) -> Value {
    let more = more.as_object().cloned().unwrap_or_default();
    more.into_iter().for_each(|(key, value)| config[key.as_str()] = value);
    config
}

fn row(name: &'static str, config: Value, steps: Vec<Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(&["1.0.0"]), plugin: Plugin::Network, config, steps, reference }
}
