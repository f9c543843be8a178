//! containerd in a node.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::cri::Cri;
use crate::error::{LabError, Result};
use crate::image::{self, PAUSE};
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{program, wait_for};
use crate::traffic::Place;

const SOCKET: &str = "/run/containerd/containerd.sock";
const LOG: &str = "/run/containerd.log";

/// Debian's own place for programs, where containerd 1.6 is.
pub const DEBIAN: &str = "/usr/bin";

/// A running containerd, killed when this value is dropped; its pods live on until the node ends, as they do on a
/// real one.
pub struct Containerd {
    node: Node,
    programs: PathBuf,
    process: Child,
    cri: Cri,
}

impl Containerd {
    /// Starts the containerd of that directory in a node, with the production paths, and imports the images.
    ///
    /// # Errors
    /// If it does not answer; the end of its log is in the message.
    pub fn start(node: &Node, programs: impl Into<PathBuf>) -> Result<Self> {
        let programs = programs.into();
        node.write("/etc/containerd/config.toml", CONFIG)?;
        let (process, cri) = launch(node, &programs)?;
        let containerd = Self { node: node.clone(), programs, process, cri };
        let images = tempfile::tempdir_in(node.lab().dir())
            .map_err(LabError::because("make a directory for images"))?;
        for archive in image::write_images(images.path())? {
            let archive = archive.to_string_lossy().into_owned();
            containerd.ctr(&["-n", "k8s.io", "images", "import", &archive])?;
        }
        Ok(containerd)
    }

    /// Its CRI.
    pub fn cri(&mut self) -> &mut Cri {
        &mut self.cri
    }

    /// A pod's network, for traffic from and to it.
    ///
    /// # Errors
    /// If the runtime does not know the pod, or its network namespace is gone.
    pub fn place(&mut self, pod: &str, name: &str) -> Result<Sandbox> {
        let path = self.cri.pod_netns(pod)?;
        // containerd names it below /var/run, and an absolute link would lead out of the node.
        let path = path.strip_prefix("/var").unwrap_or(&path);
        Ok(Sandbox { name: name.to_owned(), netns: Netns::open(&self.node.path(path))? })
    }

    /// Runs `ctr`, containerd's own client. Gives its standard output.
    ///
    /// # Errors
    /// If it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let done = self.node.run(&self.programs.join("ctr").to_string_lossy(), args)?;
        Ok(done.success(&format!("ctr {}", args.join(" ")))?.out())
    }

    /// Waits until the runtime has read a network configuration that it can use.
    ///
    /// # Errors
    /// With the runtime's reason, if there is none after 10 s.
    pub fn wait_for_network(&mut self) -> Result<()> {
        let mut last = String::new();
        let cri = &mut self.cri;
        let ready = wait_for(Duration::from_secs(10), || match cri.network_ready() {
            Ok(Ok(())) => true,
            Ok(Err(why)) => {
                last = why;
                false
            }
            Err(error) => {
                last = error.to_string();
                false
            }
        });
        if ready { Ok(()) } else { Err(self.explain(format!("the pod network is not ready: {last}"))) }
    }

    /// Kills containerd with SIGKILL. Its pods go on.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map_err(LabError::because("kill containerd"))?;
        self.process.wait().map(|_| ()).map_err(LabError::because("wait for containerd"))
    }

    /// Starts it again after [`Containerd::kill`].
    ///
    /// # Errors
    /// If it does not answer.
    pub fn start_again(&mut self) -> Result<()> {
        (self.process, self.cri) = launch(&self.node, &self.programs)?;
        Ok(())
    }

    /// The last lines of containerd's log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.node)
    }

    /// An error with the end of containerd's log.
    pub fn explain(&self, what: impl std::fmt::Display) -> LabError {
        LabError::new(format!("{what}; containerd's log ends with\n{}", self.log_tail()))
    }
}

/// The network namespace of a runtime's pod. It lives as long as this value, whatever becomes of the pod.
pub struct Sandbox {
    name: String,
    netns: Netns,
}

impl Place for Sandbox {
    fn network(&self) -> &Netns {
        &self.netns
    }

    fn label(&self) -> &str {
        &self.name
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!("containerd's log ends with\n{}", self.log_tail());
        }
    }
}

/// - Debian's defaults for `bin_dir` and `conf_dir` are Debian's own; these are everybody's.
/// - `restrict_oom_score_adj`: without it runc fails in a process that may not lower its score.
const CONFIG: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#;

fn launch(node: &Node, programs: &std::path::Path) -> Result<(Child, Cri)> {
    debug_assert!(CONFIG.contains(PAUSE));
    let log = fs::OpenOptions::new().create(true).append(true).open(node.path(LOG));
    let log = log.map_err(LabError::because("open containerd's log"))?;
    let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    let mut command = program(programs.join("containerd"));
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(LabError::because("share containerd's log"))?)
        .stderr(log);
    let mut process = node.spawn(&mut command)?;
    let mut cri = None;
    let mut last = String::new();
    wait_for(Duration::from_secs(30), || {
        if let Ok(Some(status)) = process.try_wait() {
            last = format!("it ended: {status}");
            return true;
        }
        // The socket is there before the CRI is.
        match Cri::connect(&node.path(SOCKET), node.name()).and_then(|mut new| new.version().map(|_| new)) {
            Ok(new) => cri = Some(new),
            Err(error) => last = format!("{error:?}"),
        }
        cri.is_some()
    });
    match cri {
        Some(cri) => Ok((process, cri)),
        None => {
            let _ = process.kill();
            let _ = process.wait();
            let tail = log_tail(node);
            Err(LabError::new(format!("containerd does not answer: {last}; its log ends with\n{tail}")))
        }
    }
}

fn log_tail(node: &Node) -> String {
    let log = node.read(LOG).unwrap_or_else(|error| error.to_string());
    let lines: Vec<_> = log.lines().collect();
    lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
}
