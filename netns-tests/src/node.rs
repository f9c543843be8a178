//! A node: private namespaces in which the production paths are the test's paths.
//!
//! What a node is made of, in the order in which it is made, on one thread that then ends:
//! 1. a mount and a network namespace, held by file descriptors of the test process;
//! 2. tmpfs on /run and /opt, overlays on /etc and /var/lib with their upper layers on a tmpfs, tmpfs on
//!    the state directories (an overlay cannot carry containerd's own overlays);
//! 3. a sysfs of the new network namespace, with the machine's /sys/fs/cgroup moved back in, which runc needs;
//! 4. a process id namespace with an init that reads a pipe from the test process. When the test process ends,
//!    even by SIGKILL, the pipe closes, init ends, and the kernel ends every process of the node with it:
//!    containerd, its shims, the pods. That leaves nothing that holds the other namespaces.

mod layout;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::error::{LabError, Result};
use crate::lab::{Lab, remove_cgroups};
use crate::netns::{Netns, on_a_thread};
use crate::pod::Pod;
use crate::process::{Finished, LIMIT, finish, program};

/// Where a node keeps what the harness needs and the runtimes do not look at.
const STAGE: &str = "/run/.lab";

/// The directory with the programs under test: the environment variable `PODWIRE_DIST`, else `dist` in the
/// workspace, where `make build` leaves them.
pub fn dist_dir() -> PathBuf {
    match std::env::var_os("PODWIRE_DIST") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist"),
    }
}

/// The directory with the same programs made for fault tests, which can be told to die at a named step: the environment
/// variable `PODWIRE_FAULT_DIST`, else `faults` in the target directory, where `scripts/build-faults` leaves them.
pub fn fault_dist_dir() -> PathBuf {
    match std::env::var_os("PODWIRE_FAULT_DIST") {
        Some(dir) => PathBuf::from(dir),
        None => target_dir().join("faults"),
    }
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"))
}

/// What a node may have that is not the default.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// Directories that lie on the machine's disk instead of a tmpfs, such as `/var/lib/podwire` where the cost of
    /// fdatasync is what is measured.
    pub on_disk: Vec<PathBuf>,
    /// Tmpfs of a limited size, such as `("/var/lib/podwire", 65536)` for a disk that is full.
    pub small: Vec<(PathBuf, u64)>,
    /// Directories of the machine that are seen in the node too: outside, inside.
    pub shared: Vec<(PathBuf, PathBuf)>,
    /// Run the programs that can be told to die at a named step: see [`fault_dist_dir`].
    pub faults: bool,
    /// Leave /opt/cni/bin empty instead of linking podwire and Debian's reference plugins there.
    pub no_plugins: bool,
}

/// A node; cheap to clone, gone with its last clone.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    lab: Lab,
    name: String,
    netns: Netns,
    mounts: OwnedFd,
    pids: OwnedFd,
    anchor: Mutex<Anchor>,
    anchor_pid: u32,
    pods: AtomicU32,
}

struct Anchor {
    process: Child,
    leash: Option<ChildStdin>,
}

/// The init of a node. bash collects the orphans that end in it; the leash is its standard input.
const INIT: &str = "mount -t proc proc /proc && ip link set lo up && echo ready && read -r _";

impl Node {
    #[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
    pub(crate) fn create(lab: &Lab, name: &str, options: &NodeOptions) -> Result<Self> {
        let full = format!("{}-{name}", lab.name());
        let (netns, mounts, mut process) = on_a_thread(|| -> Result<_> {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
                .map_err(LabError::because("create a mount and a network namespace (the tests need root)"))?;
            let netns = Netns::current()?;
            let mounts: OwnedFd = File::open("/proc/thread-self/ns/mnt")
                .map_err(LabError::because("open /proc/thread-self/ns/mnt"))?
                .into();
            layout::lay_out(lab, options)?;
            let process = Command::new("unshare")
                .args(["--pid", "--fork", "--kill-child=SIGKILL", "--", "bash", "-c", INIT])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(LabError::because("start unshare (package util-linux)"))?;
            Ok((netns, mounts, process))
        })?;
        let leash = process.stdin.take();
        let mut line = String::new();
        if let Some(out) = process.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(LabError::because("read from a node's init"))?;
        }
        if line.trim() != "ready" {
            let mut why = String::new();
            drop(leash);
            if let Some(mut err) = process.stderr.take() {
                let _ = err.read_to_string(&mut why);
            }
            let _ = process.wait();
            return Err(LabError::new(format!("the init of node {full} did not start: {}", why.trim())));
        }
        let anchor_pid = process.id();
        let pids = File::open(format!("/proc/{anchor_pid}/ns/pid_for_children"))
            .map_err(LabError::because("open a node's process id namespace"))?
            .into();
        let anchor = Mutex::new(Anchor { process, leash });
        let inner = Inner {
            lab: lab.clone(),
            name: full,
            netns,
            mounts,
            pids,
            anchor,
            anchor_pid,
            pods: AtomicU32::new(0),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Its unique name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The lab that it is part of.
    pub fn lab(&self) -> &Lab {
        &self.0.lab
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.netns
    }

    /// Where a file of the node is found from outside, for example to read `/var/lib/podwire/ipam.lock`.
    /// Absolute symbolic links in the node are followed by the kernel as seen from the machine: avoid them.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        let root = PathBuf::from(format!("/proc/{}/root", self.0.anchor_pid));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Writes a file of the node, with its directories.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn write(&self, inside: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(&inside);
        let what = || format!("write {} in {}", inside.as_ref().display(), self.0.name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(LabError::because(what()))?;
        }
        fs::write(path, content).map_err(LabError::because(what()))
    }

    /// Reads a file of the node as text.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn read(&self, inside: impl AsRef<Path>) -> Result<String> {
        fs::read_to_string(self.path(&inside)).map_err(LabError::because(format!(
            "read {} in {}",
            inside.as_ref().display(),
            self.0.name
        )))
    }

    /// The names in a directory of the node, sorted; empty where there is no such directory.
    pub fn list(&self, inside: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(inside)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Installs a network configuration list the way containerd notices: a temporary file in the
    /// directory itself, then a rename. containerd ignores the creation of a file.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn install_conflist(&self, name: &str, conflist: &Value) -> Result<()> {
        let temporary = format!("/etc/cni/net.d/.{name}.new");
        self.write(
            &temporary,
            serde_json::to_vec_pretty(conflist).map_err(LabError::because("print a conflist"))?,
        )?;
        fs::rename(self.path(&temporary), self.path(format!("/etc/cni/net.d/{name}")))
            .map_err(LabError::because(format!("rename a conflist to {name}")))
    }

    /// Runs `f` in the node's network namespace, with the machine's own files: for sockets and for looking.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn in_network<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.0.netns.run(f)
    }

    /// Runs `f` on a thread inside the node: network, files, and the process ids of what it starts. It must
    /// not start threads (the kernel refuses: they would be in another process id namespace than the children)
    /// and finds no /proc/self (that is the node's /proc, in which the test process is not).
    ///
    /// # Errors
    /// If a namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let inner = &self.0;
        on_a_thread(|| {
            inner.enter(&inner.netns)?;
            Ok(f())
        })
    }

    /// Starts a program inside the node. See [`program`] and [`finish`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let what = format!("start {} in {}", command.get_program().to_string_lossy(), self.0.name);
        self.enter(|| command.spawn())?.map_err(LabError::because(what))
    }

    /// Runs a program inside the node to its end.
    ///
    /// # Errors
    /// If it cannot be started; how it ends is in the result.
    pub fn run(&self, name: &str, args: &[&str]) -> Result<Finished> {
        self.run_with(program(name).args(args), b"", LIMIT)
    }

    /// Runs a program inside the node to its end, with input and a time limit. `command` comes from [`program`].
    ///
    /// # Errors
    /// If it cannot be started; how it ends is in the result.
    pub fn run_with(&self, command: &mut Command, stdin: &[u8], limit: Duration) -> Result<Finished> {
        let began = Instant::now();
        finish(self.spawn(command)?, stdin, began, limit)
    }

    /// What `ip -json …` says in the node's network namespace.
    ///
    /// # Errors
    /// If `ip` fails or prints no JSON.
    pub fn ip(&self, args: &[&str]) -> Result<Value> {
        ip(&self.0.netns, args)
    }

    /// The names of the links in the node's network namespace, sorted, `lo` left out.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn links(&self) -> Result<Vec<String>> {
        link_names(&self.ip(&["link"])?)
    }

    /// A new pod: a network namespace at /run/netns, named by the caller or, for an empty name, by count.
    ///
    /// # Errors
    /// If the namespace or its mount cannot be made.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let count = self.0.pods.fetch_add(1, Ordering::Relaxed);
        let name = if name.is_empty() { format!("pod{count}") } else { name.to_owned() };
        Pod::create(self, &name)
    }

    /// Makes the node believe that it was started anew: `/proc/sys/kernel/random/boot_id` says `boot_id` from
    /// now on. Nothing else changes; the caller removes what a reboot would.
    ///
    /// # Errors
    /// If the file cannot be mounted over.
    pub fn set_boot_id(&self, boot_id: &str) -> Result<()> {
        let file = format!("{STAGE}/boot-id-{}", self.0.pods.fetch_add(1, Ordering::Relaxed));
        self.write(&file, format!("{boot_id}\n"))?;
        self.enter(|| layout::bind(&file, "/proc/sys/kernel/random/boot_id"))?
    }

    /// The path inside every node of one of the programs under test.
    pub fn dist(name: &str) -> PathBuf {
        Path::new(STAGE).join("dist").join(name)
    }

    /// Mounts the calling thread's network namespace on a file of the node. The thread must be about to end.
    pub(crate) fn bind_netns(&self, file: &str) -> Result<()> {
        enter_mounts(&self.0.mounts)?;
        // Not the node's own /proc: that does not have this thread in it.
        layout::bind(format!("{STAGE}/proc/thread-self/ns/net"), file)
    }

    /// Unmounts a file of the node and removes it. The calling thread must be about to end.
    pub(crate) fn unmount(&self, file: &Path) -> Result<()> {
        enter_mounts(&self.0.mounts)?;
        umount2(file, MntFlags::MNT_DETACH)
            .map_err(LabError::because(format!("unmount {}", file.display())))?;
        fs::remove_file(file).map_err(LabError::because(format!("remove {}", file.display())))
    }
}

impl Inner {
    #[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
    fn enter(&self, netns: &Netns) -> Result<()> {
        let entering = |what: &str| LabError::because(format!("enter the {what} namespace of {}", self.name));
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(entering("network"))?;
        enter_mounts(&self.mounts)?;
        setns(&self.pids, CloneFlags::CLONE_NEWPID).map_err(entering("process id"))
    }
}

/// Moves the calling thread to the mount namespace. The caller's thread must be about to end.
#[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
fn enter_mounts(mounts: &OwnedFd) -> Result<()> {
    // A thread shares its root and working directory with the process, and the kernel refuses to move those.
    unshare(CloneFlags::CLONE_FS).map_err(LabError::because("give a thread its own working directory"))?;
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(LabError::because("enter a node's mount namespace"))
}

impl Drop for Inner {
    fn drop(&mut self) {
        let anchor = self.anchor.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        anchor.leash = None;
        // Init ends when its input does; the kernel then ends the rest of the node before unshare's wait returns.
        let _ = anchor.process.wait();
        remove_cgroups(|name| name == self.name);
    }
}

/// What `ip -json …` says in a network namespace; an empty answer is an empty list.
pub(crate) fn ip(netns: &Netns, args: &[&str]) -> Result<Value> {
    let what = format!("ip -json {}", args.join(" "));
    let mut command = program("ip");
    command.arg("-json").args(args);
    let began = Instant::now();
    let child = netns.run(|| command.spawn())?.map_err(LabError::because("start ip (package iproute2)"))?;
    let done = finish(child, b"", began, LIMIT)?.success(&what)?;
    if done.stdout.trim_ascii().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_slice(&done.stdout).map_err(LabError::because(what))
}

pub(crate) fn link_names(links: &Value) -> Result<Vec<String>> {
    let links = links.as_array().ok_or_else(|| LabError::new("ip printed no list of links"))?;
    let mut names: Vec<_> = links
        .iter()
        .filter_map(|link| link["ifname"].as_str())
        .filter(|name| *name != "lo")
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}
