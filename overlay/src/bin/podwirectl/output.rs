//! What goes to the terminal, and how the program ends.

use std::io::{self, IsTerminal, Write};

use podwire_overlay::terminal::{Style, harmless, harmless_json};
use serde::Serialize;

/// How a command ends that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Exit code 0.
    Fine,
    /// Exit code 1: it found something that is not as it should be.
    Problem,
}

impl From<bool> for Verdict {
    fn from(is_fine: bool) -> Self {
        if is_fine { Self::Fine } else { Self::Problem }
    }
}

/// Why a command could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What is written to standard error.
    pub(crate) text: String,
}

/// The command line means nothing, or nobody who is known; clap's own code for what it refuses.
pub(crate) const USAGE: u8 = 2;
/// The agent does not answer, and the command needs it.
pub(crate) const NO_AGENT: u8 = 3;
/// Everything else: not permitted, refused, the kernel or the store failed.
pub(crate) const FAILED: u8 = 4;

impl Failure {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into() }
    }

    pub(crate) fn no_agent(text: impl Into<String>) -> Self {
        Self { code: NO_AGENT, text: text.into() }
    }

    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }
}

impl From<podwire_kernel::Error> for Failure {
    fn from(error: podwire_kernel::Error) -> Self {
        let hint = if error.is_denied() { ": podwirectl has to run as root" } else { "" };
        Self::new(format!("{error}{hint}"))
    }
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    /// Whether a program reads it.
    pub(crate) json: bool,
    /// How it looks.
    pub(crate) style: Style,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let colour = io::stdout().is_terminal() && !wants_none && !is_dumb;
        Self { json, style: Style { colour } }
    }

    /// Writes a text whose parts are harmless. Whoever reads may have gone: that is no failure of ours.
    pub(crate) fn raw(&self, text: &str) -> Result<(), Failure> {
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("write the answer: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes a value as JSON of several lines.
    pub(crate) fn value(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::new(format!("write the answer: {error}")))?;
        self.raw(&format!("{}\n", harmless_json(&text)))
    }

    /// Writes a value as JSON of one line.
    pub(crate) fn line(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(format!("write the answer: {error}")))?;
        self.raw(&format!("{}\n", harmless_json(&text)))
    }
}

/// A text of several lines, each made harmless.
pub(crate) fn harmless_lines(text: &str) -> String {
    text.lines().map(harmless).collect::<Vec<_>>().join("\n")
}

/// Something to tell beside the answer.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "podwirectl: {}", harmless_lines(text));
}
