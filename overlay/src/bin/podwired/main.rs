//! `podwired`, the podwire agent of a node: holds the store of pod addresses and serves it to the plugins.

mod agent;
mod changes;
mod check;
mod cli;
mod cluster;
mod commands;
mod control;
mod counts;
mod install;
mod links;
mod log;
mod node;
mod notify;
mod probes;
mod reload;
mod rules;
mod serve;
mod upcoming;
mod watchdog;
mod writer;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done if this fails too.
            let _ = writeln!(std::io::stderr(), "podwired: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: cli::Cli) -> Result<(), String> {
    let settings = || cli.settings().map_err(|errors| check::told(&errors));
    match cli.task() {
        cli::Command::Run => {
            let settings = settings()?;
            let level = log::begin(&settings.config.log)?;
            for notice in &settings.notices {
                tracing::warn!("{notice}");
            }
            let dirs = cli::dirs(&settings.config);
            let again = Box::new(move || cli.settings().map_err(|errors| check::told(&errors)));
            agent::run(agent::Setup { dirs, resolved: settings, again, level })
        }
        cli::Command::Check(options) => check::check(&cli, &options),
        cli::Command::Cleanup => commands::cleanup(&settings()?.config),
        cli::Command::Install { to } => install::install(&to),
        cli::Command::Completions { shell } => commands::completions(shell),
    }
}
