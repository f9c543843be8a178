//! What happens while a connection holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::{WatchResponse, WatchStream};
use tokio::time::{sleep_until, timeout};

use super::Run;
use super::connection::{Answered, Connection, Failure, Keeper, Outcome, explain};
use crate::claims::{
    Change, Ended, Facts, Key, Life, Lineage, Standing, Step, Write, configure, differences, remove,
};
use crate::cluster::ClusterConfig;
use crate::store::{Action, Command, StoreEvent};

/// How many messages of a watch are worked in before anything else is done.
const MOST_MESSAGES: usize = 256;

/// How long the watch may take to show what is known to be there.
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// How often an administrator's command is tried again when others write at the same time.
const MOST_TRIES: usize = 20;

/// Stays with a member until the agent ends or the connection fails.
pub(super) async fn attend(
    run: &mut Run,
    connection: &Connection,
    lineage: Option<Lineage>,
) -> Result<(), Failure> {
    let mut attendance = Attendance {
        run,
        connection,
        lineage,
        keeper: None,
        owed: None,
        beat: Instant::now(),
        looks_again_at: Instant::now(),
        shows_again_at: None,
        awaits: None,
        removal: None,
        tries: 0,
        compared: 0,
    };
    attendance.stay().await
}

struct Attendance<'a> {
    run: &'a mut Run,
    connection: &'a Connection,
    lineage: Option<Lineage>,
    keeper: Option<Keeper>,
    /// Until when the answer to a sign of life must be there.
    owed: Option<Instant>,
    /// When the next sign of life is due.
    beat: Instant,
    /// When is looked next who is absent.
    looks_again_at: Instant,
    shows_again_at: Option<Instant>,
    /// What the watch must show before anything more is decided.
    awaits: Option<Awaited>,
    /// Who is to be removed for having been absent.
    removal: Option<String>,
    /// How often the command that is being carried out was tried.
    tries: usize,
    /// The revision of the settings that were compared with this node's own last.
    compared: u64,
}

struct Awaited {
    /// At least this revision; 0: anything new.
    revision: u64,
    until: Instant,
}

/// What a turn is about.
enum Task {
    Claim(Change),
    Command(Change),
    Removal(Change),
}

impl Attendance<'_> {
    async fn stay(&mut self) -> Result<(), Failure> {
        let mut watch = self.begin().await?;
        if let Some(lease) = self.run.lease {
            self.keep(lease).await?;
        }
        if std::mem::take(&mut self.run.is_lost) {
            self.run.outbox.push(StoreEvent::Found);
        }
        loop {
            self.turn().await?;
            let shows_again_at = self.shows_again_at;
            let awaits = self.awaits.as_ref().map(|awaited| awaited.until);
            let owed = self.owed;
            let announces = self.run.announcement.has_changed().is_ok();
            let knows_pods = self.run.has_pods.has_changed().is_ok();
            tokio::select! {
                goes_on = self.run.outbox.deliver() => if !goes_on { return Ok(()) },
                message = watch.message() => {
                    if !self.take_in(message)? || !self.take_in_more(&mut watch).await? {
                        self.run.is_loaded = false;
                        watch = self.begin().await?;
                    }
                }
                answer = answer_of(&mut self.keeper) => self.alive(answer)?,
                () = sleep_until(self.beat.into()) => self.beat().await?,
                () = sleep_until(self.looks_again_at.into()) => self.look(),
                () = at(shows_again_at) => self.shows_again_at = None,
                () = at(awaits) => {
                    return Err(self.connection.failure("watch", "what was written does not arrive"));
                }
                () = at(owed) => {
                    return Err(self.connection.failure("keep a lease", "no answer"));
                }
                changed = self.run.announcement.changed(), if announces => { let _ = changed; }
                changed = self.run.has_pods.changed(), if knows_pods => { let _ = changed; }
                command = self.run.commands.recv() => match command {
                    Some(command) => self.run.waiting.push_back(command),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Gets the local copy up to date, as far as it is not, and a watch that goes on from there.
    async fn begin(&mut self) -> Result<WatchStream, Failure> {
        if !self.run.is_loaded {
            self.run.replica = self.connection.load(&self.run.replica).await?;
            self.run.is_loaded = true;
            self.run.absences.forget();
        }
        self.awaits = None;
        let from = self.run.replica.revision();
        // What happened at that very revision may have come in part.
        self.connection.watch(from).await
    }

    /// Notes a message of the watch; `false`: it does not go back that far, everything must be read again.
    fn take_in(&mut self, message: Answered<Option<WatchResponse>>) -> Result<bool, Failure> {
        let failed = |why| self.connection.failure("watch", why);
        let message = message.map_err(|error| failed(explain(&error)))?;
        let message = message.ok_or_else(|| failed("etcd ended it".to_owned()))?;
        if message.compact_revision() > 0 {
            return Ok(false);
        }
        if message.canceled() {
            return Err(failed(format!("etcd ended it: {}", message.cancel_reason())));
        }
        self.run.last_contact = Instant::now();
        for pair in message.events().iter().filter_map(|event| event.kv()) {
            let key = self.connection.below_root(pair.key());
            let revision = u64::try_from(pair.mod_revision()).unwrap_or(0);
            // A pair that was deleted has no version.
            if pair.version() == 0 {
                self.run.replica.deleted(&key, revision);
            } else {
                self.run.replica.put(&key, revision, pair.value());
            }
            if self.awaits.as_ref().is_some_and(|awaited| awaited.revision <= revision) {
                self.awaits = None;
            }
        }
        if let Some((_, revision)) = &mut self.run.mark {
            *revision = (*revision).max(self.run.replica.revision());
        }
        Ok(true)
    }

    /// Notes what has arrived meanwhile.
    async fn take_in_more(&mut self, watch: &mut WatchStream) -> Result<bool, Failure> {
        for _ in 0..MOST_MESSAGES {
            let message = tokio::select! {
                biased;
                message = watch.message() => message,
                () = std::future::ready(()) => return Ok(true),
            };
            if !self.take_in(message)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Decides and carries out, until nothing is left to do or something must be waited for.
    async fn turn(&mut self) -> Result<(), Failure> {
        self.run.replica.settle();
        while self.awaits.is_none() {
            let Some(task) = self.decide() else { break };
            let (Task::Claim(change) | Task::Command(change) | Task::Removal(change)) = &task;
            let outcome = self.commit(change).await?;
            tracing::debug!(why = change.why, ?outcome, "wrote to etcd");
            let revision = match outcome {
                Outcome::Done(revision) => revision,
                Outcome::Conflict(newest) if newest > self.run.replica.revision() => newest,
                Outcome::Conflict(_) => 0,
            };
            self.awaits = Some(Awaited { revision, until: Instant::now() + WATCH_LIMIT });
            self.done(&task, outcome);
        }
        let run = &mut *self.run;
        // Nothing was left to do about a restored backup, and nobody waits for anybody any more.
        if self.awaits.is_none() && run.replica.grace().is_absent() {
            run.replica.release();
            run.replica.settle();
        }
        if run.replica.has_new_problems() {
            run.outbox.complain(run.etcd.prefix.trim_end_matches('/'), &run.replica);
        }
        let config = run.replica.config();
        if let (Some(own), Some(there)) = (&run.etcd.initial, config.value())
            && self.compared != config.revision()
        {
            self.compared = config.revision();
            run.outbox.differ(differences(there, own));
        }
        self.shows_again_at = run.outbox.show(&run.replica, run.mark);
        if run.claimant.has_ended()
            && let Some(lease) = run.lease.take()
        {
            self.keeper = None;
            self.owed = None;
            self.connection.revoke(lease).await?;
        }
        Ok(())
    }

    /// What is to be done next: commands first, because a person waits for them.
    fn decide(&mut self) -> Option<Task> {
        while let Some(command) = self.run.waiting.pop_front() {
            match self.prepare(&command.action) {
                Ok(change) => {
                    self.run.waiting.push_front(command);
                    return Some(Task::Command(change));
                }
                Err(why) => {
                    self.tries = 0;
                    let _ = command.answer.send(Err(why));
                }
            }
        }
        let announcement = self.run.announcement.borrow_and_update().clone();
        let has_pods = *self.run.has_pods.borrow_and_update();
        let facts = Facts { announcement: &announcement, has_pods, lineage: self.lineage };
        match self.run.claimant.step(&self.run.replica, &facts) {
            Step::Commit(change) => return Some(Task::Claim(change)),
            Step::Wait { standing, lacks } => {
                self.run.outbox.stand(&standing, lacks.as_deref());
                if !matches!(standing, Standing::Member(_)) {
                    return None;
                }
            }
        }
        let name = self.removal.take()?;
        remove(&self.run.replica, &name, false, Ended::Absent).ok().map(Task::Removal)
    }

    fn prepare(&self, action: &Action) -> Result<Change, String> {
        if self.tries >= MOST_TRIES {
            return Err("others write to etcd all the time: try again".to_owned());
        }
        match action {
            Action::RemoveNode { name, force: _ } if *name == self.run.claimant.identity().name => {
                Err(format!("{name} is this node itself: `podwirectl node leave` ends its membership"))
            }
            Action::RemoveNode { name, force } => remove(&self.run.replica, name, *force, Ended::Removed),
            Action::Leave => Ok(self.run.claimant.leave(&self.run.replica)),
            Action::Configure(config) => configure(&self.run.replica, config),
        }
    }

    fn done(&mut self, task: &Task, outcome: Outcome) {
        match (task, outcome) {
            (Task::Command(_), Outcome::Conflict(_)) => self.tries += 1,
            (Task::Command(change), Outcome::Done(_)) => {
                self.tries = 0;
                let Some(Command { action, answer }) = self.run.waiting.pop_front() else { return };
                if action == Action::Leave {
                    self.run.claimant.left();
                }
                let _ = answer.send(Ok(report(&action, change, self.run.timing.rest)));
            }
            (Task::Removal(change), Outcome::Done(_)) => {
                self.run.outbox.push(StoreEvent::Notice(change.why.clone()));
            }
            (Task::Claim(_) | Task::Removal(_), _) => {}
        }
    }

    /// Carries a transaction out, with the leases that it needs.
    async fn commit(&mut self, change: &Change) -> Result<Outcome, Failure> {
        let timing = &self.run.timing;
        let lives = change.writes.iter().filter_map(|write| match write {
            Write::Put { life, .. } => Some(*life),
            Write::Delete(_) => None,
        });
        let mut leases = BTreeMap::new();
        for life in lives {
            if leases.contains_key(&life) {
                continue;
            }
            let lease = match (life, self.run.lease) {
                (Life::Lasting, _) => continue,
                (Life::Presence, Some(lease)) => lease,
                (Life::Presence, None) => self.connection.grant(timing.presence).await?,
                (Life::Rest, _) => self.connection.grant(timing.rest).await?,
                (Life::Grace, _) => self.connection.grant(timing.grace).await?,
            };
            leases.insert(life, lease);
        }
        if let (Some(lease), None) = (leases.get(&Life::Presence).copied(), self.run.lease) {
            self.run.lease = Some(lease);
            self.keep(lease).await?;
        }
        let outcome = self.connection.commit(change, &leases).await?;
        self.run.last_contact = Instant::now();
        if let Outcome::Conflict(_) = outcome {
            for (life, lease) in leases {
                if life != Life::Presence {
                    self.connection.revoke(lease).await?;
                }
            }
        }
        Ok(outcome)
    }

    async fn keep(&mut self, lease: i64) -> Result<(), Failure> {
        self.keeper = self.connection.keep(lease).await?;
        if self.keeper.is_none() {
            self.run.lease = None;
        }
        self.owed = None;
        self.beat = Instant::now() + self.run.timing.presence / 3;
        Ok(())
    }

    /// Gives a sign of life; with or without a lease, it shows whether etcd is still there.
    async fn beat(&mut self) -> Result<(), Failure> {
        let limit = self.run.timing.request;
        self.beat = Instant::now() + self.run.timing.presence / 3;
        match &mut self.keeper {
            Some((keeper, _)) => {
                let asked = timeout(limit, keeper.keep_alive()).await;
                if !matches!(asked, Ok(Ok(()))) {
                    return Err(self.connection.failure("keep a lease", "the connection is closed"));
                }
                self.owed.get_or_insert(Instant::now() + limit * 2);
            }
            None => {
                self.connection.confirm().await?;
                self.run.last_contact = Instant::now();
            }
        }
        Ok(())
    }

    fn alive(&mut self, answer: Answered<Option<i64>>) -> Result<(), Failure> {
        match answer {
            Ok(Some(left)) => {
                self.owed = None;
                self.run.last_contact = Instant::now();
                if left <= 0 {
                    // It ran out while this node was cut off, or a restored backup does not know it. The presence is gone
                    // with it, which the watch shows.
                    self.run.lease = None;
                    self.keeper = None;
                }
                Ok(())
            }
            Ok(None) => Err(self.connection.failure("keep a lease", "etcd ended it")),
            Err(error) => Err(self.connection.failure("keep a lease", explain(&error))),
        }
    }

    /// Looks who is absent, and for how long already.
    fn look(&mut self) {
        let run = &mut *self.run;
        self.looks_again_at = Instant::now() + run.timing.look;
        let reclaim_after = |config: &ClusterConfig| config.reclaim_after_seconds;
        let Some(limit) = run.replica.config().value().and_then(reclaim_after) else {
            run.absences.forget();
            return;
        };
        run.absences.look(&run.replica, (run.clock)());
        let limit = Duration::from_secs(limit) + run.reclaim_jitter;
        self.removal = run.absences.longer_than(limit).next().map(str::to_owned);
    }
}

/// What was done, for people.
fn report(action: &Action, change: &Change, rest: Duration) -> String {
    let rested: Vec<_> = change
        .writes
        .iter()
        .filter_map(|write| match write {
            Write::Put { key: Key::Subnet(subnet), life: Life::Rest, .. } => Some(subnet.to_string()),
            _ => None,
        })
        .collect();
    let rested = match rested.as_slice() {
        [] => "it had no subnet".to_owned(),
        rested => {
            format!("{} can be another node's in {} min", rested.join(" and "), rest.as_secs().div_ceil(60))
        }
    };
    match action {
        Action::RemoveNode { name, .. } => format!("node {name} is removed: {rested}"),
        Action::Leave => format!("this node has left the cluster: {rested}"),
        Action::Configure(_) => "the cluster's settings are changed".to_owned(),
    }
}

/// The next answer to a sign of life: for how many seconds the lease goes on; never, where there is no lease.
async fn answer_of(keeper: &mut Option<Keeper>) -> Answered<Option<i64>> {
    match keeper {
        Some((_, answers)) => Ok(answers.message().await?.map(|answer| answer.ttl())),
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
