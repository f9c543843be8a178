//! Other programs' forward chains that drop.
//!
//! Each base chain of a hook decides for itself, and one that drops is the last word: no rule of ours can let pass what
//! Docker's, or an administrator's, `FORWARD` drops. So where it drops, two rules that accept what comes from and goes to
//! the pods' link are put at its top, or into `DOCKER-USER`, which Docker leaves to others. They are such as
//! `iptables-nft` would write, with a comment that says whose they are, and it lists and edits them.
//!
//! Legacy iptables is not nftables: its rules can only be replaced as a whole, so they are never touched, and what it
//! drops is told.

use podwire_kernel::nft::{
    self, Batch, Chain, CmpOp, Expr, FoundRule, MetaKey, Nft, Place, Policy, Rule, TableRef, Verdict,
};
use podwire_kernel::{Family, Result, legacy_iptables};

use super::RulesError;
use super::compare::RulesDrift;
use super::matches::{accept as accept_verdict, link_is};
use super::mend::settle;
use crate::step::step;

const TABLES: [TableRef<'static>; 2] =
    [TableRef::new(nft::Family::Ip, "filter"), TableRef::new(nft::Family::Ip6, "filter")];

const FORWARD: &str = "FORWARD";
const DOCKER_USER: &str = "DOCKER-USER";

/// The beginning of our rules' comment.
const COMMENT: &str = "podwire";

/// Puts the accept rules for the pods' link where another program's chain drops, unless they are there. Returns what an
/// administrator should know.
///
/// # Errors
/// See [`RulesError`].
pub fn accept_forwarding(nft: &mut Nft, device: &str) -> Result<Vec<String>, RulesError> {
    accept(nft, device)?;
    Ok(legacy_drops(device)?
        .map(|(family, program)| {
            format!(
                "legacy iptables drops forwarded {family} packets: let those of the pods pass with \
             `{program} -I FORWARD -i {device} -j ACCEPT; {program} -I FORWARD -o {device} -j ACCEPT`"
            )
        })
        .collect())
}

/// The IP versions in which legacy iptables drops the link's packets, with the program that would change that.
fn legacy_drops(device: &str) -> Result<impl Iterator<Item = (&'static str, &'static str)>> {
    let mut all = Vec::new();
    for (family, name, program) in
        [(Family::V4, "IPv4", "iptables-legacy"), (Family::V6, "IPv6", "ip6tables-legacy")]
    {
        if legacy_iptables::drops_forwarded(family, device)? {
            all.push((name, program));
        }
    }
    Ok(all.into_iter())
}

/// How many rules were put in.
pub(super) fn accept(nft: &mut Nft, device: &str) -> Result<usize, RulesError> {
    let mut added = 0;
    for table in TABLES {
        added += settle(|| {
            // The usual answer, for one question.
            if nft.chain(table, FORWARD)?.is_none() {
                return Ok(0);
            }
            let generation = nft.generation()?.id;
            let lacking = lacking(nft, table, device)?;
            let Some((chain, rules)) = lacking.filter(|(_, rules)| !rules.is_empty()) else { return Ok(0) };
            let mut batch = Batch::new();
            batch.only_at(generation);
            for rule in &rules {
                batch.add_rule(table, chain, Place::First, rule);
            }
            step("rules-foreign");
            nft.commit(&batch)?;
            Ok(rules.len())
        })?;
    }
    Ok(added)
}

/// Where packets from and to the link are dropped for want of our rules.
pub(super) fn drift(nft: &mut Nft, device: &str) -> Result<Vec<RulesDrift>> {
    let mut drift = Vec::new();
    for table in TABLES {
        if let Some((chain, rules)) = lacking(nft, table, device)?
            && !rules.is_empty()
        {
            drift.push(RulesDrift::ForeignDrop(
                format!("chain {chain} of nftables table {table}"),
                device.to_owned(),
            ));
        }
    }
    Ok(drift)
}

/// The rules that are lacking, and the chain in which; `None` where nothing drops.
fn lacking(nft: &mut Nft, table: TableRef<'_>, device: &str) -> Result<Option<(&'static str, Vec<Rule>)>> {
    let Some(forward) = nft.chain(table, FORWARD)? else { return Ok(None) };
    let rules = nft.rules(table, Some(FORWARD))?;
    if !drops(&forward.object, &rules) {
        return Ok(None);
    }
    let (chain, rules) = match nft.chain(table, DOCKER_USER)? {
        Some(_) => (DOCKER_USER, nft.rules(table, Some(DOCKER_USER))?),
        None => (FORWARD, rules),
    };
    let wanted = [MetaKey::Oifname, MetaKey::Iifname].map(|key| rule(key, device));
    let is_there = |rule: &&Rule| rules.iter().any(|found| is_same(rule, &found.rule));
    Ok(Some((chain, wanted.iter().filter(|rule| !is_there(rule)).cloned().collect())))
}

/// Whether a packet that no other rule decides about is dropped. PURE.
fn drops(chain: &Chain, rules: &[FoundRule]) -> bool {
    let policy = chain.base.as_ref().map(|base| base.policy);
    if policy == Some(Policy::Drop) {
        return true;
    }
    let refuses = |rule: &Rule| {
        let mut matters = rule.expressions.iter().filter(|expression| match expression {
            Expr::Counter => false,
            Expr::Match { name, .. } => name != "comment",
            _ => true,
        });
        let refuses = match matters.next() {
            Some(Expr::Verdict(Verdict::Drop) | Expr::Reject { .. }) => true,
            Some(Expr::Target { name, .. }) => name == "REJECT" || name == "DROP",
            _ => false,
        };
        refuses && matters.next().is_none()
    };
    rules.last().is_some_and(|last| refuses(&last.rule))
}

/// `iptables -I FORWARD -i <device> -m comment --comment podwire -j ACCEPT`. PURE.
fn rule(key: MetaKey, device: &str) -> Rule {
    // struct xt_comment_info
    let mut comment = vec![0; 256];
    for (to, from) in comment.iter_mut().zip(COMMENT.bytes()) {
        *to = from;
    }
    let mut expressions = link_is(key, CmpOp::Eq, device).to_vec();
    expressions.push(Expr::Match { name: "comment".to_owned(), revision: 0, info: comment });
    expressions.extend([Expr::Counter, accept_verdict()]);
    Rule::new(expressions)
}

/// `iptables` may have written the rule again in its own way. PURE.
fn is_same(wanted: &Rule, found: &Rule) -> bool {
    is_ours(found) && links(wanted) == links(found)
}

fn is_ours(rule: &Rule) -> bool {
    let is_comment = |expression: &Expr| match expression {
        Expr::Match { name, info, .. } => name == "comment" && info.starts_with(COMMENT.as_bytes()),
        _ => false,
    };
    rule.expressions.iter().any(is_comment)
        && rule.expressions.iter().any(|e| matches!(e, Expr::Verdict(Verdict::Accept)))
}

/// Which links a rule is about.
fn links(rule: &Rule) -> Vec<(MetaKey, Vec<u8>)> {
    let mut loaded = None;
    let mut all = Vec::new();
    for expression in &rule.expressions {
        match expression {
            Expr::Meta { key, .. } => loaded = Some(*key),
            Expr::Cmp { value, .. } => {
                let name: Vec<u8> = value.iter().copied().take_while(|byte| *byte != 0).collect();
                all.extend(loaded.take().map(|key| (key, name)));
            }
            _ => {}
        }
    }
    all
}

/// Removes our rules from other programs' chains.
pub(super) fn remove(nft: &mut Nft) -> Result<(), RulesError> {
    for table in TABLES {
        settle(|| {
            let mut batch = Batch::new();
            batch.only_at(nft.generation()?.id);
            for chain in [FORWARD, DOCKER_USER] {
                for rule in nft.rules(table, Some(chain))? {
                    if is_ours(&rule.rule) {
                        batch.delete_rule(table, chain, rule.handle);
                    }
                }
            }
            if batch.is_empty() { Ok(()) } else { nft.commit(&batch) }
        })?;
    }
    Ok(())
}
