//! STATUS: could an ADD be served now? Runtimes ask often, while holding locks: the store is never opened and no
//! lock is waited for here.

use podwire_ipam::Allocator;

use super::{addresses, node};
use crate::config::{Config, Ipam, IpamConfig};
use crate::protocol::{CniError, code};
use crate::{Delegate, Environment, Verb, failure};

/// Says whether ADD can be served.
///
/// # Errors
/// Code 50 says why not, also if the node was given no subnet yet; code 51 that the agent takes no new pods for now, and those
/// that run may be affected by the cause.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = Config::parse(stdin, env)?;
    match &config.ipam {
        Ipam::InProcess(ipam) => addresses_left(&config, ipam).map_err(unavailable),
        Ipam::Delegated { plugin } => Delegate::find(plugin, &env.path)
            .and_then(|delegate| delegate.call(Verb::Status, env, &config.stdin))
            .map_err(unavailable),
        Ipam::None => Ok(()),
    }
}

fn addresses_left(config: &Config, ipam: &IpamConfig) -> Result<(), CniError> {
    let facts = node::facts(config)?;
    let sets = addresses::range_sets(config, ipam, &facts).map_err(|error| {
        let has_subnets = facts.agent.as_ref().is_some_and(|agent| !agent.subnets.is_empty());
        match addresses::refusal(ipam, &facts) {
            Some(_) if has_subnets => CniError { code: code::NOT_AVAILABLE_LIMITED, ..error },
            _ => error,
        }
    })?;
    // Without the agent only an ADD finds out: counting needs the store, and opening it takes 10 ms.
    let usage = Allocator::usage_by_agent(&addresses::dirs(config), &config.network.name, &sets);
    for usage in usage.map_err(failure::ipam)?.unwrap_or_default() {
        if usage.free() == 0 {
            let text = format!("no IP addresses available in range set: {}", usage.ranges);
            return Err(CniError::new(code::NOT_AVAILABLE, text));
        }
    }
    Ok(())
}

fn unavailable(error: CniError) -> CniError {
    match error.code {
        // The agent's, or another IPAM plugin's own word.
        code::NOT_AVAILABLE_LIMITED => error,
        _ => CniError { code: code::NOT_AVAILABLE, ..error },
    }
}
