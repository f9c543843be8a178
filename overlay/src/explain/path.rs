//! The hops themselves.

use std::net::IpAddr;

use podwire_kernel::Family;
use podwire_kernel::addr::PROTOCOL;
use podwire_kernel::link::{Link, Vxlan};
use podwire_kernel::neighbour::State;
use podwire_kernel::route::{Lookup, Route};

use super::filter::Outer;
use super::{End, HopKind, HopState, Node, Walk, pod_name, repaired};
use crate::cluster::{Encapsulation, IpFamily};
use crate::terminal::duration;

/// RTN_UNICAST.
const UNICAST: u8 = 1;

/// A pod's place on this node.
struct Port {
    link: Option<Link>,
    bridge: Option<Link>,
}

impl Walk<'_> {
    /// From a pod of this node to another one of it.
    pub(super) fn within_node(&mut self) {
        let (from, to) = (self.from, self.to);
        let Some(a) = self.end(from) else { return };
        let Some(b) = self.end(to) else { return };
        self.gateway(&a, from);
        match (&a, &b) {
            (Port { link: Some(x), bridge: Some(p) }, Port { link: Some(y), bridge: Some(q) })
                if p.index == q.index =>
            {
                let is_isolated = |link: &Link| link.port.is_some_and(|port| port.isolated);
                if is_isolated(x) && is_isolated(y) {
                    self.broken(
                        HopKind::Bridge,
                        format!("{} and {} are isolated from each other", x.name, y.name),
                        "the network is configured so (isolated ports)",
                    );
                }
                self.filter_bridged(p, x, y);
            }
            _ => {
                self.forwarding();
                let Some(route) = self.route(a.bridge.as_ref(), None) else { return };
                if let Some(out) = self.out_of(&route) {
                    self.filter(a.bridge.as_ref(), &out, None);
                }
            }
        }
    }

    /// From a pod of this node to one of another.
    pub(super) fn outbound(&mut self) {
        let from = self.from;
        let Some(port) = self.end(from) else { return };
        self.gateway(&port, from);
        self.forwarding();
        self.towards_node(port.bridge.as_ref());
    }

    /// From a pod of another node to one of this: how it comes in, and how the answers get back.
    pub(super) fn inbound(&mut self) {
        let (from, to) = (self.from, self.to);
        let Some(port) = self.end(to) else { return };
        self.gateway(&port, to);
        self.forwarding();
        let device = self.devices().into_iter().map(|(link, _)| link).next();
        if let (Some(device), Some(bridge)) = (&device, &port.bridge) {
            self.filter(Some(device), bridge, None);
        }
        (self.from, self.to) = (to, from);
        self.towards_node(port.bridge.as_ref());
        (self.from, self.to) = (from, to);
    }

    /// An end on this node: its lease and interface. `None`: nothing more can be told.
    fn end(&mut self, end: &End) -> Option<Port> {
        let Some(pod) = &end.pod else {
            if self.is_own(end.address) {
                self.ok(HopKind::Lease, format!("{} is the node's own address", end.address));
                return Some(Port { link: None, bridge: None });
            }
            let address = end.address;
            let claims = self.scene.links.iter().find(|link| {
                let alias = link.alias.as_deref().and_then(podwire_attach::alias::parse);
                alias.is_some_and(|alias| alias.addresses.iter().any(|own| own.ip() == address))
            });
            let found = match claims {
                Some(link) => format!(
                    "{address} has no lease, although interface {} says that it is its pod's",
                    link.name
                ),
                None => format!("no pod of this node has {address}: it has no lease and no interface"),
            };
            self.broken(
                HopKind::Lease,
                found,
                "the pod has ended, or was never here: `podwirectl pods` lists those that are; `podwirectl ipam check` \
                 compares leases with interfaces",
            );
            return None;
        };
        let name = pod_name(pod);
        match pod.state.as_str() {
            "attached" | "" => self.ok(HopKind::Lease, format!("{} is the address of {name}", end.address)),
            "reserved" => self.broken(
                HopKind::Lease,
                format!("{} is reserved for {name}, whose ADD has not come to its end", end.address),
                "look at the runtime's log: the ADD is under way, or it failed",
            ),
            state => self.broken(
                HopKind::Lease,
                format!("{} of {name} is {state}: its DEL has begun", end.address),
                "the pod is ending",
            ),
        }
        self.interface(&name, pod.link.as_deref(), pod.bridge.as_deref())
    }

    fn interface(&mut self, pod: &str, name: Option<&str>, bridge: Option<&str>) -> Option<Port> {
        let Some(name) = name else {
            let found = format!("another plugin made the interface of {pod}");
            self.say(HopKind::Interface, HopState::Unknown, found, "");
            return Some(Port { link: None, bridge: None });
        };
        let Some(link) = self.named(name).cloned() else {
            self.broken(
                HopKind::Interface,
                format!("{name}, the node's end of {pod}'s interface, is gone"),
                "delete the pod: its interface can only be made anew with it",
            );
            return None;
        };
        let bridge_name = bridge.unwrap_or("its bridge");
        let controller = link.controller.and_then(|index| self.link(index)).cloned();
        if !link.flags.up {
            let advice = format!("ip link set dev {name} up");
            self.broken(HopKind::Interface, format!("{name} of {pod} is down"), advice);
        } else if !link.flags.running {
            let found = format!("{name} has no carrier: the interface in {pod} is down");
            self.broken(HopKind::Interface, found, "set it up in the pod, or delete the pod");
        } else if controller.is_none() && bridge.is_some() {
            let advice = format!("ip link set dev {name} master {bridge_name}");
            self.broken(HopKind::Interface, format!("{name} of {pod} is no port of {bridge_name}"), advice);
        } else {
            self.ok(HopKind::Interface, format!("{name} leads to {pod}, MTU {}", link.mtu));
        }
        let bridge = controller.or_else(|| bridge.and_then(|name| self.named(name)).cloned());
        if bridge.is_none() && bridge_name != "its bridge" {
            let advice = repaired("podwired makes it", self.scene.has_agent);
            self.broken(HopKind::Bridge, format!("bridge {bridge_name} is gone"), advice);
        }
        Some(Port { link: Some(link), bridge })
    }

    /// The bridge, and the pod's gateway on it.
    fn gateway(&mut self, port: &Port, pod: &End) {
        let Some(bridge) = &port.bridge else { return };
        let mut own = self.scene.addresses.iter().filter(|own| own.ifindex == bridge.index);
        let gateway = own.find(|own| own.address.contains(pod.address));
        let name = &bridge.name;
        match gateway.map(|gateway| gateway.address.to_string()) {
            _ if !bridge.flags.up => {
                self.broken(
                    HopKind::Bridge,
                    format!("{name} is down"),
                    repaired(&format!("ip link set dev {name} up"), self.scene.has_agent),
                );
            }
            None => self.broken(
                HopKind::Bridge,
                format!("{name} has no address in the subnet of {}: its pods have no gateway", pod.address),
                repaired(
                    &format!("ip address add <first address of the subnet> dev {name}"),
                    self.scene.has_agent,
                ),
            ),
            Some(gateway) => self.ok(HopKind::Bridge, format!("{name} is up, gateway {gateway}")),
        }
    }

    fn forwarding(&mut self) {
        let (name, family) = match self.from.address {
            IpAddr::V4(_) => ("net/ipv4/ip_forward", "IPv4"),
            IpAddr::V6(_) => ("net/ipv6/conf/all/forwarding", "IPv6"),
        };
        match self.kernel.sysctl(name).as_deref() {
            Ok("0") => {
                let by_hand = format!("sysctl -w {}=1", name.replace('/', "."));
                self.broken(
                    HopKind::Forwarding,
                    format!("the node does not forward {family} packets"),
                    repaired(&by_hand, self.scene.has_agent),
                );
            }
            Ok(_) => self.ok(HopKind::Forwarding, format!("the node forwards {family} packets")),
            Err(why) => self.say(HopKind::Forwarding, HopState::Unknown, why, ""),
        }
    }

    /// From the bridge to the node that has the destination.
    fn towards_node(&mut self, bridge: Option<&Link>) {
        let node = self.node();
        let devices = self.devices();
        let expected = self.kernel.route_to(&self.lookup(bridge)).ok().flatten();
        let oif = expected.as_ref().and_then(|route| route.nexthops.first()?.oif);
        let is_direct = expected.as_ref().is_some_and(|route| {
            let gateway = route.nexthops.first().and_then(|hop| hop.gateway);
            gateway.is_some_and(|gateway| node.as_ref().is_some_and(|node| node.addresses.contains(&gateway)))
        });
        let is_pod = node.is_some() || self.scene.ranges.iter().any(|range| range.contains(self.to.address));
        if is_direct || !is_pod {
            let Some(route) = self.route(bridge, None) else { return };
            let hop = route.nexthops.first().and_then(|hop| hop.gateway).unwrap_or(self.to.address);
            let Some(out) = self.underlay(hop, None, None) else { return };
            self.filter(bridge, &out, None);
        } else {
            // The one that the route takes; where there is no such route, the one that it should take.
            let family = node.as_ref().and_then(|node| node.addresses.first()).map(IpAddr::is_ipv4);
            let used = devices.iter().find(|(link, _)| Some(link.index) == oif).or_else(|| {
                let of_family =
                    |vxlan: &Vxlan| family.is_none_or(|v4| vxlan.local.is_none_or(|own| own.is_ipv4() == v4));
                devices.iter().find(|(_, vxlan)| of_family(vxlan)).or(devices.first())
            });
            let Some((device, vxlan)) = used.cloned() else {
                self.broken(
                    HopKind::Device,
                    "this node has no VXLAN device of podwire's",
                    repaired("`podwirectl status` says why there is none", self.scene.has_agent),
                );
                // The route would lead nowhere, or elsewhere.
                self.route(bridge, None);
                return;
            };
            self.device(&device, &vxlan);
            let Some(route) = self.route(bridge, Some(&device)) else { return };
            let remote = self.tunnel(&device, &vxlan, &route, node.as_ref());
            let Some(remote) = remote else { return };
            let Some(out) = self.underlay(remote, vxlan.local, Some((&device, vxlan.port))) else { return };
            let own = vxlan.local.or_else(|| self.address_on(out.index, remote));
            let outer = own.map(|own| Outer { underlay: &out, own, other: remote, port: vxlan.port });
            self.filter(bridge, &device, outer.as_ref());
        }
        if let Some(node) = &node {
            self.probe(node);
        }
    }

    fn lookup(&self, bridge: Option<&Link>) -> Lookup {
        let input = bridge.map(|bridge| bridge.index);
        Lookup { source: Some(self.from.address), input, ..Lookup::to(self.to.address) }
    }

    fn node(&mut self) -> Option<Node> {
        let to = self.to.address;
        let Some(node) = self.node_of(to).cloned() else {
            if self.scene.nodes.is_none() {
                let why = "the agent does not answer, and this node remembers no cluster";
                self.say(HopKind::Node, HopState::Unknown, why, "start the agent (podwired)");
            } else if self.scene.ranges.iter().any(|range| range.contains(to)) {
                self.broken(
                    HopKind::Node,
                    format!("no node of the cluster has a subnet with {to}"),
                    "the node was removed, or has not joined: `podwirectl nodes` lists those that have",
                );
            } else {
                let found = format!("{to} is no pod's address: it is outside of the cluster's ranges");
                self.say(HopKind::Node, HopState::Unknown, found, "");
            }
            return None;
        };
        let addresses: Vec<String> = node.addresses.iter().map(IpAddr::to_string).collect();
        let found = format!("{to} is on node {} at {}", node.name, addresses.join(" and "));
        match (&node.left_out, node.is_absent) {
            (Some(why), _) => self.broken(
                HopKind::Node,
                format!("{found}, which is left out: {why}"),
                "put its record right: restart its agent, or `podwirectl node rm` it",
            ),
            (None, Some(true)) => {
                let advice = format!("look at node {}: its machine or its agent may be down", node.name);
                self.say(
                    HopKind::Node,
                    HopState::Doubtful,
                    format!("{found}, which is not connected to the store"),
                    advice,
                );
            }
            _ => self.ok(HopKind::Node, found),
        }
        Some(node)
    }

    fn device(&mut self, device: &Link, vxlan: &Vxlan) {
        let name = &device.name;
        let Encapsulation { vni, port } = Encapsulation { vni: vxlan.vni, port: vxlan.port };
        let about = format!("{name}, VNI {vni}, port {port}, MTU {}", device.mtu);
        if !device.flags.up {
            let by_hand = format!("ip link set dev {name} up, and every route and neighbour anew");
            self.broken(
                HopKind::Device,
                format!("{about}: it is down"),
                repaired(&by_hand, self.scene.has_agent),
            );
        } else if vxlan.local.is_some_and(|local| !self.is_own(local)) {
            let local = vxlan.local.map(|local| local.to_string()).unwrap_or_default();
            self.broken(
                HopKind::Device,
                format!("{about}: it sends from {local}, which is no address of this node any more"),
                repaired("the device has to follow the node's address", self.scene.has_agent),
            );
        } else {
            self.ok(HopKind::Device, about);
        }
    }

    /// The route that the kernel takes. `None`: packets go nowhere, or astray.
    fn route(&mut self, bridge: Option<&Link>, device: Option<&Link>) -> Option<Route> {
        let to = self.to.address;
        let by_hand = "the route is made by protocol 112";
        let route = match self.kernel.route_to(&self.lookup(bridge)) {
            Err(why) => {
                self.broken(
                    HopKind::Route,
                    format!("the kernel refuses packets to {to}: {why}"),
                    "look at `ip rule` and `ip route get`",
                );
                return None;
            }
            Ok(None) => {
                self.broken(
                    HopKind::Route,
                    format!("there is no route to {to}"),
                    repaired(by_hand, self.scene.has_agent),
                );
                return None;
            }
            Ok(Some(route)) => route,
        };
        let hop = route.nexthops.first().copied().unwrap_or_default();
        let text = self.route_text(&route);
        if route.kind != UNICAST {
            self.broken(
                HopKind::Route,
                format!("{text}: packets are refused"),
                "remove that route, or find out who made it",
            );
            return None;
        }
        let Some(device) = device else {
            self.ok(HopKind::Route, text);
            return Some(route);
        };
        if hop.oif == Some(device.index) {
            self.ok(HopKind::Route, text);
            return Some(route);
        }
        if route.destination.prefix() == 0 {
            let found =
                format!("no route to the subnet of {to}: packets leave by the default route ({text})");
            self.broken(HopKind::Route, found, repaired(by_hand, self.scene.has_agent));
        } else if route.protocol == PROTOCOL {
            let found = format!("{text}: another way than the tunnel {}", device.name);
            self.broken(HopKind::Route, found, repaired(by_hand, self.scene.has_agent));
        } else {
            self.broken(
                HopKind::Route,
                format!("{text}: a route of another program's wins over the tunnel {}", device.name),
                "remove that route: podwire never touches those of others",
            );
        }
        None
    }

    fn route_text(&self, route: &Route) -> String {
        let hop = route.nexthops.first().copied().unwrap_or_default();
        let destination = if route.destination.prefix() == 0 {
            "default".to_owned()
        } else {
            route.destination.to_string()
        };
        let via = hop.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let metric = route.priority.map(|metric| format!(" metric {metric}")).unwrap_or_default();
        let kind = match route.kind {
            UNICAST => "",
            2 => "local ",
            6 => "blackhole ",
            7 => "unreachable ",
            8 => "prohibit ",
            _ => "other ",
        };
        let dev = hop.oif.map(|oif| format!(" dev {}", self.link_name(Some(oif)))).unwrap_or_default();
        format!("{kind}{destination}{via}{dev}{metric} (protocol {})", route.protocol)
    }

    /// The other end of the tunnel: its MAC address, and the node behind it.
    fn tunnel(&mut self, device: &Link, vxlan: &Vxlan, route: &Route, node: Option<&Node>) -> Option<IpAddr> {
        let name = &device.name;
        let Some(gateway) = route.nexthops.first().and_then(|hop| hop.gateway) else {
            let found = format!("the route by {name} names no gateway: nothing answers there");
            self.broken(HopKind::Neighbour, found, repaired("the route needs one", self.scene.has_agent));
            return None;
        };
        let neighbours = self.kernel.neighbours(device.index).unwrap_or_default();
        let neighbour = neighbours.iter().find(|neighbour| neighbour.address == gateway);
        let mac = neighbour.filter(|found| found.state != State::Failed).and_then(|neighbour| neighbour.mac);
        let segment = Encapsulation { vni: vxlan.vni, port: vxlan.port };
        let vtep = node.and_then(|node| node.vteps.iter().find(|vtep| vtep.encapsulation == segment));
        let family = vxlan.local.map_or(Family::V4, Family::of);
        let vtep = vtep.map(|vtep| vtep.over(family));
        let Some(mac) = mac else {
            let wanted = vtep.map_or("<its MAC>".to_owned(), |mac| mac.to_string());
            let by_hand = format!("ip neighbour replace {gateway} dev {name} lladdr {wanted} nud permanent");
            let found = format!("{gateway} has no MAC address on {name}");
            self.broken(HopKind::Neighbour, found, repaired(&by_hand, self.scene.has_agent));
            return None;
        };
        match vtep {
            Some(vtep) if vtep != mac => {
                let by_hand =
                    format!("ip neighbour replace {gateway} dev {name} lladdr {vtep} nud permanent");
                let found =
                    format!("{gateway} on {name} has {mac}, and the node's end of the tunnel is {vtep}");
                self.broken(HopKind::Neighbour, found, repaired(&by_hand, self.scene.has_agent));
            }
            _ => self.ok(HopKind::Neighbour, format!("{gateway} on {name} is {mac}")),
        }
        let fdb = self.kernel.fdb(device.index).unwrap_or_default();
        let mut remotes: Vec<IpAddr> =
            fdb.iter().filter(|entry| entry.mac == mac).filter_map(|entry| entry.destination).collect();
        remotes.dedup();
        let Some(remote) = remotes.first().copied() else {
            let wanted = node
                .and_then(|node| node.addresses.iter().find(|address| Family::of(**address) == family))
                .map_or("<its address>".to_owned(), IpAddr::to_string);
            let by_hand = format!("bridge fdb replace {mac} dev {name} dst {wanted}");
            let found = format!("{name} does not know which node {mac} is behind");
            self.broken(HopKind::Fdb, found, repaired(&by_hand, self.scene.has_agent));
            return None;
        };
        let wrong = node.and_then(|node| {
            let wrong = remotes.iter().find(|remote| !node.addresses.contains(remote))?;
            Some((*wrong, node.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")))
        });
        match wrong {
            Some((wrong, right)) => {
                let by_hand = format!("bridge fdb replace {mac} dev {name} dst {right}");
                let found = format!("{name} sends frames for {mac} to {wrong}, and the node is at {right}");
                self.broken(HopKind::Fdb, found, repaired(&by_hand, self.scene.has_agent));
            }
            None => self.ok(HopKind::Fdb, format!("{mac} is behind {remote}")),
        }
        Some(remote)
    }

    /// The way to an address of the other node; for what a VXLAN device sends, `tunnel` is the device and its port.
    fn underlay(&mut self, to: IpAddr, from: Option<IpAddr>, tunnel: Option<(&Link, u16)>) -> Option<Link> {
        let route = match self.kernel.route_to(&Lookup { source: from, ..Lookup::to(to) }) {
            Ok(Some(route)) if route.kind == UNICAST => route,
            Ok(Some(route)) => {
                let text = self.route_text(&route);
                self.broken(
                    HopKind::Underlay,
                    format!("{text}: {to} is not reached by it"),
                    "look at `ip route get`",
                );
                return None;
            }
            Ok(None) => {
                self.broken(
                    HopKind::Underlay,
                    format!("there is no route to node address {to}"),
                    "the nodes themselves do not reach each other: put the network between them right",
                );
                return None;
            }
            Err(why) => {
                self.broken(
                    HopKind::Underlay,
                    format!("the kernel refuses packets to node address {to}: {why}"),
                    "look at `ip rule` and `ip route get`",
                );
                return None;
            }
        };
        let out = self.out_of(&route)?;
        let hop = route.nexthops.first().and_then(|hop| hop.gateway).unwrap_or(to);
        let name = &out.name;
        let neighbours = self.kernel.neighbours(out.index).unwrap_or_default();
        let is_silent = neighbours.iter().any(|neighbour| {
            neighbour.address == hop && (neighbour.state == State::Failed || is_asked(neighbour.state))
        });
        let overhead = if to.is_ipv4() { 50 } else { 70 };
        let need = tunnel.map(|(device, _)| device.mtu + overhead);
        if tunnel.is_some_and(|(device, _)| device.index == out.index) {
            self.broken(
                HopKind::Underlay,
                format!(
                    "packets to node address {to} would go into the tunnel themselves ({})",
                    self.route_text(&route)
                ),
                "a pod subnet must not contain the nodes' own addresses",
            );
        } else if !out.flags.up || !out.flags.running {
            let state = if out.flags.up { "has no carrier" } else { "is down" };
            self.broken(
                HopKind::Underlay,
                format!("{name}, by which node address {to} is reached, {state}"),
                "put the node's link right",
            );
        } else if is_silent {
            self.broken(
                HopKind::Underlay,
                format!("nobody answers for {hop} on {name}"),
                "the other machine is down, or not on this link any more",
            );
        } else if let Some(need) = need.filter(|need| *need > out.mtu) {
            self.broken(
                HopKind::Underlay,
                format!("the MTU of {name} is {}, and full packets of the tunnel have {need} bytes", out.mtu),
                repaired(
                    &format!("the tunnel's MTU must be {}", out.mtu.saturating_sub(overhead)),
                    self.scene.has_agent,
                ),
            );
        } else {
            let via = if hop == to { "on the link".to_owned() } else { format!("via {hop}") };
            self.ok(HopKind::Underlay, format!("{to} is reached by {name}, {via}, MTU {}", out.mtu));
        }
        Some(out)
    }

    fn out_of(&self, route: &Route) -> Option<Link> {
        route.nexthops.first().and_then(|hop| hop.oif).and_then(|oif| self.link(oif)).cloned()
    }

    /// This node's address on a link, of the family of another.
    fn address_on(&self, ifindex: u32, like: IpAddr) -> Option<IpAddr> {
        let mut own =
            self.scene.addresses.iter().filter(|own| own.ifindex == ifindex).map(|own| own.address.ip());
        own.find(|own| own.is_ipv4() == like.is_ipv4())
    }

    fn probe(&mut self, node: &Node) {
        let family = if self.to.address.is_ipv4() { IpFamily::Ipv4 } else { IpFamily::Ipv6 };
        let Some(probe) = node.probes.iter().find(|probe| probe.family == family) else {
            let why = if self.scene.has_agent {
                "the agent has not probed it yet"
            } else {
                "the agent does not answer"
            };
            self.say(HopKind::Probe, HopState::Unknown, format!("no probe of node {}: {why}", node.name), "");
            return;
        };
        let age = duration(std::time::Duration::try_from_secs_f64(probe.age_seconds).unwrap_or_default());
        if probe.ok {
            let time = probe.rtt_millis.map(|millis| format!("in {millis:.2} ms")).unwrap_or_default();
            let largest =
                probe.largest_bytes.map(|bytes| format!(", up to {bytes} bytes")).unwrap_or_default();
            self.ok(HopKind::Probe, format!("node {} answered {time}{largest}, {age} ago", node.name));
        } else {
            let problem = probe.problem.clone().unwrap_or_else(|| "no answer".to_owned());
            self.broken(
                HopKind::Probe,
                format!("node {} does not answer probes: {problem}, {age} ago", node.name),
                format!(
                    "if every hop here is well, look there: run `podwirectl explain` and `podwirectl doctor` on node {}",
                    node.name
                ),
            );
        }
    }
}

/// NUD_INCOMPLETE: asked for, and nobody has answered yet.
fn is_asked(state: State) -> bool {
    state == State::Other(1)
}
