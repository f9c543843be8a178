//! Network namespaces: opened by path, recognised, and entered by threads that end there.
//!
//! A namespace is entered on a thread of its own, never on the caller's: a thread that failed to come back would
//! work on with the pod's network in the host's name.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::netlink::Netlink;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// `NS_GET_NSTYPE` of linux/nsfs.h.
const NS_GET_NSTYPE: u8 = 3;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

nix::ioctl_none!(
    /// Which kind of namespace a file is: a CLONE_NEW* constant.
    ns_get_nstype,
    0xb7,
    NS_GET_NSTYPE
);

/// Why a path could not be opened as a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there.
    #[error("network namespace {path} does not exist", path = .0.display())]
    Missing(PathBuf),
    /// Something else is there, such as the plain file that an unmounted namespace leaves behind.
    #[error("{path} is not a network namespace but {found}", path = .path.display())]
    NotNetns {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// Whether it is there cannot be said.
    #[error("cannot open network namespace {path}", path = .path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether the namespace is certainly gone: nothing, or no namespace, is at its path.
    pub fn is_gone(&self) -> bool {
        !matches!(self, Self::Open { .. })
    }
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    device: u64,
    inode: u64,
    ctime_ns: i64,
    path: PathBuf,
}

impl Netns {
    /// Opens the network namespace at `path`, such as /run/netns/x or /proc/1/ns/net.
    ///
    /// # Errors
    /// See [`NetnsError`]. A namespace of another kind is [`NetnsError::NotNetns`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH) => NetnsError::Missing(path.to_owned()),
            _ => NetnsError::Open { path: path.to_owned(), source },
        };
        // Not to wait for a writer where the path is a FIFO.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let wrong = |found| NetnsError::NotNetns { path: path.to_owned(), found };
        let metadata = file.metadata().map_err(failed)?;
        if fstatfs(&file).map_err(|e| failed(e.into()))?.filesystem_type() != NSFS_MAGIC {
            return Err(wrong(if metadata.is_dir() {
                "a directory"
            } else if metadata.is_file() {
                "a plain file"
            } else {
                "a special file"
            }));
        }
        // SAFETY: the descriptor is open, and the request neither reads nor writes memory.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) }.map_err(|e| failed(e.into()))?;
        if kind != libc::CLONE_NEWNET {
            return Err(wrong("a namespace of another kind"));
        }
        let ctime_ns = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), ctime_ns, path: path.to_owned(), file })
    }

    /// The calling thread's network namespace.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are one namespace. Both are open, so neither's inode can have been given away meanwhile.
    pub fn same_as(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// What tells it from other namespaces of this boot, also after it is gone. Takes a thread to read the cookie;
    /// who has a socket there already uses [`Netns::identity_with`].
    ///
    /// # Errors
    /// The namespace cannot be entered (EPERM).
    pub fn identity(&self) -> Result<NetnsIdentity> {
        let cookie = self.run(|| {
            let socket = std::os::unix::net::UnixDatagram::unbound().ok()?;
            cookie(socket.as_fd())
        })?;
        Ok(self.identity_with(cookie))
    }

    /// [`Netns::identity`] with the cookie that a socket of that namespace told
    /// ([`Netlink::netns_cookie`]).
    pub fn identity_with(&self, cookie: Option<u64>) -> NetnsIdentity {
        NetnsIdentity { device: self.device, inode: self.inode, ctime_ns: self.ctime_ns, cookie }
    }

    /// Runs `f` inside, on a thread that ends with it. The calling thread stays where it is, also when `f` fails;
    /// a panic of `f` goes on in the caller.
    ///
    /// # Errors
    /// No thread could be started (EAGAIN), or the namespace cannot be entered (EPERM); then `f` has not run.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        const OP: &str = "enter network namespace";
        let object = || self.path.display().to_string();
        thread::scope(|scope| {
            #[expect(clippy::disallowed_methods, reason = "this is the thread that ends inside")]
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| Error::new(OP, object(), e))?;
                Ok(f())
            };
            let thread = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, inside)
                .map_err(|e| Error::io(OP, object(), &e))?;
            thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }
}

impl Netns {
    /// The cookie (SO_NETNS_COOKIE) of the network namespace that a socket belongs to. A Unix socket that was accepted
    /// belongs to that of the program that connected. `None` before Linux 5.14.
    pub fn cookie_of(socket: BorrowedFd<'_>) -> Option<u64> {
        cookie(socket)
    }

    /// A netlink socket inside, to be used from here: one thread for all requests instead of one for each.
    ///
    /// # Errors
    /// As [`Netns::run`] and [`Netlink::open`].
    pub fn netlink(&self) -> Result<Netlink> {
        self.run(Netlink::open)?
    }
}

/// Runs `f` in a network namespace that is gone afterwards.
///
/// # Errors
/// No thread could be started (EAGAIN), or no namespace can be made (EPERM); then `f` has not run.
pub(crate) fn in_throw_away_netns<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T> {
    const OP: &str = "make network namespace";
    thread::scope(|scope| {
        #[expect(clippy::disallowed_methods, reason = "the thread ends inside")]
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::new(OP, "", e))?;
            Ok(f())
        };
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, inside)
            .map_err(|e| Error::io(OP, "", &e))?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.file.into()
    }
}

/// What tells one network namespace from another within one boot.
///
/// The inode number alone does not: a namespace that is deleted and made anew usually gets the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsIdentity {
    /// The device of its file.
    pub device: u64,
    /// The inode number of its file.
    pub inode: u64,
    /// When its file came into being, in nanoseconds since 1970. Only while the file stays mounted or open: the
    /// kernel makes another for the same namespace after that.
    pub ctime_ns: i64,
    /// SO_NETNS_COOKIE, never given twice within one boot; `None` before Linux 5.14.
    #[serde(default)]
    pub cookie: Option<u64>,
}

impl NetnsIdentity {
    /// Whether both describe one namespace: by the cookies where both have one, else by inode and time.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.cookie, other.cookie) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => (self.device, self.inode, self.ctime_ns) == (other.device, other.inode, other.ctime_ns),
        }
    }
}

/// The cookie of a socket's network namespace.
pub(crate) fn cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`, and the length; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<u64>() && cookie != 0).then_some(cookie)
}
