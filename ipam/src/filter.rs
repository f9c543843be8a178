//! What the leases say about the node's packet filter and queues: what should be there, and how it is taken away.

use std::collections::BTreeSet;

use podwire_attach::rules::{self, Repaired, RulesError};
use podwire_attach::{Attachment, OwnerId, Role, Traffic, conntrack, withdraw};
use podwire_kernel::Netlink;
use podwire_kernel::nft::Nft;

use crate::{Error, Lease, LeaseState};

/// What the store says about rules, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedRules {
    /// Attachments whose rules are to be there.
    pub attached: Vec<Attachment>,
    /// Owners of whose rules that cannot be said: their ADD or DEL is under way, or nobody knows what they asked for.
    pub others: BTreeSet<OwnerId>,
}

impl WantedRules {
    /// Of these leases, which are all of the node.
    pub fn of<'l>(leases: impl Iterator<Item = &'l Lease>) -> Self {
        let mut wanted = Self::default();
        let mut devices = BTreeSet::new();
        for lease in leases {
            let attachment = &lease.attachment;
            match &attachment.traffic {
                Some(traffic) if lease.state == LeaseState::Attached => {
                    // Of those that ask for nothing but to be forwarded one tells it for all.
                    if devices.insert(traffic.device.as_str()) || traffic.has_rules() {
                        wanted.attached.push(attachment.clone());
                    }
                }
                _ => drop(wanted.others.insert(attachment.owner.id())),
            }
        }
        wanted
    }

    /// Makes the node's rules so. Those of owners that `keep` names are left alone, too; it is asked anew at each attempt.
    /// `notices` gets what could not be done, in whole sentences.
    ///
    /// # Errors
    /// See [`rules::reconcile`].
    pub fn put(
        &self,
        nft: &mut Nft,
        keep: &dyn Fn(OwnerId) -> bool,
        notices: &mut Vec<String>,
    ) -> Result<Repaired, RulesError> {
        let keep = |owner: OwnerId| self.others.contains(&owner) || keep(owner);
        let attached: Vec<&Attachment> = self.attached.iter().collect();
        match rules::reconcile(nft, &attached, &keep) {
            Err(RulesError::Conditions(error)) => {
                // Another version understood them: the other pods are not to suffer from it.
                let (left, rest): (Vec<_>, Vec<_>) = attached.into_iter().partition(|a| has_conditions(a));
                notices.push(format!("the rules of {} pods were left as they are: {error}", left.len()));
                let left: BTreeSet<OwnerId> =
                    left.into_iter().map(|attachment| attachment.owner.id()).collect();
                rules::reconcile(nft, &rest, &|owner| left.contains(&owner) || keep(owner))
            }
            result => result,
        }
    }
}

fn has_conditions(attachment: &Attachment) -> bool {
    attachment.traffic.as_ref().is_some_and(|Traffic { port_access, .. }| {
        !port_access.conditions_v4.is_empty() || !port_access.conditions_v6.is_empty()
    })
}

/// Whether there is anything in the packet filter for it, as far as is known.
pub fn may_have_rules(attachment: &Attachment) -> bool {
    match &attachment.traffic {
        Some(traffic) => traffic.has_rules(),
        // podwire-ipam makes none.
        None => attachment.link.is_some() || attachment.owner.role == Role::Chained,
    }
}

/// Removes what there is in the packet filter for a lease whose DEL has begun.
///
/// # Errors
/// See [`RulesError`].
pub fn remove_rules(nft: &mut Nft, lease: &Lease) -> Result<(), RulesError> {
    let attachment = &lease.attachment;
    rules::remove(nft, attachment.owner.id(), attachment.traffic.is_some().then_some(attachment))
}

/// Whether that failed because the kernel has no nftables at all, for a lease of which it is not known that it ever had
/// rules: then it had none.
pub fn had_no_rules(lease: &Lease, error: &RulesError) -> bool {
    /// EINVAL (nothing answers for nftables), EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT.
    const NONE: [i32; 4] = [22, 93, 95, 97];
    lease.attachment.traffic.is_none()
        && matches!(error, RulesError::Kernel(error) if NONE.contains(&error.errno))
}

/// Whether a lease has something beside rules and links of ours: connections to its ports, queues on another plugin's
/// link.
pub fn has_rest(attachment: &Attachment) -> bool {
    let is_chained = attachment.owner.role == Role::Chained;
    conntrack::connectionless(attachment).next().is_some()
        || is_chained && attachment.traffic.as_ref().is_none_or(Traffic::is_shaped)
}

/// Removes that, after the rules. It may wait for the kernel.
///
/// # Errors
/// The kernel's.
pub fn remove_rest(lease: &Lease) -> Result<(), Error> {
    let attachment = &lease.attachment;
    let owner = &attachment.owner;
    let removed = match owner.role {
        Role::Main => conntrack::flush_of(attachment).map(drop),
        Role::Chained => {
            Netlink::open().and_then(|mut host| withdraw(&mut host, owner.id(), Some(attachment)))
        }
    };
    removed.map_err(|error| Error::kernel(format!("remove what the node has of {owner}"), error))
}

/// All of it, for a process that has the store's lock; nothing is asked of the kernel where there is nothing to remove.
///
/// # Errors
/// [`Error::Rules`], [`Error::Kernel`]; all that can be removed has been.
pub fn remove_traffic(lease: &Lease) -> Result<(), Error> {
    let attachment = &lease.attachment;
    let rules = if may_have_rules(attachment) {
        match Nft::open().map_err(RulesError::from).and_then(|mut nft| remove_rules(&mut nft, lease)) {
            Err(error) if !had_no_rules(lease, &error) => {
                Err(Error::rules(format!("remove the rules of {}", attachment.owner), error))
            }
            _ => Ok(()),
        }
    } else {
        Ok(())
    };
    let rest = if has_rest(attachment) { remove_rest(lease) } else { Ok(()) };
    rules.and(rest)
}
