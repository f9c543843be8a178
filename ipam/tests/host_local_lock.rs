//! Reading host-local's directory where it may only be read, and where host-local keeps its lock.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use podwire_ipam::{Dirs, Engine, Lock, RangeSet, Vantage, import};

const NONE: Option<&Path> = None;

/// As systemd's `ProtectSystem=strict` shows it.
#[expect(clippy::expect_used, reason = "a test that lacks privilege fails and says which")]
fn read_only<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> T {
    #[expect(clippy::disallowed_methods, reason = "the thread ends with its mounts")]
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("CAP_SYS_ADMIN");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NONE, "/", NONE, private, NONE).expect("mounts of its own");
        mount(Some(directory), directory, NONE, MsFlags::MS_BIND, NONE).expect("a mount");
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, directory, NONE, read_only, NONE).expect("read-only");
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
}

#[test]
fn a_directory_that_may_only_be_read_is_imported() {
    for with_lock in [true, false] {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("10.9.0.5"), "c1\r\neth0").unwrap();
        if with_lock {
            fs::write(root.path().join("lock"), "").unwrap();
        }
        let imported = read_only(root.path(), || import::read(root.path(), "n", &[]));
        assert_eq!(imported.expect("it can be read").attachments.len(), 1, "{with_lock}");
        assert_eq!(root.path().join("lock").exists(), with_lock);
    }
}

#[test]
fn a_lock_that_is_kept_is_waited_for_once_by_all_that_are_served_together() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
    let networks = root.path().join("networks");
    fs::create_dir(&networks).unwrap();
    let file = File::create(networks.join("lock")).unwrap();
    let kept = Flock::lock(file, FlockArg::LockExclusive).expect("free");
    let sets: Vec<RangeSet> = Vec::new();

    let (lock, _wanted) = Lock::wait(&dirs).unwrap();
    let mut engine = Engine::open(&dirs, lock, Vantage::Runtime).unwrap();
    let start = Instant::now();
    let results = engine
        .batch(|batch| [(); 20].map(|()| batch.import("n", &networks, &sets).map_err(|error| error.chain())))
        .unwrap();
    assert!(results.iter().all(Result::is_err), "{results:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    drop(kept);
    assert_eq!(engine.import("n", &networks, &sets).unwrap(), [""; 0]);
}
