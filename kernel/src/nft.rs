//! nftables: transactions, and what the kernel has.
//!
//! A transaction ([`Batch`]) is one send, and all of it happens or nothing. Objects are plain values that compare equal
//! to what the kernel gives back, so that a table which somebody has edited can be told from one that is as it was made.
//!
//! Requests are built with `netlink-packet-netfilter` where it has types; replies are decoded here (see `decode.rs`).

mod batch;
mod decode;
mod encode;
#[cfg(feature = "events")]
mod events;
mod expr;
#[cfg(test)]
mod tests;
mod types;
mod whole;

use std::collections::HashSet;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
    SetAttribute, SetElementMessage, SetMessage, TableAttribute, TableMessage,
};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::error::{Error, Result};
use crate::nfnetlink::{Malformed, Message, Request, Said, Socket, answers};
use crate::socket::{DUMP_ATTEMPTS, lost_answer, pause};

pub use batch::Batch;
#[doc(hidden)]
pub use decode::{Object, objects};
#[cfg(feature = "events")]
pub use events::{Change, Changed, NftEvent, NftEvents};
pub use expr::*;
pub use types::*;
pub use whole::TableContent;

/// NFNL_SUBSYS_NFTABLES, as it stands in a message's type.
const SUBSYSTEM: u16 = 10 << 8;

/// NFNL_MSG_BATCH_BEGIN
const BATCH_BEGIN: u16 = 16;

/// NFNL_MSG_BATCH_END
const BATCH_END: u16 = 17;

/// What a socket can send at once in any case: net.core.wmem_default is 208 KiB unless somebody has lowered it.
const SMALL: usize = 16 * 1024;

/// How many questions about single elements go into one send: their answers must fit the receive buffer.
const QUESTIONS: usize = 64;

/// A socket for nftables, in the network namespace in which it was opened, wherever its thread goes later.
///
/// After an error of the socket itself (ETIMEDOUT, ENOBUFS) the state must be read again, through a new socket.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens a NETLINK_NETFILTER socket in the calling thread's network namespace: errors with the kernel's words,
    /// answers awaited for 5 s at most.
    ///
    /// # Errors
    /// The socket cannot be made (EMFILE, ENOMEM; EPROTONOSUPPORT without netfilter).
    pub fn open() -> Result<Self> {
        let socket = Socket::open().map_err(|e| Error::io("open nftables socket", "", &e))?;
        Ok(Self { socket })
    }

    /// Carries out a transaction: all of it, or nothing.
    ///
    /// # Errors
    /// The first request that failed, with its `index`; none if the transaction failed as a whole: EPERM, ENOMEM, or
    /// ERESTART after [`Batch::only_at`]. See also [`Nft`] for errors of the socket itself, after which the transaction
    /// may have been carried out.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        let whole = |errno| Error::new("change nftables", "", errno);
        let Some((last, before)) = batch.requests.split_last() else {
            return Ok(());
        };
        let begin = self.socket.next_sequence();
        self.socket.channel.outgoing.clear();
        let mut header = batch_header().to_vec();
        if let Some(generation) = batch.generation {
            // NFNL_BATCH_GENID
            header.extend_from_slice(&[8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
            header.extend_from_slice(&generation.to_be_bytes());
        }
        self.socket.channel.push(BATCH_BEGIN, NLM_F_REQUEST, begin, &header);
        for request in before {
            let sequence = self.socket.next_sequence();
            self.socket.channel.push(request.kind, NLM_F_REQUEST | request.flags, sequence, &request.payload);
        }
        let end = self.socket.next_sequence();
        let flags = NLM_F_REQUEST | NLM_F_ACK | last.flags;
        self.socket.channel.push(last.kind, flags, end, &last.payload);
        let behind = self.socket.next_sequence();
        self.socket.channel.push(BATCH_END, NLM_F_REQUEST, behind, &batch_header());
        self.make_room().map_err(whole)?;
        self.socket.channel.send().map_err(whole)?;
        self.outcome(batch, begin, end)
    }

    /// The kernel's verdict on a transaction that was sent: errors of any of its requests, in order, and the last
    /// one's acknowledgement or error.
    fn outcome(&mut self, batch: &Batch, begin: u32, end: u32) -> Result<()> {
        let whole = |errno| Error::new("change nftables", "", errno);
        let mut failure: Option<Error> = None;
        let mut overflow = false;
        loop {
            let channel = &mut self.socket.channel;
            match if overflow { channel.receive_now() } else { channel.receive() } {
                Ok(()) => {}
                // More failures than the buffer holds: the first ones are in it, the last answer is not.
                Err(Errno::ENOBUFS) if !overflow => {
                    overflow = true;
                    continue;
                }
                Err(errno) => {
                    let errno = if overflow { Errno::ENOBUFS } else { errno };
                    return Err(failure.unwrap_or_else(|| whole(errno).with(lost_answer(errno))));
                }
            }
            for answer in answers(&self.socket.channel.incoming) {
                let index = answer.sequence.wrapping_sub(begin) as usize;
                match answer.said {
                    Said::Malformed => {
                        return Err(whole(Errno::EPROTO).with("the kernel's answer cannot be read"));
                    }
                    // Left over from an exchange that was given up.
                    _ if index > batch.requests.len() => {}
                    // The transaction itself failed, at its beginning or at its end; nothing has to follow.
                    Said::Failure { errno, detail } if index == 0 => {
                        return Err(failure.unwrap_or(Error { errno, detail, ..whole(Errno::EIO) }));
                    }
                    Said::Failure { errno, detail } => {
                        let request = index.checked_sub(1).and_then(|index| batch.requests.get(index));
                        let error = request.map_or_else(|| whole(Errno::EIO), |r| r.error(Errno::EIO));
                        let error = Error { errno, detail, index: Some(index - 1), ..error };
                        failure =
                            failure.filter(|first| first.errno != Errno::ENOBUFS as i32).or(Some(error));
                        if answer.sequence == end {
                            return failure.map_or(Ok(()), Err);
                        }
                    }
                    Said::Ack if answer.sequence == end => return failure.map_or(Ok(()), Err),
                    _ => {}
                }
            }
        }
    }

    /// A transaction is one send, whatever its size.
    fn make_room(&self) -> Result<(), Errno> {
        // The kernel keeps some of the buffer for itself.
        let needed = self.socket.channel.outgoing.len() + 4096;
        let socket = &self.socket.channel.socket;
        if needed <= SMALL || needed <= getsockopt(socket, sockopt::SndBuf)? {
            return Ok(());
        }
        // In a user namespace, as much as net.core.wmem_max allows. If it is not enough, sending says so (EMSGSIZE).
        setsockopt(socket, sockopt::SndBufForce, &needed)
            .or_else(|_| setsockopt(socket, sockopt::SndBuf, &needed))
    }

    /// The state of all tables of the namespace, by its number.
    ///
    /// # Errors
    /// The request failed.
    pub fn generation(&mut self) -> Result<Generation> {
        let message = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let request = batch::request("read generation of nftables", String::new(), 0, ANY, message);
        let mut found = None;
        self.socket.exchange(&request, &mut |message| {
            found = Some(decode::generation(message)?);
            Ok(())
        })?;
        found.ok_or_else(|| request.error(Errno::EPROTO))
    }

    /// All tables.
    ///
    /// # Errors
    /// The dump failed, or the tables kept changing while they were read (EAGAIN).
    pub fn tables(&mut self) -> Result<Vec<Found<Table>>> {
        let message = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
        let request = batch::request("list tables", String::new(), NLM_F_DUMP, ANY, message);
        self.socket.dump(&request, only(NEW_TABLE, decode::table))
    }

    /// A table; `None` if it is not there.
    ///
    /// # Errors
    /// A failure other than its absence.
    pub fn table(&mut self, table: TableRef<'_>) -> Result<Option<Found<Table>>> {
        let attributes = vec![TableAttribute::Name(table.name.to_owned())];
        let message = NfTablesMessage::GetTable(TableMessage { attributes });
        let request = batch::request("read table", table.to_string(), 0, table.family, message);
        self.one(&request, decode::table)
    }

    /// All chains of a family, or of all families, in all tables.
    ///
    /// # Errors
    /// As [`Nft::tables`].
    pub fn chains(&mut self, family: Option<Family>) -> Result<Vec<Found<Chain>>> {
        let message = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        let request =
            batch::request("list chains", String::new(), NLM_F_DUMP, family.unwrap_or(ANY), message);
        self.socket.dump(&request, only(NEW_CHAIN, decode::chain))
    }

    /// The chains of a table; none if it is missing.
    ///
    /// # Errors
    /// As [`Nft::tables`].
    pub fn table_chains(&mut self, table: TableRef<'_>) -> Result<Vec<Found<Chain>>> {
        let mut chains = self.chains(Some(table.family))?;
        chains.retain(|chain| chain.table == table.name);
        Ok(chains)
    }

    /// A chain; `None` if it, or its table, is not there.
    ///
    /// # Errors
    /// A failure other than its absence.
    pub fn chain(&mut self, table: TableRef<'_>, chain: &str) -> Result<Option<Found<Chain>>> {
        let attributes =
            vec![ChainAttribute::Table(table.name.to_owned()), ChainAttribute::Name(chain.to_owned())];
        let message = NfTablesMessage::GetChain(ChainMessage { attributes });
        let request = batch::request("read chain", format!("{table} {chain}"), 0, table.family, message);
        self.one(&request, decode::chain)
    }

    /// The rules of a table, or of one of its chains, in their order; none if it is missing.
    ///
    /// # Errors
    /// As [`Nft::tables`].
    pub fn rules(&mut self, table: TableRef<'_>, chain: Option<&str>) -> Result<Vec<FoundRule>> {
        let mut attributes = vec![RuleAttribute::Table(table.name.to_owned())];
        attributes.extend(chain.map(|chain| RuleAttribute::Chain(chain.to_owned())));
        let message = NfTablesMessage::GetRule(RuleMessage { attributes });
        let request = batch::request("list rules", table.to_string(), NLM_F_DUMP, table.family, message);
        let result = self.socket.dump(&request, only(NEW_RULE, decode::rule));
        // Older kernels leave the filtering by chain to the reader.
        let mut rules =
            result.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })?;
        rules.retain(|rule| rule.table == table.name && chain.is_none_or(|chain| chain == rule.chain));
        Ok(rules)
    }

    /// The sets and maps of a table, anonymous ones among them; none if it is missing.
    ///
    /// # Errors
    /// As [`Nft::tables`].
    pub fn sets(&mut self, table: TableRef<'_>) -> Result<Vec<Found<Set>>> {
        let attributes = vec![SetAttribute::Table(table.name.to_owned())];
        let message = NfTablesMessage::GetSet(SetMessage { attributes });
        let request = batch::request("list sets", table.to_string(), NLM_F_DUMP, table.family, message);
        let result = self.socket.dump(&request, only(NEW_SET, decode::set));
        result.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })
    }

    /// All elements of a set or a map, in no order.
    ///
    /// # Errors
    /// The set or its table is missing ([`Error::is_missing`]); otherwise as [`Nft::tables`].
    pub fn elements(&mut self, table: TableRef<'_>, set: &str) -> Result<Vec<Element>> {
        let message = NfTablesMessage::GetSetElement(elements_of(table, set));
        let object = format!("of {table} {set}");
        let request = batch::request("list elements", object, NLM_F_DUMP, table.family, message);
        for attempt in 0..DUMP_ATTEMPTS {
            if attempt > 0 {
                pause(attempt);
            }
            let messages = self.socket.dump(&request, only(NEW_ELEMENT, decode::elements))?;
            let elements: Vec<_> = messages.into_iter().flatten().collect();
            if all_differ(&elements) {
                return Ok(elements);
            }
        }
        Err(request.error(Errno::EAGAIN).with("the kernel kept moving the elements while they were read"))
    }

    /// The elements with the keys of these, in the same order; `None` for a key that is not there.
    ///
    /// # Errors
    /// The set or its table is missing ([`Error::is_missing`]), or the request failed.
    pub fn find_elements(
        &mut self,
        table: TableRef<'_>,
        set: &str,
        keys: &[Element],
    ) -> Result<Vec<Option<Element>>> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(QUESTIONS) {
            self.find_some(table, set, keys, &mut found)?;
        }
        // A missing set, or a set without these elements?
        if found.iter().all(Option::is_none) && !found.is_empty() {
            let attributes =
                vec![SetAttribute::Table(table.name.to_owned()), SetAttribute::Name(set.to_owned())];
            let message = NfTablesMessage::GetSet(SetMessage { attributes });
            let request = batch::request("read set", format!("{table} {set}"), 0, table.family, message);
            self.socket.exchange(&request, &mut |_| Ok(()))?;
        }
        Ok(found)
    }

    /// Asks for each element by a message of its own, in one send: the kernel answers a message about several up to
    /// the first that is missing.
    fn find_some(
        &mut self,
        table: TableRef<'_>,
        set: &str,
        keys: &[Element],
        found: &mut Vec<Option<Element>>,
    ) -> Result<()> {
        self.socket.channel.outgoing.clear();
        let mut requests = Vec::with_capacity(keys.len());
        let mut first = 0;
        for key in keys {
            let list = vec![ListAttribute::Element(batch::element_attributes(key, false))];
            let message = NfTablesMessage::GetSetElement(batch::element_message(table, set, 0, list));
            let object = format!("of {table} {set}");
            let request = batch::request("read element", object, 0, table.family, message);
            let sequence = self.socket.next_sequence();
            if requests.is_empty() {
                first = sequence;
            }
            self.socket.channel.push(request.kind, NLM_F_REQUEST, sequence, &request.payload);
            requests.push(request);
        }
        let Some(question) = requests.first() else {
            return Ok(());
        };
        self.socket.channel.send().map_err(|errno| question.error(errno))?;
        let mut answered = 0;
        let mut given: Vec<Option<Element>> = vec![None; keys.len()];
        while answered < keys.len() {
            let received = self.socket.channel.receive();
            received.map_err(|errno| question.error(errno).with(lost_answer(errno)))?;
            for answer in answers(&self.socket.channel.incoming) {
                let unreadable = || question.error(Errno::EPROTO).with("the kernel's answer cannot be read");
                if matches!(answer.said, Said::Malformed) {
                    return Err(unreadable());
                }
                let Some(slot) = given.get_mut(answer.sequence.wrapping_sub(first) as usize) else {
                    continue;
                };
                answered += 1;
                match answer.said {
                    Said::Failure { errno, .. } if errno == Errno::ENOENT as i32 => {}
                    Said::Failure { errno, detail } => {
                        return Err(Error { errno, detail, ..question.error(Errno::EIO) });
                    }
                    Said::Message(message) if message.kind == NEW_ELEMENT => {
                        let elements = decode::elements(&message).map_err(|Malformed| unreadable())?;
                        *slot = elements.into_iter().next();
                    }
                    _ => return Err(unreadable()),
                }
            }
        }
        found.append(&mut given);
        Ok(())
    }

    fn one<T>(
        &mut self,
        request: &Request,
        decode: impl Fn(&Message<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>> {
        let mut found = None;
        let result = self.socket.exchange(request, &mut |message| {
            found = Some(decode(message)?);
            Ok(())
        });
        match result {
            Ok(_) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

const ANY: Family = Family::Other(0);
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;

/// Decodes messages of one kind and leaves out others.
fn only<T>(
    kind: u16,
    decode: impl Fn(&Message<'_>) -> Result<T, Malformed>,
) -> impl FnMut(&Message<'_>) -> Result<Option<T>, Malformed> {
    move |message| if message.kind == kind { decode(message).map(Some) } else { Ok(None) }
}

/// Whether no element is told twice.
///
/// For each datagram of a dump the kernel walks the set from its beginning and passes over as many elements as it has
/// told. While it moves them to a larger hash table, which it does in its own time after many were added, their order
/// changes from one walk to the next: some are told twice, and as many not at all. It does not say so.
fn all_differ(elements: &[Element]) -> bool {
    let mut seen = HashSet::with_capacity(elements.len());
    elements.iter().all(|element| seen.insert((&element.key, &element.key_end, element.interval_end)))
}

fn elements_of(table: TableRef<'_>, set: &str) -> SetElementMessage {
    let mut message = batch::element_message(table, set, 0, Vec::new());
    message.attributes.truncate(2);
    message
}

/// `struct nfgenmsg` around a transaction: no family, version 0, and the subsystem in network order.
fn batch_header() -> [u8; 4] {
    [0, 0, 0, (SUBSYSTEM >> 8) as u8]
}
