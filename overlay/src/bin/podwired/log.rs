//! The log: lines on standard error, which systemd keeps.

use podwire_overlay::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// What of it can be changed while it goes on.
pub(crate) struct Level(Box<dyn Fn(EnvFilter) -> Result<(), String>>);

impl Level {
    /// Logs this from now on.
    pub(crate) fn set(&self, level: &str) -> Result<(), String> {
        self.0(filter(level)?)
    }
}

/// Begins it.
pub(crate) fn begin(log: &Log) -> Result<Level, String> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.level)?)
        .with_writer(std::io::stderr)
        .with_target(false);
    let failed = |error: &dyn std::fmt::Display| format!("cannot begin the log: {error}");
    match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(false).with_filter_reloading();
            let level = lines.reload_handle();
            lines.try_init().map_err(|error| failed(&error))?;
            Ok(Level(Box::new(move |filter| level.reload(filter).map_err(|error| error.to_string()))))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let level = lines.reload_handle();
            lines.try_init().map_err(|error| failed(&error))?;
            Ok(Level(Box::new(move |filter| level.reload(filter).map_err(|error| error.to_string()))))
        }
    }
}

/// Kubernetes' client logs each request that fails as an error. What of it matters is told once, by the store.
const QUIET: &str = "kube_client::client::builder=off";

fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(format!("{QUIET},{level}")).map_err(|error| format!("log.level {level:?}: {error}"))
}
