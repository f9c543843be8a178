//! What is made of an object before it is kept, and what is refused, as a real server's strategies do it. PURE.
//!
//! The main resource of a Node keeps its status, `/status` keeps its spec. Both take its metadata: whoever may patch
//! `nodes/status` may write annotations, as flannel does.

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::failure::{Cause, Failure};
use super::kind::{Kind, Resource};

/// The most that the annotations of one object may hold, keys and values, in bytes.
const ANNOTATIONS: usize = 256 << 10;

/// Which part of an object a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The main resource.
    Main,
    /// `/status`.
    Status,
}

/// The object as its type has it: without fields that the type does not have, and without `kind` and `apiVersion`, which
/// the server adds where it serves it. The error is the decoder's.
pub(super) fn canonical(kind: Kind, value: Value) -> Result<Value, serde_json::Error> {
    let mut value = match kind {
        Kind::Node => through::<Node>(value),
        Kind::Pod => through::<Pod>(value),
        Kind::DaemonSet => through::<DaemonSet>(value),
        Kind::Event => through::<Event>(value),
        Kind::ConfigMap => through::<ConfigMap>(value),
        Kind::Namespace => through::<Namespace>(value),
    }?;
    if let Value::Object(fields) = &mut value {
        fields.remove("kind");
        fields.remove("apiVersion");
        if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
            // Who wrote which field: nothing that is tested here reads it.
            metadata.remove("managedFields");
        }
    }
    Ok(value)
}

fn through<T: DeserializeOwned + Serialize>(value: Value) -> Result<Value, serde_json::Error> {
    // The types refuse another kind's name than their own, and want it to be there.
    serde_json::from_value::<T>(value).and_then(serde_json::to_value)
}

/// Completes a new object.
pub(super) fn admit_new(resource: Resource, name: &str, object: &mut Value) -> Result<(), Failure> {
    let mut causes = metadata_causes(resource.kind, object);
    match resource.kind {
        Kind::Node => {
            complete_node(object);
            taint_not_ready(object);
            causes.extend(pod_cidr_causes(object));
        }
        Kind::Event => causes.extend(event_causes(resource, object)),
        _ => {}
    }
    refuse(resource, name, &causes)
}

/// Completes a changed object, keeping what a write to that part cannot change.
pub(super) fn admit_change(
    resource: Resource,
    part: Part,
    name: &str,
    old: &Value,
    new: &mut Value,
) -> Result<(), Failure> {
    immutable_uid(resource, name, old, new)?;
    for fixed in ["namespace", "uid", "creationTimestamp"] {
        new["metadata"][fixed] = old["metadata"][fixed].clone();
    }
    if resource.kind.has_status() {
        let kept = if part == Part::Main { "status" } else { "spec" };
        new[kept] = old[kept].clone();
    }
    drop_nulls(new);
    let mut causes = metadata_causes(resource.kind, new);
    match resource.kind {
        Kind::Node => {
            complete_node(new);
            causes.extend(pod_cidr_causes(new));
            causes.extend(pod_cidr_change_causes(&old["spec"]["podCIDRs"], &new["spec"]["podCIDRs"]));
        }
        Kind::Event => causes.extend(event_causes(resource, new)),
        _ => {}
    }
    refuse(resource, name, &causes)
}

fn refuse(resource: Resource, name: &str, causes: &[Cause]) -> Result<(), Failure> {
    if causes.is_empty() { Ok(()) } else { Err(Failure::invalid(resource, name, causes)) }
}

fn immutable_uid(resource: Resource, name: &str, old: &Value, new: &Value) -> Result<(), Failure> {
    match &new["metadata"]["uid"] {
        Value::Null => Ok(()),
        uid if *uid == old["metadata"]["uid"] => Ok(()),
        uid => refuse(resource, name, &[Cause::invalid("metadata.uid", uid, "field is immutable")]),
    }
}

/// Indexing made them where the old object had nothing.
fn drop_nulls(object: &mut Value) {
    let not_null = |_: &String, value: &mut Value| !value.is_null();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(not_null);
    }
    if let Some(fields) = object.as_object_mut() {
        fields.retain(not_null);
    }
}

fn metadata_causes(kind: Kind, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = &object["metadata"]["name"];
    if !name.as_str().is_some_and(is_subdomain) && kind != Kind::Event {
        causes.push(Cause::invalid("metadata.name", name, SUBDOMAIN));
    }
    let annotations = object["metadata"]["annotations"].as_object().into_iter().flatten();
    let size: usize = annotations.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS));
    }
    causes
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn is_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// What a Node has in any case. `podCIDR` is the first of `podCIDRs`; if they differ, the older field goes before the newer.
fn complete_node(node: &mut Value) {
    if node["spec"].is_null() {
        node["spec"] = json!({});
    }
    let single = node["spec"]["podCIDR"].as_str().filter(|cidr| !cidr.is_empty()).map(str::to_owned);
    let list = node["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
    let list = match single {
        Some(single) if list.first().and_then(Value::as_str) != Some(&single) => vec![json!(single)],
        _ => list,
    };
    if let Some(spec) = node["spec"].as_object_mut() {
        match list.first() {
            None => {
                spec.remove("podCIDR");
                spec.remove("podCIDRs");
            }
            Some(first) => {
                spec.insert("podCIDR".to_owned(), first.clone());
                spec.insert("podCIDRs".to_owned(), Value::Array(list));
            }
        }
    }
    complete_status(&mut node["status"]);
}

fn complete_status(status: &mut Value) {
    let empty = empty_status();
    if status.is_null() {
        *status = empty;
        return;
    }
    for field in ["daemonEndpoints", "nodeInfo"] {
        if status[field].is_null() {
            status[field] = empty[field].clone();
        }
    }
}

/// The status of a Node that nobody has told anything of.
pub(super) fn empty_status() -> Value {
    let fields = [
        "machineID",
        "systemUUID",
        "bootID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
        "operatingSystem",
        "architecture",
    ];
    let info: Map<String, Value> = fields.into_iter().map(|field| (field.to_owned(), json!(""))).collect();
    json!({ "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } }, "nodeInfo": info })
}

/// The admission plugin TaintNodesByCondition.
fn taint_not_ready(node: &mut Value) {
    let taint = json!({ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" });
    let taints = &mut node["spec"]["taints"];
    match taints.as_array_mut() {
        Some(taints) if taints.contains(&taint) => {}
        Some(taints) => taints.push(taint),
        None => *taints = json!([taint]),
    }
}

fn pod_cidr_causes(node: &Value) -> Vec<Cause> {
    let cidrs = node["spec"]["podCIDRs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut causes = Vec::new();
    let mut families = Vec::new();
    for (number, cidr) in cidrs.iter().enumerate() {
        match cidr.as_str().and_then(family_of) {
            Some(family) => families.push(family),
            None => causes.push(Cause::invalid(
                format!("spec.podCIDRs[{number}]"),
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            )),
        }
    }
    let one_each = matches!(families.as_slice(), [] | [_]) || matches!(families.as_slice(), [a, b] if a != b);
    if causes.is_empty() && !one_each {
        let all = node["spec"]["podCIDRs"].clone();
        causes.push(Cause::invalid(
            "spec.podCIDRs",
            &all,
            "may specify no more than one CIDR for each IP family",
        ));
    }
    causes
}

/// Whether it is of IPv4; `None` if it is no range of addresses.
fn family_of(cidr: &str) -> Option<bool> {
    let (address, length) = cidr.split_once('/')?;
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some(address.is_ipv4())
}

fn pod_cidr_change_causes(old: &Value, new: &Value) -> Vec<Cause> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    let changed = if old.is_empty() {
        0
    } else if old.len() == new.len() {
        old.iter().zip(&new).filter(|(old, new)| old != new).count()
    } else {
        1
    };
    let why = "node updates may not change podCIDR except from \"\" to valid";
    vec![Cause::forbidden("spec.podCIDRs", why); changed]
}

/// Events that have an `eventTime` must be complete; all of events.k8s.io must.
fn event_causes(resource: Resource, event: &Value) -> Vec<Cause> {
    let is_newer = !resource.group.is_empty();
    let field = |older: &str, newer: &str| if is_newer { newer.to_owned() } else { older.to_owned() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut causes = Vec::new();
    let (namespace, about) = (text(&event["metadata"]["namespace"]), &event["involvedObject"]["namespace"]);
    let belongs = match about.as_str().unwrap_or_default() {
        "" => matches!(namespace.as_str(), "default" | "kube-system"),
        other => other == namespace,
    };
    if !belongs {
        let name = field("involvedObject.namespace", "regarding.namespace");
        causes.push(Cause::invalid(name, &json!(text(about)), "does not match event.namespace"));
    }
    if event["eventTime"].is_null() {
        if is_newer {
            causes.push(Cause::required("eventTime", ""));
        }
        return causes;
    }
    let required = [
        (field("reportingComponent", "reportingController"), &event["reportingComponent"], usize::MAX),
        ("reportingInstance".to_owned(), &event["reportingInstance"], 128),
        ("action".to_owned(), &event["action"], 128),
        ("reason".to_owned(), &event["reason"], 128),
    ];
    for (name, value, limit) in required {
        if text(value).is_empty() {
            causes.push(Cause::required(name, ""));
        } else if text(value).len() > limit {
            causes.push(Cause::invalid(name, value, &format!("can have at most {limit} characters")));
        }
    }
    if text(&event["message"]).len() > 1024 {
        let name = field("message", "note");
        causes.push(Cause::invalid(name, &event["message"], "can have at most 1024 characters"));
    }
    if is_newer && !matches!(event["type"].as_str(), Some("Normal" | "Warning")) {
        let why = format!("has invalid value: {}", text(&event["type"]));
        causes.push(Cause::invalid("type", &json!(""), &why));
    }
    causes
}

/// The fields of an Event that the two groups name differently: core/v1, events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// An object as a group serves it, from the form that is kept.
pub(super) fn served_as(resource: Resource, object: Value) -> Value {
    rename(resource, object, |(kept, served)| (kept, served))
}

/// An object in the form that is kept, from the form of a group.
pub(super) fn kept_as(resource: Resource, object: Value) -> Value {
    rename(resource, object, |(kept, served)| (served, kept))
}

fn rename(
    resource: Resource,
    mut object: Value,
    way: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    if resource.group != resource.kind.group()
        && let Value::Object(fields) = &mut object
    {
        for (from, to) in EVENT_FIELDS.into_iter().map(way) {
            if let Some(value) = fields.remove(from) {
                fields.insert(to.to_owned(), value);
            }
        }
    }
    object
}
