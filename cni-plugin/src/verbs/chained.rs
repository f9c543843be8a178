//! podwire behind another plugin of the chain: ports, shaping and checks for an interface that it did not make.

use podwire_attach::{
    Attachment, Extension, Given, Places, Role, extend, extension_drift, observe_given, rules, withdraw,
};
use podwire_ipam::{Allocator, Lease};
use podwire_kernel::nft::Nft;
use podwire_kernel::{Netlink, Netns};

use super::addresses::Reservation;
use super::wanted::NodeFacts;
use super::{addresses, node, traffic};
use crate::config::{Config, check_chained};
use crate::protocol::{CniError, CniResult, code};
use crate::{Environment, failure};

/// Extends the interface of the previous result; the answer is that result.
///
/// # Errors
/// Nothing is left of an extension that failed. docs/errors.md has the codes.
pub(super) fn add(
    env: &Environment,
    config: &Config,
    netns: &Netns,
    previous: &CniResult,
) -> Result<String, CniError> {
    check_chained(config)?;
    check_result(env, previous)?;
    let mut host = Netlink::open().map_err(failure::kernel)?;
    let mut inside = netns.netlink().map_err(failure::kernel)?;
    let given = given(env, &mut host, &mut inside)?;
    let facts = node::facts(config)?;
    let attachment = attachment(env, config, netns, &inside, &given, previous, &facts);
    let (mut reservation, ()) = Reservation::make(env, config, &attachment, &facts, || Ok(()))?;
    let mut result = previous.clone();
    result.retune(&env.ifname, &config.tuning.of_given_interface());
    let extended = result.to_json(config.network.version).and_then(|answer| {
        let attachment = reservation.attachment();
        traffic::check_host_addresses(&mut host, attachment.ports())?;
        reservation.clear_taken_over()?;
        let hidden = traffic::hidden_listeners(attachment.ports());
        let is_alive = |owner| reservation.is_alive(owner);
        let mut places = Places { host: &mut host, pod: netns, inside: &mut inside, is_alive: &is_alive };
        let tuning = config.tuning.of_given_interface();
        let extension = Extension { attachment: &attachment, given: &given, tuning: &tuning };
        let extended = extend(&mut places, &extension).map_err(failure::attach)?;
        hidden.iter().chain(&extended.notices).for_each(|notice| super::say(notice));
        Ok(answer)
    });
    let kept = extended.and_then(|answer| match reservation.keep() {
        Ok(()) => Ok(answer),
        // A DEL or GC came between.
        Err(error) => Err(match take_back(&mut host, &reservation.attachment()) {
            Ok(()) => error,
            Err(left) => error.with_details(left.to_string()),
        }),
    });
    kept.map_err(|error| reservation.take_back(env, config, error))
}

fn take_back(host: &mut Netlink, attachment: &Attachment) -> Result<(), CniError> {
    let owner = attachment.owner.id();
    let mut nft = Nft::open().map_err(failure::kernel)?;
    rules::remove(&mut nft, owner, Some(attachment)).map_err(failure::rules)?;
    withdraw(host, owner, Some(attachment)).map_err(failure::kernel)
}

/// Refuses the result of a chain that made another interface than this call is about. Results of 0.2.0 and earlier list
/// none.
fn check_result(env: &Environment, previous: &CniResult) -> Result<(), CniError> {
    if previous.interfaces.is_empty() || previous.pod_interface(&env.ifname).is_some() {
        return Ok(());
    }
    let text = format!("prevResult lists no interface {} in the container", env.ifname);
    Err(CniError::new(code::NOT_CHAINABLE, text))
}

/// The interface as it is, with its other end on this node.
///
/// # Errors
/// Code 117 when there is none that this node carries packets for.
fn given(env: &Environment, host: &mut Netlink, inside: &mut Netlink) -> Result<Given, CniError> {
    let given = observe_given(host, inside, &env.ifname).map_err(failure::kernel)?;
    given.ok_or_else(|| {
        let text = format!(
            "interface {} of the container has no other end on this node: podwire can follow a plugin that makes a veth \
             pair, such as bridge or ptp",
            env.ifname
        );
        CniError::new(code::NOT_CHAINABLE, text)
    })
}

fn attachment(
    env: &Environment,
    config: &Config,
    netns: &Netns,
    inside: &Netlink,
    given: &Given,
    previous: &CniResult,
    facts: &NodeFacts,
) -> Attachment {
    let mut attachment = Attachment {
        owner: env.owner(&config.network.name).with_role(Role::Chained),
        addresses: Vec::new(),
        mac: config.tuning.mac.or(given.mac),
        // The interface is another plugin's: life is judged by the netns.
        link: None,
        bridge: given.port.as_ref().map(|_| given.device.clone()),
        netns: env.netns.clone().unwrap_or_default(),
        netns_identity: Some(netns.identity_with(inside.netns_cookie())),
        pod: env.args.pod.clone(),
        runtime: node::runtime(),
        given: addresses::pod_addresses(previous.ips_of(&env.ifname)),
        traffic: None,
    };
    let path = traffic::Path { device: given.device.clone(), host_end: given.host_end.clone() };
    let subnets: Vec<_> = attachment.given.iter().map(|given| given.address).collect();
    attachment.traffic = Some(traffic::traffic(config, &attachment, path, &subnets, facts));
    attachment
}

/// The lease of the chained attachment, if this call is about one: the configuration asks for no interface, and an
/// ADD with a previous result was answered.
///
/// # Errors
/// The store's.
pub(super) fn lease(
    env: &Environment,
    config: &Config,
    allocator: &mut Allocator,
) -> Result<Option<Lease>, CniError> {
    if check_chained(config).is_err() {
        return Ok(None);
    }
    let owner = env.owner(&config.network.name).with_role(Role::Chained);
    allocator.find(&owner).map_err(failure::ipam)
}

/// What of the extension is not as ADD left it.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn differences(
    env: &Environment,
    config: &Config,
    lease: &Lease,
) -> Result<Vec<String>, CniError> {
    let netns = node::open_netns(env)?;
    let mut host = Netlink::open().map_err(failure::kernel)?;
    let mut inside = netns.netlink().map_err(failure::kernel)?;
    let given = given(env, &mut host, &mut inside)?;
    let tuning = config.tuning.of_given_interface();
    let extension = Extension { attachment: &lease.attachment, given: &given, tuning: &tuning };
    let mut found = node::rules_drift(&lease.attachment)?;
    let drift = extension_drift(&mut host, &netns, &extension).map_err(failure::kernel)?;
    found.extend(drift.iter().map(ToString::to_string));
    Ok(found)
}
