//! A link that breaks checksums, as network interfaces do whose checksum offload for packets in a tunnel is wrong.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{LabError, Result};
use crate::netns::Netns;

/// What the kernel says of a packet that this host sends itself (PACKET_OUTGOING in linux/if_packet.h).
const OUTGOING: u8 = 4;

/// Carries frames between two links, byte for byte as they stand in memory: a checksum that the sender's kernel leaves to
/// the link is never computed. Whole ones stay whole. Ends with this value.
pub struct BrokenOffload {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BrokenOffload {
    /// Between two links of a network namespace.
    pub(super) fn between(netns: &Netns, links: [&str; 2]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut relay = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        let ends = netns.run(|| -> Result<_> { Ok([end(links[0])?, end(links[1])?]) })??;
        let [one, other] = ends.map(Arc::new);
        for (from, to) in [(Arc::clone(&one), Arc::clone(&other)), (other, one)] {
            let stop = Arc::clone(&stop);
            relay.threads.push(std::thread::spawn(move || carry(&from, &to, &stop)));
        }
        Ok(relay)
    }
}

impl Drop for BrokenOffload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

type End = (OwnedFd, LinkAddr);

fn end(link: &str) -> Result<End> {
    let what = || format!("listen on {link}");
    let mut found = getifaddrs().map_err(LabError::because(what()))?;
    let address = found.find(|entry| {
        entry.interface_name == link && entry.address.is_some_and(|a| a.as_link_addr().is_some())
    });
    let address = address.and_then(|entry| entry.address?.as_link_addr().copied());
    let address = address.ok_or_else(|| LabError::new(format!("{}: there is none", what())))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .map_err(LabError::because(what()))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))
        .map_err(LabError::because(what()))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).map_err(LabError::because(what()))?;
    Ok((socket, address))
}

fn carry(from: &End, to: &End, stop: &AtomicBool) {
    let mut frame = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, Some(sender))) = recvfrom::<LinkAddr>(from.0.as_raw_fd(), &mut frame) else {
            continue;
        };
        // The socket hears all links: binding it to one takes an address that getifaddrs does not give.
        if sender.ifindex() == from.1.ifindex() && sender.pkttype() != OUTGOING {
            // What is too large for the link is lost there.
            let _ = sendto(to.0.as_raw_fd(), &frame[..length], &to.1, MsgFlags::empty());
        }
    }
}
