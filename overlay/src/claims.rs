//! Which node has which subnet: how nodes that meet in a key-value store claim their parts of the cluster's ranges, keep them
//! and lose them. PURE: a local copy of what stands in the store goes in, a transaction to carry out comes out.
//!
//! A claim is bound to an identity (the node's name and the random id of its installation), never to a lease's time: a
//! node that is off for a month finds its subnets as it left them. It ends when somebody says so (`node leave`, `node rm`), when
//! a new installation takes the name, or after `reclaim_after`, if that is set; then the subnets rest before others
//! may have them.

mod terms;

pub use terms::{BootTime, Contact, check_config, may_give_addresses};
