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
}

/// What is measured: the tool's word, the table's, the unit, and whether less is better.
type Kind = (&'static str, &'static str, &'static str, bool);

const RR: Kind = ("rr", "round trip (RR)", "µs", true);
const STREAM: Kind = ("stream", "one TCP stream (s1) per CPU", "Gbit/s", false);
const UDP: Kind = ("udp", "datagrams (UDP) per CPU", "/s", false);
const CRR: Kind = ("connect", "connections (CRR) per CPU", "/s", false);

/// By descriptor: a namespace need not have a name, and the tool is a child of this process.
fn path(netns: &podwire_netns_tests::Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

fn between(name: &'static str, client: &ClusterPod, server: &ClusterPod) -> Result<Course> {
    let (server_at, client_at) = (path(server.pod().netns()), path(client.pod().netns()));
    Ok(Course { name, server: server_at, client: client_at, address: server.address(true)? })
}

struct Meter {
    tool: PathBuf,
    rounds: u32,
    milliseconds: u32,
}

impl Meter {
    fn new(node: &Node, size: &Size) -> Result<Self> {
        let tool = stage::compile(node)?.join("pair");
        let (rounds, milliseconds) = if size.is_quick() { (2, 60) } else { (25, 250) };
        Ok(Self { tool, rounds, milliseconds })
    }

    fn once(&self, kind: Kind, course: &Course) -> Result<f64> {
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

    /// Compares the first course with the others.
    fn compare(
        &self,
        what: &str,
        goals: &[(Kind, &[Option<Goal>])],
        courses: &[&Course],
        report: &mut Report,
    ) -> Result<()> {
        for &(kind, goals) in goals {
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
            let (_, name, unit, _) = kind;
            for (place, course) in courses.iter().enumerate() {
                report.samples(&format!("{what}: {name}, {}", course.name), unit, &measured[place])?;
                if place > 0 {
                    let line = format!("{what}: {name}, {} to {}", courses[0].name, course.name);
                    let goal = goals.get(place - 1).copied().flatten();
                    report.paired(&line, goal, &measured[0], &measured[place], unit)?;
                }
            }
        }
        Ok(())
    }
}

/// Two nodes with podwire that one veth connects, a pod on each, and another on the first.
struct Site {
    cluster: Cluster,
    near: ClusterPod,
    far: ClusterPod,
    neighbour: ClusterPod,
}

impl Site {
    fn new(name: &str) -> Result<Self> {
        let options = Options {
            underlay: Families::Ipv4,
            pods: Families::Ipv4,
            agent: "[probes]\nenabled = false".to_owned(),
            ..Options::default()
        };
        let mut cluster = Cluster::prepare(name, &options)?;
        cluster.member(0).uplink().wire_to(cluster.member(1).uplink())?;
        cluster.start_agents()?;
        let (near, far) = (cluster.member(0).pod("near")?, cluster.member(1).pod("far")?);
        let neighbour = cluster.member(0).pod("neighbour")?;
        Ok(Self { cluster, near, far, neighbour })
    }

    fn everywhere(&self, script: &str) -> Result<()> {
        self.cluster.members().iter().try_for_each(|member| member.sh(script).map(drop))
    }

    fn across(&self) -> Result<Course> {
        between("podwire's pods", &self.near, &self.far)
    }

    fn nodes(&self) -> Result<Course> {
        let [client, server] = [0, 1].map(|number| path(self.cluster.member(number).node().netns()));
        let address = self.cluster.underlay().addresses(1).into_iter().find(IpAddr::is_ipv4);
        let address = address.ok_or_else(|| LabError::new("the node has no IPv4 address"))?;
        Ok(Course { name: "node to node", server, client, address })
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

/// Pods of two nodes beside the nodes themselves.
pub(crate) fn tunnel(size: &Size, report: &mut Report) -> Result<()> {
    let site = Site::new("bench-tunnel")?;
    site.everywhere(&bridge_netfilter(false))?;
    let meter = Meter::new(site.cluster.member(0).node(), size)?;
    let (pods, nodes) = (site.across()?, site.nodes()?);
    let courses = [&pods, &nodes];
    let what = "two nodes, no service rules";
    let goals: [(Kind, &[Option<Goal>]); 3] = [
        (RR, &[Some(Goal::AtMost(1.9))]),
        (UDP, &[Some(Goal::AtLeast(0.42))]),
        (CRR, &[Some(Goal::AtLeast(0.43))]),
    ];
    meter.compare(what, &goals, &courses, report)?;
    meter.compare(&format!("{what}, all offloads"), &[(STREAM, &[None])], &courses, report)?;
    site.everywhere(PLAIN_LINK)?;
    let goal: [(Kind, &[Option<Goal>]); 1] = [(STREAM, &[Some(Goal::AtLeast(0.68))])];
    meter.compare(&format!("{what}, no TSO, GRO"), &goal, &courses, report)
}

/// The same with what a cluster's node has loaded, beside flannel's configuration.
pub(crate) fn services(size: &Size, report: &mut Report) -> Result<()> {
    let site = Site::new("bench-services")?;
    let flannel = rules::Flannel::new()?;
    let services = rules::kube_proxy(1_000);
    for member in site.cluster.members() {
        member.node().write("/run/services", &services)?;
        member.sh("iptables-nft-restore --noflush < /run/services")?;
    }
    site.everywhere(&bridge_netfilter(true))?;
    flannel.load(&services, &bridge_netfilter(true))?;
    let meter = Meter::new(site.cluster.member(0).node(), size)?;
    let theirs = flannel.across();
    let (pods, nodes) = (site.across()?, site.nodes()?);
    let courses = [&pods, &theirs, &nodes];
    let what = "two nodes, 1,000 services' rules";
    let [even, better] = [0.97, 1.3].map(|least| Some(Goal::AtLeast(least)));
    let goals: [(Kind, &[Option<Goal>]); 4] = [
        (RR, &[Some(Goal::AtMost(1.0 / 0.97)), None]),
        (STREAM, &[even, None]),
        (UDP, &[even, None]),
        (CRR, &[better, None]),
    ];
    meter.compare(what, &goals, &courses, report)?;
    site.everywhere(PLAIN_LINK)?;
    flannel.everywhere(PLAIN_LINK)?;
    let goal: [(Kind, &[Option<Goal>]); 1] = [(STREAM, &[even, None])];
    meter.compare(&format!("{what}, no TSO, GRO"), &goal, &courses, report)
}

/// Pods of one node beside a bare veth pair, and beside the reference plugin's pods.
pub(crate) fn bridge(size: &Size, report: &mut Report) -> Result<()> {
    let site = Site::new("bench-bridge")?;
    site.everywhere(&bridge_netfilter(false))?;
    let meter = Meter::new(site.cluster.member(0).node(), size)?;
    let bare = rules::bare_pair(site.cluster.member(0).node())?;
    let ours = between("podwire's pods", &site.near, &site.neighbour)?;
    let goals: [(Kind, &[Option<Goal>]); 4] = [
        (RR, &[Some(Goal::AtMost(1.15))]),
        (STREAM, &[Some(Goal::AtLeast(0.88))]),
        (UDP, &[Some(Goal::AtLeast(0.82))]),
        (CRR, &[Some(Goal::AtLeast(0.88))]),
    ];
    meter.compare("one node, bridge frames unfiltered", &goals, &[&ours, &bare], report)?;

    let reference = rules::Reference::new()?;
    let services = rules::kube_proxy(1_000);
    let node = site.cluster.member(0);
    node.node().write("/run/services", &services)?;
    node.sh("iptables-nft-restore --noflush < /run/services")?;
    node.sh(&bridge_netfilter(true))?;
    reference.load(&services, &bridge_netfilter(true))?;
    let even = Some(Goal::AtLeast(0.97));
    let goals: [(Kind, &[Option<Goal>]); 4] = [
        (RR, &[Some(Goal::AtMost(1.0 / 0.97)), None]),
        (STREAM, &[even, None]),
        (UDP, &[even, None]),
        (CRR, &[even, None]),
    ];
    let theirs = reference.course();
    meter.compare(
        "one node, bridge frames filtered, 1,000 services' rules",
        &goals,
        &[&ours, &theirs, &bare],
        report,
    )
}
