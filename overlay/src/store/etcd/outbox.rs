//! What is told to the agent: what is new of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::claims::{Replica, Standing};
use crate::cluster::Snapshot;
use crate::store::StoreEvent;
use crate::store::outbox::Outbox as Queue;

/// The shortest time between two snapshots: thousands of nodes may join within a second, and each snapshot is work for all that
/// hear of it. The first after a quiet time is told at once.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(20);

/// How many records that are left out are told one by one at a time.
const MOST_NOTICES: usize = 20;

/// The way to the agent.
pub(super) struct Outbox {
    queue: Queue,
    standing: Option<Standing>,
    lacks: Option<String>,
    problems: BTreeMap<String, String>,
    differences: Vec<String>,
    shown: Option<(Arc<Snapshot>, Arc<BTreeSet<String>>)>,
    shown_at: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<StoreEvent>) -> Self {
        Self {
            queue: Queue::new(events),
            standing: None,
            lacks: None,
            problems: BTreeMap::new(),
            differences: Vec::new(),
            shown: None,
            shown_at: None,
        }
    }

    pub(super) fn push(&mut self, event: StoreEvent) {
        self.queue.push(event);
    }

    /// See [`Queue::deliver`].
    pub(super) async fn deliver(&mut self) -> bool {
        self.queue.deliver().await
    }

    /// Says where this node stands, if that is new.
    pub(super) fn stand(&mut self, standing: &Standing, lacks: Option<&str>) {
        if self.standing.as_ref() != Some(standing) {
            self.standing = Some(standing.clone());
            self.push(match standing.clone() {
                Standing::Member(membership) => StoreEvent::Joined(membership),
                Standing::Refused(why) => StoreEvent::Refused { why },
                Standing::Fenced(why) => StoreEvent::Fenced { why },
            });
        }
        if self.lacks.as_deref() != lacks {
            self.lacks = lacks.map(str::to_owned);
            if let Some(lacks) = lacks {
                self.push(StoreEvent::Notice(lacks.to_owned()));
            }
        }
    }

    /// Says in what the shared settings differ from this node's own file, if that is new.
    pub(super) fn differ(&mut self, differences: Vec<String>) {
        if self.differences != differences {
            if !differences.is_empty() {
                self.push(StoreEvent::Notice(format!(
                    "the cluster's settings in etcd are not those of this node's file: {}. Those in etcd count; podwirectl \
                     changes them",
                    differences.join("; ")
                )));
            }
            self.differences = differences;
        }
    }

    /// Says what cannot be used in the store, if that is new.
    pub(super) fn complain(&mut self, prefix: &str, replica: &Replica) {
        let problems: BTreeMap<String, String> =
            replica.problems().map(|(key, why)| (key, why.to_owned())).collect();
        let is_new = |(key, why): &(&String, &String)| self.problems.get(*key) != Some(*why);
        let new: Vec<_> = problems.iter().filter(is_new).collect();
        let told =
            new.iter().take(MOST_NOTICES).map(|(key, why)| format!("{prefix}/v1/{key} is left out: {why}"));
        let more = new.len().saturating_sub(MOST_NOTICES);
        let more = (more > 0).then(|| format!("{more} more keys below {prefix}/v1/ are left out"));
        told.chain(more).for_each(|notice| self.queue.push(StoreEvent::Notice(notice)));
        self.problems = problems;
    }

    /// Shows what there is, if it is new and the time has come; else when to try again. Nothing is shown before it is clear
    /// what this node's own part is.
    pub(super) fn show(&mut self, replica: &Replica, mark: Option<(u64, u64)>) -> Option<Instant> {
        let snapshot = replica.snapshot()?;
        let absent = replica.absent();
        let is_same = |(shown, away): &(Arc<Snapshot>, Arc<BTreeSet<String>>)| {
            Arc::ptr_eq(shown, snapshot) && Arc::ptr_eq(away, absent)
        };
        let has_part = matches!(self.standing, Some(Standing::Member(_) | Standing::Fenced(_)));
        if !has_part || self.shown.as_ref().is_some_and(is_same) {
            return None;
        }
        let next = self.shown_at.map(|at| at + SNAPSHOT_PAUSE);
        if next.is_some_and(|next| next > Instant::now()) {
            return next;
        }
        self.push(StoreEvent::Snapshot { snapshot: snapshot.clone(), absent: Some(absent.clone()), mark });
        self.shown = Some((snapshot.clone(), absent.clone()));
        self.shown_at = Some(Instant::now());
        None
    }
}
