//! Stores that were not filled by whoever made them.

use std::fs;
use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use podwire_attach::{Owner, alias};
use podwire_ipam::{Dirs, Engine, Lock, SledStore, Vantage};
use podwire_kernel::link::{self, LinkChange, LinkRef, VethSpec};
use podwire_kernel::{Netlink, Netns, addr};

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
    make_link_into(&Netns::current().expect("/proc"), owner, address);
}

/// A pod's link, its other end in that namespace.
#[expect(clippy::expect_used, reason = "a test that lacks privilege fails and says which")]
fn make_link_into(pod: &Netns, owner: &Owner, address: &str) {
    let name = owner.link_name();
    let spec = VethSpec {
        name: &name,
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: "peer",
        peer_netns: pod.as_fd(),
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
        let (thief, honest) = (Owner::new("n", "thief", "eth0"), Owner::new("n", "honest", "eth0"));
        let pod = on_a_node(|| Netns::current().unwrap());
        // First in the list of links, and so the first to be asked.
        make_link_into(&pod, &thief, "10.9.0.4/24");
        pod.run(|| {
            let mut inside = Netlink::open().unwrap();
            let index = inside.link(LinkRef::Name("peer")).unwrap().unwrap().index;
            for address in ["10.9.0.5/24", "10.9.0.6/24"] {
                inside.apply(&[addr::add(index, address.parse().unwrap(), true)]).unwrap();
            }
        })
        .unwrap();
        make_link(&honest, "10.9.0.5/24");
        let (lock, _wanted) = Lock::wait(&dirs).unwrap();
        let engine = Engine::open(&dirs, lock, Vantage::Runtime).unwrap();
        let addresses = |owner: &Owner| {
            let lease = engine.pool().lease(owner.id()).expect("a lease");
            lease.held().map(|address| address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(addresses(&honest), ["10.9.0.5"]);
        assert_eq!(addresses(&thief), ["10.9.0.4", "10.9.0.6"]);
    });
}
