use serde_json::{from_value, json};

use super::*;

fn kubernetes() -> Kubernetes {
    let shared =
        serde_json::from_str(r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24}]}"#)
            .unwrap();
    Kubernetes { kubeconfig: None, flannel_peers: false, shared }
}

fn node(name: &str, at: &str, heartbeat: &str) -> Node {
    from_value(json!({
        "metadata": {
            "name": name, "uid": name,
            "annotations": { "podwire.dev/node": format!("{{\"version\":1,\"addresses\":[\"{at}\"]}}"), "x": heartbeat },
        },
        "spec": { "podCIDRs": ["10.244.1.0/24"] },
        "status": { "conditions": [{ "type": "Ready", "lastHeartbeatTime": heartbeat }] },
    }))
    .unwrap()
}

fn listed(nodes: &mut Nodes, all: &[(&str, &str)]) {
    nodes.begin();
    for (name, at) in all {
        nodes.put(node(name, at, "0"), &kubernetes());
    }
    nodes.complete();
}

#[test]
fn heartbeats_are_no_news() {
    let mut nodes = Nodes::new("a", None);
    listed(&mut nodes, &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    assert!(nodes.has_news());
    let first = nodes.show(&kubernetes());
    assert!(!nodes.has_news());
    let own = nodes.own().cloned().unwrap();
    for beat in ["1", "2"] {
        nodes.put(node("a", "10.0.0.1", beat), &kubernetes());
        nodes.put(node("b", "10.0.0.2", beat), &kubernetes());
    }
    assert!(!nodes.has_news() && Arc::ptr_eq(nodes.own().unwrap(), &own));
    nodes.put(node("b", "10.0.0.3", "3"), &kubernetes());
    assert!(nodes.has_news());
    let second = nodes.show(&kubernetes());
    assert!(Arc::ptr_eq(&first.nodes["a"], &second.nodes["a"]));
    assert!(!Arc::ptr_eq(&first.nodes["b"], &second.nodes["b"]));
}

#[test]
fn what_was_known_stays_until_everything_has_been_listed() {
    let remembered = {
        let mut nodes = Nodes::new("a", None);
        listed(&mut nodes, &[("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")]);
        nodes.show(&kubernetes())
    };
    let mut nodes = Nodes::new("a", Some(&remembered));
    assert!(!nodes.is_complete() && !nodes.has_news());
    nodes.begin();
    nodes.put(node("a", "10.0.0.1", "1"), &kubernetes());
    assert!(!nodes.has_news() && nodes.is_listing());
    // The list breaks off, and begins anew.
    nodes.begin();
    nodes.put(node("a", "10.0.0.1", "1"), &kubernetes());
    nodes.put(node("b", "10.0.0.9", "1"), &kubernetes());
    nodes.complete();
    // The first that is complete is news in any case: from then on nobody goes by what is remembered.
    assert!(nodes.has_news());
    let shown = nodes.show(&kubernetes());
    assert_eq!(shown.nodes.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(Arc::ptr_eq(&shown.nodes["a"], &remembered.nodes["a"]));
    // The same once more is none.
    listed(&mut nodes, &[("a", "10.0.0.1"), ("b", "10.0.0.9")]);
    assert!(!nodes.has_news());
    listed(&mut nodes, &[("a", "10.0.0.1")]);
    assert!(nodes.has_news());
}

#[test]
fn a_node_that_cannot_be_read_is_left_out_by_name() {
    let mut nodes = Nodes::new("a", None);
    listed(&mut nodes, &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    nodes.show(&kubernetes());
    nodes.put(node("b", "nonsense", "1"), &kubernetes());
    assert!(nodes.has_news() && nodes.problems().contains_key("b"));
    assert_eq!(nodes.show(&kubernetes()).nodes.len(), 1);
    nodes.put(node("b", "nonsense", "2"), &kubernetes());
    assert!(!nodes.has_news());
    nodes.remove("b");
    assert!(nodes.problems().is_empty() && !nodes.has_news());
    nodes.put(node("b", "10.0.0.2", "3"), &kubernetes());
    assert_eq!(nodes.show(&kubernetes()).nodes.len(), 2);
    nodes.remove("a");
    assert!(nodes.own().is_none() && nodes.has_news());
}
