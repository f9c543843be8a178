//! VLANs of bridges and their ports (bridge(8), `vlan`), for kernels that have them.

use std::ops::RangeInclusive;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};

use crate::error::Result;
use crate::link::{self, BridgeSpec, LinkRef};
use crate::mac::MacAddr;
use crate::netlink::{Netlink, Request};
use crate::netns::in_throw_away_netns;

/// The VLAN that a bridge puts every new port in.
pub const DEFAULT: u16 = 1;

/// Whose VLANs they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A port's.
    Port,
    /// The bridge's own: those in which the node itself takes part.
    Bridge,
}

/// How a link is in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tagging {
    /// Frames carry the VLAN's tag.
    Tagged,
    /// Frames carry no tag, and frames without one belong to this VLAN.
    Untagged,
}

/// Puts a link into VLANs. The bridge must filter VLANs, or nothing comes of it.
pub fn join(
    ifindex: u32,
    name: &str,
    side: Side,
    vlans: &RangeInclusive<u16>,
    tagging: Tagging,
) -> Request<'static> {
    let flags = match tagging {
        Tagging::Tagged => BridgeVlanInfoFlags::empty(),
        Tagging::Untagged => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
    };
    Request::change("join VLAN of", name, RouteNetlinkMessage::SetLink(message(ifindex, side, vlans, flags)))
}

/// Takes a link out of VLANs.
pub fn leave(ifindex: u32, name: &str, side: Side, vlans: &RangeInclusive<u16>) -> Request<'static> {
    let message = message(ifindex, side, vlans, BridgeVlanInfoFlags::empty());
    Request::change("leave VLAN of", name, RouteNetlinkMessage::DelLink(message))
}

fn message(ifindex: u32, side: Side, vlans: &RangeInclusive<u16>, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = ifindex;
    let info = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let mut spec = Vec::new();
    if side == Side::Bridge {
        spec.push(AfSpecBridge::Flags(BridgeFlag::LowerDev));
    }
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
