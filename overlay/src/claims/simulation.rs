//! Many agents, a store, and everything that can happen between any two of their steps.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::cluster::{ClusterConfig, ClusterRange};
use crate::store::{Announcement, Identity, Membership};

/// How many subnets of each family there are: fewer than names, so that they run out.
const SUBNETS: usize = 8;

pub(super) fn config(v6: bool) -> ClusterConfig {
    let range = |range: &str, subnet_prefix| ClusterRange { range: range.parse().unwrap(), subnet_prefix };
    let mut ranges = vec![range("10.0.0.0/21", 24)];
    if v6 {
        ranges.push(range("fd00::/61", 64));
    }
    let text = r#"{"name":"c","ranges":[]}"#;
    ClusterConfig { ranges, ..serde_json::from_str(text).unwrap() }
}

#[derive(Debug, Clone)]
struct Entry {
    revision: u64,
    bytes: Vec<u8>,
    life: Life,
    /// Whose connection a presence depends on.
    writer: usize,
}

#[derive(Debug, Clone)]
struct Store {
    revision: u64,
    /// How many more entries the log has than revisions were made.
    lead: i64,
    cluster: u64,
    keys: BTreeMap<String, Entry>,
}

impl Store {
    fn commit(&mut self, change: &Change, writer: usize) -> bool {
        let revision_of = |key: &Key| self.keys.get(&key.to_string()).map_or(0, |entry| entry.revision);
        self.lead += 1;
        if change.requires.iter().any(|(key, revision)| revision_of(key) != *revision) {
            return false;
        }
        self.revision += 1;
        self.lead -= 1;
        for write in &change.writes {
            match write {
                Write::Put { key, value, life } => {
                    let bytes = value.to_bytes();
                    let entry = Entry { revision: self.revision, bytes, life: *life, writer };
                    self.keys.insert(key.to_string(), entry);
                }
                Write::Delete(key) => {
                    self.keys.remove(&key.to_string());
                }
            }
        }
        true
    }

    fn expire(&mut self, is_over: impl Fn(&Entry) -> bool) {
        let before = self.keys.len();
        self.keys.retain(|_, entry| !is_over(entry));
        if self.keys.len() < before {
            self.revision += 1;
        }
    }

    fn read(&self, earlier: &Replica) -> Replica {
        let mut replica = earlier.successor();
        for (key, entry) in &self.keys {
            replica.put(key, entry.revision, &entry.bytes);
        }
        replica.reached(self.revision);
        replica.settle();
        replica
    }

    fn lineage(&self) -> Lineage {
        // What a look at a busy store says is not exact.
        let lead = Some((self.lead - 1, self.lead + 1));
        Lineage { cluster: self.cluster, revision: self.revision, lead }
    }
}

#[derive(Debug, Clone)]
struct Agent {
    identity: Identity,
    remembered: Option<Membership>,
    mark: (u64, u64),
    running: Option<Claimant>,
    replica: Replica,
    lineage: Option<Lineage>,
    pending: Option<Change>,
    standing: Option<Standing>,
    connected: bool,
    /// It may believe what is not true any more, because it was cut off.
    behind: bool,
    has_pods: bool,
    /// Somebody ended its claim, so it may have other subnets afterwards.
    disturbed: bool,
}

impl Agent {
    fn new(name: usize, instance: usize) -> Self {
        let identity =
            Identity { name: format!("n{name}"), instance: format!("i{instance}"), boot: "b0".to_owned() };
        Self {
            identity,
            remembered: None,
            mark: (0, 0),
            running: None,
            replica: Replica::default(),
            lineage: None,
            pending: None,
            standing: None,
            connected: true,
            behind: false,
            has_pods: false,
            disturbed: false,
        }
    }

    fn membership(&self) -> Option<&Membership> {
        match &self.standing {
            Some(Standing::Member(membership)) if self.running.is_some() => Some(membership),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Look(usize),
    Decide(usize),
    Commit(usize),
    /// Look, decide and commit until nothing is left to do.
    Work(usize),
    Start {
        agent: usize,
        reboot: bool,
    },
    Crash(usize),
    /// The machine is made again: nothing of it is left but its name.
    Remake(usize),
    Lapse(usize),
    Cut(usize),
    Heal(usize),
    Pods(usize, bool),
    Leave(usize),
    Remove(usize),
    Reclaim(usize),
    /// Another machine starts with a copy of this one's disk.
    Clone(usize),
    RestEnds,
    GraceEnds,
    Garbage(usize),
    Tidy,
    Backup,
    Restore {
        bump: bool,
        cluster: bool,
    },
}

struct World {
    store: Store,
    backup: Store,
    agents: Vec<Agent>,
    config: ClusterConfig,
    instances: usize,
    /// A backup was restored and not everybody has said what is theirs: who has what is not settled.
    restoring: bool,
}

impl World {
    fn new(v6: bool) -> Self {
        let store = Store { revision: 1, lead: 4, cluster: 7, keys: BTreeMap::new() };
        let agents = (0..10).map(|n| Agent::new(n, n)).collect();
        Self { backup: store.clone(), store, agents, config: config(v6), instances: 100, restoring: false }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Look(agent) => self.look(agent),
            Op::Decide(agent) => self.decide(agent),
            Op::Commit(agent) => self.commit(agent),
            Op::Work(agent) => self.work(agent),
            Op::Start { agent, reboot } => {
                let config = self.config.clone();
                let it = &mut self.agents[agent];
                if it.running.is_none() {
                    if reboot {
                        self.instances += 1;
                        it.identity.boot = format!("b{}", self.instances);
                        it.has_pods = false;
                    }
                    self.instances += 1;
                    let session = format!("s{}", self.instances);
                    let known = it.remembered.as_ref().map(|_| config.clone());
                    let remembered = it.remembered.clone();
                    let claimant =
                        Claimant::new(it.identity.clone(), session, remembered, known, Some(config));
                    it.running = Some(claimant);
                    it.replica = Replica::default();
                }
            }
            Op::Crash(agent) => self.crash(agent),
            Op::Remake(agent) => {
                self.crash(agent);
                self.instances += 1;
                let it = &mut self.agents[agent];
                it.identity.instance = format!("i{}", self.instances);
                it.remembered = None;
                it.mark = (0, 0);
                it.has_pods = false;
                self.disturb(agent);
            }
            Op::Lapse(agent) => {
                let it = &self.agents[agent];
                if it.running.is_none() || !it.connected {
                    self.store.expire(|entry| entry.life == Life::Presence && entry.writer == agent);
                }
            }
            Op::Cut(agent) => {
                self.agents[agent].connected = false;
                self.agents[agent].behind = true;
            }
            Op::Heal(agent) => {
                self.agents[agent].connected = true;
                self.agents[agent].replica = Replica::default();
                self.agents[agent].pending = None;
            }
            Op::Pods(agent, has_pods) => {
                self.agents[agent].has_pods = has_pods && self.agents[agent].membership().is_some();
            }
            Op::Leave(agent) => {
                self.work(agent);
                let it = &mut self.agents[agent];
                if let (Some(claimant), true) = (&mut it.running, it.connected) {
                    let change = claimant.leave(&it.replica);
                    if self.store.commit(&change, agent) {
                        claimant.left();
                        it.standing = None;
                        it.behind = false;
                        self.disturb(agent);
                    }
                }
            }
            Op::Remove(agent) => self.remove(agent, Ended::Removed),
            Op::Reclaim(agent) => self.remove(agent, Ended::Absent),
            Op::Clone(agent) => {
                self.instances += 1;
                let it = &self.agents[agent];
                let mut copy = Agent::new(0, 0);
                copy.identity = it.identity.clone();
                copy.identity.boot = format!("b{}", self.instances);
                copy.remembered = it.remembered.clone();
                copy.mark = it.mark;
                copy.disturbed = true;
                if self.agents.len() < 14 {
                    self.agents.push(copy);
                }
                self.disturb(agent);
            }
            Op::RestEnds => self.store.expire(|entry| entry.life == Life::Rest),
            Op::GraceEnds => {
                if self.restoring {
                    self.settle();
                    self.restoring = false;
                }
                self.store.expire(|entry| entry.life == Life::Grace);
            }
            Op::Garbage(at) => {
                let key = self.store.keys.keys().filter(|key| key.starts_with("subnets/")).nth(at).cloned();
                let key = key.unwrap_or_else(|| format!("subnets/10.0.{at}.0-24"));
                self.store.revision += 1;
                let revision = self.store.revision;
                let entry = Entry { revision, bytes: b"\xff{".to_vec(), life: Life::Lasting, writer: 99 };
                self.store.keys.insert(key, entry);
                self.agents.iter_mut().for_each(|it| it.disturbed = true);
            }
            Op::Tidy => self.store.expire(|entry| entry.writer == 99),
            Op::Backup => self.backup = self.store.clone(),
            Op::Restore { bump, cluster } => {
                let lead_before = self.store.lead;
                self.store = self.backup.clone();
                // The log begins anew; a tool may push the revision ahead of everything that was seen.
                let bump = if bump { 1_000 } else { 0 };
                self.store.revision += bump;
                self.store.lead = (4 - i64::try_from(self.store.revision).unwrap()).min(lead_before - 3);
                if cluster {
                    self.instances += 1;
                    self.store.cluster = self.instances as u64;
                }
                self.restoring = true;
                for it in &mut self.agents {
                    it.replica = Replica::default();
                    it.pending = None;
                    it.disturbed = true;
                }
                // Presence came back with the backup, and nobody keeps it up.
                self.store.expire(|entry| entry.life == Life::Presence);
            }
        }
        self.check();
    }

    fn crash(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        it.running = None;
        it.pending = None;
        it.standing = None;
        it.behind = false;
    }

    /// Another claim than the one there was may be made for that name.
    fn disturb(&mut self, agent: usize) {
        let name = self.agents[agent].identity.name.clone();
        self.agents.iter_mut().filter(|it| it.identity.name == name).for_each(|it| it.disturbed = true);
    }

    fn remove(&mut self, agent: usize, ended: Ended) {
        // The administrator has removed a machine that is off, or cut off.
        let name = self.agents[agent].identity.name.clone();
        let replica = self.store.read(&Replica::default());
        if let Ok(change) = remove(&replica, &name, false, ended) {
            assert!(self.store.commit(&change, 98));
            self.disturb(agent);
        }
    }

    fn look(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        if let (Some(claimant), true) = (&mut it.running, it.connected) {
            let now = (self.store.cluster, self.store.revision);
            if it.mark != (0, 0) && (now.0 != it.mark.0 || now.1 < it.mark.1) {
                claimant.went_back();
            }
            it.mark = now;
            it.replica = self.store.read(&it.replica);
            it.lineage = Some(self.store.lineage());
        }
    }

    fn decide(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        let Some(claimant) = &mut it.running else { return };
        if it.replica.revision() == 0 || !it.connected {
            return;
        }
        let announcement = Announcement {
            addresses: vec![format!("192.0.2.{}", agent + 1).parse().unwrap()],
            ..Announcement::default()
        };
        let facts = Facts { announcement: &announcement, has_pods: it.has_pods, lineage: it.lineage };
        match claimant.step(&it.replica, &facts) {
            Step::Commit(change) => {
                assert!(!change.writes.is_empty(), "an empty transaction would be repeated for ever");
                it.pending = Some(change);
            }
            Step::Wait { standing, .. } => {
                it.pending = None;
                it.behind = false;
                if let Standing::Member(membership) = &standing {
                    if let Some(before) = &it.remembered
                        && !it.disturbed
                    {
                        assert_eq!(before.subnets, membership.subnets, "the same identity, other subnets");
                    }
                    it.remembered = Some(membership.clone());
                }
                if let Standing::Refused(why) = &standing
                    && why.contains("exhausted")
                {
                    let nodes = it.replica.snapshot().unwrap().nodes.keys();
                    let said: Vec<_> = nodes
                        .filter_map(|name| it.replica.node(name).value())
                        .flat_map(|record| record.subnets.clone())
                        .collect();
                    let used: BTreeSet<_> = it.replica.holds().keys().chain(&said).collect();
                    let all = |v4| used.iter().filter(|used| used.is_ipv4() == v4).count() == SUBNETS;
                    assert!(all(true) || all(false), "{why}");
                }
                it.standing = Some(standing);
            }
        }
    }

    fn commit(&mut self, agent: usize) {
        let it = &mut self.agents[agent];
        if let (Some(change), true) = (it.pending.take(), it.connected) {
            self.store.commit(&change, agent);
            it.behind = false;
        }
    }

    fn work(&mut self, agent: usize) {
        for _ in 0..10 {
            self.look(agent);
            self.decide(agent);
            if self.agents[agent].pending.is_none() {
                return;
            }
            self.commit(agent);
        }
        panic!("{:?} never comes to rest: {:?}", self.agents[agent].identity, self.agents[agent].pending);
    }

    fn settle(&mut self) {
        for _ in 0..3 {
            (0..self.agents.len()).for_each(|agent| self.work(agent));
        }
    }

    /// Nobody has what another has.
    fn check(&self) {
        if self.restoring {
            return;
        }
        let mut owners: BTreeMap<IpNetwork, &Agent> = BTreeMap::new();
        for agent in self.agents.iter().filter(|agent| agent.connected && !agent.behind) {
            for subnet in agent.membership().into_iter().flat_map(|membership| &membership.subnets) {
                if let Some(other) = owners.insert(*subnet, agent) {
                    panic!("{subnet} belongs to {:?} and to {:?}", other.identity, agent.identity);
                }
            }
        }
    }

    /// In the end everybody who can be a member is one, and the store says the same.
    fn check_end(&mut self) {
        self.run(&Op::Tidy);
        self.run(&Op::GraceEnds);
        for agent in 0..self.agents.len() {
            self.run(&Op::Heal(agent));
            self.run(&Op::Pods(agent, false));
        }
        self.settle();
        self.run(&Op::GraceEnds);
        self.run(&Op::RestEnds);
        self.settle();
        self.check();
        let snapshot = self.store.read(&Replica::default());
        for agent in &self.agents {
            let Identity { name, instance, .. } = &agent.identity;
            for subnet in agent.membership().into_iter().flat_map(|membership| &membership.subnets) {
                let hold = snapshot.hold(*subnet).value().unwrap();
                assert!(
                    hold.is_of(name, instance) && hold.resting.is_none(),
                    "{name} and {subnet}: {hold:?}"
                );
                let shown = &snapshot.snapshot().unwrap().nodes[name];
                assert!(shown.subnets.contains(subnet), "{shown:?}");
            }
            let may_be_out = agent.running.as_ref().is_none_or(|claimant| claimant.has_ended());
            if let (false, Some(Standing::Refused(why) | Standing::Fenced(why))) =
                (may_be_out, &agent.standing)
            {
                let known = ["exhausted", "another machine", "another podwired"];
                assert!(known.iter().any(|known| why.contains(known)), "{name}: {why}");
            }
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let agent = || 0_usize..10;
    prop_oneof![
        8 => agent().prop_map(Op::Look),
        8 => agent().prop_map(Op::Decide),
        8 => agent().prop_map(Op::Commit),
        12 => agent().prop_map(Op::Work),
        14 => (agent(), any::<bool>()).prop_map(|(agent, reboot)| Op::Start { agent, reboot }),
        4 => agent().prop_map(Op::Crash),
        2 => agent().prop_map(Op::Remake),
        4 => agent().prop_map(Op::Lapse),
        2 => agent().prop_map(Op::Cut),
        3 => agent().prop_map(Op::Heal),
        3 => (agent(), any::<bool>()).prop_map(|(agent, has)| Op::Pods(agent, has)),
        1 => agent().prop_map(Op::Leave),
        2 => agent().prop_map(Op::Remove),
        1 => agent().prop_map(Op::Reclaim),
        1 => agent().prop_map(Op::Clone),
        2 => Just(Op::RestEnds),
        2 => Just(Op::GraceEnds),
        1 => (0_usize..SUBNETS).prop_map(Op::Garbage),
        1 => Just(Op::Tidy),
    ]
}

fn op_with_backups() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => op(),
        1 => Just(Op::Backup),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(bump, cluster)| Op::Restore { bump, cluster }),
    ]
}

fn play(v6: bool, ops: &[Op]) {
    let mut world = World::new(v6);
    ops.iter().for_each(|op| world.run(op));
    world.check_end();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_two_nodes_have_one_subnet(v6: bool, ops in proptest::collection::vec(op(), 0..120)) {
        play(v6, &ops);
    }

    #[test]
    fn no_two_nodes_have_one_subnet_after_a_backup_was_restored(
        v6: bool,
        ops in proptest::collection::vec(op_with_backups(), 0..120),
    ) {
        play(v6, &ops);
    }
}
