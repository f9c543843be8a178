//! When ports come and go: pods that take over, DEL that knows little, rules of others.

use podwire_netns_tests::LabError;
use podwire_netns_tests::cases::Reference::{Differs, Lacks, Same};
use podwire_netns_tests::cases::{
    Case, Seen, Text, act, add, check, del, error, look, ok, reach, script, serve, unreachable,
};
use serde_json::{Value, json};

use crate::{add_web, another, plain, ports, row};

/// A host with rules of its own, in nftables and by iptables.
const FOREIGN: &str = "
nft add table inet mine '{ chain in { type filter hook input priority 0; tcp dport 22 accept; }; set s { type ipv4_addr; elements = { 192.0.2.1 }; }; }'
iptables -t nat -N MINE; iptables -t nat -A MINE -p tcp --dport 8080 -m comment --comment mine -j RETURN
iptables -A FORWARD -s 192.0.2.0/24 -j ACCEPT; ip6tables -A FORWARD -s 2001:db8::/32 -j DROP
nft list table inet mine > /run/mine; iptables -t nat -S MINE >> /run/mine
iptables -S FORWARD >> /run/mine; ip6tables -S FORWARD >> /run/mine";
const SAME: &str = "
nft list table inet mine > /run/now; iptables -t nat -S MINE >> /run/now
iptables -S FORWARD >> /run/now; ip6tables -S FORWARD >> /run/now
cmp /run/mine /run/now && echo same";

pub(crate) fn life() -> Vec<Case> {
    vec![
        row(
            "ADD, CHECK and DEL of a pod with both families",
            plain(),
            vec![
                add_web("a").into(),
                serve("a", "tcp [::]:80"),
                check("a")
                    .config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)]))
                    .reference(error(999, &["could not check ipv6"]))
                    .into(),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                del("a").config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)])).into(),
                unreachable("outside", "tcp 198.51.100.1:8080").into(),
                look("nft list ruleset | grep -c 8080 || true", Text::Is("0")).into(),
            ],
            Differs(
                "CHECK of Debian's package looks for the IPv4 rules in the IPv6 table, and so fails for every pod with both families.",
            ),
        ),
        row(
            "CHECK finds a port that was taken away",
            plain(),
            vec![
                add_web("a").into(),
                script("nft flush ruleset"),
                check("a")
                    .config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)]))
                    .fails(101, &["8080"])
                    .reference(error(999, &["CNI-DN"]))
                    .into(),
            ],
            Differs("It says which chain of iptables is gone."),
        ),
        row(
            "DEL without portMappings",
            plain(),
            vec![
                add_web("a").into(),
                serve("a", "tcp [::]:80"),
                del("a").into(),
                look("nft list ruleset | grep -c 'dport.8080' || true", Text::Is("0"))
                    .reference(Text::Lacks("x"))
                    .into(),
                unreachable("outside", "tcp 198.51.100.1:8080").into(),
            ],
            Differs(
                "A chain's portmap is not even called where the runtime names no ports, or removes them by the container's id.",
            ),
        ),
        row(
            "DEL without a netns and without prevResult",
            plain(),
            vec![
                add_web("a").into(),
                del("a").forgotten().env("CNI_NETNS", "").config(ports(&[("tcp", 8080, 80)])).into(),
                look("nft list ruleset | grep -c 8080 || true", Text::Is("0")).into(),
                look("ls /sys/class/net | grep -c -E 'pw|veth' || true", Text::Is("0"))
                    .reference(Text::Is("1"))
                    .into(),
            ],
            Differs("It finds the interface in the netns alone, and leaves both."),
        ),
        row(
            "the last UDP flow goes to the next pod on the port",
            plain(),
            vec![
                add_web("a").into(),
                serve("a", "udp [::]:80"),
                act("a flow that survives its pod", |scene| {
                    let to = "udp 198.51.100.1:8080".parse()?;
                    scene.client("outside")?.port(5353).hear(to).map(drop)
                })
                .into(),
                del("a").config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)])).into(),
                act("into the void", |scene| {
                    // A resolver retries all the time: this makes the entry that would stay.
                    let client =
                        scene.client("outside")?.port(5353).limit(std::time::Duration::from_millis(100));
                    let heard = client.hear("udp 198.51.100.1:8080".parse()?);
                    heard.err().map(drop).ok_or_else(|| LabError::new("a deleted pod answers"))
                })
                .into(),
                add_web("b").into(),
                serve("b", "udp [::]:80"),
                act("the same flow, the next pod", |scene| {
                    let heard = scene.client("outside")?.port(5353).hear("udp 198.51.100.1:8080".parse()?)?;
                    if heard.server == "b" { Ok(()) } else { Err(LabError::new(format!("{heard:?}"))) }
                })
                .into(),
            ],
            Same,
        ),
        row(
            "a port of a pod that lives",
            plain(),
            vec![
                add_web("a").into(),
                serve("a", "tcp [::]:80"),
                add("b")
                    .config(ports(&[("tcp", 8080, 80)]))
                    .fails(111, &["8080", "a"])
                    .reference(ok(&[]))
                    .into(),
                look("ip -n b -br link show eth0 2>&1 || true", Text::Has("does not exist"))
                    .reference(Text::Has("eth0"))
                    .into(),
                add("c")
                    .config(another())
                    .config(merged(another(), ports(&[("tcp", 8080, 80)])))
                    .fails(111, &["8080", "a"])
                    .reference(ok(&[]))
                    .into(),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                // Another protocol, another port, another address of the host: nobody's.
                add("b")
                    .config(ports(&[("udp", 8081, 80), ("tcp", 8081, 80)]))
                    .reference(error(999, &["already"]))
                    .into(),
            ],
            Differs(
                "It takes no notice; one of the two has the port, which one depends on the order of rules.",
            ),
        ),
        row(
            "a port of a pod that died",
            plain(),
            vec![
                add_web("a").into(),
                script("ip link del {port:a}"),
                add_web("b").into(),
                serve("b", "tcp [::]:80"),
                serve("b", "udp [::]:80"),
                reach("outside", "tcp 198.51.100.1:8080", "b", "198.51.100.2")
                    .reference(Seen::Nothing)
                    .into(),
                reach("outside", "udp [fd51::1]:8080", "b", "fd51::2").reference(Seen::Nothing).into(),
                // What is left of the dead one goes without harm.
                del("a").into(),
                reach("outside", "tcp 198.51.100.1:8080", "b", "198.51.100.2")
                    .reference(Seen::Nothing)
                    .into(),
            ],
            Differs("The dead pod's rules come first and keep the port until its DEL."),
        ),
        row(
            "ADD again with other ports",
            plain(),
            vec![
                add_web("a").into(),
                serve("a", "tcp [::]:80"),
                add("a").config(ports(&[("tcp", 8081, 80)])).into(),
                reach("outside", "tcp 198.51.100.1:8081", "a", "198.51.100.2").into(),
                unreachable("outside", "tcp 198.51.100.1:8080").into(),
                add_web("b").into(),
                serve("b", "tcp [::]:80"),
                reach("outside", "tcp 198.51.100.1:8080", "b", "198.51.100.2").into(),
            ],
            Lacks("Its ADD of what is there is an error."),
        ),
        row(
            "rules of others",
            plain(),
            vec![
                script(FOREIGN),
                add_web("a").into(),
                look(SAME, Text::Is("same")).into(),
                del("a").config(ports(&[("tcp", 8080, 80), ("udp", 8080, 80)])).into(),
                look(SAME, Text::Is("same")).into(),
            ],
            Same,
        ),
        row(
            "a runtime that writes keys with capitals",
            plain(),
            vec![
                add("a")
                    .config(json!({ "runtimeConfig": { "portMappings": [
                    { "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" },
                    { "HostPort": 8053, "ContainerPort": 53, "Protocol": "udp", "HostIP": "198.51.100.11" },
                ] } }))
                    .into(),
                serve("a", "tcp [::]:80"),
                serve("a", "udp [::]:53"),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                reach("outside", "udp 198.51.100.11:8053", "a", "198.51.100.2").into(),
                unreachable("outside", "udp 198.51.100.1:8053").into(),
            ],
            Same,
        ),
    ]
}

fn merged(mut config: Value, more: Value) -> Value {
    let more = more.as_object().cloned().unwrap_or_default();
    more.into_iter().for_each(|(key, value)| config[key.as_str()] = value);
    config
}
