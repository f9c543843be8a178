//! The packet filter's rules between ADD, DEL, repair and those who remove them.

use std::net::IpAddr;

use podwire_attach::rules::{self, check, install};
use podwire_attach::{Masquerade, PodAddress, PortMapping, Protocol};
use podwire_kernel::nft::{Base, Batch, Chain, ChainKind, Family, Hook, Nft, Policy, TableRef};

use super::*;

const TABLE: TableRef<'static> = TableRef::new(Family::Inet, "podwire");

/// How long an upheaval may be seen by pods.
const SOON: Duration = Duration::from_millis(100);

fn pod(number: u8) -> Owner {
    Owner::new("n", format!("c{number}"), "eth0")
}

/// A pod that is masqueraded and has a port of the node.
fn request(number: u8, host_port: u16) -> Reserve {
    let mut request = reserve();
    let owner = pod(number);
    let link = owner.link_name();
    let port = PortMapping { protocol: Protocol::Tcp, host_ip: None, host_port, container_port: 80 };
    request.attachment.traffic = Some(Traffic {
        // Some of these pods have no link of their own.
        device: "lo".to_owned(),
        host_end: link.clone(),
        masquerade: Some(Masquerade { inside: vec!["10.9.0.0/16".parse().unwrap()], fully_random: true }),
        ports: vec![port],
        ..Traffic::default()
    });
    let address = format!("10.9.0.{number}/24").parse().unwrap();
    request.attachment.given = vec![PodAddress { address, gateway: Some(IpAddr::from([10, 9, 0, 1])) }];
    request.attachment.link = Some(link);
    request.attachment.owner = owner;
    request
}

fn install_rules(number: u8, host_port: u16) {
    let attachment = request(number, host_port).attachment;
    install(&mut Nft::open().unwrap(), &attachment, &|_| true).expect("nf_tables");
}

/// A whole ADD without the agent.
fn add(engine: &mut Engine, number: u8, host_port: u16) {
    let grant = engine.reserve(&request(number, host_port)).unwrap();
    make_link_of(&pod(number));
    install_rules(number, host_port);
    engine.attached(&pod(number), grant.generation, None).unwrap();
}

/// What is missing of a pod's rules.
fn missing(number: u8, host_port: u16) -> usize {
    check(&mut Nft::open().unwrap(), &request(number, host_port).attachment).unwrap().len()
}

fn owners() -> Vec<OwnerId> {
    rules::owners(&mut Nft::open().unwrap()).unwrap().into_iter().collect()
}

/// As a firewall's restart would.
fn flush() {
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    Nft::open().unwrap().commit(&batch).unwrap();
}

async fn until(limit: Duration, what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

fn client() -> Arc<UnixStream> {
    Arc::new(UnixStream::pair().unwrap().0)
}

async fn call(service: &Service, op: Op) -> Result<Answer, Failure> {
    let (here, _there) = UnixStream::pair().unwrap();
    carry_out(op, &Arc::new(here), service).await.expect("an answer")
}

fn delete_op(number: u8) -> Op {
    Op::Delete { owner: pod(number), ends: Ends::Interface }
}

#[test]
fn what_others_flush_is_back_within_100_ms_also_for_pods_older_than_the_agent() {
    with_store(
        |engine| [1, 2, 3].map(|number| add(engine, number, 8000 + u16::from(number))),
        |service, _| async move {
            service.rules.repair(Cause::Start).await.unwrap();
            let is_whole = || [1, 2, 3].iter().all(|number| missing(*number, 8000 + u16::from(*number)) == 0);
            assert!(is_whole());
            for _ in 0..5 {
                flush();
                until(SOON, "the table", is_whole).await;
            }
        },
    );
}

/// An empty forward chain, as Docker makes it.
fn drop_what_is_forwarded() {
    const FILTER: TableRef<'static> = TableRef::new(Family::Ip, "filter");
    let forward = Chain {
        name: "FORWARD".to_owned(),
        base: Some(Base {
            kind: ChainKind::Filter,
            hook: Hook::Forward,
            priority: 0,
            device: None,
            policy: Policy::Drop,
        }),
        comment: None,
    };
    let mut batch = Batch::new();
    batch.delete_table(FILTER);
    let _ = Nft::open().unwrap().commit(&batch);
    let mut batch = Batch::new();
    batch.create_table(FILTER, None);
    batch.create_chain(FILTER, &forward);
    Nft::open().unwrap().commit(&batch).unwrap();
}

#[test]
fn a_forward_chain_that_drops_accepts_pods_within_100_ms_each_time_that_it_is_made() {
    with_store(
        |engine| add(engine, 1, 8001),
        |service, ()| async move {
            service.rules.repair(Cause::Start).await.unwrap();
            let forward = TableRef::new(Family::Ip, "filter");
            let accepts = || Nft::open().unwrap().rules(forward, Some("FORWARD")).unwrap().len();
            for _ in 0..3 {
                drop_what_is_forwarded();
                until(SOON, "accept rules", || accepts() == 2).await;
            }
        },
    );
}

#[test]
fn what_nobody_owns_goes_and_what_has_a_lease_or_a_link_stays() {
    let before = |engine: &mut Engine| {
        add(engine, 1, 8001);
        install_rules(2, 8002);
        install_rules(3, 8003);
        make_link_of(&pod(3));
        // A reservation, whose ADD may be anywhere.
        engine.reserve(&request(4, 8004)).unwrap();
        install_rules(4, 8004);
    };
    with_store(before, |service, ()| async move {
        service.rules.repair(Cause::Start).await.unwrap();
        let mut expected = [1, 3, 4].map(|number| pod(number).id());
        expected.sort();
        assert_eq!(owners(), expected);
    });
}

#[test]
fn a_del_is_answered_when_rules_and_link_are_gone() {
    with_store(
        |engine| add(engine, 1, 8001),
        |service, ()| async move {
            assert!(
                matches!(call(&service, delete_op(1)).await, Ok(Answer::Deletion(Deletion::Done(leases))) if leases.len() == 1)
            );
            assert_eq!(owners(), []);
            assert!(Netlink::open().unwrap().link(LinkRef::Name(&pod(1).link_name())).unwrap().is_none());
            // Nothing brings them back.
            service.rules.repair(Cause::Time).await.unwrap();
            assert_eq!(owners(), []);
            assert!(
                matches!(call(&service, delete_op(1)).await, Ok(Answer::Deletion(Deletion::Done(leases))) if leases.is_empty())
            );
        },
    );
}

#[test]
fn the_rules_of_an_add_that_a_repair_could_not_know_are_looked_at_when_it_is_up() {
    with_store(
        |engine| add(engine, 1, 8001),
        |service, ()| async move {
            let reserved = service.writer.run(Op::Reserve(Box::new(request(2, 8002))), &client()).await;
            // The other end is gone: it is as a client that died, so its reservation is not made.
            assert!(matches!(reserved, Ok(Reply::ClientGone)));
            let Ok(Answer::Grant(grant)) = call(&service, Op::Reserve(Box::new(request(2, 8002)))).await
            else {
                panic!("no grant")
            };
            make_link_of(&pod(2));
            install_rules(2, 8002);
            flush();
            until(SOON, "the other pod's rules", || missing(1, 8001) == 0).await;
            assert_ne!(missing(2, 8002), 0, "a repair acts on attached leases alone");
            let attached = Op::Attached { owner: pod(2), generation: grant.generation, finished: None };
            call(&service, attached).await.unwrap();
            until(SOON, "its own rules", || missing(2, 8002) == 0).await;
        },
    );
}

#[test]
fn a_port_is_given_on_when_the_del_of_its_owner_is_done() {
    with_store(
        |engine| add(engine, 1, 8080),
        |service, ()| async move {
            let refused = call(&service, Op::Reserve(Box::new(request(2, 8080)))).await.unwrap_err();
            assert_eq!(refused.msg, "host port 8080/tcp is taken by eth0 of container c1 on network n");
            let deleting = {
                let service = service.clone();
                spawn_local(async move { call(&service, delete_op(1)).await })
            };
            while !service.removing.0.0.borrow().contains_key(&pod(1).id()) {
                tokio::task::yield_now().await;
            }
            let Ok(Answer::Grant(grant)) = call(&service, Op::Reserve(Box::new(request(2, 8080)))).await
            else {
                panic!("no grant")
            };
            install_rules(2, 8080);
            deleting.await.unwrap().unwrap();
            assert_eq!(missing(2, 8080), 0, "the DEL takes nothing of the new owner's: {grant:?}");
        },
    );
}

#[test]
fn repairs_and_dels_and_adds_at_once_leave_exactly_the_pods_that_are_up() {
    const PODS: u8 = 24;
    with_store(
        |engine| (1..=PODS).for_each(|number| add(engine, number, 8000 + u16::from(number))),
        |service, ()| async move {
            // The odd ones go, while others wipe the table again and again.
            let dels: Vec<_> = (1..=PODS)
                .filter(|number| number % 2 == 1)
                .map(|number| {
                    let service = service.clone();
                    spawn_local(async move {
                        tokio::time::sleep(Duration::from_millis(u64::from(number) * 7)).await;
                        call(&service, delete_op(number)).await
                    })
                })
                .collect();
            for _ in 0..10 {
                let mut batch = Batch::new();
                batch.delete_table(TABLE);
                let _ = Nft::open().unwrap().commit(&batch);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for del in dels {
                del.await.unwrap().unwrap();
            }
            let mut expected: Vec<OwnerId> =
                (1..=PODS).filter(|number| number % 2 == 0).map(|number| pod(number).id()).collect();
            expected.sort();
            until(2 * SOON, "all that are up", || owners() == expected).await;
            service.rules.repair(Cause::Time).await.unwrap();
            assert_eq!(owners(), expected);
        },
    );
}

#[test]
fn a_del_ends_what_a_chained_plugin_added_too_but_not_the_addresses_of_the_first_ones_ipam() {
    let before = |engine: &mut Engine| {
        // Another plugin's interface, with podwire-ipam's address and podwire's port.
        let mut ipam = reserve();
        ipam.attachment.link = None;
        ipam.attachment.owner = pod(1);
        let grant = engine.reserve(&ipam).unwrap();
        engine.attached(&pod(1), grant.generation, None).unwrap();
        let mut chained = request(1, 8001);
        chained.attachment.owner = pod(1).with_role(Role::Chained);
        chained.attachment.link = None;
        let grant = engine.reserve(&chained).unwrap();
        install(&mut Nft::open().unwrap(), &chained.attachment, &|_| true).unwrap();
        engine.attached(&chained.attachment.owner, grant.generation, None).unwrap();
    };
    with_store(before, |service, ()| async move {
        let Ok(Answer::Deletion(Deletion::Done(ended))) = call(&service, delete_op(1)).await else {
            panic!("nothing is left to the client")
        };
        let roles: Vec<Role> = ended.iter().map(|lease| lease.attachment.owner.role).collect();
        assert_eq!(roles, [Role::Chained]);
        assert_eq!(owners(), []);
        let addresses = Op::Delete { owner: pod(1), ends: Ends::Addresses };
        let Ok(Answer::Deletion(Deletion::Remove(left))) = call(&service, addresses).await else {
            panic!("the interface is another plugin's")
        };
        assert_eq!(left.len(), 1);
    });
}
