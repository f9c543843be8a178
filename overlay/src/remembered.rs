//! What the cluster was when the agent last heard of it, on the node's disk: so that a node starts, and serves its pods,
//! while the store is down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::claims::Contact;
use crate::cluster::Snapshot;
use crate::member::Memorable;
use crate::store::{Identity, Membership, Remembered};
use podwire_ipam::file;

/// The version of the file that this program writes. An older one is read; a newer one is neither read nor written over.
const VERSION: u32 = 1;

/// `<state-dir>/cluster.json`.
#[derive(Serialize, Deserialize)]
struct Stored<R> {
    version: u32,
    /// Whose it is: another installation's, or another name's, says nothing about this node's subnets.
    node: String,
    instance: String,
    /// When the store was last heard of.
    #[serde(default)]
    contact: Option<Contact>,
    /// Why this node has its subnets no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fenced: Option<String>,
    remembered: R,
}

/// [`Remembered`] without a copy of a large snapshot.
#[derive(Serialize)]
struct RememberedRef<'a> {
    membership: &'a Membership,
    snapshot: &'a Snapshot,
    mark: Option<(u64, u64)>,
}

/// The version alone, which every program can read.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The file, and whether it may be written.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
    node: String,
    instance: String,
    is_newer: bool,
}

/// What was remembered, and how much of it still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recollection {
    /// What.
    pub remembered: Remembered,
    /// When the store was last heard of.
    pub contact: Option<Contact>,
    /// Why this node had its subnets no more, if it had been told so: they are not to be given out again.
    pub fenced: Option<String>,
}

/// What the agent of a node remembers, and the node's name, for a program that only looks: nothing is set aside. `None` if
/// it has never been a member of a cluster.
///
/// # Errors
/// The file cannot be read or understood; the text says which and why.
pub fn look(state: &Path) -> Result<Option<(String, Recollection)>, String> {
    let path = state.join("cluster.json");
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let stored: Stored<Remembered> = serde_json::from_slice(&content)
        .map_err(|error| format!("{} is not understood: {error}", path.display()))?;
    let Stored { node, remembered, contact, fenced, .. } = stored;
    Ok(Some((node, Recollection { remembered, contact, fenced })))
}

impl Memory {
    /// Reads the file. One that is damaged is set aside and one of another identity is not used, each with a notice; no
    /// file is a reason to fail.
    pub fn load(
        state: &Path,
        identity: &Identity,
        notices: &mut Vec<String>,
    ) -> (Self, Option<Recollection>) {
        let path = state.join("cluster.json");
        let mut memory =
            Self { path, node: identity.name.clone(), instance: identity.instance.clone(), is_newer: false };
        let recollection = memory.read(notices);
        (memory, recollection)
    }

    fn read(&mut self, notices: &mut Vec<String>) -> Option<Recollection> {
        let path = self.path.display();
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                notices.push(format!("cannot read {path}, what the cluster was is not known: {error}"));
                return None;
            }
        };
        let version = serde_json::from_slice::<Version>(&content).map(|stored| stored.version);
        if let Ok(version) = version
            && version > VERSION
        {
            self.is_newer = true;
            notices.push(format!(
                "{path} was written by a newer podwired (version {version}, this one knows {VERSION}): it is neither used \
                 nor written, so this node cannot start without the cluster's store; remove it to go back for good"
            ));
            return None;
        }
        match serde_json::from_slice::<Stored<Remembered>>(&content) {
            Ok(stored) if stored.node == self.node && stored.instance == self.instance => {
                let Stored { remembered, contact, fenced, .. } = stored;
                Some(Recollection { remembered, contact, fenced })
            }
            Ok(stored) => {
                notices.push(format!(
                    "{path} is of node {} (installation {}), and this is {} (installation {}): not used",
                    stored.node, stored.instance, self.node, self.instance
                ));
                None
            }
            Err(error) => {
                match file::set_aside(&self.path) {
                    Ok(aside) => {
                        notices.push(format!("{path} is damaged ({error}) and now {}", aside.display()));
                    }
                    Err(other) => notices.push(format!(
                        "{path} is damaged ({error}) and cannot be set aside ({other}): not used"
                    )),
                }
                None
            }
        }
    }

    /// Writes what is known now.
    ///
    /// # Errors
    /// As the file system reports them; the file is then as it was.
    pub fn write(&self, memorable: &Memorable) -> io::Result<()> {
        if self.is_newer {
            return Ok(());
        }
        let Memorable { membership, snapshot, mark, contact, fenced } = memorable;
        let stored = Stored {
            version: VERSION,
            node: self.node.clone(),
            instance: self.instance.clone(),
            contact: contact.clone(),
            fenced: fenced.clone(),
            remembered: RememberedRef { membership, snapshot, mark: *mark },
        };
        file::replace(&self.path, &serde_json::to_vec(&stored)?, 0o600)
    }

    /// Forgets: this node is a member no more.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
