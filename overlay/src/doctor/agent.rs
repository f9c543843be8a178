//! What the agent, its files and its leases tell.

use std::time::Duration;

use super::{Facts, Findings};
use crate::status::{PeerState, Severity};
use crate::terminal::duration;

pub(super) fn examine(facts: &Facts, findings: &mut Findings) {
    match &facts.status {
        None => {
            let silence = facts.silence.clone().unwrap_or_else(|| "the agent does not answer".to_owned());
            findings.error(
                "agent-down",
                silence,
                "pods still start, and nothing is repaired: what changes in the cluster is not followed",
                "systemctl status podwired; journalctl -u podwired",
            );
        }
        Some(status) => {
            for problem in &status.problems {
                findings.add(
                    problem.severity,
                    &format!("agent-{}", problem.code),
                    problem.message.clone(),
                    "the agent reports it",
                    problem.advice.clone(),
                );
            }
            let is_told = status.problems.iter().any(|problem| problem.severity != Severity::Info);
            if status.store.is_some() && !status.ready && !is_told {
                findings.warning(
                    "not-ready",
                    format!("the agent is not ready: it waits for {}", status.waiting.join(", ")),
                    "runtimes are not told of the network before, and start no pods on it",
                    "`podwirectl status` shows how far it is",
                );
            }
            if let Some(why) = &status.refuse {
                findings.error(
                    "refuses-pods",
                    format!("no new pods are taken: {why}"),
                    "ADD fails with code 11 and STATUS with 51",
                    "",
                );
            }
        }
    }
    for peer in facts.others() {
        let name = &peer.record.name;
        match peer.state {
            PeerState::LeftOut => findings.warning(
                "record-left-out",
                format!("node {name} is left out: {}", peer.problems.join("; ")),
                "its pods and this node's do not reach each other",
                format!("put its record right: restart its agent, or `podwirectl node rm {name}`"),
            ),
            PeerState::Unreachable => findings.error(
                "no-path",
                format!("there is no way to node {name}: {}", peer.problems.join("; ")),
                "its pods and this node's do not reach each other",
                "the two nodes need addresses of one family, and the cluster's `underlay` must allow it",
            ),
            _ => {}
        }
        for probe in peer.probes.iter().filter(|probe| !probe.ok) {
            let problem = probe.problem.as_deref().unwrap_or("no answer");
            findings.error(
                "peer-unreachable",
                format!("node {name} does not answer probes over {:?}: {problem}", probe.family),
                "pods of the two nodes do not reach each other, or not with all packets",
                "`podwirectl explain` with a pod of each, here and there, names the broken hop",
            );
        }
    }
    for disagreement in &facts.leases {
        findings.warning(
            "leases",
            disagreement.message.clone(),
            "addresses are held by nobody, or used by somebody who does not hold them",
            disagreement.advice.clone(),
        );
    }
    for rival in &facts.rivals {
        findings.error(
            "rival-conflist",
            rival.clone(),
            "runtimes take the first configuration in the directory, so pods may not be podwire's",
            "remove that file, or give it a name that comes later",
        );
    }
    clock(facts, findings);
    for unread in &facts.unread {
        findings.note("not-checked", unread.clone(), "what depends on it was not checked", "");
    }
}

/// A clock that was set back, or never set.
fn clock(facts: &Facts, findings: &mut Findings) {
    /// Before this program was written: 2025-01-01.
    const WRITTEN: Duration = Duration::from_secs(1_735_689_600);
    /// What file systems and time daemons may be off by.
    const TOLERATED: Duration = Duration::from_secs(120);
    let Some(now) = facts.now else { return };
    let why = "certificates are judged by the clock, so a connection to etcd may fail; podwire itself uses no clock that can \
               be set";
    if now.duration_since(std::time::UNIX_EPOCH).is_ok_and(|now| now < WRITTEN) {
        findings.warning(
            "clock",
            "the clock says a time before this program was made",
            why,
            "set it: chronyc, timedatectl",
        );
    } else if let Some(ahead) = facts.newest_file.and_then(|file| file.duration_since(now).ok())
        && ahead > TOLERATED
    {
        let found = format!("the clock is {} behind the agent's own files", duration(ahead));
        findings.warning("clock", found, why, "set it: chronyc, timedatectl");
    }
}
