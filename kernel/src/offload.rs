//! What a link does for the packets that it sends, as `ethtool -K` shows and sets it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};
use crate::link::MAX_NAME;

/// ETHTOOL_GTXCSUM of linux/ethtool.h.
const GET_TX_CHECKSUM: u32 = 0x16;
/// ETHTOOL_STXCSUM of linux/ethtool.h.
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the kernel leaves checksums of TCP and UDP to the link of that name, or to what it passes packets on to.
///
/// # Errors
/// There is no such link in the calling thread's network namespace (ENODEV), or it has no such setting (EOPNOTSUPP).
pub fn tx_checksum(link: &str) -> Result<bool> {
    exchange(link, GET_TX_CHECKSUM, 0)
        .map(|on| on != 0)
        .map_err(|errno| Error::new("read checksum offload of link", link, errno))
}

/// Has checksums left to the link of that name, or done before it gets a packet; segmentation, which cannot be without,
/// goes and comes with it. Lasts until the link is removed.
///
/// # Errors
/// As [`tx_checksum`]; EPERM without CAP_NET_ADMIN; EOPNOTSUPP if the link cannot do otherwise.
pub fn set_tx_checksum(link: &str, on: bool) -> Result<()> {
    let failed = |errno| Error::new("change checksum offload of link", link, errno);
    exchange(link, SET_TX_CHECKSUM, on.into()).map_err(failed)?;
    match exchange(link, GET_TX_CHECKSUM, 0).map_err(failed)? {
        now if (now != 0) == on => Ok(()),
        _ => Err(failed(Errno::EOPNOTSUPP).with("the link keeps it as it is")),
    }
}

fn exchange(link: &str, command: u32, data: u32) -> Result<u32, Errno> {
    if link.is_empty() || link.len() > MAX_NAME || link.contains('\0') {
        return Err(Errno::ENODEV);
    }
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed();
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
    // SAFETY: the descriptor is open; the request names a link by a string that ends within it, and points to a whole
    // ethtool_value, which the kernel reads and writes for these two commands and which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    Errno::result(result)?;
    Ok(value.data)
}
