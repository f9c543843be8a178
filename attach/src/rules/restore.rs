//! From what podwire's tables are to what they should be, as one transaction. PURE.

use std::collections::{BTreeMap, BTreeSet};

use podwire_kernel::nft::{Batch, Data, Element, Place, Rule, TableContent, TableRef, Verdict};

use super::chains::{NamedChain, is_content_name};
use super::compare::{chain_drift, is_same_element, is_same_set, skeleton_drift};
use super::content::{Content, owner_of};
use super::mend::Repaired;
use super::skeleton::{
    INET, SetRef, base_chain_for, is_made_when_needed, is_shared, skeleton, table_comment,
};
use crate::OwnerId;

/// What all attachments together need.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// By set and key. Several owners may want one key; one of them gets it.
    owned: BTreeMap<SetRef, BTreeMap<Vec<u8>, Vec<Element>>>,
    shared: BTreeMap<SetRef, BTreeMap<Vec<u8>, Element>>,
    chains: BTreeMap<String, NamedChain>,
    owners: BTreeSet<OwnerId>,
}

impl Wanted {
    pub(super) fn add(&mut self, owner: OwnerId, content: &Content) {
        self.owners.insert(owner);
        for (set, elements) in &content.owned {
            for element in elements {
                let same_key = self.owned.entry(*set).or_default().entry(element.key.clone()).or_default();
                same_key.push(element.clone());
            }
        }
        for (set, elements) in &content.shared {
            for element in elements {
                self.share(*set, element.clone());
            }
        }
        self.chains.extend(content.chains.iter().map(|(name, chain)| (name.clone(), chain.clone())));
    }

    /// An element that is nobody's alone.
    pub(super) fn share(&mut self, set: SetRef, element: Element) {
        self.shared.entry(set).or_default().insert(element.key.clone(), element);
    }
}

/// A table's elements and the chains that they lead to, as they should be.
#[derive(Default)]
struct Target {
    elements: BTreeMap<&'static str, BTreeMap<Vec<u8>, Element>>,
    chains: BTreeMap<String, NamedChain>,
}

/// Appends to `batch` what makes the table right. Elements of owners that `keep` says are left as they are, unless they
/// are `wanted` otherwise.
pub(super) fn restore(
    batch: &mut Batch,
    table: TableRef<'static>,
    found: Option<&TableContent>,
    wanted: &Wanted,
    keep: &dyn Fn(OwnerId) -> bool,
    make: bool,
) -> Repaired {
    let target = target(table, found, wanted, keep);
    if found.is_none() && target.elements.is_empty() && !make {
        return Repaired::default();
    }
    if !skeleton_drift(&skeleton(table), found).is_empty() {
        return rebuild(batch, table, found, &target);
    }
    let empty = TableContent::default();
    mend_elements(batch, table, found.unwrap_or(&empty), &target)
}

fn target(
    table: TableRef<'static>,
    found: Option<&TableContent>,
    wanted: &Wanted,
    keep: &dyn Fn(OwnerId) -> bool,
) -> Target {
    let skeleton = skeleton(table);
    let mut target = Target::default();
    let mut is_anybody_kept = false;
    for (set, definition) in &skeleton.sets {
        if is_shared(set.name) {
            continue;
        }
        let none = BTreeMap::new();
        let wanted_here = wanted.owned.get(set).unwrap_or(&none);
        let mut elements = BTreeMap::new();
        let same_set = |snapshot: &&TableContent| {
            snapshot.sets.get(set.name).is_some_and(|is| is_same_set(definition, is))
        };
        let present = found.filter(same_set).map_or(&[][..], |snapshot| snapshot.elements_of(set.name));
        for element in present {
            let Some(owner) = owner_of(element) else { continue };
            let candidates = wanted_here.get(&element.key).map_or(&[][..], Vec::as_slice);
            let is_right = candidates.iter().any(|wanted| is_same_element(wanted, element));
            let is_kept = !wanted.owners.contains(&owner) && keep(owner);
            if is_right || is_kept {
                is_anybody_kept |= is_kept;
                elements.insert(element.key.clone(), element.clone());
            }
        }
        for (key, candidates) in wanted_here {
            if let Some(first) = candidates.first() {
                elements.entry(key.clone()).or_insert_with(|| first.clone());
            }
        }
        // An element whose chain nobody knows leads nowhere.
        elements.retain(|_, element| match leads_to(element) {
            None => true,
            Some(name) => {
                let present = || found?.chains.get(name).cloned();
                let known = wanted.chains.get(name).cloned().or_else(|| {
                    present().map(|(_, rules)| NamedChain { name: name.to_owned(), base: None, rules })
                });
                known.is_some_and(|chain| {
                    target.chains.insert(name.to_owned(), chain);
                    true
                })
            }
        });
        if !elements.is_empty() {
            target.elements.insert(set.name, elements);
        }
    }
    for (set, _) in &skeleton.sets {
        if !is_shared(set.name) {
            continue;
        }
        let mut elements = wanted.shared.get(set).cloned().unwrap_or_default();
        if is_anybody_kept {
            // Who knows what those need that are left alone.
            let present = found.map_or(&[][..], |snapshot| snapshot.elements_of(set.name));
            elements.extend(present.iter().map(|element| (element.key.clone(), element.clone())));
        }
        if !elements.is_empty() {
            target.elements.insert(set.name, elements);
        }
    }
    if table == INET {
        let needed = target.elements.keys().filter_map(|set| base_chain_for(set));
        target.chains.extend(needed.map(|chain| (chain.name.clone(), chain)));
    }
    target
}

/// The chain that an element's verdict leads to.
fn leads_to(element: &Element) -> Option<&str> {
    match &element.data {
        Some(Data::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain))) => Some(chain),
        _ => None,
    }
}

/// The whole table anew, in one transaction: no packet sees it half made.
fn rebuild(
    batch: &mut Batch,
    table: TableRef<'static>,
    found: Option<&TableContent>,
    target: &Target,
) -> Repaired {
    let mut repaired = Repaired { skeletons: 1, ..Repaired::default() };
    if found.is_some() {
        batch.delete_table(table);
    }
    batch.create_table(table, Some(&table_comment()));
    let skeleton = skeleton(table);
    for (_, set) in &skeleton.sets {
        batch.create_set(table, set);
    }
    for (chain, _) in &skeleton.chains {
        batch.create_chain(table, chain);
    }
    for (chain, rules) in &skeleton.chains {
        add_rules(batch, table, &chain.name, rules);
    }
    for chain in target.chains.values() {
        add_chain(batch, table, chain);
    }
    for (set, elements) in &target.elements {
        let elements: Vec<Element> = elements.values().cloned().collect();
        batch.create_elements(table, set, &elements);
        let had = |element: &&Element| {
            found.is_some_and(|found| found.elements_of(set).iter().any(|had| is_same_element(element, had)))
        };
        repaired.added += elements.iter().filter(|element| !had(element)).count();
    }
    repaired
}

fn add_rules(batch: &mut Batch, table: TableRef<'_>, chain: &str, rules: &[Rule]) {
    for rule in rules {
        batch.add_rule(table, chain, Place::Last, rule);
    }
}

/// Makes a chain that elements need.
pub(super) fn add_chain(batch: &mut Batch, table: TableRef<'_>, chain: &NamedChain) {
    batch.create_chain(table, &chain.chain());
    add_rules(batch, table, &chain.name, &chain.rules);
}

fn mend_elements(
    batch: &mut Batch,
    table: TableRef<'static>,
    found: &TableContent,
    target: &Target,
) -> Repaired {
    let mut repaired = Repaired::default();
    for (name, chain) in &target.chains {
        if chain_drift(table, &chain.chain(), &chain.rules, found).is_none() {
            continue;
        }
        repaired.chains += 1;
        match found.chains.get(name) {
            // Elements lead to it: it cannot be made anew.
            Some((is, _)) if is.base == chain.base => {
                batch.flush_chain(table, name);
                add_rules(batch, table, name, &chain.rules);
            }
            Some(_) => {
                batch.delete_chain(table, name);
                add_chain(batch, table, chain);
            }
            None => add_chain(batch, table, chain),
        }
    }
    for (set, _) in &skeleton(table).sets {
        let none = BTreeMap::new();
        let wanted = target.elements.get(set.name).unwrap_or(&none);
        let present = found.elements_of(set.name);
        let is_right = |is: &&Element| wanted.get(&is.key).is_some_and(|wanted| is_same_element(wanted, is));
        let outdated: Vec<Element> = present.iter().filter(|is| !is_right(is)).cloned().collect();
        let right: BTreeSet<&[u8]> = present.iter().filter(is_right).map(|is| is.key.as_slice()).collect();
        let lacking = wanted.values().filter(|element| !right.contains(element.key.as_slice()));
        let lacking: Vec<Element> = lacking.cloned().collect();
        repaired.removed += outdated.len();
        repaired.added += lacking.len();
        batch.delete_elements(table, set.name, &outdated);
        batch.create_elements(table, set.name, &lacking);
    }
    if table == INET {
        let is_ours = |name: &str| is_content_name(name) || is_made_when_needed(name);
        let unused = found.chains.keys().filter(|name| is_ours(name) && !target.chains.contains_key(*name));
        for name in unused {
            repaired.chains += 1;
            batch.delete_chain(table, name);
        }
    }
    repaired
}
