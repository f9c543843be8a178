//! The sockets, the clock and the random numbers around [`Engine`] and [`Responder`].

use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use podwire_kernel::link::LinkRef;
use podwire_kernel::packet::{Options, PacketSocket};
use podwire_kernel::{Family, Netlink, datagram, offload};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use super::engine::{Engine, Output};
use super::frame::frame;
use super::responder::Responder;
use super::targets::{Targets, TunnelEnd};
use super::{ALL_UP_TO, Config, ProbeReport};

/// How often an address is tried again that cannot be bound yet, and devices are looked at.
const CHORES: Duration = Duration::from_secs(1);

/// Asks this node's peers, and answers them.
#[derive(Debug)]
pub struct Prober {
    config: Config,
}

impl Prober {
    /// One for these settings.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Runs in the calling thread's network namespace, on a runtime of one thread, until the sender of `targets` is
    /// dropped. A report for which `reports` has no room is dropped.
    pub async fn run(self, targets: watch::Receiver<Arc<Targets>>, reports: mpsc::Sender<ProbeReport>) {
        Running {
            config: self.config,
            engine: Engine::new(self.config),
            responder: Responder::new(self.config.port),
            sockets: Vec::new(),
            own: Vec::new(),
            peers: 0,
            without_offload: BTreeSet::new(),
            reports,
        }
        .run(targets)
        .await;
    }
}

struct Running {
    config: Config,
    engine: Engine,
    responder: Responder,
    sockets: Vec<Socket>,
    own: Vec<IpAddr>,
    /// How many there are.
    peers: usize,
    /// The devices on which checksum offload is to stay off.
    without_offload: BTreeSet<Arc<str>>,
    reports: mpsc::Sender<ProbeReport>,
}

/// A socket of one of this node's addresses.
struct Socket {
    address: IpAddr,
    receiver: UdpSocket,
    /// The same; the runtime's would refuse to send until it has been told that there is room.
    sender: std::net::UdpSocket,
}

fn random() -> u64 {
    rand::random()
}

impl Running {
    async fn run(mut self, mut targets: watch::Receiver<Arc<Targets>>) {
        let mut chores = tokio::time::interval(CHORES);
        chores.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let first = targets.borrow_and_update().clone();
        self.update(first);
        // No datagram of ours is longer; what does not fit is not ours.
        let mut buffer = vec![0; 1 << 16];
        let mut updated = Instant::now();
        loop {
            while let Some(output) = self.engine.poll(Instant::now(), &mut random) {
                self.act(output);
            }
            let wake = self.engine.wake();
            tokio::select! {
                // Where thousands of peers come and go, once for many: each time costs all of them.
                changed = targets.changed(), if updated.elapsed() >= self.patience() => {
                    if changed.is_err() {
                        return;
                    }
                    updated = Instant::now();
                    let targets = targets.borrow_and_update().clone();
                    self.update(targets);
                }
                _ = chores.tick() => self.chores(),
                () = until(wake) => {}
                received = receive(&self.sockets, &mut buffer) => match received {
                    Ok((length, from)) => self.received(from, buffer.get(..length).unwrap_or_default()),
                    // The address is gone, or a peer's host said that nobody listens; the socket may come to life again.
                    Err(error) => tracing::debug!(%error, "probe socket"),
                },
            }
        }
    }

    /// For how long changes are collected; looked at with the chores at the latest.
    fn patience(&self) -> Duration {
        if self.peers > ALL_UP_TO { CHORES } else { Duration::ZERO }
    }

    fn update(&mut self, targets: Arc<Targets>) {
        self.peers = targets.peers.len();
        self.own.clone_from(&targets.own);
        self.sockets.retain(|socket| targets.own.contains(&socket.address));
        self.responder.update(&targets);
        self.engine.update(targets, Instant::now(), &mut random);
        self.bind();
    }

    fn bind(&mut self) {
        for address in &self.own {
            if self.sockets.iter().any(|socket| socket.address == *address) {
                continue;
            }
            match bound(*address, self.config.port) {
                Ok(socket) => self.sockets.push(socket),
                // It comes with the device; until then nothing can be asked or answered.
                Err(error) => {
                    tracing::debug!(%address, port = self.config.port, %error, "cannot listen for probes yet");
                }
            }
        }
    }

    fn chores(&mut self) {
        self.bind();
        // A device that was made again has it on again.
        for device in &self.without_offload {
            if offload::tx_checksum(device).unwrap_or(false) {
                switch_off(device);
            }
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Send { to, message, as_frame, token } => {
                if let Err(error) = self.send(to, &message, as_frame.as_deref()) {
                    tracing::debug!(%to, length = message.len(), %error, "cannot send a probe");
                    self.engine.failed(token, Instant::now(), &mut random);
                }
            }
            Output::SwitchOff(tunnel) => {
                tracing::warn!(
                    device = %tunnel.device,
                    "packets of this device arrive only if their checksums are done by software: checksum offload is \
                     broken below it, and is switched off"
                );
                switch_off(&tunnel.device);
                self.without_offload.insert(Arc::clone(&tunnel.device));
            }
            Output::Report(report) => {
                if self.reports.try_send(report).is_err() {
                    tracing::debug!("a probe's report is dropped: nobody takes them as fast as they come");
                }
            }
        }
    }

    fn received(&mut self, from: SocketAddr, datagram: &[u8]) {
        let now = Instant::now();
        if from.port() == self.config.port {
            self.engine.receive(from.ip(), datagram, now, &mut random);
        }
        if let Some(reply) = self.responder.answer(datagram, from, now)
            && let Err(error) = self.send(from.ip(), &reply.bytes, reply.without_offload.as_deref())
        {
            tracing::debug!(%from, %error, "cannot answer a probe");
        }
    }

    fn send(&self, to: IpAddr, message: &[u8], as_frame: Option<&TunnelEnd>) -> io::Result<()> {
        let own = self.sockets.iter().find(|socket| socket.address.is_ipv4() == to.is_ipv4());
        let own = own.ok_or_else(|| io::Error::other("this node has no address of that family yet"))?;
        match as_frame {
            None => own.sender.send_to(message, (to, self.config.port)).map(drop),
            Some(tunnel) => {
                let frame = frame(tunnel, own.address, to, self.config.port, message)
                    .ok_or_else(|| io::Error::other("it makes no frame"))?;
                inject(&tunnel.device, &frame).map_err(io::Error::other)
            }
        }
    }
}

fn bound(address: IpAddr, port: u16) -> io::Result<Socket> {
    let sender = std::net::UdpSocket::bind((address, port))?;
    sender.set_nonblocking(true)?;
    datagram::forbid_fragments(&sender, Family::of(address)).map_err(io::Error::other)?;
    let receiver = UdpSocket::from_std(sender.try_clone()?)?;
    Ok(Socket { address, receiver, sender })
}

/// Rare: only when ordinary questions are lost, so it keeps nothing open.
fn inject(device: &str, frame: &[u8]) -> podwire_kernel::Result<()> {
    let link = Netlink::open()?.link(LinkRef::Name(device))?;
    let index = link.map_or(0, |link| link.index);
    PacketSocket::open(index, &Options::default())?.send(frame)
}

fn switch_off(device: &str) {
    if let Err(error) = offload::set_tx_checksum(device, false) {
        tracing::warn!(%error, "cannot switch off checksum offload");
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => pending().await,
    }
}

/// The next datagram of any of the sockets.
async fn receive(sockets: &[Socket], buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    poll_fn(|context| {
        for socket in sockets {
            let mut buffer = ReadBuf::new(buffer);
            if let Poll::Ready(result) = socket.receiver.poll_recv_from(context, &mut buffer) {
                return Poll::Ready(result.map(|from| (buffer.filled().len(), from)));
            }
        }
        Poll::Pending
    })
    .await
}
