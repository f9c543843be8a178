//! From where a port is reached, and on which of the node's addresses.

use podwire_netns_tests::cases::Reference::{Differs, Lacks, Same};
use podwire_netns_tests::cases::{
    Case, Seen, Step, Text, act, add, error, look, reach, script, serve, unreachable,
};
use podwire_netns_tests::traffic::Server;
use podwire_netns_tests::traffic::frames::{Frames, ethernet, udp4};
use podwire_netns_tests::{LabError, wait_for};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::{TOO_OLD, add_web, another, on, plain, ports, row, text};

/// Eight mappings on each kind of host address.
pub(crate) fn hosts() -> Vec<Case> {
    let node = ["198.51.100.1", "198.51.100.11", "[fd51::1]"];
    let kinds: [(&str, &str, [bool; 3]); 5] = [
        ("no hostIP", "", [true, true, true]),
        ("an IPv4 hostIP", "198.51.100.11", [false, true, false]),
        ("hostIP 0.0.0.0", "0.0.0.0", [true, true, false]),
        ("an IPv6 hostIP", "fd51::1", [false, false, true]),
        ("hostIP ::", "::", [false, false, true]),
    ];
    kinds
        .into_iter()
        .map(|(name, host_ip, reached)| {
            let all: Vec<(&str, u64, u64)> =
                (1..=4).flat_map(|n| [("tcp", 8080 + n, 80 + n), ("udp", 9080 + n, 80 + n)]).collect();
            let asked = on(host_ip, &all);
            let mut steps: Vec<Step> = vec![add("a").config(asked).into()];
            for (protocol, host, container) in all {
                steps.push(serve("a", text(format!("{protocol} [::]:{container}"))));
                for (address, reached) in node.iter().zip(reached) {
                    let to = text(format!("{protocol} {address}:{host}"));
                    let peer = if address.contains(':') { "fd51::2" } else { "198.51.100.2" };
                    steps.push(match reached {
                        true => reach("outside", to, "a", peer).into(),
                        false => unreachable("outside", to).into(),
                    });
                }
            }
            row(text(format!("eight ports, {name}")), plain(), steps, Same)
        })
        .collect()
}

/// From everywhere, by every address.
fn from_everywhere(protocol: &'static str) -> Vec<Step> {
    let to = |address: &str| text(format!("{protocol} {address}:8080"));
    let mut steps: Vec<Step> = vec![
        add_web("a").into(),
        add("b").into(),
        add("c").config(another()).into(),
        serve("a", text(format!("{protocol} [::]:80"))),
        reach("outside", to("198.51.100.1"), "a", "198.51.100.2").into(),
        reach("outside", to("[fd51::1]"), "a", "fd51::2").into(),
    ];
    for address in ["198.51.100.1", "10.1.0.1", "10.2.0.1"] {
        steps.push(reach("node", to(address), "a", address).into());
    }
    // Of two addresses of one subnet the kernel sends from the first.
    steps.push(reach("node", to("198.51.100.11"), "a", "198.51.100.1").into());
    for address in ["fd51::1", "fd01::1", "fd02::1"] {
        steps.push(reach("node", to(&format!("[{address}]")), "a", address).into());
    }
    for address in ["127.0.0.1", "127.9.9.9"] {
        steps.push(reach("node", to(address), "a", "10.1.0.1").into());
    }
    // The kernel lets nothing with the source ::1 leave by another interface, whatever NAT makes of it later.
    steps.push(unreachable("node", to("[::1]")).into());
    // From a pod of the same bridge, and from itself: answers must come back through the node.
    for pod in ["b", "a"] {
        for address in ["198.51.100.1", "10.1.0.1"] {
            steps.push(reach(pod, to(address), "a", "10.1.0.1").into());
        }
        for address in ["[fd51::1]", "[fd01::1]"] {
            steps.push(reach(pod, to(address), "a", "fd01::1").into());
        }
    }
    for address in ["198.51.100.1", "10.2.0.1", "10.1.0.1"] {
        steps.push(reach("c", to(address), "a", "10.2.0.2").into());
    }
    steps.push(reach("c", to("[fd51::1]"), "a", "fd02::2").into());
    steps
}

/// From everywhere, and with every way of hiding who comes.
pub(crate) fn access() -> Vec<Case> {
    let hidden = "198.51.100.1:8080";
    vec![
        row("TCP from everywhere", plain(), from_everywhere("tcp"), Same),
        row("UDP from everywhere", plain(), from_everywhere("udp"), Same),
        row(
            "from the pod itself, without hairpinMode",
            {
                let mut config = plain();
                config["hairpinMode"] = json!(false);
                config
            },
            vec![
                add_web("a").into(),
                serve("a", "tcp [::]:80"),
                act("hairpin", |scene| {
                    for to in ["tcp 198.51.100.1:8080", "tcp [fd51::1]:8080"] {
                        scene.client("a")?.hear(to.parse()?)?;
                    }
                    Ok(())
                })
                .podwire_alone()
                .into(),
            ],
            Differs("With bridge netfilter it needs hairpinMode; podwire sets it on the port of a pod that has ports."),
        ),
        row(
            "snat false",
            plain(),
            vec![
                add_web("a").config(json!({ "snat": false, "runtimeConfig": ports(&[("tcp", 8080, 80)])["runtimeConfig"] })).into(),
                add("c").config(another()).into(),
                serve("a", "tcp [::]:80"),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                reach("outside", "tcp [fd51::1]:8080", "a", "fd51::2").into(),
                reach("node", "tcp 198.51.100.1:8080", "a", "198.51.100.1").into(),
                reach("c", "tcp 198.51.100.1:8080", "a", "10.2.0.2").into(),
                unreachable("node", "tcp 127.0.0.1:8080").into(),
                unreachable("a", "tcp 198.51.100.1:8080").into(),
                look("cat /proc/sys/net/ipv4/conf/br0/route_localnet", Text::Is("0")).into(),
            ],
            Same,
        ),
        row(
            "masqAll",
            plain(),
            vec![
                add("a").config(json!({ "masqAll": true, "runtimeConfig": ports(&[("tcp", 8080, 80), ("udp", 8080, 80)])["runtimeConfig"] })).into(),
                add("c").config(another()).into(),
                serve("a", "tcp [::]:80"),
                serve("a", "udp [::]:80"),
                reach("outside", text(format!("tcp {hidden}")), "a", "10.1.0.1").reference(Seen::As("a", "any")).into(),
                reach("outside", text(format!("udp {hidden}")), "a", "10.1.0.1").reference(Seen::As("a", "any")).into(),
                reach("outside", "tcp [fd51::1]:8080", "a", "fd01::1").reference(Seen::As("a", "any")).into(),
                reach("c", text(format!("tcp {hidden}")), "a", "10.1.0.1").reference(Seen::As("a", "any")).into(),
                reach("node", "tcp 127.0.0.1:8080", "a", "10.1.0.1").into(),
                // Not by its port on the host, so nothing is hidden.
                reach("c", "tcp 10.1.0.2:80", "a", "10.2.0.2").into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "conditions in nft's words",
            plain(),
            vec![
                add("a").config(json!({
                    "conditionsV4": ["ip saddr 198.51.100.3"], "conditionsV6": ["ip6 saddr != fd51::3"],
                    "runtimeConfig": ports(&[("tcp", 8080, 80), ("udp", 8080, 80)])["runtimeConfig"]
                })).reference(error(999, &["iptables"])).into(),
                act("conditions hold", |scene| {
                    scene.serve("a", "tcp [::]:80")?;
                    scene.serve("a", "udp [::]:80")?;
                    for protocol in ["tcp", "udp"] {
                        for (from, address, allowed) in [
                            ("198.51.100.2", "198.51.100.1", false),
                            ("198.51.100.3", "198.51.100.1", true),
                            ("fd51::2", "[fd51::1]", true),
                            ("fd51::3", "[fd51::1]", false),
                        ] {
                            let client = scene.client(&format!("outside@{from}"))?.limit(Duration::from_millis(if allowed { 3000 } else { 400 }));
                            let heard = client.hear(format!("{protocol} {address}:8080").parse()?);
                            if heard.is_ok() != allowed {
                                return Err(LabError::new(format!("{protocol} from {from}: {heard:?}")));
                            }
                        }
                    }
                    Ok(())
                })
                .podwire_alone()
                .into(),
            ],
            Differs("Debian's package has conditions in iptables' words alone; newer ones take either, by backend."),
        ),
        row(
            "[::1] is refused at once, so that clients go on to 127.0.0.1",
            plain(),
            vec![
                add_web("a").into(),
                act("a connection to [::1]", |scene| {
                    let began = Instant::now();
                    for protocol in ["tcp", "udp"] {
                        let heard = scene.client("node")?.hear(format!("{protocol} [::1]:8080").parse()?);
                        let took = began.elapsed();
                        if heard.is_ok() || took > Duration::from_millis(500) {
                            return Err(LabError::new(format!("{protocol}: {heard:?} after {took:?}")));
                        }
                    }
                    Ok(())
                })
                .podwire_alone()
                .into(),
            ],
            Differs("It lets the client wait until it gives up: there is no route_localnet in IPv6."),
        ),
        row(
            "several conditions, all of which must hold",
            plain(),
            vec![
                add("a").config(json!({
                    "conditionsV4": ["iifname", "\"up*\"", "ip saddr { 198.51.100.3, 192.0.2.0/24 }", "tcp sport 1024-65535"],
                    "runtimeConfig": ports(&[("tcp", 8080, 80), ("tcp", 8081, 80)])["runtimeConfig"]
                })).into(),
                serve("a", "tcp [::]:80"),
                reach("outside@198.51.100.3", "tcp 198.51.100.1:8080", "a", "198.51.100.3").into(),
                reach("outside@198.51.100.3", "tcp 198.51.100.1:8081", "a", "198.51.100.3").into(),
                unreachable("outside", "tcp 198.51.100.1:8080").into(),
                unreachable("node", "tcp 198.51.100.1:8080").into(),
                // Without conditions of its own the other family has none.
                reach("outside", "tcp [fd51::1]:8080", "a", "fd51::2").into(),
            ],
            Lacks("Debian's package has conditions in iptables' words alone; newer ones take either, by backend."),
        ),
        row(
            "keys that podwire has no use for",
            plain(),
            vec![
                add("a").config(json!({ "markMasqBit": 14, "backend": "iptables", "runtimeConfig": ports(&[("tcp", 8080, 80)])["runtimeConfig"] })).into(),
                serve("a", "tcp [::]:80"),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                reach("a", "tcp 198.51.100.1:8080", "a", "10.1.0.1").into(),
            ],
            Same,
        ),
        row(
            "localhost stays closed to pods",
            plain(),
            vec![
                add_web("a").into(),
                look("cat /proc/sys/net/ipv4/conf/br0/route_localnet", Text::Is("1")).into(),
                act("a pod sends to 127.0.0.1 of its node", |scene| {
                    let server = Server::start(scene.place("node")?, "udp 127.0.0.1:7777".parse()?)?;
                    let frames = Frames::open(scene.place("a")?, "eth0")?;
                    let bridge = Frames::open(scene.place("node")?, "br0")?.mac();
                    let (pod, localhost) = (Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::LOCALHOST);
                    for from in [pod, localhost] {
                        let packet = udp4((from, 7777), (localhost, 7777), b"from a pod");
                        frames.send(&ethernet(bridge, frames.mac(), 0x0800, &packet))?;
                    }
                    if wait_for(Duration::from_millis(300), || server.served() > 0) {
                        return Err(LabError::new("the node's localhost heard a pod"));
                    }
                    Ok(())
                })
                .podwire_alone()
                .into(),
            ],
            Differs("route_localnet opens 127.0.0.0/8 of the node to its pods; podwire drops what comes there from elsewhere."),
        ),
        row(
            "hostIP ::1 and 127.0.0.1",
            plain(),
            vec![
                add("a").config(on("127.0.0.1", &[("tcp", 8080, 80)])).into(),
                serve("a", "tcp [::]:80"),
                reach("node", "tcp 127.0.0.1:8080", "a", "10.1.0.1").into(),
                unreachable("node", "tcp 198.51.100.1:8080").into(),
                unreachable("outside", "tcp 198.51.100.1:8080").into(),
            ],
            Same,
        ),
        row(
            "ports that only pass through",
            plain(),
            vec![
                add_web("a").into(),
                add("c").config(another()).into(),
                serve("outside", "tcp [::]:8080"),
                serve("c", "tcp [::]:8080"),
                // To another host, and to another pod: a host port is not theirs.
                reach("c", "tcp 198.51.100.2:8080", "outside", "10.2.0.2").into(),
                reach("outside", "tcp 10.2.0.2:8080", "c", "198.51.100.2").into(),
                reach("a", "tcp [fd02::2]:8080", "c", "fd01::2").into(),
            ],
            Same,
        ),
        row(
            "SCTP rules",
            plain(),
            vec![
                script("true"),
                add("a").config(ports(&[("sctp", 8080, 80)])).into(),
                look("nft list ruleset", Text::Has("sctp")).into(),
            ],
            Same,
        ),
        row(
            "200 ports",
            plain(),
            vec![
                add("a").config(ports(&(0..100).flat_map(|n| [("tcp", 20000 + n, 80), ("udp", 20000 + n, 80)]).collect::<Vec<_>>())).into(),
                serve("a", "tcp [::]:80"),
                serve("a", "udp [::]:80"),
                reach("outside", "tcp 198.51.100.1:20000", "a", "198.51.100.2").into(),
                reach("outside", "tcp [fd51::1]:20099", "a", "fd51::2").into(),
                reach("outside", "udp 198.51.100.1:20050", "a", "198.51.100.2").into(),
                unreachable("outside", "tcp 198.51.100.1:20100").into(),
            ],
            Same,
        ),
        row(
            "IPv4 alone",
            {
                let mut config = plain();
                config["ipam"] = json!({ "type": "host-local", "subnet": "10.1.0.0/24" });
                config
            },
            vec![
                add_web("a").into(),
                serve("a", "tcp 0.0.0.0:80"),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                reach("node", "tcp 127.0.0.1:8080", "a", "10.1.0.1").into(),
                unreachable("outside", "tcp [fd51::1]:8080").into(),
            ],
            Same,
        ),
    ]
}
