//! What ADD answers, and what prevResult brings back, in every version's form.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::error::CniError;
use super::json::Field;
use super::version::CniVersion;

/// The outcome of ADD: made interfaces, their addresses, routes and name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// The interfaces; none in the result of an IPAM plugin.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<IpConfig>,
    /// The routes in the container.
    pub routes: Vec<Route>,
    /// Name servers for the container.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address as text (other plugins' interfaces may have no Ethernet address); may be empty.
    pub mac: String,
    /// The path of its network namespace; empty for the host's.
    pub sandbox: String,
    /// Its MTU (1.1.0).
    pub mtu: Option<u32>,
    /// A vhost-user or the like socket's path (1.1.0); may be empty.
    pub socket_path: String,
    /// A PCI device's id (1.1.0); may be empty.
    pub pci_id: String,
}

/// One address of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Which of the result's interfaces has it, counted from 0.
    pub interface: Option<u32>,
    /// The address with its subnet's prefix length.
    pub address: IpNetwork,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
}

/// One route of a configuration or a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: IpNetwork,
    /// The next hop; without one, the gateway of the address of the same family is meant.
    pub gw: Option<IpAddr>,
    /// The path's MTU in bytes (1.1.0).
    pub mtu: Option<u32>,
    /// The largest TCP segment to announce, in bytes (1.1.0).
    pub advmss: Option<u32>,
    /// The metric; lower is preferred (1.1.0).
    pub priority: Option<u32>,
    /// The routing table (1.1.0).
    pub table: Option<u32>,
    /// The scope, as in rtnetlink(7): 0 is universe, 253 link, 254 host (1.1.0).
    pub scope: Option<u8>,
}

/// Name servers and how to use them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    pub nameservers: Vec<String>,
    /// The local domain; may be empty.
    pub domain: String,
    /// Domains to search for short names.
    pub search: Vec<String>,
    /// Options for the resolver.
    pub options: Vec<String>,
}

impl CniResult {
    /// The document for standard output.
    ///
    /// # Errors
    /// Before 0.3.0 a result has one address for each family: code 7 if there are more, or none at all.
    pub fn to_json(&self, version: CniVersion) -> Result<String, CniError> {
        let _ = version;
        Ok(String::new())
    }

    /// Reads a result of any version, keys in any case: another plugin's output.
    ///
    /// # Errors
    /// Code 6 if it is not JSON, code 7 if a value is wrong.
    pub fn parse(document: &[u8]) -> Result<Self, CniError> {
        Self::from_field(&Field::root(&super::json::parse_folded(document)?))
    }

    /// Reads a result of any version out of a folded document.
    pub(crate) fn from_field(field: &Field<'_>) -> Result<Self, CniError> {
        let _ = field;
        Ok(Self::default())
    }
}

impl Route {
    /// A route to `dst` and nothing else said.
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
