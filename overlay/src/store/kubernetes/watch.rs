//! Follows all Nodes: a list, then what changes, from where the last connection ended.
//!
//! kube::runtime::watcher is not used for three reasons: it begins anew without a pause where a server ends watches at once (both
//! in its first list and later), it lists all Nodes again where only the credentials have changed, and it makes a text of each
//! line before it reads it. The requests are the same, and so is what follows from the answers.

use std::rc::Rc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};

use super::Timing;
use super::client::{Access, Answer, Failure, What};
use super::object::{self, Change, LARGEST_LINE, Lines, Node};

const LIST: What = What { verb: "list", resource: "nodes" };
const WATCH: What = What { verb: "watch", resource: "nodes" };

/// How many Nodes are asked for at a time where the server cannot send them one by one. Where they are so large that their page
/// is not read, pages get smaller.
const PAGE: usize = 500;

/// For how long a watch is asked for, in seconds, at least: up to twice as long, so that not all agents ask at once.
const WATCH_SECONDS: u64 = 300;

/// So many turns the tasks of a connection get before nothing more is expected of it at once.
const TURNS: u32 = 8;

/// What is heard, in order.
#[derive(Debug)]
pub(super) enum Heard {
    /// All that there is follows.
    Begin,
    /// A Node is there, or is another than it was.
    Put(Box<Node>),
    /// A Node is gone.
    Deleted(String),
    /// That was all.
    Complete,
    /// The server answers, after it has not.
    Answered,
    /// It does not, or it says no.
    Failed(Failure),
}

/// The task that follows.
pub(super) struct Follower {
    access: Rc<Access>,
    /// This node's name.
    me: String,
    /// Which life of its own Node was last heard of; empty: none.
    own: String,
    timing: Timing,
    heard: mpsc::Sender<Heard>,
    /// From where the next watch goes on; `None`: everything has to be listed.
    position: Option<String>,
    /// Whether the next list is asked for as a stream.
    streams: bool,
    page: usize,
    /// How many Nodes were listed last.
    nodes: u32,
    /// So many attempts in a row have come to nothing, or have not lasted.
    failures: u32,
    has_failed: bool,
}

/// How an attempt ended that has not failed.
enum End {
    /// Everything is listed.
    Listed,
    /// The server has ended the watch, as it does after some minutes.
    Over,
    /// What lies between is not known any more: everything has to be listed.
    Expired,
}

/// Why an attempt ended otherwise.
enum Trouble {
    Failed(Failure),
    /// Nobody listens any more.
    Closed,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Follower {
    pub(super) fn new(access: Rc<Access>, me: String, timing: Timing, heard: mpsc::Sender<Heard>) -> Self {
        Self {
            access,
            me,
            own: String::new(),
            timing,
            heard,
            position: None,
            streams: true,
            page: PAGE,
            nodes: 0,
            failures: 0,
            has_failed: false,
        }
    }

    /// Goes on until nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let attempt = match self.position.clone() {
                Some(position) => self.follow(&position).await,
                None => self.list().await,
            };
            // What holds only for a moment is no success: a server may end each watch after its first line.
            if began.elapsed() >= self.timing.lost_after {
                self.failures = 0;
            }
            let pause = match attempt {
                Ok(End::Listed) => Duration::ZERO,
                Ok(End::Over) if began.elapsed() >= self.timing.lost_after => Duration::ZERO,
                Ok(End::Over) => self.fail(),
                // After a restart of the server this is so for all agents at the same moment.
                Ok(End::Expired) => {
                    self.position = None;
                    let most = self.timing.jitter_per_node.saturating_mul(self.nodes);
                    self.fail() + most.min(self.timing.longest_jitter).mul_f64(rand::random_range(0.0..1.0))
                }
                Err(Trouble::Closed) => return,
                Err(Trouble::Failed(failure)) => {
                    tracing::debug!(%failure, "the API server is asked again");
                    self.has_failed = true;
                    // The position is at fault: too old, or newer than a server that was restored from a backup.
                    if matches!(failure.code(), Some(400 | 410 | 422 | 504)) {
                        self.position = None;
                    }
                    if self.heard.send(Heard::Failed(failure)).await.is_err() {
                        return;
                    }
                    self.fail()
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.heard.closed() => return,
            }
        }
    }

    /// Counts an attempt that came to nothing, and says how long to wait.
    fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.timing.pause_after(self.failures)
    }

    /// Lists everything, and goes on to follow where that is one request.
    async fn list(&mut self) -> Result<End, Trouble> {
        if self.streams {
            // A stream that comes to no end is not asked for a second time.
            self.streams = false;
            let path = format!(
                "/api/v1/nodes?watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
                 &resourceVersionMatch=NotOlderThan&timeoutSeconds={}",
                watch_seconds()
            );
            match self.access.get(WATCH, &path).await {
                // Servers before 1.32 refuse it, as newer ones do where it is switched off.
                Err(failure) if matches!(failure.code(), Some(400 | 404 | 422)) => {
                    tracing::debug!(%failure, "the API server does not stream lists");
                }
                Err(failure) => {
                    self.streams = true;
                    return Err(failure.into());
                }
                Ok(answer) => return self.read(answer, true).await,
            }
        }
        self.begin().await?;
        let (mut next, mut count) = (None::<String>, 0);
        loop {
            let mut path = format!("/api/v1/nodes?limit={}", self.page);
            if let Some(next) = &next {
                path = format!("{path}&continue={}", escaped(next));
            }
            let whole = match self.access.get(LIST, &path).await?.whole().await {
                Err(failure @ Failure::TooLarge { .. }) if self.page > 1 => {
                    self.page /= 2;
                    return Err(failure.into());
                }
                whole => whole?,
            };
            let page = object::page(&whole)
                .map_err(|error| Failure::broken(LIST, format!("the list cannot be read: {error}")))?;
            drop(whole);
            self.answered().await?;
            for node in page.nodes {
                count += 1;
                self.put(Box::new(node)).await?;
            }
            next = page.next;
            if next.is_none() {
                self.listed(count, page.version).await?;
                return Ok(End::Listed);
            }
        }
    }

    async fn listed(&mut self, count: u32, version: String) -> Result<(), Trouble> {
        self.nodes = count;
        self.position = Some(version).filter(|version| !version.is_empty());
        self.streams = true;
        self.tell(Heard::Complete).await?;
        match self.position {
            Some(_) => Ok(()),
            None => Err(Failure::broken(LIST, "the list has no resourceVersion").into()),
        }
    }

    async fn follow(&mut self, position: &str) -> Result<End, Trouble> {
        let path = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            escaped(position),
            watch_seconds()
        );
        let answer = self.access.get(WATCH, &path).await?;
        self.read(answer, false).await
    }

    /// Reads a watch to its end. `is_list`: what is there already comes first.
    async fn read(&mut self, mut answer: Answer, mut is_list: bool) -> Result<End, Trouble> {
        if is_list {
            self.begin().await?;
        }
        let access = Rc::clone(&self.access);
        let moved = access.moved();
        tokio::pin!(moved);
        let (mut lines, mut changes) = (Lines::default(), Vec::new());
        let (began, mut count, mut has_heard, mut has_read) = (Instant::now(), 0, false, false);
        let mut heard_at = began;
        // A server that was away is asked at once whether it is there: a watch alone may be silent for a minute.
        let mut ask_at = if self.has_failed { began } else { began + self.timing.quiet };
        loop {
            let silent_until = heard_at + if is_list { self.timing.request * 3 } else { self.timing.silent };
            let rest = if is_list { Duration::ZERO } else { self.timing.rest };
            let data = tokio::select! {
                data = in_turn(&mut answer, rest, &mut has_read) => data?,
                () = sleep_until(ask_at), if !is_list => {
                    if !self.ask().await? {
                        return Ok(End::Expired);
                    }
                    ask_at = Instant::now() + self.timing.quiet;
                    continue;
                }
                () = &mut moved => return Ok(End::Over),
                () = sleep_until(silent_until) => {
                    let seconds = heard_at.elapsed().as_secs();
                    return Err(Failure::broken(WATCH, format!("nothing was heard for {seconds} s")).into());
                }
            };
            let Some(data) = data else { break };
            let fits = lines.feed(&data, |line| changes.push(object::change(line)));
            if !fits {
                let why = format!("an object has more than {LARGEST_LINE} bytes");
                return Err(Failure::broken(WATCH, why).into());
            }
            heard_at = Instant::now();
            ask_at = heard_at + self.timing.quiet;
            for change in changes.drain(..) {
                let change = change.map_err(|error| {
                    // It would be there again.
                    self.position = None;
                    Failure::broken(WATCH, format!("what is told cannot be read: {error}"))
                })?;
                let version = match change {
                    Change::Put(node, version) => {
                        count += u32::from(is_list);
                        self.put(node).await?;
                        version
                    }
                    Change::Deleted(name, version) => {
                        if name == self.me {
                            self.own.clear();
                        }
                        self.tell(Heard::Deleted(name)).await?;
                        version
                    }
                    Change::Bookmark { version, is_initial_end } if is_list && is_initial_end => {
                        is_list = false;
                        self.listed(count, version.clone()).await?;
                        version
                    }
                    Change::Bookmark { version, .. } => version,
                    Change::Refused(refusal) if refusal.code == 410 => return Ok(End::Expired),
                    Change::Refused(refusal) => return Err(Failure::Refused { what: WATCH, refusal }.into()),
                };
                if !is_list && !version.is_empty() {
                    self.position = Some(version);
                }
                if !has_heard {
                    has_heard = true;
                    self.answered().await?;
                }
            }
        }
        if is_list {
            return Err(Failure::broken(WATCH, "the list came to no end").into());
        }
        if !has_heard && began.elapsed() < self.timing.request {
            return Err(Failure::broken(WATCH, "it ended at once").into());
        }
        Ok(End::Over)
    }

    /// Whether the server is there, and its history still the one that is followed: a server that was restored from a backup, or
    /// another one at the same address, has nothing to say of a position that it has not come to.
    async fn ask(&mut self) -> Result<bool, Trouble> {
        let path = format!("/api/v1/nodes?fieldSelector=metadata.name%3D{}", escaped(&self.me));
        let whole = self.access.get(LIST, &path).await?.whole().await?;
        let page = object::page(&whole)
            .map_err(|error| Failure::broken(LIST, format!("the answer cannot be read: {error}")))?;
        self.answered().await?;
        // Versions are numbers that grow (KEP-5504); where they are not, nothing follows from them.
        let number = |version: &str| version.parse::<u64>().ok();
        let followed = self.position.as_deref().and_then(number);
        let went_back = number(&page.version).zip(followed).is_some_and(|(is, followed)| is < followed);
        let own = page.nodes.first().map_or("", |node| &node.metadata.uid);
        Ok(!went_back && own == self.own)
    }

    async fn begin(&mut self) -> Result<(), Trouble> {
        self.own.clear();
        self.tell(Heard::Begin).await
    }

    async fn put(&mut self, node: Box<Node>) -> Result<(), Trouble> {
        if node.metadata.name == self.me {
            self.own.clone_from(&node.metadata.uid);
        }
        self.tell(Heard::Put(node)).await
    }

    async fn answered(&mut self) -> Result<(), Trouble> {
        if std::mem::take(&mut self.has_failed) {
            self.tell(Heard::Answered).await?;
        }
        Ok(())
    }

    async fn tell(&self, heard: Heard) -> Result<(), Trouble> {
        self.heard.send(heard).await.map_err(|_| Trouble::Closed)
    }
}

/// What has come next. When all that was there has been read, what arrives within `rest` is left to come together.
///
/// Nothing is lost if it is dropped while it waits.
async fn in_turn(answer: &mut Answer, rest: Duration, has_read: &mut bool) -> Result<Option<Bytes>, Failure> {
    if *has_read && !rest.is_zero() {
        // Tasks of their own read the connection and hand on what they read, a piece at a time.
        for _ in 0..TURNS {
            tokio::select! {
                biased;
                next = answer.next() => return next,
                () = yield_now() => {}
            }
        }
        sleep(rest).await;
        *has_read = false;
    }
    let next = answer.next().await;
    *has_read = true;
    next
}

fn watch_seconds() -> u64 {
    rand::random_range(WATCH_SECONDS..2 * WATCH_SECONDS)
}

/// As a query has it: continue tokens are base64, versions are numbers, and neither is promised.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
