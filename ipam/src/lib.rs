//! Addresses of pods: ranges, leases, and the durable store that holds them.
//!
//! The rules stand in [`Pool`], which has no clock, no file and no kernel: it is given what an operation needs
//! to know and answers with the [`Change`]s to make durable.

//!
//! [`Engine`] joins it with its durable [`Store`]; [`Allocator`] is what programs use: the agent's socket where one
//! runs, else the store itself, behind a lock that makes one process at a time the allocator.

mod allocator;
pub mod cached_results;
mod client;
mod dirs;
mod engine;
mod error;
pub mod file;
mod filter;
pub mod import;
mod lease;
mod node;
mod pool;
mod range;
mod rebuild;
mod request;
pub mod service;
mod store;

pub use allocator::{Allocator, Patience, Removed, remove_links, report};
pub use dirs::{Dirs, Lock, Wanted};
pub use engine::{Batch, Engine, Vantage, now};
pub use error::Error;
pub use filter::{
    WantedRules, had_no_rules, has_rest, may_have_rules, remove_rest, remove_rules, remove_traffic,
};
pub use lease::{BootMillis, Change, Hold, Lease, LeaseState, Origin};
pub use node::{NodeConfig, NodeConfigError};
pub use pool::{DEFAULT_QUARANTINE_MS, GC_PASSES, LONGEST_QUARANTINE_MS, MISSING_MS, Pool, Undo};
pub use range::{Range, RangeError, RangeSet, RangeSpec, check_sets, pod_address};
pub use request::{
    Adoption, Ends, GcPlan, Grant, Observation, Refusal, Reserve, SetUsage, Sight, Sights, Stale, SweepPlan,
};
pub use service::{Deletion, GcReport};
pub use store::{Durability, Loaded, SCHEMA, SledStore, Store, StoreOrigin};
