//! Where the store and the agent's socket lie, and the lock that makes one process the allocator.
//!
//! ```text
//! /var/lib/podwire/ipam/        the store (sled)
//! /var/lib/podwire/ipam.lock    whoever holds it (flock) is the allocator
//! /var/lib/podwire/ipam.wanted  held by an agent that waits for the lock: plugins yield to it
//! /run/podwire/ipam.sock        the agent's socket
//! /run/podwire/<network>/node.json
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::Error;

/// The two directories under which all of podwire's files lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// What outlives a reboot: the store and its lock.
    pub state: PathBuf,
    /// What does not: the agent's socket, each network's node file.
    pub run: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Self::new("/var/lib/podwire", "/run/podwire")
    }
}

impl Dirs {
    /// These two.
    pub fn new(state: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), run: run.into() }
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.state.join("ipam")
    }

    /// The allocator's lock.
    pub fn lock(&self) -> PathBuf {
        self.state.join("ipam.lock")
    }

    /// The lock of the agent that waits to be the allocator.
    pub fn wanted(&self) -> PathBuf {
        self.state.join("ipam.wanted")
    }

    /// Its time of change tells when the leases were last compared with the links.
    pub fn swept(&self) -> PathBuf {
        self.state.join("ipam.swept")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("ipam.sock")
    }

    /// What the agent tells the plugin about this node's part of that network.
    pub fn node(&self, network: &str) -> PathBuf {
        self.run.join(network).join("node.json")
    }

    /// Makes the state directory, readable for root alone.
    pub(crate) fn make_state(&self) -> Result<(), Error> {
        make(&self.state, 0o700)
    }

    /// Makes the run directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_run(&self) -> Result<(), Error> {
        make(&self.run, 0o755)
    }

    /// Makes the directory of what the agent tells about that network.
    pub(crate) fn make_network(&self, network: &str) -> Result<(), Error> {
        make(&self.run.join(network), 0o755)
    }
}

fn make(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| Error::io("create directory", path, source))
}

/// The allocator's lock, held until it is dropped. The kernel gives it back when the process ends, however it
/// ends.
///
/// The file holds two numbers at fixed places: the process that has the lock, and the newest reservation that its
/// holders have made durable. sled gives a store whose end is missing back as it was before, without a word; the
/// second number tells.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
    recorded: u64,
}

/// Where the second number stands in the lock file: behind the first and a line's end.
const RECORD_AT: u64 = 11;

impl Lock {
    /// Takes the lock if nobody has it; if somebody has, says who, as the file tells.
    pub(crate) fn try_take(dirs: &Dirs) -> Result<Result<Self, Holder>, Error> {
        let path = dirs.lock();
        let mut file = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                dirs.make_state()?;
                open(&path)
            }
            opened => opened,
        }
        .map_err(|source| Error::io("open lock", &path, source))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Self::taken(lock, &path).map(Ok),
            Err((returned, Errno::EWOULDBLOCK)) => {
                file = returned;
                Ok(Err(Holder::read(&mut file)))
            }
            Err((_, errno)) => Err(Error::io("lock", &path, errno.into())),
        }
    }

    /// Waits for the lock, as long as it takes. Meanwhile plugins that could have it yield, until `Wanted` is
    /// dropped.
    ///
    /// # Errors
    /// The files cannot be opened.
    pub fn wait(dirs: &Dirs) -> Result<(Self, Wanted), Error> {
        dirs.make_state()?;
        let wanted = dirs.wanted();
        let file = open(&wanted).map_err(|source| Error::io("open", &wanted, source))?;
        let wanted = Wanted(blocking(file, &wanted)?);
        let path = dirs.lock();
        let file = open(&path).map_err(|source| Error::io("open lock", &path, source))?;
        let lock = blocking(file, &path)?;
        Ok((Self::taken(lock, &path)?, wanted))
    }

    /// The newest reservation that a holder of this lock has recorded.
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded
    }

    /// Records the newest reservation that is durable now.
    pub(crate) fn record(&mut self, generation: u64) {
        // A disk without room for twenty bytes must not fail what has been committed: then a loss goes unnoticed.
        if generation != self.recorded
            && self.file.write_all_at(format!("{generation:<20}\n").as_bytes(), RECORD_AT).is_ok()
        {
            self.recorded = generation;
        }
    }

    fn taken(file: Flock<File>, path: &Path) -> Result<Self, Error> {
        let mut record = [0; 20];
        let read = file.read_at(&mut record, RECORD_AT).unwrap_or(0);
        let record = record.get(..read).and_then(|record| std::str::from_utf8(record).ok());
        let recorded = record.and_then(|record| record.trim().parse().ok()).unwrap_or(0);
        // For those who wait: a number that changes is progress. A disk without room for it keeps nobody out.
        // Written over the last one at the same width: truncating a file makes ext4 write it out (4 ms).
        match file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0) {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                Err(Error::io("write lock", path, error))
            }
            _ => Ok(Self { file, recorded }),
        }
    }
}

/// Says that an agent waits for the lock; see [`Lock::wait`].
#[derive(Debug)]
pub struct Wanted(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl Wanted {
    /// Whether an agent waits.
    pub(crate) fn is_held(dirs: &Dirs) -> bool {
        let Ok(file) = File::open(dirs.wanted()) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
    }
}

fn blocking(mut file: File, path: &Path) -> Result<Flock<File>, Error> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((returned, Errno::EINTR)) => file = returned,
            Err((_, errno)) => return Err(Error::io("lock", path, errno.into())),
        }
    }
}

/// Not truncated: what stands in it is its holder's.
fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Who has the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    process: Option<u32>,
}

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // Anything can stand in it; the first bytes decide.
        let read = file.rewind().and_then(|()| file.take(10).read_to_string(&mut text));
        Self { process: read.ok().and_then(|_| text.trim().parse().ok()) }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(process) = self.process else { return f.write_str("an unknown process") };
        write!(f, "process {process}")?;
        match fs::read_to_string(format!("/proc/{process}/comm")) {
            Ok(name) => write!(f, " ({})", name.trim()),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs() -> (tempfile::TempDir, Dirs) {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("lib/podwire"), root.path().join("run/podwire"));
        (root, dirs)
    }

    #[test]
    fn one_at_a_time_and_named() {
        let (_root, dirs) = dirs();
        let lock = Lock::try_take(&dirs).unwrap().expect("free");
        let holder = Lock::try_take(&dirs).unwrap().expect_err("taken");
        assert_eq!(holder.process, Some(std::process::id()));
        assert!(holder.to_string().starts_with("process "), "{holder}");
        drop(lock);
        assert!(Lock::try_take(&dirs).unwrap().is_ok());
    }

    #[test]
    fn a_waiting_agent_is_seen_by_plugins() {
        let (_root, dirs) = dirs();
        assert!(!Wanted::is_held(&dirs));
        let (lock, wanted) = Lock::wait(&dirs).unwrap();
        assert!(Wanted::is_held(&dirs));
        drop(wanted);
        assert!(!Wanted::is_held(&dirs));
        assert!(Lock::try_take(&dirs).unwrap().is_err());
        drop(lock);
    }

    #[test]
    fn garbage_in_the_lock_file_is_an_unknown_process() {
        let (_root, dirs) = dirs();
        let lock = Lock::try_take(&dirs).unwrap().expect("free");
        for text in [&b"\xff\xfe"[..], b"", b"-1", b"99999999999999999999999999"] {
            fs::write(dirs.lock(), text).unwrap();
            let holder = Lock::try_take(&dirs).unwrap().expect_err("taken");
            assert_eq!(holder.to_string(), "an unknown process");
        }
        drop(lock);
    }
}
