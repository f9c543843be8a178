//! The cases that users of host-local know, and those of a node that loses its store, its clock or its pods.

mod adoption;
mod endings;
mod interleaving;
mod ports;
mod reservation;

use std::collections::BTreeSet;
use std::net::IpAddr;

use podwire_attach::{Attachment, NetworkId, Owner};

use super::*;
use crate::{Grant, LeaseState, Observation, RangeSpec, Refusal, Reserve, Sight, Sights, pod_address};

const BOOT: &str = "0c8b0d0e-0000-4000-8000-000000000001";
const NET: &str = "net";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `10.0.0.0/24 start end`: start and end may be missing.
fn set(texts: &[&str]) -> RangeSet {
    let range = |text: &&str| {
        let mut words = text.split_whitespace();
        let subnet = words.next().expect("a subnet").parse().expect("a subnet");
        let (range_start, range_end) = (words.next().map(ip), words.next().map(ip));
        crate::Range::new(RangeSpec { subnet, range_start, range_end, gateway: None }).expect("a range")
    };
    RangeSet::new(texts.iter().map(range).collect()).expect("a range set")
}

fn owner(container: &str) -> Owner {
    Owner::new(NET, container, "eth0")
}

fn attachment(owner: Owner) -> Attachment {
    Attachment {
        link: Some(owner.link_name()),
        owner,
        addresses: Vec::new(),
        mac: None,
        bridge: Some("cni0".into()),
        netns: "/run/netns/a".into(),
        netns_identity: None,
        pod: None,
        runtime: Some("containerd".into()),
        given: Vec::new(),
        traffic: None,
    }
}

/// A pool with the sets of one network, and a clock that stands still until it is moved.
struct Node {
    pool: Pool,
    sets: Vec<RangeSet>,
    now: BootMillis,
    quarantine_ms: u64,
    /// What the next reservations are told of others.
    sights: Sights,
}

impl Node {
    fn new(sets: Vec<RangeSet>) -> Self {
        let mut pool = Pool::default();
        pool.apply_all(pool.new_boot(BOOT));
        Self {
            pool,
            sets,
            now: BootMillis(1_000_000),
            quarantine_ms: DEFAULT_QUARANTINE_MS,
            sights: Sights::new(),
        }
    }

    fn try_add(&mut self, owner: &Owner, requested: &[&str]) -> Result<Grant, Refusal> {
        self.try_attachment(attachment(owner.clone()), requested)
    }

    fn try_attachment(&mut self, attachment: Attachment, requested: &[&str]) -> Result<Grant, Refusal> {
        let request = Reserve {
            attachment,
            sets: self.sets.clone(),
            requested: requested.iter().map(|text| ip(text)).collect(),
            quarantine_ms: self.quarantine_ms,
            import_dir: None,
        };
        let (grant, changes) = self.pool.reserve(&request, &self.sights, self.now)?;
        self.commit(changes);
        Ok(grant)
    }

    fn reserve(&mut self, container: &str) -> Grant {
        self.try_add(&owner(container), &[]).expect("an address")
    }

    /// A whole ADD; its addresses, joined.
    fn add(&mut self, container: &str) -> String {
        let grant = self.reserve(container);
        let changes = self.pool.attached(owner(container).id(), grant.generation, None, self.now);
        self.commit(changes.expect("attached"));
        joined(&grant)
    }

    fn refusal(&mut self, container: &str, requested: &[&str]) -> String {
        self.try_add(&owner(container), requested).expect_err("a refusal").to_string()
    }

    /// A whole DEL.
    fn del(&mut self, container: &str) {
        let Some((lease, changes)) = self.pool.begin_delete(&owner(container)) else { return };
        self.commit(changes);
        self.commit(self.pool.finish_delete(lease.attachment.owner.id(), lease.generation, self.now));
    }

    fn commit(&mut self, changes: Vec<Change>) {
        self.pool.apply_all(changes);
        assert_eq!(self.pool.invariants(), Vec::<String>::new());
    }

    fn sleep(&mut self, ms: u64) {
        self.now = BootMillis(self.now.0 + ms);
    }

    fn lease(&self, container: &str) -> Option<&Lease> {
        self.pool.find(&owner(container))
    }

    fn hold(&self, address: &str) -> Option<Hold> {
        self.pool.hold(NetworkId::of(NET), ip(address))
    }

    fn sees(&self, containers: &[&str]) -> Observation {
        let links = containers.iter().map(|container| owner(container).link_name()).collect();
        Observation { links, ..Observation::default() }
    }
}

fn joined(grant: &Grant) -> String {
    grant.addresses.iter().map(|address| address.address.to_string()).collect::<Vec<_>>().join(",")
}
