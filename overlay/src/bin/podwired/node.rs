//! What the agent's parts know together, on the runtime's one thread.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use podwire_ipam::{Dirs, Lease, LeaseState, Range, RangeSet, RangeSpec, SetUsage};
use podwire_kernel::clock;
use podwire_overlay::adoption::Adoption;
use podwire_overlay::claims::BootTime;
use podwire_overlay::cluster::topology::ProblemKind;
use podwire_overlay::config::{Config, Resolved};
use podwire_overlay::dataplane::{Overlay, Report};
use podwire_overlay::member::Member;
use podwire_overlay::status::{Notice, PodCounts, Severity, SubnetUsage};
use podwire_overlay::store::{Command, Health, Identity};
use podwire_overlay::telemetry::Telemetry;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use crate::counts::Tenants;
use crate::probes::Found;
use crate::rules::Rules;
use crate::writer::{Survey, Writer};

/// How long the store of addresses may take to say what pods have.
const SURVEY_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Node {
    pub(crate) dirs: Dirs,
    pub(crate) resolved: RefCell<Rc<Resolved>>,
    pub(crate) writer: Writer,
    pub(crate) rules: Rules,
    pub(crate) telemetry: Telemetry,
    pub(crate) tenants: Rc<Tenants>,
    pub(crate) started: Instant,
    /// The threads that did not answer when they were last asked.
    pub(crate) silent: RefCell<Vec<&'static str>>,
    pub(crate) pods: RefCell<Pods>,
    pub(crate) cluster: RefCell<Cluster>,
    /// What the last probes found.
    pub(crate) probes: Rc<Found>,
    /// How this node is, as its store may tell others.
    pub(crate) health: watch::Sender<Health>,
    /// The configuration is to be read again.
    pub(crate) reload: Notify,
    /// It has been.
    pub(crate) reloaded: Notify,
}

/// The node's part in the cluster; empty without one, and until it is begun.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) identity: Option<Identity>,
    pub(crate) member: Option<Member>,
    pub(crate) overlay: Option<Overlay>,
    pub(crate) report: Option<Report>,
    /// What of another program's the overlay thread goes on with.
    pub(crate) adoption: Option<Adoption>,
    pub(crate) commands: Option<mpsc::Sender<Command>>,
    /// What keeps it from being begun.
    pub(crate) failure: Option<String>,
    /// What the store had to say, the newest of each text.
    pub(crate) store_notices: BTreeSet<String>,
    /// What is wrong with how runtimes are told of the network.
    pub(crate) conflist_notices: BTreeSet<String>,
    /// How often something was put back, by what had changed it.
    pub(crate) repairs: BTreeMap<String, u64>,
    pub(crate) passes: u64,
    pub(crate) operations: u64,
    pub(crate) failures: u64,
    /// When the last pass over everything ended, and how long it took.
    pub(crate) last_pass: Option<(Instant, Duration)>,
}

/// What was last seen of this node's pods.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pods {
    pub(crate) counts: PodCounts,
    pub(crate) usage: Vec<SubnetUsage>,
    /// How many of the network have addresses of the node's subnets.
    pub(crate) inside: usize,
    /// Owners of the network whose addresses are of other subnets, a few of them, and how many there are.
    pub(crate) outside: (Vec<String>, usize),
    /// The subnets that those addresses are of, sorted.
    pub(crate) former: Vec<IpNetwork>,
}

impl Node {
    pub(crate) fn new(
        dirs: Dirs,
        resolved: Resolved,
        writer: Writer,
        rules: Rules,
        telemetry: Telemetry,
        tenants: Rc<Tenants>,
    ) -> Rc<Self> {
        Rc::new(Self {
            dirs,
            resolved: RefCell::new(Rc::new(resolved)),
            writer,
            rules,
            telemetry,
            tenants,
            started: Instant::now(),
            silent: RefCell::default(),
            pods: RefCell::default(),
            cluster: RefCell::default(),
            probes: Rc::default(),
            health: watch::Sender::new(Health::default()),
            reload: Notify::new(),
            reloaded: Notify::new(),
        })
    }

    /// How the agent is told to run, now.
    pub(crate) fn config(&self) -> Config {
        self.resolved.borrow().config.clone()
    }

    /// What pods have; `None` if the store of addresses does not answer.
    pub(crate) async fn survey(&self) -> Option<Survey> {
        let network = self.resolved.borrow().config.network.name.clone();
        timeout(SURVEY_WITHIN, self.writer.survey(&network, self.range_sets())).await.ok().flatten()
    }

    /// Looks at the pods, for all who want to know.
    pub(crate) async fn look_at_pods(&self) {
        let given = self.tenants.given();
        if let Some(survey) = self.survey().await {
            self.note_pods(&survey);
            // Without subnets it cannot be said whose addresses they are.
            let is_known = !self.range_sets().is_empty();
            self.tenants.found(given, !is_known || self.pods.borrow().inside > 0);
        }
    }

    /// Keeps what was seen of the pods.
    pub(crate) fn note_pods(&self, survey: &Survey) {
        let sets = self.range_sets();
        let network = self.resolved.borrow().config.network.name.clone();
        let pods = Pods::of(&network, &survey.leases, &sets, &survey.usage);
        self.telemetry.ipam(&pods.counts, &pods.usage);
        *self.pods.borrow_mut() = pods;
    }

    fn range_sets(&self) -> Vec<RangeSet> {
        let cluster = self.cluster.borrow();
        let subnets = cluster.member.iter().filter_map(Member::membership).flat_map(|part| &part.subnets);
        let set = |subnet| {
            let spec = RangeSpec { subnet, range_start: None, range_end: None, gateway: None };
            RangeSet::new(vec![Range::new(spec).ok()?]).ok()
        };
        subnets.copied().filter_map(set).collect()
    }

    /// What an administrator should look at, the gravest first.
    pub(crate) fn problems(&self) -> Vec<Notice> {
        let now = boot_time();
        let cluster = self.cluster.borrow();
        let mut problems = Vec::new();
        let mut add = |severity, code: &str, message: String, advice: &str| {
            let (code, advice) = (code.to_owned(), advice.to_owned());
            problems.push(Notice { severity, code, message, advice });
        };
        for thread in self.silent.borrow().iter() {
            let message = format!("{thread} does not answer");
            add(Severity::Error, "agent", message, "its log says more; restart podwired");
        }
        if let Some(failure) = &cluster.failure {
            add(Severity::Error, "membership", failure.clone(), "");
        }
        if let Some(member) = &cluster.member {
            match member.refusal(now) {
                // The device that is in the way is among the problems, with what to do about it.
                Some(why)
                    if cluster.report.as_ref().is_some_and(|report| report.barred.as_ref() == Some(&why)) => {
                }
                Some(refusal) if member.stranded().is_some() => {
                    let advice =
                        "pods are taken as soon as it has one; see overlay.interface and overlay.addresses";
                    add(Severity::Error, "underlay", refusal, advice);
                }
                Some(refusal) => add(Severity::Error, "membership", refusal, ""),
                None => member
                    .waiting(now)
                    .into_iter()
                    .for_each(|waiting| add(Severity::Error, "membership", waiting, "")),
            }
            let store = member.store_status(now);
            if let Some(why) = store.why.filter(|_| member.was_ready() && !member.is_fenced()) {
                let message = format!(
                    "{} has not answered for {} s: {why}",
                    store.description,
                    store.last_sync_seconds.unwrap_or_default()
                );
                add(Severity::Warning, "store", message, "pods go on as they are meanwhile");
            }
        }
        let (few, count) = &self.pods.borrow().outside;
        if *count > 0 {
            let message = format!(
                "{count} interfaces of pods have addresses that are not of this node's subnets, and other nodes do not \
                 reach them: {}",
                few.join(", ")
            );
            add(Severity::Error, "membership", message, "restart these pods");
        }
        if let Some(report) = &cluster.report {
            // Of a node without any address it is told already.
            let is_told = cluster.member.as_ref().is_some_and(|member| member.stranded().is_some());
            for problem in &report.problems {
                if is_told && problem.kind == ProblemKind::Underlay {
                    continue;
                }
                add(Severity::Warning, problem.kind.as_str(), problem.to_string(), "");
            }
            for failure in &report.failures {
                add(
                    Severity::Error,
                    "dataplane",
                    failure.to_string(),
                    "it is tried again; the log says since when",
                );
            }
        }
        for notice in &cluster.store_notices {
            add(Severity::Warning, "store", notice.clone(), "");
        }
        for notice in &cluster.conflist_notices {
            add(Severity::Warning, "conflist", notice.clone(), "");
        }
        if let Some(port) = self.probes.taken() {
            let message = format!(
                "UDP port {port} is both probes.port and a port of the tunnel (encapsulation.port or also_receive), which \
                 has it: this node neither probes others nor answers them"
            );
            let advice = "set probes.port to another port on every node, or give the tunnel another: `podwirectl cluster set \
                          encapsulation.port=…`, or encapsulation.port in the peers file";
            add(Severity::Warning, "probe", message, advice);
        }
        for probe in self.probes.statuses() {
            if let Some(problem) = probe.problem {
                add(Severity::Warning, "probe", format!("{}: {problem}", probe.node), "");
            }
        }
        problems.sort();
        problems
    }

    /// What is wrong with this node's own part, as `/healthz` says.
    pub(crate) fn health(&self) -> Vec<String> {
        let silent = self.silent.borrow();
        let mut health: Vec<String> =
            silent.iter().map(|thread| format!("{thread} does not answer")).collect();
        if let Some(member) = &self.cluster.borrow().member {
            health.extend(member.health(boot_time()));
        }
        health
    }

    /// What the node is not ready for, as `/readyz` says.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let mut waiting = self.health();
        if self.resolved.borrow().config.cluster.is_none() {
            return waiting;
        }
        let cluster = self.cluster.borrow();
        match (&cluster.member, &cluster.failure) {
            (Some(member), _) => waiting.extend(member.waiting(boot_time())),
            (None, Some(failure)) => waiting.push(failure.clone()),
            (None, None) => waiting.push("the agent has just started".to_owned()),
        }
        waiting.dedup();
        waiting
    }
}

impl Pods {
    fn of(network: &str, leases: &[Lease], sets: &[RangeSet], usage: &[SetUsage]) -> Self {
        const FEW: usize = 5;
        let mut pods = Self::default();
        let mut former = BTreeSet::new();
        let subnet = |address: IpNetwork| IpNetwork::new(address.network(), address.prefix()).ok();
        for lease in leases {
            *match lease.state {
                LeaseState::Reserved => &mut pods.counts.reserved,
                LeaseState::Attached => &mut pods.counts.attached,
                LeaseState::Deleting => &mut pods.counts.deleting,
            } += 1;
            if lease.attachment.owner.network != network || sets.is_empty() {
                continue;
            }
            let is_inside = |address: &std::net::IpAddr| sets.iter().any(|set| set.contains(*address));
            let mut addresses = lease.held().peekable();
            if addresses.peek().is_none() {
                continue;
            }
            if addresses.all(|address| is_inside(&address)) {
                pods.inside += 1;
            } else {
                pods.outside.1 += 1;
                let own = lease.attachment.addresses.iter().map(|own| own.address);
                former.extend(own.filter(|own| !is_inside(&own.ip())).filter_map(subnet));
                if pods.outside.0.len() < FEW {
                    pods.outside.0.push(lease.attachment.title().to_string());
                }
            }
        }
        let subnets = sets.iter().zip(usage).filter_map(|(set, usage)| {
            Some(SubnetUsage {
                subnet: set.ranges().first()?.subnet(),
                total: usage.total.into(),
                used: usage.leased.into(),
                resting: u128::from(usage.resting) + u128::from(usage.unknown),
            })
        });
        pods.usage = subnets.collect();
        pods.former = former.into_iter().collect();
        pods
    }
}

/// The time that nobody can set. Zero where there is no such clock, which no Linux of this century is.
pub(crate) fn boot_time() -> BootTime {
    BootTime(Duration::from_millis(clock::boot_millis().unwrap_or_default()))
}
