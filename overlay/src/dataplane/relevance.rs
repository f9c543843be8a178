//! Which of the kernel's events are a reason to look. PURE.
//!
//! Most events are about what is not ours, or tell what the thread itself has just done. The kernel names who asked for
//! a change for routes, neighbours and IPv4 addresses; for the rest, an event that tells of something as it is desired, or
//! of the absence of something that is not, is no reason.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address};
use podwire_kernel::events::{Caused, Event};
use podwire_kernel::link::Link;
use podwire_kernel::neighbour::{FdbEntry, Neighbour, State};
use podwire_kernel::netconf::{Netconf, Scope};
use podwire_kernel::route::{MAIN_TABLE, ROUTE_PROTOCOL, Route};
use podwire_kernel::{Family, MacAddr};

use super::Settings;
use super::apply::Indices;
use crate::controller::Cause;
use crate::desired::{Desired, Device, MARK, UnderlayFacts};
use crate::plan::{Operation, Step};

/// What is ours.
pub(super) struct Ours<'a> {
    pub(super) settings: &'a Settings,
    pub(super) underlay: &'a UnderlayFacts,
    pub(super) desired: Option<&'a Desired>,
    pub(super) indices: &'a Indices,
    /// The bridge's index, once it is known.
    pub(super) bridge: Option<u32>,
    /// The thread's own netlink port.
    pub(super) port: Option<NonZeroU32>,
    /// This node's addresses by the store's word.
    pub(super) stated: &'a [IpAddr],
    /// The neighbours and forwarding entries that are desired.
    pub(super) entries: &'a Entries,
}

/// Neighbours and forwarding entries by what the kernel tells them apart by.
#[derive(Debug, Default)]
pub(super) struct Entries {
    neighbours: HashMap<(u32, IpAddr), MacAddr>,
    fdb: HashMap<(u32, MacAddr), IpAddr>,
}

impl Entries {
    pub(super) fn new(desired: &Desired, indices: &Indices) -> Self {
        let mut entries = Self::default();
        entries.neighbours.reserve(desired.paths.len());
        entries.fdb.reserve(desired.paths.len());
        for path in &desired.paths {
            for item in path.neighbours() {
                if let Some(index) = indices.get(&item.device) {
                    entries.neighbours.insert((*index, item.address), item.mac);
                }
            }
            for item in path.fdb() {
                if let Some(index) = indices.get(&item.device) {
                    entries.fdb.insert((*index, item.mac), item.remote);
                }
            }
        }
        entries
    }

    /// Brings them up to date with what was carried out so that the kernel has other entries.
    pub(super) fn follow(&mut self, steps: &[Step], indices: &Indices) {
        for step in steps {
            match &step.operation {
                Operation::SetNeighbour(item) => {
                    if let Some(index) = indices.get(&item.device) {
                        self.neighbours.insert((*index, item.address), item.mac);
                    }
                }
                Operation::RemoveNeighbour { device, address } => {
                    if let Some(index) = indices.get(device) {
                        self.neighbours.remove(&(*index, *address));
                    }
                }
                Operation::SetFdb(item) => {
                    if let Some(index) = indices.get(&item.device) {
                        self.fdb.insert((*index, item.mac), item.remote);
                    }
                }
                Operation::RemoveFdb { device, mac, .. } => {
                    if let Some(index) = indices.get(device) {
                        self.fdb.remove(&(*index, *mac));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether [`cause`] looks at [`Ours::entries`] for this event: who keeps them need not do so before.
pub(super) fn needs_entries(event: &Event) -> bool {
    matches!(event, Event::Neighbour(_) | Event::NeighbourRemoved(_) | Event::Fdb(_) | Event::FdbRemoved(_))
}

/// Why this event is a reason to look; `None` if it is none.
pub(super) fn cause(caused: &Caused, ours: &Ours<'_>) -> Option<Cause> {
    if caused.port.is_some() && caused.port == ours.port {
        return None;
    }
    match &caused.event {
        Event::Overrun => Some(Cause::Overrun),
        Event::Link(link) => ours.link(link),
        Event::LinkRemoved { index, name } => ours.link_removed(*index, name),
        Event::Address(address) => ours.address(address),
        Event::AddressRemoved(address) => ours.address_removed(address),
        Event::Route(route) => ours.route(route, false),
        Event::RouteRemoved(route) => ours.route(route, true),
        Event::Neighbour(neighbour) => ours.neighbour(neighbour),
        Event::NeighbourRemoved(neighbour) => {
            let key = (neighbour.ifindex, neighbour.address);
            ours.entries.neighbours.contains_key(&key).then_some(Cause::Neighbour)
        }
        Event::Netconf(netconf) => ours.netconf(netconf),
        Event::Fdb(entry) => ours.fdb(entry),
        Event::FdbRemoved(entry) => {
            let wanted = ours.entries.fdb.get(&(entry.ifindex, entry.mac));
            wanted.is_some_and(|remote| entry.destination == Some(*remote)).then_some(Cause::Fdb)
        }
    }
}

impl Ours<'_> {
    fn is_device(&self, index: u32) -> bool {
        self.indices.values().any(|known| *known == index)
    }

    /// Packets are passed on no longer, or our devices refuse what they should take.
    fn netconf(&self, netconf: &Netconf) -> Option<Cause> {
        let desired = self.desired?;
        let is_wrong = match netconf.scope {
            Scope::All => netconf.forwarding == Some(false) && desired.forwarding.contains(&netconf.family),
            // As in `Desired::sysctls`. A link that has just come tells all its settings, and is about to get ours.
            Scope::Link(index) => {
                let is_strict = netconf.rp_filter.is_some_and(|mode| mode != 2);
                is_strict && netconf.forwarding.is_none() && self.is_device(index)
            }
            Scope::Default => false,
        };
        is_wrong.then_some(Cause::Sysctl)
    }

    fn is_underlay(&self, index: u32) -> bool {
        self.underlay.links.iter().any(|link| link.index == index)
    }

    fn lacks_underlay(&self) -> bool {
        [Family::V4, Family::V6].iter().any(|family| self.underlay.link(*family).is_none())
    }

    fn link(&self, link: &Link) -> Option<Cause> {
        if let Some(id) = self.settings.naming.parse(&link.name) {
            let device = self.desired?.devices.iter().find(|device| device.id == id)?;
            return (!is_as_desired(link, device)).then_some(Cause::Link);
        }
        // One of ours that has another name now.
        if self.is_device(link.index) {
            return Some(Cause::Link);
        }
        if self.settings.bridge.as_deref() == Some(link.name.as_str()) {
            let mtu = self.desired.and_then(|desired| desired.pods.mtu);
            let is_right = link.bridge.is_some()
                && link.flags.up
                && mtu.is_none_or(|mtu| mtu == link.mtu)
                && self.bridge == Some(link.index);
            return (!is_right && self.desired.is_some()).then_some(Cause::Link);
        }
        let known = self.underlay.links.iter().find(|known| known.index == link.index);
        let is_new = match known {
            Some(known) => known.mtu != link.mtu || known.name != link.name || !link.flags.up,
            None => link.flags.up && self.settings.interface.as_deref() == Some(link.name.as_str()),
        };
        is_new.then_some(Cause::Underlay)
    }

    fn link_removed(&self, index: u32, name: &str) -> Option<Cause> {
        if self.is_underlay(index) {
            return Some(Cause::Underlay);
        }
        let is_bridge = self.settings.bridge.as_deref() == Some(name);
        (is_bridge || self.is_device(index) || self.settings.naming.parse(name).is_some())
            .then_some(Cause::Link)
    }

    /// The addresses of ours that the link should have.
    fn desired_addresses(&self, index: u32) -> Option<&[IpNetwork]> {
        let desired = self.desired?;
        if self.is_device(index) {
            return Some(&desired.addresses);
        }
        let is_bridge = self.bridge == Some(index);
        desired.bridge.as_ref().filter(|_| is_bridge).map(|bridge| bridge.addresses.as_slice())
    }

    fn address(&self, address: &Address) -> Option<Cause> {
        if let Some(desired) = self.desired_addresses(address.ifindex) {
            let is_foreign = address.protocol == addr::PROTOCOL && !desired.contains(&address.address);
            return is_foreign.then_some(Cause::Address);
        }
        let ip = address.address.ip();
        let known = self.underlay.links.iter().any(|link| {
            link.index == address.ifindex
                && link.address == ip
                && IpNetwork::new(address.address.network(), address.address.prefix())
                    .is_ok_and(|network| link.networks.contains(&network) || is_single(network))
        });
        let matters = self.is_underlay(address.ifindex)
            || self.settings.addresses.contains(&ip)
            || self.stated.contains(&ip)
            || self.lacks_underlay();
        (matters && !known && address.scope < 253).then_some(Cause::Underlay)
    }

    fn address_removed(&self, address: &Address) -> Option<Cause> {
        if let Some(desired) = self.desired_addresses(address.ifindex) {
            return desired.contains(&address.address).then_some(Cause::Address);
        }
        (self.is_underlay(address.ifindex) && address.scope < 253).then_some(Cause::Underlay)
    }

    fn route(&self, route: &Route, removed: bool) -> Option<Cause> {
        if route.table != MAIN_TABLE {
            return None;
        }
        if route.destination.prefix() == 0 {
            return self.settings.interface.is_none().then_some(Cause::Underlay);
        }
        let desired = self.desired?;
        if route.protocol == ROUTE_PROTOCOL {
            // One that goes and is not desired went with something of ours, or we removed it.
            let is_desired = || {
                let network = route.destination.network();
                desired.cluster_ranges.iter().any(|range| range.contains(network))
            };
            return (!removed || is_desired()).then_some(Cause::Route);
        }
        // A connected route comes with its address.
        const PROTOCOL_KERNEL: u8 = 2;
        let network = route.destination.network();
        let in_range = desired.cluster_ranges.iter().any(|range| range.contains(network));
        (in_range && route.protocol != PROTOCOL_KERNEL).then_some(Cause::Route)
    }

    fn neighbour(&self, neighbour: &Neighbour) -> Option<Cause> {
        if !self.is_device(neighbour.ifindex) {
            return None;
        }
        let is_permanent = neighbour.state == State::Permanent;
        let is_right = match self.entries.neighbours.get(&(neighbour.ifindex, neighbour.address)) {
            Some(mac) => is_permanent && neighbour.mac == Some(*mac),
            None => !is_permanent,
        };
        (!is_right).then_some(Cause::Neighbour)
    }

    fn fdb(&self, entry: &FdbEntry) -> Option<Cause> {
        if !self.is_device(entry.ifindex) {
            return None;
        }
        let wanted = self.entries.fdb.get(&(entry.ifindex, entry.mac));
        let is_right =
            wanted.is_some_and(|remote| *entry == FdbEntry::permanent(entry.ifindex, entry.mac, *remote));
        (!is_right).then_some(Cause::Fdb)
    }
}

fn is_single(network: IpNetwork) -> bool {
    network.prefix() == if network.is_ipv4() { 32 } else { 128 }
}

fn is_as_desired(link: &Link, device: &Device) -> bool {
    link.flags.up
        && link.mac == Some(device.mac)
        && link.mtu == device.mtu
        && link.vxlan.is_some_and(|vxlan| vxlan == device.vxlan_of(&vxlan))
        && link.alias.as_deref() == Some(MARK)
        && link.controller.is_none()
}
