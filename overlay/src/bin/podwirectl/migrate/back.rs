//! `podwirectl migrate flannel --back`.

use std::fs;
use std::io;

use podwire_ipam::import::{self, Existing};
use podwire_ipam::{Allocator, Deletion, Dirs, Ends, Lease, NodeConfig, Patience, Vantage, file};
use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::{Netlink, route};
use podwire_overlay::adoption::Adoption;
use podwire_overlay::conflist::{self, Removed};
use podwire_overlay::dataplane;
use podwire_overlay::migrate::back::{self, Action, Facts, unknown_to_flannel};
use podwire_overlay::migrate::files::{Conflist, SubnetEnv};
use podwire_overlay::migrate::routes::as_flannel;
use podwire_overlay::migrate::{Plan, Step};
use podwire_overlay::remembered;

use super::{go, look, steps};
use crate::cli;
use crate::output::{Failure, Output, Verdict, note};

pub(super) fn run(dirs: &Dirs, options: &cli::Flannel, output: &Output) -> Result<Verdict, Failure> {
    let facts = facts(dirs)?;
    let plan = back::plan(&facts);
    let notes = plan.notes.clone();
    let carry_out = |step: &Step<Action>| match &facts.adoption {
        Some(adoption) => carry_out(&step.action, adoption, dirs, options),
        None => Ok(String::new()),
    };
    let again = || Ok(Plan { notes: notes.clone(), ..back::plan(&self::facts(dirs)?) });
    go(plan, options.dry_run, output, &carry_out, &again)
}

fn facts(dirs: &Dirs) -> Result<Facts, Failure> {
    let adoption = Adoption::load(&dirs.state).map_err(Failure::new)?;
    let agent_runs = Allocator::agent(dirs).map_err(failed)?.is_some();
    let own = adoption.as_ref().and_then(|adoption| adoption.before.own_conflist.clone());
    let leases = match &adoption {
        Some(adoption) if !agent_runs => crate::ipam::leases(dirs, Some(&adoption.before.own_network))?,
        _ => Vec::new(),
    };
    Ok(Facts {
        state_dir: dirs.state.clone(),
        agent_runs,
        routes: look::routes(&mut Netlink::open()?)?,
        aside: own.as_deref().map(look::aside).transpose()?.unwrap_or_default(),
        has_own_conflist: own.is_some_and(|own| own.exists()),
        leases,
        adoption,
    })
}

fn failed(error: podwire_ipam::Error) -> Failure {
    Failure::new(error.chain())
}

fn carry_out(
    action: &Action,
    adoption: &Adoption,
    dirs: &Dirs,
    options: &cli::Flannel,
) -> Result<String, Failure> {
    match action {
        Action::HandOver(existing) => hand_over(*existing, adoption, dirs, options),
        Action::PutBack(set_aside) => {
            steps::rename(&set_aside.aside, &set_aside.path)?;
            Ok("renamed".to_owned())
        }
        Action::RemoveConflist(path) => match conflist::remove(path) {
            Ok(Removed::Gone) => Ok("removed".to_owned()),
            Ok(Removed::Missing) => Ok("was gone".to_owned()),
            Ok(Removed::Foreign) => Ok("left: it is not the agent's".to_owned()),
            Err(error) => Err(Failure::new(format!("remove {}: {error}", path.display()))),
        },
        Action::Routes => routes(),
        Action::Release => release(adoption),
        Action::Forget => forget(adoption, dirs),
    }
}

fn hand_over(
    existing: Existing,
    adoption: &Adoption,
    dirs: &Dirs,
    options: &cli::Flannel,
) -> Result<String, Failure> {
    let before = &adoption.before;
    let mut allocator = store(dirs)?;
    let contents = allocator.contents(&before.own_network).map_err(failed)?;
    drop(allocator);
    let exported = import::export(&contents, &before.leases, existing).map_err(failed)?;
    if exported.taken > 0 {
        note(&format!(
            "{} addresses of pods are other pods' in {}: delete the pods that have them twice",
            exported.taken,
            before.leases.display()
        ));
    }
    let told = tell_flannel(&contents.leases, adoption, dirs, options)?;
    Ok(format!(
        "{} addresses written, flannel's plugin knows of {told} pods that podwire made",
        exported.leased
    ))
}

/// Writes for each pod of podwire's what flannel's plugin would have written at its ADD.
fn tell_flannel(
    leases: &[Lease],
    adoption: &Adoption,
    dirs: &Dirs,
    options: &cli::Flannel,
) -> Result<usize, Failure> {
    let Some(conflist) = adoption.before.conflists.iter().find_map(|set_aside| {
        let text =
            [&set_aside.aside, &set_aside.path].into_iter().find_map(|path| fs::read_to_string(path).ok());
        Conflist::parse(&set_aside.path, &text?)
    }) else {
        return Ok(0);
    };
    let env = match look::subnet_env(&options.subnet_file)? {
        Some(env) => env,
        None => remembered_env(dirs),
    };
    let told = format!("{}", conflist.told_to_bridge(&env));
    let mut count = 0;
    for lease in unknown_to_flannel(leases) {
        let path = conflist.told.join(&lease.attachment.owner.container);
        file::make_private_directory(&conflist.told)
            .and_then(|()| file::replace(&path, told.as_bytes(), 0o600))
            .map_err(|error| Failure::new(format!("write {}: {error}", path.display())))?;
        count += 1;
    }
    Ok(count)
}

/// Where flannel's own words went with a reboot: what podwire remembers of the cluster.
fn remembered_env(dirs: &Dirs) -> SubnetEnv {
    let Ok(Some((_, recollection))) = remembered::look(&dirs.state) else { return SubnetEnv::default() };
    let remembered = recollection.remembered;
    let ranges = remembered.snapshot.config.ranges.iter().map(|range| range.range);
    SubnetEnv {
        networks: ranges.collect(),
        subnets: remembered.membership.subnets,
        mtu: None,
        masquerades: true,
    }
}

/// Adds before it removes. For IPv6 the two are one route, which changes hands.
fn routes() -> Result<String, Failure> {
    let mut netlink = Netlink::open()?;
    let all = look::routes(&mut netlink)?;
    let theirs = as_flannel(&all);
    let requests: Vec<_> = theirs.iter().map(route::replace).collect();
    if let Some(error) = netlink.apply_all(&requests)?.into_iter().next() {
        return Err(error.into());
    }
    let left = look::routes(&mut netlink)?;
    let ours: Vec<_> = left.iter().filter(|route| route.protocol == route::ROUTE_PROTOCOL).collect();
    let requests: Vec<_> = ours.iter().map(|route| route::remove(route)).collect();
    if let Some(error) = netlink.apply_all(&requests)?.into_iter().find(|error| !error.is_missing()) {
        return Err(error.into());
    }
    Ok(format!("{} routes are flannel's", theirs.len()))
}

fn release(adoption: &Adoption) -> Result<String, Failure> {
    let mut netlink = Netlink::open()?;
    let unmark = LinkChange { alias: Some(String::new()), ..LinkChange::default() };
    for device in &adoption.devices {
        if netlink.link(LinkRef::Name(&device.name))?.is_some() {
            netlink.apply(&link::change(LinkRef::Name(&device.name), &unmark))?;
        }
    }
    // What is not flannel's: devices of podwire's own, and its table of rules.
    let cleaned = dataplane::cleanup(None);
    match cleaned.failures.first() {
        Some(failure) => Err(Failure::new(failure.to_string())),
        None => Ok("given back".to_owned()),
    }
}

/// The store forgets the pods, which end by flannel's plugin from now on; what the kernel has of them stays.
fn forget(adoption: &Adoption, dirs: &Dirs) -> Result<String, Failure> {
    let network = &adoption.before.own_network;
    let mut allocator = store(dirs)?;
    let leases = allocator.leases(Some(network)).map_err(failed)?;
    for lease in &leases {
        if let Deletion::Remove(ended) =
            allocator.delete(&lease.attachment.owner, Ends::Interface).map_err(failed)?
        {
            for lease in &ended {
                allocator.finish_delete(lease).map_err(failed)?;
            }
        }
    }
    NodeConfig::remove(dirs, network).map_err(failed)?;
    Adoption::remove(&dirs.state).map_err(|error: io::Error| {
        Failure::new(format!("remove {}: {error}", Adoption::path(&dirs.state).display()))
    })?;
    Ok(format!("{} pods are flannel's", leases.len()))
}

/// The store of addresses, whose agent has gone.
fn store(dirs: &Dirs) -> Result<Allocator, Failure> {
    Allocator::connect_from(dirs, Patience::default(), Vantage::Command).map_err(failed)
}
