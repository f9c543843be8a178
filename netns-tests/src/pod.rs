//! A pod's network namespace, without a runtime.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{LabError, Result};
use crate::netns::{Netns, on_a_thread};
use crate::node::{Node, ip, link_names};
use crate::process::{Finished, finish, program};

/// A network namespace mounted at /run/netns in a node, and a container id to go with it. The namespace ends
/// with [`Pod::delete`], or when this value and the node are gone.
pub struct Pod {
    node: Node,
    name: String,
    netns: Netns,
}

impl Pod {
    pub(crate) fn create(node: &Node, name: &str) -> Result<Self> {
        let file = format!("/run/netns/{name}");
        if let Some(parent) = node.path(&file).parent() {
            fs::create_dir_all(parent).map_err(LabError::because(format!("make the directory of {file}")))?;
        }
        File::create(node.path(&file)).map_err(LabError::because(format!("make {file}")))?;
        let netns = Netns::create()?;
        netns.run(|| node.bind_netns(&file))??;
        Ok(Self { node: node.clone(), name: name.to_owned(), netns })
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its name, which is also its container id in [`crate::PluginCall::pod`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CNI_NETNS: its path inside the node.
    pub fn netns_path(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `f` in its network namespace, with the machine's own files: for sockets and for looking.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run(f)
    }

    /// Runs a program (made by [`program`]) in its network namespace, with the machine's own files.
    ///
    /// # Errors
    /// If it cannot be started; how it ends is in the result.
    pub fn run_program(&self, command: &mut Command, limit: Duration) -> Result<Finished> {
        let what = format!("start {}", command.get_program().to_string_lossy());
        let began = Instant::now();
        let child = self.netns.run(|| command.spawn())?.map_err(LabError::because(what))?;
        finish(child, b"", began, limit)
    }

    /// What `ip -json …` says in it.
    ///
    /// # Errors
    /// If `ip` fails or prints no JSON.
    pub fn ip(&self, args: &[&str]) -> Result<Value> {
        ip(&self.netns, args)
    }

    /// The names of its links, sorted, `lo` left out.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn links(&self) -> Result<Vec<String>> {
        link_names(&self.ip(&["link"])?)
    }

    /// The global addresses of an interface as `address/prefix`, IPv4 first, sorted within a family.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn addresses(&self, ifname: &str) -> Result<Vec<String>> {
        let shown = self.ip(&["address", "show", "dev", ifname])?;
        let mut addresses: Vec<(bool, String)> = Vec::new();
        for address in shown[0]["addr_info"].as_array().into_iter().flatten() {
            if address["scope"] == "global" {
                let text =
                    format!("{}/{}", address["local"].as_str().unwrap_or_default(), address["prefixlen"]);
                addresses.push((address["family"] == "inet6", text));
            }
        }
        addresses.sort();
        Ok(addresses.into_iter().map(|(_, text)| text).collect())
    }

    /// Sends three pings 0.2 s apart, with a second for each answer. Succeeds when one is answered: the first of an IPv6
    /// flow may be lost to neighbour discovery on a busy machine.
    ///
    /// # Errors
    /// With what ping printed, if there is no answer.
    pub fn ping(&self, to: IpAddr) -> Result<Finished> {
        let mut command = program("busybox");
        command.args(["ping", "-c", "3", "-i", "0.2", "-W", "1", &to.to_string()]);
        self.run_program(&mut command, Duration::from_secs(10))?
            .success(&format!("ping from {} to {to}", self.name))
    }

    /// Removes the mount and the file at /run/netns. The namespace ends with this value.
    ///
    /// # Errors
    /// If it is not there any more.
    pub fn delete(self) -> Result<()> {
        self.unmount()
    }

    /// Removes the mount and the file at /run/netns, and keeps the namespace alive.
    ///
    /// # Errors
    /// If it is not there any more.
    pub fn unmount(&self) -> Result<()> {
        on_a_thread(|| self.node.unmount(&self.netns_path()))
    }
}
