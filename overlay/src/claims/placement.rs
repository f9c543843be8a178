//! Where in a range a node's subnet is looked for. PURE.
//!
//! A node begins at a hash of its name and goes on in strides that another part of the hash gives, so that nodes that start at
//! the same time seldom want the same subnet, even where few are left, and one that has lost everything is likely to find
//! the subnet that it had.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use crate::cluster::ClusterRange;

/// The first subnet that is not taken, from the hash of the name on, until every subnet of the range had its turn. `taken` is how many are at most: it
/// bounds the search.
pub(super) fn place(
    range: &ClusterRange,
    name: &str,
    taken: usize,
    is_taken: impl Fn(&IpNetwork) -> bool,
) -> Option<IpNetwork> {
    let count = subnet_count(range);
    let (start, stride) = hash(range, name);
    let most = count.min(taken as u128 + 1);
    // The count is a power of two: odd strides meet every subnet before they meet one again.
    let index = |step: u128| start.wrapping_add((stride | 1).wrapping_mul(step)) % count;
    (0..most).filter_map(|step| subnet(range, index(step))).find(|subnet| !is_taken(subnet))
}

/// How many subnets a range has. Not 0, and at most 2⁶⁴ in a range that makes sense.
pub(super) fn subnet_count(range: &ClusterRange) -> u128 {
    1 << u32::from(range.subnet_prefix.saturating_sub(range.range.prefix())).min(64)
}

fn subnet(range: &ClusterRange, index: u128) -> Option<IpNetwork> {
    let prefix = u32::from(range.subnet_prefix);
    let address = match range.range.network() {
        IpAddr::V4(network) => {
            let offset = u32::try_from(index).ok()?.checked_shl(32_u32.checked_sub(prefix)?)?;
            IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | offset))
        }
        IpAddr::V6(network) => {
            let offset = index.checked_shl(128_u32.checked_sub(prefix)?)?;
            IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() | offset))
        }
    };
    IpNetwork::new(address, range.subnet_prefix).ok()
}

fn hash(range: &ClusterRange, name: &str) -> (u128, u128) {
    let digest = Sha256::digest(format!("podwire subnet\n{}\n{}\n{name}", range.range, range.subnet_prefix));
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte));
    let (start, stride) = digest.split_at(16);
    (number(start), number(stride))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(range: &str, subnet_prefix: u8) -> ClusterRange {
        ClusterRange { range: range.parse().unwrap(), subnet_prefix }
    }

    #[test]
    fn subnets_are_counted_and_numbered() {
        for (of, prefix, count, last) in [
            ("10.244.0.0/16", 24, 1 << 8, "10.244.255.0/24"),
            ("10.244.0.0/24", 24, 1, "10.244.0.0/24"),
            ("0.0.0.0/0", 30, 1 << 30, "255.255.255.252/30"),
            ("fd00:10:244::/48", 64, 1 << 16, "fd00:10:244:ffff::/64"),
            ("::/0", 64, 1 << 64, "ffff:ffff:ffff:ffff::/64"),
        ] {
            let of = range(of, prefix);
            assert_eq!(subnet_count(&of), count);
            assert_eq!(subnet(&of, 0), Some(IpNetwork::new(of.range.ip(), prefix).unwrap()));
            assert_eq!(subnet(&of, count - 1), Some(last.parse().unwrap()));
        }
    }

    #[test]
    fn where_a_name_begins_never_changes() {
        // A new version must look for a node's subnet where the old one did.
        let v4 = range("10.244.0.0/16", 24);
        let v6 = range("fd00:10:244::/48", 64);
        for (name, first4, second4, first6) in [
            ("node-1", "10.244.41.0/24", "10.244.188.0/24", "fd00:10:244:9a9b::/64"),
            ("node-2", "10.244.247.0/24", "10.244.36.0/24", "fd00:10:244:d64a::/64"),
        ] {
            let first = |range| place(range, name, 0, |_| false).unwrap().to_string();
            assert_eq!((first(&v4).as_str(), first(&v6).as_str()), (first4, first6), "{name}");
            let second = place(&v4, name, 1, |subnet| subnet.to_string() == first4).unwrap().to_string();
            assert_eq!(second, second4, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_used_to_the_last_subnet_and_no_further(bits in 0_u8..=8, v6: bool) {
            let range = if v6 { range("fd00::/56", 56 + bits) } else { range("10.0.0.0/16", 16 + bits) };
            let mut taken = BTreeSet::new();
            for node in 0..1_usize << bits {
                let found = place(&range, &format!("n{node}"), taken.len(), |subnet| taken.contains(subnet));
                let found = found.expect("there is room");
                prop_assert!(range.range.contains(found.ip()));
                prop_assert_eq!(found.prefix(), range.subnet_prefix);
                prop_assert_eq!(found.network(), found.ip());
                prop_assert!(taken.insert(found));
            }
            prop_assert_eq!(place(&range, "one more", taken.len(), |subnet| taken.contains(subnet)), None);
        }
    }
}
