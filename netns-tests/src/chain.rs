//! A network configuration list, called as libcni calls it: each plugin gets the result of the one before, DEL goes
//! backwards with the cached result, and a plugin is told of what it has the capability for.

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::node::Node;
use crate::plugin::{Answer, PluginCall};

/// Plugins in their order.
#[derive(Debug, Clone)]
pub struct Chain {
    name: String,
    version: String,
    plugins: Vec<Value>,
}

impl Chain {
    /// A list with that network name and version. Each plugin's configuration has a `type`; what it has the
    /// `capabilities` for it gets of the runtime's configuration.
    pub fn new(name: &str, version: &str, plugins: Vec<Value>) -> Self {
        Self { name: name.to_owned(), version: version.to_owned(), plugins }
    }

    /// The types of its plugins.
    pub fn types(&self) -> Vec<&str> {
        self.plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect()
    }

    /// Calls ADD of each plugin; the last one's answer, or that of the first that fails. `call` is for one plugin as for
    /// all: the pod, the environment; its command, plugin and input are replaced.
    ///
    /// # Errors
    /// If a plugin cannot be started.
    pub fn add(&self, node: &Node, call: &PluginCall, runtime: &Value) -> Result<Answer> {
        let mut previous = None;
        let mut last = None;
        for plugin in &self.plugins {
            let answer = self.call(node, call, "ADD", plugin, previous.as_ref(), runtime)?;
            previous = answer.json.clone();
            let failed = answer.exit() != Some(0);
            last = Some(answer);
            if failed {
                break;
            }
        }
        last.ok_or_else(|| crate::LabError::new("a chain of no plugins"))
    }

    /// Calls another verb of each plugin, DEL in the reverse order, up to the first that fails. `result` is what ADD
    /// answered.
    ///
    /// # Errors
    /// If a plugin cannot be started.
    pub fn run(
        &self,
        verb: &str,
        node: &Node,
        call: &PluginCall,
        result: Option<&Value>,
        runtime: &Value,
    ) -> Result<Answer> {
        let mut plugins: Vec<_> = self.plugins.iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut last = None;
        for plugin in plugins {
            let answer = self.call(node, call, verb, plugin, result, runtime)?;
            let failed = answer.exit() != Some(0);
            last = Some(answer);
            if failed {
                break;
            }
        }
        last.ok_or_else(|| crate::LabError::new("a chain of no plugins"))
    }

    fn call(
        &self,
        node: &Node,
        call: &PluginCall,
        verb: &str,
        plugin: &Value,
        previous: Option<&Value>,
        runtime: &Value,
    ) -> Result<Answer> {
        let mut config = plugin.clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let told: Map<String, Value> = runtime
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(capability, _)| plugin["capabilities"][capability.as_str()] == true)
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !told.is_empty() {
            config["runtimeConfig"] = Value::Object(told);
        }
        let kind = plugin["type"].as_str().unwrap_or_default();
        call.clone().plugin(kind).env("CNI_COMMAND", verb).stdin(&config).run(node)
    }
}
