//! All Nodes, as far as they have been heard of, made into records as they come. PURE.
//!
//! Of each Node only its record is kept, and a record that has not changed stays the same `Arc`: so a heartbeat ends here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::Node;
use super::record;
use crate::cluster::{NodeRecord, Snapshot};
use crate::config::Kubernetes;

/// See the module.
#[derive(Debug)]
pub struct Nodes {
    me: String,
    known: All,
    /// What has been listed of all that there is, while it is.
    listing: Option<All>,
    /// Everything has been heard of once: before that a Node that is not known may be there.
    is_complete: bool,
    /// Something has changed that others have not been shown.
    has_news: bool,
}

#[derive(Debug, Default)]
struct All {
    records: BTreeMap<String, Arc<NodeRecord>>,
    /// Those of which no record could be made, and why.
    problems: BTreeMap<String, String>,
    /// This node's own.
    own: Option<Arc<Node>>,
}

impl Nodes {
    /// None, or what is remembered of them, for the node of that name.
    pub fn new(me: &str, remembered: Option<&Snapshot>) -> Self {
        let records = remembered.map(|snapshot| snapshot.nodes.clone()).unwrap_or_default();
        let known = All { records, ..All::default() };
        Self { me: me.to_owned(), known, listing: None, is_complete: false, has_news: false }
    }

    /// All that there is follows. What is known stays so until then.
    pub fn begin(&mut self) {
        self.listing = Some(All::default());
    }

    /// That was all.
    pub fn complete(&mut self) {
        if let Some(listed) = self.listing.take() {
            let is_same = |(a, b): (&Arc<NodeRecord>, &Arc<NodeRecord>)| Arc::ptr_eq(a, b);
            let known = &self.known.records;
            self.has_news |= !self.is_complete
                || known.len() != listed.records.len()
                || !known.values().zip(listed.records.values()).all(is_same);
            self.known = listed;
            self.is_complete = true;
        }
    }

    /// A Node is there, or is another than it was.
    pub fn put(&mut self, node: Node, kubernetes: &Kubernetes) {
        let name = node.metadata.name.clone();
        let made = record::read(&node, kubernetes);
        let before = self.known.records.get(&name).cloned();
        let all = self.listing.as_mut().unwrap_or(&mut self.known);
        if name == self.me && all.own.as_deref() != Some(&node) {
            all.own = Some(Arc::new(node));
        }
        let problem = match made {
            Ok(Some(record)) => {
                // Those who compare find the same `Arc` where nothing has changed.
                let same = before.filter(|before| **before == record);
                self.has_news |= same.is_none();
                all.records.insert(name.clone(), same.unwrap_or_else(|| Arc::new(record)));
                None
            }
            Ok(None) => {
                self.has_news |= all.records.remove(&name).is_some();
                None
            }
            Err(why) => {
                self.has_news |= all.records.remove(&name).is_some();
                Some(why)
            }
        };
        match problem {
            Some(why) => all.problems.insert(name, why),
            None => all.problems.remove(&name),
        };
    }

    /// A Node is gone.
    pub fn remove(&mut self, name: &str) {
        let all = self.listing.as_mut().unwrap_or(&mut self.known);
        self.has_news |= all.records.remove(name).is_some();
        all.problems.remove(name);
        if name == self.me {
            all.own = None;
        }
    }

    /// Whether everything has been heard of once.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Whether everything is being heard of again.
    pub fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    /// Whether there is something that has not been shown.
    pub fn has_news(&self) -> bool {
        self.is_complete && !self.is_listing() && self.has_news
    }

    /// Everything, to be shown.
    pub fn show(&mut self, kubernetes: &Kubernetes) -> Snapshot {
        self.has_news = false;
        Snapshot { config: kubernetes.shared.clone(), nodes: self.known.records.clone() }
    }

    /// This node's own Node, if it is there.
    pub fn own(&self) -> Option<&Arc<Node>> {
        self.known.own.as_ref()
    }

    /// The Nodes that are left out, each with the reason.
    pub fn problems(&self) -> &BTreeMap<String, String> {
        &self.known.problems
    }
}

#[cfg(test)]
mod tests;
