//! The bridge and the pod's interface: what each key of the configuration does to the kernel.

mod attachments;
mod bridges;
mod failures;
mod ports;
mod routes;

use podwire_netns_tests::cases::{Case, Plugin, Reference, Step, Subject, Versions, differences, replay};
use serde_json::{Value, json};

use attachments::attachments;
use bridges::bridges;
use failures::{failures, tampering};
use ports::ports;
use routes::{macs, routes};

#[test]
fn bridge_cases() {
    if let Err(report) = replay(&cases(), Subject::from_environment()) {
        panic!("{report}");
    }
}

#[test]
fn bridge_differences_are_documented() {
    assert_eq!(differences("Bridge", &cases()), Ok(()));
}

const ONE: &[&str] = &["1.0.0"];
const TOO_OLD: &str = "Debian's package (1.1.1 of the plugins) is older than the key and ignores it.";

const HALF_MADE: &str = "It leaves the half-made interface in the pod, so that the next ADD fails too.";

fn cases() -> Vec<Case> {
    let mut cases = attachments();
    cases.extend(bridges());
    cases.extend(ports());
    cases.extend(routes());
    cases.extend(macs());
    cases.extend(failures());
    cases.extend(tampering());
    cases
}

/// A network with a gateway and IPv4.
fn plain() -> Value {
    json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } })
}

fn row(name: &'static str, config: Value, steps: Vec<Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config, steps, reference }
}

const PING4: &str = "nsenter --net=/run/netns/a busybox ping -c 2 -i 0.2 -W 1 10.1.0.1";
/// Patient: the reference's bridge answers once duplicate address detection has ended.
const PING6: &str = "nsenter --net=/run/netns/a sh -c 'for i in 1 2 3 4 5 6; do busybox ping -c 1 -W 1 fd01::1 && exit; done; exit 1'";
