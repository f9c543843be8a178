//! What time and neighbours do to the network itself: multicast state that expires, routes that live by router
//! advertisements, a second network beside the first.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendmsg, socket,
};
use podwire_netns_tests::faults::{BRIDGE, NETWORK, Site, addresses, dual_stack, network};
use podwire_netns_tests::{LIMIT, LabError, Pod, Result, program, wait_for};
use serde_json::{Value, json};

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(LabError::because(address))
}

/// Runs a command line in the node.
fn run(site: &Site, line: &str) -> Result<String> {
    let done = site.node().run_with(program("sh").args(["-e", "-c", line]), b"", LIMIT)?;
    Ok(done.success(line)?.out())
}

/// Runs a command line in the pod's network namespace.
fn run_in(pod: &Pod, line: &str) -> Result<String> {
    Ok(pod.run_program(program("sh").args(["-e", "-c", line]), LIMIT)?.success(line)?.out())
}

// -- multicast --

#[test]
fn ipv6_goes_on_after_the_bridges_multicast_entries_expire() -> Result<()> {
    let site = Site::new("mdb")?;
    let config = dual_stack();
    let first = site.pod("first")?;
    site.add(&first, &config)?;
    // 260 s by default, in hundredths of a second; each entry gets it when it is made.
    run(&site, &format!("ip link set {BRIDGE} type bridge mcast_membership_interval 100"))?;
    let (a, b) = (site.pod("a")?, site.pod("b")?);
    let to_a = addresses(&site.add(&a, &config)?)[1];
    let to_b = addresses(&site.add(&b, &config)?)[1];
    let entries = || -> Result<usize> {
        let shown: Value = serde_json::from_str(&run(&site, &format!("bridge -json mdb show dev {BRIDGE}"))?)
            .map_err(LabError::because("bridge mdb"))?;
        // The first pod's entries were made with the long interval, and the bridge's own never expire.
        let groups = shown[0]["mdb"].as_array().into_iter().flatten();
        let address =
            |ip: IpAddr| format!("ff02::1:ff00:{}", ip.to_string().rsplit(':').next().unwrap_or_default());
        let solicited = [address(to_a), address(to_b)];
        Ok(groups.filter(|group| solicited.iter().any(|s| group["grp"] == **s)).count())
    };
    assert!(
        wait_for(Duration::from_secs(5), || entries().is_ok_and(|n| n == 2)),
        "{}",
        run(&site, "bridge mdb")?
    );
    a.ping(to_b)?;
    assert!(
        wait_for(Duration::from_secs(5), || entries().is_ok_and(|n| n == 0)),
        "{}",
        run(&site, "bridge mdb")?
    );

    // Nobody remembers anybody: all depends on neighbour solicitations, which are multicast.
    for pod in [&a, &b] {
        run_in(pod, "ip -6 neigh flush all")?;
    }
    run(&site, "ip -6 neigh flush all")?;
    a.ping(to_b)?;
    run_in(&b, "ip -6 neigh flush all")?;
    b.ping(to_a)?;
    for pod in [&a, &b] {
        run_in(pod, "ip -6 neigh flush all")?;
        pod.ping(parse("fd77::1")?)?;
    }
    // And from the node, which asks by multicast as well.
    run(&site, "ip -6 neigh flush all")?;
    run(&site, &format!("busybox ping -c 2 -W 1 {to_a}"))?;
    Ok(())
}

#[test]
fn an_address_that_goes_from_pod_to_pod_is_reached_at_once() -> Result<()> {
    let site = Site::new("moves-on")?;
    let config = network(json!([
        [{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.2", "rangeEnd": "10.77.0.3"}],
        [{"subnet": "fd77::/64", "rangeStart": "fd77::2", "rangeEnd": "fd77::3"}]
    ]));
    let watcher = site.pod("watcher")?;
    site.add(&watcher, &config)?;
    for round in 0..3 {
        let pod = site.pod("")?;
        for address in addresses(&site.add(&pod, &config)?) {
            // Watcher and node remember the pod before, with another MAC address, as reachable.
            let what = |who: &str| format!("{address} in round {round}, from {who}");
            watcher.ping(address).map_err(LabError::because(what("a pod")))?;
            run(&site, &format!("busybox ping -c 3 -i 0.2 -W 1 {address}"))
                .map_err(LabError::because(what("the node")))?;
        }
        site.del(&pod, &config)?;
        // What a neighbour has learned within the last second it lets nobody change (neigh/*/locktime).
        wait_for(Duration::from_millis(1100), || false);
    }
    site.del(&watcher, &config)?;
    site.assert_nothing_left()
}

// -- router advertisements --

/// Sends a router advertisement to all nodes on the router's link: a default route for `lifetime` seconds.
fn advertise(router: &Pod, lifetime: u16) -> Result<()> {
    let index = router.ip(&["link", "show", "dev", "eth0"])?[0]["ifindex"].as_u64().unwrap_or_default();
    // RFC 4861, 4.2: type 134, code, checksum (the kernel's), hop limit, flags, lifetime, two timers.
    let mut packet = vec![134, 0, 0, 0, 64, 0];
    packet.extend(lifetime.to_be_bytes());
    packet.extend([0; 8]);
    // 4.6.2: prefix information, /64, on-link and autonomous, lifetimes in seconds.
    packet.extend([3, 4, 64, 0xc0]);
    packet.extend(86400_u32.to_be_bytes());
    packet.extend(14400_u32.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend("2001:db8:1::".parse::<Ipv6Addr>().map_err(LabError::because("prefix"))?.octets());
    let index = u32::try_from(index).map_err(LabError::because("interface index"))?;
    let all_nodes = "ff02::1".parse().map_err(LabError::because("ff02::1"))?;
    let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, index));
    router
        .run(|| {
            let raw =
                socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
            // Routers' packets with another hop limit are not believed (6.1.2).
            let hops = [ControlMessage::Ipv6HopLimit(&255)];
            sendmsg(raw.as_raw_fd(), &[IoSlice::new(&packet)], &hops, MsgFlags::empty(), Some(&to))
        })?
        .map_err(LabError::because("send a router advertisement"))
        .map(drop)
}

#[test]
fn the_nodes_route_from_router_advertisements_outlives_the_add_that_turns_it_into_a_router() -> Result<()> {
    let site = Site::new("ra")?;
    let router = site.pod("router")?;
    run(&site, "ip link add uplink type veth peer name eth0 netns router")?;
    run_in(&router, "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up")?;
    run(
        &site,
        "cd /proc/sys/net/ipv6/conf; echo 0 > all/forwarding; echo 1 > uplink/accept_ra; \
         echo 0 > uplink/accept_dad; echo 0 > uplink/forwarding; ip link set uplink up",
    )?;
    let has_address = || run_in(&router, "ip -6 addr show dev eth0 scope link -tentative");
    assert!(wait_for(LIMIT, || has_address().is_ok_and(|shown| shown.contains("fe80"))));
    let route = || run(&site, "ip -6 route show default");
    // Sent again until it is there: an interface that has just come up may not listen yet.
    let takes = |lifetime: u16| {
        wait_for(Duration::from_secs(10), || {
            let shown = advertise(&router, lifetime).and_then(|()| route()).unwrap_or_default();
            let expires = shown.split("expires ").nth(1).and_then(|rest| rest.split("sec").next());
            let left = expires.and_then(|seconds| seconds.parse().ok());
            left.is_some_and(|left: u16| left <= lifetime && left + 60 > lifetime)
        })
    };
    assert!(takes(1800), "no default route to begin with: {:?}", route()?);

    let config = dual_stack();
    let pod = site.pod("p")?;
    site.add(&pod, &config)?;
    assert_eq!(run(&site, "cat /proc/sys/net/ipv6/conf/all/forwarding")?.trim(), "1");
    assert!(route()?.contains("proto ra"), "the node has lost its default route: {:?}", route()?);
    // And it is renewed: with forwarding on, a link takes no advertisements unless it is told to.
    assert_eq!(run(&site, "cat /proc/sys/net/ipv6/conf/uplink/accept_ra")?.trim(), "2");
    assert!(takes(600), "advertisements are not taken any more: {:?}", route()?);
    // What is podwire's own takes none: a pod could make itself the node's router.
    let own = format!("cd /proc/sys/net/ipv6/conf; cat {BRIDGE}/accept_ra pw*/accept_ra");
    assert_eq!(run(&site, &own)?.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    advertise_from_pod(&pod)?;
    assert_eq!(route()?.matches("default").count(), 1, "{}", route()?);
    site.del(&pod, &config)
}

fn advertise_from_pod(pod: &Pod) -> Result<()> {
    let has_address = || run_in(pod, "ip -6 addr show dev eth0 scope link -tentative");
    assert!(wait_for(LIMIT, || has_address().is_ok_and(|shown| shown.contains("fe80"))));
    advertise(pod, 900)?;
    // It has been handled when a later packet on the same way has been answered.
    pod.ping(parse("fd77::1")?).map(drop)
}

// -- two networks --

fn another(name: &str, bridge: &str, v4: &str, v6: &str) -> Value {
    let mut config = network(json!([[{"subnet": v4}], [{"subnet": v6}]]));
    config["name"] = json!(name);
    config["bridge"] = json!(bridge);
    config
}

#[test]
fn two_networks_on_one_node() -> Result<()> {
    let site = Site::new("two")?;
    let red = another(NETWORK, BRIDGE, "10.77.0.0/24", "fd77::/64");
    let mut blue = another("blue", "br1", "10.78.0.0/24", "fd78::/64");
    // A second interface of the same pods: one default route is enough.
    blue["isDefaultGateway"] = json!(false);
    blue["isGateway"] = json!(true);
    let pods = site.pods("p", 2)?;
    let mut reds = Vec::new();
    let mut blues = Vec::new();
    for pod in &pods {
        reds.push(site.add(pod, &red)?);
        blues.push(site.call("ADD", pod, &blue).env("CNI_IFNAME", "net1").run(site.node())?.ok()?);
        assert_eq!(pod.links()?, ["eth0", "net1"]);
    }
    for address in addresses(&reds[1]).into_iter().chain(addresses(&blues[1])) {
        pods[0].ping(address)?;
    }
    for gateway in ["10.77.0.1", "fd77::1", "10.78.0.1", "fd78::1"] {
        pods[0].ping(parse(gateway)?)?;
    }
    // The end of one is not the end of the other.
    site.del(&pods[1], &red)?;
    assert_eq!(pods[1].links()?, ["net1"]);
    pods[0].ping(addresses(&blues[1])[0])?;
    for pod in &pods {
        site.call("DEL", pod, &blue).env("CNI_IFNAME", "net1").run(site.node())?.ok()?;
    }
    site.check(&pods[0], &red, &reds[0])?.ok()?;
    site.del(&pods[0], &red)?;
    run(&site, "ip link del br1")?;
    site.assert_nothing_left()
}

#[test]
fn two_networks_with_the_same_range_do_not_share_addresses_or_leases() -> Result<()> {
    let site = Site::new("two-same")?;
    let red = another(NETWORK, BRIDGE, "10.77.0.0/24", "fd77::/64");
    let mut blue = red.clone();
    blue["name"] = json!("blue");
    blue["bridge"] = json!("br1");
    let (a, b) = (site.pods("red", 2)?, site.pods("blue", 2)?);
    let reds = [site.add(&a[0], &red)?, site.add(&a[1], &red)?];
    let blues = [site.add(&b[0], &blue)?, site.add(&b[1], &blue)?];
    for (one, other) in reds.iter().zip(&blues) {
        assert_eq!(addresses(one), addresses(other), "each network counts for itself");
    }
    // Each reaches its own, by frames: a node has one route to a prefix, whatever the number of networks.
    for (pods, results) in [(&a, &reds), (&b, &blues)] {
        for address in addresses(&results[1]) {
            pods[0].ping(address)?;
        }
        let mac = pods[1].ip(&["link", "show", "dev", "eth0"])?[0]["address"].clone();
        let neighbours = run_in(&pods[0], "ip neigh")?;
        assert!(neighbours.contains(mac.as_str().unwrap_or("no address")), "{mac} in {neighbours}");
    }
    site.del(&a[0], &red)?;
    site.del(&a[1], &red)?;
    assert_eq!(site.leases()?.len(), 0);
    for (pod, result) in b.iter().zip(&blues) {
        site.check(pod, &blue, result)?.ok()?;
        site.del(pod, &blue)?;
    }
    run(&site, "ip link del br1")?;
    site.assert_nothing_left()
}
