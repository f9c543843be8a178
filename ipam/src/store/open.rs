//! Opening a store, whatever its directory contains.

use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use podwire_attach::step::step;
use podwire_kernel::priority;

use super::codec::{self, SCHEMA_KEY};
use super::{Loaded, Open, SCHEMA, StoreOrigin, check_room, store_error};
use crate::{Change, Error};

/// sled holds its own lock until its last thread has let go of the file, a moment after the process that had the
/// store has closed it.
const SLED_LOCK_WAIT: Duration = Duration::from_secs(2);

pub(super) fn open(path: &Path) -> Result<(Open, Loaded), Error> {
    if !path.try_exists().map_err(|source| Error::io("look for", path, source))? {
        let (open, _) = create(path)?;
        return Ok((open, Loaded { changes: Vec::new(), origin: StoreOrigin::Fresh }));
    }
    check_room(path)?;
    let why = match try_open(path) {
        Ok((open, changes, Schema::Ours)) => {
            return Ok((open, Loaded { changes, origin: StoreOrigin::Existing }));
        }
        // A store has its format number before it has its name.
        Ok((open, _, Schema::Absent)) => {
            drop(open);
            "it has come back empty".to_owned()
        }
        Err(Trouble::Damage(what)) => what,
        Err(Trouble::Fatal(error)) => return Err(error),
    };
    step("store-damaged");
    let kept = set_aside(path)?;
    step("store-set-aside");
    let (open, _) = create(path)?;
    Ok((open, Loaded { changes: Vec::new(), origin: StoreOrigin::Lost { why, kept } }))
}

/// Makes an empty store under another name and gives it its own when it is whole: a store that was never finished
/// cannot be taken for one that was lost.
fn create(path: &Path) -> Result<(Open, Schema), Error> {
    let unfinished = path.with_extension("new");
    let failed = |source| Error::io("create directory", &unfinished, source);
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    fs::create_dir_all(&unfinished).map_err(failed)?;
    check_room(&unfinished)?;
    let open = |path: &Path| match try_open(path) {
        Ok((open, _, schema)) => Ok((open, schema)),
        Err(Trouble::Damage(why)) => {
            Err(Error::Store { op: "create", path: path.to_owned(), source: why.into() })
        }
        Err(Trouble::Fatal(error)) => Err(error),
    };
    let (new, _) = open(&unfinished)?;
    step("store-created");
    write_schema(&new).map_err(|error| store_error("create", path, error))?;
    drop(new);
    // The names of its files; a rename of the directory says nothing about them.
    sync_directory(&unfinished)?;
    fs::rename(&unfinished, path).map_err(|source| Error::io("create", path, source))?;
    if let Some(parent) = path.parent() {
        sync_directory(parent)?;
    }
    step("store-named");
    open(path)
}

fn write_schema(open: &Open) -> Result<(), sled::Error> {
    open.meta.insert(SCHEMA_KEY, &SCHEMA.to_be_bytes())?;
    open.db.flush()?;
    open.file.sync_all().map_err(sled::Error::Io)
}

/// Why a store did not open.
enum Trouble {
    /// What it contains is at fault: another one in its place would open.
    Damage(String),
    /// Something else is.
    Fatal(Error),
}

enum Schema {
    Ours,
    /// There is none.
    Absent,
}

fn try_open(path: &Path) -> Result<(Open, Vec<Change>, Schema), Trouble> {
    // sled does not notice when it can start no thread, and waits for the work of none for ever.
    thread::Builder::new()
        .spawn(|| ())
        .and_then(|thread| thread.join().map_err(|_| io::ErrorKind::Other.into()))
        .map_err(|source| Trouble::Fatal(Error::io("start a thread for", path, source)))?;
    let give_up = Instant::now() + SLED_LOCK_WAIT;
    loop {
        // sled prints nothing itself; the default hook would print its panics.
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let result = catch_unwind(AssertUnwindSafe(|| open_once(path)));
        panic::set_hook(hook);
        match result {
            Ok(Err(OpenError::Sled(error))) if is_locked(&error) && Instant::now() < give_up => {
                #[expect(clippy::disallowed_methods, reason = "sled offers no way to wait for its lock")]
                thread::sleep(Duration::from_millis(1));
            }
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(OpenError::Sled(error))) => return Err(judge(path, error)),
            Ok(Err(OpenError::Content(what))) => return Err(Trouble::Damage(what)),
            Ok(Err(OpenError::Fatal(error))) => return Err(Trouble::Fatal(error)),
            Err(panicked) => {
                let what = panicked
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panicked.downcast_ref::<&str>().copied())
                    .unwrap_or("without a word");
                return Err(Trouble::Damage(format!("sled panicked: {what}")));
            }
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// An error with a number comes from the disk or the rights to it; without one it is sled's opinion of the content.
fn judge(path: &Path, error: sled::Error) -> Trouble {
    let is_locked = is_locked(&error);
    match error {
        sled::Error::Io(io)
            if is_locked || io.raw_os_error().is_some() || io.kind() == io::ErrorKind::StorageFull =>
        {
            Trouble::Fatal(store_error("open", path, sled::Error::Io(io)))
        }
        error => Trouble::Damage(error.to_string()),
    }
}

enum OpenError {
    Sled(sled::Error),
    Content(String),
    Fatal(Error),
}

impl From<sled::Error> for OpenError {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error)
    }
}

fn open_once(path: &Path) -> Result<(Open, Vec<Change>, Schema), OpenError> {
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::HighThroughput)
        .cache_capacity(16 << 20)
        // Every flush is ours.
        .flush_every_ms(None);
    // sled starts seven threads, which spin until the one that starts them is done: on few processors they
    // take the time from it, 10 ms of it.
    let db = priority::ahead_of_new_threads(|| config.open())?;
    // First of all, and alone: opening a tree makes it, and a newer format is not to be written to.
    let meta = db.open_tree("meta")?;
    let schema = match meta.get(SCHEMA_KEY)? {
        None => Schema::Absent,
        Some(bytes) => match <[u8; 4]>::try_from(bytes.as_ref()).map(u32::from_be_bytes) {
            Ok(SCHEMA) => Schema::Ours,
            Ok(found) if found > SCHEMA => {
                let error = Error::NewerSchema { path: path.to_owned(), found, known: SCHEMA };
                return Err(OpenError::Fatal(error));
            }
            _ => return Err(OpenError::Content("its format number is garbage".to_owned())),
        },
    };
    let (leases, owners) = (db.open_tree("leases")?, db.open_tree("owners")?);
    let mut changes = Vec::new();
    read(&leases, "address", codec::read_lease, &mut changes)?;
    read(&owners, "lease", codec::read_owner, &mut changes)?;
    for entry in meta.iter() {
        let (key, value) = entry?;
        if key != SCHEMA_KEY {
            changes.push(codec::read_meta(&key, &value).ok_or_else(|| garbage("setting", &key))?);
        }
    }
    if matches!(schema, Schema::Absent) && !changes.is_empty() {
        return Err(OpenError::Content("it has leases but no format number".to_owned()));
    }
    let file = File::open(path.join("db")).map_err(sled::Error::Io)?;
    Ok((Open { leases, owners, meta, file, db }, changes, schema))
}

fn read(
    tree: &sled::Tree,
    what: &str,
    read: fn(&[u8], &[u8]) -> Option<Change>,
    changes: &mut Vec<Change>,
) -> Result<(), OpenError> {
    for entry in tree.iter() {
        let (key, value) = entry?;
        changes.push(read(&key, &value).ok_or_else(|| garbage(what, &key))?);
    }
    Ok(())
}

fn garbage(what: &str, key: &[u8]) -> OpenError {
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    OpenError::Content(format!("its {what} {key} is garbage"))
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::io("sync directory", path, source))
}

/// Renames the store.
fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".broken-{seconds}"));
    let mut kept = path.with_file_name(&name);
    for number in 1..1000 {
        // Nobody else makes these names: the caller has the lock.
        if !kept.exists() {
            break;
        }
        let mut numbered = name.clone();
        numbered.push(format!("-{number}"));
        kept = path.with_file_name(numbered);
    }
    fs::rename(path, &kept).map_err(|source| Error::io("set aside", path, source))?;
    Ok(kept)
}
