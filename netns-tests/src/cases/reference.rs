//! One podwire configuration as the chain of reference plugins that does the same.

use serde_json::{Map, Value, json};

use crate::chain::Chain;

/// A plugin of the chain, its keys, and the capability that it has.
struct Part {
    kind: &'static str,
    keys: &'static [&'static str],
    capability: Option<&'static str>,
}

/// In the order in which people chain them.
const PARTS: [Part; 4] = [
    Part {
        kind: "portmap",
        keys: &[
            "snat",
            "masqAll",
            "markMasqBit",
            "externalSetMarkChain",
            "conditionsV4",
            "conditionsV6",
            "backend",
        ],
        capability: Some("portMappings"),
    },
    Part {
        kind: "bandwidth",
        keys: &["ingressRate", "ingressBurst", "egressRate", "egressBurst"],
        capability: Some("bandwidth"),
    },
    Part { kind: "firewall", keys: &["ingressPolicy"], capability: None },
    Part { kind: "tuning", keys: &["sysctl", "promisc", "allmulti", "txQLen"], capability: None },
];

/// The chain, and what the runtime tells it: the key `runtimeConfig`.
pub(super) fn chain(config: &Value) -> (Chain, Value) {
    let mut bridge = config.as_object().cloned().unwrap_or_default();
    let runtime = bridge.remove("runtimeConfig").unwrap_or_default();
    let name = bridge.remove("name").unwrap_or_default();
    let version = bridge.remove("cniVersion").unwrap_or_default();
    let mut plugins = Vec::new();
    for part in PARTS {
        let mut own = Map::new();
        for key in part.keys {
            if let Some(value) = bridge.remove(*key) {
                own.insert((*key).to_owned(), value);
            }
        }
        let asked = part.capability.filter(|capability| runtime.get(capability).is_some());
        if own.is_empty() && asked.is_none() {
            continue;
        }
        own.insert("type".to_owned(), json!(part.kind));
        if let Some(capability) = part.capability {
            own.insert("capabilities".to_owned(), json!({ capability: true }));
        }
        plugins.push(Value::Object(own));
    }
    bridge.insert("capabilities".to_owned(), json!({ "mac": true, "ips": true, "ipRanges": true }));
    plugins.insert(0, Value::Object(bridge));
    let chain = Chain::new(name.as_str().unwrap_or_default(), version.as_str().unwrap_or_default(), plugins);
    (chain, runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_goes_to_its_plugin() {
        let (chain, _) = chain(&json!({
            "name": "net", "cniVersion": "1.0.0", "type": "bridge", "ipMasq": true, "snat": false, "ingressRate": 1,
            "ingressBurst": 1, "runtimeConfig": { "portMappings": [] }
        }));
        assert_eq!(chain.types(), ["bridge", "portmap", "bandwidth"]);
    }
}
