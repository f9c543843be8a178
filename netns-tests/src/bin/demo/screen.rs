//! What a person sees.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Lines for a person, coloured where a person looks.
pub(crate) struct Screen {
    colour: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// Writes a line. A reader that has gone away is no reason to stop half way.
    pub(crate) fn line(&mut self, text: impl Display) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    pub(crate) fn title(&mut self, text: impl Display) {
        let text = self.paint("1", text);
        self.line(format!("\n{text}"));
    }

    /// Something that was done, and how long it took.
    pub(crate) fn done(&mut self, what: &str, with: impl Display, began: Instant) {
        let took = self.paint("2", milliseconds(began.elapsed()));
        let ok = self.paint("32", "✓");
        self.line(format!("  {ok} {what:<12}{with:<62}{took:>9}"));
    }

    /// What another program printed, moved to the right.
    pub(crate) fn printed(&mut self, command: &str, text: &str) {
        let command = self.paint("36", format!("$ {command}"));
        self.line(format!("  {command}"));
        for line in text.trim_end().lines() {
            self.line(format!("    {line}"));
        }
    }

    pub(crate) fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

pub(crate) fn milliseconds(time: Duration) -> String {
    let time = time.as_secs_f64() * 1e3;
    if time < 9.95 { format!("{time:.1} ms") } else { format!("{time:.0} ms") }
}
