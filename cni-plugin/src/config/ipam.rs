//! The `ipam` section, and what the runtime asks for beside it.

use std::net::IpAddr;
use std::path::PathBuf;

use podwire_ipam::RangeSet;

use crate::protocol::Route;

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipam {
    /// Nowhere: a pure L2 attachment (`ipam` absent, `{}`, or without a type).
    None,
    /// Our own store, in this process.
    InProcess(Box<IpamConfig>),
    /// Another plugin, run by the specification.
    Delegated {
        /// Its name, a plain file name.
        plugin: String,
    },
}

/// Under which name the store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InProcess {
    /// `podwire-ipam`.
    PodwireIpam,
    /// `host-local`: the configuration that people have.
    HostLocal,
}

/// The configuration of our own IPAM, which is host-local's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConfig {
    /// The `type` that it was called by.
    pub plugin: InProcess,
    /// The range sets, one address from each: runtimeConfig.ipRanges, then the legacy subnet, then `ranges`.
    pub sets: Vec<RangeSet>,
    /// `podwire-ipam` without ranges: the agent says this node's ranges (see [`super::NodeConfig`]).
    pub node_ranges: bool,
    /// `routes`.
    pub routes: Vec<Route>,
    /// Requested addresses: CNI_ARGS, then args.cni.ips, then runtimeConfig.ips.
    pub requested: Vec<IpAddr>,
    /// `resolvConf`: a file whose content becomes the result's name servers.
    pub resolv_conf: Option<PathBuf>,
    /// `dataDir`: where host-local kept its files, /var/lib/cni/networks unless said otherwise; imported once.
    pub data_dir: PathBuf,
    /// `quarantineSeconds` × 1000: how long a freed address rests while others are free; 60 s unless said
    /// otherwise.
    pub quarantine_ms: u64,
}
