//! `sysctl`: names as people write them to paths below /proc/sys.

use crate::protocol::CniError;
use crate::protocol::json::Field;

/// One kernel setting of the pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// As the configuration has it, which is what the allow-list is about.
    pub key: String,
    /// Its path below /proc/sys, beginning with `net/`; `IFNAME` is replaced by the interface's name.
    pub path: String,
    /// What to write.
    pub value: String,
}

/// What a key says in the place of the interface's name.
const IFNAME: &str = "IFNAME";

pub(super) fn read(field: &Field<'_>, ifname: &str) -> Result<Vec<Sysctl>, CniError> {
    let mut sysctls: Vec<Sysctl> = Vec::new();
    for (key, field) in field.pairs()? {
        let path = path(key, ifname).ok_or_else(|| {
            field.invalid("a name below net, such as net.ipv4.conf.IFNAME.arp_filter, and a text")
        })?;
        // The kernel takes no write of nothing.
        let value = field.text()?.ok_or_else(|| field.invalid("a text that is not empty"))?;
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(field.invalid("a text of one line"));
        }
        if sysctls.iter().any(|other| other.path == path) {
            return Err(field.invalid(&format!("one value for {path}, which has one already")));
        }
        sysctls.push(Sysctl { key: key.to_owned(), path, value: value.to_owned() });
    }
    Ok(sysctls)
}

/// The same list with the values of `others`, and what it lacks behind it.
pub(super) fn replaced(own: Vec<Sysctl>, others: Vec<Sysctl>) -> Vec<Sysctl> {
    let mut sysctls = own;
    for other in others {
        match sysctls.iter_mut().find(|sysctl| sysctl.path == other.path) {
            Some(sysctl) => *sysctl = other,
            None => sysctls.push(other),
        }
    }
    sysctls
}

/// The path of a name; `None` where it is none, or not below net. As sysctl(8) has it, the first separator decides:
/// behind `net.` the dots separate and a slash stands for a dot, behind `net/` the slashes do and dots are dots. So an
/// interface called `eth0.100` can be named either way.
fn path(key: &str, ifname: &str) -> Option<String> {
    let separator = key.chars().find(|c| matches!(c, '.' | '/'))?;
    let path: String = key
        .chars()
        .map(|c| match c {
            '.' if separator == '.' => '/',
            '/' if separator == '.' => '.',
            other => other,
        })
        .collect();
    // Once, and last: an interface's name may have dots of its own.
    let path = if ifname.is_empty() { path } else { path.replacen(IFNAME, ifname, 1) };
    let mut parts = path.split('/');
    let is_name = |part: &str| {
        !part.is_empty() && !matches!(part, "." | "..") && !part.chars().any(|c| c.is_control() || c == ' ')
    };
    (parts.next() == Some("net") && parts.clone().next().is_some() && parts.all(is_name)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sysctl_reads_them() {
        for (key, ifname, expected) in [
            ("net.core.somaxconn", "eth0", Some("net/core/somaxconn")),
            ("net/core/somaxconn", "eth0", Some("net/core/somaxconn")),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0", Some("net/ipv4/conf/eth0/arp_filter")),
            ("net/ipv4/conf/IFNAME/arp_filter", "eth0", Some("net/ipv4/conf/eth0/arp_filter")),
            ("net.ipv4.conf.IFNAME.arp_filter", "eth0.100", Some("net/ipv4/conf/eth0.100/arp_filter")),
            ("net/ipv4/conf/IFNAME/arp_filter", "eth0.100", Some("net/ipv4/conf/eth0.100/arp_filter")),
            ("net.ipv4.conf.IFNAME/100.arp_filter", "eth0", Some("net/ipv4/conf/eth0.100/arp_filter")),
            ("net/ipv4/conf/eth0.100/arp_filter", "eth0", Some("net/ipv4/conf/eth0.100/arp_filter")),
            ("net.ipv4.conf.eth0/100.arp_filter", "eth0", Some("net/ipv4/conf/eth0.100/arp_filter")),
            ("net.ipv4.conf.IFNAME.arp_filter", "", Some("net/ipv4/conf/IFNAME/arp_filter")),
            ("net.ipv4.conf.Eth0.arp_filter", "eth0", Some("net/ipv4/conf/Eth0/arp_filter")),
            ("kernel.hostname", "eth0", None),
            ("net", "eth0", None),
            ("net.", "eth0", None),
            ("", "eth0", None),
            ("NET.core.somaxconn", "eth0", None),
            ("network.core", "eth0", None),
            ("net..core", "eth0", None),
            ("net/../kernel/hostname", "eth0", None),
            ("net/./core", "eth0", None),
            ("/net/core/somaxconn", "eth0", None),
            ("/proc/sys/net/core/somaxconn", "eth0", None),
            ("net.//.kernel.hostname", "eth0", None),
            ("net.core.a b", "eth0", None),
            ("net.core.a\0b", "eth0", None),
            ("net.core.a\nb", "eth0", None),
        ] {
            assert_eq!(path(key, ifname).as_deref(), expected, "{key:?} of {ifname:?}");
        }
    }
}
