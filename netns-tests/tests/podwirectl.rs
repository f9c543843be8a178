//! `podwirectl` on two nodes with agents: what it shows, and whether it names what was broken.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use podwire_netns_tests::cluster::{Cluster, ClusterPod, Member, Options};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{Finished, LabError, Node, Result, program, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// A neighbour is believed for up to 45 s, and then asked for 8 s. Probes of the agents tell sooner.
const UNTIL_NEIGHBOURS_FAIL: Duration = Duration::from_secs(90);

/// Two nodes whose agents probe each other every second, with a pod on each.
struct Scene {
    pods: [ClusterPod; 2],
    cluster: Cluster,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let agent = "[probes]\ninterval_seconds = 1".to_owned();
        let options = Options { underlay: Families::Ipv4, agent, ..Options::default() };
        let cluster = Cluster::start(name, &options)?;
        let pods = [cluster.pod(0, "a")?, cluster.pod(1, "b")?];
        cluster.assert_reach(&pods[0], &pods[1])?;
        Ok(Self { pods, cluster })
    }

    fn here(&self) -> &Member {
        self.cluster.member(0)
    }

    fn addresses(&self, ipv4: bool) -> Result<[IpAddr; 2]> {
        Ok([self.pods[0].address(ipv4)?, self.pods[1].address(ipv4)?])
    }
}

/// What `podwirectl … --json` prints, and its exit code.
fn json(member: &Member, args: &[&str]) -> Result<(Value, Option<i32>)> {
    let done = member.podwirectl(&[args, &["--json"]].concat())?;
    let value = serde_json::from_slice(&done.stdout).map_err(LabError::because(format!(
        "{args:?}: {} {}",
        done.out(),
        done.err()
    )))?;
    Ok((value, done.code()))
}

/// Runs it, wants that exit code, and gives what it printed.
fn ends_with(member: &Member, code: i32, args: &[&str]) -> Result<Finished> {
    let done = member.podwirectl(args)?;
    if done.code() == Some(code) {
        return Ok(done);
    }
    Err(LabError::new(format!(
        "{args:?} ended with {}, not {code}: {}{}",
        done.status,
        done.out(),
        done.err()
    )))
}

/// The hop that `explain` calls broken.
fn broken(member: &Member, from: &str, to: &str) -> Result<Value> {
    let (found, code) = json(member, &["explain", from, to])?;
    let hop = found[0]["broken"].clone();
    assert_eq!(code, Some(if hop.is_null() { 0 } else { 1 }), "{found:#}");
    Ok(hop)
}

#[test]
fn explain_names_the_broken_hop() -> Result<()> {
    let mut scene = Scene::new("explain")?;
    let [a, b] = scene.addresses(true)?.map(|address| address.to_string());
    for ipv4 in [true, false] {
        for [from, to] in [[0, 1], [1, 0]] {
            let addresses = scene.addresses(ipv4)?;
            let [from, to] = [from, to].map(|at: usize| addresses[at].to_string());
            let done = ends_with(scene.here(), 0, &["explain", &from, &to])?;
            assert!(done.out().contains("nothing is broken on this node"), "{}", done.out());
            assert!(!done.out().contains("doubtful"), "{}", done.out());
        }
    }
    let mut shown = String::new();
    let probed = wait_for(SOON, || {
        shown = scene.here().podwirectl(&["explain", &a, &b]).map(|done| done.out()).unwrap_or_default();
        shown.contains("node node1 answered in")
    });
    assert!(probed, "{shown}");

    // With nobody to repair anything, and nothing but the node's own memory of the cluster.
    scene.cluster.member_mut(0).stop_agent()?;
    let here = scene.here();
    let subnet = format!("{}.0/24", b.rsplit_once('.').unwrap_or_default().0);
    let via = here.sh(&format!("ip route show {subnet}"))?.out();
    let gateway = subnet.trim_end_matches("/24");
    let show = |what: &str| here.sh(what).map(|done| done.out());
    let mac =
        show(&format!("ip neighbour show {gateway} dev podwire.1 | sed 's/.*lladdr \\([^ ]*\\) .*/\\1/'"))?;
    let mac = mac.trim();
    let remote = scene.cluster.underlay().addresses(1)[0].to_string();
    let drop = "nft add table ip filter; nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'";
    let breaks = [
        ("route", format!("ip route del {subnet} proto 112"), format!("ip route add {}", via.trim())),
        (
            "neighbour",
            format!("ip neighbour del {gateway} dev podwire.1"),
            format!("ip neighbour replace {gateway} dev podwire.1 lladdr {mac} nud permanent"),
        ),
        (
            "neighbour",
            format!("ip neighbour replace {gateway} dev podwire.1 lladdr 02:00:00:00:00:99 nud permanent"),
            format!("ip neighbour replace {gateway} dev podwire.1 lladdr {mac} nud permanent"),
        ),
        (
            "fdb",
            format!("bridge fdb del {mac} dev podwire.1"),
            format!("bridge fdb replace {mac} dev podwire.1 dst {remote} self permanent"),
        ),
        (
            "fdb",
            format!("bridge fdb replace {mac} dev podwire.1 dst 10.10.9.9 self permanent"),
            format!("bridge fdb replace {mac} dev podwire.1 dst {remote} self permanent"),
        ),
        ("filter", drop.to_owned(), "nft delete table ip filter".to_owned()),
        (
            "forwarding",
            "echo 0 > /proc/sys/net/ipv4/ip_forward".to_owned(),
            "echo 1 > /proc/sys/net/ipv4/ip_forward".to_owned(),
        ),
        ("bridge", "ip link set podwire0 down".to_owned(), "ip link set podwire0 up".to_owned()),
        // The last one: what goes with it does not come back by itself.
        ("device", "ip link set podwire.1 down".to_owned(), "true".to_owned()),
    ];
    assert_eq!(broken(here, "a", &b)?, Value::Null, "well without an agent, and known by its name");
    for (hop, spoil, mend) in breaks {
        here.sh(&spoil)?;
        let found = broken(here, &a, &b)?;
        let shown = here.podwirectl(&["explain", &a, &b])?.out();
        assert_eq!(found, hop, "after {spoil}: {shown}");
        here.sh(&mend)?;
    }
    let nobody = format!("{}.77", a.rsplit_once('.').unwrap_or_default().0);
    assert_eq!(broken(here, &nobody, &b)?, "lease");
    ends_with(here, 2, &["explain", "nobody", &b])?;

    scene.cluster.member_mut(0).start_agent()?;
    let well = wait_for(SOON, || broken(scene.here(), &a, &b).is_ok_and(|found| found.is_null()));
    assert!(well, "{}", scene.here().podwirectl(&["explain", &a, &b])?.out());

    // The other machine goes away: nothing of this node's is wrong.
    scene.cluster.member(1).uplink().cut()?;
    let names = ["underlay", "probe"];
    let noticed = wait_for(UNTIL_NEIGHBOURS_FAIL, || {
        // The kernel notices when it has something to send.
        let _ = scene.pods[0].pod().ping(scene.pods[1].addresses[0]);
        broken(scene.here(), &a, &b).is_ok_and(|found| names.iter().any(|name| found == *name))
    });
    assert!(noticed, "{}", scene.here().podwirectl(&["explain", &a, &b])?.out());
    scene.cluster.member(1).uplink().heal()
}

#[test]
fn trace_sees_a_ping_at_all_four_places() -> Result<()> {
    let scene = Scene::new("trace")?;
    for ipv4 in [true, false] {
        let [a, b] = scene.addresses(ipv4)?;
        let node = scene.here().node().clone();
        let (from, to) = (a.to_string(), b.to_string());
        let watcher = thread::spawn(move || {
            let mut command = program(Node::dist("podwirectl"));
            command.args(["trace", &from, &to, "--count", "4", "--seconds", "30", "--json"]);
            node.run_with(&mut command, b"", Duration::from_secs(45))
        });
        // It may take a moment until the first packets are seen, and four make it end.
        while !watcher.is_finished() {
            scene.pods[0].pod().ping(b)?;
        }
        let done = watcher.join().map_err(|_| LabError::new("the watcher failed"))??;
        let lines: Vec<Value> =
            done.out().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let [packets @ .., totals] = lines.as_slice() else { return Err(LabError::new(done.err())) };
        assert_eq!(totals["packets"], 4, "{totals} {}", done.err());
        // The first may have been on its way when it began to look; the last is whole.
        let last = packets.last().unwrap_or(&Value::Null);
        let seen = last["sightings"].as_array().cloned().unwrap_or_default();
        let mut roles: Vec<&str> = seen.iter().filter_map(|seen| seen["place"]["role"].as_str()).collect();
        roles.sort_unstable();
        assert_eq!(roles, ["bridge", "pod", "tunnel", "underlay"], "{last:#}");
        let wire = seen.iter().find(|seen| seen["place"]["role"] == "underlay").unwrap_or(&Value::Null);
        assert_eq!(wire["frame"]["vni"], 1, "{wire}");
        let nodes = [0, 1].map(|number| scene.cluster.underlay().addresses(number)[0].to_string());
        let outer = &wire["frame"]["outer"]["network"];
        let ends =
            [&outer["source"], &outer["destination"]].map(|end| end.as_str().unwrap_or_default().to_owned());
        assert!(nodes.iter().all(|node| ends.contains(node)), "{outer}");
        let inner = wire["frame"]["inner"]["network"]["source"].as_str().unwrap_or_default();
        assert!([a, b].iter().any(|end| end.to_string() == inner), "{wire}");
    }
    Ok(())
}

/// The codes of what `doctor` finds, notes left out.
fn findings(member: &Member) -> Result<Vec<String>> {
    let (found, code) = json(member, &["doctor"])?;
    let grave = found.as_array().into_iter().flatten().filter(|finding| finding["severity"] != "info");
    let codes: Vec<String> =
        grave.filter_map(|finding| finding["code"].as_str().map(str::to_owned)).collect();
    assert_eq!(code, Some(if codes.is_empty() { 0 } else { 1 }), "{found:#}");
    Ok(codes)
}

/// Waits until `doctor` finds exactly these.
fn finds(member: &Member, wanted: &[&str], after: &str) -> Result<()> {
    let mut last = Vec::new();
    let came = wait_for(SOON, || {
        last = findings(member).unwrap_or_default();
        last == wanted
    });
    if came {
        return Ok(());
    }
    let shown = member.podwirectl(&["doctor"])?.out();
    Err(LabError::new(format!("after {after} doctor finds {last:?}, not {wanted:?}: {shown}")))
}

#[test]
fn doctor_finds_each_planted_problem_and_nothing_on_a_clean_node() -> Result<()> {
    let mut scene = Scene::new("doctor")?;
    let here = scene.here();
    finds(here, &[], "nothing")?;
    let firewall = "nft add table inet fw; nft 'add chain inet fw";
    // As firewalls of hosts are: what belongs to a connection gets in, the rest is dropped.
    let host = format!(
        "{firewall} input {{ type filter hook input priority 5; policy drop; }}'; nft add rule inet fw input ct state \
         established,related accept; nft add rule inet fw input iif lo accept; \
         nft add rule inet fw input meta l4proto {{ icmp, icmpv6 }} accept"
    );
    let plants: [(&str, String, &str); 10] = [
        ("tunnel-drop", host.clone(), "nft delete table inet fw"),
        (
            "probe-drop",
            format!("{host}; nft add rule inet fw input udp dport 8472 accept"),
            "nft delete table inet fw",
        ),
        (
            "foreign-route",
            "ip route add 10.240.2.128/25 via $(ip -4 route show default | sed 's/.*via \\([^ ]*\\).*/\\1/')".to_owned(),
            "ip route del 10.240.2.128/25",
        ),
        (
            "address-in-range",
            "ip link add other0 type bridge; ip address add 10.241.0.9/32 dev other0".to_owned(),
            "ip link del other0",
        ),
        ("bridge-address", "ip address add 10.88.0.1/16 dev podwire0".to_owned(), "ip address del 10.88.0.1/16 dev podwire0 2>/dev/null || true"),
        (
            "forward-drop",
            format!("{firewall} forward {{ type filter hook forward priority 5; policy drop; }}'"),
            "nft delete table inet fw",
        ),
        (
            "tunnel-drop",
            format!("{firewall} input {{ type filter hook input priority 5; }}'; nft add rule inet fw input udp dport 8472 drop"),
            "nft delete table inet fw",
        ),
        (
            "ephemeral-port",
            "echo '1024 65000' > /proc/sys/net/ipv4/ip_local_port_range".to_owned(),
            "echo '32768 60999' > /proc/sys/net/ipv4/ip_local_port_range",
        ),
        (
            "networkd",
            "mkdir -p /run/systemd/netif; : > /run/systemd/netif/state".to_owned(),
            "rm /run/systemd/netif/state",
        ),
        (
            "rival-conflist",
            "echo '{\"cniVersion\":\"1.0.0\",\"name\":\"other\",\"plugins\":[{\"type\":\"bridge\"}]}' > /etc/cni/net.d/05-other.conflist".to_owned(),
            "rm /etc/cni/net.d/05-other.conflist",
        ),
    ];
    for (code, plant, mend) in plants {
        here.sh(&plant)?;
        let mut last = Vec::new();
        // The agent may report some of it too, in its own words.
        let is_it = |found: &[String]| {
            found.iter().any(|found| found == code)
                && found.iter().all(|found| found == code || found.starts_with("agent-"))
        };
        let came = wait_for(SOON, || {
            last = findings(here).unwrap_or_default();
            is_it(&last)
        });
        assert!(came, "after {plant} doctor finds {last:?}: {}", here.podwirectl(&["doctor"])?.out());
        here.sh(mend)?;
        // Probes were lost while packets were dropped.
        finds(here, &[], mend)?;
    }

    // What the agent would put right.
    scene.cluster.member_mut(0).stop_agent()?;
    let here = scene.here();
    finds(here, &["agent-down"], "the end of the agent")?;
    for (code, plant, mend) in [
        ("forwarding", "echo 0 > /proc/sys/net/ipv4/ip_forward", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
        (
            "rp-filter",
            "echo 1 > /proc/sys/net/ipv4/conf/podwire.1/rp_filter",
            "echo 2 > /proc/sys/net/ipv4/conf/podwire.1/rp_filter",
        ),
        ("mtu", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"),
        ("vtep-mac", "ip link set podwire.1 address 02:00:00:00:00:77", "true"),
    ] {
        here.sh(plant)?;
        let mut wanted = ["agent-down", code];
        wanted.sort_unstable();
        let mut found = findings(here)?;
        found.sort();
        assert!(
            found.iter().any(|found| found == code),
            "after {plant}: {}",
            here.podwirectl(&["doctor"])?.out()
        );
        here.sh(mend)?;
    }
    scene.cluster.member_mut(0).start_agent()?;
    finds(scene.here(), &[], "the agent's start")
}

#[test]
fn on_every_kind_of_cluster_all_is_well() -> Result<()> {
    for (underlay, settings) in [
        (Families::Ipv6, ""),
        (Families::Dual, ""),
        (Families::Dual, "direct_routing = \"auto\""),
        (Families::Dual, "direct_routing = \"always\""),
    ] {
        let agent = "[probes]\ninterval_seconds = 1".to_owned();
        let options = Options { underlay, settings: settings.to_owned(), agent, ..Options::default() };
        let cluster = Cluster::start("kinds", &options)?;
        let pods = [cluster.pod(0, "a")?, cluster.pod(1, "b")?];
        cluster.assert_reach(&pods[0], &pods[1])?;
        let here = cluster.member(0);
        let kind = format!("{underlay:?} {settings}");
        finds(here, &[], &kind)?;
        for ipv4 in [true, false] {
            let [a, b] = [pods[0].address(ipv4)?.to_string(), pods[1].address(ipv4)?.to_string()];
            for [from, to] in [[&a, &b], [&b, &a]] {
                let found = broken(here, from, to)?;
                let shown = here.podwirectl(&["explain", from, to])?.out();
                assert_eq!(found, Value::Null, "{kind}: {shown}");
                assert!(!shown.contains("doubtful"), "{kind}: {shown}");
            }
        }
        ends_with(here, 0, &["status"])?;
    }
    Ok(())
}

#[test]
fn what_is_shown_is_for_people_and_for_programs() -> Result<()> {
    let mut scene = Scene::new("show")?;
    let here = scene.here();
    let shown = ends_with(here, 0, &["status"])?.out();
    for word in [
        "node0",
        "ready",
        "eth0",
        "podwire.1",
        "10.240.1.0/24",
        "1 other nodes: 1 by tunnel",
        "1 attached",
        "in sync",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "colours without a terminal: {shown:?}");
    let (status, _) = json(here, &["status"])?;
    assert_eq!((&status["node"], &status["ready"]), (&"node0".into(), &true.into()), "{status}");
    let (nodes, _) = json(here, &["nodes"])?;
    assert_eq!(nodes.as_array().map(Vec::len), Some(2), "{nodes}");
    let shown = ends_with(here, 0, &["nodes"])?.out();
    assert!(shown.contains("node1") && shown.contains("this node"), "{shown}");
    let shown = ends_with(here, 0, &["nodes", "node1"])?.out();
    assert!(shown.contains("10.240.2.0/24") && shown.contains("podwire.1"), "{shown}");
    ends_with(here, 2, &["nodes", "nobody"])?;
    let (pods, _) = json(here, &["pods"])?;
    assert_eq!(pods[0]["container"], "a", "{pods}");
    let (config, _) = json(here, &["cluster", "show"])?;
    assert_eq!(config["encapsulation"]["port"], 8472, "{config}");
    // The peers file says it; the agent must not.
    let refused = ends_with(here, 4, &["cluster", "set", "vni=7"])?;
    assert!(refused.err().contains("file"), "{}", refused.err());
    ends_with(here, 2, &["cluster", "set", "vni=x"])?;
    ends_with(here, 2, &["nonsense"])?;
    let denied = here.node().run(
        "setpriv",
        &["--reuid", "65534", "--clear-groups", &Node::dist("podwirectl").to_string_lossy(), "status"],
    )?;
    assert_eq!(denied.code(), Some(4), "{}", denied.err());
    assert!(denied.err().contains("root"), "{}", denied.err());

    // A pod's interface is taken away behind everybody's back.
    let link = pods[0]["link"].as_str().unwrap_or_default().to_owned();
    ends_with(here, 0, &["ipam", "check"])?;
    here.sh(&format!("ip link del {link}"))?;
    let found = ends_with(here, 1, &["ipam", "check"])?.out();
    assert!(found.contains(&link), "{found}");
    let dry = ends_with(here, 0, &["ipam", "gc", "--dry-run"])?.out();
    assert!(dry.contains("would end"), "{dry}");
    ends_with(here, 0, &["ipam", "gc"])?;
    ends_with(here, 0, &["ipam", "check"])?;
    assert_eq!(json(here, &["ipam", "show"])?.0, Value::Array(Vec::new()));

    scene.cluster.member_mut(0).kill_agent()?;
    let here = scene.here();
    ends_with(here, 3, &["status"])?;
    ends_with(here, 3, &["cluster", "set", "vni=7"])?;
    let remembered = ends_with(here, 0, &["nodes"])?;
    assert!(
        remembered.out().contains("node1") && remembered.err().contains("remembers"),
        "{}",
        remembered.err()
    );
    ends_with(here, 0, &["pods"])?;
    Ok(())
}
