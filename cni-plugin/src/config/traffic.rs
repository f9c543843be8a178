//! What the node does to a pod's traffic: the keys of the reference portmap, bandwidth and firewall plugins, and the
//! bridge plugin's masquerade and spoof check.

use ipnetwork::IpNetwork;
use podwire_attach::rules::parse_conditions;
use podwire_attach::{IngressPolicy, Masquerade, PortAccess, PortMapping, RateLimit, Shaping, Snat};
use podwire_kernel::Family;

use super::{ports, wrong};
use crate::protocol::address::{CIDR, parse_cidr};
use crate::protocol::json::Field;
use crate::protocol::{CniError, Verb};

/// What a network's configuration and the runtime ask of the node for one pod. DEL and GC have nothing of it: what
/// they remove stands in the leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficConfig {
    /// `ipMasq`.
    pub masquerade: Option<MasqueradeConfig>,
    /// `runtimeConfig.portMappings`, in its order; no two of them are ambiguous. See [`TrafficConfig::ports_for`].
    pub ports: Vec<PortMapping>,
    /// `snat`, `masqAll`, `conditionsV4`, `conditionsV6`.
    pub port_access: PortAccess,
    /// `runtimeConfig.bandwidth`, or the same keys in the configuration itself.
    pub shaping: Shaping,
    /// `ingressPolicy`.
    pub ingress: IngressPolicy,
    /// `macspoofchk`, or implied by `addressCheck`: the pod sends from its own MAC address alone.
    pub mac_check: bool,
    /// `addressCheck`: and from its own IP addresses alone.
    pub address_check: bool,
}

/// `ipMasq` and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// `masqueradeRandom`, on unless said otherwise.
    pub fully_random: bool,
    /// `clusterRanges`: where else pods are.
    pub cluster_ranges: Vec<IpNetwork>,
}

/// What runtimes send for a burst that nobody asked for (containerd: `math.MaxUint32`), in bits.
const NO_BURST: u64 = u32::MAX as u64;
/// The reference's bound: bursts are below 4 GiB.
const MAX_BURST: u64 = u32::MAX as u64 * 8 - 1;

/// How many characters of an error about conditions are told.
const QUOTED: usize = 400;

impl TrafficConfig {
    pub(super) fn read(root: &Field<'_>, runtime: &Field<'_>, verb: Verb) -> Result<Self, CniError> {
        if verb.is_removal() {
            return Ok(Self::default());
        }
        let address_check = root.at("addressCheck").switch()?;
        let mac_check = root.at("macspoofchk").switch()?;
        Ok(Self {
            masquerade: MasqueradeConfig::read(root)?,
            ports: ports::read(&runtime.at("portMappings"))?,
            port_access: read_port_access(root)?,
            shaping: read_shaping(root, runtime)?,
            ingress: read_ingress(&root.at("ingressPolicy"))?,
            mac_check: mac_check || address_check,
            address_check,
        })
    }

    /// The masquerade of a pod in these subnets; `agent` is where the agent says that pods are.
    pub fn masquerade_for(&self, subnets: &[IpNetwork], agent: &[IpNetwork]) -> Option<Masquerade> {
        let MasqueradeConfig { fully_random, cluster_ranges } = self.masquerade.as_ref()?;
        let inside = subnets.iter().chain(agent).chain(cluster_ranges).copied();
        Some(Masquerade::outside(inside, *fully_random))
    }

    /// The ports that a pod with these addresses has. A mapping on an address of a family that it lacks is left out,
    /// as the reference does it, and one on any address is on any of the families that it has.
    pub fn ports_for(&self, addresses: impl IntoIterator<Item = IpNetwork>) -> Vec<PortMapping> {
        ports::of_families(&self.ports, addresses)
    }
}

impl MasqueradeConfig {
    fn read(root: &Field<'_>) -> Result<Option<Self>, CniError> {
        read_backend(&root.at("ipMasqBackend"))?;
        let config = Self {
            fully_random: root.at("masqueradeRandom").choice()?.unwrap_or(true),
            cluster_ranges: root
                .at("clusterRanges")
                .list()?
                .iter()
                .map(read_range)
                .collect::<Result<_, _>>()?,
        };
        Ok(root.at("ipMasq").switch()?.then_some(config))
    }
}

fn read_range(field: &Field<'_>) -> Result<IpNetwork, CniError> {
    let range = field.parsed(CIDR, parse_cidr)?.ok_or_else(|| field.invalid(CIDR))?;
    if range.ip() != range.network() {
        let network = format!("{}/{}", range.network(), range.prefix());
        return Err(field.invalid(&format!("a network: did you mean {network}?")));
    }
    Ok(range)
}

/// The reference plugins write their rules through either; ours are nftables' own whatever is said here.
fn read_backend(field: &Field<'_>) -> Result<(), CniError> {
    match field.text()? {
        None | Some("iptables" | "nftables") => Ok(()),
        Some("firewalld") => {
            Err(field.unsupported("podwire's rules do not pass through firewalld; leave it out"))
        }
        Some(_) => Err(field.invalid("iptables or nftables")),
    }
}

fn read_port_access(root: &Field<'_>) -> Result<PortAccess, CniError> {
    read_backend(&root.at("backend"))?;
    let (bit, chain) = (root.at("markMasqBit"), root.at("externalSetMarkChain"));
    // podwire sets no mark: both are read for the sake of configurations that have them.
    bit.number(0..=31)?;
    chain.text()?;
    if !bit.is_null() && !chain.is_null() {
        return Err(wrong("markMasqBit and externalSetMarkChain cannot both be set"));
    }
    let snat = match (root.at("snat").choice()?.unwrap_or(true), root.at("masqAll").switch()?) {
        (false, _) => Snat::Off,
        (true, false) => Snat::Needed,
        (true, true) => Snat::All,
    };
    Ok(PortAccess {
        snat,
        conditions_v4: read_conditions(&root.at("conditionsV4"), Family::V4)?,
        conditions_v6: read_conditions(&root.at("conditionsV6"), Family::V6)?,
    })
}

/// Checked here and kept as they are written: rules and leases have them in words.
fn read_conditions(field: &Field<'_>, family: Family) -> Result<Vec<String>, CniError> {
    let condition = |field: &Field<'_>| {
        let text =
            field.text()?.ok_or_else(|| field.invalid("words of nft, such as \"ip saddr 192.0.2.0/24\""))?;
        Ok(text.to_owned())
    };
    let conditions: Vec<String> = field.list()?.iter().map(condition).collect::<Result<_, CniError>>()?;
    match parse_conditions(family, &conditions) {
        Ok(_) => Ok(conditions),
        // A word may be as long as the document.
        Err(error) => Err(wrong(format!("invalid {error}").chars().take(QUOTED).collect::<String>())),
    }
}

/// The configuration's own keys beat the runtime's, all four of them together, as the reference has it.
fn read_shaping(root: &Field<'_>, runtime: &Field<'_>) -> Result<Shaping, CniError> {
    let keys =
        ["ingressRate", "ingressBurst", "egressRate", "egressBurst", "shapedSubnets", "unshapedSubnets"];
    let of_runtime = runtime.object("bandwidth")?;
    let own = keys.iter().any(|key| !root.at(key).is_null());
    let limits = |field: &Field<'_>| {
        for key in ["shapedSubnets", "unshapedSubnets"] {
            let subnets = field.at(key);
            if !subnets.list()?.is_empty() {
                return Err(subnets.unsupported("podwire shapes all of a pod's traffic; leave it out"));
            }
        }
        Ok(Shaping {
            to_pod: read_limit(&field.at("ingressRate"), &field.at("ingressBurst"))?,
            from_pod: read_limit(&field.at("egressRate"), &field.at("egressBurst"))?,
        })
    };
    // Both are read, so that a wrong one is an error even where the other wins.
    let (of_runtime, of_network) = (limits(&of_runtime)?, limits(root)?);
    Ok(if own { of_network } else { of_runtime })
}

fn read_limit(rate: &Field<'_>, burst: &Field<'_>) -> Result<Option<RateLimit>, CniError> {
    let bits_per_second = rate.number(0..=u64::MAX)?.filter(|bits| *bits != 0);
    let bits = burst.number(0..=MAX_BURST)?.filter(|bits| *bits != 0);
    match (bits_per_second, bits) {
        (None, None) => Ok(None),
        (Some(1..=7), _) => Err(rate.invalid("0 for no limit, or at least 8 bits per second")),
        (Some(_), None) => Err(burst.invalid(&format!("bits, since {} is set", rate.path()))),
        (None, Some(_)) => Err(rate.invalid(&format!("bits per second, since {} is set", burst.path()))),
        (Some(rate), Some(burst)) => {
            Ok(Some(RateLimit { rate, burst: Some(burst).filter(|bits| *bits != NO_BURST) }))
        }
    }
}

fn read_ingress(field: &Field<'_>) -> Result<IngressPolicy, CniError> {
    match field.text()? {
        None | Some("open") => Ok(IngressPolicy::Open),
        Some("same-bridge") => Ok(IngressPolicy::SameBridge),
        Some("isolated") => Ok(IngressPolicy::Isolated),
        Some(_) => Err(field.invalid("open, same-bridge or isolated")),
    }
}
