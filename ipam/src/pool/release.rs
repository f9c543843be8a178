//! A lease's way from its reservation to its end.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_attach::{Attachment, NetworkId, Owner, OwnerId};

use super::Pool;
use crate::{BootMillis, Change, Hold, Lease, LeaseState, Stale};

impl Pool {
    /// Plans to record that the interface is up. The addresses of the owner's earlier interface, which is gone
    /// now, begin to rest. `finished` is the attachment as it was made in the end; its owner, addresses and host ports
    /// are not looked at: those of the reservation are the ones that are held.
    ///
    /// # Errors
    /// [`Stale`] if the lease is not `Reserved` by that reservation any more.
    pub fn attached(
        &self,
        owner: OwnerId,
        generation: u64,
        finished: Option<&Attachment>,
        now: BootMillis,
    ) -> Result<Vec<Change>, Stale> {
        let stale = Stale { owner, generation };
        let lease = self.lease(owner).filter(|lease| lease.generation == generation).ok_or(stale)?;
        match lease.state {
            LeaseState::Reserved => {}
            LeaseState::Attached => return Ok(Vec::new()),
            LeaseState::Deleting => return Err(stale),
        }
        let mut changes = self.rest(lease, lease.former.iter().copied(), now);
        let attachment = finished.map_or_else(|| lease.attachment.clone(), |made| finish(lease, made));
        changes.push(Change::PutLease(Box::new(Lease {
            attachment,
            state: LeaseState::Attached,
            succeeds: false,
            former: Vec::new(),
            former_ports: Vec::new(),
            missing_since: None,
            ..lease.clone()
        })));
        Ok(changes)
    }

    /// Plans to have the pods of a network, whose addresses are hidden outside of the cluster's ranges, follow a change of
    /// those. Leases that are about to end stay as they are.
    pub fn follow_ranges(&self, network: &str, before: &[IpNetwork], now: &[IpNetwork]) -> Vec<Change> {
        let of_network = self
            .leases()
            .filter(|lease| lease.attachment.owner.network == network && lease.state != LeaseState::Deleting);
        let changed = of_network.filter_map(|lease| {
            let mut attachment = lease.attachment.clone();
            let subnets: Vec<IpNetwork> = attachment.all_addresses().collect();
            let masquerade = attachment.traffic.as_mut()?.masquerade.as_mut()?;
            let following = masquerade.following(&subnets, before, now);
            if *masquerade == following {
                return None;
            }
            *masquerade = following;
            Some(Change::PutLease(Box::new(Lease { attachment, ..lease.clone() })))
        });
        changed.collect()
    }

    /// Plans to give back what a failed ADD reserved, after it has undone its steps. Nothing happens if that
    /// reservation is not the newest, has been attached, or took over an earlier lease, whose interface may still
    /// stand: that one waits for DEL.
    pub fn cancel(&self, owner: OwnerId, generation: u64, now: BootMillis) -> Vec<Change> {
        match self.lease(owner) {
            Some(lease)
                if lease.generation == generation
                    && lease.state == LeaseState::Reserved
                    && !lease.succeeds =>
            {
                self.release(lease, now)
            }
            _ => Vec::new(),
        }
    }

    /// Plans to record that DEL has begun; to be committed before the interface is touched. Returns the lease as
    /// it stands then, or `None` if the owner has none. Its own owner and generation are those to give to
    /// [`Pool::finish_delete`].
    pub fn begin_delete(&self, owner: &Owner) -> Option<(Lease, Vec<Change>)> {
        self.find(owner).map(deleting)
    }

    /// Plans the end of a lease whose interface is gone; its addresses rest from now on. Nothing happens if the
    /// lease is not `Deleting`, or if its owner has been given a new one meanwhile.
    pub fn finish_delete(&self, owner: OwnerId, generation: u64, now: BootMillis) -> Vec<Change> {
        match self.lease(owner) {
            Some(lease) if lease.generation == generation && lease.state == LeaseState::Deleting => {
                self.release(lease, now)
            }
            _ => Vec::new(),
        }
    }

    /// Ends a lease.
    pub(super) fn release(&self, lease: &Lease, now: BootMillis) -> Vec<Change> {
        let mut changes = self.rest(lease, lease.held(), now);
        changes.push(Change::RemoveLease(lease.attachment.owner.id()));
        changes
    }

    /// Lays to rest those of the addresses that are this lease's: a damaged store may say otherwise.
    fn rest(&self, lease: &Lease, addresses: impl Iterator<Item = IpAddr>, now: BootMillis) -> Vec<Change> {
        let owner = &lease.attachment.owner;
        let (network, id) = (NetworkId::of(&owner.network), owner.id());
        addresses
            .filter(|address| self.hold(network, *address) == Some(Hold::Leased(id)))
            .map(|address| Change::PutAddress(network, address, Hold::Resting(now)))
            .collect()
    }
}

/// The attachment of a lease as it came out.
fn finish(lease: &Lease, made: &Attachment) -> Attachment {
    let reserved = &lease.attachment;
    let mut attachment = Attachment {
        owner: reserved.owner.clone(),
        addresses: reserved.addresses.clone(),
        traffic: made.traffic.as_ref().or(reserved.traffic.as_ref()).cloned(),
        ..made.clone()
    };
    if let Some(traffic) = &mut attachment.traffic {
        traffic.ports = reserved.ports().to_vec();
    }
    attachment
}

/// The lease once its DEL has begun, and what that changes.
pub(super) fn deleting(lease: &Lease) -> (Lease, Vec<Change>) {
    if lease.state == LeaseState::Deleting {
        return (lease.clone(), Vec::new());
    }
    let lease = Lease { state: LeaseState::Deleting, missing_since: None, ..lease.clone() };
    (lease.clone(), vec![Change::PutLease(Box::new(lease))])
}
