//! A synchronous rtnetlink socket.
//!
//! Requests travel many to one `send`, and only the last asks for an acknowledgement: the kernel has dealt with all
//! of them when `send` returns, it reports failures in any case, and a thousand acknowledgements would overflow the
//! socket's buffer.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::addr::{self, Address};
use crate::error::{Error, Result};
use crate::link::{self, Link, LinkRef};
use crate::reply::{Body, parse_replies};
use crate::route::{self, Route, RouteFilter};
use crate::socket::{Channel, DUMP_ATTEMPTS, lost_answer, pause};

/// The most requests in one send. 200 failures, each with its text, fit the default receive buffer.
const BATCH: usize = 200;

/// One request to the kernel: a message and the words for its error. Made by [`link`], [`addr`] and [`route`],
/// carried out by [`Netlink::apply`]. It may name an open file, which then outlives it.
#[derive(Clone)]
pub struct Request<'fd> {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
    op: &'static str,
    object: Object,
    netns: PhantomData<BorrowedFd<'fd>>,
}

/// What a request is about, in words.
#[derive(Clone)]
pub(crate) enum Object {
    /// These.
    Text(String),
    /// What this reads in the request's payload: words that are made for an error alone, since to write them for each
    /// of thousands of requests takes as long as the requests.
    Payload(fn(&[u8]) -> Option<String>),
}

impl<T: Into<String>> From<T> for Object {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

impl Request<'_> {
    /// Makes an object; one of that name must not be there (EEXIST).
    pub(crate) fn create(op: &'static str, object: impl Into<Object>, message: RouteNetlinkMessage) -> Self {
        Self { flags: NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, ..Self::change(op, object, message) }
    }

    /// Makes an object or takes the place of the one that is there.
    pub(crate) fn replace(op: &'static str, object: impl Into<Object>, message: RouteNetlinkMessage) -> Self {
        Self { flags: NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK, ..Self::change(op, object, message) }
    }

    /// Changes or removes an object.
    pub(crate) fn change(op: &'static str, object: impl Into<Object>, message: RouteNetlinkMessage) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        Self {
            kind: message.message_type(),
            flags: NLM_F_ACK,
            payload,
            op,
            object: object.into(),
            netns: PhantomData,
        }
    }

    /// Asks for one object. It is its own answer: an acknowledgement would cost another receive.
    pub(crate) fn query(op: &'static str, object: impl Into<Object>, message: RouteNetlinkMessage) -> Self {
        Self { flags: 0, ..Self::change(op, object, message) }
    }

    pub(crate) fn dump(op: &'static str, object: impl Into<Object>, message: RouteNetlinkMessage) -> Self {
        Self { flags: NLM_F_DUMP, ..Self::change(op, object, message) }
    }

    /// With the kernel's event about what the request did as a part of its answer.
    pub(crate) fn echoed(mut self) -> Self {
        self.flags |= NLM_F_ECHO;
        self
    }

    fn object(&self) -> Cow<'_, str> {
        match &self.object {
            Object::Text(text) => text.into(),
            Object::Payload(read) => read(&self.payload).unwrap_or_default().into(),
        }
    }

    fn error(&self, errno: Errno) -> Error {
        Error::new(self.op, self.object(), errno)
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.object())
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("op", &self.op)
            .field("object", &self.object())
            .finish_non_exhaustive()
    }
}

/// A netlink socket in the network namespace in which it was opened, wherever its thread goes later.
///
/// After an error of the socket itself (ETIMEDOUT, ENOBUFS, EMSGSIZE) the state must be read again, through a new
/// socket: a dump may still be under way in the old one.
pub struct Netlink {
    channel: Channel,
    port: NonZeroU32,
    sequence: u32,
}

/// What came of an exchange.
struct Outcome {
    /// The requests that failed, in their order, each with its index.
    failures: Vec<Error>,
    /// The tables did not change while they were dumped.
    whole: bool,
}

impl Netlink {
    /// Opens a NETLINK_ROUTE socket in the calling thread's network namespace: strict filters, errors with the
    /// kernel's words, answers awaited for 5 s at most.
    ///
    /// # Errors
    /// The socket cannot be made (EMFILE, ENOMEM), or the kernel is older than 4.20 (ENOPROTOOPT).
    pub fn open() -> Result<Self> {
        let failed = |e: io::Error| Error::io("open netlink socket", "", &e);
        let channel = Channel::open(NETLINK_ROUTE).map_err(failed)?;
        channel.socket.set_netlink_get_strict_chk(true).map_err(failed)?;
        let mut address = SocketAddr::new(0, 0);
        channel.socket.get_address(&mut address).map_err(failed)?;
        let port = NonZeroU32::new(address.port_number())
            .ok_or_else(|| failed(io::Error::other("the kernel gave the socket no port")))?;
        Ok(Self { channel, port, sequence: 0 })
    }

    /// The cookie of the socket's network namespace (SO_NETNS_COOKIE): never given twice within one boot. `None`
    /// before Linux 5.14.
    pub fn netns_cookie(&self) -> Option<u64> {
        crate::netns::cookie(self.channel.socket.as_fd())
    }

    /// The socket's netlink port, by which [events](crate::events::Caused::port) name who asked for a change.
    pub fn port(&self) -> NonZeroU32 {
        self.port
    }

    /// Carries out the requests in their order, up to 200 in one send.
    ///
    /// # Errors
    /// The first request that failed, with its `index`. **The kernel runs the rest all the same**, so a request
    /// must do no harm when an earlier one failed. For an error of the socket itself see [`Netlink`].
    pub fn apply(&mut self, requests: &[Request<'_>]) -> Result<()> {
        self.apply_all(requests)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// Carries out the requests in their order, up to 200 in one send, and says of each that failed: every error has
    /// its `index`, the lowest first. An empty list: all of them succeeded.
    ///
    /// # Errors
    /// One of the socket itself: some of the requests were carried out, nobody knows which. See [`Netlink`].
    pub fn apply_all(&mut self, requests: &[Request<'_>]) -> Result<Vec<Error>> {
        let mut failures = Vec::new();
        for (i, batch) in requests.chunks(BATCH).enumerate() {
            let batch: Vec<_> = batch.iter().collect();
            let Outcome { failures: failed, .. } = self.converse(&batch, &mut |_| ())?;
            failures.extend(failed.into_iter().map(|mut error| {
                error.index = error.index.map(|index| index + i * BATCH);
                error
            }));
        }
        Ok(failures)
    }

    /// [`Netlink::apply`], then the link as it is afterwards: in the same send, for no further system call.
    ///
    /// # Errors
    /// As [`Netlink::apply`]; a missing link is `Ok(None)` only if all requests succeeded.
    pub fn apply_then_link(&mut self, requests: &[Request<'_>], link: LinkRef<'_>) -> Result<Option<Link>> {
        let keep = requests.len().min(BATCH - 1);
        let (before, last) = requests.split_at(requests.len() - keep);
        self.apply(before)?;
        let query = link::query(link, None);
        let batch: Vec<_> = last.iter().chain([&query]).collect();
        let mut found = None;
        let result = self.exchange(&batch, &mut |body| {
            if let Body::Link(link) = body {
                found = Some(*link);
            }
        });
        match result {
            Ok(_) => Ok(found),
            Err(error) if error.index == Some(keep) && error.is_missing() => Ok(None),
            Err(mut error) => {
                error.index = error.index.map(|index| index + before.len());
                Err(error)
            }
        }
    }

    /// The link of that index or name; `None` if there is none.
    ///
    /// # Errors
    /// A failure other than the link's absence.
    pub fn link(&mut self, link: LinkRef<'_>) -> Result<Option<Link>> {
        self.one_link(link, None)
    }

    /// The link of that index or name in the network namespace that has `nsid` here (see [`Link::peer_nsid`]).
    ///
    /// # Errors
    /// A failure other than the link's absence; EINVAL if no namespace has that id.
    pub fn peer_link(&mut self, nsid: i32, link: LinkRef<'_>) -> Result<Option<Link>> {
        self.one_link(link, Some(nsid))
    }

    fn one_link(&mut self, link: LinkRef<'_>, nsid: Option<i32>) -> Result<Option<Link>> {
        // No link has such a name, and the kernel refuses the question.
        if matches!(link, LinkRef::Name(name) if name.len() > link::MAX_NAME) {
            return Ok(None);
        }
        self.one(&link::query(link, nsid), |body| match body {
            Body::Link(link) => Some(*link),
            _ => None,
        })
    }

    /// The one object that the query asks for; `None` if it is missing.
    pub(crate) fn one<T>(
        &mut self,
        query: &Request<'_>,
        pick: impl Fn(Body) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut found = None;
        let mut ask = || {
            self.exchange(&[query], &mut |body| {
                if let Some(object) = pick(body) {
                    found = Some(object);
                }
            })
        };
        // The buffer has grown to the answer's length.
        let result =
            ask().or_else(|error| if error.errno == Errno::EMSGSIZE as i32 { ask() } else { Err(error) });
        match result {
            Ok(_) => Ok(found),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(Error { index: None, ..error }),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// The dump failed, or the links kept changing while they were read (EAGAIN).
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let query = Request::dump("list links", "", RouteNetlinkMessage::GetLink(link::dump_message()));
        self.dump(query, |body| match body {
            Body::Link(link) => Some(*link),
            _ => None,
        })
    }

    /// The addresses of one link, or of all links. None if the link is missing.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn addresses(&mut self, ifindex: Option<u32>) -> Result<Vec<Address>> {
        self.address_dump(addr::dump_message(ifindex, None), ifindex)
    }

    /// The addresses of one link in the network namespace that has `nsid` here (IFA_TARGET_NETNSID); 0 for all its
    /// links.
    ///
    /// # Errors
    /// As [`Netlink::links`]; EINVAL if no namespace has that id.
    pub fn peer_addresses(&mut self, nsid: i32, ifindex: u32) -> Result<Vec<Address>> {
        let ifindex = Some(ifindex).filter(|index| *index != 0);
        self.address_dump(addr::dump_message(ifindex, Some(nsid)), ifindex)
    }

    fn address_dump(
        &mut self,
        message: netlink_packet_route::address::AddressMessage,
        ifindex: Option<u32>,
    ) -> Result<Vec<Address>> {
        let object = ifindex.map(|index| format!("of link {index}")).unwrap_or_default();
        let query = Request::dump("list addresses", object, RouteNetlinkMessage::GetAddress(message));
        let result = self.dump(query, |body| match body {
            Body::Address(address) if ifindex.is_none_or(|index| index == address.ifindex) => Some(address),
            _ => None,
        });
        result.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })
    }

    /// The routes that the filter lets through. None if the table is missing.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>> {
        let query =
            Request::dump("list routes", "", RouteNetlinkMessage::GetRoute(route::dump_message(filter)));
        let result = self.dump(query, |body| match body {
            Body::Route(route) if filter.admits(&route) => Some(*route),
            _ => None,
        });
        result.or_else(|error| if error.is_missing() { Ok(Vec::new()) } else { Err(error) })
    }

    pub(crate) fn dump<T>(&mut self, query: Request<'_>, pick: impl Fn(Body) -> Option<T>) -> Result<Vec<T>> {
        for attempt in 0..DUMP_ATTEMPTS {
            if attempt > 0 {
                pause(attempt);
            }
            let mut found = Vec::new();
            let whole = self
                .exchange(&[&query], &mut |body| found.extend(pick(body)))
                .map_err(|error| Error { index: None, ..error })?;
            if whole {
                return Ok(found);
            }
        }
        Err(query.error(Errno::EAGAIN).with("the tables kept changing while they were read"))
    }

    /// Sends the requests as one datagram and hands out what the answers carry. `false`: the tables changed while
    /// they were dumped.
    pub(crate) fn exchange(&mut self, requests: &[&Request<'_>], take: &mut dyn FnMut(Body)) -> Result<bool> {
        let Outcome { failures, whole } = self.converse(requests, take)?;
        failures.into_iter().next().map_or(Ok(whole), Err)
    }

    /// Sends the requests as one datagram and hands out what the answers carry. The error is one of the socket.
    fn converse(&mut self, requests: &[&Request<'_>], take: &mut dyn FnMut(Body)) -> Result<Outcome> {
        let mut outcome = Outcome { failures: Vec::new(), whole: true };
        let Some(last) = requests.last() else {
            return Ok(outcome);
        };
        let first_sequence = self.sequence.wrapping_add(1);
        self.serialize(requests);
        let last_sequence = self.sequence;
        let dump = last.flags & NLM_F_DUMP == NLM_F_DUMP;
        self.channel.send().map_err(|errno| last.error(errno))?;

        loop {
            match self.channel.receive() {
                Ok(()) => {}
                // The dump goes on behind the gap.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) if dump => {
                    outcome.whole = false;
                    continue;
                }
                Err(errno) => return Err(last.error(errno).with(lost_answer(errno))),
            }
            for reply in parse_replies(&self.channel.incoming) {
                if reply.body == Body::Malformed {
                    return Err(last.error(Errno::EPROTO).with("the kernel's answer cannot be read"));
                }
                // Another number is left over from an exchange that was given up.
                let index = reply.sequence.wrapping_sub(first_sequence) as usize;
                let Some(request) = requests.get(index) else {
                    continue;
                };
                let is_last = reply.sequence == last_sequence;
                outcome.whole &= !reply.interrupted;
                match reply.body {
                    Body::Failure { errno, detail } => {
                        let error = request.error(Errno::EIO);
                        outcome.failures.push(Error { errno, detail, index: Some(index), ..error });
                        if is_last {
                            return Ok(outcome);
                        }
                    }
                    Body::Ack | Body::Done => {
                        if is_last {
                            return Ok(outcome);
                        }
                    }
                    Body::Overrun if dump => outcome.whole = false,
                    Body::Overrun => {
                        return Err(last.error(Errno::ENOBUFS).with(lost_answer(Errno::ENOBUFS)));
                    }
                    body => {
                        take(body);
                        // The answer to a query for one object is not followed by anything that was not asked for.
                        if is_last && !reply.multi && last.flags & NLM_F_ACK == 0 {
                            return Ok(outcome);
                        }
                    }
                }
            }
        }
    }

    fn serialize(&mut self, requests: &[&Request<'_>]) {
        self.channel.outgoing.clear();
        for (i, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let mut flags = NLM_F_REQUEST | request.flags;
            if i + 1 < requests.len() {
                flags &= !NLM_F_ACK;
            }
            self.channel.push(request.kind, flags, self.sequence, &request.payload);
        }
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("socket", &self.channel.socket).finish_non_exhaustive()
    }
}

/// How a request names a destination in its error.
pub(crate) fn network_text(network: IpNetwork) -> String {
    if network.prefix() == 0 { "default".to_owned() } else { network.to_string() }
}
