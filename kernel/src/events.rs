//! What changes in the kernel, as it changes, for programs on tokio.
//!
//! Written on a socket and this crate's decoder, not on the `rtnetlink` crate's monitor: that one drops a message
//! that it cannot decode without a word, and a removal that is never heard of would leave a DEL waiting; and its queue
//! has no bound.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;

use crate::addr::Address;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::neighbour::{FdbEntry, Neighbour};
use crate::netconf::Netconf;
use crate::reply::{Body, parse_replies};
use crate::route::Route;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new or has changed.
    Link(Box<Link>),
    /// A link is gone from this namespace: removed, or moved to another.
    LinkRemoved {
        /// The index that it had.
        index: u32,
        /// The name that it had.
        name: String,
    },
    /// An address is new or has changed.
    Address(Address),
    /// An address is gone.
    AddressRemoved(Address),
    /// A route is new or has changed.
    Route(Box<Route>),
    /// A route is gone. The kernel does not say so for the IPv4 routes of a link that goes down.
    RouteRemoved(Box<Route>),
    /// A neighbour is new or has changed, as it also does while the kernel asks for it or confirms it.
    Neighbour(Neighbour),
    /// A neighbour is gone.
    NeighbourRemoved(Neighbour),
    /// A forwarding entry of a bridge or VXLAN device is new or has changed.
    Fdb(FdbEntry),
    /// A forwarding entry is gone. The kernel does not say so for those of a VXLAN device that is removed.
    FdbRemoved(FdbEntry),
    /// How links pass packets on has changed, or a link with these settings has come. It tells no port.
    Netconf(Netconf),
    /// Events were lost, or could not be understood: read everything again. What changes after this event is told.
    Overrun,
}

/// A change and who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caused {
    /// The change.
    pub event: Event,
    /// The netlink port of the socket whose request made it, to be compared with
    /// [`Netlink::port`](crate::Netlink::port); `None` for what the kernel did by itself, and for what it does not say
    /// of.
    ///
    /// Linux 6.18 says it of routes, new and removed, of both families; of IPv4 addresses; of neighbours, but not of
    /// their removal, which it tells twice: as [`Event::Neighbour`] in the state "failed", with the port, and as
    /// [`Event::NeighbourRemoved`], without. It does not say it of links, IPv6 addresses and forwarding entries, nor of
    /// what follows by itself, such as the routes that go with an address. Whoever made such a change must tell it by
    /// what it is.
    pub port: Option<NonZeroU32>,
}

/// Which changes to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topics {
    /// Links.
    pub links: bool,
    /// Addresses of both families.
    pub addresses: bool,
    /// Routes of both families.
    pub routes: bool,
    /// Neighbours of both families, and forwarding entries.
    pub neighbours: bool,
    /// How links pass packets on, of both families.
    pub netconf: bool,
}

impl Topics {
    /// Links alone.
    pub const LINKS: Self =
        Self { links: true, addresses: false, routes: false, neighbours: false, netconf: false };
    /// Everything.
    pub const ALL: Self =
        Self { links: true, addresses: true, routes: true, neighbours: true, netconf: true };

    /// RTNLGRP_* of linux/rtnetlink.h.
    fn groups(self) -> impl Iterator<Item = u32> {
        let groups = [
            (self.links, 1),
            (self.neighbours, 3),
            (self.addresses, 5),
            (self.addresses, 9),
            (self.routes, 7),
            (self.routes, 11),
            (self.netconf, 24),
            (self.netconf, 25),
        ];
        groups.into_iter().filter(|(wanted, _)| *wanted).map(|(_, group)| group)
    }
}

/// A stream of changes in one network namespace.
#[derive(Debug)]
pub struct Events {
    listener: Listener,
    queue: VecDeque<Caused>,
}

impl Events {
    /// Starts to listen in the calling thread's network namespace, inside a tokio runtime with I/O enabled. What
    /// changes after this call is heard, so read the state after it.
    ///
    /// # Errors
    /// The socket cannot be made.
    ///
    /// # Panics
    /// Outside of such a runtime.
    pub fn open(topics: Topics) -> Result<Self> {
        let listener = Listener::open(NETLINK_ROUTE, topics.groups(), "listen for events")?;
        Ok(Self { listener, queue: VecDeque::new() })
    }

    /// The next change. May be dropped while it waits and called again: nothing is lost.
    ///
    /// # Errors
    /// The socket failed; open another and read everything again.
    pub async fn next(&mut self) -> Result<Event> {
        self.next_caused().await.map(|caused| caused.event)
    }

    /// [`Events::next`], with who asked for the change.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub async fn next_caused(&mut self) -> Result<Caused> {
        loop {
            if let Some(caused) = self.queue.pop_front() {
                return Ok(caused);
            }
            match self.listener.datagram().await? {
                Some(datagram) => {
                    self.queue.extend(parse_replies(datagram).filter_map(|reply| {
                        let port = NonZeroU32::new(reply.port);
                        event(reply.body).map(|event| Caused { event, port })
                    }));
                }
                None => self.queue.push_back(Caused { event: Event::Overrun, port: None }),
            }
        }
    }
}

/// A socket that hears what the kernel tells by itself.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// The kernel dropped events and goes on to drop them until its queue has been read to the end. It says so once:
    /// the loss may be told only after that end, or who reads everything again would miss what follows.
    congested: bool,
    op: &'static str,
}

impl Listener {
    /// Starts to listen to these multicast groups.
    pub(crate) fn open(
        protocol: isize,
        groups: impl IntoIterator<Item = u32>,
        op: &'static str,
    ) -> Result<Self> {
        let failed = |e: io::Error| Error::io(op, "", &e);
        let mut socket = Socket::new(protocol).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Room for a node's worth of pods at once; without the right to it the kernel's default stays.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        for group in groups {
            socket.add_membership(group).map_err(failed)?;
        }
        socket.set_non_blocking(true).map_err(failed)?;
        // SAFETY: the socket owns its descriptor, always names the same one, and is neither closed nor taken out
        // before the AsyncFd is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(|e| failed(e.into()))?;
        Ok(Self { socket, buffer: Vec::with_capacity(32 * 1024), congested: false, op })
    }

    /// The next datagram; `None` if some were lost. May be dropped while it waits and called again.
    pub(crate) async fn datagram(&mut self) -> Result<Option<&[u8]>> {
        loop {
            let failed = |e: io::Error| Error::io(self.op, "", &e);
            let mut ready = self.socket.readable().await.map_err(failed)?;
            self.buffer.clear();
            match ready.get_inner().recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                // Another process's datagram.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > self.buffer.len() => {
                    self.buffer.reserve(length);
                    return Ok(None);
                }
                Ok(_) => break,
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) {
                    Errno::EAGAIN => {
                        ready.clear_ready();
                        if std::mem::take(&mut self.congested) {
                            return Ok(None);
                        }
                    }
                    Errno::EINTR => {}
                    // A second time: the first congestion has ended, unnoticed between two reads.
                    Errno::ENOBUFS if std::mem::replace(&mut self.congested, true) => return Ok(None),
                    Errno::ENOBUFS => {}
                    _ => return Err(failed(error)),
                },
            }
        }
        Ok(Some(&self.buffer))
    }
}

fn event(body: Body) -> Option<Event> {
    match body {
        Body::Link(link) => Some(Event::Link(link)),
        Body::LinkRemoved(link) => Some(Event::LinkRemoved { index: link.index, name: link.name }),
        Body::Address(address) => Some(Event::Address(address)),
        Body::AddressRemoved(address) => Some(Event::AddressRemoved(address)),
        Body::Route(route) => Some(Event::Route(route)),
        Body::RouteRemoved(route) => Some(Event::RouteRemoved(route)),
        Body::Neighbour(neighbour) => Some(Event::Neighbour(neighbour)),
        Body::NeighbourRemoved(neighbour) => Some(Event::NeighbourRemoved(neighbour)),
        Body::Fdb(entry) => Some(Event::Fdb(entry)),
        Body::FdbRemoved(entry) => Some(Event::FdbRemoved(entry)),
        Body::Netconf(netconf) => Some(Event::Netconf(netconf)),
        Body::Overrun | Body::Malformed => Some(Event::Overrun),
        Body::Ack | Body::Done | Body::Failure { .. } => None,
        // Of groups that are not listened to.
        Body::Qdisc(_) | Body::Filter(_) | Body::Other => None,
    }
}
