//! Probes of the paths to other nodes: what they are to try, and what they found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_overlay::cluster::IpFamily;
use podwire_overlay::config::Probes as Settings;
use podwire_overlay::dataplane::Report;
use podwire_overlay::desired::{Desired, UnderlayFacts};
use podwire_overlay::probe::{self, Outcome, ProbeReport, Prober, Targets};
use podwire_overlay::status::ProbeStatus;
use podwire_overlay::telemetry::{ProbeOutcome, Telemetry};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

/// How many results may wait to be heard.
const REPORTS: usize = 256;

/// A prober that has failed is replaced after that time.
const AGAIN: Duration = Duration::from_secs(10);

/// What the overlay was last made of.
pub(crate) struct Seen {
    pub(crate) desired: Arc<Desired>,
    pub(crate) underlay: Arc<UnderlayFacts>,
}

impl Seen {
    /// As a report says; `None` if nothing is desired yet.
    pub(crate) fn of(report: &Report) -> Option<Self> {
        Some(Self { desired: Arc::clone(report.desired.as_ref()?), underlay: Arc::clone(&report.underlay) })
    }
}

/// By peer and family, with the time.
type Newest = BTreeMap<(Arc<str>, IpFamily), (Instant, ProbeReport)>;

/// What the probes found last.
#[derive(Default)]
pub(crate) struct Found {
    newest: RefCell<Newest>,
    /// The port that the probes cannot have.
    taken: Cell<Option<u16>>,
}

impl Found {
    /// The newest of each path.
    pub(crate) fn statuses(&self) -> Vec<ProbeStatus> {
        self.newest.borrow().values().map(|(at, report)| status(*at, report)).collect()
    }

    /// The port that the tunnel has and the probes should have, if there are none for that.
    pub(crate) fn taken(&self) -> Option<u16> {
        self.taken.get()
    }

    fn note(&self, report: ProbeReport) {
        let key = (Arc::clone(&report.node), report.family);
        self.newest.borrow_mut().insert(key, (Instant::now(), report));
    }

    /// Forgets nodes that are gone.
    fn keep(&self, targets: &Targets) {
        let there: BTreeSet<&str> = targets.peers.iter().map(|peer| &*peer.node).collect();
        self.newest.borrow_mut().retain(|(node, _), _| there.contains(&**node));
    }

    fn count(&self, telemetry: &Telemetry) {
        let found = self.newest.borrow();
        for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
            let of_family =
                || found.iter().filter(|((_, of), _)| *of == family).map(|(_, (_, report))| report);
            let well = of_family().filter(|report| report.is_well()).count();
            let failing = of_family().count() - well;
            if well + failing > 0 {
                telemetry.probe_summary(
                    family,
                    well,
                    failing,
                    of_family().filter_map(|report| report.largest).min(),
                );
            }
        }
    }
}

fn status(at: Instant, report: &ProbeReport) -> ProbeStatus {
    ProbeStatus {
        node: report.node.to_string(),
        family: report.family,
        ok: report.is_well(),
        rtt_millis: report.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        loss: report.loss,
        largest_bytes: report.largest,
        age_seconds: at.elapsed().as_secs_f64(),
        problem: report.problem.clone(),
    }
}

/// The prober, and what it was told.
pub(crate) struct Probes {
    found: Rc<Found>,
    telemetry: Telemetry,
    settings: Settings,
    node: String,
    instance: String,
    targets: watch::Sender<Arc<Targets>>,
    /// `None` while the tunnel has its port.
    prober: Option<JoinHandle<()>>,
    /// The UDP ports that the tunnel has, or is about to.
    ports: BTreeSet<u16>,
    /// When the prober was seen to have failed.
    failed: Option<Instant>,
    /// What the targets were made of.
    desired: Option<Arc<Desired>>,
    making: Option<oneshot::Receiver<Targets>>,
}

impl Probes {
    /// Begins to answer others, and to ask them once it is known who there is.
    pub(crate) fn start(
        settings: Settings,
        node: &str,
        instance: &str,
        found: Rc<Found>,
        telemetry: Telemetry,
    ) -> Self {
        let (targets, to_try) = watch::channel(Arc::new(Targets::default()));
        let prober = begin(&settings, to_try, &found, &telemetry);
        Self {
            found,
            telemetry,
            settings,
            node: node.to_owned(),
            instance: instance.to_owned(),
            targets,
            prober: Some(prober),
            ports: BTreeSet::new(),
            failed: None,
            desired: None,
            making: None,
        }
    }

    /// Other settings hold from now on.
    pub(crate) async fn set(&mut self, settings: Settings) {
        if self.settings != settings {
            tracing::info!("the probes' settings have changed: starting them anew");
            self.settings = settings;
            self.restart().await;
        }
    }

    /// The tunnel has these ports from now on: a port belongs to one socket, and without the tunnel there is nothing to
    /// probe. When this returns, the probes have given up theirs if it is among them.
    pub(crate) async fn leave_alone(&mut self, ports: BTreeSet<u16>) {
        if self.ports == ports {
            return;
        }
        self.ports = ports;
        if self.ports.contains(&self.settings.port) != self.found.taken().is_some() {
            self.restart().await;
        }
    }

    async fn restart(&mut self) {
        if let Some(prober) = self.prober.take() {
            prober.abort();
            // Its sockets are closed after that.
            let _ = prober.await;
        }
        self.failed = None;
        let port = self.settings.port;
        if self.ports.contains(&port) {
            tracing::error!(port, "no probes: the tunnel has probes.port; set one of them to another port");
            self.found.taken.set(Some(port));
            self.found.newest.borrow_mut().clear();
            return;
        }
        if self.found.taken.take().is_some() {
            tracing::info!(port, "probes.port is not the tunnel's any more: starting the probes");
        }
        self.prober = Some(begin(&self.settings, self.targets.subscribe(), &self.found, &self.telemetry));
    }

    /// Called from time to time: tells the prober who there is now, and counts.
    pub(crate) async fn tick(&mut self, seen: Option<Seen>) {
        if self.prober.as_ref().is_some_and(JoinHandle::is_finished) {
            match self.failed {
                None => {
                    tracing::error!("the probes have failed; starting them anew in {} s", AGAIN.as_secs());
                    self.failed = Some(Instant::now());
                }
                Some(at) if at.elapsed() >= AGAIN => self.restart().await,
                Some(_) => {}
            }
        }
        match self.making.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => {}
            Some(Err(oneshot::error::TryRecvError::Closed)) => self.making = None,
            Some(Ok(targets)) => {
                self.making = None;
                self.found.keep(&targets);
                self.targets.send_if_modified(|known| {
                    let is_new = **known != targets;
                    if is_new {
                        *known = Arc::new(targets);
                    }
                    is_new
                });
            }
        }
        if self.making.is_none()
            && let Some(Seen { desired, underlay }) = seen
            && !self.desired.as_ref().is_some_and(|known| Arc::ptr_eq(known, &desired))
        {
            self.desired = Some(Arc::clone(&desired));
            let (node, instance) = (self.node.clone(), self.instance.clone());
            // With thousands of peers it takes milliseconds that plugins would wait for.
            let (made, making) = oneshot::channel();
            spawn_blocking(move || made.send(Targets::new(&desired, &underlay, &node, &instance)));
            self.making = Some(making);
        }
        self.found.count(&self.telemetry);
    }

    /// Ends them.
    pub(crate) fn stop(self) {
        if let Some(prober) = self.prober {
            prober.abort();
        }
    }
}

/// The prober, and whoever hears of what it finds; both end with the task.
fn begin(
    settings: &Settings,
    targets: watch::Receiver<Arc<Targets>>,
    found: &Rc<Found>,
    telemetry: &Telemetry,
) -> JoinHandle<()> {
    let config = probe::Config {
        interval: settings.enabled.then_some(settings.interval),
        timeout: settings.timeout,
        peers: settings.peers,
        port: settings.port,
    };
    let (reporter, mut reports) = mpsc::channel(REPORTS);
    let (found, telemetry) = (Rc::clone(found), telemetry.clone());
    spawn_local(async move {
        let hearing = async {
            while let Some(report) = reports.recv().await {
                tell(&found, &report);
                for outcome in &report.questions {
                    let (outcome, rtt) = match outcome {
                        Outcome::Answered(rtt) => (ProbeOutcome::answered, Some(*rtt)),
                        Outcome::Lost => (ProbeOutcome::lost, None),
                        Outcome::Damaged => (ProbeOutcome::damaged, None),
                        Outcome::Misdirected(_) => (ProbeOutcome::misdirected, None),
                    };
                    telemetry.probe(report.family, outcome, rtt);
                }
                found.note(report);
            }
        };
        tokio::join!(Prober::new(config).run(targets, reporter), hearing);
    })
}

/// Says when a path becomes well or stops to be.
fn tell(found: &Found, report: &ProbeReport) {
    let key = (Arc::clone(&report.node), report.family);
    let before = found.newest.borrow().get(&key).map(|(_, report)| (report.state, report.problem.clone()));
    let family = match report.family {
        IpFamily::Ipv4 => "IPv4",
        IpFamily::Ipv6 => "IPv6",
    };
    match (&before, &report.problem) {
        (Some((_, before)), problem) if before == problem => {}
        (_, Some(problem)) => tracing::warn!(node = &*report.node, family, "probe: {problem}"),
        (Some(_), None) => tracing::info!(node = &*report.node, family, "probe: packets pass as they should"),
        (None, None) => {}
    }
}
