//! Plans carried out, and the kernel looked at. No choices are made here.

use std::os::fd::AsFd;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::{self, Address};
use podwire_kernel::link::{self, AddrGenMode, BridgeSpec, Link, LinkChange, LinkRef, VethSpec};
use podwire_kernel::route::{self, Nexthop, Route, RouteFilter};
use podwire_kernel::{Error, Family, MacAddr, Netlink, Netns, Request, sysctl};

use crate::alias;
use crate::drift::{HostEnd, ObservedAttachment, PodEnd};
use crate::plan::{
    BridgeAddress, Conflict, Forwarding, Observed, ObservedBridge, PodRoute, Step, Wanted, host_mac, plan,
};
use crate::step::step;

/// What an attachment came to be: what a CNI result tells beyond the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The bridge's MAC address.
    pub bridge_mac: Option<MacAddr>,
    /// The host end's MAC address.
    pub host_mac: Option<MacAddr>,
    /// The pod's interface's MAC address.
    pub pod_mac: MacAddr,
    /// The pod's interface's MTU in bytes.
    pub mtu: u32,
}

/// Why an attachment was not made. What had been done was undone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The bridge belongs to somebody else.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The pod has an interface of that name which is not ours.
    #[error("interface {ifname:?} already exists in the container's network namespace {netns}")]
    IfnameTaken {
        /// The interface's name.
        ifname: String,
        /// The netns's path.
        netns: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Others made and removed the bridge again and again meanwhile.
    #[error("bridge {0:?} kept changing while the pod was attached; try again")]
    Unsettled(String),
    /// The attachment failed, and so did taking back what had been done.
    #[error("{error}; and undoing failed: {}", .undo.join("; "))]
    NotUndone {
        /// Why it was not made.
        error: Box<AttachError>,
        /// What stays, and why.
        undo: Vec<String>,
    },
}

/// The two places an attachment lives in.
pub struct Places<'a> {
    /// A socket in the host's netns.
    pub host: &'a mut Netlink,
    /// The pod's netns.
    pub pod: &'a Netns,
    /// A socket in it.
    pub inside: &'a mut Netlink,
}

/// Makes the attachment: the bridge as far as it is needed, the veth, the pod's interface. `observed` is how the
/// node looked a moment ago. `alone` says whether nobody else is making an attachment on this node right now; it is
/// asked only before something shared (the bridge, forwarding) is taken back.
///
/// # Errors
/// See [`AttachError`]. What was done before the failure has been undone, in reverse, the failed step too.
pub fn attach(
    places: &mut Places<'_>,
    wanted: &Wanted,
    observed: Observed,
    alone: &dyn Fn() -> bool,
) -> Result<Attached, AttachError> {
    // Others make and remove the same bridge meanwhile: then look and plan again. 24 cold ADDs need two rounds.
    const ROUNDS: usize = 8;
    let mut looked = Some(observed);
    for _ in 0..ROUNDS {
        let observed = match looked.take() {
            Some(observed) => observed,
            None => observe_node(places.host, &wanted.bridge.name)?,
        };
        let steps = plan(wanted, &observed)?;
        let newest = match steps.iter().any(Step::is_shared) {
            true => newest_link(places.host)?,
            false => 0,
        };
        let bridge = observed.bridge;
        let mut work = Work { places: &mut *places, wanted, bridge, pod: None, newest, done: Vec::new() };
        match work.run(&steps) {
            Ok(()) => return work.attached(),
            Err(Failure { error, raced }) => {
                let undo = work.undo(alone);
                if !undo.is_empty() {
                    return Err(AttachError::NotUndone { error: Box::new(error), undo });
                }
                if !raced {
                    return Err(error);
                }
            }
        }
    }
    Err(AttachError::Unsettled(wanted.bridge.name.clone()))
}

/// A failed step, and whether another process's work on the bridge is the reason.
struct Failure {
    error: AttachError,
    raced: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error: error.into(), raced: false }
    }
}

/// The veth, as it was made.
#[derive(Clone, Copy)]
struct MadePod {
    /// The pod's end's index.
    index: u32,
    /// The host's end's index.
    host_index: u32,
    mtu: u32,
}

struct Work<'w, 'p> {
    places: &'w mut Places<'p>,
    wanted: &'w Wanted,
    bridge: Option<ObservedBridge>,
    pod: Option<MadePod>,
    /// The highest index of a link before the first step: whatever is above came later.
    newest: u32,
    done: Vec<Step>,
}

fn newest_link(host: &mut Netlink) -> Result<u32, Error> {
    Ok(host.links()?.iter().map(|link| link.index).max().unwrap_or(0))
}

impl Work<'_, '_> {
    fn run(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for planned in steps {
            // Before it is done: a step that fails half-way is undone too.
            self.done.push(planned.clone());
            self.step(planned)?;
        }
        Ok(())
    }

    fn attached(&self) -> Result<Attached, AttachError> {
        Ok(Attached {
            bridge_mac: self.bridge.as_ref().and_then(|bridge| bridge.mac),
            host_mac: Some(host_mac(&self.wanted.attachment.owner)),
            pod_mac: self.wanted.mac,
            mtu: self.pod.map_or(0, |pod| pod.mtu),
        })
    }

    /// Takes back what was done; the failures, as text.
    fn undo(&mut self, alone: &dyn Fn() -> bool) -> Vec<String> {
        let mut failures = Vec::new();
        let mut shared = None;
        for undo in std::mem::take(&mut self.done).iter().rev().filter_map(Step::undo) {
            if undo.is_shared() && !*shared.get_or_insert_with(|| alone() && self.is_unused()) {
                continue;
            }
            step("undo");
            if let Err(Failure { error, .. }) = self.step(&undo) {
                failures.push(format!("{undo}: {error}"));
            }
        }
        failures
    }

    /// Whether no pod has been attached since this attachment began: it would rely on what this one made for all, and
    /// its ADD may have ended already.
    fn is_unused(&mut self) -> bool {
        let bridge = self.bridge.as_ref().map(|bridge| bridge.index);
        let is_pod = |link: &Link| {
            let in_bridge = link.controller.is_some() && link.controller == bridge;
            link.index > self.newest && (in_bridge || link.alias.as_deref().and_then(alias::parse).is_some())
        };
        // What cannot be seen is taken to be there.
        self.places.host.links().is_ok_and(|links| !links.iter().any(is_pod))
    }

    fn step(&mut self, planned: &Step) -> Result<(), Failure> {
        match planned {
            Step::CreateBridge(bridge) => {
                step("create-bridge");
                let spec = BridgeSpec {
                    name: &bridge.name,
                    mac: bridge.mac,
                    mtu: bridge.mtu,
                    mcast_snooping: None,
                    mcast_querier: None,
                    vlan_filtering: None,
                };
                let made = self.places.host.apply(&[link::create_bridge(&spec)]);
                if let Err(error) = made {
                    // Made by another ADD since we looked. It is not ours to undo.
                    let raced = error.is_exists();
                    self.done.pop();
                    return Err(Failure { error: error.into(), raced });
                }
                self.bridge = bridge_of(self.places.host, &bridge.name)?;
            }
            Step::RemoveBridge(name) => self.remove_bridge(name)?,
            Step::SetBridgeUp(name, up) => {
                step("bridge-up");
                // Here, not where the bridge is made: an ADD may have been killed between.
                refuse_router_advertisements(name)?;
                let change = LinkChange { up: Some(*up), ..LinkChange::default() };
                self.on_bridge(|_| link::change(LinkRef::Name(name), &change))?;
            }
            Step::SetBridgePromiscuous(name, on) => {
                let change = LinkChange { promisc: Some(*on), ..LinkChange::default() };
                self.on_bridge(|_| link::change(LinkRef::Name(name), &change))?;
            }
            Step::AddBridgeAddress(name, address) => {
                step("bridge-address");
                match self.add_bridge_address(name, *address) {
                    // Added by another ADD since we looked; it is not ours to undo.
                    Err(Failure { error: AttachError::Kernel(error), .. }) if error.is_exists() => {
                        self.done.pop();
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
            Step::CreateVeth { name, alias } => self.create_veth(name, alias)?,
            Step::RemoveVeth(name) => {
                if let Some(link) = self.places.host.link(LinkRef::Name(name))? {
                    match self.places.host.apply(&[link::delete(link.index, name)]) {
                        Err(error) if !error.is_missing() => return Err(error.into()),
                        _ => {}
                    }
                }
            }
            Step::ConfigurePod => {
                step("configure-pod");
                self.configure_pod()?;
                step("configured-pod");
            }
        }
        Ok(())
    }

    fn on_bridge(&mut self, requests: impl FnOnce(u32) -> Vec<Request<'static>>) -> Result<(), Failure> {
        let index = self.bridge.as_ref().map_or(0, |bridge| bridge.index);
        self.places.host.apply(&requests(index)).map_err(|error| {
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
            sysctl::enable_forwarding(self.places.host, family)?;
        } else {
            sysctl::write(forwarding_sysctl(family), "0")?;
        }
        Ok(())
    }

    fn remove_bridge(&mut self, name: &str) -> Result<(), Failure> {
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

    /// One send: the pair, with the pod's end born in the pod's netns under its final name; then what the
    /// creating message does not take; then up. No IPv6 address on the host's end: its duplicate address
    /// detection and multicast reports flood every pod of the bridge (500 pods: 0.9 → 3.9 ms for an ADD).
    fn create_veth(&mut self, name: &str, alias: &str) -> Result<(), Failure> {
        step("create-veth");
        let owner = &self.wanted.attachment.owner;
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
            hairpin: Some(self.wanted.port.hairpin),
            isolated: Some(self.wanted.port.isolated),
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

    fn configure_pod(&mut self) -> Result<(), Failure> {
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

/// The bridge and the node's forwarding.
///
/// # Errors
/// When the kernel does not answer.
pub fn observe_node(host: &mut Netlink, bridge: &str) -> Result<Observed, Error> {
    Ok(Observed { bridge: bridge_of(host, bridge)?, forwarding: forwarding()? })
}

fn bridge_of(host: &mut Netlink, name: &str) -> Result<Option<ObservedBridge>, Error> {
    let Some(link) = host.link(LinkRef::Name(name))? else { return Ok(None) };
    let addresses = host.addresses(Some(link.index))?;
    let address = |a: &Address| BridgeAddress { address: a.address, ours: a.protocol == addr::PROTOCOL };
    Ok(Some(ObservedBridge {
        index: link.index,
        up: link.flags.up,
        promiscuous: link.flags.promisc,
        mac: link.mac,
        addresses: addresses.iter().map(address).collect(),
        kind: link.kind,
    }))
}

fn forwarding() -> Result<Forwarding, Error> {
    // A kernel without IPv6 has no such file, and forwards none.
    let on = |family| match sysctl::read(forwarding_sysctl(family)) {
        Ok(value) => Ok(value != "0"),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    };
    Ok(Forwarding { v4: on(Family::V4)?, v6: on(Family::V6)? })
}

fn forwarding_sysctl(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

/// What a pod advertises must not configure the node.
fn refuse_router_advertisements(link: &str) -> Result<(), Error> {
    match sysctl::write(&format!("net/ipv6/conf/{link}/accept_ra"), "0") {
        // No IPv6 here, or another ADD took the bridge away: then there is nothing to refuse.
        Err(error) if !error.is_missing() => Err(error),
        _ => Ok(()),
    }
}

/// One attachment as the kernel shows it. `pod` is `None` when the netns is gone.
///
/// # Errors
/// When the kernel does not answer, or the pod's netns cannot be entered.
pub fn observe_attachment(
    host: &mut Netlink,
    pod: Option<&Netns>,
    wanted: &Wanted,
) -> Result<ObservedAttachment, Error> {
    let owner = &wanted.attachment.owner;
    let node = observe_node(host, &wanted.bridge.name)?;
    let host_link = host.link(LinkRef::Name(&owner.link_name()))?;
    let pod = match pod {
        None => None,
        Some(netns) => netns.run(|| pod_end(&owner.ifname))??,
    };
    let host_end = |link: Link| HostEnd {
        index: link.index,
        peer_index: link.peer_index,
        alias: link.alias,
        up: link.flags.up,
        controller: link.controller,
        hairpin: link.port.as_ref().map(|port| port.hairpin),
        isolated: link.port.as_ref().map(|port| port.isolated),
    };
    Ok(ObservedAttachment {
        host: host_link.map(host_end),
        bridge: node.bridge,
        pod,
        forwarding: node.forwarding,
    })
}

fn pod_end(ifname: &str) -> Result<Option<PodEnd>, Error> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(LinkRef::Name(ifname))? else { return Ok(None) };
    let addresses = netlink.addresses(Some(link.index))?;
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        let over_link = RouteFilter { family, table: None, oif: Some(link.index), protocol: None };
        routes.extend(netlink.routes(&over_link)?);
    }
    let hops = |route: &Route| {
        let destination: IpNetwork = route.destination;
        route.nexthops.iter().map(move |hop| (destination, hop.gateway)).collect::<Vec<_>>()
    };
    Ok(Some(PodEnd {
        index: link.index,
        peer_index: link.peer_index,
        mac: link.mac,
        mtu: link.mtu,
        up: link.flags.up,
        addresses: addresses.iter().map(|a| a.address).collect(),
        routes: routes.iter().flat_map(hops).collect(),
    }))
}
