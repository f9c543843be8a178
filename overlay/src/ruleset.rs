//! What the packet filter does with one packet, told without sending it. PURE.
//!
//! A small interpreter of nftables: it knows the packet's headers, the links it crosses and that it is the first of its
//! connection. What it does not know, such as a rate limit or a match of xtables that it cannot read, may be either way;
//! so the answer is "passes", "is dropped here", or "may be dropped here". Ends of connection tracking, marks that rules
//! set and translated addresses are beyond it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use podwire_kernel::nft::{
    CT_NEW, Chain, CmpOp, CtKey, Data, Element, Expr, FIB_DESTINATION, FIB_LOCAL, Family, FibResult, Found,
    FoundRule, Header, Hook, MetaKey, Policy, Reg, Set, Then, Verdict,
};

mod describe;
mod matches;
mod registers;

use registers::Registers;

/// The node's nftables, as they were read.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    /// All chains.
    pub chains: Vec<Found<Chain>>,
    /// All rules, those of a chain in their order.
    pub rules: Vec<FoundRule>,
    /// All sets and maps with their elements. One whose elements were not read is left out.
    pub sets: Vec<(Found<Set>, Vec<Element>)>,
}

/// A packet: the first one of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The link it comes by, index and name; `None` where this machine sends it.
    pub iif: Option<(u32, String)>,
    /// The link it leaves by; `None` where this machine receives it, or before it is routed.
    pub oif: Option<(u32, String)>,
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Whether the destination is this machine's.
    pub is_local: bool,
    /// From the network layer's header on.
    pub bytes: Vec<u8>,
    /// Where the transport layer's header begins in them.
    pub transport_at: usize,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// An echo request.
    #[default]
    Ping,
    /// A TCP connection to that port.
    Tcp(u16),
    /// A datagram to that port.
    Udp(u16),
}

impl Packet {
    /// The first packet of an exchange between two addresses; empty bytes if they are not of one family.
    pub fn new(source: IpAddr, destination: IpAddr, content: Content) -> Self {
        use etherparse::PacketBuilder;
        /// A port as clients have it.
        const CLIENT: u16 = 40000;
        const HOPS: u8 = 64;
        let mut bytes = Vec::new();
        let transport_at = if source.is_ipv4() { 20 } else { 40 };
        // Writing into a vector does not fail.
        let _ = match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let builder = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS);
                match content {
                    Content::Ping => builder.icmpv4_echo_request(1, 1).write(&mut bytes, &[]),
                    Content::Tcp(port) => builder.tcp(CLIENT, port, 1, 64000).syn().write(&mut bytes, &[]),
                    Content::Udp(port) => builder.udp(CLIENT, port).write(&mut bytes, &[]),
                }
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let builder = PacketBuilder::ipv6(from.octets(), to.octets(), HOPS);
                match content {
                    Content::Ping => builder.icmpv6_echo_request(1, 1).write(&mut bytes, &[]),
                    Content::Tcp(port) => builder.tcp(CLIENT, port, 1, 64000).syn().write(&mut bytes, &[]),
                    Content::Udp(port) => builder.udp(CLIENT, port).write(&mut bytes, &[]),
                }
            }
            _ => Ok(()),
        };
        Self { iif: None, oif: None, source, destination, is_local: false, bytes, transport_at }
    }

    /// Coming by that link.
    #[must_use]
    pub fn by(self, index: u32, name: &str) -> Self {
        Self { iif: Some((index, name.to_owned())), ..self }
    }

    /// Leaving by that link.
    #[must_use]
    pub fn out(self, index: u32, name: &str) -> Self {
        Self { oif: Some((index, name.to_owned())), ..self }
    }

    /// For this machine itself.
    #[must_use]
    pub fn local(self) -> Self {
        Self { is_local: true, ..self }
    }
}

/// Where a packet is dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The table's family and name: `ip filter`.
    pub table: String,
    /// The base chain that the packet came to it by.
    pub base: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// The rule, roughly as `nft` writes it.
    pub rule: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables table {}, chain {}", self.table, self.chain)?;
        match self.handle {
            Some(handle) => write!(f, ", rule {handle}: {}", self.rule),
            None => f.write_str(", its policy drop"),
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// No chain drops it.
    Passes,
    /// It is dropped, for certain.
    Dropped(Place),
    /// It may be dropped at these places: something of their rules cannot be told from here.
    MayBeDropped(Vec<Place>),
}

/// What a chain may do with the packet. Several at once where a rule's match cannot be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Outcomes {
    accepts: bool,
    goes_on: bool,
    drops: Vec<Place>,
}

impl Ruleset {
    /// What the base chains of one hook do with the packet. `bridged`: those of the bridge family instead of the network
    /// layer's.
    pub fn fate(&self, hook: Hook, packet: &Packet, bridged: bool) -> Fate {
        let of_packet = |family: Family| match family {
            Family::Inet => !bridged,
            Family::Ip => !bridged && packet.source.is_ipv4(),
            Family::Ip6 => !bridged && packet.source.is_ipv6(),
            Family::Bridge => bridged,
            Family::Netdev | Family::Other(_) => false,
        };
        let mut bases: Vec<_> = self
            .chains
            .iter()
            .filter(|chain| of_packet(chain.family))
            .filter_map(|chain| chain.object.base.as_ref().map(|base| (base, chain)))
            .filter(|(base, _)| base.hook == hook)
            .collect();
        bases.sort_by_key(|(base, _)| base.priority);
        let mut perhaps = Vec::new();
        for (base, chain) in bases {
            let walk = Walk {
                ruleset: self,
                packet,
                hook,
                table: (chain.family, &chain.table),
                rules: self.rules_of(chain.family, &chain.table),
                base: &chain.object.name,
                known: RefCell::default(),
            };
            let mut outcomes = walk.chain(&chain.object.name, 0);
            if outcomes.goes_on {
                match base.policy {
                    Policy::Accept => outcomes.accepts = true,
                    Policy::Drop => outcomes.drops.push(walk.place(&chain.object.name, None, String::new())),
                }
            }
            match outcomes.drops.first() {
                Some(first) if !outcomes.accepts && perhaps.is_empty() => {
                    return Fate::Dropped(first.clone());
                }
                _ => perhaps.append(&mut outcomes.drops),
            }
        }
        perhaps.sort();
        perhaps.dedup();
        if perhaps.is_empty() { Fate::Passes } else { Fate::MayBeDropped(perhaps) }
    }

    /// The rules of a table by chain. A service proxy has thousands of chains.
    fn rules_of(&self, family: Family, table: &str) -> BTreeMap<&str, Vec<&FoundRule>> {
        let mut by_chain: BTreeMap<&str, Vec<&FoundRule>> = BTreeMap::new();
        for rule in self.rules.iter().filter(|rule| rule.family == family && rule.table == table) {
            by_chain.entry(&rule.chain).or_default().push(rule);
        }
        by_chain
    }

    fn set(&self, family: Family, table: &str, name: &str) -> Option<&(Found<Set>, Vec<Element>)> {
        self.sets
            .iter()
            .find(|(set, _)| set.family == family && set.table == table && set.object.name == name)
    }
}

/// How deep chains may call chains; the kernel's own limit (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// One packet on its way through one base chain.
struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    hook: Hook,
    table: (Family, &'a str),
    rules: BTreeMap<&'a str, Vec<&'a FoundRule>>,
    base: &'a str,
    /// Chains that were walked: thousands of rules of a service proxy jump to a few.
    known: RefCell<BTreeMap<String, Outcomes>>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    /// It cannot be told from here.
    Perhaps,
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Walk<'_> {
    fn chain(&self, name: &str, depth: usize) -> Outcomes {
        if let Some(known) = self.known.borrow().get(name) {
            return known.clone();
        }
        if depth > DEPTH {
            // The kernel would not have loaded it.
            return Outcomes { goes_on: true, ..Outcomes::default() };
        }
        let mut all = Outcomes::default();
        let mut is_over = false;
        for rule in self.rules.get(name).into_iter().flatten().copied() {
            let (holds, verdict) = self.rule(rule);
            let Some(verdict) = verdict.filter(|_| holds != Holds::No) else { continue };
            let mut ends = holds == Holds::Yes;
            match verdict {
                Verdict::Accept => all.accepts = true,
                Verdict::Drop => {
                    let text = describe::rule(&rule.rule);
                    all.drops.push(self.place(name, Some(rule.handle), text));
                }
                Verdict::Return => all.goes_on = true,
                Verdict::Continue => ends = false,
                Verdict::Jump(to) => {
                    let mut inner = self.chain(&to, depth + 1);
                    all.accepts |= inner.accepts;
                    all.drops.append(&mut inner.drops);
                    ends &= !inner.goes_on;
                }
                Verdict::Goto(to) => {
                    let mut inner = self.chain(&to, depth + 1);
                    all.accepts |= inner.accepts;
                    all.goes_on |= inner.goes_on;
                    all.drops.append(&mut inner.drops);
                }
                // A queue: a program decides.
                Verdict::Other(_) => all.accepts = true,
            }
            if ends {
                is_over = true;
                break;
            }
        }
        all.goes_on |= !is_over;
        all.drops.sort();
        all.drops.dedup();
        self.known.borrow_mut().insert(name.to_owned(), all.clone());
        all
    }

    fn place(&self, chain: &str, handle: Option<u64>, rule: String) -> Place {
        let (family, table) = self.table;
        Place {
            table: format!("{family} {table}"),
            base: self.base.to_owned(),
            chain: chain.to_owned(),
            handle,
            rule,
        }
    }

    /// Whether a rule's conditions hold, and its verdict.
    fn rule(&self, rule: &FoundRule) -> (Holds, Option<Verdict>) {
        let mut registers = Registers::default();
        let mut all = Holds::Yes;
        for expression in &rule.rule.expressions {
            let holds = match expression {
                Expr::Meta { key, to } => registers.put(*to, self.meta(*key)),
                Expr::Payload { base, offset, len, to } => match self.payload(*base, *offset, *len) {
                    Ok(bytes) => registers.put(*to, bytes),
                    // The packet is too short for it: the rule ends.
                    Err(Short) => Holds::No,
                },
                Expr::Immediate { to, value } => registers.put(*to, Some(value.clone())),
                Expr::Ct { key, to, .. } => registers.put(*to, self.ct(*key)),
                Expr::Fib { flags, result, to } => registers.put(*to, self.fib(*flags, *result)),
                Expr::Cmp { reg, op, value } => match registers.read(*reg, value.len()) {
                    Some(found) => compare(&found, *op, value).into(),
                    None => Holds::Perhaps,
                },
                Expr::Range { reg, invert, from, to } => match registers.read(*reg, from.len()) {
                    Some(found) => ((found >= *from && found <= *to) != *invert).into(),
                    None => Holds::Perhaps,
                },
                Expr::Bitwise { from, to, mask, xor } => {
                    let bits = registers.read(*from, mask.len()).map(|found| {
                        let masked = found.iter().zip(mask).map(|(byte, mask)| byte & mask);
                        masked.zip(xor).map(|(byte, xor)| byte ^ xor).collect()
                    });
                    registers.put(*to, bits)
                }
                Expr::Byteorder { from, to, len, size, .. } => {
                    let swapped = registers.read(*from, *len as usize).map(|found| {
                        let size = (*size as usize).max(1);
                        found.chunks(size).flat_map(|number| number.iter().rev()).copied().collect()
                    });
                    registers.put(*to, swapped)
                }
                Expr::Lookup { set, reg, then, .. } => match self.lookup(&mut registers, set, *reg, *then) {
                    (holds, Some(verdict)) => return (and(all, holds), Some(verdict)),
                    (holds, None) => holds,
                },
                Expr::Match { name, info, .. } => matches::xtables(name, info),
                Expr::Verdict(verdict) => return (all, Some(verdict.clone())),
                Expr::Reject { .. } => return (all, Some(Verdict::Drop)),
                Expr::Target { name, .. } if name == "REJECT" || name == "DROP" => {
                    return (all, Some(Verdict::Drop));
                }
                // It goes on, with another address: to the next base chain, like one that is accepted.
                Expr::Nat { .. } | Expr::Masquerade { .. } => return (all, Some(Verdict::Accept)),
                Expr::SetMeta { .. } | Expr::Counter | Expr::Notrack | Expr::Target { .. } => Holds::Yes,
                // A limit, a quota, a log line: some of them are conditions.
                Expr::Other { name, .. } => matches::is_condition(name),
            };
            all = and(all, holds);
            if all == Holds::No {
                return (Holds::No, None);
            }
        }
        (all, None)
    }

    fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        let name = |link: &Option<(u32, String)>| {
            let name = link.as_ref().map_or("", |(_, name)| name);
            Some(podwire_kernel::nft::ifname(name).to_vec())
        };
        let index = |link: &Option<(u32, String)>| {
            Some(link.as_ref().map_or(0, |(index, _)| *index).to_ne_bytes().to_vec())
        };
        let is_v4 = self.packet.source.is_ipv4();
        // Before it is routed no link is known.
        let oif = if self.hook == Hook::Prerouting { &None } else { &self.packet.oif };
        match key {
            MetaKey::Protocol => Some(if is_v4 { vec![8, 0] } else { vec![0x86, 0xdd] }),
            MetaKey::Mark => Some(vec![0; 4]),
            MetaKey::Iif => index(&self.packet.iif),
            MetaKey::Oif => index(oif),
            MetaKey::Iifname => name(&self.packet.iif),
            MetaKey::Oifname => name(oif),
            MetaKey::Nfproto => Some(vec![if is_v4 { 2 } else { 10 }]),
            MetaKey::L4proto => self.packet.bytes.get(if is_v4 { 9 } else { 6 }).map(|byte| vec![*byte]),
            MetaKey::Pkttype => Some(vec![0]),
            MetaKey::Iiftype | MetaKey::Iifkind | MetaKey::Oifkind | MetaKey::Other(_) => None,
        }
    }

    fn payload(&self, base: Header, offset: u32, len: u32) -> Result<Option<Vec<u8>>, Short> {
        let start = match base {
            Header::Link => return Ok(None),
            Header::Network => 0,
            Header::Transport => self.packet.transport_at,
        };
        let start = start.saturating_add(offset as usize);
        let bytes = self.packet.bytes.get(start..start.saturating_add(len as usize));
        bytes.map(|bytes| Some(bytes.to_vec())).ok_or(Short)
    }

    fn ct(&self, key: CtKey) -> Option<Vec<u8>> {
        match key {
            CtKey::State => Some(CT_NEW.to_ne_bytes().to_vec()),
            CtKey::Direction => Some(vec![0]),
            CtKey::Status | CtKey::Mark => Some(vec![0; 4]),
            _ => None,
        }
    }

    fn fib(&self, flags: u32, result: FibResult) -> Option<Vec<u8>> {
        /// RTN_UNICAST.
        const UNICAST: u32 = 1;
        let is_destination = flags & FIB_DESTINATION != 0;
        (result == FibResult::AddressType && is_destination).then(|| {
            let kind = if self.packet.is_local { FIB_LOCAL } else { UNICAST };
            kind.to_ne_bytes().to_vec()
        })
    }

    fn lookup(&self, registers: &mut Registers, set: &str, reg: Reg, then: Then) -> (Holds, Option<Verdict>) {
        let unknown = |registers: &mut Registers| {
            if let Then::Load(to) = then {
                registers.forget(to);
            }
            (Holds::Perhaps, None)
        };
        let Some((found, elements)) = self.ruleset.set(self.table.0, self.table.1, set) else {
            return unknown(registers);
        };
        let Some(key) = registers.read(reg, found.object.key.len() as usize) else {
            return unknown(registers);
        };
        let element = matches::element(&found.object, elements, &key);
        match (then, element) {
            (Then::IfThere, element) => (element.is_some().into(), None),
            (Then::IfMissing, element) => (element.is_none().into(), None),
            (_, None) => (Holds::No, None),
            (Then::Load(to), Some(element)) => match &element.data {
                Some(Data::Value(value)) => (registers.put(to, Some(value.clone())), None),
                _ => unknown(registers),
            },
            (Then::Verdict, Some(element)) => match &element.data {
                Some(Data::Verdict(verdict)) => (Holds::Yes, Some(verdict.clone())),
                _ => unknown(registers),
            },
        }
    }
}

/// The packet ends before the bytes that a rule asks for.
struct Short;

fn and(a: Holds, b: Holds) -> Holds {
    match (a, b) {
        (Holds::No, _) | (_, Holds::No) => Holds::No,
        (Holds::Yes, Holds::Yes) => Holds::Yes,
        _ => Holds::Perhaps,
    }
}

fn compare(found: &[u8], op: CmpOp, value: &[u8]) -> bool {
    match op {
        CmpOp::Eq => found == value,
        CmpOp::Ne => found != value,
        CmpOp::Lt => found < value,
        CmpOp::Le => found <= value,
        CmpOp::Gt => found > value,
        CmpOp::Ge => found >= value,
    }
}

#[cfg(test)]
mod tests;
