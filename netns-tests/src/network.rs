//! The network configurations that are shipped in conf/, which the tests run as they are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{LabError, Result};
use crate::node::Node;
use crate::plugin::uses_reference;

/// The directory conf/ of the project.
pub fn conf_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf")
}

/// A shipped conflist, such as `10-podwire.conflist`. When the tests run against the reference plugins, podwire is
/// replaced by bridge, with portmap and bandwidth after it where they are asked for, and podwire-ipam by host-local:
/// nothing else differs.
///
/// # Errors
/// If there is no such file, or it is not JSON.
pub fn conflist(name: &str) -> Result<Value> {
    let path = conf_dir().join(name);
    let what = format!("read {}", path.display());
    let text = std::fs::read(&path).map_err(LabError::because(what.clone()))?;
    let mut conflist: Value = serde_json::from_slice(&text).map_err(LabError::because(what))?;
    if uses_reference() {
        // Debian 12's plugins end at 1.0.0, and so do the configurations that they can be given.
        conflist["cniVersions"] = json!(["0.4.0", "1.0.0"]);
        let mut chained = Vec::new();
        for plugin in conflist["plugins"].as_array_mut().into_iter().flatten() {
            if plugin["type"] == "podwire" {
                plugin["type"] = json!("bridge");
                plugin["ipam"]["type"] = json!("host-local");
                for (program, capability) in [("portmap", "portMappings"), ("bandwidth", "bandwidth")] {
                    if plugin["capabilities"][capability] == true {
                        chained.push(json!({ "type": program, "capabilities": { capability: true } }));
                    }
                }
            }
        }
        if let Some(plugins) = conflist["plugins"].as_array_mut() {
            plugins.extend(chained);
        }
    }
    Ok(conflist)
}

/// The leases that are recorded in a node, one text each, sorted. They are for comparing and showing.
///
/// # Errors
/// If the store cannot be listed.
pub fn leases(node: &Node, network: &str) -> Result<Vec<String>> {
    if uses_reference() {
        let dir = format!("/var/lib/cni/networks/{network}");
        let names = node.list(dir);
        return Ok(names
            .into_iter()
            .filter(|name| name != "lock" && !name.starts_with("last_reserved_ip"))
            .collect());
    }
    let podwirectl = Node::dist("podwirectl").to_string_lossy().into_owned();
    let what = "list the leases";
    let listed = node.run(&podwirectl, &["ipam", "show", "--json", "--network", network])?.success(what)?;
    let listed: Value = serde_json::from_slice(&listed.stdout).map_err(LabError::because(what))?;
    let listed = listed.as_array().ok_or_else(|| LabError::new(format!("{what}: {listed}")))?;
    let mut leases: Vec<_> = listed.iter().map(Value::to_string).collect();
    leases.sort();
    Ok(leases)
}

/// What an attachment could leave behind on a node and must not: links other than the bridge, leases, rules, cached
/// results, mounted namespaces. One line each; empty when all is as it was.
///
/// # Errors
/// If the node's state cannot be read.
pub fn left_behind(node: &Node, network: &str, bridge: &str) -> Result<Vec<String>> {
    let links = node.links()?.into_iter().filter(|name| name != bridge).map(|name| format!("link {name}"));
    let leases = leases(node, network)?.into_iter().map(|lease| format!("lease {lease}"));
    let cached = |dir: &'static str| node.list(dir).into_iter().map(move |name| format!("{dir}/{name}"));
    let rules = rules_of_pods(node)?.into_iter().map(|rule| format!("rule {rule}"));
    Ok(links
        .chain(leases)
        .chain(rules)
        .chain(cached("/var/lib/cni/results"))
        .chain(cached("/run/netns"))
        .collect())
}

/// What the packet filter holds of single pods in a node: the elements of podwire's tables that carry an owner, as
/// `set: element`. Empty where there is no such table.
///
/// # Errors
/// If `nft` fails.
pub fn rules_of_pods(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for object in ruleset(node)? {
        let Some((_, content)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        if content["table"] != "podwire" {
            continue;
        }
        for element in content["elem"].as_array().into_iter().flatten() {
            let text = element.to_string();
            if text.contains("\"comment\"") {
                found.push(format!("{}: {text}", content["name"].as_str().unwrap_or_default()));
            }
        }
    }
    Ok(found)
}

/// The objects of `nft -j list ruleset` in a node.
///
/// # Errors
/// If `nft` fails.
pub fn ruleset(node: &Node) -> Result<Vec<Value>> {
    let what = "nft -j list ruleset";
    let done = node.run("nft", &["-j", "list", "ruleset"])?.success(what)?;
    let listed: Value = serde_json::from_slice(&done.stdout).map_err(LabError::because(what))?;
    Ok(listed["nftables"].as_array().cloned().unwrap_or_default())
}
