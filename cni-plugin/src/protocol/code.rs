//! Error codes: the specification's, and ours from 100 on, one for each kind of failure.

/// The configuration's version is not supported, or the verb is newer than it.
pub const INCOMPATIBLE_VERSION: u32 = 1;
/// A key of the configuration is understood but not supported; the message names key and value.
pub const UNSUPPORTED_FIELD: u32 = 2;
/// The container is not known.
pub const UNKNOWN_CONTAINER: u32 = 3;
/// A variable of the environment is missing or invalid.
pub const INVALID_ENVIRONMENT: u32 = 4;
/// Reading or writing failed.
pub const IO_FAILURE: u32 = 5;
/// The input is not JSON, or its version is no version.
pub const DECODING_FAILURE: u32 = 6;
/// The configuration is wrong; the message names key and value.
pub const INVALID_NETWORK_CONFIG: u32 = 7;
/// CNI_NETNS is no network namespace, or the host's own.
pub const INVALID_NETNS: u32 = 8;
/// Nothing is wrong that time does not mend: the runtime should call again.
pub const TRY_AGAIN_LATER: u32 = 11;
/// STATUS: the plugin cannot serve ADD.
pub const NOT_AVAILABLE: u32 = 50;
/// STATUS: the plugin cannot serve ADD, and existing pods may be limited.
pub const NOT_AVAILABLE_LIMITED: u32 = 51;

/// The kernel refused a request; the message names it.
pub const KERNEL: u32 = 100;
/// CHECK found something that differs from what ADD made; the message names it.
pub const CHECK_FAILED: u32 = 101;
/// The IPAM plugin that the configuration names is not in CNI_PATH, or cannot be run.
pub const DELEGATE_MISSING: u32 = 102;
/// The IPAM plugin failed without saying why in the protocol's words.
pub const DELEGATE_FAILED: u32 = 103;
/// The bridge's name or an address on it is somebody else's.
pub const BRIDGE_CONFLICT: u32 = 104;
/// The pod has an interface of that name which is not ours.
pub const IFNAME_TAKEN: u32 = 105;
/// The node has a link of the name that this attachment's would have, and it is not ours.
pub const LINK_TAKEN: u32 = 106;
/// An address is not to be had: the range is full, or the requested one is taken or outside.
pub const ADDRESS_REFUSED: u32 = 107;
/// The address store cannot be opened, read or written.
pub const STORE: u32 = 108;
/// GC did what it could; the message names the rest.
pub const GC_INCOMPLETE: u32 = 109;
/// An ADD failed, and so did taking back what it had done; the message names what stays.
pub const NOT_UNDONE: u32 = 110;
/// A host port is taken by another pod, which the message names.
pub const PORT_TAKEN: u32 = 111;
/// A host port's `hostIP` is no address of this node.
pub const HOST_ADDRESS: u32 = 112;
/// The packet filter's rules could not be installed, read or removed.
pub const RULES: u32 = 113;
/// The pod's traffic could not be shaped.
pub const SHAPING: u32 = 114;
/// A setting of the pod's interface or a sysctl could not be applied, saved or put back.
pub const TUNING: u32 = 115;
/// A sysctl is not on the node's allow-list, or the list cannot be read.
pub const SYSCTL_FORBIDDEN: u32 = 116;
/// Behind another plugin: its result names no interface that podwire could add to.
pub const NOT_CHAINABLE: u32 = 117;
