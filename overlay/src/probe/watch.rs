//! What is known of the path to one peer in one family, and what is asked next. PURE.
//!
//! A round is a series of questions, one at a time, each of which follows from what became of the last:
//!
//! ```text
//! small question ── answered ── is the largest size due? ── search by halves ── well, or too small
//!        └ 3 × lost, in the round before too ── through a tunnel? ── the same with checksums done by software, in turn
//!              with an ordinary one: those are answered and these are not, six times ── the card's checksums are broken
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::targets::{End, TunnelEnd};
use super::{Outcome, PathState, SMALLEST_QUESTION};

/// How often a lost question is asked again before the peer counts as unreachable.
const TRIES: u8 = 3;
/// How often a size is tried before it counts as too large.
const SIZE_TRIES: u8 = 2;
/// How many times each of the two kinds of question must agree that checksum offload is broken.
const AGREEMENTS: u8 = 6;
/// How long the largest packet is taken for known, where it is as large as promised.
const SIZE_LASTS: Duration = Duration::from_secs(600);
/// The same where it is smaller.
const SMALL_SIZE_LASTS: Duration = Duration::from_secs(60);
/// How many of the last ordinary questions count for the loss.
const HISTORY: u32 = 32;

/// A question to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    /// The UDP payload's length, in bytes.
    pub(super) length: u16,
    /// It is sent as a frame whose checksums are done already.
    pub(super) as_frame: bool,
    /// So is to be its answer.
    pub(super) answer_as_frame: bool,
}

/// What follows from what became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one.
    Ask(Ask),
    /// Checksum offload is to be switched off on this device; then another question.
    SwitchOff(Arc<TunnelEnd>, Ask),
    /// The round is over.
    Done,
}

#[derive(Debug)]
pub(super) struct Watch {
    phase: Phase,
    /// What became of the last ordinary questions of the smallest size: a bit for each, set if it was answered.
    history: u32,
    asked: u32,
    size: Option<Size>,
    /// Of the round that is under way, or of the last.
    pub(super) questions: Vec<Outcome>,
    pub(super) rtt: Option<Duration>,
    pub(super) state: PathState,
    pub(super) problem: Option<String>,
    /// Checksum offload was switched off because of this path.
    switched_off: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Size {
    largest: u32,
    /// What was promised when it was found.
    promised: u32,
    found: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Idle,
    Reach {
        lost: u8,
    },
    /// `good` passes, `bad` does not, or was not tried; `trying` is what is asked. Lengths of packets, in bytes.
    Size {
        good: u32,
        bad: u32,
        trying: u32,
        lost: u8,
    },
    /// So many questions have agreed that checksum offload is broken.
    Offload {
        agreed: u8,
    },
}

/// The length of the IP and UDP headers, in bytes.
fn headers(end: &End) -> u32 {
    if end.address.is_ipv4() { 28 } else { 48 }
}

fn smallest(end: &End) -> u32 {
    u32::from(SMALLEST_QUESTION) + headers(end)
}

const SMALL: Ask = Ask { length: SMALLEST_QUESTION, as_frame: false, answer_as_frame: false };

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            history: 0,
            asked: 0,
            size: None,
            questions: Vec::new(),
            rtt: None,
            state: PathState::Unreachable,
            problem: None,
            switched_off: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Which part of the last questions was lost, 0 to 1.
    pub(super) fn loss(&self) -> f64 {
        let answered = self.history.count_ones();
        if self.asked == 0 { 0.0 } else { f64::from(self.asked - answered) / f64::from(self.asked) }
    }

    /// The largest packet that passed, as far as it is known for what is promised now.
    pub(super) fn largest(&self, end: &End) -> Option<u32> {
        self.size.filter(|size| size.promised == end.mtu).map(|size| size.largest)
    }

    /// Begins a round.
    pub(super) fn begin(&mut self) -> Ask {
        self.phase = Phase::Reach { lost: 0 };
        self.questions.clear();
        self.rtt = None;
        self.problem = None;
        SMALL
    }

    /// Takes what became of the question that was asked last.
    pub(super) fn settle(&mut self, outcome: Outcome, end: &End, now: Instant) -> Next {
        match self.phase {
            Phase::Idle => Next::Done,
            Phase::Reach { lost } => self.settle_reach(outcome, lost, end, now),
            Phase::Size { .. } => self.settle_size(&outcome, end, now),
            Phase::Offload { agreed } => self.settle_offload(&outcome, agreed, end),
        }
    }

    fn settle_reach(&mut self, outcome: Outcome, lost: u8, end: &End, now: Instant) -> Next {
        let is_answered = matches!(outcome, Outcome::Answered(_));
        self.history = (self.history << 1) | u32::from(is_answered);
        self.asked = (self.asked + 1).min(HISTORY);
        self.questions.push(outcome.clone());
        match outcome {
            Outcome::Answered(rtt) => {
                self.rtt = Some(rtt);
                self.begin_size(end, now)
            }
            Outcome::Damaged => self
                .done(PathState::Damaged, Some("packets arrive with other bytes than were sent".to_owned())),
            Outcome::Misdirected(name) => {
                let problem = format!("{} answers in its place", quoted(&name));
                self.done(PathState::Misdirected, Some(problem))
            }
            Outcome::Lost if lost + 1 < TRIES => {
                self.phase = Phase::Reach { lost: lost + 1 };
                Next::Ask(SMALL)
            }
            // A path that was answered last time is rather one that loses packets.
            Outcome::Lost if end.tunnel.is_some() && self.switched_off.is_none() && self.is_silent() => {
                self.phase = Phase::Offload { agreed: 0 };
                Next::Ask(Ask { as_frame: true, answer_as_frame: true, ..SMALL })
            }
            Outcome::Lost => self.unreachable(),
        }
    }

    fn begin_size(&mut self, end: &End, now: Instant) -> Next {
        let known = self.size.filter(|size| size.promised == end.mtu).filter(|size| {
            let lasts = if size.largest < size.promised { SMALL_SIZE_LASTS } else { SIZE_LASTS };
            now.saturating_duration_since(size.found) < lasts
        });
        match known {
            Some(size) => self.sized(size.largest, end),
            // Smaller than a question.
            None if end.mtu <= smallest(end) => self.found(end.mtu, end, now),
            None => self.try_size(smallest(end), end.mtu.saturating_add(1), end.mtu, end, now),
        }
    }

    fn try_size(&mut self, good: u32, bad: u32, trying: u32, end: &End, now: Instant) -> Next {
        // No UDP payload is longer than its length field can say.
        let Ok(length) = u16::try_from(trying - headers(end)) else {
            return self.found(trying, end, now);
        };
        self.phase = Phase::Size { good, bad, trying, lost: 0 };
        Next::Ask(Ask { length, ..SMALL })
    }

    fn settle_size(&mut self, outcome: &Outcome, end: &End, now: Instant) -> Next {
        let Phase::Size { mut good, mut bad, trying, lost } = self.phase else {
            return Next::Done;
        };
        if matches!(outcome, Outcome::Answered(_)) {
            good = trying;
        } else if lost + 1 < SIZE_TRIES {
            let again = self.try_size(good, bad, trying, end, now);
            if let Phase::Size { lost: tries, .. } = &mut self.phase {
                *tries = lost + 1;
            }
            return again;
        } else {
            bad = trying;
        }
        if good + 1 >= bad {
            return self.found(good, end, now);
        }
        self.try_size(good, bad, good + (bad - good) / 2, end, now)
    }

    fn found(&mut self, largest: u32, end: &End, now: Instant) -> Next {
        self.size = Some(Size { largest, promised: end.mtu, found: now });
        self.sized(largest, end)
    }

    fn sized(&mut self, largest: u32, end: &End) -> Next {
        if largest >= end.mtu {
            return self.done(PathState::Well, self.switched_off.clone());
        }
        let problem = format!(
            "packets of more than {largest} bytes do not pass, {} are promised: \
             a link of the underlay on the way there has a smaller MTU than both nodes",
            end.mtu
        );
        self.done(PathState::TooSmall, Some(problem))
    }

    /// In turn a question and answer as frames, which must get through, and an ordinary question whose answer is a frame,
    /// which must not.
    fn settle_offload(&mut self, outcome: &Outcome, agreed: u8, end: &End) -> Next {
        let is_answered = matches!(outcome, Outcome::Answered(_));
        let as_frame = agreed.is_multiple_of(2);
        if is_answered && !as_frame {
            let problem = "packets get there, but those from there arrive only with checksums done by software: checksum \
                           offload is broken there";
            return self.done(PathState::PeerOffload, Some(problem.to_owned()));
        }
        if is_answered != as_frame {
            return self.unreachable();
        }
        let agreed = agreed + 1;
        match &end.tunnel {
            Some(tunnel) if agreed == 2 * AGREEMENTS => {
                self.switched_off = Some(format!(
                    "ordinary packets were lost and those with checksums done by software were not: checksum offload is \
                     broken below {}, and has been switched off on it",
                    tunnel.device
                ));
                // What the loss is without the offload.
                (self.history, self.asked) = (0, 0);
                self.phase = Phase::Reach { lost: 0 };
                Next::SwitchOff(tunnel.clone(), SMALL)
            }
            _ => {
                self.phase = Phase::Offload { agreed };
                Next::Ask(Ask { as_frame: !as_frame, answer_as_frame: true, ..SMALL })
            }
        }
    }

    fn is_silent(&self) -> bool {
        matches!(self.state, PathState::Unreachable | PathState::PeerOffload)
    }

    fn unreachable(&mut self) -> Next {
        self.done(PathState::Unreachable, Some(format!("no answer to {} questions", self.questions.len())))
    }

    fn done(&mut self, state: PathState, problem: Option<String>) -> Next {
        self.phase = Phase::Idle;
        (self.state, self.problem) = (state, problem);
        Next::Done
    }
}

fn quoted(name: &str) -> String {
    if name.is_empty() { "a node without a name".to_owned() } else { format!("\"{name}\"") }
}
