//! Transactions, and those that administrators ask for. PURE.

use std::collections::BTreeSet;

use super::key::Key;
use super::record::{Ended, Hold, Value};
use super::replica::{Replica, Slot};
use super::terms::fits;
use crate::cluster::ClusterConfig;
use crate::cluster::topology::check_config;

/// A transaction: if every required key is as it was, all is written, else nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys, and the revisions at which they must have been written last; 0: nothing may stand there.
    pub requires: Vec<(Key, u64)>,
    /// What is written, each key once.
    pub writes: Vec<Write>,
    /// What for, for the log.
    pub why: String,
}

/// See [`Change::writes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A key gets a value.
    Put {
        /// The key.
        key: Key,
        /// The value; its kind is the key's.
        value: Value,
        /// For how long.
        life: Life,
    },
    /// A key is deleted, if it is there.
    Delete(Key),
}

/// How long a value stands if nobody touches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// For ever.
    Lasting,
    /// As long as this node is connected.
    Presence,
    /// As long as subnets rest.
    Rest,
    /// For the time without new claims after a restored backup.
    Grace,
}

impl Change {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }

    /// Requires that a key is as the copy has it.
    pub(super) fn require(&mut self, replica: &Replica, key: Key) {
        if !self.requires.iter().any(|(required, _)| *required == key) {
            let revision = replica.revision_of(&key);
            self.requires.push((key, revision));
        }
    }

    /// Writes a key that is as the copy has it.
    pub(super) fn put(&mut self, replica: &Replica, key: Key, value: Value, life: Life) {
        self.require(replica, key.clone());
        self.writes.push(Write::Put { key, value, life });
    }

    /// Deletes a key that is as the copy has it.
    pub(super) fn delete(&mut self, replica: &Replica, key: Key) {
        self.require(replica, key.clone());
        self.writes.push(Write::Delete(key));
    }

    /// Lets a subnet rest. It still says who had it: that node alone may have it back at once.
    pub(super) fn rest(
        &mut self,
        replica: &Replica,
        subnet: ipnetwork::IpNetwork,
        hold: &Hold,
        ended: Ended,
    ) {
        let mut rested = Hold { resting: Some(ended), ..hold.clone() };
        if ended == Ended::Removed {
            // So that a node that goes on running knows it from a removal that a backup brought back.
            rested.epoch = replica.epoch().value().map_or(rested.epoch, |epoch| epoch.number);
        }
        self.put(replica, Key::Subnet(subnet), Value::Subnet(rested), Life::Rest);
    }
}

/// How many subnets one transaction ends claims of: etcd takes 128 operations. A node has one or two; more is made by hand, and
/// more transactions do it.
pub(super) const MOST_RESTS: usize = 50;

/// Ends the membership of a node.
///
/// # Errors
/// If there is no such node, or it is present and `force` is not given.
pub fn remove(replica: &Replica, name: &str, force: bool, ended: Ended) -> Result<Change, String> {
    let holds = replica.holds_of(name).filter(|(_, hold)| hold.resting.is_none());
    let holds: Vec<_> = holds.take(MOST_RESTS).collect();
    let node = Key::Node(name.to_owned());
    if replica.node(name).is_absent() && holds.is_empty() {
        return Err(format!("the cluster has no node {name}"));
    }
    let presence = Key::Presence(name.to_owned());
    let mut change = Change::new(format!("remove node {name} ({ended:?})").to_lowercase());
    if !force {
        if !replica.presence(name).is_absent() {
            return Err(format!(
                "node {name} is present: its pods would go on with addresses that other nodes' pods get. Stop its agent \
                 first, or say --force"
            ));
        }
        change.require(replica, presence);
    }
    change.delete(replica, node);
    for (subnet, hold) in holds {
        change.rest(replica, subnet, hold, ended);
    }
    Ok(change)
}

/// Changes the shared settings.
///
/// # Errors
/// If they make no sense, or would take from nodes what they have.
pub fn configure(replica: &Replica, wanted: &ClusterConfig) -> Result<Change, String> {
    check_config(wanted).map_err(|error| error.to_string())?;
    let key = Key::Config;
    if let Slot::Holds { value: current, .. } = replica.config()
        && current.name != wanted.name
    {
        return Err(format!(
            "the cluster's name is {}, and its nodes' MAC addresses are made of it: it cannot be changed",
            current.name
        ));
    }
    let holds = replica.holds().iter();
    let lost = holds.filter(|(subnet, hold)| {
        hold.value().is_none_or(|hold| hold.resting.is_none())
            && !wanted.ranges.iter().any(|range| fits(range, subnet))
    });
    let lost: Vec<_> =
        lost.map(|(subnet, hold)| (subnet, hold.value().map_or("?", |hold| &hold.node))).collect();
    if let Some((subnet, node)) = lost.first() {
        let nodes: BTreeSet<_> = lost.iter().map(|(_, node)| node).collect();
        return Err(format!(
            "{} of the nodes have subnets that are not in the new ranges, such as {node} with {subnet}: ranges can grow and be \
             added, not moved or removed while nodes use them",
            nodes.len()
        ));
    }
    let mut change = Change::new("change the cluster's settings");
    change.put(replica, key, Value::Config(wanted.clone()), Life::Lasting);
    Ok(change)
}
