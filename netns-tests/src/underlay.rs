//! What nodes of a cluster are connected by: links that can be cut, slowed down, made lossy, and given other addresses.
//!
//! An [`Underlay`] is a network namespace with a bridge, or with two and a router between them: then two nodes of
//! different subnets are not on-link to each other. Nothing of it is in the machine's own network.
//!
//! ```text
//!   node 0            underlay                node 1
//!  ┌───────┐  ┌─────────────────────────┐  ┌───────┐
//!  │  eth0─┼──┼─p0─ sw0 10.10.0.0/16 ─p1┼──┼─eth0  │    flat
//!  │  eth0─┼──┼─p0─ sw0 ─router─ sw1 ─p1┼──┼─eth0  │    routed: 10.20.0.0/24, 10.20.1.0/24
//!  └───────┘  └─────────────────────────┘  └───────┘
//! ```

mod relay;

pub use relay::BrokenOffload;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use crate::error::{LabError, Result};
use crate::netns::Netns;
use crate::node::Node;
use crate::process::{Finished, LIMIT, finish, program};
use crate::traffic::Place;

/// A node's end of its link to the underlay.
pub const UNDERLAY_LINK: &str = "eth0";

/// Which addresses the nodes themselves have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both.
    Dual,
}

impl Families {
    /// Whether IPv4 is one of them.
    pub fn ipv4(self) -> bool {
        self != Self::Ipv6
    }

    /// Whether IPv6 is one of them.
    pub fn ipv6(self) -> bool {
        self != Self::Ipv4
    }
}

/// Whether the nodes share a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One link for all.
    Flat,
    /// Nodes with an even number share a link, those with an odd one another, with a router in between.
    Routed,
}

/// A network for nodes; gone with its last clone.
#[derive(Clone)]
pub struct Underlay(Arc<Inner>);

struct Inner {
    netns: Netns,
    families: Families,
    layout: Layout,
}

impl Underlay {
    /// An underlay without nodes.
    ///
    /// # Errors
    /// If a namespace or a link cannot be made.
    pub fn new(families: Families, layout: Layout) -> Result<Self> {
        let underlay = Self(Arc::new(Inner { netns: Netns::create()?, families, layout }));
        let mut script = String::from(
            "ip link set lo up\n\
             for what in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$what; done\n\
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad\n",
        );
        let subnets = if layout == Layout::Flat { 1 } else { 2 };
        for subnet in 0..subnets {
            script += &format!(
                "ip link add sw{subnet} type bridge mcast_snooping 0\n\
                 echo 0 > /proc/sys/net/ipv6/conf/sw{subnet}/accept_dad\n"
            );
            for address in underlay.gateways(subnet) {
                let prefix = underlay.prefix(address);
                script += &format!("ip address add {address}/{prefix} dev sw{subnet}\n");
            }
            script += &format!("ip link set sw{subnet} up\n");
        }
        underlay.sh(&script)?;
        Ok(underlay)
    }

    /// Links a node to it. `number` gives it its addresses and must be its alone: 0 to 249.
    ///
    /// # Errors
    /// If a link cannot be made, or the number is another node's.
    pub fn attach(&self, node: &Node, number: u8) -> Result<Uplink> {
        let uplink = Uplink {
            underlay: self.clone(),
            node: node.clone(),
            port: format!("p{number}"),
            number,
            subnet: self.subnet_of(number),
        };
        uplink.attach_again()?;
        Ok(uplink)
    }

    /// The addresses that the node of that number has, IPv4 first.
    pub fn addresses(&self, number: u8) -> Vec<IpAddr> {
        self.in_subnet(self.subnet_of(number), u16::from(number) + 1)
    }

    /// The addresses of the router, or of a host on the one link: where the nodes' default routes lead.
    pub fn gateways(&self, subnet: u8) -> Vec<IpAddr> {
        self.in_subnet(subnet, 254)
    }

    /// The addresses of that host number in a subnet, for whoever needs one more.
    pub fn in_subnet(&self, subnet: u8, host: u16) -> Vec<IpAddr> {
        let [high, low] = host.to_be_bytes();
        let (four, six) = match self.0.layout {
            Layout::Flat => (Ipv4Addr::new(10, 10, high, low), 0xfd10),
            Layout::Routed => (Ipv4Addr::new(10, 20, subnet, low), 0xfd20),
        };
        let six = Ipv6Addr::new(six, 0, 0, u16::from(subnet), 0, 0, 0, host);
        let families = self.0.families;
        families
            .ipv4()
            .then_some(IpAddr::from(four))
            .into_iter()
            .chain(families.ipv6().then_some(IpAddr::from(six)))
            .collect()
    }

    /// The prefix length of the subnet that an address is in.
    pub fn prefix(&self, address: IpAddr) -> u8 {
        match (self.0.layout, address) {
            (Layout::Flat, IpAddr::V4(_)) => 16,
            (Layout::Routed, IpAddr::V4(_)) => 24,
            (_, IpAddr::V6(_)) => 64,
        }
    }

    /// Runs a shell script in the underlay's network, with the machine's own files.
    ///
    /// # Errors
    /// With what it wrote, if it fails.
    pub fn sh(&self, script: &str) -> Result<Finished> {
        sh_in(&self.0.netns, script)
    }

    fn subnet_of(&self, number: u8) -> u8 {
        if self.0.layout == Layout::Flat { 0 } else { number % 2 }
    }
}

impl Place for Underlay {
    fn network(&self) -> &Netns {
        &self.0.netns
    }

    fn label(&self) -> &str {
        "underlay"
    }
}

/// A node's link to the underlay.
pub struct Uplink {
    underlay: Underlay,
    node: Node,
    port: String,
    number: u8,
    subnet: u8,
}

impl Uplink {
    /// Makes the link, with the node's first addresses: also after it was deleted.
    ///
    /// # Errors
    /// If it is there.
    pub fn attach_again(&self) -> Result<()> {
        let Self { underlay, node, port, number, subnet } = self;
        // By descriptor: a node's namespace has no name.
        let netns = format!("/proc/{}/fd/{}", std::process::id(), node.netns().as_fd().as_raw_fd());
        underlay.sh(&format!(
            "ip link add {port} type veth peer name {UNDERLAY_LINK} netns {netns}\n\
             ip link set {port} master sw{subnet}\n\
             ip link set {port} up\n"
        ))?;
        // As on a machine that keeps its addresses when its link goes down or another address goes, with nothing
        // tentative.
        self.in_node(&format!(
            "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries\n\
             for what in all/keep_addr_on_down default/keep_addr_on_down {UNDERLAY_LINK}/keep_addr_on_down; do\n\
               echo 1 > /proc/sys/net/ipv6/conf/$what; done\n\
             echo 0 > /proc/sys/net/ipv6/conf/{UNDERLAY_LINK}/accept_dad\n\
             ip link set {UNDERLAY_LINK} up\n"
        ))?;
        for address in underlay.addresses(*number) {
            self.add_address(address)?;
        }
        self.add_default_routes()
    }

    /// Connects two nodes, which share a subnet, by one veth instead of the underlay: for measuring what nothing but the
    /// nodes does. Each keeps its addresses; there is no gateway.
    ///
    /// # Errors
    /// If a link cannot be made.
    pub fn wire_to(&self, other: &Self) -> Result<()> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.node.netns().as_fd().as_raw_fd());
        other.in_node(&format!("ip link del {UNDERLAY_LINK}"))?;
        self.in_node(&format!(
            "ip link del {UNDERLAY_LINK}; ip link add {UNDERLAY_LINK} type veth peer name {UNDERLAY_LINK} netns {there}"
        ))?;
        for uplink in [self, other] {
            uplink.in_node(&format!("ip link set {UNDERLAY_LINK} up"))?;
            for address in uplink.underlay.addresses(uplink.number) {
                uplink.add_address(address)?;
            }
        }
        Ok(())
    }

    /// Cuts the node off from everybody. Its own end stays up: nothing tells the node.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn cut(&self) -> Result<()> {
        // A port that forwards nothing, and is not down: the carrier stays.
        self.underlay.sh(&format!("bridge link set dev {} state 0", self.port)).map(drop)
    }

    /// Undoes [`Uplink::cut`].
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn heal(&self) -> Result<()> {
        self.underlay.sh(&format!("bridge link set dev {} state 3", self.port)).map(drop)
    }

    /// Pulls the cable: the node's end loses its carrier.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn unplug(&self) -> Result<()> {
        self.underlay.sh(&format!("ip link set {} down", self.port)).map(drop)
    }

    /// Undoes [`Uplink::unplug`].
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn plug(&self) -> Result<()> {
        self.underlay.sh(&format!("ip link set {} up", self.port)).map(drop)
    }

    /// Loses that share of the packets to the node, in percent; 0 undoes it.
    ///
    /// # Errors
    /// If `nft` fails.
    pub fn lose(&self, percent: u8) -> Result<()> {
        let port = &self.port;
        // Not netem: kernels need not have it.
        let mut script = format!("nft delete table bridge loss-{port} 2>/dev/null || true\n");
        if percent > 0 {
            script += &format!(
                "nft add table bridge loss-{port}\n\
                 nft 'add chain bridge loss-{port} out {{ type filter hook postrouting priority 0; }}'\n\
                 nft add rule bridge loss-{port} out oifname {port} numgen random mod 100 '<' {percent} drop"
            );
        }
        self.underlay.sh(&script).map(drop)
    }

    /// From now on the link computes no checksum that a sender's kernel leaves to it, in packets from the node and to it,
    /// as long as the value lives.
    ///
    /// # Errors
    /// If it cannot be put between.
    pub fn break_checksum_offload(&self) -> Result<BrokenOffload> {
        let Self { underlay, port, subnet, .. } = self;
        underlay.sh(&format!(
            "ip link set {port} nomaster
             ip link add {port}-in type veth peer name {port}-out
             ip link set {port}-in up
             ip link set {port}-out master sw{subnet}
             ip link set {port}-out up
             for link in {port} {port}-in; do ip link set $link promisc on
               echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6; done"
        ))?;
        BrokenOffload::between(&underlay.0.netns, [port, &format!("{port}-in")])
    }

    /// Sets the largest packet of the link, on both ends.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.underlay.sh(&format!("ip link set {} mtu {mtu}", self.port))?;
        self.in_node(&format!("ip link set {UNDERLAY_LINK} mtu {mtu}")).map(drop)
    }

    /// Gives the node one more address on the link, with its subnet's prefix length.
    ///
    /// # Errors
    /// If it has it already.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        let prefix = self.underlay.prefix(address);
        self.in_node(&format!("ip address add {address}/{prefix} dev {UNDERLAY_LINK}{nodad}")).map(drop)
    }

    /// Takes an address from it. Routes through the link may go with it: see [`Uplink::add_default_routes`].
    ///
    /// # Errors
    /// If it does not have it.
    pub fn remove_address(&self, address: IpAddr) -> Result<()> {
        let prefix = self.underlay.prefix(address);
        self.in_node(&format!("ip address del {address}/{prefix} dev {UNDERLAY_LINK}")).map(drop)
    }

    /// Makes the node's default routes lead to the underlay's gateway.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_default_routes(&self) -> Result<()> {
        for gateway in self.underlay.gateways(self.subnet) {
            let family = if gateway.is_ipv4() { "-4" } else { "-6" };
            self.in_node(&format!("ip {family} route replace default via {gateway}"))?;
        }
        Ok(())
    }

    fn in_node(&self, script: &str) -> Result<Finished> {
        sh_in(self.node.netns(), script)
    }
}

fn sh_in(netns: &Netns, script: &str) -> Result<Finished> {
    let mut command = program("sh");
    command.args(["-ec", script]);
    let began = Instant::now();
    let child = netns.run(|| command.spawn())?.map_err(LabError::because("start sh"))?;
    finish(child, b"", began, LIMIT)?.success(script)
}
