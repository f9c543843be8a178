//! VERSION, DEL, CHECK, GC and STATUS.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{
    Case, Text, VERSIONS, Versions, Want, add, check, del, error, gc, look, ok, script, status, verb,
};
use serde_json::{Value, json};

use crate::{NEWEST, ONE, UNKNOWN_VERB, case, no_verb};

pub(crate) fn verbs() -> Vec<Case> {
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
