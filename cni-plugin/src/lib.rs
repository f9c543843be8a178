//! The podwire CNI plugin.
//!
//! A container runtime starts the program once for each call, with `CNI_*` variables in the environment and
//! a network's configuration as JSON on standard input. What comes in is untrusted and is read once, into
//! values that need no further check: [`Environment`] and [`Config`]. What goes out is one JSON document, a
//! [`CniResult`] or a [`CniError`], in the words of the version that the configuration asks for.

pub mod config;
pub mod delegate;
mod failure;
pub mod program;
pub mod protocol;
pub mod verbs;

pub use config::Config;
pub use delegate::Delegate;
pub use protocol::{CniError, CniResult, CniVersion, Environment, Verb};
