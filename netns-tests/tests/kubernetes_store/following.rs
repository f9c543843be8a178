//! Lists and watches: in one stream or in pages, from where the last one ended, and again when that is not known any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_netns_tests::apiserver::{ApiServer, Fault, Kind, Request, ServerOptions};
use podwire_netns_tests::{LIMIT, Result, wait_for};
use podwire_overlay::store::StoreEvent;
use podwire_overlay::store::kubernetes::Timing;
use serde_json::json;

use super::agent::{Agent, Options};
use super::{RECORD, addresses, annotation, node, peer, quick, three_nodes};

/// The requests of a verb to Nodes.
fn asked(server: &ApiServer, verb: &str) -> Vec<Request> {
    server
        .requests()
        .into_iter()
        .filter(|request| request.verb == verb && request.resource == "nodes")
        .collect()
}

#[test]
fn all_nodes_come_in_one_stream() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    // The subnets come first: without them nothing of the rest can be done.
    assert!(matches!(agent.heard().first(), Some(StoreEvent::Joined(_))), "{:?}", agent.heard());
    assert_eq!(server.count("list", "nodes"), 0);
    assert_eq!(server.count("watch", "nodes"), 1);
    let snapshot = agent.snapshot().expect("there is one");
    let second = &snapshot.nodes["node-2"];
    assert_eq!(second.addresses, addresses(&["172.30.0.2", "fd99::2"]));
    assert_eq!(second.receives[0].mac.to_string(), "02:00:00:00:00:02");
    assert_eq!(second.subnets.len(), 2);
    assert!(second.generation > 0 && second.generation == second.claimed);
    // What changes comes on the same watch.
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    server.delete_node("node-3")?;
    agent.wait_for_nodes(&["node-2", "node-4"]);
    assert_eq!(server.count("watch", "nodes"), 1);
    Ok(())
}

#[test]
fn where_streams_are_not_offered_all_nodes_come_in_pages() -> Result<()> {
    let server = three_nodes(&ServerOptions { streaming_lists: false, ..ServerOptions::default() })?;
    for number in 0..1200 {
        let name = format!("other-{number:04}");
        server.create(Kind::Node, json!({ "metadata": { "name": name } }))?;
    }
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    wait_for(LIMIT, || asked(&server, "watch").len() == 2);
    let (lists, watches) = (asked(&server, "list"), asked(&server, "watch"));
    assert_eq!(lists.len(), 3, "1,203 Nodes are three pages: {lists:?}");
    assert!(lists.iter().all(|list| list.query.contains("limit=500")), "{lists:?}");
    assert_eq!(watches.iter().map(|watch| watch.status).collect::<Vec<_>>(), [422, 200]);
    assert!(watches[1].query.contains("resourceVersion="), "{watches:?}");
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    Ok(())
}

#[test]
fn a_watch_goes_on_from_the_last_bookmark() -> Result<()> {
    let bookmarks = Duration::from_millis(50);
    let server = three_nodes(&ServerOptions { bookmarks, ..ServerOptions::default() })?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let snapshots = agent.snapshots();
    // Other kinds' changes move the version on, and a bookmark says so.
    server.create(Kind::Namespace, json!({ "metadata": { "name": "web" } }))?;
    server.compact();
    let sent = || server.counts().iter().map(|(_, count)| count.bytes).sum::<u64>();
    let before = sent();
    // Three bookmarks: the first may have been under way already.
    agent.wait("bookmarks", |_| sent() > before + 900);
    server.drop_watches();
    agent.wait("a second watch", |_| asked(&server, "watch").len() == 2);
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    let watches = asked(&server, "watch");
    assert_eq!(watches.len(), 2, "nothing was listed again: {watches:?}");
    assert!(!watches[1].query.contains("sendInitialEvents"), "{watches:?}");
    assert_eq!(agent.snapshots(), snapshots + 1);
    assert!(!agent.is_lost());
    Ok(())
}

#[test]
fn what_happened_between_watches_is_not_missed() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    for round in 0..10 {
        server.drop_connections();
        server.delete_node("node-3")?;
        server.create_node(&peer(4))?;
        agent.wait_for_nodes(&["node-2", "node-4"]);
        server.drop_watches();
        server.delete_node("node-4")?;
        server.create_node(&peer(3))?;
        agent.wait(&format!("round {round}"), |agent| agent.names() == ["node-2", "node-3"]);
    }
    assert!(asked(&server, "watch").iter().skip(1).all(|watch| !watch.query.contains("sendInitialEvents")));
    Ok(())
}

#[test]
fn a_version_that_is_too_old_means_a_new_list() -> Result<()> {
    for streaming_lists in [true, false] {
        let server = three_nodes(&ServerOptions { streaming_lists, ..ServerOptions::default() })?;
        let agent = Agent::start(&server);
        agent.wait_for_nodes(&["node-2", "node-3"]);
        // Nobody hears of it.
        server.set_fault(Fault::Refuse);
        server.delete_node("node-2")?;
        server.create_node(&peer(4))?;
        server.compact();
        server.set_fault(Fault::None);
        agent.wait_for_nodes(&["node-3", "node-4"]);
        // What has stayed is the same, for those who compare.
        let is_same = |name: &str| {
            let record = |event| match event {
                StoreEvent::Snapshot { snapshot, .. } => snapshot.nodes.get(name).cloned(),
                _ => None,
            };
            let all: Vec<_> = agent.heard().into_iter().filter_map(record).collect();
            all.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1]))
        };
        assert!(is_same("node-3"));
    }
    Ok(())
}

#[test]
fn agents_do_not_list_all_at_once() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let timing = Timing {
        // With three nodes: up to 3 s.
        jitter_per_node: Duration::from_secs(1),
        longest_jitter: Duration::from_secs(10),
        ..quick()
    };
    let agents: Vec<_> = (0..8)
        .map(|_| Agent::start_with(&server, Options { timing: timing.clone(), ..Options::default() }))
        .collect();
    for agent in &agents {
        agent.wait_for_nodes(&["node-2", "node-3"]);
    }
    server.forget_requests();
    let began = Instant::now();
    server.compact();
    server.drop_watches();
    let lists = || {
        let streams = |request: &Request| request.query.contains("sendInitialEvents");
        asked(&server, "watch")
            .into_iter()
            .filter(streams)
            .map(|request| request.at - began)
            .collect::<Vec<_>>()
    };
    assert!(wait_for(LIMIT, || lists().len() == agents.len()), "{:?}", lists());
    let (first, last) = (lists()[0], lists()[7]);
    // Eight random times within 3 s lie within a tenth of that with a probability below 1 in 1,000,000.
    assert!(last - first > Duration::from_millis(300), "all came between {first:?} and {last:?}");
    Ok(())
}

#[test]
fn changes_that_do_not_matter_are_not_told() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let snapshots = agent.snapshots();
    for number in 0..50 {
        server.patch_node("node-2", &json!({ "metadata": { "labels": { "count": number.to_string() } } }))?;
        server.patch_node("node-3", &annotation("other.example.com/count", &number.to_string()))?;
        let condition = json!({ "type": "Ready", "status": "True", "message": number.to_string() });
        server.patch_node_status("node-2", &json!({ "status": { "conditions": [condition] } }))?;
    }
    // Cordoned nodes are peers as before.
    server.patch_node("node-3", &json!({ "spec": { "unschedulable": true } }))?;
    server.create_node(&node(5))?;
    // The one change that matters comes after all of them, and in one piece.
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    assert_eq!(agent.snapshots(), snapshots + 1);
    Ok(())
}

#[test]
fn a_burst_of_changes_is_few_snapshots() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let timing =
        Timing { gather: Duration::from_millis(100), snapshot_pause: Duration::from_millis(500), ..quick() };
    let agent = Agent::start_with(&server, Options { timing, ..Options::default() });
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let (snapshots, began) = (agent.snapshots(), Instant::now());
    for number in 4..=200 {
        server.create_node(&peer(number))?;
    }
    agent.wait("all nodes", |agent| agent.names().len() == 199);
    let most = 2 + began.elapsed().as_millis() / 500;
    let more = agent.snapshots() - snapshots;
    assert!(more as u128 <= most, "{more} snapshots of 197 changes");
    // Records that did not change are the same.
    server.patch_node("node-200", &annotation(RECORD, "{}"))?;
    agent.wait("one less", |agent| agent.names().len() == 198);
    Ok(())
}
