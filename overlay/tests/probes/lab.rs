//! Two nodes, each a network namespace with a VXLAN device and a prober, and between them a wire that can be spoilt.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use podwire_kernel::link::{self, LOOPBACK, LinkChange, LinkRef, VethSpec, Vxlan};
use podwire_kernel::packet::{Offload, Options, PacketSocket};
use podwire_kernel::route::{self, Nexthop, ROUTE_PROTOCOL, Route};
use podwire_kernel::{MacAddr, Netlink, Netns, addr, neighbour};
use podwire_overlay::probe::{Config, End, Peer, ProbeReport, Prober, Targets, TunnelEnd};
use tokio::sync::{mpsc, watch};

pub(crate) const DEVICE: &str = "podwire.1";
const PATIENCE: Duration = Duration::from_secs(20);
const UP: LinkChange = LinkChange { up: Some(true), ..NOTHING };
const NOTHING: LinkChange = LinkChange {
    name: None,
    up: None,
    mtu: None,
    mac: None,
    alias: None,
    controller: None,
    addr_gen_mode: None,
    group: None,
    promisc: None,
    all_multicast: None,
    tx_queue_length: None,
    hairpin: None,
    isolated: None,
    mcast_flood: None,
    mcast_snooping: None,
    mcast_querier: None,
    vlan_filtering: None,
    arp_notify: None,
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A thread in a network namespace of its own.
#[expect(clippy::disallowed_methods, reason = "called on threads of the tests' own")]
fn in_new_netns<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let enter = || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            panic!(
                "cannot make a network namespace: {errno}; these tests need CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW (root)"
            );
        }
        Netlink::open().expect("netlink").apply(&link::change(LinkRef::Index(LOOPBACK), &UP)).expect("lo up");
        f()
    };
    thread::Builder::new().name(name.to_owned()).spawn(enter).expect("a thread")
}

fn new_netns() -> Netns {
    in_new_netns("netns", || Netns::current().expect("/proc")).join().expect("it ends")
}

/// What the wire does to frames.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Cards that fill in no checksums inside of VXLAN: bit 0 of the first node, bit 1 of the second.
    pub(crate) broken_cards: AtomicU8,
    /// The longest frame that passes, in bytes.
    pub(crate) longest: AtomicUsize,
    /// Nothing passes.
    pub(crate) is_cut: AtomicBool,
    is_over: AtomicBool,
}

impl Wire {
    /// Carries frames from one link to another until the test is over.
    fn carry(&self, from: &mut PacketSocket, to: &PacketSocket, card: u8) {
        while !self.is_over.load(Ordering::Relaxed) {
            let Ok(Some(frame)) = from.receive(Duration::from_millis(50)) else { continue };
            if frame.length > self.longest.load(Ordering::Relaxed) || self.is_cut.load(Ordering::Relaxed) {
                continue;
            }
            let mut offload = frame.offload.expect("asked for");
            // Behind Ethernet, IPv4, UDP, VXLAN and Ethernet again, at least: the checksum is the inner packet's.
            let is_inside = offload.checksum.is_some_and(|(start, _)| start > 64);
            if is_inside && self.broken_cards.load(Ordering::Relaxed) & card != 0 {
                offload = Offload { checksum: None, ..offload };
            }
            // A full queue loses a frame, as queues do.
            let _ = to.send_with(frame.bytes, offload);
        }
    }
}

pub(crate) struct Node {
    number: u8,
    pub(crate) netns: Arc<Netns>,
    pub(crate) targets: watch::Sender<Arc<Targets>>,
    reports: mpsc::Receiver<ProbeReport>,
}

pub(crate) struct Lab {
    pub(crate) nodes: [Node; 2],
    pub(crate) wire: Arc<Wire>,
    threads: Vec<JoinHandle<()>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self::bare();
        for node in &lab.nodes {
            node.make_device();
        }
        lab
    }

    /// Without VXLAN devices.
    pub(crate) fn bare() -> Self {
        let wire = Arc::new(Wire { longest: AtomicUsize::new(usize::MAX), ..Wire::default() });
        let (middle, sides) = (new_netns(), [new_netns(), new_netns()]);
        let mut threads = Vec::new();
        let index = |name| {
            Netlink::open().expect("netlink").link(LinkRef::Name(name)).expect("read").expect("there").index
        };
        let sockets = middle.run(|| {
            let mut netlink = Netlink::open().expect("netlink");
            for (name, side) in ["a", "b"].iter().zip(&sides) {
                let spec = VethSpec {
                    name,
                    mtu: None,
                    mac: None,
                    controller: None,
                    group: None,
                    peer_name: "eth0",
                    peer_netns: side.as_fd(),
                    peer_mac: None,
                };
                let mut requests = vec![link::create_veth(&spec)];
                requests.extend(link::change(LinkRef::Name(name), &UP));
                netlink.apply(&requests).expect("a wire");
            }
            let ends = [index("a"), index("b")];
            let from = ends.map(|end| {
                let options = Options { snap: 1 << 16, offload: true, only_received: true, filter: &[] };
                PacketSocket::open(end, &options).expect("a packet socket")
            });
            let to = ends.map(|end| {
                PacketSocket::open(end, &Options { offload: true, ..Options::default() })
                    .expect("a packet socket")
            });
            (from, to)
        });
        let ([from_a, from_b], [to_a, to_b]) = sockets.expect("enter");
        for (mut from, to, card) in [(from_a, to_b, 1), (from_b, to_a, 2)] {
            let wire = wire.clone();
            threads.push(thread::spawn(move || wire.carry(&mut from, &to, card)));
        }
        let [a, b] = sides;
        let nodes = [Node::start(1, a, &mut threads), Node::start(2, b, &mut threads)];
        // The middle namespace lives as long as the sockets in it.
        Self { nodes, wire, threads }
    }

    /// The next report of each node about each family that meets the condition.
    pub(crate) fn both(&mut self, what: &str, is_it: impl Fn(&ProbeReport) -> bool) -> Vec<ProbeReport> {
        let mut found = Vec::new();
        for node in &mut self.nodes {
            found.extend(node.both(what, &is_it));
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.wire.is_over.store(true, Ordering::Relaxed);
        for node in &mut self.nodes {
            // The prober ends when its targets' sender is gone.
            node.targets = watch::channel(Arc::default()).0;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !thread::panicking() {
                panic!("a thread of the lab failed");
            }
        }
    }
}

pub(crate) fn config() -> Config {
    let millis = Duration::from_millis;
    Config { interval: Some(millis(400)), timeout: millis(250), ..Config::default() }
}

impl Node {
    fn start(number: u8, netns: Netns, threads: &mut Vec<JoinHandle<()>>) -> Self {
        let netns = Arc::new(netns);
        let (targets, receiver) = watch::channel(Arc::new(Targets::default()));
        let (sender, reports) = mpsc::channel(1000);
        let node = Self { number, netns: netns.clone(), targets, reports };
        node.netns.run(|| node.underlay()).expect("enter");
        node.targets.send_replace(Arc::new(node.peer_targets()));
        let run = move || {
            // On a thread of its own that stays in the namespace.
            let prober = netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(Prober::new(config()).run(receiver, sender));
            });
            prober.expect("enter");
        };
        threads.push(thread::spawn(run));
        node
    }

    fn underlay(&self) {
        let mut netlink = Netlink::open().expect("netlink");
        let mut requests = link::change(LinkRef::Name("eth0"), &UP);
        let eth0 = netlink.link(LinkRef::Name("eth0")).expect("read").expect("there").index;
        let address = format!("192.0.2.{}/24", self.number).parse().expect("an address");
        requests.push(addr::add(eth0, address, true));
        netlink.apply(&requests).expect("an underlay");
    }

    fn mac(number: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, number])
    }

    /// The inner addresses of a node's VTEP.
    pub(crate) fn inner(number: u8) -> [IpAddr; 2] {
        [ip(&format!("10.244.{number}.0")), ip(&format!("fd00:{number}::"))]
    }

    /// What the agent would make: the device, its addresses, and all that leads to the other node.
    pub(crate) fn make_device(&self) {
        let (own, other) = (self.number, 3 - self.number);
        let make = || {
            let mut netlink = Netlink::open().expect("netlink");
            let local = ip(&format!("192.0.2.{own}"));
            let mut requests = vec![link::create_vxlan(
                DEVICE,
                Self::mac(own),
                Some(1450),
                &Vxlan::new(1, 8472, Some(local)),
            )];
            requests.extend(link::change(LinkRef::Name(DEVICE), &UP));
            let device =
                netlink.apply_then_link(&requests, LinkRef::Name(DEVICE)).expect("made").expect("there");
            let (device, mac) = (device.index, Self::mac(other));
            let mut requests = vec![neighbour::replace_fdb(device, mac, ip(&format!("192.0.2.{other}")))];
            requests.extend(Self::inner(own).map(|inner| addr::add(device, inner.into(), true)));
            for (inner, prefix) in Self::inner(other).into_iter().zip([24, 64]) {
                let nexthop = Nexthop { gateway: Some(inner), oif: Some(device) };
                let network = ipnetwork::IpNetwork::new(inner, prefix).expect("a subnet");
                let mut route = Route::new(network, vec![nexthop]);
                (route.onlink, route.protocol) = (true, ROUTE_PROTOCOL);
                requests.extend([neighbour::replace(device, inner, mac), route::replace(&route)]);
            }
            netlink.apply(&requests).expect("programmed");
        };
        self.netns.run(make).expect("enter");
    }

    pub(crate) fn peer_targets(&self) -> Targets {
        let (own, other) = (self.number, 3 - self.number);
        let tunnel = Arc::new(TunnelEnd {
            device: DEVICE.into(),
            source: Self::mac(own),
            destination: Self::mac(other),
        });
        let ends = Self::inner(other).map(|address| End { address, mtu: 1450, tunnel: Some(tunnel.clone()) });
        let name = |number| Arc::from(format!("node{number}"));
        Targets {
            node: name(own),
            instance: format!("instance{own}").into(),
            own: Self::inner(own).to_vec(),
            peers: vec![Peer {
                node: name(other),
                instance: format!("instance{other}").into(),
                ends: ends.to_vec(),
            }],
        }
    }

    /// The next report about each family that meets the condition.
    pub(crate) fn both(&mut self, what: &str, is_it: impl Fn(&ProbeReport) -> bool) -> Vec<ProbeReport> {
        let mut found: Vec<ProbeReport> = Vec::new();
        let (deadline, mut last) = (Instant::now() + PATIENCE, None);
        while found.len() < 2 {
            let report = match self.reports.try_recv() {
                Ok(report) => report,
                Err(mpsc::error::TryRecvError::Empty) => {
                    assert!(
                        Instant::now() < deadline,
                        "node {}, not in time: {what}; last: {last:?}",
                        self.number
                    );
                    pause();
                    continue;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    panic!("node {}: the prober ended", self.number)
                }
            };
            if is_it(&report) && !found.iter().any(|found| found.family == report.family) {
                found.push(report.clone());
            }
            last = Some(report);
        }
        found
    }
}

/// Waits for a state that comes without an event, 20 s at most.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the prober's reports are polled by a thread without a runtime"
)]
fn pause() {
    thread::sleep(Duration::from_millis(5));
}
