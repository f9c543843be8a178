//! Real traffic between a node, its pods and a host outside: servers that say whom they hear, clients, a rate meter,
//! raw frames.
//!
//! Everything happens in the namespaces of one node. A socket belongs to the network namespace in which it was made,
//! so only its making happens on a thread inside.

mod client;
mod counter;
pub mod frames;
mod outside;
mod rate;
mod server;

pub use client::{Client, Heard, Talk};
pub use counter::{Flow, Flows, INTERVAL, Lap};

pub use outside::{Outside, UPLINK};
pub use rate::{Sink, send_for};
pub use server::Server;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::error::{LabError, Result};
use crate::netns::Netns;
use crate::node::Node;
use crate::pod::Pod;

/// Somewhere that traffic comes from or goes to.
pub trait Place {
    /// Its network namespace.
    fn network(&self) -> &Netns;
    /// What messages call it.
    fn label(&self) -> &str;
}

impl Place for Node {
    fn network(&self) -> &Netns {
        self.netns()
    }

    fn label(&self) -> &str {
        "node"
    }
}

impl Place for Pod {
    fn network(&self) -> &Netns {
        self.netns()
    }

    fn label(&self) -> &str {
        self.name()
    }
}

/// A transport protocol that this machine's kernel has sockets for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a server listens or a client goes to: `tcp 192.0.2.1:80`, `udp [::]:53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The protocol.
    pub transport: Transport,
    /// The address and port.
    pub at: SocketAddr,
}

impl Port {
    /// A TCP port.
    pub fn tcp(ip: impl Into<IpAddr>, port: u16) -> Self {
        Self { transport: Transport::Tcp, at: SocketAddr::new(ip.into(), port) }
    }

    /// A UDP port.
    pub fn udp(ip: impl Into<IpAddr>, port: u16) -> Self {
        Self { transport: Transport::Udp, at: SocketAddr::new(ip.into(), port) }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport} {}", self.at)
    }
}

impl std::str::FromStr for Port {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || LabError::new(format!("{text:?} is not like \"tcp 192.0.2.1:80\""));
        let (transport, at) = text.split_once(' ').ok_or_else(wrong)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(wrong()),
        };
        Ok(Self { transport, at: at.parse().map_err(|_| wrong())? })
    }
}
