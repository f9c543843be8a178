//! Questions and answers as whole Ethernet frames, with all checksums filled in. PURE.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::targets::TunnelEnd;

/// The frame that carries `payload` by UDP from one VTEP's inner address to another's, both on `port`; `None` if the
/// addresses are of two families, or the payload is too long.
pub(super) fn frame(
    tunnel: &TunnelEnd,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    payload: &[u8],
) -> Option<Vec<u8>> {
    const HOPS: u8 = 64;
    let ethernet = PacketBuilder::ethernet2(tunnel.source.0, tunnel.destination.0);
    let ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), HOPS)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), HOPS)
        }
        _ => return None,
    };
    let packet = ip.udp(port, port);
    let mut bytes = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut bytes, payload).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use podwire_kernel::MacAddr;

    use super::*;

    #[test]
    fn a_frame_is_whole_and_its_checksums_are_right() {
        let tunnel = TunnelEnd {
            device: "podwire.1".into(),
            source: MacAddr([2, 0, 0, 0, 0, 1]),
            destination: MacAddr([2, 0, 0, 0, 0, 2]),
        };
        for (source, destination) in [("10.244.1.0", "10.244.2.0"), ("fd00:1::", "fd00:2::")] {
            let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
            let bytes = frame(&tunnel, ip(source), ip(destination), 8473, b"podwire").expect("a frame");
            let packet = SlicedPacket::from_ethernet(&bytes).expect("it parses");
            assert_eq!(&bytes[..6], [2, 0, 0, 0, 0, 2]);
            let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("not UDP") };
            assert_eq!(
                (udp.source_port(), udp.destination_port(), udp.payload()),
                (8473, 8473, &b"podwire"[..])
            );
            let (right, found) = match packet.net.as_ref().expect("IP") {
                NetSlice::Ipv4(ip) => {
                    assert!(ip.header().dont_fragment());
                    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                    (
                        udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                        udp.checksum(),
                    )
                }
                NetSlice::Ipv6(ip) => (
                    udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                    udp.checksum(),
                ),
                NetSlice::Arp(_) => panic!("not IP"),
            };
            assert_eq!(right, Ok(found));
        }
        assert_eq!(frame(&tunnel, [10, 0, 0, 1].into(), [0; 16].into(), 1, b""), None);
    }
}
