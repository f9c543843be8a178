//! ADD: addresses, durably; then the interface; then the answer. What fails is taken back.

use podwire_attach::drift::drift;
use podwire_attach::plan::{Wanted, host_mac};
use podwire_attach::removal::{self, Found};
use podwire_attach::{Attached, Attachment, Places, attach, observe_attachment};
use podwire_kernel::Netlink;
use podwire_kernel::link;

use super::addresses::Reservation;
use super::node::{self, BridgeUse};
use super::wanted::{NodeFacts, complete, result, wanted};
use crate::Environment;
use crate::config::Config;
use crate::failure;
use crate::protocol::{CniError, code};

/// Attaches a pod; the answer is the result as JSON.
///
/// # Errors
/// Nothing is left of an attachment that failed. docs/errors.md has the codes.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<String, CniError> {
    let config = Config::parse(stdin, env)?;
    let netns = node::open_netns(env)?;
    let mut host = Netlink::open().map_err(failure::kernel)?;
    let node = node::facts(&config)?;
    let attachment = attachment(env, &config);
    // Before the store's lock: who waits for one of the two never holds the other way round.
    let bridge_use = BridgeUse::shared(&config.run_dir)?;
    let mut reservation = Reservation::make(env, &config, &attachment, &node)?;
    let mut places = Places { host: &mut host, pod: &netns };
    let link = attachment.owner.link_name();
    let plumbed = plumb(&mut places, &config, attachment, &reservation, &node, &bridge_use);
    let kept = plumbed.and_then(|answer| match reservation.keep() {
        Ok(()) => Ok(answer),
        // A DEL or GC came between: the lease is gone, so the interface must go too.
        Err(error) => match places.host.apply(&[link::delete_named(&link)]) {
            Err(left) if !left.is_missing() => Err(error.with_details(left.to_string())),
            _ => Err(error),
        },
    });
    kept.map_err(|error| reservation.take_back(env, &config, error))
}

fn attachment(env: &Environment, config: &Config) -> Attachment {
    let owner = env.owner(&config.network.name);
    Attachment {
        addresses: Vec::new(),
        mac: config.mac,
        link: Some(owner.link_name()),
        bridge: Some(config.bridge.name.clone()),
        netns: env.netns.clone().unwrap_or_default(),
        // The host link says whether the pod lives.
        netns_identity: None,
        pod: env.args.pod.clone(),
        runtime: node::runtime(),
        owner,
    }
}

fn plumb(
    places: &mut Places<'_>,
    config: &Config,
    attachment: Attachment,
    reservation: &Reservation,
    node: &NodeFacts,
    bridge_use: &BridgeUse,
) -> Result<String, CniError> {
    let addressing = complete(config, reservation.addressing());
    let wanted = wanted(config, attachment, &addressing, node);
    let answer = |attached: &Attached| result(&wanted, attached, &addressing).to_json(config.network.version);
    // A result that this version cannot express must not leave an interface behind.
    answer(&expected(&wanted))?;
    if let Some(attached) = earlier(places, &wanted)? {
        return answer(&attached);
    }
    answer(&attach(places, &wanted, &|| bridge_use.is_alone()).map_err(failure::attach)?)
}

/// What an intact attachment of these wants has, as far as they say.
fn expected(wanted: &Wanted) -> Attached {
    Attached {
        bridge_mac: Some(wanted.bridge.mac),
        host_mac: Some(host_mac(&wanted.attachment.owner)),
        pod_mac: wanted.mac,
        mtu: wanted.mtu.unwrap_or(0),
    }
}

/// This owner's interface, if an earlier ADD made it in this very netns and nothing of it is missing: then that
/// ADD's answer is the answer. Whatever else is left of an earlier ADD is removed, to be made anew.
fn earlier(places: &mut Places<'_>, wanted: &Wanted) -> Result<Option<Attached>, CniError> {
    let owner = &wanted.attachment.owner;
    let host_link = match removal::find(places.host, owner).map_err(failure::kernel)? {
        Found::Missing => return Ok(None),
        Found::Ours(link) => link,
        Found::Foreign(link) => {
            let name = link.name;
            let text =
                format!("host link {name} exists and is not podwire's; remove it with `ip link del {name}`");
            return Err(CniError::new(code::LINK_TAKEN, text));
        }
    };
    let observed = observe_attachment(places.host, Some(places.pod), wanted).map_err(failure::kernel)?;
    let differences = drift(wanted, &observed);
    match (observed.pod, differences.as_slice()) {
        (Some(pod), []) => Ok(Some(Attached {
            bridge_mac: observed.bridge.and_then(|bridge| bridge.mac),
            host_mac: host_link.mac,
            pod_mac: pod.mac.unwrap_or(wanted.mac),
            mtu: pod.mtu,
        })),
        _ => match places.host.apply(&[link::delete(host_link.index, &host_link.name)]) {
            Err(error) if !error.is_missing() => Err(failure::kernel(error)),
            _ => Ok(None),
        },
    }
}
