//! The configuration on standard input. The first byte chooses the verb.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::config::{LoopbackConfig, Network};
use podwire_cni::protocol::code;
use podwire_cni::{CniError, Config, Environment, Verb};

fuzz_target!(|data: &[u8]| {
    let Some((choice, document)) = data.split_first() else { return };
    let verbs = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status];
    let verb = verbs[usize::from(*choice) % verbs.len()];
    let variables = [
        ("CNI_COMMAND", verb.as_str()),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IP=10.1.0.7;MAC=02:00:00:00:00:01"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    let environment = Environment::parse(variables.map(|(name, value)| (name.into(), value.into())));
    let environment = environment.expect("these are valid").expect("a verb is there");
    match Config::parse(document, &environment) {
        Ok(config) => assert!(verb.is_removal() || config.ignored.is_empty()),
        Err(error) => check(&error, document),
    }
    if let Err(error) = LoopbackConfig::parse(document, verb) {
        check(&error, document);
    }
});

fn check(error: &CniError, document: &[u8]) {
    assert!(matches!(
        error.code,
        code::INCOMPATIBLE_VERSION
            | code::UNSUPPORTED_FIELD
            | code::DECODING_FAILURE
            | code::INVALID_NETWORK_CONFIG
    ));
    let written = error.to_json(Network::version_of(document));
    assert_eq!(CniError::parse(written.as_bytes()).as_ref(), Some(error));
}
