//! A plan, for people. PURE.

use std::fmt::Write;

use super::{Plan, Step};
use crate::terminal::{Style, Tone, harmless};

/// All of a plan that is not carried out.
pub fn whole<A>(plan: &Plan<A>, style: Style) -> String {
    let mut text = found(plan, style);
    for (index, step) in plan.steps.iter().enumerate() {
        text.push_str(&self::step(index, step, style));
    }
    text.push_str(&rest(plan));
    if !plan.refused.is_empty() {
        let _ = writeln!(text, "{}", style.paint(Tone::Bad, "nothing is done:"));
        for why in &plan.refused {
            let _ = writeln!(text, "  {}", harmless(why));
        }
    }
    text
}

/// What a plan begins with.
pub fn found<A>(plan: &Plan<A>, style: Style) -> String {
    if plan.found.is_empty() {
        return String::new();
    }
    let mut text = format!("{}\n", style.paint(Tone::Strong, "on this node:"));
    for line in &plan.found {
        let _ = writeln!(text, "  {}", harmless(line));
    }
    text
}

/// One step, with what it is for.
pub fn step<A>(index: usize, step: &Step<A>, style: Style) -> String {
    let done = if step.is_done { style.paint(Tone::Good, " (is done)") } else { String::new() };
    let number = index + 1;
    format!(
        "{number:>3}. {}{done}\n     {}\n",
        harmless(&step.what),
        style.paint(Tone::Faint, &harmless(&step.why))
    )
}

/// What a plan ends with that was carried out.
pub fn end<A>(plan: &Plan<A>, style: Style) -> String {
    let mut text = rest(plan);
    let left = plan.steps.iter().filter(|step| !step.is_done);
    for step in left {
        let _ = writeln!(text, "{} {}", style.paint(Tone::Bad, "left:"), harmless(&step.what));
    }
    for why in &plan.refused {
        let _ = writeln!(text, "{} {}", style.paint(Tone::Bad, "problem:"), harmless(why));
    }
    if plan.is_done() {
        let _ = writeln!(text, "{}", style.paint(Tone::Good, "done"));
    }
    text
}

/// What is left to an administrator. Commands stand alone in their lines, to be copied.
fn rest<A>(plan: &Plan<A>) -> String {
    let mut text = String::new();
    for note in &plan.notes {
        let _ = writeln!(text, "note: {}", harmless(note));
    }
    for command in &plan.commands {
        let _ = writeln!(text, "  {}", harmless(command));
    }
    text
}
