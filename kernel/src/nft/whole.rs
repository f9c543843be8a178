//! A table with all that is in it, to be compared with what it should be.

use std::collections::BTreeMap;

use crate::error::Result;

use super::Nft;
use super::types::{Chain, Element, Rule, Set, TableRef};

/// All that is in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableContent {
    /// Its comment.
    pub comment: Option<String>,
    /// Its sets and maps, by name; anonymous ones among them.
    pub sets: BTreeMap<String, Set>,
    /// Its chains with their rules in their order, by name.
    pub chains: BTreeMap<String, (Chain, Vec<Rule>)>,
    /// Elements by set; empty where they were not asked for.
    pub elements: BTreeMap<String, Vec<Element>>,
}

impl TableContent {
    /// The elements of a set.
    pub fn elements_of(&self, set: &str) -> &[Element] {
        self.elements.get(set).map_or(&[], Vec::as_slice)
    }
}

impl Nft {
    /// A table with all that is in it; `None` if it is not there. Others may change it between two of the questions
    /// that this takes: whoever acts on it says at which generation it was ([`super::Batch::only_at`]).
    ///
    /// # Errors
    /// As [`Nft::tables`].
    pub fn content(&mut self, table: TableRef<'_>, with_elements: bool) -> Result<Option<TableContent>> {
        let Some(found) = self.table(table)? else { return Ok(None) };
        let mut content = TableContent { comment: found.object.comment, ..TableContent::default() };
        for chain in self.table_chains(table)? {
            content.chains.insert(chain.object.name.clone(), (chain.object, Vec::new()));
        }
        for rule in self.rules(table, None)? {
            if let Some((_, rules)) = content.chains.get_mut(&rule.chain) {
                rules.push(rule.rule);
            }
        }
        for set in self.sets(table)? {
            content.sets.insert(set.object.name.clone(), set.object);
        }
        if with_elements {
            for name in content.sets.keys() {
                let elements = match self.elements(table, name) {
                    Err(error) if error.is_missing() => Vec::new(),
                    elements => elements?,
                };
                content.elements.insert(name.clone(), elements);
            }
        }
        Ok(Some(content))
    }
}
