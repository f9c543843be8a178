//! The `ipam` section, and what the runtime asks for beside it.

use std::net::IpAddr;
use std::path::PathBuf;

use podwire_ipam::{DEFAULT_QUARANTINE_MS, LONGEST_QUARANTINE_MS, Range, RangeSet, RangeSpec, check_sets};

use super::network::Network;
use super::{Reader, routes};
use crate::protocol::address::{ADDRESS, parse_address, parse_cidr};
use crate::protocol::json::Field;
use crate::protocol::{CniError, Environment, Route, code};

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
    /// `podwire-ipam` without ranges: the agent says this node's ranges (see [`NodeConfig`](podwire_ipam::NodeConfig)).
    pub node_ranges: bool,
    /// `routes`.
    pub routes: Vec<Route>,
    /// Requested addresses: CNI_ARGS, then args.cni.ips, then runtimeConfig.ips.
    pub requested: Vec<IpAddr>,
    /// `resolvConf`: a file whose content becomes the result's name servers.
    pub resolv_conf: Option<PathBuf>,
    /// `dataDir`: where host-local kept its files, /var/lib/cni/networks unless said otherwise; imported once.
    pub data_dir: PathBuf,
    /// `quarantineSeconds` × 1000: how long a freed address rests while others are free, at most an hour;
    /// 60 s unless said otherwise.
    pub quarantine_ms: u64,
}

/// Where host-local keeps its files, unless `dataDir` says otherwise.
const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";
impl Ipam {
    /// Whether an IPv6 address will be given out, as far as the configuration says.
    pub(super) fn has_ipv6_range(&self) -> bool {
        matches!(self, Self::InProcess(config) if config.sets.iter().any(|set| !set.is_ipv4()))
    }
}

pub(super) fn read(
    root: &Field<'_>,
    args: &Field<'_>,
    runtime: &Field<'_>,
    environment: &Environment,
    network: &Network,
    reader: &mut Reader,
) -> Result<Ipam, CniError> {
    let field = reader.take(root.object("ipam"))?;
    let kind = field.at("type");
    let plugin = match reader.take(kind.text())? {
        None => return Ok(Ipam::None),
        Some("podwire-ipam") => InProcess::PodwireIpam,
        Some("host-local") => InProcess::HostLocal,
        Some(other) => {
            let delegated = reader.take(check_delegate(&kind, other, network).map(Some))?;
            return Ok(delegated.map_or(Ipam::None, |plugin| Ipam::Delegated { plugin }));
        }
    };
    let sets = reader.take(read_sets(&field, runtime))?;
    check_families(&sets, network)?;
    let node_ranges = sets.is_empty() && plugin == InProcess::PodwireIpam;
    if sets.is_empty() && !node_ranges {
        let message = "no IP ranges specified: host-local needs ipam.ranges or ipam.subnet";
        reader.refuse(CniError::new(code::INVALID_NETWORK_CONFIG, message))?;
    }
    let data_dir = reader.take(super::directory(&field.at("dataDir")))?;
    let quarantine = reader.take(field.at("quarantineSeconds").number(0..=LONGEST_QUARANTINE_MS / 1000))?;
    Ok(Ipam::InProcess(Box::new(IpamConfig {
        plugin,
        sets,
        node_ranges,
        routes: reader.take(routes::read(&field.at("routes")))?,
        requested: reader.take(read_requested(environment, args, runtime))?,
        resolv_conf: reader.take(field.at("resolvConf").text())?.map(PathBuf::from),
        data_dir: data_dir.unwrap_or_else(|| PathBuf::from(HOST_LOCAL_DIR)),
        quarantine_ms: quarantine.map_or(DEFAULT_QUARANTINE_MS, |seconds| seconds * 1000),
    })))
}

/// A plugin's name is looked up in CNI_PATH: it must not lead elsewhere, nor back to the caller.
fn check_delegate(field: &Field<'_>, name: &str, network: &Network) -> Result<String, CniError> {
    if name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
        return Err(field.invalid("the name of an IPAM plugin, not a path"));
    }
    // It would be called with the same configuration and call itself for ever.
    if name == network.plugin || matches!(name, "podwire" | "loopback") {
        return Err(field.invalid("an IPAM plugin such as podwire-ipam or host-local"));
    }
    Ok(name.to_owned())
}

/// The range sets in the order in which host-local takes them.
fn read_sets(field: &Field<'_>, runtime: &Field<'_>) -> Result<Vec<RangeSet>, CniError> {
    let mut sets = Vec::new();
    for set in runtime.at("ipRanges").list()? {
        sets.push(read_set(&set)?);
    }
    if !field.at("subnet").is_unset() {
        let range = read_range(field)?;
        sets.push(RangeSet::new(vec![range]).map_err(|error| wrong_range(field, &error))?);
    }
    for set in field.at("ranges").list()? {
        sets.push(read_set(&set)?);
    }
    check_sets(&sets).map_err(|error| CniError::from_cause(code::INVALID_NETWORK_CONFIG, &error))?;
    Ok(sets)
}

fn read_set(field: &Field<'_>) -> Result<RangeSet, CniError> {
    let ranges =
        field.list()?.iter().map(|range| read_range(&range.as_object()?)).collect::<Result<_, _>>()?;
    RangeSet::new(ranges).map_err(|error| wrong_range(field, &error))
}

fn read_range(field: &Field<'_>) -> Result<Range, CniError> {
    let subnet = field.at("subnet");
    let expected = "a subnet such as 10.1.0.0/24";
    let address = |key| field.at(key).parsed(ADDRESS, parse_address);
    let spec = RangeSpec {
        subnet: subnet.parsed(expected, parse_cidr)?.ok_or_else(|| subnet.invalid(expected))?,
        range_start: address("rangeStart")?,
        range_end: address("rangeEnd")?,
        gateway: address("gateway")?,
    };
    Range::new(spec).map_err(|error| wrong_range(field, &error))
}

fn wrong_range(field: &Field<'_>, error: &podwire_ipam::RangeError) -> CniError {
    CniError::from_cause(code::INVALID_NETWORK_CONFIG, error).context(&format!("invalid {}", field.path()))
}

/// Results before 0.3.0 have room for one address of each family. This is an error of DEL as well, as the
/// reference has it: no ADD can have succeeded.
fn check_families(sets: &[RangeSet], network: &Network) -> Result<(), CniError> {
    let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if !network.version.is_single_address() || (ipv4 <= 1 && sets.len() - ipv4 <= 1) {
        return Ok(());
    }
    let message = format!("CNI version {} does not support more than 1 address per family", network.version);
    Err(CniError::new(code::INVALID_NETWORK_CONFIG, message))
}

/// Every place that may ask for an address; each address once.
fn read_requested(
    environment: &Environment,
    args: &Field<'_>,
    runtime: &Field<'_>,
) -> Result<Vec<IpAddr>, CniError> {
    let mut requested: Vec<IpAddr> = environment.args.ip.into_iter().collect();
    for field in [args.at("ips"), runtime.at("ips")] {
        for field in field.list()? {
            let address = field.parsed(ADDRESS, parse_address)?.ok_or_else(|| field.invalid(ADDRESS))?;
            if !requested.contains(&address) {
                requested.push(address);
            }
        }
    }
    Ok(requested)
}
