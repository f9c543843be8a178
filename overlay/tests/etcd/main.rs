//! The etcd store against Debian's etcd, in network namespaces that the tests make for themselves. Needs root, etcd
//! (packages etcd-server and etcd-client), and nft.

#[cfg(test)]
mod faults;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod many;
#[cfg(test)]
mod members;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod secured;
#[cfg(test)]
mod settings;
