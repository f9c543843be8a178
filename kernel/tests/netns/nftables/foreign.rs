//! Other programs' tables, read and added to.

use std::process::Command;

use podwire_kernel::nft::{self, Batch, Expr, Family, MetaKey, Place, Policy, Reg, Rule, TableRef, Verdict};

use super::{nft_does, open};
use crate::lab::in_new_netns;

fn iptables(arguments: &str) -> String {
    let output = Command::new("iptables-nft").args(arguments.split(' ')).output();
    let output = output.expect("the program `iptables-nft` (iptables)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iptables-nft {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

const FILTER: TableRef<'_> = TableRef::new(Family::Ip, "filter");

/// As iptables-nft writes `-i podwire0 -j ACCEPT` with a comment.
fn accept(key: MetaKey, link: &str, comment: &str) -> Rule {
    let mut text = comment.as_bytes().to_vec();
    text.resize(256, 0);
    let mut name = link.as_bytes().to_vec();
    name.push(0);
    Rule::new(vec![
        Expr::meta(key, Reg(0)),
        Expr::eq(Reg(0), name),
        Expr::Match { name: "comment".to_owned(), revision: 0, info: text },
        Expr::Counter,
        Expr::Verdict(Verdict::Accept),
    ])
}

#[test]
fn a_rule_among_those_of_iptables_looks_like_its_own() {
    in_new_netns(|| {
        iptables("-P FORWARD DROP");
        iptables("-A FORWARD -j DROP -m comment --comment last");
        iptables("-I FORWARD -i podwire0 -m comment --comment theirs -j ACCEPT");
        let mut nft = open();
        let forward = nft.chain(FILTER, "FORWARD").expect("asked").expect("there");
        assert_eq!(forward.object.base.expect("a base chain").policy, Policy::Drop);
        let rules = nft.rules(FILTER, Some("FORWARD")).expect("listed");
        assert_eq!(rules[0].rule, accept(MetaKey::Iifname, "podwire0", "theirs"));
        assert_eq!(rules[0].rule.unconditional_verdict(), None);
        assert_eq!(rules[1].rule.unconditional_verdict(), Some(&Verdict::Drop));
        assert_eq!(Rule::new(vec![]).unconditional_verdict(), None);

        let mut batch = Batch::new();
        batch.add_rule(FILTER, "FORWARD", Place::First, &accept(MetaKey::Oifname, "podwire0", "podwire"));
        batch.add_rule(FILTER, "FORWARD", Place::First, &accept(MetaKey::Iifname, "podwire0", "podwire"));
        nft.commit(&batch).expect("committed");
        let listed = iptables("-S FORWARD");
        assert_eq!(
            listed,
            "-P FORWARD DROP\n\
             -A FORWARD -i podwire0 -m comment --comment podwire -j ACCEPT\n\
             -A FORWARD -o podwire0 -m comment --comment podwire -j ACCEPT\n\
             -A FORWARD -i podwire0 -m comment --comment theirs -j ACCEPT\n\
             -A FORWARD -m comment --comment last -j DROP\n"
        );
        iptables("-D FORWARD -i podwire0 -m comment --comment podwire -j ACCEPT");
        assert_eq!(nft.rules(FILTER, Some("FORWARD")).expect("listed").len(), 3);
    });
}

#[test]
fn rules_of_the_program_nft_are_read_and_what_is_not_known_is_kept() {
    in_new_netns(|| {
        nft_does(
            r#"table inet other {
                flags dormant
                counter hits { }
                set limited { type ipv4_addr; flags timeout; timeout 1h; elements = { 10.0.0.1 timeout 1m } }
                map verdicts { type ipv4_addr . inet_service : verdict; flags interval
                    elements = { 10.0.0.0/8 . 80-90 comment "them" : drop, * : accept } }
                chain input {
                    type filter hook input priority filter + 5; policy drop;
                    tcp dport { 22, 80-90 } counter name "hits" limit rate 10/second log prefix "x" accept comment "ours"
                    ip saddr . tcp dport vmap @verdicts
                    ip daddr 10.0.0.0/8 tcp flags & (syn|ack) == syn meta mark set ct mark ct mark set 7
                    ip protocol tcp meta priority set 1:2 quota 5 bytes
                    oifname "podwire*" meta skuid 0 socket transparent 1
                }
                chain last { counter drop comment "end"; }
            }"#,
        );
        let other = TableRef::new(Family::Inet, "other");
        let mut nft = open();
        let rules = nft.rules(other, Some("input")).expect("listed");
        assert_eq!(rules.len(), 5);
        assert_eq!(rules[0].rule.comment.as_deref(), Some("ours"));
        assert_eq!(rules[0].rule.expressions.last(), Some(&Expr::Verdict(Verdict::Accept)));
        let unknown = rules.iter().flat_map(|rule| &rule.rule.expressions).filter_map(|e| match e {
            Expr::Other { name, .. } => Some(name.as_str()),
            _ => None,
        });
        let unknown: Vec<_> = unknown.collect();
        for name in ["objref", "limit", "log", "ct", "quota", "socket"] {
            assert!(unknown.contains(&name), "{name} in {unknown:?}");
        }
        let last = &nft.rules(other, Some("last")).expect("listed")[0];
        assert_eq!(last.rule, Rule::new(vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]).comment("end"));
        assert_eq!(last.rule.unconditional_verdict(), Some(&Verdict::Drop));
        let sets = nft.sets(other).expect("listed");
        assert!(sets.iter().any(|set| set.object.name == "limited"));
        let found = nft.elements(other, "verdicts").expect("listed");
        let them = found.iter().find(|element| element.comment.as_deref() == Some("them")).expect("there");
        assert_eq!(them.data, Some(nft::Data::Verdict(Verdict::Drop)));
        assert_eq!(them.key, nft::concat(&[&[10, 0, 0, 0], &80_u16.to_be_bytes()]));
        assert_eq!(them.key_end, Some(nft::concat(&[&[10, 255, 255, 255], &90_u16.to_be_bytes()])));
        // Kept as they were, they can be made again. (An anonymous set belongs to the first rule alone.)
        let mut batch = Batch::new();
        rules[2..].iter().for_each(|rule| batch.add_rule(other, "last", Place::Last, &rule.rule));
        nft.commit(&batch).expect("committed");
        let again = nft.rules(other, Some("last")).expect("listed");
        let pairs = again[1..].iter().zip(&rules[2..]);
        assert!(pairs.clone().count() == 3 && pairs.into_iter().all(|(again, rule)| again.rule == rule.rule));
    });
}
