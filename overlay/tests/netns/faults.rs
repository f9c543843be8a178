//! What others break is mended, by the events that tell of it.

use podwire_kernel::testing::in_new_netns;

use super::lab::{Agent, BRIDGE, DEVICE, SOON, World, sh, until_kernel_is, uplink};
use podwire_overlay::dataplane::Cause;

/// Breaks something on a settled node with 20 peers and sees it mended: in time, and told as a repair of that cause.
#[track_caller]
fn check(break_it: &'static str, cause: Cause) {
    in_new_netns(move || {
        let _uplink = uplink();
        let mut world = World::new(20);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        let expected = world.expected(1500);
        until_kernel_is(SOON, &expected);
        agent.settle();
        sh(break_it);
        let took = until_kernel_is(SOON, &expected);
        println!("{} ms: {break_it}", took.as_millis());
        let report = agent.report(|report| !report.repairs.is_empty());
        assert_eq!(report.repairs.first().map(|(cause, _)| *cause), Some(cause), "{:?}", report.causes);
        assert!(!report.causes.contains(&Cause::Time) && !report.causes.contains(&Cause::Overrun));
        agent.rest();
        let passes = agent.heard.len();
        agent.settle();
        // A link's events do not say who caused them, so a late one may be looked into; there is nothing to mend.
        let late = &agent.heard[passes..];
        assert!(late.iter().all(|pass| pass.operations.is_empty()), "it mends its own repair: {late:#?}");
    });
}

macro_rules! faults {
    ($($name:ident: $cause:ident, $script:expr;)*) => {
        $(#[test]
        fn $name() {
            check($script, Cause::$cause);
        })*
    };
}

faults! {
    device_deleted: Link, "ip link del podwire.1";
    both_devices_deleted: Link, "ip link del podwire.1; ip link del podwire6.1";
    device_taken_down: Link, "ip link set podwire.1 down";
    device_taken_down_and_up: Link, "ip link set podwire.1 down; ip link set podwire.1 up";
    device_mac_changed: Link, "ip link set podwire.1 address 02:00:00:00:00:99";
    device_mtu_changed: Link, "ip link set podwire.1 mtu 1300";
    device_alias_removed: Link, "ip link set podwire.1 alias ''";
    device_local_changed: Link, "ip link set podwire.1 type vxlan id 1 local 192.0.2.9";
    device_learning: Link, "ip link set podwire.1 type vxlan id 1 learning";
    address_removed: Address, "ip addr del 10.128.0.0/32 dev podwire.1";
    address6_removed: Address, "ip -6 addr del fd00:10:244::/128 dev podwire.1";
    all_addresses_removed: Address, "ip addr flush dev podwire.1";
    route_removed: Route, "ip route del 10.128.7.0/24";
    routes_flushed: Route, "ip route flush proto 112";
    routes6_flushed: Route, "ip -6 route flush proto 112";
    route_replaced: Route, "ip route replace 10.128.7.0/24 via 192.0.2.254 proto 112 metric 8";
    route_of_our_protocol_added: Route, "ip route add 10.129.0.0/24 via 192.0.2.254 proto 112 metric 9";
    neighbour_removed: Neighbour, "ip neigh del 10.128.7.0 dev podwire.1";
    neighbours_flushed: Neighbour, "ip neigh flush dev podwire.1 nud permanent";
    neighbours6_flushed: Neighbour, "ip -6 neigh flush dev podwire.1 nud permanent";
    neighbour_changed: Neighbour, "ip neigh replace 10.128.7.0 lladdr 02:00:00:00:00:99 dev podwire.1 nud permanent";
    fdb_flushed: Fdb, "bridge fdb flush dev podwire.1 self";
    fdb_entry_added: Fdb, "bridge fdb append 02:00:00:00:00:99 dev podwire.1 dst 192.0.2.66 self permanent";
    table_deleted: Filter, "nft delete table inet podwire-node";
    ruleset_flushed: Filter, "nft flush ruleset";
    chain_flushed: Filter, "nft flush chain inet podwire-node from-nodes";
    rule_inserted: Filter, "nft insert rule inet podwire-node from-nodes accept";
    senders_flushed: Filter, "nft flush set inet podwire-node peers4";
    sender_added: Filter, "nft add element inet podwire-node peers4 '{ 192.0.2.66 }'";
    bridge_deleted: Link, "ip link del podwire0";
    bridge_taken_down: Link, "ip link set podwire0 down";
    bridge_mtu_changed: Link, "ip link set podwire0 mtu 1300";
    bridge_address_removed: Address, "ip addr del 10.128.0.1/24 dev podwire0";
}

#[test]
fn fdb_entry_that_leads_elsewhere() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(20);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        let expected = world.expected(1500);
        until_kernel_is(SOON, &expected);
        agent.rest();
        let mac = podwire_overlay::cluster::topology::vtep_mac("lab", "n00007", 1);
        sh(&format!("bridge fdb replace {mac} dev {DEVICE} dst 192.0.2.66 self permanent"));
        until_kernel_is(SOON, &expected);
        sh(&format!("bridge fdb append {mac} dev {DEVICE} dst 192.0.2.66 self permanent"));
        until_kernel_is(SOON, &expected);
        sh(&format!("bridge fdb del {mac} dev {DEVICE} self"));
        until_kernel_is(SOON, &expected);
    });
}

#[test]
fn what_somebody_breaks_again_and_again_is_mended_again_and_again() {
    in_new_netns(|| {
        let _uplink = uplink();
        let mut world = World::new(50);
        let mut agent = Agent::start();
        agent.tell(&mut world);
        let expected = world.expected(1500);
        for round in 0..10 {
            match round % 3 {
                0 => sh("ip route flush proto 112; ip neigh flush dev podwire.1 nud permanent"),
                1 => sh("ip link set podwire.1 down"),
                _ => sh(&format!("ip link del podwire.1; nft flush ruleset; ip link del {BRIDGE}")),
            };
            until_kernel_is(SOON, &expected);
        }
        agent.stop();
    });
}
