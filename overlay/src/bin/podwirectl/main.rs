//! `podwirectl`: shows, explains and checks what podwire does on a node.

mod agent;
mod cli;
mod cluster;
mod completions;
mod doctor;
mod explain;
mod ipam;
mod migrate;
mod node;
mod output;
mod show;
mod trace;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use output::{Failure, Output, Verdict};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json());
    match run(&cli, &output) {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Problem) => ExitCode::from(1),
        Err(failure) => {
            // Nothing is left to be done if this fails too.
            let _ = writeln!(std::io::stderr(), "podwirectl: {}", output::harmless_lines(&failure.text));
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &Cli, output: &Output) -> Result<Verdict, Failure> {
    let dirs = cli.dirs();
    match &cli.command {
        Command::Status(_) => show::status(&dirs, output),
        Command::Nodes(options) => show::nodes(&dirs, options, output),
        Command::Pods(options) => show::pods(&dirs, options, output),
        Command::Ipam(command) => ipam::run(&dirs, command, output),
        Command::Explain(options) => explain::run(&dirs, options, output),
        Command::Trace(options) => trace::run(&dirs, options, output),
        Command::Doctor(options) => doctor::run(&dirs, options, output),
        Command::Node(command) => cluster::node(&dirs, command, output),
        Command::Cluster(command) => cluster::run(&dirs, command, output),
        Command::Migrate(cli::Migrate::Flannel(options)) => migrate::flannel(&dirs, options, output),
        Command::Completions { shell } => {
            output.raw(&completions::script(*shell))?;
            Ok(Verdict::Fine)
        }
    }
}
