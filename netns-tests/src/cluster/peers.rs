//! The peers file of the file store.

use std::fmt::Write;
use std::net::IpAddr;

use crate::underlay::Families;

use super::{node_name, range_lines, subnets};

/// What a peers file says.
#[derive(Debug, Clone)]
pub struct Peers {
    pods: Families,
    /// Lines at its top, such as `direct_routing = "auto"`.
    pub settings: String,
    /// The nodes.
    pub nodes: Vec<Peer>,
    /// Lines at its end.
    pub more: String,
}

/// One node of it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The subnets of its pods.
    pub subnets: Vec<String>,
    /// More lines.
    pub more: String,
}

impl Peers {
    /// A file without nodes. The ranges have room for 2,047 nodes and are 10.240.0.0/13 and fd00:10:244::/48.
    pub fn new(pods: Families, settings: &str) -> Self {
        Self { pods, settings: settings.to_owned(), nodes: Vec::new(), more: String::new() }
    }

    /// The node of that number with these addresses: name and subnets follow from the number.
    pub fn peer(&self, number: u8, addresses: Vec<IpAddr>) -> Peer {
        self.far_peer(u16::from(number), &node_name(number), addresses)
    }

    /// A node that need not exist: its subnets are those of that number.
    pub fn far_peer(&self, number: u16, name: &str, addresses: Vec<IpAddr>) -> Peer {
        let subnets = subnets(self.pods, number);
        Peer { name: name.to_owned(), addresses, subnets, more: String::new() }
    }

    /// The file.
    pub fn to_toml(&self) -> String {
        let mut text = format!("name = \"lab\"\n{}\n", self.settings);
        text += &range_lines(self.pods, "range");
        for Peer { name, addresses, subnets, more } in &self.nodes {
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            let _ = write!(
                text,
                "\n[[node]]\nname = \"{name}\"\naddresses = {addresses:?}\nsubnets = {subnets:?}\n{more}\n"
            );
        }
        text + &self.more
    }
}
