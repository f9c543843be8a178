use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

/// `subnet`, then `start=`, `end=`, `gw=` in any order, as a test writes a range.
fn spec(text: &str) -> RangeSpec {
    let mut words = text.split_whitespace();
    let subnet = words.next().expect("a subnet").parse().expect("a subnet");
    let mut spec = RangeSpec { subnet, range_start: None, range_end: None, gateway: None };
    for word in words {
        let (key, value) = word.split_once('=').expect("key=value");
        let value = Some(value.parse().expect("an address"));
        match key {
            "start" => spec.range_start = value,
            "end" => spec.range_end = value,
            "gw" => spec.gateway = value,
            _ => panic!("no key {key}"),
        }
    }
    spec
}

fn range(text: &str) -> Range {
    Range::new(spec(text)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn set(texts: &[&str]) -> RangeSet {
    RangeSet::new(texts.iter().map(|text| range(text)).collect()).expect("a range set")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn defaults_are_those_of_host_local() {
    for (text, expected, gateway) in [
        ("10.0.0.0/24", "10.0.0.1-10.0.0.254", "10.0.0.1"),
        ("10.0.0.0/29", "10.0.0.1-10.0.0.6", "10.0.0.1"),
        ("10.0.0.0/30", "10.0.0.1-10.0.0.2", "10.0.0.1"),
        ("0.0.0.0/0", "0.0.0.1-255.255.255.254", "0.0.0.1"),
        ("255.255.255.252/30", "255.255.255.253-255.255.255.254", "255.255.255.253"),
        ("fd00::/64", "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        ("fd00::/126", "fd00::1-fd00::3", "fd00::1"),
        ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
        (
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1",
        ),
        ("10.0.0.0/24 start=10.0.0.10 end=10.0.0.10 gw=10.0.0.9", "10.0.0.10-10.0.0.10", "10.0.0.9"),
        // The network and the broadcast address are never given, even if they are asked for.
        ("10.0.0.0/29 start=10.0.0.0 end=10.0.0.7", "10.0.0.1-10.0.0.6", "10.0.0.1"),
        ("fd00::/125 start=fd00::", "fd00::1-fd00::7", "fd00::1"),
        // A gateway outside start and end, and link-local ones.
        ("10.0.0.0/24 start=10.0.0.100 gw=10.0.0.254", "10.0.0.100-10.0.0.254", "10.0.0.254"),
        ("fd00::/64 end=fd00::9 gw=fe80::1", "fd00::1-fd00::9", "fe80::1"),
        ("10.0.0.0/24 gw=169.254.1.1", "10.0.0.1-10.0.0.254", "169.254.1.1"),
        ("::/80 end=::ffff:10.0.0.1", "::1-::ffff:10.0.0.1", "::1"),
        // Go writes IPv4 addresses in IPv6's form now and then.
        ("10.0.0.0/24 start=::ffff:10.0.0.5", "10.0.0.5-10.0.0.254", "10.0.0.1"),
    ] {
        let range = range(text);
        assert_eq!((range.to_string().as_str(), range.gateway()), (expected, ip(gateway)), "{text}");
    }
}

#[test]
fn each_mistake_has_its_own_error() {
    for (text, expected) in [
        (
            "10.0.0.1/24",
            "subnet 10.0.0.1/24 has host bits set: for a prefix length of 24 the network address is 10.0.0.0",
        ),
        (
            "fd00::1/64",
            "subnet fd00::1/64 has host bits set: for a prefix length of 64 the network address is fd00::",
        ),
        ("10.0.0.0/31", "subnet 10.0.0.0/31 is too small to allocate from: the longest usable prefix is /30"),
        ("10.0.0.5/32", "subnet 10.0.0.5/32 is too small to allocate from: the longest usable prefix is /30"),
        ("fd00::/127", "subnet fd00::/127 is too small to allocate from: the longest usable prefix is /126"),
        (
            "fd00::5/128",
            "subnet fd00::5/128 is too small to allocate from: the longest usable prefix is /126",
        ),
        (
            "::ffff:10.0.0.0/120",
            "subnet ::ffff:10.0.0.0/120 is an IPv4-mapped IPv6 subnet: write it as an IPv4 subnet",
        ),
        ("10.0.0.0/24 start=10.0.1.1", "rangeStart 10.0.1.1 is not in subnet 10.0.0.0/24"),
        ("10.0.0.0/24 end=9.255.255.255", "rangeEnd 9.255.255.255 is not in subnet 10.0.0.0/24"),
        ("10.0.0.0/24 gw=10.0.1.1", "gateway 10.0.1.1 is not in subnet 10.0.0.0/24"),
        ("10.0.0.0/24 start=10.0.0.9 end=10.0.0.8", "rangeStart 10.0.0.9 is behind rangeEnd 10.0.0.8"),
        (
            "10.0.0.0/24 start=fd00::1",
            "rangeStart fd00::1 is not of the same address family as subnet 10.0.0.0/24",
        ),
        ("fd00::/64 end=10.0.0.1", "rangeEnd 10.0.0.1 is not of the same address family as subnet fd00::/64"),
        ("fd00::/64 gw=10.0.0.1", "gateway 10.0.0.1 is not of the same address family as subnet fd00::/64"),
        ("10.0.0.0/29 start=10.0.0.7", "rangeStart 10.0.0.7 is behind rangeEnd 10.0.0.6"),
        (
            "10.0.0.0/29 start=10.0.0.7 end=10.0.0.7",
            "range 10.0.0.7-10.0.0.7 has no address that a pod can use: it is the network or broadcast address of \
             10.0.0.0/29",
        ),
        (
            "10.0.0.0/29 end=10.0.0.0 start=10.0.0.0",
            "range 10.0.0.0-10.0.0.0 has no address that a pod can use: it is the network or broadcast address of \
             10.0.0.0/29",
        ),
    ] {
        let error = Range::new(spec(text)).expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
    }
}

#[test]
fn each_mistake_between_ranges_has_its_own_error() {
    for (texts, expected) in [
        (&[] as &[&str], "empty range set"),
        (
            &["10.0.0.0/24", "fd00::/64"],
            "mixed address families in one range set: 10.0.0.1-10.0.0.254 and fd00::1-fd00::ffff:ffff:ffff:ffff (give \
             each family a set of its own)",
        ),
        (
            &["10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/16 start=10.0.0.254 end=10.0.0.255"],
            "ranges 10.0.0.1-10.0.0.254 and 10.0.0.254-10.0.0.255 of one range set overlap",
        ),
        (
            &["10.0.0.0/24", "10.0.0.0/24"],
            "ranges 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.254 of one range set overlap",
        ),
    ] {
        let ranges = texts.iter().map(|text| range(text)).collect();
        assert_eq!(RangeSet::new(ranges).expect_err("a mistake").to_string(), expected);
    }
}

#[test]
fn sets_of_one_network_must_not_overlap() {
    let sets =
        [set(&["10.0.0.0/24"]), set(&["fd00::/64"]), set(&["10.9.0.0/24", "10.0.0.0/24 start=10.0.0.254"])];
    assert_eq!(
        check_sets(&sets).expect_err("an overlap").to_string(),
        "range set 0 overlaps with range set 2: 10.0.0.1-10.0.0.254 and 10.0.0.254-10.0.0.254"
    );
    assert_eq!(check_sets(sets.get(..2).expect("two")), Ok(()));
    assert_eq!(check_sets(&[]), Ok(()));
    // Two ranges of one subnet may stand in two sets.
    assert_eq!(
        check_sets(&[set(&["10.0.0.0/24 end=10.0.0.99"]), set(&["10.0.0.0/24 start=10.0.0.100"])]),
        Ok(())
    );
}

#[test]
fn reading_checks_again() {
    let set = set(&["10.0.0.0/24 start=10.0.0.10", "10.0.1.0/24"]);
    let text = serde_json::to_string(&set).expect("text");
    assert_eq!(serde_json::from_str::<RangeSet>(&text).expect("the same set"), set);
    for wrong in [
        "[]",
        r#"[{"subnet":"10.0.0.1/24"}]"#,
        r#"[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.0"}]"#,
        r#"[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/25"}]"#,
    ] {
        assert!(serde_json::from_str::<RangeSet>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_round_begins_behind_the_last_address() {
    let set = set(&["10.0.0.0/29", "10.0.1.0/29", "10.0.2.0/29"]);
    for (last, expected) in [
        (None, "10.0.0.1-10.0.0.6 10.0.1.1-10.0.1.6 10.0.2.1-10.0.2.6"),
        (Some("10.9.9.9"), "10.0.0.1-10.0.0.6 10.0.1.1-10.0.1.6 10.0.2.1-10.0.2.6"),
        (Some("fd00::1"), "10.0.0.1-10.0.0.6 10.0.1.1-10.0.1.6 10.0.2.1-10.0.2.6"),
        (Some("10.0.1.3"), "10.0.1.4-10.0.1.6 10.0.2.1-10.0.2.6 10.0.0.1-10.0.0.6 10.0.1.1-10.0.1.3"),
        (Some("10.0.2.6"), "10.0.0.1-10.0.0.6 10.0.1.1-10.0.1.6 10.0.2.1-10.0.2.6"),
    ] {
        let round: Vec<String> =
            set.round(last.map(ip)).iter().map(|(start, end)| format!("{start}-{end}")).collect();
        assert_eq!(round.join(" "), expected, "{last:?}");
    }
    let all = self::set(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126"]);
    let last = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(all.round(Some(last)), [(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffd"), last)]);
}

#[test]
fn pod_addresses_have_their_ranges_prefix_and_gateway() {
    let sets = [set(&["10.0.0.0/24"]), set(&["fd00::/64 gw=fd00::9"])];
    for (address, expected, gateway) in [
        ("10.0.0.7", "10.0.0.7/24", Some("10.0.0.1")),
        ("::ffff:10.0.0.7", "10.0.0.7/24", Some("10.0.0.1")),
        ("fd00::7", "fd00::7/64", Some("fd00::9")),
        ("10.0.1.7", "10.0.1.7/32", None),
        ("fd01::7", "fd01::7/128", None),
    ] {
        let address = pod_address(&sets, ip(address));
        assert_eq!((address.address.to_string().as_str(), address.gateway), (expected, gateway.map(ip)));
    }
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![any::<u32>(), Just(0), Just(u32::MAX), 0_u32..32, (u32::MAX - 32)..=u32::MAX];
    let v6 = prop_oneof![any::<u128>(), Just(0), Just(u128::MAX), 0_u128..32, (u128::MAX - 32)..=u128::MAX];
    prop_oneof![
        v4.prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        v6.prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

pub(crate) fn any_spec() -> impl Strategy<Value = RangeSpec> {
    let near = |subnet: IpNetwork| {
        // An address of the subnet as often as any other.
        prop_oneof![
            1 => Just(None),
            3 => any::<u128>().prop_map(move |bits| Some(match subnet {
                IpNetwork::V4(net) => {
                    Ipv4Addr::from_bits(net.network().to_bits() | (bits as u32 & !net.mask().to_bits())).into()
                }
                IpNetwork::V6(net) => {
                    Ipv6Addr::from_bits(net.network().to_bits() | (bits & !net.mask().to_bits())).into()
                }
            })),
            1 => any_ip().prop_map(Some),
        ]
    };
    (any_ip(), 0_u8..=128, prop::bool::weighted(0.9))
        .prop_map(|(address, prefix, clear)| {
            let subnet = with_prefix(address, prefix);
            if clear { with_prefix(subnet.network(), subnet.prefix()) } else { subnet }
        })
        .prop_flat_map(move |subnet| (Just(subnet), near(subnet), near(subnet), near(subnet)))
        .prop_map(|(subnet, range_start, range_end, gateway)| RangeSpec {
            subnet,
            range_start,
            range_end,
            gateway,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is configured: no panic, and a range that is accepted is sound.
    #[test]
    fn any_range_is_refused_or_sound(spec in any_spec()) {
        let Ok(range) = Range::new(spec) else { return Ok(()) };
        prop_assert!(range.start() <= range.end());
        prop_assert!(range.subnet().contains(range.start()) && range.subnet().contains(range.end()));
        prop_assert!(range.start() != range.subnet().network());
        prop_assert!(!range.start().is_ipv4() || range.end() != range.subnet().broadcast());
        prop_assert!(range.size() >= 1);
        prop_assert_eq!(Range::new(range.into()), Ok(range));
        let set = RangeSet::new(vec![range]).expect("one range");
        // The round visits each address once, from any place.
        for last in [None, Some(range.start()), Some(range.end()), spec.range_start] {
            let visited = set.round(last).iter().fold(0_u128, |sum, (start, end)| sum + (number(*end) - number(*start)) + 1);
            prop_assert_eq!(visited, range.size());
        }
    }

    #[test]
    fn overlap_is_what_pairwise_comparison_finds(
        specs in prop::collection::vec((0_u8..60, 0_u8..6), 1..8),
        sets in prop::collection::vec(0_usize..3, 8),
    ) {
        let ranges: Vec<Range> = specs.iter().map(|(start, length)| {
            range(&format!("10.0.0.0/24 start=10.0.0.{} end=10.0.0.{}", start + 1, start + 1 + length))
        }).collect();
        let shared = |a: &Range, b: &Range| a.start() <= b.end() && b.start() <= a.end();
        let mut within = false;
        let mut between = false;
        for (i, a) in ranges.iter().enumerate() {
            for (j, b) in ranges.iter().enumerate().skip(i + 1) {
                if shared(a, b) {
                    within = true;
                    between |= sets[i] != sets[j];
                }
            }
        }
        prop_assert_eq!(RangeSet::new(ranges.clone()).is_err(), within);
        let split: Result<Vec<RangeSet>, RangeError> = (0..3)
            .map(|set| ranges.iter().zip(&sets).filter(|(_, of)| **of == set).map(|(range, _)| *range).collect::<Vec<_>>())
            .filter(|set| !set.is_empty())
            .map(RangeSet::new)
            .collect();
        if let Ok(split) = split {
            prop_assert_eq!(check_sets(&split).is_err(), between);
        }
    }
}
