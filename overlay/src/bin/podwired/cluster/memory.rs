//! What the node remembers of the cluster, for a start without its store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_overlay::member::Memorable;
use podwire_overlay::remembered::Memory;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Part;

/// How long changes are collected before the memory is written: with thousands of nodes it is megabytes.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);

/// How often the time of the last contact is written where it matters, which is for hours.
const CONTACT_EVERY: Duration = Duration::from_secs(600);

/// What stands in the memory.
#[derive(Default)]
pub(super) struct Memorized {
    last: Option<Memorable>,
    at: Option<Instant>,
    pub(super) writing: Option<JoinHandle<()>>,
}

impl Part {
    /// Writes what is to be remembered, when it is time. What decides on this node's addresses is written at once.
    pub(super) fn memorize(&mut self, memorable: Memorable, is_live: bool) {
        let Memorized { last, at, writing } = &mut self.memorized;
        if writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        // What stands there from the last run is as good as what was read from it.
        if !is_live && memorable.fenced.is_none() {
            return;
        }
        let age = at.map_or(Duration::MAX, |at| at.elapsed());
        let is_due = match last {
            None => true,
            Some(last) if last.membership != memorable.membership || last.fenced != memorable.fenced => true,
            Some(last)
                if !Arc::ptr_eq(&last.snapshot, &memorable.snapshot) || last.mark != memorable.mark =>
            {
                age >= REMEMBER_EVERY
            }
            Some(last) => {
                let matters = memorable.snapshot.config.reclaim_after_seconds.is_some();
                matters && last.contact != memorable.contact && age >= CONTACT_EVERY
            }
        };
        if !is_due {
            return;
        }
        *last = Some(memorable.clone());
        *at = Some(Instant::now());
        let memory = self.memory.clone();
        *writing = Some(spawn_blocking(move || write(&memory, &memorable)));
    }
}

pub(super) fn write(memory: &Memory, memorable: &Memorable) {
    if let Err(error) = memory.write(memorable) {
        tracing::error!(%error, "cannot write down what the cluster is, for a start without its store");
    }
}
