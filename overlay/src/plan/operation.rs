//! The operations that plans are made of. They print as the commands that would do the same.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::link::Vxlan;
use podwire_kernel::{Family, MacAddr};

use crate::desired::{Device, DeviceId, FdbItem, MARK, NeighbourItem, PeerRoute, Via};

/// One change of the kernel's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Remove a device that is in the way or not needed any more, with all it has.
    DeleteDevice {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// Make a device, its MAC address in the same message; then its alias ([`MARK`]) and no automatic IPv6 addresses. It
    /// is not up.
    CreateDevice(Device),
    /// Change a device in place.
    ChangeDevice {
        /// Which.
        device: DeviceId,
        /// How.
        change: DeviceChange,
    },
    /// Set a sysctl.
    SetSysctl {
        /// Its name below /proc/sys.
        name: String,
        /// Its value.
        value: String,
    },
    /// Let the node pass on packets of that family; see [`podwire_kernel::sysctl::enable_forwarding`].
    EnableForwarding(Family),
    /// Give a link an address.
    AddAddress {
        /// The link.
        link: Via,
        /// The address.
        address: IpNetwork,
    },
    /// Take an address from a link.
    RemoveAddress {
        /// The link.
        link: Via,
        /// The address.
        address: IpNetwork,
    },
    /// Make a permanent neighbour, in the place of whatever is there.
    SetNeighbour(NeighbourItem),
    /// Make a permanent forwarding entry, in the place of that MAC address's.
    SetFdb(FdbItem),
    /// Make a route where there is none of that destination and metric. One that there is all the same is somebody
    /// else's: it stays.
    AddRoute(PeerRoute),
    /// Make a route in the place of ours, or of one by our device.
    ReplaceRoute(PeerRoute),
    /// Remove a route of ours. It is named in full, protocol and next hop too, so that nobody else's goes instead.
    RemoveRoute(PeerRoute),
    /// Remove a neighbour.
    RemoveNeighbour {
        /// On which device.
        device: DeviceId,
        /// Its address.
        address: IpAddr,
    },
    /// Remove a forwarding entry.
    RemoveFdb {
        /// Of which device.
        device: DeviceId,
        /// The Ethernet address.
        mac: MacAddr,
        /// The machine, where there is one.
        remote: Option<IpAddr>,
    },
}

/// What to change of a device; `None` and `false` leave as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceChange {
    /// The settings that can be changed in place: local address, learning, TTL, DF.
    pub settings: Option<Vxlan>,
    /// The MAC address. The kernel then drops all neighbours of the device and keeps its routes.
    pub mac: Option<MacAddr>,
    /// The MTU, in bytes.
    pub mtu: Option<u32>,
    /// Give it our mark.
    pub mark: bool,
    /// No automatic IPv6 addresses.
    pub no_addresses: bool,
    /// Take it out of a bridge.
    pub detach: bool,
    /// Switch it on.
    pub up: bool,
}

/// The sysctl by which a node passes on packets of a family.
pub fn forwarding_sysctl(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => f.write_str(device.name()),
            Self::Link(index) => write!(f, "{index}"),
        }
    }
}

impl fmt::Display for PeerRoute {
    /// As `ip route` would write it; links that are not ours by their number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, via, gateway, metric, mtu } = self;
        let family = if destination.is_ipv4() && gateway.is_ipv6() { "inet6 " } else { "" };
        write!(f, "{destination} via {family}{gateway} dev {via} proto 112 metric {metric}")?;
        if matches!(via, Via::Device(_)) {
            f.write_str(" onlink")?;
        }
        mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

fn ip(destination: IpNetwork) -> &'static str {
    if destination.is_ipv4() { "ip" } else { "ip -6" }
}

impl fmt::Display for Operation {
    /// As a command; links that are not ours by their number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteDevice { name, .. } => write!(f, "ip link del {name}"),
            Self::CreateDevice(device) => {
                let Device { id, mac, mtu, local, .. } = device;
                let Vxlan { vni, port, ttl, .. } = device.vxlan();
                write!(
                    f,
                    "ip link add {} address {mac} mtu {mtu} type vxlan id {vni} dstport {port} local {local} ttl {ttl} \
                     nolearning noudpcsum",
                    id.name()
                )
            }
            Self::ChangeDevice { device, change } => change.write(f, device.name()),
            Self::SetSysctl { name, value } => write!(f, "sysctl -w {name}={value}"),
            Self::EnableForwarding(family) => write!(f, "sysctl -w {}=1", forwarding_sysctl(*family)),
            Self::AddAddress { link, address } => {
                let nodad = if address.is_ipv6() { " nodad" } else { "" };
                write!(f, "{} addr add {address} dev {link} proto 0x70{nodad}", ip(*address))
            }
            Self::RemoveAddress { link, address } => {
                write!(f, "{} addr del {address} dev {link}", ip(*address))
            }
            Self::SetNeighbour(NeighbourItem { device, address, mac }) => {
                write!(f, "ip neigh replace {address} lladdr {mac} dev {} nud permanent", device.name())
            }
            Self::SetFdb(FdbItem { device, mac, remote }) => {
                write!(f, "bridge fdb replace {mac} dev {} dst {remote} self permanent", device.name())
            }
            Self::AddRoute(route) => write!(f, "{} route add {route}", ip(route.destination)),
            Self::ReplaceRoute(route) => write!(f, "{} route replace {route}", ip(route.destination)),
            Self::RemoveRoute(route) => write!(f, "{} route del {route}", ip(route.destination)),
            Self::RemoveNeighbour { device, address } => {
                write!(f, "ip neigh del {address} dev {}", device.name())
            }
            Self::RemoveFdb { device, mac, remote } => {
                write!(f, "bridge fdb del {mac} dev {} self", device.name())?;
                remote.map_or(Ok(()), |remote| write!(f, " dst {remote}"))
            }
        }
    }
}

impl DeviceChange {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let Self { settings, mac, mtu, mark, no_addresses, detach, up } = self;
        write!(f, "ip link set {name}")?;
        if *up {
            f.write_str(" up")?;
        }
        if let Some(mac) = mac {
            write!(f, " address {mac}")?;
        }
        if let Some(mtu) = mtu {
            write!(f, " mtu {mtu}")?;
        }
        if *detach {
            f.write_str(" nomaster")?;
        }
        if *mark {
            write!(f, " alias '{MARK}'")?;
        }
        if *no_addresses {
            f.write_str(" addrgenmode none")?;
        }
        if let Some(settings) = settings {
            let learning = if settings.learning { "learning" } else { "nolearning" };
            write!(f, " type vxlan {learning} ttl {}", settings.ttl)?;
            if let Some(local) = settings.local {
                write!(f, " local {local}")?;
            }
        }
        Ok(())
    }
}
