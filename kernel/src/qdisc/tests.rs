use proptest::prelude::*;

use super::*;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A token bucket as Linux 6.18 answers for 100 Mbit/s, 625,000 bytes: recorded.
fn bucket_of_the_kernel(rate: u32, ticks: u32, rate64: Option<u64>) -> Vec<u8> {
    let mut parameters = words(&[0x0100, 0, rate, 0, 0, 0]);
    parameters.extend(words(&[312_500, ticks, 0]));
    let mut options = attribute(1, &parameters);
    if let Some(rate) = rate64 {
        options.extend(attribute(4, &rate.to_ne_bytes()));
    }
    let mut payload = words(&[0, 7, HANDLE, ROOT, 2]);
    payload.extend(attribute(1, b"tbf\0"));
    payload.extend(attribute(2, &options));
    payload
}

#[test]
fn a_bucket_is_read_and_its_size_compared_in_time() {
    let bucket = TokenBucket { rate: 12_500_000, burst: 625_000, limit: 312_500 };
    // 50 ms in ticks of 64 ns.
    let qdisc = Qdisc::parse(&bucket_of_the_kernel(12_500_000, 781_250, None)).expect("a qdisc");
    assert_eq!((qdisc.ifindex, qdisc.handle, qdisc.kind.as_str()), (7, HANDLE, "tbf"));
    let state = qdisc.bucket.expect("a bucket");
    assert_eq!(state, TokenBucketState { rate: 12_500_000, burst_ticks: 781_250, limit: 312_500 });
    assert!(bucket.is_shown_as(&state));
    assert!(bucket.is_shown_as(&TokenBucketState { burst_ticks: 781_249, ..state }));
    assert!(!bucket.is_shown_as(&TokenBucketState { burst_ticks: 700_000, ..state }));
    assert!(!bucket.is_shown_as(&TokenBucketState { rate: 12_500_001, ..state }));
    assert!(!bucket.is_shown_as(&TokenBucketState { limit: 1, ..state }));
    // 40 Gbit/s fit no 32 bits.
    let wide = Qdisc::parse(&bucket_of_the_kernel(u32::MAX, 1, Some(5_000_000_000))).expect("a qdisc");
    assert_eq!(wide.bucket.map(|bucket| bucket.rate), Some(5_000_000_000));
    // The time for 512 MB at 1 Mbit/s overflows: 4096 s are 2^32 ticks 14 times.
    let endless = TokenBucket { rate: 125_000, burst: 512_000_000, limit: 312_500 };
    #[expect(clippy::cast_possible_truncation, reason = "as the kernel does")]
    let burst_ticks = (4_096_u64 * 1_000_000_000 / 64) as u32;
    assert!(endless.is_shown_as(&TokenBucketState { rate: 125_000, burst_ticks, limit: 312_500 }));
}

#[test]
fn only_filters_that_hand_every_packet_on_count_as_such() {
    let filter = |mask: u32, kind: &[u8], action: u32| {
        let mut selector = words(&[0x0001_0001, 0, 0, 0]);
        selector.extend(words(&[mask, 0, 0, 0]));
        let mut mirred = attribute(1, kind);
        mirred.extend(attribute(2, &attribute(2, &words(&[1, 0, 4, 1, 1, action, 42]))));
        let mut options = attribute(5, &selector);
        options.extend(attribute(7, &attribute(1, &mirred)));
        let mut payload =
            words(&[0, 7, 0x8000_0800, INGRESS, u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL)]);
        payload.extend(attribute(1, b"u32\0"));
        payload.extend(attribute(2, &options));
        let filter = Filter::parse(&payload).expect("a filter");
        assert_eq!((filter.ifindex, filter.priority), (7, PRIORITY));
        (filter.is_match_all, filter.redirect)
    };
    assert_eq!(filter(0, b"mirred\0", 1), (true, Some(42)));
    assert_eq!(filter(0xffff_0000, b"mirred\0", 1), (false, Some(42)));
    assert_eq!(filter(0, b"mirred\0", 2), (true, None));
    assert_eq!(filter(0, b"gact\0", 1), (true, None));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..120) {
        let _ = (Qdisc::parse(&bytes), Filter::parse(&bytes));
        let whole = bucket_of_the_kernel(1, 2, Some(3));
        let _ = Qdisc::parse(&whole[..cut.min(whole.len())]);
    }

    #[test]
    fn no_measures_make_the_comparison_panic(rate: u64, burst: u32, limit: u32, burst_ticks: u32) {
        let bucket = TokenBucket { rate, burst, limit };
        let _ = bucket.is_shown_as(&TokenBucketState { rate, burst_ticks, limit });
        let _ = create_bucket(1, "x", &bucket);
    }
}
