//! What is not ours stays as it is, and one thing that fails keeps nothing else from being done.

use podwire_kernel::testing::{in_new_netns, run};

use super::lab::{Agent, BRIDGE, Kernel, SOON, World, address, ip, sh, until_kernel_is, uplink};
use podwire_overlay::dataplane::cleanup;

/// Things of others, some of them close to ours.
const FOREIGN: &str = "
    ip link add other type vxlan id 7 dstport 4789 local 192.0.2.1 nolearning
    ip link set other up
    ip route add 10.200.0.0/24 via 192.0.2.254
    ip route add 10.128.200.0/24 via 192.0.2.254 proto static metric 5000
    ip -6 route add fd77::/64 via 2001:db8::fe proto bird
    ip route add 10.128.5.0/24 via 192.0.2.254 proto 112 table 77
    ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
    bridge fdb append 02:00:00:00:00:77 dev other dst 192.0.2.77 self permanent
    ip addr add 192.0.2.9/32 dev eth0
    nft add table inet podwire
    nft add chain inet podwire mine
    nft add rule inet podwire mine udp dport 8472 counter
    nft add table ip podwire-node
";

fn foreign() -> Vec<String> {
    let looks: [&[&str]; 8] = [
        &["ip", "-o", "link", "show", "other"],
        &["ip", "route", "show", "10.200.0.0/24"],
        &["ip", "route", "show", "10.128.200.0/24"],
        &["ip", "-6", "route", "show", "proto", "bird"],
        &["ip", "route", "show", "table", "77"],
        &["ip", "neigh", "show", "nud", "permanent", "dev", "eth0"],
        &["bridge", "fdb", "show", "dev", "other"],
        &["ip", "-o", "addr", "show", "dev", "eth0"],
    ];
    let mut all: Vec<String> = looks.iter().map(|words| run(words[0], &words[1..])).collect();
    all.push(sh("nft list table inet podwire; nft list table ip podwire-node"));
    all
}

#[test]
fn foreign_things_are_untouched_by_work_repair_and_cleanup() {
    in_new_netns(|| {
        let _uplink = uplink();
        sh(FOREIGN);
        let before = foreign();
        assert!(before.iter().all(|text| !text.is_empty()), "{before:#?}");
        let mut world = World::new(30);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        (1..=15).for_each(|number| world.leave(number));
        agent.tell(&mut world);
        sh("ip link set podwire.1 down; ip route flush proto 112; nft delete table inet podwire-node");
        until_kernel_is(SOON, &world.expected(1500));
        agent.stop();
        assert_eq!(foreign(), before);

        let cleaned = cleanup(Some(BRIDGE));
        assert!(cleaned.failures.is_empty(), "{:?}", cleaned.failures);
        assert!(cleaned.removed.len() >= 4, "{:?}", cleaned.removed);
        assert_eq!(foreign(), before);
        let left = Kernel::read();
        assert_eq!((left.routes.len(), left.addresses.len(), left.senders.len()), (0, 0, 0));
        assert_eq!(left.links.len(), 0, "{:?}", left.links);
        let again = cleanup(Some(BRIDGE));
        assert!(again.failures.is_empty() && again.removed.is_empty(), "{again:?}");
    });
}

#[test]
fn a_bridge_with_ports_outlives_cleanup() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut agent = Agent::start();
        agent.tell(&mut World::new(1));
        agent.stop();
        sh("ip link add port type veth peer name pod; ip link set port master podwire0");
        cleanup(Some(BRIDGE));
        ip("link show podwire0");
    });
}

#[test]
fn a_foreign_route_in_a_peers_place_harms_that_peer_alone_and_is_told() {
    in_new_netns(|| {
        let _uplink = uplink();
        // Of the prefix and metric that the route to peer 7 is to have.
        ip("route add 10.128.7.0/24 via 192.0.2.254 metric 8 proto static");
        let mut world = World::new(20);
        let mut agent = Agent::start();
        agent.overlay.update(world.input(true));
        let report = agent.report(|report| report.full && report.number == 1);
        let told = report.failures.iter().any(|failure| failure.peer.as_deref() == Some("n00007"))
            || report.problems.iter().any(|problem| problem.text.contains("10.128.7.0/24"));
        assert!(told, "{:?} {:?}", report.failures, report.problems);
        let mut expected = world.expected(1500);
        expected.routes.retain(|route| !route.starts_with("10.128.7.0/24"));
        until_kernel_is(SOON, &expected);
        let kept = ip("route show 10.128.7.0/24");
        assert_eq!(kept.trim(), "10.128.7.0/24 via 192.0.2.254 dev eth0 proto static metric 8");
        // With the obstacle gone, the route is made.
        ip("route del 10.128.7.0/24 proto static");
        until_kernel_is(SOON, &world.expected(1500));
    });
}

#[test]
fn a_foreign_device_of_our_name_keeps_the_other_family_working() {
    in_new_netns(|| {
        let _uplink = uplink();
        ip("link add podwire.1 type veth peer name theirs");
        let mut world = World::new(5);
        let mut agent = Agent::start();
        agent.overlay.update(world.input(true));
        let report = agent.report(|report| report.full && report.number == 1);
        assert!(report.problems.iter().any(|problem| problem.text.contains("podwire.1")), "{report:?}");
        assert!(ip("-d link show podwire.1").contains("veth"));
        ip("link show podwire6.1");
        // Once it is gone, its place is taken.
        ip("link del podwire.1");
        until_kernel_is(SOON, &world.expected(1500));
    });
}

#[test]
fn hostile_records_harm_themselves_alone() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(20);
        world.change(3, |record| record.subnets = vec!["0.0.0.0/0".parse().expect("a network")]);
        world.change(4, |record| record.addresses = vec![address("127.0.0.1")]);
        world.change(5, |record| record.name = "\u{1b}[2J".repeat(100));
        world.change(6, |record| record.addresses = vec![address("192.0.2.1")]);
        world.change(8, |record| record.subnets = vec![super::lab::subnet4(0)]);
        world.change(9, |record| record.mtu = Some(0));
        let mut agent = Agent::start();
        agent.overlay.update(world.input(true));
        let report = agent.report(|report| report.number == 1 && report.full);
        assert!(report.problems.len() >= 5, "{:?}", report.problems);
        let is = Kernel::read();
        for number in (10..=20).chain([1, 2, 7]) {
            let subnet = super::lab::subnet4(number).to_string();
            assert!(is.routes.iter().any(|route| route.starts_with(&subnet)), "{subnet} of {:?}", is.routes);
        }
        for forbidden in ["0.0.0.0/0", "10.128.0.0/24"] {
            assert!(!is.routes.iter().any(|route| route.starts_with(forbidden)), "{:?}", is.routes);
        }
        let of_nine = is.routes.iter().find(|route| route.starts_with("10.128.9.0/24"));
        assert!(of_nine.is_none_or(|route| route.ends_with("mtu 1280")), "{of_nine:?}");
    });
}
