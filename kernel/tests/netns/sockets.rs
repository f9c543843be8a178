//! The socket itself: long batches, tables that change while they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipnetwork::{IpNetwork, Ipv4Network};
use podwire_kernel::link::{self, LOOPBACK, LinkRef, VethSpec};
use podwire_kernel::{Netns, addr};

use crate::lab::{in_new_netns, new_netns, socket, veth};

fn address(i: u16) -> IpNetwork {
    let [high, low] = i.to_be_bytes();
    IpNetwork::V4(Ipv4Network::new([10, 0, high, low].into(), 32).expect("a prefix"))
}

#[test]
fn a_batch_may_be_longer_than_a_send_and_names_the_request_that_failed() {
    in_new_netns(|| {
        let mut netlink = socket();
        let mut requests: Vec<_> = (0..450).map(|i| addr::add(LOOPBACK, address(i), false)).collect();
        requests[321] = addr::add(LOOPBACK, address(320), false);
        let error = netlink.apply(&requests).expect_err("one address twice");
        assert!(error.is_exists(), "{error}");
        assert_eq!(error.index, Some(321));
        // 449 and the loopback's own.
        let count = netlink.addresses(Some(LOOPBACK)).expect("listed").len();
        assert_eq!(count, 449 + 2, "the kernel runs what stands behind a failure");

        // Every one fails, which is as much answer as there can be.
        let error = netlink.apply(&requests).expect_err("all are there");
        assert_eq!(error.index, Some(0));
        let last = [addr::remove(LOOPBACK, address(321))];
        assert!(netlink.apply(&last).expect_err("never added").is_missing());
        let link = netlink.apply_then_link(&requests[..205], LinkRef::Name("lo"));
        assert_eq!(link.expect_err("all are there").index, Some(0));
    });
}

#[test]
fn nothing_to_do_is_done() {
    in_new_netns(|| socket().apply(&[]).expect("nothing"));
}

#[test]
fn a_list_is_whole_although_links_come_and_go_meanwhile() {
    in_new_netns(|| {
        let (mut netlink, pod) = (socket(), new_netns());
        // More than fit one datagram of a dump.
        let names: Vec<(String, String)> = (0..150).map(|i| (format!("stay{i}"), format!("p{i}"))).collect();
        let requests: Vec<_> = names
            .iter()
            .map(|(name, peer_name)| link::create_veth(&VethSpec { peer_name, ..veth(name, &pod) }))
            .collect();
        netlink.apply(&requests).expect("made");
        let stop = Arc::new(AtomicBool::new(false));
        let churn = thread::spawn({
            let (stop, here) = (Arc::clone(&stop), Netns::current().expect("here"));
            move || {
                here.run(|| {
                    let (mut netlink, pod) = (socket(), new_netns());
                    while !stop.load(Ordering::Relaxed) {
                        netlink.apply(&[link::create_veth(&veth("come", &pod))]).expect("made");
                        netlink.apply(&[link::delete_named("come")]).expect("removed");
                    }
                })
                .expect("enter");
            }
        });
        for _ in 0..200 {
            let links = netlink.links().expect("listed");
            let stay = links.iter().filter(|link| link.name.starts_with("stay")).count();
            assert_eq!(stay, 150);
        }
        stop.store(true, Ordering::Relaxed);
        churn.join().expect("the churn");
    });
}

#[test]
fn a_socket_stays_in_the_namespace_where_it_was_opened() {
    in_new_netns(|| {
        let mut here = socket();
        let pod = new_netns();
        here.apply(&[link::create_veth(&veth("left", &pod))]).expect("made");
        let seen = pod.run(|| here.link(LinkRef::Name("left")).expect("asked").is_some());
        assert!(seen.expect("enter"));
        assert_eq!(here.netns_cookie(), socket().netns_cookie());
        let mut there = pod.netlink().expect("a socket inside");
        assert!(there.link(LinkRef::Name("eth0")).expect("asked").is_some());
        assert!(there.link(LinkRef::Name("left")).expect("asked").is_none());
        assert_ne!(here.netns_cookie(), there.netns_cookie());
        assert_eq!(there.netns_cookie(), pod.run(|| socket().netns_cookie()).expect("enter"));
    });
}
