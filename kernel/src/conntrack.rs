//! Connection tracking: which connections the kernel knows, and making it forget one.
//!
//! A UDP flow that began before its port was forwarded keeps its old translation as long as its sender goes on: the
//! rules are asked for a connection's first packet alone. So does one to a pod that is gone.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, IPTuple, ProtoTuple, Tuple as TupleAttribute};
use nix::errno::Errno;

use crate::addr::Family;
use crate::error::{Error, Result};
use crate::nfnetlink::{Message, Request, Said, Socket, answers, emitted};
use crate::reply::{attributes, be16_at, be32_at, ip};

/// NFNL_SUBSYS_CTNETLINK, as it stands in a message's type; also IPCTNL_MSG_CT_NEW.
const SUBSYSTEM: u16 = 1 << 8;

/// IPCTNL_MSG_CT_DELETE
const DELETE: u16 = SUBSYSTEM | 2;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// Who receives.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// The sender's port; 0 for protocols without ports.
    pub source_port: u16,
    /// The receiver's port; 0 for protocols without ports.
    pub destination_port: u16,
}

/// A connection that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// As its first packet was, before any translation.
    pub original: Tuple,
    /// As an answer is, before it is translated back: its source is who really answers.
    pub reply: Tuple,
    /// Its zone; 0 unless somebody made zones.
    pub zone: u16,
    /// Its number. A later connection with the same addresses and ports may be given the same one: the kernel makes it
    /// from those and from a place in memory, and was seen to.
    pub id: u32,
    /// IPS_* bits, as in `linux/netfilter/nf_conntrack_common.h`.
    pub status: u32,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tuple { source, destination, protocol, source_port, destination_port } = self.original;
        write!(f, "protocol {protocol} {source} port {source_port} to {destination} port {destination_port}")
    }
}

/// Which connections to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Of this family; `None` for both.
    pub family: Option<Family>,
    /// Of this transport protocol.
    pub protocol: u8,
    /// Opened to this port.
    pub destination_port: Option<u16>,
    /// Answered from this address.
    pub reply_source: Option<IpAddr>,
}

impl Filter {
    /// Whether it lets the connection through.
    pub fn admits(&self, entry: &Entry) -> bool {
        let Entry { original, reply, .. } = entry;
        self.family.is_none_or(|family| family == Family::of(original.source))
            && self.protocol == original.protocol
            && self.destination_port.is_none_or(|port| port == original.destination_port)
            && self.reply_source.is_none_or(|source| source == reply.source)
    }
}

/// A socket for connection tracking, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens a NETLINK_NETFILTER socket in the calling thread's network namespace: errors with the kernel's words,
    /// answers awaited for 5 s at most.
    ///
    /// # Errors
    /// The socket cannot be made (EMFILE, ENOMEM; EPROTONOSUPPORT without netfilter).
    pub fn open() -> Result<Self> {
        let socket = Socket::open().map_err(|e| Error::io("open conntrack socket", "", &e))?;
        Ok(Self { socket })
    }

    /// The connections that the filter lets through. Connections that come or go meanwhile may be among them or not.
    /// From Linux 5.8 on the kernel leaves out the others, before that they are read and left out here.
    ///
    /// The kernel looks through all of its table, that of all namespaces: measured 9 ms for one of 262,144 empty slots,
    /// 30 ms with 80,000 connections, and 150 ms if it tells of them all; 5 µs if this namespace has none. One list for several ports is cheaper than
    /// several.
    ///
    /// # Errors
    /// The dump failed.
    pub fn entries(&mut self, filter: &Filter) -> Result<Vec<Entry>> {
        if self.count()? == Some(0) {
            return Ok(Vec::new());
        }
        let result = self.dump(filter, &filter_attributes(filter));
        let mut entries = match result {
            // A kernel that knows filters, but not this one.
            Err(error) if error.errno == Errno::EOPNOTSUPP as i32 => self.dump(filter, &[])?,
            result => result?,
        };
        entries.retain(|entry| filter.admits(entry));
        Ok(entries)
    }

    /// How many connections the namespace has; `None` if the kernel does not say.
    fn count(&mut self) -> Result<Option<u32>> {
        // The answer looks like the beginning of a list; the acknowledgement ends it.
        let request = request(GET_STATS, NLM_F_ACK, "count connections", String::new(), None, &[]);
        let mut count = None;
        self.socket.exchange(&request, &mut |message| {
            // CTA_STATS_GLOBAL_ENTRIES
            let entries = attributes(message.attributes).find(|(kind, _)| *kind == 1);
            count = entries.and_then(|(_, value)| be32_at(value, 0));
            Ok(())
        })?;
        Ok(count)
    }

    fn dump(&mut self, filter: &Filter, attributes: &[u8]) -> Result<Vec<Entry>> {
        let object = format!("of protocol {}", filter.protocol);
        let request =
            request(SUBSYSTEM | 1, NLM_F_DUMP, "list connections", object, filter.family, attributes);
        self.socket.dump(&request, |message| Ok(entry(message)))
    }

    /// Makes the kernel forget a connection, whose next packet then is a first one; `false` if it has already. For
    /// protocols with ports.
    ///
    /// # Errors
    /// A failure other than the connection's absence.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool> {
        let attributes = [
            emitted(&ConntrackAttribute::CtaTupleOrig(tuple_attributes(&entry.original))),
            emitted(&DefaultNla::new(CTA_ID, entry.id.to_be_bytes().to_vec())),
            emitted(&DefaultNla::new(CTA_ZONE, entry.zone.to_be_bytes().to_vec())),
        ];
        let family = Some(Family::of(entry.original.source));
        let object = entry.to_string();
        let request = request(DELETE, NLM_F_ACK, "forget connection", object, family, &attributes.concat());
        match self.socket.exchange(&request, &mut |_| Ok(())) {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// IPCTNL_MSG_CT_GET_STATS
const GET_STATS: u16 = SUBSYSTEM | 5;

const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

/// CTA_FILTER_F_* of the kernel's nf_internals.h: which parts of a tuple a filter compares.
const FILTER_SOURCE: u32 = 1 << 0;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

fn request(
    kind: u16,
    flags: u16,
    op: &'static str,
    object: String,
    family: Option<Family>,
    attributes: &[u8],
) -> Request {
    // struct nfgenmsg. The library's message type would lose the flag of nested attributes that it does not know.
    // AF_UNSPEC means both.
    let mut payload = vec![family.map_or(0, |family| u8::from(family.number())), 0, 0, 0];
    payload.extend_from_slice(attributes);
    Request { kind, flags, payload, op, object }
}

fn filter_attributes(filter: &Filter) -> Vec<u8> {
    let mut proto = vec![ProtoTuple::Protocol(filter.protocol.into())];
    let mut original = FILTER_PROTOCOL;
    if let Some(port) = filter.destination_port {
        proto.push(ProtoTuple::DestinationPort(port));
        original |= FILTER_DESTINATION_PORT;
    }
    let mut attributes = emitted(&ConntrackAttribute::CtaTupleOrig(vec![TupleAttribute::Proto(proto)]));
    let mut reply = 0;
    // IPv6 addresses are left to the reader: the kernel (6.18) lets through those that differ.
    if let Some(source) = filter.reply_source.filter(IpAddr::is_ipv4) {
        let tuple = vec![TupleAttribute::Ip(vec![IPTuple::SourceAddress(source)])];
        attributes.extend(emitted(&ConntrackAttribute::CtaTupleReply(tuple)));
        reply = FILTER_SOURCE;
    }
    // CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS, in the machine's byte order.
    let flags = [(1, original), (2, reply)];
    let flags = flags.map(|(kind, value)| emitted(&DefaultNla::new(kind, value.to_ne_bytes().to_vec())));
    attributes.extend(emitted(&DefaultNla::new(CTA_FILTER | NLA_F_NESTED, flags.concat())));
    attributes
}

fn tuple_attributes(tuple: &Tuple) -> Vec<TupleAttribute> {
    vec![
        TupleAttribute::Ip(vec![
            IPTuple::SourceAddress(tuple.source),
            IPTuple::DestinationAddress(tuple.destination),
        ]),
        TupleAttribute::Proto(vec![
            ProtoTuple::Protocol(tuple.protocol.into()),
            ProtoTuple::SourcePort(tuple.source_port),
            ProtoTuple::DestinationPort(tuple.destination_port),
        ]),
    ]
}

/// The connections that the messages of a datagram describe: this decoder for fuzzing.
#[doc(hidden)]
pub fn connections(datagram: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    answers(datagram).filter_map(|answer| match answer.said {
        Said::Message(message) => entry(&message),
        _ => None,
    })
}

/// A connection; `None` for one without IP addresses, or for a message about something else.
fn entry(message: &Message<'_>) -> Option<Entry> {
    if message.kind != SUBSYSTEM {
        return None;
    }
    let (mut original, mut reply) = (None, None);
    let (mut zone, mut id, mut status) = (0, 0, 0);
    for (kind, value) in attributes(message.attributes) {
        match kind {
            1 => original = tuple(value),
            2 => reply = tuple(value),
            3 => status = be32_at(value, 0).unwrap_or(0),
            CTA_ID => id = be32_at(value, 0).unwrap_or(0),
            CTA_ZONE => zone = be16_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    original.zip(reply).map(|(original, reply)| Entry { original, reply, zone, id, status })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination, mut protocol) = (None, None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for (kind, value) in attributes(bytes) {
        match kind {
            // CTA_TUPLE_IP: CTA_IP_V4_SRC, _V4_DST, _V6_SRC, _V6_DST
            1 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 | 3 => source = ip(value),
                        2 | 4 => destination = ip(value),
                        _ => {}
                    }
                }
            }
            // CTA_TUPLE_PROTO: CTA_PROTO_NUM, _SRC_PORT, _DST_PORT
            2 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 => protocol = value.first().copied(),
                        2 => source_port = be16_at(value, 0).unwrap_or(0),
                        3 => destination_port = be16_at(value, 0).unwrap_or(0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        source: source?,
        destination: destination?,
        protocol: protocol?,
        source_port,
        destination_port,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuples() -> impl Strategy<Value = Tuple> {
        let v4 = any::<[[u8; 4]; 2]>().prop_map(|ips| ips.map(IpAddr::from));
        let v6 = any::<[[u8; 16]; 2]>().prop_map(|ips| ips.map(IpAddr::from));
        (prop_oneof![v4, v6], any::<u8>(), any::<[u16; 2]>()).prop_map(
            |([source, destination], protocol, ports)| Tuple {
                source,
                destination,
                protocol,
                source_port: ports[0],
                destination_port: ports[1],
            },
        )
    }

    fn datagram(entry: &Entry) -> Vec<u8> {
        let number = |kind, value: u32| emitted(&DefaultNla::new(kind, value.to_be_bytes().to_vec()));
        let attributes = [
            emitted(&ConntrackAttribute::CtaTupleOrig(tuple_attributes(&entry.original))),
            emitted(&ConntrackAttribute::CtaTupleReply(tuple_attributes(&entry.reply))),
            number(3, entry.status),
            number(CTA_ID, entry.id),
            emitted(&DefaultNla::new(CTA_ZONE, entry.zone.to_be_bytes().to_vec())),
            emitted(&DefaultNla::new(99, vec![1, 2, 3])),
        ];
        let family = Some(Family::of(entry.original.source));
        let told = request(SUBSYSTEM, 0, "", String::new(), family, &attributes.concat());
        let mut bytes = u32::try_from(16 + told.payload.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend_from_slice(&told.kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(&told.payload);
        bytes
    }

    proptest! {
        #[test]
        fn a_connection_reads_back_as_it_was_sent(
            original in tuples(), reply in tuples(), zone: u16, id: u32, status: u32,
        ) {
            let entry = Entry { original, reply, zone, id, status };
            prop_assert_eq!(connections(&datagram(&entry)).collect::<Vec<_>>(), [entry]);
        }

        #[test]
        fn damaged_messages_are_survived(
            original in tuples(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut told = datagram(&Entry { original, reply: original, zone: 0, id: 0, status: 0 });
            for (at, byte) in damage {
                let at = at.index(told.len());
                told[at] = byte;
            }
            told.truncate(keep.index(told.len() + 1));
            prop_assert!(connections(&told).count() <= told.len() / 4 + 1);
        }
    }

    #[test]
    fn a_filter_admits_by_each_of_its_parts() {
        let tuple = |source: &str, ports: [u16; 2]| Tuple {
            source: source.parse().expect("an address"),
            destination: "10.0.0.9".parse().expect("an address"),
            protocol: 17,
            source_port: ports[0],
            destination_port: ports[1],
        };
        let original = tuple("10.0.0.1", [4000, 8080]);
        let entry = Entry { original, reply: tuple("10.0.0.2", [53, 4000]), zone: 0, id: 0, status: 0 };
        let all =
            Filter { family: Some(Family::V4), protocol: 17, destination_port: None, reply_source: None };
        let source = |ip: &str| ip.parse().ok();
        assert!(all.admits(&entry));
        assert!(
            Filter { destination_port: Some(8080), reply_source: source("10.0.0.2"), ..all }.admits(&entry)
        );
        for other in [
            Filter { family: Some(Family::V6), ..all },
            Filter { protocol: 6, ..all },
            Filter { destination_port: Some(4000), ..all },
            Filter { reply_source: source("10.0.0.1"), ..all },
        ] {
            assert!(!other.admits(&entry), "{other:?}");
        }
        assert_eq!(entry.to_string(), "protocol 17 10.0.0.1 port 4000 to 10.0.0.9 port 8080");
    }
}
