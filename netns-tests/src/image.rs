//! Container images without a registry: an OCI archive around a static program.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{LabError, Result};

/// The image of a pod's sandbox.
pub const PAUSE: &str = "local.test/pause:1";

/// The image of the containers: a static busybox.
pub const BUSYBOX: &str = "local.test/busybox:1";

/// Debian's package busybox-static.
const PROGRAM: &str = "/bin/busybox";

/// The names under which busybox is in the images.
const APPLETS: [&str; 12] =
    ["sh", "cat", "echo", "hostname", "httpd", "ip", "mkdir", "nc", "ping", "sleep", "timeout", "wget"];

/// One file of an archive.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes);
        let digest = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    /// A reference to this blob, as the OCI image specification has it.
    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }
}

/// Writes the archives `pause.tar` and `busybox.tar` for `ctr images import` and `podman load` into a directory.
/// Gives their paths.
///
/// # Errors
/// If Debian's package busybox-static is missing, or there is no room.
pub fn write_images(dir: &Path) -> Result<[PathBuf; 2]> {
    let layer = Blob::new(layer()?);
    let image = |file: &str, name: &str, command: Value| -> Result<PathBuf> {
        let path = dir.join(file);
        write_archive(&path, name, &layer, &command)
            .map_err(LabError::because(format!("write the image {}", path.display())))?;
        Ok(path)
    };
    let forever = json!([PROGRAM, "sleep", "inf"]);
    Ok([image("pause.tar", PAUSE, forever.clone())?, image("busybox.tar", BUSYBOX, forever)?])
}

fn layer() -> Result<Vec<u8>> {
    let program = std::fs::read(PROGRAM)
        .map_err(LabError::because(format!("read {PROGRAM} (package busybox-static)")))?;
    let failed = LabError::because::<std::io::Error>("write an image's layer");
    let write = || -> std::io::Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for dir in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/", "www/"] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(if dir == "tmp/" { 0o1777 } else { 0o755 });
            header.set_size(0);
            layer.append_data(&mut header, dir, std::io::empty())?;
        }
        append(&mut layer, PROGRAM.trim_start_matches('/'), &program, 0o755)?;
        for applet in APPLETS {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
        layer.into_inner()
    };
    write().map_err(failed)
}

fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes)
}

fn write_archive(path: &Path, name: &str, layer: &Blob, command: &Value) -> std::io::Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = Blob::json(&json!({
        "architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command},
        // The layer is not compressed, so its digest is the digest of its content too.
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("config.v1+json"), "layers": [layer.descriptor("layer.v1.tar")],
    }));
    let mut entry = manifest.descriptor("manifest.v1+json");
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut archive = tar::Builder::new(File::create(path)?);
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", index.as_bytes(), 0o644)?;
    for blob in [layer, &config, &manifest] {
        append(&mut archive, &format!("blobs/sha256/{}", blob.digest), &blob.bytes, 0o644)?;
    }
    archive.into_inner()?.flush()
}
