//! Nodes join, come back, and see each other.

use std::sync::Arc;
use std::time::Duration;

use podwire_overlay::cluster::{ClusterConfig, Vtep};
use podwire_overlay::store::Announcement;

use crate::members::Etcd;
use crate::nodes::{Machine, config, ipv4, lab};

fn families() -> [ClusterConfig; 3] {
    [ipv4(), config(&[("fd00:10:244::/48", 64)]), config(&[("10.244.0.0/16", 24), ("fd00:10:244::/48", 64)])]
}

#[test]
fn a_node_comes_back_to_its_subnets() {
    lab(async || {
        let mut etcd = Etcd::start(1).await;
        for (number, config) in (1..).zip(families()) {
            let mut machine = Machine::new(&etcd, number).with_config(config.clone());
            machine.settings.prefix = format!("/test{number}");
            let node = machine.join().await;
            let subnets = node.subnets();
            assert_eq!(subnets.len(), config.ranges.len());
            for (subnet, range) in subnets.iter().zip(&config.ranges) {
                assert!(
                    range.range.contains(subnet.ip()) && subnet.prefix() == range.subnet_prefix,
                    "{subnet}"
                );
            }
            let first = node.told.membership.clone();

            let machine = node.stop().await;
            let node = machine.join().await;
            assert_eq!(node.told.membership, first, "after a restart");

            let mut machine = node.kill().rebooted(2);
            machine.remembered = None;
            // Its presence from before the crash is another boot's: it waits until that has run out.
            let node = machine.join().await;
            assert_eq!(node.told.membership, first, "after a reboot that lost all but its identity");
            drop(node);
        }
        etcd.kill_all();
    });
}

#[test]
fn nodes_see_each_other_and_what_they_say_of_themselves() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        two.until("see n1", |told| told.subnets_of("n1").is_some()).await;
        assert_eq!(one.told.subnets_of("n2"), Some(&*two.subnets()));
        assert_ne!(one.subnets(), two.subnets());
        assert!(one.told.absent.is_empty());

        let record =
            |node: &crate::nodes::Node, name: &str| node.told.snapshot.as_ref().unwrap().nodes[name].clone();
        let before = record(&one, "n1");
        let receives: Vec<Vtep> =
            serde_json::from_str(r#"[{"vni":1,"port":8472,"mac":"02:00:00:00:00:02"}]"#).unwrap();
        let said = Announcement {
            addresses: vec!["192.0.2.77".parse().unwrap()],
            mtu: Some(9000),
            sends: Some(receives[0].encapsulation),
            receives: receives.clone(),
        };
        two.announce.send_replace(said);
        one.until("hear of n2's new address", |told| {
            told.snapshot.as_ref().unwrap().nodes["n2"].addresses
                == ["192.0.2.77".parse::<std::net::IpAddr>().unwrap()]
        })
        .await;
        let heard = record(&one, "n2");
        assert_eq!((heard.mtu, &heard.receives), (Some(9000), &receives));
        assert_eq!(heard.subnets, two.subnets());
        assert!(Arc::ptr_eq(&before, &record(&one, "n1")), "what has not changed is shared");

        // Off: its membership stays, its presence goes at once.
        two.stop().await;
        one.within(Duration::from_secs(2), "n2 is away", |told| told.absent.contains("n2")).await;
        assert!(one.told.subnets_of("n2").is_some());
    });
}

#[test]
fn a_node_without_addresses_claims_and_says_nothing() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let two = Machine::new(&etcd, 2).start();
        let said = two.announce.send_replace(Announcement::default());
        let mut two = two;
        two.until("join", |told| told.is_member()).await;
        one.listen(Duration::from_millis(300)).await;
        assert_eq!(one.told.subnets_of("n2"), None);
        two.announce.send_replace(said);
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        // A restart whose links are not up yet does not take back what was said.
        let two = two.stop().await.start();
        two.announce.send_replace(Announcement::default());
        let mut two = two;
        two.until("join", |told| told.is_member()).await;
        one.listen(Duration::from_millis(300)).await;
        assert!(one.told.subnets_of("n2").is_some());
    });
}

#[test]
fn a_range_that_is_used_up_is_named_with_its_counts() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let small = config(&[("10.9.8.0/23", 24), ("fd09::/56", 64)]);
        let _one = Machine::new(&etcd, 1).with_config(small.clone()).join().await;
        let two = Machine::new(&etcd, 2).with_config(small.clone()).join().await;
        let mut three = Machine::new(&etcd, 3).with_config(small.clone()).start();
        three.until("be refused", |told| told.refused.is_some()).await;
        let why = three.told.refused.clone().unwrap();
        for part in ["10.9.8.0/23", "exhausted", "2 subnets", "/24", "nodes have 2", "0 rest"] {
            assert!(why.contains(part), "{why:?} lacks {part:?}");
        }
        // It tries again by itself as soon as there is room.
        let mut two = two;
        two.machine.timing.rest = Duration::from_secs(1);
        let machine = two.stop().await;
        let mut two = machine.join().await;
        two.act(podwire_overlay::store::Action::Leave).await.unwrap();
        three.until("join", |told| told.is_member()).await;
    });
}

#[test]
fn a_copy_of_a_machine_is_refused_while_the_other_is_there() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut original = Machine::new(&etcd, 1).join().await;
        let subnets = original.subnets();

        let mut other = Machine::new(&etcd, 9);
        other.identity.name = "n1".to_owned();
        let mut namesake = other.start();
        namesake.until("be refused", |told| told.refused.is_some()).await;
        assert!(namesake.told.refused.as_ref().unwrap().contains("another machine is in the cluster as n1"));

        let mut copy = original.machine.clone().rebooted(7).start();
        copy.until("be refused", |told| told.refused.is_some()).await;
        assert!(copy.told.refused.as_ref().unwrap().contains("copy of this one's disk"));

        original.listen(Duration::from_millis(300)).await;
        assert!(original.told.is_member() && original.told.joined == 1);
        assert_eq!(original.told.subnets_of("n1"), Some(&*subnets));

        // The namesake takes over the name once nobody is there, and not the subnets of another's pods.
        copy.kill();
        original.stop().await;
        namesake.until("join", |told| told.is_member()).await;
        assert_ne!(namesake.subnets(), subnets);
    });
}

#[test]
fn another_agent_of_the_same_machine_takes_over_and_the_first_notices() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut first = Machine::new(&etcd, 1).join().await;
        let second = first.machine.join().await;
        assert_eq!(first.subnets(), second.subnets());
        first
            .until("notice", |told| told.fenced.as_ref().is_some_and(|why| why.contains("another podwired")))
            .await;
    });
}
