//! An agent that a test treats badly.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{SOCKET, Site};
use crate::Node;
use crate::error::{LabError, Result};
use crate::process::wait_for;

/// A `podwired` that a test may kill, freeze or have killed at a step.
pub struct Agent {
    node: Node,
    process: Child,
}

impl Agent {
    const LOG: &'static str = "/run/podwired.log";

    /// Starts one and does not wait until it serves: it may be about to die.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(site: &Site, env: &[(&str, &str)]) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(site.node.path(Self::LOG));
        let log = log.map_err(LabError::because("open podwired's log"))?;
        let mut command = Command::new(Node::dist("podwired"));
        command.env_clear().envs(env.iter().copied()).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(LabError::because("share podwired's log"))?).stderr(log);
        Ok(Self { node: site.node.clone(), process: site.node.spawn(&mut command)? })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it ends instead, or not within 10 s; its log is in the message.
    pub fn serves(&mut self) -> Result<()> {
        let mut alive = true;
        let serves = wait_for(Duration::from_secs(10), || {
            alive = matches!(self.process.try_wait(), Ok(None));
            // An old agent's socket may still lie there: only an answer to connect counts.
            !alive || UnixStream::connect(self.node.path(SOCKET)).is_ok()
        });
        if alive && serves {
            Ok(())
        } else {
            Err(LabError::new(format!("podwired does not serve: {}", self.log())))
        }
    }

    /// What all agents of this node logged.
    pub fn log(&self) -> String {
        self.node.read(Self::LOG).unwrap_or_default()
    }

    /// Its process id, as the test sees it.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended, threads in the kernel and all.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Whether it ends within that time.
    pub fn has_ended_within(&mut self, limit: Duration) -> bool {
        wait_for(limit, || self.has_ended())
    }

    /// Waits until SIGKILL has ended it.
    ///
    /// # Errors
    /// If it runs on, or has ended otherwise.
    pub fn was_killed(mut self) -> Result<()> {
        let mut status = None;
        wait_for(Duration::from_secs(5), || {
            status = self.process.try_wait().ok().flatten();
            status.is_some()
        });
        match status {
            Some(status) if status.signal() == Some(9) => Ok(()),
            other => Err(LabError::new(format!("podwired was not killed but {other:?}: {}", self.log()))),
        }
    }

    /// Sends it SIGKILL, and does not wait for its end.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map_err(LabError::because("kill podwired"))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&mut self, signal: nix::sys::signal::Signal) -> Result<()> {
        // Its number may be another process's once its end has been seen.
        if self.has_ended() {
            return Err(LabError::new(format!("podwired has ended already: {}", self.log())));
        }
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, signal).map_err(LabError::because(format!("send {signal} to podwired")))
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// If it does not end with 0 within 10 s.
    pub fn stop(mut self) -> Result<()> {
        self.signal(nix::sys::signal::Signal::SIGTERM)?;
        let mut status = None;
        wait_for(Duration::from_secs(10), || {
            status = self.process.try_wait().ok().flatten();
            status.is_some()
        });
        match status {
            Some(status) if status.success() => Ok(()),
            other => Err(LabError::new(format!("podwired ended with {other:?}: {}", self.log()))),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
