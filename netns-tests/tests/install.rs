//! `make install` and `make uninstall`, below a directory of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use podwire_netns_tests::{Lab, LabError, Result};

fn make(target: &str, root: &Path) -> Result<()> {
    let done = Command::new("make")
        .args([target, "PREFIX=/usr", &format!("DESTDIR={}", root.display())])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .map_err(LabError::because("start make"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(LabError::new(format!("make {target}: {said}"))) }
}

fn all_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            all_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    all_files(root, &mut found);
    let mut names: Vec<_> =
        found.iter().filter_map(|path| Some(path.strip_prefix(root).ok()?.display().to_string())).collect();
    names.sort();
    names
}

#[test]
fn install_puts_everything_in_place_and_uninstall_takes_it_away() -> Result<()> {
    let lab = Lab::new("install")?;
    let root = lab.dir();
    make("install", root)?;
    // Again: over itself, as an upgrade does.
    make("install", root)?;
    let expected = [
        "etc/podwire/podwired.toml",
        "opt/cni/bin/loopback",
        "opt/cni/bin/podwire",
        "opt/cni/bin/podwire-ipam",
        "opt/cni/bin/podwire-tuning",
        "usr/lib/systemd/system/podwired.service",
        "usr/sbin/podwirectl",
        "usr/sbin/podwired",
        "usr/share/bash-completion/completions/podwirectl",
        "usr/share/bash-completion/completions/podwired",
        "usr/share/fish/vendor_completions.d/podwirectl.fish",
        "usr/share/fish/vendor_completions.d/podwired.fish",
        "usr/share/podwire/10-podwire-ipv4.conflist",
        "usr/share/podwire/10-podwire.conflist",
        "usr/share/podwire/agent.md",
        "usr/share/podwire/networkd/10-podwire.link",
        "usr/share/podwire/networkd/10-podwire.network",
        "usr/share/podwire/networkd/podwire.conf",
        "usr/share/podwire/peers.toml",
        "usr/share/podwire/podwirectl.md",
        "usr/share/podwire/podwired.toml",
        "usr/share/zsh/site-functions/_podwirectl",
        "usr/share/zsh/site-functions/_podwired",
    ];
    assert_eq!(files_below(root), expected);
    let mode =
        |file: &str| fs::metadata(root.join(file)).map(|found| found.permissions().mode() & 0o777).ok();
    for link in ["loopback", "podwire-tuning"] {
        assert_eq!(mode(&format!("opt/cni/bin/{link}")), Some(0o755), "{link} leads to the plugin");
    }
    let podwired = Command::new(root.join("usr/sbin/podwired"))
        .args(["check", "--config", &root.join("etc/podwire/podwired.toml").display().to_string()])
        .output()
        .map_err(LabError::because("start podwired"))?;
    assert!(podwired.status.success(), "{}", String::from_utf8_lossy(&podwired.stderr));
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/podwired.service")).unwrap_or_default();
    assert!(unit.contains("ExecStart=/usr/sbin/podwired run"), "{unit}");
    assert!(!unit.contains('@'), "a placeholder stays: {unit}");
    make("uninstall", root)?;
    assert_eq!(files_below(root), [""; 0]);
    Ok(())
}

#[test]
fn a_foreign_loopback_plugin_is_neither_replaced_nor_removed() -> Result<()> {
    let lab = Lab::new("foreign")?;
    let bin = lab.dir().join("opt/cni/bin");
    fs::create_dir_all(&bin).map_err(LabError::because("make a directory"))?;
    fs::write(bin.join("loopback"), "another's").map_err(LabError::because("write a file"))?;
    make("install", lab.dir())?;
    make("uninstall", lab.dir())?;
    assert_eq!(files_below(lab.dir()), ["opt/cni/bin/loopback"]);
    assert_eq!(fs::read_to_string(bin.join("loopback")).ok().as_deref(), Some("another's"));
    Ok(())
}

#[test]
fn what_an_administrator_has_configured_is_neither_replaced_nor_removed() -> Result<()> {
    let lab = Lab::new("configured")?;
    make("install", lab.dir())?;
    let file = lab.dir().join("etc/podwire/podwired.toml");
    let theirs = "node_name = \"n1\"\n";
    fs::write(&file, theirs).map_err(LabError::because("write a file"))?;
    make("install", lab.dir())?;
    assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(theirs));
    make("uninstall", lab.dir())?;
    assert_eq!(files_below(lab.dir()), ["etc/podwire/podwired.toml"]);
    assert_eq!(fs::read_to_string(&file).ok().as_deref(), Some(theirs));
    Ok(())
}
