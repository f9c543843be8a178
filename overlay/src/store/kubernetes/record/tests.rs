use serde_json::from_value;

use super::*;
use crate::store::kubernetes::object::{self, Annotations};

fn kubernetes(flannel_peers: bool) -> Kubernetes {
    let shared = serde_json::from_str(
        r#"{"name":"c","ranges":[{"range":"10.244.0.0/16","subnetPrefix":24},
            {"range":"fd00:10:244::/48","subnetPrefix":64}]}"#,
    );
    Kubernetes { kubeconfig: None, flannel_peers, shared: shared.unwrap() }
}

fn node(annotations: Value) -> Node {
    from_value(json!({
        "metadata": {
            "name": "a", "uid": "u-1", "creationTimestamp": "2026-11-21T01:22:46Z", "annotations": annotations,
        },
        "spec": { "podCIDR": "fd00:10:244:3::/64", "podCIDRs": ["fd00:10:244:3::/64", "10.244.3.0/24"] },
        "status": { "addresses": [
            { "type": "Hostname", "address": "a" },
            { "type": "ExternalIP", "address": "203.0.113.1" },
            { "type": "InternalIP", "address": "fe80::1" },
            { "type": "InternalIP", "address": "172.30.0.3" },
            { "type": "InternalIP", "address": "172.30.0.4" },
            { "type": "InternalIP", "address": "fd99::3" },
        ] },
    }))
    .unwrap()
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

fn announcement() -> Announcement {
    let encapsulation = Encapsulation::default();
    let mac = "02:00:00:00:00:01".parse().unwrap();
    Announcement {
        addresses: addresses(&["172.30.0.3", "fd99::3"]),
        mtu: Some(1500),
        receives: vec![Vtep { encapsulation, mac, mac6: Some("02:00:00:00:00:06".parse().unwrap()) }],
        sends: Some(encapsulation),
    }
}

/// As the API server would make it.
fn apply(node: &Node, changes: &BTreeMap<&'static str, Option<String>>) -> Node {
    let mut node = node.clone();
    let patch = patch(&node, changes);
    assert_eq!(patch["metadata"]["uid"], "u-1");
    let says = &mut node.metadata.annotations;
    let Annotations {
        node: own,
        backend_type,
        backend_data,
        backend_v6_data,
        public_ip,
        public_ipv6,
        kube_subnet_manager,
        ..
    } = says;
    for (key, text) in patch["metadata"]["annotations"].as_object().unwrap() {
        let place = match key.as_str() {
            NODE => &mut *own,
            flannel::BACKEND_TYPE => &mut *backend_type,
            flannel::BACKEND_DATA => &mut *backend_data,
            flannel::BACKEND_V6_DATA => &mut *backend_v6_data,
            flannel::PUBLIC_IP => &mut *public_ip,
            flannel::PUBLIC_IPV6 => &mut *public_ipv6,
            flannel::KUBE_SUBNET_MANAGER => &mut *kube_subnet_manager,
            other => panic!("{other} is not ours to write"),
        };
        *place = text.as_str().map(str::to_owned);
    }
    node
}

#[test]
fn what_a_node_writes_others_read() {
    for flannel_peers in [false, true] {
        let kubernetes = kubernetes(flannel_peers);
        let before = node(json!({}));
        assert_eq!(read(&before, &kubernetes), Ok(None));
        let changes = changes(&before, &announcement(), "1f", &kubernetes);
        let after = apply(&before, &changes);
        assert_eq!(super::changes(&after, &announcement(), "1f", &kubernetes), BTreeMap::new());
        let record = read(&after, &kubernetes).unwrap().unwrap();
        assert_eq!(
            record,
            NodeRecord {
                name: "a".into(),
                instance: "1f".into(),
                generation: 1_795_224_166,
                claimed: 1_795_224_166,
                addresses: announcement().addresses,
                subnets: vec!["10.244.3.0/24".parse().unwrap(), "fd00:10:244:3::/64".parse().unwrap()],
                mtu: Some(1500),
                receives: announcement().receives,
                sends: announcement().sends,
                same_family: false,
            }
        );
    }
}

#[test]
fn the_text_is_the_format() {
    let changes = changes(&node(json!({})), &announcement(), "1f", &kubernetes(true));
    let lines: Vec<String> =
        changes.iter().map(|(key, text)| format!("{key}={}", text.as_deref().unwrap())).collect();
    assert_eq!(
        lines,
        [
            r#"flannel.alpha.coreos.com/backend-data={"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#,
            r#"flannel.alpha.coreos.com/backend-type=vxlan"#,
            r#"flannel.alpha.coreos.com/backend-v6-data={"VNI":1,"VtepMAC":"02:00:00:00:00:06"}"#,
            r#"flannel.alpha.coreos.com/kube-subnet-manager=true"#,
            r#"flannel.alpha.coreos.com/public-ip=172.30.0.3"#,
            r#"flannel.alpha.coreos.com/public-ipv6=fd99::3"#,
            concat!(
                r#"podwire.dev/node={"version":1,"instance":"1f","addresses":["172.30.0.3","fd99::3"],"mtu":1500,"#,
                r#""receives":[{"vni":1,"port":8472,"mac":"02:00:00:00:00:01","mac6":"02:00:00:00:00:06"}],"#,
                r#""sends":{"vni":1,"port":8472}}"#
            ),
        ]
    );
}

#[test]
fn nothing_is_written_before_there_is_something_to_say() {
    let kubernetes = kubernetes(true);
    let without_devices = Announcement { receives: Vec::new(), ..announcement() };
    for says in [Announcement::default(), without_devices.clone()] {
        assert_eq!(changes(&node(json!({})), &says, "1f", &kubernetes), BTreeMap::new());
    }
    // Devices that are gone for a moment are no reason to take back what was said.
    let after = apply(&node(json!({})), &changes(&node(json!({})), &announcement(), "1f", &kubernetes));
    assert_eq!(changes(&after, &without_devices, "1f", &kubernetes), BTreeMap::new());
    let mut without_tunnel = kubernetes;
    without_tunnel.shared.direct_routing = DirectRouting::Always;
    assert_eq!(changes(&node(json!({})), &without_devices, "1f", &without_tunnel).len(), 1);
}

#[test]
fn flannel_is_told_nothing_more_when_it_is_no_peer_any_more() {
    let with = apply(&node(json!({})), &changes(&node(json!({})), &announcement(), "1f", &kubernetes(true)));
    let withdrawn = changes(&with, &announcement(), "1f", &kubernetes(false));
    assert_eq!(withdrawn.len(), 6);
    assert!(withdrawn.values().all(Option::is_none));
    let without = apply(&with, &withdrawn);
    assert_eq!(changes(&without, &announcement(), "1f", &kubernetes(false)), BTreeMap::new());

    // What flannel itself has written there, with a MAC address that was never this node's, stays.
    let mut of_flannel = with;
    of_flannel.metadata.annotations.backend_data = Some(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#.into());
    assert_eq!(changes(&of_flannel, &announcement(), "1f", &kubernetes(false)), BTreeMap::new());
}

#[test]
fn flannel_is_told_of_families_that_have_pods() {
    let mut v4 = node(
        json!({ "flannel.alpha.coreos.com/backend-v6-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:05\"}" }),
    );
    v4.spec.pod_cidrs = vec!["10.244.3.0/24".into()];
    let changes = changes(&v4, &announcement(), "1f", &kubernetes(true));
    assert_eq!(changes.get(flannel::BACKEND_V6_DATA), Some(&None), "what stands there is of an earlier life");
    assert!(changes.contains_key(flannel::BACKEND_DATA) && !changes.contains_key(flannel::PUBLIC_IPV6));

    // Who reaches the node by another address is told that one.
    let nat = node(
        json!({ "podwire.dev/addresses": "198.51.100.1", "flannel.alpha.coreos.com/public-ip-overwrite": "198.51.100.2" }),
    );
    let changes = super::changes(&nat, &announcement(), "1f", &kubernetes(true));
    assert_eq!(changes.get(flannel::PUBLIC_IP), Some(&Some("198.51.100.1".into())));
    assert_eq!(changes.get(flannel::PUBLIC_IPV6), None);
}

#[test]
fn flannel_s_real_annotations_are_read() {
    let patched = include_bytes!("../../../../../netns-tests/tests/kubernetes-1.36/patch-annotations.json");
    let node = object::node(patched).unwrap();
    assert_eq!(read(&node, &kubernetes(false)), Ok(None));
    let record = read(&node, &kubernetes(true)).unwrap().unwrap();
    assert_eq!(record.name, "node-3");
    assert_eq!(record.addresses, addresses(&["172.30.0.3"]));
    let vtep = Vtep {
        encapsulation: Encapsulation::default(),
        mac: "02:00:00:00:00:0c".parse().unwrap(),
        mac6: None,
    };
    assert_eq!((record.receives, record.sends), (vec![vtep], Some(Encapsulation::default())));
    assert!(record.same_family);
}

#[test]
fn flannel_s_nodes_of_both_families_and_of_the_newer_one() {
    let annotations = |v4: &str, v6: &str| {
        json!({
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-data": v4,
            "flannel.alpha.coreos.com/backend-v6-data": v6,
            "flannel.alpha.coreos.com/public-ip": "172.30.0.3",
            "flannel.alpha.coreos.com/public-ipv6": "fd99::3",
        })
    };
    let (one, six) =
        (r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#, r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:06"}"#);
    for (v4, v6, mac, mac6, at) in [
        (one, six, "02:00:00:00:00:01", Some("02:00:00:00:00:06"), vec!["172.30.0.3", "fd99::3"]),
        (one, one, "02:00:00:00:00:01", None, vec!["172.30.0.3", "fd99::3"]),
        (one, "null", "02:00:00:00:00:01", None, vec!["172.30.0.3"]),
        ("null", six, "02:00:00:00:00:06", None, vec!["fd99::3"]),
    ] {
        let record = read(&node(annotations(v4, v6)), &kubernetes(true)).unwrap().unwrap();
        let [vtep] = record.receives.as_slice() else { panic!("one device") };
        assert_eq!((vtep.mac, vtep.mac6), (mac.parse().unwrap(), mac6.map(|mac| mac.parse().unwrap())));
        assert_eq!(record.addresses, addresses(&at));
    }
    assert_eq!(read(&node(annotations("null", "")), &kubernetes(true)), Ok(None));
    for (v4, v6, why) in [
        (one, r#"{"VNI":2,"VtepMAC":"02:00:00:00:00:06"}"#, "two VNIs"),
        ("{}", "null", "cannot be read"),
        ("[", "null", "cannot be read"),
        (r#"{"VNI":-1,"VtepMAC":"x"}"#, "null", "cannot be read"),
    ] {
        let error = read(&node(annotations(v4, v6)), &kubernetes(true)).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let mut nowhere = annotations(one, "null");
    nowhere["flannel.alpha.coreos.com/public-ip"] = json!("fd99::3");
    assert!(read(&node(nowhere), &kubernetes(true)).unwrap_err().contains("is no address"));
    let mut host_gw = annotations(one, "null");
    host_gw["flannel.alpha.coreos.com/backend-type"] = json!("host-gw");
    assert_eq!(read(&node(host_gw), &kubernetes(true)), Ok(None));
}

#[test]
fn an_administrator_says_by_which_addresses_a_node_is_reached() {
    let overwrite = "flannel.alpha.coreos.com/public-ip-overwrite";
    for (given, flannel_peers, own, peers) in [
        (json!({}), true, vec!["172.30.0.3", "fd99::3"], vec!["172.30.0.3", "fd99::3"]),
        (
            json!({ ADDRESSES: " 198.51.100.1 ,2001:db8::1" }),
            false,
            vec!["198.51.100.1", "2001:db8::1"],
            vec!["198.51.100.1", "2001:db8::1"],
        ),
        (
            json!({ ADDRESSES: "198.51.100.1", overwrite: "198.51.100.2" }),
            true,
            vec!["198.51.100.1"],
            vec!["198.51.100.1"],
        ),
        (
            json!({ overwrite: "198.51.100.2" }),
            true,
            vec!["198.51.100.2", "fd99::3"],
            vec!["198.51.100.2", "fd99::3"],
        ),
        (
            json!({ overwrite: "198.51.100.2" }),
            false,
            vec!["172.30.0.3", "fd99::3"],
            vec!["172.30.0.3", "fd99::3"],
        ),
        (json!({ ADDRESSES: "" }), false, vec!["172.30.0.3", "fd99::3"], vec!["172.30.0.3", "fd99::3"]),
    ] {
        let kubernetes = kubernetes(flannel_peers);
        let node = node(given);
        let Part::Member { membership, notices } = super::own(&node, &kubernetes) else { panic!() };
        assert_eq!((membership.addresses, notices), (addresses(&own), Vec::new()));
        let node = apply(&node, &changes(&node, &announcement(), "1f", &kubernetes));
        assert_eq!(read(&node, &kubernetes).unwrap().unwrap().addresses, addresses(&peers));
    }
    for (given, why) in [
        ("x", "is no address"),
        ("10.0.0.1,10.0.0.2", "is a second address of its family"),
        ("127.0.0.1", "is no address that other nodes reach"),
    ] {
        let mut node = node(json!({ ADDRESSES: given }));
        let Part::Member { membership, notices } = own(&node, &kubernetes(false)) else { panic!() };
        assert_eq!(membership.addresses, addresses(&["172.30.0.3", "fd99::3"]));
        assert!(notices.iter().any(|notice| notice.contains(why)), "{notices:?}");
        node.metadata.annotations.node = Some(r#"{"version":1,"addresses":["10.0.0.1"]}"#.into());
        assert!(read(&node, &kubernetes(false)).unwrap_err().contains(why));
    }
}

#[test]
fn records_that_cannot_be_used_say_why() {
    let huge = format!(r#"{{"version":1,"addresses":[],"x":"{}"}}"#, "x".repeat(LARGEST));
    for (text, why) in [
        ("", "cannot be read"),
        ("{}", "version"),
        (r#"{"version":2,"all":"new"}"#, "is there a newer one?"),
        (r#"{"version":1,"addresses":["x"]}"#, "cannot be read"),
        (r#"{"version":1,"addresses":[],"receives":[{"vni":1}]}"#, "cannot be read"),
        (&huge, "more than 16384"),
    ] {
        let error = read(&node(json!({ NODE: text })), &kubernetes(false)).unwrap_err();
        assert!(error.contains(why) && error.starts_with("annotation podwire.dev/node"), "{error}");
    }
    let newer = r#"{"version":1,"addresses":["10.0.0.1"],"more":[{}]}"#;
    assert!(read(&node(json!({ NODE: newer })), &kubernetes(false)).unwrap().is_some());
    assert!(read(&node(json!({ NODE: "[".repeat(10_000) })), &kubernetes(false)).is_err());
}

#[test]
fn a_node_is_a_member_with_its_pod_cidrs() {
    let kubernetes = kubernetes(false);
    let with = |cidrs: &[&str]| {
        let mut node = node(json!({}));
        node.spec.pod_cidrs = cidrs.iter().map(|&cidr| cidr.into()).collect();
        node.spec.pod_cidr = cidrs.first().map(|&first| first.into()).unwrap_or_default();
        own(&node, &kubernetes)
    };
    let Part::Member { membership, notices } = with(&["fd00:10:244:3::/64", "10.244.3.0/24"]) else {
        panic!()
    };
    assert_eq!(membership.subnets, ["10.244.3.0/24".parse().unwrap(), "fd00:10:244:3::/64".parse().unwrap()]);
    assert_eq!((membership.generation, membership.claimed), (1_795_224_166, 1_795_224_166));
    assert_eq!(notices, [""; 0]);
    let Part::Member { membership, notices } = with(&["10.244.3.0/24"]) else { panic!() };
    assert_eq!(membership.subnets.len(), 1);
    assert!(notices.first().is_some_and(|notice| notice.contains("fd00:10:244::/48")), "{notices:?}");
    let Part::None(why) = with(&[]) else { panic!() };
    assert!(why.contains("no spec.podCIDR yet"), "{why}");
    for (cidr, why) in [
        ("10.250.3.0/24", "lies in none of this node's cluster.range"),
        ("10.244.3.0/25", "--node-cidr-mask-size"),
        ("10.244.3.1/24", "host bits"),
        ("10.244.3.0", "is no subnet"),
        ("x", "is no subnet"),
    ] {
        let Part::Unusable(told) = with(&[cidr]) else { panic!("{cidr}") };
        assert!(told.contains(why), "{told}");
    }
    let mut single = node(json!({}));
    single.spec.pod_cidrs.clear();
    let Part::Member { membership, .. } = own(&single, &kubernetes) else { panic!() };
    assert_eq!(membership.subnets, ["fd00:10:244:3::/64".parse().unwrap()]);
}
