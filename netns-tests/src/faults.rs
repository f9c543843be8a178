//! What the fault tests share: a node with one network, agents and plugins that die where they are told to, and the
//! question that each fault ends with: is anything left, and is any address lost or given twice?
//!
//! The programs that can be told to die are not the released ones: `scripts/build-faults` builds them, with the
//! named steps that the attach crate's `step` module describes.

mod agent;
mod steps;
pub mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

pub use agent::Agent;
pub use steps::{Steps, at_once_for, each};

use crate::error::{LabError, Result};
use crate::network::rules_of_pods;
use crate::plugin::{Answer, PluginCall};
use crate::pod::Pod;
use crate::process::{LIMIT, finish, program};
use crate::traffic::UPLINK;
use crate::{Lab, Node, NodeOptions, fault_dist_dir};

/// The network's name.
pub const NETWORK: &str = "net";
/// Its bridge.
pub const BRIDGE: &str = "br0";
/// Its gateway in IPv4, the bridge's address.
pub const GATEWAY: &str = "10.77.0.1";

/// The error code of an address that is not to be had (docs/errors.md).
pub const ADDRESS_REFUSED: u64 = 107;
/// The error code of "try again later".
pub const TRY_AGAIN: u64 = 11;
/// The error code of a CHECK that found differences.
pub const CHECK_FAILED: u64 = 101;

/// The agent's socket.
pub const SOCKET: &str = "/run/podwire/ipam.sock";
const STORE: &str = "/var/lib/podwire";

/// A network whose pool has `size` addresses, 10.77.0.2 and the following.
pub fn pool(size: u8) -> Value {
    network(
        json!([[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.2", "rangeEnd": format!("10.77.0.{}", size + 1)}]]),
    )
}

/// The network in IPv4 and IPv6, with more addresses than any test uses.
pub fn dual_stack() -> Value {
    network(json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]))
}

/// The network with these range sets.
pub fn network(ranges: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": NETWORK, "type": "podwire", "bridge": BRIDGE, "isDefaultGateway": true,
        "hairpinMode": true, "ipam": {"type": "podwire-ipam", "ranges": ranges}
    })
}

/// The addresses of a result, in its order.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
}

/// A node with the programs under test.
pub struct Site {
    node: Node,
}

impl Site {
    /// With the released programs.
    ///
    /// # Errors
    /// If the node cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, &NodeOptions::default())
    }

    /// With the released programs, and a node with these options.
    ///
    /// # Errors
    /// If the node cannot be made.
    pub fn with(name: &str, options: &NodeOptions) -> Result<Self> {
        Ok(Self { node: Lab::new(name)?.node_with("n", options)? })
    }

    /// With the programs that can be told to die.
    ///
    /// # Errors
    /// If the node cannot be made, or they have not been built.
    pub fn with_hooks(name: &str) -> Result<Self> {
        let dir = fault_dist_dir();
        if let Some(missing) = ["podwire", "podwired"].iter().find(|name| !dir.join(name).exists()) {
            return Err(LabError::new(format!(
                "{missing} is not in {}: run scripts/build-faults",
                dir.display()
            )));
        }
        Self::with(name, &NodeOptions { faults: true, ..NodeOptions::default() })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A pod.
    ///
    /// # Errors
    /// If its namespace cannot be made.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.node.pod(name)
    }

    /// Several pods, named by the prefix and a number.
    ///
    /// # Errors
    /// If a namespace cannot be made.
    pub fn pods(&self, prefix: &str, count: usize) -> Result<Vec<Pod>> {
        (0..count).map(|number| self.node.pod(&format!("{prefix}{number}"))).collect()
    }

    /// A call of podwire for that pod.
    pub fn call(&self, verb: &str, pod: &Pod, config: &Value) -> PluginCall {
        PluginCall::new("podwire", verb).pod(pod).stdin(config)
    }

    /// A call of podwire that is about no pod: GC, STATUS.
    pub fn call_for_network(&self, verb: &str, config: &Value) -> PluginCall {
        PluginCall::new("podwire", verb).stdin(config)
    }

    /// Adds a pod to the network; the result.
    ///
    /// # Errors
    /// If ADD fails.
    pub fn add(&self, pod: &Pod, config: &Value) -> Result<Value> {
        self.call("ADD", pod, config).run(&self.node)?.ok()
    }

    /// Adds a pod to the network; its first address.
    ///
    /// # Errors
    /// If ADD fails, or gives none.
    pub fn add_for_address(&self, pod: &Pod, config: &Value) -> Result<IpAddr> {
        let result = self.add(pod, config)?;
        addresses(&result).first().copied().ok_or_else(|| LabError::new(format!("no address in {result}")))
    }

    /// Removes a pod from the network.
    ///
    /// # Errors
    /// If DEL fails.
    pub fn del(&self, pod: &Pod, config: &Value) -> Result<()> {
        self.call("DEL", pod, config).run(&self.node)?.ok().map(drop)
    }

    /// Checks a pod; `result` is what ADD answered.
    ///
    /// # Errors
    /// If the plugin cannot be started.
    pub fn check(&self, pod: &Pod, config: &Value, result: &Value) -> Result<Answer> {
        let mut config = config.clone();
        config["prevResult"] = result.clone();
        self.call("CHECK", pod, &config).run(&self.node)
    }

    /// An agent, which serves when this returns.
    ///
    /// # Errors
    /// If it does not; its log is in the message.
    pub fn agent(&self) -> Result<Agent> {
        let mut agent = Agent::spawn(self, &[])?;
        agent.serves()?;
        Ok(agent)
    }

    /// The leases of the network, as the store has them.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn leases(&self) -> Result<Vec<Value>> {
        let what = "list the leases";
        let list = ["ipam", "show", "--json", "--network", NETWORK];
        let done = self.node.run(&Node::dist("podwirectl").to_string_lossy(), &list)?.success(what)?;
        serde_json::from_slice(&done.stdout).map_err(LabError::because(what))
    }

    /// Fails unless nothing is left of any pod: no link but the bridge, no rule, no lease, no store that was set aside.
    ///
    /// # Errors
    /// With what is left.
    pub fn assert_nothing_left(&self) -> Result<()> {
        let not_ours = |link: &String| link != BRIDGE && link != UPLINK;
        let mut left: Vec<_> = self.node.links()?.into_iter().filter(not_ours).collect();
        left.extend(rules_of_pods(&self.node)?);
        left.extend(self.leases()?.iter().map(Value::to_string));
        left.extend(self.set_aside());
        if left.is_empty() { Ok(()) } else { Err(LabError::new(format!("left behind: {}", left.join(", ")))) }
    }

    /// The stores that could not be used and were kept.
    pub fn set_aside(&self) -> Vec<String> {
        let mut names = self.node.list(STORE);
        names.retain(|name| name.contains("broken"));
        names
    }

    /// Fails unless exactly the addresses of a pool of `size` that are not in use are to be had, each once. `in_use`
    /// are those of pods that are there.
    ///
    /// # Errors
    /// With what was lost, or given twice.
    pub fn assert_pool_whole(&self, config: &Value, size: usize, in_use: &[IpAddr]) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut held: BTreeSet<IpAddr> = in_use.iter().copied().collect();
        if held.len() < in_use.len() {
            return Err(LabError::new(format!("an address is two pods': {in_use:?}")));
        }
        let probes = self.pods(&format!("probe{number}-"), size - in_use.len() + 1)?;
        let (last, fitting) = probes.split_last().ok_or_else(|| LabError::new("no probes"))?;
        for probe in fitting {
            let address = self
                .add_for_address(probe, config)
                .map_err(LabError::because(format!("an address is lost: {held:?} are in use of {size}")))?;
            if !held.insert(address) {
                return Err(LabError::new(format!("{address} was given twice")));
            }
        }
        let one_more = self.call("ADD", last, config).run(&self.node)?;
        let (code, message) =
            one_more.error().map_err(LabError::because(format!("one more than {size} addresses")))?;
        if code != ADDRESS_REFUSED {
            return Err(LabError::new(format!("a full pool answers {code}: {message}")));
        }
        for probe in &probes {
            self.del(probe, config)?;
        }
        probes.into_iter().try_for_each(Pod::delete)
    }

    /// Runs a call that succeeds and gives the steps that it came to, each as `PODWIRE_STEP_KILL` takes it.
    ///
    /// # Errors
    /// If the call fails.
    pub fn steps(&self, call: PluginCall) -> Result<Vec<String>> {
        let trace = "/run/steps";
        let _ = fs::remove_file(self.node.path(trace));
        call.env("PODWIRE_STEP_TRACE", trace).run(&self.node)?.ok()?;
        self.traced(trace)
    }

    /// The steps in a file that `PODWIRE_STEP_TRACE` named.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn traced(&self, file: &str) -> Result<Vec<String>> {
        let names = self.node.read(file)?;
        let names: Vec<&str> = names.lines().collect();
        let nth = |at: usize| names[..=at].iter().filter(|name| **name == names[at]).count();
        Ok((0..names.len()).map(|at| format!("{}:{}", names[at], nth(at))).collect())
    }

    /// Runs a call that is to die at that step; whether it came there. It may have succeeded without.
    ///
    /// # Errors
    /// If it neither died nor succeeded.
    pub fn killed_at(&self, step: &str, call: PluginCall) -> Result<bool> {
        let answer = call.env("PODWIRE_STEP_KILL", step).run(&self.node)?;
        if answer.process.signal() == Some(9) {
            return Ok(true);
        }
        answer.ok().map(|_| false).map_err(LabError::because(format!("to be killed at {step}")))
    }

    /// Whether the call succeeds under another program, such as `unshare …`: its arguments come first, the plugin last.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn run_under(&self, wrapper: &[&str], call: &PluginCall) -> Result<Answer> {
        let (plugin, stdin) = call.command();
        let (name, args) = wrapper.split_first().ok_or_else(|| LabError::new("no program"))?;
        let mut command = program(name);
        command.args(args).arg(plugin.get_program()).env_clear();
        command.envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let began = Instant::now();
        let process = finish(self.node.spawn(&mut command)?, stdin, began, LIMIT)?;
        let json = serde_json::from_slice(&process.stdout).ok();
        Ok(Answer { process, json })
    }

    /// Makes the call some seconds after now as CLOCK_BOOTTIME has it, in a time namespace.
    ///
    /// # Errors
    /// If unshare cannot be started.
    pub fn run_later(&self, seconds: i64, call: &PluginCall) -> Result<Answer> {
        self.run_under(&["/usr/bin/unshare", "--time", "--fork", &format!("--boottime={seconds}")], call)
    }

    /// Makes the call as a runtime of that name would: as the child of a process that is called so.
    ///
    /// # Errors
    /// If bash cannot be linked to or started.
    pub fn run_by(&self, runtime: &str, call: &PluginCall) -> Result<Answer> {
        let path = format!("/run/runtimes/{runtime}");
        if !self.node.path(&path).exists() {
            fs::create_dir_all(self.node.path("/run/runtimes"))
                .map_err(LabError::because("make /run/runtimes"))?;
            // A link is enough, for a process is called as it was started. A copy could not be started while another
            // thread's child still has this process's open files.
            std::os::unix::fs::symlink("/bin/bash", self.node.path(&path))
                .map_err(LabError::because("link to bash"))?;
        }
        // Two commands: bash would become the last one instead of being its parent.
        self.run_under(&[&path, "-c", "\"$0\"; exit $?"], call)
    }
}
