//! What ADD answers, and what prevResult brings back, in every version's form.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_attach::Tuning;

use super::address::{ADDRESS, CIDR, parse_address, parse_cidr};
use super::code;
use super::error::CniError;
use super::json::{self, Field};
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
    /// The container's interface of that name; the node's have no sandbox.
    pub fn pod_interface(&self, ifname: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.is_in_pod(ifname))
    }

    /// The addresses that are not another interface's: the plugins of a chain may have made several.
    pub fn ips_of(&self, ifname: &str) -> impl Iterator<Item = &IpConfig> {
        let interface = |index: u32| self.interfaces.get(usize::try_from(index).ok()?);
        self.ips.iter().filter(move |ip| ip.interface.and_then(interface).is_none_or(|of| of.name == ifname))
    }

    /// Says of the container's interface of that name what it has been tuned to.
    pub fn retune(&mut self, ifname: &str, tuning: &Tuning) {
        for interface in self.interfaces.iter_mut().filter(|interface| interface.is_in_pod(ifname)) {
            if let Some(mac) = tuning.mac {
                interface.mac = mac.to_string();
            }
            interface.mtu = tuning.mtu.or(interface.mtu);
        }
    }

    /// The document for standard output.
    ///
    /// # Errors
    /// Before 0.3.0 a result has one address for each family: code 7 if there are more, or none at all.
    pub fn to_json(&self, version: CniVersion) -> Result<String, CniError> {
        if version.is_single_address() {
            return Ok(json::write(&self.single_address(version)?));
        }
        let attributes = version >= CniVersion::V1_1_0;
        let family = |ip: &IpConfig| if ip.address.is_ipv4() { "4" } else { "6" };
        let document = document::Result {
            cni_version: version.as_str(),
            interfaces: self.interfaces.iter().map(|interface| interface.document(attributes)).collect(),
            ips: self
                .ips
                .iter()
                .map(|ip| document::Ip {
                    version: (version < CniVersion::V1_0_0).then(|| family(ip)),
                    interface: ip.interface,
                    address: ip.address,
                    gateway: ip.gateway,
                })
                .collect(),
            routes: self.routes.iter().map(|route| route.document(attributes)).collect(),
            dns: self.dns.document(version),
        };
        Ok(json::write(&document))
    }

    fn single_address(&self, version: CniVersion) -> Result<document::SingleAddress<'_>, CniError> {
        let wrong = |what: &str| {
            let message = format!("cannot write a result of CNI version {version}: {what}");
            CniError::new(code::INVALID_NETWORK_CONFIG, message)
        };
        let of_family = |ipv4: bool| {
            let mut ips = self.ips.iter().filter(|ip| ip.address.is_ipv4() == ipv4);
            let Some(ip) = ips.next() else { return Ok(None) };
            if ips.next().is_some() {
                return Err(wrong("it has one address for each family, and there are more"));
            }
            let routes = self.routes.iter().filter(|route| route.dst.is_ipv4() == ipv4);
            let routes = routes.map(|route| route.document(false)).collect();
            Ok(Some(document::SingleIp { ip: ip.address, gateway: ip.gateway, routes }))
        };
        let (ip4, ip6) = (of_family(true)?, of_family(false)?);
        if ip4.is_none() && ip6.is_none() {
            return Err(wrong("there is no IP address"));
        }
        Ok(document::SingleAddress {
            cni_version: version.as_str(),
            ip4,
            ip6,
            dns: self.dns.document(version),
        })
    }

    /// Reads a result of any version, keys in any case: another plugin's output.
    ///
    /// # Errors
    /// Code 6 if it is not JSON, code 7 if a value is wrong.
    pub fn parse(document: &[u8]) -> Result<Self, CniError> {
        let value = json::parse_folded(document)?;
        let root = Field::root(&value);
        if !root.is_object() {
            return Err(root.invalid("an object"));
        }
        Self::from_field(&root)
    }

    /// Reads a result of any version out of a folded document. The form is known by its keys: what a runtime
    /// passes on was written by some plugin, which may have been wrong about its `cniVersion`.
    pub(crate) fn from_field(field: &Field<'_>) -> Result<Self, CniError> {
        let mut result = Self { dns: Dns::from_field(&field.object("dns")?)?, ..Self::default() };
        for interface in field.at("interfaces").list()? {
            result.interfaces.push(Interface::from_field(&interface.as_object()?)?);
        }
        for ip in field.at("ips").list()? {
            let ip = ip.as_object()?;
            let (address, gateway) = address_and_gateway(&ip, "address")?;
            result.ips.push(IpConfig { interface: ip.at("interface").index()?, address, gateway });
        }
        for route in field.at("routes").list()? {
            result.routes.push(Route::from_field(&route.as_object()?)?);
        }
        for key in ["ip4", "ip6"] {
            let ip = field.object(key)?;
            if ip.is_null() {
                continue;
            }
            let (address, gateway) = address_and_gateway(&ip, "ip")?;
            result.ips.push(IpConfig { interface: None, address, gateway });
            for route in ip.at("routes").list()? {
                result.routes.push(Route::from_field(&route.as_object()?)?);
            }
        }
        Ok(result)
    }
}

fn address_and_gateway(ip: &Field<'_>, key: &str) -> Result<(IpNetwork, Option<IpAddr>), CniError> {
    let address = ip.at(key);
    let network = address.parsed(CIDR, parse_cidr)?.ok_or_else(|| address.invalid(CIDR))?;
    Ok((network, ip.at("gateway").parsed(ADDRESS, parse_address)?))
}

impl Interface {
    fn is_in_pod(&self, ifname: &str) -> bool {
        self.name == ifname && !self.sandbox.is_empty()
    }

    fn from_field(field: &Field<'_>) -> Result<Self, CniError> {
        let text = |key| Ok::<_, CniError>(field.at(key).text()?.unwrap_or_default().to_owned());
        Ok(Self {
            name: text("name")?,
            mac: text("mac")?,
            sandbox: text("sandbox")?,
            mtu: field.at("mtu").positive()?,
            socket_path: text("socketPath")?,
            pci_id: text("pciID")?,
        })
    }

    fn document(&self, attributes: bool) -> document::Interface<'_> {
        document::Interface {
            name: &self.name,
            mac: &self.mac,
            mtu: self.mtu.filter(|_| attributes),
            sandbox: &self.sandbox,
            socket_path: if attributes { &self.socket_path } else { "" },
            pci_id: if attributes { &self.pci_id } else { "" },
        }
    }
}

impl Route {
    /// A route to `dst` and nothing else said.
    pub fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    pub(crate) fn from_field(field: &Field<'_>) -> Result<Self, CniError> {
        let dst = field.at("dst");
        let table = field.at("table").number(0..=u32::MAX.into())?;
        let scope = field.at("scope").number(0..=u8::MAX.into())?;
        Ok(Self {
            dst: dst.parsed(CIDR, parse_cidr)?.ok_or_else(|| dst.invalid(CIDR))?,
            gw: field.at("gw").parsed(ADDRESS, parse_address)?,
            mtu: field.at("mtu").positive()?,
            advmss: field.at("advmss").positive()?,
            priority: field.at("priority").positive()?,
            table: table.and_then(|table| u32::try_from(table).ok()),
            scope: scope.and_then(|scope| u8::try_from(scope).ok()),
        })
    }

    fn document(&self, attributes: bool) -> document::Route {
        document::Route {
            dst: self.dst,
            gw: self.gw,
            mtu: self.mtu.filter(|_| attributes),
            advmss: self.advmss.filter(|_| attributes),
            priority: self.priority.filter(|_| attributes),
            table: self.table.filter(|_| attributes),
            scope: self.scope.filter(|_| attributes),
        }
    }
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn from_field(field: &Field<'_>) -> Result<Self, CniError> {
        Ok(Self {
            nameservers: field.at("nameservers").texts()?,
            domain: field.at("domain").text()?.unwrap_or_default().to_owned(),
            search: field.at("search").texts()?,
            options: field.at("options").texts()?,
        })
    }

    /// Before 1.0.0 the key is always there, as the reference plugins write it.
    fn document(&self, version: CniVersion) -> Option<document::Dns<'_>> {
        if self.is_empty() && version >= CniVersion::V1_0_0 {
            return None;
        }
        Some(document::Dns {
            nameservers: &self.nameservers,
            domain: &self.domain,
            search: &self.search,
            options: &self.options,
        })
    }
}

/// The documents, key by key in the order that the reference plugins print.
mod document {
    use std::net::IpAddr;

    use ipnetwork::IpNetwork;
    use serde::Serialize;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Result<'a> {
        pub(super) cni_version: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub(super) interfaces: Vec<Interface<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub(super) ips: Vec<Ip>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub(super) routes: Vec<Route>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) dns: Option<Dns<'a>>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Interface<'a> {
        pub(super) name: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) mac: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) mtu: Option<u32>,
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) sandbox: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) socket_path: &'a str,
        #[serde(rename = "pciID", skip_serializing_if = "str::is_empty")]
        pub(super) pci_id: &'a str,
    }

    #[derive(Serialize)]
    pub(super) struct Ip {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) version: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) interface: Option<u32>,
        pub(super) address: IpNetwork,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) gateway: Option<IpAddr>,
    }

    #[derive(Serialize)]
    pub(super) struct Route {
        pub(super) dst: IpNetwork,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) gw: Option<IpAddr>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) mtu: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) advmss: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) priority: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) table: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) scope: Option<u8>,
    }

    #[derive(Serialize)]
    pub(super) struct Dns<'a> {
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pub(super) nameservers: &'a [String],
        #[serde(skip_serializing_if = "str::is_empty")]
        pub(super) domain: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pub(super) search: &'a [String],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pub(super) options: &'a [String],
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct SingleAddress<'a> {
        pub(super) cni_version: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) ip4: Option<SingleIp>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) ip6: Option<SingleIp>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) dns: Option<Dns<'a>>,
    }

    #[derive(Serialize)]
    pub(super) struct SingleIp {
        pub(super) ip: IpNetwork,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) gateway: Option<IpAddr>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub(super) routes: Vec<Route>,
    }
}

#[cfg(test)]
mod tests;
