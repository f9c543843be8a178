//! Somebody breaks what the agent made in the kernel, or what that stands on, while packets flow between pods of two
//! nodes in both families: they flow again, and the kernel's state is what it was.
//!
//! Each is done over IPv4 and over IPv6. How long repair took is printed; what is asserted is that an event caused it,
//! not the pass every 10 s.

use std::time::Duration;

use podwire_netns_tests::cluster::{AT_LAST, AT_ONCE, BRIDGE, Scene};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Result};

/// The same over each family.
fn broken(name: &str, script: &str) -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new(name, underlay)?;
        // Twice: what was repaired is watched like what was made.
        for _ in 0..2 {
            scene.break_and_repair(script, AT_ONCE)?;
        }
    }
    Ok(())
}

// -- the VXLAN device --

#[test]
fn vxlan_device_deleted() -> Result<()> {
    broken("device-deleted", "ip link del $device")
}

#[test]
fn vxlan_device_down() -> Result<()> {
    broken("device-down", "ip link set $device down")
}

#[test]
fn vxlan_device_mac_changed() -> Result<()> {
    broken("device-mac", "ip link set $device address 02:11:22:33:44:55")
}

#[test]
fn vxlan_device_mtu_changed() -> Result<()> {
    broken("device-mtu", "ip link set $device mtu 1300")
}

#[test]
fn vxlan_device_address_deleted() -> Result<()> {
    broken("device-address", "ip address flush dev $device scope global")
}

#[test]
fn vxlan_device_replaced_by_another() -> Result<()> {
    // As after a hand that meant well: same name, learning, another port.
    broken(
        "device-replaced",
        "ip link del $device; ip link add $device type vxlan id 77 dstport 4789 dev $parent && ip link set $device up || true",
    )
}

#[test]
fn vxlan_device_learns() -> Result<()> {
    broken("device-learns", "ip link set $device type vxlan learning")
}

#[test]
fn vxlan_device_renamed() -> Result<()> {
    broken("device-renamed", "ip link set $device down; ip link set $device name other0")
}

// -- entries, one kind at a time --

#[test]
fn routes_flushed() -> Result<()> {
    broken("routes", "ip -4 route flush proto 112; ip -6 route flush proto 112")
}

#[test]
fn routes_replaced() -> Result<()> {
    // Our prefix, somebody else's way, at the same metric.
    broken(
        "routes-replaced",
        "ip -4 route show proto 112 | while read -r prefix rest; do
           metric=$(echo \"$rest\" | sed -n 's/.*metric \\([0-9]*\\).*/\\1/p')
           ip route replace blackhole $prefix metric ${metric:-0} proto 112
         done",
    )
}

#[test]
fn neighbours_flushed() -> Result<()> {
    broken("neighbours", "ip neighbour flush dev $device nud all; ip -6 neighbour flush dev $device nud all")
}

#[test]
fn neighbours_changed() -> Result<()> {
    broken(
        "neighbours-changed",
        "ip neighbour show dev $device | while read -r at rest; do
           ip neighbour replace $at lladdr 02:66:66:66:66:66 dev $device nud permanent
         done",
    )
}

#[test]
fn fdb_flushed() -> Result<()> {
    broken(
        "fdb",
        "bridge fdb show dev $device | while read -r mac dst at rest; do
           bridge fdb del $mac dev $device dst $at self || true
         done",
    )
}

#[test]
fn fdb_changed() -> Result<()> {
    broken(
        "fdb-changed",
        "bridge fdb show dev $device | while read -r mac dst at rest; do
           case $at in *:*) nowhere=2001:db8::1;; *) nowhere=192.0.2.1;; esac
           bridge fdb replace $mac dev $device dst $nowhere self permanent
         done",
    )
}

#[test]
fn nft_flushed() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("nft", underlay)?;
        let listed = "nft list table inet podwire-node";
        let rules = |scene: &Scene| {
            // Counters and handles are no part of what it says.
            let text = scene.cluster.member(0).sh(listed)?.out();
            let without: Vec<_> = text
                .lines()
                .map(|line| line.split("counter").next().unwrap_or(line).trim().to_owned())
                .collect();
            Ok::<_, LabError>(without)
        };
        let before = rules(&scene)?;
        let peer = scene.cluster.underlay().addresses(1)[0].to_string();
        assert!(before.iter().any(|line| line.contains(&peer)), "{before:#?}");
        for script in [
            "nft flush ruleset",
            "nft delete table inet podwire-node",
            "nft flush table inet podwire-node",
            "nft flush set inet podwire-node peers4; nft flush set inet podwire-node peers6",
        ] {
            scene.break_and_repair(script, AT_ONCE)?;
            scene
                .cluster
                .member(0)
                .wait_for(AT_ONCE, listed, |text| text.contains(&peer))
                .map_err(|error| LabError::new(format!("after {script}: {error:?}")))?;
            let mut after = Vec::new();
            let same = podwire_netns_tests::wait_for(AT_ONCE, || {
                after = rules(&scene).unwrap_or_default();
                after == before
            });
            assert!(same, "after {script}: {after:#?} and not {before:#?}");
        }
    }
    Ok(())
}

#[test]
fn forwarding_switched_off() -> Result<()> {
    broken(
        "forwarding",
        "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
    )
}

#[test]
fn bridge_down_and_without_address() -> Result<()> {
    broken("bridge", &format!("ip address flush dev {BRIDGE} scope global; ip link set {BRIDGE} down"))
}

// -- the link below --

#[test]
fn parent_down_and_up() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("parent-down", underlay)?;
        scene.break_and_repair(
            "ip link set $parent down; sleep 0.3; ip link set $parent up",
            // The neighbours of the underlay itself have to be found again.
            AT_ONCE + Duration::from_secs(2),
        )?;
        // A cable that is pulled: the link stays up.
        let uplink = scene.cluster.member(0).uplink();
        uplink.unplug()?;
        assert!(!scene.flows.0[0].flows(50, Duration::from_millis(300)), "packets pass a pulled cable");
        uplink.plug()?;
        scene.comes_back("cable pulled", AT_ONCE + Duration::from_secs(2))?;
    }
    Ok(())
}

#[test]
fn parent_mtu_changed() -> Result<()> {
    for (underlay, overhead) in [(Families::Ipv4, 50), (Families::Ipv6, 70)] {
        let mut scene = Scene::new("parent-mtu", underlay)?;
        let device = scene.device;
        for mtu in [1400, 9000, 1500] {
            scene.cluster.member(0).uplink().set_mtu(mtu)?;
            let wanted = format!(" mtu {} ", mtu - overhead);
            let show = format!("ip -o link show dev {device}");
            scene.cluster.member(0).wait_for(AT_ONCE, &show, |text| text.contains(&wanted))?;
            // The full size gets through to a link that is the same or larger.
            if mtu < 1500 {
                let largest = mtu - overhead;
                for address in &scene.pods[1].addresses {
                    scene.pods[0].assert_size_passes(*address, largest)?;
                }
            }
        }
        scene.comes_back("parent's MTU changed", AT_ONCE)?;
    }
    Ok(())
}

#[test]
fn parent_address_changed() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("parent-address", underlay)?;
        let old = scene.cluster.underlay().addresses(0)[0];
        let new = scene.cluster.underlay().in_subnet(0, 99)[0];
        let uplink = scene.cluster.member(0).uplink();
        // The new one comes before the old one goes, as a careful administrator does it.
        uplink.add_address(new)?;
        uplink.remove_address(old)?;
        uplink.add_default_routes()?;
        // The peers file is the administrator's too.
        scene.cluster.peers.nodes[0].addresses = vec![new];
        scene.cluster.write_peers()?;
        let show = format!("ip -d -o link show dev {}; bridge fdb show dev {}", scene.device, scene.device);
        scene.cluster.member(0).wait_for(AT_LAST, &show, |text| text.contains(&format!("local {new}")))?;
        scene.cluster.member(1).wait_for(AT_LAST, &show, |text| text.contains(&format!("dst {new}")))?;
        scene.flows.all_flow(AT_LAST)?;
        println!("{}: the parent's address changed: {}", scene.device, scene.flows.worst());
        scene.cluster.assert_reach(&scene.pods[0], &scene.pods[1])?;
        scene.flows.all_flow(AT_LAST)?;
        scene.flows.assert_none_lost()?;
    }
    Ok(())
}

#[test]
fn parent_deleted_and_made_again() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("parent-deleted", underlay)?;
        let uplink = scene.cluster.member(0).uplink();
        scene.cluster.underlay().sh("ip link del p0")?;
        assert!(!scene.flows.0[0].flows(50, Duration::from_millis(300)), "packets pass without a link");
        uplink.attach_again()?;
        scene.comes_back("parent deleted", AT_LAST)?;
    }
    Ok(())
}
