//! The socket: one task for each client.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_attach::{Owner, OwnerId, Role, Traffic};
use podwire_ipam::service::{
    self, Answer, DEADLINE_SECONDS, Deletion, Failure, GC_DEADLINE_SECONDS, Op, Outcome, Request, Response,
    SPEAKS,
};
use podwire_ipam::{Lease, Refusal, has_rest, may_have_rules, remove_links, remove_rest, report};
use podwire_kernel::link::Link;
use podwire_overlay::http::is_allowed;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::counts::Counts;
use crate::links::{Links, Slot};
use crate::rules::{Cause, Rules};
use crate::writer::{Leftover, Reply, Task, Writer, has_hung_up};

/// How many clients are served at once; more wait in the socket's queue. A node starts some dozens of pods at once, and
/// each takes one of the 1,024 files that a process may have open.
const CLIENTS: usize = 512;

/// How long a client may be silent between two requests: an ADD under another plugin may take minutes.
const SILENCE: Duration = Duration::from_secs(600);

const DEADLINE: Duration = Duration::from_secs(DEADLINE_SECONDS);

/// How long an ADD waits for DELs that are at work: less than its client waits for the answer.
const PORT_WAIT: Duration = Duration::from_secs(2);

/// What every client's task needs.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) writer: Writer,
    pub(crate) links: Links,
    pub(crate) rules: Rules,
    pub(crate) removing: Removing,
    pub(crate) counts: Counts,
}

/// Whose DEL is under way.
#[derive(Clone, Default)]
pub(crate) struct Removing(Rc<(RefCell<BTreeMap<OwnerId, usize>>, Notify)>);

/// Until it is dropped, the DEL is under way.
struct UnderWay {
    removing: Removing,
    owners: [OwnerId; 2],
}

impl Removing {
    fn begin(&self, owner: &Owner) -> UnderWay {
        let owners = [Role::Main, Role::Chained].map(|role| owner.with_role(role).id());
        let mut counts = self.0.0.borrow_mut();
        owners.iter().for_each(|owner| *counts.entry(*owner).or_default() += 1);
        UnderWay { removing: self.clone(), owners }
    }

    fn is_under_way(&self, owner: OwnerId) -> bool {
        self.0.0.borrow().contains_key(&owner)
    }

    /// Waits for the end of that owner's DEL, if there is one; `false` if it takes too long.
    async fn is_over(&self, owner: OwnerId, give_up: Instant) -> bool {
        let over = async {
            while self.is_under_way(owner) {
                self.0.1.notified().await;
            }
        };
        timeout(give_up.saturating_duration_since(Instant::now()), over).await.is_ok()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Removing(inner) = &self.removing;
        let mut counts = inner.0.borrow_mut();
        for owner in &self.owners {
            if let Some(count) = counts.get_mut(owner) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(owner);
                }
            }
        }
        inner.1.notify_waiters();
    }
}

/// Accepts clients until `ending` says so, then waits for the answers that are due.
pub(crate) async fn serve(listener: UnixListener, service: Service, mut ending: watch::Receiver<bool>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    // Held by each client's task; it is closed when the last has ended.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let next = async {
            // The place first. It is never closed.
            let place = Arc::clone(&clients).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = ending.wait_for(|ends| *ends) => break,
        };
        match accepted {
            Ok((stream, _)) if is_allowed(&stream) => {
                let (service, ending) = (service.clone(), ending.clone());
                let alive = alive.clone();
                spawn_local(async move {
                    let _place = place;
                    client(Arc::new(stream), service, ending).await;
                    drop(alive);
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    drop(alive);
    if timeout(DEADLINE, all_gone.recv()).await.is_err() {
        tracing::warn!("clients are still waiting for answers; ending without them");
    }
}

async fn client(stream: Arc<UnixStream>, service: Service, mut ending: watch::Receiver<bool>) {
    loop {
        let body = tokio::select! {
            body = receive(&stream) => body,
            _ = ending.wait_for(|ends| *ends) => return,
        };
        let body = match body {
            Ok(Some(body)) => body,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a client sent what is no message");
                return;
            }
        };
        let response = match service::read_request(&body, &SPEAKS) {
            Ok(request) => answer(request, &stream, &service).await,
            Err(response) => {
                tracing::warn!("a client sent a request that is not understood");
                response.map(|response| *response)
            }
        };
        let Some(response) = response else { return };
        if let Err(error) = send(&stream, &response).await {
            tracing::info!(%error, "a client was gone before its answer");
            return;
        }
    }
}

/// The response; `None` if the client is gone.
async fn answer(request: Request, stream: &Arc<UnixStream>, service: &Service) -> Option<Response> {
    let Request { version, id, op } = request;
    tracing::debug!(op = name(&op), "request");
    let deadline = match op {
        Op::Gc { .. } => Duration::from_secs(GC_DEADLINE_SECONDS),
        _ => DEADLINE,
    };
    // A task of its own: what has been begun is finished, also if the answer comes too late or nobody hears it.
    let (task_stream, task_service) = (Arc::clone(stream), service.clone());
    let counted = service.counts.begin(&op);
    let work = spawn_local(async move { carry_out(op, &task_stream, &task_service).await });
    let result = match timeout(deadline, work).await {
        Ok(Ok(result)) => result?,
        Ok(Err(_)) => Err(failure("agent", "the agent failed at this request; its log says more", false)),
        Err(_) => {
            let what = format!("not done within {} s: try again", deadline.as_secs());
            Err(failure("timeout", &what, true))
        }
    };
    service.counts.end(counted, result.is_ok());
    let outcome = match result {
        Ok(answer) => Outcome::Ok(answer),
        Err(failure) => {
            tracing::info!(code = failure.code, "{}", failure.msg);
            Outcome::Error(failure)
        }
    };
    Some(service::response(version, id, &SPEAKS, outcome))
}

fn failure(code: &str, msg: &str, retry: bool) -> Failure {
    Failure { code: code.to_owned(), msg: msg.to_owned(), retry, refusal: None, stale: None }
}

/// The result; `None` if the client is gone.
async fn carry_out(op: Op, stream: &Arc<UnixStream>, service: &Service) -> Option<Result<Answer, Failure>> {
    // Its interfaces would count as gone, and their addresses as free.
    if !is_question(&op) && service.links.is_elsewhere(stream) {
        let what = "the agent podwired runs in another network namespace than this program: run it in the node's (in a \
                    container: with the host's network)";
        return Some(Err(failure("netns", what, false)));
    }
    let owner = match &op {
        Op::Delete { owner, .. } => Some(owner.clone()),
        _ => None,
    };
    // Before anything is begun: who has waited for it and is gone will ask again, and the link that would be found
    // then may be that of the owner's next ADD.
    let slot = match owner {
        Some(_) => {
            let waits = service.links.is_full();
            let slot = service.links.slot().await;
            if waits && has_hung_up(stream) {
                return None;
            }
            Some(slot)
        }
        None => None,
    };
    // Until the end, however it comes.
    let _removing = owner.as_ref().map(|owner| service.removing.begin(owner));
    let reply = match reserve_or_run(op, stream, service).await {
        Ok(reply) => reply,
        Err(failure) => return Some(Err(failure)),
    };
    Some(match (reply, owner.zip(slot)) {
        (Reply::Answer(answer), _) => Ok(answer),
        (Reply::Begun(leases), Some((owner, slot))) => {
            delete(service, &owner, slot, leases).await.map(Answer::Deletion)
        }
        (Reply::Gc(plan), _) => gc(service, *plan).await,
        (Reply::ClientGone, _) | (Reply::Begun(_), None) => return None,
    })
}

/// Carries out an operation. A reservation waits for DELs that are at work: that of its own owner, whose rules and links
/// have the same names, and that of a pod that has its port.
async fn reserve_or_run(op: Op, stream: &Arc<UnixStream>, service: &Service) -> Result<Reply, Failure> {
    let Op::Reserve(request) = &op else { return service.writer.run(op, stream).await };
    let give_up = Instant::now() + PORT_WAIT;
    if !service.removing.is_over(request.attachment.owner.id(), give_up).await {
        return Err(failure("busy", "the DEL of the same attachment is still at work: try again", true));
    }
    if request.attachment.ports().is_empty() {
        return service.writer.run(op, stream).await;
    }
    loop {
        let result = service.writer.run(op.clone(), stream).await;
        let holder = match &result {
            Err(Failure { refusal: Some(refusal), .. }) => match refusal.as_ref() {
                Refusal::PortTaken { owner, .. } => owner.id(),
                _ => return result,
            },
            _ => return result,
        };
        if !service.removing.is_under_way(holder) || !service.removing.is_over(holder, give_up).await {
            return result;
        }
    }
}

/// The rest of a DEL, after it has been recorded.
async fn delete(
    service: &Service,
    owner: &Owner,
    slot: Slot,
    leases: Vec<Lease>,
) -> Result<Deletion, Failure> {
    // The interface of such a lease is another plugin's.
    let (ours, others): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(is_for_us);
    let main = owner.with_role(Role::Main);
    let links = match others.as_slice() {
        // Also without a lease: it may have been lost.
        [] => service.links.find(&main, is_shaped(&ours)),
        _ => Ok(Vec::new()),
    };
    let (links, not_found) = match links {
        Ok(links) => (links, Ok(())),
        Err(error) => (Vec::new(), Err(not_removed(&main, &error))),
    };
    let removed = take_down(service, slot, &ours, links).await.and(not_found);
    if let Err(failure) = removed {
        match ours.first() {
            Some(lease) => {
                tracing::error!(owner = %lease.attachment.title(), "{}; its lease stays", failure.msg);
            }
            None => tracing::error!(%owner, "{}", failure.msg),
        }
        return Err(failure);
    }
    finish_all(service, &ours);
    Ok(if others.is_empty() { Deletion::Done(ours) } else { Deletion::Remove(others) })
}

/// Takes away what the node has of leases whose DEL has begun: rules, then connections and links.
async fn take_down(service: &Service, slot: Slot, leases: &[Lease], links: Vec<Link>) -> Result<(), Failure> {
    let with_rules: Vec<Lease> =
        leases.iter().filter(|lease| may_have_rules(&lease.attachment)).cloned().collect();
    let rules = match with_rules.as_slice() {
        [] => Ok(()),
        _ => {
            let owners = with_rules.iter().map(|lease| lease.attachment.owner.id()).collect();
            let removed = service.rules.remove(with_rules.clone()).await;
            service.writer.send(Task::RulesRemoved(owners));
            removed.map_err(|error| failure("rules", &error, false))
        }
    };
    let rest: Vec<Lease> = leases.iter().filter(|lease| has_rest(&lease.attachment)).cloned().collect();
    let rest = async {
        if rest.is_empty() {
            return Ok(());
        }
        // It may wait for the kernel.
        match tokio::task::spawn_blocking(move || rest.iter().try_for_each(remove_rest)).await {
            Ok(removed) => removed.map_err(|error| Failure::from(&error)),
            Err(_) => Err(failure("agent", "the agent failed to end connections; its log says more", false)),
        }
    };
    let links = async {
        let name = links.first().map(|link| link.name.clone()).unwrap_or_default();
        service.links.remove_all(slot, links).await.map_err(|error| {
            Failure::from(&podwire_ipam::Error::kernel(format!("remove link {name}"), error))
        })
    };
    let (rest, links) = tokio::join!(rest, links);
    rules.and(rest).and(links)
}

fn not_removed(owner: &Owner, error: &podwire_kernel::Error) -> Failure {
    Failure::from(&podwire_ipam::Error::kernel(format!("remove what the node has of {owner}"), error.clone()))
}

/// Whether there may be a link that it is shaped by.
fn is_shaped(leases: &[Lease]) -> bool {
    leases.iter().any(|lease| {
        lease.attachment.owner.role == Role::Main
            && lease.attachment.traffic.as_ref().is_none_or(Traffic::is_shaped)
    })
}

/// Whether the agent removes what the node has of it; the client does for the interfaces of other plugins.
fn is_for_us(lease: &Lease) -> bool {
    lease.attachment.link.is_some() || lease.attachment.owner.role == Role::Chained
}

fn finish_all(service: &Service, leases: &[Lease]) {
    if !leases.is_empty() {
        let ended = leases.iter().map(|lease| (lease.attachment.owner.id(), lease.generation)).collect();
        // Queued before the answer, so carried out before whatever the client asks next.
        service.writer.send(Task::Finish(ended));
    }
}

async fn gc(service: &Service, plan: podwire_ipam::GcPlan) -> Result<Answer, Failure> {
    let _removing: Vec<UnderWay> =
        plan.remove.iter().map(|lease| service.removing.begin(&lease.attachment.owner)).collect();
    let with_rules: Vec<Lease> =
        plan.remove.iter().filter(|lease| may_have_rules(&lease.attachment)).cloned().collect();
    let owners = plan.remove.iter().map(|lease| lease.attachment.owner.id()).collect();
    let rules = if with_rules.is_empty() { Ok(()) } else { service.rules.remove(with_rules).await };
    service.writer.send(Task::RulesRemoved(owners));
    // It waits for the kernel.
    let removed = tokio::task::spawn_blocking(move || {
        let with_rest = plan.remove.iter().filter(|lease| has_rest(&lease.attachment));
        let rest: Vec<String> =
            with_rest.filter_map(|lease| remove_rest(lease).err()).map(|error| error.chain()).collect();
        remove_links(&plan).map(|removed| (plan, removed, rest))
    })
    .await;
    let (plan, removed, rest) = match removed {
        Ok(Ok(removed)) => removed,
        Ok(Err(error)) => return Err(Failure::from(&error)),
        Err(_) => return Err(failure("agent", "the agent failed to remove links; its log says more", false)),
    };
    let (mut report, ended) = report(plan, removed);
    let ended = ended.iter().map(|lease| (lease.attachment.owner.id(), lease.generation)).collect();
    service.writer.send(Task::Finish(ended));
    // What belongs to nobody, whichever network it was of; among it what could not be removed above.
    let repaired = service.rules.repair(Cause::Gc).await;
    report.failed.extend(rest);
    report.failed.extend(rules.err().or(repaired.err()));
    Ok(Answer::Gc(report))
}

/// Finishes what died on the way.
pub(crate) async fn finish(service: Service, mut unfinished: mpsc::UnboundedReceiver<Leftover>) {
    // What fails is found again by the next sweep.
    while let Some(leftover) = unfinished.recv().await {
        match leftover {
            // Another plugin's interface is for its DEL to remove.
            Leftover::Deleting(lease) if is_for_us(&lease) => {
                if let Err(error) = finish_one(&service, &lease).await {
                    tracing::error!(owner = %lease.attachment.title(), "{}; its lease stays", error.msg);
                }
            }
            Leftover::Deleting(_) => {}
            Leftover::Shaper(owner) => {
                let slot = service.links.slot().await;
                let removed = match service.links.find_stray(owner) {
                    Ok(None) => Ok(()),
                    Ok(Some(link)) => service.links.remove(slot, &link).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = removed {
                    tracing::error!(%owner, %error, "cannot remove a link that nobody uses");
                }
            }
        }
    }
}

async fn finish_one(service: &Service, lease: &Lease) -> Result<(), Failure> {
    let owner = &lease.attachment.owner;
    let slot = service.links.slot().await;
    let _removing = service.removing.begin(owner);
    let links = match owner.role {
        Role::Main => service.links.find(owner, is_shaped(std::slice::from_ref(lease))),
        Role::Chained => Ok(Vec::new()),
    };
    let links = links.map_err(|error| not_removed(owner, &error))?;
    // In this order: a lease that is `Deleting` after the link was found has had no ADD since, so the link is its own.
    if !service.writer.is_deleting(lease).await {
        return Ok(());
    }
    tracing::info!(owner = %lease.attachment.title(), "finishing a DEL that was begun");
    take_down(service, slot, std::slice::from_ref(lease), links).await?;
    service.writer.send(Task::Finish(vec![(owner.id(), lease.generation)]));
    Ok(())
}

/// The body of the next frame; `None` at the end.
async fn receive(stream: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    match timeout(SILENCE, stream.readable()).await {
        Ok(readable) => readable?,
        Err(_) => return Ok(None),
    }
    let mut header = [0; 4];
    let rest = async {
        if !fill(stream, &mut header).await? {
            return Ok(None);
        }
        let length = service::frame_length(header)?;
        let mut body = Vec::new();
        // Not all at once: the length is only a claim.
        while body.len() < length {
            let start = body.len();
            body.resize(length.min(start + 16 * 1024), 0);
            let part = body.get_mut(start..).unwrap_or_default();
            if !fill(stream, part).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(body))
    };
    match timeout(DEADLINE, rest).await {
        Ok(body) => body,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the rest of a request did not come")),
    }
}

/// Reads until the buffer is full; `false` if the stream ends before its first byte.
async fn fill(stream: &UnixStream, mut buffer: &mut [u8]) -> io::Result<bool> {
    let mut is_first = true;
    while !buffer.is_empty() {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Ok(0) if is_first => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                is_first = false;
                buffer = buffer.get_mut(length..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && is_first => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

async fn send(stream: &UnixStream, response: &Response) -> io::Result<()> {
    let frame = service::frame(response)?;
    let write = async {
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(length) => rest = rest.get(length..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    timeout(DEADLINE, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether it may come from anywhere, such as a pod's shell: it changes nothing.
fn is_question(op: &Op) -> bool {
    matches!(op, Op::Find { .. } | Op::Leases { .. } | Op::Usage { .. } | Op::Extras { .. })
}

/// For the log.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Reserve(_) => "reserve",
        Op::Import { .. } => "import",
        Op::Adopt { .. } => "adopt",
        Op::Attached { .. } => "attached",
        Op::Cancel { .. } => "cancel",
        Op::Delete { .. } => "delete",
        Op::FinishDelete { .. } => "finish-delete",
        Op::Find { .. } => "find",
        Op::Leases { .. } => "leases",
        Op::Usage { .. } => "usage",
        Op::Gc { .. } => "gc",
        Op::Extras { .. } => "extras",
    }
}

#[cfg(test)]
mod tests;
