//! Start, restart, what is remembered, the end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podwire_kernel::testing::{in_new_netns, run, within};
use podwire_overlay::cluster::Encapsulation;
use podwire_overlay::dataplane::Cause;

use super::lab::{Agent, Kernel, SOON, World, ip, sh, until_kernel_is, uplink};

/// What the kernel tells of changes while `work` runs.
fn changes(work: impl FnOnce()) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut events, mut nft) = {
        let _inside = runtime.enter();
        use podwire_kernel::events::{Events, Topics};
        (Events::open(Topics::ALL).expect("events"), podwire_kernel::nft::NftEvents::open().expect("events"))
    };
    work();
    runtime.block_on(async {
        let mut heard = Vec::new();
        loop {
            let timeout = tokio::time::sleep(Duration::from_millis(200));
            tokio::select! {
                event = events.next() => heard.push(format!("{:?}", event.expect("an event"))),
                event = nft.next() => heard.push(format!("{:?}", event.expect("an event"))),
                () = timeout => return heard,
            }
        }
    })
}

#[test]
fn a_restart_changes_nothing() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(200);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        until_kernel_is(SOON, &world.expected(1500));
        agent.rest();
        agent.stop();
        assert_eq!(Kernel::read(), world.expected(1500), "the end leaves everything in place");
        let heard = changes(|| {
            let mut agent = Agent::start();
            // First what is remembered, then what the store says.
            let report = agent.tell_as(&mut world, false);
            assert_eq!(report.operations.values().sum::<usize>(), 0, "{:?}", report.operations);
            let report = agent.tell(&mut world);
            assert_eq!(report.operations.values().sum::<usize>(), 0, "{:?}", report.operations);
            agent.rest();
            agent.stop();
        });
        assert_eq!(heard, Vec::<String>::new());
    });
}

#[test]
fn what_is_remembered_adds_and_mends_and_the_store_alone_removes() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(20);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        agent.stop();
        let before = world.expected(1500);
        // While the agent was away five nodes left, one came, and routes were lost.
        (1..=5).for_each(|number| world.leave(number));
        world.join(21);
        sh("ip route del 10.128.9.0/24; ip route del 10.128.3.0/24");
        let mut agent = Agent::start();
        agent.tell_as(&mut world, false);
        let now = world.expected(1500);
        let mut union = before.clone();
        union.routes.extend(now.routes.clone());
        union.neighbours.extend(now.neighbours.clone());
        union.fdb.extend(now.fdb.clone());
        union.senders.extend(now.senders.clone());
        union.routes.retain(|route| !route.starts_with("10.128.3.0/24"));
        assert_eq!(Kernel::read().differs_from(&union), Vec::<String>::new());
        agent.tell(&mut world);
        assert_eq!(Kernel::read().differs_from(&now), Vec::<String>::new());
    });
}

#[test]
fn a_device_that_cannot_be_what_it_must_is_made_anew() {
    in_new_netns(|| {
        let _uplink = uplink();
        // Of an older version, say: marked as ours, with checksums and another port.
        sh("ip link add podwire.1 type vxlan id 1 dstport 4789 local 192.0.2.1 udpcsum
            ip link set podwire.1 alias 'podwire overlay' up");
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        until_kernel_is(SOON, &world.expected(1500));
        let text = ip("-d link show podwire.1");
        assert!(text.contains("dstport 8472") && text.contains("noudpcsum"), "{text}");
    });
}

#[test]
fn an_encapsulation_is_changed_with_the_old_one_received_until_nobody_sends_it() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        agent.rest();
        let new = Encapsulation { vni: 5, port: 4789 };
        let old = Encapsulation::default();
        let vtep = |node: &str, encapsulation: Encapsulation| podwire_overlay::cluster::Vtep {
            encapsulation,
            mac: podwire_overlay::cluster::topology::vtep_mac("lab", node, encapsulation.vni),
            mac6: None,
        };
        let mut say = |world: &mut World, receives: &[Encapsulation], sends| {
            for number in 1..=5 {
                let name = super::lab::name(number);
                world.change(number, |record| {
                    record.receives = receives.iter().map(|one| vtep(&name, *one)).collect();
                    record.sends = Some(sends);
                });
            }
            agent.tell(world)
        };
        say(&mut world, &[old], old);
        world.snapshot.config.encapsulation = new;
        let report = say(&mut world, &[old], old);
        assert_eq!(report.announcement.sends, Some(old), "nobody receives the new one yet");
        assert_eq!(report.announcement.receives.len(), 2);
        let by_device = |device: &str| Kernel::read().routes.iter().filter(|r| r.contains(device)).count();
        assert_eq!((by_device("podwire.1"), by_device("pw4.5.12b5")), (10, 0));
        let report = say(&mut world, &[old, new], old);
        assert_eq!((by_device("podwire.1"), by_device("pw4.5.12b5")), (0, 10));
        assert_eq!(report.announcement.sends, Some(new));
        ip("link show podwire.1");
        say(&mut world, &[old, new], new);
        within(SOON, "the old devices are gone", || {
            agent.overlay.check();
            (!ip("-o link").contains("podwire.1")).then_some(())
        });
        assert!(run("nft", &["list", "set", "inet", "podwire-node", "ports"]).contains("4789"));
    });
}

#[test]
fn forwarding_and_source_checks_are_put_right_at_once_and_what_no_event_tells_of_within_ten_seconds() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        agent.settle();
        let read = |name: &str| podwire_kernel::sysctl::read(name).expect("a sysctl");
        for (name, right, wrong, cause, within) in [
            ("net/ipv4/ip_forward", "1", "0", Cause::Sysctl, 3),
            ("net/ipv6/conf/all/forwarding", "1", "0", Cause::Sysctl, 3),
            ("net/ipv4/conf/podwire.1/rp_filter", "2", "1", Cause::Sysctl, 3),
            ("net/ipv6/conf/podwire.1/accept_ra", "0", "1", Cause::Time, 13),
        ] {
            assert_eq!(read(name), right);
            podwire_kernel::sysctl::write(name, wrong).expect("written");
            let begun = Instant::now();
            let report = agent.report(|report| !report.repairs.is_empty());
            assert_eq!(read(name), right, "{name}");
            assert!(report.causes.contains(&cause), "{name}: {:?}", report.causes);
            assert!(begun.elapsed() < Duration::from_secs(within), "{name}: {:?}", begun.elapsed());
        }
    });
}

#[test]
fn a_look_that_is_asked_for_right_behind_a_change_is_made() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        for _ in 0..20 {
            agent.rest();
            world.change(1, |record| record.mtu = record.mtu.map_or(Some(1400), |mtu| Some(mtu + 1)));
            agent.overlay.update(world.input(true));
            agent.overlay.check();
            agent.report(|report| report.causes.contains(&Cause::Asked));
        }
    });
}

#[test]
fn the_bridge_is_ready_as_soon_as_it_is_up() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(1);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        sh(
            "ip link add port type veth peer name pod; ip link set port master podwire0 up; ip link set pod up",
        );
        for _ in 0..3 {
            sh("ip link set podwire0 down");
            until_kernel_is(SOON, &world.expected(1500));
            assert!(!ip("-6 addr show dev podwire0").contains("tentative"));
        }
    });
}

#[test]
fn lost_events_are_a_reason_to_look() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        agent.rest();
        // More neighbours come and go than the queue of events has room for, and in their midst routes go.
        let storm = |from: u32| -> String {
            (from..from + 20_000)
                .map(|n| {
                    let ip = format!("203.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255);
                    format!("neigh replace {ip} lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n")
                })
                .collect()
        };
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("storm");
        std::fs::write(&file, format!("{}route flush proto 112\n{}", storm(0), storm(20_000)))
            .expect("written");
        ip(&format!("-batch {}", file.display()));
        until_kernel_is(SOON, &world.expected(1500));
        agent.stop();
    });
}

#[test]
fn everything_is_told_when_asked() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(5);
        let mut agent = Agent::start();
        let report = agent.tell(&mut world);
        assert_eq!((report.counts.total, report.counts.tunnel, report.counts.unreachable), (5, 5, 0));
        let names: BTreeSet<_> = report.devices.iter().map(|device| device.name.clone()).collect();
        assert_eq!(names, BTreeSet::from(["podwire.1".to_owned(), "podwire6.1".to_owned()]));
        agent.overlay.ping().blocking_recv().expect("an answer");
        let peers = agent.overlay.peers().blocking_recv().expect("an answer");
        assert_eq!(peers.len(), 6);
        assert!(peers.iter().filter(|peer| !peer.is_self).all(|peer| peer.paths.len() == 2));
        agent.rest();
        agent.overlay.check();
        agent.report(|report| report.causes == [Cause::Asked]);
        agent.stop();
    });
}
