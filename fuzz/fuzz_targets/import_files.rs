//! Other programs' files: host-local's directory, as a file's name, a line's end, its content and a zero byte
//! for each file; and libcni's cached results.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use podwire_ipam::{Pool, Range, RangeSet, RangeSpec, cached_results, import};

fuzz_target!(|data: &[u8]| {
    let _ = cached_results::parse(data);

    let directory = directory();
    std::fs::create_dir_all(directory).expect("a directory of this process's own");
    for file in data.split(|byte| *byte == 0).take(16) {
        let mut parts = file.splitn(2, |byte| *byte == b'\n');
        let (Some(name), Some(content)) = (parts.next(), parts.next()) else { continue };
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if !name.is_empty() && name.len() < 64 && !name.contains('/') && name != "." && name != ".." {
            std::fs::write(directory.join(name), content).expect("a plain file");
        }
    }
    let sets = [set("10.88.0.0/16"), set("fd88::/64")];
    let imported = import::read(directory, "pods", &sets).expect("a directory that can be read");
    std::fs::remove_dir_all(directory).expect("a directory of this process's own");
    let mut pool = Pool::default();
    pool.apply_all(pool.new_boot("a"));
    pool.apply_all(pool.import("pods", &imported.attachments, &imported.cursors).changes);
    assert_eq!(pool.invariants(), Vec::<String>::new());
});

fn directory() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    // In memory where that is possible: a disk would be the slowest part by far.
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    DIRECTORY.get_or_init(|| base.join(format!("podwire-fuzz-{}", std::process::id())))
}

fn set(subnet: &str) -> RangeSet {
    let spec = RangeSpec {
        subnet: subnet.parse().expect("valid"),
        range_start: None,
        range_end: None,
        gateway: None,
    };
    RangeSet::new(vec![Range::new(spec).expect("valid")]).expect("valid")
}
