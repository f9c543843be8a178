//! What the cluster was when the agent last heard of it, on the node's disk: so that a node starts, and serves its pods,
//! while the store is down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file;
use crate::store::{Identity, Remembered};

/// The version of the file that this program writes. An older one is read; a newer one is neither read nor written over.
const VERSION: u32 = 1;

/// `<state-dir>/cluster.json`.
#[derive(Serialize, Deserialize)]
struct Stored<R> {
    version: u32,
    /// Whose it is: another installation's, or another name's, says nothing about this node's subnets.
    node: String,
    instance: String,
    /// When the store was last heard of, in seconds since 1970 by this node's clock.
    heard: u64,
    remembered: R,
}

/// The version alone, which every program can read.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The file, and whether it may be written.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    node: String,
    instance: String,
    is_newer: bool,
}

/// What was remembered, and how old it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recollection {
    /// What.
    pub remembered: Remembered,
    /// When the store was last heard of, in seconds since 1970 by this node's clock.
    pub heard: u64,
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
                Some(Recollection { remembered: stored.remembered, heard: stored.heard })
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
    pub fn write(&self, remembered: &Remembered, heard: u64) -> io::Result<()> {
        if self.is_newer {
            return Ok(());
        }
        let (node, instance) = (self.node.clone(), self.instance.clone());
        let stored = Stored { version: VERSION, node, instance, heard, remembered };
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
mod tests {
    use super::*;
    use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily, Snapshot};
    use crate::store::Membership;

    fn identity(name: &str, instance: &str) -> Identity {
        Identity { name: name.to_owned(), instance: instance.to_owned(), boot: "b".to_owned() }
    }

    fn remembered() -> Remembered {
        let range = ClusterRange { range: "10.244.0.0/16".parse().unwrap(), subnet_prefix: 24 };
        let config = ClusterConfig {
            name: "c".to_owned(),
            ranges: vec![range],
            encapsulation: Encapsulation::default(),
            also_receive: Vec::new(),
            direct_routing: DirectRouting::Never,
            underlay: vec![IpFamily::Ipv4],
            reclaim_after_seconds: None,
        };
        Remembered {
            membership: Membership {
                subnets: vec!["10.244.1.0/24".parse().unwrap()],
                generation: 3,
                claimed: 17,
            },
            snapshot: Snapshot { config, nodes: Default::default() },
            mark: Some((1, 2)),
        }
    }

    fn load(state: &Path, identity: &Identity) -> (Memory, Option<Recollection>, Vec<String>) {
        let mut notices = Vec::new();
        let (memory, recollection) = Memory::load(state, identity, &mut notices);
        (memory, recollection, notices)
    }

    #[test]
    fn what_was_written_is_remembered_by_the_same_installation_alone() {
        let root = tempfile::tempdir().unwrap();
        let own = identity("n1", "i1");
        let (memory, none, notices) = load(root.path(), &own);
        assert_eq!((none, notices.len()), (None, 0));
        memory.write(&remembered(), 100).unwrap();
        let expected = Some(Recollection { remembered: remembered(), heard: 100 });
        assert_eq!(load(root.path(), &own).1, expected);
        for other in [identity("n2", "i1"), identity("n1", "i2")] {
            let (_, none, notices) = load(root.path(), &other);
            assert_eq!((none, notices.len()), (None, 1));
        }
        memory.forget().unwrap();
        memory.forget().unwrap();
        assert_eq!(load(root.path(), &own).1, None);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_nothing_fails() {
        for content in ["", "{\"version\":1", "[]", "{\"version\":1,\"node\":7}", "{\"version\":-1}"] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("cluster.json"), content).unwrap();
            let (memory, none, notices) = load(root.path(), &identity("n1", "i1"));
            assert_eq!(none, None);
            assert!(notices.len() == 1 && notices[0].contains("damaged"), "{content:?}: {notices:?}");
            assert!(!root.path().join("cluster.json").exists());
            memory.write(&remembered(), 1).unwrap();
        }
    }

    #[test]
    fn a_newer_programs_file_is_neither_used_nor_written_over() {
        let root = tempfile::tempdir().unwrap();
        let content = r#"{"version":2,"something":"else"}"#;
        fs::write(root.path().join("cluster.json"), content).unwrap();
        let (memory, none, notices) = load(root.path(), &identity("n1", "i1"));
        assert_eq!((none, notices.len()), (None, 1));
        memory.write(&remembered(), 1).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cluster.json")).unwrap(), content);
    }
}
