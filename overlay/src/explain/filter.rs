//! The packet filter's part in the way.

use std::net::IpAddr;

use podwire_kernel::link::Link;
use podwire_kernel::nft::Hook;

use super::{HopKind, HopState, Walk, repaired};
use crate::ruleset::{Content, Fate, Packet};

/// Where two pods of different nodes' packets are filtered on this one.
pub(super) struct Outer<'a> {
    /// The link between the nodes.
    pub(super) underlay: &'a Link,
    /// This node's address there.
    pub(super) own: IpAddr,
    /// The other node's.
    pub(super) other: IpAddr,
    /// The port of the VXLAN device.
    pub(super) port: u16,
}

impl Walk<'_> {
    /// Packets that the node passes on from one link to another, and those that carry them between nodes.
    pub(super) fn filter(&mut self, by: Option<&Link>, out: &Link, outer: Option<&Outer<'_>>) {
        let mut inner =
            Packet::new(self.from.address, self.to.address, self.content).out(out.index, &out.name);
        let hooks: &[Hook] = match by {
            Some(by) => {
                inner = inner.by(by.index, &by.name);
                &[Hook::Prerouting, Hook::Forward, Hook::Postrouting]
            }
            None => &[Hook::Output, Hook::Postrouting],
        };
        let mut fates: Vec<(&str, Fate)> = hooks
            .iter()
            .map(|hook| ("the pods' packets", self.scene.ruleset.fate(*hook, &inner, false)))
            .collect();
        if let Some(Outer { underlay, own, other, port }) = outer {
            let sent = Packet::new(*own, *other, Content::Udp(*port)).out(underlay.index, &underlay.name);
            let got =
                Packet::new(*other, *own, Content::Udp(*port)).by(underlay.index, &underlay.name).local();
            for (what, packet, hooks) in [
                ("the tunnel's packets to the other node", sent, [Hook::Output, Hook::Postrouting]),
                ("the tunnel's packets from the other node", got, [Hook::Prerouting, Hook::Input]),
            ] {
                fates.extend(hooks.map(|hook| (what, self.scene.ruleset.fate(hook, &packet, false))));
            }
        }
        let forwarded = by.is_some();
        if forwarded && self.scene.legacy_drops.contains(&self.family()) {
            let program = if self.from.address.is_ipv4() { "iptables-legacy" } else { "ip6tables-legacy" };
            let bridge = by.filter(|link| link.kind.as_deref() == Some("bridge")).unwrap_or(out).name.clone();
            self.broken(
                HopKind::Filter,
                "legacy iptables drops forwarded packets (chain FORWARD)",
                format!(
                    "{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT"
                ),
            );
            return;
        }
        self.judge(fates, by.unwrap_or(out));
    }

    /// Frames between two ports of one bridge.
    pub(super) fn filter_bridged(&mut self, bridge: &Link, from: &Link, to: &Link) {
        let packet = |by: &Link, out: &Link| {
            Packet::new(self.from.address, self.to.address, self.content)
                .by(by.index, &by.name)
                .out(out.index, &out.name)
        };
        let frame = packet(from, to);
        let mut fates: Vec<(&str, Fate)> = [Hook::Prerouting, Hook::Forward, Hook::Postrouting]
            .map(|hook| ("the pods' frames", self.scene.ruleset.fate(hook, &frame, true)))
            .into();
        // With br_netfilter, frames on the bridge go through the network layer's chains too.
        let call = if self.from.address.is_ipv4() { "iptables" } else { "ip6tables" };
        let calls = self.kernel.sysctl(&format!("net/bridge/bridge-nf-call-{call}"));
        if calls.as_deref() == Ok("1") {
            let packet = packet(bridge, bridge);
            for hook in [Hook::Prerouting, Hook::Forward, Hook::Postrouting] {
                let fate = self.scene.ruleset.fate(hook, &packet, false);
                fates.push(("the pods' packets (bridge-nf-call is 1)", fate));
            }
        }
        self.judge(fates, bridge);
    }

    fn judge(&mut self, fates: Vec<(&str, Fate)>, bridge: &Link) {
        let mut perhaps = Vec::new();
        for (what, fate) in fates {
            match fate {
                Fate::Passes => {}
                Fate::Dropped(place) => {
                    let ours = ["inet podwire", "bridge podwire", "inet podwire-node"]
                        .contains(&place.table.as_str());
                    let advice = if ours {
                        let by_hand = "it is podwire's own rule: what the network's configuration or the pod's \
                                       annotations ask for, or a node that is not a member";
                        repaired(by_hand, self.scene.has_agent)
                    } else {
                        format!(
                            "another program drops it, and no rule of podwire's can undo that: take the rule away, or \
                             let the pods pass before it: nft insert rule {} {} iifname {bridge} accept (and oifname \
                             for the other direction)",
                            place.table,
                            place.base,
                            bridge = bridge.name,
                        )
                    };
                    self.broken(HopKind::Filter, format!("{what} are dropped: {place}"), advice);
                    return;
                }
                Fate::MayBeDropped(places) => perhaps.extend(places),
            }
        }
        perhaps.sort();
        perhaps.dedup();
        match perhaps.first() {
            None => self.ok(HopKind::Filter, "no rule drops the packets"),
            Some(first) => {
                let more = match perhaps.len() {
                    1 => String::new(),
                    many => format!(" (and {} more)", many - 1),
                };
                self.say(
                    HopKind::Filter,
                    HopState::Doubtful,
                    format!("may be dropped: {first}{more}"),
                    "whether the rule applies cannot be told from here; `podwirectl trace` shows whether packets get through",
                );
            }
        }
    }
}
