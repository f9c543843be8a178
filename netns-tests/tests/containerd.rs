//! Pods through containerd: Debian 12's own 1.6, and newer ones unpacked beside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use podwire_netns_tests::containerd::{Containerd, DEBIAN};
use podwire_netns_tests::cri::Cri;
use podwire_netns_tests::image::BUSYBOX;
use podwire_netns_tests::network::{conflist, left_behind};
use podwire_netns_tests::podwired::Podwired;
use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Result, newer, uses_reference};

const DUAL: &str = "10-podwire.conflist";

/// What each pod runs: a web server that says the pod's name.
const SERVER: [&str; 3] = ["sh", "-c", "hostname > /www/index.html; exec httpd -f -p 80 -h /www"];

struct Cluster {
    node: Node,
    containerd: Containerd,
}

struct Running {
    name: &'static str,
    pod: String,
    container: String,
    addresses: Vec<IpAddr>,
}

impl Cluster {
    /// Debian's own containerd on a network of one of the shipped conflists.
    fn debian(name: &str, conflist: &str) -> Result<Self> {
        Self::start(Lab::new(name)?.node("n")?, DEBIAN, conflist)
    }

    fn start(node: Node, programs: impl Into<PathBuf>, name: &str) -> Result<Self> {
        node.install_conflist(name, &conflist(name)?)?;
        let mut containerd = Containerd::start(&node, programs)?;
        containerd.wait_for_network()?;
        Ok(Self { node, containerd })
    }

    fn cri(&mut self) -> &mut Cri {
        self.containerd.cri()
    }

    fn run(&mut self, name: &'static str) -> Result<Running> {
        let pod = self.containerd.cri().run_pod(name).map_err(|error| self.containerd.explain(error))?;
        self.serve(name, pod)
    }

    /// Runs a pod whose web server is reached at that port of the node too.
    fn run_with_port(&mut self, name: &'static str, port: u16) -> Result<Running> {
        let ran = self.cri().run_pod_with_port(name, port, 80);
        let pod = ran.map_err(|error| self.containerd.explain(error))?;
        self.serve(name, pod)
    }

    fn serve(&mut self, name: &'static str, pod: String) -> Result<Running> {
        let container = self.cri().start_container(&pod, name, BUSYBOX, &SERVER)?;
        let addresses = self.cri().pod_addresses(&pod)?;
        Ok(Running { name, pod, container, addresses })
    }

    fn exec(&mut self, from: &Running, command: &[&str]) -> Result<String> {
        let done = self.cri().exec(&from.container, command)?;
        if done.code != 0 {
            let what = format!(
                "{} in {}: {}: {}{}",
                command.join(" "),
                from.name,
                done.code,
                done.stdout,
                done.stderr
            );
            return Err(LabError::new(what));
        }
        Ok(done.stdout)
    }

    /// Ping and HTTP from one pod to another, at each of its addresses.
    fn expect_reaches(&mut self, from: &Running, to: &Running) -> Result<()> {
        for address in &to.addresses {
            self.exec(from, &["ping", "-c", "2", "-i", "0.2", "-W", "2", &address.to_string()])?;
            assert_eq!(self.fetch(from, *address)?.trim(), to.name, "{} → {address}", from.name);
        }
        Ok(())
    }

    fn fetch(&mut self, from: &Running, address: IpAddr) -> Result<String> {
        self.fetch_at(from, SocketAddr::new(address, 80))
    }

    fn fetch_at(&mut self, from: &Running, address: SocketAddr) -> Result<String> {
        let url = format!("http://{address}/");
        // busybox's own time limit, -T, crashes in Debian 12.
        self.exec(from, &["timeout", "10", "wget", "-q", "-O", "-", &url])
    }

    fn remove(&mut self, pod: &Running) -> Result<()> {
        self.cri().stop_pod(&pod.pod)?;
        self.cri().stop_pod(&pod.pod)?;
        self.cri().remove_pod(&pod.pod)
    }

    fn expect_nothing_left(&mut self) -> Result<()> {
        assert_eq!(self.cri().pods()?, []);
        assert_eq!(left_behind(&self.node, "podwire", "podwire0")?, [""; 0]);
        Ok(())
    }
}

/// The life of pods on a node, as a kubelet drives it.
fn pods_live_and_leave_nothing(mut cluster: Cluster, version: &str) -> Result<()> {
    let (runtime, is) = cluster.cri().version()?;
    assert_eq!(runtime, "containerd");
    assert!(is.trim_start_matches('v').starts_with(version), "containerd {is} is not {version}");

    let (a, b) = (cluster.run("a")?, cluster.run("b")?);
    for pod in [&a, &b] {
        let families: Vec<_> = pod.addresses.iter().map(IpAddr::is_ipv4).collect();
        assert_eq!(families, [true, false], "{:?}", pod.addresses);
    }
    cluster.expect_reaches(&a, &b)?;
    cluster.expect_reaches(&b, &a)?;
    cluster.expect_reaches(&a, &a)?;

    cluster.containerd.kill()?;
    cluster.containerd.start_again()?;
    cluster.containerd.wait_for_network()?;
    assert_eq!(cluster.cri().pod_addresses(&a.pod)?, a.addresses, "after a restart of containerd");
    cluster.expect_reaches(&a, &b)?;
    let c = cluster.run("c")?;
    for other in [&a, &b] {
        assert!(
            c.addresses.iter().all(|address| !other.addresses.contains(address)),
            "an address given twice"
        );
    }
    cluster.expect_reaches(&c, &a)?;

    for pod in [&a, &b, &c] {
        cluster.remove(pod)?;
    }
    cluster.expect_nothing_left()
}

#[test]
fn pods_of_containerd_1_6_live_and_leave_nothing() -> Result<()> {
    pods_live_and_leave_nothing(Cluster::debian("ctd16", DUAL)?, "1.6.")
}

#[test]
fn pods_beside_an_agent_live_and_leave_nothing() -> Result<()> {
    let mut cluster = Cluster::debian("agent", DUAL)?;
    // The reference plugins have no agent.
    let agent = |cluster: &Cluster| (!uses_reference()).then(|| Podwired::start(&cluster.node)).transpose();
    let mut podwired = agent(&cluster)?;
    let a = cluster.run("a")?;
    if let Some(podwired) = podwired.take() {
        podwired.kill()?;
    }
    // Without an agent for a while, and with its remains: a socket that nobody listens on.
    let b = cluster.run("b")?;
    podwired = agent(&cluster)?;
    let c = cluster.run("c")?;
    for (from, to) in [(&a, &b), (&b, &c), (&c, &a)] {
        cluster.expect_reaches(from, to)?;
    }
    for pod in [&a, &b] {
        cluster.remove(pod)?;
    }
    if let Some(podwired) = podwired.take() {
        podwired.stop()?;
    }
    cluster.remove(&c)?;
    cluster.expect_nothing_left()
}

/// A newer containerd, or a loud word that it was left out: Debian's archive moves, podwire does not break with it.
fn with_a_newer_containerd(name: &str, releases: &[&str], version: &str) -> Result<()> {
    match newer::containerd(releases, version) {
        Ok(programs) => {
            let inside = PathBuf::from("/run/newer-containerd");
            let shared = vec![(programs, inside.clone())];
            let node = Lab::new(name)?.node_with("n", &NodeOptions { shared, ..Default::default() })?;
            pods_live_and_leave_nothing(Cluster::start(node, inside, DUAL)?, version)
        }
        Err(why) => {
            newer::left_out(&format!("pods through containerd {version}"), &why);
            Ok(())
        }
    }
}

#[test]
fn pods_of_containerd_1_7_live_and_leave_nothing() -> Result<()> {
    with_a_newer_containerd("ctd17", &["trixie"], "1.7.")
}

#[test]
fn pods_of_containerd_2_live_and_leave_nothing() -> Result<()> {
    with_a_newer_containerd("ctd2", &["sid", "forky"], "2.")
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let mut cluster = Cluster::debian("service", DUAL)?;
    let pod = cluster.run("a")?;
    // What kube-proxy does for a Service with this pod behind it.
    let rules = pod.addresses.iter().map(|address| match address {
        IpAddr::V4(pod) => format!("ip daddr 10.96.0.10 dnat ip to {pod}"),
        IpAddr::V6(pod) => format!("ip6 daddr fd00:96::10 dnat ip6 to {pod}"),
    });
    let rules = rules.collect::<Vec<_>>().join("\n");
    let table = format!(
        "table inet service {{
           chain in {{ type nat hook prerouting priority dstnat; {rules}
           }}
           chain out {{ type nat hook postrouting priority srcnat; ct status dnat masquerade
           }}
         }}"
    );
    cluster.node.write("/run/service.nft", table)?;
    cluster
        .node
        .run("nft", &["-f", "/run/service.nft"])?
        .success("load the service's rules (package nftables)")?;
    for service in ["10.96.0.10", "fd00:96::10"] {
        let service = service.parse().map_err(LabError::because("an address"))?;
        assert_eq!(cluster.fetch(&pod, service)?.trim(), "a", "through {service}");
    }
    let ports = cluster.node.ip(&["-details", "link", "show", "master", "podwire0"])?;
    assert_eq!(ports[0]["linkinfo"]["info_slave_data"]["hairpin"], true, "{ports}");
    cluster.remove(&pod)?;
    cluster.expect_nothing_left()
}

#[test]
fn a_pod_whose_processes_were_killed_leaves_nothing() -> Result<()> {
    let mut cluster = Cluster::debian("killed", DUAL)?;
    let pod = cluster.run("a")?;
    // Every sandbox process of this node: its process ids are its own.
    cluster.node.run("pkill", &["-KILL", "-x", "busybox"])?;
    cluster.remove(&pod)?;
    cluster.expect_nothing_left()
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_through_debians_portmap() -> Result<()> {
    let mut cluster = Cluster::debian("portmap", "10-podwire-portmap.conflist")?;
    let (web, client) = (cluster.run_with_port("web", 18080)?, cluster.run("client")?);
    let node = SocketAddr::new(Ipv4Addr::new(10, 244, 0, 1).into(), 18080);
    assert_eq!(cluster.fetch_at(&client, node)?.trim(), "web");
    for pod in [&web, &client] {
        cluster.remove(pod)?;
    }
    cluster.expect_nothing_left()
}

#[test]
fn pods_of_an_ipv4_network_have_one_address() -> Result<()> {
    let mut cluster = Cluster::debian("ipv4", "10-podwire-ipv4.conflist")?;
    let (a, b) = (cluster.run("a")?, cluster.run("b")?);
    assert!(a.addresses.len() == 1 && a.addresses[0].is_ipv4(), "{:?}", a.addresses);
    cluster.expect_reaches(&a, &b)?;
    for pod in [&a, &b] {
        cluster.remove(pod)?;
    }
    cluster.expect_nothing_left()
}
