//! Stores that were not filled by whoever made them.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use podwire_attach::{Owner, alias};
use podwire_ipam::{Dirs, Engine, Lock, SledStore, Vantage};
use podwire_kernel::link::{self, LinkChange, LinkRef, VethSpec};
use podwire_kernel::{Netlink, Netns};

/// Runs `work` on a thread in a network namespace of its own.
#[expect(clippy::expect_used, reason = "a test that lacks privilege fails and says which")]
fn on_a_node<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[expect(clippy::disallowed_methods, reason = "the thread ends with its namespace")]
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("CAP_SYS_ADMIN");
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
}

#[expect(clippy::expect_used, reason = "a test that lacks privilege fails and says which")]
fn make_link(owner: &Owner, address: &str) {
    let here = Netns::current().expect("/proc");
    let name = owner.link_name();
    let spec = VethSpec {
        name: &name,
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: &format!("p{}", name.trim_start_matches("pw")),
        peer_netns: std::os::fd::AsFd::as_fd(&here),
        peer_mac: None,
    };
    let alias = alias::format(owner, &[address.parse().expect("an address")]);
    let alias = LinkChange { alias: Some(alias), ..LinkChange::default() };
    let mut netlink = Netlink::open().expect("netlink");
    let mut requests = vec![link::create_veth(&spec)];
    requests.extend(link::change(LinkRef::Name(&name), &alias));
    netlink.apply(&requests).expect("CAP_NET_ADMIN");
}

#[expect(clippy::expect_used, reason = "the store of a test")]
fn open(dirs: &Dirs, vantage: Vantage) -> (usize, Vec<String>) {
    let (lock, _wanted) = Lock::wait(dirs).expect("the lock");
    let mut engine = Engine::open(dirs, lock, vantage).expect("a store");
    (engine.pool().leases().count(), engine.take_notices())
}

/// A pod, and directories in which leases and links have just been compared.
#[expect(clippy::unwrap_used, reason = "a directory of a test")]
fn pod_and_dirs(root: &std::path::Path) -> (Owner, Dirs) {
    let dirs = Dirs::new(root.join("state"), root.join("run"));
    fs::create_dir_all(&dirs.state).unwrap();
    fs::write(dirs.swept(), "").unwrap();
    (Owner::new("n", "c", "eth0"), dirs)
}

#[test]
fn a_store_whose_maker_died_before_it_was_filled_is_filled() {
    let root = tempfile::tempdir().unwrap();
    let (owner, dirs) = pod_and_dirs(root.path());
    drop(SledStore::open(dirs.store()).unwrap());
    on_a_node(|| {
        make_link(&owner, "10.9.0.5/24");
        let (leases, notices) = open(&dirs, Vantage::Runtime);
        assert_eq!(leases, 1, "{notices:?}");
        assert!(notices.join("\n").contains("was missing"), "{notices:?}");
        assert_eq!(open(&dirs, Vantage::Runtime), (1, Vec::new()));
    });
}

#[test]
fn a_command_typed_in_a_pod_leaves_a_broken_store_to_be_rebuilt_where_the_links_are() {
    let root = tempfile::tempdir().unwrap();
    let (owner, dirs) = pod_and_dirs(root.path());
    fs::create_dir_all(dirs.store()).unwrap();
    fs::write(dirs.store().join("db"), [0x5a; 4096]).unwrap();
    fs::write(dirs.store().join("conf"), "garbage").unwrap();
    let (leases, notices) = on_a_node(|| open(&dirs, Vantage::Command));
    assert_eq!(leases, 0);
    assert!(notices.join("\n").contains("kept as"), "{notices:?}");
    on_a_node(|| {
        make_link(&owner, "10.9.0.5/24");
        assert_eq!(open(&dirs, Vantage::Runtime).0, 1);
    });
}

#[test]
fn an_address_that_a_pod_has_given_itself_stays_the_one_whose_alias_has_it() {
    let root = tempfile::tempdir().unwrap();
    let (_, dirs) = pod_and_dirs(root.path());
    on_a_node(|| {
        // Many, so that the honest one is not found first by chance alone.
        let thieves: Vec<Owner> =
            (0..8).map(|number| Owner::new("n", format!("thief{number}"), "eth0")).collect();
        let honest = Owner::new("n", "honest", "eth0");
        let mut netlink = Netlink::open().unwrap();
        for (number, owner) in (10..).zip(&thieves) {
            make_link(owner, &format!("10.9.0.{number}/24"));
            let peer = netlink.link(LinkRef::Name(&owner.link_name())).unwrap().unwrap().peer_index.unwrap();
            let stolen = podwire_kernel::addr::add(peer, "10.9.0.5/24".parse().unwrap(), true);
            netlink.apply(&[stolen]).unwrap();
        }
        make_link(&honest, "10.9.0.5/24");
        let (lock, _wanted) = Lock::wait(&dirs).unwrap();
        let engine = Engine::open(&dirs, lock, Vantage::Runtime).unwrap();
        let lease = engine.pool().lease(honest.id()).expect("a lease");
        let addresses: Vec<String> = lease.held().map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["10.9.0.5"]);
    });
}
