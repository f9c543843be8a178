//! Leases out of what the node itself shows: its links, what libcni remembers.
//!
//! The alias of a host veth names its owner and its addresses. So a link whose owner has no lease, whether the store
//! was lost or a part of it, gets its lease back, and a lost store is nothing worse than a slow first use.
//!
//! An alias has room for 255 bytes, and none for the pod's name. libcni's cache tells that, and the names that were cut;
//! failing that the addresses are kept as those of an unknown owner, for as long as the link is there and two GC passes
//! longer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_attach::{Attachment, LinkAlias, NetworkId, Owner, OwnerId, PodAddress, alias};
use podwire_kernel::link::Link;
use podwire_kernel::{Netlink, Netns};

use crate::cached_results::{CachedResult, Keeper};
use crate::{GC_PASSES, Hold, Pool};

/// What was found that has no lease.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Attachments with known owners.
    pub(crate) attachments: Vec<Attachment>,
    /// Addresses in use by nobody knows whom.
    pub(crate) unknown: Vec<(NetworkId, IpAddr)>,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.attachments.is_empty() && self.unknown.is_empty()
    }
}

/// A link of ours whose owner has no lease.
struct Orphan<'l> {
    link: &'l Link,
    alias: LinkAlias,
}

/// Links of ours without a lease. `cached` is asked only if there is one.
pub(crate) fn orphans(
    pool: &Pool,
    links: &[Link],
    netlink: &mut Netlink,
    cached: impl FnOnce() -> Vec<CachedResult>,
) -> Found {
    let orphans: Vec<Orphan<'_>> = links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("veth"))
        .filter_map(|link| Some(Orphan { link, alias: alias::parse(link.alias.as_deref()?)? }))
        // An alias on a link of another name was copied there.
        .filter(|Orphan { link, alias }| link.name == alias.owner_id.link_name())
        .filter(|orphan| pool.lease(orphan.alias.owner_id).is_none())
        .collect();
    if orphans.is_empty() {
        return Found::default();
    }
    let cached: BTreeMap<OwnerId, CachedResult> =
        cached().into_iter().map(|result| (result.owner.id(), result)).collect();
    let bridges: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    // A pod that may do so gives itself any address. What another's alias says counts for more.
    let said: BTreeMap<(NetworkId, IpAddr), OwnerId> = orphans
        .iter()
        .flat_map(|Orphan { alias, .. }| {
            alias.addresses.iter().map(|address| ((alias.network_id, address.ip()), alias.owner_id))
        })
        .collect();
    let mut found = Found::default();
    for Orphan { link, alias } in orphans {
        let remembered = cached.get(&alias.owner_id);
        let mut addresses = alias.addresses.clone();
        for address in pod_addresses(netlink, link) {
            let of = said.get(&(alias.network_id, address.ip()));
            if of.is_none_or(|owner| *owner == alias.owner_id)
                && !addresses.iter().any(|known| known.ip() == address.ip())
            {
                addresses.push(address);
            }
        }
        let owner =
            if alias.whole { Some(alias.owner) } else { remembered.map(|result| result.owner.clone()) };
        match owner {
            Some(owner) => {
                let mut attachment = attachment(owner, with_gateways(&addresses, remembered));
                attachment.link = Some(link.name.clone());
                attachment.bridge =
                    link.controller.and_then(|index| bridges.get(&index)).map(|name| (*name).to_owned());
                attachment.netns = remembered.and_then(|result| result.netns.clone()).unwrap_or_default();
                attachment.pod = remembered.and_then(|result| result.pod.clone());
                found.attachments.push(attachment);
            }
            None => {
                let network = alias.network_id;
                let kept = |address: &IpAddr| pool.hold(network, *address) == Some(Hold::Unknown(GC_PASSES));
                let addresses = addresses.iter().map(IpNetwork::ip).filter(|address| !kept(address));
                found.unknown.extend(addresses.map(|address| (network, address)));
            }
        }
    }
    found
}

/// Attachments that libcni remembers, in netns that are still there, of owners without a lease or a link.
pub(crate) fn remembered(pool: &Pool, links: &Found, cached: &[CachedResult]) -> Found {
    let mut found = Found::default();
    for result in cached {
        let id = result.owner.id();
        let is_known =
            pool.lease(id).is_some() || links.attachments.iter().any(|known| known.owner.id() == id);
        let Some(netns) = result.netns.as_deref().and_then(|path| Netns::open(path).ok()) else { continue };
        if is_known {
            continue;
        }
        match result.kept_by {
            Keeper::Other => {}
            // Its link is gone, so it should have no address; but then its netns should be gone too.
            Keeper::Podwire => {
                let network = NetworkId::of(&result.owner.network);
                found.unknown.extend(result.addresses.iter().map(|address| (network, address.address.ip())));
            }
            Keeper::PodwireIpam => {
                let mut attachment = attachment(result.owner.clone(), result.addresses.clone());
                attachment.netns = result.netns.clone().unwrap_or_default();
                attachment.netns_identity = netns.identity().ok();
                attachment.pod.clone_from(&result.pod);
                found.attachments.push(attachment);
            }
        }
    }
    found
}

/// The addresses of the link's other end. None if it cannot be seen: then the alias is all there is.
fn pod_addresses(netlink: &mut Netlink, link: &Link) -> Vec<IpNetwork> {
    /// RT_SCOPE_UNIVERSE of linux/rtnetlink.h: link-local addresses are nobody's lease.
    const GLOBAL: u8 = 0;
    let (Some(nsid), Some(index)) = (link.peer_nsid, link.peer_index) else { return Vec::new() };
    let addresses = netlink.peer_addresses(nsid, index).unwrap_or_default();
    addresses.into_iter().filter(|address| address.scope == GLOBAL).map(|address| address.address).collect()
}

fn with_gateways(addresses: &[IpNetwork], remembered: Option<&CachedResult>) -> Vec<PodAddress> {
    let remembered = remembered.map_or(&[][..], |result| result.addresses.as_slice());
    let gateway = |address: &IpNetwork| remembered.iter().find(|known| known.address == *address)?.gateway;
    addresses.iter().map(|address| PodAddress { address: *address, gateway: gateway(address) }).collect()
}

fn attachment(owner: Owner, addresses: Vec<PodAddress>) -> Attachment {
    Attachment {
        owner,
        addresses,
        mac: None,
        link: None,
        bridge: None,
        netns: String::new(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: None,
    }
}
