//! Where settings come from: a flag goes before the environment, that before the file, that before the default. PURE.

use std::collections::BTreeMap;

use super::document::{Field, Located, Mistake, Place, Value, parse, unknown};

/// A setting that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its name with the tables it stands in: `log.level`.
    pub name: &'static str,
    /// What it is unless it is given, as TOML.
    pub default: &'static str,
}

impl Key {
    /// The variable of the environment that sets it, behind a prefix: `PODWIRED_LOG_LEVEL`.
    pub fn variable(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.name.to_uppercase().replace('.', "_"))
    }
}

/// What stands where nobody gave a value.
const DEFAULT: &str = "default";

/// The values of all keys.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    keys: &'static [Key],
    values: BTreeMap<&'static str, Located>,
    mistakes: Vec<Mistake>,
}

impl Layers {
    /// The defaults.
    pub(crate) fn new(keys: &'static [Key]) -> Self {
        let mut layers = Self { keys, values: BTreeMap::new(), mistakes: Vec::new() };
        let place = Place::of(DEFAULT);
        for key in keys {
            match Value::parse(key.default, &place) {
                Ok(value) => drop(layers.values.insert(key.name, Located { value, place: place.clone() })),
                Err(why) => layers.mistakes.push(Mistake::new(&place, key.name, why)),
            }
        }
        layers
    }

    /// Lays a file over what there is.
    pub(crate) fn add_file(&mut self, name: &str, text: &str) {
        match parse(name, text) {
            Ok(document) => self.add_table("", document),
            Err(mistake) => self.mistakes.push(mistake),
        }
    }

    fn add_table(&mut self, prefix: &str, table: BTreeMap<String, Located>) {
        for (key, located) in table {
            let name = format!("{prefix}{key}");
            if let Some(known) = self.keys.iter().find(|known| known.name == name) {
                self.values.insert(known.name, located);
                continue;
            }
            let inner = format!("{name}.");
            let is_table = self.keys.iter().any(|known| known.name.starts_with(&inner));
            match located {
                Located { value: Value::Table(table), .. } if is_table => self.add_table(&inner, table),
                located if is_table => {
                    let why = format!("{} is not a table: write [{name}]", located.value);
                    self.mistakes.push(Mistake::new(&located.place, &name, why));
                }
                located => self.add_unknown(&name, &located.place),
            }
        }
    }

    fn add_unknown(&mut self, name: &str, place: &Place) {
        let why = unknown(name, self.keys.iter().map(|key| key.name));
        self.mistakes.push(Mistake::new(place, name, why));
    }

    /// Lays a text over the value of a key, as flags and the environment give it.
    pub(crate) fn add_text(&mut self, name: &str, text: &str, place: Place) {
        let Some(key) = self.keys.iter().find(|key| key.name == name) else {
            return self.add_unknown(name, &place);
        };
        let located = |value: Value| Located { value, place: place.clone() };
        let value = match self.values.get(key.name).map(|located| &located.value) {
            Some(Value::Text(_)) => Value::Text(text.to_owned()),
            Some(Value::List(_)) if !text.trim_start().starts_with('[') => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::List(parts.map(|part| located(Value::Text(part.to_owned()))).collect())
            }
            // What it is not, its reader says.
            _ => Value::parse(text.trim(), &place).unwrap_or_else(|_| Value::Text(text.to_owned())),
        };
        self.values.insert(key.name, located(value));
    }

    /// Reads the value of a key; what is wrong with it is remembered, and something else given meanwhile.
    pub(crate) fn read<T: Default>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Field<'_>) -> Result<T, Mistake>,
    ) -> T {
        let Some(located) = self.values.get(name) else { return T::default() };
        match read(&Field::new(name, located)) {
            Ok(value) => value,
            Err(mistake) => {
                self.mistakes.push(mistake);
                T::default()
            }
        }
    }

    /// Whether somebody gave it.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|located| *located.place.source != *DEFAULT)
    }

    /// That the value of this key does not go with others; told where `at` stands, another key or the same.
    pub(crate) fn complain(&mut self, at: &str, name: &str, why: impl Into<String>) {
        let unknown = Place::of(DEFAULT);
        let place = self.values.get(at).map_or(&unknown, |located| &located.place);
        self.mistakes.push(Mistake::new(place, name, why));
    }

    /// Takes a key's value, to be read by others.
    pub(crate) fn take(&mut self, name: &str) -> Option<Located> {
        self.values.remove(name)
    }

    /// Something that others found.
    pub(crate) fn add(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    /// Whether something is wrong so far.
    pub(crate) fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// The keys with their values and places, in the order in which they are declared.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Located)> {
        self.keys.iter().filter_map(|key| Some((key.name, self.values.get(key.name)?)))
    }

    /// All that was wrong so far.
    pub(crate) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }
}
