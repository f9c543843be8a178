//! What legacy iptables does with forwarded packets, and with those of a tunnel that come in. Its rules are not nftables', and a base chain of its that drops
//! has the last word like any other; they can only be replaced as a whole, so podwire reads them and no more.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::addr::Family;
use crate::error::{Error, Result};

/// The table that has the chains FORWARD and INPUT.
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

/// NF_INET_LOCAL_IN.
const INPUT: usize = 1;

/// NF_INET_FORWARD.
const FORWARD: usize = 2;

/// Where `struct ipt_get_entries` has its entries.
const ENTRIES: usize = (NAME + 4).next_multiple_of(align_of::<u64>());

/// A table larger than this is not read: it is a service proxy's.
const MAX_SIZE: usize = 16 * 1024 * 1024;

/// Verdicts of standard targets: `-NF_ACCEPT - 1` and `-NF_DROP - 1`.
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

/// XT_RETURN, `-NF_REPEAT - 1`.
const RETURN: i32 = -5;

/// IPPROTO_UDP.
const UDP: u16 = 17;

/// How deep chains may call each other here, and how many rules are looked at: the kernel allows no loops, a damaged answer
/// may have some.
const DEEPEST: usize = 32;
const MOST_RULES: usize = 100_000;

/// Where the parts of an entry are; `struct ipt_entry` and `struct ip6t_entry`.
struct Layout {
    /// The masks of source and destination: none is set where a rule takes any.
    masks: (usize, usize),
    /// The protocol, 2 bytes: 0 for any.
    protocol: usize,
    /// What of it is inverted, 1 byte.
    inverted: usize,
    /// The matches, one behind the other until the target.
    matches: usize,
    /// The name of the link that a packet came by; the one that it leaves by follows.
    links: usize,
    /// The offset of the target, 2 bytes, and of the next entry, 2 bytes.
    offsets: usize,
}

const V4: Layout =
    Layout { masks: (8, 16), links: 16, protocol: 80, inverted: 83, offsets: 88, matches: 112 };
const V6: Layout =
    Layout { masks: (32, 64), links: 64, protocol: 128, inverted: 132, offsets: 140, matches: 168 };

/// Whether legacy iptables of the calling thread's network namespace drops what is forwarded from or to a link: its chain
/// FORWARD has the policy DROP and no two rules that accept all packets of the link, one for each direction. `false` where
/// there is no legacy iptables, which costs the reading of one file.
///
/// # Errors
/// The table cannot be read (EPERM without CAP_NET_ADMIN).
pub fn drops_forwarded(family: Family, link: &str) -> Result<bool> {
    let Some(table) = Table::read(family)? else { return Ok(false) };
    let Some((first, last)) = table.chain(FORWARD) else { return Ok(false) };
    Ok(chain_drops(table.entries(), first, last, table.layout, link))
}

/// Whether legacy iptables of the calling thread's network namespace drops every UDP datagram to a port of this machine: its
/// chain INPUT, or one that it calls, has a rule or a policy that drops them, and none before that accepts even some, as far
/// as can be told. `false` where there is no legacy iptables.
///
/// # Errors
/// As for [`drops_forwarded`].
pub fn drops_received(family: Family, port: u16) -> Result<bool> {
    let Some(table) = Table::read(family)? else { return Ok(false) };
    let Some((first, _)) = table.chain(INPUT) else { return Ok(false) };
    Ok(Walk { entries: table.entries(), layout: table.layout, port, left: MOST_RULES }.chain(first, 0)
        == Fate::Dropped)
}

/// The table `filter` of a family, as the kernel gives it.
struct Table {
    info: Vec<u8>,
    /// `struct ipt_get_entries`.
    answer: Vec<u8>,
    layout: &'static Layout,
}

impl Table {
    /// `None` if there is none.
    fn read(family: Family) -> Result<Option<Self>> {
        let (names, layout) = match family {
            Family::V4 => ("ip_tables_names", &V4),
            Family::V6 => ("ip6_tables_names", &V6),
        };
        // Asking for a table would make it.
        let names = match fs::read_to_string(format!("/proc/thread-self/net/{names}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            names => names.map_err(|e| Error::io("list legacy tables", names_object(family), &e))?,
        };
        if !names.lines().any(|name| name == TABLE) {
            return Ok(None);
        }
        let failed = |errno| Error::new("read legacy table", names_object(family), errno);
        let address_family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let socket =
            socket(address_family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        let mut info = named(INFO);
        ask(&socket, family, GET_INFO, &mut info).map_err(failed)?;
        let size = number(&info, INFO - 4).unwrap_or(0) as usize;
        if size > MAX_SIZE {
            return Err(failed(Errno::EFBIG));
        }
        let mut answer = named(ENTRIES + size);
        let size = (size as u32).to_ne_bytes();
        for (to, from) in answer.iter_mut().skip(NAME).zip(size) {
            *to = from;
        }
        // Another's change between the two questions is EAGAIN.
        ask(&socket, family, GET_ENTRIES, &mut answer).map_err(failed)?;
        Ok(Some(Self { info, answer, layout }))
    }

    /// Where a hook's chain begins, and where its policy is.
    fn chain(&self, hook: usize) -> Option<(usize, usize)> {
        let offset = |first: usize| number(&self.info, NAME + 4 + first + 4 * hook).map(|at| at as usize);
        offset(0).zip(offset(20))
    }

    fn entries(&self) -> &[u8] {
        self.answer.get(ENTRIES..).unwrap_or_default()
    }
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

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

/// A name of a fixed length, up to its first zero.
fn name(bytes: &[u8], at: usize) -> &[u8] {
    let bytes = at.checked_add(16).and_then(|end| bytes.get(at..end)).unwrap_or_default();
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Where an entry's target is.
fn target(entries: &[u8], entry: usize, layout: &Layout) -> Option<usize> {
    short(entries, entry + layout.offsets).map(|offset| entry + usize::from(offset))
}

/// Where the entry behind this one is.
fn next(entries: &[u8], entry: usize, layout: &Layout) -> Option<usize> {
    short(entries, entry + layout.offsets + 2).filter(|next| *next > 0).map(|next| entry + usize::from(next))
}

/// `struct xt_standard_target`: 32 bytes of header with the name at its third byte, then the verdict. The standard target
/// has no name.
fn verdict(entries: &[u8], target: usize) -> Option<i32> {
    let is_standard = entries.get(target + 2) == Some(&0);
    is_standard.then(|| number(entries, target + 32)).flatten().map(u32::cast_signed)
}

/// Whether the chain between two offsets, the second of which is its policy's, ends with a drop and does not accept the
/// link's packets before.
fn chain_drops(entries: &[u8], first: usize, last: usize, layout: &Layout, link: &str) -> bool {
    let verdict = |entry| verdict(entries, target(entries, entry, layout)?);
    if verdict(last) != Some(DROP) {
        return false;
    }
    let (mut accepts_from, mut accepts_to) = (false, false);
    let mut entry = first;
    while entry < last {
        let (from, to) = (name(entries, entry + layout.links), name(entries, entry + layout.links + 16));
        if verdict(entry) == Some(ACCEPT) {
            accepts_from |= from == link.as_bytes() && to.is_empty();
            accepts_to |= to == link.as_bytes() && from.is_empty();
        }
        match next(entries, entry, layout) {
            Some(next) => entry = next,
            None => break,
        }
    }
    !(accepts_from && accepts_to)
}

/// What becomes of a datagram in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is dropped, wherever it comes from.
    Dropped,
    /// It is accepted, or may be.
    MayPass,
    /// The chain says nothing of it.
    Returns,
}

/// Whether a rule is for a datagram that is the first of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Never,
    Perhaps,
    Always,
}

/// The way of a datagram to a port through the chains.
struct Walk<'a> {
    entries: &'a [u8],
    layout: &'static Layout,
    port: u16,
    /// How many rules may still be looked at.
    left: usize,
}

impl Walk<'_> {
    fn chain(&mut self, first: usize, depth: usize) -> Fate {
        let mut entry = first;
        while entry < self.entries.len() {
            // What cannot be followed may let it pass.
            self.left = match self.left.checked_sub(1) {
                Some(left) if depth < DEEPEST => left,
                _ => return Fate::MayPass,
            };
            let Some(target) = target(self.entries, entry, self.layout) else { return Fate::MayPass };
            let matches = self.matches(entry, target);
            if matches != Match::Never {
                let fate = match verdict(self.entries, target) {
                    Some(ACCEPT) => Fate::MayPass,
                    Some(DROP) => Fate::Dropped,
                    Some(RETURN) if matches == Match::Always => return Fate::Returns,
                    Some(chain) if chain >= 0 => self.chain(chain as usize, depth + 1),
                    // REJECT, unlike LOG and those that set marks, is an end.
                    None if name(self.entries, target + 2) == b"REJECT" => Fate::Dropped,
                    None if name(self.entries, target + 2) == b"NFQUEUE" => Fate::MayPass,
                    _ => Fate::Returns,
                };
                match fate {
                    Fate::MayPass => return Fate::MayPass,
                    Fate::Dropped if matches == Match::Always => return Fate::Dropped,
                    Fate::Dropped | Fate::Returns => {}
                }
            }
            match next(self.entries, entry, self.layout) {
                Some(next) => entry = next,
                None => return Fate::MayPass,
            }
        }
        Fate::MayPass
    }

    fn matches(&self, entry: usize, target: usize) -> Match {
        let (entries, layout) = (self.entries, self.layout);
        let inverted = entries.get(entry + layout.inverted).copied().unwrap_or_default();
        let protocol = short(entries, entry + layout.protocol).unwrap_or_default();
        let link = name(entries, entry + layout.links);
        if (inverted == 0 && protocol != 0 && protocol != UDP) || (inverted == 0 && link == b"lo") {
            return Match::Never;
        }
        let masks = entries.get(entry + layout.masks.0..entry + layout.masks.1).unwrap_or_default();
        let is_narrow = !link.is_empty() || masks.iter().any(|byte| *byte != 0);
        let (mut perhaps, mut has_state, mut has_port) = (is_narrow || inverted != 0, false, false);
        let mut at = entry + layout.matches;
        while at < target {
            match name(entries, at + 2) {
                // `struct xt_udp`: the first and last source port, the same of destination ports, what is inverted.
                b"udp" => {
                    let ports =
                        [32, 34, 36, 38].map(|offset| short(entries, at + offset).unwrap_or_default());
                    let [from, to, first, last] = ports;
                    let is_inverted = entries.get(at + 40) != Some(&0);
                    if !is_inverted && !(first..=last).contains(&self.port) {
                        return Match::Never;
                    }
                    perhaps |= is_inverted || (from, to) != (0, u16::MAX);
                    has_port |= (first, last) != (0, u16::MAX);
                }
                b"conntrack" | b"state" => has_state = true,
                b"comment" => {}
                _ => perhaps = true,
            }
            match short(entries, at) {
                Some(size) if size > 0 => at += usize::from(size),
                _ => return Match::Perhaps,
            }
        }
        match (has_state, perhaps || has_port) {
            // Of connections that are known, or of packets that belong to none.
            (true, false) => Match::Never,
            (true, true) => Match::Perhaps,
            (false, _) if perhaps => Match::Perhaps,
            (false, _) => Match::Always,
        }
    }
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
            for layout in [&V4, &V6] {
                let _ = chain_drops(&bytes, first, last, layout, "br0");
                let _ = Walk { entries: &bytes, layout, port: 8472, left: MOST_RULES }.chain(first, 0);
            }
        }
    }
}
