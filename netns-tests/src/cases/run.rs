//! Replaying a table: each row and version on a node of its own, several at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::expect::Judge;
use super::step::{Call, Look, Previous, Stdin, Step, Text};
use super::{Case, Plugin};
use crate::lab::Lab;
use crate::node::Node;
use crate::plugin::{Answer, PluginCall, uses_reference};
use crate::pod::Pod;
use crate::process::finish;

/// Which programs a table is replayed against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// `podwire`, its IPAM in process.
    Podwire,
    /// Debian's `bridge` and `host-local`.
    Reference,
    /// Debian's `bridge` with `podwire-ipam`: what podwire does, in a form that the reference prints.
    IpamUnderBridge,
}

impl Subject {
    /// Podwire, or with `PODWIRE_REFERENCE=1` the reference.
    pub fn from_environment() -> Self {
        if uses_reference() { Self::Reference } else { Self::Podwire }
    }

    fn program(self, plugin: Plugin) -> &'static str {
        match (self, plugin) {
            (Self::Podwire, Plugin::Main) => "podwire",
            (Self::Podwire, Plugin::Loopback) => "loopback",
            (Self::Podwire | Self::IpamUnderBridge, Plugin::Ipam) => "podwire-ipam",
            (Self::Reference | Self::IpamUnderBridge, Plugin::Main) => "bridge",
            (Self::Reference, Plugin::Ipam) => "host-local",
            // Not by name: in /opt/cni/bin podwire stands in for it.
            (Self::Reference | Self::IpamUnderBridge, Plugin::Loopback) => "/usr/lib/cni/loopback",
        }
    }
}

/// How many rows are replayed at once: they wait for the kernel more than they compute.
const AT_ONCE: usize = 6;

/// Replays all rows in all their versions and reports every failure. `PODWIRE_CASE` restricts it to rows whose name
/// contains its value.
///
/// # Errors
/// With one paragraph for each row and version that failed.
pub fn replay(cases: &[Case], subject: Subject) -> Result<(), String> {
    let wanted = std::env::var("PODWIRE_CASE").unwrap_or_default();
    let chosen = cases.iter().filter(|case| case.name.contains(&wanted));
    let jobs: Vec<_> = chosen
        .flat_map(|case| {
            case.versions.list(subject != Subject::Podwire).into_iter().map(move |version| (case, version))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((case, version)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = Replay::run(case, version, subject) {
                        let text = format!("{:?} at {version} against {subject:?}:\n  {why}", case.name);
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(text);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    failures.sort();
    if failures.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {} replays failed\n\n{}", failures.len(), jobs.len(), failures.join("\n\n")))
}

/// An attachment that a row added.
struct Added {
    call: PluginCall,
    pod: &'static str,
    container: &'static str,
    ifname: &'static str,
    result: Value,
}

struct Replay<'a> {
    case: &'a Case,
    version: &'static str,
    subject: Subject,
    node: Node,
    pods: BTreeMap<&'static str, Pod>,
    added: Vec<Added>,
}

impl<'a> Replay<'a> {
    fn run(case: &'a Case, version: &'static str, subject: Subject) -> Result<(), String> {
        let node = Lab::new("case")
            .and_then(|lab| lab.node("node"))
            .map_err(|error| format!("no node: {error:?}"))?;
        let mut replay = Self { case, version, subject, node, pods: BTreeMap::new(), added: Vec::new() };
        for (index, step) in case.steps.iter().enumerate() {
            let name = match step {
                Step::Call(call) => format!("{} {}", call.verb, call.pod.unwrap_or_default()),
                Step::Script(script) | Step::Look(Look { script, .. }) => (*script).to_owned(),
            };
            replay.step(step).map_err(|why| format!("step {}, {}: {why}", index + 1, name.trim()))?;
        }
        // What the reference leaves where it differs is not ours to judge.
        if subject == Subject::Reference && case.steps.iter().any(Step::is_overridden) {
            return Ok(());
        }
        replay.clean_up().map_err(|why| format!("after the last step: {why}"))
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Call(call) if self.version < call.from => Ok(()),
            Step::Call(call) => self.call(call),
            Step::Script(script) => self.sh(script).map(drop),
            Step::Look(look) => {
                let script = self.with_ports(look.script)?;
                let printed = self.sh(&script)?;
                let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
                let text = look.reference.filter(|_| self.subject == Subject::Reference).unwrap_or(look.text);
                let (right, wanted) = match text {
                    Text::Is(text) => (printed == text, text),
                    Text::Has(text) => (printed.contains(text), text),
                    Text::Lacks(text) => (!printed.contains(text), text),
                };
                if right {
                    Ok(())
                } else {
                    Err(format!("expected {text:?} ({wanted:?}), printed {printed:?}"))
                }
            }
        }
    }

    fn sh(&self, script: &str) -> Result<String, String> {
        let done = self.node.run("sh", &["-ec", script]).map_err(|error| format!("{error:?}"))?;
        Ok(done.success("the script").map_err(|error| format!("{error:?}"))?.out())
    }

    /// Puts the name of the host's end of a pod's eth0 in place of each `{port:<pod>}`.
    fn with_ports(&self, script: &str) -> Result<String, String> {
        let mut text = script.to_owned();
        while let Some((before, (pod, after))) =
            text.split_once("{port:").and_then(|(b, rest)| Some((b, rest.split_once('}')?)))
        {
            let index =
                self.sh(&format!("ip -n {pod} -o link show eth0 | sed 's/.*@if\\([0-9]*\\):.*/\\1/'"))?;
            let links = self.node.ip(&["link"]).map_err(|error| format!("{error:?}"))?;
            let port =
                links.as_array().into_iter().flatten().find(|link| {
                    link["ifindex"].as_u64().is_some_and(|found| Ok(found) == index.trim().parse())
                });
            let port = port
                .and_then(|link| link["ifname"].as_str())
                .ok_or_else(|| format!("{pod}'s eth0 has no end on the host"))?;
            text = format!("{before}{port}{after}");
        }
        Ok(text)
    }

    fn call(&mut self, call: &Call) -> Result<(), String> {
        let prepared = self.prepare(call)?;
        let answer = self.answer(call, &prepared)?;
        let reference = self.subject == Subject::Reference;
        let expect = call.reference.as_ref().filter(|_| reference).unwrap_or(&call.expect);
        let added = |pod: &str| {
            self.added.iter().rev().find(|added| added.pod == pod).map(|added| added.result.clone())
        };
        let judge = Judge {
            version: self.version_of(call),
            verb: call.verb,
            reference: self.subject != Subject::Podwire,
            overridden: reference && call.reference.is_some(),
            ipam: self.case.plugin == Plugin::Ipam,
            added: &added,
        };
        judge.judge(expect, &answer)?;
        let container = call.container.or(call.pod);
        if let (Some(pod), Some(container)) = (call.pod, container) {
            let this = |added: &Added| added.container == container && added.ifname == call.ifname;
            match call.verb {
                "ADD" if answer.exit() == Some(0) => {
                    let result = answer.json.unwrap_or_default();
                    self.added.retain(|added| !(this(added) && added.pod == pod));
                    self.added.push(Added { call: prepared, pod, container, ifname: call.ifname, result });
                }
                "DEL" if answer.exit() == Some(0) => self.added.retain(|added| !this(added)),
                _ => {}
            }
        }
        Ok(())
    }

    fn version_of<'c>(&self, call: &'c Call) -> &'c str
    where
        'a: 'c,
    {
        match call.patch.get("cniVersion") {
            None => self.version,
            Some(version) => version.as_str().filter(|version| !version.is_empty()).unwrap_or("0.1.0"),
        }
    }

    fn prepare(&mut self, call: &Call) -> Result<PluginCall, String> {
        let mut config = json!({
            "cniVersion": self.version,
            "name": "net",
            "type": self.subject.program(Plugin::Main),
        });
        merge(&mut config, &self.case.config);
        merge(&mut config, &call.patch);
        if self.subject != Subject::Podwire || self.case.plugin == Plugin::Ipam {
            for key in ["type", "TYPE"] {
                if config["ipam"][key] == "host-local" {
                    config["ipam"][key] = self.subject.program(Plugin::Ipam).into();
                }
            }
        }
        // A runtime's PATH, in which the reference finds iptables and nft.
        let mut prepared = PluginCall::new(self.subject.program(self.case.plugin), call.verb)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(name) = call.pod {
            if !self.pods.contains_key(name) {
                self.pods.insert(name, self.node.pod(name).map_err(|error| format!("{error:?}"))?);
            }
            if let Some(pod) = self.pods.get(name) {
                prepared = prepared
                    .pod(pod)
                    .env("CNI_CONTAINERID", call.container.unwrap_or(name))
                    .env("CNI_IFNAME", call.ifname);
            }
            let previous = match &call.previous {
                Previous::None => None,
                Previous::Is(result) => Some(result.clone()),
                Previous::Kept => {
                    let container = call.container.unwrap_or(name);
                    let mine = self
                        .added
                        .iter()
                        .rev()
                        .find(|added| added.container == container && added.ifname == call.ifname);
                    mine.map(|added| added.result.clone())
                }
            };
            if let Some(result) = previous {
                merge(&mut config, &json!({ "prevResult": result }));
            }
        }
        for (name, value) in &call.env {
            prepared = match value {
                Some(value) => prepared.env(name, value),
                None => prepared.without(name),
            };
        }
        Ok(match call.stdin {
            Stdin::Config => prepared.stdin(&config),
            Stdin::Raw(text) => prepared.raw_stdin(text),
            Stdin::Directory | Stdin::Null => prepared,
        })
    }

    fn answer(&self, call: &Call, prepared: &PluginCall) -> Result<Answer, String> {
        let place = match call.stdin {
            Stdin::Config | Stdin::Raw(_) => {
                return prepared.run(&self.node).map_err(|error| format!("{error:?}"));
            }
            Stdin::Directory => "/",
            Stdin::Null => "/dev/null",
        };
        let (mut command, _) = prepared.command();
        command.stdin(Stdio::from(File::open(place).map_err(|error| format!("open {place}: {error}"))?));
        let began = Instant::now();
        let child = self.node.spawn(&mut command).map_err(|error| format!("{error:?}"))?;
        let process =
            finish(child, b"", began, crate::process::LIMIT).map_err(|error| format!("{error:?}"))?;
        let json = serde_json::from_slice(&process.stdout).ok();
        Ok(Answer { process, json })
    }

    /// Deletes what was added; then nothing may be left of it.
    fn clean_up(&mut self) -> Result<(), String> {
        for added in std::mem::take(&mut self.added) {
            let answer =
                added.call.env("CNI_COMMAND", "DEL").run(&self.node).map_err(|error| format!("{error:?}"))?;
            answer.ok().map_err(|error| format!("DEL {}: {error:?}", added.container))?;
        }
        if self.subject == Subject::IpamUnderBridge {
            // The reference's bridge leaves what it leaves.
            return Ok(());
        }
        let kinds = self.node.ip(&["-details", "link"]).map_err(|error| format!("{error:?}"))?;
        let left =
            kinds.as_array().into_iter().flatten().find(|link| link["linkinfo"]["info_kind"] == "veth");
        if let Some(link) = left {
            return Err(format!("the node still has {}", link["ifname"]));
        }
        for pod in self.pods.values() {
            let left = pod.links().map_err(|error| format!("{error:?}"))?;
            if !left.is_empty() {
                return Err(format!("pod {} still has {left:?}", pod.name()));
            }
        }
        Ok(())
    }
}

/// Merges objects key by key; anything else replaces what is there, and `null` removes it.
fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (&mut *into, from) else {
        if !from.is_null() {
            into.clone_from(from);
        }
        return;
    };
    for (key, value) in from {
        match value {
            // The one key whose `null` means something to the plugin.
            Value::Null if key != "cni.dev/valid-attachments" => drop(into.remove(key)),
            Value::Object(_) if into.get(key).is_some_and(Value::is_object) => {
                if let Some(place) = into.get_mut(key) {
                    merge(place, value);
                }
            }
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}
