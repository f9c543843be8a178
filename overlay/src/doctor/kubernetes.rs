//! What matters on a node of a Kubernetes cluster alone: kube-proxy's needs, flannel's remains, what the Node says.

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::link::Vxlan;

use super::{Facts, Findings};
use crate::explain::DEVICE_ALIAS;

pub(super) fn examine(facts: &Facts, findings: &mut Findings) {
    flannel(facts, findings);
    subnets(facts, findings);
    if !facts.is_kubernetes {
        return;
    }
    bridged(facts, findings);
    addresses(facts, findings);
}

/// kube-proxy's answers between pods of one bridge.
fn bridged(facts: &Facts, findings: &mut Findings) {
    for family in facts.families() {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let found = match facts.number(&format!("net/bridge/bridge-nf-call-{name}")) {
            Some(1) => continue,
            Some(_) => format!("net.bridge.bridge-nf-call-{name} is 0"),
            None => format!("there is no net.bridge.bridge-nf-call-{name}: br_netfilter is not loaded"),
        };
        findings.error(
            "bridge-nf-call",
            found,
            "where kube-proxy runs, a pod that asks a service whose pod is on the same node gets its answer from that pod's own \
             address, and drops it",
            format!("modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-{name}=1, also for the next boot"),
        );
    }
}

/// By which address the cluster says that this node is reached.
fn addresses(facts: &Facts, findings: &mut Findings) {
    let Some(status) = &facts.status else { return };
    for address in &status.store_addresses {
        if facts.addresses.iter().all(|own| own.address.ip() != *address) {
            findings.warning(
                "node-address",
                format!("no link has {address}, by which the Node says that this machine is reached"),
                "it may be translated on the way; else other nodes send its pods' packets to nobody, and what this node sends \
                 comes from an address that they do not know",
                "put it right with kubelet's --node-ip, or say the right ones: kubectl annotate node NAME \
                 podwire.dev/addresses=…; overlay.interface chooses the link",
            );
        }
    }
}

/// This node's subnets against the ranges that all nodes share.
fn subnets(facts: &Facts, findings: &mut Findings) {
    let Some(config) = &facts.config else { return };
    let is_right = |subnet: &IpNetwork| {
        config
            .ranges
            .iter()
            .any(|range| range.range.contains(subnet.network()) && range.subnet_prefix == subnet.prefix())
    };
    for subnet in facts.subnets.iter().filter(|subnet| !is_right(subnet)) {
        let ranges: Vec<String> = config
            .ranges
            .iter()
            .map(|range| format!("{} with a /{} for each node", range.range, range.subnet_prefix))
            .collect();
        findings.error(
            "subnet",
            format!("this node's subnet {subnet} does not fit the cluster's range, {}", ranges.join(" and ")),
            "other nodes leave it out, and its pods do not reach theirs",
            "in Kubernetes podwire's range and subnet_prefix must be the controller manager's --cluster-cidr and \
             --node-cidr-mask-size",
        );
    }
}

/// Whether a VXLAN device has the name that flannel gives its own.
pub(super) fn is_flannels(name: &str) -> bool {
    name.starts_with("flannel.") || name.starts_with("flannel-v6.")
}

/// Flannel and podwire on one node undo each other's work.
fn flannel(facts: &Facts, findings: &mut Findings) {
    // One in the place of podwire's is told as that.
    let segment = facts.config.as_ref().map(|config| config.encapsulation);
    let is_apart = |vxlan: &Vxlan| Some((vxlan.vni, vxlan.port)) != segment.map(|own| (own.vni, own.port));
    let devices: Vec<&str> = facts
        .links
        .iter()
        .filter(|link| {
            link.vxlan.as_ref().is_some_and(is_apart) && link.alias.as_deref() != Some(DEVICE_ALIAS)
        })
        .map(|link| link.name.as_str())
        .filter(|name| is_flannels(name))
        .collect();
    if !facts.flannel.processes.is_empty() {
        let processes: Vec<String> = facts.flannel.processes.iter().map(ToString::to_string).collect();
        findings.error(
            "flannel",
            format!("flanneld runs on this node (process {})", processes.join(", ")),
            "it and podwire undo each other's routes and forwarding entries, and overwrite what the Node says of this machine",
            "keep its DaemonSet off this node, by the label and affinity in docs/migrate-from-flannel.md",
        );
    }
    if !devices.is_empty() {
        findings.warning(
            "flannel",
            format!("flannel's device {} is still there", devices.join(" and ")),
            "its routes may win over podwire's",
            "`podwirectl migrate flannel` takes it over while pods run; on a node without pods of flannel's: ip link del",
        );
    }
    for conflist in &facts.flannel.conflists {
        findings.warning(
            "flannel",
            format!("{conflist} is flannel's CNI configuration"),
            "runtimes take the first in the directory: if it comes before podwire's, or podwire's is not there yet, pods are \
             flannel's",
            "`podwirectl migrate flannel` puts it aside; or remove it",
        );
    }
}
