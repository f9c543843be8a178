//! Podwire's nftables against the kernel, in network namespaces that the tests make for themselves. Needs root
//! (CAP_SYS_ADMIN and CAP_NET_ADMIN) and, to look with other eyes, the programs `nft` and `iptables-nft`; without them
//! the tests fail and say so.
//!
//! A namespace made here has no name: it is gone when its test's threads and files are, also after a failure.

#[cfg(test)]
mod elements;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod mending;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod traffic;
