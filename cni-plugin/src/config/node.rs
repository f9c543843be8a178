//! What the agent says about this node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use podwire_ipam::{Range, RangeSet, RangeSpec, check_sets};
use serde::{Deserialize, Serialize};

use crate::protocol::{CniError, code};

/// `/run/podwire/<network>/node.json`, written by the agent once the node has its share of the cluster's
/// addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfig {
    /// This node's subnets; a pod gets one address from each.
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
    /// Grows with each change of the file.
    #[serde(default)]
    pub generation: u64,
}

impl NodeConfig {
    /// Reads the file's content.
    ///
    /// # Errors
    /// Code 11 if it is not what the agent writes, or names no subnet: the agent will write it again.
    pub fn parse(content: &[u8]) -> Result<Self, CniError> {
        let wrong =
            |why: String| CniError::new(code::TRY_AGAIN_LATER, "cannot read node.json").with_details(why);
        let config: Self = serde_json::from_slice(content).map_err(|error| wrong(error.to_string()))?;
        if config.subnets.is_empty() {
            return Err(wrong("it names no subnet".to_owned()));
        }
        Ok(config)
    }

    /// The range sets: one for each subnet.
    ///
    /// # Errors
    /// Code 11 if a subnet is no range for pods.
    pub fn range_sets(&self) -> Result<Vec<RangeSet>, CniError> {
        let set = |subnet: &IpNetwork| {
            let gateway = self.gateways.iter().copied().find(|gateway| subnet.contains(*gateway));
            let spec = RangeSpec { subnet: *subnet, range_start: None, range_end: None, gateway };
            RangeSet::new(vec![Range::new(spec)?])
        };
        let sets = self.subnets.iter().map(set).collect::<Result<Vec<_>, _>>();
        let sets = sets.and_then(|sets| check_sets(&sets).map(|()| sets));
        sets.map_err(|error| {
            CniError::from_cause(code::TRY_AGAIN_LATER, &error).context("wrong subnet in node.json")
        })
    }
}

/// Where the file of that network is.
pub fn node_config_path(run_dir: &Path, network: &str) -> PathBuf {
    run_dir.join(network).join("node.json")
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
        assert_eq!(NodeConfig::parse(&again), Ok(config));
    }

    #[test]
    fn what_is_not_understood_is_to_be_tried_again() {
        for content in ["", "{}", "[]", r#"{"subnets":[]}"#, r#"{"subnets":["10.0.0.0"],"mtu":-1}"#] {
            assert_eq!(
                NodeConfig::parse(content.as_bytes()).unwrap_err().code,
                code::TRY_AGAIN_LATER,
                "{content}"
            );
        }
        for subnets in [r#"["10.244.1.7/24"]"#, r#"["10.0.0.0/8","10.1.0.0/16"]"#, r#"["10.0.0.0/31"]"#] {
            let config = NodeConfig::parse(format!("{{\"subnets\":{subnets}}}").as_bytes()).unwrap();
            assert_eq!(config.range_sets().unwrap_err().code, code::TRY_AGAIN_LATER, "{subnets}");
        }
    }

    #[test]
    fn the_file_is_the_networks_own() {
        assert_eq!(
            node_config_path(Path::new("/run/podwire"), "pods"),
            Path::new("/run/podwire/pods/node.json")
        );
    }
}
