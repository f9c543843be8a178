//! Chains that are named after what is in them. PURE.
//!
//! Elements of the fixed maps lead to them, and pods with the same wishes share one. Such a chain never changes: other
//! wishes are another name. So two processes that make one at once make the same, and whoever comes second is told
//! that it is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use podwire_kernel::Family;
use podwire_kernel::nft::{Base, Chain, CmpOp, Expr, MetaKey, NAT_RANDOM_FULLY, Rule, Verdict, ifname};
use sha2::{Digest, Sha256};

use super::conditions::Conditions;
use super::matches::{End, KEY, address_in, drop, has_bits, is_family, link_is};
use super::skeleton::{self, GUARDED, VERSION};
use crate::{IngressPolicy, Snat};

/// Kube-proxy's mark of packets that it masquerades itself; its default (`--iptables-masquerade-bit` 14).
const KUBE_PROXY_MARK: u32 = 0x4000;

/// What all names of such chains begin with.
const PREFIXES: [&str; 4] = ["masq-", "snat-", "cond-", "in-"];

/// A chain that is made when elements need it: one that is named after what is in it, or a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedChain {
    pub(super) name: String,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

impl NamedChain {
    /// Without its rules.
    pub(super) fn chain(&self) -> Chain {
        Chain { name: self.name.clone(), base: self.base.clone(), comment: None }
    }
}

/// Whether a chain of that name is one of these.
pub(super) fn is_content_name(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|hash| hash.len() == 16))
}

/// `meaning` says all that the rules depend on.
fn named(prefix: &str, meaning: &str, rules: Vec<Rule>) -> NamedChain {
    let mut hash = Sha256::new();
    hash.update(format!("{VERSION} {meaning}"));
    let digits: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    NamedChain { name: format!("{prefix}{digits}"), base: None, rules }
}

fn masquerade(fully_random: bool) -> Expr {
    Expr::Masquerade { flags: if fully_random { NAT_RANDOM_FULLY } else { 0 } }
}

/// Never masqueraded: what stays on the link, and what has many receivers.
fn never_outside(family: Family) -> Vec<IpNetwork> {
    let network = |address: IpAddr, prefix| IpNetwork::new(address, prefix).ok();
    let all = match family {
        Family::V4 => vec![
            network(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
            network(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
            network(Ipv4Addr::BROADCAST.into(), 32),
        ],
        Family::V6 => vec![
            network(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
            network(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
        ],
    };
    all.into_iter().flatten().collect()
}

/// Hides a pod's address from all but the networks `inside`.
pub(super) fn masquerade_outside(family: Family, inside: &[IpNetwork], fully_random: bool) -> NamedChain {
    let mut inside: Vec<IpNetwork> =
        inside.iter().filter(|n| n.is_ipv4() == (family == Family::V4)).copied().collect();
    inside.extend(never_outside(family));
    inside.sort();
    inside.dedup();
    let leave = |matches: Vec<Expr>| Rule::new([matches, vec![Expr::Verdict(Verdict::Return)]].concat());
    let mut rules: Vec<Rule> =
        inside.iter().map(|network| leave(address_in(End::Destination, *network))).collect();
    rules.push(leave(has_bits(Expr::meta(MetaKey::Mark, KEY), KUBE_PROXY_MARK).to_vec()));
    rules.push(Rule::new(vec![masquerade(fully_random)]));
    let texts: Vec<String> = inside.iter().map(IpNetwork::to_string).collect();
    named("masq-", &format!("masquerade outside {} random {fully_random}", texts.join(" ")), rules)
}

/// Hides who uses a host port, where the pod's answers would go astray otherwise: clients of its subnet would get them
/// from an address that they did not ask, and 127.0.0.1 is the pod itself to the pod.
pub(super) fn masquerade_clients(subnet: IpNetwork, snat: Snat, fully_random: bool) -> NamedChain {
    let mut rules = Vec::new();
    match snat {
        Snat::Off => {}
        Snat::Needed => {
            let loopback = match subnet {
                IpNetwork::V4(_) => IpNetwork::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                IpNetwork::V6(_) => IpNetwork::new(Ipv6Addr::LOCALHOST.into(), 128),
            };
            for source in [Some(subnet), loopback.ok()].into_iter().flatten() {
                let mut expressions = address_in(End::Source, source);
                expressions.push(masquerade(fully_random));
                rules.push(Rule::new(expressions));
            }
        }
        Snat::All => rules.push(Rule::new(vec![masquerade(fully_random)])),
    }
    let subnet = match snat {
        Snat::Needed => subnet.to_string(),
        Snat::Off | Snat::All => String::new(),
    };
    named("snat-", &format!("masquerade clients {snat:?} of {subnet} random {fully_random}"), rules)
}

/// Leads those who meet the conditions to the pod; the maps are those for ports with conditions.
pub(super) fn conditional(family: Family, conditions: &Conditions) -> NamedChain {
    let mut rules = Vec::new();
    for alternative in &conditions.alternatives {
        for with_address in [true, false] {
            let expressions = [
                is_family(family).to_vec(),
                alternative.clone(),
                skeleton::translate(family, with_address, true),
            ];
            rules.push(Rule::new(expressions.concat()));
        }
    }
    named("cond-", &format!("{family:?} {}", conditions.text), rules)
}

/// Who may not open connections to the pods of that policy behind `device`.
pub(super) fn ingress(device: &str, policy: IngressPolicy) -> NamedChain {
    let mut rules = Vec::new();
    if policy != IngressPolicy::Open {
        let mut expressions = vec![Expr::meta(MetaKey::Iifname, KEY), Expr::is_in(GUARDED.name, KEY)];
        expressions.push(Expr::Cmp { reg: KEY, op: CmpOp::Ne, value: ifname(device).to_vec() });
        expressions.push(drop());
        rules.push(Rule::new(expressions));
    }
    if policy == IngressPolicy::Isolated {
        let mut expressions = link_is(MetaKey::Iifname, CmpOp::Eq, device).to_vec();
        expressions.push(drop());
        rules.push(Rule::new(expressions));
    }
    named("in-", &format!("ingress {policy:?} {device}"), rules)
}
