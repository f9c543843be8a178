//! Whatever happens in whatever order, the tables have exactly the elements of those who are attached.

use std::collections::BTreeMap;

use podwire_attach::{Attachment, OwnerId, rules};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::lab::{bridge, full_pod, in_new_netns, nft, run};

#[derive(Debug, Clone)]
enum Event {
    Install(u8),
    /// Whether the attachment is known.
    Remove(u8, bool),
    /// Some that the caller knows, others that it leaves alone.
    Reconcile(Vec<u8>, Vec<u8>),
    Flush,
    /// An administrator's doing.
    Damage(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let pod = || 1..6_u8;
    let some = || proptest::collection::vec(1..6_u8, 0..5);
    prop_oneof![
        6 => pod().prop_map(Event::Install),
        3 => (pod(), any::<bool>()).prop_map(|(pod, known)| Event::Remove(pod, known)),
        2 => (some(), some()).prop_map(|(wanted, kept)| Event::Reconcile(wanted, kept)),
        1 => Just(Event::Flush),
        1 => (0..4_u8).prop_map(Event::Damage),
    ]
}

fn name(number: u8) -> OwnerId {
    full_pod(number).owner.id()
}

#[test]
fn the_tables_have_the_elements_of_those_who_are_attached() {
    in_new_netns(|| {
        bridge("br0");
        let mut runner =
            TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&proptest::collection::vec(event(), 1..12), |events| {
            run("nft", &["flush", "ruleset"]);
            let mut nft = nft();
            let mut model: BTreeMap<OwnerId, Attachment> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Install(number) => {
                        rules::install(&mut nft, &full_pod(number), &|_| true).expect("installed");
                        model.insert(name(number), full_pod(number));
                    }
                    Event::Remove(number, known) => {
                        let pod = full_pod(number);
                        rules::remove(&mut nft, pod.owner.id(), known.then_some(&pod)).expect("removed");
                        model.remove(&name(number));
                    }
                    Event::Reconcile(wanted, kept) => {
                        let wanted: Vec<Attachment> = wanted.into_iter().map(full_pod).collect();
                        let kept: Vec<OwnerId> = kept.into_iter().map(name).collect();
                        let all: Vec<&Attachment> = wanted.iter().collect();
                        rules::reconcile(&mut nft, &all, &|owner| kept.contains(&owner)).expect("reconciled");
                        model.retain(|owner, _| kept.contains(owner));
                        model.extend(wanted.iter().map(|pod| (pod.owner.id(), pod.clone())));
                        let again = rules::reconcile(&mut nft, &all, &|owner| kept.contains(&owner));
                        prop_assert!(again.expect("reconciled").is_clean());
                    }
                    Event::Flush => {
                        run("nft", &["flush", "ruleset"]);
                        model.clear();
                    }
                    Event::Damage(which) if !model.is_empty() => {
                        let chain =
                            ["forward", "host-ports", "postrouting", "raw-prerouting"][usize::from(which)];
                        run("nft", &["flush", "chain", "inet", "podwire", chain]);
                        let all: Vec<&Attachment> = model.values().collect();
                        rules::reconcile(&mut nft, &all, &|_| true).expect("reconciled");
                    }
                    Event::Damage(_) => {}
                }
                let owners = rules::owners(&mut nft).expect("read");
                prop_assert_eq!(owners, model.keys().copied().collect());
                for pod in model.values() {
                    let drift = rules::check(&mut nft, pod).expect("checked");
                    prop_assert!(drift.is_empty(), "{:?}", drift);
                }
            }
            Ok(())
        });
        outcome.unwrap_or_else(|failure| panic!("{failure}"));
    });
}
