//! Where addresses come from, for a program that does not care where: the agent, or the store itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use podwire_attach::{Attachment, Owner, OwnerId, removal};
use podwire_kernel::Netlink;
use podwire_kernel::nft::Nft;

use crate::client::Client;
use crate::dirs::{Dirs, Holder, Lock, Wanted};
use crate::engine::{Engine, Vantage};
use crate::import::{Contents, Imported};
use crate::service::{
    Answer, DEADLINE_SECONDS, Deletion, GC_DEADLINE_SECONDS, GcReport, Op, STATUS_DEADLINE_SECONDS,
};
use crate::{Ends, Error, GcPlan, Grant, Lease, RangeSet, Reserve, SetUsage, WantedRules, remove_traffic};

/// How long to wait for an allocator that is busy or about to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// While the same process has the lock, without an agent's socket.
    pub idle: Duration,
    /// In all, while the lock goes from one process to the next.
    pub total: Duration,
}

impl Default for Patience {
    /// 3 s and 20 s: fifty plugins without an agent on a slow disk take turns for some seconds; a runtime waits for
    /// minutes.
    fn default() -> Self {
        Self { idle: Duration::from_secs(3), total: Duration::from_secs(20) }
    }
}

/// How long to stand back in all for agents that want the lock: one that starts again and again, and never gets so
/// far as to serve, must not keep pods from starting.
const YIELD: Duration = Duration::from_secs(1);

/// How often an operation is begun anew with another agent, or with the store, when its agent has gone away.
const TRIES: usize = 8;

/// How many attachments of another program one message has: some hundred KiB.
const ADOPTED_AT_ONCE: usize = 256;

/// The allocator as a program sees it. Every operation is keyed by its owner and may be repeated, so it goes over to
/// another agent, or to the store, when its agent goes away in the middle.
#[derive(Debug)]
pub struct Allocator {
    dirs: Dirs,
    patience: Patience,
    vantage: Vantage,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Agent(Client),
    Direct(Box<Engine>),
}

impl Allocator {
    /// Connects to the agent; where none runs, takes the lock and opens the store.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Timeout`] for now; see also [`Engine::open`].
    pub fn connect(dirs: &Dirs) -> Result<Self, Error> {
        Self::connect_within(dirs, Patience::default())
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As [`Allocator::connect`].
    pub fn connect_within(dirs: &Dirs, patience: Patience) -> Result<Self, Error> {
        Self::connect_from(dirs, patience, Vantage::Runtime)
    }

    /// The same for a program that is not called by a runtime.
    ///
    /// # Errors
    /// As [`Allocator::connect`].
    pub fn connect_from(dirs: &Dirs, patience: Patience, vantage: Vantage) -> Result<Self, Error> {
        let way = find_way(dirs, patience, vantage, &mut || {})?;
        Ok(Self { dirs: dirs.clone(), patience, vantage, way })
    }

    /// [`Allocator::connect`] for a DEL: where no agent runs, `meanwhile` is called with the lock taken and the store not
    /// yet opened, which takes some milliseconds. What it starts is not disturbed by an agent: none can have the store
    /// until this allocator is dropped.
    ///
    /// # Errors
    /// As [`Allocator::connect`]; `meanwhile` may have been called.
    pub fn connect_meanwhile(dirs: &Dirs, mut meanwhile: impl FnMut()) -> Result<Self, Error> {
        let (patience, vantage) = (Patience::default(), Vantage::Runtime);
        let way = find_way(dirs, patience, vantage, &mut meanwhile)?;
        Ok(Self { dirs: dirs.clone(), patience, vantage, way })
    }

    /// Connects to the agent; `None` where none runs. Never opens the store and never waits for its lock.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Io`].
    pub fn agent(dirs: &Dirs) -> Result<Option<Self>, Error> {
        let client = Client::connect(&dirs.socket())?;
        Ok(client.map(|client| Self {
            dirs: dirs.clone(),
            patience: Patience::default(),
            vantage: Vantage::Runtime,
            way: Way::Agent(client),
        }))
    }

    /// What the agent says of a network's range sets; `None` where no agent runs. For STATUS: it never opens the store,
    /// never waits for its lock, and for the agent a second at most.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Io`], the agent's.
    pub fn usage_by_agent(
        dirs: &Dirs,
        network: &str,
        sets: &[RangeSet],
    ) -> Result<Option<Vec<SetUsage>>, Error> {
        let Some(mut client) = Client::connect_within(&dirs.socket(), STATUS_DEADLINE_SECONDS)? else {
            return Ok(None);
        };
        let op = Op::Usage { network: network.to_owned(), sets: sets.to_vec() };
        match client.call(&op, STATUS_DEADLINE_SECONDS, &mut || ()) {
            Ok(Answer::Usage(usage)) => Ok(Some(usage)),
            Ok(other) => Err(client.unexpected(&other)),
            // It has just ended.
            Err(Error::Disconnected { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether this process holds the lock and the store.
    pub fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    /// What opening the store has to tell the user, in whole sentences; each is told once. [`Allocator::reserve`] gives
    /// them with its answer.
    pub fn notices(&mut self) -> Vec<String> {
        match &mut self.way {
            Way::Agent(_) => Vec::new(),
            Way::Direct(engine) => engine.take_notices(),
        }
    }

    /// Gives an owner its addresses, durably. The first reservation of a network imports what host-local has given.
    ///
    /// # Errors
    /// [`Error::Refused`] and whatever keeps the store from recording it.
    pub fn reserve(&mut self, request: &Reserve) -> Result<Grant, Error> {
        self.reserve_while(request, || ()).0
    }

    /// [`Allocator::reserve`], with something else done while the agent writes to its disk. It is done once, in any
    /// case.
    pub fn reserve_while<T>(
        &mut self,
        request: &Reserve,
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<Grant, Error>, T) {
        let (mut meanwhile, mut done) = (Some(meanwhile), None);
        let op = || Op::Reserve(Box::new(request.clone()));
        let direct = |engine: &mut Engine| engine.reserve(request).map(Answer::Grant);
        let answer = self.run_for(op, direct, DEADLINE_SECONDS, &mut || {
            if let Some(meanwhile) = meanwhile.take() {
                done = Some(meanwhile());
            }
        });
        let grant = answer.and_then(|answer| match answer {
            Answer::Grant(grant) => Ok(grant),
            other => Err(self.unexpected(&other)),
        });
        let done = match (done, meanwhile) {
            (Some(done), _) => done,
            (None, Some(meanwhile)) => meanwhile(),
            #[expect(clippy::unreachable, reason = "it is taken where `done` is set, and nowhere else")]
            (None, None) => unreachable!(),
        };
        (grant, done)
    }

    /// Imports what host-local has given on a network, durably and once. [`Allocator::reserve`] does so by itself; this is
    /// for calls that may come first on a node that was moved from host-local. Gives what there is to tell.
    ///
    /// # Errors
    /// The directory cannot be read; whatever keeps the store from recording it.
    pub fn import(
        &mut self,
        network: &str,
        directory: &Path,
        sets: &[RangeSet],
    ) -> Result<Vec<String>, Error> {
        let op = || Op::Import {
            network: network.to_owned(),
            directory: directory.to_owned(),
            sets: sets.to_vec(),
        };
        match self.run(op, |engine| engine.import(network, directory, sets).map(Answer::Notices))? {
            Answer::Notices(notices) => Ok(notices),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Takes what another program has attached, and gave addresses, into a network, durably. What is known already stays as
    /// it is, so it can be done again. Gives what there is to tell, such as an address that is another's here.
    ///
    /// # Errors
    /// Whatever keeps the store from recording it.
    pub fn adopt(&mut self, network: &str, found: &Imported) -> Result<Vec<String>, Error> {
        let unknown: Vec<IpAddr> = found.unknown.iter().map(|(_, address)| *address).collect();
        let mut notices = Vec::new();
        // Parts that are far below the longest message.
        let mut parts: Vec<&[Attachment]> = found.attachments.chunks(ADOPTED_AT_ONCE).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for (index, attachments) in parts.into_iter().enumerate() {
            let (cursors, unknown) = match index {
                0 => (found.cursors.as_slice(), unknown.as_slice()),
                _ => (&[][..], &[][..]),
            };
            let op = || Op::Adopt {
                network: network.to_owned(),
                attachments: attachments.to_vec(),
                cursors: cursors.to_vec(),
                unknown: unknown.to_vec(),
            };
            let direct = |engine: &mut Engine| {
                engine.adopt(network, attachments, cursors, unknown).map(Answer::Notices)
            };
            match self.run(op, direct)? {
                Answer::Notices(told) => notices.extend(told),
                other => return Err(self.unexpected(&other)),
            }
        }
        Ok(notices)
    }

    /// Records that the interface of a reservation is up, `finished` being the attachment as it came out. A power cut
    /// may lose it, which does no harm: a lease whose link is there is alive.
    ///
    /// # Errors
    /// [`Error::Stale`] if DEL or GC has come between: the caller undoes what it made.
    pub fn attached(
        &mut self,
        owner: &Owner,
        generation: u64,
        finished: Option<&Attachment>,
    ) -> Result<(), Error> {
        let op = || Op::Attached {
            owner: owner.clone(),
            generation,
            finished: finished.map(|attachment| Box::new(attachment.clone())),
        };
        let answer =
            self.run(op, |engine| engine.attached(owner, generation, finished).map(|()| Answer::Done))?;
        self.done(&answer)
    }

    /// Takes back a reservation after its ADD has failed and been undone.
    ///
    /// # Errors
    /// Whatever keeps the store from recording it. The lease then ends when its missing interface is noticed.
    pub fn cancel(&mut self, owner: &Owner, generation: u64) -> Result<(), Error> {
        let op = || Op::Cancel { owner: owner.clone(), generation };
        let answer = self.run(op, |engine| engine.cancel(owner, generation).map(|()| Answer::Done))?;
        self.done(&answer)
    }

    /// Begins a DEL, durably. The agent also removes rules, queues and the link and answers when they are gone.
    ///
    /// # Errors
    /// Whatever keeps the store from recording it; the agent's failure to remove something, the lease then stays
    /// `Deleting`.
    pub fn delete(&mut self, owner: &Owner, ends: Ends) -> Result<Deletion, Error> {
        let op = || Op::Delete { owner: owner.clone(), ends };
        let direct =
            |engine: &mut Engine| Ok(Answer::Deletion(Deletion::Remove(engine.begin_delete(owner, ends)?)));
        match self.run(op, direct)? {
            Answer::Deletion(deletion) => Ok(deletion),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends a lease that [`Allocator::delete`] has left to the caller, after its interface is gone. If this is left out,
    /// whoever next opens the store sees that it is.
    ///
    /// # Errors
    /// Whatever keeps the store from recording it.
    pub fn finish_delete(&mut self, lease: &Lease) -> Result<(), Error> {
        let (owner, generation) = (lease.attachment.owner.id(), lease.generation);
        let op = || Op::FinishDelete { owner, generation };
        let answer = self.run(op, |engine| engine.finish_delete(owner, generation).map(|()| Answer::Done))?;
        self.done(&answer)
    }

    /// An owner's lease.
    ///
    /// # Errors
    /// The agent's.
    pub fn find(&mut self, owner: &Owner) -> Result<Option<Lease>, Error> {
        let op = || Op::Find { owner: owner.clone() };
        let direct = |engine: &mut Engine| {
            let leases = engine.pool().find(owner).cloned().into_iter().collect();
            Ok(Answer::Leases { leases, more: false })
        };
        match self.run(op, direct)? {
            Answer::Leases { mut leases, .. } => Ok(leases.pop()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The leases of one network or of all.
    ///
    /// # Errors
    /// The agent's.
    pub fn leases(&mut self, network: Option<&str>) -> Result<Vec<Lease>, Error> {
        let mut all: Vec<Lease> = Vec::new();
        loop {
            let after = all.last().map(|lease| lease.attachment.owner.id());
            let op = || Op::Leases { network: network.map(str::to_owned), after };
            let direct = |engine: &mut Engine| Ok(engine.leases(network, after));
            match self.run(op, direct)? {
                Answer::Leases { leases, more } => {
                    let is_last = !more || leases.is_empty();
                    all.extend(leases);
                    if is_last {
                        return Ok(all);
                    }
                }
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// All that is known of one network, for [`crate::import::export`].
    ///
    /// # Errors
    /// The agent's.
    pub fn contents(&mut self, network: &str) -> Result<Contents, Error> {
        let leases = self.leases(Some(network))?;
        let op = || Op::Extras { network: network.to_owned() };
        match self.run(op, |engine| Ok(engine.extras(network)))? {
            Answer::Extras { unknown, cursors } => Ok(Contents { leases, unknown, cursors }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How much of a network's range sets is in use.
    ///
    /// # Errors
    /// The agent's.
    pub fn usage(&mut self, network: &str, sets: &[RangeSet]) -> Result<Vec<SetUsage>, Error> {
        let op = || Op::Usage { network: network.to_owned(), sets: sets.to_vec() };
        match self.run(op, |engine| Ok(Answer::Usage(engine.usage(network, sets))))? {
            Answer::Usage(usage) => Ok(usage),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Removes all attachments of a network but the `valid` ones (container, interface) and, as far as they live, those
    /// of other runtimes.
    ///
    /// # Errors
    /// Nothing has been removed. What fails later is in the report.
    pub fn gc(
        &mut self,
        network: &str,
        valid: &[(String, String)],
        runtime: Option<&str>,
    ) -> Result<GcReport, Error> {
        let op = || Op::Gc {
            network: network.to_owned(),
            valid: valid.to_vec(),
            runtime: runtime.map(str::to_owned),
        };
        match self.run_for(
            op,
            |engine| gc(engine, network, valid, runtime).map(Answer::Gc),
            GC_DEADLINE_SECONDS,
            &mut || (),
        )? {
            Answer::Gc(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    fn run(
        &mut self,
        op: impl FnOnce() -> Op,
        direct: impl FnOnce(&mut Engine) -> Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        self.run_for(op, direct, DEADLINE_SECONDS, &mut || ())
    }

    fn run_for(
        &mut self,
        op: impl FnOnce() -> Op,
        direct: impl FnOnce(&mut Engine) -> Result<Answer, Error>,
        seconds: u64,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Answer, Error> {
        let client = match &mut self.way {
            Way::Direct(engine) => return direct(engine),
            Way::Agent(client) => client,
        };
        let op = op();
        let mut result = client.call(&op, seconds, meanwhile);
        for _ in 1..TRIES {
            if !matches!(result, Err(Error::Disconnected { .. })) {
                break;
            }
            self.way = find_way(&self.dirs, self.patience, self.vantage, &mut || {})?;
            match &mut self.way {
                Way::Direct(engine) => return direct(engine),
                Way::Agent(client) => result = client.call(&op, seconds, &mut || ()),
            }
        }
        result
    }

    fn done(&self, answer: &Answer) -> Result<(), Error> {
        match answer {
            Answer::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    fn unexpected(&self, answer: &Answer) -> Error {
        match &self.way {
            Way::Agent(client) => client.unexpected(answer),
            Way::Direct(_) => {
                Error::Protocol { socket: self.dirs.socket(), what: "an answer of another kind".to_owned() }
            }
        }
    }
}

fn find_way(
    dirs: &Dirs,
    patience: Patience,
    vantage: Vantage,
    before_open: &mut dyn FnMut(),
) -> Result<Way, Error> {
    let start = Instant::now();
    let mut progress = start;
    let mut holder: Option<Holder> = None;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(client) = Client::connect(&dirs.socket())? {
            return Ok(Way::Agent(client));
        }
        let yields = start.elapsed() < YIELD;
        if !(yields && Wanted::is_held(dirs)) {
            match Lock::try_take(dirs)? {
                // An agent may have asked for it since.
                Ok(lock) if yields && Wanted::is_held(dirs) => drop(lock),
                Ok(lock) => {
                    before_open();
                    return Ok(Way::Direct(Box::new(Engine::open(dirs, lock, vantage)?)));
                }
                Err(other) => {
                    if holder.as_ref() != Some(&other) {
                        progress = Instant::now();
                        holder = Some(other);
                    }
                }
            }
        }
        if progress.elapsed() >= patience.idle || start.elapsed() >= patience.total {
            let holder =
                holder.map_or_else(|| "an agent that is starting".to_owned(), |holder| holder.to_string());
            return Err(Error::Busy { store: dirs.store(), socket: dirs.socket(), holder });
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "socket and lock are two things to wait for; neither has an event"
        )]
        thread::sleep(pause);
        // Fifty that wait look once in 4 ms each: often enough to lose no time, seldom enough to cost none.
        pause = (pause * 3 / 2).min(Duration::from_millis(4));
    }
}

/// A GC by this process, links included.
fn gc(
    engine: &mut Engine,
    network: &str,
    valid: &[(String, String)],
    runtime: Option<&str>,
) -> Result<GcReport, Error> {
    let plan = engine.begin_gc(network, valid, runtime)?;
    let failed: Vec<String> = plan
        .remove
        .iter()
        .filter_map(|lease| remove_traffic(lease).err())
        .map(|error| error.chain())
        .collect();
    let removed = remove_links(&plan)?;
    let (mut report, ended) = report(plan, removed);
    engine.batch(|batch| {
        for lease in &ended {
            batch.finish_delete(lease.attachment.owner.id(), lease.generation);
        }
    })?;
    report.failed.extend(failed);
    // What belongs to nobody, whichever network it was of; among it what could not be removed above.
    if let Err(error) = put_rules(engine, &mut report.failed) {
        report.failed.push(error.chain());
    }
    Ok(report)
}

/// Makes the node's rules what the store says; whoever has a link keeps what it has.
fn put_rules(engine: &Engine, notices: &mut Vec<String>) -> Result<(), Error> {
    let failed = |error| Error::rules("put the packet filter's rules in order", error);
    let links = Netlink::open().and_then(|mut netlink| netlink.links());
    let links = links.map_err(|error| failed(error.into()))?;
    let links: BTreeSet<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let keep = |owner: OwnerId| links.contains(owner.link_name().as_str());
    let mut nft = Nft::open().map_err(|error| failed(error.into()))?;
    WantedRules::of(engine.pool().leases()).put(&mut nft, &keep, notices).map_err(failed)?;
    Ok(())
}

/// What became of each of a plan's links.
pub type Removed = std::collections::BTreeMap<OwnerId, podwire_kernel::Result<()>>;

/// Removes the links of the leases that a GC ends, and what others have left behind.
///
/// # Errors
/// The links cannot be listed.
pub fn remove_links(plan: &GcPlan) -> Result<Removed, Error> {
    let owners: Vec<_> = plan
        .remove
        .iter()
        .filter(|lease| lease.attachment.link.is_some())
        .map(|lease| lease.attachment.owner.id())
        .chain(plan.strays.iter().copied())
        .collect();
    if owners.is_empty() {
        return Ok(Removed::new());
    }
    let failed = |e| Error::kernel("remove the links of a GC", e);
    let mut netlink = Netlink::open().map_err(failed)?;
    removal::remove_many(&mut netlink, &owners).map_err(failed)
}

/// The report of a GC and the leases that have ended by it.
pub fn report(plan: GcPlan, removed: Removed) -> (GcReport, Vec<Lease>) {
    let mut report = GcReport {
        foreign: plan.foreign.into_iter().map(|lease| lease.attachment.owner).collect(),
        ..GcReport::default()
    };
    let mut ended = Vec::new();
    for lease in plan.remove {
        let owner = &lease.attachment.owner;
        match removed.get(&owner.id()) {
            Some(Err(error)) => report.failed.push(format!("{owner}: {error}")),
            // Without a link of ours there is nothing to remove.
            Some(Ok(())) | None => {
                report.removed.push(owner.clone());
                ended.push(lease);
            }
        }
    }
    (report, ended)
}
