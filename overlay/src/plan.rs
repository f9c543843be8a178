//! What must be done so that the kernel becomes as desired, in which order. PURE.
//!
//! [`plan`] compares with what the kernel has, [`delta()`] with what was desired before: the first is the truth, the
//! second is fast. All choices are made here; carrying a plan out makes none.
//!
//! Order: devices, settings, addresses; then neighbours and forwarding entries of all peers; then routes; then what is
//! to go, in reverse. So no route comes before what it needs, and nothing goes before its successor is there. A step that
//! fails bars the later ones of its peer ([`Step::peer`]) and those of a device that was not made: a route whose neighbour is
//! missing would be a black hole.
//!
//! Ours are: the devices of our names and mark with all that they have, routes of our protocol number, addresses that have
//! it too or lie within the cluster's ranges on our devices and bridge. Nothing else is changed. Of another's routes by our
//! devices those that stand in our routes' place are replaced: a device that has just been adopted comes with them. The
//! others stay for whoever had them made to take away.

mod delta;
mod devices;
mod operation;
mod peers;

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_kernel::addr::Address;
use podwire_kernel::link::Link;
use podwire_kernel::neighbour::{FdbEntry, Neighbour};
use podwire_kernel::route::Route;

pub use delta::delta;
pub use operation::{DeviceChange, Operation, forwarding_sysctl};

use crate::cluster::topology::Problem;
use crate::desired::{Desired, DeviceId, Naming};

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All links' addresses, or those of our devices and of the pods' bridge at least.
    pub addresses: Vec<Address>,
    /// The main table's routes of both families: all that have our protocol number, and of others those at least that
    /// lead into the cluster's ranges.
    pub routes: Vec<Route>,
    /// The neighbours on our devices.
    pub neighbours: Vec<Neighbour>,
    /// The forwarding entries of our devices.
    pub fdb: Vec<FdbEntry>,
    /// The values of [`Desired::sysctls`] and of [`forwarding_sysctl`], by name. One that cannot be read is missing,
    /// and left alone unless its device is made.
    pub sysctls: BTreeMap<String, String>,
}

impl Observed {
    /// Our devices that there are, for [`Local::held`](crate::desired::Local::held).
    pub fn held(&self, naming: &Naming) -> Vec<DeviceId> {
        self.links.iter().filter_map(|link| naming.of(link)).collect()
    }
}

/// Whether things may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletes {
    /// What is desired comes from the store itself: what is not among it is to go.
    Allowed,
    /// It is what was remembered: what is not among it may be newer.
    Withheld,
}

/// What to do, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// What the set of senders gains and loses; of a [`delta()`] alone.
    pub senders: SendersChange,
    /// What stands in the way on this node; of a [`plan`] alone.
    pub problems: Vec<Problem>,
    /// Devices that cannot be made, because another's is in their place; of a [`plan`] alone.
    pub barred: Vec<DeviceId>,
    /// More changed than a [`delta()`] can tell: look, and [`plan`].
    pub needs_look: bool,
}

/// A change of the set of addresses that encapsulated packets may come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SendersChange {
    /// New ones.
    pub add: Vec<IpAddr>,
    /// Those that no peer has any more.
    pub remove: Vec<IpAddr>,
}

/// An operation and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub operation: Operation,
    /// For which peer, as its place in [`Desired::paths`]. Once a step of a peer has failed its later ones are left out.
    pub peer: Option<u32>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.senders == SendersChange::default() && !self.needs_look
    }

    fn push(&mut self, operation: Operation) {
        self.steps.push(Step { operation, peer: None });
    }
}

/// What must be done so that a kernel that has this becomes as desired.
pub fn plan(desired: &Desired, observed: &Observed, deletes: Deletes) -> Plan {
    let mut plan = Plan::default();
    let (devices, farewell) = devices::plan(desired, observed, deletes, &mut plan);
    peers::plan(desired, observed, deletes, &devices, &mut plan);
    plan.steps.extend(farewell);
    plan.problems.sort();
    plan
}

#[cfg(test)]
mod tests;
