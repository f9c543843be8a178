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

fn check(node: &Node, pod: &Pod, config: &Value, previous: &Value) -> Result<Value> {
    let mut config = config.clone();
    config["prevResult"] = previous.clone();
    call("CHECK", pod, &config).run(node)?.ok()
}

#[test]
fn check_passes_on_a_link_scoped_route_in_every_version() -> Result<()> {
    let lab = Lab::new("scope")?;
    let node = lab.node("n")?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod("")?;
        let mut config = network(json!({ "isGateway": true, "ipam": host_local(&["10.1.0.0/24"]) }));
        config["cniVersion"] = json!(version);
        config["ipam"]["routes"] = json!([{ "dst": "192.168.5.0/24", "scope": 253 }, { "dst": "0.0.0.0/0" }]);
        let result = add(&node, &pod, &config)?;
        check(&node, &pod, &config, &result)?;
        pod.run_program(program("ip").args(["route", "del", "192.168.5.0/24"]), LIMIT)?
            .success("ip route")?;
        let mut tampered = config.clone();
        tampered["prevResult"] = result;
        let answer = call("CHECK", &pod, &tampered).run(&node)?.json.unwrap_or_default();
        let details = answer["details"].as_str().unwrap_or_default();
        assert!(answer["code"] == 101 && details.contains("192.168.5.0/24"), "{answer}");
    }
    Ok(())
}

#[test]
fn check_leaves_running_pods_the_mtu_they_were_made_with() -> Result<()> {
    let lab = Lab::new("agent-mtu")?;
    let node = lab.node("n")?;
    let says = |mtu: u32| {
        let content = json!({ "subnets": ["10.1.0.0/24"], "mtu": mtu }).to_string();
        sh(&node, &format!("mkdir -p /run/podwire/net; echo '{content}' > /run/podwire/net/node.json"))
    };
    // Results of 1.0.0 do not tell the MTU.
    let mut config = network(json!({ "isGateway": true, "ipam": host_local(&["10.1.0.0/24"]) }));
    config["cniVersion"] = json!("1.0.0");
    let pod = node.pod("pod")?;
    says(1450)?;
    let result = add(&node, &pod, &config)?;
    says(1400)?;
    check(&node, &pod, &config, &result)?;
    Ok(())
}

#[test]
fn check_leaves_other_plugins_interfaces_to_them() -> Result<()> {
    let lab = Lab::new("other-interface")?;
    let node = lab.node("n")?;
    let config = network(json!({ "isGateway": true, "ipam": host_local(&["10.1.0.0/24"]) }));
    let pod = node.pod("pod")?;
    let mut result = add(&node, &pod, &config)?;
    let count = result["interfaces"].as_array().map_or(0, Vec::len);
    let list = |value: &mut Value, element: Value| value.as_array_mut().expect("a list").push(element);
    list(&mut result["interfaces"], json!({ "name": "macvlan0", "sandbox": "/run/netns/pod" }));
    list(&mut result["ips"], json!({ "interface": count, "address": "172.16.0.9/24" }));
    check(&node, &pod, &config, &result)?;
    Ok(())
}

#[test]
fn an_ipv6_range_that_grew_takes_the_gateway_with_it() -> Result<()> {
    let lab = Lab::new("grown")?;
    let node = lab.node("n")?;
    let of = |subnet| network(json!({ "isGateway": true, "ipam": host_local(&[subnet]) }));
    let (early, late) = (node.pod("early")?, node.pod("late")?);
    add(&node, &early, &of("fd01::/80"))?;
    let mut config = of("fd01::/64");
    // Outside the range as it was.
    config["args"] = json!({ "cni": { "ips": ["fd01::1:0:0:7"] } });
    let result = add(&node, &late, &config)?;
    check(&node, &late, &config, &result)?;
    sh(&node, "busybox ping -c 2 -W 1 fd01::1:0:0:7")?;
    early.ping("fd01::1".parse().map_err(LabError::because("an address"))?)?;
    Ok(())
}

#[test]
fn add_again_with_fewer_families_takes_the_other_address_away() -> Result<()> {
    let lab = Lab::new("fewer")?;
    let node = lab.node("n")?;
    let of = |ranges: &[&str]| network(json!({ "isGateway": true, "ipam": host_local(ranges) }));
    let pod = node.pod("pod")?;
    add(&node, &pod, &of(&["10.1.0.0/24", "fd01::/64"]))?;
    let result = add(&node, &pod, &of(&["10.1.0.0/24"]))?;
    assert_eq!(address(&result, 0)?.to_string(), "10.1.0.2");
    // fd01::2 is free now, for another pod to get.
    let addresses = pod.addresses("eth0")?;
    assert!(addresses.iter().all(|address| !address.starts_with("fd01:")), "{addresses:?}");
    Ok(())
}

#[test]
fn status_passes_on_what_the_ipam_plugin_says_of_existing_pods() -> Result<()> {
    let lab = Lab::new("status-51")?;
    let node = lab.node("n")?;
    let answer = |code: u32| json!({ "cniVersion": "1.1.0", "code": code, "msg": "no" });
    for (code, expected) in [(51, 51), (50, 50), (11, 50)] {
        let script = format!("#!/bin/sh\ncat > /dev/null\necho '{}'\nexit 1\n", answer(code));
        sh(&node, "mkdir -p /run/plugins; touch /run/plugins/other-ipam; chmod 755 /run/plugins/other-ipam")?;
        node.write("/run/plugins/other-ipam", script)?;
        let config = network(json!({ "ipam": { "type": "other-ipam" } }));
        let status = PluginCall::new("podwire", "STATUS").env("CNI_PATH", "/run/plugins").stdin(&config);
        assert_eq!(status.run(&node)?.error()?.0, expected);
    }
    Ok(())
}

#[test]
fn a_bridge_has_its_ipv6_gateway_where_ipv6_is_off_by_default() -> Result<()> {
    let lab = Lab::new("ipv6-off")?;
    let node = lab.node("n")?;
    sh(&node, "cd /proc/sys/net/ipv6/conf; echo 1 > all/disable_ipv6; echo 1 > default/disable_ipv6")?;
    let config = network(json!({ "isGateway": true, "ipam": host_local(&["10.1.0.0/24", "fd01::/64"]) }));
    let (a, b) = (node.pod("a")?, node.pod("b")?);
    let result = add(&node, &a, &config)?;
    check(&node, &a, &config, &result)?;
    let to_b = address(&add(&node, &b, &config)?, 1)?;
    for address in [to_b, "fd01::1".parse().map_err(LabError::because("an address"))?] {
        a.ping(address)?;
    }
    Ok(())
}

#[test]
fn forwarded_ipv6_reaches_the_first_pod_of_a_new_bridge_at_once() -> Result<()> {
    let lab = Lab::new("bridge-dad")?;
    let node = lab.node("n")?;
    let config = network(json!({ "isGateway": true, "ipam": host_local(&["fd01::/64"]) }));
    add(&node, &node.pod("a")?, &config)?;
    // While its link-local address is tentative, the kernel asks nobody where a pod is for packets that it forwards.
    // The bridge gets that address when its port has carrier.
    let mut shown = String::new();
    let has_one = wait_for(LIMIT, || {
        shown = sh(&node, "ip -6 addr show dev br0 scope link").unwrap_or_default();
        shown.contains("fe80")
    });
    assert!(has_one, "{shown}");
    assert!(!shown.contains("tentative"), "{shown}");
    Ok(())
}
