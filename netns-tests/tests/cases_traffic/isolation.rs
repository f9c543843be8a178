//! `ingressPolicy`: who may open connections to a pod.

use podwire_netns_tests::cases::Reference::{Differs, Lacks, Same};
use podwire_netns_tests::cases::{
    Case, Expect, Seen, Step, Text, add, check, del, look, reach, script, serve, unreachable,
};
use serde_json::{Value, json};

use crate::{another, merged, network, row};

fn policy(policy: &str) -> Value {
    json!({ "ingressPolicy": policy })
}

/// a and b on one bridge, c on another, all with the policy; d on a third with none.
fn four(chosen: &str) -> Vec<Step> {
    let third = json!({ "name": "third", "bridge": "br2", "ingressPolicy": null,
        "ipam": { "ranges": [[{ "subnet": "10.3.0.0/24" }], [{ "subnet": "fd03::/64" }]] } });
    let mut steps: Vec<Step> = vec![
        add("a").into(),
        add("b").into(),
        add("c").config(merged(another(), policy(chosen))).into(),
        add("d").config(third).into(),
    ];
    for place in ["a", "b", "c", "d"] {
        steps.push(serve(place, "tcp [::]:80"));
    }
    steps.push(serve("a", "udp [::]:80"));
    steps.push(serve("outside", "tcp [::]:80"));
    steps
}

/// What every policy allows.
fn allowed() -> Vec<Step> {
    vec![
        reach("outside", "tcp 10.1.0.2:80", "a", "198.51.100.2").into(),
        reach("outside", "tcp [fd01::2]:80", "a", "fd51::2").into(),
        reach("node", "tcp 10.1.0.2:80", "a", "10.1.0.1").into(),
        reach("node", "tcp [fd01::2]:80", "a", "fd01::1").into(),
        reach("a", "tcp 198.51.100.2:80", "outside", "10.1.0.2").into(),
        // A bridge whose pods have no policy is no pod's enemy, and answers are always let through.
        reach("a", "tcp 10.3.0.2:80", "d", "10.1.0.2").into(),
        reach("a", "tcp [fd03::2]:80", "d", "fd01::2").into(),
    ]
}

pub(crate) fn cases() -> Vec<Case> {
    let with = |steps: [Vec<Step>; 3]| steps.into_iter().flatten().collect::<Vec<_>>();
    let not_from_c = || -> Vec<Step> {
        vec![
            unreachable("c", "tcp 10.1.0.2:80").into(),
            unreachable("c", "udp 10.1.0.2:80").into(),
            unreachable("c", "tcp [fd01::2]:80").into(),
            unreachable("a", "tcp 10.2.0.2:80").into(),
        ]
    };
    vec![
        row(
            "open",
            network(policy("open")),
            with([
                four("open"),
                allowed(),
                vec![
                    reach("b", "tcp 10.1.0.2:80", "a", "10.1.0.3").into(),
                    reach("c", "tcp 10.1.0.2:80", "a", "10.2.0.2").into(),
                    reach("c", "tcp [fd01::2]:80", "a", "fd02::2").into(),
                ],
            ]),
            Same,
        ),
        row(
            "same-bridge",
            network(policy("same-bridge")),
            with([
                four("same-bridge"),
                allowed(),
                [not_from_c(), vec![
                    reach("b", "tcp 10.1.0.2:80", "a", "10.1.0.3").into(),
                    reach("b", "tcp [fd01::2]:80", "a", "fd01::3").into(),
                ]]
                .into_iter()
                .flatten()
                .collect(),
            ]),
            Same,
        ),
        row(
            "isolated",
            network(policy("isolated")),
            with([
                four("isolated"),
                allowed(),
                [not_from_c(), vec![
                    unreachable("b", "tcp 10.1.0.2:80").into(),
                    unreachable("b", "udp 10.1.0.2:80").into(),
                    unreachable("b", "tcp [fd01::2]:80").into(),
                ]]
                .into_iter()
                .flatten()
                .collect(),
            ]),
            Lacks("Debian's package (1.1.1 of the plugins) is older than this policy."),
        ),
        row(
            "host ports of an isolated pod",
            network(policy("isolated")),
            vec![
                add("a").config(json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } })).into(),
                add("c").config(merged(another(), policy("isolated"))).into(),
                serve("a", "tcp [::]:80"),
                reach("outside", "tcp 198.51.100.1:8080", "a", "198.51.100.2").into(),
                reach("node", "tcp 127.0.0.1:8080", "a", "10.1.0.1").into(),
                unreachable("c", "tcp 198.51.100.1:8080").into(),
            ],
            Lacks("Debian's package (1.1.1 of the plugins) is older than this policy."),
        ),
        row(
            "a policy that ends with its pod",
            network(policy("same-bridge")),
            vec![
                add("a").into(),
                add("c").config(merged(another(), policy("same-bridge"))).into(),
                check("a").into(),
                del("a").into(),
                look("nft list ruleset | grep -c 10.1.0.2 || true", Text::Is("0")).into(),
                add("b").config(json!({ "ingressPolicy": null, "args": { "cni": { "ips": ["10.1.0.2"] } } })).into(),
                serve("b", "tcp [::]:80"),
                reach("outside", "tcp 10.1.0.2:80", "b", "198.51.100.2").into(),
                reach("c", "tcp 10.1.0.2:80", "b", "10.2.0.2").reference(Seen::Nothing).into(),
            ],
            Differs("The bridge's rule stays when its last pod with a policy is gone."),
        ),
        row(
            "CHECK finds a policy that is gone",
            network(policy("same-bridge")),
            vec![
                add("a").into(),
                script("nft flush ruleset"),
                check("a").fails(101, &["10.1.0.2"]).reference(Expect::Anything).into(),
            ],
            Differs("It looks for the rules that accept, and does not look for those that drop."),
        ),
    ]
}
