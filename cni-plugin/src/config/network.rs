//! What every plugin's configuration has: version, name, type.

use crate::protocol::json::Field;
use crate::protocol::{CniError, CniVersion, Verb, code, is_name, parse_folded};

/// The keys that every configuration has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// `cniVersion`; results are written in it.
    pub version: CniVersion,
    /// `name` of the network.
    pub name: String,
    /// `type`, the name of the plugin that was called; may be empty.
    pub plugin: String,
}

impl Network {
    /// The version alone, for the errors about all the rest; the latest where there is none that we speak.
    pub fn version_of(stdin: &[u8]) -> CniVersion {
        let value = parse_folded(stdin);
        value.and_then(|value| version(&Field::root(&value))).unwrap_or(CniVersion::LATEST)
    }

    pub(crate) fn from_field(root: &Field<'_>, verb: Verb) -> Result<Self, CniError> {
        if !root.is_object() {
            return Err(CniError { code: code::DECODING_FAILURE, ..root.invalid("an object") });
        }
        let name = root.at("name");
        let Some(text) = name.text()? else {
            return Err(CniError::new(code::INVALID_NETWORK_CONFIG, "missing network name"));
        };
        if !is_name(text) {
            return Err(name.invalid("letters, digits, '_', '.', '-'; the first a letter or digit"));
        }
        let version = version(root)?;
        version.check_verb(verb)?;
        // An unreadable type changes nothing: the caller knows whom it called.
        let plugin = root.at("type").text().ok().flatten().unwrap_or_default();
        Ok(Self { version, name: text.to_owned(), plugin: plugin.to_owned() })
    }
}

fn version(root: &Field<'_>) -> Result<CniVersion, CniError> {
    let text = root.at("cniVersion").text();
    let text = text.map_err(|error| CniError { code: code::DECODING_FAILURE, ..error })?;
    CniVersion::parse(text.unwrap_or_default())
}
