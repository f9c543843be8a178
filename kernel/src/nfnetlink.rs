//! What nftables and connection tracking have in common: netfilter's netlink protocol, one request at a time.

use std::io;

use netlink_packet_core::{Emitable, NLM_F_DUMP, NLM_F_REQUEST, Nla};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::reply::{Body, be16_at, parse_control, split_message};
use crate::socket::{Channel, DUMP_ATTEMPTS, lost_answer, pause};

/// The length of `struct nfgenmsg`: family, version, and a number that depends on the message.
const NFGENMSG: usize = 4;

/// One message from the kernel.
pub(crate) struct Answer<'a> {
    pub(crate) sequence: u32,
    pub(crate) multi: bool,
    pub(crate) interrupted: bool,
    pub(crate) said: Said<'a>,
}

/// What an [`Answer`] says.
pub(crate) enum Said<'a> {
    Ack,
    Failure { errno: i32, detail: Option<String> },
    Done,
    Overrun,
    Malformed,
    Message(Message<'a>),
}

/// A message of netfilter.
pub(crate) struct Message<'a> {
    /// Subsystem and message.
    pub(crate) kind: u16,
    /// NFPROTO_*.
    pub(crate) family: u8,
    /// Of nftables, the generation that the message tells of, its lower 16 bits.
    generation: u16,
    pub(crate) attributes: &'a [u8],
}

/// The messages of one datagram. The iterator ends after a malformed one.
pub(crate) fn answers(datagram: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        // The tail may be shorter than a header only by padding.
        if rest.len() < 4 {
            return None;
        }
        let Some((header, payload, next)) = split_message(rest) else {
            rest = &[];
            return Some(Answer { sequence: 0, multi: false, interrupted: false, said: Said::Malformed });
        };
        rest = next;
        let said = match parse_control(&header, payload) {
            Some(Body::Ack) => Said::Ack,
            Some(Body::Failure { errno, detail }) => Said::Failure { errno, detail },
            Some(Body::Done) => Said::Done,
            Some(Body::Overrun) => Said::Overrun,
            Some(_) => Said::Malformed,
            None => message(header.kind, payload).map_or(Said::Malformed, Said::Message),
        };
        if matches!(said, Said::Malformed) {
            rest = &[];
        }
        Some(Answer {
            sequence: header.sequence,
            multi: header.is_multi(),
            interrupted: header.is_interrupted(),
            said,
        })
    })
}

fn message(kind: u16, payload: &[u8]) -> Option<Message<'_>> {
    let (family, generation) = (*payload.first()?, be16_at(payload, 2)?);
    Some(Message { kind, family, generation, attributes: payload.get(NFGENMSG..)? })
}

/// One message to the kernel and the words for its error.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) payload: Vec<u8>,
    pub(crate) op: &'static str,
    pub(crate) object: String,
}

impl Request {
    pub(crate) fn error(&self, errno: Errno) -> Error {
        Error::new(self.op, self.object.as_str(), errno)
    }

    fn failed(&self, errno: i32, detail: Option<String>) -> Error {
        Error { errno, detail, ..self.error(Errno::EIO) }
    }
}

/// A socket for netfilter.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) channel: Channel,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { channel: Channel::open(NETLINK_NETFILTER)?, sequence: 0 })
    }

    /// The next message's number.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// What a dump gives, taken again until the kernel says that nothing changed meanwhile.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request,
        mut pick: impl FnMut(&Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>> {
        for attempt in 0..DUMP_ATTEMPTS {
            if attempt > 0 {
                pause(attempt);
            }
            let mut found = Vec::new();
            let whole = self.exchange(request, &mut |message| {
                found.extend(pick(message)?);
                Ok(())
            });
            match whole {
                Ok(true) => return Ok(found),
                Ok(false) => {}
                Err(error) if error.errno == Errno::EINTR as i32 => {}
                Err(error) => return Err(error),
            }
        }
        Err(request.error(Errno::EAGAIN).with("the tables kept changing while they were read"))
    }

    /// Sends one request and hands out what answers it. `false`: what a dump tells is not to be relied on.
    pub(crate) fn exchange(
        &mut self,
        request: &Request,
        take: &mut dyn FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<bool> {
        let dump = request.flags & NLM_F_DUMP == NLM_F_DUMP;
        let sequence = self.next_sequence();
        self.channel.outgoing.clear();
        self.channel.push(request.kind, NLM_F_REQUEST | request.flags, sequence, &request.payload);
        self.channel.send().map_err(|errno| request.error(errno))?;
        let unreadable = || request.error(Errno::EPROTO).with("the kernel's answer cannot be read");
        let mut whole = true;
        let mut generation = None;
        loop {
            match self.channel.receive() {
                Ok(()) => {}
                // The dump goes on behind the gap.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) if dump => {
                    whole = false;
                    continue;
                }
                Err(errno) => return Err(request.error(errno).with(lost_answer(errno))),
            }
            for answer in answers(&self.channel.incoming) {
                if matches!(answer.said, Said::Malformed) {
                    return Err(unreadable());
                }
                // Another number is left over from an exchange that was given up.
                if answer.sequence != sequence {
                    continue;
                }
                whole &= !answer.interrupted;
                match answer.said {
                    Said::Ack | Said::Done => return Ok(whole),
                    Said::Failure { errno, detail } => return Err(request.failed(errno, detail)),
                    Said::Overrun => whole = false,
                    Said::Malformed => return Err(unreadable()),
                    Said::Message(message) => {
                        // The kernel marks no dump of a set's elements as interrupted.
                        whole &= *generation.get_or_insert(message.generation) == message.generation;
                        take(&message).map_err(|Malformed| unreadable())?;
                        // The answer to a question about one object is not followed by anything.
                        if !answer.multi && !dump {
                            return Ok(whole);
                        }
                    }
                }
            }
        }
    }
}

/// An attribute with its header and padding.
pub(crate) fn emitted(attribute: &impl Nla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// A message too short for what it claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;
