//! The environment of a call, and versions.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{
    Call, Case, Expect, Text, Versions, Want, add, check, del, error, gc, look, ok, script, status, verb,
};
use serde_json::json;

use crate::{NEWEST, UNKNOWN_VERB, case, no_verb};

pub(crate) fn environment() -> Vec<Case> {
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
fn about_call(unset: &'static str) -> Call {
    let mut call = verb("").no_stdin();
    if !unset.is_empty() {
        call = call.without(unset);
    }
    call.comes_to(Expect::About(&["0.1.0", "1.0.0"]))
}

pub(crate) fn versions() -> Vec<Case> {
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
