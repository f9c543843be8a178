//! The agent's configuration: a file's text, the environment and flags become values that need no further check. PURE.
//!
//! A flag goes before the environment, that before the file, that before the default. Whatever is wrong is told at
//! once, each mistake with where it stands, the value, and what is allowed there.

pub(crate) mod document;
mod etcd;
mod keys;
pub(crate) mod layers;
pub(crate) mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use document::{Field, Place};
use layers::Layers;
use tracing_subscriber::EnvFilter;

use crate::cluster::ClusterConfig;

pub use document::Mistake;
pub use etcd::Etcd;
pub use keys::KEYS;
pub use layers::Key;

/// What all variables of the environment begin with that set a key.
pub const VARIABLES: &str = "PODWIRED_";
/// Where the file is unless a flag or [`FILE_VARIABLE`] says otherwise.
pub const DEFAULT_FILE: &str = "/etc/podwire/podwired.toml";
/// The variable that names the file.
pub const FILE_VARIABLE: &str = "PODWIRED_CONFIG";

/// Everything that the agent is told about how to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name in the cluster: the host's unless given.
    pub node_name: String,
    /// What outlives a reboot.
    pub state_dir: PathBuf,
    /// What does not: sockets, and what plugins read.
    pub run_dir: PathBuf,
    /// What is logged, and how.
    pub log: Log,
    /// The cluster that this node belongs to. `None`: it holds pods' addresses, and other nodes do not concern it.
    pub cluster: Option<Cluster>,
    /// By which link and addresses other nodes are reached.
    pub overlay: Overlay,
    /// The network of this node's pods, as runtimes are told about it.
    pub network: Network,
    /// Where metrics and health are to be had.
    pub telemetry: Telemetry,
    /// How paths to other nodes are tried.
    pub probes: Probes,
}

/// See [`Config::log`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How each line looks.
    pub format: LogFormat,
    /// What is logged, as [`EnvFilter`] takes it.
    pub level: String,
}

/// See [`Log::format`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text.
    #[default]
    Text,
    /// A JSON object.
    Json,
}

/// See [`Config::cluster`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Where its nodes meet.
    pub store: Store,
    /// Whether the node gives its subnets back when the agent ends.
    pub leave_at_shutdown: bool,
}

/// See [`Cluster::store`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// In a peers file.
    File {
        /// The file.
        path: PathBuf,
    },
    /// In etcd.
    Etcd(Box<Etcd>),
    /// As the Nodes of a Kubernetes cluster.
    Kubernetes(Box<Kubernetes>),
}

impl Store {
    /// Its name in the configuration.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Etcd(_) => "etcd",
            Self::Kubernetes(_) => "kubernetes",
        }
    }
}

/// How Kubernetes is reached, and what the cluster is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// A file that says where the API server is and who this node is; `None`: the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// Whether nodes that flannel runs on are peers, and this one is theirs.
    pub flannel_peers: bool,
    /// The settings that all nodes share: each node has them in its own file, all the same.
    pub shared: ClusterConfig,
}

/// See [`Config::overlay`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The link's name; `None`: that of the default route.
    pub interface: Option<String>,
    /// This node's addresses, one for each family at most; empty: those of the link.
    pub addresses: Vec<IpAddr>,
}

/// See [`Config::network`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name in the CNI configuration.
    pub name: String,
    /// The bridge that this node's pods are on.
    pub bridge: String,
    /// The CNI configuration that the agent writes when it is ready; `None`: it is written by somebody else.
    pub conflist: Option<PathBuf>,
    /// Whether what pods send out of the cluster goes out under the node's address.
    pub masquerade: bool,
    /// Whether a pod reaches its own host ports and services.
    pub hairpin: bool,
    /// Whether a pod can send from its own MAC address alone.
    pub mac_check: bool,
    /// Whether a pod can send from its own IP addresses alone. Implies [`Network::mac_check`].
    pub address_check: bool,
    /// Whether runtimes give pods host ports.
    pub port_mappings: bool,
    /// Whether runtimes limit pods' bandwidth.
    pub bandwidth: bool,
}

/// See [`Config::telemetry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// The address; `None`: nowhere. Without a cluster there is none unless it is asked for.
    pub listen: Option<SocketAddr>,
}

/// See [`Config::probes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probes {
    /// Whether they are.
    pub enabled: bool,
    /// How often a peer is tried.
    pub interval: Duration,
    /// For how long an answer is waited.
    pub timeout: Duration,
    /// How many peers are tried in an interval, taken at random where there are more.
    pub peers: usize,
    /// The UDP port on nodes' addresses inside the overlay.
    pub port: u16,
}

/// What a configuration is made of.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The file, if there is one.
    pub file: Option<SourceFile<'a>>,
    /// The environment; what does not begin with [`VARIABLES`] is passed over.
    pub environment: &'a BTreeMap<String, String>,
    /// What the command line sets.
    pub flags: &'a [Flag],
    /// The host's name.
    pub host_name: &'a str,
}

/// A file that has been read.
#[derive(Debug, Clone, Copy)]
pub struct SourceFile<'a> {
    /// What errors call it.
    pub name: &'a str,
    /// Its content.
    pub text: &'a str,
}

/// A value given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// As it was given, for errors: `--log-level`.
    pub shown: String,
    /// The key that it sets.
    pub key: String,
    /// The value's text.
    pub value: String,
}

/// A configuration, and where each part of it comes from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// The value of each key, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
    /// What is no mistake, but odd.
    pub notices: Vec<String>,
}

/// A key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// Its value as TOML.
    pub value: String,
    /// Where it was given: `default`, a file with a line, a variable, a flag.
    pub origin: String,
}

impl Resolved {
    /// The keys that have another value in `newer`.
    pub fn changed(&self, newer: &Self) -> Vec<&'static str> {
        let differs = |(old, new): &(&Setting, &Setting)| old.value != new.value;
        self.settings.iter().zip(&newer.settings).filter(differs).map(|(old, _)| old.key).collect()
    }
}

/// Everything that is wrong with a configuration; a line for each mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Makes a configuration of what was given.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn resolve(sources: &Sources<'_>) -> Result<Resolved, ConfigErrors> {
        let mut layers = Layers::new(KEYS);
        if let Some(SourceFile { name, text }) = sources.file {
            layers.add_file(name, text);
        }
        let notices = add_environment(&mut layers, sources.environment);
        for flag in sources.flags {
            layers.add_text(&flag.key, &flag.value, Place::of(&flag.shown));
        }
        let config = read(&mut layers, sources.host_name);
        if !layers.is_given("node_name") {
            layers.add_text("node_name", &config.node_name, Place::of("the host's name"));
        }
        let settings = layers
            .iter()
            .map(|(key, located)| Setting {
                key,
                value: located.value.to_string(),
                origin: located.place.to_string(),
            })
            .collect();
        match layers.into_mistakes() {
            mistakes if mistakes.is_empty() => Ok(Resolved { config, settings, notices }),
            mistakes => Err(ConfigErrors(mistakes)),
        }
    }
}

/// A variable that means nothing is no mistake: Kubernetes makes some of its own from the names of services.
fn add_environment(layers: &mut Layers, environment: &BTreeMap<String, String>) -> Vec<String> {
    let mut unknown = Vec::new();
    for (variable, value) in environment.iter().filter(|(name, _)| name.starts_with(VARIABLES)) {
        match KEYS.iter().find(|key| key.variable(VARIABLES) == *variable) {
            Some(key) => layers.add_text(key.name, value, Place::of(variable)),
            None if variable == FILE_VARIABLE => {}
            None => unknown.push(format!("the environment has {variable}, which sets nothing")),
        }
    }
    unknown
}

fn read(layers: &mut Layers, host_name: &str) -> Config {
    let node_name = layers.read("node_name", |field| node_name(field, host_name));
    let cluster = read_cluster(layers);
    let listen = layers.read("telemetry.listen", |field| {
        field.parsed_unless_empty("an address with a port such as 127.0.0.1:9474, or empty for none")
    });
    let has_telemetry = cluster.is_some() || layers.is_given("telemetry.listen");
    let address_check = layers.read("network.address_check", switch);
    let config = Config {
        node_name,
        state_dir: layers.read("state_dir", directory),
        run_dir: layers.read("run_dir", directory),
        log: Log {
            format: layers.read("log.format", |field| {
                field.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
            }),
            level: layers.read("log.level", level),
        },
        cluster,
        overlay: Overlay {
            interface: layers.read("overlay.interface", interface),
            addresses: layers.read("overlay.addresses", own_addresses),
        },
        network: Network {
            name: layers.read("network.name", network_name),
            bridge: layers.read("network.bridge", bridge),
            conflist: layers.read("network.conflist", conflist),
            masquerade: layers.read("network.masquerade", switch),
            hairpin: layers.read("network.hairpin", switch),
            mac_check: layers.read("network.mac_check", switch) || address_check,
            address_check,
            port_mappings: layers.read("network.port_mappings", switch),
            bandwidth: layers.read("network.bandwidth", switch),
        },
        telemetry: Telemetry { listen: listen.filter(|_| has_telemetry) },
        probes: read_probes(layers),
    };
    complain_of_ports(layers, &config);
    config
}

/// The kernel gives a port to one socket, and to a VXLAN device before the probes.
fn complain_of_ports(layers: &mut Layers, config: &Config) {
    let Config { cluster: Some(Cluster { store, .. }), probes, .. } = config else { return };
    let shared = match store {
        Store::File { .. } => None,
        Store::Etcd(etcd) => etcd.initial.as_ref(),
        Store::Kubernetes(kubernetes) => Some(&kubernetes.shared),
    };
    let Some(shared) = shared else { return };
    if layers.has_mistakes() || !shared.ports().any(|port| port == probes.port) {
        return;
    }
    let other = if shared.encapsulation.port == probes.port {
        "cluster.encapsulation.port"
    } else {
        "cluster.also_receive"
    };
    let at = if layers.is_given("probes.port") { "probes.port" } else { other };
    let why = format!("{} is in {other} too: tunnel and probes need a UDP port each", probes.port);
    layers.complain(at, "probes.port", why);
}

/// Which kind of store is named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    None,
    File,
    Etcd,
    Kubernetes,
}

fn read_cluster(layers: &mut Layers) -> Option<Cluster> {
    let words =
        [("none", Kind::None), ("file", Kind::File), ("etcd", Kind::Etcd), ("kubernetes", Kind::Kubernetes)];
    let kind = layers.read("cluster.store", |field| field.choice(&words));
    // Its keys are checked also where no store uses them.
    let path = layers.read("cluster.file.path", required_file);
    let leave_at_shutdown = layers.read("cluster.leave_at_shutdown", switch);
    let kubeconfig = layers.read("cluster.kubernetes.kubeconfig", file);
    let flannel_peers = layers.read("cluster.kubernetes.flannel_peers", switch);
    let shared = shared::read(layers, "cluster.");
    let given = |layers: &Layers, what: fn(&str) -> bool| {
        KEYS.iter().map(|key| key.name).find(|key| what(key) && layers.is_given(key))
    };
    let store = match kind {
        Kind::None => {
            // Somebody expects a cluster, and would wonder why the node is alone.
            let other = |key: &str| key.starts_with("cluster.") && key != "cluster.store";
            if let Some(key) = given(layers, other).filter(|_| !layers.is_given("cluster.store")) {
                let why = format!(
                    "is missing while {key} is given: \"file\", \"etcd\", \"kubernetes\", or \"none\" for no cluster"
                );
                layers.complain(key, "cluster.store", why);
            }
            return None;
        }
        Kind::File => {
            if let Some(key) = given(layers, |key| keys::SHARED.contains(&key)) {
                let why =
                    format!("stands in the peers file where cluster.store is \"file\": {}", path.display());
                layers.complain(key, key, why);
            }
            Store::File { path }
        }
        Kind::Etcd => {
            let has_ranges = !shared.ranges.is_empty();
            if let Some(key) = given(layers, |key| keys::SHARED.contains(&key)).filter(|_| !has_ranges)
                && !layers.has_mistakes()
            {
                let why = format!(
                    "is missing while {key} is given: a cluster needs a range of addresses for its pods"
                );
                layers.complain(key, "cluster.range", why);
            }
            Store::Etcd(Box::new(etcd::read(layers, has_ranges.then_some(shared))))
        }
        Kind::Kubernetes => {
            if shared.ranges.is_empty() && !layers.has_mistakes() {
                let why = "is missing: the ranges that Kubernetes takes the nodes' podCIDRs from (--cluster-cidr of its \
                           controller manager), each with the prefix length of a node's part (--node-cidr-mask-size)";
                layers.complain("cluster.store", "cluster.range", why);
            }
            let useless = [
                ("cluster.reclaim_after_hours", shared.reclaim_after_seconds.is_some()),
                ("cluster.leave_at_shutdown", leave_at_shutdown),
            ];
            for (key, _) in useless.into_iter().filter(|(_, is_set)| *is_set) {
                let why = "is of no use where cluster.store is \"kubernetes\": a node has its podCIDRs for as long as \
                           Kubernetes has a Node of its name";
                layers.complain(key, key, why);
            }
            let shared = ClusterConfig { reclaim_after_seconds: None, ..shared };
            Store::Kubernetes(Box::new(Kubernetes { kubeconfig, flannel_peers, shared }))
        }
    };
    Some(Cluster { store, leave_at_shutdown })
}

fn read_probes(layers: &mut Layers) -> Probes {
    let interval: u64 = layers.read("probes.interval_seconds", |field| field.number(1..=3600, "seconds"));
    let timeout: u64 = layers.read("probes.timeout_ms", |field| field.number(1..=60_000, "milliseconds"));
    if timeout > interval * 1000 && !layers.has_mistakes() {
        let why = format!("{timeout} ms is more than probes.interval_seconds, {interval} s");
        layers.complain("probes.timeout_ms", "probes.timeout_ms", why);
    }
    Probes {
        enabled: layers.read("probes.enabled", switch),
        interval: Duration::from_secs(interval),
        timeout: Duration::from_millis(timeout),
        peers: layers.read("probes.peers", |field| field.number(1..=4096_u16, "peers").map(usize::from)),
        port: layers.read("probes.port", |field| field.number(1..=u16::MAX, "a UDP port")),
    }
}

fn node_name(field: &Field<'_>, host_name: &str) -> Result<String, Mistake> {
    const ALLOWED: &str =
        "a name of 1 to 253 letters, digits, '.', '_' and '-' that begins with a letter or digit";
    match field.text(ALLOWED)? {
        "" if shared::is_name(host_name) => Ok(host_name.to_owned()),
        "" => Err(field.mistake(format!("is not given, and the host's name {host_name:?} is not {ALLOWED}"))),
        name if shared::is_name(name) => Ok(name.to_owned()),
        _ => Err(field.wrong(ALLOWED)),
    }
}

fn level(field: &Field<'_>) -> Result<String, Mistake> {
    const ALLOWED: &str = "error, warn, info, debug, trace, or a list such as info,podwired=debug";
    let level = field.text(ALLOWED)?;
    // EnvFilter panics at some texts with longer characters.
    let is_plain = !level.trim().is_empty() && level.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    match EnvFilter::try_new(if is_plain { level } else { "" }) {
        Ok(_) if is_plain => Ok(level.to_owned()),
        _ => Err(field.wrong(ALLOWED)),
    }
}

fn switch(field: &Field<'_>) -> Result<bool, Mistake> {
    field.boolean()
}

fn directory(field: &Field<'_>) -> Result<PathBuf, Mistake> {
    const ALLOWED: &str = "a directory's absolute path";
    absolute(field, ALLOWED)?.ok_or_else(|| field.wrong(ALLOWED))
}

fn file(field: &Field<'_>) -> Result<Option<PathBuf>, Mistake> {
    absolute(field, "a file's absolute path")
}

fn required_file(field: &Field<'_>) -> Result<PathBuf, Mistake> {
    file(field)?.ok_or_else(|| field.wrong("a file's absolute path"))
}

fn absolute(field: &Field<'_>, allowed: &str) -> Result<Option<PathBuf>, Mistake> {
    match field.text(allowed)? {
        "" => Ok(None),
        path if path.starts_with('/') && !path.contains('\0') => Ok(Some(PathBuf::from(path))),
        _ => Err(field.wrong(allowed)),
    }
}

fn optional(field: &Field<'_>) -> Result<Option<String>, Mistake> {
    Ok(Some(field.text("a text")?.to_owned()).filter(|text| !text.is_empty()))
}

fn conflist(field: &Field<'_>) -> Result<Option<PathBuf>, Mistake> {
    const ALLOWED: &str = "an absolute path that ends in .conflist, or empty for none";
    match absolute(field, ALLOWED)? {
        // libcni reads no others as lists.
        Some(path) if path.extension().is_none_or(|extension| extension != "conflist") => {
            Err(field.wrong(ALLOWED))
        }
        path => Ok(path),
    }
}

fn network_name(field: &Field<'_>) -> Result<String, Mistake> {
    const ALLOWED: &str = "a network's name: letters, digits, '.', '_' and '-', the first a letter or digit";
    let name = field.text(ALLOWED)?;
    if shared::is_name(name) { Ok(name.to_owned()) } else { Err(field.wrong(ALLOWED)) }
}

/// The kernel's rule (dev_valid_name), and no `%`, which it would replace by a number.
pub(crate) fn is_interface(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.chars().all(plain)
}

const INTERFACE: &str = "an interface's name of 1 to 15 characters";

fn interface(field: &Field<'_>) -> Result<Option<String>, Mistake> {
    match field.text(INTERFACE)? {
        "" => Ok(None),
        name if is_interface(name) => Ok(Some(name.to_owned())),
        _ => Err(field.wrong(INTERFACE)),
    }
}

fn bridge(field: &Field<'_>) -> Result<String, Mistake> {
    interface(field)?.ok_or_else(|| field.wrong(INTERFACE))
}

/// A node's own addresses: one for each family at most.
pub(crate) fn own_addresses(field: &Field<'_>) -> Result<Vec<IpAddr>, Mistake> {
    const ALLOWED: &str = "an address that other nodes reach";
    let mut addresses: Vec<IpAddr> = Vec::new();
    for element in field.list("addresses that other nodes reach")? {
        let address: IpAddr = element.parsed(ALLOWED)?;
        if !shared::is_host_address(address) {
            return Err(element.wrong(ALLOWED));
        }
        if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(
                element.mistake(format!("{address} is a second {family} address: give one of each family"))
            );
        }
        addresses.push(address);
    }
    Ok(addresses)
}
