//! What the API server sends: of each Node only what podwire reads. PURE.
//!
//! A Node of a real cluster has some 10 KiB, and thousands of them send a heartbeat every few seconds; what is not named here
//! is passed over while it is read, without a copy.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::jiff::Timestamp;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A Node, as far as it concerns podwire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Who it is.
    pub metadata: Metadata,
    /// What Kubernetes gave it.
    pub spec: Spec,
    /// What was found of it.
    pub status: Status,
}

/// See [`Node::metadata`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Which life of that name.
    pub uid: String,
    /// When that began, as RFC 3339 has it.
    pub creation_timestamp: String,
    /// Those that podwire reads.
    pub annotations: Annotations,
    /// How far the API server's history had come: taken out as it is read, because each heartbeat has another.
    resource_version: String,
}

/// The annotations that podwire reads; its own, and flannel's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is named by its key")]
pub struct Annotations {
    #[serde(rename = "podwire.dev/node")]
    pub node: Option<String>,
    #[serde(rename = "podwire.dev/addresses")]
    pub addresses: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-type")]
    pub backend_type: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-data")]
    pub backend_data: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/backend-v6-data")]
    pub backend_v6_data: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ip")]
    pub public_ip: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ipv6")]
    pub public_ipv6: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ip-overwrite")]
    pub public_ip_overwrite: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/public-ipv6-overwrite")]
    pub public_ipv6_overwrite: Option<String>,
    #[serde(rename = "flannel.alpha.coreos.com/kube-subnet-manager")]
    pub kube_subnet_manager: Option<String>,
}

/// See [`Node::spec`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The subnet of its pods, or the first of two. Empty: none yet.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// All subnets of its pods, in either order.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// See [`Node::status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What it is called, and where it is.
    pub addresses: Vec<Address>,
    /// Whether its network is said to be unavailable: the one condition of many that podwire reads, and writes.
    #[serde(rename = "conditions", deserialize_with = "network_unavailable")]
    pub network_unavailable: Option<Condition>,
}

/// An address of a Node, or a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Address {
    /// Of which kind: `InternalIP`, `ExternalIP`, `Hostname`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// The type of the condition that is read.
pub const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The condition [`NETWORK_UNAVAILABLE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for programs.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// Since when it has that status, as RFC 3339 has it.
    pub since: String,
}

impl Node {
    /// When it was created, in seconds since 1970. 0 if it does not say so in a way that can be read.
    pub fn created(&self) -> u64 {
        let created: Option<Timestamp> = self.metadata.creation_timestamp.parse().ok();
        created.and_then(|created| u64::try_from(created.as_second()).ok()).unwrap_or(0)
    }

    /// The subnets of its pods, as they stand there.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = &str> {
        let single =
            Some(&self.spec.pod_cidr).filter(|single| self.spec.pod_cidrs.is_empty() && !single.is_empty());
        self.spec.pod_cidrs.iter().chain(single).map(String::as_str)
    }
}

/// A line of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A Node is there, or is another than it was. With the mark that the next watch goes on from.
    Put(Box<Node>, String),
    /// It is gone. With the mark.
    Deleted(String, String),
    /// Nothing has happened up to that mark.
    Bookmark {
        /// The mark.
        version: String,
        /// Whether all that was there at the beginning has been told.
        is_initial_end: bool,
    },
    /// The watch is over.
    Refused(Refusal),
}

/// Why the API server does not do something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// As HTTP has it.
    pub code: u16,
    /// One word for programs.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// A page of the list of all Nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// They.
    pub nodes: Vec<Node>,
    /// The mark that a watch goes on from.
    pub version: String,
    /// What the next page is asked for with; `None`: this is the last.
    pub next: Option<String>,
}

/// Reads a line of a watch.
///
/// # Errors
/// It is none.
pub fn change(line: &[u8]) -> Result<Change, serde_json::Error> {
    Ok(match serde_json::from_slice(line)? {
        WireChange::Added(node) | WireChange::Modified(node) => {
            let (node, version) = taken(node)?;
            Change::Put(Box::new(node), version)
        }
        WireChange::Deleted(node) => {
            let (node, version) = taken(node)?;
            Change::Deleted(node.metadata.name, version)
        }
        WireChange::Bookmark(Bookmark { metadata }) => Change::Bookmark {
            version: metadata.resource_version,
            is_initial_end: metadata.annotations.initial_events_end.is_some(),
        },
        WireChange::Error(refusal) => Change::Refused(refusal),
    })
}

/// Reads a page of the list.
///
/// # Errors
/// It is none.
pub fn page(body: &[u8]) -> Result<Page, serde_json::Error> {
    let List { metadata, items } = serde_json::from_slice(body)?;
    let nodes = items.into_iter().map(|node| Ok(taken(node)?.0)).collect::<Result<_, serde_json::Error>>()?;
    let next = Some(metadata.next).filter(|next| !next.is_empty());
    Ok(Page { nodes, version: metadata.resource_version, next })
}

/// Reads a Node by itself.
///
/// # Errors
/// It is none.
pub fn node(body: &[u8]) -> Result<Node, serde_json::Error> {
    Ok(taken(serde_json::from_slice(body)?)?.0)
}

/// A Node and its version, one without the other.
fn taken(mut node: Node) -> Result<(Node, String), serde_json::Error> {
    if node.metadata.name.is_empty() {
        return Err(serde_json::Error::custom("a Node without a name"));
    }
    let version = std::mem::take(&mut node.metadata.resource_version);
    Ok((node, version))
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum WireChange {
    Added(Node),
    Modified(Node),
    Deleted(Node),
    Bookmark(Bookmark),
    Error(Refusal),
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
    #[serde(default)]
    annotations: BookmarkAnnotations,
}

#[derive(Default, Deserialize)]
struct BookmarkAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

/// Of a Node's conditions the one that counts; the others' texts are not copied.
fn network_unavailable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Condition>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Seen<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(default, borrow)]
        status: Cow<'a, str>,
        #[serde(default, borrow)]
        reason: Cow<'a, str>,
        #[serde(default, borrow)]
        message: Cow<'a, str>,
        #[serde(default, borrow)]
        last_transition_time: Cow<'a, str>,
    }
    struct Conditions;
    impl<'de> Visitor<'de> for Conditions {
        type Value = Option<Condition>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of conditions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            while let Some(seen) = all.next_element::<Seen<'de>>()? {
                if seen.kind == NETWORK_UNAVAILABLE {
                    while all.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Some(Condition {
                        status: seen.status.into_owned(),
                        reason: seen.reason.into_owned(),
                        message: seen.message.into_owned(),
                        since: seen.last_transition_time.into_owned(),
                    }));
                }
            }
            Ok(None)
        }
    }
    from.deserialize_seq(Conditions)
}

/// Cuts what arrives into lines. Of a line that has arrived as a whole there is no copy.
#[derive(Debug, Default)]
pub struct Lines {
    begun: Vec<u8>,
}

/// The largest line that is read, in bytes: an object of etcd's largest, some four times as long as JSON at worst.
pub const LARGEST_LINE: usize = 8 << 20;

/// What a line's rest keeps of its memory, in bytes.
const KEPT: usize = 64 << 10;

impl Lines {
    /// Takes what has arrived, and hands each line that is complete to `each`; `false`: a line is longer than
    /// [`LARGEST_LINE`].
    pub fn feed(&mut self, mut arrived: &[u8], mut each: impl FnMut(&[u8])) -> bool {
        while let Some(end) = arrived.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = arrived.split_at(end);
            if self.begun.is_empty() {
                each(line);
            } else {
                self.begun.extend_from_slice(line);
                each(&self.begun);
                self.begun.clear();
                self.begun.shrink_to(KEPT);
            }
            arrived = rest.get(1..).unwrap_or_default();
        }
        self.begun.extend_from_slice(arrived);
        self.begun.len() <= LARGEST_LINE
    }
}

#[cfg(test)]
mod tests;
