//! An explanation for people.

use std::fmt::Write;

use super::{End, Explanation, HopState, pod_name};
use crate::terminal::{Cell, Style, Table, Tone, harmless};

/// A line for each hop, what to do under those that need it, and the verdict.
pub fn text(explanation: &Explanation, style: Style) -> String {
    let Explanation { from, to, broken, hops } = explanation;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", style.paint(Tone::Strong, &format!("{} → {}", end(from), end(to))));
    let mut table = Table::new(["  HOP", "STATE", "FOUND"]);
    for hop in hops {
        let (state, tone) = match hop.state {
            HopState::Ok => ("ok", Tone::Good),
            HopState::Broken => ("BROKEN", Tone::Bad),
            HopState::Doubtful => ("doubtful", Tone::Warning),
            HopState::Unknown => ("unknown", Tone::Faint),
        };
        table.row([format!("  {}", hop.hop).into(), Cell::new(state).tone(tone), hop.found.as_str().into()]);
    }
    text.push_str(&table.text(style));
    let verdict = match broken {
        Some(broken) => style.paint(Tone::Bad, &format!("broken at: {broken}")),
        None if hops.iter().any(|hop| hop.state == HopState::Doubtful) => {
            style.paint(Tone::Warning, "nothing is broken for certain; see what is doubtful")
        }
        None if hops.iter().all(|hop| hop.state != HopState::Ok) => {
            style.paint(Tone::Warning, "nothing can be told from here")
        }
        None => style.paint(Tone::Good, "nothing is broken on this node"),
    };
    let _ = writeln!(text, "{verdict}");
    for hop in hops.iter().filter(|hop| !hop.advice.is_empty()) {
        let _ = writeln!(text, "  {}: {}", hop.hop, harmless(&hop.advice));
    }
    text
}

fn end(end: &End) -> String {
    match &end.pod {
        Some(pod) => format!("{} ({})", end.address, harmless(&pod_name(pod))),
        None => end.address.to_string(),
    }
}
