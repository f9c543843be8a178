//! The veth, and the pod's interface at its end.

use std::os::fd::AsFd;
use std::time::Duration;

use podwire_kernel::addr;
use podwire_kernel::link::{self, AddrGenMode, LinkChange, LinkRef, VethSpec};
use podwire_kernel::route::{self, Nexthop, Route};
use podwire_kernel::vlan::{self, Tagging};
use podwire_kernel::{Error, sysctl};

use super::bridge::refuse_router_advertisements;
use super::{AttachError, Failure, MadePod, Work};
use crate::plan::{PodRoute, VlanMembership, host_mac};
use crate::step::step;

impl Work<'_, '_> {
    /// One send: the pair, with the pod's end born in the pod's netns under its final name; then what the
    /// creating message does not take; then up. No IPv6 address on the host's end: its duplicate address
    /// detection and multicast reports flood every pod of the bridge (500 pods: 0.9 → 3.9 ms for an ADD).
    pub(super) fn create_veth(&mut self, name: &str, alias: &str) -> Result<(), Failure> {
        step("create-veth");
        let owner = &self.wanted.attachment.owner;
        let port = self.wanted.port();
        let spec = VethSpec {
            name,
            mac: Some(host_mac(owner)),
            mtu: self.wanted.mtu,
            controller: self.bridge.as_ref().map(|bridge| bridge.index),
            peer_name: &owner.ifname,
            peer_mac: Some(self.wanted.mac),
            peer_netns: self.places.pod.as_fd(),
            group: None,
        };
        let settings = LinkChange {
            alias: Some(alias.to_owned()),
            addr_gen_mode: Some(AddrGenMode::None),
            hairpin: Some(port.hairpin),
            isolated: Some(port.isolated),
            up: Some(true),
            ..LinkChange::default()
        };
        let mut requests = vec![link::create_veth(&spec)];
        requests.extend(link::change(LinkRef::Name(name), &settings));
        // The read of the link is in the same send, and tells the pod's end's index too.
        let mut made = self.places.host.apply_then_link(&requests, LinkRef::Name(name));
        if let Err(error) = &made
            && error.index == Some(1)
            && error.is_without_family()
        {
            // The link has no IPv6 (its MTU is too small, or the kernel is without): then it makes itself no address.
            let rest = LinkChange { addr_gen_mode: None, ..settings };
            let requests = link::change(LinkRef::Name(name), &rest);
            made = self.places.host.apply_then_link(&requests, LinkRef::Name(name));
            made = made.map_err(|error| Error { index: None, ..error });
        }
        let made = made.map_err(|error| {
            let creating = error.index == Some(0);
            if creating && error.is_exists() {
                let ifname = owner.ifname.clone();
                let netns = self.wanted.attachment.netns.clone();
                return Failure { error: AttachError::IfnameTaken { ifname, netns }, raced: false };
            }
            // The bridge went away between the look and this.
            let raced = creating && error.is_missing();
            Failure { error: error.into(), raced }
        });
        if let Err(Failure { error: AttachError::IfnameTaken { .. }, .. }) = &made {
            // The pair was not made; a link of that name on the host is not ours to remove.
            self.done.pop();
        }
        let made = made?;
        step("created-veth");
        self.pod = made.map(|link| MadePod {
            index: link.peer_index.unwrap_or(0),
            host_index: link.index,
            mtu: link.mtu,
        });
        refuse_router_advertisements(name)?;
        Ok(())
    }

    /// The port's VLANs. The node itself stays in the default one, with its gateways.
    pub(super) fn join_vlans(&mut self, name: &str) -> Result<(), Failure> {
        let (Some(wanted), Some(pod)) = (&self.wanted.vlan, self.pod) else { return Ok(()) };
        let mut requests = Vec::new();
        if !wanted.preserve_default {
            requests.push(vlan::leave(pod.host_index, name, &(vlan::DEFAULT..=vlan::DEFAULT)));
        }
        match &wanted.membership {
            VlanMembership::Access(id) => {
                let only = *id..=*id;
                requests.push(vlan::join(pod.host_index, name, &only, Tagging::Untagged));
            }
            VlanMembership::Trunk(ranges) => {
                let join = |range| vlan::join(pod.host_index, name, range, Tagging::Tagged);
                requests.extend(ranges.iter().map(join));
            }
        }
        self.places.host.apply(&requests)?;
        Ok(())
    }

    pub(super) fn configure_pod(&mut self) -> Result<(), Failure> {
        let wanted = self.wanted;
        let addresses = &wanted.attachment.addresses;
        if addresses.iter().any(|a| a.address.is_ipv6()) {
            self.places.pod.run(|| ipv6_sysctls(&wanted.attachment.owner.ifname, wanted.dad))??;
        }
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let noticed_up = LinkChange { arp_notify: Some(true), ..up.clone() };
        let index = self.pod.map_or(0, |pod| pod.index);
        let mut requests = link::change(LinkRef::Index(link::LOOPBACK), &up);
        requests.extend(addresses.iter().map(|a| addr::add(index, a.address, !wanted.dad)));
        if !wanted.pod_link_down {
            requests.extend(link::change(LinkRef::Index(index), &noticed_up));
        }
        requests.extend(kernel_routes(&wanted.routes, index).iter().map(route::add));
        self.places.inside.apply(&requests)?;
        if wanted.announce {
            self.announce();
        }
        Ok(())
    }

    /// Tells the neighbours whose the addresses are now: whoever remembers an earlier pod's MAC address would go on
    /// sending to it for up to half a minute. What the kernel announces as the interface comes up (arp_notify) is lost,
    /// because the bridge's port does not pass frames yet. Setting the MAC address, though it is the same, makes
    /// the kernel announce again, IPv6 addresses too (ndisc_notify).
    fn announce(&mut self) {
        let Some(pod) = self.pod else { return };
        if self.is_passing(pod.host_index) {
            let again = LinkChange { mac: Some(self.wanted.mac), ..LinkChange::default() };
            // A pod that nobody was told of is found all the same, if late.
            let _ = self.places.inside.apply(&link::change(LinkRef::Index(pod.index), &again));
        }
    }

    /// Whether the bridge's port passes frames: it does once the kernel's link watch has seen its carrier. Since Linux
    /// 6.8 reading the link makes it look; before, that takes a millisecond.
    fn is_passing(&mut self, host_index: u32) -> bool {
        const LOOKS: u32 = 5;
        const PAUSE: Duration = Duration::from_millis(1);
        for _ in 0..LOOKS {
            match self.places.host.link(LinkRef::Index(host_index)) {
                Ok(Some(link)) if link.flags.running => return true,
                Ok(Some(_)) => {}
                _ => return false,
            }
            #[expect(clippy::disallowed_methods, reason = "the kernel's work queue; polled, bounded")]
            std::thread::sleep(PAUSE);
        }
        false
    }
}

/// Runs in the pod's netns, before the interface comes up.
fn ipv6_sysctls(ifname: &str, dad: bool) -> Result<(), Error> {
    let set = |key: &str, value: &str| sysctl::write(&format!("net/ipv6/conf/{ifname}/{key}"), value);
    set("disable_ipv6", "0")?;
    set("keep_addr_on_down", "1")?;
    set("ndisc_notify", "1")?;
    if !dad {
        set("accept_dad", "0")?;
    }
    Ok(())
}

/// The routes as the kernel takes them; routes that differ in the gateway alone become one with several
/// next hops (ECMP), as the reference plugin has it.
fn kernel_routes(routes: &[PodRoute], pod: u32) -> Vec<Route> {
    let mut made: Vec<(&PodRoute, Route)> = Vec::new();
    for wanted in routes {
        let nexthop = Nexthop { gateway: wanted.gateway, oif: Some(pod) };
        let same = |(earlier, _): &&mut (&PodRoute, Route)| {
            PodRoute { gateway: None, ..(*earlier).clone() } == PodRoute { gateway: None, ..wanted.clone() }
        };
        if let Some((_, route)) = made.iter_mut().find(same) {
            if !route.nexthops.contains(&nexthop) {
                route.nexthops.push(nexthop);
            }
            continue;
        }
        // A destination without a gateway is on the link.
        let scope = wanted.scope.unwrap_or(if wanted.gateway.is_none() && wanted.destination.is_ipv4() {
            route::SCOPE_LINK
        } else {
            route::SCOPE_UNIVERSE
        });
        let route = Route {
            table: wanted.table.unwrap_or(route::MAIN_TABLE),
            scope,
            priority: wanted.priority,
            mtu: wanted.mtu,
            advmss: wanted.advmss,
            ..Route::new(wanted.destination, vec![nexthop])
        };
        made.push((wanted, route));
    }
    made.into_iter().map(|(_, route)| route).collect()
}
