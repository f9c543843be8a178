//! The shared settings as terms of a claim: which make sense, which may change under the nodes, and what they ask of a node
//! that has lost contact. PURE.

use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::record::Epoch;
use crate::cluster::{ClusterConfig, ClusterRange, Encapsulation};

/// The least `reclaim_after`, in seconds: a day. Shorter ones would take subnets from nodes that are only being repaired.
pub const LEAST_RECLAIM: u64 = 24 * 3600;

/// The largest number of bits between a range's prefix and its subnets': no cluster has more nodes, and every subnet's index
/// fits in 64 bits.
const MOST_BITS: u8 = 64;

/// A time on CLOCK_BOOTTIME: since the machine was started, with the time that it was suspended, and not changed by anybody who
/// sets the clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

/// The last proof that the store answered. It is kept with what is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// In which boot (/proc/sys/kernel/random/boot_id).
    pub boot: String,
    /// When: seconds of CLOCK_BOOTTIME.
    pub seconds: u64,
}

/// Whether a node may give addresses of its subnets to new pods, as far as contact with the store goes.
///
/// Where absent nodes lose their subnets, a node that has been without contact for half of that time, or cannot know for how
/// long, must not put more pods where another node's may be soon.
///
/// # Errors
/// With the reason and what to do.
pub fn may_give_addresses(
    config: &ClusterConfig,
    contact: Option<&Contact>,
    boot: &str,
    now: BootTime,
) -> Result<(), String> {
    let Some(reclaim_after) = config.reclaim_after_seconds else { return Ok(()) };
    let hours = reclaim_after / 3600;
    let Some(contact) = contact.filter(|contact| contact.boot == boot) else {
        return Err(format!(
            "this node has not reached the cluster store since it was started, and nodes that are absent for {hours} h lose \
             their subnets: make the store reachable"
        ));
    };
    let without = now.0.as_secs().saturating_sub(contact.seconds);
    if without < reclaim_after / 2 {
        return Ok(());
    }
    Err(format!(
        "this node has not reached the cluster store for {} h, and nodes that are absent for {hours} h lose their subnets: \
         make the store reachable",
        without / 3600
    ))
}

/// Whether a cluster's settings make sense by themselves.
///
/// # Errors
/// With the first thing that is wrong.
pub fn check_config(config: &ClusterConfig) -> Result<(), String> {
    if config.name.is_empty() || config.name.len() > 253 || config.name.chars().any(char::is_control) {
        return Err("the cluster's name must have 1 to 253 characters, and no control characters".to_owned());
    }
    if config.ranges.is_empty() {
        return Err("the cluster has no range: give at least one, such as 10.244.0.0/16".to_owned());
    }
    for (at, range) in config.ranges.iter().enumerate() {
        let ClusterRange { range: network, subnet_prefix } = *range;
        let prefix = network.prefix();
        if network.ip() != network.network() {
            return Err(format!(
                "range {network} has bits beyond its prefix: is {}/{prefix} meant?",
                network.network()
            ));
        }
        let (least, most) = if network.is_ipv4() { (prefix, 30) } else { (prefix, 126) };
        if !(least..=most).contains(&subnet_prefix) || subnet_prefix - prefix > MOST_BITS {
            return Err(format!(
                "subnets of /{subnet_prefix} do not fit range {network}: from /{least} to /{}",
                most.min(prefix.saturating_add(MOST_BITS))
            ));
        }
        if config.ranges.iter().take(at).any(|other| other.range.is_ipv4() == network.is_ipv4()) {
            return Err(format!(
                "range {network} is the second of its address family: one for each is possible"
            ));
        }
    }
    let segments = std::iter::once(&config.encapsulation).chain(&config.also_receive);
    for Encapsulation { vni, port } in segments {
        if *vni >= 1 << 24 {
            return Err(format!("VNI {vni} is too large: below 16777216"));
        }
        if *port == 0 {
            return Err("the encapsulation's port is 0: 8472 is usual".to_owned());
        }
    }
    if config.underlay.is_empty() {
        return Err("the underlay has no address family: give ipv4, ipv6 or both".to_owned());
    }
    match config.reclaim_after_seconds {
        Some(after) if after < LEAST_RECLAIM => Err(format!(
            "absent nodes would lose their subnets after {after} s: at least {LEAST_RECLAIM} s (24 h)"
        )),
        _ => Ok(()),
    }
}

/// Whether a subnet is one of a range's.
pub(super) fn fits(range: &ClusterRange, subnet: &IpNetwork) -> bool {
    subnet.prefix() == range.subnet_prefix
        && subnet.is_ipv4() == range.range.is_ipv4()
        && range.range.contains(subnet.ip())
        && subnet.network() == subnet.ip()
}

/// In what the store's settings differ from those in a node's own file, for people; empty: in nothing.
pub fn differences(stored: &ClusterConfig, own: &ClusterConfig) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, stored: String, own: String| {
        if stored != own {
            found.push(format!("{what} is {stored} there and {own} here"));
        }
    };
    let ranges = |config: &ClusterConfig| {
        let one = |range: &ClusterRange| format!("{} in subnets of /{}", range.range, range.subnet_prefix);
        config.ranges.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    compare("name", stored.name.clone(), own.name.clone());
    compare("range", ranges(stored), ranges(own));
    compare("encapsulation", format!("{:?}", stored.encapsulation), format!("{:?}", own.encapsulation));
    compare("also_receive", format!("{:?}", stored.also_receive), format!("{:?}", own.also_receive));
    compare("direct_routing", format!("{:?}", stored.direct_routing), format!("{:?}", own.direct_routing));
    compare("underlay", format!("{:?}", stored.underlay), format!("{:?}", own.underlay));
    let hours = |config: &ClusterConfig| match config.reclaim_after_seconds {
        Some(seconds) => format!("{} h", seconds / 3600),
        None => "never".to_owned(),
    };
    compare("reclaim_after", hours(stored), hours(own));
    found
}

/// Which course of history a store's data and log have in common.
///
/// A restored backup gets a new log, that begins at 1, under data whose revision goes on from where the backup was made, or from
/// any number above it. Each revision is an entry of the log; other entries are not revisions. So the index of the log minus
/// the revision never falls, but by a restored backup: a node can tell one that it has never seen the store before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The cluster id.
    pub cluster: u64,
    /// The revision at which the store was looked at.
    pub revision: u64,
    /// The difference as it is now: at least its least possible value and at most its largest. `None` where the store does
    /// not tell.
    pub lead: Option<(i64, i64)>,
}

impl Lineage {
    /// How the cluster id is written in an epoch.
    pub fn cluster_text(&self) -> String {
        format!("{:016x}", self.cluster)
    }

    /// Whether an epoch is of another course of history than this.
    pub fn left(&self, epoch: &Epoch) -> bool {
        let fell = match (epoch.lead, self.lead) {
            (Some(then), Some((_, now_at_most))) => now_at_most < then,
            _ => false,
        };
        epoch.cluster != self.cluster_text() || fell
    }

    /// The epoch that begins with it.
    pub fn begin(&self, number: u64) -> Epoch {
        Epoch { number, cluster: self.cluster_text(), lead: self.lead.map(|(at_least, _)| at_least) }
    }
}
