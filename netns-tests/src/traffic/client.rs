//! Clients with a source address of their choice and short deadlines.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{LabError, Result};
use crate::netns::Netns;

use super::{Place, Port, Transport};

/// How long an answer may take where one must come: a SYN that was lost on a busy machine comes again after 1 s.
const LIMIT: Duration = Duration::from_secs(4);

/// A client in one place.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    network: &'a Netns,
    label: &'a str,
    source: Option<IpAddr>,
    source_port: u16,
    limit: Duration,
}

/// What a server said: its name, and the address that it sees of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The place that the server is in.
    pub server: String,
    /// The client as the server sees it.
    pub peer: SocketAddr,
}

impl<'a> Client<'a> {
    /// A client in that place, with the address that the kernel chooses.
    pub fn at(place: &'a (impl Place + ?Sized)) -> Self {
        Self { network: place.network(), label: place.label(), source: None, source_port: 0, limit: LIMIT }
    }

    /// With this source address.
    pub fn source(mut self, ip: IpAddr) -> Self {
        self.source = Some(ip);
        self
    }

    /// With this source port.
    pub fn port(mut self, port: u16) -> Self {
        self.source_port = port;
        self
    }

    /// With so much time for an answer.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Asks once who is there.
    ///
    /// # Errors
    /// If nobody answers in time.
    pub fn hear(self, to: Port) -> Result<Heard> {
        self.talk(to).map(|talk| talk.heard)
    }

    /// Opens a connection, or a flow of datagrams, that has been answered once.
    ///
    /// # Errors
    /// If nobody answers in time.
    pub fn talk(self, to: Port) -> Result<Talk> {
        let what = format!("{} to {to}", self.label);
        match to.transport {
            Transport::Tcp => self.connect(to.at),
            Transport::Udp => self.send(to.at),
        }
        .map_err(LabError::because(what))
    }

    fn source_for(&self, to: SocketAddr) -> SocketAddr {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        SocketAddr::new(self.source.unwrap_or(any), self.source_port)
    }

    fn connect(&self, to: SocketAddr) -> io::Result<Talk> {
        let stream = self.open(to)?;
        stream.set_read_timeout(Some(self.limit))?;
        let mut reader = BufReader::new(stream);
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        Ok(Talk { heard: parse(&greeting)?, line: Line::Tcp(reader) })
    }

    /// A connection and nothing said on it.
    pub(super) fn open(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let inside = self.network.run(|| -> io::Result<TcpStream> {
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // connect() obeys the send timeout.
            let limit = i64::try_from(self.limit.as_millis()).unwrap_or(i64::MAX);
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::milliseconds(limit))?;
            if self.source_port != 0 {
                setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            }
            use std::os::fd::AsRawFd;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(self.source_for(to)))?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
            Ok(fd.into())
        });
        inside.map_err(io::Error::other)?
    }

    fn send(&self, to: SocketAddr) -> io::Result<Talk> {
        let inside = self.network.run(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(self.source_for(to))?;
            socket.connect(to)?;
            Ok(socket)
        });
        let socket = inside.map_err(io::Error::other)??;
        let heard = datagram(&socket, self.limit)?;
        Ok(Talk { heard, line: Line::Udp(socket) })
    }
}

/// A connection or flow that goes on.
pub struct Talk {
    /// What the server said first.
    pub heard: Heard,
    line: Line,
}

enum Line {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Talk {
    /// Sends something and waits for the answer. Over UDP the answer says who is there now.
    ///
    /// # Errors
    /// If there is none within `limit`.
    pub fn again(&mut self, limit: Duration) -> Result<Heard> {
        let heard = match &mut self.line {
            Line::Tcp(stream) => echo(stream, limit).map(|()| self.heard.clone()),
            Line::Udp(socket) => datagram(socket, limit),
        };
        heard.map_err(LabError::because("go on talking"))
    }
}

fn echo(stream: &mut BufReader<TcpStream>, limit: Duration) -> io::Result<()> {
    stream.get_ref().set_read_timeout(Some(limit))?;
    stream.get_mut().write_all(b"still there\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line == "still there\n" { Ok(()) } else { Err(io::Error::other(format!("the server said {line:?}"))) }
}

/// Asks up to five times within the limit: a datagram may be lost, to neighbour discovery for one.
fn datagram(socket: &UdpSocket, limit: Duration) -> io::Result<Heard> {
    let deadline = Instant::now() + limit;
    let mut answer = [0; 2048];
    let mut refused = 0;
    // Late answers to earlier questions say who was there then.
    socket.set_nonblocking(true)?;
    while socket.recv(&mut answer).is_ok() {}
    socket.set_nonblocking(false)?;
    loop {
        // An earlier one may have brought back "connection refused".
        let sent = socket.send(b"?");
        socket.set_read_timeout(Some((limit / 5).max(Duration::from_millis(20))))?;
        let received = sent.and_then(|_| socket.recv(&mut answer));
        match received {
            Ok(length) => return parse(&String::from_utf8_lossy(&answer[..length])),
            Err(error) if Instant::now() >= deadline => return Err(error),
            // The first may be what came back for an earlier one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && refused == 3 => {
                return Err(error);
            }
            Err(error) => refused += u32::from(error.kind() == io::ErrorKind::ConnectionRefused),
        }
    }
}

fn parse(greeting: &str) -> io::Result<Heard> {
    let heard = greeting
        .trim_end()
        .split_once(' ')
        .and_then(|(server, peer)| Some(Heard { server: server.to_owned(), peer: peer.parse().ok()? }));
    heard.ok_or_else(|| io::Error::other(format!("the server said {greeting:?}")))
}
