use super::*;
use crate::{PortMapping, Protocol, RateLimit, Shaping};
use proptest::prelude::*;

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn wanted(gateways: &[&str]) -> Wanted {
    let owner = Owner::new("net", "c1", "eth0");
    Wanted {
        mac: pod_mac(&owner),
        attachment: Attachment {
            link: Some(owner.link_name()),
            owner,
            addresses: Vec::new(),
            mac: None,
            bridge: Some("cni0".into()),
            netns: "/run/netns/x".into(),
            netns_identity: None,
            pod: None,
            runtime: None,
            given: Vec::new(),
            traffic: None,
        },
        bridge: Bridge {
            name: "cni0".into(),
            mac: bridge_mac("node", "cni0"),
            mtu: None,
            gateways: gateways.iter().map(|g| network(g)).collect(),
            force_address: false,
            promiscuous: false,
        },
        port: Port::default(),
        mtu: None,
        routes: Vec::new(),
        dad: false,
        pod_link_down: false,
        announce: false,
        forwarding: Forwarding { v4: true, v6: true },
        tuning: Tuning::default(),
        vlan: None,
    }
}

/// The same, of a pod that asks for everything.
fn with_additions(gateways: &[&str]) -> Wanted {
    let mut wanted = wanted(gateways);
    wanted.attachment.traffic = Some(Traffic {
        ports: vec![PortMapping {
            protocol: Protocol::Udp,
            host_ip: None,
            host_port: 53,
            container_port: 53,
        }],
        shaping: Shaping { to_pod: Some(RateLimit { rate: 8, burst: None }), from_pod: None },
        ..Traffic::default()
    });
    wanted.tuning.promiscuous = Some(true);
    wanted.vlan = Some(Vlan { membership: VlanMembership::Access(7), preserve_default: true });
    wanted
}

fn bridge_with(addresses: &[(&str, bool)]) -> Observed {
    let addresses =
        addresses.iter().map(|&(address, ours)| BridgeAddress { address: network(address), ours }).collect();
    let bridge = ObservedBridge {
        index: 7,
        kind: Some("bridge".into()),
        up: true,
        promiscuous: false,
        mac: None,
        addresses,
        vlan_filtering: Some(false),
    };
    Observed { bridge: Some(bridge), forwarding: Forwarding { v4: true, v6: true } }
}

fn printed(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_pod_of_a_node_makes_the_bridge() {
    let steps = plan(&wanted(&["10.1.0.1/24", "fd00::1/64"]), &Observed::default()).expect("no conflict");
    let mac = bridge_mac("node", "cni0");
    assert_eq!(
        printed(&steps),
        [
            format!("ip link add cni0 address {mac} type bridge"),
            "ip addr add 10.1.0.1/24 dev cni0".into(),
            "ip addr add fd00::1/64 dev cni0".into(),
            "ip link set cni0 up".into(),
            "sysctl net.ipv4.ip_forward=1".into(),
            "sysctl net.ipv6.conf.all.forwarding=1".into(),
            "ip link add pw93b0ab8f7e49b type veth peer in the pod".into(),
            "ip addr and route add in the pod".into(),
        ]
        .map(|line| line.replace("pw93b0ab8f7e49b", &wanted(&[]).attachment.owner.link_name()))
    );
}

#[test]
fn the_second_pod_makes_its_veth_alone() {
    let steps = plan(&wanted(&["10.1.0.1/24"]), &bridge_with(&[("10.1.0.1/24", true)])).expect("no conflict");
    assert!(matches!(steps.as_slice(), [Step::CreateVeth { .. }, Step::ConfigurePod]), "{steps:?}");
}

#[test]
fn foreign_addresses_conflict_as_in_the_reference_plugin() {
    for (present, gateway, conflict) in [
        (("10.2.0.1/24", false), "10.1.0.1/24", true),
        (("10.1.0.1/16", false), "10.1.0.1/24", true),
        // Set by podwire: an earlier range's gateway, which running pods still use.
        (("10.2.0.1/24", true), "10.1.0.1/24", false),
        (("fd00:1::1/64", false), "fd00:2::1/64", false),
        (("fd00:1::1/32", false), "fd00:1:0:7::1/64", true),
        (("fe80::1/64", false), "fd00:2::1/64", false),
        (("fd00:1::1/64", false), "10.1.0.1/24", false),
    ] {
        let result = plan(&wanted(&[gateway]), &bridge_with(&[present]));
        assert_eq!(matches!(result, Err(Conflict::Address { .. })), conflict, "{present:?} {gateway}");
    }
}

#[test]
fn force_address_takes_the_other_address_away() {
    let mut wanted = wanted(&["10.1.0.1/24"]);
    wanted.bridge.force_address = true;
    let steps = plan(&wanted, &bridge_with(&[("10.2.0.1/24", false)])).expect("forced");
    assert_eq!(
        printed(&steps)[..2],
        ["ip addr del 10.2.0.1/24 dev cni0".to_owned(), "ip addr add 10.1.0.1/24 dev cni0".to_owned()]
    );
}

#[test]
fn two_gateways_of_one_family_are_not_in_each_others_way() {
    let both = wanted(&["10.1.0.1/24", "10.2.0.1/24"]);
    assert!(plan(&both, &bridge_with(&[("10.1.0.1/24", false)])).is_ok());
}

#[test]
fn a_link_that_is_no_bridge_is_refused() {
    let mut observed = bridge_with(&[]);
    if let Some(bridge) = &mut observed.bridge {
        bridge.kind = Some("veth".into());
    }
    let error = plan(&wanted(&[]), &observed).expect_err("not a bridge");
    assert_eq!(
        error.to_string(),
        "\"cni0\" already exists but is not a bridge (it is veth); remove it or set another \"bridge\""
    );
}

/// The node as far as steps change it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Model {
    bridge: Option<(bool, bool, Vec<IpNetwork>)>,
    forwarding: [bool; 2],
    veth: bool,
    /// VLAN filtering, tuning, limits, rules.
    additions: [bool; 4],
}

impl Model {
    fn of(observed: &Observed) -> Self {
        let bridge = observed.bridge.as_ref().map(|bridge| {
            let mut addresses: Vec<_> = bridge.addresses.iter().map(|a| a.address).collect();
            addresses.sort_by_key(ToString::to_string);
            (bridge.up, bridge.promiscuous, addresses)
        });
        Self {
            bridge,
            forwarding: [observed.forwarding.v4, observed.forwarding.v6],
            veth: false,
            additions: [false; 4],
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::CreateBridge(_) => {
                assert!(self.bridge.is_none());
                self.bridge = Some((false, false, Vec::new()));
            }
            Step::RemoveBridge(_) => self.bridge = None,
            Step::SetBridgeUp(_, up) => self.bridge.as_mut().expect("a bridge").0 = *up,
            Step::SetBridgePromiscuous(_, on) => self.bridge.as_mut().expect("a bridge").1 = *on,
            Step::AddBridgeAddress(_, address) => {
                let addresses = &mut self.bridge.as_mut().expect("a bridge").2;
                assert!(!addresses.contains(address), "EEXIST {address}");
                addresses.push(*address);
                addresses.sort_by_key(ToString::to_string);
            }
            Step::RemoveBridgeAddress(_, address) => {
                let addresses = &mut self.bridge.as_mut().expect("a bridge").2;
                assert!(addresses.contains(address), "EADDRNOTAVAIL {address}");
                addresses.retain(|a| a != address);
            }
            Step::SetForwarding(Family::V4, on) => self.forwarding[0] = *on,
            Step::SetForwarding(Family::V6, on) => self.forwarding[1] = *on,
            Step::CreateVeth { .. } => self.veth = true,
            Step::RemoveVeth(_) => self.veth = false,
            Step::ConfigurePod | Step::JoinVlans(_) | Step::SetPort { .. } => assert!(self.veth),
            Step::FilterVlans(_, on) => self.additions[0] = *on,
            Step::Tune => self.additions[1] = true,
            Step::Untune => self.additions[1] = false,
            Step::Shape => self.additions[2] = true,
            Step::Unshape => self.additions[2] = false,
            Step::InstallRules => self.additions[3] = true,
            Step::RemoveRules => self.additions[3] = false,
            Step::FlushConntrack => {
                assert!(self.additions[3], "before the rules, packets would make them anew")
            }
        }
    }
}

fn addresses() -> impl Strategy<Value = Vec<IpNetwork>> {
    let some = [
        "10.1.0.1/24",
        "10.1.0.1/16",
        "10.2.0.1/24",
        "fd00:1::1/64",
        "fd00:1::1/48",
        "fd00:2::1/64",
        "fe80::1/64",
    ];
    prop::sample::subsequence(some.to_vec(), 0..=some.len())
        .prop_map(|list| list.into_iter().map(network).collect())
}

proptest! {
    /// A failed ADD leaves the node as it found it, wherever it failed.
    #[test]
    fn plan_and_undo_are_inverses(gateways in addresses(), present in prop::option::of((addresses(), any::<u8>())),
                                  flags in any::<[bool; 6]>(), more in any::<bool>(), fail_at in 0usize..16) {
        let mut wanted = if more { with_additions(&[]) } else { wanted(&[]) };
        wanted.bridge.gateways = gateways;
        [wanted.bridge.force_address, wanted.bridge.promiscuous, wanted.forwarding.v4, wanted.forwarding.v6, ..] = flags;
        let bridge = present.map(|(addresses, ours)| ObservedBridge {
            index: 7, kind: Some("bridge".into()), up: flags[4], promiscuous: flags[5], mac: None,
            vlan_filtering: None,
            addresses: addresses.into_iter().enumerate()
                .map(|(i, address)| BridgeAddress { address, ours: ours >> (i % 8) & 1 == 1 }).collect(),
        });
        let observed = Observed { bridge, forwarding: Forwarding { v4: flags[4], v6: flags[5] } };
        let before = Model::of(&observed);
        if let Ok(steps) = plan(&wanted, &observed) {
            let mut node = before.clone();
            let done = steps.len().min(fail_at);
            steps.iter().take(done).for_each(|step| node.run(step));
            steps.iter().take(done).rev().filter_map(Step::undo).for_each(|step| node.run(&step));
            prop_assert_eq!(node, before);
        }
    }

    /// A second ADD on the same bridge finds nothing left to do there.
    #[test]
    fn a_plan_carried_out_leads_to_a_plan_without_bridge_steps(gateways in addresses(), force in any::<bool>()) {
        let mut wanted = wanted(&[]);
        wanted.bridge.gateways = gateways.clone();
        wanted.bridge.force_address = force;
        let steps = plan(&wanted, &Observed::default()).expect("an empty node has no conflict");
        let mut node = Model::default();
        steps.iter().for_each(|step| node.run(step));
        let (up, promiscuous, addresses) = node.bridge.expect("made");
        let observed = Observed {
            bridge: Some(ObservedBridge {
                index: 7, kind: Some("bridge".into()), up, promiscuous, mac: None, vlan_filtering: None,
                addresses: addresses.into_iter().map(|address| BridgeAddress { address, ours: false }).collect(),
            }),
            forwarding: Forwarding { v4: true, v6: true },
        };
        let again = plan(&wanted, &observed).expect("what we made is no conflict");
        prop_assert_eq!(again.len(), 2, "{:?}", again);
    }
}

#[test]
fn our_ipv6_gateway_of_another_prefix_length_is_replaced() {
    let steps = plan(&wanted(&["fd00::1/64"]), &bridge_with(&[("fd00::1/80", true)])).expect("no conflict");
    let expected = ["ip addr del fd00::1/80 dev cni0", "ip addr add fd00::1/64 dev cni0"];
    assert_eq!(printed(&steps)[..2], expected);
    // IPv4 takes both, and pods of the earlier range still use the first.
    let steps = plan(&wanted(&["10.1.0.1/16"]), &bridge_with(&[("10.1.0.1/24", true)])).expect("no conflict");
    assert_eq!(printed(&steps)[0], "ip addr add 10.1.0.1/16 dev cni0");
}

#[test]
fn what_a_pod_asks_for_beyond_its_interface_comes_last_and_is_taken_back() {
    let plain = plan(&wanted(&["10.1.0.1/24"]), &bridge_with(&[("10.1.0.1/24", true)])).expect("no conflict");
    assert_eq!(plain.len(), 2, "nothing is done that nobody asked for: {plain:?}");

    let wanted = with_additions(&["10.1.0.1/24"]);
    let steps = plan(&wanted, &bridge_with(&[("10.1.0.1/24", true)])).expect("no conflict");
    let name = wanted.attachment.owner.link_name();
    assert_eq!(steps[0], Step::FilterVlans("cni0".into(), true));
    assert_eq!(steps[2], Step::JoinVlans(name.clone()));
    let after = [Step::ConfigurePod, Step::Tune, Step::Shape, Step::InstallRules, Step::FlushConntrack];
    assert_eq!(steps[3..], after);
    let undo: Vec<Step> = steps.iter().rev().filter_map(Step::undo).collect();
    let back = [
        Step::RemoveRules,
        Step::Unshape,
        Step::Untune,
        Step::RemoveVeth(name),
        Step::FilterVlans("cni0".into(), false),
    ];
    assert_eq!(undo, back);
    let shared = undo.iter().filter(|step| step.is_shared()).count();
    assert_eq!(shared, 1, "only the bridge is others' too");
}
