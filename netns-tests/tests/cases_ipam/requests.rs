//! Requested addresses, and configurations that cannot be.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Call, Case, Want, add, del, error, ok, script};
use serde_json::{Value, json};

use crate::{REFUSED, one_range, row};

pub(crate) fn requests() -> Vec<Case> {
    let narrow = || json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20" }]] });
    vec![
        row(
            "a requested address is granted",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
                add("b")
                    .config(json!({ "args": { "cni": { "ips": ["10.1.0.78"] } } }))
                    .addresses(&["10.1.0.78/24"])
                    .into(),
                add("c")
                    .config(json!({ "runtimeConfig": { "ips": ["10.1.0.79/24"] } }))
                    .addresses(&["10.1.0.79/24"])
                    .into(),
            ],
            Same,
        ),
        row(
            "one requested address for each range set",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .args("IP=fd01::77;IgnoreUnknown=1")
                    .addresses(&["10.1.0.2/24", "fd01::77/64"])
                    .into(),
                add("b")
                    .config(json!({ "args": { "cni": { "ips": ["fd01::78/64", "10.1.0.78"] } } }))
                    .addresses(&["10.1.0.78/24", "fd01::78/64"])
                    .into(),
            ],
            Same,
        ),
        row(
            "an address requested in CNI_ARGS beside one in args",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .args("IP=10.1.0.77;IgnoreUnknown=1")
                    .config(json!({ "args": { "cni": { "ips": ["fd01::77"] } } }))
                    .addresses(&["10.1.0.77/24", "fd01::77/64"])
                    .into(),
            ],
            Same,
        ),
        row(
            "two requested addresses of one range set",
            one_range(),
            vec![
                add("a")
                    .config(json!({ "args": { "cni": { "ips": ["10.1.0.77", "10.1.0.78"] } } }))
                    .fails(REFUSED, &["10.1.0.7"])
                    .into(),
                script("ip -n a link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a requested address out of range",
            narrow(),
            vec![
                add("a")
                    .args("IP=10.1.0.9;IgnoreUnknown=1")
                    .fails(REFUSED, &["10.1.0.9", "10.1.0.10-10.1.0.20"])
                    .reference(error(999, &["10.1.0.9"]))
                    .into(),
                add("b").args("IP=10.2.0.9;IgnoreUnknown=1").fails(REFUSED, &["10.2.0.9"]).into(),
            ],
            Differs("It does not say which range the address is not in."),
        ),
        row(
            "a requested address that another has",
            narrow(),
            vec![
                add("a").args("IP=10.1.0.15;IgnoreUnknown=1").addresses(&["10.1.0.15/24"]).into(),
                add("b")
                    .args("IP=10.1.0.15;IgnoreUnknown=1")
                    .fails(REFUSED, &["10.1.0.15", "taken", "eth0 of container a"])
                    .reference(error(999, &["10.1.0.15", "not available"]))
                    .into(),
            ],
            Differs("It does not say who has the address."),
        ),
        row(
            "a requested address that is the gateway",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.1;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.1", "gateway"]).into(),
                script("ip -n a link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a requested address that has just been freed",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.77;IgnoreUnknown=1").into(),
                del("a").into(),
                add("b").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
            ],
            Same,
        ),
        row(
            "after a requested address allocation goes on behind it",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("b").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
                add("c").addresses(&["10.1.0.78/24"]).into(),
            ],
            Same,
        ),
    ]
}

/// Configurations that cannot be: each has an error of its own.
pub(crate) fn mistakes() -> Vec<Case> {
    let mistake = |name, ipam: Value, says: &'static [&'static str]| {
        row(name, ipam, vec![add("a").fails(7, says).into(), script("ip -n a link del eth0 || true")], Same)
    };
    vec![
        mistake("a subnet with host bits", json!({ "subnet": "10.1.0.5/24" }), &["host bits", "10.1.0.0"]),
        mistake("a subnet that is none", json!({ "subnet": "10.1.0.0/40" }), &["10.1.0.0/40"]),
        mistake("a /31", json!({ "subnet": "10.1.0.0/31" }), &["10.1.0.0/31", "too small"]),
        mistake("a /32", json!({ "subnet": "10.1.0.0/32" }), &["10.1.0.0/32", "too small"]),
        mistake("an IPv6 /127", json!({ "subnet": "fd01::/127" }), &["fd01::/127", "too small"]),
        mistake("an IPv6 /128", json!({ "subnet": "fd01::/128" }), &["fd01::/128", "too small"]),
        mistake(
            "rangeStart outside",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.2.0.5" }),
            &["rangeStart 10.2.0.5", "10.1.0.0/24"],
        ),
        mistake(
            "rangeEnd outside",
            json!({ "subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.5" }),
            &["rangeEnd 10.2.0.5", "10.1.0.0/24"],
        ),
        mistake(
            "rangeStart of the other family",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "fd01::5" }),
            &["rangeStart fd01::5", "10.1.0.0/24"],
        ),
        row(
            "rangeStart behind rangeEnd",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "rangeEnd": "10.1.0.40" }),
            vec![
                add("a")
                    .fails(7, &["10.1.0.50", "behind", "10.1.0.40"])
                    .reference(error(999, &["RangeStart 10.1.0.50 not in network 10.1.0.0/24"]))
                    .into(),
            ],
            Differs("It says that rangeStart is not in the subnet, which it is."),
        ),
        row(
            "a gateway outside the subnet",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "gateway": "10.2.0.1" }]] }),
            vec![
                add("a")
                    .fails(7, &["gateway 10.2.0.1", "10.1.0.0/24"])
                    .reference(ok(&[Want::Gateways(&["10.2.0.1"])]))
                    .into(),
            ],
            Differs("It takes it, and the pod gets a gateway that it cannot reach."),
        ),
        mistake(
            "a gateway that is no address",
            json!({ "subnet": "10.1.0.0/24", "gateway": "nowhere" }),
            &["nowhere"],
        ),
        mistake(
            "two families in one range set",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }, { "subnet": "fd01::/64" }]] }),
            &["mixed address families"],
        ),
        mistake(
            "ranges of one set that overlap",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }, { "subnet": "10.1.0.0/25" }]] }),
            &["10.1.0.1-10.1.0.254", "10.1.0.1-10.1.0.126", "overlap"],
        ),
        mistake(
            "range sets that overlap",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/16" }]] }),
            &["range set 0 overlaps with"],
        ),
        mistake("an empty range set", json!({ "ranges": [[]] }), &["empty range set"]),
        mistake("a requested address that is none", json!({ "subnet": "10.1.0.0/24" }), &[]).with(
            add("a").config(json!({ "args": { "cni": { "ips": ["nowhere"] } } })).fails(7, &["nowhere"]),
        ),
    ]
}

trait With {
    fn with(self, call: Call) -> Case;
}

impl With for Case {
    /// The row with another first call.
    fn with(mut self, call: Call) -> Case {
        if let Some(first) = self.steps.first_mut() {
            *first = call.into();
        }
        self
    }
}
