//! What a network's configuration asks of the node's packet filter and queues for one pod, and whether the node can
//! give it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_attach::plan::pod_mac;
use podwire_attach::{Attachment, PortMapping, Protocol, SourceCheck, Traffic};
use podwire_kernel::Netlink;
use podwire_kernel::port::{Transport, is_in_use};

use super::wanted::NodeFacts;
use crate::config::Config;
use crate::failure;
use crate::protocol::{CniError, code};

/// The host's links that a pod's packets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// What packets to the pod are routed to: the bridge, or the host's end of a pair without one.
    pub device: String,
    /// The host's end of the pod's pair.
    pub host_end: String,
}

/// What is asked of the node for this pod, which will have addresses of `subnets`. PURE.
pub(super) fn traffic(
    config: &Config,
    attachment: &Attachment,
    path: Path,
    subnets: &[IpNetwork],
    node: &NodeFacts,
) -> Traffic {
    let asked = &config.traffic;
    let agent = node.agent.as_ref().map(|agent| agent.cluster_ranges.as_slice()).unwrap_or_default();
    let check = || SourceCheck {
        mac: attachment.mac.unwrap_or_else(|| pod_mac(&attachment.owner)),
        addresses: asked.address_check,
    };
    Traffic {
        device: path.device,
        host_end: path.host_end,
        // Without an address there is nothing to hide.
        masquerade: asked.masquerade_for(subnets, agent).filter(|_| !subnets.is_empty()),
        ports: asked.ports_for(subnets.iter().copied()),
        port_access: asked.port_access.clone(),
        ingress: asked.ingress,
        source_check: asked.mac_check.then(check),
        shaping: asked.shaping,
    }
}

/// Whether the node has the addresses that the ports are to be on.
///
/// # Errors
/// Code 112 names the first that it has not.
pub(super) fn check_host_addresses(host: &mut Netlink, ports: &[PortMapping]) -> Result<(), CniError> {
    let on_address = |port: &&PortMapping| port.host_ip.is_some_and(|ip| !ip.is_unspecified());
    if !ports.iter().any(|port| on_address(&port)) {
        return Ok(());
    }
    let addresses = host.addresses(None).map_err(failure::kernel)?;
    // The whole of 127.0.0.0/8 is local, not its address alone.
    let has = |ip: IpAddr| ip.is_loopback() || addresses.iter().any(|own| own.address.ip() == ip);
    let missing = ports.iter().filter(on_address).find(|port| port.host_ip.is_some_and(|ip| !has(ip)));
    let Some(port) = missing else { return Ok(()) };
    let text =
        format!("host port {port}: this node has no such address; use one of its own, or leave hostIP out");
    Err(CniError::new(code::HOST_ADDRESS, text))
}

/// The ports that programs of the node listen on themselves. Their clients will reach the pod instead, as with the
/// reference plugin; who set this up should know.
pub(super) fn hidden_listeners(ports: &[PortMapping]) -> Vec<String> {
    let hides = |port: &&PortMapping| {
        let transport = match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Sctp => return false,
        };
        let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = port.host_ip.map_or(any.to_vec(), |ip| vec![ip]);
        addresses.iter().any(|ip| is_in_use(transport, *ip, port.host_port))
    };
    let notice = |port: &PortMapping| {
        format!("a program of this node listens on host port {port}; connections will reach the pod instead")
    };
    ports.iter().filter(hides).map(notice).collect()
}
