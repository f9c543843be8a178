//! Network namespaces to test in, for the tests of this workspace.
//!
//! A namespace made here has no name: it is gone when its test's thread and files are, also after a failure.

use std::panic;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::link::{self, LOOPBACK, LinkChange, LinkRef};
use crate::{Netlink, Netns};

/// Runs a test on a thread with a network namespace of its own, in which the loopback link is up.
///
/// # Panics
/// If the test does, or the caller is not root.
pub fn in_new_netns<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let name = thread::current().name().unwrap_or("test").to_owned();
    let thread = thread::Builder::new().name(name).spawn(|| {
        enter_new_netns();
        test()
    });
    thread.expect("a thread").join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Puts the calling thread, which must be a test's own, into a new network namespace in which the loopback link is up.
///
/// # Panics
/// If the caller is not root.
#[expect(clippy::disallowed_methods, reason = "called on threads of the tests' own")]
pub fn enter_new_netns() {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!(
            "cannot make a network namespace: {errno}; these tests need CAP_SYS_ADMIN and CAP_NET_ADMIN (root)"
        );
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    socket().apply(&link::change(LinkRef::Index(LOOPBACK), &up)).expect("lo up");
}

/// A new namespace, kept by the file alone.
pub fn new_netns() -> Netns {
    in_new_netns(|| Netns::current().expect("/proc"))
}

/// A socket in the calling thread's namespace.
pub fn socket() -> Netlink {
    Netlink::open().expect("a netlink socket")
}

/// What a program prints, run in the calling thread's namespace.
///
/// # Panics
/// If it is not installed, or fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}{text}");
    text
}

/// Waits for a state that the kernel, or another thread, reaches by itself, 5 s at most.
///
/// # Panics
/// If it is not reached.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(Duration::from_secs(5), what, look)
}

/// Waits for such a state so long at most.
///
/// # Panics
/// If it is not reached.
#[expect(clippy::disallowed_methods, reason = "nothing tells of these states when they are reached")]
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
