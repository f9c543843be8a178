//! Objects as they are sent, read back; and messages that no kernel wrote.

use proptest::prelude::*;

use super::*;

/// A request as the kernel would tell of its object.
fn datagram(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::try_from(16 + request.payload.len()).expect("short").to_ne_bytes());
    bytes.extend_from_slice(&request.kind.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(&request.payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const TABLE: TableRef<'_> = TableRef::new(Family::Inet, "podwire");

fn registers() -> impl Strategy<Value = Reg> {
    (0..16_u8).prop_map(Reg)
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=longest)
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,20}"
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Continue),
        Just(Verdict::Return),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
        (2_i32..9).prop_map(Verdict::Other),
    ]
}

fn loads() -> impl Strategy<Value = Expr> {
    let meta = prop_oneof![
        Just(MetaKey::Protocol),
        Just(MetaKey::Mark),
        Just(MetaKey::Iifname),
        Just(MetaKey::L4proto),
        (30_u32..99).prop_map(MetaKey::Other)
    ];
    let header = prop_oneof![Just(Header::Link), Just(Header::Network), Just(Header::Transport)];
    let ct = prop_oneof![Just(CtKey::State), Just(CtKey::Destination6), (50_u32..99).prop_map(CtKey::Other)];
    let direction = prop_oneof![Just(None), Just(Some(Direction::Original)), Just(Some(Direction::Reply))];
    let fib = prop_oneof![Just(FibResult::Oif), Just(FibResult::Oifname), Just(FibResult::AddressType)];
    prop_oneof![
        (meta.clone(), registers()).prop_map(|(key, to)| Expr::Meta { key, to }),
        (meta, registers()).prop_map(|(key, from)| Expr::SetMeta { key, from }),
        (header, any::<u32>(), any::<u32>(), registers()).prop_map(|(base, offset, len, to)| Expr::Payload {
            base,
            offset,
            len,
            to
        }),
        (ct, direction, registers()).prop_map(|(key, direction, to)| Expr::Ct { key, direction, to }),
        (any::<u32>(), fib, registers()).prop_map(|(flags, result, to)| Expr::Fib { flags, result, to }),
        (registers(), bytes(16)).prop_map(|(to, value)| Expr::Immediate { to, value }),
    ]
}

fn steps() -> impl Strategy<Value = Expr> {
    let op = prop_oneof![
        Just(CmpOp::Eq),
        Just(CmpOp::Ne),
        Just(CmpOp::Lt),
        Just(CmpOp::Le),
        Just(CmpOp::Gt),
        Just(CmpOp::Ge)
    ];
    let then = prop_oneof![
        Just(Then::IfThere),
        Just(Then::IfMissing),
        Just(Then::Verdict),
        registers().prop_map(Then::Load)
    ];
    prop_oneof![
        (registers(), op, bytes(16)).prop_map(|(reg, op, value)| Expr::Cmp { reg, op, value }),
        (registers(), any::<bool>(), bytes(16), bytes(16)).prop_map(|(reg, invert, from, to)| Expr::Range {
            reg,
            invert,
            from,
            to
        }),
        (registers(), registers(), bytes(16), bytes(16)).prop_map(|(from, to, mask, xor)| Expr::Bitwise {
            from,
            to,
            mask,
            xor
        }),
        (registers(), registers(), any::<bool>(), any::<u32>(), any::<u32>()).prop_map(
            |(from, to, to_network, len, size)| Expr::Byteorder { from, to, to_network, len, size }
        ),
        (name(), registers(), then).prop_map(|(set, reg, then)| Expr::Lookup { set, set_id: 0, reg, then }),
    ]
}

fn ends() -> impl Strategy<Value = Expr> {
    let kind = prop_oneof![Just(NatKind::Source), Just(NatKind::Destination)];
    let family = prop_oneof![Just(Family::Ip), Just(Family::Ip6)];
    let register = || prop::option::of(registers());
    let flags = || any::<u32>().prop_map(|flags| flags & !3);
    prop_oneof![
        verdicts().prop_map(Expr::Verdict),
        (kind, family, register(), register(), flags()).prop_map(|(kind, family, address, port, flags)| {
            Expr::Nat { kind, family, address, port, flags }
        }),
        flags().prop_map(|flags| Expr::Masquerade { flags }),
        Just(Expr::Counter),
        Just(Expr::Notrack),
        (any::<u32>(), any::<u8>()).prop_map(|(kind, code)| Expr::Reject { kind, code }),
        (name(), any::<u32>(), bytes(8)).prop_map(|(name, revision, mut info)| {
            info.resize(8, 0);
            Expr::Match { name, revision, info }
        }),
        (name(), any::<u32>(), bytes(8)).prop_map(|(name, revision, mut info)| {
            info.resize(16, 0);
            Expr::Target { name, revision, info }
        }),
        prop::collection::vec((1_u16..9, bytes(9)), 0..4)
            .prop_map(|attributes| Expr::Other { name: "limit".to_owned(), attributes }),
    ]
}

prop_compose! {
    fn rules()(
        expressions in prop::collection::vec(prop_oneof![loads(), steps(), ends()], 0..12),
        comment in prop::option::of("[ -~]{0,127}"),
    ) -> Rule {
        Rule { expressions, comment }
    }
}

prop_compose! {
    fn elements()(
        key in bytes(32),
        key_end in prop::option::of(bytes(32)),
        data in prop_oneof![
            Just(None),
            bytes(16).prop_map(|value| Some(Data::Value(value))),
            verdicts().prop_map(|verdict| Some(Data::Verdict(verdict))),
        ],
        interval_end in any::<bool>(),
        comment in prop::option::of("[ -~]{0,127}"),
    ) -> Element {
        Element { key, key_end, data, interval_end, comment }
    }
}

proptest! {
    #[test]
    fn a_rule_reads_back_as_it_was_sent(rule in rules()) {
        let mut batch = Batch::new();
        batch.add_rule(TABLE, "chain", Place::Last, &rule);
        let told = datagram(&batch.requests[0]);
        let found = FoundRule { family: Family::Inet, table: "podwire".into(), chain: "chain".into(), handle: 0, rule };
        prop_assert_eq!(objects(&told).collect::<Vec<_>>(), [Object::Rule(found)]);
    }

    #[test]
    fn elements_read_back_as_they_were_sent(elements in prop::collection::vec(elements(), 1..20)) {
        let mut batch = Batch::new();
        batch.create_elements(TABLE, "set", &elements);
        let told = datagram(&batch.requests[0]);
        prop_assert_eq!(objects(&told).collect::<Vec<_>>(), [Object::Elements(elements)]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(objects(&bytes).count() <= bytes.len() / 4 + 1);
    }

    /// Bytes that get past the header: real messages with a few octets changed or cut off.
    #[test]
    fn damaged_messages_are_survived(
        rule in rules(),
        elements in prop::collection::vec(elements(), 1..4),
        kinds in prop::collection::vec(prop::sample::select(vec![0_u8, 3, 6, 9, 12, 15]), 2),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut batch = Batch::new();
        batch.add_rule(TABLE, "chain", Place::Last, &rule);
        batch.create_elements(TABLE, "set", &elements);
        let mut told = Vec::new();
        for (request, kind) in batch.requests.iter().zip(kinds) {
            told.extend(datagram(&Request { kind: SUBSYSTEM | u16::from(kind), ..request.clone() }));
        }
        for (at, byte) in damage {
            let at = at.index(told.len());
            told[at] = byte;
        }
        told.truncate(keep.index(told.len() + 1));
        prop_assert!(objects(&told).count() <= told.len() / 4 + 1);
    }
}

#[test]
fn elements_are_spread_over_messages_that_can_hold_them() {
    let elements: Vec<_> = (0..3000_u32)
        .map(|i| Element::new(i.to_be_bytes()).value([1; 16]).comment("x".repeat(MAX_COMMENT)))
        .collect();
    let mut batch = Batch::new();
    batch.create_elements(TABLE, "set", &elements);
    assert!(batch.len() > 1);
    assert!(batch.requests.iter().all(|request| request.payload.len() < 64 * 1024));
    let told: Vec<_> = batch.requests.iter().flat_map(datagram).collect();
    let read = objects(&told).flat_map(|object| match object {
        Object::Elements(elements) => elements,
        _ => Vec::new(),
    });
    assert!(read.eq(elements));
    assert_eq!(
        batch.requests[0].object.split(" and ").next(),
        Some(&*format!("inet podwire set \"{}\"", "x".repeat(MAX_COMMENT)))
    );
}

#[test]
fn registers_have_two_names() {
    let read: Vec<_> = (0..26).map(|number| Reg::of(number).map(|reg| reg.0)).collect();
    let expected = [None, Some(0), Some(4), Some(8), Some(12), None, None, None];
    let expected = expected.into_iter().chain((0..16).map(Some)).chain([None, None]);
    assert_eq!(read, expected.collect::<Vec<_>>());
}

#[test]
fn a_concatenation_has_the_length_of_its_padded_parts() {
    let port = DataType::concat(&[DataType::INET_PROTO, DataType::IPV6_ADDR, DataType::INET_SERVICE]);
    assert_eq!((port.id, port.len(), port.is_concat()), (12 << 12 | 8 << 6 | 13, 24, true));
    assert_eq!(concat(&[&[6], &[1; 16], &[0, 80]]).len(), 24);
    assert_eq!((DataType::INET_SERVICE.len(), DataType::INET_SERVICE.is_concat()), (2, false));
    assert_eq!(DataType::concat(&[DataType::MARK; 7]), DataType::concat(&[DataType::MARK; 5]));
    assert!(DataType::default().is_empty());
    assert_eq!(ifname("a-name-that-is-too-long"), *b"a-name-that-is-\0");
}
