//! Connections without a beginning: which of those that the kernel remembers must be forgotten when a host port is given
//! to a pod, or taken from it. PURE.
//!
//! The packet filter is asked for a connection's first packet alone. A UDP client that goes on sending from one port
//! keeps the translation of its first datagram: to a pod that is gone, or to the node itself where nothing forwarded the
//! port then. TCP clients see their connection end and begin another.

mod flush;

use std::net::IpAddr;

use podwire_kernel::conntrack::Entry;

use crate::{Attachment, PortMapping, Protocol};

pub use flush::{flush_of, flush_stale};

/// The host ports whose protocol has no beginning that the kernel could see.
pub fn connectionless(attachment: &Attachment) -> impl Iterator<Item = &PortMapping> {
    attachment.ports().iter().filter(|port| matches!(port.protocol, Protocol::Udp | Protocol::Sctp))
}

/// Whether this connection was opened to that port of the node. `is_local` says which addresses are the node's.
fn is_to_port(entry: &Entry, port: &PortMapping, is_local: &dyn Fn(IpAddr) -> bool) -> bool {
    let to = entry.original.destination;
    let address = match port.host_ip {
        None => true,
        Some(ip) if ip.is_unspecified() => ip.is_ipv4() == to.is_ipv4(),
        Some(ip) => ip == to,
    };
    // Where the answer comes from elsewhere, the connection was forwarded by the node and opened to it.
    let to_node = || is_local(to) || entry.reply.source != to;
    entry.original.protocol == port.protocol.number()
        && entry.original.destination_port == port.host_port
        && address
        && to_node()
}

/// Whether this connection leads elsewhere than to the pod that has that port now.
pub fn is_stale(
    entry: &Entry,
    port: &PortMapping,
    pod: &[IpAddr],
    is_local: &dyn Fn(IpAddr) -> bool,
) -> bool {
    // A family that the pod has no address of is not forwarded to it.
    let has_family = pod.iter().any(|ip| ip.is_ipv4() == entry.original.destination.is_ipv4());
    has_family && is_to_port(entry, port, is_local) && !leads_to(entry, port, pod)
}

/// Whether this connection was forwarded from that port to that pod.
pub fn is_of_pod(entry: &Entry, port: &PortMapping, pod: &[IpAddr]) -> bool {
    is_to_port(entry, port, &|_| false) && leads_to(entry, port, pod)
}

fn leads_to(entry: &Entry, port: &PortMapping, pod: &[IpAddr]) -> bool {
    pod.contains(&entry.reply.source) && entry.reply.source_port == port.container_port
}

#[cfg(test)]
mod tests {
    use podwire_kernel::conntrack::Tuple;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// From 198.51.100.9 to port 53 of `to`, answered by `by`.
    fn entry(to: &str, by: (&str, u16)) -> Entry {
        let client = (ip(if to.contains(':') { "2001:db8::9" } else { "198.51.100.9" }), 4000);
        let tuple = |source: (IpAddr, u16), destination: (IpAddr, u16)| Tuple {
            source: source.0,
            destination: destination.0,
            protocol: 17,
            source_port: source.1,
            destination_port: destination.1,
        };
        let original = tuple(client, (ip(to), 53));
        Entry { original, reply: tuple((ip(by.0), by.1), client), zone: 0, id: 1, status: 0 }
    }

    fn port(host_ip: Option<&str>) -> PortMapping {
        PortMapping { protocol: Protocol::Udp, host_ip: host_ip.map(ip), host_port: 53, container_port: 5353 }
    }

    #[test]
    fn what_leads_to_an_earlier_pod_or_to_the_node_itself_is_stale() {
        let pod = [ip("10.1.0.7")];
        let local = |address: IpAddr| address == ip("192.0.2.1");
        for (entry, stale, of_pod, why) in [
            (entry("192.0.2.1", ("10.1.0.3", 5353)), true, false, "to an earlier pod"),
            (entry("192.0.2.1", ("10.1.0.7", 5353)), false, true, "to this pod"),
            (entry("192.0.2.1", ("10.1.0.7", 99)), true, false, "to another port of this pod"),
            (entry("192.0.2.1", ("192.0.2.1", 53)), true, false, "to the node itself"),
            (entry("203.0.113.5", ("203.0.113.5", 53)), false, false, "a pod's query to the outside"),
            (entry("2001:db8::1", ("2001:db8::2", 5353)), false, false, "a family the pod does not have"),
        ] {
            assert_eq!(is_stale(&entry, &port(None), &pod, &local), stale, "{why}");
            assert_eq!(is_of_pod(&entry, &port(None), &pod), of_pod, "{why}");
        }
        let forwarded = entry("192.0.2.1", ("10.1.0.3", 5353));
        assert!(is_stale(&forwarded, &port(Some("192.0.2.1")), &pod, &local));
        assert!(is_stale(&forwarded, &port(Some("0.0.0.0")), &pod, &local));
        assert!(!is_stale(&forwarded, &port(Some("192.0.2.2")), &pod, &local));
        assert!(!is_stale(&forwarded, &port(Some("::")), &pod, &local));
        let tcp = PortMapping { protocol: Protocol::Tcp, ..port(None) };
        assert!(!is_stale(&forwarded, &tcp, &pod, &local));
        let other = PortMapping { host_port: 54, ..port(None) };
        assert!(!is_stale(&forwarded, &other, &pod, &local));
    }
}
