//! What becomes of nodes when the Kubernetes API is away, slow, cut off, forgetful, or does not know their tokens any more.
//! Packets between pods go on.

use std::time::Duration;

use podwire_netns_tests::apiserver::{Fault, NodeSpec};
use podwire_netns_tests::cluster::{Cluster, Meeting, Options, Scene, Store};
use podwire_netns_tests::kubernetes::{ControlPlane, RECORD};
use podwire_netns_tests::underlay::{Families, Layout, Underlay};
use podwire_netns_tests::{Lab, Result, wait_for};
use serde_json::{Value, json};

/// In how much time an agent has noticed that the API does not answer, and that it does again: backoff and all.
const LIMIT: Duration = Duration::from_secs(60);

struct WithApi {
    scene: Scene,
    api: ControlPlane,
}

fn prepare(name: &str, options: Options) -> Result<(Cluster, ControlPlane)> {
    let lab = Lab::new(name)?;
    let underlay = Underlay::new(Families::Dual, Layout::Flat)?;
    let api = ControlPlane::start(&lab, &underlay)?;
    let options = Options { store: Store::Kubernetes(api.clone()), ..options };
    Ok((Cluster::prepare_on(&lab, &underlay, &options)?, api))
}

impl WithApi {
    fn new(name: &str) -> Result<Self> {
        let (mut cluster, api) = prepare(name, Options::default())?;
        cluster.start_agents()?;
        Ok(Self { scene: Scene::of(cluster)?, api })
    }

    fn store_is(&self, number: usize, state: &str) -> Result<()> {
        let agent = self.scene.cluster.member(number).agent()?;
        let mut last = Value::Null;
        let is = wait_for(LIMIT, || {
            last = agent.get_json("/v1/status").map_or(Value::Null, |mut status| status["store"].take());
            last["state"] == state
        });
        assert!(is, "{last} instead of {state}: {}", agent.log());
        Ok(())
    }

    /// A change in the API gets to the agents: a node comes, its pod is reached, and it goes.
    fn hears_of_changes(&mut self) -> Result<()> {
        let new = self.scene.cluster.add_node()?;
        self.scene.cluster.member_mut(new).spawn_agent()?;
        self.scene.cluster.member_mut(new).agent_mut()?.wait_until_ready(LIMIT)?;
        let pod = self.scene.cluster.pod(new, "new")?;
        let reach = wait_for(LIMIT, || self.scene.cluster.assert_reach(&self.scene.pods[0], &pod).is_ok());
        assert!(reach, "{}", self.scene.log());
        self.scene.all_good()
    }
}

#[test]
fn the_api_down_for_the_whole_of_an_agents_restart_costs_nothing() -> Result<()> {
    let mut lab = WithApi::new("api-down")?;
    let mut api = lab.api.clone();
    lab.scene.outlives_the_store(&mut api)?;
    lab.hears_of_changes()
}

#[test]
fn agents_that_start_with_the_api_down_wait_and_say_so() -> Result<()> {
    let (mut cluster, mut api) = prepare("api-late", Options::default())?;
    api.vanish()?;
    for number in [0, 1] {
        cluster.member_mut(number).spawn_agent()?;
        cluster.member(number).serves()?;
    }
    let (code, why) = cluster.member(0).agent()?.get("/readyz")?;
    assert_eq!(code, 503, "{why}");
    let shown = cluster.member(0).podwirectl(&["status"])?;
    assert!(!shown.status.success() && shown.out().to_lowercase().contains("kubernetes"), "{}", shown.out());
    api.come_back()?;
    for number in [0, 1] {
        cluster.member_mut(number).agent_mut()?.wait_until_ready(LIMIT)?;
    }
    Scene::of(cluster)?.assert_steady()
}

#[test]
fn an_api_that_is_away_silent_slow_or_broken_costs_nothing_and_is_found_again() -> Result<()> {
    for fault in [
        Fault::Refuse,
        Fault::Silent,
        Fault::Cut,
        Fault::Fail(500),
        Fault::Fail(429),
        Fault::Slow(Duration::from_millis(500)),
    ] {
        println!("{fault:?}");
        let slow = matches!(fault, Fault::Slow(_));
        let mut lab = WithApi::new("api-fault")?;
        lab.api.server().set_fault(fault);
        lab.api.server().drop_watches();
        if !slow {
            lab.store_is(0, "lost")?;
        }
        // The agent dies meanwhile, too.
        let before = lab.scene.cluster.member(0).agent()?.subnets()?;
        lab.scene.cluster.member_mut(0).kill_agent()?;
        lab.scene.cluster.member_mut(0).spawn_agent()?;
        lab.scene.serves_from_memory(&before)?;
        lab.scene.state_comes_back()?;
        lab.api.server().set_fault(Fault::None);
        lab.store_is(0, "connected")?;
        lab.hears_of_changes()?;
    }
    Ok(())
}

#[test]
fn a_history_that_is_gone_and_watches_that_end_cost_nothing() -> Result<()> {
    let mut lab = WithApi::new("api-compacted")?;
    for _ in 0..3 {
        lab.api.server().compact();
        lab.api.server().drop_watches();
        lab.scene.all_good()?;
    }
    // What happened in between is known afterwards.
    lab.api.vanish()?;
    lab.store_is(0, "lost")?;
    let far = NodeSpec::new("unborn").pod_cidrs(&["10.240.99.0/24"]);
    lab.api.server().create_node(&far)?;
    lab.api.server().compact();
    lab.api.come_back()?;
    lab.store_is(0, "connected")?;
    // A server of before streaming lists.
    lab.api.server().set_streaming_lists(false);
    lab.api.server().compact();
    lab.api.server().drop_watches();
    lab.hears_of_changes()
}

#[test]
fn tokens_that_end_are_read_again() -> Result<()> {
    let mut lab = WithApi::new("api-token")?;
    for _ in 0..2 {
        for member in lab.scene.cluster.members() {
            lab.api.renew_token(member)?;
        }
        lab.api.server().drop_watches();
        lab.hears_of_changes()?;
        lab.store_is(0, "connected")?;
    }
    // Nothing that agents print has a token in it.
    for member in lab.scene.cluster.members() {
        let log = member.agent()?.log();
        assert!(!log.contains("token-"), "{log}");
    }
    Ok(())
}

#[test]
fn annotations_that_somebody_spoils_are_put_back_and_other_nodes_nonsense_harms_nobody() -> Result<()> {
    let mut lab = WithApi::new("api-hostile")?;
    let record = |api: &ControlPlane, node: &str| api.server().annotation(node, RECORD).unwrap_or_default();
    let good = record(&lab.api, "node1");
    let annotate = |value: Value| json!({"metadata": {"annotations": {"podwire.dev/node": value}}});
    for bad in [Value::Null, json!(""), json!("garbage"), json!("[".repeat(5_000)), json!("{\"version\":99}")]
    {
        lab.api.server().patch_node("node1", &annotate(bad))?;
        let back = wait_for(LIMIT, || record(&lab.api, "node1") == good);
        assert!(back, "{}; {}", record(&lab.api, "node1"), lab.scene.cluster.member(1).agent()?.log());
    }
    lab.scene.settle()?;
    // A node without an agent of ours says what it likes.
    let evil = NodeSpec::new("evil").pod_cidrs(&["10.240.77.0/24", "fd00:10:244:4d::/64"]);
    lab.api.server().create_node(&evil.internal_ips(&["10.10.0.1"]))?;
    let parsed: Value = serde_json::from_str(&good).unwrap_or_default();
    for (key, value) in [
        ("addresses", json!(["224.0.0.1"])),
        ("addresses", json!(vec!["10.10.9.9"; 500])),
        ("mtu", json!(1)),
        ("receives", json!([{"vni": 1, "port": 8472, "mac": "ff:ff:ff:ff:ff:ff"}])),
        ("version", json!(u64::MAX)),
        ("instance", json!("\u{1b}[31m")),
    ] {
        let mut hostile = parsed.clone();
        hostile[key] = value;
        lab.api.server().patch_node("evil", &annotate(json!(hostile.to_string())))?;
        lab.scene.all_good()?;
    }
    assert_eq!(lab.scene.cluster.member(0).dataplane()?, lab.scene.before);
    lab.hears_of_changes()
}
