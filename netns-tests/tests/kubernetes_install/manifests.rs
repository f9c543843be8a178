//! Whether the manifests are what the API server takes, and agree with each other and with the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject};
use podwire_netns_tests::newer::left_out;
use podwire_netns_tests::{LabError, Result};
use podwire_overlay::config::{Config, Resolved, SourceFile, Sources, Store};
use podwire_overlay::store::kubernetes::{flannel, record};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::rendered::{KUSTOMIZATIONS, conf, documents, identity, render};

fn rendered(name: &str) -> Vec<Value> {
    render(&conf(name)).unwrap_or_else(|error| panic!("{name}: {error:?}"))
}

/// The only document of its kind, as the API's type.
pub(crate) fn only<T: DeserializeOwned>(documents: &[Value], kind: &str) -> T {
    let found: Vec<&Value> = documents.iter().filter(|document| document["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    serde_json::from_value(found[0].clone()).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

pub(crate) fn pod(documents: &[Value]) -> PodSpec {
    only::<DaemonSet>(documents, "DaemonSet")
        .spec
        .expect("it is in the manifest")
        .template
        .spec
        .expect("it is in the manifest")
}

/// The init container and the agent's.
pub(crate) fn containers(pod: &PodSpec) -> [&Container; 2] {
    let [install] = pod.init_containers.as_deref().expect("it is in the manifest") else {
        panic!("one init container")
    };
    let [agent] = pod.containers.as_slice() else { panic!("one container") };
    [install, agent]
}

/// A field that the API's type does not have is lost on the way through it.
fn expect_same<T: DeserializeOwned + Serialize>(document: &Value) {
    let typed: T = serde_json::from_value(document.clone())
        .unwrap_or_else(|error| panic!("{}: {error}", identity(document).join(" ")));
    expect_within(
        document,
        &serde_json::to_value(&typed).expect("it was JSON"),
        &identity(document).join(" "),
    );
}

fn expect_within(given: &Value, taken: &Value, at: &str) {
    match (given, taken) {
        (Value::Object(given), Value::Object(taken)) => {
            for (key, value) in given {
                let taken = taken.get(key).unwrap_or_else(|| panic!("{at}: the API knows no {key}"));
                expect_within(value, taken, &format!("{at}.{key}"));
            }
        }
        (Value::Array(given), Value::Array(taken)) => {
            for (index, (given, taken)) in given.iter().zip(taken).enumerate() {
                expect_within(given, taken, &format!("{at}[{index}]"));
            }
        }
        _ => assert_eq!(given, taken, "{at}"),
    }
}

#[test]
fn each_document_is_what_the_api_has_for_its_kind() {
    for name in KUSTOMIZATIONS {
        let documents = rendered(name);
        let mut identities = BTreeSet::new();
        for document in &documents {
            assert!(identities.insert(identity(document)), "{name} has {:?} twice", identity(document));
            match identity(document) {
                ["v1", "Namespace", ..] => expect_same::<Namespace>(document),
                ["v1", "ServiceAccount", ..] => expect_same::<ServiceAccount>(document),
                ["v1", "ConfigMap", ..] => expect_same::<ConfigMap>(document),
                ["apps/v1", "DaemonSet", ..] => expect_same::<DaemonSet>(document),
                ["rbac.authorization.k8s.io/v1", kind, ..] => match kind {
                    "ClusterRole" => expect_same::<ClusterRole>(document),
                    "ClusterRoleBinding" => expect_same::<ClusterRoleBinding>(document),
                    "Role" => expect_same::<Role>(document),
                    "RoleBinding" => expect_same::<RoleBinding>(document),
                    _ => panic!("{name} has a {kind}"),
                },
                ["admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", ..] => {
                    expect_same::<ValidatingAdmissionPolicy>(document);
                }
                ["admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", ..] => {
                    expect_same::<ValidatingAdmissionPolicyBinding>(document);
                }
                other => panic!("{name} has {other:?}"),
            }
        }
    }
}

#[test]
fn a_field_that_the_api_does_not_have_is_noticed() {
    let mut documents = rendered("kubernetes");
    let config =
        documents.iter_mut().find(|document| document["kind"] == "ConfigMap").expect("it is in the manifest");
    config["metadata"]["lables"] = Value::from("x");
    let config = config.clone();
    assert!(std::panic::catch_unwind(|| expect_same::<ConfigMap>(&config)).is_err());
}

/// The second opinion, from kustomize itself.
#[test]
fn kubectl_renders_the_same() -> Result<()> {
    let sorted = |mut documents: Vec<Value>| {
        documents.sort_by_key(|document| identity(document).join(" "));
        for document in &mut documents {
            sort_named_lists(document);
        }
        documents
    };
    for name in KUSTOMIZATIONS {
        let done = match Command::new("kubectl").arg("kustomize").arg(conf(name)).output() {
            Ok(done) if done.status.success() => done,
            Ok(done) if name != KUSTOMIZATIONS[0] && is_old_kubectl() => {
                let why = LabError::new(String::from_utf8_lossy(&done.stderr).trim().to_owned());
                left_out("rendering of overlays by kubectl, whose kustomize is too old", &why);
                return Ok(());
            }
            Ok(done) => panic!("kubectl kustomize {name}: {}", String::from_utf8_lossy(&done.stderr)),
            Err(error) => {
                left_out("rendering of manifests by kubectl", &LabError::new(error.to_string()));
                return Ok(());
            }
        };
        let theirs = documents(&String::from_utf8_lossy(&done.stdout))?;
        assert_eq!(sorted(rendered(name)), sorted(theirs), "{name}");
        assert_eq!(String::from_utf8_lossy(&done.stderr), "", "{name}: no warnings");
    }
    Ok(())
}

/// Before 1.21 kubectl had kustomize 2.0.
fn is_old_kubectl() -> bool {
    let version = Command::new("kubectl").args(["version", "--client", "--output=json"]).output();
    let version: Value =
        version.ok().and_then(|done| serde_json::from_slice(&done.stdout).ok()).unwrap_or_default();
    let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default();
    minor.trim_end_matches('+').parse::<u32>().is_ok_and(|minor| minor < 21)
}

/// A merge may put elements that have names in another order, which means nothing.
fn sort_named_lists(value: &mut Value) {
    match value {
        Value::Object(keys) => keys.values_mut().for_each(sort_named_lists),
        Value::Array(elements) => {
            elements.iter_mut().for_each(sort_named_lists);
            if elements.iter().all(Value::is_object) {
                elements.sort_by_key(Value::to_string);
            }
        }
        _ => {}
    }
}

/// The agent's configuration as the DaemonSet gives it to a node.
fn resolved(documents: &[Value]) -> Resolved {
    let text =
        &only::<ConfigMap>(documents, "ConfigMap").data.expect("it is in the manifest")["podwired.toml"];
    let pod = pod(documents);
    let [_, agent] = containers(&pod);
    let environment: BTreeMap<_, _> =
        agent.env.iter().flatten().map(|variable| (variable.name.clone(), "node-1".to_owned())).collect();
    let file = Some(SourceFile { name: "podwired.toml", text });
    Config::resolve(&Sources { file, environment: &environment, flags: &[], host_name: "other" })
        .unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_configuration_is_one_that_the_agent_takes() {
    for name in KUSTOMIZATIONS {
        let resolved = resolved(&rendered(name));
        assert_eq!(resolved.notices, [""; 0], "{name}");
        assert_eq!(resolved.config.node_name, "node-1", "{name}: of the Node, not of the host");
        let Store::Kubernetes(store) = resolved.config.cluster.expect("it is in the manifest").store else {
            panic!("{name}: another store")
        };
        let families: Vec<bool> = store.shared.ranges.iter().map(|range| range.range.is_ipv4()).collect();
        let expected: &[bool] = if name == "kustomize/dual-stack" { &[true, false] } else { &[true] };
        assert_eq!(families, expected, "{name}");
        let is_direct = store.shared.direct_routing != podwire_overlay::cluster::DirectRouting::Never;
        assert_eq!(is_direct, name == "kustomize/direct-routing", "{name}");
        assert_eq!(store.flannel_peers, name == "kustomize/migrate-from-flannel", "{name}");
        assert_eq!(store.kubeconfig, None, "{name}: the pod's own account");
    }
}

/// Host paths by where a container has them, and whether it can write there.
pub(crate) fn mounts(pod: &PodSpec, container: &Container) -> BTreeMap<PathBuf, (PathBuf, bool)> {
    let volume = |name: &str| {
        let volumes = pod.volumes.iter().flatten();
        let named: Vec<_> = volumes.filter(|volume| volume.name == name).collect();
        let [volume] = named.as_slice() else { panic!("{} volumes {name}", named.len()) };
        volume.host_path.as_ref().map(|host| PathBuf::from(&host.path))
    };
    let mounts = container.volume_mounts.iter().flatten();
    let of_node = mounts.filter_map(|mount| {
        let is_writable = !mount.read_only.unwrap_or_default();
        Some((PathBuf::from(&mount.mount_path), (volume(&mount.name)?, is_writable)))
    });
    of_node.collect()
}

#[test]
fn what_the_agent_writes_is_the_nodes_and_at_the_same_place() {
    for name in KUSTOMIZATIONS {
        let documents = rendered(name);
        let config = resolved(&documents).config;
        let pod = pod(&documents);
        let [install, agent] = containers(&pod);
        let mounts_of_agent = mounts(&pod, agent);
        let conflist = config.network.conflist.expect("it is in the manifest");
        // The plugins, which the runtime starts on the node, look at the same places.
        for path in
            [config.state_dir.as_path(), &config.run_dir, conflist.parent().expect("it is in the manifest")]
        {
            assert_eq!(mounts_of_agent.get(path), Some(&(path.to_owned(), true)), "{name}");
        }
        let sysctls = Path::new("/host/proc/sys/net");
        assert_eq!(mounts_of_agent.get(sysctls), Some(&("/proc/sys/net".into(), true)), "{name}");
        let args = install.args.as_deref().expect("it is in the manifest");
        assert_eq!(args[..2], ["install", "--to"], "{name}");
        let bin = mounts(&pod, install);
        assert_eq!(bin, BTreeMap::from([(PathBuf::from(&args[2]), ("/opt/cni/bin".into(), true))]), "{name}");
        let used: BTreeSet<&str> = [install, agent]
            .iter()
            .flat_map(|container| container.volume_mounts.iter().flatten())
            .map(|mount| mount.name.as_str())
            .collect();
        let volumes: BTreeSet<&str> =
            pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
        assert_eq!(used, volumes, "{name}: each volume is mounted");
        let listen = config.telemetry.listen.expect("it is in the manifest");
        for probe in [&agent.startup_probe, &agent.liveness_probe, &agent.readiness_probe] {
            let probe =
                probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("it is in the manifest");
            let port = serde_json::to_value(&probe.port).expect("it was JSON");
            assert_eq!(
                (probe.host.as_deref(), port),
                (Some("127.0.0.1"), Value::from(listen.port())),
                "{name}"
            );
        }
        assert!(pod.host_network == Some(true) && pod.host_pid != Some(true), "{name}");
    }
}

#[test]
fn both_containers_are_of_this_versions_image_and_confined() {
    for name in KUSTOMIZATIONS {
        let pod = pod(&rendered(name));
        for container in containers(&pod) {
            let image = concat!("podwire:", env!("CARGO_PKG_VERSION"));
            assert_eq!(container.image.as_deref(), Some(image), "{name} {}", container.name);
            let context = container.security_context.as_ref().expect("it is in the manifest");
            assert_eq!(context.read_only_root_filesystem, Some(true));
            assert_eq!(context.allow_privilege_escalation, Some(false));
            assert_eq!(context.privileged, None);
            let seccomp = context.seccomp_profile.as_ref().map(|profile| profile.type_.as_str());
            assert_eq!(seccomp, Some("RuntimeDefault"));
            let capabilities = context.capabilities.as_ref().expect("it is in the manifest");
            assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
            let limits = container
                .resources
                .as_ref()
                .and_then(|resources| resources.limits.as_ref())
                .expect("it is in the manifest");
            assert!(limits.contains_key("memory") && !limits.contains_key("cpu"));
        }
    }
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> PolicyRule {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(owned(&[group])),
        resources: Some(owned(&[resource])),
        verbs: owned(verbs),
        ..PolicyRule::default()
    }
}

#[test]
fn an_agent_may_do_what_it_does_and_no_more() {
    for name in KUSTOMIZATIONS {
        let mut documents = rendered(name);
        let is_of_migration = |document: &Value| document["metadata"]["name"] == "podwire-migrate";
        let (migration, rest) = documents.drain(..).partition::<Vec<_>, _>(is_of_migration);
        assert_eq!(!migration.is_empty(), name == "kustomize/migrate-from-flannel", "{name}");
        let role: ClusterRole = only(&rest, "ClusterRole");
        let expected = [rule("", "nodes", &["list", "watch", "patch"]), rule("", "nodes/status", &["patch"])];
        assert_eq!(role.rules.as_deref(), Some(&expected[..]), "{name}");
        let events: Role = only(&rest, "Role");
        assert_eq!(events.rules, Some(vec![rule("events.k8s.io", "events", &["create", "patch"])]), "{name}");
        assert_eq!(
            events.metadata.namespace.as_deref(),
            Some("default"),
            "{name}: where events of Nodes are"
        );

        let account = pod(&rest).service_account_name.expect("it is in the manifest");
        let namespace = only::<Namespace>(&rest, "Namespace").metadata.name.expect("it is in the manifest");
        let subjects = Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: account.clone(),
            namespace: Some(namespace.clone()),
            ..Subject::default()
        }]);
        let bound: ClusterRoleBinding = only(&rest, "ClusterRoleBinding");
        assert_eq!(
            (Some(bound.role_ref.name), bound.subjects),
            (role.metadata.name, subjects.clone()),
            "{name}"
        );
        let bound: RoleBinding = only(&rest, "RoleBinding");
        assert_eq!(
            (Some(bound.role_ref.name), bound.subjects),
            (events.metadata.name, subjects.clone()),
            "{name}"
        );
        if !migration.is_empty() {
            let bound: ClusterRoleBinding = only(&migration, "ClusterRoleBinding");
            assert_eq!(bound.subjects, subjects);
            let role: ClusterRole = only(&migration, "ClusterRole");
            let expected = [
                rule("apps", "daemonsets", &["list"]),
                rule("", "nodes", &["get"]),
                rule("", "pods", &["list"]),
            ];
            assert_eq!(role.rules.as_deref(), Some(&expected[..]));
        }

        let policy: ValidatingAdmissionPolicy = only(&rest, "ValidatingAdmissionPolicy");
        let binding: ValidatingAdmissionPolicyBinding = only(&rest, "ValidatingAdmissionPolicyBinding");
        assert_eq!(Some(binding.spec.policy_name), policy.metadata.name, "{name}");
        let spec = policy.spec.expect("it is in the manifest");
        let conditions = spec.match_conditions.expect("it is in the manifest");
        let user = format!("request.userInfo.username == 'system:serviceaccount:{namespace}:{account}'");
        assert_eq!(conditions[0].expression, user, "{name}");
        let variables = spec.variables.expect("it is in the manifest");
        let ours = &variables
            .iter()
            .find(|variable| variable.name == "ours")
            .expect("it is in the manifest")
            .expression;
        let keys: BTreeSet<&str> = ours.split('\'').skip(1).step_by(2).collect();
        let written = [
            record::NODE,
            flannel::BACKEND_TYPE,
            flannel::BACKEND_DATA,
            flannel::BACKEND_V6_DATA,
            flannel::PUBLIC_IP,
            flannel::PUBLIC_IPV6,
            flannel::KUBE_SUBNET_MANAGER,
        ];
        assert_eq!(keys, BTreeSet::from(written), "{name}: what an administrator writes is not among them");
    }
}

#[test]
fn what_docs_and_manifests_name_is_there() {
    let text = fs::read_to_string(conf("../docs/kubernetes.md")).expect("docs/kubernetes.md");
    for name in KUSTOMIZATIONS {
        assert!(text.contains(&format!("conf/{name}")), "docs/kubernetes.md does not name conf/{name}");
    }
}
