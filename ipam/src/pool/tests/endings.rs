//! How a lease ends: by its own ADD or DEL, with its boot, by the sweep, by GC.

use podwire_attach::{Masquerade, Traffic};

use super::*;

#[test]
fn a_rest_that_begins_in_the_future_does_not_bar_an_address_for_ever() {
    let mut node = Node::new(vec![set(&["10.0.0.0/30"])]);
    node.add("a");
    node.del("a");
    node.now = BootMillis(5);
    assert_eq!(node.add("b"), "10.0.0.2/30");
}

#[test]
fn a_failed_add_gives_its_address_back() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let grant = node.reserve("a");
    node.commit(node.pool.cancel(owner("a").id(), grant.generation, node.now));
    assert!(node.lease("a").is_none());
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Resting(node.now)));
    // An attached one cannot be cancelled.
    let grant = node.reserve("a");
    node.commit(node.pool.attached(owner("a").id(), grant.generation, None, node.now).expect("attached"));
    assert_eq!(node.pool.cancel(owner("a").id(), grant.generation, node.now), []);
    assert_eq!(node.pool.attached(owner("a").id(), grant.generation, None, node.now), Ok(Vec::new()));
}

#[test]
fn masquerade_follows_the_clusters_ranges_and_keeps_what_else_is_inside() {
    let networks =
        |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a network")).collect::<Vec<_>>();
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    for name in ["a", "b", "c"] {
        node.add(name);
    }
    let mut lease = node.lease("a").expect("a lease").clone();
    // Its own subnet lies within the cluster's range; 192.168.0.0/16 stands in the network's configuration.
    let masquerade = Masquerade::outside(networks(&["10.0.0.0/24", "10.0.0.0/8", "192.168.0.0/16"]), true);
    lease.attachment.traffic = Some(Traffic { masquerade: Some(masquerade), ..Traffic::default() });
    node.commit(vec![Change::PutLease(Box::new(lease.clone()))]);
    let (before, now) = (networks(&["10.0.0.0/8"]), networks(&["172.16.0.0/12", "fd00::/48"]));
    let network = lease.attachment.owner.network.clone();
    let changes = node.pool.follow_ranges(&network, &before, &now);
    assert_eq!(changes.len(), 1, "the others ask for no masquerade");
    node.commit(changes);
    let inside = |node: &Node| {
        let traffic = node.lease("a").expect("a lease").attachment.traffic.clone().expect("traffic");
        traffic.masquerade.expect("masquerade").inside
    };
    assert_eq!(inside(&node), networks(&["10.0.0.0/24", "172.16.0.0/12", "192.168.0.0/16", "fd00::/48"]));
    assert_eq!(node.pool.follow_ranges(&network, &before, &now), [], "once is enough");
    assert_eq!(node.pool.follow_ranges("another", &now, &before), []);
}

#[test]
fn del_is_repeatable_and_stands_for_its_own_generation() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    assert!(node.pool.begin_delete(&owner("a")).is_none());
    node.add("a");
    let id = owner("a").id();
    let (lease, changes) = node.pool.begin_delete(&owner("a")).expect("a lease");
    assert_eq!(node.pool.finish_delete(id, lease.generation, node.now), [], "not begun yet");
    node.commit(changes);
    assert_eq!(node.lease("a").map(|lease| lease.state), Some(LeaseState::Deleting));
    // DEL died here. The next one finds the same lease.
    let (again, changes) = node.pool.begin_delete(&owner("a")).expect("a lease");
    assert_eq!((again.generation, changes), (lease.generation, Vec::new()));
    // An ADD comes between, then the first DEL's answer: the new lease is not its.
    let grant = node.reserve("a");
    assert_eq!(joined(&grant), "10.0.0.2/24");
    assert_eq!(node.pool.finish_delete(id, lease.generation, node.now), []);
    let (_, changes) = node.pool.begin_delete(&owner("a")).expect("a lease");
    node.commit(changes);
    assert_eq!(node.pool.finish_delete(id, lease.generation, node.now), []);
    assert!(node.pool.attached(id, grant.generation, None, node.now).is_err());
    node.commit(node.pool.finish_delete(id, grant.generation, node.now));
    assert!(node.lease("a").is_none());
    assert!(node.pool.begin_delete(&owner("a")).is_none());
}

#[test]
fn del_frees_former_addresses_too() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("a");
    node.sets = vec![set(&["10.1.0.0/24"])];
    node.reserve("a");
    node.del("a");
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Resting(node.now)));
    assert_eq!(node.hold("10.1.0.2"), Some(Hold::Resting(node.now)));
}

#[test]
fn attached_records_how_the_attachment_came_out() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let grant = node.reserve("a");
    let mut finished = attachment(owner("somebody else"));
    finished.mac = "0a:00:00:00:00:01".parse().ok();
    node.commit(
        node.pool.attached(owner("a").id(), grant.generation, Some(&finished), node.now).expect("attached"),
    );
    let lease = node.lease("a").expect("a lease");
    assert_eq!(lease.attachment.mac, finished.mac);
    assert_eq!((&lease.attachment.owner, &lease.attachment.addresses), (&owner("a"), &grant.addresses));
}

#[test]
fn another_boot_ends_leases_and_rests() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    for container in ["a", "b", "c"] {
        node.add(container);
    }
    node.del("a");
    node.commit(vec![Change::PutAddress(NetworkId::of(NET), ip("10.0.0.6"), Hold::Unknown(2))]);
    assert_eq!(node.pool.new_boot(BOOT), []);
    node.commit(node.pool.new_boot("another"));
    assert_eq!((node.pool.leases().count(), node.pool.holds().count()), (0, 0));
    assert_eq!(node.pool.boot(), Some("another"));
    // It goes on behind the last one given: what another node remembers of .2 is the older news.
    assert_eq!(node.add("a"), "10.0.0.5/29");
    // A store that lost its boot id alone keeps what belongs to the current one.
    node.pool.boot = None;
    node.commit(node.pool.new_boot("another"));
    assert_eq!(node.pool.leases().count(), 1);
}

#[test]
fn two_looks_that_miss_the_interface_end_a_lease() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("alive");
    node.add("dead");
    node.add("back");
    let sweep = |node: &mut Node, containers: &[&str]| {
        let plan = node.pool.sweep(&node.sees(containers), node.now);
        node.commit(plan.changes);
        plan.released.iter().map(|lease| lease.attachment.owner.container.clone()).collect::<Vec<_>>()
    };
    assert_eq!(sweep(&mut node, &["alive"]), Vec::<String>::new());
    assert_eq!(node.lease("dead").and_then(|lease| lease.missing_since), Some(node.now));
    node.sleep(MISSING_MS - 1);
    assert_eq!(sweep(&mut node, &["alive", "back"]), Vec::<String>::new());
    assert_eq!(node.lease("back").and_then(|lease| lease.missing_since), None);
    node.sleep(1);
    assert_eq!(sweep(&mut node, &["alive"]), ["dead"]);
    assert_eq!(node.hold("10.0.0.3"), Some(Hold::Resting(node.now)));
    assert_eq!(node.lease("back").and_then(|lease| lease.missing_since), Some(node.now));
    // A second sweep finds nothing to write.
    assert_eq!(node.pool.sweep(&node.sees(&["alive"]), node.now).changes, []);
}

#[test]
fn an_add_that_is_slow_keeps_its_address() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let grant = node.reserve("slow");
    let nothing = Observation::default();
    for _ in 0..9 {
        let plan = node.pool.sweep(&nothing, node.now);
        assert_eq!(plan.released, []);
        node.commit(plan.changes);
        node.sleep(MISSING_MS);
    }
    let done = node.pool.attached(owner("slow").id(), grant.generation, None, node.now);
    assert!(done.is_ok(), "{done:?}");
    // One that has died, and whose runtime has not said so.
    node.sleep(MISSING_MS);
    assert_eq!(node.pool.sweep(&nothing, node.now).released.len(), 1);
}

#[test]
fn a_clock_set_back_begins_the_minute_again() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("a");
    node.commit(node.pool.sweep(&Observation::default(), node.now).changes);
    node.now = BootMillis(7);
    node.commit(node.pool.sweep(&Observation::default(), node.now).changes);
    assert_eq!(node.lease("a").and_then(|lease| lease.missing_since), Some(BootMillis(7)));
    node.sleep(MISSING_MS);
    assert_eq!(node.pool.sweep(&Observation::default(), node.now).released.len(), 1);
}

#[test]
fn a_lease_without_a_link_is_judged_by_its_netns() {
    for (sight, ends) in [
        (None, false),
        (Some(Sight::Unknown), false),
        (Some(Sight::Present), false),
        (Some(Sight::Gone), true),
    ] {
        let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
        node.add("a");
        let mut lease = node.lease("a").expect("a lease").clone();
        lease.attachment.link = None;
        node.commit(vec![Change::PutLease(Box::new(lease))]);
        let seen = Observation {
            links: BTreeSet::from([owner("a").link_name()]),
            netns: sight.map(|sight| (owner("a").id(), sight)).into_iter().collect(),
            ..Observation::default()
        };
        node.commit(node.pool.sweep(&seen, node.now).changes);
        node.sleep(MISSING_MS);
        assert_eq!(node.pool.sweep(&seen, node.now).released.len(), usize::from(ends), "{sight:?}");
    }
}

#[test]
fn a_del_that_died_is_ended_or_reported() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    for container in ["done", "half"] {
        node.add(container);
        let (_, changes) = node.pool.begin_delete(&owner(container)).expect("a lease");
        node.commit(changes);
    }
    let plan = node.pool.sweep(&node.sees(&["half"]), node.now);
    let names = |leases: &[Lease]| {
        leases.iter().map(|lease| lease.attachment.owner.container.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&plan.released), names(&plan.unfinished)),
        (vec!["done".to_owned()], vec!["half".to_owned()])
    );
}

#[test]
fn no_rest_is_longer_than_the_store_remembers() {
    let mut node = Node::new(vec![set(&["10.0.0.0/30"])]);
    node.quarantine_ms = u64::MAX;
    node.add("a");
    node.del("a");
    node.sleep(LONGEST_QUARANTINE_MS);
    assert_eq!(node.reserve("b").notices, Vec::<String>::new());
}

#[test]
fn what_rested_longest_ago_is_forgotten() {
    let mut node = Node::new(vec![set(&["fd00::/64"])]);
    for i in 0..10 {
        node.add(&format!("a{i}"));
        node.del(&format!("a{i}"));
    }
    node.sleep(LONGEST_QUARANTINE_MS);
    node.add("b");
    assert_eq!(node.pool.resting.len(), 10);
    node.sleep(1);
    // Each reservation forgets a few; a sweep all.
    node.add("c");
    assert_eq!(node.pool.resting.len(), 6);
    node.commit(node.pool.sweep(&node.sees(&["b", "c"]), node.now).changes);
    assert_eq!(node.pool.holds().count(), 2);
    assert!(node.pool.resting.is_empty());
}

/// GC with every kind of list and of lease.
#[test]
fn gc() {
    let all = ["ours", "theirs", "theirs dead", "theirs new", "rebuilt", "imported", "unnamed", "deleting"];
    for (valid, runtime, removed, reported) in [
        (
            &["ours", "imported", "unnamed", "rebuilt", "deleting"] as &[&str],
            Some("containerd"),
            "theirs dead",
            "theirs",
        ),
        (&[], Some("containerd"), "deleting,imported,ours,theirs dead,unnamed", "rebuilt,theirs"),
        (&["theirs"], Some("podman"), "imported,theirs dead,theirs new,unnamed", "deleting,ours,rebuilt"),
        // A caller that cannot be told is another runtime to all.
        (&[], None, "imported,theirs dead,unnamed", "deleting,ours,rebuilt,theirs"),
        (&all, Some("containerd"), "", ""),
    ] {
        let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
        for container in all {
            let grant = node.reserve(container);
            let mut lease = node.lease(container).expect("a lease").clone();
            assert_eq!(lease.generation, grant.generation);
            lease.state = match container {
                "theirs new" => LeaseState::Reserved,
                "deleting" => LeaseState::Deleting,
                _ => LeaseState::Attached,
            };
            if container.starts_with("theirs") {
                lease.attachment.runtime = Some("podman".into());
            }
            if matches!(container, "rebuilt" | "imported" | "unnamed") {
                lease.attachment.runtime = None;
                lease.origin = Origin::Rebuilt;
            }
            if matches!(container, "imported" | "unnamed") {
                lease.attachment.link = None;
                lease.origin = Origin::HostLocal;
            }
            node.pool.apply(Change::PutLease(Box::new(lease.clone())));
            if container == "unnamed" {
                node.pool.apply_all(node.pool.release(&lease, node.now));
                lease.attachment.owner.ifname = String::new();
                let adoption = node.pool.import(NET, &[lease.attachment], &[]);
                node.commit(adoption.changes);
            }
        }
        let other = Owner { network: "other".into(), ..owner("other") };
        node.try_add(&other, &[]).expect("an address");
        let seen = node.sees(&["ours", "theirs", "rebuilt", "deleting"]);
        let valid: Vec<(String, String)> = valid.iter().map(|id| ((*id).into(), "eth0".into())).collect();
        let plan = node.pool.gc(NET, &valid, runtime, &seen);
        let names = |leases: &[Lease]| {
            let names: BTreeSet<&str> =
                leases.iter().map(|lease| lease.attachment.owner.container.as_str()).collect();
            names.into_iter().collect::<Vec<_>>().join(",")
        };
        assert_eq!(names(&plan.remove), removed, "{valid:?} {runtime:?}");
        assert_eq!(names(&plan.foreign), reported, "{valid:?} {runtime:?}");
        node.commit(plan.changes);
        for lease in &plan.remove {
            let id = lease.attachment.owner.id();
            assert_eq!(node.pool.lease(id).map(|lease| lease.state), Some(LeaseState::Deleting));
            node.commit(node.pool.finish_delete(id, lease.generation, node.now));
            assert!(node.pool.lease(id).is_none());
        }
        assert!(node.pool.find(&other).is_some());
    }
}

#[test]
fn a_gc_names_the_interface_too() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("a");
    let plan = node.pool.gc(NET, &[("a".into(), "eth1".into())], Some("containerd"), &node.sees(&["a"]));
    assert_eq!(plan.remove.len(), 1);
}
