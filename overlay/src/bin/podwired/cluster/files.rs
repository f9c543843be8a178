//! The files by which plugins and runtimes know of this node.

use std::collections::BTreeSet;

use podwire_ipam::{Dirs, NodeConfig};
use podwire_overlay::config::Config;
use podwire_overlay::conflist::{self, Written};

use crate::node::Cluster;

/// An agent that remembers nothing must not leave standing what an earlier one said: the subnets may be others' by now.
pub(super) fn refuse_what_nobody_knows(dirs: &Dirs, network: &str) {
    match NodeConfig::read(dirs, network) {
        Ok(None) => {}
        Ok(Some(node)) if node.refuse.is_some() => {}
        found => {
            let mut node = found.ok().flatten().unwrap_or_default();
            node.refuse = Some("the agent does not know yet whether these are still its subnets".to_owned());
            match node.write(dirs, network) {
                Ok(_) => {
                    tracing::warn!("nothing is remembered of the cluster: no new pods before it has answered")
                }
                Err(error) => tracing::error!("{}", error.chain()),
            }
        }
    }
}

/// Writes the conflist, and says what is wrong with how runtimes are told of the network.
pub(super) fn tell_runtimes(cluster: &mut Cluster, config: &Config, dirs: &Dirs) {
    let notices = write_conflist(config, dirs);
    for notice in notices.difference(&cluster.conflist_notices) {
        tracing::warn!("{notice}");
    }
    cluster.conflist_notices = notices;
}

fn write_conflist(config: &Config, dirs: &Dirs) -> BTreeSet<String> {
    let mut notices = BTreeSet::new();
    let Some(path) = &config.network.conflist else { return notices };
    match conflist::write(path, &conflist::content(&config.network, dirs)) {
        Ok(Written::Changed) => tracing::info!(path = %path.display(), "runtimes are told of the network"),
        Ok(Written::Unchanged) => {}
        Ok(Written::Foreign) => {
            notices.insert(format!("{} is not this agent's, and is left as it is", path.display()));
        }
        Err(error) => {
            notices.insert(format!("cannot write {}: {error}", path.display()));
        }
    }
    match conflist::rivals(path, &config.network.name) {
        Ok(rivals) => notices.extend(rivals.iter().map(ToString::to_string)),
        Err(error) => {
            notices.insert(format!("cannot look for other networks beside {}: {error}", path.display()));
        }
    }
    notices
}
