//! Host ports: which owner has which of the node's.
//!
//! There is one node, so they are looked at over all networks and roles. A port is its owner's from the reservation on.
//! Unlike an address it does not wait until its owner's interface is known to be gone twice: a pod that died with its
//! port is followed by one that wants the same port, and at once. The rules of a dead owner are replaced by the
//! new one's, and its lease forgets the port in the same transaction, so that its DEL does not take it away again.

use std::collections::BTreeSet;

use podwire_attach::{Attachment, OwnerId, PortMapping};

use super::{ADDING_MS, Pool};
use crate::{BootMillis, Change, Lease, LeaseState, Refusal, Sight, Sights};

/// What a reservation takes from dead owners.
#[derive(Default)]
pub(super) struct Takeover {
    pub(super) changes: Vec<Change>,
    pub(super) owners: Vec<OwnerId>,
    pub(super) notices: Vec<String>,
}

impl Pool {
    /// Other owners whose leases claim a port that this attachment asks for. Whether they live is not known here.
    pub fn port_rivals(&self, attachment: &Attachment) -> impl Iterator<Item = &Lease> {
        let own = attachment.owner.id();
        let asked = attachment.ports();
        let near: BTreeSet<OwnerId> = asked
            .iter()
            .filter_map(|port| self.ports.get(&(port.protocol, port.host_port)))
            .flatten()
            .copied()
            .filter(|id| *id != own)
            .collect();
        near.into_iter()
            .filter_map(|id| self.lease(id))
            .filter(move |lease| asked.iter().any(|port| lease.ports().any(|other| other.conflicts(port))))
    }

    /// Plans to take the ports that this attachment asks for from owners that are dead.
    pub(super) fn take_ports(
        &self,
        attachment: &Attachment,
        seen: &Sights,
        now: BootMillis,
    ) -> Result<Takeover, Refusal> {
        let asked = attachment.ports();
        let mut taken = Takeover::default();
        for rival in self.port_rivals(attachment) {
            let id = rival.attachment.owner.id();
            let is_asked = |port: &PortMapping| asked.iter().any(|asked| asked.conflicts(port));
            if !self.is_dead(rival, seen.get(&id).copied().unwrap_or(Sight::Unknown), now) {
                let is_its = |port: &&PortMapping| rival.ports().any(|other| other.conflicts(port));
                let Some(port) = asked.iter().find(is_its) else { continue };
                return Err(Refusal::PortTaken { port: *port, owner: rival.attachment.owner.clone() });
            }
            for port in rival.ports().filter(is_asked) {
                taken.notices.push(format!(
                    "host port {port} was held by {}, which is gone, and is now {}'s",
                    rival.attachment.owner, attachment.owner
                ));
            }
            taken.owners.push(id);
            // What an ADD has reserved it would still make: without the lease it undoes itself.
            if rival.state == LeaseState::Reserved {
                taken.changes.extend(self.release(rival, now));
                continue;
            }
            let mut lease = rival.clone();
            lease.former_ports = rival.ports().filter(|port| !is_asked(port)).collect();
            // Other rules than the port's own came with it, and stay until the dead one's end. They could not be found by
            // what its lease would say from now on: whose traffic is unknown is looked for by its owner.
            lease.attachment.traffic = None;
            taken.changes.push(Change::PutLease(Box::new(lease)));
        }
        Ok(taken)
    }

    /// Whether a port may be taken from this lease. One look is enough here: the interface of a lease that is
    /// `Attached` is not replaced before the lease is `Reserved` again.
    fn is_dead(&self, lease: &Lease, sight: Sight, now: BootMillis) -> bool {
        let is_of_this_boot = self.boot() == Some(lease.boot_id.as_str());
        let is_given_up =
            || lease.missing_since.is_some_and(|since| since <= now && now.0 - since.0 >= ADDING_MS);
        !is_of_this_boot
            || sight == Sight::Gone
                && match lease.state {
                    LeaseState::Attached | LeaseState::Deleting => true,
                    LeaseState::Reserved => is_given_up(),
                }
    }

    pub(super) fn note_ports(&mut self, lease: &Lease) {
        let id = lease.attachment.owner.id();
        for port in lease.ports() {
            self.ports.entry((port.protocol, port.host_port)).or_default().insert(id);
        }
    }

    pub(super) fn forget_ports(&mut self, lease: &Lease) {
        let id = lease.attachment.owner.id();
        for port in lease.ports() {
            let key = (port.protocol, port.host_port);
            if let Some(owners) = self.ports.get_mut(&key) {
                owners.remove(&id);
                if owners.is_empty() {
                    self.ports.remove(&key);
                }
            }
        }
    }
}
