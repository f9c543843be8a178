//! Addresses across failures and across plugins: an ADD that fails after it has addresses, host-local's way in and
//! the way back, podwire-ipam under another plugin, another plugin under podwire.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use podwire_netns_tests::faults::{
    Agent, BRIDGE, GATEWAY, NETWORK, Site, addresses, at_once_for, network, pool,
};
use podwire_netns_tests::{LIMIT, LabError, Node, PluginCall, Pod, Result, program, wait_for};
use serde_json::{Value, json};

fn parse(address: &str) -> Result<IpAddr> {
    address.parse().map_err(LabError::because(address))
}

fn run(site: &Site, line: &str) -> Result<String> {
    let done = site.node().run_with(program("sh").args(["-e", "-c", line]), b"", LIMIT)?;
    Ok(done.success(line)?.out())
}

fn run_in(pod: &Pod, line: &str) -> Result<String> {
    Ok(pod.run_program(program("sh").args(["-e", "-c", line]), LIMIT)?.success(line)?.out())
}

// -- failures after IPAM --

/// Ways for an ADD to fail after it has been given an address: a name, what is changed in the configuration, what is
/// done in the node and in the pod before, and the error's code.
const FAILURES: [(&str, &str, &str, &str, u64); 5] = [
    ("interface-taken", "{}", "", "ip link add eth0 type bridge", 105),
    ("bridge-is-none", "{}", "ip link add br0 type veth peer other", "", 104),
    ("bridge-of-others", "{}", "ip link add br0 type bridge && ip address add 192.0.2.1/24 dev br0", "", 104),
    ("route", r#"{"ipam": {"routes": [{"dst": "192.0.2.0/24", "gw": "198.51.100.1"}]}}"#, "", "", 100),
    (
        "route-taken",
        r#"{"ipam": {"routes": [{"dst": "192.0.2.0/24"}]}}"#,
        "",
        "ip link set lo up && ip route add 192.0.2.0/24 dev lo",
        100,
    ),
];

#[test]
fn an_add_that_fails_after_ipam_leaves_the_reservations_and_the_node_as_they_were() -> Result<()> {
    for with_agent in [false, true] {
        for (name, change, on_node, in_pod, code) in FAILURES {
            let site = Site::new(name)?;
            let agent = if with_agent { Some(site.agent()?) } else { None };
            let mut config = pool(2);
            let change: Value = serde_json::from_str(change).map_err(LabError::because(name))?;
            for (key, value) in change.as_object().into_iter().flatten() {
                match value.as_object() {
                    Some(inner) => inner.iter().for_each(|(k, v)| config[key][k] = v.clone()),
                    None => config[key] = value.clone(),
                }
            }
            let pod = site.pod("p")?;
            run(&site, on_node)?;
            run_in(&pod, in_pod)?;
            let state = || -> Result<_> {
                let forwarding =
                    run(&site, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")?;
                let addresses = site.node().ip(&["address"])?;
                let addresses: Vec<_> = addresses
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|link| (link["ifname"].clone(), link["addr_info"].clone(), link["flags"].clone()))
                    .collect();
                Ok((forwarding, addresses, pod.links()?, site.leases()?.len()))
            };
            let before = state()?;
            for _ in 0..2 {
                let (given, message) = site.call("ADD", &pod, &config).run(site.node())?.error()?;
                assert_eq!(given, code, "{name}: {message}");
                assert_eq!(state()?, before, "{name}: {message}");
            }
            // And with a right configuration all addresses are to be had.
            run(&site, "ip link del br0 2>/dev/null || true")?;
            site.assert_pool_whole(&pool(2), 2, &[]).map_err(LabError::because(name))?;
            site.assert_nothing_left().or_else(|left| match name {
                "bridge-is-none" => Ok(()),
                _ => Err(left),
            })?;
            agent.map_or(Ok(()), Agent::stop)?;
        }
    }
    Ok(())
}

#[test]
fn an_add_that_is_undone_takes_the_bridge_along_that_it_made_and_no_other() -> Result<()> {
    let site = Site::new("undone")?;
    let config = pool(9);
    let occupied = site.pod("occupied")?;
    run_in(&occupied, "ip link add eth0 type bridge")?;
    let fails = || -> Result<()> {
        let (code, message) = site.call("ADD", &occupied, &config).run(site.node())?.error()?;
        assert_eq!(code, 105, "{message}");
        Ok(())
    };
    fails()?;
    assert_eq!(site.node().links()?, [""; 0], "the bridge was made by the ADD that failed");

    // A bridge that has a pod, or that was there, stays, with its address.
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    fails()?;
    site.check(&pod, &config, &result)?.ok()?;
    pod.ping(parse(GATEWAY)?)?;
    site.del(&pod, &config)?;
    fails()?;
    assert_eq!(site.node().links()?, [BRIDGE]);
    assert!(run(&site, "ip address show dev br0")?.contains("10.77.0.1/24"));
    site.assert_nothing_left()
}

#[test]
fn adds_that_are_undone_beside_adds_that_are_not_do_not_take_their_bridge() -> Result<()> {
    // With the agent they are really at once: without it, they take turns at the store.
    for with_agent in [false, true, true, true] {
        let site = Site::new("undone-beside")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let config = pool(40);
        let pods = site.pods("p", 24)?;
        for pod in pods.iter().step_by(2) {
            run_in(pod, "ip link add eth0 type bridge")?;
        }
        let answers = at_once_for(&pods, 24, |pod| site.call("ADD", pod, &config).run(site.node()));
        let mut attached = Vec::new();
        for ((number, pod), answer) in pods.iter().enumerate().zip(answers) {
            let answer = answer?;
            if number % 2 == 0 {
                assert_eq!(answer.error()?.0, 105, "{answer:?}");
            } else {
                attached.push((pod, answer.ok()?));
            }
        }
        let works = |(pod, result): &(&Pod, Value)| -> Result<()> {
            site.check(pod, &config, result)?.ok()?;
            pod.ping(parse(GATEWAY)?).map(drop)
        };
        for done in at_once_for(&attached, 12, works) {
            done?;
        }
        assert_eq!(site.leases()?.len(), 12);
        for deleted in at_once_for(&pods, 8, |pod| site.del(pod, &config)) {
            deleted?;
        }
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}

// -- host-local, there and back --

fn host_local(plugin: &str, name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name, "type": plugin, "bridge": BRIDGE, "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.2", "rangeEnd": "10.77.0.6"}]]}
    })
}

#[test]
fn pods_of_bridge_and_host_local_are_taken_over_and_given_back() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("over-and-back")?;
        let (reference, ours) = (host_local("bridge", NETWORK), host_local("podwire", NETWORK));
        let by_bridge = |verb: &str, pod: &Pod| {
            PluginCall::new("bridge", verb).pod(pod).stdin(&reference).run(site.node())
        };
        let (old, dying) = (site.pods("old", 2)?, site.pod("dying")?);
        let mut held = BTreeSet::new();
        for pod in old.iter().chain([&dying]) {
            held.extend(addresses(&by_bridge("ADD", pod)?.ok()?));
        }

        // "bridge" becomes "podwire": nothing else.
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let new = site.pods("new", 3)?;
        let answer = site.call("ADD", &new[0], &ours).run(site.node())?;
        let told = answer.process.err();
        assert!(told.contains("3 addresses") && told.contains("imported"), "{told}");
        let mine = addresses(&answer.ok()?)[0];
        assert!(held.insert(mine), "{mine} was given twice");
        old[0].ping(mine)?;
        new[0].ping(parse("10.77.0.2")?)?;
        // Of a pool of five one is left.
        let last = site.add_for_address(&new[1], &ours)?;
        assert!(held.insert(last), "{last} was given twice");
        assert_eq!(site.call("ADD", &new[2], &ours).run(site.node())?.error()?.0, 107);

        // DEL of what the bridge plugin made: in its netns, and after the netns is gone.
        site.del(&old[0], &ours)?;
        assert_eq!(old[0].links()?, [""; 0]);
        let again = site.add_for_address(&new[2], &ours)?;
        assert_eq!(again, parse("10.77.0.2")?, "the one that DEL has freed");
        site.del(&new[2], &ours)?;
        let freed = addresses_of(&site)?;
        assert_eq!(freed.len(), 4, "{freed:?}");
        let late = site.call("DEL", &dying, &ours);
        dying.delete()?;
        late.run(site.node())?.ok()?;
        assert_eq!(site.leases()?.len(), 3);

        // The way back, with one pod of the bridge plugin and two of podwire.
        let export = ["ipam", "export", "--network", NETWORK, "--force"];
        let done = site.node().run(&Node::dist("podwirectl").to_string_lossy(), &export)?;
        done.success("podwirectl ipam export")?;
        agent.map_or(Ok(()), Agent::stop)?;
        let mut exported = site.node().list(format!("/var/lib/cni/networks/{NETWORK}"));
        exported.retain(|name| name.parse::<IpAddr>().is_ok());
        assert_eq!(exported, addresses_of(&site)?);
        let owner = site.node().read(format!("/var/lib/cni/networks/{NETWORK}/{mine}"))?;
        assert_eq!(owner, "new0\r\neth0");
        let later = site.pods("later", 2)?;
        for pod in &later {
            let given = addresses(&by_bridge("ADD", pod)?.ok()?)[0].to_string();
            assert!(!exported.contains(&given), "{given} was given twice");
            // The bridge plugin does not announce an address that was another pod's.
            run_in(&new[0], "ip neigh flush all")?;
            new[0].ping(parse(&given)?)?;
        }
        for pod in later.iter().chain(&new[..2]).chain([&old[1]]) {
            by_bridge("DEL", pod)?.ok()?;
            assert_eq!(pod.links()?, [""; 0], "{}", pod.name());
        }
        let gone = || site.node().links().is_ok_and(|links| links == [BRIDGE]);
        assert!(wait_for(Duration::from_secs(5), gone), "{:?}", site.node().links()?);
        let mut left = site.node().list(format!("/var/lib/cni/networks/{NETWORK}"));
        left.retain(|name| name.parse::<IpAddr>().is_ok());
        assert_eq!(left, [""; 0]);
    }
    Ok(())
}

/// The addresses that the store has leases for, sorted as text.
fn addresses_of(site: &Site) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for lease in site.leases()? {
        let text = lease.to_string();
        let at = text.find("10.77.0.").ok_or_else(|| LabError::new(format!("no address in {text}")))?;
        found.push(text[at..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect());
    }
    found.sort();
    Ok(found)
}

// -- one IPAM plugin under another main plugin --

#[test]
fn podwire_ipam_serves_the_reference_bridge() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("under-bridge")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let mut config = pool(2);
        config["cniVersion"] = json!("1.0.0");
        config["type"] = json!("bridge");
        let call =
            |verb: &str, pod: &Pod| PluginCall::new("bridge", verb).pod(pod).stdin(&config).run(site.node());
        let pods = site.pods("p", 3)?;
        let first = call("ADD", &pods[0])?.ok()?;
        let second = call("ADD", &pods[1])?.ok()?;
        assert_eq!(addresses(&first), [parse("10.77.0.2")?]);
        assert_eq!(addresses(&second), [parse("10.77.0.3")?]);
        pods[0].ping(addresses(&second)[0])?;
        let (code, message) = call("ADD", &pods[2])?.error()?;
        assert!(message.contains("no IP addresses available"), "{code} {message}");
        // One DEL in order; the other's pod dies with its netns, and nobody calls.
        call("DEL", &pods[1])?.ok()?;
        call("DEL", &pods[1])?.ok()?;
        pods[0].unmount()?;
        assert_eq!(site.leases()?.len(), 1);
        agent.map_or(Ok(()), Agent::stop)?;
        // Its netns has to be missing twice, a minute apart: by the clock since boot.
        let swept = site.node().path("/var/lib/podwire/ipam.swept");
        let probe = site.pod("probe")?;
        let ipam = |verb: &str| PluginCall::new("podwire-ipam", verb).pod(&probe).stdin(&config);
        for seconds in [1, 62] {
            let _ = fs::remove_file(&swept);
            site.run_later(seconds, &ipam("ADD"))?.ok()?;
            let _ = fs::remove_file(&swept);
            site.run_later(seconds, &ipam("DEL"))?.ok()?;
        }
        assert_eq!(site.leases()?, [Value::Null; 0]);
    }
    Ok(())
}

#[test]
fn a_foreign_ipam_plugin_is_delegated_to() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("static")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let mut config = network(json!([]));
        config["cniVersion"] = json!("1.0.0");
        config["ipam"] = json!({
            "type": "static", "routes": [{"dst": "192.0.2.0/24"}],
            "addresses": [{"address": "10.77.0.9/24", "gateway": GATEWAY}, {"address": "fd77::9/64", "gateway": "fd77::1"}]
        });
        let pod = site.pod("p")?;
        let result = site.add(&pod, &config)?;
        assert_eq!(pod.addresses("eth0")?, ["10.77.0.9/24", "fd77::9/64"]);
        pod.ping(parse(GATEWAY)?)?;
        pod.ping(parse("fd77::1")?)?;
        site.check(&pod, &config, &result)?.ok()?;
        run_in(&pod, "ip route del 192.0.2.0/24")?;
        let details = site.check(&pod, &config, &result)?.json.unwrap_or_default();
        assert!(details["details"].to_string().contains("192.0.2.0/24"), "{details}");
        for _ in 0..2 {
            site.del(&pod, &config)?;
        }
        site.assert_nothing_left()?;

        // It refuses: its own words and code, and nothing is left.
        config["ipam"]["addresses"][0]["address"] = json!("no address");
        let (code, message) = site.call("ADD", &pod, &config).run(site.node())?.error()?;
        assert!(message.contains("no address"), "{code} {message}");
        assert_eq!(pod.links()?, [""; 0]);
        // It is not there.
        config["ipam"]["type"] = json!("missing-ipam");
        assert_eq!(site.call("ADD", &pod, &config).run(site.node())?.error()?.0, 102);
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}

#[test]
fn a_foreign_ipam_plugins_addresses_go_back_when_the_add_fails() -> Result<()> {
    let site = Site::new("delegate-undone")?;
    // A plugin of the test's own, which counts: Debian's `static` keeps no record.
    let plugin = "#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID >> /run/calls\ncat > /dev/null\n\
        [ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.77.0.9/24\"}]}'\nexit 0\n";
    site.node().write("/opt/cni/bin/counting-ipam", plugin)?;
    run(&site, "chmod 755 /opt/cni/bin/counting-ipam")?;
    let mut config = network(json!([]));
    config["cniVersion"] = json!("1.0.0");
    config["ipam"] = json!({"type": "counting-ipam"});
    let occupied = site.pod("occupied")?;
    run_in(&occupied, "ip link add eth0 type bridge")?;
    assert_eq!(site.call("ADD", &occupied, &config).run(site.node())?.error()?.0, 105);
    assert_eq!(site.node().read("/run/calls")?, "ADD occupied\nDEL occupied\n");
    assert_eq!(site.node().links()?, [""; 0]);
    site.assert_nothing_left()
}

#[test]
fn a_pod_that_dies_without_a_del_is_noticed() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("died")?;
        let config = pool(1);
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let dead = site.pod("dead")?;
        site.add(&dead, &config)?;
        dead.delete()?;
        assert!(wait_for(Duration::from_secs(5), || site
            .node()
            .links()
            .is_ok_and(|links| links == [BRIDGE])));
        agent.map_or(Ok(()), Agent::stop)?;
        let swept = site.node().path("/var/lib/podwire/ipam.swept");
        let pod = site.pod("p")?;
        // Missing twice, a minute apart: not at once, the runtime may be about to call.
        let _ = fs::remove_file(&swept);
        let early = site.run_later(1, &site.call("ADD", &pod, &config))?;
        assert_eq!(early.error()?.0, 107);
        let _ = fs::remove_file(&swept);
        let result = site.run_later(120, &site.call("ADD", &pod, &config))?.ok()?;
        assert_eq!(addresses(&result), [parse("10.77.0.2")?]);
        site.del(&pod, &config)?;
        site.assert_nothing_left()?;
    }
    Ok(())
}
