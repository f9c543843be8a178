//! What administrators do to a cluster that meets in etcd: other settings, a node taken out, a node that leaves, and the
//! front page's way to three machines.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use podwire_netns_tests::cluster::{AT_LAST, Cluster, Member, Options, Scene, Store};
use podwire_netns_tests::etcd::{Etcd, EtcdOptions};
use podwire_netns_tests::podwired::Podwired;
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Result, program, wait_for};

/// Presence ends that long after its agent was killed, and a little.
const UNTIL_ABSENT: Duration = Duration::from_secs(45);

/// In how much time anything here is done, on any machine.
const LIMIT: Duration = Duration::from_secs(40);

/// Runs `podwirectl`, which must do it; what it says.
fn ctl(member: &Member, args: &[&str]) -> Result<String> {
    Ok(member.podwirectl(args)?.success(&format!("podwirectl {}", args.join(" ")))?.out())
}

#[test]
fn settings_change_and_nodes_go_by_podwirectl_without_loss() -> Result<()> {
    let lab = Lab::new("commands")?;
    let underlay = Underlay::new(Families::Ipv4, Layout::Flat)?;
    let etcd = Etcd::start(&lab, &underlay, &EtcdOptions { members: 1, ..EtcdOptions::default() })?;
    let options = Options {
        nodes: 3,
        underlay: Families::Ipv4,
        store: Store::Settings(etcd.agent_settings("")),
        ..Options::default()
    };
    let mut cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
    cluster.start_agents()?;
    let third = cluster.pod(2, "c")?;
    let mut scene = Scene::of(cluster)?;

    // Another port: each node receives both until all have the new one.
    ctl(scene.cluster.member(1), &["cluster", "set", "encapsulation.port=4789"])?;
    for member in scene.cluster.members() {
        member.wait_for(AT_LAST, "ip -4 route show proto 112; ip -6 route show proto 112", |out| {
            out.lines().count() == 4 && out.lines().all(|route| route.contains("dev pw4.1.12b5"))
        })?;
        member.wait_for(AT_LAST, "ip -o link show type vxlan", |out| out.lines().count() == 1)?;
        assert!(ctl(member, &["cluster", "show"])?.contains("4789"));
    }
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    scene.cluster.assert_reach(&third, &scene.pods[0])?;

    // A node that does not come back. As long as it is there, it is not taken out by mistake.
    let refused = scene.cluster.member(0).podwirectl(&["node", "rm", "node2"])?;
    assert!(
        !refused.status.success() && refused.err().contains("is present"),
        "{}{}",
        refused.out(),
        refused.err()
    );
    scene.cluster.member_mut(2).kill_agent()?;
    let here = scene.cluster.member(0);
    let mut said = String::new();
    let removed = wait_for(UNTIL_ABSENT, || match here.podwirectl(&["node", "rm", "node2"]) {
        Ok(done) => {
            said = done.out() + &done.err();
            done.status.success()
        }
        Err(_) => false,
    });
    assert!(removed, "{said}; {}", scene.log());
    let nodes = || etcd.keys("/podwire/v1/nodes/");
    assert_eq!(nodes()?, ["/podwire/v1/nodes/node0", "/podwire/v1/nodes/node1"]);
    here.wait_for(AT_LAST, "ip -4 route show proto 112", |out| out.lines().count() == 1)?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;

    // A node that goes for good: not with pods, unless told so.
    let leaves = scene.cluster.member(1);
    let refused = leaves.podwirectl(&["node", "leave"])?;
    assert!(
        !refused.status.success() && refused.err().contains("--force"),
        "{}{}",
        refused.out(),
        refused.err()
    );
    let Scene { flows, pods, mut cluster, .. } = scene;
    drop(flows);
    let [stays, goes] = pods;
    goes.delete()?;
    ctl(cluster.member(1), &["node", "leave"])?;
    assert_eq!(nodes()?, ["/podwire/v1/nodes/node0"]);
    cluster.member(0).wait_for(AT_LAST, "ip -4 route show proto 112", |out| out.is_empty())?;
    assert_eq!(cluster.member(1).try_pod("refused")?.error()?.0, 11);
    let log = cluster.member(1).agent()?.log();
    assert!(!log.contains("1 other nodes left nodes=\"node1\""), "it is this one itself: {log}");
    // Until its agent is started again.
    cluster.member_mut(1).kill_agent()?;
    cluster.member_mut(1).start_agent()?;
    let back = cluster.pod(1, "back")?;
    let reach = wait_for(AT_LAST, || cluster.assert_reach(&back, &stays).is_ok());
    if reach { Ok(()) } else { Err(LabError::new(cluster.member(1).agent()?.log())) }
}

/// The block of commands below that heading of the front page.
fn front_page(heading: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(path).map_err(LabError::because("read README.md"))?;
    let block = text.split_once(heading).and_then(|(_, rest)| rest.split("```").nth(1));
    block
        .map(str::to_owned)
        .ok_or_else(|| LabError::new(format!("README.md has no commands below {heading:?}")))
}

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Word for word, but for what needs systemd and packages: etcd is started with the file that its unit reads.
#[test]
fn three_machines_meet_in_etcd_as_the_front_page_says() -> Result<()> {
    let commands = front_page("## Three machines with etcd in a dozen lines")?;
    let lines: Vec<&str> = commands.trim().lines().collect();
    let at = |what: &str| {
        let found = lines.iter().position(|line| line.contains(what));
        found.ok_or_else(|| LabError::new(format!("README.md says nothing of {what}")))
    };
    let (install, etcd, check) = (at("make install")?, at("restart etcd")?, at("podwired check")?);
    assert_eq!((install, check), (0, lines.len() - 1));
    let lab = Lab::new("front-page")?;
    let underlay = Underlay::new(Families::Ipv4, Layout::Flat)?;
    let mut machines = Vec::new();
    for number in 0..3_u8 {
        let node = lab.node_with(&format!("m{number}"), &NodeOptions::default())?;
        let uplink = underlay.attach(&node, number)?;
        machines.push((node, uplink));
    }
    let addresses: Vec<String> = (0..3).map(|number| underlay.addresses(number)[0].to_string()).collect();
    // Its addresses are the lab's here, and each machine has its own and its own name.
    let script = |part: &[&str], number: usize| {
        let mut text = part.join("\n");
        text = text.replace("me=10.0.0.1 ", &format!("me={} ", addresses[number]));
        text = text.replace(" name=a ", &format!(" name={} ", ["a", "b", "c"][number]));
        for (at, address) in addresses.iter().enumerate() {
            text = text.replace(&format!("10.0.0.{}", at + 1), address);
        }
        format!("set -e; mkdir -p /etc/default /etc/podwire /var/lib/etcd;\n{text}\n")
    };
    let mut etcds = Vec::new();
    for (number, (node, _)) in machines.iter().enumerate() {
        let sh = |script: &str| node.run("sh", &["-c", script])?.success(script);
        sh(&script(&lines[install + 1..etcd], number))?;
        sh(&script(&lines[etcd + 1..check], number))?;
        let unit = "set -a; . /etc/default/etcd; exec /usr/bin/etcd >/run/etcd.log 2>&1";
        etcds.push(Running(node.spawn(program("sh").args(["-c", unit]))?));
    }
    let name = |number: usize| format!("node_name=m{number}");
    let mut agents = Vec::new();
    for (number, (node, _)) in machines.iter().enumerate() {
        let name = name(number);
        let mut check = program(Node::dist("podwired"));
        let check = node.run_with(check.args(["check", "--set", &name]), b"", LIMIT)?;
        check.success("podwired check")?;
        agents.push(Podwired::spawn(node, &["--set", &name])?);
    }
    for (agent, (node, _)) in agents.iter_mut().zip(&machines) {
        agent.wait_until_ready(LIMIT).map_err(|error| {
            LabError::new(format!("{error:?}; etcd: {}", node.read("/run/etcd.log").unwrap_or_default()))
        })?;
    }
    for (node, _) in &machines {
        assert!(node.path("/etc/cni/net.d/10-podwire.conflist").exists());
        let ctl = |args: &[&str]| node.run_with(program(Node::dist("podwirectl")).args(args), b"", LIMIT);
        let mut shown = String::new();
        // With all three there, and reached by probes.
        let all = wait_for(AT_LAST, || {
            shown = ctl(&["nodes"]).map(|done| done.out()).unwrap_or_default();
            ["m0", "m1", "m2"].iter().all(|name| shown.contains(name))
        });
        assert!(all, "{shown}");
        ctl(&["status"])?.success("podwirectl status")?;
    }
    Ok(())
}
