//! This node's own Node: what follows from it, and what is written to it.

use std::time::Duration;

use podwire_netns_tests::apiserver::{AGENT_TOKEN, Account, ApiServer, Fault, NodeSpec, ServerOptions};
use podwire_netns_tests::{LIMIT, Result, wait_for};
use podwire_overlay::store::kubernetes::Timing;
use podwire_overlay::store::{Action, Health, StoreEvent};
use serde_json::{Value, json};

use super::agent::{Agent, Options, announcement, not_ready, ready};
use super::{ADDRESSES, RECORD, addresses, annotation, node, quick, three_nodes};

const UNAVAILABLE: &str = "NetworkUnavailable";

fn subnets(agent: &Agent) -> Vec<String> {
    let membership = agent.membership();
    membership.iter().flat_map(|membership| &membership.subnets).map(ToString::to_string).collect()
}

/// A server with this node alone, and its agent.
fn alone(spec: &NodeSpec) -> Result<(ApiServer, Agent)> {
    let server = ApiServer::start(&ServerOptions::default())?;
    server.create_node(spec)?;
    let agent = Agent::start(&server);
    Ok((server, agent))
}

#[test]
fn subnets_and_addresses_come_from_the_node() -> Result<()> {
    let (server, agent) = alone(&node(1))?;
    agent.wait_for_standing("joined", "");
    assert_eq!(subnets(&agent), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let membership = agent.membership().expect("it joined");
    assert_eq!(membership.addresses, addresses(&["172.30.0.1", "fd99::1"]));
    assert!(membership.generation > 0 && membership.generation == membership.claimed);
    // An administrator's word counts for more.
    server.patch_node("node-1", &annotation(ADDRESSES, "198.51.100.1"))?;
    agent.wait("the other address", |agent| {
        agent.membership().is_some_and(|membership| membership.addresses == addresses(&["198.51.100.1"]))
    });
    server.patch_node("node-1", &annotation(ADDRESSES, "nonsense"))?;
    agent.wait_for_notice(ADDRESSES);
    agent.wait("the addresses of before", |agent| {
        agent
            .membership()
            .is_some_and(|membership| membership.addresses == addresses(&["172.30.0.1", "fd99::1"]))
    });
    Ok(())
}

#[test]
fn families_come_in_any_order_or_alone() -> Result<()> {
    let other =
        node(1).pod_cidrs(&["fd00:10:244:1::/64", "10.244.1.0/24"]).internal_ips(&["fd99::1", "172.30.0.1"]);
    let (_server, agent) = alone(&other)?;
    agent.wait_for_standing("joined", "");
    assert_eq!(
        subnets(&agent),
        ["10.244.1.0/24", "fd00:10:244:1::/64"],
        "in the order of the cluster's ranges"
    );

    let two = node(1).internal_ips(&["172.30.0.1", "172.31.0.1", "fd99::1", "fd98::1"]);
    let (_server, agent) = alone(&two)?;
    agent.wait_for_standing("joined", "");
    let membership = agent.membership().expect("it joined");
    assert_eq!(membership.addresses, addresses(&["172.30.0.1", "fd99::1"]), "the first of each family");

    let six = node(1).pod_cidrs(&["fd00:10:244:1::/64"]).internal_ips(&["fd99::1"]);
    let (_server, agent) = alone(&six)?;
    agent.wait_for_standing("joined", "");
    assert_eq!(subnets(&agent), ["fd00:10:244:1::/64"]);
    assert_eq!(agent.membership().expect("it joined").addresses, addresses(&["fd99::1"]));
    Ok(())
}

#[test]
fn a_node_without_a_subnet_waits_for_it() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_standing("refused", "no Node node-1");
    server.create_node(&NodeSpec::new("node-1").internal_ips(&["172.30.0.1"]))?;
    agent.wait_for_standing("refused", "no spec.podCIDR");
    server.patch_node("node-1", &json!({ "spec": { "podCIDR": "10.244.1.0/24" } }))?;
    agent.wait_for_standing("joined", "");
    assert_eq!(subnets(&agent), ["10.244.1.0/24"]);
    Ok(())
}

#[test]
fn subnets_that_do_not_fit_the_settings_are_refused_with_advice() -> Result<()> {
    for (cidr, why) in [("10.9.1.0/24", "cluster.range"), ("10.244.1.0/25", "node-cidr-mask-size")] {
        let (_server, agent) = alone(&NodeSpec::new("node-1").pod_cidrs(&[cidr]))?;
        agent.wait_for_standing("refused", why);
        assert!(agent.membership().is_none());
    }
    Ok(())
}

#[test]
fn a_node_that_is_deleted_is_fenced_until_it_is_made_again() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.wait_for_nodes(&["node-2", "node-3"]);
    agent.announcement.send_replace(announcement());
    agent.wait_for_nodes(&["node-1", "node-2", "node-3"]);
    let before = agent.membership().expect("it joined");
    // Times of creation are whole seconds: a node that is made again in the same one is not newer by its generation.
    wait_for(Duration::from_millis(1100), || false);
    server.delete_node("node-1")?;
    agent.wait_for_standing("fenced", "no Node node-1 any more");
    agent.wait_for_nodes(&["node-2", "node-3"]);
    server.create_node(&node(1).pod_cidrs(&["10.244.9.0/24"]))?;
    agent.wait_for_standing("joined", "");
    let after = agent.membership().expect("it joined again");
    assert_eq!(subnets(&agent), ["10.244.9.0/24"]);
    assert!(after.generation > before.generation, "a node that is made again is a newer one");
    // It says to the new Node what it said to the old one.
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    agent.wait_for_nodes(&["node-1", "node-2", "node-3"]);
    Ok(())
}

#[test]
fn a_node_that_was_made_again_while_nobody_looked_is_another_one() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let agent = Agent::start(&server);
    agent.announcement.send_replace(announcement());
    agent.wait_for_nodes(&["node-1", "node-2", "node-3"]);
    server.set_fault(Fault::Refuse);
    server.delete_node("node-1")?;
    server.create_node(&node(1).pod_cidrs(&["10.244.8.0/24"]))?;
    server.compact();
    server.set_fault(Fault::None);
    agent.wait("the new subnet", |agent| subnets(agent) == ["10.244.8.0/24"]);
    agent.wait("its record on the new Node", |_| server.annotation("node-1", RECORD).is_some());
    let own = |agent: &Agent| agent.snapshot().and_then(|all| all.nodes.get("node-1").cloned());
    agent.wait("the same for others", |agent| {
        own(agent).is_some_and(|own| own.subnets.iter().map(ToString::to_string).eq(["10.244.8.0/24"]))
    });
    Ok(())
}

#[test]
fn what_it_says_of_itself_is_put_back_when_others_change_it() -> Result<()> {
    let (server, agent) = alone(&node(1))?;
    agent.wait_for_standing("joined", "");
    assert_eq!(server.annotation("node-1", RECORD), None, "it has nothing to say before its devices are up");
    agent.announcement.send_replace(announcement());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    let right = server.annotation("node-1", RECORD);
    let record: Value = serde_json::from_str(&right.clone().unwrap_or_default()).expect("it is JSON");
    assert_eq!(record["version"], 1);
    assert_eq!(record["addresses"], json!(["172.30.0.1", "fd99::1"]));
    assert_eq!(record["receives"], json!([{ "vni": 1, "port": 8472, "mac": "02:00:00:00:00:01" }]));
    for wrong in [json!(null), json!("garbage"), json!("{\"version\":2}"), json!("x".repeat(100_000))] {
        server.patch_node(
            "node-1",
            &json!({ "metadata": { "annotations": { RECORD: wrong, "kept": "1" } } }),
        )?;
        agent.wait("it is put back", |_| server.annotation("node-1", RECORD) == right);
    }
    assert_eq!(server.annotation("node-1", "kept").as_deref(), Some("1"), "others' annotations are theirs");
    agent.wait_for_notice("somebody goes on changing");
    // What is new of the node is told at once.
    agent.announcement.send_modify(|announcement| announcement.mtu = Some(9000));
    agent.wait("the new text", |_| {
        server.annotation("node-1", RECORD).is_some_and(|text| text.contains("9000"))
    });
    Ok(())
}

#[test]
fn a_fight_over_the_record_is_no_storm_of_writes() -> Result<()> {
    let (server, agent) = alone(&node(1))?;
    agent.announcement.send_replace(announcement());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    server.forget_requests();
    let mut rounds = 0;
    wait_for(Duration::from_secs(3), || {
        if server.annotation("node-1", RECORD).is_some_and(|text| text.contains("version")) {
            server.patch_node("node-1", &annotation(RECORD, "another's")).expect("it can be changed");
            rounds += 1;
        }
        false
    });
    let writes = server.count("patch", "nodes");
    // 50 ms, 100 ms, … up to 500 ms: at most nine within 3 s.
    assert!((2..=12).contains(&writes), "{writes} writes in {rounds} rounds");
    agent.wait_for_notice("somebody goes on changing");
    Ok(())
}

#[test]
fn the_condition_says_at_once_that_the_node_is_ready_and_late_that_it_is_not() -> Result<()> {
    let server = ApiServer::start(&ServerOptions::default())?;
    server.create_node(&node(1))?;
    // As a cloud's controller leaves it.
    let before = json!({ "type": UNAVAILABLE, "status": "True", "reason": "NoRouteCreated" });
    server.patch_node_status(
        "node-1",
        &json!({ "status": { "conditions": [before, { "type": "Ready", "status": "True" }] } }),
    )?;
    let timing = Timing { not_ready_after: Duration::from_secs(2), ..quick() };
    let agent = Agent::start_with(&server, Options { timing, ..Options::default() });
    let condition = || server.condition("node-1", UNAVAILABLE).unwrap_or_default();
    agent.wait_for_standing("joined", "");
    agent.health.send_replace(ready());
    agent.wait("it is available", |_| condition()["status"] == "False");
    assert_eq!(condition()["reason"], "PodwireReady");
    assert_eq!(
        server.condition("node-1", "Ready").unwrap_or_default()["status"],
        "True",
        "others' conditions stay"
    );
    let since = condition()["lastTransitionTime"].clone();

    // What passes within the limit is not told, however long all was well before.
    agent.hear_for(Duration::from_millis(1800));
    let writes = server.count("patch", "nodes/status");
    agent.health.send_replace(not_ready("podwire.1 is gone"));
    agent.hear_for(Duration::from_millis(300));
    agent.health.send_replace(ready());
    agent.hear_for(Duration::from_millis(300));
    assert_eq!(condition()["status"], "False");
    assert_eq!(server.count("patch", "nodes/status"), writes);

    agent.health.send_replace(not_ready("the kernel has no vxlan"));
    agent.wait("it is unavailable", |_| condition()["status"] == "True");
    assert_eq!(condition()["reason"], "PodwireNotReady");
    assert_eq!(condition()["message"], "the kernel has no vxlan");
    assert_ne!(condition()["lastTransitionTime"], since);
    agent.health.send_replace(ready());
    agent.wait("it is available again", |_| condition()["status"] == "False");
    // Somebody else's word is put right.
    let wrong = json!({ "type": UNAVAILABLE, "status": "True", "reason": "NoRouteCreated" });
    server.patch_node_status("node-1", &json!({ "status": { "conditions": [wrong] } }))?;
    agent.wait("it is put right", |_| {
        condition()["status"] == "False" && condition()["reason"] == "PodwireReady"
    });
    // It stays as it is when the agent ends.
    drop(agent);
    assert_eq!(condition()["status"], "False");
    Ok(())
}

#[test]
fn events_tell_each_thing_once() -> Result<()> {
    let (server, agent) = alone(&node(1))?;
    agent.wait_for_standing("joined", "");
    let told = |text: &str| {
        let has = |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(text));
        server.events().into_iter().filter(has).collect::<Vec<_>>()
    };
    let problem = |texts: &[&str]| Health {
        problems: texts.iter().map(|text| (*text).to_owned()).collect(),
        ..ready()
    };
    agent.health.send_replace(problem(&["disk is full"]));
    agent.wait("an event", |_| !told("disk is full").is_empty());
    agent.health.send_replace(problem(&["disk is full", "two nodes have 10.244.7.0/24"]));
    agent.wait("the second", |_| !told("two nodes").is_empty());
    assert_eq!(told("disk is full").len(), 1);
    let event = told("disk is full").remove(0);
    let uid = server.node("node-1").unwrap_or_default()["metadata"]["uid"].clone();
    assert_eq!(event["involvedObject"]["kind"], "Node");
    assert_eq!(event["involvedObject"]["name"], "node-1");
    assert_eq!(event["involvedObject"]["uid"], uid);
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["metadata"]["namespace"], "default");
    // It went away, and is there again.
    agent.health.send_replace(problem(&[]));
    agent.hear_for(Duration::from_millis(100));
    agent.health.send_replace(problem(&["disk is full"]));
    agent.wait("it is told again", |_| told("disk is full").len() == 2);
    // Being ready, and being fenced, are events too.
    agent.wait("that it is ready", |_| server.events().iter().any(|event| event["reason"] == "PodwireReady"));
    server.delete_node("node-1")?;
    agent.wait("that it is fenced", |_| {
        server.events().iter().any(|event| event["reason"] == "PodwireFenced")
    });
    assert!(
        server.requests().iter().filter(|request| request.resource == "events").all(|it| it.status < 300)
    );
    Ok(())
}

#[test]
fn an_agent_writes_to_its_own_node_alone() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    server.admit(AGENT_TOKEN, Account::agent().bound_to("node-1"));
    let agent = Agent::start(&server);
    agent.announcement.send_replace(announcement());
    agent.health.send_replace(ready());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    agent.wait("the condition is written", |_| server.condition("node-1", UNAVAILABLE).is_some());
    agent.wait("an event", |_| !server.events().is_empty());
    let writes: Vec<_> =
        server.requests().into_iter().filter(|it| matches!(it.verb, "patch" | "update" | "create")).collect();
    assert!(writes.iter().all(|write| write.status < 300), "{writes:?}");
    assert!(
        writes.iter().filter(|write| write.resource.starts_with("nodes")).all(|write| write.name == "node-1")
    );
    Ok(())
}

#[test]
fn what_kubernetes_owns_is_not_done_by_podwire() -> Result<()> {
    let (server, agent) = alone(&node(1))?;
    agent.wait_for_standing("joined", "");
    let answer = agent.ask(Action::RemoveNode { name: "node-2".to_owned(), force: true });
    assert!(answer.is_err_and(|why| why.contains("kubectl delete node node-2")));
    assert!(agent.ask(Action::Leave).is_err_and(|why| why.contains("node-1")));
    assert!(server.node("node-1").is_some());
    Ok(())
}

#[test]
fn a_quiet_cluster_costs_few_requests() -> Result<()> {
    let server = three_nodes(&ServerOptions::default())?;
    let usual = Timing::default();
    let timing = Timing {
        quiet: usual.quiet,
        // What comes late from the watch was so before this node wrote.
        put_back: usual.put_back,
        not_ready_after: usual.not_ready_after,
        ..quick()
    };
    let agent = Agent::start_with(&server, Options { timing, ..Options::default() });
    agent.announcement.send_replace(announcement());
    agent.health.send_replace(ready());
    agent.wait("the condition is written", |_| server.condition("node-1", UNAVAILABLE).is_some());
    agent.wait("the record is written", |_| server.annotation("node-1", RECORD).is_some());
    assert!(wait_for(LIMIT, || !server.events().is_empty()));
    // What comes back of its own writes must not make it write again.
    let heard = agent.hear_for(Duration::from_secs(2));
    let asked: Vec<_> =
        server.requests().into_iter().map(|it| format!("{} {}", it.verb, it.resource)).collect();
    let mut sorted = asked.clone();
    sorted.sort();
    assert_eq!(sorted, ["create events", "patch nodes", "patch nodes/status", "watch nodes"], "{asked:?}");
    assert!(!heard.iter().any(|event| matches!(event, StoreEvent::Joined(_))), "{heard:?}");
    Ok(())
}
