use std::collections::BTreeSet;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::*;
use crate::rules::chains;
use crate::{IngressPolicy, Snat};

/// Tables of one version must be alike on all nodes, or two versions of podwire would mend each other's tables for ever.
#[test]
fn a_change_of_the_tables_is_a_new_version() {
    let when_needed = [LOCALNET, GUARDED].map(|set| base_chain_for(set.name));
    let mut all = format!("{:?} {when_needed:?}", TABLES.map(skeleton));
    for family in FAMILIES {
        let (inside, subnet) = match family {
            Family::V4 => ("10.0.0.0/8", "10.1.0.0/24"),
            Family::V6 => ("fd01::/32", "fd01::/64"),
        };
        let (inside, subnet) = (inside.parse().expect("a network"), subnet.parse().expect("a network"));
        let _ = write!(all, "{:?}", chains::masquerade_outside(family, &[inside], true));
        for snat in [Snat::Needed, Snat::All] {
            let _ = write!(all, "{:?}", chains::masquerade_clients(subnet, snat, true));
        }
        let conditions = ["mark 7".to_owned()];
        let conditions =
            crate::rules::conditions::parse(family, &conditions).expect("understood").expect("one");
        let _ = write!(all, "{:?}", chains::conditional(family, &conditions));
    }
    for policy in [IngressPolicy::SameBridge, IngressPolicy::Isolated] {
        let _ = write!(all, "{:?}", chains::ingress("br0", policy));
    }
    let hash: String = Sha256::digest(all).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (VERSION, hash.as_str()),
        (2, "c1c2bf43032e8504"),
        "podwire's tables have changed: raise VERSION, unless no release has had this one, and put the hash here"
    );
}

#[test]
fn every_set_is_used_and_every_name_is_there() {
    for table in TABLES {
        let skeleton = skeleton(table);
        let sets: BTreeSet<&str> = skeleton.sets.iter().map(|(set, _)| set.name).collect();
        let chains: BTreeSet<&str> = skeleton.chains.iter().map(|(chain, _)| chain.name.as_str()).collect();
        assert_eq!(sets.len(), skeleton.sets.len());
        assert_eq!(chains.len(), skeleton.chains.len());
        let mut used = BTreeSet::new();
        let mut jumped = BTreeSet::new();
        for expression in
            skeleton.chains.iter().flat_map(|(_, rules)| rules).flat_map(|rule| &rule.expressions)
        {
            match expression {
                Expr::Lookup { set, .. } => _ = used.insert(set.as_str()),
                Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => {
                    _ = jumped.insert(chain.as_str())
                }
                _ => {}
            }
        }
        let base = |name: &&str| {
            !skeleton.chains.iter().any(|(chain, _)| chain.name == **name && chain.base.is_none())
        };
        assert!(jumped.is_subset(&chains), "{jumped:?}");
        assert_eq!(jumped, chains.iter().copied().filter(|name| !base(name)).collect(), "each is reached");
        // Those of ports with conditions and of guarded bridges are used by chains that are made when needed.
        let later = [
            ["conditioned4", "conditioned6", "address-conditioned4", "address-conditioned6"].as_slice(),
            &["guarded", "localnet", "ingress4", "ingress6", "itself4", "itself6"],
        ]
        .concat();
        let unused: Vec<&&str> = sets.difference(&used).filter(|name| !later.contains(name)).collect();
        assert!(unused.is_empty() && used.is_subset(&sets), "{unused:?}");
    }
}
