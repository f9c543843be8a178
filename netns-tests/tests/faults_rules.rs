//! Rules that vanish, programs that die between rules, firewalls of others, many pods at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use podwire_netns_tests::faults::{Agent, Site, Steps, at_once_for, each, network};
use podwire_netns_tests::network::{rules_of_pods, ruleset};
use podwire_netns_tests::traffic::{Client, Outside, Server};
use podwire_netns_tests::{LIMIT, LabError, PluginCall, Pod, Result, program, wait_for};
use serde_json::{Value, json};

/// A repair takes no longer; it is measured, and printed.
const REPAIR: Duration = Duration::from_millis(100);
/// How long a repair may take where only its outcome matters, on a machine that does other work.
const SOON: Duration = Duration::from_secs(3);

const PORT_TAKEN: u64 = 111;

/// The network in IPv4 and IPv6 with room for a thousand pods, masqueraded.
fn masqueraded() -> Value {
    let mut config = network(json!([[{ "subnet": "10.77.0.0/22" }], [{ "subnet": "fd77::/64" }]]));
    config["ipMasq"] = json!(true);
    config
}

/// With TCP and UDP port 80 of the pod on that port of the node.
fn on_port(port: u64) -> Value {
    let mut config = masqueraded();
    config["runtimeConfig"] = json!({ "portMappings": [
        { "hostPort": port, "containerPort": 80, "protocol": "tcp" }, { "hostPort": port, "containerPort": 80, "protocol": "udp" }
    ] });
    config
}

/// And with everything else that the node can do to a pod's traffic.
fn with_everything(port: u64) -> Value {
    let mut config = on_port(port);
    config["ingressPolicy"] = json!("isolated");
    config["addressCheck"] = json!(true);
    config["runtimeConfig"]["bandwidth"] = json!({ "ingressRate": 1_000_000_000, "ingressBurst": 100_000_000, "egressRate": 1_000_000_000, "egressBurst": 100_000_000 });
    config
}

/// The same without the check of what the pod sends: nft 1.0.6 lists its rules, and cannot read what it has listed.
fn with_what_nft_can_save(port: u64) -> Value {
    let mut config = with_everything(port);
    config["addressCheck"] = json!(false);
    config
}

fn sh(site: &Site, script: &str) -> Result<String> {
    let done = site.node().run_with(program("sh").args(["-ec", script]), b"", LIMIT)?;
    Ok(done.success(script)?.out())
}

/// The whole ruleset as text, in an order that does not depend on when what was made.
fn rules(site: &Site) -> Result<String> {
    let listed = sh(site, "nft -s list ruleset")?;
    // Elements are listed in the order of a hash table.
    let mut lines: Vec<&str> =
        listed.split(['\n', ',']).map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    Ok(lines.join("\n").replace("elements = { ", "").replace(" }", ""))
}

fn checked(site: &Site, pod: &Pod, config: &Value, result: &Value) -> Result<()> {
    site.check(pod, config, result)?.ok().map(drop)
}

/// Whether a new connection from outside reaches the pod by the node's port, now.
fn answers(outside: &Outside, port: u16) -> bool {
    let to = podwire_netns_tests::traffic::Port::tcp([198, 51, 100, 1], port);
    Client::at(outside).limit(Duration::from_millis(60)).hear(to).is_ok()
}

// -- rules that vanish --

#[test]
fn a_flushed_ruleset_is_back_within_100_ms_and_connections_go_on() -> Result<()> {
    let site = Site::new("flushed")?;
    let outside = Outside::link_to(site.node())?;
    let agent = site.agent()?;
    let config = with_everything(8080);
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    let before = rules(&site)?;
    let _tcp = Server::start(&pod, "tcp [::]:80".parse()?)?;
    let _udp = Server::start(&pod, "udp [::]:80".parse()?)?;
    let _there = Server::start(&outside, "tcp [::]:81".parse()?)?;
    let mut by_port = Client::at(&outside).talk("tcp 198.51.100.1:8080".parse()?)?;
    let mut datagrams = Client::at(&outside).talk("udp [fd51::1]:8080".parse()?)?;
    let mut to_outside = Client::at(&pod).talk("tcp 198.51.100.2:81".parse()?)?;
    // As it is with most nodes: nobody outside knows the way to a pod. What a pod sends while its address is not hidden is
    // lost and comes again; it is not answered by a reset.
    sh(&site, "ip -n outside route del default; ip -n outside -6 route del default")?;
    let mut took = Vec::new();
    for _ in 0..7 {
        // A packet of a connection to a host port that comes between has the node answer with a reset, whoever keeps the
        // rules: these connections are to be quiet, delayed acknowledgements (40 ms) included.
        wait_for(Duration::from_millis(80), || false);
        let flush = site.node().run("nft", &["flush", "ruleset"])?.success("flush")?;
        let flushed = Instant::now();
        drop(flush);
        assert!(wait_for(SOON, || answers(&outside, 8080)), "never put back: {}", agent.log());
        took.push(flushed.elapsed());
        for (what, talk) in [("in", &mut by_port), ("datagrams", &mut datagrams), ("out", &mut to_outside)] {
            talk.again(SOON).map_err(LabError::because(what))?;
        }
        assert!(
            wait_for(SOON, || rules(&site).is_ok_and(|now| now == before)),
            "{}\n--- not\n{before}",
            rules(&site)?
        );
    }
    took.sort();
    println!("ruleset put back after {took:?}");
    let median = took[took.len() / 2];
    assert!(median <= REPAIR, "put back only after {took:?}");
    checked(&site, &pod, &config, &result)?;
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn each_single_thing_that_is_taken_away_is_put_back() -> Result<()> {
    let site = Site::new("taken")?;
    sh(&site, "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")?;
    let agent = site.agent()?;
    let config = with_everything(8080);
    let pods = site.pods("p", 2)?;
    let result = site.add(&pods[0], &config)?;
    site.add(&pods[1], &with_everything(8081))?;
    let before = rules(&site)?;
    let mut losses = vec![
        "nft delete table inet podwire".to_owned(),
        "nft delete table bridge podwire".to_owned(),
        "nft flush table inet podwire".to_owned(),
        "nft flush table bridge podwire".to_owned(),
        "iptables -F FORWARD; ip6tables -F FORWARD".to_owned(),
        "nft add rule inet podwire host-ports drop".to_owned(),
    ];
    for object in ruleset(site.node())? {
        let Some((kind, content)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        let text = |key: &str| content[key].as_str().unwrap_or_default().to_owned();
        if content["table"] != "podwire" {
            continue;
        }
        let (family, name) = (text("family"), text("name"));
        match kind.as_str() {
            "chain" if content["hook"].is_null() => {}
            "chain" => losses.push(format!("nft flush chain {family} podwire {name}")),
            "rule" => losses.push(format!(
                "nft delete rule {family} podwire {} handle {}",
                text("chain"),
                content["handle"]
            )),
            "map" | "set" if content["elem"].is_array() => {
                losses.push(format!("nft flush {kind} {family} podwire {name}"));
            }
            _ => {}
        }
    }
    assert!(losses.len() > 15, "{losses:?}");
    for loss in &losses {
        // What a repair makes anew has another handle: a rule that this loss names may be gone for another reason.
        let done = site.node().run("sh", &["-c", loss])?;
        if !done.status.success() {
            assert!(loss.contains("handle"), "{loss}: {}", done.err());
            continue;
        }
        let back = wait_for(SOON, || rules(&site).is_ok_and(|now| now == before));
        assert!(back, "after {loss}:\n{}\n--- not\n{before}\n{}", rules(&site)?, agent.log());
    }
    checked(&site, &pods[0], &config, &result)?;
    for (pod, port) in pods.iter().zip([8080, 8081]) {
        site.del(pod, &with_everything(port))?;
    }
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn an_agent_puts_back_the_rules_of_pods_from_before_its_start() -> Result<()> {
    let site = Site::new("later")?;
    let config = with_everything(8080);
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    let before = rules(&site)?;
    sh(&site, "nft flush ruleset")?;
    assert!(
        site.check(&pod, &config, &result)?.error().is_ok(),
        "CHECK does not see that the rules are gone"
    );
    let agent = site.agent()?;
    assert!(wait_for(SOON, || rules(&site).is_ok_and(|now| now == before)), "{}", agent.log());
    checked(&site, &pod, &config, &result)?;
    // And those that vanish later.
    sh(&site, "nft flush ruleset")?;
    assert!(wait_for(SOON, || rules(&site).is_ok_and(|now| now == before)), "{}", agent.log());
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn an_agent_removes_rules_whose_pod_was_deleted_meanwhile() -> Result<()> {
    let site = Site::new("stale")?;
    let config = with_what_nft_can_save(8080);
    let (pod, other) = (site.pod("p")?, site.pod("other")?);
    site.add(&other, &on_port(8081))?;
    let before = rules(&site)?;
    site.add(&pod, &config)?;
    // What a restored firewall brings back of a pod that is gone by then.
    sh(&site, "{ echo flush ruleset; nft list ruleset; } > /run/saved")?;
    site.del(&pod, &config)?;
    let agent = site.agent()?;
    sh(&site, "nft -f /run/saved")?;
    let clean =
        || rules_of_pods(site.node()).is_ok_and(|rules| rules.iter().all(|rule| !rule.contains("8080")));
    assert!(wait_for(SOON, clean), "{}\n--- not\n{before}\n{}", rules(&site)?, agent.log());
    site.del(&other, &on_port(8081))?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn a_firewall_that_restarts_keeps_its_rules_and_pods_keep_theirs() -> Result<()> {
    let site = Site::new("restart")?;
    let outside = Outside::link_to(site.node())?;
    let own = "table inet filter { chain input { type filter hook input priority 0; policy accept; tcp dport 22 accept; }; }";
    site.node().write("/run/nftables.conf", format!("flush ruleset\n{own}\n"))?;
    sh(&site, "nft -f /run/nftables.conf")?;
    let foreign = sh(&site, "nft list table inet filter")?;
    let agent = site.agent()?;
    let config = on_port(8080);
    let pod = site.pod("p")?;
    site.add(&pod, &config)?;
    let _server = Server::start(&pod, "tcp [::]:80".parse()?)?;
    for _ in 0..3 {
        sh(&site, "nft -f /run/nftables.conf")?;
        assert!(wait_for(SOON, || answers(&outside, 8080)), "{}", agent.log());
        assert_eq!(sh(&site, "nft list table inet filter")?, foreign);
    }
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    assert_eq!(sh(&site, "nft list table inet filter")?, foreign);
    agent.stop()
}

#[test]
fn repair_and_del_never_undo_each_other() -> Result<()> {
    let site = Site::new("race")?;
    let agent = site.agent()?;
    let done = AtomicBool::new(false);
    let stays = site.pod("stays")?;
    let kept = on_port(7999);
    let result = site.add(&stays, &kept)?;
    let rounds = std::thread::scope(|scope| -> Result<usize> {
        let flusher = scope.spawn(|| -> Result<usize> {
            let mut flushes = 0;
            while !done.load(Ordering::Relaxed) {
                sh(&site, "nft delete table inet podwire 2>/dev/null || true")?;
                flushes += 1;
            }
            Ok(flushes)
        });
        let workers: Vec<u64> = (0..4).collect();
        let until = Instant::now() + Duration::from_secs(5);
        let ended = at_once_for(&workers, workers.len(), |worker| {
            let pod = site.pod(&format!("w{worker}"))?;
            let mut rounds = 0;
            while Instant::now() < until {
                let config = on_port(8000 + worker);
                site.add(&pod, &config)?;
                site.del(&pod, &config)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        done.store(true, Ordering::Relaxed);
        let flushes = flusher.join().map_err(|_| LabError::new("the flusher panicked"))??;
        let rounds = ended.into_iter().sum::<Result<usize>>()?;
        println!("{rounds} pods came and went, {flushes} flushes");
        Ok(rounds)
    })?;
    assert!(rounds > 5, "only {rounds}");
    // All that is left is of the pod that stayed, and all of that is there.
    let settled = || {
        let rules = rules_of_pods(site.node()).unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule.contains("stays"))
    };
    assert!(wait_for(SOON, settled), "{:?}\n{}", rules_of_pods(site.node())?, agent.log());
    assert!(wait_for(SOON, || checked(&site, &stays, &kept, &result).is_ok()), "{}", agent.log());
    site.del(&stays, &kept)?;
    site.assert_nothing_left()?;
    agent.stop()
}

// -- programs that die --

struct Killed {
    site: Site,
    agent: Option<Agent>,
    victim: Pod,
    other: Pod,
}

impl Killed {
    fn new(name: &str, with_agent: bool) -> Result<Self> {
        let site = Site::with_hooks(name)?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let (victim, other) = (site.pod("victim")?, site.pod("other")?);
        Ok(Self { site, agent, victim, other })
    }

    /// Another pod comes with ports of its own, the victim is removed, and nothing is left.
    fn ends_well(self) -> Result<()> {
        let Self { site, agent, victim, other } = self;
        let config = with_everything(8081);
        let result = site.add(&other, &config)?;
        checked(&site, &other, &config, &result)?;
        // As the runtime does: with the configuration, without what the runtime knew.
        site.del(&victim, &masqueraded())?;
        let of_victim = |rule: &&String| rule.contains("victim");
        let rules = rules_of_pods(site.node())?;
        assert_eq!(rules.iter().find(of_victim), None);
        checked(&site, &other, &config, &result)?;
        site.del(&other, &config)?;
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)
    }
}

fn rules_steps(name: &str, with_agent: bool, verb: &str) -> Result<Steps> {
    let config = with_everything(8080);
    let steps = Steps::of(|| {
        let scene = Killed::new(name, with_agent)?;
        if verb == "DEL" {
            scene.site.add(&scene.victim, &config)?;
        }
        scene.site.steps(scene.site.call(verb, &scene.victim, &config))
    })?;
    println!("{name}: {steps:?}");
    Ok(steps)
}

fn add_killed(name: &str, with_agent: bool) -> Result<()> {
    let config = with_everything(8080);
    let steps = rules_steps(name, with_agent, "ADD")?;
    assert!(steps.contains("rules-install:1"), "{steps:?}");
    steps.kill_at_each(3, |step| {
        let scene = Killed::new(name, with_agent)?;
        let killed = scene.site.killed_at(step, scene.site.call("ADD", &scene.victim, &config))?;
        scene.ends_well().map(|()| killed)
    })
}

#[test]
fn plugin_killed_at_every_step_of_an_add_with_rules() -> Result<()> {
    add_killed("rules-add", false)
}

#[test]
fn plugin_killed_at_every_step_of_an_add_with_rules_and_the_agent() -> Result<()> {
    add_killed("rules-add-agent", true)
}

#[test]
fn add_again_after_a_kill_has_all_its_rules() -> Result<()> {
    let config = with_everything(8080);
    let steps = rules_steps("rules-again", false, "ADD")?.only("rules");
    steps.kill_at_each(3, |step| {
        let Killed { site, victim, .. } = Killed::new("rules-again", false)?;
        let killed = site.killed_at(step, site.call("ADD", &victim, &config))?;
        let result = site.add(&victim, &config)?;
        checked(&site, &victim, &config, &result)?;
        let all = rules_of_pods(site.node())?;
        let once: BTreeSet<&String> = all.iter().collect();
        assert_eq!(once.len(), all.len(), "{all:?}");
        site.del(&victim, &config)?;
        site.assert_nothing_left().map(|()| killed)
    })
}

fn del_killed(name: &str, with_agent: bool) -> Result<()> {
    let config = with_everything(8080);
    let steps = rules_steps(name, with_agent, "DEL")?;
    steps.kill_at_each(3, |step| {
        let scene = Killed::new(name, with_agent)?;
        scene.site.add(&scene.victim, &config)?;
        let killed = scene.site.killed_at(step, scene.site.call("DEL", &scene.victim, &config))?;
        scene.ends_well().map(|()| killed)
    })
}

#[test]
fn plugin_killed_at_every_step_of_a_del_with_rules() -> Result<()> {
    del_killed("rules-del", false)
}

#[test]
fn agent_killed_at_every_step_of_a_repair() -> Result<()> {
    let config = with_everything(8080);
    let flushed = |site: &Site| -> Result<(Pod, Value, String)> {
        let pod = site.pod("p")?;
        let result = site.add(&pod, &config)?;
        let before = rules(site)?;
        sh(site, "nft flush ruleset")?;
        Ok((pod, result, before))
    };
    let steps = Steps::of(|| {
        let site = Site::with_hooks("rules-repair")?;
        let (.., before) = flushed(&site)?;
        let mut agent = Agent::spawn(&site, &[("PODWIRE_STEP_TRACE", "/run/steps")])?;
        agent.serves()?;
        assert!(wait_for(SOON, || rules(&site).is_ok_and(|now| now == before)), "{}", agent.log());
        site.traced("/run/steps")
    })?
    .only("rules");
    assert!(steps.contains("rules-reconcile:1"), "{steps:?}");
    steps.kill_at_each(3, |step| {
        let site = Site::with_hooks("rules-repair")?;
        let (pod, result, before) = flushed(&site)?;
        let mut first = Agent::spawn(&site, &[("PODWIRE_STEP_KILL", step)])?;
        let killed = first.has_ended_within(Duration::from_secs(2));
        drop(first);
        let second = site.agent()?;
        assert!(wait_for(SOON, || rules(&site).is_ok_and(|now| now == before)), "{}", second.log());
        checked(&site, &pod, &config, &result)?;
        site.del(&pod, &config)?;
        site.assert_nothing_left().map(|()| killed)
    })
}

// -- many at once --

/// What the packet filter holds beside elements: chains and rules, without numbers that differ from time to time.
fn skeleton(site: &Site) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for object in ruleset(site.node())? {
        for kind in ["table", "chain", "rule", "set", "map"] {
            let Some(content) = object.get(kind) else { continue };
            let mut content = content.clone();
            if let Some(content) = content.as_object_mut() {
                content.remove("handle");
                content.remove("elem");
            }
            found.push(format!("{kind} {content}"));
        }
    }
    found.sort();
    Ok(found)
}

fn cold(name: &str, with_agent: bool) -> Result<()> {
    const PODS: usize = 50;
    let alone = Site::new(name)?;
    let pod = alone.pod("p")?;
    alone.add(&pod, &with_everything(8000))?;
    let wanted = skeleton(&alone)?;

    let site = Site::new(name)?;
    let agent = if with_agent { Some(site.agent()?) } else { None };
    let pods = site.pods("p", PODS)?;
    let numbers: Vec<usize> = (0..PODS).collect();
    let ports = |number: usize| with_everything(8000 + number as u64);
    let results = at_once_for(&numbers, PODS, |number| site.add(&pods[*number], &ports(*number)));
    let results = results.into_iter().collect::<Result<Vec<_>>>()?;
    assert_eq!(skeleton(&site)?, wanted);
    each(&numbers, 4, |number| checked(&site, &pods[*number], &ports(*number), &results[*number]))?;
    let ended = at_once_for(&numbers, PODS, |number| site.del(&pods[*number], &ports(*number)));
    ended.into_iter().collect::<Result<Vec<_>>>()?;
    site.assert_nothing_left()?;
    agent.map_or(Ok(()), Agent::stop)
}

#[test]
fn fifty_first_adds_at_once_leave_one_skeleton() -> Result<()> {
    cold("cold", false)
}

#[test]
fn fifty_first_adds_at_once_leave_one_skeleton_with_the_agent() -> Result<()> {
    cold("cold-agent", true)
}

#[test]
fn one_of_many_pods_that_want_one_port_gets_it() -> Result<()> {
    let site = Site::new("contended")?;
    let agent = site.agent()?;
    let pods = site.pods("p", 20)?;
    let config = on_port(8080);
    let numbers: Vec<usize> = (0..pods.len()).collect();
    let answers = at_once_for(&numbers, pods.len(), |number| {
        site.call("ADD", &pods[*number], &config).run(site.node())
    });
    let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
    let (winners, losers): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.exit() == Some(0));
    assert_eq!(winners.len(), 1);
    for loser in losers {
        let (code, message) = loser.error()?;
        assert_eq!(code, PORT_TAKEN, "{message}");
    }
    // TCP and UDP, IPv4 and IPv6.
    let ports = rules_of_pods(site.node())?.into_iter().filter(|rule| rule.starts_with("ports"));
    assert_eq!(ports.count(), 4);
    for pod in &pods {
        site.del(pod, &config)?;
    }
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn five_hundred_pods_with_two_ports_each() -> Result<()> {
    const PODS: usize = 500;
    let site = Site::new("many")?;
    let outside = Outside::link_to(site.node())?;
    let agent = site.agent()?;
    let began = Instant::now();
    let pods = site.pods("p", PODS)?;
    let numbers: Vec<usize> = (0..PODS).collect();
    let ports = |number: usize| on_port(20_000 + number as u64);
    let made = began.elapsed();
    let began = Instant::now();
    let results = at_once_for(&numbers, 8, |number| site.add(&pods[*number], &ports(*number)));
    let results = results.into_iter().collect::<Result<Vec<_>>>()?;
    println!("{PODS} namespaces in {made:?}, pods in {:?}", began.elapsed());
    // In each family a port of TCP, one of UDP, and the masquerade; what hides hairpins comes with them.
    let count = |what: &str| {
        Ok::<_, LabError>(rules_of_pods(site.node())?.iter().filter(|rule| rule.starts_with(what)).count())
    };
    for (map, each) in [("ports4", 2), ("ports6", 2), ("masquerade4", 1), ("masquerade6", 1)] {
        assert_eq!(count(map)?, each * PODS, "{map}");
    }
    for number in [0, 1, 250, 499] {
        let pod = &pods[number];
        let _tcp = Server::start(pod, "tcp [::]:80".parse()?)?;
        let _udp = Server::start(pod, "udp [::]:80".parse()?)?;
        for to in
            [format!("tcp 198.51.100.1:{}", 20_000 + number), format!("udp [fd51::1]:{}", 20_000 + number)]
        {
            let heard = Client::at(&outside).hear(to.parse()?)?;
            assert_eq!(heard.server, pod.name());
        }
        checked(&site, pod, &ports(number), &results[number])?;
    }
    // All of them are put back at once: in one transaction, so that one of them tells of all.
    let _last = Server::start(&pods[498], "tcp [::]:80".parse()?)?;
    sh(&site, "nft flush ruleset")?;
    let flushed = Instant::now();
    assert!(wait_for(SOON, || answers(&outside, 20_498)), "{}", agent.log());
    println!("put back after {:?}", flushed.elapsed());
    assert_eq!(count("ports4")?, 2 * PODS);
    let began = Instant::now();
    let ended = at_once_for(&numbers, 8, |number| site.del(&pods[*number], &ports(*number)));
    ended.into_iter().collect::<Result<Vec<_>>>()?;
    println!("removed in {:?}", began.elapsed());
    site.assert_nothing_left()?;
    agent.stop()
}

// -- others on the node --

/// A firewall as Docker leaves it.
const DOCKER: &str = "
iptables -P FORWARD DROP; ip6tables -P FORWARD DROP
for i in iptables ip6tables; do
  $i -N DOCKER-USER; $i -A DOCKER-USER -j RETURN; $i -N DOCKER
  $i -A FORWARD -j DOCKER-USER; $i -A FORWARD -o docker0 -j DOCKER
done";

fn behind_a_drop(name: &str, firewall: &str, chain: &str) -> Result<()> {
    let site = Site::new(name)?;
    let outside = Outside::link_to(site.node())?;
    sh(&site, firewall)?;
    let list = "iptables -S; ip6tables -S";
    let before = sh(&site, list)?;
    let agent = site.agent()?;
    let config = on_port(8080);
    let (pod, other) = (site.pod("p")?, site.pod("other")?);
    let result = site.add(&pod, &config)?;
    site.add(&other, &masqueraded())?;
    let _servers = [
        Server::start(&pod, "tcp [::]:80".parse()?)?,
        Server::start(&outside, "tcp [::]:81".parse()?)?,
        Server::start(&other, "tcp [::]:80".parse()?)?,
    ];
    // Pod to pod is forwarded too where bridge netfilter is on.
    let everywhere = || -> Result<()> {
        Client::at(&outside).hear("tcp 198.51.100.1:8080".parse()?)?;
        Client::at(&outside).hear("tcp [fd51::1]:8080".parse()?)?;
        Client::at(&pod).hear("tcp 198.51.100.2:81".parse()?)?;
        Client::at(&pod).hear("tcp [fd51::2]:81".parse()?)?;
        Client::at(&pod).hear("tcp 10.77.0.3:80".parse()?)?;
        Client::at(&pod).hear("tcp [fd77::3]:80".parse()?).map(drop)
    };
    everywhere()?;
    checked(&site, &pod, &config, &result)?;
    // Iptables itself can read what was added, and says whose it is.
    let now = sh(&site, list)?;
    let added: Vec<&str> = now.lines().filter(|line| !before.contains(line)).collect();
    assert_eq!(added.len(), 4, "{now}");
    assert!(
        added.iter().all(|line| line.starts_with(&format!("-A {chain} ")) && line.contains("podwire")),
        "{added:?}"
    );
    let kept: Vec<&str> = now.lines().filter(|line| !added.contains(line)).collect();
    assert_eq!(kept, before.lines().collect::<Vec<_>>());
    // A second pod adds none, and the firewall's restart takes none away for long.
    sh(&site, &format!("nft flush ruleset; {firewall}"))?;
    assert!(
        wait_for(SOON, || sh(&site, list).is_ok_and(|again| now.lines().all(|line| again.contains(line)))),
        "{}\n{}",
        sh(&site, list)?,
        agent.log()
    );
    everywhere()?;
    site.del(&pod, &config)?;
    site.del(&other, &masqueraded())?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn dockers_firewall_lets_pods_through() -> Result<()> {
    behind_a_drop("docker", DOCKER, "DOCKER-USER")
}

#[test]
fn a_forward_chain_that_drops_lets_pods_through() -> Result<()> {
    behind_a_drop("drop", "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP", "FORWARD")
}

#[test]
fn legacy_iptables_that_drop_are_reported_and_left_alone() -> Result<()> {
    let site = Site::new("legacy")?;
    sh(&site, "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP")?;
    let list = "iptables-legacy -S; ip6tables-legacy -S";
    let before = sh(&site, list)?;
    let pod = site.pod("p")?;
    let config = on_port(8080);
    let answer = site.call("ADD", &pod, &config).run(site.node())?;
    let notice = answer.process.err();
    answer.ok()?;
    assert!(notice.contains("legacy"), "{notice}");
    assert_eq!(sh(&site, list)?, before);
    site.del(&pod, &config)?;
    site.assert_nothing_left()
}

#[test]
fn a_port_that_a_process_of_the_node_has_goes_to_the_pod_with_a_notice() -> Result<()> {
    let site = Site::new("process")?;
    let outside = Outside::link_to(site.node())?;
    let _process = Server::start(site.node(), "tcp [::]:8080".parse()?)?;
    let to = "tcp 198.51.100.1:8080".parse()?;
    assert_eq!(Client::at(&outside).hear(to)?.server, "node");
    let pod = site.pod("p")?;
    let config = on_port(8080);
    let answer = site.call("ADD", &pod, &config).run(site.node())?;
    let notice = answer.process.err();
    answer.ok()?;
    assert!(notice.contains("8080"), "{notice}");
    let _server = Server::start(&pod, "tcp [::]:80".parse()?)?;
    assert_eq!(Client::at(&outside).hear(to)?.server, "p");
    site.del(&pod, &config)?;
    assert_eq!(Client::at(&outside).hear(to)?.server, "node");
    site.assert_nothing_left()
}

#[test]
fn a_udp_flow_finds_each_next_pod_on_its_port() -> Result<()> {
    let site = Site::new("flow")?;
    let outside = Outside::link_to(site.node())?;
    let agent = site.agent()?;
    let config = on_port(8080);
    let first = site.pod("first")?;
    site.add(&first, &config)?;
    let server = Server::start(&first, "udp [::]:80".parse()?)?;
    // One socket all the time, as a resolver or a VPN has it; and one on the node itself.
    let mut flows = [
        Client::at(&outside).talk("udp 198.51.100.1:8080".parse()?)?,
        Client::at(&outside).talk("udp [fd51::1]:8080".parse()?)?,
        Client::at(site.node()).talk("udp 127.0.0.1:8080".parse()?)?,
    ];
    site.del(&first, &config)?;
    drop(server);
    for round in 0..5 {
        for flow in &mut flows {
            // Nobody is there, and the kernel takes note of that too.
            assert!(flow.again(Duration::from_millis(60)).is_err());
        }
        let next = site.pod(&format!("next{round}"))?;
        site.add(&next, &config)?;
        let _server = Server::start(&next, "udp [::]:80".parse()?)?;
        for flow in &mut flows {
            assert_eq!(flow.again(Duration::from_secs(2))?.server, next.name());
        }
        site.del(&next, &config)?;
    }
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn connections_of_other_pods_are_not_forgotten() -> Result<()> {
    let site = Site::new("others")?;
    let outside = Outside::link_to(site.node())?;
    let (stays, goes) = (site.pod("stays")?, site.pod("goes")?);
    site.add(&stays, &masqueraded())?;
    let _server = Server::start(&outside, "udp 198.51.100.2:53".parse()?)?;
    let mut flow = Client::at(&stays).talk("udp 198.51.100.2:53".parse()?)?;
    // Its port on the node was chosen at random: it stays as long as the kernel remembers the connection.
    let port = flow.heard.peer;
    for round in 0..5 {
        site.add(&goes, &on_port(8080))?;
        Client::at(&goes).hear("udp 198.51.100.2:53".parse()?)?;
        site.del(&goes, &on_port(8080))?;
        assert_eq!(flow.again(SOON)?.peer, port, "round {round}");
    }
    site.del(&stays, &masqueraded())?;
    site.assert_nothing_left()
}

#[test]
fn gc_removes_rules_that_belong_to_nobody() -> Result<()> {
    let site = Site::new("gc")?;
    let config = on_port(8080);
    let (lives, dead) = (site.pod("lives")?, site.pod("dead")?);
    let result = site.add(&lives, &config)?;
    site.add(&dead, &with_what_nft_can_save(8081))?;
    // Gone without a DEL; then a saved ruleset brings the rules back once more.
    sh(&site, "nft list ruleset > /run/saved")?;
    site.del(&dead, &with_what_nft_can_save(8081))?;
    sh(&site, "{ echo flush ruleset; cat /run/saved; } > /run/restore; nft -f /run/restore")?;
    let of_dead =
        || Ok::<_, LabError>(rules_of_pods(site.node())?.iter().filter(|rule| rule.contains("8081")).count());
    assert!(of_dead()? > 0);
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "lives", "ifname": "eth0" }]);
    site.call_for_network("GC", &gc).run(site.node())?.ok()?;
    assert_eq!(of_dead()?, 0, "{:?}", rules_of_pods(site.node())?);
    checked(&site, &lives, &config, &result)?;
    site.del(&lives, &config)?;
    site.assert_nothing_left()
}

#[test]
fn two_runtimes_share_a_node_and_its_ports() -> Result<()> {
    let site = Site::new("runtimes")?;
    let agent = site.agent()?;
    let (kube, podman) = (on_port(8080), {
        let mut config = on_port(9090);
        config["name"] = json!("podman");
        config["bridge"] = json!("cni-podman0");
        config["ipam"]["ranges"] = json!([[{ "subnet": "10.88.0.0/16" }]]);
        config
    });
    let (mine, theirs, third) = (site.pod("mine")?, site.pod("theirs")?, site.pod("third")?);
    site.run_by("containerd", &site.call("ADD", &mine, &kube))?.ok()?;
    let result = site.run_by("podman", &site.call("ADD", &theirs, &podman))?.ok()?;
    // The node's ports are one space.
    let mut same = podman.clone();
    same["runtimeConfig"] = kube["runtimeConfig"].clone();
    let (code, message) = site.run_by("podman", &site.call("ADD", &third, &same))?.error()?;
    assert_eq!(code, PORT_TAKEN, "{message}");
    assert!(message.contains("mine"), "{message}");
    // One runtime's GC says nothing about the other's pods.
    let mut gc = kube.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    site.run_by("containerd", &PluginCall::new("podwire", "GC").stdin(&gc))?.ok()?;
    checked(&site, &theirs, &podman, &result)?;
    let rules = rules_of_pods(site.node())?;
    assert!(
        rules.iter().any(|rule| rule.contains("theirs")) && !rules.iter().any(|rule| rule.contains("mine")),
        "{rules:?}"
    );
    site.del(&mine, &kube)?;
    site.call("DEL", &theirs, &podman).run(site.node())?.ok()?;
    assert_eq!(rules_of_pods(site.node())?, [""; 0]);
    agent.stop()
}
