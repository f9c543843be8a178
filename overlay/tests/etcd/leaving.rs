//! Claims end: by leaving, by removal, by absence, and by another's right.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use podwire_overlay::claims::BootTime;
use podwire_overlay::cluster::ClusterConfig;
use podwire_overlay::store::Action;

use crate::members::Etcd;
use crate::nodes::{Machine, ipv4, lab};

fn remove(name: &str, force: bool) -> Action {
    Action::RemoveNode { name: name.to_owned(), force }
}

#[test]
fn a_node_that_leaves_lets_its_subnet_rest() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        let subnet = two.subnets()[0];
        let done = two.act(Action::Leave).await.unwrap();
        assert!(done.contains(&subnet.to_string()) && done.contains("10 min"), "{done}");
        one.until("n2 is gone", |told| told.subnets_of("n2").is_none()).await;
        two.until("be out", |told| told.fenced.as_ref().is_some_and(|why| why.contains("left"))).await;

        let mut client = etcd.client().await;
        let key = format!("/podwire/v1/subnets/{}-24", subnet.ip());
        let resting = client.get(key.as_str(), None).await.unwrap();
        assert!(resting.kvs()[0].value_str().unwrap().contains("\"resting\":\"left\""));
        let lease = client.lease_time_to_live(resting.kvs()[0].lease(), None).await.unwrap();
        assert!((500..=600).contains(&lease.ttl()), "it rests for {} s", lease.ttl());
        assert!(client.get("/podwire/v1/presence/n2", None).await.unwrap().kvs().is_empty());

        // While it rests it is nobody else's, and its own when the node comes back.
        let mut again = two.stop().await;
        again.remembered = None;
        let third = Machine { identity: Machine::new(&etcd, 3).identity, ..again.clone() };
        let mut named_alike = third.clone();
        named_alike.settings.initial = again.settings.initial.clone();
        assert_ne!(named_alike.join().await.subnets(), [subnet]);
        let again = again.join().await;
        assert_eq!(again.told.subnets_of("n2").unwrap().len(), 1);
    });
}

#[test]
fn a_node_is_removed_by_another_and_stays_out_until_it_is_started_again() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        let subnets = two.subnets();
        let why = one.act(remove("n2", false)).await.unwrap_err();
        assert!(why.contains("present"), "{why}");
        assert!(one.act(remove("n7", true)).await.unwrap_err().contains("no node n7"));
        assert!(one.act(remove("n1", true)).await.unwrap_err().contains("itself"));

        assert!(one.act(remove("n2", true)).await.unwrap().contains("node n2 is removed"));
        one.until("n2 is gone", |told| told.subnets_of("n2").is_none()).await;
        two.until("notice", |told| told.fenced.as_ref().is_some_and(|why| why.contains("removed"))).await;
        two.listen(Duration::from_millis(300)).await;
        assert!(two.told.fenced.is_some(), "it does not come back by itself");

        let two = two.stop().await.join().await;
        assert_eq!(two.subnets(), subnets, "nobody else had them yet");
        one.until("n2 is back", |told| told.subnets_of("n2").is_some()).await;

        // One that is off is removed without force.
        let off = two.stop().await;
        one.until("n2 is away", |told| told.absent.contains("n2")).await;
        assert!(one.act(remove("n2", false)).await.is_ok());
        drop(off);
    });
}

#[test]
fn a_node_whose_subnet_is_anothers_by_right_takes_a_new_one_when_its_pods_are_gone() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let small = crate::nodes::config(&[("10.9.8.0/23", 24)]);
        let mut one = Machine::new(&etcd, 1).with_config(small.clone());
        one.timing.rest = Duration::from_secs(1);
        let mut one = one.join().await;
        let two = Machine::new(&etcd, 2).with_config(small.clone()).join().await;
        let taken = two.subnets();
        let off = two.stop().await;
        // Removed while it was off, and another has its subnet by now.
        one.until("n2 is away", |told| told.absent.contains("n2")).await;
        one.act(remove("n2", false)).await.unwrap();
        let mut three = Machine::new(&etcd, 3).with_config(small.clone()).start();
        three.until("have n2's subnet", |told| told.is_member()).await;
        assert_eq!(three.subnets(), taken);

        let mut two = off.start();
        two.pods.send_replace(true);
        two.until("be fenced", |told| told.fenced.is_some()).await;
        let why = two.told.fenced.clone().unwrap();
        assert!(why.contains(&taken[0].to_string()) && why.contains("n3") && why.contains("drain"), "{why}");
        two.until("see the others", |told| told.subnets_of("n3").is_some()).await;
        assert_eq!(three.told.subnets_of("n2"), None);
        // There is no other subnet before somebody goes.
        three.until("see n1", |told| told.subnets_of("n1").is_some()).await;
        three.act(Action::Leave).await.unwrap();
        one.act(remove("n3", true)).await.unwrap_err();
        two.listen(Duration::from_millis(200)).await;
        assert!(two.told.fenced.is_some(), "it has pods");
        let mut four = one;
        four.act(Action::Leave).await.unwrap();
        two.pods.send_replace(false);
        two.until("join again", |told| told.is_member()).await;
    });
}

/// Each look at it is 100 s after the one before.
fn fast_clock() -> BootTime {
    static SECONDS: AtomicU64 = AtomicU64::new(0);
    BootTime(Duration::from_secs(SECONDS.fetch_add(100, Ordering::Relaxed)))
}

#[test]
fn a_node_that_is_absent_for_too_long_is_removed_by_another_if_that_is_set() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        for reclaim in [Some(86_400), None] {
            let config = ClusterConfig { reclaim_after_seconds: reclaim, ..ipv4() };
            let mut machine = Machine::new(&etcd, 1).with_config(config);
            machine.settings.prefix = format!("/reclaim-{}", reclaim.is_some());
            machine.timing.look = Duration::from_millis(2);
            machine.clock = Some(fast_clock);
            let mut other = Machine::new(&etcd, 2);
            other.settings.prefix = machine.settings.prefix.clone();
            let other = other.join_after(&machine).await;
            let (mut one, two) = other;
            one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
            let off = two.stop().await;
            if reclaim.is_some() {
                one.until("n2 is removed", |told| told.subnets_of("n2").is_none()).await;
                assert!(one.told.has_notice("remove node n2"), "{:?}", one.told.notices);
                // It finds its subnet, which nobody else has.
                let subnets = off.remembered.clone().unwrap().membership.subnets;
                assert_eq!(off.join().await.subnets(), subnets);
            } else {
                one.listen(Duration::from_secs(4)).await;
                assert!(one.told.subnets_of("n2").is_some());
            }
        }
    });
}
