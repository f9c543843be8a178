//! What is known of this node and of the others: from the agent, or without one from the node's disk.

use std::time::Duration;

use ipnetwork::IpNetwork;
use podwire_ipam::Dirs;
use podwire_overlay::cluster::{ClusterConfig, NodeRecord};
use podwire_overlay::explain;
use podwire_overlay::leases::pod_status;
use podwire_overlay::remembered;
use podwire_overlay::status::{PeerState, PeerStatus, PodStatus, Status};

use crate::agent::{Agent, Silence};
use crate::ipam;
use crate::output::{Failure, note};

/// What could be found out.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// What the agent says of itself; `None` if it does not answer.
    pub(crate) status: Option<Status>,
    /// The nodes of the cluster; `None` if there is none, or nothing is known of it.
    pub(crate) peers: Option<Vec<PeerStatus>>,
    /// The settings that all nodes share.
    pub(crate) config: Option<ClusterConfig>,
    /// Why the agent did not answer.
    pub(crate) silence: Option<String>,
}

impl Known {
    /// Asks the agent; where it does not answer, looks at what the node remembers.
    pub(crate) fn gather(dirs: &Dirs) -> Result<Self, Failure> {
        let agent = Agent::of(dirs);
        let status: Status = match agent.get("/v1/status") {
            Ok(status) => status,
            // Whoever may not ask may not look at the disk either.
            Err(Silence::Denied(text)) => return Err(Failure::new(text)),
            Err(silence) => return Ok(Self::remembered(dirs, Failure::from(silence).text)),
        };
        let peers: Option<Vec<PeerStatus>> = match agent.get("/v1/nodes") {
            Ok(peers) => Some(peers),
            Err(Silence::Unknown(_)) => None,
            Err(silence) => return Err(silence.into()),
        };
        let peers = peers.filter(|_| status.store.is_some());
        Ok(Self { config: status.config.clone(), status: Some(status), peers, silence: None })
    }

    fn remembered(dirs: &Dirs, silence: String) -> Self {
        let silence = Some(silence);
        let (own, recollection) = match remembered::look(&dirs.state) {
            Ok(Some(found)) => found,
            Ok(None) => return Self { silence, ..Self::default() },
            Err(why) => {
                note(&why);
                return Self { silence, ..Self::default() };
            }
        };
        let snapshot = recollection.remembered.snapshot;
        let own_subnets = recollection.remembered.membership.subnets;
        let mut peers: Vec<PeerStatus> =
            snapshot.nodes.values().map(|record| remembered_peer(record, record.name == own)).collect();
        if peers.iter().all(|peer| !peer.is_self) {
            let record = NodeRecord { name: own, subnets: own_subnets, ..NodeRecord::default() };
            peers.push(remembered_peer(&record, true));
        }
        Self { peers: Some(peers), config: Some(snapshot.config), silence, ..Self::default() }
    }

    /// For [`explain::explain`].
    pub(crate) fn nodes(&self) -> Option<Vec<explain::Node>> {
        let peers = self.peers.as_ref()?;
        Some(peers.iter().map(|peer| node(peer, self.config.as_ref())).collect())
    }

    /// The ranges of all pods.
    pub(crate) fn ranges(&self) -> Vec<IpNetwork> {
        let ranges = self.config.as_ref().map(|config| config.ranges.as_slice()).unwrap_or_default();
        ranges.iter().map(|range| range.range).collect()
    }
}

fn remembered_peer(record: &NodeRecord, is_self: bool) -> PeerStatus {
    PeerStatus {
        record: record.clone(),
        is_self,
        is_present: None,
        state: if is_self { PeerState::Own } else { PeerState::Tunnel },
        paths: Vec::new(),
        problems: Vec::new(),
        probes: Vec::new(),
    }
}

fn node(peer: &PeerStatus, config: Option<&ClusterConfig>) -> explain::Node {
    let record = &peer.record;
    explain::Node {
        name: record.name.clone(),
        is_self: peer.is_self,
        addresses: record.addresses.clone(),
        subnets: record.subnets.clone(),
        vteps: explain::vteps(record, config),
        is_absent: peer.is_present.map(|is_present| !is_present),
        left_out: (peer.state == PeerState::LeftOut).then(|| peer.problems.join("; ")),
        probes: peer.probes.clone(),
    }
}

/// This node's pods: as the agent says, or as the address store has them.
pub(crate) fn pods(dirs: &Dirs) -> Result<Vec<PodStatus>, Failure> {
    match Agent::of(dirs).get("/v1/pods") {
        Ok(pods) => Ok(pods),
        Err(Silence::Denied(text)) => Err(Failure::new(text)),
        Err(_) => Ok(ipam::leases(dirs, None)?.iter().map(pod_status).collect()),
    }
}

/// Seconds as others give them.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
