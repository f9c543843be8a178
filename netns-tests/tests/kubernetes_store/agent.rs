//! The agent's side of a store: it hears everything, and has its say.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use podwire_netns_tests::apiserver::{AGENT_TOKEN, ApiServer, Credentials};
use podwire_netns_tests::{LIMIT, wait_for};
use podwire_overlay::cluster::{
    ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily, Snapshot, Vtep,
};
use podwire_overlay::config;
use podwire_overlay::store::kubernetes::{KubernetesStore, Timing};
use podwire_overlay::store::{
    Action, Announcement, ClusterStore, Command, Health, Identity, Membership, Remembered, StoreContext,
    StoreEvent,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{addresses, quick};

/// How one is started.
pub(crate) struct Options {
    pub(crate) node: String,
    pub(crate) timing: Timing,
    pub(crate) flannel_peers: bool,
    pub(crate) remembered: Option<Remembered>,
}

impl Default for Options {
    fn default() -> Self {
        Self { node: "node-1".to_owned(), timing: quick(), flannel_peers: false, remembered: None }
    }
}

/// A store that runs, on a thread of its own, and what it has said. It ends with this value.
pub(crate) struct Agent {
    heard: Arc<Mutex<Vec<StoreEvent>>>,
    pub(crate) announcement: watch::Sender<Announcement>,
    pub(crate) health: watch::Sender<Health>,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    files: tempfile::TempDir,
}

/// Settings that all nodes share.
pub(crate) fn shared() -> ClusterConfig {
    let range = |range: &str, subnet_prefix| ClusterRange {
        range: range.parse().expect("it is a range"),
        subnet_prefix,
    };
    ClusterConfig {
        name: "lab".to_owned(),
        ranges: vec![range("10.244.0.0/16", 24), range("fd00:10:244::/48", 64)],
        encapsulation: Encapsulation { vni: 1, port: 8472 },
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4, IpFamily::Ipv6],
        reclaim_after_seconds: None,
    }
}

/// What node 1 says of itself once its devices are up.
pub(crate) fn announcement() -> Announcement {
    let encapsulation = Encapsulation { vni: 1, port: 8472 };
    let mac = "02:00:00:00:00:01".parse().expect("it is a MAC address");
    Announcement {
        addresses: addresses(&["172.30.0.1", "fd99::1"]),
        mtu: Some(1500),
        receives: vec![Vtep { encapsulation, mac, mac6: None }],
        sends: Some(encapsulation),
    }
}

pub(crate) fn ready() -> Health {
    Health { is_ready: true, ..Health::default() }
}

pub(crate) fn not_ready(why: &str) -> Health {
    Health { is_ready: false, why: why.to_owned(), problems: Vec::new() }
}

impl Agent {
    /// One of node 1, with a token in a file, as kubelets give it to pods.
    pub(crate) fn start(server: &ApiServer) -> Self {
        Self::start_with(server, Options::default())
    }

    pub(crate) fn start_with(server: &ApiServer, options: Options) -> Self {
        Self::start_at(&server.url(), server, options)
    }

    /// One that takes what is at a URL for the server of that certificate.
    pub(crate) fn start_at(url: &str, server: &ApiServer, options: Options) -> Self {
        let files = tempfile::tempdir().expect("a directory for credentials");
        let token = files.path().join("token");
        std::fs::write(&token, AGENT_TOKEN).expect("the token is written");
        let kubeconfig = files.path().join("kubeconfig");
        let text = server.kubeconfig_at(url, &Credentials::TokenFile(&token));
        std::fs::write(&kubeconfig, text).expect("a kubeconfig is written");
        Self::run(files, kubeconfig, options)
    }

    fn run(files: tempfile::TempDir, kubeconfig: PathBuf, options: Options) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (announcement, announced) = watch::channel(Announcement::default());
        let (health, healthy) = watch::channel(not_ready("it begins"));
        let (commands, commanded) = mpsc::channel(1);
        let hears = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let (events, mut told) = mpsc::channel(16);
            let context = StoreContext {
                identity: Identity {
                    name: options.node,
                    instance: "fedcba9876543210fedcba9876543210".to_owned(),
                    boot: "boot".to_owned(),
                },
                remembered: options.remembered,
                announcement: announced,
                has_pods: watch::channel(false).1,
                health: healthy,
                events,
                commands: commanded,
            };
            let settings = config::Kubernetes {
                kubeconfig: Some(kubeconfig),
                flannel_peers: options.flannel_peers,
                shared: shared(),
            };
            let store = Box::new(KubernetesStore::new(settings).with_timing(options.timing));
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let hear = async {
                while let Some(event) = told.recv().await {
                    hears.lock().expect("no test panics with it").push(event);
                }
            };
            runtime.block_on(async { tokio::join!(store.run(context), hear) });
        });
        Self { heard, announcement, health, commands: Some(commands), thread: Some(thread), files }
    }

    /// Writes another token to its file, as a kubelet does: by a file that takes the other's place.
    pub(crate) fn give_token(&self, token: &str) {
        let new = self.files.path().join("token.new");
        std::fs::write(&new, token).expect("the token is written");
        std::fs::rename(&new, self.token_file()).expect("the token takes its place");
    }

    fn token_file(&self) -> PathBuf {
        Path::new(self.files.path()).join("token")
    }

    /// All that it has heard.
    pub(crate) fn heard(&self) -> Vec<StoreEvent> {
        self.heard.lock().expect("no test panics with it").clone()
    }

    /// How many events it has heard that are like this.
    pub(crate) fn count(&self, is: impl Fn(&StoreEvent) -> bool) -> usize {
        self.heard().iter().filter(|event| is(event)).count()
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.count(|event| matches!(event, StoreEvent::Snapshot { .. }))
    }

    /// The last snapshot.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        let snapshot = |event| match event {
            StoreEvent::Snapshot { snapshot, .. } => Some(snapshot),
            _ => None,
        };
        self.heard().into_iter().rev().find_map(snapshot)
    }

    /// The names of the nodes in the last snapshot.
    pub(crate) fn names(&self) -> Vec<String> {
        self.snapshot().map(|snapshot| snapshot.nodes.keys().cloned().collect()).unwrap_or_default()
    }

    /// Where it stands: `joined`, `refused`, `fenced`, by the last event that says so; and why.
    pub(crate) fn standing(&self) -> (&'static str, String) {
        let standing = |event| match event {
            StoreEvent::Joined(_) => Some(("joined", String::new())),
            StoreEvent::Refused { why } => Some(("refused", why)),
            StoreEvent::Fenced { why } => Some(("fenced", why)),
            _ => None,
        };
        self.heard().into_iter().rev().find_map(standing).unwrap_or_default()
    }

    /// What it last joined with.
    pub(crate) fn membership(&self) -> Option<Membership> {
        let membership = |event| match event {
            StoreEvent::Joined(membership) => Some(membership),
            _ => None,
        };
        self.heard().into_iter().rev().find_map(membership)
    }

    /// Waits until something is so.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        assert!(wait_for(LIMIT, || is(self)), "{what}: it has heard {:#?}", self.heard());
    }

    /// Waits for a snapshot with just these nodes.
    #[track_caller]
    pub(crate) fn wait_for_nodes(&self, names: &[&str]) {
        self.wait(&format!("a snapshot of {names:?}"), |agent| agent.names() == names);
    }

    #[track_caller]
    pub(crate) fn wait_for_standing(&self, standing: &str, why: &str) {
        self.wait(&format!("{standing}: {why}"), |agent| {
            let (is, because) = agent.standing();
            is == standing && because.contains(why)
        });
    }

    /// Waits for a notice with that in it.
    #[track_caller]
    pub(crate) fn wait_for_notice(&self, text: &str) {
        self.wait(&format!("a notice of {text}"), |agent| agent.has_notice(text));
    }

    pub(crate) fn has_notice(&self, text: &str) -> bool {
        self.count(|event| matches!(event, StoreEvent::Notice(notice) if notice.contains(text))) > 0
    }

    /// Whether the store was said to be lost, and not found since.
    pub(crate) fn is_lost(&self) -> bool {
        let lost = |event| match event {
            StoreEvent::Lost { .. } => Some(true),
            StoreEvent::Found => Some(false),
            _ => None,
        };
        self.heard().into_iter().rev().find_map(lost).unwrap_or(false)
    }

    /// Looks on for a while, and says what was heard meanwhile.
    pub(crate) fn hear_for(&self, time: Duration) -> Vec<StoreEvent> {
        let before = self.heard().len();
        wait_for(time, || false);
        self.heard().split_off(before)
    }

    /// Asks for something, as an administrator.
    pub(crate) fn ask(&self, action: Action) -> Result<String, String> {
        let (answer, mut answered) = oneshot::channel();
        let commands = self.commands.as_ref().expect("they end with this value");
        commands.blocking_send(Command { action, answer }).expect("the store runs");
        let mut said = None;
        wait_for(LIMIT, || {
            said = answered.try_recv().ok();
            said.is_some()
        });
        said.expect("the store answers")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.commands = None;
        let ended = self.thread.take().is_some_and(|thread| thread.join().is_ok());
        assert!(ended || std::thread::panicking(), "the store ends without a panic");
    }
}
