//! Pods through containerd: Debian 12's own 1.6, and newer ones unpacked beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use podwire_netns_tests::containerd::{Containerd, DEBIAN, Sandbox};
use podwire_netns_tests::cri::{Cri, HostPort, PodOptions};
use podwire_netns_tests::image::BUSYBOX;
use podwire_netns_tests::network::{conflist, left_behind, rules_of_pods};
use podwire_netns_tests::podwired::Podwired;
use podwire_netns_tests::traffic::{Client, Outside, Place, Port, Server, Sink, Transport, send_for};
use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Result, newer, uses_reference, wait_for};
use serde_json::{Value, json};

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
        Self::start_on(node, programs, &conflist(name)?)
    }

    fn start_on(node: Node, programs: impl Into<PathBuf>, conflist: &Value) -> Result<Self> {
        node.install_conflist("10-pods.conflist", conflist)?;
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

    /// Runs a pod with ports of the node, or rates.
    fn run_with(&mut self, name: &'static str, options: &PodOptions) -> Result<Running> {
        let ran = self.cri().run_pod_with(name, options);
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
        let wget = ["timeout", "10", "wget", "-q", "-O", "-", &url];
        let mut page = self.exec(from, &wget);
        // The web server may have been started a moment ago.
        wait_for(Duration::from_secs(5), || {
            if page.is_err() {
                page = self.exec(from, &wget);
            }
            page.is_ok()
        });
        page
    }

    fn place(&mut self, pod: &Running) -> Result<Sandbox> {
        self.containerd.place(&pod.pod, pod.name)
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
fn with_a_newer_containerd(
    name: &str,
    releases: &[&str],
    version: &str,
    test: impl FnOnce(Cluster, &str) -> Result<()>,
) -> Result<()> {
    match newer::containerd(releases, version) {
        Ok(programs) => {
            let inside = PathBuf::from("/run/newer-containerd");
            let shared = vec![(programs, inside.clone())];
            let node = Lab::new(name)?.node_with("n", &NodeOptions { shared, ..Default::default() })?;
            test(Cluster::start(node, inside, DUAL)?, version)
        }
        Err(why) => {
            newer::left_out(&format!("pods through containerd {version}"), &why);
            Ok(())
        }
    }
}

#[test]
fn pods_of_containerd_1_7_live_and_leave_nothing() -> Result<()> {
    with_a_newer_containerd("ctd17", &["trixie"], "1.7.", pods_live_and_leave_nothing)
}

#[test]
fn pods_of_containerd_2_live_and_leave_nothing() -> Result<()> {
    with_a_newer_containerd("ctd2", &["sid", "forky"], "2.", pods_live_and_leave_nothing)
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
    let mut chain = conflist(DUAL)?;
    // Debian's ends there.
    chain["cniVersions"] = json!(["0.4.0", "1.0.0"]);
    chain["plugins"][0]["capabilities"] = json!({});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    chain["plugins"]
        .as_array_mut()
        .ok_or_else(|| LabError::new(format!("{DUAL} has no plugins")))?
        .push(portmap);
    let mut cluster = Cluster::start_on(Lab::new("portmap")?.node("n")?, DEBIAN, &chain)?;
    let port = PodOptions::default().port(HostPort::new(Transport::Tcp, 18080, 80));
    let (web, client) = (cluster.run_with("web", &port)?, cluster.run("client")?);
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

/// A web server's ports and rates, as a kubelet asks for them.
fn wishes() -> PodOptions {
    let local =
        HostPort { host_ip: Some(Ipv4Addr::LOCALHOST.into()), ..HostPort::new(Transport::Tcp, 18081, 7080) };
    PodOptions::default()
        .port(HostPort::new(Transport::Tcp, 18080, 7080))
        .port(HostPort::new(Transport::Udp, 18053, 7053))
        .port(local)
        .rates("40M", "20M")
}

fn address(text: &str) -> Result<IpAddr> {
    text.parse().map_err(LabError::because(format!("the address {text}")))
}

/// Servers in a pod for [`wishes`], on both families.
fn serve(pod: &Sandbox) -> Result<[Server; 2]> {
    let any = Ipv6Addr::UNSPECIFIED;
    Ok([Server::start(pod, Port::tcp(any, 7080))?, Server::start(pod, Port::udp(any, 7053))?])
}

/// The ports of [`wishes`] are answered by nobody.
fn expect_closed(outside: &Outside) -> Result<()> {
    let node = address(Outside::NODE[0])?;
    for port in [Port::tcp(node, 18080), Port::udp(node, 18053)] {
        let answer = Client::at(outside).limit(Duration::from_millis(300)).hear(port);
        assert!(answer.is_err(), "{port} is still answered: {answer:?}");
    }
    Ok(())
}

/// The rate of a stream in Mbit/s. Each takes a port of its own: a sink that has ended keeps its for a moment.
fn megabits(from: &impl Place, to: &impl Place, address: IpAddr, port: u16) -> Result<f64> {
    let at = SocketAddr::new(address, port);
    let sink = Sink::start(to, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), at.port()))?;
    Ok(send_for(Client::at(from), at, &sink, Duration::from_secs(3))? / 1e6)
}

fn unlink(node: &Node, outside: Outside) -> Result<()> {
    node.run("ip", &["link", "delete", "uplink"])?.success("delete the uplink")?;
    outside.as_pod().unmount()
}

/// Host ports, masquerade and rates of pods, from RunPodSandbox to RemovePodSandbox.
fn ports_and_rates(mut cluster: Cluster) -> Result<()> {
    let outside = Outside::link_to(&cluster.node)?;
    let (web, client) = (cluster.run_with("web", &wishes())?, cluster.run("client")?);
    let (at_web, at_client) = (cluster.place(&web)?, cluster.place(&client)?);
    let servers = serve(&at_web)?;
    let node = cluster.node.clone();

    // From outside, as who they are; from the node, other pods and the pod itself.
    let [first, second, six] =
        [address(Outside::NODE[0])?, address(Outside::NODE[1])?, address(Outside::NODE[2])?];
    for (from, host) in [(first, Outside::HOST[0]), (second, Outside::HOST[0]), (six, Outside::HOST[2])] {
        for port in [Port::tcp(from, 18080), Port::udp(from, 18053)] {
            let heard = Client::at(&outside).hear(port)?;
            assert_eq!(
                (heard.server.as_str(), heard.peer.ip()),
                ("web", address(host)?),
                "{port} from outside"
            );
        }
    }
    let places: [(&dyn Place, &str); 3] =
        [(&node, "the node"), (&at_client, "another pod"), (&at_web, "the pod itself")];
    for (place, who) in places {
        for port in [Port::tcp(first, 18080), Port::udp(first, 18053), Port::tcp(six, 18080)] {
            let heard = Client::at(place).hear(port);
            assert_eq!(heard.map_err(LabError::because(format!("{port} from {who}")))?.server, "web");
        }
    }
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    for port in [Port::tcp(local, 18080), Port::tcp(local, 18081), Port::udp(local, 18053)] {
        assert_eq!(Client::at(&node).hear(port)?.server, "web");
    }
    // The web server of the container itself; and a port of 127.0.0.1 is nobody else's.
    assert_eq!(cluster.fetch(&client, web.addresses[0])?.trim(), "web");
    let foreign = Client::at(&outside).limit(Duration::from_millis(300)).hear(Port::tcp(first, 18081));
    assert!(foreign.is_err(), "a port of 127.0.0.1 is answered outside: {foreign:?}");

    // Out of the pod as the node; from pod to pod as the pod.
    let listener = Server::start(&outside, Port::tcp(Ipv6Addr::UNSPECIFIED, 7000))?;
    for (host, seen) in [(Outside::HOST[0], Outside::NODE[0]), (Outside::HOST[2], Outside::NODE[2])] {
        let heard = Client::at(&at_web).hear(Port::tcp(address(host)?, listener.at().at.port()))?;
        assert_eq!(heard.peer.ip(), address(seen)?, "what {host} sees");
    }
    let heard = Client::at(&at_client).hear(Port::tcp(web.addresses[0], 7080))?;
    assert_eq!(heard.peer.ip(), client.addresses[0], "what a pod sees of another");

    // Payload is some 95 % of what passes the queue. The reference takes the runtimes' 4294967295, which stands for a
    // burst that nobody asked for, at its word.
    let to_web = megabits(&at_client, &at_web, web.addresses[0], 5201)?;
    let from_web = megabits(&at_web, &at_client, client.addresses[0], 5202)?;
    let others = megabits(&outside, &at_client, client.addresses[0], 5203)?;
    if !uses_reference() {
        assert!((36.0..42.0).contains(&to_web), "a pod of 40 Mbit/s received {to_web:.1}");
        assert!((18.0..21.0).contains(&from_web), "a pod of 20 Mbit/s sent {from_web:.1}");
    }
    assert!(others > 200.0, "a pod without a rate received {others:.1} Mbit/s");

    // The namespace lives on, and nothing leads to it.
    cluster.cri().stop_pod(&web.pod)?;
    expect_closed(&outside)?;
    let again = cluster.run_with("again", &wishes())?;
    let at_again = cluster.place(&again)?;
    let others = serve(&at_again)?;
    assert_eq!(Client::at(&outside).hear(Port::udp(first, 18053))?.server, "again");
    assert_eq!(Client::at(&outside).hear(Port::tcp(first, 18080))?.server, "again");
    drop((servers, others));
    for pod in [&web, &client, &again] {
        cluster.remove(pod)?;
    }
    expect_closed(&outside)?;
    expect_no_rules(&node)?;
    unlink(&node, outside)?;
    cluster.expect_nothing_left()
}

/// No rule and no queue is left of any pod.
fn expect_no_rules(node: &Node) -> Result<()> {
    assert_eq!(rules_of_pods(node)?, [""; 0]);
    let queues = node.run("tc", &["qdisc", "show"])?.success("tc qdisc show")?.out();
    assert!(!queues.contains("tbf"), "{queues}");
    Ok(())
}

#[test]
fn ports_and_rates_of_containerd_1_6() -> Result<()> {
    ports_and_rates(Cluster::debian("ports16", DUAL)?)
}

#[test]
fn ports_and_rates_beside_an_agent() -> Result<()> {
    let cluster = Cluster::debian("portsagent", DUAL)?;
    let _podwired = (!uses_reference()).then(|| Podwired::start(&cluster.node)).transpose()?;
    ports_and_rates(cluster)
}

#[test]
fn ports_and_rates_of_containerd_1_7() -> Result<()> {
    with_a_newer_containerd("ports17", &["trixie"], "1.7.", |cluster, _| ports_and_rates(cluster))
}

#[test]
fn ports_and_rates_of_containerd_2() -> Result<()> {
    with_a_newer_containerd("ports2", &["sid", "forky"], "2.", |cluster, _| ports_and_rates(cluster))
}

#[test]
fn ports_of_a_pod_whose_processes_or_namespace_are_gone_are_free() -> Result<()> {
    let mut cluster = Cluster::debian("portsgone", DUAL)?;
    let outside = Outside::link_to(&cluster.node)?;
    let first = address(Outside::NODE[0])?;
    for gone in ["processes", "namespace"] {
        let pod = cluster.run_with("gone", &wishes())?;
        let netns = cluster.cri().pod_netns(&pod.pod)?;
        {
            let place = cluster.place(&pod)?;
            let _servers = serve(&place)?;
            assert_eq!(Client::at(&outside).hear(Port::tcp(first, 18080))?.server, "gone");
        }
        cluster.node.run("pkill", &["-KILL", "-x", "busybox"])?;
        if gone == "namespace" {
            let script = format!("umount {netns} && rm {netns}");
            cluster.node.run("sh", &["-ec", &script])?.success("take a pod's namespace away")?;
        }
        cluster.remove(&pod)?;
        expect_closed(&outside)?;
        expect_no_rules(&cluster.node)?;
    }
    let pod = cluster.run_with("next", &wishes())?;
    let place = cluster.place(&pod)?;
    let servers = serve(&place)?;
    assert_eq!(Client::at(&outside).hear(Port::tcp(first, 18080))?.server, "next");
    drop((servers, place));
    cluster.remove(&pod)?;
    unlink(&cluster.node, outside)?;
    cluster.expect_nothing_left()
}

#[test]
fn a_port_of_a_living_pod_is_refused_to_the_next_in_words() -> Result<()> {
    // The reference lets the newer pod have it, or the older.
    if uses_reference() {
        return Ok(());
    }
    let mut cluster = Cluster::debian("taken", DUAL)?;
    let port = PodOptions::default().port(HostPort::new(Transport::Tcp, 18080, 80));
    let first = cluster.run_with("first", &port)?;
    let second = cluster.cri().run_pod_with("second", &port).map(drop);
    let said = second.map_or_else(|error| error.to_string(), |()| "nothing".to_owned());
    assert!(said.contains("18080/tcp") && said.contains(&first.pod), "{said}");
    // What was refused has left nothing, and the first pod has its port.
    let pods = cluster.cri().pods()?;
    for pod in pods.iter().filter(|pod| pod.id != first.pod) {
        cluster.cri().stop_pod(&pod.id)?;
        cluster.cri().remove_pod(&pod.id)?;
    }
    let client = cluster.run("client")?;
    let node = SocketAddr::new(Ipv4Addr::new(10, 244, 0, 1).into(), 18080);
    assert_eq!(cluster.fetch_at(&client, node)?.trim(), "first");
    cluster.remove(&first)?;
    let second = cluster.run_with("second", &port)?;
    assert_eq!(cluster.fetch_at(&client, node)?.trim(), "second");
    for pod in [&second, &client] {
        cluster.remove(pod)?;
    }
    cluster.expect_nothing_left()
}
