//! Which address an owner gets.

use super::*;

#[test]
fn a_29_gives_2_to_6_then_is_full_and_never_gives_7() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    for (container, expected) in [
        ("a", "10.0.0.2/29"),
        ("b", "10.0.0.3/29"),
        ("c", "10.0.0.4/29"),
        ("d", "10.0.0.5/29"),
        ("e", "10.0.0.6/29"),
    ] {
        assert_eq!(node.add(container), expected);
    }
    assert_eq!(node.refusal("f", &[]), "no IP addresses available in range set: 10.0.0.1-10.0.0.6");
    let lease = node.lease("a").expect("a lease");
    assert_eq!(lease.attachment.addresses[0].gateway, Some(ip("10.0.0.1")));
    assert_eq!((lease.state, lease.boot_id.as_str()), (LeaseState::Attached, BOOT));
    // It wraps round, to the addresses that have been freed.
    node.del("c");
    node.sleep(DEFAULT_QUARANTINE_MS);
    assert_eq!(node.add("f"), "10.0.0.4/29");
}

#[test]
fn the_next_address_is_the_next_not_the_freed_one() {
    for quarantine_ms in [0, DEFAULT_QUARANTINE_MS] {
        let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
        node.quarantine_ms = quarantine_ms;
        assert_eq!(node.add("a"), "10.0.0.2/29");
        node.del("a");
        assert_eq!(node.add("b"), "10.0.0.3/29");
        node.del("b");
        assert_eq!(node.add("a"), "10.0.0.4/29");
    }
}

#[test]
fn freed_addresses_rest_unless_nothing_else_is_free() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    for container in ["a", "b", "c", "d"] {
        node.add(container);
    }
    for (container, rest) in [("c", 2000), ("a", 3000), ("b", 1000)] {
        node.del(container);
        node.sleep(rest);
    }
    // .6 is fresh; then .4, which has rested longest, although .2 is the next one round.
    assert_eq!(node.add("e"), "10.0.0.6/29");
    let grant = node.reserve("f");
    assert_eq!(joined(&grant), "10.0.0.4/29");
    assert_eq!(
        grant.notices,
        ["range set 10.0.0.1-10.0.0.6 has no fresh address left: 10.0.0.4 is given again after 6 s"]
    );
    assert_eq!(node.add("g"), "10.0.0.2/29");
    assert_eq!(node.add("h"), "10.0.0.3/29");
    assert_eq!(node.refusal("i", &[]), "no IP addresses available in range set: 10.0.0.1-10.0.0.6");
}

#[test]
fn a_rested_address_is_as_good_as_any_other() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    node.add("a");
    node.add("b");
    node.del("a");
    node.del("b");
    for container in ["c", "d", "e"] {
        node.add(container);
    }
    node.sleep(DEFAULT_QUARANTINE_MS);
    let grant = node.reserve("f");
    assert_eq!((joined(&grant).as_str(), grant.notices.len()), ("10.0.0.2/29", 0));
}

#[test]
fn each_set_gives_one_address() {
    let mut node = Node::new(vec![
        set(&["10.0.0.0/30", "10.0.1.0/30"]),
        set(&["fd00::/126"]),
        set(&["10.9.0.0/24 10.9.0.50"]),
    ]);
    assert_eq!(node.add("a"), "10.0.0.2/30,fd00::2/126,10.9.0.50/24");
    // The first set goes on in its second range; IPv6 ends at all ones.
    assert_eq!(node.add("b"), "10.0.1.2/30,fd00::3/126,10.9.0.51/24");
    assert_eq!(
        node.refusal("c", &[]),
        "no IP addresses available in range set: 10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.2"
    );
    // What the first set could have given is not lost when a later one refuses.
    node.del("a");
    node.sleep(DEFAULT_QUARANTINE_MS);
    node.try_add(&owner("d"), &["10.0.0.2", "10.9.0.50"]).expect("both free");
    node.del("d");
    assert_eq!(
        node.refusal("e", &["10.0.0.2", "10.9.0.51"]),
        "requested IP address 10.9.0.51 is taken by eth0 of container b on network net"
    );
    assert!(matches!(node.hold("10.0.0.2"), Some(Hold::Resting(_))));
}

#[test]
fn sets_that_overlap_are_refused() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"]), set(&["10.0.0.0/25"])]);
    assert_eq!(
        node.refusal("a", &[]),
        "range set 0 overlaps with range set 1: 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126"
    );
}

#[test]
fn no_set_stands_for_l2() {
    let mut node = Node::new(Vec::new());
    assert_eq!(node.add("a"), "");
    assert_eq!(node.lease("a").map(|lease| lease.state), Some(LeaseState::Attached));
    assert_eq!(node.refusal("b", &["10.0.0.2"]), "requested IP address 10.0.0.2 is not in range set (none)");
}

#[test]
fn requested_addresses() {
    let sets = || vec![set(&["10.0.0.0/24 10.0.0.1 10.0.0.99", "10.0.1.0/24"]), set(&["fd00::/64"])];
    for (requested, expected) in [
        (&["10.0.0.50"] as &[&str], Ok("10.0.0.50/24,fd00::2/64")),
        (&["fd00::50", "10.0.1.9"], Ok("10.0.1.9/24,fd00::50/64")),
        // The same one may come in CNI_ARGS and in the runtime's configuration.
        (&["10.0.0.50", "::ffff:10.0.0.50", "10.0.0.50"], Ok("10.0.0.50/24,fd00::2/64")),
        (
            &["10.0.0.100"],
            Err(
                "requested IP address 10.0.0.100 is not in range set 10.0.0.1-10.0.0.99,10.0.1.1-10.0.1.254 or \
                 fd00::1-fd00::ffff:ffff:ffff:ffff",
            ),
        ),
        (
            &["10.0.0.0"],
            Err(
                "requested IP address 10.0.0.0 is not in range set 10.0.0.1-10.0.0.99,10.0.1.1-10.0.1.254 or \
                 fd00::1-fd00::ffff:ffff:ffff:ffff",
            ),
        ),
        (
            &["10.0.1.255"],
            Err(
                "requested IP address 10.0.1.255 is not in range set 10.0.0.1-10.0.0.99,10.0.1.1-10.0.1.254 or \
                 fd00::1-fd00::ffff:ffff:ffff:ffff",
            ),
        ),
        (&["10.0.0.1"], Err("requested IP address 10.0.0.1 is the gateway of range 10.0.0.1-10.0.0.99")),
        (
            &["fd00::1"],
            Err("requested IP address fd00::1 is the gateway of range fd00::1-fd00::ffff:ffff:ffff:ffff"),
        ),
        (
            &["10.0.0.7"],
            Err("requested IP address 10.0.0.7 is taken by eth0 of container other on network net"),
        ),
        (
            &["10.0.0.9"],
            Err(
                "requested IP address 10.0.0.9 was in use when the address store was lost, by whom is unknown: it is \
                 free again after a GC of this network or a reboot",
            ),
        ),
        (
            &["10.0.0.50", "10.0.1.50"],
            Err("requested IP addresses 10.0.0.50 and 10.0.1.50 are both in range set \
                 10.0.0.1-10.0.0.99,10.0.1.1-10.0.1.254, which gives one address"),
        ),
        // One that rests is granted to whom asks for it by name.
        (&["10.0.0.8"], Ok("10.0.0.8/24,fd00::2/64")),
    ] {
        let mut node = Node::new(sets());
        node.try_add(&owner("other"), &["10.0.0.7", "fd00::1:0"]).expect("free");
        node.try_add(
            &owner("gone"),
            &["10.0.0.8", "fd00::1"].map(|text| if text == "fd00::1" { "fd00::1:1" } else { text }),
        )
        .expect("free");
        node.del("gone");
        node.commit(vec![Change::PutAddress(NetworkId::of(NET), ip("10.0.0.9"), Hold::Unknown(2))]);
        node.commit(vec![Change::PutCursor(NetworkId::of(NET), 1, ip("fd00::1"))]);
        let before = node.pool.clone();
        let got = node.try_add(&owner("a"), requested);
        let got = got.map(|grant| joined(&grant)).map_err(|refusal| refusal.to_string());
        assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{requested:?}");
        if got.is_err() {
            assert_eq!(node.pool, before, "{requested:?}: a refusal changes nothing");
        }
    }
}

#[test]
fn a_requested_address_is_the_last_one_given() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.try_add(&owner("a"), &["10.0.0.77"]).expect("free");
    assert_eq!(node.add("b"), "10.0.0.78/24");
}

#[test]
fn no_gateway_is_given_not_even_by_another_range() {
    let mut ranges: Vec<crate::Range> = set(&["10.0.0.0/24 10.0.0.2 10.0.0.4"]).into();
    let second = RangeSpec {
        range_start: Some(ip("10.0.0.10")),
        range_end: Some(ip("10.0.0.11")),
        gateway: Some(ip("10.0.0.3")),
        ..ranges[0].into()
    };
    ranges.push(crate::Range::new(second).expect("a range"));
    let mut node = Node::new(vec![RangeSet::new(ranges).expect("a set")]);
    let given: Vec<String> = ["a", "b", "c", "d"].iter().map(|container| node.add(container)).collect();
    assert_eq!(given, ["10.0.0.2/24", "10.0.0.4/24", "10.0.0.10/24", "10.0.0.11/24"]);
    assert_eq!(node.pool.usage(NET, &node.sets)[0].free(), 0);
    assert_eq!(
        node.refusal("e", &[]),
        "no IP addresses available in range set: 10.0.0.2-10.0.0.4,10.0.0.10-10.0.0.11"
    );
}

#[test]
fn a_repeated_add_gets_the_same_answer() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"]), set(&["fd00::/64"])]);
    let first = node.reserve("a");
    node.reserve("b");
    let second = node.reserve("a");
    assert_eq!(second.addresses, first.addresses);
    assert_eq!((first.renewed, second.renewed), (false, true));
    assert!(second.generation > first.generation && second.notices.is_empty());
    // Late news of the first one's caller is not taken for the second's.
    assert!(node.pool.attached(owner("a").id(), first.generation, None, node.now).is_err());
    assert_eq!(node.pool.cancel(owner("a").id(), first.generation, node.now), []);
    // The first one's interface may stand, so the second's failure frees nothing.
    assert_eq!(node.pool.cancel(owner("a").id(), second.generation, node.now), []);
    node.del("a");
    assert!(node.lease("a").is_none());
    assert!(matches!(node.hold("10.0.0.2"), Some(Hold::Resting(_))));
}

#[test]
fn a_repeated_add_may_name_its_own_address_and_no_other_set_changes() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"]), set(&["fd00::/64"])]);
    node.add("a");
    let grant = node.try_add(&owner("a"), &["10.0.0.2"]).expect("its own");
    assert!(grant.renewed);
    let grant = node.try_add(&owner("a"), &["10.0.0.9"]).expect("free");
    assert_eq!(joined(&grant), "10.0.0.9/24,fd00::2/64");
    assert!(!grant.renewed);
    assert_eq!(
        grant.notices,
        [
            "eth0 of container a on network net had 10.0.0.2/24, fd00::2/64 and gets 10.0.0.9/24, fd00::2/64: the \
          network's ranges or the requested addresses have changed"
        ]
    );
}

#[test]
fn one_id_on_two_networks_is_two_owners() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let other = Owner { network: "other".into(), ..owner("a") };
    assert_eq!(node.add("a"), "10.0.0.2/24");
    let grant = node.try_add(&other, &[]).expect("another network's addresses");
    assert_eq!(joined(&grant), "10.0.0.2/24");
    node.del("a");
    assert!(node.lease("a").is_none());
    assert_eq!(node.pool.find(&other).map(|lease| lease.generation), Some(grant.generation));
    assert_eq!(node.pool.hold(NetworkId::of("other"), ip("10.0.0.2")), Some(Hold::Leased(other.id())));
}

#[test]
fn a_pool_that_shrank_or_moved_leaves_live_pods_alone() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("a");
    node.add("b");
    node.sets = vec![set(&["10.1.0.0/24"])];
    let lease = node.lease("a").cloned();
    assert_eq!(node.add("c"), "10.1.0.2/24");
    assert_eq!(node.lease("a").cloned(), lease);
    // A second ADD of a live pod is given what the network has now. The old address stays held until the new
    // interface is up, for the old one may have it until then.
    let grant = node.reserve("a");
    assert_eq!((joined(&grant).as_str(), grant.renewed), ("10.1.0.3/24", false));
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Leased(owner("a").id())));
    assert_eq!(node.pool.cancel(owner("a").id(), grant.generation, node.now), []);
    // The ADD was killed and comes a third time.
    let grant = node.reserve("a");
    assert_eq!((joined(&grant).as_str(), grant.renewed), ("10.1.0.3/24", true));
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Leased(owner("a").id())));
    node.commit(node.pool.attached(owner("a").id(), grant.generation, None, node.now).expect("attached"));
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Resting(node.now)));
    assert_eq!(node.lease("a").map(|lease| lease.former.clone()), Some(Vec::new()));
    // A pod outside the ranges is deleted as any other.
    node.del("b");
    assert!(node.lease("b").is_none());
}

#[test]
fn a_lease_that_moves_back_finds_its_former_address() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    node.add("a");
    node.sets = vec![set(&["10.1.0.0/24"])];
    node.reserve("a");
    node.sets = vec![set(&["10.0.0.0/24"])];
    assert_eq!(node.add("a"), "10.0.0.2/24");
    assert!(matches!(node.hold("10.1.0.2"), Some(Hold::Resting(_))));
}

#[test]
fn nothing_is_given_before_the_boot_is_known() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    node.pool = Pool::default();
    assert_eq!(node.refusal("a", &[]), "the address store has not been opened for this boot");
}

#[test]
fn the_ends_of_the_address_space() {
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    for (text, expected) in [
        ("0.0.0.0/0", "0.0.0.2/0 0.0.0.3/0"),
        ("255.255.255.252/30", "255.255.255.254/30"),
        ("::/0", "::2/0 ::3/0"),
        (
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/126 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/126",
        ),
    ] {
        let mut node = Node::new(vec![set(&[text])]);
        for expected in expected.split(' ') {
            assert_eq!(node.add(expected), expected, "{text}");
        }
    }
    let mut node = Node::new(vec![set(&["::/0"])]);
    node.try_add(&owner("last"), &[last]).expect("free");
    assert_eq!(node.add("next"), "::2/0", "behind the last one comes the first");
    let mut node = Node::new(vec![set(&["0.0.0.0/0"])]);
    node.try_add(&owner("last"), &["255.255.255.254"]).expect("free");
    assert_eq!(node.add("next"), "0.0.0.2/0");
}

/// A reservation must not grow with the pool: the 10,001st is not to be felt beside the 11th.
#[test]
fn ten_thousand_leases_and_a_64() {
    let mut node = Node::new(vec![set(&["10.0.0.0/16"]), set(&["fd00::/64"])]);
    let request = |container: String, sets: &[RangeSet]| Reserve {
        attachment: attachment(Owner { container, ..owner("") }),
        sets: sets.to_vec(),
        requested: Vec::new(),
        quarantine_ms: DEFAULT_QUARANTINE_MS,
        import_dir: None,
    };
    let begun = std::time::Instant::now();
    for i in 0..10_000 {
        let (_, changes) = node
            .pool
            .reserve(&request(format!("c{i}"), &node.sets), &Sights::new(), node.now)
            .expect("an address");
        node.pool.apply_all(changes);
    }
    let each = begun.elapsed() / 10_000;
    assert_eq!(node.pool.invariants(), Vec::<String>::new());
    // In a debug build on a busy machine; a scan of the range would take milliseconds.
    assert!(each.as_micros() < 1000, "{each:?} for each reservation");
    println!("{each:?} for each reservation");
    // The worst place to begin: before a run of 10,000.
    node.commit(vec![Change::PutCursor(NetworkId::of(NET), 0, ip("10.0.255.254"))]);
    let begun = std::time::Instant::now();
    let (grant, _) =
        node.pool.reserve(&request("last".into(), &node.sets), &Sights::new(), node.now).expect("an address");
    println!("{:?} behind a run of 10,000", begun.elapsed());
    assert_eq!(grant.addresses[0].address.to_string(), "10.0.39.18/16");
}

#[test]
fn an_address_that_was_anothers_is_said_to_be() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let fresh = node.reserve("a");
    node.commit(node.pool.attached(owner("a").id(), fresh.generation, None, node.now).expect("attached"));
    let again = node.reserve("a");
    node.del("a");
    let taken = node.try_add(&owner("b"), &["10.0.0.2"]).expect("it rests");
    assert_eq!((fresh.reused, again.reused, taken.reused), (false, false, true));
}
