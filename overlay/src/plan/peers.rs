//! The part of a plan that is about the ways to peers: compared with all that the kernel has on our devices.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::neighbour::{FdbEntry, Neighbour, State};
use podwire_kernel::route::{MAIN_TABLE, Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Family, MacAddr};

use super::devices::{Devices, Fate};
use super::{Deletes, Observed, Operation, Plan, Step};
use crate::cluster::topology::{Problem, ProblemKind};
use crate::desired::{Desired, DeviceId, FdbItem, NeighbourItem, PeerRoute, Via};

/// What the kernel has, by what the kernel itself tells entries apart by. What is looked up is taken out: the rest is what
/// nobody wants.
struct Tables<'a> {
    neighbours: HashMap<(u32, IpAddr), &'a Neighbour>,
    fdb: HashMap<(u32, MacAddr), Vec<&'a FdbEntry>>,
    routes: HashMap<(IpNetwork, u32), &'a Route>,
}

pub(super) fn plan(
    desired: &Desired,
    observed: &Observed,
    deletes: Deletes,
    devices: &Devices,
    plan: &mut Plan,
) {
    let mut tables = Tables::new(observed, devices);
    let strangers = Strangers::new(desired, observed, devices);
    let (mut stale, mut entries, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for (place, path) in (0..).zip(&desired.paths) {
        let mut push = |operation| entries.push(Step { operation, peer: Some(place) });
        for item in path.neighbours() {
            if tables.lacks_neighbour(&item, devices) {
                push(Operation::SetNeighbour(item));
            }
        }
        for item in path.fdb() {
            let lacks = tables.lacks_fdb(&item, devices);
            // Replacing an entry by its equal changes nothing, not even what is cached with it.
            let renew =
                !lacks && matches!(devices.get(&item.device), Some(Fate::Kept { sends_anew: true, .. }));
            if renew {
                let FdbItem { device, mac, remote } = item;
                let operation = Operation::RemoveFdb { device, mac, remote: Some(remote) };
                stale.push(Step { operation, peer: Some(place) });
            }
            if lacks || renew {
                push(Operation::SetFdb(item));
            }
        }
        for route in path.routes() {
            if let Some(operation) = tables.route(&route, devices, &strangers) {
                routes.push(Step { operation, peer: Some(place) });
            }
        }
    }
    plan.steps.extend(stale);
    plan.steps.extend(entries);
    plan.steps.extend(routes);
    plan.problems.extend(strangers.problems);
    if deletes == Deletes::Allowed {
        plan.steps.extend(tables.remains(desired, devices));
    }
}

impl<'a> Tables<'a> {
    fn new(observed: &'a Observed, devices: &Devices) -> Self {
        // Entries of devices that are made anew, are going or are left alone need no look.
        let kept = |ifindex: u32| {
            devices.values().any(|fate| matches!(fate, Fate::Kept { index, .. } if *index == ifindex))
        };
        let with_neighbours = |ifindex: u32| {
            devices.values().any(
                |fate| matches!(fate, Fate::Kept { index, loses_neighbours: false, .. } if *index == ifindex),
            )
        };
        let mut tables = Self {
            neighbours: HashMap::with_capacity(observed.neighbours.len()),
            fdb: HashMap::with_capacity(observed.fdb.len()),
            routes: HashMap::with_capacity(observed.routes.len()),
        };
        for neighbour in observed.neighbours.iter().filter(|neighbour| with_neighbours(neighbour.ifindex)) {
            tables.neighbours.insert((neighbour.ifindex, neighbour.address), neighbour);
        }
        for entry in observed.fdb.iter().filter(|entry| entry.own && kept(entry.ifindex)) {
            tables.fdb.entry((entry.ifindex, entry.mac)).or_default().push(entry);
        }
        for route in observed.routes.iter().filter(|route| is_ours(route)) {
            tables.routes.insert(key(route), route);
        }
        tables
    }

    fn lacks_neighbour(&mut self, item: &NeighbourItem, devices: &Devices) -> bool {
        match devices.get(&item.device) {
            Some(Fate::Kept { index, .. }) => {
                let found = self.neighbours.remove(&(*index, item.address));
                !found.is_some_and(|found| found.state == State::Permanent && found.mac == Some(item.mac))
            }
            Some(Fate::Made(_)) => true,
            Some(Fate::Barred | Fate::Retained(_) | Fate::Going(_)) | None => false,
        }
    }

    fn lacks_fdb(&mut self, item: &FdbItem, devices: &Devices) -> bool {
        match devices.get(&item.device) {
            Some(Fate::Kept { index, .. }) => {
                let wanted = FdbEntry::permanent(*index, item.mac, item.remote);
                let Some(found) = self.fdb.get_mut(&(*index, item.mac)) else { return true };
                let place = found.iter().position(|found| **found == wanted);
                match place {
                    Some(place) => {
                        found.swap_remove(place);
                        false
                    }
                    None => {
                        // The new one takes the place of the first.
                        found.swap_remove(0);
                        true
                    }
                }
            }
            Some(Fate::Made(_)) => true,
            Some(Fate::Barred | Fate::Retained(_) | Fate::Going(_)) | None => false,
        }
    }

    fn route(
        &mut self,
        route: &PeerRoute,
        devices: &Devices,
        strangers: &Strangers<'_>,
    ) -> Option<Operation> {
        let index = match route.via {
            Via::Link(index) => Some(index),
            Via::Device(device) => match devices.get(&device)? {
                Fate::Kept { index, .. } => Some(*index),
                Fate::Made(_) => None,
                Fate::Barred | Fate::Retained(_) | Fate::Going(_) => return None,
            },
        };
        match self.routes.remove(&(route.destination, route.metric)) {
            Some(found) if index.is_some_and(|index| route.is(found, index)) => None,
            // One by a device that is removed first is not there any more; replacing makes it all the same.
            Some(_) => Some(Operation::ReplaceRoute(*route)),
            None if strangers.has(route) => None,
            None if strangers.adopted.contains(&(route.destination, route.metric)) => {
                Some(Operation::ReplaceRoute(*route))
            }
            None => Some(Operation::AddRoute(*route)),
        }
    }

    /// Steps that remove what nobody wants: routes first.
    fn remains(self, desired: &Desired, devices: &Devices) -> Vec<Step> {
        let mut steps = Vec::new();
        let names: HashMap<u32, (DeviceId, Fate)> =
            devices.iter().filter_map(|(id, fate)| Some((fate.index()?, (*id, *fate)))).collect();
        let owners = Owners::new(desired, &self);
        let mut routes: Vec<_> = self.routes.into_values().collect();
        routes.sort_by_key(|route| key(route));
        for route in routes {
            // Ours have one next hop; one that does not was made by somebody else in our name, and has to go link by link.
            for nexthop in &route.nexthops {
                let Some((gateway, index)) = nexthop.gateway.zip(nexthop.oif) else { continue };
                let via = match names.get(&index) {
                    Some((_, Fate::Made(_) | Fate::Retained(_) | Fate::Going(_))) => continue,
                    Some((id, _)) => Via::Device(*id),
                    None => Via::Link(index),
                };
                let (destination, metric) = key(route);
                let route = PeerRoute { destination, via, gateway, metric, mtu: route.mtu };
                let peer = owners.subnet(destination);
                steps.push(Step { operation: Operation::RemoveRoute(route), peer });
            }
        }
        let mut neighbours: Vec<_> = self
            .neighbours
            .into_values()
            .filter(|neighbour| neighbour.state == State::Permanent)
            .filter_map(|neighbour| Some((names.get(&neighbour.ifindex)?.0, neighbour.address)))
            .collect();
        neighbours.sort_unstable();
        steps.extend(neighbours.into_iter().map(|(device, address)| Step {
            operation: Operation::RemoveNeighbour { device, address },
            peer: owners.vtep(address),
        }));
        let mut fdb: Vec<_> = self
            .fdb
            .into_values()
            .flatten()
            .filter_map(|entry| Some((names.get(&entry.ifindex)?.0, entry.mac, entry.destination)))
            .collect();
        fdb.sort_unstable();
        steps.extend(fdb.into_iter().map(|(device, mac, remote)| Step {
            operation: Operation::RemoveFdb { device, mac, remote },
            peer: remote.and_then(|remote| owners.machine(remote)),
        }));
        steps
    }
}

fn is_ours(route: &Route) -> bool {
    route.protocol == ROUTE_PROTOCOL && route.table == MAIN_TABLE
}

fn key(route: &Route) -> (IpNetwork, u32) {
    // The kernel's defaults.
    let unset = if route.destination.is_ipv4() { 0 } else { 1024 };
    (route.destination, route.priority.unwrap_or(unset))
}

/// Which peer it is whose old entry is to go: if its new one could not be made, the old one had better stay. Made only
/// when something is to go.
struct Owners {
    subnets: HashMap<IpNetwork, u32>,
    vteps: HashMap<IpAddr, u32>,
    machines: HashMap<IpAddr, u32>,
}

impl Owners {
    fn new(desired: &Desired, tables: &Tables<'_>) -> Self {
        let (mut subnets, mut vteps, mut machines) = (HashMap::new(), HashMap::new(), HashMap::new());
        let is_clean = tables.routes.is_empty()
            && tables.neighbours.is_empty()
            && tables.fdb.values().all(Vec::is_empty);
        if !is_clean {
            for (place, path) in (0..).zip(&desired.paths) {
                for subnet in &path.peer.subnets {
                    subnets.insert(subnet.network, place);
                    vteps.insert(subnet.network.network(), place);
                }
                machines.extend(path.peer.record.addresses.iter().map(|address| (*address, place)));
            }
        }
        Self { subnets, vteps, machines }
    }

    fn subnet(&self, subnet: IpNetwork) -> Option<u32> {
        self.subnets.get(&subnet).copied()
    }

    fn vtep(&self, address: IpAddr) -> Option<u32> {
        self.vteps.get(&address).copied()
    }

    fn machine(&self, address: IpAddr) -> Option<u32> {
        self.machines.get(&address).copied()
    }
}

/// Routes of others that lead into the pods' ranges.
struct Strangers<'a> {
    same: HashMap<(IpNetwork, u32), &'a Route>,
    /// Those in our routes' place that lead by a device of ours.
    adopted: HashSet<(IpNetwork, u32)>,
    problems: Vec<Problem>,
}

impl<'a> Strangers<'a> {
    fn new(desired: &Desired, observed: &'a Observed, devices: &Devices) -> Self {
        let mut strangers = Self { same: HashMap::new(), adopted: HashSet::new(), problems: Vec::new() };
        let inside = |route: &&Route| {
            let range = |range: &IpNetwork| {
                range.contains(route.destination.network()) && range.prefix() <= route.destination.prefix()
            };
            route.table == MAIN_TABLE && !is_ours(route) && desired.cluster_ranges.iter().any(range)
        };
        let found: Vec<_> = observed.routes.iter().filter(inside).collect();
        if found.is_empty() {
            return strangers;
        }
        let mut subnets = HashMap::new();
        for path in &desired.paths {
            for subnet in &path.peer.subnets {
                subnets.insert(subnet.network, (path, subnet.metric));
            }
        }
        // All subnets of a family have one prefix length.
        let prefix = |family: Family| {
            subnets.keys().find(|subnet| Family::of(subnet.network()) == family).map(IpNetwork::prefix)
        };
        let prefixes = [prefix(Family::V4), prefix(Family::V6)];
        for route in found {
            let (destination, metric) = key(route);
            let [v4, v6] = prefixes;
            let Some(length) = (if destination.is_ipv4() { v4 } else { v6 }) else { continue };
            let Ok(around) = IpNetwork::new(destination.network(), length.min(destination.prefix())) else {
                continue;
            };
            let Ok(subnet) = IpNetwork::new(around.network(), length) else { continue };
            let Some((path, ours)) = subnets.get(&subnet).filter(|_| destination.prefix() >= length) else {
                continue;
            };
            let in_place = destination == subnet && metric == *ours;
            let by_ours = |nexthop: &Nexthop| {
                nexthop.oif.is_some_and(|oif| devices.values().any(|fate| fate.index() == Some(oif)))
            };
            if in_place && route.nexthops.iter().all(by_ours) {
                strangers.adopted.insert((destination, metric));
                continue;
            }
            if in_place {
                strangers.same.insert((destination, metric), route);
            }
            if in_place || destination != subnet || metric < *ours {
                strangers.problems.push(Problem::of(
                    ProblemKind::Route,
                    path.peer.name(),
                    format!(
                        "the route {route} (protocol {}) is somebody else's and is preferred to podwire's to {subnet}: remove \
                         it, or what makes it",
                        route.protocol
                    ),
                ));
            }
        }
        strangers
    }

    fn has(&self, route: &PeerRoute) -> bool {
        self.same.contains_key(&(route.destination, route.metric))
    }
}
