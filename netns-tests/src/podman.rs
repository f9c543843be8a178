//! podman in a node, with its network from CNI.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::error::{LabError, Result};
use crate::image::{self, BUSYBOX};
use crate::node::Node;
use crate::process::program;

/// A node set up for podman. podman is no daemon: each call is a process.
pub struct Podman {
    node: Node,
    network: String,
}

impl Podman {
    /// Sets up podman in a node for the CNI network of that name, and loads the image.
    ///
    /// # Errors
    /// If podman is missing (Debian's package podman) or does not take the image.
    pub fn set_up(node: &Node, network: &str) -> Result<Self> {
        // Debian 12's podman would use netavark; its defaults for limits and cgroups need systemd.
        let settings = format!(
            r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
network_config_dir = "/etc/cni/net.d"
cni_plugin_dirs = ["/opt/cni/bin"]
default_network = "{network}"
"#
        );
        node.write("/etc/containers/containers.conf", settings)?;
        node.write("/etc/containers/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        node.write("/etc/containers/registries.conf", "")?;
        let podman = Self { node: node.clone(), network: network.to_owned() };
        let images = tempfile::tempdir_in(node.lab().dir())
            .map_err(LabError::because("make a directory for images"))?;
        let [_, busybox] = image::write_images(images.path())?;
        podman.podman(&["load", "--quiet", "--input", &busybox.to_string_lossy()])?;
        Ok(podman)
    }

    /// Runs podman to its end. Gives its standard output.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn podman(&self, args: &[&str]) -> Result<String> {
        let mut command = program("podman");
        command.args(args).env("HOME", "/root").env_remove("XDG_RUNTIME_DIR");
        let done = self.node.run_with(&mut command, b"", Duration::from_secs(60))?;
        Ok(done.success(&format!("podman {}", args.join(" ")))?.out())
    }

    /// Starts a container on the network. Gives its id.
    ///
    /// # Errors
    /// With podman's message, which quotes the plugin's.
    pub fn start(&self, name: &str, command: &[&str]) -> Result<String> {
        self.start_with(name, &[], command)
    }

    /// Starts a container on the network with more options, such as `--publish=8080:80`. Gives its id.
    ///
    /// # Errors
    /// See [`Podman::start`].
    pub fn start_with(&self, name: &str, options: &[&str], command: &[&str]) -> Result<String> {
        let cgroup = format!("--cgroup-parent=/{}", self.node.name());
        let mut words = vec![
            "run",
            "--cap-add=NET_RAW",
            "--detach",
            "--pull=never",
            "--name",
            name,
            "--network",
            &self.network,
            &cgroup,
        ];
        words.extend(options);
        words.push(BUSYBOX);
        words.extend(command);
        Ok(self.podman(&words)?.trim().to_owned())
    }

    /// The addresses that podman shows for a container, IPv4 first.
    ///
    /// # Errors
    /// If podman does not know it.
    pub fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        let shown = self.podman(&["inspect", name])?;
        let shown: Value = serde_json::from_str(&shown).map_err(LabError::because("read podman inspect"))?;
        let network = &shown[0]["NetworkSettings"]["Networks"][&self.network];
        let texts = ["IPAddress", "GlobalIPv6Address"].map(|key| network[key].as_str().unwrap_or_default());
        let given = texts.iter().filter(|text| !text.is_empty());
        given
            .map(|text| text.parse().map_err(LabError::because(format!("podman's address {text:?}"))))
            .collect()
    }

    /// Runs a command in a container. Gives its standard output.
    ///
    /// # Errors
    /// If it fails.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<String> {
        let mut words = vec!["exec", name];
        words.extend(command);
        self.podman(&words)
    }

    /// Removes a container, running or not.
    ///
    /// # Errors
    /// With podman's message.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.podman(&["rm", "--force", "--time", "0", name]).map(|_| ())
    }
}
