//! podwire behind another plugin of the chain: the interface and its addresses are that plugin's.

use super::{Config, wrong};
use crate::protocol::CniError;
use crate::protocol::json::Field;

/// Keys about making an interface and giving it addresses.
const MAIN: [&str; 13] = [
    "ipam",
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "hairpinMode",
    "promiscMode",
    "portIsolation",
    "enabledad",
    "disableContainerInterface",
    "vlan",
    "vlanTrunk",
    "dns",
];

/// Those of the keys that ask for anything.
pub(super) fn main_keys(root: &Field<'_>) -> Vec<&'static str> {
    MAIN.into_iter().filter(|key| !root.at(key).is_zero()).collect()
}

/// Whether this configuration asks for nothing but what can be added to an interface that another plugin made.
///
/// # Errors
/// Code 7 names the key that belongs to the plugin that makes the interface.
pub fn check_chained(config: &Config) -> Result<(), CniError> {
    match config.main_keys.as_slice() {
        [] => Ok(()),
        keys => Err(wrong(format!(
            "podwire is behind another plugin of the chain (there is a prevResult), whose part {} would be: leave it out",
            keys.join(", ")
        ))),
    }
}
