//! One connection to one member of etcd, and the few requests that are made of it, each with a deadline.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, LeaseKeepAliveStream,
    LeaseKeeper, PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use tokio::time::timeout;

use crate::claims::{Change, Key, Life, Lineage, Replica, Write};
use crate::config::Etcd;

/// How many keys are read at a time at most. Ours have some 300 bytes each.
const PAGE: i64 = 1000;

/// The largest message that is read, in bytes. Where records are so large that a page does not fit, pages get smaller.
const LARGEST_MESSAGE: usize = 16 << 20;

/// How many more log entries than told there may be while a store is being written to.
const BUSY: i64 = 1000;

/// Something at a member did not work. The connection is of no more use.
#[derive(Debug, thiserror::Error)]
#[error("{operation} at {endpoint}: {why}")]
pub(super) struct Failure {
    endpoint: String,
    operation: &'static str,
    why: String,
}

/// What etcd answers.
pub(super) type Answered<T> = Result<T, etcd_client::Error>;

/// What came of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is through, at this revision.
    Done(u64),
    /// Something it requires is not as it was; the newest of it was written at this revision.
    Conflict(u64),
}

/// A keep-alive of a lease, and where its answers come.
pub(super) type Keeper = (LeaseKeeper, LeaseKeepAliveStream);

/// A connection.
pub(super) struct Connection {
    client: Client,
    endpoint: String,
    /// Below which everything stands, with the `/` at its end.
    root: String,
    limit: Duration,
}

impl Connection {
    /// Connects, and says who this is where etcd asks. Without that nothing is sent yet.
    pub(super) async fn open(etcd: &Etcd, limit: Duration, endpoint: &str) -> Result<Self, Failure> {
        let failed = |why| Failure { endpoint: endpoint.to_owned(), operation: "connect", why };
        let options = connect_options(etcd, limit, endpoint).map_err(failed)?;
        let connecting = Client::connect([endpoint], Some(options));
        let client = match timeout(limit * 2, connecting).await {
            Ok(done) => done.map_err(|error| failed(explain(&error)))?,
            Err(_) => return Err(failed(late(limit * 2))),
        };
        let root = format!("{}/v1/", etcd.prefix.trim_end_matches('/'));
        Ok(Self { client, endpoint: endpoint.to_owned(), root, limit })
    }

    /// A failure of this connection.
    pub(super) fn failure(&self, operation: &'static str, why: impl Into<String>) -> Failure {
        Failure { endpoint: self.endpoint.clone(), operation, why: why.into() }
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        request: impl Future<Output = Answered<T>>,
    ) -> Result<T, Failure> {
        match timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(operation, explain(&error))),
            Err(_) => Err(self.failure(operation, late(limit))),
        }
    }

    /// The store's cluster id and revision, confirmed by a majority.
    pub(super) async fn confirm(&self) -> Result<(u64, u64), Failure> {
        let mut kv = self.client.kv_client();
        let get = kv.get(self.full(&Key::Config), Some(GetOptions::new().with_keys_only()));
        let answer = self.within("read", self.limit, get).await?;
        Ok(place(answer.header()))
    }

    /// Which course of history the store is on; `None` where it does not tell. To be asked after [`Connection::confirm`]:
    /// then the member knows all that was confirmed.
    pub(super) async fn lineage(&self) -> Option<Lineage> {
        let mut maintenance = self.client.maintenance_client();
        let first = self.within("read the status", self.limit, maintenance.status()).await.ok()?;
        let second = self.within("read the status", self.limit, maintenance.status()).await.ok()?;
        let (cluster, revision) = place(first.header());
        let entries = |index: u64| i64::try_from(index).ok().filter(|index| *index > 0);
        let revised = i64::try_from(revision).ok().filter(|revision| *revision > 0);
        let lead = match (entries(first.raft_applied_index()), entries(first.raft_index()), revised) {
            (Some(applied), Some(known), Some(revised)) => {
                // The revision is read before the index. If none was made until later, they belong together.
                let is_quiet = place(second.header()).1 == revision;
                Some((applied - revised - if is_quiet { 0 } else { BUSY }, known.max(applied) - revised))
            }
            _ => None,
        };
        Some(Lineage { cluster, revision, lead })
    }

    /// Reads everything as it was at one revision.
    pub(super) async fn load(&self, earlier: &Replica) -> Result<Replica, Failure> {
        let mut restarts = 3;
        loop {
            match self.read_pages(earlier).await {
                // The revision of the first page was compacted before the last was read.
                Err(failure) if failure.why.contains("compacted") && restarts > 0 => restarts -= 1,
                result => return result,
            }
        }
    }

    async fn read_pages(&self, earlier: &Replica) -> Result<Replica, Failure> {
        let mut kv = self.client.kv_client().max_decoding_message_size(LARGEST_MESSAGE);
        let mut replica = earlier.successor();
        let mut from = self.root.clone().into_bytes();
        let end = self.end();
        let (mut revision, mut page) = (0, PAGE);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(page).with_revision(revision);
            // A page is more than other requests are.
            let answer = self.within("read", self.limit * 5, kv.get(from.clone(), Some(options))).await;
            let answer = match answer {
                Err(failure) if failure.why.contains("message length too large") && page > 1 => {
                    page = (page / 8).max(1);
                    continue;
                }
                answer => answer?,
            };
            if revision == 0 {
                revision = answer.header().map_or(0, ResponseHeader::revision);
            }
            for pair in answer.kvs() {
                let key = self.below_root(pair.key());
                replica.put(&key, unsigned(pair.mod_revision()), pair.value());
            }
            match answer.kvs().last() {
                Some(last) if answer.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        replica.reached(unsigned(revision));
        replica.settle();
        Ok(replica)
    }

    /// Everything that changes from a revision on, that one included.
    pub(super) async fn watch(&self, from: u64) -> Result<WatchStream, Failure> {
        let options = WatchOptions::new()
            .with_range(self.end())
            .with_start_revision(i64::try_from(from.max(1)).unwrap_or(i64::MAX))
            .with_fragment();
        let mut client = self.client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
        self.within("watch", self.limit, client.watch(self.root.clone(), Some(options))).await
    }

    /// A lease of this many seconds at least.
    pub(super) async fn grant(&self, life: Duration) -> Result<i64, Failure> {
        let seconds = i64::try_from(life.as_secs()).unwrap_or(i64::MAX).max(1);
        let mut leases = self.client.lease_client();
        Ok(self.within("grant a lease", self.limit, leases.grant(seconds, None)).await?.id())
    }

    /// Ends a lease, and with it the keys that depend on it.
    pub(super) async fn revoke(&self, lease: i64) -> Result<(), Failure> {
        let mut leases = self.client.lease_client();
        self.within("revoke a lease", self.limit, leases.revoke(lease)).await.map(|_| ())
    }

    /// Begins to keep a lease alive; `None`: it is over.
    pub(super) async fn keep(&self, lease: i64) -> Result<Option<Keeper>, Failure> {
        let mut leases = self.client.lease_client();
        match timeout(self.limit, leases.keep_alive(lease)).await {
            Ok(Ok(keeper)) => Ok(Some(keeper)),
            Ok(Err(etcd_client::Error::LeaseKeepAliveError(_))) => Ok(None),
            Ok(Err(error)) => Err(self.failure("keep a lease", explain(&error))),
            Err(_) => Err(self.failure("keep a lease", late(self.limit))),
        }
    }

    /// Carries out a transaction. `leases` are those of the lives in it that end.
    pub(super) async fn commit(
        &self,
        change: &Change,
        leases: &BTreeMap<Life, i64>,
    ) -> Result<Outcome, Failure> {
        let same = |(key, revision): &(Key, u64)| {
            Compare::mod_revision(
                self.full(key),
                CompareOp::Equal,
                i64::try_from(*revision).unwrap_or(i64::MAX),
            )
        };
        let write = |write: &Write| match write {
            Write::Put { key, value, life } => {
                let options = leases.get(life).map(|lease| PutOptions::new().with_lease(*lease));
                TxnOp::put(self.full(key), value.to_bytes(), options)
            }
            Write::Delete(key) => TxnOp::delete(self.full(key), None),
        };
        let look =
            |(key, _): &(Key, u64)| TxnOp::get(self.full(key), Some(GetOptions::new().with_keys_only()));
        let transaction = Txn::new()
            .when(change.requires.iter().map(same).collect::<Vec<_>>())
            .and_then(change.writes.iter().map(write).collect::<Vec<_>>())
            .or_else(change.requires.iter().map(look).collect::<Vec<_>>());
        let mut kv = self.client.kv_client();
        let answer = self.within("write", self.limit, kv.txn(transaction)).await?;
        if answer.succeeded() {
            return Ok(Outcome::Done(place(answer.header()).1));
        }
        let newest = answer.op_responses().into_iter().filter_map(|looked| match looked {
            TxnOpResponse::Get(found) => found.kvs().iter().map(|pair| unsigned(pair.mod_revision())).max(),
            _ => None,
        });
        Ok(Outcome::Conflict(newest.max().unwrap_or(0)))
    }

    fn full(&self, key: &Key) -> String {
        format!("{}{key}", self.root)
    }

    /// The end of the range of keys that begin with the root: `/` is followed by `0`.
    fn end(&self) -> Vec<u8> {
        let mut end = self.root.clone().into_bytes();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    /// A key as the local copy has it. What is no text is made one: it is no key of ours either way.
    pub(super) fn below_root(&self, key: &[u8]) -> String {
        String::from_utf8_lossy(key.strip_prefix(self.root.as_bytes()).unwrap_or(key)).into_owned()
    }
}

fn connect_options(etcd: &Etcd, limit: Duration, endpoint: &str) -> Result<ConnectOptions, String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("read {}: {error}", path.display()));
    // A member that has lost its leader must say so, not answer from what it knows.
    let mut options = ConnectOptions::new().with_connect_timeout(limit).with_require_leader(true);
    if endpoint.starts_with("https://") {
        let mut tls = TlsOptions::new();
        if let Some(ca) = &etcd.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
        }
        if let (Some(certificate), Some(key)) = (&etcd.certificate, &etcd.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        options = options.with_tls(tls);
    }
    if let Some(user) = &etcd.username {
        let password = etcd.password_file.as_deref().map(read).transpose()?.unwrap_or_default();
        let password = String::from_utf8_lossy(&password);
        options = options.with_user(user, password.lines().next().unwrap_or_default());
    }
    Ok(options)
}

fn place(header: Option<&ResponseHeader>) -> (u64, u64) {
    header.map_or((0, 0), |header| (header.cluster_id(), unsigned(header.revision())))
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn late(limit: Duration) -> String {
    format!("no answer within {} ms", limit.as_millis())
}

/// What an error says, with its causes, which tonic keeps out of its own text.
pub(super) fn explain(error: &etcd_client::Error) -> String {
    let (mut text, mut cause): (String, Option<&dyn std::error::Error>) = match error {
        etcd_client::Error::GRpcStatus(status) => {
            let advice = match status.code() as i32 {
                7 | 16 => ": check the user, its password and its role",
                _ => "",
            };
            (format!("{}{advice}", status.message()), std::error::Error::source(status))
        }
        etcd_client::Error::TransportError(error) => (error.to_string(), std::error::Error::source(error)),
        other => (other.to_string(), None),
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.retain(|c| !c.is_control());
    text
}
