//! All or nothing, whoever else is at it.

use std::sync::{Arc, Barrier};
use std::thread;

use podwire_kernel::nft::{
    Batch, ChainKind, DataType, Element, Expr, Hook, Nft, Place, Policy, Reg, Rule, TableRef, Verdict,
};
use podwire_kernel::{Netns, nft};

use super::{TABLE, base, chain, nft as program, open, port, ports, set};
use crate::lab::in_new_netns;

/// The table with its map of ports, as a first user makes it.
fn skeleton(batch: &mut Batch) {
    batch.create_table(TABLE, Some("podwire 1"));
    batch.create_set(TABLE, &ports());
    batch.create_chain(TABLE, &chain("host-ports"));
    batch.add_rule(TABLE, "host-ports", Place::Last, &Rule::new(vec![Expr::Counter]));
}

fn numbered(i: u16) -> Element {
    port(i, [10, 1, (i >> 8) as u8, i as u8]).comment(format!("pod {i} {}", "x".repeat(100)))
}

#[test]
fn nothing_happens_if_one_request_fails_and_the_error_names_it() {
    in_new_netns(|| {
        let mut nft = open();
        nft.commit(&Batch::new()).expect("nothing to do");
        let mut batch = Batch::new();
        skeleton(&mut batch);
        nft.commit(&batch).expect("committed");

        let mut batch = Batch::new();
        batch.create_chain(TABLE, &chain("new"));
        batch.delete_chain(TABLE, "missing");
        batch.create_chain(TABLE, &chain("host-ports"));
        batch.create_chain(TABLE, &chain("newer"));
        let error = nft.commit(&batch).expect_err("no such chain");
        assert!(error.is_missing(), "{error}");
        assert_eq!(error.index, Some(1));
        assert_eq!(
            error.to_string(),
            "delete chain inet podwire missing: No such file or directory (ENOENT)"
        );
        assert_eq!(nft.table_chains(TABLE).expect("listed").len(), 1);

        let mut batch = Batch::new();
        batch.ensure_chain(TABLE, &chain("host-ports"));
        batch.create_table(TABLE, None);
        let error = nft.commit(&batch).expect_err("there already");
        assert!(error.is_exists() && error.index == Some(1), "{error}");

        let mut batch = Batch::new();
        batch.create_elements(TableRef { name: "none", ..TABLE }, "ports4", &[port(1, [0; 4])]);
        let error = nft.commit(&batch).expect_err("no such table");
        assert!(error.is_missing(), "{error}");

        // A failure before the last request, and more than fit the receive buffer.
        let mut batch = Batch::new();
        (0..1000).for_each(|i| batch.delete_chain(TABLE, &format!("missing{i}")));
        batch.create_chain(TABLE, &chain("new"));
        let error = nft.commit(&batch).expect_err("no such chains");
        assert!(error.is_missing() && error.index == Some(0), "{error}");
        assert_eq!(nft.table_chains(TABLE).expect("listed").len(), 1, "the socket goes on to work");
    });
}

#[test]
fn what_is_in_use_is_not_removed() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        skeleton(&mut batch);
        batch.create_chain(TABLE, &chain("first"));
        batch.add_rule(TABLE, "first", Place::Last, &Rule::new(vec![Expr::jump("host-ports")]));
        let load = Expr::Immediate { to: Reg(0), value: vec![0; 12] };
        batch.add_rule(TABLE, "first", Place::Last, &Rule::new(vec![load, Expr::is_in("ports4", Reg(0))]));
        nft.commit(&batch).expect("committed");
        let refused = |nft: &mut Nft, what: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            what(&mut batch);
            let error = nft.commit(&batch).expect_err("in use");
            assert!(error.is_busy(), "{error}");
        };
        refused(&mut nft, &|batch| batch.delete_chain(TABLE, "host-ports"));
        refused(&mut nft, &|batch| batch.delete_set(TABLE, "ports4"));
        let mut batch = Batch::new();
        batch.flush_chain(TABLE, "first");
        batch.delete_chain(TABLE, "host-ports");
        batch.delete_set(TABLE, "ports4");
        nft.commit(&batch).expect("removed");
        assert_eq!(nft.table_chains(TABLE).expect("listed").len(), 1);
        assert_eq!(nft.sets(TABLE).expect("listed"), []);
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        nft.commit(&batch).expect("removed");
        assert_eq!(nft.table(TABLE).expect("asked"), None);
        assert_eq!(nft.table_chains(TABLE).expect("listed"), []);
        assert_eq!(nft.rules(TABLE, None).expect("listed"), []);
        assert_eq!(nft.sets(TABLE).expect("listed"), []);
        assert_eq!(nft.chain(TABLE, "first").expect("asked"), None);
    });
}

#[test]
fn what_is_there_can_be_made_again_and_a_policy_changed() {
    in_new_netns(|| {
        let mut nft = open();
        let forward = |policy| base("forward", ChainKind::Filter, Hook::Forward, 0, policy);
        for policy in [Policy::Accept, Policy::Drop, Policy::Drop] {
            let mut batch = Batch::new();
            batch.ensure_table(TABLE, Some("first"));
            batch.ensure_set(TABLE, &ports());
            batch.ensure_chain(TABLE, &forward(policy));
            nft.commit(&batch).expect("committed");
            let chain = nft.chain(TABLE, "forward").expect("asked").expect("there");
            assert_eq!(chain.object, forward(policy));
        }
        assert_eq!(nft.sets(TABLE).expect("listed").len(), 1);
        let mut batch = Batch::new();
        batch.ensure_set(TABLE, &set("ports4", DataType::MARK, None));
        assert!(nft.commit(&batch).expect_err("of another type").is_exists());
        let mut batch = Batch::new();
        batch.ensure_table(TABLE, Some("second"));
        nft.commit(&batch).expect("there already");
        let table = nft.table(TABLE).expect("asked").expect("there");
        assert_eq!(table.object.comment.as_deref(), Some("first"));
    });
}

#[test]
fn elements_are_found_by_key_and_taken_by_one_owner() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        skeleton(&mut batch);
        batch.create_elements(
            TABLE,
            "ports4",
            &[port(1, [10, 0, 0, 1]).comment("a"), port(2, [10, 0, 0, 2])],
        );
        nft.commit(&batch).expect("committed");
        let keys = [port(3, [0; 4]), port(2, [0; 4]), port(1, [0; 4])];
        let found = nft.find_elements(TABLE, "ports4", &keys).expect("asked");
        assert_eq!(found, [None, Some(port(2, [10, 0, 0, 2])), Some(port(1, [10, 0, 0, 1]).comment("a"))]);
        assert_eq!(nft.find_elements(TABLE, "ports4", &keys[..1]).expect("asked"), [None]);
        assert_eq!(nft.find_elements(TABLE, "ports4", &[]).expect("asked"), []);
        for (table, set) in [(TABLE, "missing"), (TableRef { name: "none", ..TABLE }, "ports4")] {
            assert!(nft.find_elements(table, set, &keys).expect_err("not there").is_missing());
            assert!(nft.elements(table, set).expect_err("not there").is_missing());
        }

        let attempt = |nft: &mut Nft, what: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            what(&mut batch);
            nft.commit(&batch)
        };
        let mine = [port(1, [10, 0, 0, 1]).comment("b")];
        let error = attempt(&mut nft, &|batch| batch.create_elements(TABLE, "ports4", &mine));
        let error = error.expect_err("there already");
        assert!(error.is_exists(), "{error}");
        assert!(error.to_string().starts_with("create element inet podwire ports4 \"b\": "), "{error}");
        // The same data is no conflict, and the first owner's comment stays.
        attempt(&mut nft, &|batch| batch.ensure_elements(TABLE, "ports4", &mine)).expect("the same");
        let found = nft.find_elements(TABLE, "ports4", &mine).expect("asked");
        assert_eq!(found[0].as_ref().and_then(|element| element.comment.as_deref()), Some("a"));
        let other = [port(1, [10, 0, 0, 9])];
        let error = attempt(&mut nft, &|batch| batch.ensure_elements(TABLE, "ports4", &other));
        let error = error.expect_err("another pod's");
        // EBUSY in older kernels.
        assert!(error.is_exists() || error.is_busy(), "{error}");
        // Taken over in one transaction, from whoever has it.
        attempt(&mut nft, &|batch| {
            batch.delete_elements(TABLE, "ports4", &other);
            batch.create_elements(TABLE, "ports4", &other);
        })
        .expect("taken over");
        assert_eq!(nft.find_elements(TABLE, "ports4", &mine).expect("asked"), other.map(Some));
        let both = [port(2, [0; 4]), port(3, [0; 4])];
        let error = attempt(&mut nft, &|batch| batch.delete_elements(TABLE, "ports4", &both));
        assert!(error.expect_err("one is missing").is_missing());
        assert_eq!(nft.elements(TABLE, "ports4").expect("listed").len(), 2, "and the other is still there");
        attempt(&mut nft, &|batch| batch.flush_set(TABLE, "ports4")).expect("flushed");
        assert_eq!(nft.elements(TABLE, "ports4").expect("listed"), []);
    });
}

#[test]
fn a_transaction_may_be_large() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        skeleton(&mut batch);
        let elements: Vec<_> = (0..10_000).map(numbered).collect();
        batch.create_elements(TABLE, "ports4", &elements);
        nft.commit(&batch).expect("committed");
        let mut found = nft.elements(TABLE, "ports4").expect("listed");
        found.sort_by(|a, b| a.key.cmp(&b.key));
        assert!(found == elements, "{} of {}", found.len(), elements.len());
        let some = nft.find_elements(TABLE, "ports4", &elements[..500]).expect("asked");
        assert!(some.iter().zip(&elements).all(|(found, made)| found.as_ref() == Some(made)));
        // One that is there, at the end of ten thousand that are not.
        let mut batch = Batch::new();
        let mut again: Vec<_> = (10_000..20_000).map(numbered).collect();
        again.push(numbered(1));
        batch.create_elements(TABLE, "ports4", &again);
        assert!(nft.commit(&batch).expect_err("one is there").is_exists());
        let mut batch = Batch::new();
        batch.delete_elements(TABLE, "ports4", &elements);
        nft.commit(&batch).expect("removed");
        assert_eq!(nft.elements(TABLE, "ports4").expect("listed"), []);
    });
}

#[test]
fn fifty_first_users_leave_one_skeleton_and_all_their_elements() {
    in_new_netns(|| {
        const USERS: u16 = 50;
        let start = Arc::new(Barrier::new(USERS.into()));
        let users: Vec<_> = (0..USERS)
            .map(|i| {
                let (here, start) = (Netns::current().expect("here"), Arc::clone(&start));
                thread::spawn(move || here.run(move || first_use(i, &start)).expect("enter"))
            })
            .collect();
        users.into_iter().for_each(|user| user.join().expect("a user"));
        let mut nft = open();
        assert_eq!(nft.rules(TABLE, None).expect("listed").len(), 1);
        assert_eq!(nft.elements(TABLE, "ports4").expect("listed").len(), USERS.into());
    });
}

/// Elements alone; if there is no table, table and elements; if there is one meanwhile, elements alone.
fn first_use(i: u16, start: &Barrier) {
    let mut nft = open();
    start.wait();
    for _ in 0..10 {
        let mut batch = Batch::new();
        batch.create_elements(TABLE, "ports4", &[numbered(i)]);
        match nft.commit(&batch) {
            Ok(()) => return,
            Err(error) if error.is_missing() => {}
            Err(error) => panic!("{error}"),
        }
        let mut batch = Batch::new();
        skeleton(&mut batch);
        batch.create_elements(TABLE, "ports4", &[numbered(i)]);
        match nft.commit(&batch) {
            Ok(()) => return,
            Err(error) if error.is_exists() => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("not within ten rounds");
}

#[test]
fn what_was_read_can_be_made_a_condition() {
    in_new_netns(|| {
        let (mut nft, mut other) = (open(), open());
        let mut batch = Batch::new();
        skeleton(&mut batch);
        nft.commit(&batch).expect("committed");
        let generation = nft.generation().expect("asked");
        let add = |name: &str, at: u32| {
            let mut batch = Batch::new();
            batch.only_at(at);
            batch.create_chain(TABLE, &chain(name));
            batch
        };
        other.commit(&add("first", generation.id)).expect("nothing has changed");
        let error = nft.commit(&add("second", generation.id)).expect_err("something has");
        assert!(error.is_changed() && error.index.is_none(), "{error}");
        let generation = nft.generation().expect("asked");
        nft.commit(&add("second", generation.id)).expect("nothing has changed");
    });
}

#[test]
fn rules_stand_where_they_are_put() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        batch.create_table(TABLE, None);
        batch.create_chain(TABLE, &chain("order"));
        let rule = |name: &str| Rule::new(vec![Expr::Verdict(Verdict::Return)]).comment(name);
        batch.add_rule(TABLE, "order", Place::Last, &rule("c"));
        batch.add_rule(TABLE, "order", Place::First, &rule("a"));
        batch.add_rule(TABLE, "order", Place::Last, &rule("f"));
        nft.commit(&batch).expect("committed");
        let order = |nft: &mut Nft| {
            let rules = nft.rules(TABLE, Some("order")).expect("listed");
            rules
                .into_iter()
                .map(|rule| (rule.rule.comment.unwrap_or_default(), rule.handle))
                .collect::<Vec<_>>()
        };
        let handle = order(&mut nft).into_iter().find(|(name, _)| name == "c").expect("there").1;
        let mut batch = Batch::new();
        batch.add_rule(TABLE, "order", Place::Before(handle), &rule("b"));
        batch.add_rule(TABLE, "order", Place::After(handle), &rule("d"));
        nft.commit(&batch).expect("committed");
        let names = |nft: &mut Nft| order(nft).into_iter().map(|(name, _)| name).collect::<String>();
        assert_eq!(names(&mut nft), "abcdf");
        let mut batch = Batch::new();
        batch.add_rule(TABLE, "order", Place::Instead(handle), &rule("x"));
        nft.commit(&batch).expect("committed");
        assert_eq!(names(&mut nft), "abxdf");
        let (_, first) = order(&mut nft)[0];
        let mut batch = Batch::new();
        batch.delete_rule(TABLE, "order", first);
        nft.commit(&batch).expect("committed");
        assert_eq!(names(&mut nft), "bxdf");
        assert!(nft.commit(&batch).expect_err("gone").is_missing());
    });
}

#[test]
fn a_list_is_whole_although_elements_come_and_go_meanwhile() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        skeleton(&mut batch);
        batch.create_elements(TABLE, "ports4", &(0..2000).map(numbered).collect::<Vec<_>>());
        nft.commit(&batch).expect("committed");
        let here = Netns::current().expect("here");
        let churn = thread::spawn(move || {
            here.run(|| {
                let mut nft = open();
                for i in 0..300 {
                    let element = [numbered(5000 + i)];
                    let mut batch = Batch::new();
                    batch.create_elements(TABLE, "ports4", &element);
                    nft.commit(&batch).expect("made");
                    let mut batch = Batch::new();
                    batch.delete_elements(TABLE, "ports4", &element);
                    nft.commit(&batch).expect("removed");
                }
            })
            .expect("enter");
        });
        while !churn.is_finished() {
            match nft.elements(TABLE, "ports4") {
                Ok(elements) => {
                    let stay = elements.iter().filter(|element| element.key < numbered(2000).key).count();
                    assert_eq!(stay, 2000);
                }
                // Without a pause between the changes the list may never be whole, and says so.
                Err(error) => assert!(error.is_busy(), "{error}"),
            }
        }
        churn.join().expect("the churn");
    });
}

#[test]
fn types_that_nothing_knows_are_read_all_the_same() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        batch.create_table(TABLE, None);
        let key = DataType::simple(61, 7);
        batch.create_set(TABLE, &set("odd", key, None));
        batch.create_elements(TABLE, "odd", &[Element::new([1; 7])]);
        nft.commit(&batch).expect("committed");
        assert_eq!(nft.sets(TABLE).expect("listed")[0].object, set("odd", key, None));
        assert_eq!(nft.elements(TABLE, "odd").expect("listed"), [Element::new([1; 7])]);
        assert!(program(&["list", "tables"]).contains("inet podwire"));
        assert_eq!(nft::concat(&[&[1], &[2, 3, 4, 5, 6]]), [1, 0, 0, 0, 2, 3, 4, 5, 6, 0, 0, 0]);
    });
}
