//! Keeps this node's own Node as it should be: its annotations, and the condition NetworkUnavailable.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::client::{Access, Failure, What};
use super::condition::{Difference, Wanted};
use super::object::{self, Node};
use super::{Said, Timing, record};
use crate::config::Kubernetes;
use crate::store::{Announcement, Health};

const ANNOTATE: What = What { verb: "patch", resource: "nodes" };
const CONDITION: What = What { verb: "patch", resource: "nodes/status" };

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// So often in a row has somebody changed what this node wrote before an administrator is told.
const FIGHT: u32 = 3;

/// The task that writes.
pub(super) struct Writer {
    pub(super) access: Rc<Access>,
    /// The path of the Node.
    pub(super) path: String,
    /// The installation that this is.
    pub(super) instance: String,
    pub(super) kubernetes: Rc<Kubernetes>,
    pub(super) timing: Timing,
    /// The Node, as it was last heard of; `None`: there is none, as far as is known.
    pub(super) own: watch::Receiver<Option<Arc<Node>>>,
    pub(super) announcement: watch::Receiver<Announcement>,
    pub(super) health: watch::Receiver<Health>,
    /// What is to be told of it.
    pub(super) said: mpsc::UnboundedSender<Said>,
}

/// When a part of the Node may be written, and whether somebody else writes it too.
#[derive(Debug)]
struct Pace<T> {
    written: Option<(T, Instant)>,
    /// So often in a row the same was written, because somebody had changed it.
    put_back: u32,
    failures: u32,
    /// When what has failed is tried again.
    again_at: Option<Instant>,
    /// The last failure that was told.
    told: Option<Failure>,
}

impl<T: PartialEq> Pace<T> {
    fn new() -> Self {
        Self { written: None, put_back: 0, failures: 0, again_at: None, told: None }
    }

    /// From when on this may be written; `None`: at once.
    fn due(&self, wanted: &T, timing: &Timing) -> Option<Instant> {
        let rested = self.written.as_ref().map(|(written, at)| {
            // The shortest pause is for what comes from the watch now and was so before.
            let times = if written == wanted { self.put_back.min(12) } else { 0 };
            *at + timing.put_back.saturating_mul(1 << times).min(timing.longest_put_back)
        });
        rested.max(self.again_at)
    }

    /// It was written. Says whether an administrator is to be told that somebody else writes it too.
    fn wrote(&mut self, wanted: T, now: Instant, timing: &Timing) -> bool {
        let is_again = self.written.as_ref().is_some_and(|(written, at)| {
            *written == wanted && now.duration_since(*at) < timing.longest_put_back * 2
        });
        *self = Self { put_back: if is_again { self.put_back.saturating_add(1) } else { 0 }, ..Self::new() };
        self.written = Some((wanted, now));
        self.put_back == FIGHT
    }

    /// It could not be. Returns what is to be told of it, once.
    fn failed(&mut self, failure: Failure, now: Instant, timing: &Timing) -> Option<String> {
        self.failures = self.failures.saturating_add(1);
        self.again_at = Some(now + timing.pause_after(self.failures));
        let is_news = match failure.code() {
            // The Node is another one, or gone: the watch will say so. Who this node is, is read again.
            Some(401 | 404 | 409 | 422) if self.failures < 3 => false,
            Some(_) => self.told.as_ref() != Some(&failure),
            // That the server does not answer is known from the watch.
            None => false,
        };
        is_news.then(|| self.told.insert(failure).to_string())
    }
}

/// What the annotations are written for.
type Statement = (String, Announcement);

/// What the condition is written for.
type Verdict = (String, Wanted);

impl Writer {
    /// Goes on for ever.
    pub(super) async fn run(mut self) {
        let now = Instant::now();
        let (mut annotations, mut condition) = (Pace::<Statement>::new(), Pace::<Verdict>::new());
        let mut node: Option<Arc<Node>> = self.own.borrow_and_update().clone();
        // Since when this node has not been ready; `None`: it is.
        let mut unready_since = Some(now);
        loop {
            let now = Instant::now();
            unready_since = match self.health.borrow_and_update().is_ready {
                true => None,
                false => Some(unready_since.unwrap_or(now)),
            };
            let unready = unready_since.map_or(Duration::ZERO, |since| now.duration_since(since));
            let mut next =
                unready_since.map(|since| since + self.timing.not_ready_after).filter(|at| *at > now);
            if let Some(seen) = node.clone() {
                let due = [
                    self.annotate(&seen, &mut annotations, &mut node).await,
                    self.judge(&seen, unready, &mut condition, &mut node).await,
                ];
                next = due.into_iter().flatten().chain(next).min();
            }
            tokio::select! {
                heard = self.own.changed() => match heard {
                    Ok(()) => node.clone_from(&self.own.borrow_and_update()),
                    Err(_) => return std::future::pending().await,
                },
                Ok(()) = self.announcement.changed() => {}
                Ok(()) = self.health.changed() => {}
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Writes the annotations if they differ and it is time; else says when.
    async fn annotate(
        &mut self,
        seen: &Node,
        pace: &mut Pace<Statement>,
        node: &mut Option<Arc<Node>>,
    ) -> Option<Instant> {
        let announcement = self.announcement.borrow_and_update().clone();
        let changes = record::changes(seen, &announcement, &self.instance, &self.kubernetes);
        if changes.is_empty() {
            return None;
        }
        let wanted = (seen.metadata.uid.clone(), announcement);
        if let Some(due) = pace.due(&wanted, &self.timing).filter(|due| *due > Instant::now()) {
            return Some(due);
        }
        let patch = record::patch(seen, &changes);
        let written = self.write(ANNOTATE, &self.path, MERGE, &patch).await;
        let now = Instant::now();
        match written {
            Ok(written) => {
                let keys: Vec<&str> = changes.into_keys().collect();
                tracing::debug!(annotations = keys.join(", "), "this node's Node is annotated");
                if pace.wrote(wanted, now, &self.timing) {
                    self.say(Said::Fight { what: format!("the annotations {}", keys.join(", ")) });
                }
                *node = Some(written);
            }
            Err(failure) => {
                if let Some(why) = pace.failed(failure, now, &self.timing) {
                    self.say(Said::Hindered { why });
                }
            }
        }
        pace.again_at
    }

    /// The same for the condition.
    async fn judge(
        &mut self,
        seen: &Node,
        unready: Duration,
        pace: &mut Pace<Verdict>,
        node: &mut Option<Arc<Node>>,
    ) -> Option<Instant> {
        let wanted = Wanted::of(&self.health.borrow(), unready, self.timing.not_ready_after)?;
        let difference = wanted.difference(seen);
        if difference == Difference::None {
            return None;
        }
        let verdict = (seen.metadata.uid.clone(), wanted);
        let mut due = pace.due(&verdict, &self.timing);
        if difference == Difference::Message {
            // The text alone may change often.
            due = due.max(pace.written.as_ref().map(|(_, at)| *at + self.timing.message_pause));
        }
        if let Some(due) = due.filter(|due| *due > Instant::now()) {
            return Some(due);
        }
        let wanted = &verdict.1;
        let path = format!("{}/status", self.path);
        // Subsecond digits are none of this API's times.
        let now =
            Timestamp::now().round(k8s_openapi::jiff::Unit::Second).unwrap_or_else(|_| Timestamp::now());
        let written =
            self.write(CONDITION, &path, STRATEGIC_MERGE, &wanted.patch(seen, &now.to_string())).await;
        let now = Instant::now();
        match written {
            Ok(written) => {
                if difference == Difference::Status {
                    self.say(Said::Readiness { wanted: wanted.clone() });
                }
                if pace.wrote(verdict, now, &self.timing) {
                    self.say(Said::Fight { what: "the condition NetworkUnavailable".to_owned() });
                }
                *node = Some(written);
            }
            Err(failure) => {
                if let Some(why) = pace.failed(failure, now, &self.timing) {
                    self.say(Said::Hindered { why });
                }
            }
        }
        pace.again_at
    }

    async fn write(
        &self,
        what: What,
        path: &str,
        kind: &'static str,
        patch: &serde_json::Value,
    ) -> Result<Arc<Node>, Failure> {
        let answer = self.access.patch(what, path, kind, patch).await?;
        match object::node(&answer) {
            Ok(node) => Ok(Arc::new(node)),
            Err(error) => Err(Failure::broken(what, format!("the answer cannot be read: {error}"))),
        }
    }

    fn say(&self, said: Said) {
        // Nobody listens when the store ends.
        let _ = self.said.send(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_changes_is_put_back_less_and_less_often() {
        let timing = Timing::default();
        let (mut pace, mut now) = (Pace::new(), Instant::now());
        assert_eq!(pace.due(&"a", &timing), None);
        let mut fights = Vec::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            fights.push(pace.wrote("a", now, &timing));
            let due = pace.due(&"a", &timing).unwrap();
            pauses.push(due.duration_since(now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(fights.iter().filter(|fight| **fight).count(), 1);
        assert_eq!(fights.iter().position(|fight| *fight), Some(3));
        // What is new is not held up by that, nor what has held for long.
        assert_eq!(pace.due(&"b", &timing), Some(pace.written.unwrap().1 + timing.put_back));
        now += timing.longest_put_back * 3;
        pace.wrote("a", now, &timing);
        assert_eq!(pace.due(&"a", &timing), Some(now + timing.put_back));
    }

    #[test]
    fn what_is_refused_is_told_once() {
        let timing = Timing::default();
        let (mut pace, now) = (Pace::<()>::new(), Instant::now());
        let refused = |code| Failure::Refused {
            what: ANNOTATE,
            refusal: object::Refusal { code, ..object::Refusal::default() },
        };
        let mut failed = |failure| pace.failed(failure, now, &timing).is_some();
        assert!(failed(refused(403)));
        assert!(!failed(refused(403)));
        assert!(failed(refused(422)));
        assert!(!failed(Failure::broken(ANNOTATE, "no route")));
        assert!(pace.due(&(), &timing).is_some_and(|due| due > now));
        pace.wrote((), now, &timing);
        // A Node that has just been made again is no news.
        assert!(pace.failed(refused(409), now, &timing).is_none());
        assert!(pace.failed(refused(403), now, &timing).is_some());
    }
}
