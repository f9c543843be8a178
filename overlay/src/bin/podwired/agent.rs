//! `podwired run`: from the lock to the socket, and back.
//!
//! Nothing that can fail stands between the lock and the socket but the opening of the store: while the lock is held
//! and no socket is there, pods wait.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use podwire_attach::step::step;
use podwire_ipam::{Dirs, Engine, Lock, Vantage};
use podwire_kernel::nft::NftEvents;
use podwire_overlay::config::Resolved;
use podwire_overlay::http;
use podwire_overlay::telemetry::Telemetry;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::changes;
use crate::cluster;
use crate::control::{Control, serve_public};
use crate::counts::{Counts, Tenants};
use crate::links::Links;
use crate::log;
use crate::node::Node;
use crate::notify;
use crate::reload::reload;
use crate::rules::{Cause, Rules};
use crate::serve::{self, Removing, Service};
use crate::watchdog;
use crate::writer::{Task, Writer};

/// How the agent is told to run, and how to find out again.
pub(crate) struct Setup {
    pub(crate) dirs: Dirs,
    pub(crate) resolved: Resolved,
    /// Reads the configuration once more.
    pub(crate) again: Box<dyn Fn() -> Result<Resolved, String>>,
    pub(crate) level: log::Level,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(setup: Setup) -> Result<(), String> {
    let dirs = setup.dirs.clone();
    let dirs = &dirs;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let ((links, events), changes) = {
        let _inside = runtime.enter();
        let links = Links::open().map_err(|error| format!("cannot watch the node's links: {error}"))?;
        (links, NftEvents::open())
    };
    let socket = Socket::bind(dirs, dirs.socket())?;

    tracing::info!(state = %dirs.state.display(), "waiting to be the one that gives addresses");
    let (lock, wanted) = Lock::wait(dirs).map_err(|error| error.chain())?;
    step("agent-locked");
    let mut engine = Engine::open(dirs, lock, Vantage::Apart).map_err(|error| error.chain())?;
    step("agent-opened");
    for notice in engine.take_notices() {
        tracing::warn!("{notice}");
    }
    let leases = engine.pool().leases().count();
    let (unfinished, to_finish) = mpsc::unbounded_channel();
    let (ended, writer_ended) = oneshot::channel();
    let telemetry = Telemetry::new(env!("CARGO_PKG_VERSION"));
    let (rules, jobs) = Rules::new();
    let no_thread = |error| format!("cannot start a thread: {error}");
    let (writer, thread) = Writer::start(engine, rules.clone(), unfinished, ended).map_err(no_thread)?;
    let (ended, keeper_ended) = oneshot::channel();
    let keeper = jobs.start(writer.clone(), telemetry.clone(), ended).map_err(no_thread)?;
    let socket = socket.publish()?;
    drop(wanted);
    step("agent-serves");
    tracing::info!(socket = %dirs.socket().display(), leases, "serving");

    let served = LocalSet::new().block_on(&runtime, async {
        let tenants = Rc::new(Tenants::default());
        let service = Service {
            writer: writer.clone(),
            links: links.clone(),
            rules: rules.clone(),
            removing: Removing::default(),
            counts: Counts::new(telemetry.clone(), Rc::clone(&tenants)),
        };
        spawn_local(links.listen(events));
        match changes {
            Ok(changes) => drop(spawn_local(changes::mind(rules.clone(), changes))),
            // Pods that ask for no rules need no packet filter.
            Err(error) => tracing::warn!(%error, "cannot watch the packet filter; looking at it every 10 s"),
        }
        rules.changed(Cause::Start);
        spawn_local(serve::finish(service.clone(), to_finish));
        let Setup { dirs, resolved, again, level } = setup;
        let node = Node::new(dirs, resolved, writer.clone(), rules.clone(), telemetry, tenants);
        let threads = Threads { writer_ended, keeper_ended };
        serve_until_told(socket, service, node, Reload { again, level }, threads).await
    });
    // It asks the writer.
    rules.stop();
    let kept = keeper.join();
    // Also after a failure: what was answered is to last.
    writer.send(Task::Stop);
    thread.join().map_err(|_| "the thread that writes the store failed".to_owned())?;
    kept.map_err(|_| "the thread that keeps the packet filter's rules failed".to_owned())?;
    served?;
    tracing::info!("ended");
    Ok(())
}

/// What is needed for SIGHUP.
struct Reload {
    again: Box<dyn Fn() -> Result<Resolved, String>>,
    level: log::Level,
}

/// Told when they end, however they do.
struct Threads {
    writer_ended: oneshot::Receiver<()>,
    keeper_ended: oneshot::Receiver<()>,
}

async fn serve_until_told(
    socket: Published,
    service: Service,
    node: Rc<Node>,
    again: Reload,
    threads: Threads,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot serve: {error}");
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = &mut signals else { return Err("cannot hear signals".to_owned()) };
    let (end, ending) = watch::channel(false);
    let Published { listener, path } = socket;
    let serving = serve::serve(UnixListener::from_std(listener).map_err(failed)?, service, ending);
    tokio::pin!(serving);
    // Not when the node is ready for pods from elsewhere: runtimes wait for this, and the cluster's store may be one of
    // the pods that they are to start.
    notify::ready();
    let beside = Beside::start(&node, again);
    let Threads { writer_ended, keeper_ended } = threads;
    tokio::select! {
        () = &mut serving => {}
        () = told(terminate, interrupt) => {}
        // The lock went with it: an agent that answered on without it would keep all pods from starting.
        _ = writer_ended => tracing::error!("the thread that writes the store has failed"),
        // No DEL would come to its end.
        _ = keeper_ended => tracing::error!("the thread that keeps the packet filter's rules has failed"),
    }
    tracing::info!("ending");
    notify::stopping();
    // Taking leave of the cluster may take seconds. Plugins are served meanwhile.
    tokio::select! {
        () = &mut serving => {}
        () = beside.end() => {}
    }
    // First the name: whoever comes now finds no agent and waits for the lock.
    if let Err(error) = fs::remove_file(&path) {
        tracing::warn!(%error, socket = %path.display(), "cannot remove the socket");
    }
    if end.send(true).is_ok() {
        serving.await;
    }
    Ok(())
}

/// What the agent does beside its service of addresses, which none of it may stop.
struct Beside {
    control: Option<PathBuf>,
    cluster: Option<JoinHandle<()>>,
    end: watch::Sender<bool>,
}

impl Beside {
    fn start(node: &Rc<Node>, again: Reload) -> Self {
        let control = match control(node) {
            Ok(path) => Some(path),
            Err(error) => {
                tracing::error!("podwirectl will find no agent: {error}");
                None
            }
        };
        let config = node.config();
        let (address, addresses) = watch::channel(config.telemetry.listen);
        spawn_local(serve_public(Rc::clone(node), addresses));
        spawn_local(watchdog::watch(Rc::clone(node)));
        let peers = Arc::new(Notify::new());
        let (end, ending) = watch::channel(false);
        let cluster = config.cluster.is_some().then(|| {
            let part = cluster::run(Rc::clone(node), Arc::clone(&peers), ending);
            spawn_local(part)
        });
        let node = Rc::clone(node);
        spawn_local(async move {
            let Ok(mut hangup) = signal(SignalKind::hangup()) else {
                tracing::error!("cannot hear SIGHUP");
                return;
            };
            loop {
                tokio::select! {
                    heard = hangup.recv() => if heard.is_none() { return },
                    () = node.reload.notified() => {}
                }
                reload(&node, &again.again, &again.level, &address);
                peers.notify_one();
            }
        });
        Self { control, cluster, end }
    }

    async fn end(self) {
        if let Some(path) = self.control
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, socket = %path.display(), "cannot remove the control socket");
        }
        let _ = self.end.send(true);
        if let Some(cluster) = self.cluster {
            let _ = cluster.await;
        }
    }
}

/// Serves administrators.
fn control(node: &Rc<Node>) -> Result<PathBuf, String> {
    let socket = Socket::bind(&node.dirs, node.dirs.run.join(http::SOCKET))?.publish()?;
    let listener = UnixListener::from_std(socket.listener).map_err(|error| error.to_string())?;
    spawn_local(http::serve_unix(listener, Rc::new(Control(Rc::clone(node)))));
    Ok(socket.path)
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// The socket before it has its name: so that whoever finds the name is served.
struct Socket {
    listener: StdListener,
    unnamed: PathBuf,
    path: PathBuf,
}

/// The socket as plugins see it.
struct Published {
    listener: StdListener,
    path: PathBuf,
}

impl Socket {
    fn bind(dirs: &Dirs, path: PathBuf) -> Result<Self, String> {
        dirs.make_run().map_err(|error| error.chain())?;
        let prefix = format!("{}.new-", path.file_name().unwrap_or_default().to_string_lossy());
        clear(&dirs.run, &prefix);
        // A second agent waits for the lock with a socket of its own.
        let unnamed = dirs.run.join(format!("{prefix}{}", std::process::id()));
        let failed = |error: io::Error| format!("cannot listen on {}: {error}", unnamed.display());
        let listener = StdListener::bind(&unnamed).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        fs::set_permissions(&unnamed, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, unnamed, path })
    }

    fn publish(self) -> Result<Published, String> {
        fs::rename(&self.unnamed, &self.path)
            .map_err(|error| format!("cannot publish {}: {error}", self.path.display()))?;
        Ok(Published { listener: self.listener, path: self.path })
    }
}

/// Removes the sockets of agents that were killed while they waited: nobody listens on them.
fn clear(run: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(run) else { return };
    for entry in entries.flatten() {
        let is_left = entry.file_name().to_string_lossy().starts_with(prefix)
            && StdStream::connect(entry.path())
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if is_left {
            let _ = fs::remove_file(entry.path());
        }
    }
}
