//! host-local's directory of a network: the way in from bridge + host-local, and the way back.
//!
//! ```text
//! <dataDir>/<network>/lock                held (flock) by whoever reads or writes the rest
//! <dataDir>/<network>/10.88.0.5           `<container id>\r\n<ifname>`; written before 2018: the container id alone
//! <dataDir>/<network>/last_reserved_ip.0  the last address given from range set 0
//! ```
//! A file without content is one whose writer died before it was any pod's (host-local writes without fsync).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use podwire_attach::{Attachment, NetworkId, Owner, Role};

use crate::cached_results::CachedResult;
use crate::{Error, Lease, RangeSet, pod_address};

/// host-local's lock file.
const LOCK: &str = "lock";
/// What host-local's files of last addresses begin with; the number of the range set follows.
const LAST: &str = "last_reserved_ip.";
/// Between container id and interface name.
const SEPARATOR: &str = "\r\n";
/// The container id under which `export` writes an address that some unknown owner has.
const UNKNOWN_ID: &str = "podwire-unknown-owner";

/// host-local holds its lock for some milliseconds. The agent serves nobody while it waits for it.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// The longest content of a file of host-local: an id of at most 255 bytes, an interface name of 15.
const MAX_CONTENT: u64 = 1024;
/// More files than any node has pods: a directory with more is not host-local's.
const MAX_FILES: usize = 1 << 18;

/// What a directory of host-local tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// One for each file of an address. The interface's name is empty where the file does not have it.
    pub attachments: Vec<Attachment>,
    /// The last address given from each range set.
    pub cursors: Vec<(u32, IpAddr)>,
    /// Addresses in use by nobody knows whom.
    pub unknown: Vec<(NetworkId, IpAddr)>,
    /// What was passed over, in whole sentences.
    pub notices: Vec<String>,
}

/// Reads host-local's directory of that network; empty if there is none. `sets` tell prefix length and gateway of
/// the addresses.
///
/// # Errors
/// The directory is there but cannot be read, or host-local keeps its lock. Without knowing what it has given no
/// address can be given.
pub fn read(directory: &Path, network: &str, sets: &[RangeSet]) -> Result<Imported, Error> {
    let mut imported = Imported::default();
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(imported),
        Err(error) => return Err(Error::io("look at", directory, error)),
        // `dataDir` may name a file: then there is nothing of host-local's in it.
        Ok(found) if !found.is_dir() => return Ok(imported),
        Ok(_) => {}
    }
    let _lock = lock_to_read(directory)?;
    let failed = |source| Error::io("read directory", directory, source);
    for (number, entry) in fs::read_dir(directory).map_err(failed)?.enumerate() {
        let name = entry.map_err(failed)?.file_name();
        if number >= MAX_FILES {
            return Err(failed(io::Error::other(format!("it has more than {MAX_FILES} files"))));
        }
        let Some(name) = name.to_str() else { continue };
        let path = directory.join(name);
        if let Some(set) = name.strip_prefix(LAST) {
            let last = content(&path)?.and_then(|text| text.trim().parse().ok());
            if let (Ok(set), Some(last)) = (set.parse(), last) {
                imported.cursors.push((set, last));
            }
        } else if let Ok(address) = name.parse::<IpAddr>() {
            imported.add(network, sets, address, content(&path)?);
        }
    }
    imported.attachments.sort_by(|a, b| a.owner.cmp(&b.owner));
    imported.cursors.sort_unstable();
    Ok(imported)
}

impl Imported {
    /// Adds the netns that libcni remembers for them: host-local knows none, and with it a lease whose pod died
    /// unnoticed can end.
    pub fn join(&mut self, cached: &[CachedResult]) {
        for attachment in &mut self.attachments {
            let owner = &attachment.owner;
            let is_its = |result: &&CachedResult| {
                result.owner.network == owner.network
                    && result.owner.container == owner.container
                    && (owner.ifname.is_empty() || result.owner.ifname == owner.ifname)
            };
            if let Some(netns) = cached.iter().find(is_its).and_then(|result| result.netns.clone()) {
                attachment.netns = netns;
            }
        }
    }

    fn add(&mut self, network: &str, sets: &[RangeSet], address: IpAddr, content: Option<String>) {
        let Some(content) = content else {
            self.unknown.push((NetworkId::of(network), address));
            self.notices
                .push(format!("host-local's file of {address} is not readable: the address stays reserved"));
            return;
        };
        let content = content.trim();
        if content.is_empty() {
            self.notices.push(format!("host-local's file of {address} is empty: no pod has the address"));
            return;
        }
        let (container, ifname) = content.split_once(SEPARATOR).unwrap_or((content, ""));
        if !is_name(container) || !(ifname.is_empty() || is_ifname(ifname)) {
            self.unknown.push((NetworkId::of(network), address));
            self.notices.push(format!(
                "host-local's file of {address} names no container: the address stays reserved until two GC passes"
            ));
            return;
        }
        self.attachments.push(Attachment {
            owner: Owner::new(network, container, ifname),
            addresses: vec![pod_address(sets, address)],
            mac: None,
            link: None,
            bridge: None,
            netns: String::new(),
            netns_identity: None,
            pod: None,
            runtime: None,
            given: Vec::new(),
            traffic: None,
        });
    }
}

/// CNI's rule for container ids and network names.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// CNI's and the kernel's rule for interface names.
pub(crate) fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// A file's text; `None` if it is no text, too long or not a file.
fn content(path: &Path) -> Result<Option<String>, Error> {
    let failed = |source| Error::io("read", path, source);
    // Not to wait where the name is a FIFO's.
    let file = match File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        // Released between the listing and now: by a process that does not know the lock.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(String::new())),
        opened => opened.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONTENT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_CONTENT {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let path = directory.join(LOCK);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&path)
        .map_err(|source| Error::io("lock", &path, source))?;
    wait_for(file, &path)
}

/// host-local's lock, taken without writing: under systemd the agent sees all directories but its own read-only.
/// `None` where there is no such file, which host-local makes before any other.
fn lock_to_read(directory: &Path) -> Result<Option<Flock<File>>, Error> {
    let path = directory.join(LOCK);
    match File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path) {
        Ok(file) => wait_for(file, &path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("lock", &path, error)),
    }
}

fn wait_for(mut file: File, path: &Path) -> Result<Flock<File>, Error> {
    let failed = |source| Error::io("lock", path, source);
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((returned, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < give_up => {
                file = returned;
                #[expect(clippy::disallowed_methods, reason = "flock with a deadline is a poll")]
                thread::sleep(Duration::from_millis(5));
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        }
    }
}

/// What `export` has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Addresses of leases.
    pub leased: usize,
    /// Addresses of unknown owners, written under the container id `podwire-unknown-owner`: host-local never
    /// frees them by itself.
    pub unknown: usize,
    /// Addresses that another owner has in the directory, with [`Existing::Keep`].
    pub taken: usize,
}

/// What [`export`] does where the directory has addresses already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It fails.
    Refuse,
    /// It removes them first.
    Replace,
    /// It adds those that are missing, and leaves last addresses as they are: host-local gives addresses by now.
    Keep,
}

/// What is known of one network, as it is exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Its leases.
    pub leases: Vec<Lease>,
    /// Addresses in use by nobody knows whom.
    pub unknown: Vec<IpAddr>,
    /// The last address given from each range set.
    pub cursors: Vec<(u32, IpAddr)>,
}

/// Writes host-local's directory of a network: the way back. The store stays as it is, so whoever changes the
/// configuration back must also see to it that podwire gives no further addresses of this network.
///
/// # Errors
/// The directory has files in it and is not to; or it cannot be written.
pub fn export(contents: &Contents, directory: &Path, existing: Existing) -> Result<Exported, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|source| Error::io("create directory", directory, source))?;
    let _lock = lock(directory)?;
    if existing != Existing::Keep {
        clear(directory, existing == Existing::Replace)?;
    }
    let mut exported = Exported::default();
    for lease in &contents.leases {
        // host-local knows one owner of an interface: it is the one that has its addresses.
        if lease.attachment.owner.role == Role::Chained {
            continue;
        }
        let Owner { container, ifname, .. } = &lease.attachment.owner;
        // The old form for what came in it: host-local finds it by the id alone.
        let content = match ifname.as_str() {
            "" => container.clone(),
            ifname => format!("{container}{SEPARATOR}{ifname}"),
        };
        for address in lease.held() {
            match put(&directory.join(address.to_string()), &content, existing)? {
                true => exported.leased += 1,
                false => exported.taken += 1,
            }
        }
    }
    for address in &contents.unknown {
        if put(&directory.join(address.to_string()), UNKNOWN_ID, existing)? {
            exported.unknown += 1;
        }
    }
    let cursors = contents.cursors.iter().filter(|_| existing != Existing::Keep);
    for (set, last) in cursors {
        write(&directory.join(format!("{LAST}{set}")), &last.to_string())?;
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::io("sync directory", directory, source))?;
    Ok(exported)
}

/// Removes host-local's files, and nothing else, if `force` is set; else refuses to go on if there is any file.
fn clear(directory: &Path, force: bool) -> Result<(), Error> {
    let failed = |source| Error::io("read directory", directory, source);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name == LOCK {
            continue;
        }
        if !force {
            let why =
                io::Error::other(format!("it has files in it, such as {name}: empty it, or use --force"));
            return Err(Error::io("export to", directory, why));
        }
        if name.parse::<IpAddr>().is_ok() || name.starts_with(LAST) {
            let path = directory.join(&*name);
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// Writes an address's file; `false` if it is there as another owner's.
fn put(path: &Path, text: &str, existing: Existing) -> Result<bool, Error> {
    if existing == Existing::Keep && path.exists() {
        return Ok(content(path)?.is_some_and(|found| found.trim() == text));
    }
    write(path, text).map(|()| true)
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_data()
        })
        .map_err(|source| Error::io("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseState, Origin};

    fn contents(owners: &[(&str, &str)]) -> Contents {
        let lease = |(container, address): &(&str, &str)| {
            let mut imported = Imported::default();
            imported.add("net", &[], address.parse().unwrap(), Some(format!("{container}{SEPARATOR}eth0")));
            Lease {
                attachment: imported.attachments.remove(0),
                state: LeaseState::Attached,
                origin: Origin::HostLocal,
                generation: 1,
                boot_id: "b".to_owned(),
                succeeds: false,
                former: Vec::new(),
                former_ports: Vec::new(),
                missing_since: None,
            }
        };
        let leases = owners.iter().map(lease).collect();
        Contents { leases, unknown: Vec::new(), cursors: vec![(0, "10.9.0.9".parse().unwrap())] }
    }

    #[test]
    fn what_is_in_the_way_of_an_export_stays_goes_or_stops_it() {
        let root = tempfile::tempdir().unwrap();
        let text = |name: &str| fs::read_to_string(root.path().join(name)).ok();
        let first = contents(&[("old", "10.9.0.2"), ("both", "10.9.0.3")]);
        let exported = export(&first, root.path(), Existing::Refuse).unwrap();
        assert_eq!(exported, Exported { leased: 2, ..Exported::default() });
        assert!(export(&first, root.path(), Existing::Refuse).is_err(), "it has files by now");
        fs::write(root.path().join("last_reserved_ip.0"), "10.9.0.20").unwrap();

        let second = contents(&[("both", "10.9.0.3"), ("new", "10.9.0.4"), ("other", "10.9.0.2")]);
        let exported = export(&second, root.path(), Existing::Keep).unwrap();
        assert_eq!(exported, Exported { leased: 2, taken: 1, ..Exported::default() });
        assert_eq!(text("10.9.0.2").unwrap(), "old\r\neth0", "host-local's owner keeps it");
        assert_eq!(text("10.9.0.4").unwrap(), "new\r\neth0");
        assert_eq!(text("last_reserved_ip.0").unwrap(), "10.9.0.20");

        let exported = export(&contents(&[("new", "10.9.0.4")]), root.path(), Existing::Replace).unwrap();
        assert_eq!((exported.leased, text("10.9.0.2"), text("10.9.0.3")), (1, None, None));
        assert_eq!(text("last_reserved_ip.0").unwrap(), "10.9.0.9");
    }
}
