//! Which addresses come, and in which order.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Text, Versions, Want, add, del, look, ok, script};
use serde_json::json;

use crate::{REFUSED, one_range, row};

pub(crate) fn ranges() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::From("0.3.0"),
            ..row(
                "two range sets give one address each",
                json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/24" }]] }),
                vec![
                    add("a")
                        .gives(&[
                            Want::Addresses(&["10.1.0.2/24", "10.2.0.2/24"]),
                            Want::Gateways(&["10.1.0.1", "10.2.0.1"]),
                        ])
                        .into(),
                    look("ip -n a -4 -br address show eth0", Text::Has("10.1.0.2/24 10.2.0.2/24")).into(),
                    add("b").addresses(&["10.1.0.3/24", "10.2.0.3/24"]).into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::All,
            ..row(
                "IPv6 alone",
                json!({ "ranges": [[{ "subnet": "fd01::/64" }]] }),
                vec![
                    add("a").gives(&[Want::Addresses(&["fd01::2/64"]), Want::Gateways(&["fd01::1"])]).into(),
                    add("b").addresses(&["fd01::3/64"]).into(),
                ],
                Same,
            )
        },
        row(
            "ranges of one set follow each other",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/30" }, { "subnet": "10.2.0.0/30" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.2/30"]), Want::Gateways(&["10.1.0.1"])]).into(),
                add("b").gives(&[Want::Addresses(&["10.2.0.2/30"]), Want::Gateways(&["10.2.0.1"])]).into(),
                del("a").into(),
                add("c").addresses(&["10.1.0.2/30"]).into(),
            ],
            Same,
        ),
        row(
            "a /29 gives .2 to .6, goes round, and never gives .7",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                add("a").addresses(&["10.1.0.2/29"]).into(),
                add("b").addresses(&["10.1.0.3/29"]).into(),
                add("c").addresses(&["10.1.0.4/29"]).into(),
                add("d").addresses(&["10.1.0.5/29"]).into(),
                add("e").addresses(&["10.1.0.6/29"]).into(),
                del("b").into(),
                add("f").addresses(&["10.1.0.3/29"]).into(),
                del("e").into(),
                add("g").addresses(&["10.1.0.6/29"]).into(),
            ],
            Same,
        ),
        row(
            "an IPv6 range ends at all ones",
            json!({ "subnet": "fd01::/126" }),
            vec![
                add("a").addresses(&["fd01::2/126"]).into(),
                add("b").addresses(&["fd01::3/126"]).into(),
                add("c").fails(REFUSED, &["no IP addresses available in range set: fd01::1-fd01::3"]).into(),
                script("ip -n c link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a full range",
            json!({ "subnet": "10.1.0.0/30" }),
            vec![
                add("a").addresses(&["10.1.0.2/30"]).into(),
                add("b")
                    .fails(REFUSED, &["no IP addresses available in range set: 10.1.0.1-10.1.0.2"])
                    .into(),
                script("ip -n b link del eth0 || true"),
                del("a").into(),
                add("b").addresses(&["10.1.0.2/30"]).into(),
            ],
            Same,
        ),
        row(
            "after a release comes the next address, not the freed one",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("b").addresses(&["10.1.0.3/24"]).into(),
                del("b").into(),
                del("a").into(),
                add("c").addresses(&["10.1.0.4/24"]).into(),
            ],
            Same,
        ),
        row(
            "a freed address rests while another is free",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                add("a").addresses(&["10.1.0.2/29"]).into(),
                add("b").addresses(&["10.1.0.3/29"]).into(),
                add("c").addresses(&["10.1.0.4/29"]).into(),
                add("d").addresses(&["10.1.0.5/29"]).into(),
                del("d").into(),
                del("a").into(),
                add("e").addresses(&["10.1.0.6/29"]).into(),
                // Nothing but the two freed ones is left: the one that has rested longer comes first.
                add("f")
                    .addresses(&["10.1.0.5/29"])
                    .reference(ok(&[Want::Addresses(&["10.1.0.2/29"])]))
                    .into(),
                add("g")
                    .addresses(&["10.1.0.2/29"])
                    .reference(ok(&[Want::Addresses(&["10.1.0.5/29"])]))
                    .into(),
            ],
            Differs(
                "It knows only the order of addresses. podwire gives the address that has been free for longest, so that \
                 packets for a pod that is gone do not reach the next.",
            ),
        ),
        row(
            "rangeStart and rangeEnd",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.11" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.10/24"]), Want::Gateways(&["10.1.0.1"])]).into(),
                add("b").addresses(&["10.1.0.11/24"]).into(),
                add("c").fails(REFUSED, &["10.1.0.10-10.1.0.11"]).into(),
                script("ip -n c link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "the gateway is passed over wherever it is",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "gateway": "10.1.0.11" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.10/24"]), Want::Gateways(&["10.1.0.11"])]).into(),
                add("b").addresses(&["10.1.0.12/24"]).into(),
            ],
            Same,
        ),
        row(
            "the legacy subnet with its rangeStart, rangeEnd and gateway comes before ranges",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.30", "gateway": "10.1.0.254",
                "ranges": [[{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .gives(&[
                        Want::Addresses(&["10.1.0.20/24", "fd01::2/64"]),
                        Want::Gateways(&["10.1.0.254", "fd01::1"]),
                    ])
                    .into(),
            ],
            Same,
        ),
        row(
            "the ipRanges of the runtime come before the configuration's",
            one_range(),
            vec![
                add("a")
                    .config(json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.8.0.0/24" }]] } }))
                    .addresses(&["10.8.0.2/24", "10.1.0.2/24"])
                    .into(),
            ],
            Same,
        ),
        row(
            "routes go into the result",
            json!({ "subnet": "10.1.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.1.0.9" }] }),
            vec![add("a").gives(&[Want::Routes(&["0.0.0.0/0", "10.9.0.0/16 via 10.1.0.9"])]).into()],
            Same,
        ),
        row(
            "one container on two networks: DEL of one leaves the other",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("a")
                    .ifname("net1")
                    .config(json!({ "name": "other", "bridge": "br1" }))
                    .addresses(&["10.1.0.2/24"])
                    .into(),
                del("a").ifname("net1").config(json!({ "name": "other", "bridge": "br1" })).into(),
                add("b").args("IP=10.1.0.2;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.2"]).into(),
                script("ip -n b link del eth0 || true"),
                add("b")
                    .config(json!({ "name": "other", "bridge": "br1" }))
                    .args("IP=10.1.0.2;IgnoreUnknown=1")
                    .into(),
            ],
            Same,
        ),
        row(
            "one container with two interfaces on one network",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("a").ifname("net1").addresses(&["10.1.0.3/24"]).into(),
                del("a").ifname("eth0").into(),
                look("ip -n a -4 -br address show net1", Text::Has("10.1.0.3/24")).into(),
                add("b").args("IP=10.1.0.3;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.3"]).into(),
                script("ip -n b link del eth0 || true"),
            ],
            Same,
        ),
    ]
}
