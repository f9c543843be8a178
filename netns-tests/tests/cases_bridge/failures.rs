//! What is left of a failed ADD, and what CHECK sees.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Text, Versions, add, check, error, look, ok, script};
use serde_json::json;

use crate::{HALF_MADE, plain, row};

pub(crate) fn failures() -> Vec<Case> {
    vec![
        row(
            "an interface of that name in the pod is an error that names it",
            plain(),
            vec![
                add("a").ifname("eth1").into(),
                script("ip -n a link add eth0 type vxlan id 7 dstport 4789"),
                add("a").fails(105, &["eth0", "exists"]).into(),
                look("ip -n a -d -o link show eth0", Text::Has("vxlan")).into(),
                look("ip -o link show type veth | wc -l", Text::Is("1")).into(),
                script("ip -n a link del eth0"),
            ],
            Same,
        ),
        row(
            "a failure after IPAM gives the address back",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/30" } }),
            vec![
                script(
                    "ip link add br0 address 02:00:00:00:00:77 type bridge; ip address add 10.7.0.1/24 dev br0",
                ),
                add("a").fails(104, &["br0"]).into(),
                add("b").fails(104, &["br0"]).into(),
                script("ip address del 10.7.0.1/24 dev br0"),
                // The only address of the range.
                add("c").addresses(&["10.1.0.2/30"]).into(),
                look("ip -o link show type veth | wc -l", Text::Is("1")).reference(Text::Is("3")).into(),
            ],
            Differs("It gives the address back and leaves the interface."),
        ),
        row(
            "a failure after everything but the routes gives the address back",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/30",
                "routes": [{ "dst": "192.168.0.0/16", "gw": "10.77.0.1" }] } }),
            vec![
                add("a").fails(100, &["192.168.0.0"]).into(),
                add("b").fails(100, &["192.168.0.0"]).into(),
                add("c").config(json!({ "ipam": { "routes": null } })).addresses(&["10.1.0.2/30"]).into(),
                look("ip -o link show type veth | wc -l", Text::Is("1")).reference(Text::Is("3")).into(),
            ],
            Differs("It gives the address back and leaves the interface that has it."),
        ),
        row(
            "an exhausted range leaves nothing behind",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/30" } }),
            vec![
                add("a").into(),
                add("b").fails(FULL, &["no IP addresses available in range set: 10.1.0.1-10.1.0.2"]).into(),
                look("ip -n b -o link show type veth; ip -o link show type veth | wc -l", Text::Is("1"))
                    .reference(Text::Has("eth0"))
                    .into(),
            ],
            Differs(HALF_MADE),
        ),
    ]
}

/// The code of an exhausted range.
const FULL: u64 = 107;

/// What somebody else does to an attachment, and what CHECK says then.
pub(crate) fn tampering() -> Vec<Case> {
    let tampered = |name, how: &'static str, says: &'static [&'static str]| Case {
        versions: Versions::From("0.4.0"),
        ..row(
            name,
            json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![add("a").into(), check("a").into(), script(how), check("a").fails(101, says).into()],
            Same,
        )
    };
    vec![
        tampered("CHECK misses an address", "ip -n a address del 10.1.0.2/24 dev eth0", &["10.1.0.2"]),
        tampered("CHECK misses a route", "ip -n a route del default", &["route", "0.0.0.0"]),
        tampered("CHECK misses the interface", "ip -n a link del eth0", &["eth0"]),
        tampered("CHECK misses the bridge", "ip link del br0", &["br0"]),
        tampered(
            "CHECK misses the port",
            "ip link set $(ip -br link show master br0 | cut -d@ -f1) nomaster",
            &["br0"],
        ),
        row(
            "CHECK sees a MAC address that was changed",
            plain(),
            vec![
                add("a").into(),
                script(
                    "ip -n a link set eth0 down; ip -n a link set eth0 address 02:00:00:00:00:99 up; ip -n a route add default via 10.1.0.1",
                ),
                check("a").fails(101, &["02:00:00:00:00:99"]).into(),
            ],
            Same,
        ),
        row(
            "CHECK sees an interface that is down",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } }),
            vec![
                add("a").into(),
                script("ip -n a link set eth0 down"),
                check("a")
                    .fails(101, &["eth0", "down"])
                    .reference(error(999, &["Failed to find Gateway"]))
                    .into(),
                script(
                    "ip -n a link set eth0 up; ip link set $(ip -br link show master br0 | cut -d@ -f1) down",
                ),
                check("a").fails(101, &["down"]).reference(ok(&[])).into(),
            ],
            Differs(
                "It sees what the pod's interface lost when it went down, not that it is down, and nothing of the host's end.",
            ),
        ),
        row(
            "CHECK leaves routes alone that are not of this result",
            plain(),
            vec![
                add("a").into(),
                script(
                    "ip -n a route add 192.168.0.0/16 via 10.1.0.9; ip -n a address add 10.99.0.1/24 dev eth0",
                ),
                check("a").into(),
            ],
            Same,
        ),
    ]
}
