//! `ipMasq`: what hides behind the node's address and what must not.

use podwire_netns_tests::cases::Reference::{Differs, Lacks, Same};
use podwire_netns_tests::cases::{
    Case, Expect, Seen, Text, add, check, del, error, look, ok, reach, script, serve,
};
use serde_json::json;

use crate::{another, merged, network, row};

const TOO_OLD: &str = "Debian's package (1.1.1 of the plugins) knows iptables alone.";

pub(crate) fn cases() -> Vec<Case> {
    let masquerade = || network(json!({ "ipMasq": true }));
    vec![
        row(
            "to the outside, and not between pods",
            masquerade(),
            vec![
                add("a").into(),
                add("b").into(),
                serve("outside", "tcp [::]:80"),
                serve("outside", "udp 198.51.100.2:80"),
                serve("b", "tcp [::]:80"),
                serve("node", "tcp [::]:80"),
                reach("a", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
                reach("a", "udp 198.51.100.2:80", "outside", "198.51.100.1").into(),
                reach("a", "tcp [fd51::2]:80", "outside", "fd51::1").into(),
                reach("a", "tcp 10.1.0.3:80", "b", "10.1.0.2").into(),
                reach("a", "tcp [fd01::3]:80", "b", "fd01::2").into(),
                reach("a", "tcp 10.1.0.1:80", "node", "10.1.0.2").into(),
                reach("a", "tcp 198.51.100.1:80", "node", "10.1.0.2").into(),
                // What comes in is not hidden.
                reach("outside", "tcp 10.1.0.3:80", "b", "198.51.100.2").into(),
                reach("node", "tcp 10.1.0.3:80", "b", "10.1.0.1").into(),
            ],
            Same,
        ),
        row(
            "not asked for",
            network(json!({})),
            vec![
                add("a").into(),
                add("b").config(json!({ "ipMasq": true })).into(),
                serve("outside", "tcp [::]:80"),
                reach("a", "tcp 198.51.100.2:80", "outside", "10.1.0.2").into(),
                reach("b", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
            ],
            Same,
        ),
        row(
            "to another network of the node",
            masquerade(),
            vec![
                add("a").into(),
                add("c").config(another()).into(),
                serve("c", "tcp [::]:80"),
                reach("a", "tcp 10.2.0.2:80", "c", "10.2.0.1").into(),
            ],
            Same,
        ),
        row(
            "clusterRanges",
            network(json!({ "ipMasq": true, "clusterRanges": ["10.0.0.0/8", "fd02::/16"] })),
            vec![
                add("a").into(),
                add("c").config(another()).into(),
                serve("c", "tcp [::]:80"),
                serve("outside", "tcp [::]:80"),
                reach("a", "tcp 10.2.0.2:80", "c", "10.1.0.2").into(),
                reach("a", "tcp [fd02::2]:80", "c", "fd01::2").into(),
                reach("a", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
            ],
            Lacks("It masquerades what leaves the pod's own subnet, pods of other nodes included."),
        ),
        row(
            "gone after DEL",
            masquerade(),
            vec![
                add("a").into(),
                look("nft list ruleset", Text::Has("10.1.0.2")).into(),
                del("a").into(),
                look("nft list ruleset", Text::Lacks("10.1.0.2")).into(),
                look("nft list ruleset", Text::Lacks("fd01::2")).into(),
            ],
            Same,
        ),
        row(
            "gone after DEL without the netns",
            masquerade(),
            vec![
                add("a").into(),
                script("umount /run/netns/a; rm /run/netns/a"),
                del("a").forgotten().into(),
                look("nft list ruleset | grep -c 10.1.0.2 || true", Text::Is("0")).reference(Text::Is("1")).into(),
            ],
            Differs("It learns the addresses from the netns, and leaves the rules for ever once that is gone."),
        ),
        row(
            "what kube-proxy has marked is its own to masquerade",
            masquerade(),
            vec![
                script(
                    "nft 'table ip kube { chain c { type filter hook prerouting priority mangle; ip saddr 10.1.0.2 meta mark set 0x4000; }; }'",
                ),
                add("a").into(),
                serve("outside", "tcp [::]:80"),
                reach("a", "tcp 198.51.100.2:80", "outside", "10.1.0.2")
                    .reference(Seen::As("outside", "198.51.100.1"))
                    .into(),
            ],
            Differs("It does not look at the mark; two rules then compete for one connection."),
        ),
        row(
            "ipMasqBackend",
            masquerade(),
            vec![
                add("a").config(json!({ "ipMasqBackend": "nftables" })).into(),
                add("b").config(json!({ "ipMasqBackend": "iptables" })).into(),
                add("c").config(merged(another(), json!({ "ipMasqBackend": "ipchains" }))).fails(7, &["ipMasqBackend", "ipchains"]).into(),
                serve("outside", "tcp [::]:80"),
                reach("a", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
                reach("b", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
            ],
            Lacks(TOO_OLD),
        ),
        row(
            "source ports at random",
            masquerade(),
            vec![
                add("a").into(),
                look("nft list ruleset", Text::Has("fully-random")).into(),
                del("a").into(),
                add("a").config(json!({ "masqueradeRandom": false })).into(),
                look("nft list chain inet podwire $(nft list map inet podwire masquerade4 | grep -o 'masq-[0-9a-f]*' | head -1)", Text::Lacks("random")).into(),
                serve("outside", "tcp [::]:80"),
                reach("a", "tcp 198.51.100.2:80", "outside", "198.51.100.1").into(),
            ],
            Lacks("It leaves the choice to iptables, whose default lets two connections race for one port."),
        ),
        row(
            "CHECK finds rules that are gone",
            masquerade(),
            vec![
                add("a").into(),
                check("a").into(),
                script("nft flush ruleset"),
                check("a").fails(101, &["masquerade"]).reference(ok(&[])).into(),
                add("a").reference(error(999, &["already exists"])).into(),
                check("a").reference(Expect::Anything).into(),
            ],
            Differs("It does not look at rules."),
        ),
    ]
}
