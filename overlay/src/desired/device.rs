//! Our VXLAN devices: how they are called, and what they are.

use std::fmt::{self, Write};
use std::net::IpAddr;

use podwire_kernel::link::{Link, MAX_NAME, Vxlan};
use podwire_kernel::{Family, MacAddr};

use super::SMALLEST_MTU;
use crate::cluster::Encapsulation;

/// The alias of our devices, by which they are told from others' of the same name.
pub const MARK: &str = "podwire overlay";

/// Linux's port, which flannel has too: devices of it have short names.
const USUAL_PORT: u16 = 8472;

/// A VXLAN device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The family of the addresses that its packets travel by.
    pub family: Family,
    /// Its segment.
    pub encapsulation: Encapsulation,
    name: Name,
}

/// A link's name, in place: the way to each of thousands of peers has one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    bytes: [u8; MAX_NAME],
    length: u8,
}

impl Name {
    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        // Whole texts were written.
        str::from_utf8(bytes).unwrap_or_default()
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = usize::from(self.length) + text.len();
        let room = self.bytes.get_mut(usize::from(self.length)..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = u8::try_from(end).map_err(|_| fmt::Error)?;
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl DeviceId {
    /// The device by its usual name: `podwire.1` for VNI 1 over IPv4, `podwire6.1` over IPv6; with a port or VNI that does
    /// not fit, both in hexadecimal digits: `pw4.1.12b5`. At most 15 bytes.
    pub fn new(family: Family, encapsulation: Encapsulation) -> Self {
        let Encapsulation { vni, port } = encapsulation;
        let mut name = Name::default();
        // There is room for all of them.
        let _ = match (family, port == USUAL_PORT && vni <= 999_999) {
            (Family::V4, true) => write!(name, "podwire.{vni}"),
            (Family::V6, true) => write!(name, "podwire6.{vni}"),
            (Family::V4, false) => write!(name, "pw4.{vni:x}.{port:x}"),
            (Family::V6, false) => write!(name, "pw6.{vni:x}.{port:x}"),
        };
        Self { family, encapsulation, name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The device that is usually called so; `None` if none of ours can be.
    fn parse(name: &str) -> Option<Self> {
        let (kind, rest) = name.split_once('.')?;
        let (family, vni, port) = match kind {
            "podwire" => (Family::V4, rest.parse().ok()?, USUAL_PORT),
            "podwire6" => (Family::V6, rest.parse().ok()?, USUAL_PORT),
            "pw4" | "pw6" => {
                let (vni, port) = rest.split_once('.')?;
                let family = if kind == "pw4" { Family::V4 } else { Family::V6 };
                (family, u32::from_str_radix(vni, 16).ok()?, u16::from_str_radix(port, 16).ok()?)
            }
            _ => return None,
        };
        let id = Self::new(family, Encapsulation { vni, port });
        // `podwire.01` is somebody else's.
        (vni < 1 << 24 && port != 0 && id.name() == name).then_some(id)
    }

    /// What encapsulation adds to a packet, in bytes: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
    pub fn overhead(&self) -> u32 {
        match self.family {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }

    /// The MTU of a device whose packets leave by a link of that MTU, both in bytes.
    pub fn mtu(&self, link: u32) -> u32 {
        link.saturating_sub(self.overhead()).clamp(SMALLEST_MTU, 65_535)
    }
}

/// How this node's devices are called, and which Ethernet addresses they have: as podwire has it, but for those that were
/// another program's before. Whoever made these is gone; other nodes, and routes of pods that run, know them as they were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    adopted: Vec<(DeviceId, MacAddr)>,
}

impl Default for &Naming {
    fn default() -> Self {
        const USUAL: &Naming = &Naming { adopted: Vec::new() };
        USUAL
    }
}

impl Naming {
    /// Another program's device of that name and Ethernet address is ours from now on. A name that no link can have is none.
    #[must_use]
    pub fn adopt(mut self, family: Family, encapsulation: Encapsulation, name: &str, mac: MacAddr) -> Self {
        let mut own = Name::default();
        if own.write_str(name).is_ok() {
            self.adopted.push((DeviceId { family, encapsulation, name: own }, mac));
        }
        self
    }

    /// The device of a segment over that family.
    pub fn id(&self, family: Family, encapsulation: Encapsulation) -> DeviceId {
        let mut adopted = self.adopted.iter().map(|(id, _)| *id);
        let known = adopted.find(|id| (id.family, id.encapsulation) == (family, encapsulation));
        known.unwrap_or_else(|| DeviceId::new(family, encapsulation))
    }

    /// The Ethernet address that an adopted device keeps; `None` for any other.
    pub fn mac(&self, id: DeviceId) -> Option<MacAddr> {
        self.adopted.iter().find(|(known, _)| *known == id).map(|(_, mac)| *mac)
    }

    /// The device that is called so; `None` if none of ours can be.
    pub fn parse(&self, name: &str) -> Option<DeviceId> {
        let adopted = self.adopted.iter().map(|(id, _)| *id).find(|id| id.name() == name);
        adopted.or_else(|| DeviceId::parse(name))
    }

    /// The device of ours that the link is: one of our names and our mark. A VXLAN device that lacks the mark is ours if it is
    /// exactly what its name says: a crash between two messages has left it so, or it has just been adopted.
    pub fn of(&self, link: &Link) -> Option<DeviceId> {
        let id = self.parse(&link.name)?;
        let vxlan = link.vxlan.as_ref()?;
        let unmarked = || {
            link.alias.is_none() && vxlan.vni == id.encapsulation.vni && vxlan.port == id.encapsulation.port
        };
        (link.alias.as_deref() == Some(MARK) || unmarked()).then_some(id)
    }
}

/// A device as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Which; its name follows from it.
    pub id: DeviceId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The source address of its packets.
    pub local: IpAddr,
    /// Another program has made it. What it differs in and others do not see stays.
    pub is_adopted: bool,
}

impl Device {
    /// Its settings as the kernel has them. It is bound to no link: the routes decide by which one packets leave, and a
    /// link that goes away for a moment does not take the device with it.
    pub fn vxlan(&self) -> Vxlan {
        let Encapsulation { vni, port } = self.id.encapsulation;
        Vxlan::new(vni, port, Some(self.local))
    }

    /// What a device that has these settings is to have. Of an adopted one much cannot be changed in place, and need not
    /// be: the link that it is bound to, its checksums, its TTL.
    pub fn vxlan_of(&self, found: &Vxlan) -> Vxlan {
        let Vxlan { vni, port, local, remote, learning, external, .. } = self.vxlan();
        match self.is_adopted {
            true => Vxlan { vni, port, local, remote, learning, external, ..*found },
            false => self.vxlan(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_devices_apart_and_fit() {
        for (family, vni, port, name) in [
            (Family::V4, 1, 8472, "podwire.1"),
            (Family::V6, 999_999, 8472, "podwire6.999999"),
            (Family::V4, 1_000_000, 8472, "pw4.f4240.2118"),
            (Family::V6, 0xff_ffff, 65_535, "pw6.ffffff.ffff"),
            (Family::V4, 1, 4789, "pw4.1.12b5"),
        ] {
            let id = DeviceId::new(family, Encapsulation { vni, port });
            assert_eq!(id.name(), name);
            assert!(name.len() <= MAX_NAME);
            assert_eq!(DeviceId::parse(name), Some(id));
        }
        for other in [
            "podwire0",
            "podwire.",
            "podwire.01",
            "podwire.+1",
            "podwire.1000000",
            "pw4.1.2118",
            "pw3f9a",
            "pw4.1.0",
            "pw4.1.012b5",
        ] {
            assert_eq!(DeviceId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_mtu_leaves_room_for_the_outer_headers_and_never_takes_ipv6_away() {
        let id = |family| DeviceId::new(family, Encapsulation::default());
        assert_eq!(id(Family::V4).mtu(1500), 1450);
        assert_eq!(id(Family::V6).mtu(1500), 1430);
        assert_eq!(id(Family::V6).mtu(1300), 1280);
        assert_eq!(id(Family::V4).mtu(u32::MAX), 65_535);
        assert_eq!(id(Family::V4).mtu(0), 1280);
    }
}
