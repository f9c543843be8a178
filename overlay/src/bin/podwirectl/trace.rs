//! `podwirectl trace`: looks at a flow's packets where they pass.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use podwire_ipam::Dirs;
use podwire_kernel::link::Link;
use podwire_kernel::packet::{Direction, Match, Options, PacketSocket};
use podwire_kernel::route::Lookup;
use podwire_kernel::{MacAddr, Netlink};
use podwire_overlay::explain::{self, DEVICE_ALIAS, End};
use podwire_overlay::trace::{Flow, Follower, Passage, Place, Role, Sighting, decode, text};
use serde_json::json;

use crate::cli;
use crate::node;
use crate::output::{Failure, Output, Verdict, note};

/// How much of each frame is kept: two sets of headers, and what tells packets of one flow apart.
const SNAP: usize = 256;

/// How long each socket is waited for before the next has its turn.
const TURN: Duration = Duration::from_millis(5);

pub(crate) fn run(dirs: &Dirs, options: &cli::Trace, output: &Output) -> Result<Verdict, Failure> {
    let pods = node::pods(dirs)?;
    let pairs = explain::resolve(&options.from, &options.to, &pods)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let Some((from, to)) =
        pairs.into_iter().find(|(from, _)| options.family.is_none_or(|wanted| wanted.is(from.address)))
    else {
        return Err(Failure::usage("the two have no address of that family"));
    };
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let (places, ports) = places(&mut netlink, &links, &from, &to)?;
    let flow = Flow { a: from.address, b: to.address };
    if !output.json {
        let names: Vec<String> =
            places.iter().map(|(place, _)| format!("{} ({})", place.link, place.role.name())).collect();
        note(&format!(
            "watching packets between {} and {} at {}; for {} s, or {} packets",
            flow.a,
            flow.b,
            names.join(", "),
            options.seconds,
            options.count
        ));
    }
    let watched = watch(&places, &ports, flow, options, output)?;
    let Watched { passages, incomplete, lost } = watched;
    if output.json {
        output.line(&json!({ "packets": passages, "incomplete": incomplete, "lostByCapture": lost }))?;
    } else {
        if lost > 0 {
            note(&format!("{lost} frames came faster than they could be looked at, and are not shown"));
        }
        output.raw(&format!("{passages} packets, {incomplete} of them not seen everywhere\n"))?;
    }
    if passages == 0 {
        note("no packet of the two was seen: is anything being sent?");
    }
    Ok((passages > 0 && incomplete == 0).into())
}

/// Where the packets of a flow pass on this node, with the links, and the ports on which VXLAN comes.
#[expect(clippy::type_complexity, reason = "two lists that belong together, used once")]
fn places<'a>(
    netlink: &mut Netlink,
    links: &'a [Link],
    from: &End,
    to: &End,
) -> Result<(Vec<(Place, &'a Link)>, Vec<u16>), Failure> {
    let named = |name: &str| links.iter().find(|link| link.name == name);
    let indexed = |index: u32| links.iter().find(|link| link.index == index);
    let at = |role: Role, link: &'a Link| (Place { role, link: link.name.clone() }, link);
    let pod_of = |end: &End| end.pod.as_ref().and_then(|pod| pod.link.as_deref()).and_then(named);
    let mut all: Vec<(Place, &Link)> =
        [from, to].into_iter().filter_map(pod_of).map(|link| at(Role::Pod, link)).collect();
    let local = [from, to].into_iter().find(|end| end.pod.is_some());
    let Some(local) = local else {
        return Err(Failure::usage(
            "neither of the two is a pod of this node: run it on a node that has one of them",
        ));
    };
    let both_here = from.pod.is_some() && to.pod.is_some();
    let bridges: Vec<&Link> = all.iter().filter_map(|(_, link)| indexed(link.controller?)).collect();
    // Between two ports of one bridge, frames do not pass the bridge's own device.
    if let Some(bridge) = bridges.first()
        && !(both_here && bridges.iter().all(|other| other.index == bridge.index))
    {
        all.push(at(Role::Bridge, bridge));
    }
    let mut ports: Vec<u16> = Vec::new();
    if !both_here {
        let remote = if from.pod.is_some() { to } else { from };
        let lookup = Lookup {
            source: Some(local.address),
            input: bridges.first().map(|bridge| bridge.index),
            ..Lookup::to(remote.address)
        };
        let route = netlink.route_to(&lookup).ok().flatten();
        let out = route.as_ref().and_then(|route| indexed(route.nexthops.first()?.oif?));
        let ours = links
            .iter()
            .filter(|link| link.alias.as_deref() == Some(DEVICE_ALIAS))
            .filter(|link| link.vxlan.is_some());
        ports.extend(ours.clone().filter_map(|link| link.vxlan.map(|vxlan| vxlan.port)));
        ports.dedup();
        // Where the route is broken, packets may still come in by the tunnel.
        let device =
            out.filter(|link| link.vxlan.is_some()).or_else(|| ours.clone().next().filter(|_| out.is_none()));
        match device {
            Some(device) => {
                all.push(at(Role::Tunnel, device));
                let hop = route.and_then(|route| route.nexthops.first()?.gateway);
                let underlay = underlay(netlink, device, hop)?.and_then(indexed);
                all.extend(underlay.map(|link| at(Role::Underlay, link)));
            }
            None => all.extend(out.map(|link| at(Role::Underlay, link))),
        }
    }
    Ok((all, ports))
}

/// The link by which a VXLAN device's packets leave: that of the route to the node behind a gateway, else that of the
/// device's own address.
fn underlay(netlink: &mut Netlink, device: &Link, gateway: Option<IpAddr>) -> Result<Option<u32>, Failure> {
    let neighbours = netlink.neighbours(device.index)?;
    let mac: Option<MacAddr> =
        neighbours.iter().find(|found| Some(found.address) == gateway).and_then(|found| found.mac);
    let fdb = netlink.fdb(device.index)?;
    let remote =
        fdb.iter().find(|entry| mac.is_some() && Some(entry.mac) == mac).and_then(|entry| entry.destination);
    if let Some(remote) = remote {
        let route = netlink.route_to(&Lookup::to(remote)).ok().flatten();
        return Ok(route.and_then(|route| route.nexthops.first()?.oif));
    }
    let local = device.vxlan.and_then(|vxlan| vxlan.local);
    let addresses = netlink.addresses(None)?;
    Ok(addresses.iter().find(|own| Some(own.address.ip()) == local).map(|own| own.ifindex))
}

struct Watched {
    passages: u64,
    incomplete: u64,
    lost: u64,
}

fn watch(
    places: &[(Place, &Link)],
    ports: &[u16],
    flow: Flow,
    options: &cli::Trace,
    output: &Output,
) -> Result<Watched, Failure> {
    let filters = conditions(flow, ports);
    let filters: Vec<&[Match]> = filters.iter().map(Vec::as_slice).collect();
    let mut sockets = Vec::new();
    for (place, link) in places {
        let options = Options { snap: SNAP, filter: &filters, offload: false, only_received: false };
        sockets.push((place, PacketSocket::open(link.index, &options)?));
    }
    let mut follower = Follower::new(places.iter().map(|(place, _)| place.clone()).collect());
    let began = SystemTime::now();
    let deadline = Instant::now() + Duration::from_secs(options.seconds);
    let mut watched = Watched { passages: 0, incomplete: 0, lost: 0 };
    'watching: while Instant::now() < deadline {
        for (place, socket) in &mut sockets {
            // Waits only where nothing is there: each link has its turn.
            let mut patience = TURN;
            while let Some(frame) = received(socket, patience)? {
                patience = Duration::ZERO;
                let decoded = decode(frame.bytes, frame.length, ports);
                if !flow.has(&decoded) {
                    continue;
                }
                follower.saw(Sighting {
                    place: (*place).clone(),
                    at: frame.at.duration_since(began).unwrap_or_default(),
                    outgoing: frame.direction == Direction::Outgoing,
                    frame: decoded,
                });
            }
        }
        for passage in
            follower.done(began.elapsed().unwrap_or_default()).into_iter().filter(Passage::was_watched)
        {
            tell(&passage, &mut watched, output)?;
            if watched.passages >= options.count {
                break 'watching;
            }
        }
    }
    for passage in follower.end().into_iter().filter(Passage::was_watched) {
        if watched.passages >= options.count {
            break;
        }
        tell(&passage, &mut watched, output)?;
    }
    for (_, socket) in &sockets {
        watched.lost += socket.counts().map(|counts| u64::from(counts.lost)).unwrap_or_default();
    }
    Ok(watched)
}

/// A link that goes down, or away, is one where nothing is seen any more.
fn received(
    socket: &mut PacketSocket,
    patience: Duration,
) -> Result<Option<podwire_kernel::packet::Frame<'_>>, Failure> {
    match socket.receive(patience) {
        Err(error) if ["ENETDOWN", "ENODEV", "ENXIO"].iter().any(|name| error.to_string().contains(name)) => {
            Ok(None)
        }
        received => Ok(received?),
    }
}

fn tell(passage: &Passage, watched: &mut Watched, output: &Output) -> Result<(), Failure> {
    watched.passages += 1;
    if !passage.missing.is_empty() {
        watched.incomplete += 1;
    }
    if output.json {
        output.line(passage)
    } else {
        output.raw(&text(watched.passages, passage, output.style))
    }
}

/// What the kernel lets through: packets between the two, in both directions, alone or inside VXLAN on one of the ports over
/// either family. What it cannot tell, such as headers with options, is not seen.
fn conditions(flow: Flow, ports: &[u16]) -> Vec<Vec<Match>> {
    /// Ethernet's header, UDP's and VXLAN's.
    const ETHERNET: u32 = 14;
    const UDP: u32 = 8;
    const VXLAN: u32 = 8;
    let mut all = Vec::new();
    for (from, to) in [(flow.a, flow.b), (flow.b, flow.a)] {
        all.push(between(0, from, to));
        for port in ports {
            for (kind, protocol, header) in [(0x0800, 23, 20), (0x86dd, 20, 40)] {
                let udp = ETHERNET + header;
                let mut outer =
                    vec![Match::half(12, kind), Match::byte(protocol, 17), Match::half(udp + 2, *port)];
                outer.extend(between(udp + UDP + VXLAN, from, to));
                all.push(outer);
            }
        }
    }
    all
}

/// A packet from one to another in the Ethernet frame that begins there.
fn between(at: u32, from: IpAddr, to: IpAddr) -> Vec<Match> {
    let mut all = Vec::new();
    let mut words = |at: u32, bytes: &[u8]| {
        for (index, word) in bytes.chunks_exact(4).enumerate() {
            let value = word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
            all.push(Match::word(at + 4 * index as u32, value));
        }
    };
    let kind = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            words(at + 26, &from.octets());
            words(at + 30, &to.octets());
            0x0800
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V6(address) => address.octets(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            words(at + 22, &octets(from));
            words(at + 38, &octets(to));
            0x86dd
        }
    };
    all.insert(0, Match::half(at + 12, kind));
    all
}
