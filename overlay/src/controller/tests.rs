use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn wish(live: bool) -> Event {
    Event::Wish { live, since: Duration::MAX }
}

/// A controller with a clock, and passes that take as long as they are told to.
struct Simulation {
    controller: Controller,
    now: Duration,
    passes: Vec<(Duration, Pass)>,
    is_running: bool,
}

impl Simulation {
    fn new() -> Self {
        let controller = Controller::new(Duration::ZERO);
        Self { controller, now: Duration::ZERO, passes: Vec::new(), is_running: false }
    }

    /// One that has a live wish and has settled.
    fn settled() -> Self {
        let mut simulation = Self::new();
        simulation.event(wish(true));
        simulation.run_until(1000 * MS, MS, Outcome::default());
        simulation.passes.clear();
        simulation
    }

    fn event(&mut self, event: Event) {
        self.handle(event);
    }

    fn handle(&mut self, event: Event) -> Action {
        let action = self.controller.handle(event, self.now);
        if let Action::Run(pass) = &action {
            assert!(!self.is_running, "two passes at once");
            self.is_running = true;
            self.passes.push((self.now, pass.clone()));
        }
        action
    }

    /// The pass that runs takes so long and ends so.
    fn end(&mut self, takes: Duration, outcome: Outcome) {
        self.now += takes;
        self.is_running = false;
        let action = self.handle(Event::Done { outcome, jitter: 1.0 });
        assert!(!matches!(action, Action::Run(_)), "a pass begins at once after another");
    }

    /// Lets time pass; each pass takes so long and ends so.
    fn run_until(&mut self, end: Duration, takes: Duration, outcome: Outcome) {
        loop {
            if self.is_running {
                self.end(takes, outcome);
            }
            if self.now >= end {
                return;
            }
            match self.handle(Event::Tick) {
                Action::Run(_) => {}
                Action::Wait(until) => {
                    assert!(until > self.now, "waits for what has passed");
                    self.now = until.min(end);
                }
                Action::End => panic!("nobody asked for an end"),
            }
        }
    }

    fn ran(&self) -> Vec<(u128, bool, Vec<Cause>)> {
        let ms = |(at, pass): &(Duration, Pass)| (at.as_millis(), pass.full, pass.causes.clone());
        self.passes.iter().map(ms).collect()
    }
}

#[test]
fn nothing_is_touched_before_there_is_a_wish() {
    let mut simulation = Simulation::new();
    simulation.event(Event::Changed(Cause::Link));
    simulation.run_until(60_000 * MS, MS, Outcome::default());
    assert!(!simulation.passes.is_empty());
    assert!(simulation.passes.iter().all(|(_, pass)| pass.known == Known::Nothing && pass.full));
}

#[test]
fn what_is_remembered_deletes_nothing_and_what_the_store_says_does() {
    let mut simulation = Simulation::new();
    simulation.event(wish(false));
    simulation.run_until(100 * MS, MS, Outcome::default());
    simulation.event(wish(true));
    simulation.run_until(200 * MS, MS, Outcome::default());
    // A store that is asked again from the start does not unsay what it said.
    simulation.event(wish(false));
    simulation.run_until(300 * MS, MS, Outcome::default());
    let known: Vec<Known> = simulation.passes.iter().map(|(_, pass)| pass.known).collect();
    assert_eq!(known, [Known::Remembered, Known::All, Known::All]);
}

#[test]
fn the_first_live_wish_is_a_full_pass() {
    let mut simulation = Simulation::new();
    simulation.event(wish(false));
    simulation.run_until(100 * MS, MS, Outcome::default());
    simulation.event(wish(true));
    simulation.run_until(200 * MS, MS, Outcome::default());
    let full: Vec<bool> = simulation.passes.iter().map(|(_, pass)| pass.full).collect();
    assert_eq!(full, [true, true], "what is not wished for is known by a look alone");
}

#[test]
fn a_wish_is_carried_out_at_once_and_without_a_look() {
    let mut simulation = Simulation::settled();
    simulation.event(wish(true));
    simulation.run_until(1100 * MS, MS, Outcome::default());
    assert_eq!(simulation.ran(), [(1000, false, vec![Cause::Wish])]);
}

#[test]
fn a_burst_of_wishes_is_few_passes() {
    let mut simulation = Simulation::settled();
    for _ in 0..1000 {
        simulation.event(wish(true));
        let end = simulation.now + MS / 10;
        simulation.run_until(end, 2 * MS, Outcome::default());
    }
    // The first at once, then one for each pause.
    assert!((10..=100).contains(&simulation.passes.len()), "{} passes", simulation.passes.len());
}

#[test]
fn changes_are_waited_for_and_not_for_ever() {
    let mut simulation = Simulation::settled();
    for _ in 0..40 {
        simulation.event(Event::Changed(Cause::Route));
        let end = simulation.now + MS;
        simulation.run_until(end, MS, Outcome::default());
    }
    simulation.event(Event::Changed(Cause::Link));
    simulation.run_until(1200 * MS, MS, Outcome::default());
    let ran = simulation.ran();
    assert_eq!(ran.first(), Some(&(1025, true, vec![Cause::Route])));
    assert_eq!(
        ran.last().map(|(_, full, causes)| (full, causes.as_slice())),
        Some((&true, &[Cause::Link, Cause::Route][..]))
    );
    assert!(ran.len() <= 3, "{ran:?}");
}

#[test]
fn a_change_is_repaired_within_its_time_while_others_never_rest() {
    let mut simulation = Simulation::settled();
    for _ in 0..5000 {
        simulation.event(Event::Changed(Cause::Route));
        let end = simulation.now + MS;
        simulation.run_until(end, 60 * MS, Outcome { operations: 1, ..Outcome::default() });
    }
    let begins: Vec<Duration> = simulation.passes.iter().map(|(at, _)| *at).collect();
    for pair in begins.windows(2) {
        let gap = pair[1] - pair[0];
        assert!((115 * MS..=150 * MS).contains(&gap), "half of the time is others', and no more: {gap:?}");
    }
}

#[test]
fn a_look_is_made_every_ten_seconds() {
    let mut simulation = Simulation::settled();
    simulation.run_until(61_000 * MS, MS, Outcome::default());
    let causes: Vec<_> = simulation.passes.iter().map(|(_, pass)| (pass.full, pass.causes.clone())).collect();
    assert_eq!(causes, vec![(true, vec![Cause::Time]); 6]);
}

#[test]
fn failures_are_tried_again_ever_later_and_by_a_full_look() {
    let mut simulation = Simulation::settled();
    simulation.event(wish(true));
    simulation.run_until(60_000 * MS, MS, Outcome { operations: 3, failures: 1, ..Outcome::default() });
    let begins: Vec<Duration> = simulation.passes.iter().map(|(at, _)| *at).collect();
    let gaps: Vec<u128> = begins.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(gaps[..8], [101, 201, 401, 801, 1601, 3201, 6401, 10_001]);
    assert!(simulation.passes[1..].iter().all(|(_, pass)| pass.full && pass.causes == [Cause::Retry]));
    // What is new is not put off by what fails.
    let now = simulation.now;
    simulation.event(wish(true));
    simulation.run_until(now + 10 * MS, MS, Outcome::default());
    let (at, pass) = simulation.passes.last().unwrap();
    assert_eq!((*at, pass.full), (now, true));
    let before = simulation.passes.len();
    simulation.run_until(now + 5000 * MS, MS, Outcome::default());
    assert_eq!(simulation.passes.len(), before, "all is well again");
}

#[test]
fn more_than_peers_is_left_to_a_full_pass_at_once() {
    let mut simulation = Simulation::settled();
    let Action::Run(fast) = simulation.handle(wish(true)) else { panic!("no pass") };
    assert!(!fast.full);
    let outcome = Outcome { was_too_much: true, ..Outcome::default() };
    simulation.is_running = false;
    let Action::Run(full) = simulation.handle(Event::Done { outcome, jitter: 0.0 }) else {
        panic!("no pass")
    };
    assert!(full.full);
    assert_eq!(full.since, fast.since, "the time that it takes is counted from the beginning");
}

#[test]
fn a_wish_waits_for_no_rest_after_a_full_pass() {
    let mut simulation = Simulation::settled();
    simulation.event(Event::Changed(Cause::Route));
    simulation.now += SETTLE;
    simulation.event(Event::Tick);
    simulation.end(90 * MS, Outcome::default());
    let ended = simulation.now;
    simulation.passes.clear();
    simulation.event(wish(true));
    simulation.run_until(ended + 300 * MS, MS, Outcome::default());
    assert_eq!(simulation.ran(), [((ended + PAUSE).as_millis(), false, vec![Cause::Wish])]);
}

#[test]
fn a_look_that_is_but_routine_stands_back_behind_a_wish_and_is_made_after_it() {
    let mut simulation = Simulation::settled();
    let Action::Wait(_) = simulation.handle(Event::Changed(Cause::Asked)) else { panic!("no settling") };
    simulation.now += SETTLE;
    let Action::Run(look) = simulation.handle(Event::Tick) else { panic!("no look") };
    assert!(look.full && look.yields);
    // A wish comes while it reads.
    simulation.now += 20 * MS;
    let wished = simulation.now;
    simulation.is_running = false;
    let given_up = Outcome { was_given_up: true, ..Outcome::default() };
    let Action::Wait(_) = simulation.handle(Event::Done { outcome: given_up, jitter: 0.0 }) else {
        panic!("what it was given up for has not been heard yet")
    };
    let Action::Run(fast) = simulation.handle(wish(true)) else { panic!("no pass") };
    assert_eq!((fast.full, fast.causes.as_slice(), fast.since), (false, &[Cause::Wish][..], wished));
    simulation.passes.clear();
    simulation.run_until(wished + 100 * MS, MS, Outcome::default());
    assert_eq!(simulation.ran().into_iter().map(|ran| ran.2).collect::<Vec<_>>(), [[Cause::Asked]]);
    assert_eq!(simulation.passes[0].1.since, look.since, "it has waited since then");
}

#[test]
fn wishes_without_end_do_not_put_a_look_off_for_ever() {
    let mut simulation = Simulation::settled();
    simulation.event(Event::Changed(Cause::Asked));
    let asked = simulation.now;
    while simulation.now < asked + 2 * STAND_BACK {
        simulation.event(wish(true));
        let end = simulation.now + 3 * MS;
        simulation.run_until(end, MS, Outcome::default());
    }
    let look = simulation.passes.iter().find(|(_, pass)| pass.full).expect("a look");
    assert!(look.0 < asked + STAND_BACK + 20 * MS, "{:?}", look.0);
    assert!(!look.1.yields, "this one is made to its end");
    assert!(
        look.1.causes.contains(&Cause::Wish) && look.0 - look.1.since < 20 * MS,
        "a wish is not late by it"
    );
}

#[test]
fn repairs_are_counted_by_what_explains_them_and_wishes_are_none() {
    let mut simulation = Simulation::settled();
    let outcome = Outcome { operations: 7, failures: 2, ..Outcome::default() };
    simulation.event(Event::Changed(Cause::Route));
    simulation.event(Event::Changed(Cause::Link));
    simulation.run_until(simulation.now + 50 * MS, MS, outcome);
    let expected = BTreeMap::from([(Cause::Link, 5)]);
    assert_eq!(simulation.controller.counters().repairs, expected);
    simulation.event(Event::Changed(Cause::Route));
    simulation.event(wish(true));
    simulation.run_until(simulation.now + 50 * MS, MS, outcome);
    assert_eq!(simulation.controller.counters().repairs, expected);
}

#[test]
fn an_end_waits_for_the_pass_and_begins_no_other() {
    let mut simulation = Simulation::settled();
    simulation.event(wish(true));
    assert!(simulation.is_running);
    assert!(matches!(simulation.handle(Event::Shutdown), Action::Wait(_)));
    simulation.event(wish(true));
    let outcome = Outcome::default();
    assert_eq!(simulation.handle(Event::Done { outcome, jitter: 0.0 }), Action::End);
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let cause =
        prop_oneof![Just(Cause::Link), Just(Cause::Route), Just(Cause::Overrun), Just(Cause::Underlay)];
    let event = prop_oneof![any::<bool>().prop_map(wish), cause.prop_map(Event::Changed), Just(Event::Tick),];
    proptest::collection::vec((0..200_u64, event), 1..60)
}

proptest! {
    #[test]
    fn whatever_happens_a_pass_follows_and_nothing_is_deleted_before_the_store_has_spoken(
        events in events(),
        takes in 0..300_u64,
        fails in proptest::collection::vec(any::<bool>(), 8),
    ) {
        let mut simulation = Simulation::new();
        let mut live = false;
        let mut wished = false;
        for (i, (after, event)) in events.into_iter().enumerate() {
            let failures = usize::from(fails[i % fails.len()]);
            let outcome = Outcome { operations: 1, failures, ..Outcome::default() };
            let end = simulation.now + after as u32 * MS;
            simulation.run_until(end, takes as u32 * MS, outcome);
            let before = simulation.passes.len();
            prop_assert!(simulation.passes.iter().all(|(_, pass)| live || pass.known != Known::All));
            prop_assert!(simulation.passes.iter().all(|(_, pass)| wished || pass.known == Known::Nothing));
            match event {
                Event::Wish { live: is_live, .. } => {
                    live |= is_live;
                    wished = true;
                }
                Event::Changed(_) => {}
                _ => continue,
            }
            let happened = simulation.now;
            simulation.event(event);
            // One begins soon: after the settling, and a rest as long as the last pass took.
            let end = happened + (takes as u32 + 1) * MS + takes as u32 * MS + SETTLE_AT_MOST + PAUSE;
            simulation.run_until(end, takes as u32 * MS, outcome);
            prop_assert!(simulation.passes[before..].iter().any(|(at, _)| *at >= happened));
        }
    }
}
