//! Queues of links: token buckets, and the redirection of what a link receives into another link's queue.
//!
//! A link's queueing discipline shapes what the link sends. What it receives can be shaped only by sending it through
//! another link first: a `clsact` discipline with a filter that takes every packet hands it to an
//! [ifb](crate::link::create_ifb), whose token bucket then holds the rate, and which gives it back as received.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use nix::errno::Errno;

use crate::error::Result;
use crate::netlink::{Netlink, Request};
use crate::reply::{Body, attributes, text, u32_at, u64_at};

/// The handle of the token buckets made here (`7077:`, the letters `pw`): it tells them from other programs'.
pub const HANDLE: u32 = 0x7077_0000;

/// The priority of the filters made here.
pub const PRIORITY: u16 = 0x7077;

/// TC_H_ROOT: in the place of what a link sends through.
const ROOT: u32 = 0xffff_ffff;
/// TC_H_CLSACT, which is also TC_H_INGRESS: in the place of what sees packets come and go.
const CLSACT: u32 = 0xffff_fff1;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): where filters see what a link receives.
const INGRESS: u32 = 0xffff_fff2;
/// ETH_P_ALL, in network byte order: packets of every protocol.
const ETH_P_ALL: u16 = 3_u16.to_be();
/// Nanoseconds in a tick of the packet scheduler (PSCHED_SHIFT, the second number of /proc/net/psched): the same on all
/// kernels since 2.6.31.
const TICK: u64 = 64;

/// A token bucket's measures (tc-tbf(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// The rate at which tokens come, in bytes a second, with the link layer's headers; never 0.
    pub rate: u64,
    /// How many tokens the bucket holds, in bytes: so much may pass at once. Larger packets are split where they can be
    /// (GSO), else dropped.
    pub burst: u32,
    /// How many bytes may wait for tokens; more are dropped.
    pub limit: u32,
}

impl TokenBucket {
    /// Whether the kernel shows these measures as it shows `read`. It keeps the bucket's size as the time that its
    /// tokens take to come, in 32 bits of ticks of 64 ns.
    pub fn is_shown_as(&self, read: &TokenBucketState) -> bool {
        let ticks = |burst: u32| u64::from(burst) * 1_000_000_000 / self.rate.max(1) / TICK;
        // Rounding: kernels differ by some bytes' worth.
        let slack = ticks(self.burst) / 1000 + 2;
        #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps the lower 32 bits")]
        let difference = (ticks(self.burst) as u32).wrapping_sub(read.burst_ticks);
        let difference = u64::from(difference.min(difference.wrapping_neg()));
        self.rate == read.rate && self.limit == read.limit && difference <= slack
    }
}

/// A token bucket as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucketState {
    /// See [`TokenBucket::rate`].
    pub rate: u64,
    /// How long the tokens of a full bucket take to come, in ticks of 64 ns.
    pub burst_ticks: u32,
    /// See [`TokenBucket::limit`].
    pub limit: u32,
}

/// A queueing discipline as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Qdisc {
    /// The index of its link.
    pub ifindex: u32,
    /// Its kind: `tbf`, `noqueue`, `clsact`.
    pub kind: String,
    /// Its handle; 0 for those that the kernel gives to every link.
    pub handle: u32,
    /// Where it is: the link's root, or a class.
    pub parent: u32,
    /// Its measures, if it is a token bucket.
    pub bucket: Option<TokenBucketState>,
}

/// A filter as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The index of the link that it is on.
    pub ifindex: u32,
    /// Its kind, such as `u32`.
    pub kind: String,
    /// Its priority: the lowest is asked first.
    pub priority: u16,
    /// It takes every packet.
    pub is_match_all: bool,
    /// The index of the link that it hands packets to, to be sent; `None` if it does something else.
    pub redirect: Option<u32>,
}

/// Makes a link's token bucket; the link must have no discipline but the kernel's own (EEXIST).
pub fn create_bucket(ifindex: u32, name: &str, bucket: &TokenBucket) -> Request<'static> {
    Request::create("create token bucket", name, new_bucket(ifindex, bucket))
}

/// Gives a link's token bucket other measures, or makes it in the place of whatever discipline is there.
pub fn replace_bucket(ifindex: u32, name: &str, bucket: &TokenBucket) -> Request<'static> {
    Request::replace("set token bucket", name, new_bucket(ifindex, bucket))
}

fn new_bucket(ifindex: u32, bucket: &TokenBucket) -> RouteNetlinkMessage {
    const ETHERNET: u8 = 1;
    let ticks = u64::from(bucket.burst) * 1_000_000_000 / bucket.rate.max(1) / TICK;
    // struct tc_tbf_qopt: two struct tc_ratespec (rate and peak rate), limit, bucket size in ticks, peak's MTU.
    let mut options = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    options.extend_from_slice(&u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    options.extend_from_slice(&[0; 12]);
    options.extend_from_slice(&bucket.limit.to_ne_bytes());
    options.extend_from_slice(&u32::try_from(ticks).unwrap_or(u32::MAX).to_ne_bytes());
    options.extend_from_slice(&0_u32.to_ne_bytes());
    // TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST.
    let mut nested = vec![TcOption::Other(DefaultNla::new(1, options))];
    if u32::try_from(bucket.rate).is_err() {
        nested.push(TcOption::Other(DefaultNla::new(4, bucket.rate.to_ne_bytes().to_vec())));
    }
    nested.push(TcOption::Other(DefaultNla::new(6, bucket.burst.to_ne_bytes().to_vec())));
    let mut message = at(ifindex, HANDLE, ROOT, "tbf");
    message.attributes.push(TcAttribute::Options(nested));
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// Removes a link's token bucket, if the link's own discipline is one made here (EINVAL, ENOENT or EPERM if not: see
/// [`Netlink::root_qdisc`]).
pub fn remove_bucket(ifindex: u32, name: &str) -> Request<'static> {
    let message = at(ifindex, HANDLE, ROOT, "tbf");
    Request::change("remove token bucket", name, RouteNetlinkMessage::DelQueueDiscipline(message))
}

/// Makes the place for filters on what a link receives (EEXIST if there is one).
pub fn create_clsact(ifindex: u32, name: &str) -> Request<'static> {
    let message = at(ifindex, 0xffff_0000, CLSACT, "clsact");
    Request::create("create clsact", name, RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// Removes that place, with all filters.
pub fn remove_clsact(ifindex: u32, name: &str) -> Request<'static> {
    let message = at(ifindex, 0xffff_0000, CLSACT, "clsact");
    Request::change("remove clsact", name, RouteNetlinkMessage::DelQueueDiscipline(message))
}

/// Hands every packet that a link receives to another link, to be sent there. The link must have a clsact (ENOENT
/// or EINVAL if not).
pub fn redirect_all(ifindex: u32, name: &str, to: u32) -> Request<'static> {
    // struct tc_u32_sel with one struct tc_u32_key whose mask is 0: terminal, no key has to match.
    const TERMINAL: u8 = 1;
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.resize(16 + 16, 0);
    // struct tc_mirred: TC_ACT_STOLEN, TCA_EGRESS_REDIR and the link, behind index and capabilities.
    let mut redirect = Vec::with_capacity(28);
    for word in [0, 0, 4, 0, 0, 1, to] {
        redirect.extend_from_slice(&u32::to_ne_bytes(word));
    }
    // TCA_ACT_OPTIONS { TCA_MIRRED_PARMS }, and TCA_ACT_KIND, as the first action.
    let mut action = attribute(1, b"mirred\0");
    action.extend(attribute(2, &attribute(2, &redirect)));
    // TCA_U32_SEL and TCA_U32_ACT.
    let options = vec![
        TcOption::Other(DefaultNla::new(5, selector)),
        TcOption::Other(DefaultNla::new(7, attribute(1, &action))),
    ];
    let mut message = at(ifindex, 0, INGRESS, "u32");
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL);
    message.attributes.push(TcAttribute::Options(options));
    Request::create("redirect packets of", name, RouteNetlinkMessage::NewTrafficFilter(message))
}

/// Removes the filters of [`redirect_all`] from a link.
pub fn remove_redirect(ifindex: u32, name: &str) -> Request<'static> {
    let mut message = at(ifindex, 0, INGRESS, "u32");
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL);
    Request::change("stop redirecting packets of", name, RouteNetlinkMessage::DelTrafficFilter(message))
}

fn at(ifindex: u32, handle: u32, parent: u32, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = TcHandle::from(handle);
    message.header.parent = TcHandle::from(parent);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// `struct nlattr` and a value.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity((4 + value.len()).next_multiple_of(4));
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Netlink {
    /// The discipline that a link sends through; `None` if there is no such link, or it never had one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn root_qdisc(&mut self, ifindex: u32) -> Result<Option<Qdisc>> {
        self.qdisc_at(ifindex, ROOT)
    }

    /// The discipline that sees what a link receives (`clsact` or `ingress`); `None` if there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ingress_qdisc(&mut self, ifindex: u32) -> Result<Option<Qdisc>> {
        self.qdisc_at(ifindex, CLSACT)
    }

    fn qdisc_at(&mut self, ifindex: u32, parent: u32) -> Result<Option<Qdisc>> {
        // Not a dump, which goes through all links of the node.
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = TcHandle::from(parent);
        let message = RouteNetlinkMessage::GetQueueDiscipline(message);
        // Before Linux 6.6 the answer is an event, which only comes back to who asks for its echo. No answer at all means
        // that there is none to show, so this asks for an acknowledgement too.
        let query =
            Request::change("read queueing discipline", format!("of link {ifindex}"), message).echoed();
        let mut found = None;
        let result = self.exchange(&[&query], &mut |body| {
            if let Body::Qdisc(qdisc) = body {
                found = Some(*qdisc);
            }
        });
        match result {
            Ok(_) => Ok(found),
            // What every link has without being asked is not shown.
            Err(error) if error.is_missing() || error.errno == Errno::EINVAL as i32 => Ok(None),
            Err(error) => Err(crate::Error { index: None, ..error }),
        }
    }

    /// The filters on what a link receives. None if the link or its clsact is missing.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn ingress_filters(&mut self, ifindex: u32) -> Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = TcHandle::from(INGRESS);
        let message = RouteNetlinkMessage::GetTrafficFilter(message);
        let query = Request::dump("list filters", format!("of link {ifindex}"), message);
        let result = self.dump(query, |body| match body {
            // The kind's own table is listed beside what is in it.
            Body::Filter(filter) if filter.is_match_all || filter.redirect.is_some() => Some(*filter),
            Body::Filter(filter) if filter.kind != "u32" => Some(*filter),
            _ => None,
        });
        match result {
            Err(error) if error.is_missing() || error.errno == Errno::EINVAL as i32 => Ok(Vec::new()),
            other => other,
        }
    }
}

impl Qdisc {
    /// Decodes `struct tcmsg` and its attributes; `None` if it is too short for the structure.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut qdisc = Self {
            ifindex: u32_at(payload, 4)?,
            handle: u32_at(payload, 8)?,
            parent: u32_at(payload, 12)?,
            ..Self::default()
        };
        let mut options = None;
        for (kind, value) in attributes(payload.get(20..)?) {
            match kind {
                1 => qdisc.kind = text(value),
                2 => options = Some(value),
                _ => {}
            }
        }
        if qdisc.kind == "tbf" {
            qdisc.bucket = options.and_then(TokenBucketState::parse);
        }
        Some(qdisc)
    }
}

impl TokenBucketState {
    fn parse(options: &[u8]) -> Option<Self> {
        let (mut state, mut rate64) = (None, None);
        for (kind, value) in attributes(options) {
            match kind {
                1 => {
                    state = Some(Self {
                        rate: u32_at(value, 8)?.into(),
                        limit: u32_at(value, 24)?,
                        burst_ticks: u32_at(value, 28)?,
                    });
                }
                4 => rate64 = u64_at(value, 0),
                _ => {}
            }
        }
        let state = state?;
        Some(Self { rate: rate64.unwrap_or(state.rate), ..state })
    }
}

impl Filter {
    /// Decodes `struct tcmsg` and its attributes; `None` if it is too short for the structure.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let info = u32_at(payload, 16)?;
        let mut filter = Self {
            ifindex: u32_at(payload, 4)?,
            priority: u16::try_from(info >> 16).unwrap_or(0),
            ..Self::default()
        };
        let mut options = None;
        for (kind, value) in attributes(payload.get(20..)?) {
            match kind {
                1 => filter.kind = text(value),
                2 => options = Some(value),
                _ => {}
            }
        }
        if let (Some(options), "u32") = (options, filter.kind.as_str()) {
            for (kind, value) in attributes(options) {
                match kind {
                    // No key, or keys of which nothing counts.
                    5 => {
                        let masks = value.get(16..).unwrap_or_default().chunks(16);
                        filter.is_match_all =
                            masks.fold(value.len() >= 16, |all, key| all && u32_at(key, 0) == Some(0));
                    }
                    7 => filter.redirect = redirect(value),
                    _ => {}
                }
            }
        }
        Some(filter)
    }
}

/// The link that the first of some actions hands packets to.
fn redirect(actions: &[u8]) -> Option<u32> {
    const TO_BE_SENT: u32 = 1;
    let (_, action) = attributes(actions).next()?;
    let (_, kind) = attributes(action).find(|(kind, _)| *kind == 1)?;
    let (_, options) = attributes(action).find(|(kind, _)| *kind == 2)?;
    let (_, parameters) = attributes(options).find(|(kind, _)| *kind == 2)?;
    (text(kind) == "mirred" && u32_at(parameters, 20)? == TO_BE_SENT).then(|| u32_at(parameters, 24))?
}

#[cfg(test)]
mod tests;
