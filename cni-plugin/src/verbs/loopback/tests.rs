use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};
use podwire_kernel::sysctl;
use serde_json::{Value, json};

use super::*;
use crate::protocol::CniVersion;

/// A pod's network namespace, open for as long as the test runs.
struct Pod {
    file: File,
}

impl Pod {
    fn new() -> Self {
        Self { file: in_new_netns(|| File::open("/proc/thread-self/ns/net").unwrap()) }
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    fn call(&self, verb: &str, config: Value) -> Result<Option<String>, CniError> {
        call(verb, &self.path(), config)
    }

    fn is_up(&self) -> bool {
        let netns = Netns::open(self.path()).unwrap();
        let link = netns.run(|| Netlink::open().unwrap().link(LinkRef::Index(LOOPBACK))).unwrap();
        link.unwrap().unwrap().flags.up
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

fn call(verb: &str, netns: &str, config: Value) -> Result<Option<String>, CniError> {
    let variables = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "lo"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let environment = Environment::parse(variables.map(|(name, value)| (name.into(), value.into())));
    run(&environment?.expect("a verb"), config.to_string().as_bytes())
}

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "cni-loopback", "type": "loopback"})
}

#[test]
fn add_brings_it_up_and_answers_in_every_version() {
    for version in CniVersion::ALL {
        let pod = Pod::new();
        assert!(!pod.is_up());
        let answer = pod.call("ADD", config(version.as_str())).unwrap().unwrap();
        assert!(pod.is_up(), "{version}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["cniVersion"], version.as_str());
        if version.is_single_address() {
            let expected = json!([{"ip": "127.0.0.1/8"}, {"ip": "::1/128"}]);
            assert_eq!(json!([answer["ip4"], answer["ip6"]]), expected, "{version}");
            continue;
        }
        let interface = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path()}]);
        assert_eq!(answer["interfaces"], interface, "{version}");
        let old = version < CniVersion::V1_0_0;
        let ip = |family: &str, address: &str| match old {
            true => json!({"version": family, "interface": 0, "address": address}),
            false => json!({"interface": 0, "address": address}),
        };
        assert_eq!(answer["ips"], json!([ip("4", "127.0.0.1/8"), ip("6", "::1/128")]), "{version}");
        // A second ADD changes nothing.
        let again: Value =
            serde_json::from_str(&pod.call("ADD", config(version.as_str())).unwrap().unwrap()).unwrap();
        assert_eq!(again, answer, "{version}");
    }
}

#[test]
fn a_family_that_is_off_has_no_address() {
    let pod = Pod::new();
    let netns = Netns::open(pod.path()).unwrap();
    netns.run(|| sysctl::write("net/ipv6/conf/all/disable_ipv6", "1")).unwrap().unwrap();
    let answer: Value = serde_json::from_str(&pod.call("ADD", config("1.1.0")).unwrap().unwrap()).unwrap();
    assert_eq!(answer["ips"], json!([{"interface": 0, "address": "127.0.0.1/8"}]));
}

#[test]
fn a_previous_result_is_passed_on() {
    let pod = Pod::new();
    let mut config = config("0.4.0");
    config["prevResult"] =
        json!({"CniVersion": "0.4.0", "IPs": [{"Version": "4", "Address": "10.1.0.7/24"}]});
    let answer: Value = serde_json::from_str(&pod.call("ADD", config).unwrap().unwrap()).unwrap();
    assert_eq!(answer["ips"], json!([{"version": "4", "address": "10.1.0.7/24"}]));
    assert_eq!(answer.get("interfaces"), None);
    assert!(pod.is_up());
}

#[test]
fn check_requires_it_up_and_del_sets_it_down() {
    let pod = Pod::new();
    let error = pod.call("CHECK", config("1.0.0")).unwrap_err();
    assert_eq!(error.code, code::CHECK_FAILED);
    assert!(error.msg.ends_with("is down"), "{error}");
    pod.call("ADD", config("1.0.0")).unwrap();
    assert_eq!(pod.call("CHECK", config("1.0.0")), Ok(None));
    for _ in 0..3 {
        assert_eq!(pod.call("DEL", config("1.0.0")), Ok(None));
        assert!(!pod.is_up());
    }
    assert_eq!(pod.call("CHECK", config("0.3.1")).unwrap_err().code, code::INCOMPATIBLE_VERSION);
}

#[test]
fn del_succeeds_where_no_netns_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let plain = file.path().to_str().unwrap();
    for netns in ["", "/nonexistent", "/nonexistent/a", plain, "/"] {
        assert_eq!(call("DEL", netns, config("0.3.1")), Ok(None), "{netns:?}");
    }
    for verb in ["ADD", "CHECK"] {
        for netns in ["/nonexistent", plain] {
            let error = call(verb, netns, config("0.4.0")).unwrap_err();
            assert_eq!(error.code, code::INVALID_NETNS, "{verb} {netns}: {error}");
            assert!(error.msg.contains(netns), "{error}");
        }
    }
}

#[test]
fn the_hosts_own_is_left_alone() {
    in_new_netns(|| {
        let own = "/proc/thread-self/ns/net";
        let mut netlink = Netlink::open().unwrap();
        for (verb, up) in [("ADD", false), ("CHECK", false), ("DEL", true)] {
            set_up(&mut netlink, up).unwrap();
            let error = call(verb, own, config("1.0.0")).unwrap_err();
            assert_eq!(error.code, code::INVALID_NETNS, "{verb}: {error}");
            let link = netlink.link(LinkRef::Index(LOOPBACK)).unwrap().unwrap();
            assert_eq!(link.flags.up, up, "{verb}");
        }
    });
}

#[test]
fn gc_and_status_have_nothing_to_do() {
    for verb in ["GC", "STATUS"] {
        assert_eq!(call(verb, "", config("1.1.0")), Ok(None), "{verb}");
        assert_eq!(call(verb, "", config("1.0.0")).unwrap_err().code, code::INCOMPATIBLE_VERSION, "{verb}");
    }
}
