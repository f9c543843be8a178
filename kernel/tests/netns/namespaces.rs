//! Opening, recognising and entering namespaces.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;

use nix::sys::stat::Mode;
use podwire_kernel::{Netns, NetnsError, NetnsIdentity};

use crate::lab::{in_new_netns, new_netns};

/// A directory that goes with its test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podwire-kernel-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a directory for the test");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_no_network_namespace_is_told_apart() {
    let directory = Directory::new("open");
    let file = directory.0.join("plain");
    fs::write(&file, "").expect("a file");
    let fifo = directory.0.join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).expect("a fifo");
    let missing = directory.0.join("none");
    let below = file.join("below");
    let process = PathBuf::from("/proc/4194305/ns/net");
    for path in [&missing, &below, &process] {
        let error = Netns::open(path).expect_err("nothing there");
        assert!(matches!(error, NetnsError::Missing(_)) && error.is_gone(), "{error:?}");
        assert_eq!(error.to_string(), format!("network namespace {} does not exist", path.display()));
    }
    let wrong: [(PathBuf, &str); 4] = [
        (file.clone(), "a plain file"),
        (fifo, "a special file"),
        (directory.0.clone(), "a directory"),
        ("/proc/self/ns/mnt".into(), "a namespace of another kind"),
    ];
    for (path, what) in wrong {
        let error = Netns::open(&path).expect_err("no network namespace");
        assert!(error.is_gone());
        assert_eq!(error.to_string(), format!("{} is not a network namespace but {what}", path.display()));
    }
}

#[test]
fn the_callers_thread_never_leaves_its_namespace() {
    in_new_netns(|| {
        let here = Netns::current().expect("here");
        let pod = new_netns();
        assert!(!here.same_as(&pod));
        let inside = pod.run(|| Netns::current().expect("inside")).expect("enter");
        assert!(inside.same_as(&pod));
        assert!(Netns::current().expect("here").same_as(&here));
        let failed: Result<(), &str> = pod.run(|| Err("failed inside")).expect("enter");
        assert_eq!(failed, Err("failed inside"));
        assert!(Netns::current().expect("here").same_as(&here));
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| pod.run(|| panic!("inside"))));
        let cause = panicked.expect_err("the panic goes on in the caller");
        assert_eq!(cause.downcast_ref(), Some(&"inside"));
        assert!(Netns::current().expect("here").same_as(&here));
    });
}

#[test]
fn a_namespace_is_known_again_and_its_successor_is_not_it() {
    let first = new_netns();
    let identity = first.identity().expect("entered");
    assert!(identity.cookie.is_some(), "SO_NETNS_COOKIE came with Linux 5.14");
    assert_eq!(first.identity().expect("entered"), identity);
    let again = Netns::open(format!("/proc/self/fd/{}", fd(&first))).expect("the same file");
    assert!(again.same_as(&first) && again.identity_with(identity.cookie).is_same(&identity));
    drop((first, again));

    // A later one may have the same inode number; its cookie differs in any case.
    for _ in 0..20 {
        let next = new_netns().identity().expect("entered");
        assert!(!next.is_same(&identity), "{next:?} {identity:?}");
    }
}

fn fd(netns: &Netns) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    netns.as_fd().as_raw_fd()
}

#[test]
fn without_cookies_inode_and_time_decide() {
    let with = NetnsIdentity { device: 4, inode: 5, ctime_ns: 6, cookie: Some(7) };
    let without = NetnsIdentity { cookie: None, ..with };
    assert!(with.is_same(&without) && without.is_same(&with));
    assert!(!with.is_same(&NetnsIdentity { cookie: Some(8), ..with }));
    assert!(with.is_same(&NetnsIdentity { ctime_ns: 9, ..with }));
    assert!(!without.is_same(&NetnsIdentity { ctime_ns: 9, ..with }));
}
