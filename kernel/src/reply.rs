//! Netlink's replies, decoded. Pure: bytes in, values out.
//!
//! Everything is bounds-checked and nothing is trusted: a length that does not fit ends the walk, an attribute that
//! is not known, too short or oddly long is passed over, so that a newer kernel can say more than this program
//! understands. Layouts are those of `netlink(7)`, `rtnetlink(7)` and `linux/netlink.h`.

use crate::addr::Address;
use crate::link::Link;
use crate::neighbour::{FdbEntry, Neighbour};
use crate::netconf::Netconf;
use crate::qdisc::{Filter, Qdisc};
use crate::route::Route;

/// `nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;

/// The message is part of a series that ends with NLMSG_DONE.
const NLM_F_MULTI: u16 = 0x02;
/// The tables changed while they were read.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// In an error message: the request is not repeated behind its header.
const NLM_F_CAPPED: u16 = 0x100;
/// In an error message: attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;

/// One message from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The number of the request that it answers; 0 for an event.
    pub sequence: u32,
    /// The netlink port of the socket whose request it answers, or whose request made the change that an event tells;
    /// 0 for a change that the kernel made, or that it does not say of.
    pub port: u32,
    /// Whether more messages follow until [`Body::Done`].
    pub multi: bool,
    /// Whether the tables changed while they were read: the dump must be taken again.
    pub interrupted: bool,
    /// What it says.
    pub body: Body,
}

/// What a [`Reply`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The request succeeded.
    Ack,
    /// The request failed with this error number and, perhaps, the kernel's words.
    Failure {
        /// As in `errno(3)`, greater than 0.
        errno: i32,
        /// The extended acknowledgement's text.
        detail: Option<String>,
    },
    /// The end of a dump.
    Done,
    /// Messages were lost.
    Overrun,
    /// A link as it is now (RTM_NEWLINK).
    Link(Box<Link>),
    /// A link that is gone (RTM_DELLINK), as it last was.
    LinkRemoved(Box<Link>),
    /// An address (RTM_NEWADDR).
    Address(Address),
    /// An address that is gone (RTM_DELADDR).
    AddressRemoved(Address),
    /// A route (RTM_NEWROUTE).
    Route(Box<Route>),
    /// A route that is gone (RTM_DELROUTE).
    RouteRemoved(Box<Route>),
    /// A neighbour (RTM_NEWNEIGH).
    Neighbour(Neighbour),
    /// A neighbour that is gone (RTM_DELNEIGH).
    NeighbourRemoved(Neighbour),
    /// A forwarding entry (RTM_NEWNEIGH with AF_BRIDGE).
    Fdb(FdbEntry),
    /// A forwarding entry that is gone (RTM_DELNEIGH with AF_BRIDGE).
    FdbRemoved(FdbEntry),
    /// Settings of links (RTM_NEWNETCONF).
    Netconf(Netconf),
    /// A queueing discipline (RTM_NEWQDISC).
    Qdisc(Box<Qdisc>),
    /// A filter (RTM_NEWTFILTER).
    Filter(Box<Filter>),
    /// A message about something else, such as a bridge's own view of its ports.
    Other,
    /// A message too short for what it claims to be; the rest of the datagram is not to be trusted.
    Malformed,
}

/// The messages of one datagram from the kernel. The iterator ends after a malformed one.
pub fn parse_replies(datagram: &[u8]) -> impl Iterator<Item = Reply> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        // The tail may be shorter than a header only by padding.
        if rest.len() < 4 {
            return None;
        }
        let Some((header, payload, next)) = split_message(rest) else {
            rest = &[];
            return Some(Reply {
                sequence: 0,
                port: 0,
                multi: false,
                interrupted: false,
                body: Body::Malformed,
            });
        };
        rest = next;
        let body = parse_body(&header, payload);
        if body == Body::Malformed {
            rest = &[];
        }
        Some(Reply {
            sequence: header.sequence,
            port: header.port,
            multi: header.is_multi(),
            interrupted: header.is_interrupted(),
            body,
        })
    })
}

/// What `struct nlmsghdr` says besides its length.
pub(crate) struct Header {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    port: u32,
}

impl Header {
    pub(crate) fn is_multi(&self) -> bool {
        self.flags & NLM_F_MULTI != 0
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }
}

/// The first message of a datagram: its header, its payload, and what follows it.
pub(crate) fn split_message(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    if length < HEADER {
        return None;
    }
    let header = Header {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        port: u32_at(bytes, 12)?,
    };
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(aligned(length)..).unwrap_or_default();
    Some((header, payload, next))
}

/// The body of a message of netlink itself, the same in every protocol; `None` for the protocol's own messages.
pub(crate) fn parse_control(header: &Header, payload: &[u8]) -> Option<Body> {
    Some(match header.kind {
        // NLMSG_ERROR
        2 => parse_error(header, payload),
        // NLMSG_DONE: a dump can end with an error, in the same place as an error message's.
        3 => match i32_at(payload, 0) {
            Some(code) if code != 0 => failure(code, payload.get(4..).unwrap_or_default(), header.flags),
            _ => Body::Done,
        },
        // NLMSG_OVERRUN
        4 => Body::Overrun,
        _ => return None,
    })
}

fn parse_body(header: &Header, payload: &[u8]) -> Body {
    if let Some(body) = parse_control(header, payload) {
        return body;
    }
    let link = || Link::parse(payload).map(Box::new);
    let route = || Route::parse(payload).map(Box::new);
    let body = match header.kind {
        // RTM_NEWLINK and RTM_DELLINK; a family other than AF_UNSPEC is a bridge's or IPv6's view of a link that
        // itself stays: a port that leaves its bridge sends RTM_DELLINK with AF_BRIDGE.
        16 | 17 if payload.first().is_some_and(|family| *family != 0) => Some(Body::Other),
        16 => link().map(Body::Link),
        17 => link().map(Body::LinkRemoved),
        20 => Address::parse(payload).map(Body::Address),
        21 => Address::parse(payload).map(Body::AddressRemoved),
        // Other families' routes (multicast, MPLS) are none of ours.
        24 | 25 if payload.first().is_some_and(|family| ![2, 10].contains(family)) => Some(Body::Other),
        24 => route().map(Body::Route),
        25 => route().map(Body::RouteRemoved),
        28 => neighbour_body(payload, Body::Neighbour, Body::Fdb),
        29 => neighbour_body(payload, Body::NeighbourRemoved, Body::FdbRemoved),
        36 => Qdisc::parse(payload).map(Box::new).map(Body::Qdisc),
        80 => Some(Netconf::parse(payload).map_or(Body::Other, Body::Netconf)),
        44 => Filter::parse(payload).map(Box::new).map(Body::Filter),
        _ => Some(Body::Other),
    };
    body.unwrap_or(Body::Malformed)
}

/// A message of the neighbour tables: IP's, a bridge's or VXLAN device's, or one that is none of ours.
fn neighbour_body(
    payload: &[u8],
    neighbour: fn(Neighbour) -> Body,
    fdb: fn(FdbEntry) -> Body,
) -> Option<Body> {
    match payload.first()? {
        2 | 10 => Neighbour::parse(payload).map(neighbour),
        // AF_BRIDGE; an entry that is no Ethernet address, such as a multicast group, is told in the same way.
        7 => Some(FdbEntry::parse(payload).map_or(Body::Other, fdb)),
        _ => Some(Body::Other),
    }
}

fn parse_error(header: &Header, payload: &[u8]) -> Body {
    let Some(code) = i32_at(payload, 0) else {
        return Body::Malformed;
    };
    if code == 0 {
        return Body::Ack;
    }
    // The request's header follows, and the request itself unless the kernel was asked to leave it out.
    let mut skip = 4 + HEADER;
    if header.flags & NLM_F_CAPPED == 0 {
        let request = u32_at(payload, 4).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        skip += aligned(request.saturating_sub(HEADER));
    }
    failure(code, payload.get(skip..).unwrap_or_default(), header.flags)
}

fn failure(code: i32, rest: &[u8], flags: u16) -> Body {
    let text = if flags & NLM_F_ACK_TLVS != 0 {
        // NLMSGERR_ATTR_MSG
        attributes(rest).find(|(kind, _)| *kind == 1).map(|(_, value)| text(value))
    } else {
        None
    };
    match code.checked_neg() {
        Some(errno) if errno > 0 => Body::Failure { errno, detail: text.filter(|text| !text.is_empty()) },
        _ => Body::Malformed,
    }
}

/// The attributes (`nlattr`) in `bytes`: type without its flags, and value. Ends at the first one whose length does
/// not fit.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        // NLA_F_NESTED and NLA_F_NET_BYTEORDER are the upper two bits.
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_ne_bytes)
}

/// A number in network byte order, as netfilter's are.
pub(crate) fn be32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}

/// A number in network byte order.
pub(crate) fn be16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

/// A number in network byte order.
pub(crate) fn be64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_be_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_ne_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_ne_bytes)
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes_at(bytes, at).map(i32::from_ne_bytes)
}

/// A string attribute: up to its first zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// An IP address attribute, of the family that its length tells.
pub(crate) fn ip(value: &[u8]) -> Option<std::net::IpAddr> {
    match value.len() {
        4 => bytes_at::<4>(value, 0).map(Into::into),
        16 => bytes_at::<16>(value, 0).map(Into::into),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
