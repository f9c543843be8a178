//! The pool and its store as one: what the allocator, whichever process it is, does with them.
//!
//! An operation is planned on the pool, applied to it, and committed with the others of its [`Batch`]. If the commit
//! fails, the pool is taken back to what it was: memory is never ahead of an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use podwire_attach::{Attachment, NetworkId, Owner, OwnerId, removal};
use podwire_kernel::link::{Link, LinkRef};
use podwire_kernel::{Netlink, Netns, NetnsError, clock};

use crate::cached_results::{self, CachedResult};
use crate::dirs::{Dirs, Lock};
use crate::import;
use crate::rebuild::{self, Found};
use crate::service::{Answer, EXTRAS, MAX_FRAME, PAGE};
use crate::store::{Durability, Loaded, SledStore, Store, StoreOrigin};
use crate::{
    BootMillis, Change, Ends, Error, GcPlan, Grant, Hold, Lease, LeaseState, Observation, Pool, RangeSet,
    Reserve, SetUsage, Sight, Sights, SweepPlan, Undo,
};

/// How old the last comparison of leases and links may be before a process that opens the store makes another.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// From where the process sees other processes' netns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vantage {
    /// It was called by the runtime, which gave it the path: a path that leads nowhere is a netns that is gone.
    Runtime,
    /// A process of its own, perhaps in a container: only of a netns that it has once seen does it know that it
    /// is gone.
    Apart,
    /// A command that somebody has typed, perhaps in a pod's netns, where none of the node's links can be seen: it
    /// compares leases with links only in the netns of process 1.
    Command,
}

/// The allocator.
pub struct Engine {
    pool: Pool,
    store: Box<dyn Store>,
    /// Whether changes have been committed that a power cut would lose.
    is_lazy: bool,
    vantage: Vantage,
    /// Whose netns this process has seen.
    seen: BTreeSet<OwnerId>,
    /// Whose rules are being removed: until that is done their ports are nobody else's.
    removing: BTreeSet<OwnerId>,
    notices: Vec<String>,
    boot: String,
    dirs: Dirs,
    /// The last to be dropped: whoever gets it finds the store closed.
    lock: Lock,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("dirs", &self.dirs)
            .field("leases", &self.pool.leases().count())
            .finish()
    }
}

impl Engine {
    /// Opens the store, rebuilds it if it was lost, ends the leases of earlier boots and, if that was not done
    /// within the last minute, those whose interfaces are gone.
    ///
    /// # Errors
    /// See [`SledStore::open`]; [`Error::Kernel`] if the links of a lost store cannot be read.
    pub fn open(dirs: &Dirs, lock: Lock, vantage: Vantage) -> Result<Self, Error> {
        dirs.make_state()?;
        let (store, loaded) = SledStore::open(dirs.store())?;
        Self::with_store(dirs, lock, vantage, Box::new(store), loaded)
    }

    fn with_store(
        dirs: &Dirs,
        lock: Lock,
        vantage: Vantage,
        store: Box<dyn Store>,
        loaded: Loaded,
    ) -> Result<Self, Error> {
        let boot = clock::boot_id().map_err(|e| Error::kernel("read this boot's id", e))?;
        let mut engine = Self {
            pool: Pool::default(),
            store,
            is_lazy: false,
            vantage,
            seen: BTreeSet::new(),
            removing: BTreeSet::new(),
            notices: Vec::new(),
            boot,
            dirs: dirs.clone(),
            lock,
        };
        engine.begin(loaded)?;
        Ok(engine)
    }

    /// Makes the state that was loaded that of this boot and of this node.
    fn begin(&mut self, loaded: Loaded) -> Result<(), Error> {
        self.pool = Pool::default();
        self.pool.apply_all(loaded.changes);
        let lost = match loaded.origin {
            StoreOrigin::Lost { why, kept } => Some((why, kept)),
            StoreOrigin::Fresh => None,
            // A store has its boot from its first commit on. Without one, whoever made it has died before that.
            StoreOrigin::Existing if self.pool.boot().is_none() => None,
            StoreOrigin::Existing => return self.resume(),
        };
        self.rebuild(lost)
    }

    /// Goes on with a store that was there.
    fn resume(&mut self) -> Result<(), Error> {
        let boot = self.boot.clone();
        let mended = self.lazily(|batch| batch.begin(&boot))?;
        self.say_mended(mended);
        // A DEL without an agent leaves the end of the lease to the next user of the store.
        let unfinished = self.pool.leases().any(|lease| lease.state == LeaseState::Deleting);
        // A store that has lost its end, or came back from a backup, may not know a live pod's address.
        let is_older = self.pool.generation() < self.lock.recorded();
        if is_older {
            self.notices.push(
                "the address store is older than its newest reservation: leases that it lacks are taken from the \
                 node's links and from cached results"
                    .to_owned(),
            );
        }
        if self.sees_links() {
            if is_older || unfinished || self.sweep_is_due() {
                self.compare(is_older)?;
            }
        } else if is_older {
            // Whoever opens it next may see the links.
            return Ok(());
        }
        self.lock.record(self.pool.generation());
        Ok(())
    }

    fn say_mended(&mut self, notices: Vec<String>) {
        self.notices
            .extend(notices.into_iter().map(|notice| format!("the address store was mended: {notice}")));
    }

    /// What opening has to tell, in whole sentences; it is told once.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// The state.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Plans with `operations` and commits what comes of it, as one.
    ///
    /// # Errors
    /// The commit failed: none of the operations has happened, whatever they returned.
    pub fn batch<T>(&mut self, operations: impl FnOnce(&mut Batch<'_>) -> T) -> Result<T, Error> {
        self.commit(operations, Durability::Lazy)
    }

    fn lazily<T>(&mut self, operations: impl FnOnce(&mut Batch<'_>) -> T) -> Result<T, Error> {
        self.commit(
            |batch| {
                let done = operations(batch);
                batch.durability = Durability::Lazy;
                done
            },
            Durability::Lazy,
        )
    }

    fn commit<T>(
        &mut self,
        operations: impl FnOnce(&mut Batch<'_>) -> T,
        durability: Durability,
    ) -> Result<T, Error> {
        let now = now()?;
        self.recover()?;
        let mut batch = Batch {
            pool: &mut self.pool,
            now,
            changes: Vec::new(),
            undo: Vec::new(),
            durability,
            unreadable: BTreeSet::new(),
            vantage: self.vantage,
            seen: &self.seen,
            removing: &mut self.removing,
        };
        let done = operations(&mut batch);
        let Batch { changes, undo, durability, .. } = batch;
        if changes.is_empty() && (durability == Durability::Lazy || !self.is_lazy) {
            return Ok(done);
        }
        match self.store.commit(&changes, durability) {
            Ok(()) => {
                self.is_lazy = durability == Durability::Lazy;
                if !self.is_lazy {
                    self.lock.record(self.pool.generation());
                }
                Ok(done)
            }
            Err(error) => {
                undo.into_iter().rev().for_each(|undo| self.pool.undo(undo));
                Err(error)
            }
        }
    }

    /// After a commit that failed on the way only the store knows what it contains.
    fn recover(&mut self) -> Result<(), Error> {
        if self.store.is_usable() {
            return Ok(());
        }
        let loaded = self.store.load()?;
        self.begin(loaded)
    }

    /// Makes durable what has been committed lazily.
    ///
    /// # Errors
    /// The disk.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.commit(|_| (), Durability::Lasting)
    }

    /// See [`Batch::reserve`]; durable.
    pub fn reserve(&mut self, request: &Reserve) -> Result<Grant, Error> {
        let mut grant = self.batch(|batch| batch.reserve(request))??;
        grant.notices.splice(0..0, self.take_notices());
        Ok(grant)
    }

    /// See [`Batch::import`]; durable.
    pub fn import(
        &mut self,
        network: &str,
        directory: &Path,
        sets: &[RangeSet],
    ) -> Result<Vec<String>, Error> {
        self.batch(|batch| batch.import(network, directory, sets))?
    }

    /// See [`Batch::adopt`]; durable.
    pub fn adopt(
        &mut self,
        network: &str,
        attachments: &[Attachment],
        cursors: &[(u32, IpAddr)],
        unknown: &[IpAddr],
    ) -> Result<Vec<String>, Error> {
        self.batch(|batch| batch.adopt(network, attachments, cursors, unknown))
    }

    /// See [`Batch::attached`]; not durable.
    pub fn attached(
        &mut self,
        owner: &Owner,
        generation: u64,
        finished: Option<&Attachment>,
    ) -> Result<(), Error> {
        self.batch(|batch| batch.attached(owner, generation, finished))?
    }

    /// See [`Batch::cancel`]; not durable.
    pub fn cancel(&mut self, owner: &Owner, generation: u64) -> Result<(), Error> {
        self.batch(|batch| batch.cancel(owner, generation))
    }

    /// See [`Batch::begin_delete`]; durable.
    pub fn begin_delete(&mut self, owner: &Owner, ends: Ends) -> Result<Vec<Lease>, Error> {
        self.batch(|batch| batch.begin_delete(owner, ends))
    }

    /// See [`Batch::finish_delete`]; not durable.
    pub fn finish_delete(&mut self, owner: OwnerId, generation: u64) -> Result<(), Error> {
        self.batch(|batch| batch.finish_delete(owner, generation))
    }

    /// From now on this owner's rules are being removed: nobody is given its ports until [`Engine::rules_removed`]. For an
    /// allocator that removes them while it serves others.
    pub fn removing_rules(&mut self, owner: OwnerId) {
        self.removing.insert(owner);
    }

    /// They are removed, or it was given up.
    pub fn rules_removed(&mut self, owner: OwnerId) {
        self.removing.remove(&owner);
    }

    /// Begins a GC of one network; durable. What it returns is to be removed and finished.
    ///
    /// # Errors
    /// The links cannot be read; the store.
    pub fn begin_gc(
        &mut self,
        network: &str,
        valid: &[(String, String)],
        runtime: Option<&str>,
    ) -> Result<GcPlan, Error> {
        let (seen, links, _) = self.observe()?;
        self.batch(|batch| {
            let mut plan = batch.pool.gc(network, valid, runtime, &seen);
            batch.apply(plan.changes.clone());
            plan.strays = strays(batch.pool, &seen, &links);
            if !plan.remove.is_empty() {
                batch.durability = Durability::Lasting;
            }
            plan
        })
    }

    /// A page of leases: as many as fit an answer well.
    pub fn leases(&self, network: Option<&str>, after: Option<OwnerId>) -> Answer {
        let mut room = MAX_FRAME / 2;
        let mut leases: Vec<Lease> = Vec::new();
        let rest = self.pool.leases_after(after);
        for lease in rest.filter(|lease| network.is_none_or(|name| lease.attachment.owner.network == name)) {
            // The length of what is sent: names in it may be as long as whoever asked for them liked.
            let length = serde_json::to_vec(lease).map_or(0, |text| text.len());
            if leases.len() == PAGE || (length > room && !leases.is_empty()) {
                return Answer::Leases { leases, more: true };
            }
            room = room.saturating_sub(length);
            leases.push(lease.clone());
        }
        Answer::Leases { leases, more: false }
    }

    /// What [`Op::Extras`](crate::service::Op::Extras) asks for.
    pub fn extras(&self, network: &str) -> Answer {
        let id = NetworkId::of(network);
        let unknown = self.pool.holds().filter_map(|(network, address, hold)| {
            (network == id && matches!(hold, Hold::Unknown(_))).then_some(address)
        });
        Answer::Extras { unknown: unknown.take(EXTRAS).collect(), cursors: self.pool.cursors(id).collect() }
    }

    /// How much of a network's range sets is in use.
    pub fn usage(&self, network: &str, sets: &[RangeSet]) -> Vec<SetUsage> {
        self.pool.usage(network, sets)
    }

    /// Compares leases and links: leases whose interfaces are gone end, links of ours without a lease get theirs back.
    /// Not durable: the next one would find the same.
    ///
    /// # Errors
    /// The links cannot be read; the store.
    pub fn sweep(&mut self) -> Result<SweepPlan, Error> {
        self.compare(false)
    }

    /// [`Engine::sweep`]; in doubt about the store also what libcni remembers is looked at.
    fn compare(&mut self, in_doubt: bool) -> Result<SweepPlan, Error> {
        let (seen, links, mut netlink) = self.observe()?;
        let mut found = rebuild::orphans(&self.pool, &links, &mut netlink, cached);
        if in_doubt {
            let remembered = rebuild::remembered(&self.pool, &found, &cached());
            found.attachments.extend(remembered.attachments);
            found.unknown.extend(remembered.unknown);
        }
        let (plan, notices) = self.lazily(|batch| {
            let mut plan = batch.pool.sweep(&seen, batch.now);
            batch.apply(plan.changes.clone());
            plan.strays = strays(batch.pool, &seen, &links);
            if found.is_empty() {
                return (plan, Vec::new());
            }
            let given_up = batch.pool.give_up(&found.attachments, &found.unknown, &seen, batch.now);
            batch.apply(given_up.changes);
            let adopted = batch.pool.rebuilt(&found.attachments, &found.unknown);
            batch.apply(adopted.changes);
            (plan, [given_up.notices, adopted.notices].concat())
        })?;
        for attachment in &found.attachments {
            self.notices.push(format!(
                "the interface of {} had no lease; it has been given one for the addresses on it",
                attachment.title()
            ));
        }
        self.notices.extend(notices);
        // Its time of change is all that counts. If it cannot be written, the next process sweeps once more.
        let _ = File::create(self.dirs.swept());
        Ok(plan)
    }

    fn sees_links(&self) -> bool {
        let is_of_init = || Some(Netns::open("/proc/1/ns/net").ok()?.same_as(&Netns::current().ok()?));
        self.vantage != Vantage::Command || is_of_init().unwrap_or(false)
    }

    fn sweep_is_due(&self) -> bool {
        let age = fs::metadata(self.dirs.swept())
            .and_then(|swept| swept.modified())
            .ok()
            // A time that lies ahead has no age: the clock has been set back.
            .and_then(|swept| SystemTime::now().duration_since(swept).ok());
        age.is_none_or(|age| age >= SWEEP_EVERY)
    }

    /// One look at the node.
    fn observe(&mut self) -> Result<(Observation, Vec<Link>, Netlink), Error> {
        let failed = |e| Error::kernel("read the node's links", e);
        let mut netlink = Netlink::open().map_err(failed)?;
        let links = netlink.links().map_err(failed)?;
        let mut netns = BTreeMap::new();
        for lease in self.pool.leases().filter(|lease| lease.attachment.link.is_none()) {
            let id = lease.attachment.owner.id();
            let sight = look(&lease.attachment, self.vantage, self.seen.contains(&id));
            if sight == Sight::Present {
                self.seen.insert(id);
            }
            netns.insert(id, sight);
        }
        self.seen.retain(|id| self.pool.lease(*id).is_some());
        let names = links.iter().map(|link| link.name.clone()).collect();
        Ok((Observation { links: names, netns, removing: self.removing.clone() }, links, netlink))
    }

    /// Fills a new store with what the node shows.
    fn rebuild(&mut self, lost: Option<(String, PathBuf)>) -> Result<(), Error> {
        let store = self.dirs.store();
        let what = lost.as_ref().map(|(why, kept)| {
            format!(
                "the address store {} could not be used ({why}) and is now kept as {}",
                store.display(),
                kept.display()
            )
        });
        if !self.sees_links() {
            // The store stays without a boot, and so to be rebuilt by whoever opens it next.
            self.notices.extend(what.map(|what| {
                format!("{what}: it is rebuilt by the next program that sees the node's interfaces")
            }));
            return Ok(());
        }
        let failed = |e| Error::kernel("read the node's links to rebuild the address store", e);
        let mut netlink = Netlink::open().map_err(failed)?;
        let links = netlink.links().map_err(failed)?;
        let cached = cached();
        let Found { mut attachments, mut unknown } =
            rebuild::orphans(&self.pool, &links, &mut netlink, || cached.clone());
        let from_links = attachments.len();
        let remembered = rebuild::remembered(
            &self.pool,
            &Found { attachments: attachments.clone(), unknown: Vec::new() },
            &cached,
        );
        attachments.extend(remembered.attachments);
        unknown.extend(remembered.unknown);
        let from_cache = attachments.len() - from_links;
        let boot = self.boot.clone();
        // As one: a store that has a boot has been rebuilt.
        let (mended, notices) = self.commit(
            |batch| {
                let mended = batch.begin(&boot);
                let adopted = batch.pool.rebuilt(&attachments, &unknown);
                batch.apply(adopted.changes);
                (mended, adopted.notices)
            },
            Durability::Lasting,
        )?;
        self.lock.record(self.pool.generation());
        self.say_mended(mended);
        let what = match what {
            Some(what) => what,
            None if attachments.is_empty() && unknown.is_empty() => return Ok(()),
            None => format!("the address store {} was missing", store.display()),
        };
        self.notices.push(format!(
            "{what}: it has been rebuilt with {from_links} leases from the node's links and {from_cache} from cached \
             results; {} addresses of unknown owners stay reserved until two GC passes",
            unknown.len()
        ));
        self.notices.extend(notices);
        Ok(())
    }
}

fn cached() -> Vec<CachedResult> {
    cached_results::read(cached_results::DIRECTORY.as_ref())
}

/// Owners that have neither lease nor interface any more, but the link by which they were shaped.
fn strays(pool: &Pool, seen: &Observation, links: &[Link]) -> Vec<OwnerId> {
    removal::shapers(links)
        .map(|(owner, _)| owner)
        .filter(|owner| pool.lease(*owner).is_none() && !seen.links.contains(&owner.link_name()))
        .collect()
}

/// What can be said about the netns of an attachment without a link of ours.
fn look(attachment: &Attachment, vantage: Vantage, was_seen: bool) -> Sight {
    if attachment.netns.is_empty() {
        return Sight::Unknown;
    }
    let gone = match vantage {
        Vantage::Runtime => Sight::Gone,
        Vantage::Apart if was_seen => Sight::Gone,
        Vantage::Apart | Vantage::Command => Sight::Unknown,
    };
    let netns = match Netns::open(&attachment.netns) {
        Ok(netns) => netns,
        Err(NetnsError::Missing(_) | NetnsError::NotNetns { .. }) => return gone,
        Err(NetnsError::Open { .. }) => return Sight::Unknown,
    };
    let Some(recorded) = attachment.netns_identity else { return Sight::Unknown };
    match netns.identity() {
        Ok(identity) if recorded.is_same(&identity) => Sight::Present,
        Ok(_) => Sight::Gone,
        Err(_) => Sight::Unknown,
    }
}

/// The present time, as leases are told.
///
/// # Errors
/// [`Error::Kernel`] on a kernel without CLOCK_BOOTTIME.
pub fn now() -> Result<BootMillis, Error> {
    clock::boot_millis().map(BootMillis).map_err(|e| Error::kernel("read the clock", e))
}

/// Operations that are committed together.
#[derive(Debug)]
pub struct Batch<'e> {
    pool: &'e mut Pool,
    now: BootMillis,
    changes: Vec<Change>,
    undo: Vec<Undo>,
    durability: Durability,
    /// Directories of host-local that could not be read: its lock is waited for once, not by each of fifty ADDs.
    unreadable: BTreeSet<PathBuf>,
    vantage: Vantage,
    seen: &'e BTreeSet<OwnerId>,
    removing: &'e mut BTreeSet<OwnerId>,
}

impl Batch<'_> {
    /// The state with the operations so far.
    pub fn pool(&self) -> &Pool {
        self.pool
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.undo.push(self.pool.apply_undoable(changes.iter().cloned()));
        self.changes.extend(changes);
    }

    /// Makes the state that of this boot, and consistent; what was not.
    fn begin(&mut self, boot: &str) -> Vec<String> {
        self.apply(self.pool.new_boot(boot));
        let mended = self.pool.mend();
        self.apply(mended.changes);
        mended.notices
    }

    fn must_last(&mut self) {
        self.durability = Durability::Lasting;
    }

    /// Gives an owner its addresses. On the first use of a network what host-local has given is imported.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::Io`] if host-local's directory cannot be read.
    pub fn reserve(&mut self, request: &Reserve) -> Result<Grant, Error> {
        let network = &request.attachment.owner.network;
        let mut notices = match &request.import_dir {
            Some(directory) => self.import(network, directory, &request.sets)?,
            None => Vec::new(),
        };
        let rivals = self.look_at_rivals(&request.attachment);
        let (mut grant, changes) = self.pool.reserve(request, &rivals, self.now)?;
        self.apply(changes);
        self.must_last();
        notices.append(&mut grant.notices);
        Ok(Grant { notices, ..grant })
    }

    /// Whether those live who have a host port that this attachment asks for. The kernel is asked only if there are any.
    fn look_at_rivals(&self, attachment: &Attachment) -> Sights {
        let mut netlink = None;
        let mut link_sight = |name: &str| {
            let netlink = match &mut netlink {
                Some(netlink) => netlink,
                none => none.insert(Netlink::open().ok()?),
            };
            let is_there = netlink.link(LinkRef::Name(name)).ok()?.is_some();
            Some(if is_there { Sight::Present } else { Sight::Gone })
        };
        let mut sights = Sights::new();
        for lease in self.pool.port_rivals(attachment) {
            let id = lease.attachment.owner.id();
            let sight = match (&lease.attachment.link, lease.state) {
                (_, LeaseState::Deleting) if self.removing.contains(&id) => Sight::Present,
                // Its pod is not to be reached any more, whether or not the interface is gone.
                (_, LeaseState::Deleting) => Sight::Gone,
                (Some(name), _) => link_sight(name).unwrap_or(Sight::Unknown),
                (None, _) => look(&lease.attachment, self.vantage, self.seen.contains(&id)),
            };
            sights.insert(id, sight);
        }
        sights
    }

    /// Imports what host-local has given on a network, once; what there is to tell about it. The range sets tell the
    /// prefix lengths and gateways of what is imported.
    ///
    /// # Errors
    /// [`Error::Io`] if host-local's directory cannot be read.
    pub fn import(
        &mut self,
        network: &str,
        directory: &Path,
        sets: &[RangeSet],
    ) -> Result<Vec<String>, Error> {
        if self.pool.is_imported(NetworkId::of(network)) {
            return Ok(Vec::new());
        }
        if self.unreadable.contains(directory) {
            let source = io::Error::other("another request has just failed at it");
            return Err(Error::io("read directory", directory, source));
        }
        let mut imported = import::read(directory, network, sets).inspect_err(|_| {
            self.unreadable.insert(directory.to_owned());
        })?;
        if !imported.attachments.is_empty() {
            imported.join(&cached());
        }
        let unknown: Vec<IpAddr> = imported.unknown.iter().map(|(_, address)| *address).collect();
        let adopted = self.adopt(network, &imported.attachments, &imported.cursors, &unknown);
        let mut notices = Vec::new();
        if !imported.attachments.is_empty() || !imported.unknown.is_empty() {
            notices.push(format!(
                "{} addresses of network {network} that host-local had given have been imported from {}; it is not \
                 read again",
                imported.attachments.len() + imported.unknown.len(),
                directory.display()
            ));
        }
        notices.append(&mut imported.notices);
        notices.extend(adopted);
        Ok(notices)
    }

    /// Takes what another program has attached, and gave addresses, into a network; what there is to tell about it. What is
    /// known already stays as it is.
    pub fn adopt(
        &mut self,
        network: &str,
        attachments: &[Attachment],
        cursors: &[(u32, IpAddr)],
        unknown: &[IpAddr],
    ) -> Vec<String> {
        let adopted = self.pool.import(network, attachments, cursors);
        self.apply(adopted.changes);
        let unknown: Vec<_> = unknown.iter().map(|address| (NetworkId::of(network), *address)).collect();
        let kept = self.pool.rebuilt(&[], &unknown);
        self.apply(kept.changes);
        self.must_last();
        adopted.notices
    }

    /// Records that the interface of a reservation is up. `finished` is the attachment as it came out, where it
    /// differs from what was reserved; its owner and addresses are not looked at.
    ///
    /// # Errors
    /// [`Error::Stale`]: the caller undoes what it made.
    pub fn attached(
        &mut self,
        owner: &Owner,
        generation: u64,
        finished: Option<&Attachment>,
    ) -> Result<(), Error> {
        let changes = self.pool.attached(owner.id(), generation, finished, self.now)?;
        self.apply(changes);
        Ok(())
    }

    /// Has the pods of a network follow a change of the cluster's ranges; see [`Pool::follow_ranges`]. Their number.
    pub fn follow_ranges(&mut self, network: &str, before: &[IpNetwork], now: &[IpNetwork]) -> usize {
        let changes = self.pool.follow_ranges(network, before, now);
        let count = changes.len();
        self.apply(changes);
        count
    }

    /// Takes a reservation back whose interface was not made, or is gone again.
    pub fn cancel(&mut self, owner: &Owner, generation: u64) {
        let changes = self.pool.cancel(owner.id(), generation, self.now);
        self.apply(changes);
    }

    /// Records that DEL has begun, before it touches anything; the leases that it ends, which are none if the owner has
    /// none.
    pub fn begin_delete(&mut self, owner: &Owner, ends: Ends) -> Vec<Lease> {
        let ended: Vec<Owner> =
            self.pool.ended_by(owner, ends).map(|lease| lease.attachment.owner.clone()).collect();
        let mut leases = Vec::new();
        for (lease, changes) in
            ended.iter().filter_map(|owner| self.pool.begin_delete(owner)).collect::<Vec<_>>()
        {
            self.apply(changes);
            leases.push(lease);
            // Also without changes: an earlier DEL may have begun it, and not durably.
            self.must_last();
        }
        leases
    }

    /// See [`Engine::removing_rules`].
    pub fn removing_rules(&mut self, owner: OwnerId) {
        self.removing.insert(owner);
    }

    /// See [`Engine::rules_removed`].
    pub fn rules_removed(&mut self, owner: OwnerId) {
        self.removing.remove(&owner);
    }

    /// Ends a lease whose interface is gone.
    pub fn finish_delete(&mut self, owner: OwnerId, generation: u64) {
        let changes = self.pool.finish_delete(owner, generation, self.now);
        self.apply(changes);
    }
}
