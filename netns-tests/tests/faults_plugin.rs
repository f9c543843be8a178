//! Calls at the wrong time, in the wrong number, or about things that are not as they were.

use std::collections::BTreeSet;

use podwire_netns_tests::faults::{
    ADDRESS_REFUSED, Agent, BRIDGE, CHECK_FAILED, GATEWAY, Site, addresses, at_once_for, dual_stack, each,
    pool,
};
use podwire_netns_tests::{Answer, LIMIT, LabError, PluginCall, Pod, Result, program};
use serde_json::{Value, json};

fn parse(address: &str) -> Result<std::net::IpAddr> {
    address.parse().map_err(LabError::because(address))
}

/// The host's links of pods.
fn pod_links(site: &Site) -> Result<Vec<String>> {
    Ok(site.node().links()?.into_iter().filter(|name| name.starts_with("pw")).collect())
}

// -- at once --

fn twenty_four_first_adds(with_agent: bool) -> Result<()> {
    let site = Site::new("cold24")?;
    let agent = if with_agent { Some(site.agent()?) } else { None };
    let config = dual_stack();
    let pods = site.pods("p", 24)?;
    let results = at_once_for(&pods, pods.len(), |pod| site.add(pod, &config));
    let results: Vec<Value> = results.into_iter().collect::<Result<_>>()?;
    let given: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 2 * pods.len(), "an address was given twice");
    // One bridge, with each gateway once.
    let bridge = site.node().ip(&["address", "show", "dev", BRIDGE])?;
    let globals = bridge[0]["addr_info"].as_array().into_iter().flatten().filter(|a| a["scope"] == "global");
    let globals: Vec<_> = globals.filter_map(|a| a["local"].as_str()).collect();
    assert_eq!(globals, [GATEWAY, "fd77::1"]);
    let macs: BTreeSet<_> = results.iter().map(|result| result["interfaces"][0]["mac"].to_string()).collect();
    assert_eq!(macs, BTreeSet::from([bridge[0]["address"].to_string()]));
    assert_eq!(site.node().links()?.len(), 1 + pods.len());
    let checks: Vec<_> = pods.iter().zip(&results).collect();
    for checked in at_once_for(&checks, 8, |(pod, result)| site.check(pod, &config, result)?.ok()) {
        checked?;
    }
    pods[0].ping(addresses(&results[23])[0])?;
    pods[23].ping(addresses(&results[0])[1])?;
    for deleted in at_once_for(&pods, pods.len(), |pod| site.del(pod, &config)) {
        deleted?;
    }
    site.assert_nothing_left()?;
    agent.map_or(Ok(()), Agent::stop)
}

#[test]
fn twenty_four_first_adds_at_once_make_one_bridge() -> Result<()> {
    twenty_four_first_adds(false)
}

#[test]
fn twenty_four_first_adds_at_once_make_one_bridge_with_the_agent() -> Result<()> {
    // Without it they take turns at the store; with it nothing keeps them apart.
    (0..3).try_for_each(|_| twenty_four_first_adds(true))
}

/// Fifty ADDs at once, with or without the agent; how many were refused an address.
fn fifty_at_once(name: &str, size: u8, with_agent: bool) -> Result<usize> {
    let site = Site::new(name)?;
    let agent = if with_agent { Some(site.agent()?) } else { None };
    let config = pool(size);
    let pods = site.pods("p", 50)?;
    let answers = at_once_for(&pods, pods.len(), |pod| site.call("ADD", pod, &config).run(site.node()));
    let answers: Vec<Answer> = answers.into_iter().collect::<Result<_>>()?;
    let mut given = BTreeSet::new();
    let mut refused = 0;
    for (pod, answer) in pods.iter().zip(answers) {
        if answer.exit() == Some(0) {
            let address = addresses(&answer.ok()?)[0];
            assert!(given.insert(address), "{address} was given twice");
            assert_eq!(pod.addresses("eth0")?, [format!("{address}/24")]);
        } else {
            let (code, message) = answer.error()?;
            assert_eq!(code, ADDRESS_REFUSED, "{message}");
            assert!(
                message.contains("no IP addresses available in range set: 10.77.0.2-10.77.0."),
                "{message}"
            );
            assert_eq!(pod.links()?, [""; 0]);
            refused += 1;
        }
    }
    assert_eq!(given.len(), usize::from(size).min(50));
    assert_eq!(pod_links(&site)?.len(), given.len());
    for deleted in at_once_for(&pods, pods.len(), |pod| site.del(pod, &config)) {
        deleted?;
    }
    site.assert_nothing_left()?;
    agent.map_or(Ok(()), Agent::stop)?;
    Ok(refused)
}

#[test]
fn fifty_adds_at_once_empty_a_pool_of_fifty() -> Result<()> {
    assert_eq!(fifty_at_once("fifty", 50, false)?, 0);
    assert_eq!(fifty_at_once("fifty-agent", 50, true)?, 0);
    Ok(())
}

#[test]
fn of_fifty_adds_at_once_on_a_pool_of_forty_nine_one_is_refused() -> Result<()> {
    assert_eq!(fifty_at_once("forty-nine", 49, false)?, 1);
    assert_eq!(fifty_at_once("forty-nine-agent", 49, true)?, 1);
    Ok(())
}

// -- DEL --

/// DEL after DEL, each of them with something else in place of the netns.
fn del_with_whatever_is_left(with_agent: bool) -> Result<()> {
    let site = Site::new("del-again")?;
    let agent = if with_agent { Some(site.agent()?) } else { None };
    let config = pool(1);
    type Change = fn(&Site, &Pod, PluginCall) -> Result<PluginCall>;
    let ways: [(&str, Change); 9] = [
        ("unchanged", |_, _, call| Ok(call)),
        ("missing", |_, pod, call| pod.unmount().map(|()| call)),
        ("missing-directory", |_, _, call| Ok(call.env("CNI_NETNS", "/run/no/such/netns"))),
        ("empty", |_, _, call| Ok(call.env("CNI_NETNS", ""))),
        ("unset", |_, _, call| Ok(call.without("CNI_NETNS"))),
        ("plain-file", |site, pod, call| {
            pod.unmount()?;
            site.node().write(pod.netns_path(), b"no namespace").map(|()| call)
        }),
        ("directory", |_, _, call| Ok(call.env("CNI_NETNS", "/run/netns"))),
        ("host", |_, _, call| Ok(call.env("CNI_NETNS", "/proc/1/ns/net"))),
        ("never-added", |site, pod, call| site.del(pod, &pool(1)).map(|()| call)),
    ];
    for (name, change) in ways {
        let pod = site.pod(name)?;
        site.add(&pod, &config)?;
        let call = change(&site, &pod, site.call("DEL", &pod, &config))?;
        for time in ["first", "second", "third"] {
            let done = call.run(site.node())?.ok();
            done.map_err(LabError::because(format!("netns {name}, the {time} DEL")))?;
        }
        assert_eq!(pod.links()?, [""; 0], "{name}");
        site.assert_nothing_left().map_err(LabError::because(format!("netns {name}")))?;
    }
    agent.map_or(Ok(()), Agent::stop)
}

#[test]
fn del_twice_and_thrice_with_a_missing_empty_or_plain_file_netns() -> Result<()> {
    del_with_whatever_is_left(false)
}

#[test]
fn del_twice_and_thrice_with_a_missing_empty_or_plain_file_netns_with_the_agent() -> Result<()> {
    del_with_whatever_is_left(true)
}

#[test]
fn del_with_a_netns_that_is_another_pods_by_now_leaves_that_pod_alone() -> Result<()> {
    for with_agent in [false, true] {
        let site = Site::new("del-reused")?;
        let agent = if with_agent { Some(site.agent()?) } else { None };
        let config = pool(9);
        let old = site.pod("reused")?;
        site.add(&old, &config)?;
        old.unmount()?;
        let new = site.pod("reused")?;
        let result = site.call("ADD", &new, &config).env("CNI_CONTAINERID", "new").run(site.node())?.ok()?;
        for _ in 0..2 {
            // Its CNI_NETNS is the new pod's.
            site.del(&old, &config)?;
            assert_eq!(old.links()?, [""; 0]);
            assert_eq!(new.links()?, ["eth0"]);
            new.ping(parse(GATEWAY)?)?;
        }
        let mut checked = config.clone();
        checked["prevResult"] = result;
        site.call("CHECK", &new, &checked).env("CNI_CONTAINERID", "new").run(site.node())?.ok()?;
        site.call("DEL", &new, &config).env("CNI_CONTAINERID", "new").run(site.node())?.ok()?;
        site.assert_nothing_left()?;
        agent.map_or(Ok(()), Agent::stop)?;
    }
    Ok(())
}

#[test]
fn del_with_a_configuration_that_was_edited_meanwhile() -> Result<()> {
    let site = Site::new("del-edited")?;
    let config = pool(9);
    let edits = [
        json!({"bridge": "another0"}),
        json!({"ipam": {"type": "podwire-ipam"}}),
        json!({"ipam": {"type": "podwire-ipam", "ranges": [[{"subnet": "no subnet"}]]}}),
        json!({"ipam": {"type": "podwire-ipam", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}),
        json!({"ipam": {}}),
        json!({"mtu": "big", "hairpinMode": 3, "promiscMode": true}),
        json!({"vlan": 17}),
    ];
    for edit in edits {
        let pod = site.pod("")?;
        site.add(&pod, &config)?;
        let mut edited = config.clone();
        for (key, value) in edit.as_object().into_iter().flatten() {
            edited[key] = value.clone();
        }
        site.del(&pod, &edited).map_err(LabError::because(format!("DEL with {edit}")))?;
        assert_eq!(pod.links()?, [""; 0], "{edit}");
        site.assert_nothing_left().map_err(LabError::because(format!("DEL with {edit}")))?;
    }
    Ok(())
}

// -- CHECK --

/// One way of tampering: a name, what is run in the node, what in the pod, and the differences that CHECK names,
/// no more and no fewer. `{link}` is the host's link.
struct Tampering(&'static str, &'static str, &'static str, &'static [&'static str]);

impl std::fmt::Display for Tampering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

#[test]
fn check_names_what_was_tampered_with() -> Result<()> {
    let table = [
        Tampering("nothing", "", "", &[]),
        Tampering(
            "address",
            "",
            "ip address del 10.77.0.2/24 dev eth0",
            &[
                "address 10.77.0.2/24 is missing on interface eth0",
                "route to 0.0.0.0/0 via 10.77.0.1 is missing in the container",
            ],
        ),
        Tampering(
            "IPv6 address",
            "",
            "ip address del fd77::2/64 dev eth0",
            &["address fd77::2/64 is missing on interface eth0"],
        ),
        Tampering(
            "route",
            "",
            "ip route del default",
            &["route to 0.0.0.0/0 via 10.77.0.1 is missing in the container"],
        ),
        Tampering(
            "IPv6 route",
            "",
            "ip -6 route del default",
            &["route to ::/0 via fd77::1 is missing in the container"],
        ),
        Tampering(
            "another gateway",
            "",
            "ip route replace default via 10.77.0.9",
            &["route to 0.0.0.0/0 via 10.77.0.1 is missing in the container"],
        ),
        Tampering(
            "link down",
            "",
            "ip link set eth0 down",
            &[
                "interface eth0 is down in the container",
                "route to 0.0.0.0/0 via 10.77.0.1 is missing in the container",
                "route to ::/0 via fd77::1 is missing in the container",
            ],
        ),
        Tampering("host link down", "ip link set {link} down", "", &["host link {link} is down"]),
        Tampering(
            "MAC address",
            "",
            "ip link set eth0 address 02:00:00:00:00:09",
            &["interface eth0 has MAC address 02:00:00:00:00:09 instead of"],
        ),
        Tampering("MTU", "", "ip link set eth0 mtu 1400", &["interface eth0 has MTU 1400 instead of 1500"]),
        Tampering(
            "bridge port",
            "ip link set {link} nomaster",
            "",
            &["host link {link} is not a port of bridge br0"],
        ),
        Tampering(
            "another bridge's port",
            "ip link add br1 type bridge && ip link set {link} master br1",
            "",
            &["host link {link} is not a port of bridge br0"],
        ),
        Tampering(
            "hairpin mode",
            "bridge link set dev {link} hairpin off",
            "",
            &["hairpin mode of bridge port {link} is off"],
        ),
        Tampering(
            "port isolation",
            "bridge link set dev {link} isolated on",
            "",
            &["port isolation of bridge port {link} is on"],
        ),
        Tampering(
            "bridge down",
            "ip link set br0 down",
            "",
            &["bridge br0 is down", "bridge br0 lacks the gateway address fd77::1/64"],
        ),
        Tampering(
            "gateway",
            "ip address del 10.77.0.1/24 dev br0",
            "",
            &["bridge br0 lacks the gateway address 10.77.0.1/24"],
        ),
        Tampering(
            "bridge",
            "ip link del br0",
            "",
            &["bridge br0 is missing", "host link {link} is not a port of bridge br0"],
        ),
        Tampering(
            "no bridge",
            "ip link del br0 && ip link add br0 type veth peer br0-peer",
            "",
            &["br0 is not a bridge", "host link {link} is not a port of bridge br0"],
        ),
        Tampering(
            "forwarding",
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
            "",
            &["net.ipv4.ip_forward is 0, the node does not forward"],
        ),
        Tampering(
            "IPv6 forwarding",
            "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
            "",
            &["net.ipv6.conf.all.forwarding is 0, the node does not forward"],
        ),
        Tampering(
            "alias",
            "ip link set {link} alias somebody-elses",
            "",
            &["host link {link} does not carry this attachment's alias"],
        ),
        Tampering(
            "interface",
            "",
            "ip link del eth0",
            &["host link {link} is missing", "interface eth0 is missing in the container"],
        ),
        Tampering(
            "another interface",
            "",
            "ip link set eth0 down && ip link set eth0 name eth1 && ip link set eth1 up && ip link add eth0 type bridge",
            &[
                "interface eth0 in the container is not the peer of our host link",
                "interface eth0 is down in the container",
                "interface eth0 has MAC address",
                "address 10.77.0.2/24 is missing on interface eth0",
                "address fd77::2/64 is missing on interface eth0",
                "route to 0.0.0.0/0 via 10.77.0.1 is missing in the container",
                "route to ::/0 via fd77::1 is missing in the container",
            ],
        ),
        Tampering(
            "lease",
            "CNI_COMMAND=DEL /opt/cni/bin/podwire-ipam < /run/config.json",
            "",
            &["no lease is recorded for eth0 of container p on network net"],
        ),
    ];
    each(&table, 4, check_after)
}

fn check_after(tampering: &Tampering) -> Result<()> {
    let Tampering(_, on_node, in_pod, differences) = tampering;
    let site = Site::new("tamper")?;
    let config = dual_stack();
    let pod = site.pod("p")?;
    let result = site.add(&pod, &config)?;
    site.check(&pod, &config, &result)?.ok()?;
    site.node().write("/run/config.json", config.to_string())?;
    let link = result["interfaces"][1]["name"].as_str().unwrap_or_default();
    let mut script = program("sh");
    script.args(["-e", "-c", &on_node.replace("{link}", link)]);
    script.envs([("CNI_CONTAINERID", "p"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/opt/cni/bin")]);
    site.node().run_with(&mut script, b"", LIMIT)?.success(on_node)?;
    pod.run_program(program("sh").args(["-e", "-c", in_pod]), LIMIT)?.success(in_pod)?;

    let answer = site.check(&pod, &config, &result)?;
    if differences.is_empty() {
        return answer.ok().map(drop);
    }
    let (code, message) = answer.error()?;
    assert_eq!(code, CHECK_FAILED, "{message}");
    let details = answer.json.as_ref().and_then(|json| json["details"].as_str()).unwrap_or_default();
    let named: Vec<_> = details.split("; ").collect();
    let matches = named.len() == differences.len()
        && differences
            .iter()
            .zip(&named)
            .all(|(wanted, named)| named.starts_with(&wanted.replace("{link}", link)));
    if !matches {
        return Err(LabError::new(format!("CHECK named {named:#?}\nand not {differences:#?}")));
    }
    // And DEL removes what it finds.
    if !on_node.contains("alias") {
        site.del(&pod, &config)?;
        assert_eq!(pod_links(&site)?, [""; 0]);
    }
    Ok(())
}
