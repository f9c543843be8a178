//! What the agent answers over HTTP: everything on the control socket, metrics and health on the telemetry address.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::{Method, StatusCode};
use podwire_ipam::{Lease, LeaseState};
use podwire_overlay::dataplane::Overlay;
use podwire_overlay::http::{self, Handler, Reply, Request};
use podwire_overlay::member::Member;
use podwire_overlay::status::{
    ActionAnswer, DataplaneStatus, Health, PeerState, PeerStatus, PodStatus, Status, StoreStatus,
    UnderlayStatus,
};
use podwire_overlay::store::{Action, Command};
use podwire_overlay::telemetry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::node::{Node, boot_time};

/// How long an administrator waits for the cluster's store.
const ACTION_WITHIN: Duration = Duration::from_secs(30);

/// How long the overlay thread may take to tell of all peers.
const PEERS_WITHIN: Duration = Duration::from_secs(10);

/// How long it takes until a telemetry address that is in use is tried again.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// The control socket: for root.
pub(crate) struct Control(pub(crate) Rc<Node>);

impl Handler for Control {
    fn handle(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
        Box::pin(async move { control(&self.0, &request).await })
    }
}

/// The telemetry address: for whoever reaches it.
struct Public(Rc<Node>);

impl Handler for Public {
    fn handle(self: Rc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply>>> {
        Box::pin(async move { public(&self.0, &request).unwrap_or_else(|| Reply::not_found(&request)) })
    }
}

/// Serves the telemetry address, whichever it is at the time.
pub(crate) async fn serve_public(node: Rc<Node>, mut address: watch::Receiver<Option<SocketAddr>>) {
    loop {
        let now = *address.borrow_and_update();
        let serving = async {
            let Some(now) = now else { return std::future::pending().await };
            loop {
                match TcpListener::bind(now).await {
                    Ok(listener) => {
                        tracing::info!(address = %now, "metrics and health are to be had");
                        http::serve_tcp(listener, Rc::new(Public(Rc::clone(&node)))).await;
                    }
                    Err(error) => {
                        tracing::error!(address = %now, %error, "cannot serve metrics and health; trying again");
                        sleep(BIND_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            () = serving => {}
            changed = address.changed() => if changed.is_err() { return },
        }
    }
}

/// What everybody may ask; `None` if it is something else.
fn public(node: &Node, request: &Request) -> Option<Reply> {
    let reply = match request.path.as_str() {
        "/metrics" => {
            if let Some(member) = &node.cluster.borrow().member {
                node.telemetry.synced(member.synced_ago(boot_time()));
            }
            let body = node.telemetry.render().into_bytes();
            Reply { status: StatusCode::OK, content_type: telemetry::CONTENT_TYPE, body }
        }
        "/healthz" => health(node.health(), request),
        "/readyz" => health(node.waiting(), request),
        _ => return None,
    };
    match request.method {
        Method::GET | Method::HEAD => Some(reply),
        _ => Some(Reply::wrong_method(request, &Method::GET)),
    }
}

fn health(problems: Vec<String>, request: &Request) -> Reply {
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if request.query == "json" {
        return Reply::json(status, &Health { ok: problems.is_empty(), problems });
    }
    match problems.as_slice() {
        [] => Reply::text(status, "ok\n"),
        problems => Reply::text(status, format!("{}\n", problems.join("\n"))),
    }
}

async fn control(node: &Rc<Node>, request: &Request) -> Reply {
    if let Some(reply) = public(node, request) {
        return reply;
    }
    let right = if ["/v1/actions", "/v1/reload"].contains(&request.path.as_str()) {
        Method::POST
    } else {
        Method::GET
    };
    let is_right = request.method == right;
    let ok = StatusCode::OK;
    match request.path.as_str() {
        "/v1/status" | "/v1/nodes" | "/v1/pods" | "/v1/probes" | "/v1/cluster" | "/v1/snapshot"
        | "/v1/actions" | "/v1/reload"
            if !is_right =>
        {
            Reply::wrong_method(request, &right)
        }
        "/v1/status" => {
            node.look_at_pods().await;
            Reply::json(ok, &status(node))
        }
        "/v1/nodes" => match peers(node, name_asked(&request.query)).await {
            Ok(peers) => Reply::json(ok, &peers),
            Err(error) => Reply::error(StatusCode::SERVICE_UNAVAILABLE, error),
        },
        "/v1/pods" => match node.survey().await {
            Some(survey) => Reply::json(ok, &survey.leases.iter().map(pod).collect::<Vec<_>>()),
            None => Reply::error(StatusCode::SERVICE_UNAVAILABLE, "the address store does not answer"),
        },
        "/v1/probes" => Reply::json(ok, &node.probes.statuses()),
        "/v1/cluster" => match node.cluster.borrow().member.as_ref().and_then(Member::snapshot) {
            Some(snapshot) => Reply::json(ok, &snapshot.config),
            None => Reply::error(StatusCode::NOT_FOUND, NOT_HEARD),
        },
        "/v1/snapshot" => match node.cluster.borrow().member.as_ref().and_then(Member::snapshot) {
            Some(snapshot) => Reply::json(ok, &**snapshot),
            None => Reply::error(StatusCode::NOT_FOUND, NOT_HEARD),
        },
        "/v1/actions" => act(node, request).await,
        // What comes of it the log says, and /v1/status.
        "/v1/reload" => {
            node.reload.notify_one();
            let message = "the configuration is read again".to_owned();
            Reply::json(ok, &ActionAnswer { message: Some(message), error: None })
        }
        _ => Reply::not_found(request),
    }
}

const NOT_HEARD: &str = "nothing has been heard of a cluster";

async fn act(node: &Node, request: &Request) -> Reply {
    let action: Action = match serde_json::from_slice(&request.body) {
        Ok(action) => action,
        Err(error) => return Reply::error(StatusCode::BAD_REQUEST, format!("no such action: {error}")),
    };
    let Some(commands) = node.cluster.borrow().commands.clone() else {
        return Reply::error(StatusCode::SERVICE_UNAVAILABLE, "this agent has no cluster");
    };
    tracing::info!(?action, "an administrator asks for it");
    let (answer, heard) = oneshot::channel();
    let done = timeout(ACTION_WITHIN, async {
        commands.send(Command { action, answer }).await.ok()?;
        heard.await.ok()
    });
    match done.await {
        Ok(Some(Ok(message))) => {
            tracing::info!("{message}");
            Reply::json(StatusCode::OK, &ActionAnswer { message: Some(message), error: None })
        }
        Ok(Some(Err(error))) => {
            tracing::warn!("not done: {error}");
            Reply::error(StatusCode::CONFLICT, error)
        }
        Ok(None) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, "the cluster's store is being started anew")
        }
        Err(_) => Reply::error(StatusCode::SERVICE_UNAVAILABLE, "the cluster's store does not answer"),
    }
}

fn status(node: &Node) -> Status {
    let now = boot_time();
    let config = node.config();
    let cluster = node.cluster.borrow();
    let member = cluster.member.as_ref();
    let pods = node.pods.borrow();
    let membership = member.and_then(Member::membership);
    let report = cluster.report.as_ref();
    let waiting = node.waiting();
    let identity = cluster.identity.as_ref();
    Status {
        problems: node.problems(),
        node: config.node_name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: identity.map(|identity| identity.instance.clone()).unwrap_or_default(),
        boot: identity.map(|identity| identity.boot.clone()).unwrap_or_default(),
        uptime_seconds: node.started.elapsed().as_secs(),
        ready: waiting.is_empty(),
        waiting,
        refuse: member.and_then(|member| member.refusal(now)),
        store: member.map(|member| {
            let kind = config.cluster.as_ref().map(|cluster| cluster.store.kind().to_owned());
            StoreStatus { kind: kind.unwrap_or_default(), ..member.store_status(now) }
        }),
        underlay: underlay(&cluster),
        subnets: membership.map(|membership| membership.subnets.clone()).unwrap_or_default(),
        generation: membership.map_or(0, |membership| membership.generation),
        store_addresses: membership.map(|membership| membership.addresses.clone()).unwrap_or_default(),
        config: member.and_then(Member::snapshot).map(|snapshot| snapshot.config.clone()),
        receives: report
            .map(|report| report.announcement.receives.iter().map(|vtep| vtep.encapsulation).collect())
            .unwrap_or_default(),
        sends: report.and_then(|report| report.announcement.sends),
        probe_port: (config.probes.enabled && node.probes.taken().is_none()).then_some(config.probes.port),
        devices: report.map(|report| report.devices.clone()).unwrap_or_default(),
        adopted: adopted(&cluster),
        peers: report.map(|report| report.counts).unwrap_or_default(),
        pods: pods.counts,
        addresses: pods.usage.clone(),
        dataplane: DataplaneStatus {
            is_in_sync: report.is_some_and(|report| report.in_sync),
            last_pass_seconds: cluster.last_pass.map(|(at, _)| at.elapsed().as_secs_f64()),
            last_pass_millis: cluster.last_pass.map_or(0.0, |(_, took)| took.as_secs_f64() * 1000.0),
            passes: cluster.passes,
            operations: cluster.operations,
            failures: cluster.failures,
            errors: report
                .map(|report| report.failures.iter().take(5).map(ToString::to_string).collect())
                .unwrap_or_default(),
            repairs: cluster.repairs.clone(),
        },
    }
}

/// What was another program's, once the kernel has it as this node wants it.
fn adopted(cluster: &crate::node::Cluster) -> Vec<String> {
    let in_order = cluster.report.as_ref().filter(|report| report.in_sync && report.barred.is_none());
    let Some(desired) = in_order.and_then(|report| report.desired.as_ref()) else { return Vec::new() };
    let devices = desired.devices.iter().filter(|device| device.is_adopted);
    let bridge = cluster.adoption.as_ref().and_then(|adoption| adoption.bridge.as_deref());
    let bridge = bridge.filter(|name| desired.bridge.as_ref().is_some_and(|bridge| bridge.name == *name));
    devices.map(|device| device.id.name()).chain(bridge).map(str::to_owned).collect()
}

fn underlay(cluster: &crate::node::Cluster) -> UnderlayStatus {
    let Some(report) = &cluster.report else { return UnderlayStatus::default() };
    let links = &report.underlay.links;
    let first = links.first();
    UnderlayStatus {
        interface: first.map(|link| link.name.clone()),
        addresses: links.iter().map(|link| link.address).collect(),
        mtu: links.iter().map(|link| link.mtu).min(),
        why: first.is_none().then(|| "no link leads to other nodes".to_owned()),
    }
}

/// The name in `name=…`.
fn name_asked(query: &str) -> Option<&str> {
    query.split('&').find_map(|part| part.strip_prefix("name="))
}

/// All nodes, or that one, as this node sees them.
async fn peers(node: &Node, only: Option<&str>) -> Result<Vec<PeerStatus>, String> {
    let asked = node.cluster.borrow().overlay.as_ref().map(Overlay::peers);
    let mut peers = match asked {
        Some(heard) => timeout(PEERS_WITHIN, heard)
            .await
            .map_err(|_| "the thread that keeps the overlay does not answer")?
            .unwrap_or_default(),
        None => Vec::new(),
    };
    let cluster = node.cluster.borrow();
    let Some(member) = &cluster.member else { return Ok(peers) };
    // Those that the overlay does not know, because it has not been made yet, or could not be.
    if let Some(snapshot) = member.snapshot() {
        let known: BTreeMap<String, ()> = peers.iter().map(|peer| (peer.record.name.clone(), ())).collect();
        let own = cluster.identity.as_ref().map(|identity| identity.name.as_str());
        for record in snapshot.nodes.values().filter(|record| !known.contains_key(&record.name)) {
            let is_self = own == Some(record.name.as_str());
            peers.push(PeerStatus {
                record: (**record).clone(),
                is_self,
                is_present: None,
                state: if is_self { PeerState::Own } else { PeerState::Unreachable },
                paths: Vec::new(),
                problems: Vec::new(),
                probes: Vec::new(),
            });
        }
    }
    peers.retain(|peer| only.is_none_or(|only| peer.record.name == only));
    peers.sort_by(|a, b| a.record.name.cmp(&b.record.name));
    let probes = node.probes.statuses();
    for peer in &mut peers {
        peer.is_present = member.absent().map(|absent| !absent.contains(&peer.record.name));
        peer.probes = probes.iter().filter(|probe| probe.node == peer.record.name).cloned().collect();
    }
    Ok(peers)
}

fn pod(lease: &Lease) -> PodStatus {
    let attachment = &lease.attachment;
    let pod = attachment.pod.as_ref();
    let state = match lease.state {
        LeaseState::Reserved => "reserved",
        LeaseState::Attached => "attached",
        LeaseState::Deleting => "deleting",
    };
    PodStatus {
        network: attachment.owner.network.clone(),
        namespace: pod.map(|pod| pod.namespace.clone()),
        name: pod.map(|pod| pod.name.clone()),
        container: attachment.owner.container.clone(),
        ifname: attachment.owner.ifname.clone(),
        state: state.to_owned(),
        addresses: attachment.addresses.iter().map(|address| address.address).collect(),
        link: attachment.link.clone(),
        bridge: attachment.bridge.clone(),
        netns: Some(attachment.netns.clone()).filter(|netns| !netns.is_empty()),
        mac: attachment.mac.map(|mac| mac.to_string()),
        ports: lease.ports().map(|port| format!("{port}->{}", port.container_port)).collect(),
    }
}
