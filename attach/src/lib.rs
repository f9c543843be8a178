//! One pod's attachment: what it is, the steps that make it, and what they do to the kernel.

pub mod alias;
mod apply;
mod attachment;
pub mod drift;
pub mod plan;
pub mod removal;
pub mod step;

pub use alias::LinkAlias;
pub use apply::{AttachError, Attached, Places, attach, observe_attachment, observe_node};
pub use attachment::{Attachment, NetworkId, Owner, OwnerId, PodAddress, PodName};
