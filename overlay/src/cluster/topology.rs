//! What is left of a snapshot after everything that makes no sense, or would harm others, has been left out by name. PURE.
//!
//! A record may be wrong by itself (an address that no node can have, a subnet outside the cluster's ranges) or beside
//! another (two nodes that claim one subnet). Either way the rest of the cluster goes on as if it were not there, and a
//! [`Problem`] says why. Which of two wins does not depend on who looks: every node comes to the same answer.
//!
//! A cluster may have thousands of nodes of which one changes at a time, so a topology is brought up to date in place:
//! a record that is the same `Arc` as before is not looked at again, and its [`Peer`] is the same `Arc` too.

mod check;
mod record;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;
use sha2::{Digest, Sha256};

use super::{ClusterConfig, Encapsulation, NodeRecord, Snapshot, Vtep};
use crate::store::Membership;

pub use check::{ConfigError, check_config};
use record::{Judge, Verdict};

/// A node that pods of this one can have to do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it says of itself.
    pub record: Arc<NodeRecord>,
    /// What it receives: [`NodeRecord::receives`], or what stands for it where the store does not say. The first of an
    /// encapsulation counts.
    pub vteps: Vec<Vtep>,
    /// Its subnets.
    pub subnets: Vec<PeerSubnet>,
}

/// A peer's subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSubnet {
    /// Which.
    pub network: IpNetwork,
    /// The metric of the route to it. The kernel hashes IPv4 routes by device and metric but not by gateway: with one
    /// metric for all, each of 15,000 inserts would look through all others. So an IPv4 subnet has the number of its
    /// place within the cluster's range, plus 1. IPv6 gains nothing by that.
    pub metric: u32,
}

/// The metric of routes to IPv6 subnets: the kernel's own default.
pub const METRIC6: u32 = 1024;

impl Peer {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its end of the tunnel in that segment; `None` if it does not receive it.
    pub fn vtep(&self, encapsulation: Encapsulation) -> Option<&Vtep> {
        self.vteps.iter().find(|vtep| vtep.encapsulation == encapsulation)
    }
}

/// Something that an administrator should know: a record that is left out, or what stands in the way on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Of which kind.
    pub kind: ProblemKind,
    /// Which node's record it is about; `None` for this node itself. A hostile name is cut and escaped.
    pub node: Option<String>,
    /// What is wrong, whose fault it is, and what to do about it.
    pub text: String,
}

impl Problem {
    pub(crate) fn of(kind: ProblemKind, node: &str, text: impl fmt::Display) -> Self {
        let node = shown(node);
        Self { kind, text: format!("node {node}: {text}"), node: Some(node) }
    }

    pub(crate) fn here(kind: ProblemKind, text: impl Into<String>) -> Self {
        Self { kind, node: None, text: text.into() }
    }

    /// Whether it is about the record of the node of that name.
    pub fn is_of(&self, node: &str) -> bool {
        self.node.as_ref().is_some_and(|about| *about == shown(node))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// See [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// A record that makes no sense by itself; it is left out.
    Record,
    /// A record that claims what another node has by better right; it is left out.
    Conflict,
    /// A record that claims what is this node's own; it is left out.
    Own,
    /// Two nodes say that they are at one address. Neither is left out: it may be a name that is gone.
    SameAddress,
    /// Nothing that this node sends is received there, or no address family is common: no route is made.
    Unreachable,
    /// This node has no address to reach others by.
    Underlay,
    /// Somebody else's device has this node's VNI and port, or its name.
    Device,
    /// Somebody else's route takes packets to a peer's subnet, or stands in our route's place.
    Route,
    /// The pods' bridge has somebody else's address.
    Bridge,
}

impl ProblemKind {
    /// Its name, for metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Conflict => "conflict",
            Self::Own => "own",
            Self::SameAddress => "same-address",
            Self::Unreachable => "unreachable",
            Self::Underlay => "underlay",
            Self::Device => "device",
            Self::Route => "route",
            Self::Bridge => "bridge",
        }
    }
}

/// A text of a record as it may be shown: short, and without control characters.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}

/// The Ethernet address of a node's VTEP: the same after a reboot, on another installation of that name, and for both
/// address families of the underlay. All other nodes can tell it from the name.
pub fn vtep_mac(cluster: &str, node: &str, vni: u32) -> MacAddr {
    let mut hash = Sha256::new();
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    hash.update((cluster.len() as u64).to_be_bytes());
    hash.update(cluster);
    hash.update(node);
    hash.update(vni.to_be_bytes());
    let [a, b, c, d, e, f, ..] = <[u8; 32]>::from(hash.finalize());
    MacAddr::local([a, b, c, d, e, f])
}

/// The nodes of a cluster as this one takes them; see the [module](self).
#[derive(Debug)]
pub struct Topology {
    name: String,
    membership: Membership,
    config: ClusterConfig,
    /// All records, by name.
    nodes: Vec<Judged>,
    /// Who says that something is theirs which only one node can have.
    claims: HashMap<Claim, Claimants>,
    /// Addresses that more than one says to be at.
    shared: BTreeSet<IpAddr>,
    /// Peers that lose by a claim, by name.
    losers: BTreeMap<String, Problem>,
    /// What is left.
    peers: Vec<Arc<Peer>>,
}

#[derive(Debug)]
struct Judged {
    record: Arc<NodeRecord>,
    verdict: Verdict,
}

/// What only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Claim {
    Subnet(IpNetwork),
    Mac(Encapsulation, MacAddr),
    /// More than one may say so; see [`ProblemKind::SameAddress`].
    Address(IpAddr),
}

/// One, as a rule: then nothing is allocated.
#[derive(Debug)]
struct Claimants {
    first: Arc<Peer>,
    others: Vec<Arc<Peer>>,
}

impl Claimants {
    fn all(&self) -> impl Iterator<Item = &Arc<Peer>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

fn claims(peer: &Peer) -> impl Iterator<Item = Claim> {
    let subnets = peer.subnets.iter().map(|subnet| Claim::Subnet(subnet.network));
    let macs = peer.vteps.iter().flat_map(|vtep| {
        let other = vtep.mac6.filter(|mac6| *mac6 != vtep.mac);
        std::iter::once(vtep.mac).chain(other).map(|mac| Claim::Mac(vtep.encapsulation, mac))
    });
    let addresses = peer.record.addresses.iter().map(|address| Claim::Address(*address));
    subnets.chain(macs).chain(addresses)
}

impl Topology {
    /// The topology of a snapshot as the node of that name sees it.
    ///
    /// # Errors
    /// The shared settings make no sense.
    pub fn new(name: &str, membership: &Membership, snapshot: &Snapshot) -> Result<Self, ConfigError> {
        check_config(&snapshot.config)?;
        let mut topology = Self {
            name: name.to_owned(),
            membership: membership.clone(),
            config: snapshot.config.clone(),
            nodes: Vec::new(),
            claims: HashMap::with_capacity(4 * snapshot.nodes.len()),
            shared: BTreeSet::new(),
            losers: BTreeMap::new(),
            peers: Vec::new(),
        };
        topology.merge(snapshot);
        Ok(topology)
    }

    /// Brings it up to date. Says whether anything changed that could make a difference.
    ///
    /// # Errors
    /// The shared settings make no sense; everything is as it was.
    pub fn update(&mut self, membership: &Membership, snapshot: &Snapshot) -> Result<bool, ConfigError> {
        if self.config != snapshot.config || self.membership != *membership {
            *self = Self::new(&self.name, membership, snapshot)?;
            return Ok(true);
        }
        Ok(self.merge(snapshot))
    }

    /// This node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This node's part of the cluster.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The shared settings; they make sense.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// The other nodes, by name: those that have subnets and an address, and nothing wrong.
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// Who is left out and why, and what else looks wrong.
    pub fn problems(&self) -> Vec<Problem> {
        let wrong = self.nodes.iter().filter_map(|node| match &node.verdict {
            Verdict::Wrong(problem) => Some(problem),
            _ => None,
        });
        let mut problems: Vec<_> = wrong.chain(self.losers.values()).cloned().collect();
        for address in &self.shared {
            if let Some(claimants) = self.claims.get(&Claim::Address(*address)) {
                let mut names: Vec<_> = claimants.all().map(|peer| shown(peer.name())).collect();
                names.sort();
                for name in &names {
                    let text = format!(
                        "it says that it is at {address}, and so do others ({}): remove the ones that are gone with \
                         `podwirectl node rm`",
                        names.join(", ")
                    );
                    problems.push(Problem::of(ProblemKind::SameAddress, name, text));
                }
            }
        }
        problems.sort();
        problems
    }

    /// Brings it up to date where the same nodes are there as before: what has not changed is neither moved nor looked
    /// at, beyond whether it is the same record. `None` if others are there.
    fn amend(&mut self, snapshot: &Snapshot) -> Option<bool> {
        if self.nodes.len() != snapshot.nodes.len() {
            return None;
        }
        let mut others = Vec::new();
        for (place, (node, (key, record))) in self.nodes.iter().zip(&snapshot.nodes).enumerate() {
            if Arc::ptr_eq(&node.record, record) {
                continue;
            }
            if node.record.name != *key || record.name != *key {
                return None;
            }
            if node.record != *record {
                others.push((place, key, record));
            }
        }
        if others.is_empty() {
            return Some(false);
        }
        let mut touched = Vec::new();
        let mut is_same_crowd = self.losers.is_empty();
        let (name, membership, config) = (self.name.clone(), self.membership.clone(), self.config.clone());
        let judge = Judge::new(&name, &membership, &config);
        let mut renewed = Vec::with_capacity(others.len());
        for (place, key, record) in others {
            let now = Judged { record: Arc::clone(record), verdict: judge.judge(key, record) };
            match &now.verdict {
                Verdict::Good(peer) => renewed.push(Arc::clone(peer)),
                _ => is_same_crowd = false,
            }
            let Some(node) = self.nodes.get_mut(place) else { continue };
            let before = std::mem::replace(node, now);
            is_same_crowd &= matches!(before.verdict, Verdict::Good(_));
            self.forget(&before, &mut touched);
        }
        renewed.iter().for_each(|peer| self.remember(peer, &mut touched));
        self.settle(touched);
        is_same_crowd &= self.losers.is_empty();
        for peer in renewed.into_iter().take_while(|_| is_same_crowd) {
            let place = self.peers.binary_search_by(|other| other.name().cmp(peer.name()));
            if let Some(known) = place.ok().and_then(|place| self.peers.get_mut(place)) {
                *known = peer;
            }
        }
        if !is_same_crowd {
            self.gather();
        }
        Some(true)
    }

    /// All that are right and lose nothing.
    fn gather(&mut self) {
        let good = self.nodes.iter().filter_map(|node| match &node.verdict {
            Verdict::Good(peer) => Some(peer),
            _ => None,
        });
        let losers = &self.losers;
        self.peers = if losers.is_empty() {
            good.cloned().collect()
        } else {
            good.filter(|peer| !losers.contains_key(peer.name())).cloned().collect()
        };
    }

    /// Both sides are sorted by name, so one walk finds what differs.
    fn merge(&mut self, snapshot: &Snapshot) -> bool {
        if let Some(changed) = self.amend(snapshot) {
            return changed;
        }
        let mut touched = Vec::new();
        let mut changed = false;
        let mut old = std::mem::take(&mut self.nodes).into_iter().peekable();
        let mut nodes = Vec::with_capacity(snapshot.nodes.len());
        let (name, membership, config) = (self.name.clone(), self.membership.clone(), self.config.clone());
        let judge = Judge::new(&name, &membership, &config);
        for (key, record) in &snapshot.nodes {
            while let Some(gone) = old.next_if(|node| node.record.name < *key) {
                changed = true;
                self.forget(&gone, &mut touched);
            }
            let before = old.next_if(|node| node.record.name == *key);
            match before {
                Some(same) if Arc::ptr_eq(&same.record, record) || same.record == *record => {
                    nodes.push(same);
                    continue;
                }
                Some(other) => self.forget(&other, &mut touched),
                None => {}
            }
            changed = true;
            let verdict = judge.judge(key, record);
            // A record under another's key is known by the key, as is whatever comes in its place.
            let record = if record.name == *key {
                Arc::clone(record)
            } else {
                Arc::new(NodeRecord { name: key.clone(), ..NodeRecord::clone(record) })
            };
            if let Verdict::Good(peer) = &verdict {
                self.remember(peer, &mut touched);
            }
            nodes.push(Judged { record, verdict });
        }
        for gone in old {
            changed = true;
            self.forget(&gone, &mut touched);
        }
        self.nodes = nodes;
        if changed {
            self.settle(touched);
            self.gather();
        }
        changed
    }

    fn remember(&mut self, peer: &Arc<Peer>, touched: &mut Vec<Claim>) {
        for claim in claims(peer) {
            match self.claims.entry(claim) {
                Entry::Vacant(free) => {
                    free.insert(Claimants { first: Arc::clone(peer), others: Vec::new() });
                }
                Entry::Occupied(mut taken) => {
                    taken.get_mut().others.push(Arc::clone(peer));
                    if let Claim::Address(address) = claim {
                        self.shared.insert(address);
                    }
                    touched.push(claim);
                }
            }
        }
    }

    fn forget(&mut self, node: &Judged, touched: &mut Vec<Claim>) {
        let Verdict::Good(peer) = &node.verdict else { return };
        self.losers.remove(peer.name());
        for claim in claims(peer) {
            let Entry::Occupied(mut taken) = self.claims.entry(claim) else { continue };
            let claimants = taken.get_mut();
            touched.push(claim);
            if claimants.others.len() < 2
                && let Claim::Address(address) = claim
            {
                self.shared.remove(&address);
            }
            if !Arc::ptr_eq(&claimants.first, peer) {
                claimants.others.retain(|other| !Arc::ptr_eq(other, peer));
            } else if let Some(next) = claimants.others.pop() {
                claimants.first = next;
            } else {
                taken.remove();
            }
        }
    }

    /// Decides again about everybody who shares one of these claims with anybody.
    fn settle(&mut self, touched: Vec<Claim>) {
        let concerned: Vec<_> = touched
            .iter()
            .filter_map(|claim| self.claims.get(claim))
            .flat_map(|claimants| claimants.all().cloned())
            .collect();
        for peer in concerned {
            match self.loses(&peer) {
                Some(problem) => self.losers.insert(peer.name().to_owned(), problem),
                None => self.losers.remove(peer.name()),
            };
        }
    }

    fn loses(&self, peer: &Arc<Peer>) -> Option<Problem> {
        claims(peer).find_map(|claim| {
            let claimants = self.claims.get(&claim)?;
            if claimants.others.is_empty() || matches!(claim, Claim::Address(_)) {
                return None;
            }
            let best = claimants.all().min_by_key(|peer| self.rank(peer, claim))?;
            if Arc::ptr_eq(best, peer) {
                return None;
            }
            let what = match claim {
                Claim::Subnet(subnet) => format!("it claims subnet {subnet}"),
                Claim::Mac(encapsulation, mac) => {
                    format!("it claims VTEP MAC address {mac} (VNI {})", encapsulation.vni)
                }
                Claim::Address(_) => return None,
            };
            let text = format!(
                "{what}, which is {}'s by older right: it is left out until one of them is changed or removed",
                shown(best.name())
            );
            Some(Problem::of(ProblemKind::Conflict, peer.name(), text))
        })
    }

    /// Lower is better. A MAC address that follows from the node's name is that node's, whoever else says so.
    fn rank<'a>(&self, peer: &'a Peer, claim: Claim) -> (bool, u64, &'a str) {
        let strange = match claim {
            Claim::Mac(encapsulation, mac) => {
                mac != vtep_mac(&self.config.name, peer.name(), encapsulation.vni)
            }
            Claim::Subnet(_) | Claim::Address(_) => false,
        };
        (strange, peer.record.claimed, peer.name())
    }
}

#[cfg(test)]
mod tests;
