//! How links pass packets on, as the kernel tells when somebody changes it (RTM_NEWNETCONF): a few of what stands below
//! `/proc/sys/net/ipv4/conf` and `/proc/sys/net/ipv6/conf`.

use crate::addr::Family;
use crate::reply::{attributes, i32_at};

/// What the settings are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Of all links (`all`).
    All,
    /// Of links that are yet to come (`default`).
    Default,
    /// Of the link of this index.
    Link(u32),
}

/// Settings that have changed, or that were there when a link came. What the message does not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netconf {
    /// Of which family.
    pub family: Family,
    /// Of what.
    pub scope: Scope,
    /// Whether packets for others are passed on (`forwarding`).
    pub forwarding: Option<bool>,
    /// How senders' addresses are checked (`rp_filter`, IPv4): 0 not at all, 1 strictly, 2 loosely.
    pub rp_filter: Option<i32>,
}

impl Netconf {
    /// Decodes `struct netconfmsg` and its attributes; `None` for other families, or if it does not say what of.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let family = match payload.first()? {
            2 => Family::V4,
            10 => Family::V6,
            _ => return None,
        };
        let (mut scope, mut forwarding, mut rp_filter) = (None, None, None);
        for (kind, value) in attributes(payload.get(4..)?) {
            match (kind, i32_at(value, 0)) {
                (1, Some(-1)) => scope = Some(Scope::All),
                (1, Some(-2)) => scope = Some(Scope::Default),
                (1, Some(index)) => scope = u32::try_from(index).ok().map(Scope::Link),
                (2, Some(on)) => forwarding = Some(on != 0),
                (3, Some(mode)) => rp_filter = Some(mode),
                _ => {}
            }
        }
        Some(Self { family, scope: scope?, forwarding, rp_filter })
    }
}
