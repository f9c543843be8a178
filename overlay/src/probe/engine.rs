//! Which peers are asked when, and which answer belongs to which question. PURE: time and random numbers are given.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Answer, Question};
use super::targets::{End, Peer, Targets, TunnelEnd};
use super::watch::{Ask, Next, Watch};
use super::{ALL_UP_TO, Config, Outcome, PathState, ProbeReport};
use crate::cluster::IpFamily;

/// Asks, and makes of the answers what is to be said of each path.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    targets: Arc<Targets>,
    /// Where each address is in `targets`.
    places: HashMap<IpAddr, (usize, usize)>,
    watches: HashMap<IpAddr, Watch>,
    /// When the next interval begins.
    next: Option<Instant>,
    /// The rounds that are to begin.
    starts: BTreeSet<(Instant, IpAddr)>,
    asked: HashMap<u64, Asked>,
    deadlines: BTreeSet<(Instant, u64)>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    address: IpAddr,
    at: Instant,
    length: u16,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a question.
    Send {
        /// To this address, on the port of all agents.
        to: IpAddr,
        /// The message.
        message: Vec<u8>,
        /// As a frame with its checksums done, into this tunnel; `None`: by the socket.
        as_frame: Option<Arc<TunnelEnd>>,
        /// What to give [`Engine::failed`] if it could not be sent.
        token: u64,
    },
    /// Switch off checksum offload on this tunnel's device, then go on.
    SwitchOff(Arc<TunnelEnd>),
    /// Tell.
    Report(ProbeReport),
}

impl Engine {
    /// One that knows no peers.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            targets: Arc::default(),
            places: HashMap::new(),
            watches: HashMap::new(),
            next: None,
            starts: BTreeSet::new(),
            asked: HashMap::new(),
            deadlines: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Has it ask these. What is known of those that stay is kept; new ones are asked soon, if all are asked.
    pub fn update(&mut self, targets: Arc<Targets>, now: Instant, random: &mut dyn FnMut() -> u64) {
        let mut places = HashMap::new();
        for (i, peer) in targets.peers.iter().enumerate() {
            places.extend(peer.ends.iter().enumerate().map(|(j, end)| (end.address, (i, j))));
        }
        // Another node at the same address is another path.
        let before = std::mem::replace(&mut self.targets, targets);
        let targets = &self.targets;
        self.watches.retain(|address, _| {
            match (peer_at(&self.places, &before, *address), peer_at(&places, targets, *address)) {
                (Some(before), Some(now)) => (&before.node, &before.instance) == (&now.node, &now.instance),
                _ => false,
            }
        });
        self.places = places;
        self.starts.retain(|(_, address)| self.places.contains_key(address));
        let watches = &self.watches;
        self.asked.retain(|_, asked| watches.contains_key(&asked.address));
        self.deadlines.retain(|(_, token)| self.asked.contains_key(token));
        let Some(interval) = self.config.interval else { return };
        if self.targets.peers.len() > ALL_UP_TO {
            return;
        }
        let waiting: BTreeSet<_> = self.starts.iter().map(|(_, address)| *address).collect();
        for address in self.places.keys() {
            if !self.watches.contains_key(address) && !waiting.contains(address) {
                // Not all nodes at once where one joins.
                self.starts.insert((now + part(interval / 4, random()), *address));
            }
        }
    }

    /// When [`Engine::poll`] has something to do again.
    pub fn wake(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let start = self.starts.first().map(|(at, _)| *at);
        [deadline, start, self.next].into_iter().flatten().min()
    }

    /// What is to be done at this moment; to be asked until it is nothing.
    pub fn poll(&mut self, now: Instant, random: &mut dyn FnMut() -> u64) -> Option<Output> {
        if let Some(interval) = self.config.interval
            && self.next.is_none_or(|next| next <= now)
        {
            self.next = Some(now + interval);
            self.begin_interval(interval, now, random);
        }
        while let Some((_, token)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.settle(token, Outcome::Lost, now, random);
        }
        while let Some((_, address)) = self.starts.first().copied().filter(|(at, _)| *at <= now) {
            self.starts.pop_first();
            let watch = self.watches.entry(address).or_insert_with(Watch::new);
            // A round that takes longer than the interval goes on.
            if watch.is_idle() {
                let ask = watch.begin();
                self.ask(address, ask, now, random);
            }
        }
        self.outputs.pop_front()
    }

    /// Takes a datagram that came from that address; others than answers are passed over.
    pub fn receive(&mut self, from: IpAddr, datagram: &[u8], now: Instant, random: &mut dyn FnMut() -> u64) {
        let Ok(answer) = Answer::parse(datagram) else { return };
        let Some(asked) = self.asked.get(&answer.token).filter(|asked| asked.address == from) else {
            return;
        };
        let Some((peer, _)) = self.target(asked.address) else { return };
        let is_whole = !answer.is_damaged && answer.length == asked.length;
        let outcome = if answer.node != *peer.node && is_whole {
            Outcome::Misdirected(answer.node)
        } else if answer.instance != *peer.instance && !peer.instance.is_empty() && is_whole {
            Outcome::Misdirected(format!("{} (another installation of it)", answer.node))
        } else if is_whole {
            Outcome::Answered(now.saturating_duration_since(asked.at))
        } else {
            Outcome::Damaged
        };
        self.settle(answer.token, outcome, now, random);
    }

    /// A question could not be sent: it counts as lost, at once.
    pub fn failed(&mut self, token: u64, now: Instant, random: &mut dyn FnMut() -> u64) {
        self.settle(token, Outcome::Lost, now, random);
    }

    fn target(&self, address: IpAddr) -> Option<(&Peer, &End)> {
        let (i, j) = self.places.get(&address)?;
        let peer = self.targets.peers.get(*i)?;
        Some((peer, peer.ends.get(*j)?))
    }

    fn begin_interval(&mut self, interval: Duration, now: Instant, random: &mut dyn FnMut() -> u64) {
        let chosen = self.choose(random);
        let waiting: BTreeSet<_> = self.starts.iter().map(|(_, address)| *address).collect();
        let addresses: Vec<_> = chosen
            .into_iter()
            .filter_map(|i| self.targets.peers.get(i))
            .flat_map(|peer| peer.ends.iter().map(|end| end.address))
            .filter(|address| !waiting.contains(address))
            .collect();
        // One after the other, so that neither this node nor its link has them all at once.
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let step = interval * 3 / 4 / count;
        for (i, address) in (0..).zip(addresses) {
            self.starts.insert((now + step * i, address));
        }
    }

    /// The places of the peers to ask: all, or some at random and as many of those that were not well.
    fn choose(&self, random: &mut dyn FnMut() -> u64) -> BTreeSet<usize> {
        let count = self.targets.peers.len();
        if count <= ALL_UP_TO || count <= self.config.peers {
            return (0..count).collect();
        }
        let mut ailing: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, watch)| watch.state != PathState::Well)
            .filter_map(|(address, _)| self.places.get(address).map(|(i, _)| *i))
            .collect();
        ailing.sort_unstable();
        ailing.dedup();
        let mut chosen = BTreeSet::new();
        while chosen.len() < self.config.peers {
            chosen.insert(below(count, random()));
        }
        for _ in 0..self.config.peers.min(ailing.len()) {
            chosen.insert(ailing.swap_remove(below(ailing.len(), random())));
        }
        chosen
    }

    fn ask(&mut self, address: IpAddr, ask: Ask, now: Instant, random: &mut dyn FnMut() -> u64) {
        let token = random();
        let Some((_, end)) = self.target(address) else { return };
        let as_frame = end.tunnel.clone().filter(|_| ask.as_frame);
        let question =
            Question { token, length: ask.length, without_offload: ask.answer_as_frame, is_damaged: false };
        self.asked.insert(token, Asked { address, at: now, length: ask.length });
        self.deadlines.insert((now + self.config.timeout, token));
        self.outputs.push_back(Output::Send { to: address, message: question.bytes(), as_frame, token });
    }

    fn settle(&mut self, token: u64, outcome: Outcome, now: Instant, random: &mut dyn FnMut() -> u64) {
        let Some(asked) = self.asked.remove(&token) else { return };
        self.deadlines.remove(&(asked.at + self.config.timeout, token));
        let address = asked.address;
        let Some((_, end)) = self.target(address) else { return };
        let end = end.clone();
        let Some(watch) = self.watches.get_mut(&address) else { return };
        match watch.settle(outcome, &end, now) {
            Next::Ask(ask) => self.ask(address, ask, now, random),
            Next::SwitchOff(tunnel, ask) => {
                self.outputs.push_back(Output::SwitchOff(tunnel));
                self.ask(address, ask, now, random);
            }
            Next::Done => self.report(address),
        }
    }

    fn report(&mut self, address: IpAddr) {
        let (Some((peer, end)), Some(watch)) = (self.target(address), self.watches.get(&address)) else {
            return;
        };
        let report = ProbeReport {
            node: peer.node.clone(),
            family: if address.is_ipv4() { IpFamily::Ipv4 } else { IpFamily::Ipv6 },
            state: watch.state,
            questions: watch.questions.clone(),
            rtt: watch.rtt,
            largest: watch.largest(end),
            promised: end.mtu,
            loss: watch.loss(),
            problem: watch.problem.clone(),
        };
        self.outputs.push_back(Output::Report(report));
    }
}

fn peer_at<'a>(
    places: &HashMap<IpAddr, (usize, usize)>,
    targets: &'a Targets,
    address: IpAddr,
) -> Option<&'a Peer> {
    targets.peers.get(places.get(&address)?.0)
}

/// A random part of a time.
fn part(whole: Duration, random: u64) -> Duration {
    // The upper half of the bits, as a fraction of 2³².
    let nanos = (whole.as_nanos() * u128::from(random >> 32)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A random number below `end`, which is greater than 0.
fn below(end: usize, random: u64) -> usize {
    let end = u128::try_from(end).unwrap_or(1);
    usize::try_from((u128::from(random) * end) >> 64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
