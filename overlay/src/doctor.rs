//! What on a node keeps, or may keep, pods from reaching each other. PURE.
//!
//! Most of it is not podwire's own: other programs' rules, settings of the kernel, links of the wrong size. Each finding
//! says what is so, why it matters and what to do about it. A node on which all is well has none but notes.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::addr::Address;
use podwire_kernel::link::{Link, Vxlan};
use podwire_kernel::route::Route;
use serde::Serialize;

use crate::cluster::ClusterConfig;
use crate::explain::DEVICE_ALIAS;
use crate::leases::Disagreement;
use crate::ruleset::Ruleset;
use crate::status::{PeerStatus, Severity, Status};

mod agent;
mod filter;
mod host;
mod kubernetes;
mod overlay;
mod text;

pub use text::text;

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// Which check found it; see docs/podwirectl.md.
    pub code: String,
    /// What is so.
    pub found: String,
    /// Why it matters.
    pub why: String,
    /// What to do about it.
    pub advice: String,
}

/// What was read of the node. What could not be read is left empty, and told in `unread`.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What the agent says of itself; `None` if it does not answer.
    pub status: Option<Status>,
    /// Why it does not.
    pub silence: Option<String>,
    /// The nodes, as the agent says or as this node remembers.
    pub peers: Vec<PeerStatus>,
    /// The shared settings, likewise.
    pub config: Option<ClusterConfig>,
    /// This node's subnets.
    pub subnets: Vec<IpNetwork>,
    /// All links.
    pub links: Vec<Link>,
    /// All their addresses.
    pub addresses: Vec<Address>,
    /// The main table's routes.
    pub routes: Vec<Route>,
    /// The bridge of the pods.
    pub bridge: String,
    /// The packet filter; `None` if it could not be read.
    pub ruleset: Option<Ruleset>,
    /// The names of its tables, with their families: `inet firewalld`.
    pub tables: Vec<String>,
    /// In which families legacy iptables drops what is forwarded from or to the bridge.
    pub legacy_drops: Vec<Family>,
    /// In which families it drops what comes in to a port of the tunnel, and the port.
    pub legacy_tunnel_drops: Vec<(Family, u16)>,
    /// Sysctls that are looked at, by name; those that are not there are missing.
    pub sysctls: BTreeMap<String, String>,
    /// Links whose checksums the kernel computes itself, though they could be left to the link.
    pub without_offload: Vec<String>,
    /// Whether systemd-networkd runs, and what its configuration says of `ManageForeignRoutes`.
    pub networkd: Option<Networkd>,
    /// Whether the agent's configuration says that nodes meet in Kubernetes.
    pub is_kubernetes: bool,
    /// What there is of flannel beside its links.
    pub flannel: Flannel,
    /// CNI configurations that keep runtimes from podwire's.
    pub rivals: Vec<String>,
    /// Where leases and interfaces do not agree.
    pub leases: Vec<Disagreement>,
    /// The time.
    pub now: Option<SystemTime>,
    /// When the newest of the agent's files was written.
    pub newest_file: Option<SystemTime>,
    /// The kernel's release: `6.1.0-18-amd64`.
    pub release: String,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// See [`Facts::flannel`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flannel {
    /// The ids of its running programs.
    pub processes: Vec<u32>,
    /// CNI configurations of its plugin.
    pub conflists: Vec<String>,
}

/// See [`Facts::networkd`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networkd {
    /// What `ManageForeignRoutes` was set to; `None`: nothing, which means yes.
    pub manages_foreign_routes: Option<bool>,
    /// Whether a .network file tells it to leave podwire's links alone.
    pub leaves_ours_alone: bool,
}

/// The sysctls to read for these links.
pub fn sysctls(links: &[Link]) -> Vec<String> {
    let mut names: Vec<String> = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/all/disable_ipv6",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/ip_local_reserved_ports",
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
        "net/netfilter/nf_conntrack_count",
        "net/netfilter/nf_conntrack_max",
    ]
    .map(str::to_owned)
    .into();
    // Not of pods' interfaces: there may be hundreds.
    for link in links.iter().filter(|link| link.kind.as_deref() != Some("veth") || link.controller.is_none())
    {
        names.push(format!("net/ipv4/conf/{}/rp_filter", link.name));
        for name in ["accept_ra", "disable_ipv6"] {
            names.push(format!("net/ipv6/conf/{}/{name}", link.name));
        }
    }
    names
}

/// Looks at everything. The gravest first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut all = Findings::default();
    agent::examine(facts, &mut all);
    overlay::examine(facts, &mut all);
    filter::examine(facts, &mut all);
    host::examine(facts, &mut all);
    kubernetes::examine(facts, &mut all);
    let mut all = all.0;
    all.sort();
    all.dedup();
    all
}

/// Whether an administrator has to do something.
pub fn is_problem(finding: &Finding) -> bool {
    finding.severity != Severity::Info
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &str,
        found: impl Into<String>,
        why: &str,
        advice: impl Into<String>,
    ) {
        let (found, advice) = (found.into(), advice.into());
        self.0.push(Finding { severity, code: code.to_owned(), found, why: why.to_owned(), advice });
    }

    fn error(&mut self, code: &str, found: impl Into<String>, why: &str, advice: impl Into<String>) {
        self.add(Severity::Error, code, found, why, advice);
    }

    fn warning(&mut self, code: &str, found: impl Into<String>, why: &str, advice: impl Into<String>) {
        self.add(Severity::Warning, code, found, why, advice);
    }

    fn note(&mut self, code: &str, found: impl Into<String>, why: &str, advice: impl Into<String>) {
        self.add(Severity::Info, code, found, why, advice);
    }
}

impl Facts {
    fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn link_name(&self, index: u32) -> String {
        self.links
            .iter()
            .find(|link| link.index == index)
            .map_or_else(|| index.to_string(), |link| link.name.clone())
    }

    /// Podwire's VXLAN devices.
    fn devices(&self) -> impl Iterator<Item = (&Link, &Vxlan)> {
        let ours = self.links.iter().filter(|link| link.alias.as_deref() == Some(DEVICE_ALIAS));
        ours.filter_map(|link| Some((link, link.vxlan.as_ref()?)))
    }

    fn sysctl(&self, name: &str) -> Option<&str> {
        self.sysctls.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.sysctl(name)?.parse().ok()
    }

    /// The families that pods have.
    fn families(&self) -> Vec<Family> {
        let ranges = self.config.as_ref().map(|config| config.ranges.as_slice()).unwrap_or_default();
        let mut families = Vec::new();
        for range in ranges {
            let family = Family::of(range.range.ip());
            if !families.contains(&family) {
                families.push(family);
            }
        }
        families
    }

    /// The link by which other nodes are reached: the agent's word, else the one with this node's address.
    fn underlay(&self) -> Option<&Link> {
        let named = self.status.as_ref().and_then(|status| status.underlay.interface.as_deref());
        named.and_then(|name| self.link(name)).or_else(|| {
            let local = self.devices().find_map(|(_, vxlan)| vxlan.local)?;
            let own = self.addresses.iter().find(|own| own.address.ip() == local)?;
            self.links.iter().find(|link| link.index == own.ifindex)
        })
    }

    fn others(&self) -> impl Iterator<Item = &PeerStatus> {
        self.peers.iter().filter(|peer| !peer.is_self)
    }
}

#[cfg(test)]
mod tests;
