//! Table `bridge podwire`: a pod sends only what is its own. PURE.
//!
//! It sees frames before the bridge learns from them and before br_netfilter makes packets of them. Ports are told by
//! name: this hook knows nothing of the bridge without a kernel option that distributions lack (nft's `ibrname`).

use podwire_kernel::Family;
use podwire_kernel::nft::{ChainKind, DataType, Expr, Header, Hook, MetaKey, Reg, Rule, Verdict};

use super::{ADDRESSED, BRIDGE, CHECKED, MACS, SENDERS4, SetRef, Skeleton, addresses, base, plain, set};
use crate::rules::matches::{End, ICMPV6, KEY, UDP, accept, drop, load_address};

/// Before br_netfilter, whose priority is 0 (NF_BR_PRI_BRNF).
const FIRST: i32 = -300;

/// The register after a link's name.
const AFTER_NAME: Reg = Reg(4);

/// The register after a link's name and a MAC address, which takes two.
const AFTER_MAC: Reg = Reg(6);

const ARP: &str = "arp-sender";
const IPV4: &str = "ipv4-sender";
const IPV6: &str = "ipv6-sender";
const IPV6_OWN: &str = "ipv6-source";
const ADVERTISEMENT: &str = "neighbour-advertisement";
const ADVERTISED: &str = "advertised-address";

/// Ethernet's numbers of protocols.
const ETHER_IPV4: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV6: u16 = 0x86dd;

/// ICMPv6 types (RFC 4861, 2710, 3810).
const MLD_REPORT: u8 = 131;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

pub(super) fn bridge_skeleton() -> Skeleton {
    const PORT: DataType = DataType::IFNAME;
    let sets = vec![
        set(CHECKED, &[PORT], None),
        set(MACS, &[PORT, DataType::ETHER_ADDR], None),
        set(ADDRESSED, &[PORT], None),
        set(SENDERS4, &[PORT, DataType::ETHER_ADDR, DataType::IPV4_ADDR], None),
        set(addresses(Family::V4), &[PORT, DataType::IPV4_ADDR], None),
        set(addresses(Family::V6), &[PORT, DataType::IPV6_ADDR], None),
    ];
    let chains = vec![
        (plain(IPV6_OWN), ipv6_source()),
        (plain(ADVERTISED), advertised()),
        (plain(ADVERTISEMENT), advertisement()),
        (plain(IPV6), ipv6()),
        (plain(IPV4), ipv4()),
        (plain(ARP), arp()),
        (base("prerouting", ChainKind::Filter, Hook::Prerouting, FIRST), prerouting()),
    ];
    Skeleton { table: BRIDGE, sets, chains }
}

fn rule(expressions: Vec<Expr>) -> Rule {
    Rule::new(expressions)
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

fn port() -> Expr {
    Expr::meta(MetaKey::Iifname, KEY)
}

/// A rule about frames of that protocol. They are known to be of it already; but `nft` shows bytes as an address only
/// where the rule itself says so.
fn of(ether_type: u16, expressions: Vec<Expr>) -> Rule {
    let is_it = [Expr::meta(MetaKey::Protocol, KEY), Expr::eq(KEY, ether_type.to_be_bytes())];
    rule(is_it.into_iter().chain(expressions).collect())
}

/// A rule of that protocol about the port and these bytes of the frame, together as a key.
fn with_port(ether_type: u16, bytes: Expr, then: [Expr; 2]) -> Rule {
    of(ether_type, [port(), bytes].into_iter().chain(then).collect())
}

fn is_in(set: SetRef) -> Expr {
    Expr::is_in(set.name, KEY)
}

fn not_in(set: SetRef) -> Expr {
    Expr::not_in(set.name, KEY)
}

/// The packet is ICMPv6 of a type from one to another.
fn icmpv6(from: u8, to: u8) -> Vec<Expr> {
    let mut all = vec![Expr::meta(MetaKey::L4proto, KEY), Expr::eq(KEY, [ICMPV6])];
    all.push(Expr::payload(Header::Transport, 0, 1, KEY));
    all.push(match from == to {
        true => Expr::eq(KEY, [from]),
        false => Expr::Range { reg: KEY, invert: false, from: vec![from], to: vec![to] },
    });
    all
}

fn prerouting() -> Vec<Rule> {
    let ether_type = |number: u16, chain| {
        // From the frame, not from the kernel's idea of it: a frame with a VLAN tag has another type here.
        let load = Expr::payload(Header::Link, 12, 2, KEY);
        rule(vec![load, Expr::eq(KEY, number.to_be_bytes()), goto(chain)])
    };
    let source_mac = Expr::payload(Header::Link, 6, 6, AFTER_NAME);
    let own_ipv4 = vec![
        Expr::payload(Header::Link, 12, 2, KEY),
        Expr::eq(KEY, ETHER_IPV4.to_be_bytes()),
        port(),
        source_mac.clone(),
        load_address(Family::V4, End::Source, AFTER_MAC),
        is_in(SENDERS4),
        accept(),
    ];
    vec![
        rule(own_ipv4).comment("what the rules below find step by step"),
        rule(vec![port(), not_in(CHECKED), accept()]),
        rule(vec![port(), source_mac, not_in(MACS), drop()]).comment("another's MAC address"),
        rule(vec![port(), not_in(ADDRESSED), accept()]),
        ether_type(ETHER_IPV4, IPV4),
        ether_type(ETHER_IPV6, IPV6),
        ether_type(ETHER_ARP, ARP),
        rule(vec![drop()]).comment("neither IP nor ARP, or with a VLAN tag"),
    ]
}

fn arp() -> Vec<Rule> {
    let sender_mac = || Expr::payload(Header::Network, 8, 6, AFTER_NAME);
    let sender = |to| Expr::payload(Header::Network, 14, 4, to);
    vec![
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        rule(vec![Expr::payload(Header::Network, 0, 6, KEY), Expr::ne(KEY, [0, 1, 8, 0, 6, 4]), drop()]),
        with_port(ETHER_ARP, sender_mac(), [not_in(MACS), drop()]).comment("another's MAC address"),
        of(ETHER_ARP, vec![sender(KEY), Expr::eq(KEY, [0; 4]), accept()]).comment("a probe"),
        with_port(ETHER_ARP, sender(AFTER_NAME), [is_in(addresses(Family::V4)), accept()]),
        rule(vec![drop()]).comment("another's IPv4 address"),
    ]
}

fn ipv4() -> Vec<Rule> {
    let source = |to| load_address(Family::V4, End::Source, to);
    let port = |offset, number: u16| {
        [Expr::payload(Header::Transport, offset, 2, KEY), Expr::eq(KEY, number.to_be_bytes())]
    };
    let mut dhcp = vec![source(KEY), Expr::eq(KEY, [0; 4])];
    dhcp.extend([Expr::meta(MetaKey::L4proto, KEY), Expr::eq(KEY, [UDP])]);
    dhcp.extend([port(0, 68), port(2, 67)].concat());
    dhcp.push(accept());
    vec![
        with_port(ETHER_IPV4, source(AFTER_NAME), [is_in(addresses(Family::V4)), accept()]),
        of(ETHER_IPV4, dhcp).comment("asks for an address"),
        rule(vec![drop()]).comment("another's IPv4 address"),
    ]
}

fn ipv6() -> Vec<Rule> {
    let ending = |kind, end| [icmpv6(kind, kind), vec![end]].concat();
    vec![
        rule(ending(ROUTER_ADVERTISEMENT, drop())).comment("pods are no routers"),
        rule(ending(REDIRECT, drop())).comment("pods are no routers"),
        rule(ending(NEIGHBOUR_ADVERTISEMENT, goto(ADVERTISEMENT))),
        rule(vec![goto(IPV6_OWN)]),
    ]
}

/// `fe80::/10`, of the 16 bytes that a register then has.
fn is_link_local(load: Expr) -> Vec<Expr> {
    let mut mask = [0; 16];
    let mut network = [0; 16];
    [mask[0], mask[1]] = [0xff, 0xc0];
    [network[0], network[1]] = [0xfe, 0x80];
    vec![load, Expr::mask(KEY, mask), Expr::eq(KEY, network)]
}

fn ipv6_source() -> Vec<Rule> {
    let source = |to| load_address(Family::V6, End::Source, to);
    let unspecified = |from, to| {
        let mut all = vec![source(KEY), Expr::eq(KEY, [0; 16])];
        all.extend(icmpv6(from, to));
        all.push(accept());
        of(ETHER_IPV6, all)
    };
    vec![
        with_port(ETHER_IPV6, source(AFTER_NAME), [is_in(addresses(Family::V6)), accept()]),
        of(ETHER_IPV6, [is_link_local(source(KEY)), vec![accept()]].concat()),
        // Multicast listener reports and router solicitations.
        unspecified(MLD_REPORT, ROUTER_SOLICITATION),
        unspecified(NEIGHBOUR_SOLICITATION, NEIGHBOUR_SOLICITATION).comment("duplicate address detection"),
        unspecified(MLD2_REPORT, MLD2_REPORT),
        rule(vec![drop()]).comment("another's IPv6 address"),
    ]
}

/// An advertisement's options may come in any order, and only one of them is looked at. So it has either none or the
/// one that matters, as the kernel sends them.
fn advertisement() -> Vec<Rule> {
    let length = |bytes: u16| [Expr::payload(Header::Network, 4, 2, KEY), Expr::eq(KEY, bytes.to_be_bytes())];
    let mut with_option = length(32).to_vec();
    // Type 2, the target's link-layer address, of one unit of 8 bytes.
    with_option.extend([Expr::payload(Header::Transport, 24, 2, KEY), Expr::eq(KEY, [2, 1])]);
    with_option.extend([port(), Expr::payload(Header::Transport, 26, 6, AFTER_NAME)]);
    with_option.extend([is_in(MACS), goto(ADVERTISED)]);
    let next_header = Expr::payload(Header::Network, 6, 1, KEY);
    vec![
        of(ETHER_IPV6, vec![next_header, Expr::ne(KEY, [ICMPV6]), drop()]),
        of(ETHER_IPV6, with_option),
        of(ETHER_IPV6, [length(24).to_vec(), vec![goto(ADVERTISED)]].concat()),
        rule(vec![drop()]).comment("another's MAC address"),
    ]
}

fn advertised() -> Vec<Rule> {
    let target = |to| Expr::payload(Header::Transport, 8, 16, to);
    vec![
        with_port(ETHER_IPV6, target(AFTER_NAME), [is_in(addresses(Family::V6)), goto(IPV6_OWN)]),
        of(ETHER_IPV6, [is_link_local(target(KEY)), vec![goto(IPV6_OWN)]].concat()),
        rule(vec![drop()]).comment("another's IPv6 address"),
    ]
}
