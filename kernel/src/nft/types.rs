//! The objects of nftables as plain values: to be made, or as the kernel describes them.

use std::fmt;

/// The longest comment, in bytes, as in the program `nft`.
pub const MAX_COMMENT: usize = 127;

/// The longest name of a table, chain or set, in bytes (NFT_NAME_MAXLEN less its zero byte).
pub const MAX_NAME: usize = 255;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames that cross a bridge.
    Bridge,
    /// Frames of one device, at its ingress or egress.
    Netdev,
    /// Another one, by its number (NFPROTO_*); for reading alone.
    Other(u8),
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Bridge => 7,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn of(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            5 => Self::Netdev,
            7 => Self::Bridge,
            10 => Self::Ip6,
            number => Self::Other(number),
        }
    }
}

impl fmt::Display for Family {
    /// As the program `nft` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Bridge => f.write_str("bridge"),
            Self::Netdev => f.write_str("netdev"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

/// A table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableRef<'a> {
    /// Its family: tables of two families may share a name.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl<'a> TableRef<'a> {
    /// The table of that family and name.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }
}

impl fmt::Display for TableRef<'_> {
    /// As the program `nft` writes it: `inet podwire`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// An object as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// The family of its table.
    pub family: Family,
    /// The name of its table.
    pub table: String,
    /// Its number, given once per table.
    pub handle: u64,
    /// What it is.
    pub object: T,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// How packets come to it; `None` for one that is jumped to.
    pub base: Option<Base>,
    /// Its comment.
    pub comment: Option<String>,
}

/// How packets come to a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// Where in the packet's way it stands.
    pub hook: Hook,
    /// When, among the chains of one hook: lower is earlier.
    pub priority: i32,
    /// What becomes of a packet that no rule decides about.
    pub policy: Policy,
    /// The device, for [`Family::Netdev`] and [`Hook::Ingress`].
    pub device: Option<String>,
}

/// A base chain's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainKind {
    /// Lets pass or drops.
    Filter,
    /// Sees the first packet of a connection and may translate its addresses.
    Nat,
    /// Makes the kernel look up the route again for what this machine sends.
    Route,
    /// Another; for reading alone.
    Other(String),
}

impl ChainKind {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
            Self::Other(name) => name,
        }
    }

    pub(crate) fn of(name: String) -> Self {
        match name.as_str() {
            "filter" => Self::Filter,
            "nat" => Self::Nat,
            "route" => Self::Route,
            _ => Self::Other(name),
        }
    }
}

/// A place in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// As it comes in, before it is routed.
    Prerouting,
    /// For this machine itself.
    Input,
    /// On its way through.
    Forward,
    /// Sent by this machine.
    Output,
    /// As it goes out.
    Postrouting,
    /// As it comes from the device ([`Family::Netdev`], [`Family::Inet`]).
    Ingress,
    /// As it goes to the device ([`Family::Netdev`], since Linux 5.16).
    Egress,
    /// Another; for reading alone.
    Other(u32),
}

impl Hook {
    /// NF_INET_*, NF_BR_* and NF_NETDEV_*: the same numbers, except that netdev has its own.
    pub(crate) fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Prerouting, _) => 0,
            (Self::Input, _) => 1,
            (Self::Forward, _) => 2,
            (Self::Output, _) => 3,
            (Self::Postrouting, _) => 4,
            (Self::Ingress, Family::Netdev) => 0,
            (Self::Ingress, _) => 5,
            (Self::Egress, Family::Netdev) => 1,
            (Self::Egress, _) => 6,
            (Self::Other(number), _) => number,
        }
    }

    pub(crate) fn of(number: u32, family: Family) -> Self {
        match (number, family) {
            (0, Family::Netdev) => Self::Ingress,
            (1, Family::Netdev) => Self::Egress,
            (0, _) => Self::Prerouting,
            (1, _) => Self::Input,
            (2, _) => Self::Forward,
            (3, _) => Self::Output,
            (4, _) => Self::Postrouting,
            (5, Family::Inet) => Self::Ingress,
            (number, _) => Self::Other(number),
        }
    }
}

/// What becomes of a packet that no rule of a base chain decides about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// It passes.
    #[default]
    Accept,
    /// It is dropped.
    Drop,
}

/// The type of a set's key or a map's data: what `nft` prints it as, and how long it is. A concatenation of up to
/// five such types is one, too; each part then begins at a multiple of 4 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataType {
    /// `nft`'s number for it: 6 bits for each part.
    pub id: u32,
    /// Each part's length in bytes; 0 for parts that are not there.
    pub parts: [u8; 5],
}

impl DataType {
    /// A number in the machine's byte order, such as a packet mark.
    pub const MARK: Self = Self::simple(19, 4);
    /// Ethernet's protocol number, 2 bytes.
    pub const ETHER_TYPE: Self = Self::simple(10, 2);
    /// An Ethernet address, 6 bytes.
    pub const ETHER_ADDR: Self = Self::simple(9, 6);
    /// An IPv4 address.
    pub const IPV4_ADDR: Self = Self::simple(7, 4);
    /// An IPv6 address.
    pub const IPV6_ADDR: Self = Self::simple(8, 16);
    /// An IP protocol's number, 1 byte.
    pub const INET_PROTO: Self = Self::simple(12, 1);
    /// A port, 2 bytes in network order.
    pub const INET_SERVICE: Self = Self::simple(13, 2);
    /// A link's name: 16 bytes, zeros at the end.
    pub const IFNAME: Self = Self::simple(41, 16);
    /// A link's index, 4 bytes in the machine's byte order.
    pub const IFINDEX: Self = Self::simple(20, 4);

    /// A type that is no concatenation.
    pub const fn simple(id: u32, len: u8) -> Self {
        Self { id, parts: [len, 0, 0, 0, 0] }
    }

    /// The concatenation of up to five simple types. More are left out.
    #[expect(
        clippy::indexing_slicing,
        reason = "the loop ends before either length; constants have no iterators"
    )]
    pub const fn concat(types: &[Self]) -> Self {
        let mut whole = Self { id: 0, parts: [0; 5] };
        let mut i = 0;
        while i < types.len() && i < whole.parts.len() {
            whole.id = whole.id << 6 | types[i].id;
            whole.parts[i] = types[i].parts[0];
            i += 1;
        }
        whole
    }

    /// Its length in bytes, each part of a concatenation rounded up to 4.
    pub fn len(&self) -> u32 {
        match self.parts {
            [only, 0, ..] => only.into(),
            parts => parts.iter().map(|part| u32::from(*part).next_multiple_of(4)).sum(),
        }
    }

    /// Whether it has no part.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has several parts.
    pub fn is_concat(&self) -> bool {
        self.parts[1] != 0
    }
}

/// A key or a value of several parts, in the form in which sets and registers hold it: each part padded with zeros
/// to a multiple of 4 bytes.
pub fn concat(parts: &[&[u8]]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(parts.iter().map(|part| part.len().next_multiple_of(4)).sum());
    for part in parts {
        whole.extend_from_slice(part);
        whole.resize(whole.len().next_multiple_of(4), 0);
    }
    whole
}

/// A link's name as a key of [`DataType::IFNAME`] and as `iifname` compares it: 16 bytes. Longer names are cut.
pub fn ifname(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(crate::link::MAX_NAME)) {
        *to = from;
    }
    padded
}

/// A set, or a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The type of its keys.
    pub key: DataType,
    /// What a map gives for a key; `None` makes it a set.
    pub data: Option<MapData>,
    /// Whether keys are the ends of intervals.
    pub interval: bool,
    /// Whether its elements stay as they are once a rule refers to it.
    pub constant: bool,
    /// Its comment.
    pub comment: Option<String>,
}

/// What a map gives for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapData {
    /// A value.
    Value(DataType),
    /// A verdict.
    Verdict,
}

/// An element of a set or a map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Element {
    /// Its key.
    pub key: Vec<u8>,
    /// The key's other end, in a set of intervals of concatenations; with a single type, intervals are pairs of
    /// elements, see `interval_end`.
    pub key_end: Option<Vec<u8>>,
    /// What the map gives for it.
    pub data: Option<Data>,
    /// In a set of intervals: what begins here is not in the set.
    pub interval_end: bool,
    /// Its comment; what is beyond [`MAX_COMMENT`] is cut.
    pub comment: Option<String>,
}

impl Element {
    /// An element of a set.
    pub fn new(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), ..Self::default() }
    }

    /// With what the map gives for it.
    #[must_use]
    pub fn value(self, value: impl Into<Vec<u8>>) -> Self {
        Self { data: Some(Data::Value(value.into())), ..self }
    }

    /// With the verdict that the map gives for it.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        Self { data: Some(Data::Verdict(verdict)), ..self }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }

    /// As the end of the interval that the elements before it began.
    #[must_use]
    pub fn interval_end(self) -> Self {
        Self { interval_end: true, ..self }
    }
}

/// What a map gives for a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// A value.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It leaves this base chain for the next.
    Accept,
    /// It is dropped.
    Drop,
    /// The next rule decides.
    Continue,
    /// The chain that jumped here goes on.
    Return,
    /// This chain decides, then the next rule.
    Jump(String),
    /// This chain decides, and the next rule does not.
    Goto(String),
    /// Another (NF_QUEUE, NF_STOLEN …); for reading alone.
    Other(i32),
}

impl Verdict {
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }

    pub(crate) fn of(code: i32, chain: Option<String>) -> Self {
        match (code, chain) {
            (0, _) => Self::Drop,
            (1, _) => Self::Accept,
            (-1, _) => Self::Continue,
            (-3, Some(chain)) => Self::Jump(chain),
            (-4, Some(chain)) => Self::Goto(chain),
            (-5, _) => Self::Return,
            (code, _) => Self::Other(code),
        }
    }
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it looks at and does, in order.
    pub expressions: Vec<super::Expr>,
    /// Its comment; what is beyond [`MAX_COMMENT`] is cut.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(expressions: Vec<super::Expr>) -> Self {
        Self { expressions, comment: None }
    }

    /// With a comment.
    #[must_use]
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }

    /// The verdict with which it ends for every packet, whatever the packet is like: `None` if it looks at the packet
    /// first. Counters and comments do not look at it.
    pub fn unconditional_verdict(&self) -> Option<&Verdict> {
        self.expressions.iter().find_map(|expression| match expression {
            super::Expr::Counter => None,
            super::Expr::Match { name, .. } if name == "comment" => None,
            super::Expr::Verdict(verdict) => Some(Some(verdict)),
            _ => Some(None),
        })?
    }
}

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    /// The family of its table.
    pub family: Family,
    /// The name of its table.
    pub table: String,
    /// The name of its chain.
    pub chain: String,
    /// Its number.
    pub handle: u64,
    /// What it is.
    pub rule: Rule,
}

/// Where a new rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the chain's end.
    Last,
    /// At the chain's beginning.
    First,
    /// Before the rule of this handle.
    Before(u64),
    /// After the rule of this handle.
    After(u64),
    /// Instead of the rule of this handle.
    Instead(u64),
}

/// A state of all tables of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number, which grows with each transaction.
    pub id: u32,
    /// The thread that made it, `gettid(2)`; 0 if the kernel does not say.
    pub pid: u32,
    /// That thread's name, 15 bytes at most: its process's, unless the thread has one of its own.
    pub process: String,
}
