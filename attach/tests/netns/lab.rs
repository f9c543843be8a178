//! A node to attach pods on: a network namespace of its own, and pods in others. All are gone with the test's threads and
//! files, also after a failure.

use std::cell::RefCell;

use ipnetwork::IpNetwork;
use podwire_attach::plan::{Bridge, Forwarding, Port, Wanted, bridge_mac, pod_mac};
use podwire_attach::{
    AttachError, Attached, Attachment, Owner, OwnerId, Places, PodAddress, Traffic, Tuning, attach,
    observe_node,
};
pub(crate) use podwire_kernel::testing::{eventually, in_new_netns as on_a_node, new_netns, socket};
use podwire_kernel::{Netlink, Netns};

pub(crate) const BRIDGE: &str = "podwire0";

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

/// A pod and what it is to have.
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) inside: RefCell<Netlink>,
    pub(crate) wanted: Wanted,
}

/// Pod number `number` with the addresses 10.1.0.`number` and fd00::`number`.
pub(crate) fn pod(number: u8) -> Pod {
    let netns = new_netns();
    let owner = Owner::new("net", format!("c{number}"), "eth0");
    let address = |address: String, gateway: &str| PodAddress {
        address: network(&address),
        gateway: Some(gateway.parse().expect("an address")),
    };
    let wanted = Wanted {
        mac: pod_mac(&owner),
        attachment: Attachment {
            link: Some(owner.link_name()),
            owner,
            addresses: vec![
                address(format!("10.1.0.{number}/24"), "10.1.0.1"),
                address(format!("fd00::{number}/64"), "fd00::1"),
            ],
            mac: None,
            bridge: Some(BRIDGE.to_owned()),
            netns: "/run/netns/test".to_owned(),
            netns_identity: None,
            pod: None,
            runtime: None,
            given: Vec::new(),
            traffic: None,
        },
        bridge: Bridge {
            name: BRIDGE.to_owned(),
            mac: bridge_mac("node", BRIDGE),
            mtu: None,
            gateways: vec![network("10.1.0.1/24"), network("fd00::1/64")],
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
    };
    let inside = RefCell::new(netns.netlink().expect("a socket"));
    Pod { netns, inside, wanted }
}

pub(crate) fn everybody_lives(_: OwnerId) -> bool {
    true
}

impl Pod {
    pub(crate) fn owner(&self) -> &Owner {
        &self.wanted.attachment.owner
    }

    pub(crate) fn with_traffic(mut self, traffic: Traffic) -> Self {
        let host_end = self.owner().link_name();
        self.wanted.attachment.traffic = Some(Traffic { device: BRIDGE.to_owned(), host_end, ..traffic });
        self
    }

    pub(crate) fn attach(&self, host: &mut Netlink) -> Result<Attached, AttachError> {
        let observed = observe_node(host, BRIDGE).expect("observed");
        let mut inside = self.inside.borrow_mut();
        let mut places = Places { host, pod: &self.netns, inside: &mut inside, is_alive: &everybody_lives };
        attach(&mut places, &self.wanted, observed, &|| true)
    }
}

/// The names of the links here, sorted, without the loopback link.
pub(crate) fn links(host: &mut Netlink) -> Vec<String> {
    let mut names: Vec<String> = host.links().expect("listed").into_iter().map(|link| link.name).collect();
    names.retain(|name| name != "lo");
    names.sort();
    names
}
