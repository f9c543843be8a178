//! Programs with a time limit.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::error::{LabError, Result};

/// How long a program may take where a test says nothing else: far more than any needs, also on a busy
/// two-core machine, and less than a person waits before asking what hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended, and what it wrote.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit status; a program that passed its limit was killed with SIGKILL.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// From before the start to after the end.
    pub duration: Duration,
    /// It was killed because it passed its time limit.
    pub timed_out: bool,
}

impl Finished {
    /// The exit code; `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself, if the program ended with 0.
    ///
    /// # Errors
    /// Otherwise an error with all that it wrote.
    pub fn success(self, what: &str) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let late = if self.timed_out { " (killed: time limit)" } else { "" };
        Err(LabError::new(format!(
            "{what}: {}{late}: {} {}",
            self.status,
            self.out().trim(),
            self.err().trim()
        )))
    }
}

/// A command with its input and output set up for [`finish`].
pub fn program(path: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Feeds `stdin` to a child made from [`program`], reads what it writes, and waits for its end, killing it
/// after `limit`. `began` is when it was started.
///
/// # Errors
/// If the child cannot be waited for.
#[expect(clippy::disallowed_methods, reason = "std has no wait with a time limit")]
pub fn finish(mut child: Child, stdin: &[u8], began: Instant, limit: Duration) -> Result<Finished> {
    if let Some(mut pipe) = child.stdin.take() {
        // A pipe takes 64 KiB without a reader; more is written by a thread that may outlive this call when a
        // killed program's descendants hold the other end.
        let input = stdin.to_vec();
        if input.len() <= 32 << 10 {
            // A program that ends without reading its input is no error of ours.
            let _ = pipe.write_all(&input);
        } else {
            std::thread::spawn(move || pipe.write_all(&input));
        }
    }
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let deadline = began + limit;
    let mut timed_out = false;
    let mut pause = Duration::from_micros(200);
    let mut out = None;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(LabError::because("wait for a program"))? {
            break status;
        }
        if Instant::now() >= deadline && !timed_out {
            timed_out = true;
            child.kill().map_err(LabError::because("kill a program that passed its time limit"))?;
        }
        // The end of its output comes just before its end, and wakes this up without polling.
        match &stdout {
            Some(end) if out.is_none() => {
                out = end.recv_timeout(pause).ok();
                pause = if out.is_some() { Duration::from_micros(50) } else { pause * 2 };
            }
            _ => {
                std::thread::sleep(pause);
                pause *= 2;
            }
        }
        pause = pause.min(Duration::from_millis(20));
    };
    let duration = began.elapsed();
    // What a daemon that it left behind still holds open is not waited for.
    let grace = Instant::now() + Duration::from_secs(1);
    out = out.or_else(|| stdout.as_ref().and_then(|end| until(end, grace)));
    let err = stderr.as_ref().and_then(|end| until(end, grace));
    Ok(Finished {
        status,
        stdout: out.unwrap_or_default(),
        stderr: err.unwrap_or_default(),
        duration,
        timed_out,
    })
}

/// Asks until the answer is yes or `limit` has passed; gives the last answer. For what nobody reports: the state of
/// another program or of the kernel.
#[expect(
    clippy::disallowed_methods,
    reason = "other programs' states can only be asked for, again and again"
)]
pub fn wait_for(limit: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if ask() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (done, end) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = done.send(bytes);
    });
    end
}

fn until(end: &Receiver<Vec<u8>>, deadline: Instant) -> Option<Vec<u8>> {
    end.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}
