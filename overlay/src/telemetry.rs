//! What the agent counts and measures, as Prometheus reads it.
//!
//! No label names a peer, a pod or a pod's namespace: in a large cluster that would be tens of thousands of series, and
//! whoever may make namespaces would decide how many. `podwirectl nodes` and `pods` show each.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::IpFamily;
use crate::status::{PeerCounts, PodCounts, SubnetUsage};

/// What [`Telemetry::render`] gives is of this type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Float = Gauge<f64, AtomicU64>;

/// All metrics; its clones are the same ones.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    convergence: Histogram,
    pass_duration: Family<Pass, Histogram, fn() -> Histogram>,
    passes: Family<PassResult, Counter>,
    operations: Family<Operation, Counter>,
    repairs: Family<Repair, Counter>,
    peers: Family<PeerLabel, Gauge>,
    in_sync: Gauge,
    ready: Gauge,
    refusing: Gauge,
    last_sync_age: Float,
    store_connected: Gauge,
    store_errors: Counter,
    cni_operations: Family<CniResult, Counter>,
    cni_duration: Family<CniLabel, Histogram, fn() -> Histogram>,
    leases: Family<LeaseLabel, Gauge>,
    addresses: Family<AddressLabel, Float>,
    probes: Family<ProbeResult, Counter>,
    probe_rtt: Family<FamilyLabel, Histogram, fn() -> Histogram>,
    probe_peers: Family<ProbeLabel, Gauge>,
    probe_largest: Family<FamilyLabel, Gauge>,
}

/// What a plugin asked the agent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
pub enum Verb {
    /// An ADD: from its reservation until its interface is up.
    add,
    /// A DEL.
    del,
    /// A GC.
    gc,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
pub enum Outcome {
    /// Done.
    ok,
    /// Refused or failed; for an ADD also that the plugin took its reservation back.
    failed,
}

impl Outcome {
    /// Of something that succeeded, or did not.
    pub fn of(is_ok: bool) -> Self {
        if is_ok { Self::ok } else { Self::failed }
    }
}

/// What probing a peer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
pub enum ProbeOutcome {
    /// Answered.
    answered,
    /// Not answered in time.
    lost,
    /// Answered with another payload.
    damaged,
    /// Answered by another node.
    misdirected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the label's value is the variant's name")]
enum Scope {
    full,
    peer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    scope: Scope,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassResult {
    scope: Scope,
    cause: &'static str,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    kind: &'static str,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Repair {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CniResult {
    operation: Verb,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CniLabel {
    operation: Verb,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabel {
    subnet: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeResult {
    family: &'static str,
    outcome: ProbeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabel {
    family: &'static str,
    state: &'static str,
}

fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    }
}

/// One peer's change takes a millisecond, all of 15,000 half a second.
fn convergence_buckets() -> Histogram {
    Histogram::new([0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 10.0, 60.0])
}

/// An ADD takes about five milliseconds.
fn cni_buckets() -> Histogram {
    Histogram::new([0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// Within a rack it is 0.1 ms, around the world 300 ms.
fn rtt_buckets() -> Histogram {
    Histogram::new([
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    ])
}

impl Telemetry {
    /// All at zero, for an agent of that version.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::with_prefix("podwire");
        let build = Info::new(vec![("version", version.to_owned())]);
        registry.register("build", "The agent's version", build);
        let mut inner = Inner {
            registry,
            convergence: convergence_buckets(),
            pass_duration: Family::new_with_constructor(convergence_buckets),
            passes: Family::default(),
            operations: Family::default(),
            repairs: Family::default(),
            peers: Family::default(),
            in_sync: Gauge::default(),
            ready: Gauge::default(),
            refusing: Gauge::default(),
            last_sync_age: Float::default(),
            store_connected: Gauge::default(),
            store_errors: Counter::default(),
            cni_operations: Family::default(),
            cni_duration: Family::new_with_constructor(cni_buckets),
            leases: Family::default(),
            addresses: Family::default(),
            probes: Family::default(),
            probe_rtt: Family::new_with_constructor(rtt_buckets),
            probe_peers: Family::default(),
            probe_largest: Family::default(),
        };
        inner.register();
        inner.last_sync_age.set(f64::NAN);
        Self(Arc::new(inner))
    }

    /// Something that a pass answered has happened that long ago: a record of another node, a change in the kernel.
    pub fn converged(&self, after: Duration) {
        self.0.convergence.observe(after.as_secs_f64());
    }

    /// A pass has ended: over everything, or over one peer's change.
    pub fn pass(&self, cause: &'static str, is_full: bool, is_ok: bool, took: Duration) {
        let scope = if is_full { Scope::full } else { Scope::peer };
        self.0.pass_duration.get_or_create(&Pass { scope }).observe(took.as_secs_f64());
        self.0.passes.get_or_create(&PassResult { scope, cause, outcome: Outcome::of(is_ok) }).inc();
    }

    /// Whether the kernel is as it should be.
    pub fn in_sync(&self, is_in_sync: bool) {
        self.0.in_sync.set(i64::from(is_in_sync));
    }

    /// So many changes of one kind were made in the kernel (link, address, neighbour, fdb, route, rules, sysctl), and so
    /// many more failed.
    pub fn operations(&self, kind: &'static str, done: u64, failed: u64) {
        for (outcome, count) in [(Outcome::ok, done), (Outcome::failed, failed)] {
            if count > 0 {
                self.0.operations.get_or_create(&Operation { kind, outcome }).inc_by(count);
            }
        }
    }

    /// So much was put back that others had changed.
    pub fn repaired(&self, cause: &'static str, count: u64) {
        self.0.repairs.get_or_create(&Repair { cause }).inc_by(count);
    }

    /// What is made of the other nodes.
    pub fn peers(&self, counts: &PeerCounts) {
        let PeerCounts { total: _, tunnel, direct, unreachable, left_out } = *counts;
        let states =
            [("tunnel", tunnel), ("direct", direct), ("unreachable", unreachable), ("left_out", left_out)];
        for (state, count) in states {
            self.0.peers.get_or_create(&PeerLabel { state }).set(count.try_into().unwrap_or(i64::MAX));
        }
    }

    /// Whether the node is ready, and whether it takes no pods.
    pub fn readiness(&self, is_ready: bool, is_refusing: bool) {
        self.0.ready.set(i64::from(is_ready));
        self.0.refusing.set(i64::from(is_refusing));
    }

    /// Whether the store answers.
    pub fn store_connected(&self, is_connected: bool) {
        self.0.store_connected.set(i64::from(is_connected));
    }

    /// The store failed, or did not answer.
    pub fn store_error(&self) {
        self.0.store_errors.inc();
    }

    /// How long ago the store was last heard of; `None`: never.
    pub fn synced(&self, ago: Option<Duration>) {
        self.0.last_sync_age.set(ago.map_or(f64::NAN, |ago| ago.as_secs_f64()));
    }

    /// What a plugin asked for has come to its end. `took` is `None` where its beginning is not known.
    pub fn cni(&self, operation: Verb, outcome: Outcome, took: Option<Duration>) {
        self.0.cni_operations.get_or_create(&CniResult { operation, outcome }).inc();
        if let Some(took) = took {
            self.0.cni_duration.get_or_create(&CniLabel { operation }).observe(took.as_secs_f64());
        }
    }

    /// This node's leases and how much of its subnets is in use.
    pub fn ipam(&self, pods: &PodCounts, subnets: &[SubnetUsage]) {
        let PodCounts { reserved, attached, deleting } = *pods;
        for (state, count) in [("reserved", reserved), ("attached", attached), ("deleting", deleting)] {
            self.0.leases.get_or_create(&LeaseLabel { state }).set(count.try_into().unwrap_or(i64::MAX));
        }
        // Subnets that the node has no more are not to be told of.
        self.0.addresses.clear();
        for usage in subnets {
            let free = usage.total.saturating_sub(usage.used).saturating_sub(usage.resting);
            for (state, count) in [("used", usage.used), ("resting", usage.resting), ("free", free)] {
                let label = AddressLabel { subnet: usage.subnet.to_string(), state };
                self.0.addresses.get_or_create(&label).set(count as f64);
            }
        }
    }

    /// One probe was answered, or not.
    pub fn probe(&self, family: IpFamily, outcome: ProbeOutcome, rtt: Option<Duration>) {
        let family = family_name(family);
        self.0.probes.get_or_create(&ProbeResult { family, outcome }).inc();
        if let Some(rtt) = rtt {
            self.0.probe_rtt.get_or_create(&FamilyLabel { family }).observe(rtt.as_secs_f64());
        }
    }

    /// How many peers are well and how many are not, and the smallest of the largest packets that pass, in bytes.
    pub fn probe_summary(&self, family: IpFamily, well: usize, failing: usize, largest: Option<u32>) {
        let family = family_name(family);
        for (state, count) in [("well", well), ("failing", failing)] {
            let peers = self.0.probe_peers.get_or_create(&ProbeLabel { family, state });
            peers.set(count.try_into().unwrap_or(i64::MAX));
        }
        let label = FamilyLabel { family };
        match largest {
            Some(bytes) => {
                self.0.probe_largest.get_or_create(&label).set(bytes.into());
            }
            None => {
                self.0.probe_largest.remove(&label);
            }
        }
    }

    /// All as text, of [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::new();
        // A `String` takes everything.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

impl Inner {
    fn register(&mut self) {
        let Self {
            registry,
            convergence,
            pass_duration,
            passes,
            operations,
            repairs,
            peers,
            in_sync,
            ready,
            refusing,
            last_sync_age,
            store_connected,
            store_errors,
            cni_operations,
            cni_duration,
            leases,
            addresses,
            probes,
            probe_rtt,
            probe_peers,
            probe_largest,
        } = self;
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "convergence",
            "From an event (a record of another node, a change in the kernel) until the kernel is right",
            seconds(),
            convergence.clone(),
        );
        registry.register_with_unit(
            "pass_duration",
            "How long a comparison with the kernel took, with its repairs",
            seconds(),
            pass_duration.clone(),
        );
        registry.register(
            "passes",
            "Comparisons with the kernel, by what led to them and whether something failed",
            passes.clone(),
        );
        registry.register("dataplane_operations", "Changes made in the kernel", operations.clone());
        registry.register("repairs", "What was put back, by what was found changed", repairs.clone());
        registry.register("peers", "The other nodes of the cluster", peers.clone());
        registry.register(
            "dataplane_in_sync",
            "1 if the last comparison left the kernel as it should be",
            in_sync.clone(),
        );
        registry.register("ready", "1 if the node is a member with everything in place", ready.clone());
        registry.register("refusing_pods", "1 if no new pods are taken", refusing.clone());
        registry.register_with_unit(
            "store_last_sync_age",
            "How long ago the cluster's store was last heard of; NaN: not since the start",
            seconds(),
            last_sync_age.clone(),
        );
        registry.register("store_connected", "1 if the cluster's store answers", store_connected.clone());
        registry.register(
            "store_errors",
            "How often the cluster's store failed or fell silent",
            store_errors.clone(),
        );
        registry.register(
            "cni_operations",
            "What plugins asked the agent for; an ADD without the agent is not counted",
            cni_operations.clone(),
        );
        registry.register_with_unit(
            "cni_operation_duration",
            "How long it took; an ADD from its reservation until its interface is up",
            seconds(),
            cni_duration.clone(),
        );
        registry.register("ipam_leases", "Attachments of this node's pods", leases.clone());
        registry.register("ipam_addresses", "Addresses of this node's subnets", addresses.clone());
        registry.register("probes", "Probes sent to other nodes through the tunnel", probes.clone());
        registry.register_with_unit(
            "probe_round_trip",
            "How long answers to probes took",
            seconds(),
            probe_rtt.clone(),
        );
        registry.register("probe_peers", "Probed nodes by what the last round found", probe_peers.clone());
        registry.register_with_unit(
            "probe_smallest_path",
            "The largest packet that reaches every probed node",
            Unit::Bytes,
            probe_largest.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_labels_are_those_that_dashboards_are_built_on() {
        let telemetry = Telemetry::new("1.2.3");
        telemetry.converged(Duration::from_millis(3));
        telemetry.pass("route", true, false, Duration::from_millis(30));
        telemetry.operations("route", 5, 1);
        telemetry.repaired("route", 2);
        telemetry.peers(&PeerCounts { total: 4, tunnel: 2, direct: 1, unreachable: 0, left_out: 1 });
        telemetry.readiness(true, false);
        telemetry.store_connected(true);
        telemetry.store_error();
        telemetry.synced(Some(Duration::from_secs(7)));
        telemetry.cni(Verb::add, Outcome::ok, Some(Duration::from_millis(5)));
        telemetry.cni(Verb::del, Outcome::failed, None);
        let subnet = "10.244.1.0/24".parse().unwrap();
        let usage = |used| [SubnetUsage { subnet, total: 253, used, resting: 3 }];
        telemetry.ipam(&PodCounts { reserved: 1, attached: 2, deleting: 0 }, &usage(3));
        telemetry.probe(IpFamily::Ipv6, ProbeOutcome::answered, Some(Duration::from_micros(300)));
        telemetry.probe_summary(IpFamily::Ipv6, 3, 1, Some(1450));
        let text = telemetry.render();
        for line in [
            r#"podwire_build_info{version="1.2.3"} 1"#,
            "podwire_convergence_seconds_count 1",
            r#"podwire_convergence_seconds_bucket{le="0.005"} 1"#,
            r#"podwire_pass_duration_seconds_count{scope="full"} 1"#,
            r#"podwire_passes_total{scope="full",cause="route",outcome="failed"} 1"#,
            r#"podwire_dataplane_operations_total{kind="route",outcome="ok"} 5"#,
            r#"podwire_dataplane_operations_total{kind="route",outcome="failed"} 1"#,
            r#"podwire_repairs_total{cause="route"} 2"#,
            r#"podwire_peers{state="tunnel"} 2"#,
            r#"podwire_peers{state="left_out"} 1"#,
            "podwire_dataplane_in_sync 0",
            "podwire_ready 1",
            "podwire_refusing_pods 0",
            "podwire_store_last_sync_age_seconds 7.0",
            "podwire_store_connected 1",
            "podwire_store_errors_total 1",
            r#"podwire_cni_operations_total{operation="add",outcome="ok"} 1"#,
            r#"podwire_cni_operations_total{operation="del",outcome="failed"} 1"#,
            r#"podwire_cni_operation_duration_seconds_count{operation="add"} 1"#,
            r#"podwire_ipam_leases{state="attached"} 2"#,
            r#"podwire_ipam_addresses{subnet="10.244.1.0/24",state="free"} 247.0"#,
            r#"podwire_probes_total{family="ipv6",outcome="answered"} 1"#,
            r#"podwire_probe_round_trip_seconds_count{family="ipv6"} 1"#,
            r#"podwire_probe_peers{family="ipv6",state="failing"} 1"#,
            r#"podwire_probe_smallest_path_bytes{family="ipv6"} 1450"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|there| there == line), "no line {line:?} in\n{text}");
        }
    }

    #[test]
    fn a_subnet_that_is_gone_is_told_of_no_more() {
        let telemetry = Telemetry::new("1");
        let usage =
            |subnet: &str| [SubnetUsage { subnet: subnet.parse().unwrap(), total: 1, used: 0, resting: 0 }];
        telemetry.ipam(&PodCounts::default(), &usage("10.244.1.0/24"));
        telemetry.ipam(&PodCounts::default(), &usage("10.244.2.0/24"));
        let text = telemetry.render();
        assert!(text.contains("10.244.2.0/24") && !text.contains("10.244.1.0/24"), "{text}");
    }

    #[test]
    fn what_has_never_been_heard_of_has_no_age() {
        let text = Telemetry::new("1").render();
        assert!(text.contains("podwire_store_last_sync_age_seconds NaN"), "{text}");
    }
}
