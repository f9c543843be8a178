//! Settings made and read in the pod.

use podwire_kernel::link::{self, Link, LinkChange, LinkRef};
use podwire_kernel::{Error, Netlink, Netns, sysctl};

use super::Tuning;
use crate::step::step;

/// Why a pod could not be tuned. What had been set was set back.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// There is no such sysctl.
    #[error("sysctl {0} does not exist in the container's network namespace")]
    NoSysctl(String),
    /// A sysctl does not take the value; the kernel's error names both.
    #[error("sysctl in the container's network namespace: {0}")]
    Value(Error),
    /// The pod has no such interface.
    #[error("interface {0} does not exist in the container")]
    NoInterface(String),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Tunes a pod: the settings that `tuning` names, no others. Returns what they were, which is the tuning that restores
/// them.
///
/// # Errors
/// See [`TuningError`]. Settings made before the failure are taken back.
pub fn tune(pod: &Netns, inside: &mut Netlink, ifname: &str, tuning: &Tuning) -> Result<Tuning, TuningError> {
    if tuning.is_empty() {
        return Ok(Tuning::default());
    }
    step("tune");
    let before = observe_tuning(pod, inside, ifname, tuning)?;
    match set(pod, inside, ifname, tuning) {
        Ok(()) => Ok(before),
        Err(error) => {
            // The failure is what matters; what cannot be set back is gone with the pod.
            let _ = set(pod, inside, ifname, &before);
            Err(error)
        }
    }
}

fn set(pod: &Netns, inside: &mut Netlink, ifname: &str, tuning: &Tuning) -> Result<(), TuningError> {
    let change = LinkChange {
        mac: tuning.mac,
        mtu: tuning.mtu,
        promisc: tuning.promiscuous,
        all_multicast: tuning.all_multicast,
        tx_queue_length: tuning.tx_queue_length,
        ..LinkChange::default()
    };
    inside.apply(&link::change(LinkRef::Name(ifname), &change))?;
    // After the interface: an MTU gives its sysctls other values.
    if tuning.sysctls.is_empty() {
        return Ok(());
    }
    pod.run(|| tuning.sysctls.iter().try_for_each(|(name, value)| write(name, value)))?
}

fn write(name: &str, value: &str) -> Result<(), TuningError> {
    match sysctl::write(name, value) {
        Ok(_) => Ok(()),
        Err(error) if error.is_missing() => Err(TuningError::NoSysctl(name.to_owned())),
        Err(error) => Err(TuningError::Value(error)),
    }
}

/// The settings that `tuning` names as they are. A sysctl that may be written only counts as being as wanted; one that
/// is missing is left out.
///
/// # Errors
/// No such interface; the kernel does not answer.
pub fn observe_tuning(
    pod: &Netns,
    inside: &mut Netlink,
    ifname: &str,
    tuning: &Tuning,
) -> Result<Tuning, TuningError> {
    let mut observed = Tuning::default();
    if (Tuning { sysctls: Vec::new(), ..tuning.clone() }) != observed {
        let Some(link) = inside.link(LinkRef::Name(ifname))? else {
            return Err(TuningError::NoInterface(ifname.to_owned()));
        };
        observed = of_link(&link, tuning);
    }
    if !tuning.sysctls.is_empty() {
        let read = |(name, value): &(String, String)| match sysctl::read(name) {
            Ok(read) => Some((name.clone(), read)),
            Err(error) if error.is_missing() => None,
            Err(_) => Some((name.clone(), value.clone())),
        };
        observed.sysctls = pod.run(|| tuning.sysctls.iter().filter_map(read).collect())?;
    }
    Ok(observed)
}

/// The settings of an interface that `tuning` names.
fn of_link(link: &Link, tuning: &Tuning) -> Tuning {
    Tuning {
        sysctls: Vec::new(),
        mac: tuning.mac.and(link.mac),
        mtu: tuning.mtu.map(|_| link.mtu),
        promiscuous: tuning.promiscuous.map(|_| link.flags.promisc),
        all_multicast: tuning.all_multicast.map(|_| link.flags.all_multicast),
        tx_queue_length: tuning.tx_queue_length.map(|_| link.tx_queue_length),
    }
}
