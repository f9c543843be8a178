//! Settings of a pod's interface and network namespace beyond its attachment; the reference tuning plugin's. PURE.

mod settings;

use podwire_kernel::MacAddr;

use crate::drift::Drift;

pub use settings::{TuningError, observe_tuning, tune};

/// What to set in the pod. Everything is optional, and nothing is touched that is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Sysctls as paths below /proc/sys (`net/ipv4/conf/eth0/arp_filter`, `IFNAME` already replaced) and values,
    /// in the configuration's order.
    pub sysctls: Vec<(String, String)>,
    /// The interface's MAC address.
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Receive every frame (IFF_PROMISC).
    pub promiscuous: Option<bool>,
    /// Receive every multicast frame (IFF_ALLMULTI).
    pub all_multicast: Option<bool>,
    /// The transmit queue's length in packets.
    pub tx_queue_length: Option<u32>,
}

impl Tuning {
    /// Whether there is nothing to set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is not as it was tuned. `observed` is what [`observe_tuning`] read for these very settings.
pub fn tuning_drift(wanted: &Tuning, observed: &Tuning, ifname: &str) -> Vec<Drift> {
    let mut found = Vec::new();
    for (name, value) in &wanted.sysctls {
        let is = observed.sysctls.iter().find(|(read, _)| read == name).map(|(_, value)| value);
        if !is.is_some_and(|is| is_same_value(is, value)) {
            found.push(Drift::Sysctl(name.clone(), value.clone(), is.cloned()));
        }
    }
    if let Some(mac) = wanted.mac
        && observed.mac != Some(mac)
    {
        found.push(Drift::PodMac(ifname.to_owned(), mac, observed.mac));
    }
    if let Some(mtu) = wanted.mtu
        && observed.mtu != Some(mtu)
    {
        found.push(Drift::PodMtu(ifname.to_owned(), mtu, observed.mtu.unwrap_or(0)));
    }
    for (setting, wanted, is) in [
        ("promiscuous mode", wanted.promiscuous, observed.promiscuous),
        ("all-multicast mode", wanted.all_multicast, observed.all_multicast),
    ] {
        if let Some(on) = wanted
            && is != Some(on)
        {
            found.push(Drift::PodFlag(ifname.to_owned(), setting, on));
        }
    }
    if let Some(length) = wanted.tx_queue_length
        && observed.tx_queue_length != Some(length)
    {
        found.push(Drift::TxQueueLength(ifname.to_owned(), length, observed.tx_queue_length));
    }
    found
}

/// Values of several words are written with blanks and read with tabs.
fn is_same_value(is: &str, wanted: &str) -> bool {
    is.split_whitespace().eq(wanted.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_differs_is_named() {
        let wanted = Tuning {
            sysctls: vec![
                ("net/ipv4/tcp_rmem".to_owned(), "4096 87380 6291456".to_owned()),
                ("net/core/somaxconn".to_owned(), "500".to_owned()),
                ("net/ipv4/nothing".to_owned(), "1".to_owned()),
            ],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: Some(1400),
            promiscuous: Some(true),
            all_multicast: Some(false),
            tx_queue_length: Some(100),
        };
        let mut is = wanted.clone();
        is.sysctls.truncate(2);
        is.sysctls[0].1 = "4096\t87380\t6291456".to_owned();
        let texts = |is: &Tuning| -> Vec<String> {
            tuning_drift(&wanted, is, "eth0").iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&is), ["sysctl net/ipv4/nothing is missing in the container instead of \"1\""]);
        is.sysctls[1].1 = "4096".to_owned();
        is.mac = None;
        is.mtu = Some(1500);
        is.promiscuous = Some(false);
        is.all_multicast = Some(true);
        is.tx_queue_length = Some(1000);
        assert_eq!(texts(&is).len(), 7, "{:?}", texts(&is));
        assert!(tuning_drift(&Tuning::default(), &is, "eth0").is_empty());
    }
}
