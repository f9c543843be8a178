//! What the kernel tells of nftables and of connections: a newer kernel may say anything, and others' tables hold
//! anything.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    for object in podwire_kernel::nft::objects(datagram) {
        // To print it reads all of it.
        let _ = format!("{object:?}");
    }
    for entry in podwire_kernel::conntrack::connections(datagram) {
        let _ = format!("{entry:?} {entry}");
    }
});
