//! What other Nodes say: records as they should be, nonsense, and what flannel writes.

use std::time::Duration;

use podwire_netns_tests::Result;
use podwire_netns_tests::apiserver::{ApiServer, NodeSpec, ServerOptions};
use podwire_overlay::store::StoreEvent;
use serde_json::{Value, json};

use super::agent::{Agent, Options, announcement};
use super::{ADDRESSES, RECORD, addresses, annotation, node, peer, record, three_nodes};

const FLANNEL: &str = "flannel.alpha.coreos.com/";

#[test]
fn nodes_that_say_nothing_are_no_peers() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.create_node(&node(4))?;
    server.create_node(&flannel(5, &["172.30.0.5"]))?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    Ok(())
}

#[test]
fn an_administrator_says_how_a_node_is_reached() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.patch_node("node-2", &annotation(ADDRESSES, " 198.51.100.2, 2001:db8::2 "))?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let reached = |agent: &Agent, name: &str| agent.snapshot().map(|all| all.nodes[name].addresses.clone());
    assert_eq!(reached(&agent, "node-2"), Some(addresses(&["198.51.100.2", "2001:db8::2"])));
    assert_eq!(reached(&agent, "node-3"), Some(addresses(&["172.30.0.3", "fd99::3"])));
    Ok(())
}

#[test]
fn nonsense_is_left_out_by_name_and_harms_nobody_else() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let with = |field: &str, value: Value| {
        let mut wrong = record(2);
        wrong[field] = value;
        wrong.to_string()
    };
    let wrong = [
        String::new(),
        "garbage".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        "[".repeat(100_000),
        "x".repeat(200_000),
        with("version", json!(2)),
        with("version", json!(-1)),
        with("addresses", json!(["nonsense"])),
        with("addresses", json!({})),
        with("mtu", json!(1e300)),
        with("receives", json!([{ "vni": 1, "port": 70000, "mac": "02:00:00:00:00:02" }])),
        with("receives", json!([{ "vni": 1, "port": 8472, "mac": "no MAC" }])),
    ];
    for text in wrong {
        server.patch_node("node-2", &annotation(RECORD, &text))?;
        let begins: String = text.chars().take(300).collect();
        agent.wait(&format!("without node-2 for {begins:?}"), |agent| agent.names() == ["node-3"]);
        agent.wait_for_notice("Node node-2 is left out");
        server.patch_node("node-2", &annotation(RECORD, &record(2).to_string()))?;
        agent.wait_for_nodes(&["node-2", "node-3"]);
    }
    // What is said of it can be read by a person, on one line.
    for event in agent.heard() {
        if let StoreEvent::Notice(text) = event {
            assert!(text.len() < 600 && !text.contains('\n'), "{text}");
        }
    }
    Ok(())
}

#[test]
fn what_newer_versions_add_is_passed_over() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let mut newer = record(4);
    newer["wireguard"] = json!({ "key": "…" });
    server.create_node(&node(4).annotation(RECORD, &newer.to_string()))?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    Ok(())
}

#[test]
fn hostile_nodes_at_start_do_not_keep_others_out() -> Result<()> {
    for streaming_lists in [true, false] {
        let server = three_nodes(&ServerOptions { streaming_lists, ..ServerOptions::default() })?;
        for number in 10..40 {
            server.create_node(&node(number).annotation(RECORD, &"[".repeat(200_000)))?;
        }
        let agent = Agent::start(&server);
        agent.wait_for_nodes(&["node-2", "node-3"]);
        agent.wait_for_notice("Node node-10 is left out");
        agent.wait_for_notice("more Nodes are left out");
    }
    Ok(())
}

/// A node of flannel, as its agent leaves the Node.
fn flannel(number: u8, reached_by: &[&str]) -> NodeSpec {
    let data = |mac: &str| format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}");
    let mut spec = node(number)
        .annotation(&format!("{FLANNEL}backend-type"), "vxlan")
        .annotation(&format!("{FLANNEL}kube-subnet-manager"), "true");
    for address in reached_by {
        spec = if address.contains(':') {
            spec.annotation(&format!("{FLANNEL}backend-v6-data"), &data("02:66:00:00:00:0a"))
                .annotation(&format!("{FLANNEL}public-ipv6"), address)
        } else {
            spec.annotation(&format!("{FLANNEL}backend-data"), &data("02:44:00:00:00:0a"))
                .annotation(&format!("{FLANNEL}public-ip"), address)
        };
    }
    spec
}

fn with_flannel(server: &ApiServer) -> Agent {
    Agent::start_with(server, Options { flannel_peers: true, ..Options::default() })
}

#[test]
fn flannels_nodes_are_peers_where_that_is_wanted() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.create_node(&flannel(5, &["172.30.0.5", "fd99::5"]))?;
    server.create_node(&flannel(6, &["172.30.0.6"]))?;
    let agent = with_flannel(&server);
    agent.wait_for_nodes(&["node-2", "node-3", "node-5", "node-6"]);
    let snapshot = agent.snapshot().expect("there is one");
    let five = &snapshot.nodes["node-5"];
    assert!(five.same_family, "each family of flannel's pods travels over the same of the underlay");
    assert_eq!(five.addresses, addresses(&["172.30.0.5", "fd99::5"]));
    assert_eq!(five.receives[0].mac.to_string(), "02:44:00:00:00:0a");
    assert_eq!(five.receives[0].mac6.map(|mac| mac.to_string()), Some("02:66:00:00:00:0a".to_owned()));
    assert_eq!(snapshot.nodes["node-6"].addresses, addresses(&["172.30.0.6"]));
    assert!(!snapshot.nodes["node-2"].same_family);
    // Its administrator's overwrite counts, as among flannel's nodes.
    server.patch_node("node-6", &annotation(&format!("{FLANNEL}public-ip-overwrite"), "198.51.100.6"))?;
    agent.wait("the other address", |agent| {
        agent.snapshot().is_some_and(|all| all.nodes["node-6"].addresses == addresses(&["198.51.100.6"]))
    });
    // Once podwire runs there, its record counts.
    server.patch_node("node-5", &annotation(RECORD, &record(5).to_string()))?;
    agent.wait("podwire's record", |agent| {
        agent
            .snapshot()
            .is_some_and(|all| all.nodes["node-5"].receives[0].mac.to_string() == "02:00:00:00:00:05")
    });
    Ok(())
}

#[test]
fn nonsense_of_flannel_is_left_out() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.create_node(&flannel(5, &["172.30.0.5"]))?;
    let agent = with_flannel(&server);
    agent.wait_for_nodes(&["node-2", "node-3", "node-5"]);
    let right = server.node("node-5").unwrap_or_default()["metadata"]["annotations"].clone();
    let wrong = [
        ("backend-data", json!("garbage")),
        ("backend-data", json!("{\"VNI\":1}")),
        ("backend-data", json!("[".repeat(100_000))),
        ("public-ip", json!("fd99::5")),
        ("public-ip", json!("nonsense")),
        ("backend-type", json!("host-gw")),
        ("kube-subnet-manager", json!(null)),
    ];
    for (key, value) in wrong {
        let key = format!("{FLANNEL}{key}");
        server.patch_node("node-5", &json!({ "metadata": { "annotations": { key.as_str(): value } } }))?;
        agent.wait(&format!("without node-5 for {key}"), |agent| agent.names() == ["node-2", "node-3"]);
        server.patch_node("node-5", &json!({ "metadata": { "annotations": right } }))?;
        agent.wait_for_nodes(&["node-2", "node-3", "node-5"]);
    }
    Ok(())
}

#[test]
fn this_node_is_a_peer_of_flannels_as_long_as_that_is_wanted() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = with_flannel(&server);
    agent.wait_for_standing("joined", "");
    agent.announcement.send_replace(announcement());
    let at = |key: &str| server.annotation("node-1", &format!("{FLANNEL}{key}"));
    agent.wait("flannel's annotations", |_| at("backend-type").as_deref() == Some("vxlan"));
    assert_eq!(at("kube-subnet-manager").as_deref(), Some("true"));
    assert_eq!(at("public-ip").as_deref(), Some("172.30.0.1"));
    assert_eq!(at("public-ipv6").as_deref(), Some("fd99::1"));
    for key in ["backend-data", "backend-v6-data"] {
        let data: Value = serde_json::from_str(&at(key).unwrap_or_default()).expect("it is JSON");
        assert_eq!(data, json!({ "VNI": 1, "VtepMAC": "02:00:00:00:00:01" }), "{key}");
    }
    assert!(server.annotation("node-1", RECORD).is_some());
    // One that is there already is put back like our own.
    server.patch_node("node-1", &annotation(&format!("{FLANNEL}public-ip"), "203.0.113.1"))?;
    agent.wait("it is put back", |_| at("public-ip").as_deref() == Some("172.30.0.1"));
    drop(agent);
    // Not wanted any more: they go, and nobody else's.
    let agent = Agent::start(&server);
    agent.announcement.send_replace(announcement());
    agent.wait("they are gone", |_| at("backend-type").is_none() && at("backend-data").is_none());
    assert_eq!((at("public-ip"), at("public-ipv6"), at("kube-subnet-manager")), (None, None, None));
    assert!(server.annotation("node-1", RECORD).is_some());
    Ok(())
}

#[test]
fn flannels_own_annotations_are_left_alone_where_it_still_runs() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    server.create_node(&flannel(1, &["172.30.0.1"]))?;
    server.create_node(&peer(2))?;
    let agent = Agent::start(&server);
    agent.announcement.send_replace(announcement());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    agent.hear_for(Duration::from_millis(300));
    let data = server.annotation("node-1", &format!("{FLANNEL}backend-data"));
    assert!(data.is_some_and(|data| data.contains("02:44:00:00:00:0a")), "it was not ours");
    Ok(())
}
