//! What this node does about its own claim. PURE.

use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::change::{Change, Life, MOST_RESTS};
use super::key::Key;
use super::placement::{place, subnet_count};
use super::record::{Ended, Grace, Hold, Presence, Value};
use super::replica::{Replica, Slot};
use super::terms::{Lineage, fits};
use crate::cluster::{ClusterConfig, ClusterRange, NodeRecord};
use crate::store::{Announcement, Identity, Membership};

/// This node's claim.
#[derive(Debug, Clone)]
pub struct Claimant {
    identity: Identity,
    /// Which process this is: random.
    session: String,
    /// The settings for a store that has none.
    initial: Option<ClusterConfig>,
    /// What this node has, as far as it knows.
    membership: Option<Membership>,
    /// It was seen to be a member since this process began.
    joined: bool,
    /// Its own presence was seen since this process began.
    present: bool,
    /// The store went back in time, and that is not yet written down.
    went_back: bool,
    /// Its membership was ended: nothing more is done until the agent is started again.
    ended: Option<String>,
}

/// What a decision depends on, besides the store.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// What this node has to say of itself.
    pub announcement: &'a Announcement,
    /// Whether pods of this node have addresses of its subnets.
    pub has_pods: bool,
    /// Which course of history the store is on, if that is known.
    pub lineage: Option<Lineage>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This transaction; then decide again, with what came of it.
    Commit(Change),
    /// Nothing until something changes.
    Wait {
        /// Where this node stands.
        standing: Standing,
        /// What could not be had, while the rest was.
        lacks: Option<String>,
    },
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a member.
    Member(Membership),
    /// It is not a member, and why.
    Refused(String),
    /// It was a member, and why it is not any more.
    Fenced(String),
}

/// For how many subnets a place is looked for where something odd stands in the range.
const LONGEST_SEARCH: usize = 1 << 12;

/// Why a subnet that this node knows as its own is not its own now.
struct Lost {
    subnet: IpNetwork,
    why: String,
}

impl Claimant {
    /// A node that starts. `membership` is what it remembers, and `known` the settings that it remembers; `initial` are
    /// those of its own file. `session` is random.
    pub fn new(
        identity: Identity,
        session: String,
        membership: Option<Membership>,
        known: Option<ClusterConfig>,
        initial: Option<ClusterConfig>,
    ) -> Self {
        Self {
            identity,
            session,
            initial: known.or(initial),
            membership,
            joined: false,
            present: false,
            went_back: false,
            ended: None,
        }
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The store answered with something older than it had before: a backup was restored.
    pub fn went_back(&mut self) {
        self.went_back = true;
    }

    /// The transaction by which this node leaves. When it is through, [`Claimant::left`].
    pub fn leave(&self, replica: &Replica) -> Change {
        let Identity { name, instance, .. } = &self.identity;
        let mut change = Change::new("leave the cluster");
        let mine = |(_, hold): &(IpNetwork, &Hold)| hold.instance == *instance && hold.resting.is_none();
        for (subnet, hold) in replica.holds_of(name).filter(mine).take(MOST_RESTS) {
            change.rest(replica, subnet, hold, Ended::Left);
        }
        if replica.node(name).value().is_some_and(|record| record.instance == *instance) {
            change.delete(replica, Key::Node(name.clone()));
        }
        if replica.presence(name).value().is_some_and(|presence| presence.session == self.session) {
            change.delete(replica, Key::Presence(name.clone()));
        }
        change
    }

    /// This node has left.
    pub fn left(&mut self) {
        self.ended = Some("this node has left the cluster: start podwired again to join again".to_owned());
    }

    /// Whether nothing more is done until the agent is started again.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// What is to be done now.
    pub fn step(&mut self, replica: &Replica, facts: &Facts) -> Step {
        if !replica.grace().is_absent() {
            self.went_back = false;
        }
        let name = &self.identity.name;
        if let Slot::Holds { value, .. } = replica.presence(name)
            && value.session == self.session
        {
            self.present = true;
        }
        if let Some(why) = &self.ended {
            return fenced(why.clone());
        }
        let config = match replica.config() {
            Slot::Holds { value, .. } => value.clone(),
            Slot::Absent => return self.create_config(replica, facts),
            Slot::Unreadable { .. } => {
                return self.stay_or(refused(
                    "the cluster's settings cannot be read: see the notice about `config`",
                ));
            }
        };
        self.initial = Some(config.clone());
        if let Some(change) = self.keep_epoch(replica, facts) {
            return Step::Commit(change);
        }
        if self.joined && self.was_removed(replica) {
            let why = "this node was removed from the cluster: move its pods away; start podwired again to join again";
            self.ended = Some(why.to_owned());
            return fenced(why);
        }
        if let Some(why) = self.usurped(replica) {
            return if self.joined && replica.grace().is_absent() { fenced(why) } else { refused(why) };
        }
        self.claim(replica, facts, &config)
    }

    /// Keeps a member a member where something is wrong that is not about it.
    fn stay_or(&self, otherwise: Step) -> Step {
        match &self.membership {
            Some(membership) if self.joined => {
                Step::Wait { standing: Standing::Member(membership.clone()), lacks: None }
            }
            _ => otherwise,
        }
    }

    fn was_removed(&self, replica: &Replica) -> bool {
        let Identity { name, instance, .. } = &self.identity;
        let epoch = replica.epoch().value().map_or(0, |epoch| epoch.number);
        // One that a backup brought back was long over.
        let is_removed = |hold: &Hold| {
            hold.is_of(name, instance) && hold.resting == Some(Ended::Removed) && hold.epoch >= epoch
        };
        let mut subnets = self.membership.iter().flat_map(|membership| &membership.subnets);
        subnets.any(|subnet| replica.hold(*subnet).value().is_some_and(is_removed))
    }

    fn create_config(&self, replica: &Replica, facts: &Facts) -> Step {
        let Some(config) = &self.initial else {
            return refused(
                "the cluster has no settings yet, and this node's configuration names none: give at least `cluster.range` on \
                 one node",
            );
        };
        let mut change = Change::new("write the cluster's first settings");
        change.put(replica, Key::Config, Value::Config(config.clone()), Life::Lasting);
        self.put_epoch(replica, facts, &mut change, self.went_back);
        Step::Commit(change)
    }

    /// Writes down a new epoch where none is, or where the store was restored from a backup.
    fn keep_epoch(&self, replica: &Replica, facts: &Facts) -> Option<Change> {
        let left = |lineage: &Lineage| {
            replica.epoch().value().is_some_and(|epoch| {
                // An epoch that began after the look at the lineage began on the same course: a restored store is another connection.
                replica.epoch().revision() <= lineage.revision && lineage.left(epoch)
            })
        };
        let restored = self.went_back || facts.lineage.as_ref().is_some_and(left);
        if !restored && (!replica.epoch().is_absent() || facts.lineage.is_none()) {
            return None;
        }
        let why =
            if restored { "the store was restored from a backup" } else { "write down the first epoch" };
        let mut change = Change::new(why);
        self.put_epoch(replica, facts, &mut change, restored);
        Some(change)
    }

    fn put_epoch(&self, replica: &Replica, facts: &Facts, change: &mut Change, grace: bool) {
        if let Some(lineage) = facts.lineage
            && (replica.epoch().is_absent() || grace && replica.epoch().value().is_some())
        {
            let number = replica.epoch().value().map_or(0, |epoch| epoch.number);
            let number = if grace { number.saturating_add(1) } else { number };
            change.put(replica, Key::Epoch, Value::Epoch(lineage.begin(number)), Life::Lasting);
        }
        if grace {
            let node = self.identity.name.clone();
            change.put(replica, Key::Grace, Value::Grace(Grace { node }), Life::Grace);
        }
    }

    /// Whether another machine or process is there as this node.
    fn usurped(&self, replica: &Replica) -> Option<String> {
        let Identity { name, instance, boot } = &self.identity;
        let other = match replica.presence(name) {
            Slot::Absent => return None,
            Slot::Unreadable { .. } => {
                return Some(format!("presence/{name} cannot be read: another version may run as {name}"));
            }
            Slot::Holds { value, .. } => value,
        };
        if other.instance != *instance {
            Some(format!(
                "another machine is in the cluster as {name} (installation {}; this one is {instance}): give one of them \
                 another node_name",
                other.instance
            ))
        } else if other.boot != *boot {
            Some(format!(
                "another machine with a copy of this one's disk is in the cluster as {name}, or this one was started anew \
                 less than a minute ago: on a copy, remove podwired's identity.json and give it another node_name"
            ))
        } else if other.session != self.session && self.present && replica.grace().is_absent() {
            Some(format!(
                "another podwired is in the cluster as {name} from this machine, or from a copy of it in memory"
            ))
        } else {
            None
        }
    }

    /// Takes what is this node's, or what is free; brings what the store says of this node up to date.
    fn claim(&mut self, replica: &Replica, facts: &Facts, config: &ClusterConfig) -> Step {
        let identity = self.identity.clone();
        let Identity { name, instance, .. } = &identity;
        let before = self.known(replica, config);
        let (kept, lost) = self.sort(replica, config, &before);
        if !lost.is_empty() && facts.has_pods {
            let mut change = Change::new("say that this node is there, though without its subnets");
            self.keep_presence(replica, &mut change);
            return if change.writes.is_empty() { fenced(complaint(&lost)) } else { Step::Commit(change) };
        }
        let mut change = Change::new("join the cluster");
        change.require(replica, Key::Config);
        let mut subnets = kept;
        let mut lacks = None;
        let mut is_new = false;
        let mut claimed = before.as_ref().map_or(0, |before| before.claimed);
        for range in &config.ranges {
            if subnets.iter().any(|subnet| fits(range, subnet)) {
                continue;
            }
            // What it was given just now, or does not remember to have.
            let mut mine = replica.holds_of(name).filter(|(subnet, hold)| {
                hold.instance == *instance && hold.resting.is_none() && fits(range, subnet)
            });
            if let Some((subnet, hold)) = mine.next() {
                claimed = claimed.max(hold.claimed);
                subnets.push(subnet);
                continue;
            }
            match self.place(replica, range) {
                Ok(subnet) => {
                    is_new = true;
                    subnets.push(subnet);
                }
                Err(why) if subnets.is_empty() && lacks.is_none() && before.is_none() => return refused(why),
                Err(why) => lacks = Some(why),
            }
        }
        if subnets.is_empty() || (before.is_none() && lacks.is_some()) {
            return refused(lacks.unwrap_or_default());
        }
        subnets.sort_by_key(|subnet| config.ranges.iter().position(|range| fits(range, subnet)));
        if is_new {
            change.require(replica, Key::Epoch);
            change.require(replica, Key::Grace);
        }

        // What belongs to another life of this name rests, and what this life has too much.
        for (subnet, hold) in replica.holds_of(name) {
            if change.writes.len() >= MOST_RESTS {
                break;
            }
            if hold.resting.is_none() && hold.instance != *instance {
                change.rest(replica, subnet, hold, Ended::Replaced);
            } else if hold.resting.is_none() && !subnets.contains(&subnet) {
                change.rest(replica, subnet, hold, Ended::Surplus);
            }
        }
        let record = replica.node(name).value();
        let earlier = record.map_or(0, |record| record.generation);
        let membership = Membership {
            subnets: subnets.clone(),
            generation: match (&before, record) {
                (Some(before), None) => before.generation,
                (Some(before), Some(record)) if record.instance == *instance => before.generation,
                _ => earlier.saturating_add(1).max(replica.revision()),
            },
            claimed: if is_new { replica.revision() } else { claimed },
            addresses: Vec::new(),
        };
        let epoch = replica.epoch().value().map_or(0, |epoch| epoch.number);
        for subnet in &subnets {
            let key = Key::Subnet(*subnet);
            let is_ours = |hold: &Hold| hold.is_of(name, instance) && hold.resting.is_none();
            if replica.hold(*subnet).value().is_some_and(is_ours) {
                change.require(replica, key);
                continue;
            }
            let hold = Hold {
                node: name.clone(),
                instance: instance.clone(),
                claimed: membership.claimed,
                epoch,
                resting: None,
            };
            change.put(replica, key, Value::Subnet(hold), Life::Lasting);
        }
        self.keep_record(replica, facts, &membership, &mut change);
        self.keep_presence(replica, &mut change);
        if !change.writes.is_empty() {
            return Step::Commit(change);
        }
        self.joined = true;
        self.membership = Some(membership.clone());
        Step::Wait { standing: Standing::Member(membership), lacks }
    }

    /// What this node has: what it remembers, else what the store says of this installation.
    fn known(&self, replica: &Replica, config: &ClusterConfig) -> Option<Membership> {
        if let Some(membership) = &self.membership {
            return Some(membership.clone());
        }
        let Identity { name, instance, .. } = &self.identity;
        let mine =
            replica.holds_of(name).filter(|(_, hold)| hold.instance == *instance && hold.resting.is_none());
        let mine: Vec<_> = mine.collect();
        let subnets: Vec<_> = config
            .ranges
            .iter()
            .filter_map(|range| mine.iter().map(|(subnet, _)| *subnet).find(|subnet| fits(range, subnet)))
            .collect();
        let claimed = mine.iter().map(|(_, hold)| hold.claimed).max()?;
        if subnets.is_empty() {
            return None;
        }
        let record = replica.node(name).value().filter(|record| record.instance == *instance);
        let generation = record.map_or(claimed, |record| record.generation);
        Some(Membership { subnets, generation, claimed, addresses: Vec::new() })
    }

    /// Which subnets of a membership this node has or can have back, and which not.
    fn sort(
        &self,
        replica: &Replica,
        config: &ClusterConfig,
        membership: &Option<Membership>,
    ) -> (Vec<IpNetwork>, Vec<Lost>) {
        let Identity { name, instance, .. } = &self.identity;
        let epoch = replica.epoch().value().map_or(0, |epoch| epoch.number);
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        let Some(membership) = membership else { return (kept, lost) };
        for subnet in membership.subnets.iter().copied() {
            let why = if !config.ranges.iter().any(|range| fits(range, &subnet)) {
                Some(format!("{subnet} is not in the cluster's ranges any more"))
            } else {
                match replica.hold(subnet) {
                    Slot::Absent => None,
                    Slot::Unreadable { .. } => Some(format!("{subnet} has an owner that cannot be read")),
                    Slot::Holds { value: hold, .. } if hold.is_of(name, instance) => None,
                    // In the course of history that the backup cut off, this node could only claim it once that claim had
                    // ended.
                    Slot::Holds { value: hold, .. }
                        if hold.epoch < epoch && hold.claimed < membership.claimed =>
                    {
                        None
                    }
                    Slot::Holds { value: hold, .. } => Some(format!("{subnet} is now {}'s", hold.node)),
                }
            };
            match why {
                None => kept.push(subnet),
                Some(why) => lost.push(Lost { subnet, why }),
            }
        }
        // One for each range: settings that were changed by hand can make two fit.
        let mut ranges: Vec<&ClusterRange> = Vec::new();
        kept.retain(|subnet| {
            let range = config.ranges.iter().find(|range| fits(range, subnet));
            let is_first = range.is_some_and(|range| !ranges.contains(&range));
            ranges.extend(range);
            is_first
        });
        lost.sort_by_key(|lost| lost.subnet);
        (kept, lost)
    }

    /// A subnet that is nobody's.
    fn place(&self, replica: &Replica, range: &ClusterRange) -> Result<IpNetwork, String> {
        if !replica.grace().is_absent() {
            return Err(
                "etcd was restored from a backup: no node gets new subnets before those that have some had the time to say so; \
                 this takes some minutes"
                    .to_owned(),
            );
        }
        let holds = replica.holds();
        // Settings and holds can be changed by hand: a hold of another size takes all that it overlaps.
        let odd: Vec<_> = if replica.has_other_sizes(range.range.is_ipv4(), range.subnet_prefix) {
            holds.keys().filter(|held| !fits(range, held) && overlap(held, &range.range)).collect()
        } else {
            Vec::new()
        };
        let is_taken =
            |subnet: &IpNetwork| holds.contains_key(subnet) || odd.iter().any(|held| overlap(held, subnet));
        // A record whose claim somebody deleted by hand is of a node that goes on using it until it notices.
        let is_taken =
            |subnet: &IpNetwork| is_taken(subnet) || replica.is_said_of_another(subnet, &self.identity.name);
        // An odd hold can take more subnets than one.
        let most = holds.len() + replica.said_count() + if odd.is_empty() { 0 } else { LONGEST_SEARCH };
        place(range, &self.identity.name, most, is_taken).ok_or_else(|| {
            let inside = || holds.iter().filter(|(held, _)| overlap(held, &range.range));
            let resting =
                inside().filter(|(_, hold)| hold.value().is_some_and(|hold| hold.resting.is_some())).count();
            format!(
                "range {} is exhausted: of its {} subnets of /{} nodes have {}, and {resting} rest for some minutes. Remove \
                 nodes that are gone (podwirectl node rm), or widen the range",
                range.range,
                subnet_count(range),
                range.subnet_prefix,
                inside().count() - resting,
            )
        })
    }

    /// Brings what this node says of itself up to date, once it has something to say.
    fn keep_record(&self, replica: &Replica, facts: &Facts, membership: &Membership, change: &mut Change) {
        let Identity { name, instance, .. } = &self.identity;
        let key = Key::Node(name.clone());
        let there = replica.node(name);
        let Announcement { addresses, mtu, receives, sends } = facts.announcement;
        if addresses.is_empty() {
            // What it said before it was started again stands; what another installation of it said does not.
            match there {
                Slot::Holds { value, .. } if value.instance != *instance => change.delete(replica, key),
                _ => change.require(replica, key),
            }
            return;
        }
        let record = NodeRecord {
            name: name.clone(),
            instance: instance.clone(),
            generation: membership.generation,
            addresses: addresses.clone(),
            subnets: membership.subnets.clone(),
            claimed: membership.claimed,
            mtu: *mtu,
            receives: receives.clone(),
            sends: *sends,
            same_family: false,
        };
        if there.value().map(Arc::as_ref) == Some(&record) {
            change.require(replica, key);
        } else {
            change.put(replica, key, Value::Node(record), Life::Lasting);
        }
    }

    fn keep_presence(&self, replica: &Replica, change: &mut Change) {
        let Identity { name, instance, boot } = &self.identity;
        let key = Key::Presence(name.clone());
        if replica.presence(name).value().is_some_and(|presence| presence.session == self.session) {
            change.require(replica, key);
        } else {
            let (instance, boot, session) = (instance.clone(), boot.clone(), self.session.clone());
            change.put(replica, key, Value::Presence(Presence { instance, boot, session }), Life::Presence);
        }
    }
}

fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}

fn complaint(lost: &[Lost]) -> String {
    let why: Vec<_> = lost.iter().map(|lost| lost.why.as_str()).collect();
    format!(
        "{}: move the pods of this node away (drain it); it gets other subnets when no pod is left",
        why.join(", ")
    )
}

fn refused(why: impl Into<String>) -> Step {
    Step::Wait { standing: Standing::Refused(why.into()), lacks: None }
}

fn fenced(why: impl Into<String>) -> Step {
    Step::Wait { standing: Standing::Fenced(why.into()), lacks: None }
}
