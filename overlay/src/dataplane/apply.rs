//! A plan carried out. No choices are made here.
//!
//! Requests of one kind travel together, up to 200 in one send, and each failure is told on its own: one peer that the
//! kernel refuses does not keep thousands of others from being reached. Before routes are made the outcome of what they
//! need is known, and those of a peer or device that lacks it are left out: such a route would lead nowhere.

use std::collections::{BTreeMap, BTreeSet};

use podwire_kernel::link::{self, AddrGenMode, LinkChange, LinkRef};
use podwire_kernel::neighbour;
use podwire_kernel::route::{self, Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Error, Netlink, Request, addr, sysctl};

use super::pass::kind;
use crate::desired::{Device, DeviceId, MARK, Via};
use crate::plan::{DeviceChange, Operation, Step};

/// The indices of our devices.
pub(super) type Indices = BTreeMap<DeviceId, u32>;

/// What came of a plan.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// How many operations were carried out, with those that failed.
    pub(super) operations: usize,
    /// What failed.
    pub(super) failures: Vec<Failed>,
    /// Peers that lack something, by their places.
    pub(super) peers: BTreeSet<u32>,
    /// Devices that were not made, or not brought up.
    pub(super) devices: BTreeSet<DeviceId>,
}

/// A failed operation.
#[derive(Debug)]
pub(super) struct Failed {
    /// What kind of operation it was.
    pub(super) kind: &'static str,
    /// The operation, as a command.
    pub(super) operation: String,
    /// Why.
    pub(super) error: Error,
    /// Whose it was.
    pub(super) peer: Option<u32>,
}

/// Carries out the steps in their order, as far as they can be. `indices` gains the devices that are made and loses those
/// that are removed.
///
/// # Errors
/// Of the socket itself: some steps were carried out, nobody knows which.
pub(super) fn apply(netlink: &mut Netlink, steps: &[Step], indices: &mut Indices) -> Result<Applied, Error> {
    let mut work =
        Work { netlink, indices, applied: Applied::default(), requests: Vec::new(), waiting: Vec::new() };
    let mut kind = Kind::Alone;
    for step in steps {
        let next = Kind::of(&step.operation);
        if next != kind || next == Kind::Alone {
            work.flush()?;
            kind = next;
        }
        if work.is_barred(step) {
            continue;
        }
        match next {
            Kind::Alone => work.alone(step)?,
            _ => work.queue(step),
        }
    }
    work.flush()?;
    Ok(work.applied)
}

/// Operations of one kind need nothing of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Carried out one by one.
    Alone,
    Address,
    /// Neighbours and forwarding entries.
    Entry,
    Route,
    RemoveRoute,
    RemoveEntry,
}

impl Kind {
    fn of(operation: &Operation) -> Self {
        match operation {
            Operation::DeleteDevice { .. }
            | Operation::CreateDevice(_)
            | Operation::ChangeDevice { .. }
            | Operation::SetSysctl { .. }
            | Operation::EnableForwarding(_) => Self::Alone,
            Operation::AddAddress { .. } | Operation::RemoveAddress { .. } => Self::Address,
            Operation::SetNeighbour(_) | Operation::SetFdb(_) => Self::Entry,
            Operation::AddRoute(_) | Operation::ReplaceRoute(_) => Self::Route,
            Operation::RemoveRoute(_) => Self::RemoveRoute,
            Operation::RemoveNeighbour { .. } | Operation::RemoveFdb { .. } => Self::RemoveEntry,
        }
    }
}

struct Work<'w, 's> {
    netlink: &'w mut Netlink,
    indices: &'w mut Indices,
    applied: Applied,
    requests: Vec<Request<'static>>,
    /// The steps of the requests, in the same order.
    waiting: Vec<&'s Step>,
}

impl<'s> Work<'_, 's> {
    /// Whether something that the step needs has failed. What is to go is not barred by what could not be made.
    fn is_barred(&self, step: &Step) -> bool {
        let is_removal = matches!(Kind::of(&step.operation), Kind::RemoveRoute | Kind::RemoveEntry);
        let of_device = device(&step.operation).is_some_and(|id| self.applied.devices.contains(&id));
        let is_creation = matches!(step.operation, Operation::CreateDevice(_));
        let of_peer = step.peer.is_some_and(|peer| self.applied.peers.contains(&peer));
        (of_device && !is_creation) || (of_peer && !is_removal)
    }

    fn queue(&mut self, step: &'s Step) {
        let Some(request) = request(&step.operation, self.indices) else {
            // Its device is gone since it was looked at.
            self.fail(step, lacking(&step.operation));
            return;
        };
        self.requests.push(request);
        self.waiting.push(step);
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let failures = self.netlink.apply_all(&self.requests)?;
        self.applied.operations += self.requests.len();
        let waiting = std::mem::take(&mut self.waiting);
        self.requests.clear();
        let mut misled = Vec::new();
        for error in failures {
            let step = error.index.and_then(|index| waiting.get(index).copied());
            match step {
                Some(step) if is_misled(&step.operation, &error) => misled.push(step),
                Some(step) if !is_as_wanted(&step.operation, &error) => self.fail(step, error),
                _ => {}
            }
        }
        if misled.is_empty() { Ok(()) } else { self.lead(&misled) }
    }

    /// An IPv6 route `via` a VTEP on a device is refused while another route, to a network that the VTEP's address is in,
    /// leads to another link; `onlink` makes a difference for IPv4 alone. That is so for the very route that is to be
    /// replaced when packets are no longer to travel directly. So for the moment in which the route is made the VTEP has
    /// a route of its own.
    fn lead(&mut self, misled: &[&'s Step]) -> Result<(), Error> {
        let mut requests = Vec::with_capacity(3 * misled.len());
        let mut steps = Vec::with_capacity(misled.len());
        for step in misled {
            let (Operation::AddRoute(peer) | Operation::ReplaceRoute(peer)) = &step.operation else {
                continue;
            };
            let Some(index) = device(&step.operation).and_then(|device| self.indices.get(&device)) else {
                continue;
            };
            let Some(request) = request(&step.operation, self.indices) else { continue };
            let vtep = Route {
                protocol: ROUTE_PROTOCOL,
                priority: Some(peer.metric),
                ..Route::new(peer.gateway.into(), vec![Nexthop { gateway: None, oif: Some(*index) }])
            };
            requests.extend([route::replace(&vtep), request, route::remove(&vtep)]);
            steps.push(*step);
        }
        for error in self.netlink.apply_all(&requests)? {
            let Some(index) = error.index else { continue };
            let step = steps.get(index / 3).copied();
            if let Some(step) = step.filter(|_| index % 3 == 1) {
                self.fail(step, error);
            }
        }
        Ok(())
    }

    fn fail(&mut self, step: &Step, error: Error) {
        self.applied.peers.extend(step.peer);
        if step.peer.is_none() && Kind::of(&step.operation) == Kind::Alone {
            self.applied.devices.extend(device(&step.operation));
        }
        let operation = step.operation.to_string();
        self.applied.failures.push(Failed { kind: kind(&step.operation), operation, error, peer: step.peer });
    }

    fn alone(&mut self, step: &Step) -> Result<(), Error> {
        self.applied.operations += 1;
        let result = match &step.operation {
            Operation::DeleteDevice { index, name } => {
                self.indices.retain(|_, known| known != index);
                missing_is_done(self.netlink.apply(&[link::delete(*index, name)]))
            }
            Operation::CreateDevice(device) => self.create(device),
            Operation::ChangeDevice { device, change } => match self.indices.get(device) {
                Some(index) => self.change(*index, device, change),
                None => Err(lacking(&step.operation)),
            },
            Operation::SetSysctl { name, value } => sysctl::write(name, value).map(drop),
            Operation::EnableForwarding(family) => sysctl::enable_forwarding(self.netlink, *family).map(drop),
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.fail(step, error);
        }
        Ok(())
    }

    fn create(&mut self, device: &Device) -> Result<(), Error> {
        let name = device.id.name();
        let alias = LinkChange { alias: Some(MARK.to_owned()), ..LinkChange::default() };
        let mut requests = vec![link::create_vxlan(name, device.mac, Some(device.mtu), &device.vxlan())];
        requests.extend(link::change(LinkRef::Name(name), &alias));
        let made = self.netlink.apply_then_link(&requests, LinkRef::Name(name))?;
        let index = made.ok_or_else(|| lacking(&Operation::CreateDevice(*device)))?.index;
        self.indices.insert(device.id, index);
        self.no_addresses(index)
    }

    fn no_addresses(&mut self, index: u32) -> Result<(), Error> {
        let change = LinkChange { addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() };
        match self.netlink.apply(&link::change(LinkRef::Index(index), &change)) {
            // A kernel without IPv6 makes no IPv6 addresses.
            Err(error) if !error.is_without_family() => Err(error),
            _ => Ok(()),
        }
    }

    fn change(&mut self, index: u32, device: &DeviceId, change: &DeviceChange) -> Result<(), Error> {
        let DeviceChange { settings, mac, mtu, mark, no_addresses, detach, up } = *change;
        if no_addresses {
            self.no_addresses(index)?;
        }
        let mut requests = Vec::new();
        if let Some(settings) = settings {
            requests.push(link::change_vxlan(LinkRef::Index(index), &settings));
        }
        let rest = LinkChange {
            mac,
            mtu,
            alias: mark.then(|| MARK.to_owned()),
            controller: detach.then_some(0),
            up: up.then_some(true),
            ..LinkChange::default()
        };
        requests.extend(link::change(LinkRef::Index(index), &rest));
        self.netlink.apply(&requests).map_err(|error| Error { object: device.name().to_owned(), ..error })
    }
}

/// The device that an operation is about.
fn device(operation: &Operation) -> Option<DeviceId> {
    let of = |via: &Via| match via {
        Via::Device(device) => Some(*device),
        Via::Link(_) => None,
    };
    match operation {
        Operation::CreateDevice(device) => Some(device.id),
        Operation::ChangeDevice { device, .. }
        | Operation::RemoveNeighbour { device, .. }
        | Operation::RemoveFdb { device, .. } => Some(*device),
        Operation::AddAddress { link, .. } | Operation::RemoveAddress { link, .. } => of(link),
        Operation::SetNeighbour(item) => Some(item.device),
        Operation::SetFdb(item) => Some(item.device),
        Operation::AddRoute(route) | Operation::ReplaceRoute(route) | Operation::RemoveRoute(route) => {
            of(&route.via)
        }
        Operation::DeleteDevice { .. } | Operation::SetSysctl { .. } | Operation::EnableForwarding(_) => None,
    }
}

/// The request of an operation that is one; `None` if its device is not there.
fn request(operation: &Operation, indices: &Indices) -> Option<Request<'static>> {
    let index = |via: Via| match via {
        Via::Device(device) => indices.get(&device).copied(),
        Via::Link(index) => Some(index),
    };
    let of = |device: &DeviceId| indices.get(device).copied();
    Some(match operation {
        Operation::AddAddress { link, address } => addr::add(index(*link)?, *address, true),
        Operation::RemoveAddress { link, address } => addr::remove(index(*link)?, *address),
        Operation::SetNeighbour(item) => neighbour::replace(of(&item.device)?, item.address, item.mac),
        Operation::SetFdb(item) => neighbour::replace_fdb(of(&item.device)?, item.mac, item.remote),
        Operation::AddRoute(peer) => route::add(&peer.route(index(peer.via)?)),
        Operation::ReplaceRoute(peer) => route::replace(&peer.route(index(peer.via)?)),
        Operation::RemoveRoute(peer) => route::remove(&peer.route(index(peer.via)?)),
        Operation::RemoveNeighbour { device, address } => neighbour::remove(of(device)?, *address),
        Operation::RemoveFdb { device, mac, remote } => neighbour::remove_fdb(of(device)?, *mac, *remote),
        _ => return None,
    })
}

/// Whether the kernel refused because all is as the operation wants it.
fn is_as_wanted(operation: &Operation, error: &Error) -> bool {
    match operation {
        Operation::AddAddress { .. } => error.is_exists(),
        Operation::RemoveAddress { .. }
        | Operation::RemoveRoute(_)
        | Operation::RemoveNeighbour { .. }
        | Operation::RemoveFdb { .. } => error.is_missing(),
        _ => false,
    }
}

/// Whether the kernel refused a route because others lead to its next hop by another link.
fn is_misled(operation: &Operation, error: &Error) -> bool {
    const EINVAL: i32 = 22;
    match operation {
        Operation::AddRoute(route) | Operation::ReplaceRoute(route) => {
            error.errno == EINVAL && route.gateway.is_ipv6() && matches!(route.via, Via::Device(_))
        }
        _ => false,
    }
}

fn missing_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        result => result,
    }
}

/// ENODEV: the device is gone, or has never come.
fn lacking(operation: &Operation) -> Error {
    const ENODEV: i32 = 19;
    let object = device(operation).map(|device| device.name().to_owned()).unwrap_or_default();
    Error { op: "find device", object, errno: ENODEV, detail: None, index: None }
}
