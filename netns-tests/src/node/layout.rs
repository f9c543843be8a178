//! The mounts of a node. See the list in the parent's documentation.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::{Lab, NodeOptions, STAGE, dist_dir, fault_dist_dir};
use crate::error::{LabError, Result};

/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// Makes the calling thread's mount namespace, which must be new, that of a node.
pub(super) fn lay_out(lab: &Lab, options: &NodeOptions) -> Result<()> {
    // What the machine mounts and unmounts meanwhile is followed; nothing goes the other way.
    mount_at("none", "/", None, MsFlags::MS_REC | MsFlags::MS_SLAVE, None)?;
    // The programs may lie below a directory that is about to be covered: they are held by descriptor.
    let programs = File::open(if options.faults { fault_dist_dir() } else { dist_dir() }).ok();
    let mut shared = Vec::new();
    for (outside, inside) in &options.shared {
        let what = || format!("open {}", outside.display());
        shared.push((File::open(outside).map_err(LabError::because(what()))?, inside));
    }
    tmpfs("/run", "mode=755")?;
    for dir in ["proc", "cgroup", "dist", "etc/upper", "etc/work", "lib/upper", "lib/work"] {
        make_dir(format!("{STAGE}/{dir}"))?;
    }
    bind_all("/proc", format!("{STAGE}/proc"))?;
    overlay("/etc", "etc")?;
    overlay("/var/lib", "lib")?;
    tmpfs("/opt", "mode=755")?;
    for dir in ["podwire", "cni", "containerd", "containers"] {
        let dir = format!("/var/lib/{dir}");
        make_dir(&dir)?;
        tmpfs(&dir, "mode=711")?;
    }
    if let Some(programs) = programs {
        bind_open(&programs, format!("{STAGE}/dist"))?;
    }
    for (dir, inside) in shared {
        make_dir(inside)?;
        bind_open(&dir, inside)?;
    }
    for dir in &options.on_disk {
        let name = dir.display().to_string().replace('/', "-");
        let outside = lab.dir().join(format!("disk{name}"));
        make_dir(&outside)?;
        make_dir(dir)?;
        bind(outside, dir)?;
    }
    for (dir, bytes) in &options.small {
        make_dir(dir)?;
        tmpfs(dir, &format!("size={bytes}"))?;
    }
    bind_all("/sys/fs/cgroup", format!("{STAGE}/cgroup"))?;
    mount_at("sysfs", "/sys", Some("sysfs"), MsFlags::empty(), None)?;
    mount_at(format!("{STAGE}/cgroup"), "/sys/fs/cgroup", None, MsFlags::MS_MOVE, None)?;
    for dir in ["/opt/cni/bin", "/run/netns", "/etc/cni/net.d"] {
        make_dir(dir)?;
    }
    // What the machine itself has configured is no part of the node.
    for entry in fs::read_dir("/etc/cni/net.d").into_iter().flatten().flatten() {
        fs::remove_file(entry.path()).map_err(LabError::because("empty a node's /etc/cni/net.d"))?;
    }
    if options.no_plugins { Ok(()) } else { link_plugins() }
}

/// Podwire under its four names, and Debian's plugins for what podwire is not: portmap, bandwidth, bridge, …
fn link_plugins() -> Result<()> {
    let link = |from: &Path, name: &str| {
        std::os::unix::fs::symlink(from, format!("/opt/cni/bin/{name}"))
            .map_err(LabError::because(format!("link {name}")))
    };
    let dist = Path::new(STAGE).join("dist");
    let ours = dist.join("podwire").exists();
    if ours {
        for (file, name) in [
            ("podwire", "podwire"),
            ("podwire", "loopback"),
            ("podwire", "podwire-tuning"),
            ("podwire-ipam", "podwire-ipam"),
        ] {
            link(&dist.join(file), name)?;
        }
    }
    for entry in fs::read_dir(REFERENCE).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(ours && name == "loopback") {
            link(&entry.path(), &name)?;
        }
    }
    Ok(())
}

fn make_dir(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    fs::create_dir_all(dir).map_err(LabError::because(format!("make {}", dir.display())))
}

fn tmpfs(at: impl AsRef<Path>, options: &str) -> Result<()> {
    mount_at("tmpfs", at, Some("tmpfs"), MsFlags::empty(), Some(options))
}

fn overlay(dir: &str, stage: &str) -> Result<()> {
    let options = format!("lowerdir={dir},upperdir={STAGE}/{stage}/upper,workdir={STAGE}/{stage}/work");
    mount_at("overlay", dir, Some("overlay"), MsFlags::empty(), Some(&options))
}

pub(super) fn bind(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    mount_at(from, to, None, MsFlags::MS_BIND, None)
}

fn bind_all(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    mount_at(from, to, None, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

/// Binds an open directory, whatever is mounted over its path by now.
fn bind_open(dir: &File, to: impl AsRef<Path>) -> Result<()> {
    let from = format!("{STAGE}/proc/thread-self/fd/{}", dir.as_raw_fd());
    bind(from, to)
}

fn mount_at(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    mount(Some(from), to, kind, flags, options).map_err(LabError::because(format!(
        "mount {} at {}",
        from.display(),
        to.display()
    )))
}
