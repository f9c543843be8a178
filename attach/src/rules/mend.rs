//! Podwire's tables put right as a whole.

use std::collections::BTreeSet;

use podwire_kernel::nft::{Batch, Nft, TableContent, TableRef};
use podwire_kernel::{Result, sysctl};

use super::content::content;
use super::install::{is_worth_another, route_localnet};
use super::look;
use super::restore::{Wanted, restore};
use super::skeleton::{INET, LOCALNET, TABLES};
use super::{ATTEMPTS, RulesError, forward, pause};
use crate::step::step;
use crate::{Attachment, OwnerId};

/// What a reconciliation changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Tables that were missing, damaged or of another version, and were made anew.
    pub skeletons: usize,
    /// Elements put in.
    pub added: usize,
    /// Elements taken out.
    pub removed: usize,
    /// Chains that elements lead to, put right or taken out.
    pub chains: usize,
    /// Accept rules put into other programs' forward chains.
    pub forwards: usize,
}

impl Repaired {
    /// Whether everything was right.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    fn and(self, other: Self) -> Self {
        Self {
            skeletons: self.skeletons + other.skeletons,
            added: self.added + other.added,
            removed: self.removed + other.removed,
            chains: self.chains + other.chains,
            forwards: self.forwards + other.forwards,
        }
    }
}

/// Makes podwire's tables what `attachments` need, in one transaction, and puts accept rules into other programs' forward
/// chains that drop. Elements of other owners go, except of those that `keep` names; chains that nothing leads to go.
/// Without attachments nothing is made.
///
/// # Errors
/// See [`RulesError`]. An attachment whose conditions are not understood fails all; nothing has been changed.
pub fn reconcile(
    nft: &mut Nft,
    attachments: &[&Attachment],
    keep: &dyn Fn(OwnerId) -> bool,
) -> Result<Repaired, RulesError> {
    let mut wanted = Wanted::default();
    let mut localnet = BTreeSet::new();
    let mut devices = BTreeSet::new();
    for attachment in attachments {
        let content = content(attachment)?;
        localnet.extend(content.localnet.clone());
        let device = attachment.traffic.as_ref().map(|traffic| traffic.device.as_str());
        devices.extend(device.filter(|device| !device.is_empty()));
        wanted.add(attachment.owner.id(), &content);
    }
    let mut repaired = settle(|| {
        step("rules-reconcile");
        let mut batch = Batch::new();
        batch.only_at(nft.generation()?.id);
        let mut repaired = Repaired::default();
        for table in TABLES {
            let found = nft.content(table, true)?;
            if let Some(found) = found.as_ref().filter(|_| table == INET) {
                keep_loopback_off_links(&mut wanted, found);
            }
            repaired = repaired.and(restore(&mut batch, table, found.as_ref(), &wanted, keep, false));
        }
        if !batch.is_empty() {
            nft.commit(&batch)?;
        }
        Ok(repaired)
    })?;
    for device in &localnet {
        // The link of a pod that is being removed may be gone.
        look::missing_is_empty(sysctl::write(&route_localnet(device), "1"))?;
    }
    for device in devices {
        repaired.forwards += forward::accept(nft, device)?;
    }
    Ok(repaired)
}

/// As long as 127.0.0.0/8 is routed over a link, the drop of what comes from there stays.
fn keep_loopback_off_links(wanted: &mut Wanted, found: &TableContent) {
    for element in found.elements_of(LOCALNET.name) {
        let name = element.key.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        if sysctl::read(&route_localnet(&name)).is_ok_and(|value| value != "0") {
            wanted.share(LOCALNET, element.clone());
        }
    }
}

/// Makes these tables' skeletons unless they are right; all elements stay. One attempt.
pub(super) fn mend(nft: &mut Nft, tables: &[TableRef<'static>]) -> Result<()> {
    let mut batch = Batch::new();
    batch.only_at(nft.generation()?.id);
    for table in tables {
        let found = nft.content(table.to_owned(), true)?;
        let mut wanted = Wanted::default();
        for element in found.iter().flat_map(|found| found.elements_of(LOCALNET.name)) {
            wanted.share(LOCALNET, element.clone());
        }
        restore(&mut batch, table.to_owned(), found.as_ref(), &wanted, &|_| true, true);
    }
    if batch.is_empty() { Ok(()) } else { nft.commit(&batch) }
}

/// Removes podwire's tables and its rules in other programs' chains. Nothing there is success.
///
/// # Errors
/// See [`RulesError`].
pub fn uninstall(nft: &mut Nft) -> Result<(), RulesError> {
    if let Some(found) = nft.content(INET, true)? {
        for element in found.elements_of(LOCALNET.name) {
            let name = element.key.split(|byte| *byte == 0).next().unwrap_or_default();
            // With the table goes the drop that makes it safe.
            let off = sysctl::write(&route_localnet(&String::from_utf8_lossy(name)), "0");
            look::missing_is_empty(off)?;
        }
    }
    for table in TABLES {
        step("rules-uninstall");
        let mut batch = Batch::new();
        batch.delete_table(table);
        look::missing_is_empty(nft.commit(&batch))?;
    }
    forward::remove(nft)
}

/// Tries until nobody else's change is in the way, a bounded number of times.
pub(super) fn settle<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T, RulesError> {
    let mut refusal = String::new();
    for number in 0..ATTEMPTS {
        pause(number);
        match attempt() {
            Err(error) if is_worth_another(&error) => refusal = error.to_string(),
            Err(error) => return Err(error.into()),
            Ok(done) => return Ok(done),
        }
    }
    Err(RulesError::Unsettled(refusal))
}
