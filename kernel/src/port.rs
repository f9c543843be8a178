//! Whether a program of this node uses a port.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Whether a socket of the calling thread's network namespace is bound to that port of that address, or of any
/// address where that one is unspecified. Ends of closed connections (TIME_WAIT) do not count.
///
/// Asked by binding, which takes the port for some microseconds without listening on it. What cannot be asked (the address
/// is not the node's, no IPv6) is not in use.
pub fn is_in_use(transport: Transport, ip: IpAddr, port: u16) -> bool {
    try_bind(transport, ip, port) == Err(Errno::EADDRINUSE)
}

fn try_bind(transport: Transport, ip: IpAddr, port: u16) -> Result<(), Errno> {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match transport {
        Transport::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Transport::Udp => (SockType::Datagram, SockProtocol::Udp),
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if transport == Transport::Tcp {
        // Lets TIME_WAIT pass, and no listener. A UDP socket would share the port with others of this kind.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    if ip.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_listener_is_seen_and_a_free_port_is_free() {
        // Loopback, and ports that the kernel chooses: nothing of the host is touched.
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        assert!(is_in_use(Transport::Tcp, any, port));
        assert!(is_in_use(Transport::Tcp, "127.0.0.1".parse().unwrap(), port));
        assert!(!is_in_use(Transport::Tcp, "127.0.0.2".parse().unwrap(), port));
        drop(tcp);
        assert!(!is_in_use(Transport::Tcp, any, port));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(is_in_use(Transport::Udp, any, port));
        assert!(!is_in_use(Transport::Udp, "192.0.2.99".parse().unwrap(), port));
    }
}
