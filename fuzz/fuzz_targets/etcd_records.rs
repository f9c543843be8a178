//! What stands in etcd: any key with any value, written by anybody. A node decides on it, and what it would write must be read
//! again as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_overlay::claims::{Claimant, Ended, Facts, Key, Replica, Step, Value, Write, remove};
use podwire_overlay::cluster::ClusterConfig;
use podwire_overlay::store::{Announcement, Identity};

fuzz_target!(|data: &[u8]| {
    // One key and value a line, with a tab between; a line without a tab deletes.
    let mut replica = Replica::default();
    for (line, revision) in data.split(|byte| *byte == b'\n').zip(1..) {
        let mut parts = line.splitn(2, |byte| *byte == b'\t');
        let key = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        match parts.next() {
            Some(value) => replica.put(&key, revision, value),
            None => replica.deleted(&key, revision),
        }
        if let (Ok(key), Some(value)) = (key.parse::<Key>(), line.splitn(2, |byte| *byte == b'\t').nth(1))
            && let Ok(value) = Value::parse(&key, value)
        {
            assert_eq!(Value::parse(&key, &value.to_bytes()), Ok(value));
        }
    }
    replica.settle();
    assert_eq!(replica.problems().filter(|(key, _)| key.chars().any(char::is_control)).count(), 0);

    let identity = Identity { name: "a".into(), instance: "1".into(), boot: "1".into() };
    let initial: Option<ClusterConfig> =
        serde_json::from_str(r#"{"name":"c","ranges":[{"range":"10.0.0.0/16","subnetPrefix":24}]}"#).ok();
    let mut claimant = Claimant::new(identity, "s".into(), None, None, initial);
    let announcement =
        Announcement { addresses: vec!["192.0.2.1".parse().expect("an address")], ..Default::default() };
    let facts = Facts { announcement: &announcement, has_pods: false, lineage: None };
    let mut changes = Vec::new();
    if let Step::Commit(change) = claimant.step(&replica, &facts) {
        changes.push(change);
    }
    changes.extend(remove(&replica, "a", true, Ended::Removed));
    changes.push(claimant.leave(&replica));
    for change in changes {
        assert!(change.writes.len() <= 128 && change.requires.len() <= 128, "etcd takes no more");
        for write in change.writes {
            if let Write::Put { key, value, .. } = write {
                assert_eq!(Value::parse(&key, &value.to_bytes()), Ok(value), "{key}");
            }
        }
    }
});
