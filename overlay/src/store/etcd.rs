//! etcd as the cluster store: what [`claims`](crate::claims) decides is carried out here.
//!
//! One connection to one member at a time. Whatever fails, the connection is given up and the next member tried; what was known
//! stays, and is brought up to date by a watch from where it stands, or read again where that is not possible.

mod attendance;
mod connection;
mod outbox;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};

use self::connection::{Connection, Failure};
use self::outbox::Outbox;
use super::{Announcement, ClusterStore, Command, Remembered, StoreContext, StoreEvent};
use crate::claims::{Absences, BootTime, Claimant, Lineage, Replica};
use crate::config::Etcd;

/// The store's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How long one request to one member may take.
    pub request: Duration,
    /// After how long without an answer the store is lost.
    pub lost_after: Duration,
    /// How long a node is present after its last sign of life.
    pub presence: Duration,
    /// How long subnets rest after a claim has ended.
    pub rest: Duration,
    /// For how long nobody makes a new claim after etcd was restored from a backup.
    pub grace: Duration,
    /// How often is looked who is absent.
    pub look: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(1),
            lost_after: Duration::from_secs(2),
            presence: Duration::from_secs(30),
            rest: Duration::from_secs(600),
            grace: Duration::from_secs(120),
            look: Duration::from_secs(30),
        }
    }
}

/// The store.
pub struct EtcdStore {
    etcd: Etcd,
    timing: Timing,
    clock: fn() -> BootTime,
}

impl EtcdStore {
    /// A store that does nothing before it runs.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, timing: Timing::default(), clock: boot_time }
    }

    /// The same with other times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// The same with another clock, by which the absence of other nodes is judged.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> BootTime) -> Self {
        Self { clock, ..self }
    }
}

impl ClusterStore for EtcdStore {
    fn describe(&self) -> String {
        format!("etcd at {}, below {}", self.etcd.endpoints.join(", "), self.etcd.prefix)
    }

    fn run(self: Box<Self>, context: StoreContext) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(Run::new(*self, context).run())
    }
}

/// CLOCK_BOOTTIME.
fn boot_time() -> BootTime {
    // The clock is there since Linux 2.6.39; a time that stands still judges nobody.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or_else(|_| BootTime::default(), |now| BootTime(now.into()))
}

/// The longest wait before all members are tried once more.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The store while it runs, from one connection to the next.
struct Run {
    etcd: Etcd,
    timing: Timing,
    clock: fn() -> BootTime,
    announcement: watch::Receiver<Announcement>,
    has_pods: watch::Receiver<bool>,
    commands: mpsc::Receiver<Command>,
    claimant: Claimant,
    replica: Replica,
    /// The replica has been complete once.
    is_loaded: bool,
    /// Cluster id and revision of the newest that was seen.
    mark: Option<(u64, u64)>,
    /// The lease that this node's presence depends on.
    lease: Option<i64>,
    absences: Absences,
    /// How much longer than others this node waits before it removes one that is absent.
    reclaim_jitter: Duration,
    outbox: Outbox,
    /// Commands that wait for a connection.
    waiting: VecDeque<Command>,
    last_contact: Instant,
    is_lost: bool,
}

/// Why a connection was given up.
enum End {
    /// The agent ends.
    Closed,
    /// It does not work any more.
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Run {
    fn new(store: EtcdStore, context: StoreContext) -> Self {
        let StoreContext { identity, remembered, announcement, has_pods, events, commands, .. } = context;
        let (membership, known, replica, mark) = match remembered {
            Some(Remembered { membership, snapshot, mark }) => {
                (Some(membership), Some(snapshot.config.clone()), Replica::remembering(snapshot), mark)
            }
            None => (None, None, Replica::default(), None),
        };
        let session = format!("{:032x}", rand::random::<u128>());
        let claimant = Claimant::new(identity, session, membership, known, store.etcd.initial.clone());
        Self {
            etcd: store.etcd,
            timing: store.timing,
            clock: store.clock,
            announcement,
            has_pods,
            commands,
            claimant,
            replica,
            is_loaded: false,
            mark,
            lease: None,
            absences: Absences::default(),
            reclaim_jitter: Duration::from_secs(rand::random_range(0..600)),
            outbox: Outbox::new(events),
            waiting: VecDeque::new(),
            last_contact: Instant::now(),
            is_lost: false,
        }
    }

    async fn run(mut self) {
        let endpoints = self.etcd.endpoints.clone();
        if endpoints.is_empty() {
            self.outbox.push(StoreEvent::Refused { why: "no endpoint of etcd is configured".to_owned() });
        }
        // Agents that start together do not all ask the same member.
        let mut at = rand::random_range(0..endpoints.len().max(1));
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let why = match endpoints.get(at % endpoints.len().max(1)) {
                Some(endpoint) => match self.visit(endpoint).await {
                    End::Closed => return,
                    End::Failed(failure) => failure.to_string(),
                },
                None => "no endpoint of etcd is configured".to_owned(),
            };
            at = at.wrapping_add(1);
            // A connection that held is no failure of the round.
            failures = if self.last_contact > began { 1 } else { failures + 1 };
            tracing::debug!(why, "etcd connection lost");
            if !self.is_lost && self.last_contact.elapsed() >= self.timing.lost_after {
                self.is_lost = true;
                self.outbox.push(StoreEvent::Lost { why: why.clone() });
            }
            if self.is_lost {
                for command in self.waiting.drain(..) {
                    let _ = command.answer.send(Err(format!("etcd does not answer: {why}")));
                }
            }
            if !self.pause(pause_after(failures, endpoints.len())).await {
                return;
            }
        }
    }

    /// Waits, and goes on telling and listening; `false`: the agent ends.
    async fn pause(&mut self, pause: Duration) -> bool {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return true,
                goes_on = self.outbox.deliver() => if !goes_on { return false },
                command = self.commands.recv() => match command {
                    Some(command) => self.waiting.push_back(command),
                    None => return false,
                },
            }
        }
    }

    /// Connects to a member and stays as long as it works.
    async fn visit(&mut self, endpoint: &str) -> End {
        let (etcd, limit) = (self.etcd.clone(), self.timing.request);
        let connecting = async {
            let connection = Connection::open(&etcd, limit, endpoint).await?;
            let place = connection.confirm().await?;
            let lineage = connection.lineage().await;
            Ok::<_, Failure>((connection, place, lineage))
        };
        tokio::pin!(connecting);
        let connected = loop {
            tokio::select! {
                connected = &mut connecting => break connected,
                command = self.commands.recv() => match command {
                    Some(command) => self.waiting.push_back(command),
                    None => return End::Closed,
                },
            }
        };
        let (connection, place, lineage) = match connected {
            Ok(connected) => connected,
            Err(failure) => return End::Failed(failure),
        };
        let went_back = self.mark.is_some_and(|(cluster, revision)| place.0 != cluster || place.1 < revision);
        if went_back {
            self.claimant.went_back();
            self.outbox.push(StoreEvent::Notice(format!(
                "etcd went back in time: it was at revision {} and is at {} (cluster {:x}): was it restored from a backup? Nodes                  write down again which subnets they have",
                self.mark.unwrap_or_default().1, place.1, place.0
            )));
        }
        self.mark = Some(place);
        let other_history =
            |lineage: &Lineage| self.replica.epoch().value().is_some_and(|epoch| lineage.left(epoch));
        if went_back || lineage.as_ref().is_some_and(other_history) {
            self.is_loaded = false;
            self.replica.retain();
        }
        self.last_contact = Instant::now();
        tracing::debug!(endpoint, "connected to etcd");
        match attendance::attend(self, &connection, lineage).await {
            Ok(()) => {
                // What depends on this node's being there is taken back. Not so its membership.
                if let Some(lease) = self.lease.take() {
                    let _ = connection.revoke(lease).await;
                }
                End::Closed
            }
            Err(failure) => End::Failed(failure),
        }
    }
}

/// How long to wait after so many failures in a row: not at all before each member was tried, then longer and longer. Not all
/// agents wait alike: they lost the store at the same time and must not all come back at the same time.
fn pause_after(failures: usize, members: usize) -> Duration {
    let rounds = failures / members.max(1);
    if rounds == 0 {
        return Duration::ZERO;
    }
    let longest = Duration::from_millis(100).saturating_mul(1 << rounds.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.5..1.0))
}
