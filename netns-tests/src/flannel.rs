//! Nodes as flannel leaves them: its exact kernel objects and files, and pods that the reference plugins make as
//! flannel's plugin tells them to. flanneld itself is not there, which is how a node is found that is moved from it.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Member};
use crate::error::{LabError, Result};
use crate::kubernetes::ControlPlane;
use crate::plugin::PluginCall;
use crate::pod::Pod;
use crate::traffic::{Flow, Flows};

/// flannel's configuration, as its manifest has it.
pub const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
/// host-local's directory of flannel's network.
pub const LEASES: &str = "/var/lib/cni/networks/cbr0";
/// Where flannel's plugin keeps what it has told the bridge plugin.
pub const TOLD: &str = "/var/lib/cni/flannel";
/// flannel's VNI and its port, Linux's own.
const VXLAN: &str = "type vxlan id 1 dstport 8472 nolearning";

/// What of a node others have to know.
#[derive(Debug, Clone)]
pub struct FlannelNode {
    /// Its addresses on the underlay.
    pub addresses: Vec<IpAddr>,
    /// Its subnets, one for each family at most.
    pub subnets: Vec<String>,
    /// The Ethernet address of its device over IPv4.
    pub mac: String,
    /// The Ethernet address of its device over IPv6.
    pub mac6: String,
}

impl FlannelNode {
    /// The node of a cluster of that number, with Ethernet addresses of its own, as systemd or the kernel would choose
    /// them.
    pub fn of(cluster: &Cluster, number: u8) -> Self {
        Self {
            addresses: cluster.underlay().addresses(number),
            subnets: cluster.subnets_of(number),
            mac: format!("5e:00:00:00:04:{number:02x}"),
            mac6: format!("5e:00:00:00:06:{number:02x}"),
        }
    }

    fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }

    /// The subnet of a family, and its first address, which is the VTEP's.
    fn subnet(&self, ipv4: bool) -> Option<(&str, &str)> {
        let subnet = self.subnets.iter().find(|subnet| subnet.contains('.') == ipv4)?;
        Some((subnet, subnet.split('/').next()?))
    }

    /// Makes flannel's device for each family that the node's pods have, without peers, and writes flannel's files. Fails
    /// where a subnet has no address of its family: flannel would not start.
    ///
    /// # Errors
    /// If a command fails.
    pub fn set_up(&self, member: &Member) -> Result<()> {
        let mut script = String::from("ip link set lo up\n");
        for (ipv4, device, mac, length) in
            [(true, "flannel.1", &self.mac, 32), (false, "flannel-v6.1", &self.mac6, 128)]
        {
            let Some((_, vtep)) = self.subnet(ipv4) else { continue };
            let missing = || LabError::new(format!("{} has no address for {device}", member.name()));
            let local = self.address(ipv4).ok_or_else(missing)?;
            let (family, mtu, forwarding) = match ipv4 {
                true => ("-4", 1450, "ipv4/ip_forward"),
                false => ("-6", 1430, "ipv6/conf/all/forwarding"),
            };
            script += &format!(
                "echo 1 > /proc/sys/net/{forwarding}
                 ip link add {device} address {mac} mtu {mtu} {VXLAN} local {local} dev eth0
                 ip {family} address add {vtep}/{length} dev {device} nodad
                 ip link set {device} up\n"
            );
        }
        // nodad is for IPv6 alone.
        member.sh(&script.replace("/32 dev flannel.1 nodad", "/32 dev flannel.1"))?;
        self.write_files(member)
    }

    /// Adds what flannel makes for a peer: a neighbour, a forwarding entry, a route.
    ///
    /// # Errors
    /// If a command fails.
    pub fn add_peer(&self, member: &Member, peer: &Self) -> Result<()> {
        let mut script = String::new();
        for (ipv4, device, mac) in [(true, "flannel.1", &peer.mac), (false, "flannel-v6.1", &peer.mac6)] {
            if let (Some((subnet, vtep)), Some(remote)) = (peer.subnet(ipv4), peer.address(ipv4)) {
                let family = if ipv4 { "-4" } else { "-6" };
                script += &format!(
                    "ip {family} neighbour replace {vtep} lladdr {mac} dev {device} nud permanent
                     bridge fdb append {mac} dev {device} dst {remote} self permanent
                     ip {family} route replace {subnet} via {vtep} dev {device} onlink\n"
                );
            }
        }
        member.sh(&script).map(drop)
    }

    /// flannel's rules in the packet filter, by iptables' newer half.
    ///
    /// # Errors
    /// If a command fails.
    pub fn add_rules(&self, member: &Member) -> Result<()> {
        let Some((own, _)) = self.subnet(true) else { return Ok(()) };
        let all = crate::cluster::RANGES[0].0;
        member
            .sh(&format!(
                "i=iptables-nft; m='-m comment --comment'
                 $i -t nat -N FLANNEL-POSTRTG
                 $i -t nat -A POSTROUTING $m 'flanneld masq' -j FLANNEL-POSTRTG
                 $i -t nat -A FLANNEL-POSTRTG -s {own} -d {all} $m 'flanneld masq' -j RETURN
                 $i -t nat -A FLANNEL-POSTRTG -s {all} ! -d 224.0.0.0/4 $m 'flanneld masq' -j MASQUERADE --random-fully
                 $i -N FLANNEL-FWD
                 $i -A FORWARD $m 'flanneld forward' -j FLANNEL-FWD
                 $i -A FLANNEL-FWD -s {all} $m 'flanneld forward' -j ACCEPT
                 $i -A FLANNEL-FWD -d {all} $m 'flanneld forward' -j ACCEPT"
            ))
            .map(drop)
    }

    /// What flanneld writes on its node's Node.
    ///
    /// # Errors
    /// If the API refuses it.
    pub fn annotate(&self, api: &ControlPlane, member: &Member) -> Result<()> {
        let data = |mac: &str| json!({ "VNI": 1, "VtepMAC": mac }).to_string();
        let mut annotations = serde_json::Map::new();
        let mut set = |key: &str, value: String| {
            annotations.insert(format!("flannel.alpha.coreos.com/{key}"), json!(value));
        };
        set("backend-type", "vxlan".to_owned());
        set("kube-subnet-manager", "true".to_owned());
        for (ipv4, data_key, ip_key, mac) in [
            (true, "backend-data", "public-ip", &self.mac),
            (false, "backend-v6-data", "public-ipv6", &self.mac6),
        ] {
            if let (Some(_), Some(address)) = (self.subnet(ipv4), self.address(ipv4)) {
                set(data_key, data(mac));
                set(ip_key, address.to_string());
            }
        }
        api.server()
            .patch_node(member.name(), &json!({ "metadata": { "annotations": annotations } }))
            .map(drop)
    }

    fn write_files(&self, member: &Member) -> Result<()> {
        let conflist = json!({
            "name": "cbr0",
            "cniVersion": "0.3.1",
            "plugins": [
                { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
                { "type": "portmap", "capabilities": { "portMappings": true } }
            ]
        });
        member.node().write(CONFLIST, format!("{conflist:#}\n"))?;
        let mut env = String::new();
        for (ipv4, infix, range) in [(true, "", 0), (false, "IPV6_", 1)] {
            if let Some((subnet, vtep)) = self.subnet(ipv4) {
                let gateway = match vtep.rsplit_once('.') {
                    Some((network, _)) => format!("{network}.1"),
                    None => format!("{vtep}1"),
                };
                let length = subnet.split('/').nth(1).unwrap_or_default();
                let all = crate::cluster::RANGES[range].0;
                env += &format!("FLANNEL_{infix}NETWORK={all}\nFLANNEL_{infix}SUBNET={gateway}/{length}\n");
            }
        }
        env += "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        member.node().write("/run/flannel/subnet.env", env)
    }

    /// What flannel's plugin tells the bridge plugin.
    fn told(&self) -> Value {
        let ranges: Vec<Value> = self.subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "name": "cbr0", "cniVersion": "0.3.1", "type": "bridge", "hairpinMode": true, "isDefaultGateway": true,
            "isGateway": true, "ipMasq": false, "mtu": 1450, "ipam": { "type": "host-local", "ranges": ranges }
        })
    }

    /// A pod as flannel's plugin and containerd make it: bridge and host-local, with the words that flannel's plugin keeps
    /// for its DEL, and with libcni's memory of the result.
    ///
    /// # Errors
    /// If ADD fails.
    pub fn pod(&self, member: &Member, name: &str) -> Result<FlannelPod> {
        let pod = member.node().pod(name)?;
        let told = self.told();
        let result = PluginCall::new("bridge", "ADD").pod(&pod).stdin(&told).run(member.node())?.ok()?;
        member.node().write(format!("{TOLD}/{name}"), told.to_string())?;
        let cached = json!({
            "kind": "cniCacheV1", "containerId": name, "ifName": "eth0", "networkName": "cbr0", "config": "e30=",
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]], "result": result
        });
        member.node().write(format!("/var/lib/cni/results/cbr0-{name}-eth0"), cached.to_string())?;
        let addresses = crate::faults::addresses(&result);
        Ok(FlannelPod { pod, addresses })
    }
}

/// What flannel's plugin does at DEL: it calls the bridge plugin with the words that it kept, and does nothing if it kept
/// none.
///
/// # Errors
/// If the bridge plugin fails.
pub fn delete_by_flannel(member: &Member, pod: &Pod) -> Result<()> {
    let kept = format!("{TOLD}/{}", pod.name());
    if !member.node().path(&kept).exists() {
        return Ok(());
    }
    let told: Value = serde_json::from_str(&member.node().read(&kept)?)
        .map_err(LabError::because("read what flannel kept"))?;
    PluginCall::new("bridge", "DEL").pod(pod).stdin(&told).run(member.node())?.ok()?;
    member.sh(&format!("rm {kept}")).map(drop)
}

/// A pod of flannel's network.
pub struct FlannelPod {
    /// Its network namespace.
    pub pod: Pod,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// 1,000 packets a second between two pods, each way and in each family that both have. Returns when they arrive.
///
/// # Errors
/// If they do not.
pub fn flows(one: (&Pod, &[IpAddr]), other: (&Pod, &[IpAddr])) -> Result<Flows> {
    let mut flows = Flows::default();
    for (from, (to, addresses)) in [(one.0, other), (other.0, one)] {
        for address in addresses {
            flows.0.push(Flow::start(from, to, *address)?);
        }
    }
    Ok(flows)
}
