//! What podwire asks of the Linux kernel about networking: links, addresses and routes over netlink, network
//! namespaces, sysctls and events. No other crate of the workspace makes network system calls or contains
//! `unsafe`.
//!
//! Requests are values ([`Request`]); [`Netlink::apply`] sends up to 200 of them in one system call. All of it is
//! synchronous and acts in the network namespace of the calling thread; [`Netns::run`] is the one way into another.
//! The `events` feature adds a stream of changes for programs that run on tokio.
//!
//! Replies are decoded here and not by `netlink-packet-route`, whose decoder refuses a whole message when one
//! attribute has a length it does not know: a newer kernel must not make a pod undeletable.

pub mod addr;
pub mod clock;
pub mod conntrack;
pub mod datagram;
pub mod detached;
mod error;
#[cfg(feature = "events")]
pub mod events;
pub mod legacy_iptables;
pub mod link;
mod mac;
pub mod neighbour;
pub mod netconf;
mod netlink;
mod netns;
mod nfnetlink;
pub mod nft;
pub mod offload;
pub mod packet;
pub mod port;
pub mod priority;
pub mod qdisc;
mod reply;
pub mod route;
mod socket;
pub mod sysctl;
#[cfg(feature = "testing")]
#[expect(clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
pub mod testing;
pub mod vlan;

pub use addr::Family;
pub use error::{Error, Result};
pub use mac::{MacAddr, MacParseError};
pub use netlink::{Netlink, Request};
pub use netns::{Netns, NetnsError, NetnsIdentity};
#[doc(hidden)]
pub use reply::{Body, Reply, parse_replies};
