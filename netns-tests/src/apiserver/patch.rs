//! JSON merge patch (RFC 7386), and strategic merge patch, which knows the lists whose items have keys. PURE.

use serde_json::{Map, Value};

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

/// The content types of patches that the server takes.
pub(super) const ACCEPTED: &str = "application/merge-patch+json, application/strategic-merge-patch+json";

impl Format {
    /// From a content type, without its parameters.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        match content_type {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }

    /// What becomes of an object.
    pub(super) fn apply(self, to: &Value, patch: &Value) -> Value {
        let mut value = to.clone();
        match self {
            Self::Merge => merge(&mut value, patch),
            Self::Strategic => merge_strategically(&mut value, patch, ""),
        }
        value
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = object(target);
    for (key, change) in patch {
        if change.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), change);
        }
    }
}

/// `field` is the name of the field that holds `target`: the kinds here have no two keyed lists of one name.
fn merge_strategically(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(patch) => merge_objects(target, patch),
        Value::Array(items) => match list_key(field) {
            Some("") => add_to_set(array(target), items),
            Some(key) => merge_items(array(target), items, key),
            None => *target = patch.clone(),
        },
        plain => *target = plain.clone(),
    }
}

fn merge_objects(target: &mut Value, patch: &Map<String, Value>) {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(without_directives(patch));
            return;
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return;
        }
        _ => {}
    }
    let target = object(target);
    for (key, change) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = change.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // $setElementOrder and $retainKeys say what clients knew; nothing that is read here depends on them.
        } else if change.is_null() {
            target.remove(key);
        } else {
            merge_strategically(target.entry(key).or_insert(Value::Null), change, key);
        }
    }
}

fn merge_items(target: &mut Vec<Value>, patch: &[Value], key: &str) {
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        *target = patch.iter().filter(|item| directive(item).is_none()).cloned().collect();
        return;
    }
    for item in patch {
        let same = |other: &Value| other.get(key).is_some() && other.get(key) == item.get(key);
        if directive(item).as_deref() == Some("delete") {
            target.retain(|other| !same(other));
        } else if let Some(found) = target.iter_mut().find(|other| same(other)) {
            merge_strategically(found, item, "");
        } else {
            target.push(item.clone());
        }
    }
}

fn add_to_set(target: &mut Vec<Value>, items: &[Value]) {
    for item in items {
        if !target.contains(item) {
            target.push(item.clone());
        }
    }
}

const DIRECTIVE: &str = "$patch";

/// `patchMergeKey` of the lists of the served kinds; empty for lists that are sets, `None` for those that are replaced.
fn list_key(field: &str) -> Option<&'static str> {
    match field {
        "conditions" | "addresses" => Some("type"),
        "taints" => Some("key"),
        "ownerReferences" => Some("uid"),
        "containers" | "initContainers" | "volumes" | "env" => Some("name"),
        "podCIDRs" | "finalizers" => Some(""),
        _ => None,
    }
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it is one now")
}

fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it is one now")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_takes_fields_away_and_lists_are_replaced_by_a_merge_patch() {
        let before =
            json!({ "metadata": { "annotations": { "a": "1", "b": "2" } }, "spec": { "list": [1, 2] } });
        let patch =
            json!({ "metadata": { "annotations": { "a": null, "c": "3" } }, "spec": { "list": [3] } });
        let after = json!({ "metadata": { "annotations": { "b": "2", "c": "3" } }, "spec": { "list": [3] } });
        assert_eq!(Format::Merge.apply(&before, &patch), after);
    }

    #[test]
    fn a_strategic_patch_changes_the_condition_of_its_type_alone() {
        let before = json!({ "status": { "conditions": [
            { "type": "Ready", "status": "True" },
            { "type": "NetworkUnavailable", "status": "True", "reason": "NoRoute" },
        ] } });
        let patch = json!({ "status": { "conditions": [
            { "type": "NetworkUnavailable", "status": "False" },
            { "type": "DiskPressure", "status": "False" },
        ] } });
        let after = json!({ "status": { "conditions": [
            { "type": "Ready", "status": "True" },
            { "type": "NetworkUnavailable", "status": "False", "reason": "NoRoute" },
            { "type": "DiskPressure", "status": "False" },
        ] } });
        assert_eq!(Format::Strategic.apply(&before, &patch), after);
    }

    #[test]
    fn directives_replace_and_delete() {
        let before = json!({ "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.1" }, { "type": "InternalIP", "address": "fd00::1" },
        ], "conditions": [{ "type": "Ready" }, { "type": "Old" }] } });
        let patch = json!({ "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.2" }, { "$patch": "replace" },
        ], "conditions": [{ "type": "Old", "$patch": "delete" }] } });
        let after = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": "10.0.0.2" }],
            "conditions": [{ "type": "Ready" }],
        } });
        assert_eq!(Format::Strategic.apply(&before, &patch), after);
    }
}
