//! One call of a CNI plugin.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::error::{LabError, Result};
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{Finished, LIMIT, program};

/// Whether the tests run against Debian's reference plugins (`PODWIRE_REFERENCE=1`) instead of podwire.
pub fn uses_reference() -> bool {
    std::env::var_os("PODWIRE_REFERENCE").is_some_and(|value| value == "1")
}

/// One call: a plugin, its environment and its standard input.
#[derive(Debug, Clone)]
pub struct PluginCall {
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    limit: Duration,
}

/// What a plugin answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The process: exit code, output, duration.
    pub process: Finished,
    /// Standard output as JSON; `None` where it is empty or something else.
    pub json: Option<Value>,
}

impl PluginCall {
    /// A call of the plugin of that name in /opt/cni/bin, or at that absolute path. The environment holds
    /// CNI_COMMAND and CNI_PATH=/opt/cni/bin, and nothing of the test's own.
    pub fn new(plugin: &str, command: &str) -> Self {
        let call = Self { plugin: plugin.to_owned(), env: BTreeMap::new(), stdin: Vec::new(), limit: LIMIT };
        call.env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin")
    }

    /// The same call of another plugin.
    pub fn plugin(mut self, plugin: &str) -> Self {
        self.plugin = plugin.to_owned();
        self
    }

    /// Sets CNI_CONTAINERID (the pod's name), CNI_NETNS and CNI_IFNAME=eth0.
    pub fn pod(self, pod: &Pod) -> Self {
        self.env("CNI_CONTAINERID", pod.name())
            .env("CNI_NETNS", &pod.netns_path().to_string_lossy())
            .env("CNI_IFNAME", "eth0")
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Removes a variable.
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Sets the standard input.
    pub fn stdin(mut self, config: &Value) -> Self {
        self.stdin = config.to_string().into_bytes();
        self
    }

    /// Sets the standard input to any bytes.
    pub fn raw_stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets the time limit, after which the plugin is killed.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The call as a [`std::process::Command`] with piped input and output, for a caller who starts it by other means
    /// than [`PluginCall::run`] (under strace, say, or to kill it half way); the input to feed it comes with it.
    pub fn command(&self) -> (std::process::Command, &[u8]) {
        let path = if self.plugin.starts_with('/') {
            self.plugin.clone()
        } else {
            format!("/opt/cni/bin/{}", self.plugin)
        };
        let mut command = program(path);
        command.env_clear().envs(&self.env);
        (command, &self.stdin)
    }

    /// Makes the call inside a node.
    ///
    /// # Errors
    /// If the plugin cannot be started. What it answers, and a kill by the time limit, are in the answer.
    pub fn run(&self, node: &Node) -> Result<Answer> {
        let (mut command, stdin) = self.command();
        let process = node.run_with(&mut command, stdin, self.limit)?;
        let json = serde_json::from_slice(&process.stdout).ok();
        Ok(Answer { process, json })
    }
}

impl Answer {
    /// The exit code; `None` when a signal ended it.
    pub fn exit(&self) -> Option<i32> {
        self.process.code()
    }

    /// The result of a call that succeeded; `null` where it printed nothing, as DEL does.
    ///
    /// # Errors
    /// If it failed, with all that it said; if what it printed is not JSON.
    pub fn ok(self) -> Result<Value> {
        let done = self.process.success("the plugin failed")?;
        match self.json {
            Some(json) => Ok(json),
            None if done.stdout.is_empty() => Ok(Value::Null),
            None => Err(LabError::new(format!("the plugin printed no JSON: {}", done.out()))),
        }
    }

    /// The code and message of a CNI error.
    ///
    /// # Errors
    /// If the call succeeded, or failed without a CNI error on standard output.
    pub fn error(&self) -> Result<(u64, String)> {
        let error = self.json.as_ref().filter(|_| !self.process.status.success());
        let code = error.and_then(|json| json["code"].as_u64());
        let message = error.and_then(|json| json["msg"].as_str());
        match (code, message) {
            (Some(code), Some(message)) => Ok((code, message.to_owned())),
            _ => Err(LabError::new(format!(
                "no CNI error: {}, stdout {:?}, stderr {:?}",
                self.process.status,
                self.process.out(),
                self.process.err()
            ))),
        }
    }
}
