//! What the admission policy lets an agent's account do, by its own expressions and the Nodes that a real server answered with.
//!
//! The expressions are evaluated by another implementation of CEL than Kubernetes': what differs there, in types above all, is
//! not seen here.

use std::collections::HashMap;
use std::fs;

use cel::{Context, Program};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicySpec};
use serde_json::{Value, json};

use crate::manifests::only;
use crate::rendered::{conf, render};

const OWN_NODE: &str = "its own Node alone";
const ANNOTATIONS: &str = "annotations";
const METADATA: &str = "no labels, finalizers or owners";
const SPEC: &str = "spec";
const STATUS: &str = "status an agent may change a condition alone";
const CONDITIONS: &str = "NetworkUnavailable alone";

fn evaluate(expression: &str, context: &Context) -> cel::Value {
    let program = Program::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
    program.execute(context).unwrap_or_else(|error| panic!("{expression}: {error}"))
}

/// Why an update is refused that comes with the token of a pod on that node.
fn refusals(
    policy: &ValidatingAdmissionPolicySpec,
    node: Option<&str>,
    before: &Value,
    after: &Value,
) -> Vec<String> {
    let extra = node.map_or(json!({}), |node| json!({ "authentication.kubernetes.io/node-name": [node] }));
    let user = json!({ "username": "system:serviceaccount:podwire-system:podwire", "extra": extra });
    let mut context = Context::default();
    for (name, value) in [("request", &json!({ "userInfo": user })), ("object", after), ("oldObject", before)]
    {
        context.add_variable(name, value).expect("JSON");
    }
    for condition in policy.match_conditions.iter().flatten() {
        assert_eq!(evaluate(&condition.expression, &context), cel::Value::Bool(true), "{}", condition.name);
    }
    let mut variables = HashMap::<String, cel::Value>::new();
    for variable in policy.variables.iter().flatten() {
        context.add_variable_from_value("variables", variables.clone());
        variables.insert(variable.name.clone(), evaluate(&variable.expression, &context));
    }
    context.add_variable_from_value("variables", variables);
    let rules = policy.validations.iter().flatten();
    rules
        .filter(|rule| evaluate(&rule.expression, &context) != cel::Value::Bool(true))
        .map(|rule| rule.message.clone().unwrap_or_default())
        .collect()
}

#[test]
fn an_agent_changes_its_own_part_of_its_own_node() {
    let documents = render(&conf("kubernetes")).expect("the manifest");
    let policy: ValidatingAdmissionPolicy = only(&documents, "ValidatingAdmissionPolicy");
    let policy = policy.spec.expect("it is in the manifest");
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes-1.36/list-nodes.json");
    let list: Value = serde_json::from_str(&fs::read_to_string(recorded).expect(recorded)).expect("JSON");
    let nodes = list["items"].as_array().expect("a list");
    assert!(nodes.len() > 1);

    type Change = fn(&mut Value);
    let cases: [(&str, Change, &[&str]); 17] = [
        ("nothing", |_| {}, &[]),
        ("its record", |node| node["metadata"]["annotations"]["podwire.dev/node"] = json!("{}"), &[]),
        (
            "what each update changes",
            |node| {
                node["metadata"]["resourceVersion"] = json!("9999");
                node["metadata"]["managedFields"] = json!([{ "manager": "podwired" }]);
                node["metadata"]["annotations"]["podwire.dev/node"] = json!("{}");
            },
            &[],
        ),
        (
            "what flannel's nodes read",
            |node| {
                for key in
                    ["backend-type", "backend-data", "backend-v6-data", "public-ip", "kube-subnet-manager"]
                {
                    node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{key}")] = json!("x");
                }
            },
            &[],
        ),
        ("its condition", |node| condition(node, "NetworkUnavailable", "True"), &[]),
        (
            "by what others reach it",
            |node| node["metadata"]["annotations"]["podwire.dev/addresses"] = json!("192.0.2.9"),
            &[ANNOTATIONS],
        ),
        (
            "another's annotation",
            |node| node["metadata"]["annotations"]["example.org/x"] = json!("x"),
            &[ANNOTATIONS],
        ),
        (
            "an annotation gone",
            |node| {
                node["metadata"]["annotations"] = json!({});
            },
            &[ANNOTATIONS],
        ),
        ("a label", |node| node["metadata"]["labels"]["x"] = json!("x"), &[METADATA]),
        ("a finalizer", |node| node["metadata"]["finalizers"] = json!(["example.org/x"]), &[METADATA]),
        (
            "an owner",
            |node| {
                node["metadata"]["ownerReferences"] =
                    json!([{ "apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x" }]);
            },
            &[METADATA],
        ),
        ("cordon", |node| node["spec"]["unschedulable"] = json!(true), &[SPEC]),
        ("its podCIDR", |node| node["spec"]["podCIDR"] = json!("10.9.0.0/24"), &[SPEC]),
        ("no taint", |node| node["spec"]["taints"] = json!([]), &[SPEC]),
        ("its address", |node| node["status"]["addresses"] = json!([]), &[STATUS]),
        ("another condition", |node| condition(node, "Ready", "False"), &[CONDITIONS]),
        (
            "everything",
            |node| {
                node["metadata"]["annotations"]["example.org/x"] = json!("x");
                node["metadata"]["labels"]["x"] = json!("x");
                node["spec"]["unschedulable"] = json!(true);
                node["status"]["capacity"] = json!({ "cpu": "1" });
                condition(node, "Ready", "True");
            },
            &[ANNOTATIONS, METADATA, SPEC, STATUS, CONDITIONS],
        ),
    ];
    for node in nodes {
        let mut before = node.clone();
        before["metadata"]["annotations"]["example.org/kept"] = json!("x");
        let own = before["metadata"]["name"].as_str();
        for (what, change, expected) in cases {
            let mut after = before.clone();
            change(&mut after);
            let by_own = refusals(&policy, own, &before, &after);
            assert_eq!(by_own.len(), expected.len(), "{what}: {by_own:?}");
            for (refusal, expected) in by_own.iter().zip(expected) {
                assert!(refusal.contains(expected), "{what}: {refusal}");
            }
            // From another node, and by a token that names none, nothing at all.
            for other in [Some("another"), None] {
                let refused = refusals(&policy, other, &before, &after);
                assert!(refused.first().is_some_and(|first| first.contains(OWN_NODE)), "{what}: {refused:?}");
            }
        }
    }
}

fn condition(node: &mut Value, kind: &str, status: &str) {
    let mut all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.retain(|condition| condition["type"] != kind);
    all.push(json!({ "type": kind, "status": status, "reason": "Test", "message": "" }));
    node["status"]["conditions"] = json!(all);
}
