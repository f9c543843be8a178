//! A rule's expressions: small steps over registers.

use super::types::{Family, Verdict};

/// One of the 16 registers of 32 bits, counted from 0. What is longer than 4 bytes takes the following ones, too: an
/// IPv6 address in `Reg(1)` is in registers 1 to 4. A lookup with a concatenated key names the first of adjacent ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(pub u8);

/// One step of a rule. A comparison or a lookup that fails ends the rule.
///
/// Bytes in registers stand as in the packet (network byte order); metadata such as marks and link indices, and
/// conntrack's state and status, in the machine's byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads something about the packet.
    Meta {
        /// What.
        key: MetaKey,
        /// Where to.
        to: Reg,
    },
    /// Sets something about the packet, such as its mark.
    SetMeta {
        /// What.
        key: MetaKey,
        /// Where from.
        from: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Counted from this header.
        base: Header,
        /// The first byte.
        offset: u32,
        /// How many bytes.
        len: u32,
        /// Where to.
        to: Reg,
    },
    /// Compares a register.
    Cmp {
        /// The register.
        reg: Reg,
        /// How.
        op: CmpOp,
        /// With what; its length is the length of the comparison.
        value: Vec<u8>,
    },
    /// Whether a register is within a range, both ends included.
    Range {
        /// The register.
        reg: Reg,
        /// Whether it must be outside.
        invert: bool,
        /// The lower end.
        from: Vec<u8>,
        /// The upper end.
        to: Vec<u8>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// Where from.
        from: Reg,
        /// Where to.
        to: Reg,
        /// The bits that stay.
        mask: Vec<u8>,
        /// The bits that are turned over; as long as the mask.
        xor: Vec<u8>,
    },
    /// Swaps bytes between the machine's order and the network's.
    Byteorder {
        /// Where from.
        from: Reg,
        /// Where to.
        to: Reg,
        /// From the machine's order to the network's, else the other way.
        to_network: bool,
        /// How many bytes altogether.
        len: u32,
        /// How many bytes one number has: 2, 4 or 8.
        size: u32,
    },
    /// Looks a key up in a set or a map.
    Lookup {
        /// The set's name.
        set: String,
        /// The number of an anonymous set made in the same batch, else 0. Not in what is read.
        set_id: u32,
        /// The key's first register.
        reg: Reg,
        /// What to do with what is found.
        then: Then,
    },
    /// Decides.
    Verdict(Verdict),
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Reg,
        /// The constant.
        value: Vec<u8>,
    },
    /// Loads something about the packet's connection.
    Ct {
        /// What.
        key: CtKey,
        /// Of which direction, for addresses, ports and counters.
        direction: Option<Direction>,
        /// Where to.
        to: Reg,
    },
    /// Asks the routing table about an address of the packet.
    Fib {
        /// Which address and link take part: [`FIB_SOURCE`] and the like.
        flags: u32,
        /// What to ask.
        result: FibResult,
        /// Where to.
        to: Reg,
    },
    /// Translates an address.
    Nat {
        /// Which address.
        kind: NatKind,
        /// [`Family::Ip`] or [`Family::Ip6`].
        family: Family,
        /// The register with the new address.
        address: Option<Reg>,
        /// The register with the new port.
        port: Option<Reg>,
        /// [`NAT_RANDOM_FULLY`] and the like; 0 for none.
        flags: u32,
    },
    /// Translates the source address to the one of the link that the packet leaves by.
    Masquerade {
        /// [`NAT_RANDOM_FULLY`] and the like; 0 for none.
        flags: u32,
    },
    /// Counts packets and bytes. The numbers are not read.
    Counter,
    /// Leaves the packet out of connection tracking.
    Notrack,
    /// Drops the packet and tells its sender.
    Reject {
        /// How: NFT_REJECT_ICMP_UNREACH (0), _TCP_RST (1), _ICMPX_UNREACH (2).
        kind: u32,
        /// ICMP's code.
        code: u8,
    },
    /// A match of xtables, as `iptables-nft` makes them.
    Match {
        /// Its name.
        name: String,
        /// Its revision.
        revision: u32,
        /// Its structure; padded to a multiple of 8 bytes.
        info: Vec<u8>,
    },
    /// A target of xtables, as `iptables-nft` makes them.
    Target {
        /// Its name.
        name: String,
        /// Its revision.
        revision: u32,
        /// Its structure; padded to a multiple of 8 bytes.
        info: Vec<u8>,
    },
    /// Another one.
    Other {
        /// Its name.
        name: String,
        /// Its attributes: type, with NLA_F_NESTED where it belongs, and value.
        attributes: Vec<(u16, Vec<u8>)>,
    },
}

impl Expr {
    /// Loads something about the packet.
    pub const fn meta(key: MetaKey, to: Reg) -> Self {
        Self::Meta { key, to }
    }

    /// Loads bytes of the packet.
    pub const fn payload(base: Header, offset: u32, len: u32, to: Reg) -> Self {
        Self::Payload { base, offset, len, to }
    }

    /// Goes on if the register has these bytes.
    pub fn eq(reg: Reg, value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp { reg, op: CmpOp::Eq, value: value.into() }
    }

    /// Goes on if the register has other bytes.
    pub fn ne(reg: Reg, value: impl Into<Vec<u8>>) -> Self {
        Self::Cmp { reg, op: CmpOp::Ne, value: value.into() }
    }

    /// Keeps the bits of the mask.
    pub fn mask(reg: Reg, mask: impl Into<Vec<u8>>) -> Self {
        let mask = mask.into();
        Self::Bitwise { from: reg, to: reg, xor: vec![0; mask.len()], mask }
    }

    /// Goes on if the set has the key.
    pub fn is_in(set: impl Into<String>, reg: Reg) -> Self {
        Self::Lookup { set: set.into(), set_id: 0, reg, then: Then::IfThere }
    }

    /// Goes on if the set does not have the key.
    pub fn not_in(set: impl Into<String>, reg: Reg) -> Self {
        Self::Lookup { set: set.into(), set_id: 0, reg, then: Then::IfMissing }
    }

    /// Loads what the map gives for the key; the rule ends if it has none.
    pub fn map(set: impl Into<String>, reg: Reg, to: Reg) -> Self {
        Self::Lookup { set: set.into(), set_id: 0, reg, then: Then::Load(to) }
    }

    /// Does what the map says for the key; goes on with the next rule if it has none.
    pub fn verdict_map(set: impl Into<String>, reg: Reg) -> Self {
        Self::Lookup { set: set.into(), set_id: 0, reg, then: Then::Verdict }
    }

    /// Jumps to a chain.
    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Jump(chain.into()))
    }
}

/// What a lookup does with what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Goes on if the key is there.
    IfThere,
    /// Goes on if the key is not there.
    IfMissing,
    /// Loads the map's value.
    Load(Reg),
    /// Does what the map's verdict says.
    Verdict,
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

/// From where a payload's bytes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The link layer's header (Ethernet).
    Link,
    /// The network layer's (IP, ARP).
    Network,
    /// The transport layer's (TCP, UDP, SCTP, ICMP).
    Transport,
}

/// What to load about a packet (NFT_META_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Ethernet's protocol number, 2 bytes.
    Protocol,
    /// The mark, 4 bytes.
    Mark,
    /// The index of the link it came by, 4 bytes.
    Iif,
    /// The index of the link it leaves by, 4 bytes.
    Oif,
    /// The name of the link it came by, 16 bytes.
    Iifname,
    /// The name of the link it leaves by, 16 bytes.
    Oifname,
    /// The type of the link it came by (ARPHRD_*), 2 bytes.
    Iiftype,
    /// The IP version: 2 for IPv4, 10 for IPv6, 1 byte.
    Nfproto,
    /// The transport protocol, 1 byte.
    L4proto,
    /// Unicast, broadcast or multicast (PACKET_*), 1 byte.
    Pkttype,
    /// The kind of the link it came by, 16 bytes.
    Iifkind,
    /// The kind of the link it leaves by, 16 bytes.
    Oifkind,
    /// Another, by its number.
    Other(u32),
}

/// What to load about a packet's connection (NFT_CT_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// Its state, a bit each: see [`CT_ESTABLISHED`]; 4 bytes.
    State,
    /// This packet's direction: 0 for the original, 1 for replies; 1 byte.
    Direction,
    /// IPS_* bits, see [`CT_STATUS_DNAT`]; 4 bytes.
    Status,
    /// Its mark, 4 bytes.
    Mark,
    /// The network protocol, 1 byte.
    L3proto,
    /// The transport protocol, 1 byte.
    Protocol,
    /// The source port, 2 bytes; needs a direction.
    ProtoSource,
    /// The destination port, 2 bytes; needs a direction.
    ProtoDestination,
    /// The IPv4 source address; needs a direction.
    Source4,
    /// The IPv4 destination address; needs a direction.
    Destination4,
    /// The IPv6 source address; needs a direction.
    Source6,
    /// The IPv6 destination address; needs a direction.
    Destination6,
    /// Another, by its number.
    Other(u32),
}

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// As it was opened.
    Original,
    /// As it is answered.
    Reply,
}

/// What to ask the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// The index of the link that the route leaves by.
    Oif,
    /// Its name.
    Oifname,
    /// The address's type, 4 bytes in the machine's order: see [`FIB_LOCAL`].
    AddressType,
}

/// Which address to translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// A bit of [`CtKey::State`]: no connection can be told.
pub const CT_INVALID: u32 = 1;
/// A bit of [`CtKey::State`]: the connection has seen packets both ways.
pub const CT_ESTABLISHED: u32 = 2;
/// A bit of [`CtKey::State`]: the connection belongs to another, or the packet is an error message about one.
pub const CT_RELATED: u32 = 4;
/// A bit of [`CtKey::State`]: the connection's first packet.
pub const CT_NEW: u32 = 8;
/// A bit of [`CtKey::State`]: connection tracking was told to leave it.
pub const CT_UNTRACKED: u32 = 64;
/// A bit of [`CtKey::Status`]: the source is translated.
pub const CT_STATUS_SNAT: u32 = 1 << 4;
/// A bit of [`CtKey::Status`]: the destination is translated.
pub const CT_STATUS_DNAT: u32 = 1 << 5;

/// For [`Expr::Fib`]: the packet's source address.
pub const FIB_SOURCE: u32 = 1;
/// For [`Expr::Fib`]: the packet's destination address.
pub const FIB_DESTINATION: u32 = 2;
/// For [`Expr::Fib`]: with the packet's mark.
pub const FIB_MARK: u32 = 4;
/// For [`Expr::Fib`]: as seen from the link that it came by.
pub const FIB_IIF: u32 = 8;
/// For [`Expr::Fib`]: as seen from the link that it leaves by.
pub const FIB_OIF: u32 = 16;
/// An address type: this machine's (RTN_LOCAL).
pub const FIB_LOCAL: u32 = 2;

/// A flag of [`Expr::Nat`] and [`Expr::Masquerade`]: a random source port.
pub const NAT_RANDOM: u32 = 1 << 2;
/// A flag of [`Expr::Nat`] and [`Expr::Masquerade`]: the same address for each connection of one client.
pub const NAT_PERSISTENT: u32 = 1 << 3;
/// A flag of [`Expr::Nat`] and [`Expr::Masquerade`]: a source port as random as it can be.
pub const NAT_RANDOM_FULLY: u32 = 1 << 4;
