//! One owner's elements taken out.

use std::collections::{BTreeMap, BTreeSet};

use podwire_kernel::nft::{Batch, Element, Nft};
use podwire_kernel::{Error, Result};

use super::RulesError;
use super::content::{Content, content, owner_of};
use super::look;
use super::mend::settle;
use super::skeleton::SetRef;
use crate::step::step;
use crate::{Attachment, OwnerId};

/// Removes all of the owner's elements. Nothing there is success. With the attachment whose rules they are, they are
/// found by their keys; without, or with one whose traffic is unknown, all elements are looked at.
///
/// # Errors
/// See [`RulesError`].
pub fn remove(nft: &mut Nft, owner: OwnerId, known: Option<&Attachment>) -> Result<(), RulesError> {
    step("rules-remove");
    let is_exclusive = known.is_some_and(|known| known.given.is_empty());
    let known = known.filter(|known| known.traffic.is_some()).and_then(|known| content(known).ok());
    if let Some(content) = &known
        && (content.owned.is_empty() || is_exclusive && remove_at_once(nft, content)?)
    {
        return Ok(());
    }
    settle(|| {
        let generation = nft.generation()?.id;
        let found = match &known {
            Some(content) => look::elements(nft, &content.owned)?,
            None => look::all_elements(nft)?,
        };
        let mut own: BTreeMap<SetRef, Vec<Element>> = BTreeMap::new();
        for (set, element) in found {
            if owner_of(&element) == Some(owner) {
                own.entry(set).or_default().push(element);
            }
        }
        if own.is_empty() {
            return Ok(());
        }
        let mut batch = deletion(&own);
        batch.only_at(generation);
        nft.commit(&batch)
    })?;
    step("rules-removed");
    Ok(())
}

/// Removes by key alone, in one send. Only where no other owner can have put elements in the place of these: a host port
/// is taken over from the dead, and another IPAM plugin may give an address again, but one of our store or a link's name
/// is given to nobody else before its owner's removal.
fn remove_at_once(nft: &mut Nft, content: &Content) -> Result<bool, RulesError> {
    if !content.ports.is_empty() {
        return Ok(false);
    }
    match nft.commit(&deletion(&content.owned)) {
        Ok(()) => Ok(true),
        // Some are not there.
        Err(error) if error.is_missing() || error.is_changed() || error.is_busy() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn deletion(elements: &BTreeMap<SetRef, Vec<Element>>) -> Batch {
    let mut batch = Batch::new();
    for (set, elements) in elements {
        batch.delete_elements(set.table, set.name, elements);
    }
    batch
}

/// All owners that have an element in podwire's tables.
///
/// # Errors
/// The tables cannot be read.
pub fn owners(nft: &mut Nft) -> Result<BTreeSet<OwnerId>, Error> {
    Ok(look::all_elements(nft)?.iter().filter_map(|(_, element)| owner_of(element)).collect())
}
