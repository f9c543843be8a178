//! Connections, and what happens to them: requests become calls, answers go out, or not, as the server's fault has it.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::error::{LabError, Result};
use crate::netns::Netns;

use super::access::{Accounts, authenticate, authorise};
use super::failure::Failure;
use super::journal::{Journal, Meter, Request};
use super::kind::Kind;
use super::request::{Call, Verb};
use super::respond::{JSON, Reply, Sent, about_the_server, respond};
use super::seed::confirm;
use super::store::{Change, Stamp, Store};
use super::watching::Watch;
use super::{Fault, ServerOptions};

/// What a connection gets for sending what it was given, before it is broken.
pub(super) const BREATH: Duration = Duration::from_millis(20);
/// The largest body of a request, in bytes.
const LARGEST: usize = 3 << 20;
/// In how many pieces a slow answer comes.
const PIECES: usize = 10;

/// What the server's thread is told.
pub(super) enum Command {
    /// Goes wrong like that; the sender hears when it does.
    Fault(Fault, std::sync::mpsc::Sender<()>),
    /// See [`ApiServer::heartbeats`](super::ApiServer::heartbeats).
    Heartbeats(Option<Duration>),
}

/// Where it listens, again and again.
pub(super) struct Place {
    pub(super) network: Option<Arc<Netns>>,
    pub(super) at: SocketAddr,
}

impl Place {
    pub(super) fn listen(&self) -> Result<TcpListener> {
        let bind = || {
            let listener = TcpListener::bind(self.at)?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        let bound = match &self.network {
            Some(network) => network.run(bind)?,
            None => bind(),
        };
        bound.map_err(LabError::because(format!("listen on {}", self.at)))
    }
}

/// What the server's thread and its owner share.
pub(super) struct Shared {
    store: Mutex<Store>,
    accounts: Mutex<Accounts>,
    journal: Mutex<Journal>,
    fault: watch::Sender<Fault>,
    news: watch::Sender<u64>,
    watch_ends: watch::Sender<()>,
    connection_ends: watch::Sender<()>,
    streaming_lists: AtomicBool,
    watches: AtomicUsize,
    pub(super) bookmarks: Duration,
}

impl Shared {
    pub(super) fn new(options: &ServerOptions) -> Self {
        Self {
            store: Mutex::new(Store::new(options.history)),
            accounts: Mutex::default(),
            journal: Mutex::default(),
            fault: watch::Sender::new(Fault::None),
            news: watch::Sender::new(0),
            watch_ends: watch::Sender::new(()),
            connection_ends: watch::Sender::new(()),
            streaming_lists: AtomicBool::new(options.streaming_lists),
            watches: AtomicUsize::new(0),
            bookmarks: options.bookmarks,
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(super) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    /// Tells all watches that something may have changed.
    pub(super) fn wake(&self) {
        let version = self.store().version();
        self.news.send_if_modified(|known| std::mem::replace(known, version) != version);
    }

    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(super) fn end_watches(&self) {
        self.watch_ends.send_replace(());
    }

    pub(super) fn watch_ends(&self) -> watch::Receiver<()> {
        self.watch_ends.subscribe()
    }

    pub(super) fn end_connections(&self) {
        self.connection_ends.send_replace(());
    }

    pub(super) fn offer_streaming_lists(&self, offered: bool) {
        self.streaming_lists.store(offered, Ordering::Relaxed);
    }

    pub(super) fn watches(&self) -> usize {
        self.watches.load(Ordering::Relaxed)
    }

    /// Counts a watch as long as the result lives.
    pub(super) fn count_watch(&self) -> OpenWatch<'_> {
        self.watches.fetch_add(1, Ordering::Relaxed);
        OpenWatch(&self.watches)
    }

    /// What changed after a version, for a watch that is open, and the version of now.
    pub(super) fn changes(
        &self,
        kind: Kind,
        after: u64,
        is_open: bool,
    ) -> std::result::Result<(Vec<Arc<Change>>, u64), Failure> {
        let store = self.store();
        Ok((store.changes_after(kind, after, is_open, CHANGES_AT_ONCE)?, store.version()))
    }

    /// What is wrong now, once it is not that nothing is said.
    pub(super) async fn fault_when_not_silent(&self) -> Fault {
        let mut fault = self.fault.subscribe();
        let fault = fault.wait_for(|fault| *fault != Fault::Silent).await;
        fault.map_or(Fault::None, |fault| *fault)
    }
}

/// How many changes a watch takes up at once.
const CHANGES_AT_ONCE: usize = 256;

/// A watch that is counted.
pub(super) struct OpenWatch<'a>(&'a AtomicUsize);

impl Drop for OpenWatch<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A test that panicked elsewhere has failed already; what it held is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a new object gets from the machine.
pub(super) fn stamp() -> Stamp {
    let uid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel has random numbers");
    Stamp { now: now(), uid: uid.trim().to_owned() }
}

fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // A whole second is written without a fraction, as the API has it.
    Timestamp::from_second(seconds.try_into().unwrap_or_default())
        .expect("the year has four digits")
        .to_string()
}

/// Serves until there are no more commands.
pub(super) async fn run(
    shared: Arc<Shared>,
    place: Place,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut listener = Some(registered(listener));
    let mut beating: Option<JoinHandle<()>> = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Fault(fault, done)) => {
                    shared.fault.send_replace(fault);
                    if fault == Fault::Refuse {
                        listener = None;
                        shared.end_connections();
                        // Those that are broken notice it when their tasks run.
                        tokio::task::yield_now().await;
                    } else if listener.is_none() {
                        let again = place.listen().expect("the port is still the server's own");
                        listener = Some(registered(again));
                    }
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Some(Command::Heartbeats(every)) => {
                    if let Some(task) = beating.take() {
                        task.abort();
                    }
                    beating = every.map(|every| tokio::spawn(heartbeats(Arc::clone(&shared), every)));
                }
            },
            accepted = accept(listener.as_ref()) => {
                // A client that went away before it was accepted is no error of the server's.
                if let Ok((stream, from)) = accepted {
                    tokio::spawn(connection(Arc::clone(&shared), stream, from, tls.clone()));
                }
            }
        }
    }
}

fn registered(listener: TcpListener) -> tokio::net::TcpListener {
    tokio::net::TcpListener::from_std(listener).expect("the runtime takes a listener that does not block")
}

async fn accept(listener: Option<&tokio::net::TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn heartbeats(shared: Arc<Shared>, every: Duration) {
    loop {
        let began = tokio::time::Instant::now();
        let keys: Vec<_> = shared.store().all(Kind::Node).into_iter().map(|(key, _)| key).collect();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1);
        for (number, key) in (0..).zip(&keys) {
            tokio::time::sleep_until(began + every * number / count).await;
            let now = now();
            shared.store().touch(Kind::Node, key, |node| confirm(node, &now));
            shared.wake();
        }
        tokio::time::sleep_until(began + every).await;
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr, tls: Option<TlsAcceptor>) {
    let mut ends = shared.connection_ends.subscribe();
    let served = async {
        shared.fault_when_not_silent().await;
        // Answers are small, and watches' lines are waited for.
        let _ = stream.set_nodelay(true);
        match tls {
            None => http(&shared, stream, from).await,
            // A client that does not like the certificate has said so itself.
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    http(&shared, stream, from).await;
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        _ = ends.changed() => {}
    }
}

async fn http(shared: &Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin, from: SocketAddr) {
    let service = service_fn(|request| {
        let shared = Arc::clone(shared);
        async move { Ok::<_, Infallible>(answer(shared, from, request).await) }
    });
    // It ends with an error whenever a client goes away, and when a fault breaks it.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    shared: Arc<Shared>,
    from: SocketAddr,
    request: hyper::Request<Incoming>,
) -> Response<Answer> {
    let fault = shared.fault_when_not_silent().await;
    if let Fault::Slow(by) = fault {
        tokio::time::sleep(by / 2).await;
    }
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let call = Call::read(&head.method, head.uri.path(), query);
    let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let account = authenticate(&shared.accounts(), header(AUTHORIZATION));
    let content_type = header(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let asked = async {
        if let Fault::Fail(code) = fault {
            return Err(Failure::of_server(code));
        }
        let account = account?;
        let Some(call) = &call else {
            return about_the_server(head.uri.path()).map(Asked::Reply).ok_or_else(Failure::no_resource);
        };
        let call = call.as_ref().map_err(Clone::clone)?;
        authorise(&account, call)?;
        if call.verb == Verb::Watch {
            let streaming_lists = shared.streaming_lists.load(Ordering::Relaxed);
            return Watch::of(call, streaming_lists).map(Asked::Watch);
        }
        let body = Limited::new(body, LARGEST).collect().await.map_err(|_| Failure::too_large(LARGEST))?;
        let content_type = content_type.to_owned();
        Ok(Asked::Objects(call, Sent { content_type, body: body.to_bytes() }))
    };
    let asked = asked.await;
    let (outcome, meter) = {
        // Until the request is written down, nobody sees what it has changed.
        let mut store = shared.store();
        let outcome = match asked {
            Ok(Asked::Reply(reply)) => Outcome::Reply(reply),
            Ok(Asked::Watch(watch)) => Outcome::Watch(watch),
            Ok(Asked::Objects(call, sent)) => Outcome::Reply(
                respond(&mut store, call, &sent, stamp()).unwrap_or_else(|failure| Reply::from(&failure)),
            ),
            Err(failure) => Outcome::Reply(Reply::from(&failure)),
        };
        let status = match &outcome {
            Outcome::Reply(reply) => reply.code,
            Outcome::Watch(_) => 200,
        };
        let meter = match &call {
            Some(Ok(call)) => shared.journal().add(Request {
                at: Instant::now(),
                verb: call.verb.name(),
                resource: call.wanted(),
                name: call.name.clone(),
                query: query.to_owned(),
                status,
                from,
            }),
            _ => Meter::default(),
        };
        (outcome, meter)
    };
    shared.wake();
    deliver(shared, outcome, fault, meter)
}

/// What a request comes to, before anything is looked up or changed.
enum Asked<'a> {
    Reply(Reply),
    Watch(Watch),
    Objects(&'a Call, Sent),
}

/// What is to be answered.
enum Outcome {
    Reply(Reply),
    Watch(Watch),
}

fn deliver(shared: Arc<Shared>, outcome: Outcome, fault: Fault, meter: Meter) -> Response<Answer> {
    let (code, content_type, answer) = match outcome {
        Outcome::Watch(watch) => {
            let (out, pieces) = mpsc::channel(16);
            tokio::spawn(watch.run(shared, out, meter));
            (200, JSON, Answer::Pieces { pieces, left: None })
        }
        Outcome::Reply(Reply { code, content_type, body }) => {
            meter.add(body.len());
            let whole = body.len() as u64;
            let answer = match fault {
                Fault::Cut => {
                    let half = body.slice(..body.len() / 2);
                    Answer::Pieces { pieces: pieces(vec![half], BREATH, true), left: Some(whole) }
                }
                Fault::Slow(by) => {
                    let step = body.len() / PIECES + 1;
                    let parts = (0..body.len()).step_by(step);
                    let parts = parts.map(|at| body.slice(at..body.len().min(at + step))).collect();
                    let pause = by / 2 / u32::try_from(PIECES).unwrap_or(u32::MAX);
                    Answer::Pieces { pieces: pieces(parts, pause, false), left: Some(whole) }
                }
                _ => Answer::Whole(Some(body)),
            };
            (code, content_type, answer)
        }
    };
    let mut response = Response::new(answer);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Gives out pieces with a pause after each, and breaks off then if it is to.
fn pieces(
    parts: Vec<Bytes>,
    pause: Duration,
    breaks: bool,
) -> mpsc::Receiver<std::result::Result<Bytes, Cut>> {
    let (out, pieces) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in parts {
            if out.send(Ok(part)).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        if breaks {
            let _ = out.send(Err(Cut)).await;
        }
    });
    pieces
}

/// The body of an answer.
enum Answer {
    Whole(Option<Bytes>),
    Pieces {
        pieces: mpsc::Receiver<std::result::Result<Bytes, Cut>>,
        /// How much is to come; `None` for watches, which say it with their end.
        left: Option<u64>,
    },
}

/// The connection is broken here, on purpose.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on command")
    }
}

impl std::error::Error for Cut {}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Pieces { pieces, left } => pieces.poll_recv(context).map(|piece| {
                piece.map(|piece| {
                    piece.map(|piece| {
                        *left = left.map(|left| left.saturating_sub(piece.len() as u64));
                        Frame::data(piece)
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Pieces { left: Some(0), .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Pieces { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Pieces { left: None, .. } => SizeHint::default(),
        }
    }
}
