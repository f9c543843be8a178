//! The kubernetes store by itself, against an API server that follows the real one and fails on command: what it tells the
//! agent, what it writes to its Node, and what it asks of the server.

mod agent;
mod failures;
mod following;
mod own;
mod peers;
mod scale;

use std::net::IpAddr;
use std::time::Duration;

use podwire_netns_tests::Result;
use podwire_netns_tests::apiserver::{ApiServer, NodeSpec, ServerOptions};
use podwire_overlay::store::kubernetes::Timing;
use serde_json::{Value, json};

/// The annotation with a node's record.
const RECORD: &str = "podwire.dev/node";
/// The annotation with the addresses that an administrator gives a node.
const ADDRESSES: &str = "podwire.dev/addresses";

/// Times for tests: nothing that a test does not wait for on purpose takes long.
fn quick() -> Timing {
    Timing {
        request: Duration::from_secs(5),
        lost_after: Duration::from_millis(500),
        quiet: Duration::from_millis(500),
        pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(200),
        jitter_per_node: Duration::ZERO,
        rest: Duration::from_millis(5),
        gather: Duration::from_millis(5),
        snapshot_pause: Duration::from_millis(5),
        not_ready_after: Duration::from_millis(300),
        message_pause: Duration::from_millis(300),
        put_back: Duration::from_millis(50),
        longest_put_back: Duration::from_millis(500),
        ..Timing::default()
    }
}

/// A Node as the controller manager and the kubelet leave it, with subnets and addresses of both families.
fn node(number: u8) -> NodeSpec {
    NodeSpec::new(&format!("node-{number}"))
        .pod_cidrs(&[&format!("10.244.{number}.0/24"), &format!("fd00:10:244:{number}::/64")])
        .internal_ips(&[&format!("172.30.0.{number}"), &format!("fd99::{number}")])
}

/// The same, of a node on which podwire runs.
fn peer(number: u8) -> NodeSpec {
    node(number).annotation(RECORD, &record(number).to_string())
}

fn record(number: u8) -> Value {
    json!({
        "version": 1, "instance": "0123456789abcdef0123456789abcdef", "mtu": 1500,
        "addresses": [format!("172.30.0.{number}"), format!("fd99::{number}")],
        "receives": [{ "vni": 1, "port": 8472, "mac": format!("02:00:00:00:00:{number:02x}") }],
        "sends": { "vni": 1, "port": 8472 },
    })
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("it is an address")).collect()
}

/// A server with this node, 1, and peers 2 and 3.
fn three_nodes(options: &ServerOptions) -> Result<ApiServer> {
    let server = ApiServer::start(options)?;
    server.create_node(&node(1))?;
    server.create_node(&peer(2))?;
    server.create_node(&peer(3))?;
    Ok(server)
}

fn annotation(key: &str, value: &str) -> Value {
    json!({ "metadata": { "annotations": { key: value } } })
}
