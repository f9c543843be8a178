//! The calls that real runtimes made, replayed against podwire in the order in which they were recorded.
//!
//! A recorded call of the reference `bridge` goes to podwire with `"type": "podwire"` and is otherwise as it was, in a
//! node where the network namespaces have the recorded names. Where `portmap` and `bandwidth` came after it, podwire
//! gets what they were given too: it stands for the whole chain. What ADD answers is kept beside the calls
//! (`PODWIRE_UPDATE_FIXTURES=1` writes it). Besides, podwire takes the place of the one or the other of those two in a
//! chain of reference plugins.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use podwire_netns_tests::network::{leases, rules_of_pods};
use podwire_netns_tests::traffic::{Client, Port, Server};
use podwire_netns_tests::{Answer, Lab, LabError, Node, PluginCall, Pod, Result};
use serde_json::{Map, Value, json};

/// One recorded call.
struct Recorded {
    file: PathBuf,
    plugin: String,
    command: String,
    env: BTreeMap<String, String>,
    stdin: Value,
}

impl Recorded {
    fn read(file: PathBuf) -> Result<Self> {
        let what = format!("read {}", file.display());
        let text = fs::read(&file).map_err(LabError::because(what.clone()))?;
        let call: Value = serde_json::from_slice(&text).map_err(LabError::because(what.clone()))?;
        let env = serde_json::from_value(call["env"].clone()).map_err(LabError::because(what))?;
        let text = |key: &str| call[key].as_str().unwrap_or_default().to_owned();
        Ok(Self { plugin: text("plugin"), command: text("command"), env, stdin: call["stdin"].clone(), file })
    }

    fn netns(&self) -> Option<&str> {
        self.env.get("CNI_NETNS").and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str())
    }

    fn container(&self) -> &str {
        self.env.get("CNI_CONTAINERID").map_or("", String::as_str)
    }

    fn call(&self, stdin: &Value) -> PluginCall {
        self.call_of(if self.plugin == "loopback" { "loopback" } else { "podwire" }, stdin)
    }

    fn call_of(&self, plugin: &str, stdin: &Value) -> PluginCall {
        // The reference plugins run other programs.
        let call =
            PluginCall::new(plugin, &self.command).stdin(stdin).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        self.env.iter().fold(call, |call, (name, value)| call.env(name, value))
    }

    /// What the runtime asked of the plugin.
    fn wishes(&self) -> Map<String, Value> {
        self.stdin["runtimeConfig"].as_object().cloned().unwrap_or_default()
    }

    /// Whether podwire stands for it: it is part of the chain, and its wishes are in the call of the chain's main plugin.
    fn is_of_the_chain(&self) -> bool {
        self.plugin == "portmap" || self.plugin == "bandwidth"
    }
}

/// The calls of a runtime in their order, each with its name below the runtime's directory.
fn recorded(runtime: &str) -> Result<Vec<(String, Recorded)>> {
    let dir = fixtures().join(runtime);
    let mut files = Vec::new();
    json_files(&dir, &mut files)?;
    files.sort();
    assert!(files.len() >= 9, "{} has only {} calls", dir.display(), files.len());
    let name = |file: &Path| file.strip_prefix(&dir).unwrap_or(file).display().to_string();
    files.into_iter().map(|file| Ok((name(&file), Recorded::read(file)?))).collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// What their ADDs are answered.
fn expected() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("expected")
}

/// The state of a replay: what the runtime would know.
struct Replay {
    node: Node,
    pods: BTreeMap<String, Pod>,
    /// By container: its last ADD that was answered, and the answer.
    attached: BTreeMap<String, (PluginCall, Value)>,
    /// By call: what each ADD answered.
    answers: BTreeMap<String, Value>,
}

impl Replay {
    fn new(name: &str) -> Result<Self> {
        let node = Lab::new(name)?.node("n")?;
        Ok(Self { node, pods: BTreeMap::new(), attached: BTreeMap::new(), answers: BTreeMap::new() })
    }
}

fn replay(runtime: &str) -> Result<()> {
    let mut calls = recorded(runtime)?;
    // What the runtime asked of the chain it asks of podwire.
    for at in 0..calls.len() {
        let call = &calls[at].1;
        let of_the_chain = calls.iter().filter(|(_, other)| {
            call.plugin == "bridge"
                && other.is_of_the_chain()
                && other.file.parent() == call.file.parent()
                && other.command == call.command
                && other.container() == call.container()
        });
        let mut wishes = call.wishes();
        wishes.extend(of_the_chain.flat_map(|(_, other)| other.wishes()));
        if !wishes.is_empty() {
            calls[at].1.stdin["runtimeConfig"] = Value::Object(wishes);
        }
    }
    let mut replay = Replay::new(runtime)?;
    for (name, call) in calls.iter().filter(|(_, call)| !call.is_of_the_chain()) {
        replay.step(name, call).map_err(LabError::because(format!("{runtime}/{name}")))?;
    }
    expect_recorded(runtime, &replay.answers)?;
    replay.finish()
}

/// Compares what ADDs answered with what is kept in expected.
fn expect_recorded(runtime: &str, answers: &BTreeMap<String, Value>) -> Result<()> {
    let file = expected().join(format!("{runtime}.json"));
    let what = file.display().to_string();
    if std::env::var_os("PODWIRE_UPDATE_FIXTURES").is_some_and(|value| value == "1") {
        let text = serde_json::to_string_pretty(answers).map_err(LabError::because("print answers"))?;
        return fs::write(&file, text + "\n").map_err(LabError::because(format!("write {what}")));
    }
    let text = fs::read(&file).map_err(LabError::because(format!("read {what}")))?;
    let expected: BTreeMap<String, Value> =
        serde_json::from_slice(&text).map_err(LabError::because(format!("read {what}")))?;
    for (name, answer) in answers {
        assert_eq!(Some(answer), expected.get(name), "{runtime}/{name}");
    }
    assert_eq!(answers.len(), expected.len(), "{what} has answers to other calls");
    Ok(())
}

fn json_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(LabError::because(format!("list {}", dir.display())))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            json_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(())
}

impl Replay {
    fn step(&mut self, name: &str, call: &Recorded) -> Result<()> {
        self.arrange(call)?;
        let mut stdin = call.stdin.clone();
        if call.plugin == "bridge" && stdin["type"] == "bridge" {
            stdin["type"] = json!("podwire");
        }
        match call.command.as_str() {
            "ADD" => self.add(name, call, stdin),
            "DEL" => {
                self.call(&call.call(&stdin))?.ok()?;
                if call.plugin == "bridge" {
                    self.attached.remove(call.container());
                }
                Ok(())
            }
            "CHECK" => {
                // The recorded result is another plugin's: its host link has another name. Ours stands in.
                let known = self.attached.get(call.container());
                stdin["prevResult"] = known.map(|(_, result)| result.clone()).unwrap_or_default();
                self.call(&call.call(&stdin))?.ok().map(|_| ())
            }
            "STATUS" => self.call(&call.call(&stdin))?.ok().map(|_| ()),
            "GC" => {
                // cnitool names no valid attachments at all, and that is no word about any.
                self.call(&call.call(&stdin))?.ok()?;
                self.expect_attached()
            }
            "VERSION" => {
                let versions = self.call(&call.call(&stdin))?.ok()?;
                let supported = versions["supportedVersions"].as_array();
                let supported = supported.is_some_and(|all| all.iter().any(|version| version == "1.1.0"));
                if supported { Ok(()) } else { Err(LabError::new(format!("answered {versions}"))) }
            }
            other => Err(LabError::new(format!("no such command: {other}"))),
        }
    }

    /// Makes the network namespace that the call names, if it is an ADD, and takes it away where the runtime had.
    fn arrange(&mut self, call: &Recorded) -> Result<()> {
        let gone = call.file.to_string_lossy().contains("netns-gone");
        match (call.command.as_str(), call.netns()) {
            ("ADD", Some(name)) if !self.pods.contains_key(name) => {
                self.pods.insert(name.to_owned(), self.node.pod(name)?);
            }
            // The runtime sends an empty CNI_NETNS once it has removed the namespace.
            ("DEL", netns) if netns.is_none() || gone => {
                let known = self.attached.get(call.container());
                let sandbox = known.and_then(|(_, result)| sandbox(result));
                if let Some(pod) = sandbox.and_then(|name| self.pods.remove(&name)) {
                    pod.delete()?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, name: &str, call: &Recorded, stdin: Value) -> Result<()> {
        let made = call.call(&stdin);
        let result = self.call(&made)?.ok()?;
        self.answers.insert(name.to_owned(), without_macs(&result));
        if call.plugin == "loopback" {
            return Ok(());
        }
        let addresses = result["ips"].as_array().map_or(0, Vec::len);
        let wanted = call.stdin["ipam"]["ranges"].as_array().map_or(0, Vec::len);
        if addresses != wanted {
            return Err(LabError::new(format!("{wanted} range sets gave {addresses} addresses: {result}")));
        }
        self.attached.insert(call.container().to_owned(), (made, result));
        self.expect_attached()?;
        let wishes = stdin["runtimeConfig"].as_object();
        let pod = call.netns().and_then(|name| self.pods.get(name));
        match (wishes, pod) {
            (Some(wishes), Some(pod)) => expect_wishes(&self.node, pod, wishes),
            _ => Ok(()),
        }
    }

    /// Makes a call; a panic is never an answer.
    fn call(&self, call: &PluginCall) -> Result<Answer> {
        let answer = call.run(&self.node)?;
        let words = answer.process.err();
        if answer.process.signal().is_some() || words.contains("panicked at") {
            return Err(LabError::new(format!("the plugin crashed: {} {words}", answer.process.status)));
        }
        Ok(answer)
    }

    /// Every attachment whose namespace is still there has its host link.
    fn expect_attached(&self) -> Result<()> {
        let links = self.node.links()?;
        for (container, (_, result)) in &self.attached {
            let there = sandbox(result).is_some_and(|name| self.pods.contains_key(&name));
            let interfaces = result["interfaces"].as_array().into_iter().flatten();
            let mut host =
                interfaces.filter_map(|link| link["name"].as_str()).filter(|name| name.starts_with("pw"));
            if there && !host.any(|name| links.iter().any(|link| link == name)) {
                return Err(LabError::new(format!("the link of {container} is gone: {links:?}")));
            }
        }
        Ok(())
    }

    /// Takes away what the recording left in place, and looks that nothing stays.
    fn finish(self) -> Result<()> {
        for (call, _) in self.attached.values() {
            self.call(&call.clone().env("CNI_COMMAND", "DEL"))?.ok()?;
        }
        let links = self.node.links()?;
        let ours: Vec<_> =
            links.iter().filter(|name| name.starts_with("pw") || name.starts_with("pi")).collect();
        assert!(ours.is_empty(), "links stay: {ours:?}");
        assert_eq!(buckets(&self.node)?, 0);
        assert_eq!(rules_of_pods(&self.node)?, [""; 0]);
        for network in ["rtnet", "podman"] {
            assert_eq!(leases(&self.node, network)?, [""; 0], "leases of {network} stay");
        }
        Ok(())
    }
}

/// Host ports lead to the pod, and it is shaped both ways: what the recorded wishes ask for.
fn expect_wishes(node: &Node, pod: &Pod, wishes: &Map<String, Value>) -> Result<()> {
    for mapping in wishes.get("portMappings").and_then(Value::as_array).into_iter().flatten() {
        let number = |key: &str| mapping[key].as_u64().and_then(|port| u16::try_from(port).ok());
        let (Some(on_node), Some(in_pod)) = (number("HostPort"), number("ContainerPort")) else {
            return Err(LabError::new(format!("no ports: {mapping}")));
        };
        let any = Ipv4Addr::UNSPECIFIED;
        let local = Ipv4Addr::LOCALHOST;
        let (server, client) = match mapping["Protocol"].as_str() {
            Some("tcp") => (Port::tcp(any, in_pod), Port::tcp(local, on_node)),
            Some("udp") => (Port::udp(any, in_pod), Port::udp(local, on_node)),
            // There are kernels without SCTP: the rule must do.
            _ => {
                let rules = node.run("nft", &["list", "ruleset"])?.success("nft list ruleset")?.out();
                assert!(rules.contains(&on_node.to_string()), "{on_node} is not in {rules}");
                continue;
            }
        };
        let _server = Server::start(pod, server)?;
        assert_eq!(Client::at(node).hear(client)?.server, pod.name(), "{mapping}");
    }
    if wishes.contains_key("bandwidth") {
        assert_eq!(buckets(node)?, 2, "each way has a token bucket");
    }
    Ok(())
}

/// How many token buckets a node's links have.
fn buckets(node: &Node) -> Result<usize> {
    let queues = node.run("tc", &["qdisc", "show"])?.success("tc qdisc show")?.out();
    Ok(queues.matches("qdisc tbf").count())
}

/// A result with its MAC addresses, which are random, left out.
fn without_macs(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if let Some(interface) = interface.as_object_mut() {
            interface.remove("mac");
        }
    }
    result
}

/// The file name of the namespace in a result.
fn sandbox(result: &Value) -> Option<String> {
    let interfaces = result["interfaces"].as_array()?;
    let path = interfaces.iter().find_map(|link| link["sandbox"].as_str().filter(|path| !path.is_empty()))?;
    Some(Path::new(path).file_name()?.to_str()?.to_owned())
}

#[test]
fn calls_of_containerd_1_6() -> Result<()> {
    replay("containerd-1.6.20")
}

#[test]
fn calls_of_containerd_1_7() -> Result<()> {
    replay("containerd-1.7.24")
}

#[test]
fn calls_of_containerd_2_1() -> Result<()> {
    replay("containerd-2.1.9")
}

#[test]
fn calls_of_podman_4_3() -> Result<()> {
    replay("podman-4.3.1")
}

#[test]
fn calls_of_cnitool() -> Result<()> {
    replay("libcni-1.1")
}

/// A pod of containerd's with the reference plugins and podwire in the place of `ours`, all of them called as recorded.
fn replay_chain(runtime: &str, ours: &str) -> Result<()> {
    let calls = recorded(runtime)?;
    let chain = |scene: &'static str| {
        calls.iter().filter(move |(name, call)| name.starts_with(scene) && call.plugin != "loopback")
    };
    let mut replay = Replay::new(&format!("{runtime}-{ours}"))?;
    let mut result = Value::Null;
    let mut wishes = Map::new();
    for (name, call) in chain("02-run").chain(chain("05-stop")) {
        let what = || LabError::because(format!("{ours} is podwire: {runtime}/{name}"));
        if call.command == "ADD" {
            replay.arrange(call)?;
        }
        let mut stdin = call.stdin.clone();
        if stdin.get("prevResult").is_some() {
            stdin["prevResult"] = result.clone();
        }
        if stdin["cniVersion"] == "1.1.0" {
            // Debian's reference plugins end there.
            stdin["cniVersion"] = json!("1.0.0");
        }
        let is_ours = call.plugin == ours;
        if is_ours {
            stdin["type"] = json!("podwire");
        }
        let plugin = if is_ours { "podwire" } else { call.plugin.as_str() };
        let answer = replay.call(&call.call_of(plugin, &stdin))?.ok().map_err(what())?;
        if call.command == "ADD" {
            if is_ours {
                // An empty dns may be left out.
                let mut passed = result.clone();
                if passed["dns"] == json!({}) {
                    passed.as_object_mut().map(|passed| passed.remove("dns"));
                }
                assert_eq!(answer, passed, "podwire changed the result of the chain");
            }
            result = answer;
            wishes.extend(call.wishes());
            if call.plugin == "bandwidth" {
                let pod = call.netns().and_then(|name| replay.pods.get(name));
                expect_wishes(&replay.node, pod.ok_or_else(|| LabError::new("no pod"))?, &wishes)
                    .map_err(what())?;
            }
        }
    }
    assert_eq!(buckets(&replay.node)?, 0);
    assert_eq!(leases(&replay.node, "rtnet")?, [""; 0]);
    let rules = replay.node.run("nft", &["list", "ruleset"])?.success("nft list ruleset")?.out();
    for port in ["18081", "15353", "19999"] {
        assert!(!rules.contains(port), "{port} stays: {rules}");
    }
    Ok(())
}

#[test]
fn podwire_in_the_place_of_portmap() -> Result<()> {
    for runtime in ["containerd-1.6.20", "containerd-1.7.24", "containerd-2.1.9"] {
        replay_chain(runtime, "portmap")?;
    }
    Ok(())
}

#[test]
fn podwire_in_the_place_of_bandwidth() -> Result<()> {
    for runtime in ["containerd-1.6.20", "containerd-1.7.24", "containerd-2.1.9"] {
        replay_chain(runtime, "bandwidth")?;
    }
    Ok(())
}
