use proptest::prelude::*;

use super::*;

fn limit(rate: u64, burst: Option<u64>) -> RateLimit {
    RateLimit { rate, burst }
}

#[test]
fn without_a_size_the_bucket_follows_the_rate() {
    for (rate, mtu, burst, waiting) in [
        (8, 1500, 18_216, 24_288),
        (1_000_000, 1500, 18_216, 24_288),
        (1_000_000, 8950, 107_616, 143_488),
        (5_000_000, 1500, 46_875, 46_875),
        (10_000_000, 1500, 93_750, 73_728),
        (20_000_000, 1500, 187_500, 73_728),
        (100_000_000, 1500, 937_500, 312_500),
        (1_000_000_000, 1500, 9_375_000, 3_125_000),
        (100_000_000_000, 1500, 937_500_000, 312_500_000),
        (u64::MAX, 1500, u32::MAX, u32::MAX),
    ] {
        let bucket = bucket(&limit(rate, None), mtu);
        assert_eq!((bucket.rate, bucket.burst, bucket.limit), ((rate / 8).max(1), burst, waiting), "{rate}");
    }
}

#[test]
fn a_size_that_was_asked_for_counts_but_for_one_frame_at_least() {
    assert_eq!(bucket(&limit(1_000_000, Some(8_000_000)), 1500).burst, 1_000_000);
    assert_eq!(bucket(&limit(1_000_000, Some(800)), 1500).burst, 1518);
    assert_eq!(bucket(&limit(1_000_000, Some(u64::MAX)), 1500).burst, u32::MAX);
    // A huge bucket makes no huge queue.
    assert_eq!(bucket(&limit(1_000_000, Some(8_000_000)), 1500).limit, 73_728);
}

#[test]
fn an_ifb_names_its_owner_and_is_no_pods_link() {
    let owner = Owner::new("n".repeat(300), "0f".repeat(32), "eth0");
    let alias = ifb_alias(&owner);
    assert_eq!(alias.len(), 255);
    assert_eq!(ifb_owner(&alias), Some(owner.id()));
    assert_eq!(alias::parse(&alias), None);
    assert_eq!(ifb_owner(&alias::format(&owner, &[])), None);
    let name = ifb_name(owner.id());
    assert_eq!((name.len(), &name[..2], &name[2..]), (15, "pi", &owner.link_name()[2..]));
}

#[test]
fn each_direction_is_compared() {
    let wanted =
        Shaping { to_pod: Some(limit(80_000_000, None)), from_pod: Some(limit(8_000_000, Some(800_000))) };
    let state = |limit: &RateLimit| {
        let bucket = bucket(limit, 1500);
        let burst_ticks = u64::from(bucket.burst) * 1_000_000_000 / bucket.rate / 64;
        let burst_ticks = u32::try_from(burst_ticks).unwrap();
        TokenBucketState { rate: bucket.rate, burst_ticks, limit: bucket.limit }
    };
    let whole = ObservedShaping {
        to_pod: wanted.to_pod.as_ref().map(state),
        from_pod: wanted.from_pod.as_ref().map(state),
    };
    assert!(differences(&wanted, 1500, &whole).is_empty());
    assert_eq!(differences(&wanted, 9000, &whole), ["to the pod", "from the pod"][1..].to_vec());
    let lost = ObservedShaping { from_pod: None, ..whole.clone() };
    assert_eq!(differences(&wanted, 1500, &lost), ["from the pod"]);
    let foreign = Shaping { to_pod: None, ..wanted };
    assert_eq!(differences(&foreign, 1500, &whole), ["to the pod"]);
}

proptest! {
    #[test]
    fn every_bucket_lets_a_frame_pass_and_lets_it_wait(rate in 1_u64.., burst: Option<u64>, mtu in 68_u32..65_536) {
        let bucket = bucket(&limit(rate, burst), mtu);
        prop_assert!(bucket.rate > 0);
        prop_assert!(bucket.burst >= mtu + 14 && bucket.limit >= mtu + 14);
    }

    #[test]
    fn any_alias_is_read_without_a_panic(text in "\\PC{0,300}") {
        let _ = ifb_owner(&text);
    }
}
