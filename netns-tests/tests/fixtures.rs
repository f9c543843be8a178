//! The calls that real runtimes made, replayed against podwire in the order in which they were recorded.
//!
//! A recorded call of the reference `bridge` goes to podwire with `"type": "podwire"` and is otherwise as it was, in a
//! node where the network namespaces have the recorded names. Network policy of this release: `ipMasq: true` is refused
//! by ADD, so such an ADD is made twice, as recorded (refused, nothing changed) and without that key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use podwire_netns_tests::network::leases;
use podwire_netns_tests::{Answer, Lab, LabError, Node, PluginCall, Pod, Result};
use serde_json::{Value, json};

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
        let plugin = if self.plugin == "loopback" { "loopback" } else { "podwire" };
        let call = PluginCall::new(plugin, &self.command).stdin(stdin);
        self.env.iter().fold(call, |call, (name, value)| call.env(name, value))
    }
}

/// The state of a replay: what the runtime would know.
struct Replay {
    node: Node,
    pods: BTreeMap<String, Pod>,
    /// By container: its last ADD that was answered, and the answer.
    attached: BTreeMap<String, (PluginCall, Value)>,
}

fn replay(runtime: &str) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(runtime);
    let mut files = Vec::new();
    json_files(&dir, &mut files)?;
    files.sort();
    assert!(files.len() >= 9, "{} has only {} calls", dir.display(), files.len());
    let node = Lab::new(runtime)?.node("n")?;
    let mut replay = Replay { node, pods: BTreeMap::new(), attached: BTreeMap::new() };
    for file in files {
        let name = file.strip_prefix(&dir).unwrap_or(&file).display().to_string();
        let call = Recorded::read(file)?;
        replay.step(&call).map_err(LabError::because(format!("{runtime}/{name}")))?;
    }
    replay.finish()
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
    fn step(&mut self, call: &Recorded) -> Result<()> {
        self.arrange(call)?;
        let mut stdin = call.stdin.clone();
        match call.plugin.as_str() {
            "portmap" | "bandwidth" => return self.foreign(call),
            "bridge" if stdin["type"] == "bridge" => stdin["type"] = json!("podwire"),
            _ => {}
        }
        match call.command.as_str() {
            "ADD" => self.add(call, stdin),
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
                self.call(&call.call(&accepted(stdin)))?.ok().map(|_| ())
            }
            "STATUS" => self.call(&call.call(&accepted(stdin)))?.ok().map(|_| ()),
            "GC" => {
                // cnitool names no valid attachments at all, and that is no word about any.
                self.call(&call.call(&accepted(stdin)))?.ok()?;
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

    fn add(&mut self, call: &Recorded, stdin: Value) -> Result<()> {
        if stdin["ipMasq"] == true {
            let before = self.node.links()?;
            let (code, message) = self.call(&call.call(&stdin))?.error()?;
            if code != 2 || !message.contains("ipMasq") {
                return Err(LabError::new(format!("ipMasq was not refused: {code} {message}")));
            }
            assert_eq!(self.node.links()?, before, "a refused ADD made a link");
        }
        let made = call.call(&accepted(stdin));
        let result = self.call(&made)?.ok()?;
        if call.plugin == "loopback" {
            return Ok(());
        }
        let addresses = result["ips"].as_array().map_or(0, Vec::len);
        let wanted = call.stdin["ipam"]["ranges"].as_array().map_or(0, Vec::len);
        if addresses != wanted {
            return Err(LabError::new(format!("{wanted} range sets gave {addresses} addresses: {result}")));
        }
        self.attached.insert(call.container().to_owned(), (made, result));
        self.expect_attached()
    }

    /// A call of another plugin of the chain, misdirected: refused in words, or, for DEL, taken for a repetition.
    fn foreign(&mut self, call: &Recorded) -> Result<()> {
        let answer = self.call(&call.call(&call.stdin))?;
        if call.command == "DEL" && answer.process.status.success() {
            return Ok(());
        }
        let (code, message) = answer.error()?;
        let key = if call.plugin == "portmap" { "portMappings" } else { "bandwidth" };
        if code == 2 && message.contains(key) {
            return self.expect_attached();
        }
        Err(LabError::new(format!("a call of {} was answered with {code} {message}", call.plugin)))
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
        let veths: Vec<_> = links.iter().filter(|name| name.starts_with("pw")).collect();
        assert!(veths.is_empty(), "links stay: {veths:?}");
        for network in ["rtnet", "podman"] {
            assert_eq!(leases(&self.node, network)?, [""; 0], "leases of {network} stay");
        }
        Ok(())
    }
}

/// The configuration without the key that this release refuses.
fn accepted(mut stdin: Value) -> Value {
    if let Some(config) = stdin.as_object_mut() {
        config.remove("ipMasq");
    }
    stdin
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
