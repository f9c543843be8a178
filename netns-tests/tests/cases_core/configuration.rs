//! The configuration, whatever the network.

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Text, Want, add, del, error, look, script};
use serde_json::json;

use crate::case;

pub(crate) fn configuration() -> Vec<Case> {
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
