//! Where the nodes of a cluster meet. A store is a task of the agent: it says who there is, and announces this node.

pub mod etcd;
pub mod file;
pub mod kubernetes;
mod outbox;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster::{ClusterConfig, Encapsulation, Snapshot, Vtep};

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name in the cluster.
    pub name: String,
    /// Which installation of that name: 32 hexadecimal digits, random, kept on disk.
    pub instance: String,
    /// Which boot of it (/proc/sys/kernel/random/boot_id).
    pub boot: String,
}

/// What this node has to say of itself to others. It changes while the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Its own addresses: one for each family at most.
    pub addresses: Vec<IpAddr>,
    /// The MTU of the link that it reaches others by, in bytes.
    pub mtu: Option<u32>,
    /// What it receives: nothing before its devices are up.
    pub receives: Vec<Vtep>,
    /// What it sends.
    pub sends: Option<Encapsulation>,
}

/// How this node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether it takes pods and connects them with those of other nodes.
    pub is_ready: bool,
    /// Why not; empty if it does.
    pub why: String,
    /// What an administrator should know of it, ready or not.
    pub problems: Vec<String>,
}

/// This node's part of the cluster. Kept on disk: a node that restarts goes on with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Its subnets, one for each range of the cluster.
    pub subnets: Vec<IpNetwork>,
    /// See [`NodeRecord::generation`](crate::cluster::NodeRecord::generation).
    pub generation: u64,
    /// See [`NodeRecord::claimed`](crate::cluster::NodeRecord::claimed).
    pub claimed: u64,
    /// By which of its addresses others are to reach it, one for each family at most, where the store says so; the
    /// configuration goes before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// What was known when the agent last ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// This node's part.
    pub membership: Membership,
    /// The last complete snapshot.
    pub snapshot: Snapshot,
    /// The store's own mark of how far it had been read (etcd: cluster id and revision). One that goes back tells of a
    /// restored backup.
    #[serde(default)]
    pub mark: Option<(u64, u64)>,
}

/// What a store tells the agent.
#[derive(Debug, Clone)]
pub enum StoreEvent {
    /// This node has these subnets, for certain. Comes before the first snapshot, and again when they change.
    Joined(Membership),
    /// All that there is; complete.
    Snapshot {
        /// The nodes. The same `Arc` as last time if only what follows has changed.
        snapshot: Arc<Snapshot>,
        /// Which nodes are not connected to the store now, by name; `None` where the store cannot tell.
        absent: Option<Arc<BTreeSet<String>>>,
        /// See [`Remembered::mark`].
        mark: Option<(u64, u64)>,
    },
    /// The store does not answer, for some seconds now. What is known stays right as far as anybody knows. Told once for
    /// each loss.
    Lost {
        /// What went wrong, and with which endpoint.
        why: String,
    },
    /// The store answers again, and nothing has changed meanwhile, or what has follows.
    Found,
    /// This node cannot join, and why; it is tried again.
    Refused {
        /// The reason, and what to do about it.
        why: String,
    },
    /// This node's subnets are not its own any more: another node has them by right, or they were taken from it, or it
    /// left. Its pods may go on until they are moved; there must be no new ones before the next `Joined`.
    Fenced {
        /// Who has which, and what to do about it.
        why: String,
    },
    /// Something that an administrator should know of the store's content, such as a record that is left out.
    Notice(String),
}

/// What an administrator asks of the cluster, by way of the agent.
#[derive(Debug)]
pub struct Command {
    /// What.
    pub action: Action,
    /// Who waits for it: what was done, or why not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// See [`Command`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Ends another node's membership: its subnets rest, and are free then.
    RemoveNode {
        /// Its name.
        name: String,
        /// Also if it is present.
        force: bool,
    },
    /// Ends this node's own, whatever runs on it.
    Leave,
    /// Changes the shared settings.
    Configure(Box<ClusterConfig>),
}

/// What a store needs to run.
pub struct StoreContext {
    /// Who this node is.
    pub identity: Identity,
    /// What it was told before.
    pub remembered: Option<Remembered>,
    /// What it is to announce, now and later. It is not announced before it has addresses.
    pub announcement: watch::Receiver<Announcement>,
    /// Whether pods of this node still have addresses of its subnets: a node that has been fenced takes others only then.
    pub has_pods: watch::Receiver<bool>,
    /// How this node is, for stores that tell others of it.
    pub health: watch::Receiver<Health>,
    /// Who hears of it.
    pub events: mpsc::Sender<StoreEvent>,
    /// What is asked of it. Closed when the agent ends: then the store takes back its presence, not its membership, and
    /// returns.
    pub commands: mpsc::Receiver<Command>,
}

/// A place where nodes meet.
pub trait ClusterStore {
    /// Its name and where it is, for people: `etcd at https://10.0.0.1:2379`.
    fn describe(&self) -> String;

    /// Runs until [`StoreContext::commands`] is closed. Failures are told as events and tried again, without end.
    fn run(self: Box<Self>, context: StoreContext) -> Pin<Box<dyn Future<Output = ()>>>;
}
