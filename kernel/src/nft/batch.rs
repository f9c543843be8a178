//! A transaction: requests that the kernel carries out all or not at all.

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE,
    NetlinkSerializable,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    SetAttribute, SetDescription, SetElementAttribute, SetElementFlags, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableMessage, VerdictAttribute,
};
use netlink_packet_netfilter::nftables::{Hook as HookAttribute, HookNumber};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage};

use crate::nfnetlink::{Request, emitted};

use super::types::{
    Chain, Data, DataType, Element, Family, MAX_COMMENT, MapData, Place, Policy, Rule, Set, TableRef, Verdict,
};

/// NFT_DATA_VERDICT: the data type of a verdict map.
pub(super) const VERDICT_TYPE: u32 = 0xffff_ff00;

/// How many bytes of elements go into one message: an attribute's length has 16 bits.
const ELEMENTS: usize = 48 * 1024;

/// A transaction to be carried out by [`super::Nft::commit`]: all of it, or nothing.
///
/// What is made under a name by one request can be used by those behind it.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(super) requests: Vec<Request>,
    pub(super) generation: Option<u32>,
    sets: u32,
}

/// A request about an object of nftables.
pub(super) fn request(
    op: &'static str,
    object: String,
    flags: u16,
    family: Family,
    message: NfTablesMessage,
) -> Request {
    let header = NetfilterHeader::new(family.number().into(), 0, 0);
    let message = NetfilterMessage::new(header, message);
    let mut payload = vec![0; NetlinkSerializable::buffer_len(&message)];
    message.serialize(&mut payload);
    Request { kind: message.message_type(), flags, payload, op, object }
}

const ENSURE: u16 = NLM_F_CREATE;
const EXCLUSIVE: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Batch {
    /// A transaction without requests.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has no requests.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// How many requests it has. Many elements make more than one.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// To be carried out only if nothing has changed in any table since this generation, whoever changed it
    /// (ERESTART; see [`crate::Error::is_changed`]).
    pub fn only_at(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    fn push(
        &mut self,
        op: &'static str,
        object: String,
        flags: u16,
        family: Family,
        message: NfTablesMessage,
    ) {
        self.requests.push(request(op, object, flags, family, message));
    }

    /// Makes a table, which must not be there (EEXIST).
    pub fn create_table(&mut self, table: TableRef<'_>, comment: Option<&str>) {
        self.table("create table", EXCLUSIVE, table, comment);
    }

    /// Makes a table unless it is there. The comment of one that is there stays.
    pub fn ensure_table(&mut self, table: TableRef<'_>, comment: Option<&str>) {
        self.table("make table", ENSURE, table, comment);
    }

    fn table(&mut self, op: &'static str, flags: u16, table: TableRef<'_>, comment: Option<&str>) {
        let mut attributes = vec![TableAttribute::Name(table.name.to_owned())];
        attributes.extend(comment.map(|comment| TableAttribute::UserData(comment_data(0, comment))));
        let message = NfTablesMessage::NewTable(TableMessage { attributes });
        self.push(op, table.to_string(), flags, table.family, message);
    }

    /// Removes a table and all that is in it.
    pub fn delete_table(&mut self, table: TableRef<'_>) {
        let attributes = vec![TableAttribute::Name(table.name.to_owned())];
        let message = NfTablesMessage::DeleteTable(TableMessage { attributes });
        self.push("delete table", table.to_string(), 0, table.family, message);
    }

    /// Makes a chain, which must not be there (EEXIST).
    pub fn create_chain(&mut self, table: TableRef<'_>, chain: &Chain) {
        self.chain("create chain", EXCLUSIVE, table, chain);
    }

    /// Makes a chain unless it is there. A base chain that is there must have the same hook and priority; its policy
    /// is changed.
    pub fn ensure_chain(&mut self, table: TableRef<'_>, chain: &Chain) {
        self.chain("make chain", ENSURE, table, chain);
    }

    fn chain(&mut self, op: &'static str, flags: u16, table: TableRef<'_>, chain: &Chain) {
        let mut attributes =
            vec![ChainAttribute::Table(table.name.to_owned()), ChainAttribute::Name(chain.name.clone())];
        if let Some(base) = &chain.base {
            let mut hook = vec![
                HookAttribute::Number(HookNumber::Other(base.hook.number(table.family))),
                HookAttribute::Priority(base.priority.cast_unsigned()),
            ];
            hook.extend(base.device.clone().map(HookAttribute::NetDeviceName));
            let policy = match base.policy {
                Policy::Drop => 0,
                Policy::Accept => 1,
            };
            attributes.extend([
                ChainAttribute::Hook(hook),
                ChainAttribute::Policy(policy),
                ChainAttribute::Type(base.kind.name().to_owned()),
            ]);
        }
        let comment = chain.comment.as_deref();
        attributes.extend(comment.map(|comment| ChainAttribute::UserData(comment_data(0, comment))));
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        self.push(op, format!("{table} {}", chain.name), flags, table.family, message);
    }

    /// Removes a chain with its rules; nothing may jump to it (EBUSY).
    pub fn delete_chain(&mut self, table: TableRef<'_>, chain: &str) {
        let attributes =
            vec![ChainAttribute::Table(table.name.to_owned()), ChainAttribute::Name(chain.to_owned())];
        let message = NfTablesMessage::DeleteChain(ChainMessage { attributes });
        self.push("delete chain", format!("{table} {chain}"), 0, table.family, message);
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, table: TableRef<'_>, chain: &str) {
        let attributes =
            vec![RuleAttribute::Table(table.name.to_owned()), RuleAttribute::Chain(chain.to_owned())];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.push("flush chain", format!("{table} {chain}"), 0, table.family, message);
    }

    /// Makes a rule.
    pub fn add_rule(&mut self, table: TableRef<'_>, chain: &str, place: Place, rule: &Rule) {
        let mut attributes =
            vec![RuleAttribute::Table(table.name.to_owned()), RuleAttribute::Chain(chain.to_owned())];
        let (flags, handle) = match place {
            Place::Last => (NLM_F_CREATE | NLM_F_APPEND, None),
            Place::First => (NLM_F_CREATE, None),
            Place::Before(handle) => (NLM_F_CREATE, Some(RuleAttribute::Position(handle))),
            Place::After(handle) => (NLM_F_CREATE | NLM_F_APPEND, Some(RuleAttribute::Position(handle))),
            Place::Instead(handle) => (NLM_F_REPLACE, Some(RuleAttribute::Handle(handle))),
        };
        attributes.extend(handle);
        let expressions = rule.expressions.iter().map(super::encode::expression).collect();
        attributes.push(RuleAttribute::Expressions(expressions));
        let comment = rule.comment.as_deref();
        attributes.extend(comment.map(|comment| RuleAttribute::UserData(comment_data(0, comment))));
        let message = NfTablesMessage::NewRule(RuleMessage { attributes });
        let object = match comment {
            Some(comment) => format!("{table} {chain} \"{comment}\""),
            None => format!("{table} {chain}"),
        };
        self.push("add rule", object, flags, table.family, message);
    }

    /// Removes the rule of this handle.
    pub fn delete_rule(&mut self, table: TableRef<'_>, chain: &str, handle: u64) {
        let attributes = vec![
            RuleAttribute::Table(table.name.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Handle(handle),
        ];
        let message = NfTablesMessage::DeleteRule(RuleMessage { attributes });
        self.push("delete rule", format!("{table} {chain} handle {handle}"), 0, table.family, message);
    }

    /// Makes a set or a map, which must not be there (EEXIST).
    pub fn create_set(&mut self, table: TableRef<'_>, set: &Set) {
        self.set("create set", EXCLUSIVE, table, set, SetFlags::empty());
    }

    /// Makes a set or a map unless it is there; one that is there must have the same types (EEXIST since Linux 6.1).
    pub fn ensure_set(&mut self, table: TableRef<'_>, set: &Set) {
        self.set("make set", ENSURE, table, set, SetFlags::empty());
    }

    /// Makes a set or a map that lives as long as the one rule, added by this batch, that looks into it. Returns its
    /// name and number for [`super::Expr::Lookup`].
    pub fn anonymous_set(
        &mut self,
        table: TableRef<'_>,
        key: DataType,
        data: Option<MapData>,
        interval: bool,
        elements: &[Element],
    ) -> (String, u32) {
        // The kernel writes a number in the place of %d.
        let name = if data.is_some() { "__map%d" } else { "__set%d" };
        let set = Set { name: name.to_owned(), key, data, interval, constant: true, comment: None };
        let id = self.set("create set", EXCLUSIVE, table, &set, SetFlags::Anonymous);
        self.elements("create element", EXCLUSIVE, table, name, id, elements);
        (set.name, id)
    }

    fn set(&mut self, op: &'static str, flags: u16, table: TableRef<'_>, set: &Set, kind: SetFlags) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let ranges = set.interval && set.key.is_concat();
        let bits = [
            (set.interval, SetFlags::Interval),
            (set.constant, SetFlags::Constant),
            (set.data.is_some(), SetFlags::Map),
            (ranges, SetFlags::Concat),
        ];
        let bits = bits.into_iter().filter(|(is_so, _)| *is_so).fold(kind, |all, (_, bit)| all | bit);
        let mut attributes = vec![
            SetAttribute::Table(table.name.to_owned()),
            SetAttribute::Name(set.name.clone()),
            SetAttribute::Flags(bits),
            SetAttribute::KeyType(set.key.id),
            SetAttribute::KeyLen(set.key.len()),
            SetAttribute::Id(id),
        ];
        match set.data {
            None => {}
            Some(MapData::Verdict) => {
                // struct nft_verdict has 16 bytes.
                attributes.extend([SetAttribute::DataType(VERDICT_TYPE), SetAttribute::DataLen(16)]);
            }
            Some(MapData::Value(data)) => {
                attributes.extend([SetAttribute::DataType(data.id), SetAttribute::DataLen(data.len())]);
            }
        }
        if ranges {
            attributes.push(SetAttribute::Description(vec![SetDescription::Other(fields(set.key))]));
        }
        let mut userdata = byte_order(0, Some(set.key));
        if let Some(MapData::Value(data)) = set.data {
            userdata.extend(byte_order(1, Some(data)));
        }
        if let Some(comment) = &set.comment {
            // NFTNL_UDATA_SET_COMMENT
            userdata.extend(comment_data(7, comment));
        }
        if !userdata.is_empty() {
            attributes.push(SetAttribute::UserData(userdata));
        }
        let message = NfTablesMessage::NewSet(SetMessage { attributes });
        self.push(op, format!("{table} {}", set.name), flags, table.family, message);
        id
    }

    /// Removes a set or a map; no rule may refer to it (EBUSY).
    pub fn delete_set(&mut self, table: TableRef<'_>, set: &str) {
        let attributes = vec![SetAttribute::Table(table.name.to_owned()), SetAttribute::Name(set.to_owned())];
        let message = NfTablesMessage::DeleteSet(SetMessage { attributes });
        self.push("delete set", format!("{table} {set}"), 0, table.family, message);
    }

    /// Removes all elements of a set or a map.
    pub fn flush_set(&mut self, table: TableRef<'_>, set: &str) {
        let attributes =
            vec![SetElementList::Table(table.name.to_owned()), SetElementList::Set(set.to_owned())];
        let message = NfTablesMessage::DeleteSetElement(SetElementMessage { attributes });
        self.push("flush set", format!("{table} {set}"), 0, table.family, message);
    }

    /// Makes elements, none of whose keys may be there (EEXIST).
    pub fn create_elements(&mut self, table: TableRef<'_>, set: &str, elements: &[Element]) {
        self.elements("create element", EXCLUSIVE, table, set, 0, elements);
    }

    /// Makes those of the elements that are not there. One that is there must give the same (EEXIST, in older kernels
    /// EBUSY), and keeps its comment.
    pub fn ensure_elements(&mut self, table: TableRef<'_>, set: &str, elements: &[Element]) {
        self.elements("make element", ENSURE, table, set, 0, elements);
    }

    /// Removes elements by their keys; all must be there (ENOENT).
    pub fn delete_elements(&mut self, table: TableRef<'_>, set: &str, elements: &[Element]) {
        self.elements("delete element", 0, table, set, 0, elements);
    }

    fn elements(
        &mut self,
        op: &'static str,
        flags: u16,
        table: TableRef<'_>,
        set: &str,
        id: u32,
        elements: &[Element],
    ) {
        let mut rest = elements;
        while let Some(first) = rest.first() {
            let mut length = 0;
            let mut list = Vec::new();
            for element in rest {
                let element = ListAttribute::Element(element_attributes(element, flags != 0));
                length += Emitable::buffer_len(&element);
                if length > ELEMENTS && !list.is_empty() {
                    break;
                }
                list.push(element);
            }
            let count = list.len();
            rest = rest.get(count..).unwrap_or_default();
            let message = element_message(table, set, id, list);
            let message = match flags {
                0 => NfTablesMessage::DeleteSetElement(message),
                _ => NfTablesMessage::NewSetElement(message),
            };
            let object = format!("{table} {set} {}", described(first, count));
            self.push(op, object, flags, table.family, message);
        }
    }
}

/// How an error names elements.
fn described(first: &Element, count: usize) -> String {
    let text = match &first.comment {
        Some(comment) => format!("\"{comment}\""),
        None => first.key.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if count == 1 { text } else { format!("{text} and {} more", count - 1) }
}

pub(super) fn element_message(
    table: TableRef<'_>,
    set: &str,
    id: u32,
    list: Vec<ListAttribute<SetElementAttribute>>,
) -> SetElementMessage {
    let mut attributes =
        vec![SetElementList::Table(table.name.to_owned()), SetElementList::Set(set.to_owned())];
    if id != 0 {
        attributes.push(SetElementList::SetId(id));
    }
    attributes.push(SetElementList::Elements(list));
    SetElementMessage { attributes }
}

/// The attributes of an element, or of its key alone.
pub(super) fn element_attributes(element: &Element, whole: bool) -> Vec<SetElementAttribute> {
    let value = |bytes: &[u8]| DataAttribute::Value(bytes.to_vec());
    let mut attributes = vec![SetElementAttribute::Key(value(&element.key))];
    if let Some(end) = &element.key_end {
        attributes.push(SetElementAttribute::KeyEnd(vec![DefaultNla::new(1, end.clone())]));
    }
    if element.interval_end {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    if whole {
        match &element.data {
            None => {}
            Some(Data::Value(bytes)) => attributes.push(SetElementAttribute::Data(value(bytes))),
            Some(Data::Verdict(verdict)) => {
                attributes.push(SetElementAttribute::Data(verdict_data(verdict)));
            }
        }
        let comment = element.comment.as_deref();
        attributes.extend(comment.map(|comment| SetElementAttribute::UserData(comment_data(0, comment))));
    }
    attributes
}

pub(super) fn verdict_data(verdict: &Verdict) -> DataAttribute {
    let mut attributes = vec![VerdictAttribute::Code(verdict.code().cast_unsigned().into())];
    if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict {
        attributes.push(VerdictAttribute::Chain(chain.clone()));
    }
    DataAttribute::Verdict(attributes)
}

/// NFTA_SET_DESC_CONCAT: a list of the parts' lengths.
fn fields(key: DataType) -> DefaultNla {
    let mut list = Vec::new();
    for part in key.parts.iter().filter(|part| **part != 0) {
        let length = u32::from(*part).to_be_bytes().to_vec();
        list.extend(emitted(&DefaultNla::new(1 | NLA_F_NESTED, emitted(&DefaultNla::new(1, length)))));
    }
    DefaultNla::new(2 | NLA_F_NESTED, list)
}

/// A comment as user data in the form of libnftnl: type, length, text, zero byte.
fn comment_data(kind: u8, comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(MAX_COMMENT);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let text = comment.as_bytes().get(..end).unwrap_or_default();
    let mut data = vec![kind, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(text);
    data.push(0);
    data
}

/// For `nft` to print numbers in the machine's byte order as such (NFTNL_UDATA_SET_KEYBYTEORDER and _DATABYTEORDER).
fn byte_order(kind: u8, data: Option<DataType>) -> Vec<u8> {
    match data {
        Some(DataType::MARK | DataType::IFINDEX | DataType::IFNAME) => {
            let mut bytes = vec![kind, 4];
            // BYTEORDER_HOST_ENDIAN
            bytes.extend_from_slice(&1_u32.to_ne_bytes());
            bytes
        }
        _ => Vec::new(),
    }
}
