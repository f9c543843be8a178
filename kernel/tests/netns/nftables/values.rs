//! What is made is what the program `nft` shows and what is read back.

use podwire_kernel::nft::{
    self, Base, Batch, Chain, ChainKind, CmpOp, CtKey, DataType, Direction, Element, Expr, Family, FibResult,
    Header, Hook, MapData, MetaKey, NatKind, Place, Policy, Reg, Rule, Set, TableRef, Verdict,
};

use super::{TABLE, base, chain, open, port, ports, set};
use crate::lab::{in_new_netns, pair, socket};

/// A table with a bit of everything.
struct Everything {
    chains: Vec<Chain>,
    sets: Vec<Set>,
    elements: Vec<(&'static str, Vec<Element>)>,
    rules: Vec<(&'static str, Rule)>,
}

fn everything() -> Everything {
    let chains = vec![
        chain("host-ports"),
        chain("masq"),
        Chain { comment: Some("nothing".into()), ..chain("empty") },
        base("prerouting", ChainKind::Nat, Hook::Prerouting, -100, Policy::Accept),
        base("postrouting", ChainKind::Nat, Hook::Postrouting, 100, Policy::Accept),
        base("forward", ChainKind::Filter, Hook::Forward, -1, Policy::Drop),
        base("raw", ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept),
        base("reroute", ChainKind::Route, Hook::Output, 0, Policy::Accept),
    ];
    let sets = vec![
        ports(),
        Set {
            comment: Some("who is masqueraded".into()),
            ..set("masquerade4", DataType::IPV4_ADDR, Some(MapData::Verdict))
        },
        Set { interval: true, ..set("inside", DataType::IPV4_ADDR, None) },
        Set { interval: true, constant: true, ..set("inside6", DataType::IPV6_ADDR, None) },
        set("guarded", DataType::IFNAME, None),
        set("macs", DataType::concat(&[DataType::IFNAME, DataType::ETHER_ADDR]), None),
        set("marks", DataType::MARK, None),
        set("links", DataType::concat(&[DataType::IFINDEX, DataType::MARK]), None),
        Set { interval: true, ..set("markrange", DataType::MARK, None) },
        Set {
            interval: true,
            ..set("ranges", DataType::concat(&[DataType::IPV4_ADDR, DataType::INET_SERVICE]), None)
        },
    ];
    let elements = vec![
        ("ports4", vec![port(8080, [10, 1, 0, 2]).comment("0123 pod eth0 net"), port(8081, [10, 1, 0, 3])]),
        (
            "masquerade4",
            vec![Element::new([10, 1, 0, 2]).verdict(Verdict::Jump("masq".into())).comment("ä pod")],
        ),
        ("inside", vec![Element::new([10, 0, 0, 0]), Element::new([11, 0, 0, 0]).interval_end()]),
        ("guarded", vec![Element::new(nft::ifname("podwire0"))]),
        ("macs", vec![Element::new(nft::concat(&[&nft::ifname("pw3f9a"), &[2, 0, 0, 0, 0, 9]]))]),
        ("links", vec![Element::new(nft::concat(&[&1_u32.to_ne_bytes(), &0x4000_u32.to_ne_bytes()]))]),
        ("marks", vec![Element::new(0x4000_u32.to_ne_bytes())]),
        (
            "ranges",
            vec![Element {
                key: nft::concat(&[&[10, 0, 0, 1], &80_u16.to_be_bytes()]),
                key_end: Some(nft::concat(&[&[10, 0, 0, 9], &90_u16.to_be_bytes()])),
                ..Element::default()
            }],
        ),
    ];
    let mark = 0x4000_u32.to_ne_bytes();
    let rules = vec![
        (
            "prerouting",
            Rule::new(vec![
                Expr::Fib { flags: nft::FIB_DESTINATION, result: FibResult::AddressType, to: Reg(0) },
                Expr::eq(Reg(0), nft::FIB_LOCAL.to_ne_bytes()),
                Expr::jump("host-ports"),
            ]),
        ),
        (
            "host-ports",
            Rule::new(vec![
                Expr::meta(MetaKey::Nfproto, Reg(0)),
                Expr::eq(Reg(0), [2]),
                Expr::meta(MetaKey::L4proto, Reg(0)),
                Expr::payload(Header::Network, 16, 4, Reg(1)),
                Expr::payload(Header::Transport, 2, 2, Reg(2)),
                Expr::map("ports4", Reg(0), Reg(4)),
                Expr::Nat {
                    kind: NatKind::Destination,
                    family: Family::Ip,
                    address: Some(Reg(4)),
                    port: Some(Reg(5)),
                    flags: 0,
                },
            ])
            .comment("exact address"),
        ),
        (
            "masq",
            Rule::new(vec![
                Expr::meta(MetaKey::Nfproto, Reg(0)),
                Expr::eq(Reg(0), [2]),
                Expr::Immediate { to: Reg(1), value: vec![10, 1, 0, 9] },
                Expr::Nat {
                    kind: NatKind::Source,
                    family: Family::Ip,
                    address: Some(Reg(1)),
                    port: None,
                    flags: nft::NAT_RANDOM_FULLY,
                },
            ]),
        ),
        (
            "postrouting",
            Rule::new(vec![
                Expr::meta(MetaKey::Nfproto, Reg(0)),
                Expr::eq(Reg(0), [2]),
                Expr::payload(Header::Network, 12, 4, Reg(0)),
                Expr::verdict_map("masquerade4", Reg(0)),
            ]),
        ),
        (
            "masq",
            Rule::new(vec![
                Expr::meta(MetaKey::Nfproto, Reg(0)),
                Expr::eq(Reg(0), [2]),
                Expr::payload(Header::Network, 16, 4, Reg(0)),
                Expr::is_in("inside", Reg(0)),
                Expr::Verdict(Verdict::Return),
            ]),
        ),
        (
            "masq",
            Rule::new(vec![
                Expr::meta(MetaKey::Mark, Reg(0)),
                Expr::mask(Reg(0), mark),
                Expr::eq(Reg(0), mark),
                Expr::Counter,
                Expr::Verdict(Verdict::Return),
            ]),
        ),
        ("masq", Rule::new(vec![Expr::Masquerade { flags: nft::NAT_RANDOM_FULLY }])),
        (
            "forward",
            Rule::new(vec![
                Expr::Ct { key: CtKey::State, direction: None, to: Reg(0) },
                Expr::mask(Reg(0), (nft::CT_ESTABLISHED | nft::CT_RELATED).to_ne_bytes()),
                Expr::ne(Reg(0), [0; 4]),
                Expr::Verdict(Verdict::Accept),
            ]),
        ),
        (
            "forward",
            Rule::new(vec![
                Expr::meta(MetaKey::L4proto, Reg(8)),
                Expr::payload(Header::Transport, 2, 2, Reg(9)),
                Expr::Range { reg: Reg(9), invert: true, from: vec![0, 80], to: vec![0, 90] },
                Expr::Cmp { reg: Reg(8), op: CmpOp::Ne, value: vec![17] },
                Expr::Reject { kind: 2, code: 1 },
            ]),
        ),
        (
            "forward",
            Rule::new(vec![
                Expr::meta(MetaKey::L4proto, Reg(0)),
                Expr::eq(Reg(0), [6]),
                Expr::Ct { key: CtKey::ProtoDestination, direction: Some(Direction::Original), to: Reg(0) },
                Expr::eq(Reg(0), 80_u16.to_be_bytes()),
                Expr::Ct { key: CtKey::Destination4, direction: Some(Direction::Original), to: Reg(0) },
                Expr::eq(Reg(0), [10, 0, 0, 1]),
                Expr::Verdict(Verdict::Accept),
            ]),
        ),
        (
            "forward",
            Rule::new(vec![
                Expr::meta(MetaKey::Iifname, Reg(0)),
                Expr::is_in("guarded", Reg(0)),
                Expr::meta(MetaKey::Oifname, Reg(0)),
                Expr::not_in("guarded", Reg(0)),
                Expr::Verdict(Verdict::Drop),
            ]),
        ),
        (
            "forward",
            Rule::new(vec![
                Expr::meta(MetaKey::Iif, Reg(0)),
                Expr::Byteorder { from: Reg(0), to: Reg(0), to_network: true, len: 4, size: 4 },
                Expr::Cmp { reg: Reg(0), op: CmpOp::Gt, value: vec![0, 0, 0, 1] },
                Expr::Verdict(Verdict::Goto("empty".into())),
            ]),
        ),
        (
            "forward",
            Rule::new(vec![
                Expr::meta(MetaKey::Iifkind, Reg(0)),
                Expr::eq(Reg(0), nft::ifname("veth")),
                Expr::Immediate { to: Reg(0), value: mark.to_vec() },
                Expr::SetMeta { key: MetaKey::Mark, from: Reg(0) },
                Expr::Verdict(Verdict::Continue),
            ]),
        ),
        ("raw", Rule::new(vec![Expr::Notrack])),
    ];
    Everything { chains, sets, elements, rules }
}

#[test]
fn a_table_reads_back_as_it_was_made_and_as_nft_shows_it() {
    in_new_netns(|| {
        let mut nft = open();
        let Everything { chains, sets, elements, rules } = everything();
        let mut batch = Batch::new();
        batch.create_table(TABLE, Some("podwire 1"));
        chains.iter().for_each(|chain| batch.create_chain(TABLE, chain));
        sets.iter().for_each(|set| batch.create_set(TABLE, set));
        elements.iter().for_each(|(set, elements)| batch.create_elements(TABLE, set, elements));
        rules.iter().for_each(|(chain, rule)| batch.add_rule(TABLE, chain, Place::Last, rule));
        nft.commit(&batch).expect("committed");
        assert_eq!(super::nft(&["list", "ruleset"]), include_str!("everything.nft"));

        let table = nft.table(TABLE).expect("asked").expect("there");
        assert_eq!(
            (table.object.name.as_str(), table.object.comment.as_deref()),
            ("podwire", Some("podwire 1"))
        );
        assert_eq!(nft.tables().expect("listed"), [table]);
        let found = nft.table_chains(TABLE).expect("listed");
        assert_eq!(found.into_iter().map(|chain| chain.object).collect::<Vec<_>>(), chains);
        let found = nft.sets(TABLE).expect("listed");
        let mut found: Vec<_> = found.into_iter().map(|set| set.object).collect();
        let mut made = sets;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        made.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found, made);
        for (set, elements) in &elements {
            let mut found = nft.elements(TABLE, set).expect("listed");
            found.sort_by(|a, b| a.key.cmp(&b.key));
            assert_eq!(found, *elements, "{set}");
        }
        for chain in &chains {
            let found = nft.rules(TABLE, Some(&chain.name)).expect("listed");
            let made: Vec<_> =
                rules.iter().filter(|(name, _)| *name == chain.name).map(|(_, rule)| rule).collect();
            assert_eq!(found.iter().map(|rule| &rule.rule).collect::<Vec<_>>(), made, "{}", chain.name);
        }
        assert_eq!(nft.rules(TABLE, None).expect("listed").len(), rules.len());
    });
}

#[test]
fn long_comments_are_cut_between_characters() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        batch.create_table(TABLE, Some(&"ä".repeat(100)));
        batch.create_set(TABLE, &set("marks", DataType::MARK, None));
        let element = Element::new([0; 4]).comment("x".repeat(300));
        batch.create_elements(TABLE, "marks", &[element]);
        nft.commit(&batch).expect("committed");
        let table = nft.table(TABLE).expect("asked").expect("there");
        assert_eq!(table.object.comment, Some("ä".repeat(nft::MAX_COMMENT / 2)));
        let elements = nft.elements(TABLE, "marks").expect("listed");
        assert_eq!(elements[0].comment, Some("x".repeat(nft::MAX_COMMENT)));
        assert!(super::nft(&["list", "ruleset"]).contains(&"x".repeat(nft::MAX_COMMENT)));
    });
}

#[test]
fn bridge_and_netdev_tables_hold_their_chains() {
    in_new_netns(|| {
        let (_link, _pod) = pair(&mut socket(), "left");
        let mut nft = open();
        let mut batch = Batch::new();
        let bridge = TableRef::new(Family::Bridge, "podwire");
        batch.create_table(bridge, None);
        let pre = base("pre", ChainKind::Filter, Hook::Prerouting, -300, Policy::Accept);
        batch.create_chain(bridge, &pre);
        let key = DataType::concat(&[DataType::IFNAME, DataType::ETHER_ADDR]);
        batch.create_set(bridge, &set("macs", key, None));
        let frame = Rule::new(vec![
            Expr::meta(MetaKey::Protocol, Reg(0)),
            Expr::eq(Reg(0), 0x0806_u16.to_be_bytes()),
            Expr::meta(MetaKey::Iifname, Reg(0)),
            Expr::payload(Header::Link, 6, 6, Reg(4)),
            Expr::not_in("macs", Reg(0)),
            Expr::Verdict(Verdict::Drop),
        ]);
        batch.add_rule(bridge, "pre", Place::Last, &frame);
        let netdev = TableRef::new(Family::Netdev, "podwire");
        let on_left = Base {
            kind: ChainKind::Filter,
            hook: Hook::Ingress,
            priority: 0,
            policy: Policy::Accept,
            device: Some("left".to_owned()),
        };
        let ingress = Chain { name: "left".to_owned(), base: Some(on_left), comment: None };
        batch.create_table(netdev, None);
        batch.create_chain(netdev, &ingress);
        nft.commit(&batch).expect("committed");
        let chains = nft.chains(None).expect("listed");
        let chains: Vec<_> = chains.into_iter().map(|found| (found.family, found.object)).collect();
        assert_eq!(chains.len(), 2);
        assert!(
            chains.contains(&(Family::Bridge, pre)) && chains.contains(&(Family::Netdev, ingress)),
            "{chains:?}"
        );
        assert_eq!(nft.rules(bridge, None).expect("listed")[0].rule, frame);
        let shown = super::nft(&["list", "ruleset"]);
        assert!(shown.contains("meta protocol arp iifname . ether saddr != @macs drop"), "{shown}");
        assert!(shown.contains("type filter hook ingress device \"left\" priority filter"), "{shown}");
    });
}

#[test]
fn a_rule_has_a_set_of_its_own() {
    in_new_netns(|| {
        let mut nft = open();
        let mut batch = Batch::new();
        batch.create_table(TABLE, None);
        batch.create_chain(TABLE, &chain("conditions"));
        let elements = [80_u16, 443].map(|port| Element::new(port.to_be_bytes()));
        let rule = |(set, set_id): (String, u32)| {
            Rule::new(vec![
                Expr::meta(MetaKey::L4proto, Reg(0)),
                Expr::eq(Reg(0), [6]),
                Expr::payload(Header::Transport, 2, 2, Reg(0)),
                Expr::Lookup { set, set_id, reg: Reg(0), then: nft::Then::IfThere },
                Expr::Verdict(Verdict::Accept),
            ])
        };
        let first = batch.anonymous_set(TABLE, DataType::INET_SERVICE, None, false, &elements);
        batch.add_rule(TABLE, "conditions", Place::Last, &rule(first));
        let ends = [
            Element::new([0, 0]).interval_end(),
            Element::new(1000_u16.to_be_bytes()),
            Element::new(2000_u16.to_be_bytes()).interval_end(),
        ];
        let second = batch.anonymous_set(TABLE, DataType::INET_SERVICE, None, true, &ends);
        batch.add_rule(TABLE, "conditions", Place::First, &rule(second));
        nft.commit(&batch).expect("committed");
        let shown = super::nft(&["list", "ruleset"]);
        let expected = "\t\ttcp dport { 1000-1999 } accept\n\t\ttcp dport { 80, 443 } accept\n";
        assert!(shown.contains(expected), "{shown}");
        let sets = nft.sets(TABLE).expect("listed");
        assert_eq!(sets.len(), 2);
        let handle = nft.rules(TABLE, None).expect("listed")[0].handle;
        let mut batch = Batch::new();
        batch.delete_rule(TABLE, "conditions", handle);
        nft.commit(&batch).expect("removed");
        assert_eq!(nft.sets(TABLE).expect("listed").len(), 1, "the set goes with its rule");
    });
}
