//! The part of a plan that is about devices, their settings and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address};
use podwire_kernel::link::{AddrGenMode, Link, Vxlan};

use super::operation::{DeviceChange, Operation, forwarding_sysctl};
use super::{Deletes, Observed, Plan, Step};
use crate::cluster::topology::{Problem, ProblemKind};
use crate::desired::{Desired, Device, DeviceId, MARK, Via};

/// What becomes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there and stays, with this index.
    Kept {
        /// Its index.
        index: u32,
        /// Its neighbours do not outlive the plan's changes.
        loses_neighbours: bool,
        /// It sends from another address than before. Each of its forwarding entries goes on to use the old one for as long
        /// as the kernel has a way to the machine cached with it.
        sends_anew: bool,
    },
    /// It is made, and has nothing yet; in the place of one with this index, which takes all it has with it.
    Made(Option<u32>),
    /// It cannot be made.
    Barred,
    /// It is left alone for now, with this index, and all it has.
    Retained(u32),
    /// It goes, and all it has with it.
    Going(u32),
}

impl Fate {
    /// The index of the link that there is now.
    pub(super) fn index(self) -> Option<u32> {
        match self {
            Self::Kept { index, .. } | Self::Retained(index) | Self::Going(index) => Some(index),
            Self::Made(index) => index,
            Self::Barred => None,
        }
    }
}

pub(super) type Devices = BTreeMap<DeviceId, Fate>;

/// Adds what makes and changes devices to the plan. Comes back with what becomes of each, and with the steps that take
/// away what is not wanted any more, which come last.
pub(super) fn plan(
    desired: &Desired,
    observed: &Observed,
    deletes: Deletes,
    plan: &mut Plan,
) -> (Devices, Vec<Step>) {
    let mut devices = Devices::new();
    let mut farewell = Plan::default();
    for device in &desired.devices {
        let fate = one(device, desired, observed, plan);
        if fate == Fate::Barred {
            plan.barred.push(device.id);
        }
        devices.insert(device.id, fate);
    }
    for link in &observed.links {
        let Some(id) = desired.naming.of(link) else { continue };
        // One that makes way for another is gone by then.
        if devices.contains_key(&id) || devices.values().any(|fate| *fate == Fate::Made(Some(link.index))) {
            continue;
        }
        if desired.retained.contains(&id) || deletes == Deletes::Withheld {
            devices.insert(id, Fate::Retained(link.index));
        } else {
            devices.insert(id, Fate::Going(link.index));
            farewell.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
        }
    }
    for family in &desired.forwarding {
        if observed.sysctls.get(forwarding_sysctl(*family)).is_none_or(|value| value != "1") {
            plan.push(Operation::EnableForwarding(*family));
        }
    }
    let mut removals = Plan::default();
    for device in &desired.devices {
        let index = match devices.get(&device.id) {
            Some(Fate::Kept { index, .. }) => Some(*index),
            Some(Fate::Made(_)) => None,
            _ => continue,
        };
        let wanted = &desired.addresses;
        addresses(Via::Device(device.id), index, wanted, desired, observed, plan, &mut removals);
    }
    bridge(desired, observed, plan, &mut removals);
    if deletes == Deletes::Allowed {
        removals.steps.append(&mut farewell.steps);
        farewell = removals;
    }
    (devices, farewell.steps)
}

fn one(device: &Device, desired: &Desired, observed: &Observed, plan: &mut Plan) -> Fate {
    let name = device.id.name();
    let found = observed.links.iter().find(|link| link.name == name);
    if let Some(link) = found.filter(|link| link.vxlan.is_none()) {
        let kind = link.kind.as_deref().unwrap_or("hardware");
        plan.problems.push(Problem::here(
            ProblemKind::Device,
            format!("link {name} is not podwire's ({kind}) and stands in the way of its VXLAN device: rename or remove it"),
        ));
        return Fate::Barred;
    }
    let compatible = found.and_then(|link| {
        let vxlan = link.vxlan.filter(|vxlan| can_become(vxlan, &device.vxlan_of(vxlan)))?;
        Some((link, vxlan))
    });
    let fresh = compatible.is_none();
    let sysctls = |plan: &mut Plan| {
        let own = format!("/conf/{name}/");
        for (key, value) in desired.sysctls.iter().filter(|(key, _)| key.contains(&own)) {
            let wrong = observed.sysctls.get(key).is_some_and(|now| now != value);
            if fresh || wrong {
                plan.push(Operation::SetSysctl { name: key.clone(), value: value.clone() });
            }
        }
    };
    if let Some((link, vxlan)) = compatible {
        sysctls(plan);
        let change = change(device, link, &vxlan);
        if change != DeviceChange::default() {
            plan.push(Operation::ChangeDevice { device: device.id, change });
        }
        let sends_anew = change.settings.is_some_and(|wanted| wanted.local != vxlan.local);
        return Fate::Kept { index: link.index, loses_neighbours: change.mac.is_some(), sends_anew };
    }
    let wanted = device.vxlan();
    let rival = observed.links.iter().find(|link| {
        link.vxlan.as_ref().is_some_and(|other| {
            (other.vni, other.port) == (wanted.vni, wanted.port)
                && !other.external
                && other.local.or(other.remote).is_none_or(|other| other.is_ipv4() == device.local.is_ipv4())
                && link.name != name
        })
    });
    // Ours that somebody has given another name.
    let renamed = rival.filter(|rival| rival.alias.as_deref() == Some(MARK));
    if let Some(rival) = rival.filter(|_| renamed.is_none()) {
        plan.problems.push(Problem::here(
            ProblemKind::Device,
            format!(
                "VXLAN device {} has VNI {} and port {} already, and the kernel has no two such: {}",
                rival.name,
                wanted.vni,
                wanted.port,
                advice(&rival.name)
            ),
        ));
        return Fate::Barred;
    }
    for link in found.into_iter().chain(renamed) {
        plan.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
    }
    plan.push(Operation::CreateDevice(*device));
    sysctls(plan);
    let change = DeviceChange { up: true, ..DeviceChange::default() };
    plan.push(Operation::ChangeDevice { device: device.id, change });
    Fate::Made(found.or(renamed).map(|link| link.index))
}

/// What to do about a device that is in the place of ours.
fn advice(name: &str) -> &'static str {
    match name.starts_with("flannel.") || name.starts_with("flannel-v6.") {
        true => "`podwirectl migrate flannel` takes it over with the pods that run",
        false => "remove it, or change the cluster's encapsulation",
    }
}

/// Whether the rest can be changed in place: of a device's settings the kernel changes source address (within its
/// family), learning, TTL and DF, and refuses VNI, port, checksums and the kind of operation.
fn can_become(now: &Vxlan, wanted: &Vxlan) -> bool {
    let changeable =
        Vxlan { local: wanted.local, learning: wanted.learning, ttl: wanted.ttl, df: wanted.df, ..*now };
    let same_family = now.local.map(|local| local.is_ipv4()) == wanted.local.map(|local| local.is_ipv4());
    same_family && changeable == *wanted
}

fn change(device: &Device, link: &Link, vxlan: &Vxlan) -> DeviceChange {
    let wanted = device.vxlan_of(vxlan);
    DeviceChange {
        settings: Some(wanted).filter(|wanted| wanted != vxlan),
        mac: Some(device.mac).filter(|mac| Some(*mac) != link.mac),
        mtu: Some(device.mtu).filter(|mtu| *mtu != link.mtu),
        mark: link.alias.as_deref() != Some(MARK),
        no_addresses: link.addr_gen_mode.is_some_and(|mode| mode != AddrGenMode::None),
        detach: link.controller.is_some(),
        up: !link.flags.up,
    }
}

/// `index`: the link's; `None` if it is about to be made.
fn addresses(
    link: Via,
    index: Option<u32>,
    wanted: &[IpNetwork],
    desired: &Desired,
    observed: &Observed,
    plan: &mut Plan,
    removals: &mut Plan,
) {
    let there = || observed.addresses.iter().filter(|address| Some(address.ifindex) == index);
    for address in wanted {
        if !there().any(|there| there.address == *address) {
            plan.push(Operation::AddAddress { link, address: *address });
        }
    }
    let goes = |address: &&Address| match link {
        Via::Device(_) => is_ours(address) || in_range(address, desired),
        // The bridge may be shared with networks that have ranges of their own.
        Via::Link(_) => (is_ours(address) || address.protocol == 0) && in_range(address, desired),
    };
    for address in there().filter(goes).filter(|address| !wanted.contains(&address.address)) {
        removals.push(Operation::RemoveAddress { link, address: address.address });
    }
}

fn is_ours(address: &Address) -> bool {
    address.protocol == addr::PROTOCOL
}

/// Before Linux 5.18 addresses have no protocol; those within the pods' ranges are ours all the same.
fn in_range(address: &Address, desired: &Desired) -> bool {
    desired.cluster_ranges.iter().any(|range| range.contains(address.address.ip()))
}

fn bridge(desired: &Desired, observed: &Observed, plan: &mut Plan, removals: &mut Plan) {
    let Some(bridge) = &desired.bridge else { return };
    // The first pod makes it, with these addresses.
    let Some(link) = observed.links.iter().find(|link| link.name == bridge.name && link.bridge.is_some())
    else {
        return;
    };
    let via = Via::Link(link.index);
    addresses(via, Some(link.index), &bridge.addresses, desired, observed, plan, removals);
    let foreign = observed.addresses.iter().filter(|address| {
        address.ifindex == link.index
            && !is_ours(address)
            && !in_range(address, desired)
            && !bridge.addresses.contains(&address.address)
            && !is_link_local(address.address.ip())
    });
    for address in foreign {
        plan.problems.push(Problem::here(
            ProblemKind::Bridge,
            format!(
                "bridge {} has the address {}, which is not podwire's: another network plugin's configuration may use this \
                 bridge; remove one of them",
                bridge.name, address.address
            ),
        ));
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
