//! Replaying a table: each row and version on a node of its own, several at once.

use std::fs::File;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::expect::Judge;
use super::reference;
use super::scene::Scene;
use super::step::{Call, Look, Previous, Stdin, Step, Text};
use super::{Case, Plugin, Reference};
use crate::chain::Chain;
use crate::lab::Lab;
use crate::network::rules_of_pods;
use crate::node::Node;
use crate::plugin::{Answer, PluginCall, uses_reference};
use crate::process::finish;
use crate::traffic::UPLINK;

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
            (Self::Podwire, Plugin::Main | Plugin::Network) => "podwire",
            (Self::Podwire, Plugin::Loopback) => "loopback",
            (Self::Podwire | Self::IpamUnderBridge, Plugin::Ipam) => "podwire-ipam",
            (Self::Reference | Self::IpamUnderBridge, Plugin::Main | Plugin::Network) => "bridge",
            (Self::Reference, Plugin::Ipam) => "host-local",
            // Not by name: in /opt/cni/bin podwire stands in for it.
            (Self::Reference | Self::IpamUnderBridge, Plugin::Loopback) => "/usr/lib/cni/loopback",
        }
    }
}

/// How many rows are replayed at once: they wait for the kernel more than they compute.
const AT_ONCE: usize = 6;

/// Whether iptables and nftables see the frames of a bridge (br_netfilter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// As a new network namespace has it.
    AsItIs,
    /// Off: net.bridge.bridge-nf-call-iptables and -ip6tables are 0.
    Off,
    /// On, as kube-proxy needs it: both are 1.
    On,
}

/// Replays all rows in all their versions and reports every failure. `PODWIRE_CASE` restricts it to rows whose name
/// contains its value.
///
/// # Errors
/// With one paragraph for each row and version that failed.
pub fn replay(cases: &[Case], subject: Subject) -> Result<(), String> {
    replay_with(cases, subject, BridgeNetfilter::AsItIs)
}

/// Replays all rows in all their versions, on nodes with that setting, and reports every failure. `PODWIRE_CASE` restricts it to rows whose name
/// contains its value.
///
/// # Errors
/// With one paragraph for each row and version that failed.
pub fn replay_with(cases: &[Case], subject: Subject, netfilter: BridgeNetfilter) -> Result<(), String> {
    let wanted = std::env::var("PODWIRE_CASE").unwrap_or_default();
    let chosen = cases.iter().filter(|case| case.name.contains(&wanted));
    let lacks = |case: &&Case| subject == Subject::Reference && matches!(case.reference, Reference::Lacks(_));
    let jobs: Vec<_> = chosen
        .filter(|case| !lacks(case))
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
                    if let Err(why) = Replay::run(case, version, subject, netfilter) {
                        let with = format!("against {subject:?}, bridge netfilter {netfilter:?}");
                        let text = format!("{:?} at {version} {with}:\n  {why}", case.name);
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
    call: Prepared,
    pod: &'static str,
    container: &'static str,
    ifname: &'static str,
    result: Value,
}

/// A call, of one plugin or of a chain.
#[derive(Clone)]
struct Prepared {
    call: PluginCall,
    chain: Option<(Chain, Value)>,
    previous: Option<Value>,
}

impl Prepared {
    fn run(&self, verb: &str, node: &Node) -> Result<Answer, String> {
        let answer = match &self.chain {
            None => self.call.run(node),
            Some((chain, runtime)) if verb == "ADD" => self.add(chain, runtime, node),
            Some((chain, runtime)) => chain.run(verb, node, &self.call, self.previous.as_ref(), runtime),
        };
        answer.map_err(|error| format!("{error:?}"))
    }

    /// As a runtime does: an ADD that fails is followed by a DEL. Podwire alone needs none.
    fn add(&self, chain: &Chain, runtime: &Value, node: &Node) -> crate::Result<Answer> {
        let answer = chain.add(node, &self.call, runtime)?;
        if answer.exit() != Some(0) {
            chain.run("DEL", node, &self.call, None, runtime)?;
        }
        Ok(answer)
    }
}

struct Replay<'a> {
    case: &'a Case,
    version: &'static str,
    subject: Subject,
    scene: Scene,
    added: Vec<Added>,
}

impl<'a> Replay<'a> {
    fn run(
        case: &'a Case,
        version: &'static str,
        subject: Subject,
        netfilter: BridgeNetfilter,
    ) -> Result<(), String> {
        let scene = Lab::new("case")
            .and_then(|lab| lab.node("node"))
            .and_then(|node| Scene::new(node, case.plugin == Plugin::Network))
            .map_err(|error| format!("no node: {error:?}"))?;
        let mut replay = Self { case, version, subject, scene, added: Vec::new() };
        let set = |value| {
            format!("cd /proc/sys/net/bridge; for f in bridge-nf-call-ip*tables; do echo {value} > $f; done")
        };
        match netfilter {
            BridgeNetfilter::AsItIs => {}
            BridgeNetfilter::Off => drop(replay.sh(&set(0))?),
            BridgeNetfilter::On => drop(replay.sh(&set(1))?),
        }
        for (index, step) in case.steps.iter().enumerate() {
            let name = match step {
                Step::Call(call) => format!("{} {}", call.verb, call.pod.unwrap_or_default()),
                Step::Script(script) | Step::Look(Look { script, .. }) => (*script).to_owned(),
                Step::Serve(place, on) => format!("serve {on} in {place}"),
                Step::Reach(reach) => format!("{} to {}", reach.from, reach.to),
                Step::Act(act) => act.name.to_owned(),
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
            Step::Script(script) => self.with_ports(script).and_then(|script| self.sh(&script)).map(drop),
            Step::Serve(place, on) => self.scene.serve(place, on).map_err(|error| format!("{error:?}")),
            Step::Reach(reach) => {
                let reference = reach.reference.filter(|_| self.subject == Subject::Reference);
                let seen = reference.unwrap_or(reach.seen);
                self.scene.reach(reach.from, reach.to, seen).map_err(|error| format!("{error:?}"))
            }
            Step::Act(act) if act.podwire_alone && self.subject != Subject::Podwire => Ok(()),
            Step::Act(act) => (act.act)(&self.scene).map_err(|error| format!("{error:?}")),
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
        self.scene.sh(script).map_err(|error| format!("{error:?}"))
    }

    /// Puts the name of the host's end of a pod's eth0 in place of each `{port:<pod>}`.
    fn with_ports(&self, script: &str) -> Result<String, String> {
        let mut text = script.to_owned();
        while let Some((before, (pod, after))) =
            text.split_once("{port:").and_then(|(b, rest)| Some((b, rest.split_once('}')?)))
        {
            let port = self.scene.host_end(pod).map_err(|error| format!("{error:?}"))?;
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

    fn prepare(&mut self, call: &Call) -> Result<Prepared, String> {
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
        let mut previous = None;
        if let Some(name) = call.pod {
            let pod = self.scene.pod_or_new(name).map_err(|error| format!("{error:?}"))?;
            prepared = prepared
                .pod(pod)
                .env("CNI_CONTAINERID", call.container.unwrap_or(name))
                .env("CNI_IFNAME", call.ifname);
            previous = match &call.previous {
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
            if let Some(result) = &previous {
                merge(&mut config, &json!({ "prevResult": result }));
            }
        }
        for (name, value) in &call.env {
            prepared = match value {
                Some(value) => prepared.env(name, value),
                None => prepared.without(name),
            };
        }
        let chained = self.case.plugin == Plugin::Network && self.subject == Subject::Reference;
        let chain = chained.then(|| reference::chain(&config));
        let call = match call.stdin {
            Stdin::Config => prepared.stdin(&config),
            Stdin::Raw(text) => prepared.raw_stdin(text),
            Stdin::Directory | Stdin::Null => prepared,
        };
        Ok(Prepared { call, chain, previous })
    }

    fn answer(&self, call: &Call, prepared: &Prepared) -> Result<Answer, String> {
        let place = match call.stdin {
            Stdin::Config | Stdin::Raw(_) => {
                return prepared.run(call.verb, self.scene.node());
            }
            Stdin::Directory => "/",
            Stdin::Null => "/dev/null",
        };
        let (mut command, _) = prepared.call.command();
        command.stdin(Stdio::from(File::open(place).map_err(|error| format!("open {place}: {error}"))?));
        let began = Instant::now();
        let child = self.scene.node().spawn(&mut command).map_err(|error| format!("{error:?}"))?;
        let process =
            finish(child, b"", began, crate::process::LIMIT).map_err(|error| format!("{error:?}"))?;
        let json = serde_json::from_slice(&process.stdout).ok();
        Ok(Answer { process, json })
    }

    /// Deletes what was added; then nothing may be left of it.
    fn clean_up(&mut self) -> Result<(), String> {
        for added in std::mem::take(&mut self.added) {
            let mut call = added.call;
            call.previous = Some(added.result);
            call.call = call.call.env("CNI_COMMAND", "DEL");
            call.run("DEL", self.scene.node())?
                .ok()
                .map_err(|error| format!("DEL {}: {error:?}", added.container))?;
        }
        if self.subject == Subject::IpamUnderBridge {
            // The reference's bridge leaves what it leaves.
            return Ok(());
        }
        let kinds = self.scene.node().ip(&["-details", "link"]).map_err(|error| format!("{error:?}"))?;
        let left = kinds.as_array().into_iter().flatten().find(|link| {
            let kind = &link["linkinfo"]["info_kind"];
            (kind == "veth" || kind == "ifb") && link["ifname"] != UPLINK
        });
        if let Some(link) = left {
            return Err(format!("the node still has {}", link["ifname"]));
        }
        for pod in self.scene.pods() {
            let left = pod.links().map_err(|error| format!("{error:?}"))?;
            if !left.is_empty() {
                return Err(format!("pod {} still has {left:?}", pod.name()));
            }
        }
        if self.subject == Subject::Podwire {
            let left = rules_of_pods(self.scene.node()).map_err(|error| format!("{error:?}"))?;
            if !left.is_empty() {
                return Err(format!("the packet filter still has {}", left.join(", ")));
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
