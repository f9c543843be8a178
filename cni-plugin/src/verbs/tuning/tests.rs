use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use podwire_kernel::link::{self, BridgeSpec, Link};
use podwire_kernel::sysctl;
use serde_json::{Value, json};

use super::*;

/// A pod's network namespace with an interface eth0, and a directory for former values, for as long as the test runs.
struct Pod {
    file: File,
    kept: tempfile::TempDir,
}

impl Pod {
    fn new() -> Self {
        let file = in_new_netns(|| {
            // Any Ethernet device does.
            let mac = "02:00:00:00:00:0a".parse().unwrap();
            let eth0 = BridgeSpec {
                name: "eth0",
                mac,
                mtu: None,
                mcast_snooping: None,
                mcast_querier: None,
                vlan_filtering: None,
            };
            Netlink::open().unwrap().apply(&[link::create_bridge(&eth0)]).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { file, kept: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    fn call(&self, verb: &str, changes: Value) -> Result<Option<String>, CniError> {
        self.call_in(&self.path(), verb, changes)
    }

    fn call_in(&self, netns: &str, verb: &str, changes: Value) -> Result<Option<String>, CniError> {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let environment = Environment::parse(variables.map(|(name, value)| (name.into(), value.into())));
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "podwire-tuning", "dataDir": self.kept.path(),
            "prevResult": {
                "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:99"}, {"name": "eth0", "sandbox": netns, "mac": "02:00:00:00:00:01"}],
                "ips": [{"address": "10.1.0.7/24", "interface": 1}],
            },
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        run(&environment?.expect("a verb"), config.to_string().as_bytes())
    }

    fn inside<T: Send>(&self, act: impl FnOnce(&mut Netlink) -> T + Send) -> T {
        Netns::open(self.path()).unwrap().run(|| act(&mut Netlink::open().unwrap())).unwrap()
    }

    fn eth0(&self) -> Link {
        self.inside(|netlink| netlink.link(LinkRef::Name("eth0")).unwrap().unwrap())
    }

    fn kept(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.kept.path().join("c1_eth0.json")).ok()?).ok()
    }
}

#[expect(clippy::disallowed_methods, reason = "on a thread that ends")]
fn in_new_netns<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes a network namespace, which needs root");
            act()
        });
        thread.join().unwrap()
    })
}

fn all() -> Value {
    json!({
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "123"},
        "mac": "02:00:00:00:00:07", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 77,
    })
}

#[test]
fn add_sets_what_check_sees_and_del_puts_back() {
    let pod = Pod::new();
    let before = pod.eth0();
    let answer: Value = serde_json::from_str(&pod.call("ADD", all()).unwrap().unwrap()).unwrap();
    let interfaces = json!([
        {"name": "eth0", "mac": "02:00:00:00:00:99"},
        {"name": "eth0", "sandbox": pod.path(), "mac": "02:00:00:00:00:07", "mtu": 1400},
    ]);
    assert_eq!(answer["interfaces"], interfaces);
    assert_eq!(answer["ips"], json!([{"address": "10.1.0.7/24", "interface": 1}]));
    let now = pod.eth0();
    assert_eq!((now.mac.unwrap().to_string().as_str(), now.mtu), ("02:00:00:00:00:07", 1400));
    assert!(now.flags.promisc && now.flags.all_multicast);
    assert_eq!(now.tx_queue_length, 77);
    let sysctls = pod.inside(|_| {
        ["net/ipv4/conf/eth0/arp_filter", "net/core/somaxconn"].map(|name| sysctl::read(name).unwrap())
    });
    assert_eq!(sysctls, ["1", "123"]);
    let kept = json!({
        "mac": before.mac.unwrap().to_string(), "promisc": false, "mtu": before.mtu, "allmulti": false,
        "txQLen": before.tx_queue_length,
    });
    assert_eq!(pod.kept(), Some(kept.clone()));
    assert_eq!(pod.call("CHECK", all()), Ok(None));

    // An ADD again keeps what was before the first.
    pod.call("ADD", all()).unwrap();
    assert_eq!(pod.kept(), Some(kept));

    // DEL needs nothing of what ADD was given.
    for _ in 0..2 {
        assert_eq!(pod.call("DEL", json!({"prevResult": null})), Ok(None));
        let after = pod.eth0();
        assert_eq!((after.mac, after.mtu, after.flags), (before.mac, before.mtu, before.flags));
        assert_eq!(after.tx_queue_length, before.tx_queue_length);
        assert_eq!(pod.kept(), None);
    }
}

#[test]
fn check_names_each_difference() {
    let pod = Pod::new();
    pod.call("ADD", all()).unwrap();
    pod.inside(|netlink| {
        sysctl::write("net/core/somaxconn", "9").unwrap();
        let change = link::LinkChange { mtu: Some(1300), ..link::LinkChange::default() };
        netlink.apply(&link::change(LinkRef::Name("eth0"), &change)).unwrap();
    });
    let error = pod.call("CHECK", all()).unwrap_err();
    assert_eq!(error.code, code::CHECK_FAILED);
    assert!(error.details.contains("somaxconn") && error.details.contains("1300"), "{error}");
    assert!(!error.details.contains("arp_filter"), "{error}");
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_put_back() {
    let pod = Pod::new();
    pod.call("ADD", json!({"sysctl": {"net.core.somaxconn": "5"}, "promisc": false})).unwrap();
    assert_eq!(pod.kept(), None);
    assert_eq!(fs::read_dir(pod.kept.path()).unwrap().count(), 0);
}

#[test]
fn an_add_that_fails_changes_nothing() {
    let pod = Pod::new();
    let before = pod.eth0();
    for (changes, expected) in [
        (json!({"mtu": 1400, "sysctl": {"net.core.nothing": "1"}}), code::TUNING),
        (json!({"mtu": 1400, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "many"}}), code::TUNING),
        (json!({"mtu": 1400, "sysctl": {"kernel.hostname": "x"}}), code::INVALID_NETWORK_CONFIG),
        (json!({"mtu": 1400, "prevResult": null}), code::INVALID_NETWORK_CONFIG),
    ] {
        let error = pod.call("ADD", changes.clone()).unwrap_err();
        assert_eq!(error.code, expected, "{changes}: {error}");
        assert_eq!(pod.eth0().mtu, before.mtu, "{changes}");
    }
}

#[test]
fn the_interface_must_be_there_except_for_del() {
    let pod = Pod::new();
    pod.call("ADD", json!({"mtu": 1400})).unwrap();
    pod.inside(|netlink| {
        let index = netlink.link(LinkRef::Name("eth0")).unwrap().unwrap().index;
        netlink.apply(&[link::delete(index, "eth0")]).unwrap();
    });
    for verb in ["ADD", "CHECK"] {
        let error = pod.call(verb, json!({"mtu": 1400})).unwrap_err();
        assert_eq!(error.code, code::NOT_CHAINABLE, "{verb}: {error}");
        assert!(error.msg.contains("eth0"), "{error}");
    }
    assert!(pod.kept().is_some());
    assert_eq!(pod.call("DEL", json!({})), Ok(None));
    assert_eq!(pod.kept(), None);
}

#[test]
fn del_succeeds_where_no_netns_is() {
    let plain = tempfile::NamedTempFile::new().unwrap();
    for netns in ["", "/nonexistent", plain.path().to_str().unwrap()] {
        let pod = Pod::new();
        pod.call("ADD", json!({"mtu": 1400})).unwrap();
        assert_eq!(pod.call_in(netns, "DEL", json!({})), Ok(None), "{netns:?}");
        assert_eq!(pod.kept(), None, "{netns:?}");
        assert_eq!(pod.eth0().mtu, 1400, "{netns:?}");
    }
}

#[test]
fn del_passes_over_what_it_cannot_read() {
    let pod = Pod::new();
    for content in ["", "{", r#"{"mac": 5}"#, r#"{"mac": "x", "mtu": 0}"#] {
        fs::write(pod.kept.path().join("c1_eth0.json"), content).unwrap();
        assert_eq!(pod.call("DEL", json!({"mtu": "x"})), Ok(None), "{content}");
    }
}

#[test]
fn what_cannot_be_put_back_keeps_nothing_else_from_it() {
    let pod = Pod::new();
    let content = r#"{"mac": "ff:ff:ff:ff:ff:ff", "promisc": true, "mtu": 4000000000, "txQLen": 10}"#;
    fs::write(pod.kept.path().join("c1_eth0.json"), content).unwrap();
    assert_eq!(pod.call("DEL", json!({})), Ok(None));
    let now = pod.eth0();
    assert!(now.flags.promisc && now.tx_queue_length == 10, "{now:?}");
    assert_eq!(pod.kept(), None);
}

#[test]
fn the_reference_plugins_file_is_understood() {
    let pod = Pod::new();
    let content = "{\n \"mac\": \"02:00:00:00:00:05\",\n \"promisc\": true,\n \"mtu\": 1300,\n \"allmulti\": true,\n \"txQLen\": 10\n}";
    fs::write(pod.kept.path().join("c1_eth0.json"), content).unwrap();
    pod.call("DEL", json!({})).unwrap();
    let now = pod.eth0();
    assert_eq!((now.mac.unwrap().to_string().as_str(), now.mtu), ("02:00:00:00:00:05", 1300));
    assert!(now.flags.promisc && now.flags.all_multicast);
    assert_eq!(now.tx_queue_length, 10);
}

#[test]
fn the_hosts_own_is_left_alone() {
    in_new_netns(|| {
        let pod = Pod::new();
        let own = "/proc/thread-self/ns/net";
        for verb in ["ADD", "CHECK"] {
            let error = pod.call_in(own, verb, json!({"mtu": 1400})).unwrap_err();
            assert_eq!(error.code, code::INVALID_NETNS, "{verb}: {error}");
        }
    });
}

#[test]
fn gc_and_status_have_nothing_to_do() {
    let pod = Pod::new();
    for verb in ["GC", "STATUS"] {
        assert_eq!(pod.call(verb, json!({"prevResult": null})), Ok(None), "{verb}");
        let error = pod.call(verb, json!({"cniVersion": "1.0.0"})).unwrap_err();
        assert_eq!(error.code, code::INCOMPATIBLE_VERSION, "{verb}");
    }
}

#[test]
fn a_directory_that_cannot_be_is_named_before_anything_is_changed() {
    let pod = Pod::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = pod.call("ADD", json!({"mtu": 1400, "dataDir": file.path()})).unwrap_err();
    assert_eq!(error.code, code::TUNING);
    assert!(error.msg.contains("c1_eth0.json"), "{error}");
    assert_eq!(pod.eth0().mtu, 1500);
}

#[test]
fn backups_are_for_root_alone_and_never_half_written() {
    use std::os::unix::fs::PermissionsExt;
    let pod = Pod::new();
    pod.call("ADD", json!({"mtu": 1400, "dataDir": pod.kept.path().join("a/b")})).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let directory = pod.kept.path().join("a/b");
    assert_eq!((mode(&directory), mode(&directory.join("c1_eth0.json"))), (0o700, 0o600));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}
