//! JSON as Go's library reads it, which is what CNI's users rely on.
//!
//! Go matches keys without regard to case, and containerd relies on it: its port mappings arrive as
//! `{"HostPort":..}` and its DNS settings as `{"Servers":..}`. So every key is folded to lower case as it is
//! read, the last of two equal keys wins, `null` means "not there", and unknown keys are ignored. The names of sysctls
//! are data, not keys: they keep their case and their order.

use std::fmt;
use std::io::Read;
use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::code;
use super::error::CniError;

/// The most bytes of a document that are read: 1 MiB. Real configurations have a few thousand.
pub const MAX_INPUT: usize = 1 << 20;

/// Objects and arrays inside each other: no CNI document needs ten. A bound of our own keeps the stack that a
/// hostile one can use small.
const MAX_DEPTH: usize = 64;

/// How many characters of a bad value an error quotes.
const QUOTED: usize = 120;

/// Reads a document from standard input.
///
/// # Errors
/// Code 5 if reading fails or there are more than [`MAX_INPUT`] bytes.
pub fn read_input(input: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_INPUT as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| CniError::new(code::IO_FAILURE, format!("error reading from stdin: {e}")))?;
    if bytes.len() > MAX_INPUT {
        let message = format!("the configuration on stdin is larger than {MAX_INPUT} bytes");
        return Err(CniError::new(code::IO_FAILURE, message));
    }
    Ok(bytes)
}

/// Parses a document, all keys of all its objects folded to lower case.
///
/// # Errors
/// Code 6 if it is not JSON, is larger than [`MAX_INPUT`], or nests too deeply.
pub fn parse_folded(document: &[u8]) -> Result<Value, CniError> {
    if document.len() > MAX_INPUT {
        let message = format!("the JSON document is larger than {MAX_INPUT} bytes");
        return Err(CniError::new(code::DECODING_FAILURE, message));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let parsed = Folded { depth: 0, names: false }.deserialize(&mut deserializer);
    let wrong = |e| CniError::new(code::DECODING_FAILURE, format!("error parsing JSON: {e}"));
    let value = parsed.map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(value)
}

/// A document of ours as text.
pub(crate) fn write(document: &impl Serialize) -> String {
    // Our documents are structs of texts and numbers: no map with other keys, nothing that fails.
    serde_json::to_string(document).unwrap_or_default()
}

/// The key of the objects whose keys are names.
const NAMES: &str = "sysctl";
/// Under this key such an object is held, as a list of names and values.
const PAIRS: &str = "pairs";

struct Folded {
    depth: usize,
    /// The value is one of [`NAMES`].
    names: bool,
}

impl Folded {
    fn inner<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!(
                "more than {MAX_DEPTH} objects and arrays inside each other"
            )));
        }
        Ok(self.depth + 1)
    }
}

impl<'de> DeserializeSeed<'de> for Folded {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Folded {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = access.next_element_seed(Folded { depth, names: false })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.inner()?;
        let mut map = Map::new();
        if self.names {
            let mut pairs = Vec::new();
            while let Some(name) = access.next_key::<String>()? {
                pairs.push(Value::Array(vec![
                    name.into(),
                    access.next_value_seed(Folded { depth, names: false })?,
                ]));
            }
            map.insert(PAIRS.to_owned(), pairs.into());
            return Ok(Value::Object(map));
        }
        while let Some(mut key) = access.next_key::<String>()? {
            key.make_ascii_lowercase();
            let names = key == NAMES;
            map.insert(key, access.next_value_seed(Folded { depth, names })?);
        }
        Ok(Value::Object(map))
    }
}

static NULL: Value = Value::Null;

/// A value of a folded document and the way to it, so that an error can name both.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    value: &'a Value,
    path: String,
}

impl Default for Field<'_> {
    /// A field that is not there.
    fn default() -> Self {
        Self { value: &NULL, path: String::new() }
    }
}

impl<'a> Field<'a> {
    /// The document itself.
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The value of that key, written as the documentation writes it; null where there is none.
    pub(crate) fn at(&self, key: &str) -> Self {
        let value = self.value.get(key.to_ascii_lowercase()).unwrap_or(&NULL);
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { value, path: format!("{}{dot}{key}", self.path) }
    }

    /// Whether the key is there, if only with `null`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value.get(key.to_ascii_lowercase()).is_some()
    }

    /// The object of that key; a null field, none of whose keys is there, if it is absent.
    pub(crate) fn object(&self, key: &str) -> Result<Self, CniError> {
        self.at(key).as_object()
    }

    /// The same field, which must be an object or null.
    pub(crate) fn as_object(&self) -> Result<Self, CniError> {
        match self.value {
            Value::Null | Value::Object(_) => Ok(self.clone()),
            _ => Err(self.invalid("an object")),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value.is_null()
    }

    /// Whether nothing is said: absent, or the empty text.
    pub(crate) fn is_unset(&self) -> bool {
        self.is_null() || self.value.as_str() == Some("")
    }

    /// Whether nothing is asked for: absent, or what Go takes for absent, as `false`, `0`, `""`, `[]` and `{}`.
    pub(crate) fn is_zero(&self) -> bool {
        match self.value {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
        }
    }

    pub(crate) fn is_object(&self) -> bool {
        self.value.is_object()
    }

    /// Where the value stands, such as `ipam.ranges[0][0].subnet`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The text; `None` where it is absent or empty, which is Go's way to write "not set".
    pub(crate) fn text(&self) -> Result<Option<&'a str>, CniError> {
        match self.value {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.invalid("a text")),
        }
    }

    /// The switch; off where it is absent.
    pub(crate) fn switch(&self) -> Result<bool, CniError> {
        Ok(self.choice()?.unwrap_or(false))
    }

    /// The switch; `None` where it is absent.
    pub(crate) fn choice(&self) -> Result<Option<bool>, CniError> {
        match self.value {
            Value::Null => Ok(None),
            Value::Bool(on) => Ok(Some(*on)),
            _ => Err(self.invalid("true or false")),
        }
    }

    /// The whole number within bounds; `None` where it is absent.
    pub(crate) fn number(&self, bounds: RangeInclusive<u64>) -> Result<Option<u64>, CniError> {
        if self.value.is_null() {
            return Ok(None);
        }
        let number = self.value.as_u64().filter(|number| bounds.contains(number));
        match number {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(&format!("a whole number from {} to {}", bounds.start(), bounds.end()))),
        }
    }

    /// The number of something that 0 means "not set" for, as Go's `omitempty` has it.
    pub(crate) fn positive(&self) -> Result<Option<u32>, CniError> {
        let number = self.number(0..=u32::MAX.into())?;
        Ok(number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number != 0))
    }

    /// An index into a list; some plugins write -1 for "none".
    pub(crate) fn index(&self) -> Result<Option<u32>, CniError> {
        if self.value.as_i64() == Some(-1) {
            return Ok(None);
        }
        Ok(self.number(0..=u32::MAX.into())?.and_then(|index| u32::try_from(index).ok()))
    }

    /// The list's elements; none where it is absent.
    pub(crate) fn list(&self) -> Result<Vec<Self>, CniError> {
        let elements = match self.value {
            Value::Null => return Ok(Vec::new()),
            Value::Array(elements) => elements,
            _ => return Err(self.invalid("a list")),
        };
        let element = |(index, value)| Self { value, path: format!("{}[{index}]", self.path) };
        Ok(elements.iter().enumerate().map(element).collect())
    }

    /// The list's texts.
    pub(crate) fn texts(&self) -> Result<Vec<String>, CniError> {
        let text = |element: Self| Ok(element.text()?.unwrap_or_default().to_owned());
        self.list()?.into_iter().map(text).collect()
    }

    /// The names and values of an object whose keys are names, in the document's order; none where it is absent.
    pub(crate) fn pairs(&self) -> Result<Vec<(&'a str, Self)>, CniError> {
        let pairs = match self.value {
            Value::Null => return Ok(Vec::new()),
            Value::Object(map) => map.get(PAIRS).and_then(Value::as_array).into_iter().flatten(),
            _ => return Err(self.invalid("an object")),
        };
        let pair = |pair: &'a Value| match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(name), value]) => {
                Some((name.as_str(), Self { value, path: format!("{}[{name:?}]", self.path) }))
            }
            _ => None,
        };
        Ok(pairs.filter_map(pair).collect())
    }

    /// The text as something else; `None` where it is absent or empty.
    pub(crate) fn parsed<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, CniError> {
        let Some(text) = self.text()? else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| self.invalid(expected))
    }

    /// Code 7, naming the key, its value and what was expected.
    pub(crate) fn invalid(&self, expected: &str) -> CniError {
        let message = format!("invalid {}: {} (expected {expected})", self.name(), self.quoted());
        CniError::new(code::INVALID_NETWORK_CONFIG, message)
    }

    /// Code 2, naming the key and its value.
    pub(crate) fn unsupported(&self, instead: &str) -> CniError {
        let message = format!("unsupported {}: {} ({instead})", self.name(), self.quoted());
        CniError::new(code::UNSUPPORTED_FIELD, message)
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "document" } else { &self.path }
    }

    fn quoted(&self) -> String {
        let text = self.value.to_string();
        match text.char_indices().nth(QUOTED) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text,
        }
    }
}

#[cfg(test)]
mod tests;
