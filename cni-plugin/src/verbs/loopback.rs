//! The loopback plugin: containerd calls it for each pod, beside the pod's network and at the same time.

use std::net::IpAddr;

use podwire_kernel::addr::Address;
use podwire_kernel::link::{LOOPBACK, LinkChange, LinkRef, change};
use podwire_kernel::{Netlink, Netns};

use super::node::open_netns;
use crate::config::LoopbackConfig;
use crate::protocol::{CniError, CniResult, Environment, Interface, IpConfig, Verb, code};

/// Serves one call of any verb but VERSION; the text, if any, belongs on standard output.
///
/// # Errors
/// Code 8 if CNI_NETNS is no network namespace or the host's own; code 100 if the kernel refuses; code 101 if
/// CHECK finds the interface down; and those of the configuration.
pub fn run(environment: &Environment, stdin: &[u8]) -> Result<Option<String>, CniError> {
    let config = LoopbackConfig::parse(stdin, environment.verb)?;
    match environment.verb {
        Verb::Add => add(environment, config).map(Some),
        Verb::Check => check(environment).map(|()| None),
        Verb::Del => delete(environment).map(|()| None),
        // Nothing is kept between calls, so nothing can be left over, and nothing can be missing.
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

fn add(environment: &Environment, config: LoopbackConfig) -> Result<String, CniError> {
    let addresses = inside(&open_netns(environment)?, |netlink| {
        set_up(netlink, true)?;
        netlink.addresses(Some(LOOPBACK))
    })?;
    let result = match config.prev_result {
        Some(result) => result,
        None => result(environment, &addresses),
    };
    result.to_json(config.network.version)
}

/// The loopback addresses that the interface has: none of a family that is switched off in the pod.
fn result(environment: &Environment, addresses: &[Address]) -> CniResult {
    let interface = Interface {
        name: "lo".to_owned(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: environment.netns.clone().unwrap_or_default(),
        ..Interface::default()
    };
    let first = |of_family: fn(&IpAddr) -> bool| {
        let mut own = addresses.iter().map(|address| address.address);
        let address = own.find(|address| address.ip().is_loopback() && of_family(&address.ip()))?;
        Some(IpConfig { interface: Some(0), address, gateway: None })
    };
    let ips = [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten().collect();
    CniResult { interfaces: vec![interface], ips, ..CniResult::default() }
}

fn check(environment: &Environment) -> Result<(), CniError> {
    let netns = open_netns(environment)?;
    let link = inside(&netns, |netlink| netlink.link(LinkRef::Index(LOOPBACK)))?;
    if link.is_some_and(|link| link.flags.up) {
        return Ok(());
    }
    let message = format!("the loopback interface in {} is down", netns.path().display());
    Err(CniError::new(code::CHECK_FAILED, message))
}

fn delete(environment: &Environment) -> Result<(), CniError> {
    let Some(path) = &environment.netns else { return Ok(()) };
    if Netns::open(path).is_err_and(|error| error.is_gone()) {
        return Ok(());
    }
    // Without its loopback interface a host is lost: its own netns is refused here as for ADD.
    inside(&open_netns(environment)?, |netlink| set_up(netlink, false))
}

fn set_up(netlink: &mut Netlink, up: bool) -> Result<(), podwire_kernel::Error> {
    let wanted = LinkChange { up: Some(up), ..LinkChange::default() };
    netlink.apply(&change(LinkRef::Index(LOOPBACK), &wanted))
}

fn inside<T: Send>(
    netns: &Netns,
    act: impl FnOnce(&mut Netlink) -> Result<T, podwire_kernel::Error> + Send,
) -> Result<T, CniError> {
    let outcome = netns.run(|| act(&mut Netlink::open()?)).and_then(|outcome| outcome);
    outcome.map_err(|error| {
        let context = format!("loopback interface in {}", netns.path().display());
        CniError::from_cause(code::KERNEL, &error).context(&context)
    })
}

#[cfg(test)]
mod tests;
