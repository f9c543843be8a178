//! Table `podwire-node`: what it looks like, and what it does with packets.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use podwire_kernel::testing::{in_new_netns, run};
use podwire_overlay::dataplane::filter::{Filter, FilterChange, FilterKeeper};

use super::lab::{address, ip, sh, uplink};

fn filter(peers: &[&str]) -> Filter {
    Filter {
        ports: BTreeSet::from([8472]),
        peers: peers.iter().map(|peer| address(peer)).collect(),
        inside: BTreeSet::from(["podwire0".to_owned()]),
    }
}

#[test]
fn it_reads_as_a_person_would_have_written_it() {
    in_new_netns(|| {
        FilterKeeper::default().hold(&filter(&["192.0.2.2", "2001:db8::2"]), true).expect("made");
        let expected = r#"table inet podwire-node {
	comment "podwire-node 2"
	set ports {
		type inet_service
		elements = { 8472 }
	}

	set peers4 {
		type ipv4_addr
		elements = { 192.0.2.2 }
	}

	set peers6 {
		type ipv6_addr
		elements = { 2001:db8::2 }
	}

	set inside {
		type ifname
		elements = { "podwire0" }
	}

	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		udp dport @ports jump from-nodes
	}

	chain from-nodes {
		iifname @inside goto from-pods
		ip saddr @peers4 notrack accept
		ip6 saddr @peers6 notrack accept
		fib daddr type local counter packets 0 bytes 0 drop comment "no node of the cluster"
	}

	chain from-pods {
		fib daddr type local counter packets 0 bytes 0 drop comment "pods send no VXLAN"
	}

	chain output {
		type filter hook output priority raw; policy accept;
		udp dport @ports notrack
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		udp dport @ports jump to-nodes
	}

	chain to-nodes {
		iifname @inside ip daddr @peers4 counter packets 0 bytes 0 drop comment "pods send no VXLAN"
		iifname @inside ip6 daddr @peers6 counter packets 0 bytes 0 drop comment "pods send no VXLAN"
		ip saddr @peers4 accept
		ip6 saddr @peers6 accept
		ip daddr @peers4 counter packets 0 bytes 0 drop comment "no node of the cluster"
		ip6 daddr @peers6 counter packets 0 bytes 0 drop comment "no node of the cluster"
	}
}
"#;
        assert_eq!(run("nft", &["list", "ruleset"]), expected);
    });
}

#[test]
fn only_what_differs_is_changed() {
    in_new_netns(|| {
        let mut keeper = FilterKeeper::default();
        let first = keeper.hold(&filter(&["192.0.2.2", "192.0.2.3"]), true).expect("made");
        assert_eq!(first, FilterChange { replaced: true, added: 4, removed: 0 });
        for _ in 0..2 {
            let again = keeper.hold(&filter(&["192.0.2.2", "192.0.2.3"]), true).expect("looked at");
            assert_eq!(again, FilterChange::default());
        }
        let kept = keeper.hold(&filter(&["192.0.2.4"]), false).expect("changed");
        assert_eq!(kept, FilterChange { replaced: false, added: 1, removed: 0 });
        let changed = keeper.hold(&filter(&["192.0.2.4"]), true).expect("changed");
        assert_eq!(changed, FilterChange { replaced: false, added: 0, removed: 2 });
        keeper.change(&[address("192.0.2.5")], &[address("192.0.2.4")]).expect("changed");
        assert_eq!(keeper.hold(&filter(&["192.0.2.5"]), true).expect("looked at"), FilterChange::default());
        assert!(keeper.change(&[], &[address("192.0.2.4")]).expect_err("it is gone").is_missing());
        // A table that is damaged keeps whom it may not forget yet.
        sh("nft flush chain inet podwire-node from-nodes");
        let remade = keeper.hold(&filter(&["192.0.2.6"]), false).expect("made anew");
        assert!(remade.replaced);
        let peers = run("nft", &["list", "set", "inet", "podwire-node", "peers4"]);
        assert!(peers.contains("192.0.2.5") && peers.contains("192.0.2.6"), "{peers}");
        assert_eq!(
            (keeper.remove().expect("removed"), keeper.remove().expect("nothing there")),
            (true, false)
        );
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn nodes_get_through_and_others_do_not() {
    in_new_netns(|| {
        let other = uplink();
        other
            .run(|| {
                ip("addr add 192.0.2.2/24 dev peer");
                ip("addr add 192.0.2.66/24 dev peer");
            })
            .expect("inside");
        FilterKeeper::default().hold(&filter(&["192.0.2.2"]), true).expect("made");
        let server = UdpSocket::bind("192.0.2.1:8472").expect("a socket");
        server.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
        // The stranger first: once the node's packet is there, the stranger's would have been.
        other
            .run(|| {
                for from in ["192.0.2.66:0", "192.0.2.2:0"] {
                    let client = UdpSocket::bind(from).expect("a socket");
                    client.send_to(from.as_bytes(), "192.0.2.1:8472").expect("sent");
                }
            })
            .expect("inside");
        let mut buffer = [0; 64];
        let (length, from) = server.recv_from(&mut buffer).expect("the node's packet");
        assert_eq!((&buffer[..length], from.ip()), (&b"192.0.2.2:0"[..], address("192.0.2.2")));
        let rules = run("nft", &["list", "chain", "inet", "podwire-node", "from-nodes"]);
        assert!(
            rules.contains("counter packets 1 bytes 40 drop comment \"no node of the cluster\""),
            "{rules}"
        );
    });
}

#[test]
fn pods_send_no_vxlan_to_this_node_or_by_way_of_it_to_others() {
    in_new_netns(|| {
        let _uplink = uplink();
        FilterKeeper::default().hold(&filter(&["192.0.2.2"]), true).expect("made");
        sh("sysctl -qw net.ipv4.ip_forward=1
            ip link add podwire0 type bridge; ip link set podwire0 up; ip addr add 10.128.0.1/24 dev podwire0");
        let pod = podwire_kernel::testing::new_netns();
        sh("ip link add port type veth peer name eth9; ip link set port master podwire0 up");
        let mut netlink = podwire_kernel::testing::socket();
        let end = netlink.link(podwire_kernel::link::LinkRef::Name("eth9")).expect("read").expect("there");
        move_link(end.index, &pod);
        pod.run(|| {
            sh("ip link set eth9 up; ip addr add 10.128.0.7/24 dev eth9; ip route add default via 10.128.0.1");
            let pod = UdpSocket::bind("10.128.0.7:0").expect("a socket");
            for to in ["192.0.2.1:8472", "10.128.0.1:8472", "192.0.2.2:8472", "192.0.2.3:8472"] {
                pod.send_to(b"frame", to).expect("sent");
            }
        })
        .expect("inside");
        let counted = |chain: &str| {
            let rules = run("nft", &["list", "chain", "inet", "podwire-node", chain]);
            rules.contains("counter packets").then(|| {
                let packets = rules.split("counter packets ").skip(1);
                packets.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).collect::<Vec<_>>()
            })
        };
        podwire_kernel::testing::eventually("all are counted", || {
            let from = counted("from-pods")?;
            let to = counted("to-nodes")?;
            (from == [2] && to == [1, 0, 0, 0]).then_some(())
        });
    });
}

/// Puts a link into another namespace.
fn move_link(index: u32, to: &podwire_kernel::Netns) {
    use std::os::fd::AsFd;
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), to.as_fd().as_raw_fd());
    let name = run("sh", &["-ec", &format!("ip -o link | sed -n 's/^{index}: \\([^@:]*\\).*/\\1/p'")]);
    // `ip` knows namespaces by the path of a file of theirs.
    run("sh", &["-ec", &format!("ip link set {} netns {path}", name.trim())]);
}
