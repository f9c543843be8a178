//! What a store tells the agent, in order, without ever waiting for it.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::StoreEvent;

/// The way to the agent.
pub(super) struct Outbox {
    events: mpsc::Sender<StoreEvent>,
    queue: VecDeque<StoreEvent>,
}

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<StoreEvent>) -> Self {
        Self { events, queue: VecDeque::new() }
    }

    /// Takes an event. Of two snapshots that wait the newer is enough.
    pub(super) fn push(&mut self, event: StoreEvent) {
        if matches!(event, StoreEvent::Snapshot { .. }) {
            self.queue.retain(|waiting| !matches!(waiting, StoreEvent::Snapshot { .. }));
        }
        self.queue.push_back(event);
    }

    /// Delivers one event, and waits for ever if there is none; `false`: nobody listens any more. Nothing is lost if it is
    /// dropped while it waits.
    pub(super) async fn deliver(&mut self) -> bool {
        if self.queue.is_empty() {
            return std::future::pending().await;
        }
        let Ok(permit) = self.events.reserve().await else { return false };
        if let Some(event) = self.queue.pop_front() {
            permit.send(event);
        }
        true
    }
}
