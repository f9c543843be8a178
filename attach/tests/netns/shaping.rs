//! Limits: made, seen by CHECK, felt by traffic, put back, and gone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use podwire_attach::drift::{Drift, drift};
use podwire_attach::removal::{self, Found};
use podwire_attach::shaping::{self, HostQueue};
use podwire_attach::{RateLimit, Shaping, Traffic, observe_attachment};
use podwire_kernel::link::{self, LinkRef};
use podwire_kernel::{Netlink, Netns, qdisc};

use crate::lab::{BRIDGE, Pod, eventually, links, on_a_node, pod, socket};

fn limited(number: u8, to_pod: Option<u64>, from_pod: Option<u64>) -> Pod {
    let limit = |rate| RateLimit { rate, burst: None };
    let shaping = Shaping { to_pod: to_pod.map(limit), from_pod: from_pod.map(limit) };
    pod(number).with_traffic(Traffic { shaping, ..Traffic::default() })
}

fn differences(host: &mut Netlink, pod: &Pod) -> Vec<Drift> {
    let observed = observe_attachment(host, Some(&pod.netns), &pod.wanted).expect("observed");
    drift(&pod.wanted, &observed)
}

/// Sends for a second and a half from one namespace to another; bits a second. Port 0 is another one each time.
fn rate(from: &Netns, to: &Netns, address: &str) -> f64 {
    const TIME: Duration = Duration::from_millis(1500);
    let listener = to.run(|| TcpListener::bind((address, 0)).expect("an address")).expect("enter");
    let port = listener.local_addr().expect("bound").port();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
        let begin = Instant::now();
        while begin.elapsed() < TIME {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => count += length,
            }
        }
        count as f64 * 8.0 / begin.elapsed().as_secs_f64()
    });
    let mut stream = from.run(|| TcpStream::connect((address, port)).expect("connected")).expect("enter");
    let data = vec![0; 1 << 16];
    let end = Instant::now() + TIME;
    while Instant::now() < end && stream.write_all(&data).is_ok() {}
    drop(stream);
    receiver.join().expect("received")
}

#[test]
fn both_directions_are_limited_and_other_pods_are_not() {
    on_a_node(|| {
        let mut host = socket();
        let shaped = limited(2, Some(20_000_000), Some(40_000_000));
        let other = pod(3);
        shaped.attach(&mut host).expect("attached");
        other.attach(&mut host).expect("attached");
        let node = Netns::current().expect("here");
        eventually("the bridge passes frames", || {
            let connect =
                || TcpStream::connect_timeout(&"10.1.0.2:9".parse().ok()?, Duration::from_millis(50)).err();
            let refused = node.run(connect).expect("enter")?;
            (refused.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
        });
        assert_eq!(differences(&mut host, &shaped), []);
        let (to, from) =
            (rate(&node, &shaped.netns, "10.1.0.2"), rate(&shaped.netns, &other.netns, "10.1.0.3"));
        assert!((17e6..22e6).contains(&to), "to the pod {to}");
        assert!((34e6..44e6).contains(&from), "from the pod {from}");
        let free = rate(&node, &other.netns, "10.1.0.3");
        assert!(free > 200e6, "another pod {free}");
    });
}

#[test]
fn a_missing_part_is_named_and_put_back() {
    on_a_node(|| {
        let mut host = socket();
        let shaped = limited(2, Some(1_000_000), Some(2_000_000_000));
        shaped.attach(&mut host).expect("attached");
        let owner = shaped.owner().clone();
        let [veth, ifb] = removal::links_of(owner.id());
        let end = host.link(LinkRef::Name(&veth)).expect("asked").expect("there");
        let queue = HostQueue { name: &veth, index: end.index, mtu: end.mtu };
        let limits = shaped.wanted.attachment.traffic.clone().expect("traffic").shaping;
        let drift = |direction| [Drift::Shaping(owner.link_name(), direction)];
        let ifb_index = host.link(LinkRef::Name(&ifb)).expect("asked").expect("there").index;

        let of_ifb = qdisc::remove_bucket(ifb_index, &ifb);
        let down =
            link::change(LinkRef::Name(&ifb), &link::LinkChange { up: Some(false), ..Default::default() });
        for (damage, direction) in [
            (vec![qdisc::remove_bucket(end.index, &veth)], "to the pod"),
            (vec![of_ifb], "from the pod"),
            (down, "from the pod"),
            (vec![qdisc::remove_redirect(end.index, &veth)], "from the pod"),
            (vec![qdisc::remove_clsact(end.index, &veth)], "from the pod"),
            (vec![link::delete(ifb_index, &ifb)], "from the pod"),
        ] {
            host.apply(&damage).expect("damaged");
            assert_eq!(differences(&mut host, &shaped), drift(direction), "{damage:?}");
            shaping::shape(&mut host, &owner, queue, &limits).expect("put back");
            assert_eq!(differences(&mut host, &shaped), [], "{damage:?}");
            // And once more, when nothing is missing.
            shaping::shape(&mut host, &owner, queue, &limits).expect("there already");
            assert_eq!(differences(&mut host, &shaped), []);
        }
        // Other limits, and then none.
        let faster = Shaping { to_pod: Some(RateLimit { rate: 5_000_000, burst: Some(1) }), from_pod: None };
        shaping::shape(&mut host, &owner, queue, &faster).expect("changed");
        assert_eq!(differences(&mut host, &shaped).len(), 2);
        shaping::shape(&mut host, &owner, queue, &Shaping::default()).expect("none");
        assert_eq!(host.root_qdisc(end.index).expect("asked").map(|root| root.handle), Some(0));
        assert_eq!(host.ingress_qdisc(end.index).expect("asked"), None);
        assert_eq!(links(&mut host), [BRIDGE, &veth]);
    });
}

#[test]
fn both_links_go_in_one_removal_and_a_stranger_stays() {
    on_a_node(|| {
        let mut host = socket();
        let pods: Vec<Pod> = (2..5).map(|number| limited(number, None, Some(10_000_000))).collect();
        for pod in &pods {
            pod.attach(&mut host).expect("attached");
        }
        let all = host.links().expect("listed");
        let found: Vec<_> = removal::shapers(&all).map(|(owner, _)| owner).collect();
        assert_eq!(found, pods.iter().map(|pod| pod.owner().id()).collect::<Vec<_>>());

        let first = pods[0].owner().id();
        removal::remove(&mut host, first).expect("removed");
        removal::remove(&mut host, first).expect("again");
        assert_eq!(links(&mut host).len(), 1 + 4);
        // What a killed DEL leaves: an ifb that is nobody's.
        let second = pods[1].owner().id();
        let veth = second.link_name();
        host.apply(&[link::delete_named(&veth)]).expect("removed");
        assert!(matches!(removal::find_shaper(&mut host, second).expect("asked"), Found::Ours(_)));
        let owners: Vec<_> = pods.iter().map(|pod| pod.owner().id()).collect();
        let removed = removal::remove_many(&mut host, &owners).expect("removed");
        assert!(removed.values().all(Result::is_ok), "{removed:?}");
        assert_eq!(links(&mut host), [BRIDGE]);
        assert_eq!(removal::find_shaper(&mut host, second).expect("asked"), Found::Missing);

        // Another program's link of such a name.
        let name = shaping::ifb_name(first);
        host.apply(&[link::create_ifb(&name)]).expect("made");
        let alias = link::LinkChange { alias: Some("somebody's".to_owned()), ..Default::default() };
        host.apply(&link::change(LinkRef::Name(&name), &alias)).expect("named");
        let removed = removal::remove_many(&mut host, &[first]).expect("looked");
        assert!(removed[&first].is_err());
        assert!(removal::remove(&mut host, first).is_err());
        let error = pods[0].attach(&mut host).expect_err("its name is taken");
        assert!(error.to_string().contains("is not podwire's"), "{error}");
        assert_eq!(links(&mut host), [name.as_str(), BRIDGE], "what was made was taken back");
        assert_eq!(pods[0].inside.borrow_mut().links().expect("listed").len(), 1);
    });
}
