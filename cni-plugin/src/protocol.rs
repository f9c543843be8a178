//! The CNI protocol, 0.1.0 to 1.1.0: what a call carries, what an answer looks like. PURE.

pub(crate) mod address;
pub mod code;
mod environment;
mod error;
pub(crate) mod json;
mod result;
mod version;

pub use environment::{CniArgs, Environment, Verb};
pub(crate) use environment::{check_ifname, is_name};
pub use error::CniError;
pub use json::{MAX_INPUT, parse_folded, read_input};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::{CniVersion, version_answer};
