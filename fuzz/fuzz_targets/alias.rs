//! A link's alias: anybody with CAP_NET_ADMIN can write one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_attach::alias;

fuzz_target!(|text: &str| {
    let Some(read) = alias::parse(text) else { return };
    let written = alias::format(&read.owner, &read.addresses);
    assert!(written.len() <= alias::MAX_LEN);
    let again = alias::parse(&written);
    if read.whole && text.len() <= alias::MAX_LEN {
        assert_eq!(again.map(|again| again.owner_id), Some(read.owner_id));
    }
});
