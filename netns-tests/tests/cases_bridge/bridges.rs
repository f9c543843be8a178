//! The bridge itself: made, found, addressed.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Text, Want, add, del, look, script};
use serde_json::json;

use crate::{HALF_MADE, plain, row};

pub(crate) fn bridges() -> Vec<Case> {
    vec![
        row(
            "an existing bridge is kept as it is",
            plain(),
            vec![
                script("ip link add br0 type bridge; ip link set br0 address 02:00:00:00:00:77 up"),
                script("cat /sys/class/net/br0/ifindex > /run/before"),
                add("a").gives(&[Want::At("/interfaces/0/mac", json!("02:00:00:00:00:77"))]).into(),
                look(
                    "diff /run/before /sys/class/net/br0/ifindex && cat /sys/class/net/br0/address",
                    Text::Is("02:00:00:00:00:77"),
                )
                .into(),
                del("a").into(),
                look(
                    "diff /run/before /sys/class/net/br0/ifindex && cat /sys/class/net/br0/address",
                    Text::Is("02:00:00:00:00:77"),
                )
                .into(),
            ],
            Same,
        ),
        row(
            "a bridge that is down is brought up",
            plain(),
            vec![
                script("ip link add br0 address 02:00:00:00:00:77 type bridge"),
                add("a").into(),
                look("ip -br link show br0", Text::Has("UP")).into(),
            ],
            Same,
        ),
        row(
            "without a name it is cni0",
            json!({ "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![add("a").gives(&[Want::At("/interfaces/0/name", json!("cni0"))]).into()],
            Same,
        ),
        row(
            "a link of the bridge's name that is none",
            plain(),
            vec![
                script("ip link add br0 type vxlan id 7 dstport 4789"),
                add("a").fails(104, &["br0", "bridge"]).into(),
                look("ip -n a -o link show type veth", Text::Is("")).into(),
            ],
            Same,
        ),
        row(
            "a gateway's MAC address stays as pods come and go",
            plain(),
            vec![
                add("a").into(),
                script("cat /sys/class/net/br0/address > /run/before"),
                add("b").into(),
                add("c").into(),
                del("a").into(),
                look("diff /run/before /sys/class/net/br0/address", Text::Is("")).into(),
                del("b").into(),
                del("c").into(),
                look("diff /run/before /sys/class/net/br0/address", Text::Is("")).into(),
                add("a").into(),
                look("diff /run/before /sys/class/net/br0/address", Text::Is("")).into(),
            ],
            Same,
        ),
        row(
            "any bridge's MAC address stays as pods come and go",
            json!({ "bridge": "br0", "ipam": {} }),
            vec![
                add("a").into(),
                script("cat /sys/class/net/br0/address > /run/before"),
                del("a").into(),
                look(
                    "diff /run/before /sys/class/net/br0/address > /dev/null && echo same || echo other",
                    Text::Is("same"),
                )
                .reference(Text::Is("other"))
                .into(),
            ],
            Differs(
                "Without isGateway its bridge takes the lowest MAC address of its ports, and has none when the last is gone.",
            ),
        ),
        row(
            "promiscMode",
            json!({ "bridge": "br0", "promiscMode": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![
                add("a").into(),
                look("ip -o link show br0", Text::Has("PROMISC")).into(),
                add("b").config(json!({ "promiscMode": false })).into(),
                look("ip -o link show br0", Text::Has("PROMISC")).into(),
            ],
            Same,
        ),
        row(
            "promiscMode and hairpinMode exclude each other",
            json!({ "bridge": "br0", "promiscMode": true, "hairpinMode": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![
                add("a").fails(7, &["hairpin", "promisc"]).into(),
                look("ip -o link | wc -l", Text::Is("1")).into(),
            ],
            Same,
        ),
        row(
            "another IPv4 address on the bridge is an error",
            plain(),
            vec![
                script(
                    "ip link add br0 address 02:00:00:00:00:77 type bridge; ip address add 10.7.0.1/24 dev br0",
                ),
                add("a").fails(104, &["br0", "10.1.0.1/24"]).into(),
                look("ip -4 -br address show br0", Text::Has("10.7.0.1/24")).into(),
                look("ip -n a -o link show type veth; ip -o link show type veth", Text::Is(""))
                    .reference(Text::Has("eth0"))
                    .into(),
            ],
            Differs(HALF_MADE),
        ),
        row(
            "forceAddress replaces another IPv4 address",
            plain(),
            vec![
                script(
                    "ip link add br0 address 02:00:00:00:00:77 type bridge; ip address add 10.7.0.1/24 dev br0",
                ),
                add("a").config(json!({ "forceAddress": true })).addresses(&["10.1.0.2/24"]).into(),
                look(
                    "ip -4 -o address show br0 | wc -l; ip -4 -br address show br0",
                    Text::Has("10.1.0.1/24"),
                )
                .into(),
                look("ip -4 -br address show br0", Text::Lacks("10.7.0.1/24")).into(),
            ],
            Same,
        ),
        row(
            "a disjoint IPv6 address on the bridge is kept",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "fd01::/64" } }),
            vec![
                script(
                    "ip link add br0 address 02:00:00:00:00:77 type bridge; ip address add fd07::1/64 dev br0 nodad",
                ),
                add("a").addresses(&["fd01::2/64"]).into(),
                look("ip -6 -br address show br0", Text::Has("fd07::1/64")).into(),
                look("ip -6 -br address show br0", Text::Has("fd01::1/64")).into(),
            ],
            Same,
        ),
        row(
            "an overlapping IPv6 address on the bridge is an error",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "fd01::/64" } }),
            vec![
                script(
                    "ip link add br0 address 02:00:00:00:00:77 type bridge; ip address add fd01::9/64 dev br0 nodad",
                ),
                script("ip address add fd07::1/64 dev br0 nodad"),
                add("a").fails(104, &["br0", "fd01::1/64"]).into(),
                look("ip -n a -o link show type veth", Text::Is("")).reference(Text::Has("eth0")).into(),
                add("b").config(json!({ "forceAddress": true })).into(),
                look("ip -6 -br address show br0", Text::Lacks("fd01::9/64")).into(),
                look("ip -6 -br address show br0", Text::Has("fd07::1/64")).into(),
            ],
            Differs(HALF_MADE),
        ),
        row(
            "the gateway of the configuration goes to the bridge",
            json!({ "bridge": "br0", "isDefaultGateway": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24", "gateway": "10.1.0.254" }]] } }),
            vec![
                add("a")
                    .gives(&[Want::Gateways(&["10.1.0.254"]), Want::Routes(&["0.0.0.0/0 via 10.1.0.254"])])
                    .into(),
                look("ip -4 -br address show br0", Text::Has("10.1.0.254/24")).into(),
                script("nsenter --net=/run/netns/a busybox ping -c 2 -i 0.2 -W 1 10.1.0.254"),
            ],
            Same,
        ),
        row(
            "without isGateway the bridge gets no address",
            json!({ "bridge": "br0", "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.2/24"]), Want::Nothing("/routes")]).into(),
                look("ip -4 -br address show br0", Text::Is("")).into(),
                look("ip -n a route", Text::Lacks("default")).into(),
            ],
            Same,
        ),
        row(
            "router advertisements are not taken on the bridge and its ports",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "fd01::/64" } }),
            vec![
                add("a").into(),
                look(
                    "cat /proc/sys/net/ipv6/conf/br0/accept_ra /proc/sys/net/ipv6/conf/{port:a}/accept_ra",
                    Text::Is("0 0"),
                )
                .into(),
            ],
            Same,
        ),
    ]
}
