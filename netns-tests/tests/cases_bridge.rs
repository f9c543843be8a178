//! The bridge and the pod's interface: what each key of the configuration does to the kernel.

use podwire_netns_tests::cases::{
    Case, Expect, Plugin, Reference, Step, Subject, Text, Versions, Want, add, check, del, differences,
    error, look, ok, replay, script,
};
use serde_json::{Value, json};

use Reference::{Differs, Same};

#[test]
fn bridge_cases() {
    if let Err(report) = replay(&cases(), Subject::from_environment()) {
        panic!("{report}");
    }
}

#[test]
fn bridge_differences_are_documented() {
    assert_eq!(differences("Bridge", &cases()), Ok(()));
}

const ONE: &[&str] = &["1.0.0"];
const TOO_OLD: &str = "Debian's package (1.1.1 of the plugins) is older than the key and ignores it.";

const HALF_MADE: &str = "It leaves the half-made interface in the pod, so that the next ADD fails too.";

fn cases() -> Vec<Case> {
    let mut cases = attachments();
    cases.extend(bridges());
    cases.extend(ports());
    cases.extend(routes());
    cases.extend(macs());
    cases.extend(failures());
    cases.extend(tampering());
    cases
}

/// A network with a gateway and IPv4.
fn plain() -> Value {
    json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } })
}

fn row(name: &'static str, config: Value, steps: Vec<Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config, steps, reference }
}

const PING4: &str = "nsenter --net=/run/netns/a busybox ping -c 2 -i 0.2 -W 1 10.1.0.1";
/// Patient: the reference's bridge answers once duplicate address detection has ended.
const PING6: &str = "nsenter --net=/run/netns/a sh -c 'for i in 1 2 3 4 5 6; do busybox ping -c 1 -W 1 fd01::1 && exit; done; exit 1'";

fn attachments() -> Vec<Case> {
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

fn bridges() -> Vec<Case> {
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

fn ports() -> Vec<Case> {
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
            "ipMasq",
            plain(),
            vec![
                add("a").config(json!({ "ipMasq": true })).fails(2, &["ipMasq", "true"]).reference(ok(&[])).into(),
                look("nft list ruleset | grep -c masquerade || true", Text::Is("0")).reference(Text::Is("1")).into(),
                del("a").config(json!({ "ipMasq": true })).into(),
                look("nft list ruleset | grep -c masquerade || true", Text::Is("0")).into(),
            ],
            Differs("It adds the rule to iptables. podwire refuses the key until it has rules of its own, rather than to leave pods without."),
        ),
        row(
            "macspoofchk",
            plain(),
            vec![
                add("a").config(json!({ "macspoofchk": true })).fails(2, &["macspoofchk", "true"]).reference(ok(&[])).into(),
                add("b").config(json!({ "macspoofchk": false })).into(),
            ],
            Differs("It adds the rule to nftables. podwire refuses the key until it has rules of its own, rather than to leave pods unchecked."),
        ),
        row(
            "vlan",
            plain(),
            vec![
                add("a").config(json!({ "vlan": 100 })).fails(2, &["vlan", "100"]).reference(Expect::Anything).into(),
                add("a").config(json!({ "vlan": 5000 })).fails(2, &["vlan", "5000"]).reference(error(999, &["5000"])).into(),
                add("b").config(json!({ "vlan": 0 })).into(),
            ],
            Differs("It makes the bridge filter VLANs, where the kernel can. podwire does not support the key."),
        ),
        row(
            "vlanTrunk",
            plain(),
            vec![add("a").config(json!({ "vlanTrunk": [{ "id": 100 }] })).fails(2, &["vlanTrunk"]).reference(ok(&[])).into()],
            Differs("Debian's package is older than the key and ignores it. podwire does not support it."),
        ),
        row(
            "port mappings and bandwidth meant for this plugin",
            plain(),
            vec![
                add("a")
                    .config(json!({ "runtimeConfig": { "portMappings": [{ "HostPort": 80, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" }] } }))
                    .fails(2, &["portMappings", "80"])
                    .reference(ok(&[]))
                    .into(),
                add("b").config(json!({ "runtimeConfig": { "bandwidth": { "IngressRate": 1000 } } })).fails(2, &["bandwidth"]).reference(ok(&[])).into(),
                add("c").config(json!({ "runtimeConfig": { "portMappings": [] } })).into(),
            ],
            Differs("It ignores what it was asked for. podwire says that it does not do it."),
        ),
    ]
}

fn routes() -> Vec<Case> {
    let with = |routes: Value| json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24", "routes": routes } });
    vec![
        row(
            "a route without a gateway uses that of its family",
            json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]],
                "routes": [{ "dst": "192.168.0.0/16" }, { "dst": "fd77::/64" }, { "dst": "10.9.0.0/16", "gw": "10.1.0.9" }] } }),
            vec![
                add("a")
                    .gives(&[Want::Routes(&["192.168.0.0/16", "fd77::/64", "10.9.0.0/16 via 10.1.0.9"])])
                    .into(),
                look("ip -n a route get 192.168.1.1", Text::Has("via 10.1.0.1 dev eth0")).into(),
                look("ip -n a route get fd77::1", Text::Has("via fd01::1 dev eth0")).into(),
                look("ip -n a route get 10.9.1.1", Text::Has("via 10.1.0.9 dev eth0")).into(),
            ],
            Same,
        ),
        row(
            "CHECK of a route without a gateway",
            with(json!([{ "dst": "192.168.0.0/16" }])),
            vec![add("a").into(), check("a").reference(error(999, &["192.168.0.0", "not found"])).into()],
            Differs(
                "Its CHECK fails on what its own ADD did, because the route in the kernel has a gateway.",
            ),
        ),
        row(
            "a default route of IPAM beside isDefaultGateway is no conflict",
            json!({ "bridge": "br0", "isDefaultGateway": true,
                "ipam": { "type": "host-local", "subnet": "10.1.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] } }),
            vec![
                add("a").reference(error(999, &["file exists"])).into(),
                look("ip -n a route show default", Text::Is("default via 10.1.0.1 dev eth0")).into(),
                check("a").reference(error(999, &[])).into(),
            ],
            Differs("It adds the same route twice and fails; newer ones do not."),
        ),
        row(
            "two routes to one destination become one with two ways",
            with(
                json!([{ "dst": "192.168.0.0/16", "gw": "10.1.0.8" }, { "dst": "192.168.0.0/16", "gw": "10.1.0.9" }]),
            ),
            vec![
                add("a").into(),
                look("ip -n a route show 192.168.0.0/16", Text::Has("nexthop via 10.1.0.8 dev eth0"))
                    .reference(Text::Has("via 10.1.0.8 dev eth0"))
                    .into(),
                look("ip -n a route show 192.168.0.0/16", Text::Has("nexthop via 10.1.0.9 dev eth0"))
                    .reference(Text::Lacks("nexthop"))
                    .into(),
            ],
            Differs("It makes two routes, of which the kernel uses the first alone."),
        ),
        row(
            "table, scope, priority, mtu and advmss of a route",
            with(json!([
                { "dst": "192.168.0.0/16", "table": 77, "priority": 9 },
                { "dst": "192.169.0.0/16", "mtu": 1300, "advmss": 1200 },
                { "dst": "192.170.0.0/16", "scope": 253 },
            ])),
            vec![
                add("a").into(),
                look(
                    "ip -n a route show table 77 2>&1 || true",
                    Text::Has("192.168.0.0/16 via 10.1.0.1 dev eth0 metric 9"),
                )
                .reference(Text::Lacks("192.168.0.0"))
                .into(),
                look("ip -n a route show 192.169.0.0/16", Text::Has("mtu 1300 advmss 1200"))
                    .reference(Text::Lacks("mtu"))
                    .into(),
                look("ip -n a route show 192.170.0.0/16", Text::Has("dev eth0 scope link"))
                    .reference(Text::Lacks("scope"))
                    .into(),
            ],
            Differs(TOO_OLD),
        ),
        row(
            "a route that cannot be is an error that names it",
            with(json!([{ "dst": "192.168.0.0/16", "gw": "10.77.0.1" }])),
            vec![
                add("a").fails(100, &["192.168.0.0", "10.77.0.1"]).into(),
                look("ip -n a -o link show type veth; ip -o link show type veth", Text::Is(""))
                    .reference(Text::Has("eth0"))
                    .into(),
            ],
            Differs(HALF_MADE),
        ),
        row(
            "a route of no family that the pod has",
            with(json!([{ "dst": "fd77::/64" }])),
            vec![add("a").into(), look("ip -n a -6 route show fd77::/64", Text::Has("dev eth0")).into()],
            Same,
        ),
    ]
}

fn macs() -> Vec<Case> {
    let lowest = json!({ "args": { "cni": { "mac": "02:00:00:00:00:05" } } });
    vec![
        row(
            "the MAC address of runtimeConfig is before that of args, and that before CNI_ARGS",
            plain(),
            vec![
                add("a").args("MAC=02:00:00:00:00:04;IgnoreUnknown=1").gives(&[Want::Mac("02:00:00:00:00:04")]).into(),
                add("b").args("MAC=02:00:00:00:00:04;IgnoreUnknown=1").config(lowest.clone()).gives(&[Want::Mac("02:00:00:00:00:05")]).into(),
                add("c")
                    .args("MAC=02:00:00:00:00:04;IgnoreUnknown=1")
                    .config(json!({ "args": { "cni": { "mac": "02:00:00:00:00:05" } }, "runtimeConfig": { "mac": "02:00:00:00:00:06" } }))
                    .gives(&[Want::Mac("02:00:00:00:00:06")])
                    .into(),
                look("ip -n c -br link show eth0", Text::Has("02:00:00:00:00:06")).into(),
                check("c").into(),
            ],
            Same,
        ),
        row(
            "MAC in CNI_ARGS needs no IgnoreUnknown",
            plain(),
            vec![
                add("a").args("MAC=02:00:00:00:00:04").gives(&[Want::Mac("02:00:00:00:00:04")]).reference(error(999, &["unknown args", "MAC="])).into(),
            ],
            Differs("bridge knows MAC and host-local does not, so that neither can be used without IgnoreUnknown=1."),
        ),
        row(
            "a MAC address that is none",
            plain(),
            vec![
                add("a").config(json!({ "runtimeConfig": { "mac": "nothing" } })).fails(7, &["mac", "nothing"]).into(),
                look("ip -n a -o link show type veth", Text::Is("")).into(),
            ],
            Same,
        ),
        row(
            "a MAC address that no interface can have",
            plain(),
            vec![
                add("a").config(json!({ "runtimeConfig": { "mac": "03:00:00:00:00:01" } })).fails(7, &["03:00:00:00:00:01"]).reference(error(999, &["cannot assign"])).into(),
            ],
            Differs("It passes the kernel's \"cannot assign requested address\" on, which sounds like an IP address."),
        ),
    ]
}

fn failures() -> Vec<Case> {
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
fn tampering() -> Vec<Case> {
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
