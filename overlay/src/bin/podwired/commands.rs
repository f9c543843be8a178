//! The commands beside `run`: each prints its answer and ends.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use podwire_attach::rules;
use podwire_ipam::{Allocator, NodeConfig};
use podwire_kernel::nft::Nft;
use podwire_overlay::adoption::Adoption;
use podwire_overlay::config::Config;
use podwire_overlay::conflist::{self, Removed};
use podwire_overlay::dataplane;

use crate::cli::Cli;

/// What of the packet filter the plugin and the agent share. There are few of them, and none is missed.
const PACKET_FILTER: &str =
    "tables inet podwire and bridge podwire, and podwire's accept rules in other programs' chains";

/// `podwired cleanup`.
pub(crate) fn cleanup(config: &Config) -> Result<(), String> {
    let dirs = crate::cli::dirs(config);
    if Allocator::agent(&dirs).map_err(|error| error.chain())?.is_some() {
        return Err("the agent runs and would put everything back: stop it first".to_owned());
    }
    if let Some(adoption) = Adoption::load(&config.state_dir)? {
        return Err(format!(
            "this node goes on with devices that were {}'s, and pods with them: give them back first, with `podwirectl \
             migrate {} --back`",
            adoption.from, adoption.from
        ));
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

/// Whoever reads may have gone: that is no failure of ours.
pub(crate) fn print(text: &str) -> Result<(), String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("write the answer: {error}")),
        _ => Ok(()),
    }
}
