//! Where pods meet the world outside: a port of the node, the node's address in place of theirs, and rates.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::Cluster;
use podwire_netns_tests::containerd::Containerd;
use podwire_netns_tests::traffic::{Client, Place, Port, Server, Sink, send_for};
use podwire_netns_tests::underlay::Underlay;
use podwire_netns_tests::{LabError, Result};

use crate::pods::DemoPod;
use crate::screen::Screen;

/// The node's port that leads to the web server.
pub(crate) const HOST_PORT: u16 = 8080;

/// What the web server may receive and send, in words and in Mbit/s.
pub(crate) const RATES: [(&str, f64); 2] = [("50M", 50.0), ("20M", 20.0)];

/// How far from its limit the payload of a stream may be: 95 % of it is what headers leave.
const NEAR: std::ops::Range<f64> = 0.85..1.02;

pub(crate) fn ports_masquerade_and_rates(
    screen: &mut Screen,
    cluster: &Cluster,
    runtimes: &mut [Containerd],
    pods: &[DemoPod],
) -> Result<()> {
    let (web, underlay) = (&pods[0], cluster.underlay());
    screen.title(format!("A host outside: port {HOST_PORT} of node0, what it sees of pods, how fast web is"));
    for node in underlay.addresses(0) {
        let began = Instant::now();
        let at = SocketAddr::new(node, HOST_PORT);
        let page = fetch(underlay, at)?;
        if page != format!("hello from {}", web.name) {
            return Err(LabError::new(format!("http://{at}/ answered {page:?}")));
        }
        screen.done("outside", format!("http://{at}/  \"{page}\""), began);
    }

    let server = Server::start(underlay, Port::tcp(Ipv6Addr::UNSPECIFIED, 7000))?;
    for pod in pods {
        let began = Instant::now();
        let mut seen = Vec::new();
        for (host, node) in underlay.gateways(0).iter().zip(underlay.addresses(pod.node as u8)) {
            let port = server.at().at.port();
            let say = format!("echo | timeout 5 nc {host} {port}");
            let said = pod.exec(&mut runtimes[pod.node], &["sh", "-c", &say])?;
            // The server's name and the address that it sees, with a port.
            let peer = said.split_whitespace().nth(1).and_then(|text| text.parse::<SocketAddr>().ok());
            let peer = peer.ok_or_else(|| LabError::new(format!("the server at {host} said {said:?}")))?;
            if peer.ip().to_canonical() != node {
                return Err(LabError::new(format!("{host} sees {} as {peer}, not as {node}", pod.name)));
            }
            seen.push(node.to_string());
        }
        screen.done("outside", format!("sees {} as {}", pod.name, seen.join(" and ")), began);
    }

    let at_web = runtimes[web.node].place(&web.id, &web.name)?;
    let at_client = runtimes[pods[1].node].place(&pods[1].id, &pods[1].name)?;
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let [(ingress, most_in), (egress, most_out)] = RATES;
    for (way, limit, most) in [("receives", ingress, most_in), ("sends", egress, most_out)] {
        let began = Instant::now();
        let (time, port) = (Duration::from_secs(2), 5201);
        let (from, to, address): (&dyn Place, &dyn Place, _) = if way == "receives" {
            (&at_client, &at_web, web.addresses[0])
        } else {
            (&at_web, &at_client, pods[1].addresses[0])
        };
        let sink = Sink::start(to, SocketAddr::new(any, port))?;
        let rate = send_for(Client::at(from), SocketAddr::new(address, port), &sink, time)? / 1e6;
        if !NEAR.contains(&(rate / most)) {
            return Err(LabError::new(format!("web {way} {rate:.1} Mbit/s with a limit of {limit}bit/s")));
        }
        screen.done(
            "web",
            format!("{way} {rate:.1} Mbit/s from and to another node, limit {limit}bit/s"),
            began,
        );
    }
    Ok(())
}

/// Fetches the page at the root of a web server, from outside.
fn fetch(underlay: &Underlay, at: SocketAddr) -> Result<String> {
    let what = || format!("fetch http://{at}/");
    let limit = Duration::from_secs(5);
    let connect = || TcpStream::connect_timeout(&at, limit);
    let mut stream = underlay.network().run(connect)?.map_err(LabError::because(what()))?;
    stream.set_read_timeout(Some(limit)).map_err(LabError::because(what()))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(LabError::because(what()))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(LabError::because(what()))?;
    let page = answer.split_once("\r\n\r\n").map(|(_, page)| page.trim().to_owned());
    page.ok_or_else(|| LabError::new(format!("{}: {answer:?}", what())))
}
