//! What the agent says about this node, for plugins to read: `/run/podwire/<network>/node.json`.

use std::fs;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::file;
use crate::{Dirs, Error, Range, RangeError, RangeSet, RangeSpec, check_sets};

/// The file's content. The agent writes it once the node has its share of the cluster's addresses; while there is none,
/// networks without ranges of their own have no addresses to give.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// This node's subnets; a pod gets one address from each.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// The gateways within the subnets; a subnet without one has its first address as gateway.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The MTU of pods' interfaces in bytes, if the overlay asks for one.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// All ranges that pods of the cluster have.
    #[serde(default)]
    pub cluster_ranges: Vec<IpNetwork>,
    /// Grows with each change of the file, from 1 after each boot.
    #[serde(default)]
    pub generation: u64,
    /// Why no new pod is to have an address of these subnets, for example because they are another node's by now. Pods
    /// that run are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
}

/// Why a `node.json` says nothing.
#[derive(Debug, thiserror::Error)]
pub enum NodeConfigError {
    /// It is not what an agent writes.
    #[error("it is not what the agent writes")]
    Json(#[from] serde_json::Error),
    /// Pods could have no address.
    #[error("it names no subnet")]
    NoSubnet,
}

impl NodeConfig {
    /// Reads the file's content. Keys of newer agents are passed over.
    ///
    /// # Errors
    /// It is not what the agent writes, or names no subnet without saying why.
    pub fn parse(content: &[u8]) -> Result<Self, NodeConfigError> {
        let config: Self = serde_json::from_slice(content)?;
        if config.subnets.is_empty() && config.refuse.is_none() {
            return Err(NodeConfigError::NoSubnet);
        }
        Ok(config)
    }

    /// The range sets: one for each subnet.
    ///
    /// # Errors
    /// A subnet is no range for pods.
    pub fn range_sets(&self) -> Result<Vec<RangeSet>, RangeError> {
        let set = |subnet: &IpNetwork| {
            let gateway = self.gateways.iter().copied().find(|gateway| subnet.contains(*gateway));
            let spec = RangeSpec { subnet: *subnet, range_start: None, range_end: None, gateway };
            RangeSet::new(vec![Range::new(spec)?])
        };
        let sets = self.subnets.iter().map(set).collect::<Result<Vec<_>, _>>()?;
        check_sets(&sets)?;
        Ok(sets)
    }

    /// What the agent says of this node's part of that network; `None` where no agent wrote anything.
    ///
    /// # Errors
    /// The file cannot be read, or as for [`NodeConfig::parse`]. The agent will write it again.
    pub fn read(dirs: &Dirs, network: &str) -> Result<Option<Self>, Error> {
        let path = dirs.node(network);
        match fs::read(&path) {
            Ok(content) => Self::parse(&content)
                .map(Some)
                .map_err(|source| Error::Node { path, source: Box::new(source) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Node { path, source: Box::new(error) }),
        }
    }

    /// Puts it in place of the file that is there, in one step: whoever reads sees either. Sets
    /// [`NodeConfig::generation`] behind that of the file. Returns whether there was a change to write.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub fn write(&mut self, dirs: &Dirs, network: &str) -> Result<bool, Error> {
        let path = dirs.node(network);
        // One that cannot be read is to be replaced.
        if let Ok(Some(earlier)) = Self::read(dirs, network) {
            self.generation = earlier.generation;
            if *self == earlier {
                return Ok(false);
            }
        }
        self.generation = self.generation.saturating_add(1);
        let failed = |source| Error::io("write", &path, source);
        dirs.make_network(network)?;
        let mut content = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        content.push(b'\n');
        file::replace(&path, &content, 0o644).map_err(failed)?;
        Ok(true)
    }

    /// Takes the file away: the network has no addresses to give then. Returns whether it was there.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(dirs: &Dirs, network: &str) -> Result<bool, Error> {
        let path = dirs.node(network);
        match fs::remove_file(&path) {
            Ok(()) => {
                // Other files may be in it.
                if let Some(directory) = path.parent() {
                    let _ = fs::remove_dir(directory);
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subnet_becomes_a_range_set_with_its_own_gateway() {
        let content = br#"{"subnets":["10.244.1.0/24","fd00:1::/64"],"gateways":["fd00:1::9"],"mtu":1450,
            "clusterRanges":["10.244.0.0/16"],"generation":7,"something":"newer"}"#;
        let config = NodeConfig::parse(content).unwrap();
        assert_eq!((config.mtu, config.generation), (Some(1450), 7));
        let sets = config.range_sets().unwrap();
        let gateways: Vec<_> = sets.iter().map(|set| set.ranges()[0].gateway().to_string()).collect();
        assert_eq!(gateways, ["10.244.1.1", "fd00:1::9"]);
        let again = serde_json::to_vec(&config).unwrap();
        assert_eq!(NodeConfig::parse(&again).unwrap(), config);
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for content in ["", "{}", "[]", r#"{"subnets":[]}"#, r#"{"subnets":["10.0.0.0"],"mtu":-1}"#] {
            assert!(NodeConfig::parse(content.as_bytes()).is_err(), "{content}");
        }
        assert!(NodeConfig::parse(br#"{"refuse":"why"}"#).is_ok());
        for subnets in [r#"["10.244.1.7/24"]"#, r#"["10.0.0.0/8","10.1.0.0/16"]"#, r#"["10.0.0.0/31"]"#] {
            let config = NodeConfig::parse(format!("{{\"subnets\":{subnets}}}").as_bytes()).unwrap();
            assert!(config.range_sets().is_err(), "{subnets}");
        }
    }

    #[test]
    fn it_is_written_when_it_changes_and_each_change_has_a_greater_number() {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(root.path().join("state"), root.path().join("run"));
        assert_eq!(NodeConfig::read(&dirs, "pods").unwrap(), None);
        assert!(!NodeConfig::remove(&dirs, "pods").unwrap());
        let mut config =
            NodeConfig { subnets: vec!["10.244.1.0/24".parse().unwrap()], ..NodeConfig::default() };
        assert!(config.write(&dirs, "pods").unwrap());
        assert!(!config.clone().write(&dirs, "pods").unwrap(), "nothing to say");
        assert!(!NodeConfig { generation: 0, ..config.clone() }.write(&dirs, "pods").unwrap());
        let mut refusing = NodeConfig { refuse: Some("no".to_owned()), ..config.clone() };
        assert!(refusing.write(&dirs, "pods").unwrap());
        assert_eq!((config.generation, refusing.generation), (1, 2));
        assert_eq!(NodeConfig::read(&dirs, "pods").unwrap(), Some(refusing));
        fs::write(dirs.node("pods"), "garbage").unwrap();
        assert!(NodeConfig::read(&dirs, "pods").unwrap_err().retry(), "the agent will write it again");
        assert!(config.write(&dirs, "pods").unwrap());
        assert_eq!(fs::read_dir(dirs.run.join("pods")).unwrap().count(), 1, "nothing is left beside it");
        assert!(NodeConfig::remove(&dirs, "pods").unwrap());
        assert!(!dirs.run.join("pods").exists());
    }
}
