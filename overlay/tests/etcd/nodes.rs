//! Nodes that meet in etcd: the store of each, and what it has told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_kernel::testing::in_new_netns;
use podwire_overlay::claims::BootTime;
use podwire_overlay::cluster::{ClusterConfig, ClusterRange, Snapshot};
use podwire_overlay::config;
use podwire_overlay::store::etcd::{EtcdStore, Timing};
use podwire_overlay::store::{
    Action, Announcement, ClusterStore, Command, Health, Identity, Membership, Remembered, StoreContext,
    StoreEvent,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::members::Etcd;

/// How long a state may take that comes by itself.
const LIMIT: Duration = Duration::from_secs(40);

/// Runs a test in a network namespace of its own.
pub(crate) fn lab<Test: AsyncFnOnce() + Send + 'static>(test: Test) {
    in_new_netns(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, test());
    });
}

pub(crate) fn config(ranges: &[(&str, u8)]) -> ClusterConfig {
    let range = |(range, subnet_prefix): &(&str, u8)| ClusterRange {
        range: range.parse().expect("a range"),
        subnet_prefix: *subnet_prefix,
    };
    let config: ClusterConfig =
        serde_json::from_str(r#"{"name":"lab","ranges":[]}"#).expect("a configuration");
    ClusterConfig { ranges: ranges.iter().map(range).collect(), ..config }
}

pub(crate) fn ipv4() -> ClusterConfig {
    config(&[("10.244.0.0/16", 24)])
}

pub(crate) fn settings(etcd: &Etcd) -> config::Etcd {
    config::Etcd {
        endpoints: etcd.endpoints(),
        prefix: "/podwire".to_owned(),
        ca: None,
        certificate: None,
        key: None,
        username: None,
        password_file: None,
        initial: Some(ipv4()),
    }
}

/// What a store has told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) membership: Option<Membership>,
    pub(crate) joined: usize,
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    pub(crate) absent: BTreeSet<String>,
    pub(crate) mark: Option<(u64, u64)>,
    pub(crate) refused: Option<String>,
    pub(crate) fenced: Option<String>,
    pub(crate) lost: Option<String>,
    pub(crate) losses: usize,
    pub(crate) found: usize,
    pub(crate) notices: Vec<String>,
}

impl Told {
    fn hear(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Joined(membership) => {
                self.membership = Some(membership);
                self.joined += 1;
                (self.refused, self.fenced) = (None, None);
            }
            StoreEvent::Snapshot { snapshot, absent, mark } => {
                assert!(
                    self.membership.is_some() || self.fenced.is_some(),
                    "a snapshot before this node's part"
                );
                self.snapshot = Some(snapshot);
                self.absent = absent.map(Arc::unwrap_or_clone).expect("etcd knows who is absent");
                self.mark = mark;
            }
            StoreEvent::Lost { why } => {
                assert!(self.lost.is_none(), "lost twice");
                self.lost = Some(why);
                self.losses += 1;
            }
            StoreEvent::Found => {
                assert!(self.lost.take().is_some(), "found what was not lost");
                self.found += 1;
            }
            StoreEvent::Refused { why } => self.refused = Some(why),
            StoreEvent::Fenced { why } => self.fenced = Some(why),
            StoreEvent::Notice(notice) => self.notices.push(notice),
        }
    }

    pub(crate) fn is_member(&self) -> bool {
        self.membership.is_some() && self.refused.is_none() && self.fenced.is_none()
    }

    /// The subnets of a node, as the last snapshot has them.
    pub(crate) fn subnets_of(&self, name: &str) -> Option<&[IpNetwork]> {
        Some(&self.snapshot.as_ref()?.nodes.get(name)?.subnets)
    }

    pub(crate) fn has_notice(&self, text: &str) -> bool {
        self.notices.iter().any(|notice| notice.contains(text))
    }
}

/// A machine, on and off.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) identity: Identity,
    pub(crate) address: String,
    pub(crate) remembered: Option<Remembered>,
    pub(crate) settings: config::Etcd,
    pub(crate) timing: Timing,
    pub(crate) clock: Option<fn() -> BootTime>,
}

impl Machine {
    /// The machine of that number; its name is `n` and the number.
    pub(crate) fn new(etcd: &Etcd, number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            identity: Identity {
                name: format!("n{number}"),
                instance: format!("{number:032x}"),
                boot: "6e1c0a5e-0000-4000-8000-000000000001".to_owned(),
            },
            address: format!("192.168.{high}.{low}"),
            remembered: None,
            settings: settings(etcd),
            // Presence of 3 s: etcd's shortest is one and a half election timeouts.
            timing: Timing { presence: Duration::from_secs(3), ..Timing::default() },
            clock: None,
        }
    }

    pub(crate) fn with_config(mut self, config: ClusterConfig) -> Self {
        self.settings.initial = Some(config);
        self
    }

    /// The same after a reboot.
    pub(crate) fn rebooted(mut self, boot: u8) -> Self {
        self.identity.boot = format!("6e1c0a5e-0000-4000-8000-0000000000{boot:02}");
        self
    }

    /// Starts its agent.
    pub(crate) fn start(&self) -> Node {
        let mut store = EtcdStore::new(self.settings.clone()).with_timing(self.timing.clone());
        if let Some(clock) = self.clock {
            store = store.with_clock(clock);
        }
        let said = Announcement {
            addresses: vec![self.address.parse().expect("an address")],
            mtu: Some(1500),
            ..Announcement::default()
        };
        let (announce, announcement) = watch::channel(said);
        let (pods, has_pods) = watch::channel(false);
        let (events, heard) = mpsc::channel(16);
        let (commands, received) = mpsc::channel(4);
        let context = StoreContext {
            identity: self.identity.clone(),
            remembered: self.remembered.clone(),
            announcement,
            has_pods,
            health: watch::channel(Health::default()).1,
            events,
            commands: received,
        };
        let task = spawn_local(Box::new(store).run(context));
        let told = Told::default();
        Node { machine: self.clone(), told, announce, pods, heard, commands: Some(commands), task }
    }

    /// Starts the agents of another machine and of this one.
    pub(crate) async fn join_after(&self, first: &Self) -> (Node, Node) {
        (first.join().await, self.join().await)
    }

    /// Starts its agent and waits until it has joined and seen who there is.
    pub(crate) async fn join(&self) -> Node {
        let mut node = self.start();
        node.until("join", |told| told.is_member() && told.snapshot.is_some()).await;
        node
    }
}

/// A machine whose agent runs.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) told: Told,
    pub(crate) announce: watch::Sender<Announcement>,
    pub(crate) pods: watch::Sender<bool>,
    heard: mpsc::Receiver<StoreEvent>,
    commands: Option<mpsc::Sender<Command>>,
    task: JoinHandle<()>,
}

impl Node {
    /// Listens until what it was told is so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl FnMut(&Told) -> bool) {
        self.within(LIMIT, what, is_so).await;
    }

    pub(crate) async fn within(&mut self, limit: Duration, what: &str, mut is_so: impl FnMut(&Told) -> bool) {
        let listen = async {
            while !is_so(&self.told) {
                let event = self.heard.recv().await.expect("the store ended");
                self.told.hear(event);
            }
        };
        if tokio::time::timeout(limit, listen).await.is_err() {
            panic!("{}: {what} does not happen: {:#?}", self.machine.identity.name, self.told);
        }
    }

    /// Listens for a while, for what must not happen.
    pub(crate) async fn listen(&mut self, time: Duration) {
        let listen = async {
            while let Some(event) = self.heard.recv().await {
                self.told.hear(event);
            }
        };
        let _ = tokio::time::timeout(time, listen).await;
    }

    pub(crate) fn subnets(&self) -> Vec<IpNetwork> {
        self.told.membership.as_ref().map(|membership| membership.subnets.clone()).unwrap_or_default()
    }

    /// Has a command carried out.
    pub(crate) async fn act(&mut self, action: Action) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().expect("the agent runs");
        commands.send(Command { action, answer }).await.expect("the store runs");
        let mut answered = std::pin::pin!(answered);
        let wait = async {
            loop {
                tokio::select! {
                    answer = &mut answered => return answer.expect("an answer"),
                    event = self.heard.recv() => self.told.hear(event.expect("the store ended")),
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("no answer to a command")
    }

    /// Ends the agent as SIGTERM does. The machine remembers.
    pub(crate) async fn stop(mut self) -> Machine {
        self.commands = None;
        let task = &mut self.task;
        tokio::time::timeout(Duration::from_secs(5), task)
            .await
            .expect("the store does not end")
            .expect("its task");
        while let Ok(event) = self.heard.try_recv() {
            self.told.hear(event);
        }
        self.remember()
    }

    /// Ends the agent as SIGKILL does. The machine remembers.
    pub(crate) fn kill(self) -> Machine {
        self.task.abort();
        self.remember()
    }

    fn remember(mut self) -> Machine {
        let Told { membership, snapshot, mark, .. } = std::mem::take(&mut self.told);
        let remembered = membership.zip(snapshot).map(|(membership, snapshot)| Remembered {
            membership,
            snapshot: Snapshot::clone(&snapshot),
            mark,
        });
        Machine { remembered, ..self.machine.clone() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}
