//! Devices of another program that are this node's now: `<state-dir>/adopted.json`.
//!
//! The kernel has one VXLAN device for each VNI and port, and a pod's link to its node one bridge. So a node that is moved
//! from another program while its pods run goes on with that program's devices, under their names and with their Ethernet
//! addresses, which other nodes know. The file says which. `podwirectl migrate` writes it, the agent reads it at its start
//! and on SIGHUP, and the way back needs nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use podwire_ipam::file;
use podwire_kernel::MacAddr;
use serde::{Deserialize, Serialize};

use crate::cluster::{Encapsulation, IpFamily};
use crate::config::is_interface;
use crate::desired::Naming;

/// The version of the file that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// What was adopted, and what there was before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Adoption {
    /// See [`VERSION`].
    pub version: u32,
    /// Whose the devices were: `flannel`.
    pub from: String,
    /// VXLAN devices, one for each family of the underlay at most.
    pub devices: Vec<AdoptedDevice>,
    /// The bridge that the pods of before are on, and new ones come to; `None`: there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What going back takes.
    #[serde(default)]
    pub before: Before,
}

/// A VXLAN device that keeps its name and its Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdoptedDevice {
    /// The family of the addresses that its packets travel by.
    pub family: IpFamily,
    /// Its VXLAN network identifier.
    pub vni: u32,
    /// The UDP port that it receives on.
    pub port: u16,
    /// Its name: `flannel.1`.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
}

/// How runtimes were told of pods' network, and where its addresses are recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Before {
    /// The name of the network in the other program's configuration: `cbr0`.
    pub network: String,
    /// host-local's directory of it.
    pub leases: PathBuf,
    /// The other program's configurations, and under which names they wait.
    pub conflists: Vec<SetAside>,
    /// Whether the pods of before are in podwire's store: from then on it knows better than host-local's directory.
    pub taken_in: bool,
    /// The name of podwire's network on this node.
    pub own_network: String,
    /// The configuration that the agent writes.
    pub own_conflist: Option<PathBuf>,
}

/// A file under a name that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// Its name before.
    pub path: PathBuf,
    /// Its name meanwhile.
    pub aside: PathBuf,
}

impl Adoption {
    /// Where the file is.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("adopted.json")
    }

    /// What was adopted on this node; `None` if nothing was.
    ///
    /// # Errors
    /// The file cannot be read, or is of a newer version or none of ours: which devices are this node's is unknown then.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, String> {
        let path = Self::path(state_dir);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        Self::parse(&bytes).map(Some).map_err(|why| format!("{} {why}", path.display()))
    }

    /// Reads the file's content. PURE.
    ///
    /// # Errors
    /// What is wrong with it, to be put behind its name.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |error: serde_json::Error| format!("is not what `podwirectl migrate` writes: {error}");
        let Version { version } = serde_json::from_slice(bytes).map_err(wrong)?;
        if !(1..=VERSION).contains(&version) {
            return Err(format!(
                "is of version {version}, which this podwire does not know: install a newer one"
            ));
        }
        let adoption: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        adoption.check().map_err(|why| format!("makes no sense: {why}"))?;
        Ok(adoption)
    }

    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut segments = BTreeSet::new();
        for AdoptedDevice { family, vni, port, name, mac } in &self.devices {
            if *vni >= 1 << 24 || *port == 0 {
                return Err(format!("no device has VNI {vni} and port {port}"));
            }
            if !mac.is_unicast() {
                return Err(format!("no device has the Ethernet address {mac}"));
            }
            if !segments.insert((*family, *vni, *port)) {
                return Err(format!("more than one device has VNI {vni} and port {port} over {family:?}"));
            }
            if Naming::default().parse(name).is_some() {
                return Err(format!("{name} is what podwire calls a device of its own"));
            }
            names.insert(name);
        }
        let distinct = self.devices.len() + usize::from(self.bridge.is_some());
        names.extend(&self.bridge);
        if let Some(name) = names.iter().find(|name| !is_interface(name)) {
            return Err(format!("{name:?} is not an interface's name"));
        }
        if names.len() < distinct {
            return Err("two links have one name".to_owned());
        }
        Ok(())
    }

    /// How this node's devices are called, then.
    pub fn naming(&self) -> Naming {
        self.devices.iter().fold(Naming::default(), |naming, device| {
            let encapsulation = Encapsulation { vni: device.vni, port: device.port };
            naming.adopt(device.family.into(), encapsulation, &device.name, device.mac)
        })
    }

    /// Puts it in place, durably and in one step, for root alone.
    ///
    /// # Errors
    /// As the file system reports them.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        file::make_private_directory(state_dir)?;
        file::replace(&Self::path(state_dir), &bytes, 0o600)
    }

    /// Forgets it: the devices are nobody's then.
    ///
    /// # Errors
    /// As the file system reports them; that there is none is no error.
    pub fn remove(state_dir: &Path) -> io::Result<()> {
        match fs::remove_file(Self::path(state_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_kept_for_root_and_read_as_it_was_written() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Adoption::load(root.path()).unwrap(), None);
        let adoption = Adoption {
            version: VERSION,
            from: "flannel".to_owned(),
            devices: vec![AdoptedDevice {
                family: IpFamily::Ipv4,
                vni: 1,
                port: 8472,
                name: "flannel.1".to_owned(),
                mac: "2a:00:00:00:00:01".parse().unwrap(),
            }],
            bridge: Some("cni0".to_owned()),
            before: Before { network: "cbr0".to_owned(), ..Before::default() },
        };
        adoption.save(root.path()).unwrap();
        assert_eq!(Adoption::load(root.path()).unwrap(), Some(adoption));
        let mode = fs::metadata(Adoption::path(root.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Adoption::remove(root.path()).unwrap();
        Adoption::remove(root.path()).unwrap();
        assert_eq!(Adoption::load(root.path()).unwrap(), None);
    }

    #[test]
    fn what_nobody_understands_is_an_error_and_not_nothing() {
        for (text, told) in [
            ("", "is not what"),
            ("{}", "version"),
            (r#"{"version":2,"anything":1}"#, "version 2"),
            (r#"{"version":1,"from":"flannel","devices":[{"name":7}]}"#, "is not what"),
            (r#"{"version":1,"from":"flannel","devices":[],"bridge":"a/b"}"#, "interface's name"),
        ] {
            let error = Adoption::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn what_no_kernel_has_is_refused() {
        let device = |family, vni, port, name: &str, mac: &str| AdoptedDevice {
            family,
            vni,
            port,
            name: name.to_owned(),
            mac: mac.parse().unwrap(),
        };
        let of = |devices: &[AdoptedDevice], bridge: Option<&str>| Adoption {
            version: VERSION,
            devices: devices.to_vec(),
            bridge: bridge.map(str::to_owned),
            ..Adoption::default()
        };
        let (v4, v6) = (IpFamily::Ipv4, IpFamily::Ipv6);
        let good = device(v4, 1, 8472, "flannel.1", "2a:00:00:00:00:01");
        let six = device(v6, 1, 8472, "flannel-v6.1", "2a:00:00:00:00:02");
        of(&[good.clone(), six.clone()], Some("cni0")).check().unwrap();
        for (adoption, told) in [
            (of(&[device(v4, 1 << 24, 8472, "a", "2a:00:00:00:00:01")], None), "VNI 16777216"),
            (of(&[device(v4, 1, 0, "a", "2a:00:00:00:00:01")], None), "port 0"),
            (of(&[device(v4, 1, 8472, "a", "01:00:00:00:00:01")], None), "01:00:00:00:00:01"),
            (of(&[device(v4, 1, 8472, "sixteen-letters0", "2a:00:00:00:00:01")], None), "sixteen-letters0"),
            (of(&[device(v4, 1, 8472, "podwire.2", "2a:00:00:00:00:01")], None), "podwire.2"),
            (
                of(&[good.clone(), AdoptedDevice { name: "b".to_owned(), ..good.clone() }], None),
                "more than one",
            ),
            (of(&[good.clone(), AdoptedDevice { name: "flannel.1".to_owned(), ..six }], None), "one name"),
            (of(&[good], Some("flannel.1")), "one name"),
        ] {
            let error = adoption.check().unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
