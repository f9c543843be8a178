//! Whether flannel's own program is kept away from a node: it and podwire's agent would both write the node's
//! annotations and routes. PURE.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What of flannel runs on the node or would be started there; nothing if it is kept away.
pub fn flannel_on(node: &Node, daemon_sets: &[DaemonSet], pods: &[Pod]) -> Vec<String> {
    let template = |set: &DaemonSet| set.spec.as_ref().and_then(|spec| spec.template.spec.clone());
    let selecting = daemon_sets.iter().filter_map(|set| {
        let spec = template(set)?;
        let is_here = is_flannel(&set.metadata, &spec) && selects(&spec, node);
        is_here.then(|| format!("DaemonSet {} selects this node", name(&set.metadata)))
    });
    let running = pods.iter().filter_map(|pod| {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let is_here = is_flannel(&pod.metadata, spec)
            && spec.node_name == node.metadata.name
            && !["Succeeded", "Failed"].contains(&phase);
        is_here.then(|| format!("pod {} is still on this node", name(&pod.metadata)))
    });
    selecting.chain(running).collect()
}

fn name(of: &ObjectMeta) -> String {
    format!("{}/{}", of.namespace.as_deref().unwrap_or("default"), of.name.as_deref().unwrap_or_default())
}

/// By the labels of flannel's manifests, or by its image under whichever registry.
fn is_flannel(metadata: &ObjectMeta, spec: &PodSpec) -> bool {
    let labels = metadata.labels.iter().flatten();
    let is_labelled = |(key, value): (&String, &String)| {
        ["app", "k8s-app", "app.kubernetes.io/name"].contains(&key.as_str()) && value == "flannel"
    };
    // Without its registry, tag and digest: the last part of "quay.io/coreos/flannel:v0.15.1-amd64".
    let program = |image: &str| {
        let image = image.split('@').next().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default().to_owned()
    };
    let is_image = |image: &str| matches!(program(image).as_str(), "flannel" | "mirrored-flannel-flannel");
    labels.into_iter().any(is_labelled)
        || spec.containers.iter().any(|container| container.image.as_deref().is_some_and(is_image))
}

/// Whether pods of that template may be on the node, as far as its labels and name go: the DaemonSet controller looks at
/// nothing else that keeps them away for good, since flannel tolerates all taints.
fn selects(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let is_selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    is_selected
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| matches(term, labels, node.metadata.name.as_deref()))
        })
}

/// A term without any requirement matches nothing.
fn matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: Option<&str>) -> bool {
    let expressions: Vec<_> = term.match_expressions.iter().flatten().collect();
    let fields: Vec<_> = term.match_fields.iter().flatten().collect();
    let field = |field: &NodeSelectorRequirement| if field.key == "metadata.name" { name } else { None };
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|wanted| meets(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.iter().all(|wanted| meets(wanted, field(wanted)))
}

/// An operator that is not known here selects: whether it keeps flannel away cannot be said.
fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let is_one = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || number(value).zip(number(values.first().map(String::as_str)));
    match wanted.operator.as_str() {
        "In" => is_one,
        "NotIn" => !is_one,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(value, than)| value > than),
        "Lt" => compared().is_some_and(|(value, than)| value < than),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(labels: Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n1", "labels": labels } })).unwrap()
    }

    /// flannel's own manifest has these labels and this image.
    fn daemon_set(spec: Value) -> DaemonSet {
        let mut pod = json!({ "containers": [{ "name": "kube-flannel", "image": "ghcr.io/flannel-io/flannel:v0.28.9" }] });
        pod.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": { "name": "kube-flannel-ds", "namespace": "kube-flannel", "labels": { "app": "flannel" } },
            "spec": { "selector": {}, "template": { "spec": pod } }
        }))
        .unwrap()
    }

    fn required(terms: Value) -> Value {
        json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
    }

    fn one(key: &str, operator: &str, values: &[&str]) -> Value {
        required(json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]))
    }

    #[test]
    fn a_label_and_affinity_keep_it_away_or_do_not() {
        let ours =
            json!({ "podwire.dev/network": "podwire", "kubernetes.io/os": "linux", "generation": "7" });
        for (spec, labels, is_here) in [
            (json!({}), ours.clone(), true),
            (one("podwire.dev/network", "DoesNotExist", &[]), ours.clone(), false),
            (one("podwire.dev/network", "DoesNotExist", &[]), json!({}), true),
            (one("podwire.dev/network", "NotIn", &["podwire"]), ours.clone(), false),
            (one("podwire.dev/network", "NotIn", &["podwire"]), json!({}), true),
            (one("kubernetes.io/os", "In", &["linux"]), ours.clone(), true),
            (one("kubernetes.io/os", "Exists", &[]), json!({}), false),
            (one("generation", "Gt", &["6"]), ours.clone(), true),
            (one("generation", "Lt", &["6"]), ours.clone(), false),
            (one("generation", "Gt", &["no number"]), ours.clone(), false),
            (one("generation", "Near", &["7"]), ours.clone(), true),
            (json!({ "nodeSelector": { "kubernetes.io/os": "linux" } }), ours.clone(), true),
            (json!({ "nodeSelector": { "network": "flannel" } }), ours.clone(), false),
            (
                required(
                    json!([{ "matchFields": [{ "key": "metadata.name", "operator": "NotIn", "values": ["n1"] }] }]),
                ),
                ours.clone(),
                false,
            ),
            (
                required(
                    json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }]),
                ),
                ours.clone(),
                true,
            ),
            // Of several terms one is enough, and an empty one is none.
            (
                required(
                    json!([{}, { "matchExpressions": [{ "key": "generation", "operator": "Exists" }] }]),
                ),
                ours.clone(),
                true,
            ),
            (required(json!([{}])), ours.clone(), false),
        ] {
            let found = flannel_on(&node(labels.clone()), &[daemon_set(spec.clone())], &[]);
            let told = ["DaemonSet kube-flannel/kube-flannel-ds selects this node".to_owned()];
            assert_eq!(found, told[..usize::from(is_here)], "{spec} {labels}");
        }
    }

    #[test]
    fn a_pod_that_has_not_gone_yet_is_told() {
        let pod = |node: &str, phase: &str, image: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": "kube-flannel-ds-x", "namespace": "kube-flannel" },
                "spec": { "nodeName": node, "containers": [{ "name": "c", "image": image }] },
                "status": { "phase": phase }
            }))
            .unwrap()
        };
        for (pod, is_here) in [
            (pod("n1", "Running", "docker.io/rancher/mirrored-flannel-flannel:v0.25.0"), true),
            (pod("n1", "Running", "localhost:5000/flannel@sha256:00"), true),
            (pod("n1", "Succeeded", "flannel"), false),
            (pod("n2", "Running", "flannel"), false),
            (pod("n1", "Running", "ghcr.io/flannel-io/flannel-cni-plugin:v1"), false),
            (pod("n1", "Running", "registry/podwire:1"), false),
        ] {
            assert_eq!(
                flannel_on(&node(json!({})), &[], std::slice::from_ref(&pod)).len(),
                usize::from(is_here),
                "{pod:?}"
            );
        }
    }
}
