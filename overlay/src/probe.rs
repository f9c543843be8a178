//! Probes: whether packets really get to each peer's pods, as only packets can tell.
//!
//! That the kernel has the right routes does not say that the underlay carries UDP on that port, that a link on the way
//! takes packets as large as promised, that a network card fills in checksums inside of VXLAN, or that whoever answers is
//! the node that should. So agents ask each other, from their VTEPs' inner addresses, by UDP:
//!
//! ```text
//! 10.244.1.0:8473 ── question (token, some length) ──▶ tunnel ──▶ 10.244.2.0:8473
//!                 ◀─ answer (token, length as received, name, instance) ──
//! ```
//! What is asked, and what follows from the answers, is decided in [`Engine`] and its parts: they have no socket, clock
//! or randomness. [`Prober`] has those.
//!
//! An agent answers members of the cluster alone, from and to the same port, never with more bytes than it was asked
//! with, and no more often than a prober asks: it is of no use for attacking others.

mod engine;
mod frame;
mod message;
mod prober;
mod responder;
mod targets;
mod watch;

use std::sync::Arc;
use std::time::Duration;

pub use engine::{Engine, Output};
pub use message::{Answer, MessageError, Question, SMALLEST_QUESTION};
pub use prober::Prober;
pub use responder::{Reply, Responder};
pub use targets::{End, Peer, Targets, TunnelEnd};

use crate::cluster::IpFamily;

/// The UDP port on which agents ask each other, unless configured otherwise.
pub const PORT: u16 = 8473;

/// Up to this many peers, all are asked in each interval.
pub const ALL_UP_TO: usize = 64;

/// How probes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How often peers are asked; `None`: others are answered, and none is asked.
    pub interval: Option<Duration>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How many peers, chosen at random, are asked in each interval where there are more than [`ALL_UP_TO`].
    pub peers: usize,
    /// The UDP port, the same on all nodes.
    pub port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Some(Duration::from_secs(10)),
            timeout: Duration::from_secs(1),
            peers: 16,
            port: PORT,
        }
    }
}

/// What a round of questions to one peer, in one family, found.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// The peer's name.
    pub node: Arc<str>,
    /// The family of the packets, which is that of the pods.
    pub family: IpFamily,
    /// What is to be said of the path.
    pub state: PathState,
    /// What came of each question of this round that was of the smallest size and as pods' packets are.
    pub questions: Vec<Outcome>,
    /// The shortest round trip of this round.
    pub rtt: Option<Duration>,
    /// The largest packet that passed when this was last tried, in bytes with its IP header; never above `promised`.
    pub largest: Option<u32>,
    /// The largest packet that pods are told they may send to this peer, in bytes.
    pub promised: u32,
    /// Which part of the last questions (32 at most) was not answered, 0 to 1.
    pub loss: f64,
    /// What is wrong, or has been done about it, in words; `None` if all is well.
    pub problem: Option<String>,
}

impl ProbeReport {
    /// Whether packets pass, whole and to the right node, as large as promised.
    pub fn is_well(&self) -> bool {
        self.state == PathState::Well
    }
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, whole and by the right node, after this time.
    Answered(Duration),
    /// No answer came in time.
    Lost,
    /// The question or its answer arrived with other bytes than were sent.
    Damaged,
    /// Another node answered, of that name, or another installation of the same name.
    Misdirected(String),
}

/// What is to be said of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Packets pass as they should.
    Well,
    /// Small packets pass, those as large as promised do not.
    TooSmall,
    /// Packets arrive damaged.
    Damaged,
    /// Another node answers.
    Misdirected,
    /// Packets pass one way alone: those of the peer arrive only if it does their checksums itself. Its agent's task.
    PeerOffload,
    /// No answer.
    Unreachable,
}
