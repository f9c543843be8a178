//! A watch of Kubernetes' Nodes: any lines, with any annotations. What this node writes down of itself at one of them must read as
//! it was meant, and be nothing to write again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_overlay::cluster::Vtep;
use podwire_overlay::config::Kubernetes;
use podwire_overlay::store::Announcement;
use podwire_overlay::store::kubernetes::nodes::Nodes;
use podwire_overlay::store::kubernetes::object::{self, Change, Lines, Node};
use podwire_overlay::store::kubernetes::record;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let shared = r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24},
        {"range":"fd00:10:244::/48","subnetPrefix":64}]}"#;
    let shared = serde_json::from_str(shared).expect("these are settings");
    let kubernetes = Kubernetes { kubeconfig: None, flannel_peers: choice & 1 == 1, shared };
    let mut nodes = Nodes::new("node-1", None);
    let (mut lines, mut whole) = (Lines::default(), Vec::new());
    for torn in data.chunks(1 + usize::from(*choice)) {
        lines.feed(torn, |line| whole.push(line.to_vec()));
    }
    let complete: Vec<&[u8]> =
        data.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n")).collect();
    assert_eq!(whole, complete);
    nodes.begin();
    for line in &whole {
        match object::change(line) {
            Ok(Change::Put(node, _)) => {
                check(&node, &kubernetes);
                nodes.put(*node, &kubernetes);
            }
            Ok(Change::Deleted(name, _)) => nodes.remove(&name),
            Ok(Change::Bookmark { .. } | Change::Refused(_)) | Err(_) => {}
        }
        let _ = object::page(line);
    }
    nodes.complete();
    let snapshot = nodes.show(&kubernetes);
    for (name, why) in nodes.problems() {
        assert!(!why.chars().any(char::is_control), "{why}");
        assert!(!snapshot.nodes.contains_key(name));
    }
    for (name, record) in &snapshot.nodes {
        assert_eq!(*name, record.name);
    }
});

fn check(node: &Node, kubernetes: &Kubernetes) {
    let _ = record::own(node, kubernetes);
    let vtep: Vtep =
        serde_json::from_str(r#"{"vni":1,"port":8472,"mac":"02:00:00:00:00:01","mac6":"02:00:00:00:00:06"}"#)
            .expect("this is a VTEP");
    let announcement = Announcement {
        addresses: vec!["192.0.2.1".parse().expect("an address"), "2001:db8::1".parse().expect("an address")],
        mtu: Some(1500),
        receives: vec![vtep],
        sends: Some(vtep.encapsulation),
    };
    let changes = record::changes(node, &announcement, "1f", kubernetes);
    let patch = record::patch(node, &changes);
    let written = patch.pointer("/metadata/annotations").and_then(Value::as_object).expect("annotations");
    assert_eq!(written.len(), changes.len());
    // As the API server would apply it: to a Node with nothing but that.
    let annotations: serde_json::Map<String, Value> = written
        .iter()
        .filter(|(_, text)| !text.is_null())
        .map(|(key, text)| (key.clone(), text.clone()))
        .collect();
    if !annotations.contains_key(record::NODE) {
        return;
    }
    let alone = serde_json::json!({
        "metadata": { "name": node.metadata.name, "uid": node.metadata.uid, "annotations": annotations },
    });
    let alone = object::node(alone.to_string().as_bytes()).expect("this is a Node");
    let read = record::read(&alone, kubernetes).expect("what is written can be read").expect("it is there");
    assert_eq!((read.addresses, read.receives), (announcement.addresses, announcement.receives));
}
