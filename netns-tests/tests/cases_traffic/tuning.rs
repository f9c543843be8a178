//! Settings of the pod's interface and network namespace.

use podwire_netns_tests::cases::Reference::{Differs, Lacks};
use podwire_netns_tests::cases::{Case, Expect, Text, add, check, error, look, ok, script};
use serde_json::json;

use crate::{network, row};

const TOO_OLD: &str = "Debian's package (1.1.1 of the plugins) is older than the key and ignores it.";

const READ: &str = "nsenter --net=/run/netns/a sh -c 'cd /proc/sys/net; cat core/somaxconn ipv4/conf/eth0/arp_filter ipv6/conf/eth0/hop_limit'";

pub(crate) fn cases() -> Vec<Case> {
    let sysctls = json!({ "sysctl": {
        "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv6/conf/IFNAME/hop_limit": "33"
    } });
    vec![
        row(
            "sysctl",
            network(sysctls.clone()),
            vec![
                add("a").into(),
                look(READ, Text::Is("500 1 33")).into(),
                check("a").reference(Expect::Anything).into(),
                script("nsenter --net=/run/netns/a sh -c 'echo 400 > /proc/sys/net/core/somaxconn'"),
                check("a").fails(101, &["somaxconn"]).reference(error(999, &[""])).into(),
                // The node's own are another namespace's.
                look("cat /proc/sys/net/core/somaxconn", Text::Lacks("500")).into(),
            ],
            Differs("Its CHECK fails for every sysctl with IFNAME."),
        ),
        row(
            "a sysctl that is none of the pod's",
            network(json!({})),
            vec![
                add("a").config(json!({ "sysctl": { "kernel.hostname": "x" } })).fails(7, &["kernel.hostname"]).reference(error(999, &["invalid net sysctl key"])).into(),
                add("a").config(json!({ "sysctl": { "net.ipv4.nonsense": "1" } })).fails(115, &["net/ipv4/nonsense"]).reference(error(999, &["nonsense"])).into(),
                look("ip -br link show type veth | grep -v uplink | wc -l", Text::Is("0")).into(),
            ],
            Differs("It does not say which key; podwire checks before it makes anything."),
        ),
        row(
            "the allow-list",
            network(sysctls),
            vec![
                script("mkdir -p /etc/cni/tuning; echo '^net.core.somaxconn$' > /etc/cni/tuning/allowlist.conf"),
                add("a").fails(116, &["arp_filter"]).into(),
                script("echo '^net.ipv' >> /etc/cni/tuning/allowlist.conf; sed -i 's|ipv|ipv[46]|' /etc/cni/tuning/allowlist.conf"),
                add("b").config(json!({ "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1", "net/ipv6/conf/IFNAME/hop_limit": null } })).into(),
            ],
            Lacks(TOO_OLD),
        ),
        row(
            "promisc, allmulti",
            network(json!({ "promisc": true, "allmulti": true })),
            vec![
                add("a").into(),
                look("ip -n a -d link show eth0 | tr '\\n' ' '", Text::Has("promiscuity 1")).into(),
                look("ip -n a -d link show eth0 | tr '\\n' ' '", Text::Has("allmulti 1")).into(),
                check("a").into(),
                script("ip -n a link set eth0 promisc off"),
                check("a").fails(101, &["promisc"]).reference(error(999, &["promisc"])).into(),
            ],
            Differs("Its error does not say so in the specification's form."),
        ),
        row(
            "settings of one pod through args",
            network(json!({ "txQLen": 123 })),
            vec![
                add("a").config(json!({ "args": { "cni": { "txQLen": 77 } } })).into(),
                look("ip -n a link show eth0", Text::Has("qlen 77")).into(),
            ],
            Lacks(TOO_OLD),
        ),
        row(
            "an mtu and a mac of the pod's own",
            network(json!({ "mtu": 1400, "mac": "02:11:22:33:44:55" })),
            vec![
                add("a").reference(ok(&[])).into(),
                look("ip -n a link show eth0", Text::Has("mtu 1400")).into(),
                look("ip -n a link show eth0", Text::Has("02:11:22:33:44:55")).reference(Text::Has("eth0")).into(),
                check("a").into(),
            ],
            Differs("Its bridge plugin knows no key `mac`: it is tuning's, and comes after the gratuitous ARP of the other address."),
        ),
    ]
}
