//! What packets between pods cost: on two nodes that one veth connects, and on one node.
//!
//! Both ends are in one process on one CPU, so that what is measured is the CPU's work, of everything between the two
//! sockets; contestants take turns, and what counts is the median of the rounds' ratios.

mod rules;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;

use podwire_netns_tests::cluster::{Cluster, ClusterPod, Options};
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Node, Result};

use crate::report::{Goal, Report};
use crate::rows::{Size, turns};
use crate::stage;

/// Where traffic goes from and to.
struct Course {
    name: &'static str,
    server: PathBuf,
    client: PathBuf,
    address: IpAddr,
    /// The nodes on the way.
    nodes: Vec<PathBuf>,
}

impl Course {
    /// The outer source port of a tunnelled connection is one of 28,000, and a node's conntrack remembers each for 30 s or
    /// more. Between two nodes that do nothing else, a run of some seconds meets all of them again; a node of a cluster
    /// has far fewer new connections to each of its peers.
    fn forget_connections(&self) -> Result<()> {
        for node in &self.nodes {
            let mut flush = Command::new("nsenter");
            flush.arg(format!("--net={}", node.display())).args(["conntrack", "-F"]);
            let done = flush.output().map_err(LabError::because("start nsenter"))?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                return Err(LabError::new(format!(
                    "conntrack -F (package conntrack): {}: {said}",
                    done.status
                )));
            }
        }
        Ok(())
    }
}

/// What is measured: the tool's word, the table's, and the unit.
type Kind = (&'static str, &'static str, &'static str);

const RR: Kind = ("rr", "round trip (RR)", "µs");
const STREAM: Kind = ("stream", "one TCP stream (s1) per CPU", "Gbit/s");
const UDP: Kind = ("udp", "datagrams (UDP) per CPU", "/s");
const CRR: Kind = ("connect", "connections (CRR) per CPU", "/s");

/// By descriptor: a namespace need not have a name, and the tool is a child of this process.
fn path(netns: &podwire_netns_tests::Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

struct Meter {
    tool: PathBuf,
    rounds: u32,
    milliseconds: u32,
}

impl Meter {
    fn new(node: &Node, size: &Size) -> Result<Self> {
        let tool = stage::compile(node)?.join("pair");
        let (rounds, milliseconds) = if size.is_quick() { (2, 60) } else { (31, 200) };
        Ok(Self { tool, rounds, milliseconds })
    }

    fn once(&self, kind: Kind, course: &Course) -> Result<f64> {
        if kind == CRR {
            course.forget_connections()?;
        }
        let last = std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
        let mut command = Command::new(&self.tool);
        command.args([kind.0, &self.milliseconds.to_string(), &last.to_string()]);
        command.args([&course.server, &course.client]).arg(course.address.to_string());
        let done = command.output().map_err(LabError::because("start the traffic meter"))?;
        let said = String::from_utf8_lossy(&done.stdout);
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match (numbers.as_slice(), done.status.success(), kind) {
            ([_, _, median], true, RR) => Ok(*median),
            ([bytes, cpu, _], true, STREAM) => Ok(bytes * 8e-9 / cpu),
            ([amount, cpu, _], true, _) => Ok(amount / cpu),
            _ => Err(LabError::new(format!(
                "{} {}: {}: {said}{}",
                course.name,
                kind.0,
                done.status,
                String::from_utf8_lossy(&done.stderr)
            ))),
        }
    }

    /// Measures all courses in turns, then compares: each line names two of them by their places, and the goal.
    fn compare(
        &self,
        what: &str,
        kind: Kind,
        courses: &[&Course],
        lines: &[Line],
        report: &mut Report,
    ) -> Result<()> {
        let mut measured = vec![Vec::new(); courses.len()];
        let places: Vec<usize> = (0..courses.len()).collect();
        // A round that does not count finds neighbours and warms up.
        for round in 0..=self.rounds {
            for place in turns(&places, round) {
                let figure = self.once(kind, courses[place])?;
                if round > 0 {
                    measured[place].push(figure);
                }
            }
        }
        let (_, name, unit) = kind;
        for (course, figures) in courses.iter().zip(&measured) {
            report.samples(&format!("{what}: {name}, {}", course.name), unit, figures)?;
        }
        for &(this, to, goal) in lines {
            let line = format!("{what}: {name}, {} to {}", courses[this].name, courses[to].name);
            report.paired(&line, goal, &measured[this], &measured[to], unit)?;
        }
        Ok(())
    }
}

/// Which course is compared with which.
type Line = (usize, usize, Option<Goal>);

/// Two nodes with podwire that one veth connects, a pod on each, and another on the first.
struct Site {
    name: &'static str,
    cluster: Cluster,
    near: ClusterPod,
    far: ClusterPod,
    neighbour: ClusterPod,
}

impl Site {
    /// `checked`: pods send by their own addresses alone, which the agent's configuration has by default and which neither
    /// flannel nor the reference bridge can do.
    fn new(name: &str, checked: bool) -> Result<Self> {
        let options = Options {
            underlay: Families::Ipv4,
            pods: Families::Ipv4,
            agent: format!(
                "[overlay]\ninterface = \"eth0\"\n[probes]\nenabled = false\n[network]\nmac_check = {checked}\n\
                 address_check = {checked}"
            ),
            ..Options::default()
        };
        let mut cluster = Cluster::prepare(name, &options)?;
        cluster.member(0).uplink().wire_to(cluster.member(1).uplink())?;
        cluster.start_agents()?;
        let (near, far) = (cluster.member(0).pod("near")?, cluster.member(1).pod("far")?);
        let neighbour = cluster.member(0).pod("neighbour")?;
        let name = if checked { "podwire's pods" } else { "podwire's pods without source checks" };
        Ok(Self { name, cluster, near, far, neighbour })
    }

    /// With checks and without.
    fn both(name: &str) -> Result<[Self; 2]> {
        Ok([Self::new(&format!("{name}-checked"), true)?, Self::new(&format!("{name}-bare"), false)?])
    }

    fn everywhere(&self, script: &str) -> Result<()> {
        self.cluster.members().iter().try_for_each(|member| member.sh(script).map(drop))
    }

    fn across(&self) -> Result<Course> {
        self.between(&self.near, &self.far)
    }

    fn within(&self) -> Result<Course> {
        self.between(&self.near, &self.neighbour)
    }

    fn between(&self, client: &ClusterPod, server: &ClusterPod) -> Result<Course> {
        Ok(Course {
            name: self.name,
            server: path(server.pod().netns()),
            client: path(client.pod().netns()),
            address: server.address(true)?,
            nodes: self.cluster.members().iter().map(|member| path(member.node().netns())).collect(),
        })
    }

    fn nodes(&self) -> Result<Course> {
        let [client, server] = [0, 1].map(|number| path(self.cluster.member(number).node().netns()));
        let address = self.cluster.underlay().addresses(1).into_iter().find(IpAddr::is_ipv4);
        let address = address.ok_or_else(|| LabError::new("the node has no IPv4 address"))?;
        let nodes = vec![server.clone(), client.clone()];
        Ok(Course { name: "node to node", server, client, address, nodes })
    }
}

/// Frames on a bridge pass the packet filter, or do not.
fn bridge_netfilter(on: bool) -> String {
    let value = u8::from(on);
    format!(
        "for what in iptables ip6tables arptables; do echo {value} > /proc/sys/net/bridge/bridge-nf-call-$what; done"
    )
}

/// A link as hardware without segmentation of tunnelled packets has it: the kernel cuts, and joins what it receives.
const PLAIN_LINK: &str =
    "ethtool -K eth0 tso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off gro on >/dev/null";

/// The services whose rules are loaded where there are any.
const SERVICES: u32 = 1_000;

impl Site {
    fn load_services(&self) -> Result<()> {
        let rules = rules::kube_proxy(SERVICES);
        for member in self.cluster.members() {
            member.node().write("/run/services", &rules)?;
            member.sh("iptables-nft-restore --noflush < /run/services")?;
        }
        self.everywhere(&bridge_netfilter(true))
    }
}

fn most(goal: f64) -> Option<Goal> {
    Some(Goal::AtMost(goal))
}

fn least(goal: f64) -> Option<Goal> {
    Some(Goal::AtLeast(goal))
}

/// Pods of two nodes beside the nodes themselves.
pub(crate) fn tunnel(size: &Size, report: &mut Report) -> Result<()> {
    let sites = Site::both("bench-tunnel")?;
    for site in &sites {
        site.everywhere(&bridge_netfilter(false))?;
    }
    let meter = Meter::new(sites[0].cluster.member(0).node(), size)?;
    let (checked, bare, nodes) = (sites[0].across()?, sites[1].across()?, sites[0].nodes()?);
    let courses = [&checked, &bare, &nodes];
    let to_nodes = |goal| [(0, 2, goal), (1, 2, goal)];
    let what = "two nodes, no service rules";
    meter.compare(what, RR, &courses, &to_nodes(most(1.9)), report)?;
    meter.compare(what, UDP, &courses, &to_nodes(least(0.42)), report)?;
    meter.compare(what, CRR, &courses, &to_nodes(least(0.43)), report)?;
    meter.compare(&format!("{what}, all offloads"), STREAM, &courses, &to_nodes(None), report)?;
    for site in &sites {
        site.everywhere(PLAIN_LINK)?;
    }
    meter.compare(&format!("{what}, no TSO, GRO"), STREAM, &courses, &to_nodes(least(0.68)), report)
}

/// The same with what a cluster's node has loaded, beside flannel's configuration.
pub(crate) fn services(size: &Size, report: &mut Report) -> Result<()> {
    let sites = Site::both("bench-services")?;
    let flannel = rules::Flannel::new()?;
    for site in &sites {
        site.load_services()?;
    }
    flannel.load(&rules::kube_proxy(SERVICES), &bridge_netfilter(true))?;
    let meter = Meter::new(sites[0].cluster.member(0).node(), size)?;
    let (checked, bare, theirs) = (sites[0].across()?, sites[1].across()?, flannel.across());
    let courses = [&checked, &bare, &theirs];
    let to_theirs = |goal| [(0, 2, goal), (1, 2, goal)];
    let what = "two nodes, 1,000 services' rules";
    meter.compare(what, RR, &courses, &to_theirs(most(1.03)), report)?;
    meter.compare(what, UDP, &courses, &to_theirs(least(0.97)), report)?;
    meter.compare(what, CRR, &courses, &to_theirs(least(1.3)), report)?;
    meter.compare(&format!("{what}, all offloads"), STREAM, &courses, &to_theirs(least(0.97)), report)?;
    for site in &sites {
        site.everywhere(PLAIN_LINK)?;
    }
    flannel.everywhere(PLAIN_LINK)?;
    meter.compare(&format!("{what}, no TSO, GRO"), STREAM, &courses, &to_theirs(least(0.97)), report)
}

/// Pods of one node beside a bare veth pair, and beside the reference plugin's pods.
pub(crate) fn bridge(size: &Size, report: &mut Report) -> Result<()> {
    let sites = Site::both("bench-bridge")?;
    let meter = Meter::new(sites[0].cluster.member(0).node(), size)?;
    let pair = rules::bare_pair(sites[0].cluster.member(0).node())?;
    let [checked, bare] = &sites;
    let checked_pods = checked.within()?;
    let bare_pods = bare.within()?;
    for site in &sites {
        site.everywhere(&bridge_netfilter(false))?;
    }
    let courses = [&checked_pods, &bare_pods, &pair];
    let to = |goal| [(0, 2, goal), (1, 2, goal)];
    let what = "one node, bridge frames unfiltered";
    meter.compare(what, RR, &courses, &to(most(1.15)), report)?;
    meter.compare(what, STREAM, &courses, &to(least(0.88)), report)?;
    meter.compare(what, UDP, &courses, &to(least(0.82)), report)?;
    meter.compare(what, CRR, &courses, &to(least(0.88)), report)?;

    for site in &sites {
        site.load_services()?;
    }
    let reference = rules::Reference::new()?;
    reference.load(&rules::kube_proxy(SERVICES), &bridge_netfilter(true))?;
    let theirs = reference.course();
    let courses = [&checked_pods, &bare_pods, &theirs];
    let what = "one node, 1,000 services' rules";
    meter.compare(what, RR, &courses, &to(most(1.03)), report)?;
    for kind in [STREAM, UDP, CRR] {
        meter.compare(what, kind, &courses, &to(least(0.97)), report)?;
    }
    Ok(())
}
