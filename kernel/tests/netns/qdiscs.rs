//! Token buckets, redirection, the links that it needs, and what is read back of them.

use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::qdisc::{self, TokenBucket};
use podwire_kernel::{Netlink, vlan};

use crate::lab::{bridge, in_new_netns, pair, socket, up};

const NAME: &str = "pw0123456789abc";
const IFB: &str = "pi0123456789abc";

fn ifb(host: &mut Netlink) -> u32 {
    let mut requests = vec![link::create_ifb(IFB)];
    requests.extend(link::change(LinkRef::Name(IFB), &up()));
    let made = host.apply_then_link(&requests, LinkRef::Name(IFB)).expect("made").expect("there");
    assert_eq!(made.kind.as_deref(), Some("ifb"));
    made.index
}

#[test]
fn a_bucket_is_made_read_changed_and_removed() {
    in_new_netns(|| {
        let mut host = socket();
        let (veth, _pod) = pair(&mut host, NAME);
        // From 1 Mbit/s to beyond 32 bits of bytes a second, and the burst that runtimes mean as none.
        for (rate, burst, limit) in [
            (125_000, 12_288, 32_768),
            (125_000_000, 6_250_000, 3_125_000),
            (8_000_000_000, 4_000_000_000, 4_000_000_000),
        ] {
            let bucket = TokenBucket { rate, burst, limit };
            assert_eq!(host.root_qdisc(veth.index).expect("asked").map(|own| own.handle), Some(0));
            let create = qdisc::create_bucket(veth.index, NAME, &bucket);
            host.apply(std::slice::from_ref(&create)).expect("made");
            let found = host.root_qdisc(veth.index).expect("asked").expect("there");
            assert_eq!(
                (found.kind.as_str(), found.handle, found.ifindex),
                ("tbf", qdisc::HANDLE, veth.index)
            );
            let state = found.bucket.expect("measures");
            assert!(bucket.is_shown_as(&state), "{bucket:?} {state:?}");
            assert!(host.apply(&[create]).expect_err("it is there").is_exists());

            let other = TokenBucket { rate: rate / 2, ..bucket };
            host.apply(&[qdisc::replace_bucket(veth.index, NAME, &other)]).expect("changed");
            let state = host.root_qdisc(veth.index).expect("asked").and_then(|found| found.bucket);
            let state = state.expect("measures");
            assert!(other.is_shown_as(&state) && !bucket.is_shown_as(&state), "{state:?}");

            host.apply(&[qdisc::remove_bucket(veth.index, NAME)]).expect("removed");
            host.apply(&[qdisc::remove_bucket(veth.index, NAME)]).expect_err("gone");
        }
        assert_eq!(host.root_qdisc(4_000).expect("asked"), None);
    });
}

#[test]
fn what_a_link_receives_is_handed_to_an_ifb_by_one_send() {
    in_new_netns(|| {
        let mut host = socket();
        let (veth, _pod) = pair(&mut host, NAME);
        assert_eq!(host.ingress_qdisc(veth.index).expect("asked"), None);
        assert_eq!(host.ingress_filters(veth.index).expect("asked"), []);
        let ifb = ifb(&mut host);
        let bucket = TokenBucket { rate: 1_250_000, burst: 62_500, limit: 65_536 };
        host.apply(&[
            qdisc::create_bucket(ifb, IFB, &bucket),
            qdisc::create_clsact(veth.index, NAME),
            qdisc::redirect_all(veth.index, NAME, ifb),
        ])
        .expect("made");
        let place = host.ingress_qdisc(veth.index).expect("asked").expect("there");
        assert_eq!(place.kind, "clsact");
        let [filter] = host.ingress_filters(veth.index).expect("asked").try_into().expect("one filter");
        assert_eq!((filter.kind.as_str(), filter.priority), ("u32", qdisc::PRIORITY));
        assert_eq!((filter.is_match_all, filter.redirect), (true, Some(ifb)));
        assert!(host.apply(&[qdisc::create_clsact(veth.index, NAME)]).expect_err("there").is_exists());

        host.apply(&[qdisc::remove_redirect(veth.index, NAME)]).expect("removed");
        assert_eq!(host.ingress_filters(veth.index).expect("asked"), []);
        host.apply(&[qdisc::remove_clsact(veth.index, NAME)]).expect("removed");
        assert_eq!(host.ingress_qdisc(veth.index).expect("asked"), None);
        host.apply(&[link::delete(ifb, IFB)]).expect("removed");
    });
}

#[test]
fn multicast_queue_length_and_promiscuity_are_set_and_read() {
    in_new_netns(|| {
        let mut host = socket();
        let (veth, _pod) = pair(&mut host, NAME);
        assert_eq!((veth.tx_queue_length, veth.flags.all_multicast), (1000, false));
        let change = LinkChange {
            tx_queue_length: Some(77),
            all_multicast: Some(true),
            promisc: Some(true),
            ..LinkChange::default()
        };
        host.apply(&link::change(LinkRef::Index(veth.index), &change)).expect("changed");
        let changed = host.link(LinkRef::Index(veth.index)).expect("asked").expect("there");
        assert_eq!((changed.tx_queue_length, changed.flags.all_multicast), (77, true));
        assert!(changed.flags.promisc && changed.flags.up);
    });
}

/// Whichever it is: what the probe says is what a bridge shows, and what a port's VLANs do.
#[test]
fn the_probe_tells_whether_bridges_filter_vlans() {
    in_new_netns(|| {
        let mut host = socket();
        let bridge = bridge(&mut host, "podwire0");
        let supported = vlan::is_supported().expect("a namespace");
        assert_eq!(bridge.bridge.expect("settings").vlan_filtering.is_some(), supported);
        let (veth, _pod) = pair(&mut host, NAME);
        let port = LinkChange { controller: Some(bridge.index), ..LinkChange::default() };
        host.apply(&link::change(LinkRef::Index(veth.index), &port)).expect("a port");
        let join = vlan::join(veth.index, NAME, &(100..=100), vlan::Tagging::Untagged);
        assert_eq!(host.apply(&[join]).is_ok(), supported);
    });
}
