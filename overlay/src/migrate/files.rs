//! What flannel and its plugin have left in files. PURE.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

/// `/run/flannel/subnet.env`: what flannel tells its plugin of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Where all pods are.
    pub networks: Vec<IpNetwork>,
    /// This node's subnets.
    pub subnets: Vec<IpNetwork>,
    /// The MTU of pods' interfaces, in bytes.
    pub mtu: Option<u32>,
    /// Whether flannel hides pods' addresses outside itself; else the bridge plugin does.
    pub masquerades: bool,
}

impl SubnetEnv {
    /// Reads the file's text. What is not understood is passed over: flannel writes no more than this plugin reads.
    pub fn parse(text: &str) -> Self {
        let mut env = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let networks =
                || value.split(',').filter_map(|part| part.trim().parse::<IpNetwork>().ok()).map(network);
            match key.trim() {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => env.networks.extend(networks()),
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => env.subnets.extend(networks()),
                "FLANNEL_MTU" => env.mtu = value.trim().parse().ok(),
                "FLANNEL_IPMASQ" => env.masquerades = value.trim() == "true",
                _ => {}
            }
        }
        env
    }
}

/// Without host bits: flannel writes its gateway for its subnet.
fn network(of: IpNetwork) -> IpNetwork {
    IpNetwork::new(of.network(), of.prefix()).unwrap_or(of)
}

/// The ending of a configuration that waits for the way back. No runtime reads it.
pub const ASIDE: &str = ".podwire-migrated";

/// A CNI configuration by which runtimes come to flannel's plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// Its file.
    pub path: PathBuf,
    /// The network's name.
    pub network: String,
    /// The bridge of the pods.
    pub bridge: String,
    /// host-local's directory of the network.
    pub leases: PathBuf,
    /// Where flannel's plugin keeps what it has told the bridge plugin, by container.
    pub told: PathBuf,
    /// What it adds to what the bridge plugin is told.
    delegate: Map<String, Value>,
    version: Option<String>,
    /// Why its pods cannot be taken over.
    pub problem: Option<String>,
}

impl Conflist {
    /// Reads a configuration; `None` if flannel's plugin is not in it.
    pub fn parse(path: &Path, text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        let plugins = match document.get("plugins").and_then(Value::as_array) {
            Some(plugins) => plugins.as_slice(),
            None => std::slice::from_ref(&document),
        };
        let is = |value: Option<&Value>, text: &str| value.and_then(Value::as_str) == Some(text);
        let plugin = plugins.iter().find(|plugin| is(plugin.get("type"), "flannel"))?;
        let delegate = plugin.get("delegate").and_then(Value::as_object).cloned().unwrap_or_default();
        let text =
            |key: &str, usual: &str| delegate.get(key).and_then(Value::as_str).unwrap_or(usual).to_owned();
        let (main, ipam) = (text("type", "bridge"), delegate.get("ipam"));
        let ipam_text = |key: &str, usual: &str| {
            ipam.and_then(|ipam| ipam.get(key)).and_then(Value::as_str).unwrap_or(usual).to_owned()
        };
        let keeper = ipam_text("type", "host-local");
        let problem = if main != "bridge" {
            Some(format!(
                "its pods are made by plugin {main:?}, and podwire goes on with those of \"bridge\" alone"
            ))
        } else if keeper != "host-local" {
            Some(format!(
                "its pods' addresses come from {keeper:?}, and podwire takes over those of \"host-local\" alone"
            ))
        } else {
            None
        };
        let network = document.get("name").and_then(Value::as_str).unwrap_or("cbr0").to_owned();
        let data =
            |key: &str, usual: &str| plugin.get(key).and_then(Value::as_str).unwrap_or(usual).to_owned();
        Some(Self {
            path: path.to_owned(),
            bridge: text("bridge", "cni0"),
            leases: Path::new(&ipam_text("dataDir", "/var/lib/cni/networks")).join(&network),
            told: data("dataDir", "/var/lib/cni/flannel").into(),
            network,
            version: document.get("cniVersion").and_then(Value::as_str).map(str::to_owned),
            delegate,
            problem,
        })
    }

    /// Its name while it waits for the way back.
    pub fn aside(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ASIDE);
        name.into()
    }

    /// What flannel's plugin would have told the bridge plugin about a pod of these subnets. Its DEL does nothing for a
    /// container that it knows no such words of, so pods that podwire made are given them on the way back.
    pub fn told_to_bridge(&self, env: &SubnetEnv) -> Value {
        let mut told = self.delegate.clone();
        let mut usual = |key: &str, value: Value| {
            told.entry(key).or_insert(value);
        };
        usual("type", json!("bridge"));
        usual("ipMasq", json!(!env.masquerades));
        usual("isGateway", json!(true));
        if let Some(mtu) = env.mtu {
            usual("mtu", json!(mtu));
        }
        let ranges: Vec<Value> =
            env.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
        let routes: Vec<Value> =
            env.networks.iter().map(|network| json!({ "dst": network.to_string() })).collect();
        let mut ipam = told.get("ipam").and_then(Value::as_object).cloned().unwrap_or_default();
        ipam.insert("type".to_owned(), json!("host-local"));
        ipam.insert("ranges".to_owned(), json!(ranges));
        ipam.insert("routes".to_owned(), json!(routes));
        told.insert("ipam".to_owned(), Value::Object(ipam));
        told.insert("name".to_owned(), json!(self.network));
        if let Some(version) = &self.version {
            told.insert("cniVersion".to_owned(), json!(version));
        }
        Value::Object(told)
    }
}

/// An address half a subnet behind the last one that host-local has given. podwire begins there: both give addresses for
/// the moment in which one configuration replaces the other, and meet only if half a node's pods start in it.
pub fn far_from(last: IpAddr, subnet: IpNetwork) -> IpAddr {
    match (last, subnet) {
        (IpAddr::V4(last), IpNetwork::V4(subnet)) => {
            let size = u64::from(subnet.size().max(2));
            let base = u32::from(subnet.network());
            let offset = (u64::from(u32::from(last).saturating_sub(base)) + size / 2) % size;
            IpAddr::V4(base.saturating_add(u32::try_from(offset).unwrap_or_default()).into())
        }
        (IpAddr::V6(last), IpNetwork::V6(subnet)) => {
            let base = u128::from(subnet.network());
            let half = 1_u128.checked_shl(u32::from(127 - subnet.prefix().min(127))).unwrap_or(1);
            IpAddr::V6((base | ((u128::from(last) ^ half) & (half | (half - 1)))).into())
        }
        _ => last,
    }
}
