//! A UDP client that goes on sending from one port reaches whichever pod has the host port now.

use std::net::UdpSocket;
use std::time::Duration;

use podwire_attach::{PortMapping, Protocol, Traffic, conntrack, removal, rules};
use podwire_kernel::link::{self, LinkChange, LinkRef, VethSpec};
use podwire_kernel::nft::Nft;
use podwire_kernel::{Netlink, Netns, addr};

use crate::lab::{Pod, eventually, network, new_netns, on_a_node, pod, socket};

/// A host beyond the node, 192.0.2.2; the node is 192.0.2.1.
fn outside(host: &mut Netlink) -> Netns {
    let netns = new_netns();
    let spec = VethSpec {
        name: "uplink",
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: "eth0",
        peer_netns: std::os::fd::AsFd::as_fd(&netns),
        peer_mac: None,
    };
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let mut requests = vec![link::create_veth(&spec)];
    requests.extend(link::change(LinkRef::Name("uplink"), &up));
    let made = host.apply_then_link(&requests, LinkRef::Name("uplink")).expect("made").expect("there");
    host.apply(&[addr::add(made.index, network("192.0.2.1/24"), true)]).expect("an address");
    let mut there = netns.netlink().expect("a socket");
    let eth0 = there.link(LinkRef::Name("eth0")).expect("asked").expect("there").index;
    let mut requests = link::change(LinkRef::Index(eth0), &up);
    requests.push(addr::add(eth0, network("192.0.2.2/24"), true));
    there.apply(&requests).expect("configured");
    netns
}

fn serving(number: u8) -> Pod {
    let port = PortMapping { protocol: Protocol::Udp, host_ip: None, host_port: 5300, container_port: 53 };
    let mut pod = pod(number).with_traffic(Traffic { ports: vec![port], ..Traffic::default() });
    let gateway = "10.1.0.1".parse().ok();
    pod.wanted.routes = vec![podwire_attach::plan::PodRoute {
        destination: network("0.0.0.0/0"),
        gateway,
        table: None,
        scope: None,
        priority: None,
        mtu: None,
        advmss: None,
    }];
    pod
}

fn listen(pod: &Pod) -> UdpSocket {
    let server = pod.netns.run(|| UdpSocket::bind("0.0.0.0:53").expect("a port")).expect("enter");
    server.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    server
}

fn hears(client: &UdpSocket, server: &UdpSocket) -> bool {
    let mut buffer = [0; 16];
    // An ICMP error of an earlier datagram is told by the next call.
    let _ = client.send(b"x").or_else(|_| client.send(b"x"));
    server.recv(&mut buffer).is_ok()
}

#[test]
fn a_client_that_goes_on_sending_reaches_the_pod_of_the_moment() {
    on_a_node(|| {
        let mut host = socket();
        let mut nft = Nft::open().expect("a socket");
        let outside = outside(&mut host);
        let client = outside.run(|| UdpSocket::bind("192.0.2.2:4000").expect("a port")).expect("enter");
        client.connect("192.0.2.1:5300").expect("an address");

        let first = serving(2);
        first.attach(&mut host).expect("attached");
        let server = listen(&first);
        eventually("the first pod hears", || hears(&client, &server).then_some(()));
        // It is gone without a word about its connections, as after a crash.
        rules::remove(&mut nft, first.owner().id(), Some(&first.wanted.attachment)).expect("removed");
        removal::remove_many(&mut host, &[first.owner().id()]).expect("removed");

        let second = serving(3);
        second.attach(&mut host).expect("attached");
        let server = listen(&second);
        eventually("the second pod hears", || hears(&client, &server).then_some(()));

        // The port is nobody's for a while: then the connection is one to the node itself.
        rules::remove(&mut nft, second.owner().id(), Some(&second.wanted.attachment)).expect("removed");
        assert_eq!(conntrack::flush_of(&second.wanted.attachment).expect("flushed"), 1);
        assert_eq!(conntrack::flush_of(&second.wanted.attachment).expect("flushed"), 0);
        assert!(!hears(&client, &server));
        removal::remove_many(&mut host, &[second.owner().id()]).expect("removed");

        let third = serving(4);
        third.attach(&mut host).expect("attached");
        let server = listen(&third);
        eventually("the third pod hears", || hears(&client, &server).then_some(()));
        assert_eq!(conntrack::flush_stale(&mut host, &third.wanted.attachment).expect("flushed"), 0);
    });
}
