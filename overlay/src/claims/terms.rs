//! The shared settings as terms of a claim: what is of a range, what they ask of a node that has lost contact, and how a store's
//! history is told from another. PURE.

use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::record::Epoch;
use crate::cluster::{ClusterConfig, ClusterRange};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::simulation::config;

    fn give(reclaim_after: Option<u64>, contact: Option<(&str, u64)>, now: u64) -> Result<(), String> {
        let config = ClusterConfig { reclaim_after_seconds: reclaim_after, ..config(false) };
        let contact = contact.map(|(boot, seconds)| Contact { boot: boot.to_owned(), seconds });
        may_give_addresses(&config, contact.as_ref(), "this", BootTime(Duration::from_secs(now)))
    }

    #[test]
    fn a_node_without_contact_gives_no_addresses_where_others_may_get_them() {
        const DAY: u64 = 86_400;
        for (reclaim_after, contact, now, gives) in [
            (None, None, 1_000_000, true),
            (None, Some(("other", 0)), 1_000_000, true),
            (Some(DAY), Some(("this", 100)), 100, true),
            (Some(DAY), Some(("this", 100)), 100 + DAY / 2 - 1, true),
            (Some(DAY), Some(("this", 100)), 100 + DAY / 2, false),
            // Nobody knows for how long the machine was off.
            (Some(DAY), Some(("other", 100)), 100, false),
            (Some(DAY), None, 0, false),
            // A time to come is as good as now.
            (Some(DAY), Some(("this", 100)), 50, true),
        ] {
            let given = give(reclaim_after, contact, now);
            assert_eq!(given.is_ok(), gives, "{reclaim_after:?} {contact:?} {now}: {given:?}");
        }
        let why = give(Some(2 * DAY), Some(("this", 0)), 30 * 3600).unwrap_err();
        assert!(why.contains("30 h") && why.contains("48 h"), "{why}");
    }

    #[test]
    fn differences_are_named_with_both_sides() {
        let here = ClusterConfig { reclaim_after_seconds: Some(86_400), ..config(true) };
        assert_eq!(differences(&config(true), &config(true)), Vec::<String>::new());
        let found = differences(&config(false), &here).join("\n");
        for part in [
            "range is 10.0.0.0/21",
            "fd00::/61 in subnets of /64 here",
            "reclaim_after is never there and 24 h here",
        ] {
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn history_is_told_by_cluster_and_by_how_far_the_log_is_ahead() {
        let at = |cluster, lead| Lineage { cluster, revision: 10, lead };
        let epoch = at(7, Some((4, 6))).begin(2);
        for (lineage, left) in [
            (at(7, Some((4, 6))), false),
            (at(7, Some((3, 4))), false),
            (at(7, Some((90, 100))), false),
            (at(7, Some((-1, 3))), true),
            (at(8, Some((4, 6))), true),
            (at(7, None), false),
        ] {
            assert_eq!(lineage.left(&epoch), left, "{lineage:?}");
        }
    }
}
