//! The agent dies, freezes, is replaced by another version, misses events, or is told another time, while packets flow.

use std::time::Duration;

use nix::sys::signal::Signal;
use podwire_netns_tests::cluster::{AT_LAST, AT_ONCE, Scene};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Result, wait_for};
use serde_json::Value;

const CLUSTER: &str = "/var/lib/podwire/cluster.json";
const NODE: &str = "/run/podwire/podwire/node.json";

#[test]
fn agent_killed_and_started_again_loses_no_packet() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("agent-killed", underlay)?;
        for number in [0, 1, 0, 1] {
            scene.cluster.member_mut(number).kill_agent()?;
            scene.all_flow()?;
            scene.cluster.member_mut(number).start_agent()?;
            scene.all_flow()?;
        }
        // Killed in the middle of its start, at one moment and another.
        for pause in [1, 3, 10, 20, 40, 80] {
            scene.cluster.member_mut(0).kill_agent()?;
            scene.cluster.member_mut(0).spawn_agent()?;
            wait_for(Duration::from_millis(pause), || false);
        }
        scene.cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
        scene.all_flow()?;
        scene.flows.assert_none_lost()?;
        assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    }
    Ok(())
}

#[test]
fn agent_stopped_lets_traffic_and_pods_go_on() -> Result<()> {
    let mut scene = Scene::new("agent-stopped", Families::Dual)?;
    scene.cluster.member_mut(0).stop_agent()?;
    scene.cluster.member_mut(1).stop_agent()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    // Pods come and go without it, and reach the others.
    let pod = scene.cluster.pod(0, "without-agent")?;
    scene.cluster.assert_reach(&pod, &scene.pods[1])?;
    pod.delete()?;
    scene.cluster.start_agents()?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()
}

#[test]
fn agent_of_another_version_finds_state_of_an_older_and_of_a_newer_format() -> Result<()> {
    let mut scene = Scene::new("agent-upgraded", Families::Dual)?;
    let read = |scene: &Scene, path: &str| -> Result<Value> {
        serde_json::from_str(&scene.cluster.member(0).node().read(path)?).map_err(LabError::because(path))
    };
    let cluster = read(&scene, CLUSTER)?;
    let node = read(&scene, NODE)?;
    let with = |value: &Value, change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut value = value.clone();
        if let Some(object) = value.as_object_mut() {
            change(object);
        }
        value.to_string()
    };
    // A newer version says more; a future one counts on and means something else; an older one said less; a disk lost half.
    let newer = |object: &mut serde_json::Map<String, Value>| {
        object.insert("notInvented".to_owned(), Value::from(vec![1, 2, 3]));
    };
    let future = |object: &mut serde_json::Map<String, Value>| {
        for key in ["version", "schema", "format"] {
            object.insert(key.to_owned(), Value::from(4_000_000_000_u32));
        }
    };
    let older = |object: &mut serde_json::Map<String, Value>| {
        object.remove("mark");
        object.remove("generation");
        object.remove("clusterRanges");
    };
    let texts = |value: &Value| {
        let whole = value.to_string();
        [
            with(value, &newer),
            with(value, &future),
            with(value, &older),
            whole[..whole.len() / 2].to_owned(),
            String::new(),
            "[]".to_owned(),
        ]
    };
    for (cluster, node) in texts(&cluster).into_iter().zip(texts(&node)) {
        let what = format!("{cluster} and {node}");
        scene.cluster.member_mut(0).kill_agent()?;
        scene.cluster.member(0).node().write(CLUSTER, &cluster)?;
        scene.cluster.member(0).node().write(NODE, &node)?;
        scene.cluster.member_mut(0).start_agent().map_err(LabError::because(what.clone()))?;
        scene.all_flow()?;
        scene.flows.assert_none_lost().map_err(LabError::because(what.clone()))?;
        assert_eq!(scene.cluster.member(0).dataplane()?, scene.before, "{what}");
        // What is written now is of this version, and pods start by it.
        scene.cluster.pod(0, "")?.delete()?;
    }
    Ok(())
}

#[test]
fn agent_starts_with_what_it_remembers_when_the_store_is_down() -> Result<()> {
    let mut scene = Scene::new("agent-remembers", Families::Dual)?;
    let member = scene.cluster.member_mut(0);
    member.kill_agent()?;
    // No peers file, and the kernel has lost everything: as after a reboot with the store down.
    member
        .sh("mv /etc/podwire/peers.toml /etc/podwire/elsewhere; ip link del podwire.1; nft flush ruleset")?;
    member.spawn_agent()?;
    scene.all_flow()?;
    println!("no store, no device: {}", scene.flows.worst());
    scene.cluster.pod(0, "with-store-down")?.delete()?;
    let (code, why) = scene.cluster.member(0).agent()?.get("/readyz")?;
    assert_eq!(code, 503, "{why}");
    scene.cluster.member(0).sh("mv /etc/podwire/elsewhere /etc/podwire/peers.toml")?;
    scene.cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
    scene.comes_back("store found", AT_LAST)?;
    Ok(())
}

#[test]
fn agent_that_was_frozen_reads_everything_again() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("agent-frozen", underlay)?;
        let device = scene.device;
        scene.cluster.member_mut(0).agent_mut()?.signal(Signal::SIGSTOP)?;
        scene.all_flow()?;
        scene.flows.assert_none_lost()?;
        scene.cluster.member(0).sh(&format!("ip link del {device}; nft delete table inet podwire-node"))?;
        assert!(!scene.flows.0[0].flows(20, Duration::from_millis(200)), "a frozen agent repairs");
        scene.cluster.member_mut(0).agent_mut()?.signal(Signal::SIGCONT)?;
        scene.comes_back("frozen", AT_LAST)?;
    }
    Ok(())
}

#[test]
fn events_that_were_lost_lead_to_a_full_look() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("enobufs", underlay)?;
        let device = scene.device;
        scene.cluster.member_mut(0).agent_mut()?.signal(Signal::SIGSTOP)?;
        // More than any socket's buffer holds, of each kind; what matters is somewhere in the middle and leaves no trace
        // in what can still be read.
        scene.cluster.member(0).sh(&format!(
            "ip link add noise0 type bridge
             batch() {{ for i in $(seq 1 250); do for j in $(seq 1 60); do echo \"route $1 203.$((i / 250)).$i.$j dev lo\"; done; done | ip -force -batch -; }}
             batch add
             ip -4 route flush proto 112; ip -6 route flush proto 112; bridge fdb flush dev {device} 2>/dev/null || true
             batch del
             ip link del noise0"
        ))?;
        scene.cluster.member_mut(0).agent_mut()?.signal(Signal::SIGCONT)?;
        scene.comes_back("events lost", AT_LAST)?;
        let overruns = scene.cluster.member(0).agent()?.metric("podwire_passes_total", "overrun")?;
        println!("{device}: {overruns} passes because events were lost");
        // And again at an event, as ever.
        scene.break_and_repair("ip -4 route flush proto 112", AT_ONCE)?;
    }
    Ok(())
}

/// What a namespace can do about time: CLOCK_MONOTONIC and CLOCK_BOOTTIME differ from the machine's by an amount that is set
/// when a process starts. They never jump while it runs, on no machine. CLOCK_REALTIME is the machine's alone: it cannot be
/// set here without setting the machine's, so that what reads it (ages in logs and status) is not tried.
#[test]
fn clocks_that_stepped_between_two_starts_change_nothing() -> Result<()> {
    let mut scene = Scene::new("clocks", Families::Dual)?;
    for seconds in ["8640000", "60", "31536000"] {
        scene.cluster.member_mut(0).kill_agent()?;
        let boot = format!("--boottime={seconds}");
        let monotonic = format!("--monotonic={seconds}");
        let wrapper = ["/usr/bin/unshare", "--time", "--fork", "--kill-child=KILL", &boot, &monotonic];
        scene.cluster.member_mut(0).start_agent_under(&wrapper)?;
        scene.all_flow()?;
        scene.flows.assert_none_lost()?;
        assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
        scene.break_and_repair("ip link set $device down", AT_ONCE)?;
        scene.cluster.pod(0, "")?.delete()?;
    }
    // Back in the past.
    scene.cluster.member_mut(0).kill_agent()?;
    scene.cluster.member_mut(0).start_agent()?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    scene.break_and_repair("ip link set $device down", AT_ONCE).map(drop)
}

#[test]
fn a_node_that_was_rebooted_has_its_subnet_and_its_peers_again() -> Result<()> {
    let options = podwire_netns_tests::cluster::Options { reboots: true, ..Default::default() };
    let mut cluster = podwire_netns_tests::cluster::Cluster::start("reboot", &options)?;
    let before = cluster.member(0).dataplane()?;
    let other = cluster.pod(1, "b")?;
    let pod = cluster.pod(0, "a")?;
    cluster.assert_reach(&pod, &other)?;
    drop(pod);
    cluster.reboot(0)?;
    cluster.member_mut(0).start_agent()?;
    assert_eq!(cluster.member(0).dataplane()?, before);
    let pod = cluster.pod(0, "a")?;
    cluster.assert_reach(&pod, &other)
}

#[test]
fn cleanup_leaves_the_node_as_it_was() -> Result<()> {
    let scene = Scene::new("cleanup", Families::Dual)?;
    let Scene { flows, pods: [a, b], mut cluster, .. } = scene;
    drop(flows);
    a.delete()?;
    b.delete()?;
    let member = cluster.member_mut(0);
    member.stop_agent()?;
    let podwired = podwire_netns_tests::Node::dist("podwired");
    member.sh(&format!("{} cleanup", podwired.display()))?;
    assert_eq!(member.node().links()?, ["eth0"]);
    let left = member
        .sh("ip route show proto 112; ip -6 route show proto 112; nft list ruleset; ls /etc/cni/net.d")?
        .out();
    assert_eq!(left.trim(), "", "left behind");
    // Twice is no error.
    member.sh(&format!("{} cleanup", podwired.display()))?;
    // And it can start again.
    member.start_agent()?;
    let (a, b) = (cluster.pod(0, "a")?, cluster.pod(1, "b")?);
    cluster.assert_reach(&a, &b)
}
