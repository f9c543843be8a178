//! The pool against a model of the node, under any interleaving of what runtimes, DELs, the agent and fate do.
//!
//! The model has what the pool never sees: the interfaces that exist and the addresses that they answer for. After
//! each step no two interfaces of a network share an address, and each interface's addresses are its owner's. Likewise
//! the packet filter's rules: no two leases ever claim one host port, and the rule of a port leads to the live owner.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_attach::{NetworkId, Owner, OwnerId, PortMapping, Protocol, Traffic};
use proptest::prelude::*;

use super::{attachment, set};
use crate::{
    BootMillis, Change, Hold, LeaseState, MISSING_MS, Observation, Pool, Range, RangeSet, Reserve, Sight,
    Sights, pod_address,
};

/// Few addresses and many owners, so that they meet.
const OWNERS: usize = 9;

#[derive(Debug, Clone)]
enum Step {
    /// ADD up to the reservation; a second one of an owner means that the first one's process is dead.
    Reserve {
        owner: usize,
        sets: usize,
        requested: Option<usize>,
        quarantine_s: u64,
        ports: usize,
    },
    /// ADD makes the interface, in place of the owner's earlier one.
    MakeInterface(usize),
    /// ADD ends well.
    Attached(usize),
    /// ADD fails, removes what it made, and gives the address back.
    Cancel(usize),
    /// The ADD is killed.
    Kill(usize),
    /// A reservation whose commit fails.
    FailedCommit(usize),
    /// DEL up to the record that it has begun.
    BeginDelete(usize),
    /// DEL removes the interface that it found.
    RemoveInterface(usize),
    /// DEL has removed the rules that it knew of when it began.
    RemoveRules(usize),
    FinishDelete(usize),
    /// The pod's netns goes away, and the interface with it.
    PodDies(usize),
    Sweep,
    /// A runtime's GC; it has forgotten the owners of the mask.
    Gc {
        network: usize,
        runtime: usize,
        forgotten: usize,
        dies: bool,
    },
    /// The allocator is killed and reads the store. Changes that were not flushed may be lost.
    Restart {
        lost: usize,
    },
    /// The store is lost, and rebuilt from the interfaces. What of them cannot be read is unknown.
    Rebuild {
        unreadable: usize,
    },
    Boot,
    Later(u64),
    ClockBack(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let owner = 0..OWNERS;
    prop_oneof![
        12 => (owner.clone(), 0..4_usize, prop::option::weighted(0.2, 0..16_usize), prop::sample::select(vec![0_u64, 10, 60]), 0..8_usize)
            .prop_map(|(owner, sets, requested, quarantine_s, ports)| Step::Reserve { owner, sets, requested, quarantine_s, ports }),
        10 => owner.clone().prop_map(Step::MakeInterface),
        6 => owner.clone().prop_map(Step::Attached),
        3 => owner.clone().prop_map(Step::Cancel),
        2 => owner.clone().prop_map(Step::Kill),
        1 => owner.clone().prop_map(Step::FailedCommit),
        6 => owner.clone().prop_map(Step::BeginDelete),
        5 => owner.clone().prop_map(Step::RemoveRules),
        5 => owner.clone().prop_map(Step::RemoveInterface),
        6 => owner.clone().prop_map(Step::FinishDelete),
        3 => owner.prop_map(Step::PodDies),
        5 => Just(Step::Sweep),
        2 => (0..2_usize, 0..3_usize, 0..512_usize, any::<bool>())
            .prop_map(|(network, runtime, forgotten, dies)| Step::Gc { network, runtime, forgotten, dies }),
        2 => (0..4_usize).prop_map(|lost| Step::Restart { lost }),
        1 => (0..512_usize).prop_map(|unreadable| Step::Rebuild { unreadable }),
        1 => Just(Step::Boot),
        6 => (0..100_000_u64).prop_map(Step::Later),
        1 => (0..1_000_000_u64).prop_map(Step::ClockBack),
    ]
}

/// An ADD under way.
struct Adding {
    generation: u64,
    addresses: Vec<IpAddr>,
    ports: Vec<PortMapping>,
    taken_over: Vec<OwnerId>,
    /// Time that has really passed, which a clock set back does not show.
    since: u64,
    made: bool,
}

/// A DEL under way, with the interface that it found when it began.
struct Deleting {
    generation: u64,
    id: OwnerId,
    interface: Option<u64>,
    /// Those of the lease, until their rules are removed.
    ports: Vec<PortMapping>,
}

struct Interface {
    number: u64,
    addresses: Vec<IpAddr>,
}

struct World {
    pool: Pool,
    /// The store: transactions in their order, and how many of them are flushed.
    log: Vec<Vec<Change>>,
    flushed: usize,
    interfaces: BTreeMap<usize, Interface>,
    /// Where the packet filter leads each port to.
    rules: BTreeMap<PortMapping, OwnerId>,
    adding: BTreeMap<usize, Adding>,
    deleting: BTreeMap<usize, Deleting>,
    now: u64,
    passed: u64,
    boots: u64,
    numbers: u64,
}

/// Owners of two networks with the same ranges and of two runtimes; the last ones' interfaces are another plugin's.
fn owner(index: usize) -> Owner {
    Owner::new(network(index % 2), format!("c{index}"), "eth0")
}

fn network(index: usize) -> String {
    format!("net{index}")
}

fn runtime(index: usize) -> Option<String> {
    ["containerd", "podman"].get(index % 3 % 2).map(|name| (*name).to_owned())
}

fn has_link(index: usize) -> bool {
    index < OWNERS - 2
}

fn sets(index: usize) -> Vec<RangeSet> {
    match index {
        0 => vec![set(&["10.0.0.0/29"])],
        1 => vec![set(&["10.0.0.0/29"]), set(&["fd00::/125"])],
        // Moved, and shrunk.
        2 => vec![set(&["10.0.1.0/29 10.0.1.2 10.0.1.4", "10.0.0.0/30"])],
        _ => Vec::new(),
    }
}

fn ports(index: usize) -> Vec<PortMapping> {
    let port = |protocol, host_ip: Option<&str>, host_port| PortMapping {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().expect("an address")),
        host_port,
        container_port: 8080,
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    match index {
        0 => vec![port(tcp, None, 80)],
        1 => vec![port(tcp, Some("192.0.2.1"), 80), port(udp, None, 53)],
        2 => vec![port(tcp, Some("192.0.2.2"), 80)],
        3 => vec![port(udp, None, 80), port(tcp, None, 81)],
        4 => vec![port(tcp, Some("0.0.0.0"), 81), port(udp, Some("::"), 53)],
        _ => Vec::new(),
    }
}

fn boot(number: u64) -> String {
    format!("boot-{number}")
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            pool: Pool::default(),
            log: Vec::new(),
            flushed: 0,
            interfaces: BTreeMap::new(),
            rules: BTreeMap::new(),
            adding: BTreeMap::new(),
            deleting: BTreeMap::new(),
            now: 1000,
            passed: 0,
            boots: 0,
            numbers: 0,
        };
        world.durable(world.pool.new_boot(&boot(0)));
        world
    }

    fn lazy(&mut self, changes: Vec<Change>) {
        self.log.push(changes.clone());
        self.pool.apply_all(changes);
    }

    fn durable(&mut self, changes: Vec<Change>) {
        self.lazy(changes);
        self.flushed = self.log.len();
    }

    fn now(&self) -> BootMillis {
        BootMillis(self.now)
    }

    fn seen(&self) -> Observation {
        let at_work = self.deleting.values().filter(|deleting| !deleting.ports.is_empty());
        let mut seen =
            Observation { removing: at_work.map(|deleting| deleting.id).collect(), ..Observation::default() };
        for index in 0..OWNERS {
            let present = self.interfaces.contains_key(&index);
            if !has_link(index) {
                // Of the very last one nothing can be seen.
                let sight = if present { Sight::Present } else { Sight::Gone };
                let sight = if index == OWNERS - 1 { Sight::Unknown } else { sight };
                seen.netns.insert(owner(index).id(), sight);
            } else if present {
                seen.links.insert(owner(index).link_name());
            }
        }
        seen
    }

    /// What the allocator would see of those who have a port that is asked for.
    fn rivals(&self, request: &Reserve) -> Sights {
        let seen = self.seen();
        let sight = |lease: &crate::Lease| {
            let id = lease.attachment.owner.id();
            let removing =
                self.deleting.values().any(|deleting| deleting.id == id && !deleting.ports.is_empty());
            match lease.state {
                LeaseState::Deleting if removing => Sight::Present,
                LeaseState::Deleting => Sight::Gone,
                _ => seen.of(lease),
            }
        };
        let rivals = self.pool.port_rivals(&request.attachment);
        rivals.map(|lease| (lease.attachment.owner.id(), sight(lease))).collect()
    }

    fn request(
        &self,
        index: usize,
        of: usize,
        requested: Option<usize>,
        quarantine_s: u64,
        with: usize,
    ) -> Reserve {
        let sets = sets(of);
        let requested = requested.and_then(|nth| {
            let ranges: Vec<&Range> = sets.iter().flat_map(RangeSet::ranges).collect();
            let range = ranges.get(nth % ranges.len().max(1))?;
            let mut address = range.start();
            for _ in 0..nth / 2 {
                address = crate::range::successor(address)?;
            }
            Some(address)
        });
        let mut attachment = attachment(owner(index));
        attachment.link = has_link(index).then(|| owner(index).link_name());
        attachment.runtime = runtime(index);
        attachment.traffic = Some(Traffic { ports: ports(with), ..Traffic::default() });
        let quarantine_ms = quarantine_s * 1000;
        Reserve {
            attachment,
            sets,
            requested: requested.into_iter().collect(),
            quarantine_ms,
            import_dir: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Reserve { owner: index, sets, requested, quarantine_s, ports: with } => {
                // The agent lets an ADD wait for the DEL of the same owner.
                if self.deleting.get(&index).is_some_and(|deleting| !deleting.ports.is_empty()) {
                    return;
                }
                self.adding.remove(&index);
                let request = self.request(index, sets, requested, quarantine_s, with);
                let seen = self.rivals(&request);
                let Ok((grant, changes)) = self.pool.reserve(&request, &seen, self.now()) else { return };
                // An ADD that has taken a port from this owner's earlier life removes that one's rules, by the owner's id,
                // before it makes its own. If it comes so late as to meet the new ones, the agent puts them back.
                let id = owner(index).id();
                self.adding.values_mut().for_each(|adding| adding.taken_over.retain(|taken| *taken != id));
                self.durable(changes);
                let addresses = grant.addresses.iter().map(|address| address.address.ip()).collect();
                let adding = Adding {
                    generation: grant.generation,
                    addresses,
                    ports: ports(with),
                    taken_over: grant.taken_over,
                    since: self.passed,
                    made: false,
                };
                self.adding.insert(index, adding);
            }
            Step::MakeInterface(index) => self.make_interface(index),
            Step::Attached(index) => {
                let Some(adding) = self.adding.get(&index).filter(|adding| adding.made) else { return };
                let generation = adding.generation;
                self.adding.remove(&index);
                match self.pool.attached(owner(index).id(), generation, None, self.now()) {
                    Ok(changes) => self.lazy(changes),
                    Err(_) => self.undo_add(index),
                }
            }
            Step::Cancel(index) => {
                let Some(adding) = self.adding.remove(&index) else { return };
                if adding.made {
                    self.undo_add(index);
                }
                self.lazy(self.pool.cancel(owner(index).id(), adding.generation, self.now()));
            }
            Step::Kill(index) => drop(self.adding.remove(&index)),
            Step::FailedCommit(index) => {
                let before = self.pool.clone();
                if let Ok((_, changes)) =
                    self.pool.reserve(&self.request(index, 1, None, 0, 0), &Sights::new(), self.now())
                {
                    let undo = self.pool.apply_undoable(changes);
                    self.pool.undo(undo);
                }
                assert_eq!(self.pool, before);
            }
            Step::BeginDelete(index) => {
                self.adding.remove(&index);
                self.deleting.remove(&index);
                let Some((lease, changes)) = self.pool.begin_delete(&owner(index)) else {
                    // DEL removes what has the owner's name, lease or not.
                    self.interfaces.remove(&index);
                    return;
                };
                self.durable(changes);
                let interface = self.interfaces.get(&index).map(|interface| interface.number);
                let id = lease.attachment.owner.id();
                let ports = lease.ports().collect();
                self.deleting.insert(index, Deleting { generation: lease.generation, id, interface, ports });
            }
            Step::RemoveInterface(index) => self.remove_interface(index),
            Step::RemoveRules(index) => self.remove_rules(index),
            Step::FinishDelete(index) => {
                self.remove_rules(index);
                self.remove_interface(index);
                let Some(deleting) = self.deleting.remove(&index) else { return };
                self.lazy(self.pool.finish_delete(deleting.id, deleting.generation, self.now()));
            }
            Step::PodDies(index) => drop(self.interfaces.remove(&index)),
            Step::Sweep => {
                let plan = self.pool.sweep(&self.seen(), self.now());
                for lease in &plan.released {
                    let live = self.interfaces.keys().any(|index| owner(*index) == lease.attachment.owner);
                    assert!(!live, "the sweep ended a live lease: {lease:?}");
                }
                self.durable(plan.changes);
            }
            Step::Gc { network, runtime, forgotten, dies } => self.gc(network, runtime, forgotten, dies),
            Step::Restart { lost } => {
                let kept = self.log.len().saturating_sub(lost).max(self.flushed);
                self.log.truncate(kept);
                self.pool = Pool::default();
                self.pool.apply_all(self.log.iter().flatten().cloned());
                assert_eq!(self.pool.new_boot(&boot(self.boots)), []);
                self.flushed = kept;
                // It was the one that removed rules.
                self.deleting.values_mut().for_each(|deleting| deleting.ports.clear());
            }
            Step::Rebuild { unreadable } => self.rebuild(unreadable),
            Step::Boot => {
                self.interfaces.clear();
                self.rules.clear();
                self.adding.clear();
                self.deleting.clear();
                self.boots += 1;
                self.now = 500;
                self.durable(self.pool.new_boot(&boot(self.boots)));
            }
            Step::Later(ms) => {
                self.now += ms;
                self.passed += ms;
            }
            Step::ClockBack(ms) => self.now = self.now.saturating_sub(ms),
        }
    }

    fn make_interface(&mut self, index: usize) {
        // An ADD that has waited so long gives up.
        let passed = self.passed;
        let Some(adding) = self.adding.get_mut(&index).filter(|adding| passed - adding.since < MISSING_MS)
        else {
            return;
        };
        let id = owner(index).id();
        self.rules.retain(|_, of| *of != id && !adding.taken_over.contains(of));
        // After the store was lost the pool knows of no ports: the packet filter does.
        let is_live = |of: &OwnerId| self.interfaces.keys().any(|index| owner(*index).id() == *of);
        let taken =
            |port: &&PortMapping| self.rules.iter().any(|(other, of)| other.conflicts(port) && is_live(of));
        if let Some(port) = adding.ports.iter().find(taken) {
            let (_, of) = self.rules.iter().find(|(other, _)| other.conflicts(port)).expect("found above");
            let known =
                self.pool.lease(*of).is_some_and(|lease| lease.ports().any(|other| other.conflicts(port)));
            assert!(!known, "{port} was given to c{index} and is that of {of}");
            return;
        }
        self.rules.extend(adding.ports.iter().map(|port| (*port, id)));
        adding.made = true;
        self.numbers += 1;
        let interface = Interface { number: self.numbers, addresses: adding.addresses.clone() };
        self.interfaces.insert(index, interface);
    }

    fn undo_add(&mut self, index: usize) {
        let id = owner(index).id();
        self.rules.retain(|_, of| *of != id);
        self.interfaces.remove(&index);
    }

    /// By their keys: whose they are by now is not looked at.
    fn remove_rules(&mut self, index: usize) {
        let Some(deleting) = self.deleting.get_mut(&index) else { return };
        for port in std::mem::take(&mut deleting.ports) {
            self.rules.remove(&port);
        }
    }

    fn remove_interface(&mut self, index: usize) {
        let found = self.deleting.get(&index).and_then(|deleting| deleting.interface);
        if self.interfaces.get(&index).is_some_and(|interface| Some(interface.number) == found) {
            self.interfaces.remove(&index);
        }
    }

    fn gc(&mut self, of: usize, caller: usize, forgotten: usize, dies: bool) {
        // A runtime knows its own pods, those under way among them, but may have forgotten some that are up.
        let caller = ["containerd", "podman"].get(caller).map(|name| (*name).to_owned());
        let valid: Vec<(String, String)> = (0..OWNERS)
            .filter(|index| runtime(*index) == caller)
            .filter(|index| self.adding.contains_key(index) || forgotten >> index & 1 == 0)
            .map(|index| (owner(index).container, "eth0".into()))
            .collect();
        let plan = self.pool.gc(&network(of), &valid, caller.as_deref(), &self.seen());
        self.durable(plan.changes);
        for lease in plan.remove {
            let Some(index) = (0..OWNERS).find(|index| owner(*index) == lease.attachment.owner) else {
                continue;
            };
            let live = self.interfaces.contains_key(&index);
            assert!(
                !live || lease.attachment.runtime == caller,
                "GC ended another runtime's live lease: {lease:?}"
            );
            if dies {
                continue;
            }
            self.interfaces.remove(&index);
            self.lazy(self.pool.finish_delete(owner(index).id(), lease.generation, self.now()));
        }
    }

    fn rebuild(&mut self, unreadable: usize) {
        self.adding.clear();
        self.deleting.clear();
        let mut attachments = Vec::new();
        let mut unknown = Vec::new();
        for (index, interface) in &self.interfaces {
            if unreadable >> index & 1 == 1 {
                let network = NetworkId::of(&owner(*index).network);
                unknown.extend(interface.addresses.iter().map(|address| (network, *address)));
                continue;
            }
            let mut attachment = attachment(owner(*index));
            attachment.link = has_link(*index).then(|| owner(*index).link_name());
            attachment.runtime = None;
            attachment.addresses =
                interface.addresses.iter().map(|address| pod_address(&sets(1), *address)).collect();
            attachments.push(attachment);
        }
        self.pool = Pool::default();
        self.log.clear();
        self.durable(self.pool.new_boot(&boot(self.boots)));
        let adoption = self.pool.rebuilt(&attachments, &unknown);
        assert!(adoption.notices.is_empty(), "{:?}", adoption.notices);
        self.durable(adoption.changes);
        // The owners of unknown addresses are deleted by their runtimes before two GC passes are over; what a
        // runtime never deletes and a GC never names is beyond the pool.
        let unread: Vec<usize> =
            self.interfaces.keys().copied().filter(|index| unreadable >> index & 1 == 1).collect();
        for index in unread {
            self.interfaces.remove(&index);
        }
    }

    fn check(&self) {
        assert_eq!(self.pool.invariants(), Vec::<String>::new());
        let mut answered: BTreeMap<(NetworkId, IpAddr), usize> = BTreeMap::new();
        for (index, interface) in &self.interfaces {
            let owner = owner(*index);
            let network = NetworkId::of(&owner.network);
            for address in &interface.addresses {
                if let Some(other) = answered.insert((network, *address), *index) {
                    panic!("{address} is on the interfaces of c{other} and c{index}");
                }
                let hold = self.pool.hold(network, *address);
                assert_eq!(hold, Some(Hold::Leased(owner.id())), "{address} of c{index} lives");
            }
        }
        let mut granted: BTreeMap<(NetworkId, IpAddr), &Owner> = BTreeMap::new();
        for lease in self.pool.leases() {
            let owner = &lease.attachment.owner;
            for address in lease.held() {
                let other = granted.insert((NetworkId::of(&owner.network), address), owner);
                assert_eq!(other, None, "{address} is in two leases, one of them {owner}'s");
            }
            assert!(
                lease.state == LeaseState::Reserved
                    || lease.former.is_empty()
                    || lease.state == LeaseState::Deleting
            );
        }
        self.check_ports();
        let mut reloaded = Pool::default();
        reloaded.apply_all(self.log.iter().flatten().cloned());
        assert_eq!(reloaded, self.pool, "the store says what memory says");
    }
}

impl World {
    fn check_ports(&self) {
        let leases: Vec<_> = self.pool.leases().collect();
        for (at, lease) in leases.iter().enumerate() {
            let owner = &lease.attachment.owner;
            for other in leases.iter().skip(at + 1) {
                let both = lease.ports().find(|port| other.ports().any(|theirs| theirs.conflicts(port)));
                assert_eq!(both, None, "is {owner}'s and {}'s", other.attachment.owner);
            }
            let index = (0..OWNERS).find(|index| self::owner(*index) == *owner);
            let is_up = index.is_some_and(|index| self.interfaces.contains_key(&index));
            if lease.state == LeaseState::Attached && is_up {
                for port in lease.ports() {
                    assert_eq!(self.rules.get(&port), Some(&owner.id()), "{port} of {owner}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_two_owners(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }

    /// The search over held addresses finds what a walk over every address of the set finds.
    #[test]
    fn the_next_free_address_is_the_naive_ones(
        held in prop::collection::vec((0_u8..24, 0_u8..4, 0_u64..120_000), 0..30),
        last in prop::option::of(0_u8..40),
        quarantine_ms in prop::sample::select(vec![0_u64, 60_000]),
    ) {
        let ip = |nth: u8| IpAddr::from([10, 0, nth / 8, nth % 8]);
        let ranges = set(&["10.0.1.0/29", "10.0.0.0/29 10.0.0.3", "10.0.2.0/29 10.0.2.2 10.0.2.5"]);
        let now = BootMillis(120_000);
        let network = NetworkId::of("net0");
        let mut pool = Pool::default();
        pool.apply(Change::PutBoot(boot(0)));
        for (nth, kind, since) in held {
            pool.apply(Change::PutAddress(network, ip(nth), match kind {
                0 => Hold::Leased(owner(1).id()),
                1 => Hold::Unknown(2),
                _ => Hold::Resting(BootMillis(since)),
            }));
        }
        if let Some(last) = last {
            pool.apply(Change::PutCursor(network, 0, ip(last)));
        }
        let request = Reserve {
            attachment: attachment(owner(0)),
            sets: vec![ranges.clone()],
            requested: Vec::new(),
            quarantine_ms,
            import_dir: None,
        };
        let got = pool.reserve(&request, &Sights::new(), now).ok().and_then(|(grant, _)| grant.addresses.first().map(|a| a.address.ip()));
        // All addresses in the order of the ranges, from behind the last one given.
        let mut all: Vec<IpAddr> = Vec::new();
        for range in ranges.ranges() {
            all.extend((0..40).map(ip).filter(|address| range.contains(*address)));
        }
        if let Some(at) = last.and_then(|last| all.iter().position(|address| *address == ip(last))) {
            all.rotate_left(at + 1);
        }
        all.retain(|address| ranges.ranges().iter().all(|range| range.gateway() != *address));
        let rested = |address: &IpAddr| match pool.hold(network, *address) {
            None => Some(u64::MAX),
            Some(Hold::Resting(since)) => Some(now.0 - since.0),
            Some(_) => None,
        };
        let fresh = all.iter().find(|address| rested(address).is_some_and(|ms| ms >= quarantine_ms)).copied();
        let longest = all.iter().filter_map(|address| Some((std::cmp::Reverse(rested(address)?), *address))).min();
        prop_assert_eq!(got, fresh.or(longest.map(|(_, address)| address)));
    }

    /// Whatever is configured, asked for and stored: no panic, and what is given was to be given.
    #[test]
    fn arbitrary_ranges_do_not_panic(
        specs in prop::collection::vec(crate::range::tests::any_spec(), 1..4),
        requested in prop::collection::vec(any::<u128>(), 0..2),
        stored in prop::collection::vec((any::<bool>(), any::<u64>()), 0..4),
        now in any::<u64>(),
    ) {
        let sets: Vec<RangeSet> = specs
            .iter()
            .filter_map(|spec| Range::new(*spec).ok())
            .filter_map(|range| RangeSet::new(vec![range]).ok())
            .collect();
        let network = NetworkId::of("net0");
        let mut pool = Pool::default();
        pool.apply(Change::PutBoot(boot(0)));
        pool.apply(Change::PutGeneration(u64::MAX));
        for (set, (cursor, since)) in sets.iter().zip(stored) {
            let range = set.ranges().first().expect("a set is not empty");
            pool.apply(Change::PutAddress(network, range.start(), Hold::Resting(BootMillis(since))));
            if cursor {
                pool.apply(Change::PutCursor(network, 0, range.end()));
            }
        }
        let request = Reserve {
            attachment: attachment(owner(0)),
            sets: sets.clone(),
            requested: requested.into_iter().map(|bits| std::net::Ipv6Addr::from_bits(bits).into()).collect(),
            quarantine_ms: now,
            import_dir: None,
        };
        pool.usage("net0", &sets);
        if let Ok((grant, changes)) = pool.reserve(&request, &Sights::new(), BootMillis(now)) {
            prop_assert_eq!(grant.addresses.len(), sets.len());
            for (address, set) in grant.addresses.iter().zip(&sets) {
                prop_assert!(set.contains(address.address.ip()));
            }
            pool.apply_all(changes);
            prop_assert_eq!(pool.invariants(), Vec::<String>::new());
        }
        pool.sweep(&Observation::default(), BootMillis(now));
    }
}
