//! Sysctls, as files below /proc/sys. Those below `net` are those of the calling thread's network namespace.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::addr::Family;
use crate::error::{Error, Result};
use crate::link::LinkRef;
use crate::netlink::Netlink;
use crate::route::{PROTOCOL_RA, RouteFilter};

const ROOT: &str = "/proc/sys";

/// Where a container may have the node's own: runtimes mount its /proc/sys read-only, and refuse mounts below /proc.
/// Whatever it was mounted from, it shows the namespace of the thread that looks.
const OF_NODE: &str = "/host/proc/sys";

/// The value of a sysctl, without the line's end. Names are paths, such as `net/ipv4/conf/eth0.7/arp_notify`: a
/// link's name may contain a dot.
///
/// # Errors
/// There is no such sysctl or link (see [`Error::is_missing`]).
pub fn read(name: &str) -> Result<String> {
    const OP: &str = "read sysctl";
    let text = fs::read_to_string(path(OP, name)?).map_err(|e| Error::io(OP, name, &e))?;
    Ok(text.trim_end().to_owned())
}

/// Gives a sysctl a value unless it has it, so that a read-only /proc/sys with the right values does; otherwise it is
/// written below /host/proc/sys, where a container may have the node's. Says whether it wrote.
///
/// # Errors
/// There is no such sysctl, it does not take the value (EINVAL), or both places are read-only (EROFS).
pub fn write(name: &str, value: &str) -> Result<bool> {
    const OP: &str = "write sysctl";
    let path = path(OP, name)?;
    let failed = |e| Error { detail: Some(format!("value {value:?}")), ..Error::io(OP, name, &e) };
    let write_only = |path: &Path| {
        let file = fs::File::options().write(true).open(path)?;
        file.write_all_at(value.as_bytes(), 0)
    };
    // Not fs::write, which would ask procfs to create and truncate. One descriptor for both: an ADD sets some five.
    match fs::File::options().read(true).write(true).open(&path) {
        Ok(file) => {
            // A longer value is another one. Some may be written but not read.
            let mut old = [0; 256];
            let is_set = file.read_at(&mut old, 0).is_ok_and(|length| {
                old.get(..length).is_some_and(|old| length < 256 && old.trim_ascii_end() == value.as_bytes())
            });
            if is_set {
                return Ok(false);
            }
            file.write_all_at(value.as_bytes(), 0).map_err(failed)?;
            Ok(true)
        }
        // Read-only as a whole, or one that may be read or written only.
        Err(refused) => {
            if fs::read_to_string(&path).is_ok_and(|old| old.trim_end() == value) {
                return Ok(false);
            }
            let written = match refused.kind() {
                io::ErrorKind::PermissionDenied => write_only(&path),
                // Where nothing is mounted, what was refused first is what is wrong.
                io::ErrorKind::ReadOnlyFilesystem => match write_only(&Path::new(OF_NODE).join(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refused),
                    written => written,
                },
                _ => Err(refused),
            };
            written.map_err(failed)?;
            Ok(true)
        }
    }
}

/// Part of the name is not under our control: a link called `..` must not lead elsewhere.
fn path(op: &'static str, name: &str) -> Result<PathBuf> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !plain {
        return Err(Error::new(op, name, Errno::EINVAL).with("not a name below /proc/sys"));
    }
    Ok(Path::new(ROOT).join(relative))
}

/// Makes this network namespace pass on packets between its links. Says whether anything was changed.
///
/// With IPv6 a machine that forwards is a router, and a router does not listen to routers: the moment
/// `forwarding` becomes 1 the kernel drops each default route that a router advertisement gave it, and with it
/// a node's way out. Links with `accept_ra` 2 are excepted. So each link that has a route from an advertisement
/// and `accept_ra` 1 gets 2 first. A link with 0 has its routes from a program in user space, which the kernel does
/// not touch.
///
/// # Errors
/// The routes cannot be read, or a sysctl not written; forwarding is then as it was.
pub fn enable_forwarding(netlink: &mut Netlink, family: Family) -> Result<bool> {
    const V6: &str = "net/ipv6/conf/all/forwarding";
    if family == Family::V4 {
        return write("net/ipv4/ip_forward", "1");
    }
    if read(V6)? == "1" {
        return Ok(false);
    }
    let learned = RouteFilter { family, table: None, oif: None, protocol: Some(PROTOCOL_RA) };
    let mut links: Vec<u32> = netlink
        .routes(&learned)?
        .iter()
        .flat_map(|route| &route.nexthops)
        .filter_map(|nexthop| nexthop.oif)
        .collect();
    links.sort_unstable();
    links.dedup();
    for index in links {
        // A link that went away meanwhile has nothing to lose.
        let Some(link) = netlink.link(LinkRef::Index(index))? else {
            continue;
        };
        let name = format!("net/ipv6/conf/{}/accept_ra", link.name);
        let listen = || {
            if read(&name)? == "1" { write(&name, "2") } else { Ok(false) }
        };
        match listen() {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    write(V6, "1")
}
