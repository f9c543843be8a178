//! Kubernetes as the cluster store: its Nodes are the nodes, and their podCIDRs the subnets.
//!
//! ```text
//! API server ─▶ Follower ─▶ Nodes ─▶ what the agent hears
//!     ▲                        └ this node's own Node ─▶ Writer ─▶ annotations, condition, events
//!     └────────────────────────────────────────────────────┘
//! ```
//! Kubernetes owns who is a node and which subnets it has; podwire adds to a Node what others need to reach it, in an annotation
//! that the node's own agent writes. Nothing is written to any other Node. What is read of Nodes, and what is written, is
//! decided in [`record`], [`flannel`], [`condition`] and [`nodes`], which are PURE.

mod client;
pub mod condition;
mod events;
pub mod flannel;
pub mod nodes;
pub mod object;
pub mod record;
mod watch;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, sleep_until};

use self::client::Access;
use self::condition::Wanted;
use self::events::Happening;
use self::nodes::Nodes;
use self::object::Node;
use self::record::Part;
use self::watch::{Follower, Heard};
use self::writer::Writer;
use super::outbox::Outbox;
use super::{Action, ClusterStore, Command, Health, Membership, StoreContext, StoreEvent};
use crate::config::Kubernetes;

/// A client of the API server with the agent's credentials: those of its pod, or of a kubeconfig. For what is asked once;
/// `limit` is how long an answer may take.
///
/// # Errors
/// There are none, or they cannot be used.
pub async fn connect(kubeconfig: Option<PathBuf>, limit: Duration) -> Result<kube::Client, String> {
    match client::connect(kubeconfig, limit).await {
        Ok(known) => Ok(known.client),
        Err(failure) => Err(failure.to_string()),
    }
}

/// The store's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How long a request may take to be answered, or to go on being answered.
    pub request: Duration,
    /// After how long without an answer the store is lost.
    pub lost_after: Duration,
    /// After how long without a word the API server is asked whether it is there.
    pub quiet: Duration,
    /// After how long without a word a watch is given up: servers send a bookmark each minute.
    pub silent: Duration,
    /// The pause after a first failure; after each further one it doubles.
    pub pause: Duration,
    /// The longest pause after a failure.
    pub longest_pause: Duration,
    /// How much longer for each node of the cluster agents may wait before they list everything again, each a random part of
    /// it.
    pub jitter_per_node: Duration,
    /// How long they wait for that at most.
    pub longest_jitter: Duration,
    /// For how long a watch is not read once all was read that was there: in a large cluster each heartbeat of each Node would
    /// wake the agent by itself, though nothing follows from it.
    pub rest: Duration,
    /// How long the first of several changes waits for the others.
    pub gather: Duration,
    /// The shortest time between two snapshots.
    pub snapshot_pause: Duration,
    /// For how long a node is not ready before others are told so.
    pub not_ready_after: Duration,
    /// The shortest time between two conditions that differ in their text alone.
    pub message_pause: Duration,
    /// The pause after something was written to the Node. Doubles each time when somebody else changes it.
    pub put_back: Duration,
    /// The longest such pause.
    pub longest_put_back: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            lost_after: Duration::from_secs(5),
            quiet: Duration::from_secs(20),
            silent: Duration::from_secs(150),
            pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(15),
            jitter_per_node: Duration::from_millis(2),
            longest_jitter: Duration::from_secs(10),
            rest: Duration::from_millis(100),
            gather: Duration::from_millis(20),
            snapshot_pause: Duration::from_millis(250),
            not_ready_after: Duration::from_secs(15),
            message_pause: Duration::from_secs(60),
            put_back: Duration::from_secs(1),
            longest_put_back: Duration::from_secs(300),
        }
    }
}

impl Timing {
    /// How long to wait after so many failures in a row. Not all agents wait alike: they lost the server at the same moment.
    fn pause_after(&self, failures: u32) -> Duration {
        let longest =
            self.pause.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest_pause);
        longest.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// The store.
pub struct KubernetesStore {
    kubernetes: Kubernetes,
    timing: Timing,
}

impl KubernetesStore {
    /// A store that does nothing before it runs.
    pub fn new(kubernetes: Kubernetes) -> Self {
        Self { kubernetes, timing: Timing::default() }
    }

    /// The same with other times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }
}

impl ClusterStore for KubernetesStore {
    fn describe(&self) -> String {
        Access::describe(self.kubernetes.kubeconfig.as_ref())
    }

    fn run(self: Box<Self>, context: StoreContext) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(run(*self, context))
    }
}

/// So many Nodes at a time are told of one by one that are left out.
const MOST_NOTICES: usize = 20;

/// So many changes wait to be looked at.
const HEARD: usize = 64;

/// So many events wait to be told.
const HAPPENINGS: usize = 32;

/// What the writing part has to say.
#[derive(Debug)]
pub(crate) enum Said {
    /// The Node says now whether this node is ready.
    Readiness {
        /// What it says.
        wanted: Wanted,
    },
    /// Somebody else goes on changing what this node writes.
    Fight {
        /// What.
        what: String,
    },
    /// Something cannot be written.
    Hindered {
        /// Why, and what to do about it.
        why: String,
    },
}

async fn run(store: KubernetesStore, context: StoreContext) {
    let KubernetesStore { kubernetes, timing } = store;
    let StoreContext { identity, remembered, announcement, health, events, commands, .. } = context;
    let access = Rc::new(Access::new(kubernetes.kubeconfig.clone(), timing.request, announcement.clone()));
    let kubernetes = Rc::new(kubernetes);
    let path = format!("/api/v1/nodes/{}", identity.name);

    let (heard, hearing) = mpsc::channel(HEARD);
    let (said, saying) = mpsc::unbounded_channel();
    let (happens, happenings) = mpsc::channel(HAPPENINGS);
    let (own, own_node) = latest::channel(None);
    let follower = Follower::new(Rc::clone(&access), identity.name.clone(), timing.clone(), heard);
    let writer = Writer {
        access: Rc::clone(&access),
        path,
        instance: identity.instance,
        kubernetes: Rc::clone(&kubernetes),
        timing: timing.clone(),
        own: own_node,
        announcement,
        health: health.clone(),
        said: said.clone(),
    };
    let telling = events::tell(access, identity.name.clone(), timing.clone(), happenings, said);
    let remembered = remembered.as_ref();
    let run = Run {
        nodes: Nodes::new(&identity.name, remembered.map(|remembered| &remembered.snapshot)),
        was_member: remembered.is_some(),
        me: identity.name,
        kubernetes,
        timing,
        outbox: Outbox::new(events),
        own,
        happens,
        standing: None,
        notices: BTreeSet::new(),
        problems: BTreeMap::new(),
        troubles: BTreeSet::new(),
        news_since: None,
        shown_at: None,
        failing: None,
        is_lost: false,
    };
    // They are one task: what one of them does, the others see, and all end together.
    tokio::select! {
        () = run.run(hearing, saying, health, commands) => {}
        () = async { tokio::join!(follower.run(), writer.run(), telling); } => {}
    }
}

/// Where this node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Member(Membership),
    Refused(String),
    Fenced(String),
}

/// The store while it runs.
struct Run {
    me: String,
    kubernetes: Rc<Kubernetes>,
    timing: Timing,
    nodes: Nodes,
    /// Whether this node has had a part of the cluster, now or when the agent last ran.
    was_member: bool,
    outbox: Outbox,
    own: latest::Sender<Option<Arc<Node>>>,
    happens: mpsc::Sender<Happening>,
    standing: Option<Standing>,
    /// What was told of the own Node.
    notices: BTreeSet<String>,
    /// What was told of other Nodes.
    problems: BTreeMap<String, String>,
    /// What was told of this node's health.
    troubles: BTreeSet<String>,
    /// Since when there is something that has not been shown.
    news_since: Option<Instant>,
    shown_at: Option<Instant>,
    /// Since when the server does not answer, and why.
    failing: Option<(Instant, String)>,
    is_lost: bool,
}

impl Run {
    async fn run(
        mut self,
        mut hearing: mpsc::Receiver<Heard>,
        mut saying: mpsc::UnboundedReceiver<Said>,
        mut health: latest::Receiver<Health>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut batch = Vec::with_capacity(HEARD);
        loop {
            let next = [self.show(), self.lose()].into_iter().flatten().min();
            tokio::select! {
                goes_on = self.outbox.deliver() => if !goes_on { return },
                count = hearing.recv_many(&mut batch, HEARD) => {
                    if count == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|heard| self.hear(heard));
                    self.settle();
                }
                Some(said) = saying.recv() => self.said(said),
                Ok(()) = health.changed() => self.look_after(&health.borrow_and_update()),
                command = commands.recv() => match command {
                    Some(Command { action, answer }) => {
                        let _ = answer.send(Err(answer_to(&action, &self.me)));
                    }
                    None => return,
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Begin => self.nodes.begin(),
            Heard::Put(node) => self.nodes.put(*node, &self.kubernetes),
            Heard::Deleted(name) => self.nodes.remove(&name),
            Heard::Complete => self.nodes.complete(),
            Heard::Answered => {
                self.failing = None;
                if std::mem::take(&mut self.is_lost) {
                    self.outbox.push(StoreEvent::Found);
                    // The agent takes a store that is found for one that has let this node in.
                    if let Some(refused @ Standing::Refused(_)) = self.standing.clone() {
                        self.outbox.push(told(refused));
                    }
                }
            }
            Heard::Failed(failure) => {
                let since = self.failing.take().map_or_else(Instant::now, |(since, _)| since);
                self.failing = Some((since, failure.to_string()));
            }
        }
    }

    /// Says that the server is lost, when it is; else when that will be.
    fn lose(&mut self) -> Option<Instant> {
        let (since, why) = self.failing.as_ref().filter(|_| !self.is_lost)?;
        let lost_at = *since + self.timing.lost_after;
        if lost_at > Instant::now() {
            return Some(lost_at);
        }
        self.is_lost = true;
        self.outbox.push(StoreEvent::Lost { why: why.clone() });
        None
    }

    /// Does what follows from what has been heard.
    fn settle(&mut self) {
        if !self.nodes.is_complete() || self.nodes.is_listing() {
            return;
        }
        let own = self.nodes.own().cloned();
        self.own.send_if_modified(|known| {
            let is_new = *known != own;
            known.clone_from(&own);
            is_new
        });
        self.stand(own.as_deref());
        self.complain();
        if self.nodes.has_news() {
            self.news_since.get_or_insert_with(Instant::now);
        }
    }

    /// Says where this node stands, if that is new.
    fn stand(&mut self, own: Option<&Node>) {
        let mut notices = BTreeSet::new();
        let standing = match own.map(|own| record::own(own, &self.kubernetes)) {
            Some(Part::Member { membership, notices: found }) => {
                notices.extend(found);
                Standing::Member(membership)
            }
            Some(Part::Unusable(why)) => Standing::Refused(why),
            Some(Part::None(why)) if self.was_member => Standing::Fenced(why),
            Some(Part::None(why)) => Standing::Refused(why),
            None if self.was_member => Standing::Fenced(format!(
                "Kubernetes has no Node {} any more, whose podCIDRs were this node's subnets; the kubelet makes it again when it \
                 starts",
                self.me
            )),
            None => Standing::Refused(format!(
                "Kubernetes has no Node {}: the kubelet makes it when it starts; is node_name the Node's name?",
                self.me
            )),
        };
        for notice in notices.difference(&self.notices) {
            self.outbox.push(StoreEvent::Notice(notice.clone()));
        }
        self.notices = notices;
        if self.standing.as_ref() == Some(&standing) {
            return;
        }
        self.was_member |= matches!(standing, Standing::Member(_));
        let happening = match &standing {
            Standing::Member(_) => None,
            Standing::Refused(why) => Some(("PodwireRefused", why)),
            Standing::Fenced(why) => Some(("PodwireFenced", why)),
        };
        if let Some((reason, why)) = happening {
            self.happen(true, reason, "Join", why.clone());
        }
        self.outbox.push(told(standing.clone()));
        self.standing = Some(standing);
    }

    /// Says which Nodes are left out, as far as that is new.
    fn complain(&mut self) {
        if self.problems == *self.nodes.problems() {
            return;
        }
        let problems = self.nodes.problems().clone();
        let is_new = |(name, why): &(&String, &String)| self.problems.get(*name) != Some(*why);
        let new: Vec<_> = problems.iter().filter(is_new).collect();
        for (name, why) in new.iter().take(MOST_NOTICES) {
            self.outbox.push(StoreEvent::Notice(format!("Node {name} is left out: {why}")));
        }
        let more = new.len().saturating_sub(MOST_NOTICES);
        if more > 0 {
            self.outbox.push(StoreEvent::Notice(format!("{more} more Nodes are left out")));
        }
        self.problems = problems;
    }

    /// Shows what there is, if it is new and the time has come; else when that will be.
    fn show(&mut self) -> Option<Instant> {
        let since = self.news_since.filter(|_| self.nodes.has_news())?;
        let gathered = since + self.timing.gather;
        let due = self.shown_at.map_or(gathered, |shown| gathered.max(shown + self.timing.snapshot_pause));
        let now = Instant::now();
        if due > now {
            return Some(due);
        }
        let snapshot = Arc::new(self.nodes.show(&self.kubernetes));
        self.outbox.push(StoreEvent::Snapshot { snapshot, absent: None, mark: None });
        self.news_since = None;
        self.shown_at = Some(now);
        None
    }

    fn said(&mut self, said: Said) {
        match said {
            Said::Readiness { wanted } => {
                self.happen(wanted.is_unavailable, wanted.reason(), "Connect", wanted.message);
            }
            Said::Fight { what } => {
                let notice = format!(
                    "somebody goes on changing {what} of Node {}, which are this node's own to write: is there another machine \
                     with this node_name, or another pod network on this node? It is put back less and less often",
                    self.me
                );
                self.happen(true, "PodwireOverwritten", "Write", notice.clone());
                self.outbox.push(StoreEvent::Notice(notice));
            }
            Said::Hindered { why } => self.outbox.push(StoreEvent::Notice(why)),
        }
    }

    /// Tells of what is wrong with this node, each thing once for each time that it is.
    fn look_after(&mut self, health: &Health) {
        let troubles: BTreeSet<String> = health.problems.iter().cloned().collect();
        for trouble in troubles.difference(&self.troubles).cloned().collect::<Vec<_>>() {
            self.happen(true, "PodwireProblem", "Connect", trouble);
        }
        self.troubles = troubles;
    }

    fn happen(&self, is_warning: bool, reason: &'static str, action: &'static str, note: String) {
        let uid = self.nodes.own().map(|own| own.metadata.uid.clone()).unwrap_or_default();
        // Where so many wait that one more has no place, the server does not answer.
        let _ = self.happens.try_send(Happening { is_warning, reason, action, note, uid });
    }
}

fn told(standing: Standing) -> StoreEvent {
    match standing {
        Standing::Member(membership) => StoreEvent::Joined(membership),
        Standing::Refused(why) => StoreEvent::Refused { why },
        Standing::Fenced(why) => StoreEvent::Fenced { why },
    }
}

fn answer_to(action: &Action, me: &str) -> String {
    match action {
        Action::RemoveNode { name, .. } => {
            format!(
                "Kubernetes says who is a node here: kubectl drain {name}, then kubectl delete node {name}"
            )
        }
        Action::Leave => {
            format!("Kubernetes says who is a node here: kubectl drain {me}, then kubectl delete node {me}")
        }
        Action::Configure(_) => {
            "with Kubernetes the shared settings stand in each node's podwired.toml (the ConfigMap podwire): \
                                 change it there"
                .to_owned()
        }
    }
}
