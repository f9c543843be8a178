//! The pods of before, as podwire's store records them. PURE.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use podwire_attach::{Attachment, Masquerade, Owner, OwnerId, Traffic};
use podwire_ipam::cached_results::CachedResult;
use podwire_ipam::import::Imported;
use podwire_ipam::{Lease, NodeConfig, RangeSet};

use super::files::far_from;

/// What is the same for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// The network that they belong to from now on.
    pub network: &'a str,
    /// Their bridge.
    pub bridge: Option<&'a str>,
    /// This node's subnets.
    pub subnets: &'a [IpNetwork],
    /// Where pods of the cluster are.
    pub ranges: &'a [IpNetwork],
    /// Whether what they send to the outside goes out under the node's address.
    pub masquerade: bool,
}

/// Makes pods of podwire's network of what host-local has given on another one. Their DEL comes in the name of the network
/// whose configuration is in place then, which is podwire's; a runtime that remembers the old one (CRI-O) calls the old
/// plugins, and the agent ends the lease when the pod's netns has been gone for a minute.
///
/// Their masquerade is podwire's from now on, so flannel's rules can go while they run.
pub fn of_podwire(mut found: Imported, cached: &[CachedResult], home: &Home<'_>) -> Imported {
    found.join(cached);
    let masquerade =
        home.masquerade.then(|| Masquerade::outside(home.subnets.iter().chain(home.ranges).copied(), true));
    for attachment in &mut found.attachments {
        let result = cached.iter().find(|result| {
            result.owner.network == attachment.owner.network
                && result.owner.container == attachment.owner.container
        });
        attachment.pod = result.and_then(|result| result.pod.clone());
        attachment.bridge = home.bridge.map(str::to_owned);
        attachment.traffic = home.bridge.map(|bridge| Traffic {
            device: bridge.to_owned(),
            masquerade: masquerade.clone(),
            ..Traffic::default()
        });
        let Owner { container, ifname, .. } = &attachment.owner;
        attachment.owner = Owner::new(home.network, container, ifname);
    }
    for (set, last) in &mut found.cursors {
        let subnet = usize::try_from(*set).ok().and_then(|set| home.subnets.get(set));
        *last = subnet.map_or(*last, |subnet| far_from(*last, *subnet));
    }
    found
}

/// How many there are. host-local has a file for each address, so one with two addresses comes twice.
pub fn count(found: &[Attachment]) -> usize {
    owners(found).len()
}

/// How many of them have no lease yet.
pub fn missing(found: &[Attachment], leases: &[Lease]) -> usize {
    let leased: BTreeSet<OwnerId> = leases.iter().map(|lease| lease.attachment.owner.id()).collect();
    owners(found).difference(&leased).count()
}

fn owners(found: &[Attachment]) -> BTreeSet<OwnerId> {
    found.iter().map(|attachment| attachment.owner.id()).collect()
}

/// Range sets of subnets, for reading host-local's directory: they give prefix lengths and gateways.
pub fn range_sets(subnets: &[IpNetwork]) -> Vec<RangeSet> {
    let node = NodeConfig { subnets: subnets.to_vec(), ..NodeConfig::default() };
    node.range_sets().unwrap_or_default()
}
