//! What stands in podwire's tables against what should. PURE.

use std::fmt;

use podwire_kernel::nft::{Chain, Element, Rule, Set, TableContent, TableRef};

use super::skeleton::{Skeleton, VERSION, table_comment};

/// A way in which the node's rules differ from what an attachment needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesDrift {
    /// The table is missing.
    NoTable(String),
    /// The table is of another version of podwire.
    Version(String, Option<String>),
    /// A set, a map or a chain is missing: the table, its kind and its name.
    Missing(String, &'static str, String),
    /// A set, a map or a chain is not as podwire makes it.
    Changed(String, &'static str, String),
    /// The rules of a chain are not those that podwire writes.
    Rules(String, String),
    /// An element is missing: the table, the set and what it is for.
    NoElement(String, String, String),
    /// An element leads elsewhere, or is another owner's.
    Element(String, String, String),
    /// A link's route_localnet is off, so that 127.0.0.1 does not reach its pods' host ports.
    NoRouteLocalnet(String),
    /// Another program's chain drops what the pods send or get: family, table, chain and link.
    ForeignDrop(String, String),
}

impl fmt::Display for RulesDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(table) => write!(f, "nftables table {table} is missing"),
            Self::Version(table, Some(version)) => {
                write!(f, "nftables table {table} is of version {version:?}, not {:?}", table_comment())
            }
            Self::Version(table, None) => write!(f, "nftables table {table} has no version"),
            Self::Missing(table, kind, name) => {
                write!(f, "{kind} {name} of nftables table {table} is missing")
            }
            Self::Changed(table, kind, name) => {
                write!(f, "{kind} {name} of nftables table {table} was changed")
            }
            Self::Rules(table, chain) => {
                write!(f, "the rules of chain {chain} of nftables table {table} were changed")
            }
            Self::NoElement(table, set, what) => {
                write!(f, "{what} is missing in {set} of nftables table {table}")
            }
            Self::Element(table, set, what) => {
                write!(f, "{what} in {set} of nftables table {table} leads elsewhere or is another pod's")
            }
            Self::NoRouteLocalnet(link) => write!(f, "net.ipv4.conf.{link}.route_localnet is 0"),
            Self::ForeignDrop(chain, link) => {
                write!(f, "{chain} drops packets and does not accept those from and to {link}")
            }
        }
    }
}

/// How a table differs from its skeleton. What else stands in the table is not looked at.
pub(super) fn skeleton_drift(skeleton: &Skeleton, found: Option<&TableContent>) -> Vec<RulesDrift> {
    let table = skeleton.table.to_string();
    let Some(found) = found else { return vec![RulesDrift::NoTable(table)] };
    let mut drift = Vec::new();
    if found.comment.as_deref() != Some(&table_comment()) {
        drift.push(RulesDrift::Version(table.clone(), found.comment.clone()));
    }
    for (_, set) in &skeleton.sets {
        let kind = if set.data.is_some() { "map" } else { "set" };
        match found.sets.get(&set.name) {
            None => drift.push(RulesDrift::Missing(table.clone(), kind, set.name.clone())),
            Some(is) if !is_same_set(set, is) => {
                drift.push(RulesDrift::Changed(table.clone(), kind, set.name.clone()));
            }
            Some(_) => {}
        }
    }
    for (chain, rules) in &skeleton.chains {
        drift.extend(chain_drift(skeleton.table, chain, rules, found));
    }
    drift
}

/// Whether a table says that podwire made it, in another version.
pub(super) fn is_of_another_version(found: &TableContent) -> bool {
    let number = |comment: &str| comment.strip_prefix("podwire ")?.parse::<u32>().ok();
    found.comment.as_deref().and_then(number).is_some_and(|version| version != VERSION)
}

/// Whether elements of the one fit the other.
pub(super) fn is_same_set(wanted: &Set, found: &Set) -> bool {
    wanted.key.len() == found.key.len() && wanted.data == found.data && wanted.interval == found.interval
}

/// How one chain differs.
pub(super) fn chain_drift(
    table: TableRef<'_>,
    chain: &Chain,
    rules: &[Rule],
    found: &TableContent,
) -> Option<RulesDrift> {
    let table = table.to_string();
    match found.chains.get(&chain.name) {
        None => Some(RulesDrift::Missing(table, "chain", chain.name.clone())),
        Some((is, _)) if is.base != chain.base => {
            Some(RulesDrift::Changed(table, "chain", chain.name.clone()))
        }
        Some((_, is)) if is != rules => Some(RulesDrift::Rules(table, chain.name.clone())),
        Some(_) => None,
    }
}

/// Whether an element is as it should be, its owner included.
pub(super) fn is_same_element(wanted: &Element, found: &Element) -> bool {
    wanted.key == found.key && wanted.data == found.data && wanted.comment == found.comment
}
