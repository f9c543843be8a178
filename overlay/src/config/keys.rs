//! Every key of the agent's configuration with its default. PURE.

use super::layers::Key;

const fn key(name: &'static str, default: &'static str) -> Key {
    Key { name, default }
}

/// In the order of conf/podwired.toml. docs/agent.md says what each is for.
pub const KEYS: &[Key] = &[
    key("node_name", r#""""#),
    key("state_dir", r#""/var/lib/podwire""#),
    key("run_dir", r#""/run/podwire""#),
    key("log.format", r#""text""#),
    key("log.level", r#""info""#),
    key("cluster.store", r#""none""#),
    key("cluster.leave_at_shutdown", "false"),
    key("cluster.name", r#""podwire""#),
    key("cluster.range", "[]"),
    key("cluster.also_receive", "[]"),
    key("cluster.direct_routing", r#""never""#),
    key("cluster.underlay", r#"["ipv4", "ipv6"]"#),
    key("cluster.reclaim_after_hours", "0"),
    key("cluster.encapsulation.vni", "1"),
    key("cluster.encapsulation.port", "8472"),
    key("cluster.file.path", r#""/etc/podwire/peers.toml""#),
    key("cluster.etcd.endpoints", "[]"),
    key("cluster.etcd.prefix", r#""/podwire""#),
    key("cluster.etcd.ca", r#""""#),
    key("cluster.etcd.certificate", r#""""#),
    key("cluster.etcd.key", r#""""#),
    key("cluster.etcd.username", r#""""#),
    key("cluster.etcd.password_file", r#""""#),
    key("cluster.kubernetes.kubeconfig", r#""""#),
    key("cluster.kubernetes.flannel_peers", "false"),
    key("overlay.interface", r#""""#),
    key("overlay.addresses", "[]"),
    key("network.name", r#""podwire""#),
    key("network.bridge", r#""podwire0""#),
    key("network.conflist", r#""/etc/cni/net.d/10-podwire.conflist""#),
    key("network.masquerade", "true"),
    key("network.hairpin", "true"),
    key("network.mac_check", "true"),
    key("network.address_check", "true"),
    key("network.port_mappings", "true"),
    key("network.bandwidth", "true"),
    key("telemetry.listen", r#""127.0.0.1:9474""#),
    key("probes.enabled", "true"),
    key("probes.interval_seconds", "15"),
    key("probes.timeout_ms", "1000"),
    key("probes.peers", "64"),
    key("probes.port", "8473"),
];

/// The settings that all nodes share. Where the peers are in a file, they stand there.
pub(super) const SHARED: [&str; 8] = [
    "cluster.name",
    "cluster.range",
    "cluster.encapsulation.vni",
    "cluster.encapsulation.port",
    "cluster.also_receive",
    "cluster.direct_routing",
    "cluster.underlay",
    "cluster.reclaim_after_hours",
];
