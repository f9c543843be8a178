//! Removal of links by threads that hold none of the process's files.
//!
//! The kernel takes a link off all its lists within a millisecond, but the request returns only after it has
//! waited for every CPU (`rcu_barrier`, 17–54 ms measured), and cannot be killed meanwhile. A process killed then
//! keeps its open files until that thread is through: with them the lock that its successor waits for. So the request
//! is sent by a thread with a file descriptor table of its own, in which nothing but its socket is open.

use std::fs;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, Result};
use crate::link;
use crate::netlink::{Netlink, Request};

/// Removes the link in the calling thread's network namespace and returns at once; `on_done` hears how it went,
/// which is tens of milliseconds after the link is gone. How many may be under way at once is for the caller to
/// limit: each takes two threads.
///
/// # Errors
/// No thread could be started (EAGAIN); `on_done` is not called.
pub fn delete_link(index: u32, name: &str, on_done: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
    send_alone(link::delete(index, name), name, on_done)
}

/// Removes all links of that group in the calling thread's network namespace by one request; otherwise like
/// [`delete_link`].
///
/// # Errors
/// No thread could be started (EAGAIN); `on_done` is not called.
pub fn delete_group(group: u32, on_done: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
    send_alone(link::delete_group(group), &format!("group {group:#x}"), on_done)
}

fn send_alone(
    request: Request<'static>,
    object: &str,
    on_done: impl FnOnce(Result<()>) + Send + 'static,
) -> Result<()> {
    let owned = object.to_owned();
    // Two threads: `on_done` may wake a task through a file descriptor, and in the table of the thread that waits
    // for the kernel that number is closed, or the netlink socket.
    let waiter = move || {
        let worker = {
            let object = owned.clone();
            thread::Builder::new()
                .name("dellink".to_owned())
                .stack_size(STACK)
                .spawn(move || delete_alone(request, &object))
        };
        on_done(match worker {
            Ok(worker) => worker.join().unwrap_or_else(|_| Err(failure(&owned, Errno::EIO))),
            Err(error) => Err(Error::io(OP, owned.as_str(), &error)),
        });
    };
    let spawned = thread::Builder::new().name("dellink-wait".to_owned()).stack_size(STACK).spawn(waiter);
    spawned.map(drop).map_err(|error| Error::io(OP, object, &error))
}

const OP: &str = "delete link";

/// `on_done` runs on such a stack too.
const STACK: usize = 256 * 1024;

fn failure(name: &str, errno: Errno) -> Error {
    Error::new(OP, name, errno)
}

fn delete_alone(request: Request<'static>, object: &str) -> Result<()> {
    leave_files().map_err(|errno| failure(object, errno).with("cannot leave the process's open files"))?;
    Netlink::open()?.apply(&[request])
}

/// Gives the calling thread a descriptor table of its own with nothing in it but standard input, output and error.
fn leave_files() -> Result<(), Errno> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the new table is this thread's alone, and this thread uses no descriptor that another opened: what the
    // call closes here stays open in the process's table.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // Linux before 5.9.
        Err(Errno::ENOSYS) => close_one_by_one(),
        Err(errno) => Err(errno),
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread ends after its one request")]
fn close_one_by_one() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_FILES)?;
    let listed = fs::read_dir("/proc/thread-self/fd").map_err(|_| Errno::ENOSYS)?;
    let open: Vec<libc::c_int> =
        listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: as in `leave_files`; the listing's own descriptor is closed already, which fails with EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
