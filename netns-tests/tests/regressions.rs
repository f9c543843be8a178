//! What once went wrong, one test each.

use std::net::IpAddr;
use std::thread;
use std::time::Instant;

use podwire_netns_tests::podwired::Podwired;
use podwire_netns_tests::{
    LIMIT, Lab, LabError, Node, NodeOptions, PluginCall, Pod, Result, program, wait_for,
};
use serde_json::{Value, json};

/// A network `net` on the bridge `br0` with these keys beside.
fn network(more: Value) -> Value {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "net", "type": "podwire", "bridge": "br0" });
    merge(&mut config, more);
    config
}

fn merge(config: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("{more} is not an object") };
    more.into_iter().for_each(|(key, value)| config[key] = value);
}

fn host_local(ranges: &[&str]) -> Value {
    let sets: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    json!({ "type": "host-local", "ranges": sets })
}

fn call(verb: &str, pod: &Pod, config: &Value) -> PluginCall {
    PluginCall::new("podwire", verb).pod(pod).stdin(config)
}

fn add(node: &Node, pod: &Pod, config: &Value) -> Result<Value> {
    call("ADD", pod, config).run(node)?.ok()
}

fn sh(node: &Node, line: &str) -> Result<String> {
    let done = node.run_with(program("sh").args(["-e", "-c", line]), b"", LIMIT)?;
    Ok(done.success(line)?.out())
}

fn address(result: &Value, index: usize) -> Result<IpAddr> {
    let text = result["ips"][index]["address"].as_str().unwrap_or_default();
    text.split('/').next().unwrap_or_default().parse().map_err(LabError::because("an address"))
}

#[test]
fn a_pod_with_an_mtu_too_small_for_ipv6_is_attached() -> Result<()> {
    let lab = Lab::new("small-mtu")?;
    let node = lab.node("n")?;
    let config = network(json!({ "isGateway": true, "mtu": 1000, "ipam": host_local(&["10.1.0.0/24"]) }));
    let (a, b) = (node.pod("a")?, node.pod("b")?);
    add(&node, &a, &config)?;
    let to_b = address(&add(&node, &b, &config)?, 0)?;
    a.ping(to_b)?;
    // The alias is in the message that the kernel refused at first.
    let links = sh(&node, "ip link show master br0")?;
    assert_eq!(links.matches("alias podwire1 ").count(), 2, "{links}");
    Ok(())
}

#[test]
fn neighbours_learn_at_once_that_an_address_has_another_pod() -> Result<()> {
    let lab = Lab::new("announce")?;
    let node = lab.node("n")?;
    let config = network(json!({ "isGateway": true, "ipam": host_local(&["10.1.0.0/24", "fd01::/64"]) }));
    let mut fixed = config.clone();
    merge(&mut fixed, json!({ "args": { "cni": { "ips": ["10.1.0.50", "fd01::50"] } } }));
    let (witness, first, second) = (node.pod("witness")?, node.pod("first")?, node.pod("second")?);
    add(&node, &witness, &config)?;
    add(&node, &first, &fixed)?;
    let shared: [IpAddr; 2] = ["10.1.0.50".parse(), "fd01::50".parse()].map(|ip| ip.expect("an address"));
    for address in shared {
        witness.ping(address)?;
    }
    call("DEL", &first, &fixed).run(&node)?.ok()?;
    let began = Instant::now();
    add(&node, &second, &fixed)?;
    for address in shared {
        witness.ping(address)?;
    }
    // Without an announcement the witness goes on with the first pod's MAC address for 20 to 30 s.
    let took = began.elapsed();
    assert!(took.as_secs() < 5, "{took:?}");
    Ok(())
}

#[test]
fn a_failed_add_leaves_the_bridge_to_those_who_came_meanwhile() -> Result<()> {
    let lab = Lab::new("came-meanwhile")?;
    let node = lab.node_with("n", &NodeOptions { faults: true, ..NodeOptions::default() })?;
    // Without an agent the one waits for the other.
    let _agent = Podwired::start(&node)?;
    let config =
        network(json!({ "isDefaultGateway": true, "ipam": host_local(&["10.1.0.0/24", "fd01::/64"]) }));
    let mut failing = config.clone();
    failing["ipam"]["routes"] = json!([{ "dst": "192.168.0.0/16", "gw": "172.16.0.1" }]);
    let (first, second, third) = (node.pod("first")?, node.pod("second")?, node.pod("third")?);
    let slow = call("ADD", &first, &failing).env("PODWIRE_STEP_DELAY", "configure-pod:1000");
    let to_second = thread::scope(|scope| {
        let slow = scope.spawn(|| slow.run(&node));
        let has_link = || node.links().is_ok_and(|links| links.iter().any(|link| link.starts_with("pw")));
        assert!(wait_for(LIMIT, has_link), "the first ADD made no link");
        // The bridge, its addresses and forwarding are the first one's work; this one finds them and is done before.
        let result = add(&node, &second, &config)?;
        let failed = slow.join().expect("no panic")?;
        assert_eq!(failed.error()?.0, 100);
        address(&result, 0)
    })?;
    for address in ["10.1.0.1", "fd01::1"] {
        second.ping(address.parse().map_err(LabError::because("an address"))?)?;
    }
    add(&node, &third, &config)?;
    third.ping(to_second)?;
    let forwards = sh(&node, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")?;
    assert_eq!(forwards.split_whitespace().collect::<Vec<_>>(), ["1", "1"]);
    Ok(())
}
