//! A server that is away, slow, broken, or says no. What is known stays known.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podwire_netns_tests::apiserver::{
    AGENT_TOKEN, Account, ApiServer, Fault, Kind, Rule, ServerOptions, Tls,
};
use podwire_netns_tests::{LabError, Result, wait_for};
use podwire_overlay::cluster::{NodeRecord, Snapshot};
use podwire_overlay::store::kubernetes::Timing;
use podwire_overlay::store::{Membership, Remembered, StoreEvent};
use serde_json::json;

use super::agent::{Agent, Options, announcement, ready, shared};
use super::{RECORD, peer, quick, three_nodes};

#[test]
fn a_server_that_is_down_at_start_is_waited_for() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.set_fault(Fault::Refuse);
    let agent = Agent::start(&server);
    agent.wait("the store is lost", Agent::is_lost);
    assert_eq!(agent.standing().0, "", "nobody knows yet whether this node has a part of the cluster");
    assert_eq!(agent.snapshots(), 0, "unknown is not empty");
    server.set_fault(Fault::None);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    assert_eq!(agent.standing().0, "joined");
    agent.wait("the store is found", |agent| !agent.is_lost());
    Ok(())
}

#[test]
fn a_node_that_remembers_its_cluster_goes_on_from_there() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let remembered = Remembered {
        membership: agent.membership().expect("it joined"),
        snapshot: Snapshot::clone(&agent.snapshot().expect("there is one")),
        mark: None,
    };
    drop(agent);
    server.set_fault(Fault::Refuse);
    let options = Options { remembered: Some(remembered.clone()), ..Options::default() };
    let agent = Agent::start_with(&server, options);
    agent.wait("the store is lost", Agent::is_lost);
    assert_eq!(agent.snapshots(), 0, "what is remembered stays as it is");
    server.set_fault(Fault::None);
    agent.wait("the same part", |agent| agent.membership().as_ref() == Some(&remembered.membership));
    agent.wait_for_nodes(&["node-2", "node-3"]);
    drop(agent);
    // A node that comes back to a cluster without it is not let go on with what it remembers.
    server.delete_node("node-1")?;
    let agent = Agent::start_with(&server, Options { remembered: Some(remembered), ..Options::default() });
    agent.wait_for_standing("fenced", "node-1");
    Ok(())
}

#[test]
fn a_server_that_goes_away_is_lost_once_and_found_once() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let (snapshots, before) = (agent.snapshots(), agent.heard().len());
    server.set_fault(Fault::Refuse);
    agent.wait("the store is lost", Agent::is_lost);
    // As long as it is away there is nothing more to say.
    let more = agent.hear_for(Duration::from_secs(2));
    assert!(more.is_empty(), "{more:?}");
    server.set_fault(Fault::None);
    agent.wait("the store is found", |agent| !agent.is_lost());
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    let heard = agent.heard().split_off(before);
    let lost = heard.iter().filter(|event| matches!(event, StoreEvent::Lost { .. })).count();
    let found = heard.iter().filter(|event| matches!(event, StoreEvent::Found)).count();
    assert_eq!((lost, found), (1, 1), "{heard:?}");
    assert_eq!(agent.snapshots(), snapshots + 1, "nothing was made of the loss");
    Ok(())
}

#[test]
fn attempts_come_less_and_less_often() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let timing =
        Timing { longest_pause: Duration::from_secs(2), pause: Duration::from_millis(100), ..quick() };
    let agent = Agent::start_with(&server, Options { timing, ..Options::default() });
    agent.wait_for_nodes(&["node-2", "node-3"]);
    server.set_fault(Fault::Fail(500));
    server.drop_watches();
    server.forget_requests();
    agent.wait("the store is lost", Agent::is_lost);
    agent.hear_for(Duration::from_secs(3));
    let attempts = server.requests().len();
    // 0.1 s, 0.2 s, 0.4 s, … each shortened by half at most: seven within 3.5 s, and two more for a machine that is busy.
    assert!((3..=12).contains(&attempts), "{attempts} requests: {:?}", server.requests());
    Ok(())
}

#[test]
fn a_server_that_says_nothing_is_lost_too() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let timing = Timing { request: Duration::from_millis(500), ..quick() };
    let agent = Agent::start_with(&server, Options { timing, ..Options::default() });
    agent.wait_for_nodes(&["node-2", "node-3"]);
    // The watch is open, and will never say a word: as through a firewall that forgot the connection.
    server.set_fault(Fault::Silent);
    agent.wait("the store is lost", Agent::is_lost);
    server.set_fault(Fault::None);
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-2", "node-3", "node-4"]);
    agent.wait("the store is found", |agent| !agent.is_lost());
    Ok(())
}

#[test]
fn a_slow_server_is_not_lost() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.set_fault(Fault::Slow(Duration::from_millis(400)));
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    agent.announcement.send_replace(announcement());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-1", "node-2", "node-3", "node-4"]);
    assert_eq!(agent.count(|event| matches!(event, StoreEvent::Lost { .. })), 0, "{:?}", agent.heard());
    Ok(())
}

#[test]
fn answers_that_break_off_are_asked_for_again() -> Result<()> {
    for streaming_lists in [true, false] {
        let server = three_nodes(&ServerOptions { streaming_lists, ..ServerOptions::default() })?;
        server.set_fault(Fault::Cut);
        let agent = Agent::start(&server);
        agent.wait("the store is lost", Agent::is_lost);
        assert_eq!(agent.snapshots(), 0, "half a list is no list");
        server.set_fault(Fault::None);
        agent.wait_for_nodes(&["node-2", "node-3"]);
        // A line of a watch that ends in its middle.
        server.set_fault(Fault::Cut);
        server.create_node(&peer(4))?;
        server.delete_node("node-3")?;
        wait_for(Duration::from_millis(300), || false);
        assert!(agent.names().contains(&"node-2".to_owned()));
        server.set_fault(Fault::None);
        agent.wait_for_nodes(&["node-2", "node-4"]);
    }
    Ok(())
}

#[test]
fn a_server_in_trouble_is_asked_again() -> Result<()> {
    for code in [429, 500, 503] {
        let server = three_nodes(&ServerOptions::default())?;
        server.set_fault(Fault::Fail(code));
        let agent = Agent::start(&server);
        agent.wait("the store is lost", Agent::is_lost);
        server.set_fault(Fault::None);
        agent.wait_for_nodes(&["node-2", "node-3"]);
        assert_eq!(agent.standing().0, "joined");
    }
    Ok(())
}

#[test]
fn a_new_token_is_read_when_the_old_one_ends() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    agent.announcement.send_replace(announcement());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    // The usual way: the new one is there before the old one ends.
    agent.give_token("second");
    server.rotate(AGENT_TOKEN, "second");
    server.drop_watches();
    server.create_node(&peer(4))?;
    agent.wait_for_nodes(&["node-1", "node-2", "node-3", "node-4"]);
    // The other way round: nothing works for a while.
    server.rotate("second", "third");
    server.drop_watches();
    agent.wait("the store is lost", Agent::is_lost);
    let why = agent.heard().into_iter().rev().find_map(|event| match event {
        StoreEvent::Lost { why } => Some(why),
        _ => None,
    });
    let why = why.unwrap_or_default();
    assert!(why.contains("401") && !why.contains("second"), "{why}");
    agent.give_token("third");
    server.delete_node("node-4")?;
    agent.wait_for_nodes(&["node-1", "node-2", "node-3"]);
    // Also writes go on.
    server.patch_node("node-1", &json!({ "metadata": { "annotations": { RECORD: null } } }))?;
    agent.wait("the record is put back", |_| server.annotation("node-1", RECORD).is_some());
    Ok(())
}

#[test]
fn what_the_account_may_not_do_is_named() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let with = |rules: Vec<Rule>| Account { user: "weak".to_owned(), rules, bound_to: None };
    server.admit(AGENT_TOKEN, with(vec![Rule::new("", &["nodes"], &["get"])]));
    let agent = Agent::start(&server);
    agent.wait("the store is lost", |agent| {
        agent.count(|event| matches!(event, StoreEvent::Lost { why } if why.contains("\"watch\" on nodes")))
            > 0
    });
    // Reading alone: peers are known, and what is not written is said.
    server.admit(AGENT_TOKEN, with(vec![Rule::new("", &["nodes"], &["get", "list", "watch"])]));
    agent.wait_for_nodes(&["node-2", "node-3"]);
    agent.announcement.send_replace(announcement());
    agent.health.send_replace(ready());
    agent.wait_for_notice("\"patch\" on nodes ");
    agent.wait_for_notice("\"patch\" on nodes/status");
    // What is given to it later is used.
    server.admit(AGENT_TOKEN, Account::agent());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    agent.wait("the condition is written", |_| server.condition("node-1", "NetworkUnavailable").is_some());
    Ok(())
}

#[test]
fn a_server_that_was_set_back_is_followed() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    // Versions far above those of the server that takes its place.
    for number in 0..200 {
        server.patch_node("node-2", &json!({ "metadata": { "labels": { "n": number.to_string() } } }))?;
    }
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let at = server.address();
    drop(server);
    let server = ApiServer::start(&ServerOptions { listen: at, ..ServerOptions::default() })?;
    server.create_node(&super::node(1))?;
    server.create_node(&peer(3))?;
    server.create(Kind::Namespace, json!({ "metadata": { "name": "web" } }))?;
    agent.wait_for_nodes(&["node-3"]);
    Ok(())
}

#[test]
fn the_token_is_given_to_the_right_server_alone() -> Result<()> {
    let secured = |at: &str| -> Result<ApiServer> {
        let directory = tempfile::tempdir().map_err(LabError::because("make a directory"))?;
        let at: IpAddr = at.parse().map_err(LabError::because("read an address"))?;
        let tls = Some(Tls::make(directory.path(), &[at], &["kubernetes.default.svc"])?);
        three_nodes(&ServerOptions { listen: (at, 0).into(), tls, ..ServerOptions::default() })
    };
    let (right, other) = (secured("::1")?, secured("127.0.0.1")?);
    let agent = Agent::start(&right);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    let agent = Agent::start_at(&other.url(), &right, Options::default());
    agent.wait("the store is lost", |agent| {
        let is_named = |why: &str| why.contains("certificate");
        agent.count(|event| matches!(event, StoreEvent::Lost { why } if is_named(why))) > 0
    });
    assert_eq!(agent.snapshots(), 0);
    assert!(other.requests().is_empty(), "{:?}", other.requests());
    Ok(())
}

#[test]
fn nothing_that_is_remembered_is_trusted_more_than_the_server() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let ghost = NodeRecord { name: "ghost".to_owned(), ..NodeRecord::default() };
    let remembered = Remembered {
        membership: Membership::default(),
        snapshot: Snapshot {
            config: shared(),
            nodes: BTreeMap::from([("ghost".to_owned(), Arc::new(ghost))]),
        },
        mark: None,
    };
    let agent = Agent::start_with(&server, Options { remembered: Some(remembered), ..Options::default() });
    agent.wait_for_nodes(&["node-2", "node-3"]);
    Ok(())
}
