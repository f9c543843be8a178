//! Table `inet podwire-node`: who may send VXLAN to this node, and no connection tracking for it.
//!
//! VXLAN knows no sender: whoever can send a UDP packet to the port can put a frame into the pods' network,
//! so packets for the port are taken from the cluster's nodes alone, and
//! pods, whose packets this node would masquerade as its own, can neither send any to it nor to other nodes.
//!
//! ```text
//! prerouting (raw)  udp, to one of our ports ─▶ from-nodes:  by no pods' link, from a node? not tracked
//!                                                            else, to this node? dropped
//! output (raw)      udp, to one of our ports ─▶ not tracked
//! forward           udp, to one of our ports ─▶ to-nodes:    to a node, and not from one? dropped
//! ```
//! Each flow between pods has another outer source port, so without `notrack` each is another tracked connection.
//! Whether a packet is for this node is asked last, because that is a look into the routes: what nodes send to each other by
//! way of this one is not tracked either.
//!
//! The chains never change; ports, nodes and links are elements of sets. If a chain or a set is not as it should be,
//! the table is made anew in one transaction, which no packet sees half done; else elements alone are put in and out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podwire_attach::rules::matches::{
    End, KEY, UDP, accept, drop, is_family, load_address, load_destination_port, octets,
};
use podwire_kernel::nft::{
    self, Base, Batch, Chain, ChainKind, DataType, Element, Expr, FIB_DESTINATION, FIB_LOCAL, FibResult,
    Hook, MetaKey, Nft, Place, Policy, Rule, Set, TableContent, TableRef, Verdict, ifname,
};
use podwire_kernel::{Error, Family};

/// The table.
pub const TABLE: TableRef<'static> = TableRef::new(nft::Family::Inet, "podwire-node");

/// Stands in the table's comment, and changes with what this file makes.
const VERSION: u32 = 2;

const PORTS: &str = "ports";
const PEERS4: &str = "peers4";
const PEERS6: &str = "peers6";
const INSIDE: &str = "inside";
const FROM_NODES: &str = "from-nodes";
const FROM_PODS: &str = "from-pods";
const TO_NODES: &str = "to-nodes";

/// How often a transaction is tried while others change the tables.
const ATTEMPTS: u32 = 50;

/// What the table depends on. PURE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The UDP ports that VTEPs of this node receive on.
    pub ports: BTreeSet<u16>,
    /// The other nodes' own addresses.
    pub peers: BTreeSet<IpAddr>,
    /// Links that pods' packets come by: the bridge, and the VXLAN devices themselves.
    pub inside: BTreeSet<String>,
}

/// What was done to the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilterChange {
    /// It was missing, damaged or another version's, and was made anew.
    pub replaced: bool,
    /// Elements put in.
    pub added: usize,
    /// Elements taken out.
    pub removed: usize,
}

impl FilterChange {
    /// As a number of operations.
    pub fn operations(self) -> usize {
        usize::from(self.replaced) + self.added + self.removed
    }
}

/// Keeps the table.
#[derive(Debug, Default)]
pub struct FilterKeeper {
    nft: Option<Nft>,
    /// At which generation of the ruleset the table was found to be as it should be. The number changes with every
    /// change by anybody, so that as long as it is the same the table need not be read.
    right: Option<(u32, Filter)>,
}

impl FilterKeeper {
    /// Makes the table what it should be; without `deletes` nodes that are not wished for stay in.
    ///
    /// # Errors
    /// The kernel refuses, or others kept changing the tables.
    pub fn hold(&mut self, wanted: &Filter, deletes: bool) -> Result<FilterChange, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.with_nft(|nft, right| hold_once(nft, right, wanted, deletes)) {
                Err(error) if attempt < ATTEMPTS && (error.is_changed() || error.is_busy()) => {}
                result => return result,
            }
        }
    }

    /// Puts nodes in and out without a look.
    ///
    /// # Errors
    /// As [`FilterKeeper::hold`]; that the table, or a node to be taken out, is not there.
    pub fn change(&mut self, add: &[IpAddr], remove: &[IpAddr]) -> Result<FilterChange, Error> {
        if add.is_empty() && remove.is_empty() {
            return Ok(FilterChange::default());
        }
        let mut batch = Batch::new();
        for (set, is_of) in [(PEERS4, IpAddr::is_ipv4 as fn(&IpAddr) -> bool), (PEERS6, IpAddr::is_ipv6)] {
            let elements = |addresses: &[IpAddr]| -> Vec<Element> {
                addresses.iter().filter(|ip| is_of(ip)).map(|ip| Element::new(octets(*ip))).collect()
            };
            batch.ensure_elements(TABLE, set, &elements(add));
            batch.delete_elements(TABLE, set, &elements(remove));
        }
        self.with_nft(|nft, right| {
            *right = None;
            nft.commit(&batch)
        })?;
        Ok(FilterChange { replaced: false, added: add.len(), removed: remove.len() })
    }

    /// Removes the table. Says whether it was there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self) -> Result<bool, Error> {
        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        let removed = self.with_nft(|nft, right| {
            *right = None;
            if nft.table(TABLE)?.is_none() {
                return Ok(false);
            }
            nft.commit(&batch).map(|()| true)
        });
        match removed {
            Err(error) if error.is_missing() => Ok(false),
            removed => removed,
        }
    }

    fn with_nft<T>(
        &mut self,
        work: impl FnOnce(&mut Nft, &mut Option<(u32, Filter)>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let nft = match &mut self.nft {
            Some(nft) => nft,
            none => none.insert(Nft::open()?),
        };
        let result = work(nft, &mut self.right);
        if result.is_err() {
            // A socket that has failed in the middle of an answer is not read on.
            self.nft = None;
            self.right = None;
        }
        result
    }
}

fn hold_once(
    nft: &mut Nft,
    right: &mut Option<(u32, Filter)>,
    wanted: &Filter,
    deletes: bool,
) -> Result<FilterChange, Error> {
    let generation = nft.generation()?.id;
    if right.as_ref().is_some_and(|(at, held)| *at == generation && held == wanted) {
        return Ok(FilterChange::default());
    }
    *right = None;
    let found = nft.content(TABLE, true)?;
    let mut batch = Batch::new();
    batch.only_at(generation);
    let change = mend(&mut batch, wanted, found.as_ref(), deletes);
    if batch.is_empty() {
        *right = Some((generation, wanted.clone()));
    } else {
        nft.commit(&batch)?;
    }
    Ok(change)
}

/// From what is found to what is wanted, as one transaction. PURE.
fn mend(batch: &mut Batch, wanted: &Filter, found: Option<&TableContent>, deletes: bool) -> FilterChange {
    let intact = found.filter(|found| is_intact(found));
    let mut change = FilterChange { replaced: intact.is_none(), ..FilterChange::default() };
    if intact.is_none() {
        if found.is_some() {
            batch.delete_table(TABLE);
        }
        make(batch);
    }
    let none = TableContent::default();
    let found = found.unwrap_or(&none);
    for (set, keys) in elements(wanted) {
        let present: BTreeSet<&[u8]> = found.elements_of(set).iter().map(|e| e.key.as_slice()).collect();
        let outdated: Vec<&[u8]> = match deletes {
            true => present.iter().copied().filter(|key| !keys.contains(*key)).collect(),
            false => Vec::new(),
        };
        let lacking: Vec<&[u8]> =
            keys.iter().map(Vec::as_slice).filter(|key| !present.contains(key)).collect();
        change.added += lacking.len();
        change.removed += outdated.len();
        let of = |keys: &[&[u8]]| -> Vec<Element> { keys.iter().map(|key| Element::new(*key)).collect() };
        if intact.is_some() {
            batch.delete_elements(TABLE, set, &of(&outdated));
            batch.create_elements(TABLE, set, &of(&lacking));
        } else {
            // What is not to be removed yet goes into the new table, if it can be told what it is.
            let length = key_length(set);
            let kept = present.iter().copied().filter(|key| !deletes && key.len() == length);
            let all: BTreeSet<&[u8]> = keys.iter().map(Vec::as_slice).chain(kept).collect();
            batch.create_elements(TABLE, set, &of(&all.into_iter().collect::<Vec<_>>()));
        }
    }
    change
}

fn elements(wanted: &Filter) -> [(&'static str, BTreeSet<Vec<u8>>); 4] {
    let peers = |is_of: fn(&IpAddr) -> bool| {
        wanted.peers.iter().filter(|ip| is_of(ip)).map(|ip| octets(*ip)).collect::<BTreeSet<_>>()
    };
    [
        (PORTS, wanted.ports.iter().map(|port| port.to_be_bytes().to_vec()).collect()),
        (PEERS4, peers(IpAddr::is_ipv4)),
        (PEERS6, peers(IpAddr::is_ipv6)),
        (INSIDE, wanted.inside.iter().map(|name| ifname(name).to_vec()).collect()),
    ]
}

fn key_length(set: &str) -> usize {
    sets().iter().find(|found| found.name == set).map_or(0, |set| set.key.len() as usize)
}

fn is_intact(found: &TableContent) -> bool {
    let (sets, chains) = (sets(), chains());
    let same_set = |wanted: &Set| {
        found.sets.get(&wanted.name).is_some_and(|is| {
            is.key.len() == wanted.key.len() && is.data == wanted.data && is.interval == wanted.interval
        })
    };
    let same_chain = |(chain, rules): &(Chain, Vec<Rule>)| {
        found.chains.get(&chain.name).is_some_and(|(is, has)| is.base == chain.base && has == rules)
    };
    found.comment.as_deref() == Some(&comment())
        && found.sets.len() == sets.len()
        && found.chains.len() == chains.len()
        && sets.iter().all(same_set)
        && chains.iter().all(same_chain)
}

fn make(batch: &mut Batch) {
    batch.create_table(TABLE, Some(&comment()));
    for set in sets() {
        batch.create_set(TABLE, &set);
    }
    let chains = chains();
    for (chain, _) in &chains {
        batch.create_chain(TABLE, chain);
    }
    for (chain, rules) in &chains {
        for rule in rules {
            batch.add_rule(TABLE, &chain.name, Place::Last, rule);
        }
    }
}

fn comment() -> String {
    format!("podwire-node {VERSION}")
}

fn sets() -> [Set; 4] {
    let set = |name: &str, key| Set { name: name.to_owned(), key, ..Set::default() };
    [
        set(PORTS, DataType::INET_SERVICE),
        set(PEERS4, DataType::IPV4_ADDR),
        set(PEERS6, DataType::IPV6_ADDR),
        set(INSIDE, DataType::IFNAME),
    ]
}

/// Priorities of linux/netfilter_ipv4.h.
const RAW: i32 = -300;
const FILTER: i32 = 0;

fn chains() -> Vec<(Chain, Vec<Rule>)> {
    let base = |name: &str, hook, priority, rules| {
        let base = Base { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept, device: None };
        (Chain { name: name.to_owned(), base: Some(base), comment: None }, rules)
    };
    let plain = |name: &str, rules| (Chain { name: name.to_owned(), ..Chain::default() }, rules);
    vec![
        base(
            "prerouting",
            Hook::Prerouting,
            RAW,
            vec![Rule::new([to_our_ports(), vec![Expr::jump(FROM_NODES)]].concat())],
        ),
        plain(FROM_NODES, from_nodes()),
        plain(FROM_PODS, vec![dropped(to_this_node(), "pods send no VXLAN")]),
        base("output", Hook::Output, RAW, vec![Rule::new([to_our_ports(), vec![Expr::Notrack]].concat())]),
        base(
            "forward",
            Hook::Forward,
            FILTER,
            vec![Rule::new([to_our_ports(), vec![Expr::jump(TO_NODES)]].concat())],
        ),
        plain(TO_NODES, to_nodes()),
    ]
}

/// `meta l4proto udp th dport @ports`
fn to_our_ports() -> Vec<Expr> {
    vec![
        Expr::meta(MetaKey::L4proto, KEY),
        Expr::eq(KEY, [UDP]),
        load_destination_port(KEY),
        Expr::is_in(PORTS, KEY),
    ]
}

fn to_this_node() -> Vec<Expr> {
    let fib = Expr::Fib { flags: FIB_DESTINATION, result: FibResult::AddressType, to: KEY };
    vec![fib, Expr::eq(KEY, FIB_LOCAL.to_ne_bytes())]
}

fn by_pods_link() -> Vec<Expr> {
    vec![Expr::meta(MetaKey::Iifname, KEY), Expr::is_in(INSIDE, KEY)]
}

fn is_node(family: Family, end: End) -> Vec<Expr> {
    let set = match family {
        Family::V4 => PEERS4,
        Family::V6 => PEERS6,
    };
    let mut all = is_family(family).to_vec();
    all.extend([load_address(family, end, KEY), Expr::is_in(set, KEY)]);
    all
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn dropped(matches: Vec<Expr>, why: &str) -> Rule {
    Rule::new([matches, vec![Expr::Counter, drop()]].concat()).comment(why)
}

fn from_nodes() -> Vec<Rule> {
    let untracked =
        |family| Rule::new([is_node(family, End::Source), vec![Expr::Notrack, accept()]].concat());
    let from_pods = Expr::Verdict(Verdict::Goto(FROM_PODS.to_owned()));
    let mut rules = vec![Rule::new([by_pods_link(), vec![from_pods]].concat())];
    rules.extend(FAMILIES.map(untracked));
    rules.push(dropped(to_this_node(), "no node of the cluster"));
    rules
}

fn to_nodes() -> Vec<Rule> {
    let from_pods =
        |family| dropped([by_pods_link(), is_node(family, End::Destination)].concat(), "pods send no VXLAN");
    // Nodes behind this one, such as virtual machines of its own.
    let from_node = |family| Rule::new([is_node(family, End::Source), vec![accept()]].concat());
    let from_others = |family| dropped(is_node(family, End::Destination), "no node of the cluster");
    let rules = [FAMILIES.map(from_pods), FAMILIES.map(from_node), FAMILIES.map(from_others)];
    rules.into_iter().flatten().collect()
}
