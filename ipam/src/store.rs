//! The durable record of the pool: sled, and what it takes to trust it.
//!
//! - sled's `flush` starts the write-back of its file and does not wait for the disk: after simulated power cuts
//!   acknowledged leases were missing and stores did not open. With an fdatasync of the file behind each flush none
//!   of 88 cuts lost anything. [`Durability::Lasting`] is: transaction, flush, fdatasync.
//! - A damaged store shows as an error or as a panic, while it is opened or while a page is first read. So both are
//!   done under `catch_unwind`, and everything is read at once.
//! - A damaged store is renamed, never deleted.
//! - sled comes back empty from some kinds of damage. A store without our format number is a lost one.
//!
//! Three trees: `leases` (why an address is not free, by network and address), `owners` (each owner's lease) and
//! `meta`. The free addresses are not stored: the pool in memory knows them.

mod codec;
mod open;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use podwire_attach::step::step;
use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError};

use crate::{Change, Error};

/// The newest format of the store that this program reads, and the one it writes.
pub const SCHEMA: u32 = 1;

/// How long a change must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Until the process ends. Losing it in a crash does no harm, and the next lasting one takes it along.
    Lazy,
    /// Also through a power cut, from the return of the call on.
    Lasting,
}

/// Where changes are kept. The one implementation for users is [`SledStore`].
pub trait Store: Send {
    /// Reads everything. Also makes a store usable again in which a commit failed.
    ///
    /// # Errors
    /// See [`SledStore::open`].
    fn load(&mut self) -> Result<Loaded, Error>;

    /// Makes all of these changes, or none.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Store`]. What then stands in the store is known only after [`Store::load`].
    fn commit(&mut self, changes: &[Change], durability: Durability) -> Result<(), Error>;

    /// Whether the last commit has left it usable. If not, [`Store::load`] comes next.
    fn is_usable(&self) -> bool;
}

/// What a store held when it was opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The changes that lead to its state.
    pub changes: Vec<Change>,
    /// Whether there is reason to doubt that these are all.
    pub origin: StoreOrigin,
}

/// How a store came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StoreOrigin {
    /// It was there.
    #[default]
    Existing,
    /// It has just been made; there was none.
    Fresh,
    /// It has just been made, since the one that was there could not be used.
    Lost {
        /// Why not.
        why: String,
        /// Where that one is now.
        kept: PathBuf,
    },
}

/// A store in a directory of its own.
pub struct SledStore {
    path: PathBuf,
    /// `None` after a failure, until it is loaded again.
    open: Option<Open>,
}

/// An open database.
struct Open {
    leases: sled::Tree,
    owners: sled::Tree,
    meta: sled::Tree,
    /// For fdatasync: sled's own handle is private.
    file: File,
    /// The last to be dropped.
    db: sled::Db,
}

impl std::fmt::Debug for SledStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledStore").field("path", &self.path).field("open", &self.open.is_some()).finish()
    }
}

impl SledStore {
    /// Opens the store in that directory, which is made if it is missing. The caller holds the allocator's lock:
    /// sled has one of its own, but does not wait for it.
    ///
    /// A store that cannot be used is renamed to `<path>.broken-<seconds since 1970>` and replaced by an empty one.
    ///
    /// # Errors
    /// [`Error::NewerSchema`]; [`Error::DiskFull`]; [`Error::Store`] and [`Error::Io`] when the disk or its rights
    /// are at fault and not what the store contains.
    pub fn open(path: impl Into<PathBuf>) -> Result<(Self, Loaded), Error> {
        let mut store = Self { path: path.into(), open: None };
        let loaded = store.load()?;
        Ok((store, loaded))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, op: &'static str, error: sled::Error) -> Error {
        store_error(op, &self.path, error)
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Loaded, Error> {
        // sled's own lock is released when the old one is dropped.
        self.open = None;
        let (open, loaded) = open::open(&self.path)?;
        self.open = Some(open);
        Ok(loaded)
    }

    fn commit(&mut self, changes: &[Change], durability: Durability) -> Result<(), Error> {
        let Some(open) = &self.open else {
            let source = "it failed before and has not been opened again".into();
            return Err(Error::Store { op: "write", path: self.path.clone(), source });
        };
        // A full disk is found here, where it costs nothing: after a write that failed, sled must be opened again.
        check_room(&self.path)?;
        let done = catch_unwind(AssertUnwindSafe(|| open.commit(changes, durability)));
        let result = match done {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Failure { op, error })) => Err(self.failed(op, error)),
            Err(_) => {
                Err(Error::Store { op: "write", path: self.path.clone(), source: "sled panicked".into() })
            }
        };
        self.open = None;
        result
    }

    fn is_usable(&self) -> bool {
        self.open.is_some()
    }
}

/// Which part of a commit failed.
struct Failure {
    op: &'static str,
    error: sled::Error,
}

impl Open {
    fn commit(&self, changes: &[Change], durability: Durability) -> Result<(), Failure> {
        let failed = |op| move |error| Failure { op, error };
        if !changes.is_empty() {
            step("commit-begun");
            let writes: Vec<codec::Write> = changes.iter().map(codec::write).collect();
            self.transaction(&writes).map_err(failed("write"))?;
            step("commit-in-log");
        }
        if durability == Durability::Lasting {
            self.db.flush().map_err(failed("flush"))?;
            step("commit-flushed");
            self.file
                .sync_data()
                .map_err(|error| Failure { op: "fdatasync", error: sled::Error::Io(error) })?;
            step("commit-durable");
        }
        Ok(())
    }

    /// sled may run it several times: it has no effect but its writes.
    fn transaction(&self, writes: &[codec::Write]) -> Result<(), sled::Error> {
        let run = (&self.leases, &self.owners, &self.meta).transaction(|(leases, owners, meta)| {
            for write in writes {
                let tree = match write.tree {
                    codec::Tree::Leases => leases,
                    codec::Tree::Owners => owners,
                    codec::Tree::Meta => meta,
                };
                match &write.value {
                    Some(value) => tree.insert(write.key.as_slice(), value.as_slice())?,
                    None => tree.remove(write.key.as_slice())?,
                };
            }
            Ok::<(), ConflictableTransactionError<()>>(())
        });
        match run {
            Ok(()) => Ok(()),
            Err(TransactionError::Storage(error)) => Err(error),
            // Nothing here aborts.
            Err(TransactionError::Abort(())) => Err(sled::Error::ReportableBug("aborted".to_owned())),
        }
    }
}

/// The room that a commit may take: sled grows by segments of half a MiB, and by some at once.
const ROOM: u64 = 4 << 20;

fn check_room(path: &Path) -> Result<(), Error> {
    let disk = statvfs(path).map_err(|errno| Error::io("look at the disk of", path, errno.into()))?;
    // Root, who alone runs this, may use the blocks that are kept back from others.
    let free = disk.blocks_free().saturating_mul(disk.fragment_size());
    if free < ROOM { Err(Error::DiskFull { path: path.to_owned() }) } else { Ok(()) }
}

fn store_error(op: &'static str, path: &Path, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(error)
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                || error.raw_os_error() == Some(28) =>
        {
            Error::DiskFull { path: path.to_owned() }
        }
        error => Error::Store { op, path: path.to_owned(), source: Box::new(error) },
    }
}
