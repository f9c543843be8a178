//! `runtimeConfig.portMappings`: ports of the node that lead to the pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_attach::{PortMapping, Protocol};

use super::wrong;
use crate::protocol::CniError;
use crate::protocol::json::Field;

pub(super) fn read(field: &Field<'_>) -> Result<Vec<PortMapping>, CniError> {
    let ports: Vec<PortMapping> =
        field.list()?.iter().map(|port| read_port(&port.as_object()?)).collect::<Result<_, _>>()?;
    for (index, port) in ports.iter().enumerate() {
        let earlier = ports.iter().take(index).position(|earlier| earlier.is_ambiguous_with(port));
        if let Some(earlier) = earlier {
            let path = field.path();
            return Err(wrong(format!(
                "invalid {path}[{index}]: host port {port} is the same as that of {path}[{earlier}]"
            )));
        }
    }
    Ok(ports)
}

fn read_port(field: &Field<'_>) -> Result<PortMapping, CniError> {
    let port = |key| {
        let field = field.at(key);
        let number = field.number(1..=u16::MAX.into())?.and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| field.invalid("a port from 1 to 65535"))
    };
    Ok(PortMapping {
        protocol: read_protocol(&field.at("protocol"))?,
        host_ip: read_host_ip(&field.at("hostIP"))?,
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
    })
}

/// Runtimes write it small, Kubernetes and people in capitals.
fn read_protocol(field: &Field<'_>) -> Result<Protocol, CniError> {
    let parse = |text: &str| {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| text.eq_ignore_ascii_case(&protocol.to_string()))
    };
    Ok(field.parsed("tcp, udp or sctp", parse)?.unwrap_or(Protocol::Tcp))
}

/// No prefix length and no zone: what follows a `%` would be lost.
fn read_host_ip(field: &Field<'_>) -> Result<Option<IpAddr>, CniError> {
    let address =
        field.parsed("an address of this node, 0.0.0.0 or ::", |text| text.parse::<IpAddr>().ok())?;
    Ok(address.map(|address| address.to_canonical()))
}

/// The mappings that a pod with these addresses can have, each on addresses of its families alone.
pub(super) fn of_families(
    ports: &[PortMapping],
    addresses: impl IntoIterator<Item = IpNetwork>,
) -> Vec<PortMapping> {
    let (mut v4, mut v6) = (false, false);
    for address in addresses {
        if address.is_ipv4() { v4 = true } else { v6 = true }
    }
    let one = |port: &PortMapping| {
        let host_ip = match (port.host_ip, v4, v6) {
            (_, false, false) | (Some(IpAddr::V4(_)), false, _) | (Some(IpAddr::V6(_)), _, false) => {
                return None;
            }
            (Some(ip), ..) => Some(ip),
            (None, true, true) => None,
            // So that another pod may have the port on the other family.
            (None, true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (None, false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
        };
        Some(PortMapping { host_ip, ..*port })
    };
    ports.iter().filter_map(one).collect()
}
