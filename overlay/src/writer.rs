//! The one thread that changes the store.
//!
//! It takes what has queued up, carries it out in memory, commits it as one transaction with one flush and one
//! fdatasync, and answers all: fifty ADDs at once wait for a handful of writes to the disk, not for fifty.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podwire_attach::{OwnerId, step::step};
use podwire_ipam::service::{Answer, Failure, Op};
use podwire_ipam::{Batch, Engine, Error, GcPlan, Lease, LeaseState};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

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
    /// Whether that lease, of that generation, is still to be ended.
    IsDeleting(OwnerId, u64, oneshot::Sender<bool>),
    /// Carry out what is queued before it, and end.
    Stop,
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
    /// Starts the thread. Leases that a sweep finds half deleted go to `unfinished`; `ended` is dropped when it ends,
    /// however it does.
    pub(crate) fn start(
        engine: Engine,
        unfinished: tokio::sync::mpsc::UnboundedSender<Lease>,
        ended: oneshot::Sender<()>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, tasks) = channel();
        let thread = thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let _ended = ended;
            State { engine, unfinished, next_sweep: Instant::now(), lazy_since: None }.run(&tasks)
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

    /// Queues a task.
    pub(crate) fn send(&self, task: Task) {
        // The thread ends after `Stop` alone; what comes later is lost like what comes after the process.
        let _ = self.0.send(task);
    }
}

struct State {
    engine: Engine,
    unfinished: tokio::sync::mpsc::UnboundedSender<Lease>,
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
        let committed = self.engine.batch(|batch| {
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
                        let _ = answer.send(plan(batch, op, &client).map_err(|error| fail(&error)));
                    }
                    Task::Op { op, client, answer } if changes(&op) => {
                        let result = plan(batch, op, &client).map_err(|error| fail(&error));
                        waiting.push(Waiting { answer, result });
                    }
                    Task::Op { op, answer, .. } => reads.push((op, answer)),
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
                Some(fail(&error))
            }
        };
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
                    for lease in swept.released {
                        tracing::info!(owner = %lease.attachment.owner, "lease ended: its interface is gone");
                    }
                    for lease in swept.unfinished {
                        let _ = self.unfinished.send(lease);
                    }
                }
                Err(error) => {
                    tracing::error!(error = error.chain(), "cannot compare the leases with the links");
                }
            }
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
