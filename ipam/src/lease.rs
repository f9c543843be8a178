//! What the store records: leases by owner, held addresses, cursors; and the changes that an operation makes.

use std::net::IpAddr;

use podwire_attach::{Attachment, NetworkId, OwnerId, PortMapping};
use serde::{Deserialize, Serialize};

/// Milliseconds of CLOCK_BOOTTIME, which nobody sets and which does not stop in suspend. Comparable within
/// one boot alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootMillis(pub u64);

/// Where a lease stands. A lease moves down this list and never up, until its owner's next ADD replaces it by a
/// lease of its own generation; an address is given to another owner only when its lease is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The address is the owner's; its interface is being made.
    Reserved,
    /// The interface is up. Repair acts on these alone.
    Attached,
    /// DEL has begun: the interface is being removed, repair keeps off.
    Deleting,
}

/// Where a lease came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// One of our own ADDs.
    Add,
    /// A host-local directory, read on the first use of its network. Its link was made by another plugin.
    HostLocal,
    /// Links and cached results, after the store was lost.
    Rebuilt,
}

/// One owner's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The whole attachment, its addresses among it.
    pub attachment: Attachment,
    /// Where it stands.
    pub state: LeaseState,
    /// Where it came from.
    pub origin: Origin,
    /// Grows with each reservation of the store: a late answer about an earlier one is told from this one.
    pub generation: u64,
    /// The boot in which it was made (/proc/sys/kernel/random/boot_id). Another boot's leases are dead.
    pub boot_id: String,
    /// Whether the owner already had a lease when this one was made. Its interface may then still stand, so
    /// that cancelling this reservation frees nothing; DEL, GC or the sweep does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub succeeds: bool,
    /// Addresses of the owner's earlier attachment that this one has no more. They stay held until the new
    /// interface is up: until then the old one may still answer for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<IpAddr>,
    /// The same for host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_ports: Vec<PortMapping>,
    /// When the attachment was first seen without its link or netns; a second look at least 60 s later
    /// releases it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<BootMillis>,
}

impl Lease {
    /// Every address that this lease keeps from others: its own and its former ones.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.attachment
            .addresses
            .iter()
            .map(|address| address.address.ip())
            .chain(self.former.iter().copied())
    }

    /// Every port of the node that this lease keeps from others.
    pub fn ports(&self) -> impl Iterator<Item = PortMapping> {
        self.attachment.ports().iter().chain(&self.former_ports).copied()
    }
}

/// serde's form of "leave it out when it says nothing".
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// Why an address is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// It belongs to this owner's lease.
    Leased(OwnerId),
    /// Its lease ended at that time of this boot; it is given out again last of all.
    Resting(BootMillis),
    /// It was in use when the store was lost, by whom is unknown; kept until so many more GC passes.
    Unknown(u8),
}

/// One durable change. An operation yields a list of them, which the store commits as one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write this owner's lease.
    PutLease(Box<Lease>),
    /// Forget this owner's lease.
    RemoveLease(OwnerId),
    /// Write why this address is not free.
    PutAddress(NetworkId, IpAddr, Hold),
    /// The address is free.
    RemoveAddress(NetworkId, IpAddr),
    /// The last address given from this range set; the next search starts behind it.
    PutCursor(NetworkId, u32, IpAddr),
    /// The generation of the newest reservation.
    PutGeneration(u64),
    /// That network's host-local directory has been imported (or there was none).
    PutImported(NetworkId),
    /// The boot that the resting times and leases belong to.
    PutBoot(String),
}
