//! A captured frame, read as far as it goes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice, ip_number};
use podwire_kernel::MacAddr;
use serde::Serialize;

/// A frame: what it carries in the end, and what carries that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Frame {
    /// How long it was on the link, in bytes. More than the link's MTU for one that the device is to cut up.
    pub length: usize,
    /// The packet between the pods.
    pub inner: Layers,
    /// The packet between the nodes, where the inner one is inside VXLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outer: Option<Layers>,
    /// The VXLAN network identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
}

/// The headers of one packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layers {
    /// The link layer's.
    pub ethernet: Option<Ethernet>,
    /// The network layer's.
    pub network: Option<Network>,
    /// The transport layer's.
    pub transport: Option<Transport>,
    /// Why it could not be read further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// What identifies the packet beyond its headers.
    #[serde(skip)]
    tail: u64,
}

/// An Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ethernet {
    /// From whom.
    pub source: MacAddr,
    /// To whom.
    pub destination: MacAddr,
    /// The protocol inside.
    pub ether_type: u16,
}

/// An IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Over how many routers it may yet go.
    pub hops: u8,
    /// The protocol inside.
    pub protocol: u8,
    /// The packet's length by its own account, in bytes.
    pub length: u32,
    /// IPv4's identification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identification: Option<u16>,
    /// Whether it is a part of a larger packet.
    pub is_fragment: bool,
}

/// A transport header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "protocol")]
pub enum Transport {
    /// TCP.
    #[serde(rename_all = "camelCase")]
    Tcp {
        /// From which port.
        source_port: u16,
        /// To which port.
        destination_port: u16,
        /// Where its data stand in the stream.
        sequence: u32,
        /// What its sender expects next.
        acknowledgement: u32,
        /// `SYN,ACK`.
        flags: String,
        /// The bytes of data.
        data: usize,
    },
    /// UDP.
    #[serde(rename_all = "camelCase")]
    Udp {
        /// From which port.
        source_port: u16,
        /// To which port.
        destination_port: u16,
        /// The bytes of data.
        data: usize,
    },
    /// ICMP and ICMPv6.
    #[serde(rename_all = "camelCase")]
    Icmp {
        /// The type's number.
        kind: u8,
        /// The code's number.
        code: u8,
        /// What it is, in words.
        name: &'static str,
        /// An echo's identifier and sequence number.
        echo: Option<(u16, u16)>,
    },
}

/// What no hop changes of a packet, by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    ends: Option<(IpAddr, IpAddr, u8)>,
    identification: Option<u16>,
    transport: Option<Transport>,
    tail: u64,
}

/// A frame's mark.
pub(super) fn mark(frame: &Frame) -> Mark {
    let network = frame.inner.network.as_ref();
    let is_tcp = matches!(frame.inner.transport, Some(Transport::Tcp { .. }));
    // A device that cuts up TCP gives each part a number of its own; the first part keeps its place in the stream.
    let transport = match frame.inner.transport.clone() {
        Some(Transport::Tcp { source_port, destination_port, sequence, acknowledgement, flags, .. }) => {
            let flags = flags.replace("PSH,", "").replace(",PSH", "");
            Some(Transport::Tcp { source_port, destination_port, sequence, acknowledgement, flags, data: 0 })
        }
        transport => transport,
    };
    Mark {
        ends: network.map(|network| (network.source, network.destination, network.protocol)),
        identification: network.and_then(|network| network.identification).filter(|_| !is_tcp),
        transport,
        tail: if is_tcp { 0 } else { frame.inner.tail },
    }
}

/// The length of a VXLAN header (RFC 7348).
const VXLAN: usize = 8;

/// Reads a frame: what is in it, and `length`, what it was before the capture cut it. What comes by UDP for one of the
/// ports is VXLAN, and what is inside is the inner packet.
pub fn decode(bytes: &[u8], length: usize, vxlan_ports: &[u16]) -> Frame {
    let (outer, payload) = layers(bytes);
    let is_vxlan = matches!(&outer.transport,
        Some(Transport::Udp { destination_port, .. }) if vxlan_ports.contains(destination_port));
    let tunnelled = payload.filter(|_| is_vxlan).and_then(vxlan);
    match tunnelled {
        Some((vni, inner)) => {
            let (inner, _) = layers(inner);
            Frame { length, inner, outer: Some(outer), vni: Some(vni) }
        }
        None => Frame { length, inner: outer, outer: None, vni: None },
    }
}

/// The identifier and the frame inside; `None` if the header does not say that it has one.
fn vxlan(payload: &[u8]) -> Option<(u32, &[u8])> {
    const HAS_VNI: u8 = 0x08;
    if payload.first()? & HAS_VNI == 0 {
        return None;
    }
    let vni = payload.get(4..7)?.iter().fold(0, |vni, byte| vni << 8 | u32::from(*byte));
    Some((vni, payload.get(VXLAN..)?))
}

/// The headers of a frame, and what UDP carries in it.
fn layers(bytes: &[u8]) -> (Layers, Option<&[u8]>) {
    let sliced = match LaxSlicedPacket::from_ethernet(bytes) {
        Ok(sliced) => sliced,
        Err(error) => {
            let unreadable = Some(error.to_string());
            return (Layers { unreadable, tail: hash(bytes), ..Layers::default() }, None);
        }
    };
    let ethernet = sliced.link.as_ref().and_then(|link| match link {
        LinkSlice::Ethernet2(header) => Some(Ethernet {
            source: MacAddr(header.source()),
            destination: MacAddr(header.destination()),
            ether_type: sliced.ether_payload().map_or(header.ether_type(), |payload| payload.ether_type).0,
        }),
        _ => None,
    });
    let network = sliced.net.as_ref().and_then(network);
    let (transport, data, udp) = match &sliced.transport {
        None => (None, sliced.ip_payload().map_or(bytes, |payload| payload.payload), None),
        Some(TransportSlice::Udp(udp)) => {
            let header = Transport::Udp {
                source_port: udp.source_port(),
                destination_port: udp.destination_port(),
                data: udp.payload().len(),
            };
            (Some(header), udp.payload(), Some(udp.payload()))
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), "SYN"),
                (tcp.fin(), "FIN"),
                (tcp.rst(), "RST"),
                (tcp.psh(), "PSH"),
                (tcp.ack(), "ACK"),
                (tcp.urg(), "URG"),
            ];
            let flags: Vec<&str> =
                flags.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
            let header = Transport::Tcp {
                source_port: tcp.source_port(),
                destination_port: tcp.destination_port(),
                sequence: tcp.sequence_number(),
                acknowledgement: tcp.acknowledgment_number(),
                flags: flags.join(","),
                data: tcp.payload().len(),
            };
            (Some(header), tcp.payload(), None)
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            let echo = matches!(kind, 0 | 8).then(|| two(icmp.bytes5to8()));
            (Some(Transport::Icmp { kind, code, name: icmpv4(kind), echo }), icmp.payload(), None)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let (kind, code) = (icmp.type_u8(), icmp.code_u8());
            let echo = matches!(kind, 128 | 129).then(|| two(icmp.bytes5to8()));
            (Some(Transport::Icmp { kind, code, name: icmpv6(kind), echo }), icmp.payload(), None)
        }
        Some(TransportSlice::Igmp(igmp)) => (None, igmp.slice(), None),
    };
    let tail = hash(data);
    let unreadable = sliced.stop_err.as_ref().map(|(error, _)| error.to_string());
    (Layers { ethernet, network, transport, unreadable, tail }, udp)
}

fn network(net: &LaxNetSlice<'_>) -> Option<Network> {
    match net {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some(Network {
                source: Ipv4Addr::from(header.source()).into(),
                destination: Ipv4Addr::from(header.destination()).into(),
                hops: header.ttl(),
                protocol: header.protocol().0,
                length: header.total_len().into(),
                identification: Some(header.identification()),
                is_fragment: header.is_fragmenting_payload(),
            })
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some(Network {
                source: Ipv6Addr::from(header.source()).into(),
                destination: Ipv6Addr::from(header.destination()).into(),
                hops: header.hop_limit(),
                protocol: ip.payload().ip_number.0,
                length: u32::from(header.payload_length()) + 40,
                identification: None,
                is_fragment: ip.is_payload_fragmented(),
            })
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// Enough of a packet's data to tell it from others of its flow.
fn hash(data: &[u8]) -> u64 {
    /// As much as is always captured of a packet inside another one.
    const ENOUGH: usize = 64;
    let mut hasher = DefaultHasher::new();
    data.get(..ENOUGH.min(data.len())).hash(&mut hasher);
    hasher.finish()
}

fn two([a, b, c, d]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

fn icmpv4(kind: u8) -> &'static str {
    match kind {
        0 => "echo reply",
        3 => "destination unreachable",
        5 => "redirect",
        8 => "echo request",
        11 => "time exceeded",
        12 => "parameter problem",
        _ => "ICMP",
    }
}

fn icmpv6(kind: u8) -> &'static str {
    match kind {
        1 => "destination unreachable",
        2 => "packet too big",
        3 => "time exceeded",
        4 => "parameter problem",
        128 => "echo request",
        129 => "echo reply",
        133 => "router solicitation",
        134 => "router advertisement",
        135 => "neighbour solicitation",
        136 => "neighbour advertisement",
        137 => "redirect",
        _ => "ICMPv6",
    }
}

impl Network {
    /// The protocol inside, by name.
    pub fn protocol_name(&self) -> String {
        match IpNumber(self.protocol) {
            ip_number::TCP => "TCP".to_owned(),
            ip_number::UDP => "UDP".to_owned(),
            ip_number::SCTP => "SCTP".to_owned(),
            ip_number::ICMP => "ICMP".to_owned(),
            ip_number::IPV6_ICMP => "ICMPv6".to_owned(),
            IpNumber(number) => format!("protocol {number}"),
        }
    }
}

impl Ethernet {
    /// The protocol inside, by name.
    pub fn protocol_name(&self) -> String {
        match EtherType(self.ether_type) {
            EtherType::IPV4 => "IPv4".to_owned(),
            EtherType::IPV6 => "IPv6".to_owned(),
            EtherType::ARP => "ARP".to_owned(),
            EtherType(number) => format!("protocol 0x{number:04x}"),
        }
    }
}
