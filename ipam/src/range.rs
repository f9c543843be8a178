//! Ranges and range sets: which addresses a network may give out.
//!
//! The meaning is that of host-local, so that its configuration can be taken over as it is: a range is a piece
//! of one subnet, a range set is a list of ranges of one family, and a pod gets one address from each set. The
//! network address is never given out, nor IPv4's broadcast address; IPv6 has none and ends at all ones.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_attach::PodAddress;
use serde::{Deserialize, Serialize};

/// A range as it is written in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RangeSpec {
    /// The subnet, whose prefix length the pods' addresses carry.
    pub subnet: IpNetwork,
    /// The first address to give out; the subnet's first usable one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    /// The last address to give out; the subnet's last usable one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// The gateway, which no pod gets; the network address + 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A checked range: host bits clear, wide enough, start and end inside the subnet and in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RangeSpec", into = "RangeSpec")]
pub struct Range {
    subnet: IpNetwork,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

/// Why a range or a list of them cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The subnet has bits set behind its prefix.
    #[error(
        "subnet {subnet} has host bits set: for a prefix length of {} the network address is {}",
        .subnet.prefix(),
        .subnet.network()
    )]
    HostBits {
        /// The subnet as configured.
        subnet: IpNetwork,
    },
    /// Fewer than two bits for hosts: nothing is left beside network, gateway and broadcast.
    #[error("subnet {subnet} is too small to allocate from: the longest usable prefix is /{longest}")]
    TooSmall {
        /// The subnet as configured.
        subnet: IpNetwork,
        /// The longest prefix length that can be used: 30 for IPv4, 126 for IPv6.
        longest: u8,
    },
    /// An IPv4 subnet written as IPv6.
    #[error("subnet {subnet} is an IPv4-mapped IPv6 subnet: write it as an IPv4 subnet")]
    Mapped {
        /// The subnet as configured.
        subnet: IpNetwork,
    },
    /// A start, end or gateway that is not of the subnet's family.
    #[error("{key} {address} is not of the same address family as subnet {subnet}")]
    Family {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: IpAddr,
        /// The subnet as configured.
        subnet: IpNetwork,
    },
    /// A start, end or gateway that does not belong to the subnet.
    #[error("{key} {address} is not in subnet {subnet}")]
    Outside {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: IpAddr,
        /// The subnet as configured.
        subnet: IpNetwork,
    },
    /// The end comes before the start.
    #[error("rangeStart {start} is behind rangeEnd {end}")]
    Reversed {
        /// The first address.
        start: IpAddr,
        /// The last address.
        end: IpAddr,
    },
    /// The range holds nothing but the network or the broadcast address.
    #[error(
        "range {start}-{end} has no address that a pod can use: it is the network or broadcast address of {subnet}"
    )]
    Unusable {
        /// The first address.
        start: IpAddr,
        /// The last address.
        end: IpAddr,
        /// The subnet as configured.
        subnet: IpNetwork,
    },
    /// A range set without ranges.
    #[error("empty range set")]
    Empty,
    /// IPv4 and IPv6 in one set.
    #[error(
        "mixed address families in one range set: {first} and {other} (give each family a set of its own)"
    )]
    MixedFamilies {
        /// The set's first range.
        first: String,
        /// The first one of the other family.
        other: String,
    },
    /// Two ranges of one set share addresses.
    #[error("ranges {first} and {second} of one range set overlap")]
    Overlap {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// Ranges of two sets share addresses.
    #[error("range set {first} overlaps with range set {second}: {first_range} and {second_range}")]
    SetsOverlap {
        /// The number of one set, counted from 0.
        first: usize,
        /// The number of the other.
        second: usize,
        /// The range of the first set.
        first_range: String,
        /// The range of the second set.
        second_range: String,
    },
}

impl Range {
    /// Checks a range and fills in what it leaves out.
    ///
    /// A start at the network address, or an end at IPv4's broadcast address, is taken for the usable address
    /// next to it.
    ///
    /// # Errors
    /// One for each mistake; see [`RangeError`].
    pub fn new(spec: RangeSpec) -> Result<Self, RangeError> {
        let subnet = spec.subnet;
        check_subnet(subnet)?;
        let (first, last) = usable(subnet);
        // Go writes IPv4 addresses in IPv6's form now and then. In an IPv6 subnet such a one is what it says.
        let in_family = |address: IpAddr| if subnet.is_ipv4() { address.to_canonical() } else { address };
        let bound = |key, given: Option<IpAddr>, default| -> Result<IpAddr, RangeError> {
            let Some(address) = given.map(in_family) else { return Ok(default) };
            if address.is_ipv4() != subnet.is_ipv4() {
                return Err(RangeError::Family { key, address, subnet });
            }
            if !subnet.contains(address) {
                return Err(RangeError::Outside { key, address, subnet });
            }
            Ok(address)
        };
        let start = bound("rangeStart", spec.range_start, first)?;
        let end = bound("rangeEnd", spec.range_end, last)?;
        if start > end {
            return Err(RangeError::Reversed { start, end });
        }
        if start > last || end < first {
            return Err(RangeError::Unusable { start, end, subnet });
        }
        let gateway = match spec.gateway.map(in_family) {
            // A link-local router serves any subnet of its link: `fe80::1` is a usual gateway.
            Some(gateway) if gateway.is_ipv4() == subnet.is_ipv4() && is_link_local(gateway) => gateway,
            gateway => bound("gateway", gateway, first)?,
        };
        Ok(Self { subnet, start: start.max(first), end: end.min(last), gateway })
    }

    /// The subnet, whose prefix length the pods' addresses carry.
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// The first address that it gives out.
    pub fn start(&self) -> IpAddr {
        self.start
    }

    /// The last address that it gives out.
    pub fn end(&self) -> IpAddr {
        self.end
    }

    /// The gateway of its addresses, itself never given out.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Whether the address lies between start and end. The gateway may.
    pub fn contains(&self, address: IpAddr) -> bool {
        // IPv4 sorts before IPv6, so an address of the other family is outside.
        self.start <= address && address <= self.end
    }

    /// An address of this range as a pod gets it.
    pub(crate) fn pod_address(&self, address: IpAddr) -> PodAddress {
        PodAddress { address: with_prefix(address, self.subnet.prefix()), gateway: Some(self.gateway) }
    }

    /// How many addresses lie between start and end. At most 2^128 − 1, since the network address is not one.
    pub(crate) fn size(&self) -> u128 {
        number(self.end).saturating_sub(number(self.start)).saturating_add(1)
    }
}

fn check_subnet(subnet: IpNetwork) -> Result<(), RangeError> {
    let longest = if subnet.is_ipv4() { 30 } else { 126 };
    if subnet.ip().to_canonical() != subnet.ip() {
        return Err(RangeError::Mapped { subnet });
    }
    if subnet.prefix() > longest {
        return Err(RangeError::TooSmall { subnet, longest });
    }
    if subnet.ip() != subnet.network() {
        return Err(RangeError::HostBits { subnet });
    }
    Ok(())
}

/// The first and the last address of a subnet that an interface can have. The subnet has two host bits at least.
fn usable(subnet: IpNetwork) -> (IpAddr, IpAddr) {
    match subnet {
        IpNetwork::V4(subnet) => {
            let broadcast = subnet.network().to_bits() | !subnet.mask().to_bits();
            let first = Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1));
            (first.into(), Ipv4Addr::from_bits(broadcast.saturating_sub(1)).into())
        }
        IpNetwork::V6(subnet) => {
            let last = subnet.network().to_bits() | !subnet.mask().to_bits();
            let first = Ipv6Addr::from_bits(subnet.network().to_bits().saturating_add(1));
            (first.into(), Ipv6Addr::from_bits(last).into())
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address behind this one; `None` at the end of the address space.
pub(crate) fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address with a prefix length, which is cut to the longest of its family.
fn with_prefix(address: IpAddr, prefix: u8) -> IpNetwork {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    IpNetwork::new(address, prefix.min(longest)).unwrap_or_else(|_| IpNetwork::from(address))
}

impl TryFrom<RangeSpec> for Range {
    type Error = RangeError;

    fn try_from(spec: RangeSpec) -> Result<Self, RangeError> {
        Self::new(spec)
    }
}

impl From<Range> for RangeSpec {
    fn from(range: Range) -> Self {
        Self {
            subnet: range.subnet,
            range_start: Some(range.start),
            range_end: Some(range.end),
            gateway: Some(range.gateway),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family that do not overlap. A pod gets one address from each set of its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Range>", into = "Vec<Range>")]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// A set of checked ranges, in the order in which they are used.
    ///
    /// # Errors
    /// No range, ranges of both families, ranges that overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, RangeError> {
        let first = ranges.first().ok_or(RangeError::Empty)?;
        if let Some(other) = ranges.iter().find(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(RangeError::MixedFamilies { first: first.to_string(), other: other.to_string() });
        }
        if let Some(((_, first), (_, second))) = overlap(ranges.iter().map(|range| (0, *range)).collect()) {
            return Err(RangeError::Overlap { first: first.to_string(), second: second.to_string() });
        }
        Ok(Self { ranges })
    }

    /// The ranges in the order in which they are used; never empty.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether one of the ranges holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.range_for(address).is_some()
    }

    /// The range that holds the address.
    pub fn range_for(&self, address: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(address))
    }

    /// Whether it gives IPv4 addresses, not IPv6.
    pub fn is_ipv4(&self) -> bool {
        self.ranges.iter().all(|range| range.start.is_ipv4())
    }

    /// All addresses of the set as stretches in the order in which they are to be tried: from behind `last`
    /// round to `last` itself, or from the front if `last` is none of the set's.
    pub(crate) fn round(&self, last: Option<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
        let whole = |range: &Range| (range.start, range.end);
        let found =
            last.and_then(|last| Some((last, self.ranges.iter().position(|range| range.contains(last))?)));
        let Some((last, at)) = found else { return self.ranges.iter().map(whole).collect() };
        let (before, rest) = self.ranges.split_at(at);
        let Some((current, after)) = rest.split_first() else { return Vec::new() };
        let behind = successor(last).filter(|next| *next <= current.end).map(|next| (next, current.end));
        behind
            .into_iter()
            .chain(after.iter().map(whole))
            .chain(before.iter().map(whole))
            .chain([(current.start, last)])
            .collect()
    }
}

impl TryFrom<Vec<Range>> for RangeSet {
    type Error = RangeError;

    fn try_from(ranges: Vec<Range>) -> Result<Self, RangeError> {
        Self::new(ranges)
    }
}

impl From<RangeSet> for Vec<Range> {
    fn from(set: RangeSet) -> Self {
        set.ranges
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// Checks the range sets of one network against each other.
///
/// # Errors
/// Two of them share addresses.
pub fn check_sets(sets: &[RangeSet]) -> Result<(), RangeError> {
    let ranges = sets
        .iter()
        .enumerate()
        .flat_map(|(set, ranges)| ranges.ranges.iter().map(move |range| (set, *range)));
    match overlap(ranges.collect()) {
        None => Ok(()),
        Some(((first, one), (second, other))) => {
            let (first_range, second_range) = (one.to_string(), other.to_string());
            Err(RangeError::SetsOverlap { first, second, first_range, second_range })
        }
    }
}

/// A range with the number of its set.
type Numbered = (usize, Range);

/// Two ranges that share addresses, the one with the lower number first. Sorted by start, so that only
/// neighbours need a look, however many ranges a configuration lists.
fn overlap(mut ranges: Vec<Numbered>) -> Option<(Numbered, Numbered)> {
    ranges.sort_by_key(|(_, range)| range.start);
    ranges.iter().zip(ranges.iter().skip(1)).find_map(|(one, next)| {
        let shared = one.1.end >= next.1.start;
        shared.then_some(if one.0 <= next.0 { (*one, *next) } else { (*next, *one) })
    })
}

/// A pod's address with the prefix length and gateway of the range that holds it. An address outside all
/// ranges (an imported one) gets the longest prefix of its family and no gateway.
pub fn pod_address(sets: &[RangeSet], address: IpAddr) -> PodAddress {
    let address = address.to_canonical();
    match sets.iter().find_map(|set| set.range_for(address)) {
        Some(range) => range.pod_address(address),
        None => PodAddress { address: IpNetwork::from(address), gateway: None },
    }
}

#[cfg(test)]
pub(crate) mod tests;
