//! The messages between plugin and agent on the Unix socket.
//!
//! A frame is a length (4 bytes, big-endian) and so many bytes of JSON. Each request stands for itself and says which
//! version of the protocol it speaks; each response says which versions the agent speaks, so that a client that is
//! too new asks again in an older one. A change that an older program would misunderstand makes a new version; an
//! agent serves its own and the one before.
//!
//! Whatever comes over the socket is not trusted: only root can connect, but a mistake of another version's must
//! not end the agent.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use podwire_attach::{Attachment, Owner, OwnerId, Traffic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Ends, Error, Grant, Lease, RangeSet, Refusal, Reserve, SetUsage, Stale};

/// The versions that this program speaks, as agent and as client.
///
/// 2 came with what the node does to a pod's traffic: an agent of version 1 would forget it, so that nobody removed
/// it. All else is the same.
pub const SPEAKS: RangeInclusive<u32> = 1..=2;

/// The longest frame. A page of leases, the largest message, is far below it.
pub const MAX_FRAME: usize = 1 << 20;

/// How long a client waits for an answer, and an agent for the rest of a request, in seconds.
pub const DEADLINE_SECONDS: u64 = 5;

/// How long STATUS waits for the agent, which runtimes ask while they hold locks.
pub(crate) const STATUS_DEADLINE_SECONDS: u64 = 1;

/// How long a client waits for the answer to a GC: the kernel removes 40 links in a millisecond, but a sweep of
/// a node after a mishap may have thousands, one by one.
pub const GC_DEADLINE_SECONDS: u64 = 60;

/// How many leases one response has at most.
pub const PAGE: usize = 256;

/// How many addresses of unknown owners a response names at most: more than one node has pods.
pub const EXTRAS: usize = 10_000;

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The version that it speaks.
    pub version: u32,
    /// The response has the same.
    pub id: u64,
    /// What is asked for.
    pub op: Op,
}

/// What can be said of a request that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Head {
    /// See [`Request::version`].
    pub version: u32,
    /// See [`Request::id`].
    pub id: u64,
}

/// What can be asked for. [`crate::Allocator`] tells what each does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Answered by [`Answer::Grant`].
    Reserve(Box<Reserve>),
    /// Answered by [`Answer::Notices`].
    Import {
        /// Into which network.
        network: String,
        /// host-local's directory of it.
        directory: PathBuf,
        /// The network's range sets.
        sets: Vec<RangeSet>,
    },
    /// Answered by [`Answer::Notices`].
    Adopt {
        /// Into which network.
        network: String,
        /// What another program has attached and given addresses.
        attachments: Vec<Attachment>,
        /// The last address given from each range set.
        cursors: Vec<(u32, IpAddr)>,
        /// Addresses in use by nobody knows whom.
        unknown: Vec<IpAddr>,
    },
    /// Answered by [`Answer::Done`].
    Attached {
        /// Whose.
        owner: Owner,
        /// Of which reservation.
        generation: u64,
        /// How it came out.
        finished: Option<Box<Attachment>>,
    },
    /// Answered by [`Answer::Done`].
    Cancel {
        /// Whose.
        owner: Owner,
        /// Which reservation.
        generation: u64,
    },
    /// Answered by [`Answer::Deletion`].
    Delete {
        /// Whose.
        owner: Owner,
        /// Which of the owner's leases.
        #[serde(default)]
        ends: Ends,
    },
    /// Answered by [`Answer::Done`].
    FinishDelete {
        /// Whose, as the lease says.
        owner: OwnerId,
        /// Which lease.
        generation: u64,
    },
    /// Answered by [`Answer::Leases`], of one or none.
    Find {
        /// Whose.
        owner: Owner,
    },
    /// Answered by [`Answer::Leases`], a page at a time.
    Leases {
        /// Of which network; of all if none is named.
        network: Option<String>,
        /// The last owner of the page before.
        after: Option<OwnerId>,
    },
    /// Answered by [`Answer::Usage`].
    Usage {
        /// Of which network.
        network: String,
        /// Of which range sets.
        sets: Vec<RangeSet>,
    },
    /// Answered by [`Answer::Gc`].
    Gc {
        /// Of which network.
        network: String,
        /// Container and interface of each attachment that is to stay.
        valid: Vec<(String, String)>,
        /// The program that calls.
        runtime: Option<String>,
    },
    /// Answered by [`Answer::Extras`].
    Extras {
        /// Of which network.
        network: String,
    },
}

impl Op {
    /// The lowest version of the protocol in which it means the same.
    pub fn version(&self) -> u32 {
        let is_plain = |traffic: &Traffic| !traffic.has_rules() && !traffic.is_shaped();
        match self {
            Self::Adopt { .. } => 2,
            Self::Reserve(reserve) if !reserve.attachment.traffic.as_ref().is_none_or(is_plain) => 2,
            _ => 1,
        }
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The version that it speaks.
    pub version: u32,
    /// The oldest and the newest version that the agent speaks.
    pub speaks: (u32, u32),
    /// The request's.
    pub id: u64,
    /// The answer.
    pub result: Outcome,
}

/// What a response says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It was not.
    Error(Failure),
}

/// The answer to a request that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// There is nothing more to say.
    Done,
    /// What there is to tell the user, in whole sentences.
    Notices(Vec<String>),
    /// The addresses.
    Grant(Grant),
    /// What a DEL has come to.
    Deletion(Deletion),
    /// Leases.
    Leases {
        /// In the order of their owners' ids.
        leases: Vec<Lease>,
        /// Whether there are further ones.
        more: bool,
    },
    /// One for each range set.
    Usage(Vec<SetUsage>),
    /// What a GC has come to.
    Gc(GcReport),
    /// What is known of a network beside its leases.
    Extras {
        /// Addresses in use by nobody knows whom; at most [`EXTRAS`].
        unknown: Vec<IpAddr>,
        /// The last address given from each range set.
        cursors: Vec<(u32, IpAddr)>,
    },
}

/// What a DEL has come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletion {
    /// What the node had of the interface is gone and its leases, if it had any, have ended. Nothing is left to do.
    #[serde(with = "one_or_many")]
    Done(Vec<Lease>),
    /// The leases, if there are any, are `Deleting` from now on: the caller removes their rules and interfaces and then
    /// ends each.
    #[serde(with = "one_or_many")]
    Remove(Vec<Lease>),
}

/// Version 1 knows of one lease or none. Several are rare: a DEL of podwire with podwire in two places of one chain.
mod one_or_many {
    use super::{Deserialize, Lease, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Leases {
        One(Box<Lease>),
        Many(Vec<Lease>),
    }

    pub(super) fn serialize<S: Serializer>(leases: &[Lease], serializer: S) -> Result<S::Ok, S::Error> {
        match leases {
            [] => serializer.serialize_none(),
            [lease] => lease.serialize(serializer),
            many => many.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Lease>, D::Error> {
        Ok(match Option::<Leases>::deserialize(deserializer)? {
            None => Vec::new(),
            Some(Leases::One(lease)) => vec![*lease],
            Some(Leases::Many(leases)) => leases,
        })
    }
}

/// What a GC has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GcReport {
    /// Whose attachments are gone.
    pub removed: Vec<Owner>,
    /// Live attachments of other runtimes, which stay.
    pub foreign: Vec<Owner>,
    /// What could not be removed and why, in whole sentences.
    pub failed: Vec<String>,
}

/// The error of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// See [`Error::code`].
    pub code: String,
    /// One sentence with its causes.
    pub msg: String,
    /// See [`Error::retry`].
    pub retry: bool,
    /// What exactly was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
    /// Which reservation is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<(OwnerId, u64)>,
}

/// The code of [`Failure`] for a version that the agent does not speak.
pub const VERSION_CODE: &str = "version";

/// The code of [`Failure`] for a request that makes no sense to the agent.
pub const REQUEST_CODE: &str = "request";

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let (refusal, stale) = match error {
            Error::Refused(refusal) => (Some(Box::new(refusal.clone())), None),
            Error::Stale(stale) => (None, Some((stale.owner, stale.generation))),
            _ => (None, None),
        };
        Self { code: error.code().to_owned(), msg: error.chain(), retry: error.retry(), refusal, stale }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure { refusal: Some(refusal), .. } => Self::Refused(*refusal),
            Failure { stale: Some((owner, generation)), .. } => Self::Stale(Stale { owner, generation }),
            Failure { code, msg, retry, .. } => Self::Agent { code, message: msg, retry },
        }
    }
}

/// A message as a frame.
///
/// # Errors
/// It is longer than [`MAX_FRAME`].
pub fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let too_long =
        || io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long"));
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or_else(too_long)?;
    for (to, from) in frame.iter_mut().zip(header.to_be_bytes()) {
        *to = from;
    }
    Ok(frame)
}

/// The length that a frame's first four bytes say.
///
/// # Errors
/// It is more than [`MAX_FRAME`].
pub fn frame_length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME {
        let what = format!("a frame of {length} bytes; at most {MAX_FRAME} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(length)
}

/// Sends a message.
///
/// # Errors
/// The stream's; a message that is too long.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&frame(message)?)
}

/// Receives a message.
///
/// # Errors
/// The stream's; `InvalidData` for what is no such message.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = frame_length(header)?;
    // The length is only a claim: a large one is believed as it comes true.
    const AT_ONCE: usize = 16 << 10;
    let mut body = vec![0; length.min(AT_ONCE)];
    stream.read_exact(&mut body)?;
    stream.take((length - body.len()) as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads a request, or says how to answer to what is none. This is what the agent does with the body of a frame.
///
/// # Errors
/// The response to send; `None` for bytes that cannot be answered.
pub fn read_request(body: &[u8], speaks: &RangeInclusive<u32>) -> Result<Request, Option<Box<Response>>> {
    let refuse = |head: Head, code: &str, msg: String| {
        let failure = Failure { code: code.to_owned(), msg, retry: false, refusal: None, stale: None };
        Some(Box::new(response(head.version, head.id, speaks, Outcome::Error(failure))))
    };
    // The head first: another version's request may have any shape.
    let head: Head = serde_json::from_slice(body).map_err(|_| None)?;
    if !speaks.contains(&head.version) {
        let what = format!(
            "version {} of the protocol is not spoken here, but {} to {}",
            head.version,
            speaks.start(),
            speaks.end()
        );
        return Err(refuse(head, VERSION_CODE, what));
    }
    serde_json::from_slice(body).map_err(|error| {
        refuse(head, REQUEST_CODE, format!("this is no request that is known here: {error}"))
    })
}

/// The response to that request.
pub fn response(version: u32, id: u64, speaks: &RangeInclusive<u32>, result: Outcome) -> Response {
    Response { version, speaks: (*speaks.start(), *speaks.end()), id, result }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(container: &str) -> Lease {
        let text = format!(
            r#"{{"attachment":{{"owner":{{"network":"n","container":"{container}","ifname":"eth0"}},"addresses":[],"mac":null,"link":null,"bridge":null,"netns":"","netns_identity":null,"pod":null,"runtime":null}},"state":"deleting","origin":"add","generation":1,"boot_id":""}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_end_of_one_lease_or_none_is_told_as_in_version_1() {
        let none: Deletion = serde_json::from_str(r#"{"done":null}"#).unwrap();
        assert_eq!(none, Deletion::Done(Vec::new()));
        assert_eq!(serde_json::to_string(&none).unwrap(), r#"{"done":null}"#);
        let one = serde_json::to_value(Deletion::Remove(vec![lease("a")])).unwrap();
        assert_eq!(one["remove"]["attachment"]["owner"]["container"], "a");
        for leases in [vec![lease("a")], vec![lease("a"), lease("b")]] {
            let deletion = Deletion::Remove(leases);
            let text = serde_json::to_string(&deletion).unwrap();
            assert_eq!(serde_json::from_str::<Deletion>(&text).unwrap(), deletion);
        }
        let old: Op =
            serde_json::from_str(r#"{"delete":{"owner":{"network":"n","container":"a","ifname":"eth0"}}}"#)
                .unwrap();
        assert_eq!(old, Op::Delete { owner: Owner::new("n", "a", "eth0"), ends: Ends::Addresses });
    }
}
