//! The end: the agent's, and on request that of the node's membership.

use podwire_ipam::NodeConfig;
use podwire_overlay::conflist;
use podwire_overlay::member::Member;
use podwire_overlay::store::{Action, Command};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::memory::write;
use super::{FAREWELL, Part, stop};
use crate::node::boot_time;

impl Part {
    /// The agent ends; the node stays a member, unless it is told to leave, and its traffic flows on.
    pub(super) async fn end(mut self) {
        let leaves = self.config.cluster.as_ref().is_some_and(|cluster| cluster.leave_at_shutdown);
        let has_left = leaves && self.leave().await;
        let (overlay, memorable) = {
            let mut cluster = self.node.cluster.borrow_mut();
            // The store hears of the end by it.
            cluster.commands = None;
            let memorable =
                cluster.member.as_ref().filter(|member| member.is_live()).and_then(Member::memorable);
            (cluster.overlay.take(), memorable)
        };
        // Events that nobody takes would keep it from its farewell.
        self.events.close();
        if timeout(FAREWELL, &mut self.store).await.is_err() {
            tracing::warn!(
                "the cluster's store did not take leave in time; others see this node as present a while longer"
            );
            self.store.abort();
        }
        self.probes.stop();
        stop(overlay).await;
        if let Some(writing) = self.memorized.writing.take() {
            let _ = writing.await;
        }
        let memory = self.memory.clone();
        let written = spawn_blocking(move || match memorable {
            _ if has_left => {
                if let Err(error) = memory.forget() {
                    tracing::warn!(%error, "cannot remove what was remembered of the cluster");
                }
            }
            Some(memorable) => write(&memory, &memorable),
            None => {}
        });
        let _ = written.await;
    }

    /// Ends this node's membership, if no pod needs it; whether it has.
    async fn leave(&mut self) -> bool {
        let told = self.node.cluster.borrow().member.as_ref().and_then(|member| member.node(boot_time()));
        // First, so that no pod comes between the look and the end.
        if let Some(told) = &told {
            let refuse = Some("this node is about to leave the cluster".to_owned());
            self.tell(NodeConfig { refuse, ..told.clone() });
        }
        let has_left = match self.try_to_leave().await {
            Ok(message) => {
                tracing::info!("{message}");
                true
            }
            Err(why) => {
                tracing::error!("does not leave the cluster: {why}");
                false
            }
        };
        if !has_left {
            if let Some(told) = told {
                self.tell(told);
            }
            return false;
        }
        // Plugins and runtimes find nothing to make pods with while the agent is away.
        let network = &self.config.network;
        if let Err(error) = NodeConfig::remove(&self.node.dirs, &network.name) {
            tracing::error!("{}", error.chain());
        }
        if let Some(path) = &network.conflist
            && let Err(error) = conflist::remove(path)
        {
            tracing::error!(path = %path.display(), %error, "cannot remove the conflist");
        }
        true
    }

    async fn try_to_leave(&self) -> Result<String, String> {
        let Some(survey) = self.node.survey().await else {
            return Err("the address store does not say whether there are pods".to_owned());
        };
        self.node.note_pods(&survey);
        let pods = self.node.pods.borrow().inside;
        if pods > 0 {
            return Err(format!("{pods} interfaces of pods still have addresses of its subnets"));
        }
        let commands = self.node.cluster.borrow().commands.clone();
        let (answer, heard) = oneshot::channel();
        let left = timeout(FAREWELL, async {
            commands?.send(Command { action: Action::Leave, answer }).await.ok()?;
            heard.await.ok()
        });
        left.await.ok().flatten().unwrap_or_else(|| Err("its store does not answer".to_owned()))
    }
}
