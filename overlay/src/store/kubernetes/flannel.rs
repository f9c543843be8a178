//! What flannel writes down of a node, and what flannel's agents must read of this one to be its peers. PURE.
//!
//! Facts: pkg/subnet/kube and pkg/backend/vxlan of flannel v0.28. An agent of flannel reads of other Nodes `backend-type`,
//! `backend-data` with `public-ip` for IPv4 pods and `backend-v6-data` with `public-ipv6` for IPv6 pods, and passes over
//! Nodes without `kube-subnet-manager`. The port is not among it: all nodes of a cluster have the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_kernel::MacAddr;
use serde::{Deserialize, Serialize};

use super::object::{Annotations, Node};
use crate::cluster::{Encapsulation, NodeRecord, Vtep};

/// How flannel's nodes reach each other: podwire knows `vxlan`.
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// VNI and MAC address of the device that IPv4 pods' packets go through.
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The same for IPv6 pods.
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// The node's own IPv4 address.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The node's own IPv6 address.
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
/// That it is flannel's at all: `true`.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

const VXLAN: &str = "vxlan";

/// In flannel's order and spelling.
#[derive(Serialize, Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: MacAddr,
}

/// By which addresses an administrator told flannel that others reach the node.
///
/// # Errors
/// One is no address of its family.
pub fn overwritten(annotations: &Annotations) -> Result<Vec<IpAddr>, String> {
    let given = [
        ("public-ip-overwrite", &annotations.public_ip_overwrite, IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
        ("public-ipv6-overwrite", &annotations.public_ipv6_overwrite, IpAddr::is_ipv6),
    ];
    let mut addresses = Vec::new();
    for (key, text, is_right) in given {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            addresses.push(address(key, text, is_right)?);
        }
    }
    Ok(addresses)
}

/// What flannel says of a Node, without what stands elsewhere in it; `None`: nothing that podwire could be a peer of.
///
/// # Errors
/// What it says cannot be read, or is nothing that flannel does.
pub(super) fn read(node: &Node, port: u16) -> Result<Option<NodeRecord>, String> {
    let says = &node.metadata.annotations;
    if says.kube_subnet_manager.as_deref() != Some("true") || says.backend_type.as_deref() != Some(VXLAN) {
        return Ok(None);
    }
    let v4 = backend_data("backend-data", says.backend_data.as_deref())?;
    let v6 = backend_data("backend-v6-data", says.backend_v6_data.as_deref())?;
    let Some(first) = v4.as_ref().or(v6.as_ref()) else { return Ok(None) };
    if let (Some(v4), Some(v6)) = (&v4, &v6)
        && v4.vni != v6.vni
    {
        return Err(format!("flannel's devices there have two VNIs, {} and {}", v4.vni, v6.vni));
    }
    let mut addresses = Vec::new();
    if v4.is_some() {
        let text = says.public_ip.as_deref().unwrap_or_default();
        addresses.push(address("public-ip", text, IpAddr::is_ipv4)?);
    }
    if v6.is_some() {
        let text = says.public_ipv6.as_deref().unwrap_or_default();
        addresses.push(address("public-ipv6", text, IpAddr::is_ipv6)?);
    }
    let encapsulation = Encapsulation { vni: first.vni, port };
    let mac6 = v6.as_ref().map(|v6| v6.mac).filter(|mac6| *mac6 != first.mac);
    Ok(Some(NodeRecord {
        addresses,
        receives: vec![Vtep { encapsulation, mac: first.mac, mac6 }],
        sends: Some(encapsulation),
        same_family: true,
        ..NodeRecord::default()
    }))
}

/// What flannel is to find at this Node: `None` where it is to find nothing. `addresses` are those that others reach it by.
pub(super) fn written(
    vtep: &Vtep,
    addresses: &[IpAddr],
    has_pods: impl Fn(fn(&IpAddr) -> bool) -> bool,
) -> BTreeMap<&'static str, Option<String>> {
    let of = |is_right: fn(&IpAddr) -> bool| {
        addresses.iter().find(|address| is_right(address)).filter(|_| has_pods(is_right))
    };
    let (v4, v6) = (of(IpAddr::is_ipv4), of(IpAddr::is_ipv6));
    let data = |mac| {
        // A number and a text always have JSON.
        serde_json::to_string(&BackendData { vni: vtep.encapsulation.vni, mac }).unwrap_or_default()
    };
    let is_peer = v4.is_some() || v6.is_some();
    BTreeMap::from([
        (BACKEND_TYPE, is_peer.then(|| VXLAN.to_owned())),
        (BACKEND_DATA, v4.map(|_| data(vtep.mac))),
        (BACKEND_V6_DATA, v6.map(|_| data(vtep.mac6.unwrap_or(vtep.mac)))),
        (PUBLIC_IP, v4.map(ToString::to_string)),
        (PUBLIC_IPV6, v6.map(ToString::to_string)),
        (KUBE_SUBNET_MANAGER, is_peer.then(|| "true".to_owned())),
    ])
}

/// Nothing of it, if what stands there was written for one of these: by podwire, not by flannel, which may still run there.
pub(super) fn withdrawn(annotations: &Annotations, own: &[Vtep]) -> BTreeMap<&'static str, Option<String>> {
    let data = [annotations.backend_data.as_deref(), annotations.backend_v6_data.as_deref()];
    let macs: Vec<MacAddr> = data
        .into_iter()
        .filter_map(|text| backend_data("", text).ok().flatten())
        .map(|data| data.mac)
        .collect();
    let is_own = |mac: &MacAddr| own.iter().any(|vtep| vtep.mac == *mac || vtep.mac6 == Some(*mac));
    if macs.is_empty() || !macs.iter().all(is_own) {
        return BTreeMap::new();
    }
    let keys = [BACKEND_TYPE, BACKEND_DATA, BACKEND_V6_DATA, PUBLIC_IP, PUBLIC_IPV6, KUBE_SUBNET_MANAGER];
    keys.into_iter().map(|key| (key, None)).collect()
}

/// What stands at one of flannel's keys.
pub(super) fn at<'a>(annotations: &'a Annotations, key: &str) -> Option<&'a str> {
    let text = match key {
        BACKEND_TYPE => &annotations.backend_type,
        BACKEND_DATA => &annotations.backend_data,
        BACKEND_V6_DATA => &annotations.backend_v6_data,
        PUBLIC_IP => &annotations.public_ip,
        PUBLIC_IPV6 => &annotations.public_ipv6,
        KUBE_SUBNET_MANAGER => &annotations.kube_subnet_manager,
        _ => &None,
    };
    text.as_deref()
}

/// flannel writes `null` where it has no device of that family.
fn backend_data(key: &str, text: Option<&str>) -> Result<Option<BackendData>, String> {
    match text {
        None | Some("" | "null") => Ok(None),
        Some(text) => match serde_json::from_str(text) {
            Ok(data) => Ok(Some(data)),
            Err(error) => Err(format!("flannel's {key} there cannot be read: {error}")),
        },
    }
}

fn address(key: &str, text: &str, is_right: fn(&IpAddr) -> bool) -> Result<IpAddr, String> {
    match text.parse().ok().filter(is_right) {
        Some(address) => Ok(address),
        None => Err(format!("flannel's {key} there is no address: {:?}", super::record::cut(text, 100))),
    }
}
