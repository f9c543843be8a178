//! What many peers cost: one agent, and a peers file with nodes that need not exist.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::{Cluster, Options};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Result, wait_for};

use crate::report::{Report, Samples};
use crate::rows::Size;
use crate::stage;

/// How long an agent may take for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Before nearly all other programs of the machine, so that these hardly count.
pub(crate) const FIRST: [&str; 3] = ["nice", "-n", "-20"];

/// One node that has an agent, and the peers that it is told of.
struct Crowd {
    cluster: Cluster,
    families: Families,
    peers: u32,
    tools: PathBuf,
}

impl Crowd {
    fn new(families: Families, peers: u32) -> Result<Self> {
        let options = Options {
            nodes: 1,
            underlay: families,
            pods: families,
            agent: "[probes]\nenabled = false".to_owned(),
            ..Options::default()
        };
        let cluster = Cluster::prepare("bench-scale", &options)?;
        let tools = stage::compile(cluster.member(0).node())?;
        let crowd = Self { cluster, families, peers, tools };
        crowd.write(None)?;
        Ok(crowd)
    }

    /// Writes the peers file, in which one of them may be somewhere else.
    fn write(&self, moved: Option<(u32, u32)>) -> Result<()> {
        let v4 = self.families.ipv4();
        let range = if v4 {
            "range = \"10.64.0.0/10\"\nsubnet_prefix = 24"
        } else {
            "range = \"fd00:64::/48\"\nsubnet_prefix = 64"
        };
        let mut text = format!("name = \"scale\"\n[[range]]\n{range}\n");
        let own = self.cluster.underlay().addresses(0);
        let mut node = |name: &str, address: &str, subnet: u32| {
            let subnet = if v4 {
                format!("{}/24", Ipv4Addr::from(0x0a40_0000 + subnet * 256))
            } else {
                format!("fd00:64:0:{subnet:x}::/64")
            };
            let _ = writeln!(
                text,
                "[[node]]\nname = \"{name}\"\naddresses = [\"{address}\"]\nsubnets = [\"{subnet}\"]"
            );
        };
        node("node0", &own[0].to_string(), 0);
        for peer in 1..=self.peers {
            let place = match moved {
                Some((who, place)) if who == peer => 20_000 + place,
                _ => peer,
            };
            let address = if v4 {
                Ipv4Addr::from(0xac10_0000 + place).to_string()
            } else {
                Ipv6Addr::from(0xfd20 << 112 | u128::from(place)).to_string()
            };
            node(&format!("peer{peer:05}"), &address, peer);
        }
        self.cluster.member(0).write_peers(&text)
    }

    /// Starts the agent as if it had never run; how long the pass took that made everything, in milliseconds.
    fn start(&mut self) -> Result<f64> {
        let member = self.cluster.member_mut(0);
        if member.has_agent() {
            member.stop_agent()?;
        }
        let cleaned = format!(
            "{} cleanup >/dev/null; rm -rf /var/lib/podwire/* /run/podwired.log",
            podwire_netns_tests::Node::dist("podwired").display()
        );
        member.sh(&cleaned)?;
        member.start_agent_under(&FIRST)?;
        let wanted = format!("route {}", self.peers);
        let mut took = None;
        wait_for(LIMIT, || {
            let log = member.agent().map(|agent| agent.log()).unwrap_or_default();
            let line = log.lines().find(|line| line.contains(&wanted));
            took = line.and_then(|line| line.rsplit("ms=").next()?.split_whitespace().next()?.parse().ok());
            took.is_some()
        });
        took.ok_or_else(|| LabError::new("the agent did not say that it made all routes"))
    }

    fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        self.cluster.member(0).agent()?.metric(name, labels)
    }

    /// How many comparisons with the kernel there were, and the seconds from events to a kernel that is right, so far.
    fn so_far(&self) -> Result<(f64, f64)> {
        let count = self.metric("podwire_convergence_seconds_count", "")?;
        Ok((count, self.metric("podwire_convergence_seconds_sum", "")?))
    }

    /// The milliseconds from the one event that the action leads to until the kernel is right.
    fn converges(&mut self, action: impl FnOnce(&mut Self) -> Result<()>) -> Result<f64> {
        let (count, seconds) = self.so_far()?;
        action(self)?;
        let came = wait_for(LIMIT, || self.so_far().is_ok_and(|now| now.0 > count));
        if !came {
            return Err(LabError::new("nothing converged"));
        }
        let (now, sum) = self.so_far()?;
        Ok((sum - seconds) * 1e3 / (now - count))
    }
}

/// From nothing to all peers in the kernel.
pub(crate) fn cold(size: &Size, report: &mut Report) -> Result<()> {
    let counts: [(u32, f64); 3] = if size.is_quick() {
        [(100, 30.0), (500, 120.0), (1_500, 400.0)]
    } else {
        [(1_000, 30.0), (5_000, 120.0), (15_000, 400.0)]
    };
    let rounds = if size.is_quick() { 1 } else { 5 };
    for (families, name) in [(Families::Ipv4, "IPv4"), (Families::Ipv6, "IPv6")] {
        for (place, (peers, goal)) in counts.into_iter().enumerate() {
            let mut crowd = Crowd::new(families, peers)?;
            let (mut ours, mut floor) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                ours.push(crowd.start()?);
            }
            let what = format!("cold start with {peers} peers, {name}");
            let samples = Samples::new(ours.clone())?;
            report.amount(&what, Some(goal), samples.median(), "ms");
            report.figures(&what, &samples);
            if place == 2 && families == Families::Ipv4 {
                let tool = crowd.tools.join("peers").display().to_string();
                crowd.cluster.member_mut(0).stop_agent()?;
                for _ in 0..rounds.min(3) {
                    let [nice, option, most] = FIRST;
                    let peers = peers.to_string();
                    let done = crowd.cluster.member(0).node().run(nice, &[option, most, &tool, &peers])?;
                    let said = done.success("peers")?.out();
                    let seconds: f64 = said.trim().parse().map_err(LabError::because(said.clone()))?;
                    floor.push(seconds * 1e3);
                }
                let floor = Samples::new(floor)?;
                let line = format!("{what}, to a socket and a wait per operation, one metric for all");
                report.figures(&format!("{peers} peers, a socket and a wait per operation"), &floor);
                report.compare(&line, Some(0.1), &samples, &floor);
            }
        }
    }
    Ok(())
}

/// One peer that has another address, among many.
pub(crate) fn change(size: &Size, report: &mut Report) -> Result<()> {
    let (peers, rounds) = if size.is_quick() { (1_500, 5) } else { (15_000, 60) };
    let mut crowd = Crowd::new(Families::Ipv4, peers)?;
    crowd.start()?;
    crowd.cluster.member_mut(0).agent_mut()?.wait_until_ready(LIMIT)?;
    let mut took = Vec::new();
    for round in 0..rounds {
        // The store sees by itself that the file is another. A signal would ask for a full check as well, which is not what
        // a change of the cluster is.
        took.push(crowd.converges(|crowd| crowd.write(Some((peers / 2 + round, round))))?);
    }
    let samples = Samples::new(took)?;
    let what = format!("two peers' change at {peers} peers, snapshot to kernel");
    report.amount(&format!("{what}, 99 %"), Some(10.0), samples.share(0.99), "ms");
    report.figures(&what, &samples);
    Ok(())
}

/// What an agent costs while nothing happens, and how long it takes to put everything back.
pub(crate) fn standing(size: &Size, report: &mut Report) -> Result<()> {
    let (peers, idle, rounds) = if size.is_quick() { (500, 12, 1) } else { (5_000, 30, 7) };
    let mut crowd = Crowd::new(Families::Ipv4, peers)?;
    crowd.start()?;
    crowd.cluster.member_mut(0).agent_mut()?.wait_until_ready(LIMIT)?;
    let pid = crowd.cluster.member(0).agent()?.pid();
    let passes = |crowd: &Crowd| -> Result<(f64, f64)> {
        let labels = "";
        Ok((
            crowd.metric("podwire_pass_duration_seconds_count", labels)?,
            crowd.metric("podwire_pass_duration_seconds_sum", labels)?,
        ))
    };
    // What the start left to do is done.
    wait_for(Duration::from_secs(12), || false);
    let (before, cpu, began) = (passes(&crowd)?, cpu_seconds(pid)?, Instant::now());
    wait_for(Duration::from_secs(idle), || false);
    let (after, used, wall) = (passes(&crowd)?, cpu_seconds(pid)? - cpu, began.elapsed().as_secs_f64());
    let check = (after.1 - before.1) / (after.0 - before.0) * 1e3;
    report.amount(&format!("a full check of {peers} peers with nothing to do"), Some(150.0), check, "ms");
    report.amount(
        &format!("CPU of an idle agent with {peers} peers, of one core"),
        Some(1.0),
        used / wall * 100.0,
        "%",
    );
    report.amount(
        &format!("memory of the agent with {peers} peers (VmRSS)"),
        Some(64.0),
        memory(pid, "VmRSS:")?,
        "MiB",
    );
    report.amount(
        &format!("the most that it ever had (VmHWM), {peers} peers"),
        None,
        memory(pid, "VmHWM:")?,
        "MiB",
    );

    let mut took = Vec::new();
    for _ in 0..rounds {
        // The listing takes some 10 ms, which count.
        let script = format!(
            "ip link set podwire.1 down; began=$(date +%s%N)
             while [ $(ip -4 route show proto 112 | wc -l) -lt {peers} ]; do :; done
             echo $(( $(date +%s%N) - began ))"
        );
        let [nice, option, most] = FIRST;
        let done = crowd.cluster.member(0).node().run(nice, &[option, most, "sh", "-ec", &script])?;
        let said = done.success("take the device down")?.out();
        let nanoseconds: f64 = said.trim().parse().map_err(LabError::because(said.clone()))?;
        took.push(nanoseconds / 1e6);
        wait_for(Duration::from_secs(2), || false);
    }
    let samples = Samples::new(took)?;
    let what = format!("the VXLAN device taken down with {peers} peers, until all routes are back");
    report.amount(&what, Some(400.0), samples.median(), "ms");
    report.figures(&what, &samples);
    Ok(())
}

pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: f64 = after.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

pub(crate) fn memory(pid: u32, key: &str) -> Result<f64> {
    let status = read(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().map_err(LabError::because(key.to_owned()))?;
    Ok(kib / 1024.0)
}

fn read(path: String) -> Result<String> {
    std::fs::read_to_string(&path).map_err(LabError::because(format!("read {path}")))
}
