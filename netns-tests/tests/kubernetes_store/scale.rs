//! A cluster of 5,000 nodes, each with a heartbeat every ten seconds.

use std::time::{Duration, Instant};

use podwire_netns_tests::Result;
use podwire_netns_tests::apiserver::{ApiServer, NodeSpec, ServerOptions};
use podwire_overlay::store::StoreEvent;
use serde_json::json;

use super::agent::Agent;
use super::{RECORD, node, record};

const NODES: u32 = 5000;

/// Of a name, a subnet and an address of its own.
fn one_of_many(number: u32) -> NodeSpec {
    let [.., high, low] = number.to_be_bytes();
    let mut says = record(2);
    says["addresses"] = json!([format!("172.30.{high}.{low}")]);
    NodeSpec::new(&format!("many-{number:04}"))
        .pod_cidrs(&[&format!("10.{high}.{low}.0/24")])
        .internal_ips(&[&format!("172.30.{high}.{low}")])
        .annotation(RECORD, &says.to_string())
        .sized()
}

#[test]
fn of_5000_nodes_heartbeats_nothing_is_told() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    server.create_node(&node(1))?;
    for number in 0..NODES {
        server.create_node(&one_of_many(number))?;
    }
    let agent = Agent::start(&server);
    agent.wait("all nodes", |agent| agent.names().len() == NODES as usize);
    server.heartbeats(Some(Duration::from_secs(10)));
    let (version, before) = (server.version(), agent.heard().len());
    let more = agent.hear_for(Duration::from_secs(10));
    let beats = server.version() - version;
    assert!(beats > u64::from(NODES) / 2, "{beats} heartbeats within 10 s");
    assert!(more.is_empty(), "{} events, the first {:?}", more.len(), more.first().map(name_of));
    // One change in the midst of them comes through, soon, and alone.
    let began = Instant::now();
    let mut moved = record(2);
    moved["addresses"] = json!(["172.31.0.1"]);
    server
        .patch_node("many-0042", &json!({ "metadata": { "annotations": { RECORD: moved.to_string() } } }))?;
    agent.wait("the change", |agent| agent.heard().len() > before);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert_eq!(agent.snapshots(), 2);
    assert_eq!(server.count("watch", "nodes"), 1, "one watch carries all of it");
    Ok(())
}

fn name_of(event: &StoreEvent) -> String {
    format!("{event:?}").chars().take(200).collect()
}
