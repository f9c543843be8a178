//! Objects, their versions, and the changes that led to them. PURE: time and random names come with each call.
//!
//! One counter numbers all changes, as in etcd. Each change is written as JSON once, for everybody who watches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use super::admission::{Part, admit_change, admit_new, canonical, kept_as};
use super::failure::{Cause, Failure};
use super::kind::{Kind, Resource};
use super::selector::Attributes;

/// Namespace (empty for kinds outside namespaces) and name.
pub(super) type Key = (String, String);

/// An object as it was at one version.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) version: u64,
    pub(super) attributes: Attributes,
    /// The JSON of the object after its opening brace, and what ends a line of a watch: `"metadata":…}}⏎`. So lists, single
    /// objects and lines of watches are this with something in front.
    tail: Bytes,
}

impl Text {
    /// Its fields with the closing brace: what follows `{` and, if need be, `"kind":…,`.
    pub(super) fn fields(&self) -> &[u8] {
        &self.tail[..self.tail.len() - LINE_END.len()]
    }

    /// Its fields as a part of a watch's line.
    pub(super) fn end_of_line(&self) -> &[u8] {
        &self.tail
    }

    /// The object, without kind and API version.
    pub(super) fn value(&self) -> Value {
        let text = [b"{", self.fields()].concat();
        serde_json::from_slice(&text).expect("it was written by this module")
    }
}

const LINE_END: &[u8] = b"}\n";

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    Added,
    Modified,
    Deleted,
}

impl Happened {
    /// As in lines of watches.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    /// What a line of a watch begins with.
    pub(super) fn line_start(self, resource: Resource) -> String {
        format!(
            "{{\"type\":\"{}\",\"object\":{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
            self.name(),
            resource.kind.name(),
            resource.api_version()
        )
    }
}

/// One change of one object.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) happened: Happened,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Text>>,
    /// After a deletion: the last that it was, with the deletion's version.
    pub(super) after: Arc<Text>,
    /// The whole line for those who watch without a selector, in the group that the object is kept in.
    pub(super) line: Bytes,
}

#[derive(Debug)]
struct Object {
    value: Value,
    text: Arc<Text>,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<Key, Object>,
    changes: VecDeque<Arc<Change>>,
    /// What the changes hold.
    bytes: usize,
    /// Watches that begin before this version are refused.
    forgotten: u64,
    /// The newest change that has been forgotten: watches that have come to it miss nothing.
    missing: u64,
}

/// What a new object gets from outside.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    /// Now, in UTC, to the second: `2026-11-21T01:22:45Z`.
    pub(super) now: String,
    pub(super) uid: String,
}

/// What a delete wants the object to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Preconditions {
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    collections: BTreeMap<Kind, Collection>,
    /// How many bytes of changes each kind keeps.
    history: usize,
}

impl Store {
    pub(super) fn new(history: usize) -> Self {
        let collections = Kind::ALL.into_iter().map(|kind| (kind, Collection::default())).collect();
        Self { version: 1, collections, history }
    }

    /// Of the last change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn text(&self, resource: Resource, key: &Key) -> Result<Arc<Text>, Failure> {
        let found = self.of(resource.kind).objects.get(key);
        found.map(|object| Arc::clone(&object.text)).ok_or_else(|| Failure::not_found(resource, &key.1))
    }

    /// All objects of a kind in the order of their keys.
    pub(super) fn all(&self, kind: Kind) -> Vec<(Key, Arc<Text>)> {
        let objects = self.of(kind).objects.iter();
        objects.map(|(key, object)| (key.clone(), Arc::clone(&object.text))).collect()
    }

    /// All objects of a kind as they were at a version; `None` if that is not known any more.
    pub(super) fn all_at(&self, kind: Kind, version: u64) -> Option<Vec<(Key, Arc<Text>)>> {
        let collection = self.of(kind);
        if version < collection.forgotten {
            return None;
        }
        let mut objects: BTreeMap<_, _> = self.all(kind).into_iter().collect();
        for change in collection.changes.iter().rev().take_while(|change| change.after.version > version) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Some(objects.into_iter().collect())
    }

    /// What changed after a version, oldest first, at most `limit` changes. A watch that is open already outlives a
    /// compaction if it had been told everything.
    pub(super) fn changes_after(
        &self,
        kind: Kind,
        version: u64,
        is_open: bool,
        limit: usize,
    ) -> Result<Vec<Arc<Change>>, Failure> {
        let collection = self.of(kind);
        if version < if is_open { collection.missing } else { collection.forgotten } {
            return Err(Failure::expired(version, collection.forgotten));
        }
        let first = collection.changes.partition_point(|change| change.after.version <= version);
        Ok(collection.changes.iter().skip(first).take(limit).cloned().collect())
    }

    /// Forgets all changes: who watches from a version before now must list again.
    pub(super) fn compact(&mut self) {
        // A version that nobody has been told yet, so that also those who are up to date are too old.
        self.version += 1;
        let version = self.version;
        for collection in self.collections.values_mut() {
            collection.missing =
                collection.changes.back().map_or(collection.missing, |last| last.after.version);
            collection.changes.clear();
            collection.bytes = 0;
            collection.forgotten = version;
        }
    }

    pub(super) fn create(
        &mut self,
        resource: Resource,
        namespace: &str,
        object: Value,
        stamp: Stamp,
    ) -> Result<Arc<Text>, Failure> {
        let kind = resource.kind;
        let mut value = decoded(resource, kept_as(resource, object))?;
        let metadata = &mut value["metadata"];
        let named = metadata["namespace"].as_str().unwrap_or(namespace);
        if named != namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let Stamp { now, uid } = stamp;
        if metadata["name"].is_null()
            && let Some(prefix) = metadata["generateName"].as_str()
        {
            metadata["name"] = json!(format!("{prefix}{}", &uid[..5]));
        }
        let Some(name) = metadata["name"].as_str().map(str::to_owned) else {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Failure::invalid(resource, "", &[cause]));
        };
        if kind.is_namespaced() {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(uid);
        metadata["creationTimestamp"] = json!(now);
        admit_new(resource, &name, &mut value)?;
        let key = (namespace.to_owned(), name);
        if self.of(kind).objects.contains_key(&key) {
            return Err(Failure::already_exists(resource, &key.1));
        }
        Ok(self.commit(kind, key, Happened::Added, value))
    }

    /// Replaces an object by what `change` makes of it. A version in the new object must be the old one's; a change that
    /// changes nothing leaves the version as it was.
    pub(super) fn update(
        &mut self,
        resource: Resource,
        part: Part,
        key: &Key,
        change: impl FnOnce(Value) -> Result<Value, Failure>,
    ) -> Result<Arc<Text>, Failure> {
        let name = &key.1;
        let found = self.of(resource.kind).objects.get(key);
        let Object { value: old, text } = found.ok_or_else(|| Failure::not_found(resource, name))?;
        let mut new = change(old.clone())?;
        if new["metadata"]["name"] != old["metadata"]["name"] {
            let other = new["metadata"]["name"].as_str().unwrap_or_default();
            let message =
                format!("the name of the object ({other}) does not match the name on the URL ({name})");
            return Err(Failure::bad_request(message));
        }
        let version = &new["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|version| !version.is_empty() && version != text.version.to_string())
        {
            return Err(Failure::stale(resource, name));
        }
        admit_change(resource, part, name, old, &mut new)?;
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == *old {
            return Ok(Arc::clone(text));
        }
        Ok(self.commit(resource.kind, key.clone(), Happened::Modified, new))
    }

    /// The object as it was, with the version of its deletion.
    pub(super) fn delete(
        &mut self,
        resource: Resource,
        key: &Key,
        wanted: &Preconditions,
    ) -> Result<Arc<Text>, Failure> {
        let found = self.of(resource.kind).objects.get(key);
        let Object { value, .. } = found.ok_or_else(|| Failure::not_found(resource, &key.1))?;
        let fields = [("UID", "uid", &wanted.uid), ("ResourceVersion", "resourceVersion", &wanted.version)];
        for (called, field, wanted) in fields {
            let is = value["metadata"][field].as_str().unwrap_or_default();
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != is) {
                let why = format!(
                    "Precondition failed: {called} in precondition: {wanted}, {called} in object meta: {is}"
                );
                return Err(Failure::conflict(resource, &key.1, &why));
            }
        }
        let value = value.clone();
        Ok(self.commit(resource.kind, key.clone(), Happened::Deleted, value))
    }

    /// Changes an object in place, for the server's own work: no admission, no comparison.
    pub(super) fn touch(&mut self, kind: Kind, key: &Key, change: impl FnOnce(&mut Value)) {
        if let Some(object) = self.of_mut(kind).objects.get_mut(key) {
            let mut value = std::mem::take(&mut object.value);
            change(&mut value);
            self.commit(kind, key.clone(), Happened::Modified, value);
        }
    }

    fn commit(&mut self, kind: Kind, key: Key, happened: Happened, mut value: Value) -> Arc<Text> {
        self.version += 1;
        let version = self.version;
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let mut line = happened.line_start(Resource::of(kind)).into_bytes();
        let start = line.len();
        serde_json::to_writer(&mut line, &value).expect("a Value is JSON, and memory takes it");
        // The brace in front of the first field stands in `line_start` already.
        line.remove(start);
        line.extend_from_slice(LINE_END);
        let line = Bytes::from(line);
        let attributes = Attributes::of(kind, &value);
        let text = Arc::new(Text { version, attributes, tail: line.slice(start..) });
        let history = self.history;
        let collection = self.of_mut(kind);
        let before = if happened == Happened::Deleted {
            collection.objects.remove(&key)
        } else {
            collection.objects.insert(key.clone(), Object { value, text: Arc::clone(&text) })
        };
        collection.bytes += line.len();
        let before = before.map(|object| object.text);
        collection.changes.push_back(Arc::new(Change {
            happened,
            key,
            before,
            after: Arc::clone(&text),
            line,
        }));
        while collection.bytes > history
            && let Some(oldest) = collection.changes.pop_front()
        {
            collection.bytes -= oldest.line.len();
            collection.missing = oldest.after.version;
            collection.forgotten = collection.forgotten.max(collection.missing);
        }
        text
    }

    fn of(&self, kind: Kind) -> &Collection {
        self.collections.get(&kind).expect("every kind has its collection")
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Collection {
        self.collections.get_mut(&kind).expect("every kind has its collection")
    }
}

/// A whole object that a client sent.
pub(super) fn decoded(resource: Resource, mut object: Value) -> Result<Value, Failure> {
    let (kind, version) = (resource.kind.name(), resource.api_version());
    for (field, is) in [("kind", kind), ("apiVersion", version)] {
        match object.get(field).and_then(Value::as_str) {
            None | Some("") => {}
            Some(given) if given == is => {}
            Some(given) => {
                return Err(Failure::bad_request(format!(
                    "{field} in the request body ({given}) does not match the endpoint's ({is})"
                )));
            }
        }
    }
    with_type(resource.kind, &mut object);
    canonical(resource.kind, object).map_err(|error| {
        Failure::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: json: {error}"
        ))
    })
}

/// What a patch made of an object.
pub(super) fn decoded_patch(resource: Resource, mut object: Value) -> Result<Value, Failure> {
    with_type(resource.kind, &mut object);
    let text = json!(object.to_string());
    canonical(resource.kind, object).map_err(|error| Failure::invalid_patch(&text, &error.to_string()))
}

/// Objects are kept, and patched, without these two.
fn with_type(kind: Kind, object: &mut Value) {
    if object.is_object() {
        object["kind"] = json!(kind.name());
        object["apiVersion"] = json!(Resource::of(kind).api_version());
    }
}
