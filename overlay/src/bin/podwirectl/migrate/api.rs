//! What the API server says of flannel, asked with the agent's credentials.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use podwire_overlay::migrate::KeptAway;
use podwire_overlay::migrate::kept_away::flannel_on;
use podwire_overlay::store::kubernetes;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Whether flannel is kept away from the node. No file: as a pod of the cluster.
pub(super) fn kept_away(kubeconfig: Option<PathBuf>, node: &str) -> KeptAway {
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|runtime| {
            runtime.block_on(async {
                let late = |_| Err(format!("the API server did not answer within {} s", WITHIN.as_secs()));
                tokio::time::timeout(WITHIN, ask(kubeconfig, node)).await.unwrap_or_else(late)
            })
        });
    match asked {
        Ok(found) if found.is_empty() => KeptAway::Yes,
        Ok(found) => KeptAway::No(found),
        Err(why) => KeptAway::Unknown(why),
    }
}

async fn ask(kubeconfig: Option<PathBuf>, node: &str) -> Result<Vec<String>, String> {
    let client = kubernetes::connect(kubeconfig, WITHIN).await?;
    let of_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let failed = |verb: &str, what: &str, error: kube::Error| match &error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the agent's account may not {verb} {what}: apply conf/kustomize/migrate-from-flannel for the time of the move ({})",
            status.message
        ),
        _ => format!("{verb} {what}: {error}"),
    };
    let own =
        Api::<Node>::all(client.clone()).get(node).await.map_err(|error| failed("get", "nodes", error))?;
    let sets = Api::<DaemonSet>::all(client.clone()).list(&ListParams::default()).await;
    let sets = sets.map_err(|error| failed("list", "daemonsets", error))?;
    let pods = Api::<Pod>::all(client).list(&of_node).await.map_err(|error| failed("list", "pods", error))?;
    Ok(flannel_on(&own, &sets.items, &pods.items))
}
