//! One pod's attachment: what it is, the steps that make it, and what they do to the kernel.

pub mod alias;
mod attachment;

pub use alias::LinkAlias;
pub use attachment::{Attachment, NetworkId, Owner, OwnerId, PodAddress, PodName};
