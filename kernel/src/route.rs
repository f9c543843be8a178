//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteVia,
};

use crate::addr::{self, Family};
use crate::error::Result;
use crate::netlink::{Netlink, Object, Request, network_text};
use crate::reply::{Body, attributes, ip, u16_at, u32_at};

/// The main routing table's number (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;

/// The protocol number of routes made by an administrator's command (RTPROT_BOOT), which the reference plugins use.
pub const PROTOCOL_BOOT: u8 = 3;

/// The protocol number of routes learned from IPv6 router advertisements (RTPROT_RA).
pub const PROTOCOL_RA: u8 = 9;

/// The protocol number of the routes between nodes that podwire makes. No number of linux/rtnetlink.h or of the
/// routing programs that registered one; the same as that of its addresses ([`addr::PROTOCOL`]).
pub const ROUTE_PROTOCOL: u8 = addr::PROTOCOL;

/// Valid everywhere (RT_SCOPE_UNIVERSE).
pub const SCOPE_UNIVERSE: u8 = 0;

/// Valid on the link, that is, without a gateway (RT_SCOPE_LINK).
pub const SCOPE_LINK: u8 = 253;

/// A route to be made, or as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; /0 for the default route. Host bits are cleared when it is made.
    pub destination: IpNetwork,
    /// Where packets go next: none for a route that refuses, several for one that shares its traffic out (ECMP).
    pub nexthops: Vec<Nexthop>,
    /// Its table; [`MAIN_TABLE`] unless somebody chose another.
    pub table: u32,
    /// How far it is valid, as in `rtm_scope`; always 0 for IPv6.
    pub scope: u8,
    /// Its metric: of equal destinations the lowest wins. `None` is 0 for IPv4 and 1024 for IPv6, which the kernel
    /// then reports.
    pub priority: Option<u32>,
    /// The path's MTU, in bytes.
    pub mtu: Option<u32>,
    /// The largest TCP segment to announce, in bytes.
    pub advmss: Option<u32>,
    /// Who made it, as in `rtm_protocol`.
    pub protocol: u8,
    /// The gateways are on the link even if no address says so.
    pub onlink: bool,
    /// The source address of packets that this machine sends.
    pub source: Option<IpAddr>,
    /// As in `rtm_type`: 1 for unicast, 6 for blackhole, 7 for unreachable.
    pub kind: u8,
}

/// One way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nexthop {
    /// The next router; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The link's index; `None` lets the kernel find it by the gateway.
    pub oif: Option<u32>,
}

impl Route {
    /// A unicast route in the main table, made by protocol "boot"; an IPv4 one without a gateway has the scope of
    /// the link, as the kernel demands.
    pub fn new(destination: IpNetwork, nexthops: Vec<Nexthop>) -> Self {
        let direct = nexthops.iter().all(|nexthop| nexthop.gateway.is_none());
        Self {
            destination,
            scope: if direct && destination.is_ipv4() { SCOPE_LINK } else { SCOPE_UNIVERSE },
            nexthops,
            table: MAIN_TABLE,
            priority: None,
            mtu: None,
            advmss: None,
            protocol: PROTOCOL_BOOT,
            onlink: false,
            source: None,
            kind: 1,
        }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.destination.ip())
    }
}

impl fmt::Display for Route {
    /// As `ip route` would write it, with link numbers for names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&network_text(self.destination))?;
        let several = self.nexthops.len() > 1;
        for nexthop in &self.nexthops {
            if several {
                f.write_str(" nexthop")?;
            }
            if let Some(gateway) = nexthop.gateway {
                write!(f, " via {gateway}")?;
            }
            if let Some(oif) = nexthop.oif {
                write!(f, " dev {oif}")?;
            }
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if let Some(priority) = self.priority {
            write!(f, " metric {priority}")?;
        }
        Ok(())
    }
}

/// Which routes to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this family.
    pub family: Family,
    /// In this table; `None` for all, the kernel's local one among them.
    pub table: Option<u32>,
    /// Out of this link.
    pub oif: Option<u32>,
    /// Made by this protocol.
    pub protocol: Option<u8>,
}

impl RouteFilter {
    /// The main table's routes of a family.
    pub fn main(family: Family) -> Self {
        Self { family, table: Some(MAIN_TABLE), oif: None, protocol: None }
    }

    /// Whether it lets the route through.
    pub fn admits(&self, route: &Route) -> bool {
        self.family == route.family()
            && self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.oif.is_none_or(|oif| route.nexthops.iter().any(|nexthop| nexthop.oif == Some(oif)))
    }
}

/// Makes a route; one with its destination, table and metric must not be there (EEXIST).
pub fn add(route: &Route) -> Request<'static> {
    Request::create("add route", TEXT, RouteNetlinkMessage::NewRoute(message(route)))
}

/// Makes a route in the place of the one with its destination, table and metric, if there is one.
pub fn replace(route: &Route) -> Request<'static> {
    Request::replace("replace route", TEXT, RouteNetlinkMessage::NewRoute(message(route)))
}

/// Removes the route.
pub fn remove(route: &Route) -> Request<'static> {
    Request::change("remove route", TEXT, RouteNetlinkMessage::DelRoute(message(route)))
}

/// A packet whose route is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Where it goes.
    pub destination: IpAddr,
    /// Where it comes from; `None`: the machine chooses.
    pub source: Option<IpAddr>,
    /// The link that it came in by; `None` for a packet of the machine's own.
    pub input: Option<u32>,
    /// The link that it must leave by.
    pub output: Option<u32>,
    /// Its mark (`fwmark`), which routing rules look at.
    pub mark: u32,
}

impl Lookup {
    /// A packet of the machine's own, to anywhere.
    pub fn to(destination: IpAddr) -> Self {
        Self { destination, source: None, input: None, output: None, mark: 0 }
    }

    fn message(&self) -> RouteMessage {
        let family = Family::of(self.destination);
        let bits = if family == Family::V4 { 32 } else { 128 };
        let mut message = RouteMessage::default();
        message.header.address_family = family.number();
        message.header.destination_prefix_length = bits;
        message.header.flags = RouteFlags::FibMatch;
        if family == Family::V4 {
            // Or the kernel calls every table the main one. It refuses this for IPv6, where it always tells the table.
            message.header.flags |= RouteFlags::LookupTable;
        }
        message.attributes.push(RouteAttribute::Destination(self.destination.into()));
        if let Some(source) = self.source {
            message.header.source_prefix_length = bits;
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        message.attributes.extend(self.input.map(RouteAttribute::Iif));
        message.attributes.extend(self.output.map(RouteAttribute::Oif));
        if self.mark != 0 {
            message.attributes.push(RouteAttribute::Mark(self.mark));
        }
        message
    }
}

impl Netlink {
    /// The route by which the kernel would send a packet at this moment, as it stands in its table; `None` if there is
    /// none. This machine's own addresses have routes of kind 2 (local), for IPv4 in the local table or, as long as
    /// there are no routing rules, in the main one.
    ///
    /// # Errors
    /// The kernel refuses such packets: by a route of kind prohibit (EACCES), blackhole (EINVAL) or throw (EAGAIN), or
    /// because one with that source cannot come in by that link.
    pub fn route_to(&mut self, lookup: &Lookup) -> Result<Option<Route>> {
        let message = RouteNetlinkMessage::GetRoute(lookup.message());
        let query = Request::query("look up route to", lookup.destination.to_string(), message);
        let found = self.one(&query, |body| match body {
            Body::Route(route) => Some(*route),
            _ => None,
        });
        found.or_else(|error| if error.is_unreachable() { Ok(None) } else { Err(error) })
    }
}

/// The text of the route that a request is about.
const TEXT: Object = Object::Payload(|payload| Route::parse(payload).map(|route| route.to_string()));

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let prefix = route.destination.prefix();
    message.header.address_family = route.family().number();
    message.header.destination_prefix_length = prefix;
    set_table(&mut message, route.table);
    message.header.protocol = route.protocol.into();
    message.header.scope = route.scope.into();
    message.header.kind = route.kind.into();
    if prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    match route.nexthops.as_slice() {
        [] => {}
        [nexthop] => {
            if route.onlink {
                message.header.flags = RouteFlags::Onlink;
            }
            message
                .attributes
                .extend(nexthop.gateway.map(|gateway| gateway_attribute(gateway, route.family())));
            message.attributes.extend(nexthop.oif.map(RouteAttribute::Oif));
        }
        several => {
            let nexthops = several.iter().map(|nexthop| multipath_nexthop(nexthop, route)).collect();
            message.attributes.push(RouteAttribute::MultiPath(nexthops));
        }
    }
    message
}

fn multipath_nexthop(nexthop: &Nexthop, route: &Route) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    if route.onlink {
        hop.flags = RouteNextHopFlags::Onlink;
    }
    hop.interface_index = nexthop.oif.unwrap_or(0);
    hop.attributes.extend(nexthop.gateway.map(|gateway| gateway_attribute(gateway, route.family())));
    hop
}

fn gateway_attribute(gateway: IpAddr, family: Family) -> RouteAttribute {
    match (gateway, family) {
        // An IPv4 destination behind an IPv6 router (RFC 5549).
        (IpAddr::V6(gateway), Family::V4) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        _ => RouteAttribute::Gateway(RouteAddress::from(gateway)),
    }
}

fn set_table(message: &mut RouteMessage, table: u32) {
    match u8::try_from(table) {
        Ok(small) => message.header.table = small,
        // The header's field has 8 bits; RT_TABLE_UNSPEC there makes the kernel look at the attribute.
        Err(_) => message.attributes.push(RouteAttribute::Table(table)),
    }
}

pub(crate) fn dump_message(filter: &RouteFilter) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = filter.family.number();
    set_table(&mut message, filter.table.unwrap_or(0));
    message.header.protocol = filter.protocol.unwrap_or(0).into();
    message.attributes.extend(filter.oif.map(RouteAttribute::Oif));
    message
}

impl Route {
    /// Decodes `struct rtmsg` and its attributes; `None` if it is too short or its destination makes no sense.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let any = match payload.first()? {
            2 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            10 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let prefix = *payload.get(1)?;
        let flags = u32_at(payload, 8)?;
        let mut address = any;
        let mut single = Nexthop::default();
        let mut several = Vec::new();
        let mut route = Self {
            destination: IpNetwork::from(any),
            nexthops: Vec::new(),
            table: u32::from(*payload.get(4)?),
            scope: *payload.get(6)?,
            priority: None,
            mtu: None,
            advmss: None,
            protocol: *payload.get(5)?,
            onlink: flags & u32::from(RTNH_F_ONLINK) != 0,
            source: None,
            kind: *payload.get(7)?,
        };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => address = ip(value)?,
                4 => single.oif = u32_at(value, 0),
                5 => single.gateway = ip(value),
                6 => route.priority = u32_at(value, 0),
                7 => route.source = ip(value),
                8 => route.parse_metrics(value),
                9 => several = multipath(value),
                15 => route.table = u32_at(value, 0).unwrap_or(route.table),
                18 => single.gateway = via(value),
                _ => {}
            }
        }
        route.destination = match (any, address) {
            (IpAddr::V4(_), IpAddr::V4(address)) => Ipv4Network::new(address, prefix).ok()?.into(),
            (IpAddr::V6(_), IpAddr::V6(address)) => Ipv6Network::new(address, prefix).ok()?.into(),
            _ => return None,
        };
        route.onlink |= several.iter().any(|(_, onlink)| *onlink);
        route.nexthops = several.into_iter().map(|(nexthop, _)| nexthop).collect();
        if route.nexthops.is_empty() && single != Nexthop::default() {
            route.nexthops.push(single);
        }
        Some(route)
    }

    fn parse_metrics(&mut self, metrics: &[u8]) {
        for (kind, value) in attributes(metrics) {
            match kind {
                2 => self.mtu = u32_at(value, 0),
                8 => self.advmss = u32_at(value, 0),
                _ => {}
            }
        }
    }
}

const RTNH_F_ONLINK: u8 = 4;

/// RTA_MULTIPATH: a series of `struct rtnexthop`, each with attributes of its own.
fn multipath(bytes: &[u8]) -> Vec<(Nexthop, bool)> {
    let mut rest = bytes;
    let mut nexthops = Vec::new();
    while let Some(length) = u16_at(rest, 0).map(usize::from) {
        let (Some(flags), Some(oif), Some(inner)) = (rest.get(2), u32_at(rest, 4), rest.get(8..length))
        else {
            break;
        };
        let mut nexthop = Nexthop { gateway: None, oif: Some(oif).filter(|oif| *oif != 0) };
        for (kind, value) in attributes(inner) {
            match kind {
                5 => nexthop.gateway = ip(value),
                18 => nexthop.gateway = via(value),
                _ => {}
            }
        }
        nexthops.push((nexthop, flags & RTNH_F_ONLINK != 0));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    nexthops
}

/// `struct rtvia`: a family, then the address.
fn via(value: &[u8]) -> Option<IpAddr> {
    ip(value.get(2..)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use netlink_packet_core::NetlinkSerializable;

    use super::*;

    /// The route's message without its netlink header.
    pub(crate) fn payload(route: &Route) -> Vec<u8> {
        let message = RouteNetlinkMessage::NewRoute(message(route));
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        payload
    }

    #[test]
    fn the_text_is_that_of_ip_route() {
        let nexthop = |gateway: &str| Nexthop { gateway: gateway.parse().ok(), oif: Some(2) };
        let mut route = Route::new("10.0.0.0/8".parse().expect("network"), vec![nexthop("10.1.0.1")]);
        assert_eq!(route.to_string(), "10.0.0.0/8 via 10.1.0.1 dev 2");
        route.nexthops.push(nexthop("10.1.0.2"));
        (route.table, route.priority) = (100, Some(5));
        assert_eq!(
            route.to_string(),
            "10.0.0.0/8 nexthop via 10.1.0.1 dev 2 nexthop via 10.1.0.2 dev 2 table 100 metric 5"
        );
        let default = Route::new("::/0".parse().expect("network"), vec![nexthop("fe80::1")]);
        assert_eq!(default.to_string(), "default via fe80::1 dev 2");
    }
}
