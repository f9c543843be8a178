//! Removal of pods' links without the kernel's wait.
//!
//! The kernel takes a link off its lists within a millisecond and says so to whoever listens, but answers the
//! request only 17–54 ms later. So the request is sent by a thread that holds nothing, and DEL is answered when the link
//! is heard to be gone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use podwire_attach::removal::{self, Found};
use podwire_attach::{Owner, OwnerId, step::step};
use podwire_kernel::events::{Event, Events, Topics};
use podwire_kernel::link::{Link, LinkRef};
use podwire_kernel::{Netlink, Netns, detached};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::spawn_local;

/// How many removals wait in the kernel at once; each takes two threads.
const AT_ONCE: usize = 64;

/// The links of this node, on the runtime's one thread.
#[derive(Clone)]
pub(crate) struct Links(Rc<Inner>);

struct Inner {
    netlink: RefCell<Netlink>,
    /// Who waits for which index to be gone.
    waiting: RefCell<BTreeMap<u32, Vec<Waiter>>>,
    slots: Arc<Semaphore>,
}

/// A place among those that remove links, given back when the last of its copies is dropped: the links of one pod share
/// it.
#[derive(Clone)]
pub(crate) struct Slot(#[expect(dead_code, reason = "held for its drop")] Option<Arc<OwnedSemaphorePermit>>);

struct Waiter {
    name: String,
    gone: oneshot::Sender<()>,
}

impl Links {
    /// Opens the way to the kernel and begins to listen. Inside a `LocalSet`.
    pub(crate) fn open() -> Result<(Self, Events), podwire_kernel::Error> {
        let events = Events::open(Topics::LINKS)?;
        let inner = Inner {
            netlink: RefCell::new(Netlink::open()?),
            waiting: RefCell::default(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        };
        Ok((Self(Rc::new(inner)), events))
    }

    /// Hears of removed links until the runtime ends.
    pub(crate) async fn listen(self, mut events: Events) {
        loop {
            match events.next().await {
                Ok(Event::LinkRemoved { index, .. }) => {
                    // Whoever waits no more has dropped the other end.
                    for waiter in self.0.waiting.borrow_mut().remove(&index).into_iter().flatten() {
                        let _ = waiter.gone.send(());
                    }
                }
                Ok(Event::Overrun) => self.look_at_all(),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the stream of link events broke; opening another");
                    events = self.listen_again().await;
                }
            }
        }
    }

    async fn listen_again(&self) -> Events {
        loop {
            match Events::open(Topics::LINKS) {
                Ok(events) => {
                    self.look_at_all();
                    return events;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot listen for link events");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// After events were lost: each link that somebody waits for is looked at.
    fn look_at_all(&self) {
        let mut waiting = self.0.waiting.borrow_mut();
        let mut netlink = self.0.netlink.borrow_mut();
        waiting.retain(|index, waiters| {
            let Ok(link) = netlink.link(LinkRef::Index(*index)) else { return true };
            let is_there = |waiter: &Waiter| link.as_ref().is_some_and(|link| link.name == waiter.name);
            for waiter in std::mem::take(waiters) {
                if is_there(&waiter) {
                    waiters.push(waiter);
                } else {
                    let _ = waiter.gone.send(());
                }
            }
            !waiters.is_empty()
        });
    }

    /// Whether a client lives in another network namespace: then its links are not those that are seen here.
    pub(crate) fn is_elsewhere(&self, client: &UnixStream) -> bool {
        match (self.0.netlink.borrow().netns_cookie(), Netns::cookie_of(client.as_fd())) {
            (Some(own), Some(clients)) => own != clients,
            _ => false,
        }
    }

    /// Whether a place among those that remove links is to be waited for.
    pub(crate) fn is_full(&self) -> bool {
        self.0.slots.available_permits() == 0
    }

    /// Waits for such a place. What waits for one has looked at nothing yet.
    pub(crate) async fn slot(&self) -> Slot {
        // It is never closed.
        Slot(Arc::clone(&self.0.slots).acquire_owned().await.ok().map(Arc::new))
    }

    /// An owner's links as they are now: its veth, and the one that it is shaped by. None that is not the owner's.
    pub(crate) fn find(&self, owner: &Owner, is_shaped: bool) -> Result<Vec<Link>, podwire_kernel::Error> {
        // By the name at this moment: an index may be another link's by the time a request is carried out, and runtimes
        // use a container's id again.
        let netlink = &mut self.0.netlink.borrow_mut();
        let mut found = vec![removal::find(netlink, owner)?];
        if is_shaped {
            found.push(removal::find_shaper(netlink, owner.id())?);
        }
        let ours = found.into_iter().filter_map(|found| match found {
            Found::Ours(link) => Some(*link),
            Found::Foreign(link) => {
                tracing::warn!(link = link.name, %owner, "left a link of the owner's name that is not podwire's");
                None
            }
            Found::Missing => None,
        });
        Ok(ours.collect())
    }

    /// The link that an owner was shaped by, whose interface is gone.
    pub(crate) fn find_stray(&self, owner: OwnerId) -> Result<Option<Link>, podwire_kernel::Error> {
        Ok(match removal::find_shaper(&mut self.0.netlink.borrow_mut(), owner)? {
            Found::Ours(link) => Some(*link),
            Found::Foreign(_) | Found::Missing => None,
        })
    }

    /// Removes links at once. Returns when all are gone.
    pub(crate) async fn remove_all(&self, slot: Slot, links: Vec<Link>) -> Result<(), podwire_kernel::Error> {
        let mut links = links.into_iter();
        let Some(first) = links.next() else { return Ok(()) };
        let mut under_way = Vec::new();
        for link in links {
            let (this, slot) = (self.clone(), slot.clone());
            under_way.push(spawn_local(async move { this.remove(slot, &link).await }));
        }
        let mut result = self.remove(slot, &first).await;
        for removal in under_way {
            match removal.await {
                Ok(removed) => result = result.and(removed),
                // A panic, which the log has.
                Err(_) => result = result.and(Err(nobody_knows("its link"))),
            }
        }
        result
    }

    /// Removes a link. Returns when it is gone.
    pub(crate) async fn remove(&self, slot: Slot, link: &Link) -> Result<(), podwire_kernel::Error> {
        let gone = self.wait_for(link);
        let (done, answered) = oneshot::channel();
        step("dellink");
        detached::delete_link(link.index, &link.name, move |result| {
            drop(slot);
            let _ = done.send(result);
        })?;
        let answered = async {
            match answered.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) if error.is_missing() => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(nobody_knows(&link.name)),
            }
        };
        tokio::select! {
            Ok(()) = gone => {
                step("dellink-gone");
                Ok(())
            }
            result = answered => result,
        }
    }

    fn wait_for(&self, link: &Link) -> oneshot::Receiver<()> {
        let (gone, heard) = oneshot::channel();
        let mut waiting = self.0.waiting.borrow_mut();
        let waiters = waiting.entry(link.index).or_default();
        waiters.retain(|waiter| !waiter.gone.is_closed());
        waiters.push(Waiter { name: link.name.clone(), gone });
        heard
    }
}

/// Whether the link is gone.
fn nobody_knows(link: &str) -> podwire_kernel::Error {
    podwire_kernel::Error {
        op: "delete link",
        object: link.to_owned(),
        errno: nix::errno::Errno::EIO as i32,
        detail: Some("the thread that was to do it has failed".to_owned()),
        index: None,
    }
}
