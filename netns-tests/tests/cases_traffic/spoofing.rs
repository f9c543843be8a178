//! `macspoofchk` and `addressCheck`: what a pod may send as its own. Frames are sent raw from pod a; pod b on the same
//! bridge listens.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use podwire_netns_tests::cases::Reference::{Lacks, Same};
use podwire_netns_tests::cases::{
    Case, Reference, Scene, Step, Text, act, add, check, del, look, reach, serve,
};
use podwire_netns_tests::traffic::frames::{
    BROADCAST, Frames, Listener, Mac, arp, ethernet, icmp6, neighbour_advertisement, neighbour_solicitation,
    router_advertisement, tagged, udp4,
};
use podwire_netns_tests::{LabError, Result};
use serde_json::{Value, json};

use crate::{network, row};

const OWN4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 77);
const ALL4: Ipv4Addr = Ipv4Addr::BROADCAST;
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0x77);
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
const ALL6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 0x77];

const MAC_ALONE: &str = "It checks MAC addresses alone; a pod can still answer ARP for its neighbours.";

const IP4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const EXPERIMENT: u16 = 0x88b5;

/// What passes which check.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Passes {
    /// Every check: the pod's own.
    All,
    /// The check of MAC addresses.
    MacCheck,
    /// None.
    None,
}
use Passes::{All, MacCheck};

/// Frames of a pod with this MAC address: what it is, what passes it, and the frame, each with bytes of its own.
fn frames(mac: Mac) -> Vec<(&'static str, Passes, Vec<u8>)> {
    let nobody = [0; 6];
    let udp = |from, port, to, mark: &str| udp4((from, port), (to, port - 1), mark.as_bytes());
    let eth = |from: Mac, kind: u16, payload: &[u8]| ethernet(BROADCAST, from, kind, payload);
    let probe = Ipv4Addr::UNSPECIFIED;
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x77);
    // An echo request with some bytes, so that each is another.
    let echo = |mark: u8| [128, 0, 0, 0, 0, mark, 0, mark, mark, mark, mark, mark].to_vec();
    vec![
        ("its own address", All, eth(mac, IP4, &udp(OWN4, 1001, ALL4, "own"))),
        ("its own IPv6 address", All, eth(mac, IP6, &icmp6(OWN6, ALL6, &echo(1)))),
        ("a link-local address", All, eth(mac, IP6, &icmp6(LOCAL6, ALL6, &echo(2)))),
        ("ARP of its own", All, eth(mac, ARP, &arp(1, (mac, OWN4), (nobody, OTHER4)))),
        ("an ARP probe", All, eth(mac, ARP, &arp(1, (mac, probe), (nobody, OTHER4)))),
        ("a DHCP request", All, eth(mac, IP4, &udp(probe, 68, ALL4, "dhcp"))),
        (
            "duplicate address detection",
            All,
            eth(mac, IP6, &icmp6(Ipv6Addr::UNSPECIFIED, solicited, &neighbour_solicitation(OTHER6))),
        ),
        (
            "an advertisement of its own",
            All,
            eth(mac, IP6, &icmp6(OWN6, ALL6, &neighbour_advertisement(OWN6, mac))),
        ),
        ("another's MAC address", Passes::None, eth(OTHER_MAC, IP4, &udp(OWN4, 1002, ALL4, "mac"))),
        ("another's MAC address in IPv6", Passes::None, eth(OTHER_MAC, IP6, &icmp6(OWN6, ALL6, &echo(3)))),
        (
            "another's MAC address in an ARP frame",
            Passes::None,
            eth(OTHER_MAC, ARP, &arp(1, (OTHER_MAC, OWN4), (nobody, OTHER4))),
        ),
        ("another's IPv4 address", MacCheck, eth(mac, IP4, &udp(OTHER4, 1003, ALL4, "address"))),
        ("no IPv4 address", MacCheck, eth(mac, IP4, &udp(probe, 1004, ALL4, "nothing"))),
        ("another's IPv6 address", MacCheck, eth(mac, IP6, &icmp6(OTHER6, ALL6, &echo(4)))),
        ("no IPv6 address", MacCheck, eth(mac, IP6, &icmp6(Ipv6Addr::UNSPECIFIED, ALL6, &echo(5)))),
        ("ARP for another's address", MacCheck, eth(mac, ARP, &arp(2, (mac, OTHER4), (BROADCAST, OTHER4)))),
        (
            "ARP with another's MAC address",
            MacCheck,
            eth(mac, ARP, &arp(2, (OTHER_MAC, OWN4), (BROADCAST, OTHER4))),
        ),
        (
            "an advertisement of another's address",
            MacCheck,
            eth(mac, IP6, &icmp6(OWN6, ALL6, &neighbour_advertisement(OTHER6, mac))),
        ),
        (
            "an advertisement with another's MAC address",
            MacCheck,
            eth(mac, IP6, &icmp6(OWN6, ALL6, &neighbour_advertisement(OWN6, OTHER_MAC))),
        ),
        ("a router advertisement", MacCheck, eth(mac, IP6, &icmp6(LOCAL6, ALL6, &router_advertisement()))),
        ("a VLAN tag", MacCheck, eth(mac, VLAN, &tagged(5, IP4, &udp(OWN4, 1005, ALL4, "vlan")))),
        ("another protocol", MacCheck, eth(mac, EXPERIMENT, b"no internet protocol at all, but some bytes")),
    ]
}

/// Sends all frames from pod a: pod b hears those that pass, and no others.
fn only(passing: Passes) -> impl Fn(&Scene) -> Result<()> {
    move |scene| {
        let listener = Listener::open(scene.place("b")?)?;
        let sender = Frames::open(scene.place("a")?, "eth0")?;
        let frames = frames(sender.mac());
        for (_, _, frame) in &frames {
            sender.send(frame)?;
        }
        // Frames keep their order on a bridge: when this one is there, the others are or never will be.
        let last = ethernet(BROADCAST, sender.mac(), IP4, &udp4((OWN4, 999), (ALL4, 999), b"the last"));
        sender.send(&last)?;
        let mut heard = vec![false; frames.len()];
        let ended = listener.hears(Duration::from_secs(2), |heard_frame| {
            for (heard, (.., frame)) in heard.iter_mut().zip(&frames) {
                // The kernel takes a VLAN tag out of the frame; what follows it tells the frame apart.
                let content = if frame[12..14] == VLAN.to_be_bytes() { &frame[18..] } else { &frame[12..] };
                *heard |= heard_frame.windows(content.len()).any(|window| window == content)
                    && heard_frame[6..12] == frame[6..12];
            }
            heard_frame == last
        });
        let wrong: Vec<String> = frames
            .iter()
            .zip(&heard)
            .filter(|((_, passes, _), heard)| (*passes <= passing) != **heard)
            .map(|((name, ..), heard)| format!("{name} was {}heard", if *heard { "" } else { "not " }))
            .collect();
        if !ended {
            return Err(LabError::new(format!(
                "the last frame, its own, was not heard; {}",
                wrong.join(", ")
            )));
        }
        if wrong.is_empty() { Ok(()) } else { Err(LabError::new(wrong.join(", "))) }
    }
}

/// Servers for what a pod does all the time.
fn servers() -> Vec<Step> {
    ["a", "b", "outside"].map(|place| serve(place, "tcp [::]:80")).into()
}

/// What a pod does all the time.
fn ordinary() -> Vec<Step> {
    vec![
        reach("a", "tcp 10.1.0.3:80", "b", "10.1.0.2").into(),
        reach("a", "tcp [fd01::3]:80", "b", "fd01::2").into(),
        reach("b", "tcp 10.1.0.2:80", "a", "10.1.0.3").into(),
        reach("b", "tcp [fd01::2]:80", "a", "fd01::3").into(),
        reach("a", "tcp 198.51.100.2:80", "outside", "10.1.0.2").into(),
        reach("outside", "tcp [fd01::2]:80", "a", "fd51::2").into(),
    ]
}

fn checked(name: &'static str, keys: Value, passing: Passes, reference: Reference) -> Case {
    let mut steps: Vec<Step> = vec![add("a").config(keys.clone()).into(), add("b").into()];
    steps.extend(servers());
    steps.extend(ordinary());
    steps.push(act("only what passes", only(passing)).into());
    if passing == All {
        // None of its lies was believed.
        steps.extend(ordinary());
    }
    steps.push(check("a").config(keys.clone()).into());
    steps.push(del("a").config(keys).into());
    steps.push(
        look("nft list ruleset | grep -c -E '{port:b}|10.1.0.2|fd01::2' || true", Text::Is("0")).into(),
    );
    row(name, network(json!({})), steps, reference)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        checked("neither", json!({}), Passes::None, Same),
        checked("macspoofchk", json!({ "macspoofchk": true }), MacCheck, Same),
        checked("addressCheck", json!({ "addressCheck": true }), All, Lacks(MAC_ALONE)),
        row(
            "a pod that is checked and one that is not",
            network(json!({})),
            vec![
                add("b").config(json!({ "addressCheck": true })).into(),
                add("a")
                    .config(json!({ "args": { "cni": { "ips": ["10.1.0.2"] } } }))
                    .fails(107, &["10.1.0.2"])
                    .into(),
                add("c").into(),
                act("the other sends what it likes", |scene| {
                    let listener = Listener::open(scene.place("b")?)?;
                    let sender = Frames::open(scene.place("c")?, "eth0")?;
                    let frame =
                        ethernet(BROADCAST, OTHER_MAC, EXPERIMENT, b"anything goes from the other pod");
                    sender.send(&frame)?;
                    let heard =
                        listener.hears_bytes(Duration::from_secs(2), b"anything goes from the other pod");
                    if heard { Ok(()) } else { Err(LabError::new("a pod without a check is checked")) }
                })
                .into(),
            ],
            Lacks(MAC_ALONE),
        ),
    ]
}
