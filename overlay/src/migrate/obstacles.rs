//! What keeps a node from being moved. PURE.

use ipnetwork::IpNetwork;

use super::{Facts, KeptAway};
use crate::adoption::{AdoptedDevice, Adoption};
use crate::cluster::IpFamily;
use crate::status::{Status, StoreState};

impl Facts {
    /// Why nothing can be done.
    pub(super) fn refusals(&self, wanted: &Adoption) -> Vec<String> {
        let mut refused = Vec::new();
        self.check_flannel(wanted, &mut refused);
        self.check_agent(&mut refused);
        // What follows compares with what the agent knows.
        if self.agent.config.is_some() && !self.agent.subnets.is_empty() {
            self.check_devices(wanted, &mut refused);
            self.check_subnets(wanted, &mut refused);
        }
        refused
    }

    fn check_flannel(&self, wanted: &Adoption, refused: &mut Vec<String>) {
        if wanted.devices.is_empty() {
            refused.push(
                "this node has no device of flannel's (flannel.1): it has never run here, or not with VXLAN. A new node needs \
                 no migration; nodes with another backend are drained and started anew with podwire"
                    .to_owned(),
            );
        }
        refused.extend(self.conflists.iter().filter_map(|conflist| {
            Some(format!("{}: {}", conflist.path.display(), conflist.problem.as_ref()?))
        }));
        let says = "say --flannel-is-gone if you know that it cannot come back here";
        match &self.kept_away {
            KeptAway::Yes | KeptAway::Said => {}
            KeptAway::No(what) => refused.push(format!(
                "flannel is not kept away from this node, and both would change the same routes and annotations: {}. Label the \
                 node podwire.dev/network=podwire, and give flannel's DaemonSet a node affinity of podwire.dev/network \
                 DoesNotExist",
                what.join("; ")
            )),
            KeptAway::Unasked => refused.push(format!(
                "nodes do not meet in Kubernetes, so nobody knows whether flannel is kept away from this one: {says}"
            )),
            KeptAway::Unknown(why) => refused
                .push(format!("it cannot be said whether flannel is kept away from this node: {why}; {says}")),
        }
    }

    fn check_agent(&self, refused: &mut Vec<String>) {
        let Status { version, store, subnets, .. } = &self.agent;
        if *version != self.version {
            refused.push(format!(
                "the agent is podwired {version} and this is podwirectl {}: use those of one version",
                self.version
            ));
        }
        match store {
            None => {
                refused.push("the agent belongs to no cluster: see [cluster] in podwired.toml".to_owned())
            }
            Some(store) if store.state != StoreState::Connected => {
                let why = store.why.as_deref().unwrap_or("it has not answered yet");
                refused.push(format!("the agent has no contact to {}: {why}", store.description));
            }
            Some(store) if subnets.is_empty() => {
                refused.push(format!("{} has given this node no subnet yet", store.description));
            }
            Some(_) => {}
        }
        if self.flannel_peers == Some(false) {
            refused.push(
                "the agent does not make flannel's nodes peers: set cluster.kubernetes.flannel_peers = true on every node \
                 until the last one is moved"
                    .to_owned(),
            );
        }
        match &self.network {
            None => refused.push(
                "the agent runs with another configuration than the one that is read here: run this in the agent's container, \
                 or name its file with --config"
                    .to_owned(),
            ),
            Some(network) if network.conflist.is_none() => refused.push(
                "the agent writes no CNI configuration (network.conflist is empty): nothing would take the place of flannel's"
                    .to_owned(),
            ),
            Some(_) => {}
        }
    }

    fn check_devices(&self, wanted: &Adoption, refused: &mut Vec<String>) {
        let Some(config) = &self.agent.config else { return };
        for AdoptedDevice { family, vni, port, name, .. } in &wanted.devices {
            let cluster = config.encapsulation;
            if (*vni, *port) != (cluster.vni, cluster.port) {
                refused.push(format!(
                    "{name} has VNI {vni} and port {port}, podwire's cluster {} and {}: set cluster.encapsulation to \
                     flannel's",
                    cluster.vni, cluster.port
                ));
            }
            if !config.underlay.contains(family) {
                let family = family_name(*family);
                refused.push(format!(
                    "{name} sends by {family}, which podwire's cluster does not: add {family} to cluster.underlay"
                ));
            }
        }
    }

    fn check_subnets(&self, wanted: &Adoption, refused: &mut Vec<String>) {
        let own = &self.agent.subnets;
        let listed =
            |subnets: &[IpNetwork]| subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if let Some(env) = &self.subnet_env
            && (env.subnets.iter().any(|subnet| !own.contains(subnet)) || env.subnets.is_empty())
        {
            refused.push(format!(
                "flannel's subnet of this node is {}, and podwire's is {}: the node's podCIDR has changed since; drain it \
                 and start it anew",
                listed(&env.subnets),
                listed(own)
            ));
        }
        let Some(bridge) = &wanted.bridge else { return };
        let outside: Vec<IpNetwork> = self
            .addresses_of(bridge)
            .map(|address| address.address)
            .filter(|address| !own.iter().any(|subnet| subnet.contains(address.ip())))
            .collect();
        if !outside.is_empty() {
            refused.push(format!(
                "bridge {bridge} has {}, which is not of this node's subnets {}: its pods are not reached by others; drain \
                 the node and remove the bridge",
                listed(&outside),
                listed(own)
            ));
        }
    }
}

fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::Ipv4 => "ipv4",
        IpFamily::Ipv6 => "ipv6",
    }
}
