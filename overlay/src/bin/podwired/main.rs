//! `podwired`, the podwire agent of a node: holds the store of pod addresses and serves it to the plugins.

mod agent;
mod changes;
mod cli;
mod commands;
mod links;
mod log;
mod notify;
mod rules;
mod serve;
mod upcoming;
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
    let dirs = cli.dirs();
    match cli.command.unwrap_or_default() {
        cli::Command::Run(options) => {
            log::begin(&options)?;
            agent::run(&dirs)
        }
        cli::Command::Ipam(cli::Ipam::List(options)) => commands::list(&dirs, &options),
        cli::Command::Ipam(cli::Ipam::Export(options)) => commands::export(&dirs, &options),
        cli::Command::Cleanup => commands::cleanup(&dirs),
        cli::Command::Completions { shell } => commands::completions(shell),
    }
}
