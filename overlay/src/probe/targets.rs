//! Whom to ask. PURE.

use std::net::IpAddr;
use std::sync::Arc;

use podwire_kernel::{Family, MacAddr};

use crate::desired::{Desired, Hop, UnderlayFacts};

/// All that can be asked, and who may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// This node's name, for its answers.
    pub node: Arc<str>,
    /// Which installation of that name this is, for its answers; may be empty.
    pub instance: Arc<str>,
    /// The inner addresses of this node's VTEP, from which it asks: one for each family at most.
    pub own: Vec<IpAddr>,
    /// The peers, by name.
    pub peers: Vec<Peer>,
}

/// A node that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: Arc<str>,
    /// Which installation of that name it is; empty where nobody knows.
    pub instance: Arc<str>,
    /// Where it can be asked: one for each family of its pods.
    pub ends: Vec<End>,
}

/// Where a peer can be asked in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The inner address of its VTEP: the first of its subnet.
    pub address: IpAddr,
    /// The largest packet that pods are told they may send there, in bytes with its IP header.
    pub mtu: u32,
    /// The tunnel that leads there; `None` where none does.
    pub tunnel: Option<Arc<TunnelEnd>>,
}

/// A tunnel to a peer, as far as frames for it are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelEnd {
    /// The name of this node's VXLAN device.
    pub device: String,
    /// That device's Ethernet address.
    pub source: MacAddr,
    /// The Ethernet address of the peer's VTEP.
    pub destination: MacAddr,
}

impl Targets {
    /// What follows from what the kernel should have. Peers to which no packet leads are left out: that they cannot be
    /// reached is known without asking.
    pub fn new(desired: &Desired, underlay: &UnderlayFacts, node: &str, instance: &str) -> Self {
        let peers = desired.paths.iter().filter_map(|path| {
            let tunnel = path.tunnel.and_then(|tunnel| {
                let device = desired.devices.iter().find(|device| device.id == tunnel.device)?;
                let end = TunnelEnd { device: device.id.name(), source: device.mac, destination: tunnel.mac };
                Some((Arc::new(end), tunnel.mtu.unwrap_or(device.mtu)))
            });
            let ends: Vec<_> = path
                .peer
                .subnets
                .iter()
                .filter_map(|subnet| {
                    let address = subnet.network.network();
                    match path.hop(Family::of(address)) {
                        Hop::Tunnel(_) => {
                            let (tunnel, mtu) = tunnel.clone()?;
                            Some(End { address, mtu, tunnel: Some(tunnel) })
                        }
                        Hop::Direct(direct) => {
                            let link = underlay.links.iter().find(|link| link.index == direct.link);
                            let mtu = direct.mtu.or(link.map(|link| link.mtu))?;
                            Some(End { address, mtu, tunnel: None })
                        }
                        Hop::None => None,
                    }
                })
                .collect();
            let (node, instance) = (path.peer.name().into(), path.peer.record.instance.as_str().into());
            (!ends.is_empty()).then_some(Peer { node, instance, ends })
        });
        Self {
            node: node.into(),
            instance: instance.into(),
            own: desired.addresses.iter().map(|address| address.ip()).collect(),
            peers: peers.collect(),
        }
    }
}
