//! Another plugin's result, as prevResult or as IPAM's answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cni::{CniResult, CniVersion};

fuzz_target!(|document: &[u8]| {
    let Ok(result) = CniResult::parse(document) else { return };
    for version in CniVersion::ALL {
        // Old versions cannot say everything.
        let Ok(written) = result.to_json(version) else { continue };
        let again = CniResult::parse(written.as_bytes()).expect("ours can be read");
        assert_eq!(again.to_json(version).as_ref(), Ok(&written));
        if version == CniVersion::V1_1_0 {
            assert_eq!(again, result);
        }
    }
});
