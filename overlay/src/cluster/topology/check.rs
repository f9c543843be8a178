//! Whether a cluster's shared settings make sense.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::super::{ClusterConfig, ClusterRange, Encapsulation};

/// Why a cluster's shared settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster settings: {0}")]
pub struct ConfigError(String);

/// The longest text of a record that is looked at, in bytes: that of a DNS name.
pub(super) const MAX_TEXT: usize = 253;

/// The most encapsulations that a node receives at a time.
pub(super) const MAX_ENCAPSULATIONS: usize = 8;

/// A day.
const SHORTEST_RECLAIM: u64 = 86_400;

/// Networks that no pod can have an address of.
const UNUSABLE: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Whether the settings make sense.
///
/// # Errors
/// The first thing that does not, with its key and value.
pub fn check_config(config: &ClusterConfig) -> Result<(), ConfigError> {
    let wrong = |text: String| Err(ConfigError(text));
    if let Err(why) = check_name(&config.name) {
        return wrong(format!("name {why}"));
    }
    if config.ranges.is_empty() {
        return wrong("there is no range to take subnets from".to_owned());
    }
    for (i, range) in config.ranges.iter().enumerate() {
        check_range(range).map_err(|why| ConfigError(format!("range {}: {why}", range.range)))?;
        let same = |other: &ClusterRange| other.range.is_ipv4() == range.range.is_ipv4();
        if config.ranges.iter().take(i).any(same) {
            return wrong(format!("range {}: there is another one of its family already", range.range));
        }
    }
    if config.also_receive.len() >= MAX_ENCAPSULATIONS {
        return wrong(format!("also_receive: at most {} encapsulations", MAX_ENCAPSULATIONS - 1));
    }
    for encapsulation in std::iter::once(&config.encapsulation).chain(&config.also_receive) {
        check_encapsulation(*encapsulation).map_err(|why| ConfigError(format!("encapsulation: {why}")))?;
    }
    match config.underlay.as_slice() {
        [] => wrong("underlay: name at least one address family, ipv4 or ipv6".to_owned()),
        [a, b] if a == b => wrong("underlay: the same address family twice".to_owned()),
        [_, _, _, ..] => wrong("underlay: more than two address families".to_owned()),
        _ => match config.reclaim_after_seconds {
            Some(short) if short < SHORTEST_RECLAIM => wrong(format!(
                "reclaim after {short} s: nodes are away longer than that for maintenance; at least \
                 {SHORTEST_RECLAIM} s, or never"
            )),
            _ => Ok(()),
        },
    }
}

fn check_range(range: &ClusterRange) -> Result<(), String> {
    let ClusterRange { range, subnet_prefix } = *range;
    let longest = if range.is_ipv4() { 30 } else { 126 };
    if range.network() != range.ip() {
        return Err(format!("it has host bits set: write {}/{}", range.network(), range.prefix()));
    }
    for unusable in UNUSABLE {
        // The texts are constants, and tested.
        if unusable.parse().is_ok_and(|unusable| overlaps(range, unusable)) {
            return Err(format!("it overlaps {unusable}, where no pod can be"));
        }
    }
    if subnet_prefix < range.prefix() || subnet_prefix > longest {
        return Err(format!(
            "a subnet prefix of {subnet_prefix} is not between its own {} and {longest}",
            range.prefix()
        ));
    }
    Ok(())
}

fn overlaps(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Whether it is a segment that a device can have.
pub(super) fn check_encapsulation(encapsulation: Encapsulation) -> Result<(), String> {
    let Encapsulation { vni, port } = encapsulation;
    if vni >= 1 << 24 {
        return Err(format!("VNI {vni} has more than 24 bits"));
    }
    if port == 0 {
        return Err("UDP port 0 cannot be received on".to_owned());
    }
    Ok(())
}

/// Whether it is fit for a node's or cluster's name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > MAX_TEXT {
        return Err(format!("has {} bytes, more than {MAX_TEXT}", name.len()));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '/') {
        return Err("contains white space, a slash or control characters".to_owned());
    }
    Ok(())
}

/// Why no node can be reached at that address; `None` if one can.
pub(super) fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("it is unspecified"),
        _ if address.is_loopback() => Some("it is a loopback address"),
        _ if address.is_multicast() => Some("it is a multicast address"),
        IpAddr::V4(address) if address.is_link_local() => Some("it is a link-local address"),
        IpAddr::V4(address) if address.octets()[0] >= 240 || address.octets()[0] == 0 => {
            Some("it is a reserved address")
        }
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("it is a link-local address"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Some("it is an IPv4-mapped address"),
        _ => None,
    }
}
