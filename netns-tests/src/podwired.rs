//! The agent in a node.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::error::{LabError, Result};
use crate::node::Node;
use crate::process::{program, wait_for};

/// Where plugins ask it.
const SOCKET: &str = "/run/podwire/ipam.sock";
/// Where people ask it.
const CONTROL: &str = "/run/podwire/podwired.sock";
const LOG: &str = "/run/podwired.log";

/// Its configuration file, which it reads by default.
pub const CONFIGURATION: &str = "/etc/podwire/podwired.toml";

/// A running `podwired`, with the production paths; killed when this value is dropped.
pub struct Podwired {
    node: Node,
    process: Child,
}

impl Podwired {
    /// Starts the agent and waits until it serves plugins. It reads [`CONFIGURATION`] where there is one.
    ///
    /// # Errors
    /// If it does not; its log is in the message.
    pub fn start(node: &Node) -> Result<Self> {
        Self::start_with(node, &[])
    }

    /// The same with more arguments, such as `--set probes.enabled=false`.
    ///
    /// # Errors
    /// If it does not serve; its log is in the message.
    pub fn start_with(node: &Node, args: &[&str]) -> Result<Self> {
        let mut podwired = Self::spawn(node, args)?;
        let serves = wait_for(Duration::from_secs(10), || {
            // An old agent's socket may still lie there: only an answer to connect counts.
            podwired.has_ended() || UnixStream::connect(podwired.node.path(SOCKET)).is_ok()
        });
        if serves && !podwired.has_ended() {
            Ok(podwired)
        } else {
            Err(LabError::new(format!("podwired does not serve; its log is\n{}", podwired.log())))
        }
    }

    /// Starts the agent and waits for nothing.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(node: &Node, args: &[&str]) -> Result<Self> {
        Self::spawn_under(node, &[], args, &[])
    }

    /// Starts the agent as the argument of another program, such as `unshare --time …`, which must die with it and it with
    /// that, with these variables in its environment.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_under(
        node: &Node,
        wrapper: &[&str],
        args: &[&str],
        environment: &[(String, String)],
    ) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(node.path(LOG));
        let log = log.map_err(LabError::because("open podwired's log"))?;
        let podwired = Node::dist("podwired").to_string_lossy().into_owned();
        let mut words = wrapper.iter().copied().chain([podwired.as_str(), "run"]).chain(args.iter().copied());
        let mut command = program(words.next().unwrap_or_default());
        command
            .args(words)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            // To look into a test that fails: PODWIRED_LOG_LEVEL=debug cargo test …
            .envs(std::env::vars_os().filter(|(name, _)| name == "PODWIRED_LOG_LEVEL"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(LabError::because("share podwired's log"))?)
            .stderr(log);
        Ok(Self { node: node.clone(), process: node.spawn(&mut command)? })
    }

    /// Waits until it says that it is ready: the dataplane stands, as a complete snapshot of the cluster wants it.
    ///
    /// # Errors
    /// If it does not in that time, with what it lacks and its log.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let ready = wait_for(limit, || match self.get("/readyz") {
            _ if self.has_ended() => true,
            Ok((200, _)) => true,
            Ok((code, body)) => {
                last = format!("/readyz answers {code}: {}", body.trim());
                false
            }
            Err(error) => {
                last = format!("{error:?}");
                false
            }
        });
        if ready && !self.has_ended() {
            return Ok(());
        }
        Err(LabError::new(format!(
            "podwired of {} is not ready after {limit:?}: {last}; its log is\n{}",
            self.node.name(),
            self.log()
        )))
    }

    /// Asks its control socket: `GET <path>`. The status code and the body.
    ///
    /// # Errors
    /// If nobody answers within 5 s.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        control(&self.node, "GET", path, "")
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// If the answer is not 200 with JSON.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        match self.get(path)? {
            (200, body) => serde_json::from_str(&body).map_err(LabError::because(format!("read {path}"))),
            (code, body) => Err(LabError::new(format!("GET {path}: {code} {body}"))),
        }
    }

    /// Asks for an action: `POST /v1/actions`. The status code and the body.
    ///
    /// # Errors
    /// If nobody answers within 5 s.
    pub fn act(&self, action: &Value) -> Result<(u16, String)> {
        control(&self.node, "POST", "/v1/actions", &action.to_string())
    }

    /// The subnets of its node's pods.
    ///
    /// # Errors
    /// If it does not answer, or has none.
    pub fn subnets(&self) -> Result<Vec<String>> {
        let status = self.get_json("/v1/status")?;
        let all = status["subnets"].as_array().into_iter().flatten();
        let text = |subnet: &Value| subnet.as_str().or_else(|| subnet["subnet"].as_str()).map(str::to_owned);
        let found: Vec<_> = all.filter_map(text).collect();
        if found.is_empty() { Err(LabError::new(format!("no subnets in {status}"))) } else { Ok(found) }
    }

    /// The value of a metric: the sum over all its labels that contain `labels`.
    ///
    /// # Errors
    /// If the agent does not answer.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let lines = text.lines().filter(of_name).filter(|line| line.contains(labels));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// What it logged, and what agents before it in the same node did.
    pub fn log(&self) -> String {
        self.node.read(LOG).unwrap_or_else(|error| error.to_string())
    }

    /// Its process id, as the test sees it.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Its number may be another process's once its end has been seen.
        if self.has_ended() {
            return Err(LabError::new(format!("podwired has ended already; its log is\n{}", self.log())));
        }
        let pid = Pid::from_raw(self.process.id().cast_signed());
        kill(pid, signal).map_err(LabError::because(format!("send {signal} to podwired")))
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
        self.signal(Signal::SIGTERM)?;
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
            eprintln!("the log of podwired in {} is\n{}", self.node.name(), self.log());
        }
    }
}

/// One request on the control socket of a node's agent.
fn control(node: &Node, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let what = || format!("{method} {path} of podwired in {}", node.name());
    let limit = Duration::from_secs(5);
    let deadline = Instant::now() + limit;
    let mut stream = UnixStream::connect(node.path(CONTROL)).map_err(LabError::because(what()))?;
    stream.set_read_timeout(Some(limit)).map_err(LabError::because(what()))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: podwired\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(LabError::because(what()))?;
    let mut answer = Vec::new();
    stream.take(64 << 20).read_to_end(&mut answer).map_err(LabError::because(what()))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let wrong =
        || LabError::new(format!("{}: {answer:?} after {:?}", what(), limit - (deadline - Instant::now())));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
    Ok((code, body.to_owned()))
}
