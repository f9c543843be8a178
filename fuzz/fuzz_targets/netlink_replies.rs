//! What the kernel answers: a newer kernel may say anything.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    for reply in podwire_kernel::parse_replies(datagram) {
        // To print it reads all of it.
        let _ = format!("{reply:?}");
    }
});
