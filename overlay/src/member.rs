//! This node's part in the cluster, as far as the agent can know it: whether it is a member, whether it is ready, whether it
//! may take pods, and why not. PURE.
//!
//! Events go in; what follows from all of them is asked for afterwards, so that no order of events is forgotten.

mod condition;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podwire_ipam::NodeConfig;

use crate::claims::{BootTime, Contact, may_give_addresses};
use crate::cluster::Snapshot;
use crate::remembered::Recollection;
use crate::status::{StoreState, StoreStatus};
use crate::store::{Membership, Remembered, StoreEvent};

pub use condition::{Condition, Findings};

/// How long the dataplane may be without a successful pass before the node's health suffers by it: three times as long as
/// one pass is from the next.
const SILENT: Duration = Duration::from_secs(35);

/// What the overlay thread found in a pass.
#[derive(Debug, Clone, Default)]
pub struct Pass {
    /// The [`Knowledge::number`] that it was made for.
    pub number: u64,
    /// Whether the kernel is as it should be, but for single peers.
    pub is_in: bool,
    /// What failed, where it is not.
    pub failure: Option<String>,
    /// Why no other node can reach this one: it has no usable address.
    pub stranded: Option<String>,
    /// What plugins should know of the node; without the cluster's ranges, and whether pods are taken.
    pub node: Option<NodeConfig>,
}

/// What the overlay is made of.
#[derive(Debug, Clone)]
pub struct Knowledge {
    /// Grows with each change.
    pub number: u64,
    /// All nodes.
    pub snapshot: Arc<Snapshot>,
    /// This node's part.
    pub membership: Membership,
    /// Whether it comes from the store, not from the disk: only then is anything removed that is not in it.
    pub is_live: bool,
}

/// What is to be kept on the disk.
#[derive(Debug, Clone)]
pub struct Memorable {
    /// See [`Remembered::membership`].
    pub membership: Membership,
    /// See [`Remembered::snapshot`].
    pub snapshot: Arc<Snapshot>,
    /// See [`Remembered::mark`].
    pub mark: Option<(u64, u64)>,
    /// When the store was last heard of.
    pub contact: Option<Contact>,
    /// Why this node has its subnets no more, if it was told so.
    pub fenced: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    store: String,
    boot: String,
    membership: Option<Membership>,
    snapshot: Option<Arc<Snapshot>>,
    absent: Option<Arc<BTreeSet<String>>>,
    mark: Option<(u64, u64)>,
    /// Since the agent has started: the store said that this node is a member, and who else is.
    has_joined: bool,
    is_live: bool,
    number: u64,
    /// The first that was live.
    first_live: Option<u64>,
    state: StoreState,
    why: Option<String>,
    since: BootTime,
    heard: Option<BootTime>,
    contact: Option<Contact>,
    fenced: Option<String>,
    pass: Option<Pass>,
    /// When a pass last ended with everything right.
    right: Option<BootTime>,
    started: BootTime,
    was_ready: bool,
}

impl Member {
    /// A node that starts, with what it remembers.
    pub fn new(store: String, boot: String, recollection: Option<&Recollection>, now: BootTime) -> Self {
        let mut member = Self {
            store,
            boot,
            membership: None,
            snapshot: None,
            absent: None,
            mark: None,
            has_joined: false,
            is_live: false,
            number: 0,
            first_live: None,
            state: StoreState::Starting,
            why: None,
            since: now,
            heard: None,
            contact: None,
            fenced: None,
            pass: None,
            right: None,
            started: now,
            was_ready: false,
        };
        if let Some(Recollection { remembered, contact, fenced }) = recollection {
            let Remembered { membership, snapshot, mark } = remembered.clone();
            member.membership = Some(membership);
            member.snapshot = Some(Arc::new(snapshot));
            member.mark = mark;
            member.contact = contact.clone();
            member.fenced = fenced.clone();
            member.number = 1;
        }
        member
    }

    /// The store has said something.
    pub fn hear(&mut self, event: &StoreEvent, now: BootTime) {
        match event {
            StoreEvent::Lost { why } => {
                self.enter(StoreState::Lost, Some(why), now);
                return;
            }
            StoreEvent::Joined(membership) => {
                self.has_joined = true;
                self.fenced = None;
                if self.membership.as_ref() != Some(membership) {
                    self.membership = Some(membership.clone());
                    self.number += 1;
                }
                self.enter(StoreState::Connected, None, now);
            }
            StoreEvent::Snapshot { snapshot, absent, mark } => {
                let is_same = self.snapshot.as_ref().is_some_and(|known| Arc::ptr_eq(known, snapshot));
                if !is_same || !self.is_live {
                    self.number += 1;
                }
                self.snapshot = Some(Arc::clone(snapshot));
                self.absent.clone_from(absent);
                self.mark = *mark;
                self.is_live = true;
                // A node that is fenced or not let in goes on hearing of the others.
                if matches!(self.state, StoreState::Starting | StoreState::Lost) {
                    self.enter(self.settled(), self.fenced.clone().as_ref(), now);
                }
            }
            StoreEvent::Found => self.enter(self.settled(), self.fenced.clone().as_ref(), now),
            StoreEvent::Refused { why } => self.enter(StoreState::Refused, Some(why), now),
            StoreEvent::Fenced { why } => {
                self.fenced = Some(why.clone());
                self.enter(StoreState::Fenced, Some(why), now);
            }
            StoreEvent::Notice(_) => {}
        }
        if self.first_live.is_none() && self.is_live && self.membership.is_some() {
            self.first_live = Some(self.number);
        }
        self.heard = Some(now);
        self.contact = Some(Contact { boot: self.boot.clone(), seconds: now.0.as_secs() });
    }

    /// The state of a store that answers.
    fn settled(&self) -> StoreState {
        match self.fenced {
            Some(_) => StoreState::Fenced,
            None => StoreState::Connected,
        }
    }

    fn enter(&mut self, state: StoreState, why: Option<&String>, now: BootTime) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
        self.why = why.cloned();
    }

    /// A store that answers is in contact all the time, not only when something changes there.
    pub fn tick(&mut self, now: BootTime) {
        if matches!(self.state, StoreState::Connected | StoreState::Refused | StoreState::Fenced) {
            self.heard = Some(now);
            self.contact = Some(Contact { boot: self.boot.clone(), seconds: now.0.as_secs() });
        }
    }

    /// A pass of the overlay thread has ended.
    pub fn passed(&mut self, mut pass: Pass, now: BootTime) {
        if pass.is_in {
            self.right = Some(now);
        }
        if pass.node.is_none() {
            // What is known of a node that has lost its address is as good as before.
            pass.node = self.pass.take().and_then(|before| before.node);
        }
        let is_whole = pass.is_in && pass.stranded.is_none();
        self.was_ready |= is_whole && self.first_live.is_some_and(|first| pass.number >= first);
        self.pass = Some(pass);
    }

    /// The overlay thread has failed: what it said of the kernel holds no more.
    pub fn overlay_ended(&mut self) {
        self.pass = None;
        self.number += 1;
    }

    /// What the overlay is to be made of; `None` as long as nobody knows.
    pub fn knowledge(&self) -> Option<Knowledge> {
        let (membership, snapshot) = self.membership.clone().zip(self.snapshot.clone())?;
        Some(Knowledge { number: self.number, snapshot, membership, is_live: self.is_live })
    }

    /// What is to be remembered; `None` as long as there is nothing.
    pub fn memorable(&self) -> Option<Memorable> {
        let (membership, snapshot) = self.membership.clone().zip(self.snapshot.clone())?;
        let (contact, fenced) = (self.contact.clone(), self.fenced.clone());
        Some(Memorable { membership, snapshot, mark: self.mark, contact, fenced })
    }

    /// This node's part, if it is known.
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// All nodes, as last heard.
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.snapshot.as_ref()
    }

    /// Which of them are not connected to the store.
    pub fn absent(&self) -> Option<&Arc<BTreeSet<String>>> {
        self.absent.as_ref()
    }

    /// Whether the store has said that this node's subnets are not its own any more.
    pub fn is_fenced(&self) -> bool {
        self.fenced.is_some()
    }

    /// Whether what the cluster is was heard from the store since the agent has started.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Whether the node has once been ready since the agent started.
    pub fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Why no new pods are taken; `None` if they are, as far as the cluster goes.
    pub fn refusal(&self, now: BootTime) -> Option<String> {
        if let Some(why) = &self.fenced {
            return Some(format!("drain this node: {why}"));
        }
        if let (StoreState::Refused, Some(why)) = (self.state, &self.why) {
            return Some(format!("the cluster does not let this node in: {why}"));
        }
        if let Some(why) = self.stranded() {
            return Some(why.clone());
        }
        let config = &self.snapshot.as_ref()?.config;
        may_give_addresses(config, self.contact.as_ref(), &self.boot, now).err()
    }

    /// Why no other node can reach this one, as the last pass found.
    pub fn stranded(&self) -> Option<&String> {
        self.pass.as_ref().and_then(|pass| pass.stranded.as_ref())
    }

    /// What plugins are to be told; `None`: nothing new. A node that was never a member says nothing before it is ready,
    /// but why it is not let in.
    pub fn node(&self, now: BootTime) -> Option<NodeConfig> {
        let refuse = self.refusal(now);
        let Some(membership) = &self.membership else {
            return refuse.map(|why| NodeConfig { refuse: Some(why), ..NodeConfig::default() });
        };
        let told = self.pass.as_ref().and_then(|pass| pass.node.clone());
        let node = match told.filter(|node| node.subnets == membership.subnets) {
            Some(node) if self.is_from_disk() || self.was_ready => Some(node),
            _ => None,
        };
        let ranges = self.snapshot.iter().flat_map(|snapshot| &snapshot.config.ranges);
        let cluster_ranges = ranges.map(|range| range.range).collect();
        match (node, refuse) {
            (Some(node), refuse) => Some(NodeConfig { refuse, cluster_ranges, ..node }),
            (None, Some(refuse)) => Some(NodeConfig {
                subnets: membership.subnets.clone(),
                cluster_ranges,
                refuse: Some(refuse),
                ..NodeConfig::default()
            }),
            (None, None) => None,
        }
    }

    /// Whether the store has not answered yet, and all is as it was remembered.
    fn is_from_disk(&self) -> bool {
        !self.has_joined && self.membership.is_some()
    }

    /// What has to come before the node is ready; nothing if it is.
    pub fn waiting(&self, now: BootTime) -> Vec<String> {
        let lacking = self.lacking();
        if lacking.is_empty() { self.health(now) } else { lacking }
    }

    /// The same without what has been wrong with the dataplane for long.
    fn lacking(&self) -> Vec<String> {
        let mut lacking = Vec::new();
        match (&self.state, &self.why) {
            (StoreState::Refused, Some(why)) => {
                lacking.push(format!("the cluster does not let it in: {why}"))
            }
            (StoreState::Fenced, Some(why)) => lacking.push(format!("it has no subnet of its own: {why}")),
            _ if self.is_live && self.membership.is_some() => {}
            (_, Some(why)) => lacking.push(format!("{} has not answered yet: {why}", self.store)),
            (_, None) if self.is_live => lacking.push(format!("{} has given no subnet yet", self.store)),
            (_, None) => lacking.push(format!("{} has not said yet who the other nodes are", self.store)),
        }
        if lacking.is_empty() {
            match self.stranded() {
                Some(why) => lacking.push(why.clone()),
                None if self.was_ready => {}
                None => match self.failure() {
                    Some(failure) => lacking.push(format!("the overlay cannot be made: {failure}")),
                    None => lacking.push("the overlay is being made".to_owned()),
                },
            }
        }
        lacking
    }

    /// What is wrong with the dataplane; nothing if it is well, or has had no time yet.
    pub fn health(&self, now: BootTime) -> Vec<String> {
        let Some(silent) = self.silent(now) else { return Vec::new() };
        let seconds = silent.as_secs();
        match self.failure() {
            Some(failure) => vec![format!("the overlay has not been in order for {seconds} s: {failure}")],
            None => vec![format!("nobody has looked after the overlay for {seconds} s")],
        }
    }

    /// For how long the dataplane has not been right, if that is too long.
    fn silent(&self, now: BootTime) -> Option<Duration> {
        let since = self.right.unwrap_or(self.started);
        let silent = now.0.saturating_sub(since.0);
        (silent >= SILENT && self.knowledge().is_some()).then_some(silent)
    }

    /// What failed in the last pass, if not all was right.
    fn failure(&self) -> Option<&String> {
        self.pass.as_ref().and_then(|pass| pass.failure.as_ref())
    }

    /// The store, for people and programs.
    pub fn store_status(&self, now: BootTime) -> StoreStatus {
        StoreStatus {
            // The agent's configuration says it.
            kind: String::new(),
            description: self.store.clone(),
            state: self.state,
            why: self.why.clone(),
            since_seconds: now.0.saturating_sub(self.since.0).as_secs(),
            last_sync_seconds: self.synced_ago(now).map(|ago| ago.as_secs()),
            is_remembered: !self.is_live && self.snapshot.is_some(),
        }
    }

    /// How long ago the store was last heard of; `None`: not since the agent started.
    pub fn synced_ago(&self, now: BootTime) -> Option<Duration> {
        self.heard.map(|heard| now.0.saturating_sub(heard.0))
    }

    /// One line, for systemd.
    pub fn line(&self, now: BootTime) -> String {
        if let Some(refusal) = self.refusal(now) {
            return format!("takes no new pods: {refusal}");
        }
        if let Some(waiting) = self.waiting(now).first() {
            return format!("not ready: {waiting}");
        }
        let nodes = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.nodes.len());
        let subnets = self.membership.iter().flat_map(|membership| &membership.subnets);
        let subnets: Vec<String> = subnets.map(ToString::to_string).collect();
        let lost = match self.state {
            StoreState::Lost => format!("; {} does not answer", self.store),
            _ => String::new(),
        };
        format!("ready: {} of {nodes} nodes{lost}", subnets.join(", "))
    }
}

#[cfg(test)]
mod tests;
