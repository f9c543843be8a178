//! Podwire's tables as the kernel has them.

use std::collections::BTreeMap;

use podwire_kernel::Result;
use podwire_kernel::nft::{Chain, Element, Nft, Rule, Set, TableRef};

use super::skeleton::{SetRef, TABLES};

/// One table. PURE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Its comment, which has its version.
    pub(super) comment: Option<String>,
    pub(super) sets: BTreeMap<String, Set>,
    pub(super) chains: BTreeMap<String, (Chain, Vec<Rule>)>,
    /// By set; empty where they were not asked for.
    pub(super) elements: BTreeMap<String, Vec<Element>>,
}

impl Snapshot {
    /// The elements of a set.
    pub(super) fn elements_of(&self, set: &str) -> &[Element] {
        self.elements.get(set).map_or(&[], Vec::as_slice)
    }
}

/// Reads a table; `None` if it is not there. Other processes may change it between two of the questions: whoever acts on
/// it says at which generation it was.
pub(super) fn table(
    nft: &mut Nft,
    table: TableRef<'static>,
    with_elements: bool,
) -> Result<Option<Snapshot>> {
    let Some(found) = nft.table(table)? else { return Ok(None) };
    let mut snapshot = Snapshot { comment: found.object.comment, ..Snapshot::default() };
    for chain in nft.table_chains(table)? {
        snapshot.chains.insert(chain.object.name.clone(), (chain.object, Vec::new()));
    }
    for rule in nft.rules(table, None)? {
        if let Some((_, rules)) = snapshot.chains.get_mut(&rule.chain) {
            rules.push(rule.rule);
        }
    }
    for set in nft.sets(table)? {
        snapshot.sets.insert(set.object.name.clone(), set.object);
    }
    if with_elements {
        let names: Vec<String> = snapshot.sets.keys().cloned().collect();
        for name in names {
            let elements = missing_is_empty(nft.elements(table, &name))?;
            snapshot.elements.insert(name, elements);
        }
    }
    Ok(Some(snapshot))
}

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
