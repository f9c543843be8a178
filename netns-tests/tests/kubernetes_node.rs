//! What a node's agent knows of Kubernetes, and what becomes of the node when its Node changes.

use std::time::Duration;

use podwire_netns_tests::cluster::{AT_LAST, Cluster, Member, Options, Store, subnets};
use podwire_netns_tests::kubernetes::{ControlPlane, UNAVAILABLE, node_spec};
use podwire_netns_tests::underlay::{Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, PluginCall, Pod, Result, wait_for};
use serde_json::{Value, json};

/// Longer than a problem must have been there until it is told, and a busy machine.
const UNTIL_TOLD: Duration = Duration::from_secs(60);

/// Nodes that meet in the Kubernetes API; their agents are ready.
fn start(name: &str, nodes: u8) -> Result<(Cluster, ControlPlane, Options)> {
    let lab = Lab::new(name)?;
    let options = Options { nodes, ..Options::default() };
    let underlay = Underlay::new(options.underlay, Layout::Flat)?;
    let api = ControlPlane::start(&lab, &underlay)?;
    let options = Options { store: Store::Kubernetes(api.clone()), ..options };
    let mut cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
    cluster.start_agents()?;
    Ok((cluster, api, options))
}

fn json_of(member: &Member, args: &[&str]) -> Result<Value> {
    let done = member.podwirectl(&[args, &["--json"]].concat())?;
    let what = format!("{args:?}: {}{}", done.out(), done.err());
    serde_json::from_slice(&done.stdout).map_err(LabError::because(what))
}

/// The names of the pods that `podwirectl pods` lists, in its order.
fn names(member: &Member, args: &[&str]) -> Result<Vec<String>> {
    let pods = json_of(member, &[&["pods"], args].concat())?;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let name = |pod: &Value| format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
    Ok(pods.as_array().into_iter().flatten().map(name).collect())
}

/// A pod by an ADD as a kubelet's runtime calls it.
fn add(member: &Member, namespace: &str, name: &str) -> Result<(Pod, Value)> {
    let pod = member.node().pod(&format!("{namespace}-{name}"))?;
    let arguments =
        format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-{name}");
    let call = PluginCall::new("podwire", "ADD").pod(&pod).stdin(&member.network()?);
    let result = call.env("CNI_ARGS", &arguments).run(member.node())?.ok()?;
    Ok((pod, result))
}

/// What libcni keeps of that ADD.
fn cache(member: &Member, pod: &Pod, namespace: &str, name: &str, result: &Value) -> Result<()> {
    let config = member.network()?.to_string();
    let config = member.sh(&format!("printf %s '{config}' | base64 -w0"))?.out();
    let cached = json!({
        "kind": "cniCacheV1", "containerId": pod.name(), "ifName": "eth0", "networkName": "podwire", "config": config.trim(),
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", name], ["K8S_POD_UID", "u"]],
        "capabilityArgs": {}, "result": result,
    });
    member.node().write(format!("/var/lib/cni/results/podwire-{}-eth0", pod.name()), cached.to_string())
}

#[test]
fn pods_are_known_by_name_also_after_a_restart_and_after_the_store_was_lost() -> Result<()> {
    let mut cluster = Cluster::start("kube-names", &Options { nodes: 1, ..Options::default() })?;
    let member = cluster.member(0);
    let (web, result) = add(member, "default", "web")?;
    let (dns, _) = add(member, "kube-system", "dns")?;
    let _plain = cluster.pod(0, "plain")?;
    let all = ["-/-", "default/web", "kube-system/dns"];
    for args in [&[][..], &["-A"], &["--all-namespaces"]] {
        assert_eq!(names(member, args)?, all, "{args:?}");
    }
    assert_eq!(names(member, &["-n", "kube-system"])?, ["kube-system/dns"]);
    for one in ["default/web", "web", "default-w"] {
        assert_eq!(names(member, &[one])?, ["default/web"], "{one}");
    }
    assert_eq!(member.podwirectl(&["pods", "default/nobody"])?.code(), Some(2));
    let listed = member.podwirectl(&["pods", "--names"])?.out();
    assert_eq!(listed, "plain\ndefault/web\nkube-system/dns\n");
    let explained = member.podwirectl(&["explain", "default/web", "kube-system/dns"])?;
    assert!(explained.out().contains("kube-system/dns"), "{}{}", explained.out(), explained.err());

    cluster.member_mut(0).kill_agent()?;
    assert_eq!(names(cluster.member(0), &["-A"])?, all, "without an agent");
    cluster.member_mut(0).start_agent()?;
    assert_eq!(names(cluster.member(0), &["-A"])?, all, "after a restart");

    // The runtime's list counts, whatever pods are called.
    let member = cluster.member(0);
    let mut config = member.network()?;
    let one = |container: &str| json!({"containerID": container, "ifname": "eth0"});
    config["cni.dev/valid-attachments"] = json!([one(web.name()), one("plain")]);
    PluginCall::new("podwire", "GC").stdin(&config).run(member.node())?.ok()?;
    assert_eq!(names(member, &["-A"])?, all[..2]);
    assert_eq!(dns.links()?, [""; 0]);

    // The store is gone: libcni's cache has the name of one of them.
    cluster.member_mut(0).stop_agent()?;
    let member = cluster.member(0);
    cache(member, &web, "default", "web", &result)?;
    member.sh("rm -r /var/lib/podwire/ipam")?;
    cluster.member_mut(0).start_agent()?;
    let member = cluster.member(0);
    let mut found = names(member, &["-A"])?;
    found.sort();
    assert_eq!(found, all[..2], "{}", member.agent()?.log());

    // What is wrong with a pod is said of that pod.
    let pods = json_of(member, &["pods", "default/web"])?;
    let link = pods[0]["link"].as_str().unwrap_or_default();
    member.sh(&format!("ip link del {link}"))?;
    let check = member.podwirectl(&["ipam", "check"])?.out();
    assert!(check.contains("pod default/web (eth0 of container"), "{check}");
    Ok(())
}

#[test]
fn what_an_administrator_must_know_is_told_on_the_node_and_by_doctor() -> Result<()> {
    let (cluster, api, _) = start("kube-told", 1)?;
    let member = cluster.member(0);
    api.says_unavailable("node0", "False", AT_LAST)?;
    let status = json_of(member, &["status"])?;
    assert_eq!(status["store"]["kind"], "kubernetes", "{status:#}");
    let place = format!("Kubernetes at {}", api.url());
    assert_eq!(status["store"]["description"], place, "{status:#}");
    // Where br_netfilter is not loaded there is none, which is told as well.
    member
        .sh("file=/proc/sys/net/bridge/bridge-nf-call-iptables; if [ -e $file ]; then echo 0 > $file; fi")?;
    // Another network that runtimes would take, and what is left of flannel.
    member.node().write(
        "/etc/cni/net.d/05-flannel.conflist",
        json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel"}]}).to_string(),
    )?;
    member.sh("ip link add flannel.9 type vxlan id 9 dstport 4789; cp /bin/sleep /run/flanneld; /run/flanneld 600 >&- 2>&- &")?;
    api.tells("node0", "05-flannel.conflist", UNTIL_TOLD)?;
    let findings = json_of(member, &["doctor"])?;
    let codes: Vec<&str> =
        findings.as_array().into_iter().flatten().filter_map(|finding| finding["code"].as_str()).collect();
    assert_eq!(codes.iter().filter(|code| **code == "flannel").count(), 3, "{findings:#}");
    for code in ["rival-conflist", "bridge-nf-call"] {
        assert!(codes.contains(&code), "{code}: {findings:#}");
    }
    // None of it keeps pods from reaching each other.
    assert_eq!(api.condition("node0", UNAVAILABLE).0, "False");
    Ok(())
}

#[test]
fn pods_of_an_earlier_pod_cidr_go_on_with_this_node_until_they_are_made_anew() -> Result<()> {
    let (mut cluster, api, options) = start("kube-moved", 2)?;
    let old = cluster.pod(0, "old")?;
    let there = cluster.pod(1, "there")?;
    cluster.assert_reach(&old, &there)?;
    let before = subnets(options.pods, 0);
    // The Node is made anew and has other subnets.
    api.server().delete_node("node0")?;
    let member = cluster.member(0);
    let refuses = || json_of(member, &["status"]).is_ok_and(|status| !status["refuse"].is_null());
    assert!(wait_for(AT_LAST, refuses), "{}", member.agent()?.log());
    assert_eq!(member.try_pod("too-late")?.error()?.0, 11);
    let addresses = cluster.underlay().addresses(0);
    api.server().create_node(&node_spec("node0", &subnets(options.pods, 40), &addresses))?;
    let takes = || cluster.member(0).agent().and_then(|agent| agent.subnets()).ok();
    assert!(wait_for(AT_LAST, || takes() == Some(subnets(options.pods, 40))), "{:?}", takes());
    cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
    let is_new = |pod: &podwire_netns_tests::cluster::ClusterPod| {
        pod.address(true).is_ok_and(|address| address.to_string().starts_with("10.240.41."))
    };
    let new = cluster.pod(0, "new")?;
    assert!(is_new(&new), "{:?}", new.addresses);
    let reach = wait_for(AT_LAST, || cluster.assert_reach(&new, &there).is_ok());
    assert!(reach, "{:?}", cluster.assert_reach(&new, &there));
    // Its gateways stay for it, so that the node, its other pods and the world outside are reached.
    let gateways: Vec<_> = before
        .iter()
        .map(|subnet| podwire_netns_tests::cluster::first_address(subnet))
        .collect::<Result<_>>()?;
    for gateway in &gateways {
        old.pod().ping(*gateway)?;
    }
    cluster.assert_reach(&old, &new)?;
    // Also when the agent knows nothing but what is on the disk.
    cluster.member_mut(0).kill_agent()?;
    cluster.member_mut(0).start_agent()?;
    cluster.assert_reach(&old, &new)?;
    // With the last of its pods an earlier subnet is gone.
    old.delete()?;
    let gone = |text: &str| !text.contains("10.240.1.1/24");
    let member = cluster.member(0);
    member.wait_for(AT_LAST + AT_LAST, "ip -o address show dev podwire0", gone)?;
    Ok(())
}
