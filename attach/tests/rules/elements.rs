//! What one attachment puts in and takes out.

use std::thread;

use podwire_attach::rules::{self, RulesError};
use podwire_attach::{Attachment, IngressPolicy, Protocol, Snat};
use podwire_kernel::sysctl;

use crate::lab::{bridge, full_pod, id, in_new_netns, nft, owner, pod, port, run, with_ports};

fn everybody_lives(_: podwire_attach::OwnerId) -> bool {
    true
}

fn install(attachment: &Attachment) {
    rules::install(&mut nft(), attachment, &everybody_lives).expect("installed");
}

fn assert_right(attachment: &Attachment) {
    let drift = rules::check(&mut nft(), attachment).expect("checked");
    assert!(drift.is_empty(), "{drift:?}");
}

#[test]
fn a_pod_with_everything_is_installed_twice_and_removed_twice() {
    in_new_netns(|| {
        bridge("br0");
        let pod = full_pod(7);
        install(&pod);
        assert_right(&pod);
        assert_eq!(sysctl::read("net/ipv4/conf/br0/route_localnet").expect("read"), "1");
        let listed = run("nft", &["list", "ruleset"]);
        install(&pod);
        assert_eq!(run("nft", &["list", "ruleset"]), listed);
        for _ in 0..2 {
            rules::remove(&mut nft(), pod.owner.id(), Some(&pod)).expect("removed");
            assert!(rules::owners(&mut nft()).expect("read").is_empty());
        }
        assert!(!run("nft", &["list", "ruleset"]).contains(&pod.owner.id().to_string()));
    });
}

#[test]
fn nothing_asked_nothing_made() {
    in_new_netns(|| {
        let mut idle = pod("c1", &["10.1.0.7/24"]);
        idle.traffic = None;
        install(&idle);
        assert_right(&idle);
        rules::remove(&mut nft(), idle.owner.id(), Some(&idle)).expect("removed");
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn fifty_first_uses_at_once_leave_one_skeleton() {
    in_new_netns(|| {
        bridge("br0");
        let pods: Vec<Attachment> = (1..=50).map(full_pod).collect();
        thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| install(pod));
            }
        });
        // A rule or a chain twice would be a difference.
        pods.iter().for_each(assert_right);
        assert_eq!(rules::owners(&mut nft()).expect("read").len(), 50);
        thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| rules::remove(&mut nft(), pod.owner.id(), Some(pod)).expect("removed"));
            }
        });
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
    });
}

#[test]
fn a_port_of_the_living_is_refused_by_name_and_nothing_changes() {
    in_new_netns(|| {
        bridge("br0");
        let ports = [port(Protocol::Tcp, None, 8080, 80)];
        let first = with_ports(pod("first", &["10.1.0.7/24"]), &ports);
        let second = with_ports(pod("second", &["10.1.0.8/24"]), &ports);
        install(&first);
        let before = run("nft", &["list", "ruleset"]);
        let refused = rules::install(&mut nft(), &second, &everybody_lives).expect_err("taken");
        assert!(matches!(&refused, RulesError::PortTaken { port, .. } if *port == ports[0]), "{refused}");
        assert_eq!(
            refused.to_string(),
            "host port 8080/tcp is held by eth0 of container first on network net"
        );
        assert_eq!(run("nft", &["list", "ruleset"]), before);
        assert_right(&first);
    });
}

#[test]
fn a_port_of_the_dead_is_taken_over_and_stays_with_the_new_owner() {
    in_new_netns(|| {
        bridge("br0");
        let ports = [port(Protocol::Tcp, None, 8080, 80)];
        let dead = with_ports(pod("dead", &["10.1.0.7/24"]), &ports);
        let heir = with_ports(pod("heir", &["10.1.0.8/24"]), &ports);
        install(&dead);
        rules::install(&mut nft(), &heir, &|owner| owner != id("dead")).expect("taken over");
        assert_right(&heir);
        // The dead one's DEL, late, by what is known of it and by its id alone.
        rules::remove(&mut nft(), dead.owner.id(), Some(&dead)).expect("removed");
        assert_right(&heir);
        rules::remove(&mut nft(), dead.owner.id(), None).expect("removed");
        assert_right(&heir);
        assert_eq!(rules::owners(&mut nft()).expect("read"), [id("heir")].into());
    });
}

#[test]
fn an_address_given_again_brings_its_new_owner() {
    in_new_netns(|| {
        let old = pod("old", &["10.1.0.7/24"]);
        let new = pod("new", &["10.1.0.7/24"]);
        install(&old);
        // The same element, so nothing would tell whose it is but the comment.
        rules::install(&mut nft(), &new, &|owner| owner != id("old")).expect("installed");
        assert_right(&new);
        rules::remove(&mut nft(), old.owner.id(), None).expect("removed");
        assert_right(&new);
        // Its address was another IPAM plugin's to give.
        let mut given = old.clone();
        given.given = std::mem::take(&mut given.addresses);
        rules::remove(&mut nft(), old.owner.id(), Some(&given)).expect("removed");
        assert_right(&new);
    });
}

#[test]
fn an_owner_is_removed_without_knowing_more_than_its_id() {
    in_new_netns(|| {
        bridge("br0");
        install(&full_pod(1));
        install(&full_pod(2));
        rules::remove(&mut nft(), id("c1"), None).expect("removed");
        assert_right(&full_pod(2));
        assert_eq!(rules::owners(&mut nft()).expect("read"), [id("c2")].into());
        // Some of its elements are gone already.
        run("nft", &["delete", "element", "inet", "podwire", "masquerade4", "{ 10.1.0.2 }"]);
        rules::remove(&mut nft(), id("c2"), Some(&full_pod(2))).expect("removed");
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
    });
}

#[test]
fn without_a_table_there_is_nothing_to_remove() {
    in_new_netns(|| {
        rules::remove(&mut nft(), id("c1"), None).expect("nothing there");
        rules::remove(&mut nft(), id("c1"), Some(&full_pod(1))).expect("nothing there");
        rules::uninstall(&mut nft()).expect("nothing there");
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
    });
}

#[test]
fn many_ports_are_one_pod_s() {
    in_new_netns(|| {
        bridge("br0");
        let ports: Vec<_> = (0..200).map(|n| port(Protocol::Tcp, None, 20_000 + n, 80)).collect();
        let pod = with_ports(pod("many", &["10.1.0.7/24", "fd01::7/64"]), &ports);
        install(&pod);
        assert_right(&pod);
        rules::remove(&mut nft(), pod.owner.id(), Some(&pod)).expect("removed");
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
    });
}

#[test]
fn a_comment_that_is_cut_still_names_its_owner() {
    in_new_netns(|| {
        let mut long = pod("x", &["10.1.0.7/24"]);
        long.owner = podwire_attach::Owner::new("n".repeat(200), "c".repeat(64), "ä0");
        install(&long);
        assert_right(&long);
        rules::remove(&mut nft(), long.owner.id(), None).expect("removed");
        assert!(rules::owners(&mut nft()).expect("read").is_empty());
        assert_ne!(long.owner, owner("x"));
    });
}

#[test]
fn conditions_in_the_wrong_words_change_nothing() {
    in_new_netns(|| {
        let mut odd = full_pod(1);
        let access = &mut odd.traffic.as_mut().expect("traffic").port_access;
        access.conditions_v4 = vec!["-s 192.0.2.0/24".to_owned()];
        let refused = rules::install(&mut nft(), &odd, &everybody_lives).expect_err("refused");
        assert!(refused.to_string().contains("conditionsV4: \"-s\""), "{refused}");
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn without_masquerade_of_clients_nothing_of_the_loopback_network_is_routed() {
    in_new_netns(|| {
        bridge("br0");
        let mut pod = with_ports(pod("c1", &["10.1.0.7/24"]), &[port(Protocol::Tcp, None, 80, 80)]);
        let traffic = pod.traffic.as_mut().expect("traffic");
        traffic.port_access.snat = Snat::Off;
        traffic.ingress = IngressPolicy::SameBridge;
        install(&pod);
        assert_right(&pod);
        assert_eq!(sysctl::read("net/ipv4/conf/br0/route_localnet").expect("read"), "0");
    });
}
