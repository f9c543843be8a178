//! What connects the pods of different nodes, and the two programs around it: `podwired`, the agent, and `podwirectl`.
//!
//! ```text
//! store (peers file, etcd) ─▶ Snapshot ─▶ Topology ─▶ Desired ─▶ plan ─▶ dataplane ─▶ kernel
//!                            cluster::*              (pure)              ▲ observe ──┘
//! ```
//! [`cluster`] is what nodes tell each other and what a node makes of it. It is pure, like what decides on the kernel's
//! state. A [`store`] is where nodes meet.

pub mod adoption;
pub mod claims;
pub mod cluster;
pub mod config;
pub mod config_file;
pub mod conflist;
pub mod controller;
pub mod dataplane;
pub mod desired;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod identity;
pub mod leases;
pub mod member;
pub mod migrate;
pub mod plan;
pub mod probe;
pub mod remembered;
pub mod ruleset;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod terminal;
pub mod trace;
