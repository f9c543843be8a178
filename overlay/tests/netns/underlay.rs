//! The link to other nodes changes, and everything follows it.

use podwire_kernel::testing::{eventually, in_new_netns};
use podwire_overlay::cluster::DirectRouting;
use podwire_overlay::dataplane::Report;

use super::lab::{
    Agent, DEVICE, Kernel, SOON, World, address, configure_uplink, ip, settings, sh, until_kernel_is, uplink,
};

fn settled(test: impl FnOnce(Agent, World) + Send + 'static) {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(10);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        until_kernel_is(SOON, &world.expected(1500));
        agent.rest();
        test(agent, world);
    });
}

fn with_local(kernel: &Kernel, from: &str, to: &str) -> Kernel {
    let links =
        kernel.links.iter().map(|link| link.replace(&format!("local {from} "), &format!("local {to} ")));
    Kernel { links: links.collect(), ..kernel.clone() }
}

#[test]
fn its_facts_are_told_before_anything_is_known_and_nothing_is_touched() {
    in_new_netns(|| {
        let mut agent = Agent::start();
        agent.report(|report| report.underlay.links.is_empty());
        let _uplink = uplink();
        let report = agent.report(|report| report.announcement.addresses.len() == 2);
        assert_eq!(report.announcement.addresses, [address("192.0.2.1"), address("2001:db8::1")]);
        assert_eq!((report.announcement.mtu, report.number, report.in_sync), (Some(1500), 0, false));
        assert_eq!(report.announcement.receives, []);
        ip("link set eth0 mtu 1400");
        agent.report(|report| report.announcement.mtu == Some(1400));
        agent.rest();
        assert_eq!(Kernel::read(), Kernel::default());
        agent.stop();
    });
}

#[test]
fn a_smaller_mtu_and_a_larger_one_are_followed() {
    settled(|mut agent, world| {
        for mtu in [1400, 9000, 1500] {
            ip(&format!("link set eth0 mtu {mtu}"));
            until_kernel_is(SOON, &world.expected(mtu));
            let report = agent.report(|report| report.announcement.mtu == Some(mtu));
            assert_eq!(report.pods.and_then(|pods| pods.mtu), Some(mtu - 50));
        }
    });
}

#[test]
fn an_mtu_that_is_too_small_for_ipv6_takes_nothing_away() {
    settled(|mut agent, world| {
        ip("link set eth0 mtu 1300");
        let mut expected = world.expected(1500);
        expected.links = expected
            .links
            .iter()
            .map(|link| link.replace("mtu 1450", "mtu 1280").replace("mtu 1430", "mtu 1280"))
            .collect();
        until_kernel_is(SOON, &expected);
        agent.rest();
    });
}

#[test]
fn another_address_is_followed_and_told() {
    settled(|mut agent, world| {
        let expected = world.expected(1500);
        sh("ip addr add 192.0.2.2/24 dev eth0; ip addr del 192.0.2.1/24 dev eth0
            ip addr replace 192.0.2.2/24 dev eth0; ip route replace default via 192.0.2.254");
        until_kernel_is(SOON, &with_local(&expected, "192.0.2.1", "192.0.2.2"));
        agent.report(|report| report.announcement.addresses.contains(&address("192.0.2.2")));
        sh("ip -6 addr del 2001:db8::1/64 dev eth0; ip -6 addr add 2001:db8::2/64 dev eth0 nodad");
        let expected = with_local(&expected, "192.0.2.1", "192.0.2.2");
        until_kernel_is(SOON, &with_local(&expected, "2001:db8::1", "2001:db8::2"));
    });
}

#[test]
fn an_additional_address_changes_nothing() {
    settled(|mut agent, world| {
        sh("ip addr add 192.0.2.200/32 dev eth0; ip addr add 203.0.113.5/24 dev eth0
            ip -6 addr add 2001:db8::200/128 dev eth0 nodad");
        agent.rest();
        assert_eq!(Kernel::read(), world.expected(1500));
        let last = agent.heard.last().expect("a report");
        assert_eq!(last.announcement.addresses, [address("192.0.2.1"), address("2001:db8::1")]);
    });
}

#[test]
fn a_link_that_is_away_for_a_while_costs_nothing() {
    settled(|mut agent, world| {
        let expected = world.expected(1500);
        let device = ip("-o link show podwire.1");
        for script in ["ip link set eth0 down", "ip addr flush dev eth0", "ip link del eth0"] {
            sh(script);
            agent.report(|report| report.underlay.links.len() < 2);
            agent.rest();
            let is = Kernel::read();
            assert_eq!(is.differs_from(&expected), Vec::<String>::new(), "after {script}");
            if script.ends_with("del eth0") {
                // Held while the test's end goes on.
                std::mem::forget(uplink());
            } else {
                sh("ip addr flush dev eth0; ip route flush dev eth0 || true");
                configure_uplink();
            }
            agent.report(|report| report.underlay.links.len() == 2 && report.in_sync);
            until_kernel_is(SOON, &expected);
        }
        assert_eq!(ip("-o link show podwire.1"), device, "it is the same device");
    });
}

#[test]
fn the_default_route_moves_to_another_link() {
    settled(|mut agent, world| {
        let expected = world.expected(1500);
        sh("ip link add eth1 mtu 1400 type veth peer name far; ip link set eth1 up; ip link set far up
            ip addr add 203.0.113.1/24 dev eth1
            ip route replace default via 203.0.113.254 dev eth1");
        let report = agent.report(|report| report.announcement.addresses.contains(&address("203.0.113.1")));
        assert_eq!(report.announcement.mtu, Some(1400));
        let moved = with_local(&expected, "192.0.2.1", "203.0.113.1");
        let links = moved.links.iter().map(|link| match link.starts_with("podwire6") {
            true => link.clone(),
            false => link.replace("mtu 1450", "mtu 1350"),
        });
        until_kernel_is(SOON, &Kernel { links: links.collect(), ..moved });
    });
}

#[test]
fn a_configured_link_and_addresses_are_used_whatever_the_default_route() {
    in_new_netns(|| {
        let _uplink = uplink();
        sh("ip link add eth1 type veth peer name far; ip link set eth1 up; ip addr add 203.0.113.1/24 dev eth1
            ip addr add 203.0.113.2/32 dev eth1");
        let mut agent = Agent::start_with(podwire_overlay::dataplane::Settings {
            interface: Some("eth1".to_owned()),
            addresses: vec![address("203.0.113.2")],
            ..settings()
        });
        let report = agent.report(|report| !report.announcement.addresses.is_empty());
        assert_eq!(report.announcement.addresses, [address("203.0.113.2")]);
        agent.stop();
    });
}

#[test]
fn the_link_is_the_one_with_the_address_that_the_store_says() {
    settled(|mut agent, mut world| {
        sh("ip link add eth1 type veth peer name far; ip link set eth1 up; ip link set far up
            ip addr add 203.0.113.1/24 dev eth1; ip addr add 203.0.113.2/32 dev eth1");
        let of =
            |report: &Report| (report.announcement.addresses.clone(), report.underlay.links[0].name.clone());
        let expect = |ip: &str, link: &str| (vec![address(ip), address("2001:db8::1")], link.to_owned());
        for (stated, own, link) in [
            ("203.0.113.2", "203.0.113.2", "eth1"),
            ("203.0.113.1", "203.0.113.1", "eth1"),
            // Where others find this node is not where it is.
            ("198.51.100.77", "192.0.2.1", "eth0"),
            ("203.0.113.2", "203.0.113.2", "eth1"),
        ] {
            world.stated = vec![address(stated)];
            let report = agent.tell(&mut world);
            assert_eq!(of(&report), expect(own, link), "{stated}");
            assert!(ip(&format!("-d link show {DEVICE}")).contains(&format!("local {own} ")), "{stated}");
        }
        // It goes, and comes back.
        ip("addr del 203.0.113.2/32 dev eth1");
        agent.report(|report| of(report) == expect("192.0.2.1", "eth0"));
        ip("addr add 203.0.113.2/32 dev eth1");
        agent.report(|report| of(report) == expect("203.0.113.2", "eth1"));
        agent.stop();
    });
}

#[test]
fn neighbours_on_the_link_are_reached_directly_where_that_is_wanted() {
    settled(|mut agent, mut world| {
        world.snapshot.config.direct_routing = DirectRouting::Auto;
        world.change(3, |record| record.addresses = vec![address("192.0.2.3"), address("2001:db8::3")]);
        agent.tell(&mut world);
        let routes = |words: &str| ip(words).lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        let direct = routes("route show 10.128.3.0/24");
        assert_eq!(direct, ["10.128.3.0/24 via 192.0.2.3 dev eth0 proto 112 metric 4"]);
        let direct = routes("-6 route show fd00:10:244:3::/64");
        assert!(direct[0].starts_with("fd00:10:244:3::/64 via 2001:db8::3 dev eth0 proto 112"), "{direct:?}");
        assert_eq!(Kernel::read().routes.len(), 20);
        // Taken away with the link, which is no business of the tunnel's.
        sh("ip link set eth0 down");
        agent.report(|report| report.underlay.links.is_empty());
        sh("ip addr flush dev eth0");
        configure_uplink();
        eventually("the direct route is back", || {
            (routes("route show 10.128.3.0/24")
                == ["10.128.3.0/24 via 192.0.2.3 dev eth0 proto 112 metric 4"])
            .then_some(())
        });
        world.snapshot.config.direct_routing = DirectRouting::Never;
        agent.tell(&mut world);
        until_kernel_is(SOON, &world.expected(1500));
    });
}

#[test]
fn a_foreign_route_to_all_that_is_private_does_not_keep_ipv6_from_the_tunnel() {
    settled(|mut agent, mut world| {
        sh("ip -6 route add fd00::/8 via 2001:db8::fe");
        world.join(11);
        agent.tell(&mut world);
        until_kernel_is(SOON, &world.expected(1500));
        sh("ip link set podwire.1 down");
        until_kernel_is(SOON, &world.expected(1500));
    });
}
