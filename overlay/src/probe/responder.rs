//! Who is answered, and how often. PURE.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Answer, Question};
use super::targets::{Targets, TunnelEnd};

/// How many questions of one peer are answered at once: all of a search for the largest packet, and of a few rounds.
const PEER_BURST: u32 = 64;
/// How often one peer is answered, each second.
const PEER_RATE: u32 = 10;
/// How many questions are answered at once, and each second, of all peers together.
const TOTAL_RATE: u32 = 2000;

/// Answers questions.
#[derive(Debug, Default)]
pub struct Responder {
    node: Arc<str>,
    instance: Arc<str>,
    port: u16,
    members: HashMap<IpAddr, Member>,
    total: Option<Allowance>,
}

#[derive(Debug)]
struct Member {
    tunnel: Option<Arc<TunnelEnd>>,
    allowance: Option<Allowance>,
}

/// How many answers may still be given; grows with time.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    left: u32,
    since: Instant,
}

/// An answer that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub bytes: Vec<u8>,
    /// Where its checksums are to be done by software: the tunnel that it goes into as a frame.
    pub without_offload: Option<Arc<TunnelEnd>>,
}

impl Responder {
    /// One that knows nobody, and answers questions from and to that port.
    pub fn new(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// Has it answer these peers alone, in this node's name.
    pub fn update(&mut self, targets: &Targets) {
        (self.node, self.instance) = (targets.node.clone(), targets.instance.clone());
        let mut before = std::mem::take(&mut self.members);
        let ends = targets.peers.iter().flat_map(|peer| &peer.ends);
        self.members = ends
            .map(|end| {
                let allowance = before.remove(&end.address).and_then(|member| member.allowance);
                (end.address, Member { tunnel: end.tunnel.clone(), allowance })
            })
            .collect();
    }

    /// The answer to a datagram; `None` if it gets none.
    pub fn answer(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Option<Reply> {
        // A member's agent asks from this very port; with any other, an answer could be made to go to another program.
        if from.port() != self.port {
            return None;
        }
        let member = self.members.get_mut(&from.ip())?;
        let question = Question::parse(datagram).ok()?;
        Allowance::take(&mut member.allowance, PEER_BURST, PEER_RATE, now)?;
        Allowance::take(&mut self.total, TOTAL_RATE, TOTAL_RATE, now)?;
        let answer = Answer {
            token: question.token,
            length: question.length,
            node: self.node.as_ref().to_owned(),
            instance: self.instance.as_ref().to_owned(),
            is_damaged: question.is_damaged,
        };
        let bytes = answer.bytes().filter(|bytes| bytes.len() <= datagram.len())?;
        let without_offload = member.tunnel.clone().filter(|_| question.without_offload);
        Some(Reply { bytes, without_offload })
    }
}

impl Allowance {
    /// Takes one, if there is one.
    fn take(allowance: &mut Option<Self>, burst: u32, rate: u32, now: Instant) -> Option<()> {
        let allowance = allowance.get_or_insert(Self { left: burst, since: now });
        let pause = Duration::from_secs(1) / rate;
        let grown = now.saturating_duration_since(allowance.since).as_nanos() / pause.as_nanos();
        let grown = u32::try_from(grown).unwrap_or(u32::MAX);
        if grown >= burst.saturating_sub(allowance.left) {
            *allowance = Self { left: burst, since: now };
        } else {
            allowance.left += grown;
            // Not `now`: what is left of a pause counts towards the next.
            allowance.since += pause * grown;
        }
        allowance.left = allowance.left.checked_sub(1)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use podwire_kernel::MacAddr;

    use super::super::targets::{End, Peer};
    use super::*;

    fn targets() -> Targets {
        let tunnel =
            TunnelEnd { device: "podwire.1".into(), source: MacAddr([2; 6]), destination: MacAddr([4; 6]) };
        let end = |address: [u8; 4], tunnel| End { address: address.into(), mtu: 1450, tunnel };
        let peer = |node: &str, end| Peer { node: node.into(), instance: "".into(), ends: vec![end] };
        Targets {
            node: "here".into(),
            instance: "i1".into(),
            own: vec![],
            peers: vec![
                peer("a", end([10, 1, 0, 0], Some(Arc::new(tunnel)))),
                peer("b", end([10, 2, 0, 0], None)),
            ],
        }
    }

    fn question(length: u16) -> Question {
        Question { token: 7, length, without_offload: false, is_damaged: false }
    }

    #[test]
    fn members_alone_are_answered_from_their_port_with_no_more_bytes_than_they_sent() {
        let now = Instant::now();
        let mut responder = Responder::new(8473);
        let asked = |responder: &mut Responder, bytes: &[u8], from: &str| {
            responder.answer(bytes, from.parse().expect("an address"), now)
        };
        let bytes = question(600).bytes();
        assert_eq!(asked(&mut responder, &bytes, "10.1.0.0:8473"), None, "before it knows anybody");
        responder.update(&targets());
        let reply = asked(&mut responder, &bytes, "10.1.0.0:8473").expect("an answer");
        assert_eq!(reply.without_offload, None);
        assert!(reply.bytes.len() <= 600);
        let expected =
            Answer { token: 7, length: 600, node: "here".into(), instance: "i1".into(), is_damaged: false };
        assert_eq!(Answer::parse(&reply.bytes), Ok(expected));
        for stranger in ["10.1.0.1:8473", "10.1.0.0:53", "[::ffff:10.1.0.0]:8473"] {
            assert_eq!(asked(&mut responder, &bytes, stranger), None, "{stranger}");
        }
        assert_eq!(asked(&mut responder, &reply.bytes, "10.1.0.0:8473"), None, "an answer is not answered");
        let mut damaged = bytes.clone();
        damaged[300] ^= 1;
        let reply = asked(&mut responder, &damaged, "10.1.0.0:8473").expect("an answer");
        assert!(Answer::parse(&reply.bytes).expect("an answer").is_damaged);
        let raw = Question { without_offload: true, ..question(600) }.bytes();
        let reply = asked(&mut responder, &raw, "10.1.0.0:8473").expect("an answer");
        assert_eq!(reply.without_offload.map(|tunnel| tunnel.destination), Some(MacAddr([4; 6])));
        let reply = asked(&mut responder, &raw, "10.2.0.0:8473").expect("an answer");
        assert_eq!(reply.without_offload, None, "no tunnel leads there");
    }

    #[test]
    fn answers_are_limited_for_each_peer_and_an_update_does_not_lift_the_limit() {
        let start = Instant::now();
        let mut responder = Responder::new(8473);
        responder.update(&targets());
        let bytes = question(600).bytes();
        let mut count = |from: &str, now, update| {
            if update {
                responder.update(&targets());
            }
            let from = from.parse().expect("an address");
            (0..1000).filter(|_| responder.answer(&bytes, from, now).is_some()).count()
        };
        assert_eq!(count("10.1.0.0:8473", start, false), PEER_BURST as usize);
        assert_eq!(count("10.1.0.0:8473", start, true), 0);
        assert_eq!(count("10.2.0.0:8473", start, false), PEER_BURST as usize, "another peer");
        assert_eq!(count("10.1.0.0:8473", start + Duration::from_millis(1050), false), 10);
        assert_eq!(count("10.1.0.0:8473", start + Duration::from_millis(1100), false), 1);
        assert_eq!(count("10.1.0.0:8473", start + Duration::from_secs(3600), false), PEER_BURST as usize);
    }
}
