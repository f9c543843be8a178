//! Records that did not come about by our own ADD: of host-local, of the links after the store was lost, of a
//! damaged store.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podwire_attach::{Attachment, NetworkId, Owner, OwnerId};

use super::{GC_PASSES, Pool};
use crate::{Adoption, BootMillis, Change, Hold, Lease, LeaseState, Observation, Origin, Sight};

impl Pool {
    /// Plans to take over a network from host-local: its leases and the last address given from each range set.
    /// Attachments of one owner are one lease. Ends with the record that the network has been imported.
    /// [`Pool::new_boot`] must have been applied.
    pub fn import(&self, network: &str, attachments: &[Attachment], cursors: &[(u32, IpAddr)]) -> Adoption {
        let id = NetworkId::of(network);
        let mut adopted =
            self.adopt(attachments.iter().filter(|a| a.owner.network == network), Origin::HostLocal);
        adopted
            .changes
            .extend(cursors.iter().map(|(set, last)| Change::PutCursor(id, *set, last.to_canonical())));
        adopted.changes.push(Change::PutImported(id));
        adopted
    }

    /// Plans to take over what links and cached results tell after the store was lost. Addresses that are in use
    /// by `unknown` owners are kept for [`GC_PASSES`] GC passes. [`Pool::new_boot`] must have been applied.
    pub fn rebuilt(&self, attachments: &[Attachment], unknown: &[(NetworkId, IpAddr)]) -> Adoption {
        let mut adopted = self.adopt(attachments.iter(), Origin::Rebuilt);
        let taken: BTreeSet<(NetworkId, IpAddr)> = adopted
            .changes
            .iter()
            .filter_map(|change| match change {
                Change::PutAddress(network, address, _) => Some((*network, *address)),
                _ => None,
            })
            .collect();
        let unknown: BTreeSet<_> =
            unknown.iter().map(|(network, address)| (*network, address.to_canonical())).collect();
        adopted.changes.extend(
            unknown
                .into_iter()
                .filter(|key| !taken.contains(key) && !matches!(self.holds.get(key), Some(Hold::Leased(_))))
                .map(|(network, address)| Change::PutAddress(network, address, Hold::Unknown(GC_PASSES))),
        );
        adopted
    }

    /// Plans the end of leases whose interface is gone while `attachments` or interfaces of `unknown` owners, none of
    /// which has a lease, have one of their addresses: the store is older than those, and what it says of the address
    /// is past. To be applied before [`Pool::rebuilt`] of the same.
    pub fn give_up(
        &self,
        attachments: &[Attachment],
        unknown: &[(NetworkId, IpAddr)],
        seen: &Observation,
        now: BootMillis,
    ) -> Adoption {
        let claimed = attachments.iter().flat_map(|attachment| {
            let network = NetworkId::of(&attachment.owner.network);
            attachment.addresses.iter().map(move |address| (network, address.address.ip()))
        });
        let past: BTreeSet<OwnerId> = claimed
            .chain(unknown.iter().copied())
            .filter_map(|(network, address)| match self.hold(network, address.to_canonical()) {
                Some(Hold::Leased(id)) => Some(id),
                _ => None,
            })
            .collect();
        let mut given_up = Adoption::default();
        for lease in past.into_iter().filter_map(|id| self.lease(id)) {
            if seen.of(lease) == Sight::Gone {
                given_up.changes.extend(self.release(lease, now));
                given_up.notices.push(format!(
                    "{} has no interface, and another interface has an address of its lease, which has been ended",
                    lease.attachment.owner
                ));
            }
        }
        given_up
    }

    fn adopt<'a>(&self, attachments: impl Iterator<Item = &'a Attachment>, origin: Origin) -> Adoption {
        let mut adopted = Adoption::default();
        let mut leases: BTreeMap<OwnerId, Lease> = BTreeMap::new();
        let mut taken: BTreeMap<(NetworkId, IpAddr), Owner> = BTreeMap::new();
        let mut generation = self.generation;
        for attachment in attachments {
            let owner = &attachment.owner;
            let (id, network) = (owner.id(), NetworkId::of(&owner.network));
            if self.lease(id).is_some() {
                adopted.notices.push(format!("{owner} has a lease already, which stays as it is"));
                continue;
            }
            let mut addresses = Vec::new();
            for address in &attachment.addresses {
                let ip = address.address.ip();
                let holder = match self.hold(network, ip) {
                    Some(Hold::Leased(other)) => Some(self.lease(other).map(|lease| &lease.attachment.owner)),
                    _ => taken.get(&(network, ip)).map(Some),
                };
                match holder {
                    None => {
                        taken.insert((network, ip), owner.clone());
                        adopted.changes.push(Change::PutAddress(network, ip, Hold::Leased(id)));
                        addresses.push(*address);
                    }
                    Some(Some(holder)) if holder == owner => {}
                    Some(holder) => {
                        let holder = holder.map_or_else(|| "an unknown owner".to_owned(), Owner::to_string);
                        adopted.notices.push(format!("{ip} is claimed by {owner} but belongs to {holder}"));
                    }
                }
            }
            match leases.entry(id) {
                Entry::Occupied(mut lease) => lease.get_mut().attachment.addresses.extend(addresses),
                // host-local knows of nothing but addresses; a link without one is an attachment still.
                Entry::Vacant(_) if addresses.is_empty() && origin == Origin::HostLocal => {}
                Entry::Vacant(place) => {
                    generation = generation.saturating_add(1);
                    place.insert(Lease {
                        attachment: Attachment { addresses, ..attachment.clone() },
                        state: LeaseState::Attached,
                        origin,
                        generation,
                        boot_id: self.boot.clone().unwrap_or_default(),
                        succeeds: false,
                        former: Vec::new(),
                        former_ports: Vec::new(),
                        missing_since: None,
                    });
                }
            }
        }
        adopted.changes.extend(leases.into_values().map(|lease| Change::PutLease(Box::new(lease))));
        if generation != self.generation {
            adopted.changes.push(Change::PutGeneration(generation));
        }
        adopted
    }

    /// Plans what makes a damaged store consistent, with a notice for each fault: normally nothing. An address
    /// is never freed by it: one whose lease is lost is kept as one of unknown origin.
    pub fn mend(&self) -> Adoption {
        let mut mended = Adoption::default();
        let mut claimed: BTreeMap<(NetworkId, IpAddr), OwnerId> = BTreeMap::new();
        // Whom an address says that it belongs to has the first claim.
        for lease in self.leases() {
            let (network, id) = key(lease);
            for address in
                lease.held().filter(|address| self.hold(network, *address) == Some(Hold::Leased(id)))
            {
                claimed.insert((network, address), id);
            }
        }
        for lease in self.leases() {
            self.mend_lease(lease, &mut claimed, &mut mended);
        }
        for (network, address, hold) in self.holds() {
            if matches!(hold, Hold::Leased(_)) && !claimed.contains_key(&(network, address)) {
                mended
                    .notices
                    .push(format!("{address} of network {network} is leased to an owner without a lease"));
                mended.changes.push(Change::PutAddress(network, address, Hold::Unknown(GC_PASSES)));
            }
        }
        let newest = self.leases().map(|lease| lease.generation).max().unwrap_or(0);
        if newest > self.generation {
            mended.notices.push(format!("generation {} is older than a lease of {newest}", self.generation));
            mended.changes.push(Change::PutGeneration(newest));
        }
        mended
    }

    fn mend_lease(
        &self,
        lease: &Lease,
        claimed: &mut BTreeMap<(NetworkId, IpAddr), OwnerId>,
        mended: &mut Adoption,
    ) {
        let (network, id) = key(lease);
        let owner = &lease.attachment.owner;
        let mut lost = BTreeSet::new();
        for address in lease.held() {
            match claimed.entry((network, address)) {
                Entry::Occupied(claim) if *claim.get() == id => {}
                Entry::Occupied(_) => {
                    mended.notices.push(format!("{address} is in the lease of {owner} and in another's"));
                    lost.insert(address);
                }
                Entry::Vacant(place) => {
                    place.insert(id);
                    mended.notices.push(format!("{address} is in the lease of {owner} but not held"));
                    mended.changes.push(Change::PutAddress(network, address, Hold::Leased(id)));
                }
            }
        }
        if !lost.is_empty() {
            let mut lease = lease.clone();
            lease.attachment.addresses.retain(|address| !lost.contains(&address.address.ip()));
            lease.former.retain(|address| !lost.contains(address));
            mended.changes.push(Change::PutLease(Box::new(lease)));
        }
    }
}

fn key(lease: &Lease) -> (NetworkId, OwnerId) {
    let owner = &lease.attachment.owner;
    (NetworkId::of(&owner.network), owner.id())
}
