//! The loopback plugin: containerd calls it for each pod, beside the pod's network.

use crate::protocol::{CniError, Environment};

/// Serves one call of any verb but VERSION; the text, if any, belongs on standard output.
///
/// # Errors
/// Code 8 if CNI_NETNS is no network namespace or the host's own; code 100 if the kernel refuses; code 101 if
/// CHECK finds the interface down; and those of the configuration.
pub fn run(environment: &Environment, stdin: &[u8]) -> Result<Option<String>, CniError> {
    let _ = (environment, stdin);
    Ok(None)
}
