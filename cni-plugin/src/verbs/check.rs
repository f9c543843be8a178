//! CHECK: what ADD made is still there. Each difference is named.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podwire_attach::drift::drift;
use podwire_attach::{Attachment, observe_attachment};
use podwire_ipam::{Allocator, Lease};
use podwire_kernel::{MacAddr, Netlink};

use super::wanted::{Addressing, complete, wanted};
use super::{addresses, chained, node};
use crate::config::{Config, Ipam};
use crate::protocol::{CniError, CniResult, CniVersion, Route, code};
use crate::{Delegate, Environment, Verb, failure};

/// The agent repairs what others change; what it is at work on is not reported.
const REPAIR: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(20);

/// Checks an attachment against its previous result, its configuration and its lease.
///
/// # Errors
/// Code 101 names all differences.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = parse(env, stdin)?;
    let Some(previous) = &config.prev_result else {
        return Err(CniError::new(code::INVALID_NETWORK_CONFIG, "CHECK needs prevResult, the result of ADD"));
    };
    let deadline = Instant::now() + REPAIR;
    loop {
        let differences = differences(env, &config, previous)?;
        if differences.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let text = format!("attachment {} is not as ADD left it", env.owner(&config.network.name));
            return Err(CniError::new(code::CHECK_FAILED, text).with_details(differences.join("; ")));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a repair by another process; kernel state is polled, bounded"
        )]
        std::thread::sleep(PAUSE);
    }
    if let Ipam::Delegated { plugin } = &config.ipam {
        Delegate::find(plugin, &env.path)?.call(Verb::Check, env, &config.stdin)?;
    }
    Ok(())
}

/// The configuration, its previous result without what is not this plugin's: other plugins of the chain may have
/// added interfaces with addresses of their own.
fn parse(env: &Environment, stdin: &[u8]) -> Result<Config, CniError> {
    let mut config = Config::parse(stdin, env)?;
    if let Some(previous) = &mut config.prev_result {
        previous.ips = previous.ips_of(&env.ifname).cloned().collect();
    }
    Ok(config)
}

/// The previous result's routes. Before 1.1.0 a result has no room for their attributes, and without its scope a
/// route on the link would be taken for one by the gateway; so these come from the configuration.
fn routes(config: &Config, previous: &CniResult) -> Vec<Route> {
    let configured = match &config.ipam {
        Ipam::InProcess(ipam) if config.network.version < CniVersion::V1_1_0 => ipam.routes.as_slice(),
        _ => &[],
    };
    let whole = |route: &Route| {
        let same = |of: &&Route| (of.dst, of.gw) == (route.dst, route.gw);
        configured.iter().find(same).unwrap_or(route).clone()
    };
    previous.routes.iter().map(whole).collect()
}

fn differences(env: &Environment, config: &Config, previous: &CniResult) -> Result<Vec<String>, CniError> {
    let lease = match recorded(env, config)? {
        Recorded::Chained(lease) => return chained::differences(env, config, &lease),
        Recorded::Main(lease) => lease,
    };
    let mut found = lease_differences(env, config, lease.as_ref());
    let netns = node::open_netns(env)?;
    let mut host = Netlink::open().map_err(failure::kernel)?;
    let owner = env.owner(&config.network.name);
    // A later plugin of the chain may have changed MAC or MTU: the last result counts.
    let pod = previous.pod_interface(&env.ifname);
    let mac = pod.and_then(|pod| pod.mac.parse::<MacAddr>().ok()).or(config.mac);
    let attachment = Attachment {
        mac,
        link: Some(owner.link_name()),
        addresses: Vec::new(),
        bridge: Some(config.bridge.name.clone()),
        netns: env.netns.clone().unwrap_or_default(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        // What ADD asked for, and the agent puts back.
        traffic: lease.and_then(|lease| lease.attachment.traffic),
        owner,
    };
    let routes = routes(config, previous);
    let addressing = complete(config, Addressing { routes, ..addresses::of_result(previous) });
    let mut wanted = wanted(config, attachment, &addressing, &node::lasting_facts());
    // Not what the agent says now: the interfaces of running pods are left alone when the node's MTU changes.
    wanted.mtu = pod.and_then(|pod| pod.mtu).or(config.bridge.mtu);
    let observed = observe_attachment(&mut host, Some(&netns), &wanted).map_err(failure::kernel)?;
    found.extend(drift(&wanted, &observed).iter().map(ToString::to_string));
    found.extend(node::rules_drift(&wanted.attachment)?);
    Ok(found)
}

/// CHECK of `podwire-ipam`: the lease alone.
///
/// # Errors
/// Code 101 when there is none, or it has other addresses than the previous result.
pub fn lease(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = parse(env, stdin)?;
    let Recorded::Main(lease) = recorded(env, &config)? else { return Ok(()) };
    let differences = lease_differences(env, &config, lease.as_ref());
    if differences.is_empty() {
        return Ok(());
    }
    Err(CniError::new(code::CHECK_FAILED, differences.join("; ")))
}

/// What the store has for this call.
enum Recorded {
    /// The interface's or its addresses' lease, if there is one.
    Main(Option<Lease>),
    /// The lease of what was added to another plugin's interface.
    Chained(Lease),
}

fn recorded(env: &Environment, config: &Config) -> Result<Recorded, CniError> {
    let mut allocator = Allocator::connect(&addresses::dirs(config)).map_err(failure::ipam)?;
    addresses::import(config, &mut allocator)?;
    let recorded = match chained::lease(env, config, &mut allocator)? {
        Some(lease) => Recorded::Chained(lease),
        None => {
            let owner = env.owner(&config.network.name);
            Recorded::Main(allocator.find(&owner).map_err(failure::ipam)?)
        }
    };
    allocator.notices().iter().for_each(|notice| super::say(notice));
    Ok(recorded)
}

/// The reservation is what no look at the kernel shows.
fn lease_differences(env: &Environment, config: &Config, lease: Option<&Lease>) -> Vec<String> {
    let owner = env.owner(&config.network.name);
    let Some(lease) = lease else { return vec![format!("no lease is recorded for {owner}")] };
    if !matches!(config.ipam, Ipam::InProcess(_)) {
        return Vec::new();
    }
    let leased: Vec<IpAddr> = lease.attachment.addresses.iter().map(|a| a.address.ip()).collect();
    let previous = config.prev_result.iter().flat_map(|previous| &previous.ips);
    let missing = previous.map(|ip| ip.address.ip()).filter(|ip| !leased.contains(ip));
    missing.map(|ip| format!("address {ip} is not leased to {owner}")).collect()
}
