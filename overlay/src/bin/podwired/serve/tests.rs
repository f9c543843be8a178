//! What the agent finishes, and for whom.

use std::os::fd::AsFd;

use nix::sched::{CloneFlags, unshare};
use podwire_attach::{Attachment, alias};
use podwire_ipam::{Dirs, Ends, Engine, Lock, Reserve, Vantage};
use podwire_kernel::link::{self, LinkChange, LinkRef, VethSpec};
use podwire_kernel::nft::NftEvents;
use podwire_kernel::{Netlink, Netns};
use podwire_overlay::telemetry::Telemetry;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::*;
use crate::changes;

mod rules;

fn owner() -> Owner {
    Owner::new("n", "c", "eth0")
}

fn reserve() -> Reserve {
    let owner = owner();
    let attachment = Attachment {
        link: Some(owner.link_name()),
        owner,
        addresses: Vec::new(),
        mac: None,
        bridge: None,
        netns: String::new(),
        netns_identity: None,
        pod: None,
        runtime: None,
        given: Vec::new(),
        traffic: None,
    };
    Reserve { attachment, sets: Vec::new(), requested: Vec::new(), quarantine_ms: 0, import_dir: None }
}

fn make_link() {
    make_link_of(&owner());
}

fn make_link_of(owner: &Owner) {
    let (here, name) = (Netns::current().unwrap(), owner.link_name());
    let spec = VethSpec {
        name: &name,
        mtu: None,
        mac: None,
        controller: None,
        group: None,
        peer_name: &format!("p{}", name.trim_start_matches("pw")),
        peer_netns: here.as_fd(),
        peer_mac: None,
    };
    let alias = LinkChange { alias: Some(alias::format(owner, &[])), ..LinkChange::default() };
    let mut requests = vec![link::create_veth(&spec)];
    requests.extend(link::change(LinkRef::Name(&name), &alias));
    Netlink::open().unwrap().apply(&requests).expect("CAP_NET_ADMIN");
}

fn is_there() -> bool {
    Netlink::open().unwrap().link(LinkRef::Name(&owner().link_name())).unwrap().is_some()
}

/// Runs `work` as the agent's one thread, in a network namespace of its own, after `before` has filled the store.
fn with_store<T, F: Future<Output = ()>>(
    before: impl FnOnce(&mut Engine) -> T + Send,
    work: impl FnOnce(Service, T) -> F + Send,
) {
    #[expect(clippy::disallowed_methods, reason = "the thread ends with its namespace")]
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("CAP_SYS_ADMIN");
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
        let (lock, _wanted) = Lock::wait(&dirs).unwrap();
        let mut engine = Engine::open(&dirs, lock, Vantage::Apart).unwrap();
        let stored = before(&mut engine);

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ((links, events), changes) = {
            let _inside = runtime.enter();
            (Links::open().unwrap(), NftEvents::open().unwrap())
        };
        let (unfinished, _found) = mpsc::unbounded_channel();
        let (ended, writer_ended) = oneshot::channel();
        let (rules, jobs) = Rules::new();
        let (writer, thread) = Writer::start(engine, rules.clone(), unfinished, ended).unwrap();
        let (ended, _keeper_ended) = oneshot::channel();
        let telemetry = Telemetry::new("test");
        let keeper = jobs.start(writer.clone(), telemetry.clone(), ended).unwrap();
        LocalSet::new().block_on(&runtime, async {
            spawn_local(links.clone().listen(events));
            spawn_local(changes::mind(rules.clone(), changes));
            let removing = Removing::default();
            let counts = Counts::new(telemetry, Rc::default());
            work(Service { writer: writer.clone(), links, rules: rules.clone(), removing, counts }, stored)
                .await;
            rules.stop();
            writer.send(Task::Stop);
            timeout(DEADLINE, writer_ended).await.expect("the thread's end is heard of").unwrap_err();
        });
        keeper.join().unwrap();
        thread.join().unwrap();
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

/// The same, on an owner whose DEL has begun.
fn with_agent<F: Future<Output = ()>>(work: impl FnOnce(Service, Lease) -> F + Send) {
    let before = |engine: &mut Engine| {
        engine.reserve(&reserve()).unwrap();
        make_link();
        engine.begin_delete(&owner(), Ends::Interface).unwrap().pop().expect("it has a lease")
    };
    with_store(before, work);
}

#[test]
fn a_del_that_died_is_finished() {
    with_agent(|service, lease| async move {
        finish_one(&service, &lease).await.unwrap();
        assert!(!is_there());
        assert!(!service.writer.is_deleting(&lease).await, "the lease has ended");
    });
}

#[test]
fn a_del_that_died_is_not_finished_after_the_owners_next_add() {
    with_agent(|service, lease| async move {
        // Its interface is made anew under the same name, before the agent comes to the DEL that it has found.
        let (client, _other_end) = UnixStream::pair().unwrap();
        let again = service.writer.run(Op::Reserve(Box::new(reserve())), &Arc::new(client)).await;
        assert!(matches!(again, Ok(Reply::Answer(Answer::Grant(_)))));
        finish_one(&service, &lease).await.unwrap();
        assert!(is_there());
    });
}

#[test]
fn nothing_is_changed_for_a_client_in_another_network_namespace() {
    with_agent(|service, lease| async move {
        let root = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(root.path().join("socket")).unwrap();
        let connect = || std::os::unix::net::UnixStream::connect(root.path().join("socket")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "the thread ends with its namespace")]
        let connect_elsewhere = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("CAP_SYS_ADMIN");
            connect()
        };
        let (_here, (here, _)) = (connect(), listener.accept().await.unwrap());
        let _elsewhere = std::thread::scope(|scope| scope.spawn(connect_elsewhere).join().unwrap());
        let (elsewhere, _) = listener.accept().await.unwrap();
        let (here, elsewhere) = (Arc::new(here), Arc::new(elsewhere));

        let delete = || Op::Delete { owner: owner(), ends: Ends::Interface };
        let refused = carry_out(delete(), &elsewhere, &service).await.expect("an answer").unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retry), ("netns", false));
        assert!(is_there() && service.writer.is_deleting(&lease).await);
        let find = Op::Find { owner: owner() };
        assert!(carry_out(find, &elsewhere, &service).await.expect("an answer").is_ok());
        assert!(carry_out(delete(), &here, &service).await.expect("an answer").is_ok());
        assert!(!is_there());
    });
}
