//! Which pod or address somebody means.

use std::net::IpAddr;

use serde::Serialize;

use super::pod_name;
use crate::status::PodStatus;

/// One end of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Its address.
    pub address: IpAddr,
    /// The pod of this node that has it.
    pub pod: Option<PodStatus>,
}

/// Why it is not known who is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such pod here.
    #[error(
        "no pod of this node is called {0:?}: name it as `podwirectl pods` does, or by its address if it is on another node"
    )]
    Unknown(String),
    /// Several pods.
    #[error(
        "{what:?} may be any of {names}: name it by namespace/name, by more of its container's id, or by its address"
    )]
    Ambiguous {
        /// What was asked for.
        what: String,
        /// Some of those that fit.
        names: String,
    },
    /// It has no address.
    #[error("pod {0} has no address")]
    WithoutAddress(String),
    /// One has IPv4 only and the other IPv6 only.
    #[error("the two have no address family in common")]
    NoFamily,
}

/// The shortest beginning of a container's id that is taken for one.
const SHORTEST_ID: usize = 4;

/// The pairs of addresses between the two that somebody named, one for each family that both have. An end is an address,
/// `namespace/name`, a name, or the beginning of a container's id.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(from: &str, to: &str, pods: &[PodStatus]) -> Result<Vec<(End, End)>, ResolveError> {
    let (from, to) = (ends(from, pods)?, ends(to, pods)?);
    let pairs: Vec<(End, End)> = from
        .iter()
        .filter_map(|from| {
            let to = to.iter().find(|to| to.address.is_ipv4() == from.address.is_ipv4())?;
            Some((from.clone(), to.clone()))
        })
        .collect();
    if pairs.is_empty() { Err(ResolveError::NoFamily) } else { Ok(pairs) }
}

fn ends(text: &str, pods: &[PodStatus]) -> Result<Vec<End>, ResolveError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let pod = pods.iter().find(|pod| pod.addresses.iter().any(|own| own.ip() == address));
        return Ok(vec![End { address, pod: pod.cloned() }]);
    }
    let found = find(text, pods)?;
    // A pod with several interfaces: the first one that has a family is meant.
    let mut ends: Vec<End> = Vec::new();
    for pod in &found {
        for address in &pod.addresses {
            let address = address.ip();
            if ends.iter().all(|end| end.address.is_ipv4() != address.is_ipv4()) {
                ends.push(End { address, pod: Some((*pod).clone()) });
            }
        }
    }
    if ends.is_empty() {
        let name = found.first().map(|pod| pod_name(pod)).unwrap_or_default();
        return Err(ResolveError::WithoutAddress(name));
    }
    Ok(ends)
}

/// The interfaces of the one pod of this node that somebody named: by an address, `namespace/name`, a name, or the beginning
/// of its container's id. Never none.
///
/// # Errors
/// See [`ResolveError`].
pub fn find<'p>(text: &str, pods: &'p [PodStatus]) -> Result<Vec<&'p PodStatus>, ResolveError> {
    let address = text.parse::<IpAddr>().ok();
    let is_named = |pod: &&PodStatus| {
        if let Some(address) = address {
            return pod.addresses.iter().any(|own| own.ip() == address);
        }
        let name = pod.name.as_deref();
        match text.split_once('/') {
            Some((namespace, wanted)) => pod.namespace.as_deref() == Some(namespace) && name == Some(wanted),
            None => name == Some(text) || pod.container == text,
        }
    };
    let mut found: Vec<&PodStatus> = pods.iter().filter(is_named).collect();
    if found.is_empty() && text.len() >= SHORTEST_ID {
        found = pods.iter().filter(|pod| pod.container.starts_with(text)).collect();
    }
    let owner = |pod: &PodStatus| (pod.container.clone(), pod.namespace.clone(), pod.name.clone());
    let Some(first) = found.first() else { return Err(ResolveError::Unknown(text.to_owned())) };
    if found.iter().any(|pod| owner(pod) != owner(first)) {
        const FEW: usize = 4;
        let names: Vec<String> = found.iter().take(FEW).map(|pod| pod_name(pod)).collect();
        return Err(ResolveError::Ambiguous { what: text.to_owned(), names: names.join(", ") });
    }
    Ok(found)
}
