//! Carrying out the steps of a migration.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use podwire_ipam::{Allocator, Dirs};
use podwire_kernel::{Netlink, route};
use podwire_overlay::adoption::{Adoption, SetAside};
use podwire_overlay::migrate::pods;
use podwire_overlay::migrate::routes::foreign;
use podwire_overlay::migrate::{Action, Facts, indexes};
use podwire_overlay::status::Status;

use super::look;
use crate::agent::Agent;
use crate::cli;
use crate::output::{Failure, note};

/// How often the agent is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What came of it, in a line.
pub(super) fn carry_out(
    action: &Action,
    facts: &Facts,
    dirs: &Dirs,
    options: &cli::Flannel,
) -> Result<String, Failure> {
    match action {
        Action::Adopt(adoption) => {
            adoption.save(&dirs.state).map_err(|error| {
                Failure::new(format!("write {}: {error}", Adoption::path(&dirs.state).display()))
            })?;
            Ok("written".to_owned())
        }
        Action::TakeOver => take_over(facts, dirs, Duration::from_secs(options.wait)),
        Action::TakeIn => take_in(facts, dirs, true),
        Action::SetAside(set_aside) => put_aside(set_aside),
        Action::TakeInLast => {
            let told = take_in(facts, dirs, false)?;
            remember_pods(dirs)?;
            Ok(told)
        }
        Action::RemoveRoutes => remove_routes(facts),
    }
}

fn take_over(facts: &Facts, dirs: &Dirs, limit: Duration) -> Result<String, Failure> {
    let agent = Agent::of(dirs);
    let wanted = facts.wanted();
    let names: Vec<String> =
        wanted.devices.iter().map(|device| device.name.clone()).chain(wanted.bridge).collect();
    agent.reload()?;
    let begun = Instant::now();
    loop {
        let status: Status = agent.get("/v1/status")?;
        if status.ready && status.adopted == names {
            return Ok(format!("ready after {} ms", begun.elapsed().as_millis()));
        }
        if begun.elapsed() >= limit {
            let mut why = status.waiting;
            why.extend(status.problems.into_iter().map(|problem| problem.message));
            why.extend(status.dataplane.errors);
            why.dedup();
            return Err(Failure::new(format!(
                "the agent does not work with {} after {} s: {}",
                names.join(", "),
                limit.as_secs(),
                if why.is_empty() { "its log says more".to_owned() } else { why.join("; ") }
            )));
        }
        #[expect(clippy::disallowed_methods, reason = "the agent has no way to call back; bounded")]
        std::thread::sleep(ASK_EVERY);
    }
}

/// `first`: podwire's addresses begin far from host-local's, which goes on giving some for the moment.
fn take_in(facts: &Facts, dirs: &Dirs, first: bool) -> Result<String, Failure> {
    let mut found = look::pods_of_before(facts)?;
    if !first {
        found.cursors.clear();
    }
    found.notices.iter().for_each(|notice| note(notice));
    let failed = |error: podwire_ipam::Error| Failure::new(error.chain());
    let Some(mut allocator) = Allocator::agent(dirs).map_err(failed)? else {
        return Err(Failure::no_agent("the agent runs no more: start podwired"));
    };
    let network = facts.wanted().before.own_network;
    let notices = allocator.adopt(&network, &found).map_err(failed)?;
    // That a pod is in already is what most of the second time comes to.
    notices.iter().filter(|notice| !notice.contains("has a lease already")).for_each(|notice| note(notice));
    Ok(format!("{} pods' interfaces are in the store", pods::count(&found.attachments)))
}

/// From now on host-local's directory is a picture of this day.
fn remember_pods(dirs: &Dirs) -> Result<(), Failure> {
    let Some(mut adoption) = Adoption::load(&dirs.state).map_err(Failure::new)? else {
        return Err(Failure::new(format!("{} is gone", Adoption::path(&dirs.state).display())));
    };
    adoption.before.taken_in = true;
    adoption
        .save(&dirs.state)
        .map_err(|error| Failure::new(format!("write {}: {error}", Adoption::path(&dirs.state).display())))
}

fn put_aside(SetAside { path, aside }: &SetAside) -> Result<String, Failure> {
    rename(path, aside)?;
    Ok("renamed".to_owned())
}

/// Renames a file within its directory, durably; one that has its new name already has it.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::new(format!("rename {} to {}: {error}", from.display(), to.display()));
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && to.exists() => return Ok(()),
        renamed => renamed.map_err(failed)?,
    }
    let directory = to.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn remove_routes(facts: &Facts) -> Result<String, Failure> {
    let mut netlink = Netlink::open()?;
    let routes = look::routes(&mut netlink)?;
    let foreign = foreign(&routes, &indexes(&facts.links, &facts.wanted()), &facts.ranges());
    let requests: Vec<_> = foreign.obsolete.iter().map(route::remove).collect();
    let failures = netlink.apply_all(&requests)?;
    if let Some(error) = failures.into_iter().find(|error| !error.is_missing()) {
        return Err(error.into());
    }
    Ok(format!("{} routes removed", foreign.obsolete.len()))
}
