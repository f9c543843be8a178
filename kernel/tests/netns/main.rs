//! The kernel crate against the kernel, in network namespaces that the tests make for themselves. Needs root
//! (CAP_SYS_ADMIN and CAP_NET_ADMIN); without it the tests fail and say so.
//!
//! A namespace made here has no name: it is gone when its test's thread and files are, also after a failure.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod conntrack;
#[cfg(test)]
mod detached;
#[cfg(test)]
mod events;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod legacy;
#[cfg(test)]
mod links;
#[cfg(test)]
mod namespaces;
#[cfg(test)]
mod nftables;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod qdiscs;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod second_opinion;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod sysctls;
#[cfg(test)]
mod vxlan;
