//! Links that are removed while the process lets go of its files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write, pipe};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use podwire_kernel::detached;
use podwire_kernel::link::LinkRef;

use crate::lab::{enter_new_netns, eventually, in_new_netns, pair, socket};

#[test]
fn the_link_goes_the_answer_comes_and_no_file_is_closed() {
    in_new_netns(|| {
        let mut netlink = socket();
        let (link, _pod) = pair(&mut netlink, "left");
        let (mut reader, mut writer) = pipe().expect("a pipe");
        let (send, receive) = mpsc::channel();
        let mut witness = writer.try_clone().expect("a descriptor");
        detached::delete_link(link.index, "left", move |result| {
            // What wakes a tokio task is a descriptor too.
            witness.write_all(b"callback ").expect("this thread has the process's files");
            send.send(result).expect("somebody waits");
        })
        .expect("started");
        eventually("the link to go", || {
            socket().link(LinkRef::Name("left")).expect("asked").is_none().then_some(())
        });
        receive.recv_timeout(Duration::from_secs(5)).expect("an answer").expect("removed");
        writer.write_all(b"caller").expect("still open");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "callback caller");

        let (send, receive) = mpsc::channel();
        detached::delete_link(link.index, "left", move |result| send.send(result).expect("somebody waits"))
            .expect("started");
        let error =
            receive.recv_timeout(Duration::from_secs(5)).expect("an answer").expect_err("gone already");
        assert!(error.is_missing(), "{error}");
        assert!(error.to_string().starts_with("delete link left: "), "{error}");
    });
}

const LOCK: &str = "PODWIRE_KERNEL_TEST_LOCK";

/// The process that `a_killed_process_lets_go_of_its_lock_while_the_kernel_still_removes_its_link` starts.
#[test]
#[ignore = "run as a process of its own by the test that kills it"]
fn holder_of_the_lock() {
    let path = std::env::var_os(LOCK).expect("started by its test");
    let lock = File::options().write(true).open(path).expect("the lock file");
    lock.try_lock().expect("nobody else holds it");
    enter_new_netns();
    let mut netlink = socket();
    let (link, _pod) = pair(&mut netlink, "left");
    detached::delete_link(link.index, "left", |_| say("answered")).expect("started");
    // The link is off its lists a millisecond after the request, and the request returns long after that.
    while netlink.link(LinkRef::Index(link.index)).expect("asked").is_some() {}
    say("gone");
    loop {
        std::thread::park();
    }
}

/// A line that the test harness of this process does not swallow.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

enum Round {
    /// The lock was free this long before the process had ended.
    Before(Duration),
    /// The kernel was through with the link too early to tell.
    TooFast,
}

fn kill_while_removing(path: &Path) -> Round {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "detached::holder_of_the_lock", "--ignored", "--nocapture"])
        .env(LOCK, path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program again");
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    while !said.ends_with("gone\n") {
        let read = lines.read_line(&mut said).expect("a line");
        assert_ne!(read, 0, "the process ended: {said}");
    }
    child.kill().expect("kill -9");
    let killed = Instant::now();
    let lock = File::options().write(true).open(path).expect("the lock file");
    while lock.try_lock().is_err() {
        assert!(killed.elapsed() < Duration::from_secs(5), "the lock is not released: {said}");
        std::thread::yield_now();
    }
    let free = Instant::now();
    let running = child.try_wait().expect("asked").is_none();
    child.wait().expect("ended");
    let gap = free.elapsed();
    if running && !said.contains("answered") { Round::Before(gap) } else { Round::TooFast }
}

#[test]
fn a_killed_process_lets_go_of_its_lock_while_the_kernel_still_removes_its_link() {
    let path = std::env::temp_dir().join(format!("podwire-kernel-{}-lock", std::process::id()));
    fs::write(&path, "").expect("a lock file");
    // A lock that went with the process's last thread would be free microseconds before the process has ended.
    let longest = (0..10)
        .map(|_| match kill_while_removing(&path) {
            Round::Before(gap) => gap,
            Round::TooFast => Duration::ZERO,
        })
        .find(|gap| *gap > Duration::from_millis(4));
    fs::remove_file(&path).expect("the lock file");
    assert!(longest.is_some(), "in ten rounds the lock was free only when the process had ended");
}
