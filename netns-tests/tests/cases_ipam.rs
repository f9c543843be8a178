//! Addresses: ranges, requests, order, exhaustion, and what an existing host-local directory means.
//!
//! The rows about addresses alone are replayed a second time with `podwire-ipam` under the reference `bridge`.

use podwire_netns_tests::cases::{
    Case, Plugin, Reference, Step, Subject, Text, VERSIONS, Versions, Want, add, check, del, differences,
    error, look, ok, replay, script, verb,
};
use podwire_netns_tests::uses_reference;
use serde_json::{Value, json};

use Reference::{Differs, Same};

#[test]
fn ipam_cases() {
    let mut cases = addresses();
    cases.extend(attachments());
    cases.extend(alone());
    if let Err(report) = replay(&cases, Subject::from_environment()) {
        panic!("{report}");
    }
}

/// With `PODWIRE_REFERENCE=1` there is nothing of podwire to be shown, and the reference's own IPAM takes its place.
#[test]
fn podwire_ipam_under_the_reference_bridge() {
    let subject = if uses_reference() { Subject::Reference } else { Subject::IpamUnderBridge };
    if let Err(report) = replay(&addresses(), subject) {
        panic!("{report}");
    }
}

#[test]
fn ipam_differences_are_documented() {
    let mut cases = addresses();
    cases.extend(attachments());
    cases.extend(alone());
    assert_eq!(differences("IPAM", &cases), Ok(()));
}

const ONE: &[&str] = &["1.0.0"];

/// The code of an address that is not to be had.
const REFUSED: u64 = 107;

fn row(name: &'static str, ipam: Value, steps: Vec<Step>, reference: Reference) -> Case {
    let mut ipam = ipam;
    ipam["type"] = json!("host-local");
    let config = json!({ "bridge": "br0", "ipam": ipam });
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config, steps, reference }
}

fn one_range() -> Value {
    json!({ "subnet": "10.1.0.0/24" })
}

/// Rows about addresses, whatever plugin makes the interface.
fn addresses() -> Vec<Case> {
    let mut cases = ranges();
    cases.extend(requests());
    cases.extend(mistakes());
    cases.extend(taken_over());
    cases
}

fn ranges() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::From("0.3.0"),
            ..row(
                "two range sets give one address each",
                json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/24" }]] }),
                vec![
                    add("a")
                        .gives(&[
                            Want::Addresses(&["10.1.0.2/24", "10.2.0.2/24"]),
                            Want::Gateways(&["10.1.0.1", "10.2.0.1"]),
                        ])
                        .into(),
                    look("ip -n a -4 -br address show eth0", Text::Has("10.1.0.2/24 10.2.0.2/24")).into(),
                    add("b").addresses(&["10.1.0.3/24", "10.2.0.3/24"]).into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::All,
            ..row(
                "IPv6 alone",
                json!({ "ranges": [[{ "subnet": "fd01::/64" }]] }),
                vec![
                    add("a").gives(&[Want::Addresses(&["fd01::2/64"]), Want::Gateways(&["fd01::1"])]).into(),
                    add("b").addresses(&["fd01::3/64"]).into(),
                ],
                Same,
            )
        },
        row(
            "ranges of one set follow each other",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/30" }, { "subnet": "10.2.0.0/30" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.2/30"]), Want::Gateways(&["10.1.0.1"])]).into(),
                add("b").gives(&[Want::Addresses(&["10.2.0.2/30"]), Want::Gateways(&["10.2.0.1"])]).into(),
                del("a").into(),
                add("c").addresses(&["10.1.0.2/30"]).into(),
            ],
            Same,
        ),
        row(
            "a /29 gives .2 to .6, goes round, and never gives .7",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                add("a").addresses(&["10.1.0.2/29"]).into(),
                add("b").addresses(&["10.1.0.3/29"]).into(),
                add("c").addresses(&["10.1.0.4/29"]).into(),
                add("d").addresses(&["10.1.0.5/29"]).into(),
                add("e").addresses(&["10.1.0.6/29"]).into(),
                del("b").into(),
                add("f").addresses(&["10.1.0.3/29"]).into(),
                del("e").into(),
                add("g").addresses(&["10.1.0.6/29"]).into(),
            ],
            Same,
        ),
        row(
            "an IPv6 range ends at all ones",
            json!({ "subnet": "fd01::/126" }),
            vec![
                add("a").addresses(&["fd01::2/126"]).into(),
                add("b").addresses(&["fd01::3/126"]).into(),
                add("c").fails(REFUSED, &["no IP addresses available in range set: fd01::1-fd01::3"]).into(),
                script("ip -n c link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a full range",
            json!({ "subnet": "10.1.0.0/30" }),
            vec![
                add("a").addresses(&["10.1.0.2/30"]).into(),
                add("b")
                    .fails(REFUSED, &["no IP addresses available in range set: 10.1.0.1-10.1.0.2"])
                    .into(),
                script("ip -n b link del eth0 || true"),
                del("a").into(),
                add("b").addresses(&["10.1.0.2/30"]).into(),
            ],
            Same,
        ),
        row(
            "after a release comes the next address, not the freed one",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("b").addresses(&["10.1.0.3/24"]).into(),
                del("b").into(),
                del("a").into(),
                add("c").addresses(&["10.1.0.4/24"]).into(),
            ],
            Same,
        ),
        row(
            "a freed address rests while another is free",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                add("a").addresses(&["10.1.0.2/29"]).into(),
                add("b").addresses(&["10.1.0.3/29"]).into(),
                add("c").addresses(&["10.1.0.4/29"]).into(),
                add("d").addresses(&["10.1.0.5/29"]).into(),
                del("d").into(),
                del("a").into(),
                add("e").addresses(&["10.1.0.6/29"]).into(),
                // Nothing but the two freed ones is left: the one that has rested longer comes first.
                add("f")
                    .addresses(&["10.1.0.5/29"])
                    .reference(ok(&[Want::Addresses(&["10.1.0.2/29"])]))
                    .into(),
                add("g")
                    .addresses(&["10.1.0.2/29"])
                    .reference(ok(&[Want::Addresses(&["10.1.0.5/29"])]))
                    .into(),
            ],
            Differs(
                "It knows only the order of addresses. podwire gives the address that has been free for longest, so that \
                 packets for a pod that is gone do not reach the next.",
            ),
        ),
        row(
            "rangeStart and rangeEnd",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.11" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.10/24"]), Want::Gateways(&["10.1.0.1"])]).into(),
                add("b").addresses(&["10.1.0.11/24"]).into(),
                add("c").fails(REFUSED, &["10.1.0.10-10.1.0.11"]).into(),
                script("ip -n c link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "the gateway is passed over wherever it is",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "gateway": "10.1.0.11" }]] }),
            vec![
                add("a").gives(&[Want::Addresses(&["10.1.0.10/24"]), Want::Gateways(&["10.1.0.11"])]).into(),
                add("b").addresses(&["10.1.0.12/24"]).into(),
            ],
            Same,
        ),
        row(
            "the legacy subnet with its rangeStart, rangeEnd and gateway comes before ranges",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.30", "gateway": "10.1.0.254",
                "ranges": [[{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .gives(&[
                        Want::Addresses(&["10.1.0.20/24", "fd01::2/64"]),
                        Want::Gateways(&["10.1.0.254", "fd01::1"]),
                    ])
                    .into(),
            ],
            Same,
        ),
        row(
            "the ipRanges of the runtime come before the configuration's",
            one_range(),
            vec![
                add("a")
                    .config(json!({ "runtimeConfig": { "ipRanges": [[{ "subnet": "10.8.0.0/24" }]] } }))
                    .addresses(&["10.8.0.2/24", "10.1.0.2/24"])
                    .into(),
            ],
            Same,
        ),
        row(
            "routes go into the result",
            json!({ "subnet": "10.1.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "10.9.0.0/16", "gw": "10.1.0.9" }] }),
            vec![add("a").gives(&[Want::Routes(&["0.0.0.0/0", "10.9.0.0/16 via 10.1.0.9"])]).into()],
            Same,
        ),
        row(
            "one container on two networks: DEL of one leaves the other",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("a")
                    .ifname("net1")
                    .config(json!({ "name": "other", "bridge": "br1" }))
                    .addresses(&["10.1.0.2/24"])
                    .into(),
                del("a").ifname("net1").config(json!({ "name": "other", "bridge": "br1" })).into(),
                add("b").args("IP=10.1.0.2;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.2"]).into(),
                script("ip -n b link del eth0 || true"),
                add("b")
                    .config(json!({ "name": "other", "bridge": "br1" }))
                    .args("IP=10.1.0.2;IgnoreUnknown=1")
                    .into(),
            ],
            Same,
        ),
        row(
            "one container with two interfaces on one network",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("a").ifname("net1").addresses(&["10.1.0.3/24"]).into(),
                del("a").ifname("eth0").into(),
                look("ip -n a -4 -br address show net1", Text::Has("10.1.0.3/24")).into(),
                add("b").args("IP=10.1.0.3;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.3"]).into(),
                script("ip -n b link del eth0 || true"),
            ],
            Same,
        ),
    ]
}

fn requests() -> Vec<Case> {
    let narrow = || json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20" }]] });
    vec![
        row(
            "a requested address is granted",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
                add("b")
                    .config(json!({ "args": { "cni": { "ips": ["10.1.0.78"] } } }))
                    .addresses(&["10.1.0.78/24"])
                    .into(),
                add("c")
                    .config(json!({ "runtimeConfig": { "ips": ["10.1.0.79/24"] } }))
                    .addresses(&["10.1.0.79/24"])
                    .into(),
            ],
            Same,
        ),
        row(
            "one requested address for each range set",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .args("IP=fd01::77;IgnoreUnknown=1")
                    .addresses(&["10.1.0.2/24", "fd01::77/64"])
                    .into(),
                add("b")
                    .config(json!({ "args": { "cni": { "ips": ["fd01::78/64", "10.1.0.78"] } } }))
                    .addresses(&["10.1.0.78/24", "fd01::78/64"])
                    .into(),
            ],
            Same,
        ),
        row(
            "an address requested in CNI_ARGS beside one in args",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }),
            vec![
                add("a")
                    .args("IP=10.1.0.77;IgnoreUnknown=1")
                    .config(json!({ "args": { "cni": { "ips": ["fd01::77"] } } }))
                    .addresses(&["10.1.0.77/24", "fd01::77/64"])
                    .into(),
            ],
            Same,
        ),
        row(
            "two requested addresses of one range set",
            one_range(),
            vec![
                add("a")
                    .config(json!({ "args": { "cni": { "ips": ["10.1.0.77", "10.1.0.78"] } } }))
                    .fails(REFUSED, &["10.1.0.7"])
                    .into(),
                script("ip -n a link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a requested address out of range",
            narrow(),
            vec![
                add("a")
                    .args("IP=10.1.0.9;IgnoreUnknown=1")
                    .fails(REFUSED, &["10.1.0.9", "10.1.0.10-10.1.0.20"])
                    .reference(error(999, &["10.1.0.9"]))
                    .into(),
                add("b").args("IP=10.2.0.9;IgnoreUnknown=1").fails(REFUSED, &["10.2.0.9"]).into(),
            ],
            Differs("It does not say which range the address is not in."),
        ),
        row(
            "a requested address that another has",
            narrow(),
            vec![
                add("a").args("IP=10.1.0.15;IgnoreUnknown=1").addresses(&["10.1.0.15/24"]).into(),
                add("b")
                    .args("IP=10.1.0.15;IgnoreUnknown=1")
                    .fails(REFUSED, &["10.1.0.15", "taken", "eth0 of container a"])
                    .reference(error(999, &["10.1.0.15", "not available"]))
                    .into(),
            ],
            Differs("It does not say who has the address."),
        ),
        row(
            "a requested address that is the gateway",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.1;IgnoreUnknown=1").fails(REFUSED, &["10.1.0.1", "gateway"]).into(),
                script("ip -n a link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "a requested address that has just been freed",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.77;IgnoreUnknown=1").into(),
                del("a").into(),
                add("b").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
            ],
            Same,
        ),
        row(
            "after a requested address allocation goes on behind it",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("b").args("IP=10.1.0.77;IgnoreUnknown=1").addresses(&["10.1.0.77/24"]).into(),
                add("c").addresses(&["10.1.0.78/24"]).into(),
            ],
            Same,
        ),
    ]
}

/// Configurations that cannot be: each has an error of its own.
fn mistakes() -> Vec<Case> {
    let mistake = |name, ipam: Value, says: &'static [&'static str]| {
        row(name, ipam, vec![add("a").fails(7, says).into(), script("ip -n a link del eth0 || true")], Same)
    };
    vec![
        mistake("a subnet with host bits", json!({ "subnet": "10.1.0.5/24" }), &["host bits", "10.1.0.0"]),
        mistake("a subnet that is none", json!({ "subnet": "10.1.0.0/40" }), &["10.1.0.0/40"]),
        mistake("a /31", json!({ "subnet": "10.1.0.0/31" }), &["10.1.0.0/31", "too small"]),
        mistake("a /32", json!({ "subnet": "10.1.0.0/32" }), &["10.1.0.0/32", "too small"]),
        mistake("an IPv6 /127", json!({ "subnet": "fd01::/127" }), &["fd01::/127", "too small"]),
        mistake("an IPv6 /128", json!({ "subnet": "fd01::/128" }), &["fd01::/128", "too small"]),
        mistake(
            "rangeStart outside",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.2.0.5" }),
            &["rangeStart 10.2.0.5", "10.1.0.0/24"],
        ),
        mistake(
            "rangeEnd outside",
            json!({ "subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.5" }),
            &["rangeEnd 10.2.0.5", "10.1.0.0/24"],
        ),
        mistake(
            "rangeStart of the other family",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "fd01::5" }),
            &["rangeStart fd01::5", "10.1.0.0/24"],
        ),
        row(
            "rangeStart behind rangeEnd",
            json!({ "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.50", "rangeEnd": "10.1.0.40" }),
            vec![
                add("a")
                    .fails(7, &["10.1.0.50", "behind", "10.1.0.40"])
                    .reference(error(999, &["RangeStart 10.1.0.50 not in network 10.1.0.0/24"]))
                    .into(),
            ],
            Differs("It says that rangeStart is not in the subnet, which it is."),
        ),
        row(
            "a gateway outside the subnet",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24", "gateway": "10.2.0.1" }]] }),
            vec![
                add("a")
                    .fails(7, &["gateway 10.2.0.1", "10.1.0.0/24"])
                    .reference(ok(&[Want::Gateways(&["10.2.0.1"])]))
                    .into(),
            ],
            Differs("It takes it, and the pod gets a gateway that it cannot reach."),
        ),
        mistake(
            "a gateway that is no address",
            json!({ "subnet": "10.1.0.0/24", "gateway": "nowhere" }),
            &["nowhere"],
        ),
        mistake(
            "two families in one range set",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }, { "subnet": "fd01::/64" }]] }),
            &["mixed address families"],
        ),
        mistake(
            "ranges of one set that overlap",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }, { "subnet": "10.1.0.0/25" }]] }),
            &["10.1.0.1-10.1.0.254", "10.1.0.1-10.1.0.126", "overlap"],
        ),
        mistake(
            "range sets that overlap",
            json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/16" }]] }),
            &["range set 0 overlaps with"],
        ),
        mistake("an empty range set", json!({ "ranges": [[]] }), &["empty range set"]),
        mistake("a requested address that is none", json!({ "subnet": "10.1.0.0/24" }), &[]).with(
            add("a").config(json!({ "args": { "cni": { "ips": ["nowhere"] } } })).fails(7, &["nowhere"]),
        ),
    ]
}

trait With {
    fn with(self, call: podwire_netns_tests::cases::Call) -> Case;
}

impl With for Case {
    /// The row with another first call.
    fn with(mut self, call: podwire_netns_tests::cases::Call) -> Case {
        if let Some(first) = self.steps.first_mut() {
            *first = call.into();
        }
        self
    }
}

/// A directory of host-local's, from before the move to podwire.
fn taken_over() -> Vec<Case> {
    vec![
        row(
            "addresses that host-local gave are not given again",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                script(
                    "mkdir -p /var/lib/cni/networks/net; cd /var/lib/cni/networks/net; printf 'old\\r\\neth0' > 10.1.0.2; printf ancient > 10.1.0.4",
                ),
                add("a").addresses(&["10.1.0.3/29"]).into(),
                add("b").addresses(&["10.1.0.5/29"]).into(),
                add("c").addresses(&["10.1.0.6/29"]).into(),
                add("d").fails(REFUSED, &["no IP addresses available"]).into(),
                script("ip -n d link del eth0 || true"),
            ],
            Same,
        ),
        row(
            "allocation goes on behind host-local's last address",
            one_range(),
            vec![
                script(
                    "mkdir -p /var/lib/cni/networks/net; cd /var/lib/cni/networks/net; printf 10.1.0.77 > last_reserved_ip.0",
                ),
                add("a").addresses(&["10.1.0.78/24"]).into(),
            ],
            Same,
        ),
        row(
            "DEL of a pod that host-local gave an address",
            json!({ "subnet": "10.1.0.0/29" }),
            vec![
                script(
                    "mkdir -p /var/lib/cni/networks/net; cd /var/lib/cni/networks/net; printf 'old\\r\\neth0' > 10.1.0.2; printf ancient > 10.1.0.4",
                ),
                del("old").into(),
                add("a").args("IP=10.1.0.2;IgnoreUnknown=1").addresses(&["10.1.0.2/29"]).into(),
                del("ancient").into(),
                add("b").args("IP=10.1.0.4;IgnoreUnknown=1").addresses(&["10.1.0.4/29"]).into(),
            ],
            Same,
        ),
        row(
            "dataDir",
            json!({ "subnet": "10.1.0.0/29", "dataDir": "/run/addresses" }),
            vec![
                script("mkdir -p /run/addresses/net; printf 'old\\r\\neth0' > /run/addresses/net/10.1.0.2"),
                add("a").addresses(&["10.1.0.3/29"]).into(),
            ],
            Same,
        ),
    ]
}

/// Rows in which the main plugin has a part.
fn attachments() -> Vec<Case> {
    vec![
        row(
            "ADD again gives the same answer",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                add("a").gives(&[Want::SameAs("a")]).reference(error(999, &["already exists"])).into(),
                look("ip -o link show type veth | wc -l", Text::Is("1")).into(),
                check("a").into(),
                add("b").addresses(&["10.1.0.3/24"]).into(),
            ],
            Differs("It fails, and a runtime that lost the answer cannot get it again."),
        ),
        row(
            "ADD again in a new netns keeps the address",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                // The container a, whose netns is another one now.
                add("b").container("a").addresses(&["10.1.0.2/24"]).reference(error(999, &["10.1.0.2", "duplicate allocation is not allowed"])).into(),
                look("ip -o link show type veth | wc -l", Text::Is("1")).reference(Text::Is("2")).into(),
                look("ip -n b -4 -br address show eth0", Text::Has("10.1.0.2/24")).reference(Text::Is("")).into(),
                add("c").addresses(&["10.1.0.3/24"]).into(),
            ],
            Differs("After a crash it refuses the container for ever (nerdctl#3355, containerd#6604)."),
        ),
        row(
            "ADD again after the netns is gone keeps the address",
            one_range(),
            vec![
                add("a").addresses(&["10.1.0.2/24"]).into(),
                script("umount /run/netns/a; rm /run/netns/a"),
                add("b").container("a").addresses(&["10.1.0.2/24"]).reference(error(999, &["duplicate allocation is not allowed"])).into(),
            ],
            Differs("The same."),
        ),
        row(
            "resolvConf",
            json!({ "subnet": "10.1.0.0/24", "resolvConf": "/run/resolv.conf" }),
            vec![
                script("printf 'nameserver 10.1.0.53\\nsearch example.org b\\ndomain example.org\\noptions ndots:5\\n' > /run/resolv.conf"),
                add("a")
                    .gives(&[Want::At(
                        "/dns",
                        json!({ "nameservers": ["10.1.0.53"], "search": ["example.org", "b"], "domain": "example.org", "options": ["ndots:5"] }),
                    )])
                    .reference(ok(&[Want::At("/dns", json!({}))]))
                    .into(),
                add("b")
                    .config(json!({ "dns": { "nameservers": ["10.1.0.1"] } }))
                    .gives(&[Want::At("/dns", json!({ "nameservers": ["10.1.0.1"] }))])
                    .into(),
            ],
            Differs("host-local reads the file, and bridge throws away what it read; newer ones keep it."),
        ),
        row(
            "the dns of another IPAM plugin",
            one_range(),
            vec![
                add("a")
                    .config(json!({ "ipam": { "type": "static", "subnet": null, "addresses": [{ "address": "10.2.0.4/24" }],
                        "dns": { "nameservers": ["10.2.0.1"] } } }))
                    .gives(&[Want::At("/dns/nameservers/0", json!("10.2.0.1"))])
                    .reference(ok(&[Want::At("/dns", json!({}))]))
                    .into(),
            ],
            Differs("bridge throws it away; newer ones keep it."),
        ),
        row(
            "IP in CNI_ARGS needs no IgnoreUnknown",
            one_range(),
            vec![
                add("a").args("IP=10.1.0.77").addresses(&["10.1.0.77/24"]).reference(error(999, &["unknown args", "IP="])).into(),
            ],
            Differs("host-local knows IP and bridge does not, so that neither can be used without IgnoreUnknown=1."),
        ),
        no_ranges("no ranges", json!({ "ranges": [] })),
        no_ranges("nothing that names a range", json!({})),
    ]
}

/// podwire-ipam without ranges takes those of the node, host-local's configuration has to have some.
fn no_ranges(name: &'static str, ipam: Value) -> Case {
    let steps = vec![add("a").fails(7, &["no IP ranges"]).into(), script("ip -n a link del eth0 || true")];
    row(name, ipam, steps, Same)
}

/// The IPAM plugin called alone.
fn alone() -> Vec<Case> {
    let alone = |case: Case| Case { plugin: Plugin::Ipam, ..case };
    vec![
        alone(Case {
            versions: Versions::All,
            ..row(
                "the IPAM plugin alone",
                json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]], "routes": [{ "dst": "0.0.0.0/0" }] }),
                vec![
                    add("a")
                        .gives(&[
                            Want::Addresses(&["10.1.0.2/24", "fd01::2/64"]),
                            Want::Gateways(&["10.1.0.1", "fd01::1"]),
                            Want::Routes(&["0.0.0.0/0"]),
                        ])
                        .into(),
                    look("ip -n a -o link | wc -l; ip -o link | wc -l", Text::Is("1 1")).into(),
                    check("a").into(),
                    add("b").addresses(&["10.1.0.3/24", "fd01::3/64"]).into(),
                    del("a").into(),
                    del("a").without("CNI_NETNS").into(),
                    check("a")
                        .previous(json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.2/24" }] }))
                        .fails(101, &["container a"])
                        .into(),
                ],
                Same,
            )
        }),
        alone(row(
            "resolvConf of the IPAM plugin alone",
            json!({ "subnet": "10.1.0.0/24", "resolvConf": "/run/resolv.conf" }),
            vec![
                script("echo nameserver 10.1.0.53 > /run/resolv.conf"),
                add("a").gives(&[Want::At("/dns/nameservers", json!(["10.1.0.53"]))]).into(),
                add("b")
                    .config(json!({ "ipam": { "resolvConf": "/run/nowhere" } }))
                    .fails(5, &["/run/nowhere"])
                    .into(),
            ],
            Same,
        )),
        alone(row(
            "ADD again of the IPAM plugin alone",
            one_range(),
            vec![
                add("a").into(),
                add("a")
                    .gives(&[Want::SameAs("a")])
                    .reference(error(999, &["duplicate allocation is not allowed"]))
                    .into(),
            ],
            Differs("It fails, and a runtime that lost the answer cannot get it again."),
        )),
        alone(row(
            "VERSION of the IPAM plugin alone",
            one_range(),
            vec![
                verb("VERSION")
                    .no_stdin()
                    .gives(&[Want::At("/supportedVersions", json!(VERSIONS))])
                    .reference(ok(&[Want::At("/supportedVersions", json!(VERSIONS.get(..6)))]))
                    .into(),
            ],
            Differs("Debian's package (1.1.1 of the plugins) ends at 1.0.0."),
        )),
    ]
}
