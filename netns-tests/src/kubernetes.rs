//! A Kubernetes control plane for the nodes of a cluster: the API on a node of its own on the underlay, over TLS, and in
//! each node what a pod with a service account finds there.
//!
//! The API is the stand-in of [`crate::apiserver`]. Everything between it and an agent is real: the address in the agent's
//! environment, the files of the account, the certificate, the token and its end.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::apiserver::{AGENT_TOKEN, Account, ApiServer, Fault, NodeSpec, ServerOptions, Tls};
use crate::cluster::{Meeting, Member, Options, node_name, range_lines, subnets};
use crate::error::{LabError, Result};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::node::{Node, NodeOptions};
use crate::process::wait_for;
use crate::underlay::{Underlay, Uplink};

/// The number of the control plane's node on the underlay.
const NUMBER: u8 = 220;
/// Where the API listens.
const PORT: u16 = 6443;
/// Where a pod finds its service account: /var/run/secrets/kubernetes.io/serviceaccount, without the link in it, which is
/// absolute.
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";
/// The annotation with what an agent says of its node.
pub const RECORD: &str = "podwire.dev/node";
/// The condition that keeps pods from a node without a network.
pub const UNAVAILABLE: &str = "NetworkUnavailable";

/// The API that nodes meet in; gone with its last clone.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    server: ApiServer,
    address: IpAddr,
    authority: String,
    tokens: Mutex<BTreeMap<String, Token>>,
    _uplink: Uplink,
    _node: Node,
}

/// A node's service account token, and how many it had before.
#[derive(Clone)]
struct Token {
    text: String,
    number: u32,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPlane").field(&self.0.address).finish()
    }
}

impl ControlPlane {
    /// Starts the API, without any Node.
    ///
    /// # Errors
    /// If its node, its certificate or its socket cannot be made.
    pub fn start(lab: &Lab, underlay: &Underlay) -> Result<Self> {
        let node =
            lab.node_with("control-plane", &NodeOptions { no_plugins: true, ..NodeOptions::default() })?;
        let uplink = underlay.attach(&node, NUMBER)?;
        let addresses = underlay.addresses(NUMBER);
        let address = *addresses.first().ok_or_else(|| LabError::new("the underlay gives no address"))?;
        let files = tempfile::Builder::new().prefix("kubernetes").tempdir_in(lab.dir());
        // It goes with the lab's directory.
        let files = files.map_err(LabError::because("make a directory for certificates"))?.keep();
        let tls = Tls::make(&files, &addresses, &["kubernetes.default.svc"])?;
        let authority = tls.ca().to_owned();
        // By descriptor: a node's namespace has no name.
        let network = format!("/proc/self/fd/{}", node.netns().as_fd().as_raw_fd());
        let server = ApiServer::start(&ServerOptions {
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT),
            network: Some(Arc::new(Netns::open(Path::new(&network))?)),
            tls: Some(tls),
            ..ServerOptions::default()
        })?;
        // Each agent has an account of its own.
        server.revoke(AGENT_TOKEN);
        let tokens = Mutex::default();
        Ok(Self(Arc::new(Inner { server, address, authority, tokens, _uplink: uplink, _node: node })))
    }

    /// The API itself: its objects, its faults, what it was asked.
    pub fn server(&self) -> &ApiServer {
        &self.0.server
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.0.address, PORT))
    }

    /// What a kubelet puts into the environment of each container.
    pub fn variables(&self) -> Vec<(String, String)> {
        let variable = |name: &str, value: String| (name.to_owned(), value);
        vec![
            variable("KUBERNETES_SERVICE_HOST", self.0.address.to_string()),
            variable("KUBERNETES_SERVICE_PORT", PORT.to_string()),
        ]
    }

    /// The lines of an agent's configuration for this API: those of the ConfigMap that a cluster has.
    pub fn agent_settings(&self, options: &Options) -> String {
        let ranges = range_lines(options.pods, "cluster.range");
        format!("[cluster]\nstore = \"kubernetes\"\nname = \"lab\"\n{}\n{ranges}", options.settings)
    }

    /// Makes a node of the cluster a Node, as a kubelet and the controller manager do, unless it is one, and gives its
    /// agent a service account.
    ///
    /// # Errors
    /// If the API refuses the Node, or the files cannot be written.
    pub fn admit(&self, member: &Member, underlay: &Underlay, options: &Options) -> Result<()> {
        if self.0.server.node(member.name()).is_none() {
            self.register(member.number(), &underlay.addresses(member.number()), options)?;
        }
        self.renew_token(member)
    }

    /// Registers the Node of that number, with its subnets and these addresses.
    ///
    /// # Errors
    /// If the API refuses it.
    pub fn register(&self, number: u8, addresses: &[IpAddr], options: &Options) -> Result<()> {
        let cidrs = subnets(options.pods, u16::from(number));
        self.0.server.create_node(&node_spec(&node_name(number), &cidrs, addresses)).map(drop)
    }

    /// Gives a node's agent another token, the way a kubelet does: a new directory, then a renamed link. The one before
    /// has ended.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn renew_token(&self, member: &Member) -> Result<()> {
        let name = member.name().to_owned();
        let token = {
            let mut tokens = self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let before = tokens.get(&name);
            let number = before.map_or(0, |before| before.number + 1);
            let token = Token { text: format!("token-{number}-of-{name}"), number };
            self.0.server.admit(&token.text, Account::agent().bound_to(&name));
            if let Some(before) = before {
                self.0.server.revoke(&before.text);
            }
            tokens.insert(name, token.clone());
            token
        };
        let data = format!("..data-{}", token.number);
        for (file, content) in
            [("token", token.text.as_str()), ("ca.crt", &self.0.authority), ("namespace", "podwire-system")]
        {
            member.node().write(format!("{ACCOUNT}/{data}/{file}"), content)?;
        }
        member.sh(&format!(
            "cd {ACCOUNT}; ln -sfn {data} ..new; mv -T ..new ..data
             for file in token ca.crt namespace; do ln -sfn ..data/$file $file; done"
        ))?;
        Ok(())
    }

    /// A Node's condition of that type: its status and its reason. Empty if it has none.
    pub fn condition(&self, node: &str, kind: &str) -> (String, String) {
        let condition = self.0.server.condition(node, kind).unwrap_or_default();
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    /// Waits until a Node says whether its network is unavailable.
    ///
    /// # Errors
    /// With what it says instead.
    pub fn says_unavailable(&self, node: &str, status: &str, limit: Duration) -> Result<String> {
        let mut last = (String::new(), String::new());
        let says = wait_for(limit, || {
            last = self.condition(node, UNAVAILABLE);
            last.0 == status
        });
        if says {
            return Ok(last.1);
        }
        Err(LabError::new(format!("{UNAVAILABLE} of {node} is {last:?} and not {status} after {limit:?}")))
    }

    /// The Events of a Node: reason and message of each.
    pub fn events_of(&self, node: &str) -> Vec<(String, String)> {
        let about = |event: &&Value| event["involvedObject"]["name"] == node;
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = self.0.server.events();
        events.iter().filter(about).map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }

    /// Waits until a Node has an Event whose reason or message contains that.
    ///
    /// # Errors
    /// With the Events that it has.
    pub fn tells(&self, node: &str, words: &str, limit: Duration) -> Result<(String, String)> {
        let mut found = None;
        let mut all = Vec::new();
        wait_for(limit, || {
            all = self.events_of(node);
            found = all
                .iter()
                .find(|(reason, message)| reason.contains(words) || message.contains(words))
                .cloned();
            found.is_some()
        });
        found.ok_or_else(|| LabError::new(format!("no Event of {node} says {words:?}: {all:?}")))
    }
}

/// A Node with those subnets and addresses.
pub fn node_spec(name: &str, cidrs: &[String], addresses: &[IpAddr]) -> NodeSpec {
    let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    NodeSpec::new(name).pod_cidrs(&cidrs).internal_ips(&addresses)
}

impl Meeting for ControlPlane {
    fn vanish(&mut self) -> Result<()> {
        self.0.server.set_fault(Fault::Refuse);
        Ok(())
    }

    fn come_back(&mut self) -> Result<()> {
        self.0.server.set_fault(Fault::None);
        Ok(())
    }
}
