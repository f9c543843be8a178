//! What legacy iptables does with forwarded packets. Its rules are not nftables', and a base chain of its that drops
//! has the last word like any other; they can only be replaced as a whole, so podwire reads them and no more.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::addr::Family;
use crate::error::{Error, Result};

/// The table that has the chain FORWARD.
const TABLE: &str = "filter";

/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const GET_INFO: libc::c_int = 64;

/// IPT_SO_GET_ENTRIES and IP6T_SO_GET_ENTRIES.
const GET_ENTRIES: libc::c_int = 65;

/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;

/// The length of `struct ipt_getinfo`: the name, a mask of hooks, five entries and five ends of chains by hook, the
/// number of entries and their size.
const INFO: usize = NAME + 4 * (1 + 5 + 5 + 1 + 1);

/// NF_INET_FORWARD.
const FORWARD: usize = 2;

/// Where `struct ipt_get_entries` has its entries.
const ENTRIES: usize = (NAME + 4).next_multiple_of(align_of::<u64>());

/// A table larger than this is not read: it is a service proxy's.
const MAX_SIZE: usize = 16 * 1024 * 1024;

/// Verdicts of standard targets: `-NF_ACCEPT - 1` and `-NF_DROP - 1`.
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

/// Where the parts of an entry are; `struct ipt_entry` and `struct ip6t_entry`.
struct Layout {
    /// The name of the link that a packet came by; the one that it leaves by follows.
    links: usize,
    /// The offset of the target, 2 bytes, and of the next entry, 2 bytes.
    offsets: usize,
}

const V4: Layout = Layout { links: 16, offsets: 88 };
const V6: Layout = Layout { links: 64, offsets: 140 };

/// Whether legacy iptables of the calling thread's network namespace drops what is forwarded from or to a link: its chain
/// FORWARD has the policy DROP and no two rules that accept all packets of the link, one for each direction. `false` where
/// there is no legacy iptables, which costs the reading of one file.
///
/// # Errors
/// The table cannot be read (EPERM without CAP_NET_ADMIN).
pub fn drops_forwarded(family: Family, link: &str) -> Result<bool> {
    let (names, layout) = match family {
        Family::V4 => ("ip_tables_names", V4),
        Family::V6 => ("ip6_tables_names", V6),
    };
    // Asking for a table would make it.
    let names = match fs::read_to_string(format!("/proc/thread-self/net/{names}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        names => names.map_err(|e| Error::io("list legacy tables", names_object(family), &e))?,
    };
    if !names.lines().any(|name| name == TABLE) {
        return Ok(false);
    }
    let failed = |errno| Error::new("read legacy table", names_object(family), errno);
    let address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let socket = socket(address_family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    let mut info = named(INFO);
    ask(&socket, family, GET_INFO, &mut info).map_err(failed)?;
    let size = number(&info, INFO - 4).unwrap_or(0) as usize;
    if size > MAX_SIZE {
        return Err(failed(Errno::EFBIG));
    }
    let mut entries = named(ENTRIES + size);
    let size = (size as u32).to_ne_bytes();
    for (to, from) in entries.iter_mut().skip(NAME).zip(size) {
        *to = from;
    }
    // Another's change between the two questions is EAGAIN.
    ask(&socket, family, GET_ENTRIES, &mut entries).map_err(failed)?;
    let hook = |first: usize| number(&info, NAME + 4 + first + 4 * FORWARD).map(|offset| offset as usize);
    let (Some(first), Some(last)) = (hook(0), hook(20)) else { return Ok(false) };
    let entries = entries.get(ENTRIES..).unwrap_or_default();
    Ok(chain_drops(entries, first, last, &layout, link))
}

fn names_object(family: Family) -> &'static str {
    match family {
        Family::V4 => "filter of IPv4",
        Family::V6 => "filter of IPv6",
    }
}

/// A question's buffer, beginning with the table's name.
fn named(len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    for (to, from) in buffer.iter_mut().zip(TABLE.bytes()) {
        *to = from;
    }
    buffer
}

fn ask(socket: &impl AsRawFd, family: Family, option: libc::c_int, buffer: &mut [u8]) -> Result<(), Errno> {
    let level = match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    };
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads and writes at most `len` bytes of the buffer, which is as long and is borrowed for the
    // call; the socket is open.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    Errno::result(result).map(drop)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Whether the chain between two offsets, the second of which is its policy's, ends with a drop and does not accept the
/// link's packets before.
fn chain_drops(entries: &[u8], first: usize, last: usize, layout: &Layout, link: &str) -> bool {
    let short = |at: usize| -> Option<usize> {
        let bytes = entries.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(u16::from_ne_bytes(bytes).into())
    };
    let target = |entry: usize| short(entry + layout.offsets).map(|offset| entry + offset);
    // `struct xt_standard_target`: 32 bytes of header with the name at its third byte, then the verdict. The standard
    // target has no name.
    let verdict = |entry: usize| {
        let target = target(entry)?;
        let is_standard = entries.get(target + 2) == Some(&0);
        is_standard.then(|| number(entries, target + 32)).flatten().map(u32::cast_signed)
    };
    let name = |at: usize| {
        let bytes = entries.get(at..at + 16).unwrap_or_default();
        bytes.split(|byte| *byte == 0).next().unwrap_or_default()
    };
    if verdict(last) != Some(DROP) {
        return false;
    }
    let (mut accepts_from, mut accepts_to) = (false, false);
    let mut entry = first;
    while entry < last {
        let (from, to) = (name(entry + layout.links), name(entry + layout.links + 16));
        if verdict(entry) == Some(ACCEPT) {
            accepts_from |= from == link.as_bytes() && to.is_empty();
            accepts_to |= to == link.as_bytes() && from.is_empty();
        }
        match short(entry + layout.offsets + 2) {
            Some(next) if next > 0 => entry += next,
            _ => break,
        }
    }
    !(accepts_from && accepts_to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            first in 0..700_usize,
            last in 0..700_usize,
        ) {
            for layout in [V4, V6] {
                let _ = chain_drops(&bytes, first, last, &layout, "br0");
            }
        }
    }
}
