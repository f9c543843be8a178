//! A node with a link to others, a cluster made of records, and the kernel's state as text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use podwire_kernel::addr;
use podwire_kernel::neighbour::State;
use podwire_kernel::nft::Nft;
use podwire_kernel::route::{ROUTE_PROTOCOL, RouteFilter};
use podwire_kernel::testing::{new_netns, run, socket, within};
use podwire_kernel::{Family, Netns};
use podwire_overlay::cluster::topology::vtep_mac;
use podwire_overlay::cluster::{
    ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily, NodeRecord, Snapshot,
};
use podwire_overlay::dataplane::filter::TABLE;
use podwire_overlay::dataplane::{Input, Overlay, Report, Settings};
use podwire_overlay::store::Membership;
use tokio::sync::mpsc;

pub(crate) const OWN: &str = "me";
pub(crate) const CLUSTER: &str = "lab";
pub(crate) const BRIDGE: &str = "podwire0";
pub(crate) const DEVICE: &str = "podwire.1";

/// Repairs take some milliseconds. What is repaired within this is not repaired by the look every 10 s, and other tests
/// may be at work on the machine's few processors meanwhile.
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) -> String {
    run("ip", &words.split_whitespace().collect::<Vec<_>>())
}

pub(crate) fn sh(script: &str) -> String {
    run("sh", &["-ec", script])
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Gives the calling thread's namespace a link `eth0` to a namespace of its own, with addresses and default routes.
pub(crate) fn uplink() -> Netns {
    use std::os::fd::AsFd;
    let other = new_netns();
    let spec = podwire_kernel::link::VethSpec {
        name: "eth0",
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: "peer",
        peer_netns: other.as_fd(),
        peer_mac: None,
    };
    socket().apply(&[podwire_kernel::link::create_veth(&spec)]).expect("eth0");
    other.run(|| ip("link set peer up")).expect("inside");
    configure_uplink();
    other
}

/// The addresses and routes of `eth0`.
pub(crate) fn configure_uplink() {
    sh("ip link set eth0 up
        ip addr replace 192.0.2.1/24 dev eth0
        ip -6 addr replace 2001:db8::1/64 dev eth0 nodad
        ip route replace default via 192.0.2.254
        ip -6 route replace default via 2001:db8::fe");
}

/// The `number`-th subnet of the IPv4 range.
pub(crate) fn subnet4(number: u32) -> IpNetwork {
    let base = u32::from(Ipv4Addr::new(10, 128, 0, 0));
    IpNetwork::new(IpAddr::V4((base + number * 256).into()), 24).expect("a network")
}

/// The `number`-th subnet of the IPv6 range.
pub(crate) fn subnet6(number: u32) -> IpNetwork {
    let number = u16::try_from(number).expect("as many as the range has");
    let ip = Ipv6Addr::new(0xfd00, 0x10, 0x244, number, 0, 0, 0, 0);
    IpNetwork::new(ip.into(), 64).expect("a network")
}

pub(crate) fn config() -> ClusterConfig {
    let range =
        |text: &str, subnet_prefix| ClusterRange { range: text.parse().expect("a range"), subnet_prefix };
    ClusterConfig {
        name: CLUSTER.to_owned(),
        ranges: vec![range("10.128.0.0/9", 24), range("fd00:10:244::/48", 64)],
        encapsulation: Encapsulation::default(),
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4, IpFamily::Ipv6],
        reclaim_after_seconds: None,
    }
}

pub(crate) fn name(number: u32) -> String {
    format!("n{number:05}")
}

/// Where the `number`-th peer is: not on this node's link.
pub(crate) fn remote4(number: u32) -> IpAddr {
    IpAddr::V4((u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number).into())
}

pub(crate) fn remote6(number: u32) -> IpAddr {
    let [high, low] = [(number >> 16) as u16, number as u16];
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, high, low).into()
}

/// The `number`-th peer, from 1; its subnets are those of its number, this node's are the 0th.
pub(crate) fn record(number: u32) -> NodeRecord {
    NodeRecord {
        name: name(number),
        instance: String::new(),
        generation: 0,
        addresses: vec![remote4(number), remote6(number)],
        subnets: vec![subnet4(number), subnet6(number)],
        claimed: u64::from(number),
        mtu: None,
        receives: Vec::new(),
        sends: None,
        same_family: false,
    }
}

/// A cluster that can be changed, and what was told of it.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    pub(crate) number: u64,
    pub(crate) ipv6: bool,
    /// What the store says of this node's own addresses.
    pub(crate) stated: Vec<IpAddr>,
}

impl World {
    /// This node and peers 1 to `peers`, with pods of both families.
    pub(crate) fn new(peers: u32) -> Self {
        let mut nodes = BTreeMap::new();
        let own = NodeRecord {
            name: OWN.to_owned(),
            addresses: vec![address("192.0.2.1"), address("2001:db8::1")],
            subnets: vec![subnet4(0), subnet6(0)],
            claimed: 0,
            ..record(0)
        };
        nodes.insert(OWN.to_owned(), Arc::new(own));
        nodes.extend((1..=peers).map(|number| (name(number), Arc::new(record(number)))));
        Self { snapshot: Snapshot { config: config(), nodes }, number: 0, ipv6: true, stated: Vec::new() }
    }

    /// The same with IPv4 pods alone.
    pub(crate) fn ipv4(peers: u32) -> Self {
        let mut world = Self::new(peers);
        world.ipv6 = false;
        world.snapshot.config.ranges.truncate(1);
        for record in world.snapshot.nodes.values_mut() {
            Arc::make_mut(record).subnets.truncate(1);
        }
        world
    }

    pub(crate) fn join(&mut self, number: u32) {
        let mut record = record(number);
        record.subnets.truncate(if self.ipv6 { 2 } else { 1 });
        self.snapshot.nodes.insert(name(number), Arc::new(record));
    }

    pub(crate) fn leave(&mut self, number: u32) {
        self.snapshot.nodes.remove(&name(number));
    }

    pub(crate) fn change(&mut self, number: u32, change: impl FnOnce(&mut NodeRecord)) {
        let record = self.snapshot.nodes.get_mut(&name(number)).expect("a node");
        change(Arc::make_mut(record));
    }

    pub(crate) fn input(&mut self, live: bool) -> Input {
        self.number += 1;
        let own = &self.snapshot.nodes[OWN];
        let membership = Membership {
            subnets: own.subnets.clone(),
            generation: 1,
            claimed: 0,
            addresses: self.stated.clone(),
        };
        Input {
            number: self.number,
            snapshot: Arc::new(self.snapshot.clone()),
            membership,
            former: Vec::new(),
            live,
        }
    }

    fn peers(&self) -> impl Iterator<Item = &NodeRecord> {
        self.snapshot.nodes.values().map(Arc::as_ref).filter(|record| record.name != OWN)
    }

    /// What the kernel must have, told by this test's own rules.
    pub(crate) fn expected(&self, mtu: u32) -> Kernel {
        let mut kernel = Kernel::default();
        let own = &self.snapshot.nodes[OWN].subnets;
        let mac = vtep_mac(CLUSTER, OWN, 1);
        for (device, local, overhead) in [(DEVICE, "192.0.2.1", 50), ("podwire6.1", "2001:db8::1", 70)] {
            let mtu = mtu - overhead;
            kernel.links.insert(format!("{device} {mac} mtu {mtu} up local {local} podwire overlay"));
            kernel.addresses.extend(own.iter().map(|subnet| {
                let bits = if subnet.is_ipv4() { 32 } else { 128 };
                format!("{}/{bits} {device}", subnet.ip())
            }));
        }
        kernel.links.insert(format!("{BRIDGE} up mtu {}", mtu - 50));
        kernel.addresses.extend(own.iter().map(|subnet| {
            let gateway = match subnet.ip() {
                IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + 1).into()),
                IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + 1).into()),
            };
            format!("{gateway}/{} {BRIDGE}", subnet.prefix())
        }));
        for peer in self.peers() {
            let mac = vtep_mac(CLUSTER, &peer.name, 1);
            for subnet in &peer.subnets {
                let via = subnet.ip();
                let metric = match via {
                    IpAddr::V4(ip) => (u32::from(ip) - u32::from(Ipv4Addr::new(10, 128, 0, 0))) / 256 + 1,
                    IpAddr::V6(_) => 1024,
                };
                kernel.routes.insert(format!("{subnet} via {via} {DEVICE} metric {metric} onlink"));
                kernel.neighbours.insert(format!("{via} {mac} {DEVICE}"));
            }
            kernel.fdb.insert(format!("{mac} {} {DEVICE}", peer.addresses[0]));
            kernel.senders.extend(peer.addresses.iter().copied());
        }
        kernel
    }
}

/// What the kernel has of ours, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) links: BTreeSet<String>,
    pub(crate) addresses: BTreeSet<String>,
    pub(crate) routes: BTreeSet<String>,
    pub(crate) neighbours: BTreeSet<String>,
    pub(crate) fdb: BTreeSet<String>,
    pub(crate) senders: BTreeSet<IpAddr>,
}

impl Kernel {
    /// Reads it, without a look at what the product reads by but the kernel crate.
    pub(crate) fn read() -> Self {
        let mut netlink = socket();
        let mut kernel = Self::default();
        let links = netlink.links().expect("links");
        let names: BTreeMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let named = |index: Option<u32>| names.get(&index.unwrap_or(0)).cloned().unwrap_or_default();
        for link in &links {
            let up = if link.flags.up { "up" } else { "down" };
            let is_named =
                ["podwire", "pw4.", "pw6.", "flannel"].iter().any(|start| link.name.starts_with(start));
            let ours = if let Some(vxlan) = link.vxlan.as_ref().filter(|_| is_named) {
                let mac = link.mac.expect("a MAC address");
                let local = vxlan.local.map(|ip| ip.to_string()).unwrap_or_default();
                let alias = link.alias.as_deref().unwrap_or("");
                let text = format!("{} {mac} mtu {} {up} local {local} {alias}", link.name, link.mtu);
                let found = netlink.neighbours(link.index).expect("neighbours");
                let found = found.iter().filter(|found| found.state == State::Permanent);
                kernel.neighbours.extend(found.map(|found| {
                    let mac = found.mac.map(|mac| mac.to_string()).unwrap_or_default();
                    format!("{} {mac} {}", found.address, link.name)
                }));
                let found = netlink.fdb(link.index).expect("FDB");
                kernel.fdb.extend(found.iter().map(|found| {
                    let to = found.destination.map(|ip| ip.to_string()).unwrap_or_default();
                    format!("{} {to} {}", found.mac, link.name)
                }));
                text
            } else if link.bridge.is_some() {
                format!("{} {up} mtu {}", link.name, link.mtu)
            } else {
                continue;
            };
            kernel.links.insert(ours);
        }
        for found in netlink.addresses(None).expect("addresses") {
            if found.protocol == addr::PROTOCOL {
                kernel.addresses.insert(format!("{} {}", found.address, named(Some(found.ifindex))));
            }
        }
        for family in [Family::V4, Family::V6] {
            let ours = RouteFilter { protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::main(family) };
            for route in netlink.routes(&ours).expect("routes") {
                let [hop] = route.nexthops.as_slice() else { panic!("several hops: {route}") };
                let via = hop.gateway.map(|ip| ip.to_string()).unwrap_or_default();
                let onlink = if route.onlink { " onlink" } else { "" };
                let mtu = route.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
                kernel.routes.insert(format!(
                    "{} via {via} {} metric {}{onlink}{mtu}",
                    route.destination,
                    named(hop.oif),
                    route.priority.unwrap_or(0)
                ));
            }
        }
        let mut nft = Nft::open().expect("nftables");
        for set in ["peers4", "peers6"] {
            let elements = nft.elements(TABLE, set).unwrap_or_default();
            kernel.senders.extend(elements.iter().map(|element| match element.key.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(element.key.as_slice()).expect("4 bytes")),
                _ => IpAddr::from(<[u8; 16]>::try_from(element.key.as_slice()).expect("16 bytes")),
            }));
        }
        kernel
    }

    /// The first few differences.
    pub(crate) fn differs_from(&self, expected: &Self) -> Vec<String> {
        fn sets<'a>(
            what: &'a str,
            is: &'a BTreeSet<String>,
            should: &'a BTreeSet<String>,
        ) -> impl Iterator<Item = String> + 'a {
            let lacks = should.difference(is).take(3).map(move |one| format!("lacks {what} {one}"));
            lacks.chain(is.difference(should).take(3).map(move |one| format!("has {what} {one}")))
        }
        let text = |set: &BTreeSet<IpAddr>| set.iter().map(IpAddr::to_string).collect::<BTreeSet<_>>();
        let senders = [text(&self.senders), text(&expected.senders)];
        sets("link", &self.links, &expected.links)
            .chain(sets("address", &self.addresses, &expected.addresses))
            .chain(sets("route", &self.routes, &expected.routes))
            .chain(sets("neighbour", &self.neighbours, &expected.neighbours))
            .chain(sets("FDB entry", &self.fdb, &expected.fdb))
            .chain(sets("sender", &senders[0], &senders[1]))
            .collect()
    }
}

/// Waits until the kernel is so; how long it took.
pub(crate) fn until_kernel_is(limit: Duration, expected: &Kernel) -> Duration {
    let begun = Instant::now();
    let mut differences = Vec::new();
    while begun.elapsed() < limit {
        let is = Kernel::read();
        if is == *expected {
            return begun.elapsed();
        }
        differences = is.differs_from(expected);
        pause();
    }
    panic!("not within {limit:?}: {differences:#?}");
}

#[expect(clippy::disallowed_methods, reason = "between two looks, until a limit")]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// The thread under test, in the calling thread's namespace.
pub(crate) struct Agent {
    pub(crate) overlay: Overlay,
    reports: mpsc::UnboundedReceiver<Report>,
    /// All reports so far.
    pub(crate) heard: Vec<Report>,
}

pub(crate) fn settings() -> Settings {
    Settings { node: OWN.to_owned(), bridge: Some(BRIDGE.to_owned()), ..Settings::default() }
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(settings())
    }

    pub(crate) fn start_with(settings: Settings) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let overlay = Overlay::start(settings, sender).expect("a thread");
        Self { overlay, reports, heard: Vec::new() }
    }

    /// Tells the world, and waits until it is so.
    pub(crate) fn tell(&mut self, world: &mut World) -> Report {
        self.tell_as(world, true)
    }

    pub(crate) fn tell_as(&mut self, world: &mut World, live: bool) -> Report {
        let input = world.input(live);
        let number = input.number;
        self.overlay.update(input);
        self.report(|report| report.number >= number && report.in_sync)
    }

    /// The first report from now on, or of those not looked at yet, of which that is true.
    pub(crate) fn report(&mut self, is: impl Fn(&Report) -> bool) -> Report {
        let mut last = None;
        let limit = Duration::from_secs(30);
        let found = within_or(limit, || {
            while let Ok(report) = self.reports.try_recv() {
                self.heard.push(report.clone());
                if is(&report) {
                    return Some(report);
                }
                last = Some(report);
            }
            None
        });
        found.unwrap_or_else(|| panic!("no such report within {limit:?}; the last is {last:?}"))
    }

    /// Reports that have come meanwhile.
    pub(crate) fn drain(&mut self) -> Vec<Report> {
        let mut drained = Vec::new();
        while let Ok(report) = self.reports.try_recv() {
            drained.push(report);
        }
        self.heard.extend(drained.iter().cloned());
        drained
    }

    /// Waits until it has nothing to do: events of its own work have been heard.
    pub(crate) fn rest(&mut self) {
        self.rest_for(Duration::from_millis(100));
    }

    /// The same, until the kernel has told of the carriers of new links as well, which it does once a second.
    pub(crate) fn settle(&mut self) {
        self.rest_for(Duration::from_millis(1200));
    }

    fn rest_for(&mut self, enough: Duration) {
        let mut quiet = Instant::now();
        within(Duration::from_secs(30), "the thread rests", || {
            if !self.drain().is_empty() {
                quiet = Instant::now();
            }
            (quiet.elapsed() > enough).then_some(())
        });
    }

    pub(crate) fn stop(self) {
        self.overlay.stop();
    }
}

fn within_or<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(found) = look() {
            return Some(found);
        }
        pause();
    }
    None
}
