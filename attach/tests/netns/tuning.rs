//! Tuning: set, seen by CHECK, set back.

use podwire_attach::drift::{Drift, drift};
use podwire_attach::tuning::{TuningError, tune};
use podwire_attach::{AttachError, Tuning, observe_attachment};
use podwire_kernel::link::LinkRef;
use podwire_kernel::{MacAddr, sysctl};

use crate::lab::{BRIDGE, links, on_a_node, pod, socket};

fn sysctls(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn settings_are_made_in_the_pod_and_checked() {
    on_a_node(|| {
        let mut host = socket();
        let mut pod = pod(2);
        pod.wanted.tuning = Tuning {
            sysctls: sysctls(&[
                ("net/ipv4/conf/eth0/arp_filter", "1"),
                ("net/core/somaxconn", "500"),
                ("net/ipv4/ping_group_range", "7 9"),
            ]),
            promiscuous: Some(true),
            all_multicast: Some(true),
            tx_queue_length: Some(123),
            ..Tuning::default()
        };
        pod.attach(&mut host).expect("attached");
        let eth0 = pod.inside.borrow_mut().link(LinkRef::Name("eth0")).expect("asked").expect("there");
        assert!(eth0.flags.promisc && eth0.flags.all_multicast && eth0.flags.up);
        assert_eq!(eth0.tx_queue_length, 123);
        let read = |name: &'static str| pod.netns.run(|| sysctl::read(name)).expect("enter").expect("read");
        assert_eq!(read("net/ipv4/conf/eth0/arp_filter"), "1");
        assert_eq!(read("net/core/somaxconn"), "500");
        assert_ne!(sysctl::read("net/core/somaxconn").expect("read"), "500", "the node's own");

        let differences = |host: &mut _| {
            let observed = observe_attachment(host, Some(&pod.netns), &pod.wanted).expect("observed");
            drift(&pod.wanted, &observed)
        };
        assert_eq!(differences(&mut host), []);
        pod.netns.run(|| sysctl::write("net/core/somaxconn", "400")).expect("enter").expect("written");
        let name = "net/core/somaxconn".to_owned();
        assert_eq!(differences(&mut host), [Drift::Sysctl(name, "500".into(), Some("400".into()))]);
    });
}

#[test]
fn what_is_refused_is_named_and_all_is_taken_back() {
    on_a_node(|| {
        let mut host = socket();
        let mut pod = pod(2);
        for (name, value, text) in [
            ("net/ipv4/no_such_thing", "1", "sysctl net/ipv4/no_such_thing does not exist in the container"),
            ("net/core/somaxconn", "many", "net/core/somaxconn: Invalid argument (EINVAL): value \"many\""),
        ] {
            pod.wanted.tuning = Tuning {
                sysctls: sysctls(&[("net/core/somaxconn", "77"), (name, value)]),
                ..Tuning::default()
            };
            let error = pod.attach(&mut host).expect_err("refused");
            assert!(matches!(error, AttachError::Tuning(_)), "{error:?}");
            assert!(error.to_string().contains(text), "{error}");
            assert!(links(&mut host).is_empty(), "{:?}", links(&mut host));
            let left = pod.netns.run(|| sysctl::read("net/core/somaxconn")).expect("enter").expect("read");
            assert_ne!(left, "77");
        }
    });
}

#[test]
fn what_tuning_returns_restores() {
    on_a_node(|| {
        let mut host = socket();
        let pod = pod(2);
        let attached = pod.attach(&mut host).expect("attached");
        let mut inside = pod.inside.borrow_mut();
        let tuning = Tuning {
            sysctls: sysctls(&[("net/ipv4/conf/eth0/arp_filter", "1")]),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
            mtu: Some(1400),
            promiscuous: Some(true),
            all_multicast: None,
            tx_queue_length: Some(5),
        };
        let mut look = || inside.link(LinkRef::Name("eth0")).expect("asked").expect("there");
        let plain = look();
        let before =
            tune(&pod.netns, &mut pod.netns.netlink().expect("socket"), "eth0", &tuning).expect("tuned");
        assert_eq!(
            (before.mac, before.mtu, before.promiscuous),
            (Some(attached.pod_mac), Some(1500), Some(false))
        );
        let tuned = look();
        assert_eq!((tuned.mac, tuned.mtu, tuned.tx_queue_length), (tuning.mac, 1400, 5));
        let after =
            tune(&pod.netns, &mut pod.netns.netlink().expect("socket"), "eth0", &before).expect("restored");
        assert_eq!(after, tuning);
        assert_eq!(look(), plain);

        let error =
            tune(&pod.netns, &mut pod.netns.netlink().expect("socket"), "eth7", &tuning).expect_err("none");
        assert!(matches!(error, TuningError::NoInterface(_)), "{error}");
        assert_eq!(links(&mut host), [BRIDGE, &pod.owner().link_name()]);
    });
}
