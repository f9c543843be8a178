//! What one pod gets on one network, as plain values.
//!
//! An attachment is known by its [`Owner`]: the three values that every CNI call carries, also the DEL whose
//! netns and previous result are gone. All names on the node are derived from it, so that nothing else is
//! needed to find and remove what an ADD made.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::MacAddr;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{PortMapping, Traffic};

/// Who holds an attachment and its addresses: CNI's network name, CNI_CONTAINERID and CNI_IFNAME.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The network's name in its configuration.
    pub network: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME, the interface's name in the pod.
    pub ifname: String,
    /// In which place of the network's chain of plugins.
    #[serde(default, skip_serializing_if = "Role::is_main")]
    pub role: Role,
}

/// Two plugins of one chain may both be podwire's, and each then has an attachment for the same interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It makes the interface or gives its addresses.
    #[default]
    Main,
    /// It adds to an interface that an earlier plugin of the chain made.
    Chained,
}

impl Role {
    fn is_main(&self) -> bool {
        *self == Self::Main
    }
}

impl Owner {
    /// The owner of the interface itself.
    pub fn new(network: impl Into<String>, container: impl Into<String>, ifname: impl Into<String>) -> Self {
        let (network, container, ifname) = (network.into(), container.into(), ifname.into());
        Self { network, container, ifname, role: Role::Main }
    }

    /// The owner of the same interface in that role.
    #[must_use]
    pub fn with_role(&self, role: Role) -> Self {
        Self { role, ..self.clone() }
    }

    /// The key under which the store knows this owner.
    pub fn id(&self) -> OwnerId {
        let mut hash = Sha256::new();
        for part in [&self.network, &self.container, &self.ifname] {
            // The length first: ("ab", "c") and ("a", "bc") are two owners.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        if self.role == Role::Chained {
            hash.update(b"chained");
        }
        OwnerId(first_16(hash))
    }

    /// The name of the host's end of this owner's veth: `pw` and 13 hexadecimal digits of the id, 15 bytes,
    /// the most that the kernel takes (IFNAMSIZ − 1).
    pub fn link_name(&self) -> String {
        self.id().link_name()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {} on network {}", self.ifname, self.container, self.network)
    }
}

/// 128 bits of SHA-256 over an [`Owner`], written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OwnerId([u8; 16]);

/// 128 bits of SHA-256 over a network's name. Two networks may use one address range, so addresses are
/// unique within a network, and the name itself may be too long for a link's alias.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkId([u8; 16]);

impl OwnerId {
    /// See [`Owner::link_name`].
    pub fn link_name(self) -> String {
        self.named("pw")
    }

    /// The name of a link of this owner's: these two letters and 13 digits of the id, 15 bytes.
    pub(crate) fn named(self, kind: &str) -> String {
        let digits = self.to_string();
        format!("{kind}{}", digits.get(..13).unwrap_or(&digits))
    }
}

impl NetworkId {
    /// The id of the network of that name.
    pub fn of(network: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(network.as_bytes());
        Self(first_16(hash))
    }
}

fn first_16(hash: Sha256) -> [u8; 16] {
    let digest = hash.finalize();
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    id
}

macro_rules! hex_id {
    ($id:ident) => {
        impl $id {
            /// The id as stored: 16 bytes.
            pub fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The id of its 16 bytes; `None` for another length.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $id {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let wrong = || format!("{text:?} is not 32 hexadecimal digits");
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(wrong());
                }
                let mut id = [0; 16];
                for (i, byte) in id.iter_mut().enumerate() {
                    let digits = text.get(2 * i..2 * i + 2).ok_or_else(wrong)?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
                }
                Ok(Self(id))
            }
        }
    };
}
hex_id!(OwnerId);
hex_id!(NetworkId);

/// One address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address with its subnet's prefix length.
    pub address: IpNetwork,
    /// The address's gateway, if it has one.
    pub gateway: Option<IpAddr>,
}

/// Whom the pod is for, as a Kubernetes runtime says in CNI_ARGS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID, empty if the runtime does not say.
    pub uid: String,
}

/// What the store keeps of one attachment: all that is needed to judge it, to repair it and to remove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose it is.
    pub owner: Owner,
    /// One address for each range set, in their order; none for an L2 attachment.
    pub addresses: Vec<PodAddress>,
    /// The pod's end's MAC address, where the configuration asks for one.
    pub mac: Option<MacAddr>,
    /// The name of the host's end of the veth; `None` where another plugin makes the interface
    /// (`podwire-ipam`).
    pub link: Option<String>,
    /// The bridge that the veth is a port of.
    pub bridge: Option<String>,
    /// CNI_NETNS at ADD.
    pub netns: String,
    /// What told that netns from others at ADD; `None` when unknown. See `podwire_kernel::NetnsIdentity`.
    pub netns_identity: Option<podwire_kernel::NetnsIdentity>,
    /// The pod, where the runtime named it.
    pub pod: Option<PodName>,
    /// The program that asked for the attachment (the calling process's name), so that one runtime's GC
    /// does not remove another runtime's pods.
    pub runtime: Option<String>,
    /// Addresses of the pod that are not the store's: another IPAM plugin's, or those of the interface that an
    /// earlier plugin of the chain made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<PodAddress>,
    /// What the node does to its traffic; `None` where nobody knows (a store of an earlier version, or rebuilt).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

impl fmt::Display for PodName {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An [`Attachment`] for people: `pod default/web (eth0 of container 3f9a on network podwire)`, without the pod where the
/// runtime did not name one.
#[derive(Debug, Clone, Copy)]
pub struct Title<'a>(&'a Attachment);

impl fmt::Display for Title<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.pod {
            Some(pod) => write!(f, "pod {pod} ({})", self.0.owner),
            None => self.0.owner.fmt(f),
        }
    }
}

impl Attachment {
    /// Whose it is, for people.
    pub fn title(&self) -> Title<'_> {
        Title(self)
    }

    /// Whether the node's packet filter matters to it: it has rules of its own there, or addresses whose packets other
    /// programs' rules may drop.
    pub fn is_filtered(&self) -> bool {
        let is_routed = self.all_addresses().next().is_some();
        self.traffic.as_ref().is_some_and(|traffic| traffic.has_rules() || is_routed)
    }

    /// The ports of the node that are to lead to the pod.
    pub fn ports(&self) -> &[PortMapping] {
        self.traffic.as_ref().map_or(&[], |traffic| &traffic.ports)
    }

    /// All addresses of the pod, whoever gave them.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpNetwork> {
        self.addresses.iter().chain(&self.given).map(|address| address.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(network: &str, container: &str, ifname: &str) -> Owner {
        Owner::new(network, container, ifname)
    }

    #[test]
    fn owners_that_join_to_one_text_differ() {
        assert_ne!(owner("ab", "c", "eth0").id(), owner("a", "bc", "eth0").id());
    }

    #[test]
    fn roles_are_owners_of_their_own_and_old_ids_stay() {
        let main = owner("net", "c", "eth0");
        assert_eq!(main.id().to_string(), "8ce071641a92e782ae03b4f1093f7f9f");
        assert_ne!(main.id(), main.with_role(Role::Chained).id());
        // As stores of earlier versions have it.
        let text = r#"{"network":"net","container":"c","ifname":"eth0"}"#;
        assert_eq!(serde_json::from_str::<Owner>(text).unwrap(), main);
        assert_eq!(serde_json::to_string(&main).unwrap(), text);
    }

    #[test]
    fn link_names_fit_the_kernel() {
        let name = owner("net", "0123456789abcdef", "eth0").link_name();
        assert_eq!(name.len(), 15);
        assert!(name.starts_with("pw"));
    }

    #[test]
    fn ids_survive_text() {
        let id = owner("net", "c", "eth0").id();
        assert_eq!(OwnerId::try_from(id.to_string()), Ok(id));
        assert!(OwnerId::try_from("00".to_owned()).is_err());
    }
}
