//! Host ports: one live owner each.

use podwire_attach::{PortMapping, Protocol, Role, Traffic};

use super::super::ADDING_MS;
use super::*;
use crate::Ends;

fn port(text: &str) -> PortMapping {
    let (rest, protocol) = text.rsplit_once('/').expect("a protocol");
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    let (host_ip, number) = match rest.rsplit_once(':') {
        Some((address, number)) => (Some(ip(address.trim_matches(['[', ']']))), number),
        None => (None, rest),
    };
    PortMapping { protocol, host_ip, host_port: number.parse().expect("a port"), container_port: 80 }
}

fn with_ports(owner: Owner, ports: &[&str]) -> Attachment {
    let traffic = Traffic { ports: ports.iter().map(|text| port(text)).collect(), ..Traffic::default() };
    Attachment { traffic: Some(traffic), ..attachment(owner) }
}

fn node() -> Node {
    Node::new(vec![set(&["10.0.0.0/24"])])
}

/// A whole ADD.
fn add(node: &mut Node, container: &str, ports: &[&str]) -> Result<Grant, Refusal> {
    let grant = node.try_attachment(with_ports(owner(container), ports), &[])?;
    let changes = node.pool.attached(owner(container).id(), grant.generation, None, node.now);
    node.commit(changes.expect("attached"));
    Ok(grant)
}

fn ports_of(node: &Node, container: &str) -> String {
    let lease = node.lease(container).expect("a lease");
    lease.ports().map(|port| port.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_port_of_a_live_owner_is_refused_by_name() {
    for (held, asked, refused) in [
        ("8080/tcp", "8080/tcp", true),
        ("8080/tcp", "8080/udp", false),
        ("8080/tcp", "8081/tcp", false),
        ("8080/tcp", "192.0.2.1:8080/tcp", true),
        ("192.0.2.1:8080/tcp", "8080/tcp", true),
        ("192.0.2.1:8080/tcp", "192.0.2.2:8080/tcp", false),
        ("0.0.0.0:8080/tcp", "192.0.2.2:8080/tcp", true),
        ("0.0.0.0:8080/tcp", "[::]:8080/tcp", false),
        ("0.0.0.0:8080/tcp", "[2001:db8::1]:8080/tcp", false),
        ("8080/sctp", "[::]:8080/sctp", true),
    ] {
        let mut node = node();
        add(&mut node, "a", &["1/tcp", held]).expect("the first");
        node.sights = Sights::from([(owner("a").id(), Sight::Present)]);
        let before = node.pool.clone();
        // Another network of the same node is no other node.
        let other = with_ports(Owner::new("other", "b", "eth0"), &["2/tcp", asked]);
        match node.try_attachment(other, &[]) {
            Ok(_) => assert!(!refused, "{held} {asked}"),
            Err(refusal) => {
                assert!(refused, "{held} {asked}: {refusal}");
                assert_eq!(node.pool, before);
                assert_eq!(
                    refusal.to_string(),
                    format!("host port {} is taken by eth0 of container a on network net", port(asked))
                );
            }
        }
    }
}

#[test]
fn who_is_not_seen_for_certain_to_be_gone_keeps_the_port() {
    let mut node = node();
    let grant = node.try_attachment(with_ports(owner("a"), &["80/tcp"]), &[]).expect("the first");
    let id = owner("a").id();
    for sight in [None, Some(Sight::Unknown), Some(Sight::Gone)] {
        node.sights = sight.map(|sight| (id, sight)).into_iter().collect();
        assert!(add(&mut node, "b", &["80/tcp"]).is_err(), "its ADD may be under way: {sight:?}");
    }
    node.commit(node.pool.attached(id, grant.generation, None, node.now).expect("attached"));
    for sight in [None, Some(Sight::Unknown), Some(Sight::Present)] {
        node.sights = sight.map(|sight| (id, sight)).into_iter().collect();
        assert!(add(&mut node, "b", &["80/tcp"]).is_err(), "{sight:?}");
    }
    node.sights = Sights::from([(id, Sight::Gone)]);
    let grant = add(&mut node, "b", &["80/tcp"]).expect("its owner is gone");
    assert_eq!(grant.taken_over, [id]);
    assert_eq!(
        grant.notices,
        [
            "host port 80/tcp was held by eth0 of container a on network net, which is gone, and is now eth0 of container b \
          on network net's"
        ]
    );
}

#[test]
fn what_was_taken_over_is_forgotten_and_nothing_else() {
    let mut node = node();
    add(&mut node, "a", &["80/tcp", "192.0.2.1:443/tcp", "53/udp"]).expect("the first");
    let address = node.lease("a").expect("a lease").attachment.addresses.clone();
    node.sights = Sights::from([(owner("a").id(), Sight::Gone)]);
    add(&mut node, "b", &["80/tcp", "443/tcp"]).expect("taken over");
    assert_eq!(ports_of(&node, "a"), "53/udp");
    assert_eq!(
        node.lease("a").expect("a lease").attachment.addresses,
        address,
        "addresses wait for the sweep"
    );
    // The end of the one is not the end of the other's ports.
    node.del("a");
    node.sights = Sights::from([(owner("b").id(), Sight::Present)]);
    assert!(add(&mut node, "c", &["443/tcp"]).is_err());
    add(&mut node, "c", &["53/udp"]).expect("free");
}

#[test]
fn a_del_that_has_begun_gives_up_its_ports() {
    let mut node = node();
    add(&mut node, "a", &["80/tcp"]).expect("the first");
    let (lease, changes) = node.pool.begin_delete(&owner("a")).expect("a lease");
    node.commit(changes);
    // Its rules are being removed at this moment.
    node.sights = Sights::from([(owner("a").id(), Sight::Present)]);
    assert!(add(&mut node, "b", &["80/tcp"]).is_err());
    node.sights = Sights::from([(owner("a").id(), Sight::Gone)]);
    add(&mut node, "b", &["80/tcp"]).expect("taken over");
    assert_eq!(ports_of(&node, "a"), "");
    node.commit(node.pool.finish_delete(owner("a").id(), lease.generation, node.now));
    assert!(node.lease("a").is_none());
    assert_eq!(ports_of(&node, "b"), "80/tcp");
}

#[test]
fn an_add_that_was_given_up_loses_its_reservation_with_its_port() {
    let mut node = node();
    let grant = node.try_attachment(with_ports(owner("a"), &["80/tcp"]), &[]).expect("the first");
    node.commit(node.pool.sweep(&node.sees(&[]), node.now).changes);
    node.sights = Sights::from([(owner("a").id(), Sight::Gone)]);
    node.sleep(ADDING_MS - 1);
    assert!(add(&mut node, "b", &["80/tcp"]).is_err());
    node.sleep(1);
    assert_eq!(add(&mut node, "b", &["80/tcp"]).expect("given up").taken_over, [owner("a").id()]);
    assert!(node.pool.attached(owner("a").id(), grant.generation, None, node.now).is_err());
}

#[test]
fn the_same_owner_keeps_its_ports_and_holds_the_old_ones_until_it_is_up() {
    let mut node = node();
    add(&mut node, "a", &["80/tcp", "81/tcp"]).expect("the first");
    assert_eq!(add(&mut node, "a", &["80/tcp", "81/tcp"]).expect("again").notices, [""; 0]);
    let grant = node.try_attachment(with_ports(owner("a"), &["81/tcp", "82/tcp"]), &[]).expect("others");
    assert_eq!(ports_of(&node, "a"), "81/tcp 82/tcp 80/tcp");
    node.sights = Sights::from([(owner("a").id(), Sight::Present)]);
    assert!(add(&mut node, "b", &["80/tcp"]).is_err(), "the old interface may still be there");
    node.commit(node.pool.attached(owner("a").id(), grant.generation, None, node.now).expect("attached"));
    add(&mut node, "b", &["80/tcp"]).expect("free");
    assert!(add(&mut node, "c", &["82/tcp"]).is_err());
}

#[test]
fn a_lease_keeps_what_is_known_of_its_traffic() {
    let mut node = node();
    let given = vec![pod_address(&node.sets, ip("10.0.0.77"))];
    let mut asked = with_ports(owner("a"), &["80/tcp"]);
    asked.given.clone_from(&given);
    let grant = node.try_attachment(asked.clone(), &[]).expect("an address");
    assert_eq!(node.hold("10.0.0.77"), None, "it is another's to give");
    // Without a word about it, and with ports that were not asked for.
    let mut silent = Attachment { traffic: None, ..asked.clone() };
    silent.mac = "0a:00:00:00:00:01".parse().ok();
    let changes = |finished| node.pool.attached(owner("a").id(), grant.generation, Some(finished), node.now);
    let put = |changes: Result<Vec<Change>, crate::Stale>| match changes.expect("attached").pop() {
        Some(Change::PutLease(lease)) => lease.attachment,
        other => panic!("{other:?}"),
    };
    let kept = put(changes(&silent));
    assert_eq!((kept.traffic, kept.given, kept.mac), (asked.traffic.clone(), given, silent.mac));
    let mut more = with_ports(owner("a"), &["80/tcp", "81/tcp"]);
    more.traffic.as_mut().expect("traffic").device = "br0".to_owned();
    let kept = put(changes(&more)).traffic.expect("traffic");
    assert_eq!((kept.device.as_str(), kept.ports), ("br0", vec![port("80/tcp")]));
}

#[test]
fn ports_are_known_again_after_a_restart_and_free_after_another_boot() {
    let mut node = node();
    add(&mut node, "a", &["80/tcp"]).expect("the first");
    let mut again = Pool::default();
    again.apply(Change::PutLease(Box::new(node.lease("a").expect("a lease").clone())));
    again.apply(Change::PutBoot(BOOT.to_owned()));
    let rival = with_ports(owner("b"), &["80/tcp"]);
    assert_eq!(again.port_rivals(&rival).count(), 1);
    again.apply_all(again.new_boot("another"));
    assert_eq!(again.port_rivals(&rival).count(), 0);
}

#[test]
fn a_del_ends_the_leases_of_both_places_of_a_chain() {
    let chained = |container: &str| owner(container).with_role(Role::Chained);
    let ended = |node: &Node, container: &str, ends| {
        let roles = node.pool.ended_by(&owner(container), ends).map(|lease| lease.attachment.owner.role);
        roles.collect::<Vec<_>>()
    };
    let mut node = node();
    node.add("main");
    node.try_attachment(Attachment { link: None, ..with_ports(chained("main"), &["80/tcp"]) }, &[])
        .expect("both");
    assert_eq!(ended(&node, "main", Ends::Interface), [Role::Chained, Role::Main]);
    // podwire-ipam below another main plugin, whose interface is still there when the chained DEL comes.
    node.try_attachment(Attachment { link: None, ..attachment(owner("ipam")) }, &[]).expect("an address");
    node.try_attachment(Attachment { link: None, ..attachment(chained("ipam")) }, &[]).expect("an address");
    assert_eq!(ended(&node, "ipam", Ends::Interface), [Role::Chained]);
    assert_eq!(ended(&node, "ipam", Ends::Addresses), [Role::Main]);
    assert_eq!(ended(&node, "nobody", Ends::Interface), []);
    // GC knows an interface by its container and name.
    let seen = node.sees(&["main"]);
    let plan = node.pool.gc(NET, &[("ipam".to_owned(), "eth0".to_owned())], Some("containerd"), &seen);
    let removed: Vec<_> = plan.remove.iter().map(|lease| lease.attachment.owner.clone()).collect();
    assert_eq!(removed.len(), 2);
    assert!(removed.contains(&owner("main")) && removed.contains(&chained("main")));
}
