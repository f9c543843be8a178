//! Which link and which addresses of its own this node reaches others by, as the kernel shows them. PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::addr::Address;
use podwire_kernel::link::Link;
use podwire_kernel::route::{PROTOCOL_RA, Route};

use crate::desired::{UnderlayFacts, UnderlayLink};

/// What an administrator says about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Underlay {
    /// The link's name; `None`: that of each family's default route.
    pub interface: Option<String>,
    /// This node's addresses, one for each family at most; a family without one has an address of its link.
    pub addresses: Vec<IpAddr>,
    /// The same by the store's word, for a node whose administrator says neither a link nor an address of that family. One
    /// that no link has is where others find this node (NAT), and says nothing about its links.
    pub stated: Vec<IpAddr>,
}

/// RTPROT_KERNEL: made by the kernel with an address.
const PROTOCOL_KERNEL: u8 = 2;

/// RTN_UNICAST.
const UNICAST: u8 = 1;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The facts. `before` is what they were: of several addresses that would do, the one that others know is kept.
///
/// Addresses that cannot be used by other machines are left out (loopback, link-local), also those that the kernel still
/// checks or has found taken. A link that is down has no addresses to speak of. `links` are without our own devices.
pub fn facts(
    wanted: &Underlay,
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
    before: &UnderlayFacts,
) -> UnderlayFacts {
    let here = Here { links, addresses, routes };
    let by_default = FAMILIES.map(|family| here.default_link(family));
    let links = FAMILIES.into_iter().filter_map(|family| {
        let fixed = wanted.addresses.iter().copied().find(|ip| Family::of(*ip) == family);
        if let Some(ip) = fixed {
            return here.link_with(ip, wanted.interface.as_deref());
        }
        let stated =
            wanted.stated.iter().filter(|ip| Family::of(**ip) == family && wanted.interface.is_none());
        if let Some(link) = stated.copied().find_map(|ip| here.link_with(ip, None)) {
            return Some(link);
        }
        let link = match &wanted.interface {
            Some(name) => here.named(name),
            // A family without a default route of its own may still have an address on the other's link.
            None => {
                let [v4, v6] = by_default;
                if family == Family::V4 { v4.or(v6) } else { v6.or(v4) }
            }
        }?;
        let known = before.link(family).map(|link| link.address);
        let address = here.best_address(link, family, known)?;
        Some(here.underlay_link(link, address))
    });
    UnderlayFacts { links: links.collect() }
}

struct Here<'k> {
    links: &'k [Link],
    addresses: &'k [Address],
    routes: &'k [Route],
}

impl<'k> Here<'k> {
    fn named(&self, name: &str) -> Option<&'k Link> {
        self.links.iter().find(|link| link.name == name && link.flags.up)
    }

    fn indexed(&self, index: u32) -> Option<&'k Link> {
        self.links.iter().find(|link| link.index == index && link.flags.up)
    }

    fn default_link(&self, family: Family) -> Option<&'k Link> {
        let is_default = |route: &&Route| {
            route.family() == family && route.destination.prefix() == 0 && route.kind == UNICAST
        };
        let mut defaults: Vec<&Route> = self.routes.iter().filter(is_default).collect();
        defaults.sort_by_key(|route| route.priority.unwrap_or(0));
        let mut links = defaults.iter().flat_map(|route| &route.nexthops).filter_map(|nexthop| nexthop.oif);
        links.find_map(|index| self.indexed(index))
    }

    fn link_with(&self, ip: IpAddr, interface: Option<&str>) -> Option<UnderlayLink> {
        let has = self.addresses.iter().filter(|address| address.address.ip() == ip && is_usable(address));
        let link = has
            .filter_map(|address| self.indexed(address.ifindex))
            .find(|link| interface.is_none_or(|name| name == link.name))?;
        Some(self.underlay_link(link, ip))
    }

    fn best_address(&self, link: &Link, family: Family, known: Option<IpAddr>) -> Option<IpAddr> {
        let candidates = self.addresses.iter().filter(|address| {
            address.ifindex == link.index && Family::of(address.address.ip()) == family && is_usable(address)
        });
        // Those with a lifetime may be temporary ones (RFC 8981), which others should not rely on. Else the first is
        // the link's own: the kernel has them in the order in which they were set.
        let best = candidates.min_by_key(|address| {
            let ip = address.address.ip();
            (Some(ip) != known, !address.flags.permanent, is_unique_local(ip))
        });
        best.map(|address| address.address.ip())
    }

    fn underlay_link(&self, link: &Link, address: IpAddr) -> UnderlayLink {
        let family = Family::of(address);
        let of_addresses = self
            .addresses
            .iter()
            .filter(|a| a.ifindex == link.index)
            .filter_map(|a| IpNetwork::new(a.address.network(), a.address.prefix()).ok());
        // What a router's advertisement says is on the link, and an address's own network where it has another prefix
        // length than the address.
        let of_routes = self.routes.iter().filter(|route| {
            let by = [PROTOCOL_KERNEL, PROTOCOL_RA].contains(&route.protocol) && route.kind == UNICAST;
            let on_link = matches!(route.nexthops.as_slice(), [hop] if hop.gateway.is_none() && hop.oif == Some(link.index));
            by && on_link
        });
        let mut networks: Vec<IpNetwork> =
            of_addresses.chain(of_routes.map(|route| route.destination)).collect();
        networks.retain(|network| {
            let whole = if network.is_ipv4() { 32 } else { 128 };
            let ip = network.ip();
            Family::of(ip) == family
                && (1..whole).contains(&network.prefix())
                && !ip.is_multicast()
                && !is_link_local(ip)
        });
        networks.sort();
        networks.dedup();
        UnderlayLink { index: link.index, name: link.name.clone(), mtu: link.mtu, address, networks }
    }
}

fn is_usable(address: &Address) -> bool {
    let ip = address.address.ip();
    // RT_SCOPE_UNIVERSE, or site.
    address.scope < 253
        && !address.flags.tentative
        && !address.flags.dadfailed
        && !ip.is_loopback()
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !is_link_local(ip)
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_unique_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unique_local())
}

#[cfg(test)]
mod tests;
