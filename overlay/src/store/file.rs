//! The peers file: every node has the same list of all nodes. For labs and clusters that seldom change.
//!
//! It is read again when it changes, whichever way: written in place, replaced by a rename, or reached by a symbolic link
//! that points elsewhere now. A list that makes no sense changes nothing; what was right before stays right.

mod look;
pub mod peers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use self::look::{Look, Looker};
use super::{Announcement, ClusterStore, Command, Membership, StoreContext, StoreEvent};
use crate::cluster::{NodeRecord, Snapshot};

pub use peers::parse;

/// How often the file is looked at: half of that is how late a change is seen on average.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// The store.
pub struct FileStore {
    path: PathBuf,
    reload: Arc<Notify>,
}

impl FileStore {
    /// Of that file. Notified by `reload` it looks at it at once.
    pub fn new(path: PathBuf, reload: Arc<Notify>) -> Self {
        Self { path, reload }
    }
}

impl ClusterStore for FileStore {
    fn describe(&self) -> String {
        format!("peers file {}", self.path.display())
    }

    fn run(self: Box<Self>, context: StoreContext) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(watch(*self, context))
    }
}

async fn watch(store: FileStore, context: StoreContext) {
    let StoreContext { identity, remembered, mut announcement, events, mut commands, .. } = context;
    let mut teller = Teller {
        path: store.path.display().to_string(),
        own: identity.name,
        state: State { membership: remembered.map(|remembered| remembered.membership), ..State::default() },
        events,
    };
    let mut looker = Looker::new(store.path);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => teller.decline(command),
                None => return,
            },
            _ = ticks.tick() => {}
            () = store.reload.notified() => {}
            // Its sender goes with the agent, which ends by the commands.
            Ok(()) = announcement.changed() => {}
        }
        let said = announcement.borrow_and_update().clone();
        if teller.tell(looker.look().await, &said).await.is_err() {
            return;
        }
    }
}

/// Nobody listens any more.
struct Gone;

/// What has been told so far.
#[derive(Default)]
struct State {
    /// This node's part, if the file or an earlier life said one.
    membership: Option<Membership>,
    /// Whether it has been told in this life, and not been taken back.
    joined: bool,
    snapshot: Option<Arc<Snapshot>>,
    /// Why the file cannot be read.
    lost: Option<String>,
    /// Why its content is not used.
    wrong: Option<String>,
    /// Why this node has no part in it.
    apart: Option<String>,
    /// What is odd about this node's own addresses.
    odd: Option<String>,
}

struct Teller {
    path: String,
    own: String,
    state: State,
    events: mpsc::Sender<StoreEvent>,
}

impl Teller {
    async fn send(&self, event: StoreEvent) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }

    fn decline(&self, command: Command) {
        let text = format!("the cluster stands in a file: edit {} on every node", self.path);
        let _ = command.answer.send(Err(text));
    }

    async fn tell(&mut self, look: Look, said: &Announcement) -> Result<(), Gone> {
        let text = match look {
            Look::Same => None,
            Look::Unreadable(why) => return self.tell_loss(why).await,
            Look::Text(text) => Some(text),
        };
        if self.state.lost.take().is_some() {
            self.send(StoreEvent::Found).await?;
        }
        if let Some(text) = text {
            match parse(&self.path, &text) {
                Ok(snapshot) => self.tell_snapshot(snapshot).await?,
                Err(errors) => self.tell_mistakes(errors.to_string()).await?,
            }
        }
        self.tell_own_addresses(said).await
    }

    async fn tell_loss(&mut self, why: String) -> Result<(), Gone> {
        if self.state.lost.is_none() {
            self.send(StoreEvent::Lost { why: why.clone() }).await?;
        }
        self.state.lost = Some(why);
        Ok(())
    }

    async fn tell_mistakes(&mut self, why: String) -> Result<(), Gone> {
        if self.state.wrong.as_ref() == Some(&why) {
            return Ok(());
        }
        self.state.wrong = Some(why.clone());
        // A node that knows nothing yet has no part in anything; any other goes on as it is.
        if self.state.membership.is_none() {
            return self.send(StoreEvent::Refused { why }).await;
        }
        self.send(StoreEvent::Notice(format!("the last usable list of nodes is kept: {why}"))).await
    }

    async fn tell_snapshot(&mut self, mut snapshot: Snapshot) -> Result<(), Gone> {
        self.state.wrong = None;
        if let Some(earlier) = &self.state.snapshot {
            share(&mut snapshot.nodes, &earlier.nodes);
        }
        let snapshot = match &self.state.snapshot {
            Some(earlier) if **earlier == snapshot => earlier.clone(),
            _ => Arc::new(snapshot),
        };
        self.state.snapshot = Some(snapshot.clone());
        self.tell_part(&snapshot).await?;
        self.send(StoreEvent::Snapshot { snapshot, absent: None, mark: None }).await
    }

    /// This node's own part, if it is another than last told.
    async fn tell_part(&mut self, snapshot: &Snapshot) -> Result<(), Gone> {
        let Some(own) = snapshot.nodes.get(&self.own) else {
            let why = format!(
                "{} has no node {:?}: add this node, or set node_name to the name that it has there",
                self.path, self.own
            );
            if self.state.apart.replace(why.clone()).is_some() {
                return Ok(());
            }
            self.state.joined = false;
            // It had subnets: they may be another's in the new list.
            let event = match self.state.membership {
                Some(_) => StoreEvent::Fenced { why },
                None => StoreEvent::Refused { why },
            };
            return self.send(event).await;
        };
        let membership =
            Membership { subnets: own.subnets.clone(), generation: 0, claimed: 0, ..Membership::default() };
        let is_told = self.state.joined && self.state.membership.as_ref() == Some(&membership);
        self.state.apart = None;
        self.state.joined = true;
        self.state.membership = Some(membership.clone());
        if is_told { Ok(()) } else { self.send(StoreEvent::Joined(membership)).await }
    }

    /// Nobody reaches a node whose addresses are not those that everybody has in their file.
    async fn tell_own_addresses(&mut self, said: &Announcement) -> Result<(), Gone> {
        let own = self.state.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get(&self.own));
        let odd = own.and_then(|own| missing_address(own, &said.addresses)).map(|missing| {
            let has: Vec<String> = said.addresses.iter().map(ToString::to_string).collect();
            format!(
                "{} says that this node ({}) has address {missing}, but its own are {}: other nodes do not reach it there",
                self.path,
                self.own,
                has.join(", ")
            )
        });
        if odd == self.state.odd {
            return Ok(());
        }
        self.state.odd.clone_from(&odd);
        match odd {
            Some(text) => self.send(StoreEvent::Notice(text)).await,
            None => Ok(()),
        }
    }
}

/// The address in the file that the node does not have. Before it has said any, nothing is known.
fn missing_address(own: &NodeRecord, has: &[IpAddr]) -> Option<IpAddr> {
    own.addresses.iter().copied().find(|address| !has.is_empty() && !has.contains(address))
}

/// Puts the earlier records in the place of equal ones: what is the same `Arc` has not changed.
fn share(nodes: &mut BTreeMap<String, Arc<NodeRecord>>, earlier: &BTreeMap<String, Arc<NodeRecord>>) {
    for (name, record) in nodes {
        if let Some(same) = earlier.get(name).filter(|same| *same == record) {
            *record = same.clone();
        }
    }
}
