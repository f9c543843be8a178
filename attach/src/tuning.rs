//! Settings of a pod's interface and network namespace beyond its attachment; the reference tuning plugin's. PURE.

use podwire_kernel::MacAddr;

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
