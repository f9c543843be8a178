//! One pod's attachment: what it is, the steps that make it, and what they do to the kernel.

pub mod alias;
mod apply;
mod attachment;
pub mod drift;
pub mod plan;
pub mod removal;
pub mod rules;
pub mod shaping;
pub mod step;
mod traffic;
mod tuning;

pub use alias::LinkAlias;
pub use apply::{AttachError, Attached, Places, attach, observe_attachment, observe_node};
pub use attachment::{Attachment, NetworkId, Owner, OwnerId, PodAddress, PodName, Role};
pub use traffic::{
    IngressPolicy, Masquerade, PortAccess, PortMapping, Protocol, RateLimit, Shaping, Snat, SourceCheck,
    Traffic,
};
pub use tuning::Tuning;
