//! When the node's dataplane is looked at, and how thoroughly. PURE.
//!
//! ```text
//! wish, change, time, failure ─▶ handle(event, now) ─▶ Run(pass) | Wait(until) | End
//!                                     ▲                   │
//!                                     └──── Done(outcome) ┘
//! ```
//! There is one kind of work, a pass: the kernel is made what is wished for. A full pass reads everything before; a fast
//! one is for the common case that one of thousands of peers came or went, and trusts for that moment that the kernel is
//! as the last pass left it, which the next full pass finds out. What happens while a pass runs, or shortly after another
//! event, is one further pass, however much it is: there is no queue that could grow.
//!
//! Moments are durations since any fixed moment, by a clock that only goes forward.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long the rest of an upheaval is waited for: taking a link down is dozens of events.
const SETTLE: Duration = Duration::from_millis(5);

/// The longest that further events put a pass off.
const SETTLE_AT_MOST: Duration = Duration::from_millis(25);

/// The least pause between two passes. It is also at least as long as the last pass took, so that programs that fight
/// over the kernel's tables, or a store that never rests, get half of a processor and no more.
///
/// What was a full pass is no rest for a wish: that one is carried out fast, and only fast ones put it off.
const PAUSE: Duration = Duration::from_millis(5);

/// How long a look that nothing is known to be wrong for stands back behind wishes: with thousands of peers it takes
/// many times as long as what one of them changes. A store that never rests does not put it off for ever.
const STAND_BACK: Duration = Duration::from_secs(1);

/// How often everything is looked at without an event: events can be lost unheard, and sysctls have none.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The first and the longest wait after a pass in which something failed.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_AT_MOST: Duration = Duration::from_secs(10);

/// Why a pass is made. In the order of which explains most: a link that went down took its routes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The agent has started.
    Start,
    /// What is wished for has changed: nodes, subnets, settings.
    Wish,
    /// The link to other nodes has changed: its addresses, its MTU, which it is.
    Underlay,
    /// Events were lost.
    Overrun,
    /// Somebody else changed one of our links.
    Link,
    /// Somebody else changed an address of ours.
    Address,
    /// Somebody else changed a neighbour of ours.
    Neighbour,
    /// Somebody else changed a forwarding entry of ours.
    Fdb,
    /// Somebody else changed a route of ours.
    Route,
    /// Somebody else changed our table of the packet filter.
    Filter,
    /// Somebody else changed how the node forwards.
    Sysctl,
    /// Something failed before, and is tried again.
    Retry,
    /// An administrator asked for it.
    Asked,
    /// It was time.
    Time,
}

impl Cause {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Wish => "wish",
            Self::Underlay => "underlay",
            Self::Overrun => "overrun",
            Self::Link => "link",
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Fdb => "fdb",
            Self::Route => "route",
            Self::Filter => "filter",
            Self::Sysctl => "sysctl",
            Self::Retry => "retry",
            Self::Asked => "asked",
            Self::Time => "time",
        }
    }

    /// Whether operations of a pass with this cause put back what somebody else changed.
    pub fn is_repair(self) -> bool {
        !matches!(self, Self::Start | Self::Wish | Self::Underlay | Self::Retry)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// What is wished for is new.
    Wish {
        /// It is from the store itself and complete. What was remembered from an earlier run tells what there was, not
        /// what there no longer is.
        live: bool,
        /// When it was told: now, or while the last pass was made.
        since: Duration,
    },
    /// Something else than a wish is a reason to look.
    Changed(Cause),
    /// Time has passed.
    Tick,
    /// The pass that was last told to run has ended.
    Done {
        /// What came of it.
        outcome: Outcome,
        /// Something random of 0 to 1: nodes that fail at one moment try again at different ones.
        jitter: f64,
    },
    /// The agent is about to end.
    Shutdown,
}

/// What came of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many operations were carried out.
    pub operations: usize,
    /// How many of them failed, or that the kernel could not be read.
    pub failures: usize,
    /// More than peers would have to change: it was left to a full pass.
    pub was_too_much: bool,
    /// It was given up for a wish, before anything was done; see [`Pass::yields`].
    pub was_given_up: bool,
    /// What it came upon that explains more than the event that it was made for: of a device that is gone the kernel may
    /// tell last.
    pub found: Option<Cause>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a pass, and tell of its end.
    Run(Pass),
    /// Nothing before this moment, unless something happens.
    Wait(Duration),
    /// End, and leave everything in place: packets go on to flow.
    End,
}

/// What is known of the cluster, and so what a pass may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// Nothing yet: it looks, and touches nothing.
    #[default]
    Nothing,
    /// What an earlier run remembered: it makes and mends, and removes nothing. Unknown is not empty.
    Remembered,
    /// All that the store says: what is not wished for is removed, too.
    All,
}

/// A pass to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// Read everything before; else only the difference between the last wish and this one is carried out.
    pub full: bool,
    /// What it may do.
    pub known: Known,
    /// Why, the most telling first; never empty.
    pub causes: Vec<Cause>,
    /// When the first of it happened.
    pub since: Duration,
    /// Nothing is known to be wrong: while it only reads, it may be given up for a new wish, and is made after that.
    pub yields: bool,
}

impl Pass {
    /// What operations of this pass, which came upon that, are counted as: `None` if they follow from a wish.
    pub fn repairs(&self, found: Option<Cause>) -> Option<Cause> {
        let is_repair = self.causes.iter().all(|cause| cause.is_repair());
        self.causes.iter().copied().chain(found).min().filter(|_| is_repair)
    }
}

/// What there was so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Full passes.
    pub full: u64,
    /// Fast passes.
    pub fast: u64,
    /// Passes in which something failed.
    pub failed: u64,
    /// Events; most of them were dealt with together with others.
    pub events: u64,
    /// Operations that put back what somebody else changed, by cause.
    pub repairs: BTreeMap<Cause, u64>,
}

/// A pass to come.
#[derive(Debug, Clone)]
struct Due {
    at: Duration,
    since: Duration,
    /// Since when a wish is among the causes.
    wish: Option<Duration>,
    /// Since when anything else is.
    others: Option<Duration>,
    causes: Vec<Cause>,
}

/// The state machine.
#[derive(Debug)]
pub struct Controller {
    known: Known,
    /// The kernel is as the last wish wanted it, as far as is known.
    is_settled: bool,
    due: Option<Due>,
    running: Option<(Pass, Duration)>,
    /// When the next pass may begin.
    rest_until: Duration,
    /// The same for a fast one.
    fast_rest_until: Duration,
    look: Duration,
    failed_in_a_row: u32,
    ending: bool,
    counters: Counters,
}

impl Controller {
    /// One that knows nothing, at this moment.
    pub fn new(now: Duration) -> Self {
        Self {
            known: Known::Nothing,
            is_settled: false,
            due: Some(Due { at: now, since: now, wish: None, others: Some(now), causes: vec![Cause::Start] }),
            running: None,
            rest_until: now,
            fast_rest_until: now,
            look: now + LOOK_EVERY,
            failed_in_a_row: 0,
            ending: false,
            counters: Counters::default(),
        }
    }

    /// What there was so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes an event and says what to do now. While a pass runs, that is to wait for its end.
    pub fn handle(&mut self, event: Event, now: Duration) -> Action {
        match event {
            Event::Wish { live, since } => {
                self.counters.events += 1;
                // A store that was complete once does not become unknown: what it said last is still the last word.
                let known = self.known.max(if live { Known::All } else { Known::Remembered });
                if known != self.known {
                    // What there is to be deleted, the kernel alone knows.
                    self.is_settled = false;
                }
                self.known = known;
                self.plan(Cause::Wish, since.min(now), now);
            }
            Event::Changed(cause) => {
                self.counters.events += 1;
                self.plan(cause, now, now + SETTLE);
            }
            Event::Tick => {}
            Event::Done { outcome, jitter } => self.done(outcome, jitter, now),
            Event::Shutdown => self.ending = true,
        }
        self.next(now)
    }

    fn plan(&mut self, cause: Cause, since: Duration, at: Duration) {
        let (wish, others) = if cause == Cause::Wish { (Some(since), None) } else { (None, Some(since)) };
        match &mut self.due {
            None => self.due = Some(Due { at, since, wish, others, causes: vec![cause] }),
            Some(due) => {
                // A wish does not wait for others; a change waits for more of its kind, and not for ever.
                due.at = match cause {
                    Cause::Wish => due.at.min(at),
                    _ => due.at.max(at).min(due.since + SETTLE_AT_MOST).max(due.at.min(at)),
                };
                due.since = due.since.min(since);
                due.wish = due.wish.into_iter().chain(wish).min();
                due.others = due.others.into_iter().chain(others).min();
                if !due.causes.contains(&cause) {
                    due.causes.push(cause);
                }
            }
        }
    }

    fn done(&mut self, outcome: Outcome, jitter: f64, now: Duration) {
        let Some((pass, begun)) = self.running.take() else { return };
        let took = now.saturating_sub(begun);
        if outcome.was_given_up {
            self.rest_until = now;
            self.fast_rest_until = now;
            for cause in pass.causes {
                // Whoever makes passes hears what it was given up for before that.
                self.plan(cause, pass.since, now + Duration::from_millis(1));
            }
            return;
        }
        let rest = now + took.clamp(PAUSE, BACKOFF_AT_MOST);
        self.rest_until = self.rest_until.max(rest);
        self.fast_rest_until = if pass.full { now + PAUSE } else { rest };
        if pass.full {
            self.look = now + LOOK_EVERY;
        }
        if let Some(cause) = pass.repairs(outcome.found) {
            let repaired = outcome.operations.saturating_sub(outcome.failures);
            if repaired > 0 {
                *self.counters.repairs.entry(cause).or_default() += repaired as u64;
            }
        }
        if outcome.was_too_much {
            self.is_settled = false;
            self.rest_until = now;
            self.fast_rest_until = now;
            self.plan(Cause::Wish, pass.since, now);
            return;
        }
        self.is_settled = outcome.failures == 0;
        if self.is_settled {
            self.failed_in_a_row = 0;
            return;
        }
        self.counters.failed += 1;
        let wait = backoff(self.failed_in_a_row, jitter);
        self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
        // In place of the periodic look: an event may bring a pass before.
        self.look = now + wait;
    }

    fn next(&mut self, now: Duration) -> Action {
        if self.running.is_some() {
            // Its end is an event.
            return Action::Wait(self.look.max(now));
        }
        if self.ending {
            return Action::End;
        }
        if now >= self.look {
            let cause = if self.is_settled { Cause::Time } else { Cause::Retry };
            self.plan(cause, now, now);
            if let Some(due) = &mut self.due {
                due.at = now;
            }
            self.look = now + LOOK_EVERY;
        }
        let wish = self.due.as_ref().and_then(|due| self.wish_before(due, now));
        let at = match &self.due {
            Some(_) if wish.is_some() => self.fast_rest_until.max(now),
            Some(due) => due.at.max(self.rest_until),
            None => self.look.max(self.rest_until),
        };
        if at > now {
            return Action::Wait(at.min(self.look.max(self.rest_until)));
        }
        match self.due.take() {
            Some(due) if wish.is_some() => {
                let (wishes, others): (Vec<_>, Vec<_>) =
                    due.causes.into_iter().partition(|cause| *cause == Cause::Wish);
                if !others.is_empty() {
                    let since = due.others.unwrap_or(due.since);
                    self.due =
                        Some(Due { at: due.at, since, wish: None, others: due.others, causes: others });
                }
                self.run(Due { at: now, since: wish.unwrap_or(now), wish, others: None, causes: wishes }, now)
            }
            Some(due) => self.run(due, now),
            None => Action::Wait(self.look),
        }
    }

    /// Since when a wish has waited that can be carried out fast, and before whatever else there is to do.
    fn wish_before(&self, due: &Due, now: Duration) -> Option<Duration> {
        let others_wait = due.causes.iter().all(|cause| *cause == Cause::Wish || stands_back(*cause));
        let is_young = now.saturating_sub(due.others.unwrap_or(now)) < STAND_BACK;
        due.wish.filter(|_| self.is_settled && others_wait && is_young)
    }

    fn run(&mut self, mut due: Due, now: Duration) -> Action {
        due.causes.sort_unstable();
        let full = !self.is_settled || due.causes != [Cause::Wish];
        if full {
            self.counters.full += 1;
        } else {
            self.counters.fast += 1;
        }
        let waits = now.saturating_sub(due.since) < STAND_BACK;
        let yields = full && waits && self.is_settled && due.causes.iter().all(|cause| stands_back(*cause));
        // A wish is not late by a look that was put off before it came.
        let only_looks = due.causes.iter().all(|cause| *cause == Cause::Wish || stands_back(*cause));
        let since = due.wish.filter(|_| only_looks).unwrap_or(due.since);
        let pass = Pass { full, known: self.known, causes: due.causes, since, yields };
        self.running = Some((pass.clone(), now));
        Action::Run(pass)
    }
}

/// Whether nothing is known to be wrong where this is the cause of a look.
fn stands_back(cause: Cause) -> bool {
    matches!(cause, Cause::Time | Cause::Asked)
}

/// Between half of the wait and all of it.
fn backoff(failed: u32, jitter: f64) -> Duration {
    let whole = BACKOFF.saturating_mul(1 << failed.min(16)).min(BACKOFF_AT_MOST);
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 1.0 };
    whole.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests;
