//! A kernel as far as plans can tell: what it drops by itself when a link goes down or changes, what it refuses, and that a
//! replaced or removed route may be somebody else's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address, AddressFlags};
use podwire_kernel::link::{AddrGenMode, Link, LinkFlags, Vxlan};
use podwire_kernel::neighbour::{FdbEntry, Neighbour, State};
use podwire_kernel::route::{Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Family, MacAddr};

use crate::cluster::Encapsulation;
use crate::cluster::sample::ip;
use crate::desired::{Desired, DeviceId, MARK, Naming, Via};
use crate::plan::{Observed, Operation, Plan};

/// Those of a new link.
const SYSCTLS: [(&str, &str); 3] =
    [("ipv4/conf/DEV/rp_filter", "0"), ("ipv6/conf/DEV/disable_ipv6", "1"), ("ipv6/conf/DEV/accept_ra", "1")];

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kernel {
    pub(super) state: Observed,
    /// How the node's devices are called.
    pub(super) naming: Naming,
    next: u32,
}

impl Kernel {
    /// A node with its underlay link (2), another (3), and things of others.
    pub(super) fn new() -> Self {
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            mtu: 1500,
            flags: LinkFlags { up: true, ..LinkFlags::default() },
            ..Link::default()
        };
        let bridge =
            Link { bridge: Some(podwire_kernel::link::BridgeState::default()), ..link(4, "podwire0") };
        let state = Observed {
            links: vec![link(2, "eth0"), link(3, "eth1"), bridge],
            sysctls: BTreeMap::from([
                ("net/ipv4/ip_forward".to_owned(), "0".to_owned()),
                ("net/ipv6/conf/all/forwarding".to_owned(), "0".to_owned()),
            ]),
            ..Observed::default()
        };
        Self { state, naming: Naming::default(), next: 10 }
    }

    /// The same on a node that was flannel's, of the sample's node 1: its devices are adopted, with all that flannel has them
    /// made for these subnets.
    pub(super) fn of_flannel(subnets: &[IpNetwork]) -> Self {
        let mut kernel = Self::new();
        let (v4, v6) = (MacAddr([0x2a, 0, 0, 0, 4, 1]), MacAddr([0x2a, 0, 0, 0, 6, 1]));
        kernel.naming = Naming::default().adopt(Family::V4, Encapsulation::default(), "flannel.1", v4).adopt(
            Family::V6,
            Encapsulation::default(),
            "flannel-v6.1",
            v6,
        );
        for (index, name, mac, local, own) in [
            (5, "flannel.1", v4, "192.0.2.1", "10.244.1.0/32"),
            (6, "flannel-v6.1", v6, "2001:db8::1", "fd00:10:244:1::/128"),
        ] {
            // Bound to its link, with the kernel's TTL and checksums.
            let local = Some(local.parse().expect("an address"));
            let vxlan = Vxlan { parent: Some(2), ttl: 0, udp_checksum: true, ..Vxlan::new(1, 8472, local) };
            kernel.state.links.push(Link {
                index,
                name: name.to_owned(),
                mac: Some(mac),
                mtu: 1450,
                kind: Some("vxlan".to_owned()),
                vxlan: Some(vxlan),
                flags: LinkFlags { up: true, ..LinkFlags::default() },
                addr_gen_mode: Some(AddrGenMode::Eui64),
                ..Link::default()
            });
            for key in SYSCTLS {
                kernel.state.sysctls.insert(format!("net/{}", key.0.replace("DEV", name)), "0".to_owned());
            }
            kernel.state.addresses.push(Address {
                ifindex: index,
                address: own.parse().expect("an address"),
                flags: AddressFlags { permanent: true, ..AddressFlags::default() },
                scope: 0,
                protocol: 0,
            });
            let peer = MacAddr([0x2a, 0, 0, 0, 9, 9]);
            for subnet in subnets.iter().filter(|subnet| subnet.is_ipv4() == (index == 5)) {
                let via = subnet.network();
                kernel.state.neighbours.push(Neighbour::permanent(index, via, peer));
                let nexthop = Nexthop { gateway: Some(via), oif: Some(index) };
                let priority = Some(if subnet.is_ipv4() { 0 } else { 1024 });
                let route =
                    Route { priority, protocol: 3, onlink: true, ..Route::new(*subnet, vec![nexthop]) };
                kernel.state.routes.push(route);
            }
            let remote = ip(if index == 5 { "192.0.2.99" } else { "2001:db8::99" });
            kernel.state.fdb.push(FdbEntry::permanent(index, peer, remote));
        }
        kernel
    }

    fn is_ours(&self, route: &Route) -> bool {
        let by = |index: u32| self.state.links.iter().find(|link| link.index == index);
        let mut by = route.nexthops.iter().filter_map(|hop| hop.oif).filter_map(by);
        route.protocol == ROUTE_PROTOCOL || by.any(|link| self.naming.of(link).is_some())
    }

    pub(super) fn index(&self, name: &str) -> Option<u32> {
        self.state.links.iter().find(|link| link.name == name).map(|link| link.index)
    }

    fn device(&self, id: DeviceId) -> Result<u32, String> {
        self.index(id.name()).ok_or_else(|| format!("no device {}", id.name()))
    }

    fn via(&self, via: Via) -> Result<u32, String> {
        match via {
            Via::Device(id) => self.device(id),
            Via::Link(index) => Ok(index),
        }
    }

    fn link(&mut self, index: u32) -> Option<&mut Link> {
        self.state.links.iter_mut().find(|link| link.index == index)
    }

    fn is_up(&self, index: u32) -> bool {
        self.state.links.iter().any(|link| link.index == index && link.flags.up)
    }

    pub(super) fn delete_link(&mut self, index: u32) {
        let name = self.state.links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        self.state.links.retain(|link| link.index != index);
        self.state.addresses.retain(|address| address.ifindex != index);
        self.state.neighbours.retain(|neighbour| neighbour.ifindex != index);
        self.state.fdb.retain(|entry| entry.ifindex != index);
        self.state.routes.retain(|route| route.nexthops.iter().all(|hop| hop.oif != Some(index)));
        if let Some(name) = name {
            self.state.sysctls.retain(|key, _| !key.contains(&format!("/{name}/")));
        }
    }

    /// Down: routes and neighbours go, permanent ones too, and IPv6 addresses; forwarding entries and IPv4 addresses
    /// stay.
    pub(super) fn down(&mut self, index: u32) {
        if let Some(link) = self.link(index) {
            link.flags.up = false;
        }
        self.state.neighbours.retain(|neighbour| neighbour.ifindex != index);
        self.state.routes.retain(|route| route.nexthops.iter().all(|hop| hop.oif != Some(index)));
        self.state.addresses.retain(|address| address.ifindex != index || address.address.is_ipv4());
    }

    /// Another MAC address: neighbours go, routes stay.
    pub(super) fn change_mac(&mut self, index: u32, mac: MacAddr) {
        if let Some(link) = self.link(index) {
            link.mac = Some(mac);
        }
        self.state.neighbours.retain(|neighbour| neighbour.ifindex != index);
    }

    /// The last IPv4 address takes the IPv4 routes and neighbours with it.
    pub(super) fn remove_address(&mut self, index: u32, address: IpNetwork) -> bool {
        let count = self.state.addresses.len();
        self.state.addresses.retain(|found| found.ifindex != index || found.address != address);
        let removed = self.state.addresses.len() < count;
        let left = self.state.addresses.iter().any(|found| found.ifindex == index && found.address.is_ipv4());
        if removed && address.is_ipv4() && !left {
            self.state.neighbours.retain(|found| found.ifindex != index || found.address.is_ipv6());
            let goes = |route: &Route| {
                route.destination.is_ipv4() && route.nexthops.iter().any(|hop| hop.oif == Some(index))
            };
            self.state.routes.retain(|route| !goes(route));
        }
        removed
    }

    fn has_neighbour(&self, index: u32, address: IpAddr) -> Option<MacAddr> {
        let found = self.state.neighbours.iter().find(|found| {
            found.ifindex == index && found.address == address && found.state == State::Permanent
        });
        found.and_then(|found| found.mac)
    }

    fn at(&self, route: &Route) -> Option<usize> {
        self.state.routes.iter().position(|found| {
            found.destination == route.destination
                && found.priority == route.priority
                && found.table == route.table
        })
    }

    pub(super) fn apply(&mut self, operation: &Operation) -> Result<(), String> {
        match operation {
            Operation::DeleteDevice { index, name } => {
                if self.index(name) != Some(*index) {
                    return Err(format!("no link {name}"));
                }
                self.delete_link(*index);
            }
            Operation::CreateDevice(device) => {
                let (name, vxlan) = (device.id.name().to_owned(), device.vxlan());
                let taken = self.state.links.iter().any(|link| {
                    let same = |other: &Vxlan| {
                        (other.vni, other.port) == (vxlan.vni, vxlan.port)
                            && other.local.map(|a| a.is_ipv4()) == vxlan.local.map(|a| a.is_ipv4())
                    };
                    link.name == name || link.vxlan.as_ref().is_some_and(same)
                });
                if taken {
                    return Err(format!("{name} exists"));
                }
                for (key, value) in SYSCTLS {
                    let key = format!("net/{}", key.replace("DEV", &name));
                    self.state.sysctls.insert(key, value.to_owned());
                }
                self.state.links.push(Link {
                    index: self.next,
                    name,
                    mac: Some(device.mac),
                    mtu: device.mtu,
                    kind: Some("vxlan".to_owned()),
                    alias: Some(MARK.to_owned()),
                    vxlan: Some(vxlan),
                    addr_gen_mode: Some(AddrGenMode::None),
                    ..Link::default()
                });
                self.next += 1;
            }
            Operation::ChangeDevice { device, change } => {
                let index = self.device(*device)?;
                if let Some(mac) = change.mac {
                    self.change_mac(index, mac);
                }
                let Some(link) = self.link(index) else { return Ok(()) };
                if let (Some(wanted), Some(now)) = (change.settings, &mut link.vxlan) {
                    (now.local, now.learning, now.ttl, now.df) =
                        (wanted.local, wanted.learning, wanted.ttl, wanted.df);
                }
                link.mtu = change.mtu.unwrap_or(link.mtu);
                if change.mark {
                    link.alias = Some(MARK.to_owned());
                }
                if change.no_addresses {
                    link.addr_gen_mode = Some(AddrGenMode::None);
                }
                if change.detach {
                    link.controller = None;
                }
                link.flags.up |= change.up;
            }
            Operation::SetSysctl { name, value } => {
                let now = self.state.sysctls.get_mut(name).ok_or_else(|| format!("no sysctl {name}"))?;
                now.clone_from(value);
            }
            Operation::EnableForwarding(family) => {
                let name = crate::plan::forwarding_sysctl(*family).to_owned();
                self.state.sysctls.insert(name, "1".to_owned());
            }
            Operation::AddAddress { link, address } => {
                let index = self.via(*link)?;
                if self.state.addresses.iter().any(|a| a.ifindex == index && a.address == *address) {
                    return Err(format!("{address} exists"));
                }
                let off = |link: &&Link| {
                    let key = format!("net/ipv6/conf/{}/disable_ipv6", link.name);
                    link.index == index && self.state.sysctls.get(&key).is_some_and(|value| value == "1")
                };
                if address.is_ipv6() && self.state.links.iter().any(|link| off(&link)) {
                    return Err("IPv6 is off".to_owned());
                }
                self.state.addresses.push(Address {
                    ifindex: index,
                    address: *address,
                    flags: AddressFlags { permanent: true, ..AddressFlags::default() },
                    scope: 0,
                    protocol: addr::PROTOCOL,
                });
            }
            Operation::RemoveAddress { link, address } => {
                let index = self.via(*link)?;
                if !self.remove_address(index, *address) {
                    return Err(format!("no {address}"));
                }
            }
            Operation::SetNeighbour(item) => {
                let index = self.device(item.device)?;
                if !self.is_up(index) {
                    return Err("link is down".to_owned());
                }
                self.state.neighbours.retain(|n| (n.ifindex, n.address) != (index, item.address));
                self.state.neighbours.push(Neighbour::permanent(index, item.address, item.mac));
            }
            Operation::SetFdb(item) => {
                let index = self.device(item.device)?;
                let entry = FdbEntry::permanent(index, item.mac, item.remote);
                match self.state.fdb.iter_mut().find(|e| (e.ifindex, e.mac) == (index, item.mac)) {
                    Some(first) => *first = entry,
                    None => self.state.fdb.push(entry),
                }
            }
            Operation::AddRoute(wanted) | Operation::ReplaceRoute(wanted) => {
                let index = self.via(wanted.via)?;
                if !self.is_up(index) {
                    return Err("link is down".to_owned());
                }
                if matches!(wanted.via, Via::Device(_)) {
                    let mac = self.has_neighbour(index, wanted.gateway);
                    let mac = mac.unwrap_or_else(|| panic!("{wanted} comes before its neighbour"));
                    let known = self.state.fdb.iter().any(|entry| (entry.ifindex, entry.mac) == (index, mac));
                    assert!(known, "{wanted} comes before its forwarding entry");
                }
                let route = wanted.route(index);
                match (self.at(&route), operation) {
                    (Some(_), Operation::AddRoute(_)) => return Err(format!("{wanted} exists")),
                    (Some(place), _) => {
                        let old = &self.state.routes[place];
                        assert!(self.is_ours(old), "somebody else's route is replaced: {old}");
                        self.state.routes[place] = route;
                    }
                    (None, _) => self.state.routes.push(route),
                }
            }
            Operation::RemoveRoute(wanted) => {
                let index = self.via(wanted.via)?;
                let route = wanted.route(index);
                let matches = |found: &Route| {
                    (found.destination, found.priority, found.protocol)
                        == (route.destination, route.priority, route.protocol)
                        && found.nexthops.iter().any(|hop| route.nexthops.contains(hop))
                };
                let place =
                    self.state.routes.iter().position(matches).ok_or_else(|| format!("no {wanted}"))?;
                self.state.routes.remove(place);
            }
            Operation::RemoveNeighbour { device, address } => {
                let index = self.device(*device)?;
                let count = self.state.neighbours.len();
                self.state.neighbours.retain(|n| (n.ifindex, n.address) != (index, *address));
                if self.state.neighbours.len() == count {
                    return Err(format!("no {address}"));
                }
            }
            Operation::RemoveFdb { device, mac, remote } => {
                let index = self.device(*device)?;
                let count = self.state.fdb.len();
                let goes = |e: &FdbEntry| {
                    (e.ifindex, e.mac) == (index, *mac) && (remote.is_none() || e.destination == *remote)
                };
                self.state.fdb.retain(|entry| !goes(entry));
                if self.state.fdb.len() == count {
                    return Err(format!("no {mac}"));
                }
            }
        }
        Ok(())
    }

    /// Carries a plan out as the executor does; steps of those numbers fail.
    pub(super) fn carry_out(&mut self, plan: &Plan, failing: &[usize]) -> Vec<String> {
        let mut failures = Vec::new();
        let mut barred = Vec::new();
        for (i, step) in plan.steps.iter().enumerate() {
            if step.peer.is_some_and(|peer| barred.contains(&peer)) {
                continue;
            }
            let result = if failing.contains(&i) {
                Err("by order of the test".to_owned())
            } else {
                self.apply(&step.operation)
            };
            if let Err(why) = result {
                failures.push(format!("{}: {why}", step.operation));
                barred.extend(step.peer);
            }
        }
        failures
    }

    /// What is not ours, which no plan may change.
    pub(super) fn foreign(&self, desired: &Desired) -> Observed {
        let ours: Vec<_> = self
            .state
            .links
            .iter()
            .filter(|link| self.naming.parse(&link.name).is_some() && link.vxlan.is_some())
            .map(|link| link.index)
            .collect();
        let in_range =
            |a: &Address| desired.cluster_ranges.iter().any(|range| range.contains(a.address.ip()));
        let bridge = self.index("podwire0");
        let mut state = self.state.clone();
        state.links.retain(|link| !ours.contains(&link.index));
        state.addresses.retain(|a| !(ours.contains(&a.ifindex) || Some(a.ifindex) == bridge && in_range(a)));
        state.routes.retain(|route| !self.is_ours(route));
        state.neighbours.retain(|n| !ours.contains(&n.ifindex));
        state.fdb.retain(|e| !ours.contains(&e.ifindex));
        state.sysctls.clear();
        state
    }
}
