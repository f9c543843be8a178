//! One pod's attachment: what it is, the steps that make it, and what they do to the kernel.

mod attachment;

pub use attachment::{Attachment, NetworkId, Owner, OwnerId, PodAddress, PodName};
