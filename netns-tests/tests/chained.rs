//! Podwire behind another main plugin of a chain: host ports, masquerade, shaping and checks of an interface that it did
//! not make. The chain is called as libcni calls it.

use std::time::Duration;

use podwire_netns_tests::chain::Chain;
use podwire_netns_tests::network::rules_of_pods;
use podwire_netns_tests::traffic::{Client, Outside, Place, Port, Server, Sink, UPLINK, send_for};
use podwire_netns_tests::{Answer, LIMIT, Lab, LabError, Node, PluginCall, Pod, Result, program, wait_for};
use serde_json::{Value, json};

const NOT_CHAINABLE: u64 = 117;
const CHECK_FAILED: u64 = 101;
const PORT_TAKEN: u64 = 111;

/// A node with a host outside, and a chain.
struct Scene {
    node: Node,
    outside: Outside,
    chain: Chain,
    runtime: Value,
}

impl Scene {
    fn new(name: &str, main: Value, podwire: Value) -> Result<Self> {
        let node = Lab::new(name)?.node("n")?;
        let outside = Outside::link_to(&node)?;
        // ptp makes its routes only where the node forwards already.
        let forward =
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        node.run("sh", &["-c", forward])?.success(forward)?;
        let runtime = json!({
            "portMappings": [
                { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": 8080, "containerPort": 80, "protocol": "udp" },
            ],
            "bandwidth": { "ingressRate": 20_000_000, "ingressBurst": 2_000_000 }
        });
        Ok(Self { node, outside, chain: Chain::new("net", "1.0.0", vec![main, podwire]), runtime })
    }

    fn call(&self, pod: &Pod) -> PluginCall {
        // Debian's plugins look for iptables in PATH.
        PluginCall::new("", "").pod(pod).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    }

    fn add(&self, pod: &Pod) -> Result<Value> {
        self.chain.add(&self.node, &self.call(pod), &self.runtime)?.ok()
    }

    fn run(&self, verb: &str, pod: &Pod, result: Option<&Value>) -> Result<Answer> {
        self.chain.run(verb, &self.node, &self.call(pod), result, &self.runtime)
    }

    fn hears(&self, from: &impl Place, to: &str, peer: &str) -> Result<()> {
        let heard = Client::at(from).hear(to.parse()?)?;
        assert_eq!(heard.peer.ip().to_string(), peer, "{} to {to}", from.label());
        Ok(())
    }

    /// Nothing is left of any pod.
    fn assert_nothing_left(&self) -> Result<()> {
        let mut links = self.node.links()?;
        links.retain(|link| link != UPLINK && link != "br0");
        assert_eq!(links, [""; 0]);
        assert_eq!(rules_of_pods(&self.node)?, [""; 0]);
        let leases = podwire_netns_tests::network::leases(&self.node, "net")?;
        assert_eq!(leases, [""; 0]);
        Ok(())
    }
}

fn ipam() -> Value {
    json!({ "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd01::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] })
}

fn ptp() -> Value {
    json!({ "type": "ptp", "ipam": ipam() })
}

fn bridge() -> Value {
    json!({ "type": "bridge", "bridge": "br0", "isGateway": true, "hairpinMode": true, "ipam": ipam() })
}

fn podwire() -> Value {
    json!({ "type": "podwire", "ipMasq": true, "capabilities": { "portMappings": true, "bandwidth": true } })
}

/// All that podwire adds, by traffic.
fn everything_works(scene: &Scene, pod: &Pod, result: &Value, gateway: &str) -> Result<()> {
    let _tcp = Server::start(pod, "tcp [::]:80".parse()?)?;
    let _udp = Server::start(pod, "udp [::]:80".parse()?)?;
    let _outside = Server::start(&scene.outside, "tcp [::]:81".parse()?)?;
    for protocol in ["tcp", "udp"] {
        scene.hears(&scene.outside, &format!("{protocol} 198.51.100.1:8080"), "198.51.100.2")?;
        scene.hears(&scene.outside, &format!("{protocol} [fd51::1]:8080"), "fd51::2")?;
        scene.hears(&scene.node, &format!("{protocol} 127.0.0.1:8080"), gateway)?;
        scene.hears(pod, &format!("{protocol} 198.51.100.1:8080"), gateway)?;
    }
    scene.hears(pod, "tcp 198.51.100.2:81", "198.51.100.1")?;
    scene.hears(pod, "tcp [fd51::2]:81", "fd51::1")?;
    // Shaped, roughly: how exactly is another test's question.
    let at = |text: &str| text.parse().map_err(LabError::because("an address"));
    let sink = Sink::start(pod, at("[::]:5001")?)?;
    let address = result["ips"][0]["address"].as_str().and_then(|address| address.split('/').next());
    let to = at(&format!("{}:5001", address.unwrap_or_default()))?;
    let rate = send_for(Client::at(&scene.outside), to, &sink, Duration::from_millis(1500))?;
    assert!(rate < 30e6, "{rate} bits per second");
    Ok(())
}

fn behind(name: &str, main: Value, gateway: &str) -> Result<()> {
    let scene = Scene::new(name, main.clone(), podwire())?;
    let pod = scene.node.pod("a")?;
    let call = scene.call(&pod);
    let alone = Chain::new("net", "1.0.0", vec![main]);
    let made = alone.add(&scene.node, &call, &Value::Null)?.ok()?;
    alone.run("DEL", &scene.node, &call, Some(&made), &Value::Null)?.ok()?;

    let result = scene.add(&pod)?;
    assert_eq!(result["interfaces"].as_array().map(Vec::len), made["interfaces"].as_array().map(Vec::len));
    assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "the result is passed on: {result}");
    scene.run("CHECK", &pod, Some(&result))?.ok()?;
    everything_works(&scene, &pod, &result, gateway)?;

    scene.node.run("nft", &["flush", "ruleset"])?.success("flush")?;
    let (code, message) = scene.run("CHECK", &pod, Some(&result))?.error()?;
    assert_eq!(code, CHECK_FAILED, "{message}");

    scene.run("DEL", &pod, Some(&result))?.ok()?;
    scene.run("DEL", &pod, Some(&result))?.ok()?;
    scene.assert_nothing_left()
}

#[test]
fn behind_the_reference_ptp() -> Result<()> {
    behind("ptp", ptp(), "10.1.0.1")
}

#[test]
fn behind_the_reference_bridge() -> Result<()> {
    behind("bridge", bridge(), "10.1.0.1")
}

#[test]
fn del_without_a_result_and_without_a_netns() -> Result<()> {
    let scene = Scene::new("chained-del", ptp(), podwire())?;
    let pod = scene.node.pod("a")?;
    scene.add(&pod)?;
    pod.unmount()?;
    let del = scene.call(&pod).plugin("podwire").env("CNI_COMMAND", "DEL").without("CNI_NETNS");
    let mut config = podwire();
    config["name"] = json!("net");
    config["cniVersion"] = json!("1.0.0");
    for _ in 0..2 {
        del.clone().stdin(&config).run(&scene.node)?.ok()?;
        assert_eq!(rules_of_pods(&scene.node)?, [""; 0]);
    }
    let ifbs = scene.node.run("ip", &["-br", "link", "show", "type", "ifb"])?.out();
    assert_eq!(ifbs.trim(), "");
    Ok(())
}

#[test]
fn what_cannot_be_chained_is_refused_and_changes_nothing() -> Result<()> {
    let scene = Scene::new("chained-refused", ptp(), podwire())?;
    let pod = scene.node.pod("a")?;
    let made = Chain::new("net", "1.0.0", vec![ptp()]);
    let made = made.add(&scene.node, &scene.call(&pod), &Value::Null)?.ok()?;
    let before = scene.node.run("sh", &["-c", "nft list ruleset; ip link"])?.out();
    let ask = |more: Value, previous: &Value| -> Result<(u64, String)> {
        let mut config = podwire();
        config["name"] = json!("net");
        config["cniVersion"] = json!("1.0.0");
        config["prevResult"] = previous.clone();
        more.as_object().into_iter().flatten().for_each(|(key, value)| config[key.as_str()] = value.clone());
        let call = scene.call(&pod).plugin("podwire").env("CNI_COMMAND", "ADD").stdin(&config);
        call.run(&scene.node)?.error()
    };
    for (key, value) in
        [("ipam", ipam()), ("bridge", json!("br0")), ("isGateway", json!(true)), ("vlan", json!(5))]
    {
        let (code, message) = ask(json!({ key: value }), &made)?;
        assert!(code == 7 || (key == "vlan" && code == 2), "{code} {message}");
        assert!(message.contains(key), "{message}");
    }
    let mut elsewhere = made.clone();
    elsewhere["interfaces"] = json!([{ "name": "eth7", "sandbox": pod.netns_path() }]);
    elsewhere["ips"] = json!([{ "address": "10.1.0.2/24", "interface": 0 }]);
    let mut on_the_node = made.clone();
    on_the_node["interfaces"] = json!([{ "name": "eth0" }]);
    on_the_node["ips"] = json!([]);
    for previous in [&elsewhere, &on_the_node] {
        let (code, message) = ask(json!({}), previous)?;
        assert_eq!(code, NOT_CHAINABLE, "{message}");
        assert!(message.contains("eth0"), "{message}");
    }
    assert_eq!(scene.node.run("sh", &["-c", "nft list ruleset; ip link"])?.out(), before);
    Ok(())
}

#[test]
fn a_pod_on_a_link_of_its_own_sends_from_its_own_addresses_alone() -> Result<()> {
    // Two of a kind but for the check: without it the other address gets there and back.
    for checks in [false, true] {
        let checked = json!({ "type": "podwire", "addressCheck": checks, "macspoofchk": checks });
        let mut scene = Scene::new("chained-spoof", ptp(), checked)?;
        scene.runtime = Value::Null;
        let pod = scene.node.pod("a")?;
        let result = scene.add(&pod)?;
        let host_end = result["interfaces"][0]["name"].as_str().unwrap_or_default().to_owned();
        let at = |place: &Pod, command: &str| -> Result<bool> {
            Ok(place.run_program(program("sh").args(["-c", command]), LIMIT)?.status.success())
        };
        for other in ["10.1.0.99/32", "fd01::99/128"] {
            let ready = at(&pod, &format!("ip address add {other} dev eth0 nodad"))?
                && at(
                    scene.outside.as_pod(),
                    "ip route replace 10.1.0.0/24 via 198.51.100.1; ip route replace fd01::/64 via fd51::1",
                )?;
            assert!(ready, "prepare {other}");
            let route = format!("ip route add {other} dev {host_end}");
            scene.node.run("sh", &["-c", &route])?.success(&route)?;
        }
        // The first packets may go while a neighbour is looked for or an address is still tentative.
        let is_heard = |from: &str, to: &str| {
            let ping = format!("busybox ping -c 2 -i 0.2 -W 1 -I {from} {to}");
            wait_for(Duration::from_secs(5), || at(&pod, &ping).unwrap_or(false))
        };
        let own = |index: usize| {
            let address = result["ips"][index]["address"].as_str().unwrap_or_default();
            address.split('/').next().unwrap_or_default().to_owned()
        };
        for (index, other, to) in [(0, "10.1.0.99", "198.51.100.2"), (1, "fd01::99", "fd51::2")] {
            assert!(is_heard(&own(index), to), "its own address, checked: {checks}");
            assert_eq!(is_heard(other, to), !checks, "{other}, checked: {checks}");
        }
        // Another MAC address, with its own IP address.
        assert!(at(
            &pod,
            "ip link set eth0 address 02:00:00:00:00:99; ip route | grep -q default || ip route add default via 10.1.0.1"
        )?);
        let forget = format!("ip neighbour flush dev {host_end}");
        scene.node.run("sh", &["-c", &forget])?.success(&forget)?;
        assert_eq!(is_heard(&own(0), "198.51.100.2"), !checks, "another MAC address, checked: {checks}");
        scene.run("DEL", &pod, Some(&result))?.ok()?;
        scene.assert_nothing_left()?;
    }
    Ok(())
}

#[test]
fn a_port_of_a_chained_pod_is_taken_for_all() -> Result<()> {
    let scene = Scene::new("chained-port", ptp(), podwire())?;
    let (first, second) = (scene.node.pod("first")?, scene.node.pod("second")?);
    scene.add(&first)?;
    let refused = scene.chain.add(&scene.node, &scene.call(&second), &scene.runtime)?;
    let (code, message) = refused.error()?;
    assert_eq!(code, PORT_TAKEN, "{message}");
    assert!(message.contains("first") && message.contains("8080"), "{message}");
    scene.run("DEL", &second, None)?.ok()?;
    let _server = Server::start(&first, Port::tcp([0, 0, 0, 0], 80))?;
    scene.hears(&scene.outside, "tcp 198.51.100.1:8080", "198.51.100.2")
}

#[test]
fn tuning_alone_behind_the_reference_bridge() -> Result<()> {
    let tuning = json!({
        "type": "podwire-tuning", "sysctl": { "net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1" },
        "mtu": 1300, "txQLen": 77, "promisc": true, "mac": "02:11:22:33:44:55"
    });
    let scene = Scene::new("tuning", bridge(), tuning.clone())?;
    let pod = scene.node.pod("a")?;
    let result = scene.add(&pod)?;
    let shown = pod.ip(&["-details", "link", "show", "eth0"])?;
    assert_eq!(shown[0]["mtu"], 1300);
    assert_eq!(shown[0]["txqlen"], 77);
    assert_eq!(shown[0]["promiscuity"], 1);
    assert_eq!(shown[0]["address"], "02:11:22:33:44:55");
    let own = result["interfaces"].as_array().into_iter().flatten().find(|link| link["name"] == "eth0");
    assert_eq!(own.map(|link| &link["mac"]), Some(&json!("02:11:22:33:44:55")), "{result}");
    scene.run("CHECK", &pod, Some(&result))?.ok()?;
    pod.ip(&["link", "set", "eth0", "mtu", "1200"])?;
    let mut config = tuning;
    config["name"] = json!("net");
    config["cniVersion"] = json!("1.0.0");
    config["prevResult"] = result.clone();
    let alone = scene.call(&pod).plugin("podwire-tuning").stdin(&config);
    let (code, message) = alone.clone().env("CNI_COMMAND", "CHECK").run(&scene.node)?.error()?;
    assert_eq!(code, CHECK_FAILED, "{message}");
    // DEL of the tuning alone puts back what was there.
    alone.env("CNI_COMMAND", "DEL").run(&scene.node)?.ok()?;
    let shown = pod.ip(&["-details", "link", "show", "eth0"])?;
    assert_eq!(shown[0]["mtu"], 1500);
    assert_eq!(shown[0]["promiscuity"], 0);
    assert_ne!(shown[0]["address"], "02:11:22:33:44:55");
    scene.run("DEL", &pod, Some(&result))?.ok()?;
    Ok(())
}

#[test]
fn the_reference_chain_itself_passes_through_the_harness() -> Result<()> {
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let scene = Scene::new("reference-chain", ptp(), portmap)?;
    let pod = scene.node.pod("a")?;
    let result = scene.add(&pod)?;
    let _server = Server::start(&pod, "tcp [::]:80".parse()?)?;
    scene.hears(&scene.outside, "tcp 198.51.100.1:8080", "198.51.100.2")?;
    scene.run("DEL", &pod, Some(&result))?.ok()?;
    let silence = Client::at(&scene.outside).limit(Duration::from_millis(300));
    assert!(silence.hear("tcp 198.51.100.1:8080".parse()?).is_err());
    Ok(())
}
