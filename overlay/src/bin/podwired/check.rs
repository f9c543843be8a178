//! `podwired check`: is the configuration right, and what would be used?

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use podwire_overlay::config::{Config, ConfigErrors, Mistake, Resolved, Store};
use serde_json::{Map, Value, json};

use crate::cli::{Check, Cli};
use crate::commands::print;

/// Prints what there is to say.
///
/// # Errors
/// What is wrong; with `--json` that has been printed by then.
pub(crate) fn check(cli: &Cli, options: &Check) -> Result<(), String> {
    let resolved = cli.settings();
    let mut mistakes = match &resolved {
        Ok(resolved) => wrong_files(&resolved.config),
        Err(ConfigErrors(mistakes)) => mistakes.clone(),
    };
    mistakes.dedup();
    if options.json {
        print(&format!("{:#}\n", as_json(resolved.as_ref().ok(), &mistakes)))?;
    } else if let Ok(resolved) = &resolved {
        print(&as_toml(resolved))?;
    }
    if mistakes.is_empty() { Ok(()) } else { Err(told(&ConfigErrors(mistakes))) }
}

/// A configuration's mistakes, for people.
pub(crate) fn told(errors: &ConfigErrors) -> String {
    match errors.0.len() {
        1 => errors.to_string(),
        count => {
            format!("{count} mistakes in the configuration\n  {}", errors.to_string().replace('\n', "\n  "))
        }
    }
}

/// What is wrong with the files that it names.
fn wrong_files(config: &Config) -> Vec<Mistake> {
    match config.cluster.as_ref().map(|cluster| &cluster.store) {
        None => Vec::new(),
        Some(Store::File { path }) => wrong_peers(path, config),
        Some(Store::Etcd(etcd)) => unreadable(&[
            ("cluster.etcd.ca", &etcd.ca),
            ("cluster.etcd.certificate", &etcd.certificate),
            ("cluster.etcd.key", &etcd.key),
            ("cluster.etcd.password_file", &etcd.password_file),
        ]),
        Some(Store::Kubernetes(kubernetes)) => {
            unreadable(&[("cluster.kubernetes.kubeconfig", &kubernetes.kubeconfig)])
        }
    }
}

fn wrong_peers(path: &Path, config: &Config) -> Vec<Mistake> {
    let name = path.display().to_string();
    let node_name = config.node_name.as_str();
    let mistake = |why: String| vec![Mistake { place: name.clone(), key: String::new(), why }];
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return mistake(format!("cannot be read: {error}")),
    };
    match podwire_overlay::store::file::parse(&name, &text) {
        Err(ConfigErrors(mistakes)) => mistakes,
        Ok(snapshot) if !snapshot.nodes.contains_key(node_name) => {
            mistake(format!("has no node {node_name:?}, which is this one's node_name"))
        }
        // The agent would start, and go without probes.
        Ok(snapshot) if snapshot.config.ports().any(|port| port == config.probes.port) => {
            let port = config.probes.port;
            mistake(format!(
                "has {port} in encapsulation.port or also_receive, which is this node's probes.port: tunnel and probes need \
                 a UDP port each"
            ))
        }
        Ok(_) => Vec::new(),
    }
}

fn unreadable(files: &[(&str, &Option<PathBuf>)]) -> Vec<Mistake> {
    let unreadable = files.iter().filter_map(|(key, path)| {
        let path = path.as_ref()?;
        let error = File::open(path).err()?;
        let why = format!("cannot be read: {error}");
        Some(Mistake { place: path.display().to_string(), key: (*key).to_owned(), why })
    });
    unreadable.collect()
}

fn as_toml(resolved: &Resolved) -> String {
    let mut text: String = resolved.notices.iter().map(|notice| format!("# {notice}\n")).collect();
    let lines = resolved
        .settings
        .iter()
        .map(|setting| (format!("{} = {}", setting.key, setting.value), &setting.origin));
    for (line, origin) in lines {
        text.push_str(&format!("{line:<56} # {origin}\n"));
    }
    text
}

fn as_json(resolved: Option<&Resolved>, mistakes: &[Mistake]) -> Value {
    let settings = resolved.map(|resolved| &resolved.settings).into_iter().flatten();
    let settings: Map<String, Value> = settings
        .map(|setting| {
            (setting.key.to_owned(), json!({ "value": value(&setting.value), "origin": setting.origin }))
        })
        .collect();
    let mistakes: Vec<Value> = mistakes
        .iter()
        .map(|mistake| json!({ "place": mistake.place, "key": mistake.key, "why": mistake.why }))
        .collect();
    json!({
        "ok": mistakes.is_empty(),
        "settings": settings,
        "notices": resolved.map(|resolved| &resolved.notices),
        "mistakes": mistakes,
    })
}

/// A value's TOML as JSON.
fn value(text: &str) -> Value {
    let table: Option<Map<String, Value>> = toml::from_str(&format!("value = {text}")).ok();
    table.and_then(|mut table| table.remove("value")).unwrap_or_default()
}
