//! Elements of podwire's tables as the kernel has them.

use std::collections::BTreeMap;

use podwire_kernel::Result;
use podwire_kernel::nft::{Element, Nft};

use super::skeleton::{SetRef, TABLES};

/// The elements of these keys that are there, with the set each is in; none where the set is missing.
pub(super) fn elements(
    nft: &mut Nft,
    wanted: &BTreeMap<SetRef, Vec<Element>>,
) -> Result<Vec<(SetRef, Element)>> {
    let mut all = Vec::new();
    for (set, keys) in wanted {
        let found = missing_is_empty(nft.find_elements(set.table, set.name, keys))?;
        all.extend(found.into_iter().flatten().map(|element| (*set, element)));
    }
    Ok(all)
}

/// Every element of podwire's tables.
pub(super) fn all_elements(nft: &mut Nft) -> Result<Vec<(SetRef, Element)>> {
    let mut all = Vec::new();
    for table in TABLES {
        if nft.table(table)?.is_none() {
            continue;
        }
        for (set, _) in super::skeleton::skeleton(table).sets {
            let elements = missing_is_empty(nft.elements(table, set.name))?;
            all.extend(elements.into_iter().map(|element| (set, element)));
        }
    }
    Ok(all)
}

pub(super) fn missing_is_empty<T: Default>(result: Result<T>) -> Result<T> {
    match result {
        Err(error) if error.is_missing() => Ok(T::default()),
        result => result,
    }
}
