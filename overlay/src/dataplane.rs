//! The node's kernel, made equal to what is wished for.

pub mod filter;
