//! How etcd is reached. PURE.

use std::path::PathBuf;

use super::document::{Field, Mistake};
use super::layers::Layers;
use crate::cluster::ClusterConfig;

/// Where etcd is, and how this node shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// At least one, each as `https://10.0.0.1:2379`; all with TLS or all without.
    pub endpoints: Vec<String>,
    /// What all keys begin with, as `/podwire`: with a slash before it and none behind.
    pub prefix: String,
    /// The certificates of those who sign etcd's; the system's unless given.
    pub ca: Option<PathBuf>,
    /// This node's certificate, for [`Etcd::key`].
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// The user to log in as, with [`Etcd::password_file`].
    pub username: Option<String>,
    /// A file with the password alone.
    pub password_file: Option<PathBuf>,
    /// What the cluster is to be if the prefix has none yet. Where it has one, that counts.
    pub initial: Option<ClusterConfig>,
}

pub(super) fn read(layers: &mut Layers, initial: Option<ClusterConfig>) -> Etcd {
    let etcd = Etcd {
        endpoints: layers.read("cluster.etcd.endpoints", endpoints),
        prefix: layers.read("cluster.etcd.prefix", prefix),
        ca: layers.read("cluster.etcd.ca", super::file),
        certificate: layers.read("cluster.etcd.certificate", super::file),
        key: layers.read("cluster.etcd.key", super::file),
        username: layers.read("cluster.etcd.username", super::optional),
        password_file: layers.read("cluster.etcd.password_file", super::file),
        initial,
    };
    let pairs = [
        ("cluster.etcd.certificate", etcd.certificate.is_some(), "cluster.etcd.key", etcd.key.is_some()),
        (
            "cluster.etcd.username",
            etcd.username.is_some(),
            "cluster.etcd.password_file",
            etcd.password_file.is_some(),
        ),
    ];
    for (one, has_one, other, has_other) in pairs {
        if has_one && !has_other {
            layers.complain(one, other, format!("is missing: {one} needs it"));
        }
        if has_other && !has_one {
            layers.complain(other, one, format!("is missing: {other} needs it"));
        }
    }
    let has_tls = etcd.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    for (key, is_given) in
        [("cluster.etcd.ca", etcd.ca.is_some()), ("cluster.etcd.certificate", etcd.certificate.is_some())]
    {
        if is_given && !has_tls && !etcd.endpoints.is_empty() {
            layers.complain(key, key, "is of no use: cluster.etcd.endpoints are http://, not https://");
        }
    }
    etcd
}

fn endpoints(field: &Field<'_>) -> Result<Vec<String>, Mistake> {
    const ALLOWED: &str = "an endpoint such as https://10.0.0.1:2379";
    let mut endpoints = Vec::new();
    for element in field.list("endpoints such as https://10.0.0.1:2379")? {
        let text = element.text(ALLOWED)?;
        let endpoint = text.strip_suffix('/').unwrap_or(text);
        if !is_endpoint(endpoint) {
            return Err(element.wrong(ALLOWED));
        }
        if !endpoints.contains(&endpoint.to_owned()) {
            endpoints.push(endpoint.to_owned());
        }
    }
    let with_tls = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
    match (endpoints.len(), with_tls) {
        (0, _) => Err(field.mistake(format!("is empty: name {ALLOWED}"))),
        (all, with_tls) if with_tls != 0 && with_tls != all => {
            Err(field.mistake("some are https:// and some are http://: use one of them"))
        }
        _ => Ok(endpoints),
    }
}

fn is_endpoint(text: &str) -> bool {
    let Some(authority) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            !host.is_empty() && host.chars().all(plain)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn prefix(field: &Field<'_>) -> Result<String, Mistake> {
    const ALLOWED: &str = "a prefix such as /podwire";
    let prefix = field.text(ALLOWED)?.trim_end_matches('/');
    let parts = prefix.strip_prefix('/').unwrap_or_default();
    let is_plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic());
    if prefix.len() <= 200 && parts.split('/').all(is_plain) {
        return Ok(prefix.to_owned());
    }
    Err(field.wrong(ALLOWED))
}
