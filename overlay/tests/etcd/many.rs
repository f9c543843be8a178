//! Many agents that start at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podwire_overlay::cluster::ClusterConfig;

use crate::members::Etcd;
use crate::nodes::{Machine, config, lab};

/// A thousand agents, as tasks of this process with a connection each, of 1,024 subnets.
#[test]
fn a_thousand_agents_that_start_at_once_get_a_thousand_subnets() {
    lab(async || start_at_once(1000, &config(&[("10.64.0.0/14", 24)])).await);
}

#[test]
fn a_hundred_agents_that_start_at_once_share_a_range_of_both_families() {
    lab(async || start_at_once(100, &config(&[("10.64.0.0/17", 24), ("fd00:10:244::/57", 64)])).await);
}

async fn start_at_once(count: u16, config: &ClusterConfig) {
    let etcd = Etcd::start(1).await;
    let began = Instant::now();
    let mut nodes: Vec<_> = (1..=count)
        .map(|number| {
            let mut machine = Machine::new(&etcd, number).with_config(config.clone());
            // All of them and etcd share two processors: what is one second for one is more for a thousand.
            machine.timing.request = Duration::from_secs(30);
            machine.timing.presence = Duration::from_secs(120);
            machine.start()
        })
        .collect();
    let limit = Duration::from_secs(400);
    for node in &mut nodes {
        node.within(limit, "join", |told| told.is_member()).await;
    }
    println!("{count} agents joined in {:?}", began.elapsed());
    let all: Vec<_> = nodes.iter().flat_map(|node| node.subnets()).collect();
    let different: BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), usize::from(count) * config.ranges.len());
    for node in &mut nodes {
        node.within(limit, "see all", |told| {
            told.snapshot.as_ref().is_some_and(|snapshot| snapshot.nodes.len() == usize::from(count))
        })
        .await;
    }
    println!("and had seen each other after {:?}", began.elapsed());
}
