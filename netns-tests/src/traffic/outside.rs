//! A host outside the node, on a link of its own.

use crate::error::Result;
use crate::netns::Netns;
use crate::node::Node;
use crate::pod::Pod;
use crate::process::{LIMIT, program};

use super::Place;

/// The node's end of the link to the host outside.
pub const UPLINK: &str = "uplink";

/// Addresses come in twos, for host ports on one of them and for conditions on the peer's; of two IPv6 addresses the
/// kernel prefers the later one. Nothing here does
/// duplicate address detection: an interface whose link-local address is tentative solicits no neighbour for packets that
/// it forwards. The node's default routes lead outside and outside's lead to the node, so that
/// whatever is not masqueraded is answered too, and seen for what it is.
const SET_UP: &str = "
ip link add uplink type veth peer name eth0 netns outside
echo 0 > /proc/sys/net/ipv6/conf/uplink/accept_dad
nsenter --net=/run/netns/outside sh -c 'echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad'
ip address add 198.51.100.1/24 dev uplink
ip address add 198.51.100.11/24 dev uplink
ip address add fd51::1/64 dev uplink nodad
ip link set uplink up
ip -n outside link set lo up
ip -n outside address add 198.51.100.2/24 dev eth0
ip -n outside address add 198.51.100.3/24 dev eth0
ip -n outside address add fd51::3/64 dev eth0 nodad
ip -n outside address add fd51::2/64 dev eth0 nodad
ip -n outside link set eth0 up
ip -n outside route add default via 198.51.100.1
ip -n outside -6 route add default via fd51::1
ip route add default via 198.51.100.2
ip -6 route add default via fd51::2
";

/// A host that shares a link with a node: [`Outside::NODE`] are the node's addresses on it, [`Outside::HOST`] its own.
/// Inside the node it is the namespace `outside`, as in `ip -n outside …`.
pub struct Outside(Pod);

impl Outside {
    /// The node's addresses on the link; the first in each family is the one that it sends from.
    pub const NODE: [&'static str; 3] = ["198.51.100.1", "198.51.100.11", "fd51::1"];
    /// The host's addresses; the first in each family is the one that it sends from.
    pub const HOST: [&'static str; 4] = ["198.51.100.2", "198.51.100.3", "fd51::2", "fd51::3"];

    /// Links a host to the node.
    ///
    /// # Errors
    /// If `ip` fails; if the node has one already.
    pub fn link_to(node: &Node) -> Result<Self> {
        let pod = node.pod("outside")?;
        node.run_with(program("sh").args(["-ec", SET_UP]), b"", LIMIT)?.success("link a host to the node")?;
        Ok(Self(pod))
    }

    /// Its network namespace as a pod's, for what takes one.
    pub fn as_pod(&self) -> &Pod {
        &self.0
    }
}

impl Place for Outside {
    fn network(&self) -> &Netns {
        self.0.netns()
    }

    fn label(&self) -> &str {
        "outside"
    }
}
