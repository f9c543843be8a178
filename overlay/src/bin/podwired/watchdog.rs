//! Whether all threads answer: for systemd's watchdog, which restarts an agent that hangs, and for `/healthz`.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::node::Node;
use crate::notify;
use crate::writer::Task;

/// How often they are asked where systemd does not want to hear of it.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// Asks again and again, until the runtime ends. That this runs is the main thread's answer.
pub(crate) async fn watch(node: Rc<Node>) {
    let limit = notify::watchdog();
    // Three times within the limit: a busy machine may be late once.
    let every = limit.map_or(ASK_EVERY, |limit| (limit / 3).min(ASK_EVERY));
    let mut next = Instant::now();
    loop {
        let silent = ask(&node, every.max(Duration::from_millis(100))).await;
        let before = std::mem::replace(&mut *node.silent.borrow_mut(), silent.clone());
        for thread in silent.iter().filter(|thread| !before.contains(thread)) {
            tracing::error!(thread, "does not answer");
        }
        for thread in before.iter().filter(|thread| !silent.contains(thread)) {
            tracing::info!(thread, "answers again");
        }
        if limit.is_some() && silent.is_empty() {
            notify::alive();
        }
        next = (next + every).max(Instant::now());
        sleep_until(next).await;
    }
}

/// Which threads do not answer within that time.
async fn ask(node: &Node, within: Duration) -> Vec<&'static str> {
    let (answer, writer) = oneshot::channel();
    node.writer.send(Task::Ping(answer));
    let rules = node.rules.ping();
    let overlay = node.cluster.borrow().overlay.as_ref().map(podwire_overlay::dataplane::Overlay::ping);
    let answers =
        |heard: oneshot::Receiver<()>| async move { matches!(timeout(within, heard).await, Ok(Ok(()))) };
    let overlay = async {
        match overlay {
            Some(heard) => answers(heard).await,
            // Nothing is there that could hang.
            None => true,
        }
    };
    let (writer, rules, overlay) = tokio::join!(answers(writer), answers(rules), overlay);
    let threads = [
        ("the thread that writes the address store", writer),
        ("the thread that keeps the pods' rules", rules),
        ("the thread that keeps the overlay", overlay),
    ];
    threads.into_iter().filter(|(_, is_there)| !is_there).map(|(thread, _)| thread).collect()
}
