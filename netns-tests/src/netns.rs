//! A network namespace, held by a file descriptor.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{LabError, Result};

/// A network namespace. It lives as long as this value, a mount or a process holds it.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A new, empty network namespace, its `lo` down as the kernel makes it.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    #[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
    pub fn create() -> Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(LabError::because("create a network namespace (the tests need root)"))?;
            Self::current()
        })
    }

    /// The one that is mounted at a path.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(LabError::because(format!("open {}", path.display())))?;
        Ok(Self(file.into()))
    }

    /// The calling thread's network namespace.
    ///
    /// # Errors
    /// Where /proc is not there, or shows another process id namespace than the caller's.
    pub fn current() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net")
            .map_err(LabError::because("open /proc/thread-self/ns/net"))?;
        Ok(Self(file.into()))
    }

    /// One more hold on the same namespace.
    ///
    /// # Errors
    /// If the process may have no more open files.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(LabError::because("hold a network namespace once more"))
    }

    /// Runs `f` in this namespace on a thread of its own, in the machine's own mount namespace. Programs
    /// started and sockets opened by `f` are in the namespace; sockets stay there.
    #[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)
                .map_err(LabError::because("enter a network namespace"))?;
            Ok(f())
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `f` on a thread that ends with it, so that no namespace it enters outlives it; a panic of `f` is the
/// caller's.
pub(crate) fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
