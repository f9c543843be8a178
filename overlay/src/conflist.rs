//! The CNI configuration by which runtimes come to podwire. Runtimes take a node for ready when they find one, and give it
//! pods: so the agent writes it when it can serve them, and not before.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use podwire_ipam::Dirs;
use serde_json::{Map, Value, json};

use crate::config::Network;
use podwire_ipam::file;

/// By this the file is known as the agent's own. Runtimes pass over keys that they do not know.
const MARK: (&str, &str) = ("managedBy", "podwired");

/// What [`write()`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The file is new, or has new content.
    Changed,
    /// It has that content already.
    Unchanged,
    /// Somebody else wrote the file that is there. It is left as it is.
    Foreign,
}

/// What [`remove`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The file is gone.
    Gone,
    /// There was none.
    Missing,
    /// Somebody else wrote it. It is left.
    Foreign,
}

/// Another configuration that comes between runtimes and ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Its file.
    pub path: PathBuf,
    /// What it does, and what to do about it.
    pub why: String,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

/// The file's content for that network. Addresses are not in it: they are this node's, as the agent says in its
/// [`NodeConfig`](podwire_ipam::NodeConfig), and may be others after a restart. PURE.
pub fn content(network: &Network, dirs: &Dirs) -> String {
    let mut plugin = json!({
        "type": "podwire",
        "bridge": network.bridge,
        // The pod's default route in each of its families, by the bridge.
        "isDefaultGateway": true,
        "ipMasq": network.masquerade,
        "hairpinMode": network.hairpin,
        "macspoofchk": network.mac_check,
        "addressCheck": network.address_check,
        "capabilities": { "portMappings": network.port_mappings, "bandwidth": network.bandwidth },
        "ipam": { "type": "podwire-ipam" },
    });
    let usual = Dirs::default();
    for (key, path, usual) in [("stateDir", &dirs.state, &usual.state), ("runDir", &dirs.run, &usual.run)] {
        if path != usual
            && let Some(plugin) = plugin.as_object_mut()
        {
            plugin.insert(key.to_owned(), json!(path.display().to_string()));
        }
    }
    let list = json!({
        MARK.0: MARK.1,
        "cniVersion": "1.0.0",
        // A runtime takes the highest that it knows.
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": network.name,
        "plugins": [plugin],
    });
    format!("{list:#}\n")
}

/// Puts that content in place in one step, for runtimes watch the directory; readable for everybody. Makes the directory if
/// need be.
///
/// # Errors
/// As the file system reports them; the file is then as it was.
pub fn write(path: &Path, content: &str) -> io::Result<Written> {
    match fs::read_to_string(path) {
        Ok(found) if found == content => return Ok(Written::Unchanged),
        Ok(found) if !is_own(&found) => return Ok(Written::Foreign),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
        }
        // Not ours: we write text.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Written::Foreign),
        Err(error) => return Err(error),
    }
    file::replace(path, content.as_bytes(), 0o644).map(|()| Written::Changed)
}

/// Removes the file if the agent wrote it.
///
/// # Errors
/// As the file system reports them.
pub fn remove(path: &Path) -> io::Result<Removed> {
    match fs::read_to_string(path) {
        Ok(found) if is_own(&found) => fs::remove_file(path).map(|()| Removed::Gone),
        Ok(_) => Ok(Removed::Foreign),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(Removed::Missing),
            io::ErrorKind::InvalidData => Ok(Removed::Foreign),
            _ => Err(error),
        },
    }
}

/// The other configurations in the directory of ours that keep runtimes from it: containerd and CRI-O take the first by
/// name, and containerd none if one before it is damaged.
///
/// # Errors
/// The directory cannot be read.
pub fn rivals(own: &Path, network: &str) -> io::Result<Vec<Rival>> {
    let Some(directory) = own.parent() else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    paths.sort();
    let others = paths.into_iter().filter(|path| is_configuration(path) && path != own);
    Ok(others.filter_map(|path| rival(path, own, network)).collect())
}

/// Whether a configuration, of one plugin or a list of them, has a plugin of that type. PURE.
pub fn has_plugin(configuration: &Value, name: &str) -> bool {
    let is = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(name);
    let list = configuration.get("plugins").and_then(Value::as_array);
    is(configuration) || list.is_some_and(|plugins| plugins.iter().any(is))
}

/// The endings that libcni looks for.
fn is_configuration(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    matches!(ending, Some("conf" | "conflist" | "json"))
}

fn rival(path: PathBuf, own: &Path, network: &str) -> Option<Rival> {
    let is_before = path.file_name() < own.file_name();
    let why = match name_of(&path) {
        Ok(name) if is_before => {
            format!("runtimes take its network {name:?}, since it comes before {}: remove it", own.display())
        }
        Ok(name) if name == network => {
            format!("it is a second configuration of network {network:?}: remove it")
        }
        Err(why) if is_before => format!("runtimes may stop at it, for {why}: remove it"),
        _ => return None,
    };
    Some(Rival { path, why })
}

/// A configuration's network.
fn name_of(path: &Path) -> Result<String, String> {
    let text = fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let document: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| format!("it is no CNI configuration: {error}"))?;
    let is_list = path.extension().is_some_and(|ending| ending == "conflist");
    let has_plugin = match document.get("plugins").and_then(Value::as_array) {
        Some(plugins) if is_list => !plugins.is_empty(),
        _ => !is_list && document.get("type").is_some_and(Value::is_string),
    };
    if !has_plugin {
        return Err("it is no CNI configuration: it names no plugin".to_owned());
    }
    Ok(document.get("name").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn is_own(text: &str) -> bool {
    let document: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    document.is_some_and(|document| document.get(MARK.0).and_then(Value::as_str) == Some(MARK.1))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn network() -> Network {
        Network {
            name: "podwire".to_owned(),
            bridge: "podwire0".to_owned(),
            conflist: None,
            masquerade: true,
            hairpin: true,
            mac_check: true,
            address_check: true,
            port_mappings: true,
            bandwidth: false,
        }
    }

    const USUAL: &str = r#"{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "0.4.0",
    "1.0.0",
    "1.1.0"
  ],
  "managedBy": "podwired",
  "name": "podwire",
  "plugins": [
    {
      "addressCheck": true,
      "bridge": "podwire0",
      "capabilities": {
        "bandwidth": false,
        "portMappings": true
      },
      "hairpinMode": true,
      "ipMasq": true,
      "ipam": {
        "type": "podwire-ipam"
      },
      "isDefaultGateway": true,
      "macspoofchk": true,
      "type": "podwire"
    }
  ]
}
"#;

    #[test]
    fn it_says_what_the_network_is_to_be() {
        assert_eq!(content(&network(), &Dirs::default()), USUAL);
        let elsewhere = content(&network(), &Dirs::new("/s", "/run/podwire"));
        assert!(elsewhere.contains("\"stateDir\": \"/s\"") && !elsewhere.contains("runDir"), "{elsewhere}");
    }

    #[test]
    fn it_is_written_when_it_changes_and_removed_if_it_is_ours() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cni/net.d/10-podwire.conflist");
        assert_eq!(remove(&path).unwrap(), Removed::Missing);
        assert_eq!(write(&path, USUAL).unwrap(), Written::Changed);
        let written = fs::metadata(&path).unwrap();
        assert_eq!(written.permissions().mode() & 0o777, 0o644);
        assert_eq!(write(&path, USUAL).unwrap(), Written::Unchanged);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written.modified().unwrap());
        assert_eq!(write(&path, &USUAL.replace("podwire0", "podwire1")).unwrap(), Written::Changed);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert_eq!(remove(&path).unwrap(), Removed::Gone);
        for foreign in [&b"{}"[..], b"", b"\xff", br#"{"managedBy":"other"}"#] {
            fs::write(&path, foreign).unwrap();
            assert_eq!(write(&path, USUAL).unwrap(), Written::Foreign);
            assert_eq!(remove(&path).unwrap(), Removed::Foreign);
            assert_eq!(fs::read(&path).unwrap(), foreign);
        }
    }

    #[test]
    fn what_runtimes_would_take_before_it_is_told() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("net.d/10-podwire.conflist");
        assert_eq!(rivals(&own, "podwire").unwrap(), []);
        write(&own, USUAL).unwrap();
        let other = |name: &str| {
            format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"bridge"}}]}}"#)
        };
        for (file, content) in [
            ("05-broken.conf", "{".to_owned()),
            ("05-empty.conflist", r#"{"name":"e","plugins":[]}"#.to_owned()),
            ("10-flannel.conflist", other("cbr0")),
            ("10-flannel.conflist.bak", other("cbr0")),
            ("10-one.conf", r#"{"name":"one","type":"bridge"}"#.to_owned()),
            ("87-podman.conflist", other("podman")),
            ("88-broken.json", "{".to_owned()),
            ("99-podwire.conflist", other("podwire")),
        ] {
            fs::write(root.path().join("net.d").join(file), content).unwrap();
        }
        let found = rivals(&own, "podwire").unwrap();
        let told: Vec<String> = found
            .iter()
            .map(|rival| format!("{} {}", rival.path.file_name().unwrap().display(), rival.why))
            .collect();
        let expected = [
            "05-broken.conf runtimes may stop at it, for it is no CNI configuration: EOF",
            "05-empty.conflist runtimes may stop at it, for it is no CNI configuration: it names no plugin",
            "10-flannel.conflist runtimes take its network \"cbr0\", since it comes before",
            "10-one.conf runtimes take its network \"one\"",
            "99-podwire.conflist it is a second configuration of network \"podwire\"",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}\nexpected {expected}");
        }
    }
}
