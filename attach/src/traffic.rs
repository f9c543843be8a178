//! What the node does to one pod's traffic beyond carrying it, as plain values: host ports, masquerade, shaping,
//! who may reach it, what it may send. PURE.
//!
//! All of it stands in the attachment's lease, so that the node's rules can be put back without a runtime's call
//! and removed when the pod's netns and configuration are gone.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;
use serde::{Deserialize, Serialize};

/// What one pod's attachment asks of the node's packet filter and queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// The host's link that packets to the pod leave by: the bridge, or for an interface that another plugin made
    /// the host's end itself.
    pub device: String,
    /// The host's end of the pod's veth, a port of `device` or the same link.
    pub host_end: String,
    /// Hide the pod's address behind the node's, outside the pods' ranges.
    pub masquerade: Option<Masquerade>,
    /// Ports of the node that lead to the pod.
    pub ports: Vec<PortMapping>,
    /// How they are reached.
    pub port_access: PortAccess,
    /// Who may open connections to the pod.
    pub ingress: IngressPolicy,
    /// What the pod may send as its own.
    pub source_check: Option<SourceCheck>,
    /// How fast it may be.
    pub shaping: Shaping,
}

impl Traffic {
    /// Whether it puts anything into the node's packet filter.
    pub fn has_rules(&self) -> bool {
        self.masquerade.is_some()
            || !self.ports.is_empty()
            || self.ingress != IngressPolicy::Open
            || self.source_check.is_some()
    }

    /// Whether the pod has a limit.
    pub fn is_shaped(&self) -> bool {
        self.shaping != Shaping::default()
    }
}

/// Masquerade: packets to the outside get the node's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// Where pods are: never masqueraded, beside multicast and link-local.
    pub inside: Vec<IpNetwork>,
    /// Choose source ports at random (NF_NAT_RANGE_PROTO_RANDOM_FULLY), which keeps two flows from racing for one.
    pub fully_random: bool,
}

impl Masquerade {
    /// Outside of these networks. They come into one order, and each that lies within another goes: pods of one network
    /// are to share one chain of rules.
    pub fn outside(inside: impl IntoIterator<Item = IpNetwork>, fully_random: bool) -> Self {
        let network = |range: IpNetwork| IpNetwork::new(range.network(), range.prefix()).unwrap_or(range);
        let mut inside: Vec<IpNetwork> = inside.into_iter().map(network).collect();
        inside.sort_unstable();
        inside.dedup();
        let covered = |range: &IpNetwork| {
            let wider = |other: &IpNetwork| other.prefix() < range.prefix() && other.contains(range.ip());
            inside.iter().any(wider)
        };
        let inside = inside.iter().filter(|range| !covered(range)).copied().collect();
        Self { inside, fully_random }
    }

    /// The same for a pod of these subnets after the cluster's ranges have changed.
    #[must_use]
    pub fn following(&self, subnets: &[IpNetwork], before: &[IpNetwork], now: &[IpNetwork]) -> Self {
        let kept = self.inside.iter().filter(|range| !before.contains(range));
        Self::outside(kept.chain(subnets).chain(now).copied(), self.fully_random)
    }
}

/// A transport protocol that host ports exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One port of the node that leads to a port of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's address that it is on. `0.0.0.0` stands for all of its IPv4 addresses, `::` for all of its IPv6
    /// addresses, and `None` for all of every family that the pod has.
    pub host_ip: Option<IpAddr>,
    /// The node's port, never 0.
    pub host_port: u16,
    /// The pod's port, never 0.
    pub container_port: u16,
}

impl PortMapping {
    /// Whether both claim one port of the node: same protocol and port, and an address in common.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.is_same_port(other)
            && match (self.host_ip, other.host_ip) {
                (Some(mine), Some(theirs)) => {
                    let any = mine.is_unspecified() || theirs.is_unspecified();
                    mine == theirs || (any && mine.is_ipv4() == theirs.is_ipv4())
                }
                _ => true,
            }
    }

    /// Whether no packet could tell which of the two is meant, although an address of its own goes before any
    /// address: same protocol and port, and the same address or any address of one family.
    pub fn is_ambiguous_with(&self, other: &Self) -> bool {
        self.is_same_port(other)
            && match (self.host_ip, other.host_ip) {
                (Some(mine), Some(theirs)) => mine == theirs,
                (None, Some(ip)) | (Some(ip), None) => ip.is_unspecified(),
                (None, None) => true,
            }
    }

    fn is_same_port(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.host_port == other.host_port
    }
}

impl fmt::Display for PortMapping {
    /// `8080/tcp`, `192.0.2.1:8080/tcp`, `[2001:db8::1]:8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => {}
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// How a pod's host ports are reached; the reference portmap plugin's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortAccess {
    /// Whose connections are masqueraded.
    pub snat: Snat,
    /// `conditionsV4`, each one match in nft's words, such as `ip saddr 192.0.2.0/24`; all must hold.
    pub conditions_v4: Vec<String>,
    /// `conditionsV6`.
    pub conditions_v6: Vec<String>,
}

/// Whose connections to a host port appear to come from the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snat {
    /// Nobody's: 127.0.0.1 and the pod's own subnet do not reach the port.
    Off,
    /// Those that could not get their answers otherwise: from the node's loopback address, from the pod itself and
    /// from pods of its subnet.
    #[default]
    Needed,
    /// All.
    All,
}

/// Who may open connections to a pod; the reference firewall plugin's `ingressPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IngressPolicy {
    /// Everybody.
    #[default]
    Open,
    /// No pod of another bridge whose pods have a policy; the node and the outside may.
    SameBridge,
    /// As `SameBridge`, and no other pod of the same bridge either.
    Isolated,
}

/// What a pod may send as its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCheck {
    /// The only source MAC address.
    pub mac: MacAddr,
    /// Also: the pod's addresses are the only source addresses, in IP, ARP and neighbour discovery.
    pub addresses: bool,
}

/// How fast a pod may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shaping {
    /// What it receives (CNI's ingress).
    pub to_pod: Option<RateLimit>,
    /// What it sends (CNI's egress).
    pub from_pod: Option<RateLimit>,
}

/// A token bucket's measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Bits per second, never 0.
    pub rate: u64,
    /// Bits that may pass at once; `None` where nobody asks for a size.
    pub burst: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_conflicts_with_each_of_its_family() {
        let on = |host_ip: Option<&str>| PortMapping {
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 80,
            container_port: 8080,
        };
        let (v4, v6, any_v4, any_v6) = (Some("192.0.2.1"), Some("2001:db8::1"), Some("0.0.0.0"), Some("::"));
        for (one, other, conflict, ambiguous) in [
            (None, None, true, true),
            (None, v4, true, false),
            (None, v6, true, false),
            (None, any_v4, true, true),
            (None, any_v6, true, true),
            (any_v4, any_v4, true, true),
            (any_v4, any_v6, false, false),
            (any_v4, v4, true, false),
            (any_v4, v6, false, false),
            (any_v6, v6, true, false),
            (any_v6, v4, false, false),
            (v4, v4, true, true),
            (v4, Some("192.0.2.2"), false, false),
            (v4, v6, false, false),
        ] {
            for (one, other) in [(on(one), on(other)), (on(other), on(one))] {
                assert_eq!(one.conflicts(&other), conflict, "{one} {other}");
                assert_eq!(one.is_ambiguous_with(&other), ambiguous, "{one} {other}");
                let udp = PortMapping { protocol: Protocol::Udp, ..one };
                assert!(!udp.conflicts(&other) && !udp.is_ambiguous_with(&other));
            }
        }
        assert!(!on(None).conflicts(&PortMapping { host_port: 81, ..on(None) }));
    }

    #[test]
    fn ports_are_written_as_people_write_them() {
        let mut port = PortMapping {
            protocol: Protocol::Udp,
            host_ip: Some("2001:db8::1".parse().unwrap()),
            host_port: 53,
            container_port: 5353,
        };
        assert_eq!(port.to_string(), "[2001:db8::1]:53/udp");
        port.host_ip = None;
        assert_eq!(port.to_string(), "53/udp");
    }
}
