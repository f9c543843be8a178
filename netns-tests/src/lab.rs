//! What nodes have in common, and what is left on the machine when a test process is killed.
//!
//! The kernel removes a node with the test process. Two things are the machine's own and stay when nobody is left
//! to remove them: the lab's directory, and the empty control groups of its pods. The next lab sweeps them up.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{LabError, Result};
use crate::node::{Node, NodeOptions};

/// Not /tmp: that is often a tmpfs, and what is kept here is kept here for its fdatasync.
const PARENT: &str = "/var/tmp";

/// What a lab's directory is called: this, the lab's name, the separator, something random.
const PREFIX: &str = "podwire-lab-";
const SEPARATOR: &str = "~";

/// A set of nodes with names of their own and a directory on a real disk, removed with the last of them.
#[derive(Clone)]
pub struct Lab(Arc<LabInner>);

struct LabInner {
    name: String,
    dir: tempfile::TempDir,
    /// Says that the lab is in use, until the process ends in whatever way.
    _lock: Flock<File>,
}

impl Lab {
    /// A lab. `name` shows in error messages and file names only: two labs may have the same.
    ///
    /// # Errors
    /// If there is no room for its directory, or the caller is not root.
    pub fn new(name: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::new("the tests make namespaces and mounts: run them as root"));
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{name}{SEPARATOR}"))
            .tempdir_in(PARENT)
            .map_err(LabError::because(format!("make a directory in {PARENT}")))?;
        let lock = lock(dir.path()).ok_or_else(|| LabError::new("lock a directory that was just made"))?;
        Ok(Self(Arc::new(LabInner { name, dir, _lock: lock })))
    }

    /// The lab's unique name: letters, digits and `-`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its directory on the machine's disk.
    pub fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// A node with the default options.
    ///
    /// # Errors
    /// See [`Lab::node_with`].
    pub fn node(&self, name: &str) -> Result<Node> {
        self.node_with(name, &NodeOptions::default())
    }

    /// A node.
    ///
    /// # Errors
    /// If a namespace or a mount cannot be made; the message says which.
    pub fn node_with(&self, name: &str, options: &NodeOptions) -> Result<Node> {
        Node::create(self, name, options)
    }
}

/// Locks a directory; `None` where somebody else has, or where it is gone.
fn lock(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes what labs of killed processes left.
fn sweep() {
    // A lab that is just being made is not locked yet.
    let old = |dir: &Path| {
        let made = fs::metadata(dir).and_then(|found| found.modified()).ok();
        made.and_then(|made| made.elapsed().ok()).is_some_and(|age| age > Duration::from_secs(10))
    };
    for dir in fs::read_dir(PARENT).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        let lab = name.and_then(|name| name.rsplit_once(SEPARATOR));
        if let Some((lab, _)) = lab
            && old(&dir)
            && lock(&dir).is_some()
        {
            let of_lab = format!("{lab}-");
            remove_cgroups(|name| name.starts_with(&of_lab));
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// Removes the control groups of those names, in each hierarchy: a runtime makes one for a node's pods and leaves it.
pub(crate) fn remove_cgroups(ours: impl Fn(&str) -> bool) {
    fn remove(dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        let _ = fs::remove_dir(dir);
    }
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let root = Path::new("/sys/fs/cgroup");
    // Version 1 has a hierarchy in each directory of the root, version 2 is the root.
    for hierarchy in below(root).chain([root.to_owned()]) {
        for dir in below(&hierarchy).filter(|dir| dir.is_dir()) {
            if dir.file_name().and_then(|found| found.to_str()).is_some_and(&ours) {
                remove(&dir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn labs_of_dead_processes_are_swept_and_others_are_not() -> Result<()> {
        let age = |dir: &Path| {
            let long_ago = SystemTime::now() - Duration::from_secs(3600);
            let set = File::open(dir).and_then(|dir| dir.set_modified(long_ago));
            set.map_err(LabError::because("make a directory old"))
        };
        let living = Lab::new("living")?;
        age(living.dir())?;
        let dead = Path::new(PARENT).join(format!("{PREFIX}dead-{}{SEPARATOR}x", std::process::id()));
        let foreign = Path::new(PARENT).join(format!("podwire-{}", std::process::id()));
        for dir in [&dead, &foreign] {
            fs::create_dir(dir).map_err(LabError::because("make a directory"))?;
            age(dir)?;
        }
        sweep();
        assert!(!dead.exists());
        assert!(living.dir().exists());
        assert!(foreign.exists());
        fs::remove_dir(foreign).map_err(LabError::because("remove a directory"))
    }
}
