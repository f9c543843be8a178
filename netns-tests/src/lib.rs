//! What the tests, the benchmarks and the demonstration stand on: nodes, pods and runtimes of their own.
//!
//! A [`Node`] is a private set of namespaces (network, mount, process ids) in which the production paths are
//! the test's paths: /opt/cni/bin, /etc/cni/net.d, /var/lib/podwire, /run/podwire, and /var/lib/containerd
//! for a real containerd. Nothing in it can reach the machine's own network, files or processes, and all of
//! it is gone when the `Node` is dropped or the test process dies, in whatever way it dies.
//!
//! A [`Pod`] is a network namespace under /run/netns of a node, for CNI calls without a runtime;
//! [`PluginCall`] is one such call. [`containerd`], [`podman`] and [`cri`] are the real thing.

#[cfg(not(target_os = "linux"))]
compile_error!("podwire runs on Linux only");

pub mod apiserver;
pub mod cases;
pub mod chain;
pub mod cluster;
pub mod containerd;
pub mod cri;
mod error;
pub mod etcd;
pub mod faults;
pub mod flannel;
pub mod image;
pub mod kubernetes;
mod lab;
mod netns;
pub mod network;
pub mod newer;
mod node;
mod plugin;
mod pod;
pub mod podman;
pub mod podwired;
mod process;
pub mod traffic;
pub mod underlay;

pub use error::{LabError, Result};
pub use lab::Lab;
pub use netns::Netns;
pub use node::{Node, NodeOptions, dist_dir, fault_dist_dir};
pub use plugin::{Answer, PluginCall, uses_reference};
pub use pod::Pod;
pub use process::{Finished, LIMIT, finish, program, wait_for};
