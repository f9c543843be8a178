//! Settings of UDP sockets that the standard library does not have.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use crate::addr::Family;
use crate::error::{Error, Result};

/// Has a socket send each datagram as one packet, with "don't fragment" set, up to the MTU of the link that it leaves
/// by (else EMSGSIZE), whatever routes or routers say of the rest of the path (IP_PMTUDISC_PROBE): so that it can be
/// found out what passes.
///
/// # Errors
/// The socket is of another family.
pub fn forbid_fragments(socket: &impl AsFd, family: Family) -> Result<()> {
    let (level, option, value) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
    };
    // SAFETY: the descriptor is open, and the kernel reads one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("forbid fragments of socket", family.to_string(), errno))
}
