//! What plugins ask for, counted: an ADD is several requests, from its reservation until its interface is up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use podwire_attach::OwnerId;
use podwire_ipam::service::Op;
use podwire_overlay::telemetry::{Outcome, Telemetry, Verb};

/// How many ADDs are looked after at once. Those whose plugins died stay until then, or until they are old.
const AT_ONCE: usize = 4096;

/// An ADD that has not come to its end by then has died.
const OLD: Duration = Duration::from_secs(600);

/// The counters, and the ADDs that are under way.
#[derive(Clone)]
pub(crate) struct Counts {
    telemetry: Telemetry,
    adds: Rc<RefCell<BTreeMap<OwnerId, Instant>>>,
}

/// What a request means for the counters.
pub(crate) enum Counted {
    Reserve(OwnerId, Instant),
    Attached(OwnerId),
    Cancel(OwnerId),
    Whole(Verb, Instant),
    Nothing,
}

impl Counts {
    pub(crate) fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, adds: Rc::default() }
    }

    /// A request has come.
    pub(crate) fn begin(&self, op: &Op) -> Counted {
        let now = Instant::now();
        match op {
            Op::Reserve(request) => Counted::Reserve(request.attachment.owner.id(), now),
            Op::Attached { owner, .. } => Counted::Attached(owner.id()),
            Op::Cancel { owner, .. } => Counted::Cancel(owner.id()),
            Op::Delete { .. } => Counted::Whole(Verb::del, now),
            Op::Gc { .. } => Counted::Whole(Verb::gc, now),
            _ => Counted::Nothing,
        }
    }

    /// It has been answered.
    pub(crate) fn end(&self, counted: Counted, is_ok: bool) {
        let telemetry = &self.telemetry;
        match counted {
            Counted::Reserve(owner, since) if is_ok => self.note(owner, since),
            // Nothing comes after it.
            Counted::Reserve(_, since) => telemetry.cni(Verb::add, Outcome::failed, Some(since.elapsed())),
            Counted::Attached(owner) => telemetry.cni(Verb::add, Outcome::of(is_ok), self.took(owner)),
            Counted::Cancel(owner) => telemetry.cni(Verb::add, Outcome::failed, self.took(owner)),
            Counted::Whole(verb, since) => {
                telemetry.cni(verb, Outcome::of(is_ok), Some(since.elapsed()));
            }
            Counted::Nothing => {}
        }
    }

    fn note(&self, owner: OwnerId, since: Instant) {
        let mut adds = self.adds.borrow_mut();
        if adds.len() >= AT_ONCE {
            adds.retain(|_, since| since.elapsed() < OLD);
        }
        if adds.len() < AT_ONCE {
            adds.insert(owner, since);
        }
    }

    fn took(&self, owner: OwnerId) -> Option<Duration> {
        self.adds.borrow_mut().remove(&owner).map(|since| since.elapsed())
    }
}
