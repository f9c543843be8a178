//! Every way to be killed: the plugin at each step of ADD and of DEL, the agent at each step of a commit. Which
//! steps there are is asked of a run that is not killed.
//!
//! After each kill the node must serve others as if nothing had been, DEL must remove what is left, and no
//! address may be lost or have two owners.

use std::net::IpAddr;
use std::time::Duration;

use podwire_netns_tests::faults::{Agent, BRIDGE, GATEWAY, Site, Steps, addresses, network, pool};
use podwire_netns_tests::{LabError, PluginCall, Pod, Result};
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
    let steps = Steps::of(|| {
        let scene = Scene::new(name, allocator, start)?;
        scene.site.steps(scene.site.call("ADD", &scene.victim, &scene.config))
    })?;
    let must_have: &[&str] = match (start, allocator) {
        (Start::Cold, Allocator::Plugin) => &["create-bridge:1", "created-veth:1", "commit-durable:1"],
        (Start::Cold, Allocator::Agent) => &["create-bridge:1", "created-veth:1", "agent-asked:2"],
        (Start::Warm, Allocator::Plugin) => &["created-veth:1", "configured-pod:1", "commit-durable:1"],
        (Start::Warm, Allocator::Agent) => &["created-veth:1", "configured-pod:1", "agent-asked:2"],
    };
    assert!(must_have.iter().all(|step| steps.contains(step)), "{must_have:?} of {steps:?}");
    steps.kill_at_each(AT_ONCE, |step| {
        let scene = Scene::new(name, allocator, start)?;
        let killed = scene.site.killed_at(step, scene.site.call("ADD", &scene.victim, &scene.config))?;
        scene.ends_well().map(|()| killed)
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
    let cold = || Scene::new("kill-again", Allocator::Plugin, Start::Cold);
    let steps = Steps::of(|| {
        let scene = cold()?;
        scene.site.steps(scene.site.call("ADD", &scene.victim, &scene.config))
    })?;
    steps.kill_at_each(AT_ONCE, |step| {
        let Scene { site, config, victim, other, .. } = cold()?;
        let killed = site.killed_at(step, site.call("ADD", &victim, &config))?;
        let result = site.add(&victim, &config)?;
        // A reservation that was durable is found again, and one that was not took no address with it.
        assert_eq!(addresses(&result)[0].to_string(), "10.77.0.2");
        site.check(&victim, &config, &result)?.ok()?;
        victim.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        site.del(&victim, &config)?;
        assert_eq!(other.links()?, [""; 0]);
        site.assert_pool_whole(&config, POOL, &[])?;
        site.assert_nothing_left().map(|()| killed)
    })
}

fn del_killed_at_every_step(name: &str, allocator: Allocator) -> Result<()> {
    let attached = || -> Result<Scene> {
        let scene = Scene::new(name, allocator, Start::Warm)?;
        scene.site.add(&scene.victim, &scene.config)?;
        Ok(scene)
    };
    let steps = Steps::of(|| {
        let scene = attached()?;
        scene.site.steps(scene.site.call("DEL", &scene.victim, &scene.config))
    })?;
    // With the agent a DEL is one question; what is asked for happens though nobody waits for the answer.
    let must_have = if allocator == Allocator::Agent { "agent-asked:1" } else { "commit-durable:1" };
    assert!(steps.contains(must_have), "{steps:?}");
    steps.kill_at_each(AT_ONCE, |step| {
        let scene = attached()?;
        let killed = scene.site.killed_at(step, scene.site.call("DEL", &scene.victim, &scene.config))?;
        scene.ends_well().map(|()| killed)
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
    let steps = Steps::of(|| {
        let site = Site::with_hooks("kill-agent")?;
        let (first, second) = (site.pod("first")?, site.pod("second")?);
        let mut agent = Agent::spawn(&site, &[("PODWIRE_STEP_TRACE", "/run/steps")])?;
        agent.serves()?;
        life(&site, &config, &first, &second)?;
        // Not stopped: what it does at its end is another matter.
        agent.kill()?;
        agent.was_killed()?;
        site.traced("/run/steps")
    })?;
    assert!(steps.contains("commit-durable:3") && steps.contains("dellink:1"), "{steps:?}");

    steps.kill_at_each(AT_ONCE, |step| {
        let site = Site::with_hooks("kill-agent")?;
        let (first, second) = (site.pod("first")?, site.pod("second")?);
        let mut agent = Agent::spawn(&site, &[("PODWIRE_STEP_KILL", step)])?;
        // It may die before it serves; else the plugins find it there, and it dies on them.
        let _ = agent.serves();
        let result = life(&site, &config, &first, &second)?;
        let killed = agent.has_ended_within(Duration::from_secs(2));
        if killed {
            agent.was_killed()?;
        } else {
            agent.stop()?;
        }
        let successor = site.agent()?;
        site.check(&second, &config, &result)?.ok()?;
        second.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        assert_eq!(first.links()?, [""; 0]);
        assert_eq!(site.node().links()?.len(), 2, "{:?}", site.node().links()?);
        site.assert_pool_whole(&config, POOL, &addresses(&result))?;
        site.del(&second, &config)?;
        site.assert_nothing_left()?;
        successor.stop().map(|()| killed)
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
    let steps = Steps::of(|| {
        let site = Site::with_hooks("kill-undo")?;
        let pod = occupied(&site)?;
        let call = site.call("ADD", &pod, &config).env("PODWIRE_STEP_TRACE", "/run/steps");
        let (code, message) = call.run(site.node())?.error()?;
        assert_eq!(code, 105, "{message}");
        site.traced("/run/steps")
    })?;
    assert!(steps.contains("undo:2"), "{steps:?}");
    steps.only("undo").kill_at_each(AT_ONCE, |step| {
        let site = Site::with_hooks("kill-undo")?;
        let pod = occupied(&site)?;
        let killed = site.killed_at(step, site.call("ADD", &pod, &config))?;
        site.del(&pod, &config)?;
        assert_eq!(pod.links()?, ["eth0"], "what is not ours stays");
        let other = site.pod("other")?;
        let result = site.add(&other, &config)?;
        site.check(&other, &config, &result)?.ok()?;
        other.ping(GATEWAY.parse().map_err(LabError::because("gateway"))?)?;
        site.del(&other, &config)?;
        site.assert_nothing_left().map(|()| killed)
    })
}

/// A node on which something has happened, a pod whose ADD is to be killed, and the addresses of others.
type Prepared = (Site, Pod, Vec<IpAddr>);

/// Kills that ADD at each of its steps. Then the pool, of six, gives exactly what is not in use.
fn killed_with_live_pods(
    prepare: impl Fn() -> Result<Prepared> + Sync,
    config: &Value,
    step: &str,
) -> Result<()> {
    let steps = Steps::of(|| {
        let (site, victim, _) = prepare()?;
        site.steps(site.call("ADD", &victim, config))
    })?;
    assert!(steps.contains(step), "{steps:?}");
    steps.kill_at_each(AT_ONCE, |step| {
        let (site, victim, in_use) = prepare()?;
        let killed = site.killed_at(step, site.call("ADD", &victim, config))?;
        site.del(&victim, config)?;
        site.assert_pool_whole(config, 6, &in_use)?;
        Ok(killed)
    })
}

#[test]
fn plugin_killed_at_every_step_of_the_add_that_rebuilds_a_broken_store() -> Result<()> {
    let config = pool(6);
    for damage in ["echo garbage > /var/lib/podwire/ipam/db", "rm -r /var/lib/podwire/ipam"] {
        let prepare = || -> Result<Prepared> {
            let site = Site::with_hooks("kill-rebuild")?;
            let pods = site.pods("p", 3)?;
            let in_use = pods.iter().map(|pod| site.add_for_address(pod, &config)).collect::<Result<_>>()?;
            // Their namespaces live on without these handles.
            drop(pods);
            site.node().run("sh", &["-c", damage])?.success(damage)?;
            let victim = site.pod("victim")?;
            Ok((site, victim, in_use))
        };
        killed_with_live_pods(prepare, &config, "store-named:1")?;
    }
    Ok(())
}

#[test]
fn plugin_killed_at_every_step_of_the_add_that_imports_from_host_local() -> Result<()> {
    let config = pool(6);
    let prepare = || -> Result<Prepared> {
        let site = Site::with_hooks("kill-import")?;
        let mut reference = config.clone();
        reference["cniVersion"] = json!("1.0.0");
        reference["type"] = json!("bridge");
        reference["ipam"]["type"] = json!("host-local");
        let mut in_use = Vec::new();
        for pod in site.pods("p", 3)? {
            let call = PluginCall::new("bridge", "ADD").pod(&pod).stdin(&reference);
            in_use.extend(addresses(&call.run(site.node())?.ok()?));
        }
        let victim = site.pod("victim")?;
        Ok((site, victim, in_use))
    };
    killed_with_live_pods(prepare, &config, "commit-durable:1")
}
