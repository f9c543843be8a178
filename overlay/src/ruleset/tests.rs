use podwire_kernel::nft::{Base, ChainKind, DataType, Rule, ifname};
use proptest::prelude::*;

use super::*;

const TABLE: &str = "filter";

fn base(name: &str, hook: Hook, policy: Policy) -> Found<Chain> {
    let base = Base { kind: ChainKind::Filter, hook, priority: 0, policy, device: None };
    let chain = Chain { name: name.to_owned(), base: Some(base), comment: None };
    Found { family: Family::Ip, table: TABLE.to_owned(), handle: 1, object: chain }
}

fn rule(chain: &str, handle: u64, expressions: Vec<Expr>) -> FoundRule {
    let (table, chain) = (TABLE.to_owned(), chain.to_owned());
    FoundRule { family: Family::Ip, table, chain, handle, rule: Rule::new(expressions) }
}

fn packet() -> Packet {
    let (from, to) = ("10.244.1.7".parse().unwrap(), "10.244.2.9".parse().unwrap());
    Packet::new(from, to, Content::Tcp(80)).by(3, "podwire0").out(4, "podwire.1")
}

fn from(link: &str) -> Vec<Expr> {
    vec![Expr::meta(MetaKey::Iifname, Reg(1)), Expr::eq(Reg(1), ifname(link))]
}

fn and_then(mut conditions: Vec<Expr>, verdict: Verdict) -> Vec<Expr> {
    conditions.push(Expr::Verdict(verdict));
    conditions
}

fn forward(policy: Policy, rules: Vec<FoundRule>) -> Ruleset {
    Ruleset { chains: vec![base("FORWARD", Hook::Forward, policy)], rules, sets: Vec::new() }
}

#[test]
fn a_policy_that_drops_is_named() {
    let Fate::Dropped(place) = forward(Policy::Drop, vec![]).fate(Hook::Forward, &packet(), false) else {
        panic!("it passes")
    };
    assert_eq!(place.to_string(), "nftables table ip filter, chain FORWARD, its policy drop");
    assert_eq!(forward(Policy::Drop, vec![]).fate(Hook::Input, &packet(), false), Fate::Passes);
    assert_eq!(forward(Policy::Drop, vec![]).fate(Hook::Forward, &packet(), true), Fate::Passes);
}

#[test]
fn an_accept_before_the_policy_lets_it_pass() {
    let accepts = rule("FORWARD", 5, and_then(from("podwire0"), Verdict::Accept));
    assert_eq!(forward(Policy::Drop, vec![accepts]).fate(Hook::Forward, &packet(), false), Fate::Passes);
    let other = rule("FORWARD", 5, and_then(from("docker0"), Verdict::Accept));
    assert!(matches!(
        forward(Policy::Drop, vec![other]).fate(Hook::Forward, &packet(), false),
        Fate::Dropped(Place { handle: None, .. })
    ));
}

#[test]
fn a_rule_in_a_chain_that_is_jumped_to_is_named_with_its_text() {
    let ports =
        vec![Expr::payload(Header::Transport, 2, 2, Reg(1)), Expr::eq(Reg(1), 80_u16.to_be_bytes().to_vec())];
    let rules =
        vec![rule("FORWARD", 5, vec![Expr::jump("mine")]), rule("mine", 6, and_then(ports, Verdict::Drop))];
    let Fate::Dropped(place) = forward(Policy::Accept, rules).fate(Hook::Forward, &packet(), false) else {
        panic!("it passes")
    };
    assert_eq!((place.chain.as_str(), place.handle), ("mine", Some(6)));
    assert_eq!(place.rule, "th dport 80 drop");
}

#[test]
fn what_cannot_be_told_is_said_so() {
    let limit = Expr::Other { name: "limit".to_owned(), attributes: Vec::new() };
    let rules = vec![rule("FORWARD", 5, vec![limit, Expr::Verdict(Verdict::Accept)])];
    assert!(matches!(
        forward(Policy::Drop, rules).fate(Hook::Forward, &packet(), false),
        Fate::MayBeDropped(places) if places.len() == 1
    ));
}

#[test]
fn established_connections_alone_do_not_help_a_new_one() {
    let mut info = vec![0; 168];
    info[146..148].copy_from_slice(&1_u16.to_ne_bytes());
    // RELATED,ESTABLISHED
    info[150..152].copy_from_slice(&6_u16.to_ne_bytes());
    let established = |info: Vec<u8>| Expr::Match { name: "conntrack".to_owned(), revision: 3, info };
    let accepts = |info| vec![rule("FORWARD", 5, vec![established(info), Expr::Verdict(Verdict::Accept)])];
    let dropped = forward(Policy::Drop, accepts(info.clone())).fate(Hook::Forward, &packet(), false);
    assert!(matches!(dropped, Fate::Dropped(_)), "{dropped:?}");
    info[150..152].copy_from_slice(&8_u16.to_ne_bytes());
    assert_eq!(forward(Policy::Drop, accepts(info)).fate(Hook::Forward, &packet(), false), Fate::Passes);
}

#[test]
fn marks_of_xtables_are_read() {
    let marked = |mark: u32, invert: u8| {
        let mut info = [mark.to_ne_bytes(), mark.to_ne_bytes()].concat();
        info.push(invert);
        let mark = Expr::Match { name: "mark".to_owned(), revision: 1, info };
        let drops = vec![rule("FORWARD", 5, vec![mark, Expr::Verdict(Verdict::Drop)])];
        forward(Policy::Accept, drops).fate(Hook::Forward, &packet(), false)
    };
    assert_eq!(marked(0x8000, 0), Fate::Passes);
    assert!(matches!(marked(0x8000, 1), Fate::Dropped(_)));
}

#[test]
fn a_service_proxys_thousands_of_chains_are_walked_in_time() {
    let mut rules = Vec::new();
    for number in 0..20_000_u64 {
        let limit = Expr::Other { name: "limit".to_owned(), attributes: Vec::new() };
        rules.push(rule("FORWARD", number, vec![limit.clone(), Expr::jump(format!("svc{number}"))]));
        rules.push(rule(&format!("svc{number}"), number, vec![limit, Expr::Verdict(Verdict::Accept)]));
    }
    let began = std::time::Instant::now();
    assert_eq!(forward(Policy::Accept, rules).fate(Hook::Forward, &packet(), false), Fate::Passes);
    // Some tens of milliseconds; a walk that looks at all rules for each chain takes minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn sets_of_intervals_are_searched() {
    let set = Set { name: "s".to_owned(), key: DataType::IPV4_ADDR, interval: true, ..Set::default() };
    let elements = vec![
        Element::new([10, 244, 3, 0]).interval_end(),
        Element::new([10, 244, 2, 0]),
        Element::new([0, 0, 0, 0]).interval_end(),
    ];
    let found = |key: [u8; 4]| matches::element(&set, &elements, &key).is_some();
    assert_eq!([[10, 244, 2, 9], [10, 244, 3, 0], [10, 244, 1, 255]].map(found), [true, false, false]);
    let lookup = vec![
        Expr::payload(Header::Network, 16, 4, Reg(1)),
        Expr::is_in("s", Reg(1)),
        Expr::Verdict(Verdict::Drop),
    ];
    let mut ruleset = forward(Policy::Accept, vec![rule("FORWARD", 5, lookup)]);
    assert!(matches!(ruleset.fate(Hook::Forward, &packet(), false), Fate::MayBeDropped(_)), "unread set");
    let set = Found { family: Family::Ip, table: TABLE.to_owned(), handle: 2, object: set };
    ruleset.sets.push((set, elements));
    assert!(matches!(ruleset.fate(Hook::Forward, &packet(), false), Fate::Dropped(_)));
}

#[test]
fn chains_that_call_themselves_come_to_an_end() {
    let rules = vec![rule("FORWARD", 5, vec![Expr::jump("a")]), rule("a", 6, vec![Expr::jump("a")])];
    assert_eq!(forward(Policy::Accept, rules).fate(Hook::Forward, &packet(), false), Fate::Passes);
}

fn any_expression() -> impl Strategy<Value = Expr> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        (any::<u8>()).prop_map(|reg| Expr::meta(MetaKey::Oifname, Reg(reg))),
        (any::<u8>(), bytes()).prop_map(|(reg, value)| Expr::eq(Reg(reg), value)),
        (any::<u32>(), any::<u32>(), any::<u8>()).prop_map(|(offset, len, to)| Expr::payload(
            Header::Transport,
            offset,
            len,
            Reg(to)
        )),
        (any::<u8>(), bytes(), bytes()).prop_map(|(reg, mask, xor)| Expr::Bitwise {
            from: Reg(reg),
            to: Reg(reg),
            mask,
            xor
        }),
        (any::<u8>(), any::<u32>(), any::<u32>()).prop_map(|(reg, len, size)| Expr::Byteorder {
            from: Reg(reg),
            to: Reg(reg),
            to_network: true,
            len,
            size
        }),
        bytes().prop_map(|info| Expr::Match { name: "conntrack".to_owned(), revision: 3, info }),
        Just(Expr::jump("FORWARD")),
        Just(Expr::Verdict(Verdict::Drop)),
    ]
}

proptest! {
    #[test]
    fn no_ruleset_makes_it_panic(all in prop::collection::vec(prop::collection::vec(any_expression(), 0..5), 0..6)) {
        let rules = all.into_iter().enumerate().map(|(i, e)| rule("FORWARD", i as u64, e)).collect();
        let _ = forward(Policy::Drop, rules).fate(Hook::Forward, &packet(), false);
    }
}
