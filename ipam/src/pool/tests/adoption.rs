//! Records of others, damaged ones, and changes taken back.

use super::*;

#[test]
fn unknown_addresses_are_kept_for_two_gc_passes() {
    let mut node = Node::new(vec![set(&["10.0.0.0/30"])]);
    let network = NetworkId::of(NET);
    node.commit(node.pool.rebuilt(&[], &[(network, ip("10.0.0.2")), (network, ip("fd00::9"))]).changes);
    for passes in [2, 1] {
        assert_eq!(node.hold("10.0.0.2"), Some(Hold::Unknown(passes)));
        assert_eq!(node.refusal("a", &[]), "no IP addresses available in range set: 10.0.0.1-10.0.0.2");
        node.commit(node.pool.gc("another", &[], None, &Observation::default()).changes);
        node.commit(node.pool.gc(NET, &[], None, &Observation::default()).changes);
    }
    assert_eq!(node.pool.holds().count(), 0);
    assert_eq!(node.add("a"), "10.0.0.2/30");
}

#[test]
fn an_imported_network_goes_on_where_host_local_stopped() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"]), set(&["fd00::/64"])]);
    let imported = |container: &str, ifname: &str, addresses: &[&str]| {
        let mut attachment = attachment(Owner { ifname: ifname.into(), ..owner(container) });
        attachment.addresses = addresses.iter().map(|text| pod_address(&node.sets, ip(text))).collect();
        attachment.link = None;
        attachment
    };
    let attachments = [
        imported("a", "eth0", &["10.0.0.7"]),
        imported("old", "", &["10.0.0.9"]),
        imported("a", "eth0", &["fd00::7"]),
        imported("b", "eth0", &["10.0.0.7"]),
    ];
    let network = NetworkId::of(NET);
    assert!(!node.pool.is_imported(network));
    let adoption = node.pool.import(NET, &attachments, &[(0, ip("10.0.0.6")), (1, ip("fd00::40"))]);
    assert_eq!(
        adoption.notices,
        [
            "10.0.0.7 is claimed by eth0 of container b on network net but belongs to eth0 of container a on network net"
        ]
    );
    node.commit(adoption.changes);
    assert!(node.pool.is_imported(network));
    assert_eq!(node.pool.cursors(network).collect::<Vec<_>>(), [(0, ip("10.0.0.6")), (1, ip("fd00::40"))]);
    // .7 and .9 are taken; an ADD of the same owner gets what it has.
    assert_eq!(node.add("new"), "10.0.0.8/24,fd00::41/64");
    assert_eq!(node.add("new 2"), "10.0.0.10/24,fd00::42/64");
    let grant = node.reserve("a");
    assert_eq!((joined(&grant).as_str(), grant.renewed), ("10.0.0.7/24,fd00::7/64", true));
    // An old file names no interface: DEL finds it by the container, and ADD does not take it for its own.
    assert_eq!(node.lease("old").map(|lease| lease.attachment.owner.ifname.as_str()), Some(""));
    node.del("old");
    assert_eq!(node.hold("10.0.0.9"), Some(Hold::Resting(node.now)));
    assert!(node.lease("old").is_none() && node.lease("b").is_none());
    // The same directory once more changes nothing but finds nothing to do either.
    let again = node.pool.import(NET, &attachments[..1], &[]);
    assert_eq!(again.changes, [Change::PutImported(network)]);
    assert_eq!(
        again.notices,
        ["eth0 of container a on network net has a lease already, which stays as it is"]
    );
}

#[test]
fn a_second_interface_does_not_take_over_an_unnamed_lease() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let mut old = attachment(Owner { ifname: String::new(), ..owner("a") });
    old.addresses = vec![pod_address(&node.sets, ip("10.0.0.2"))];
    node.commit(node.pool.import(NET, &[old], &[]).changes);
    let second = Owner { ifname: "eth1".into(), ..owner("a") };
    assert_eq!(joined(&node.try_add(&second, &[]).expect("an address")), "10.0.0.3/24");
}

#[test]
fn a_rebuilt_store_knows_links_and_keeps_the_rest() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    let network = NetworkId::of(NET);
    let mut live = attachment(owner("a"));
    live.addresses = vec![pod_address(&node.sets, ip("10.0.0.2"))];
    live.runtime = None;
    let l2 = attachment(owner("l2"));
    let unknown = [(network, ip("10.0.0.2")), (network, ip("10.0.0.3")), (network, ip("::ffff:10.0.0.3"))];
    let adoption = node.pool.rebuilt(&[live, l2], &unknown);
    assert_eq!(adoption.notices, Vec::<String>::new());
    node.commit(adoption.changes);
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Leased(owner("a").id())));
    assert_eq!(node.hold("10.0.0.3"), Some(Hold::Unknown(GC_PASSES)));
    assert_eq!(node.pool.leases().count(), 2);
    assert_eq!((node.pool.generation(), node.reserve("b").generation), (2, 3));
    assert_eq!(node.add("c"), "10.0.0.5/24");
    node.sleep(MISSING_MS);
    assert_eq!(joined(&node.reserve("a")), "10.0.0.2/24");
}

#[test]
fn a_damaged_store_is_mended_without_freeing_an_address() {
    let mut node = Node::new(vec![set(&["10.0.0.0/24"])]);
    for container in ["a", "b", "c"] {
        node.add(container);
    }
    let network = NetworkId::of(NET);
    let mut thief = node.lease("c").expect("a lease").clone();
    thief.former = vec![ip("10.0.0.2")];
    thief.generation = 99;
    node.pool.apply_all([
        Change::RemoveLease(owner("b").id()),
        Change::RemoveAddress(network, ip("10.0.0.4")),
        Change::PutLease(Box::new(thief)),
    ]);
    let mended = node.pool.mend();
    assert_eq!(node.pool.invariants(), mended.notices);
    let c = "eth0 of container c on network net";
    for expected in [
        format!("10.0.0.4 is in the lease of {c} but not held"),
        format!("10.0.0.2 is in the lease of {c} and in another's"),
        format!("10.0.0.3 of network {network} is leased to an owner without a lease"),
        "generation 3 is older than a lease of 99".to_owned(),
    ] {
        assert!(mended.notices.contains(&expected), "{expected}: {:?}", mended.notices);
    }
    assert_eq!(mended.notices.len(), 4);
    node.commit(mended.changes);
    assert_eq!(node.hold("10.0.0.2"), Some(Hold::Leased(owner("a").id())));
    assert_eq!(node.hold("10.0.0.3"), Some(Hold::Unknown(GC_PASSES)));
    assert_eq!(node.hold("10.0.0.4"), Some(Hold::Leased(owner("c").id())));
    assert_eq!(node.reserve("d").generation, 100);
}

#[test]
fn usage_counts_what_can_be_given() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"]), set(&["::/0"])]);
    node.add("a");
    node.add("b");
    node.del("b");
    node.commit(vec![Change::PutAddress(NetworkId::of(NET), ip("10.0.0.6"), Hold::Unknown(2))]);
    let usage = node.pool.usage(NET, &node.sets);
    let count =
        |i: usize| (usage[i].total, usage[i].leased, usage[i].resting, usage[i].unknown, usage[i].free());
    assert_eq!(count(0), (5, 1, 1, 1, 3));
    assert_eq!(count(1), (u64::MAX, 1, 1, 0, u64::MAX - 1));
    assert_eq!(usage[0].ranges, "10.0.0.1-10.0.0.6");
}

#[test]
fn changes_applied_ahead_can_be_taken_back() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    node.add("a");
    node.add("b");
    node.del("b");
    let before = node.pool.clone();
    let request = |container: &str| Reserve {
        attachment: attachment(owner(container)),
        sets: node.sets.clone(),
        requested: Vec::new(),
        quarantine_ms: 0,
        import_dir: None,
    };
    let mut undo = Vec::new();
    for container in ["c", "d", "a"] {
        let (_, changes) =
            node.pool.reserve(&request(container), &Sights::new(), node.now).expect("an address");
        undo.push(node.pool.apply_undoable(changes));
    }
    let more = [
        node.pool.sweep(&Observation::default(), node.now).changes,
        node.pool.import("other", &[], &[(3, ip("10.0.0.9"))]).changes,
        node.pool.begin_delete(&owner("a")).map(|(_, changes)| changes).unwrap_or_default(),
        node.pool.new_boot("another"),
    ];
    for changes in more {
        undo.push(node.pool.apply_undoable(changes));
    }
    assert_ne!(node.pool, before);
    for undo in undo.into_iter().rev() {
        node.pool.undo(undo);
    }
    assert_eq!(node.pool, before);
}

#[test]
fn an_address_that_an_older_store_gives_to_a_dead_pod_is_the_live_pods() {
    let mut node = Node::new(vec![set(&["10.0.0.0/29"])]);
    let (before, alive) = (node.add("before"), node.add("alive"));
    // What the store has forgotten: `before` went, its address rested and was given to `after`.
    let sets = node.sets.clone();
    let bare = |given: &str| given.parse::<ipnetwork::IpNetwork>().unwrap().ip();
    let with = |container: &str, address: &str| {
        let mut live = attachment(owner(container));
        live.addresses = vec![pod_address(&sets, bare(address))];
        live
    };
    let found = [with("after", &before)];
    let seen = node.sees(&["alive", "after"]);

    let given_up = node.pool.give_up(&found, &[], &seen, node.now);
    assert_eq!(given_up.notices.len(), 1, "{:?}", given_up.notices);
    node.commit(given_up.changes);
    let adopted = node.pool.rebuilt(&found, &[]);
    assert_eq!(adopted.notices, [""; 0]);
    node.commit(adopted.changes);

    assert!(node.lease("before").is_none());
    let held = node.lease("after").expect("adopted").attachment.addresses.clone();
    assert_eq!(held.iter().map(|address| address.address.to_string()).collect::<Vec<_>>(), [before.as_str()]);
    // A live pod's address stays its own, whatever another interface claims.
    let liar = [with("liar", &alive)];
    assert_eq!(node.pool.give_up(&liar, &[], &seen, node.now).changes, []);

    // The one of an unknown owner, the same.
    node.del("after");
    let address = bare(&node.add("forgotten"));
    let unknown = [(NetworkId::of(NET), address)];
    node.commit(node.pool.give_up(&[], &unknown, &seen, node.now).changes);
    node.commit(node.pool.rebuilt(&[], &unknown).changes);
    assert_eq!(node.pool.hold(NetworkId::of(NET), address), Some(Hold::Unknown(GC_PASSES)));
}
