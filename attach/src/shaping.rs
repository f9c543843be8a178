//! From a pod's rate limits to token buckets, and what differs from them. PURE.
//!
//! What goes to the pod waits in a token bucket on the host's end of its veth. What comes from the pod is handed to an
//! ifb, a link of its own beside the veth, with a token bucket on it. Measured with TCP over 5 s (cubic and BBR, 1 Mbit/s
//! to 1 Gbit/s): both give 96–98 % of the rate as payload, headers of 4.4 % included. Policing by nft gives 117–120 %
//! with thousands of retransmissions. A bucket on the pod's own end is as exact and cheaper, but any pod with
//! CAP_NET_ADMIN could take it away.

mod queues;

use podwire_kernel::qdisc::{TokenBucket, TokenBucketState};

use crate::{Owner, OwnerId, RateLimit, Shaping, alias};

pub use queues::{HostQueue, ObservedShaping, ShapingError, observe_shaping, shape, unshape};

/// The first word of an ifb's alias: ours, what it is, and the format's version. Not a pod link's
/// ([`crate::alias`]): an ifb that is left over must not look like a pod that lives.
const TAG: &str = "podwire1-ifb";

/// How long a bucket that nobody gave a size takes to fill, in milliseconds: 5 s of traffic then carry 1.5 % more than
/// the rate, which makes up for a part of the headers.
const FILL_MS: u64 = 75;

/// How long packets wait at most, in milliseconds; the reference plugin's. Slow links have the larger of this and
/// [`WAITING_FRAMES`].
const WAIT_MS: u64 = 25;

/// A bucket of eight frames was seen to cost TCP more than 5 % of 1 Mbit/s.
const BURST_FRAMES: u64 = 12;

/// With fewer frames waiting, TCP's loss recovery at 1 Mbit/s falls back to timeouts.
const WAITING_FRAMES: u64 = 16;

/// The largest packet before it is split into frames (GSO), with the headers that are counted for each: 64 KiB and 45
/// times 66 bytes, rounded up. A queue that is shorter than what the bucket lets through whole drops all of it.
const LARGEST_PACKET: u64 = 72 * 1024;

/// A frame's headers beside its MTU: Ethernet's and a VLAN tag.
const HEADERS: u64 = 18;

/// The token bucket of a limit, for packets of up to `mtu` bytes. A `burst` counts as it is but for one frame at least,
/// because nothing larger than the bucket ever passes; without one the bucket fills in 75 ms.
pub fn bucket(limit: &RateLimit, mtu: u32) -> TokenBucket {
    let bytes = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let frame = u64::from(mtu) + HEADERS;
    let rate = (limit.rate / 8).max(1);
    let during = |ms: u64| rate.saturating_mul(ms) / 1000;
    let burst = match limit.burst {
        Some(bits) => (bits / 8).max(frame),
        None => during(FILL_MS).max(BURST_FRAMES * frame),
    };
    let waiting = during(WAIT_MS).max(burst.min(LARGEST_PACKET)).max(WAITING_FRAMES * frame);
    TokenBucket { rate, burst: bytes(burst), limit: bytes(waiting) }
}

/// The name of the link that an owner's packets from the pod wait at: `pi` and 13 hexadecimal digits of the id.
pub fn ifb_name(owner: OwnerId) -> String {
    owner.named("pi")
}

/// The alias of that link: it names the owner, as far as 255 bytes go.
pub fn ifb_alias(owner: &Owner) -> String {
    alias::cut(format!("{TAG} {} {} {} {}", owner.id(), owner.container, owner.ifname, owner.network))
}

/// Whose ifb has this alias; `None` if it is not one of ours.
pub fn ifb_owner(alias: &str) -> Option<OwnerId> {
    let mut words = alias.split(' ');
    if words.next() != Some(TAG) {
        return None;
    }
    OwnerId::try_from(words.next()?.to_owned()).ok()
}

/// What of an owner's shaping is not as it should be: `to the pod`, `from the pod`.
pub fn differences(wanted: &Shaping, mtu: u32, observed: &ObservedShaping) -> Vec<&'static str> {
    let differs = |wanted: Option<RateLimit>, is: Option<&TokenBucketState>| match (wanted, is) {
        (None, None) => false,
        (Some(wanted), Some(is)) => !bucket(&wanted, mtu).is_shown_as(is),
        _ => true,
    };
    let mut found = Vec::new();
    if differs(wanted.to_pod, observed.to_pod.as_ref()) {
        found.push("to the pod");
    }
    if differs(wanted.from_pod, observed.from_pod.as_ref()) {
        found.push("from the pod");
    }
    found
}

#[cfg(test)]
mod tests;
