//! What is shipped beside the programs: the conflists, and documents whose links and commands exist.

use std::fs;
use std::path::{Path, PathBuf};

use podwire_netns_tests::network::conf_dir;
use podwire_netns_tests::{LabError, Result};
use serde_json::{Value, json};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(LabError::because(format!("read {}", path.display())))
}

/// The files of that extension that are part of the project.
fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(LabError::because(format!("list {}", dir.display())))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !["target", "dist", ".git"].contains(&&*name) {
                files(&path, extension, found)?;
            }
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn conflists_are_what_every_runtime_takes() -> Result<()> {
    let mut found = Vec::new();
    files(&conf_dir(), "conflist", &mut found)?;
    assert!(found.len() >= 2, "{found:?}");
    for path in found {
        let list: Value = serde_json::from_str(&read(&path)?)
            .map_err(LabError::because(format!("parse {}", path.display())))?;
        let at = path.display();
        // containerd 1.6 and 1.7 know no 1.1.0: it may only be offered, never demanded.
        assert_eq!(list["cniVersion"], "1.0.0", "{at}");
        let plugins = list["plugins"].as_array().filter(|plugins| !plugins.is_empty());
        let plugins = plugins.ok_or_else(|| LabError::new(format!("{at} has no plugins")))?;
        assert_eq!(list["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]), "{at}");
        // One process does it all.
        assert_eq!(plugins.len(), 1, "{at}");
        assert_eq!(plugins[0]["type"], "podwire", "{at}");
        // Without it a pod does not reach itself through its Service.
        assert_eq!(plugins[0]["hairpinMode"], true, "{at}");
        for on in ["ipMasq", "macspoofchk", "addressCheck"] {
            assert_eq!(plugins[0][on], true, "{on} in {at}");
        }
        assert_eq!(plugins[0]["capabilities"], json!({"portMappings": true, "bandwidth": true}), "{at}");
        assert_eq!(plugins[0]["ipam"]["type"], "podwire-ipam", "{at}");
    }
    Ok(())
}

#[test]
fn links_in_documents_lead_somewhere() -> Result<()> {
    let mut found = Vec::new();
    files(&project(), "md", &mut found)?;
    let mut links = 0;
    for path in found {
        let text = read(&path)?;
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let to = path.parent().unwrap_or(Path::new(".")).join(target);
            assert!(to.exists(), "{} links to {target}, which is not there", path.display());
        }
    }
    assert!(links > 0, "no link was looked at");
    Ok(())
}

#[test]
fn make_commands_in_documents_exist() -> Result<()> {
    let makefile = read(&project().join("Makefile"))?;
    let mut found = Vec::new();
    files(&project(), "md", &mut found)?;
    let mut commands = 0;
    for path in found {
        let text = read(&path)?;
        // In running text a command stands in backquotes; in examples at the start of a line.
        for rest in text.split("`make ").skip(1).chain(text.split("\nmake ").skip(1)) {
            let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(rest.len());
            let target = &rest[..end];
            if target.is_empty() {
                continue;
            }
            commands += 1;
            assert!(makefile.contains(&format!("\n{target}:")), "{} says `make {target}`", path.display());
        }
    }
    assert!(commands > 0, "no command was looked at");
    Ok(())
}
