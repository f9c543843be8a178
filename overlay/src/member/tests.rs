use super::*;
use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily};

const DAY: u64 = 24 * 3600;

fn at(seconds: u64) -> BootTime {
    BootTime(Duration::from_secs(seconds))
}

fn snapshot(reclaim_after_seconds: Option<u64>) -> Arc<Snapshot> {
    let range = ClusterRange { range: "10.244.0.0/16".parse().unwrap(), subnet_prefix: 24 };
    let config = ClusterConfig {
        name: "c".to_owned(),
        ranges: vec![range],
        encapsulation: Encapsulation::default(),
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4],
        reclaim_after_seconds,
    };
    Arc::new(Snapshot { config, nodes: Default::default() })
}

fn membership(subnet: &str) -> Membership {
    Membership { subnets: vec![subnet.parse().unwrap()], generation: 1, claimed: 1, ..Membership::default() }
}

fn recollection(reclaim_after: Option<u64>) -> Recollection {
    Recollection {
        remembered: Remembered {
            membership: membership("10.244.1.0/24"),
            snapshot: Snapshot::clone(&snapshot(reclaim_after)),
            mark: None,
        },
        contact: None,
        fenced: None,
    }
}

fn fresh() -> Member {
    Member::new("etcd".to_owned(), "boot".to_owned(), None, at(0))
}

fn remembering(recollection: &Recollection) -> Member {
    Member::new("etcd".to_owned(), "boot".to_owned(), Some(recollection), at(0))
}

fn heard(snapshot: &Arc<Snapshot>) -> StoreEvent {
    StoreEvent::Snapshot { snapshot: Arc::clone(snapshot), absent: None, mark: Some((1, 1)) }
}

/// A pass for what the member knows, by which all is right.
fn good(member: &Member) -> Pass {
    let node = member.membership().map(|membership| NodeConfig {
        subnets: membership.subnets.clone(),
        mtu: Some(1450),
        ..NodeConfig::default()
    });
    Pass { number: member.number, is_in: true, node, ..Pass::default() }
}

fn joined(member: &mut Member, reclaim_after: Option<u64>) {
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(1));
    member.hear(&heard(&snapshot(reclaim_after)), at(1));
    member.passed(good(member), at(2));
}

#[test]
fn a_new_node_says_nothing_to_plugins_before_store_and_kernel_are_in() {
    let mut member = fresh();
    assert!(member.knowledge().is_none() && member.node(at(0)).is_none());
    assert_eq!(member.waiting(at(0)), ["etcd has not said yet who the other nodes are"]);
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(1));
    assert!(member.knowledge().is_none() && !member.waiting(at(1)).is_empty());
    member.hear(&heard(&snapshot(None)), at(1));
    let knowledge = member.knowledge().expect("known");
    assert!(knowledge.is_live && member.node(at(1)).is_none());
    assert_eq!(member.waiting(at(1)), ["the overlay is being made"]);
    // A pass that was made before, and one that failed, change nothing.
    member.passed(Pass { number: 0, ..good(&member) }, at(1));
    member.passed(Pass { is_in: false, failure: Some("no".to_owned()), ..good(&member) }, at(1));
    assert_eq!(member.waiting(at(1)), ["the overlay cannot be made: no"]);
    assert!(member.node(at(1)).is_none());
    member.passed(good(&member), at(2));
    assert_eq!(member.waiting(at(2)), Vec::<String>::new());
    let node = member.node(at(2)).expect("is told");
    assert_eq!((node.mtu, node.refuse), (Some(1450), None));
}

#[test]
fn a_node_that_remembers_serves_its_pods_while_the_store_is_down_but_is_not_ready() {
    let mut member = remembering(&recollection(None));
    let knowledge = member.knowledge().expect("remembered");
    assert!(!knowledge.is_live, "nothing is to be removed");
    member.passed(good(&member), at(1));
    member.hear(&StoreEvent::Lost { why: "refused".to_owned() }, at(2));
    let node = member.node(at(2)).expect("is told");
    assert_eq!(node.refuse, None);
    assert_eq!(member.waiting(at(2)), ["etcd has not answered yet: refused"]);
    assert!(!member.was_ready() && member.store_status(at(2)).is_remembered);
    // A pass for what was remembered does not make it ready.
    let early = good(&member);
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(5));
    member.hear(&heard(&snapshot(None)), at(5));
    member.passed(early, at(5));
    assert!(!member.was_ready());
    member.passed(good(&member), at(5));
    assert!(member.was_ready() && member.waiting(at(5)).is_empty());
}

#[test]
fn a_lost_store_changes_nothing_but_its_age() {
    let mut member = fresh();
    joined(&mut member, None);
    let number = member.number;
    member.tick(at(100));
    assert_eq!(member.synced_ago(at(100)), Some(Duration::ZERO));
    member.hear(&StoreEvent::Lost { why: "timeout".to_owned() }, at(110));
    member.tick(at(160));
    assert_eq!(member.synced_ago(at(160)), Some(Duration::from_secs(60)));
    member.passed(good(&member), at(160));
    assert_eq!(member.waiting(at(160)), Vec::<String>::new());
    assert_eq!(member.number, number);
    assert!(member.node(at(160)).is_some_and(|node| node.refuse.is_none()));
    assert_eq!(member.store_status(at(160)).state, StoreState::Lost);
    member.hear(&StoreEvent::Found, at(170));
    assert_eq!((member.store_status(at(170)).state, member.number), (StoreState::Connected, number));
}

#[test]
fn without_contact_for_half_of_reclaim_after_no_pods_are_taken() {
    let mut member = fresh();
    joined(&mut member, Some(DAY));
    member.hear(&StoreEvent::Lost { why: "timeout".to_owned() }, at(10));
    member.passed(good(&member), at(DAY / 2));
    assert!(member.node(at(DAY / 2 - 10)).is_some_and(|node| node.refuse.is_none()));
    let node = member.node(at(DAY / 2 + 10)).expect("is told");
    assert!(node.refuse.is_some_and(|why| why.contains("store")), "says why");
    member.hear(&StoreEvent::Found, at(DAY / 2 + 20));
    assert!(member.node(at(DAY / 2 + 20)).is_some_and(|node| node.refuse.is_none()));
}

#[test]
fn after_a_reboot_nobody_knows_how_long_the_node_was_away() {
    let mut known = recollection(Some(DAY));
    known.contact = Some(Contact { boot: "another".to_owned(), seconds: 1 });
    let mut member = remembering(&known);
    // Also before the kernel has been looked at.
    assert!(member.node(at(1)).is_some_and(|node| node.refuse.is_some()));
    known.contact = Some(Contact { boot: "boot".to_owned(), seconds: 0 });
    member = remembering(&known);
    member.passed(good(&member), at(1));
    assert!(member.node(at(1)).is_some_and(|node| node.refuse.is_none()));
}

#[test]
fn a_fenced_node_takes_no_pods_until_it_has_other_subnets_also_over_a_restart() {
    let mut member = fresh();
    joined(&mut member, None);
    member.hear(&StoreEvent::Fenced { why: "n9 has 10.244.1.0/24".to_owned() }, at(5));
    let refuse = member.node(at(5)).and_then(|node| node.refuse).expect("refuses");
    assert_eq!(refuse, "drain this node: n9 has 10.244.1.0/24");
    // What goes on in the cluster is followed.
    member.hear(&heard(&snapshot(None)), at(6));
    assert!(member.is_fenced() && member.line(at(6)).starts_with("takes no new pods"));
    let Memorable { fenced, membership: kept, snapshot, .. } = member.memorable().expect("known");
    let remembered = Remembered { membership: kept, snapshot: Snapshot::clone(&snapshot), mark: None };
    let restarted = remembering(&Recollection { remembered, contact: None, fenced });
    assert!(restarted.node(at(7)).is_some_and(|node| node.refuse.is_some()));
    member.hear(&StoreEvent::Joined(membership("10.244.7.0/24")), at(9));
    // The old pass told of the old subnet.
    assert_eq!(member.node(at(9)), None);
    member.passed(good(&member), at(10));
    let node = member.node(at(10)).expect("is told");
    assert_eq!((node.subnets, node.refuse), (membership("10.244.7.0/24").subnets, None));
}

#[test]
fn the_same_snapshot_again_is_nothing_for_the_overlay() {
    let mut member = fresh();
    joined(&mut member, None);
    let same = member.snapshot().expect("known").clone();
    let number = member.number;
    let absent = Some(Arc::new(BTreeSet::from(["n3".to_owned()])));
    member.hear(&StoreEvent::Snapshot { snapshot: same, absent, mark: Some((1, 9)) }, at(3));
    assert_eq!(member.number, number);
    assert!(member.absent().is_some_and(|absent| absent.contains("n3")));
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(4));
    assert_eq!(member.number, number);
}

#[test]
fn health_suffers_when_the_overlay_is_out_of_order_for_long() {
    let mut member = fresh();
    // An agent that nobody has told anything has nothing to be in order.
    assert_eq!(member.health(at(1000)), Vec::<String>::new());
    joined(&mut member, None);
    assert_eq!(member.health(at(30)), Vec::<String>::new());
    let failed = Pass { is_in: false, failure: Some("create podwire.1: busy".to_owned()), ..good(&member) };
    member.passed(failed, at(30));
    assert_eq!(member.health(at(31)), Vec::<String>::new());
    let health = member.health(at(40));
    assert_eq!(health, ["the overlay has not been in order for 38 s: create podwire.1: busy"]);
    assert_eq!(member.waiting(at(40)), health);
    member.passed(good(&member), at(41));
    assert_eq!(member.health(at(70)), Vec::<String>::new());
    assert_eq!(member.health(at(80)), ["nobody has looked after the overlay for 39 s"]);
}

#[test]
fn a_node_that_is_refused_says_why() {
    let mut member = fresh();
    member.hear(&StoreEvent::Refused { why: "another n1 is there".to_owned() }, at(1));
    assert_eq!(member.waiting(at(1)), ["the cluster does not let it in: another n1 is there"]);
    assert_eq!(
        member.line(at(1)),
        "takes no new pods: the cluster does not let this node in: another n1 is there"
    );
    // Plugins say so, though there is nothing that it could give.
    let node = member.node(at(1)).expect("is told");
    assert!(node.subnets.is_empty() && node.refuse.is_some_and(|why| why.contains("another n1 is there")));
    let mut known = remembering(&recollection(None));
    known.hear(&StoreEvent::Refused { why: "another n1 is there".to_owned() }, at(1));
    // It may be the other one that has them now.
    assert!(known.node(at(1)).is_some_and(|node| node.refuse.is_some()));
    joined(&mut member, None);
    assert_eq!(member.line(at(2)), "ready: 10.244.1.0/24 of 0 nodes");
}

#[test]
fn a_node_that_no_other_can_reach_is_not_ready_says_why_and_takes_no_pods() {
    let lonely =
        |member: &Member| Pass { stranded: Some("it has no address".to_owned()), node: None, ..good(member) };
    let mut member = fresh();
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(1));
    member.hear(&heard(&snapshot(None)), at(1));
    member.passed(lonely(&member), at(2));
    assert!(!member.was_ready());
    assert_eq!(member.waiting(at(2)), ["it has no address"]);
    assert_eq!(member.health(at(2)), Vec::<String>::new(), "a restart would not help");
    assert_eq!(member.line(at(2)), "takes no new pods: it has no address");
    let refuse = member.node(at(2)).and_then(|node| node.refuse);
    assert_eq!(refuse.as_deref(), Some("it has no address"));
    member.passed(good(&member), at(3));
    assert!(member.was_ready() && member.waiting(at(3)).is_empty());
    assert_eq!(member.node(at(3)).map(|node| (node.mtu, node.refuse)), Some((Some(1450), None)));
    // It loses it again: what plugins know of running pods stays.
    member.passed(lonely(&member), at(4));
    assert_eq!(member.waiting(at(4)), ["it has no address"]);
    let node = member.node(at(4)).map(|node| (node.mtu, node.refuse));
    assert_eq!(node, Some((Some(1450), Some("it has no address".to_owned()))));
}

/// What a Kubernetes cluster does with a node while its agent runs, and what comes of it.
#[test]
fn a_node_lives_through_what_its_cluster_does_with_it() {
    let others = |member: &Member| member.snapshot().map(|snapshot| snapshot.nodes.len());
    let refuses = |member: &Member, seconds| member.node(at(seconds)).and_then(|node| node.refuse);
    let mut member = fresh();
    let two = {
        let mut two = Snapshot::clone(&snapshot(None));
        for name in ["n1", "n2"] {
            let record = crate::cluster::NodeRecord { name: name.to_owned(), ..Default::default() };
            two.nodes.insert(name.to_owned(), Arc::new(record));
        }
        Arc::new(two)
    };
    // There is no subnet yet; others are known all the same.
    member.hear(&StoreEvent::Refused { why: "Node n1 has no podCIDR yet".to_owned() }, at(1));
    member.hear(&heard(&two), at(2));
    assert_eq!(member.waiting(at(2)), ["the cluster does not let it in: Node n1 has no podCIDR yet"]);
    assert!(refuses(&member, 2).is_some_and(|why| why.contains("podCIDR")) && member.knowledge().is_none());
    // It comes.
    member.hear(&StoreEvent::Joined(membership("10.244.1.0/24")), at(3));
    member.passed(good(&member), at(4));
    assert_eq!((refuses(&member, 4), member.waiting(at(4))), (None, Vec::new()));
    // The Node is deleted: no new pods, and what is known of the others stays.
    member.hear(&StoreEvent::Fenced { why: "Node n1 is gone".to_owned() }, at(5));
    assert!(refuses(&member, 5).is_some_and(|why| why.contains("Node n1 is gone")));
    assert_eq!((others(&member), member.knowledge().map(|known| known.is_live)), (Some(2), Some(true)));
    let memorable = member.memorable().expect("is kept");
    assert_eq!((memorable.snapshot.nodes.len(), memorable.fenced.is_some()), (2, true));
    // The store is lost and found meanwhile: it is fenced as before.
    member.hear(&StoreEvent::Lost { why: "refused".to_owned() }, at(6));
    assert!(refuses(&member, 6).is_some());
    member.hear(&StoreEvent::Found, at(7));
    assert_eq!(member.store_status(at(7)).state, StoreState::Fenced);
    // It is made again, without a podCIDR first: the subnets of before are nobody's to give.
    member.hear(&StoreEvent::Refused { why: "Node n1 has no podCIDR yet".to_owned() }, at(8));
    assert!(refuses(&member, 8).is_some());
    // With the same one, as a newer Node.
    let again = Membership { generation: 9, claimed: 9, ..membership("10.244.1.0/24") };
    member.hear(&StoreEvent::Joined(again), at(9));
    member.passed(good(&member), at(10));
    assert_eq!((refuses(&member, 10), member.waiting(at(10))), (None, Vec::new()));
    assert_eq!(member.memorable().and_then(|memorable| memorable.fenced), None);
    // Another address alone is a change for the overlay, and none for pods.
    let number = member.number;
    let moved = Membership {
        addresses: vec!["10.0.0.9".parse().unwrap()],
        generation: 9,
        claimed: 9,
        ..membership("10.244.1.0/24")
    };
    member.hear(&StoreEvent::Joined(moved), at(11));
    assert_eq!(member.number, number + 1);
    assert!(member.node(at(11)).is_some_and(|node| node.refuse.is_none() && node.mtu == Some(1450)));
    // Another podCIDR: plugins hear of it when the kernel is so.
    member.hear(&StoreEvent::Joined(membership("10.244.7.0/24")), at(12));
    assert_eq!(member.node(at(12)), None);
    member.passed(good(&member), at(13));
    assert_eq!(member.node(at(13)).map(|node| node.subnets), Some(membership("10.244.7.0/24").subnets));
}

mod condition {
    use std::collections::BTreeSet;

    use super::super::{Condition, Findings};
    use super::*;
    use crate::cluster::topology::{Problem, ProblemKind};
    use crate::dataplane::Failure;
    use crate::store::Health;

    const NOTHING: &BTreeSet<String> = &BTreeSet::new();

    fn well() -> Findings<'static> {
        Findings {
            node: "n1",
            silent: &[],
            problems: &[],
            failures: &[],
            conflist: NOTHING,
            has_pods_outside: false,
        }
    }

    fn ready() -> Member {
        let mut member = fresh();
        joined(&mut member, None);
        member
    }

    fn failure(operation: &str, peer: Option<&str>) -> Failure {
        let (operation, error) = (operation.to_owned(), "busy".to_owned());
        Failure { kind: "link", operation, error, peer: peer.map(str::to_owned) }
    }

    /// What is told after it has been so for 30 s.
    fn lasting(findings: &Findings<'_>) -> Health {
        let (member, mut condition) = (ready(), Condition::default());
        assert_eq!(condition.health(&member, findings, at(3)).problems, Vec::<String>::new());
        condition.health(&member, findings, at(33))
    }

    #[test]
    fn a_node_that_is_well_has_nothing_to_tell() {
        assert_eq!(lasting(&well()), Health { is_ready: true, ..Health::default() });
    }

    #[test]
    fn what_is_the_nodes_own_is_told_and_what_is_single_peers_is_not() {
        let device = Problem::here(ProblemKind::Device, "flannel.1 has VNI 1 and port 8472");
        let problems = [
            device,
            Problem::of(ProblemKind::Record, "n1", "its address is none"),
            Problem::of(ProblemKind::Own, "n7", "it claims 10.244.1.0/24"),
            Problem::of(ProblemKind::Record, "n8", "its address is none"),
            Problem::of(ProblemKind::Conflict, "n9", "it claims what n8 has"),
            Problem::of(ProblemKind::Unreachable, "n9", "no common family"),
        ];
        let failures = [failure("ip link add podwire.1", None), failure("ip route add", Some("n8"))];
        let conflist = BTreeSet::from(["10-flannel.conflist comes first".to_owned()]);
        let all = Findings { problems: &problems, failures: &failures, conflist: &conflist, ..well() };
        let health = lasting(&all);
        assert!(health.is_ready);
        assert_eq!(
            health.problems,
            [
                "10-flannel.conflist comes first",
                "flannel.1 has VNI 1 and port 8472",
                "ip link add podwire.1: busy",
                "node n1: its address is none",
                "node n7: it claims 10.244.1.0/24",
            ]
        );
        let outside = lasting(&Findings { has_pods_outside: true, ..well() });
        assert!(outside.problems.iter().any(|text| text.contains("restart these pods")), "{outside:?}");
    }

    #[test]
    fn what_passes_by_itself_is_not_told() {
        let (member, mut condition) = (ready(), Condition::default());
        let failures = [failure("ip link add podwire.1", None)];
        let ill = Findings { failures: &failures, ..well() };
        for second in (3..33).step_by(10) {
            assert_eq!(condition.health(&member, &ill, at(second)).problems, Vec::<String>::new());
            assert_eq!(condition.health(&member, &well(), at(second + 5)).problems, Vec::<String>::new());
        }
        // Nor more than anybody reads.
        let many: Vec<Failure> = (0..100).map(|i| failure(&format!("{i:03}"), None)).collect();
        assert_eq!(lasting(&Findings { failures: &many, ..well() }).problems.len(), 16);
    }

    #[test]
    fn a_node_that_is_not_ready_says_why_and_does_not_count_seconds() {
        let mut condition = Condition::default();
        let mut why = |member: &Member, seconds| {
            let health = condition.health(member, &well(), at(seconds));
            assert_eq!(health.is_ready, health.why.is_empty(), "{health:?}");
            health.why
        };
        let mut member = fresh();
        assert_eq!(why(&member, 0), "etcd has not said yet who the other nodes are");
        joined(&mut member, None);
        assert_eq!(why(&member, 30), "");
        let failed = Pass { is_in: false, failure: Some("busy".to_owned()), ..good(&member) };
        member.passed(failed, at(30));
        assert_eq!(why(&member, 36), "", "it has some time");
        assert_eq!(why(&member, 60), "the overlay is not in order: busy");
        assert_eq!(why(&member, 600), "the overlay is not in order: busy");
        member.passed(good(&member), at(601));
        assert_eq!(why(&member, 601), "");
        assert_eq!(why(&member, 900), "nobody looks after the overlay");
        member.passed(good(&member), at(901));
        // A store that is away is no reason: pods start and reach each other.
        member.hear(&StoreEvent::Lost { why: "refused".to_owned() }, at(902));
        assert_eq!(why(&member, 903), "");
        member.hear(&StoreEvent::Fenced { why: "Node n1 is gone".to_owned() }, at(904));
        assert_eq!(why(&member, 904), "drain this node: Node n1 is gone");
        let silent = Findings { silent: &["the thread that keeps the overlay"], ..well() };
        let health = Condition::default().health(&ready(), &silent, at(3));
        assert_eq!(health.why, "the thread that keeps the overlay does not answer");
    }
}
