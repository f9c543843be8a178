//! What the kernel of this node should have so that its pods reach those of other nodes. PURE.
//!
//! A packet for a peer's pod finds the route to the peer's subnet. Through the tunnel that is `via` the first address
//! of that subnet, the peer's VTEP, on a VXLAN device; a permanent neighbour says which Ethernet address the VTEP has,
//! a forwarding entry of the device says which machine that is at. Directly it is `via` the machine itself.
//! Nothing is learned, asked for or flooded.
//!
//! ```text
//! 10.244.2.0/24 via 10.244.2.0 dev podwire.1 onlink ── neighbour 10.244.2.0 is 02:…:02 ── FDB 02:…:02 is at 192.0.2.2
//! ```
//!
//! **Families.** One tunnel carries pods' packets of both families, over the first family of the underlay that both nodes
//! have. Flannel's nodes have a tunnel for each, IPv4 in IPv4 and IPv6 in IPv6, and so have the ways to them
//! ([`NodeRecord::same_family`](crate::cluster::NodeRecord::same_family)); what they send arrives on the device of that
//! family, which this node has in any case.
//!
//! **Encapsulations.** A device receives and sends one segment (VNI, port) over one family of the underlay. A node has
//! a device for each address family of [`ClusterConfig::underlay`] that it has an address of, and for each
//! encapsulation that it receives, whether or not a route uses it at the moment, direct routing or not: so whatever changes
//! first (another order of families, a peer that has but the second one, another mode), the other side's packets find it there.
//! It receives what the cluster is configured for; what it received before it goes on to receive while a peer
//! still sends it, or does not receive the new. It sends to each peer the best that this peer receives. That is
//! decided peer by peer, so that a node that is gone for good does not hold up a change for all others.

mod device;
mod path;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;

pub use device::{Device, DeviceId, MARK, Naming};
pub use path::{Direct, FdbItem, Hop, NeighbourItem, Path, PeerRoute, Tunnel, Tunnels, Via};

use crate::cluster::topology::{Problem, ProblemKind, Topology, vtep_mac};
use crate::cluster::{ClusterConfig, DirectRouting, Encapsulation, IpFamily, Vtep};
use crate::store::Announcement;

/// The smallest MTU that anything gets, in bytes: what IPv6 asks of each link. Below it the kernel takes IPv6 away
/// from a link, so one wrong record or one odd link must not lead there.
pub const SMALLEST_MTU: u32 = 1280;

/// What this node reaches others by, as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlayFacts {
    /// One link for each address family at most; both may be of one link. Empty while there is none, which changes
    /// nothing that is there already: an address that is away for a moment must not cost thousands of routes.
    pub links: Vec<UnderlayLink>,
}

/// A link to other nodes, for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayLink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// This node's address, by which others reach it.
    pub address: IpAddr,
    /// The networks that are on the link, of that family: those of its addresses.
    pub networks: Vec<IpNetwork>,
}

impl UnderlayFacts {
    /// The link of a family.
    pub fn link(&self, family: Family) -> Option<&UnderlayLink> {
        self.links.iter().find(|link| Family::of(link.address) == family)
    }
}

/// What is particular to this node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local<'a> {
    /// The name of the bridge that pods share, if its addresses are to be kept.
    pub bridge: Option<&'a str>,
    /// Our devices that the kernel has: what was received before.
    pub held: &'a [DeviceId],
    /// How our devices are called.
    pub naming: &'a Naming,
    /// Subnets that were this node's, in which pods of it still have addresses.
    pub former: &'a [IpNetwork],
}

/// What the kernel should have, and what others are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The devices, the best encapsulation first.
    pub devices: Vec<Device>,
    /// How they are called.
    pub naming: Naming,
    /// Devices that are left alone with all they have, because this node has no address of their family at the moment.
    pub retained: Vec<DeviceId>,
    /// The addresses of every device: this node's VTEP, for each family of the pods.
    pub addresses: Vec<IpNetwork>,
    /// The way to each peer, by the peers' names.
    pub paths: Vec<Path>,
    /// Settings of our devices, by name below /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    /// Families in which the node passes on packets.
    pub forwarding: Vec<Family>,
    /// UDP ports on which encapsulated packets arrive: from peers alone, and without connection tracking.
    pub ports: BTreeSet<u16>,
    /// The bridge of the pods.
    pub bridge: Option<Bridge>,
    /// Where pods of the cluster are.
    pub cluster_ranges: Vec<IpNetwork>,
    /// What others are to be told once the kernel is so.
    pub announcement: Announcement,
    /// What the plugin is to be told.
    pub pods: PodSettings,
    /// What stands in the way.
    pub problems: Vec<Problem>,
}

/// The pods' bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The pods' gateways, with their subnets' prefix lengths.
    pub addresses: Vec<IpNetwork>,
}

/// What pods of this node are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// Their subnets.
    pub subnets: Vec<IpNetwork>,
    /// Their gateways: the first address behind each subnet's own.
    pub gateways: Vec<IpAddr>,
    /// The MTU of their interfaces, in bytes; `None` while it is not known.
    pub mtu: Option<u32>,
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::Ipv4 => Self::V4,
            IpFamily::Ipv6 => Self::V6,
        }
    }
}

/// A network of the one address.
fn single(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// The address behind the network's own.
fn gateway(subnet: IpNetwork) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) | 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) | 1).into()),
    }
}

impl Desired {
    /// What follows from the cluster and this node's own links.
    pub fn new(topology: &Topology, underlay: &UnderlayFacts, local: &Local<'_>) -> Self {
        let config = topology.config();
        let subnets = &topology.membership().subnets;
        let mut problems = Vec::new();
        let encapsulations = received(topology, local.held);
        let families = usable(config, underlay, &mut problems);
        let devices = devices(topology, underlay, &families, &encapsulations, local.naming);
        let retained = local
            .held
            .iter()
            .filter(|held| {
                encapsulations.contains(&held.encapsulation)
                    && config.underlay.iter().any(|family| Family::from(*family) == held.family)
                    && !families.contains(&held.family)
            })
            .copied()
            .collect();
        let ways = path::Ways::new(config, underlay, &families, &encapsulations, &devices);
        let paths: Vec<_> = topology.peers().iter().map(|peer| ways.path(peer, &mut problems)).collect();
        let ranges: Vec<_> = config.ranges.iter().map(|range| range.range).collect();
        let forwarding = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| ranges.iter().any(|range| Family::of(range.network()) == *family))
            .collect();
        let addresses: Vec<_> = subnets.iter().map(|subnet| single(subnet.network())).collect();
        problems.sort();
        Self {
            retained,
            sysctls: sysctls(&devices, &addresses),
            addresses,
            forwarding,
            ports: encapsulations.iter().map(|encapsulation| encapsulation.port).collect(),
            bridge: local
                .bridge
                .map(|name| Bridge { name: name.to_owned(), addresses: gateways(topology, local.former) }),
            announcement: announcement(topology, underlay, &families, &encapsulations, &devices, &paths),
            pods: PodSettings {
                subnets: subnets.clone(),
                gateways: subnets.iter().map(|subnet| gateway(*subnet)).collect(),
                mtu: pod_mtu(config, underlay, &devices, &paths),
            },
            cluster_ranges: ranges,
            naming: local.naming.clone(),
            devices,
            paths,
            problems,
        }
    }

    /// Why this node cannot be reached by any other: it has no usable address. `None` if it can.
    pub fn stranded(&self) -> Option<String> {
        let is_stranded = self.announcement.addresses.is_empty();
        let why = self.problems.iter().filter(|problem| problem.kind == ProblemKind::Underlay);
        is_stranded.then(|| why.map(|problem| problem.text.clone()).collect::<Vec<_>>().join("; "))
    }

    /// The addresses that encapsulated packets may come from.
    pub fn senders(&self) -> BTreeSet<IpAddr> {
        self.paths.iter().flat_map(|path| path.peer.record.addresses.iter().copied()).collect()
    }

    /// The way to the peer of that name.
    pub fn path(&self, name: &str) -> Option<&Path> {
        let place = self.paths.binary_search_by(|path| path.peer.name().cmp(name)).ok()?;
        self.paths.get(place)
    }
}

/// The bridge's addresses. Pods of earlier subnets keep their gateways: without them they would reach nobody, this node's own
/// health checks included. Where another node has the subnet by now, the way to its pods goes before that.
fn gateways(topology: &Topology, former: &[IpNetwork]) -> Vec<IpNetwork> {
    let own = &topology.membership().subnets;
    let overlaps =
        |one: IpNetwork, other: IpNetwork| one.contains(other.network()) || other.contains(one.network());
    let is_free = |former: &&IpNetwork| {
        let of_peers =
            topology.peers().iter().flat_map(|peer| peer.subnets.iter().map(|subnet| subnet.network));
        !of_peers.chain(own.iter().copied()).any(|taken| overlaps(taken, **former))
    };
    let is_ranges = |former: &&IpNetwork| {
        topology.config().ranges.iter().any(|range| range.range.contains(former.network()))
    };
    own.iter().chain(former.iter().filter(is_ranges).filter(is_free)).filter_map(with_prefix).collect()
}

fn with_prefix(subnet: &IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(gateway(*subnet), subnet.prefix()).ok()
}

/// The encapsulations that this node receives, the best first.
fn received(topology: &Topology, held: &[DeviceId]) -> Vec<Encapsulation> {
    let config = topology.config();
    let mut received = Vec::new();
    let mut push = |encapsulation: Encapsulation| {
        if !received.contains(&encapsulation) {
            received.push(encapsulation);
        }
    };
    std::iter::once(&config.encapsulation).chain(&config.also_receive).for_each(|wanted| push(*wanted));
    let mut before: Vec<_> = held.iter().map(|device| device.encapsulation).collect();
    before.sort_unstable();
    before.dedup();
    before.retain(|old| *old != config.encapsulation && !config.also_receive.contains(old));
    // The common case costs no walk through thousands of peers.
    if !before.is_empty() {
        let all_receive_new = topology.peers().iter().all(|peer| peer.vtep(config.encapsulation).is_some());
        let is_sent =
            |old: &Encapsulation| topology.peers().iter().any(|peer| peer.record.sends == Some(*old));
        before.into_iter().filter(|old| !all_receive_new || is_sent(old)).for_each(push);
    }
    received
}

/// The families of the underlay that can be used, the best first.
fn usable(config: &ClusterConfig, underlay: &UnderlayFacts, problems: &mut Vec<Problem>) -> Vec<Family> {
    let mut families = Vec::new();
    let had = problems.len();
    for family in config.underlay.iter().map(|family| Family::from(*family)) {
        let Some(link) = underlay.link(family) else { continue };
        match config.ranges.iter().find(|range| range.range.contains(link.address)) {
            Some(range) => problems.push(Problem::here(
                ProblemKind::Underlay,
                format!(
                    "this node's address {} on {} lies within the pods' range {}: no other node can reach it there; \
                     choose another range or address",
                    link.address, link.name, range.range
                ),
            )),
            None => families.push(family),
        }
    }
    if families.is_empty() && problems.len() == had {
        let wanted: Vec<_> = config.underlay.iter().map(|family| Family::from(*family).to_string()).collect();
        problems.push(Problem::here(
            ProblemKind::Underlay,
            format!(
                "this node has no {} address that other nodes can reach it by: the link of the default route, or the \
                 one that overlay.interface names, has to be up and have one",
                wanted.join(" or ")
            ),
        ));
    }
    families
}

fn devices(
    topology: &Topology,
    underlay: &UnderlayFacts,
    families: &[Family],
    encapsulations: &[Encapsulation],
    naming: &Naming,
) -> Vec<Device> {
    let mut devices = Vec::new();
    for encapsulation in encapsulations {
        let usual = vtep_mac(&topology.config().name, topology.name(), encapsulation.vni);
        for link in families.iter().filter_map(|family| underlay.link(*family)) {
            let id = naming.id(Family::of(link.address), *encapsulation);
            let adopted = naming.mac(id);
            devices.push(Device {
                id,
                mac: adopted.unwrap_or(usual),
                mtu: id.mtu(link.mtu),
                local: link.address,
                is_adopted: adopted.is_some(),
            });
        }
    }
    devices
}

/// `rp_filter` 2: while routes change from one device to another, the two directions of a connection use different
/// ones, which the strict check would drop. The others let the VTEP have its IPv6 address, and keep a peer's packets from
/// configuring this node.
fn sysctls(devices: &[Device], addresses: &[IpNetwork]) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for name in devices.iter().map(|device| device.id.name()) {
        let mut set = |key: &str, value: &str| {
            sysctls.insert(format!("net/{}", key.replace("DEV", name)), value.to_owned())
        };
        if addresses.iter().any(IpNetwork::is_ipv4) {
            set("ipv4/conf/DEV/rp_filter", "2");
        }
        if addresses.iter().any(IpNetwork::is_ipv6) {
            set("ipv6/conf/DEV/disable_ipv6", "0");
            set("ipv6/conf/DEV/accept_ra", "0");
        }
    }
    sysctls
}

fn announcement(
    topology: &Topology,
    underlay: &UnderlayFacts,
    families: &[Family],
    encapsulations: &[Encapsulation],
    devices: &[Device],
    paths: &[Path],
) -> Announcement {
    let config = topology.config();
    let links = || families.iter().filter_map(|family| underlay.link(*family));
    let mac = |family: Family, encapsulation: &Encapsulation| {
        let mut ids = devices.iter();
        let device =
            ids.find(|device| (device.id.family, device.id.encapsulation) == (family, *encapsulation));
        device.map(|device| device.mac)
    };
    let vtep = |encapsulation: &Encapsulation| {
        let (over4, over6) = (mac(Family::V4, encapsulation), mac(Family::V6, encapsulation));
        let mac = over4.or(over6)?;
        Some(Vtep { encapsulation: *encapsulation, mac, mac6: over6.filter(|over6| *over6 != mac) })
    };
    let receives: Vec<_> = encapsulations.iter().filter_map(vtep).collect();
    // Others go on to receive what somebody sends: while one peer is sent something else, that is what is told.
    let other = paths
        .iter()
        .flat_map(Path::tunnels)
        .map(|tunnel| tunnel.device.encapsulation)
        .find(|sent| *sent != config.encapsulation);
    let sends = match config.direct_routing {
        DirectRouting::Always => None,
        DirectRouting::Never | DirectRouting::Auto => Some(other.unwrap_or(config.encapsulation)),
    };
    Announcement {
        addresses: links().map(|link| link.address).collect(),
        mtu: links().map(|link| link.mtu).min(),
        sends: sends.filter(|_| !receives.is_empty()),
        receives,
    }
}

/// That of the first family's device, and of any other family's that a peer is reached by.
fn pod_mtu(
    config: &ClusterConfig,
    underlay: &UnderlayFacts,
    devices: &[Device],
    paths: &[Path],
) -> Option<u32> {
    let direct = config.direct_routing == DirectRouting::Always;
    let used =
        |family: Family| paths.iter().flat_map(Path::tunnels).any(|tunnel| tunnel.device.family == family);
    let sending = devices.iter().filter(|device| device.id.encapsulation == config.encapsulation);
    let mtus =
        sending.enumerate().filter_map(|(i, device)| match (direct, i == 0 || used(device.id.family)) {
            (true, _) => underlay.link(device.id.family).map(|link| link.mtu.max(SMALLEST_MTU)),
            (false, true) => Some(device.mtu),
            (false, false) => None,
        });
    mtus.min()
}

#[cfg(test)]
mod tests;
