//! How this node is, for a store that tells others of it: Kubernetes has a condition and events for that. PURE.
//!
//! What is told there is read by people and acted on by controllers, and each change is a write to the store. So texts do
//! not count seconds, what passes by itself is not told, and what concerns single peers is left to those.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Member;
use crate::claims::BootTime;
use crate::cluster::topology::{Problem, ProblemKind};
use crate::dataplane::Failure;
use crate::store::Health;

/// How long a problem must have been there: two looks at everything, of which the first may have mended it.
const LASTING: Duration = Duration::from_secs(20);

/// How many problems are told. More have one cause, which is among them.
const MOST: usize = 16;

/// What the agent has found out about its node beside its membership.
#[derive(Debug, Clone, Copy)]
pub struct Findings<'a> {
    /// The node's name in the cluster.
    pub node: &'a str,
    /// The agent's threads that do not answer.
    pub silent: &'a [&'static str],
    /// What the last pass found in the way.
    pub problems: &'a [Problem],
    /// What it failed by.
    pub failures: &'a [Failure],
    /// What is wrong with how runtimes are told of the network.
    pub conflist: &'a BTreeSet<String>,
    /// Whether pods have addresses that are not of the node's subnets.
    pub has_pods_outside: bool,
}

/// What was wrong when it was last looked, and since when.
#[derive(Debug, Default)]
pub struct Condition {
    since: BTreeMap<String, BootTime>,
}

impl Condition {
    /// How the node is now. Has to be asked every few seconds.
    pub fn health(&mut self, member: &Member, findings: &Findings<'_>, now: BootTime) -> Health {
        let found = found(findings);
        self.since.retain(|text, _| found.contains(text));
        for text in found {
            self.since.entry(text).or_insert(now);
        }
        let has_lasted = |since: &BootTime| now.0.saturating_sub(since.0) >= LASTING;
        let lasting = self.since.iter().filter(|(_, since)| has_lasted(since)).map(|(text, _)| text.clone());
        // What is told as the reason is not told again as a problem.
        let why = why(member, findings.silent, now);
        Health {
            is_ready: why.is_none(),
            problems: lasting.filter(|text| Some(text) != why.as_ref()).take(MOST).collect(),
            why: why.unwrap_or_default(),
        }
    }
}

/// Why the node takes no pods or does not connect them; `None` if it does.
fn why(member: &Member, silent: &[&str], now: BootTime) -> Option<String> {
    if let Some(why) = member.refusal(now).or_else(|| member.lacking().into_iter().next()) {
        return Some(why);
    }
    if let Some(thread) = silent.first() {
        return Some(format!("{thread} does not answer"));
    }
    member.silent(now)?;
    Some(match member.failure() {
        Some(failure) => format!("the overlay is not in order: {failure}"),
        None => "nobody looks after the overlay".to_owned(),
    })
}

/// What is this node's own matter.
fn found(findings: &Findings<'_>) -> BTreeSet<String> {
    let is_own = |problem: &&Problem| match problem.kind {
        // Somebody claims what is this node's.
        ProblemKind::Own => true,
        _ => problem.node.is_none() || problem.is_of(findings.node),
    };
    let mut found: BTreeSet<String> =
        findings.problems.iter().filter(is_own).map(ToString::to_string).collect();
    // What fails for one peer harms that peer alone.
    found.extend(findings.failures.iter().filter(|failure| failure.peer.is_none()).map(ToString::to_string));
    found.extend(findings.conflist.iter().cloned());
    if findings.has_pods_outside {
        found.insert(
            "pods have addresses that are not of this node's subnets, and other nodes do not reach them: restart these pods \
             (`podwirectl status` there names them)"
                .to_owned(),
        );
    }
    found
}
