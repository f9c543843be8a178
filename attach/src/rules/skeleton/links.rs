//! Table `inet podwire-links`: what pods send whose links are no ports of a bridge (another plugin's point-to-point
//! links). PURE.
//!
//! Only packets that are routed come by here. That is enough: nobody else is on such a link, and what its pod tells in
//! ARP or neighbour discovery holds for that link alone.

use podwire_kernel::Family;
use podwire_kernel::nft::{ChainKind, DataType, Expr, Header, Hook, MetaKey, Reg, Rule, Verdict};

use super::{LINKS, RAW, SetRef, Skeleton, base, set};
use crate::rules::matches::{End, KEY, UDP, accept, drop, is_family, load_address};

/// Pods' links whose senders are checked.
pub(in crate::rules) const CHECKED: SetRef = SetRef { table: LINKS, name: "checked" };
/// The MAC addresses that they may send from.
pub(in crate::rules) const MACS: SetRef = SetRef { table: LINKS, name: "macs" };
/// Those whose IP addresses are checked, too.
pub(in crate::rules) const ADDRESSED: SetRef = SetRef { table: LINKS, name: "addressed" };
const ADDRESSES: [SetRef; 2] =
    [SetRef { table: LINKS, name: "addresses4" }, SetRef { table: LINKS, name: "addresses6" }];

/// The IP addresses that they may send from.
pub(in crate::rules) fn addresses(family: Family) -> SetRef {
    let [v4, v6] = ADDRESSES;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// The register after a link's name.
const AFTER_NAME: Reg = Reg(4);

pub(super) fn links_skeleton() -> Skeleton {
    const LINK: DataType = DataType::IFNAME;
    let sets = vec![
        set(CHECKED, &[LINK], None),
        set(MACS, &[LINK, DataType::ETHER_ADDR], None),
        set(ADDRESSED, &[LINK], None),
        set(addresses(Family::V4), &[LINK, DataType::IPV4_ADDR], None),
        set(addresses(Family::V6), &[LINK, DataType::IPV6_ADDR], None),
    ];
    let chains = vec![(base("prerouting", ChainKind::Filter, Hook::Prerouting, RAW), prerouting())];
    Skeleton { table: LINKS, sets, chains }
}

fn prerouting() -> Vec<Rule> {
    let link = || Expr::meta(MetaKey::Iifname, KEY);
    let rule = |parts: &[&[Expr]]| Rule::new(parts.concat());
    let mac = Expr::payload(Header::Link, 6, 6, AFTER_NAME);
    let own = |family| {
        let is_own =
            [link(), load_address(family, End::Source, AFTER_NAME), Expr::is_in(addresses(family).name, KEY)];
        rule(&[&is_family(family), &is_own, &[accept()]])
    };
    let dhcp = [
        load_address(Family::V4, End::Source, KEY),
        Expr::eq(KEY, [0; 4]),
        Expr::meta(MetaKey::L4proto, KEY),
        Expr::eq(KEY, [UDP]),
        Expr::payload(Header::Transport, 0, 4, KEY),
        Expr::eq(KEY, [0, 68, 0, 67]),
    ];
    // Neither is forwarded: fe80::/10, and :: while an address is looked for.
    let on_link = |prefix: [u8; 16], mask: [u8; 16]| {
        [load_address(Family::V6, End::Source, KEY), Expr::mask(KEY, mask), Expr::eq(KEY, prefix)]
    };
    let first = |a, b| {
        let mut bytes = [0; 16];
        [bytes[0], bytes[1]] = [a, b];
        bytes
    };
    vec![
        rule(&[&[link(), Expr::not_in(CHECKED.name, KEY), accept()]]),
        rule(&[&[link(), mac, Expr::not_in(MACS.name, KEY), drop()]]).comment("another's MAC address"),
        rule(&[&[link(), Expr::not_in(ADDRESSED.name, KEY), accept()]]),
        own(Family::V4),
        own(Family::V6),
        rule(&[&is_family(Family::V4), &dhcp, &[accept()]]).comment("asks for an address"),
        rule(&[&is_family(Family::V6), &on_link(first(0xfe, 0x80), first(0xff, 0xc0)), &[accept()]]),
        rule(&[&is_family(Family::V6), &on_link([0; 16], [0xff; 16]), &[Expr::Verdict(Verdict::Accept)]])
            .comment("duplicate address detection"),
        rule(&[&[drop()]]).comment("another's address"),
    ]
}
