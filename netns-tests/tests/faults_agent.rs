//! The agent dies, freezes, comes and goes, is of another version, or has clients that hang up.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use podwire_netns_tests::faults::wire::{Client, FakeAgent, frame, other_version};
use podwire_netns_tests::faults::{
    Agent, BRIDGE, GATEWAY, NETWORK, SOCKET, Site, TRY_AGAIN, addresses, at_once_for, pool,
};
use podwire_netns_tests::{LabError, Pod, Result, wait_for};
use serde_json::{Value, json};

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(LabError::because(address))
}

/// What podwire asks the agent for when it makes that call, without the agent's having been asked.
fn request_of(site: &Site, verb: &str, pod: &Pod, config: &Value) -> Result<Value> {
    let mut config = config.clone();
    config["runDir"] = json!("/run/elsewhere");
    // Refused: so that nothing comes of it.
    let fake = FakeAgent::listen(site.node(), "/run/elsewhere/ipam.sock", |request| {
        Some(json!({
            "version": request["version"], "speaks": [request["version"], request["version"]], "id": request["id"],
            "result": {"error": {"code": "busy", "msg": "not now", "retry": true}}
        }))
    })?;
    site.call(verb, pod, &config).run(site.node())?.error()?;
    fake.asked().first().cloned().ok_or_else(|| LabError::new("podwire asked for nothing"))
}

// -- the lock --

/// How long a successor may have to wait for the lock; it was seen to take 0.1 to 0.2 ms.
const HAND_OVER: Duration = Duration::from_millis(5);

#[test]
fn an_agent_killed_during_a_dellink_leaves_the_lock_within_5_ms() -> Result<()> {
    let site = Site::new("dellink")?;
    let config = pool(9);
    let mut in_the_middle = Vec::new();
    for round in 0..40 {
        let mut agent = site.agent()?;
        let pod = site.pod("")?;
        site.add(&pod, &config)?;
        let delete = request_of(&site, "DEL", &pod, &config)?;
        let lock = File::options().write(true).open(site.node().path("/var/lib/podwire/ipam.lock"));
        let lock = lock.map_err(LabError::because("open the lock"))?;
        let mut client = Client::connect(site.node(), SOCKET)?;
        let (taken, killed, still_there) = std::thread::scope(|scope| -> Result<_> {
            // The successor waits, as one does.
            let successor =
                scope.spawn(|| Flock::lock(lock, FlockArg::LockExclusive).map(|held| (Instant::now(), held)));
            // Answered when the link is gone, some 30 ms before the kernel lets go of the agent's request.
            let answer = client.ask(&delete)?;
            assert!(answer["result"]["ok"].is_object(), "{answer}");
            let killed = Instant::now();
            agent.kill()?;
            let taken = successor.join().map_err(|_| LabError::new("the successor"))?;
            let still_there = !agent.has_ended();
            let (taken, held) = taken.map_err(|(_, errno)| LabError::because("lock")(errno))?;
            drop(held);
            Ok((taken, killed, still_there))
        })?;
        assert_eq!(pod.links()?, [""; 0]);
        if still_there {
            in_the_middle.push(taken.saturating_duration_since(killed));
        }
        agent.was_killed()?;
        site.del(&pod, &config)?;
        if in_the_middle.len() >= 5 && round >= 4 {
            break;
        }
    }
    assert!(in_the_middle.len() >= 3, "never killed in the middle of a DELLINK");
    in_the_middle.sort();
    println!("lock taken after {in_the_middle:?}");
    // The median: other tests keep the processors busy meanwhile.
    let median = in_the_middle[in_the_middle.len() / 2];
    assert!(median <= HAND_OVER, "the lock came free only after {in_the_middle:?}");
    site.assert_nothing_left()
}

#[test]
fn a_second_agent_waits_and_takes_over_when_the_first_is_killed() -> Result<()> {
    let site = Site::new("successor")?;
    let config = pool(2);
    let mut first = site.agent()?;
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    let mut second = Agent::spawn(&site, &[])?;
    // It waits for the lock, and says that it does: then plugins do not get between.
    let waits = || site.node().path("/var/lib/podwire/ipam.wanted").exists();
    assert!(wait_for(Duration::from_secs(5), waits));
    site.check(&pod, &config, &result)?.ok()?;
    assert!(!second.has_ended());
    first.kill()?;
    second.serves()?;
    first.was_killed()?;
    site.check(&pod, &config, &result)?.ok()?;
    site.assert_pool_whole(&config, 2, &addresses(&result))?;
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    second.stop()?;
    assert!(!site.node().path(SOCKET).exists(), "an agent that ends takes its socket along");
    Ok(())
}

#[test]
fn a_frozen_agent_is_waited_for_no_longer_than_its_deadline() -> Result<()> {
    let site = Site::new("frozen")?;
    let config = pool(2);
    let mut agent = site.agent()?;
    let (pod, other) = (site.pod("p")?, site.pod("other")?);
    let result = site.add(&other, &config)?;
    agent.signal(Signal::SIGSTOP)?;
    let answer = site.call("ADD", &pod, &config).run(site.node())?;
    let (code, message) = answer.error()?;
    assert_eq!(code, TRY_AGAIN, "{message}");
    assert!(answer.process.duration < Duration::from_secs(12), "{:?}", answer.process.duration);
    assert_eq!(pod.links()?, [""; 0]);
    other.ping(parse(GATEWAY)?)?;
    agent.signal(Signal::SIGCONT)?;
    // Nobody waits for that reservation any more.
    site.check(&other, &config, &result)?.ok()?;
    assert_eq!(site.leases()?.len(), 1, "{:?}", site.leases()?);
    site.assert_pool_whole(&config, 2, &addresses(&result))?;
    site.del(&other, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

// -- coming and going --

/// Adds and removes pods from several threads until told to stop. No call fails, no address has two pods.
fn pods_come_and_go(site: &Site, config: &Value, threads: usize, done: &AtomicBool) -> Result<usize> {
    let held = Mutex::new(BTreeSet::new());
    let count = AtomicUsize::new(0);
    let held_now = || held.lock().map_err(|_| LabError::new("a thread panicked"));
    let numbers: Vec<usize> = (0..threads).collect();
    for ended in at_once_for(&numbers, threads, |number| {
        let pod = site.pod(&format!("worker{number}"))?;
        while !done.load(Ordering::Relaxed) {
            let address = site.add_for_address(&pod, config)?;
            assert!(held_now()?.insert(address), "{address} was given twice");
            assert_eq!(pod.addresses("eth0")?, [format!("{address}/24")]);
            // Before DEL, which frees it.
            held_now()?.remove(&address);
            site.del(&pod, config)?;
            assert_eq!(pod.links()?, [""; 0]);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }) {
        ended?;
    }
    Ok(count.into_inner())
}

#[test]
fn plugins_live_through_an_agent_that_restarts_again_and_again() -> Result<()> {
    let site = Site::new("restarts")?;
    let config = pool(12);
    let done = AtomicBool::new(false);
    let pods = std::thread::scope(|scope| -> Result<usize> {
        let workers = scope.spawn(|| pods_come_and_go(&site, &config, 6, &done));
        let restart = |round: u64| -> Result<()> {
            let mut agent = Agent::spawn(&site, &[])?;
            // Killed while it starts, killed while it serves, ended while it serves.
            match round % 3 {
                0 => {
                    wait_for(Duration::from_millis(round % 7), || false);
                    agent.kill()?;
                    agent.was_killed()
                }
                1 => {
                    agent.serves()?;
                    wait_for(Duration::from_millis(20), || false);
                    agent.kill()?;
                    agent.was_killed()
                }
                _ => {
                    agent.serves()?;
                    wait_for(Duration::from_millis(40), || false);
                    agent.stop()
                }
            }
        };
        let restarted = (0..24).try_for_each(restart);
        done.store(true, Ordering::Relaxed);
        let pods = workers.join().map_err(|_| LabError::new("a worker panicked"))??;
        restarted.map(|()| pods)
    })?;
    assert!(pods >= 12, "only {pods} pods came and went");
    site.assert_pool_whole(&config, 12, &[])?;
    site.assert_nothing_left()
}

#[test]
fn an_agent_starts_and_stops_in_the_middle_of_fifty_adds() -> Result<()> {
    let site = Site::new("middle")?;
    let config = pool(50);
    let pods = site.pods("p", 50)?;
    let finished = AtomicUsize::new(0);
    // What happens when so many calls have ended.
    let come_and_go = |verb: &'static str| -> Result<Vec<Value>> {
        finished.store(0, Ordering::Relaxed);
        let reached = |count| wait_for(Duration::from_secs(30), || finished.load(Ordering::Relaxed) >= count);
        std::thread::scope(|scope| {
            let calls = scope.spawn(|| {
                let one = |pod: &Pod| {
                    let done = site.call(verb, pod, &config).run(site.node())?.ok();
                    finished.fetch_add(1, Ordering::Relaxed);
                    done
                };
                at_once_for(&pods, 10, one).into_iter().collect::<Result<Vec<Value>>>()
            });
            let agents = || -> Result<()> {
                assert!(reached(5));
                let first = site.agent()?;
                assert!(reached(15));
                first.stop()?;
                assert!(reached(25));
                let mut second = site.agent()?;
                assert!(reached(35));
                second.kill()?;
                second.was_killed()
            };
            let agents = agents();
            let calls = calls.join().map_err(|_| LabError::new("a call panicked"))?;
            agents.and(calls)
        })
    };
    let results = come_and_go("ADD")?;
    let given: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 50, "an address was given twice");
    for checked in
        at_once_for(&[0, 17, 33, 49], 4, |n: &usize| site.check(&pods[*n], &config, &results[*n])?.ok())
    {
        checked?;
    }
    come_and_go("DEL")?;
    assert_eq!(site.node().links()?, [BRIDGE]);
    site.assert_nothing_left()
}

// -- clients that hang up --

#[test]
fn clients_that_go_in_mid_request_cost_nobody_anything() -> Result<()> {
    let site = Site::new("hang-up")?;
    let config = pool(2);
    let agent = site.agent()?;
    let (pod, ghost) = (site.pod("p")?, site.pod("ghost")?);
    let reserve = request_of(&site, "ADD", &ghost, &config)?;
    let whole = frame(&reserve);
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count);
    // And the socket by which the agent looks at the packet filter, which it opens once, for its first look.
    let before = open_files() + 1;
    let nothing: &[u8] = &[];
    let pieces = [
        nothing,
        &whole[..2],
        &whole[..4],
        &whole[..whole.len() / 2],
        &whole[..whole.len() - 1],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 4, b'n', b'u', b'l', b'l'],
        &[0, 0, 0, 3, 0xff, 0xfe, 0xfd],
        &[0, 0, 0, 0],
    ];
    let mut slow = Vec::new();
    for piece in pieces {
        for _ in 0..5 {
            let mut client = Client::connect(site.node(), SOCKET)?;
            client.send_raw(piece)?;
        }
        // And some that do not go, and send no more either.
        let mut client = Client::connect(site.node(), SOCKET)?;
        client.send_raw(piece)?;
        slow.push(client);
    }
    assert_eq!(site.leases()?, [Value::Null; 0]);
    let began = Instant::now();
    let result = site.add(&pod, &config)?;
    assert!(began.elapsed() < Duration::from_secs(2), "the others had to wait: {:?}", began.elapsed());

    // Whole requests, and nobody who waits for the answers. At most one reservation comes of them: they say whose it is.
    for _ in 0..20 {
        let mut client = Client::connect(site.node(), SOCKET)?;
        client.send(&reserve)?;
    }
    site.check(&pod, &config, &result)?.ok()?;
    assert!(site.leases()?.len() <= 2, "{:?}", site.leases()?);
    site.del(&ghost, &config)?;
    drop(slow);
    assert!(
        wait_for(Duration::from_secs(5), || open_files() <= before),
        "{} files, were {before}",
        open_files()
    );
    site.assert_pool_whole(&config, 2, &addresses(&result))?;
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn a_reservation_whose_client_has_gone_is_not_made() -> Result<()> {
    let site = Site::new("gone-client")?;
    let config = pool(2);
    let mut agent = site.agent()?;
    let ghost = site.pod("ghost")?;
    let reserve = request_of(&site, "ADD", &ghost, &config)?;
    // Stopped: so that the client has gone when the agent comes to read.
    agent.signal(Signal::SIGSTOP)?;
    let mut client = Client::connect(site.node(), SOCKET)?;
    client.send(&reserve)?;
    drop(client);
    agent.signal(Signal::SIGCONT)?;
    // A later client's answer means that the earlier one has been seen to.
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    assert_eq!(addresses(&result), [parse("10.77.0.2")?]);
    assert_eq!(site.leases()?.len(), 1, "{:?}", site.leases()?);
    site.del(&pod, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

// -- other versions --

#[test]
fn an_agent_of_another_version_is_named_and_nothing_is_made() -> Result<()> {
    let site = Site::new("old-agent")?;
    let config = pool(2);
    let pod = site.pod("p")?;
    for speaks in [[0, 0], [7, 9]] {
        let fake =
            FakeAgent::listen(site.node(), SOCKET, move |request| Some(other_version(request, speaks)))?;
        for verb in ["ADD", "DEL"] {
            let (code, message) = site.call(verb, &pod, &config).run(site.node())?.error()?;
            assert!(message.contains("version"), "{verb}: {code} {message}");
        }
        assert_eq!(pod.links()?, [""; 0]);
        assert_eq!(site.node().links()?, [""; 0]);
        // It was asked a few times and not for ever.
        assert!((1..20).contains(&fake.asked().len()), "{:?}", fake.asked());
        drop(fake);
    }
    site.assert_nothing_left()
}

#[test]
fn the_agent_answers_plugins_of_other_versions() -> Result<()> {
    let site = Site::new("new-agent")?;
    let config = pool(2);
    let agent = site.agent()?;
    let ghost = site.pod("ghost")?;
    let reserve = request_of(&site, "ADD", &ghost, &config)?;
    let mut client = Client::connect(site.node(), SOCKET)?;
    let with = |key: &str, value: Value| {
        let mut request = reserve.clone();
        request[key] = value;
        request
    };
    // A newer plugin, whose request has any shape: it is told what is spoken, and can go on in that.
    for op in [reserve["op"].clone(), json!({"something-new": {"of": [1, 2]}}), json!(null)] {
        let mut newer = with("version", json!(1_000_000));
        newer["op"] = op;
        let answer = client.ask(&newer)?;
        assert_eq!(answer["id"], reserve["id"]);
        assert_eq!(answer["result"]["error"]["code"], "version", "{answer}");
        let (oldest, newest) = (&answer["speaks"][0], &answer["speaks"][1]);
        assert!(oldest.as_u64() <= reserve["version"].as_u64(), "{answer}");
        assert_eq!(newest, &reserve["version"]);
    }
    let answer = client.ask(&with("op", json!({"something-new": {"of": [1, 2]}})))?;
    assert_eq!(answer["result"]["error"]["code"], "request", "{answer}");
    assert_eq!(site.leases()?, [Value::Null; 0]);
    // What a plugin of the same version, but newer, adds is passed over.
    let mut richer = with("trace", json!("00-4bf92f3577b34da6a3ce929d0e0e4736"));
    richer["op"]["reserve"]["colour"] = json!("green");
    richer["op"]["reserve"]["attachment"]["shape"] = json!({"round": true});
    let answer = client.ask(&richer)?;
    let granted = &answer["result"]["ok"]["grant"];
    assert!(granted["addresses"].to_string().contains("10.77.0.2"), "{answer}");
    site.del(&ghost, &config)?;
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn a_plugin_passes_over_what_a_newer_agent_adds_to_its_answers() -> Result<()> {
    let site = Site::new("richer-agent")?;
    let agent = site.agent()?;
    let mut config = pool(2);
    config["runDir"] = json!("/run/elsewhere");
    let node = site.node().clone();
    let _between = FakeAgent::listen(site.node(), "/run/elsewhere/ipam.sock", move |request| {
        let mut answer = Client::connect(&node, SOCKET).and_then(|mut agent| agent.ask(request)).ok()?;
        answer["mood"] = json!("good");
        if answer["result"]["ok"]["grant"].is_object() {
            answer["result"]["ok"]["grant"]["colour"] = json!(["green"]);
        }
        Some(answer)
    })?;
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    site.check(&pod, &config, &result)?.ok()?;
    site.del(&pod, &config)?;
    assert_eq!(pod.links()?, [""; 0]);
    site.assert_nothing_left()?;
    agent.stop()
}

#[test]
fn status_asks_the_agent_and_never_waits_for_the_store() -> Result<()> {
    let site = Site::new("status")?;
    let config = pool(1);
    let status = |site: &Site| site.call_for_network("STATUS", &config).run(site.node());
    status(&site)?.ok()?;
    // Somebody has the lock, and nobody serves.
    let lock = site.node().path("/var/lib/podwire/ipam.lock");
    let pod = site.pod("p")?;
    site.add(&pod, &config)?;
    let file = File::options().write(true).open(lock).map_err(LabError::because("open the lock"))?;
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| LabError::because("lock")(e))?;
    let answer = status(&site)?;
    assert!(answer.process.duration < Duration::from_secs(1), "{:?}", answer.process.duration);
    answer.ok()?;
    let (code, message) = site.call("ADD", &site.pod("q")?, &config).run(site.node())?.error()?;
    assert_eq!(code, TRY_AGAIN, "{message}");
    drop(held);
    let agent = site.agent()?;
    let (code, message) = status(&site)?.error()?;
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("10.77.0.2-10.77.0.2"), "{NETWORK}: {message}");
    site.del(&pod, &config)?;
    status(&site)?.ok()?;
    site.assert_nothing_left()?;
    agent.stop()
}
