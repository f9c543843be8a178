//! Which installation of its name this node is: a random id, drawn once and kept on its disk.
//!
//! A machine that is made again under an old name has another one, and so has not yet what the old one had. A cloned disk
//! has the same one, which the store notices when both are present.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::store::Identity;
use podwire_ipam::file;

/// The version of the file that this program writes.
const VERSION: u32 = 1;

/// `<state-dir>/identity.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    instance: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[error("{op} {path}: {source}")]
pub struct IdentityError {
    op: &'static str,
    path: String,
    source: io::Error,
}

/// Reads this node's identity, or draws one. A file that is damaged is set aside, with a notice: the node is then another
/// installation of its name, as far as others can tell.
///
/// # Errors
/// The file cannot be read or written: without an identity that lasts a node must not claim anything.
pub fn load(
    state: &Path,
    name: &str,
    boot: String,
    notices: &mut Vec<String>,
) -> Result<Identity, IdentityError> {
    let path = state.join("identity.json");
    let failed = |op| {
        let path = path.display().to_string();
        move |source| IdentityError { op, path, source }
    };
    let instance = match fs::read(&path) {
        Ok(content) => match read(&content) {
            Ok(instance) => Some(instance),
            Err(why) => {
                let aside = file::set_aside(&path).map_err(failed("set aside"))?;
                notices.push(format!(
                    "{} is damaged ({why}) and now {}; this node joins as a new installation of {name}",
                    path.display(),
                    aside.display()
                ));
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read")(error)),
    };
    let instance = match instance {
        Some(instance) => instance,
        None => {
            let instance = format!("{:032x}", rand::random::<u128>());
            file::make_private_directory(state).map_err(failed("make the directory of"))?;
            let stored = Stored { version: VERSION, instance };
            let content = serde_json::to_vec(&stored).map_err(|error| failed("write")(error.into()))?;
            file::replace(&path, &content, 0o600).map_err(failed("write"))?;
            stored.instance
        }
    };
    Ok(Identity { name: name.to_owned(), instance, boot })
}

/// The instance. That of a newer program's file is as good: this one never writes over a file that it can read.
fn read(content: &[u8]) -> Result<String, String> {
    let stored: Stored = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let is_id = stored.instance.len() == 32 && stored.instance.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_id {
        true => Ok(stored.instance),
        false => Err("its instance is not 32 hexadecimal digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn load(state: &Path) -> (Identity, Vec<String>) {
        let mut notices = Vec::new();
        let identity = super::load(state, "n1", "boot".to_owned(), &mut notices).unwrap();
        (identity, notices)
    }

    #[test]
    fn it_is_drawn_once_and_kept_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        let (first, notices) = load(&state);
        assert_eq!(notices, Vec::<String>::new());
        assert_eq!(load(&state), (first.clone(), Vec::new()));
        let mode = fs::metadata(state.join("identity.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (other, _) = load(&root.path().join("other"));
        assert_ne!(first.instance, other.instance);
    }

    #[test]
    fn a_damaged_one_is_set_aside_and_said_so() {
        for content in ["", "{", r#"{"version":1,"instance":"../../etc"}"#, r#"{"version":1}"#, "\u{0}\u{0}"]
        {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("identity.json"), content).unwrap();
            let (identity, notices) = load(root.path());
            assert_eq!(identity.instance.len(), 32);
            assert!(notices.len() == 1 && notices[0].contains("damaged"), "{content}: {notices:?}");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
            assert_eq!(load(root.path()), (identity, Vec::new()));
        }
    }

    #[test]
    fn a_newer_programs_file_is_read_and_left() {
        let root = tempfile::tempdir().unwrap();
        let content = r#"{"version":9,"instance":"00112233445566778899aabbccddeeff","key":"k"}"#;
        fs::write(root.path().join("identity.json"), content).unwrap();
        assert_eq!(load(root.path()).0.instance, "00112233445566778899aabbccddeeff");
        assert_eq!(fs::read_to_string(root.path().join("identity.json")).unwrap(), content);
    }
}
