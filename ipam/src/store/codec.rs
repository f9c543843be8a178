//! The bytes of the three trees.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `leases` | network id (16), address (4 or 16) | 1, owner id (16); 2, ms since boot (8); 3, GC passes (1) |
//! | `owners` | owner id (16) | the lease as JSON |
//! | `meta` | `schema` | format number (4) |
//! | | `boot` | boot id, text |
//! | | `generation` | number (8) |
//! | | `cursor/`, network id (16), set (4) | address (4 or 16) |
//! | | `imported/`, network id (16) | nothing |
//!
//! Numbers are big-endian. Whatever else stands there is damage.

use std::net::IpAddr;

use podwire_attach::{NetworkId, OwnerId};

use crate::{BootMillis, Change, Hold, Lease};

/// Which tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    Leases,
    Owners,
    Meta,
}

/// One key's new value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) tree: Tree,
    pub(super) key: Vec<u8>,
    /// `None` removes the key.
    pub(super) value: Option<Vec<u8>>,
}

pub(super) const SCHEMA_KEY: &[u8] = b"schema";
const BOOT: &[u8] = b"boot";
const GENERATION: &[u8] = b"generation";
const CURSOR: &[u8] = b"cursor/";
const IMPORTED: &[u8] = b"imported/";

const LEASED: u8 = 1;
const RESTING: u8 = 2;
const UNKNOWN: u8 = 3;

/// What a change writes.
pub(super) fn write(change: &Change) -> Write {
    let put = |tree, key, value| Write { tree, key, value: Some(value) };
    match change {
        Change::PutLease(lease) => {
            // A lease is text, numbers and lists: the kinds of value that JSON cannot refuse.
            let value = serde_json::to_vec(lease).unwrap_or_default();
            put(Tree::Owners, lease.attachment.owner.id().as_bytes().to_vec(), value)
        }
        Change::RemoveLease(owner) => {
            Write { tree: Tree::Owners, key: owner.as_bytes().to_vec(), value: None }
        }
        Change::PutAddress(network, address, hold) => {
            put(Tree::Leases, address_key(*network, *address), hold_value(*hold))
        }
        Change::RemoveAddress(network, address) => {
            Write { tree: Tree::Leases, key: address_key(*network, *address), value: None }
        }
        Change::PutCursor(network, set, last) => {
            let key = [CURSOR, network.as_bytes(), &set.to_be_bytes()].concat();
            put(Tree::Meta, key, octets(*last))
        }
        Change::PutGeneration(generation) => {
            put(Tree::Meta, GENERATION.to_vec(), generation.to_be_bytes().to_vec())
        }
        Change::PutImported(network) => put(Tree::Meta, [IMPORTED, network.as_bytes()].concat(), Vec::new()),
        Change::PutBoot(boot) => put(Tree::Meta, BOOT.to_vec(), boot.as_bytes().to_vec()),
    }
}

/// The change that wrote this entry of `leases`; `None` if none did.
pub(super) fn read_lease(key: &[u8], value: &[u8]) -> Option<Change> {
    let (network, address) = split_network(key)?;
    let hold = match value.split_first()? {
        (&LEASED, owner) => Hold::Leased(OwnerId::from_bytes(owner)?),
        (&RESTING, since) => Hold::Resting(BootMillis(u64::from_be_bytes(since.try_into().ok()?))),
        (&UNKNOWN, &[passes]) => Hold::Unknown(passes),
        _ => return None,
    };
    Some(Change::PutAddress(network, address_of(address)?, hold))
}

/// The same for `owners`.
pub(super) fn read_owner(key: &[u8], value: &[u8]) -> Option<Change> {
    let lease: Lease = serde_json::from_slice(value).ok()?;
    // A lease under another's key would be another's.
    (lease.attachment.owner.id().as_bytes() == key).then(|| Change::PutLease(Box::new(lease)))
}

/// The same for `meta`, but for the format number.
pub(super) fn read_meta(key: &[u8], value: &[u8]) -> Option<Change> {
    if key == BOOT {
        return Some(Change::PutBoot(String::from_utf8(value.to_vec()).ok()?));
    }
    if key == GENERATION {
        return Some(Change::PutGeneration(u64::from_be_bytes(value.try_into().ok()?)));
    }
    if let Some(rest) = key.strip_prefix(CURSOR) {
        let (network, set) = split_network(rest)?;
        let set = u32::from_be_bytes(set.try_into().ok()?);
        return Some(Change::PutCursor(network, set, address_of(value)?));
    }
    let network = NetworkId::from_bytes(key.strip_prefix(IMPORTED)?)?;
    Some(Change::PutImported(network))
}

fn split_network(key: &[u8]) -> Option<(NetworkId, &[u8])> {
    let (network, rest) = key.split_at_checked(16)?;
    Some((NetworkId::from_bytes(network)?, rest))
}

fn address_key(network: NetworkId, address: IpAddr) -> Vec<u8> {
    [network.as_bytes().as_slice(), &octets(address)].concat()
}

fn hold_value(hold: Hold) -> Vec<u8> {
    match hold {
        Hold::Leased(owner) => [&[LEASED], owner.as_bytes().as_slice()].concat(),
        Hold::Resting(since) => [&[RESTING], since.0.to_be_bytes().as_slice()].concat(),
        Hold::Unknown(passes) => vec![UNKNOWN, passes],
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}
