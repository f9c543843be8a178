//! Removal of host veths, and of the ifbs beside them, by what they are named after, with a look at whose they are.
//!
//! One removal waits for every CPU, 17–54 ms, although the link is off all lists within one. A hundred of them
//! one after the other take two seconds; one request for a whole link group takes 40 ms. So a GC puts the links
//! that it is sure of into a group that nothing else is in, looks again, and removes the group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;

use podwire_kernel::link::{self, Link, LinkChange, LinkRef};
use podwire_kernel::{Error, Netlink, Result, detached};

use crate::{Owner, OwnerId, alias, shaping};

/// What stands under the name of an owner's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Missing,
    /// The owner's veth.
    Ours(Box<Link>),
    /// Something else: not to be touched.
    Foreign(Box<Link>),
}

/// Looks for the link of that owner.
///
/// # Errors
/// The kernel's.
pub fn find(netlink: &mut Netlink, owner: &Owner) -> Result<Found> {
    let id = owner.id();
    Ok(match netlink.link(LinkRef::Name(&id.link_name()))? {
        None => Found::Missing,
        Some(link) if is_of(&link, id) => Found::Ours(Box::new(link)),
        Some(link) => Found::Foreign(Box::new(link)),
    })
}

/// Looks for the ifb of that owner, which what comes from its pod waits at.
///
/// # Errors
/// The kernel's.
pub fn find_shaper(netlink: &mut Netlink, owner: OwnerId) -> Result<Found> {
    Ok(match netlink.link(LinkRef::Name(&shaping::ifb_name(owner)))? {
        None => Found::Missing,
        Some(link) if is_shaper_of(&link, owner) => Found::Ours(Box::new(link)),
        Some(link) => Found::Foreign(Box::new(link)),
    })
}

/// The names of all links on the node that an owner may have: its veth's host end and its ifb. Both are checked before
/// they are removed: see [`is_of`] and [`is_shaper_of`].
pub fn links_of(owner: OwnerId) -> [String; 2] {
    [owner.link_name(), shaping::ifb_name(owner)]
}

/// Whether a link is that owner's ifb. One without an alias is ours, half made.
pub fn is_shaper_of(link: &Link, owner: OwnerId) -> bool {
    let named = link.name == shaping::ifb_name(owner) && link.kind.as_deref() == Some("ifb");
    named
        && match link.alias.as_deref() {
            None | Some("") => true,
            Some(text) => shaping::ifb_owner(text) == Some(owner),
        }
}

/// All ifbs of ours among these links, and whose they are by their alias.
pub fn shapers(links: &[Link]) -> impl Iterator<Item = (OwnerId, &Link)> {
    links.iter().filter_map(|link| {
        let owner = shaping::ifb_owner(link.alias.as_deref()?)?;
        is_shaper_of(link, owner).then_some((owner, link))
    })
}

/// Whether a link is that owner's: a veth of that name whose alias, if it has one, names the owner. The alias is set
/// by a second message of the send that makes the link, so one without an alias is ours, half made.
pub fn is_of(link: &Link, owner: OwnerId) -> bool {
    let named = link.name == owner.link_name() && link.kind.as_deref() == Some("veth");
    named
        && match link.alias.as_deref() {
            None | Some("") => true,
            Some(text) => alias::parse(text).is_some_and(|alias| alias.owner_id == owner),
        }
}

/// Removes the links of one owner, its veth and its ifb, and waits until both are gone, once: as a group, since two
/// requests take half as long again even from two threads. Nothing there is success.
///
/// # Errors
/// Something else stands under one of the names; then that stays and the other goes. The kernel's.
pub fn remove(netlink: &mut Netlink, owner: OwnerId) -> Result<()> {
    let mut doomed = Vec::new();
    let mut result = Ok(());
    for name in links_of(owner) {
        match netlink.link(LinkRef::Name(&name))? {
            None => {}
            Some(link) if is_any_of(&link, owner) => doomed.push(link),
            Some(link) => result = Err(foreign(&link)),
        }
    }
    let removed = match doomed.as_slice() {
        [] => Ok(()),
        [only] => match netlink.apply(&[link::delete(only.index, &only.name)]) {
            Err(error) if !error.is_missing() => Err(Error { index: None, ..error }),
            _ => Ok(()),
        },
        _ => remove_many(netlink, &[owner])?.remove(&owner).unwrap_or(Ok(())),
    };
    result.and(removed)
}

/// Removes the links of these owners, veths and ifbs. The result has an entry for each: `Ok` when nothing of the owner's
/// is left, also if there was nothing.
///
/// # Errors
/// The links cannot be listed; nothing has been removed.
pub fn remove_many(netlink: &mut Netlink, owners: &[OwnerId]) -> Result<BTreeMap<OwnerId, Result<()>>> {
    let links = netlink.links()?;
    let by_name: BTreeMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut results: BTreeMap<OwnerId, Result<()>> = BTreeMap::new();
    let mut doomed: Vec<(OwnerId, &Link)> = Vec::new();
    for owner in owners.iter().copied().collect::<BTreeSet<_>>() {
        let mut result = Ok(());
        for name in links_of(owner) {
            match by_name.get(name.as_str()).copied() {
                None => {}
                Some(link) if is_any_of(link, owner) => doomed.push((owner, link)),
                Some(link) => result = Err(foreign(link)),
            }
        }
        results.insert(owner, result);
    }
    let is_removed = match doomed.as_slice() {
        [] | [_] => false,
        many => remove_group(netlink, many, &links).unwrap_or(false),
    };
    // Else the kernel has answered that all of the group are gone.
    if !is_removed {
        for (owner, failure) in remove_each(&doomed) {
            results.insert(owner, Err(failure));
        }
    }
    Ok(results)
}

fn is_any_of(link: &Link, owner: OwnerId) -> bool {
    is_of(link, owner) || is_shaper_of(link, owner)
}

/// The error for something that stands where an owner's link should.
pub fn foreign(link: &Link) -> Error {
    let kind = link.kind.as_deref().unwrap_or("no kind");
    Error {
        op: "delete link",
        object: link.name.clone(),
        errno: EEXIST,
        detail: Some(format!(
            "it is not podwire's (a link of kind {kind} with alias {:?}): remove or rename it by hand",
            link.alias.as_deref().unwrap_or_default()
        )),
        index: None,
    }
}

const EEXIST: i32 = 17;

/// Removes these links as one group. `false` if that cannot be done; some of them may then be gone.
fn remove_group(netlink: &mut Netlink, doomed: &[(OwnerId, &Link)], links: &[Link]) -> Result<bool> {
    let Some(group) = empty_group(links) else { return Ok(false) };
    for some in doomed.chunks(200) {
        let requests: Vec<_> = some
            .iter()
            .flat_map(|(_, doomed)| {
                let into = LinkChange { group: Some(group), ..LinkChange::default() };
                link::change(LinkRef::Index(doomed.index), &into)
            })
            .collect();
        match netlink.apply(&requests) {
            // One has gone by itself; the others are in the group.
            Err(error) if error.is_missing() => {}
            other => other?,
        }
    }
    // Only what is ours for certain may be in it: an index may have gone to another link between list and change.
    let owners: BTreeMap<u32, OwnerId> = doomed.iter().map(|(owner, link)| (link.index, *owner)).collect();
    let members: Vec<Link> = netlink.links()?.into_iter().filter(|link| link.group == group).collect();
    let is_ours = |member: &Link| owners.get(&member.index).is_some_and(|owner| is_any_of(member, *owner));
    if !members.iter().all(is_ours) {
        return Ok(false);
    }
    if members.is_empty() {
        return Ok(true);
    }
    let (done, answer) = mpsc::channel();
    detached::delete_group(group, move |result| {
        let _ = done.send(result);
    })?;
    // EOPNOTSUPP: a member of a kind that cannot be removed, which no veth is, or an old kernel.
    Ok(matches!(answer.recv(), Ok(Ok(()))))
}

/// A group that no link is in. 0 is where all others are.
fn empty_group(links: &[Link]) -> Option<u32> {
    const FIRST: u32 = 0x7077_0000;
    let used: BTreeSet<u32> = links.iter().map(|link| link.group).collect();
    (FIRST..FIRST + 0x1_0000).find(|group| !used.contains(group))
}

/// Removes links at once, each by a request of its own. The kernel lets them wait together. The failures.
fn remove_each(doomed: &[(OwnerId, &Link)]) -> Vec<(OwnerId, Error)> {
    const AT_ONCE: usize = 64;
    let mut failures = Vec::new();
    for some in doomed.chunks(AT_ONCE) {
        let (done, answers) = mpsc::channel();
        for (owner, link) in some.iter().copied() {
            let done = done.clone();
            let sent = detached::delete_link(link.index, &link.name, move |result| {
                let _ = done.send((owner, result));
            });
            if let Err(error) = sent {
                failures.push((owner, error));
            }
        }
        drop(done);
        for (owner, result) in answers {
            match result {
                Err(error) if !error.is_missing() => failures.push((owner, error)),
                _ => {}
            }
        }
    }
    failures
}
