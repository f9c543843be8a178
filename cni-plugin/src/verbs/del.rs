//! DEL: succeeds on whatever is gone already, and needs nothing but network, container and interface name.

use std::thread;
use std::time::Duration;

use podwire_attach::removal::{self, Found};
use podwire_attach::step::step;
use podwire_attach::{Owner, Role, rules};
use podwire_ipam::{Allocator, Deletion, Ends, Lease, Origin};
use podwire_kernel::link::{self, LinkRef};
use podwire_kernel::nft::Nft;
use podwire_kernel::{Netlink, Netns};

use super::addresses;
use crate::config::{Config, Ipam};
use crate::protocol::CniError;
use crate::{Delegate, Environment, Verb, failure};

/// Detaches a pod.
///
/// # Errors
/// Something is left, and the runtime should call again. All that can be removed has been.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<(), CniError> {
    let config = Config::parse(stdin, env)?;
    config.ignored.iter().for_each(|ignored| super::say(ignored));
    let owner = env.owner(&config.network.name);
    interface(env, &config, &owner)?;
    // After the interface: an address is free only when nobody answers to it any more.
    if let Ipam::Delegated { plugin } = &config.ipam {
        Delegate::find(plugin, &env.path)?.call(Verb::Del, env, &config.stdin)?;
    }
    Ok(())
}

fn interface(env: &Environment, config: &Config, owner: &Owner) -> Result<(), CniError> {
    thread::scope(|scope| {
        let mut removal = None;
        // Without the agent the kernel's 30 ms and the opening of the store pass side by side: as long as this
        // process has the store's lock nobody repairs what is being removed.
        let allocator = Allocator::connect_meanwhile(&addresses::dirs(config), || {
            removal = Some(scope.spawn(|| remove_link(owner)));
        });
        let mut allocator = allocator.map_err(failure::ipam)?;
        // An unreadable directory must not keep a pod from being removed; its addresses stay taken.
        if let Err(error) = addresses::import(config, &mut allocator) {
            super::say(&error.to_string());
        }
        let deletion = allocator.delete(owner, Ends::Interface).map_err(failure::ipam)?;
        allocator.notices().iter().for_each(|notice| super::say(notice));
        let leases = match deletion {
            Deletion::Done(_) => return Ok(()),
            Deletion::Remove(leases) => leases,
        };
        if leases.iter().any(|lease| lease.origin == Origin::HostLocal) {
            remove_in_pod(env)?;
        }
        // The agent had the call and is gone: then nothing has been started.
        let removal = removal.unwrap_or_else(|| scope.spawn(|| remove_link(owner)));
        // Still under the store's lock: what a port's next owner puts in comes after this.
        remove_traffic(owner, &leases)?;
        if is_gone(owner)? {
            for lease in &leases {
                allocator.finish_delete(lease).map_err(failure::ipam)?;
            }
        }
        // The lease says `deleting` at least, and whoever opens the store next sees that the link is gone. So others
        // need not wait for the store until the kernel is done.
        drop(allocator);
        removal.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The node's rules and queues for the pod, and what connections remember of its ports.
fn remove_traffic(owner: &Owner, leases: &[Lease]) -> Result<(), CniError> {
    for lease in leases {
        podwire_ipam::remove_traffic(lease).map_err(failure::ipam)?;
    }
    if leases.is_empty() {
        // Usually a DEL without an ADD; but the store may have been lost, and rules name their owner.
        let mut nft = Nft::open().map_err(failure::kernel)?;
        for role in [Role::Main, Role::Chained] {
            rules::remove(&mut nft, owner.with_role(role).id(), None).map_err(failure::rules)?;
        }
    }
    Ok(())
}

/// Whether the interface is gone, as it is within a millisecond of the request that removes it; the request itself takes
/// the kernel much longer.
fn is_gone(owner: &Owner) -> Result<bool, CniError> {
    const LOOKS: u32 = 10;
    const PAUSE: Duration = Duration::from_micros(500);
    let mut host = Netlink::open().map_err(failure::kernel)?;
    for _ in 0..LOOKS {
        let found = removal::find(&mut host, owner).map_err(failure::kernel)?;
        if !matches!(found, Found::Ours(_)) {
            return Ok(true);
        }
        #[expect(clippy::disallowed_methods, reason = "another thread's request; polled, bounded")]
        thread::sleep(PAUSE);
    }
    Ok(false)
}

fn remove_link(owner: &Owner) -> Result<(), CniError> {
    let mut host = Netlink::open().map_err(failure::kernel)?;
    step("delete-link");
    match removal::remove(&mut host, owner.id()) {
        // What stands there under our name is not ours: nothing of this owner's is left.
        Err(error) if error.is_exists() => Ok(()),
        removed => removed.map_err(failure::kernel),
    }
}

/// The interface of an imported lease was made by the bridge plugin; its host end's name is not known, so it is
/// removed from inside, as that plugin would.
fn remove_in_pod(env: &Environment) -> Result<(), CniError> {
    let Some(path) = env.netns.as_deref().filter(|path| !path.is_empty()) else { return Ok(()) };
    // A netns that is gone took the interface with it; a path that is none (a plain file) is no pod either.
    let Ok(netns) = Netns::open(path) else { return Ok(()) };
    let own = Netns::current()
        .map_err(|error| CniError::from_cause(crate::protocol::code::INVALID_NETNS, &error))?;
    if netns.same_as(&own) {
        return Ok(());
    }
    let removed = netns.run(|| {
        let mut pod = Netlink::open()?;
        match pod.link(LinkRef::Name(&env.ifname))? {
            Some(found) => pod.apply(&[link::delete(found.index, &found.name)]),
            None => Ok(()),
        }
    });
    match removed.and_then(|removed| removed) {
        Err(error) if !error.is_missing() => Err(failure::kernel(error)),
        _ => Ok(()),
    }
}
