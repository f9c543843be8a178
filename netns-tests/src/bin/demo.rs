//! `make demo`: two pods on a node of their own, through Debian's containerd, with podwire as it would be installed; one of
//! them with a host port and rates.
//!
//! Everything that is printed is asked of the kernel, the runtime or podwire at that moment. The exit code is 0
//! only if all of it held.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use podwire_netns_tests::containerd::{Containerd, DEBIAN, Sandbox};
use podwire_netns_tests::cri::{HostPort, PodOptions};
use podwire_netns_tests::image::BUSYBOX;
use podwire_netns_tests::network::{conflist, left_behind};
use podwire_netns_tests::podwired::Podwired;
use podwire_netns_tests::traffic::{Client, Outside, Port, Server, Sink, Transport, send_for};
use podwire_netns_tests::{Lab, LabError, Node, NodeOptions, Result};
use serde_json::Value;

const CONFLIST: &str = "10-podwire.conflist";

/// A web server that greets with the pod's name.
const SERVER: [&str; 3] =
    ["sh", "-c", "echo hello from $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www"];

/// The node's port that leads to the web server.
const HOST_PORT: u16 = 8080;

/// What the web server may receive and send, in words and in Mbit/s.
const RATES: [(&str, f64); 2] = [("50M", 50.0), ("20M", 20.0)];

/// How far from its limit the payload of a stream may be: 95 % of it is what headers leave.
const NEAR: std::ops::Range<f64> = 0.85..1.02;

fn main() -> ExitCode {
    let mut screen =
        Screen { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    match demo(&mut screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen.line(format!("\n{} {error:?}", screen.red("FAILED")));
            ExitCode::FAILURE
        }
    }
}

/// Lines for a person, coloured where a person looks.
struct Screen {
    colour: bool,
}

impl Screen {
    /// Writes a line. A reader that has gone away is no reason to stop half way.
    fn line(&mut self, text: impl Display) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn title(&mut self, text: impl Display) {
        let text = self.paint("1", text);
        self.line(format!("\n{text}"));
    }

    /// Something that was done, and how long it took.
    fn done(&mut self, what: &str, with: impl Display, began: Instant) {
        let took = self.paint("2", milliseconds(began.elapsed()));
        let ok = self.paint("32", "✓");
        self.line(format!("  {ok} {what:<12}{with:<62}{took:>9}"));
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn red(&self, text: &str) -> String {
        self.paint("1;31", text)
    }
}

fn milliseconds(time: Duration) -> String {
    let time = time.as_secs_f64() * 1e3;
    if time < 9.95 { format!("{time:.1} ms") } else { format!("{time:.0} ms") }
}

struct Pod {
    name: &'static str,
    id: String,
    container: String,
    addresses: Vec<IpAddr>,
    netns: String,
}

fn demo(screen: &mut Screen) -> Result<()> {
    screen.title("A node of its own: network, files and processes apart from this machine");
    let began = Instant::now();
    let node =
        Lab::new("demo")?.node_with("node", &NodeOptions { no_plugins: true, ..Default::default() })?;
    screen.done("node", "namespaces, with the production paths inside", began);

    let began = Instant::now();
    install(&node)?;
    screen.done("podwire", format!("in /opt/cni/bin, and /etc/cni/net.d/{CONFLIST}"), began);

    let began = Instant::now();
    let _podwired = Podwired::start(&node)?;
    screen.done("podwired", "holds the address store", began);

    let began = Instant::now();
    let mut containerd = Containerd::start(&node, DEBIAN)?;
    containerd.wait_for_network()?;
    let (_, version) = containerd.cri().version()?;
    screen.done("containerd", format!("Debian's {version}, pod network ready"), began);

    let began = Instant::now();
    let outside = Outside::link_to(&node)?;
    screen.done(
        "outside",
        format!("a host at {}, the node at {}", Outside::HOST[0], Outside::NODE[0]),
        began,
    );

    screen.title("Two pods, through the CRI as a kubelet would run them");
    let mut pods = Vec::new();
    for name in ["web", "client"] {
        let began = Instant::now();
        let options = if name == "web" { web_options() } else { PodOptions::default() };
        let id = containerd.cri().run_pod_with(name, &options).map_err(|error| containerd.explain(error))?;
        let ran = began.elapsed();
        let cri = containerd.cri();
        let addresses = cri.pod_addresses(&id)?;
        let shown = addresses.iter().map(|address| format!("{address:<18}")).collect::<String>();
        if addresses.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>() != [true, false] {
            return Err(LabError::new(format!(
                "pod {name} wants an IPv4 and an IPv6 address and has {addresses:?}"
            )));
        }
        screen.done(name, shown, Instant::now() - ran);
        let container = cri.start_container(&id, name, BUSYBOX, &SERVER)?;
        let netns = cri.pod_netns(&id)?;
        pods.push(Pod { name, id, container, addresses, netns });
    }
    let [web, client] = pods.as_slice() else { return Err(LabError::new("two pods were started")) };

    screen.title("From client to web");
    for address in &web.addresses {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let began = Instant::now();
        let answers = ping(&mut containerd, client, *address)?;
        screen.done("ping", format!("{family}  {address:<18} {answers}"), began);
        let began = Instant::now();
        let page = fetch(&mut containerd, client, *address)?;
        if page != format!("hello from {}", web.name) {
            return Err(LabError::new(format!("{address} answered {page:?}")));
        }
        screen.done("HTTP", format!("{family}  {address:<18} \"{page}\""), began);
    }

    screen.title("The way those packets took, from the kernel");
    let way = way(&node, client, web)?;
    screen.line(format!("    {way}"));

    let at_web = containerd.place(&web.id, web.name)?;
    host_port(screen, &node, &mut containerd, web)?;
    masqueraded(screen, &outside, &mut containerd, [web, client])?;
    shaped(screen, &outside, &at_web, web)?;
    drop(at_web);

    screen.title("After the pods");
    let began = Instant::now();
    for pod in &pods {
        containerd.cri().stop_pod(&pod.id)?;
        containerd.cri().remove_pod(&pod.id)?;
    }
    screen.done("removed", "both pods", began);
    let began = Instant::now();
    let page = fetch_from(&node, "outside", &host_url(Outside::NODE[0]));
    if let Ok(page) = page {
        return Err(LabError::new(format!("the host port of a pod that is gone answers {page:?}")));
    }
    screen.done("host port", "answers no more", began);
    let began = Instant::now();
    let mut left = left_behind(&node, "podwire", "podwire0")?;
    // The host outside is no pod.
    left.retain(|what| what != "link uplink" && what != "/run/netns/outside");
    if !left.is_empty() {
        return Err(LabError::new(format!("left behind: {}", left.join(", "))));
    }
    screen.done("left", "no link, no lease, no rule, no cached result, no namespace", began);
    screen.line("                the bridge podwire0 stays, ready for the next pod");
    screen.line(format!("\n{}", screen.paint("1;32", "All of it held.")));
    Ok(())
}

/// Podwire as `make install` installs it, and one of the conflists that come with it.
fn install(node: &Node) -> Result<()> {
    for name in ["podwire", "podwire-ipam"] {
        let from = Node::dist(name).to_string_lossy().into_owned();
        node.run("install", &["-m", "755", &from, "/opt/cni/bin/"])?
            .success("install podwire (make build first)")?;
    }
    node.run("ln", &["-s", "podwire", "/opt/cni/bin/loopback"])?.success("link the loopback plugin")?;
    node.install_conflist(CONFLIST, &conflist(CONFLIST)?)
}

fn exec(containerd: &mut Containerd, pod: &Pod, command: &[&str]) -> Result<String> {
    let done = containerd.cri().exec(&pod.container, command)?;
    if done.code == 0 {
        return Ok(done.stdout.trim().to_owned());
    }
    let what = command.join(" ");
    Err(LabError::new(format!(
        "{what} in {}: exit code {}: {}{}",
        pod.name, done.code, done.stdout, done.stderr
    )))
}

/// Three pings. Gives the round trip time as ping prints it.
fn ping(containerd: &mut Containerd, from: &Pod, to: IpAddr) -> Result<String> {
    let printed = exec(containerd, from, &["ping", "-c", "3", "-i", "0.1", "-W", "2", &to.to_string()])?;
    if !printed.contains("3 packets received") {
        return Err(LabError::new(format!("not every ping to {to} was answered: {printed}")));
    }
    let times = printed.lines().last().and_then(|line| line.split(" = ").nth(1)).unwrap_or_default();
    let best = times.split('/').next().unwrap_or_default();
    Ok(format!("3 of 3 answered, {best} ms"))
}

fn fetch(containerd: &mut Containerd, from: &Pod, to: IpAddr) -> Result<String> {
    let url = match to {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    };
    exec(containerd, from, &["timeout", "10", "wget", "-q", "-O", "-", &url])
}

/// What the pod `web` asks for: a port of the node, and a rate each way.
fn web_options() -> PodOptions {
    let [(ingress, _), (egress, _)] = RATES;
    PodOptions::default().port(HostPort::new(Transport::Tcp, HOST_PORT, 80)).rates(ingress, egress)
}

fn host_url(node: &str) -> String {
    if node.contains(':') {
        format!("http://[{node}]:{HOST_PORT}/")
    } else {
        format!("http://{node}:{HOST_PORT}/")
    }
}

/// Fetches a page in a namespace of the node, or on the node itself.
fn fetch_from(node: &Node, netns: &str, url: &str) -> Result<String> {
    let wget = ["timeout", "5", "busybox", "wget", "-q", "-O", "-", url];
    let words = match netns {
        "" => wget.to_vec(),
        netns => [&["ip", "netns", "exec", netns], wget.as_slice()].concat(),
    };
    let Some((program, args)) = words.split_first() else { return Err(LabError::new("no command")) };
    let page = node.run(program, args)?.success(&format!("fetch {url} from {netns:?}"))?;
    Ok(page.out().trim().to_owned())
}

/// The node's port, from everywhere.
fn host_port(screen: &mut Screen, node: &Node, containerd: &mut Containerd, web: &Pod) -> Result<()> {
    screen.title(format!("Port {HOST_PORT} of the node leads to web"));
    let [first, _, six] = Outside::NODE;
    let mut show = |who: &str, url: &str, page: Result<String>, began| {
        let page = page.map_err(LabError::because(format!("{url} from {who}")))?;
        if page != format!("hello from {}", web.name) {
            return Err(LabError::new(format!("{url} from {who} answered {page:?}")));
        }
        screen.done(who, format!("{url:<30} \"{page}\""), began);
        Ok(())
    };
    for node_address in [first, six] {
        let url = host_url(node_address);
        let began = Instant::now();
        show("outside", &url, fetch_from(node, "outside", &url), began)?;
    }
    for (who, node_address) in [("the node", "127.0.0.1"), ("the node", first)] {
        let url = host_url(node_address);
        let began = Instant::now();
        show(who, &url, fetch_from(node, "", &url), began)?;
    }
    for node_address in [first, six] {
        let url = host_url(node_address);
        let began = Instant::now();
        let page = exec(containerd, web, &["timeout", "5", "wget", "-q", "-O", "-", &url]);
        show("web itself", &url, page, began)?;
    }
    Ok(())
}

/// What the host outside sees of the pods.
fn masqueraded(
    screen: &mut Screen,
    outside: &Outside,
    containerd: &mut Containerd,
    pods: [&Pod; 2],
) -> Result<()> {
    screen.title("Out of the pods: the address that a server outside sees");
    let server = Server::start(outside, Port::tcp(Ipv6Addr::UNSPECIFIED, 7000))?;
    for pod in pods {
        for (host, node, own) in
            [(Outside::HOST[0], Outside::NODE[0], 0), (Outside::HOST[2], Outside::NODE[2], 1)]
        {
            let began = Instant::now();
            let port = server.at().at.port();
            let said = exec(containerd, pod, &["sh", "-c", &format!("echo | timeout 5 nc {host} {port}")])?;
            // The server's name and the address that it sees, with a port.
            let seen = said.split_whitespace().nth(1).and_then(|text| text.parse::<SocketAddr>().ok());
            let seen = seen.ok_or_else(|| LabError::new(format!("the server at {host} said {said:?}")))?;
            if seen.ip().to_string() != node {
                return Err(LabError::new(format!("{host} sees {} as {seen}, not as {node}", pod.name)));
            }
            let address = pod.addresses.get(own).map(IpAddr::to_string).unwrap_or_default();
            screen.done(pod.name, format!("{address:<18} → {host:<14} sees {node}"), began);
        }
    }
    Ok(())
}

/// How fast `web` is, into it and out of it.
fn shaped(screen: &mut Screen, outside: &Outside, at_web: &Sandbox, web: &Pod) -> Result<()> {
    screen.title("How fast web is: streams for three seconds");
    let address = *web.addresses.first().ok_or_else(|| LabError::new("web has no address"))?;
    let host = Outside::HOST[0].parse().map_err(LabError::because("an address"))?;
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let [(ingress, most_in), (egress, most_out)] = RATES;
    for (way, limit, most) in [("receives", ingress, most_in), ("sends", egress, most_out)] {
        let began = Instant::now();
        let time = Duration::from_secs(3);
        let bits = if way == "receives" {
            let sink = Sink::start(at_web, SocketAddr::new(any, 5201))?;
            send_for(Client::at(outside), SocketAddr::new(address, 5201), &sink, time)?
        } else {
            let sink = Sink::start(outside, SocketAddr::new(any, 5201))?;
            send_for(Client::at(at_web), SocketAddr::new(host, 5201), &sink, time)?
        };
        let rate = bits / 1e6;
        if !NEAR.contains(&(rate / most)) {
            return Err(LabError::new(format!("web {way} {rate:.1} Mbit/s with a limit of {limit}bit/s")));
        }
        screen.done(way, format!("{rate:.1} Mbit/s of payload, limit {limit}bit/s"), began);
    }
    Ok(())
}

/// One end of a pod's way: its interface, and the host's end of it.
struct End {
    mac: String,
    host_link: String,
    bridge: String,
}

/// Follows the links from one pod to the other. The bridge is asked behind which port it knows the other pod.
fn way(node: &Node, from: &Pod, to: &Pod) -> Result<String> {
    let (start, end) = (end_of(node, from)?, end_of(node, to)?);
    if start.bridge != end.bridge {
        return Err(LabError::new(format!("{} and {} are on two bridges", start.host_link, end.host_link)));
    }
    let asked = node.run("bridge", &["-json", "fdb", "show", "br", &start.bridge])?.success("bridge fdb")?;
    let table: Value =
        serde_json::from_slice(&asked.stdout).map_err(LabError::because("read the bridge's table"))?;
    let entry = table.as_array().into_iter().flatten().find(|entry| entry["mac"] == end.mac.as_str());
    let port = entry.and_then(|entry| entry["ifname"].as_str()).unwrap_or("no port");
    if port != end.host_link {
        return Err(LabError::new(format!(
            "the bridge has {} behind {port}, not {}",
            end.mac, end.host_link
        )));
    }
    let (bridge, first, last) = (start.bridge, start.host_link, end.host_link);
    Ok(format!("{} eth0 → {first} → {bridge} → {last} → eth0 {}", from.name, to.name))
}

fn end_of(node: &Node, pod: &Pod) -> Result<End> {
    let netns = format!("--net={}", pod.netns);
    let shown =
        node.run("nsenter", &[&netns, "ip", "-json", "link", "show", "eth0"])?.success("look into a pod")?;
    let inside: Value =
        serde_json::from_slice(&shown.stdout).map_err(LabError::because("read a pod's eth0"))?;
    let inside = &inside[0];
    let links = node.ip(&["link"])?;
    // Each end of a veth names the index of the other.
    let paired =
        |link: &&Value| link["ifindex"] == inside["link_index"] && link["link_index"] == inside["ifindex"];
    let outside = links.as_array().into_iter().flatten().find(paired);
    let outside = outside
        .ok_or_else(|| LabError::new(format!("no link of the node is the peer of {}'s eth0", pod.name)))?;
    let text = |value: &Value, what: &str| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| LabError::new(format!("{} of pod {} is missing", what, pod.name)))
    };
    Ok(End {
        mac: text(&inside["address"], "the MAC address")?,
        host_link: text(&outside["ifname"], "the host link's name")?,
        bridge: text(&outside["master"], "the host link's bridge")?,
    })
}
