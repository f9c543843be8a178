//! Neighbours (which Ethernet address an IP address has on a link) and the forwarding entries of a VXLAN device (which
//! machine an Ethernet address is behind).
//!
//! The kernel keeps both in tables of one kind of message. What is made here is permanent: the kernel neither asks
//! for it nor forgets it, except that it drops a link's neighbours, permanent ones too, when the link goes down or
//! changes its MAC address.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::addr::{self, Family};
use crate::error::Result;
use crate::mac::MacAddr;
use crate::netlink::{Netlink, Object, Request};
use crate::reply::{Body, attributes, be16_at, ip, u16_at, u32_at};

/// NTF_SELF: the entry is the device's own, not that of the bridge above it.
const OWN: u8 = 0x02;

/// NTF_EXT_LEARNED: a program answers for the entry.
const EXTERNAL: u8 = 0x10;

/// How the kernel stands to an entry (NUD_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Set by a program, for good.
    Permanent,
    /// The link needs no answer to the question.
    Noarp,
    /// Confirmed not long ago.
    Reachable,
    /// Known, and to be confirmed when it is used.
    Stale,
    /// Nobody answered.
    Failed,
    /// Any other, as the kernel numbers them: being asked for, being confirmed, several at once.
    Other(u16),
}

impl State {
    fn from_number(number: u16) -> Self {
        match number {
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x20 => Self::Failed,
            0x40 => Self::Noarp,
            0x80 => Self::Permanent,
            other => Self::Other(other),
        }
    }
}

/// A neighbour: an IP address on a link and its Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link's index.
    pub ifindex: u32,
    /// The IP address.
    pub address: IpAddr,
    /// Its Ethernet address; `None` while, or because, nobody has answered.
    pub mac: Option<MacAddr>,
    /// How the kernel stands to it.
    pub state: State,
    /// A program answers for it (NTF_EXT_LEARNED).
    pub external: bool,
    /// Who made it (NDA_PROTOCOL), [`addr::PROTOCOL`] for us; 0 where nobody said.
    pub protocol: u8,
}

impl Neighbour {
    /// A permanent neighbour, as it is read back after [`add`] or [`replace`].
    pub fn permanent(ifindex: u32, address: IpAddr, mac: MacAddr) -> Self {
        let mac = Some(mac);
        Self { ifindex, address, mac, state: State::Permanent, external: false, protocol: addr::PROTOCOL }
    }

    /// Decodes `struct ndmsg` and its attributes of IPv4 or IPv6; `None` if it is too short or has no address.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut address = None;
        let (mut mac, mut protocol) = (None, 0);
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => address = ip(value),
                2 => mac = value.try_into().ok().map(MacAddr),
                12 => protocol = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        Some(Self {
            ifindex: u32_at(payload, 4)?,
            address: address?,
            mac,
            state: State::from_number(u16_at(payload, 8)?),
            external: payload.get(10)? & EXTERNAL != 0,
            protocol,
        })
    }
}

impl fmt::Display for Neighbour {
    /// As `ip neigh` would write it, with link numbers for names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.ifindex)?;
        self.mac.map_or(Ok(()), |mac| write!(f, " lladdr {mac}"))
    }
}

/// Makes a permanent neighbour of this address and MAC; there must be none of that address (EEXIST), not even one that
/// the kernel learned or is asking for.
pub fn add(ifindex: u32, address: IpAddr, mac: MacAddr) -> Request<'static> {
    let message = permanent(ifindex, address, mac);
    Request::create("add neighbour", NEIGHBOUR, RouteNetlinkMessage::NewNeighbour(message))
}

/// Makes a permanent neighbour, in the place of whatever the kernel has for that address.
pub fn replace(ifindex: u32, address: IpAddr, mac: MacAddr) -> Request<'static> {
    let message = permanent(ifindex, address, mac);
    Request::replace("replace neighbour", NEIGHBOUR, RouteNetlinkMessage::NewNeighbour(message))
}

/// Removes whatever the kernel has for that address (ENOENT if nothing).
pub fn remove(ifindex: u32, address: IpAddr) -> Request<'static> {
    let message = message(ifindex, address);
    Request::change("remove neighbour", NEIGHBOUR, RouteNetlinkMessage::DelNeighbour(message))
}

/// The text of the neighbour that a request is about.
const NEIGHBOUR: Object =
    Object::Payload(|payload| Neighbour::parse(payload).map(|neighbour| neighbour.to_string()));

/// The text of the forwarding entry that a request is about.
const FDB_ENTRY: Object = Object::Payload(|payload| FdbEntry::parse(payload).map(|entry| entry.to_string()));

fn permanent(ifindex: u32, address: IpAddr, mac: MacAddr) -> NeighbourMessage {
    let mut message = message(ifindex, address);
    message.header.state = Nud::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(addr::PROTOCOL)));
    message
}

fn message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::of(address).number();
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

/// A forwarding entry of a VXLAN device: an Ethernet address and the machine that it is behind.
///
/// A device may send one address to several machines; it then has as many entries of that address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The device's index.
    pub ifindex: u32,
    /// The Ethernet address; all zeros for frames to addresses without an entry.
    pub mac: MacAddr,
    /// The address of the other machine; `None` for entries of other kinds, such as a bridge's.
    pub destination: Option<IpAddr>,
    /// Another VNI than the device's own.
    pub vni: Option<u32>,
    /// Another UDP port than the device's own.
    pub port: Option<u16>,
    /// The link by which the encapsulated packets must leave.
    pub via: Option<u32>,
    /// How the kernel stands to it; [`State::Permanent`] unless it was learned from traffic or is to expire.
    pub state: State,
    /// It is the device's own entry (NTF_SELF), as all of a VXLAN device's are; else that of its bridge.
    pub own: bool,
}

impl FdbEntry {
    /// A permanent entry, as it is read back after [`add_fdb`] or [`replace_fdb`].
    pub fn permanent(ifindex: u32, mac: MacAddr, destination: IpAddr) -> Self {
        Self {
            ifindex,
            mac,
            destination: Some(destination),
            vni: None,
            port: None,
            via: None,
            state: State::Permanent,
            own: true,
        }
    }

    /// Decodes `struct ndmsg` and its attributes of AF_BRIDGE; `None` if it is too short or has no Ethernet address.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut mac = None;
        let mut entry = Self {
            ifindex: u32_at(payload, 4)?,
            mac: MacAddr([0; 6]),
            destination: None,
            vni: None,
            port: None,
            via: None,
            state: State::from_number(u16_at(payload, 8)?),
            own: payload.get(10)? & OWN != 0,
        };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => entry.destination = ip(value),
                2 => mac = value.try_into().ok().map(MacAddr),
                6 => entry.port = be16_at(value, 0),
                7 => entry.vni = u32_at(value, 0),
                8 => entry.via = u32_at(value, 0),
                _ => {}
            }
        }
        Some(Self { mac: mac?, ..entry })
    }
}

impl fmt::Display for FdbEntry {
    /// As `bridge fdb` would write it, with link numbers for names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.mac, self.ifindex)?;
        self.destination.map_or(Ok(()), |destination| write!(f, " dst {destination}"))
    }
}

/// Makes a permanent entry of a VXLAN device; there must be none of that MAC (EEXIST).
pub fn add_fdb(ifindex: u32, mac: MacAddr, destination: IpAddr) -> Request<'static> {
    let message = permanent_fdb(ifindex, mac, destination);
    Request::create("add FDB entry", FDB_ENTRY, RouteNetlinkMessage::NewNeighbour(message))
}

/// Makes a permanent entry of a VXLAN device, in the place of that MAC's. Where a MAC has several, the kernel replaces
/// one of them and the others stay.
pub fn replace_fdb(ifindex: u32, mac: MacAddr, destination: IpAddr) -> Request<'static> {
    let message = permanent_fdb(ifindex, mac, destination);
    Request::replace("replace FDB entry", FDB_ENTRY, RouteNetlinkMessage::NewNeighbour(message))
}

/// Removes a VXLAN device's entry of that MAC: the one with that destination, or with `None` all (ENOENT if there is
/// none).
pub fn remove_fdb(ifindex: u32, mac: MacAddr, destination: Option<IpAddr>) -> Request<'static> {
    let message = fdb_message(ifindex, mac, destination);
    Request::change("remove FDB entry", FDB_ENTRY, RouteNetlinkMessage::DelNeighbour(message))
}

fn permanent_fdb(ifindex: u32, mac: MacAddr, destination: IpAddr) -> NeighbourMessage {
    let mut message = fdb_message(ifindex, mac, Some(destination));
    message.header.state = Nud::Permanent;
    message
}

fn fdb_message(ifindex: u32, mac: MacAddr, destination: Option<IpAddr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
        .attributes
        .extend(destination.map(|destination| NeighbourAttribute::Destination(destination.into())));
    message
}

impl Netlink {
    /// The neighbours on a link, of both families. None if the link is missing.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn neighbours(&mut self, ifindex: u32) -> Result<Vec<Neighbour>> {
        let query = dump("list neighbours", AddressFamily::Unspec, ifindex);
        let found = self.dump(query, |body| match body {
            Body::Neighbour(neighbour) if neighbour.ifindex == ifindex => Some(neighbour),
            _ => None,
        });
        found.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })
    }

    /// The forwarding entries of a VXLAN device. None if the device is missing.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn fdb(&mut self, ifindex: u32) -> Result<Vec<FdbEntry>> {
        let query = dump("list FDB", AddressFamily::Bridge, ifindex);
        let found = self.dump(query, |body| match body {
            Body::Fdb(entry) if entry.ifindex == ifindex => Some(entry),
            _ => None,
        });
        found.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })
    }

    /// What the kernel has for one address on a link; `None` if nothing.
    ///
    /// # Errors
    /// A failure other than its absence.
    pub fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<Option<Neighbour>> {
        let message = message(ifindex, address);
        let query = Request::query("read neighbour", NEIGHBOUR, RouteNetlinkMessage::GetNeighbour(message));
        self.one(&query, |body| match body {
            Body::Neighbour(neighbour) => Some(neighbour),
            _ => None,
        })
    }
}

/// The kernel filters by the attribute; it refuses an index in the header.
fn dump(op: &'static str, family: AddressFamily, ifindex: u32) -> Request<'static> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    Request::dump(op, format!("of link {ifindex}"), RouteNetlinkMessage::GetNeighbour(message))
}
