//! One node of a cluster, and its pods.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{LabError, Result};
use crate::lab::Lab;
use crate::node::{Node, NodeOptions};
use crate::plugin::{Answer, PluginCall};
use crate::pod::Pod;
use crate::podwired::{CONFIGURATION, Podwired};
use crate::process::{Finished, LIMIT, program, wait_for};
use crate::underlay::{Underlay, Uplink};

use super::{AT_LAST, NETWORK, Options, PEERS, READY, Store, node_name};

/// Where an agent writes the configuration of the pod network.
const CONFLIST: &str = "/etc/cni/net.d/10-podwire.conflist";

/// A node with a link to the underlay, and its agent when that runs.
pub struct Member {
    agent: Option<Podwired>,
    uplink: Uplink,
    node: Node,
    name: String,
    number: u8,
    /// Of its agent's environment.
    variables: Vec<(String, String)>,
}

impl Member {
    pub(super) fn create(lab: &Lab, underlay: &Underlay, number: u8, options: &Options) -> Result<Self> {
        let name = node_name(number);
        let mut shared = Vec::new();
        if options.reboots {
            let outside = lab.dir().join(&name);
            fs::create_dir_all(&outside).map_err(LabError::because("make a node's disk"))?;
            shared.push((outside, PathBuf::from("/var/lib/podwire")));
        }
        let no_plugins = options.no_plugins;
        let node = lab.node_with(&name, &NodeOptions { shared, no_plugins, ..NodeOptions::default() })?;
        let uplink = underlay.attach(&node, number)?;
        let mut member = Self { agent: None, uplink, node, name, number, variables: Vec::new() };
        let store = match &options.store {
            Store::Peers => String::new(),
            Store::Settings(lines) => lines.clone(),
            Store::Kubernetes(control_plane) => {
                control_plane.admit(&member, underlay, options)?;
                member.variables = control_plane.variables();
                control_plane.agent_settings(options)
            }
        };
        member.configure(&store, &options.agent)?;
        Ok(member)
    }

    /// Writes its agent's configuration: where nodes meet (empty: the peers file), and more lines.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn configure(&self, store: &str, more: &str) -> Result<()> {
        let file = format!("[cluster]\nstore = \"file\"\nfile.path = \"{PEERS}\"\n");
        let store = if store.is_empty() { &file } else { store };
        self.node.write(CONFIGURATION, format!("node_name = \"{}\"\n\n{store}\n{more}\n", self.name))
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in the cluster.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The node itself.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its link to the underlay.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Its agent.
    ///
    /// # Errors
    /// If it does not run.
    pub fn agent(&self) -> Result<&Podwired> {
        self.agent.as_ref().ok_or_else(|| LabError::new(format!("no agent runs in {}", self.name)))
    }

    /// Its agent, to send it signals.
    ///
    /// # Errors
    /// If it does not run.
    pub fn agent_mut(&mut self) -> Result<&mut Podwired> {
        let name = &self.name;
        self.agent.as_mut().ok_or_else(|| LabError::new(format!("no agent runs in {name}")))
    }

    /// Whether an agent was started and neither killed nor stopped.
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Starts its agent and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_agent(&mut self) -> Result<()> {
        self.spawn_agent_under(&[])
    }

    /// Starts its agent as the argument of another program, and waits until it is ready.
    ///
    /// # Errors
    /// If it is not; its log is in the message.
    pub fn start_agent_under(&mut self, wrapper: &[&str]) -> Result<()> {
        self.spawn_agent_under(wrapper)?;
        self.agent_mut()?.wait_until_ready(READY)
    }

    /// Starts its agent as the argument of another program, and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_agent_under(&mut self, wrapper: &[&str]) -> Result<()> {
        self.agent = Some(Podwired::spawn_under(&self.node, wrapper, &[], &self.variables)?);
        Ok(())
    }

    /// Starts its agent and waits until it is ready.
    ///
    /// # Errors
    /// If it is not; its log is in the message.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.agent_mut()?.wait_until_ready(READY)
    }

    /// Kills its agent with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take();
        agent.ok_or_else(|| LabError::new(format!("no agent runs in {}", self.name)))?.kill()
    }

    /// Ends its agent with SIGTERM.
    ///
    /// # Errors
    /// If it does not run, or does not end with 0.
    pub fn stop_agent(&mut self) -> Result<()> {
        let agent = self.agent.take();
        agent.ok_or_else(|| LabError::new(format!("no agent runs in {}", self.name)))?.stop()
    }

    /// Waits until its agent takes requests from plugins and from people, ready or not.
    ///
    /// # Errors
    /// If it does not, with its log.
    pub fn serves(&self) -> Result<()> {
        let sockets = "test -S /run/podwire/podwired.sock && test -S /run/podwire/ipam.sock";
        self.wait_for(AT_LAST, sockets, |_| true).map(drop)
    }

    /// Replaces its peers file, by a rename.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn write_peers(&self, text: &str) -> Result<()> {
        let new = format!("{PEERS}.new");
        self.node.write(&new, text)?;
        fs::rename(self.node.path(&new), self.node.path(PEERS))
            .map_err(LabError::because("rename a peers file"))
    }

    /// Runs a shell script in the node.
    ///
    /// # Errors
    /// With what it wrote, if it fails.
    pub fn sh(&self, script: &str) -> Result<Finished> {
        self.node.run("sh", &["-ec", script])?.success(&format!("{script} in {}", self.name))
    }

    /// Runs `podwirectl` in the node, with the environment of its agent.
    ///
    /// # Errors
    /// If it cannot be started; how it ends is in the result.
    pub fn podwirectl(&self, args: &[&str]) -> Result<Finished> {
        let variables = self.variables.iter().map(|(name, value)| (name, value));
        self.node.run_with(program(Node::dist("podwirectl")).args(args).envs(variables), b"", LIMIT)
    }

    /// Waits until a shell command succeeds in the node and prints what `wanted` accepts.
    ///
    /// # Errors
    /// With what it printed last, and the agent's log.
    pub fn wait_for(&self, limit: Duration, script: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let came = wait_for(limit, || match self.node.run("sh", &["-ec", script]) {
            Ok(done) => {
                last = done.out() + &done.err();
                done.status.success() && wanted(&done.out())
            }
            Err(error) => {
                last = format!("{error:?}");
                false
            }
        });
        if came {
            return Ok(last);
        }
        let log = self.agent.as_ref().map(Podwired::log).unwrap_or_default();
        Err(LabError::new(format!(
            "{script} in {} still says {last:?} after {limit:?}; the agent's log is\n{log}",
            self.name
        )))
    }

    /// The kernel's state that agents make, as text for comparing: what the overlay's links are, their addresses, routes,
    /// neighbours and forwarding entries, without what changes by itself.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn dataplane(&self) -> Result<Vec<String>> {
        let script = "
            devices=$(ip -o link show type vxlan | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/')
            for device in $devices; do
              ip -o -d link show dev $device | sed 's/^[0-9]*: //; s/\\\\/ /g; s/ qlen [0-9]*//; s/ state [A-Z]* / /; s/ tso_max.*//'
              ip -o address show dev $device | sed 's/^[0-9]*: //; s/\\\\.*//'
              ip neighbour show dev $device nud permanent | sed \"s/^/neighbour $device /\"
              bridge fdb show dev $device | sed \"s/^/fdb $device /\"
            done
            ip -4 route show proto 112 | sed 's/ linkdown//'
            ip -6 route show proto 112 | sed 's/ linkdown//'";
        let mut lines: Vec<_> = self.sh(script)?.out().lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        Ok(lines)
    }

    /// A pod, by an ADD with the configuration that the agent wrote.
    ///
    /// # Errors
    /// If ADD fails.
    pub fn pod(&self, name: &str) -> Result<ClusterPod> {
        let pod = self.node.pod(name)?;
        let config = self.network()?;
        let result = PluginCall::new("podwire", "ADD").pod(&pod).stdin(&config).run(&self.node)?.ok()?;
        let addresses = crate::faults::addresses(&result);
        Ok(ClusterPod { pod, config, addresses, result })
    }

    /// The answer to an ADD for a pod of that name, whatever it is.
    ///
    /// # Errors
    /// If the plugin cannot be started, or the agent wrote no configuration yet.
    pub fn try_pod(&self, name: &str) -> Result<Answer> {
        let pod = self.node.pod(name)?;
        PluginCall::new("podwire", "ADD").pod(&pod).stdin(&self.network()?).run(&self.node)
    }

    /// The configuration of the plugin `podwire` in the list that the agent wrote, as a runtime gives it.
    ///
    /// # Errors
    /// If there is no list yet.
    pub fn network(&self) -> Result<Value> {
        let list: Value = serde_json::from_str(&self.node.read(CONFLIST)?)
            .map_err(LabError::because(format!("read {CONFLIST}")))?;
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = json!("1.1.0");
        if config["name"] != NETWORK || config["type"] != "podwire" {
            return Err(LabError::new(format!("{CONFLIST} is {list}")));
        }
        Ok(config)
    }
}

/// A pod of a cluster's network.
pub struct ClusterPod {
    pod: Pod,
    config: Value,
    /// Its addresses, in the order of the cluster's ranges.
    pub addresses: Vec<IpAddr>,
    /// What ADD answered.
    pub result: Value,
}

impl ClusterPod {
    /// Its network namespace.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its address of that family.
    ///
    /// # Errors
    /// If it has none.
    pub fn address(&self, ipv4: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
        found.ok_or_else(|| LabError::new(format!("{} has {:?}", self.pod.name(), self.addresses)))
    }

    /// Fails unless IP packets of that size in bytes get through to an address and back in one piece.
    ///
    /// # Errors
    /// If none does, or somebody on the way asks for smaller ones.
    pub fn assert_size_passes(&self, to: IpAddr, size: u32) -> Result<()> {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let mut ping = program("busybox");
        ping.args(["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s"]);
        ping.arg((size - headers).to_string()).arg(to.to_string());
        let what = format!("{size} bytes from {} to {to}", self.pod.name());
        let done = self.pod.run_program(&mut ping, Duration::from_secs(10))?.success(&what)?;
        // A sender that has been asked for smaller packets cuts them itself from then on.
        let route = self.pod.ip(&["route", "get", &to.to_string()])?;
        if done.out().contains("3 packets received") && route[0]["metrics"].is_null() {
            Ok(())
        } else {
            Err(LabError::new(format!("{what}: {} {route}", done.out())))
        }
    }

    /// Ends it, by a DEL.
    ///
    /// # Errors
    /// If DEL fails.
    pub fn delete(self) -> Result<()> {
        let node = self.pod.node().clone();
        PluginCall::new("podwire", "DEL").pod(&self.pod).stdin(&self.config).run(&node)?.ok()?;
        self.pod.delete()
    }
}
