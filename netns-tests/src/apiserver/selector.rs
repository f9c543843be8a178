//! Which objects a list or a watch is about: field and label selectors. PURE.

use std::collections::BTreeMap;

use serde_json::Value;

use super::failure::Failure;
use super::kind::{Kind, Resource};

/// What selectors see of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
}

impl Attributes {
    pub(super) fn of(kind: Kind, object: &Value) -> Self {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.map(|(key, value)| (key.clone(), text(value))).collect();
        let fields = fields(kind).iter().map(|field| {
            let value = field.split('.').fold(object, |value, step| &value[step]);
            (*field, text(value))
        });
        Self { labels, fields: fields.collect() }
    }

    fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value)
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// The fields that selectors may name, in the form of core/v1.
fn fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Node => &["metadata.name", "spec.unschedulable"],
        Kind::Pod => {
            &["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "spec.hostNetwork"]
        }
        Kind::Event => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "reason",
            "type",
            "reportingComponent",
        ],
        _ => &["metadata.name", "metadata.namespace"],
    }
}

/// Both selectors of a request; the default selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector(Vec<Test>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Field { name: &'static str, value: String, equal: bool },
    Label { key: String, values: Vec<String>, inside: bool },
    HasLabel { key: String, there: bool },
}

impl Selector {
    /// From the query parameters `fieldSelector` and `labelSelector`.
    pub(super) fn parse(resource: Resource, by_field: &str, by_label: &str) -> Result<Self, Failure> {
        let mut tests = Vec::new();
        for term in by_field.split(',').filter(|term| !term.is_empty()) {
            let (name, value, equal) = comparison(term).ok_or_else(|| {
                Failure::bad_request(format!("invalid selector: '{by_field}'; can't understand '{term}'"))
            })?;
            let name =
                if resource.group == resource.kind.group() { name.to_owned() } else { newer_event(name) };
            let known = fields(resource.kind).iter().find(|field| **field == name);
            let name =
                known.ok_or_else(|| Failure::bad_request(format!("field label not supported: {name}")))?;
            tests.push(Test::Field { name, value: value.to_owned(), equal });
        }
        for term in terms(by_label) {
            let test = label_test(term).ok_or_else(|| {
                Failure::bad_request(format!("unable to parse requirement: found '{term}'"))
            })?;
            tests.push(test);
        }
        Ok(Self(tests))
    }

    pub(super) fn selects(&self, object: &Attributes) -> bool {
        self.0.iter().all(|test| match test {
            Test::Field { name, value, equal } => (object.field(name) == value) == *equal,
            Test::Label { key, values, inside } => {
                object.labels.get(key).is_some_and(|label| values.contains(label)) == *inside
            }
            Test::HasLabel { key, there } => object.labels.contains_key(key) == *there,
        })
    }
}

/// A field's name in core/v1, from its name in events.k8s.io/v1.
fn newer_event(name: &str) -> String {
    match name.strip_prefix("regarding.") {
        Some(rest) => format!("involvedObject.{rest}"),
        None => name.replace("reportingController", "reportingComponent"),
    }
}

fn comparison(term: &str) -> Option<(&str, &str, bool)> {
    let split = |by| term.split_once(by);
    split("!=")
        .map(|(name, value)| (name, value, false))
        .or_else(|| split("==").or_else(|| split("=")).map(|(name, value)| (name, value, true)))
        .map(|(name, value, equal)| (name.trim(), value.trim(), equal))
}

/// Splits at commas outside brackets.
fn terms(selector: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = selector.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    });
    parts.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn label_test(term: &str) -> Option<Test> {
    if let Some((key, list)) = term.split_once('(') {
        let values = list.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = key.trim().split_once(char::is_whitespace)?;
        let inside = match operator.trim() {
            "in" => true,
            "notin" => false,
            _ => return None,
        };
        return Some(Test::Label { key: key.to_owned(), values, inside });
    }
    if let Some((key, value, inside)) = comparison(term) {
        return Some(Test::Label { key: key.to_owned(), values: vec![value.to_owned()], inside });
    }
    let (key, there) = term.strip_prefix('!').map_or((term, true), |key| (key, false));
    (!key.contains(char::is_whitespace)).then(|| Test::HasLabel { key: key.to_owned(), there })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(by_field: &str, by_label: &str, expected: bool) {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "x", "labels": { "app": "web", "tier": "front" } },
            "spec": { "nodeName": "node-1" },
        });
        let selector = Selector::parse(Resource::of(Kind::Pod), by_field, by_label).expect("it parses");
        assert_eq!(selector.selects(&Attributes::of(Kind::Pod, &pod)), expected, "{by_field} {by_label}");
    }

    #[test]
    fn selectors_select() {
        check("", "", true);
        check("spec.nodeName=node-1", "", true);
        check("spec.nodeName=node-1,metadata.name!=a", "", false);
        check("spec.nodeName==node-2", "", false);
        check("", "app=web,tier in (front, back)", true);
        check("", "app,!gone", true);
        check("", "tier notin (front,back)", false);
        check("", "gone notin (x)", true);
        check("", "app!=web", false);
    }

    #[test]
    fn fields_that_the_kind_does_not_offer_are_refused() {
        let failure =
            Selector::parse(Resource::of(Kind::Node), "spec.podCIDR=10.0.0.0/24", "").expect_err("no such");
        assert_eq!(failure.status()["message"], "field label not supported: spec.podCIDR");
    }
}
