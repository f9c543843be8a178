//! One attachment's elements put in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podwire_kernel::nft::{Batch, Element, Nft};
use podwire_kernel::sysctl;

use super::content::{Content, content, describe_owner, owner_of};
use super::look;
use super::restore::add_chain;
use super::skeleton::{INET, SetRef};
use super::{ATTEMPTS, RulesError, forward, mend, pause};
use crate::step::step;
use crate::{Attachment, OwnerId};

/// What an administrator should know of an installation that succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Each a sentence, such as that legacy iptables drops what the pods send.
    pub notices: Vec<String>,
}

/// Puts the attachment's rules into the node: the elements, with what they need of the skeleton; route_localnet on its
/// device, if 127.0.0.1 is to reach a host port; accept rules in another program's forward chain that drops. Acts in the
/// network namespace of the calling thread, which must be that of the socket. Usually one send, and a question for each
/// IP version about the other program's chain.
///
/// Doing it again changes nothing. A host port of an owner that `is_alive` denies is taken over. What the same owner
/// had in other places stays; [`super::remove()`] it before.
///
/// # Errors
/// See [`RulesError`]. After [`RulesError::PortTaken`], [`RulesError::AddressTaken`] and [`RulesError::Conditions`]
/// nothing has been changed.
pub fn install(
    nft: &mut Nft,
    attachment: &Attachment,
    is_alive: &dyn Fn(OwnerId) -> bool,
) -> Result<Installed, RulesError> {
    let content = content(attachment)?;
    if !content.is_empty() {
        put_in(nft, &content, attachment.owner.id(), is_alive)?;
        step("rules-installed");
    }
    // After the drop of 127.0.0.0/8 on that link, never before.
    if let Some(device) = &content.localnet {
        sysctl::write(&route_localnet(device), "1")?;
    }
    let device = attachment.traffic.as_ref().map_or("", |traffic| &traffic.device);
    let notices = if device.is_empty() { Vec::new() } else { forward::accept_forwarding(nft, device)? };
    Ok(Installed { notices })
}

/// The sysctl that lets 127.0.0.0/8 be routed over a link.
pub(super) fn route_localnet(device: &str) -> String {
    format!("net/ipv4/conf/{device}/route_localnet")
}

fn put_in(
    nft: &mut Nft,
    content: &Content,
    owner: OwnerId,
    is_alive: &dyn Fn(OwnerId) -> bool,
) -> Result<(), RulesError> {
    let alone = elements_alone(content);
    let mut refusal = None;
    let mut collided = false;
    for attempt in 0..ATTEMPTS {
        pause(attempt);
        step("rules-install");
        let tried = if !collided && is_ready(nft, content)? {
            let committed = nft.commit(&alone);
            match committed {
                Err(error) if error.is_missing() || error.is_exists() => {
                    collided = true;
                    refusal = Some(error);
                    continue;
                }
                // An element does not refer to the base chain that leads to it, so that one may have gone meanwhile.
                Ok(()) => {
                    collided = true;
                    is_ready(nft, content).map_err(RulesError::from)
                }
                Err(error) => Err(error.into()),
            }
        } else {
            complete(nft, content, owner, is_alive)
        };
        match tried {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The others are made at exactly the generation that was looked at: what is lacking then will be.
            Err(RulesError::Kernel(error)) if is_worth_another(&error) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(RulesError::Unsettled(refusal.map_or_else(String::new, |error| error.to_string())))
}

/// Whether the chains are there that the elements lead to, and with them all else. A transaction that fails in its midst
/// costs a grace period, some 10 ms in which the kernel carries out no other; some questions before it cost some
/// microseconds each, and the first pods of a node's start do not wait for each other.
fn is_ready(nft: &mut Nft, content: &Content) -> podwire_kernel::Result<bool> {
    for name in content.chains.keys() {
        if nft.chain(INET, name)?.is_none() {
            return Ok(false);
        }
    }
    for table in content.tables() {
        if (table != INET || content.chains.is_empty()) && nft.table(table)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Looks, and makes what is missing, if nothing changed meanwhile. `false` if that was only the skeleton.
fn complete(
    nft: &mut Nft,
    content: &Content,
    owner: OwnerId,
    is_alive: &dyn Fn(OwnerId) -> bool,
) -> Result<bool, RulesError> {
    match see(nft, content)? {
        Seen::Lacking => {
            step("rules-skeleton");
            mend::mend(nft, &content.tables())?;
            Ok(false)
        }
        Seen::Node(node) => {
            let batch = completing(content, &node, owner, is_alive)?;
            if !batch.is_empty() {
                nft.commit(&batch)?;
            }
            Ok(true)
        }
    }
}

/// Whether another process's change is why the kernel refused.
pub(super) fn is_worth_another(error: &podwire_kernel::Error) -> bool {
    error.is_changed() || error.is_busy()
}

/// The common case: all that the elements need is there, and they are not.
fn elements_alone(content: &Content) -> Batch {
    let mut batch = Batch::new();
    for (set, elements) in &content.owned {
        batch.create_elements(set.table, set.name, elements);
    }
    for (set, elements) in &content.shared {
        batch.ensure_elements(set.table, set.name, elements);
    }
    batch
}

/// The part of the node that decides what is to be done.
enum Seen {
    /// A table, a set or a fixed chain is missing.
    Lacking,
    Node(Node),
}

/// PURE.
struct Node {
    generation: u32,
    chains: BTreeSet<String>,
    elements: BTreeMap<(SetRef, Vec<u8>), Element>,
}

fn see(nft: &mut Nft, content: &Content) -> podwire_kernel::Result<Seen> {
    let generation = nft.generation()?.id;
    let mut chains = BTreeSet::new();
    for table in content.tables() {
        let skeleton = super::skeleton::skeleton(table);
        let sets: BTreeSet<String> = nft.sets(table)?.into_iter().map(|set| set.object.name).collect();
        let names: BTreeSet<String> =
            nft.table_chains(table)?.into_iter().map(|chain| chain.object.name).collect();
        let is_complete = skeleton.sets.iter().all(|(set, _)| sets.contains(set.name))
            && skeleton.chains.iter().all(|(chain, _)| names.contains(&chain.name));
        if !is_complete {
            return Ok(Seen::Lacking);
        }
        if table == INET {
            chains = names;
        }
    }
    let elements = look::elements(nft, &content.owned)?;
    let elements = elements.into_iter().map(|(set, element)| ((set, element.key.clone()), element)).collect();
    Ok(Seen::Node(Node { generation, chains, elements }))
}

/// What is missing on a node that has the skeleton. PURE but for the question who is alive.
fn completing(
    content: &Content,
    node: &Node,
    owner: OwnerId,
    is_alive: &dyn Fn(OwnerId) -> bool,
) -> Result<Batch, RulesError> {
    let mut batch = Batch::new();
    for chain in content.chains.values().filter(|chain| !node.chains.contains(&chain.name)) {
        add_chain(&mut batch, INET, chain);
    }
    for (set, elements) in &content.owned {
        let mut outdated = Vec::new();
        let mut lacking = Vec::new();
        for element in elements {
            match node.elements.get(&(*set, element.key.clone())) {
                None => lacking.push(element.clone()),
                Some(found) => {
                    let by = owner_of(found);
                    if by == Some(owner) && found.data == element.data {
                        continue;
                    }
                    if by.is_some_and(|by| by != owner && is_alive(by)) {
                        taken(content, *set, element, found)?;
                        // The other's element does the same for both.
                        continue;
                    }
                    outdated.push(element.clone());
                    lacking.push(element.clone());
                }
            }
        }
        batch.delete_elements(set.table, set.name, &outdated);
        batch.create_elements(set.table, set.name, &lacking);
    }
    for (set, elements) in &content.shared {
        batch.ensure_elements(set.table, set.name, elements);
    }
    batch.only_at(node.generation);
    Ok(batch)
}

/// Another pod that is alive has this element.
fn taken(content: &Content, set: SetRef, element: &Element, found: &Element) -> Result<(), RulesError> {
    let by = describe_owner(found);
    if let Some(port) = content.ports.get(&(set, element.key.clone())) {
        return Err(RulesError::PortTaken { port: *port, by });
    }
    if found.data == element.data {
        return Ok(());
    }
    Err(RulesError::AddressTaken { address: address_of(&element.key), by })
}

/// The address that a key of one of the maps by address is.
fn address_of(key: &[u8]) -> IpAddr {
    match (<[u8; 4]>::try_from(key), <[u8; 16]>::try_from(key)) {
        (Ok(v4), _) => v4.into(),
        (_, v6) => v6.unwrap_or_default().into(),
    }
}
