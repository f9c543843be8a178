//! How many packets are lost on their way, which twice, which late: numbered packets at a steady rate.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::error::{LabError, Result};
use crate::netns::Netns;
use crate::process::wait_for;

use super::Place;

/// Between two packets of a flow: 1,000 of them in a second.
pub const INTERVAL: Duration = Duration::from_millis(1);

/// How far a sender that was not given the processor may be behind and still catch up. Beyond that it goes on from
/// there: the packets of a long pause, sent at once, would overflow queues and be lost for no fault of the network.
const MOST_BEHIND: Duration = Duration::from_millis(20);

/// The number that packets have before the counting begins.
const GREETING: u64 = u64::MAX;

/// Numbered UDP packets, 1,000 a second, from one place to an address of another. Ends with this value.
pub struct Flow {
    label: String,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
    /// The first number of the present lap.
    lap: u64,
}

/// What became of the packets of one lap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lap {
    /// How many were sent.
    pub sent: u64,
    /// How many never came.
    pub lost: u64,
    /// How many came more than once.
    pub duplicated: u64,
    /// How many came after one that was sent later.
    pub reordered: u64,
    /// The most that were lost in a row; at this rate as many milliseconds.
    pub longest_gap: u64,
}

impl Lap {
    /// How long nothing came through, at most.
    pub fn longest_outage(&self) -> Duration {
        INTERVAL * u32::try_from(self.longest_gap).unwrap_or(u32::MAX)
    }
}

impl std::fmt::Display for Lap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, lost, duplicated, reordered, longest_gap } = self;
        write!(f, "{sent} sent, {lost} lost (most in a row: {longest_gap})")?;
        if duplicated + reordered > 0 {
            write!(f, ", {duplicated} duplicated, {reordered} reordered")?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Seen {
    greeted: bool,
    /// How often each number came.
    times: Vec<u8>,
    highest: Option<u64>,
    reordered: u64,
}

impl Flow {
    /// Starts a flow and waits until its first packets arrive. `to` is an address of `receiver`.
    ///
    /// # Errors
    /// If nothing arrives within 10 s.
    pub fn start(
        sender: &(impl Place + ?Sized),
        receiver: &(impl Place + ?Sized),
        to: IpAddr,
    ) -> Result<Self> {
        let flow = Self::open(sender, receiver, to, true)?;
        let heard = wait_for(Duration::from_secs(10), || flow.seen().greeted);
        if heard { Ok(flow) } else { Err(LabError::new(format!("no packet arrives: {}", flow.label))) }
    }

    /// Starts a flow without waiting for anything to arrive: what is lost counts from the start.
    ///
    /// # Errors
    /// If a socket cannot be opened: `to` is no address of `receiver`.
    pub fn start_unheard(
        sender: &(impl Place + ?Sized),
        receiver: &(impl Place + ?Sized),
        to: IpAddr,
    ) -> Result<Self> {
        Self::open(sender, receiver, to, false)
    }

    fn open(
        sender: &(impl Place + ?Sized),
        receiver: &(impl Place + ?Sized),
        to: IpAddr,
        greet: bool,
    ) -> Result<Self> {
        let label = format!("{} to {} at {to}", sender.label(), receiver.label());
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let open = |place: &Netns, address: IpAddr| -> Result<UdpSocket> {
            let what = || format!("open a socket for {label}");
            let socket = place.run(|| UdpSocket::bind((address, 0)))?.map_err(LabError::because(what()))?;
            // A receiver that has to wait for the processor loses nothing.
            setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).map_err(LabError::because(what()))?;
            Ok(socket)
        };
        let from = open(sender.network(), any)?;
        let at = open(receiver.network(), to)?;
        let to = SocketAddr::new(to, at.local_addr().map_err(LabError::because("a socket's port"))?.port());
        at.set_read_timeout(Some(Duration::from_millis(50))).map_err(LabError::because("set a timeout"))?;
        // A full queue is the network's loss, not a reason to wait.
        from.set_nonblocking(true).map_err(LabError::because("set a socket to non-blocking"))?;

        let mut flow = Self {
            label,
            sent: Arc::default(),
            stop: Arc::default(),
            seen: Arc::default(),
            threads: Vec::new(),
            lap: 0,
        };
        let (seen, stop) = (Arc::clone(&flow.seen), Arc::clone(&flow.stop));
        flow.threads.push(std::thread::spawn(move || receive(&at, &seen, &stop)));
        let (sent, seen, stop) = (Arc::clone(&flow.sent), Arc::clone(&flow.seen), Arc::clone(&flow.stop));
        flow.threads.push(std::thread::spawn(move || send(&from, to, &sent, &seen, &stop, greet)));
        Ok(flow)
    }

    /// From where to where, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What became of the packets since the last call, or since the start. Waits for those that are under way.
    pub fn lap(&mut self) -> Lap {
        let (from, to) = (self.lap, self.sent.load(Ordering::Acquire));
        self.lap = to;
        // In order, as a rule: when a later one is there, or a second has passed, the others do not come any more.
        wait_for(Duration::from_secs(1), || self.seen().highest.is_some_and(|highest| highest + 1 >= to));
        let mut seen = self.seen();
        let mut lap =
            Lap { sent: to - from, reordered: std::mem::take(&mut seen.reordered), ..Lap::default() };
        let mut gap = 0;
        for number in from..to {
            let times = usize::try_from(number).ok().and_then(|number| seen.times.get(number)).copied();
            match times.unwrap_or(0) {
                0 => {
                    lap.lost += 1;
                    gap += 1;
                    lap.longest_gap = lap.longest_gap.max(gap);
                }
                times => {
                    lap.duplicated += u64::from(times > 1);
                    gap = 0;
                }
            }
        }
        lap
    }

    /// Whether packets arrive now: waits for `count` more that do.
    pub fn flows(&self, count: u64, limit: Duration) -> bool {
        let reached = self.sent.load(Ordering::Acquire) + count;
        wait_for(limit, || self.seen().highest.is_some_and(|highest| highest >= reached))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a steady rate is made of pauses")]
fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    sent: &AtomicU64,
    seen: &Mutex<Seen>,
    stop: &AtomicBool,
    greet: bool,
) {
    let mut due = Instant::now();
    let mut number = 0;
    let mut counting = !greet;
    let greeted = || seen.lock().is_ok_and(|seen| seen.greeted);
    while !stop.load(Ordering::Relaxed) {
        counting = counting || greeted();
        let now = Instant::now();
        if now < due {
            std::thread::sleep(due - now);
        } else if now > due + MOST_BEHIND {
            due = now;
        }
        due += INTERVAL;
        let packet = if counting { number } else { GREETING };
        // What the kernel refuses to send, for want of a route, has not arrived either.
        let _ = socket.send_to(&packet.to_be_bytes(), to);
        if counting {
            number += 1;
            sent.store(number, Ordering::Release);
        }
    }
}

fn receive(socket: &UdpSocket, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let mut packet = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(8) => {}
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            _ => continue,
        }
        let Ok(mut seen) = seen.lock() else { return };
        let number = u64::from_be_bytes(packet);
        seen.greeted = true;
        let Some(index) = usize::try_from(number).ok().filter(|_| number != GREETING) else { continue };
        if seen.times.len() <= index {
            seen.times.resize(index + 1, 0);
        }
        seen.times[index] = seen.times[index].saturating_add(1);
        match seen.highest {
            Some(highest) if highest > number => seen.reordered += 1,
            _ => seen.highest = Some(number),
        }
    }
}

/// Several flows at once.
#[derive(Default)]
pub struct Flows(pub Vec<Flow>);

impl Flows {
    /// What became of the packets of each flow, with its label.
    pub fn laps(&mut self) -> Vec<(String, Lap)> {
        self.0.iter_mut().map(|flow| (flow.label.clone(), flow.lap())).collect()
    }

    /// The worst lap: that of the flow that lost most.
    pub fn worst(&mut self) -> Lap {
        self.0.iter_mut().map(Flow::lap).max_by_key(|lap| lap.lost).unwrap_or_default()
    }

    /// Waits until packets arrive in each flow again.
    ///
    /// # Errors
    /// With the flows in which they do not.
    pub fn all_flow(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let stuck: Vec<_> = self
            .0
            .iter()
            .filter(|flow| !flow.flows(10, deadline.saturating_duration_since(Instant::now())))
            .map(Flow::label)
            .collect();
        if stuck.is_empty() {
            Ok(())
        } else {
            Err(LabError::new(format!("no packet arrives, {limit:?} long: {}", stuck.join(", "))))
        }
    }

    /// Fails unless everything of this lap arrived, once and in order.
    ///
    /// # Errors
    /// With what did not.
    pub fn assert_none_lost(&mut self) -> Result<()> {
        let laps = self.laps();
        let bad: Vec<_> = laps
            .iter()
            .filter(|(_, lap)| lap.lost + lap.duplicated > 0 || lap.sent == 0)
            .map(|(label, lap)| format!("{label}: {lap}"))
            .collect();
        if bad.is_empty() {
            Ok(())
        } else {
            Err(LabError::new(format!("packets were lost: {}", bad.join("; "))))
        }
    }
}
