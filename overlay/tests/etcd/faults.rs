//! etcd breaks in every way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_overlay::store::etcd::Timing;
use podwire_overlay::store::{Action, Announcement};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use crate::members::Etcd;
use crate::nodes::{Machine, Node, lab};

/// Waits until a node hears what another says.
async fn hears(hearing: &mut Node, saying: &Node, mtu: u32) {
    saying.announce.send_modify(|said| said.mtu = Some(mtu));
    let name = saying.machine.identity.name.clone();
    hearing
        .until("hear of a change", |told| {
            told.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get(&name)?.mtu) == Some(mtu)
        })
        .await;
}

#[test]
fn etcd_is_down_while_an_agent_restarts() {
    lab(async || {
        let mut etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let two = Machine::new(&etcd, 2).join().await;
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        let before = one.told.membership.clone();
        etcd.kill_all();
        let down = Instant::now();
        one.until("notice", |told| told.lost.is_some()).await;
        assert!(down.elapsed() < Duration::from_secs(10), "{:?}", down.elapsed());
        let why = one.told.lost.clone().unwrap();
        assert!(why.contains("127.0.1.1:2379") && why.contains("refused"), "{why}");

        let mut one = one.stop().await.start();
        one.until("notice", |told| told.lost.is_some()).await;
        let why = one.act(Action::Leave).await.unwrap_err();
        assert!(why.contains("etcd does not answer"), "{why}");
        assert!(
            one.told.membership.is_none() && one.told.snapshot.is_none(),
            "nothing is known of the store now"
        );
        etcd.start_again();
        one.until("be back", |told| told.found == 1 && told.is_member()).await;
        assert_eq!(one.told.membership, before);
        hears(&mut one, &two, 1400).await;
    });
}

#[test]
fn the_leader_of_three_is_killed() {
    lab(async || {
        let mut etcd = Etcd::start(3).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        for round in 0..3 {
            let leader = etcd.leader().await;
            etcd.kill(leader);
            let began = Instant::now();
            hears(&mut one, &two, 2000 + round).await;
            println!("a change went through {:?} after the leader was killed", began.elapsed());
            hears(&mut two, &one, 2000 + round).await;
            etcd.start_again();
            let joined = Machine::new(&etcd, 10 + u16::try_from(round).unwrap()).join().await;
            assert_ne!(joined.subnets(), one.subnets());
        }
        assert!(one.told.is_member() && one.told.joined == 1);
        assert!(!one.told.absent.contains("n2"), "presence outlives a leader");
    });
}

#[test]
fn a_node_is_cut_off_and_healed() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        let (mine, others) = (one.subnets(), two.subnets());
        Etcd::cut(true);
        one.until("notice", |told| told.lost.is_some()).await;
        two.until("notice", |told| told.lost.is_some()).await;
        // Longer than presence lasts.
        one.listen(Duration::from_secs(4)).await;
        assert!(one.told.is_member(), "what is known stays right");
        Etcd::cut(false);
        one.until("be back", |told| told.found == 1).await;
        two.until("be back", |told| told.found == 1).await;
        hears(&mut one, &two, 1401).await;
        hears(&mut two, &one, 1402).await;
        one.until("n2 is present", |told| told.absent.is_empty()).await;
        assert_eq!((one.subnets(), two.subnets()), (mine, others));
        assert_eq!((one.told.joined, two.told.joined), (1, 1));
    });
}

#[test]
fn what_was_compacted_while_a_node_was_cut_off_is_read_again_in_whole() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        let three = Machine::new(&etcd, 3).join().await;
        one.until("see all", |told| told.subnets_of("n2").is_some() && told.subnets_of("n3").is_some()).await;
        let kept = one.told.snapshot.as_ref().unwrap().nodes["n3"].clone();
        // n1's machine sleeps: its store is not run for a while. What happens meanwhile is compacted.
        let machine = one.machine.clone();
        let remembered = one.kill().remembered;
        two.act(Action::Leave).await.unwrap();
        let mut client = etcd.client().await;
        let now = client.put("x", "y", None).await.unwrap().header().unwrap().revision();
        client.compact(now, None).await.unwrap();
        let mut one = Machine { remembered, ..machine }.join().await;
        one.until("see who is left", |told| told.subnets_of("n2").is_none()).await;
        assert_eq!(one.told.snapshot.as_ref().unwrap().nodes["n3"], kept);

        // The same with a watch that was running.
        Etcd::cut(true);
        one.until("notice", |told| told.lost.is_some()).await;
        Etcd::cut(false);
        let mut client = etcd.client().await;
        drop(three);
        client.delete("/podwire/v1/nodes/n3", None).await.unwrap();
        let now = client.put("x", "z", None).await.unwrap().header().unwrap().revision();
        client.compact(now, None).await.unwrap();
        one.until("n3 is gone", |told| told.subnets_of("n3").is_none()).await;
    });
}

#[test]
fn a_backup_is_restored() {
    lab(async || {
        for new_token in [true, false] {
            let mut etcd = Etcd::start(1).await;
            let fast = |mut machine: Machine| {
                machine.timing = Timing { grace: Duration::from_secs(8), ..machine.timing };
                machine
            };
            let old = fast(Machine::new(&etcd, 1)).join().await;
            etcd.back_up("backup");
            // Claimed after the backup: etcd will know nothing of it.
            let mut two = fast(Machine::new(&etcd, 2)).join().await;
            let mut off = fast(Machine::new(&etcd, 3)).join().await;
            off.until("see n2", |told| told.subnets_of("n2").is_some()).await;
            let off_subnets = off.subnets();
            let off = off.stop().await;
            // More has happened than will happen again before nodes look.
            for round in 0..50 {
                hears(&mut two, &old, 3000 + round).await;
            }
            let (mine, mark) = (two.subnets(), two.told.mark.unwrap());

            etcd.restore("backup", new_token);
            // Somebody who never saw the store before may be the first.
            let mut newcomer = fast(Machine::new(&etcd, 4)).start();
            newcomer.until("be refused or in", |told| told.refused.is_some() || told.is_member()).await;
            assert!(
                newcomer.told.refused.as_ref().is_some_and(|why| why.contains("backup")),
                "{:?}",
                newcomer.told
            );
            // n3 is not there, and this etcd has never heard of it: its pods are not cut off before it had the time to come back.
            two.until("claim again", |told| {
                assert!(told.subnets_of("n3").is_some() && told.subnets_of("n1").is_some(), "{told:?}");
                told.mark.is_some_and(|now| now.0 != mark.0 || now.1 < mark.1)
                    && told.subnets_of("n2").is_some()
            })
            .await;
            assert!(two.told.has_notice("went back in time"), "{:?}", two.told.notices);
            assert_eq!(two.subnets(), mine);
            // Within the time of grace one that was off gets what it had.
            let off = off.join().await;
            assert_eq!(off.subnets(), off_subnets);
            newcomer.until("join", |told| told.is_member()).await;
            let all = [old.subnets(), two.subnets(), off.subnets(), newcomer.subnets()].concat();
            let different: std::collections::BTreeSet<_> = all.iter().collect();
            assert_eq!(different.len(), 4, "{all:?}");
            two.until("see all", |told| told.snapshot.as_ref().unwrap().nodes.len() == 4).await;
            etcd.kill_all();
        }
    });
}

#[test]
fn etcd_loses_everything() {
    lab(async || {
        let mut etcd = Etcd::start(1).await;
        let mut machine = Machine::new(&etcd, 1);
        machine.timing.grace = Duration::from_secs(5);
        let mut one = machine.join().await;
        let mut two = Machine {
            settings: machine.settings.clone(),
            timing: machine.timing.clone(),
            ..Machine::new(&etcd, 2)
        }
        .join()
        .await;
        one.until("see n2", |told| told.subnets_of("n2").is_some()).await;
        two.until("see n1", |told| told.subnets_of("n1").is_some()).await;
        let (first, second) = (one.subnets(), two.subnets());
        let cluster = one.told.snapshot.as_ref().unwrap().config.clone();
        etcd.wipe();
        one.until("notice", |told| told.has_notice("went back in time")).await;
        one.until("see n2", |told| told.subnets_of("n2").is_some() && told.absent.is_empty()).await;
        two.until("see n1", |told| told.subnets_of("n1").is_some() && told.absent.is_empty()).await;
        assert_eq!((one.subnets(), two.subnets()), (first, second));
        assert_eq!(one.told.snapshot.as_ref().unwrap().config, cluster);
    });
}

#[test]
fn members_that_hang_refuse_or_talk_nonsense_are_passed_over() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let bad = |port| SocketAddr::from(([127, 0, 2, 1], port));
        let silent = TcpListener::bind(bad(1)).await.unwrap();
        spawn_local(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = silent.accept().await {
                kept.push(stream);
            }
        });
        let nonsense = TcpListener::bind(bad(2)).await.unwrap();
        spawn_local(async move {
            while let Ok((mut stream, _)) = nonsense.accept().await {
                spawn_local(async move {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0)
                        && stream.write_all(&[0xff; 70_000]).await.is_ok()
                    {}
                });
            }
        });
        let mut nodes = Vec::new();
        for number in 1..=8 {
            let mut machine = Machine::new(&etcd, number);
            for port in [1, 2, 3] {
                machine.settings.endpoints.push(format!("http://{}", bad(port)));
            }
            nodes.push(machine.start());
        }
        for node in &mut nodes {
            node.until("join", |told| told.is_member()).await;
        }
    });
}

#[test]
fn records_that_make_no_sense_are_left_out_by_name() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let two = Machine::new(&etcd, 2).join().await;
        let (mine, others) = (one.subnets(), two.subnets());
        let mut client = etcd.client().await;
        let huge = format!(r#"{{"format":1,"name":"huge","x":"{}"}}"#, "x".repeat(1 << 20));
        let thief = format!(
            r#"{{"format":1,"name":"thief","instance":"1","addresses":["192.0.2.9"],"subnets":["{}"]}}"#,
            mine[0]
        );
        for (key, value) in [
            ("nodes/garbage", "\u{1}\u{2}"),
            ("nodes/huge", huge.as_str()),
            ("nodes/future", r#"{"format":2,"everything":"different"}"#),
            ("nodes/thief", thief.as_str()),
            ("nodes/no name", "{}"),
            ("nodes/\u{1b}[2J", "{}"),
            ("subnets/10.244.0.1-24", r#"{"format":1,"node":"x","instance":"1","claimed":1}"#),
            ("subnets/all-of-it", "{}"),
            ("something/new", "{}"),
            ("presence/garbage", "["),
        ] {
            client.put(format!("/podwire/v1/{key}"), value, None).await.unwrap();
        }
        client.put(b"/podwire/v1/\xff\xfe".to_vec(), "x", None).await.unwrap();
        for (key, why) in [
            ("nodes/garbage", "expected value"),
            ("nodes/huge", "more than 65536"),
            ("nodes/future", "newer version"),
            ("nodes/thief", "n1 has claimed"),
            ("nodes/no name", "letters, digits"),
            ("nodes/\\u{1b}[2J", "letters, digits"),
            ("subnets/10.244.0.1-24", "bits beyond"),
            ("subnets/all-of-it", "<address>-<prefix>"),
            ("something/new", "no such key"),
            ("presence/garbage", "EOF"),
        ] {
            let names =
                |notice: &String| notice.starts_with(&format!("/podwire/v1/{key} ")) && notice.contains(why);
            one.until(key, |told| told.notices.iter().any(names)).await;
        }
        assert_eq!(one.told.subnets_of("thief"), Some(&[][..]));
        assert_eq!(one.told.subnets_of("n1"), Some(&*mine));
        assert_eq!(one.told.subnets_of("n2"), Some(&*others));
        hears(&mut one, &two, 1403).await;

        // Ten thousand of them do not stop anybody from joining, or drown the agent in messages.
        for some in (0..10_000).collect::<Vec<_>>().chunks(100) {
            let puts: Vec<_> = some
                .iter()
                .map(|n| etcd_client::TxnOp::put(format!("/podwire/v1/nodes/x{n}"), "nonsense", None))
                .collect();
            client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
        }
        let three = Machine::new(&etcd, 3).join().await;
        assert!(three.told.notices.len() < 50, "{}", three.told.notices.len());
        assert!(
            three
                .told
                .notices
                .iter()
                .any(|notice| notice.contains("more keys below /podwire/v1/ are left out"))
        );
    });
}

#[test]
fn a_claim_that_was_deleted_or_overwritten_by_hand_is_not_given_to_others() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut client = etcd.client().await;
        let key = format!("/podwire/v1/subnets/{}-24", one.subnets()[0].ip());
        client.delete(key.as_str(), None).await.unwrap();
        let mut two = Machine::new(&etcd, 2).join().await;
        two.until("see n1 with its subnet", |told| told.subnets_of("n1").is_some_and(|its| !its.is_empty()))
            .await;
        client.put(key.as_str(), "mine now", None).await.unwrap();
        one.pods.send_replace(true);
        one.until("be fenced", |told| told.fenced.is_some()).await;
        client.delete(key.as_str(), None).await.unwrap();
        one.until("have it back", |told| told.is_member()).await;
        assert_eq!(one.told.joined, 2);
    });
}

#[test]
fn an_agent_that_does_not_listen_for_a_while_stays_present() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let two = Machine::new(&etcd, 2).join().await;
        let other = spawn_local(async move {
            for mtu in 0..1000 {
                let change = |said: &mut Announcement| said.mtu = Some(mtu);
                two.announce.send_modify(change);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            two
        });
        // Nobody takes n1's events for longer than presence lasts.
        let two = other.await.unwrap();
        one.until("hear of the last change", |told| {
            told.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get("n2")?.mtu) == Some(999)
        })
        .await;
        let mut three = Machine::new(&etcd, 3).join().await;
        three.listen(Duration::from_millis(100)).await;
        assert!(three.told.absent.is_empty(), "{:?}", three.told.absent);
        drop(Arc::new(two));
    });
}
