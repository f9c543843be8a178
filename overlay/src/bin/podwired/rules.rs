//! The one thread that changes the packet filter for the agent.
//!
//! A repair puts back what the store says should be there; a DEL removes it. Either asks the store first, and they would
//! race if they did so side by side. Here they are carried out one after another:
//!
//! - A repair takes its list from the writer and acts on `Attached` leases alone. A DEL that is recorded after that is
//!   queued behind the repair, and removes what it has put back; one that was recorded before is not in the list.
//! - Rules of an owner that is not in the list are removed only if the writer, asked again at that moment, knows no lease of
//!   it, and it has no link: an ADD records its lease before it makes rules.
//! - An ADD that was under way during a repair may have lost its rules to what the repair repaired. So the writer has a
//!   repair made when such a lease becomes `Attached`; see [`Epoch`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use podwire_attach::rules::{Repaired, RulesError};
use podwire_attach::{OwnerId, step::step};
use podwire_ipam::{Lease, had_no_rules, remove_rules};
use podwire_kernel::Netlink;
use podwire_kernel::link::LinkRef;
use podwire_kernel::nft::Nft;
use podwire_overlay::telemetry::Telemetry;
use tokio::sync::oneshot;

use crate::writer::Writer;

/// How often everything is looked at without an event. Events can be lost unheard, where the kernel is too old to say so.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long further events of the same upheaval are waited for.
const SETTLE: Duration = Duration::from_millis(5);

/// The pause between two repairs while others keep changing our tables, or as long as the last one took: what they remove
/// is back within 100 ms, and they cannot keep a processor busy by it.
const PAUSE: Duration = Duration::from_millis(25);

/// The same while others change their own tables, which some do all the time, or four times as long as the last one took.
const FOREIGN_PAUSE: Duration = Duration::from_millis(75);

/// Why the rules are compared with the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The agent has started.
    Start,
    /// That program has changed one of our tables.
    Changed(String),
    /// A foreign table that may drop forwarded packets has changed.
    Forwarding,
    /// Events were lost.
    Overrun,
    /// An ADD came to its end during or after a repair that could not know of it.
    Attached,
    /// The cluster's ranges have changed, outside of which pods' addresses are hidden.
    Ranges,
    /// Leases have ended whose rules nobody has removed.
    Ended,
    /// A runtime's GC.
    Gc,
    /// It was time.
    Time,
}

impl Cause {
    fn text(&self) -> String {
        match self {
            Self::Start => "the agent has started".to_owned(),
            Self::Changed(process) => format!("{process} changed podwire's tables"),
            Self::Forwarding => "another program's forward chain changed".to_owned(),
            Self::Overrun => "events were lost".to_owned(),
            Self::Attached => "a pod was attached meanwhile".to_owned(),
            Self::Ranges => "the cluster's ranges have changed".to_owned(),
            Self::Ended => "pods ended unnoticed".to_owned(),
            Self::Gc => "garbage collection".to_owned(),
            Self::Time => "a look from time to time".to_owned(),
        }
    }

    fn is_urgent(&self) -> bool {
        !matches!(self, Self::Forwarding | Self::Time)
    }
}

/// Counts the repairs: odd while one is made. Whoever reads the same even number twice knows that none was between.
#[derive(Debug, Clone, Default)]
pub(crate) struct Epoch(Arc<AtomicU64>);

impl Epoch {
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether there has been no repair since then.
    pub(crate) fn is_still(&self, then: u64) -> bool {
        then.is_multiple_of(2) && self.now() == then
    }

    fn turn(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

enum Job {
    Remove { leases: Vec<Lease>, done: oneshot::Sender<Result<(), String>> },
    Repair(Cause, Option<oneshot::Sender<Result<(), String>>>),
    Ping(oneshot::Sender<()>),
    Stop,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    jobs: Sender<Job>,
    /// Whether an urgent repair, or any, has been asked for and not yet begun: a storm of events is one message.
    urgent: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
    epoch: Epoch,
}

impl Rules {
    /// A way whose thread is yet to be started.
    pub(crate) fn new() -> (Self, Jobs) {
        let (jobs, queue) = channel();
        let rules = Self { jobs, urgent: Arc::default(), asked: Arc::default(), epoch: Epoch::default() };
        (rules.clone(), Jobs { rules, queue })
    }

    /// See [`Epoch`].
    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Something has changed: the rules are looked at soon.
    pub(crate) fn changed(&self, cause: Cause) {
        let flag = if cause.is_urgent() { &self.urgent } else { &self.asked };
        if !flag.swap(true, Ordering::SeqCst) {
            self.send(Job::Repair(cause, None));
        }
    }

    /// Compares now, and says how it went.
    pub(crate) async fn repair(&self, cause: Cause) -> Result<(), String> {
        let (done, heard) = oneshot::channel();
        self.send(Job::Repair(cause, Some(done)));
        heard.await.unwrap_or_else(|_| Err("the agent is about to end".to_owned()))
    }

    /// Removes the rules of leases whose DEL has begun.
    pub(crate) async fn remove(&self, leases: Vec<Lease>) -> Result<(), String> {
        let (done, heard) = oneshot::channel();
        self.send(Job::Remove { leases, done });
        heard.await.unwrap_or_else(|_| Err("the agent is about to end: try again".to_owned()))
    }

    /// Answered when the thread comes to it.
    pub(crate) fn ping(&self) -> oneshot::Receiver<()> {
        let (answer, heard) = oneshot::channel();
        self.send(Job::Ping(answer));
        heard
    }

    /// Ends the thread when all before is done.
    pub(crate) fn stop(&self) {
        self.send(Job::Stop);
    }

    fn send(&self, job: Job) {
        // After `Stop` it is lost like what comes after the process.
        let _ = self.jobs.send(job);
    }
}

/// The thread's end.
pub(crate) struct Jobs {
    rules: Rules,
    queue: Receiver<Job>,
}

impl Jobs {
    /// Starts the thread, in the caller's network namespace. Its name begins with `podwire`: by that the watch knows what
    /// it does from what others do.
    /// `ended` is dropped when it ends, however it does.
    pub(crate) fn start(
        self,
        writer: Writer,
        telemetry: Telemetry,
        ended: oneshot::Sender<()>,
    ) -> std::io::Result<JoinHandle<()>> {
        let Self { rules, queue } = self;
        thread::Builder::new().name("podwired-rules".to_owned()).spawn(move || {
            let _ended = ended;
            let now = Instant::now();
            Keeper {
                rules,
                writer,
                telemetry,
                nft: None,
                due: None,
                look: now + LOOK_EVERY,
                repaired: None,
                took: Duration::ZERO,
                failure: None,
            }
            .run(&queue)
        })
    }
}

/// A repair to come.
struct Due {
    at: Instant,
    cause: Cause,
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
}

struct Keeper {
    rules: Rules,
    writer: Writer,
    telemetry: Telemetry,
    /// Opened with the first use: a node whose pods ask for nothing needs no packet filter at all.
    nft: Option<Nft>,
    due: Option<Due>,
    /// When to look without a cause.
    look: Instant,
    /// When the last repair ended.
    repaired: Option<Instant>,
    /// How long it took.
    took: Duration,
    /// What the last one failed by.
    failure: Option<String>,
}

impl Keeper {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let at = self.due.as_ref().map_or(self.look, |due| due.at.min(self.look));
            match queue.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(Job::Remove { leases, done }) => {
                    let removed = self.remove(&leases);
                    let _ = done.send(removed);
                }
                Ok(Job::Repair(cause, waiting)) => self.plan(cause, waiting),
                Ok(Job::Ping(answer)) => drop(answer.send(())),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now >= self.look {
                self.plan(Cause::Time, None);
            }
            if self.due.as_ref().is_some_and(|due| due.at <= now)
                && let Some(due) = self.due.take()
            {
                let result = self.repair(&due.cause);
                for waiting in due.waiting {
                    let _ = waiting.send(result.clone());
                }
            }
        }
    }

    fn plan(&mut self, cause: Cause, waiting: Option<oneshot::Sender<Result<(), String>>>) {
        let now = Instant::now();
        let pause = if cause.is_urgent() { PAUSE.max(self.took) } else { FOREIGN_PAUSE.max(4 * self.took) };
        let at = match self.repaired {
            // Someone waits for the answer, and does not ask often.
            _ if waiting.is_some() => now,
            Some(repaired) => (now + SETTLE).max(repaired + pause),
            None => now + SETTLE,
        };
        if cause == Cause::Time {
            self.look = now + LOOK_EVERY;
        }
        match &mut self.due {
            Some(due) => {
                if at < due.at {
                    due.at = at;
                }
                // The graver cause is the one to tell of.
                if cause.is_urgent() && !due.cause.is_urgent() {
                    due.cause = cause;
                }
                due.waiting.extend(waiting);
            }
            None => self.due = Some(Due { at, cause, waiting: waiting.into_iter().collect() }),
        }
    }

    fn remove(&mut self, leases: &[Lease]) -> Result<(), String> {
        let mut failed = Vec::new();
        for lease in leases {
            if let Err(error) = self.with_nft(|nft| remove_rules(nft, lease))
                && !had_no_rules(lease, &error)
            {
                failed.push(format!("remove the rules of {}: {error}", lease.attachment.title()));
            }
        }
        step("agent-rules-removed");
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    /// Makes the rules what the store says.
    fn repair(&mut self, cause: &Cause) -> Result<(), String> {
        // What changes from here on is for the next repair.
        self.rules.urgent.store(false, Ordering::SeqCst);
        self.rules.asked.store(false, Ordering::SeqCst);
        self.rules.epoch.turn();
        let begun = Instant::now();
        let result = self.reconcile();
        self.rules.epoch.turn();
        self.look = Instant::now() + LOOK_EVERY;
        self.repaired = Some(Instant::now());
        self.took = begun.elapsed();
        let cause = cause.text();
        match result {
            Ok(Some(repaired)) if !repaired.is_clean() => {
                let ms = begun.elapsed().as_millis();
                let Repaired { skeletons, added, removed, chains, forwards } = repaired;
                let count = [skeletons, added, removed, chains, forwards].iter().map(|n| *n as u64).sum();
                self.telemetry.repaired("pod-rules", count);
                tracing::warn!(cause, skeletons, added, removed, chains, forwards, ms, "rules put in order");
            }
            Ok(_) => {}
            Err(error) => {
                // Once, and not every 10 s on a kernel without nf_tables.
                if self.failure.as_ref() != Some(&error) {
                    tracing::error!(cause, error, "cannot put the rules in order");
                    self.failure = Some(error.clone());
                }
                return Err(error);
            }
        }
        self.failure = None;
        Ok(())
    }

    /// `None` if the agent is about to end.
    fn reconcile(&mut self) -> Result<Option<Repaired>, String> {
        let Some(wanted) = self.writer.wanted_rules() else { return Ok(None) };
        step("agent-rules-listed");
        let writer = self.writer.clone();
        let keep = |owner: OwnerId| writer.knows(owner) || has_link(owner);
        let mut notices = Vec::new();
        let result = self.with_nft(|nft| wanted.put(nft, &keep, &mut notices));
        notices.iter().for_each(|notice| tracing::error!("{notice}"));
        result.map(Some).map_err(|error| error.to_string())
    }

    fn with_nft<T>(&mut self, work: impl FnOnce(&mut Nft) -> Result<T, RulesError>) -> Result<T, RulesError> {
        let nft = match &mut self.nft {
            Some(nft) => nft,
            none => none.insert(Nft::open().map_err(RulesError::Kernel)?),
        };
        let result = work(nft);
        if result.is_err() {
            // A socket that has failed in the middle of an answer is not read on.
            self.nft = None;
        }
        result
    }
}

/// Whether the owner's interface may be there: also if it cannot be seen.
fn has_link(owner: OwnerId) -> bool {
    let name = owner.link_name();
    let found = Netlink::open().and_then(|mut netlink| netlink.link(LinkRef::Name(&name)));
    !matches!(found, Ok(None))
}
