//! Keys of one attachment: the pair, its port, and what is refused.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Expect, Text, Want, add, check, error, look, ok, script};
use serde_json::json;

use crate::{TOO_OLD, plain, row};

pub(crate) fn ports() -> Vec<Case> {
    vec![
        row(
            "mtu, on both ends",
            plain(),
            vec![
                add("a").config(json!({ "mtu": 1400 })).into(),
                look("cat /sys/class/net/{port:a}/mtu; ip -n a -o link show eth0", Text::Has("1400 ")).into(),
                look("ip -n a -o link show eth0", Text::Has("mtu 1400")).into(),
                look("cat /sys/class/net/br0/mtu", Text::Is("1400")).into(),
            ],
            Same,
        ),
        row(
            "an mtu that no interface can have",
            plain(),
            vec![
                add("a").config(json!({ "mtu": 100_000 })).fails(7, &["mtu", "100000"]).reference(error(999, &["invalid argument"])).into(),
                add("a").config(json!({ "mtu": -5 })).fails(7, &["mtu", "-5"]).reference(ok(&[])).into(),
            ],
            Differs("It passes the kernel's \"invalid argument\" on without saying which, and takes a negative number for none."),
        ),
        row(
            "hairpinMode",
            plain(),
            vec![
                add("a").config(json!({ "hairpinMode": true })).into(),
                add("b").into(),
                look("cat /sys/class/net/{port:a}/brport/hairpin_mode /sys/class/net/{port:b}/brport/hairpin_mode", Text::Is("1 0")).into(),
            ],
            Same,
        ),
        row(
            "portIsolation",
            plain(),
            vec![
                add("a").config(json!({ "portIsolation": true })).into(),
                add("b").config(json!({ "portIsolation": true })).into(),
                add("c").into(),
                look("cat /sys/class/net/{port:a}/brport/isolated /sys/class/net/{port:c}/brport/isolated", Text::Is("1 0"))
                    .reference(Text::Is("0 0"))
                    .into(),
                script("nsenter --net=/run/netns/a busybox ping -c 2 -i 0.2 -W 1 10.1.0.4"),
                look("nsenter --net=/run/netns/a busybox ping -c 2 -i 0.2 -W 1 10.1.0.3 | grep -c 'bytes from' || true", Text::Is("0"))
                    .reference(Text::Is("2"))
                    .into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "disableContainerInterface",
            json!({ "bridge": "br0", "disableContainerInterface": true, "ipam": {} }),
            vec![
                add("a").into(),
                look("ip -n a -br link show eth0", Text::Has("DOWN")).reference(Text::Has("UP")).into(),
                check("a").reference(error(999, &["no plugin name provided"])).into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "disableContainerInterface is for layer 2 alone",
            plain(),
            vec![
                add("a").config(json!({ "disableContainerInterface": true })).fails(7, &["disableContainerInterface"]).reference(ok(&[])).into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "settings of the container's interface",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] } }),
            vec![
                script("nsenter --net=/proc/self/ns/net true"),
                add("a").into(),
                look(
                    "nsenter --net=/run/netns/a sh -c 'cd /proc/sys/net; cat ipv4/conf/eth0/arp_notify ipv6/conf/eth0/accept_dad ipv6/conf/eth0/disable_ipv6'",
                    Text::Is("1 0 0"),
                )
                .into(),
                look("nsenter --net=/run/netns/a cat /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down", Text::Is("1"))
                    .reference(Text::Is("0"))
                    .into(),
            ],
            Differs("It loses the pod's IPv6 addresses when the interface goes down for a moment; newer ones set keep_addr_on_down too."),
        ),
        row(
            "enabledad",
            json!({ "bridge": "br0", "isGateway": true, "enabledad": true, "ipam": { "type": "host-local", "subnet": "fd01::/64" } }),
            vec![
                add("a").addresses(&["fd01::2/64"]).into(),
                look("nsenter --net=/run/netns/a cat /proc/sys/net/ipv6/conf/eth0/accept_dad", Text::Is("1")).into(),
            ],
            Same,
        ),
        row(
            "IPv6 that is off by default is switched on for a pod that has an IPv6 address",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "fd01::/64" } }),
            vec![
                script("ip netns add a; nsenter --net=/run/netns/a sh -c 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'; ip netns del a"),
                add("a").into(),
                look("nsenter --net=/run/netns/a cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6", Text::Is("0")).into(),
                look("ip -n a -6 -br address show eth0", Text::Has("fd01::2/64")).into(),
            ],
            Same,
        ),
        row(
            "dns of the configuration",
            plain(),
            vec![
                add("a")
                    .config(json!({ "dns": { "nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:5"] } }))
                    .gives(&[Want::At("/dns", json!({ "nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:5"] }))])
                    .into(),
            ],
            Same,
        ),
        row(
            "vlan",
            plain(),
            vec![
                add("a").config(json!({ "vlan": 100 })).fails(2, &["vlan", "100"]).reference(Expect::Anything).into(),
                add("a").config(json!({ "vlan": 5000 })).fails(7, &["vlan", "5000"]).reference(error(999, &["5000"])).into(),
                add("b").config(json!({ "vlan": 0 })).into(),
            ],
            Differs("It fails half way on a kernel whose bridges cannot filter VLANs, and takes 5000 for a number of the wrong size."),
        ),
        row(
            "vlanTrunk",
            plain(),
            vec![add("a").config(json!({ "vlanTrunk": [{ "id": 100 }] })).fails(2, &["vlanTrunk"]).reference(ok(&[])).into()],
            Differs("Debian's package is older than the key and ignores it. On this kernel, whose bridges cannot filter VLANs, podwire refuses it."),
        ),
    ]
}
