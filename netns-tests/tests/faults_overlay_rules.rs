//! What users of other overlays complain about, each as a test named after the rule that podwire keeps instead.
//!
//! 5, and the parts of 2 and 14 that need claims, are in faults_overlay_etcd.rs; the single ways to break a device (3) in
//! faults_overlay_dataplane.rs.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use podwire_netns_tests::cluster::{
    AT_LAST, AT_ONCE, BRIDGE, Cluster, Options, Scene, first_address, subnets,
};
use podwire_netns_tests::network::conf_dir;
use podwire_netns_tests::traffic::{Client, Port, Server, frames};
use podwire_netns_tests::underlay::{Families, Layout};
use podwire_netns_tests::{LabError, Result, wait_for};
use serde_json::json;

#[test]
fn rule_01_stale_peers_are_swept_and_missing_ones_put_back() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("rule-01", underlay)?;
        let nowhere = if underlay.ipv4() { "192.0.2.9" } else { "2001:db8::9" };
        let stale = format!(
            "ip neighbour replace 10.240.99.1 lladdr 02:00:00:00:00:99 dev $device nud permanent
             bridge fdb append 02:00:00:00:00:99 dev $device dst {nowhere} self permanent
             ip route add 10.240.99.0/24 via 10.240.99.1 dev $device onlink proto 112 metric 100
             ip -6 route add fd00:10:244:99::/64 via fd00:10:244:99::1 dev $device onlink proto 112"
        );
        // While the agent runs, and while it does not.
        scene.break_and_repair(&stale, AT_ONCE)?;
        scene.cluster.member_mut(0).kill_agent()?;
        let device = scene.device;
        scene.cluster.member(0).sh(&format!("device={device}; {stale}"))?;
        scene.cluster.member_mut(0).start_agent()?;
        scene.comes_back("stale entries while no agent ran", AT_ONCE)?;
        scene.cluster.member_mut(0).kill_agent()?;
        scene
            .cluster
            .member(0)
            .sh(&format!("ip route flush proto 112; ip neighbour flush dev {device} nud all"))?;
        scene.cluster.member_mut(0).start_agent()?;
        scene.comes_back("entries lost while no agent ran", AT_LAST)?;

        // Others' entries are theirs.
        let foreign = ["198.18.0.0/24 dev eth0 proto static", "198.18.1.0/24 dev eth0 proto 113"];
        for route in foreign {
            scene.cluster.member(0).sh(&format!("ip route add {route}"))?;
        }
        scene.cluster.member(0).sh(&format!("ip link set {device} down"))?;
        scene.comes_back("a pass beside others' routes", AT_ONCE)?;
        let routes = scene.cluster.member(0).sh("ip route")?.out();
        assert!(foreign.iter().all(|route| routes.contains(route)), "{routes}");
    }
    Ok(())
}

#[test]
fn rule_01_nothing_is_swept_before_the_store_has_answered() -> Result<()> {
    let mut scene = Scene::new("rule-01-sync", Families::Dual)?;
    // What an agent that knows nobody would do: no peers file at all, nothing remembered.
    let member = scene.cluster.member_mut(0);
    member.stop_agent()?;
    member.sh("rm /etc/podwire/peers.toml /var/lib/podwire/cluster.json")?;
    member.spawn_agent()?;
    let waits = member.agent()?.log().len();
    member.wait_for(AT_LAST, "test -S /run/podwire/podwired.sock", |_| true)?;
    // It takes notice of the kernel meanwhile.
    member.sh("ip link add dummy7 type bridge; ip link del dummy7")?;
    assert!(!wait_for(Duration::from_secs(2), || member
        .agent()
        .and_then(|agent| agent.get("/readyz"))
        .is_ok_and(|(code, _)| code == 200)));
    assert!(member.agent()?.log().len() > waits);
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    // And with it, it goes on as if nothing had been.
    scene.cluster.write_peers()?;
    scene.cluster.member_mut(0).agent_mut()?.wait_until_ready(AT_LAST)?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    scene.state_comes_back()
}

#[test]
fn rule_02_a_subnet_that_another_node_has_now_leads_there_in_whatever_order_it_is_told() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut cluster = Cluster::start("rule-02", &Options { underlay, ..Options::default() })?;
        let device = if underlay.ipv4() { "podwire.1" } else { "podwire6.1" };
        let at = |host| cluster.underlay().in_subnet(0, host);
        let (old, new) = (cluster.peers.far_peer(7, "old", at(70)), cluster.peers.far_peer(7, "new", at(71)));
        let leads_to = |cluster: &Cluster, to: IpAddr| -> Result<()> {
            let script = format!(
                "mac=$(ip neighbour show 10.240.8.0 dev {device} nud permanent | sed -n 's/.*lladdr \\([^ ]*\\).*/\\1/p')
                 test -n \"$mac\"; ip route show 10.240.8.0/24 proto 112 | grep -q 'via 10.240.8.0 '
                 bridge fdb show dev {device} | grep \"^$mac \""
            );
            let wanted = format!("dst {to} ");
            cluster
                .member(0)
                .wait_for(AT_LAST, &script, |out| out.contains(&wanted) && out.lines().count() == 1)?;
            Ok(())
        };
        let own = cluster.peers.nodes.clone();
        let told = |cluster: &mut Cluster, more: &[&podwire_netns_tests::cluster::Peer]| {
            cluster.peers.nodes = own.iter().chain(more.iter().copied()).cloned().collect();
            cluster.write_peers()
        };
        // Delete, then add; in one; add, then delete.
        for steps in [
            vec![vec![&old], vec![], vec![&new]],
            vec![vec![&old], vec![&new]],
            vec![vec![&old], vec![&old, &new], vec![&new]],
        ] {
            for (number, step) in steps.iter().enumerate() {
                told(&mut cluster, step)?;
                if number == 0 {
                    leads_to(&cluster, old.addresses[0])?;
                }
            }
            leads_to(&cluster, new.addresses[0])?;
            let fdb = cluster.member(0).sh(&format!("bridge fdb show dev {device}"))?.out();
            assert!(!fdb.contains(&format!("dst {} ", old.addresses[0])), "{fdb}");
        }
        told(&mut cluster, &[])?;
        cluster.member(0).wait_for(AT_LAST, "ip route show proto 112", |out| !out.contains("10.240.8.0"))?;
    }
    Ok(())
}

#[test]
fn rule_03_a_lost_device_comes_back_with_all_its_peers() -> Result<()> {
    let mut cluster = Cluster::start("rule-03", &Options::default())?;
    for number in 10..60 {
        let peer = cluster.peers.far_peer(
            number,
            &format!("far{number}"),
            cluster.underlay().in_subnet(0, 1000 + number),
        );
        cluster.peers.nodes.push(peer);
    }
    cluster.write_peers()?;
    let count = "ip route show proto 112 | wc -l; ip -6 route show proto 112 | wc -l; ip neighbour show dev podwire.1 nud permanent | wc -l; bridge fdb show dev podwire.1 | wc -l";
    let all = |out: &str| out.split_whitespace().collect::<Vec<_>>() == ["51", "51", "102", "51"];
    cluster.member(0).wait_for(AT_LAST, count, all)?;
    let mut scene = Scene::of(cluster)?;
    scene.break_and_repair("ip link del $device", AT_ONCE)?;
    scene.cluster.member(0).wait_for(AT_ONCE, count, all)?;
    Ok(())
}

#[test]
fn rule_04_the_vteps_mac_is_the_same_whoever_changes_it() -> Result<()> {
    let mut scene = Scene::new("rule-04", Families::Ipv4)?;
    let mac = |scene: &Scene| -> Result<String> {
        let link = scene.cluster.member(0).node().ip(&["link", "show", "podwire.1"])?;
        link[0]["address"].as_str().map(str::to_owned).ok_or_else(|| LabError::new("a link without a MAC"))
    };
    let before = mac(&scene)?;
    // As udev does with MACAddressPolicy=persistent, on a device that comes.
    scene.break_and_repair("ip link set $device address 0e:12:34:56:78:9a", AT_ONCE)?;
    scene.break_and_repair("ip link del $device", AT_ONCE)?;
    scene.cluster.member_mut(0).stop_agent()?;
    scene.cluster.member(0).sh("ip link del podwire.1")?;
    scene.cluster.member_mut(0).start_agent()?;
    scene.comes_back("restart without a device", AT_LAST)?;
    assert_eq!(mac(&scene)?, before);
    // Without the agent's state too: it follows from the names.
    scene.cluster.member_mut(0).stop_agent()?;
    scene.cluster.member(0).sh("ip link del podwire.1; rm -f /var/lib/podwire/*.json")?;
    scene.cluster.member_mut(0).start_agent()?;
    scene.comes_back("restart without a state", AT_LAST)?;
    assert_eq!(mac(&scene)?, before);
    Ok(())
}

#[test]
fn rule_07_the_mtu_leaves_room_for_the_tunnel_and_follows_each_peer() -> Result<()> {
    for (underlay, overhead) in [(Families::Ipv4, 50), (Families::Ipv6, 70)] {
        let mut scene = Scene::new("rule-07", underlay)?;
        let device = scene.device;
        let link = |scene: &Scene, name: &str| scene.cluster.member(0).node().ip(&["link", "show", name]);
        assert_eq!(link(&scene, device)?[0]["mtu"], 1500 - overhead);
        let pod = scene.pods[0].pod().ip(&["link", "show", "eth0"])?;
        assert_eq!(pod[0]["mtu"], 1500 - overhead);
        // A peer whose link is smaller: its routes say so, others' do not.
        scene.cluster.peers.nodes[1].more = "mtu = 1400".to_owned();
        scene.cluster.write_peers()?;
        let wanted = format!("mtu {}", 1400 - overhead);
        scene.cluster.member(0).wait_for(
            AT_LAST,
            "ip route show proto 112; ip -6 route show proto 112",
            |out| out.matches(&wanted).count() == 2,
        )?;
        // Never so small that IPv6 ends.
        scene.cluster.peers.nodes[1].more = "mtu = 1280".to_owned();
        scene.cluster.write_peers()?;
        scene.cluster.member(0).wait_for(
            AT_LAST,
            "ip route show proto 112; ip -6 route show proto 112",
            |out| out.matches("mtu 1280").count() == 2,
        )?;
        assert_eq!(link(&scene, device)?[0]["mtu"], 1500 - overhead);
        scene.cluster.assert_reach(&scene.pods[0], &scene.pods[1])?;
        scene.cluster.peers.nodes[1].more = String::new();
        scene.cluster.write_peers()?;
        scene.comes_back("a peer's MTU", AT_LAST)?;
    }
    Ok(())
}

/// What kube-proxy does with marked packets (its nftables and iptables modes alike).
const KUBE_PROXY: &str = "
    nft add table ip kube-test
    nft 'add chain ip kube-test pre { type filter hook prerouting priority mangle; }'
    nft 'add chain ip kube-test post { type nat hook postrouting priority srcnat; }'
    nft add rule ip kube-test post meta mark and 0x4000 != 0 counter masquerade fully-random
";

#[test]
fn rule_08_pods_see_each_others_addresses_and_kube_proxys_mark_stays_off_the_tunnel() -> Result<()> {
    let mut scene = Scene::new("rule-08", Families::Ipv4)?;
    let [a, b] = &scene.pods;
    let (from, to) = (a.address(true)?, b.address(true)?);
    let _tcp = Server::start(b.pod(), Port::tcp([0, 0, 0, 0], 80))?;
    let _udp = Server::start(b.pod(), Port::udp([0, 0, 0, 0], 80))?;
    for port in [Port::tcp(to, 80), Port::udp(to, 80)] {
        assert_eq!(Client::at(a.pod()).hear(port)?.peer.ip(), from, "masqueraded between pods");
    }
    let six = Server::start(b.pod(), Port::tcp(b.address(false)?, 81))?;
    assert_eq!(Client::at(a.pod()).hear(six.at())?.peer.ip(), a.address(false)?);
    // Out of the cluster a pod is its node, by a rule of podwire's.
    let outside = Server::start(scene.cluster.underlay(), Port::tcp([0, 0, 0, 0], 7000))?;
    let gateway = scene.cluster.underlay().gateways(0)[0];
    let seen = Client::at(a.pod()).hear(Port::tcp(gateway, 7000))?.peer.ip();
    assert_eq!(seen, scene.cluster.underlay().addresses(0)[0]);
    drop(outside);

    // Marked packets to another node's pod are masqueraded as kube-proxy wants it, once: the outer packet, which bears the
    // same mark, keeps its source port, which spreads flows.
    scene.cluster.member(0).sh(KUBE_PROXY)?;
    scene.cluster.member(0).sh(&format!(
        "nft add rule ip kube-test pre ip saddr {from} tcp dport 80 meta mark set mark or 0x4000"
    ))?;
    let [a, b] = &scene.pods;
    for _ in 0..5 {
        let heard = Client::at(a.pod()).hear(Port::tcp(to, 80))?;
        assert_ne!(heard.peer.ip(), from, "kube-proxy's rule does nothing");
        assert_eq!(heard.server, b.pod().name());
    }
    // Only the inner connections met the rule.
    let counted = scene.cluster.member(0).sh("nft list chain ip kube-test post")?.out();
    assert!(counted.contains("counter packets 5 "), "the tunnel's own packets are masqueraded: {counted}");
    scene.assert_steady()
}

#[test]
fn rule_09_a_networkd_that_removes_foreign_routes_is_put_right() -> Result<()> {
    let mut scene = Scene::new("rule-09", Families::Dual)?;
    let rules = scene.cluster.member(0).sh("ip rule; ip -6 rule")?.out();
    let plain = scene.cluster.underlay().sh("ip rule; ip -6 rule")?.out();
    assert_eq!(rules, plain, "there are policy rules, which networkd would remove");
    // What it does with ManageForeignRoutes=yes when it starts.
    for _ in 0..3 {
        scene.break_and_repair(
            "for family in -4 -6; do ip $family route show proto 112 | while read -r route; do ip $family route del $route; done; done",
            AT_ONCE,
        )?;
    }
    let drop_ins = conf_dir().join("networkd");
    let shipped = std::fs::read_dir(&drop_ins).into_iter().flatten().flatten().count();
    assert!(shipped > 0, "no drop-ins for networkd in {}", drop_ins.display());
    Ok(())
}

#[test]
fn rule_10_a_forward_chain_that_drops_lets_pods_through() -> Result<()> {
    let mut scene = Scene::new("rule-10", Families::Ipv4)?;
    // As Docker leaves it, with iptables-nft.
    for family in ["iptables-nft", "ip6tables-nft"] {
        scene.cluster.member(0).sh(&format!("{family} -P FORWARD DROP"))?;
    }
    scene.comes_back("a forward chain that drops", AT_ONCE)?;
    let accepted = scene.cluster.member(0).sh("iptables-nft -S FORWARD")?.out();
    assert!(
        accepted.contains(&format!("-i {BRIDGE}")) && accepted.contains(&format!("-o {BRIDGE}")),
        "{accepted}"
    );
    scene.cluster.member(0).sh("iptables-nft -F FORWARD; ip6tables-nft -F FORWARD")?;
    scene.comes_back("its rules flushed", AT_ONCE)?;
    Ok(())
}

#[test]
fn rule_11_a_flushed_ruleset_is_put_back() -> Result<()> {
    let mut scene = Scene::new("rule-11", Families::Ipv4)?;
    let tables = "nft list tables | sort";
    let before = scene.cluster.member(0).sh(tables)?.out();
    assert!(before.contains("inet podwire-node"), "{before}");
    for _ in 0..3 {
        scene.break_and_repair("nft flush ruleset", AT_ONCE)?;
        scene.cluster.member(0).wait_for(AT_ONCE, tables, |now| now == before)?;
    }
    Ok(())
}

#[test]
fn rule_12_the_bridge_has_the_subnets_address_whoever_made_it() -> Result<()> {
    // Made by somebody else, with another address, before there was an agent.
    let mut cluster = Cluster::prepare("rule-12", &Options::default())?;
    cluster.member(0).sh(&format!(
        "ip link add {BRIDGE} type bridge; ip address add 10.99.0.1/24 dev {BRIDGE}; ip link set {BRIDGE} up"
    ))?;
    cluster.start_agents()?;
    let wanted: Vec<String> = subnets(Families::Dual, 0)
        .iter()
        .map(|subnet| {
            Ok(format!("{}/{}", first_address(subnet)?, subnet.rsplit('/').next().unwrap_or_default()))
        })
        .collect::<Result<_>>()?;
    let show = format!("ip -o address show dev {BRIDGE} scope global");
    let right = |out: &str| wanted.iter().all(|address| out.contains(&format!(" {address} ")));
    cluster.member(0).wait_for(AT_LAST, &show, right)?;
    let scene = Scene::of(cluster)?;
    // A subnet's address that is not ours any more.
    scene
        .cluster
        .member(0)
        .sh(&format!("ip address flush dev {BRIDGE}; ip address add 10.240.77.1/24 dev {BRIDGE}"))?;
    scene.cluster.member(0).wait_for(AT_ONCE, &show, right)?;
    scene.all_flow()?;
    // A configuration that a runtime would prefer.
    scene.cluster.member(0).node().install_conflist(
        "05-other.conflist",
        &json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge", "bridge": "cni0"}]}),
    )?;
    let told = wait_for(AT_LAST, || {
        scene
            .cluster
            .member(0)
            .agent()
            .and_then(|agent| agent.get("/v1/status"))
            .is_ok_and(|(_, body)| body.contains("05-other.conflist"))
    });
    assert!(told, "nothing is said of the foreign configuration: {}", scene.log());
    Ok(())
}

#[test]
fn rule_13_a_thousand_changes_at_once_are_one() -> Result<()> {
    let mut scene = Scene::new("rule-13", Families::Ipv4)?;
    let own = scene.cluster.peers.nodes.clone();
    let count = "ip -4 route show proto 112 | wc -l; ip -6 route show proto 112 | wc -l; bridge fdb show dev podwire.1 | wc -l; ip neighbour show dev podwire.1 nud permanent | wc -l";
    for number in 10..1510_u16 {
        let peer = scene.cluster.peers.far_peer(
            number,
            &format!("far{number}"),
            scene.cluster.underlay().in_subnet(0, 1000 + number),
        );
        scene.cluster.peers.nodes.push(peer);
    }
    scene.cluster.write_peers()?;
    let all = |out: &str| out.split_whitespace().collect::<Vec<_>>() == ["1501", "1501", "1501", "3002"];
    scene.cluster.member(0).wait_for(AT_LAST, count, all)?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()?;
    // Everything at once is an overrun of events.
    scene.cluster.member(0).sh("ip link set podwire.1 down")?;
    scene.cluster.member(0).wait_for(AT_LAST, count, all)?;
    scene.settle()?;
    scene.cluster.peers.nodes = own;
    scene.cluster.write_peers()?;
    scene.state_comes_back()?;
    scene.flows.assert_none_lost()
}

#[test]
fn rule_14_a_node_that_changes_its_address_keeps_its_subnet() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("rule-14", underlay)?;
        let new = scene.cluster.underlay().in_subnet(0, 120);
        let old = scene.cluster.underlay().addresses(1);
        // The address goes first, as with DHCP.
        let uplink = scene.cluster.member(1).uplink();
        uplink.remove_address(old[0])?;
        uplink.add_address(new[0])?;
        uplink.add_default_routes()?;
        scene.cluster.peers.nodes[1].addresses = new.clone();
        scene.cluster.write_peers()?;
        scene.all_flow()?;
        println!("{}: a node's new address: {}", scene.device, scene.flows.worst());
        let show = format!("ip -o -d link show dev {}", scene.device);
        scene.cluster.member(1).wait_for(AT_LAST, &show, |out| out.contains(&format!("local {}", new[0])))?;
        scene.cluster.assert_reach(&scene.pods[0], &scene.pods[1])?;
        assert_eq!(scene.cluster.pod(1, "c")?.result["ips"].as_array().map(Vec::len), Some(2));
        scene.assert_steady()?;
    }
    Ok(())
}

/// What a VTEP gets: a frame for it, in VXLAN with that VNI.
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    [&[8, 0, 0, 0, a, b, c, 0], frame].concat()
}

#[test]
fn rule_15_only_peers_can_put_packets_into_the_tunnel() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let scene = Scene::new("rule-15", underlay)?;
        let cluster = &scene.cluster;
        let node = cluster.member(0);
        let link = node.node().ip(&["link", "show", scene.device])?;
        let mac: Vec<u8> = link[0]["address"]
            .as_str()
            .unwrap_or_default()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).map_err(LabError::because("a MAC")))
            .collect::<Result<_>>()?;
        let mac: frames::Mac = mac.try_into().map_err(|_| LabError::new("a MAC has six bytes"))?;
        let IpAddr::V4(pod) = scene.pods[0].address(true)? else {
            return Err(LabError::new("no IPv4 address"));
        };
        let socket = scene.pods[0]
            .pod()
            .run(|| UdpSocket::bind("0.0.0.0:9000"))?
            .map_err(LabError::because("listen"))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .map_err(LabError::because("set a timeout"))?;
        let hears = || {
            let mut packet = [0; 100];
            let heard = socket.recv(&mut packet).is_ok();
            while heard && socket.recv(&mut packet).is_ok() {}
            heard
        };
        // As if from a pod of the other node.
        let inner = frames::udp4((Ipv4Addr::new(10, 240, 2, 250), 53), (pod, 9000), b"injected");
        let packet = vxlan(1, &frames::ethernet(mac, [2, 0, 0, 0, 0, 9], 0x0800, &inner));
        let to = (cluster.underlay().addresses(0)[0], 8472);
        let any: IpAddr = if underlay.ipv4() { [0; 4].into() } else { [0; 16].into() };
        let inject = |place: &dyn podwire_netns_tests::traffic::Place| -> Result<()> {
            let socket =
                place.network().run(|| UdpSocket::bind((any, 0)))?.map_err(LabError::because("bind"))?;
            for _ in 0..3 {
                socket.send_to(&packet, to).map_err(LabError::because("inject"))?;
            }
            Ok(())
        };
        // The packet is right: from a peer it passes.
        inject(cluster.member(1).node())?;
        assert!(hears(), "a peer's packet does not arrive");
        // From any other host it does not.
        inject(cluster.underlay())?;
        assert!(!hears(), "a stranger's packet arrives");
        // Nor from the node's own pods and from another node's, which would come from a peer's address masqueraded.
        inject(scene.pods[0].pod())?;
        assert!(!hears(), "the packet of a pod of the node arrives");
        inject(scene.pods[1].pod())?;
        assert!(!hears(), "the packet of a pod of a peer arrives");
        inject(cluster.member(1).node())?;
        assert!(hears(), "a peer's packet does not arrive any more");
        scene.all_flow()?;
    }
    Ok(())
}

#[test]
fn rule_16_a_restart_of_the_agent_loses_nothing_and_rebuilds_nothing() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("rule-16", underlay)?;
        let index = |scene: &Scene| {
            Ok::<_, LabError>(
                scene.cluster.member(0).node().ip(&["link", "show", scene.device])?[0]["ifindex"].clone(),
            )
        };
        let before = index(&scene)?;
        for round in 0..4 {
            if round % 2 == 0 {
                scene.cluster.member_mut(0).kill_agent()?;
            } else {
                scene.cluster.member_mut(0).stop_agent()?;
            }
            scene.all_flow()?;
            scene.cluster.member_mut(0).start_agent()?;
        }
        scene.all_flow()?;
        scene.flows.assert_none_lost()?;
        assert_eq!(index(&scene)?, before, "the device was made anew");
        assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    }
    Ok(())
}

#[test]
fn rule_17_every_combination_of_families_works_alike() -> Result<()> {
    for layout in [Layout::Flat, Layout::Routed] {
        for underlay in [Families::Ipv4, Families::Ipv6, Families::Dual] {
            for pods in [Families::Ipv4, Families::Ipv6, Families::Dual] {
                let options = Options { layout, underlay, pods, ..Options::default() };
                let what = format!("{pods:?} pods over a {layout:?} {underlay:?} underlay");
                let scene = Scene::with("rule-17", &options).map_err(LabError::because(what.clone()))?;
                let families = if pods == Families::Dual { 2 } else { 1 };
                assert_eq!(scene.pods[0].addresses.len(), families, "{what}");
                scene
                    .cluster
                    .assert_reach(&scene.pods[0], &scene.pods[1])
                    .map_err(LabError::because(what.clone()))?;
                // The largest packet of a pod gets through, and answers do.
                let mtu = if underlay.ipv4() { 1450 } else { 1430 };
                for address in &scene.pods[1].addresses {
                    scene.pods[0]
                        .assert_size_passes(*address, mtu)
                        .map_err(LabError::because(what.clone()))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn rule_17_nodes_of_one_link_need_no_tunnel_in_either_family() -> Result<()> {
    for (layout, direct) in [(Layout::Flat, true), (Layout::Routed, false)] {
        let options =
            Options { layout, settings: "direct_routing = \"auto\"".to_owned(), ..Options::default() };
        let mut scene = Scene::with("rule-17-direct", &options)?;
        let routes =
            scene.cluster.member(0).sh("ip -4 route show proto 112; ip -6 route show proto 112")?.out();
        assert_eq!(
            routes.lines().filter(|route| route.contains("dev eth0")).count() == 2,
            direct,
            "{routes}"
        );
        scene.assert_steady()?;
        scene.break_and_repair("ip -4 route flush proto 112; ip -6 route flush proto 112", AT_ONCE)?;
    }
    Ok(())
}

#[test]
fn rule_06_an_offload_that_breaks_packets_is_found_and_switched_off() -> Result<()> {
    let options = Options {
        underlay: Families::Ipv4,
        agent: "[probes]\ninterval_seconds = 1\n".to_owned(),
        ..Options::default()
    };
    let mut scene = Scene::with("rule-06", &options)?;
    let _broken = scene.cluster.member(0).uplink().break_checksum_offload()?;
    // Nothing of the pods' whose checksum is left to the link gets through, until the nodes compute it themselves.
    scene.all_flow()?;
    println!("the offload broke: {}", scene.flows.worst());
    for member in scene.cluster.members() {
        member.wait_for(AT_LAST, "ethtool -k podwire.1", |out| out.contains("tx-checksumming: off"))?;
        let told = wait_for(AT_LAST, || {
            member
                .agent()
                .and_then(|agent| agent.get("/v1/status"))
                .is_ok_and(|(_, body)| body.contains("offload"))
        });
        assert!(told, "{}", member.agent()?.log());
    }
    scene.assert_steady()
}
