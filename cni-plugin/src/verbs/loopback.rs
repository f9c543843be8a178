//! The loopback plugin: containerd calls it for each pod, beside the pod's network and at the same time.

use std::net::IpAddr;

use podwire_kernel::addr::Address;
use podwire_kernel::link::{LOOPBACK, LinkChange, LinkRef, change};
use podwire_kernel::{Netlink, Netns, NetnsError};

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
    let addresses = inside(&open(environment)?, |netlink| {
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
    let netns = open(environment)?;
    let link = inside(&netns, |netlink| netlink.link(LinkRef::Index(LOOPBACK)))?;
    if link.is_some_and(|link| link.flags.up) {
        return Ok(());
    }
    let message = format!("the loopback interface in {} is down", netns.path().display());
    Err(CniError::new(code::CHECK_FAILED, message))
}

fn delete(environment: &Environment) -> Result<(), CniError> {
    if environment.netns.is_none() {
        return Ok(());
    }
    match open(environment) {
        Ok(netns) => inside(&netns, |netlink| set_up(netlink, false)),
        Err(Refused::Netns(error)) if error.is_gone() => Ok(()),
        Err(refused) => Err(refused.into()),
    }
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

/// Why CNI_NETNS is not entered.
enum Refused {
    Netns(NetnsError),
    Host(String),
}

impl From<Refused> for CniError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Netns(error) => Self::from_cause(code::INVALID_NETNS, &error),
            Refused::Host(path) => {
                let message = format!("CNI_NETNS {path:?} is the host's own network namespace");
                Self::new(code::INVALID_NETNS, message)
            }
        }
    }
}

/// Opens CNI_NETNS. The host's own is refused before anything is done: without its loopback interface a host is
/// lost.
fn open(environment: &Environment) -> Result<Netns, Refused> {
    let path = environment.netns.as_deref().unwrap_or_default();
    let netns = Netns::open(path).map_err(Refused::Netns)?;
    let host = Netns::current().map_err(Refused::Netns)?;
    if netns.same_as(&host) && !environment.netns_override {
        return Err(Refused::Host(path.to_owned()));
    }
    Ok(netns)
}

#[cfg(test)]
mod tests;
