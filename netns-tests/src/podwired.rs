//! The agent in a node.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{LabError, Result};
use crate::node::Node;
use crate::process::{program, wait_for};

const SOCKET: &str = "/run/podwire/ipam.sock";
const LOG: &str = "/run/podwired.log";

/// A running `podwired`, with the production paths; killed when this value is dropped.
pub struct Podwired {
    node: Node,
    process: Child,
}

impl Podwired {
    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    /// If it does not; its log is in the message.
    pub fn start(node: &Node) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(node.path(LOG));
        let log = log.map_err(LabError::because("open podwired's log"))?;
        let mut command = program(Node::dist("podwired"));
        command
            .arg("run")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(LabError::because("share podwired's log"))?)
            .stderr(log);
        let mut process = node.spawn(&mut command)?;
        let serves = wait_for(Duration::from_secs(10), || {
            // An old agent's socket may still lie there: only an answer to connect counts.
            let ended = !matches!(process.try_wait(), Ok(None));
            ended || std::os::unix::net::UnixStream::connect(node.path(SOCKET)).is_ok()
        });
        let mut podwired = Self { node: node.clone(), process };
        match podwired.process.try_wait() {
            Ok(None) if serves => Ok(podwired),
            _ => Err(LabError::new(format!("podwired does not serve; its log is\n{}", podwired.log()))),
        }
    }

    /// What it logged, and what agents before it in the same node did.
    pub fn log(&self) -> String {
        self.node.read(LOG).unwrap_or_else(|error| error.to_string())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map_err(LabError::because("kill podwired"))?;
        self.process.wait().map(|_| ()).map_err(LabError::because("wait for podwired"))
    }

    /// Asks it to end, with SIGTERM, and waits.
    ///
    /// # Errors
    /// If it does not end within 10 s, or not with 0.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        kill(pid, Signal::SIGTERM).map_err(LabError::because("end podwired"))?;
        let mut ended = None;
        wait_for(Duration::from_secs(10), || {
            ended = self.process.try_wait().ok().flatten();
            ended.is_some()
        });
        match ended {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                Err(LabError::new(format!("podwired ended with {status}; its log is\n{}", self.log())))
            }
            None => Err(LabError::new(format!("podwired did not end; its log is\n{}", self.log()))),
        }
    }
}

impl Drop for Podwired {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("podwired's log is\n{}", self.log());
        }
    }
}
