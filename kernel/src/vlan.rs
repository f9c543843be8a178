//! VLANs of bridge ports (bridge(8), `vlan`), for kernels that have them.

use std::ops::RangeInclusive;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};

use crate::error::Result;
use crate::link::{self, BridgeSpec, LinkRef};
use crate::mac::MacAddr;
use crate::netlink::{Netlink, Request};
use crate::netns::in_throw_away_netns;

/// The VLAN that a bridge puts every new port in.
pub const DEFAULT: u16 = 1;

/// How a port is in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagging {
    /// Frames carry the VLAN's tag.
    Tagged,
    /// Frames carry no tag, and frames without one belong to this VLAN.
    Untagged,
}

/// Puts a port into VLANs. The bridge must filter VLANs, or nothing comes of it.
pub fn join(ifindex: u32, name: &str, vlans: &RangeInclusive<u16>, tagging: Tagging) -> Request<'static> {
    let flags = match tagging {
        Tagging::Tagged => BridgeVlanInfoFlags::empty(),
        Tagging::Untagged => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
    };
    Request::change("join VLAN of", name, RouteNetlinkMessage::SetLink(message(ifindex, vlans, flags)))
}

/// Takes a port out of VLANs.
pub fn leave(ifindex: u32, name: &str, vlans: &RangeInclusive<u16>) -> Request<'static> {
    let message = message(ifindex, vlans, BridgeVlanInfoFlags::empty());
    Request::change("leave VLAN of", name, RouteNetlinkMessage::DelLink(message))
}

fn message(ifindex: u32, vlans: &RangeInclusive<u16>, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = ifindex;
    let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let mut spec = Vec::new();
    let (first, last) = (*vlans.start(), *vlans.end());
    if first == last {
        spec.push(info(first, flags));
    } else {
        spec.push(info(first, flags | BridgeVlanInfoFlags::RangeBegin));
        spec.push(info(last, flags | BridgeVlanInfoFlags::RangeEnd));
    }
    message.attributes.push(LinkAttribute::AfSpecBridge(spec));
    message
}

/// Whether this kernel's bridges can filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING). Asked of a bridge in a network
/// namespace made for that.
///
/// # Errors
/// No namespace or bridge can be made (EPERM).
pub fn is_supported() -> Result<bool> {
    in_throw_away_netns(|| {
        let mut netlink = Netlink::open()?;
        let spec = BridgeSpec {
            name: "probe",
            mac: MacAddr::local([0; 6]),
            mtu: None,
            mcast_snooping: None,
            mcast_querier: None,
            vlan_filtering: None,
        };
        let probe = netlink.apply_then_link(&[link::create_bridge(&spec)], LinkRef::Name(spec.name))?;
        Ok(probe.and_then(|probe| probe.bridge).is_some_and(|bridge| bridge.vlan_filtering.is_some()))
    })?
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn bytes(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    /// `struct ifinfomsg` of link 5 in the bridge family, then IFLA_AF_SPEC.
    fn expected(infos: &[(u16, [u16; 2])]) -> Vec<u8> {
        let mut spec = Vec::new();
        for (kind, words) in infos {
            spec.extend([8, *kind, words[0], words[1]]);
        }
        let mut words: Vec<u16> = vec![7, 0, 5, 0, 0, 0, 0, 0];
        words.extend([4 + 2 * u16::try_from(spec.len()).unwrap(), 26]);
        words.extend(spec);
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// As iproute2's `bridge vlan add dev … vid 100 pvid untagged` writes it; kernels to test with are rare.
    #[test]
    fn a_ports_vlan_is_written_as_iproute2_does() {
        let untagged = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let one = message(5, &(100..=100), untagged);
        assert_eq!(bytes(&one), expected(&[(2, [6, 100])]));
        let range = message(5, &(200..=210), BridgeVlanInfoFlags::empty());
        assert_eq!(bytes(&range), expected(&[(2, [8, 200]), (2, [16, 210])]));
    }
}
