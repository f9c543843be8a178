//! `podwirectl status`, `nodes` and `pods`.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::Dirs;
use podwire_overlay::cluster::{Encapsulation, IpFamily};
use podwire_overlay::explain;
use podwire_overlay::leases::few;
use podwire_overlay::status::{PeerState, PeerStatus, PodStatus, ProbeStatus, Severity, Status, StoreState};
use podwire_overlay::terminal::{Cell, Style, Table, Tone, duration, harmless};

use crate::agent::Agent;
use crate::cli;
use crate::node::{self, Known, seconds};
use crate::output::{Failure, Output, Verdict, note};

pub(crate) fn status(dirs: &Dirs, output: &Output) -> Result<Verdict, Failure> {
    let status: Status = Agent::of(dirs).get("/v1/status")?;
    if output.json {
        output.value(&status)?;
    } else {
        output.raw(&status_text(&status, output.style))?;
    }
    let is_grave = status.problems.iter().any(|problem| problem.severity == Severity::Error);
    // An agent that only keeps addresses has nothing to be ready for.
    Ok((!is_grave && (status.ready || status.store.is_none())).into())
}

fn status_text(status: &Status, style: Style) -> String {
    let mut text = String::new();
    for problem in &status.problems {
        let (word, tone) = match problem.severity {
            Severity::Error => ("PROBLEM", Tone::Bad),
            Severity::Warning => ("warning", Tone::Warning),
            Severity::Info => ("note", Tone::Faint),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {}", style.paint(tone, word), harmless(&problem.message));
        if !problem.advice.is_empty() {
            let _ = writeln!(text, "         {}", harmless(&problem.advice));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut table = Table::new(["THIS NODE", ""]);
    let mut row = |name: &str, value: Cell| table.row([name.into(), value]);
    row("node", status.node.as_str().into());
    row("state", state(status));
    row(
        "agent",
        format!("podwired {}, up {}", status.version, duration(Duration::from_secs(status.uptime_seconds)))
            .into(),
    );
    if let Some(store) = &status.store {
        let since = duration(Duration::from_secs(store.since_seconds));
        let (word, tone) = match store.state {
            StoreState::Starting => ("not reached yet", Tone::Warning),
            StoreState::Connected => ("connected", Tone::Good),
            StoreState::Lost => ("LOST", Tone::Bad),
            StoreState::Refused => ("REFUSES this node", Tone::Bad),
            StoreState::Fenced => ("FENCED", Tone::Bad),
        };
        let heard = match store.last_sync_seconds {
            Some(ago) if store.state == StoreState::Lost => {
                format!(", last heard of {} ago", duration(Duration::from_secs(ago)))
            }
            _ => String::new(),
        };
        let remembered = if store.is_remembered { ", known from this node's disk" } else { "" };
        let text = format!("{}: {word}, for {since}{heard}{remembered}", store.description);
        row("store", Cell::new(text).tone(tone));
        if let Some(why) = &store.why {
            row("", why.as_str().into());
        }
        let underlay = &status.underlay;
        let mtu = underlay.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
        let interface = underlay.interface.as_deref().unwrap_or("none");
        row("underlay", format!("{interface} {}{mtu}", join(&underlay.addresses, " ")).into());
        row("subnets", join(&status.subnets, " ").into());
        let receives: Vec<String> = status.receives.iter().map(segment).collect();
        let sends = status.sends.as_ref().map_or_else(|| "nothing".to_owned(), segment);
        row("tunnel", format!("sends {sends}; receives {}", receives.join(" and ")).into());
        for device in &status.devices {
            row("device", format!("{}, MTU {}", device.name, device.mtu).into());
        }
        if !status.adopted.is_empty() {
            row("adopted", status.adopted.join(" ").into());
        }
        let peers = &status.peers;
        let tone = if peers.unreachable + peers.left_out > 0 { Tone::Warning } else { Tone::Plain };
        let text = format!(
            "{} other nodes: {} by tunnel, {} direct, {} not reached, {} left out",
            peers.total, peers.tunnel, peers.direct, peers.unreachable, peers.left_out
        );
        row("peers", Cell::new(text).tone(tone));
    }
    let pods = &status.pods;
    row(
        "pods",
        format!("{} attached, {} starting, {} ending", pods.attached, pods.reserved, pods.deleting).into(),
    );
    for usage in &status.addresses {
        row(
            "addresses",
            format!("{}: {} of {} used, {} resting", usage.subnet, usage.used, usage.total, usage.resting)
                .into(),
        );
    }
    if status.store.is_some() {
        let dataplane = &status.dataplane;
        let (word, tone) =
            if dataplane.is_in_sync { ("in sync", Tone::Good) } else { ("NOT in sync", Tone::Bad) };
        let age = dataplane.last_pass_seconds.map_or_else(
            || "never looked at".to_owned(),
            |age| {
                format!("looked at {} ago, in {:.1} ms", duration(seconds(age)), dataplane.last_pass_millis)
            },
        );
        row("kernel", Cell::new(format!("{word}, {age}")).tone(tone));
        for error in &dataplane.errors {
            row("", Cell::new(error).tone(Tone::Bad));
        }
        let repairs: Vec<String> =
            dataplane.repairs.iter().map(|(cause, count)| format!("{count} × {cause}")).collect();
        let repairs = if repairs.is_empty() { "none".to_owned() } else { repairs.join(", ") };
        row(
            "repairs",
            format!("{repairs} (of {} changes, {} failed)", dataplane.operations, dataplane.failures).into(),
        );
    }
    let table = table.text(style);
    // The heading says nothing that the first row does not.
    text.push_str(table.split_once('\n').map_or("", |(_, rows)| rows));
    text
}

fn state(status: &Status) -> Cell {
    if let Some(why) = &status.refuse {
        return Cell::new(format!("takes no new pods: {why}")).tone(Tone::Bad);
    }
    match (&status.store, status.ready) {
        (None, _) => Cell::new("gives addresses to this node's pods; no cluster is configured"),
        (Some(_), true) => Cell::new("ready").tone(Tone::Good),
        (Some(_), false) => {
            Cell::new(format!("not ready: waits for {}", status.waiting.join(", "))).tone(Tone::Warning)
        }
    }
}

fn segment(encapsulation: &Encapsulation) -> String {
    format!("VNI {} on port {}", encapsulation.vni, encapsulation.port)
}

fn join<T: ToString>(all: &[T], by: &str) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(by)
}

pub(crate) fn nodes(dirs: &Dirs, options: &cli::Nodes, output: &Output) -> Result<Verdict, Failure> {
    let known = Known::gather(dirs)?;
    let Some(mut peers) = known.peers else {
        return Err(match known.silence {
            Some(silence) => Failure::no_agent(format!("{silence}; this node remembers no cluster")),
            None => Failure::usage("the agent has no cluster in its configuration"),
        });
    };
    if let Some(silence) = &known.silence {
        note(&format!("{silence}. What follows is what this node remembers"));
    }
    if let Some(name) = &options.name {
        peers.retain(|peer| peer.record.name == *name);
        let Some(peer) = peers.first() else {
            return Err(Failure::usage(format!("no node is called {name:?}; `podwirectl nodes` lists them")));
        };
        if output.json {
            output.value(peer)?;
        } else {
            output.raw(&node_text(peer, output.style))?;
        }
    } else if output.json {
        output.value(&peers)?;
    } else {
        output.raw(&nodes_table(&peers, known.silence.is_some()).text(output.style))?;
    }
    let is_bad = |peer: &PeerStatus| {
        matches!(peer.state, PeerState::Unreachable | PeerState::LeftOut)
            || peer.probes.iter().any(|probe| !probe.ok)
    };
    Ok((!peers.iter().any(is_bad)).into())
}

fn nodes_table(peers: &[PeerStatus], is_remembered: bool) -> Table {
    let mut table = Table::new(["NODE", "STATE", "ADDRESSES", "SUBNETS", "PROBE", "PROBLEM"]);
    for peer in peers {
        table.row([
            peer.record.name.as_str().into(),
            if is_remembered && !peer.is_self {
                Cell::new("remembered").tone(Tone::Faint)
            } else {
                peer_state(peer)
            },
            join(&peer.record.addresses, ",").into(),
            join(&peer.record.subnets, ",").into(),
            probes(&peer.probes),
            peer.problems.first().map(String::as_str).unwrap_or_default().into(),
        ]);
    }
    table
}

fn peer_state(peer: &PeerStatus) -> Cell {
    let (word, tone) = match peer.state {
        PeerState::Own => ("this node", Tone::Strong),
        PeerState::Tunnel => ("tunnel", Tone::Good),
        PeerState::Direct => ("direct", Tone::Good),
        PeerState::Unreachable => ("NOT REACHED", Tone::Bad),
        PeerState::LeftOut => ("LEFT OUT", Tone::Bad),
    };
    if peer.is_present == Some(false) {
        return Cell::new(format!("{word}, absent")).tone(Tone::Warning);
    }
    Cell::new(word).tone(tone)
}

fn probes(probes: &[ProbeStatus]) -> Cell {
    if let Some(bad) = probes.iter().find(|probe| !probe.ok) {
        let problem = bad.problem.clone().unwrap_or_else(|| "no answer".to_owned());
        return Cell::new(format!("{}: {problem}", family(bad.family))).tone(Tone::Bad);
    }
    let times: Vec<String> =
        probes.iter().filter_map(|probe| probe.rtt_millis).map(|millis| format!("{millis:.2} ms")).collect();
    Cell::new(times.join(","))
}

fn family(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "IPv4",
        IpFamily::Ipv6 => "IPv6",
    }
}

fn node_text(peer: &PeerStatus, style: Style) -> String {
    let record = &peer.record;
    let mut table = Table::new(["", ""]);
    let mut row = |name: &str, value: Cell| table.row([name.into(), value]);
    row("node", record.name.as_str().into());
    row("state", peer_state(peer));
    for problem in &peer.problems {
        row("problem", Cell::new(problem).tone(Tone::Bad));
    }
    row("addresses", join(&record.addresses, " ").into());
    row("subnets", join(&record.subnets, " ").into());
    if !record.instance.is_empty() {
        row("installation", format!("{} (generation {})", record.instance, record.generation).into());
    }
    row("MTU", record.mtu.map(|mtu| mtu.to_string()).unwrap_or_default().into());
    for vtep in &record.receives {
        let over6 = vtep.mac6.map(|mac6| format!(", over IPv6 at {mac6}")).unwrap_or_default();
        row("receives", format!("{} at {}{over6}", segment(&vtep.encapsulation), vtep.mac).into());
    }
    row("sends", record.sends.as_ref().map(segment).unwrap_or_default().into());
    for path in &peer.paths {
        let via = path.via.map(|via: IpAddr| format!(" via {via}")).unwrap_or_default();
        let mtu = path.mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
        let how = if path.is_direct { "directly" } else { "by the tunnel" };
        let subnet: IpNetwork = path.subnet;
        row("path", format!("{subnet} {how}: dev {}{via}{mtu}", path.device).into());
    }
    for probe in &peer.probes {
        let age = duration(seconds(probe.age_seconds));
        let (text, tone) = if probe.ok {
            let rtt = probe.rtt_millis.map(|millis| format!("{millis:.2} ms")).unwrap_or_default();
            let largest =
                probe.largest_bytes.map(|bytes| format!(", up to {bytes} bytes")).unwrap_or_default();
            (format!("answered in {rtt}{largest}, {:.0} % lost", probe.loss * 100.0), Tone::Good)
        } else {
            (probe.problem.clone().unwrap_or_else(|| "no answer".to_owned()), Tone::Bad)
        };
        row("probe", Cell::new(format!("{}: {text}, {age} ago", family(probe.family))).tone(tone));
    }
    let text = table.text(style);
    text.split_once('\n').map_or_else(String::new, |(_, rows)| rows.to_owned())
}

/// A line for each pod. Shells take them apart, and runtimes may name pods as they like: those that Kubernetes would not
/// allow are left out.
fn names(pods: &[PodStatus]) -> String {
    let is_plain = |name: &String| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/'))
    };
    let mut names: Vec<String> = pods.iter().map(explain::handle).filter(is_plain).collect();
    names.dedup();
    names.iter().map(|name| format!("{name}\n")).collect()
}

pub(crate) fn pods(dirs: &Dirs, options: &cli::Pods, output: &Output) -> Result<Verdict, Failure> {
    let mut pods = node::pods(dirs)?;
    pods.retain(|pod| options.network.as_ref().is_none_or(|network| *network == pod.network));
    if let Some(namespace) = &options.namespace {
        pods.retain(|pod| pod.namespace.as_ref() == Some(namespace));
    }
    // Pods without a name first, then as `kubectl get pods -A` has them.
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.ifname).cmp(&(&b.namespace, &b.name, &b.ifname)));
    if options.names {
        output.raw(&names(&pods))?;
        return Ok(Verdict::Fine);
    }
    if let Some(wanted) = &options.pod {
        let found = explain::find(wanted, &pods).map_err(|error| Failure::usage(error.to_string()))?;
        pods = found.into_iter().cloned().collect();
    }
    if output.json {
        output.value(&pods)?;
        return Ok(Verdict::Fine);
    }
    let mut table =
        Table::new(["NAMESPACE", "NAME", "ADDRESSES", "STATE", "LINK", "BRIDGE", "PORTS", "CONTAINER"]);
    for pod in &pods {
        let tone = if pod.state == "attached" { Tone::Plain } else { Tone::Warning };
        let addresses: Vec<String> = pod.addresses.iter().map(|address| address.ip().to_string()).collect();
        let short = pod.container.get(..12).unwrap_or(&pod.container);
        table.row([
            pod.namespace.as_deref().unwrap_or_default().into(),
            pod.name.as_deref().unwrap_or_default().into(),
            addresses.join(",").into(),
            Cell::new(&pod.state).tone(tone),
            pod.link.as_deref().unwrap_or_default().into(),
            pod.bridge.as_deref().unwrap_or_default().into(),
            few(&pod.ports).into(),
            short.into(),
        ]);
    }
    output.raw(&table.text(output.style))?;
    Ok(Verdict::Fine)
}
