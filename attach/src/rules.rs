//! Table `podwire`: what the node's packet filter does for pods. Masquerade, host ports, who may reach a pod, what it
//! may send as its own.
//!
//! The table has a fixed skeleton of chains and maps ([`skeleton`](self)), and each attachment puts elements into the
//! maps, each with the owner's id in its comment. So an ADD is one transaction of a few elements, a DEL removes them by
//! key or finds them by owner, and a packet costs the same few lookups whether there is one pod or a thousand.
//!
//! ```text
//! client ─▶ prerouting: to one of the node's addresses? ─▶ host-ports: (tcp, 8080) ─▶ 10.244.1.7:80
//!        ─▶ forward:    may the client reach this pod?
//!        ─▶ postrouting: would the pod's answer go astray? then the client gets the node's address
//! pod    ─▶ postrouting: leaves the pods' networks? then it gets the node's address
//! ```
//! Transactions are atomic and may be refused as a whole, because another process made or removed something at the same
//! moment. Each operation here looks again and tries again, a bounded number of times:
//!
//! - elements alone first, in one send. ENOENT: the skeleton, or a chain that is named after its content, is missing, and
//!   goes in with the elements, at exactly the generation that was looked at: of 50 first uses one makes it. EEXIST: an
//!   element is there, ours or another's.
//! - what is removed after a look is removed at the generation that was looked at: an element that another owner put
//!   in its place meanwhile is not ours to remove.

mod chains;
mod check;
mod compare;
mod conditions;
mod content;
mod forward;
mod install;
mod look;
pub mod matches;
mod mend;
mod remove;
mod restore;
mod skeleton;

use std::net::IpAddr;

use podwire_kernel::Error;
use podwire_kernel::nft::{self, TableRef};

use crate::PortMapping;

pub use check::check;
pub use compare::RulesDrift;
pub use conditions::{ConditionError, Conditions, parse as parse_conditions};
pub use forward::accept_forwarding;
pub use install::{Installed, install};
pub use mend::{Repaired, reconcile, uninstall};
pub use remove::{owners, remove};

/// Why the node's rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A port of the node leads to another pod that is alive.
    #[error("host port {port} is held by {by}")]
    PortTaken {
        /// The port.
        port: PortMapping,
        /// The other pod: interface, container and network, cut where they are long.
        by: String,
    },
    /// Another pod that is alive has rules for the same address.
    #[error("the node has rules for address {address} of {by}; two pods cannot share it")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The other pod.
        by: String,
    },
    /// A condition of a host port is not understood.
    #[error(transparent)]
    Conditions(#[from] ConditionError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(Error),
    /// The kernel was built without something that the tables are made of.
    #[error(
        "the kernel lacks a part of nftables (NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET; for source checks \
         NF_TABLES_BRIDGE): {0}"
    )]
    Lacking(Error),
    /// Others kept changing the tables. The text is the last refusal's.
    #[error("the node's nftables kept changing while podwire's were written; try again ({0})")]
    Unsettled(String),
}

impl From<Error> for RulesError {
    fn from(error: Error) -> Self {
        // Each of these is made at exactly the generation that was looked at, so nothing that it needs has just gone.
        let makes = ["create table", "create chain", "create set", "add rule"].contains(&error.op);
        let is_lack = error.is_missing() || LACK.contains(&error.errno);
        if makes && is_lack { Self::Lacking(error) } else { Self::Kernel(error) }
    }
}

/// EOPNOTSUPP, EPROTONOSUPPORT and EAFNOSUPPORT.
const LACK: [i32; 3] = [95, 93, 97];

/// Whether a table of nftables is one of those that this module keeps: another's change of it is a reason to look.
pub fn is_own_table(family: nft::Family, name: &str) -> bool {
    skeleton::TABLES.contains(&TableRef::new(family, name))
}

/// How often an operation is tried. Of those that are tried at one time one succeeds, so this is far more than as many
/// processes as a node starts at once.
const ATTEMPTS: u32 = 400;

/// Waits before another attempt: not at all for the first ones, which usually succeed, then a little longer each time, so
/// that the processor goes to those who are further.
fn pause(attempt: u32) {
    if attempt < 3 {
        return;
    }
    let micros = 50 * u64::from(attempt.min(40));
    #[expect(
        clippy::disallowed_methods,
        reason = "between two attempts, bounded; nothing tells of a free moment"
    )]
    std::thread::sleep(std::time::Duration::from_micros(micros));
}
