//! Addresses of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags as Ifa, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::Request;
use crate::reply::{attributes, ip, u32_at};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link's index.
    pub ifindex: u32,
    /// The address with its subnet's prefix length.
    pub address: IpNetwork,
    /// Its state.
    pub flags: AddressFlags,
    /// How far it is valid (`rtm_scope` numbers): 0 everywhere, 253 on the link, 254 on this machine.
    pub scope: u8,
    /// Who set it (IFA_PROTO), [`PROTOCOL`] for us; 0 where nobody said, and always on kernels before 5.18.
    pub protocol: u8,
}

/// An address's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressFlags {
    /// It does not expire.
    pub permanent: bool,
    /// It is used without asking whether another machine has it (IPv6).
    pub nodad: bool,
    /// The kernel is still asking whether another machine has it (IPv6): it cannot be used yet.
    pub tentative: bool,
    /// Another machine has it (IPv6): it is not used.
    pub dadfailed: bool,
}

/// What the addresses that we set are marked with (IFA_PROTO, kernel 5.18; older ones pass over it), so that they are
/// told from an administrator's. The numbers up to 3 are the kernel's own.
pub const PROTOCOL: u8 = 0x70;

/// Gives a link an address. An IPv4 one also gets its subnet's broadcast address, where it has one, as the
/// reference plugins do. `nodad`: usable at once (IPv6).
pub fn add(ifindex: u32, address: IpNetwork, nodad: bool) -> Request<'static> {
    let mut message = message(ifindex, address);
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    if let IpNetwork::V4(network) = address {
        message.attributes.extend(broadcast(network).map(AddressAttribute::Broadcast));
    } else if nodad {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(Ifa::Nodad));
    }
    Request::create("add address", object(ifindex, address), RouteNetlinkMessage::NewAddress(message))
}

/// Takes an address from a link.
pub fn remove(ifindex: u32, address: IpNetwork) -> Request<'static> {
    let message = message(ifindex, address);
    Request::change("remove address", object(ifindex, address), RouteNetlinkMessage::DelAddress(message))
}

fn object(ifindex: u32, address: IpNetwork) -> String {
    format!("{address} of link {ifindex}")
}

fn message(ifindex: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(address.ip()).number();
    message.header.prefix_len = address.prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(address.ip()));
    message.attributes.push(AddressAttribute::Address(address.ip()));
    message
}

fn broadcast(network: Ipv4Network) -> Option<Ipv4Addr> {
    (network.prefix() < 31).then(|| network.broadcast())
}

pub(crate) fn dump_message(ifindex: Option<u32>, nsid: Option<i32>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex.unwrap_or(0);
    message.attributes.extend(nsid.map(AddressAttribute::TargetNetNsId));
    message
}

impl Address {
    /// Decodes `struct ifaddrmsg` and its attributes; `None` if it is too short or without an address.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let prefix = *payload.get(1)?;
        let mut flags = u32::from(*payload.get(2)?);
        let scope = *payload.get(3)?;
        let ifindex = u32_at(payload, 4)?;
        let (mut address, mut local, mut protocol) = (None, None, 0);
        for (kind, value) in attributes(payload.get(8..)?) {
            match kind {
                1 => address = ip(value),
                // On a point-to-point link IFA_ADDRESS is the other side's.
                2 => local = ip(value),
                8 => flags = u32_at(value, 0).unwrap_or(flags),
                11 => protocol = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        Some(Self {
            ifindex,
            address: IpNetwork::new(local.or(address)?, prefix).ok()?,
            flags: AddressFlags {
                permanent: flags & 0x80 != 0,
                nodad: flags & 0x02 != 0,
                tentative: flags & 0x40 != 0,
                dadfailed: flags & 0x08 != 0,
            },
            scope,
            protocol,
        })
    }
}
