//! What else is on nodes: the rules of kube-proxy, flannel's network made by hand, the reference plugin's.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use podwire_netns_tests::{Lab, LabError, Node, PluginCall, Pod, Result};
use serde_json::json;

use super::{Course, path};

/// What kube-proxy (iptables mode) has for so many services with three endpoints each, none of them on this node, as
/// iptables-restore reads it.
pub(super) fn kube_proxy(services: u32) -> String {
    let mut text = String::from(
        "*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
",
    );
    let endpoint = |service: u32, which: u32| Ipv4Addr::from(0x0ac8_0000 + service * 3 + which);
    for service in 0..services {
        let _ = writeln!(text, ":KUBE-SVC-{service:016} - [0:0]");
        for which in 0..3 {
            let _ = writeln!(text, ":KUBE-SEP-{service:014}{which:02} - [0:0]");
        }
    }
    text += "-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
";
    for service in 0..services {
        let address = Ipv4Addr::from(0x0a60_0000 + 10 + service);
        let _ = write!(
            text,
            "-A KUBE-SERVICES -d {address}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{service:016}
-A KUBE-SVC-{service:016} ! -s 10.192.0.0/10 -d {address}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
"
        );
        for (which, chance) in [(0, "0.33333333349"), (1, "0.50000000000"), (2, "")] {
            let chance = if chance.is_empty() {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {chance} ")
            };
            let endpoint = endpoint(service, which);
            let _ = write!(
                text,
                "-A KUBE-SVC-{service:016} {chance}-j KUBE-SEP-{service:014}{which:02}
-A KUBE-SEP-{service:014}{which:02} -s {endpoint}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-{service:014}{which:02} -p tcp -m tcp -j DNAT --to-destination {endpoint}:8080
"
            );
        }
    }
    text + "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
}

/// flannel's VXLAN backend with its rules, as it stands after both nodes have learned of each other, and the bridge
/// plugin's pods: device, route, neighbour, forwarding entry, chains.
pub(super) struct Flannel {
    nodes: [Node; 2],
    pods: [Pod; 2],
    _lab: Lab,
}

impl Flannel {
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::new("bench-flannel")?;
        let nodes = [lab.node("flannel0")?, lab.node("flannel1")?];
        let pods = [nodes[0].pod("near")?, nodes[1].pod("far")?];
        let there = path(nodes[1].netns()).display().to_string();
        // As this process names it: a node has process ids of its own.
        let mut link = Command::new("ip");
        link.args(["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &there]);
        let done = nodes[0].netns().run(|| link.status())?.map_err(LabError::because("start ip"))?;
        if !done.success() {
            return Err(LabError::new("cannot connect flannel's nodes"));
        }
        for (i, node) in nodes.iter().enumerate() {
            let (me, peer) = (i, 1 - i);
            let pod = pods[i].name();
            sh(
                node,
                &format!(
                    "ip link set lo up
                     ip address add 10.30.0.1{me}/24 dev eth0
                     ip link set eth0 up
                     echo 1 > /proc/sys/net/ipv4/ip_forward
                     ip link add flannel.1 address 5e:00:00:00:00:0{me} mtu 1450 type vxlan id 1 dstport 8472 \
                       local 10.30.0.1{me} nolearning noudpcsum dev eth0
                     ip address add 10.199.{me}.0/32 dev flannel.1
                     ip link set flannel.1 up
                     ip neighbour add 10.199.{peer}.0 lladdr 5e:00:00:00:00:0{peer} dev flannel.1 nud permanent
                     bridge fdb append 5e:00:00:00:00:0{peer} dev flannel.1 dst 10.30.0.1{peer} self permanent
                     ip route add 10.199.{peer}.0/24 via 10.199.{peer}.0 dev flannel.1 onlink
                     ip link add cni0 type bridge
                     ip address add 10.199.{me}.1/24 dev cni0
                     ip link set cni0 up mtu 1450
                     ip link add veth0 mtu 1450 type veth peer name eth0 netns {pod} mtu 1450
                     ip link set veth0 master cni0 up
                     bridge link set dev veth0 hairpin on
                     ip -n {pod} link set lo up
                     ip -n {pod} address add 10.199.{me}.2/24 dev eth0
                     ip -n {pod} link set eth0 up
                     ip -n {pod} route add default via 10.199.{me}.1"
                ),
            )?;
        }
        Ok(Self { nodes, pods, _lab: lab })
    }

    /// Loads kube-proxy's rules, then flannel's own as flanneld does, and runs a script.
    pub(super) fn load(&self, services: &str, script: &str) -> Result<()> {
        for (me, node) in self.nodes.iter().enumerate() {
            let own = format!("10.199.{me}.0/24");
            let all = "10.199.0.0/16";
            let rules = format!(
                "*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s {all} -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d {all} -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s {own} -d {all} -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s {all} -d {own} -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s {all} -d {own} -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s {all} ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {all} -d {all} -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
"
            );
            node.write("/run/services", services)?;
            node.write("/run/flannel", rules)?;
            sh(
                node,
                "iptables-nft-restore --noflush < /run/services; iptables-nft-restore --noflush < /run/flannel",
            )?;
            sh(node, script)?;
        }
        Ok(())
    }

    pub(super) fn everywhere(&self, script: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| sh(node, script))
    }

    pub(super) fn across(&self) -> Course {
        let [near, far] = &self.pods;
        let address = IpAddr::V4(Ipv4Addr::new(10, 199, 1, 2));
        Course {
            name: "flannel's",
            server: path(far.netns()),
            client: path(near.netns()),
            address,
            nodes: self.nodes.iter().map(|node| path(node.netns())).collect(),
        }
    }
}

/// Two pods on the reference plugin's bridge.
pub(super) struct Reference {
    node: Node,
    pods: [Pod; 2],
    _lab: Lab,
}

impl Reference {
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::new("bench-reference")?;
        let node = lab.node("reference")?;
        let pods = [node.pod("near")?, node.pod("far")?];
        for pod in &pods {
            let config = json!({
                "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "cni0",
                "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1450,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.198.0.0/24" }]] },
            });
            let call = PluginCall::new("bridge", "ADD").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            call.pod(pod).stdin(&config).run(&node)?.ok()?;
        }
        Ok(Self { node, pods, _lab: lab })
    }

    pub(super) fn load(&self, services: &str, script: &str) -> Result<()> {
        self.node.write("/run/services", services)?;
        sh(&self.node, "iptables-nft-restore --noflush < /run/services")?;
        sh(&self.node, script)
    }

    pub(super) fn course(&self) -> Course {
        let [near, far] = &self.pods;
        let address = IpAddr::V4(Ipv4Addr::new(10, 198, 0, 3));
        Course {
            name: "the bridge plugin's",
            server: path(far.netns()),
            client: path(near.netns()),
            address,
            nodes: vec![path(self.node.netns())],
        }
    }
}

/// Two pods that nothing but a veth pair connects.
pub(super) fn bare_pair(node: &Node) -> Result<Course> {
    let pods = [node.pod("bare0")?, node.pod("bare1")?];
    sh(
        node,
        "ip -n bare0 link add eth0 mtu 1450 type veth peer name eth0 netns bare1 mtu 1450
         for i in 0 1; do
           ip -n bare$i link set lo up
           ip -n bare$i address add 10.197.0.1$i/24 dev eth0
           ip -n bare$i link set eth0 up
         done",
    )?;
    // Named, the namespaces live as long as the node.
    let [client, server] = pods.map(|pod| node.path(pod.netns_path()));
    Ok(Course {
        name: "a bare veth pair",
        server,
        client,
        address: IpAddr::V4(Ipv4Addr::new(10, 197, 0, 11)),
        nodes: Vec::new(),
    })
}

fn sh(node: &Node, script: &str) -> Result<()> {
    node.run("sh", &["-ec", script])?.success("set up a node").map(drop)
}
