//! What is on the node: flannel's devices, routes, files and rules, and what the agent says.

use std::fs;
use std::path::{Path, PathBuf};

use podwire_ipam::{Dirs, cached_results, import};
use podwire_kernel::nft::Nft;
use podwire_kernel::route::{Route, RouteFilter};
use podwire_kernel::{Family, Netlink};
use podwire_overlay::adoption::Adoption;
use podwire_overlay::config::{Config, Store};
use podwire_overlay::config_file;
use podwire_overlay::migrate::files::{ASIDE, Conflist, SubnetEnv};
use podwire_overlay::migrate::pods::{self, Home};
use podwire_overlay::migrate::{Chain, Facts, KeptAway};
use podwire_overlay::status::Status;

use super::api;
use crate::agent::Agent;
use crate::cli;
use crate::ipam;
use crate::output::Failure;

/// All of it.
pub(super) fn facts(dirs: &Dirs, options: &cli::Flannel) -> Result<Facts, Failure> {
    let agent: Status = Agent::of(dirs).get("/v1/status")?;
    let config = configuration(options, &agent)?;
    let mut netlink = Netlink::open()?;
    let network = config.as_ref().map(|config| config.network.clone());
    let conflists = match network.as_ref().and_then(|network| network.conflist.as_deref()) {
        Some(own) => conflists(own)?,
        None => Vec::new(),
    };
    let (kept_away, flannel_peers) = match (&config, options.flannel_is_gone) {
        (Some(config), said) => of_store(config, said),
        (None, true) => (KeptAway::Said, None),
        (None, false) => (KeptAway::Unasked, None),
    };
    let (chains, host_ports) = rules()?;
    let mut facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state_dir: dirs.state.clone(),
        links: netlink.links()?,
        addresses: netlink.addresses(None)?,
        routes: routes(&mut netlink)?,
        subnet_env: subnet_env(&options.subnet_file)?,
        conflists,
        chains,
        host_ports,
        has_legacy: ["ip_tables_names", "ip6_tables_names"].iter().any(|names| has_tables(names)),
        pods_to_take_in: 0,
        agent,
        network,
        flannel_peers,
        kept_away,
        adoption: Adoption::load(&dirs.state).map_err(Failure::new)?,
    };
    facts.pods_to_take_in = pods_to_take_in(&facts, dirs)?;
    Ok(facts)
}

/// The agent's configuration; `None` if what is found cannot be it.
fn configuration(options: &cli::Flannel, agent: &Status) -> Result<Option<Config>, Failure> {
    let resolved = config_file::load(options.config.as_deref(), &[])
        .map_err(|mistakes| Failure::usage(mistakes.to_string()))?;
    let is_agents = resolved.config.cluster.is_some() == agent.store.is_some();
    Ok(is_agents.then_some(resolved.config))
}

/// Whether flannel is kept away, and whether its nodes are peers, where nodes meet in Kubernetes.
fn of_store(config: &Config, is_said: bool) -> (KeptAway, Option<bool>) {
    let Some(Store::Kubernetes(kubernetes)) = config.cluster.as_ref().map(|cluster| &cluster.store) else {
        return (if is_said { KeptAway::Said } else { KeptAway::Unasked }, None);
    };
    let kept_away = match is_said {
        true => KeptAway::Said,
        false => api::kept_away(kubernetes.kubeconfig.clone(), &config.node_name),
    };
    (kept_away, Some(kubernetes.flannel_peers))
}

/// The main table's routes of both families.
pub(super) fn routes(netlink: &mut Netlink) -> Result<Vec<Route>, Failure> {
    let mut routes = Vec::new();
    for family in [Family::V4, Family::V6] {
        match netlink.routes(&RouteFilter::main(family)) {
            Err(error) if error.is_without_family() => {}
            found => routes.extend(found?),
        }
    }
    Ok(routes)
}

/// What flannel says of this node; `None` if there is no such file, as after a reboot without flannel.
pub(super) fn subnet_env(path: &Path) -> Result<Option<SubnetEnv>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(SubnetEnv::parse(&text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::new(format!("read {}: {error}", path.display()))),
    }
}

/// flannel's configurations beside the agent's, in the order in which runtimes see them.
fn conflists(own: &Path) -> Result<Vec<Conflist>, Failure> {
    let paths = beside(own)?;
    let is_read = |path: &&PathBuf| {
        path.extension()
            .is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known))
    };
    let parse = |path: &PathBuf| Conflist::parse(path, &fs::read_to_string(path).ok()?);
    Ok(paths.iter().filter(is_read).filter_map(parse).collect())
}

/// The files in the directory of a configuration that wait for the way back.
pub(super) fn aside(own: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = beside(own)?;
    paths.retain(|path| path.to_string_lossy().ends_with(ASIDE));
    Ok(paths)
}

fn beside(own: &Path) -> Result<Vec<PathBuf>, Failure> {
    let directory = own.parent().unwrap_or(Path::new("/"));
    let failed = |error: std::io::Error| Failure::new(format!("read {}: {error}", directory.display()));
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.map_err(failed)? {
                paths.push(entry.map_err(failed)?.path());
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// flannel's tables and chains as far as nftables knows them, and how many chains portmap has for pods' host ports.
fn rules() -> Result<(Vec<Chain>, usize), Failure> {
    let mut nft = Nft::open()?;
    let tables = nft.tables()?.into_iter();
    let mut chains: Vec<Chain> = tables
        .filter(|found| found.object.name.starts_with("flannel-"))
        .map(|found| Chain { family: found.family.to_string(), table: found.table, chain: None })
        .collect();
    let mut host_ports = 0;
    for found in nft.chains(None)? {
        let (family, table, name) = (found.family.to_string(), found.table, found.object.name);
        if name.starts_with("FLANNEL-") {
            chains.push(Chain { family, table, chain: Some(name) });
        } else if name.starts_with("CNI-DN-") {
            host_ports += 1;
        }
    }
    Ok((chains, host_ports))
}

/// Whether legacy iptables has any table of a family. Asking it for one would make it.
fn has_tables(names: &str) -> bool {
    fs::read_to_string(format!("/proc/thread-self/net/{names}")).is_ok_and(|names| !names.trim().is_empty())
}

/// Pods that host-local knows, and podwire's store does not.
fn pods_to_take_in(facts: &Facts, dirs: &Dirs) -> Result<usize, Failure> {
    let wanted = facts.wanted();
    // From then on host-local's directory is a picture of that day.
    if (wanted.before.taken_in && facts.conflists.is_empty()) || facts.agent.subnets.is_empty() {
        return Ok(0);
    }
    let found = pods_of_before(facts)?;
    Ok(pods::missing(&found.attachments, &ipam::leases(dirs, Some(&wanted.before.own_network))?))
}

/// The pods of before, as podwire's store is to have them.
pub(super) fn pods_of_before(facts: &Facts) -> Result<import::Imported, Failure> {
    let wanted = facts.wanted();
    let before = &wanted.before;
    let subnets = &facts.agent.subnets;
    let found = import::read(&before.leases, &before.network, &pods::range_sets(subnets))
        .map_err(|error| Failure::new(error.chain()))?;
    let home = Home {
        network: &before.own_network,
        bridge: wanted.bridge.as_deref(),
        subnets,
        ranges: &facts.ranges(),
        masquerade: facts.network.as_ref().is_some_and(|network| network.masquerade),
    };
    Ok(pods::of_podwire(found, &cached_results::read(cached_results::DIRECTORY.as_ref()), &home))
}
