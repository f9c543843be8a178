//! Frames as they pass a link, frames of one's own, and what a link is left to do.

use std::net::UdpSocket;
use std::time::{Duration, SystemTime};

use podwire_kernel::link::{self, LinkRef};
use podwire_kernel::packet::{Direction, Match, Offload, Options, PacketSocket};
use podwire_kernel::{Netlink, Netns, addr, offload};

use crate::lab::{eventually, in_new_netns, network, pair, socket};

const PATIENCE: Duration = Duration::from_secs(5);
const ALL: Options<'static> = Options { snap: 2048, filter: &[], offload: false, only_received: false };
/// A type that nothing else uses (IEEE 802 local experiment 1).
const EXPERIMENT: Match =
    Match { at: 12, width: podwire_kernel::packet::Width::Half, mask: u32::MAX, value: 0x88b5 };

/// An Ethernet frame of that type to all, with a payload of that length.
fn frame(kind: u16, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend((0..length).map(|i| i as u8));
    bytes
}

/// Two ends with IPv4 addresses .1 (here) and .2 (there).
fn connected() -> (u32, Netns) {
    let mut netlink = socket();
    let (left, pod) = pair(&mut netlink, "left");
    netlink.apply(&[addr::add(left.index, network("10.1.0.1/24"), true)]).expect("an address");
    pod.run(|| {
        let mut netlink = socket();
        let index = netlink.link(LinkRef::Name("eth0")).expect("read").expect("there").index;
        netlink.apply(&[addr::add(index, network("10.1.0.2/24"), true)]).expect("an address");
        is_running(&mut netlink, "eth0");
    })
    .expect("enter");
    is_running(&mut netlink, "left");
    (left.index, pod)
}

/// Until the kernel has noticed the carrier, a link drops what is sent to it.
fn is_running(netlink: &mut Netlink, name: &str) {
    eventually("a carrier", || {
        let link = netlink.link(LinkRef::Name(name)).expect("read").expect("there");
        link.flags.running.then_some(())
    });
}

fn there(pod: &Netns, options: &Options<'_>) -> PacketSocket {
    pod.run(|| {
        let index = socket().link(LinkRef::Name("eth0")).expect("read").expect("there").index;
        PacketSocket::open(index, options).expect("a packet socket")
    })
    .expect("enter")
}

#[test]
fn frames_are_seen_at_both_ends_with_direction_time_and_length() {
    in_new_netns(|| {
        let (left, pod) = connected();
        let only = Options { filter: &[&[EXPERIMENT]], ..ALL };
        let mut here = PacketSocket::open(left, &only).expect("a packet socket");
        let mut short = there(&pod, &Options { snap: 100, ..only });
        let before = SystemTime::now();
        // Sent by a socket of its own: one does not hear itself.
        let sender = PacketSocket::open(left, &Options { snap: 0, ..ALL }).expect("a packet socket");
        let sent = frame(0x88b5, 300);
        sender.send(&frame(0x88b6, 60)).expect("sent, and filtered out");
        sender.send(&sent).expect("sent");

        let seen = here.receive(PATIENCE).expect("received").expect("a frame");
        assert_eq!((seen.direction, seen.bytes, seen.length), (Direction::Outgoing, &sent[..], 314));
        assert!((before..=SystemTime::now()).contains(&seen.at), "{:?}", seen.at);
        assert_eq!(seen.offload, None);
        let seen = short.receive(PATIENCE).expect("received").expect("a frame");
        assert_eq!((seen.direction, seen.bytes, seen.length), (Direction::Incoming, &sent[..100], 314));
        assert_eq!(here.try_receive().expect("nothing"), None);
        assert_eq!(short.receive(Duration::from_millis(5)).expect("nothing"), None);
        assert_eq!((here.counts().expect("counts").seen, here.counts().expect("counts").seen), (1, 0));
        // A socket that only sends hears nothing.
        assert_eq!(sender.counts().expect("counts").seen, 0);
    });
}

#[test]
fn a_filter_takes_what_meets_any_of_its_lists_and_short_frames_do_no_harm() {
    in_new_netns(|| {
        let (left, pod) = connected();
        let far = [EXPERIMENT, Match::byte(200, 186)];
        let near = [Match::half(12, 0x88b6), Match { mask: 0xff00_0000, ..Match::word(14, 0) }];
        let mut seen = there(&pod, &Options { filter: &[&far, &near], only_received: true, ..ALL });
        let sender = PacketSocket::open(left, &Options { snap: 0, ..ALL }).expect("a packet socket");
        let mut other = frame(0x88b6, 60);
        other[14] = 1;
        let mut long = frame(0x88b5, 300);
        long[200] = 0;
        for refused in [other, long, frame(0x88b5, 60), frame(0x88b7, 300)] {
            sender.send(&refused).expect("sent");
        }
        // Too short for the first list, and met by the second.
        let taken = [frame(0x88b6, 60), frame(0x88b5, 300)];
        for frame in &taken {
            sender.send(frame).expect("sent");
        }
        for frame in &taken {
            assert_eq!(seen.receive(PATIENCE).expect("received").expect("a frame").bytes, frame);
        }
        assert_eq!(seen.try_receive().expect("nothing"), None);
        let endless = [EXPERIMENT; 100];
        let error = PacketSocket::open(left, &Options { filter: &[&endless], ..ALL }).expect_err("too long");
        assert_eq!(error.errno(), nix::libc::EINVAL);
    });
}

#[test]
fn a_link_that_is_down_or_gone_is_an_error_and_it_may_come_back() {
    in_new_netns(|| {
        let (left, pod) = connected();
        let mut seen =
            PacketSocket::open(left, &Options { filter: &[&[EXPERIMENT]], ..ALL }).expect("a packet socket");
        let down = link::LinkChange { up: Some(false), ..Default::default() };
        socket().apply(&link::change(LinkRef::Index(left), &down)).expect("down");
        let error = seen.receive(PATIENCE).expect_err("down");
        assert_eq!(error.errno(), nix::libc::ENETDOWN, "{error}");
        socket().apply(&link::change(LinkRef::Index(left), &crate::lab::up())).expect("up");
        let sender = there(&pod, &Options { snap: 0, ..ALL });
        let frame = frame(0x88b5, 60);
        eventually("a frame after the link came back", || {
            // The carrier comes a moment later.
            let _ = sender.send(&frame);
            seen.try_receive().ok().flatten().map(drop)
        });
        assert!(PacketSocket::open(4711, &ALL).expect_err("no such link").is_missing());
    });
}

#[test]
fn checksums_are_left_to_the_link_until_that_is_switched_off() {
    in_new_netns(|| {
        let (left, pod) = connected();
        // IPv4 and UDP.
        let udp = [Match::half(12, 0x0800), Match::byte(23, 17)];
        let mut seen = there(&pod, &Options { filter: &[&udp], offload: true, ..ALL });
        let socket = UdpSocket::bind("10.1.0.1:0").expect("a socket");
        let mut sent = |expected: &str| {
            socket.send_to(b"podwire", "10.1.0.2:4000").expect("sent");
            let frame = seen.receive(PATIENCE).expect("received").expect("a frame");
            assert_eq!(&frame.bytes[42..], b"podwire", "{expected}");
            (frame.offload.expect("asked for").checksum, frame.bytes.to_vec())
        };
        assert_eq!(offload::tx_checksum("left"), Ok(true));
        let (left_to_do, _) = sent("with offload");
        // Behind the Ethernet and IP headers, 6 bytes into UDP's.
        assert_eq!(left_to_do, Some((34, 6)));
        for _ in 0..2 {
            offload::set_tx_checksum("left", false).expect("switched off");
        }
        assert_eq!(offload::tx_checksum("left"), Ok(false));
        let (left_to_do, whole) = sent("without offload");
        assert_eq!(left_to_do, None);
        offload::set_tx_checksum("left", true).expect("switched on");
        assert_eq!(sent("with offload again").0, Some((34, 6)));

        // The receiver takes an injected packet whose checksum is right, or still to be done, and drops a wrong one.
        let receiver = pod.run(|| UdpSocket::bind("10.1.0.2:4000").expect("a socket")).expect("enter");
        receiver.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let inject =
            PacketSocket::open(left, &Options { snap: 0, offload: true, ..ALL }).expect("a packet socket");
        let mut wrong = whole.clone();
        wrong[40] ^= 1;
        wrong[42] = b'w';
        let mut to_do = whole.clone();
        // What the kernel leaves there: the pseudo-header's sum. 10.1.0.1 + 10.1.0.2 + 17 + 15 bytes.
        to_do[40..42].copy_from_slice(&(0x0a01_u16 * 2 + 3 + 17 + 15).to_be_bytes());
        to_do[42] = b'q';
        inject.send(&wrong).expect("sent");
        inject.send(&whole).expect("sent");
        inject.send_with(&to_do, Offload { checksum: Some((34, 6)), ..Offload::default() }).expect("sent");
        let mut buffer = [0; 64];
        for expected in [b"podwire", b"qodwire"] {
            let (length, _) = receiver.recv_from(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], expected);
        }
        assert!(offload::tx_checksum("nosuchlink").expect_err("no link").is_missing());
        assert!(offload::set_tx_checksum("a-name-that-is-too-long", true).expect_err("no link").is_missing());
        let error = offload::set_tx_checksum("lo", false).expect_err("the loopback link keeps it");
        assert_eq!(error.errno(), nix::libc::EOPNOTSUPP, "{error}");
    });
}
