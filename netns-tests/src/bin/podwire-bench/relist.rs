//! Stores that have to list all Nodes again at the same moment.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use podwire_netns_tests::apiserver::{AGENT_TOKEN, ApiServer, Credentials, Request, ServerOptions};
use podwire_netns_tests::cluster::subnets;
use podwire_netns_tests::kubernetes::node_spec;
use podwire_netns_tests::underlay::Families;
use podwire_netns_tests::{LabError, Result};
use podwire_overlay::config::Kubernetes;
use podwire_overlay::store::kubernetes::KubernetesStore;
use podwire_overlay::store::{Announcement, ClusterStore, Health, Identity, StoreContext, StoreEvent};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;

use crate::report::Report;
use crate::rows::Size;
use crate::scale::LIMIT;

/// What the stores of one process have in common.
struct Fleet {
    server: ApiServer,
    /// How many have been told of all Nodes.
    informed: Rc<Cell<usize>>,
}

impl Fleet {
    /// Runs a store until the process ends, as the agent of the Node of that name runs it.
    fn spawn(&self, name: String, kubernetes: Kubernetes) {
        let (announced, announcement) = watch::channel(Announcement::default());
        let (_, has_pods) = watch::channel(false);
        let (_, health) = watch::channel(Health { is_ready: true, ..Health::default() });
        let (events, mut told) = mpsc::channel(16);
        let (asks, commands) = mpsc::channel(1);
        let identity = Identity { instance: format!("{:032x}", 1), boot: name.clone(), name };
        let context =
            StoreContext { identity, remembered: None, announcement, has_pods, health, events, commands };
        let informed = Rc::clone(&self.informed);
        spawn_local(Box::new(KubernetesStore::new(kubernetes)).run(context));
        spawn_local(async move {
            // A store ends when nobody can ask it for anything.
            let _kept = (announced, asks);
            let mut is_informed = false;
            while let Some(event) = told.recv().await {
                if matches!(event, StoreEvent::Snapshot { .. }) && !std::mem::replace(&mut is_informed, true)
                {
                    informed.set(informed.get() + 1);
                }
            }
        });
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !is_so(self) {
            if Instant::now() > deadline {
                return Err(LabError::new(format!("{what}: not within {LIMIT:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// When all Nodes were asked for, since the requests were forgotten.
    fn lists(&self) -> Vec<Instant> {
        // A page that is not the first is no list of its own.
        let of_all = |request: &Request| {
            let begins = request.verb == "list" && !request.query.contains("continue=");
            request.resource == "nodes" && (begins || request.query.contains("sendInitialEvents"))
        };
        let mut lists: Vec<_> = self
            .server
            .requests()
            .iter()
            .filter(|request| of_all(request))
            .map(|request| request.at)
            .collect();
        lists.sort();
        lists
    }
}

/// Many stores whose watches end at once, with nothing to go on from.
pub(crate) fn relist(size: &Size, report: &mut Report) -> Result<()> {
    let (stores, nodes) = if size.is_quick() { (10, 200_u16) } else { (50, 1_000) };
    let server = ApiServer::start(&ServerOptions::default())?;
    for number in 0..nodes {
        let node = node_spec(&format!("node-{number:05}"), &subnets(Families::Ipv6, number), &[]);
        server.create_node(&node.sized())?;
    }
    let file = tempfile::NamedTempFile::new().map_err(LabError::because("make a kubeconfig"))?;
    let kubeconfig = server.kubeconfig(&Credentials::Token(AGENT_TOKEN));
    std::fs::write(file.path(), kubeconfig).map_err(LabError::because("write a kubeconfig"))?;
    let shared = json!({"name": "bench", "ranges": [{"range": "fd00:10:244::/48", "subnetPrefix": 64}]});
    let shared = serde_json::from_value(shared).map_err(LabError::because("read settings"))?;
    let kubernetes = Kubernetes { kubeconfig: Some(file.path().to_owned()), flannel_peers: false, shared };
    let fleet = Fleet { server, informed: Rc::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LabError::because("start a runtime"))?;
    let lists = tokio::task::LocalSet::new().block_on(&runtime, async {
        for number in 0..stores {
            fleet.spawn(format!("node-{number:05}"), kubernetes.clone());
        }
        fleet.until("each store knows all Nodes", |fleet| fleet.informed.get() == stores).await?;
        fleet.until("each store watches", |fleet| fleet.server.watches() == stores).await?;
        fleet.server.forget_requests();
        fleet.server.compact();
        fleet.server.drop_watches();
        fleet.until("each store lists again", |fleet| fleet.lists().len() >= stores).await?;
        Ok::<_, LabError>(fleet.lists())
    })?;
    let span = lists.last().zip(lists.first()).map_or(Duration::ZERO, |(last, first)| *last - *first);
    let busiest = lists.iter().map(|from| {
        lists.iter().filter(|at| *at >= from && at.duration_since(*from) < Duration::from_millis(100)).count()
    });
    let what = format!("{stores} stores of {nodes} Nodes list again at once");
    report.amount(&format!("{what}: from the first to the last"), None, span.as_secs_f64(), "s");
    let busiest = busiest.max().unwrap_or_default() as f64;
    report.amount(
        &format!("{what}: the most in a tenth of a second"),
        Some(stores as f64 / 4.0),
        busiest,
        "",
    );
    Ok(())
}
