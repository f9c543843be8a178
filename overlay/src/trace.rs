//! Following packets of one flow from place to place. PURE.
//!
//! One packet is seen at the pod's interface, on the bridge, on the VXLAN device and, inside another one, on the
//! underlay. [`decode()`] reads a captured frame as far as it goes, [`Follower`] finds the sightings of one packet by what
//! no hop changes, and tells which places it did not come to. Frames come from the network: nothing in them is believed.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

mod decode;
mod show;

pub use decode::{Ethernet, Frame, Layers, Network, Transport, decode};
pub use show::text;

/// Where packets are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// What it is on a packet's way.
    pub role: Role,
    /// The link's name.
    pub link: String,
}

/// See [`Place`]. In the order in which a packet of a local pod comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The host's end of a pod's veth.
    Pod,
    /// The bridge.
    Bridge,
    /// The VXLAN device.
    Tunnel,
    /// The link between nodes.
    Underlay,
}

impl Role {
    /// As it stands in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Bridge => "bridge",
            Self::Tunnel => "tunnel",
            Self::Underlay => "underlay",
        }
    }
}

/// Which packets belong to the flow: those between these two, in both directions, alone or inside VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// One end.
    pub a: IpAddr,
    /// The other.
    pub b: IpAddr,
}

impl Flow {
    /// Whether a frame's innermost packet is of the flow.
    pub fn has(&self, frame: &Frame) -> bool {
        let Some(network) = frame.inner.network.as_ref() else { return false };
        let ends = (network.source, network.destination);
        ends == (self.a, self.b) || ends == (self.b, self.a)
    }
}

/// A frame, seen somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sighting {
    /// Which of the places.
    pub place: Place,
    /// When, since the capture began.
    #[serde(serialize_with = "micros")]
    pub at: Duration,
    /// Whether the machine sent it there, rather than received.
    pub outgoing: bool,
    /// What it is.
    pub frame: Frame,
}

fn micros<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_nanos() as f64 / 1000.0)
}

/// One packet and where it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Passage {
    /// Where, in order of time. Not empty.
    pub sightings: Vec<Sighting>,
    /// Where it should have come by and did not.
    pub missing: Vec<Place>,
}

impl Passage {
    /// Whether all places were watched while the packet came by. One that was on its way when the last watch was opened
    /// may have passed others unseen; what was seen before that has time 0.
    pub fn was_watched(&self) -> bool {
        self.missing.is_empty() || self.sightings.iter().all(|seen| seen.at >= UNDER_WAY)
    }
}

/// How long a packet may be under way between the first place and the last.
const UNDER_WAY: Duration = Duration::from_millis(10);

/// How long after its first sighting a packet is waited for elsewhere. A machine takes microseconds; the kernel may
/// deliver captured frames of different links some milliseconds apart.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// The most packets that are followed at a time.
const MOST: usize = 4096;

/// Follows the packets of one flow.
#[derive(Debug)]
pub struct Follower {
    places: Vec<Place>,
    open: VecDeque<(decode::Mark, Passage)>,
}

impl Follower {
    /// For a flow that is to come by all of these places.
    pub fn new(places: Vec<Place>) -> Self {
        Self { places, open: VecDeque::new() }
    }

    /// A frame of the flow was seen.
    pub fn saw(&mut self, sighting: Sighting) {
        let mark = decode::mark(&sighting.frame);
        // The same packet again at the same place is another one: it was sent again.
        let known = self.open.iter_mut().find(|(known, passage)| {
            *known == mark && passage.sightings.iter().all(|seen| seen.place != sighting.place)
        });
        match known {
            Some((_, passage)) => passage.sightings.push(sighting),
            None => {
                let passage = Passage { sightings: vec![sighting], missing: Vec::new() };
                self.open.push_back((mark, passage));
            }
        }
    }

    /// Packets that were seen everywhere, or that nothing more will be seen of, in order of their first sighting.
    pub fn done(&mut self, now: Duration) -> Vec<Passage> {
        let mut done = Vec::new();
        // In order: a packet is not told before an earlier one.
        while let Some((_, passage)) = self.open.front() {
            let is_whole = passage.sightings.len() >= self.places.len();
            let is_over = passage.sightings.iter().map(|seen| seen.at).min().unwrap_or(now) + PATIENCE <= now;
            if !is_whole && !is_over && self.open.len() <= MOST {
                break;
            }
            done.extend(self.open.pop_front().map(|(_, passage)| self.finish(passage)));
        }
        done
    }

    /// All that is left.
    pub fn end(&mut self) -> Vec<Passage> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().map(|(_, passage)| self.finish(passage)).collect()
    }

    fn finish(&self, mut passage: Passage) -> Passage {
        // What came in by one link is told with one time at all that stand above it.
        let is_from_here =
            passage.sightings.iter().any(|seen| seen.place.role <= Role::Bridge && !seen.outgoing);
        let step = |role: Role| if is_from_here { role as i8 } else { -(role as i8) };
        passage.sightings.sort_by_key(|seen| (seen.at, step(seen.place.role)));
        let is_missing = |place: &&Place| passage.sightings.iter().all(|seen| seen.place != **place);
        passage.missing = self.places.iter().filter(is_missing).cloned().collect();
        passage
    }
}

#[cfg(test)]
mod tests;
