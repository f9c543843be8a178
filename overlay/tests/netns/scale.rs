//! How long it takes with thousands of nodes. Measured, not tested: run alone, in a release build, with
//! `cargo test --release -p podwire-overlay --test netns scale -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use podwire_kernel::testing::in_new_netns;
use podwire_overlay::dataplane::Cause;

use super::lab::{Agent, World, sh, uplink};

/// What the thread of that name has used of a processor so far.
fn cpu() -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("threads").flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("podwired-overla") {
            // Nanoseconds on a processor, kernel's work included.
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            ticks += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(ticks)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn percentile(mut all: Vec<Duration>, part: f64) -> Duration {
    all.sort_unstable();
    all[((all.len() - 1) as f64 * part).round() as usize]
}

#[test]
#[ignore = "a measurement"]
fn cold_start() {
    for (what, peers) in
        [("IPv4", 1000), ("IPv4", 5000), ("IPv4", 15_000), ("dual", 1000), ("dual", 5000), ("dual", 15_000)]
    {
        let mut took = Vec::new();
        for _ in 0..5 {
            took.push(in_new_netns(move || {
                let _uplink = uplink();
                let mut world = if what == "IPv4" { World::ipv4(peers) } else { World::new(peers) };
                let mut agent = Agent::start();
                agent.rest();
                let before = cpu();
                let input = world.input(true);
                let begun = Instant::now();
                agent.overlay.update(input);
                let report = agent.report(|report| report.number == 1 && report.in_sync);
                let all = begun.elapsed();
                agent.rest();
                let used = cpu() - before;
                agent.stop();
                (report.took, all, used)
            }));
        }
        took.sort();
        let (pass, all, used) = took[took.len() / 2];
        println!(
            "cold start {what} {peers}: pass {:.1} ms, from the input {:.1} ms, CPU with its own events {:.1} ms",
            ms(pass),
            ms(all),
            ms(used)
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn nothing_to_do() {
    for (what, peers) in [("IPv4", 5000), ("dual", 5000), ("IPv4", 15_000), ("dual", 15_000)] {
        in_new_netns(move || {
            let _uplink = uplink();
            let mut world = if what == "IPv4" { World::ipv4(peers) } else { World::new(peers) };
            let mut agent = Agent::start();
            agent.tell(&mut world);
            agent.rest();
            let mut took = Vec::new();
            let before = cpu();
            for _ in 0..20 {
                agent.overlay.check();
                let report = agent.report(|report| report.causes.contains(&Cause::Asked));
                assert_eq!(report.operations.len(), 0);
                took.push(report.took);
            }
            let used = (cpu() - before) / 20;
            println!(
                "full look {what} {peers}: median {:.1} ms, worst {:.1} ms, CPU {:.1} ms",
                ms(percentile(took.clone(), 0.5)),
                ms(percentile(took, 1.0)),
                ms(used)
            );
            agent.stop();
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn one_change() {
    for (what, peers) in [("IPv4", 15_000), ("dual", 15_000)] {
        in_new_netns(move || {
            let _uplink = uplink();
            let mut world = if what == "IPv4" { World::ipv4(peers) } else { World::new(peers) };
            let mut agent = Agent::start();
            agent.tell(&mut world);
            agent.rest();
            let mut took = Vec::new();
            let mut full = 0;
            let before = cpu();
            for round in 0..1000 {
                let number = round / 2 + 1;
                if round % 2 == 0 {
                    world.leave(number)
                } else {
                    world.join(number)
                }
                let input = world.input(true);
                let number = input.number;
                let begun = Instant::now();
                agent.overlay.update(input);
                let report = agent.report(|report| report.number == number && report.in_sync);
                took.push(report.convergence.unwrap_or(begun.elapsed()));
                full += usize::from(report.full);
                // As the store's events come: not one upon the other's heels.
                if round % 2 == 0 {
                    super::lab::pause()
                }
            }
            let used = (cpu() - before) / 1000;
            println!(
                "one change of {what} {peers}: p50 {:.2} p99 {:.2} worst {:.2} ms, {full} full passes of 1000, CPU {:.2} ms each",
                ms(percentile(took.clone(), 0.5)),
                ms(percentile(took.clone(), 0.99)),
                ms(percentile(took, 1.0)),
                ms(used)
            );
            agent.stop();
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn repair_of_a_device_that_was_taken_down() {
    for (what, peers) in [("IPv4", 5000), ("dual", 5000), ("IPv4", 15_000)] {
        in_new_netns(move || {
            let _uplink = uplink();
            let mut world = if what == "IPv4" { World::ipv4(peers) } else { World::new(peers) };
            let mut agent = Agent::start();
            agent.tell(&mut world);
            agent.rest();
            for fault in [
                "ip link set podwire.1 down",
                "ip route flush proto 112",
                "ip neigh flush dev podwire.1 nud permanent",
                "ip link del podwire.1",
            ] {
                let mut took = Vec::new();
                for _ in 0..5 {
                    agent.rest();
                    let begun = Instant::now();
                    sh(fault);
                    let broken = begun.elapsed();
                    let report = agent.report(|report| report.in_sync && !report.repairs.is_empty());
                    took.push((
                        report.convergence.unwrap_or_default(),
                        begun.elapsed().saturating_sub(broken),
                        report.took,
                    ));
                }
                took.sort();
                let (converged, after, pass) = took[2];
                println!(
                    "{what} {peers} {fault}: {:.1} ms from the event, {:.1} ms after the command's end, pass {:.1} ms",
                    ms(converged),
                    ms(after),
                    ms(pass)
                );
            }
            agent.stop();
        });
    }
}
