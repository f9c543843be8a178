//! The fixed part of podwire's tables: what stands there whoever is attached. PURE.
//!
//! ```text
//! inet podwire                                    maps and sets, an element per pod or port
//!   raw-prerouting* what came by a link that must not bring 127.0.0.0/8   localnet
//!   prerouting ─┐   to one of this node's addresses → host-ports          ports4 ports6 address-ports4 …
//!   output ─────┘
//!   forward*        who may open a connection to a pod                    ingress4 ingress6 itself4 itself6
//!   postrouting     clients of host ports, then pods, get the node's      snat-tcp4 … clients4 masquerade4 …
//!                   address
//! bridge podwire, inet podwire-links                only where a pod's senders are checked
//!   prerouting      what a pod may send as its own                        checked macs addressed addresses4 …
//! ```
//! A packet costs a few lookups, however many pods there are, and no rule is added for a pod. But each base chain that a
//! packet passes costs it something whatever is in it (1 to 2.5 % of a datagram between nodes each), so those with * are
//! made with the first element that needs them, and go with the last.

mod bridge;
pub(super) mod links;

use podwire_kernel::Family;
use podwire_kernel::nft::{
    self, Base, CT_ESTABLISHED, CT_RELATED, CT_STATUS_DNAT, Chain, ChainKind, CtKey, DataType, Direction,
    Expr, FIB_DESTINATION, FIB_LOCAL, FibResult, Hook, MapData, MetaKey, NatKind, Policy, Reg, Rule, Set,
    TableRef, Verdict,
};

use bridge::bridge_skeleton;
use links::links_skeleton;

use super::chains::NamedChain;
use super::matches::{
    End, KEY, accept, address_in, drop, has_bits, is_family, load_address, load_destination_port, width,
};
use crate::Protocol;

/// The table for packets.
pub(super) const INET: TableRef<'static> = TableRef::new(nft::Family::Inet, "podwire");

/// The table for frames between a bridge's ports; made only once a pod's source addresses are checked.
pub(super) const BRIDGE: TableRef<'static> = TableRef::new(nft::Family::Bridge, "podwire");

/// The table for packets from links that are no bridge's ports; made as [`BRIDGE`].
pub(super) const LINKS: TableRef<'static> = TableRef::new(nft::Family::Inet, "podwire-links");

/// All of podwire's tables for pods.
pub(super) const TABLES: [TableRef<'static>; 3] = [INET, BRIDGE, LINKS];

/// Changes with every change of what this file and `chains` make. It stands in the tables' comments, and is part of
/// the names of the chains that are named after their content.
pub(super) const VERSION: u32 = 2;

/// A set or map of one of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetRef {
    pub(super) table: TableRef<'static>,
    pub(super) name: &'static str,
}

const fn inet(name: &'static str) -> SetRef {
    SetRef { table: INET, name }
}

const fn bridge(name: &'static str) -> SetRef {
    SetRef { table: BRIDGE, name }
}

/// Pod addresses whose packets to the outside get the node's address.
const MASQUERADE: [SetRef; 2] = [inet("masquerade4"), inet("masquerade6")];
/// Ports of all of the node's addresses, and where they lead.
const PORTS: [SetRef; 2] = [inet("ports4"), inet("ports6")];
/// Ports of one of the node's addresses.
const ADDRESS_PORTS: [SetRef; 2] = [inet("address-ports4"), inet("address-ports6")];
/// Ports of all of the node's addresses, for clients that meet conditions: the conditions.
const CONDITIONAL: [SetRef; 2] = [inet("conditional4"), inet("conditional6")];
/// The same for one of the node's addresses.
const ADDRESS_CONDITIONAL: [SetRef; 2] = [inet("address-conditional4"), inet("address-conditional6")];
/// Where the ports with conditions lead.
const CONDITIONED: [SetRef; 2] = [inet("conditioned4"), inet("conditioned6")];
/// The same for one of the node's addresses.
const ADDRESS_CONDITIONED: [SetRef; 2] = [inet("address-conditioned4"), inet("address-conditioned6")];
/// Host ports some of whose clients get the node's address, with the pods that they lead to.
/// A set for each protocol: `nft` knows a connection's port as a key only where the rule says the protocol.
const SNAT: [[SetRef; 2]; 3] = [
    [inet("snat-tcp4"), inet("snat-tcp6")],
    [inet("snat-udp4"), inet("snat-udp6")],
    [inet("snat-sctp4"), inet("snat-sctp6")],
];
/// Those pods, and which of the clients. With each verdict that comes into a table the kernel walks all verdicts of that
/// table to see that they make no loop, some 40 ns each; so there is one for a pod, not one for a port.
const CLIENTS_OF: [SetRef; 2] = [inet("clients4"), inet("clients6")];
/// Pods that not everybody may open connections to.
const INGRESS: [SetRef; 2] = [inet("ingress4"), inet("ingress6")];
/// Isolated pods, which may still reach themselves by their host ports.
const ITSELF: [SetRef; 2] = [inet("itself4"), inet("itself6")];
/// Bridges whose pods have an ingress policy.
pub(super) const GUARDED: SetRef = inet("guarded");
/// Links with route_localnet.
pub(super) const LOCALNET: SetRef = inet("localnet");
/// Bridge ports whose senders' MAC addresses are checked.
pub(super) const CHECKED: SetRef = bridge("checked");
/// The MAC addresses that they may send from.
pub(super) const MACS: SetRef = bridge("macs");
/// Those whose IP addresses are checked, too.
pub(super) const ADDRESSED: SetRef = bridge("addressed");
/// Ports, MAC and IPv4 addresses of which all three together are right: what most frames have, found in one look.
pub(super) const SENDERS4: SetRef = bridge("senders4");
/// The IP addresses that they may send from.
const ADDRESSES: [SetRef; 2] = [bridge("addresses4"), bridge("addresses6")];

macro_rules! by_family {
    ($($name:ident $set:ident;)*) => {
        $(pub(super) fn $name(family: Family) -> SetRef {
            let [v4, v6] = $set;
            match family {
                Family::V4 => v4,
                Family::V6 => v6,
            }
        })*
    };
}
by_family! {
    masquerade MASQUERADE;
    clients CLIENTS_OF;
    ingress INGRESS;
    itself ITSELF;
    addresses ADDRESSES;
}

/// The set of a protocol's host ports some of whose clients get the node's address.
pub(super) fn snat(protocol: Protocol, family: Family) -> SetRef {
    let [tcp, udp, sctp] = SNAT;
    let [v4, v6] = match protocol {
        Protocol::Tcp => tcp,
        Protocol::Udp => udp,
        Protocol::Sctp => sctp,
    };
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// The map of ports with or without the node's address in its key, with or without conditions.
pub(super) fn ports(family: Family, with_address: bool, conditioned: bool) -> SetRef {
    let [v4, v6] = match (with_address, conditioned) {
        (false, false) => PORTS,
        (true, false) => ADDRESS_PORTS,
        (false, true) => CONDITIONED,
        (true, true) => ADDRESS_CONDITIONED,
    };
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// The map from a port with conditions to their chain.
pub(super) fn conditions_of(family: Family, with_address: bool) -> SetRef {
    let [v4, v6] = if with_address { ADDRESS_CONDITIONAL } else { CONDITIONAL };
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// Whether several pods may have put one element there: then it is nobody's, and stays until none needs it.
pub(super) fn is_shared(set: &str) -> bool {
    set == GUARDED.name || set == LOCALNET.name
}

/// One of podwire's tables as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Skeleton {
    pub(super) table: TableRef<'static>,
    pub(super) sets: Vec<(SetRef, Set)>,
    pub(super) chains: Vec<(Chain, Vec<Rule>)>,
}

/// The tables' comment.
pub(super) fn table_comment() -> String {
    format!("podwire {VERSION}")
}

/// The skeleton of a table.
pub(super) fn skeleton(table: TableRef<'_>) -> Skeleton {
    match table {
        BRIDGE => bridge_skeleton(),
        LINKS => links_skeleton(),
        _ => inet_skeleton(),
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn address_type(family: Family) -> DataType {
    match family {
        Family::V4 => DataType::IPV4_ADDR,
        Family::V6 => DataType::IPV6_ADDR,
    }
}

fn set(set: SetRef, key: &[DataType], data: Option<MapData>) -> (SetRef, Set) {
    let key = match key {
        [only] => *only,
        parts => DataType::concat(parts),
    };
    (set, Set { name: set.name.to_owned(), key, data, ..Set::default() })
}

fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
    let base = Base { kind, hook, priority, policy: Policy::Accept, device: None };
    Chain { name: name.to_owned(), base: Some(base), comment: None }
}

fn plain(name: &str) -> Chain {
    Chain { name: name.to_owned(), base: None, comment: None }
}

const HOST_PORTS: &str = "host-ports";
const HOST_PORT_CLIENTS: &str = "host-port-clients";

/// Priorities of linux/netfilter_ipv4.h.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

fn inet_skeleton() -> Skeleton {
    const PROTO: DataType = DataType::INET_PROTO;
    const PORT: DataType = DataType::INET_SERVICE;
    let verdict = Some(MapData::Verdict);
    let mut sets = vec![set(GUARDED, &[DataType::IFNAME], None), set(LOCALNET, &[DataType::IFNAME], None)];
    for family in FAMILIES {
        let address = address_type(family);
        let target = Some(MapData::Value(DataType::concat(&[address, PORT])));
        for conditioned in [false, true] {
            sets.push(set(ports(family, false, conditioned), &[PROTO, PORT], target));
            sets.push(set(ports(family, true, conditioned), &[PROTO, address, PORT], target));
        }
        sets.push(set(conditions_of(family, false), &[PROTO, PORT], verdict));
        sets.push(set(conditions_of(family, true), &[PROTO, address, PORT], verdict));
        sets.extend(PROTOCOLS.map(|protocol| set(snat(protocol, family), &[address, PORT], None)));
        sets.push(set(clients(family), &[address], verdict));
        sets.push(set(masquerade(family), &[address], verdict));
        sets.push(set(ingress(family), &[address], verdict));
        sets.push(set(itself(family), &[address, address], None));
    }
    let to_local = || {
        let fib = Expr::Fib { flags: FIB_DESTINATION, result: FibResult::AddressType, to: KEY };
        let rule = vec![fib, Expr::eq(KEY, FIB_LOCAL.to_ne_bytes()), Expr::jump(HOST_PORTS)];
        vec![Rule::new(rule).comment("host ports are on the node's own addresses alone")]
    };
    let chains = vec![
        (plain(HOST_PORTS), host_ports()),
        (base("prerouting", ChainKind::Nat, Hook::Prerouting, DSTNAT), to_local()),
        (base("output", ChainKind::Nat, Hook::Output, DSTNAT), to_local()),
        (plain(HOST_PORT_CLIENTS), host_port_clients()),
        (base("postrouting", ChainKind::Nat, Hook::Postrouting, SRCNAT), postrouting()),
    ];
    Skeleton { table: INET, sets, chains }
}

/// The base chain that the elements of a set of [`INET`] need, where not all elements do.
pub(super) fn base_chain_for(set: &str) -> Option<NamedChain> {
    let of = |sets: [SetRef; 2]| sets.iter().any(|one| one.name == set);
    let (chain, rules) = if set == LOCALNET.name {
        (base("raw-prerouting", ChainKind::Filter, Hook::Prerouting, RAW), no_loopback_from_links())
    } else if set == GUARDED.name || of(INGRESS) || of(ITSELF) {
        (base("forward", ChainKind::Filter, Hook::Forward, FILTER), forward())
    } else {
        return None;
    };
    Some(NamedChain { name: chain.name, base: chain.base, rules })
}

/// Whether a chain is one of those.
pub(super) fn is_made_when_needed(chain: &str) -> bool {
    [LOCALNET, GUARDED].iter().filter_map(|set| base_chain_for(set.name)).any(|made| made.name == chain)
}

/// With route_localnet the kernel no longer refuses what comes by a link and is from or to 127.0.0.0/8, so this does:
/// services of the node that listen on the loopback address alone stay private.
fn no_loopback_from_links() -> Vec<Rule> {
    let loopback = ipnetwork::Ipv4Network::new(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
    let one = |end| {
        // The address first: no packet but those it is about costs a lookup.
        let mut rule: Vec<Expr> =
            loopback.iter().flat_map(|network| address_in(end, (*network).into())).collect();
        rule.extend([Expr::meta(MetaKey::Iifname, KEY), Expr::is_in(LOCALNET.name, KEY), drop()]);
        Rule::new(rule).comment("the loopback network is not on links")
    };
    vec![one(End::Destination), one(End::Source)]
}

/// The key of a port's maps, loaded from the packet.
fn load_port(family: Family, with_address: bool) -> Vec<Expr> {
    let mut load = vec![Expr::meta(MetaKey::L4proto, Reg(0))];
    let port = if with_address {
        load.push(load_address(family, End::Destination, Reg(1)));
        Reg(1 + width(family))
    } else {
        Reg(1)
    };
    load.push(load_destination_port(port));
    load
}

/// `dnat ip to meta l4proto . th dport map @ports4`
pub(super) fn translate(family: Family, with_address: bool, conditioned: bool) -> Vec<Expr> {
    let mut rule = load_port(family, with_address);
    rule.push(Expr::map(ports(family, with_address, conditioned).name, Reg(0), Reg(0)));
    rule.push(Expr::Nat {
        kind: NatKind::Destination,
        family: match family {
            Family::V4 => nft::Family::Ip,
            Family::V6 => nft::Family::Ip6,
        },
        address: Some(Reg(0)),
        port: Some(Reg(width(family))),
        flags: 0,
    });
    rule
}

/// One address before all addresses, and for each of both: without conditions, then with.
fn host_ports() -> Vec<Rule> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        for with_address in [true, false] {
            if !with_address && family == Family::V6 {
                rules.push(not_from_loopback6());
            }
            let is_family = is_family(family).to_vec();
            rules.push(Rule::new([is_family.clone(), translate(family, with_address, false)].concat()));
            let mut conditions = [is_family, load_port(family, with_address)].concat();
            conditions.push(Expr::verdict_map(conditions_of(family, with_address).name, KEY));
            rules.push(Rule::new(conditions));
        }
    }
    rules
}

/// IPv6 has no route_localnet: the pod's answers to a client at ::1 find no way back, and with bridge-nf-call-ip6tables
/// there is none at all. Refused at once, clients go on to 127.0.0.1; with a translation they would wait.
fn not_from_loopback6() -> Rule {
    let mut rule = is_family(Family::V6).to_vec();
    rule.push(load_address(Family::V6, End::Destination, KEY));
    rule.push(Expr::eq(KEY, std::net::Ipv6Addr::LOCALHOST.octets()));
    rule.push(Expr::Verdict(Verdict::Return));
    Rule::new(rule).comment("answers to ::1 find no way back")
}

fn forward() -> Vec<Rule> {
    let state = Expr::Ct { key: CtKey::State, direction: None, to: KEY };
    let known = [has_bits(state, CT_ESTABLISHED | CT_RELATED).to_vec(), vec![accept()]].concat();
    let mut rules = vec![Rule::new(known).comment("answers pass")];
    for family in FAMILIES {
        let mut rule = is_family(family).to_vec();
        rule.push(load_address(family, End::Source, Reg(0)));
        rule.push(load_address(family, End::Destination, Reg(width(family))));
        rule.push(Expr::is_in(itself(family).name, Reg(0)));
        rule.push(accept());
        rules.push(Rule::new(rule));
    }
    for family in FAMILIES {
        rules.push(verdict_by_address(family, End::Destination, ingress(family)));
    }
    rules
}

fn verdict_by_address(family: Family, end: End, map: SetRef) -> Rule {
    let mut rule = is_family(family).to_vec();
    rule.push(load_address(family, end, KEY));
    rule.push(Expr::verdict_map(map.name, KEY));
    Rule::new(rule)
}

fn postrouting() -> Vec<Rule> {
    let status = Expr::Ct { key: CtKey::Status, direction: None, to: KEY };
    let translated =
        [has_bits(status, CT_STATUS_DNAT).to_vec(), vec![Expr::jump(HOST_PORT_CLIENTS)]].concat();
    let mut rules = vec![Rule::new(translated)];
    rules.extend(FAMILIES.map(|family| verdict_by_address(family, End::Source, masquerade(family))));
    rules
}

/// By the port that the client asked for: another's translation to the same pod (kube-proxy's) is not ours to change.
/// The rules with verdicts are few, because the kernel walks their maps once for each rule.
fn host_port_clients() -> Vec<Rule> {
    let is_not_ours = |family, protocol: Protocol| {
        let mut rule = is_family(family).to_vec();
        rule.extend([Expr::meta(MetaKey::L4proto, KEY), Expr::eq(KEY, [protocol.number()])]);
        rule.push(load_address(family, End::Destination, Reg(0)));
        let asked = Expr::Ct {
            key: CtKey::ProtoDestination,
            direction: Some(Direction::Original),
            to: Reg(width(family)),
        };
        rule.push(asked);
        rule.push(Expr::not_in(snat(protocol, family).name, KEY));
        rule.push(Expr::Verdict(Verdict::Return));
        Rule::new(rule)
    };
    let one = |family| {
        let protocols = PROTOCOLS.map(|protocol| is_not_ours(family, protocol));
        protocols.into_iter().chain([verdict_by_address(family, End::Destination, clients(family))])
    };
    FAMILIES.into_iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests;
