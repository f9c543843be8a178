//! Moving a node from flannel while its pods run, and back. PURE, like all below it: what is done is decided here, from
//! what was found.
//!
//! ```text
//! adopt ─▶ take over (agent) ─▶ take in pods ─▶ set conflists aside ─▶ take in the last ─▶ remove flannel's routes
//! ```
//! Each step can be made again, and looks at what is there to tell whether it still has to be: a migration that was
//! interrupted is begun again and goes on where it was.

pub mod back;
pub mod files;
pub mod kept_away;
mod obstacles;
pub mod pods;
pub mod routes;
#[cfg(test)]
mod tests;
pub mod text;

use std::path::PathBuf;

use ipnetwork::IpNetwork;
use podwire_kernel::addr::Address;
use podwire_kernel::link::Link;
use podwire_kernel::route::Route;
use serde::Serialize;

use crate::adoption::{AdoptedDevice, Adoption, Before, SetAside, VERSION};
use crate::cluster::IpFamily;
use crate::config::Network;
use crate::status::Status;
use files::{Conflist, SubnetEnv};

/// Whose the network was.
pub const FROM: &str = "flannel";

/// Where there is no configuration of flannel's: what its own manifest says.
const USUAL_LEASES: &str = "/var/lib/cni/networks/cbr0";
const USUAL_NETWORK: &str = "cbr0";
const USUAL_BRIDGE: &str = "cni0";

/// Everything that is looked at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// This program's version.
    pub version: String,
    /// Where the agent keeps what outlives a reboot.
    pub state_dir: PathBuf,
    /// The node's links.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// The main table's routes of both families.
    pub routes: Vec<Route>,
    /// What flannel says of the node.
    pub subnet_env: Option<SubnetEnv>,
    /// flannel's configurations that are in place.
    pub conflists: Vec<Conflist>,
    /// flannel's chains and tables in the packet filter.
    pub chains: Vec<Chain>,
    /// How many chains of host ports the plugin portmap has, which pods of before have by it.
    pub host_ports: usize,
    /// Whether there are tables of legacy iptables, whose chains are not read.
    pub has_legacy: bool,
    /// Pods that host-local knows and podwire's store does not.
    pub pods_to_take_in: usize,
    /// What the agent says.
    pub agent: Status,
    /// The agent's network; `None` if its configuration is not known.
    pub network: Option<Network>,
    /// Whether the agent makes flannel's nodes peers; `None` where its store knows nothing of flannel.
    pub flannel_peers: Option<bool>,
    /// Whether flannel's program is kept away.
    pub kept_away: KeptAway,
    /// What was adopted before.
    pub adoption: Option<Adoption>,
}

/// Whether flannel's program is kept away from this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KeptAway {
    /// As the API server says.
    Yes,
    /// The administrator says so.
    Said,
    /// It is not: what of it is here.
    No(Vec<String>),
    /// It is not known, and why.
    #[default]
    Unasked,
    /// The API server did not say.
    Unknown(String),
}

/// A chain or table of flannel's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The table's family, as nft writes it: `ip`, `ip6`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain; `None`: the whole table is flannel's.
    pub chain: Option<String>,
}

/// What is to be done, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Plan<A> {
    /// What was found, a line for each.
    pub found: Vec<String>,
    /// Why nothing is done; empty if it can be.
    pub refused: Vec<String>,
    /// What an administrator should know.
    pub notes: Vec<String>,
    /// The steps, in their order.
    pub steps: Vec<Step<A>>,
    /// Commands for what is left to an administrator.
    pub commands: Vec<String>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Step<A> {
    /// Which.
    #[serde(skip)]
    pub action: A,
    /// What is done.
    pub what: String,
    /// What for.
    pub why: String,
    /// Whether it is done already.
    pub is_done: bool,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write this to the disk.
    Adopt(Box<Adoption>),
    /// Have the agent read it, and wait until it works by it.
    TakeOver,
    /// Take the pods of before into podwire's store.
    TakeIn,
    /// Rename a configuration.
    SetAside(SetAside),
    /// Take in pods that began while the configurations changed, and remember that all are in.
    TakeInLast,
    /// Remove flannel's routes that podwire has its own beside.
    RemoveRoutes,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            refused: Vec::new(),
            notes: Vec::new(),
            steps: Vec::new(),
            commands: Vec::new(),
        }
    }
}

impl<A> Plan<A> {
    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        self.refused.is_empty() && self.steps.iter().all(|step| step.is_done)
    }
}

impl Plan<Action> {
    /// What is to be done on a node.
    pub fn new(facts: &Facts) -> Self {
        let mut plan = Self { commands: commands(&facts.chains), ..Self::default() };
        let wanted = facts.wanted();
        plan.describe(facts, &wanted);
        plan.refused = facts.refusals(&wanted);
        if plan.refused.is_empty() {
            plan.steps = steps(facts, wanted);
        }
        plan
    }

    fn describe(&mut self, facts: &Facts, wanted: &Adoption) {
        for device in &wanted.devices {
            let AdoptedDevice { name, vni, port, mac, .. } = device;
            self.found.push(format!("device {name}: VNI {vni}, port {port}, {mac}"));
        }
        if let Some(bridge) = &wanted.bridge {
            let addresses: Vec<String> =
                facts.addresses_of(bridge).map(|address| address.address.to_string()).collect();
            let ports = facts.ports_of(bridge);
            self.found.push(format!("bridge {bridge}: {}, {ports} ports", addresses.join(" ")));
        }
        let foreign = facts.foreign(wanted);
        let count = foreign.obsolete.len() + foreign.orphaned.len();
        if count > 0 {
            self.found.push(format!("{count} routes of flannel's to other nodes"));
        }
        self.found.extend(facts.conflists.iter().map(|conflist| {
            format!("configuration {} of network {}", conflist.path.display(), conflist.network)
        }));
        if facts.pods_to_take_in > 0 {
            self.found.push(format!(
                "{} pods' interfaces in {}",
                facts.pods_to_take_in,
                wanted.before.leases.display()
            ));
        }
        self.tell_orphans(facts, wanted, &foreign.orphaned);
        if !facts.chains.is_empty() {
            self.notes.push(
                "flannel's rules in the packet filter stay; podwire needs none of them, and the commands below remove them"
                    .to_owned(),
            );
        }
        if facts.has_legacy && facts.chains.is_empty() {
            self.notes.push(
                "flannel's rules may be in legacy iptables, which is not looked through: iptables-legacy-save | grep FLANNEL"
                    .to_owned(),
            );
        }
        if facts.host_ports > 0 {
            self.notes.push(format!(
                "{} host ports are by plugin portmap (chains CNI-DN-…), which containerd does not call when these pods end \
                 after the move: delete these pods before it or soon after, then the chains that are left",
                facts.host_ports
            ));
        }
        if let Some(env) = &facts.subnet_env {
            let ranges = facts.ranges();
            for network in env.networks.iter().filter(|network| !ranges.contains(network)) {
                self.notes.push(format!(
                    "flannel's network {network} is not among podwire's ranges: pods outside of them are not reached; see \
                     cluster.range"
                ));
            }
        }
    }

    /// Once podwire has its routes: whoever they lead to is no node of the cluster.
    fn tell_orphans(&mut self, facts: &Facts, wanted: &Adoption, orphans: &[Route]) {
        if facts.agent.adopted.is_empty() || facts.adoption.as_ref() != Some(wanted) {
            return;
        }
        for route in orphans {
            self.notes.push(format!(
                "flannel's route to {} leads to no node that podwire knows, and stays",
                route.destination
            ));
            let hop = route.nexthops.first().copied().unwrap_or_default();
            let link = facts.links.iter().find(|link| Some(link.index) == hop.oif);
            let device = link.map(|link| format!(" dev {}", link.name)).unwrap_or_default();
            self.commands.push(format!(
                "ip route del {}{device} metric {}",
                route.destination,
                route.priority.unwrap_or(0)
            ));
        }
    }
}

fn steps(facts: &Facts, wanted: Adoption) -> Vec<Step<Action>> {
    let names: Vec<String> =
        wanted.devices.iter().map(|device| device.name.clone()).chain(wanted.bridge.clone()).collect();
    let all = names.join(", ");
    let has_adopted = facts.adoption.as_ref() == Some(&wanted);
    let has_taken_over = has_adopted && facts.agent.ready && facts.agent.adopted == names;
    let has_taken_in = wanted.before.taken_in && facts.conflists.is_empty();
    let mut steps = vec![
        Step {
            what: format!("write {}: {all} are podwire's", Adoption::path(&facts.state_dir).display()),
            why: "the kernel has one device for each VNI and port, and pods keep their bridge; other nodes know the MAC \
                  address"
                .to_owned(),
            is_done: has_adopted,
            action: Action::Adopt(Box::new(wanted.clone())),
        },
        Step {
            what: "have podwired work with them, and wait until the node is ready".to_owned(),
            why: "from then on it mends them, and has routes of its own beside flannel's".to_owned(),
            is_done: has_taken_over,
            action: Action::TakeOver,
        },
        Step {
            what: format!("take the pods in {} into podwire's store", wanted.before.leases.display()),
            why: "new pods get no address that one of them has, and podwire's DEL frees theirs".to_owned(),
            is_done: has_taken_in || facts.pods_to_take_in == 0,
            action: Action::TakeIn,
        },
    ];
    for set_aside in &wanted.before.conflists {
        let is_in_place = facts.conflists.iter().any(|conflist| conflist.path == set_aside.path);
        steps.push(Step {
            what: format!("rename {} to {}", set_aside.path.display(), set_aside.aside.display()),
            why: "runtimes make new pods by podwire's configuration instead".to_owned(),
            is_done: !is_in_place,
            action: Action::SetAside(set_aside.clone()),
        });
    }
    let routes = facts.foreign(&wanted);
    steps.push(Step {
        what: "take in pods that began meanwhile".to_owned(),
        why: "a runtime may have been making one by flannel's configuration".to_owned(),
        is_done: has_taken_in,
        action: Action::TakeInLast,
    });
    steps.push(Step {
        what: "remove flannel's routes to other nodes where podwire has its own".to_owned(),
        why: "those of IPv4 have no metric and win, and nobody would change them any more".to_owned(),
        is_done: has_taken_over && routes.obsolete.is_empty(),
        action: Action::RemoveRoutes,
    });
    steps
}

impl Facts {
    /// What is to be adopted, or has been. What has been stays so: a device that is away for the moment is podwire's to
    /// make again.
    pub fn wanted(&self) -> Adoption {
        let before = self.before();
        if let Some(adoption) = &self.adoption {
            return Adoption { before, ..adoption.clone() };
        }
        let bridge = self.conflists.first().map_or(USUAL_BRIDGE, |conflist| conflist.bridge.as_str());
        let is_bridge = |link: &&Link| link.name == bridge && link.kind.as_deref() == Some("bridge");
        Adoption {
            version: VERSION,
            from: FROM.to_owned(),
            devices: self.links.iter().filter_map(flannel_device).collect(),
            bridge: self.links.iter().find(is_bridge).map(|link| link.name.clone()),
            before,
        }
    }

    fn before(&self) -> Before {
        let known = self.adoption.as_ref().map(|adoption| adoption.before.clone());
        let is_known = known.is_some();
        let mut before = known.unwrap_or_default();
        if !is_known {
            let first = self.conflists.first();
            before.network = first.map_or(USUAL_NETWORK, |first| first.network.as_str()).to_owned();
            before.leases = first.map_or_else(|| USUAL_LEASES.into(), |first| first.leases.clone());
        }
        if let Some(network) = &self.network {
            before.own_network.clone_from(&network.name);
            before.own_conflist.clone_from(&network.conflist);
        }
        // One that has come back, with a pod of flannel's that ran here for a moment.
        for conflist in &self.conflists {
            if before.conflists.iter().all(|known| known.path != conflist.path) {
                before.conflists.push(SetAside { path: conflist.path.clone(), aside: conflist.aside() });
            }
        }
        before
    }

    /// Where pods of the cluster are.
    pub fn ranges(&self) -> Vec<IpNetwork> {
        let ranges = self.agent.config.iter().flat_map(|config| &config.ranges);
        ranges.map(|range| range.range).collect()
    }

    /// See [`routes::foreign`].
    pub fn foreign(&self, wanted: &Adoption) -> routes::Foreign {
        routes::foreign(&self.routes, &indexes(&self.links, wanted), &self.ranges())
    }

    /// Without those of the link alone.
    fn addresses_of(&self, link: &str) -> impl Iterator<Item = &Address> {
        let index = self.links.iter().find(|found| found.name == link).map(|found| found.index);
        self.addresses.iter().filter(move |address| Some(address.ifindex) == index && address.scope == 0)
    }

    fn ports_of(&self, bridge: &str) -> usize {
        let index = self.links.iter().find(|found| found.name == bridge).map(|found| found.index);
        self.links.iter().filter(|link| index.is_some() && link.controller == index).count()
    }
}

/// The indexes of adopted devices.
pub fn indexes(links: &[Link], adoption: &Adoption) -> Vec<u32> {
    let is_adopted = |link: &&Link| adoption.devices.iter().any(|device| device.name == link.name);
    links.iter().filter(is_adopted).map(|link| link.index).collect()
}

/// The device of flannel's that a link is: `flannel.<VNI>` over IPv4, `flannel-v6.<VNI>` over IPv6.
fn flannel_device(link: &Link) -> Option<AdoptedDevice> {
    let vxlan = link.vxlan.as_ref()?;
    let (family, vni) = match link.name.split_once('.')? {
        ("flannel", vni) => (IpFamily::Ipv4, vni),
        ("flannel-v6", vni) => (IpFamily::Ipv6, vni),
        _ => return None,
    };
    let is_its = vni.parse() == Ok(vxlan.vni);
    let (vni, port, name) = (vxlan.vni, vxlan.port, link.name.clone());
    is_its.then_some(AdoptedDevice { family, vni, port, name, mac: link.mac? })
}

/// What removes flannel's rules: from the chains that lead to its own, then its own.
fn commands(chains: &[Chain]) -> Vec<String> {
    let mut commands = Vec::new();
    for Chain { family, table, chain } in chains {
        let Some(chain) = chain else {
            commands.push(format!("nft delete table {family} {table}"));
            continue;
        };
        let program = if family == "ip6" { "ip6tables" } else { "iptables" };
        let (from, comment) = match chain.as_str() {
            "FLANNEL-POSTRTG" => ("POSTROUTING", "flanneld masq"),
            "FLANNEL-FWD" => ("FORWARD", "flanneld forward"),
            _ => continue,
        };
        commands
            .push(format!("{program} -t {table} -D {from} -m comment --comment \"{comment}\" -j {chain}"));
        commands.push(format!("{program} -t {table} -F {chain}"));
        commands.push(format!("{program} -t {table} -X {chain}"));
    }
    commands
}
