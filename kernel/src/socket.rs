//! A netlink socket and its buffers: datagrams to the kernel, and datagrams from it.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long an answer may take. The kernel answers within `send`, so this ends only what is broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a dump is taken again because the tables changed meanwhile.
pub(crate) const DUMP_ATTEMPTS: u32 = 20;

/// The kernel makes a dump's datagrams as large as the reader's buffer, up to this.
const DATAGRAM: usize = 32 * 1024;

/// A connected netlink socket, in the network namespace in which it was opened.
pub(crate) struct Channel {
    pub(crate) socket: Socket,
    /// What [`Channel::send`] sends.
    pub(crate) outgoing: Vec<u8>,
    /// What [`Channel::receive`] received.
    pub(crate) incoming: Vec<u8>,
}

impl Channel {
    /// Opens a socket in the calling thread's network namespace: errors with the kernel's words but without the
    /// request, answers awaited for 5 s at most.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // A connected netlink socket takes datagrams from its peer alone, here the kernel.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        let patience = TimeVal::seconds(PATIENCE.as_secs().try_into().unwrap_or(5));
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self { socket, outgoing: Vec::new(), incoming: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends `outgoing`.
    pub(crate) fn send(&self) -> Result<(), Errno> {
        loop {
            match self.socket.send(&self.outgoing, 0) {
                Ok(_) => return Ok(()),
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) {
                    Errno::EINTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    /// One datagram of the kernel's into `incoming`. EMSGSIZE if it was larger than the buffer, which then has grown;
    /// ETIMEDOUT if none came.
    pub(crate) fn receive(&mut self) -> Result<(), Errno> {
        self.receive_with(0)
    }

    /// [`Channel::receive`] of what is there already, else ETIMEDOUT at once.
    pub(crate) fn receive_now(&mut self) -> Result<(), Errno> {
        self.receive_with(libc::MSG_DONTWAIT)
    }

    fn receive_with(&mut self, flags: libc::c_int) -> Result<(), Errno> {
        loop {
            self.incoming.clear();
            match self.socket.recv_from(&mut self.incoming, libc::MSG_TRUNC | flags) {
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length > self.incoming.len() => {
                    self.incoming.reserve(length);
                    return Err(Errno::EMSGSIZE);
                }
                Ok(_) => return Ok(()),
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) {
                    Errno::EINTR => {}
                    Errno::EAGAIN => return Err(Errno::ETIMEDOUT),
                    errno => return Err(errno),
                },
            }
        }
    }

    /// Appends a message to `outgoing`.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
        // struct nlmsghdr; port 0 lets the kernel fill in ours.
        let length = u32::try_from(NLMSG_HEADER + payload.len()).unwrap_or(u32::MAX);
        self.outgoing.extend_from_slice(&length.to_ne_bytes());
        self.outgoing.extend_from_slice(&kind.to_ne_bytes());
        self.outgoing.extend_from_slice(&flags.to_ne_bytes());
        self.outgoing.extend_from_slice(&sequence.to_ne_bytes());
        self.outgoing.extend_from_slice(&0_u32.to_ne_bytes());
        self.outgoing.extend_from_slice(payload);
        self.outgoing.resize(self.outgoing.len().next_multiple_of(4), 0);
    }
}

/// The length of `struct nlmsghdr`.
const NLMSG_HEADER: usize = 16;

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Waits before a dump is taken again.
#[expect(clippy::disallowed_methods, reason = "the kernel does not say when its tables have come to rest")]
pub(crate) fn pause(attempt: u32) {
    std::thread::sleep(Duration::from_millis(attempt.into()));
}

/// What a failure to receive an answer means.
pub(crate) fn lost_answer(errno: Errno) -> &'static str {
    match errno {
        Errno::ETIMEDOUT => "the kernel did not answer within 5 s",
        Errno::ENOBUFS => "the kernel's answer was lost; the request may have been carried out",
        Errno::EMSGSIZE => "the kernel's answer is larger than the buffer; ask again",
        _ => "the kernel's answer could not be received",
    }
}
