//! Token buckets and ifbs, made, looked at and removed.

use podwire_kernel::link::{self, AddrGenMode, LinkChange, LinkRef};
use podwire_kernel::qdisc::{self, Qdisc, TokenBucketState};
use podwire_kernel::{Error, Netlink, Request};

use super::{bucket, ifb_alias, ifb_name};
use crate::removal::{self, Found};
use crate::step::step;
use crate::{Owner, OwnerId, Shaping};

/// Why a pod's traffic could not be shaped.
#[derive(Debug, thiserror::Error)]
pub enum ShapingError {
    /// The link's place for a queueing discipline is another program's.
    #[error(
        "link {link} already has a queueing discipline of another program ({kind}); \
         remove it with `tc qdisc del dev {link} {place}` or give no bandwidth limit"
    )]
    Foreign {
        /// The link's name.
        link: String,
        /// The discipline's kind.
        kind: String,
        /// Its place in tc's words.
        place: &'static str,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// The shaping that the kernel shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedShaping {
    /// The bucket on the host's end.
    pub to_pod: Option<TokenBucketState>,
    /// The bucket on the ifb, if the host's end hands it all that it receives.
    pub from_pod: Option<TokenBucketState>,
}

/// The host's end of a pod's veth, as far as shaping is concerned.
#[derive(Debug, Clone, Copy)]
pub struct HostQueue<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Gives a pod its limits, and takes away those that it is not to have (any more). Done already is fine.
///
/// # Errors
/// Another program shapes that link; the kernel refuses. Some of it may have been done: see [`unshape`].
pub fn shape(
    host: &mut Netlink,
    owner: &Owner,
    host_end: HostQueue<'_>,
    shaping: &Shaping,
) -> Result<(), ShapingError> {
    step("shape");
    let mut requests = Vec::new();
    if let Some(limit) = &shaping.to_pod {
        requests.push(qdisc::create_bucket(host_end.index, host_end.name, &bucket(limit, host_end.mtu)));
    }
    let mut ifb = None;
    if let Some(limit) = &shaping.from_pod {
        let found = ensure_ifb(host, owner.id())?;
        requests.extend(link::change(LinkRef::Index(found.index), &ifb_settings(owner)));
        // A link that is up changes its discipline only after all processors have let go of the old one.
        requests.push(qdisc::create_bucket(found.index, &found.name, &bucket(limit, host_end.mtu)));
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        requests.extend(link::change(LinkRef::Index(found.index), &up));
        requests.push(qdisc::create_clsact(host_end.index, host_end.name));
        requests.push(qdisc::redirect_all(host_end.index, host_end.name, found.index));
        ifb = Some(found);
    }
    // A new link has no disciplines, and then this one send does.
    match host.apply(&requests) {
        Err(error) if error.is_exists() => amend(host, host_end, ifb.as_ref(), shaping)?,
        Err(error) if error.is_without_family() && ifb.is_some() => {
            // A kernel without IPv6: then there are no addresses to refuse.
            let settings = LinkChange { addr_gen_mode: None, ..ifb_settings(owner) };
            let index = ifb.as_ref().map_or(0, |ifb| ifb.index);
            host.apply(&link::change(LinkRef::Index(index), &settings))?;
            amend(host, host_end, ifb.as_ref(), shaping)?;
        }
        other => other?,
    }
    // A pod that had limits and is to have fewer.
    if requests.is_empty() {
        unshape(host, owner.id(), Some(host_end.name))?;
    }
    step("shaped");
    Ok(())
}

struct Ifb {
    name: String,
    index: u32,
}

fn ifb_settings(owner: &Owner) -> LinkChange {
    LinkChange {
        alias: Some(ifb_alias(owner)),
        // Nobody talks to it, and nobody is to hear of it.
        addr_gen_mode: Some(AddrGenMode::None),
        ..LinkChange::default()
    }
}

/// The owner's ifb, made unless an earlier ADD has left it.
fn ensure_ifb(host: &mut Netlink, owner: OwnerId) -> Result<Ifb, ShapingError> {
    let name = ifb_name(owner);
    let made = match host.apply_then_link(&[link::create_ifb(&name)], LinkRef::Name(&name)) {
        Err(error) if error.is_exists() => match removal::find_shaper(host, owner)? {
            Found::Ours(link) => Some(*link),
            Found::Missing => None,
            Found::Foreign(link) => return Err(removal::foreign(&link).into()),
        },
        other => other?,
    };
    Ok(Ifb { index: made.map_or(0, |link| link.index), name })
}

/// The slow way, for links that have disciplines already.
fn amend(
    host: &mut Netlink,
    host_end: HostQueue<'_>,
    ifb: Option<&Ifb>,
    shaping: &Shaping,
) -> Result<(), ShapingError> {
    let root = host.root_qdisc(host_end.index)?;
    match (&shaping.to_pod, root.as_ref()) {
        (Some(_), Some(root)) if !is_free(root) => return Err(foreign(host_end.name, root, "root")),
        (Some(limit), _) => {
            let bucket = bucket(limit, host_end.mtu);
            host.apply(&[qdisc::replace_bucket(host_end.index, host_end.name, &bucket)])?;
        }
        (None, Some(root)) if is_ours(root) => {
            host.apply(&[qdisc::remove_bucket(host_end.index, host_end.name)])?;
        }
        (None, _) => {}
    }
    let (Some(limit), Some(ifb)) = (&shaping.from_pod, ifb) else {
        return Ok(remove_redirect(host, host_end.index, host_end.name)?);
    };
    host.apply(&[qdisc::replace_bucket(ifb.index, &ifb.name, &bucket(limit, host_end.mtu))])?;
    match host.ingress_qdisc(host_end.index)? {
        Some(place) if place.kind != "clsact" => return Err(foreign(host_end.name, &place, "ingress")),
        Some(_) => {}
        None => host.apply(&[qdisc::create_clsact(host_end.index, host_end.name)])?,
    }
    let filters = host.ingress_filters(host_end.index)?;
    let mut ours = filters.iter().filter(|filter| filter.priority == qdisc::PRIORITY);
    match (ours.next(), ours.next()) {
        (Some(filter), None) if filter.is_match_all && filter.redirect == Some(ifb.index) => return Ok(()),
        (None, _) => {}
        _ => host.apply(&[qdisc::remove_redirect(host_end.index, host_end.name)])?,
    }
    Ok(host.apply(&[qdisc::redirect_all(host_end.index, host_end.name, ifb.index)])?)
}

/// The kernel's own disciplines have no handle.
fn is_free(root: &Qdisc) -> bool {
    root.handle == 0 || is_ours(root)
}

fn is_ours(root: &Qdisc) -> bool {
    root.handle == qdisc::HANDLE && root.kind == "tbf"
}

fn foreign(link: &str, found: &Qdisc, place: &'static str) -> ShapingError {
    ShapingError::Foreign { link: link.to_owned(), kind: found.kind.clone(), place }
}

/// Takes away what [`shape`] gave: the ifb, and the disciplines of the host's end, where that stays (`host_end`, as in
/// chained use). Nothing there is success.
///
/// # Errors
/// The kernel's; an ifb's name that something else has.
pub fn unshape(host: &mut Netlink, owner: OwnerId, host_end: Option<&str>) -> Result<(), Error> {
    step("unshape");
    if let Some(name) = host_end
        && let Some(link) = host.link(LinkRef::Name(name))?
    {
        if host.root_qdisc(link.index)?.is_some_and(|root| is_ours(&root)) {
            gone(host, qdisc::remove_bucket(link.index, name))?;
        }
        remove_redirect(host, link.index, name)?;
    }
    match removal::find_shaper(host, owner)? {
        Found::Missing => Ok(()),
        // After the filter that hands it packets, which would be lost else: a given link stays in use.
        Found::Ours(ifb) => gone(host, link::delete(ifb.index, &ifb.name)),
        Found::Foreign(link) => Err(removal::foreign(&link)),
    }
}

/// Removes our filter, and its place if nobody else uses it.
fn remove_redirect(host: &mut Netlink, index: u32, name: &str) -> Result<(), Error> {
    let filters = host.ingress_filters(index)?;
    if !filters.iter().any(|filter| filter.priority == qdisc::PRIORITY) {
        return Ok(());
    }
    if filters.iter().all(|filter| filter.priority == qdisc::PRIORITY) {
        return gone(host, qdisc::remove_clsact(index, name));
    }
    gone(host, qdisc::remove_redirect(index, name))
}

fn gone(host: &mut Netlink, removal: Request<'_>) -> Result<(), Error> {
    match host.apply(&[removal]) {
        Err(error) if !error.is_missing() => Err(Error { index: None, ..error }),
        _ => Ok(()),
    }
}

/// The shaping of an owner's pod, whose host's end has that index.
///
/// # Errors
/// The kernel does not answer.
pub fn observe_shaping(host: &mut Netlink, owner: OwnerId, host_end: u32) -> Result<ObservedShaping, Error> {
    let own = |root: Option<Qdisc>| root.filter(is_ours).and_then(|root| root.bucket);
    let to_pod = own(host.root_qdisc(host_end)?);
    let mut from_pod = None;
    if let Found::Ours(ifb) = removal::find_shaper(host, owner)? {
        let filters = host.ingress_filters(host_end)?;
        // Whatever is asked before ours may take packets away.
        let first = filters.iter().min_by_key(|filter| filter.priority);
        let is_fed = first.is_some_and(|filter| filter.is_match_all && filter.redirect == Some(ifb.index));
        if is_fed && ifb.flags.up {
            from_pod = own(host.root_qdisc(ifb.index)?);
        }
    }
    Ok(ObservedShaping { to_pod, from_pod })
}
