//! Nodes as kubelets and the controller manager make them. PURE.

use serde_json::{Value, json};

/// A Node to create.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    object: Value,
}

impl NodeSpec {
    /// A Node of that name, with the label of its host name, without subnets and addresses.
    pub fn new(name: &str) -> Self {
        let labels = json!({ "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" });
        Self {
            object: json!({
                "kind": "Node", "apiVersion": "v1",
                "metadata": { "name": name, "labels": labels },
                "status": { "addresses": [{ "type": "Hostname", "address": name }] },
            }),
        }
    }

    /// Its subnets, in that order.
    #[must_use]
    pub fn pod_cidrs(mut self, cidrs: &[&str]) -> Self {
        self.object["spec"]["podCIDRs"] = json!(cidrs);
        self
    }

    /// Its addresses, in that order.
    #[must_use]
    pub fn internal_ips(mut self, addresses: &[&str]) -> Self {
        let name = self.object["metadata"]["name"].clone();
        let internal = addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address }));
        let host = json!({ "type": "Hostname", "address": name });
        self.object["status"]["addresses"] = internal.chain([host]).collect();
        self
    }

    /// One more annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["annotations"][key] = json!(value);
        self
    }

    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// As large as Nodes in use are, about 10 KiB: images, conditions, capacities.
    #[must_use]
    pub fn sized(mut self) -> Self {
        let name = self.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let images = (0..50).map(|number| {
            let repository = format!("registry.example.com/platform/service-{number:02}");
            // Digests differ between images, not between nodes.
            let digest = format!("{:064x}", 0x9e37_79b9_7f4a_7c15_u128 * (number + 1));
            json!({
                "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{number}.3")],
                "sizeBytes": 48_000_000 + number,
            })
        });
        let condition = |(kind, status, reason): (&str, &str, &str)| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": format!("kubelet says {reason}"),
                "lastHeartbeatTime": "2026-11-21T00:00:00Z", "lastTransitionTime": "2026-11-20T00:00:00Z",
            })
        };
        let conditions = [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
            ("Ready", "True", "KubeletReady"),
        ];
        let amounts = json!({
            "cpu": "16", "ephemeral-storage": "203056560Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
            "memory": "65806472Ki", "pods": "110",
        });
        let status = &mut self.object["status"];
        status["images"] = images.collect();
        status["conditions"] = conditions.into_iter().map(condition).collect();
        status["capacity"] = amounts.clone();
        status["allocatable"] = amounts;
        status["nodeInfo"] = json!({
            "machineID": format!("machine-{name}"), "systemUUID": format!("system-{name}"),
            "bootID": format!("boot-{name}"), "kernelVersion": "6.12.9", "osImage": "Debian GNU/Linux 13 (trixie)",
            "containerRuntimeVersion": "containerd://2.1.4", "kubeletVersion": "v1.36.0", "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": "amd64",
        });
        self
    }

    /// What is sent to the server.
    pub fn object(&self) -> Value {
        self.object.clone()
    }
}

/// Confirms what a Node's conditions say, as a kubelet does.
pub(super) fn confirm(node: &mut Value, now: &str) {
    let conditions = &mut node["status"]["conditions"];
    if conditions.is_null() {
        *conditions = json!([{ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now }]);
    }
    for condition in conditions.as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = json!(now);
    }
}
