//! `podwirectl explain`: reads what the explanation is made of.

use podwire_ipam::Dirs;
use podwire_kernel::neighbour::{FdbEntry, Neighbour};
use podwire_kernel::nft::{Element, Nft};
use podwire_kernel::route::{Lookup, Route};
use podwire_kernel::{Family, Netlink, legacy_iptables, sysctl};
use podwire_overlay::explain::{self, Kernel, Scene};
use podwire_overlay::ruleset::{Content, Ruleset};

use crate::cli;
use crate::node::{self, Known};
use crate::output::{Failure, Output, Verdict, note};

pub(crate) fn run(dirs: &Dirs, options: &cli::Explain, output: &Output) -> Result<Verdict, Failure> {
    let content = match (options.tcp, options.udp) {
        (Some(port), _) => Content::Tcp(port),
        (None, Some(port)) => Content::Udp(port),
        (None, None) => Content::Ping,
    };
    let known = Known::gather(dirs)?;
    let pods = node::pods(dirs)?;
    let pairs = explain::resolve(&options.from, &options.to, &pods)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let scene = scene(&known)?;
    if let Some(silence) = &known.silence {
        note(&format!("{silence}. What follows is what the kernel says, and what this node remembers"));
    }
    let mut kernel = Live(Netlink::open()?);
    let all: Vec<explain::Explanation> =
        pairs.iter().map(|(from, to)| explain::explain(&scene, &mut kernel, from, to, content)).collect();
    if output.json {
        output.value(&all)?;
    } else {
        let texts: Vec<String> = all.iter().map(|one| explain::text(one, output.style)).collect();
        output.raw(&texts.join("\n"))?;
    }
    Ok(all.iter().all(|one| one.broken.is_none()).into())
}

/// What is read once.
pub(crate) fn scene(known: &Known) -> Result<Scene, Failure> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let bridges: Vec<&str> = links
        .iter()
        .filter(|link| link.kind.as_deref() == Some("bridge"))
        .filter(|bridge| links.iter().any(|link| link.controller == Some(bridge.index)))
        .map(|bridge| bridge.name.as_str())
        .collect();
    let mut legacy_drops = Vec::new();
    for family in [Family::V4, Family::V6] {
        for bridge in &bridges {
            // What cannot be read is told by `doctor`.
            if legacy_iptables::drops_forwarded(family, bridge).unwrap_or(false)
                && !legacy_drops.contains(&family)
            {
                legacy_drops.push(family);
            }
        }
    }
    Ok(Scene {
        addresses: netlink.addresses(None)?,
        ruleset: ruleset()?,
        legacy_drops,
        nodes: known.nodes(),
        ranges: known.ranges(),
        has_agent: known.status.is_some(),
        links,
    })
}

/// Sets with more elements than this are a service proxy's or a block list: what they say stays open.
const MOST_ELEMENTS: usize = 200_000;

/// The whole of the node's nftables.
pub(crate) fn ruleset() -> Result<Ruleset, Failure> {
    let mut nft = Nft::open()?;
    let mut ruleset = Ruleset { chains: nft.chains(None)?, ..Ruleset::default() };
    let mut elements_read = 0;
    for found in nft.tables()? {
        let family = found.object.family;
        let name = found.object.name;
        let table = podwire_kernel::nft::TableRef::new(family, &name);
        ruleset.rules.extend(nft.rules(table, None)?);
        for set in nft.sets(table)? {
            let elements: Vec<Element> = match nft.elements(table, &set.object.name) {
                Ok(elements) => elements,
                // It is gone, or keeps changing.
                Err(_) => continue,
            };
            elements_read += elements.len();
            if elements_read < MOST_ELEMENTS {
                ruleset.sets.push((set, elements));
            }
        }
    }
    Ok(ruleset)
}

/// The kernel, as it is now.
pub(crate) struct Live(pub(crate) Netlink);

impl Kernel for Live {
    fn route_to(&mut self, lookup: &Lookup) -> Result<Option<Route>, String> {
        self.0.route_to(lookup).map_err(|error| error.to_string())
    }

    fn neighbours(&mut self, ifindex: u32) -> Result<Vec<Neighbour>, String> {
        self.0.neighbours(ifindex).map_err(|error| error.to_string())
    }

    fn fdb(&mut self, ifindex: u32) -> Result<Vec<FdbEntry>, String> {
        self.0.fdb(ifindex).map_err(|error| error.to_string())
    }

    fn sysctl(&mut self, name: &str) -> Result<String, String> {
        sysctl::read(name).map_err(|error| error.to_string())
    }
}
