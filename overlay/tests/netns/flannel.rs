//! Beside a flannel node, and on a node that was flannel's. The flannel nodes are stood in for by the objects that flannel
//! v0.28 has the kernel make: devices bound to their link with the kernel's TTL and checksums, addresses without a
//! protocol, permanent neighbours and forwarding entries, on-link routes of the kernel's own metric.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podwire_kernel::link::{LinkRef, VethSpec, create_veth};
use podwire_kernel::testing::{in_new_netns, new_netns, socket, within};
use podwire_kernel::{Family, MacAddr, Netns};
use podwire_overlay::cluster::topology::vtep_mac;
use podwire_overlay::cluster::{Encapsulation, NodeRecord, Vtep};
use podwire_overlay::dataplane::Settings;
use podwire_overlay::desired::Naming;

use super::lab::{
    Agent, BRIDGE, CLUSTER, Kernel, OWN, SOON, World, address, ip, pause, settings, sh, subnet4, subnet6,
    until_kernel_is, uplink,
};

/// Which families pods have.
#[derive(Clone, Copy)]
struct Pods {
    v4: bool,
    v6: bool,
}

const DUAL: Pods = Pods { v4: true, v6: true };

/// A node, as flannel on another one knows it.
#[derive(Clone)]
struct End {
    number: u32,
    at: [IpAddr; 2],
    macs: [MacAddr; 2],
}

/// This node, if it is flannel's.
fn near() -> End {
    End {
        number: 0,
        at: [address("192.0.2.1"), address("2001:db8::1")],
        macs: [MacAddr([0x2a, 0, 0, 0, 4, 1]), MacAddr([0x2a, 0, 0, 0, 6, 1])],
    }
}

fn far() -> End {
    End {
        number: 2,
        at: [address("192.0.2.2"), address("2001:db8::2")],
        macs: [MacAddr([0x2a, 0, 0, 0, 4, 2]), MacAddr([0x2a, 0, 0, 0, 6, 2])],
    }
}

/// The addresses of a pod of that node.
fn pod(number: u32, pods: Pods) -> Vec<IpAddr> {
    let host = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + 5).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + 5).into()),
    };
    let subnets = [Some(subnet4(number)).filter(|_| pods.v4), Some(subnet6(number)).filter(|_| pods.v6)];
    subnets.into_iter().flatten().map(|subnet| host(subnet.ip())).collect()
}

/// Makes what flannel has on a node, in the calling thread's namespace.
fn flannel(link: &str, own: &End, peer: &End, pods: Pods) {
    if pods.v4 {
        let [own_at, peer_at, own_mac, peer_mac] = [
            own.at[0].to_string(),
            peer.at[0].to_string(),
            own.macs[0].to_string(),
            peer.macs[0].to_string(),
        ];
        let (own_vtep, subnet) = (subnet4(own.number).ip(), subnet4(peer.number));
        let vtep = subnet.ip();
        sh(&format!(
            "ip link add flannel.1 address {own_mac} mtu 1450 type vxlan id 1 local {own_at} dev {link} dstport 8472 nolearning
             ip link set flannel.1 up
             ip addr add {own_vtep}/32 dev flannel.1
             ip neigh replace {vtep} lladdr {peer_mac} dev flannel.1 nud permanent
             bridge fdb replace {peer_mac} dev flannel.1 dst {peer_at} self permanent
             ip route add {subnet} via {vtep} dev flannel.1 onlink
             echo 1 >/proc/sys/net/ipv4/ip_forward"
        ));
    }
    if pods.v6 {
        let [own_at, peer_at, own_mac, peer_mac] = [
            own.at[1].to_string(),
            peer.at[1].to_string(),
            own.macs[1].to_string(),
            peer.macs[1].to_string(),
        ];
        let (own_vtep, subnet) = (subnet6(own.number).ip(), subnet6(peer.number));
        let vtep = subnet.ip();
        sh(&format!(
            "ip link add flannel-v6.1 address {own_mac} mtu 1450 type vxlan id 1 local {own_at} dev {link} dstport 8472 nolearning
             ip link set flannel-v6.1 up
             ip -6 addr add {own_vtep}/128 dev flannel-v6.1 nodad
             ip -6 neigh replace {vtep} lladdr {peer_mac} dev flannel-v6.1 nud permanent
             bridge fdb replace {peer_mac} dev flannel-v6.1 dst {peer_at} self permanent
             ip -6 route add {subnet} via {vtep} dev flannel-v6.1 onlink
             echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
        ));
    }
}

/// The bridge of flannel's pods, with their gateways.
fn cni0(number: u32, pods: Pods) {
    sh("ip link add cni0 mtu 1450 type bridge; ip link set cni0 up");
    if pods.v4 {
        ip(&format!("addr add {}1/24 dev cni0", subnet4(number).ip().to_string().trim_end_matches('0')));
    }
    if pods.v6 {
        ip(&format!("-6 addr add {}1/64 dev cni0 nodad", subnet6(number).ip()));
    }
}

/// The flannel node at the other end of `eth0`, whose one pod answers whatever it is sent.
fn far_node(other: &Netns, peer: &End, pods: Pods) -> Vec<Echo> {
    let peer = peer.clone();
    let inside = move || {
        sh("ip addr add 192.0.2.2/24 dev peer; ip -6 addr add 2001:db8::2/64 dev peer nodad");
        flannel("peer", &far(), &peer, pods);
        cni0(far().number, pods);
        for address in pod(far().number, pods) {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            ip(&format!("addr add {address} dev cni0{nodad}"));
        }
        pod(far().number, pods).into_iter().map(|address| Echo::start((address, 7).into())).collect()
    };
    other.run(inside).expect("the other namespace")
}

/// A pod of this node on that bridge.
fn near_pod(bridge: &str, pods: Pods) -> Netns {
    let pod_netns = new_netns();
    let controller = socket().link(LinkRef::Name(bridge)).expect("links").expect("the bridge").index;
    let spec = VethSpec {
        name: "pod5",
        mtu: Some(1400),
        mac: None,
        controller: Some(controller),
        group: None,
        peer_name: "eth0",
        peer_netns: pod_netns.as_fd(),
        peer_mac: None,
    };
    socket().apply(&[create_veth(&spec)]).expect("a pod's link");
    ip("link set pod5 up");
    let inside = move || {
        sh("ip link set eth0 up");
        for address in pod(0, pods) {
            let (gateway, bits, nodad) = match address {
                IpAddr::V4(_) => ("10.128.0.1", 24, ""),
                IpAddr::V6(_) => ("fd00:10:244::1", 64, " nodad"),
            };
            ip(&format!("addr add {address}/{bits} dev eth0{nodad}"));
            ip(&format!("route add default via {gateway}"));
        }
    };
    pod_netns.run(inside).expect("the pod");
    pod_netns
}

/// Sends back what it gets, until it is dropped.
struct Echo {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(at: SocketAddr) -> Self {
        let socket = UdpSocket::bind(at).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { ends, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// A socket of a pod of this node that talks to one of the far node's.
fn talk(pod_netns: &Netns, from: IpAddr, to: IpAddr) -> UdpSocket {
    let bind = move || UdpSocket::bind((from, 0)).and_then(|socket| socket.connect((to, 7)).map(|()| socket));
    let socket = pod_netns.run(bind).expect("the pod").expect("a socket");
    socket.set_nonblocking(true).expect("a mode");
    socket
}

/// Waits until an answer comes.
fn until_answered(socket: &UdpSocket) {
    within(Duration::from_secs(10), "an answer comes", || {
        let _ = socket.send(&[0xff; 4]);
        pause();
        socket.recv(&mut [0; 64]).ok()
    });
}

/// A flow has so many packets at least.
const ENOUGH: u32 = 100;

/// Numbered packets, 500 in a second, until it is ended; each is answered.
struct Flow {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<(u32, BTreeSet<u32>)>,
}

impl Flow {
    fn start(socket: UdpSocket) -> Self {
        until_answered(&socket);
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let (mut sent, mut lacking) = (0_u32, BTreeSet::new());
            let mut buffer = [0; 64];
            let mut hear = |lacking: &mut BTreeSet<u32>| {
                while let Ok(4) = socket.recv(&mut buffer) {
                    lacking.remove(&u32::from_be_bytes(buffer[..4].try_into().expect("4 bytes")));
                }
            };
            while sent < ENOUGH || !ended.load(Ordering::Relaxed) {
                lacking.insert(sent);
                // What cannot even be sent lacks its answer.
                let _ = socket.send(&sent.to_be_bytes());
                sent += 1;
                hear(&mut lacking);
                pause();
            }
            let limit = Instant::now() + Duration::from_secs(3);
            while !lacking.is_empty() && Instant::now() < limit {
                hear(&mut lacking);
                pause();
            }
            (sent, lacking)
        });
        Self { ends, thread }
    }

    /// How many were sent, and those without an answer.
    fn end(self) -> (u32, BTreeSet<u32>) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("a flow")
    }
}

fn flannel_record(end: &End) -> NodeRecord {
    let [mac, mac6] = end.macs;
    NodeRecord {
        addresses: end.at.to_vec(),
        receives: vec![Vtep { encapsulation: Encapsulation::default(), mac, mac6: Some(mac6) }],
        same_family: true,
        ..super::lab::record(end.number)
    }
}

/// This node and the far one.
fn world(pods: Pods) -> World {
    let mut world = World::new(0);
    world.join(far().number);
    world.change(far().number, |record| *record = flannel_record(&far()));
    let has = |v4: bool| if v4 { pods.v4 } else { pods.v6 };
    world.snapshot.config.ranges.retain(|range| has(range.range.is_ipv4()));
    for record in world.snapshot.nodes.values_mut() {
        Arc::make_mut(record).subnets.retain(|subnet| has(subnet.is_ipv4()));
    }
    world
}

/// How many packets a link has received.
fn received(link: &str) -> u64 {
    let shown: serde_json::Value =
        serde_json::from_str(&ip(&format!("-j -s link show {link}"))).expect("what `ip` prints");
    shown[0]["stats64"]["rx"]["packets"].as_u64().expect("a number")
}

fn a_flannel_node_is_a_peer(pods: Pods) {
    in_new_netns(move || {
        let other = uplink();
        let usual = vtep_mac(CLUSTER, OWN, 1);
        let _echoes = far_node(&other, &End { macs: [usual; 2], ..near() }, pods);
        let mut agent = Agent::start();
        let report = agent.tell(&mut world(pods));
        assert_eq!((report.counts.tunnel, report.problems.as_slice()), (1, &[][..]));
        let pod_netns = near_pod(BRIDGE, pods);
        let rx = |link: &'static str| other.run(move || received(link)).expect("the other namespace");
        for (from, to) in pod(0, pods).into_iter().zip(pod(far().number, pods)) {
            let (used, unused) = match from {
                IpAddr::V4(_) => ("flannel.1", "flannel-v6.1"),
                IpAddr::V6(_) => ("flannel-v6.1", "flannel.1"),
            };
            let before = (pods.v4 && pods.v6).then(|| rx(unused));
            let flow = Flow::start(talk(&pod_netns, from, to));
            let count = rx(used);
            within(SOON, "packets arrive by the device of their family", || {
                (rx(used) > count + 50).then_some(())
            });
            let (sent, lost) = flow.end();
            assert!(lost.is_empty(), "{from}: {} of {sent} lost", lost.len());
            assert!(before.is_none_or(|before| rx(unused) == before), "{from} came by {unused}");
        }
        agent.stop();
    });
}

#[test]
fn a_flannel_node_is_a_peer_for_ipv4_pods() {
    a_flannel_node_is_a_peer(Pods { v4: true, v6: false });
}

#[test]
fn a_flannel_node_is_a_peer_for_ipv6_pods() {
    a_flannel_node_is_a_peer(Pods { v4: false, v6: true });
}

#[test]
fn a_flannel_node_is_a_peer_for_pods_of_both_families_each_by_its_own_device() {
    a_flannel_node_is_a_peer(DUAL);
}

fn adopted() -> Settings {
    let [mac, mac6] = near().macs;
    let naming = Naming::default().adopt(Family::V4, Encapsulation::default(), "flannel.1", mac).adopt(
        Family::V6,
        Encapsulation::default(),
        "flannel-v6.1",
        mac6,
    );
    Settings { bridge: Some("cni0".to_owned()), naming, ..settings() }
}

/// This node as flannel left it, with a pod, beside a flannel node.
fn a_node_that_was_flannels() -> (Netns, Vec<Echo>, Netns) {
    let other = uplink();
    let echoes = far_node(&other, &near(), DUAL);
    flannel("eth0", &near(), &far(), DUAL);
    cni0(0, DUAL);
    let pod_netns = near_pod("cni0", DUAL);
    (other, echoes, pod_netns)
}

fn flows(pod_netns: &Netns) -> Vec<Flow> {
    let ends = pod(0, DUAL).into_iter().zip(pod(far().number, DUAL));
    ends.map(|(from, to)| Flow::start(talk(pod_netns, from, to))).collect()
}

fn none_lost(flows: Vec<Flow>) {
    for flow in flows {
        let (sent, lost) = flow.end();
        assert!(lost.is_empty(), "{} of {sent} lost: {lost:?}", lost.len());
    }
}

/// Index and Ethernet address of flannel's devices.
fn devices() -> Vec<(u32, Option<MacAddr>)> {
    let link = |name| socket().link(LinkRef::Name(name)).expect("links").expect("the device");
    ["flannel.1", "flannel-v6.1"].map(link).map(|link| (link.index, link.mac)).to_vec()
}

#[test]
fn a_node_that_was_flannels_loses_no_packet_and_keeps_its_devices() {
    in_new_netns(|| {
        let (_other, _echoes, pod_netns) = a_node_that_was_flannels();
        let before = devices();
        let mut world = world(DUAL);
        let running = flows(&pod_netns);
        let mut agent = Agent::start_with(adopted());
        let report = agent.tell(&mut world);
        let told =
            Vtep { encapsulation: Encapsulation::default(), mac: near().macs[0], mac6: Some(near().macs[1]) };
        assert_eq!((report.announcement.receives.as_slice(), report.barred.as_ref()), (&[told][..], None));
        assert_eq!(devices(), before);
        let is = Kernel::read();
        let own: Vec<_> = is.routes.iter().map(String::as_str).collect();
        assert_eq!(
            own,
            [
                "10.128.2.0/24 via 10.128.2.0 flannel.1 metric 3 onlink",
                "fd00:10:244:2::/64 via fd00:10:244:2:: flannel-v6.1 metric 1024 onlink",
            ]
        );
        assert!(is.links.iter().filter(|link| link.ends_with("podwire overlay")).count() == 2, "{is:?}");
        // One of IPv6 is in the place of flannel's; flannel's of IPv4 is preferred until it is taken away.
        assert_eq!(ip("-6 route show fd00:10:244:2::/64").lines().count(), 1);
        assert!(report.problems.iter().any(|problem| problem.text.contains("10.128.2.0/24")), "{report:?}");
        ip("route del 10.128.2.0/24 metric 0");
        agent.rest();
        agent.stop();

        // Another agent finds nothing to do.
        let mut agent = Agent::start_with(adopted());
        assert_eq!(agent.tell(&mut world).operations.values().sum::<usize>(), 0);
        none_lost(running);
        assert_eq!((devices(), Kernel::read()), (before, is));
        agent.stop();
    });
}

#[test]
fn adopted_devices_are_kept_as_ours_are_and_come_back_under_their_names() {
    in_new_netns(|| {
        let (_other, _echoes, pod_netns) = a_node_that_was_flannels();
        let mut agent = Agent::start_with(adopted());
        agent.tell(&mut world(DUAL));
        // What comes in the place of flannel's addresses and routes has our mark.
        sh("ip route del 10.128.2.0/24 metric 0
            for link in flannel.1 flannel-v6.1 cni0; do ip addr flush dev $link; done");
        agent.settle();
        let expected = Kernel::read();
        assert_eq!((expected.addresses.len(), expected.routes.len()), (6, 2), "{expected:?}");
        let talks: Vec<_> = pod(0, DUAL)
            .into_iter()
            .zip(pod(far().number, DUAL))
            .map(|(from, to)| talk(&pod_netns, from, to))
            .collect();
        for fault in [
            "ip link set flannel.1 down",
            "ip link set flannel.1 address 02:00:00:00:00:99",
            "ip link set flannel.1 alias ''; ip link set flannel-v6.1 mtu 1300",
            "ip link set flannel.1 type vxlan id 1 learning",
            "ip addr flush dev flannel.1; ip route flush proto 112; ip -6 route flush proto 112",
            "ip neigh flush dev flannel.1 nud permanent; ip -6 neigh flush dev flannel-v6.1 nud permanent",
            "bridge fdb flush dev flannel.1 self; bridge fdb flush dev flannel-v6.1 self",
            "ip addr flush dev cni0; ip link set cni0 down",
            // With all they have, as a reboot does.
            "ip link del flannel.1; ip link del flannel-v6.1",
            "ip link del flannel.1",
        ] {
            sh(fault);
            let took = until_kernel_is(SOON, &expected);
            println!("{} ms: {fault}", took.as_millis());
            talks.iter().for_each(until_answered);
        }
        let macs: Vec<_> = devices().into_iter().map(|(_, mac)| mac).collect();
        assert_eq!(macs, near().macs.map(Some));
        assert!(!ip("-o link").contains(": podwire"), "{}", ip("-o link"));
        agent.stop();
    });
}

#[test]
fn before_it_is_taken_over_flannels_node_goes_on_and_nothing_is_announced() {
    in_new_netns(|| {
        let (_other, _echoes, pod_netns) = a_node_that_was_flannels();
        let look = || {
            let shown = ["flannel.1", "flannel-v6.1"].map(|link| {
                ["-d link", "route", "-6 route", "neigh"].map(|what| ip(&format!("{what} show dev {link}")))
            });
            (devices(), shown)
        };
        let before = look();
        let running = flows(&pod_netns);
        let mut agent = Agent::start();
        agent.overlay.update(world(DUAL).input(true));
        let report = agent.report(|report| report.full && report.number == 1);
        let barred = report.barred.expect("a reason");
        assert!(barred.contains("flannel.1") && barred.contains("podwirectl migrate flannel"), "{barred}");
        assert_eq!(report.announcement.receives, []);
        agent.rest();
        none_lost(running);
        assert_eq!(look(), before);
        agent.stop();
    });
}
