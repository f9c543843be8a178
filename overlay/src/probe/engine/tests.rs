//! An engine and a world that answers it, with a clock that is moved by hand.

use podwire_kernel::MacAddr;
use proptest::prelude::*;

use super::*;
use crate::probe::targets::Peer;

const DELAY: Duration = Duration::from_millis(3);

/// How packets to and from a peer fare.
#[derive(Debug, Clone)]
struct Path {
    is_up: bool,
    /// The largest packet that passes, in bytes with its IP header.
    mtu: u32,
    /// Those whose checksums are not done by software arrive, there and back.
    offload: [bool; 2],
    /// Who answers.
    node: String,
    instance: String,
    is_damaging: bool,
    /// Which part of the questions or answers is lost, in percent.
    loss: u64,
}

impl Path {
    fn good(node: &str) -> Self {
        let (node, instance) = (node.to_owned(), "i1".to_owned());
        Self { is_up: true, mtu: 9000, offload: [true; 2], node, instance, is_damaging: false, loss: 0 }
    }
}

struct World {
    engine: Engine,
    now: Instant,
    random: u64,
    paths: HashMap<IpAddr, Path>,
    /// Answers on their way.
    answers: Vec<(Instant, IpAddr, Vec<u8>)>,
    sent: Vec<(Instant, IpAddr)>,
    reports: Vec<ProbeReport>,
    switched_off: Vec<String>,
}

fn address(number: usize, family: IpFamily) -> IpAddr {
    let [.., high, low] = number.to_be_bytes();
    match family {
        IpFamily::Ipv4 => [10, high, low, 0].into(),
        IpFamily::Ipv6 => [0xfd00, u16::from_be_bytes([high, low]), 0, 0, 0, 0, 0, 0].into(),
    }
}

fn peer(number: usize, families: &[IpFamily]) -> Peer {
    let tunnel = Arc::new(TunnelEnd {
        device: "podwire.1".into(),
        source: MacAddr([2, 0, 0, 0, 0, 1]),
        destination: MacAddr([2, 0, 0, 0, 0, 2]),
    });
    let end = |family: &IpFamily| End {
        address: address(number, *family),
        mtu: 1450,
        tunnel: Some(tunnel.clone()),
    };
    Peer {
        node: format!("n{number:05}").into(),
        instance: "i1".into(),
        ends: families.iter().map(end).collect(),
    }
}

/// Any good generator will do (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl World {
    fn new(peers: Vec<Peer>, seed: u64) -> Self {
        let now = Instant::now();
        let paths =
            peers.iter().flat_map(|peer| peer.ends.iter().map(|end| (end.address, Path::good(&peer.node))));
        let mut world = Self {
            engine: Engine::new(Config::default()),
            now,
            random: seed,
            paths: paths.collect(),
            answers: Vec::new(),
            sent: Vec::new(),
            reports: Vec::new(),
            switched_off: Vec::new(),
        };
        world.update(peers);
        world
    }

    fn update(&mut self, peers: Vec<Peer>) {
        let targets = Targets { node: "here".into(), instance: "".into(), own: vec![], peers };
        let random = &mut self.random;
        self.engine.update(Arc::new(targets), self.now, &mut || next(random));
    }

    fn path(&mut self, number: usize) -> &mut Path {
        self.paths.get_mut(&address(number, IpFamily::Ipv4)).expect("a path")
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now <= end {
            self.answers.sort_by_key(|(at, ..)| *at);
            while self.answers.first().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, from, bytes) = self.answers.remove(0);
                let random = &mut self.random;
                self.engine.receive(from, &bytes, self.now, &mut || next(random));
            }
            loop {
                let random = &mut self.random;
                let Some(output) = self.engine.poll(self.now, &mut || next(random)) else { break };
                self.act(output);
            }
            let answer = self.answers.iter().map(|(at, ..)| *at).min();
            let next = [answer, self.engine.wake()].into_iter().flatten().min().expect("an interval");
            assert!(next > self.now, "it asks to be called again without a reason");
            self.now = next;
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Report(report) => self.reports.push(report),
            Output::SwitchOff(tunnel) => self.switched_off.push(tunnel.device.to_string()),
            Output::Send { to, message, as_frame, token: _ } => {
                self.sent.push((self.now, to));
                let lost = [next(&mut self.random), next(&mut self.random)];
                let path = &self.paths[&to];
                let question = Question::parse(&message).expect("a question");
                let length = u32::from(question.length) + if to.is_ipv4() { 28 } else { 48 };
                let has_offload = as_frame.is_none() && self.switched_off.is_empty();
                let arrives = path.is_up
                    && length <= path.mtu
                    && (path.offload[0] || !has_offload)
                    && (path.offload[1] || question.without_offload)
                    && lost.iter().all(|lost| lost % 100 >= path.loss);
                if arrives {
                    let answer = Answer {
                        token: question.token,
                        length: question.length,
                        node: path.node.clone(),
                        instance: path.instance.clone(),
                        is_damaged: path.is_damaging,
                    };
                    self.answers.push((self.now + DELAY, to, answer.bytes().expect("short enough")));
                }
            }
        }
    }

    /// The last report.
    fn last(&self) -> &ProbeReport {
        self.reports.last().expect("a report")
    }
}

const V4: &[IpFamily] = &[IpFamily::Ipv4];
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_good_path_is_asked_once_in_each_interval_and_once_in_a_while_for_its_size() {
    let mut world = World::new(vec![peer(1, &[IpFamily::Ipv4, IpFamily::Ipv6])], 1);
    world.run(MINUTE);
    let of = |family| world.reports.iter().filter(|report| report.family == family).collect::<Vec<_>>();
    for family in [IpFamily::Ipv4, IpFamily::Ipv6] {
        let reports = of(family);
        assert!((6..=8).contains(&reports.len()), "{}", reports.len());
        for report in reports {
            let expected = ProbeReport {
                node: "n00001".into(),
                family,
                state: PathState::Well,
                questions: vec![Outcome::Answered(DELAY)],
                rtt: Some(DELAY),
                largest: Some(1450),
                promised: 1450,
                loss: 0.0,
                problem: None,
            };
            assert_eq!(*report, expected);
        }
    }
    // One large question for each family.
    assert_eq!(world.sent.len() - world.engine.asked.len(), world.reports.len() + 2);
    assert_eq!(world.switched_off, [""; 0]);
}

#[test]
fn the_largest_packet_is_found_to_the_byte_and_found_again_when_the_path_changes() {
    let mut world = World::new(vec![peer(1, V4)], 1);
    for largest in [1449, 1400, 1280, 500] {
        world.path(1).mtu = largest;
        // Longer than any size counts as known.
        world.run(11 * MINUTE);
        let last = world.last();
        assert_eq!((last.state, last.largest), (PathState::TooSmall, Some(largest)));
        let problem = format!("packets of more than {largest} bytes do not pass, 1450 are promised");
        assert!(last.problem.as_ref().expect("a problem").starts_with(&problem));
    }
    world.path(1).mtu = 1450;
    world.run(2 * MINUTE);
    assert_eq!(
        (world.last().state, world.last().largest, &world.last().problem),
        (PathState::Well, Some(1450), &None)
    );
    // Another promise is tried at once.
    let mut other = peer(1, V4);
    other.ends[0].mtu = 1500;
    world.update(vec![other]);
    world.run(MINUTE);
    assert_eq!((world.last().state, world.last().largest), (PathState::TooSmall, Some(1450)));
}

#[test]
fn what_is_wrong_is_told_by_what_it_is() {
    type Case = (fn(&mut Path), PathState, &'static str);
    let cases: [Case; 6] = [
        (|path| path.is_up = false, PathState::Unreachable, "no answer to 3 questions"),
        (|path| path.node = "other".to_owned(), PathState::Misdirected, "\"other\" answers in its place"),
        (
            |path| path.instance = "i2".to_owned(),
            PathState::Misdirected,
            "\"n00001 (another installation of it)\" answers in its place",
        ),
        (
            |path| path.is_damaging = true,
            PathState::Damaged,
            "packets arrive with other bytes than were sent",
        ),
        (|path| path.offload[1] = false, PathState::PeerOffload, "packets get there, but those from there"),
        (|path| path.mtu = 400, PathState::Unreachable, "no answer"),
    ];
    for (harm, state, problem) in cases {
        let mut world = World::new(vec![peer(1, V4)], 1);
        harm(world.path(1));
        world.run(MINUTE);
        assert_eq!(world.last().state, state);
        assert!(world.last().problem.as_ref().expect("a problem").starts_with(problem), "{:?}", world.last());
        assert_eq!(world.switched_off, [""; 0], "{state:?}");
        *world.path(1) = Path::good("n00001");
        world.run(2 * MINUTE);
        assert_eq!((world.last().state, &world.last().problem), (PathState::Well, &None), "healed");
    }
}

#[test]
fn offload_that_is_broken_is_switched_off_once_and_the_path_is_well_after_that() {
    for back in [true, false] {
        let mut world = World::new(vec![peer(1, V4)], 1);
        world.path(1).offload = [false, back];
        world.run(MINUTE);
        assert_eq!(world.switched_off, ["podwire.1"]);
        if !back {
            // The other side does the same in its turn.
            assert_eq!(world.last().state, PathState::Unreachable);
            world.path(1).offload[1] = true;
            world.run(MINUTE);
        }
        assert_eq!((world.last().state, world.last().loss > 0.0), (PathState::Well, !back));
        let problem = world.last().problem.as_ref().expect("it stays told");
        assert!(
            problem.ends_with("checksum offload is broken below podwire.1, and has been switched off on it")
        );
        world.run(10 * MINUTE);
        assert_eq!(world.switched_off.len(), 1);
    }
}

#[test]
fn loss_alone_does_not_pass_for_broken_offload() {
    for loss in [10, 30] {
        let mut world = World::new((0..50).map(|number| peer(number, V4)).collect(), 7);
        world.paths.values_mut().for_each(|path| path.loss = loss);
        world.run(6 * MINUTE);
        assert!(world.reports.len() > 1500);
        assert_eq!(world.switched_off, [""; 0], "{loss} %");
        let loss_seen: f64 =
            world.reports.iter().map(|report| report.loss).sum::<f64>() / world.reports.len() as f64;
        let both_ways = 1.0 - (1.0 - loss as f64 / 100.0).powi(2);
        assert!((loss_seen - both_ways).abs() < 0.05, "{loss_seen} seen, {both_ways} there");
    }
}

#[test]
fn of_many_peers_a_few_are_asked_at_a_time_and_all_of_them_in_the_end() {
    let mut world = World::new((0..1000).map(|number| peer(number, V4)).collect(), 3);
    world.run(MINUTE);
    // Each the first time with a large question; 6 or 7 intervals, 16 peers in each.
    assert!((6 * 16..=7 * 32 + 32).contains(&world.sent.len()), "{}", world.sent.len());
    let mut times: Vec<_> = world.sent.iter().map(|(at, _)| *at).collect();
    times.dedup();
    assert!(times.len() > 90, "not all at once: {}", times.len());
    // Those that are not well are asked again in each interval, up to 16.
    world.paths.values_mut().for_each(|path| path.is_up = false);
    world.run(10 * MINUTE);
    world.sent.clear();
    world.run(10 * MINUTE);
    // 32 peers × (3 ordinary questions and one as a frame) in 60 intervals.
    assert!(world.sent.len() <= 61 * 32 * 4, "{}", world.sent.len());
    world.paths.values_mut().for_each(|path| path.is_up = true);
    world.reports.clear();
    world.run(40 * MINUTE);
    let seen: BTreeSet<_> = world.reports.iter().map(|report| report.node.clone()).collect();
    assert!(seen.len() > 900, "{}", seen.len());
}

#[test]
fn a_peer_that_joins_few_is_asked_soon_and_one_that_leaves_is_forgotten() {
    let mut world = World::new(vec![peer(1, V4)], 1);
    world.run(Duration::from_secs(1));
    world.paths.insert(address(2, IpFamily::Ipv4), Path::good("n00002"));
    world.update(vec![peer(1, V4), peer(2, V4)]);
    world.reports.clear();
    world.run(Duration::from_secs(3));
    assert!(world.reports.iter().any(|report| *report.node == *"n00002"));
    world.update(vec![peer(2, V4)]);
    world.run(Duration::from_secs(11));
    world.reports.clear();
    world.run(MINUTE);
    assert!(world.reports.iter().all(|report| *report.node == *"n00002"));
    assert_eq!(world.engine.watches.len(), 1);
    // None is asked, others are answered: by the responder.
    let mut silent = Engine::new(Config { interval: None, ..Config::default() });
    silent.update(world.engine.targets.clone(), world.now, &mut || 1);
    assert_eq!((silent.poll(world.now, &mut || 1), silent.wake()), (None, None));
}

#[test]
fn an_answer_counts_once_from_whom_was_asked_and_in_time() {
    let mut engine = Engine::new(Config::default());
    let (mut state, now) = (5, Instant::now());
    let targets = Targets { peers: vec![peer(1, V4)], ..Targets::default() };
    engine.update(Arc::new(targets), now, &mut || next(&mut state));
    let now = now + Duration::from_secs(5);
    let Some(Output::Send { to, message, token, .. }) = engine.poll(now, &mut || next(&mut state)) else {
        panic!("no question");
    };
    let length = Question::parse(&message).expect("a question").length;
    let answer = |token| {
        let (node, instance) = ("n00001".to_owned(), "i1".to_owned());
        Answer { token, length, node, instance, is_damaged: false }.bytes().expect("short enough")
    };
    let mut random = || next(&mut state);
    engine.receive(address(2, IpFamily::Ipv4), &answer(token), now, &mut random);
    engine.receive(to, &answer(token ^ 1), now, &mut random);
    engine.receive(to, &message, now, &mut random);
    assert_eq!(engine.poll(now, &mut random), None, "none of these is an answer");
    engine.receive(to, &answer(token), now + DELAY, &mut random);
    let large = engine.poll(now + DELAY, &mut random);
    assert!(matches!(&large, Some(Output::Send { message, .. }) if message.len() == 1422), "{large:?}");
    engine.receive(to, &answer(token), now + DELAY, &mut random);
    assert_eq!(engine.poll(now + DELAY, &mut random), None, "a second time");
    // What cannot be sent, because the device is smaller, is lost at once.
    let Some(Output::Send { token, .. }) = large else { panic!("no question") };
    engine.failed(token, now + DELAY, &mut random);
    assert!(matches!(engine.poll(now + DELAY, &mut random), Some(Output::Send { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens, each path has one question at most under way, and the engine goes on.
    #[test]
    fn anything_may_happen_at_any_time(
        seed: u64,
        steps in prop::collection::vec((0_usize..4, any::<u64>(), 1_u64..15_000), 1..25),
    ) {
        let peers = |count: u64| (0..1 + count as usize % 80).map(|number| peer(number, V4)).collect::<Vec<_>>();
        let mut world = World::new(peers(79), seed);
        for (kind, number, millis) in steps {
            let at = number as usize % 80;
            match kind {
                0 => world.update(peers(number)),
                1 => world.path(at).loss = number % 101,
                2 => world.path(at).offload = [number & 64 != 0, number & 128 != 0],
                _ => world.path(at).mtu = 300 + (number % 1500) as u32,
            }
            world.run(Duration::from_millis(millis));
            let engine = &world.engine;
            let asked: BTreeSet<_> = engine.asked.values().map(|asked| asked.address).collect();
            prop_assert_eq!(asked.len(), engine.asked.len());
            prop_assert_eq!(engine.deadlines.len(), engine.asked.len());
            let busy = engine.watches.values().filter(|watch| !watch.is_idle()).count();
            prop_assert_eq!(busy, asked.len());
            prop_assert!(engine.watches.len() <= engine.places.len());
        }
    }
}
