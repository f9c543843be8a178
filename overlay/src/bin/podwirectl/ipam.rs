//! `podwirectl ipam`: the addresses of this node's pods.

use podwire_ipam::import::Existing;
use podwire_ipam::{Allocator, Deletion, Dirs, Ends, Lease, Patience, Vantage, import};
use podwire_kernel::{Netlink, clock};
use podwire_overlay::leases;
use podwire_overlay::terminal::harmless;
use serde_json::json;

use crate::cli::Ipam;
use crate::output::{Failure, Output, Verdict, note};

pub(crate) fn run(dirs: &Dirs, command: &Ipam, output: &Output) -> Result<Verdict, Failure> {
    match command {
        Ipam::Show { network } => {
            let leases = leases(dirs, network.as_deref())?;
            if output.json {
                output.value(&leases::json(&leases))?;
            } else {
                output.raw(&leases::table(&leases).text(output.style))?;
            }
            Ok(Verdict::Fine)
        }
        Ipam::Check { network } => check(dirs, network.as_deref(), output),
        Ipam::Gc { network, dry_run } => gc(dirs, network.as_deref(), *dry_run, output),
        Ipam::Export { network, dir, force } => export(dirs, network, dir, *force, output),
    }
}

fn failed(error: podwire_ipam::Error) -> Failure {
    Failure::new(error.chain())
}

/// All leases, sorted by owner; none where there is no store: none is made for being asked.
pub(crate) fn leases(dirs: &Dirs, network: Option<&str>) -> Result<Vec<Lease>, Failure> {
    let Some(mut allocator) = connect(dirs)? else { return Ok(Vec::new()) };
    let mut leases = allocator.leases(network).map_err(failed)?;
    allocator.notices().iter().for_each(|notice| note(notice));
    leases.sort_by(|a, b| a.attachment.owner.cmp(&b.attachment.owner));
    Ok(leases)
}

fn connect(dirs: &Dirs) -> Result<Option<Allocator>, Failure> {
    if let Some(allocator) = Allocator::agent(dirs).map_err(failed)? {
        return Ok(Some(allocator));
    }
    let store = dirs.store();
    // A directory that may not be looked into is not one without a store.
    match store.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => {
            Allocator::connect_from(dirs, Patience::default(), Vantage::Command).map(Some).map_err(failed)
        }
        Err(error) => {
            Err(Failure::new(format!("look for {}: {error}; podwirectl has to run as root", store.display())))
        }
    }
}

fn check(dirs: &Dirs, network: Option<&str>, output: &Output) -> Result<Verdict, Failure> {
    let leases = leases(dirs, network)?;
    let links = Netlink::open()?.links()?;
    let boot = clock::boot_id()?;
    let mut found = leases::check(&leases, &links, &boot);
    if network.is_some() {
        // Interfaces of other networks have leases that were not asked for.
        found.retain(|found| found.kind != leases::DisagreementKind::NoLease);
    }
    if output.json {
        output.value(&found)?;
    } else if found.is_empty() {
        output.raw(&format!("{} leases agree with the node's interfaces\n", leases.len()))?;
    } else {
        for found in &found {
            output.raw(&format!("{}\n  {}\n", harmless(&found.message), harmless(&found.advice)))?;
        }
    }
    Ok(found.is_empty().into())
}

fn gc(dirs: &Dirs, network: Option<&str>, dry_run: bool, output: &Output) -> Result<Verdict, Failure> {
    let Some(mut allocator) = connect(dirs)? else {
        return report(&[], &[], dry_run, output);
    };
    let all = allocator.leases(network).map_err(failed)?;
    let links = Netlink::open()?.links()?;
    let boot = clock::boot_id()?;
    let (mut ended, mut failures) = (Vec::new(), Vec::new());
    for lease in leases::dead(&all, &links, &boot) {
        let owner = lease.attachment.owner.to_string();
        match if dry_run { Ok(()) } else { end(&mut allocator, lease) } {
            Ok(()) => ended.push(owner),
            Err(error) => failures.push(format!("{owner}: {}", error.text)),
        }
    }
    allocator.notices().iter().for_each(|notice| note(notice));
    report(&ended, &failures, dry_run, output)
}

/// As a DEL of the owner would.
fn end(allocator: &mut Allocator, lease: &Lease) -> Result<(), Failure> {
    match allocator.delete(&lease.attachment.owner, Ends::Interface).map_err(failed)? {
        Deletion::Done(_) => Ok(()),
        Deletion::Remove(leases) => {
            for lease in &leases {
                podwire_ipam::remove_traffic(lease).map_err(failed)?;
                podwire_attach::removal::remove(&mut Netlink::open()?, lease.attachment.owner.id())?;
                allocator.finish_delete(lease).map_err(failed)?;
            }
            Ok(())
        }
    }
}

fn report(ended: &[String], failures: &[String], dry_run: bool, output: &Output) -> Result<Verdict, Failure> {
    if output.json {
        output.value(&json!({ "dryRun": dry_run, "ended": ended, "failed": failures }))?;
    } else {
        let verb = if dry_run { "would end" } else { "ended" };
        for owner in ended {
            output.raw(&format!("{verb} the lease of {}\n", harmless(owner)))?;
        }
        for failure in failures {
            output.raw(&format!("failed: {}\n", harmless(failure)))?;
        }
        if ended.is_empty() && failures.is_empty() {
            output.raw("no lease is without its interface\n")?;
        }
    }
    Ok(failures.is_empty().into())
}

fn export(
    dirs: &Dirs,
    network: &str,
    dir: &std::path::Path,
    force: bool,
    output: &Output,
) -> Result<Verdict, Failure> {
    // A name that is one component of a path.
    if network.is_empty() || network == "." || network == ".." || network.contains('/') {
        return Err(Failure::usage(format!("{network:?} is no network's name")));
    }
    let contents = match connect(dirs)? {
        Some(mut allocator) => {
            let contents = allocator.contents(network).map_err(failed)?;
            allocator.notices().iter().for_each(|notice| note(notice));
            contents
        }
        None => import::Contents::default(),
    };
    // Whoever mistyped the name would go back to a host-local that gives live pods' addresses again.
    if contents == import::Contents::default() {
        return Err(Failure::usage(format!(
            "no address of a network {network:?} has ever been given here; `podwirectl ipam show` names the networks"
        )));
    }
    let directory = dir.join(network);
    let existing = if force { Existing::Replace } else { Existing::Refuse };
    let exported = import::export(&contents, &directory, existing).map_err(failed)?;
    if output.json {
        output.value(
            &json!({ "directory": directory, "leased": exported.leased, "unknown": exported.unknown }),
        )?;
        return Ok(Verdict::Fine);
    }
    let mut text = format!(
        "{} addresses of pods written to {}\n",
        exported.leased,
        harmless(&directory.to_string_lossy())
    );
    if exported.unknown > 0 {
        text.push_str(&format!(
            "{} addresses of unknown owners among them, under the container id podwire-unknown-owner: remove those \
             files when no pod has the address\n",
            exported.unknown
        ));
    }
    output.raw(&text)?;
    Ok(Verdict::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_nobody_knows_is_not_exported() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
        for network in ["unknown", "../up", ""] {
            let to = root.path().join("to");
            let error = export(&dirs, network, &to, true, &Output::new(false)).unwrap_err();
            assert!(error.text.contains(&format!("{network:?}")), "{error:?}");
        }
        assert!(!root.path().join("to").exists());
        assert!(!dirs.state.exists(), "asking makes no store");
    }
}
