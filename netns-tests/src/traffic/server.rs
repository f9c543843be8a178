//! Servers that say who they are and whom they hear.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{LabError, Result};

use super::{Place, Port, Transport};

/// How often a server looks whether it has been stopped.
const TICK: Duration = Duration::from_millis(100);

/// A server that answers as `Heard` reads it: over TCP with a line when a connection comes, and each line that follows is
/// echoed; over UDP with one datagram for each. It ends with this value.
pub struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    at: Port,
}

impl Server {
    /// Listens. The address `::` is both families'.
    ///
    /// # Errors
    /// If the port is taken, or no place has that address.
    pub fn start(place: &(impl Place + ?Sized), at: Port) -> Result<Self> {
        let what = format!("listen on {at} in {}", place.label());
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let name = place.label().to_owned();
        let server = Self { stop: Arc::clone(&stop), served: Arc::clone(&served), at };
        match at.transport {
            Transport::Tcp => {
                let listener =
                    place.network().run(|| TcpListener::bind(at.at))?.map_err(LabError::because(what))?;
                // accept() obeys the receive timeout.
                let tick = TimeVal::milliseconds(100);
                setsockopt(&listener, sockopt::ReceiveTimeout, &tick)
                    .map_err(LabError::because("set a listener's timeout"))?;
                std::thread::spawn(move || accept(&listener, &name, &stop, &served));
            }
            Transport::Udp => {
                let socket =
                    place.network().run(|| UdpSocket::bind(at.at))?.map_err(LabError::because(what))?;
                socket.set_read_timeout(Some(TICK)).map_err(LabError::because("set a socket's timeout"))?;
                std::thread::spawn(move || answer(&socket, &name, &stop, &served));
            }
        }
        Ok(server)
    }

    /// How many connections or datagrams it has answered.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Where it listens.
    pub fn at(&self) -> Port {
        self.at
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>, served: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                served.fetch_add(1, Ordering::Relaxed);
                let greeting = greeting(name, peer);
                let stop = Arc::clone(stop);
                std::thread::spawn(move || converse(stream, &greeting, &stop));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::Interrupted => {
            }
            Err(_) => break,
        }
    }
}

/// The client may hang up at any time.
fn converse(mut stream: TcpStream, greeting: &str, stop: &AtomicBool) {
    if stream.write_all(greeting.as_bytes()).is_err() || stream.set_read_timeout(Some(TICK)).is_err() {
        return;
    }
    let Ok(reading) = stream.try_clone() else { return };
    let mut lines = BufReader::new(reading);
    let mut line = String::new();
    while !stop.load(Ordering::Relaxed) {
        match lines.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {
                if stream.write_all(line.as_bytes()).is_err() {
                    return;
                }
                line.clear();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool, served: &AtomicU64) {
    let mut datagram = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut datagram) {
            served.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(greeting(name, peer).as_bytes(), peer);
        }
    }
}

/// An IPv4 client of a socket of both families is shown as what it is.
fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}
