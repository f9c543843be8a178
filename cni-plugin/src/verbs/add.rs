//! ADD: addresses, durably; then the interface; then the answer. What fails is taken back.

use podwire_attach::drift::drift;
use podwire_attach::plan::{Observed, Wanted, host_mac, link_alias};
use podwire_attach::removal::{self, Found};
use podwire_attach::{
    Attached, Attachment, Owner, Places, attach, can_filter_vlans, observe_attachment, observe_node, rules,
};
use podwire_kernel::nft::Nft;
use podwire_kernel::{Netlink, Netns};

use super::addresses::Reservation;
use super::node::{self, BridgeUse};
use super::wanted::{NodeFacts, complete, result, wanted};
use super::{chained, traffic, tuning};
use crate::Environment;
use crate::config::{Config, refuse_vlan};
use crate::failure;
use crate::protocol::{CniError, code};

/// Attaches a pod; the answer is the result as JSON.
///
/// # Errors
/// Nothing is left of an attachment that failed. docs/errors.md has the codes.
pub fn run(env: &Environment, stdin: &[u8]) -> Result<String, CniError> {
    let config = Config::parse(stdin, env)?;
    tuning::check_allowed(&config.tuning)?;
    let netns = node::open_netns(env)?;
    if let Some(previous) = &config.prev_result {
        return chained::add(env, &config, &netns, previous);
    }
    let facts = node::facts(&config)?;
    let attachment = attachment(env, &config);
    let owner = attachment.owner.clone();
    let (mut reservation, mut view) =
        Reservation::make(env, &config, &attachment, &facts, || View::of(&config, &netns, &owner))?;
    let plumbed = plumb(&mut view, &netns, &config, &reservation, &facts);
    let kept = plumbed.and_then(|answer| match reservation.keep() {
        Ok(()) => Ok(answer),
        // A DEL or GC came between: the lease is gone, so the interface must go too.
        Err(error) => Err(match remove(&mut view.host, &owner) {
            Err(left) => error.with_details(left.to_string()),
            Ok(()) => error,
        }),
    });
    kept.map_err(|error| reservation.take_back(env, &config, error))
}

/// The node and the pod as they are before anything is made; taken while the addresses are being recorded.
struct View {
    /// From before the first look at the bridge.
    bridge_use: BridgeUse,
    host: Netlink,
    inside: Netlink,
    earlier: Found,
    observed: Observed,
}

impl View {
    fn of(config: &Config, netns: &Netns, owner: &Owner) -> Result<Self, CniError> {
        let bridge_use = BridgeUse::shared(&config.run_dir)?;
        let mut host = Netlink::open().map_err(failure::kernel)?;
        let inside = netns.netlink().map_err(failure::kernel)?;
        let earlier = removal::find(&mut host, owner).map_err(failure::kernel)?;
        let observed = observe_node(&mut host, &config.bridge.name).map_err(failure::kernel)?;
        if let Some(vlan) = &config.bridge.vlan
            && !can_filter_vlans(&observed).map_err(failure::kernel)?
        {
            return Err(refuse_vlan(vlan));
        }
        Ok(Self { bridge_use, host, inside, earlier, observed })
    }
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
        // Both come with the reservation.
        given: Vec::new(),
        traffic: None,
        owner,
    }
}

fn plumb(
    view: &mut View,
    netns: &Netns,
    config: &Config,
    reservation: &Reservation,
    facts: &NodeFacts,
) -> Result<String, CniError> {
    let attachment = reservation.attachment();
    let ports = attachment.ports().to_vec();
    traffic::check_host_addresses(&mut view.host, &ports)?;
    let addressing = complete(config, reservation.addressing());
    let announce = reservation.is_news(config);
    let wanted = Wanted { announce, ..wanted(config, attachment, &addressing, facts) };
    let answer = |attached: &Attached| result(&wanted, attached, &addressing).to_json(config.network.version);
    // A result that this version cannot express must not leave an interface behind.
    answer(&expected(&wanted))?;
    if let Some(attached) = earlier(view, netns, &wanted)? {
        return answer(&attached);
    }
    let is_alive = |owner| reservation.is_alive(owner);
    let mut places =
        Places { host: &mut view.host, pod: netns, inside: &mut view.inside, is_alive: &is_alive };
    let alone = || view.bridge_use.is_alone();
    reservation.clear_taken_over()?;
    let hidden = traffic::hidden_listeners(&ports);
    let attached = attach(&mut places, &wanted, view.observed.clone(), &alone).map_err(failure::attach)?;
    hidden.iter().chain(&attached.notices).for_each(|notice| super::say(notice));
    answer(&attached)
}

/// What an intact attachment of these wants has, as far as they say.
fn expected(wanted: &Wanted) -> Attached {
    Attached {
        bridge_mac: Some(wanted.bridge.mac),
        host_mac: Some(host_mac(&wanted.attachment.owner)),
        pod_mac: wanted.mac,
        mtu: wanted.mtu.unwrap_or(0),
        notices: Vec::new(),
    }
}

/// This owner's interface, if an earlier ADD made it in this very netns and nothing of it is missing: then that
/// ADD's answer is the answer. Whatever else is left of an earlier ADD is removed, to be made anew.
fn earlier(view: &mut View, netns: &Netns, wanted: &Wanted) -> Result<Option<Attached>, CniError> {
    let host_link = match &view.earlier {
        Found::Missing => return Ok(None),
        Found::Ours(link) => link,
        Found::Foreign(link) => {
            let name = &link.name;
            let text =
                format!("host link {name} exists and is not podwire's; remove it with `ip link del {name}`");
            return Err(CniError::new(code::LINK_TAKEN, text));
        }
    };
    let observed = observe_attachment(&mut view.host, Some(netns), wanted).map_err(failure::kernel)?;
    let is_whole = drift(wanted, &observed).is_empty() && node::rules_drift(&wanted.attachment)?.is_empty();
    // An address more than is granted now shows in the alias alone, and must go: another pod may get it.
    let is_current = host_link.alias.as_deref() == Some(&link_alias(&wanted.attachment));
    match observed.pod {
        Some(pod) if is_whole && is_current => Ok(Some(Attached {
            bridge_mac: observed.bridge.and_then(|bridge| bridge.mac),
            host_mac: host_link.mac,
            pod_mac: pod.mac.unwrap_or(wanted.mac),
            mtu: pod.mtu,
            notices: Vec::new(),
        })),
        _ => remove(&mut view.host, &wanted.attachment.owner).map(|()| None),
    }
}

/// Removes an owner's interface and whatever rules name the owner: those of an earlier ADD may be others than this
/// one's.
fn remove(host: &mut Netlink, owner: &Owner) -> Result<(), CniError> {
    let mut nft = Nft::open().map_err(failure::kernel)?;
    rules::remove(&mut nft, owner.id(), None).map_err(failure::rules)?;
    removal::remove(host, owner.id()).map_err(failure::kernel)
}
