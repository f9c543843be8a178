//! TOML with the place where each value stands, so that whatever is wrong with it can be told with a line number. PURE.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// A file, a variable of the environment or a flag.
    pub source: Arc<str>,
    /// The line in a file, from 1.
    pub line: Option<usize>,
}

impl Place {
    pub(crate) fn of(source: &str) -> Self {
        Self { source: source.into(), line: None }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// Something that cannot be used as it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it stands: a file with a line, a variable of the environment, a flag.
    pub place: String,
    /// The key, if it is about one.
    pub key: String,
    /// What is wrong, the value that was given, and what is allowed.
    pub why: String,
}

impl Mistake {
    pub(crate) fn new(place: &Place, key: &str, why: impl Into<String>) -> Self {
        Self { place: place.to_string(), key: key.to_owned(), why: why.into() }
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.place, self.why),
            key => write!(f, "{}: {key}: {}", self.place, self.why),
        }
    }
}

/// A TOML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Located>),
    Table(BTreeMap<String, Located>),
    /// No key takes one: a fraction, a date, a number beyond 64 bits.
    Other(String),
}

/// A value where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Located {
    pub value: Value,
    pub place: Place,
}

/// How much of a value is told.
const SHOWN: usize = 120;

impl Value {
    /// Reads a value alone, such as a variable of the environment has.
    pub(crate) fn parse(text: &str, place: &Place) -> Result<Self, String> {
        let value = DeValue::parse(text).map_err(|error| error.message().to_owned())?;
        let lines = Lines { place, starts: None };
        Ok(lines.value(value.get_ref()))
    }

    /// For errors: a value of a few characters as it is.
    fn shown(&self) -> String {
        let text = self.to_string();
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text,
        }
    }
}

/// As TOML.
impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Boolean(is) => write!(f, "{is}"),
            Self::Other(text) => f.write_str(text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, located) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", located.value)?;
                }
                f.write_str("]")
            }
            Self::Table(entries) => {
                f.write_str("{")?;
                for (index, (key, located)) in entries.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma} {key} = {}", located.value)?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// Reads a file's text.
pub(crate) fn parse(name: &str, text: &str) -> Result<BTreeMap<String, Located>, Mistake> {
    let place = Place::of(name);
    let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect();
    let lines = Lines { place: &place, starts: Some(starts) };
    let table = DeTable::parse(text).map_err(|error| {
        let place = error.span().map_or_else(|| place.clone(), |span| lines.place(&span));
        Mistake::new(&place, "", error.message())
    })?;
    Ok(lines.table(table.get_ref()))
}

struct Lines<'a> {
    place: &'a Place,
    /// Where each line but the first begins; `None` for a value that stands in no file.
    starts: Option<Vec<usize>>,
}

impl Lines<'_> {
    fn place(&self, span: &Range<usize>) -> Place {
        let line = |starts: &Vec<usize>| starts.partition_point(|start| *start <= span.start) + 1;
        Place { line: self.starts.as_ref().map(line), ..self.place.clone() }
    }

    fn located(&self, value: &Spanned<DeValue<'_>>) -> Located {
        Located { value: self.value(value.get_ref()), place: self.place(&value.span()) }
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Other(number.to_string()),
            },
            DeValue::Boolean(is) => Value::Boolean(*is),
            DeValue::Float(number) => Value::Other(number.to_string()),
            DeValue::Datetime(date) => Value::Other(date.to_string()),
            DeValue::Array(values) => Value::List(values.iter().map(|value| self.located(value)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> BTreeMap<String, Located> {
        let entry = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            (key.get_ref().clone().into_owned(), self.located(value))
        };
        table.iter().map(entry).collect()
    }
}

/// A value with its key, to be read as what it should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub key: &'a str,
    pub located: &'a Located,
}

impl<'a> Field<'a> {
    pub(crate) fn new(key: &'a str, located: &'a Located) -> Self {
        Self { key, located }
    }

    /// That the value is not `allowed`.
    pub(crate) fn wrong(&self, allowed: impl Display) -> Mistake {
        self.mistake(format!("{} is not {allowed}", self.located.value.shown()))
    }

    pub(crate) fn mistake(&self, why: impl Into<String>) -> Mistake {
        Mistake::new(&self.located.place, self.key, why)
    }

    pub(crate) fn text(&self, allowed: impl Display) -> Result<&'a str, Mistake> {
        match &self.located.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(allowed)),
        }
    }

    /// A text of which a type can be made.
    pub(crate) fn parsed<T: FromStr>(&self, allowed: impl Display) -> Result<T, Mistake> {
        self.text(&allowed)?.parse().map_err(|_| self.wrong(allowed))
    }

    /// The same, where the empty text means that there is none.
    pub(crate) fn parsed_unless_empty<T: FromStr>(
        &self,
        allowed: impl Display,
    ) -> Result<Option<T>, Mistake> {
        match &self.located.value {
            Value::Text(text) if text.is_empty() => Ok(None),
            _ => self.parsed(allowed).map(Some),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, Mistake> {
        match self.located.value {
            Value::Boolean(is) => Ok(is),
            _ => Err(self.wrong("true or false")),
        }
    }

    /// A whole number; `what` names its unit.
    pub(crate) fn number<T>(&self, range: RangeInclusive<T>, what: &str) -> Result<T, Mistake>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let number = match self.located.value {
            Value::Integer(number) => T::try_from(number).ok(),
            _ => None,
        };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.wrong(format!("{what} from {} to {}", range.start(), range.end())))
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Mistake> {
        let chosen = match &self.located.value {
            Value::Text(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(format!("one of {}", words.join(", ")))
        })
    }

    /// The elements of a list, each with the list's key.
    pub(crate) fn list(&self, what: &str) -> Result<impl Iterator<Item = Field<'a>>, Mistake> {
        let key = self.key;
        match &self.located.value {
            Value::List(values) => Ok(values.iter().map(move |located| Field { key, located })),
            _ => Err(self.wrong(format!("a list of {what}"))),
        }
    }

    /// The entries of a table that may have these keys.
    pub(crate) fn table(&self, keys: &[&str]) -> Result<&'a BTreeMap<String, Located>, Mistake> {
        let Value::Table(entries) = &self.located.value else {
            return Err(self.wrong(format!("a table of {}", keys.join(", "))));
        };
        match entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
            Some((key, located)) => Err(Mistake::new(
                &located.place,
                &format!("{}.{key}", self.key),
                unknown(key, keys.iter().copied()),
            )),
            None => Ok(entries),
        }
    }

    /// An entry of such a table that must be there.
    pub(crate) fn entry(
        &self,
        entries: &'a BTreeMap<String, Located>,
        key: &'a str,
    ) -> Result<Field<'a>, Mistake> {
        let entry = entries.get(key).map(|located| Field { key, located });
        entry.ok_or_else(|| self.mistake(format!("{key} is missing")))
    }
}

/// What to say about a key that nothing knows.
pub(crate) fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    // In another table, or mistyped.
    let elsewhere = known.clone().find(|other| last(other) == last(key));
    let similar = known.clone().map(|other| (distance(key, other), other)).min();
    let near =
        elsewhere.or_else(|| similar.filter(|(far, _)| *far <= 1 + key.len() / 4).map(|(_, near)| near));
    let table = key.rsplit_once('.').map_or("", |(table, _)| table);
    let beside =
        || known.clone().filter(|other| other.rsplit_once('.').map_or("", |(table, _)| table) == table);
    match near {
        Some(near) => format!("no such key: did you mean {near}?"),
        None if beside().next().is_some() => {
            format!("no such key: there are {}", beside().collect::<Vec<_>>().join(", "))
        }
        None => "no such key, nor such a table".to_owned(),
    }
}

/// How many characters have to be put in, left out or replaced to come from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, x) in a.chars().enumerate() {
        let mut before = index;
        let mut left = index + 1;
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            left = (before + usize::from(x != *y)).min(above + 1).min(left + 1);
            before = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_the_line_that_it_stands_on() {
        let text = "a = 1\n\n[b]\nc = [\"x\",\n  \"y\"]\n[[d]]\ne = true\n[[d]]\ne = false\n";
        let document = parse("f", text).unwrap();
        let line = |located: &Located| located.place.line;
        assert_eq!(line(&document["a"]), Some(1));
        let Value::Table(b) = &document["b"].value else { panic!("no table") };
        let Value::List(c) = &b["c"].value else { panic!("no list") };
        assert_eq!(c.iter().map(line).collect::<Vec<_>>(), [Some(4), Some(5)]);
        let Value::List(d) = &document["d"].value else { panic!("no list") };
        assert_eq!(d.iter().map(line).collect::<Vec<_>>(), [Some(6), Some(8)]);
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        for (text, line) in
            [("a = 1\nb = \n", "f:2"), ("a = 1\na = 2\n", "f:2"), ("[a\n", "f:1"), ("\n\nx", "f:3")]
        {
            let mistake = parse("f", text).unwrap_err();
            assert!(mistake.to_string().starts_with(&format!("{line}: ")), "{text:?}: {mistake}");
        }
    }

    #[test]
    fn values_show_as_they_are_written() {
        for text in
            ["\"a\"", "'a \"b\"'", "7", "true", "[1, \"x\"]", "{ a = 1, b = [] }", "1.5", "1979-05-27"]
        {
            assert_eq!(Value::parse(text, &Place::of("f")).unwrap().to_string(), text);
        }
        assert_eq!(
            Value::parse("99999999999999999999", &Place::of("f")).unwrap().to_string(),
            "99999999999999999999"
        );
        let long = Value::Text("ö".repeat(1000));
        assert_eq!(long.shown().chars().count(), SHOWN + 1);
    }

    #[test]
    fn the_nearest_key_is_named() {
        let keys = ["log.level", "log.format", "cluster.etcd.endpoints"];
        let told = |key: &str| unknown(key, keys.iter().copied());
        assert_eq!(told("log.levle"), "no such key: did you mean log.level?");
        assert_eq!(told("endpoints"), "no such key: did you mean cluster.etcd.endpoints?");
        assert_eq!(told("log.x"), "no such key: there are log.level, log.format");
        assert_eq!(told("x"), "no such key, nor such a table");
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }
}
