//! What changes in nftables, as it changes, for programs on tokio.

use std::collections::VecDeque;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::Result;
use crate::events::Listener;
use crate::nfnetlink::{Malformed, Said, answers};

use super::types::{Family, Generation};
use super::{SUBSYSTEM, decode};

/// NFNLGRP_NFTABLES
const GROUP: u32 = 7;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// Something was made, changed or removed. Whoever did it: also this process.
    Changed(Change),
    /// A transaction is complete; the changes before this event are its changes.
    Generation(Generation),
    /// Events were lost, or could not be understood: read everything again. What changes after this event is told.
    Overrun,
}

/// One object's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whether it is gone, else it is there, perhaps anew.
    pub removed: bool,
    /// The family of its table.
    pub family: Family,
    /// Its table's name.
    pub table: String,
    /// What it is.
    pub object: Changed,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The table itself.
    Table,
    /// The chain of this name.
    Chain(String),
    /// A rule of the chain of this name.
    Rule(String),
    /// The set or map of this name.
    Set(String),
    /// Elements of the set or map of this name.
    Elements(String),
    /// Something of another kind: a stateful object, a flow table.
    Other,
}

/// A stream of the changes to nftables in one network namespace.
#[derive(Debug)]
pub struct NftEvents {
    listener: Listener,
    queue: VecDeque<NftEvent>,
}

impl NftEvents {
    /// Starts to listen in the calling thread's network namespace, inside a tokio runtime with I/O enabled. What
    /// changes after this call is heard, so read the state after it.
    ///
    /// # Errors
    /// The socket cannot be made.
    ///
    /// # Panics
    /// Outside of such a runtime.
    pub fn open() -> Result<Self> {
        let listener = Listener::open(NETLINK_NETFILTER, [GROUP], "listen for events of nftables")?;
        Ok(Self { listener, queue: VecDeque::new() })
    }

    /// The next event. May be dropped while it waits and called again: nothing is lost.
    ///
    /// # Errors
    /// The socket failed; open another and read everything again.
    pub async fn next(&mut self) -> Result<NftEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            match self.listener.datagram().await? {
                Some(datagram) => self.queue.extend(parse_events(datagram)),
                None => self.queue.push_back(NftEvent::Overrun),
            }
        }
    }
}

/// The events of one datagram.
fn parse_events(datagram: &[u8]) -> impl Iterator<Item = NftEvent> + '_ {
    answers(datagram).filter_map(|answer| match answer.said {
        Said::Message(message) if message.kind & 0xff00 == SUBSYSTEM => {
            event(&message).unwrap_or(Some(NftEvent::Overrun))
        }
        Said::Overrun | Said::Malformed => Some(NftEvent::Overrun),
        Said::Message(_) | Said::Ack | Said::Done | Said::Failure { .. } => None,
    })
}

fn event(message: &crate::nfnetlink::Message<'_>) -> Result<Option<NftEvent>, Malformed> {
    let kind = message.kind & 0xff;
    let (table, object) = match kind {
        0 | 2 => (decode::text_of(message, 1)?, Changed::Table),
        3 | 5 => (decode::text_of(message, 1)?, Changed::Chain(decode::text_of(message, 3)?)),
        6 | 8 => (decode::text_of(message, 1)?, Changed::Rule(decode::text_of(message, 2)?)),
        9 | 11 => (decode::text_of(message, 1)?, Changed::Set(decode::text_of(message, 2)?)),
        12 | 14 => (decode::text_of(message, 1)?, Changed::Elements(decode::text_of(message, 2)?)),
        15 => return Ok(Some(NftEvent::Generation(decode::generation(message)?))),
        18 | 20 | 22 | 24 => (decode::text_of(message, 1)?, Changed::Other),
        _ => return Ok(None),
    };
    let removed = matches!(kind, 2 | 5 | 8 | 11 | 14 | 20 | 24);
    Ok(Some(NftEvent::Changed(Change { removed, family: Family::of(message.family), table, object })))
}
