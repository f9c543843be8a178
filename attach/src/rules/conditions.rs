//! `conditionsV4` and `conditionsV6`: who may use a host port, in the words of nft. PURE.
//!
//! The words of all entries are one text, so `["ip saddr 192.0.2.0/24", "meta mark 7"]` and
//! `["ip", "saddr", "192.0.2.0/24", "meta", "mark", "7"]` say the same; every match in it must hold.
//!
//! | match | values |
//! |---|---|
//! | `ip saddr`, `ip daddr` (`ip6 …` in `conditionsV6`) | addresses, prefixes, ranges `a-b` |
//! | `tcp sport`, `tcp dport`, `udp …`, `sctp …`, `th …` | numbers, ranges |
//! | `meta l4proto` | `tcp`, `udp`, `sctp`, numbers |
//! | `iifname`, `oifname`, with or without `meta` | names, `"eth*"` for all that begin so |
//! | `mark`, `meta mark`, `ct mark`, also `mark and 0xff` | numbers, ranges |
//! | `ct state` | `new`, `established`, `related`, `invalid`, `untracked`, several with commas |
//!
//! Before the value may stand `==` or `!=` (`eq`, `ne`), before ports and marks also `<`, `<=`, `>`, `>=`; instead of one
//! value a list in braces. What else nft knows is refused by name: a condition that is not understood must not let
//! anybody in.

use std::fmt;
use std::iter::Peekable;
use std::net::IpAddr;
use std::vec::IntoIter;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::nft::{
    CT_ESTABLISHED, CT_INVALID, CT_NEW, CT_RELATED, CT_UNTRACKED, CmpOp, CtKey, Expr, Header, MetaKey, Reg,
    ifname,
};

use super::matches::{End, KEY, compare_network, load_address, octets};

/// The most rules that lists in braces may lead to: each combination of their values is one.
const MAX_ALTERNATIVES: usize = 256;

/// Conditions that a packet to a host port must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// The words, one blank between two: equal for conditions that say the same.
    pub(super) text: String,
    /// Each of them is a whole set of conditions; one has to hold.
    pub(super) alternatives: Vec<Vec<Expr>>,
}

impl Conditions {
    /// These conditions, if any, and: not to 127.0.0.0/8. Without masquerade a pod's answers to a client there go astray,
    /// and what the node itself listens to at its loopback address stays reachable.
    pub(super) fn not_to_loopback(conditions: Option<Self>) -> Self {
        let Self { text, alternatives } =
            conditions.unwrap_or_else(|| Self { text: String::new(), alternatives: vec![Vec::new()] });
        let loopback = ipnetwork::Ipv4Network::new(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).ok();
        let not_there = loopback
            .map_or_else(Vec::new, |network| compare_network(End::Destination, network.into(), CmpOp::Ne));
        Self {
            text: format!("ip daddr != 127.0.0.0/8 {text}"),
            alternatives: alternatives.iter().map(|all| [not_there.as_slice(), all].concat()).collect(),
        }
    }
}

/// A word of a condition that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {found} where {expected} is expected; write matches of nft, such as {example:?}")]
pub struct ConditionError {
    /// `conditionsV4` or `conditionsV6`.
    key: &'static str,
    /// The word, in quotes, or that it is missing.
    found: String,
    /// What may stand there.
    expected: &'static str,
    /// What it could look like.
    example: &'static str,
}

/// Reads the conditions of one family. No words, no conditions: `None`.
///
/// # Errors
/// Names the first word that is not understood.
pub fn parse(family: Family, conditions: &[String]) -> Result<Option<Conditions>, ConditionError> {
    let words = words(&conditions.join(" "));
    if words.is_empty() {
        return Ok(None);
    }
    let text = words.iter().map(Word::to_string).collect::<Vec<_>>().join(" ");
    let mut parser = Parser { family, words: words.into_iter().peekable() };
    let mut alternatives = vec![Vec::new()];
    while parser.words.peek().is_some() {
        let matched = parser.one_match()?;
        let mut combined = Vec::new();
        for before in &alternatives {
            combined.extend(matched.iter().map(|more| [before.as_slice(), more].concat()));
        }
        if combined.len() > MAX_ALTERNATIVES {
            return Err(parser.error("so many values in braces".to_owned(), "a shorter list"));
        }
        alternatives = combined;
    }
    Ok(Some(Conditions { text, alternatives }))
}

/// A word; those in quotes are never keywords.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Plain(String),
    Quoted(String),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(word) => f.write_str(word),
            Self::Quoted(word) => write!(f, "{word:?}"),
        }
    }
}

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '"' => {
                chars.next();
                words.push(Word::Quoted(chars.by_ref().take_while(|&c| c != '"').collect()));
            }
            '{' | '}' | ',' | '&' => {
                chars.next();
                words.push(Word::Plain(c.to_string()));
            }
            '=' | '!' | '<' | '>' => {
                let mut operator = String::new();
                while let Some(c) = chars.next_if(|c| "=!<>".contains(*c)) {
                    operator.push(c);
                }
                words.push(Word::Plain(operator));
            }
            _ => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !"{},&=!<>\"".contains(*c)) {
                    word.push(c);
                }
                words.push(Word::Plain(word));
            }
        }
    }
    words
}

/// What a match compares.
enum Field {
    Address(End),
    /// A port, of that protocol (`None`: of whatever protocol).
    Port(Option<u8>, u32),
    Protocol,
    Link(MetaKey),
    /// A number in the machine's byte order.
    Mark(Expr),
    State,
}

/// One value of a match.
enum Value {
    /// Equal to these bytes, after the mask.
    Bytes(Vec<u8>),
    Network(IpNetwork),
    Range(Vec<u8>, Vec<u8>),
}

struct Parser {
    family: Family,
    words: Peekable<IntoIter<Word>>,
}

impl Parser {
    fn error(&self, found: String, expected: &'static str) -> ConditionError {
        let (key, example) = match self.family {
            Family::V4 => ("conditionsV4", "ip saddr 192.0.2.0/24"),
            Family::V6 => ("conditionsV6", "ip6 saddr 2001:db8::/32"),
        };
        ConditionError { key, found, expected, example }
    }

    fn unexpected(&self, word: Option<&Word>, expected: &'static str) -> ConditionError {
        let found = match word {
            None => "nothing".to_owned(),
            Some(Word::Plain(word) | Word::Quoted(word)) => format!("{word:?}"),
        };
        self.error(found, expected)
    }

    /// The next word, which must not be missing.
    fn word(&mut self, expected: &'static str) -> Result<Word, ConditionError> {
        match self.words.next() {
            Some(word) => Ok(word),
            None => Err(self.unexpected(None, expected)),
        }
    }

    fn take(&mut self, plain: &str) -> bool {
        self.words.next_if(|word| matches!(word, Word::Plain(word) if word == plain)).is_some()
    }

    /// One match: for each of its values the expressions that hold for it.
    fn one_match(&mut self) -> Result<Vec<Vec<Expr>>, ConditionError> {
        let field = self.field()?;
        let mask = match &field {
            Field::Mark(_) if self.take("and") || self.take("&") => {
                let word = self.word("a mask")?;
                Some(number(&word).ok_or_else(|| self.unexpected(Some(&word), "a mask"))?)
            }
            _ => None,
        };
        let op = self.operator(&field)?;
        let values = self.values(&field)?;
        if matches!(field, Field::State) {
            return Ok(vec![self.state(op, &values)?]);
        }
        let is_equality = matches!(op, CmpOp::Eq | CmpOp::Ne);
        let mut each = Vec::new();
        for word in &values {
            let value = self.value(&field, word)?;
            if !is_equality && (values.len() > 1 || matches!(value, Value::Range(..))) {
                return Err(self.unexpected(Some(word), "a single value"));
            }
            each.push(compare(&field, mask, op, value, self.family));
        }
        // Unlike each of them: all must hold. Like one of them: one has to.
        Ok(if op == CmpOp::Ne { vec![each.concat()] } else { each })
    }

    fn field(&mut self) -> Result<Field, ConditionError> {
        const START: &str = "ip, ip6, tcp, udp, sctp, th, meta, iifname, oifname, mark or ct";
        let word = self.word(START)?;
        let Word::Plain(name) = &word else { return Err(self.unexpected(Some(&word), START)) };
        let field = match (name.as_str(), self.family) {
            ("ip", Family::V4) | ("ip6", Family::V6) => self.address()?,
            ("ip", Family::V6) => return Err(self.unexpected(Some(&word), "ip6")),
            ("ip6", Family::V4) => return Err(self.unexpected(Some(&word), "ip")),
            ("tcp", _) => self.port(Some(6))?,
            ("udp", _) => self.port(Some(17))?,
            ("sctp", _) => self.port(Some(132))?,
            ("th", _) => self.port(None)?,
            ("meta", _) => {
                let word = self.word("l4proto, mark, iifname or oifname")?;
                match &word {
                    Word::Plain(name) if name == "l4proto" => Field::Protocol,
                    word => self.bare_meta(word, "l4proto, mark, iifname or oifname")?,
                }
            }
            ("ct", _) => {
                let word = self.word("state or mark")?;
                match &word {
                    Word::Plain(name) if name == "state" => Field::State,
                    Word::Plain(name) if name == "mark" => {
                        Field::Mark(Expr::Ct { key: CtKey::Mark, direction: None, to: KEY })
                    }
                    word => return Err(self.unexpected(Some(word), "state or mark")),
                }
            }
            _ => self.bare_meta(&word, START)?,
        };
        Ok(field)
    }

    fn bare_meta(&self, word: &Word, expected: &'static str) -> Result<Field, ConditionError> {
        match word {
            Word::Plain(name) if name == "iifname" => Ok(Field::Link(MetaKey::Iifname)),
            Word::Plain(name) if name == "oifname" => Ok(Field::Link(MetaKey::Oifname)),
            Word::Plain(name) if name == "mark" => Ok(Field::Mark(Expr::meta(MetaKey::Mark, KEY))),
            word => Err(self.unexpected(Some(word), expected)),
        }
    }

    fn address(&mut self) -> Result<Field, ConditionError> {
        let word = self.word("saddr or daddr")?;
        match &word {
            Word::Plain(name) if name == "saddr" => Ok(Field::Address(End::Source)),
            Word::Plain(name) if name == "daddr" => Ok(Field::Address(End::Destination)),
            word => Err(self.unexpected(Some(word), "saddr or daddr")),
        }
    }

    fn port(&mut self, protocol: Option<u8>) -> Result<Field, ConditionError> {
        let word = self.word("sport or dport")?;
        match &word {
            Word::Plain(name) if name == "sport" => Ok(Field::Port(protocol, 0)),
            Word::Plain(name) if name == "dport" => Ok(Field::Port(protocol, 2)),
            word => Err(self.unexpected(Some(word), "sport or dport")),
        }
    }

    fn operator(&mut self, field: &Field) -> Result<CmpOp, ConditionError> {
        let op = match self.words.peek() {
            Some(Word::Plain(word)) => match word.as_str() {
                "==" | "eq" => CmpOp::Eq,
                "!=" | "ne" => CmpOp::Ne,
                "<" | "lt" => CmpOp::Lt,
                "<=" | "le" => CmpOp::Le,
                ">" | "gt" => CmpOp::Gt,
                ">=" | "ge" => CmpOp::Ge,
                _ => return Ok(CmpOp::Eq),
            },
            _ => return Ok(CmpOp::Eq),
        };
        let word = self.words.next();
        let is_equality = matches!(op, CmpOp::Eq | CmpOp::Ne);
        if is_equality || matches!(field, Field::Port(..) | Field::Mark(_)) {
            return Ok(op);
        }
        Err(self.unexpected(word.as_ref(), "==, != or a value"))
    }

    /// The words of one value, or of those between braces; states may go without braces.
    fn values(&mut self, field: &Field) -> Result<Vec<Word>, ConditionError> {
        let braces = self.take("{");
        let mut values = Vec::new();
        loop {
            let word = self.word("a value")?;
            if matches!(&word, Word::Plain(word) if ["{", "}", ","].contains(&word.as_str())) {
                return Err(self.unexpected(Some(&word), "a value"));
            }
            values.push(word);
            let more = (braces || matches!(field, Field::State)) && self.take(",");
            if more {
                continue;
            }
            if braces && !self.take("}") {
                let next = self.words.peek().cloned();
                return Err(self.unexpected(next.as_ref(), "a comma or a closing brace"));
            }
            return Ok(values);
        }
    }

    fn state(&self, op: CmpOp, values: &[Word]) -> Result<Vec<Expr>, ConditionError> {
        let mut bits = 0;
        for word in values {
            let Word::Plain(name) = word else {
                return Err(self.unexpected(Some(word), "a connection's state"));
            };
            bits |= match name.as_str() {
                "new" => CT_NEW,
                "established" => CT_ESTABLISHED,
                "related" => CT_RELATED,
                "invalid" => CT_INVALID,
                "untracked" => CT_UNTRACKED,
                _ => return Err(self.unexpected(Some(word), "a connection's state")),
            };
        }
        // One of the bits is set, or none of them.
        let op = if op == CmpOp::Ne { CmpOp::Eq } else { CmpOp::Ne };
        Ok(vec![
            Expr::Ct { key: CtKey::State, direction: None, to: KEY },
            Expr::mask(KEY, bits.to_ne_bytes()),
            Expr::Cmp { reg: KEY, op, value: vec![0; 4] },
        ])
    }

    fn value(&self, field: &Field, word: &Word) -> Result<Value, ConditionError> {
        let text = match word {
            Word::Plain(text) | Word::Quoted(text) => text.as_str(),
        };
        let (value, expected) = match field {
            Field::Address(_) => match self.family {
                Family::V4 => (self.address_value(text), "an IPv4 address, prefix or range"),
                Family::V6 => (self.address_value(text), "an IPv6 address, prefix or range"),
            },
            Field::Port(..) => {
                let bytes = |text: &str| text.parse::<u16>().ok().map(|port| port.to_be_bytes().to_vec());
                (one_or_range(text, bytes), "a port's number or a range of them")
            }
            Field::Protocol => {
                let number = match text {
                    "tcp" => Some(6),
                    "udp" => Some(17),
                    "sctp" => Some(132),
                    number => number.parse::<u8>().ok(),
                };
                (number.map(|number| Value::Bytes(vec![number])), "tcp, udp, sctp or a protocol's number")
            }
            Field::Link(_) => (link_value(text), "a link's name"),
            Field::Mark(_) => {
                // Ranges are compared in network order.
                let bytes = |text: &str| number_of(text).map(|mark| mark.to_be_bytes().to_vec());
                (one_or_range(text, bytes), "a mark or a range of marks")
            }
            Field::State => (None, "a connection's state"),
        };
        value.ok_or_else(|| self.unexpected(Some(word), expected))
    }

    fn address_value(&self, text: &str) -> Option<Value> {
        let is_ours = |address: &IpAddr| address.is_ipv4() == (self.family == Family::V4);
        let one = |text: &str| text.parse::<IpAddr>().ok().filter(is_ours);
        if let Some((from, to)) = text.split_once('-') {
            let (from, to) = (one(from)?, one(to)?);
            return (from <= to).then(|| Value::Range(octets(from), octets(to)));
        }
        let network: IpNetwork = text.parse().ok()?;
        is_ours(&network.ip()).then_some(Value::Network(network))
    }
}

fn one_or_range(text: &str, bytes: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Value> {
    match text.split_once('-') {
        None => bytes(text).map(Value::Bytes),
        Some((from, to)) => {
            let (from, to) = (bytes(from)?, bytes(to)?);
            (from <= to).then_some(Value::Range(from, to))
        }
    }
}

/// A link's name, zero at its end; without the zero for all names that begin so.
fn link_value(text: &str) -> Option<Value> {
    const MAX: usize = 15;
    let beginning = text.strip_suffix('*').unwrap_or(text);
    let is_name = !beginning.is_empty() && beginning.len() <= MAX && !beginning.contains(['/', '*', ':']);
    is_name.then(|| match text.ends_with('*') {
        true => Value::Bytes(beginning.as_bytes().to_vec()),
        false => Value::Bytes(ifname(text).to_vec()),
    })
}

fn number(word: &Word) -> Option<u32> {
    match word {
        Word::Plain(text) => number_of(text),
        Word::Quoted(_) => None,
    }
}

fn number_of(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn compare(field: &Field, mask: Option<u32>, op: CmpOp, value: Value, family: Family) -> Vec<Expr> {
    let mut all = match field {
        Field::Address(end) => match value {
            Value::Network(network) => return compare_network(*end, network, op),
            _ => vec![load_address(family, *end, KEY)],
        },
        Field::Port(protocol, offset) => {
            let is_protocol =
                protocol.map(|number| [Expr::meta(MetaKey::L4proto, KEY), Expr::eq(KEY, [number])]);
            let port = Expr::payload(Header::Transport, *offset, 2, KEY);
            is_protocol.into_iter().flatten().chain([port]).collect()
        }
        Field::Protocol => vec![Expr::meta(MetaKey::L4proto, KEY)],
        Field::Link(key) => vec![Expr::meta(*key, KEY)],
        Field::Mark(load) => {
            let mut all = vec![load.clone()];
            all.extend(mask.map(|mask| Expr::mask(KEY, mask.to_ne_bytes())));
            // Bytes compare like numbers in network order alone.
            all.push(Expr::Byteorder { from: KEY, to: KEY, to_network: true, len: 4, size: 4 });
            all
        }
        Field::State => Vec::new(),
    };
    all.push(compare_register(KEY, op, value));
    all
}

fn compare_register(reg: Reg, op: CmpOp, value: Value) -> Expr {
    match value {
        Value::Bytes(value) => Expr::Cmp { reg, op, value },
        Value::Network(network) => Expr::Cmp { reg, op, value: octets(network.ip()) },
        Value::Range(from, to) => Expr::Range { reg, invert: op == CmpOp::Ne, from, to },
    }
}

#[cfg(test)]
mod tests;
