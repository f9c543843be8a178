//! The commands beside `run`: each prints its answer and ends.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use podwire_attach::rules;
use podwire_attach::{PortMapping, Role};
use podwire_ipam::{Allocator, Dirs, Lease, LeaseState, NodeConfig, Origin, Patience, Vantage, import};
use podwire_kernel::nft::Nft;
use podwire_overlay::config::Config;
use podwire_overlay::conflist::{self, Removed};
use podwire_overlay::dataplane;
use serde_json::{Value, json};

use crate::cli::{Cli, Export, List};

/// `podwired ipam list`.
pub(crate) fn list(dirs: &Dirs, options: &List) -> Result<(), String> {
    // Without a store there is nothing to list, and none is made for it.
    let mut leases = match connect(dirs)? {
        Some(mut allocator) => {
            let leases = allocator.leases(options.network.as_deref()).map_err(|error| error.chain())?;
            say(&allocator.notices());
            leases
        }
        None => Vec::new(),
    };
    leases.sort_by(|a, b| a.attachment.owner.cmp(&b.attachment.owner));
    let text = if options.json { as_json(&leases) } else { as_table(&leases) };
    print(&text)
}

/// `podwired ipam export`.
pub(crate) fn export(dirs: &Dirs, options: &Export) -> Result<(), String> {
    if !is_plain(&options.network) {
        return Err(format!("{:?} is no network's name", options.network));
    }
    let contents = match connect(dirs)? {
        Some(mut allocator) => {
            let contents = allocator.contents(&options.network).map_err(|error| error.chain())?;
            say(&allocator.notices());
            contents
        }
        None => import::Contents::default(),
    };
    // Whoever mistyped the name would go back to a host-local that gives live pods' addresses again.
    if contents == import::Contents::default() {
        return Err(format!(
            "no address of a network {:?} has ever been given here; `podwired ipam list` names the networks",
            options.network
        ));
    }
    let directory = options.dir.join(&options.network);
    let exported = import::export(&contents, &directory, options.force).map_err(|error| error.chain())?;
    let mut text = format!("{} addresses of pods written to {}\n", exported.leased, directory.display());
    if exported.unknown > 0 {
        text.push_str(&format!(
            "{} addresses of unknown owners among them, under the container id podwire-unknown-owner: remove those \
             files when no pod has the address\n",
            exported.unknown
        ));
    }
    print(&text)
}

/// What of the packet filter the plugin and the agent share. There are few of them, and none is missed.
const PACKET_FILTER: &str =
    "tables inet podwire and bridge podwire, and podwire's accept rules in other programs' chains";

/// `podwired cleanup`.
pub(crate) fn cleanup(config: &Config) -> Result<(), String> {
    let dirs = crate::cli::dirs(config);
    if Allocator::agent(&dirs).map_err(|error| error.chain())?.is_some() {
        return Err("the agent runs and would put everything back: stop it first".to_owned());
    }
    let mut removed = Vec::new();
    let mut failed = Vec::new();
    // In the order in which a node stops taking pods: runtimes, plugins, then what pods use.
    if let Some(path) = &config.network.conflist {
        match conflist::remove(path) {
            Ok(Removed::Gone) => removed.push(path.display().to_string()),
            Ok(Removed::Missing) => {}
            Ok(Removed::Foreign) => {
                failed.push(format!("{} is not this agent's: remove it yourself", path.display()));
            }
            Err(error) => failed.push(format!("remove {}: {error}", path.display())),
        }
    }
    match NodeConfig::remove(&dirs, &config.network.name) {
        Ok(true) => removed.push(dirs.node(&config.network.name).display().to_string()),
        Ok(false) => {}
        Err(error) => failed.push(error.chain()),
    }
    let cleaned = dataplane::cleanup(Some(&config.network.bridge));
    removed.extend(cleaned.removed);
    failed.extend(cleaned.failures.iter().map(ToString::to_string));
    // Says nothing of what was there; the tables are few and of a known name.
    let uninstalled = match Nft::open() {
        Ok(mut nft) => rules::uninstall(&mut nft).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match uninstalled {
        Ok(()) => removed.push(PACKET_FILTER.to_owned()),
        Err(error) => failed.push(format!("remove {PACKET_FILTER}: {error}")),
    }
    let mut text: String = removed.iter().map(|what| format!("removed: {what}\n")).collect();
    text.push_str(&format!("kept: {} (addresses, identity)\n", config.state_dir.display()));
    print(&text)?;
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// `podwired completions`.
pub(crate) fn completions(shell: Shell) -> Result<(), String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podwired", &mut text);
    print(&String::from_utf8_lossy(&text))
}

fn connect(dirs: &Dirs) -> Result<Option<Allocator>, String> {
    if let Some(allocator) = Allocator::agent(dirs).map_err(|error| error.chain())? {
        return Ok(Some(allocator));
    }
    let store = dirs.store();
    // A directory that may not be looked into is not one without a store.
    if !store.try_exists().map_err(|error| format!("look for {}: {error}", store.display()))? {
        return Ok(None);
    }
    Allocator::connect_from(dirs, Patience::default(), Vantage::Command)
        .map(Some)
        .map_err(|error| error.chain())
}

/// A name that is one component of a path.
fn is_plain(network: &str) -> bool {
    !network.is_empty() && network != "." && network != ".." && !network.contains('/')
}

fn as_json(leases: &[Lease]) -> String {
    let leases: Vec<Value> = leases
        .iter()
        .map(|lease| {
            let attachment = &lease.attachment;
            json!({
                "network": attachment.owner.network,
                "container": attachment.owner.container,
                "ifname": attachment.owner.ifname,
                "role": role(attachment.owner.role),
                "addresses": attachment.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(),
                "given": attachment.given.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(),
                "ports": lease.ports().map(|port| port_text(&port)).collect::<Vec<_>>(),
                "state": state(lease),
                "origin": origin(lease),
                "link": attachment.link,
                "bridge": attachment.bridge,
                "netns": attachment.netns,
                "mac": attachment.mac.map(|mac| mac.to_string()),
                "pod": attachment.pod.as_ref().map(|pod| json!({
                    "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
                })),
                "runtime": attachment.runtime,
            })
        })
        .collect();
    format!("{:#}\n", Value::Array(leases))
}

fn as_table(leases: &[Lease]) -> String {
    let header = ["NETWORK", "ADDRESSES", "PORTS", "STATE", "POD", "CONTAINER", "IFNAME"].map(str::to_owned);
    let rows = leases.iter().map(|lease| {
        let attachment = &lease.attachment;
        // Another plugin's in brackets: they are not this store's to give.
        let own = attachment.addresses.iter().map(|a| a.address.to_string());
        let given = attachment.given.iter().map(|a| format!("({})", a.address));
        let addresses: Vec<String> = own.chain(given).collect();
        let ports: Vec<String> = lease.ports().map(|port| port_text(&port)).collect();
        let chained = match attachment.owner.role {
            Role::Main => "",
            Role::Chained => " (chained)",
        };
        let pod = attachment.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        [
            attachment.owner.network.clone(),
            or_dash(addresses.join(",")),
            or_dash(listed(&ports)),
            state(lease).to_owned(),
            or_dash(pod.unwrap_or_default()),
            attachment.owner.container.clone(),
            or_dash(format!("{}{chained}", attachment.owner.ifname)),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `8080/tcp->80`.
fn port_text(port: &PortMapping) -> String {
    format!("{port}->{}", port.container_port)
}

/// The first ones of many, for a line that is read.
fn listed(ports: &[String]) -> String {
    const FEW: usize = 4;
    match ports.get(..FEW) {
        Some(first) if ports.len() > FEW => format!("{},+{}", first.join(","), ports.len() - FEW),
        _ => ports.join(","),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Main => "main",
        Role::Chained => "chained",
    }
}

fn state(lease: &Lease) -> &'static str {
    match lease.state {
        LeaseState::Reserved => "reserved",
        LeaseState::Attached => "attached",
        LeaseState::Deleting => "deleting",
    }
}

fn origin(lease: &Lease) -> &'static str {
    match lease.origin {
        Origin::Add => "add",
        Origin::HostLocal => "host-local",
        Origin::Rebuilt => "rebuilt",
    }
}

/// Whoever reads may have gone: that is no failure of ours.
pub(crate) fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("write the answer: {error}")),
        _ => Ok(()),
    }
}

fn say(notices: &[String]) {
    for notice in notices {
        let _ = writeln!(io::stderr(), "podwired: {notice}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_nobody_knows_is_not_exported() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
        for network in ["unknown", "../up", ""] {
            let options = Export { network: network.to_owned(), dir: root.path().join("to"), force: true };
            let error = export(&dirs, &options).unwrap_err();
            assert!(error.contains(&format!("{network:?}")), "{error}");
        }
        assert!(!root.path().join("to").exists());
        assert!(!dirs.state.exists(), "asking makes no store");
    }
}
