//! The manifests as `kubectl apply -k` would send them.
//!
//! Debian's kubectl has a kustomize of 2018 that knows neither directories among `resources` nor `patches`, so what podwire's
//! overlays use of it is here. Where a newer kubectl is at hand, it is asked for a second opinion.

use std::fs;
use std::path::{Path, PathBuf};

use podwire_netns_tests::{LabError, Result};
use serde_json::{Map, Value};

/// The overlays, and first the base.
pub(crate) const KUSTOMIZATIONS: [&str; 4] =
    ["kubernetes", "kustomize/dual-stack", "kustomize/direct-routing", "kustomize/migrate-from-flannel"];

/// A directory or file of `conf`.
pub(crate) fn conf(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf").join(path)
}

/// The documents of a YAML file.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(text).map_err(LabError::because("read YAML"))
}

fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).map_err(LabError::because(format!("read {}", path.display())))?;
    documents(&text)
}

/// What a directory with a `kustomization.yaml` amounts to.
pub(crate) fn render(directory: &Path) -> Result<Vec<Value>> {
    let file = directory.join("kustomization.yaml");
    let Ok([kustomization]) = <[Value; 1]>::try_from(read(&file)?) else {
        return Err(LabError::new(format!("{} is not one document", file.display())));
    };
    let known = ["apiVersion", "kind", "resources", "patches"];
    if let Some(key) =
        kustomization.as_object().and_then(|keys| keys.keys().find(|key| !known.contains(&key.as_str())))
    {
        return Err(LabError::new(format!("{} has {key}, which this cannot render", file.display())));
    }
    let mut documents = Vec::new();
    for resource in kustomization["resources"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let path = directory.join(resource);
        documents.extend(if path.is_dir() { render(&path)? } else { read(&path)? });
    }
    for patch in kustomization["patches"].as_array().into_iter().flatten() {
        let path = directory.join(patch["path"].as_str().unwrap_or_default());
        for patch in read(&path)? {
            let target = documents.iter_mut().find(|document| identity(document) == identity(&patch));
            let Some(target) = target else {
                return Err(LabError::new(format!("{} patches nothing", path.display())));
            };
            merge(target, patch);
        }
    }
    Ok(documents)
}

/// What no two objects of a cluster share.
pub(crate) fn identity(document: &Value) -> [&str; 4] {
    [
        &document["apiVersion"],
        &document["kind"],
        &document["metadata"]["namespace"],
        &document["metadata"]["name"],
    ]
    .map(|part| part.as_str().unwrap_or_default())
}

/// A strategic merge: maps by key; lists of maps by the key that the API's types have for them, or whole.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(patch))
            if patch.iter().all(|element| merge_key(element).is_some()) =>
        {
            for element in patch {
                let key = merge_key(&element).unwrap_or_default();
                match into.iter_mut().find(|there| there[key] == element[key]) {
                    Some(there) => merge(there, element),
                    None => into.push(element),
                }
            }
        }
        (into, patch) => *into = patch,
    }
}

fn merge_key(element: &Value) -> Option<&'static str> {
    let keys: &Map<String, Value> = element.as_object()?;
    // A mount has both, and its name is that of a volume.
    ["mountPath", "name"].into_iter().find(|key| keys.contains_key(*key))
}
