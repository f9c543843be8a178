//! The local copy of what stands in the store. PURE.
//!
//! It is kept up to date event by event, and turned into snapshots that share what has not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::key::Key;
use super::record::{Epoch, Grace, Hold, Presence, Value};
use crate::cluster::{ClusterConfig, NodeRecord, Snapshot};

/// What stands at one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot<T> {
    /// Nothing.
    Absent,
    /// Something that cannot be read.
    Unreadable {
        /// The revision at which it was written.
        revision: u64,
    },
    /// This.
    Holds {
        /// The revision at which it was written.
        revision: u64,
        /// What.
        value: T,
    },
}

impl<T> Slot<T> {
    /// The revision at which it was written; 0 if nothing was: what a transaction compares.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Unreadable { revision } | Self::Holds { revision, .. } => *revision,
        }
    }

    /// What can be read there.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Holds { value, .. } => Some(value),
            Self::Absent | Self::Unreadable { .. } => None,
        }
    }

    /// Whether nothing stands there: not even something that cannot be read.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    fn of(revision: u64, value: Option<T>) -> Self {
        match value {
            Some(value) => Self::Holds { revision, value },
            None => Self::Unreadable { revision },
        }
    }
}

/// The local copy.
#[derive(Debug, Clone)]
pub struct Replica {
    revision: u64,
    config: Slot<ClusterConfig>,
    epoch: Slot<Epoch>,
    grace: Slot<Grace>,
    nodes: BTreeMap<String, Slot<Arc<NodeRecord>>>,
    subnets: BTreeMap<IpNetwork, Slot<Hold>>,
    presence: BTreeMap<String, Slot<Presence>>,
    /// Which subnets each node has or had last: what a change of a hold must look at again.
    held: BTreeMap<String, BTreeSet<IpNetwork>>,
    /// How many subnets there are of each size: family (is it IPv4) and prefix.
    sizes: BTreeMap<(bool, u8), usize>,
    /// Which nodes say of each subnet that they have it.
    said: BTreeMap<IpNetwork, BTreeSet<String>>,
    /// What cannot be read, and why, by key.
    unreadable: BTreeMap<String, String>,
    /// What can be read and is not believed, and why, by node.
    disbelieved: BTreeMap<String, String>,
    /// One of the two has changed since [`Replica::has_new_problems`].
    has_news: bool,
    /// Whose part of the snapshot may be another now.
    stale: BTreeSet<String>,
    stale_config: bool,
    snapshot: Option<Arc<Snapshot>>,
    absent: Arc<BTreeSet<String>>,
    /// Everything is being read.
    is_loading: bool,
    /// Nodes that stay in the snapshot as they were, because what the store says of them may be from a backup.
    retained: BTreeSet<String>,
}

impl Default for Replica {
    fn default() -> Self {
        Self {
            revision: 0,
            config: Slot::Absent,
            epoch: Slot::Absent,
            grace: Slot::Absent,
            nodes: BTreeMap::new(),
            subnets: BTreeMap::new(),
            presence: BTreeMap::new(),
            held: BTreeMap::new(),
            sizes: BTreeMap::new(),
            said: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            disbelieved: BTreeMap::new(),
            has_news: true,
            stale: BTreeSet::new(),
            stale_config: false,
            snapshot: None,
            absent: Arc::default(),
            is_loading: false,
            retained: BTreeSet::new(),
        }
    }
}

impl Replica {
    /// A copy with nothing in it yet, and a snapshot that is remembered.
    pub fn remembering(snapshot: Snapshot) -> Self {
        Self { snapshot: Some(Arc::new(snapshot)), ..Self::default() }
    }

    /// An empty copy to read everything into, whose snapshots will share with this one's what turns out to be the same.
    pub fn successor(&self) -> Self {
        let shown = self.snapshot.iter().flat_map(|snapshot| snapshot.nodes.keys());
        let known = self.nodes.keys().chain(shown);
        Self {
            stale: known.cloned().collect(),
            stale_config: true,
            snapshot: self.snapshot.clone(),
            absent: self.absent.clone(),
            is_loading: true,
            retained: self.retained.clone(),
            ..Self::default()
        }
    }

    /// The store was restored from a backup: until [`Replica::release`], each node that is known stays as it was known, unless
    /// it says something new. A node's claim may be missing there while its pods run.
    pub fn retain(&mut self) {
        let known = self.snapshot.iter().flat_map(|snapshot| snapshot.nodes.keys());
        self.retained = known.cloned().collect();
    }

    /// What the store says counts again.
    pub fn release(&mut self) {
        self.stale.append(&mut self.retained);
    }

    /// The newest revision that is in it.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything up to this revision is in it.
    pub fn reached(&mut self, revision: u64) {
        self.is_loading = false;
        self.revision = self.revision.max(revision);
    }

    /// Takes note of a key (below `<prefix>/v1/`) that was written at `revision`. A write that is older than what is there is
    /// not noted.
    pub fn put(&mut self, key: &str, revision: u64, bytes: &[u8]) {
        self.revision = self.revision.max(revision);
        let key = match key.parse::<Key>() {
            Ok(key) => key,
            Err(why) => {
                self.unreadable.insert(printable(key), why);
                self.has_news = true;
                return;
            }
        };
        if self.revision_of(&key) >= revision {
            return;
        }
        let value = match Value::parse(&key, bytes) {
            Ok(value) => {
                self.forget_problem(&key.to_string());
                Some(value)
            }
            Err(why) => {
                self.unreadable.insert(key.to_string(), why);
                self.has_news = true;
                None
            }
        };
        self.store(key, revision, Some(value));
    }

    /// Takes note of a key that was deleted at `revision`.
    pub fn deleted(&mut self, key: &str, revision: u64) {
        self.revision = self.revision.max(revision);
        match key.parse::<Key>() {
            Ok(key) if self.revision_of(&key) <= revision => {
                self.forget_problem(&key.to_string());
                self.store(key, revision, None);
            }
            Ok(_) => {}
            Err(_) => self.forget_problem(&printable(key)),
        }
    }

    fn forget_problem(&mut self, key: &str) {
        self.has_news |= self.unreadable.remove(key).is_some();
    }

    /// `None`: deleted; `Some(None)`: cannot be read.
    fn store(&mut self, key: Key, revision: u64, value: Option<Option<Value>>) {
        fn slot<T>(
            revision: u64,
            value: Option<Option<Value>>,
            read: impl Fn(Value) -> Option<T>,
        ) -> Slot<T> {
            match value {
                Some(value) => Slot::of(revision, value.and_then(read)),
                None => Slot::Absent,
            }
        }
        fn set<K: Ord, T>(map: &mut BTreeMap<K, Slot<T>>, key: K, slot: Slot<T>) {
            if slot.is_absent() {
                map.remove(&key);
            } else {
                map.insert(key, slot);
            }
        }
        match key {
            Key::Config => {
                self.config =
                    slot(
                        revision,
                        value,
                        |value| if let Value::Config(it) = value { Some(it) } else { None },
                    );
                self.stale_config = true;
            }
            Key::Epoch => {
                self.epoch =
                    slot(revision, value, |value| if let Value::Epoch(it) = value { Some(it) } else { None });
            }
            Key::Grace => {
                self.grace =
                    slot(revision, value, |value| if let Value::Grace(it) = value { Some(it) } else { None });
            }
            Key::Node(name) => {
                let read = |value| if let Value::Node(it) = value { Some(Arc::new(it)) } else { None };
                self.stale.insert(name.clone());
                if !self.is_loading {
                    self.retained.remove(&name);
                }
                let slot = slot(revision, value, read);
                for subnet in subnets_of(self.nodes.get(&name)) {
                    if let Some(names) = self.said.get_mut(&subnet) {
                        names.remove(&name);
                        if names.is_empty() {
                            self.said.remove(&subnet);
                        }
                    }
                }
                for subnet in subnets_of(Some(&slot)) {
                    self.said.entry(subnet).or_default().insert(name.clone());
                }
                set(&mut self.nodes, name, slot);
            }
            Key::Presence(name) => {
                let read = |value| if let Value::Presence(it) = value { Some(it) } else { None };
                self.stale.insert(name.clone());
                set(&mut self.presence, name, slot(revision, value, read));
            }
            Key::Subnet(subnet) => {
                let read = |value| if let Value::Subnet(it) = value { Some(it) } else { None };
                let slot = slot(revision, value, read);
                if let Some(before) = self.hold(subnet).value().map(|hold| hold.node.clone()) {
                    self.stale.insert(before.clone());
                    if let Some(held) = self.held.get_mut(&before) {
                        held.remove(&subnet);
                    }
                }
                if let Some(hold) = slot.value() {
                    self.stale.insert(hold.node.clone());
                    self.held.entry(hold.node.clone()).or_default().insert(subnet);
                }
                let was_there = self.subnets.contains_key(&subnet);
                set(&mut self.subnets, subnet, slot);
                let size = self.sizes.entry((subnet.is_ipv4(), subnet.prefix())).or_default();
                match (was_there, self.subnets.contains_key(&subnet)) {
                    (false, true) => *size += 1,
                    (true, false) => *size -= 1,
                    _ => {}
                }
            }
        }
    }

    /// The revision at which a key was written; 0 if nothing stands there.
    pub fn revision_of(&self, key: &Key) -> u64 {
        match key {
            Key::Config => self.config.revision(),
            Key::Epoch => self.epoch.revision(),
            Key::Grace => self.grace.revision(),
            Key::Node(name) => self.nodes.get(name).map_or(0, Slot::revision),
            Key::Subnet(subnet) => self.subnets.get(subnet).map_or(0, Slot::revision),
            Key::Presence(name) => self.presence.get(name).map_or(0, Slot::revision),
        }
    }

    /// The shared settings.
    pub fn config(&self) -> &Slot<ClusterConfig> {
        &self.config
    }

    /// Which course of history this is.
    pub fn epoch(&self) -> &Slot<Epoch> {
        &self.epoch
    }

    /// Whether nobody makes new claims now.
    pub fn grace(&self) -> &Slot<Grace> {
        &self.grace
    }

    /// What a node says of itself, as it says it.
    pub fn node(&self, name: &str) -> &Slot<Arc<NodeRecord>> {
        self.nodes.get(name).unwrap_or(&Slot::Absent)
    }

    /// Whether another node than that says of a subnet that it has it.
    pub fn is_said_of_another(&self, subnet: &IpNetwork, name: &str) -> bool {
        self.said.get(subnet).is_some_and(|names| names.iter().any(|said| said != name))
    }

    /// How many subnets nodes say that they have.
    pub fn said_count(&self) -> usize {
        self.said.len()
    }

    /// Who has a subnet.
    pub fn hold(&self, subnet: IpNetwork) -> &Slot<Hold> {
        self.subnets.get(&subnet).unwrap_or(&Slot::Absent)
    }

    /// All subnets that somebody has, had last, or may have.
    pub fn holds(&self) -> &BTreeMap<IpNetwork, Slot<Hold>> {
        &self.subnets
    }

    /// Whether there are subnets of that family with another prefix than that.
    pub fn has_other_sizes(&self, is_ipv4: bool, prefix: u8) -> bool {
        self.sizes.iter().any(|(size, count)| size.0 == is_ipv4 && size.1 != prefix && *count > 0)
    }

    /// The subnets that name a node, resting ones among them.
    pub fn holds_of(&self, name: &str) -> impl Iterator<Item = (IpNetwork, &Hold)> {
        let held = self.held.get(name).into_iter().flatten();
        held.filter_map(|subnet| Some((*subnet, self.hold(*subnet).value()?)))
    }

    /// A node's sign of life.
    pub fn presence(&self, name: &str) -> &Slot<Presence> {
        self.presence.get(name).unwrap_or(&Slot::Absent)
    }

    /// All names that stand for a node: it says something of itself, or has a subnet.
    pub fn names(&self) -> BTreeSet<&str> {
        let holding = self.subnets.values().filter_map(Slot::value).filter(|hold| hold.resting.is_none());
        self.nodes.keys().map(String::as_str).chain(holding.map(|hold| hold.node.as_str())).collect()
    }

    /// Works what was noted into the snapshot. To be called when no more is known to have happened at the same time: only
    /// then are a record and the subnets in it judged.
    pub fn settle(&mut self) {
        let stale = std::mem::take(&mut self.stale);
        if std::mem::take(&mut self.stale_config)
            && let Some(config) = self.config.value()
        {
            match &mut self.snapshot {
                Some(snapshot) if snapshot.config == *config => {}
                Some(snapshot) => Arc::make_mut(snapshot).config = config.clone(),
                None => {
                    self.snapshot =
                        Some(Arc::new(Snapshot { config: config.clone(), nodes: BTreeMap::new() }))
                }
            }
        }
        for name in stale {
            let (shown, why) = self.shown(&name);
            self.has_news |= self.disbelieved.get(&name) != why.as_ref();
            match why {
                Some(why) => self.disbelieved.insert(name.clone(), why),
                None => self.disbelieved.remove(&name),
            };
            let is_absent = shown.is_some() && self.presence(&name).is_absent();
            if self.absent.contains(&name) != is_absent {
                let absent = Arc::make_mut(&mut self.absent);
                if is_absent {
                    absent.insert(name.clone())
                } else {
                    absent.remove(&name)
                };
            }
            let Some(snapshot) = &mut self.snapshot else {
                // Without settings there is no snapshot; this node's turn comes again with them.
                self.stale.insert(name);
                continue;
            };
            match (shown, snapshot.nodes.get(&name)) {
                (_, Some(_)) if self.retained.contains(&name) => {}
                (Some(new), Some(old)) if new == *old => {}
                (None, None) => {}
                (Some(new), _) => {
                    Arc::make_mut(snapshot).nodes.insert(name, new);
                }
                (None, Some(_)) => {
                    Arc::make_mut(snapshot).nodes.remove(&name);
                }
            }
        }
    }

    /// A node's record with the subnets that are its own, and which of its subnets are left out and why.
    fn shown(&self, name: &str) -> (Option<Arc<NodeRecord>>, Option<String>) {
        let Some(record) = self.node(name).value() else { return (None, None) };
        let is_own = |subnet: &IpNetwork| {
            let hold = self.hold(*subnet).value();
            hold.is_some_and(|hold| hold.is_of(name, &record.instance) && hold.resting.is_none())
        };
        let Some(foreign) = record.subnets.iter().find(|subnet| !is_own(subnet)) else {
            return (Some(record.clone()), None);
        };
        let owner = match self.hold(*foreign) {
            Slot::Absent => "nobody has claimed".to_owned(),
            Slot::Unreadable { .. } => "has an owner that cannot be read".to_owned(),
            Slot::Holds { value, .. } if value.resting.is_some() => "rests".to_owned(),
            Slot::Holds { value, .. } if value.node == name => {
                "another installation of it has claimed".to_owned()
            }
            Slot::Holds { value, .. } => format!("{} has claimed", value.node),
        };
        let why = format!("it says that it has {foreign}, which {owner}: left out");
        let own = record.subnets.iter().copied().filter(is_own).collect();
        (Some(Arc::new(NodeRecord { subnets: own, ..NodeRecord::clone(record) })), Some(why))
    }

    /// All that there is, as of the last [`Replica::settle`]; `None` without readable settings, now or before.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// Which nodes of the snapshot are not connected.
    pub fn absent(&self) -> &Arc<BTreeSet<String>> {
        &self.absent
    }

    /// Whether [`Replica::problems`] may have changed since this was asked last.
    pub fn has_new_problems(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// What an administrator should know, by key.
    pub fn problems(&self) -> impl Iterator<Item = (String, &str)> {
        let unreadable = self.unreadable.iter().map(|(key, why)| (key.clone(), why.as_str()));
        let disbelieved = self.disbelieved.iter().map(|(name, why)| (format!("nodes/{name}"), why.as_str()));
        unreadable.chain(disbelieved)
    }
}

/// The subnets that a node says it has: one of each family, which is all that the claims of others make room for.
fn subnets_of(slot: Option<&Slot<Arc<NodeRecord>>>) -> Vec<IpNetwork> {
    let record = slot.and_then(Slot::value);
    record.into_iter().flat_map(|record| record.subnets.iter().take(2).copied()).collect()
}

/// A key that is not ours, for a message: the first 100 characters, nothing that a terminal would obey.
fn printable(key: &str) -> String {
    key.chars().take(100).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"format":1,"name":"c","ranges":[{"range":"10.0.0.0/16","subnetPrefix":24}]}"#;

    fn hold(node: &str) -> String {
        format!(r#"{{"format":1,"node":"{node}","instance":"1","claimed":1}}"#)
    }

    fn node(name: &str, subnet: &str, mtu: u32) -> String {
        format!(
            r#"{{"format":1,"name":"{name}","instance":"1","addresses":["192.0.2.1"],"subnets":["{subnet}"],"mtu":{mtu}}}"#
        )
    }

    fn load(replica: &mut Replica, revision: u64, keys: &[(&str, &str)]) {
        for (key, value) in keys {
            replica.put(key, revision, value.as_bytes());
        }
        replica.reached(revision);
        replica.settle();
    }

    fn two_nodes() -> Replica {
        let mut replica = Replica::default();
        load(
            &mut replica,
            5,
            &[
                ("config", CONFIG),
                ("nodes/a", &node("a", "10.0.1.0/24", 1500)),
                ("nodes/b", &node("b", "10.0.2.0/24", 1500)),
                ("subnets/10.0.1.0-24", &hold("a")),
                ("subnets/10.0.2.0-24", &hold("b")),
                ("presence/a", r#"{"format":1,"instance":"1","boot":"1","session":"1"}"#),
            ],
        );
        replica
    }

    fn shown(replica: &Replica) -> BTreeMap<String, Arc<NodeRecord>> {
        replica.snapshot().unwrap().nodes.clone()
    }

    #[test]
    fn what_has_not_changed_is_shared_also_when_everything_is_read_again() {
        let mut replica = two_nodes();
        let before = shown(&replica);
        let whole = replica.snapshot().unwrap().clone();
        replica.put("nodes/b", 6, node("b", "10.0.2.0/24", 9000).as_bytes());
        replica.settle();
        assert!(Arc::ptr_eq(&before["a"], &shown(&replica)["a"]));
        assert_eq!(shown(&replica)["b"].mtu, Some(9000));
        assert_eq!(whole.nodes["b"].mtu, Some(1500), "what was told stays");

        let mut again = two_nodes().successor();
        again.snapshot = Some(whole.clone());
        load(
            &mut again,
            5,
            &[
                ("config", CONFIG),
                ("nodes/a", &node("a", "10.0.1.0/24", 1500)),
                ("subnets/10.0.1.0-24", &hold("a")),
            ],
        );
        assert!(Arc::ptr_eq(&before["a"], &shown(&again)["a"]));
        assert!(!shown(&again).contains_key("b"));
        let same = again.snapshot().unwrap().clone();
        again.put("presence/a", 9, br#"{"format":1,"instance":"1","boot":"1","session":"2"}"#);
        again.settle();
        assert!(Arc::ptr_eq(&same, again.snapshot().unwrap()), "presence is no part of it");
        assert!(again.absent().is_empty());
    }

    #[test]
    fn a_subnet_counts_only_while_its_key_names_the_node_and_its_installation() {
        for (key, left) in [
            (Some(hold("a")), 1),
            (None, 0),
            (Some(hold("b")), 0),
            (Some(hold("a").replace(r#""instance":"1""#, r#""instance":"2""#)), 0),
            (Some(hold("a").replace('}', r#","resting":"left"}"#)), 0),
            (Some("garbage".to_owned()), 0),
        ] {
            let mut replica = two_nodes();
            match &key {
                Some(value) => replica.put("subnets/10.0.1.0-24", 6, value.as_bytes()),
                None => replica.deleted("subnets/10.0.1.0-24", 6),
            }
            replica.settle();
            assert_eq!(shown(&replica)["a"].subnets.len(), left, "{key:?}");
            assert_eq!(replica.problems().any(|(key, _)| key == "nodes/a"), left == 0, "{key:?}");
            assert_eq!(shown(&replica)["b"].subnets.len(), 1);
        }
    }

    #[test]
    fn an_older_write_does_not_undo_a_newer_one() {
        let mut replica = two_nodes();
        replica.deleted("nodes/a", 9);
        replica.put("nodes/b", 8, node("b", "10.0.2.0/24", 9000).as_bytes());
        replica.put("nodes/b", 7, node("b", "10.0.2.0/24", 1400).as_bytes());
        replica.deleted("nodes/b", 6);
        replica.settle();
        assert_eq!(shown(&replica).keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(shown(&replica)["b"].mtu, Some(9000));
        assert_eq!(replica.revision(), 9);
    }

    #[test]
    fn nodes_that_a_backup_does_not_know_stay_until_they_had_the_time_to_say_so() {
        let mut replica = two_nodes();
        let before = shown(&replica);
        replica.retain();
        let mut restored = replica.successor();
        load(&mut restored, 3, &[("config", CONFIG), ("nodes/a", &node("a", "10.0.7.0/24", 1500))]);
        assert_eq!(shown(&restored), before);
        // One says what is so now.
        restored.put("subnets/10.0.1.0-24", 4, hold("a").as_bytes());
        restored.put("nodes/a", 4, node("a", "10.0.1.0/24", 9000).as_bytes());
        restored.settle();
        assert_eq!((shown(&restored)["a"].mtu, shown(&restored).len()), (Some(9000), 2));
        restored.release();
        restored.settle();
        assert_eq!(shown(&restored).keys().collect::<Vec<_>>(), ["a"]);
    }
}
