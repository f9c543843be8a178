//! `podwirectl migrate flannel` on a node as flannel leaves it, with pods of the reference plugins, beside a node that flannel
//! still runs on: what it refuses, that it loses no packet, and the way back.

use std::net::IpAddr;

use podwire_netns_tests::apiserver::{Account, Kind, Rule};
use podwire_netns_tests::cluster::{AT_LAST, Cluster, Member, NETWORK, Options, Store};
use podwire_netns_tests::flannel::{self, CONFLIST, FlannelNode, FlannelPod, LEASES, TOLD};
use podwire_netns_tests::kubernetes::ControlPlane;
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Finished, Lab, LabError, PluginCall, Result, wait_for};
use serde_json::{Value, json};

const OWN_CONFLIST: &str = "/etc/cni/net.d/10-podwire.conflist";
const ASIDE: &str = "/etc/cni/net.d/10-flannel.conflist.podwire-migrated";
const ADOPTED: &str = "/var/lib/podwire/adopted.json";
const MIGRATE: [&str; 2] = ["migrate", "flannel"];

/// Node 0 is to be moved, node 1 is flannel's for good, node 2 is podwire's already.
struct Scene {
    here: FlannelNode,
    old: Vec<FlannelPod>,
    there: FlannelPod,
    api: ControlPlane,
    cluster: Cluster,
}

impl Scene {
    fn new(name: &str, families: Families) -> Result<Self> {
        let lab = Lab::new(name)?;
        let underlay = Underlay::new(families, Layout::Flat)?;
        let api = ControlPlane::start(&lab, &underlay)?;
        let options = Options {
            nodes: 3,
            underlay: families,
            pods: families,
            agent: "[cluster.kubernetes]\nflannel_peers = true\n".to_owned(),
            store: Store::Kubernetes(api.clone()),
            ..Options::default()
        };
        let cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
        let [here, flannel] = [0, 1].map(|number| FlannelNode::of(&cluster, number));
        for (number, own) in [(0, &here), (1, &flannel)] {
            own.set_up(cluster.member(number))?;
            own.annotate(&api, cluster.member(number))?;
        }
        here.add_peer(cluster.member(0), &flannel)?;
        flannel.add_peer(cluster.member(1), &here)?;
        here.add_rules(cluster.member(0))?;
        let old =
            ["old-0", "old-1"].iter().map(|name| here.pod(cluster.member(0), name)).collect::<Result<_>>()?;
        let there = flannel.pod(cluster.member(1), "there")?;
        Ok(Self { here, old, there, api, cluster })
    }

    fn node(&self) -> &Member {
        self.cluster.member(0)
    }

    /// The agent of the node that is to be moved, as a DaemonSet starts it: it finds flannel's device and waits.
    fn start_agent(&mut self) -> Result<()> {
        self.cluster.member_mut(0).spawn_agent()?;
        asks_for_it(self.node())
    }

    /// The node that is podwire's already; it knows the others by what flannel says of them.
    fn start_podwires_node(&mut self) -> Result<()> {
        self.cluster.member_mut(2).start_agent()
    }

    /// flannel's side of a new node: what flanneld does when it hears of it.
    fn tell_flannel_of_podwires_node(&self) -> Result<()> {
        let mac = |key: &str| {
            let text = self.api.server().annotation("node2", &format!("flannel.alpha.coreos.com/{key}"))?;
            serde_json::from_str::<Value>(&text).ok()?["VtepMAC"].as_str().map(str::to_owned)
        };
        let mut peer = FlannelNode::of(&self.cluster, 2);
        let has = |ipv4: bool| peer.subnets.iter().any(|subnet| subnet.contains('.') == ipv4);
        let came = wait_for(AT_LAST, || {
            (!has(true) || mac("backend-data").is_some()) && (!has(false) || mac("backend-v6-data").is_some())
        });
        if !came {
            return Err(LabError::new(format!("node2 is {:?}", self.api.server().node("node2"))));
        }
        (peer.mac, peer.mac6) =
            (mac("backend-data").unwrap_or_default(), mac("backend-v6-data").unwrap_or_default());
        let flannel = FlannelNode::of(&self.cluster, 1);
        flannel.add_peer(self.cluster.member(1), &peer)?;
        self.here.add_peer(self.node(), &peer)
    }

    fn migrate(&self, more: &[&str]) -> Result<Finished> {
        self.node().podwirectl(&[&MIGRATE, more].concat())
    }

    /// Fails unless it ends with that code; what it said.
    fn migrates(&self, code: i32, more: &[&str]) -> Result<String> {
        let done = self.migrate(more)?;
        let said = done.out() + &done.err();
        if done.code() == Some(code) {
            return Ok(said);
        }
        let log = self.node().agent().map(podwire_netns_tests::podwired::Podwired::log).unwrap_or_default();
        Err(LabError::new(format!(
            "{more:?} ended with {:?}, not {code}:\n{said}\nthe log is\n{log}",
            done.code()
        )))
    }

    /// Lets the agent's account look for flannel, as the overlay migrate-from-flannel does.
    fn allow_to_look(&self) -> Result<()> {
        let mut account = Account::agent().bound_to("node0");
        account.rules.push(Rule::new("apps", &["daemonsets"], &["list"]));
        account.rules.push(Rule::new("", &["nodes"], &["get"]));
        account.rules.push(Rule::new("", &["pods"], &["list"]));
        let token = self.node().node().read("/run/secrets/kubernetes.io/serviceaccount/token")?;
        self.api.server().admit(token.trim(), account);
        Ok(())
    }

    /// flannel's DaemonSet, with that node affinity.
    fn set_daemon_set(&self, affinity: &Value) -> Result<()> {
        let _ = self.api.server().delete(Kind::DaemonSet, "kube-flannel", "kube-flannel-ds");
        let set = json!({
            "metadata": { "name": "kube-flannel-ds", "namespace": "kube-flannel", "labels": { "app": "flannel" } },
            "spec": { "selector": { "matchLabels": { "app": "flannel" } }, "template": {
                "metadata": { "labels": { "app": "flannel" } },
                "spec": { "affinity": affinity, "containers": [{ "name": "kube-flannel", "image": "ghcr.io/flannel-io/flannel:v0.28.9" }] } } }
        });
        self.api.server().create(Kind::DaemonSet, set).map(drop)
    }

    /// The addresses of the node's leases.
    fn leased(&self) -> Result<Vec<IpAddr>> {
        let shown = self
            .node()
            .podwirectl(&["ipam", "show", "--network", NETWORK, "--json"])?
            .success("ipam show")?;
        let leases: Value = serde_json::from_slice(&shown.stdout).map_err(LabError::because("ipam show"))?;
        let addresses =
            leases.as_array().into_iter().flatten().flat_map(|lease| lease["addresses"].as_array());
        let parse = |address: &Value| address.as_str()?.split('/').next()?.parse().ok();
        Ok(addresses.flatten().filter_map(parse).collect())
    }

    fn links(&self) -> Result<Vec<(String, Value, Value)>> {
        let links = self.node().node().ip(&["link", "show"])?;
        let named = |name: &str| {
            let link = links.as_array().into_iter().flatten().find(|link| link["ifname"] == name);
            link.map(|link| (name.to_owned(), link["ifindex"].clone(), link["address"].clone()))
        };
        Ok(["flannel.1", "flannel-v6.1", "cni0"].iter().filter_map(|name| named(name)).collect())
    }
}

/// Waits until the agent asks for the move.
fn asks_for_it(member: &Member) -> Result<()> {
    let mut said = String::new();
    let has_asked = wait_for(AT_LAST, || {
        let answer = member.agent().and_then(|agent| agent.get("/readyz"));
        said = answer.map_or_else(|error| format!("{error:?}"), |(_, body)| body);
        said.contains("migrate flannel")
    });
    if has_asked {
        Ok(())
    } else {
        Err(LabError::new(format!("the agent does not ask for the move: {said}")))
    }
}

fn label_and_affinity(scene: &Scene) -> Result<()> {
    scene
        .api
        .server()
        .patch_node("node0", &json!({ "metadata": { "labels": { "podwire.dev/network": "podwire" } } }))?;
    scene.set_daemon_set(&json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "podwire.dev/network", "operator": "DoesNotExist" }] }] } } }))
}

#[test]
fn a_node_is_moved_and_given_back_without_losing_a_packet() -> Result<()> {
    for families in [Families::Dual, Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("migrate", families)?;
        scene.start_podwires_node()?;
        scene.tell_flannel_of_podwires_node()?;
        let podwires = scene.cluster.pod(2, "podwires")?;
        scene.start_agent()?;
        scene.allow_to_look()?;
        label_and_affinity(&scene)?;
        let (old, there) = (&scene.old[0], &scene.there);
        let mut flows = flannel::flows((&old.pod, &old.addresses), (&there.pod, &there.addresses))?;
        flows.0.extend(flannel::flows((&old.pod, &old.addresses), (podwires.pod(), &podwires.addresses))?.0);
        flows.0.extend(
            flannel::flows((&old.pod, &old.addresses), (&scene.old[1].pod, &scene.old[1].addresses))?.0,
        );
        let links = scene.links()?;

        let said = scene.migrates(0, &["--dry-run"])?;
        assert!(said.contains(": VNI 1, port 8472") && said.contains("2 pods' interfaces"), "{said}");
        assert!(!scene.node().node().path(ADOPTED).exists() && scene.node().node().path(CONFLIST).exists());

        let said = scene.migrates(0, &[])?;
        assert!(said.ends_with("done\n"), "{said}");
        flows.assert_none_lost()?;
        assert_eq!(scene.links()?, links, "no link was made again, and none has another address");
        assert!(!scene.node().node().path(CONFLIST).exists() && scene.node().node().path(ASIDE).exists());
        let list: Value = serde_json::from_str(&scene.node().node().read(OWN_CONFLIST)?).unwrap();
        assert_eq!(list["plugins"][0]["bridge"], "cni0");
        let routes = scene
            .node()
            .sh("ip route show root 10.240.0.0/13; ip -6 route show root fd00:10:244::/48")?
            .out();
        let by_router: Vec<&str> = routes.lines().filter(|line| line.contains(" via ")).collect();
        assert!(!by_router.is_empty() && by_router.iter().all(|line| line.contains("proto 112")), "{routes}");
        assert!(scene.migrates(0, &[])?.ends_with("done\n"), "a second time changes nothing");

        // Without flannel's rules pods of before reach the outside as before: under the node's address, which alone the
        // router knows.
        let outside = scene.cluster.underlay().gateways(0)[0];
        scene.old[0].pod.ping(outside)?;
        let commands: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  iptables ")).collect();
        assert_eq!(commands.len(), if families.ipv4() { 6 } else { 0 }, "{said}");
        let commands: Vec<String> =
            commands.iter().map(|command| format!("iptables-nft {command}")).collect();
        scene.node().sh(&commands.join("\n"))?;
        assert!(!scene.node().sh("nft list ruleset")?.out().contains("FLANNEL"));
        scene.old[1].pod.ping(outside)?;

        let pods = scene.node().podwirectl(&["pods"])?.out();
        assert!(pods.contains("shop") && pods.contains("old-0"), "pods of before have their names: {pods}");
        let new = scene.cluster.pod(0, "new")?;
        for address in &scene.old[0].addresses {
            new.pod().ping(*address)?;
        }
        for address in new.addresses.iter() {
            assert!(scene.old.iter().all(|old| !old.addresses.contains(address)), "{address} is another's");
            scene.there.pod.ping(*address)?;
            podwires.pod().ping(*address)?;
        }
        flows.assert_none_lost()?;

        scene.cluster.member_mut(0).stop_agent()?;
        let refused =
            scene.cluster.member(0).podwirectl(&[&MIGRATE[..], &["--back", "--dry-run"]].concat())?;
        assert_eq!(refused.code(), Some(0), "{}{}", refused.out(), refused.err());
        assert!(scene.migrates(0, &["--back"])?.ends_with("done\n"));
        flows.assert_none_lost()?;
        assert_eq!(scene.links()?, links);
        assert!(
            scene.node().node().path(CONFLIST).exists() && !scene.node().node().path(OWN_CONFLIST).exists()
        );
        assert!(!scene.node().node().path(ADOPTED).exists());
        let routes = scene.node().sh("ip route show proto 112; ip -6 route show proto 112; ip -o link show alias 'podwire overlay' 2>&1 || true; nft list tables")?.out();
        assert!(!routes.contains(" via ") && !routes.contains("podwire-node"), "{routes}");
        assert!(!scene.node().sh("ip -d link show type vxlan")?.out().contains("alias"));

        // host-local knows all pods, and flannel's plugin can end those that podwire made.
        let files = scene.node().node().list(LEASES);
        for address in new.addresses.iter().chain(&scene.old[0].addresses) {
            assert!(files.contains(&address.to_string()), "{address}: {files:?}");
        }
        let again = scene.here.pod(scene.node(), "again")?;
        again.pod.ping(new.addresses[0])?;
        assert!(scene.node().node().list(TOLD).contains(&"new".to_owned()));
        flannel::delete_by_flannel(scene.node(), new.pod())?;
        let files = scene.node().node().list(LEASES);
        assert!(new.addresses.iter().all(|address| !files.contains(&address.to_string())), "{files:?}");
        assert_eq!(new.pod().links()?, Vec::<String>::new());

        // Once more: what host-local gave meanwhile is taken in.
        scene.cluster.member_mut(0).spawn_agent()?;
        asks_for_it(scene.node())?;
        assert!(scene.migrates(0, &[])?.ends_with("done\n"));
        flows.assert_none_lost()?;
        let leased = scene.leased()?;
        assert!(again.addresses.iter().all(|address| leased.contains(address)), "{leased:?}");
        assert!(new.addresses.iter().all(|address| !leased.contains(address)), "{leased:?}");
    }
    Ok(())
}

#[test]
fn a_pod_of_before_ends_by_podwires_configuration_or_by_flannels() -> Result<()> {
    let mut scene = Scene::new("migrate-del", Families::Dual)?;
    scene.start_agent()?;
    scene.migrates(0, &["--flannel-is-gone"])?;
    let leased = scene.leased()?;
    let both: Vec<IpAddr> = scene.old.iter().flat_map(|old| old.addresses.clone()).collect();
    assert!(both.iter().all(|address| leased.contains(address)), "{leased:?}");
    // containerd calls the plugins of the configuration that is there now.
    let first = &scene.old[0];
    let delete = PluginCall::new("podwire", "DEL").pod(&first.pod).stdin(&scene.node().network()?);
    delete.run(scene.node().node())?.ok()?;
    assert_eq!(first.pod.links()?, Vec::<String>::new());
    delete.run(scene.node().node())?.ok()?;
    // CRI-O remembers those of the ADD: podwire's store hears of it when the netns is gone.
    let second = &scene.old[1];
    flannel::delete_by_flannel(scene.node(), &second.pod)?;
    let leased = scene.leased()?;
    assert!(first.addresses.iter().all(|address| !leased.contains(address)), "{leased:?}");
    assert!(
        second.addresses.iter().all(|address| leased.contains(address)),
        "it cannot know yet: {leased:?}"
    );
    // Until then nobody is given the address.
    let new = scene.cluster.pod(0, "new")?;
    assert!(new.addresses.iter().all(|address| !both.contains(address)));
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_said_and_nothing_is_changed() -> Result<()> {
    let mut scene = Scene::new("migrate-not", Families::Ipv4)?;
    let done = scene.migrate(&[])?;
    assert_eq!(done.code(), Some(3), "no agent: {}{}", done.out(), done.err());
    scene.start_agent()?;
    let before = scene.node().dataplane()?;
    let said = scene.migrates(1, &[])?;
    assert!(said.contains("migrate-from-flannel") && said.contains("--flannel-is-gone"), "{said}");
    scene.allow_to_look()?;
    scene.set_daemon_set(&json!({}))?;
    let said = scene.migrates(1, &[])?;
    assert!(said.contains("DaemonSet kube-flannel/kube-flannel-ds selects this node"), "{said}");
    label_and_affinity(&scene)?;
    let pod = json!({
        "metadata": { "name": "kube-flannel-ds-x", "namespace": "kube-flannel", "labels": { "app": "flannel" } },
        "spec": { "nodeName": "node0", "containers": [{ "name": "kube-flannel", "image": "flannel" }] },
        "status": { "phase": "Running" }
    });
    scene.api.server().create(Kind::Pod, pod)?;
    let done = scene.node().podwirectl(&[&MIGRATE[..], &["--json"]].concat())?;
    let told: Value = serde_json::from_slice(&done.stdout).map_err(LabError::because(done.out()))?;
    assert_eq!((done.code(), &told["done"], &told["steps"]), (Some(1), &json!(false), &json!([])));
    assert!(
        told["refused"][0].as_str().unwrap().contains("kube-flannel-ds-x is still on this node"),
        "{told:#}"
    );
    scene.api.server().delete(Kind::Pod, "kube-flannel", "kube-flannel-ds-x")?;
    scene.node().sh("echo FLANNEL_SUBNET=10.240.77.1/24 > /run/flannel/subnet.env")?;
    let said = scene.migrates(1, &[])?;
    assert!(said.contains("10.240.77.0/24"), "{said}");
    assert_eq!(scene.node().dataplane()?, before);
    assert!(!scene.node().node().path(ADOPTED).exists() && scene.node().node().path(CONFLIST).exists());
    // Going back: there is nothing to give back.
    assert!(scene.migrates(0, &["--back"])?.contains("nothing of flannel's"));
    Ok(())
}

#[test]
fn a_migration_that_was_interrupted_after_any_step_goes_on() -> Result<()> {
    let mut scene = Scene::new("migrate-again", Families::Ipv4)?;
    scene.start_agent()?;
    scene.migrates(0, &["--flannel-is-gone"])?;
    let (old, there) = (&scene.old[0], &scene.there);
    let mut flows = flannel::flows((&old.pod, &old.addresses), (&there.pod, &there.addresses))?;
    // Each trace of a step taken back, as a crash before it would have left the node.
    for undo in [
        format!("sed -i 's/\"takenIn\": true/\"takenIn\": false/' {ADOPTED}"),
        format!("cp {ASIDE} {CONFLIST}"),
        format!("mv {ASIDE} {CONFLIST}"),
        "ip route add 10.240.2.0/24 via 10.240.2.0 dev flannel.1 onlink".to_owned(),
    ] {
        scene.node().sh(&undo)?;
        let said = scene.migrates(0, &["--flannel-is-gone", "--json"])?;
        let told: Value = serde_json::from_str(&said).map_err(LabError::because(said.clone()))?;
        assert_eq!(told["done"], true, "{undo}: {told:#}");
        assert!(
            !scene.node().node().path(CONFLIST).exists() && scene.node().node().path(ASIDE).exists(),
            "{undo}"
        );
    }
    // The agent is killed, and comes back to what was adopted.
    scene.cluster.member_mut(0).kill_agent()?;
    scene.cluster.member_mut(0).start_agent()?;
    assert!(scene.migrates(0, &["--flannel-is-gone"])?.ends_with("done\n"));
    flows.assert_none_lost()
}
