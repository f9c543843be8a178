//! The bridge that pods share, and the node's forwarding.

use ipnetwork::IpNetwork;
use podwire_kernel::link::{self, BridgeSpec, LinkChange, LinkRef};
use podwire_kernel::{Error, Family, Netlink, Request, addr, sysctl};

use super::observe::{bridge_of, forwarding_sysctl};
use super::{AttachError, Failure, ROUNDS};
use crate::plan::{Bridge, ObservedBridge, Step, bridge_steps};
use crate::step::step;

/// Makes a node's bridge what pods of a network need, whether or not there are any: it is there, has its gateways'
/// addresses, and is up. Says what was done; nothing where all was right.
///
/// # Errors
/// Its name or an address belongs to somebody else, the kernel refuses, or others keep changing it.
pub fn hold_bridge(host: &mut Netlink, wanted: &Bridge) -> Result<Vec<Step>, AttachError> {
    let mut done = Vec::new();
    for _ in 0..ROUNDS {
        let mut bridge = bridge_of(host, &wanted.name)?;
        let steps = bridge_steps(wanted, bridge.as_ref())?;
        let mut work = NodeWork { host: &mut *host, bridge: &mut bridge };
        let mut raced = false;
        for step in steps {
            match work.step(&step) {
                Ok(true) => done.push(step),
                Ok(false) => {}
                Err(failure) if failure.raced => {
                    raced = true;
                    break;
                }
                Err(failure) => return Err(failure.error),
            }
        }
        if !raced {
            return Ok(done);
        }
    }
    Err(AttachError::Unsettled(wanted.name.clone()))
}

/// Takes a bridge away unless it has ports. Says whether it did.
///
/// # Errors
/// The kernel refuses.
pub fn remove_unused_bridge(host: &mut Netlink, name: &str) -> Result<bool, Error> {
    match bridge_of(host, name)? {
        Some(bridge) if bridge.kind.as_deref() == Some("bridge") => remove_unless_used(host, &bridge, name),
        _ => Ok(false),
    }
}

fn remove_unless_used(host: &mut Netlink, bridge: &ObservedBridge, name: &str) -> Result<bool, Error> {
    if host.links()?.iter().any(|link| link.controller == Some(bridge.index)) {
        return Ok(false);
    }
    match host.apply(&[link::delete(bridge.index, name)]) {
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(true),
    }
}

/// Work on what all pods of a node share.
pub(super) struct NodeWork<'n> {
    pub(super) host: &'n mut Netlink,
    /// The bridge as it was last seen.
    pub(super) bridge: &'n mut Option<ObservedBridge>,
}

impl NodeWork<'_> {
    /// Carries out a step that [is about what pods share](Step::is_shared). `false`: another process has done it since
    /// we looked, so it is not ours to undo.
    pub(super) fn step(&mut self, planned: &Step) -> Result<bool, Failure> {
        match planned {
            Step::CreateBridge(bridge) => self.create_bridge(bridge)?,
            Step::RemoveBridge(name) => {
                if let Some(bridge) = &*self.bridge {
                    remove_unless_used(self.host, bridge, name)?;
                }
            }
            Step::SetBridgeUp(name, up) => {
                step("bridge-up");
                // Here, not where the bridge is made: an ADD may have been killed between.
                refuse_router_advertisements(name)?;
                skip_address_detection(name)?;
                self.change(name, &LinkChange { up: Some(*up), ..LinkChange::default() })?;
            }
            Step::SetBridgePromiscuous(name, on) => {
                self.change(name, &LinkChange { promisc: Some(*on), ..LinkChange::default() })?;
            }
            Step::FilterVlans(name, on) => {
                self.change(name, &LinkChange { vlan_filtering: Some(*on), ..LinkChange::default() })?;
            }
            Step::AddBridgeAddress(name, address) => {
                step("bridge-address");
                match self.add_bridge_address(name, *address) {
                    Err(Failure { error: AttachError::Kernel(error), .. }) if error.is_exists() => {
                        return Ok(false);
                    }
                    other => other?,
                }
            }
            Step::RemoveBridgeAddress(_, address) => {
                match self.on_bridge(|index| vec![addr::remove(index, *address)]) {
                    Err(Failure { error: AttachError::Kernel(error), .. }) if error.is_missing() => {}
                    other => other?,
                }
            }
            Step::SetForwarding(family, on) => {
                step("forwarding");
                self.set_forwarding(*family, *on)?;
            }
            // Of one pod alone.
            _ => {}
        }
        Ok(true)
    }

    fn create_bridge(&mut self, bridge: &Bridge) -> Result<(), Failure> {
        step("create-bridge");
        let spec = BridgeSpec {
            name: &bridge.name,
            mac: bridge.mac,
            mtu: bridge.mtu,
            mcast_snooping: None,
            mcast_querier: None,
            vlan_filtering: None,
        };
        if let Err(error) = self.host.apply(&[link::create_bridge(&spec)]) {
            // Made by another ADD since we looked. It is not ours to undo.
            let raced = error.is_exists();
            return Err(Failure { error: error.into(), raced });
        }
        *self.bridge = bridge_of(self.host, &bridge.name)?;
        Ok(())
    }

    fn change(&mut self, name: &str, change: &LinkChange) -> Result<(), Failure> {
        self.on_bridge(|_| link::change(LinkRef::Name(name), change))
    }

    fn on_bridge(&mut self, requests: impl FnOnce(u32) -> Vec<Request<'static>>) -> Result<(), Failure> {
        let index = self.bridge.as_ref().map_or(0, |bridge| bridge.index);
        self.host.apply(&requests(index)).map_err(|error| {
            let raced = error.is_missing();
            Failure { error: error.into(), raced }
        })
    }

    fn add_bridge_address(&mut self, name: &str, address: IpNetwork) -> Result<(), Failure> {
        let add = |index| vec![addr::add(index, address, true)];
        match self.on_bridge(add) {
            // IPv6 is off on this node by default, and the network asks for it here, as it does in the pod.
            Err(Failure { error: AttachError::Kernel(error), .. })
                if address.is_ipv6() && error.is_denied() =>
            {
                sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
                self.on_bridge(add)
            }
            other => other,
        }
    }

    fn set_forwarding(&mut self, family: Family, on: bool) -> Result<(), Failure> {
        if on {
            // Links that live by router advertisements are seen to first, or the node loses its default route.
            sysctl::enable_forwarding(self.host, family)?;
        } else {
            sysctl::write(forwarding_sysctl(family), "0")?;
        }
        Ok(())
    }
}

/// A bridge's link-local address is made of its own MAC address, which no other link has. While it is looked for all
/// the same, 1 to 2 s, the kernel sends no neighbour solicitation for what it forwards, and pods cannot be reached.
pub(super) fn skip_address_detection(bridge: &str) -> Result<(), Error> {
    switch_off(bridge, "accept_dad")
}

/// What a pod advertises must not configure the node.
pub(super) fn refuse_router_advertisements(link: &str) -> Result<(), Error> {
    switch_off(link, "accept_ra")
}

fn switch_off(link: &str, off: &str) -> Result<(), Error> {
    match sysctl::write(&format!("net/ipv6/conf/{link}/{off}"), "0") {
        // No IPv6 here, or another ADD took the bridge away: then there is nothing to switch off.
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}
