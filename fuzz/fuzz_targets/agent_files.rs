//! The agent's configuration and a peers file. The first byte chooses which, or a key that the rest is the value of.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use podwire_overlay::config::{Config, Flag, KEYS, SourceFile, Sources};
use podwire_overlay::store::file::parse;

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    match choice {
        0 => peers(&text),
        1 => configuration(Some(&text), &[]),
        key => {
            let key = KEYS[usize::from(*key) % KEYS.len()].name.to_owned();
            configuration(None, &[Flag { shown: "--set".to_owned(), key, value: text.into_owned() }]);
        }
    }
});

fn configuration(text: Option<&str>, flags: &[Flag]) {
    let environment = BTreeMap::new();
    let file = text.map(|text| SourceFile { name: "file", text });
    let resolve = |file, flags| Config::resolve(&Sources { file, environment: &environment, flags, host_name: "n" });
    match resolve(file, flags) {
        Ok(resolved) => {
            // What is shown is a configuration itself, and the same one.
            let given = resolved.settings.iter().filter(|setting| setting.origin != "default");
            let shown: String = given.map(|setting| format!("{} = {}\n", setting.key, setting.value)).collect();
            let again = resolve(Some(SourceFile { name: "shown", text: &shown }), &[]);
            assert_eq!(again.expect("what is shown").config, resolved.config);
        }
        Err(errors) => assert!(!errors.0.is_empty()),
    }
}

fn peers(text: &str) {
    match parse("file", text) {
        Ok(snapshot) => {
            for (name, node) in &snapshot.nodes {
                assert_eq!(*name, node.name);
                assert!(!node.addresses.is_empty() && node.addresses.len() <= 2);
                for subnet in &node.subnets {
                    let within = |range: &podwire_overlay::cluster::ClusterRange| {
                        range.range.contains(subnet.ip()) && range.subnet_prefix == subnet.prefix()
                    };
                    assert!(snapshot.config.ranges.iter().any(within));
                }
            }
        }
        Err(errors) => assert!(errors.0.iter().all(|mistake| mistake.place.starts_with("file"))),
    }
}
