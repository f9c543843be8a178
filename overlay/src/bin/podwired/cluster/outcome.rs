//! What comes from the store and from the overlay thread, told and counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use podwire_ipam::NodeConfig;
use podwire_overlay::cluster::Snapshot;
use podwire_overlay::dataplane::Report;
use podwire_overlay::member::Pass;
use podwire_overlay::store::Membership;
use podwire_overlay::telemetry::Telemetry;

use crate::node::Cluster;

/// How many nodes a line of the log names.
const FEW: usize = 5;

/// Says what this node's part is; whether its subnets are others than were known.
pub(super) fn tell_of_membership(before: Option<&Membership>, now: &Membership) -> bool {
    let subnets = super::listed(now);
    match before {
        Some(before) if before.subnets == now.subnets => {
            tracing::info!(subnets, generation = now.generation, "the store confirms this node's subnets");
            false
        }
        Some(before) => {
            tracing::error!(
                before = super::listed(before),
                now = subnets,
                generation = now.generation,
                "this node has other subnets than before"
            );
            true
        }
        None => {
            tracing::info!(
                subnets,
                generation = now.generation,
                "joined: the store gives this node its subnets"
            );
            true
        }
    }
}

/// Says which nodes came, went and changed.
pub(super) fn tell_of_nodes(before: Option<&Arc<Snapshot>>, now: &Arc<Snapshot>, own: &str) {
    let Some(before) = before else {
        tracing::info!(cluster = now.config.name, nodes = now.nodes.len(), "the store has said who there is");
        return;
    };
    if Arc::ptr_eq(before, now) {
        return;
    }
    if before.config != now.config {
        // As they stand in the store. What cannot be written is not shown; it has no effect but on this line.
        let [before, now] =
            [&before.config, &now.config].map(|it| serde_json::to_string(it).unwrap_or_default());
        tracing::info!(before, now, "the cluster's settings have changed");
    }
    let mut came = Named::default();
    let mut changed = Named::default();
    let mut went = Named::default();
    // Both are sorted, and a record that is the same needs no comparison of names: this is on every change's way.
    let mut earlier = before.nodes.iter().peekable();
    for (name, record) in &now.nodes {
        if earlier.next_if(|(_, known)| Arc::ptr_eq(known, record)).is_some() {
            continue;
        }
        while let Some((gone, _)) = earlier.next_if(|(known, _)| *known < name) {
            if gone != own {
                went.add(gone);
            }
        }
        match earlier.next_if(|(known, _)| *known == name) {
            _ if name == own => {}
            None => came.add(name),
            Some((_, known)) if !Arc::ptr_eq(known, record) && known != record => changed.add(name),
            Some(_) => {}
        }
    }
    earlier.filter(|(gone, _)| *gone != own).for_each(|(gone, _)| went.add(gone));
    for (what, named) in [("joined", came), ("changed", changed), ("left", went)] {
        if named.count > 0 {
            tracing::info!(nodes = named.text(), "{} other nodes {what}", named.count);
        }
    }
}

#[derive(Default)]
struct Named {
    names: Vec<String>,
    count: usize,
}

impl Named {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.names.len() < FEW {
            self.names.push(name.to_owned());
        }
    }

    fn text(&self) -> String {
        match self.count - self.names.len() {
            0 => self.names.join(", "),
            more => format!("{} and {more} more", self.names.join(", ")),
        }
    }
}

/// What a pass means for the node's readiness.
pub(super) fn pass(report: &Report) -> Pass {
    // What fails for one peer harms that peer alone.
    let of_all = report.failures.iter().find(|failure| failure.peer.is_none());
    let is_in = report.in_sync || (of_all.is_none() && !report.failures.is_empty());
    let failure = (!is_in).then(|| match of_all {
        Some(failure) => failure.to_string(),
        None => match report.problems.first() {
            Some(problem) => problem.to_string(),
            None => "the kernel is not yet as it should be".to_owned(),
        },
    });
    // Without an MTU pods would get that of their bridge: what was said before is better.
    let pods = report.pods.as_ref().filter(|pods| pods.mtu.is_some());
    let node = pods.map(|pods| NodeConfig {
        subnets: pods.subnets.clone(),
        gateways: pods.gateways.clone(),
        mtu: pods.mtu,
        ..NodeConfig::default()
    });
    let stranded = report.desired.as_ref().and_then(|desired| desired.stranded());
    let stranded = stranded.or_else(|| report.barred.clone());
    Pass { number: report.number, is_in, failure, stranded, node }
}

/// Counts a pass for the metrics.
pub(super) fn count(telemetry: &Telemetry, report: &Report) {
    // The first explains most.
    let cause = report.causes.iter().min().map_or("time", |cause| cause.name());
    telemetry.pass(cause, report.full, report.failures.is_empty(), report.took);
    telemetry.in_sync(report.in_sync);
    if let Some(after) = report.convergence {
        telemetry.converged(after);
    }
    let mut failed: BTreeMap<&'static str, u64> = BTreeMap::new();
    for failure in &report.failures {
        *failed.entry(failure.kind).or_default() += 1;
    }
    for (kind, tried) in &report.operations {
        let failed = failed.remove(kind).unwrap_or_default();
        telemetry.operations(kind, (*tried as u64).saturating_sub(failed), failed);
    }
    // Such as a look at the kernel.
    for (kind, failed) in failed {
        telemetry.operations(kind, 0, failed);
    }
    for (cause, count) in &report.repairs {
        telemetry.repaired(cause.name(), u64::try_from(*count).unwrap_or(u64::MAX));
    }
    telemetry.peers(&report.counts);
}

/// Keeps what `podwirectl status` shows of all passes together.
pub(super) fn note(cluster: &mut Cluster, report: &Report) {
    if report.full {
        cluster.passes += 1;
        cluster.last_pass = Some((Instant::now(), report.took));
    }
    let sum = |counts: &mut dyn Iterator<Item = usize>| counts.map(|count| count as u64).sum::<u64>();
    cluster.operations += sum(&mut report.operations.values().copied());
    cluster.failures += report.failures.len() as u64;
    for (cause, count) in &report.repairs {
        *cluster.repairs.entry(cause.name().to_owned()).or_default() += *count as u64;
    }
}
