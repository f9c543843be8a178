//! The node's kernel, made equal to what is desired, by a thread of its own.
//!
//! ```text
//! agent ─ Input ─▶ ┌ podwired-overlay ─────────────────────────────────────────────────────┐
//!                  │ events ─▶ relevance ─▶ controller ─▶ pass: observe ─▶ Desired ─▶ plan │
//! agent ◀─ Report ─┤   ▲                        ▲                              apply ◀───┘ │
//!                  └───┼────────────────────────┴────────────────────────────────┼─────────┘
//!                      └──────────────────────── kernel ◀────────────────────────┘
//! ```
//! The kernel is the record: each full pass reads it, and what was done before is not trusted. What others change is heard
//! by events (`relevance` tells it from what the thread itself does) and put back; what no event tells of is found by a
//! look every 10 s. [`crate::controller`] decides when.
//!
//! Ours are the VXLAN devices of our names with all they have, routes of our protocol number, the bridge of our name with
//! the addresses that we gave it, and table `podwire-node`. Nothing else is changed.

mod apply;
mod cleanup;
pub mod filter;
mod observe;
mod pass;
mod peers;
mod relevance;
pub mod underlay;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, oneshot};

pub use cleanup::{Cleaned, cleanup};

pub use crate::controller::Cause;

use crate::cluster::Snapshot;
use crate::cluster::topology::Problem;
use crate::desired::{Desired, Naming, PodSettings, UnderlayFacts};
use crate::status::{DeviceStatus, PeerCounts, PeerStatus};
use crate::store::{Announcement, Membership};

/// What stays the same while the thread runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The node's name in the cluster.
    pub node: String,
    /// The link by which other nodes are reached; `None`: that of the default route.
    pub interface: Option<String>,
    /// This node's own addresses, where they are not to be those of that link: one for each family at most.
    pub addresses: Vec<IpAddr>,
    /// The bridge of the pods; `None`: none is kept.
    pub bridge: Option<String>,
    /// How our devices are called.
    pub naming: Naming,
}

/// What is known of the cluster.
#[derive(Debug, Clone)]
pub struct Input {
    /// Counts what the thread was told, so that a [`Report`] says which of it the kernel is like.
    pub number: u64,
    /// All nodes.
    pub snapshot: Arc<Snapshot>,
    /// This node's part.
    pub membership: Membership,
    /// See [`Local::former`](crate::desired::Local::former).
    pub former: Vec<IpNetwork>,
    /// It comes from the store itself. What was remembered only adds and mends.
    pub live: bool,
}

/// What a pass came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// [`Input::number`] of what was desired; 0 before there was any.
    pub number: u64,
    /// Why it was made, the most telling first.
    pub causes: Vec<Cause>,
    /// Everything was read before; else it was the difference of two wishes.
    pub full: bool,
    /// How long it took.
    pub took: Duration,
    /// From the first of its causes until the kernel was right; `None` if it is not, or the cause was no event.
    pub convergence: Option<Duration>,
    /// What was done, by kind: `link`, `address`, `neighbour`, `fdb`, `route`, `rules`, `sysctl`; what failed is counted, too.
    pub operations: BTreeMap<&'static str, usize>,
    /// What failed. It is tried again.
    pub failures: Vec<Failure>,
    /// How much of it put back what somebody else had changed.
    pub repairs: Vec<(Cause, usize)>,
    /// What an administrator should know: records that are left out, foreign things in the way.
    pub problems: Vec<Problem>,
    /// The links by which other nodes are reached.
    pub underlay: Arc<UnderlayFacts>,
    /// What the kernel should have; `None` before anything is known. The same `Arc` as long as nothing changes.
    pub desired: Option<Arc<Desired>>,
    /// What other nodes may be told: what is really there.
    pub announcement: Announcement,
    /// What the plugin may be told; `None` before anything is known.
    pub pods: Option<PodSettings>,
    /// The other nodes, counted.
    pub counts: PeerCounts,
    /// Our devices.
    pub devices: Vec<DeviceStatus>,
    /// Why no other node can reach this one, whatever the rest is like: another's device is in the place of ours.
    pub barred: Option<String>,
    /// The kernel is as desired.
    pub in_sync: bool,
}

/// An operation that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of operation, as in [`Report::operations`].
    pub kind: &'static str,
    /// The operation, as the command that would do the same.
    pub operation: String,
    /// Why.
    pub error: String,
    /// The peer whose packets it keeps from getting there; `None` if it is about all.
    pub peer: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.error)?;
        self.peer.as_ref().map_or(Ok(()), |peer| write!(f, " (node {peer})"))
    }
}

/// The thread.
#[derive(Debug)]
pub struct Overlay {
    messages: mpsc::UnboundedSender<Message>,
    thread: JoinHandle<()>,
}

/// What the thread is told.
#[derive(Debug)]
enum Message {
    Input(Box<Input>, Instant),
    Check,
    Ping(oneshot::Sender<()>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Stop,
}

impl Overlay {
    /// Starts the thread in the calling thread's network namespace. Each pass is reported. Before the first
    /// [`Overlay::update`] it follows the underlay and touches nothing. When it ends, `reports` is closed.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(settings: Settings, reports: mpsc::UnboundedSender<Report>) -> io::Result<Self> {
        let (messages, heard) = mpsc::unbounded_channel();
        // Its name begins with `podwire`: by that the packet filter's events tell what it did from what others do.
        let thread = std::thread::Builder::new()
            .name("podwired-overlay".to_owned())
            .spawn(move || worker::run(settings, heard, reports))?;
        Ok(Self { messages, thread })
    }

    /// Tells what is known now, in the place of what was known before.
    pub fn update(&self, input: Input) {
        self.send(Message::Input(Box::new(input), Instant::now()));
    }

    /// Has it look at everything now.
    pub fn check(&self) {
        self.send(Message::Check);
    }

    /// Is answered between two passes, if the thread is well.
    pub fn ping(&self) -> oneshot::Receiver<()> {
        let (answer, heard) = oneshot::channel();
        self.send(Message::Ping(answer));
        heard
    }

    /// All nodes of the cluster as this node sees them, without probes.
    pub fn peers(&self) -> oneshot::Receiver<Vec<PeerStatus>> {
        let (answer, heard) = oneshot::channel();
        self.send(Message::Peers(answer));
        heard
    }

    /// Ends the thread, and waits for it. Everything stays in place: packets go on to flow.
    pub fn stop(self) {
        self.send(Message::Stop);
        // One that failed has said so.
        let _ = self.thread.join();
    }

    fn send(&self, message: Message) {
        // A thread that has failed is seen by its reports.
        let _ = self.messages.send(message);
    }
}
