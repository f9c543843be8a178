//! What is asked of the pool and what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use podwire_attach::{Attachment, Owner, OwnerId, PodAddress, PortMapping};
use serde::{Deserialize, Serialize};

use crate::{Change, Lease, RangeSet};

/// The request for one owner's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// The attachment that is going to be made; its addresses are ignored, the pool fills them in.
    pub attachment: Attachment,
    /// One address is given from each of these; none for an L2 attachment.
    pub sets: Vec<RangeSet>,
    /// Addresses that the pod is to have. Each must belong to a set of its own.
    pub requested: Vec<IpAddr>,
    /// How long a freed address of this network rests before it is as good as any other, in milliseconds.
    pub quarantine_ms: u64,
    /// host-local's directory of this network, read on the network's first use.
    pub import_dir: Option<PathBuf>,
}

/// The addresses that an owner has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Tells this reservation from others of the same owner.
    pub generation: u64,
    /// One for each range set, in their order.
    pub addresses: Vec<PodAddress>,
    /// The owner had a lease with these same addresses; its interface may exist.
    pub renewed: bool,
    /// One of the addresses was somebody else's within the last hour: neighbours may remember that one.
    #[serde(default)]
    pub reused: bool,
    /// Dead owners that a host port has been taken from. Whatever rules they have left behind, the port is this
    /// owner's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_over: Vec<OwnerId>,
    /// What the caller should tell its user, in whole sentences.
    pub notices: Vec<String>,
}

/// Why no address was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    /// Every address is somebody's. The wording up to the colon is host-local's, which people search for.
    #[error("no IP addresses available in range set: {ranges}")]
    Full {
        /// The set's ranges.
        ranges: String,
    },
    /// An address was asked for that no range set of the network holds.
    #[error("requested IP address {address} is not in range set {ranges}")]
    OutOfRange {
        /// The address.
        address: IpAddr,
        /// All ranges of the network.
        ranges: String,
    },
    /// The gateway was asked for.
    #[error("requested IP address {address} is the gateway of range {range}")]
    Gateway {
        /// The address.
        address: IpAddr,
        /// The range that has it as its gateway.
        range: String,
    },
    /// The address asked for is another owner's.
    #[error("requested IP address {address} is taken by {owner}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: Owner,
    },
    /// The address asked for was in use when the store was lost.
    #[error(
        "requested IP address {address} was in use when the address store was lost, by whom is unknown: it is free \
         again after a GC of this network or a reboot"
    )]
    Held {
        /// The address.
        address: IpAddr,
    },
    /// A host port is another owner's, who lives.
    #[error("host port {port} is taken by {owner}")]
    PortTaken {
        /// The port that was asked for.
        port: PortMapping,
        /// Who has it.
        owner: Owner,
    },
    /// Two addresses were asked for where one is given.
    #[error(
        "requested IP addresses {first} and {second} are both in range set {ranges}, which gives one address"
    )]
    SeveralForOneSet {
        /// One of them.
        first: IpAddr,
        /// The other.
        second: IpAddr,
        /// The set's ranges.
        ranges: String,
    },
    /// The range sets overlap, so that one pod could get one address twice.
    #[error("{reason}")]
    Sets {
        /// Which of them, and where.
        reason: String,
    },
    /// The store has not been told in which boot it is used, so that it cannot tell live leases from dead ones.
    #[error("the address store has not been opened for this boot")]
    BootUnknown,
}

/// The reservation is not its owner's newest, or DEL or GC has ended it: what was made for it must be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reservation {generation} of {owner} has been ended or replaced meanwhile: undo this ADD")]
pub struct Stale {
    /// The owner.
    pub owner: OwnerId,
    /// The reservation.
    pub generation: u64,
}

/// What one look at the node has shown. An incomplete look must not be made into one of these: what is not
/// listed counts as gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// The names of all links of the host's netns.
    pub links: BTreeSet<String>,
    /// For leases without a link of ours: what is known of their netns. An owner that is not listed is
    /// [`Sight::Unknown`].
    pub netns: BTreeMap<OwnerId, Sight>,
    /// Whose DEL is at work at this moment: it ends the lease itself, when all that belongs to it is gone.
    pub removing: BTreeSet<OwnerId>,
}

/// Whether an attachment's interface is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It is.
    Present,
    /// It is not.
    Gone,
    /// It could not be seen; the lease is kept.
    Unknown,
}

impl Observation {
    /// Judges a lease by its link where it has one, else by its netns.
    pub fn of(&self, lease: &Lease) -> Sight {
        match &lease.attachment.link {
            Some(link) if self.links.contains(link) => Sight::Present,
            Some(_) => Sight::Gone,
            None => self.netns.get(&lease.attachment.owner.id()).copied().unwrap_or(Sight::Unknown),
        }
    }
}

/// Which of the leases that belong to one interface a DEL ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// The lease of the plugin that adds to another's interface, and that of an interface of ours. Not one without a
    /// link: its addresses are on an interface that the chain's first plugin removes after this DEL, and says so by
    /// a DEL of its own IPAM plugin.
    Interface,
    /// The main lease, as the IPAM plugin of another main plugin. Also what earlier versions ask for.
    #[default]
    Addresses,
}

/// What is known of some leases' interfaces. A lease that is not listed is [`Sight::Unknown`].
pub type Sights = BTreeMap<OwnerId, Sight>;

/// What a sweep over all leases comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepPlan {
    /// What to commit.
    pub changes: Vec<Change>,
    /// The leases that end by it: their interfaces were missing twice.
    pub released: Vec<Lease>,
    /// Leases whose DEL has begun while their interface is still there: the DEL may have died. To finish it,
    /// remove the link, then `Pool::finish_delete`.
    pub unfinished: Vec<Lease>,
    /// Owners without a lease that have nothing but a link by which they were shaped: the pod took the other one along
    /// when it died. The engine fills it in.
    pub strays: Vec<OwnerId>,
}

/// What a GC of one network comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcPlan {
    /// What to commit before anything is removed.
    pub changes: Vec<Change>,
    /// Leases that nobody claims, now `Deleting`: remove their links, then `Pool::finish_delete` each.
    pub remove: Vec<Lease>,
    /// As in a sweep's plan.
    pub strays: Vec<OwnerId>,
    /// Leases that the caller does not claim but that another runtime added and that are live: to be reported.
    pub foreign: Vec<Lease>,
}

/// What taking over others' records comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// What to commit.
    pub changes: Vec<Change>,
    /// What could not be taken over as it was, in whole sentences.
    pub notices: Vec<String>,
}

/// How much of one range set is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUsage {
    /// The set's ranges.
    pub ranges: String,
    /// Addresses that can be given at all: without gateways. `u64::MAX` stands for all greater numbers.
    pub total: u64,
    /// Addresses of leases.
    pub leased: u64,
    /// Addresses that rest. They can be given if there is no other.
    pub resting: u64,
    /// Addresses in use by unknown owners.
    pub unknown: u64,
}

impl SetUsage {
    /// Addresses that the next reservation could be given, resting ones among them.
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.leased).saturating_sub(self.unknown)
    }
}
