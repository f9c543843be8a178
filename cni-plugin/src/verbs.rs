//! One file a verb: where addresses and attachments meet.

use std::io::Write;

pub mod add;
mod addresses;
mod chained;
pub mod check;
pub mod del;
pub mod gc;
pub mod ipam;
pub mod loopback;
mod node;
pub mod status;
mod traffic;
pub mod tuning;
mod wanted;

/// Tells the administrator something: on standard error, which runtimes log.
fn say(text: &str) {
    // Nobody may be listening; the call goes on.
    let _ = writeln!(std::io::stderr().lock(), "podwire: {text}");
}
