//! From a network's configuration and a pod's addresses to what is to be plumbed, and to the result. PURE.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_attach::plan::{Bridge, Forwarding, PodRoute, Port, Wanted, bridge_mac, pod_mac};
use podwire_attach::{Attached, Attachment, PodAddress};
use podwire_ipam::NodeConfig;

use crate::config::Config;
use crate::protocol::{CniResult, Dns, Interface, IpConfig, Route};

/// Addresses, routes and name servers, wherever they come from: our pool, another IPAM plugin, or the
/// previous result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Addressing {
    /// The pod's addresses.
    pub addresses: Vec<PodAddress>,
    /// Its routes, as configured: a missing gateway is the family's own.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

/// What is known of the node beside the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct NodeFacts {
    /// What tells this node from others (/etc/machine-id).
    pub id: String,
    /// What the agent says of this node's part of the network.
    pub agent: Option<NodeConfig>,
}

/// Gateways and default routes filled in, as the reference plugin's calcGateways does.
pub(super) fn complete(config: &Config, addressing: Addressing) -> Addressing {
    let Addressing { mut addresses, mut routes, dns } = addressing;
    if config.bridge.is_gateway {
        for address in &mut addresses {
            address.gateway = address.gateway.or_else(|| first_address(address.address));
        }
    }
    if config.bridge.is_default_gateway {
        for address in &addresses {
            // A default route of the IPAM configuration stands; two would make one ECMP route of them.
            // The kernel takes table 0 for the main one.
            let in_main = |route: &Route| matches!(route.table, None | Some(0 | TABLE_MAIN));
            let present = routes.iter().any(|route| is_default(route.dst, address.address) && in_main(route));
            if let (Some(gateway), Some(default), false) =
                (address.gateway, any_address(address.address), present)
            {
                routes.push(Route { gw: Some(gateway), ..Route::to(default) });
            }
        }
    }
    let dns = match (&config.runtime_dns, &config.dns) {
        (Some(runtime), _) if !runtime.is_empty() => runtime.clone(),
        (_, Some(own)) => own.clone(),
        _ => dns,
    };
    Addressing { addresses, routes, dns }
}

fn first_address(subnet: IpNetwork) -> Option<IpAddr> {
    match subnet {
        IpNetwork::V4(subnet) => u32::from(subnet.network()).checked_add(1).map(|ip| IpAddr::V4(ip.into())),
        IpNetwork::V6(subnet) => u128::from(subnet.network()).checked_add(1).map(|ip| IpAddr::V6(ip.into())),
    }
}

/// 0.0.0.0/0 or ::/0.
fn any_address(family_of: IpNetwork) -> Option<IpNetwork> {
    let unspecified: IpAddr = match family_of {
        IpNetwork::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpNetwork::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(unspecified, 0).ok()
}

fn is_default(destination: IpNetwork, family_of: IpNetwork) -> bool {
    destination.prefix() == 0 && destination.is_ipv4() == family_of.is_ipv4()
}

/// Everything that this configuration wants for this pod. `addressing` is [`complete`].
pub(super) fn wanted(
    config: &Config,
    attachment: Attachment,
    addressing: &Addressing,
    node: &NodeFacts,
) -> Wanted {
    let settings = &config.bridge;
    let mut gateways: Vec<IpNetwork> = Vec::new();
    if settings.is_gateway {
        for address in &addressing.addresses {
            let gateway = address.gateway.and_then(|ip| IpNetwork::new(ip, address.address.prefix()).ok());
            gateways.extend(gateway.filter(|gateway| !gateways.contains(gateway)));
        }
    }
    let mtu = settings.mtu.or_else(|| node.agent.as_ref().and_then(|agent| agent.mtu));
    Wanted {
        mac: attachment.mac.unwrap_or_else(|| pod_mac(&attachment.owner)),
        routes: addressing.routes.iter().map(|route| pod_route(route, &addressing.addresses)).collect(),
        bridge: Bridge {
            name: settings.name.clone(),
            mac: bridge_mac(&node.id, &settings.name),
            mtu,
            force_address: settings.force_address,
            promiscuous: settings.promisc_mode,
            gateways: gateways.clone(),
        },
        port: Port { hairpin: settings.hairpin_mode, isolated: settings.port_isolation },
        mtu,
        dad: settings.enable_dad,
        pod_link_down: settings.disable_container_interface,
        // Only an ADD knows.
        announce: false,
        forwarding: Forwarding {
            v4: gateways.iter().any(IpNetwork::is_ipv4),
            v6: gateways.iter().any(IpNetwork::is_ipv6),
        },
        attachment: Attachment { addresses: addressing.addresses.clone(), given: Vec::new(), ..attachment },
        tuning: config.tuning.of_own_interface(),
        vlan: config.bridge.vlan.clone(),
    }
}

fn pod_route(route: &Route, addresses: &[PodAddress]) -> PodRoute {
    let own_gateway = || {
        let same_family = |a: &&PodAddress| a.address.is_ipv4() == route.dst.is_ipv4();
        addresses.iter().filter(same_family).find_map(|address| address.gateway)
    };
    PodRoute {
        destination: route.dst,
        // A route of link scope has no next hop by definition.
        gateway: if route.scope == Some(SCOPE_LINK) { route.gw } else { route.gw.or_else(own_gateway) },
        table: route.table,
        scope: route.scope,
        priority: route.priority,
        mtu: route.mtu,
        advmss: route.advmss,
    }
}

/// RT_TABLE_MAIN, rtnetlink(7).
const TABLE_MAIN: u32 = 254;
/// RT_SCOPE_LINK, rtnetlink(7).
const SCOPE_LINK: u8 = 253;

/// The result of an attachment: the bridge, the host's end and the pod's end, in the reference's order.
pub(super) fn result(wanted: &Wanted, attached: &Attached, addressing: &Addressing) -> CniResult {
    const POD: u32 = 2;
    let owner = &wanted.attachment.owner;
    let mac = |mac: Option<podwire_kernel::MacAddr>| mac.map(|mac| mac.to_string()).unwrap_or_default();
    let on_node = |name: String, address| Interface { name, mac: mac(address), ..Interface::default() };
    let pod = Interface {
        name: owner.ifname.clone(),
        mac: attached.pod_mac.to_string(),
        mtu: Some(attached.mtu),
        sandbox: wanted.attachment.netns.clone(),
        ..Interface::default()
    };
    CniResult {
        interfaces: vec![
            on_node(wanted.bridge.name.clone(), attached.bridge_mac),
            on_node(owner.link_name(), attached.host_mac),
            pod,
        ],
        ips: ips(&addressing.addresses, Some(POD)),
        routes: addressing.routes.clone(),
        dns: addressing.dns.clone(),
    }
}

/// Addresses as a result has them; an IPAM plugin's result names no interface.
pub(super) fn ips(addresses: &[PodAddress], interface: Option<u32>) -> Vec<IpConfig> {
    addresses.iter().map(|a| IpConfig { interface, address: a.address, gateway: a.gateway }).collect()
}

#[cfg(test)]
mod tests;
