//! Named points between two effects, at which a fault test can kill the process.
//!
//! A crash is harmless or not depending on which effects it falls between, and no sleep in a test hits such a
//! point twice. Without the feature `step-hooks`, which no release build has, [`step`] is nothing.
//!
//! | environment variable | effect |
//! |---|---|
//! | `PODWIRE_STEP_KILL=<name>` | the process kills itself with SIGKILL when it comes to that step |
//! | `PODWIRE_STEP_KILL=<name>:<n>` | the same when it comes there for the n-th time, counted from 1 |
//! | `PODWIRE_STEP_TRACE=<file>` | the name of each step is appended to that file, a line each |
//! | `PODWIRE_STEP_DELAY=<name>:<ms>` | the thread sleeps so many milliseconds at that step: a slow disk, for the benchmark |

/// Says that the process has come to the step of that name.
#[cfg(not(feature = "step-hooks"))]
#[inline(always)]
pub fn step(_name: &str) {}

#[cfg(feature = "step-hooks")]
pub use hooks::step;

#[cfg(feature = "step-hooks")]
mod hooks {
    use std::env;
    use std::fs::File;
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    /// How often the process has come to the step that is to kill it.
    static VISITS: AtomicU32 = AtomicU32::new(0);

    /// Says that the process has come to the step of that name: it may end here.
    pub fn step(name: &str) {
        if let Some(path) = env::var_os("PODWIRE_STEP_TRACE")
            && let Ok(mut trace) = File::options().append(true).create(true).open(path)
        {
            // One write: several processes share the file.
            let _ = trace.write_all(format!("{name}\n").as_bytes());
        }
        if let Ok(delay) = env::var("PODWIRE_STEP_DELAY")
            && let Some((delayed, millis)) = delay.rsplit_once(':')
            && delayed == name
        {
            #[expect(clippy::disallowed_methods, reason = "the delay is what is asked for")]
            thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0)));
        }
        let Ok(kill_at) = env::var("PODWIRE_STEP_KILL") else { return };
        let (wanted, visit) = match kill_at.rsplit_once(':') {
            Some((wanted, visit)) => (wanted, visit.parse().unwrap_or(1)),
            None => (kill_at.as_str(), 1),
        };
        if wanted == name && VISITS.fetch_add(1, Ordering::SeqCst) + 1 == visit {
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    }
}
