//! Real packets: a client outside, the node in the middle, a pod on its bridge.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use podwire_attach::{Protocol, SourceCheck, rules};
use podwire_kernel::link::{self, LinkChange, LinkRef, VethSpec};
use podwire_kernel::route::{self, Nexthop, Route};
use podwire_kernel::{Family, MacAddr, Netns, addr, sysctl};

use crate::lab::{bridge, in_new_netns, nft, pod, port, run, socket, with_ports};

const LIMIT: Duration = Duration::from_secs(5);

/// A namespace on the other end of a veth from here, with these addresses and, if there is one, that default gateway.
fn neighbour(
    name: &str,
    controller: Option<&str>,
    here: &[&str],
    there: &[&str],
    gateways: &[&str],
) -> Netns {
    let other = in_new_netns(|| Netns::current().expect("/proc"));
    let mut netlink = socket();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let controller = controller
        .map(|name| netlink.link(LinkRef::Name(name)).expect("asked").expect("the bridge is there").index);
    let spec = VethSpec {
        name,
        mtu: None,
        mac: None,
        controller,
        group: None,
        peer_name: "eth0",
        peer_netns: other.as_fd(),
        peer_mac: None,
    };
    let mut requests = vec![link::create_veth(&spec)];
    requests.extend(link::change(LinkRef::Name(name), &up));
    let made = netlink.apply_then_link(&requests, LinkRef::Name(name)).expect("a veth").expect("it is there");
    let give = |index, addresses: &[&str]| -> Vec<_> {
        addresses.iter().map(|text| addr::add(index, text.parse().expect("a network"), true)).collect()
    };
    netlink.apply(&give(made.index, here)).expect("addresses");
    let peer = made.peer_index.expect("a peer");
    let inside = || {
        let mut requests = give(peer, there);
        requests.extend(link::change(LinkRef::Index(peer), &up));
        requests.extend(gateways.iter().map(|gateway| {
            let gateway: IpAddr = gateway.parse().expect("an address");
            let everywhere = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let hop = Nexthop { gateway: Some(gateway), oif: Some(peer) };
            route::add(&Route::new(everywhere.parse().expect("a network"), vec![hop]))
        }));
        socket().apply(&requests).expect("addresses and routes");
    };
    other.run(inside).expect("entered");
    other
}

/// Tells each client on that port, as long as the test runs, what address it appears to have.
fn serve(netns: &Netns, at: &str) {
    let listener = netns.run(|| TcpListener::bind(at).expect("bound")).expect("entered");
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            if let Ok(address) = client.peer_addr() {
                let _ = client.write_all(address.ip().to_canonical().to_string().as_bytes());
            }
        }
    });
}

/// What address the server sees; the error's text if it is not reached.
fn ask(netns: Option<&Netns>, server: &str) -> String {
    let server: SocketAddr = server.parse().expect("an address");
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let answer = match netns {
        Some(netns) => netns.run(ask).expect("entered"),
        None => ask(),
    };
    answer.unwrap_or_else(|error| error.to_string())
}

#[test]
fn host_ports_lead_to_the_pod_and_its_packets_get_the_node_s_address() {
    in_new_netns(|| {
        bridge("br0");
        let index = socket().link(LinkRef::Name("br0")).expect("asked").expect("there").index;
        let gateways = ["10.1.0.1/24", "fd01::1/64"]
            .map(|text| addr::add(index, text.parse().expect("a network"), true));
        socket().apply(&gateways).expect("addresses");
        sysctl::enable_forwarding(&mut socket(), Family::V4).expect("forwarding");
        sysctl::enable_forwarding(&mut socket(), Family::V6).expect("forwarding");
        let addresses = ["10.1.0.7/24", "fd01::7/64"];
        let inside = neighbour("pod0", Some("br0"), &[], &addresses, &["10.1.0.1", "fd01::1"]);
        let outside = neighbour(
            "up0",
            None,
            &["192.0.2.1/24", "2001:db8::1/64"],
            &["192.0.2.2/24", "2001:db8::2/64"],
            &[],
        );
        serve(&inside, "[::]:80");
        serve(&outside, "[::]:80");

        let ports = [port(Protocol::Tcp, None, 8080, 80), port(Protocol::Tcp, Some("192.0.2.1"), 8081, 80)];
        let pod = with_ports(pod("c1", &addresses), &ports);
        rules::install(&mut nft(), &pod, &|_| true).expect("installed");

        // The outside has no route to pods: it is reached, and answers, by the node's address alone.
        assert_eq!(ask(Some(&inside), "192.0.2.2:80"), "192.0.2.1");
        assert_eq!(ask(Some(&inside), "[2001:db8::2]:80"), "2001:db8::1");
        // From outside, whose address the pod sees.
        assert_eq!(ask(Some(&outside), "192.0.2.1:8080"), "192.0.2.2");
        assert_eq!(ask(Some(&outside), "192.0.2.1:8081"), "192.0.2.2");
        assert_eq!(ask(Some(&outside), "[2001:db8::1]:8080"), "2001:db8::2");
        // From the node, by its loopback address too; from the pod itself (its frames do not come by iptables).
        assert_eq!(ask(None, "192.0.2.1:8080"), "192.0.2.1");
        assert_eq!(ask(None, "127.0.0.1:8080"), "10.1.0.1");
        assert!(ask(None, "[::1]:8080").contains("refused"), "at once, so that clients try 127.0.0.1");
        assert!(ask(None, "127.0.0.1:8081").contains("refused"), "on another address");

        rules::remove(&mut nft(), pod.owner.id(), None).expect("removed");
        assert!(ask(Some(&outside), "192.0.2.1:8080").contains("refused"));
    });
}

/// Whether a datagram from that address of the pod comes to that one, which is the node's or another pod's.
fn arrives(pod: &Netns, from: &str, other: Option<&Netns>, to: &str) -> bool {
    let listen = || UdpSocket::bind(to).expect("bound");
    let server = other.map_or_else(listen, |other| other.run(listen).expect("entered"));
    server.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
    let from = format!("{from}:0");
    pod.run(|| UdpSocket::bind(&from).and_then(|client| client.send_to(b"?", to)).expect("sent"))
        .expect("entered");
    server.recv_from(&mut [0; 8]).is_ok()
}

fn pod_mac(pod: &Netns) -> MacAddr {
    let link = pod.run(|| socket().link(LinkRef::Name("eth0")).expect("asked")).expect("entered");
    link.and_then(|link| link.mac).expect("a MAC address")
}

#[test]
fn between_ports_of_a_bridge_a_pod_sends_what_is_its_own() {
    in_new_netns(|| {
        bridge("br0");
        let own = ["10.1.0.7", "[fd01::7]"];
        let others = ["10.1.0.9", "[fd01::9]"];
        let there = ["10.1.0.7/24", "10.1.0.9/24", "fd01::7/64", "fd01::9/64"];
        let checked = neighbour("pod0", Some("br0"), &[], &there, &[]);
        let neighbours = ["10.1.0.20", "[fd01::20]"];
        let neighbour = neighbour("pod1", Some("br0"), &[], &["10.1.0.20/24", "fd01::20/64"], &[]);
        // A new port passes nothing until the kernel has seen its carrier.
        let is_passing = || arrives(&checked, own[0], Some(&neighbour), &format!("{}:9000", neighbours[0]));
        assert!((0..10).any(|_| is_passing()), "the bridge passes nothing");
        let mac = pod_mac(&checked);
        let with = |check: Option<SourceCheck>| {
            let mut pod = pod("c1", &["10.1.0.7/24", "fd01::7/64"]);
            let traffic = pod.traffic.as_mut().expect("traffic");
            traffic.host_end = "pod0".to_owned();
            traffic.source_check = check;
            rules::remove(&mut nft(), pod.owner.id(), None).expect("removed");
            rules::install(&mut nft(), &pod, &|_| true).expect("installed");
            // What was learnt under the rules before does not count.
            for netns in [&checked, &neighbour] {
                netns.run(|| run("ip", &["neigh", "flush", "dev", "eth0"])).expect("entered");
            }
        };
        let sends = |from: [&str; 2]| {
            let pairs = from.into_iter().zip(neighbours);
            pairs
                .map(|(from, to)| arrives(&checked, from, Some(&neighbour), &format!("{to}:9000")))
                .collect::<Vec<_>>()
        };
        // Found by ARP and by neighbour discovery, in which it says where the address is.
        let is_found = |at: [&str; 2]| {
            let pairs = neighbours.into_iter().zip(at);
            pairs
                .map(|(from, at)| arrives(&neighbour, from, Some(&checked), &format!("{at}:9000")))
                .collect::<Vec<_>>()
        };
        for check in [None, Some(SourceCheck { mac, addresses: false })] {
            with(check);
            assert_eq!((sends(own), sends(others)), (vec![true; 2], vec![true; 2]));
            assert_eq!((is_found(own), is_found(others)), (vec![true; 2], vec![true; 2]));
        }
        with(Some(SourceCheck { mac, addresses: true }));
        assert_eq!((sends(own), sends(others)), (vec![true; 2], vec![false; 2]));
        assert_eq!((is_found(own), is_found(others)), (vec![true; 2], vec![false; 2]));
        with(Some(SourceCheck { mac: MacAddr([2, 9, 9, 9, 9, 9]), addresses: false }));
        assert_eq!((sends(own), is_found(own)), (vec![false; 2], vec![false; 2]));
    });
}

/// Another plugin's point-to-point link is no bridge's port: what comes by it is looked at where it is routed.
#[test]
fn on_a_link_of_its_own_a_pod_sends_from_its_addresses_alone() {
    in_new_netns(|| {
        let here = ["10.1.0.1/24", "fd01::1/64"];
        let there = ["10.1.0.7/24", "10.1.0.9/24", "fd01::7/64", "fd01::9/64"];
        let inside = neighbour("ptp0", None, &here, &there, &[]);
        let mac = pod_mac(&inside);
        let mut pod = pod("c1", &["10.1.0.7/24", "fd01::7/64"]);
        let mut traffic = pod.traffic.take().expect("traffic");
        traffic.device = "ptp0".to_owned();
        traffic.host_end = "ptp0".to_owned();
        let own = [("10.1.0.7", "10.1.0.1:9000"), ("[fd01::7]", "[fd01::1]:9000")];
        let others = [("10.1.0.9", "10.1.0.1:9000"), ("[fd01::9]", "[fd01::1]:9000")];
        let mut expect = |check: Option<SourceCheck>, own_pass: bool, others_pass: bool| {
            traffic.source_check = check;
            let mut pod = pod.clone();
            pod.traffic = Some(traffic.clone());
            rules::remove(&mut nft(), pod.owner.id(), None).expect("removed");
            rules::install(&mut nft(), &pod, &|_| true).expect("installed");
            assert_eq!(
                own.map(|(from, to)| arrives(&inside, from, None, to)),
                [own_pass; 2],
                "{:?}",
                traffic.source_check
            );
            let passed = others.map(|(from, to)| arrives(&inside, from, None, to));
            assert_eq!(passed, [others_pass; 2], "{:?}", traffic.source_check);
        };
        expect(None, true, true);
        expect(Some(SourceCheck { mac, addresses: false }), true, true);
        expect(Some(SourceCheck { mac, addresses: true }), true, false);
        expect(Some(SourceCheck { mac: MacAddr([2, 9, 9, 9, 9, 9]), addresses: false }), false, false);
    });
}
