//! The way to one peer: through the tunnel, or directly.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use podwire_kernel::route::{Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Family, MacAddr};

use super::{Device, DeviceId, SMALLEST_MTU, UnderlayFacts, UnderlayLink};
use crate::cluster::topology::{Peer, PeerSubnet, Problem, ProblemKind};
use crate::cluster::{ClusterConfig, DirectRouting, Encapsulation};

/// The way to a peer's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Through which tunnels.
    pub tunnels: Tunnels,
    /// How IPv4 packets get there without one.
    pub direct4: Option<Direct>,
    /// How IPv6 packets get there without one.
    pub direct6: Option<Direct>,
}

/// The tunnels that lead to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tunnels {
    /// One for packets of both families; `None` if none leads there.
    Shared(Option<Tunnel>),
    /// One for IPv4 packets and one for IPv6 ones: to a peer of flannel's kind
    /// ([`NodeRecord::same_family`](crate::cluster::NodeRecord::same_family)). Elsewhere, for there may be thousands of the
    /// other kind, and each change walks along them.
    ByFamily(Box<[Option<Tunnel>; 2]>),
}

/// A peer's end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// This node's end.
    pub device: DeviceId,
    /// The peer's inner Ethernet address.
    pub mac: MacAddr,
    /// The machine.
    pub remote: IpAddr,
    /// The MTU of routes through it in bytes, where the peer takes less than this node's device.
    pub mtu: Option<u32>,
}

/// A peer on a link of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direct {
    /// The link's index.
    pub link: u32,
    /// The peer's address on it.
    pub gateway: IpAddr,
    /// The MTU of routes to it in bytes, where the peer takes less than this node's link.
    pub mtu: Option<u32>,
}

/// How packets of one family get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Encapsulated.
    Tunnel(Tunnel),
    /// As they are.
    Direct(Direct),
    /// Not by us.
    None,
}

/// By which link. A device of ours may have yet to be made, and then has no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// A device of ours.
    Device(DeviceId),
    /// Any other link, by its index.
    Link(u32),
}

/// A permanent neighbour: a VTEP's address and its Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourItem {
    /// On which device.
    pub device: DeviceId,
    /// The VTEP's address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: MacAddr,
}

/// A forwarding entry: at which machine an Ethernet address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbItem {
    /// On which device.
    pub device: DeviceId,
    /// The Ethernet address.
    pub mac: MacAddr,
    /// The machine's address.
    pub remote: IpAddr,
}

/// The route to a peer's subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRoute {
    /// The subnet.
    pub destination: IpNetwork,
    /// By which link.
    pub via: Via,
    /// The next hop.
    pub gateway: IpAddr,
    /// Its metric.
    pub metric: u32,
    /// Its MTU in bytes, where it is less than the link's.
    pub mtu: Option<u32>,
}

impl PeerRoute {
    /// The kernel's route, by the link of that index.
    pub fn route(&self, ifindex: u32) -> Route {
        let nexthop = Nexthop { gateway: Some(self.gateway), oif: Some(ifindex) };
        Route {
            priority: Some(self.metric),
            mtu: self.mtu,
            protocol: ROUTE_PROTOCOL,
            onlink: matches!(self.via, Via::Device(_)),
            ..Route::new(self.destination, vec![nexthop])
        }
    }

    /// Whether the kernel's route, which is ours and has its destination and metric, is this one by the link of that
    /// index.
    pub fn is(&self, route: &Route, ifindex: u32) -> bool {
        let Route { nexthops, scope, mtu, advmss, onlink, source, kind, .. } = route;
        matches!(nexthops.as_slice(), [one] if one.gateway == Some(self.gateway) && one.oif == Some(ifindex))
            && *mtu == self.mtu
            && *onlink == matches!(self.via, Via::Device(_))
            && (*scope, *kind, *advmss, *source) == (0, 1, None, None)
    }
}

impl Path {
    /// How packets to the peer's pods of that family travel.
    pub fn hop(&self, family: Family) -> Hop {
        let direct = match family {
            Family::V4 => self.direct4,
            Family::V6 => self.direct6,
        };
        match (direct, self.tunnel(family)) {
            (Some(direct), _) => Hop::Direct(direct),
            (None, Some(tunnel)) => Hop::Tunnel(tunnel),
            (None, None) => Hop::None,
        }
    }

    /// The tunnel that leads to the peer's pods of that family, whether or not packets take it at the moment.
    pub fn tunnel(&self, family: Family) -> Option<Tunnel> {
        match &self.tunnels {
            Tunnels::Shared(tunnel) => *tunnel,
            Tunnels::ByFamily(tunnels) => {
                let [v4, v6] = **tunnels;
                if family == Family::V4 { v4 } else { v6 }
            }
        }
    }

    /// All that there are, likewise.
    pub fn tunnels(&self) -> impl Iterator<Item = &Tunnel> {
        let tunnels = match &self.tunnels {
            Tunnels::Shared(tunnel) => std::slice::from_ref(tunnel),
            Tunnels::ByFamily(tunnels) => tunnels.as_slice(),
        };
        tunnels.iter().flatten()
    }

    /// Each subnet that packets reach through a tunnel, with that.
    fn tunnelled(&self) -> impl Iterator<Item = (&PeerSubnet, Tunnel)> {
        self.peer.subnets.iter().filter_map(|subnet| match self.hop(Family::of(subnet.network.network())) {
            Hop::Tunnel(tunnel) => Some((subnet, tunnel)),
            Hop::Direct(_) | Hop::None => None,
        })
    }

    /// The neighbours that it needs: the peer's VTEP, for each family of pods.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourItem> {
        self.tunnelled().map(|(subnet, tunnel)| NeighbourItem {
            device: tunnel.device,
            address: subnet.network.network(),
            mac: tunnel.mac,
        })
    }

    /// The forwarding entries that it needs: one for each tunnel that its packets take.
    pub fn fdb(&self) -> impl Iterator<Item = FdbItem> {
        let entry = |(_, tunnel): (_, Tunnel)| {
            let Tunnel { device, mac, remote, .. } = tunnel;
            FdbItem { device, mac, remote }
        };
        let mut entries = self.tunnelled().map(entry);
        let first = entries.next();
        // It has a subnet of each family at most.
        let second = entries.find(|entry| Some(*entry) != first);
        first.into_iter().chain(second)
    }

    /// Its routes.
    pub fn routes(&self) -> impl Iterator<Item = PeerRoute> {
        self.peer.subnets.iter().filter_map(|subnet| {
            let PeerSubnet { network, metric } = *subnet;
            let (via, gateway, mtu) = match self.hop(Family::of(network.network())) {
                Hop::Tunnel(tunnel) => (Via::Device(tunnel.device), network.network(), tunnel.mtu),
                Hop::Direct(direct) => (Via::Link(direct.link), direct.gateway, direct.mtu),
                Hop::None => return None,
            };
            Some(PeerRoute { destination: network, via, gateway, metric, mtu })
        })
    }
}

/// What paths are chosen by.
pub(super) struct Ways<'a> {
    config: &'a ClusterConfig,
    /// This node's links, the best family first.
    links: Vec<&'a UnderlayLink>,
    /// What this node can send, the best first.
    encapsulations: &'a [Encapsulation],
    /// Its devices: one for each of its links and encapsulations.
    devices: &'a [Device],
}

/// How packets of one family, or of both, get to a peer.
#[derive(Default)]
struct Way {
    tunnel: Option<Tunnel>,
    direct: Option<Direct>,
    /// The kernel has no IPv6 route by way of an IPv4 router.
    direct6: Option<Direct>,
}

impl<'a> Ways<'a> {
    pub(super) fn new(
        config: &'a ClusterConfig,
        underlay: &'a UnderlayFacts,
        families: &[Family],
        encapsulations: &'a [Encapsulation],
        devices: &'a [Device],
    ) -> Self {
        let links = families.iter().filter_map(|family| underlay.link(*family)).collect();
        Self { config, links, encapsulations, devices }
    }

    /// The way to a peer.
    pub(super) fn path(&self, peer: &Arc<Peer>, problems: &mut Vec<Problem>) -> Path {
        let mut path =
            Path { peer: Arc::clone(peer), tunnels: Tunnels::Shared(None), direct4: None, direct6: None };
        let addresses = &peer.record.addresses;
        if let Some(own) = self.links.iter().find(|link| addresses.contains(&link.address)) {
            let text =
                format!("it says that it is at this node's own address {}: it is left out", own.address);
            problems.push(Problem::of(ProblemKind::Own, peer.name(), text));
            return path;
        }
        if !peer.record.same_family {
            let Way { tunnel, direct, direct6 } = self.way(peer, None, problems);
            return Path { tunnels: Tunnels::Shared(tunnel), direct4: direct, direct6, ..path };
        }
        let [mut tunnel4, mut tunnel6] = [None; 2];
        for subnet in &peer.subnets {
            let family = Family::of(subnet.network.network());
            let Way { tunnel, direct, direct6 } = self.way(peer, Some(family), problems);
            match family {
                Family::V4 => (tunnel4, path.direct4) = (tunnel, direct),
                Family::V6 => (tunnel6, path.direct6) = (tunnel, direct6),
            }
        }
        path.tunnels = Tunnels::ByFamily(Box::new([tunnel4, tunnel6]));
        path
    }

    /// The way to a peer's pods: of both families, or of the one that travels by links of its own family alone.
    fn way(&self, peer: &Peer, only: Option<Family>, problems: &mut Vec<Problem>) -> Way {
        let mut way = Way::default();
        let peer_mtu = peer.record.mtu;
        // By which of this node's links, the best first, and where the peer is then.
        let common = || {
            let links =
                self.links.iter().filter(|link| only.is_none_or(|only| only == Family::of(link.address)));
            links.filter_map(|link| {
                let mut theirs = peer.record.addresses.iter();
                let theirs = theirs.find(|theirs| theirs.is_ipv4() == link.address.is_ipv4());
                theirs.map(|theirs| (*link, *theirs))
            })
        };
        let mut unreachable =
            |text: String| problems.push(Problem::of(ProblemKind::Unreachable, peer.name(), text));
        if self.config.direct_routing != DirectRouting::Never {
            let on_link = |(link, theirs): &(&UnderlayLink, IpAddr)| {
                link.networks.iter().any(|network| network.contains(*theirs))
            };
            let direct = |(link, gateway): (&UnderlayLink, IpAddr)| Direct {
                link: link.index,
                gateway,
                mtu: lower(peer_mtu, link.mtu),
            };
            way.direct = common().find(on_link).map(direct);
            way.direct6 = common().filter(|(_, theirs)| theirs.is_ipv6()).find(on_link).map(direct);
        }
        let Some((link, remote)) = common().next() else {
            if !self.links.is_empty() {
                unreachable(match only {
                    None => "it has no address of a family that this node has too: no route leads there"
                        .to_owned(),
                    Some(family) => format!(
                        "its {family} pods are reached by {family} alone, as flannel has it, and not both of its node and \
                         this one have an {family} address for that: no route leads to them"
                    ),
                });
            }
            return way;
        };
        if self.config.direct_routing == DirectRouting::Always {
            let has_ipv6 = peer.subnets.iter().any(|subnet| subnet.network.is_ipv6());
            if way.direct.is_some() && way.direct6.is_none() && has_ipv6 && only.is_none() {
                unreachable(
                    "its IPv6 pods cannot be reached directly by an IPv4 address: give both nodes IPv6 addresses, or let \
                     direct_routing be auto"
                        .to_owned(),
                );
            }
            return way;
        }
        let family = Family::of(link.address);
        let device = |sent: &Encapsulation| {
            self.devices.iter().find(|device| (device.id.family, device.id.encapsulation) == (family, *sent))
        };
        let sent = self.encapsulations.iter().find_map(|sent| Some((device(sent)?, peer.vtep(*sent)?)));
        match sent.map(|(device, vtep)| (device, vtep.over(family))) {
            Some((device, mac)) if mac == device.mac => {
                let text = format!("it claims this node's own VTEP MAC address {mac}: it is left out");
                problems.push(Problem::of(ProblemKind::Own, peer.name(), text));
            }
            Some((device, mac)) => {
                let inside = peer_mtu.map(|mtu| mtu.saturating_sub(device.id.overhead()));
                way.tunnel = Some(Tunnel { device: device.id, mac, remote, mtu: lower(inside, device.mtu) });
            }
            None if way.direct.is_none() && way.direct6.is_none() => unreachable(
                "it receives nothing that this node can send: no route leads there until it follows the cluster's settings"
                    .to_owned(),
            ),
            None => {}
        }
        way
    }
}

/// The MTU that a route needs so that packets fit at the other end too.
fn lower(theirs: Option<u32>, ours: u32) -> Option<u32> {
    theirs.map(|mtu| mtu.max(SMALLEST_MTU)).filter(|mtu| *mtu < ours)
}
