//! ADDs between their reservation and their end, as far as rules go.
//!
//! A repair leaves the rules of a lease alone that is not yet `Attached`, and so whatever others have done to them. So it is
//! noted when a reservation was made, in the count of repairs; if there has been one by the time it is up, another
//! is made.

use std::collections::BTreeMap;

use podwire_attach::OwnerId;
use podwire_ipam::{LeaseState, Pool, may_have_rules};

use crate::rules::{Cause, Rules};

/// See the module.
pub(crate) struct Upcoming {
    pub(crate) rules: Rules,
    /// Generation, and the repairs' epoch then.
    reserved: BTreeMap<OwnerId, (u64, u64)>,
}

impl Upcoming {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, reserved: BTreeMap::new() }
    }

    /// A reservation has been made.
    pub(crate) fn reserved(&mut self, pool: &Pool, owner: OwnerId) {
        if let Some(lease) = pool.lease(owner).filter(|lease| may_have_rules(&lease.attachment)) {
            self.reserved.insert(owner, (lease.generation, self.rules.epoch().now()));
        }
    }

    /// Its ADD is at its end.
    pub(crate) fn came_up(&mut self, pool: &Pool, owner: OwnerId) {
        let then = self.reserved.remove(&owner);
        let Some(lease) = pool.lease(owner).filter(|lease| may_have_rules(&lease.attachment)) else { return };
        // Of an ADD that began before the agent nothing is known.
        let is_untouched = then.is_some_and(|(generation, epoch)| {
            generation == lease.generation && self.rules.epoch().is_still(epoch)
        });
        if !is_untouched {
            self.rules.changed(Cause::Attached);
        }
    }

    /// Forgets ADDs that ended without a word.
    pub(crate) fn forget_ended(&mut self, pool: &Pool) {
        self.reserved.retain(|owner, (generation, _)| {
            pool.lease(*owner)
                .is_some_and(|lease| lease.generation == *generation && lease.state == LeaseState::Reserved)
        });
    }
}
