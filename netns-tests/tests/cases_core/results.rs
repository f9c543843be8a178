//! The forms of results, and the loopback plugin.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{
    Case, Expect, Plugin, Step, Text, Versions, Want, add, check, del, error, look, ok, script,
};
use serde_json::json;

use crate::{NEWEST, ONE, case};

pub(crate) fn results() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]], "routes": [{ "dst": "192.168.0.0/16" }] } }),
            ..case(
                "results of 0.1.0 and 0.2.0",
                vec![
                    add("a")
                        .gives(&[
                            Want::At("/ip4/ip", json!("10.1.0.2/24")),
                            Want::At("/ip4/gateway", json!("10.1.0.1")),
                            Want::At("/ip6/ip", json!("fd01::2/64")),
                            Want::At("/ip6/gateway", json!("fd01::1")),
                            Want::At("/ip4/routes/0/dst", json!("192.168.0.0/16")),
                            Want::At("/ip4/routes/1", json!({ "dst": "0.0.0.0/0", "gw": "10.1.0.1" })),
                            Want::At("/ip6/routes/0", json!({ "dst": "::/0", "gw": "fd01::1" })),
                        ])
                        .into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "ipam": {} }),
            ..case(
                "results of 0.1.0 and 0.2.0 need an address",
                vec![
                    add("a").fails(7, &["IP address"]).into(),
                    look("ip -o link show type veth; ip -n a -o link show type veth | wc -l", Text::Is("0"))
                        .reference(Text::Has("veth"))
                        .into(),
                ],
                Differs("It fails after it has made the interface, and leaves it."),
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/24" }]] } }),
            ..case(
                "results of 0.1.0 and 0.2.0 hold one address of a family",
                vec![
                    add("a").fails(7, &["address"]).into(),
                    look("ip -n a -o link show type veth | wc -l", Text::Is("0"))
                        .reference(Text::Is("1"))
                        .into(),
                ],
                Differs("It fails after it has made the interface, and leaves it."),
            )
        },
        Case {
            versions: Versions::From("0.3.0"),
            ..case(
                "results since 0.3.0",
                vec![
                    add("a")
                        .config(json!({ "args": { "cni": { "mac": "02:00:00:00:00:09" } } }))
                        .gives(&[
                            Want::At("/interfaces/0/name", json!("br0")),
                            Want::At("/interfaces/2/name", json!("eth0")),
                            Want::At("/interfaces/2/sandbox", json!("/run/netns/a")),
                            Want::Mac("02:00:00:00:00:09"),
                            Want::At("/ips/0/interface", json!(2)),
                            Want::At("/ips/0/address", json!("10.1.0.2/24")),
                            Want::At("/ips/0/gateway", json!("10.1.0.1")),
                        ])
                        .into(),
                    look("ip -n a -br link show eth0", Text::Has("02:00:00:00:00:09")).into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "results of 1.1.0 carry the mtu",
                vec![
                    add("a")
                        .config(json!({ "mtu": 1400 }))
                        .gives(&[Want::At("/interfaces/2/mtu", json!(1400))])
                        .reference(error(1, &["1.1.0"]))
                        .into(),
                ],
                Differs("Debian's package (1.1.1 of the plugins) ends at 1.0.0."),
            )
        },
        Case {
            versions: Versions::From("0.4.0"),
            ..case(
                "a dns section without content is left out of 1.x",
                vec![
                    add("a").gives(&[Want::Nothing("/dns")]).into(),
                    add("b")
                        .config(json!({ "dns": { "nameservers": ["10.1.0.1"] } }))
                        .gives(&[Want::At("/dns/nameservers", json!(["10.1.0.1"]))])
                        .into(),
                ],
                Same,
            )
        },
    ]
}

pub(crate) fn loopback() -> Vec<Case> {
    let case = |name, versions, steps, reference| Case {
        name,
        versions,
        plugin: Plugin::Loopback,
        config: json!({ "type": "loopback" }),
        steps,
        reference,
    };
    vec![
        case("loopback brings lo up, and DEL takes it down", Versions::From("1.0.0"), up_and_down(None), Same),
        case(
            "loopback before 1.0.0",
            Versions::These(&["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"]),
            up_and_down(Some(ok(&[Want::At("/ips/0", json!({ "interface": 0, "address": "127.0.0.1/8" }))]))),
            Differs("Whatever the version, it prints a result in the form of 1.0.0."),
        ),
        case(
            "loopback passes a previous result on",
            Versions::These(ONE),
            vec![
                add("a")
                    .ifname("lo")
                    .previous(json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }],
                        "ips": [{ "interface": 0, "address": "10.9.0.9/24" }] }))
                    .addresses(&["10.9.0.9/24"])
                    .into(),
            ],
            Same,
        ),
    ]
}

fn up_and_down(added: Option<Expect>) -> Vec<Step> {
    let add = add("a").ifname("lo").addresses(&["127.0.0.1/8", "::1/128"]);
    vec![
        match added {
            Some(expect) => add.reference(expect).into(),
            None => add.into(),
        },
        look("ip -n a -br address show lo", Text::Has("127.0.0.1/8 ::1/128")).into(),
        check("a").ifname("lo").into(),
        script("ip -n a link set lo down"),
        check("a").ifname("lo").fails(101, &["lo"]).into(),
        del("a").ifname("lo").into(),
        del("a").ifname("lo").env("CNI_NETNS", "").into(),
        del("a").ifname("lo").env("CNI_NETNS", "/run/netns/nowhere").into(),
    ]
}
