//! The contestants' networks: names, bridges, states and configurations.

use serde_json::{Value, json};

use super::{Contestant, Slot};

/// What a network's pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gives {
    /// An interface with an address.
    Link,
    /// And masquerade and two TCP ports of the node.
    Ports,
    /// And a rate each way.
    Everything,
}

/// The ports of a pod that the node's lead to.
pub(crate) const PODS_PORTS: [u16; 2] = [80, 443];

/// Bits per second, and bits: more than a call's traffic needs, so that nothing waits.
const RATE: u64 = 1_000_000_000;
const BURST: u64 = 8 << 20;

/// One network of one contestant: a name, a bridge, a state of its own.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) contestant: Contestant,
    pub(super) gives: Gives,
    pub(super) name: String,
    pub(super) bridge: String,
    state: String,
    /// host-local's directory, to read from and, for the reference, to write to.
    pub(super) data_dir: Option<String>,
    /// Variables of the plugin's environment.
    pub(crate) env: Vec<(String, String)>,
}

impl Network {
    pub(super) fn new(contestant: Contestant, purpose: &str, state: &str, gives: Gives) -> Self {
        let letter = contestant.letter();
        Self {
            contestant,
            gives,
            name: format!("bench-{purpose}-{letter}"),
            bridge: format!("b{purpose}{letter}"),
            state: format!("{state}{letter}"),
            data_dir: None,
            env: Vec::new(),
        }
    }

    /// The same network for pods that get something else.
    pub(crate) fn giving(&self, gives: Gives) -> Self {
        Self { gives, ..self.clone() }
    }

    /// stateDir and runDir.
    pub(super) fn dirs(&self) -> [String; 2] {
        [format!("/var/lib/podwire/{}", self.state), format!("/run/podwire-{}", self.state)]
    }

    /// The configuration of the plugin that makes the interface, and of podwire all of it; with what the runtime adds for
    /// a pod.
    pub(super) fn config(&self, slot: Option<&Slot>) -> Value {
        let reference = matches!(self.contestant, Contestant::Reference | Contestant::Chain);
        let mut config = json!({
            "cniVersion": if reference { "1.0.0" } else { "1.1.0" },
            "name": self.name,
            "type": if reference { "bridge" } else { "podwire" },
            "bridge": self.bridge,
            "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]] },
        });
        if let Some(dir) = &self.data_dir {
            config["ipam"]["dataDir"] = json!(dir);
        }
        if self.gives != Gives::Link {
            config["ipMasq"] = json!(true);
        }
        if !reference {
            let [state, run] = self.dirs();
            config["stateDir"] = json!(state);
            config["runDir"] = json!(run);
            if self.gives != Gives::Link {
                config["capabilities"] = json!({ "portMappings": true, "bandwidth": true });
            }
            if let Some(slot) = slot {
                config["runtimeConfig"] = self.wishes(slot);
            }
        }
        config
    }

    /// The configurations of the reference chain, in the order of ADD.
    pub(super) fn chain(&self, slot: &Slot) -> Vec<Value> {
        let wishes = self.wishes(slot);
        let plugin = |kind: &str, capability: &str| {
            json!({
                "cniVersion": "1.0.0",
                "name": self.name,
                "type": kind,
                "runtimeConfig": { capability: wishes[capability] },
            })
        };
        let mut chain = vec![self.config(Some(slot)), plugin("portmap", "portMappings")];
        if self.gives == Gives::Everything {
            chain.push(plugin("bandwidth", "bandwidth"));
        }
        chain
    }

    /// runtimeConfig.
    fn wishes(&self, slot: &Slot) -> Value {
        let mut wishes = json!({});
        if self.gives != Gives::Link {
            let ports = PODS_PORTS.iter().zip(slot.port()..);
            let ports =
                ports.map(|(pod, node)| json!({ "hostPort": node, "containerPort": pod, "protocol": "tcp" }));
            wishes["portMappings"] = ports.collect();
        }
        if self.gives == Gives::Everything {
            wishes["bandwidth"] = json!({
                "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
            });
        }
        wishes
    }
}
