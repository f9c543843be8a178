//! The IPAM verbs alone: `podwire-ipam` under another main plugin, which makes the interface itself.

use podwire_attach::Attachment;
use podwire_ipam::{Allocator, Deletion, Ends};
use podwire_kernel::Netns;

use super::addresses::{self, Reservation};
use super::{check, gc, node, status, wanted};
use crate::config::{Config, Ipam};
use crate::protocol::{CniError, CniResult, code};
use crate::{Environment, Verb, failure};

/// Runs one verb; the answer of ADD is the result as JSON.
///
/// # Errors
/// docs/errors.md has the codes.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<Option<String>, CniError> {
    match env.verb {
        Verb::Add => add(env, stdin).map(Some),
        Verb::Del => del(env, stdin).map(|()| None),
        Verb::Check => check::lease(env, stdin).map(|()| None),
        Verb::Gc => gc::run(env, stdin).map(|()| None),
        Verb::Status => status::run(env, stdin).map(|()| None),
        Verb::Version => Ok(Some(crate::protocol::version_answer())),
    }
}

fn parse(env: &Environment, stdin: &[u8]) -> Result<Config, CniError> {
    let config = Config::parse(stdin, env)?;
    match &config.ipam {
        Ipam::InProcess(_) => Ok(config),
        Ipam::None | Ipam::Delegated { .. } => Err(CniError::new(
            code::INVALID_NETWORK_CONFIG,
            "podwire-ipam was called with a configuration whose ipam.type is not \"podwire-ipam\"",
        )),
    }
}

fn add(env: &Environment, stdin: &[u8]) -> Result<String, CniError> {
    let config = parse(env, stdin)?;
    let netns = env.netns.clone().unwrap_or_default();
    let attachment = Attachment {
        owner: env.owner(&config.network.name),
        addresses: Vec::new(),
        mac: config.mac,
        // Another plugin makes the interface; life is judged by the netns.
        link: None,
        bridge: None,
        netns_identity: Netns::open(&netns).ok().and_then(|netns| netns.identity().ok()),
        netns,
        pod: env.args.pod.clone(),
        runtime: node::runtime(),
        given: Vec::new(),
        traffic: None,
    };
    let facts = node::facts(&config)?;
    let (mut reservation, ()) = Reservation::make(env, &config, &attachment, &facts, || Ok(()))?;
    let addressing = reservation.addressing();
    let result = CniResult {
        interfaces: Vec::new(),
        ips: wanted::ips(&addressing.addresses, None),
        routes: addressing.routes,
        dns: addressing.dns,
    };
    let answer =
        result.to_json(config.network.version).and_then(|answer| reservation.keep().map(|()| answer));
    answer.map_err(|error| reservation.take_back(env, &config, error))
}

fn del(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = Config::parse(stdin, env)?;
    config.ignored.iter().for_each(|ignored| super::say(ignored));
    let mut allocator = Allocator::connect(&addresses::dirs(&config)).map_err(failure::ipam)?;
    let owner = env.owner(&config.network.name);
    // As in the main plugin's DEL.
    if let Err(error) = addresses::import(&config, &mut allocator) {
        super::say(&error.to_string());
    }
    allocator.notices().iter().for_each(|notice| super::say(notice));
    match allocator.delete(&owner, Ends::Addresses).map_err(failure::ipam)? {
        Deletion::Remove(leases) => {
            leases.iter().try_for_each(|lease| allocator.finish_delete(lease)).map_err(failure::ipam)
        }
        Deletion::Done(_) => Ok(()),
    }
}
