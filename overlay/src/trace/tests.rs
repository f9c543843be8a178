use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::terminal::Style;

const PORTS: [u16; 1] = [8472];

fn ping(hops: u8, sequence: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 244, 1, 7], [10, 244, 2, 9], hops)
        .icmpv4_echo_request(7, sequence)
        .write(&mut bytes, &[0xab; 56])
        .unwrap();
    bytes
}

fn encapsulated(inner: &[u8], vni: u32) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend_from_slice(&(vni << 8).to_be_bytes());
    payload.extend_from_slice(inner);
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([6; 6], [8; 6])
        .ipv4([192, 168, 0, 1], [192, 168, 0, 2], 64)
        .udp(41000, 8472)
        .write(&mut bytes, &payload)
        .unwrap();
    bytes
}

fn frame(bytes: &[u8]) -> Frame {
    decode(bytes, bytes.len(), &PORTS)
}

fn place(role: Role) -> Place {
    let link = match role {
        Role::Pod => "pw3f9a",
        Role::Bridge => "podwire0",
        Role::Tunnel => "podwire.1",
        Role::Underlay => "eth0",
    };
    Place { role, link: link.to_owned() }
}

const ALL: [Role; 4] = [Role::Pod, Role::Bridge, Role::Tunnel, Role::Underlay];

fn seen(role: Role, micros: u64, bytes: &[u8]) -> Sighting {
    let outgoing = role != Role::Pod && role != Role::Bridge;
    Sighting { place: place(role), at: Duration::from_micros(micros), outgoing, frame: frame(bytes) }
}

fn follower() -> Follower {
    Follower::new(ALL.map(place).to_vec())
}

#[test]
fn a_packet_is_known_again_inside_another_and_after_a_router() {
    let mut follower = follower();
    follower.saw(seen(Role::Pod, 10, &ping(64, 1)));
    follower.saw(seen(Role::Underlay, 31, &encapsulated(&ping(63, 1), 1)));
    // Another one comes before the first has been seen everywhere.
    follower.saw(seen(Role::Pod, 32, &ping(64, 2)));
    follower.saw(seen(Role::Tunnel, 24, &ping(63, 1)));
    follower.saw(seen(Role::Bridge, 15, &ping(64, 1)));
    let done = follower.done(Duration::from_micros(40));
    let [passage] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!(passage.missing, []);
    assert_eq!(passage.sightings.iter().map(|seen| seen.place.role).collect::<Vec<_>>(), ALL);
    let rest = follower.end();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].missing.len(), 3);
}

#[test]
fn the_headers_stand_side_by_side() {
    let mut follower = follower();
    follower.saw(seen(Role::Pod, 1_000_000, &ping(64, 1)));
    follower.saw(seen(Role::Bridge, 1_000_004, &ping(64, 1)));
    follower.saw(seen(Role::Underlay, 1_000_021, &encapsulated(&ping(63, 1), 1)));
    let passage = &follower.end()[0];
    assert_eq!(
        text(1, passage, Style::default()),
        "\
#1  10.244.1.7 → 10.244.2.9  ICMP echo request 7/1, 84 bytes  at 1.000000 s
  PLACE     LINK         AFTER   INNER                                           OUTER
  pod       pw3f9a in    0       02:02:02:02:02:02 → 04:04:04:04:04:04, hops 64  -
  bridge    podwire0 in  +4 µs   02:02:02:02:02:02 → 04:04:04:04:04:04, hops 64  -
  underlay  eth0 out     +21 µs  02:02:02:02:02:02 → 04:04:04:04:04:04, hops 63  \
192.168.0.1 → 192.168.0.2, hops 64, UDP 41000 → 8472, VNI 1, 148 bytes
  tunnel    podwire.1    -       not seen here                                   -
"
    );
    let json = serde_json::to_value(passage).unwrap();
    assert_eq!(json["sightings"][2]["frame"]["vni"], 1);
    assert_eq!(json["sightings"][2]["frame"]["outer"]["network"]["destination"], "192.168.0.2");
    assert_eq!(json["sightings"][0]["frame"]["inner"]["transport"]["protocol"], "icmp");
    assert_eq!(json["missing"][0]["role"], "tunnel");
}

#[test]
fn sightings_of_one_moment_stand_in_the_order_of_the_way() {
    let mut follower = follower();
    follower.saw(seen(Role::Bridge, 10, &ping(64, 1)));
    follower.saw(seen(Role::Pod, 10, &ping(64, 1)));
    let mut back = seen(Role::Tunnel, 50, &ping(63, 2));
    back.outgoing = false;
    follower.saw(back.clone());
    follower.saw(Sighting { place: place(Role::Underlay), ..back });
    let roles: Vec<Vec<Role>> =
        follower.end().iter().map(|all| all.sightings.iter().map(|seen| seen.place.role).collect()).collect();
    assert_eq!(roles, [[Role::Pod, Role::Bridge], [Role::Underlay, Role::Tunnel]]);
}

#[test]
fn what_is_sent_again_is_another_packet() {
    let mut follower = follower();
    follower.saw(seen(Role::Pod, 0, &ping(64, 1)));
    follower.saw(seen(Role::Pod, 5, &ping(64, 1)));
    assert_eq!(follower.done(Duration::from_micros(9)), []);
    assert_eq!(follower.done(PATIENCE + Duration::from_micros(1)).len(), 1);
    assert_eq!(follower.end().len(), 1);
}

#[test]
fn other_flows_and_ports_are_told_apart() {
    let flow = Flow { a: "10.244.2.9".parse().unwrap(), b: "10.244.1.7".parse().unwrap() };
    assert!(flow.has(&frame(&encapsulated(&ping(64, 1), 1))));
    let other = Flow { a: "10.244.2.8".parse().unwrap(), ..flow };
    assert!(!other.has(&frame(&ping(64, 1))));
    // On another port it is a datagram like any other.
    let bytes = encapsulated(&ping(64, 1), 1);
    let plain = decode(&bytes, bytes.len(), &[4789]);
    assert!(!flow.has(&plain) && plain.outer.is_none());
}

#[test]
fn parts_of_a_segment_that_a_device_cuts_up_begin_with_its_first() {
    let segment = |identification: u16, data: usize, push: bool| {
        let mut header = etherparse::Ipv4Header::new(
            u16::try_from(data + 20).unwrap(),
            64,
            etherparse::ip_number::TCP,
            [10, 244, 1, 7],
            [10, 244, 2, 9],
        )
        .unwrap();
        header.identification = identification;
        let mut builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            .tcp(40000, 80, 5, 100)
            .ack(1);
        if push {
            builder = builder.psh();
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &vec![1; data]).unwrap();
        frame(&bytes)
    };
    assert_eq!(decode::mark(&segment(1, 4000, true)), decode::mark(&segment(9, 1400, false)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for bytes in [encapsulated(&bytes, 1), [ping(64, 1), bytes.clone()].concat(), bytes] {
            let mut follower = follower();
            follower.saw(seen(Role::Pod, 0, &bytes));
            let passages = follower.end();
            let _ = text(1, &passages[0], Style::default());
            serde_json::to_string(&passages).unwrap();
        }
    }

    #[test]
    fn no_cut_or_flipped_byte_makes_it_panic(at in 0..200_usize, value in any::<u8>(), cut in 0..200_usize) {
        let mut bytes = encapsulated(&ping(64, 1), 1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        let _ = decode(&bytes, 1 << 40, &PORTS);
    }
}

#[test]
fn a_packet_that_was_under_way_when_the_watch_began_is_not_told_as_lost() {
    let pod = |micros| vec![seen(Role::Pod, micros, &ping(64, 1))];
    let passage = |micros, missing: &[Role]| Passage {
        sightings: pod(micros),
        missing: missing.iter().map(|role| place(*role)).collect(),
    };
    assert!(!passage(0, &[Role::Tunnel]).was_watched(), "seen before the other places were");
    assert!(!passage(9_000, &[Role::Tunnel]).was_watched());
    assert!(passage(0, &[]).was_watched(), "seen everywhere");
    assert!(passage(10_000, &[Role::Tunnel]).was_watched(), "lost on the way");
}
