//! Reservation: which addresses an owner gets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podwire_attach::{Attachment, NetworkId, OwnerId, PodAddress, PortMapping};

use super::ports::Takeover;
use super::{LONGEST_QUARANTINE_MS, Pool, gateways};
use crate::range::successor;
use crate::{
    BootMillis, Change, Grant, Hold, Lease, LeaseState, Origin, RangeSet, Refusal, Reserve, Sights,
    check_sets,
};

/// How many addresses one reservation at most forgets to have rested: a transaction stays small.
const FORGET_AT_ONCE: usize = 4;

/// One reservation being planned.
struct Plan<'a> {
    pool: &'a Pool,
    network: NetworkId,
    owner: OwnerId,
    /// The owner's lease, if it has one. Not an imported one without an interface's name: this may be another
    /// interface of that container, and the first one may live.
    earlier: Option<&'a Lease>,
    gateways: BTreeSet<IpAddr>,
    now: BootMillis,
    quarantine_ms: u64,
    given: Vec<Given>,
    taken: Takeover,
    notices: Vec<String>,
}

/// An address chosen from one set.
struct Given {
    address: PodAddress,
    /// Newly taken, not the owner's already.
    new: bool,
}

impl Pool {
    /// Plans to give an owner one address from each range set.
    ///
    /// An owner that has a lease keeps its addresses as far as they are still in the sets and no others are asked
    /// for: the caller may have lost the first answer, or make the interface anew. The addresses that it does not keep
    /// stay held until the new interface is up. The same goes for its host ports.
    ///
    /// `seen` tells of the leases of [`Pool::port_rivals`] whether they live; it may be empty if there are none.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn reserve(
        &self,
        request: &Reserve,
        seen: &Sights,
        now: BootMillis,
    ) -> Result<(Grant, Vec<Change>), Refusal> {
        let boot = self.boot.clone().ok_or(Refusal::BootUnknown)?;
        check_sets(&request.sets).map_err(|error| Refusal::Sets { reason: error.to_string() })?;
        let taken = self.take_ports(&request.attachment, seen, now)?;
        let owner = &request.attachment.owner;
        let mut plan = Plan {
            pool: self,
            network: NetworkId::of(&owner.network),
            owner: owner.id(),
            earlier: self.lease(owner.id()),
            gateways: gateways(&request.sets),
            now,
            quarantine_ms: request.quarantine_ms.min(LONGEST_QUARANTINE_MS),
            given: Vec::new(),
            taken,
            notices: Vec::new(),
        };
        let requested = plan.assign(&request.sets, &request.requested)?;
        for (index, set) in request.sets.iter().enumerate() {
            let asked = requested.iter().find(|(of, _)| *of == index).map(|(_, address)| *address);
            let given = plan.choose(index, set, asked)?;
            plan.given.push(given);
        }
        Ok(plan.finish(request, boot))
    }
}

impl Plan<'_> {
    /// Finds for each requested address the set that it is in. One that is asked for twice counts once: it may
    /// stand in CNI_ARGS and in the runtime's configuration.
    fn assign(&self, sets: &[RangeSet], requested: &[IpAddr]) -> Result<Vec<(usize, IpAddr)>, Refusal> {
        let mut assigned: Vec<(usize, IpAddr)> = Vec::new();
        for address in requested.iter().map(IpAddr::to_canonical) {
            if assigned.iter().any(|(_, other)| *other == address) {
                continue;
            }
            if let Some(range) =
                sets.iter().flat_map(RangeSet::ranges).find(|range| range.gateway() == address)
            {
                return Err(Refusal::Gateway { address, range: range.to_string() });
            }
            let Some((index, set)) = sets.iter().enumerate().find(|(_, set)| set.contains(address)) else {
                let ranges: Vec<String> = sets.iter().map(RangeSet::to_string).collect();
                let ranges = if ranges.is_empty() { "(none)".to_owned() } else { ranges.join(" or ") };
                return Err(Refusal::OutOfRange { address, ranges });
            };
            if let Some((_, first)) = assigned.iter().find(|(of, _)| *of == index) {
                return Err(Refusal::SeveralForOneSet {
                    first: *first,
                    second: address,
                    ranges: set.to_string(),
                });
            }
            assigned.push((index, address));
        }
        Ok(assigned)
    }

    fn choose(&mut self, index: usize, set: &RangeSet, asked: Option<IpAddr>) -> Result<Given, Refusal> {
        let full = || Refusal::Full { ranges: set.to_string() };
        let (address, new) = if let Some(address) = asked {
            (address, self.may_take(address)?)
        } else if let Some(address) = self.kept(set) {
            (address, false)
        } else {
            let last = self.pool.cursor(self.network, u32::try_from(index).unwrap_or(u32::MAX));
            (self.next(set, last).ok_or_else(full)?, true)
        };
        let range = set.range_for(address).ok_or_else(full)?;
        Ok(Given { address: range.pod_address(address), new })
    }

    /// Whether a requested address would be new to the owner.
    fn may_take(&self, address: IpAddr) -> Result<bool, Refusal> {
        match self.pool.hold(self.network, address) {
            None | Some(Hold::Resting(_)) => Ok(true),
            Some(Hold::Leased(id)) if id == self.owner && self.earlier.is_some() => Ok(false),
            Some(Hold::Leased(id)) => Err(match self.pool.lease(id) {
                Some(lease) => Refusal::Taken { address, owner: lease.attachment.owner.clone() },
                None => Refusal::Held { address },
            }),
            Some(Hold::Unknown(_)) => Err(Refusal::Held { address }),
        }
    }

    /// The address of the owner's lease that is still good for this set.
    fn kept(&self, set: &RangeSet) -> Option<IpAddr> {
        self.earlier?.held().find(|address| {
            set.contains(*address)
                && !self.gateways.contains(address)
                && self.pool.hold(self.network, *address) == Some(Hold::Leased(self.owner))
        })
    }

    /// The next free address after `last`, else the one that has rested longest.
    ///
    /// Looks at the held addresses behind `last` one after another until a gap shows, so that the cost is the
    /// length of one run of held addresses, not the size of the range or of the pool.
    fn next(&mut self, set: &RangeSet, last: Option<IpAddr>) -> Option<IpAddr> {
        let mut longest: Option<(BootMillis, IpAddr)> = None;
        for (start, end) in set.round(last) {
            let mut holds = self.pool.holds.range((self.network, start)..=(self.network, end)).peekable();
            let mut at = Some(start);
            while let Some(candidate) = at.filter(|address| *address <= end) {
                at = successor(candidate);
                let hold = holds.next_if(|((_, address), _)| *address == candidate).map(|(_, hold)| *hold);
                let since = match hold {
                    Some(Hold::Leased(_) | Hold::Unknown(_)) => continue,
                    Some(Hold::Resting(since)) => Some(since),
                    None => None,
                };
                if self.gateways.contains(&candidate) {
                    continue;
                }
                match since {
                    Some(since) if self.rested_ms(since) < self.quarantine_ms => {
                        let this = (since, candidate);
                        longest = Some(longest.map_or(this, |other| other.min(this)));
                    }
                    Some(_) | None => return Some(candidate),
                }
            }
        }
        let (since, address) = longest?;
        let rested = self.rested_ms(since) / 1000;
        self.notices.push(format!(
            "range set {set} has no fresh address left: {address} is given again after {rested} s"
        ));
        Some(address)
    }

    /// A time that lies ahead has not rested at all: it was written under another clock.
    fn rested_ms(&self, since: BootMillis) -> u64 {
        self.now.0.saturating_sub(since.0)
    }

    fn finish(mut self, request: &Reserve, boot: String) -> (Grant, Vec<Change>) {
        let generation = self.pool.generation.saturating_add(1);
        let addresses: Vec<PodAddress> = self.given.iter().map(|given| given.address).collect();
        let former = self.former(&addresses);
        let former_ports = self.former_ports(&request.attachment);
        let rested = |address: &PodAddress| {
            matches!(self.pool.hold(self.network, address.address.ip()), Some(Hold::Resting(_)))
        };
        let reused = addresses.iter().any(rested);
        let mut changes: Vec<Change> = self.pool.forget_rested(self.now).take(FORGET_AT_ONCE).collect();
        changes.append(&mut self.taken.changes);
        self.notices.append(&mut self.taken.notices);
        for (index, given) in self.given.iter().enumerate() {
            let address = given.address.address.ip();
            if given.new {
                changes.push(Change::PutAddress(self.network, address, Hold::Leased(self.owner)));
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                changes.push(Change::PutCursor(self.network, index, address));
            }
        }
        let renewed = self.earlier.is_some_and(|lease| lease.attachment.addresses == addresses);
        if let Some(lease) = self.earlier.filter(|_| !renewed) {
            self.notices.push(moved(&lease.attachment, &addresses));
        }
        changes.push(Change::PutLease(Box::new(Lease {
            attachment: Attachment { addresses: addresses.clone(), ..request.attachment.clone() },
            state: LeaseState::Reserved,
            origin: Origin::Add,
            generation,
            boot_id: boot,
            succeeds: self.earlier.is_some(),
            former,
            former_ports,
            missing_since: None,
        })));
        changes.push(Change::PutGeneration(generation));
        let taken_over = self.taken.owners;
        (Grant { generation, addresses, renewed, reused, taken_over, notices: self.notices }, changes)
    }

    /// What the owner holds and does not get again.
    fn former(&self, addresses: &[PodAddress]) -> Vec<IpAddr> {
        let held: BTreeSet<IpAddr> = self.earlier.iter().flat_map(|lease| lease.held()).collect();
        held.into_iter().filter(|held| !addresses.iter().any(|given| given.address.ip() == *held)).collect()
    }

    /// The same for host ports.
    fn former_ports(&self, attachment: &Attachment) -> Vec<PortMapping> {
        let asked = attachment.ports();
        let held: BTreeSet<PortMapping> = self.earlier.iter().flat_map(|lease| lease.ports()).collect();
        held.into_iter().filter(|held| !asked.contains(held)).collect()
    }
}

fn moved(earlier: &Attachment, addresses: &[PodAddress]) -> String {
    let list = |addresses: &[PodAddress]| match addresses {
        [] => "no address".to_owned(),
        some => some.iter().map(|address| address.address.to_string()).collect::<Vec<_>>().join(", "),
    };
    format!(
        "{} had {} and gets {}: the network's ranges or the requested addresses have changed",
        earlier.owner,
        list(&earlier.addresses),
        list(addresses)
    )
}

impl Pool {
    /// The addresses whose rest no configuration asks for any more, the longest-rested first.
    pub(super) fn forget_rested(&self, now: BootMillis) -> impl Iterator<Item = Change> {
        self.resting
            .iter()
            .take_while(move |(since, _, _)| now.0.saturating_sub(since.0) > LONGEST_QUARANTINE_MS)
            .map(|(_, network, address)| Change::RemoveAddress(*network, *address))
    }
}
