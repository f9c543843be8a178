//! What an attachment is made of, seen from the pod and from the node.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Step, Text, Versions, Want, add, check, del, error, look, script};
use serde_json::{Value, json};

use crate::{PING4, PING6, plain, row};

pub(crate) fn attachments() -> Vec<Case> {
    let attach = |name,
                  ranges: Value,
                  addresses: &'static [&'static str],
                  gateways: &'static [&'static str],
                  steps: Vec<Step>| {
        let mut all = vec![
            add("a").gives(&[Want::Addresses(addresses), Want::Gateways(gateways)]).into(),
            look("ip -n a -br link show eth0", Text::Has("UP")).into(),
            look("cat /sys/class/net/{port:a}/master/uevent", Text::Has("INTERFACE=br0")).into(),
            check("a").into(),
        ];
        all.extend(steps);
        all.extend([
            check("a").into(),
            del("a").into(),
            look("ip -n a -o link show type veth; ip -o link show type veth", Text::Is("")).into(),
            look("ip -o link show br0 | wc -l", Text::Is("1")).into(),
            del("a").forgotten().into(),
            add("a").into(),
        ]);
        Case {
            versions: Versions::All,
            ..row(
                name,
                json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local", "ranges": ranges } }),
                all,
                Same,
            )
        }
    };

    vec![
        attach(
            "IPv4",
            json!([[{ "subnet": "10.1.0.0/24" }]]),
            &["10.1.0.2/24"],
            &["10.1.0.1"],
            vec![
                look("ip -n a -4 -br address show eth0", Text::Has("10.1.0.2/24")).into(),
                look("ip -n a route show default", Text::Has("default via 10.1.0.1 dev eth0")).into(),
                look("ip -4 -br address show br0", Text::Has("10.1.0.1/24")).into(),
                look("cat /proc/sys/net/ipv4/ip_forward", Text::Is("1")).into(),
                script(PING4),
            ],
        ),
        attach(
            "IPv6",
            json!([[{ "subnet": "fd01::/64" }]]),
            &["fd01::2/64"],
            &["fd01::1"],
            vec![
                look("ip -n a -6 -br address show eth0", Text::Has("fd01::2/64")).into(),
                look("ip -n a -6 route show default", Text::Has("default via fd01::1 dev eth0")).into(),
                look("ip -6 -br address show br0", Text::Has("fd01::1/64")).into(),
                look("cat /proc/sys/net/ipv6/conf/all/forwarding", Text::Is("1")).into(),
                // No address waits for duplicate address detection when ADD returns.
                look("ip -n a -6 address show eth0 scope global", Text::Lacks("tentative")).into(),
                script(PING6),
            ],
        ),
        attach(
            "both families",
            json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]]),
            &["10.1.0.2/24", "fd01::2/64"],
            &["10.1.0.1", "fd01::1"],
            vec![
                look("ip -n a -br address show eth0", Text::Has("10.1.0.2/24 fd01::2/64")).into(),
                script(PING4),
                script(PING6),
            ],
        ),
        Case {
            versions: Versions::From("0.3.0"),
            ..row(
                "an attachment without IPAM is layer 2 alone",
                json!({ "bridge": "br0", "ipam": {} }),
                vec![
                    add("a")
                        .gives(&[Want::Nothing("/ips"), Want::At("/interfaces/2/name", json!("eth0"))])
                        .into(),
                    look("cat /sys/class/net/{port:a}/master/uevent", Text::Has("INTERFACE=br0")).into(),
                    look("ip -n a -br link show eth0", Text::Has("UP")).into(),
                    look("ip -n a -4 -br address show eth0", Text::Lacks("10.")).into(),
                    del("a").into(),
                    look("ip -o link show type veth", Text::Is("")).into(),
                ],
                Same,
            )
        },
        row(
            "CHECK of layer 2",
            json!({ "bridge": "br0", "ipam": {} }),
            vec![add("a").into(), check("a").reference(error(999, &["no plugin name provided"])).into()],
            Differs("Its CHECK asks an IPAM plugin without a name, and fails."),
        ),
        row(
            "no ipam section is layer 2 as well",
            json!({ "bridge": "br0" }),
            vec![
                add("a").gives(&[Want::Nothing("/ips")]).into(),
                look("ip -n a -br link show eth0", Text::Has("UP")).into(),
            ],
            Same,
        ),
        row(
            "the host gets the bridge and one interface for a pod",
            plain(),
            vec![
                add("a").into(),
                look("ip -o link | wc -l", Text::Is("3")).into(),
                add("b").into(),
                look("ip -o link | wc -l", Text::Is("4")).into(),
                look("ip -n a -o link | wc -l", Text::Is("2")).into(),
                del("a").into(),
                del("b").into(),
                look("ip -o link | wc -l", Text::Is("2")).into(),
            ],
            Same,
        ),
        row(
            "two pods reach each other",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] } }),
            vec![
                add("a").into(),
                add("b").into(),
                script("nsenter --net=/run/netns/a busybox ping -c 3 -i 0.2 -W 1 10.1.0.3"),
                script(
                    "nsenter --net=/run/netns/b sh -c 'for i in 1 2 3 4 5 6; do busybox ping -c 1 -W 1 fd01::2 && exit; done; exit 1'",
                ),
            ],
            Same,
        ),
        row(
            "two interfaces of one pod on two networks",
            plain(),
            vec![
                add("a").into(),
                add("a")
                    .ifname("net1")
                    .config(json!({ "name": "other", "bridge": "br1", "isDefaultGateway": false,
                        "ipam": { "subnet": "10.2.0.0/24" } }))
                    .addresses(&["10.2.0.2/24"])
                    .into(),
                look("ip -n a -4 -br address show", Text::Has("10.2.0.2/24")).into(),
                del("a")
                    .ifname("net1")
                    .config(json!({ "name": "other", "bridge": "br1", "ipam": { "subnet": "10.2.0.0/24" } }))
                    .into(),
                look("ip -n a -4 -br address show eth0", Text::Has("10.1.0.2/24")).into(),
                check("a").into(),
            ],
            Same,
        ),
    ]
}
