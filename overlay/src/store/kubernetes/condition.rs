//! What a Node's condition NetworkUnavailable is to say: schedulers keep pods away from a Node where it is true. PURE.

use std::time::Duration;

use serde_json::{Value, json};

use super::object::{Condition, NETWORK_UNAVAILABLE, Node};
use crate::store::Health;

/// What it is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Whether the network is unavailable.
    pub is_unavailable: bool,
    /// Why, or that it is not.
    pub message: String,
}

/// The longest message, in bytes: a Node is read by many.
const LONGEST: usize = 1024;

impl Wanted {
    /// A node that is ready says so at once. One that has been unready for `unready` says so from `patience` on: a device that
    /// is put back within a second is no reason to keep pods away. `None`: it stays as it is.
    pub fn of(health: &Health, unready: Duration, patience: Duration) -> Option<Self> {
        if health.is_ready {
            let message = "podwire connects this node's pods with those of other nodes".to_owned();
            return Some(Self { is_unavailable: false, message });
        }
        (unready >= patience).then(|| {
            let why = if health.why.is_empty() { "podwire has not begun yet" } else { &health.why };
            let end = why.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST).last();
            let message =
                why.get(..end.unwrap_or(0)).filter(|_| why.len() > LONGEST).unwrap_or(why).to_owned();
            Self { is_unavailable: true, message }
        })
    }

    /// One word for it.
    pub fn reason(&self) -> &'static str {
        if self.is_unavailable { "PodwireNotReady" } else { "PodwireReady" }
    }

    fn status(&self) -> &'static str {
        if self.is_unavailable { "True" } else { "False" }
    }

    /// In what the Node differs from it.
    pub fn difference(&self, node: &Node) -> Difference {
        match &node.status.network_unavailable {
            Some(is) if is.status == self.status() && is.reason == self.reason() => {
                match is.message == self.message {
                    true => Difference::None,
                    false => Difference::Message,
                }
            }
            _ => Difference::Status,
        }
    }

    /// A strategic merge patch of that life of the Node's status. `now` as RFC 3339 has it.
    pub fn patch(&self, node: &Node, now: &str) -> Value {
        let same = |is: &&Condition| is.status == self.status() && !is.since.is_empty();
        let since = node.status.network_unavailable.as_ref().filter(same).map_or(now, |is| &is.since);
        json!({
            "metadata": { "uid": node.metadata.uid },
            "status": { "conditions": [{
                "type": NETWORK_UNAVAILABLE,
                "status": self.status(),
                "reason": self.reason(),
                "message": self.message,
                "lastTransitionTime": since,
                "lastHeartbeatTime": now,
            }] },
        })
    }
}

/// See [`Wanted::difference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// In nothing.
    None,
    /// In the text for people alone, which can wait.
    Message,
    /// In what counts.
    Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: &str, reason: &str, message: &str) -> Node {
        let mut node = Node::default();
        node.metadata.uid = "u".into();
        node.status.network_unavailable = Some(Condition {
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            since: "2026-11-21T00:00:00Z".into(),
        });
        node
    }

    fn unready(why: &str, seconds: u64) -> Option<Wanted> {
        let health = Health { is_ready: false, why: why.into(), problems: Vec::new() };
        Wanted::of(&health, Duration::from_secs(seconds), Duration::from_secs(15))
    }

    #[test]
    fn ready_is_said_at_once_and_unready_after_a_while() {
        let health = Health { is_ready: true, ..Health::default() };
        let ready = Wanted::of(&health, Duration::ZERO, Duration::from_secs(15)).unwrap();
        assert_eq!((ready.status(), ready.reason()), ("False", "PodwireReady"));
        assert_eq!(unready("x", 14), None);
        let late = unready("the device is gone", 15).unwrap();
        assert_eq!((late.status(), late.reason()), ("True", "PodwireNotReady"));
        assert_eq!(late.message, "the device is gone");
        assert!(!unready("", 15).unwrap().message.is_empty());
        let long = unready(&"ü".repeat(5000), 15).unwrap();
        assert!(long.message.len() <= LONGEST && long.message.starts_with('ü'));
    }

    #[test]
    fn only_a_change_of_the_status_begins_a_new_time() {
        let wanted = unready("why", 20).unwrap();
        for (before, difference, since) in [
            (node("True", "PodwireNotReady", "why"), Difference::None, "2026-11-21T00:00:00Z"),
            (node("True", "PodwireNotReady", "other"), Difference::Message, "2026-11-21T00:00:00Z"),
            (node("True", "NoRouteCreated", "why"), Difference::Status, "2026-11-21T00:00:00Z"),
            (node("False", "PodwireReady", "why"), Difference::Status, "now"),
            (Node::default(), Difference::Status, "now"),
        ] {
            assert_eq!(wanted.difference(&before), difference, "{before:?}");
            let patch = wanted.patch(&before, "now");
            let condition = &patch["status"]["conditions"][0];
            assert_eq!(condition["lastTransitionTime"], since);
            assert_eq!(condition["lastHeartbeatTime"], "now");
            assert_eq!(condition["type"], "NetworkUnavailable");
        }
    }
}
