//! A watch: what there is, if that was asked for, and then every change, a line each.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::Fault;
use super::admission::empty_status;
use super::failure::Failure;
use super::journal::Meter;
use super::kind::{Kind, Resource};
use super::request::{Call, From};
use super::respond::{converted, selected};
use super::selector::Selector;
use super::serve::{BREATH, Cut, Shared};
use super::store::{Change, Happened, Text};

/// How much is said at once of what there is, in bytes.
const PIECE: usize = 64 << 10;
/// How long a watch lasts that says nothing of it: as `--min-request-timeout` has it.
const LASTS: Duration = Duration::from_mins(30);
/// How long before its end a watch gets its last bookmark; one that does not last that long gets none.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// A watch, from the request on.
pub(super) struct Watch {
    resource: Resource,
    namespace: String,
    selector: Selector,
    from: From,
    /// Whether it begins with all objects: asked for, asked not to, or not said.
    initial: Option<bool>,
    wants_bookmarks: bool,
    lasts: Duration,
}

/// Where lines go. A break means that nobody reads them any more, or that the server has a fault which ends the watch.
struct Lines<'a> {
    shared: &'a Shared,
    out: mpsc::Sender<Result<Bytes, Cut>>,
    meter: Meter,
}

impl Watch {
    /// What a call asks for.
    pub(super) fn of(call: &Call, streaming_lists: bool) -> Result<Self, Failure> {
        let query = &call.query;
        query.check_watch(streaming_lists)?;
        let initial = match query.raw("sendInitialEvents") {
            "" => None,
            _ => Some(query.is_true("sendInitialEvents")),
        };
        Ok(Self {
            resource: call.resource,
            namespace: call.namespace.clone(),
            selector: call.selector()?,
            from: query.from()?,
            initial,
            wants_bookmarks: query.is_true("allowWatchBookmarks"),
            lasts: query.number("timeoutSeconds")?.filter(|s| *s > 0).map_or(LASTS, Duration::from_secs),
        })
    }

    /// Says it all, until its time is over, the reader is gone, or the server ends it.
    pub(super) async fn run(self, shared: Arc<Shared>, out: mpsc::Sender<Result<Bytes, Cut>>, meter: Meter) {
        let _open = shared.count_watch();
        let gone = out.clone();
        let mut ends = shared.watch_ends();
        let lines = Lines { shared: &shared, out, meter };
        tokio::select! {
            _ = self.say(&lines) => {}
            () = gone.closed() => {}
            _ = ends.changed() => {}
        }
    }

    async fn say(&self, lines: &Lines<'_>) -> ControlFlow<()> {
        let deadline = Instant::now() + self.lasts;
        // So that the next watch begins where this one ends.
        let last_bookmark = deadline - LAST_BOOKMARK.min(self.lasts);
        let mut owes_last = self.wants_bookmarks && self.lasts > LAST_BOOKMARK;
        // Before the first look, so that no change falls between.
        let mut news = lines.shared.news();
        let mut seen = self.begin(lines).await?;
        // A version that a client brings may be too old; those that this watch has come to never are.
        let mut is_open = false;
        let mut bookmarks = bookmarks(lines.shared.bookmarks);
        loop {
            loop {
                let (changes, current) = match lines.shared.changes(self.resource.kind, seen, is_open) {
                    Ok(found) => found,
                    Err(expired) => return lines.put(error_line(&expired)).await,
                };
                is_open = true;
                if changes.is_empty() {
                    // A client may ask for a version that is still to come.
                    seen = seen.max(current);
                    break;
                }
                for change in changes {
                    seen = change.after.version;
                    if let Some(line) = self.line(&change) {
                        lines.put(line).await?;
                    }
                }
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = bookmarks.tick(), if self.wants_bookmarks => lines.put(self.bookmark(seen, false)).await?,
                () = tokio::time::sleep_until(last_bookmark), if owes_last => {
                    owes_last = false;
                    lines.put(self.bookmark(seen, false)).await?;
                }
                () = tokio::time::sleep_until(deadline) => return ControlFlow::Break(()),
            }
        }
    }

    /// Says what there is, if it is to be said; from which version the changes go on.
    async fn begin(&self, lines: &Lines<'_>) -> ControlFlow<(), u64> {
        let at = match (self.initial, self.from) {
            (None | Some(false), From::At(version)) => return ControlFlow::Continue(version),
            (Some(false), _) => return ControlFlow::Continue(lines.shared.store().version()),
            (Some(true), From::At(version)) => Some(version),
            (_, From::Any | From::Newest) => None,
        };
        let (objects, current) = {
            let store = lines.shared.store();
            (store.all(self.resource.kind), store.version())
        };
        if let Some(version) = at.filter(|version| *version > current) {
            lines.put(error_line(&Failure::too_new(version, current))).await?;
            return ControlFlow::Break(());
        }
        let mut piece = Vec::new();
        for (_, text) in selected(objects, &self.namespace, &self.selector) {
            piece.extend_from_slice(&self.line_of(Happened::Added, &text));
            if piece.len() >= PIECE {
                lines.put(std::mem::take(&mut piece).into()).await?;
            }
        }
        if self.initial == Some(true) && self.wants_bookmarks {
            piece.extend_from_slice(&self.bookmark(current, true));
        }
        if !piece.is_empty() {
            lines.put(piece.into()).await?;
        }
        ControlFlow::Continue(current)
    }

    /// What a change is to those who see only what the selector selects.
    fn line(&self, change: &Change) -> Option<Bytes> {
        let plain = self.selector == Selector::default() && self.namespace.is_empty();
        if plain && self.resource.group == self.resource.kind.group() {
            return Some(change.line.clone());
        }
        if !self.namespace.is_empty() && change.key.0 != self.namespace {
            return None;
        }
        let selects = |text: &Text| self.selector.selects(&text.attributes);
        let before = change.before.as_deref().is_some_and(selects);
        let after = change.happened != Happened::Deleted && selects(&change.after);
        let happened = match (before, after) {
            (false, false) => return None,
            (false, true) => Happened::Added,
            (true, true) => Happened::Modified,
            (true, false) => Happened::Deleted,
        };
        Some(self.line_of(happened, &change.after))
    }

    fn line_of(&self, happened: Happened, text: &Text) -> Bytes {
        if self.resource.group == self.resource.kind.group() {
            return [happened.line_start(self.resource).as_bytes(), text.end_of_line()].concat().into();
        }
        line(happened.name(), &converted(self.resource, text))
    }

    fn bookmark(&self, version: u64, ends_initial: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if ends_initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (kind, api_version) = (self.resource.kind.name(), self.resource.api_version());
        let mut object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        if self.resource.kind == Kind::Node {
            object["spec"] = json!({});
            object["status"] = empty_status();
        }
        line("BOOKMARK", &object)
    }
}

fn bookmarks(every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn error_line(failure: &Failure) -> Bytes {
    line("ERROR", &failure.status())
}

fn line(happened: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{happened}\",\"object\":{object}}}\n").into()
}

impl Lines<'_> {
    /// Says a line, or several, as the server's fault lets it.
    async fn put(&self, text: Bytes) -> ControlFlow<()> {
        let cut = match self.shared.fault_when_not_silent().await {
            Fault::Slow(by) => {
                tokio::time::sleep(by).await;
                false
            }
            Fault::Cut => true,
            _ => false,
        };
        let piece = if cut { text.slice(..text.len() / 2) } else { text };
        self.meter.add(piece.len());
        if self.out.send(Ok(piece)).await.is_err() {
            return ControlFlow::Break(());
        }
        if cut {
            // What is said before an error is said only once the connection has taken it.
            tokio::time::sleep(BREATH).await;
            let _ = self.out.send(Err(Cut)).await;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
