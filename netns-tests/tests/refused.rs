//! Wrong input through the real program: each its own code and words, and nothing changed by it: no rule, no link, no
//! lease, no sysctl.

use podwire_netns_tests::{Lab, LabError, Node, PluginCall, Result};
use serde_json::{Value, json};

const CONFIG: u64 = 7;
const UNSUPPORTED: u64 = 2;
const HOST_ADDRESS: u64 = 112;
const TUNING: u64 = 115;
const FORBIDDEN: u64 = 116;

/// What the keys are, the code, and what the message says.
type Row = (&'static str, Value, u64, &'static [&'static str]);

fn port(more: Value) -> Value {
    let mut port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    more.as_object().into_iter().flatten().for_each(|(key, value)| port[key.as_str()] = value.clone());
    json!({ "runtimeConfig": { "portMappings": [port] } })
}

fn ports() -> Vec<Row> {
    let condition = |text: &str| {
        let mut config = port(json!({}));
        config["conditionsV4"] = json!([text]);
        config
    };
    vec![
        ("host port 0", port(json!({ "hostPort": 0 })), CONFIG, &["hostPort", "0"]),
        ("host port 65536", port(json!({ "hostPort": 65536 })), CONFIG, &["hostPort", "65536"]),
        ("a negative host port", port(json!({ "hostPort": -1 })), CONFIG, &["hostPort", "-1"]),
        ("a host port as text", port(json!({ "hostPort": "80" })), CONFIG, &["hostPort", "80"]),
        ("no host port", port(json!({ "hostPort": null })), CONFIG, &["hostPort"]),
        ("container port 0", port(json!({ "containerPort": 0 })), CONFIG, &["containerPort", "0"]),
        (
            "container port 65536",
            port(json!({ "containerPort": 65536 })),
            CONFIG,
            &["containerPort", "65536"],
        ),
        ("a fraction of a port", port(json!({ "containerPort": 80.5 })), CONFIG, &["containerPort", "80.5"]),
        ("no container port", port(json!({ "containerPort": null })), CONFIG, &["containerPort"]),
        ("an unknown protocol", port(json!({ "protocol": "icmp" })), CONFIG, &["protocol", "icmp"]),
        ("a protocol as a number", port(json!({ "protocol": 6 })), CONFIG, &["protocol", "6"]),
        ("a hostIP that is none", port(json!({ "hostIP": "localhost" })), CONFIG, &["hostIP", "localhost"]),
        (
            "a hostIP with a prefix",
            port(json!({ "hostIP": "10.0.0.1/8" })),
            CONFIG,
            &["hostIP", "10.0.0.1/8"],
        ),
        ("a hostIP of another host", port(json!({ "hostIP": "192.0.2.77" })), HOST_ADDRESS, &["192.0.2.77"]),
        (
            "an IPv6 hostIP of another host",
            port(json!({ "hostIP": "2001:db8::7" })),
            HOST_ADDRESS,
            &["2001:db8::7"],
        ),
        (
            "portMappings that are no list",
            json!({ "runtimeConfig": { "portMappings": {} } }),
            CONFIG,
            &["portMappings"],
        ),
        (
            "a mapping that is no object",
            json!({ "runtimeConfig": { "portMappings": [8080] } }),
            CONFIG,
            &["portMappings", "8080"],
        ),
        (
            "one port twice",
            json!({ "runtimeConfig": { "portMappings": [
                { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }, { "hostPort": 8080, "containerPort": 81, "protocol": "tcp" }
            ] } }),
            CONFIG,
            &["8080"],
        ),
        ("snat as text", json!({ "snat": "no" }), CONFIG, &["snat", "no"]),
        ("masqAll as a number", json!({ "masqAll": 2 }), CONFIG, &["masqAll", "2"]),
        ("markMasqBit 32", json!({ "markMasqBit": 32 }), CONFIG, &["markMasqBit", "32"]),
        (
            "both marks",
            json!({ "markMasqBit": 5, "externalSetMarkChain": "X" }),
            CONFIG,
            &["markMasqBit", "externalSetMarkChain"],
        ),
        ("an unknown backend", json!({ "backend": "ipfw" }), CONFIG, &["backend", "ipfw"]),
        (
            "conditions that are no list",
            json!({ "conditionsV4": "ip saddr 10.0.0.1" }),
            CONFIG,
            &["conditionsV4"],
        ),
        ("a condition that is no text", json!({ "conditionsV6": [6] }), CONFIG, &["conditionsV6", "6"]),
        ("a condition in iptables' words", condition("-s 10.0.0.0/8"), CONFIG, &["-s", "ip saddr"]),
        ("a condition with a bad address", condition("ip saddr 10.0.0.300"), CONFIG, &["10.0.0.300"]),
        ("a condition without an end", condition("ip saddr"), CONFIG, &["ip saddr"]),
        ("a condition that decides", condition("ip saddr 10.0.0.1 accept"), CONFIG, &["accept"]),
        ("a condition of the other family", condition("ip6 saddr fd00::1"), CONFIG, &["ip6"]),
    ]
}

fn shaping() -> Vec<Row> {
    let runtime = |bandwidth: Value| json!({ "runtimeConfig": { "bandwidth": bandwidth } });
    vec![
        ("a rate without a burst", json!({ "ingressRate": 1_000_000 }), CONFIG, &["ingressBurst"]),
        ("a burst without a rate", json!({ "egressBurst": 1_000_000 }), CONFIG, &["egressRate"]),
        (
            "the runtime's rate without a burst",
            runtime(json!({ "EgressRate": 1_000_000 })),
            CONFIG,
            &["egressBurst"],
        ),
        ("a rate as text", json!({ "ingressRate": "1M", "ingressBurst": 1 }), CONFIG, &["ingressRate", "1M"]),
        ("a negative rate", json!({ "ingressRate": -5, "ingressBurst": 1 }), CONFIG, &["ingressRate", "-5"]),
        ("a rate of 7 bits", json!({ "egressRate": 7, "egressBurst": 8000 }), CONFIG, &["egressRate", "7"]),
        (
            "a burst of 4 GiB",
            json!({ "egressRate": 8000, "egressBurst": 34_359_738_368_u64 }),
            CONFIG,
            &["egressBurst", "34359738368"],
        ),
        (
            "bandwidth that is no object",
            json!({ "runtimeConfig": { "bandwidth": 5 } }),
            CONFIG,
            &["bandwidth", "5"],
        ),
        (
            "shapedSubnets",
            json!({ "shapedSubnets": ["10.0.0.0/8"], "egressRate": 8000, "egressBurst": 8000 }),
            UNSUPPORTED,
            &["shapedSubnets"],
        ),
    ]
}

fn others() -> Vec<Row> {
    vec![
        ("ipMasq as text", json!({ "ipMasq": "yes" }), CONFIG, &["ipMasq", "yes"]),
        (
            "an unknown ipMasqBackend",
            json!({ "ipMasq": true, "ipMasqBackend": "pf" }),
            CONFIG,
            &["ipMasqBackend", "pf"],
        ),
        (
            "clusterRanges with host bits",
            json!({ "ipMasq": true, "clusterRanges": ["10.0.0.1/8"] }),
            CONFIG,
            &["clusterRanges", "10.0.0.0/8"],
        ),
        (
            "clusterRanges that are none",
            json!({ "ipMasq": true, "clusterRanges": ["all"] }),
            CONFIG,
            &["clusterRanges", "all"],
        ),
        ("an unknown policy", json!({ "ingressPolicy": "closed" }), CONFIG, &["ingressPolicy", "closed"]),
        ("a policy as a number", json!({ "ingressPolicy": 1 }), CONFIG, &["ingressPolicy", "1"]),
        ("macspoofchk as text", json!({ "macspoofchk": "on" }), CONFIG, &["macspoofchk", "on"]),
        ("addressCheck as a list", json!({ "addressCheck": [] }), CONFIG, &["addressCheck"]),
        (
            "a sysctl outside net",
            json!({ "sysctl": { "kernel.core_pattern": "|/bin/sh" } }),
            CONFIG,
            &["kernel.core_pattern"],
        ),
        (
            "a sysctl on the way out",
            json!({ "sysctl": { "net/../kernel/core_pattern": "|/bin/sh" } }),
            CONFIG,
            &["net/../kernel"],
        ),
        (
            "a sysctl as a number",
            json!({ "sysctl": { "net.core.somaxconn": [5] } }),
            CONFIG,
            &["net.core.somaxconn"],
        ),
        ("sysctls that are no object", json!({ "sysctl": ["net.core.somaxconn"] }), CONFIG, &["sysctl"]),
        (
            "a sysctl of two lines",
            json!({ "sysctl": { "net.core.somaxconn": "5\n6" } }),
            CONFIG,
            &["net.core.somaxconn"],
        ),
        (
            "a sysctl that there is not",
            json!({ "sysctl": { "net.core.nonsense": "1" } }),
            TUNING,
            &["net/core/nonsense"],
        ),
        (
            "a sysctl that the kernel refuses",
            json!({ "sysctl": { "net.core.somaxconn": "many" } }),
            TUNING,
            &["net/core/somaxconn", "many"],
        ),
        ("a mac that is none", json!({ "mac": "02:00" }), CONFIG, &["mac", "02:00"]),
        ("a mac of a group", json!({ "mac": "01:00:5e:00:00:01" }), CONFIG, &["mac", "01:00:5e:00:00:01"]),
        ("an mtu of 100,000", json!({ "mtu": 100_000 }), CONFIG, &["mtu", "100000"]),
        ("promisc as text", json!({ "promisc": "yes" }), CONFIG, &["promisc", "yes"]),
        ("allmulti as a number", json!({ "allmulti": 3 }), CONFIG, &["allmulti", "3"]),
        ("a negative txQLen", json!({ "txQLen": -1 }), CONFIG, &["txQLen", "-1"]),
        ("vlan 4095", json!({ "vlan": 4095 }), CONFIG, &["vlan", "4095"]),
        ("vlan as text", json!({ "vlan": "5" }), CONFIG, &["vlan", "5"]),
        (
            "a trunk that ends before it begins",
            json!({ "vlanTrunk": [{ "minID": 9, "maxID": 5 }] }),
            CONFIG,
            &["vlanTrunk"],
        ),
        ("vlan and trunk", json!({ "vlan": 5, "vlanTrunk": [{ "id": 6 }] }), CONFIG, &["vlan", "vlanTrunk"]),
        ("vlan on a kernel without", json!({ "vlan": 5 }), UNSUPPORTED, &["vlan", "5"]),
        ("a trunk on a kernel without", json!({ "vlanTrunk": [{ "id": 6 }] }), UNSUPPORTED, &["vlanTrunk"]),
    ]
}

/// All that an ADD could have changed. Leases as the store lists them: its files may change without.
fn state(node: &Node) -> Result<String> {
    let script = "nft list ruleset; ip -d -br link; ip -br address; tc qdisc; ip -n pod link; ip -n pod -br address
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/route_localnet; ls /run/podwire /run/cni 2>/dev/null || true";
    let shown = node.run("sh", &["-c", script])?.out();
    let leases = podwire_netns_tests::network::leases(node, "net")?;
    Ok(format!("{shown}\n{leases:?}"))
}

fn refused(name: &str, rows: Vec<Row>) -> Result<()> {
    let node = Lab::new(name)?.node("n")?;
    node.run("ip", &["link", "set", "lo", "up"])?.success("lo")?;
    let config = |more: &Value| {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "podwire", "bridge": "br0", "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]] }
        });
        more.as_object().into_iter().flatten().for_each(|(key, value)| config[key.as_str()] = value.clone());
        config
    };
    // A pod that is there already has rules that a refused ADD must leave alone; the bridge and the store are there.
    let other = node.pod("other")?;
    let full = config(
        &json!({ "ipMasq": true, "runtimeConfig": { "portMappings": [{ "hostPort": 9999, "containerPort": 80 }] } }),
    );
    PluginCall::new("podwire", "ADD").pod(&other).stdin(&full).run(&node)?.ok()?;
    let pod = node.pod("pod")?;
    // Whatever comes of an ADD, its pod's lo may be up.
    node.run("ip", &["-n", "pod", "link", "set", "lo", "up"])?.success("the pod's lo")?;
    let before = state(&node)?;
    let mut wrong = Vec::new();
    for (what, keys, code, says) in rows {
        let answer = PluginCall::new("podwire", "ADD").pod(&pod).stdin(&config(&keys)).run(&node)?;
        match answer.error() {
            Err(error) => {
                wrong.push(format!("{what}: {error:?}"));
                PluginCall::new("podwire", "DEL").pod(&pod).stdin(&config(&keys)).run(&node)?;
            }
            Ok((got, message)) => {
                let details =
                    answer.json.as_ref().and_then(|json| json["details"].as_str()).unwrap_or_default();
                let text = format!("{message}; {details}");
                if got != code {
                    wrong.push(format!("{what}: code {got} instead of {code}: {text}"));
                }
                if let Some(part) = says.iter().find(|part| !text.contains(**part)) {
                    wrong.push(format!("{what}: does not say {part:?}: {text}"));
                }
            }
        }
        let after = state(&node)?;
        if after != before {
            return Err(LabError::new(format!(
                "{what} changed something:\n{before}\n--- now\n{after}\n{wrong:?}"
            )));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(LabError::new(wrong.join("\n"))) }
}

#[test]
fn wrong_host_ports() -> Result<()> {
    refused("wrong-ports", ports())
}

#[test]
fn wrong_limits() -> Result<()> {
    refused("wrong-limits", shaping())
}

#[test]
fn wrong_policies_checks_and_settings() -> Result<()> {
    refused("wrong-settings", others())
}

#[test]
fn a_sysctl_that_the_node_does_not_allow() -> Result<()> {
    let node = Lab::new("forbidden")?.node("n")?;
    node.write("/etc/cni/tuning/allowlist.conf", "^net.core.somaxconn$\n")?;
    let config = |key: &str| {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "podwire", "bridge": "br0", "sysctl": { key: "100" },
            "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" }
        })
    };
    let pod = node.pod("pod")?;
    let add = |key: &str| PluginCall::new("podwire", "ADD").pod(&pod).stdin(&config(key)).run(&node);
    let (code, message) = add("net.ipv4.ip_default_ttl")?.error()?;
    assert_eq!(code, FORBIDDEN, "{message}");
    assert!(message.contains("net.ipv4.ip_default_ttl"), "{message}");
    assert_eq!(node.links()?, [""; 0]);
    add("net.core.somaxconn")?.ok().map(drop)
}
