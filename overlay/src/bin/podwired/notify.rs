//! What systemd wants to hear from a service of `Type=notify` (sd_notify(3)).

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Tells systemd, if it is there, that plugins are served now.
pub(crate) fn ready() {
    tell("READY=1");
}

/// Tells systemd that the end has begun.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// One line for `systemctl status`.
pub(crate) fn status(line: &str) {
    // A message ends at its line's end.
    tell(&format!("STATUS={}", line.replace(['\n', '\r'], " ")));
}

/// Tells systemd's watchdog that the agent lives.
pub(crate) fn alive() {
    tell("WATCHDOG=1");
}

/// How often systemd's watchdog wants to hear from this process; `None` if it does not.
pub(crate) fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| is_for_us && *usec > 0).map(Duration::from_micros)
}

fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, "cannot tell systemd {state}");
    }
}

fn send(path: &OsStr, state: &str) -> std::io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_the_file_system_or_an_abstract_one_hears_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("notify");
        let hears = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let name = format!("podwired-notify-{}", std::process::id());
        let abstract_hears =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        for socket in [hears, abstract_hears] {
            let mut text = [0; 16];
            let length = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1");
        }
    }
}
