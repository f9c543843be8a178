//! The configuration on standard input. The first byte chooses the verb.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::config::{AllowList, LoopbackConfig, Network, TuningConfig, check_chained};
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
        Ok(config) => {
            assert!(verb.is_removal() || config.ignored.is_empty());
            if let Err(error) = check_chained(&config) {
                check(&error, document);
            }
            consistent(&config);
        }
        Err(error) => check(&error, document),
    }
    if let Err(error) = TuningConfig::parse(document, &environment) {
        check(&error, document);
    }
    // Any text may stand in the administrator's list.
    if let (Ok(text), Ok(list)) =
        (str::from_utf8(document), AllowList::parse(&String::from_utf8_lossy(document)))
    {
        let _ = list.check(text);
    }
    if let Err(error) = LoopbackConfig::parse(document, verb) {
        check(&error, document);
    }
});

/// What the verbs rely on without looking again.
fn consistent(config: &Config) {
    let subnets: Vec<_> = config.traffic.masquerade.iter().flat_map(|m| m.cluster_ranges.clone()).collect();
    if let Some(masquerade) = config.traffic.masquerade_for(&subnets, &[]) {
        assert!(masquerade.inside.is_sorted());
    }
    let ports = config.traffic.ports_for(subnets);
    assert!(ports.len() <= config.traffic.ports.len());
    for (index, port) in ports.iter().enumerate() {
        assert!(port.host_port != 0 && port.container_port != 0);
        assert!(!ports.iter().take(index).any(|other| other.is_ambiguous_with(port)));
    }
    for sysctl in &config.tuning.sysctls {
        assert!(sysctl.path.starts_with("net/") && !sysctl.path.contains("/../"));
    }
}

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
