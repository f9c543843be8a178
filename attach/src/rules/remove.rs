//! One owner's elements taken out.

use std::collections::{BTreeMap, BTreeSet};

use podwire_kernel::nft::{Batch, Data, Element, Nft};
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
    // Another IPAM plugin may have given an address again; one of our store is given to nobody before this.
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

/// Removes by key, in one send, without a look: where fifty pods end at once, each would change what the others have
/// looked at. Another owner can have put elements in the place of these by taking over a host port alone; then the port
/// leads to another pod, and the transaction, which first asks for each port as it was, fails as a whole.
fn remove_at_once(nft: &mut Nft, content: &Content) -> Result<bool, RulesError> {
    let mut batch = Batch::new();
    for (set, elements) in &content.owned {
        let is_port = |element: &&Element| matches!(element.data, Some(Data::Value(_)));
        let ports: Vec<Element> = elements.iter().filter(is_port).cloned().collect();
        batch.ensure_elements(set.table, set.name, &ports);
        batch.delete_elements(set.table, set.name, elements);
    }
    match nft.commit(&batch) {
        Ok(()) => Ok(true),
        // Some are not there, or are another's.
        Err(error) if error.is_missing() || error.is_exists() || error.is_changed() || error.is_busy() => {
            Ok(false)
        }
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
