//! What plans look like, as commands.

use std::sync::Arc;

use podwire_kernel::route::{Nexthop, Route};
use podwire_kernel::{MacAddr, link};

use super::model::Kernel;
use crate::cluster::sample::{
    announcing, config, flannel, ip, network, record, snapshot, topology, underlay,
};
use crate::cluster::{ClusterConfig, DirectRouting, Encapsulation, IpFamily, NodeRecord, Snapshot};
use crate::desired::{Desired, Local, Naming, UnderlayFacts};
use crate::plan::{Deletes, Plan, delta, plan};

fn desired(snapshot: &Snapshot, underlay: &UnderlayFacts, kernel: &Kernel) -> Desired {
    let held = kernel.state.held(&kernel.naming);
    let local = Local { bridge: Some("podwire0"), held: &held, naming: &kernel.naming, ..Local::default() };
    Desired::new(&topology(snapshot), underlay, &local)
}

fn commands(plan: &Plan) -> String {
    plan.steps.iter().map(|step| format!("{}\n", step.operation)).collect()
}

/// IPv4 alone, so that the text stays short.
fn config4() -> ClusterConfig {
    let mut config = config();
    config.ranges.truncate(1);
    config.underlay = vec![IpFamily::Ipv4];
    config
}

fn record4(n: u16) -> NodeRecord {
    let mut record = record(n);
    record.subnets.truncate(1);
    record
}

fn announcing4(n: u16, receives: &[Encapsulation], sends: Encapsulation) -> NodeRecord {
    let mut record = announcing(n, receives, sends);
    record.subnets.truncate(1);
    record
}

/// Brings the kernel there and says by which commands.
fn converge(kernel: &mut Kernel, snapshot: &Snapshot, underlay: &UnderlayFacts) -> String {
    let desired = desired(snapshot, underlay, kernel);
    let plan = plan(&desired, &kernel.state, Deletes::Allowed);
    assert_eq!(kernel.carry_out(&plan, &[]), [""; 0]);
    let again = super::super::plan(&desired, &kernel.state, Deletes::Allowed);
    assert_eq!(commands(&again), "");
    commands(&plan)
}

fn underlay4() -> UnderlayFacts {
    let mut facts = underlay();
    facts.links.truncate(1);
    facts
}

#[test]
fn a_new_node_with_a_peer_of_both_families() {
    let mut kernel = Kernel::new();
    let done = converge(&mut kernel, &snapshot(config(), [record(1), record(2)]), &underlay());
    assert_eq!(
        done,
        "\
ip link add podwire.1 address 02:82:da:21:4b:ec mtu 1450 type vxlan id 1 dstport 8472 local 192.0.2.1 ttl 64 nolearning noudpcsum
sysctl -w net/ipv4/conf/podwire.1/rp_filter=2
sysctl -w net/ipv6/conf/podwire.1/accept_ra=0
sysctl -w net/ipv6/conf/podwire.1/disable_ipv6=0
ip link set podwire.1 up
ip link add podwire6.1 address 02:82:da:21:4b:ec mtu 1430 type vxlan id 1 dstport 8472 local 2001:db8::1 ttl 64 nolearning noudpcsum
sysctl -w net/ipv4/conf/podwire6.1/rp_filter=2
sysctl -w net/ipv6/conf/podwire6.1/accept_ra=0
sysctl -w net/ipv6/conf/podwire6.1/disable_ipv6=0
ip link set podwire6.1 up
sysctl -w net/ipv4/ip_forward=1
sysctl -w net/ipv6/conf/all/forwarding=1
ip addr add 10.244.1.0/32 dev podwire.1 proto 0x70
ip -6 addr add fd00:10:244:1::/128 dev podwire.1 proto 0x70 nodad
ip addr add 10.244.1.0/32 dev podwire6.1 proto 0x70
ip -6 addr add fd00:10:244:1::/128 dev podwire6.1 proto 0x70 nodad
ip addr add 10.244.1.1/24 dev 4 proto 0x70
ip -6 addr add fd00:10:244:1::1/64 dev 4 proto 0x70 nodad
ip neigh replace 10.244.2.0 lladdr 62:10:b3:58:b5:64 dev podwire.1 nud permanent
ip neigh replace fd00:10:244:2:: lladdr 62:10:b3:58:b5:64 dev podwire.1 nud permanent
bridge fdb replace 62:10:b3:58:b5:64 dev podwire.1 dst 192.0.2.2 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev podwire.1 proto 112 metric 3 onlink
ip -6 route add fd00:10:244:2::/64 via fd00:10:244:2:: dev podwire.1 proto 112 metric 1024 onlink
"
    );
}

#[test]
fn direct_routes_take_the_place_of_tunnels_at_the_same_metric() {
    let mut kernel = Kernel::new();
    let far = NodeRecord { addresses: vec![ip("198.51.100.3")], ..record4(3) };
    let mut all = snapshot(config4(), [record4(2), far]);
    converge(&mut kernel, &all, &underlay4());
    all.config.direct_routing = DirectRouting::Auto;
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip route replace 10.244.2.0/24 via 192.0.2.2 dev 2 proto 112 metric 3
ip neigh del 10.244.2.0 dev podwire.1
bridge fdb del 62:10:b3:58:b5:64 dev podwire.1 self dst 192.0.2.2
"
    );
    // Without any tunnel the far one is others' business.
    all.config.direct_routing = DirectRouting::Always;
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip route del 10.244.3.0/24 via 10.244.3.0 dev podwire.1 proto 112 metric 4 onlink
ip neigh del 10.244.3.0 dev podwire.1
bridge fdb del a2:04:a5:a4:0a:01 dev podwire.1 self dst 198.51.100.3
"
    );
    all.config.direct_routing = DirectRouting::Never;
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip neigh replace 10.244.2.0 lladdr 62:10:b3:58:b5:64 dev podwire.1 nud permanent
bridge fdb replace 62:10:b3:58:b5:64 dev podwire.1 dst 192.0.2.2 self permanent
ip neigh replace 10.244.3.0 lladdr a2:04:a5:a4:0a:01 dev podwire.1 nud permanent
bridge fdb replace a2:04:a5:a4:0a:01 dev podwire.1 dst 198.51.100.3 self permanent
ip route replace 10.244.2.0/24 via 10.244.2.0 dev podwire.1 proto 112 metric 3 onlink
ip route add 10.244.3.0/24 via 10.244.3.0 dev podwire.1 proto 112 metric 4 onlink
"
    );
}

/// Old and new at once: first everybody receives both, then each is sent the new, then the old goes.
#[test]
fn a_change_of_encapsulation_makes_before_it_breaks() {
    let old = Encapsulation::default();
    let new = Encapsulation { vni: 7, port: 4789 };
    let mut kernel = Kernel::new();
    let all = |config: &ClusterConfig, records: [NodeRecord; 2]| snapshot(config.clone(), records);
    let mut config = config4();
    converge(
        &mut kernel,
        &all(&config, [announcing4(2, &[old], old), announcing4(3, &[old], old)]),
        &underlay4(),
    );

    // The configuration changes; nobody else has followed yet.
    config.encapsulation = new;
    let before = all(&config, [announcing4(2, &[old], old), announcing4(3, &[old], old)]);
    assert_eq!(
        converge(&mut kernel, &before, &underlay4()),
        "\
ip link add pw4.7.12b5 address 12:4a:30:c9:96:01 mtu 1450 type vxlan id 7 dstport 4789 local 192.0.2.1 ttl 64 nolearning noudpcsum
sysctl -w net/ipv4/conf/pw4.7.12b5/rp_filter=2
ip link set pw4.7.12b5 up
ip addr add 10.244.1.0/32 dev pw4.7.12b5 proto 0x70
"
    );
    let told = desired(&before, &underlay4(), &kernel).announcement;
    let receives: Vec<_> = told.receives.iter().map(|vtep| vtep.encapsulation).collect();
    assert_eq!((receives, told.sends), (vec![new, old], Some(old)));

    // One follows: it is sent the new, and the old is still received.
    let halfway = all(&config, [announcing4(2, &[new, old], old), announcing4(3, &[old], old)]);
    assert_eq!(
        converge(&mut kernel, &halfway, &underlay4()),
        "\
ip neigh replace 10.244.2.0 lladdr 56:ba:dc:52:76:81 dev pw4.7.12b5 nud permanent
bridge fdb replace 56:ba:dc:52:76:81 dev pw4.7.12b5 dst 192.0.2.2 self permanent
ip route replace 10.244.2.0/24 via 10.244.2.0 dev pw4.7.12b5 proto 112 metric 3 onlink
ip neigh del 10.244.2.0 dev podwire.1
bridge fdb del 62:10:b3:58:b5:64 dev podwire.1 self dst 192.0.2.2
"
    );
    assert_eq!(desired(&halfway, &underlay4(), &kernel).announcement.sends, Some(old));

    // Both receive it, one still sends the old.
    let nearly = all(&config, [announcing4(2, &[new, old], new), announcing4(3, &[new, old], old)]);
    let done = converge(&mut kernel, &nearly, &underlay4());
    assert!(done.contains("ip route replace 10.244.3.0/24 via 10.244.3.0 dev pw4.7.12b5"), "{done}");
    assert!(!done.contains("link del"), "{done}");
    assert_eq!(desired(&nearly, &underlay4(), &kernel).announcement.sends, Some(new));

    let after = all(&config, [announcing4(2, &[new, old], new), announcing4(3, &[new], new)]);
    assert_eq!(converge(&mut kernel, &after, &underlay4()), "ip link del podwire.1\n");
}

#[test]
fn what_drifted_is_put_back_without_a_new_device() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    let index = kernel.index("podwire.1").expect("a device");
    kernel.change_mac(index, MacAddr([2, 0, 0, 0, 0, 9]));
    let device = kernel.state.links.iter_mut().find(|link| link.index == index).expect("a device");
    device.mtu = 9000;
    device.alias = None;
    device.controller = Some(4);
    device.vxlan = device.vxlan.map(|vxlan| link::Vxlan { learning: true, ttl: 1, local: None, ..vxlan });
    device.vxlan = device.vxlan.map(|vxlan| link::Vxlan { local: Some(ip("192.0.2.99")), ..vxlan });
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip link set podwire.1 address 02:82:da:21:4b:ec mtu 1450 nomaster alias 'podwire overlay' type vxlan nolearning ttl 64 local 192.0.2.1
bridge fdb del 62:10:b3:58:b5:64 dev podwire.1 self dst 192.0.2.2
ip neigh replace 10.244.2.0 lladdr 62:10:b3:58:b5:64 dev podwire.1 nud permanent
bridge fdb replace 62:10:b3:58:b5:64 dev podwire.1 dst 192.0.2.2 self permanent
"
    );
    kernel.down(index);
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip link set podwire.1 up
ip neigh replace 10.244.2.0 lladdr 62:10:b3:58:b5:64 dev podwire.1 nud permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev podwire.1 proto 112 metric 3 onlink
"
    );
}

#[test]
fn a_device_that_cannot_become_ours_is_made_again() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    let device = kernel.state.links.last_mut().expect("a device");
    device.vxlan = device.vxlan.map(|vxlan| link::Vxlan { udp_checksum: true, ..vxlan });
    let done = converge(&mut kernel, &all, &underlay4());
    assert!(done.starts_with("ip link del podwire.1\nip link add podwire.1 "), "{done}");
}

#[test]
fn a_device_that_somebody_renamed_is_made_again() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    kernel.state.links.last_mut().expect("a device").name = "other0".to_owned();
    let done = converge(&mut kernel, &all, &underlay4());
    assert!(done.starts_with("ip link del other0\nip link add podwire.1 "), "{done}");
}

#[test]
fn an_address_that_is_away_for_a_moment_costs_nothing() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    let nothing = UnderlayFacts::default();
    let desired = desired(&all, &nothing, &kernel);
    assert_eq!(commands(&plan(&desired, &kernel.state, Deletes::Allowed)), "");
    let told = desired.stranded().unwrap_or_default();
    assert!(told.starts_with("this node has no IPv4 address that other nodes can reach it by"), "{told}");
}

#[test]
fn another_underlay_address_and_mtu_are_followed_in_place() {
    let mut kernel = Kernel::new();
    let mut records = [record4(2), record4(3)];
    records[1].mtu = Some(1400);
    let all = snapshot(config4(), records);
    let done = converge(&mut kernel, &all, &underlay4());
    assert!(
        done.contains("10.244.3.0/24 via 10.244.3.0 dev podwire.1 proto 112 metric 4 onlink mtu 1350\n"),
        "{done}"
    );
    let mut facts = underlay4();
    facts.links[0].address = ip("192.0.2.77");
    facts.links[0].mtu = 1400;
    assert_eq!(
        converge(&mut kernel, &all, &facts),
        "\
ip link set podwire.1 mtu 1350 type vxlan nolearning ttl 64 local 192.0.2.77
bridge fdb del 62:10:b3:58:b5:64 dev podwire.1 self dst 192.0.2.2
bridge fdb del a2:04:a5:a4:0a:01 dev podwire.1 self dst 192.0.2.3
bridge fdb replace 62:10:b3:58:b5:64 dev podwire.1 dst 192.0.2.2 self permanent
bridge fdb replace a2:04:a5:a4:0a:01 dev podwire.1 dst 192.0.2.3 self permanent
ip route replace 10.244.3.0/24 via 10.244.3.0 dev podwire.1 proto 112 metric 4 onlink
"
    );
    // One absurd record harms one peer.
    let mut absurd = all.clone();
    absurd.nodes.insert("n3".to_owned(), Arc::new(NodeRecord { mtu: Some(0), ..record4(3) }));
    assert_eq!(
        converge(&mut kernel, &absurd, &facts),
        "ip route replace 10.244.3.0/24 via 10.244.3.0 dev podwire.1 proto 112 metric 4 onlink mtu 1280\n"
    );
}

#[test]
fn an_underlay_of_the_other_family_only_changes_the_device() {
    let mut kernel = Kernel::new();
    let all = snapshot(config(), [record(2)]);
    converge(&mut kernel, &all, &underlay());
    let mut turned = all.clone();
    turned.config.underlay.reverse();
    assert_eq!(
        converge(&mut kernel, &turned, &underlay()),
        "\
ip neigh replace 10.244.2.0 lladdr 62:10:b3:58:b5:64 dev podwire6.1 nud permanent
ip neigh replace fd00:10:244:2:: lladdr 62:10:b3:58:b5:64 dev podwire6.1 nud permanent
bridge fdb replace 62:10:b3:58:b5:64 dev podwire6.1 dst 2001:db8::2 self permanent
ip route replace 10.244.2.0/24 via 10.244.2.0 dev podwire6.1 proto 112 metric 3 onlink
ip -6 route replace fd00:10:244:2::/64 via fd00:10:244:2:: dev podwire6.1 proto 112 metric 1024 onlink
ip neigh del 10.244.2.0 dev podwire.1
ip neigh del fd00:10:244:2:: dev podwire.1
bridge fdb del 62:10:b3:58:b5:64 dev podwire.1 self dst 192.0.2.2
"
    );
}

#[test]
fn routes_of_others_are_left_alone_and_named() {
    let mut kernel = Kernel::new();
    let foreign = |destination: &str, metric, protocol| Route {
        priority: Some(metric),
        protocol,
        ..Route::new(network(destination), vec![Nexthop { gateway: Some(ip("192.0.2.200")), oif: Some(2) }])
    };
    kernel.state.routes = vec![
        foreign("10.244.2.0/24", 3, 4),
        foreign("10.244.3.0/24", 1, 186),
        foreign("10.244.4.128/25", 900, 3),
        foreign("10.244.5.0/24", 900, 3),
        foreign("10.0.0.0/8", 0, 3),
        foreign("10.244.99.0/24", 0, 3),
    ];
    let all = snapshot(config4(), (2..=5).map(record4));
    let desired = desired(&all, &underlay4(), &kernel);
    let plan = plan(&desired, &kernel.state, Deletes::Allowed);
    let problems: Vec<_> = plan.problems.iter().map(|problem| problem.text.as_str()).collect();
    let text = |node, route, subnet| {
        format!(
            "node {node}: the route {route} is somebody else's and is preferred to podwire's to {subnet}: remove it, or \
             what makes it"
        )
    };
    assert_eq!(
        problems,
        [
            text("n2", "10.244.2.0/24 via 192.0.2.200 dev 2 metric 3 (protocol 4)", "10.244.2.0/24"),
            text("n3", "10.244.3.0/24 via 192.0.2.200 dev 2 metric 1 (protocol 186)", "10.244.3.0/24"),
            text("n4", "10.244.4.128/25 via 192.0.2.200 dev 2 metric 900 (protocol 3)", "10.244.4.0/24"),
        ]
    );
    let done = commands(&plan);
    assert!(!done.contains("route add 10.244.2.0/24"), "{done}");
    assert!(done.contains("route add 10.244.3.0/24"), "{done}");
}

#[test]
fn a_route_of_ours_at_another_metric_goes_after_the_right_one_came() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    kernel.state.routes[0].priority = Some(77);
    assert_eq!(
        converge(&mut kernel, &all, &underlay4()),
        "\
ip route add 10.244.2.0/24 via 10.244.2.0 dev podwire.1 proto 112 metric 3 onlink
ip route del 10.244.2.0/24 via 10.244.2.0 dev podwire.1 proto 112 metric 77 onlink
"
    );
}

#[test]
fn devices_of_others_in_the_way_are_named_and_left_alone() {
    let all = snapshot(config4(), [record4(2)]);
    for (name, vxlan, expected) in [
        (
            "flannel.1",
            Some(link::Vxlan::new(1, 8472, Some(ip("192.0.2.1")))),
            "VXLAN device flannel.1 has VNI 1 and port 8472 already",
        ),
        ("podwire.1", None, "link podwire.1 is not podwire's (dummy)"),
    ] {
        let mut kernel = Kernel::new();
        kernel.state.links.push(link::Link {
            index: 9,
            name: name.to_owned(),
            kind: Some("dummy".to_owned()),
            vxlan,
            ..link::Link::default()
        });
        let desired = desired(&all, &underlay4(), &kernel);
        let plan = plan(&desired, &kernel.state, Deletes::Allowed);
        assert!(plan.problems[0].text.starts_with(expected), "{:?}", plan.problems);
        let done = commands(&plan);
        assert!(!done.contains("link") && !done.contains("route") && !done.contains("neigh"), "{done}");
    }
}

#[test]
fn one_change_needs_no_look() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), (2..=9).map(record4));
    converge(&mut kernel, &all, &underlay4());
    let old = desired(&all, &underlay4(), &kernel);
    // Node 5 has another address, 6 goes, 12 comes with 7's subnet, which has gone too.
    let mut next = all.clone();
    let moved = NodeRecord { addresses: vec![ip("192.0.2.55")], ..record4(5) };
    next.nodes.insert("n5".to_owned(), Arc::new(moved));
    next.nodes.remove("n6");
    next.nodes.remove("n7");
    let heir = NodeRecord { subnets: record4(7).subnets, ..record4(12) };
    next.nodes.insert("n12".to_owned(), Arc::new(heir));
    let new = desired(&next, &underlay4(), &kernel);
    let plan = delta(&old, &new, Deletes::Allowed);
    assert!(!plan.needs_look);
    let lines = commands(&plan);
    let shown: Vec<_> = lines.lines().filter(|line| !line.contains("bridge fdb")).collect();
    assert_eq!(
        shown,
        [
            "ip neigh replace 10.244.7.0 lladdr ca:f9:07:1c:08:e2 dev podwire.1 nud permanent",
            "ip route del 10.244.6.0/24 via 10.244.6.0 dev podwire.1 proto 112 metric 7 onlink",
            "ip neigh del 10.244.6.0 dev podwire.1",
        ]
    );
    assert_eq!(plan.senders.add, [ip("192.0.2.12"), ip("192.0.2.55"), ip("2001:db8::c")]);
    assert_eq!(plan.senders.remove.len(), 6, "{:?}", plan.senders);
    assert_eq!(kernel.carry_out(&plan, &[]), [""; 0]);
    assert_eq!(commands(&super::super::plan(&new, &kernel.state, Deletes::Allowed)), "");
}

#[test]
fn what_is_remembered_adds_and_repairs_but_removes_nothing() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), (2..=4).map(record4));
    converge(&mut kernel, &all, &underlay4());
    let mut less = all.clone();
    less.nodes.remove("n3");
    less.nodes.insert("n9".to_owned(), Arc::new(record4(9)));
    let desired_less = desired(&less, &underlay4(), &kernel);
    let done = commands(&plan(&desired_less, &kernel.state, Deletes::Withheld));
    assert!(done.contains("route add 10.244.9.0/24") && !done.contains(" del "), "{done}");
    let old = desired(&all, &underlay4(), &kernel);
    let quick = delta(&old, &desired_less, Deletes::Withheld);
    assert_eq!(commands(&quick), done);
    assert_eq!(quick.senders.remove, [""; 0].map(ip));
}

/// A node that was flannel's: nothing that packets depend on goes or comes anew, and the IPv6 routes, which stand where ours
/// are to be, are replaced in one step each.
#[test]
fn a_node_that_was_flannels_goes_on_with_its_devices() {
    let mut kernel = Kernel::of_flannel(&[network("10.244.2.0/24"), network("fd00:10:244:2::/64")]);
    for (index, mac, at) in [(5, 4, "192.0.2.2"), (6, 6, "2001:db8::2")] {
        let mac = MacAddr([0x2a, 0, 0, 0, mac, 2]);
        kernel.state.fdb.push(podwire_kernel::neighbour::FdbEntry::permanent(index, mac, ip(at)));
        let neighbours = kernel.state.neighbours.iter_mut().filter(|found| found.ifindex == index);
        neighbours.for_each(|found| found.mac = Some(mac));
    }
    let all = snapshot(config(), [flannel(2), record(3)]);
    assert_eq!(
        converge(&mut kernel, &all, &underlay()),
        "\
sysctl -w net/ipv4/conf/flannel.1/rp_filter=2
ip link set flannel.1 alias 'podwire overlay' addrgenmode none
sysctl -w net/ipv4/conf/flannel-v6.1/rp_filter=2
ip link set flannel-v6.1 mtu 1430 alias 'podwire overlay' addrgenmode none
sysctl -w net/ipv4/ip_forward=1
sysctl -w net/ipv6/conf/all/forwarding=1
ip -6 addr add fd00:10:244:1::/128 dev flannel.1 proto 0x70 nodad
ip addr add 10.244.1.0/32 dev flannel-v6.1 proto 0x70
ip addr add 10.244.1.1/24 dev 4 proto 0x70
ip -6 addr add fd00:10:244:1::1/64 dev 4 proto 0x70 nodad
ip neigh replace 10.244.3.0 lladdr a2:04:a5:a4:0a:01 dev flannel.1 nud permanent
ip neigh replace fd00:10:244:3:: lladdr a2:04:a5:a4:0a:01 dev flannel.1 nud permanent
bridge fdb replace a2:04:a5:a4:0a:01 dev flannel.1 dst 192.0.2.3 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 112 metric 3 onlink
ip -6 route replace fd00:10:244:2::/64 via fd00:10:244:2:: dev flannel-v6.1 proto 112 metric 1024 onlink
ip route add 10.244.3.0/24 via 10.244.3.0 dev flannel.1 proto 112 metric 4 onlink
ip -6 route add fd00:10:244:3::/64 via fd00:10:244:3:: dev flannel.1 proto 112 metric 1024 onlink
bridge fdb del 2a:00:00:00:09:09 dev flannel.1 self dst 192.0.2.99
bridge fdb del 2a:00:00:00:09:09 dev flannel-v6.1 self dst 2001:db8::99
"
    );
    // Flannel's IPv4 route is there still, and is told of.
    let told = plan(&desired(&all, &underlay(), &kernel), &kernel.state, Deletes::Allowed).problems;
    assert!(told[0].text.contains("the route 10.244.2.0/24 via 10.244.2.0"), "{told:?}");

    // After a reboot it is made as ours are, by the name and with the address that others know.
    let index = kernel.index("flannel.1").expect("a device");
    kernel.delete_link(index);
    let done = converge(&mut kernel, &all, &underlay());
    let first = done.lines().next();
    assert_eq!(
        first,
        Some(
            "ip link add flannel.1 address 2a:00:00:00:04:01 mtu 1450 type vxlan id 1 dstport 8472 local 192.0.2.1 ttl 64 \
             nolearning noudpcsum"
        )
    );
    assert!(!done.contains("flannel-v6.1"), "{done}");
}

/// A device of ours makes way for the one that was adopted, of which nothing is left.
#[test]
fn an_adopted_device_takes_the_place_of_one_with_our_name() {
    let mut kernel = Kernel::new();
    let all = snapshot(config4(), [record4(2)]);
    converge(&mut kernel, &all, &underlay4());
    kernel.naming = Kernel::of_flannel(&[]).naming;
    let done = converge(&mut kernel, &all, &underlay4());
    let lines: Vec<_> = done.lines().take(2).collect();
    assert_eq!(lines[0], "ip link del podwire.1");
    assert!(lines[1].starts_with("ip link add flannel.1 address 2a:00:00:00:04:01 "), "{done}");
    assert_eq!((kernel.state.routes.len(), done.matches("link del").count()), (1, 1), "{done}");
}

#[test]
fn a_device_of_flannels_that_nobody_has_adopted_is_left_alone_and_the_way_out_is_told() {
    let mut kernel = Kernel::of_flannel(&[network("10.244.2.0/24")]);
    kernel.naming = Naming::default();
    let before = kernel.state.links.clone();
    let plan = plan(
        &desired(&snapshot(config(), [flannel(2)]), &underlay(), &kernel),
        &kernel.state,
        Deletes::Allowed,
    );
    let done = commands(&plan);
    assert!(!done.contains("link") && !done.contains("route") && !done.contains("neigh"), "{done}");
    assert_eq!(kernel.state.links, before);
    let barred: Vec<_> = plan.barred.iter().map(|id| id.name().to_owned()).collect();
    assert_eq!(barred, ["podwire.1", "podwire6.1"]);
    let advice = "`podwirectl migrate flannel` takes it over";
    assert!(plan.problems.iter().filter(|problem| problem.text.contains(advice)).count() == 2, "{plan:?}");
}
