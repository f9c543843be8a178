//! Where a pod's addresses come from: our own pool, another IPAM plugin, or nowhere. An attachment is recorded
//! in the store in all three cases, so that GC knows it.

use podwire_attach::{Attachment, OwnerId, PodAddress, alias, rules};
use podwire_ipam::{Allocator, Dirs, Error, Grant, Range, RangeSet, Reserve};
use podwire_kernel::Netlink;
use podwire_kernel::link::{Link, LinkRef};
use podwire_kernel::nft::Nft;

use super::wanted::{Addressing, NodeFacts};
use super::{node, traffic};
use crate::config::{Config, Ipam, IpamConfig};
use crate::protocol::{CniError, CniResult, IpConfig, code};
use crate::{Delegate, Environment, Verb, failure};

/// The store's directories, as configured.
pub(super) fn dirs(config: &Config) -> Dirs {
    Dirs::new(&config.state_dir, &config.run_dir)
}

/// The network's range sets: configured, or this node's as the agent says.
///
/// # Errors
/// Code 11 when the agent has not said them yet, or says that no new pod is to have an address of them.
pub(super) fn range_sets(
    config: &Config,
    ipam: &IpamConfig,
    node: &NodeFacts,
) -> Result<Vec<RangeSet>, CniError> {
    if !ipam.node_ranges {
        return Ok(ipam.sets.clone());
    }
    if let Some(why) = refusal(ipam, node) {
        let text = format!("network {:?} takes no new pods on this node: {why}", config.network.name);
        return Err(CniError::new(code::TRY_AGAIN_LATER, text));
    }
    match &node.agent {
        Some(agent) => agent.range_sets().map_err(|error| {
            let path = dirs(config).node(&config.network.name);
            CniError::from_cause(code::TRY_AGAIN_LATER, &error)
                .context(&format!("wrong subnet in {}", path.display()))
        }),
        None => Err(CniError::new(
            code::TRY_AGAIN_LATER,
            format!(
                "network {:?} has no ranges of its own, and the agent has not joined the cluster yet: {} is missing",
                config.network.name,
                dirs(config).node(&config.network.name).display()
            ),
        )),
    }
}

/// Why the agent wants no new pods with addresses of this node's subnets.
pub(super) fn refusal<'a>(ipam: &IpamConfig, node: &'a NodeFacts) -> Option<&'a str> {
    node.agent.as_ref().filter(|_| ipam.node_ranges)?.refuse.as_deref()
}

/// The request for this attachment's addresses. The node's rules for the pod are recorded with them, before they are
/// made: whoever finds the lease knows what there is to remove.
fn request(config: &Config, attachment: &Attachment, sets: Vec<RangeSet>, node: &NodeFacts) -> Reserve {
    let (requested, quarantine_ms) = match &config.ipam {
        Ipam::InProcess(ipam) => (ipam.requested.clone(), ipam.quarantine_ms),
        Ipam::None | Ipam::Delegated { .. } => (Vec::new(), 0),
    };
    let mut attachment = attachment.clone();
    // The interface of a podwire-ipam lease is another plugin's, and a chained one knows its traffic already.
    if let (Some(link), Some(bridge), None) = (&attachment.link, &attachment.bridge, &attachment.traffic) {
        let path = traffic::Path { device: bridge.clone(), host_end: link.clone() };
        let ranges = sets.iter().flat_map(RangeSet::ranges).map(Range::subnet);
        let subnets: Vec<_> = ranges.chain(attachment.given.iter().map(|given| given.address)).collect();
        attachment.traffic = Some(traffic::traffic(config, &attachment, path, &subnets, node));
    }
    Reserve { attachment, sets, requested, quarantine_ms, import_dir: import_dir(config) }
}

/// host-local's directory of this network.
pub(super) fn import_dir(config: &Config) -> Option<std::path::PathBuf> {
    match &config.ipam {
        Ipam::InProcess(ipam) => Some(ipam.data_dir.join(&config.network.name)),
        Ipam::None | Ipam::Delegated { .. } => None,
    }
}

/// Imports what host-local has given on this network: a DEL, CHECK or GC may be the first
/// call after the move from host-local.
///
/// # Errors
/// The store's, or host-local's directory cannot be read.
pub(crate) fn import(config: &Config, allocator: &mut Allocator) -> Result<(), CniError> {
    if let (Ipam::InProcess(ipam), Some(directory)) = (&config.ipam, import_dir(config))
        && directory.is_dir()
    {
        // Ranges that only the agent knows were never host-local's.
        for notice in allocator.import(&config.network.name, &directory, &ipam.sets).map_err(failure::ipam)? {
            super::say(&notice);
        }
    }
    Ok(())
}

/// A pod's addresses, held until [`Reservation::keep`] or [`Reservation::take_back`].
pub(super) struct Reservation {
    allocator: Allocator,
    attachment: Attachment,
    grant: Grant,
    addressing: Addressing,
    delegate: Option<Delegate>,
}

impl Reservation {
    /// Reserves, durably. `meanwhile` is done while the agent writes to its disk; if it fails, so does this.
    ///
    /// # Errors
    /// Nothing stays reserved then.
    pub(super) fn make<T>(
        env: &Environment,
        config: &Config,
        attachment: &Attachment,
        node: &NodeFacts,
        meanwhile: impl FnOnce() -> Result<T, CniError>,
    ) -> Result<(Self, T), CniError> {
        let sets = match &config.ipam {
            Ipam::InProcess(ipam) => range_sets(config, ipam, node)?,
            Ipam::None | Ipam::Delegated { .. } => Vec::new(),
        };
        let dns = node::resolv_conf(config)?;
        // A foreign plugin first: it may take long, and a store opened here keeps all others out.
        let delegate = match &config.ipam {
            Ipam::Delegated { plugin } => Some(Delegate::find(plugin, &env.path)?),
            Ipam::None | Ipam::InProcess(_) => None,
        };
        let delegated = match &delegate {
            Some(delegate) => Some(delegated(delegate, env, config)?),
            None => None,
        };
        let mut attachment = attachment.clone();
        attachment.given.extend(delegated.iter().flat_map(|delegated| &delegated.addresses));
        let request = request(config, &attachment, sets, node);
        let reserved = Allocator::connect(&dirs(config)).and_then(|mut allocator| {
            let (grant, done) = allocator.reserve_while(&request, meanwhile);
            Ok((allocator, grant?, done))
        });
        let (mut allocator, grant, done) = match reserved {
            Ok(reserved) => reserved,
            Err(error) => return Err(released(failure::ipam(error), delegate.as_ref(), env, config)),
        };
        for notice in allocator.notices().iter().chain(&grant.notices) {
            super::say(notice);
        }
        let addressing = delegated.unwrap_or_else(|| Addressing {
            addresses: grant.addresses.clone(),
            routes: match &config.ipam {
                Ipam::InProcess(ipam) => ipam.routes.clone(),
                Ipam::None | Ipam::Delegated { .. } => Vec::new(),
            },
            dns,
        });
        let attachment = request.attachment;
        let reservation = Self { allocator, attachment, grant, addressing, delegate };
        match done {
            Ok(done) => Ok((reservation, done)),
            Err(error) => Err(reservation.take_back(env, config, error)),
        }
    }

    /// The attachment as it is recorded, with its addresses.
    pub(super) fn attachment(&self) -> Attachment {
        Attachment { addresses: self.grant.addresses.clone(), ..self.attachment.clone() }
    }

    /// Whether rules that name another owner are to be respected. The store knows of no living owner that these would
    /// collide with; rules may outlive their store, and then the owner's link tells.
    pub(super) fn is_alive(&self, owner: OwnerId) -> bool {
        let is_ours =
            |link: Link| link.alias.as_deref().and_then(alias::parse).is_some_and(|a| a.owner_id == owner);
        let link = || Netlink::open()?.link(LinkRef::Name(&owner.link_name()));
        // What cannot be seen is taken to be there.
        !self.grant.taken_over.contains(&owner) && link().map_or(true, |link| link.is_some_and(is_ours))
    }

    /// Removes what dead owners have left in the packet filter whose host ports this one was given: their rules may stand
    /// under other keys than this one's, such as one address for any.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn clear_taken_over(&self) -> Result<(), CniError> {
        if self.grant.taken_over.is_empty() {
            return Ok(());
        }
        let mut nft = Nft::open().map_err(failure::kernel)?;
        let remove = |owner: &OwnerId| rules::remove(&mut nft, *owner, None).map_err(failure::rules);
        self.grant.taken_over.iter().try_for_each(remove)
    }

    /// What was given.
    pub(super) fn addressing(&self) -> Addressing {
        self.addressing.clone()
    }

    /// Whether neighbours may remember the addresses with another MAC address. Without one in the configuration it
    /// follows from the owner, who may have been given the same addresses anew.
    pub(super) fn is_news(&self, config: &Config) -> bool {
        match &self.delegate {
            // What another plugin gave earlier is not known.
            Some(_) => true,
            None => self.grant.reused || (self.grant.renewed && config.mac.is_some()),
        }
    }

    /// The attachment stands.
    ///
    /// # Errors
    /// A DEL or GC has ended the attachment meanwhile: it must be undone.
    pub(super) fn keep(&mut self) -> Result<(), CniError> {
        match self.allocator.attached(&self.attachment.owner, self.grant.generation, None) {
            Err(error @ Error::Stale(_)) => Err(failure::ipam(error)),
            Err(error) => {
                // The lease is durable and its link exists, which makes it alive: only the word is missing.
                super::say(&format!("{} could not be marked as attached: {error}", self.attachment.owner));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Gives everything back after `error`, and returns it with what could not be given back.
    pub(super) fn take_back(mut self, env: &Environment, config: &Config, error: CniError) -> CniError {
        let error = match self.allocator.cancel(&self.attachment.owner, self.grant.generation) {
            Ok(()) => error,
            Err(cancel) => also(error, &format!("the addresses stay reserved until DEL: {cancel}")),
        };
        released(error, self.delegate.as_ref(), env, config)
    }
}

fn released(error: CniError, delegate: Option<&Delegate>, env: &Environment, config: &Config) -> CniError {
    match delegate.map(|delegate| delegate.call(Verb::Del, env, &config.stdin)) {
        Some(Err(failed)) => {
            also(error, &format!("the IPAM plugin did not take its addresses back: {failed}"))
        }
        _ => error,
    }
}

fn also(error: CniError, what: &str) -> CniError {
    let details =
        if error.details.is_empty() { what.to_owned() } else { format!("{}; {what}", error.details) };
    error.with_details(details)
}

fn delegated(delegate: &Delegate, env: &Environment, config: &Config) -> Result<Addressing, CniError> {
    // A failed ADD of another plugin is followed by a DEL, as a runtime would: it may have given something.
    let failed = |error| released(error, Some(delegate), env, config);
    let result = delegate.add(env, &config.stdin).map_err(failed)?;
    if result.ips.is_empty() {
        return Err(failed(CniError::new(code::DELEGATE_FAILED, "the IPAM plugin returned no address")));
    }
    Ok(of_result(&result))
}

/// The addresses, routes and name servers of a result.
pub(super) fn of_result(result: &CniResult) -> Addressing {
    Addressing {
        addresses: pod_addresses(&result.ips),
        routes: result.routes.clone(),
        dns: result.dns.clone(),
    }
}

/// A result's addresses, as an attachment has them.
pub(super) fn pod_addresses<'r>(ips: impl IntoIterator<Item = &'r IpConfig>) -> Vec<PodAddress> {
    ips.into_iter().map(|ip| PodAddress { address: ip.address, gateway: ip.gateway }).collect()
}
