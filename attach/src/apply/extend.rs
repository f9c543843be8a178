//! Additions to an interface that another plugin of the chain made: no bridge, no veth, nothing of its own to give.

use ipnetwork::IpNetwork;
use podwire_kernel::link::{BridgePort, Link, LinkRef};
use podwire_kernel::{Error, MacAddr, Netlink, Netns};

use super::additions::{Additions, HostEndAt};
use super::observe::tuning_of;
use super::{AttachError, Places};
use crate::drift::{Drift, port_drift, shaping_drift};
use crate::plan::{Port, Step, additions};
use crate::shaping::{self, observe_shaping};
use crate::step::step;
use crate::tuning::tuning_drift;
use crate::{Attachment, OwnerId, Traffic, Tuning, conntrack};

/// A pod's interface that another plugin made, and its other end on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The interface's index in the pod's netns.
    pub pod_index: u32,
    /// Its MAC address, if it has one.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses, link-local ones included.
    pub addresses: Vec<IpNetwork>,
    /// The name of its other end on the node: [`Traffic::host_end`].
    pub host_end: String,
    /// That end's index.
    pub host_index: u32,
    /// That end's MTU in bytes.
    pub host_mtu: u32,
    /// What packets to the pod leave the node by: the bridge that the other end is a port of, else that end itself:
    /// [`Traffic::device`].
    pub device: String,
    /// The other end's settings as a bridge's port; `None` if it is none.
    pub port: Option<BridgePort>,
}

/// Everything that is to be added to an interface.
#[derive(Debug, Clone, Copy)]
pub struct Extension<'a> {
    /// The attachment of the chained role; its traffic names `given`'s links.
    pub attachment: &'a Attachment,
    /// The interface.
    pub given: &'a Given,
    /// What is tuned.
    pub tuning: &'a Tuning,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extended {
    /// What the tuned settings were: the tuning that restores them.
    pub before: Tuning,
    /// What an administrator should know, such as foreign rules that drop the pod's packets.
    pub notices: Vec<String>,
}

/// Looks at an interface of a pod. `None`: there is none of that name, or its other end is not on this node (macvlan,
/// a physical device).
///
/// # Errors
/// When the kernel does not answer.
pub fn observe_given(host: &mut Netlink, inside: &mut Netlink, ifname: &str) -> Result<Option<Given>, Error> {
    let Some(pod) = inside.link(LinkRef::Name(ifname))? else { return Ok(None) };
    if pod.kind.as_deref() != Some("veth") {
        return Ok(None);
    }
    let Some(peer) = pod.peer_index else { return Ok(None) };
    let Some(other) = host.link(LinkRef::Index(peer))? else { return Ok(None) };
    // Indexes are per netns: a link of that number on the node may be anything.
    if other.kind.as_deref() != Some("veth") || other.peer_index != Some(pod.index) {
        return Ok(None);
    }
    // A veth may have the same numbers and lead elsewhere: then what it sees over there is not this interface.
    let Some(nsid) = other.peer_nsid else { return Ok(None) };
    let seen = host.peer_link(nsid, LinkRef::Index(pod.index))?;
    if !seen.is_some_and(|seen| seen.mac == pod.mac && seen.name == ifname) {
        return Ok(None);
    }
    let bridge = |link: &Link| link.kind.as_deref() == Some("bridge");
    let controller = match other.controller {
        Some(index) => host.link(LinkRef::Index(index))?.filter(bridge),
        None => None,
    };
    let addresses = inside.addresses(Some(pod.index))?;
    Ok(Some(Given {
        pod_index: pod.index,
        mac: pod.mac,
        mtu: pod.mtu,
        addresses: addresses.iter().map(|address| address.address).collect(),
        device: controller.map_or_else(|| other.name.clone(), |bridge| bridge.name),
        port: other.port,
        host_index: other.index,
        host_mtu: other.mtu,
        host_end: other.name,
    }))
}

/// Adds to an interface. Done already is fine: what is there is made as it should be.
///
/// # Errors
/// See [`AttachError`]. What was done before the failure has been undone, the failed step too.
pub fn extend(places: &mut Places<'_>, extension: &Extension<'_>) -> Result<Extended, AttachError> {
    let Extension { attachment, given, tuning } = *extension;
    let mut work = Additions::new(attachment, tuning, Some(&given.host_end));
    work.host_end = HostEndAt { index: given.host_index, mtu: given.host_mtu };
    let mut done: Vec<Step> = Vec::new();
    for planned in steps(extension) {
        done.push(planned.clone());
        if let Err(error) = work.step(places, &planned) {
            let mut failures = Vec::new();
            for undo in done.iter().rev().filter_map(Step::undo) {
                step("undo");
                if let Err(error) = work.step(places, &undo) {
                    failures.push(format!("{undo}: {error}"));
                }
            }
            return Err(match failures.is_empty() {
                true => error,
                false => AttachError::NotUndone { error: Box::new(error), undo: failures },
            });
        }
    }
    Ok(Extended { before: work.before, notices: work.notices })
}

/// Only what is switched on is touched: who made the port may have switched on the rest.
fn steps(extension: &Extension<'_>) -> Vec<Step> {
    let Extension { attachment, given, tuning } = *extension;
    let mut steps = Vec::new();
    let wanted = wanted_port(attachment);
    if let Some(port) = &given.port {
        let hairpin = (wanted.hairpin && !port.hairpin).then_some(true);
        let isolated = (wanted.isolated && !port.isolated).then_some(true);
        if hairpin.is_some() || isolated.is_some() {
            steps.push(Step::SetPort { name: given.host_end.clone(), hairpin, isolated });
        }
    }
    steps.extend(additions(attachment, tuning));
    steps
}

fn wanted_port(attachment: &Attachment) -> Port {
    Port::default().with_traffic(attachment.traffic.as_ref())
}

/// What of the additions is not as it should be, but for the rules, which [`crate::rules::check`] knows.
///
/// # Errors
/// When the kernel does not answer.
pub fn extension_drift(
    host: &mut Netlink,
    pod: &Netns,
    extension: &Extension<'_>,
) -> Result<Vec<Drift>, Error> {
    let Extension { attachment, given, tuning } = *extension;
    let mut found = Vec::new();
    if let Some(port) = &given.port {
        let wanted = wanted_port(attachment);
        // What is on and need not be is the other plugin's business.
        let hairpin = wanted.hairpin.then_some(port.hairpin);
        let isolated = wanted.isolated.then_some(port.isolated);
        port_drift(&given.host_end, wanted, hairpin, isolated, &mut found);
    }
    if let Some(traffic) = attachment.traffic.as_ref().filter(|traffic| traffic.is_shaped()) {
        let observed = observe_shaping(host, attachment.owner.id(), given.host_index)?;
        found.extend(shaping_drift(&given.host_end, given.host_mtu, &traffic.shaping, &observed));
    }
    if !tuning.is_empty() {
        let observed = tuning_of(pod, &attachment.owner.ifname, tuning)?;
        found.extend(tuning_drift(tuning, &observed, &attachment.owner.ifname));
    }
    Ok(found)
}

/// Takes away the limits of a chained attachment and the connections to its host ports; its rules are to be removed
/// before, by [`crate::rules::remove`]. Needs nothing but the owner; nothing there is success.
///
/// # Errors
/// The kernel's.
pub fn withdraw(host: &mut Netlink, owner: OwnerId, known: Option<&Attachment>) -> Result<(), Error> {
    if let Some(attachment) = known {
        conntrack::flush_of(attachment)?;
    }
    let traffic = known.and_then(|attachment| attachment.traffic.as_ref());
    if traffic.is_some_and(|traffic| !traffic.is_shaped()) {
        return Ok(());
    }
    let host_end = traffic.map(|Traffic { host_end, .. }| host_end.as_str()).filter(|name| !name.is_empty());
    shaping::unshape(host, owner, host_end)
}
