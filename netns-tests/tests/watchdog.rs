//! An agent of which one thread hangs: whoever asks is told which, and systemd hears no sign of life until it goes on.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::{AT_LAST, Cluster, Member, Options};
use podwire_netns_tests::{LabError, Result, wait_for};

/// How often systemd wants to hear: the threads are asked three times as often.
const WATCHDOG: Duration = Duration::from_millis(600);

/// A thread that the kernel runs no more until this value is dropped: version 1 of control groups freezes single threads.
struct Frozen {
    group: PathBuf,
    thread: String,
}

impl Frozen {
    /// The agent's thread of that name.
    fn new(member: &Member, name: &str) -> Result<Self> {
        let hierarchy = Path::new("/sys/fs/cgroup/freezer");
        if !hierarchy.join("tasks").exists() {
            return Err(LabError::new(
                "needs the freezer of control groups version 1 at /sys/fs/cgroup/freezer",
            ));
        }
        let tasks = format!("/proc/{}/task", member.agent()?.pid());
        let threads = fs::read_dir(&tasks).map_err(LabError::because(tasks.clone()))?.flatten();
        let mut threads = threads.filter(|thread| {
            // The kernel keeps 15 bytes of a name.
            let found = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            found.trim() == name.get(..15).unwrap_or(name)
        });
        let thread =
            threads.next().ok_or_else(|| LabError::new(format!("the agent has no thread {name}")))?;
        let group = hierarchy.join(format!("{}-frozen", member.node().name()));
        fs::create_dir(&group).map_err(LabError::because(group.display().to_string()))?;
        let frozen = Self { group, thread: thread.file_name().to_string_lossy().into_owned() };
        frozen.write("tasks", &frozen.thread)?;
        frozen.write("freezer.state", "FROZEN")?;
        Ok(frozen)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.group.join(file);
        fs::write(&path, text).map_err(LabError::because(format!("write {text} to {}", path.display())))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.write("freezer.state", "THAWED");
        let _ = fs::write("/sys/fs/cgroup/freezer/tasks", &self.thread);
        let _ = fs::remove_dir(&self.group);
    }
}

/// What the agent tells systemd.
struct Systemd(UnixDatagram);

impl Systemd {
    /// Whether it gives a sign of life within that time.
    fn hears_life(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut text = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.0.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            let Ok(length) = self.0.recv(&mut text) else { return false };
            if text[..length].windows(10).any(|word| word == b"WATCHDOG=1") {
                return true;
            }
        }
    }

    /// Takes what has been said and not been read.
    fn forget(&self) -> Result<()> {
        let mut text = [0; 4096];
        self.0.set_nonblocking(true).map_err(LabError::because("read as systemd"))?;
        while self.0.recv(&mut text).is_ok() {}
        self.0.set_nonblocking(false).map_err(LabError::because("read as systemd"))
    }
}

#[test]
fn a_thread_that_hangs_is_named_and_systemd_hears_no_sign_of_life_meanwhile() -> Result<()> {
    let mut cluster = Cluster::prepare("watchdog", &Options { nodes: 1, ..Options::default() })?;
    let socket = UnixDatagram::bind(cluster.member(0).node().path("/run/notify.sock"));
    let systemd = Systemd(socket.map_err(LabError::because("listen as systemd"))?);
    let micros = format!("WATCHDOG_USEC={}", WATCHDOG.as_micros());
    cluster.member_mut(0).start_agent_under(&["/usr/bin/env", "NOTIFY_SOCKET=/run/notify.sock", &micros])?;
    let member = cluster.member(0);
    let health = || member.agent().and_then(|agent| agent.get("/healthz")).unwrap_or_default();
    for (thread, what) in [
        ("writer", "the thread that writes the address store"),
        ("podwired-rules", "the thread that keeps the pods' rules"),
        ("podwired-overlay", "the thread that keeps the overlay"),
    ] {
        assert!(wait_for(AT_LAST, || health().0 == 200), "{:?}", health());
        assert!(systemd.hears_life(AT_LAST), "before {thread} hangs");
        let frozen = Frozen::new(member, thread)?;
        let words = format!("{what} does not answer");
        let is_named = || health() == (503, format!("{words}\n"));
        assert!(wait_for(AT_LAST, is_named), "{thread}: {:?}; {}", health(), member.agent()?.log());
        systemd.forget()?;
        assert!(!systemd.hears_life(3 * WATCHDOG), "{thread} hangs");
        assert!(is_named(), "{thread}: {:?}", health());
        drop(frozen);
        assert!(systemd.hears_life(AT_LAST), "{thread} goes on");
        let goes_on = || member.agent().is_ok_and(|agent| agent.log().contains("answers again"));
        assert!(wait_for(AT_LAST, || health().0 == 200 && goes_on()), "{thread}: {:?}", health());
    }
    Ok(())
}
