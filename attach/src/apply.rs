//! Plans carried out, and the kernel looked at. No choices are made here.

mod additions;
mod bridge;
mod extend;
mod observe;
mod pod;

use podwire_kernel::link::{self, Link, LinkRef};
use podwire_kernel::{Error, MacAddr, Netlink, Netns};

use crate::plan::{Conflict, Observed, ObservedBridge, Step, Wanted, host_mac, plan};
use crate::rules::RulesError;
use crate::shaping::ShapingError;
use crate::step::step;
use crate::tuning::TuningError;
use crate::{OwnerId, alias};

use additions::{Additions, HostEndAt};
use bridge::NodeWork;
pub use bridge::{hold_bridge, remove_unused_bridge};
pub use extend::{Extended, Extension, Given, extend, extension_drift, observe_given, withdraw};
pub use observe::{can_filter_vlans, node_id, observe_attachment, observe_node};

/// What an attachment came to be: what a CNI result tells beyond the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The bridge's MAC address.
    pub bridge_mac: Option<MacAddr>,
    /// The host end's MAC address.
    pub host_mac: Option<MacAddr>,
    /// The pod's interface's MAC address.
    pub pod_mac: MacAddr,
    /// The pod's interface's MTU in bytes.
    pub mtu: u32,
    /// What an administrator should know, such as foreign rules that drop the pod's packets.
    pub notices: Vec<String>,
}

/// Why an attachment was not made. What had been done was undone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The bridge belongs to somebody else.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The pod has an interface of that name which is not ours.
    #[error("interface {ifname:?} already exists in the container's network namespace {netns}")]
    IfnameTaken {
        /// The interface's name.
        ifname: String,
        /// The netns's path.
        netns: String,
    },
    /// The pod's interface or netns does not take what is to be tuned.
    #[error(transparent)]
    Tuning(#[from] TuningError),
    /// Its traffic cannot be limited.
    #[error(transparent)]
    Shaping(#[from] ShapingError),
    /// The node's packet filter cannot do for it what it asks for.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Others made and removed the bridge again and again meanwhile.
    #[error("bridge {0:?} kept changing while the pod was attached; try again")]
    Unsettled(String),
    /// The attachment failed, and so did taking back what had been done.
    #[error("{error}; and undoing failed: {}", .undo.join("; "))]
    NotUndone {
        /// Why it was not made.
        error: Box<AttachError>,
        /// What stays, and why.
        undo: Vec<String>,
    },
}

/// How often a plan is made: others make and remove the same bridge meanwhile. 24 cold ADDs need two rounds.
const ROUNDS: usize = 8;

/// The two places an attachment lives in.
pub struct Places<'a> {
    /// A socket in the host's netns.
    pub host: &'a mut Netlink,
    /// The pod's netns.
    pub pod: &'a Netns,
    /// A socket in it.
    pub inside: &'a mut Netlink,
    /// Whether an owner's pod still lives: else its host ports are free.
    pub is_alive: &'a dyn Fn(OwnerId) -> bool,
}

/// Makes the attachment: the bridge as far as it is needed, the veth, the pod's interface. `observed` is how the
/// node looked a moment ago. `alone` says whether nobody else is making an attachment on this node right now; it is
/// asked only before something shared (the bridge, forwarding) is taken back.
///
/// # Errors
/// See [`AttachError`]. What was done before the failure has been undone, in reverse, the failed step too.
pub fn attach(
    places: &mut Places<'_>,
    wanted: &Wanted,
    observed: Observed,
    alone: &dyn Fn() -> bool,
) -> Result<Attached, AttachError> {
    let mut looked = Some(observed);
    for _ in 0..ROUNDS {
        let observed = match looked.take() {
            Some(observed) => observed,
            None => observe_node(places.host, &wanted.bridge.name)?,
        };
        let steps = plan(wanted, &observed)?;
        let newest = match steps.iter().any(Step::is_shared) {
            true => newest_link(places.host)?,
            false => 0,
        };
        let bridge = observed.bridge;
        let additions = Additions::new(&wanted.attachment, &wanted.tuning, None);
        let done = Vec::new();
        let mut work = Work { places: &mut *places, wanted, bridge, pod: None, newest, additions, done };
        match work.run(&steps) {
            Ok(()) => return work.attached(),
            Err(Failure { error, raced }) => {
                let undo = work.undo(alone);
                if !undo.is_empty() {
                    return Err(AttachError::NotUndone { error: Box::new(error), undo });
                }
                if !raced {
                    return Err(error);
                }
            }
        }
    }
    Err(AttachError::Unsettled(wanted.bridge.name.clone()))
}

/// A failed step, and whether another process's work on the bridge is the reason.
struct Failure {
    error: AttachError,
    raced: bool,
}

impl<E: Into<AttachError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), raced: false }
    }
}

/// The veth, as it was made.
#[derive(Clone, Copy)]
struct MadePod {
    /// The pod's end's index.
    index: u32,
    /// The host's end's index.
    host_index: u32,
    mtu: u32,
}

impl MadePod {
    fn host_end(self) -> HostEndAt {
        HostEndAt { index: self.host_index, mtu: self.mtu }
    }
}

struct Work<'w, 'p> {
    places: &'w mut Places<'p>,
    wanted: &'w Wanted,
    bridge: Option<ObservedBridge>,
    pod: Option<MadePod>,
    /// The highest index of a link before the first step: whatever is above came later.
    newest: u32,
    additions: Additions<'w>,
    done: Vec<Step>,
}

fn newest_link(host: &mut Netlink) -> Result<u32, Error> {
    Ok(host.links()?.iter().map(|link| link.index).max().unwrap_or(0))
}

impl Work<'_, '_> {
    fn run(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for planned in steps {
            // Before it is done: a step that fails half-way is undone too.
            self.done.push(planned.clone());
            self.step(planned)?;
        }
        Ok(())
    }

    fn attached(&mut self) -> Result<Attached, AttachError> {
        Ok(Attached {
            bridge_mac: self.bridge.as_ref().and_then(|bridge| bridge.mac),
            host_mac: Some(host_mac(&self.wanted.attachment.owner)),
            pod_mac: self.wanted.mac,
            mtu: self.pod.map_or(0, |pod| pod.mtu),
            notices: std::mem::take(&mut self.additions.notices),
        })
    }

    /// Takes back what was done; the failures, as text.
    fn undo(&mut self, alone: &dyn Fn() -> bool) -> Vec<String> {
        let mut failures = Vec::new();
        let mut shared = None;
        for undo in std::mem::take(&mut self.done).iter().rev().filter_map(Step::undo) {
            if undo.is_shared() && !*shared.get_or_insert_with(|| alone() && self.is_unused()) {
                continue;
            }
            step("undo");
            if let Err(Failure { error, .. }) = self.step(&undo) {
                failures.push(format!("{undo}: {error}"));
            }
        }
        failures
    }

    /// Whether no pod has been attached since this attachment began: it would rely on what this one made for all, and
    /// its ADD may have ended already.
    fn is_unused(&mut self) -> bool {
        let bridge = self.bridge.as_ref().map(|bridge| bridge.index);
        let is_pod = |link: &Link| {
            let in_bridge = link.controller.is_some() && link.controller == bridge;
            link.index > self.newest && (in_bridge || link.alias.as_deref().and_then(alias::parse).is_some())
        };
        // What cannot be seen is taken to be there.
        self.places.host.links().is_ok_and(|links| !links.iter().any(is_pod))
    }

    fn step(&mut self, planned: &Step) -> Result<(), Failure> {
        match planned {
            shared if shared.is_shared() => {
                let mut node = NodeWork { host: self.places.host, bridge: &mut self.bridge };
                match node.step(shared) {
                    Ok(true) => {}
                    Ok(false) => drop(self.done.pop()),
                    Err(failure) => {
                        if failure.raced && matches!(shared, Step::CreateBridge(_)) {
                            self.done.pop();
                        }
                        return Err(failure);
                    }
                }
            }
            Step::CreateVeth { name, alias } => self.create_veth(name, alias)?,
            Step::RemoveVeth(name) => {
                if let Some(link) = self.places.host.link(LinkRef::Name(name))? {
                    match self.places.host.apply(&[link::delete(link.index, name)]) {
                        Err(error) if !error.is_missing() => return Err(error.into()),
                        _ => {}
                    }
                }
            }
            Step::JoinVlans(name) => self.join_vlans(name)?,
            Step::ConfigurePod => {
                step("configure-pod");
                self.configure_pod()?;
                step("configured-pod");
            }
            addition => {
                if let Some(pod) = &self.pod {
                    self.additions.host_end = pod.host_end();
                }
                self.additions.step(self.places, addition)?;
            }
        }
        Ok(())
    }
}
