//! The shared settings.

use podwire_overlay::cluster::{ClusterConfig, Encapsulation};
use podwire_overlay::store::Action;

use crate::members::Etcd;
use crate::nodes::{Machine, config, ipv4, lab};

#[test]
fn the_first_agents_settings_count_and_a_later_ones_differences_are_told() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        // Nobody knows what to do in an empty store without any.
        let mut nobody = Machine::new(&etcd, 9);
        nobody.settings.initial = None;
        let mut nobody = nobody.start();
        nobody.until("be refused", |told| told.refused.is_some()).await;
        assert!(nobody.told.refused.as_ref().unwrap().contains("cluster.range"));

        let one = Machine::new(&etcd, 1).join().await;
        assert!(one.told.notices.is_empty(), "{:?}", one.told.notices);
        let other = ClusterConfig {
            encapsulation: Encapsulation { vni: 7, port: 4789 },
            ..config(&[("10.0.0.0/8", 22)])
        };
        let mut two = Machine::new(&etcd, 2).with_config(other).join().await;
        two.until("say what differs", |told| told.has_notice("not those of this node's file")).await;
        assert!(
            two.told
                .has_notice("10.244.0.0/16 in subnets of /24 there and 10.0.0.0/8 in subnets of /22 here")
        );
        assert!(two.told.has_notice("4789"));
        assert_eq!(two.subnets()[0].prefix(), 24);
        nobody.until("join", |told| told.is_member()).await;
    });
}

#[test]
fn settings_change_for_everybody_and_not_under_anybody() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut two = Machine::new(&etcd, 2).join().await;
        let configure = |config: ClusterConfig| Action::Configure(Box::new(config));
        for (config, why) in [
            (config(&[("10.245.0.0/16", 24)]), "not in the new ranges"),
            (config(&[("10.244.0.0/16", 25)]), "not in the new ranges"),
            (config(&[("10.244.0.1/16", 24)]), "host bits"),
            (config(&[]), "no range"),
            (ClusterConfig { name: "other".to_owned(), ..ipv4() }, "cannot be changed"),
            (ClusterConfig { reclaim_after_seconds: Some(60), ..ipv4() }, "at least 86400"),
        ] {
            let answer = one.act(configure(config)).await.unwrap_err();
            assert!(answer.contains(why), "{answer}");
        }
        // A wider range and another family: everybody keeps what it has and gets what it lacks.
        let before = two.subnets();
        let wider = config(&[("10.240.0.0/12", 24), ("fd00:10:244::/48", 64)]);
        let wider = ClusterConfig { encapsulation: Encapsulation { vni: 9, port: 8472 }, ..wider };
        one.act(configure(wider.clone())).await.unwrap();
        two.until("get the other family", |told| told.joined == 2).await;
        assert_eq!(two.subnets()[..1], before);
        assert!(two.subnets()[1].is_ipv6());
        two.until("see the new settings", |told| told.snapshot.as_ref().unwrap().config == wider).await;
        one.until("see n2 with both", |told| told.subnets_of("n2").is_some_and(|its| its.len() == 2)).await;
    });
}

#[test]
fn settings_of_a_version_to_come_leave_members_alone_and_keep_others_out() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut one = Machine::new(&etcd, 1).join().await;
        let mut client = etcd.client().await;
        client.put("/podwire/v1/config", r#"{"format":2}"#, None).await.unwrap();
        one.until("say so", |told| told.has_notice("/podwire/v1/config is left out: it has format 2")).await;
        assert!(one.told.is_member());
        let mut two = Machine::new(&etcd, 2).start();
        two.until("be refused", |told| {
            told.refused.as_ref().is_some_and(|why| why.contains("cannot be read"))
        })
        .await;
        assert!(one.told.is_member() && one.told.joined == 1);
    });
}
