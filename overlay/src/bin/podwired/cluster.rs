//! The node's part in its cluster: store, overlay thread, memory, and what plugins and runtimes are told.
//!
//! ```text
//! store task ─▶ Member ─▶ overlay thread ─▶ kernel
//!    ▲            │ ◀── reports ──┘
//!    └ announcement, pods?         └▶ node.json, conflist, cluster.json, systemd
//! ```
//! It runs beside the service of addresses and never stops it: whatever fails here is said and tried again, and pods of this
//! node go on to start.

mod end;
mod files;
mod memory;
mod outcome;
mod stores;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::NodeConfig;
use podwire_kernel::clock;
use podwire_overlay::adoption::Adoption;
use podwire_overlay::claims::BootTime;
use podwire_overlay::cluster::Snapshot;
use podwire_overlay::config::Config;
use podwire_overlay::conflist;
use podwire_overlay::dataplane::{Input, Overlay, Report, Settings};
use podwire_overlay::identity;
use podwire_overlay::member::{Condition, Findings, Member, Memorable};
use podwire_overlay::remembered::{Memory, Recollection};
use podwire_overlay::store::{Announcement, Identity, Membership, Remembered, StoreEvent};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::files::{refuse_what_nobody_knows, tell_runtimes};
use self::memory::Memorized;
use self::stores::{begin_store, open};
use crate::node::{Cluster, Node, boot_time};
use crate::notify;
use crate::probes::{Probes, Seen};
use crate::writer::{RangesChange, Task};

/// How long it takes until what could not be begun is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// How often time is looked at, and what has failed is replaced.
const TICK: Duration = Duration::from_secs(1);

/// How often pods and files are looked at, in ticks.
const LOOK_TICKS: u64 = 10;

/// How long the store has for its farewell.
const FAREWELL: Duration = Duration::from_secs(3);

/// Is the node's part in the cluster until told to end, and begins anew whenever that fails.
pub(crate) async fn run(node: Rc<Node>, reload: Arc<Notify>, mut ending: watch::Receiver<bool>) {
    loop {
        let part = part(Rc::clone(&node), Arc::clone(&reload), ending.clone());
        let failure = match spawn_local(part).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            // A panic, which the log has.
            Err(_) => {
                "the part of the agent that looks after the cluster failed; its log says more".to_owned()
            }
        };
        tracing::error!("{failure}; pods of this node are served on; trying again in {} s", AGAIN.as_secs());
        let overlay = {
            let mut cluster = node.cluster.borrow_mut();
            cluster.commands = None;
            cluster.failure = Some(failure);
            cluster.overlay.take()
        };
        stop(overlay).await;
        tokio::select! {
            () = sleep(AGAIN) => {}
            _ = ending.wait_for(|ends| *ends) => return,
        }
    }
}

/// What has to be there before the node can have a part.
async fn part(node: Rc<Node>, reload: Arc<Notify>, mut ending: watch::Receiver<bool>) -> Result<(), String> {
    let config = node.config();
    let boot = clock::boot_id().map_err(|error| error.to_string())?;
    let mut notices = Vec::new();
    let identity = identity::load(&config.state_dir, &config.node_name, boot, &mut notices)
        .map_err(|error| format!("this node has no identity: {error}"))?;
    let (memory, recollection) = Memory::load(&config.state_dir, &identity, &mut notices);
    notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    if recollection.is_none() {
        refuse_what_nobody_knows(&node.dirs, &config.network.name);
    }
    let mut part = Part::begin(node, identity, memory, recollection, reload)?;
    // The overlay's first pass keeps the gateways of pods that have addresses of earlier subnets.
    part.node.look_at_pods().await;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks: u64 = 0;
    loop {
        part.make_way().await;
        part.settle();
        tokio::select! {
            event = part.events.recv(), if part.has_store => match event {
                Some(event) => part.hear(event).await,
                None => part.store_ended().await,
            },
            report = part.reports.recv(), if part.has_overlay => match report {
                Some(report) => part.passed(report),
                None => part.overlay_ended().await,
            },
            _ = tick.tick() => {
                part.tick(ticks).await;
                ticks += 1;
            }
            () = part.node.reloaded.notified() => part.reloaded().await,
            _ = ending.wait_for(|ends| *ends) => break,
        }
    }
    part.end().await;
    Ok(())
}

/// See the module.
struct Part {
    node: Rc<Node>,
    config: Config,
    identity: Identity,
    memory: Memory,
    reload: Arc<Notify>,
    events: mpsc::Receiver<StoreEvent>,
    store: JoinHandle<()>,
    /// Whether the store's task runs; one that has failed is replaced at the next tick.
    has_store: bool,
    reports: mpsc::UnboundedReceiver<Report>,
    /// The same for the overlay's thread.
    has_overlay: bool,
    probes: Probes,
    announcement: watch::Sender<Announcement>,
    /// What the overlay thread was last told: its number, and the former subnets in which there are pods.
    sent: (u64, Vec<IpNetwork>),
    /// What plugins were last told.
    told: Option<NodeConfig>,
    was_ready: bool,
    line: String,
    condition: Condition,
    memorized: Memorized,
}

impl Part {
    fn begin(
        node: Rc<Node>,
        identity: Identity,
        memory: Memory,
        recollection: Option<Recollection>,
        reload: Arc<Notify>,
    ) -> Result<Self, String> {
        // Which devices are this node's must be known before any is touched.
        let (config, adoption) = orders(&node)?;
        let (reporter, reports) = mpsc::unbounded_channel();
        let overlay = Overlay::start(settings(&config, adoption.as_ref()), reporter)
            .map_err(|error| format!("cannot start the overlay's thread: {error}"))?;
        let store = open(&config, &reload)?;
        let description = store.describe();
        let member =
            Member::new(description.clone(), identity.boot.clone(), recollection.as_ref(), boot_time());
        match &recollection {
            Some(Recollection { remembered, .. }) => tracing::info!(
                store = description,
                subnets = listed(&remembered.membership),
                nodes = remembered.snapshot.nodes.len(),
                "starting from what is remembered, until the store answers"
            ),
            None => tracing::info!(store = description, "joining the cluster"),
        }
        {
            let mut cluster = node.cluster.borrow_mut();
            cluster.identity = Some(identity.clone());
            cluster.member = Some(member);
            cluster.overlay = Some(overlay);
            cluster.adoption = adoption;
            cluster.failure = None;
        }
        let (announcement, _) = watch::channel(Announcement::default());
        let remembered = recollection.map(|recollection| recollection.remembered);
        let (events, store) = begin_store(&node, store, &identity, remembered, &announcement);
        let probes = Probes::start(
            config.probes.clone(),
            &identity.name,
            &identity.instance,
            Rc::clone(&node.probes),
            node.telemetry.clone(),
        );
        Ok(Self {
            node,
            config,
            identity,
            memory,
            reload,
            events,
            store,
            has_store: true,
            reports,
            has_overlay: true,
            probes,
            announcement,
            sent: (0, Vec::new()),
            told: None,
            was_ready: false,
            line: String::new(),
            condition: Condition::default(),
            memorized: Memorized::default(),
        })
    }

    /// Takes ports from the probes that the tunnel is about to need, and from then on while it has them.
    async fn make_way(&mut self) {
        let ports = {
            let cluster = self.node.cluster.borrow();
            let snapshot = cluster.member.as_ref().and_then(Member::snapshot);
            let wanted = snapshot.iter().flat_map(|snapshot| snapshot.config.ports());
            let held = cluster.report.iter().flat_map(|report| &report.desired);
            wanted.chain(held.flat_map(|desired| desired.ports.iter().copied())).collect()
        };
        self.probes.leave_alone(ports).await;
    }

    /// Does what follows from all that is known by now.
    fn settle(&mut self) {
        let now = boot_time();
        let node = Rc::clone(&self.node);
        let mut cluster = node.cluster.borrow_mut();
        let Some(member) = &cluster.member else { return };
        if let (Some(knowledge), Some(overlay)) = (member.knowledge(), &cluster.overlay)
            && (knowledge.number, self.node.pods.borrow().former.as_slice())
                != (self.sent.0, self.sent.1.as_slice())
        {
            let former = self.node.pods.borrow().former.clone();
            self.sent = (knowledge.number, former.clone());
            overlay.update(Input {
                number: knowledge.number,
                snapshot: knowledge.snapshot,
                membership: knowledge.membership,
                former,
                live: knowledge.is_live,
            });
        }
        if let Some(told) = member.node(now)
            && self.told.as_ref() != Some(&told)
        {
            self.tell(told);
        }
        let is_ready = member.was_ready() && !member.is_fenced();
        if is_ready && !self.was_ready {
            let subnets = member.membership().map(listed).unwrap_or_default();
            tracing::info!(subnets, "ready: the store's content and the overlay are in place");
        }
        let line = member.line(now);
        if line != self.line {
            notify::status(&line);
            self.line = line;
        }
        self.tell_store(&cluster, member, now);
        let telemetry = &self.node.telemetry;
        telemetry.readiness(member.waiting(now).is_empty(), member.refusal(now).is_some());
        let (memorable, is_live) = (member.memorable(), member.is_live());
        if is_ready && !self.was_ready {
            tell_runtimes(&mut cluster, &self.config, &self.node.dirs);
        }
        self.was_ready = is_ready;
        if let Some(memorable) = memorable {
            self.memorize(memorable, is_live);
        }
    }

    /// Tells the store how this node is.
    fn tell_store(&mut self, cluster: &Cluster, member: &Member, now: BootTime) {
        let report = cluster.report.as_ref();
        let findings = Findings {
            node: &self.identity.name,
            silent: &self.node.silent.borrow(),
            problems: report.map(|report| report.problems.as_slice()).unwrap_or_default(),
            failures: report.map(|report| report.failures.as_slice()).unwrap_or_default(),
            conflist: &cluster.conflist_notices,
            has_pods_outside: self.node.pods.borrow().outside.1 > 0,
        };
        let health = self.condition.health(member, &findings, now);
        self.node.health.send_if_modified(|told| {
            let is_new = *told != health;
            if is_new {
                *told = health;
            }
            is_new
        });
    }

    /// Tells plugins what this node is.
    fn tell(&mut self, told: NodeConfig) {
        let network = &self.config.network.name;
        let before = NodeConfig::read(&self.node.dirs, network).ok().flatten();
        let mut file = match &before {
            // What stands there is still how pods that run were made.
            Some(before) if told.subnets.is_empty() => {
                NodeConfig { refuse: told.refuse.clone(), ..before.clone() }
            }
            _ => told.clone(),
        };
        // Running pods took the ranges that the file had; an ADD that is under way may have read it just now.
        if let Some(before) = before
            && before.cluster_ranges != file.cluster_ranges
        {
            self.node.writer.send(Task::Ranges(RangesChange {
                network: network.clone(),
                before: before.cluster_ranges,
                now: file.cluster_ranges.clone(),
            }));
        }
        match file.write(&self.node.dirs, network) {
            Ok(true) => match &told.refuse {
                Some(why) => tracing::error!("no new pods are taken: {why}"),
                None => {
                    let subnets: Vec<String> = told.subnets.iter().map(ToString::to_string).collect();
                    tracing::info!(
                        subnets = subnets.join(", "),
                        mtu = told.mtu,
                        "plugins are told what this node is"
                    );
                }
            },
            Ok(false) => {}
            // Tried again at the next look.
            Err(error) => {
                tracing::error!(error = error.chain(), "cannot tell plugins what this node is");
                return;
            }
        }
        self.told = Some(told);
    }

    async fn hear(&mut self, event: StoreEvent) {
        let now = boot_time();
        let telemetry = self.node.telemetry.clone();
        let mut has_moved = false;
        {
            let mut cluster = self.node.cluster.borrow_mut();
            let Some(member) = &mut cluster.member else { return };
            match &event {
                StoreEvent::Joined(part) => {
                    has_moved = outcome::tell_of_membership(member.membership(), part)
                }
                StoreEvent::Snapshot { snapshot, .. } => {
                    let known = member.snapshot().filter(|_| member.is_live());
                    outcome::tell_of_nodes(known, snapshot, &self.identity.name);
                }
                StoreEvent::Found => tracing::info!("the cluster's store answers again"),
                StoreEvent::Lost { why } => {
                    tracing::warn!(
                        "the cluster's store does not answer, all stays as it is meanwhile: {why}"
                    );
                    telemetry.store_error();
                }
                StoreEvent::Refused { why } => {
                    tracing::error!("the cluster does not let this node in, and is asked again: {why}");
                }
                StoreEvent::Fenced { why } => {
                    tracing::error!("this node's subnets are its own no more; drain it: {why}");
                }
                StoreEvent::Notice(text) => tracing::warn!("{text}"),
            }
            member.hear(&event, now);
            let is_connected =
                matches!(member.store_status(now).state, podwire_overlay::status::StoreState::Connected);
            telemetry.store_connected(is_connected);
            match event {
                StoreEvent::Notice(text) => {
                    // They are said again when they still hold.
                    if cluster.store_notices.len() >= 64 {
                        cluster.store_notices.clear();
                    }
                    cluster.store_notices.insert(text);
                }
                StoreEvent::Snapshot { .. } => cluster.store_notices.clear(),
                _ => {}
            }
        }
        if has_moved {
            self.node.look_at_pods().await;
            let (few, count) = self.node.pods.borrow().outside.clone();
            if count > 0 {
                tracing::error!(
                    pods = few.join(", "),
                    "{count} interfaces of pods have addresses that other nodes do not reach any more: restart these pods"
                );
            }
        }
    }

    fn passed(&mut self, report: Report) {
        outcome::count(&self.node.telemetry, &report);
        let announcement = report.announcement.clone();
        self.announcement.send_if_modified(|announced| {
            let is_new = *announced != announcement;
            if is_new && !announced.addresses.is_empty() && announced.addresses != announcement.addresses {
                tracing::warn!(
                    before = ?announced.addresses, now = ?announcement.addresses,
                    "this node's own addresses have changed; telling the others"
                );
            }
            if is_new && announced.mtu.is_some() && announced.mtu != announcement.mtu {
                tracing::warn!(
                    before = announced.mtu,
                    now = announcement.mtu,
                    "the MTU of the link to others has changed"
                );
            }
            // A node without any address has nothing to tell others, who would forget the last one.
            let is_new = is_new && !announcement.addresses.is_empty();
            if is_new {
                *announced = announcement;
            }
            is_new
        });
        let mut cluster = self.node.cluster.borrow_mut();
        outcome::note(&mut cluster, &report);
        if let Some(member) = &mut cluster.member {
            member.passed(outcome::pass(&report), boot_time());
        }
        cluster.report = Some(report);
    }

    async fn tick(&mut self, ticks: u64) {
        let now = boot_time();
        let is_fenced = {
            let mut cluster = self.node.cluster.borrow_mut();
            let Some(member) = &mut cluster.member else { return };
            member.tick(now);
            self.node.telemetry.synced(member.synced_ago(now));
            member.is_fenced()
        };
        let seen = self.node.cluster.borrow().report.as_ref().and_then(Seen::of);
        self.probes.tick(seen).await;
        if !self.has_overlay {
            self.start_overlay();
        }
        if !self.has_store {
            self.start_store();
        }
        let is_look = ticks.is_multiple_of(LOOK_TICKS);
        // A fenced node takes other subnets as soon as the last pod is gone.
        if is_look || is_fenced {
            self.node.look_at_pods().await;
        }
        if is_look {
            // Somebody may have removed or changed what was written.
            self.told = None;
            if self.was_ready {
                tell_runtimes(&mut self.node.cluster.borrow_mut(), &self.config, &self.node.dirs);
            }
        }
    }

    /// The configuration has been read again: what can change while the agent runs does.
    async fn reloaded(&mut self) {
        let (newer, adoption) = match orders(&self.node) {
            Ok(orders) => orders,
            Err(error) => {
                tracing::error!("{error}; everything stays as it was");
                return;
            }
        };
        let older = std::mem::replace(&mut self.config, newer);
        let before = std::mem::replace(&mut self.node.cluster.borrow_mut().adoption, adoption.clone());
        if settings(&older, before.as_ref()) != settings(&self.config, adoption.as_ref()) {
            tracing::info!("the overlay's settings have changed: starting its thread anew");
            self.restart_overlay().await;
        } else if let Some(overlay) = &self.node.cluster.borrow().overlay {
            overlay.check();
        }
        if older.network.conflist != self.config.network.conflist
            && let Some(path) = &older.network.conflist
        {
            match conflist::remove(path) {
                Ok(_) => tracing::info!(path = %path.display(), "the conflist is written elsewhere now"),
                Err(error) => tracing::error!(path = %path.display(), %error, "cannot remove the conflist"),
            }
        }
        if self.was_ready {
            tell_runtimes(&mut self.node.cluster.borrow_mut(), &self.config, &self.node.dirs);
        }
        self.probes.set(self.config.probes.clone()).await;
    }

    /// The overlay thread has failed. What is in the kernel stays there.
    async fn overlay_ended(&mut self) {
        tracing::error!("the thread that keeps the overlay has failed; another one takes its place");
        self.stop_overlay().await;
    }

    async fn restart_overlay(&mut self) {
        self.stop_overlay().await;
        self.start_overlay();
    }

    async fn stop_overlay(&mut self) {
        self.has_overlay = false;
        let overlay = self.node.cluster.borrow_mut().overlay.take();
        stop(overlay).await;
    }

    fn start_overlay(&mut self) {
        let (reporter, reports) = mpsc::unbounded_channel();
        let settings = settings(&self.config, self.node.cluster.borrow().adoption.as_ref());
        let overlay = match Overlay::start(settings, reporter) {
            Ok(overlay) => overlay,
            Err(error) => {
                tracing::error!(%error, "cannot start the thread that keeps the overlay");
                return;
            }
        };
        self.reports = reports;
        self.has_overlay = true;
        let mut cluster = self.node.cluster.borrow_mut();
        cluster.overlay = Some(overlay);
        if let Some(member) = &mut cluster.member {
            member.overlay_ended();
        }
    }

    /// The store's task has failed, which it must not. Another goes on from what is known.
    async fn store_ended(&mut self) {
        self.has_store = false;
        tracing::error!(
            "the task that speaks with the cluster's store has failed; another one takes its place"
        );
        let why = "the agent's own part of it failed; its log says more".to_owned();
        self.hear(StoreEvent::Lost { why }).await;
    }

    fn start_store(&mut self) {
        let store = match open(&self.config, &self.reload) {
            Ok(store) => store,
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        let memorable = self.node.cluster.borrow().member.as_ref().and_then(Member::memorable);
        let remembered = memorable.map(|memorable| {
            let Memorable { membership, snapshot, mark, .. } = memorable;
            Remembered { membership, snapshot: Snapshot::clone(&snapshot), mark }
        });
        let begun = begin_store(&self.node, store, &self.identity, remembered, &self.announcement);
        (self.events, self.store) = begun;
        self.has_store = true;
    }
}

/// Waits for the thread's end elsewhere: a pass may take a while.
async fn stop(overlay: Option<Overlay>) {
    if let Some(overlay) = overlay {
        let _ = spawn_blocking(move || overlay.stop()).await;
    }
}

fn listed(membership: &Membership) -> String {
    let subnets: Vec<String> = membership.subnets.iter().map(ToString::to_string).collect();
    subnets.join(", ")
}

/// What the overlay thread is told once.
fn settings(config: &Config, adoption: Option<&Adoption>) -> Settings {
    Settings {
        node: config.node_name.clone(),
        interface: config.overlay.interface.clone(),
        addresses: config.overlay.addresses.clone(),
        bridge: Some(config.network.bridge.clone()),
        naming: adoption.map(Adoption::naming).unwrap_or_default(),
    }
}

/// How the agent is to run, and what of another program's it goes on with: the bridge of the pods among it.
fn orders(node: &Node) -> Result<(Config, Option<Adoption>), String> {
    let mut config = node.config();
    let adoption = Adoption::load(&config.state_dir)?;
    if let Some(bridge) = adoption.as_ref().and_then(|adoption| adoption.bridge.clone()) {
        config.network.bridge = bridge;
    }
    Ok((config, adoption))
}
