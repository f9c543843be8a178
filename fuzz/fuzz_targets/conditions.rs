//! Conditions of host ports, in the words of nft. The first byte chooses the family; a line is an entry of the list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_attach::rules::parse_conditions;
use podwire_kernel::Family;

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else { return };
    let family = if choice % 2 == 0 { Family::V4 } else { Family::V6 };
    let text = String::from_utf8_lossy(text);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let parsed = parse_conditions(family, &lines);
    // One entry or a list of words is the same.
    assert_eq!(parsed, parse_conditions(family, &[lines.join(" ")]));
    if let Err(error) = parsed {
        assert!(error.to_string().starts_with("conditionsV"));
    }
});
