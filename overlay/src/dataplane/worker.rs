//! The thread: events in, passes, reports out.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_kernel::events::{Caused, Events, Topics};
use podwire_kernel::nft::{NftEvent, NftEvents};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::filter::TABLE;
use super::pass::{Dataplane, Done};
use super::relevance::{cause, needs_entries};
use super::{Message, Report, Settings, peers};
use crate::cluster::Vtep;
use crate::controller::{Action, Cause, Controller, Event, Known, Outcome, Pass};
use crate::store::Announcement;

/// How long a stream of events that broke is left alone before another is opened.
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// Serves until told to stop, or nobody is left to tell.
pub(super) fn run(
    settings: Settings,
    messages: UnboundedReceiver<Message>,
    reports: UnboundedSender<Report>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the overlay's thread cannot start");
            return;
        }
    };
    let own = settings.node.clone();
    let mut worker = Worker {
        own,
        dataplane: Dataplane::new(settings),
        messages,
        reports,
        ears: Ears::default(),
        began: Instant::now(),
        behind: None,
        last: None,
    };
    runtime.block_on(worker.run());
}

struct Worker {
    own: String,
    dataplane: Dataplane,
    messages: UnboundedReceiver<Message>,
    reports: UnboundedSender<Report>,
    ears: Ears,
    began: Instant,
    /// What came right behind an input.
    behind: Option<Message>,
    /// What was last announced, for as long as the kernel cannot be read.
    last: Option<Announcement>,
}

/// What is heard while nothing has to be done.
enum Heard {
    Message(Option<Message>),
    Kernel(podwire_kernel::Result<Caused>),
    Filter(podwire_kernel::Result<NftEvent>),
    Nothing,
}

impl Worker {
    async fn run(&mut self) {
        // Before the first look: what changes after it is heard.
        self.ears.open();
        let mut controller = Controller::new(Duration::ZERO);
        let mut event = Event::Tick;
        loop {
            match controller.handle(event, self.now()) {
                Action::Run(pass) => {
                    let begun = Instant::now();
                    let messages = &self.messages;
                    let done = self.dataplane.pass(&pass, &|| !messages.is_empty());
                    let outcome = Outcome {
                        operations: done.count(),
                        failures: done.failures.len(),
                        was_too_much: done.was_too_much,
                        was_given_up: done.was_given_up,
                        found: done.found(),
                    };
                    if !outcome.was_too_much && !outcome.was_given_up {
                        self.report(&pass, done, begun.elapsed());
                        self.dataplane.tidy();
                    }
                    event = Event::Done { outcome, jitter: rand::random() };
                }
                Action::Wait(until) => event = self.wait(until).await,
                Action::End => return,
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What happens next, until that moment at most.
    async fn wait(&mut self, until: Duration) -> Event {
        if let Some(message) = self.behind.take()
            && let Some(event) = self.take(message)
        {
            return event;
        }
        loop {
            let deadline = tokio::time::Instant::from_std(self.began + until);
            let heard = tokio::select! {
                biased;
                message = self.messages.recv() => Heard::Message(message),
                () = tokio::time::sleep_until(deadline) => Heard::Nothing,
                heard = self.ears.next() => heard,
            };
            match heard {
                Heard::Nothing => return Event::Tick,
                Heard::Message(None) => return Event::Shutdown,
                Heard::Message(Some(message)) => {
                    if let Some(event) = self.take(message) {
                        return event;
                    }
                }
                Heard::Kernel(Ok(caused)) => {
                    let found =
                        self.dataplane.with_ours(needs_entries(&caused.event), |ours| cause(&caused, ours));
                    if let Some(cause) = found {
                        tracing::trace!(?caused, %cause, "a change by somebody else");
                        return Event::Changed(cause);
                    }
                }
                Heard::Filter(Ok(event)) => {
                    if let Some(cause) = self.ears.transaction.take(&event) {
                        return Event::Changed(cause);
                    }
                }
                Heard::Kernel(Err(error)) | Heard::Filter(Err(error)) => {
                    tracing::warn!(%error, "a stream of the kernel's events broke; opening another");
                    tokio::time::sleep(REOPEN_AFTER).await;
                    self.ears.open();
                    return Event::Changed(Cause::Overrun);
                }
            }
        }
    }

    fn take(&mut self, message: Message) -> Option<Event> {
        match message {
            Message::Input(input, at) => {
                let mut newest = (input, at);
                // Of several the last is what counts; what else was sent behind them is heard next.
                while let Ok(next) = self.messages.try_recv() {
                    match next {
                        // The convergence is that of the first.
                        Message::Input(input, _) => newest.0 = input,
                        // An end goes before everything.
                        Message::Stop => return Some(Event::Shutdown),
                        other => {
                            self.behind = Some(other);
                            break;
                        }
                    }
                }
                let live = newest.0.live;
                self.dataplane.learn(*newest.0);
                Some(Event::Wish { live, since: newest.1.saturating_duration_since(self.began) })
            }
            Message::Check => Some(Event::Changed(Cause::Asked)),
            Message::Ping(answer) => {
                let _ = answer.send(());
                None
            }
            Message::Peers(answer) => {
                let Dataplane { desired, input, underlay, broken, .. } = &self.dataplane;
                let problems = self.dataplane.problems();
                let peers =
                    peers::peers(&self.own, desired.as_deref(), input.as_ref(), underlay, &problems, broken);
                let _ = answer.send(peers);
                None
            }
            Message::Stop => Some(Event::Shutdown),
        }
    }

    fn report(&mut self, pass: &Pass, done: Done, took: Duration) {
        let (count, found) = (done.count(), done.found());
        let Done { operations, failures, lacking, .. } = done;
        let repaired = count.saturating_sub(failures.len());
        let repairs: Vec<_> = match pass.repairs(found) {
            Some(cause) if repaired > 0 => vec![(cause, repaired)],
            _ => Vec::new(),
        };
        self.log(pass, &operations, &failures, took);
        let is_known = pass.known != Known::Nothing;
        let in_sync = is_known && failures.is_empty() && !self.dataplane.is_refused();
        let is_event = !pass
            .causes
            .iter()
            .all(|cause| matches!(cause, Cause::Start | Cause::Retry | Cause::Time | Cause::Asked));
        let changed = count > 0 || pass.causes.contains(&Cause::Wish);
        let convergence = (is_event && changed && failures.is_empty() && is_known)
            .then(|| self.now().saturating_sub(pass.since));
        let dataplane = &self.dataplane;
        let desired = dataplane.desired.as_deref().filter(|_| is_known);
        let could_look = !failures.iter().any(|failure| failure.kind == "look");
        let announcement = match desired {
            Some(desired) if could_look => {
                let mut announcement = desired.announcement.clone();
                let is_missing = |vtep: &Vtep| {
                    let mut missing = lacking.iter().chain(&dataplane.barred);
                    missing.any(|id| id.encapsulation == vtep.encapsulation)
                };
                announcement.receives.retain(|vtep| !is_missing(vtep));
                announcement.sends = announcement.sends.filter(|_| !announcement.receives.is_empty());
                announcement
            }
            None if could_look => Announcement {
                addresses: dataplane.underlay.links.iter().map(|link| link.address).collect(),
                mtu: dataplane.underlay.links.iter().map(|link| link.mtu).min(),
                ..Announcement::default()
            },
            _ => self.last.clone().unwrap_or_default(),
        };
        let report = Report {
            number: dataplane.input.as_ref().filter(|_| is_known).map_or(0, |input| input.number),
            causes: pass.causes.clone(),
            full: pass.full,
            took,
            convergence,
            operations,
            failures,
            repairs,
            problems: dataplane.problems(),
            underlay: Arc::clone(&dataplane.underlay),
            desired: dataplane.desired.clone().filter(|_| is_known),
            announcement: announcement.clone(),
            pods: desired.map(|desired| desired.pods.clone()),
            counts: peers::counts(desired, dataplane.input.as_ref(), dataplane.broken.len()),
            devices: peers::devices(desired),
            barred: dataplane.barred().filter(|_| is_known),
            in_sync,
        };
        self.last = Some(announcement);
        // An agent that is about to end listens no more.
        let _ = self.reports.send(report);
    }

    fn log(
        &self,
        pass: &Pass,
        operations: &BTreeMap<&'static str, usize>,
        failures: &[super::Failure],
        took: Duration,
    ) {
        let ms = took.as_millis();
        let because = pass.causes.iter().map(|cause| cause.name()).collect::<Vec<_>>().join(", ");
        if !operations.is_empty() {
            let text = operations.iter().map(|(kind, count)| format!("{kind} {count}"));
            let done = text.collect::<Vec<_>>().join(", ");
            match pass.repairs(None) {
                Some(_) => tracing::warn!(because, done, ms, "put back what somebody else had changed"),
                None => tracing::info!(because, done, ms, "the node's network is changed"),
            }
        }
        const FEW: usize = 5;
        for failure in failures.iter().take(FEW) {
            tracing::error!(
                because,
                operation = failure.operation,
                error = failure.error,
                node = failure.peer,
                "failed; it is tried again"
            );
        }
        if failures.len() > FEW {
            tracing::error!(because, "and {} more operations failed", failures.len() - FEW);
        }
    }
}

/// The streams of events.
#[derive(Default)]
struct Ears {
    kernel: Option<Events>,
    filter: Option<NftEvents>,
    transaction: Transaction,
}

impl Ears {
    /// Opens what is not open, or has broken.
    fn open(&mut self) {
        self.kernel = Events::open(Topics::ALL)
            .inspect_err(|error| tracing::error!(%error, "cannot hear what changes; looking every 10 s"))
            .ok();
        self.filter = NftEvents::open()
            .inspect_err(|error| tracing::warn!(%error, "cannot hear changes of the packet filter"))
            .ok();
        self.transaction = Transaction::default();
    }

    async fn next(&mut self) -> Heard {
        let kernel = async {
            match &mut self.kernel {
                Some(events) => events.next_caused().await,
                None => pending().await,
            }
        };
        let filter = async {
            match &mut self.filter {
                Some(events) => events.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            caused = kernel => Heard::Kernel(caused),
            event = filter => Heard::Filter(event),
        }
    }
}

/// Whether a transaction of the packet filter has touched our table; its end says whose it was.
#[derive(Debug, Default)]
struct Transaction {
    is_ours: bool,
}

impl Transaction {
    fn take(&mut self, event: &NftEvent) -> Option<Cause> {
        match event {
            NftEvent::Changed(change) => {
                self.is_ours |= change.family == TABLE.family && change.table == TABLE.name;
                None
            }
            NftEvent::Generation(by) => {
                let is_ours = std::mem::take(&mut self.is_ours);
                (is_ours && !by.process.starts_with("podwire")).then_some(Cause::Filter)
            }
            NftEvent::Overrun => Some(Cause::Overrun),
        }
    }
}
