//! The way back to flannel, of a node whose agent runs no more. PURE.
//!
//! Nothing but the file of what was adopted is needed, so it works where neither API server nor configuration is at hand.

use std::path::PathBuf;

use podwire_ipam::import::Existing;
use podwire_ipam::{Lease, Origin};
use podwire_kernel::route::{ROUTE_PROTOCOL, Route};

use super::{Plan, Step};
use crate::adoption::{Adoption, SetAside};

/// Everything that is looked at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Where the agent kept what outlives a reboot.
    pub state_dir: PathBuf,
    /// Whether an agent answers.
    pub agent_runs: bool,
    /// What was adopted.
    pub adoption: Option<Adoption>,
    /// The main table's routes of both families.
    pub routes: Vec<Route>,
    /// The files that wait for the way back.
    pub aside: Vec<PathBuf>,
    /// Whether the agent's configuration is in place.
    pub has_own_conflist: bool,
    /// The leases of podwire's network.
    pub leases: Vec<Lease>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the addresses of pods into host-local's directory, and tell flannel's plugin of pods that podwire made.
    HandOver(Existing),
    /// Rename a configuration of flannel's to what it was.
    PutBack(SetAside),
    /// Remove the agent's configuration.
    RemoveConflist(PathBuf),
    /// Give flannel's routes to podwire's place.
    Routes,
    /// Take podwire's mark from the devices, and its table of rules away.
    Release,
    /// Forget the pods and what was adopted.
    Forget,
}

/// What is to be done on a node.
pub fn plan(facts: &Facts) -> Plan<Action> {
    let mut plan = Plan::default();
    let Some(adoption) = &facts.adoption else {
        plan.notes
            .push("nothing of flannel's has been adopted on this node, or it has been given back".to_owned());
        return plan;
    };
    if facts.agent_runs {
        plan.refused.push(
            "podwired runs and would put everything back: have it leave this node first (label podwire.dev/network=none), or \
             stop it"
                .to_owned(),
        );
        return plan;
    }
    plan.found = found(facts, adoption);
    plan.notes = notes(&facts.leases);
    let mut step = |action: Action, is_done: bool, what: String, why: &str| {
        plan.steps.push(Step { action, what, why: why.to_owned(), is_done });
    };
    let before = &adoption.before;
    let is_aside = |set_aside: &SetAside| facts.aside.contains(&set_aside.aside);
    let is_flannels = before.conflists.iter().any(|set_aside| !is_aside(set_aside));
    let leases = before.leases.display();
    // As soon as flannel's plugin makes pods, host-local's directory is its own again.
    let existing = if is_flannels { Existing::Keep } else { Existing::Replace };
    step(
        Action::HandOver(existing),
        facts.leases.is_empty(),
        format!("write the addresses of {} pods to {leases}", facts.leases.len()),
        "host-local gives none of them again, and flannel's plugin removes these pods as its own",
    );
    for set_aside in &before.conflists {
        step(
            Action::PutBack(set_aside.clone()),
            !is_aside(set_aside),
            format!("rename {} to {}", set_aside.aside.display(), set_aside.path.display()),
            "runtimes make new pods by flannel's configuration again",
        );
    }
    if let Some(path) = &before.own_conflist {
        step(
            Action::RemoveConflist(path.clone()),
            !facts.has_own_conflist,
            format!("remove {}", path.display()),
            "and by no other",
        );
    }
    step(
        Action::HandOver(Existing::Keep),
        facts.leases.is_empty(),
        "write the addresses of pods that began meanwhile".to_owned(),
        "a runtime may have been making one by podwire's configuration",
    );
    let has_own = facts.routes.iter().any(|route| route.protocol == ROUTE_PROTOCOL);
    step(
        Action::Routes,
        !has_own,
        "put flannel's routes in the place of podwire's".to_owned(),
        "flannel takes them for its own and changes them; pods go on to reach each other",
    );
    let devices: Vec<&str> = adoption.devices.iter().map(|device| device.name.as_str()).collect();
    step(
        Action::Release,
        false,
        format!("take podwire's mark from {} and remove table inet podwire-node", devices.join(", ")),
        "they are flannel's again",
    );
    step(
        Action::Forget,
        false,
        format!("forget the pods and {}", Adoption::path(&facts.state_dir).display()),
        "the last step: until then all of it can be done again",
    );
    plan
}

fn found(facts: &Facts, adoption: &Adoption) -> Vec<String> {
    let own = facts.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL).count();
    let mut found: Vec<String> =
        adoption.devices.iter().map(|device| format!("device {}: adopted", device.name)).collect();
    found.extend(adoption.bridge.iter().map(|bridge| format!("bridge {bridge}: adopted")));
    found.push(format!("{own} routes of podwire's to other nodes"));
    let made = facts.leases.iter().filter(|lease| lease.origin != Origin::HostLocal).count();
    found.push(format!("{} pods' interfaces, {made} of them made by podwire", facts.leases.len()));
    found
}

fn notes(leases: &[Lease]) -> Vec<String> {
    let mut notes = vec![
        "podwire's rules for pods that run (tables inet podwire and bridge podwire) stay until the next reboot".to_owned(),
        "when flannel runs here again, take podwire's record from the node: kubectl annotate node NODE podwire.dev/node-"
            .to_owned(),
    ];
    let with_ports = leases.iter().filter(|lease| lease.ports().next().is_some()).count();
    if with_ports > 0 {
        notes.push(format!(
            "{with_ports} pods have host ports by podwire, which nobody takes away when they end: delete these pods, now or \
             soon"
        ));
    }
    notes
}

/// Which of the pods flannel's plugin knows nothing of.
pub fn unknown_to_flannel(leases: &[Lease]) -> impl Iterator<Item = &Lease> {
    leases.iter().filter(|lease| lease.origin != Origin::HostLocal)
}
