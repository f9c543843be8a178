//! `make demo`: nodes on an underlay of their own, each with podwire as it would be installed and with Debian's
//! containerd, and pods that reach each other; then somebody breaks what the agents made.
//!
//! `NODES` says how many nodes (2), `STORE` where they meet (`file`, `etcd`, `kubernetes`).
//!
//! Everything that is printed is asked of the kernel, the runtime or podwire at that moment. The exit code is 0
//! only if all of it held.

mod breakage;
mod edge;
mod kubernetes;
mod pods;
mod screen;

use std::process::ExitCode;
use std::time::Instant;

use podwire_netns_tests::cluster::{self, Cluster, Options};
use podwire_netns_tests::containerd::{Containerd, DEBIAN};
use podwire_netns_tests::etcd::{Etcd, EtcdOptions};
use podwire_netns_tests::kubernetes::ControlPlane;
use podwire_netns_tests::network::left_behind;
use podwire_netns_tests::underlay::{Families, Layout, UNDERLAY_LINK, Underlay};
use podwire_netns_tests::{Lab, LabError, Node, Result};

use pods::{DemoPod, web_options};
use screen::Screen;

fn main() -> ExitCode {
    let mut screen = Screen::new();
    match Settings::from_environment().and_then(|settings| demo(&mut screen, &settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failed = screen.paint("1;31", "FAILED");
            screen.line(format!("\n{failed} {error:?}"));
            ExitCode::FAILURE
        }
    }
}

/// What the caller chose.
struct Settings {
    nodes: u8,
    store: Store,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    File,
    Etcd,
    Kubernetes,
}

impl Settings {
    fn from_environment() -> Result<Self> {
        let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let nodes =
            given("NODES").map_or(Ok(2), |text| text.parse()).ok().filter(|nodes| (2..=9).contains(nodes));
        let nodes = nodes.ok_or_else(|| LabError::new("NODES is a number from 2 to 9"))?;
        let store = match given("STORE").as_deref() {
            None | Some("file") => Store::File,
            Some("etcd") => Store::Etcd,
            Some("kubernetes") => Store::Kubernetes,
            Some(other) => {
                return Err(LabError::new(format!("STORE is file, etcd or kubernetes, not {other:?}")));
            }
        };
        Ok(Self { nodes, store })
    }
}

fn demo(screen: &mut Screen, settings: &Settings) -> Result<()> {
    screen.title(format!("{} nodes: network, files and processes apart from this machine", settings.nodes));
    let lab = Lab::new("demo")?;
    let underlay = Underlay::new(Families::Dual, Layout::Flat)?;
    // Often, so that what podwirectl shows of probes is there by then.
    let agent = "[probes]\ninterval_seconds = 1\n".to_owned();
    let mut options = Options { nodes: settings.nodes, no_plugins: true, agent, ..Options::default() };
    // What they meet in runs as long as the demonstration.
    let (mut etcd, mut api) = (None, None);
    let began = Instant::now();
    match settings.store {
        Store::File => {}
        Store::Etcd => {
            let started = Etcd::start(&lab, &underlay, &EtcdOptions::default())?;
            options.store = cluster::Store::Settings(started.agent_settings(""));
            screen.done("etcd", format!("Debian's, at {}", started.endpoints().join(", ")), began);
            etcd = Some(started);
        }
        Store::Kubernetes => {
            let started = ControlPlane::start(&lab, &underlay)?;
            options.store = cluster::Store::Kubernetes(started.clone());
            screen.done("API server", format!("a stand-in, at {}", started.url()), began);
            api = Some(started);
        }
    }
    let began = Instant::now();
    let mut cluster = Cluster::prepare_on(&lab, &underlay, &options)?;
    for member in cluster.members() {
        match &api {
            None => install(member.node())?,
            Some(_) => kubernetes::install(member.node())?,
        }
    }
    let range = format!("{} and {}", first_of(&underlay, 0), first_of(&underlay, settings.nodes - 1));
    screen.done("nodes", format!("{range}, podwire in /opt/cni/bin"), began);

    let began = Instant::now();
    cluster.start_agents()?;
    let met = match settings.store {
        Store::File => "a peers file",
        Store::Etcd => "etcd",
        Store::Kubernetes => "the API: their Nodes' podCIDRs and annotations",
    };
    screen.done("podwired", format!("on each, ready; they know each other by {met}"), began);

    let began = Instant::now();
    let mut runtimes = Vec::new();
    for member in cluster.members() {
        runtimes.push(Containerd::start(member.node(), DEBIAN)?);
    }
    for runtime in &mut runtimes {
        runtime.wait_for_network()?;
    }
    let (_, version) = runtimes[0].cri().version()?;
    screen.done("containerd", format!("Debian's {version} on each, pod network ready"), began);

    screen.title("Pods, through the CRI as a kubelet would run them");
    let mut pods = Vec::new();
    for (number, runtime) in runtimes.iter_mut().enumerate() {
        let (name, options) = match number {
            0 => ("web".to_owned(), web_options()),
            1 => ("client".to_owned(), Default::default()),
            number => (format!("client{number}"), Default::default()),
        };
        let began = Instant::now();
        let (pod, took) = DemoPod::run(runtime, number, name, &options)?;
        let shown = pod.addresses.iter().map(|address| format!("{address:<20}")).collect::<String>();
        screen.done(&pod.name, format!("node{number}  {shown}"), began.max(Instant::now() - took));
        pods.push(pod);
    }

    pods::reach_each_other(screen, &mut runtimes, &pods)?;
    screen.title("The way from client to web, from the kernel");
    for address in &pods[0].addresses {
        let way = pods::way(cluster.member(1), address)?;
        screen.line(format!("    {way}"));
    }
    pods::shown_by_podwirectl(screen, &cluster, &mut runtimes, &pods)?;
    breakage::broken_and_repaired(screen, &mut cluster, &mut runtimes, &pods)?;
    if let Some(api) = &mut api {
        kubernetes::without_the_api(screen, api, &mut cluster, &mut runtimes, &pods)?;
        kubernetes::shown_by_the_api(screen, api, &cluster)?;
    }
    edge::ports_masquerade_and_rates(screen, &cluster, &mut runtimes, &pods)?;

    screen.title("After the pods");
    let began = Instant::now();
    for (pod, runtime) in pods.iter().zip(&mut runtimes) {
        runtime.cri().stop_pod(&pod.id)?;
        runtime.cri().remove_pod(&pod.id)?;
    }
    for member in cluster.members() {
        let mut left = left_behind(member.node(), "podwire", "podwire0")?;
        // The links of the node and of the agent are no pods'.
        left.retain(|what| *what != format!("link {UNDERLAY_LINK}") && !what.starts_with("link podwire"));
        if !left.is_empty() {
            return Err(LabError::new(format!("left behind: {}", left.join(", "))));
        }
    }
    screen.done("removed", "no link, no lease, no rule, no cached result, no namespace left", began);
    let began = Instant::now();
    for number in 0..settings.nodes {
        let member = cluster.member_mut(usize::from(number));
        member.stop_agent()?;
        let podwired = Node::dist("podwired").to_string_lossy().into_owned();
        member.node().run(&podwired, &["cleanup"])?.success("podwired cleanup")?;
        let links = member.node().links()?;
        if links != [UNDERLAY_LINK] {
            return Err(LabError::new(format!("podwired cleanup leaves {links:?}")));
        }
    }
    screen.done("cleanup", "podwired cleanup: the nodes are as they were", began);
    drop(etcd);
    let held = screen.paint("1;32", "All of it held.");
    screen.line(format!("\n{held}"));
    Ok(())
}

fn first_of(underlay: &Underlay, number: u8) -> String {
    underlay.addresses(number).first().map(ToString::to_string).unwrap_or_default()
}

/// Podwire as `make install` installs it. The network's configuration is the agent's to write.
fn install(node: &Node) -> Result<()> {
    for name in ["podwire", "podwire-ipam"] {
        let from = Node::dist(name).to_string_lossy().into_owned();
        node.run("install", &["-m", "755", &from, "/opt/cni/bin/"])?
            .success("install podwire (make build first)")?;
    }
    node.run("ln", &["-s", "podwire", "/opt/cni/bin/loopback"])?.success("link the loopback plugin").map(drop)
}
