//! Addresses: ranges, requests, order, exhaustion, and what an existing host-local directory means.
//!
//! The rows about addresses alone are replayed a second time with `podwire-ipam` under the reference `bridge`.

mod attachments;
mod ranges;
mod requests;

use podwire_netns_tests::cases::{Case, Plugin, Reference, Step, Subject, Versions, differences, replay};
use podwire_netns_tests::uses_reference;
use serde_json::{Value, json};

use attachments::{alone, attachments, taken_over};
use ranges::ranges;
use requests::{mistakes, requests};

#[test]
fn ipam_cases() {
    let mut cases = addresses();
    cases.extend(attachments());
    cases.extend(alone());
    if let Err(report) = replay(&cases, Subject::from_environment()) {
        panic!("{report}");
    }
}

/// With `PODWIRE_REFERENCE=1` there is nothing of podwire to be shown, and the reference's own IPAM takes its place.
#[test]
fn podwire_ipam_under_the_reference_bridge() {
    let subject = if uses_reference() { Subject::Reference } else { Subject::IpamUnderBridge };
    if let Err(report) = replay(&addresses(), subject) {
        panic!("{report}");
    }
}

#[test]
fn ipam_differences_are_documented() {
    let mut cases = addresses();
    cases.extend(attachments());
    cases.extend(alone());
    assert_eq!(differences("IPAM", &cases), Ok(()));
}

const ONE: &[&str] = &["1.0.0"];

/// The code of an address that is not to be had.
const REFUSED: u64 = 107;

fn row(name: &'static str, ipam: Value, steps: Vec<Step>, reference: Reference) -> Case {
    let mut ipam = ipam;
    ipam["type"] = json!("host-local");
    let config = json!({ "bridge": "br0", "ipam": ipam });
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config, steps, reference }
}

fn one_range() -> Value {
    json!({ "subnet": "10.1.0.0/24" })
}

/// Rows about addresses, whatever plugin makes the interface.
fn addresses() -> Vec<Case> {
    let mut cases = ranges();
    cases.extend(requests());
    cases.extend(mistakes());
    cases.extend(taken_over());
    cases
}
