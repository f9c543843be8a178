//! etcd as the cluster store.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use super::{ClusterStore, StoreContext};
use crate::cluster::ClusterConfig;

/// Where etcd is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// Its members: `http://host:port` or `https://host:port`. Each that answers will do.
    pub endpoints: Vec<String>,
    /// Below which key everything stands: `/podwire`.
    pub prefix: String,
    /// Whose certificates its members have. Read at each connection, like the files below.
    pub ca: Option<PathBuf>,
    /// This node's certificate and its issuers', where etcd asks for one.
    pub certificate: Option<PathBuf>,
    /// The key of this node's certificate.
    pub key: Option<PathBuf>,
    /// The user, where etcd asks for one.
    pub username: Option<String>,
    /// The file with the user's password: its first line.
    pub password_file: Option<PathBuf>,
    /// How patient this node is. The default is for production.
    pub timing: Timing,
}

/// The store's times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How long one request to one member may take.
    pub request: Duration,
    /// After how long without an answer the store is lost.
    pub lost_after: Duration,
    /// How long a node is present after its last sign of life.
    pub presence: Duration,
    /// How long subnets rest after a claim has ended.
    pub rest: Duration,
    /// For how long nobody makes a new claim after etcd was restored from a backup.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(1),
            lost_after: Duration::from_secs(2),
            presence: Duration::from_secs(30),
            rest: Duration::from_secs(600),
            grace: Duration::from_secs(120),
        }
    }
}

/// The store.
pub struct EtcdStore {
    settings: EtcdSettings,
    initial: Option<ClusterConfig>,
}

impl EtcdStore {
    /// A store that does nothing before it runs. `initial` is what the cluster's settings shall be if etcd has none yet.
    pub fn new(settings: EtcdSettings, initial: Option<ClusterConfig>) -> Self {
        Self { settings, initial }
    }
}

impl ClusterStore for EtcdStore {
    fn describe(&self) -> String {
        format!("etcd at {}, below {}", self.settings.endpoints.join(", "), self.settings.prefix)
    }

    fn run(self: Box<Self>, mut context: StoreContext) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let _ = &self.initial;
            while context.commands.recv().await.is_some() {}
        })
    }
}
