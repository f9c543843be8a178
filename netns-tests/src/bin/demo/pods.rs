//! The pods: run by a runtime, reached by each other, shown by podwirectl.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::{Cluster, Member};
use podwire_netns_tests::containerd::Containerd;
use podwire_netns_tests::cri::{HostPort, PodOptions};
use podwire_netns_tests::image::BUSYBOX;
use podwire_netns_tests::traffic::{Flow, Transport};
use podwire_netns_tests::{LabError, Node, Result, finish, program};

use crate::edge::{HOST_PORT, RATES};
use crate::screen::Screen;

/// A web server that greets with the pod's name.
const SERVER: [&str; 3] =
    ["sh", "-c", "echo hello from $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www"];

/// A pod of the runtime.
pub(crate) struct DemoPod {
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) id: String,
    pub(crate) container: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl DemoPod {
    /// Runs it. How long its sandbox, with its network, took comes with it.
    pub(crate) fn run(
        runtime: &mut Containerd,
        node: usize,
        name: String,
        options: &PodOptions,
    ) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let id = runtime.cri().run_pod_with(&name, options).map_err(|error| runtime.explain(error))?;
        let took = began.elapsed();
        let addresses = runtime.cri().pod_addresses(&id)?;
        if addresses.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>() != [true, false] {
            return Err(LabError::new(format!(
                "pod {name} wants an IPv4 and an IPv6 address and has {addresses:?}"
            )));
        }
        let container = runtime.cri().start_container(&id, &name, BUSYBOX, &SERVER)?;
        Ok((Self { name, node, id, container, addresses }, took))
    }

    /// Runs a command in it; what it printed.
    pub(crate) fn exec(&self, runtime: &mut Containerd, command: &[&str]) -> Result<String> {
        let done = runtime.cri().exec(&self.container, command)?;
        if done.code == 0 {
            return Ok(done.stdout.trim().to_owned());
        }
        let what = command.join(" ");
        Err(LabError::new(format!(
            "{what} in {}: exit code {}: {}{}",
            self.name, done.code, done.stdout, done.stderr
        )))
    }
}

/// What the pod `web` asks for: a port of the node, and a rate each way.
pub(crate) fn web_options() -> PodOptions {
    let [(ingress, _), (egress, _)] = RATES;
    PodOptions::default().port(HostPort::new(Transport::Tcp, HOST_PORT, 80)).rates(ingress, egress)
}

/// Pings and pages between all pods, in each family.
pub(crate) fn reach_each_other(
    screen: &mut Screen,
    runtimes: &mut [Containerd],
    pods: &[DemoPod],
) -> Result<()> {
    screen.title("From each pod to the pods of other nodes");
    for from in pods {
        for to in pods.iter().filter(|to| to.node != from.node) {
            for address in &to.addresses {
                let runtime = &mut runtimes[from.node];
                let began = Instant::now();
                let answers = ping(runtime, from, *address)?;
                let page = fetch(runtime, from, *address)?;
                if page != format!("hello from {}", to.name) {
                    return Err(LabError::new(format!("{address} answered {page:?}")));
                }
                screen.done(&from.name, format!("{address:<18} {answers}, \"{page}\""), began);
            }
        }
    }
    Ok(())
}

/// Three pings. Gives the round trip time as ping prints it.
fn ping(runtime: &mut Containerd, from: &DemoPod, to: IpAddr) -> Result<String> {
    let printed = from.exec(runtime, &["ping", "-c", "3", "-i", "0.1", "-W", "2", &to.to_string()])?;
    if !printed.contains("3 packets received") {
        return Err(LabError::new(format!("not every ping to {to} was answered: {printed}")));
    }
    let times = printed.lines().last().and_then(|line| line.split(" = ").nth(1)).unwrap_or_default();
    let best = times.split('/').next().unwrap_or_default();
    Ok(format!("ping {best} ms"))
}

fn fetch(runtime: &mut Containerd, from: &DemoPod, to: IpAddr) -> Result<String> {
    let url = match to {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    };
    from.exec(runtime, &["timeout", "10", "wget", "-q", "-O", "-", &url])
}

/// Which way a node sends packets to that pod: its route, and where the tunnel leads.
pub(crate) fn way(node: &Member, to: &IpAddr) -> Result<String> {
    let route = node.node().ip(&["route", "get", &to.to_string()])?;
    let text = |key: &str| route[0][key].as_str().unwrap_or_default().to_owned();
    let (gateway, device) = (text("gateway"), text("dev"));
    let script = format!(
        "mac=$(ip neighbour show {gateway} dev {device} | sed 's/.*lladdr \\([^ ]*\\).*/\\1/')
         bridge fdb show dev {device} | sed -n \"s/^$mac dst \\([^ ]*\\).*/$mac \\1/p\""
    );
    let entry = node.sh(&script)?.out();
    let (mac, remote) = entry
        .trim()
        .split_once(' ')
        .ok_or_else(|| LabError::new(format!("the tunnel {device} has no entry for {gateway}")))?;
    Ok(format!("{to} → {device}, {mac} → {remote}"))
}

/// What podwirectl says of the cluster, and of one flow's packets.
pub(crate) fn shown_by_podwirectl(
    screen: &mut Screen,
    cluster: &Cluster,
    runtimes: &mut [Containerd],
    pods: &[DemoPod],
) -> Result<()> {
    screen.title("What podwirectl shows on node1, where client is");
    let node = cluster.member(1);
    for command in [["status"].as_slice(), &["nodes"], &["pods", "-A"], &["explain", "client", "web"]] {
        let mut args = command.to_vec();
        let web = pods[0].addresses[0].to_string();
        let client = pods[1].addresses[0].to_string();
        // Pods of other nodes are known by their addresses.
        for word in &mut args {
            match *word {
                "client" => *word = &client,
                "web" => *word = &web,
                _ => {}
            }
        }
        let done = node.podwirectl(&args)?.success(&format!("podwirectl {}", args.join(" ")))?;
        screen.printed(&format!("podwirectl {}", args.join(" ")), &done.out());
    }

    // Packets to look at, while trace looks.
    let (web, client) = (&pods[0], &pods[1]);
    let at_client = runtimes[1].place(&client.id, &client.name)?;
    let at_web = runtimes[0].place(&web.id, &web.name)?;
    let _flow = Flow::start(&at_client, &at_web, web.addresses[0])?;
    let (from, to) = (client.addresses[0].to_string(), web.addresses[0].to_string());
    let args = ["trace", &from, &to, "--count", "2"];
    let mut command = program(Node::dist("podwirectl"));
    command.args(args);
    let began = Instant::now();
    let done = finish(node.node().spawn(&mut command)?, b"", began, Duration::from_secs(20))?;
    let done = done.success("podwirectl trace")?;
    screen.printed(&format!("podwirectl {}", args.join(" ")), &done.out());
    Ok(())
}
