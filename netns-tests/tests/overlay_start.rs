//! How the agent starts, what it says of itself while it does, and what it does when it is told to read its configuration.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use podwire_netns_tests::cluster::{AT_LAST, AT_ONCE, Cluster, Member, Options, Scene, Store};
use podwire_netns_tests::etcd::{Etcd, EtcdOptions};
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, LabError, Node, Result, program, wait_for};
use serde_json::Value;

const NODE: &str = "/run/podwire/podwire/node.json";
const CONFLIST: &str = "/etc/cni/net.d/10-podwire.conflist";
const CONFIGURATION: &str = "/etc/podwire/podwired.toml";

/// What the agent answers at a path of its control socket, as soon as it answers at all.
fn answer(member: &Member, path: &str) -> Result<(u16, String)> {
    let mut last = None;
    wait_for(AT_LAST, || {
        last = member.agent().and_then(|agent| agent.get(path)).ok();
        last.is_some()
    });
    let log = || member.agent().map(podwire_netns_tests::podwired::Podwired::log).unwrap_or_default();
    last.ok_or_else(|| LabError::new(format!("nobody answers at {path}; the log is\n{}", log())))
}

fn node_config(member: &Member) -> Result<Value> {
    serde_json::from_str(&member.node().read(NODE)?).map_err(LabError::because(NODE))
}

/// Waits until the agent's log has these words.
fn logs(member: &Member, words: &str) -> Result<()> {
    let log = || member.agent().map(podwire_netns_tests::podwired::Podwired::log).unwrap_or_default();
    match wait_for(AT_LAST, || log().contains(words)) {
        true => Ok(()),
        false => Err(LabError::new(format!("the log says nothing of {words:?}:\n{}", log()))),
    }
}

/// What `/v1/status` says, once that is so.
fn status(member: &Member, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let came = wait_for(AT_LAST, || {
        last = member.agent().and_then(|agent| agent.get_json("/v1/status")).unwrap_or_default();
        is_so(&last)
    });
    match came {
        true => Ok(last),
        false => {
            let log = member.agent()?.log();
            Err(LabError::new(format!("the status is {last:#}; the log is\n{log}")))
        }
    }
}

#[test]
fn a_new_node_tells_plugins_and_runtimes_nothing_before_it_is_ready() -> Result<()> {
    let mut cluster = Cluster::prepare("start-gates", &Options::default())?;
    cluster.member(0).sh("mv /etc/podwire/peers.toml /etc/podwire/elsewhere")?;
    cluster.member_mut(0).spawn_agent()?;
    let member = cluster.member(0);
    let (code, why) = answer(member, "/readyz")?;
    assert_eq!(code, 503, "{why}");
    assert!(why.contains("peers file"), "{why}");
    // It is not ill for that, and serves what it can.
    assert_eq!(answer(member, "/healthz")?.0, 200);
    let status_before = status(member, |status| status["store"]["state"] == "lost")?;
    assert_eq!(
        (&status_before["ready"], &status_before["subnets"]),
        (&Value::from(false), &Value::from([0; 0].to_vec()))
    );
    assert_eq!(member.agent()?.metric("podwire_ready", "")?, 0.0);
    assert!(!member.node().path(NODE).exists() && !member.node().path(CONFLIST).exists());
    assert_eq!(member.node().links()?, ["eth0"], "nothing is made before anything is known");
    member.sh("mv /etc/podwire/elsewhere /etc/podwire/peers.toml")?;
    cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
    let member = cluster.member(0);
    let node = node_config(member)?;
    assert_eq!(node["subnets"], serde_json::json!(["10.240.1.0/24", "fd00:10:244:1::/64"]));
    assert_eq!(node["mtu"], 1450);
    assert!(node["refuse"].is_null() && member.node().path(CONFLIST).exists());
    for file in ["identity.json", "cluster.json"] {
        let mode = member.sh(&format!("stat -c %a /var/lib/podwire/{file}"))?.out();
        assert_eq!(mode.trim(), "600", "{file}");
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_and_started_again_changes_nothing_in_the_kernel() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut cluster = Cluster::start("start-still", &Options { underlay, ..Options::default() })?;
        let _pods = (cluster.pod(0, "a")?, cluster.pod(1, "b")?);
        let before = cluster.member(0).dataplane()?;
        cluster.member_mut(0).kill_agent()?;
        let member = cluster.member(0);
        member.sh(
            "ip -ts monitor link address route neigh nexthop > /run/changes 2>&1 & echo $! > /run/monitor
             bridge -ts monitor fdb > /run/changes-fdb 2>&1 & echo $! >> /run/monitor
             nft monitor > /run/changes-nft 2>&1 & echo $! >> /run/monitor",
        )?;
        cluster.member_mut(0).start_agent()?;
        // Until a pass that no event led to.
        let member = cluster.member(0);
        let looked = wait_for(AT_LAST, || {
            let passes = member.agent().and_then(|agent| agent.metric("podwire_passes_total", "time"));
            passes.is_ok_and(|passes| passes >= 1.0)
        });
        assert!(looked, "{}", member.agent()?.log());
        member.sh("kill $(cat /run/monitor) || true")?;
        let changes = member.sh("cat /run/changes /run/changes-fdb /run/changes-nft")?.out();
        // The kernel's own life: addresses of others that it has asked for, and their age.
        let own = |line: &&str| {
            ["podwire", "proto 112", "podwire-node", "table", "element", "add rule"]
                .iter()
                .any(|word| line.contains(word))
                && !line.contains("REACHABLE")
                && !line.contains("STALE")
                && !line.contains("DELAY")
                && !line.contains("PROBE")
        };
        let own: Vec<&str> = changes.lines().filter(own).collect();
        assert_eq!(own, Vec::<&str>::new(), "all of it:\n{changes}");
        assert_eq!(member.dataplane()?, before);
    }
    Ok(())
}

#[test]
fn the_telemetry_address_has_metrics_and_health_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start("start-telemetry", &Options::default())?;
    let member = cluster.member(0);
    let code = |path: &str| -> Result<String> {
        let script =
            format!("busybox wget -S -O - 'http://127.0.0.1:9474{path}' 2>&1 | grep -m1 'HTTP/'; true");
        Ok(member.sh(&script)?.out())
    };
    for path in ["/metrics", "/healthz", "/readyz", "/readyz?json"] {
        assert!(code(path)?.contains(" 200 "), "{path}");
    }
    for path in ["/v1/status", "/v1/nodes", "/v1/pods", "/", "/v1/actions"] {
        assert!(code(path)?.contains(" 404 "), "{path}");
    }
    let agent = member.agent()?;
    assert_eq!(agent.metric("podwire_ready", "")?, 1.0);
    assert_eq!(agent.metric("podwire_peers", "tunnel")?, 1.0);
    assert!(agent.metric("podwire_convergence_seconds_count", "")? >= 1.0);
    let adds = |outcome: &str| {
        agent.metric("podwire_cni_operations_total", &format!("\"add\",outcome=\"{outcome}\""))
    };
    assert_eq!(adds("ok")?, 0.0);
    let pod = cluster.pod(0, "a")?;
    assert_eq!(adds("ok")?, 1.0);
    let status = status(member, |status| status["pods"]["attached"] == 1)?;
    assert_eq!(status["peers"]["tunnel"], 1);
    assert_eq!(status["problems"], serde_json::json!([]));
    pod.delete()?;
    assert_eq!(agent.metric("podwire_cni_operations_total", "\"del\",outcome=\"ok\"")?, 1.0);
    Ok(())
}

#[test]
fn the_configuration_is_read_again_and_what_can_change_does() -> Result<()> {
    let mut scene = Scene::new("start-reload", Families::Dual)?;
    let member = scene.cluster.member(0);
    let original = member.node().read(CONFIGURATION)?;
    let hang_up = |scene: &mut Scene, configuration: &str| -> Result<()> {
        scene.cluster.member(0).node().write(CONFIGURATION, configuration)?;
        scene.cluster.member_mut(0).agent_mut()?.signal(Signal::SIGHUP)
    };
    let reaches = |scene: &Scene, port: u16| {
        let script = format!("busybox wget -q -O - http://127.0.0.1:{port}/healthz");
        scene.cluster.member(0).sh(&script).is_ok()
    };
    // Another address for metrics, another conflist, another level of the log.
    let more = "\n[telemetry]\nlisten = \"127.0.0.1:9999\"\n[log]\nlevel = \"debug\"\n[network]\nhairpin = true\n\
                conflist = \"/etc/cni/net.d/20-other.conflist\"\n";
    hang_up(&mut scene, &format!("{original}{more}"))?;
    logs(scene.cluster.member(0), "log.level")?;
    assert!(wait_for(AT_LAST, || reaches(&scene, 9999) && !reaches(&scene, 9474)), "{}", scene.log());
    let conflists = |scene: &Scene| scene.cluster.member(0).node().list("/etc/cni/net.d");
    assert!(wait_for(AT_LAST, || conflists(&scene) == ["20-other.conflist"]), "{:?}", conflists(&scene));
    // What cannot is said, and stays.
    let renamed = original.replace("node_name = \"node0\"", "node_name = \"node7\"");
    assert_ne!(renamed, original);
    hang_up(&mut scene, &renamed)?;
    logs(scene.cluster.member(0), "needs a restart")?;
    assert!(wait_for(AT_LAST, || reaches(&scene, 9474)), "{}", scene.log());
    let named = status(scene.cluster.member(0), |status| status["ready"] == true)?;
    assert_eq!(named["node"], "node0");
    // Mistakes change nothing.
    hang_up(&mut scene, "node_name = 7\n[cluster]\nstore = \"paper\"\n")?;
    logs(scene.cluster.member(0), "stays as it was")?;
    assert!(reaches(&scene, 9474));
    hang_up(&mut scene, &original)?;
    assert!(wait_for(AT_LAST, || conflists(&scene) == ["10-podwire.conflist"]), "{:?}", conflists(&scene));
    // Another link, which does not exist: the overlay stays as it is, and says what is wrong.
    hang_up(&mut scene, &format!("{original}\n[overlay]\ninterface = \"none0\"\n"))?;
    status(scene.cluster.member(0), |status| {
        status["problems"].as_array().is_some_and(|problems| !problems.is_empty())
    })?;
    hang_up(&mut scene, &original)?;
    status(scene.cluster.member(0), |status| {
        status["problems"].as_array().is_some_and(Vec::is_empty) && status["ready"] == true
    })?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    Ok(())
}

#[test]
fn a_node_that_is_taken_out_refuses_pods_and_one_that_is_moved_says_which_are_lost() -> Result<()> {
    let mut scene = Scene::new("start-moved", Families::Dual)?;
    let whole = scene.cluster.peers.clone();
    // Taken out: pods that run go on, new ones are refused.
    scene.cluster.peers.nodes.remove(0);
    scene.cluster.member(0).write_peers(&scene.cluster.peers.to_toml())?;
    let fenced = status(scene.cluster.member(0), |status| !status["refuse"].is_null())?;
    assert_eq!(fenced["ready"], false);
    let refused = scene.cluster.member(0).try_pod("refused")?.error()?;
    assert_eq!(refused.0, 11, "{refused:?}");
    // Also after a restart, before the file is read.
    scene.cluster.member(0).sh("mv /etc/podwire/peers.toml /etc/podwire/elsewhere")?;
    scene.cluster.member_mut(0).kill_agent()?;
    scene.cluster.member_mut(0).spawn_agent()?;
    let fenced = status(scene.cluster.member(0), |status| status["store"]["state"] == "lost")?;
    assert!(!fenced["refuse"].is_null(), "{fenced:#}");
    assert_eq!(scene.cluster.member(0).try_pod("refused-too")?.error()?.0, 11);
    scene.cluster.peers = whole.clone();
    scene.cluster.member(0).write_peers(&scene.cluster.peers.to_toml())?;
    scene.cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    scene.cluster.pod(0, "taken-again")?.delete()?;
    // Moved: the pod that has an address of the old subnet is named.
    let moved = scene.cluster.peers.far_peer(77, "node0", whole.nodes[0].addresses.clone());
    scene.cluster.peers.nodes[0] = moved;
    scene.cluster.write_peers()?;
    let status = status(scene.cluster.member(0), |status| {
        status["problems"].as_array().is_some_and(|problems| !problems.is_empty())
    })?;
    let problem = status["problems"][0]["message"].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains("1 interfaces of pods"), "{problem}");
    // What plugins go by follows what people are told.
    let is_told =
        || node_config(scene.cluster.member(0)).is_ok_and(|node| node["subnets"][0] == "10.240.78.0/24");
    assert!(wait_for(AT_LAST, is_told), "{:?}", node_config(scene.cluster.member(0)));
    let pod = scene.cluster.pod(0, "in-the-new-one")?;
    assert_eq!(pod.address(true)?.to_string().split('.').nth(2), Some("78"));
    scene.cluster.assert_reach(&pod, &scene.pods[1])
}

#[test]
fn what_plugins_and_runtimes_are_told_is_put_back() -> Result<()> {
    let cluster = Cluster::start("start-files", &Options::default())?;
    let member = cluster.member(0);
    let before = (node_config(member)?, member.node().read(CONFLIST)?);
    member.sh(&format!("rm {NODE} {CONFLIST}"))?;
    let is_back = || (node_config(member).ok(), member.node().read(CONFLIST).ok());
    let wanted = |(node, conflist): (Option<Value>, Option<String>)| {
        node.is_some_and(|node| node["subnets"] == before.0["subnets"])
            && conflist.as_ref() == Some(&before.1)
    };
    assert!(wait_for(AT_LAST, || wanted(is_back())), "{:?}; {}", is_back(), member.agent()?.log());
    Ok(())
}

#[test]
fn systemd_hears_that_plugins_are_served_and_that_all_threads_live() -> Result<()> {
    let mut cluster = Cluster::prepare("start-systemd", &Options::default())?;
    let hears = UnixDatagram::bind(cluster.member(0).node().path("/run/notify.sock"));
    let hears = hears.map_err(LabError::because("listen as systemd"))?;
    hears.set_read_timeout(Some(AT_LAST)).map_err(LabError::because("set a time limit"))?;
    let wrapper = ["/usr/bin/env", "NOTIFY_SOCKET=/run/notify.sock", "WATCHDOG_USEC=600000"];
    cluster.member(0).sh("mv /etc/podwire/peers.toml /etc/podwire/elsewhere")?;
    let mut heard = Vec::new();
    let mut wait = |words: &str| -> Result<()> {
        let mut text = [0; 4096];
        loop {
            let length = hears.recv(&mut text).map_err(LabError::because(format!("{words:?}; {heard:?}")))?;
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            heard.push(text.clone());
            if text.contains(words) {
                return Ok(());
            }
        }
    };
    cluster.member_mut(0).spawn_agent_under(&wrapper)?;
    // Runtimes wait for the first: it must not wait for the store, which may be a pod.
    wait("READY=1")?;
    wait("STATUS=not ready")?;
    wait("WATCHDOG=1")?;
    cluster.member(0).sh("mv /etc/podwire/elsewhere /etc/podwire/peers.toml")?;
    wait("STATUS=ready: 10.240.1.0/24")?;
    wait("WATCHDOG=1")?;
    cluster.member_mut(0).agent_mut()?.signal(Signal::SIGTERM)?;
    wait("STOPPING=1")
}

#[test]
fn an_agent_that_cannot_have_an_identity_serves_pods_all_the_same() -> Result<()> {
    let mut cluster = Cluster::prepare("start-broken", &Options::default())?;
    // Neither can be read or replaced.
    cluster.member(0).sh("mkdir -p /var/lib/podwire/identity.json/x /var/lib/podwire/cluster.json/x")?;
    cluster.member_mut(0).spawn_agent()?;
    let member = cluster.member(0);
    let (code, why) = answer(member, "/readyz")?;
    assert_eq!(code, 503, "{why}");
    status(member, |status| {
        status["problems"][0]["message"].as_str().is_some_and(|message| message.contains("identity"))
    })?;
    assert_eq!(member.agent()?.get("/v1/pods")?.0, 200);
    member.sh("rm -r /var/lib/podwire/identity.json /var/lib/podwire/cluster.json")?;
    cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST + AT_ONCE + Duration::from_secs(5))
}

#[test]
fn probes_say_what_gets_through_the_tunnel() -> Result<()> {
    let agent = "[probes]\ninterval_seconds = 1\ntimeout_ms = 300\n".to_owned();
    let cluster = Cluster::start("start-probes", &Options { agent, ..Options::default() })?;
    let member = cluster.member(0);
    let probes = || -> Vec<Value> {
        let probes = member.agent().and_then(|agent| agent.get_json("/v1/probes")).unwrap_or_default();
        probes.as_array().cloned().unwrap_or_default()
    };
    let are = |ok: bool| probes().len() == 2 && probes().iter().all(|probe| probe["ok"] == ok);
    assert!(wait_for(AT_LAST, || are(true)), "{:#?}; {}", probes(), member.agent()?.log());
    assert!(member.agent()?.metric("podwire_probes_total", "answered")? >= 2.0);
    let well = || member.agent().and_then(|agent| agent.metric("podwire_probe_peers", "well"));
    assert!(wait_for(AT_LAST, || well().is_ok_and(|well| well == 2.0)), "{:?}", well());
    // The wire is there and carries nothing: no route, no device, no record knows.
    member.uplink().cut()?;
    assert!(wait_for(AT_LAST, || are(false)), "{:#?}", probes());
    let told = status(member, |status| status["problems"].to_string().contains("node1"))?;
    assert_eq!(told["problems"][0]["code"], "probe", "{told:#}");
    assert_eq!(told["ready"], true, "what is wrong with a peer is not wrong with this node");
    member.uplink().heal()?;
    assert!(wait_for(AT_LAST, || are(true)), "{:#?}; {}", probes(), member.agent()?.log());
    Ok(())
}

#[test]
fn a_node_leaves_at_shutdown_if_it_is_told_to_and_no_pod_needs_it() -> Result<()> {
    let lab = Lab::new("start-leave")?;
    let underlay = Underlay::new(Families::Ipv4, Layout::Flat)?;
    let etcd = Etcd::start(&lab, &underlay, &EtcdOptions { members: 1, ..EtcdOptions::default() })?;
    let store = etcd.agent_settings("leave_at_shutdown = true");
    let options = Options { underlay: Families::Ipv4, store: Store::Settings(store), ..Options::default() };
    let mut cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
    cluster.start_agents()?;
    let nodes = || etcd.keys("/podwire/v1/nodes/");
    assert_eq!(nodes()?, ["/podwire/v1/nodes/node0", "/podwire/v1/nodes/node1"]);
    // A pod needs it.
    let pod = cluster.pod(0, "a")?;
    cluster.member_mut(0).stop_agent()?;
    assert_eq!(nodes()?.len(), 2);
    assert!(node_config(cluster.member(0))?["refuse"].is_null(), "pods go on to start");
    cluster.member_mut(0).start_agent()?;
    pod.delete()?;
    cluster.member_mut(0).stop_agent()?;
    assert_eq!(nodes()?, ["/podwire/v1/nodes/node1"]);
    let member = cluster.member(0);
    for file in [NODE, CONFLIST, "/var/lib/podwire/cluster.json"] {
        assert!(!member.node().path(file).exists(), "{file}");
    }
    // The other one has no way there any more.
    let gone = |status: &Value| status["peers"]["total"] == 0;
    status(cluster.member(1), gone)?;
    cluster.member_mut(0).start_agent()?;
    status(cluster.member(1), |status| status["peers"]["tunnel"] == 1)?;
    Ok(())
}

#[test]
fn an_agent_that_ends_while_etcd_is_silent_keeps_no_pod_waiting() -> Result<()> {
    let lab = Lab::new("start-silent")?;
    let underlay = Underlay::new(Families::Ipv4, Layout::Flat)?;
    let etcd = Etcd::start(&lab, &underlay, &EtcdOptions { members: 1, ..EtcdOptions::default() })?;
    let options = Options {
        underlay: Families::Ipv4,
        store: Store::Settings(etcd.agent_settings("")),
        ..Options::default()
    };
    let mut cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
    cluster.start_agents()?;
    etcd.uplink(0).cut()?;
    cluster.member_mut(0).agent_mut()?.signal(Signal::SIGTERM)?;
    logs(cluster.member(0), "ending")?;
    // Served by the agent that takes its leave, or by the plugin itself.
    let mut pods = Vec::new();
    for _ in 0..20 {
        pods.push(cluster.pod(0, "")?);
    }
    let ended = wait_for(AT_LAST, || cluster.member_mut(0).agent_mut().is_ok_and(|agent| agent.has_ended()));
    assert!(ended, "{}", cluster.member(0).agent()?.log());
    pods.into_iter().try_for_each(podwire_netns_tests::cluster::ClusterPod::delete)
}

#[test]
fn a_node_without_a_usable_address_is_not_ready_says_why_and_takes_no_pods() -> Result<()> {
    let options = Options { underlay: Families::Ipv4, ..Options::default() };
    let mut cluster = Cluster::prepare("start-stranded", &options)?;
    cluster.member(0).sh("ip route del default")?;
    // An address that other nodes take for a pod's.
    cluster.member(1).sh("ip address add 10.240.9.9/32 dev eth0")?;
    cluster.member(1).configure("", "[overlay]\naddresses = [\"10.240.9.9\"]")?;
    let words = ["address that other nodes can reach it by", "lies within the pods' range"];
    for (number, words) in words.into_iter().enumerate() {
        cluster.member_mut(number).spawn_agent()?;
        let member = cluster.member(number);
        let said = status(member, |status| status["refuse"].as_str().is_some_and(|why| why.contains(words)))?;
        assert_eq!(said["ready"], false);
        let first = &said["problems"][0];
        assert_eq!((&first["code"], &first["severity"]), (&"underlay".into(), &"error".into()), "{said:#}");
        let (code, why) = answer(member, "/readyz")?;
        assert!(code == 503 && why.contains(words), "{code} {why}");
        assert_eq!(answer(member, "/healthz")?.0, 200, "a restart would not help");
        logs(member, words)?;
        let shown = member.podwirectl(&["status"])?.out();
        assert!(shown.contains(words), "{shown}");
        assert!(node_config(member)?["refuse"].as_str().is_some_and(|why| why.contains(words)));
        assert!(!member.node().path(CONFLIST).exists());
    }
    cluster.member(0).uplink().add_default_routes()?;
    cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_ONCE)?;
    cluster.member(1).configure("", "")?;
    cluster.member_mut(1).agent_mut()?.signal(Signal::SIGHUP)?;
    cluster.member_mut(1).agent_mut()?.wait_until_ready(AT_LAST)?;
    let pods = [cluster.pod(0, "a")?, cluster.pod(1, "b")?];
    wait_for(AT_LAST, || cluster.assert_reach(&pods[0], &pods[1]).is_ok());
    cluster.assert_reach(&pods[0], &pods[1])?;
    // A node that was ready and loses its address, also over a restart; then it comes back.
    cluster.member(0).sh("ip route del default")?;
    status(cluster.member(0), |status| status["ready"] == false)?;
    assert_eq!(cluster.member(0).try_pod("refused")?.error()?.0, 11);
    cluster.member_mut(0).kill_agent()?;
    cluster.member_mut(0).spawn_agent()?;
    status(cluster.member(0), |status| !status["refuse"].is_null())?;
    assert_eq!(cluster.member(0).try_pod("refused-too")?.error()?.0, 11);
    cluster.member(0).uplink().add_default_routes()?;
    cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_ONCE)?;
    cluster.pod(0, "taken")?.delete()
}

#[test]
fn the_tunnel_gets_a_port_that_the_probes_have() -> Result<()> {
    let agent = "[probes]\ninterval_seconds = 1\ntimeout_ms = 300\nport = 9472\n".to_owned();
    let options = Options { underlay: Families::Ipv4, agent, ..Options::default() };
    let mut scene = Scene::with("start-ports", &options)?;
    let answered = |scene: &Scene| {
        let agent = scene.cluster.member(0).agent();
        agent.and_then(|agent| agent.metric("podwire_probes_total", "answered")).unwrap_or_default()
    };
    assert!(wait_for(AT_LAST, || answered(&scene) >= 1.0), "{}", scene.log());
    let clash =
        |status: &Value| status["problems"].to_string().contains("both probes.port and a port of the tunnel");
    // In two steps, as nobody announces anything in a file.
    let new = "{ vni = 1, port = 9472 }";
    scene.cluster.peers.settings = format!("also_receive = [{new}]");
    scene.cluster.write_peers()?;
    for member in scene.cluster.members() {
        let told = status(member, |status| clash(status) && status["ready"] == true)?;
        assert!(told["problems"][0]["advice"].to_string().contains("probes.port"), "{told:#}");
        member.wait_for(AT_LAST, "ip -o -d link show type vxlan up", |out| out.contains("dstport 9472"))?;
        logs(member, "no probes: the tunnel has probes.port")?;
    }
    scene.cluster.peers.settings =
        format!("also_receive = [{{ vni = 1, port = 8472 }}]\nencapsulation = {new}");
    scene.cluster.write_peers()?;
    for member in scene.cluster.members() {
        member.wait_for(AT_LAST, "ip -4 route show proto 112", |out| out.contains("dev pw4.1.2500"))?;
    }
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    // An agent that starts so.
    scene.cluster.member_mut(0).kill_agent()?;
    scene.cluster.member_mut(0).start_agent()?;
    status(scene.cluster.member(0), clash)?;
    let mut check = program(Node::dist("podwired"));
    let check = scene.cluster.member(0).node().run_with(check.arg("check"), b"", AT_LAST)?;
    let told = check.out() + &check.err();
    assert!(
        !check.status.success() && told.contains("probes.port") && told.contains("encapsulation.port"),
        "{told}"
    );
    // Another port for probes, and there are some again.
    for number in 0..2 {
        let member = scene.cluster.member_mut(number);
        member.configure("", &options.agent.replace("9472", "9473"))?;
        member.agent_mut()?.signal(Signal::SIGHUP)?;
    }
    let before = answered(&scene);
    assert!(wait_for(AT_LAST, || answered(&scene) > before), "{}", scene.log());
    status(scene.cluster.member(0), |status| status["problems"].as_array().is_some_and(Vec::is_empty))?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()
}
