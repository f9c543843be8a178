//! Links: veth pairs, bridges and their ports, VXLAN devices.
//!
//! A veth's two ends live in two network namespaces from the start: one message makes the host's end, puts it into
//! its bridge and makes the pod's end, under its final name, inside the pod's namespace. What the kernel does not
//! take in the creating message (alias, IPv6 address generation, port flags) follows in the same send by
//! [`change`]; both ends come up only after that.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags as Iff, LinkInfo,
    LinkMessage,
};

use crate::mac::MacAddr;
use crate::netlink::Request;
use crate::reply::{attributes, i32_at, text, u16_at, u32_at};

mod vxlan;

pub use vxlan::{Df, Vxlan, change_vxlan, create_vxlan};

/// The loopback link's index, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// The longest name of a link, in bytes (IFNAMSIZ − 1).
pub const MAX_NAME: usize = 15;

/// The longest alias of a link, in bytes (IFALIASZ − 1).
pub const MAX_ALIAS: usize = 255;

/// How a request names a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By its index, which no other link of its namespace has while it lives.
    Index(u32),
    /// By its name, which may by now belong to another link.
    Name(&'a str),
}

impl fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in its namespace; never reused while the link lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` if it is no Ethernet device.
    pub mac: Option<MacAddr>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its state.
    pub flags: LinkFlags,
    /// The driver's name: `veth`, `bridge`, `vxlan`; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The index of the bridge (or bond, or VRF) that it is a port of.
    pub controller: Option<u32>,
    /// For a veth the index of its other end, in that end's namespace; for a VLAN and the like its parent.
    pub peer_index: Option<u32>,
    /// This namespace's id of the namespace that the other end is in; `None` if it is in this one.
    pub peer_nsid: Option<i32>,
    /// The free text that an administrator or program gave it; up to 255 bytes.
    pub alias: Option<String>,
    /// Its group; 0 unless somebody chose another.
    pub group: u32,
    /// How many packets its transmit queue holds, where its queueing discipline asks (IFLA_TXQLEN).
    pub tx_queue_length: u32,
    /// Its settings as a bridge's port; `None` if it is none.
    pub port: Option<BridgePort>,
    /// Its settings as a bridge; `None` if it is none.
    pub bridge: Option<BridgeState>,
    /// Its settings as a VXLAN device; `None` if it is none.
    pub vxlan: Option<Vxlan>,
    /// How it makes itself IPv6 addresses; `None` if it has no IPv6.
    pub addr_gen_mode: Option<AddrGenMode>,
}

/// A link's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFlags {
    /// It was switched on (IFF_UP).
    pub up: bool,
    /// It is on and has a carrier (IFF_RUNNING).
    pub running: bool,
    /// It takes frames for all addresses (IFF_PROMISC), by request.
    pub promisc: bool,
    /// It takes frames for all multicast addresses (IFF_ALLMULTI), by request.
    pub all_multicast: bool,
}

/// A bridge port's settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// A frame may go back out of the port that it came in by.
    pub hairpin: bool,
    /// It exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// Multicast without known listeners is sent to it.
    pub mcast_flood: bool,
}

/// A bridge's settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeState {
    /// It learns which ports listen to which multicast groups.
    pub mcast_snooping: bool,
    /// It asks for listeners itself where no router does.
    pub mcast_querier: bool,
    /// It separates VLANs. `None`: the kernel was built without (CONFIG_BRIDGE_VLAN_FILTERING).
    pub vlan_filtering: Option<bool>,
}

/// How a link makes itself IPv6 addresses (IFLA_INET6_ADDR_GEN_MODE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddrGenMode {
    /// From its MAC address, the kernel's default.
    Eui64,
    /// Not at all, not even a link-local one.
    None,
    /// From a secret (RFC 7217), or by another way.
    Other(u8),
}

/// A veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct VethSpec<'a> {
    /// The name of the host's end; up to 15 bytes.
    pub name: &'a str,
    /// The MTU of both ends, in bytes; `None` for the kernel's 1500.
    pub mtu: Option<u32>,
    /// The host end's MAC address; `None` for a random one.
    pub mac: Option<MacAddr>,
    /// The index of the bridge that the host's end becomes a port of.
    pub controller: Option<u32>,
    /// The host end's group; `None` for 0.
    pub group: Option<u32>,
    /// The name of the pod's end.
    pub peer_name: &'a str,
    /// The network namespace that the pod's end is made in.
    pub peer_netns: BorrowedFd<'a>,
    /// The pod end's MAC address; `None` for a random one.
    pub peer_mac: Option<MacAddr>,
}

/// Makes a veth pair by one message. Neither end is up: the pod's cannot be in this message (ENOTCONN), and the
/// host's must not be before [`LinkChange::addr_gen_mode`] is set.
pub fn create_veth<'a>(spec: &VethSpec<'a>) -> Request<'a> {
    let mut peer = named(spec.peer_name);
    // Without these the kernel makes a queue per possible CPU and shrinks to one, with an RCU wait for each.
    let one_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
    peer.attributes.push(LinkAttribute::NetNsFd(spec.peer_netns.as_raw_fd()));
    peer.attributes.extend(one_queue.clone());
    push_mac_and_mtu(&mut peer, spec.peer_mac, spec.mtu);

    let mut message = named(spec.name);
    message.attributes.extend(one_queue);
    push_mac_and_mtu(&mut message, spec.mac, spec.mtu);
    message.attributes.extend(spec.controller.map(LinkAttribute::Controller));
    message.attributes.extend(spec.group.map(LinkAttribute::Group));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request::create("create veth", spec.name, RouteNetlinkMessage::NewLink(message))
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy)]
pub struct BridgeSpec<'a> {
    /// Its name; up to 15 bytes.
    pub name: &'a str,
    /// Its MAC address, fixed from the start: a bridge without one takes the lowest of its ports', which changes as
    /// pods come and go and makes all neighbours wrong.
    pub mac: MacAddr,
    /// Its MTU, in bytes; `None` to follow its ports'.
    pub mtu: Option<u32>,
    /// See [`BridgeState::mcast_snooping`]; `None` for the kernel's default, on.
    pub mcast_snooping: Option<bool>,
    /// See [`BridgeState::mcast_querier`]; `None` for the kernel's default, off.
    pub mcast_querier: Option<bool>,
    /// See [`BridgeState::vlan_filtering`]; `None` for the kernel's default, off. A kernel without passes over it.
    pub vlan_filtering: Option<bool>,
}

/// Makes a bridge. It is not up.
pub fn create_bridge(spec: &BridgeSpec<'_>) -> Request<'static> {
    let mut message = named(spec.name);
    push_mac_and_mtu(&mut message, Some(spec.mac), spec.mtu);
    let mut data = Vec::new();
    data.extend(spec.mcast_snooping.map(InfoBridge::MulticastSnooping));
    data.extend(spec.mcast_querier.map(InfoBridge::MulticastQuerier));
    data.extend(spec.vlan_filtering.map(InfoBridge::VlanFiltering));
    let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
    if !data.is_empty() {
        info.push(LinkInfo::Data(InfoData::Bridge(data)));
    }
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Request::create("create bridge", spec.name, RouteNetlinkMessage::NewLink(message))
}

/// Makes an intermediate functional block: a link that gives back, as received, what is sent to it, so that what a
/// link receives can wait in a queue. It is not up.
pub fn create_ifb(name: &str) -> Request<'static> {
    let mut message = named(name);
    message.attributes.extend([LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]);
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
    Request::create("create ifb", name, RouteNetlinkMessage::NewLink(message))
}

/// What to change of a link; `None` leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Another name; the link must be named by index.
    pub name: Option<String>,
    /// Switch it on or off.
    pub up: Option<bool>,
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The Ethernet address.
    pub mac: Option<MacAddr>,
    /// The alias, up to 255 bytes; empty removes it.
    pub alias: Option<String>,
    /// The index of the bridge that it becomes a port of; 0 for none.
    pub controller: Option<u32>,
    /// How it makes itself IPv6 addresses. Has its effect before the link comes up only.
    pub addr_gen_mode: Option<AddrGenMode>,
    /// Its group.
    pub group: Option<u32>,
    /// See [`LinkFlags::promisc`].
    pub promisc: Option<bool>,
    /// See [`LinkFlags::all_multicast`].
    pub all_multicast: Option<bool>,
    /// See [`Link::tx_queue_length`].
    pub tx_queue_length: Option<u32>,
    /// See [`BridgePort::hairpin`].
    pub hairpin: Option<bool>,
    /// See [`BridgePort::isolated`].
    pub isolated: Option<bool>,
    /// See [`BridgePort::mcast_flood`].
    pub mcast_flood: Option<bool>,
    /// See [`BridgeState::mcast_snooping`]; for a bridge.
    pub mcast_snooping: Option<bool>,
    /// See [`BridgeState::mcast_querier`]; for a bridge.
    pub mcast_querier: Option<bool>,
    /// See [`BridgeState::vlan_filtering`]; for a bridge.
    pub vlan_filtering: Option<bool>,
    /// Announce its IPv4 addresses by gratuitous ARP when it comes up (sysctl `arp_notify`), set here without a
    /// visit to /proc.
    pub arp_notify: Option<bool>,
}

/// Changes a link, by as many messages as the kernel's order of evaluation asks for: one, or two where the link
/// comes up or becomes a port. The result goes into [`Netlink::apply`](crate::Netlink::apply) as it is.
pub fn change(link: LinkRef<'_>, change: &LinkChange) -> Vec<Request<'static>> {
    let mut requests = Vec::with_capacity(2);
    let mut message = addressed(link);
    message.attributes.extend(change.name.clone().map(LinkAttribute::IfName));
    push_mac_and_mtu(&mut message, change.mac, change.mtu);
    message.attributes.extend(change.group.map(LinkAttribute::Group));
    message.attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
    message.attributes.extend(change.controller.map(LinkAttribute::Controller));
    message.attributes.extend(change.tx_queue_length.map(LinkAttribute::TxQueueLen));
    push_af_spec(&mut message, change);
    // Within one message the kernel switches the link on before it reads the address generation mode or the
    // bridge, and it sets port flags before it looks at the bridge.
    if change.addr_gen_mode.is_some() || change.arp_notify.is_some() || change.controller.is_some() {
        requests.push(Request::change(
            "change link",
            link.to_string(),
            RouteNetlinkMessage::SetLink(message),
        ));
        message = addressed(match (&change.name, link) {
            // The name is the old one no longer.
            (Some(new), LinkRef::Name(_)) => LinkRef::Name(new),
            _ => link,
        });
    }
    push_flag(&mut message, Iff::Up, change.up);
    push_flag(&mut message, Iff::Promisc, change.promisc);
    push_flag(&mut message, Iff::Allmulti, change.all_multicast);
    push_link_info(&mut message, change);
    if !message.attributes.is_empty() || !message.header.change_mask.is_empty() {
        requests.push(Request::change(
            "change link",
            link.to_string(),
            RouteNetlinkMessage::NewLink(message),
        ));
    }
    requests
}

/// Removes a link by its index; its name is for the error's text. A veth takes its other end with it.
pub fn delete(index: u32, name: &str) -> Request<'static> {
    let message = addressed(LinkRef::Index(index));
    Request::change("delete link", name, RouteNetlinkMessage::DelLink(message))
}

/// Removes whatever link has that name at this moment.
pub fn delete_named(name: &str) -> Request<'static> {
    Request::change("delete link", name, RouteNetlinkMessage::DelLink(addressed(LinkRef::Name(name))))
}

/// Removes all links of a group at once: a hundred cost hardly more than one. The kernel refuses group 0 (EPERM)
/// and groups with links that cannot be removed, such as hardware (EOPNOTSUPP).
pub fn delete_group(group: u32) -> Request<'static> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    Request::change("delete link group", group.to_string(), RouteNetlinkMessage::DelLink(message))
}

pub(crate) fn query(link: LinkRef<'_>, nsid: Option<i32>) -> Request<'static> {
    let mut message = addressed(link);
    message.attributes.extend(nsid.map(LinkAttribute::IfNetnsId));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Request::query("read link", link.to_string(), RouteNetlinkMessage::GetLink(message))
}

pub(crate) fn dump_message() -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

fn named(name: &str) -> LinkMessage {
    addressed(LinkRef::Name(name))
}

fn addressed(link: LinkRef<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(index) => message.header.index = index,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
    }
    message
}

fn push_mac_and_mtu(message: &mut LinkMessage, mac: Option<MacAddr>, mtu: Option<u32>) {
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
}

fn push_flag(message: &mut LinkMessage, flag: Iff, on: Option<bool>) {
    if let Some(on) = on {
        message.header.change_mask |= flag;
        message.header.flags.set(flag, on);
    }
}

fn push_af_spec(message: &mut LinkMessage, change: &LinkChange) {
    let mut families = Vec::new();
    if let Some(on) = change.arp_notify {
        // struct nlattr: IPV4_DEVCONF_ARP_NOTIFY (22) of 4 bytes, inside IFLA_INET_CONF (1).
        let mut setting = Vec::with_capacity(8);
        setting.extend_from_slice(&8_u16.to_ne_bytes());
        setting.extend_from_slice(&22_u16.to_ne_bytes());
        setting.extend_from_slice(&u32::from(on).to_ne_bytes());
        let settings = AfSpecInet::Other(DefaultNla::new(1 | NLA_F_NESTED, setting));
        families.push(AfSpecUnspec::Inet(vec![settings]));
    }
    if let Some(mode) = change.addr_gen_mode {
        let mode = match mode {
            AddrGenMode::Eui64 => In6AddrGenMode::Eui64,
            AddrGenMode::None => In6AddrGenMode::None,
            AddrGenMode::Other(mode) => In6AddrGenMode::Other(mode),
        };
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]));
    }
    if !families.is_empty() {
        message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
}

fn push_link_info(message: &mut LinkMessage, change: &LinkChange) {
    let mut info = Vec::new();
    let mut bridge = Vec::new();
    bridge.extend(change.mcast_snooping.map(InfoBridge::MulticastSnooping));
    bridge.extend(change.mcast_querier.map(InfoBridge::MulticastQuerier));
    bridge.extend(change.vlan_filtering.map(InfoBridge::VlanFiltering));
    if !bridge.is_empty() {
        info.push(LinkInfo::Kind(InfoKind::Bridge));
        info.push(LinkInfo::Data(InfoData::Bridge(bridge)));
    }
    let mut port = Vec::new();
    port.extend(change.hairpin.map(InfoBridgePort::HairpinMode));
    port.extend(change.isolated.map(InfoBridgePort::Isolated));
    port.extend(change.mcast_flood.map(InfoBridgePort::MulticastFlood));
    if !port.is_empty() {
        info.push(LinkInfo::PortKind(InfoPortKind::Bridge));
        info.push(LinkInfo::PortData(InfoPortData::BridgePort(port)));
    }
    if !info.is_empty() {
        message.attributes.push(LinkAttribute::LinkInfo(info));
    }
}

impl Link {
    /// Decodes `struct ifinfomsg` and its attributes; `None` if it is too short for the structure.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        const ARPHRD_ETHER: u16 = 1;
        let hardware = u16_at(payload, 2)?;
        let flags = u32_at(payload, 8)?;
        let mut link = Self {
            index: u32_at(payload, 4)?,
            flags: LinkFlags {
                up: flags & 0x1 != 0,
                running: flags & 0x40 != 0,
                promisc: flags & 0x100 != 0,
                all_multicast: flags & 0x200 != 0,
            },
            ..Self::default()
        };
        for (kind, value) in attributes(payload.get(16..)?) {
            match kind {
                1 if hardware == ARPHRD_ETHER => link.mac = value.try_into().ok().map(MacAddr),
                3 => link.name = text(value),
                4 => link.mtu = u32_at(value, 0).unwrap_or(0),
                5 => link.peer_index = u32_at(value, 0).filter(|index| *index != 0),
                13 => link.tx_queue_length = u32_at(value, 0).unwrap_or(0),
                10 => link.controller = u32_at(value, 0).filter(|index| *index != 0),
                18 => link.parse_info(value),
                20 => link.alias = Some(text(value)).filter(|alias| !alias.is_empty()),
                26 => link.addr_gen_mode = addr_gen_mode(value),
                27 => link.group = u32_at(value, 0).unwrap_or(0),
                37 => link.peer_nsid = i32_at(value, 0),
                _ => {}
            }
        }
        Some(link)
    }

    /// IFLA_LINKINFO: the kind comes before the data that depend on it.
    fn parse_info(&mut self, info: &[u8]) {
        let on = |value: &[u8]| value.first().is_some_and(|value| *value != 0);
        let mut port_kind = String::new();
        for (kind, value) in attributes(info) {
            match kind {
                1 => self.kind = Some(text(value)),
                2 if self.kind.as_deref() == Some("vxlan") => self.vxlan = Some(Vxlan::parse(value)),
                2 if self.kind.as_deref() == Some("bridge") => {
                    let bridge = self.bridge.get_or_insert_default();
                    // IFLA_BR_VLAN_DEFAULT_PVID is what only kernels with VLANs tell; 7 all tell.
                    let has_vlans = attributes(value).any(|(kind, _)| kind == 39);
                    for (kind, value) in attributes(value) {
                        match kind {
                            7 if has_vlans => bridge.vlan_filtering = Some(on(value)),
                            23 => bridge.mcast_snooping = on(value),
                            25 => bridge.mcast_querier = on(value),
                            _ => {}
                        }
                    }
                }
                4 => port_kind = text(value),
                5 if port_kind == "bridge" => {
                    let port = self.port.get_or_insert_default();
                    for (kind, value) in attributes(value) {
                        match kind {
                            4 => port.hairpin = on(value),
                            27 => port.mcast_flood = on(value),
                            33 => port.isolated = on(value),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// IFLA_AF_SPEC → AF_INET6 → IFLA_INET6_ADDR_GEN_MODE.
fn addr_gen_mode(families: &[u8]) -> Option<AddrGenMode> {
    let (_, inet6) = attributes(families).find(|(family, _)| *family == 10)?;
    let (_, mode) = attributes(inet6).find(|(kind, _)| *kind == 8)?;
    Some(match mode.first()? {
        0 => AddrGenMode::Eui64,
        1 => AddrGenMode::None,
        other => AddrGenMode::Other(*other),
    })
}
