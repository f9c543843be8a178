//! Frames as they stand on the wire: what no honest pod sends.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{LabError, Result};

use super::Place;

/// A hardware address.
pub type Mac = [u8; 6];

/// The hardware address of all.
pub const BROADCAST: Mac = [0xff; 6];

/// Sends frames from an interface.
pub struct Frames {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Frames {
    /// Of that interface in that place.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn open(place: &(impl Place + ?Sized), ifname: &str) -> Result<Self> {
        let what = format!("open {ifname} in {} for frames", place.label());
        place.network().run(|| -> Result<Self> {
            let found = getifaddrs().map_err(LabError::because(what.clone()))?;
            let link = found
                .filter(|entry| entry.interface_name == ifname)
                .find_map(|entry| entry.address?.as_link_addr().copied());
            let link = link.ok_or_else(|| LabError::new(format!("{what}: no such interface")))?;
            Ok(Self { socket: packet_socket().map_err(LabError::because(what))?, link })
        })?
    }

    /// The interface's hardware address.
    pub fn mac(&self) -> Mac {
        self.link.addr().unwrap_or_default()
    }

    /// Sends a frame, three times: a test that expects it to be dropped must not pass because it was lost otherwise.
    ///
    /// # Errors
    /// If the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        for _ in 0..3 {
            sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty())
                .map_err(LabError::because("send a frame"))?;
        }
        Ok(())
    }
}

/// Hears every frame of every interface of a place, its own too.
pub struct Listener(OwnedFd);

impl Listener {
    /// From now on.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn open(place: &(impl Place + ?Sized)) -> Result<Self> {
        let what = format!("listen for frames in {}", place.label());
        place.network().run(packet_socket)?.map(Self).map_err(LabError::because(what))
    }

    /// Whether a frame comes, within that time, of which `is_it` says yes.
    pub fn hears(&self, limit: Duration, mut is_it: impl FnMut(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 65536];
        loop {
            if let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())
                && is_it(&buffer[..length])
            {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    /// Whether a frame with these bytes in it comes within that time.
    pub fn hears_bytes(&self, limit: Duration, bytes: &[u8]) -> bool {
        self.hears(limit, |frame| frame.windows(bytes.len()).any(|window| window == bytes))
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
    Ok(socket)
}

/// An Ethernet frame. A short one is not filled up to 60 bytes: veth carries it as it is, and bridge netfilter would take
/// the filling away again.
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [to.as_slice(), &from, &ether_type.to_be_bytes(), payload].concat()
}

/// The payload of a frame with a VLAN tag.
pub fn tagged(vlan: u16, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&vlan.to_be_bytes(), &ether_type.to_be_bytes(), payload].concat()
}

/// An ARP packet (RFC 826): `operation` 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    [head.as_slice(), &operation.to_be_bytes(), &sender.0, &sender.1.octets(), &target.0, &target.1.octets()]
        .concat()
}

/// An IPv4 packet with a UDP datagram.
pub fn udp4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let [high, low] = length(28 + payload.len());
    let mut header = vec![0x45, 0, high, low, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    // In IPv4 a datagram's own checksum may be left out.
    let udp = [from.1.to_be_bytes(), to.1.to_be_bytes(), length(8 + payload.len()), [0, 0]].concat();
    [header, udp, payload.to_vec()].concat()
}

/// An IPv6 packet with an ICMPv6 message, whose checksum is put in.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut pseudo =
        [from.octets().as_slice(), &to.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 58]].concat();
    pseudo.extend(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    // Neighbour discovery is believed with hop limit 255 alone (RFC 4861).
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    packet
}

/// A neighbour advertisement that says that `target` is at `mac` (RFC 4861): solicited no, override yes.
pub fn neighbour_advertisement(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    [&[136, 0, 0, 0, 0x20, 0, 0, 0], target.octets().as_slice(), &[2, 1], &mac].concat()
}

/// A neighbour solicitation for `target`, without an option, as duplicate address detection sends it (RFC 4862).
pub fn neighbour_solicitation(target: Ipv6Addr) -> Vec<u8> {
    [&[135, 0, 0, 0, 0, 0, 0, 0], target.octets().as_slice()].concat()
}

/// A router advertisement without a prefix (RFC 4861).
pub fn router_advertisement() -> Vec<u8> {
    [134, 0, 0, 0, 64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0].to_vec()
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_rfc_1071s_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
