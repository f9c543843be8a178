//! The tests' Kubernetes API server by itself, to try things with `kubectl` or an agent. It knows no faults; see
//! [`podwire_netns_tests::apiserver`].

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use podwire_netns_tests::apiserver::{
    ADMIN_TOKEN, Account, ApiServer, Credentials, NodeSpec, ServerOptions, Tls,
};
use podwire_netns_tests::{LabError, Result};

/// A Kubernetes API server for tests.
#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve TLS with ca.crt, tls.crt and tls.key of this directory; they are made if they are not there.
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Tokens of agents, one a line, read again whenever the file changes.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// How many Nodes to create: node-0, node-1, …, each with a /24 of 10.0.0.0/8.
    #[arg(long, default_value_t = 0)]
    nodes: u16,
    /// How often each Node gets a heartbeat, in seconds; never, if it is 0.
    #[arg(long, default_value_t = 0)]
    heartbeat: u64,
    /// Where to write an administrator's kubeconfig.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "podwire-apiserver: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> Result<()> {
    let tls = arguments.tls.as_deref().map(|directory| {
        if directory.join("tls.crt").exists() {
            return Tls::open(directory);
        }
        fs::create_dir_all(directory)
            .map_err(LabError::because(format!("make the directory {}", directory.display())))?;
        Tls::make(directory, &[arguments.listen.ip()], &["kubernetes.default.svc", "localhost"])
    });
    let options =
        ServerOptions { listen: arguments.listen, tls: tls.transpose()?, ..ServerOptions::default() };
    let server = ApiServer::start(&options)?;
    for number in 0..arguments.nodes {
        let [high, low] = number.to_be_bytes();
        let node = NodeSpec::new(&format!("node-{number}"))
            .pod_cidrs(&[&format!("10.{high}.{low}.0/24")])
            .internal_ips(&[&format!("172.30.{high}.{low}")])
            .sized();
        server.create_node(&node)?;
    }
    if let Some(path) = &arguments.kubeconfig {
        fs::write(path, server.kubeconfig(&Credentials::Token(ADMIN_TOKEN)))
            .map_err(LabError::because(format!("write {}", path.display())))?;
    }
    if arguments.heartbeat > 0 {
        server.heartbeats(Some(Duration::from_secs(arguments.heartbeat)));
    }
    let mut tokens = read_tokens(arguments)?;
    for token in &tokens {
        server.admit(token, Account::agent());
    }
    let mut out = std::io::stdout();
    writeln!(out, "ready {}", server.url())
        .and_then(|()| out.flush())
        .map_err(LabError::because("say that it is ready"))?;
    loop {
        pause();
        let now = read_tokens(arguments)?;
        for gone in tokens.iter().filter(|token| !now.contains(token)) {
            server.revoke(gone);
        }
        for new in now.iter().filter(|token| !tokens.contains(token)) {
            server.admit(new, Account::agent());
        }
        tokens = now;
    }
}

fn read_tokens(arguments: &Arguments) -> Result<Vec<String>> {
    let Some(path) = &arguments.tokens else { return Ok(Vec::new()) };
    let text = fs::read_to_string(path).map_err(LabError::because(format!("read {}", path.display())))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[expect(clippy::disallowed_methods, reason = "looks at a small file once a second; nothing waits for it")]
fn pause() {
    std::thread::sleep(Duration::from_secs(1));
}
