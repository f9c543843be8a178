//! Nodes that meet in the Kubernetes API, with pods that containerd runs: they reach each other in each family, and people
//! see them by their names. Nodes are drained, cordoned, deleted, and made again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use podwire_netns_tests::cluster::{AT_LAST, Cluster, Member, Options, Scene, Store, subnets};
use podwire_netns_tests::containerd::{Containerd, DEBIAN, Sandbox};
use podwire_netns_tests::kubernetes::{ControlPlane, UNAVAILABLE, node_spec};
use podwire_netns_tests::traffic::{Flow, Flows};
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, PluginCall, Result, wait_for};
use serde_json::{Value, json};

/// Longer than a node that is not ready may take until its Node says so: 15 s, and what a busy machine needs.
const UNTIL_TOLD: Duration = Duration::from_secs(60);

const ROUTES: &str = "ip -4 route show proto 112; ip -6 route show proto 112";

/// Nodes and the API that they meet in; agents do not run yet.
fn prepare(name: &str, options: Options) -> Result<(Cluster, ControlPlane, Options)> {
    let lab = Lab::new(name)?;
    let underlay = Underlay::new(options.underlay, Layout::Flat)?;
    let api = ControlPlane::start(&lab, &underlay)?;
    let options = Options { store: Store::Kubernetes(api.clone()), ..options };
    Ok((Cluster::prepare_on(&lab, &underlay, &options)?, api, options))
}

/// The same with agents that are ready, a pod on two nodes, and packets between them.
fn scene(name: &str, options: Options) -> Result<(Scene, ControlPlane, Options)> {
    let (mut cluster, api, options) = prepare(name, options)?;
    cluster.start_agents()?;
    Ok((Scene::of(cluster)?, api, options))
}

fn ctl(member: &Member, args: &[&str]) -> Result<String> {
    Ok(member.podwirectl(args)?.success(&format!("podwirectl {}", args.join(" ")))?.out())
}

/// A pod that a runtime runs.
struct Running {
    node: usize,
    id: String,
    name: String,
    addresses: Vec<IpAddr>,
    at: Sandbox,
}

fn run(runtimes: &mut [Containerd], node: usize, name: &str) -> Result<Running> {
    let runtime = &mut runtimes[node];
    let id = runtime.cri().run_pod(name).map_err(|error| runtime.explain(error))?;
    let addresses = runtime.cri().pod_addresses(&id)?;
    let at = runtime.place(&id, name)?;
    Ok(Running { node, id, name: name.to_owned(), addresses, at })
}

fn runtimes(cluster: &Cluster) -> Result<Vec<Containerd>> {
    let mut runtimes = Vec::new();
    for member in cluster.members() {
        let mut runtime = Containerd::start(member.node(), DEBIAN)?;
        runtime.wait_for_network()?;
        runtimes.push(runtime);
    }
    Ok(runtimes)
}

/// Pods of each node reach those of all others, and are called what Kubernetes calls them.
fn pods_reach_each_other(name: &str, nodes: u8, underlay: Families, pods: Families) -> Result<()> {
    let (mut cluster, api, _) = prepare(name, Options { nodes, underlay, pods, ..Options::default() })?;
    cluster.start_agents()?;
    let mut runtimes = runtimes(&cluster)?;
    let mut running = Vec::new();
    for node in 0..usize::from(nodes) {
        running.push(run(&mut runtimes, node, &format!("web-{node}"))?);
    }
    let mut flows = Flows::default();
    for from in &running {
        let expected: Vec<bool> = [(pods.ipv4(), true), (pods.ipv6(), false)]
            .into_iter()
            .filter_map(|(wanted, is_ipv4)| wanted.then_some(is_ipv4))
            .collect();
        assert_eq!(
            from.addresses.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>(),
            expected,
            "{:?}",
            from.addresses
        );
        for to in running.iter().filter(|to| to.node != from.node) {
            for address in &to.addresses {
                flows.0.push(Flow::start(&from.at, &to.at, *address)?);
            }
        }
    }
    flows.all_flow(AT_LAST)?;
    flows.assert_none_lost()?;

    for (number, member) in cluster.members().iter().enumerate() {
        let of_this = &running[number];
        assert_eq!(member.agent()?.subnets()?, subnets(pods, number as u16));
        api.says_unavailable(member.name(), "False", AT_LAST)?;
        let pods = ctl(member, &["pods", "-A"])?;
        let own = pods.lines().find(|line| line.contains(&of_this.name)).unwrap_or_default();
        assert!(own.starts_with("default ") && own.contains(&of_this.addresses[0].to_string()), "{pods}");
        let shown = ctl(member, &["status"])?;
        assert!(shown.contains("ready") && shown.to_lowercase().contains("kubernetes"), "{shown}");
        // All of them, each answering probes as who it is said to be.
        let mut shown = String::new();
        let good = wait_for(AT_LAST, || match member.podwirectl(&["nodes"]) {
            Ok(done) => {
                shown = done.out();
                done.status.success() && shown.matches(" ms").count() >= cluster.members().len() - 1
            }
            Err(_) => false,
        });
        assert!(good && cluster.members().iter().all(|other| shown.contains(other.name())), "{shown}");
        let far = running.iter().find(|pod| pod.node != number).expect("there are two nodes at least");
        let own = format!("default/{}", of_this.name);
        let explained = ctl(member, &["explain", &own, &far.addresses[0].to_string()])?;
        assert!(explained.contains(&own) && !explained.contains("BROKEN"), "{explained}");
    }
    for pod in &running {
        runtimes[pod.node].cri().stop_pod(&pod.id)?;
        runtimes[pod.node].cri().remove_pod(&pod.id)?;
        let pods = ctl(cluster.member(pod.node), &["pods", "-A"])?;
        assert!(!pods.contains(&pod.name), "{pods}");
    }
    Ok(())
}

#[test]
fn pods_of_three_nodes_reach_each_other_in_both_families() -> Result<()> {
    pods_reach_each_other("kube-dual", 3, Families::Dual, Families::Dual)
}

#[test]
fn pods_of_an_ipv4_cluster_reach_each_other() -> Result<()> {
    pods_reach_each_other("kube-v4", 2, Families::Ipv4, Families::Ipv4)
}

#[test]
fn pods_of_a_cluster_without_ipv4_reach_each_other() -> Result<()> {
    pods_reach_each_other("kube-v6", 2, Families::Ipv6, Families::Ipv6)
}

#[test]
fn a_node_without_subnets_waits_and_says_so_until_it_has_some() -> Result<()> {
    let (mut cluster, api, options) = prepare("kube-no-cidr", Options { nodes: 1, ..Options::default() })?;
    let late = cluster.underlay().addresses(1);
    api.server().create_node(&node_spec("node1", &[], &late))?;
    cluster.start_agents()?;
    let number = cluster.add_node()?;
    cluster.member_mut(number).spawn_agent()?;
    let member = cluster.member(number);
    member.serves()?;
    let mut status = Value::Null;
    let waits = wait_for(AT_LAST, || {
        status = member.agent().and_then(|agent| agent.get_json("/v1/status")).unwrap_or_default();
        status["store"]["state"] == "refused"
    });
    assert!(waits && status["store"]["why"].to_string().contains("podCIDR"), "{status}");
    api.says_unavailable("node1", "True", UNTIL_TOLD)?;
    api.tells("node1", "podCIDR", AT_LAST)?;
    // The configuration that a runtime has from before: the agent wrote none yet.
    let config = cluster.member(0).network()?;
    let asked = PluginCall::new("podwire", "STATUS").stdin(&config).run(member.node())?;
    let (code, why) = asked.error()?;
    assert!(code == 50 && why.contains("podCIDR"), "{code}: {why}");

    let cidrs = subnets(options.pods, 1);
    api.server().patch_node("node1", &json!({"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}))?;
    cluster.member_mut(number).agent_mut()?.wait_until_ready(AT_LAST)?;
    api.says_unavailable("node1", "False", AT_LAST)?;
    let (one, other) = (cluster.pod(0, "a")?, cluster.pod(number, "b")?);
    let reach = wait_for(AT_LAST, || cluster.assert_reach(&one, &other).is_ok());
    if reach { Ok(()) } else { cluster.assert_reach(&one, &other) }
}

#[test]
fn cordoned_and_control_plane_nodes_stay_peers_and_a_drained_one_goes_with_its_node() -> Result<()> {
    let (mut scene, api, _) = scene("kube-drain", Options { nodes: 3, ..Options::default() })?;
    let before = scene.cluster.member(0).dataplane()?;
    let role = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {
        "taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]}});
    api.server().patch_node("node1", &role)?;
    for cordoned in [true, false, true] {
        let taints = if cordoned {
            json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])
        } else {
            Value::Null
        };
        api.server().patch_node("node2", &json!({"spec": {"unschedulable": cordoned, "taints": taints}}))?;
    }
    scene.assert_steady()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, before);

    // Drained: its pods went elsewhere, then its agent; it may come back.
    let gone = scene.cluster.pod(2, "last")?;
    gone.delete()?;
    scene.cluster.member_mut(2).stop_agent()?;
    scene.assert_steady()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, before);
    api.server().delete_node("node2")?;
    for number in [0, 1] {
        scene.cluster.member(number).wait_for(AT_LAST, ROUTES, |out| out.lines().count() == 2)?;
    }
    scene.all_good()
}

#[test]
fn a_node_deleted_and_made_again_under_its_name_is_the_new_one_in_either_order() -> Result<()> {
    let (mut scene, api, options) = scene("kube-again", Options::default())?;
    let mut old = scene.cluster.underlay().addresses(1);
    for (round, order) in ["Node first", "machine first", "Node kept away"].into_iter().enumerate() {
        let host = 130 + round as u16;
        let new = scene.cluster.underlay().in_subnet(0, host);
        // Other subnets than before.
        let number = 20 + round as u16;
        let register = |api: &ControlPlane| {
            api.server().create_node(&node_spec("node1", &subnets(options.pods, number), &new))
        };
        scene.cluster.member_mut(1).kill_agent()?;
        match order {
            "Node first" => {
                api.server().delete_node("node1")?;
                register(&api)?;
                scene.cluster.make_again(1, &old, &new)?;
                scene.cluster.member_mut(1).spawn_agent()?;
            }
            "machine first" => {
                // It finds the Node of the machine before it, and then another one.
                scene.cluster.make_again(1, &old, &new)?;
                scene.cluster.member_mut(1).spawn_agent()?;
                scene.cluster.member(1).serves()?;
                api.server().delete_node("node1")?;
                register(&api)?;
            }
            _ => {
                api.server().delete_node("node1")?;
                scene.cluster.member(0).wait_for(AT_LAST, ROUTES, |out| out.is_empty())?;
                scene.cluster.make_again(1, &old, &new)?;
                scene.cluster.member_mut(1).spawn_agent()?;
                register(&api)?;
            }
        }
        let wanted = subnets(options.pods, number);
        let mut has = Vec::new();
        let agent = scene.cluster.member(1);
        let joined = wait_for(UNTIL_TOLD, || {
            has = agent.agent().and_then(|agent| agent.subnets()).unwrap_or_default();
            has.iter().collect::<BTreeSet<_>>() == wanted.iter().collect()
        });
        assert!(joined, "{order}: {has:?} and not {wanted:?}: {}", agent.agent()?.log());
        scene.cluster.member_mut(1).agent_mut()?.wait_until_ready(AT_LAST)?;
        scene.cluster.sends_only_to(0, scene.device, new[0]).map_err(LabError::because(order))?;
        let pod = scene.cluster.pod(1, &format!("new-{round}"))?;
        let reach = wait_for(AT_LAST, || scene.cluster.assert_reach(&scene.pods[0], &pod).is_ok());
        assert!(reach, "{order}: {}; {}", scene.log(), scene.cluster.member(1).agent()?.log());
        // The way to the subnets of the one before is gone.
        let routes = scene.cluster.member(0).sh(ROUTES)?.out();
        assert_eq!(routes.lines().count(), wanted.len(), "{order}: {routes}");
        assert!(wanted.iter().all(|subnet| routes.contains(subnet.as_str())), "{order}: {routes}");
        old = new;
    }
    Ok(())
}

#[test]
fn a_subnet_given_to_another_node_before_the_old_one_is_deleted_is_the_new_ones() -> Result<()> {
    let (mut cluster, api, options) = prepare("kube-reuse", Options::default())?;
    cluster.start_agents()?;
    let stays = cluster.pod(0, "stays")?;
    cluster.member_mut(1).kill_agent()?;
    cluster.member(1).sh("ip link del podwire.1; ip link del podwire0")?;
    // The third node is made with the second one's subnets while that one's Node is there.
    let reused = subnets(options.pods, 1);
    let addresses = cluster.underlay().addresses(2);
    api.server().create_node(&node_spec("node2", &reused, &addresses))?;
    let new = cluster.add_node()?;
    cluster.member_mut(new).spawn_agent()?;
    cluster.member(new).serves()?;
    api.server().delete_node("node1")?;
    cluster.member_mut(new).agent_mut()?.wait_until_ready(AT_LAST)?;
    cluster.sends_only_to(0, "podwire.1", addresses[0])?;
    let pod = cluster.pod(new, "heir")?;
    let reach = wait_for(AT_LAST, || cluster.assert_reach(&stays, &pod).is_ok());
    assert!(reach, "{}", cluster.member(0).agent()?.log());
    Ok(())
}

#[test]
fn a_node_with_other_addresses_is_followed_and_an_annotation_goes_before_them() -> Result<()> {
    let (mut scene, api, _) = scene("kube-address", Options::default())?;
    let cluster = &scene.cluster;
    let (old, new) = (cluster.underlay().addresses(1), cluster.underlay().in_subnet(0, 140));
    cluster.renumber(1, &old, &new)?;
    let internal = |addresses: &[IpAddr]| {
        let mut list = vec![json!({"$patch": "replace"}), json!({"type": "Hostname", "address": "node1"})];
        list.extend(addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})));
        json!({"status": {"addresses": list}})
    };
    api.server().patch_node_status("node1", &internal(&new))?;
    cluster.sends_only_to(0, "podwire.1", new[0])?;
    scene.all_flow()?;
    println!("a node's new address, told by the API: {}", scene.flows.worst());
    scene.assert_steady()?;

    // Two of each family: the first counts, whatever stands behind it, and an administrator has the last word.
    let more = scene.cluster.underlay().in_subnet(0, 141);
    for address in &more {
        scene.cluster.member(1).uplink().add_address(*address)?;
    }
    let both: Vec<IpAddr> = new.iter().chain(&more).copied().collect();
    api.server().patch_node_status("node1", &internal(&both))?;
    scene.assert_steady()?;
    scene.cluster.sends_only_to(0, "podwire.1", new[0])?;
    let chosen = more.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let annotate = |value: Value| json!({"metadata": {"annotations": {"podwire.dev/addresses": value}}});
    api.server().patch_node("node1", &annotate(json!(chosen)))?;
    scene.cluster.sends_only_to(0, "podwire.1", more[0])?;
    scene.assert_steady()?;
    api.server().patch_node("node1", &annotate(Value::Null))?;
    scene.cluster.sends_only_to(0, "podwire.1", new[0])?;
    scene.assert_steady()
}

/// Somebody else's device takes the VNI and the port: nothing that an agent may repair.
fn take_the_vni_away(cluster: &mut Cluster, number: usize) -> Result<()> {
    // It would be first otherwise.
    cluster.member_mut(number).agent_mut()?.signal(Signal::SIGSTOP)?;
    cluster
        .member(number)
        .sh("ip link del podwire.1; ip link add foreign type vxlan id 1 dstport 8472 dev eth0")?;
    cluster.member_mut(number).agent_mut()?.signal(Signal::SIGCONT)?;
    let waits = |status: &str| status.contains("foreign");
    cluster.member(number).wait_for(AT_LAST, "cat /run/podwire/podwire/node.json", waits).map(drop)
}

#[test]
fn a_node_that_is_not_ready_is_marked_and_told_of_and_unmarked() -> Result<()> {
    let (mut scene, api, _) = scene("kube-condition", Options::default())?;
    for member in scene.cluster.members() {
        let reason = api.says_unavailable(member.name(), "False", AT_LAST)?;
        assert_eq!(reason, "PodwireReady");
    }
    // What passes by itself keeps no pods away, also where all was well for longer than is waited then.
    let since = |api: &ControlPlane| {
        let condition = api.server().condition("node1", UNAVAILABLE).unwrap_or_default();
        condition["lastTransitionTime"].clone()
    };
    let before = since(&api);
    wait_for(Duration::from_secs(17), || false);
    take_the_vni_away(&mut scene.cluster, 1)?;
    let hasty = wait_for(Duration::from_secs(3), || api.condition("node1", UNAVAILABLE).0 != "False");
    assert!(!hasty, "{}", scene.cluster.member(1).agent()?.log());
    scene.cluster.member(1).sh("ip link del foreign")?;
    scene.settle()?;
    assert_eq!((api.condition("node1", UNAVAILABLE).0.as_str(), since(&api)), ("False", before));

    take_the_vni_away(&mut scene.cluster, 1)?;
    let reason = api.says_unavailable("node1", "True", UNTIL_TOLD)?;
    assert_ne!(reason, "PodwireReady");
    assert_eq!(api.condition("node0", UNAVAILABLE).0, "False");
    api.tells("node1", "foreign", UNTIL_TOLD)?;
    scene.cluster.member(1).sh("ip link del foreign")?;
    api.says_unavailable("node1", "False", UNTIL_TOLD)?;
    scene.all_flow()?;
    // What the API is told is little: an agent that is well writes nothing.
    api.server().forget_requests();
    wait_for(Duration::from_secs(12), || false);
    let writes: Vec<_> =
        api.server().requests().into_iter().filter(|request| request.verb == "patch").collect();
    assert!(writes.is_empty(), "{writes:?}");
    Ok(())
}
