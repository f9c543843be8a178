//! The cluster's store, as it is configured.

use std::sync::Arc;

use podwire_overlay::config::{Config, Kubernetes, Store};
use podwire_overlay::store::etcd::EtcdStore;
use podwire_overlay::store::file::FileStore;
use podwire_overlay::store::kubernetes::KubernetesStore;
use podwire_overlay::store::{Announcement, ClusterStore, Identity, Remembered, StoreContext, StoreEvent};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

use crate::node::Node;

pub(super) fn open(config: &Config, reload: &Arc<Notify>) -> Result<Box<dyn ClusterStore>, String> {
    match config.cluster.as_ref().map(|cluster| &cluster.store) {
        Some(Store::File { path }) => Ok(Box::new(FileStore::new(path.clone(), Arc::clone(reload)))),
        Some(Store::Etcd(etcd)) => Ok(Box::new(EtcdStore::new(etcd.as_ref().clone()))),
        Some(Store::Kubernetes(kubernetes)) => {
            Ok(Box::new(KubernetesStore::new(Kubernetes::clone(kubernetes))))
        }
        None => Err("there is no cluster".to_owned()),
    }
}

pub(super) fn begin_store(
    node: &Node,
    store: Box<dyn ClusterStore>,
    identity: &Identity,
    remembered: Option<Remembered>,
    announcement: &watch::Sender<Announcement>,
) -> (mpsc::Receiver<StoreEvent>, JoinHandle<()>) {
    let (commands, to_do) = mpsc::channel(8);
    let (events, heard) = mpsc::channel(16);
    node.cluster.borrow_mut().commands = Some(commands);
    let context = StoreContext {
        identity: identity.clone(),
        remembered,
        announcement: announcement.subscribe(),
        has_pods: node.tenants.subscribe(),
        health: node.health.subscribe(),
        events,
        commands: to_do,
    };
    (heard, spawn_local(store.run(context)))
}
