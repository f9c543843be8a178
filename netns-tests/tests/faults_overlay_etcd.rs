//! Nodes that meet in etcd, and what becomes of etcd: gone, without its leader, set back, emptied, full of nonsense.
//! Packets between pods go on, and no two nodes have one subnet.

use std::collections::BTreeSet;
use std::time::Duration;

use podwire_netns_tests::cluster::{AT_LAST, Cluster, Options, Scene, Store};
use podwire_netns_tests::etcd::{Etcd, EtcdOptions};
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, Result, wait_for};
use serde_json::{Value, json};

const KEYS: &str = "/podwire/v1/";

/// Nodes of a cluster, and the etcd that they meet in.
struct WithEtcd {
    scene: Scene,
    etcd: Etcd,
}

fn prepare(name: &str, members: u8, options: &Options) -> Result<(Cluster, Etcd)> {
    let lab = Lab::new(name)?;
    let underlay = Underlay::new(Families::Dual, Layout::Flat)?;
    let etcd = Etcd::start(&lab, &underlay, &EtcdOptions { members, ..EtcdOptions::default() })?;
    let options = Options { store: Store::Settings(etcd.agent_settings("")), ..options.clone() };
    Ok((Cluster::prepare_on(&lab, &underlay, &options)?, etcd))
}

impl WithEtcd {
    fn new(name: &str, members: u8) -> Result<Self> {
        let (mut cluster, etcd) = prepare(name, members, &Options::default())?;
        cluster.start_agents()?;
        Ok(Self { scene: Scene::of(cluster)?, etcd })
    }

    fn subnets(&self) -> Result<Vec<Vec<String>>> {
        self.scene.cluster.subnets()
    }

    fn all_good(&mut self) -> Result<()> {
        self.scene.all_good()
    }
}

#[test]
fn etcd_down_for_the_whole_of_an_agents_restart_costs_nothing() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-down", 1)?;
    lab.scene.outlives_the_store(&mut lab.etcd)
}

#[test]
fn etcds_leader_killed_again_and_again_costs_nothing() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-leader", 3)?;
    let before = lab.subnets()?;
    for _ in 0..2 {
        let leader = lab.etcd.leader()?;
        lab.etcd.kill(leader)?;
        // Who comes while there is no leader, or another one, gets in.
        let new = lab.scene.cluster.add_node()?;
        lab.scene.cluster.member_mut(new).start_agent()?;
        let pod = lab.scene.cluster.pod(new, "p")?;
        lab.scene.cluster.assert_reach(&pod, &lab.scene.pods[0])?;
        lab.etcd.start_again()?;
    }
    let all: Vec<_> = lab.subnets()?.concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 8, "{all:?}");
    assert_eq!(lab.subnets()?[..2], before);
    lab.all_good()
}

#[test]
fn etcd_restored_from_an_old_backup_gets_its_claims_again() -> Result<()> {
    let (mut cluster, etcd) = prepare("etcd-backup", 1, &Options::default())?;
    cluster.member_mut(0).start_agent()?;
    // Of the time before there was a second node.
    etcd.back_up("old")?;
    cluster.start_agents()?;
    let mut lab = WithEtcd { scene: Scene::of(cluster)?, etcd };
    let before = lab.subnets()?;
    let keys: BTreeSet<_> = lab.etcd.keys(&format!("{KEYS}subnets/"))?.into_iter().collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    lab.etcd.restore("old")?;
    let again = wait_for(Duration::from_secs(40), || {
        lab.etcd
            .keys(&format!("{KEYS}subnets/"))
            .is_ok_and(|now| now.into_iter().collect::<BTreeSet<_>>() == keys)
    });
    assert!(again, "{:?}; the log is\n{}", lab.etcd.keys("/")?, lab.scene.log());
    lab.all_good()?;
    assert_eq!(lab.subnets()?, before);
    assert_eq!(lab.scene.cluster.member(0).dataplane()?, lab.scene.before);
    // Emptied altogether: the same.
    lab.etcd.wipe()?;
    let again = wait_for(Duration::from_secs(40), || {
        lab.etcd
            .keys(&format!("{KEYS}subnets/"))
            .is_ok_and(|now| now.into_iter().collect::<BTreeSet<_>>() == keys)
    });
    assert!(again, "{:?}; the log is\n{}", lab.etcd.keys("/")?, lab.scene.log());
    lab.all_good()?;
    assert_eq!(lab.subnets()?, before);
    Ok(())
}

#[test]
fn a_node_cut_off_from_etcd_and_peers_has_its_subnets_when_it_is_back() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-isolated", 1)?;
    let before = lab.subnets()?;
    lab.scene.cluster.member(1).uplink().cut()?;
    // Longer than a node is present without a sign of life.
    let absent = wait_for(Duration::from_secs(60), || {
        lab.etcd.keys(&format!("{KEYS}presence/")).is_ok_and(|keys| keys.len() == 1)
    });
    assert!(absent, "{:?}", lab.etcd.keys("/")?);
    // Not present, and a member: everybody keeps its routes.
    assert_eq!(lab.scene.cluster.member(0).dataplane()?, lab.scene.before);
    lab.scene.cluster.member(1).uplink().heal()?;
    lab.scene.settle()?;
    let present =
        wait_for(AT_LAST, || lab.etcd.keys(&format!("{KEYS}presence/")).is_ok_and(|keys| keys.len() == 2));
    assert!(present, "{:?}", lab.etcd.keys("/")?);
    assert_eq!(lab.subnets()?, before);
    lab.all_good()
}

#[test]
fn rule_05_the_same_identity_gets_the_same_subnet_after_a_reboot() -> Result<()> {
    let (mut cluster, _etcd) = prepare("rule-05", 1, &Options { reboots: true, ..Options::default() })?;
    cluster.start_agents()?;
    let before = cluster.member(0).agent()?.subnets()?;
    let peer = cluster.pod(1, "b")?;
    for in_order in [true, false] {
        if in_order {
            cluster.member_mut(0).stop_agent()?;
        } else {
            cluster.member_mut(0).kill_agent()?;
        }
        cluster.reboot(0)?;
        // A dead boot's presence lasts until it runs out; this machine's next boot need not wait for it.
        cluster.member_mut(0).spawn_agent()?;
        cluster.member_mut(0).agent_mut()?.wait_until_ready(Duration::from_secs(60))?;
        assert_eq!(cluster.member(0).agent()?.subnets()?, before);
        let pod = cluster.pod(0, "a")?;
        cluster.assert_reach(&pod, &peer)?;
    }
    Ok(())
}

#[test]
fn a_cloned_machine_is_refused() -> Result<()> {
    let mut lab = WithEtcd::new("clone", 1)?;
    let before = lab.subnets()?;
    let clone = lab.scene.cluster.add_node()?;
    let identity = lab.scene.cluster.member(0).node().read("/var/lib/podwire/identity.json")?;
    let configuration = lab.scene.cluster.member(0).node().read("/etc/podwire/podwired.toml")?;
    let member = lab.scene.cluster.member_mut(clone);
    member.node().write("/var/lib/podwire/identity.json", identity)?;
    member.node().write("/etc/podwire/podwired.toml", configuration)?;
    // A clone has booted by itself.
    member.node().set_boot_id("11111111-2222-4333-8444-555555555555")?;
    member.spawn_agent()?;
    let refused = wait_for(AT_LAST, || {
        let status = member.agent().and_then(|agent| agent.get_json("/v1/status"));
        status.is_ok_and(|status| status["store"]["state"] == "refused")
    });
    assert!(refused, "{}", member.agent()?.log());
    assert!(member.agent()?.subnets().is_err());
    lab.all_good()?;
    assert_eq!(
        lab.scene.cluster.members()[..2]
            .iter()
            .map(|member| member.agent()?.subnets())
            .collect::<Result<Vec<_>>>()?,
        before
    );
    Ok(())
}

#[test]
fn agents_that_start_at_once_get_different_subnets() -> Result<()> {
    let (mut cluster, _etcd) = prepare("at-once", 1, &Options { nodes: 8, ..Options::default() })?;
    cluster.start_agents()?;
    let mut all = BTreeSet::new();
    for member in cluster.members() {
        all.extend(member.agent()?.subnets()?);
    }
    assert_eq!(all.len(), 16, "{all:?}");
    let (one, other) = (cluster.pod(0, "p")?, cluster.pod(7, "p")?);
    cluster.assert_reach(&one, &other)
}

#[test]
fn rule_14_a_new_address_of_a_node_is_told_to_its_peers() -> Result<()> {
    let mut lab = WithEtcd::new("rule-14", 1)?;
    let before = lab.subnets()?;
    let cluster = &lab.scene.cluster;
    let (old, new) = (cluster.underlay().addresses(1), cluster.underlay().in_subnet(0, 120));
    cluster.renumber(1, &old, &new)?;
    cluster.sends_only_to(0, "podwire.1", new[0])?;
    lab.scene.all_flow()?;
    println!("a node's new address, told by etcd: {}", lab.scene.flows.worst());
    lab.scene.assert_steady()?;
    assert_eq!(lab.subnets()?, before);
    Ok(())
}

#[test]
fn a_node_made_again_with_its_name_and_another_address_takes_its_place() -> Result<()> {
    for order in ["left in order", "killed"] {
        let mut lab = WithEtcd::new("made-again", 1)?;
        let new = lab.scene.cluster.underlay().in_subnet(0, 130);
        let old = lab.scene.cluster.underlay().addresses(1);
        if order == "killed" {
            lab.scene.cluster.member_mut(1).kill_agent()?;
        } else {
            lab.scene.cluster.member_mut(1).stop_agent()?;
        }
        lab.scene.cluster.make_again(1, &old, &new)?;
        lab.scene.cluster.member_mut(1).spawn_agent()?;
        // The old one's presence must run out first where it could not be taken back.
        lab.scene.cluster.member_mut(1).agent_mut()?.wait_until_ready(Duration::from_secs(60))?;
        lab.scene.cluster.sends_only_to(0, "podwire.1", new[0])?;
        let pod = lab.scene.cluster.pod(1, "new")?;
        lab.scene.cluster.assert_reach(&pod, &lab.scene.pods[0]).map_err(LabError::because(order))?;
    }
    Ok(())
}

#[test]
fn a_node_that_is_removed_is_gone_from_its_peers() -> Result<()> {
    let (mut cluster, etcd) = prepare("removed", 1, &Options { nodes: 3, ..Options::default() })?;
    cluster.start_agents()?;
    let mut lab = WithEtcd { scene: Scene::of(cluster)?, etcd };
    let routes = "ip -4 route show proto 112; ip -6 route show proto 112";
    lab.scene.cluster.member_mut(2).stop_agent()?;
    let gone = subnets_of(&lab.etcd, "node2")?;
    assert_eq!(gone.len(), 2, "{gone:?}");
    // Until somebody says so it is only absent.
    assert_eq!(lab.scene.cluster.member(0).sh(routes)?.out().lines().count(), 4);
    let (code, answer) = lab
        .scene
        .cluster
        .member(0)
        .agent()?
        .act(&json!({"removeNode": {"name": "node2", "force": false}}))?;
    assert_eq!(code, 200, "{answer}");
    for number in [0, 1] {
        lab.scene.cluster.member(number).wait_for(AT_LAST, routes, |out| out.lines().count() == 2)?;
    }
    lab.all_good()?;
    // One that is there is not removed by mistake.
    let (code, answer) = lab
        .scene
        .cluster
        .member(0)
        .agent()?
        .act(&json!({"removeNode": {"name": "node1", "force": false}}))?;
    assert_eq!(code, 409, "{answer}");
    lab.all_good()
}

/// The subnets that etcd says a node has.
fn subnets_of(etcd: &Etcd, node: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for key in etcd.keys(&format!("{KEYS}subnets/"))? {
        if etcd.value(&key)?.contains(&format!("\"{node}\"")) {
            all.push(key);
        }
    }
    Ok(all)
}

#[test]
fn a_node_whose_subnet_is_anothers_now_takes_no_more_pods() -> Result<()> {
    let mut lab = WithEtcd::new("fenced", 1)?;
    let own = subnets_of(&lab.etcd, "node1")?;
    for key in &own {
        let value = lab.etcd.value(key)?;
        let stolen = value.replace("\"node1\"", "\"other\"").replace("\"instance\":\"", "\"instance\":\"f");
        assert_ne!(value, stolen);
        lab.etcd.put(key, &stolen)?;
    }
    let member = lab.scene.cluster.member(1);
    let fenced = wait_for(AT_LAST, || {
        let status = member.agent().and_then(|agent| agent.get_json("/v1/status"));
        status.is_ok_and(|status| status["store"]["state"] == "fenced")
    });
    assert!(fenced, "{}", member.agent()?.log());
    // Its pods go on; there are no new ones, and the answer says why and to try again.
    let refused = wait_for(AT_LAST, || member.try_pod("").is_ok_and(|answer| answer.exit() != Some(0)));
    assert!(refused, "{}", member.agent()?.log());
    let (code, message) = member.try_pod("")?.error()?;
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("other"), "{message}");
    let links = lab.scene.pods[1].pod().links()?;
    assert_eq!(links, ["eth0"]);
    // An agent that starts again with etcd down does not forget it.
    lab.etcd.kill_all()?;
    lab.scene.cluster.member_mut(1).kill_agent()?;
    lab.scene.cluster.member_mut(1).spawn_agent()?;
    let member = lab.scene.cluster.member(1);
    member.serves()?;
    let refused = wait_for(AT_LAST, || member.try_pod("").is_ok_and(|answer| answer.exit() != Some(0)));
    assert!(refused, "{}", member.agent()?.log());
    Ok(())
}

#[test]
fn records_of_another_node_that_make_no_sense_harm_nobody() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-hostile", 1)?;
    let own: Value = serde_json::from_str(&lab.etcd.value(&format!("{KEYS}nodes/node1"))?)
        .map_err(LabError::because("read a node's record"))?;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut record = own.clone();
        change(&mut record);
        record.to_string()
    };
    let hostile = [
        String::new(),
        "garbage".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "[".repeat(50_000),
        "\u{1b}[31m\u{1}".to_owned(),
        // etcd takes 1.5 MiB at most.
        format!("{{\"x\": \"{}\"}}", "x".repeat(100_000)),
        with(&|record| record["version"] = json!(99)),
        with(&|record| record["name"] = json!("node0")),
        with(&|record| record["addresses"] = json!(["224.0.0.1"])),
        with(&|record| record["addresses"] = json!(vec!["10.10.9.9"; 10_000])),
        with(&|record| record["subnets"] = json!(["0.0.0.0/0", "::/0"])),
        with(&|record| record["generation"] = json!(u64::MAX)),
        with(&|record| record["claimed"] = json!(0)),
        with(&|record| record["mtu"] = json!(1)),
        with(&|record| record["receives"] = json!([{"vni": 1, "port": 8472, "mac": "ff:ff:ff:ff:ff:ff"}])),
        with(&|record| {
            record["receives"] = json!([{"vni": 99_999_999, "port": 0, "mac": "02:00:00:00:00:01"}])
        }),
        own.to_string(),
    ];
    for (number, value) in hostile.iter().enumerate() {
        for key in [
            "nodes/evil",
            "presence/evil",
            "subnets/10.240.200.0-24",
            "subnets/garbage",
            "nodes/",
            "unknown/key",
        ] {
            // As many at once as there are kinds: one may hide another.
            lab.etcd.put(&format!("{KEYS}{key}{}", if number % 2 == 0 { "" } else { "2" }), value)?;
        }
    }
    // What comes after it is read: a node that joins is seen.
    let new = lab.scene.cluster.add_node()?;
    lab.scene.cluster.member_mut(new).start_agent()?;
    let pod = lab.scene.cluster.pod(new, "p")?;
    lab.scene.cluster.assert_reach(&pod, &lab.scene.pods[0])?;
    lab.all_good()?;
    // An agent that starts with all of it there is not deterred.
    lab.scene.cluster.member_mut(0).kill_agent()?;
    lab.scene.cluster.member_mut(0).start_agent()?;
    lab.all_good()?;
    lab.etcd.etcdctl(&["del", "--prefix", &format!("{KEYS}nodes/evil")])?;
    lab.all_good()
}

#[test]
fn settings_that_make_no_sense_change_nothing() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-config", 1)?;
    let key = format!("{KEYS}config");
    let good = lab.etcd.value(&key)?;
    for bad in ["", "garbage", "{}", "{\"name\": \"other\", \"ranges\": []}", "[]"] {
        lab.etcd.put(&key, bad)?;
        lab.all_good()?;
    }
    lab.etcd.etcdctl(&["del", &key])?;
    lab.all_good()?;
    lab.etcd.put(&key, &good)?;
    let new = lab.scene.cluster.add_node()?;
    lab.scene.cluster.member_mut(new).start_agent()?;
    lab.scene
        .cluster
        .member(0)
        .wait_for(AT_LAST, "ip route show proto 112", |out| out.lines().count() == 2)?;
    lab.all_good()
}

#[test]
fn the_encapsulation_changes_by_itself_once_all_receive_the_new_one() -> Result<()> {
    let mut lab = WithEtcd::new("etcd-encapsulation", 1)?;
    let devices = "ip -o link show type vxlan";
    let before = lab.scene.cluster.member(0).sh(devices)?.out().lines().count();
    let agent = lab.scene.cluster.member(0).agent()?;
    let mut config = agent.get_json("/v1/cluster")?;
    for (vni, port) in [(1, 4789), (5, 4789), (1, 8472)] {
        config["encapsulation"] = json!({"vni": vni, "port": port});
        let (code, answer) = lab.scene.cluster.member(0).agent()?.act(&json!({"configure": config}))?;
        assert_eq!(code, 200, "{answer}");
        for member in lab.scene.cluster.members() {
            let script = format!(
                "device=$(ip -o -d link show type vxlan | grep ' vxlan id {vni} ' | grep ' dstport {port} ' | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/')
                 ip -4 route show proto 112 | grep -q \" dev $device \"; ip -6 route show proto 112 | grep -q \" dev $device \""
            );
            member.wait_for(AT_LAST, &script, |_| true)?;
        }
        lab.all_good().map_err(LabError::because(format!("to VNI {vni}, port {port}")))?;
    }
    for member in lab.scene.cluster.members() {
        member.wait_for(AT_LAST, devices, |out| out.lines().count() == before)?;
    }
    lab.all_good()
}
