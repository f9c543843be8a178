//! Leases that nobody ends: of pods that died with their node, their runtime or their netns.

use podwire_attach::NetworkId;

use super::release::deleting;
use super::{ADDING_MS, MISSING_MS, Pool};
use crate::{BootMillis, Change, GcPlan, Hold, Lease, LeaseState, Observation, Origin, Sight, SweepPlan};

impl Pool {
    /// Plans the passage to that boot (/proc/sys/kernel/random/boot_id); nothing if it is the current one.
    /// Interfaces do not outlive a boot, so leases of others end, and nothing needs to rest.
    pub fn new_boot(&self, boot: &str) -> Vec<Change> {
        if self.boot() == Some(boot) {
            return Vec::new();
        }
        let dead = |lease: &&Lease| lease.boot_id != boot;
        let live = |hold: Hold| match hold {
            Hold::Leased(id) => self.lease(id).is_some_and(|lease| lease.boot_id == boot),
            Hold::Resting(_) | Hold::Unknown(_) => false,
        };
        let leases = self.leases().filter(dead).map(|lease| Change::RemoveLease(lease.attachment.owner.id()));
        let holds = self.holds().filter(|(_, _, hold)| !live(*hold));
        leases
            .chain(holds.map(|(network, address, _)| Change::RemoveAddress(network, address)))
            .chain([Change::PutBoot(boot.to_owned())])
            .collect()
    }

    /// Plans what one look at the whole node comes to. A lease whose interface is missing in two looks that are
    /// [`MISSING_MS`] apart ends; one look alone may have fallen into an interface's replacement. While its ADD may be
    /// under way it is `ADDING_MS`.
    pub fn sweep(&self, seen: &Observation, now: BootMillis) -> SweepPlan {
        let mut plan = SweepPlan { changes: self.forget_rested(now).collect(), ..SweepPlan::default() };
        for lease in self.leases().filter(|lease| !seen.removing.contains(&lease.attachment.owner.id())) {
            match judge(lease, seen.of(lease), now) {
                Verdict::Keep => {}
                Verdict::Note(missing_since) => {
                    plan.changes.push(Change::PutLease(Box::new(Lease { missing_since, ..lease.clone() })));
                }
                Verdict::Release => {
                    plan.changes.extend(self.release(lease, now));
                    plan.released.push(lease.clone());
                }
                Verdict::Unfinished => plan.unfinished.push(lease.clone()),
            }
        }
        plan
    }

    /// Plans a GC of one network: `valid` are the (container, ifname) that its caller still knows, `runtime` is the
    /// program that calls.
    ///
    /// Two runtimes may share a network, and neither knows the other's pods. So a lease that another runtime made
    /// ends only if its interface is gone, and never while its ADD may be under way.
    pub fn gc(
        &self,
        network: &str,
        valid: &[(String, String)],
        runtime: Option<&str>,
        seen: &Observation,
    ) -> GcPlan {
        let id = NetworkId::of(network);
        let mut plan = GcPlan { changes: self.gc_pass(id).collect(), ..GcPlan::default() };
        let valid = valid.iter().map(|(container, ifname)| (container.as_str(), ifname.as_str())).collect();
        for lease in self.leases().filter(|lease| lease.attachment.owner.network == network) {
            if is_valid(lease, &valid) || seen.removing.contains(&lease.attachment.owner.id()) {
                continue;
            }
            if is_foreign(lease, runtime) {
                if seen.of(lease) != Sight::Gone {
                    plan.foreign.push(lease.clone());
                    continue;
                }
                if lease.state == LeaseState::Reserved {
                    continue;
                }
            }
            let (lease, changes) = deleting(lease);
            plan.changes.extend(changes);
            plan.remove.push(lease);
        }
        plan
    }

    /// One pass less for each address of unknown origin.
    fn gc_pass(&self, network: NetworkId) -> impl Iterator<Item = Change> {
        self.network_holds(network).filter_map(move |(address, hold)| match hold {
            Hold::Unknown(0 | 1) => Some(Change::RemoveAddress(network, address)),
            Hold::Unknown(passes) => Some(Change::PutAddress(network, address, Hold::Unknown(passes - 1))),
            Hold::Leased(_) | Hold::Resting(_) => None,
        })
    }
}

enum Verdict {
    Keep,
    /// Write when it was first missing, or that it is not.
    Note(Option<BootMillis>),
    Release,
    Unfinished,
}

fn judge(lease: &Lease, sight: Sight, now: BootMillis) -> Verdict {
    match (sight, lease.missing_since) {
        // DEL was asked for, and what it was to remove is gone: nothing to wait for.
        (Sight::Gone, _) if lease.state == LeaseState::Deleting => Verdict::Release,
        (_, _) if lease.state == LeaseState::Deleting => Verdict::Unfinished,
        (Sight::Gone, Some(since)) if since <= now => {
            let patience = if lease.state == LeaseState::Reserved { ADDING_MS } else { MISSING_MS };
            if now.0.saturating_sub(since.0) >= patience { Verdict::Release } else { Verdict::Keep }
        }
        // Also a time that lies ahead: it was written under another clock.
        (Sight::Gone, _) => Verdict::Note(Some(now)),
        (Sight::Present, Some(_)) => Verdict::Note(None),
        (Sight::Present, None) | (Sight::Unknown, _) => Verdict::Keep,
    }
}

fn is_valid(lease: &Lease, valid: &std::collections::BTreeSet<(&str, &str)>) -> bool {
    let owner = &lease.attachment.owner;
    if owner.ifname.is_empty() {
        // Imported from an old file, which does not name the interface.
        return valid
            .range((owner.container.as_str(), "")..)
            .next()
            .is_some_and(|(id, _)| *id == owner.container);
    }
    valid.contains(&(owner.container.as_str(), owner.ifname.as_str()))
}

/// Whether another runtime made it. A rebuilt lease does not say who did, so it counts as another's.
fn is_foreign(lease: &Lease, runtime: Option<&str>) -> bool {
    match &lease.attachment.runtime {
        Some(recorded) => runtime != Some(recorded.as_str()),
        None => lease.origin == Origin::Rebuilt,
    }
}
