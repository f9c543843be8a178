//! One pass: what is desired, what there is, what has to be done, done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use podwire_attach::plan::{Bridge, bridge_mac};
use podwire_attach::{hold_bridge, node_id};
use podwire_kernel::link::{self, LinkChange, LinkRef};
use podwire_kernel::{Error, Netlink};

use super::apply::{self, Applied, Indices};
use super::filter::{Filter, FilterKeeper};
use super::observe::{observe, sysctls};
use super::relevance::{Entries, Ours};
use super::underlay::{Underlay, facts};
use super::{Failure, Input, Settings};
use crate::cluster::DirectRouting;
use crate::cluster::topology::{ConfigError, Problem, ProblemKind, Topology};
use crate::controller::{Cause, Known, Pass};
use crate::desired::{Desired, DeviceId, Local, UnderlayFacts};
use crate::plan::{Deletes, Observed, Operation, Plan, Step, delta, plan};

/// All that the thread knows.
pub(super) struct Dataplane {
    settings: Settings,
    /// What tells this node from others, for the bridge's MAC address.
    node_id: String,
    netlink: Option<Netlink>,
    filter: FilterKeeper,
    pub(super) topology: Option<Topology>,
    /// The input that the topology is made of has not been made a wish of yet.
    is_new: bool,
    /// Why the last input was refused as a whole.
    refused: Option<ConfigError>,
    pub(super) input: Option<Input>,
    pub(super) underlay: Arc<UnderlayFacts>,
    /// What the last pass made the kernel like.
    pub(super) desired: Option<Arc<Desired>>,
    /// Our devices at the last look.
    held: Vec<DeviceId>,
    indices: Indices,
    bridge: Option<u32>,
    entries: Option<Entries>,
    /// What stood in the way at the last look.
    in_the_way: Vec<Problem>,
    /// The devices that cannot be made for it.
    pub(super) barred: Vec<DeviceId>,
    /// By which addresses the last look chose the underlay, where the store had a word in it.
    stated: Vec<IpAddr>,
    /// Peers that lack something, and why.
    pub(super) broken: BTreeMap<String, String>,
    /// What was replaced: to free what belongs to thousands of peers takes its time, for which nobody has to wait.
    replaced: (Vec<Input>, Vec<Arc<Desired>>),
}

/// What a pass did.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) operations: BTreeMap<&'static str, usize>,
    pub(super) failures: Vec<Failure>,
    /// Devices that are not there, or not up.
    pub(super) lacking: BTreeSet<DeviceId>,
    /// The kernel could not be read, or something failed that is not one peer's.
    pub(super) was_too_much: bool,
    /// It was given up before anything was done.
    pub(super) was_given_up: bool,
}

impl Done {
    pub(super) fn count(&self) -> usize {
        self.operations.values().sum()
    }

    /// What explains the rest of what had to be done.
    pub(super) fn found(&self) -> Option<Cause> {
        self.operations.contains_key("link").then_some(Cause::Link)
    }

    fn add(&mut self, kind: &'static str, count: usize) {
        if count > 0 {
            *self.operations.entry(kind).or_default() += count;
        }
    }

    fn fail(&mut self, kind: &'static str, operation: impl Into<String>, error: impl ToString) {
        self.failures.push(Failure {
            kind,
            operation: operation.into(),
            error: error.to_string(),
            peer: None,
        });
    }
}

impl Dataplane {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            node_id: node_id(),
            netlink: None,
            filter: FilterKeeper::default(),
            topology: None,
            is_new: false,
            refused: None,
            input: None,
            underlay: Arc::default(),
            desired: None,
            held: Vec::new(),
            indices: Indices::new(),
            bridge: None,
            entries: None,
            in_the_way: Vec::new(),
            barred: Vec::new(),
            stated: Vec::new(),
            broken: BTreeMap::new(),
            replaced: Default::default(),
        }
    }

    /// Takes what is known now.
    pub(super) fn learn(&mut self, input: Input) {
        let learned = match &mut self.topology {
            Some(topology) => topology.update(&input.membership, &input.snapshot),
            none => Topology::new(&self.settings.node, &input.membership, &input.snapshot).map(|topology| {
                *none = Some(topology);
                true
            }),
        };
        let has_other_pods = self.input.as_ref().is_some_and(|known| known.former != input.former);
        match learned {
            Ok(is_new) => {
                self.is_new |= is_new || has_other_pods;
                self.refused = None;
            }
            // What was goes on.
            Err(error) => self.refused = Some(error),
        }
        self.replaced.0.extend(self.input.replace(input));
    }

    /// Frees what has been replaced.
    pub(super) fn tidy(&mut self) {
        self.replaced = Default::default();
    }

    /// Whether the last input was refused as a whole.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Everything that an administrator should know.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.refused.as_ref().map(|why| {
            Problem::here(
                ProblemKind::Record,
                format!("what the store says of the cluster is refused: {why}"),
            )
        }));
        problems.extend(self.topology.iter().flat_map(Topology::problems));
        problems.extend(self.desired.iter().flat_map(|desired| desired.problems.iter().cloned()));
        problems.extend(self.in_the_way.iter().cloned());
        problems
    }

    /// Looks at an event: why it is a reason to make a pass.
    pub(super) fn with_ours<T>(&mut self, needs_entries: bool, look: impl FnOnce(&Ours<'_>) -> T) -> T {
        if needs_entries
            && self.entries.is_none()
            && let Some(desired) = &self.desired
        {
            self.entries = Some(Entries::new(desired, &self.indices));
        }
        let none = Entries::default();
        look(&Ours {
            settings: &self.settings,
            underlay: &self.underlay,
            desired: self.desired.as_deref(),
            indices: &self.indices,
            bridge: self.bridge,
            port: self.port(),
            stated: &self.stated,
            entries: self.entries.as_ref().unwrap_or(&none),
        })
    }

    fn port(&self) -> Option<NonZeroU32> {
        self.netlink.as_ref().map(Netlink::port)
    }

    /// Makes a pass. One that may be given up is, if there is news before it has done anything.
    pub(super) fn pass(&mut self, pass: &Pass, has_news: &dyn Fn() -> bool) -> Done {
        let mut done = Done::default();
        let result = match (pass.full, &self.desired, &self.topology) {
            (false, Some(_), Some(_)) => self.fast(pass, &mut done),
            (false, ..) => {
                done.was_too_much = true;
                Ok(())
            }
            (true, ..) => self.full(pass, &|| pass.yields && has_news(), &mut done),
        };
        if let Err(error) = result {
            // An answer may still be under way in the old one.
            self.netlink = None;
            done.fail("look", "read and change the node's network", error);
        }
        done
    }

    fn socket(&mut self) -> Result<&mut Netlink, Error> {
        match &mut self.netlink {
            Some(netlink) => Ok(netlink),
            none => Ok(none.insert(Netlink::open()?)),
        }
    }

    fn full(&mut self, pass: &Pass, gives_up: &dyn Fn() -> bool, done: &mut Done) -> Result<(), Error> {
        let naming = self.settings.naming.clone();
        let Some(mut observed) = observe(self.socket()?, &naming, gives_up)? else {
            done.was_given_up = true;
            return Ok(());
        };
        self.look_at_underlay(&observed);
        let Some(desired) = self.wish().filter(|_| pass.known != Known::Nothing) else { return Ok(()) };
        observed.sysctls = sysctls(desired.sysctls.keys().map(String::as_str));
        self.hold_bridge(&desired, &observed, done)?;
        let deletes = deletes(pass.known);
        let plan = plan(&desired, &observed, deletes);
        drop(observed);
        if plan.is_empty() && done.count() == 0 && gives_up() {
            done.was_given_up = true;
            return Ok(());
        }
        self.carry_out(&desired, &plan, true, done)?;
        let filter = self.filter_of(&desired);
        match self.filter.hold(&filter, deletes == Deletes::Allowed) {
            Ok(change) => done.add("rules", change.operations()),
            Err(error) => done.fail("rules", "keep table inet podwire-node", error),
        }
        self.in_the_way = plan.problems;
        self.barred = plan.barred;
        self.settle(desired);
        Ok(())
    }

    fn fast(&mut self, pass: &Pass, done: &mut Done) -> Result<(), Error> {
        let (Some(old), Some(topology)) = (self.desired.clone(), &self.topology) else { return Ok(()) };
        if !self.is_new {
            return Ok(());
        }
        if self.stated != topology.membership().addresses {
            done.was_too_much = true;
            return Ok(());
        }
        let desired = Arc::new(Desired::new(topology, &self.underlay, &self.local()));
        let plan = delta(&old, &desired, deletes(pass.known));
        if plan.needs_look {
            done.was_too_much = true;
            return Ok(());
        }
        self.socket()?;
        // Senders first: a peer that sends before it is reached is let in.
        let senders = self.filter.change(&plan.senders.add, &plan.senders.remove);
        self.carry_out(&desired, &plan, false, done)?;
        match senders {
            Ok(change) => done.add("rules", change.operations()),
            Err(error) if error.is_missing() => done.was_too_much = true,
            Err(error) => done.fail("rules", "change the senders in table inet podwire-node", error),
        }
        let entries = self.entries.take();
        self.settle(desired);
        // What was told to stay may be anything; else the steps are the whole difference.
        self.entries = entries.filter(|_| pass.known == Known::All);
        if let Some(entries) = &mut self.entries {
            entries.follow(&plan.steps, &self.indices);
        }
        Ok(())
    }

    fn look_at_underlay(&mut self, observed: &Observed) {
        let naming = &self.settings.naming;
        let membership = self.topology.as_ref().map(Topology::membership);
        self.stated = membership.map(|membership| membership.addresses.clone()).unwrap_or_default();
        let wanted = Underlay {
            interface: self.settings.interface.clone(),
            addresses: self.settings.addresses.clone(),
            stated: self.stated.clone(),
        };
        // Packets for other nodes do not leave by the tunnels themselves.
        let others: Vec<_> =
            observed.links.iter().filter(|link| naming.of(link).is_none()).cloned().collect();
        let found = facts(&wanted, &others, &observed.addresses, &observed.routes, &self.underlay);
        if *self.underlay != found {
            self.underlay = Arc::new(found);
            self.is_new = true;
        }
        let held = observed.held(naming);
        if self.held != held {
            self.held = held;
            self.is_new = true;
        }
        let indices = observed.links.iter().filter_map(|link| Some((naming.of(link)?, link.index))).collect();
        if self.indices != indices {
            self.indices = indices;
            self.entries = None;
        }
        let bridge = self.settings.bridge.as_deref();
        let bridge =
            observed.links.iter().find(|link| bridge == Some(link.name.as_str()) && link.bridge.is_some());
        self.bridge = bridge.map(|link| link.index);
    }

    /// What is desired now; the same as before where nothing has changed that it depends on.
    fn wish(&self) -> Option<Arc<Desired>> {
        let topology = self.topology.as_ref()?;
        match &self.desired {
            Some(desired) if !self.is_new => Some(Arc::clone(desired)),
            _ => Some(Arc::new(Desired::new(topology, &self.underlay, &self.local()))),
        }
    }

    fn local(&self) -> Local<'_> {
        let Settings { bridge, naming, .. } = &self.settings;
        let former = self.input.as_ref().map(|input| input.former.as_slice()).unwrap_or_default();
        Local { bridge: bridge.as_deref(), held: &self.held, naming, former }
    }

    /// Why no other node can reach this one, as the last look found.
    pub(super) fn barred(&self) -> Option<String> {
        let config = self.topology.as_ref()?.config();
        let is_main = |id: &&DeviceId| id.encapsulation == config.encapsulation;
        self.barred.iter().find(is_main).filter(|_| config.direct_routing != DirectRouting::Always)?;
        let devices = self.in_the_way.iter().filter(|problem| problem.kind == ProblemKind::Device);
        Some(devices.map(Problem::to_string).collect::<Vec<_>>().join("; "))
    }

    fn settle(&mut self, desired: Arc<Desired>) {
        if !self.desired.as_ref().is_some_and(|before| Arc::ptr_eq(before, &desired)) {
            self.replaced.1.extend(self.desired.replace(desired));
            self.entries = None;
        }
        self.is_new = false;
    }

    fn filter_of(&self, desired: &Desired) -> Filter {
        let devices = desired.devices.iter().map(|device| device.id.name().to_owned());
        let inside = devices.chain(self.settings.bridge.clone()).collect();
        Filter { ports: desired.ports.clone(), peers: desired.senders(), inside }
    }

    /// The bridge, if it is not there or down, as an ADD makes it; and its MTU. Addresses are in the plan.
    fn hold_bridge(&mut self, desired: &Desired, observed: &Observed, done: &mut Done) -> Result<(), Error> {
        let Some(bridge) = &desired.bridge else { return Ok(()) };
        let found = observed.links.iter().find(|link| link.name == bridge.name);
        let mtu = desired.pods.mtu;
        // Without an MTU there is no underlay yet; the first pod makes one.
        if mtu.is_none() || bridge.addresses.is_empty() {
            return Ok(());
        }
        if found.is_none_or(|link| link.bridge.is_none() || !link.flags.up) {
            let wanted = Bridge {
                name: bridge.name.clone(),
                mac: bridge_mac(&self.node_id, &bridge.name),
                mtu,
                gateways: bridge.addresses.clone(),
                force_address: false,
                promiscuous: false,
            };
            match hold_bridge(self.socket()?, &wanted) {
                Ok(steps) => done.add("link", steps.len()),
                Err(error) => done.fail("link", format!("keep bridge {}", bridge.name), error),
            }
            let made = self.socket()?.link(LinkRef::Name(&bridge.name))?;
            self.bridge = made.filter(|link| link.bridge.is_some()).map(|link| link.index);
        } else if let Some(link) = found.filter(|link| Some(link.mtu) != mtu) {
            let change = LinkChange { mtu, ..LinkChange::default() };
            done.add("link", 1);
            if let Err(error) = self.socket()?.apply(&link::change(LinkRef::Index(link.index), &change)) {
                done.fail("link", format!("ip link set {} mtu {}", bridge.name, mtu.unwrap_or(0)), error);
            }
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        desired: &Desired,
        plan: &Plan,
        full: bool,
        done: &mut Done,
    ) -> Result<(), Error> {
        for step in &plan.steps {
            *done.operations.entry(kind(&step.operation)).or_default() += 1;
        }
        let had = self.indices.clone();
        let Some(netlink) = &mut self.netlink else { return Ok(()) };
        let result = apply::apply(netlink, &plan.steps, &mut self.indices);
        if self.indices != had {
            self.entries = None;
        }
        let applied = result?;
        self.note(desired, &plan.steps, applied, full, done);
        Ok(())
    }

    fn note(&mut self, desired: &Desired, steps: &[Step], applied: Applied, full: bool, done: &mut Done) {
        let name = |place: u32| {
            let path = desired.paths.get(usize::try_from(place).ok()?)?;
            Some(path.peer.name().to_owned())
        };
        if full {
            self.broken.clear();
        } else {
            // What is done again without a failure is no longer broken.
            for peer in steps.iter().filter_map(|step| name(step.peer?)) {
                self.broken.remove(&peer);
            }
        }
        for failed in applied.failures {
            let peer = failed.peer.and_then(name);
            let error = failed.error.to_string();
            if let Some(peer) = &peer {
                self.broken.entry(peer.clone()).or_insert_with(|| format!("{}: {error}", failed.operation));
            }
            done.failures.push(Failure { kind: failed.kind, operation: failed.operation, error, peer });
        }
        done.lacking = applied.devices;
    }
}

fn deletes(known: Known) -> Deletes {
    match known {
        Known::All => Deletes::Allowed,
        Known::Nothing | Known::Remembered => Deletes::Withheld,
    }
}

/// An operation's kind in metrics.
pub(super) fn kind(operation: &Operation) -> &'static str {
    match operation {
        Operation::DeleteDevice { .. } | Operation::CreateDevice(_) | Operation::ChangeDevice { .. } => {
            "link"
        }
        Operation::SetSysctl { .. } | Operation::EnableForwarding(_) => "sysctl",
        Operation::AddAddress { .. } | Operation::RemoveAddress { .. } => "address",
        Operation::SetNeighbour(_) | Operation::RemoveNeighbour { .. } => "neighbour",
        Operation::SetFdb(_) | Operation::RemoveFdb { .. } => "fdb",
        Operation::AddRoute(_) | Operation::ReplaceRoute(_) | Operation::RemoveRoute(_) => "route",
    }
}
