//! Thousands of nodes that come and go.

use podwire_kernel::testing::in_new_netns;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::lab::{Agent, Kernel, SOON, World, pause, remote4, sh, until_kernel_is, uplink};

#[test]
fn two_thousand_peers_come_and_go_at_random_and_the_end_is_as_desired() {
    in_new_netns(|| {
        let _uplink = uplink();
        const PEERS: u32 = 2000;
        let seed = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new(PEERS / 2);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        for round in 0..300 {
            for _ in 0..random.random_range(1..40) {
                let number = random.random_range(1..=PEERS);
                match random.random_range(0..10) {
                    0..4 => world.join(number),
                    4..8 => world.leave(number),
                    // The same node at another address; and one that gets another's subnet.
                    8 => {
                        world.join(number);
                        world.change(number, |record| {
                            record.addresses = vec![remote4(PEERS + number)];
                        });
                    }
                    _ => {
                        let other = random.random_range(1..=PEERS);
                        world.leave(other);
                        world.join(number);
                        let subnets = super::lab::record(other).subnets;
                        // Whose subnet it was does not have it any more.
                        let taken: Vec<_> = world
                            .snapshot
                            .nodes
                            .values()
                            .filter(|record| record.subnets.iter().any(|one| subnets.contains(one)))
                            .map(|record| record.name.clone())
                            .collect();
                        taken.iter().for_each(|name| drop(world.snapshot.nodes.remove(name)));
                        world.join(number);
                        world.change(number, |record| record.subnets = subnets);
                    }
                }
            }
            distinct(&mut world);
            let input = world.input(true);
            let number = input.number;
            agent.overlay.update(input);
            match round % 50 {
                17 => drop(sh("ip link set podwire.1 down")),
                // The overlay may be faster with one of the routes.
                33 => drop(sh("ip route flush proto 112 || true; nft flush ruleset")),
                // Now and then several are told at once.
                rest if rest % 5 == 0 => pause(),
                _ => drop(agent.report(|report| report.number >= number)),
            }
        }
        let last = world.number;
        agent.report(|report| report.number == last && report.in_sync);
        until_kernel_is(SOON, &world.expected(1500));
        let failures: Vec<_> = agent.heard.iter().flat_map(|report| &report.failures).take(3).collect();
        let fast = agent.heard.iter().filter(|report| !report.full).count();
        println!("{} passes, {fast} of them fast; failures: {failures:?}", agent.heard.len());
        assert!(fast > 100, "{fast} fast passes");
        // What the fast passes left is what a full look finds nothing to do about.
        agent.rest();
        agent.overlay.check();
        let report = agent.report(|report| report.causes == [podwire_overlay::dataplane::Cause::Asked]);
        assert_eq!(report.operations.values().sum::<usize>(), 0, "{:?}", report.operations);
        assert_eq!(Kernel::read().differs_from(&world.expected(1500)), Vec::<String>::new());
    });
}

/// A subnet that two nodes have after all is the later one's alone: what becomes of conflicts is not this test's matter.
fn distinct(world: &mut World) {
    let mut seen = std::collections::BTreeSet::new();
    world.snapshot.nodes.retain(|_, record| record.subnets.iter().all(|subnet| seen.insert(*subnet)));
}
