//! Connection tracking, with real flows.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use podwire_kernel::conntrack::{Conntrack, Entry, Filter};
use podwire_kernel::link::{Link, LinkRef};
use podwire_kernel::nft::{
    Base, Batch, Chain, ChainKind, Expr, Family as TableFamily, Header, Hook, MetaKey, NatKind, Nft, Place,
    Policy, Reg, Rule, TableRef,
};
use podwire_kernel::route::{Nexthop, Route};
use podwire_kernel::{Family, Netlink, Netns, addr, route, sysctl};

use crate::lab::{eventually, in_new_netns, network, pair, socket};

const UDP: u8 = 17;
const TABLE: TableRef<'_> = TableRef::new(TableFamily::Inet, "ports");

/// The `n`th network's addresses: this end, and the other end's.
fn addresses(n: u8) -> [[String; 2]; 2] {
    [[format!("10.{n}.0.1"), format!("10.{n}.0.2")], [format!("fd0{n}::1"), format!("fd0{n}::2")]]
}

/// A namespace on a link of its own, with addresses of both families and default routes to here.
fn neighbour(netlink: &mut Netlink, n: u8) -> (Link, Netns) {
    let (link, there) = pair(netlink, &format!("link{n}"));
    for ([near, far], prefix) in addresses(n).into_iter().zip([24, 64]) {
        let near_network = network(&format!("{near}/{prefix}"));
        netlink.apply(&[addr::add(link.index, near_network, true)]).expect("an address here");
        there
            .run(move || {
                let mut netlink = socket();
                let eth0 = netlink.link(LinkRef::Name("eth0")).expect("asked").expect("there").index;
                let default = network(if prefix == 24 { "0.0.0.0/0" } else { "::/0" });
                let hop = Nexthop { gateway: near.parse().ok(), oif: Some(eth0) };
                let address = network(&format!("{far}/{prefix}"));
                let requests = [addr::add(eth0, address, true), route::add(&Route::new(default, vec![hop]))];
                netlink.apply(&requests).expect("an address and a route there");
            })
            .expect("enter");
    }
    (link, there)
}

/// Sends UDP to port 8080 of this node on to port 53 of the pod.
fn forward(nft: &mut Nft, pod: IpAddr, family: TableFamily) {
    let base = Base {
        kind: ChainKind::Nat,
        hook: Hook::Prerouting,
        priority: -100,
        policy: Policy::Accept,
        device: None,
    };
    let chain = Chain { name: "prerouting".to_owned(), base: Some(base), comment: None };
    let (nfproto, address) = match pod {
        IpAddr::V4(ip) => (2, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, ip.octets().to_vec()),
    };
    let rule = Rule::new(vec![
        Expr::meta(MetaKey::Nfproto, Reg(0)),
        Expr::eq(Reg(0), [nfproto]),
        Expr::meta(MetaKey::L4proto, Reg(0)),
        Expr::eq(Reg(0), [UDP]),
        Expr::payload(Header::Transport, 2, 2, Reg(0)),
        Expr::eq(Reg(0), 8080_u16.to_be_bytes()),
        Expr::Immediate { to: Reg(0), value: address },
        Expr::Immediate { to: Reg(4), value: 53_u16.to_be_bytes().to_vec() },
        Expr::Nat { kind: NatKind::Destination, family, address: Some(Reg(0)), port: Some(Reg(4)), flags: 0 },
    ]);
    let mut batch = Batch::new();
    batch.ensure_table(TABLE, None);
    batch.ensure_chain(TABLE, &chain);
    batch.add_rule(TABLE, "prerouting", Place::Last, &rule);
    nft.commit(&batch).expect("committed");
}

fn bound(netns: &Netns, address: &str, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let socket = netns.run(move || UdpSocket::bind(address).expect("a UDP socket")).expect("enter");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    socket
}

/// Sends from the client to the host port until it arrives at the pod and is answered.
fn answered(client: &UdpSocket, to: &str, pod: &UdpSocket) {
    let to = SocketAddr::new(to.parse().expect("an address"), 8080);
    eventually("an answer", || {
        client.send_to(b"ping", to).expect("sent");
        let mut buffer = [0; 16];
        let (_, from) = pod.recv_from(&mut buffer).ok()?;
        pod.send_to(b"pong", from).expect("sent");
        client.recv_from(&mut buffer).ok().filter(|(_, from)| *from == to)
    });
}

/// Sends from the client to the host port until it arrives at the pod.
fn arrives(client: &UdpSocket, to: &str, pod: &UdpSocket) {
    let to = SocketAddr::new(to.parse().expect("an address"), 8080);
    eventually("the datagram", || {
        client.send_to(b"stale", to).expect("sent");
        let mut buffer = [0; 16];
        let (length, _) = pod.recv_from(&mut buffer).ok()?;
        (&buffer[..length] == b"stale").then_some(())
    });
}

fn of(family: Family, port: Option<u16>, source: Option<&str>) -> Filter {
    let reply_source = source.map(|source| source.parse().expect("an address"));
    Filter { family: Some(family), protocol: UDP, destination_port: port, reply_source }
}

#[test]
fn a_flow_is_found_by_its_port_or_by_who_answers_and_forgotten_alone() {
    in_new_netns(|| {
        let (mut netlink, mut nft) = (socket(), Nft::open().expect("a socket"));
        let mut conntrack = Conntrack::open().expect("a socket");
        // The kernel looks for neighbours on behalf of others from its link-local address, once it may use that.
        for links in ["all", "default"] {
            sysctl::write(&format!("net/ipv6/conf/{links}/accept_dad"), "0").expect("written");
        }
        let (_, client) = neighbour(&mut netlink, 1);
        let (_, old) = neighbour(&mut netlink, 2);
        let (_, new) = neighbour(&mut netlink, 3);
        for family in [Family::V4, Family::V6] {
            sysctl::enable_forwarding(&mut netlink, family).expect("forwarding");
            let at = |n: u8| addresses(n)[usize::from(family == Family::V6)].clone();
            let [host, from] = at(1);
            let (old_address, new_address) = (at(2)[1].clone(), at(3)[1].clone());
            let table_family = if family == Family::V4 { TableFamily::Ip } else { TableFamily::Ip6 };
            forward(&mut nft, old_address.parse().expect("an address"), table_family);
            let (first, second) = (bound(&client, &from, 40_001), bound(&client, &from, 40_002));
            let (old, new) = (bound(&old, &old_address, 53), bound(&new, &new_address, 53));
            answered(&first, &host, &old);
            answered(&second, &host, &old);

            let by_port = conntrack.entries(&of(family, Some(8080), None)).expect("listed");
            assert_eq!(by_port.len(), 2, "{by_port:?}");
            // The first family's two are still there when the second's turn comes.
            let any = Filter { family: None, ..of(family, Some(8080), None) };
            let expected = if family == Family::V4 { 2 } else { 4 };
            assert_eq!(conntrack.entries(&any).expect("listed").len(), expected);
            let by_pod = conntrack.entries(&of(family, None, Some(&old_address))).expect("listed");
            assert_eq!(sorted(by_pod.clone()), sorted(by_port));
            for (port, source) in [(Some(8081), None), (None, Some(new_address.as_str()))] {
                let found = conntrack.entries(&of(family, port, source)).expect("listed");
                assert_eq!(found, [], "{port:?} {source:?}");
            }
            let both = of(family, Some(8080), Some(&old_address));
            assert_eq!(conntrack.entries(&both).expect("listed").len(), 2);
            let tcp = Filter { protocol: 6, ..both };
            assert_eq!(conntrack.entries(&tcp).expect("listed"), []);

            // The port moves to the new pod; a flow that goes on stays with the old one until it is forgotten.
            let mut batch = Batch::new();
            batch.delete_table(TABLE);
            nft.commit(&batch).expect("removed");
            forward(&mut nft, new_address.parse().expect("an address"), table_family);
            arrives(&first, &host, &old);
            let flow =
                by_pod.iter().find(|entry| entry.original.source_port == 40_001).expect("the first flow");
            assert_eq!(flow.original.source.to_string(), from);
            assert_eq!((flow.reply.source_port, flow.reply.destination_port), (53, 40_001));
            assert!(conntrack.delete(flow).expect("forgotten"));
            assert!(!conntrack.delete(flow).expect("asked"), "it is forgotten");
            answered(&first, &host, &new);
            let left = conntrack.entries(&of(family, None, Some(&old_address))).expect("listed");
            assert_eq!(left.len(), 1);
            assert_eq!(left[0].original.source_port, 40_002);
            let mut batch = Batch::new();
            batch.delete_table(TABLE);
            nft.commit(&batch).expect("removed");
        }
    });
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.original.source_port);
    entries
}
