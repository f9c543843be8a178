//! Addresses of pods: ranges, leases, and the durable store that holds them.
//!
//! The rules stand in [`Pool`], which has no clock, no file and no kernel: it is given what an operation needs
//! to know and answers with the [`Change`]s to make durable.

mod lease;
mod pool;
mod range;
mod request;

pub use lease::{BootMillis, Change, Hold, Lease, LeaseState, Origin};
pub use pool::{DEFAULT_QUARANTINE_MS, GC_PASSES, LONGEST_QUARANTINE_MS, MISSING_MS, Pool, Undo};
pub use range::{Range, RangeError, RangeSet, RangeSpec, check_sets, pod_address};
pub use request::{Adoption, GcPlan, Grant, Observation, Refusal, Reserve, SetUsage, Sight, Stale, SweepPlan};
