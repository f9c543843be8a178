//! A network's configuration, from raw JSON to values that need no further check. PURE.

mod chained;
mod ipam;
mod network;
mod ports;
mod resolv_conf;
mod routes;
mod traffic;
mod tuning;
mod vlan;

use std::path::PathBuf;

use podwire_attach::plan::{Vlan, VlanMembership};
use podwire_kernel::MacAddr;

use crate::protocol::json::Field;
use crate::protocol::{CniError, CniResult, Dns, Environment, Verb, check_ifname, code, parse_folded};

pub use chained::check_chained;
pub use ipam::{InProcess, Ipam, IpamConfig};
pub use network::Network;
pub use resolv_conf::parse_resolv_conf;
pub use traffic::{MasqueradeConfig, TrafficConfig};
pub use tuning::{AllowList, Sysctl, TuningConfig, TuningSettings};
pub use vlan::refuse as refuse_vlan;

/// Everything that the configuration on standard input says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Version, name and type.
    pub network: Network,
    /// The bridge and how containers are connected to it.
    pub bridge: BridgeConfig,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// What the node does to the pod's traffic.
    pub traffic: TrafficConfig,
    /// Settings of the pod's interface and network namespace.
    pub tuning: TuningSettings,
    /// `dns`; where it is given, it replaces what IPAM says, even by an empty list.
    pub dns: Option<Dns>,
    /// `runtimeConfig.dns`: what the runtime writes into the container's resolv.conf by itself. The reference
    /// plugin does not put it into its result.
    pub runtime_dns: Option<Dns>,
    /// The MAC address asked for: runtimeConfig.mac before args.cni.mac before CNI_ARGS before `mac`.
    pub mac: Option<MacAddr>,
    /// `prevResult`.
    pub prev_result: Option<CniResult>,
    /// `cni.dev/valid-attachments`.
    pub valid_attachments: ValidAttachments,
    /// `stateDir`: where the store is, /var/lib/podwire unless said otherwise.
    pub state_dir: PathBuf,
    /// `runDir`: where the agent's socket is, /run/podwire unless said otherwise.
    pub run_dir: PathBuf,
    /// Those of the document's keys that make no sense behind another plugin. See [`check_chained`].
    pub main_keys: Vec<&'static str>,
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
    /// `vlan`, `vlanTrunk`, `preserveDefaultVlan`: the VLANs of the pod's port. Kernels without bridge VLAN filtering
    /// cannot have any.
    pub vlan: Option<Vlan>,
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
            vlan: None,
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

/// What the loopback plugin's configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopbackConfig {
    /// Version, name and type.
    pub network: Network,
    /// `prevResult`, which is passed on.
    pub prev_result: Option<CniResult>,
}

impl LoopbackConfig {
    /// Reads the configuration of any verb but VERSION.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse(stdin: &[u8], verb: Verb) -> Result<Self, CniError> {
        let value = parse_folded(stdin)?;
        let root = Field::root(&value);
        let network = Network::from_field(&root, verb)?;
        let prev_result = match verb {
            Verb::Add => read_prev_result(&root)?,
            _ => None,
        };
        Ok(Self { network, prev_result })
    }
}

/// Where the store is, unless `stateDir` says otherwise.
const STATE_DIR: &str = "/var/lib/podwire";
/// Where the agent's socket is, unless `runDir` says otherwise.
const RUN_DIR: &str = "/run/podwire";
/// MTUs in bytes that Linux takes for a bridge and a veth (ETH_MIN_MTU, ETH_MAX_MTU).
const MTU: std::ops::RangeInclusive<u64> = 68..=65535;
/// The smallest MTU of a link with IPv6 (RFC 8200, section 5); below, the kernel takes its IPv6 away.
const MIN_IPV6_MTU: u32 = 1280;

impl Config {
    /// Reads the configuration of any verb but VERSION. DEL and GC pass over what is wrong as long as it does
    /// not concern them: see [`Config::ignored`].
    ///
    /// # Errors
    /// Code 6 for what is not JSON, 1 for versions, 2 for what is not supported (yet), 7 for what is wrong; each
    /// names key and value.
    pub fn parse(stdin: &[u8], environment: &Environment) -> Result<Self, CniError> {
        let value = parse_folded(stdin)?;
        let root = Field::root(&value);
        let network = Network::from_field(&root, environment.verb)?;
        let mut reader = Reader { lenient: environment.verb.is_removal(), ignored: Vec::new() };
        let runtime = reader.take(root.object("runtimeConfig"))?;
        let args = reader.take(root.object("args").and_then(|args| args.object("cni")))?;

        let ipam = ipam::read(&root, &args, &runtime, environment, &network, &mut reader)?;
        let bridge = BridgeConfig::read(&root, &ipam, environment.verb, &mut reader)?;
        let traffic = TrafficConfig::read(&root, &runtime, environment.verb)?;
        let tuning = TuningSettings::read(&root, &args, environment)?;
        let prev_result = reader.take(read_prev_result(&root))?;
        // Of the other verbs none can tell whether there will be addresses.
        let no_addresses = environment.verb == Verb::Add && ipam == Ipam::None && prev_result.is_none();
        if no_addresses && network.version.is_single_address() {
            return Err(wrong(format!(
                "CNI version {} has no result without an IP address: ipam is needed",
                network.version
            )));
        }
        if no_addresses && traffic.address_check {
            return Err(wrong(
                "addressCheck needs ipam: without it podwire does not know the pod's addresses",
            ));
        }
        let valid_attachments = match environment.verb {
            // Whatever is not in this list is removed: a list that is not understood is an error.
            Verb::Gc => ValidAttachments::read(&root)?,
            _ => ValidAttachments::Absent,
        };
        Ok(Self {
            bridge,
            ipam,
            dns: reader.take(read_dns(&root))?,
            runtime_dns: reader.take(read_runtime_dns(&runtime))?,
            mac: reader.take(read_mac(environment, &args, &runtime))?.or(tuning.mac),
            prev_result,
            valid_attachments,
            // A wrong guess here would look for the leases in another store.
            state_dir: directory(&root.at("stateDir"))?.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            run_dir: directory(&root.at("runDir"))?.unwrap_or_else(|| PathBuf::from(RUN_DIR)),
            traffic,
            tuning,
            main_keys: chained::main_keys(&root),
            network,
            stdin: stdin.to_vec(),
            ignored: reader.ignored,
        })
    }
}

/// Decides whether a wrong value ends the call.
struct Reader {
    /// For DEL and GC a wrong value counts as absent.
    lenient: bool,
    ignored: Vec<String>,
}

impl Reader {
    fn take<T: Default>(&mut self, read: Result<T, CniError>) -> Result<T, CniError> {
        match read {
            Err(error) if self.lenient => {
                self.ignored.push(error.to_string());
                Ok(T::default())
            }
            other => other,
        }
    }

    fn refuse(&mut self, error: CniError) -> Result<(), CniError> {
        self.take(Err(error))
    }
}

impl BridgeConfig {
    fn read(root: &Field<'_>, ipam: &Ipam, verb: Verb, reader: &mut Reader) -> Result<Self, CniError> {
        let mut switch = |key| reader.take(root.at(key).switch());
        let is_default_gateway = switch("isDefaultGateway")?;
        let config = Self {
            is_gateway: switch("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: switch("forceAddress")?,
            hairpin_mode: switch("hairpinMode")?,
            promisc_mode: switch("promiscMode")?,
            port_isolation: switch("portIsolation")?,
            enable_dad: switch("enabledad")?,
            disable_container_interface: switch("disableContainerInterface")?,
            mtu: reader.take(read_bridge_mtu(&root.at("mtu"), ipam))?,
            name: reader.take(read_bridge(&root.at("bridge")))?.unwrap_or_else(|| Self::default().name),
            // What takes an interface away needs to know nothing of its VLANs.
            vlan: if verb.is_removal() { None } else { vlan::read(root)? },
        };
        if config.hairpin_mode && config.promisc_mode {
            // A promiscuous bridge receives a hairpinned frame twice.
            reader.refuse(wrong("hairpinMode and promiscMode cannot both be true"))?;
        }
        let is_access = |vlan: &Vlan| matches!(vlan.membership, VlanMembership::Access(_));
        if config.is_gateway && config.vlan.as_ref().is_some_and(is_access) {
            let instead =
                "isGateway makes the bridge a gateway in its default VLAN alone; leave one of them out";
            return Err(root.at("vlan").unsupported(instead));
        }
        if config.disable_container_interface && *ipam != Ipam::None {
            reader.refuse(wrong(
                "disableContainerInterface is for L2 attachments: it cannot be used with ipam",
            ))?;
        }
        Ok(config)
    }
}

fn wrong(message: impl Into<String>) -> CniError {
    CniError::new(code::INVALID_NETWORK_CONFIG, message)
}

fn read_mtu(field: &Field<'_>) -> Result<Option<u32>, CniError> {
    let mtu = field.positive()?;
    if mtu.is_some_and(|mtu| !MTU.contains(&mtu.into())) {
        return Err(field.invalid(&format!("0 for automatic, or {} to {} bytes", MTU.start(), MTU.end())));
    }
    Ok(mtu)
}

fn read_bridge_mtu(field: &Field<'_>, ipam: &Ipam) -> Result<Option<u32>, CniError> {
    let mtu = read_mtu(field)?;
    if mtu.is_some_and(|mtu| mtu < MIN_IPV6_MTU) && ipam.has_ipv6_range() {
        return Err(field.invalid(&format!("at least {MIN_IPV6_MTU} bytes, since ipam has an IPv6 range")));
    }
    Ok(mtu)
}

fn read_bridge(field: &Field<'_>) -> Result<Option<String>, CniError> {
    let Some(name) = field.text()? else { return Ok(None) };
    check_ifname(name).map_err(|why| field.invalid(&format!("an interface's name: {why}")))?;
    Ok(Some(name.to_owned()))
}

/// `dns`, where it says anything, if only an empty list.
fn read_dns(root: &Field<'_>) -> Result<Option<Dns>, CniError> {
    let field = root.object("dns")?;
    let dns = Dns::from_field(&field)?;
    let lists = ["nameservers", "search", "options"].iter().any(|key| !field.at(key).is_null());
    Ok((lists || !dns.domain.is_empty()).then_some(dns))
}

/// The dns capability has keys of its own.
fn read_runtime_dns(runtime: &Field<'_>) -> Result<Option<Dns>, CniError> {
    let field = runtime.object("dns")?;
    if field.is_null() {
        return Ok(None);
    }
    Ok(Some(Dns {
        nameservers: field.at("servers").texts()?,
        domain: String::new(),
        search: field.at("searches").texts()?,
        options: field.at("options").texts()?,
    }))
}

fn read_mac(
    environment: &Environment,
    args: &Field<'_>,
    runtime: &Field<'_>,
) -> Result<Option<MacAddr>, CniError> {
    // Both are read, so that a wrong one is an error even where the other wins.
    let (args, runtime) = (unicast(&args.at("mac"))?, unicast(&runtime.at("mac"))?);
    Ok(runtime.or(args).or(environment.args.mac))
}

fn unicast(field: &Field<'_>) -> Result<Option<MacAddr>, CniError> {
    let parse = |text: &str| text.parse().ok().filter(|mac: &MacAddr| mac.is_unicast());
    field.parsed("a unicast MAC address such as 02:00:5e:10:00:01", parse)
}

fn read_prev_result(root: &Field<'_>) -> Result<Option<CniResult>, CniError> {
    let field = root.object("prevResult")?;
    if field.is_null() {
        return Ok(None);
    }
    CniResult::from_field(&field).map(Some)
}

impl ValidAttachments {
    fn read(root: &Field<'_>) -> Result<Self, CniError> {
        let key = "cni.dev/valid-attachments";
        if !root.has(key) {
            return Ok(Self::Absent);
        }
        let attachment = |field: Field<'_>| {
            let text = |key| {
                let field = field.at(key);
                field.text()?.map(str::to_owned).ok_or_else(|| field.invalid("a text that is not empty"))
            };
            Ok(ValidAttachment { container: text("containerID")?, ifname: text("ifname")? })
        };
        let list = root.at(key).list()?.into_iter().map(attachment).collect::<Result<_, CniError>>()?;
        Ok(Self::Only(list))
    }
}

fn directory(field: &Field<'_>) -> Result<Option<PathBuf>, CniError> {
    field.parsed("an absolute path", |text| text.starts_with('/').then(|| PathBuf::from(text)))
}

#[cfg(test)]
mod tests;
