//! How fast a stream is.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::error::{LabError, Result};

use super::{Client, Place};

/// A server that counts what it is sent. It ends with this value.
pub struct Sink {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Sink {
    /// Listens. The address `::` is both families'.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(place: &(impl Place + ?Sized), at: SocketAddr) -> Result<Self> {
        let what = format!("listen on {at} in {}", place.label());
        let listener = place.network().run(|| TcpListener::bind(at))?.map_err(LabError::because(what))?;
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))
            .map_err(LabError::because("set a listener's timeout"))?;
        let sink = Self { received: Arc::default(), stop: Arc::default() };
        let (received, stop) = (Arc::clone(&sink.received), Arc::clone(&sink.stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 256 << 10];
                    while !stop.load(Ordering::Relaxed) {
                        match stream.read(&mut buffer) {
                            Ok(0) => return,
                            Ok(count) => drop(received.fetch_add(count as u64, Ordering::Relaxed)),
                            // The listener's timeout is its connections' too.
                            Err(error)
                                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                            }
                            Err(_) => return,
                        }
                    }
                });
            }
        });
        Ok(sink)
    }

    /// How many bytes have come.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends to a sink over one TCP connection for that time, and gives the bits per second of payload that arrived. Cubic,
/// whatever the machine's default: BBR measures a shaper and stays below it.
///
/// # Errors
/// If the sink cannot be reached, or the connection breaks.
pub fn send_for(from: Client<'_>, to: SocketAddr, sink: &Sink, time: Duration) -> Result<f64> {
    let what = format!("send to {to}");
    let mut stream = from.open(to).map_err(LabError::because(what.clone()))?;
    setsockopt(&stream, sockopt::TcpCongestion, &"cubic".into())
        .map_err(LabError::because("choose cubic"))?;
    stream.set_write_timeout(Some(Duration::from_millis(200))).map_err(LabError::because("set a timeout"))?;
    let block = vec![0; 64 << 10];
    let before = sink.received();
    let began = Instant::now();
    while began.elapsed() < time {
        match stream.write(&block) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                return Err(LabError::because(what)(error));
            }
            _ => {}
        }
    }
    let bits = (sink.received() - before) as f64 * 8.0;
    Ok(bits / began.elapsed().as_secs_f64())
}
