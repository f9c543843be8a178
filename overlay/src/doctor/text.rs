//! Findings for people.

use std::fmt::Write;

use super::Finding;
use crate::status::Severity;
use crate::terminal::{Style, Tone, harmless};

/// Each finding with why it matters and what to do, the gravest first.
pub fn text(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.severity {
            Severity::Error => ("ERROR  ", Tone::Bad),
            Severity::Warning => ("warning", Tone::Warning),
            Severity::Info => ("note   ", Tone::Faint),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}  {} [{}]",
            style.paint(tone, word),
            harmless(&finding.found),
            harmless(&finding.code)
        );
        for (name, said) in [("why", &finding.why), ("do ", &finding.advice)] {
            if !said.is_empty() {
                let _ = writeln!(text, "    {}  {}", style.paint(Tone::Faint, name), harmless(said));
            }
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let verdict = match (errors, warnings) {
        (0, 0) => style.paint(Tone::Good, "nothing is wrong"),
        (0, _) => style.paint(Tone::Warning, &format!("{warnings} warnings")),
        _ => style.paint(Tone::Bad, &format!("{errors} errors, {warnings} warnings")),
    };
    let _ = writeln!(text, "{verdict}");
    text
}
