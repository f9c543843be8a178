//! What passes a link while `podwirectl trace` looks: anybody may have sent it.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use podwire_overlay::terminal::{Style, harmless_json};
use podwire_overlay::trace::{Flow, Follower, Place, Role, Sighting, decode, text};

fuzz_target!(|bytes: &[u8]| {
    let frame = decode(bytes, bytes.len(), &[8472, 4789]);
    let flow = Flow { a: [10, 244, 1, 7].into(), b: [10, 244, 2, 9].into() };
    let _ = flow.has(&frame);
    let place = Place { role: Role::Underlay, link: "eth0".to_owned() };
    let mut follower = Follower::new(vec![place.clone()]);
    follower.saw(Sighting { place, at: Duration::ZERO, outgoing: false, frame });
    for passage in follower.end() {
        // Nothing of it must make a terminal do something.
        let shown = text(1, &passage, Style::default());
        assert!(shown.chars().all(|shown| shown == '\n' || !shown.is_control()));
        if let Ok(json) = serde_json::to_string(&passage) {
            assert!(harmless_json(&json).chars().all(|shown| !shown.is_control()));
        }
    }
});
