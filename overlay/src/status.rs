//! What the agent says of itself: to `podwirectl` on the control socket, and to whoever asks `/healthz` and `/readyz`.
//!
//! Every field has a default, so that a `podwirectl` of another version reads what it knows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::cluster::{ClusterConfig, Encapsulation, IpFamily, NodeRecord};

/// `GET /v1/status`: this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// What an administrator should look at, the gravest first.
    pub problems: Vec<Notice>,
    /// The node's name in the cluster.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Which installation of the name it is; see [`Identity`](crate::store::Identity).
    pub instance: String,
    /// Which boot of the machine.
    pub boot: String,
    /// How long the agent has been running, in seconds.
    pub uptime_seconds: u64,
    /// Whether the node is a member with its dataplane and the store's content in place.
    pub ready: bool,
    /// What it waits for until then.
    pub waiting: Vec<String>,
    /// Why no new pods are taken; `None` if they are.
    pub refuse: Option<String>,
    /// Where the nodes meet; `None` for an agent without a cluster.
    pub store: Option<StoreStatus>,
    /// How others reach this node.
    pub underlay: UnderlayStatus,
    /// The subnets of this node's pods.
    pub subnets: Vec<IpNetwork>,
    /// See [`NodeRecord::generation`].
    pub generation: u64,
    /// See [`Membership::addresses`](crate::store::Membership::addresses).
    pub store_addresses: Vec<IpAddr>,
    /// The settings that all nodes share, as last heard.
    pub config: Option<ClusterConfig>,
    /// The segments that this node receives.
    pub receives: Vec<Encapsulation>,
    /// The one that it sends.
    pub sends: Option<Encapsulation>,
    /// The UDP port by which agents probe each other inside the overlay; `None`: this one does not.
    #[serde(default)]
    pub probe_port: Option<u16>,
    /// The VXLAN devices.
    pub devices: Vec<DeviceStatus>,
    /// Which links, the bridge last, were another program's and are in order as this node's.
    pub adopted: Vec<String>,
    /// The other nodes, counted.
    pub peers: PeerCounts,
    /// This node's pods, counted.
    pub pods: PodCounts,
    /// The addresses of each of its subnets.
    pub addresses: Vec<SubnetUsage>,
    /// What was done to the kernel.
    pub dataplane: DataplaneStatus,
}

/// Something that an administrator should know.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Notice {
    /// How grave it is.
    pub severity: Severity,
    /// What kind of problem, as one word for programs: `store`, `membership`, `record`, `dataplane`, `conflist`, `probe`.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What can be done about it; empty where the message says it.
    pub advice: String,
}

/// How grave a [`Notice`] is; the gravest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods do not start, or packets are lost.
    Error,
    /// Something is not as it should be, and pods do not feel it now.
    #[default]
    Warning,
    /// Good to know.
    Info,
}

/// See [`Status::store`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreStatus {
    /// What it is: `file`, `etcd` or `kubernetes`.
    pub kind: String,
    /// Its name and where it is: `etcd at https://10.0.0.1:2379`.
    pub description: String,
    /// Whether it answers.
    pub state: StoreState,
    /// Why it does not, or why it does not let this node in.
    pub why: Option<String>,
    /// For how long the state has been what it is, in seconds.
    pub since_seconds: u64,
    /// How long ago it was last heard of, in seconds; `None`: not since the agent started.
    pub last_sync_seconds: Option<u64>,
    /// Whether what is known of the cluster comes from the node's disk, and not from the store.
    pub is_remembered: bool,
}

/// See [`StoreStatus::state`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreState {
    /// It has not answered yet.
    #[default]
    Starting,
    /// It answers.
    Connected,
    /// It answers no more.
    Lost,
    /// It does not let this node join.
    Refused,
    /// It says that this node's subnets are another's.
    Fenced,
}

/// See [`Status::underlay`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnderlayStatus {
    /// The link by which others are reached; `None` if there is none.
    pub interface: Option<String>,
    /// The node's addresses on it.
    pub addresses: Vec<IpAddr>,
    /// Its MTU, in bytes.
    pub mtu: Option<u32>,
    /// Why there is none.
    pub why: Option<String>,
}

/// One VXLAN device of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// The family of the addresses between which its packets travel.
    pub underlay: IpFamily,
    /// Its segment.
    pub encapsulation: Encapsulation,
    /// Its MTU, in bytes.
    #[serde(default)]
    pub mtu: u32,
}

/// How many other nodes there are, by what is made of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerCounts {
    /// All in the store's snapshot but this one.
    pub total: usize,
    /// Through the tunnel.
    pub tunnel: usize,
    /// Without one.
    pub direct: usize,
    /// Known, and no way there.
    pub unreachable: usize,
    /// Left out because of what their records say.
    pub left_out: usize,
}

/// Leases of this node's pods by their state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCounts {
    /// Their ADD is under way.
    pub reserved: usize,
    /// They run.
    pub attached: usize,
    /// Their DEL is under way.
    pub deleting: usize,
}

/// How much of a subnet is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubnetUsage {
    /// The subnet.
    pub subnet: IpNetwork,
    /// How many addresses pods can have.
    pub total: u128,
    /// How many they have.
    pub used: u128,
    /// How many rest before they are given again, or are kept for an unknown owner.
    pub resting: u128,
}

/// See [`Status::dataplane`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataplaneStatus {
    /// Whether the last pass left everything as it should be.
    pub is_in_sync: bool,
    /// How long ago the last pass over everything ended, in seconds; `None`: there was none yet.
    pub last_pass_seconds: Option<f64>,
    /// How long it took, in milliseconds.
    pub last_pass_millis: f64,
    /// How many passes over everything there have been.
    pub passes: u64,
    /// How many changes were made in the kernel.
    pub operations: u64,
    /// How many of them failed.
    pub failures: u64,
    /// What the last pass failed by, a few of them.
    pub errors: Vec<String>,
    /// How often something was put back, by what had changed it.
    pub repairs: BTreeMap<String, u64>,
}

/// `GET /v1/nodes`: one node of the cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// What the store says of it.
    pub record: NodeRecord,
    /// Whether it is this node.
    #[serde(default)]
    pub is_self: bool,
    /// Whether it is connected to the store; `None` where the store cannot tell.
    #[serde(default)]
    pub is_present: Option<bool>,
    /// What is made of it.
    pub state: PeerState,
    /// How packets get to each of its subnets.
    #[serde(default)]
    pub paths: Vec<PathStatus>,
    /// Why it is left out or not reached, or what failed.
    #[serde(default)]
    pub problems: Vec<String>,
    /// What the last probes found, one for each family probed.
    #[serde(default)]
    pub probes: Vec<ProbeStatus>,
}

/// See [`PeerStatus::state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// It is this node.
    Own,
    /// Reached through the tunnel.
    Tunnel,
    /// Reached without one.
    Direct,
    /// There is no way there.
    Unreachable,
    /// Its record is left out.
    LeftOut,
}

/// How packets get to one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Whether without the tunnel.
    pub is_direct: bool,
    /// The link that they leave by.
    pub device: String,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// The route's MTU in bytes, where it is less than the link's.
    pub mtu: Option<u32>,
}

/// What probing one peer in one family found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStatus {
    /// The peer.
    pub node: String,
    /// The family of the probes' own packets, which is that of the pods.
    pub family: IpFamily,
    /// Whether the last round was answered, whole and by the right node.
    pub ok: bool,
    /// The median round trip of the last round, in milliseconds.
    #[serde(default)]
    pub rtt_millis: Option<f64>,
    /// Which part of the last probes was lost, 0 to 1.
    #[serde(default)]
    pub loss: f64,
    /// The largest packet that passed, in bytes with its IP header.
    #[serde(default)]
    pub largest_bytes: Option<u32>,
    /// How long ago the round was, in seconds.
    #[serde(default)]
    pub age_seconds: f64,
    /// What is wrong: unreachable, too small, damaged payload, another node answered.
    #[serde(default)]
    pub problem: Option<String>,
}

/// `GET /v1/pods`: one interface of a pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// The network.
    pub network: String,
    /// Namespace and name, where the runtime said so.
    pub namespace: Option<String>,
    /// See `namespace`.
    pub name: Option<String>,
    /// The container's id.
    pub container: String,
    /// The interface's name in the pod.
    pub ifname: String,
    /// `reserved`, `attached` or `deleting`.
    pub state: String,
    /// Its addresses.
    pub addresses: Vec<IpNetwork>,
    /// The host's end of its veth pair.
    pub link: Option<String>,
    /// The bridge that it is attached to.
    pub bridge: Option<String>,
    /// The path of its network namespace.
    pub netns: Option<String>,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Its ports on the node, such as `8080/tcp->80`.
    pub ports: Vec<String>,
}

/// The answer to an action, and to whatever failed: `message` with status 200, else `error`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActionAnswer {
    /// What was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `GET /healthz` and `GET /readyz` with `?json`; without it, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Whether all is well; the HTTP status is 200 then, else 503.
    pub ok: bool,
    /// What is not.
    pub problems: Vec<String>,
}
