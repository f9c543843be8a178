//! The clock and the name of this boot.

use std::fs;

use nix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};

/// Milliseconds since the machine booted, counting sleep (CLOCK_BOOTTIME): nobody can set this clock back.
///
/// # Errors
/// None on a Linux of this century (CLOCK_BOOTTIME came with 2.6.39).
pub fn boot_millis() -> Result<u64> {
    let now =
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_err(|e| Error::new("read clock", "CLOCK_BOOTTIME", e))?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000;
    Ok(seconds.saturating_mul(1000).saturating_add(millis))
}

/// The random id that the kernel draws at each boot, a UUID in text.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(|e| Error::io("read", PATH, &e))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_and_the_boot_stays() {
        let before = boot_millis().expect("clock");
        let after =
            (0..).map(|_| boot_millis().expect("clock")).find(|now| *now != before).expect("time passes");
        assert!(after > before && after < before + 60_000, "{before} {after}");
        let id = boot_id().expect("/proc");
        assert_eq!(id.len(), 36, "{id}");
        assert_eq!(boot_id().expect("/proc"), id);
    }
}
