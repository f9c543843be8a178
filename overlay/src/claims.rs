//! Which node has which subnet: how nodes that meet in a key-value store claim their parts of the cluster's ranges, keep them
//! and lose them. PURE: a local copy of what stands in the store goes in, a transaction to carry out comes out.
//!
//! A claim is bound to an identity (the node's name and the random id of its installation), never to a lease's time: a
//! node that is off for a month finds its subnets as it left them. It ends when somebody says so (`node leave`, `node rm`), when
//! a new installation takes the name, or after `reclaim_after`, if that is set; then the subnets rest before others
//! may have them.
//!
//! Each transaction compares the revision of every key that the decision was based on, so two nodes never both get what
//! one of them wanted. Whoever loses looks again and decides again.
//!
//! A restored backup takes claims away that were made after it, while the subnets are in use. Nodes notice (the revision went
//! back, or the log of the store is not the one that its data came from: [`Lineage`]), write down their claims again, and nobody
//! makes new ones meanwhile.

mod absence;
mod change;
mod claimant;
mod key;
mod placement;
mod record;
mod replica;
#[cfg(test)]
mod simulation;
mod terms;

pub use absence::Absences;
pub use change::{Change, Life, Write, configure, remove};
pub use claimant::{Claimant, Facts, Standing, Step};
pub use key::{Key, check_name};
pub use record::{Ended, Epoch, Grace, Hold, LARGEST, Presence, Value};
pub use replica::{Replica, Slot};
pub use terms::{BootTime, Contact, Lineage, differences, may_give_addresses};
