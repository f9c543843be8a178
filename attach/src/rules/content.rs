//! What one attachment puts into podwire's tables. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::nft::{Element, MAX_COMMENT, TableRef, Verdict, concat, ifname};

use super::chains::{self, NamedChain};
use super::conditions::{self, ConditionError, Conditions};
use super::matches::{family_of, octets};
use super::skeleton::{self, ADDRESSED, CHECKED, GUARDED, LOCALNET, MACS, SENDERS4, SetRef, links};
use crate::{Attachment, IngressPolicy, Owner, OwnerId, PortMapping, Snat, Traffic};

/// Elements and chains of one attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Elements that are this owner's alone, by map or set.
    pub(super) owned: BTreeMap<SetRef, Vec<Element>>,
    /// Elements that other pods of the same bridge need as well.
    pub(super) shared: BTreeMap<SetRef, Vec<Element>>,
    /// The chains that the elements lead to, and the base chains that lead to the elements.
    pub(super) chains: BTreeMap<String, NamedChain>,
    /// Which host port an element is for: its set and key.
    pub(super) ports: BTreeMap<(SetRef, Vec<u8>), PortMapping>,
    /// The link that 127.0.0.1 must be routed to.
    pub(super) localnet: Option<String>,
}

impl Content {
    /// Whether the attachment asks for nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.owned.is_empty() && self.shared.is_empty()
    }

    /// The tables that its elements are in.
    pub(super) fn tables(&self) -> Vec<TableRef<'static>> {
        let tables: BTreeSet<_> = self.owned.keys().chain(self.shared.keys()).map(|set| set.table).collect();
        tables.into_iter().collect()
    }
}

/// The comment of an owner's elements. Its beginning is the owner's id, which is all that a DEL knows; the rest is for
/// people, and cut where it is too long.
pub(super) fn comment(owner: &Owner) -> String {
    let mut text = format!("{} {} {} {}", owner.id(), owner.container, owner.ifname, owner.network);
    // All of it is ASCII: CNI allows nothing else in any of them but the interface's name.
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Whose an element is; `None` for one that no owner's comment is on.
pub(super) fn owner_of(element: &Element) -> Option<OwnerId> {
    let id = element.comment.as_deref()?.split(' ').next()?;
    OwnerId::try_from(id.to_owned()).ok()
}

/// Whose an element is, for people: `eth0 of container 0123 on network net`, as far as the comment has it.
pub(super) fn describe_owner(element: &Element) -> String {
    let mut parts = element.comment.as_deref().unwrap_or_default().splitn(4, ' ').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(container), Some(ifname), Some(network)) => {
            format!("{ifname} of container {container} on network {network}")
        }
        (Some(container), ..) => format!("container {container}"),
        _ => "an unknown owner".to_owned(),
    }
}

/// What the attachment asks for; nothing where its traffic is unknown.
///
/// # Errors
/// A port's condition is not understood. The plugin's configuration is refused for that before it comes here.
pub(super) fn content(attachment: &Attachment) -> Result<Content, ConditionError> {
    let mut all = Content::default();
    let Some(traffic) = &attachment.traffic else { return Ok(all) };
    let mut work = Work { comment: comment(&attachment.owner), attachment, traffic, all: &mut all };
    work.masquerade();
    work.ports()?;
    work.ingress();
    work.source_check();
    Ok(all)
}

struct Work<'w> {
    comment: String,
    attachment: &'w Attachment,
    traffic: &'w Traffic,
    all: &'w mut Content,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Work<'_> {
    fn own(&mut self, set: SetRef, element: Element) {
        let elements = self.all.owned.entry(set).or_default();
        // Two entries of one address or port: the first counts, as in a list of rules.
        if !elements.iter().any(|other| other.key == element.key) {
            elements.push(element.comment(self.comment.clone()));
        }
    }

    fn share(&mut self, set: SetRef, element: Element) {
        if let Some(chain) = skeleton::base_chain_for(set.name) {
            self.all.chains.insert(chain.name.clone(), chain);
        }
        let elements = self.all.shared.entry(set).or_default();
        if !elements.contains(&element) {
            elements.push(element);
        }
    }

    /// The verdict that leads to that chain.
    fn jump(&mut self, chain: NamedChain) -> Verdict {
        let name = chain.name.clone();
        self.all.chains.insert(name.clone(), chain);
        Verdict::Jump(name)
    }

    fn addresses(&self, family: Family) -> Vec<IpNetwork> {
        self.attachment.all_addresses().filter(|address| family_of(address.ip()) == family).collect()
    }

    fn masquerade(&mut self) {
        let Some(masquerade) = &self.traffic.masquerade else { return };
        for family in FAMILIES {
            let addresses = self.addresses(family);
            // A pod's own subnet is inside whatever the configuration says: with bridge-nf-call-iptables its
            // neighbours' frames come by here.
            let subnets = addresses.iter().filter_map(|a| IpNetwork::new(a.network(), a.prefix()).ok());
            let inside: Vec<IpNetwork> = masquerade.inside.iter().copied().chain(subnets).collect();
            for address in addresses {
                let chain = chains::masquerade_outside(family, &inside, masquerade.fully_random);
                let verdict = self.jump(chain);
                let element = Element::new(octets(address.ip())).verdict(verdict);
                self.own(skeleton::masquerade(family), element);
            }
        }
    }

    fn ports(&mut self) -> Result<(), ConditionError> {
        let access = &self.traffic.port_access;
        for (family, words) in FAMILIES.into_iter().zip([&access.conditions_v4, &access.conditions_v6]) {
            // Of several addresses of one family the first answers.
            let Some(pod) = self.addresses(family).first().copied() else { continue };
            let mut conditions = conditions::parse(family, words)?;
            if family == Family::V4 && access.snat == Snat::Off {
                conditions = Some(Conditions::not_to_loopback(conditions));
            }
            for port in self.traffic.ports.clone() {
                if port.host_ip.is_none_or(|ip| family_of(ip) == family) {
                    self.port(family, pod, port, conditions.as_ref());
                }
            }
        }
        Ok(())
    }

    fn port(&mut self, family: Family, pod: IpNetwork, port: PortMapping, conditions: Option<&Conditions>) {
        let protocol = [port.protocol.number()];
        let host_port = port.host_port.to_be_bytes();
        let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
        let key = match host_ip {
            Some(ip) => concat(&[&protocol, &octets(ip), &host_port]),
            None => concat(&[&protocol, &host_port]),
        };
        let set = skeleton::ports(family, host_ip.is_some(), conditions.is_some());
        self.all.ports.insert((set, key.clone()), port);
        let target = concat(&[&octets(pod.ip()), &port.container_port.to_be_bytes()]);
        self.own(set, Element::new(key.clone()).value(target));
        if let Some(conditions) = conditions {
            let verdict = self.jump(chains::conditional(family, conditions));
            let set = skeleton::conditions_of(family, host_ip.is_some());
            self.all.ports.insert((set, key.clone()), port);
            self.own(set, Element::new(key).verdict(verdict));
        }
        let snat = self.traffic.port_access.snat;
        if snat == Snat::Off {
            return;
        }
        let Ok(subnet) = IpNetwork::new(pod.network(), pod.prefix()) else { return };
        let fully_random = self.traffic.masquerade.as_ref().is_none_or(|masquerade| masquerade.fully_random);
        let key = concat(&[&octets(pod.ip()), &host_port]);
        self.own(skeleton::snat(port.protocol, family), Element::new(key));
        let verdict = self.jump(chains::masquerade_clients(subnet, snat, fully_random));
        self.own(skeleton::clients(family), Element::new(octets(pod.ip())).verdict(verdict));
        if family == Family::V4 && !self.traffic.device.is_empty() {
            self.share(LOCALNET, Element::new(ifname(&self.traffic.device)));
            self.all.localnet = Some(self.traffic.device.clone());
        }
    }

    fn ingress(&mut self) {
        let policy = self.traffic.ingress;
        if policy == IngressPolicy::Open || self.traffic.device.is_empty() {
            return;
        }
        self.share(GUARDED, Element::new(ifname(&self.traffic.device)));
        for address in self.attachment.all_addresses() {
            let family = family_of(address.ip());
            let ip = octets(address.ip());
            let verdict = self.jump(chains::ingress(&self.traffic.device, policy));
            self.own(skeleton::ingress(family), Element::new(ip.clone()).verdict(verdict));
            if policy == IngressPolicy::Isolated {
                self.own(skeleton::itself(family), Element::new(concat(&[&ip, &ip])));
            }
        }
    }

    fn source_check(&mut self) {
        let Some(check) = &self.traffic.source_check else { return };
        if self.traffic.host_end.is_empty() {
            return;
        }
        let name = ifname(&self.traffic.host_end);
        let is_port = self.traffic.host_end != self.traffic.device;
        let (checked, macs, addressed) = match is_port {
            true => (CHECKED, MACS, ADDRESSED),
            false => (links::CHECKED, links::MACS, links::ADDRESSED),
        };
        self.own(checked, Element::new(name));
        self.own(macs, Element::new(concat(&[&name, &check.mac.0])));
        if !check.addresses {
            return;
        }
        self.own(addressed, Element::new(name));
        for address in self.attachment.all_addresses() {
            let ip: IpAddr = address.ip();
            let set = match is_port {
                true => skeleton::addresses(family_of(ip)),
                false => links::addresses(family_of(ip)),
            };
            self.own(set, Element::new(concat(&[&name, &octets(ip)])));
            if is_port && ip.is_ipv4() {
                self.own(SENDERS4, Element::new(concat(&[&name, &check.mac.0, &octets(ip)])));
            }
        }
    }
}

#[cfg(test)]
mod tests;
