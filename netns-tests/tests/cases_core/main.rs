//! The protocol: environment, versions, configuration, errors and the forms of results, whatever the network.

mod configuration;
mod environment;
mod results;
mod verbs;

use podwire_netns_tests::cases::{
    Case, Expect, Plugin, Reference, Step, Subject, Versions, differences, error, replay,
};
use serde_json::{Value, json};

use configuration::configuration;
use environment::{environment, versions};
use results::{loopback, results};
use verbs::verbs;

#[test]
fn core_cases() {
    if let Err(report) = replay(&cases(), Subject::from_environment()) {
        panic!("{report}");
    }
}

#[test]
fn core_differences_are_documented() {
    assert_eq!(differences("Core", &cases()), Ok(()));
}

/// One IPv4 range and a gateway: what most rows need.
fn plain() -> Value {
    json!({ "bridge": "br0", "isGateway": true, "ipam": { "type": "host-local", "subnet": "10.1.0.0/24" } })
}

const UNKNOWN_VERB: &str =
    "It knows no GC and no STATUS (they are of 1.1.0), and says that the container id is missing.";
const NEWEST: &[&str] = &["1.1.0"];
const ONE: &[&str] = &["1.0.0"];

fn no_verb() -> Expect {
    error(3, &["missing containerID"])
}

fn cases() -> Vec<Case> {
    let mut cases = environment();
    cases.extend(versions());
    cases.extend(configuration());
    cases.extend(verbs());
    cases.extend(results());
    cases.extend(loopback());
    cases
}

/// A row against [`plain`] in one version.
fn case(name: &'static str, steps: Vec<Step>, reference: Reference) -> Case {
    Case { name, versions: Versions::These(ONE), plugin: Plugin::Main, config: plain(), steps, reference }
}
