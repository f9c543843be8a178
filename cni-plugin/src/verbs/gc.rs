//! GC: what belongs to no valid attachment goes. An absent list says nothing, and nothing is done.

use podwire_ipam::Allocator;

use super::{addresses, node};
use crate::config::{Config, Ipam, ValidAttachments};
use crate::protocol::{CniError, code};
use crate::{Delegate, Environment, Verb, failure};

/// Removes the network's attachments that the runtime does not name as valid.
///
/// # Errors
/// All that could be removed has been; the error names the rest.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = Config::parse(stdin, env)?;
    config.ignored.iter().for_each(|ignored| super::say(ignored));
    let mut failed = Vec::new();
    if let ValidAttachments::Only(valid) = &config.valid_attachments {
        let valid: Vec<_> = valid.iter().map(|a| (a.container.clone(), a.ifname.clone())).collect();
        if let Err(error) = own(&config, &valid, &mut failed) {
            failed.push(error.to_string());
        }
    }
    if let Ipam::Delegated { plugin } = &config.ipam {
        let forwarded = Delegate::find(plugin, &env.path).and_then(|d| d.call(Verb::Gc, env, &config.stdin));
        failed.extend(forwarded.err().map(|error| error.to_string()));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let text = format!("garbage collection of network {:?} is not complete", config.network.name);
    Err(CniError::new(code::GC_INCOMPLETE, text).with_details(failed.join("; ")))
}

fn own(config: &Config, valid: &[(String, String)], failed: &mut Vec<String>) -> Result<(), CniError> {
    let mut allocator = Allocator::connect(&addresses::dirs(config)).map_err(failure::ipam)?;
    addresses::import(config, &mut allocator)?;
    let runtime = node::runtime();
    let report = allocator.gc(&config.network.name, valid, runtime.as_deref()).map_err(failure::ipam)?;
    allocator.notices().iter().for_each(|notice| super::say(notice));
    for owner in &report.removed {
        super::say(&format!("GC removed {owner}"));
    }
    for owner in &report.foreign {
        super::say(&format!("GC left {owner}: its link is there, and another runtime added it"));
    }
    failed.extend(report.failed);
    Ok(())
}
