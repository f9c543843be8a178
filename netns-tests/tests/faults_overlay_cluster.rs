//! What other nodes are, say and do, with the peers file: nonsense, harm, overlaps, comings and goings by the thousand, a
//! change of the encapsulation. What is right goes on without loss.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::{AT_LAST, AT_ONCE, Cluster, Options, Peer, Scene};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Result, wait_for};

/// Waits until node 0's agent says something with these words of its state.
fn is_told(scene: &Scene, words: &[&str]) -> Result<()> {
    let mut last = String::new();
    let told = wait_for(AT_LAST, || {
        let agent = scene.cluster.member(0).agent();
        last = agent
            .and_then(|agent| Ok(agent.get("/v1/status")?.1 + &agent.get("/v1/nodes")?.1))
            .unwrap_or_default();
        words.iter().all(|word| last.contains(word))
    });
    if told {
        Ok(())
    } else {
        Err(LabError::new(format!("nothing of {words:?} in {last}; the log is\n{}", scene.log())))
    }
}

#[test]
fn a_node_that_is_cut_off_and_healed_is_reached_at_once() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("isolated", underlay)?;
        scene.cluster.member(1).uplink().cut()?;
        assert!(!scene.flows.0[0].flows(100, Duration::from_secs(2)), "packets pass a cut link");
        // Nobody forgets it.
        assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
        scene.cluster.member(1).uplink().heal()?;
        let healed = Instant::now();
        scene.all_flow()?;
        println!("{}: packets flow {:?} after the link is healed", scene.device, healed.elapsed());
        scene.state_comes_back()?;
        scene.assert_steady()?;
    }
    Ok(())
}

#[test]
fn two_nodes_with_one_subnet_are_named_and_change_nothing() -> Result<()> {
    let mut scene = Scene::new("two-claims", Families::Ipv4)?;
    let own = scene.cluster.peers.nodes.clone();
    let peers = &scene.cluster.peers;
    let at = |host| scene.cluster.underlay().in_subnet(0, host);
    // Part of it is enough.
    let mut part = peers.far_peer(1, "thief-of-half", at(303));
    part.subnets.truncate(1);
    let claims = [
        // Between others, this node's, a real peer's: the file is the same everywhere, and wrong.
        vec![peers.far_peer(40, "claim-a", at(300)), peers.far_peer(40, "claim-b", at(301))],
        vec![peers.far_peer(0, "thief-of-ours", at(302))],
        vec![part],
        vec![peers.far_peer(1, "thief-of-all", at(304))],
    ];
    for more in claims {
        for mut nodes in [[own.clone(), more.clone()].concat(), [more, own.clone()].concat()] {
            scene.cluster.peers.nodes = std::mem::take(&mut nodes);
            scene.cluster.write_peers()?;
            is_told(&scene, &["/etc/podwire/peers.toml:", "too"])?;
            assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
        }
    }
    scene.cluster.peers.nodes = own;
    let good = scene.cluster.peers.far_peer(60, "good", at_of(&scene, 400));
    scene.cluster.peers.nodes.push(good);
    scene.cluster.write_peers()?;
    scene
        .cluster
        .member(0)
        .wait_for(AT_LAST, "ip route show proto 112", |out| out.contains("10.240.61.0/24"))?;
    scene.all_flow()?;
    scene.flows.assert_none_lost()
}

fn at_of(scene: &Scene, host: u16) -> Vec<IpAddr> {
    scene.cluster.underlay().in_subnet(0, host)
}

#[test]
fn hostile_records_are_left_out_and_harm_nobody() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("hostile", underlay)?;
        let own = scene.cluster.peers.nodes.clone();
        let right = scene.cluster.underlay().in_subnet(0, 400);
        let mut bad: Vec<Peer> = Vec::new();
        let mut add = |name: &str, addresses: &[&str], subnets: &[&str], more: &str| -> Result<()> {
            let parse = |text: &&str| text.parse::<IpAddr>().map_err(LabError::because(*text));
            bad.push(Peer {
                name: name.to_owned(),
                addresses: addresses.iter().map(parse).collect::<Result<_>>()?,
                subnets: subnets.iter().map(|subnet| (*subnet).to_owned()).collect(),
                more: more.to_owned(),
            });
            Ok(())
        };
        let (node0, node1) = (
            scene.cluster.underlay().addresses(0)[0].to_string(),
            scene.cluster.underlay().addresses(1)[0].to_string(),
        );
        let subnet = "10.240.50.0/24";
        for (number, address) in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "169.254.1.1",
            "fe80::1",
            "10.240.1.7",
            &node0,
            "::ffff:10.10.0.2",
        ]
        .iter()
        .enumerate()
        {
            add(&format!("bad-address-{number}"), &[address], &[subnet], "")?;
        }
        // A peer's address, claimed by another name.
        add("bad-twin", &[&node1], &["10.240.51.0/24"], "")?;
        for (number, subnet) in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8",
            "192.168.0.0/24",
            "10.240.52.0/25",
            "10.240.53.7/24",
            "10.240.1.0/24",
            "127.0.0.0/24",
            "224.0.0.0/24",
            "fe80::/64",
            "10.240.54.0/32",
        ]
        .iter()
        .enumerate()
        {
            add(&format!("bad-subnet-{number}"), &[&right[0].to_string()], &[subnet], "")?;
        }
        add("bad-many", &[&right[0].to_string()], &["10.240.55.0/24", "10.240.56.0/24"], "")?;
        add(&"n".repeat(5000), &[&right[0].to_string()], &["10.240.57.0/24"], "")?;
        add("bad\\u0000\\u001b[31mname", &[&right[0].to_string()], &["10.240.58.0/24"], "")?;
        add("bad-mtu", &[&right[0].to_string()], &["10.240.59.0/24"], "mtu = 4294967295")?;
        // One at a time, for one may be enough to have the file refused, and all others with it; then all.
        for record in &bad {
            scene.cluster.peers.nodes = own.iter().chain([record]).cloned().collect();
            scene.cluster.write_peers()?;
            // A good record in the same or the next file says that it has been read.
            scene.all_flow()?;
        }
        scene.cluster.peers.nodes = own.iter().chain(&bad).cloned().collect();
        scene.cluster.write_peers()?;
        scene.cluster.peers.nodes = own.clone();
        scene.cluster.peers.nodes.push(scene.cluster.peers.far_peer(60, "good", right));
        scene.cluster.write_peers()?;
        scene
            .cluster
            .member(0)
            .wait_for(AT_LAST, "ip route show proto 112", |out| out.contains("10.240.61.0/24"))?;
        scene.cluster.peers.nodes = own;
        scene.cluster.write_peers()?;
        scene.state_comes_back()?;
        scene.all_flow()?;
        scene.flows.assert_none_lost()?;
    }
    Ok(())
}

#[test]
fn a_peers_file_that_cannot_be_read_changes_nothing() -> Result<()> {
    let mut scene = Scene::new("bad-file", Families::Dual)?;
    let good = scene.cluster.peers.to_toml();
    let huge = format!("{good}# {}\n", "x".repeat(64 << 20));
    let many = |line: &str| format!("{good}{}", line.repeat(100_000));
    for text in [
        String::new(),
        "garbage".to_owned(),
        good[..good.len() / 2].to_owned(),
        "\0\0\0\0".to_owned(),
        good.replace("10.240.0.0/13", "10.240.0.0/33"),
        good.replace("subnet_prefix = 24", "subnet_prefix = 1"),
        good.replace("name = \"lab\"", ""),
        format!("{good}\nversion = 99\n"),
        format!("{good}\n[[node]]\n"),
        "[".repeat(100_000),
        many("a.b = 1\n"),
        huge,
    ] {
        scene.cluster.member(0).write_peers(&text)?;
        // Read by now: it was asked to.
        scene.cluster.member_mut(0).agent_mut()?.signal(nix::sys::signal::Signal::SIGHUP)?;
        scene.all_flow()?;
        assert!(!scene.cluster.member_mut(0).agent_mut()?.has_ended(), "{}", scene.log());
    }
    scene.cluster.member(0).sh("rm /etc/podwire/peers.toml")?;
    scene.all_flow()?;
    assert_eq!(scene.cluster.member(0).dataplane()?, scene.before);
    // It says so, and takes the next good one.
    is_told(&scene, &["peers.toml"])?;
    let far = scene.cluster.peers.far_peer(60, "good", scene.cluster.underlay().in_subnet(0, 400));
    scene.cluster.peers.nodes.push(far);
    scene.cluster.write_peers()?;
    scene
        .cluster
        .member(0)
        .wait_for(AT_LAST, "ip route show proto 112", |out| out.contains("10.240.61.0/24"))?;
    scene.flows.assert_none_lost()
}

#[test]
fn a_node_made_again_with_its_name_and_another_address_is_reached_in_either_order_of_events() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("made-again", underlay)?;
        let device = scene.device;
        let mut host = 500;
        // The record before the node, the node before the record, its removal first.
        for order in ["record first", "node first", "removed first"] {
            host += 1;
            let new = scene.cluster.underlay().in_subnet(0, host);
            let old = scene.cluster.peers.nodes[1].addresses.clone();
            scene.cluster.member_mut(1).kill_agent()?;
            let node = |scene: &mut Scene| -> Result<()> {
                let member = scene.cluster.member(1);
                member
                    .sh(&format!("ip link del {device}; nft flush ruleset; rm -f /var/lib/podwire/*.json"))?;
                member.uplink().add_address(new[0])?;
                member.uplink().remove_address(old[0])?;
                member.uplink().add_default_routes()?;
                scene.cluster.member_mut(1).spawn_agent()
            };
            let record = |scene: &mut Scene| {
                scene.cluster.peers.nodes[1].addresses = new.clone();
                scene.cluster.write_peers()
            };
            match order {
                "record first" => {
                    record(&mut scene)?;
                    node(&mut scene)?;
                }
                "node first" => {
                    node(&mut scene)?;
                    record(&mut scene)?;
                }
                _ => {
                    let gone = scene.cluster.peers.nodes.remove(1);
                    scene.cluster.member(0).write_peers(&scene.cluster.peers.to_toml())?;
                    scene
                        .cluster
                        .member(0)
                        .wait_for(AT_LAST, "ip route show proto 112", |out| out.is_empty())?;
                    scene.cluster.peers.nodes.push(gone);
                    node(&mut scene)?;
                    record(&mut scene)?;
                }
            }
            scene.cluster.member_mut(1).agent_mut()?.wait_until_ready(AT_LAST)?;
            scene.all_flow().map_err(LabError::because(order))?;
            println!("{device}: made again, {order}: {}", scene.flows.worst());
            let fdb = scene.cluster.member(0).sh(&format!("bridge fdb show dev {device}"))?.out();
            assert!(fdb.contains(&format!("dst {} ", new[0])) && fdb.lines().count() == 1, "{order}: {fdb}");
            scene.assert_steady()?;
        }
    }
    Ok(())
}

#[test]
fn the_encapsulation_changes_without_loss() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Ipv6] {
        let mut scene = Scene::new("encapsulation", underlay)?;
        let text = |now: (u32, u16), also: Option<(u32, u16)>| {
            let also = also.map_or(String::new(), |(vni, port)| {
                format!("also_receive = [{{ vni = {vni}, port = {port} }}]\n")
            });
            format!("{also}encapsulation = {{ vni = {}, port = {} }}\n", now.0, now.1)
        };
        let first = scene.before.clone();
        // The port, the VNI, both, and back to where it was.
        let ways = [(1, 8472), (1, 4789), (4_000_000, 4789), (7, 8475), (1, 8472)];
        for pair in ways.windows(2) {
            let (old, new) = (pair[0], pair[1]);
            let receives = |scene: &Scene, which: (u32, u16)| -> Result<()> {
                let (vni, port) = which;
                let wanted = format!(" vxlan id {vni} ");
                let port = format!(" dstport {port} ");
                for member in scene.cluster.members() {
                    member.wait_for(AT_LAST, "ip -o -d link show type vxlan up", |out| {
                        out.lines().any(|link| link.contains(&wanted) && link.contains(&port))
                    })?;
                }
                Ok(())
            };
            scene.cluster.peers.settings = text(old, Some(new));
            scene.cluster.write_peers()?;
            receives(&scene, new)?;
            // One node at a time sends on the new one, as files are copied in real life.
            scene.cluster.peers.settings = text(new, Some(old));
            let file = scene.cluster.peers.to_toml();
            for member in scene.cluster.members() {
                member.write_peers(&file)?;
                scene.flows.all_flow(AT_LAST)?;
            }
            // Sent on the new one by both, before the old one goes.
            for member in scene.cluster.members() {
                let (vni, port) = new;
                let script = format!(
                    "device=$(ip -o -d link show type vxlan | grep ' vxlan id {vni} ' | grep ' dstport {port} ' | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/')
                     ip -4 route show proto 112 | grep -q \" dev $device \"; ip -6 route show proto 112 | grep -q \" dev $device \""
                );
                member.wait_for(AT_LAST, &script, |_| true)?;
            }
            scene.flows.all_flow(AT_LAST)?;
            scene.cluster.peers.settings = text(new, None);
            scene.cluster.write_peers()?;
            for member in scene.cluster.members() {
                member.wait_for(AT_LAST, "ip -o link show type vxlan", |out| out.lines().count() == 1)?;
            }
            scene.all_flow()?;
            scene.flows.assert_none_lost().map_err(LabError::because(format!("from {old:?} to {new:?}")))?;
        }
        assert_eq!(scene.cluster.member(0).dataplane()?, first);
    }
    Ok(())
}

#[test]
fn the_mode_changes_without_loss() -> Result<()> {
    for underlay in [Families::Ipv4, Families::Dual] {
        let mut scene = Scene::new("mode", underlay)?;
        let direct = if underlay == Families::Dual { 2 } else { 1 };
        for (mode, count) in [("auto", direct), ("never", 0), ("auto", direct), ("never", 0)] {
            scene.cluster.peers.settings = format!("direct_routing = \"{mode}\"\n");
            let file = scene.cluster.peers.to_toml();
            for member in scene.cluster.members() {
                member.write_peers(&file)?;
                scene.all_flow()?;
            }
            for member in scene.cluster.members() {
                member.wait_for(
                    AT_LAST,
                    "ip -4 route show proto 112; ip -6 route show proto 112",
                    |out| {
                        out.lines().filter(|route| route.contains("dev eth0")).count() == count
                            && out.lines().count() == 2
                    },
                )?;
            }
            scene.all_flow()?;
            scene.flows.assert_none_lost().map_err(LabError::because(format!("to {mode}")))?;
        }
        scene.state_comes_back()?;
    }
    Ok(())
}

/// A little randomness that is the same each time (Numerical Recipes' generator).
struct Random(u32);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % limit
    }
}

#[test]
fn a_crowd_of_two_thousand_peers_joins_and_leaves_at_random_for_a_minute() -> Result<()> {
    let mut scene = Scene::new("crowd", Families::Ipv4)?;
    let own = scene.cluster.peers.nodes.clone();
    let mut random = Random(4);
    let mut present: BTreeMap<u16, u16> = BTreeMap::new();
    let ends = Instant::now() + Duration::from_secs(60);
    let mut rounds = 0;
    let write = |scene: &mut Scene, present: &BTreeMap<u16, u16>| -> Result<()> {
        let peers = &scene.cluster.peers;
        let there = present.iter().map(|(number, host)| {
            peers.far_peer(*number, &format!("far{number}"), scene.cluster.underlay().in_subnet(0, *host))
        });
        let nodes: Vec<_> = own.iter().cloned().chain(there).collect();
        scene.cluster.peers.nodes = nodes;
        // Node 1 has enough to do with its packets.
        scene.cluster.member(0).write_peers(&scene.cluster.peers.to_toml())
    };
    while Instant::now() < ends {
        // Few, or many at once: joining, leaving, coming back with another address, by another name.
        let changes = [1, 3, 30, 1000][random.below(4)];
        for _ in 0..changes {
            let number = 10 + random.below(2000) as u16;
            if present.remove(&number).is_none() || random.below(3) == 0 {
                present.insert(number, 3000 + 2 * number + random.below(2) as u16);
            }
        }
        write(&mut scene, &present)?;
        // Now and then somebody breaks something meanwhile.
        match random.below(40) {
            0 => drop(scene.cluster.member(0).sh("ip -4 route flush 10.244.0.0/15 proto 112")?),
            1 => drop(
                scene.cluster.member(0).sh("bridge fdb flush dev podwire.1 dynamic 2>/dev/null || true")?,
            ),
            _ => {}
        }
        let pause = Duration::from_millis([5, 50, 200][random.below(3)] as u64);
        wait_for(pause, || false);
        rounds += 1;
    }
    let expected = wanted(&scene, &present)?;
    let mut now = BTreeSet::new();
    let came = wait_for(AT_LAST, || {
        now = actual(&scene).unwrap_or_default();
        now == expected
    });
    let lacks: Vec<_> = expected.difference(&now).take(10).collect();
    let more: Vec<_> = now.difference(&expected).take(10).collect();
    assert!(
        came,
        "after {rounds} rounds {} of {} are right; lacks {lacks:#?}, has {more:#?}",
        expected.intersection(&now).count(),
        expected.len()
    );
    scene.all_flow()?;
    println!("{rounds} files, {} peers at the end: {}", present.len(), scene.flows.worst());
    scene.assert_steady()?;
    write(&mut scene, &BTreeMap::new())?;
    scene.state_comes_back()?;
    scene.break_and_repair("ip link set $device down", AT_ONCE).map(drop)
}

/// Each peer's subnets, and where they lead: `10.240.11.0/24 10.10.11.196`.
fn wanted(scene: &Scene, present: &BTreeMap<u16, u16>) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let mut add = |peer: &Peer| {
        for subnet in &peer.subnets {
            all.insert(format!("{subnet} {}", peer.addresses[0]));
        }
    };
    add(&scene.cluster.peers.nodes[1]);
    for (number, host) in present {
        let addresses = scene.cluster.underlay().in_subnet(0, *host);
        add(&scene.cluster.peers.far_peer(*number, "", addresses));
    }
    Ok(all)
}

/// The same from the kernel: each route's neighbour, and that one's forwarding entry. What leads nowhere, and what nothing
/// leads to, is in it too.
fn actual(scene: &Scene) -> Result<BTreeSet<String>> {
    let member = scene.cluster.member(0);
    let lines = |script: &str| -> Result<Vec<Vec<String>>> {
        let out = member.sh(script)?.out();
        Ok(out.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
    };
    let after = |words: &[String], what: &str| {
        words
            .iter()
            .position(|word| word == what)
            .and_then(|at| words.get(at + 1))
            .cloned()
            .unwrap_or_default()
    };
    let routes = lines("ip -4 route show proto 112; ip -6 route show proto 112")?;
    let neighbours = lines("ip neighbour show dev podwire.1 nud permanent")?;
    let fdb = lines("bridge fdb show dev podwire.1")?;
    let mut macs: BTreeMap<String, String> =
        neighbours.iter().map(|words| (words[0].clone(), after(words, "lladdr"))).collect();
    let mut remotes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for words in &fdb {
        remotes.entry(words[0].clone()).or_default().push(after(words, "dst"));
    }
    let mut all = BTreeSet::new();
    let mut used = BTreeSet::new();
    for words in &routes {
        let mac = macs.remove(&after(words, "via")).unwrap_or_else(|| "no neighbour".to_owned());
        let to = remotes.get(&mac).map_or_else(|| "no entry".to_owned(), |to| to.join(" and "));
        used.insert(mac);
        all.insert(format!("{} {to}", words[0]));
    }
    all.extend(macs.keys().map(|left| format!("neighbour {left} without a route")));
    all.extend(
        remotes
            .keys()
            .filter(|mac| !used.contains(*mac))
            .map(|mac| format!("entry {mac} without a neighbour")),
    );
    Ok(all)
}

#[test]
fn five_nodes_reach_each_other() -> Result<()> {
    let cluster = Cluster::start("five", &Options { nodes: 5, ..Options::default() })?;
    let pods = (0..5).map(|number| cluster.pod(number, "p")).collect::<Result<Vec<_>>>()?;
    for (number, one) in pods.iter().enumerate() {
        for other in &pods[number + 1..] {
            cluster.assert_reach(one, other)?;
        }
    }
    Ok(())
}
