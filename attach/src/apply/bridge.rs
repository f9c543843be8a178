//! The bridge that pods share, and the node's forwarding.

use ipnetwork::IpNetwork;
use podwire_kernel::link::{self, BridgeSpec};
use podwire_kernel::{Error, Family, Request, addr, sysctl};

use super::observe::{bridge_of, forwarding_sysctl};
use super::{AttachError, Failure, Work};
use crate::plan::Bridge;
use crate::step::step;

impl Work<'_, '_> {
    pub(super) fn create_bridge(&mut self, bridge: &Bridge) -> Result<(), Failure> {
        step("create-bridge");
        let spec = BridgeSpec {
            name: &bridge.name,
            mac: bridge.mac,
            mtu: bridge.mtu,
            mcast_snooping: None,
            mcast_querier: None,
            vlan_filtering: None,
        };
        if let Err(error) = self.places.host.apply(&[link::create_bridge(&spec)]) {
            // Made by another ADD since we looked. It is not ours to undo.
            let raced = error.is_exists();
            self.done.pop();
            return Err(Failure { error: error.into(), raced });
        }
        self.bridge = bridge_of(self.places.host, &bridge.name)?;
        Ok(())
    }

    pub(super) fn on_bridge(
        &mut self,
        requests: impl FnOnce(u32) -> Vec<Request<'static>>,
    ) -> Result<(), Failure> {
        let index = self.bridge.as_ref().map_or(0, |bridge| bridge.index);
        self.places.host.apply(&requests(index)).map_err(|error| {
            let raced = error.is_missing();
            Failure { error: error.into(), raced }
        })
    }

    pub(super) fn add_bridge_address(&mut self, name: &str, address: IpNetwork) -> Result<(), Failure> {
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

    pub(super) fn set_forwarding(&mut self, family: Family, on: bool) -> Result<(), Failure> {
        if on {
            // Links that live by router advertisements are seen to first, or the node loses its default route.
            sysctl::enable_forwarding(self.places.host, family)?;
        } else {
            sysctl::write(forwarding_sysctl(family), "0")?;
        }
        Ok(())
    }

    pub(super) fn remove_bridge(&mut self, name: &str) -> Result<(), Failure> {
        let Some(bridge) = &self.bridge else { return Ok(()) };
        let in_use = self.places.host.links()?.iter().any(|link| link.controller == Some(bridge.index));
        if !in_use {
            match self.places.host.apply(&[link::delete(bridge.index, name)]) {
                Err(error) if !error.is_missing() => return Err(error.into()),
                _ => {}
            }
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
