//! Whether a node's record makes sense by itself.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;

use super::check::{MAX_ENCAPSULATIONS, MAX_TEXT, check_encapsulation, check_name, unusable};
use super::{METRIC6, Peer, PeerSubnet, Problem, ProblemKind, vtep_mac};
use crate::cluster::{ClusterConfig, ClusterRange, NodeRecord, Vtep};
use crate::store::Membership;

/// What a record is by itself.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This node's own.
    Me,
    /// It has no subnet or no address yet: there is nothing to reach.
    Silent,
    /// It is left out.
    Wrong(Problem),
    /// A peer, unless another has better rights.
    Good(Arc<Peer>),
}

/// What records are judged by.
pub(super) struct Judge<'a> {
    me: &'a str,
    membership: &'a Membership,
    config: &'a ClusterConfig,
    /// This node's own VTEP MAC addresses, by VNI: those that most records are compared with.
    own: Vec<(u32, MacAddr)>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(me: &'a str, membership: &'a Membership, config: &'a ClusterConfig) -> Self {
        let own = std::iter::once(&config.encapsulation)
            .chain(&config.also_receive)
            .map(|encapsulation| (encapsulation.vni, vtep_mac(&config.name, me, encapsulation.vni)))
            .collect();
        Self { me, membership, config, own }
    }

    pub(super) fn judge(&self, key: &str, record: &Arc<NodeRecord>) -> Verdict {
        if key == self.me {
            return Verdict::Me;
        }
        match self.peer(key, record) {
            Ok(Some(peer)) => Verdict::Good(Arc::new(peer)),
            Ok(None) => Verdict::Silent,
            Err((kind, why)) => Verdict::Wrong(Problem::of(kind, key, format!("{why}: it is left out"))),
        }
    }

    fn peer(&self, key: &str, record: &Arc<NodeRecord>) -> Result<Option<Peer>, (ProblemKind, String)> {
        let senseless = |why| (ProblemKind::Record, why);
        check_texts(key, record).map_err(senseless)?;
        check_addresses(self.config, &record.addresses).map_err(senseless)?;
        let subnets = subnets(self.config, &record.subnets).map_err(senseless)?;
        if let Some(mine) = subnets.iter().find(|subnet| self.membership.subnets.contains(&subnet.network)) {
            return Err((ProblemKind::Own, format!("it claims this node's own subnet {}", mine.network)));
        }
        let vteps = vteps(self.config, key, record).map_err(senseless)?;
        for vtep in &vteps {
            let own = self.own_mac(vtep.encapsulation.vni);
            if vtep.mac == own || vtep.mac6 == Some(own) {
                return Err((ProblemKind::Own, format!("it claims this node's own VTEP MAC address {own}")));
            }
        }
        let is_there = !subnets.is_empty() && !record.addresses.is_empty();
        Ok(is_there.then(|| Peer { record: Arc::clone(record), vteps, subnets }))
    }

    fn own_mac(&self, vni: u32) -> MacAddr {
        let known = self.own.iter().find(|(known, _)| *known == vni);
        known.map_or_else(|| vtep_mac(&self.config.name, self.me, vni), |(_, mac)| *mac)
    }
}

fn check_texts(key: &str, record: &NodeRecord) -> Result<(), String> {
    if record.name != key {
        return Err("it calls itself by another name".to_owned());
    }
    check_name(key).map_err(|why| format!("its name {why}"))?;
    if record.instance.len() > MAX_TEXT {
        return Err(format!("its instance has {} bytes, more than {MAX_TEXT}", record.instance.len()));
    }
    Ok(())
}

fn check_addresses(config: &ClusterConfig, addresses: &[IpAddr]) -> Result<(), String> {
    for (i, address) in addresses.iter().enumerate() {
        if addresses.iter().take(i).any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err("it has more than one address of a family".to_owned());
        }
        if let Some(why) = unusable(*address) {
            return Err(format!("no node can be at its address {address}, because {why}"));
        }
        // The way to it would lead into the tunnel itself.
        if let Some(range) = config.ranges.iter().find(|range| range.range.contains(*address)) {
            return Err(format!("its address {address} lies within the pods' range {}", range.range));
        }
    }
    Ok(())
}

fn subnets(config: &ClusterConfig, subnets: &[IpNetwork]) -> Result<Vec<PeerSubnet>, String> {
    let mut good: Vec<PeerSubnet> = Vec::with_capacity(subnets.len().min(2));
    for subnet in subnets {
        if good.iter().any(|other| other.network.is_ipv4() == subnet.is_ipv4()) {
            return Err("it has more than one subnet of a family".to_owned());
        }
        if subnet.network() != subnet.ip() {
            return Err(format!("its subnet {subnet} has host bits set"));
        }
        let inside = |range: &&ClusterRange| {
            range.subnet_prefix == subnet.prefix() && range.range.contains(subnet.network())
        };
        let Some(range) = config.ranges.iter().find(inside) else {
            return Err(match config.ranges.iter().find(|range| range.range.contains(subnet.network())) {
                Some(ClusterRange { range, subnet_prefix }) => {
                    format!(
                        "its subnet {subnet} is none of the cluster's ranges: each node has a /{subnet_prefix} of {range}"
                    )
                }
                None => format!("its subnet {subnet} is none of the cluster's ranges"),
            });
        };
        good.push(PeerSubnet { network: *subnet, metric: metric(range, *subnet) });
    }
    Ok(good)
}

fn metric(range: &ClusterRange, subnet: IpNetwork) -> u32 {
    match (range.range, subnet) {
        (IpNetwork::V4(range), IpNetwork::V4(subnet)) => {
            let distance = u32::from(subnet.network()) - u32::from(range.network());
            // A prefix is at most 30, so that neither the shift nor the sum overflows.
            (distance >> (32 - u32::from(subnet.prefix()))) + 1
        }
        _ => METRIC6,
    }
}

fn vteps(config: &ClusterConfig, name: &str, record: &NodeRecord) -> Result<Vec<Vtep>, String> {
    if let Some(sends) = record.sends {
        check_encapsulation(sends).map_err(|why| format!("what it sends makes no sense: {why}"))?;
    }
    if record.receives.is_empty() {
        let all = std::iter::once(&config.encapsulation).chain(&config.also_receive);
        return Ok(all
            .map(|encapsulation| Vtep {
                encapsulation: *encapsulation,
                mac: vtep_mac(&config.name, name, encapsulation.vni),
                mac6: None,
            })
            .collect());
    }
    if record.receives.len() > MAX_ENCAPSULATIONS {
        return Err(format!("it receives {} encapsulations", record.receives.len()));
    }
    for vtep in &record.receives {
        check_encapsulation(vtep.encapsulation).map_err(|why| format!("what it receives: {why}"))?;
        if let Some(mac) = std::iter::once(vtep.mac).chain(vtep.mac6).find(|mac| !mac.is_unicast()) {
            return Err(format!("its VTEP MAC address {mac} is none that a node can have"));
        }
    }
    Ok(record.receives.clone())
}
