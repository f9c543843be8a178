//! The order in which threads run, for the one place where it costs a pod milliseconds.

use nix::libc;

/// Runs `f` ahead of every thread that it starts: for its time the calling thread has the lowest real-time priority,
/// which its new threads do not inherit. Where that is not allowed (no CAP_SYS_NICE, a control group without real
/// time), or the thread has a policy other than the usual one, `f` simply runs.
///
/// For short work only: on a single processor nothing else runs meanwhile but what the kernel sets aside for others
/// (5 % of each second).
pub fn ahead_of_new_threads<T>(f: impl FnOnce() -> T) -> T {
    let _until_the_end = RealTime::begin();
    f()
}

/// Gives the usual policy back when it is dropped, also in a panic.
struct RealTime;

impl RealTime {
    fn begin() -> Option<Self> {
        // SAFETY: the call has no pointer argument; 0 is the calling thread.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
        if policy != libc::c_long::from(libc::SCHED_OTHER) {
            return None;
        }
        set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1).then_some(Self)
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        // It cannot fail: lowering one's priority is always allowed.
        set(libc::SCHED_OTHER, 0);
    }
}

/// The raw call, since musl's function of that name refuses everything. The kernel's `struct sched_param` is one int.
fn set(policy: libc::c_int, priority: libc::c_int) -> bool {
    // SAFETY: the pointer is to an int that outlives the call; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_long {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) }
    }

    #[test]
    fn real_time_ends_with_the_work_and_is_not_inherited() {
        let usual = libc::c_long::from(libc::SCHED_OTHER);
        let (during, inherited) =
            ahead_of_new_threads(|| (policy(), std::thread::spawn(policy).join().expect("no panic")));
        assert_eq!(
            during,
            libc::c_long::from(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK),
            "this test needs CAP_SYS_NICE and a control group with real time"
        );
        assert_eq!((inherited, policy()), (usual, usual));
        let panicked = std::panic::catch_unwind(|| ahead_of_new_threads(|| panic!("as sled does")));
        assert!(panicked.is_err());
        assert_eq!(policy(), usual);
    }
}
