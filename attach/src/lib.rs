//! One pod's attachment: what it is, the steps that make it, and what they do to the kernel.

pub mod alias;
mod apply;
mod attachment;
pub mod conntrack;
pub mod drift;
pub mod plan;
pub mod removal;
pub mod rules;
pub mod shaping;
pub mod step;
mod traffic;
pub mod tuning;

pub use alias::LinkAlias;
pub use apply::{
    AttachError, Attached, Extended, Extension, Given, Places, attach, can_filter_vlans, extend,
    extension_drift, hold_bridge, node_id, observe_attachment, observe_given, observe_node,
    remove_unused_bridge, withdraw,
};
pub use attachment::{Attachment, NetworkId, Owner, OwnerId, PodAddress, PodName, Role, Title};
pub use traffic::{
    IngressPolicy, Masquerade, PortAccess, PortMapping, Protocol, RateLimit, Shaping, Snat, SourceCheck,
    Traffic,
};
pub use tuning::Tuning;
