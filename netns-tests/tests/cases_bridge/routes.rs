//! Routes and MAC addresses.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Text, Want, add, check, error, look};
use serde_json::{Value, json};

use crate::{HALF_MADE, TOO_OLD, plain, row};

pub(crate) fn routes() -> Vec<Case> {
    let with = |routes: Value| json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24", "routes": routes } });
    vec![
        row(
            "a route without a gateway uses that of its family",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]],
                "routes": [{ "dst": "192.168.0.0/16" }, { "dst": "fd77::/64" }, { "dst": "10.9.0.0/16", "gw": "10.1.0.9" }] } }),
            vec![
                add("a")
                    .gives(&[Want::Routes(&["192.168.0.0/16", "fd77::/64", "10.9.0.0/16 via 10.1.0.9"])])
                    .into(),
                look("ip -n a route get 192.168.1.1", Text::Has("via 10.1.0.1 dev eth0")).into(),
                look("ip -n a route get fd77::1", Text::Has("via fd01::1 dev eth0")).into(),
                look("ip -n a route get 10.9.1.1", Text::Has("via 10.1.0.9 dev eth0")).into(),
            ],
            Same,
        ),
        row(
            "CHECK of a route without a gateway",
            with(json!([{ "dst": "192.168.0.0/16" }])),
            vec![add("a").into(), check("a").reference(error(999, &["192.168.0.0", "not found"])).into()],
            Differs(
                "Its CHECK fails on what its own ADD did, because the route in the kernel has a gateway.",
            ),
        ),
        row(
            "a default route of IPAM beside isDefaultGateway is no conflict",
            json!({ "bridge": "br0", "isDefaultGateway": true,
                "ipam": { "type": "host-local", "subnet": "10.1.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] } }),
            vec![
                add("a").reference(error(999, &["file exists"])).into(),
                look("ip -n a route show default", Text::Is("default via 10.1.0.1 dev eth0")).into(),
                check("a").reference(error(999, &[])).into(),
            ],
            Differs("It adds the same route twice and fails; newer ones do not."),
        ),
        row(
            "two routes to one destination become one with two ways",
            with(
                json!([{ "dst": "192.168.0.0/16", "gw": "10.1.0.8" }, { "dst": "192.168.0.0/16", "gw": "10.1.0.9" }]),
            ),
            vec![
                add("a").into(),
                look("ip -n a route show 192.168.0.0/16", Text::Has("nexthop via 10.1.0.8 dev eth0"))
                    .reference(Text::Has("via 10.1.0.8 dev eth0"))
                    .into(),
                look("ip -n a route show 192.168.0.0/16", Text::Has("nexthop via 10.1.0.9 dev eth0"))
                    .reference(Text::Lacks("nexthop"))
                    .into(),
            ],
            Differs("It makes two routes, of which the kernel uses the first alone."),
        ),
        row(
            "table, scope, priority, mtu and advmss of a route",
            with(json!([
                { "dst": "192.168.0.0/16", "table": 77, "priority": 9 },
                { "dst": "192.169.0.0/16", "mtu": 1300, "advmss": 1200 },
                { "dst": "192.170.0.0/16", "scope": 253 },
            ])),
            vec![
                add("a").into(),
                look(
                    "ip -n a route show table 77 2>&1 || true",
                    Text::Has("192.168.0.0/16 via 10.1.0.1 dev eth0 metric 9"),
                )
                .reference(Text::Lacks("192.168.0.0"))
                .into(),
                look("ip -n a route show 192.169.0.0/16", Text::Has("mtu 1300 advmss 1200"))
                    .reference(Text::Lacks("mtu"))
                    .into(),
                look("ip -n a route show 192.170.0.0/16", Text::Has("dev eth0 scope link"))
                    .reference(Text::Lacks("scope"))
                    .into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "a route that cannot be is an error that names it",
            with(json!([{ "dst": "192.168.0.0/16", "gw": "10.77.0.1" }])),
            vec![
                add("a").fails(100, &["192.168.0.0", "10.77.0.1"]).into(),
                look("ip -n a -o link show type veth; ip -o link show type veth", Text::Is(""))
                    .reference(Text::Has("eth0"))
                    .into(),
            ],
            Differs(HALF_MADE),
        ),
        row(
            "a route of no family that the pod has",
            with(json!([{ "dst": "fd77::/64" }])),
            vec![add("a").into(), look("ip -n a -6 route show fd77::/64", Text::Has("dev eth0")).into()],
            Same,
        ),
    ]
}

pub(crate) fn macs() -> Vec<Case> {
    let lowest = json!({ "args": { "cni": { "mac": "02:00:00:00:00:05" } } });
    vec![
        row(
            "the MAC address of runtimeConfig is before that of args, and that before CNI_ARGS",
            plain(),
            vec![
                add("a").args("MAC=02:00:00:00:00:04;IgnoreUnknown=1").gives(&[Want::Mac("02:00:00:00:00:04")]).into(),
                add("b").args("MAC=02:00:00:00:00:04;IgnoreUnknown=1").config(lowest.clone()).gives(&[Want::Mac("02:00:00:00:00:05")]).into(),
                add("c")
                    .args("MAC=02:00:00:00:00:04;IgnoreUnknown=1")
                    .config(json!({ "args": { "cni": { "mac": "02:00:00:00:00:05" } }, "runtimeConfig": { "mac": "02:00:00:00:00:06" } }))
                    .gives(&[Want::Mac("02:00:00:00:00:06")])
                    .into(),
                look("ip -n c -br link show eth0", Text::Has("02:00:00:00:00:06")).into(),
                check("c").into(),
            ],
            Same,
        ),
        row(
            "MAC in CNI_ARGS needs no IgnoreUnknown",
            plain(),
            vec![
                add("a").args("MAC=02:00:00:00:00:04").gives(&[Want::Mac("02:00:00:00:00:04")]).reference(error(999, &["unknown args", "MAC="])).into(),
            ],
            Differs("bridge knows MAC and host-local does not, so that neither can be used without IgnoreUnknown=1."),
        ),
        row(
            "a MAC address that is none",
            plain(),
            vec![
                add("a").config(json!({ "runtimeConfig": { "mac": "nothing" } })).fails(7, &["mac", "nothing"]).into(),
                look("ip -n a -o link show type veth", Text::Is("")).into(),
            ],
            Same,
        ),
        row(
            "a MAC address that no interface can have",
            plain(),
            vec![
                add("a").config(json!({ "runtimeConfig": { "mac": "03:00:00:00:00:01" } })).fails(7, &["03:00:00:00:00:01"]).reference(error(999, &["cannot assign"])).into(),
            ],
            Differs("It passes the kernel's \"cannot assign requested address\" on, which sounds like an IP address."),
        ),
    ]
}
