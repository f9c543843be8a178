//! SIGHUP: the configuration is read again, and what can change while the agent runs does.

use std::net::SocketAddr;
use std::rc::Rc;

use podwire_overlay::config::{Config, Resolved};
use tokio::sync::watch;

use crate::log;
use crate::node::Node;

/// What is fixed at the agent's start, by the beginning of its keys: who the node is, what is open, and what others hold
/// on to.
const FIXED: [&str; 7] =
    ["node_name", "state_dir", "run_dir", "log.format", "cluster.", "network.name", "network.bridge"];

/// Of those that begin so, what is not.
const NOT_FIXED: [&str; 1] = ["cluster.leave_at_shutdown"];

/// Reads the configuration again. One with mistakes changes nothing.
pub(crate) fn reload(
    node: &Node,
    again: &dyn Fn() -> Result<Resolved, String>,
    level: &log::Level,
    listen: &watch::Sender<Option<SocketAddr>>,
) {
    let mut newer = match again() {
        Ok(newer) => newer,
        Err(mistakes) => {
            for line in mistakes.lines() {
                tracing::error!("{line}");
            }
            tracing::error!("the configuration has mistakes and stays as it was");
            return;
        }
    };
    let older = Rc::clone(&node.resolved.borrow());
    for notice in &newer.notices {
        tracing::warn!("{notice}");
    }
    let changed = older.changed(&newer);
    if changed.is_empty() {
        tracing::info!("the configuration is as it was; looking at everything again");
    }
    for key in &changed {
        if is_fixed(key) {
            tracing::warn!(
                key,
                "has changed, which needs a restart of podwired: it goes on with the old value"
            );
        } else {
            tracing::info!(key, "has changed and holds from now on");
        }
    }
    keep_fixed(&older, &mut newer);
    if let Err(error) = level.set(&newer.config.log.level) {
        tracing::error!("{error}");
    }
    let address = newer.config.telemetry.listen;
    *node.resolved.borrow_mut() = Rc::new(newer);
    listen.send_if_modified(|listen| std::mem::replace(listen, address) != address);
    node.reloaded.notify_one();
}

fn is_fixed(key: &str) -> bool {
    !NOT_FIXED.contains(&key) && FIXED.iter().any(|fixed| key.starts_with(fixed))
}

/// Puts the old values back of what cannot change.
fn keep_fixed(older: &Resolved, newer: &mut Resolved) {
    for (old, new) in older.settings.iter().zip(&mut newer.settings) {
        if is_fixed(old.key) {
            new.clone_from(old);
        }
    }
    let Config { node_name, state_dir, run_dir, log, cluster, overlay: _, network, telemetry: _, probes: _ } =
        &mut newer.config;
    let fixed = older.config.clone();
    *node_name = fixed.node_name;
    *state_dir = fixed.state_dir;
    *run_dir = fixed.run_dir;
    log.format = fixed.log.format;
    network.name = fixed.network.name;
    network.bridge = fixed.network.bridge;
    *cluster = match (fixed.cluster, cluster.take()) {
        (Some(fixed), Some(new)) => {
            Some(podwire_overlay::config::Cluster { leave_at_shutdown: new.leave_at_shutdown, ..fixed })
        }
        (fixed, _) => fixed,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_overlay::config::{SourceFile, Sources};

    fn resolved(text: &str) -> Resolved {
        let environment = std::collections::BTreeMap::new();
        let file = Some(SourceFile { name: "podwired.toml", text });
        Config::resolve(&Sources { file, environment: &environment, flags: &[], host_name: "n1" }).unwrap()
    }

    #[test]
    fn what_is_fixed_keeps_its_value_and_is_told_of_each_time() {
        let older = resolved("[cluster]\nstore = \"file\"\n[network]\nbridge = \"b0\"\nmasquerade = true");
        let text = "node_name = \"n2\"\n[cluster]\nstore = \"none\"\n[network]\nbridge = \"b1\"\nmasquerade = false\n\
                    [log]\nlevel = \"debug\"\nformat = \"json\"";
        let mut newer = resolved(text);
        keep_fixed(&older, &mut newer);
        assert_eq!(newer.config.node_name, "n1");
        assert_eq!(newer.config.cluster, older.config.cluster);
        assert_eq!(newer.config.network.bridge, "b0");
        assert_eq!(newer.config.log.format, older.config.log.format);
        assert!(!newer.config.network.masquerade);
        assert_eq!(newer.config.log.level, "debug");
        // The next SIGHUP compares with what holds.
        let again = newer.changed(&resolved(text));
        assert!(again.contains(&"node_name") && again.contains(&"network.bridge"), "{again:?}");
        assert!(!again.contains(&"log.level"), "{again:?}");
    }

    #[test]
    fn each_key_is_fixed_or_not() {
        for key in ["cluster.store", "cluster.etcd.endpoints", "node_name", "network.name", "state_dir"] {
            assert!(is_fixed(key), "{key}");
        }
        for key in ["cluster.leave_at_shutdown", "overlay.interface", "network.conflist", "log.level"] {
            assert!(!is_fixed(key), "{key}");
        }
    }
}
