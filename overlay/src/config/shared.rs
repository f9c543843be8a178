//! The settings that all nodes of a cluster share, as they are written in TOML: in the agent's own file for a cluster that
//! is to be made in etcd, or in a peers file. PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::document::{Field, Mistake};
use super::layers::Layers;
use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily};

/// Reads them from the keys below `prefix`, such as `cluster.` or nothing.
pub(crate) fn read(layers: &mut Layers, prefix: &str) -> ClusterConfig {
    let at = |key: &str| format!("{prefix}{key}");
    let encapsulation = Encapsulation {
        vni: layers.read(&at("encapsulation.vni"), vni),
        port: layers.read(&at("encapsulation.port"), port),
    };
    ClusterConfig {
        name: layers.read(&at("name"), cluster_name),
        ranges: layers.read(&at("range"), ranges),
        encapsulation,
        also_receive: layers.read(&at("also_receive"), encapsulations),
        direct_routing: layers.read(&at("direct_routing"), |field| {
            field.choice(&[
                ("never", DirectRouting::Never),
                ("auto", DirectRouting::Auto),
                ("always", DirectRouting::Always),
            ])
        }),
        underlay: layers.read(&at("underlay"), underlay),
        // A peers file has no such key: nodes come and go there as it says.
        reclaim_after_seconds: layers.read(&at("reclaim_after_hours"), reclaim_after),
    }
}

fn cluster_name(field: &Field<'_>) -> Result<String, Mistake> {
    const ALLOWED: &str =
        "a name of 1 to 253 letters, digits, '.', '_' and '-' that begins with a letter or digit";
    let name = field.text(ALLOWED)?;
    if is_name(name) { Ok(name.to_owned()) } else { Err(field.wrong(ALLOWED)) }
}

/// Whether it can be the name of a cluster or a node: in a path, a log, a label.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 253 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

fn vni(field: &Field<'_>) -> Result<u32, Mistake> {
    field.number(1..=0xff_ffff, "a VXLAN network identifier")
}

fn port(field: &Field<'_>) -> Result<u16, Mistake> {
    field.number(1..=u16::MAX, "a UDP port")
}

fn encapsulations(field: &Field<'_>) -> Result<Vec<Encapsulation>, Mistake> {
    const MOST: usize = 4;
    let mut found: Vec<Encapsulation> = Vec::new();
    for element in field.list("tables { vni, port }")? {
        let entries = element.table(&["vni", "port"])?;
        let encapsulation = Encapsulation {
            vni: vni(&element.entry(entries, "vni")?)?,
            port: port(&element.entry(entries, "port")?)?,
        };
        if found.contains(&encapsulation) {
            return Err(element.wrong("given once"));
        }
        if found.len() == MOST {
            return Err(element
                .mistake(format!("more than {MOST} encapsulations: each makes a device on every node")));
        }
        found.push(encapsulation);
    }
    Ok(found)
}

fn underlay(field: &Field<'_>) -> Result<Vec<IpFamily>, Mistake> {
    let mut families = Vec::new();
    for element in field.list("\"ipv4\", \"ipv6\"")? {
        let family = element.choice(&[("ipv4", IpFamily::Ipv4), ("ipv6", IpFamily::Ipv6)])?;
        if families.contains(&family) {
            return Err(element.wrong("given once"));
        }
        families.push(family);
    }
    if families.is_empty() { Err(field.wrong("a list of \"ipv4\", \"ipv6\" or both")) } else { Ok(families) }
}

fn ranges(field: &Field<'_>) -> Result<Vec<ClusterRange>, Mistake> {
    let mut ranges: Vec<ClusterRange> = Vec::new();
    for element in field.list("tables { range, subnet_prefix }")? {
        let range = range(&element)?;
        if ranges.iter().any(|other| other.range.is_ipv4() == range.range.is_ipv4()) {
            let family = if range.range.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(
                element.mistake(format!("a second {family} range: a pod has one address of each family"))
            );
        }
        ranges.push(range);
    }
    Ok(ranges)
}

fn range(element: &Field<'_>) -> Result<ClusterRange, Mistake> {
    let entries = element.table(&["range", "subnet_prefix"])?;
    let field = element.entry(entries, "range")?;
    let range = network(&field, "a range such as 10.244.0.0/16")?;
    if !is_for_pods(range) {
        return Err(field.wrong("a range of addresses that pods can have"));
    }
    let longest = if range.is_ipv4() { 30 } else { 126 };
    let prefix = element.entry(entries, "subnet_prefix")?;
    let subnet_prefix = prefix.number(0..=longest, "the prefix length of each node's subnet,")?;
    // A node's subnet is told by a number of 32 bits within its range.
    let shortest = range.prefix();
    if subnet_prefix < shortest || subnet_prefix - shortest > 32 {
        let most = longest.min(shortest.saturating_add(32));
        return Err(
            prefix.wrong(format!("a prefix length from {shortest} to {most}, for a range of /{shortest}"))
        );
    }
    Ok(ClusterRange { range, subnet_prefix })
}

/// A network without host bits.
pub(crate) fn network(field: &Field<'_>, allowed: &str) -> Result<IpNetwork, Mistake> {
    let network: IpNetwork = match field.text(allowed)? {
        // IpNetwork takes an address without a prefix length for a network of one.
        text if text.contains('/') => field.parsed(allowed)?,
        _ => return Err(field.wrong(allowed)),
    };
    if network.ip() == network.network() {
        return Ok(network);
    }
    Err(field.wrong(format!("a network: did you mean {}/{}?", network.network(), network.prefix())))
}

fn is_for_pods(range: IpNetwork) -> bool {
    let (first, last) = (range.network(), range.broadcast());
    [first, last].into_iter().all(is_host_address) && !range.contains(unspecified(first))
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether a host that others reach can have it.
pub(crate) fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            let mapped = ip.to_ipv4_mapped().is_some();
            !(ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || mapped)
        }
    }
}

fn reclaim_after(field: &Field<'_>) -> Result<Option<u64>, Mistake> {
    const ALLOWED: &str = "0 for never, or a number of hours, at least 24,";
    match field.number(0..=87_600_u64, ALLOWED)? {
        0 => Ok(None),
        hours @ 24.. => Ok(Some(hours * 3600)),
        _ => Err(field.wrong(format!("{ALLOWED} so that a node that is away for a night keeps its subnets"))),
    }
}
