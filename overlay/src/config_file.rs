//! Reads what a configuration is made of: the file, the environment, the host's name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigErrors, DEFAULT_FILE, Flag, Mistake, Resolved, SourceFile, Sources};

/// The agent's configuration as it would be now, with these flags. A file that is named has to be there.
///
/// # Errors
/// All that is wrong with it.
pub fn load(file: Option<&Path>, flags: &[Flag]) -> Result<Resolved, ConfigErrors> {
    let file = read(file)?;
    let environment = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Config::resolve(&Sources {
        file: file.as_ref().map(|(name, text)| SourceFile { name, text }),
        environment: &environment,
        flags,
        host_name: host_name.trim(),
    })
}

/// The file's name and text, if there is one.
fn read(named: Option<&Path>) -> Result<Option<(String, String)>, ConfigErrors> {
    let path = named.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_owned);
    let name = path.display().to_string();
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((name, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(error) => {
            let why = format!("cannot be read: {error}");
            Err(ConfigErrors(vec![Mistake { place: name, key: String::new(), why }]))
        }
    }
}
