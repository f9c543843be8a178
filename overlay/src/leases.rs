//! Leases of a node's pods, for people and programs; and whether they and the node's interfaces agree. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_attach::{LinkAlias, PortMapping, Role, alias};
use podwire_ipam::{Lease, LeaseState, Origin};
use podwire_kernel::link::Link;
use serde::Serialize;
use serde_json::{Value, json};

use crate::status::PodStatus;
use crate::terminal::{Cell, Table, Tone};

/// The interface that a lease is for, as [`PodStatus`].
pub fn pod_status(lease: &Lease) -> PodStatus {
    let attachment = &lease.attachment;
    PodStatus {
        network: attachment.owner.network.clone(),
        namespace: attachment.pod.as_ref().map(|pod| pod.namespace.clone()),
        name: attachment.pod.as_ref().map(|pod| pod.name.clone()),
        container: attachment.owner.container.clone(),
        ifname: attachment.owner.ifname.clone(),
        state: state(lease).to_owned(),
        addresses: attachment.all_addresses().collect(),
        link: attachment.link.clone(),
        bridge: attachment.bridge.clone(),
        netns: Some(attachment.netns.clone()).filter(|netns| !netns.is_empty()),
        mac: attachment.mac.map(|mac| mac.to_string()),
        ports: lease.ports().map(|port| port_text(&port)).collect(),
    }
}

/// A JSON array with an object for each lease.
pub fn json(leases: &[Lease]) -> Value {
    let one = |lease: &Lease| {
        let attachment = &lease.attachment;
        json!({
            "network": attachment.owner.network,
            "container": attachment.owner.container,
            "ifname": attachment.owner.ifname,
            "role": role(attachment.owner.role),
            "addresses": attachment.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(),
            "given": attachment.given.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(),
            "ports": lease.ports().map(|port| port_text(&port)).collect::<Vec<_>>(),
            "state": state(lease),
            "origin": origin(lease),
            "link": attachment.link,
            "bridge": attachment.bridge,
            "netns": attachment.netns,
            "mac": attachment.mac.map(|mac| mac.to_string()),
            "pod": attachment.pod.as_ref().map(|pod| json!({
                "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
            })),
            "runtime": attachment.runtime,
        })
    };
    leases.iter().map(one).collect()
}

/// A row for each lease.
pub fn table(leases: &[Lease]) -> Table {
    let mut table = Table::new(["NETWORK", "ADDRESSES", "PORTS", "STATE", "POD", "CONTAINER", "IFNAME"]);
    for lease in leases {
        let attachment = &lease.attachment;
        // Another plugin's in brackets: they are not this store's to give.
        let own = attachment.addresses.iter().map(|a| a.address.to_string());
        let given = attachment.given.iter().map(|a| format!("({})", a.address));
        let addresses: Vec<String> = own.chain(given).collect();
        let ports: Vec<String> = lease.ports().map(|port| port_text(&port)).collect();
        let chained = match attachment.owner.role {
            Role::Main => "",
            Role::Chained => " (chained)",
        };
        let pod = attachment.pod.as_ref().map(ToString::to_string);
        let tone = if lease.state == LeaseState::Attached { Tone::Plain } else { Tone::Warning };
        table.row([
            attachment.owner.network.as_str().into(),
            addresses.join(",").into(),
            few(&ports).into(),
            Cell::new(state(lease)).tone(tone),
            pod.unwrap_or_default().into(),
            attachment.owner.container.as_str().into(),
            format!("{}{chained}", attachment.owner.ifname).into(),
        ]);
    }
    table
}

/// The first ones of many, for a line that is read.
pub fn few(texts: &[String]) -> String {
    const FEW: usize = 4;
    match texts.get(..FEW) {
        Some(first) if texts.len() > FEW => format!("{},+{}", first.join(","), texts.len() - FEW),
        _ => texts.join(","),
    }
}

/// `8080/tcp->80`.
fn port_text(port: &PortMapping) -> String {
    format!("{port}->{}", port.container_port)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Main => "main",
        Role::Chained => "chained",
    }
}

fn state(lease: &Lease) -> &'static str {
    match lease.state {
        LeaseState::Reserved => "reserved",
        LeaseState::Attached => "attached",
        LeaseState::Deleting => "deleting",
    }
}

fn origin(lease: &Lease) -> &'static str {
    match lease.origin {
        Origin::Add => "add",
        Origin::HostLocal => "host-local",
        Origin::Rebuilt => "rebuilt",
    }
}

/// Where leases and interfaces do not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// What kind it is.
    pub kind: DisagreementKind,
    /// Whose lease or interface it is about.
    pub owner: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// See [`Disagreement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisagreementKind {
    /// A lease whose interface is gone.
    NoInterface,
    /// An interface of podwire's that nobody has a lease for.
    NoLease,
    /// The interface says other addresses than the lease.
    OtherAddresses,
    /// Two leases of one network have one address.
    SharedAddress,
    /// A DEL that has begun and not ended.
    Unfinished,
    /// A lease of an earlier boot.
    OtherBoot,
}

/// Compares leases with the node's links.
pub fn check(leases: &[Lease], links: &[Link], boot_id: &str) -> Vec<Disagreement> {
    let mut all = Vec::new();
    let mut say = |kind, owner: String, message: String, advice: &str| {
        all.push(Disagreement { kind, owner, message, advice: advice.to_owned() });
    };
    let by_name: BTreeMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut holders: BTreeMap<(&str, IpAddr), Vec<String>> = BTreeMap::new();
    for lease in leases {
        let attachment = &lease.attachment;
        let (owner, title) = (attachment.owner.to_string(), attachment.title());
        for address in &attachment.addresses {
            let key = (attachment.owner.network.as_str(), address.address.ip());
            holders.entry(key).or_default().push(title.to_string());
        }
        if lease.boot_id != boot_id {
            let message = format!("the lease of {title} is of an earlier boot");
            let advice = "it ends at the next ADD, or when the agent starts";
            say(DisagreementKind::OtherBoot, owner, message, advice);
            continue;
        }
        if lease.state == LeaseState::Deleting {
            let message = format!("the DEL of {title} has begun and has not come to its end");
            let advice = "the agent ends it; without one, `podwirectl ipam gc` does";
            say(DisagreementKind::Unfinished, owner.clone(), message, advice);
        }
        let Some(name) = &attachment.link else { continue };
        let link = by_name.get(name.as_str());
        match link {
            None if lease.state == LeaseState::Attached => {
                let message = format!("interface {name} of {title} is gone, and its lease is not");
                let advice = "`podwirectl ipam gc` ends the lease; the agent does within some minutes";
                say(DisagreementKind::NoInterface, owner, message, advice);
            }
            None => {}
            Some(link) => {
                let said = alias_of(link).map(|alias| alias.addresses).unwrap_or_default();
                let has = |address: &&ipnetwork::IpNetwork| {
                    attachment.addresses.iter().any(|own| own.address.ip() == address.ip())
                };
                if let Some(other) = said.iter().find(|address| !has(address)) {
                    let message =
                        format!("interface {name} says {other}, which is not in the lease of {title}");
                    let advice = "delete the pod: what it uses is not what is recorded";
                    say(DisagreementKind::OtherAddresses, owner, message, advice);
                }
            }
        }
    }
    for ((network, address), owners) in holders.into_iter().filter(|(_, owners)| owners.len() > 1) {
        let message = format!("{address} on network {network} is leased to {}", owners.join(" and to "));
        say(
            DisagreementKind::SharedAddress,
            owners.join(", "),
            message,
            "delete one of the pods, and report this",
        );
    }
    let leased: Vec<&str> = leases.iter().filter_map(|lease| lease.attachment.link.as_deref()).collect();
    for link in links.iter().filter(|link| !leased.contains(&link.name.as_str())) {
        let Some(alias) = alias_of(link) else { continue };
        let addresses: Vec<String> = alias.addresses.iter().map(ToString::to_string).collect();
        let name = &link.name;
        let message = format!("interface {name} with {} has no lease", addresses.join(" and "));
        let advice = "an ADD is under way, or the store was lost: the next ADD or GC looks at it";
        say(DisagreementKind::NoLease, alias.owner.to_string(), message, advice);
    }
    all.sort_by(|a, b| (a.kind, &a.owner).cmp(&(b.kind, &b.owner)));
    all
}

fn alias_of(link: &Link) -> Option<LinkAlias> {
    link.alias.as_deref().and_then(alias::parse)
}

/// The leases of attachments that live no more: their interface is gone, or their DEL has begun.
pub fn dead<'a>(leases: &'a [Lease], links: &[Link], boot_id: &str) -> Vec<&'a Lease> {
    let is_dead = |lease: &&Lease| {
        let is_gone = lease.attachment.link.as_ref().is_some_and(|name| {
            lease.state == LeaseState::Attached && links.iter().all(|link| link.name != *name)
        });
        lease.attachment.owner.role == Role::Main
            && lease.attachment.link.is_some()
            && (is_gone || lease.state == LeaseState::Deleting || lease.boot_id != boot_id)
    };
    leases.iter().filter(is_dead).collect()
}

#[cfg(test)]
mod tests {
    use podwire_attach::{Attachment, Owner, PodAddress};

    use super::*;

    fn lease(container: &str, address: &str) -> Lease {
        let owner = Owner::new("pods", container, "eth0");
        let link = owner.link_name();
        Lease {
            attachment: Attachment {
                owner,
                addresses: vec![PodAddress { address: address.parse().unwrap(), gateway: None }],
                mac: None,
                link: Some(link),
                bridge: Some("podwire0".to_owned()),
                netns: "/run/netns/a".to_owned(),
                netns_identity: None,
                pod: None,
                runtime: None,
                given: Vec::new(),
                traffic: None,
            },
            state: LeaseState::Attached,
            origin: Origin::Add,
            generation: 1,
            boot_id: "boot".to_owned(),
            succeeds: false,
            former: Vec::new(),
            former_ports: Vec::new(),
            missing_since: None,
        }
    }

    fn link_of(lease: &Lease) -> Link {
        let addresses: Vec<_> = lease.attachment.all_addresses().collect();
        let alias = alias::format(&lease.attachment.owner, &addresses);
        Link { name: lease.attachment.link.clone().unwrap(), alias: Some(alias), ..Link::default() }
    }

    fn kinds(found: &[Disagreement]) -> Vec<DisagreementKind> {
        found.iter().map(|found| found.kind).collect()
    }

    #[test]
    fn leases_and_links_that_agree_are_fine() {
        let leases = [lease("a", "10.244.1.2/24"), lease("b", "10.244.1.3/24")];
        let links: Vec<Link> = leases.iter().map(link_of).collect();
        assert_eq!(check(&leases, &links, "boot"), []);
        assert!(dead(&leases, &links, "boot").is_empty());
    }

    #[test]
    fn each_disagreement_is_named() {
        let (a, b, other) =
            (lease("a", "10.244.1.2/24"), lease("b", "10.244.1.2/24"), lease("c", "10.244.1.4/24"));
        let mut moved = lease("d", "10.244.1.5/24");
        let mut links = vec![link_of(&a), link_of(&other), link_of(&moved)];
        moved.attachment.addresses[0].address = "10.244.1.6/24".parse().unwrap();
        let mut ending = lease("e", "10.244.1.7/24");
        ending.state = LeaseState::Deleting;
        let mut old = lease("f", "10.244.1.8/24");
        old.boot_id = "earlier".to_owned();
        links.push(Link { name: "eth0".to_owned(), alias: Some("anything".to_owned()), ..Link::default() });
        let leases = [a, b, moved, ending, old];
        let found = check(&leases, &links, "boot");
        use DisagreementKind::{NoInterface, NoLease, OtherAddresses, OtherBoot, SharedAddress, Unfinished};
        assert_eq!(
            kinds(&found),
            [NoInterface, NoLease, OtherAddresses, SharedAddress, Unfinished, OtherBoot]
        );
        let dead: Vec<&str> = dead(&leases, &links, "boot")
            .iter()
            .map(|lease| lease.attachment.owner.container.as_str())
            .collect();
        assert_eq!(dead, ["b", "e", "f"]);
    }
}
