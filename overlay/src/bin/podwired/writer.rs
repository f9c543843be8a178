//! The one thread that changes the store.
//!
//! It takes what has queued up, carries it out in memory, commits it as one transaction with one flush and one
//! fdatasync, and answers all: fifty ADDs at once wait for a handful of writes to the disk, not for fifty.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podwire_attach::{OwnerId, step::step};
use podwire_ipam::service::{Answer, Failure, Op};
use podwire_ipam::{
    Batch, Engine, Error, GcPlan, Lease, LeaseState, RangeSet, SetUsage, WantedRules, may_have_rules,
};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::rules::{Cause, Rules};
use crate::upcoming::Upcoming;

/// How many operations one commit has at most, so that the first of them is not answered too late.
const BATCH: usize = 256;

/// How long a change may stay without the disk where it need not be there.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// How often leases and links are compared.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What the thread is asked to do.
pub(crate) enum Task {
    /// An operation of a client.
    Op {
        /// Which.
        op: Op,
        /// Whose, to see whether it still waits.
        client: Arc<UnixStream>,
        /// Who hears of it.
        answer: oneshot::Sender<Result<Reply, Failure>>,
    },
    /// The interfaces of these leases are gone.
    Finish(Vec<(OwnerId, u64)>),
    /// What these owners had in the packet filter is gone, or stays.
    RulesRemoved(Vec<OwnerId>),
    /// What should be in the packet filter.
    WantedRules(Sender<WantedRules>),
    /// The ranges of the cluster that a network's pods are part of have changed.
    Ranges(RangesChange),
    /// Whether that owner has a lease.
    Knows(OwnerId, Sender<bool>),
    /// Whether that lease, of that generation, is still to be ended.
    IsDeleting(OwnerId, u64, oneshot::Sender<bool>),
    /// What pods have, and how much of these range sets of a network is in use.
    Survey(String, Vec<RangeSet>, oneshot::Sender<Survey>),
    /// A sign of life.
    Ping(oneshot::Sender<()>),
    /// Carry out what is queued before it, and end.
    Stop,
}

/// A change of the cluster's ranges, for the pods of a network.
#[derive(Debug)]
pub(crate) struct RangesChange {
    pub(crate) network: String,
    pub(crate) before: Vec<IpNetwork>,
    pub(crate) now: Vec<IpNetwork>,
}

/// What there is at one moment.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// All networks' leases.
    pub(crate) leases: Vec<Lease>,
    /// One for each range set that was asked for.
    pub(crate) usage: Vec<SetUsage>,
}

/// What a sweep has found that is to be removed.
pub(crate) enum Leftover {
    /// All that a lease has whose DEL has died.
    Deleting(Box<Lease>),
    /// The link by which an owner was shaped that has nothing else any more.
    Shaper(OwnerId),
}

/// What an operation has come to.
pub(crate) enum Reply {
    /// It is done.
    Answer(Answer),
    /// A DEL has begun: now what the node has of these.
    Begun(Vec<Lease>),
    /// A GC has begun: now the links.
    Gc(Box<GcPlan>),
    /// The client was gone before its reservation was committed: it was not made.
    ClientGone,
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub(crate) struct Writer(Sender<Task>);

impl Writer {
    /// Starts the thread. What a sweep finds half deleted goes to `unfinished`; `ended` is dropped when it ends,
    /// however it does.
    pub(crate) fn start(
        engine: Engine,
        rules: Rules,
        unfinished: tokio::sync::mpsc::UnboundedSender<Leftover>,
        ended: oneshot::Sender<()>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, tasks) = channel();
        let thread = thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let _ended = ended;
            let state = State {
                engine,
                upcoming: Upcoming::new(rules),
                unfinished,
                next_sweep: Instant::now(),
                lazy_since: None,
            };
            state.run(&tasks);
        })?;
        Ok((Self(sender), thread))
    }

    /// Carries out an operation.
    pub(crate) async fn run(&self, op: Op, client: &Arc<UnixStream>) -> Result<Reply, Failure> {
        let (answer, heard) = oneshot::channel();
        self.send(Task::Op { op, client: Arc::clone(client), answer });
        heard.await.unwrap_or_else(|_| {
            let msg = "the agent is about to end: try again".to_owned();
            Err(Failure { code: "busy".to_owned(), msg, retry: true, refusal: None, stale: None })
        })
    }

    /// Whether a lease that was found half deleted still is: its owner's next ADD may have come.
    pub(crate) async fn is_deleting(&self, lease: &Lease) -> bool {
        let (answer, heard) = oneshot::channel();
        self.send(Task::IsDeleting(lease.attachment.owner.id(), lease.generation, answer));
        heard.await.unwrap_or(false)
    }

    /// What should be in the packet filter, now; `None` if the thread has ended.
    pub(crate) fn wanted_rules(&self) -> Option<WantedRules> {
        let (answer, heard) = channel();
        self.send(Task::WantedRules(answer));
        heard.recv().ok()
    }

    /// Whether that owner has a lease now; also when that cannot be said.
    pub(crate) fn knows(&self, owner: OwnerId) -> bool {
        let (answer, heard) = channel();
        self.send(Task::Knows(owner, answer));
        heard.recv().unwrap_or(true)
    }

    /// What pods have, and how much of a network's range sets is in use; `None` if the thread has ended.
    pub(crate) async fn survey(&self, network: &str, sets: Vec<RangeSet>) -> Option<Survey> {
        let (answer, heard) = oneshot::channel();
        self.send(Task::Survey(network.to_owned(), sets, answer));
        heard.await.ok()
    }

    /// Queues a task.
    pub(crate) fn send(&self, task: Task) {
        // The thread ends after `Stop` alone; what comes later is lost like what comes after the process.
        let _ = self.0.send(task);
    }
}

struct State {
    engine: Engine,
    upcoming: Upcoming,
    unfinished: tokio::sync::mpsc::UnboundedSender<Leftover>,
    next_sweep: Instant,
    /// Since when there is something that a power cut would lose.
    lazy_since: Option<Instant>,
}

/// An operation that waits for the commit of its batch.
struct Waiting {
    answer: oneshot::Sender<Result<Reply, Failure>>,
    result: Result<Reply, Failure>,
}

impl State {
    fn run(mut self, tasks: &Receiver<Task>) {
        loop {
            let first = match tasks.recv_timeout(self.idle()) {
                Ok(task) => Some(task),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut queue: Vec<Task> = first.into_iter().collect();
            queue.extend(tasks.try_iter().take(BATCH));
            if self.carry_out(queue) {
                break;
            }
            self.housekeeping();
        }
        if let Err(error) = self.engine.flush() {
            tracing::error!(error = error.chain(), "cannot flush the address store at the end");
        }
        // The engine is dropped here: the store is closed, then the lock is released.
    }

    /// How long there may be nothing to do.
    fn idle(&self) -> Duration {
        let sweep = self.next_sweep.saturating_duration_since(Instant::now());
        match self.lazy_since {
            Some(since) => sweep.min(FLUSH_AFTER.saturating_sub(since.elapsed())),
            None => sweep,
        }
    }

    /// Whether the end was among the tasks.
    fn carry_out(&mut self, queue: Vec<Task>) -> bool {
        let mut together = Vec::new();
        let mut stop = false;
        for task in queue {
            match task {
                // It looks at the node's links, which takes longer, and is committed by itself.
                Task::Op { op: Op::Gc { network, valid, runtime }, answer, .. } => {
                    self.commit(std::mem::take(&mut together));
                    let plan = self.engine.begin_gc(&network, &valid, runtime.as_deref());
                    for lease in plan.iter().flat_map(|plan| &plan.remove) {
                        self.engine.removing_rules(lease.attachment.owner.id());
                    }
                    let reply = plan.map(|plan| Reply::Gc(Box::new(plan)));
                    let _ = answer.send(reply.map_err(|error| fail(&error)));
                }
                // It may be the last task of its queue.
                Task::Stop => stop = true,
                task => together.push(task),
            }
        }
        self.commit(together);
        stop
    }

    fn commit(&mut self, tasks: Vec<Task>) {
        if tasks.is_empty() {
            return;
        }
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut reads = Vec::new();
        let mut questions = Vec::new();
        let mut surveys = Vec::new();
        let mut removing = Vec::new();
        let Self { engine, upcoming, .. } = self;
        let committed = engine.batch(|batch| {
            for task in tasks {
                match task {
                    Task::Finish(leases) => {
                        leases
                            .iter()
                            .for_each(|(owner, generation)| batch.finish_delete(*owner, *generation));
                    }
                    // Nobody relies on its being on the disk: a lease whose link is there is alive. So the plugin, which
                    // has nothing else left to do, need not wait for the commit.
                    Task::Op { op: op @ Op::Attached { .. }, client, answer } => {
                        let owner = owner_of(&op);
                        let result = plan(batch, op, &client);
                        if let (Ok(_), Some(owner)) = (&result, owner) {
                            upcoming.came_up(batch.pool(), owner);
                        }
                        let _ = answer.send(result.map_err(|error| fail(&error)));
                    }
                    Task::Op { op, client, answer } if changes(&op) => {
                        let owner = owner_of(&op);
                        let result = plan(batch, op, &client).map_err(|error| fail(&error));
                        match (&result, owner) {
                            (Ok(Reply::Answer(Answer::Grant(_))), Some(owner)) => {
                                upcoming.reserved(batch.pool(), owner);
                            }
                            // Another program's pods have no plugin that puts their rules in.
                            (Ok(Reply::Answer(Answer::Notices(_))), _) => {
                                upcoming.rules.changed(Cause::Attached);
                            }
                            (Ok(Reply::Begun(leases)), _) => removing.extend(begin_removal(batch, leases)),
                            _ => {}
                        }
                        waiting.push(Waiting { answer, result });
                    }
                    Task::Op { op, answer, .. } => reads.push((op, answer)),
                    Task::RulesRemoved(owners) => {
                        owners.into_iter().for_each(|owner| batch.rules_removed(owner));
                    }
                    Task::WantedRules(answer) => questions.push(answer),
                    Task::Ranges(change) => {
                        let pods = batch.follow_ranges(&change.network, &change.before, &change.now);
                        if pods > 0 {
                            tracing::info!(pods, "masquerade of running pods follows the cluster's ranges");
                            upcoming.rules.changed(Cause::Ranges);
                        }
                    }
                    Task::Survey(network, sets, answer) => surveys.push((network, sets, answer)),
                    Task::Ping(answer) => drop(answer.send(())),
                    Task::Knows(owner, answer) => {
                        let _ = answer.send(batch.pool().lease(owner).is_some());
                    }
                    Task::IsDeleting(owner, generation, answer) => {
                        let lease = batch.pool().lease(owner);
                        let is = lease.is_some_and(|lease| {
                            lease.generation == generation && lease.state == LeaseState::Deleting
                        });
                        let _ = answer.send(is);
                    }
                    Task::Stop => {}
                }
            }
        });
        let failure = match committed {
            Ok(()) => {
                self.lazy_since.get_or_insert_with(Instant::now);
                None
            }
            Err(error) => {
                tracing::error!(error = error.chain(), "cannot record a change of addresses");
                removing.into_iter().for_each(|owner| self.engine.rules_removed(owner));
                Some(fail(&error))
            }
        };
        for (network, sets, answer) in surveys {
            let leases = self.engine.pool().leases().cloned().collect();
            let _ = answer.send(Survey { leases, usage: self.engine.usage(&network, &sets) });
        }
        for answer in questions {
            let _ = answer.send(WantedRules::of(self.engine.pool().leases()));
        }
        for Waiting { answer, result } in waiting {
            let result = match (&failure, result) {
                // A refusal was true whether or not anything could be written.
                (Some(failure), Ok(_)) => Err(failure.clone()),
                (_, result) => result,
            };
            let _ = answer.send(result);
        }
        step("commit-answered");
        for (op, answer) in reads {
            let _ = answer.send(self.read(op));
        }
        for notice in self.engine.take_notices() {
            tracing::warn!("{notice}");
        }
    }

    fn read(&self, op: Op) -> Result<Reply, Failure> {
        let answer = match op {
            Op::Find { owner } => Answer::Leases {
                leases: self.engine.pool().find(&owner).cloned().into_iter().collect(),
                more: false,
            },
            Op::Leases { network, after } => self.engine.leases(network.as_deref(), after),
            Op::Extras { network } => self.engine.extras(&network),
            Op::Usage { network, sets } => Answer::Usage(self.engine.usage(&network, &sets)),
            _ => Answer::Done,
        };
        Ok(Reply::Answer(answer))
    }

    fn housekeeping(&mut self) {
        if Instant::now() >= self.next_sweep {
            self.next_sweep = Instant::now() + SWEEP_EVERY;
            match self.engine.sweep() {
                Ok(swept) => {
                    if swept.released.iter().any(|lease| may_have_rules(&lease.attachment)) {
                        self.upcoming.rules.changed(Cause::Ended);
                    }
                    for lease in swept.released {
                        tracing::info!(owner = %lease.attachment.title(), "lease ended: its interface is gone");
                    }
                    for lease in swept.unfinished {
                        let _ = self.unfinished.send(Leftover::Deleting(Box::new(lease)));
                    }
                    for owner in swept.strays {
                        let _ = self.unfinished.send(Leftover::Shaper(owner));
                    }
                }
                Err(error) => {
                    tracing::error!(error = error.chain(), "cannot compare the leases with the links");
                }
            }
            self.upcoming.forget_ended(self.engine.pool());
            for notice in self.engine.take_notices() {
                tracing::warn!("{notice}");
            }
            self.lazy_since.get_or_insert_with(Instant::now);
        }
        if self.lazy_since.is_some_and(|since| since.elapsed() >= FLUSH_AFTER) {
            match self.engine.flush() {
                Ok(()) => self.lazy_since = None,
                Err(error) => {
                    tracing::error!(error = error.chain(), "cannot flush the address store");
                    self.lazy_since = Some(Instant::now());
                }
            }
        }
    }
}

fn changes(op: &Op) -> bool {
    matches!(
        op,
        Op::Reserve(_)
            | Op::Import { .. }
            | Op::Adopt { .. }
            | Op::Attached { .. }
            | Op::Cancel { .. }
            | Op::Delete { .. }
            | Op::FinishDelete { .. }
    )
}

fn plan(batch: &mut Batch<'_>, op: Op, client: &UnixStream) -> Result<Reply, Error> {
    Ok(match op {
        // Nobody would use the addresses.
        Op::Reserve(_) if has_hung_up(client) => Reply::ClientGone,
        Op::Reserve(request) => Reply::Answer(Answer::Grant(batch.reserve(&request)?)),
        Op::Import { network, directory, sets } => {
            Reply::Answer(Answer::Notices(batch.import(&network, &directory, &sets)?))
        }
        Op::Adopt { network, attachments, cursors, unknown } => {
            Reply::Answer(Answer::Notices(batch.adopt(&network, &attachments, &cursors, &unknown)))
        }
        Op::Attached { owner, generation, finished } => {
            batch.attached(&owner, generation, finished.as_deref())?;
            Reply::Answer(Answer::Done)
        }
        Op::Cancel { owner, generation } => {
            batch.cancel(&owner, generation);
            Reply::Answer(Answer::Done)
        }
        Op::Delete { owner, ends } => Reply::Begun(batch.begin_delete(&owner, ends)),
        Op::FinishDelete { owner, generation } => {
            batch.finish_delete(owner, generation);
            Reply::Answer(Answer::Done)
        }
        _ => Reply::Answer(Answer::Done),
    })
}

/// From the beginning of a DEL until its rules are gone nobody else is given its ports, nor does a sweep end the lease.
fn begin_removal(batch: &mut Batch<'_>, leases: &[Lease]) -> Vec<OwnerId> {
    let with_rules = leases.iter().filter(|lease| may_have_rules(&lease.attachment));
    let owners: Vec<OwnerId> = with_rules.map(|lease| lease.attachment.owner.id()).collect();
    owners.iter().for_each(|owner| batch.removing_rules(*owner));
    owners
}

/// Whose attachment it makes or ends its making of.
fn owner_of(op: &Op) -> Option<OwnerId> {
    match op {
        Op::Reserve(request) => Some(request.attachment.owner.id()),
        Op::Attached { owner, .. } => Some(owner.id()),
        _ => None,
    }
}

/// Whether the other end is closed.
pub(crate) fn has_hung_up(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::empty())];
    let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    poll(&mut fds, PollTimeout::ZERO)
        .is_ok_and(|_| fds.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(hung_up))))
}

fn fail(error: &Error) -> Failure {
    Failure::from(error)
}
