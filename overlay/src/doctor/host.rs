//! Settings of the kernel and of programs that manage networks.

use podwire_kernel::Family;
use podwire_kernel::route::PROTOCOL_RA;

use super::{Facts, Findings};

pub(super) fn examine(facts: &Facts, findings: &mut Findings) {
    forwarding(facts, findings);
    reverse_path(facts, findings);
    networkd(facts, findings);
    advertisements(facts, findings);
    let calls =
        ["iptables", "ip6tables"].map(|name| facts.number(&format!("net/bridge/bridge-nf-call-{name}")));
    if calls.contains(&Some(1)) && !facts.is_kubernetes {
        findings.note(
            "bridge-nf-call",
            "net.bridge.bridge-nf-call-* is 1: frames between pods of one bridge go through iptables and nftables",
            "kube-proxy needs it for services whose pods are on the same node; it costs each packet a little, and rules for \
             forwarded packets apply between pods of one node",
            "leave it where kube-proxy runs; elsewhere it may be 0. podwire never changes it",
        );
    }
    for link in &facts.without_offload {
        findings.note(
            "checksum-offload",
            format!("checksums on {link} are computed by the kernel, not left to the link"),
            "it costs some throughput, and it is what the agent does where probes came back damaged",
            "",
        );
    }
    let conntrack = ["count", "max"].map(|name| facts.number(&format!("net/netfilter/nf_conntrack_{name}")));
    if let [Some(count), Some(max)] = conntrack
        && max > 0
        && count.saturating_mul(10) > max.saturating_mul(9)
    {
        findings.warning(
            "conntrack-full",
            format!("{count} of {max} connections are tracked"),
            "when the table is full, new connections of pods are dropped",
            "sysctl -w net.netfilter.nf_conntrack_max=…",
        );
    }
    /// What the kernel crate's netlink sockets need (NETLINK_GET_STRICT_CHK).
    const OLDEST: (u32, u32) = (4, 20);
    if version(&facts.release).is_some_and(|version| version < OLDEST) {
        findings.error(
            "kernel",
            format!("the kernel is {}", facts.release),
            "podwire needs 4.20; it is tested from 5.10 on",
            "update the kernel",
        );
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn forwarding(facts: &Facts, findings: &mut Findings) {
    for family in facts.families() {
        let name = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => "net/ipv6/conf/all/forwarding",
        };
        match facts.number(name) {
            Some(0) => findings.error(
                "forwarding",
                format!("{} is 0", name.replace('/', ".")),
                "the node passes no packet on: pods reach nobody but each other on this node",
                format!(
                    "sysctl -w {}=1; find out who set it back (the agent sets it)",
                    name.replace('/', ".")
                ),
            ),
            None if family == Family::V6 => findings.error(
                "no-ipv6",
                "the kernel has no IPv6, and the cluster's pods have IPv6 addresses",
                "pods of this node get no IPv6 address, so their ADD fails",
                "boot without ipv6.disable=1",
            ),
            _ => {}
        }
        if family == Family::V6 {
            let ours = facts.devices().map(|(device, _)| device.name.as_str()).chain([facts.bridge.as_str()]);
            for link in ours {
                if facts.number(&format!("net/ipv6/conf/{link}/disable_ipv6")) == Some(1) {
                    findings.error(
                        "no-ipv6",
                        format!("net.ipv6.conf.{link}.disable_ipv6 is 1"),
                        "the link has no IPv6 addresses and no IPv6 routes",
                        format!("sysctl -w net.ipv6.conf.{link}.disable_ipv6=0"),
                    );
                }
            }
        }
    }
}

/// Strict reverse path filtering where packets of other nodes' pods come in.
fn reverse_path(facts: &Facts, findings: &mut Findings) {
    let all = facts.number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    for (device, _) in facts.devices() {
        let Some(own) = facts.number(&format!("net/ipv4/conf/{}/rp_filter", device.name)) else { continue };
        // The kernel takes the greater of the two; 2 is loose.
        if own.max(all) == 1 {
            findings.warning(
                "rp-filter",
                format!("{} filters strictly by reverse path (rp_filter 1)", device.name),
                "while a path changes, packets that come by another way than answers would go are dropped",
                format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", device.name),
            );
        }
    }
}

fn networkd(facts: &Facts, findings: &mut Findings) {
    let Some(networkd) = &facts.networkd else { return };
    if networkd.manages_foreign_routes.unwrap_or(true) && !networkd.leaves_ours_alone {
        findings.warning(
            "networkd",
            "systemd-networkd runs with ManageForeignRoutes=yes, its default",
            "when it starts again it removes routes that it did not make; the agent puts podwire's back within a second",
            "ManageForeignRoutes=no in /etc/systemd/networkd.conf.d/podwire.conf, section [Network]; \
             systemctl restart systemd-networkd",
        );
    }
}

/// Default routes that the kernel learned and would lose.
fn advertisements(facts: &Facts, findings: &mut Findings) {
    if facts.number("net/ipv6/conf/all/forwarding") != Some(1) {
        return;
    }
    let learned = facts.routes.iter().filter(|route| route.protocol == PROTOCOL_RA);
    let mut links: Vec<u32> = learned.flat_map(|route| &route.nexthops).filter_map(|hop| hop.oif).collect();
    links.sort_unstable();
    links.dedup();
    for index in links {
        let name = facts.link_name(index);
        if facts.number(&format!("net/ipv6/conf/{name}/accept_ra")) == Some(1) {
            findings.error(
                "accept-ra",
                format!("{name} has routes from router advertisements, forwards, and has accept_ra 1"),
                "a machine that forwards ignores advertisements then: the routes end, and with them the node's way out",
                format!("sysctl -w net.ipv6.conf.{name}.accept_ra=2"),
            );
        }
    }
}
