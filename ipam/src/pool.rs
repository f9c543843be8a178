//! The state of all networks of one node in memory: who has which address.
//!
//! One rule stands above the others: an address is given to an owner only when no other owner can still have an
//! interface with it. So an address stays with its lease from the reservation on until DEL, GC or the sweep
//! knows that the interface is gone. Then it rests for a while, since connections, neighbour tables and DNS
//! answers of others outlive a pod.
//!
//! Every operation is a planner that takes `&self` and returns the changes to commit; [`Pool::apply`] alone
//! alters the state, after the commit, and also while the store is loaded. So memory is never ahead of the disk.

mod adopt;
mod ports;
mod release;
mod reserve;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

use podwire_attach::{NetworkId, Owner, OwnerId, Protocol, Role};

use crate::{BootMillis, Change, Ends, Hold, Lease, Origin, RangeSet, SetUsage};

/// How long a freed address rests where the configuration does not say, in milliseconds.
pub const DEFAULT_QUARANTINE_MS: u64 = 60_000;

/// The longest rest that can be configured, in milliseconds. The store forgets that an address rested when it is
/// over, or a range of 2^64 addresses would in time fill the disk.
pub const LONGEST_QUARANTINE_MS: u64 = 3_600_000;

/// How far apart two looks that miss an interface must be before its lease ends, in milliseconds.
pub const MISSING_MS: u64 = 60_000;

/// The same for a lease whose interface is being made. An ADD must not outlast it, for it would come up with an address
/// that is another's: this is longer than all its waits together.
pub(crate) const ADDING_MS: u64 = 600_000;

/// How many GC passes an address of unknown origin is kept.
pub const GC_PASSES: u8 = 2;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    leases: BTreeMap<OwnerId, Lease>,
    /// Ordered, so that the next free address is found from any place in a range.
    holds: BTreeMap<(NetworkId, IpAddr), Hold>,
    /// The `Resting` ones of `holds`, the longest-rested first.
    resting: BTreeSet<(BootMillis, NetworkId, IpAddr)>,
    /// Whose leases claim a port of the node, on whichever of its addresses.
    ports: BTreeMap<(Protocol, u16), BTreeSet<OwnerId>>,
    cursors: BTreeMap<(NetworkId, u32), IpAddr>,
    imported: BTreeSet<NetworkId>,
    generation: u64,
    boot: Option<String>,
}

/// How to take changes back; see [`Pool::apply_undoable`].
#[derive(Debug)]
#[must_use = "without it the changes cannot be taken back"]
pub struct Undo {
    previous: Vec<Previous>,
}

/// What stood where a change wrote.
#[derive(Debug)]
enum Previous {
    Lease(OwnerId, Option<Box<Lease>>),
    Address(NetworkId, IpAddr, Option<Hold>),
    Cursor(NetworkId, u32, Option<IpAddr>),
    Generation(u64),
    Imported(NetworkId, bool),
    Boot(Option<String>),
}

impl Pool {
    /// Makes a change that has been committed, or one that the store is loaded with.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutLease(lease) => self.set_lease(lease.attachment.owner.id(), Some(lease)),
            Change::RemoveLease(owner) => self.set_lease(owner, None),
            Change::PutAddress(network, address, hold) => self.set_hold(network, address, Some(hold)),
            Change::RemoveAddress(network, address) => self.set_hold(network, address, None),
            Change::PutCursor(network, set, address) => self.set_cursor(network, set, Some(address)),
            Change::PutGeneration(generation) => self.generation = generation,
            Change::PutImported(network) => self.set_imported(network, true),
            Change::PutBoot(boot) => self.boot = Some(boot),
        }
    }

    /// Makes changes in their order.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.apply(change);
        }
    }

    /// Makes changes ahead of their commit, so that the next operation can be planned on top of them and both be
    /// committed as one. If that fails, all are undone, the newest first.
    pub fn apply_undoable(&mut self, changes: impl IntoIterator<Item = Change>) -> Undo {
        let mut previous = Vec::new();
        for change in changes {
            previous.push(self.before(&change));
            self.apply(change);
        }
        Undo { previous }
    }

    /// Takes changes back, provided that those made after them have been taken back already.
    pub fn undo(&mut self, undo: Undo) {
        for previous in undo.previous.into_iter().rev() {
            match previous {
                Previous::Lease(owner, lease) => self.set_lease(owner, lease),
                Previous::Address(network, address, hold) => self.set_hold(network, address, hold),
                Previous::Cursor(network, set, address) => self.set_cursor(network, set, address),
                Previous::Generation(generation) => self.generation = generation,
                Previous::Imported(network, imported) => self.set_imported(network, imported),
                Previous::Boot(boot) => self.boot = boot,
            }
        }
    }

    fn before(&self, change: &Change) -> Previous {
        let lease = |owner| Previous::Lease(owner, self.leases.get(&owner).cloned().map(Box::new));
        match change {
            Change::PutLease(put) => lease(put.attachment.owner.id()),
            Change::RemoveLease(owner) => lease(*owner),
            Change::PutAddress(network, address, _) | Change::RemoveAddress(network, address) => {
                Previous::Address(*network, *address, self.hold(*network, *address))
            }
            Change::PutCursor(network, set, _) => {
                Previous::Cursor(*network, *set, self.cursor(*network, *set))
            }
            Change::PutGeneration(_) => Previous::Generation(self.generation),
            Change::PutImported(network) => Previous::Imported(*network, self.is_imported(*network)),
            Change::PutBoot(_) => Previous::Boot(self.boot.clone()),
        }
    }

    fn set_lease(&mut self, owner: OwnerId, lease: Option<Box<Lease>>) {
        if let Some(before) = self.leases.remove(&owner) {
            self.forget_ports(&before);
        }
        if let Some(lease) = lease {
            self.note_ports(&lease);
            self.leases.insert(owner, *lease);
        }
    }

    fn set_hold(&mut self, network: NetworkId, address: IpAddr, hold: Option<Hold>) {
        let key = (network, address);
        let before = match hold {
            Some(hold) => self.holds.insert(key, hold),
            None => self.holds.remove(&key),
        };
        if let Some(Hold::Resting(since)) = before {
            self.resting.remove(&(since, network, address));
        }
        if let Some(Hold::Resting(since)) = hold {
            self.resting.insert((since, network, address));
        }
    }

    fn set_cursor(&mut self, network: NetworkId, set: u32, address: Option<IpAddr>) {
        match address {
            Some(address) => self.cursors.insert((network, set), address),
            None => self.cursors.remove(&(network, set)),
        };
    }

    fn set_imported(&mut self, network: NetworkId, imported: bool) {
        match imported {
            true => self.imported.insert(network),
            false => self.imported.remove(&network),
        };
    }

    /// An owner's lease, for CHECK and DEL. One that was imported from an old host-local file, which does not name
    /// the interface, is the lease of each interface of its container, as it is for host-local.
    pub fn find(&self, owner: &Owner) -> Option<&Lease> {
        self.lease(owner.id()).or_else(|| {
            let unnamed = Owner { ifname: String::new(), ..owner.clone() };
            self.lease(unnamed.id()).filter(|lease| lease.origin == Origin::HostLocal)
        })
    }

    /// The leases that a DEL of this interface ends, whichever role its owner is named in.
    pub fn ended_by(&self, owner: &Owner, ends: Ends) -> impl Iterator<Item = &Lease> + use<'_> {
        let main = self.find(&owner.with_role(Role::Main));
        let is_of_ours = |lease: &&Lease| {
            ends == Ends::Addresses || lease.attachment.link.is_some() || lease.origin == Origin::HostLocal
        };
        let chained = match ends {
            Ends::Interface => self.lease(owner.with_role(Role::Chained).id()),
            Ends::Addresses => None,
        };
        chained.into_iter().chain(main.filter(is_of_ours))
    }

    /// The lease of exactly that owner.
    pub fn lease(&self, owner: OwnerId) -> Option<&Lease> {
        self.leases.get(&owner)
    }

    /// All leases of all networks, by their owners' ids.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Those whose owners' ids come after that one.
    pub(crate) fn leases_after(&self, after: Option<OwnerId>) -> impl Iterator<Item = &Lease> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.leases.range((start, Bound::Unbounded)).map(|(_, lease)| lease)
    }

    /// Why an address is not free; `None` if it is.
    pub fn hold(&self, network: NetworkId, address: IpAddr) -> Option<Hold> {
        self.holds.get(&(network, address)).copied()
    }

    /// All addresses that are not free, by network and address.
    pub fn holds(&self) -> impl Iterator<Item = (NetworkId, IpAddr, Hold)> {
        self.holds.iter().map(|((network, address), hold)| (*network, *address, *hold))
    }

    /// The last address given from a range set.
    pub fn cursor(&self, network: NetworkId, set: u32) -> Option<IpAddr> {
        self.cursors.get(&(network, set)).copied()
    }

    /// The last addresses given from the range sets of a network, by the set's number.
    pub fn cursors(&self, network: NetworkId) -> impl Iterator<Item = (u32, IpAddr)> {
        self.cursors.range((network, 0)..=(network, u32::MAX)).map(|((_, set), address)| (*set, *address))
    }

    /// The generation of the newest reservation; 0 if there was none.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The boot that the leases and resting times belong to; `None` in a new store.
    pub fn boot(&self) -> Option<&str> {
        self.boot.as_deref()
    }

    /// Whether host-local's directory of that network has been read, or was found missing.
    pub fn is_imported(&self, network: NetworkId) -> bool {
        self.imported.contains(&network)
    }

    /// How much of each range set of a network is in use.
    pub fn usage(&self, network: &str, sets: &[RangeSet]) -> Vec<SetUsage> {
        let network = NetworkId::of(network);
        let gateways = gateways(sets);
        sets.iter().map(|set| self.set_usage(network, set, &gateways)).collect()
    }

    fn set_usage(&self, network: NetworkId, set: &RangeSet, gateways: &BTreeSet<IpAddr>) -> SetUsage {
        let size = set.ranges().iter().fold(0_u128, |sum, range| sum.saturating_add(range.size()));
        let inside = gateways.iter().filter(|gateway| set.contains(**gateway)).count();
        let total = size.saturating_sub(inside as u128);
        let mut usage = SetUsage {
            ranges: set.to_string(),
            total: u64::try_from(total).unwrap_or(u64::MAX),
            leased: 0,
            resting: 0,
            unknown: 0,
        };
        for range in set.ranges() {
            for ((_, address), hold) in self.holds.range((network, range.start())..=(network, range.end())) {
                if gateways.contains(address) {
                    // Somebody's from the time when another address was the gateway; it is not in `total`.
                    continue;
                }
                match hold {
                    Hold::Leased(_) => usage.leased += 1,
                    Hold::Resting(_) => usage.resting += 1,
                    Hold::Unknown(_) => usage.unknown += 1,
                }
            }
        }
        usage
    }

    /// What is wrong with the state: nothing, unless the store was damaged. See [`Pool::mend`].
    pub fn invariants(&self) -> Vec<String> {
        self.mend().notices
    }

    fn network_holds(&self, network: NetworkId) -> impl Iterator<Item = (IpAddr, Hold)> {
        let first = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let last = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));
        self.holds.range((network, first)..=(network, last)).map(|((_, address), hold)| (*address, *hold))
    }
}

/// The gateways of all ranges. None of them is given out, not even from another range or set: the bridge may
/// have each of them.
fn gateways(sets: &[RangeSet]) -> BTreeSet<IpAddr> {
    sets.iter().flat_map(RangeSet::ranges).map(crate::Range::gateway).collect()
}
