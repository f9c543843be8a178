//! Running another IPAM plugin, by the specification: same environment, same standard input.
//!
//! This is the only program that podwire ever runs, and only where the configuration names it. It inherits
//! standard error, so that its words reach whoever reads ours. There is no time limit here, as there is none in
//! the reference: the runtime's own limit ends both.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::protocol::{CniError, CniResult, Environment, MAX_INPUT, Verb, code};

/// How much of what a plugin printed instead of JSON an error quotes, in characters.
const QUOTED: usize = 300;

/// An IPAM plugin found in CNI_PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    name: String,
    program: PathBuf,
}

/// How a plugin ended.
struct Finished {
    success: bool,
    status: String,
    stdout: Vec<u8>,
}

impl Delegate {
    /// Looks for the plugin in CNI_PATH; the first directory that has it wins.
    ///
    /// # Errors
    /// Code 7 if the name is a path, code 102 if the plugin is in none of the directories.
    pub fn find(plugin: &str, path: &[PathBuf]) -> Result<Self, CniError> {
        if plugin.is_empty() || plugin.contains(['/', '\\', '\0']) || plugin == "." || plugin == ".." {
            let message = format!("{plugin:?} is not the name of an IPAM plugin");
            return Err(CniError::new(code::INVALID_NETWORK_CONFIG, message));
        }
        let program = path.iter().map(|directory| directory.join(plugin)).find(|program| program.is_file());
        let Some(program) = program else {
            let directories: Vec<String> = path.iter().map(|dir| dir.display().to_string()).collect();
            let message =
                format!("cannot find IPAM plugin {plugin:?} in CNI_PATH [{}]", directories.join(" "));
            return Err(CniError::new(code::DELEGATE_MISSING, message));
        };
        Ok(Self { name: plugin.to_owned(), program })
    }

    /// Has it allocate addresses.
    ///
    /// # Errors
    /// The plugin's own code and message, with its name; code 103 if it fails without a word or its result cannot
    /// be read. After any of these the caller should have it do a DEL.
    pub fn add(&self, environment: &Environment, stdin: &[u8]) -> Result<CniResult, CniError> {
        let stdout = self.run(Verb::Add, environment, stdin)?;
        let result = CniResult::parse(&stdout);
        result.map_err(|error| {
            let context = format!("cannot read the result of IPAM plugin {:?}", self.name);
            CniError { code: code::DELEGATE_FAILED, ..error.context(&context) }
        })
    }

    /// Has it do a verb that has no result (DEL, CHECK, GC, STATUS). `verb` may differ from the call's own: a
    /// failed ADD is followed by the delegate's DEL.
    ///
    /// # Errors
    /// As [`Delegate::add`].
    pub fn call(&self, verb: Verb, environment: &Environment, stdin: &[u8]) -> Result<(), CniError> {
        self.run(verb, environment, stdin).map(drop)
    }

    fn run(&self, verb: Verb, environment: &Environment, stdin: &[u8]) -> Result<Vec<u8>, CniError> {
        let finished = self.spawn(verb, environment).and_then(|child| self.converse(child, stdin))?;
        if finished.success {
            return Ok(finished.stdout);
        }
        let context = format!("IPAM plugin {:?} failed on {verb}", self.name);
        if let Some(error) = CniError::parse(&finished.stdout) {
            return Err(error.context(&context));
        }
        let said = String::from_utf8_lossy(&finished.stdout);
        let said: String = said.trim().chars().take(QUOTED).collect();
        let error = CniError::new(code::DELEGATE_FAILED, format!("{context}: {}", finished.status));
        Err(error.with_details(said))
    }

    /// The environment is inherited, with it CNI_ARGS, TRACEPARENT and what else the runtime set; what the call
    /// was validated by is set again, so that both see the same.
    fn spawn(&self, verb: Verb, environment: &Environment) -> Result<Child, CniError> {
        let mut command = Command::new(&self.program);
        command.env("CNI_COMMAND", verb.as_str());
        if environment.verb.is_of_container() {
            command.env("CNI_CONTAINERID", &environment.container);
            command.env("CNI_IFNAME", &environment.ifname);
            command.env("CNI_NETNS", environment.netns.as_deref().unwrap_or_default());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| {
            let message = format!("cannot run IPAM plugin {}: {error}", self.program.display());
            CniError::new(code::DELEGATE_MISSING, message)
        })
    }

    /// Writes and reads at the same time: a plugin that prints before it has read all would otherwise wait for
    /// us while we wait for it. The child is always waited for.
    fn converse(&self, mut child: Child, stdin: &[u8]) -> Result<Finished, CniError> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            let message = format!("cannot {what} IPAM plugin {:?}: {why}", self.name);
            CniError::new(code::IO_FAILURE, message)
        };
        let (to_child, from_child) = (child.stdin.take(), child.stdout.take());
        let mut stdout = Vec::new();
        let (written, read) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || match to_child {
                Some(mut pipe) => pipe.write_all(stdin),
                None => Ok(()),
            });
            let read = match from_child {
                Some(pipe) => pipe.take(MAX_INPUT as u64 + 1).read_to_end(&mut stdout),
                None => Ok(0),
            };
            if stdout.len() > MAX_INPUT {
                // It may never stop printing, and then never read what the writer waits to write.
                let _ = child.kill();
            }
            (writer.join(), read)
        });
        let status = child.wait().map_err(|error| failed("wait for", &error))?;
        read.map_err(|error| failed("read from", &error))?;
        if stdout.len() > MAX_INPUT {
            return Err(failed("read from", &format_args!("it printed more than {MAX_INPUT} bytes")));
        }
        match written {
            // A plugin need not read its standard input (loopback's DEL does not).
            Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(failed("write to", &error));
            }
            Err(_) => return Err(failed("write to", &"the writing thread ended early")),
            Ok(_) => {}
        }
        Ok(Finished { success: status.success(), status: status.to_string(), stdout })
    }
}

#[cfg(test)]
mod tests;
