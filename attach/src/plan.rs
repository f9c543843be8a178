//! What must be done to give one pod its attachment, and how each step is undone. All choices are made here;
//! carrying a plan out makes none.
//!
//! A packet from pod to pod of one node leaves by the pod's interface, appears at the host's end of the veth,
//! which is a port of the bridge, and goes from there to the other pod's port. To everywhere else it goes to
//! the bridge's own address, its gateway, and is routed by the node.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use podwire_kernel::{Family, MacAddr};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Attachment, IngressPolicy, Owner, Traffic, Tuning, alias, conntrack};

/// The bridge that a network's pods share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The MAC address it gets when it is made. A bridge without one takes its lowest port's and changes it
    /// as ports come and go, which breaks the pods' neighbour entries.
    pub mac: MacAddr,
    /// Its MTU in bytes when it is made; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The gateways' addresses that it must have; none for a pure L2 network.
    pub gateways: Vec<IpNetwork>,
    /// Take away addresses of the same family (IPv6: overlapping ones) that are not wanted, where their
    /// presence would be an error.
    pub force_address: bool,
    /// Receive every frame (IFF_PROMISC).
    pub promiscuous: bool,
}

/// How the host's end of the veth behaves as a port of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Port {
    /// Frames may leave by the port they came in by: a pod reaches itself through its Service.
    pub hairpin: bool,
    /// Isolated ports do not reach each other.
    pub isolated: bool,
}

/// A route in the pod, all links being the pod's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Where it leads.
    pub destination: IpNetwork,
    /// The next hop; `None` means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The routing table; `None` is the main one (254).
    pub table: Option<u32>,
    /// The scope (rtnetlink(7): 0 universe, 253 link); `None` follows from the gateway.
    pub scope: Option<u8>,
    /// The metric; `None` is the kernel's default.
    pub priority: Option<u32>,
    /// The path MTU in bytes.
    pub mtu: Option<u32>,
    /// The TCP maximum segment size to advertise, in bytes.
    pub advmss: Option<u32>,
}

/// Everything that one ADD is to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The pod's attachment, with its addresses.
    pub attachment: Attachment,
    /// The bridge it joins.
    pub bridge: Bridge,
    /// Its port's behaviour.
    pub port: Port,
    /// The pod's interface's MAC address.
    pub mac: MacAddr,
    /// The veth's MTU in bytes, both ends; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The pod's routes, gateways filled in.
    pub routes: Vec<PodRoute>,
    /// Wait for duplicate address detection instead of switching it off.
    pub dad: bool,
    /// Leave the pod's interface down (L2 networks alone).
    pub pod_link_down: bool,
    /// Tell the neighbours whose the addresses are now. With 500 pods that takes some milliseconds, so only where they
    /// may remember another.
    pub announce: bool,
    /// Forward between the bridge and the rest of the node: the families of the gateways.
    pub forwarding: Forwarding,
    /// Settings of the pod's interface and netns beyond these.
    pub tuning: Tuning,
    /// The VLANs that the port is in; `None` where the bridge does not tell VLANs apart. For kernels that
    /// [can](crate::can_filter_vlans).
    pub vlan: Option<Vlan>,
}

impl Wanted {
    /// The port's behaviour, with what the pod's traffic asks of it: a pod that reaches itself by its host port does so
    /// through its own port, and one that other pods may not reach is separated from their ports.
    pub fn port(&self) -> Port {
        self.port.with_traffic(self.attachment.traffic.as_ref())
    }
}

impl Port {
    /// This behaviour, and what the pod's traffic asks of the port.
    #[must_use]
    pub fn with_traffic(self, traffic: Option<&Traffic>) -> Self {
        Self {
            hairpin: self.hairpin || traffic.is_some_and(|traffic| !traffic.ports.is_empty()),
            isolated: self.isolated
                || traffic.is_some_and(|traffic| traffic.ingress == IngressPolicy::Isolated),
        }
    }
}

/// The VLANs of a bridge's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// Which.
    pub membership: VlanMembership,
    /// The port also stays in the bridge's default VLAN, 1.
    pub preserve_default: bool,
}

/// How a port is in its VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VlanMembership {
    /// In this one, and the pod sees no tag.
    Access(u16),
    /// In all of these, and the pod sees the tags.
    Trunk(Vec<RangeInclusive<u16>>),
}

/// Address families in which a node forwards packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// net.ipv4.ip_forward.
    pub v4: bool,
    /// net.ipv6.conf.all.forwarding.
    pub v6: bool,
}

/// The part of the node that a plan depends on, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The link that has the bridge's name.
    pub bridge: Option<ObservedBridge>,
    /// Where the node forwards.
    pub forwarding: Forwarding,
}

/// A link that has the bridge's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBridge {
    /// Its index.
    pub index: u32,
    /// Its kind in the kernel's words; a bridge is `bridge`.
    pub kind: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is promiscuous.
    pub promiscuous: bool,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Its addresses.
    pub addresses: Vec<BridgeAddress>,
    /// Whether it tells VLANs apart; `None` if this kernel's bridges cannot.
    pub vlan_filtering: Option<bool>,
}

/// One address of an existing bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeAddress {
    /// The address and its prefix length.
    pub address: IpNetwork,
    /// Set by podwire (IFA_PROTO, kernels ≥ 5.18; older ones do not tell, so there every address is foreign).
    pub ours: bool,
}

/// One thing to do. Steps are done in their order and undone in the reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the bridge.
    CreateBridge(Bridge),
    /// Remove the bridge if it has no port.
    RemoveBridge(String),
    /// Take the bridge up (`true`) or down.
    SetBridgeUp(String, bool),
    /// Switch the bridge's promiscuous mode.
    SetBridgePromiscuous(String, bool),
    /// Make the bridge tell VLANs apart, or no longer.
    FilterVlans(String, bool),
    /// Give the bridge an address.
    AddBridgeAddress(String, IpNetwork),
    /// Take an address from the bridge.
    RemoveBridgeAddress(String, IpNetwork),
    /// Switch the node's forwarding in a family.
    SetForwarding(Family, bool),
    /// Make the veth, the host's end as the bridge's port, the pod's end in its netns under its final name.
    CreateVeth {
        /// The host end's name.
        name: String,
        /// The text that says whose it is.
        alias: String,
    },
    /// Remove that veth; both ends go.
    RemoveVeth(String),
    /// Put the port into its VLANs. Gone with the veth.
    JoinVlans(String),
    /// Give the pod's interface its addresses, take it up, set the routes. Gone with the veth.
    ConfigurePod,
    /// Switch settings of another plugin's port.
    SetPort {
        /// The port's name.
        name: String,
        /// Its hairpin mode; `None` leaves it.
        hairpin: Option<bool>,
        /// Its isolation; `None` leaves it.
        isolated: Option<bool>,
    },
    /// Set what is to be tuned in the pod.
    Tune,
    /// Set it back.
    Untune,
    /// Limit the pod's traffic.
    Shape,
    /// Remove the limits, and the link that belongs to them.
    Unshape,
    /// Put what the pod asks for into the node's packet filter.
    InstallRules,
    /// Take it out.
    RemoveRules,
    /// Forget connections to the pod's host ports that lead elsewhere.
    FlushConntrack,
}

impl Step {
    /// The step that takes this one back; `None` where another step's undo does.
    pub fn undo(&self) -> Option<Step> {
        Some(match self {
            Self::CreateBridge(bridge) => Self::RemoveBridge(bridge.name.clone()),
            Self::SetBridgeUp(bridge, up) => Self::SetBridgeUp(bridge.clone(), !up),
            Self::SetBridgePromiscuous(bridge, on) => Self::SetBridgePromiscuous(bridge.clone(), !on),
            Self::AddBridgeAddress(bridge, address) => Self::RemoveBridgeAddress(bridge.clone(), *address),
            Self::RemoveBridgeAddress(bridge, address) => Self::AddBridgeAddress(bridge.clone(), *address),
            Self::SetForwarding(family, on) => Self::SetForwarding(*family, !on),
            Self::FilterVlans(bridge, on) => Self::FilterVlans(bridge.clone(), !on),
            Self::CreateVeth { name, .. } => Self::RemoveVeth(name.clone()),
            Self::SetPort { name, hairpin, isolated } => Self::SetPort {
                name: name.clone(),
                hairpin: hairpin.map(|on| !on),
                isolated: isolated.map(|on| !on),
            },
            Self::Tune => Self::Untune,
            Self::Shape => Self::Unshape,
            Self::InstallRules => Self::RemoveRules,
            // What is removed is never made again: that is undone only by being planned anew.
            Self::ConfigurePod
            | Self::JoinVlans(_)
            | Self::FlushConntrack
            | Self::RemoveBridge(_)
            | Self::RemoveVeth(_)
            | Self::Untune
            | Self::Unshape
            | Self::RemoveRules => return None,
        })
    }

    /// Whether other attachments rely on what this step made: then it is undone only while nobody else is at
    /// work on the node's bridges.
    pub fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::CreateBridge(_)
                | Self::RemoveBridge(_)
                | Self::SetBridgeUp(..)
                | Self::SetBridgePromiscuous(..)
                | Self::FilterVlans(..)
                | Self::AddBridgeAddress(..)
                | Self::RemoveBridgeAddress(..)
                | Self::SetForwarding(..)
        )
    }
}

impl fmt::Display for Step {
    /// The step as the command that an administrator would type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::CreateBridge(bridge) => {
                write!(f, "ip link add {} address {} type bridge", bridge.name, bridge.mac)
            }
            Self::RemoveBridge(name) | Self::RemoveVeth(name) => write!(f, "ip link del {name}"),
            Self::SetBridgeUp(name, up) => {
                write!(f, "ip link set {name} {}", if *up { "up" } else { "down" })
            }
            Self::SetBridgePromiscuous(name, promiscuous) => {
                write!(f, "ip link set {name} promisc {}", on(promiscuous))
            }
            Self::AddBridgeAddress(name, address) => write!(f, "ip addr add {address} dev {name}"),
            Self::RemoveBridgeAddress(name, address) => write!(f, "ip addr del {address} dev {name}"),
            Self::SetForwarding(Family::V4, on) => write!(f, "sysctl net.ipv4.ip_forward={}", u8::from(*on)),
            Self::SetForwarding(Family::V6, on) => {
                write!(f, "sysctl net.ipv6.conf.all.forwarding={}", u8::from(*on))
            }
            Self::CreateVeth { name, .. } => write!(f, "ip link add {name} type veth peer in the pod"),
            Self::FilterVlans(name, on) => {
                write!(f, "ip link set {name} type bridge vlan_filtering {}", u8::from(*on))
            }
            Self::JoinVlans(name) => write!(f, "bridge vlan add dev {name}"),
            Self::ConfigurePod => f.write_str("ip addr and route add in the pod"),
            Self::SetPort { name, .. } => write!(f, "bridge link set dev {name} hairpin … isolated …"),
            Self::Tune => f.write_str("sysctl and ip link set in the pod"),
            Self::Untune => f.write_str("setting back sysctls and link settings in the pod"),
            Self::Shape => f.write_str("tc qdisc add for the pod"),
            Self::Unshape => f.write_str("tc qdisc del for the pod"),
            Self::InstallRules => f.write_str("nft add element inet podwire"),
            Self::RemoveRules => f.write_str("nft delete element inet podwire"),
            Self::FlushConntrack => f.write_str("conntrack -D for the pod's host ports"),
        }
    }
}

/// Why the node's bridge cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The name is taken.
    #[error(
        "{name:?} already exists but is not a bridge (it is {kind}); remove it or set another \"bridge\""
    )]
    NotABridge {
        /// The link's name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// Another network's or an administrator's address is in the way.
    #[error(
        "bridge {bridge:?} already has an IP address different from {wanted}: {present}; \
         remove it with `ip addr del {present} dev {bridge}` or set \"forceAddress\": true"
    )]
    Address {
        /// The bridge's name.
        bridge: String,
        /// The gateway's address.
        wanted: IpNetwork,
        /// The address found.
        present: IpNetwork,
    },
}

/// The steps that lead from what is observed to what is wanted. The pod's own interface is always made:
/// whether it exists already is decided before ([`crate::drift`]).
///
/// # Errors
/// A [`Conflict`] when the bridge's name or an address on it belongs to somebody else.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Result<Vec<Step>, Conflict> {
    let mut steps = bridge_steps(&wanted.bridge, observed.bridge.as_ref())?;
    for (family, wants, has) in [
        (Family::V4, wanted.forwarding.v4, observed.forwarding.v4),
        (Family::V6, wanted.forwarding.v6, observed.forwarding.v6),
    ] {
        if wants && !has {
            steps.push(Step::SetForwarding(family, true));
        }
    }
    let is_filtering = observed.bridge.as_ref().and_then(|bridge| bridge.vlan_filtering);
    if wanted.vlan.is_some() && is_filtering != Some(true) {
        steps.push(Step::FilterVlans(wanted.bridge.name.clone(), true));
    }
    let attachment = &wanted.attachment;
    let name = attachment.owner.link_name();
    steps.push(Step::CreateVeth { name: name.clone(), alias: link_alias(attachment) });
    steps.extend(wanted.vlan.is_some().then_some(Step::JoinVlans(name)));
    steps.push(Step::ConfigurePod);
    steps.extend(additions(attachment, &wanted.tuning));
    Ok(steps)
}

/// What is done beyond the interface itself; the same for an interface of another plugin. The limits come before the
/// rules that let traffic in, and only with the rules in place do new connections no longer go astray.
pub(crate) fn additions(attachment: &Attachment, tuning: &Tuning) -> Vec<Step> {
    let traffic = attachment.traffic.as_ref();
    let mut steps = Vec::new();
    steps.extend((!tuning.is_empty()).then_some(Step::Tune));
    steps.extend(traffic.is_some_and(Traffic::is_shaped).then_some(Step::Shape));
    steps.extend(attachment.is_filtered().then_some(Step::InstallRules));
    steps.extend(conntrack::connectionless(attachment).next().map(|_| Step::FlushConntrack));
    steps
}

/// The alias of the attachment's host link: it names the owner and all addresses.
pub fn link_alias(attachment: &Attachment) -> String {
    let addresses: Vec<IpNetwork> = attachment.addresses.iter().map(|a| a.address).collect();
    alias::format(&attachment.owner, &addresses)
}

/// The steps that make the bridge what it must be.
pub(crate) fn bridge_steps(
    wanted: &Bridge,
    observed: Option<&ObservedBridge>,
) -> Result<Vec<Step>, Conflict> {
    let name = || wanted.name.clone();
    let mut steps = Vec::new();
    let (up, promiscuous, present) = match observed {
        None => {
            steps.push(Step::CreateBridge(wanted.clone()));
            (false, false, [].as_slice())
        }
        Some(found) if found.kind.as_deref() != Some("bridge") => {
            let kind = found.kind.clone().unwrap_or_else(|| "a physical device".to_owned());
            return Err(Conflict::NotABridge { name: name(), kind });
        }
        Some(found) => (found.up, found.promiscuous, found.addresses.as_slice()),
    };
    // Addresses before up: an IPv6 address then needs no second round of router discovery, and a bridge that
    // is up has its gateways.
    for &gateway in &wanted.gateways {
        if present.iter().any(|found| found.address == gateway) {
            continue;
        }
        for found in present {
            let in_the_way = in_the_way(wanted, gateway, found);
            if !in_the_way && !is_with_other_prefix(gateway, found) {
                continue;
            }
            let removal = Step::RemoveBridgeAddress(name(), found.address);
            if in_the_way && !wanted.force_address {
                return Err(Conflict::Address { bridge: name(), wanted: gateway, present: found.address });
            }
            if !steps.contains(&removal) {
                steps.push(removal);
            }
        }
        let add = Step::AddBridgeAddress(name(), gateway);
        if !steps.contains(&add) {
            steps.push(add);
        }
    }
    if !up {
        steps.push(Step::SetBridgeUp(name(), true));
    }
    if wanted.promiscuous && !promiscuous {
        steps.push(Step::SetBridgePromiscuous(name(), true));
    }
    Ok(steps)
}

/// The reference plugin's rule: an IPv4 address that differs, or an IPv6 one whose subnet overlaps. The
/// network's other gateways are not in the way, nor are gateways that podwire set earlier: running pods of a
/// network whose range was moved still use them.
fn in_the_way(wanted: &Bridge, gateway: IpNetwork, found: &BridgeAddress) -> bool {
    if wanted.gateways.contains(&found.address) || (found.ours && !wanted.force_address) {
        return false;
    }
    match (gateway, found.address) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.contains(b.ip()) || b.contains(a.ip()),
        _ => false,
    }
}

/// A gateway that podwire set when its subnet had another size. A link may have an IPv4 address with two prefix lengths,
/// but an IPv6 address only once, so the old one goes first.
fn is_with_other_prefix(gateway: IpNetwork, found: &BridgeAddress) -> bool {
    found.ours && gateway.is_ipv6() && found.address.ip() == gateway.ip()
}

/// The MAC address of a bridge: the same at each call for one node and name, and another on another node, so
/// that bridges of two nodes may share a link. `node` tells nodes apart (/etc/machine-id).
pub fn bridge_mac(node: &str, bridge: &str) -> MacAddr {
    mac("bridge", &[node, bridge])
}

/// The MAC address of a pod's interface where the configuration names none. A pod that is attached again
/// keeps it, so that its neighbours' entries stay right.
pub fn pod_mac(owner: &Owner) -> MacAddr {
    mac("pod", &[&owner.id().to_string()])
}

/// The MAC address of the host's end of the veth.
pub fn host_mac(owner: &Owner) -> MacAddr {
    mac("host", &[&owner.id().to_string()])
}

fn mac(what: &str, parts: &[&str]) -> MacAddr {
    let mut hash = Sha256::new();
    hash.update(what.as_bytes());
    for part in parts {
        hash.update([0]);
        hash.update(part.as_bytes());
    }
    let mut octets = [0; 6];
    for (to, from) in octets.iter_mut().zip(hash.finalize().iter()) {
        *to = *from;
    }
    MacAddr::local(octets)
}

#[cfg(test)]
mod tests;
