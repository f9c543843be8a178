//! Directories of host-local's, rows in which the main plugin has a part, and the IPAM plugin alone.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{
    Case, Plugin, Text, VERSIONS, Versions, Want, add, check, del, error, look, ok, script, verb,
};
use serde_json::{Value, json};

use crate::{REFUSED, one_range, row};

/// A directory of host-local's, from before the move to podwire.
pub(crate) fn taken_over() -> Vec<Case> {
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
pub(crate) fn attachments() -> Vec<Case> {
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
pub(crate) fn alone() -> Vec<Case> {
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
