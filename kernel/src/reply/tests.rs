//! Replies as the kernel writes them, and replies that no kernel wrote.

use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_core::{DefaultNla, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use proptest::prelude::*;

use super::*;
use crate::link::BridgePort;
use crate::mac::MacAddr;
use crate::route::Nexthop;

/// A message as it stands in a datagram.
fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::try_from(HEADER + payload.len()).expect("short").to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn serialized(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    payload
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn bodies(datagram: &[u8]) -> Vec<Body> {
    parse_replies(datagram).map(|reply| reply.body).collect()
}

fn error(errno: i32, text: &str, request: &[u8], capped: bool) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    let whole = message(16, 5, 7, request);
    payload.extend_from_slice(if capped { &whole[..HEADER] } else { &whole });
    // NLMSGERR_ATTR_OFFS, then the text with its zero byte.
    payload.extend_from_slice(&attribute(2, &[20, 0, 0, 0]));
    let mut words = text.as_bytes().to_vec();
    words.push(0);
    payload.extend_from_slice(&attribute(1, &words));
    message(2, NLM_F_ACK_TLVS | if capped { NLM_F_CAPPED } else { 0 }, 7, &payload)
}

#[test]
fn errors_carry_the_kernels_words_with_and_without_the_request() {
    for capped in [true, false] {
        let datagram = error(22, "mtu greater than device maximum", &[1, 2, 3, 4, 5], capped);
        let expected =
            Body::Failure { errno: 22, detail: Some("mtu greater than device maximum".to_owned()) };
        assert_eq!(bodies(&datagram), [expected], "capped: {capped}");
    }
    let mut ack = 0_i32.to_ne_bytes().to_vec();
    ack.extend_from_slice(&[0; HEADER]);
    assert_eq!(bodies(&message(2, NLM_F_CAPPED, 1, &ack)), [Body::Ack]);
    for absurd in [5_i32, i32::MIN] {
        assert_eq!(bodies(&message(2, 0, 1, &absurd.to_ne_bytes())), [Body::Malformed]);
    }
}

#[test]
fn the_end_of_a_dump_can_be_an_error_and_can_say_that_the_tables_changed() {
    assert_eq!(bodies(&message(3, NLM_F_MULTI, 1, &0_i32.to_ne_bytes())), [Body::Done]);
    let failed = Body::Failure { errno: 19, detail: None };
    assert_eq!(bodies(&message(3, NLM_F_MULTI, 1, &(-19_i32).to_ne_bytes())), [failed]);
    let datagram = message(3, NLM_F_MULTI | NLM_F_DUMP_INTR, 9, &0_i32.to_ne_bytes());
    let reply = parse_replies(&datagram).next().expect("one");
    assert!(reply.interrupted && reply.multi && reply.sequence == 9);
}

fn link_message() -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = 17;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.attributes = vec![
        LinkAttribute::IfName("pw0123456789abc".to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
        LinkAttribute::Mtu(1450),
        LinkAttribute::Link(2),
        LinkAttribute::LinkNetNsId(0),
        LinkAttribute::Controller(3),
        LinkAttribute::IfAlias("podwire1 …".to_owned()),
        LinkAttribute::Other(DefaultNla::new(0x3ffe, vec![1, 2, 3])),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::MulticastFlood(true),
                InfoBridgePort::Isolated(false),
            ])),
        ]),
    ];
    link
}

#[test]
fn links_are_read_and_unknown_attributes_passed_over() {
    let datagram = message(16, 0, 0, &serialized(&RouteNetlinkMessage::NewLink(link_message())));
    let Some(Body::Link(link)) = bodies(&datagram).pop() else { panic!("not a link") };
    let expected = Link {
        index: 17,
        name: "pw0123456789abc".to_owned(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
        mtu: 1450,
        kind: Some("veth".to_owned()),
        controller: Some(3),
        peer_index: Some(2),
        peer_nsid: Some(0),
        alias: Some("podwire1 …".to_owned()),
        port: Some(BridgePort { hairpin: true, isolated: false, mcast_flood: true }),
        ..Link::default()
    };
    assert_eq!(*link, expected);
}

#[test]
fn a_port_that_leaves_its_bridge_is_no_link_that_went() {
    let mut link = link_message();
    let gone = serialized(&RouteNetlinkMessage::DelLink(link.clone()));
    assert!(matches!(bodies(&message(17, 0, 0, &gone))[..], [Body::LinkRemoved(_)]));
    link.header.interface_family = netlink_packet_route::AddressFamily::Bridge;
    let left = serialized(&RouteNetlinkMessage::DelLink(link));
    assert_eq!(bodies(&message(17, 0, 0, &left)), [Body::Other]);
}

#[test]
fn several_messages_share_a_datagram_and_a_bad_one_ends_it() {
    let mut datagram = message(16, 0, 1, &serialized(&RouteNetlinkMessage::NewLink(link_message())));
    datagram.extend(message(4, 0, 2, &[]));
    datagram.extend(message(77, 0, 3, &[1, 2, 3]));
    // An address message too short for its structure; what follows is not read.
    datagram.extend(message(20, 0, 4, &[2, 24]));
    datagram.extend(message(4, 0, 5, &[]));
    let found = bodies(&datagram);
    assert!(matches!(found[..], [Body::Link(_), Body::Overrun, Body::Other, Body::Malformed]), "{found:?}");
}

fn network() -> impl Strategy<Value = IpNetwork> {
    let v4 = (any::<[u8; 4]>(), 0_u8..=32).prop_map(|(ip, prefix)| {
        let network = Ipv4Network::new(ip.into(), prefix).expect("prefix");
        Ipv4Network::new(network.network(), prefix).expect("prefix").into()
    });
    let v6 = (any::<[u8; 16]>(), 0_u8..=128).prop_map(|(ip, prefix)| {
        let network = Ipv6Network::new(ip.into(), prefix).expect("prefix");
        Ipv6Network::new(network.network(), prefix).expect("prefix").into()
    });
    prop_oneof![v4, v6]
}

prop_compose! {
    fn route()(
        destination in network(),
        gateways in prop::collection::vec((any::<[u8; 16]>(), any::<bool>(), prop::option::of(1_u32..99)), 1..4),
        table in prop_oneof![1_u32..256, 256_u32..],
        priority in any::<Option<u32>>(),
        mtu in any::<Option<u32>>(),
        advmss in any::<Option<u32>>(),
        onlink in any::<bool>(),
        protocol in any::<u8>(),
    ) -> Route {
        let nexthops = gateways.iter().map(|(ip, same_family, oif)| {
            let [a, b, c, d, ..] = *ip;
            let gateway = if destination.is_ipv4() && *same_family { [a, b, c, d].into() } else { (*ip).into() };
            Nexthop { gateway: Some(gateway), oif: *oif }
        });
        let mut route = Route::new(destination, nexthops.collect());
        (route.table, route.priority, route.mtu, route.advmss) = (table, priority, mtu, advmss);
        (route.onlink, route.protocol) = (onlink, protocol);
        route
    }
}

/// `struct ndmsg` with the attributes that both kinds of entry have.
fn entry_payload(family: u8, flags: u8, ifindex: u32, mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    let mut payload = vec![family, 0, 0, 0];
    payload.extend_from_slice(&ifindex.to_ne_bytes());
    // NUD_PERMANENT
    payload.extend_from_slice(&0x80_u16.to_ne_bytes());
    payload.extend_from_slice(&[flags, 0]);
    match address {
        IpAddr::V4(address) => payload.extend(attribute(1, &address.octets())),
        IpAddr::V6(address) => payload.extend(attribute(1, &address.octets())),
    }
    payload.extend(attribute(2, &mac));
    payload
}

fn fdb_payload(mac: [u8; 6], destination: IpAddr) -> Vec<u8> {
    // NTF_SELF
    entry_payload(7, 2, 9, mac, destination)
}

fn neighbour_payload(ifindex: u32, mac: [u8; 6], address: IpAddr) -> Vec<u8> {
    let mut payload = entry_payload(if address.is_ipv4() { 2 } else { 10 }, 0, ifindex, mac, address);
    payload.extend(attribute(12, &[crate::addr::PROTOCOL]));
    payload
}

#[test]
fn neighbours_of_other_kinds_are_passed_over() {
    let mut payload = fdb_payload([2; 6], [192, 0, 2, 1].into());
    // AF_PHONET; a bridge's multicast entry has no Ethernet address.
    payload[0] = 35;
    assert_eq!(bodies(&message(28, 0, 0, &payload)), [Body::Other]);
    assert_eq!(bodies(&message(28, 0, 0, &[7, 0, 0, 0, 9, 0, 0, 0, 0x80, 0, 0, 0])), [Body::Other]);
    assert_eq!(bodies(&message(28, 0, 0, &[2, 0, 0, 0])), [Body::Malformed]);
    assert_eq!(bodies(&message(28, 0, 0, &[])), [Body::Malformed]);
}

proptest! {
    #[test]
    fn a_route_reads_back_as_it_was_written(route in route()) {
        let payload = crate::route::tests::payload(&route);
        prop_assert_eq!(bodies(&message(24, 0, 0, &payload)), [Body::Route(Box::new(route))]);
    }

    #[test]
    fn neighbours_and_forwarding_entries_read_back_as_they_were_written(
        mac in any::<[u8; 6]>(),
        address in prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)],
        ifindex in any::<u32>(),
    ) {
        let fdb = FdbEntry::permanent(ifindex, MacAddr(mac), address);
        let payload = entry_payload(7, 2, ifindex, mac, address);
        prop_assert_eq!(bodies(&message(28, 0, 0, &payload)), [Body::Fdb(fdb)]);
        prop_assert_eq!(bodies(&message(29, 0, 0, &payload)), [Body::FdbRemoved(fdb)]);
        let payload = neighbour_payload(ifindex, mac, address);
        let neighbour = Neighbour::permanent(ifindex, address, MacAddr(mac));
        prop_assert_eq!(bodies(&message(28, 0, 0, &payload)), [Body::Neighbour(neighbour)]);
        prop_assert_eq!(bodies(&message(29, 0, 0, &payload)), [Body::NeighbourRemoved(neighbour)]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        // Each message takes its header at least.
        prop_assert!(parse_replies(&bytes).count() <= bytes.len() / 4 + 1);
    }

    /// Bytes that get past the header: real messages with a few octets changed or cut off.
    #[test]
    fn damaged_messages_are_survived(
        kind in prop::sample::select(vec![2_u16, 3, 16, 17, 20, 21, 24, 25, 28, 29, 80]),
        route in route(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut datagram = message(kind, NLM_F_ACK_TLVS, 0, &serialized(&RouteNetlinkMessage::NewLink(link_message())));
        datagram.extend(message(kind, 0, 0, &crate::route::tests::payload(&route)));
        datagram.extend(message(kind, 0, 0, &fdb_payload([2, 0, 0, 0, 0, 9], [192, 0, 2, 1].into())));
        datagram.extend(error(17, "File exists", &[0; 20], false));
        for (at, byte) in damage {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        datagram.truncate(keep.index(datagram.len() + 1));
        prop_assert!(parse_replies(&datagram).count() <= datagram.len() / 4 + 1);
    }
}
