//! What was asked of the server, and how much it answered.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How many requests are remembered one by one.
const REMEMBERED: usize = 100_000;

/// One request, as it was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// When.
    pub at: Instant,
    /// As in rules: `get`, `list`, `watch`, …
    pub verb: &'static str,
    /// As in rules: `nodes`, `nodes/status`.
    pub resource: String,
    /// Empty for lists and watches.
    pub name: String,
    /// The query as it was sent.
    pub query: String,
    /// The HTTP code of the answer.
    pub status: u16,
    /// Who asked.
    pub from: SocketAddr,
}

/// How much there was of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests.
    pub requests: u64,
    /// Bytes of the answers' bodies.
    pub bytes: u64,
}

/// Adds to a count's bytes, also after the request has been written down: watches go on.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    requests: VecDeque<Request>,
    counts: BTreeMap<(&'static str, String), (u64, Meter)>,
}

impl Journal {
    pub(super) fn add(&mut self, request: Request) -> Meter {
        let count = self.counts.entry((request.verb, request.resource.clone())).or_default();
        count.0 += 1;
        let meter = count.1.clone();
        if self.requests.len() == REMEMBERED {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
        meter
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.iter().cloned().collect()
    }

    pub(super) fn count(&self, verb: &str, resource: &str) -> Count {
        let found = self.counts.iter().find(|((is, of), _)| *is == verb && of == resource);
        found.map(|(_, count)| read(count)).unwrap_or_default()
    }

    pub(super) fn counts(&self) -> Vec<((&'static str, String), Count)> {
        self.counts.iter().map(|(what, count)| (what.clone(), read(count))).collect()
    }

    pub(super) fn clear(&mut self) {
        self.requests.clear();
        for (requests, meter) in self.counts.values_mut() {
            *requests = 0;
            meter.0.store(0, Ordering::Relaxed);
        }
    }
}

fn read((requests, meter): &(u64, Meter)) -> Count {
    Count { requests: *requests, bytes: meter.0.load(Ordering::Relaxed) }
}
