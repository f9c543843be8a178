//! What plugins ask for, counted: an ADD is several requests, from its reservation until its interface is up.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use podwire_attach::OwnerId;
use podwire_ipam::service::Op;
use podwire_overlay::telemetry::{Outcome, Telemetry, Verb};
use tokio::sync::watch;

/// How many ADDs are looked after at once. Those whose plugins died stay until then, or until they are old.
const AT_ONCE: usize = 4096;

/// An ADD that has not come to its end by then has died.
const OLD: Duration = Duration::from_secs(600);

/// Whether pods of this node may have addresses of its subnets, as its cluster's store is told: a node that has lost its
/// subnets takes others only when there are none.
pub(crate) struct Tenants {
    has_some: watch::Sender<bool>,
    /// Counts addresses that were given, to whichever pod.
    given: Cell<u64>,
}

impl Default for Tenants {
    /// There are some until somebody has looked.
    fn default() -> Self {
        Self { has_some: watch::channel(true).0, given: Cell::default() }
    }
}

impl Tenants {
    /// For the store.
    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.has_some.subscribe()
    }

    /// An address has been given.
    fn came(&self) {
        self.given.set(self.given.get().wrapping_add(1));
        self.set(true);
    }

    /// To be read before a look.
    pub(crate) fn given(&self) -> u64 {
        self.given.get()
    }

    /// What a look has found, which does not know of addresses that were given since.
    pub(crate) fn found(&self, given_before: u64, has_some: bool) {
        self.set(has_some || self.given.get() != given_before);
    }

    fn set(&self, has_some: bool) {
        self.has_some.send_if_modified(|had| std::mem::replace(had, has_some) != has_some);
    }
}

/// The counters, and the ADDs that are under way.
#[derive(Clone)]
pub(crate) struct Counts {
    telemetry: Telemetry,
    tenants: Rc<Tenants>,
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
    pub(crate) fn new(telemetry: Telemetry, tenants: Rc<Tenants>) -> Self {
        Self { telemetry, tenants, adds: Rc::default() }
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
            Counted::Reserve(owner, since) if is_ok => {
                // Before the plugin hears of it.
                self.tenants.came();
                self.note(owner, since);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_an_add_overtook_does_not_say_that_there_is_nobody() {
        let tenants = Tenants::default();
        let seen = tenants.subscribe();
        assert!(*seen.borrow(), "nobody has looked");
        tenants.found(tenants.given(), false);
        assert!(!*seen.borrow());
        let before = tenants.given();
        tenants.came();
        assert!(*seen.borrow());
        tenants.found(before, false);
        assert!(*seen.borrow());
        tenants.found(tenants.given(), false);
        assert!(!*seen.borrow());
    }
}
