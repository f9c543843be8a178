//! The harness for several nodes itself, tried with a tunnel made by hand: what it calls lost is lost, what it cuts is
//! cut, and a lab of two nodes stays apart from another.

use std::net::IpAddr;
use std::time::Duration;

use podwire_netns_tests::etcd::{Etcd, EtcdOptions};
use podwire_netns_tests::traffic::{Flow, Flows};
use podwire_netns_tests::underlay::{Families, Layout, Underlay, Uplink};
use podwire_netns_tests::{Lab, LabError, Node, Pod, Result, wait_for};

/// Two nodes with a pod each, connected as an agent would, with a VXLAN device in IPv4.
struct ByHand {
    underlay: Underlay,
    uplinks: [Uplink; 2],
    nodes: [Node; 2],
    pods: [Pod; 2],
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(LabError::because(text))
}

impl ByHand {
    fn new(name: &str, layout: Layout) -> Result<Self> {
        let lab = Lab::new(name)?;
        let underlay = Underlay::new(Families::Dual, layout)?;
        let nodes = [lab.node("a")?, lab.node("b")?];
        let uplinks = [underlay.attach(&nodes[0], 0)?, underlay.attach(&nodes[1], 1)?];
        let pods = [nodes[0].pod("pa")?, nodes[1].pod("pb")?];
        for here in 0..2 {
            let (there, pod) = (1 - here, ["pa", "pb"][here]);
            let [local, remote] = [here, there].map(|n| underlay.addresses(n as u8)[0]);
            let script = format!(
                "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
                 echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
                 ip link add vx type vxlan id 1 dstport 8472 local {local} nolearning noudpcsum
                 ip link set vx address 02:00:00:00:00:0{here} up
                 ip address add 10.1.{here}.1/32 dev vx; ip -6 address add fd01:{here}::1/128 dev vx nodad
                 ip neigh replace 10.1.{there}.1 lladdr 02:00:00:00:00:0{there} dev vx nud permanent
                 ip neigh replace fd01:{there}::1 lladdr 02:00:00:00:00:0{there} dev vx nud permanent
                 bridge fdb replace 02:00:00:00:00:0{there} dev vx dst {remote} self permanent
                 ip route add 10.1.{there}.0/24 via 10.1.{there}.1 dev vx onlink
                 ip -6 route add fd01:{there}::/64 via fd01:{there}::1 dev vx onlink
                 ip link add h0 mtu 1450 type veth peer name eth0 mtu 1450 netns {pod}
                 ip -n {pod} link set lo up
                 ip address add 10.1.{here}.254/24 dev h0; ip -6 address add fd01:{here}::fe/64 dev h0 nodad
                 ip link set h0 up; ip -n {pod} link set eth0 up
                 ip -n {pod} address add 10.1.{here}.2/24 dev eth0
                 ip -n {pod} -6 address add fd01:{here}::2/64 dev eth0 nodad
                 ip -n {pod} route add default via 10.1.{here}.254
                 ip -n {pod} -6 route add default via fd01:{here}::fe"
            );
            nodes[here].run("sh", &["-ec", &script])?.success("make a tunnel by hand")?;
        }
        Ok(Self { underlay, uplinks, nodes, pods })
    }

    fn flows(&self) -> Result<Flows> {
        let [a, b] = &self.pods;
        let ways = [(a, b, "10.1.1.2"), (a, b, "fd01:1::2"), (b, a, "10.1.0.2"), (b, a, "fd01::2")];
        let start = |(from, to, at): (&Pod, &Pod, &str)| Flow::start(from, to, address(at)?);
        Ok(Flows(ways.into_iter().map(start).collect::<Result<_>>()?))
    }
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn flows_lose_what_the_network_loses_and_nothing_else() -> Result<()> {
    for layout in [Layout::Flat, Layout::Routed] {
        let lab = ByHand::new("by-hand", layout)?;
        let mut flows = lab.flows()?;
        flows.all_flow(SOON)?;
        flows.assert_none_lost()?;

        // A cut that nothing tells the nodes.
        lab.uplinks[0].cut()?;
        let cut = flows.0[0].flows(100, Duration::from_millis(300));
        assert!(!cut, "packets pass a cut link");
        lab.uplinks[0].heal()?;
        flows.all_flow(SOON)?;
        for (label, lap) in flows.laps() {
            assert!(lap.lost >= 100 && lap.lost < lap.sent && lap.longest_gap <= lap.lost, "{label}: {lap}");
        }

        // One entry for one destination in one family.
        lab.nodes[0].run("ip", &["route", "del", "10.1.1.0/24"])?.success("delete a route")?;
        let cut = flows.0[0].flows(50, Duration::from_millis(200));
        assert!(!cut, "packets pass without a route");
        assert!(flows.0[1].flows(50, SOON), "the other family does not care");
        let again = ["route", "add", "10.1.1.0/24", "via", "10.1.1.1", "dev", "vx", "onlink"];
        lab.nodes[0].run("ip", &again)?.success("add a route")?;
        flows.all_flow(SOON)?;
        let laps = flows.laps();
        // The way back of IPv4 is not concerned: it has the other node's route.
        assert_eq!(
            laps.iter().map(|(_, lap)| lap.lost > 50).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        flows.all_flow(SOON)?;
        flows.assert_none_lost()?;

        // Of every second packet something is lost, not all.
        lab.uplinks[1].lose(50)?;
        flows.all_flow(SOON)?;
        let flowed = flows.0[0].flows(200, SOON);
        assert!(flowed);
        lab.uplinks[1].lose(0)?;
        let lap = flows.0[0].lap();
        assert!(lap.lost > 20 && lap.lost < lap.sent, "{lap}");
    }
    Ok(())
}

/// The first packets may be lost while a neighbour is looked for.
fn reaches(node: &Node, address: IpAddr) -> bool {
    let ping = || node.run("busybox", &["ping", "-c", "1", "-W", "1", &address.to_string()]);
    wait_for(SOON, || ping().is_ok_and(|done| done.status.success()))
}

#[test]
fn nodes_of_a_routed_underlay_are_not_on_link() -> Result<()> {
    for (layout, on_link) in [(Layout::Flat, true), (Layout::Routed, false)] {
        let lab = Lab::new("layout")?;
        let underlay = Underlay::new(Families::Dual, layout)?;
        let nodes = [lab.node("a")?, lab.node("b")?];
        let uplinks = [underlay.attach(&nodes[0], 0)?, underlay.attach(&nodes[1], 1)?];
        for address in underlay.addresses(1) {
            assert!(reaches(&nodes[0], address), "{address}");
            let route = nodes[0].ip(&["route", "get", &address.to_string()])?;
            assert_eq!(route[0]["gateway"].is_null(), on_link, "{route}");
        }
        // An address comes and another goes; the default routes stay or come back.
        let more = underlay.in_subnet(0, 77);
        for (new, old) in more.iter().zip(underlay.addresses(0)) {
            uplinks[0].add_address(*new)?;
            uplinks[0].remove_address(old)?;
        }
        uplinks[0].add_default_routes()?;
        for address in &more {
            assert!(reaches(&nodes[1], *address), "{address}");
        }
        uplinks[0].set_mtu(1400)?;
        assert_eq!(nodes[0].ip(&["link", "show", "eth0"])?[0]["mtu"], 1400);
        uplinks[0].unplug()?;
        assert_eq!(nodes[0].ip(&["link", "show", "eth0"])?[0]["operstate"], "DOWN");
        uplinks[0].plug()?;
        for address in &more {
            assert!(reaches(&nodes[1], *address), "{address}");
        }
        drop(underlay);
    }
    Ok(())
}

#[test]
fn labs_with_the_same_addresses_do_not_meet() -> Result<()> {
    let [one, other] = [ByHand::new("one", Layout::Flat)?, ByHand::new("other", Layout::Flat)?];
    let mut flows = one.flows()?;
    other.uplinks[0].cut()?;
    other.underlay.sh("ip link set sw0 down")?;
    flows.all_flow(SOON)?;
    flows.assert_none_lost()
}

#[test]
fn etcd_lives_through_the_loss_of_its_leader_and_forgets_what_a_backup_does_not_have() -> Result<()> {
    let lab = Lab::new("etcd")?;
    let underlay = Underlay::new(Families::Dual, Layout::Flat)?;
    let mut etcd = Etcd::start(&lab, &underlay, &EtcdOptions { members: 3, ..EtcdOptions::default() })?;
    etcd.put("/x/a", "1")?;
    let first = etcd.leader()?;
    etcd.kill(first)?;
    assert_ne!(etcd.leader()?, first);
    etcd.put("/x/a", "2")?;
    etcd.start_again()?;
    etcd.back_up("backup")?;
    etcd.put("/x/a", "--3")?;
    etcd.put("/x/b", "{}")?;
    assert_eq!(
        (etcd.value("/x/a")?, etcd.keys("/x/")?),
        ("--3".to_owned(), vec!["/x/a".to_owned(), "/x/b".to_owned()])
    );
    etcd.restore("backup")?;
    assert_eq!((etcd.value("/x/a")?, etcd.keys("/x/")?), ("2".to_owned(), vec!["/x/a".to_owned()]));
    etcd.wipe()?;
    assert_eq!(etcd.keys("/")?, [""; 0]);
    Ok(())
}

#[test]
fn a_link_that_breaks_offload_loses_what_relies_on_it() -> Result<()> {
    let lab = ByHand::new("offload", Layout::Flat)?;
    let mut flows = lab.flows()?;
    flows.all_flow(SOON)?;
    let _broken = lab.uplinks[0].break_checksum_offload()?;
    // Nothing of a pod gets through whose checksum is the link's affair.
    let passes = flows.0.iter().any(|flow| flow.flows(50, Duration::from_millis(300)));
    assert!(!passes, "the offload is not broken");
    // It gets through once the nodes compute it themselves.
    for node in &lab.nodes {
        node.run("ethtool", &["-K", "vx", "tx-checksum-ip-generic", "off"])?
            .success("switch the offload off")?;
    }
    flows.all_flow(SOON)?;
    flows.laps();
    flows.all_flow(SOON)?;
    flows.assert_none_lost()
}
