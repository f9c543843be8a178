//! The protocol: environment, versions, configuration, errors and the forms of results, whatever the network.

use podwire_netns_tests::cases::{
    Case, Expect, Plugin, Reference, Subject, Text, VERSIONS, Versions, Want, add, check, del, differences,
    error, gc, look, ok, replay, script, status, verb,
};
use serde_json::{Value, json};

use Reference::{Differs, Same};

#[test]
fn core_cases() {
    if let Err(report) = replay(&cases(), Subject::from_environment()) {
        panic!("{report}");
    }
}

#[test]
fn core_differences_are_documented() {
    assert_eq!(differences("Core", &cases()), Ok(()));
}

/// One IPv4 range and a gateway: what most rows need.
fn plain() -> Value {
    json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } })
}

const UNKNOWN_VERB: &str =
    "It knows no GC and no STATUS (they are of 1.1.0), and says that the container id is missing.";
const NEWEST: &[&str] = &["1.1.0"];
const ONE: &[&str] = &["1.0.0"];

fn no_verb() -> Expect {
    error(3, &["missing containerID"])
}

fn cases() -> Vec<Case> {
    let mut cases = environment();
    cases.extend(versions());
    cases.extend(configuration());
    cases.extend(verbs());
    cases.extend(results());
    cases.extend(loopback());
    cases
}

/// A row against [`plain`] in one version.
fn case(name: &'static str, steps: Vec<podwire_netns_tests::cases::Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config: plain(), steps, reference }
}

fn environment() -> Vec<Case> {
    let mut cases = vec![
        Case {
            versions: Versions::All,
            ..case(
                "a missing variable is named",
                vec![
                    add("a").without("CNI_CONTAINERID").fails(4, &["CNI_CONTAINERID"]).into(),
                    add("a").without("CNI_NETNS").fails(4, &["CNI_NETNS"]).into(),
                    add("a").without("CNI_IFNAME").fails(4, &["CNI_IFNAME"]).into(),
                    add("a").without("CNI_PATH").fails(4, &["CNI_PATH"]).into(),
                    del("a").without("CNI_CONTAINERID").fails(4, &["CNI_CONTAINERID"]).into(),
                    del("a").without("CNI_IFNAME").fails(4, &["CNI_IFNAME"]).into(),
                    del("a").without("CNI_PATH").fails(4, &["CNI_PATH"]).into(),
                    check("a").without("CNI_CONTAINERID").fails(4, &["CNI_CONTAINERID"]).into(),
                    check("a").without("CNI_NETNS").fails(4, &["CNI_NETNS"]).into(),
                    check("a").without("CNI_IFNAME").fails(4, &["CNI_IFNAME"]).into(),
                    check("a").without("CNI_PATH").fails(4, &["CNI_PATH"]).into(),
                ],
                Same,
            )
        },
        case(
            "an empty variable is a missing one",
            vec![
                add("a").env("CNI_CONTAINERID", "").fails(4, &["CNI_CONTAINERID"]).into(),
                add("a").env("CNI_NETNS", "").fails(4, &["CNI_NETNS"]).into(),
                add("a").env("CNI_IFNAME", "").fails(4, &["CNI_IFNAME"]).into(),
            ],
            Same,
        ),
        case(
            "several missing variables are all named, in the specification's order",
            vec![
                verb("ADD").without("CNI_PATH").fails(4, &["CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"]).into(),
                verb("CHECK").fails(4, &["CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"]).into(),
                verb("DEL").fails(4, &["CNI_CONTAINERID,CNI_IFNAME"]).into(),
            ],
            Same,
        ),
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "GC and STATUS need CNI_PATH alone",
                vec![
                    gc(json!([])).without("CNI_PATH").fails(4, &["CNI_PATH"]).reference(no_verb()).into(),
                    status().without("CNI_PATH").fails(4, &["CNI_PATH"]).reference(no_verb()).into(),
                    gc(json!([])).reference(no_verb()).into(),
                    status().reference(no_verb()).into(),
                ],
                Differs(UNKNOWN_VERB),
            )
        },
        case(
            "a container id is letters, digits, `_`, `.` and `-`, the first a letter or a digit",
            vec![
                add("a").env("CNI_CONTAINERID", "-a").fails(4, &["containerID", "-a"]).into(),
                add("a").env("CNI_CONTAINERID", "_a").fails(4, &["containerID", "_a"]).into(),
                add("a").env("CNI_CONTAINERID", ".").fails(4, &["containerID"]).into(),
                add("a").env("CNI_CONTAINERID", "a/b").fails(4, &["containerID", "a/b"]).into(),
                add("a").env("CNI_CONTAINERID", "a b").fails(4, &["containerID", "a b"]).into(),
                del("a").env("CNI_CONTAINERID", "../a").fails(4, &["containerID", "../a"]).into(),
                add("a").container("0a_B.c-d").addresses(&["10.1.0.2/24"]).into(),
            ],
            Same,
        ),
        case(
            "an interface name is one that the kernel takes",
            vec![
                add("a").env("CNI_IFNAME", "0123456789abcdef").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", ".").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", "..").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", "a/b").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", "a:b").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", "a b").fails(4, &["interface name"]).into(),
                add("a").env("CNI_IFNAME", "a\tb").fails(4, &["interface name"]).into(),
                del("a").env("CNI_IFNAME", "..").fails(4, &["interface name"]).into(),
                add("a").ifname("0123456789abcde").addresses(&["10.1.0.2/24"]).into(),
            ],
            Same,
        ),
        case(
            "CNI_ARGS of Kubernetes' runtimes, in any order",
            vec![
                add("a")
                    .args("K8S_POD_NAME=web;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=1-2;K8S_POD_INFRA_CONTAINER_ID=a")
                    .addresses(&["10.1.0.2/24"])
                    .into(),
            ],
            Same,
        ),
        case(
            "the K8S_POD_* of CNI_ARGS need no IgnoreUnknown",
            vec![
                add("a")
                    .args("K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID=1;K8S_POD_INFRA_CONTAINER_ID=a")
                    .addresses(&["10.1.0.2/24"])
                    .reference(error(999, &["unknown args"]))
                    .into(),
            ],
            Differs("It calls them unknown. They are well known, and podwire keeps the pod's name with its lease."),
        ),
        case(
            "an unknown key in CNI_ARGS is an error, unless IgnoreUnknown",
            vec![
                add("a").args("COLOUR=red").fails(4, &["COLOUR"]).into(),
                add("a").args("COLOUR=red;IgnoreUnknown=0").fails(4, &["COLOUR"]).into(),
                add("a").args("COLOUR=red;IgnoreUnknown=true").addresses(&["10.1.0.2/24"]).into(),
            ],
            Same,
        ),
        case(
            "CNI_ARGS that are no pairs are an error",
            vec![
                add("a").args("IgnoreUnknown").fails(4, &["IgnoreUnknown"]).into(),
                add("a").args("IP=nowhere;IgnoreUnknown=1").fails(4, &["IP", "nowhere"]).into(),
                add("a").args("MAC=nothing;IgnoreUnknown=1").fails(4, &["MAC", "nothing"]).reference(error(999, &["nothing"])).into(),
            ],
            Differs("It says which value is no MAC address, not that it came with MAC in CNI_ARGS."),
        ),
        case(
            "trace context in the environment is accepted",
            vec![
                add("a")
                    .env("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
                    .env("TRACESTATE", "a=b")
                    .env("BAGGAGE", "c=d")
                    .addresses(&["10.1.0.2/24"])
                    .into(),
            ],
            Same,
        ),
        case(
            "a CNI_NETNS that is not there",
            vec![
                add("a").env("CNI_NETNS", "/run/netns/nowhere").fails(8, &["/run/netns/nowhere"]).into(),
                script("touch /run/plain"),
                add("a").env("CNI_NETNS", "/run/plain").fails(8, &["/run/plain"]).into(),
                add("a").env("CNI_NETNS", "/proc/1/ns/mnt").fails(8, &["/proc/1/ns/mnt"]).into(),
                look("ip -o link show type veth", Text::Is("")).into(),
            ],
            Same,
        ),
        case(
            "a CNI_NETNS that is the host's own",
            vec![
                add("a").env("CNI_NETNS", "/proc/1/ns/net").fails(8, &["/proc/1/ns/net"]).reference(ok(&[])).into(),
                look("ip -o link show type veth | wc -l", Text::Is("0")).reference(Text::Is("2")).into(),
            ],
            Differs(
                "It attaches the host to its own bridge, with the default route of a pod. The specification's code 8 is for this; \
                 CNI_NETNS_OVERRIDE=1 asks for it all the same.",
            ),
        ),
        case(
            "an unknown command",
            vec![
                verb("FOO").fails(4, &["CNI_COMMAND", "FOO"]).reference(error(3, &["missing containerID"])).into(),
                add("a").env("CNI_COMMAND", "FOO").fails(4, &["CNI_COMMAND", "FOO"]).into(),
                add("a").env("CNI_COMMAND", "add").fails(4, &["CNI_COMMAND", "add"]).into(),
            ],
            Differs("Without CNI_CONTAINERID it complains about that, with code 3, and does not say that it knows no such command."),
        ),
        case(
            "an empty command gives the about text",
            vec![about_call("").into(), about_call("CNI_COMMAND").into()],
            Same,
        ),
    ];
    cases.push(case(
        "standard input that cannot be read",
        vec![
            add("a").unreadable().fails(5, &["stdin"]).into(),
            del("a").unreadable().fails(5, &["stdin"]).into(),
        ],
        Same,
    ));
    cases
}

/// A call without a command: `CNI_COMMAND` empty, or not set where it is named.
fn about_call(unset: &'static str) -> podwire_netns_tests::cases::Call {
    let mut call = verb("").no_stdin();
    if !unset.is_empty() {
        call = call.without(unset);
    }
    call.comes_to(Expect::About(&["0.1.0", "1.0.0"]))
}

fn versions() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::All,
            ..case(
                "each verb's lowest version",
                vec![add("a").addresses(&["10.1.0.2/24"]).into(), del("a").into()],
                Same,
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0", "0.3.0", "0.3.1"]),
            ..case(
                "CHECK of a version without CHECK",
                vec![add("a").into(), check("a").always().fails(1, &["CHECK"]).into()],
                Same,
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.4.0", "1.0.0"]),
            ..case(
                "GC and STATUS of a version without them",
                vec![
                    gc(json!([])).fails(1, &["GC"]).reference(no_verb()).into(),
                    status().fails(1, &["STATUS"]).reference(no_verb()).into(),
                ],
                Differs(UNKNOWN_VERB),
            )
        },
        case(
            "a version that is none",
            vec![
                add("a")
                    .config(json!({ "cniVersion": "abc" }))
                    .fails(6, &["abc"])
                    .reference(error(1, &["abc"]))
                    .into(),
                add("a")
                    .config(json!({ "cniVersion": "1.0.0.0" }))
                    .fails(6, &["1.0.0.0"])
                    .reference(error(1, &["1.0.0.0"]))
                    .into(),
                add("a")
                    .config(json!({ "cniVersion": "-1" }))
                    .fails(6, &["-1"])
                    .reference(error(1, &["-1"]))
                    .into(),
            ],
            Differs(
                "It calls such a version unsupported (code 1). It is malformed input, which the specification gives code 6.",
            ),
        ),
        case(
            "a version that nobody knows yet",
            vec![
                add("a")
                    .config(json!({ "cniVersion": "9.9.9" }))
                    .fails(1, &["9.9.9", "0.1.0", "1.0.0"])
                    .into(),
                del("a").config(json!({ "cniVersion": "9.9.9" })).fails(1, &["9.9.9"]).into(),
            ],
            Same,
        ),
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "version 1.1.0",
                vec![
                    add("a").addresses(&["10.1.0.2/24"]).reference(error(1, &["1.1.0"])).into(),
                    check("a").reference(error(1, &["CHECK"])).into(),
                ],
                Differs("Debian's package (1.1.1 of the plugins) ends at 1.0.0."),
            )
        },
        case(
            "a missing version is 0.1.0",
            vec![
                add("a")
                    .config(json!({ "cniVersion": null }))
                    .gives(&[
                        Want::At("/cniVersion", json!("0.1.0")),
                        Want::At("/ip4/ip", json!("10.1.0.2/24")),
                    ])
                    .into(),
                del("a").config(json!({ "cniVersion": null })).forgotten().into(),
                add("b")
                    .config(json!({ "cniVersion": "" }))
                    .gives(&[Want::At("/ip4/ip", json!("10.1.0.3/24"))])
                    .into(),
                del("b").config(json!({ "cniVersion": "" })).forgotten().into(),
            ],
            Same,
        ),
    ]
}

fn configuration() -> Vec<Case> {
    vec![
        case(
            "input that is no JSON",
            vec![
                add("a").raw("").fails(6, &[]).into(),
                add("a").raw("{").fails(6, &[]).into(),
                add("a").raw("[1]").fails(6, &[]).into(),
                add("a").raw("{} {}").fails(6, &[]).into(),
                del("a").raw("nonsense").fails(6, &[]).into(),
            ],
            Same,
        ),
        case(
            "a network without a usable name",
            vec![
                add("a").config(json!({ "name": null })).fails(7, &["name"]).into(),
                add("a").config(json!({ "name": "" })).fails(7, &["name"]).into(),
                add("a").config(json!({ "name": "../net" })).fails(7, &["name", "../net"]).into(),
                add("a").config(json!({ "name": "-net" })).fails(7, &["name", "-net"]).into(),
                add("a").config(json!({ "name": "a net" })).fails(7, &["name", "a net"]).into(),
            ],
            Same,
        ),
        case(
            "keys in any case",
            vec![
                add("a")
                    .raw(
                        r#"{"CNIVERSION":"1.0.0","NAME":"net","TYPE":"podwire","BRIDGE":"br7","ISDEFAULTGATEWAY":true,"MTU":1400,
                            "IPAM":{"TYPE":"host-local","RANGES":[[{"SUBNET":"10.7.0.0/24","RANGESTART":"10.7.0.9"}]],
                            "Routes":[{"DST":"192.168.0.0/16","GW":"10.7.0.8"}]}}"#,
                    )
                    .gives(&[
                        Want::At("/interfaces/0/name", json!("br7")),
                        Want::Addresses(&["10.7.0.9/24"]),
                        Want::Routes(&["192.168.0.0/16 via 10.7.0.8", "0.0.0.0/0 via 10.7.0.1"]),
                    ])
                    .into(),
                look("ip -n a -o link show eth0", Text::Has("mtu 1400")).into(),
                del("a").forgotten().config(json!({ "bridge": "br7" })).into(),
            ],
            Same,
        ),
        case(
            "of a key that is there twice the last counts",
            vec![
                add("a")
                    .raw(
                        r#"{"cniVersion":"1.0.0","name":"net","type":"podwire","bridge":"br1","bridge":"br2",
                            "ipam":{"type":"host-local","subnet":"10.7.0.0/24"}}"#,
                    )
                    .gives(&[Want::At("/interfaces/0/name", json!("br2"))])
                    .into(),
                del("a").forgotten().into(),
            ],
            Same,
        ),
        case(
            "null is the default, unknown keys are ignored",
            vec![
                add("a")
                    .raw(
                        r#"{"cniVersion":"1.0.0","name":"net","type":"podwire","bridge":null,"mtu":null,"isGateway":null,"colour":"red",
                            "dns":null,"args":null,"runtimeConfig":null,
                            "ipam":{"type":"host-local","subnet":"10.7.0.0/24","rangeStart":null,"routes":null,"colour":"red"}}"#,
                    )
                    .gives(&[Want::At("/interfaces/0/name", json!("cni0")), Want::Addresses(&["10.7.0.2/24"])])
                    .into(),
                del("a").forgotten().into(),
            ],
            Same,
        ),
        case(
            "a value of the wrong type is an error that names the key",
            vec![
                add("a").config(json!({ "mtu": "large" })).fails(7, &["mtu"]).into(),
                add("a").config(json!({ "isGateway": "yes" })).fails(7, &["isGateway"]).into(),
                add("a").config(json!({ "bridge": 5 })).fails(7, &["bridge"]).into(),
            ],
            Same,
        ),
        case(
            "an IPAM plugin that is not there",
            vec![
                add("a").config(json!({ "ipam": { "type": "nowhere" } })).fails(102, &["nowhere", "/opt/cni/bin"]).into(),
                look("ip -n a -o link show type veth | wc -l", Text::Is("0")).reference(Text::Is("1")).into(),
            ],
            Differs("It leaves a half-made interface in the pod, so that the next ADD fails too. A failed ADD of podwire leaves nothing."),
        ),
        case(
            "another IPAM plugin is called by the specification",
            vec![
                add("a")
                    .config(json!({ "ipam": { "type": "static", "subnet": null, "addresses": [{ "address": "10.2.0.4/24", "gateway": "10.2.0.1" }],
                        "routes": [{ "dst": "192.168.0.0/16" }] } }))
                    .gives(&[
                        Want::Addresses(&["10.2.0.4/24"]),
                        Want::Gateways(&["10.2.0.1"]),
                        Want::Routes(&["192.168.0.0/16"]),
                    ])
                    .into(),
                look("ip -n a route get 192.168.3.4", Text::Has("via 10.2.0.1 dev eth0")).into(),
            ],
            Same,
        ),
        case(
            "what another IPAM plugin answers is checked and passed on",
            vec![
                script(
                    r#"cd /opt/cni/bin; printf '#!/bin/sh\necho "{\\"code\\":123,\\"msg\\":\\"my own reason\\"}"; exit 1' > failing
                       printf '#!/bin/sh\necho nonsense' > raving; chmod +x failing raving"#,
                ),
                add("a").config(json!({ "ipam": { "type": "failing" } })).fails(123, &["my own reason"]).into(),
                add("b").config(json!({ "ipam": { "type": "raving" } })).fails(103, &["raving"]).reference(error(999, &[])).into(),
            ],
            Differs("It does not say which plugin's answer it could not read, and leaves the interface in the pod."),
        ),
        case(
            "IPAM that is refused a path",
            vec![add("a").config(json!({ "ipam": { "type": "../bin/sh" } })).fails(7, &["../bin/sh"]).reference(error(999, &[])).into()],
            Differs("It says no more than that the name is invalid."),
        ),
    ]
}

fn verbs() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::These(ONE),
            ..case(
                "VERSION reads no standard input",
                vec![
                    verb("VERSION")
                        .no_stdin()
                        .gives(&[Want::At("/supportedVersions", json!(VERSIONS))])
                        .reference(ok(&[Want::At("/supportedVersions", json!(VERSIONS.get(..6)))]))
                        .into(),
                    verb("VERSION")
                        .unreadable()
                        .gives(&[Want::At("/supportedVersions/0", json!("0.1.0"))])
                        .into(),
                    verb("VERSION")
                        .without("CNI_PATH")
                        .no_stdin()
                        .gives(&[Want::At("/supportedVersions/0", json!("0.1.0"))])
                        .into(),
                ],
                Differs("Debian's package (1.1.1 of the plugins) ends at 1.0.0."),
            )
        },
        Case {
            versions: Versions::All,
            ..case(
                "DEL of what never was, and again",
                vec![
                    del("a").into(),
                    del("a").into(),
                    del("a").without("CNI_NETNS").into(),
                    del("a").env("CNI_NETNS", "").into(),
                    del("a").env("CNI_NETNS", "/run/netns/nowhere").into(),
                ],
                Same,
            )
        },
        case(
            "DEL with a CNI_NETNS that is no netns",
            vec![
                add("a").into(),
                script("touch /run/netns/plain"),
                del("a")
                    .env("CNI_NETNS", "/run/netns/plain")
                    .reference(error(999, &["unknown FS magic"]))
                    .into(),
                del("a").env("CNI_NETNS", "/").reference(error(999, &["unknown FS magic"])).into(),
                look("ip -o link show type veth", Text::Is("")).reference(Text::Has("veth")).into(),
            ],
            Differs(
                "It fails for ever, and with it every further DEL of the chain: a plain file is what a reboot leaves of a netns. \
                 podwire finds the interface without the netns.",
            ),
        ),
        case(
            "DEL from the owner alone, the netns unmounted and alive",
            vec![
                add("a").into(),
                script("umount /run/netns/a; rm /run/netns/a"),
                del("a").without("CNI_NETNS").forgotten().into(),
                look("ip -o link show type veth | wc -l", Text::Is("0")).reference(Text::Is("1")).into(),
            ],
            Differs(
                "It leaves the interface until the netns ends, while its address is free to be given to another pod.",
            ),
        ),
        Case {
            versions: Versions::From("0.4.0"),
            ..case(
                "CHECK needs the previous result",
                vec![
                    add("a").into(),
                    check("a").forgotten().fails(7, &["prevResult"]).into(),
                    check("a").into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::From("0.4.0"),
            ..case(
                "CHECK of what never was added",
                vec![
                    add("a").into(),
                    script("ip -n a link del eth0"),
                    check("a").fails(101, &["eth0"]).into(),
                ],
                Same,
            )
        },
        gc_case(
            "GC keeps those that are valid",
            json!([{ "containerID": "a", "ifname": "eth0" }, { "containerID": "z", "ifname": "eth0" }]),
            "a",
        ),
        gc_case("GC of an empty list removes all", json!([]), ""),
        gc_case("GC of null removes all", Value::Null, ""),
        gc_case(
            "GC knows the interface from the container",
            json!([{ "containerID": "a", "ifname": "eth9" }]),
            "",
        ),
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "GC without a list does nothing",
                vec![
                    add("a").addresses(&["10.1.0.2/24"]).reference(error(1, &[])).into(),
                    verb("GC").reference(no_verb()).into(),
                    look("ip -o link show type veth | wc -l", Text::Is("1")).reference(Text::Is("0")).into(),
                ],
                Differs(UNKNOWN_VERB),
            )
        },
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "STATUS of a pool with addresses, and without",
                vec![
                    status().reference(no_verb()).into(),
                    add("a").config(tiny()).addresses(&["10.1.0.2/30"]).reference(error(1, &[])).into(),
                    // Without the agent nobody counts: that would open the store, and STATUS must not wait.
                    status().config(tiny()).reference(no_verb()).into(),
                    script(
                        "test -x /run/.lab/dist/podwired || exit 0
                         setsid /run/.lab/dist/podwired run < /dev/null > /dev/null 2>&1 &
                         for i in $(seq 100); do test -S /run/podwire/ipam.sock && exit 0; sleep 0.05; done; exit 1",
                    ),
                    status().config(tiny()).fails(50, &["10.1.0.1-10.1.0.2"]).reference(no_verb()).into(),
                    del("a").config(tiny()).forgotten().reference(error(1, &[])).into(),
                    status().config(tiny()).reference(no_verb()).into(),
                ],
                Differs("It knows no STATUS, and newer ones say that all is well with an exhausted pool."),
            )
        },
    ]
}

/// A range of one address.
fn tiny() -> Value {
    json!({ "ipam": { "subnet": "10.1.0.0/30" } })
}

/// Two pods, one GC, and the one that is left.
fn gc_case(name: &'static str, valid: Value, left: &'static str) -> Case {
    let ports = match left {
        "" => look("ip -o link show type veth | wc -l", Text::Is("0")),
        _ => look("ip -o link show type veth | wc -l; ip -n a -o link show eth0 | wc -l", Text::Is("1 1")),
    };
    Case {
        versions: Versions::These(NEWEST),
        ..case(
            name,
            vec![
                add("a").addresses(&["10.1.0.2/24"]).reference(error(1, &[])).into(),
                add("b").addresses(&["10.1.0.3/24"]).reference(error(1, &[])).into(),
                gc(valid).reference(no_verb()).into(),
                ports.reference(Text::Has("")).into(),
            ],
            Differs(UNKNOWN_VERB),
        )
    }
}

fn results() -> Vec<Case> {
    vec![
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]], "routes": [{ "dst": "192.168.0.0/16" }] } }),
            ..case(
                "results of 0.1.0 and 0.2.0",
                vec![
                    add("a")
                        .gives(&[
                            Want::At("/ip4/ip", json!("10.1.0.2/24")),
                            Want::At("/ip4/gateway", json!("10.1.0.1")),
                            Want::At("/ip6/ip", json!("fd01::2/64")),
                            Want::At("/ip6/gateway", json!("fd01::1")),
                            Want::At("/ip4/routes/0/dst", json!("192.168.0.0/16")),
                            Want::At("/ip4/routes/1", json!({ "dst": "0.0.0.0/0", "gw": "10.1.0.1" })),
                            Want::At("/ip6/routes/0", json!({ "dst": "::/0", "gw": "fd01::1" })),
                        ])
                        .into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "ipam": {} }),
            ..case(
                "results of 0.1.0 and 0.2.0 need an address",
                vec![
                    add("a").fails(7, &["IP address"]).into(),
                    look("ip -o link show type veth; ip -n a -o link show type veth | wc -l", Text::Is("0"))
                        .reference(Text::Has("veth"))
                        .into(),
                ],
                Differs("It fails after it has made the interface, and leaves it."),
            )
        },
        Case {
            versions: Versions::These(&["0.1.0", "0.2.0"]),
            config: json!({ "bridge": "br0", "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/24" }]] } }),
            ..case(
                "results of 0.1.0 and 0.2.0 hold one address of a family",
                vec![
                    add("a").fails(7, &["address"]).into(),
                    look("ip -n a -o link show type veth | wc -l", Text::Is("0"))
                        .reference(Text::Is("1"))
                        .into(),
                ],
                Differs("It fails after it has made the interface, and leaves it."),
            )
        },
        Case {
            versions: Versions::From("0.3.0"),
            ..case(
                "results since 0.3.0",
                vec![
                    add("a")
                        .config(json!({ "args": { "cni": { "mac": "02:00:00:00:00:09" } } }))
                        .gives(&[
                            Want::At("/interfaces/0/name", json!("br0")),
                            Want::At("/interfaces/2/name", json!("eth0")),
                            Want::At("/interfaces/2/sandbox", json!("/run/netns/a")),
                            Want::Mac("02:00:00:00:00:09"),
                            Want::At("/ips/0/interface", json!(2)),
                            Want::At("/ips/0/address", json!("10.1.0.2/24")),
                            Want::At("/ips/0/gateway", json!("10.1.0.1")),
                        ])
                        .into(),
                    look("ip -n a -br link show eth0", Text::Has("02:00:00:00:00:09")).into(),
                ],
                Same,
            )
        },
        Case {
            versions: Versions::These(NEWEST),
            ..case(
                "results of 1.1.0 carry the mtu",
                vec![
                    add("a")
                        .config(json!({ "mtu": 1400 }))
                        .gives(&[Want::At("/interfaces/2/mtu", json!(1400))])
                        .reference(error(1, &["1.1.0"]))
                        .into(),
                ],
                Differs("Debian's package (1.1.1 of the plugins) ends at 1.0.0."),
            )
        },
        Case {
            versions: Versions::From("0.4.0"),
            ..case(
                "a dns section without content is left out of 1.x",
                vec![
                    add("a").gives(&[Want::Nothing("/dns")]).into(),
                    add("b")
                        .config(json!({ "dns": { "nameservers": ["10.1.0.1"] } }))
                        .gives(&[Want::At("/dns/nameservers", json!(["10.1.0.1"]))])
                        .into(),
                ],
                Same,
            )
        },
    ]
}

fn loopback() -> Vec<Case> {
    let case = |name, versions, steps, reference| Case {
        name,
        versions,
        plugin: Plugin::Loopback,
        config: json!({ "type": "loopback" }),
        steps,
        reference,
    };
    vec![
        case("loopback brings lo up, and DEL takes it down", Versions::From("1.0.0"), up_and_down(None), Same),
        case(
            "loopback before 1.0.0",
            Versions::These(&["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"]),
            up_and_down(Some(ok(&[Want::At("/ips/0", json!({ "interface": 0, "address": "127.0.0.1/8" }))]))),
            Differs("Whatever the version, it prints a result in the form of 1.0.0."),
        ),
        case(
            "loopback passes a previous result on",
            Versions::These(ONE),
            vec![
                add("a")
                    .ifname("lo")
                    .previous(json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }],
                        "ips": [{ "interface": 0, "address": "10.9.0.9/24" }] }))
                    .addresses(&["10.9.0.9/24"])
                    .into(),
            ],
            Same,
        ),
    ]
}

fn up_and_down(added: Option<Expect>) -> Vec<podwire_netns_tests::cases::Step> {
    let add = add("a").ifname("lo").addresses(&["127.0.0.1/8", "::1/128"]);
    vec![
        match added {
            Some(expect) => add.reference(expect).into(),
            None => add.into(),
        },
        look("ip -n a -br address show lo", Text::Has("127.0.0.1/8 ::1/128")).into(),
        check("a").ifname("lo").into(),
        script("ip -n a link set lo down"),
        check("a").ifname("lo").fails(101, &["lo"]).into(),
        del("a").ifname("lo").into(),
        del("a").ifname("lo").env("CNI_NETNS", "").into(),
        del("a").ifname("lo").env("CNI_NETNS", "/run/netns/nowhere").into(),
    ]
}
