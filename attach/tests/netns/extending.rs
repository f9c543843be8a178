//! Additions to interfaces that another plugin made, on a bridge and without one.

use podwire_attach::removal::{self, Found};
use podwire_attach::{
    AttachError, Attachment, Extension, Given, Places, PortMapping, Protocol, RateLimit, Role, Shaping,
    Traffic, Tuning, extend, extension_drift, observe_given, withdraw,
};
use podwire_kernel::Netlink;
use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::nft::Nft;
use podwire_kernel::qdisc::{self, TokenBucket};

use crate::lab::{BRIDGE, Pod, everybody_lives, on_a_node, pod, socket};

/// What another plugin leaves: a pod with an interface. `routed`: its other end is in no bridge.
fn foreign(host: &mut Netlink, routed: bool) -> (Pod, Given) {
    let pod = pod(2);
    pod.attach(host).expect("attached");
    let veth = pod.owner().link_name();
    let name = if routed { "veth1234" } else { "vethcni" };
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    let change = LinkChange {
        name: Some(name.to_owned()),
        alias: Some(String::new()),
        controller: routed.then_some(0),
        up: Some(true),
        ..LinkChange::default()
    };
    let index = host.link(LinkRef::Name(&veth)).expect("asked").expect("there").index;
    host.apply(&link::change(LinkRef::Index(index), &down)).expect("down");
    host.apply(&link::change(LinkRef::Index(index), &change)).expect("renamed");
    let given = observe_given(host, &mut pod.inside.borrow_mut(), "eth0").expect("asked").expect("a veth");
    assert_eq!((given.host_end.as_str(), given.host_index, given.host_mtu), (name, index, 1500));
    (pod, given)
}

fn attachment(pod: &Pod, given: &Given, traffic: Traffic) -> Attachment {
    let owner = pod.owner().with_role(Role::Chained);
    let traffic = Traffic { device: given.device.clone(), host_end: given.host_end.clone(), ..traffic };
    Attachment {
        owner,
        given: std::mem::take(&mut pod.wanted.attachment.addresses.clone()),
        addresses: Vec::new(),
        link: None,
        bridge: None,
        traffic: Some(traffic),
        ..pod.wanted.attachment.clone()
    }
}

fn limits() -> Shaping {
    let limit = Some(RateLimit { rate: 30_000_000, burst: None });
    Shaping { to_pod: limit, from_pod: limit }
}

fn port() -> PortMapping {
    PortMapping { protocol: Protocol::Udp, host_ip: None, host_port: 5300, container_port: 53 }
}

fn add(
    host: &mut Netlink,
    pod: &Pod,
    extension: &Extension<'_>,
) -> Result<podwire_attach::Extended, AttachError> {
    let mut inside = pod.inside.borrow_mut();
    let mut places = Places { host, pod: &pod.netns, inside: &mut inside, is_alive: &everybody_lives };
    extend(&mut places, extension)
}

#[test]
fn an_interface_in_a_bridge_gets_limits_ports_and_tuning_and_loses_them() {
    on_a_node(|| {
        let mut host = socket();
        let (pod, given) = foreign(&mut host, false);
        assert_eq!(given.device, BRIDGE);
        assert!(given.addresses.contains(&pod.wanted.attachment.addresses[0].address));
        let traffic = Traffic { shaping: limits(), ports: vec![port()], ..Traffic::default() };
        let attachment = attachment(&pod, &given, traffic);
        let tuning = Tuning { tx_queue_length: Some(9), ..Tuning::default() };
        let extension = Extension { attachment: &attachment, given: &given, tuning: &tuning };
        let extended = add(&mut host, &pod, &extension).expect("extended");
        assert_eq!(extended.before.tx_queue_length, Some(1000));

        let look = |host: &mut Netlink| {
            observe_given(host, &mut pod.inside.borrow_mut(), "eth0").expect("asked").expect("there")
        };
        let now = look(&mut host);
        assert!(now.port.is_some_and(|port| port.hairpin && !port.isolated));
        let seen = Extension { given: &now, ..extension };
        assert_eq!(extension_drift(&mut host, &pod.netns, &seen).expect("checked"), []);
        assert_eq!(
            extension_drift(&mut host, &pod.netns, &extension).expect("checked").len(),
            1,
            "hairpin was off"
        );
        let mut nft = Nft::open().expect("a socket");
        assert!(podwire_attach::rules::check(&mut nft, &attachment).expect("checked").is_empty());
        // The same again is fine.
        add(&mut host, &pod, &seen).expect("again");
        assert_eq!(extension_drift(&mut host, &pod.netns, &seen).expect("checked"), []);

        let owner = attachment.owner.id();
        podwire_attach::rules::remove(&mut nft, owner, None).expect("removed");
        withdraw(&mut host, owner, Some(&attachment)).expect("withdrawn");
        withdraw(&mut host, owner, Some(&attachment)).expect("again");
        withdraw(&mut host, owner, None).expect("by the owner alone");
        assert_eq!(removal::find_shaper(&mut host, owner).expect("asked"), Found::Missing);
        assert_eq!(host.root_qdisc(given.host_index).expect("asked").map(|root| root.handle), Some(0));
        assert_eq!(host.ingress_qdisc(given.host_index).expect("asked"), None);
        assert!(host.link(LinkRef::Name(&given.host_end)).expect("asked").is_some());
    });
}

#[test]
fn a_foreign_queue_is_refused_and_what_was_done_is_taken_back() {
    on_a_node(|| {
        let mut host = socket();
        let (pod, given) = foreign(&mut host, true);
        assert_eq!((given.device.as_str(), given.port), ("veth1234", None));
        let theirs = TokenBucket { rate: 1_000_000, burst: 10_000, limit: 10_000 };
        host.apply(&[qdisc::create_bucket(given.host_index, &given.host_end, &theirs)]).expect("made");
        // Another program's handle.
        let attachment = attachment(&pod, &given, Traffic { shaping: limits(), ..Traffic::default() });
        let tuning = Tuning { promiscuous: Some(true), ..Tuning::default() };
        let extension = Extension { attachment: &attachment, given: &given, tuning: &tuning };
        // Ours by its handle: amended.
        add(&mut host, &pod, &extension).expect("extended");
        withdraw(&mut host, attachment.owner.id(), Some(&attachment)).expect("withdrawn");

        let tc = std::process::Command::new("tc")
            .args(["qdisc", "add", "dev", "veth1234", "root", "handle", "1:", "tbf"])
            .args(["rate", "1mbit", "burst", "10k", "limit", "10k"])
            .status();
        assert!(tc.expect("this test needs tc (iproute2)").success());
        let untuned = pod.inside.borrow_mut().link(LinkRef::Name("eth0")).expect("asked");
        let error = add(&mut host, &pod, &extension).expect_err("taken");
        assert!(matches!(error, AttachError::Shaping(_)), "{error:?}");
        assert!(error.to_string().contains("link veth1234 already has a queueing discipline"), "{error}");
        let owner = attachment.owner.id();
        assert_eq!(removal::find_shaper(&mut host, owner).expect("asked"), Found::Missing);
        assert_eq!(host.ingress_filters(given.host_index).expect("asked"), []);
        assert_eq!(host.root_qdisc(given.host_index).expect("asked").map(|root| root.handle), Some(0x1_0000));
        assert_eq!(pod.inside.borrow_mut().link(LinkRef::Name("eth0")).expect("asked"), untuned);
    });
}

#[test]
fn interfaces_without_another_end_on_the_node_are_none() {
    on_a_node(|| {
        let mut host = socket();
        let pod = pod(2);
        let mut inside = pod.inside.borrow_mut();
        assert_eq!(observe_given(&mut host, &mut inside, "eth0").expect("asked"), None);
        // A pair within the pod, with numbers that links of the node have too.
        let pair = link::create_veth(&link::VethSpec {
            name: "eth0",
            mtu: None,
            mac: None,
            controller: None,
            group: None,
            peer_name: "eth1",
            peer_netns: std::os::fd::AsFd::as_fd(&pod.netns),
            peer_mac: None,
        });
        inside.apply(&[pair]).expect("made");
        for _ in 0..2 {
            assert_eq!(observe_given(&mut host, &mut inside, "eth0").expect("asked"), None);
            let other = crate::lab::new_netns();
            let names = [("x0", "x1"), ("y0", "y1")];
            for (name, peer_name) in names {
                let _ = host.apply(&[link::create_veth(&link::VethSpec {
                    name,
                    mtu: None,
                    mac: None,
                    controller: None,
                    group: None,
                    peer_name,
                    peer_netns: std::os::fd::AsFd::as_fd(&other),
                    peer_mac: None,
                })]);
            }
        }
    });
}
