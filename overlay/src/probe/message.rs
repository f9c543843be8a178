//! What agents write to each other. PURE. Whatever arrives was written by anybody.
//!
//! ```text
//!  0  magic "pwpr"      4  version      5  kind      6  flags      7  zero
//!  8  token, 64 bits: chosen by who asks, repeated in the answer
//! 16  length of the question, 16 bits: as sent; in an answer as received
//! 18  zero, 6 bytes
//! 24  digest, 64 bits: the start of the SHA-256 of the message with zeros in this place
//! 32  question: anything, up to its length      answer: length and bytes of the name, then of the instance
//! ```
//! Numbers are in network byte order. All versions have the first eight bytes in common.

use sha2::{Digest, Sha256};

const MAGIC: [u8; 4] = *b"pwpr";
const VERSION: u8 = 1;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;
/// In a question: the answer is to have its checksums done by software.
const WITHOUT_OFFLOAD: u8 = 1;
/// In an answer: the question did not arrive as it was sent.
const DAMAGED: u8 = 1;
const HEADER: usize = 32;
const DIGEST: std::ops::Range<usize> = 24..32;

/// The longest name of a node, in bytes.
const LONGEST_NAME: usize = 253;
/// The longest instance, in bytes.
const LONGEST_INSTANCE: usize = 128;

/// The shortest question, in bytes of UDP payload: as long as the longest answer, so that no answer is longer than its
/// question.
pub const SMALLEST_QUESTION: u16 = (HEADER + 1 + LONGEST_NAME + 1 + LONGEST_INSTANCE) as u16 + 1;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not a message of this protocol, or of another version of it.
    #[error("not a message of this version")]
    Foreign,
    /// Cut off, or its lengths make no sense.
    #[error("the message is cut off")]
    Short,
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// What its answer must repeat.
    pub token: u64,
    /// Its length, in bytes of UDP payload.
    pub length: u16,
    /// The answer is to have its checksums done by software, not left to a link.
    pub without_offload: bool,
    /// It did not arrive as it was sent.
    pub is_damaged: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The question's token.
    pub token: u64,
    /// The length at which the question arrived, in bytes of UDP payload.
    pub length: u16,
    /// The name of the node that answers.
    pub node: String,
    /// Which installation of that name it is.
    pub instance: String,
    /// Either of the two did not arrive as it was sent.
    pub is_damaged: bool,
}

impl Question {
    /// The message, `length` bytes long (no less than [`SMALLEST_QUESTION`]).
    pub fn bytes(&self) -> Vec<u8> {
        let length = self.length.max(SMALLEST_QUESTION);
        let flags = if self.without_offload { WITHOUT_OFFLOAD } else { 0 };
        let mut bytes = header(QUESTION, flags, self.token, length);
        // Zeros would hide a card that sums up nothing, or the wrong part.
        let mut state = self.token;
        while bytes.len() < length.into() {
            bytes.extend_from_slice(&splitmix(&mut state).to_be_bytes());
        }
        bytes.truncate(length.into());
        seal(bytes)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// It is no question. One whose content was damaged on the way is not an error but says so.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (flags, token, length) = parse_header(bytes, QUESTION)?;
        if bytes.len() < SMALLEST_QUESTION.into() {
            return Err(MessageError::Short);
        }
        let arrived = u16::try_from(bytes.len()).map_err(|_| MessageError::Foreign)?;
        let is_damaged = length != arrived || !is_sealed(bytes);
        Ok(Self { token, length: arrived, without_offload: flags & WITHOUT_OFFLOAD != 0, is_damaged })
    }
}

impl Answer {
    /// The message; `None` if the name or instance is too long for one.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        if self.node.len() > LONGEST_NAME || self.instance.len() > LONGEST_INSTANCE {
            return None;
        }
        let flags = if self.is_damaged { DAMAGED } else { 0 };
        let mut bytes = header(ANSWER, flags, self.token, self.length);
        for text in [&self.node, &self.instance] {
            bytes.push(u8::try_from(text.len()).ok()?);
            bytes.extend_from_slice(text.as_bytes());
        }
        Some(seal(bytes))
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// It is no answer. One whose content was damaged on the way is not an error but says so; its name is then not to
    /// be trusted.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (flags, token, length) = parse_header(bytes, ANSWER)?;
        let (node, rest) = parse_text(bytes.get(HEADER..).unwrap_or_default(), LONGEST_NAME)?;
        let (instance, rest) = parse_text(rest, LONGEST_INSTANCE)?;
        if !rest.is_empty() {
            return Err(MessageError::Short);
        }
        Ok(Self { token, length, node, instance, is_damaged: flags & DAMAGED != 0 || !is_sealed(bytes) })
    }
}

fn header(kind: u8, flags: u8, token: u64, length: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::from(length).max(HEADER));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[VERSION, kind, flags, 0]);
    bytes.extend_from_slice(&token.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.resize(HEADER, 0);
    bytes
}

fn parse_header(bytes: &[u8], expected: u8) -> Result<(u8, u64, u16), MessageError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(MessageError::Short);
    };
    let [m0, m1, m2, m3, version, kind, flags, _, t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, ..] = *header;
    if [m0, m1, m2, m3] != MAGIC || version != VERSION || kind != expected {
        return Err(MessageError::Foreign);
    }
    Ok((flags, u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]), u16::from_be_bytes([l0, l1])))
}

fn parse_text(bytes: &[u8], longest: usize) -> Result<(String, &[u8]), MessageError> {
    let (length, rest) = bytes.split_first().ok_or(MessageError::Short)?;
    let length = usize::from(*length);
    if length > longest {
        return Err(MessageError::Short);
    }
    let (text, rest) = rest.split_at_checked(length).ok_or(MessageError::Short)?;
    // It goes into logs and onto terminals.
    let text = String::from_utf8_lossy(text).replace(char::is_control, "?");
    Ok((text, rest))
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = digest(&bytes);
    if let Some(place) = bytes.get_mut(DIGEST) {
        place.copy_from_slice(&digest);
    }
    bytes
}

fn is_sealed(bytes: &[u8]) -> bool {
    bytes.get(DIGEST).is_some_and(|found| found == digest(bytes))
}

/// Of the message with zeros where the digest stands. It tells damage from none; it proves nothing about who wrote it.
fn digest(bytes: &[u8]) -> [u8; 8] {
    let mut hasher = Sha256::new();
    hasher.update(bytes.get(..DIGEST.start).unwrap_or_default());
    hasher.update([0; 8]);
    hasher.update(bytes.get(DIGEST.end..).unwrap_or_default());
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hasher.finalize().into();
    [a, b, c, d, e, f, g, h]
}

/// Bytes without a pattern (SplitMix64).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_read_back_as_they_were_written(
            token: u64, length in SMALLEST_QUESTION..9000, flags: [bool; 2], node in "[a-z.-]{0,253}", instance in "[0-9a-f-]{0,128}",
        ) {
            let question = Question { token, length, without_offload: flags[0], is_damaged: false };
            let bytes = question.bytes();
            prop_assert_eq!(bytes.len(), usize::from(length));
            prop_assert_eq!(Question::parse(&bytes), Ok(question));
            prop_assert_eq!(Answer::parse(&bytes), Err(MessageError::Foreign));
            let answer = Answer { token, length, node, instance, is_damaged: flags[1] };
            let bytes = answer.bytes().expect("short enough");
            prop_assert!(bytes.len() <= usize::from(SMALLEST_QUESTION));
            prop_assert_eq!(Answer::parse(&bytes), Ok(answer));
            prop_assert_eq!(Question::parse(&bytes), Err(MessageError::Foreign));
        }

        /// A changed byte anywhere behind the first eight is seen, or makes the message another's.
        #[test]
        fn damage_is_noticed(token: u64, at in 8_usize..usize::from(SMALLEST_QUESTION), change in 1_u8..) {
            let length = SMALLEST_QUESTION;
            let mut bytes = Question { token, length, without_offload: false, is_damaged: false }.bytes();
            bytes[at] ^= change;
            prop_assert!(Question::parse(&bytes).expect("a question").is_damaged);
            let name = || "n".repeat(200);
            let answer = Answer { token, length, node: name(), instance: name()[..100].into(), is_damaged: false };
            let mut bytes = answer.bytes().expect("short enough");
            let at = at % bytes.len();
            bytes[at] ^= change;
            prop_assert!(Answer::parse(&bytes).is_ok_and(|found| found.is_damaged) || at < 8 || Answer::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600), real: bool) {
            let mut bytes = bytes;
            if real && bytes.len() > 6 {
                let kind = 1 + (bytes[6] & 1);
                bytes[..6].copy_from_slice(&[b'p', b'w', b'p', b'r', 1, kind]);
            }
            let _ = Question::parse(&bytes);
            if let Ok(answer) = Answer::parse(&bytes) {
                prop_assert!(!answer.node.contains(char::is_control));
            }
        }
    }

    #[test]
    fn other_versions_and_names_that_are_too_long_are_left_alone() {
        let question = Question { token: 1, length: 1000, without_offload: false, is_damaged: false };
        let mut bytes = question.bytes();
        bytes[4] = 2;
        assert_eq!(Question::parse(&bytes), Err(MessageError::Foreign));
        let mut short = question.bytes();
        short.truncate(SMALLEST_QUESTION as usize - 1);
        assert_eq!(Question::parse(&short), Err(MessageError::Short));
        let answer =
            Answer { token: 1, length: 1, node: "n".repeat(254), instance: String::new(), is_damaged: false };
        assert_eq!(answer.bytes(), None);
    }
}
