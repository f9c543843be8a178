//! Probers of two nodes against a wire that is good, narrow, cut, or between cards that spoil checksums. Needs root
//! (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW); without it the tests fail and say so.

#[cfg(test)]
mod lab;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;

    use podwire_kernel::link::{self, LinkRef};
    use podwire_kernel::{Netlink, offload};
    use podwire_overlay::probe::{PathState, Targets};

    use crate::lab::{DEVICE, Lab, Node, eventually};

    fn tx_checksum(node: &Node) -> Option<bool> {
        node.netns.run(|| offload::tx_checksum(DEVICE).ok()).expect("enter")
    }

    #[test]
    fn a_good_path_is_well_in_both_families_and_takes_the_largest_packet() {
        let mut lab = Lab::new();
        for report in lab.both("well", |report| report.is_well()) {
            assert_eq!((report.largest, &report.problem), (Some(1450), &None));
            assert!(report.rtt.is_some_and(|rtt| rtt.as_millis() < 250), "{:?}", report.rtt);
        }
        assert!(lab.nodes.iter().all(|node| tx_checksum(node) == Some(true)));
    }

    #[test]
    fn the_largest_packet_of_a_narrow_path_is_found_to_the_byte() {
        let mut lab = Lab::new();
        // Outer Ethernet, IPv4, UDP, VXLAN, and the inner Ethernet header.
        lab.wire.longest.store(14 + 20 + 8 + 8 + 14 + 1397, Relaxed);
        for report in lab.both("too small", |report| report.state == PathState::TooSmall) {
            assert_eq!(report.largest, Some(1397), "{report:?}");
        }
    }

    #[test]
    fn a_cut_wire_makes_peers_unreachable_until_it_is_mended() {
        let mut lab = Lab::new();
        lab.both("well", |report| report.is_well());
        lab.wire.is_cut.store(true, Relaxed);
        for report in lab.both("unreachable", |report| report.state == PathState::Unreachable) {
            assert_eq!(report.problem.as_deref(), Some("no answer to 3 questions"));
            assert!(report.loss > 0.0);
        }
        lab.wire.is_cut.store(false, Relaxed);
        lab.both("well again", |report| report.is_well());
        assert!(lab.nodes.iter().all(|node| tx_checksum(node) == Some(true)), "the cards are not to blame");
    }

    #[test]
    fn another_node_in_the_peers_place_is_noticed() {
        let mut lab = Lab::new();
        let mut expected = lab.nodes[0].peer_targets();
        expected.peers[0].node = "node7".into();
        lab.nodes[0].targets.send_replace(Arc::new(expected));
        for report in lab.nodes[0].both("misdirected", |report| report.state == PathState::Misdirected) {
            assert_eq!(report.problem.as_deref(), Some("\"node2\" answers in its place"));
        }
        let mut expected = lab.nodes[0].peer_targets();
        expected.peers[0].instance = "another".into();
        lab.nodes[0].targets.send_replace(Arc::new(expected));
        lab.nodes[0].both("misdirected", |report| {
            report.problem.as_deref() == Some("\"node2 (another installation of it)\" answers in its place")
        });
    }

    #[test]
    fn strangers_get_no_answer() {
        let mut lab = Lab::new();
        lab.both("well", |report| report.is_well());
        // The second node does not know the first any longer.
        let stranger = Targets { peers: Vec::new(), ..lab.nodes[1].peer_targets() };
        lab.nodes[1].targets.send_replace(Arc::new(stranger));
        lab.nodes[0].both("unreachable", |report| report.state == PathState::Unreachable);
    }

    #[test]
    fn where_one_card_spoils_checksums_its_node_does_them_itself_also_after_the_device_was_made_again() {
        let mut lab = Lab::new();
        lab.wire.broken_cards.store(1, Relaxed);
        let [first, _] = &mut lab.nodes;
        // One family finds it out, and the other is well by that.
        first.both("well", |report| report.is_well());
        eventually("switched off", || tx_checksum(first) == Some(false));
        assert_eq!(tx_checksum(&lab.nodes[1]), Some(true), "the other's card is good");
        lab.both("well", |report| report.is_well());

        let first = &lab.nodes[0];
        let make_again = || {
            let mut netlink = Netlink::open().expect("netlink");
            let device = netlink.link(LinkRef::Name(DEVICE)).expect("read").expect("there");
            netlink.apply(&[link::delete(device.index, DEVICE)]).expect("deleted");
        };
        first.netns.run(make_again).expect("enter");
        first.make_device();
        assert_eq!(tx_checksum(first), Some(true), "a new device has it on");
        eventually("switched off again", || tx_checksum(first) == Some(false));
    }

    #[test]
    fn where_both_cards_spoil_checksums_both_nodes_do_them_themselves() {
        let mut lab = Lab::new();
        lab.wire.broken_cards.store(3, Relaxed);
        lab.both("well", |report| report.is_well());
        assert!(lab.nodes.iter().all(|node| tx_checksum(node) == Some(false)));
    }

    #[test]
    fn a_device_that_comes_later_is_asked_through_as_soon_as_it_is_there() {
        let mut lab = Lab::bare();
        lab.both("unreachable", |report| report.state == PathState::Unreachable);
        for node in &lab.nodes {
            node.make_device();
        }
        lab.both("well", |report| report.is_well());
    }
}
