//! Events of this node's own Node: what an administrator sees of it with `kubectl describe node`.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::Timing;
use super::client::Access;
use super::record::cut;

/// Who says so.
const CONTROLLER: &str = "podwire.dev/podwired";

/// So many events at most within [`WINDOW`]: the API server keeps each of them for an hour.
const MOST: usize = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// The longest text of an event, in characters: the API takes 1,024 bytes.
const LONGEST: usize = 250;

/// So often is one tried.
const ATTEMPTS: u32 = 5;

/// Something that has happened to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happening {
    /// Whether it is a reason to look after the node.
    pub(super) is_warning: bool,
    /// One word for it.
    pub(super) reason: &'static str,
    /// What podwired was about.
    pub(super) action: &'static str,
    /// What has happened.
    pub(super) note: String,
    /// The life of the Node that it happened to; empty: none.
    pub(super) uid: String,
}

/// Tells of what happens, until nobody has anything to tell.
pub(super) async fn tell(
    access: Rc<Access>,
    node: String,
    timing: Timing,
    mut happenings: mpsc::Receiver<Happening>,
    hindered: mpsc::UnboundedSender<super::Said>,
) {
    let mut told: VecDeque<Instant> = VecDeque::new();
    let mut is_hindered = false;
    while let Some(happening) = happenings.recv().await {
        while told.front().is_some_and(|at| at.elapsed() > WINDOW) {
            told.pop_front();
        }
        if told.len() >= MOST {
            tracing::debug!(note = happening.note, "too many events for now: one is left out");
            continue;
        }
        told.push_back(Instant::now());
        for attempt in 1..=ATTEMPTS {
            match publish(&access, &node, &timing, &happening).await {
                Ok(()) => {
                    is_hindered = false;
                    break;
                }
                Err(Hindrance::Forbidden(why)) => {
                    if !std::mem::replace(&mut is_hindered, true) {
                        let _ = hindered.send(super::Said::Hindered { why });
                    }
                    break;
                }
                Err(Hindrance::Other(why)) => tracing::debug!(why, "an event cannot be told"),
            }
            sleep(timing.pause_after(attempt + 3)).await;
        }
    }
}

enum Hindrance {
    Forbidden(String),
    Other(String),
}

async fn publish(
    access: &Access,
    node: &str,
    timing: &Timing,
    happening: &Happening,
) -> Result<(), Hindrance> {
    let client = access.client().await.map_err(|failure| Hindrance::Other(failure.to_string()))?;
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(happening.uid.clone()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    };
    // A recorder takes events of one reason for one series and keeps the first one's text; each is to be read here.
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
    let recorder = Recorder::new(client, reporter);
    let event = Event {
        type_: if happening.is_warning { EventType::Warning } else { EventType::Normal },
        reason: happening.reason.to_owned(),
        note: Some(cut(&happening.note, LONGEST)),
        action: happening.action.to_owned(),
        secondary: None,
    };
    match timeout(timing.request, recorder.publish(&event, &regarding)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Err(Hindrance::Forbidden(format!(
            "create events: this node's account may not: give it the verbs \"create\" and \"patch\" on events.events.k8s.io \
             (ClusterRole podwire of conf/kubernetes/podwire.yaml has them); the API server says: {}",
            cut(&status.message, 500)
        ))),
        Ok(Err(error)) => Err(Hindrance::Other(access.failed(&error))),
        Err(_) => Err(Hindrance::Other("no answer".to_owned())),
    }
}
