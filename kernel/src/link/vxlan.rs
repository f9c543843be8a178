//! VXLAN devices: Ethernet between machines, inside UDP.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, VxlanDf};

use super::{LinkRef, addressed, named, push_mac_and_mtu};
use crate::mac::MacAddr;
use crate::netlink::Request;
use crate::reply::{attributes, be16_at, be32_at, ip, u32_at};

/// A VXLAN device's settings. What [`create_vxlan`] was given is what [`Link::vxlan`](super::Link::vxlan) reads back,
/// so that equality tells whether somebody made or changed it otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, below 2²⁴.
    pub vni: u32,
    /// The UDP port that it receives on and sends to.
    pub port: u16,
    /// The source address of what it sends; its family is the only one that the device uses. `None`: chosen by the
    /// route, IPv4.
    pub local: Option<IpAddr>,
    /// The link that it is bound to; with it the device goes too. `None`: whatever the routes say.
    pub parent: Option<u32>,
    /// Where frames go whose address has no forwarding entry, perhaps a multicast group; `None`: nowhere.
    pub remote: Option<IpAddr>,
    /// It makes forwarding entries from what it receives.
    pub learning: bool,
    /// The time to live (hop limit) of what it sends; 0 for the kernel's default.
    pub ttl: u8,
    /// Whether routers may fragment what it sends over IPv4.
    pub df: Df,
    /// It puts a UDP checksum on what it sends over IPv4.
    pub udp_checksum: bool,
    /// It leaves out the UDP checksum over IPv6 (RFC 6935).
    pub zero_checksum6_tx: bool,
    /// It takes packets over IPv6 that have no UDP checksum.
    pub zero_checksum6_rx: bool,
    /// VNI and destination come with each packet, from a route or program (collect metadata).
    pub external: bool,
    /// Some other option is on that podwire never sets: proxy, route short-circuit, notices of misses, group policy,
    /// GPE, remote checksum offload, VNI filter, inherited TTL or TOS, a flow label, no local bypass.
    pub unusual: bool,
}

/// The "don't fragment" bit of outer IPv4 headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Df {
    /// Cleared, the kernel's default.
    #[default]
    Unset,
    /// Set.
    Set,
    /// That of the packet inside.
    Inherit,
    /// A way of a later kernel's.
    Other(u8),
}

impl Vxlan {
    /// A device that learns nothing, floods nothing, and leaves out UDP checksums over IPv4 but not over IPv6; TTL 64.
    pub fn new(vni: u32, port: u16, local: Option<IpAddr>) -> Self {
        Self {
            vni,
            port,
            local,
            parent: None,
            remote: None,
            learning: false,
            ttl: 64,
            df: Df::Unset,
            udp_checksum: false,
            zero_checksum6_tx: false,
            zero_checksum6_rx: false,
            external: false,
            unusual: false,
        }
    }

    fn data(&self) -> Vec<InfoVxlan> {
        let mut data = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::Ttl(self.ttl),
            InfoVxlan::Df(match self.df {
                Df::Unset => VxlanDf::Unset,
                Df::Set => VxlanDf::Set,
                Df::Inherit => VxlanDf::Inherit,
                Df::Other(other) => VxlanDf::Other(other),
            }),
            InfoVxlan::UDPCsum(self.udp_checksum),
            InfoVxlan::UDPZeroCsumTX(self.zero_checksum6_tx),
            InfoVxlan::UDPZeroCsumRX(self.zero_checksum6_rx),
        ];
        data.extend(self.local.map(local));
        data.extend(self.parent.map(InfoVxlan::Link));
        data.extend(self.remote.map(|remote| match remote {
            IpAddr::V4(remote) => InfoVxlan::Group(remote),
            IpAddr::V6(remote) => InfoVxlan::Group6(remote),
        }));
        if self.external {
            data.push(InfoVxlan::CollectMetadata(true));
        }
        data
    }

    /// IFLA_INFO_DATA of a link of kind "vxlan".
    pub(super) fn parse(data: &[u8]) -> Self {
        let mut vxlan = Self { ttl: 0, zero_checksum6_tx: false, ..Self::new(0, 0, None) };
        let mut local_bypass = true;
        for (kind, value) in attributes(data) {
            let on = value.first().is_some_and(|value| *value != 0);
            match kind {
                1 => vxlan.vni = u32_at(value, 0).unwrap_or(0),
                2 | 16 => vxlan.remote = ip(value).filter(|remote| !remote.is_unspecified()),
                3 => vxlan.parent = u32_at(value, 0).filter(|index| *index != 0),
                4 | 17 => vxlan.local = ip(value).filter(|local| !local.is_unspecified()),
                5 => vxlan.ttl = value.first().copied().unwrap_or(0),
                7 => vxlan.learning = on,
                15 => vxlan.port = be16_at(value, 0).unwrap_or(0),
                18 => vxlan.udp_checksum = on,
                19 => vxlan.zero_checksum6_tx = on,
                20 => vxlan.zero_checksum6_rx = on,
                25 => vxlan.external = on,
                26 => vxlan.unusual |= be32_at(value, 0) != Some(0),
                29 => {
                    vxlan.df = match value.first() {
                        None | Some(0) => Df::Unset,
                        Some(1) => Df::Set,
                        Some(2) => Df::Inherit,
                        Some(other) => Df::Other(*other),
                    }
                }
                31 => local_bypass = on,
                // TOS, PROXY, RSC, L2MISS, L3MISS, REMCSUM_TX and _RX, TTL_INHERIT, VNIFILTER: numbers that are 0.
                6 | 11..=14 | 21 | 22 | 28 | 30 => vxlan.unusual |= on,
                // GBP and GPE: there or not.
                23 | 27 => vxlan.unusual = true,
                _ => {}
            }
        }
        vxlan.unusual |= !local_bypass;
        vxlan
    }
}

/// Makes a VXLAN device. It is not up. The MAC address is in the message that makes it: one that is set later comes
/// too late for programs that were told of the device, and systemd-udevd (`MACAddressPolicy`) leaves alone only what
/// was made with an address.
///
/// The kernel has no more than one device of a VNI, port and family in a namespace (EEXIST), whatever its local
/// address.
pub fn create_vxlan(name: &str, mac: MacAddr, mtu: Option<u32>, settings: &Vxlan) -> Request<'static> {
    let mut message = named(name);
    push_mac_and_mtu(&mut message, Some(mac), mtu);
    message.attributes.push(info(settings.data()));
    Request::create("create vxlan", name, RouteNetlinkMessage::NewLink(message))
}

/// Changes of a VXLAN device what the kernel can change in place: the source address of what it sends, within its
/// family, and learning, TTL and DF. Everything else of it stays, routes, neighbours and forwarding entries too. The kernel
/// refuses (EOPNOTSUPP) another VNI or port, other checksums and another kind of operation.
///
/// A forwarding entry that was used remembers the source address that it was used with (its `dst_cache`), for as long as
/// that route is valid: after a change of the source address, entries must be removed and made again, since to replace one
/// by the same changes nothing.
pub fn change_vxlan(link: LinkRef<'_>, settings: &Vxlan) -> Request<'static> {
    let mut message = addressed(link);
    let mut data = settings.data();
    // A port is refused even if it is the same.
    data.retain(|data| {
        matches!(
            data,
            InfoVxlan::Local(_)
                | InfoVxlan::Local6(_)
                | InfoVxlan::Learning(_)
                | InfoVxlan::Ttl(_)
                | InfoVxlan::Df(_)
        )
    });
    message.attributes.push(info(data));
    Request::change("change vxlan", link.to_string(), RouteNetlinkMessage::NewLink(message))
}

fn local(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

fn info(data: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))])
}
