//! A Kubernetes API server small enough for tests: Nodes, Pods, DaemonSets, Events and what else podwire looks at, with
//! the semantics of the real one, and with its faults on command.
//!
//! Objects have a uid, one counter numbers all changes, watches go on from any version that is still known. What it answers
//! has the shapes of a recorded Kubernetes 1.36 (`tests/kubernetes-1.36`); only `managedFields` are left out.
//!
//! ```no_run
//! # use podwire_netns_tests::apiserver::{ApiServer, Credentials, Fault, NodeSpec, ServerOptions};
//! # fn main() -> podwire_netns_tests::Result<()> {
//! let server = ApiServer::start(&ServerOptions::default())?;       // plain HTTP on a free port of 127.0.0.1
//! server.create_node(&NodeSpec::new("node-1").pod_cidrs(&["10.244.1.0/24"]).internal_ips(&["172.30.0.1"]))?;
//! let kubeconfig = server.kubeconfig(&Credentials::Token("agent-token"));
//! server.set_fault(Fault::Refuse);
//! # let _ = kubeconfig; Ok(()) }
//! ```

mod access;
mod admission;
mod failure;
mod journal;
mod kind;
mod patch;
mod request;
mod respond;
mod seed;
mod selector;
mod serve;
mod store;
mod tls;
mod watching;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::{LabError, Result};
use crate::netns::Netns;

use failure::Failure;
use kind::Resource;
use patch::Format;
use serve::{Command, Place, Shared};
use store::{Key, Preconditions, Store};

pub use access::{Account, Rule};
pub use admission::Part;
pub use journal::{Count, Request};
pub use kind::Kind;
pub use seed::NodeSpec;
pub use tls::Tls;

/// The token of the agents' account that every server knows at first.
pub const AGENT_TOKEN: &str = "agent-token";
/// The token of the administrator that every server knows at first.
pub const ADMIN_TOKEN: &str = "admin-token";

/// How a server is.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where it listens. `[::]` is both families; port 0 is a free one.
    pub listen: SocketAddr,
    /// The network namespace in which it listens; `None` is the caller's.
    pub network: Option<Arc<Netns>>,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// How often watches that want bookmarks get one.
    pub bookmarks: Duration,
    /// Whether watches may begin with all objects (`sendInitialEvents`). Older servers refuse that.
    pub streaming_lists: bool,
    /// How many bytes of changes are kept for watches, for each kind.
    pub history: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            network: None,
            tls: None,
            bookmarks: Duration::from_mins(1),
            streaming_lists: true,
            history: 64 << 20,
        }
    }
}

/// What is wrong with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nobody listens, and all connections are gone.
    Refuse,
    /// Connections are accepted and nothing is said any more, also not on those that were there. What was asked meanwhile is
    /// answered afterwards.
    Silent,
    /// Each answer, and each line of a watch, ends in its middle, with the connection.
    Cut,
    /// Each answer takes that long, half of it before its first byte, and so does each line of a watch.
    Slow(Duration),
    /// Each request is answered with that HTTP code: 500, 503, 429. Watches that are open go on.
    Fail(u16),
}

/// What a kubeconfig says of its user.
#[derive(Debug, Clone, Copy)]
pub enum Credentials<'a> {
    /// A token.
    Token(&'a str),
    /// The file in which the token is, as the client finds it.
    TokenFile(&'a Path),
}

/// A running server. It ends with this value.
pub struct ApiServer {
    shared: Arc<Shared>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
    ca: Option<String>,
}

impl ApiServer {
    /// Starts it, on a thread of its own. It listens when this returns.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn start(options: &ServerOptions) -> Result<Self> {
        let mut place = Place { network: options.network.clone(), at: options.listen };
        let listener = place.listen()?;
        let address = listener.local_addr().map_err(LabError::because("ask for a listener's address"))?;
        place.at = address;
        let shared = Arc::new(Shared::new(options));
        shared.accounts().insert(AGENT_TOKEN.to_owned(), Account::agent());
        shared.accounts().insert(ADMIN_TOKEN.to_owned(), Account::admin());
        let (commands, received) = mpsc::unbounded_channel();
        let acceptor = options.tls.as_ref().map(Tls::acceptor).transpose()?;
        let ca = options.tls.as_ref().map(|tls| tls.ca().to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LabError::because("make a runtime for the API server"))?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || runtime.block_on(serve::run(serving, place, listener, acceptor, received)))
            .map_err(LabError::because("start a thread for the API server"))?;
        Ok(Self { shared, commands: Some(commands), thread: Some(thread), address, ca })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as clients write it.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.ca.is_some() { "https" } else { "http" }, self.address)
    }

    /// A kubeconfig for clients that find the server where it listens.
    pub fn kubeconfig(&self, credentials: &Credentials<'_>) -> String {
        self.kubeconfig_at(&self.url(), credentials)
    }

    /// A kubeconfig for clients that find the server at another URL.
    ///
    /// # Panics
    /// If a token file's path is not Unicode.
    pub fn kubeconfig_at(&self, url: &str, credentials: &Credentials<'_>) -> String {
        let user = match credentials {
            Credentials::Token(token) => format!("token: {token}"),
            Credentials::TokenFile(path) => {
                format!("tokenFile: {}", path.to_str().expect("the path is Unicode"))
            }
        };
        let ca = self.ca.as_ref().map_or_else(String::new, |pem| {
            let data = serde_json::to_string(&ByteString(pem.clone().into_bytes())).expect("it is text");
            format!("    certificate-authority-data: {data}\n")
        });
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster:\n    server: {url}\n{ca}\
             users:\n- name: lab\n  user:\n    {user}\n\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: lab\n"
        )
    }

    /// The certificate of the authority that signed its own, in PEM; `None` over plain HTTP.
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    // --- who may come in ---

    /// Lets somebody come in with that token, or changes what they may do.
    pub fn admit(&self, token: &str, account: Account) {
        self.shared.accounts().insert(token.to_owned(), account);
    }

    /// Ends a token: requests with it are answered with 401. Watches that are open go on, as with a real server.
    pub fn revoke(&self, token: &str) {
        self.shared.accounts().remove(token);
    }

    /// Replaces a token by another of the same account.
    pub fn rotate(&self, old: &str, new: &str) {
        let mut accounts = self.shared.accounts();
        if let Some(account) = accounts.remove(old) {
            accounts.insert(new.to_owned(), account);
        }
    }

    // --- objects, without HTTP ---

    /// Creates an object. Where it says no namespace and its kind needs one, that is `default`.
    ///
    /// # Errors
    /// As the server would answer a client.
    pub fn create(&self, kind: Kind, object: Value) -> Result<Value> {
        let namespace = object["metadata"]["namespace"].as_str();
        let namespace =
            if kind.is_namespaced() { namespace.unwrap_or("default").to_owned() } else { String::new() };
        self.write(|store| store.create(Resource::of(kind), &namespace, object, serve::stamp()))
    }

    /// An object; `None` if there is none of that name. The namespace of Nodes is empty.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.store().text(Resource::of(kind), &key(namespace, name)).ok().map(|text| text.value())
    }

    /// All objects of a kind.
    pub fn list(&self, kind: Kind) -> Vec<Value> {
        self.store().all(kind).into_iter().map(|(_, text)| text.value()).collect()
    }

    /// Applies a strategic merge patch to an object or to its status.
    ///
    /// # Errors
    /// As the server would answer a client.
    pub fn patch(
        &self,
        kind: Kind,
        part: Part,
        (namespace, name): (&str, &str),
        patch: &Value,
    ) -> Result<Value> {
        let resource = Resource::of(kind);
        self.write(|store| {
            store.update(resource, part, &key(namespace, name), |old| {
                store::decoded_patch(resource, Format::Strategic.apply(&old, patch))
            })
        })
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        let wanted = Preconditions::default();
        self.write(|store| store.delete(Resource::of(kind), &key(namespace, name), &wanted)).map(drop)
    }

    /// Creates a Node.
    ///
    /// # Errors
    /// As the server would answer a client.
    pub fn create_node(&self, node: &NodeSpec) -> Result<Value> {
        self.create(Kind::Node, node.object())
    }

    /// A Node; `None` if there is none of that name.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.object(Kind::Node, "", name)
    }

    /// All Nodes.
    pub fn nodes(&self) -> Vec<Value> {
        self.list(Kind::Node)
    }

    /// Applies a strategic merge patch to a Node, without its status.
    ///
    /// # Errors
    /// As the server would answer a client.
    pub fn patch_node(&self, name: &str, patch: &Value) -> Result<Value> {
        self.patch(Kind::Node, Part::Main, ("", name), patch)
    }

    /// Applies a strategic merge patch to the status of a Node; `patch` has `status` at its top.
    ///
    /// # Errors
    /// As the server would answer a client.
    pub fn patch_node_status(&self, name: &str, patch: &Value) -> Result<Value> {
        self.patch(Kind::Node, Part::Status, ("", name), patch)
    }

    /// Deletes a Node.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        self.delete(Kind::Node, "", name)
    }

    /// A condition of a Node by its type.
    pub fn condition(&self, node: &str, kind: &str) -> Option<Value> {
        let node = self.node(node)?;
        node["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
    }

    /// An annotation of a Node.
    pub fn annotation(&self, node: &str, key: &str) -> Option<String> {
        self.node(node)?["metadata"]["annotations"][key].as_str().map(str::to_owned)
    }

    /// All Events, in the form of core/v1.
    pub fn events(&self) -> Vec<Value> {
        self.list(Kind::Event)
    }

    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.store().version()
    }

    /// Has each Node's conditions confirmed once in that time, evenly spread, as kubelets do. `None` ends it.
    pub fn heartbeats(&self, every: Option<Duration>) {
        self.command(Command::Heartbeats(every));
    }

    // --- faults ---

    /// Goes wrong in that way from now on.
    ///
    /// # Panics
    /// If its port has been taken while nobody listened.
    pub fn set_fault(&self, fault: Fault) {
        let (done, end) = std::sync::mpsc::channel();
        self.command(Command::Fault(fault, done));
        end.recv().expect("the API server listens again");
    }

    /// Forgets all changes until now: watches that want to go on from a version before are answered with 410. Those that are
    /// open and up to date go on.
    pub fn compact(&self) {
        self.store().compact();
        self.shared.wake();
    }

    /// Ends all watches that are open, in good order.
    pub fn drop_watches(&self) {
        self.shared.end_watches();
    }

    /// Closes all connections, whatever is under way on them.
    pub fn drop_connections(&self) {
        self.shared.end_connections();
    }

    /// See [`ServerOptions::streaming_lists`]. Watches that are open go on.
    pub fn set_streaming_lists(&self, offered: bool) {
        self.shared.offer_streaming_lists(offered);
    }

    // --- counting ---

    /// The requests since the start, or since they were last forgotten, oldest first; the last 100,000 of them.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.journal().requests()
    }

    /// How many requests of a verb (`list`) there were to a resource (`nodes`, `nodes/status`).
    pub fn count(&self, verb: &str, resource: &str) -> u64 {
        self.shared.journal().count(verb, resource).requests
    }

    /// All counts, by verb and resource. Bytes are those of bodies that were answered.
    pub fn counts(&self) -> Vec<((&'static str, String), Count)> {
        self.shared.journal().counts()
    }

    /// Begins to count anew.
    pub fn forget_requests(&self) {
        self.shared.journal().clear();
    }

    /// How many watches are open now.
    pub fn watches(&self) -> usize {
        self.shared.watches()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.shared.store()
    }

    fn write(
        &self,
        change: impl FnOnce(&mut Store) -> std::result::Result<Arc<store::Text>, Failure>,
    ) -> Result<Value> {
        let done = change(&mut self.store());
        self.shared.wake();
        let failed = |failure: Failure| LabError::new(failure.status()["message"].to_string());
        Ok(done.map_err(failed)?.value())
    }

    fn command(&self, command: Command) {
        let commands = self.commands.as_ref().expect("they end with this value");
        assert!(commands.send(command).is_ok(), "the API server ended");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed; whoever needed it has noticed.
            let _ = thread.join();
        }
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}
