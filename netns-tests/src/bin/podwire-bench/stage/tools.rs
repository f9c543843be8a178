//! The yardstick programs, in C.

use std::path::PathBuf;
use std::process::Command;

use podwire_netns_tests::{LabError, Node, Result};

/// Compiles the yardstick programs into the node; gives their directory in it.
pub(crate) fn compile(node: &Node) -> Result<PathBuf> {
    let dir = node.lab().dir().join("tools");
    std::fs::create_dir_all(&dir).map_err(LabError::because("make a directory for the tools"))?;
    let arch = std::env::consts::ARCH;
    let write = |name: &str, source: &str| {
        let file = dir.join(name);
        std::fs::write(&file, source).map_err(LabError::because(format!("write {name}"))).map(|()| file)
    };
    write("batch.h", include_str!("../../../../floor/batch.h"))?;
    write("pod.h", include_str!("../../../../floor/pod.h"))?;
    for (name, source) in [
        ("floor", include_str!("../../../../floor/floor.c")),
        ("full", include_str!("../../../../floor/full.c")),
        ("chain", include_str!("../../../../floor/chain.c")),
        ("meter", include_str!("../../../../floor/meter.c")),
        ("peers", include_str!("../../../../floor/peers.c")),
        ("pair", include_str!("../../../../floor/pair.c")),
        ("empty", include_str!("../../../../floor/empty.c")),
        ("peak", include_str!("../../../../floor/peak.c")),
    ] {
        let file = write(&format!("{name}.c"), source)?;
        let done = Command::new("musl-gcc")
            // musl-gcc leaves out the kernel's headers.
            .args([
                "-O2",
                "-static",
                "-idirafter",
                "/usr/include",
                "-idirafter",
                &format!("/usr/include/{arch}-linux-gnu"),
                "-o",
            ])
            .args([dir.join(name), file])
            .output()
            .map_err(LabError::because("start musl-gcc (package musl-tools)"))?;
        if !done.status.success() {
            return Err(LabError::new(format!(
                "musl-gcc {name}.c: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            )));
        }
    }
    std::fs::create_dir_all(node.path("/run/bench")).map_err(LabError::because("make /run/bench"))?;
    Ok(dir)
}
