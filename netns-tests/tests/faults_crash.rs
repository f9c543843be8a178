//! Every way to be killed: the plugin at each step of ADD and of DEL, the agent at each step of a commit. Which
//! steps there are is asked of a run that is not killed.
//!
//! After each kill the node must serve others as if nothing had been, DEL must remove what is left, and no
//! address may be lost or have two owners.

use podwire_netns_tests::faults::{Agent, BRIDGE, GATEWAY, Site, addresses, each, network, pool};
use podwire_netns_tests::{LabError, Pod, Result};
use serde_json::{Value, json};

/// How many steps are tried at once: most of the time goes into waiting for the kernel to end links.
const AT_ONCE: usize = 3;

/// Room for the pod that is killed and for one that is not.
const POOL: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Allocator {
    Agent,
    Plugin,
}

/// What was there before the ADD that is killed.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// Nothing: no bridge, no store.
    Cold,
    /// A pod.
    Warm,
}

struct Scene {
    site: Site,
    config: Value,
    agent: Option<Agent>,
    victim: Pod,
    other: Pod,
}

impl Scene {
    fn new(name: &str, allocator: Allocator, start: Start) -> Result<Self> {
        let site = Site::with_hooks(name)?;
        let config = pool(u8::try_from(POOL).map_err(LabError::because("pool"))?);
        let agent = if allocator == Allocator::Agent { Some(site.agent()?) } else { None };
        let (victim, other) = (site.pod("victim")?, site.pod("other")?);
        if start == Start::Warm {
            let earlier = site.pod("earlier")?;
            site.add(&earlier, &config)?;
            site.del(&earlier, &config)?;
            earlier.delete()?;
        }
        Ok(Self { site, config, agent, victim, other })
    }

    /// The victim has been killed. Another pod comes and works; DEL of the victim leaves nothing of it; both
    /// addresses are there, each once.
    fn ends_well(self) -> Result<()> {
        let Self { site, config, agent, victim, other } = self;
        let result = site.add(&other, &config)?;
        let taken = addresses(&result);
        let (mine, gateway) = (taken[0], GATEWAY.parse().map_err(LabError::because("gateway"))?);
        if victim.links()?.contains(&"eth0".to_owned()) {
            let half_made = victim.addresses("eth0")?;
            assert!(!half_made.contains(&format!("{mine}/24")), "{mine} is two pods'");
        }
        site.check(&other, &config, &result)?.ok()?;
        other.ping(gateway)?;

        site.del(&victim, &config)?;
        assert_eq!(victim.links()?, [""; 0], "DEL left an interface");
        assert_eq!(site.node().links()?.len(), 2, "DEL left a link: {:?}", site.node().links()?);
        site.assert_pool_whole(&config, POOL, &taken)?;
        site.check(&other, &config, &result)?.ok()?;
        other.ping(gateway)?;

        site.del(&other, &config)?;
        assert_eq!(site.node().links()?, [BRIDGE]);
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)
    }
}

fn add_killed_at_every_step(name: &str, allocator: Allocator, start: Start) -> Result<()> {
    let scene = Scene::new(name, allocator, start)?;
    let steps = scene.site.steps(scene.site.call("ADD", &scene.victim, &scene.config))?;
    let must_have = match (start, allocator) {
        (Start::Cold, Allocator::Plugin) => vec!["create-bridge:1", "created-veth:1", "commit-durable:1"],
        (Start::Cold, Allocator::Agent) => vec!["create-bridge:1", "created-veth:1"],
        (Start::Warm, Allocator::Plugin) => vec!["created-veth:1", "configured-pod:1", "commit-durable:1"],
        (Start::Warm, Allocator::Agent) => vec!["created-veth:1", "configured-pod:1"],
    };
    assert!(must_have.iter().all(|step| steps.iter().any(|s| s == step)), "{must_have:?} of {steps:?}");
    drop(scene);
    each(&steps, AT_ONCE, |step| {
        let scene = Scene::new(name, allocator, start)?;
        scene.site.killed_at(step, scene.site.call("ADD", &scene.victim, &scene.config))?;
        scene.ends_well()
    })
}

#[test]
fn plugin_killed_at_every_step_of_the_first_add() -> Result<()> {
    add_killed_at_every_step("kill-cold", Allocator::Plugin, Start::Cold)
}

#[test]
fn plugin_killed_at_every_step_of_an_add() -> Result<()> {
    add_killed_at_every_step("kill-warm", Allocator::Plugin, Start::Warm)
}

#[test]
fn plugin_killed_at_every_step_of_the_first_add_with_the_agent() -> Result<()> {
    add_killed_at_every_step("kill-cold-agent", Allocator::Agent, Start::Cold)
}

#[test]
fn plugin_killed_at_every_step_of_an_add_with_the_agent() -> Result<()> {
    add_killed_at_every_step("kill-warm-agent", Allocator::Agent, Start::Warm)
}

#[test]
fn add_again_after_a_kill_at_any_step_attaches_with_the_same_address() -> Result<()> {
    let scene = Scene::new("kill-again", Allocator::Plugin, Start::Cold)?;
    let steps = scene.site.steps(scene.site.call("ADD", &scene.victim, &scene.config))?;
    drop(scene);
    each(&steps, AT_ONCE, |step| {
        let Scene { site, config, victim, other, .. } =
            Scene::new("kill-again", Allocator::Plugin, Start::Cold)?;
        site.killed_at(step, site.call("ADD", &victim, &config))?;
        let result = site.add(&victim, &config)?;
        // A reservation that was durable is found again, and one that was not took no address with it.
        assert_eq!(addresses(&result)[0].to_string(), "10.77.0.2");
        site.check(&victim, &config, &result)?.ok()?;
        victim.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        site.del(&victim, &config)?;
        assert_eq!(other.links()?, [""; 0]);
        site.assert_pool_whole(&config, POOL, &[])?;
        site.assert_nothing_left()
    })
}

fn del_killed_at_every_step(name: &str, allocator: Allocator) -> Result<()> {
    let attached = || -> Result<Scene> {
        // Warm: the second process to open a store compares leases and links, whose changes are a race with this DEL.
        let scene = Scene::new(name, allocator, Start::Warm)?;
        scene.site.add(&scene.victim, &scene.config)?;
        Ok(scene)
    };
    let scene = attached()?;
    let steps = scene.site.steps(scene.site.call("DEL", &scene.victim, &scene.config))?;
    eprintln!("STEPS {steps:?}");
    // With the agent a DEL is one question; what is asked for happens though nobody waits for the answer.
    let must_have = if allocator == Allocator::Agent { "agent-asked:1" } else { "commit-durable:1" };
    assert!(steps.iter().any(|step| step == must_have), "{steps:?}");
    drop(scene);
    each(&steps, AT_ONCE, |step| {
        let scene = attached()?;
        scene.site.killed_at(step, scene.site.call("DEL", &scene.victim, &scene.config))?;
        scene.ends_well()
    })
}

#[test]
fn plugin_killed_at_every_step_of_del() -> Result<()> {
    del_killed_at_every_step("kill-del", Allocator::Plugin)
}

#[test]
fn plugin_killed_at_every_step_of_del_with_the_agent() -> Result<()> {
    del_killed_at_every_step("kill-del-agent", Allocator::Agent)
}

/// What the plugins ask of the agent while it dies at some step: the first ADD of a node, DEL, ADD.
fn life(site: &Site, config: &Value, first: &Pod, second: &Pod) -> Result<Value> {
    site.add(first, config)?;
    site.del(first, config)?;
    site.add(second, config)
}

#[test]
fn agent_killed_at_every_step_of_a_commit() -> Result<()> {
    let config = pool(u8::try_from(POOL).map_err(LabError::because("pool"))?);
    let site = Site::with_hooks("kill-agent")?;
    let (first, second) = (site.pod("first")?, site.pod("second")?);
    let mut agent = Agent::spawn(&site, &[("PODWIRE_STEP_TRACE", "/run/steps")])?;
    agent.serves()?;
    life(&site, &config, &first, &second)?;
    // Not stopped: what it does at its end is another matter.
    agent.kill()?;
    agent.was_killed()?;
    let steps = site.traced("/run/steps")?;
    assert!(steps.iter().filter(|step| step.starts_with("commit-durable")).count() >= 3, "{steps:?}");
    drop(site);

    each(&steps, AT_ONCE, |step| {
        let site = Site::with_hooks("kill-agent")?;
        let (first, second) = (site.pod("first")?, site.pod("second")?);
        let mut agent = Agent::spawn(&site, &[("PODWIRE_STEP_KILL", step)])?;
        // It may die before it serves; else the plugins find it there, and it dies on them.
        let _ = agent.serves();
        let result = life(&site, &config, &first, &second)?;
        agent.was_killed()?;
        let successor = site.agent()?;
        site.check(&second, &config, &result)?.ok()?;
        second.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        assert_eq!(first.links()?, [""; 0]);
        assert_eq!(site.node().links()?.len(), 2, "{:?}", site.node().links()?);
        site.assert_pool_whole(&config, POOL, &addresses(&result))?;
        site.del(&second, &config)?;
        site.assert_nothing_left()?;
        successor.stop()
    })
}

#[test]
fn plugin_killed_while_it_takes_back_a_failed_add() -> Result<()> {
    // The pod has an eth0 already: the veth cannot be made, and what was made before is taken back.
    let config = network(json!([[{"subnet": "10.77.0.0/24"}]]));
    let occupied = |site: &Site| -> Result<Pod> {
        let pod = site.pod("occupied")?;
        let mut make = podwire_netns_tests::program("ip");
        make.args(["link", "add", "eth0", "type", "bridge"]);
        pod.run_program(&mut make, podwire_netns_tests::LIMIT)?.success("make an eth0")?;
        Ok(pod)
    };
    let site = Site::with_hooks("kill-undo")?;
    let pod = occupied(&site)?;
    let (code, message) =
        site.call("ADD", &pod, &config).env("PODWIRE_STEP_TRACE", "/run/steps").run(site.node())?.error()?;
    assert_eq!(code, 105, "{message}");
    let steps = site.traced("/run/steps")?;
    assert!(steps.iter().any(|step| step == "undo:2"), "{steps:?}");
    drop(site);
    let undo: Vec<_> = steps.into_iter().filter(|step| step.starts_with("undo")).collect();
    each(&undo, AT_ONCE, |step| {
        let site = Site::with_hooks("kill-undo")?;
        let pod = occupied(&site)?;
        site.killed_at(step, site.call("ADD", &pod, &config))?;
        site.del(&pod, &config)?;
        assert_eq!(pod.links()?, ["eth0"], "what is not ours stays");
        let other = site.pod("other")?;
        let result = site.add(&other, &config)?;
        site.check(&other, &config, &result)?.ok()?;
        other.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        site.del(&other, &config)?;
        site.assert_nothing_left()
    })
}
