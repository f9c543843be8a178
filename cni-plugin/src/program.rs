//! One call of a plugin, from the environment to the exit code.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::Network;
use crate::protocol::{CniError, CniVersion, Environment, Verb, read_input, version_answer};
use crate::verbs::{add, check, del, gc, ipam, loopback, status, tuning};

/// Which plugin a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `podwire`, the main plugin.
    Podwire,
    /// `podwire-ipam`.
    Ipam,
    /// `loopback`: the same file under that name.
    Loopback,
    /// `podwire-tuning`: the same file under that name.
    Tuning,
}

impl Program {
    /// As the process was called: by the name `loopback`, `podwire-tuning`, or any other.
    pub fn of_this_process() -> Self {
        let name = std::env::args_os().next().unwrap_or_default();
        match Path::new(&name).file_name().and_then(OsStr::to_str) {
            Some("loopback") => Self::Loopback,
            Some("podwire-tuning") => Self::Tuning,
            _ => Self::Podwire,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Podwire => "podwire",
            Self::Ipam => "podwire-ipam",
            Self::Loopback => "podwire as loopback",
            Self::Tuning => "podwire-tuning",
        }
    }

    fn run(self, env: &Environment, stdin: &[u8]) -> Result<Option<String>, CniError> {
        match self {
            Self::Ipam => ipam::run(env, stdin),
            Self::Loopback => loopback::run(env, stdin),
            Self::Tuning => tuning::run(env, stdin),
            Self::Podwire => match env.verb {
                Verb::Add => add::run(env, stdin).map(Some),
                Verb::Del => del::run(env, stdin).map(|()| None),
                Verb::Check => check::run(env, stdin).map(|()| None),
                Verb::Gc => gc::run(env, stdin).map(|()| None),
                Verb::Status => status::run(env, stdin).map(|()| None),
                Verb::Version => Ok(Some(version_answer())),
            },
        }
    }
}

/// Serves the one call that this process was started for.
pub fn main(program: Program) -> ExitCode {
    let env = match Environment::parse(std::env::vars_os()) {
        Ok(Some(env)) => env,
        Ok(None) => return about(program),
        Err(error) => return failed(&error, CniVersion::LATEST),
    };
    if env.verb == Verb::Version {
        // Standard input is not read: some callers leave it open.
        return printed(&version_answer());
    }
    let stdin = match read_input(io::stdin().lock()) {
        Ok(stdin) => stdin,
        Err(error) => return failed(&error, CniVersion::LATEST),
    };
    match program.run(&env, &stdin) {
        Ok(Some(answer)) => printed(&answer),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => failed(&error, Network::version_of(&stdin)),
    }
}

/// Somebody typed the name: say what this is.
fn about(program: Program) -> ExitCode {
    let versions: Vec<&str> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
    let text = format!(
        "{} {}: a CNI plugin, started by a container runtime with CNI_COMMAND in the environment.\n\
         CNI protocol versions supported: {}\n",
        program.name(),
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    );
    // Nobody may be listening.
    let _ = io::stderr().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn printed(answer: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(answer.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The runtime does not know of what was done: it will call DEL.
        Err(_) => ExitCode::FAILURE,
    }
}

fn failed(error: &CniError, version: CniVersion) -> ExitCode {
    printed(&error.to_json(version));
    ExitCode::FAILURE
}
