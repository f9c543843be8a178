//! What rules look at, as nftables expressions in the order in which the program `nft` writes them, so that
//! `nft list ruleset` shows a rule the way a person would have typed it. PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::nft::{CmpOp, Expr, Header, MetaKey, Reg, Verdict, ifname};

/// The first register. Keys of several parts lie in adjacent registers from here on.
pub const KEY: Reg = Reg(0);

/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;

/// An address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it is from.
    Source,
    /// Where it goes.
    Destination,
}

/// The packet is of that IP version: `meta nfproto ipv4`.
pub fn is_family(family: Family) -> [Expr; 2] {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    let number = match family {
        Family::V4 => 2_u8,
        Family::V6 => 10,
    };
    [Expr::meta(MetaKey::Nfproto, KEY), Expr::eq(KEY, [number])]
}

/// An address's bytes.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// How many registers an address takes.
pub fn width(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Loads an address of an IP packet.
pub fn load_address(family: Family, end: End, to: Reg) -> Expr {
    let (offset, len) = match (family, end) {
        (Family::V4, End::Source) => (12, 4),
        (Family::V4, End::Destination) => (16, 4),
        (Family::V6, End::Source) => (8, 16),
        (Family::V6, End::Destination) => (24, 16),
    };
    Expr::payload(Header::Network, offset, len, to)
}

/// `ip saddr 10.0.0.0/8`, with the check of the IP version.
pub fn address_in(end: End, network: IpNetwork) -> Vec<Expr> {
    let mut all = is_family(family_of(network.ip())).to_vec();
    all.extend(compare_network(end, network, CmpOp::Eq));
    all
}

/// Compares an address with a network, its IP version being known.
pub fn compare_network(end: End, network: IpNetwork, op: CmpOp) -> Vec<Expr> {
    let family = family_of(network.ip());
    let prefix = usize::from(network.prefix());
    let value = octets(network.network());
    let mut all = vec![load_address(family, end, KEY)];
    if prefix == 0 {
        // All of them: compared in the one byte that is the same for all, none.
        all.push(Expr::mask(KEY, vec![0; value.len()]));
    } else if prefix < value.len() * 8 {
        all.push(Expr::mask(KEY, octets(network.mask())));
    }
    all.push(Expr::Cmp { reg: KEY, op, value });
    all
}

/// The family of an address.
pub fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// `iifname "br0"` or `iifname != "br0"`.
pub fn link_is(key: MetaKey, op: CmpOp, name: &str) -> [Expr; 2] {
    [Expr::meta(key, KEY), Expr::Cmp { reg: KEY, op, value: ifname(name).to_vec() }]
}

/// `ct status dnat` and the like: one of the bits is set.
pub fn has_bits(load: Expr, bits: u32) -> [Expr; 3] {
    [load, Expr::mask(KEY, bits.to_ne_bytes()), Expr::ne(KEY, [0; 4])]
}

/// A transport header's destination port.
pub fn load_destination_port(to: Reg) -> Expr {
    Expr::payload(Header::Transport, 2, 2, to)
}

/// `drop`
pub fn drop() -> Expr {
    Expr::Verdict(Verdict::Drop)
}

/// `accept`
pub fn accept() -> Expr {
    Expr::Verdict(Verdict::Accept)
}
