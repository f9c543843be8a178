//! The fast way: what one change of the cluster changes, without a look at the kernel.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;

use super::{Deletes, Operation, Plan, SendersChange, Step};
use crate::desired::{Desired, DeviceId, FdbItem, NeighbourItem, Path, PeerRoute};

/// What must be done so that a kernel that is as the one becomes as the other. It may have drifted: what is there is
/// replaced, and what fails is seen to by the next look.
pub fn delta(old: &Desired, new: &Desired, deletes: Deletes) -> Plan {
    let mut plan = Plan::default();
    let settled = |desired: &Desired| {
        (
            desired.devices.clone(),
            desired.naming.clone(),
            desired.retained.clone(),
            desired.addresses.clone(),
            desired.forwarding.clone(),
            desired.bridge.clone(),
            desired.ports.clone(),
            desired.cluster_ranges.clone(),
        )
    };
    if settled(old) != settled(new) || old.sysctls != new.sysctls {
        plan.needs_look = true;
        return plan;
    }
    let (mut before, mut after) = (Entries::default(), Entries::default());
    let (mut gone, mut come) = (BTreeSet::new(), BTreeSet::new());
    let mut changed = BTreeSet::new();
    walk(&old.paths, &new.paths, |was, is| {
        if let Some((_, was)) = was {
            before.add(was, None);
            gone.extend(was.peer.record.addresses.iter().copied());
        }
        if let Some((place, is)) = is {
            after.add(is, Some(place));
            changed.insert(place);
            come.extend(is.peer.record.addresses.iter().copied());
        }
    });
    differ(&before.neighbours, &after.neighbours, |item, _| Operation::SetNeighbour(*item), &mut plan);
    differ(&before.fdb, &after.fdb, |item, _| Operation::SetFdb(*item), &mut plan);
    differ(
        &before.routes,
        &after.routes,
        |route, is_new| {
            if is_new { Operation::AddRoute(*route) } else { Operation::ReplaceRoute(*route) }
        },
        &mut plan,
    );
    if deletes == Deletes::Allowed {
        vanish(&before.routes, &after.routes, |_, route| Operation::RemoveRoute(*route), &after, &mut plan);
        let neighbour = |(device, address): &(DeviceId, IpAddr), _: &_| Operation::RemoveNeighbour {
            device: *device,
            address: *address,
        };
        vanish(&before.neighbours, &after.neighbours, neighbour, &after, &mut plan);
        let fdb = |_: &_, item: &FdbItem| Operation::RemoveFdb {
            device: item.device,
            mac: item.mac,
            remote: Some(item.remote),
        };
        vanish(&before.fdb, &after.fdb, fdb, &after, &mut plan);
    }
    plan.senders = senders(&gone, &come, &changed, new, deletes);
    plan
}

/// Both sides are sorted by name. Calls with what differs: the path before, and the path now with its place.
fn walk<'a>(
    old: &'a [Path],
    new: &'a [Path],
    mut differs: impl FnMut(Option<(u32, &'a Path)>, Option<(u32, &'a Path)>),
) {
    let mut old = (0..).zip(old).peekable();
    let mut new = (0..).zip(new).peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            // One that is the same has no name to compare.
            (Some((_, was)), Some((_, is))) if std::sync::Arc::ptr_eq(&was.peer, &is.peer) => Ordering::Equal,
            (Some((_, was)), Some((_, is))) => was.peer.name().cmp(is.peer.name()),
        };
        match order {
            Ordering::Less => differs(old.next(), None),
            Ordering::Greater => differs(None, new.next()),
            Ordering::Equal => {
                let (was, is) = (old.next(), new.next());
                if let (Some((_, a)), Some((_, b))) = (was, is)
                    && !(std::sync::Arc::ptr_eq(&a.peer, &b.peer) && same_way(a, b))
                {
                    differs(was, is);
                }
            }
        }
    }
}

fn same_way(a: &Path, b: &Path) -> bool {
    (&a.tunnels, a.direct4, a.direct6) == (&b.tunnels, b.direct4, b.direct6)
}

type Keyed<K, V> = BTreeMap<K, (V, Option<u32>)>;

/// What changed paths consist of, by what the kernel tells entries apart by: a subnet may go from one peer to another
/// at once.
#[derive(Default)]
struct Entries {
    neighbours: Keyed<(DeviceId, IpAddr), NeighbourItem>,
    fdb: Keyed<(DeviceId, MacAddr), FdbItem>,
    routes: Keyed<(IpNetwork, u32), PeerRoute>,
    /// Whose a subnet or VTEP is, by its first address.
    owners: BTreeMap<IpAddr, u32>,
}

impl Entries {
    fn add(&mut self, path: &Path, place: Option<u32>) {
        for item in path.neighbours() {
            self.neighbours.insert((item.device, item.address), (item, place));
        }
        for item in path.fdb() {
            self.fdb.insert((item.device, item.mac), (item, place));
        }
        for route in path.routes() {
            self.routes.insert((route.destination, route.metric), (route, place));
        }
        if let Some(place) = place {
            self.owners.extend(path.peer.subnets.iter().map(|subnet| (subnet.network.network(), place)));
            self.owners.extend(path.peer.record.addresses.iter().map(|address| (*address, place)));
        }
    }
}

fn differ<K: Ord + Hash, V: PartialEq>(
    before: &Keyed<K, V>,
    after: &Keyed<K, V>,
    operation: impl Fn(&V, bool) -> Operation,
    plan: &mut Plan,
) {
    for (key, (now, peer)) in after {
        let was = before.get(key);
        if was.is_none_or(|(was, _)| was != now) {
            plan.steps.push(Step { operation: operation(now, was.is_none()), peer: *peer });
        }
    }
}

fn vanish<K: Ord, V>(
    before: &Keyed<K, V>,
    after: &Keyed<K, V>,
    operation: impl Fn(&K, &V) -> Operation,
    entries: &Entries,
    plan: &mut Plan,
) {
    for (key, (was, _)) in before.iter().filter(|(key, _)| !after.contains_key(key)) {
        let operation = operation(key, was);
        let of = match &operation {
            Operation::RemoveRoute(route) => Some(route.destination.network()),
            Operation::RemoveNeighbour { address, .. } => Some(*address),
            Operation::RemoveFdb { remote, .. } => *remote,
            _ => None,
        };
        let peer = of.and_then(|of| entries.owners.get(&of).copied());
        plan.steps.push(Step { operation, peer });
    }
}

/// `changed` are the places of paths that are not as before. An address that came or went with one of them is no news
/// if a path that stays has it too.
fn senders(
    gone: &BTreeSet<IpAddr>,
    come: &BTreeSet<IpAddr>,
    changed: &BTreeSet<u32>,
    new: &Desired,
    deletes: Deletes,
) -> SendersChange {
    let news: BTreeSet<_> = gone.symmetric_difference(come).copied().collect();
    if news.is_empty() {
        return SendersChange::default();
    }
    let stays = (0..).zip(&new.paths).filter(|(place, _)| !changed.contains(place));
    let held: BTreeSet<_> = stays
        .flat_map(|(_, path)| &path.peer.record.addresses)
        .filter(|address| news.contains(address))
        .copied()
        .collect();
    let differs = |address: &&IpAddr| !held.contains(*address);
    let add = come.difference(gone).filter(differs).copied().collect();
    let remove = match deletes {
        Deletes::Allowed => gone.difference(come).filter(differs).copied().collect(),
        Deletes::Withheld => Vec::new(),
    };
    SendersChange { add, remove }
}
