//! The log: lines on standard error, which systemd keeps.

use tracing_subscriber::EnvFilter;

use crate::cli::{LogFormat, Run};

pub(crate) fn begin(options: &Run) -> Result<(), String> {
    let filter = EnvFilter::try_new(&options.log_level)
        .map_err(|error| format!("--log-level {:?}: {error}", options.log_level))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match options.log_format {
        LogFormat::Text => log.with_ansi(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| format!("cannot begin the log: {error}"))
}
