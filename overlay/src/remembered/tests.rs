use std::sync::Arc;

use super::*;
use crate::cluster::{ClusterConfig, ClusterRange, DirectRouting, Encapsulation, IpFamily};

fn identity(name: &str, instance: &str) -> Identity {
    Identity { name: name.to_owned(), instance: instance.to_owned(), boot: "b".to_owned() }
}

fn memorable() -> Memorable {
    let range = ClusterRange { range: "10.244.0.0/16".parse().unwrap(), subnet_prefix: 24 };
    let config = ClusterConfig {
        name: "c".to_owned(),
        ranges: vec![range],
        encapsulation: Encapsulation::default(),
        also_receive: Vec::new(),
        direct_routing: DirectRouting::Never,
        underlay: vec![IpFamily::Ipv4],
        reclaim_after_seconds: None,
    };
    Memorable {
        membership: Membership {
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            generation: 3,
            claimed: 17,
            addresses: Vec::new(),
        },
        snapshot: Arc::new(Snapshot { config, nodes: Default::default() }),
        mark: Some((1, 2)),
        contact: Some(Contact { boot: "b".to_owned(), seconds: 9 }),
        fenced: Some("n9 has it".to_owned()),
    }
}

fn load(state: &Path, identity: &Identity) -> (Memory, Option<Recollection>, Vec<String>) {
    let mut notices = Vec::new();
    let (memory, recollection) = Memory::load(state, identity, &mut notices);
    (memory, recollection, notices)
}

#[test]
fn what_was_written_is_remembered_by_the_same_installation_alone() {
    let root = tempfile::tempdir().unwrap();
    let own = identity("n1", "i1");
    let (memory, none, notices) = load(root.path(), &own);
    assert_eq!((none, notices.len()), (None, 0));
    let Memorable { membership, snapshot, mark, contact, fenced } = memorable();
    memory.write(&memorable()).unwrap();
    let remembered = Remembered { membership, snapshot: Snapshot::clone(&snapshot), mark };
    let expected = Recollection { remembered, contact, fenced };
    assert_eq!(load(root.path(), &own).1, Some(expected));
    for other in [identity("n2", "i1"), identity("n1", "i2")] {
        let (_, none, notices) = load(root.path(), &other);
        assert_eq!((none, notices.len()), (None, 1));
    }
    memory.forget().unwrap();
    memory.forget().unwrap();
    assert_eq!(load(root.path(), &own).1, None);
}

#[test]
fn a_damaged_file_is_set_aside_and_nothing_fails() {
    for content in ["", "{\"version\":1", "[]", "{\"version\":1,\"node\":7}", "{\"version\":-1}"] {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cluster.json"), content).unwrap();
        let (memory, none, notices) = load(root.path(), &identity("n1", "i1"));
        assert_eq!(none, None);
        assert!(notices.len() == 1 && notices[0].contains("damaged"), "{content:?}: {notices:?}");
        assert!(!root.path().join("cluster.json").exists());
        memory.write(&memorable()).unwrap();
    }
}

#[test]
fn a_newer_programs_file_is_neither_used_nor_written_over() {
    let root = tempfile::tempdir().unwrap();
    let content = r#"{"version":2,"something":"else"}"#;
    fs::write(root.path().join("cluster.json"), content).unwrap();
    let (memory, none, notices) = load(root.path(), &identity("n1", "i1"));
    assert_eq!((none, notices.len()), (None, 1));
    memory.write(&memorable()).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("cluster.json")).unwrap(), content);
}

#[test]
fn a_file_of_the_first_version_is_read_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let content = r#"{"version":1,"node":"n1","instance":"i1","later":"field","remembered":{"membership":{"subnets":
        ["10.244.1.0/24"],"generation":3,"claimed":17},"snapshot":{"config":{"name":"c","ranges":[{"range":
        "10.244.0.0/16","subnetPrefix":24}]},"nodes":{"n2":{"name":"n2","addresses":["10.0.0.2"],"subnets":
        ["10.244.2.0/24"]}}}}}"#;
    fs::write(root.path().join("cluster.json"), content).unwrap();
    let (_, recollection, notices) = load(root.path(), &identity("n1", "i1"));
    assert_eq!(notices, Vec::<String>::new());
    let remembered = recollection.expect("is read").remembered;
    assert_eq!(remembered.snapshot.nodes.len(), 1);
    assert_eq!(remembered.membership.generation, 3);
}
