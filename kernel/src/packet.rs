//! Frames of a link as they pass, and frames of one's own making (`packet(7)`).
//!
//! A [`PacketSocket`] never waits by itself unless it is told how long: it can be polled, or put into tokio's `AsyncFd`.

mod filter;

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind,
    recvmsg, sendmsg, setsockopt, sockopt,
};

use crate::error::{Error, Result};
pub use filter::{Match, Width};

/// The length of `struct virtio_net_hdr`, which goes before each frame of a socket with [`Options::offload`].
const OFFLOAD_HEADER: usize = 10;

/// What a [`PacketSocket`] is to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// How much of each frame to keep, in bytes; 0: nothing is received.
    pub snap: usize,
    /// Which frames to receive: those that meet all conditions of any of these lists. Empty: all frames.
    pub filter: &'a [&'a [Match]],
    /// Each frame comes and goes with what the link would do for it later: checksums, segmentation (PACKET_VNET_HDR).
    pub offload: bool,
    /// Leave out the frames that this machine sends.
    pub only_received: bool,
}

/// Which way a frame goes, seen from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It came in, for this machine or for all.
    Incoming,
    /// It came in for another machine: the link is promiscuous, or a bridge's port.
    Passing,
    /// It goes out.
    Outgoing,
}

/// A frame as it passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When the kernel saw it.
    pub at: SystemTime,
    /// Which way it goes.
    pub direction: Direction,
    /// From its Ethernet header on, up to [`Options::snap`] bytes. A VLAN tag that the link took off is not in it.
    pub bytes: &'a [u8],
    /// Its whole length, in bytes; longer than the MTU allows where the link cuts it up later.
    pub length: usize,
    /// What is still to be done for it; `None` without [`Options::offload`].
    pub offload: Option<Offload>,
}

/// What remains to be done for a frame (`struct virtio_net_hdr`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Where the checksum starts to sum, and how many bytes later it is to be put; both in bytes. `None`: the checksum
    /// is there.
    pub checksum: Option<(u16, u16)>,
    /// The checksum is known to be right, or the frame came by no wire (VIRTIO_NET_HDR_F_DATA_VALID).
    pub is_valid: bool,
    /// How it is to be cut up, as in VIRTIO_NET_HDR_GSO_*; 0: not at all.
    pub segmentation: u8,
    /// The length of the headers that each piece gets, in bytes.
    pub header_length: u16,
    /// The length of each piece's payload, in bytes.
    pub segment_size: u16,
}

impl Offload {
    fn parse(header: [u8; OFFLOAD_HEADER]) -> Self {
        let [flags, segmentation, a, b, c, d, e, f, g, h] = header;
        let half = |one, other| u16::from_ne_bytes([one, other]);
        Self {
            checksum: (flags & 1 != 0).then(|| (half(e, f), half(g, h))),
            is_valid: flags & 2 != 0,
            segmentation,
            header_length: half(a, b),
            segment_size: half(c, d),
        }
    }

    fn bytes(self) -> [u8; OFFLOAD_HEADER] {
        let flags = u8::from(self.checksum.is_some()) | (u8::from(self.is_valid) << 1);
        let (start, offset) = self.checksum.unwrap_or_default();
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment_size.to_ne_bytes();
        let [e, f] = start.to_ne_bytes();
        let [g, h] = offset.to_ne_bytes();
        [flags, self.segmentation, a, b, c, d, e, f, g, h]
    }
}

/// How many frames a socket has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that its filter let through, lost ones among them.
    pub seen: u32,
    /// Those that were lost because nobody read them in time.
    pub lost: u32,
}

/// A socket on one link, in the network namespace in which it was opened. Needs CAP_NET_RAW.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
    buffer: Vec<u8>,
    offload: bool,
}

impl PacketSocket {
    /// Starts to receive what passes a link, in the calling thread's network namespace.
    ///
    /// # Errors
    /// No such link (ENODEV), no right to it (EPERM), or too long a filter (EINVAL).
    pub fn open(ifindex: u32, options: &Options<'_>) -> Result<Self> {
        Self::opened(ifindex, options)
            .map_err(|errno| Error::new("open packet socket on link", ifindex.to_string(), errno))
    }

    fn opened(ifindex: u32, options: &Options<'_>) -> Result<Self, Errno> {
        // Without a protocol it hears nothing until it is bound: no frame of another link, none that the filter
        // would have left out.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // Room for a burst; without the right to it the kernel's default stays.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        if options.offload {
            set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)?;
        }
        if options.only_received {
            set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        }
        if !options.filter.is_empty() {
            let mut program = filter::compile(options.filter).ok_or(Errno::EINVAL)?;
            let program = libc::sock_fprog {
                len: program.len().try_into().map_err(|_| Errno::EINVAL)?,
                filter: program.as_mut_ptr(),
            };
            set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        let protocol = if options.snap > 0 { libc::ETH_P_ALL as u16 } else { 0 };
        bind(socket.as_raw_fd(), &address(ifindex, protocol)?)?;
        let room = options.snap + if options.offload { OFFLOAD_HEADER } else { 0 };
        Ok(Self { socket, ifindex, buffer: vec![0; room], offload: options.offload })
    }

    /// The next frame, if it comes within that time (zero: if it is there).
    ///
    /// # Errors
    /// The link went down (ENETDOWN; told once, frames come again when it is up) or is gone (ENODEV, or nothing at all).
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Frame<'_>>> {
        let failed = |errno| Error::new("receive from link", self.ifindex.to_string(), errno);
        let deadline = Instant::now() + patience;
        // In two steps, because the borrow checker takes a frame that is returned from a loop for one that stays.
        while !self.is_ready(deadline).map_err(failed)? {
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
        self.try_receive()
    }

    fn is_ready(&self, deadline: Instant) -> Result<bool, Errno> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent asking again and again.
        let left = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, left) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// The next frame, if it is there; for sockets that are polled.
    ///
    /// # Errors
    /// As [`PacketSocket::receive`].
    pub fn try_receive(&mut self) -> Result<Option<Frame<'_>>> {
        let failed = |errno| Error::new("receive from link", self.ifindex.to_string(), errno);
        let mut control = nix::cmsg_space!(libc::timespec);
        let (length, direction, at) = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_TRUNC,
            );
            match received {
                Ok(message) => {
                    let at = message.cmsgs().ok().into_iter().flatten().find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                        _ => None,
                    });
                    let direction = match message.address.map(|address| address.pkttype()) {
                        Some(libc::PACKET_OUTGOING) => Direction::Outgoing,
                        Some(libc::PACKET_OTHERHOST) => Direction::Passing,
                        _ => Direction::Incoming,
                    };
                    let at = at.map_or_else(SystemTime::now, |at| SystemTime::UNIX_EPOCH + at);
                    break (message.bytes, direction, at);
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        };
        let kept = self.buffer.get(..length.min(self.buffer.len())).unwrap_or_default();
        let (offload, bytes, length) = match kept.split_first_chunk::<OFFLOAD_HEADER>() {
            Some((header, bytes)) if self.offload => {
                (Some(Offload::parse(*header)), bytes, length.saturating_sub(OFFLOAD_HEADER))
            }
            _ => (None, kept, length),
        };
        Ok(Some(Frame { at, direction, bytes, length, offload }))
    }

    /// Sends a frame, from its Ethernet header on.
    ///
    /// # Errors
    /// Longer than the link takes (EMSGSIZE), no room in its queue (ENOBUFS, EAGAIN), down (ENETDOWN), gone (ENXIO).
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.send_with(frame, Offload::default())
    }

    /// Sends a frame for which something is still to be done, on a socket with [`Options::offload`]; on another it is
    /// sent as it is.
    ///
    /// # Errors
    /// As [`PacketSocket::send`]; EINVAL if the frame is not what `offload` says.
    pub fn send_with(&self, frame: &[u8], offload: Offload) -> Result<()> {
        let header = offload.bytes();
        let parts = [IoSlice::new(if self.offload { &header } else { &[] }), IoSlice::new(frame)];
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::new("send to link", self.ifindex.to_string(), errno)),
            }
        }
    }

    /// How many frames there were since this was last asked.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counts(&self) -> Result<Counts> {
        // struct tpacket_stats
        let mut counts = [0_u32; 2];
        let mut length = size_of_val(&counts) as libc::socklen_t;
        // SAFETY: the descriptor is open; the kernel writes at most `length` bytes, which is the array's size.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                counts.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result)
            .map_err(|errno| Error::new("count frames of link", self.ifindex.to_string(), errno))?;
        let [seen, lost] = counts;
        Ok(Counts { seen, lost })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn address(ifindex: u32, protocol: u16) -> Result<LinkAddr, Errno> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(ifindex).map_err(|_| Errno::ENODEV)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a whole sockaddr_ll of that family, which is copied.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }.ok_or(Errno::EINVAL)
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; the kernel reads a whole T, of which every caller gives the one that the option
    // is defined with, and what it points to lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
