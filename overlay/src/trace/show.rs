//! A packet's way, for people.

use std::fmt::Write;
use std::time::Duration;

use super::{Frame, Layers, Passage, Role, Transport};
use crate::terminal::{Cell, Style, Table, Tone, duration};

/// One packet: a line about it, then a line for each place with the inner and the outer headers side by side.
pub fn text(number: u64, passage: &Passage, style: Style) -> String {
    let Some(first) = passage.sightings.first() else { return String::new() };
    let mut text = String::new();
    let heading = format!("#{number}  {}", summary(&first.frame));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}  at {:.6} s", style.paint(Tone::Strong, &heading), first.at.as_secs_f64());
    let mut table = Table::new(["  PLACE", "LINK", "AFTER", "INNER", "OUTER"]);
    for seen in &passage.sightings {
        let after = seen.at.saturating_sub(first.at);
        let arrow = if seen.outgoing { "out" } else { "in" };
        table.row([
            format!("  {}", seen.place.role.name()).into(),
            format!("{} {arrow}", seen.place.link).into(),
            if after == Duration::ZERO { "0".into() } else { format!("+{}", duration(after)).into() },
            headers(&seen.frame.inner).into(),
            outer(&seen.frame).into(),
        ]);
    }
    for place in &passage.missing {
        // What the stack answers or takes itself does not come to the bridge; elsewhere it is lost.
        let tone = if place.role == Role::Bridge { Tone::Warning } else { Tone::Bad };
        table.row([
            format!("  {}", place.role.name()).into(),
            place.link.as_str().into(),
            "".into(),
            Cell::new("not seen here").tone(tone),
            "".into(),
        ]);
    }
    text.push_str(&table.text(style));
    text
}

/// `10.244.1.7 → 10.244.2.9  ICMP echo request 7/1, 84 bytes`. Made of numbers and own words alone.
fn summary(frame: &Frame) -> String {
    let Some(network) = &frame.inner.network else { return "a frame without IP".to_owned() };
    let what = match &frame.inner.transport {
        Some(transport) => self::transport(transport, &network.protocol_name()),
        None => network.protocol_name(),
    };
    let part = if network.is_fragment { ", a fragment" } else { "" };
    format!("{} → {}  {what}, {} bytes{part}", network.source, network.destination, network.length)
}

fn transport(transport: &Transport, protocol: &str) -> String {
    match transport {
        Transport::Tcp { source_port, destination_port, sequence, flags, data, .. } => {
            format!("TCP {source_port} → {destination_port} {flags} seq {sequence} data {data}")
        }
        Transport::Udp { source_port, destination_port, data } => {
            format!("UDP {source_port} → {destination_port} data {data}")
        }
        Transport::Icmp { name, echo: Some((id, sequence)), .. } => {
            format!("{protocol} {name} {id}/{sequence}")
        }
        Transport::Icmp { name, kind, code, .. } => format!("{protocol} {name} ({kind}/{code})"),
    }
}

/// `0a:58:… → 0a:58:…, hops 63`.
fn headers(layers: &Layers) -> String {
    let mut parts = Vec::new();
    parts.extend(layers.ethernet.map(|ethernet| format!("{} → {}", ethernet.source, ethernet.destination)));
    parts.extend(layers.network.map(|network| format!("hops {}", network.hops)));
    parts.extend(layers.unreadable.as_ref().map(|why| format!("unreadable: {why}")));
    parts.join(", ")
}

fn outer(frame: &Frame) -> String {
    let (Some(outer), Some(vni)) = (&frame.outer, frame.vni) else { return String::new() };
    let network = outer.network.map(|network| {
        let ports = match &outer.transport {
            Some(Transport::Udp { source_port, destination_port, .. }) => {
                format!(", UDP {source_port} → {destination_port}")
            }
            _ => String::new(),
        };
        format!("{} → {}, hops {}{ports}", network.source, network.destination, network.hops)
    });
    format!("{}, VNI {vni}, {} bytes", network.unwrap_or_default(), frame.length)
}
