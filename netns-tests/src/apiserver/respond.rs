//! What a request is answered with, as far as one look at the objects can say. PURE.

use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::admission::{kept_as, served_as};
use super::failure::Failure;
use super::kind::{GROUPS, Resource};
use super::patch::{ACCEPTED, Format};
use super::request::{Call, From, Verb};
use super::selector::Selector;
use super::store::{Key, Preconditions, Stamp, Store, Text, decoded, decoded_patch};

/// An answer with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json(code: u16, value: &Value) -> Self {
        Self { code, content_type: JSON, body: value.to_string().into() }
    }
}

impl std::convert::From<&Failure> for Reply {
    fn from(failure: &Failure) -> Self {
        Self::json(failure.code, &failure.status())
    }
}

/// The content type of all answers about objects.
pub(super) const JSON: &str = "application/json";

/// What came with a call.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    /// Without parameters; empty if it was not said.
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

/// Answers everything but watches.
pub(super) fn respond(store: &mut Store, call: &Call, sent: &Sent, stamp: Stamp) -> Result<Reply, Failure> {
    let resource = call.resource;
    let key: Key = (call.namespace.clone(), call.name.clone());
    if resource.kind.is_namespaced() && call.namespace.is_empty() && !matches!(call.verb, Verb::List) {
        return Err(Failure::method_not_allowed());
    }
    match call.verb {
        Verb::Get => store.text(resource, &key).map(|text| one(resource, 200, &text)),
        Verb::List | Verb::Watch => list(store, call),
        Verb::Create => {
            let object = object(sent)?;
            store.create(resource, &call.namespace, object, stamp).map(|text| one(resource, 201, &text))
        }
        Verb::Update => {
            let object = object(sent)?;
            let text =
                store.update(resource, call.part, &key, |_| decoded(resource, kept_as(resource, object)))?;
            Ok(one(resource, 200, &text))
        }
        Verb::Patch => {
            let format =
                Format::of(&sent.content_type).ok_or_else(|| Failure::unsupported_media_type(ACCEPTED))?;
            let patch = parsed(sent)?;
            let text = store.update(resource, call.part, &key, |old| {
                let new = format.apply(&served_as(resource, old), &patch);
                decoded_patch(resource, kept_as(resource, new))
            })?;
            Ok(one(resource, 200, &text))
        }
        Verb::Delete => {
            let text = store.delete(resource, &key, &preconditions(sent)?)?;
            Ok(deleted(resource, &call.name, &text))
        }
    }
}

fn one(resource: Resource, code: u16, text: &Text) -> Reply {
    let body = if resource.group == resource.kind.group() {
        let start = type_fields(resource, "");
        [b"{", start.as_bytes(), b",", text.fields()].concat().into()
    } else {
        converted(resource, text).to_string().into()
    };
    Reply { code, content_type: JSON, body }
}

/// An object in the form of a group that it is not kept in.
pub(super) fn converted(resource: Resource, text: &Text) -> Value {
    let mut value = served_as(resource, text.value());
    value["kind"] = json!(resource.kind.name());
    value["apiVersion"] = json!(resource.api_version());
    value
}

fn type_fields(resource: Resource, suffix: &str) -> String {
    format!("\"kind\":\"{}{suffix}\",\"apiVersion\":\"{}\"", resource.kind.name(), resource.api_version())
}

fn deleted(resource: Resource, name: &str, text: &Text) -> Reply {
    let uid = text.value()["metadata"]["uid"].clone();
    let mut details = json!({ "name": name, "kind": resource.kind.plural(), "uid": uid });
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    Reply::json(200, &status)
}

/// An object, or the options of a delete.
fn object(sent: &Sent) -> Result<Value, Failure> {
    // Clients that would rather send protobuf fall back to JSON.
    if !matches!(sent.content_type.as_str(), "" | JSON) {
        return Err(Failure::unsupported_media_type(JSON));
    }
    parsed(sent)
}

fn parsed(sent: &Sent) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(&sent.body)
        .map_err(|error| Failure::bad_request(format!("error decoding the request body: json: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Failure::bad_request("the object provided is unrecognized (must be of type Object)"))
    }
}

fn preconditions(sent: &Sent) -> Result<Preconditions, Failure> {
    if sent.body.is_empty() {
        return Ok(Preconditions::default());
    }
    let options = object(sent)?;
    let text = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
    Ok(Preconditions { uid: text("uid"), version: text("resourceVersion") })
}

/// A list, or a page of one. A page is of the version of the first, so that the pages together are one state.
fn list(store: &Store, call: &Call) -> Result<Reply, Failure> {
    let (resource, query) = (call.resource, &call.query);
    query.check_list()?;
    let (selector, from) = (call.selector()?, query.from()?);
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let token = query.raw("continue");
    let current = store.version();
    let (version, after) = if token.is_empty() {
        let exact = query.raw("resourceVersionMatch") == "Exact" || limit.is_some();
        match from {
            From::At(version) if version > current => return Err(Failure::too_new(version, current)),
            From::At(version) if exact => (version, None),
            _ => (current, None),
        }
    } else {
        let (version, after) = read_token(token)?;
        (version, Some(after))
    };
    let objects = store.all_at(resource.kind, version).ok_or_else(|| {
        if after.is_some() { Failure::expired_continue() } else { Failure::expired(version, current) }
    })?;
    let selected = selected(objects, &call.namespace, &selector);
    let rest: Vec<_> = selected.filter(|(key, _)| after.as_ref().is_none_or(|after| key > after)).collect();
    // What the server has at hand is never cut into pages.
    let limit = limit
        .filter(|_| from != From::Any)
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let page = rest.get(..limit).unwrap_or(&rest);
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some((last, _)) = page.last().filter(|_| page.len() < rest.len()) {
        metadata["continue"] = json!(token_of(version, last));
        if selector == Selector::default() {
            metadata["remainingItemCount"] = json!(rest.len() - page.len());
        }
    }
    Ok(Reply { code: 200, content_type: JSON, body: list_body(resource, &metadata, page) })
}

/// Those of a namespace (all if it is empty) that the selector selects.
pub(super) fn selected<'a>(
    objects: Vec<(Key, Arc<Text>)>,
    namespace: &'a str,
    selector: &'a Selector,
) -> impl Iterator<Item = (Key, Arc<Text>)> + 'a {
    let inside = move |key: &Key| namespace.is_empty() || key.0 == namespace;
    objects.into_iter().filter(move |(key, text)| inside(key) && selector.selects(&text.attributes))
}

fn list_body(resource: Resource, metadata: &Value, page: &[(Key, Arc<Text>)]) -> Bytes {
    let is_kept = resource.group == resource.kind.group();
    let mut body =
        format!("{{{},\"metadata\":{metadata},\"items\":[", type_fields(resource, "List")).into_bytes();
    for (number, (_, text)) in page.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        if is_kept {
            body.push(b'{');
            body.extend_from_slice(text.fields());
        } else {
            body.extend_from_slice(served_as(resource, text.value()).to_string().as_bytes());
        }
    }
    body.extend_from_slice(b"]}");
    body.into()
}

fn token_of(version: u64, (namespace, name): &Key) -> String {
    format!("v1.{version}.{namespace}/{name}")
}

fn read_token(token: &str) -> Result<(u64, Key), Failure> {
    let read = || {
        let (version, key) = token.strip_prefix("v1.")?.split_once('.')?;
        let (namespace, name) = key.split_once('/')?;
        Some((version.parse().ok()?, (namespace.to_owned(), name.to_owned())))
    };
    read().ok_or_else(|| Failure::bad_request("continue key is not valid: illegal base64 data"))
}

/// Paths that are not about objects: what clients look at before they begin.
pub(super) fn about_the_server(path: &str) -> Option<Reply> {
    let path = path.trim_end_matches('/');
    let text = |text: &str| {
        Some(Reply { code: 200, content_type: "text/plain; charset=utf-8", body: text.to_owned().into() })
    };
    let json = |value: Value| Some(Reply::json(200, &value));
    match path {
        "/healthz" | "/livez" | "/readyz" => text("ok"),
        "/version" => json(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitTreeState": "clean", "compiler": "gc",
            "platform": "linux/amd64",
        })),
        "/api" => json(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => {
            let version = |group: &str| json!({ "groupVersion": format!("{group}/v1"), "version": "v1" });
            let groups = GROUPS.map(|group| {
                json!({ "name": group, "versions": [version(group)], "preferredVersion": version(group) })
            });
            json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        "/api/v1" => json(resources("")),
        _ => {
            let group = path.strip_prefix("/apis/")?.strip_suffix("/v1")?;
            json(resources(GROUPS.into_iter().find(|is| *is == group)?))
        }
    }
}

fn resources(group: &'static str) -> Value {
    let verbs = json!(["create", "delete", "get", "list", "patch", "update", "watch"]);
    let all = Resource::all_in(group).flat_map(|resource| {
        let kind = resource.kind;
        let entry = |name: String, verbs: &Value| {
            let mut entry = Map::new();
            entry.insert("name".to_owned(), json!(name));
            entry.insert("singularName".to_owned(), json!(kind.name().to_lowercase()));
            entry.insert("namespaced".to_owned(), json!(kind.is_namespaced()));
            entry.insert("kind".to_owned(), json!(kind.name()));
            entry.insert("verbs".to_owned(), verbs.clone());
            Value::Object(entry)
        };
        let main = entry(kind.plural().to_owned(), &verbs);
        let status = kind.has_status();
        let status =
            status.then(|| entry(format!("{}/status", kind.plural()), &json!(["get", "patch", "update"])));
        [Some(main), status].into_iter().flatten().collect::<Vec<_>>()
    });
    let group_version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": all.collect::<Vec<_>>(),
    })
}
