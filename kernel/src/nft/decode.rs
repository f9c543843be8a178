//! The kernel's descriptions of nftables' objects, decoded. Pure: bytes in, values out.
//!
//! As tolerant as the decoder of rtnetlink's replies (`reply.rs`): attributes that are not known are passed over, an
//! expression that is not known is kept as bytes. Layouts are those of `linux/netfilter/nf_tables.h` and, for user
//! data, of libnftnl's `udata.h`.

use crate::nfnetlink::{Malformed, Message, Said, answers};
use crate::reply::{attributes, be32_at, be64_at, text, u16_at};

use super::batch::VERDICT_TYPE;
use super::expr::{CmpOp, CtKey, Direction, Expr, FibResult, Header, MetaKey, NatKind, Reg, Then};
use super::types::{
    Base, Chain, ChainKind, Data, DataType, Element, Family, Found, FoundRule, Generation, Hook, MapData,
    Policy, Rule, Set, Table, Verdict,
};

type Result<T> = std::result::Result<T, Malformed>;

/// What one message describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A table.
    Table(Found<Table>),
    /// A chain.
    Chain(Found<Chain>),
    /// A rule.
    Rule(FoundRule),
    /// A set or a map.
    Set(Found<Set>),
    /// Elements of a set or a map.
    Elements(Vec<Element>),
    /// The state of all tables.
    Generation(Generation),
    /// A message about something else, or one that cannot be understood.
    Other,
}

/// What the messages of a datagram describe: this decoder for fuzzing.
pub fn objects(datagram: &[u8]) -> impl Iterator<Item = Object> + '_ {
    answers(datagram).map(|answer| {
        let Said::Message(message) = answer.said else { return Object::Other };
        let object = match message.kind {
            super::NEW_TABLE => table(&message).map(Object::Table),
            super::NEW_CHAIN => chain(&message).map(Object::Chain),
            super::NEW_RULE => rule(&message).map(Object::Rule),
            super::NEW_SET => set(&message).map(Object::Set),
            super::NEW_ELEMENT => elements(&message).map(Object::Elements),
            super::NEW_GENERATION => generation(&message).map(Object::Generation),
            _ => Ok(Object::Other),
        };
        object.unwrap_or(Object::Other)
    })
}

pub(super) fn table(message: &Message<'_>) -> Result<Found<Table>> {
    let (mut name, mut handle, mut comment) = (None, 0, None);
    for (kind, value) in attributes(message.attributes) {
        match kind {
            1 => name = Some(text(value)),
            4 => handle = be64_at(value, 0).unwrap_or(0),
            6 => comment = comment_of(value, 0),
            _ => {}
        }
    }
    let family = Family::of(message.family);
    let name = name.ok_or(Malformed)?;
    Ok(Found { family, table: name.clone(), handle, object: Table { family, name, comment } })
}

pub(super) fn chain(message: &Message<'_>) -> Result<Found<Chain>> {
    let family = Family::of(message.family);
    let (mut table, mut handle, mut chain) = (None, 0, Chain::default());
    let (mut hook, mut policy, mut kind_name) = (None, Policy::Accept, String::new());
    for (kind, value) in attributes(message.attributes) {
        match kind {
            1 => table = Some(text(value)),
            2 => handle = be64_at(value, 0).unwrap_or(0),
            3 => chain.name = text(value),
            4 => hook = Some(value),
            5 if be32_at(value, 0) == Some(0) => policy = Policy::Drop,
            7 => kind_name = text(value),
            12 => chain.comment = comment_of(value, 0),
            _ => {}
        }
    }
    chain.base = hook.map(|hook| base(hook, family, policy, ChainKind::of(kind_name)));
    Ok(Found { family, table: table.ok_or(Malformed)?, handle, object: chain })
}

fn base(hook: &[u8], family: Family, policy: Policy, kind: ChainKind) -> Base {
    let mut base = Base { kind, hook: Hook::Other(u32::MAX), priority: 0, policy, device: None };
    for (kind, value) in attributes(hook) {
        match kind {
            1 => base.hook = Hook::of(be32_at(value, 0).unwrap_or(u32::MAX), family),
            2 => base.priority = be32_at(value, 0).unwrap_or(0).cast_signed(),
            3 => base.device = Some(text(value)),
            // NFTA_HOOK_DEVS: NFTA_DEVICE_NAME for each.
            4 => {
                let first = attributes(value).next().map(|(_, name)| text(name));
                base.device = base.device.or(first);
            }
            _ => {}
        }
    }
    base
}

pub(super) fn rule(message: &Message<'_>) -> Result<FoundRule> {
    let (mut table, mut chain, mut handle, mut rule) = (None, None, 0, Rule::default());
    for (kind, value) in attributes(message.attributes) {
        match kind {
            1 => table = Some(text(value)),
            2 => chain = Some(text(value)),
            3 => handle = be64_at(value, 0).unwrap_or(0),
            4 => rule.expressions = list(value).map(expression).collect(),
            7 => rule.comment = comment_of(value, 0),
            _ => {}
        }
    }
    Ok(FoundRule {
        family: Family::of(message.family),
        table: table.ok_or(Malformed)?,
        chain: chain.ok_or(Malformed)?,
        handle,
        rule,
    })
}

pub(super) fn set(message: &Message<'_>) -> Result<Found<Set>> {
    let (mut table, mut handle, mut set) = (None, 0, Set::default());
    let (mut flags, mut key, mut key_len, mut data, mut data_len) = (0, 0, 0, 0, 0);
    for (kind, value) in attributes(message.attributes) {
        let number = be32_at(value, 0).unwrap_or(0);
        match kind {
            1 => table = Some(text(value)),
            2 => set.name = text(value),
            3 => flags = number,
            4 => key = number,
            5 => key_len = number,
            6 => data = number,
            7 => data_len = number,
            13 => set.comment = comment_of(value, 7),
            16 => handle = be64_at(value, 0).unwrap_or(0),
            _ => {}
        }
    }
    set.constant = flags & 0x2 != 0;
    set.interval = flags & 0x4 != 0;
    set.key = data_type(key, key_len);
    if flags & 0x8 != 0 {
        let value = MapData::Value(data_type(data, data_len));
        set.data = Some(if data == VERDICT_TYPE { MapData::Verdict } else { value });
    }
    Ok(Found { family: Family::of(message.family), table: table.ok_or(Malformed)?, handle, object: set })
}

/// The type of that number, whose parts' lengths the kernel does not tell: `nft` knows them by heart.
fn data_type(id: u32, len: u32) -> DataType {
    let known = [
        DataType::MARK,
        DataType::ETHER_TYPE,
        DataType::ETHER_ADDR,
        DataType::IPV4_ADDR,
        DataType::IPV6_ADDR,
        DataType::INET_PROTO,
        DataType::INET_SERVICE,
        DataType::IFNAME,
        DataType::IFINDEX,
    ];
    let part = |id: u32| known.into_iter().find(|known| known.id == id);
    let mut parts: Vec<DataType> = (0..5).rev().map(|i| id >> (6 * i) & 0x3f).filter_map(part).collect();
    let whole = DataType::concat(&parts);
    if whole.id == id && whole.len() == len {
        return whole;
    }
    parts.clear();
    DataType { id, ..DataType::simple(0, u8::try_from(len).unwrap_or(u8::MAX)) }
}

/// The elements of one message, all of the same set.
pub(super) fn elements(message: &Message<'_>) -> Result<Vec<Element>> {
    let elements = Fields(message.attributes).bytes(3).unwrap_or_default();
    Ok(list(elements).map(element).collect())
}

/// A name in a message: of the table, or of what the message is about.
#[cfg(feature = "events")]
pub(super) fn text_of(message: &Message<'_>, kind: u16) -> Result<String> {
    Fields(message.attributes).text(kind).ok_or(Malformed)
}

fn element(bytes: &[u8]) -> Element {
    let mut element = Element::default();
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => element.key = value_of(value).unwrap_or_default(),
            2 => element.data = data(value),
            3 => element.interval_end = be32_at(value, 0).unwrap_or(0) & 1 != 0,
            6 => element.comment = comment_of(value, 0),
            10 => element.key_end = value_of(value),
            _ => {}
        }
    }
    element
}

pub(super) fn generation(message: &Message<'_>) -> Result<Generation> {
    let (mut id, mut pid, mut process) = (None, 0, String::new());
    for (kind, value) in attributes(message.attributes) {
        match kind {
            1 => id = be32_at(value, 0),
            2 => pid = be32_at(value, 0).unwrap_or(0),
            3 => process = text(value),
            _ => {}
        }
    }
    Ok(Generation { id: id.ok_or(Malformed)?, pid, process })
}

/// NFTA_LIST_ELEM
fn list(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    attributes(bytes).filter(|(kind, _)| *kind == 1).map(|(_, value)| value)
}

/// NFTA_DATA_VALUE or NFTA_DATA_VERDICT
fn data(bytes: &[u8]) -> Option<Data> {
    attributes(bytes).find_map(|(kind, value)| match kind {
        1 => Some(Data::Value(value.to_vec())),
        2 => verdict(value).map(Data::Verdict),
        _ => None,
    })
}

fn value_of(bytes: &[u8]) -> Option<Vec<u8>> {
    match data(bytes) {
        Some(Data::Value(value)) => Some(value),
        _ => None,
    }
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let (mut code, mut chain) = (None, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => code = be32_at(value, 0),
            2 => chain = Some(text(value)),
            _ => {}
        }
    }
    code.map(|code| Verdict::of(code.cast_signed(), chain))
}

/// The text of that type in user data: a series of type, length, value.
fn comment_of(data: &[u8], wanted: u8) -> Option<String> {
    let mut rest = data;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == wanted {
            return Some(text(value));
        }
        rest = tail.get(usize::from(*len)..)?;
    }
    None
}

/// Attributes by their kinds: an expression's, a message's.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&self, wanted: u16) -> Option<&'a [u8]> {
        attributes(self.0).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    fn number(&self, wanted: u16) -> Option<u32> {
        be32_at(self.bytes(wanted)?, 0)
    }

    fn number_or_0(&self, wanted: u16) -> u32 {
        self.number(wanted).unwrap_or(0)
    }

    fn reg(&self, wanted: u16) -> Option<Reg> {
        Reg::of(self.number(wanted)?)
    }

    fn value(&self, wanted: u16) -> Option<Vec<u8>> {
        value_of(self.bytes(wanted)?)
    }

    fn text(&self, wanted: u16) -> Option<String> {
        self.bytes(wanted).map(text)
    }
}

fn expression(bytes: &[u8]) -> Expr {
    let (mut name, mut fields): (_, &[u8]) = (String::new(), &[]);
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => name = text(value),
            2 => fields = value,
            _ => {}
        }
    }
    known(&name, &Fields(fields)).unwrap_or_else(|| Expr::Other { name, attributes: raw(fields) })
}

/// `None` for an expression that is not known, or that says more than its value can.
fn known(name: &str, fields: &Fields<'_>) -> Option<Expr> {
    Some(match name {
        "meta" => match (MetaKey::of(fields.number(2)?)?, fields.reg(1), fields.reg(3)) {
            (key, Some(to), None) => Expr::Meta { key, to },
            (key, None, Some(from)) => Expr::SetMeta { key, from },
            _ => return None,
        },
        "payload" => Expr::Payload {
            to: fields.reg(1)?,
            base: Header::of(fields.number(2)?)?,
            offset: fields.number(3)?,
            len: fields.number(4)?,
        },
        "cmp" => {
            Expr::Cmp { reg: fields.reg(1)?, op: CmpOp::of(fields.number(2)?)?, value: fields.value(3)? }
        }
        "range" => Expr::Range {
            reg: fields.reg(1)?,
            invert: fields.number(2)? == 1,
            from: fields.value(3)?,
            to: fields.value(4)?,
        },
        // NFT_BITWISE_BOOL alone; shifts are others.
        "bitwise" if fields.number_or_0(6) == 0 => Expr::Bitwise {
            from: fields.reg(1)?,
            to: fields.reg(2)?,
            mask: fields.value(4)?,
            xor: fields.value(5)?,
        },
        "byteorder" => Expr::Byteorder {
            from: fields.reg(1)?,
            to: fields.reg(2)?,
            to_network: fields.number(3)? == 1,
            len: fields.number(4)?,
            size: fields.number(5)?,
        },
        "lookup" => Expr::Lookup {
            set: fields.text(1)?,
            set_id: 0,
            reg: fields.reg(2)?,
            then: match (fields.number(3), fields.number_or_0(5)) {
                (None, 0) => Then::IfThere,
                (None, 1) => Then::IfMissing,
                (Some(0), 0) => Then::Verdict,
                (Some(number), 0) => Then::Load(Reg::of(number)?),
                _ => return None,
            },
        },
        "immediate" => match (fields.number(1)?, data(fields.bytes(2)?)?) {
            (0, Data::Verdict(verdict)) => Expr::Verdict(verdict),
            (number, Data::Value(value)) => Expr::Immediate { to: Reg::of(number)?, value },
            _ => return None,
        },
        "ct" => Expr::Ct {
            to: fields.reg(1)?,
            key: CtKey::of(fields.number(2)?)?,
            direction: match fields.bytes(3) {
                Some(value) => Some(Direction::of(*value.first()?)?),
                None => None,
            },
        },
        "fib" => Expr::Fib {
            to: fields.reg(1)?,
            result: FibResult::of(fields.number(2)?)?,
            flags: fields.number(3)?,
        },
        "nat" => nat(fields)?,
        // A range of ports is none of ours.
        "masq" if fields.number(2).is_none() => Expr::Masquerade { flags: fields.number_or_0(1) },
        "counter" => Expr::Counter,
        "notrack" => Expr::Notrack,
        "reject" => Expr::Reject {
            kind: fields.number(1)?,
            code: fields.bytes(2).and_then(|value| value.first().copied()).unwrap_or(0),
        },
        "match" => Expr::Match {
            name: fields.text(1)?,
            revision: fields.number(2)?,
            info: fields.bytes(3)?.to_vec(),
        },
        "target" => Expr::Target {
            name: fields.text(1)?,
            revision: fields.number(2)?,
            info: fields.bytes(3)?.to_vec(),
        },
        _ => return None,
    })
}

fn nat(fields: &Fields<'_>) -> Option<Expr> {
    let family = u8::try_from(fields.number(2)?).ok().map(Family::of)?;
    let (address, port) = (fields.number(3), fields.number(5));
    // The kernel repeats the lower end of a range as its upper end.
    let single = |low: Option<u32>, high: Option<u32>| high.is_none() || high == low;
    if !single(address, fields.number(4)) || !single(port, fields.number(6)) {
        return None;
    }
    let register = |number: Option<u32>| match number {
        Some(number) => Reg::of(number).map(Some),
        None => Some(None),
    };
    Some(Expr::Nat {
        kind: NatKind::of(fields.number(1)?)?,
        family,
        address: register(address)?,
        port: register(port)?,
        // It adds NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED for what the registers say.
        flags: fields.number_or_0(7) & !0x3,
    })
}

/// Attributes with the flags of their types.
fn raw(bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        all.push((kind, value.to_vec()));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}
