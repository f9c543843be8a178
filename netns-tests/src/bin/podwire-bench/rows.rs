//! The measurements: each has a node of its own and adds its lines to the report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use podwire_netns_tests::{LabError, Result};
use serde_json::json;

use crate::across;
use crate::full;
use crate::kubernetes;
use crate::relist;
use crate::report::{Report, Samples};
use crate::scale;
use crate::stage::{Contestant, Gives, Network, Slot, Stage};

/// How much is measured.
pub(crate) struct Size {
    /// Rounds of single calls; the contestants take turns within each.
    pub(crate) rounds: u32,
    /// Rounds of the measurements in which one round is many calls.
    pub(crate) few: u32,
    pub(crate) burst: u32,
    row: u32,
    pub(crate) crowd: u32,
    leases: u32,
    churn: u32,
}

impl Size {
    /// Everything: some twenty minutes.
    pub(crate) fn full() -> Self {
        Self { rounds: 60, few: 3, burst: 50, row: 200, crowd: 500, leases: 10_000, churn: 200 }
    }

    /// To see that it runs.
    pub(crate) fn quick() -> Self {
        Self { rounds: 3, few: 1, burst: 10, row: 10, crowd: 20, leases: 500, churn: 10 }
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.rounds < 60
    }
}

/// A measurement.
pub(crate) type Measure = fn(&Size, &mut Report) -> Result<()>;

/// Measurements that make one pair of tables.
pub(crate) struct Group {
    /// What it is called, also in the marks of the file that the tables are put into.
    pub(crate) name: &'static str,
    /// By the names that `--only` takes.
    pub(crate) measurements: &'static [(&'static str, Measure)],
}

/// All measurements.
pub(crate) const GROUPS: [Group; 5] = [
    Group {
        name: "interfaces",
        measurements: &[
            ("single", single),
            ("burst", burst),
            ("row", row),
            ("gc", gc),
            ("crowd", crowd),
            ("churn", churn),
            ("leases", leases),
            ("fsync", fsync),
            ("size", size),
        ],
    },
    Group {
        name: "traffic",
        measurements: &[
            ("full", full::single),
            ("full-burst", full::burst),
            ("ports", full::crowd),
            ("traffic", full::traffic),
        ],
    },
    Group {
        name: "nodes",
        measurements: &[
            ("tunnel", across::tunnel),
            ("services", across::services),
            ("bridge", across::bridge),
        ],
    },
    Group {
        name: "scale",
        measurements: &[("cold", scale::cold), ("change", scale::change), ("standing", scale::standing)],
    },
    Group {
        name: "kubernetes",
        measurements: &[("heartbeats", kubernetes::heartbeats), ("relist", relist::relist)],
    },
];

use Contestant::{Agent, Alone, Floor, Reference};

/// Samples by what was measured and of whom.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<(&'static str, Contestant), Vec<f64>>);

impl Table {
    pub(crate) fn add(&mut self, what: &'static str, who: Contestant, took: Duration) {
        self.0.entry((what, who)).or_default().push(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn of(&self, what: &'static str, who: Contestant) -> Result<Samples> {
        Samples::new(self.0.get(&(what, who)).cloned().unwrap_or_default())
    }

    pub(crate) fn report(&self, title: &str, report: &mut Report) -> Result<()> {
        for ((what, who), samples) in &self.0 {
            report.figures(&format!("{title}{what}, {}", who.name()), &Samples::new(samples.clone())?);
        }
        Ok(())
    }
}

/// The contestants in an order that changes from round to round, so that nobody always follows the same one.
pub(crate) fn turns<T: Copy>(contestants: &[T], round: u32) -> Vec<T> {
    let mut turns = contestants.to_vec();
    turns.rotate_left(round as usize % contestants.len().max(1));
    turns
}

/// A stage on which each contestant has one network, and the agent runs.
pub(crate) fn ready(
    contestants: &[Contestant],
    purpose: &str,
    gives: Gives,
) -> Result<(Stage, BTreeMap<Contestant, Network>)> {
    let mut stage = Stage::new()?;
    let mut networks = BTreeMap::new();
    for &who in contestants {
        let network = stage.network(who, purpose, "s", gives)?;
        if who == Agent {
            stage.agent(&network, &[])?;
        }
        networks.insert(who, network);
    }
    // Warm: programs in the page cache, bridges and stores made.
    for network in networks.values() {
        let slot = stage.slot()?;
        for verb in ["ADD", "DEL", "ADD", "DEL"] {
            stage.one(stage.call(network, verb, &slot)?)?;
        }
    }
    stage.barrier()?;
    Ok((stage, networks))
}

pub(crate) fn network(networks: &BTreeMap<Contestant, Network>, who: Contestant) -> Result<&Network> {
    networks.get(&who).ok_or_else(|| LabError::new(format!("{} has no network", who.name())))
}

pub(crate) fn jobs(
    stage: &Stage,
    network: &Network,
    verb: &str,
    slots: &[Slot],
) -> Result<Vec<crate::stage::Job>> {
    slots.iter().map(|slot| stage.call(network, verb, slot)).collect()
}

/// One ADD, one CHECK, one DEL; STATUS, VERSION and a program that does nothing.
fn single(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::ALL, "one", Gives::Link)?;
    let slots: BTreeMap<_, _> =
        Contestant::ALL.iter().map(|&who| Ok((who, stage.slot()?))).collect::<Result<_>>()?;
    let mut table = Table::default();
    for round in 0..size.rounds {
        for who in turns(&Contestant::ALL, round) {
            let network = network(&networks, who)?;
            let Some(slot) = slots.get(&who) else { continue };
            let (took, added) = stage.one(stage.call(network, "ADD", slot)?)?;
            table.add("ADD", who, took);
            if who != Floor {
                table.add("CHECK", who, stage.one(stage.check(network, slot, &added)?)?.0);
            }
            // How long the kernel's wait is depends on what it had to do before: the same for all.
            stage.barrier()?;
            let took = stage.one(stage.call(network, "DEL", slot)?)?.0;
            table.add("DEL", who, took);
            if let Some(link) = added["interfaces"][1]["name"].as_str()
                && stage.has_link(link)?
            {
                return Err(LabError::new(format!("{}: DEL returned while {link} was there", who.name())));
            }
            stage.barrier()?;
            if Contestant::OURS.contains(&who) {
                table.add("STATUS", who, stage.one(stage.call_of_none(network, "STATUS", &json!({}))?)?.0);
            }
            if who != Floor {
                table.add("VERSION", who, stage.one(stage.call_of_none(network, "VERSION", &json!({}))?)?.0);
            }
            if who == Floor {
                table.add("an empty program", who, stage.one(stage.empty()?)?.0);
            }
        }
    }
    let of = |what, who| table.of(what, who);
    report.compare(
        "ADD with the agent, to the reference",
        Some(0.12),
        &of("ADD", Agent)?,
        &of("ADD", Reference)?,
    );
    report.compare("ADD with the agent, to the floor", Some(2.0), &of("ADD", Agent)?, &of("ADD", Floor)?);
    report.compare(
        "ADD without the agent, to the reference",
        Some(0.7),
        &of("ADD", Alone)?,
        &of("ADD", Reference)?,
    );
    report.compare(
        "DEL with the agent, to the reference",
        Some(0.15),
        &of("DEL", Agent)?,
        &of("DEL", Reference)?,
    );
    report.compare(
        "DEL without the agent, to the reference",
        Some(0.8),
        &of("DEL", Alone)?,
        &of("DEL", Reference)?,
    );
    report.compare("DEL without the agent, to the floor", Some(1.15), &of("DEL", Alone)?, &of("DEL", Floor)?);
    for who in Contestant::OURS {
        let name = who.name();
        report.compare(
            &format!("CHECK, {name}, to the reference"),
            Some(0.3),
            &of("CHECK", who)?,
            &of("CHECK", Reference)?,
        );
        let empty = of("an empty program", Floor)?;
        report.compare(
            &format!("STATUS, {name}, to an empty program"),
            Some(3.0),
            &of("STATUS", who)?,
            &empty,
        );
    }
    report.compare(
        "VERSION, to an empty program",
        Some(3.0),
        &of("VERSION", Alone)?,
        &of("an empty program", Floor)?,
    );
    table.report("", report)
}

/// Many at once, until all are done.
fn burst(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::ALL, "at", Gives::Link)?;
    let slots = stage.slots(size.burst)?;
    let mut table = Table::default();
    for round in 0..size.rounds {
        for who in turns(&Contestant::ALL, round) {
            let network = network(&networks, who)?;
            table.add("ADD", who, stage.at_once(jobs(&stage, network, "ADD", &slots)?)?);
            table.add("DEL", who, stage.at_once(jobs(&stage, network, "DEL", &slots)?)?);
            stage.barrier()?;
        }
    }
    let of = |what, who| table.of(what, who);
    let count = size.burst;
    report.compare(
        &format!("{count} ADDs at once, with the agent, to the reference"),
        Some(0.15),
        &of("ADD", Agent)?,
        &of("ADD", Reference)?,
    );
    for (verb, who) in [("ADD", Alone), ("DEL", Agent), ("DEL", Alone)] {
        let what = format!(
            "{count} {verb}s at once, {}, to the reference",
            who.name().trim_start_matches("podwire ")
        );
        report.compare(&what, None, &of(verb, who)?, &of(verb, Reference)?);
    }
    table.report(&format!("{count} at once: "), report)
}

/// Many, one after the other.
fn row(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::ALL, "row", Gives::Link)?;
    let slots = stage.slots(size.row)?;
    let mut table = Table::default();
    for round in 0..size.few {
        for who in turns(&Contestant::ALL, round) {
            let network = network(&networks, who)?;
            table.add("ADD", who, stage.in_a_row(jobs(&stage, network, "ADD", &slots)?)?);
            table.add("DEL", who, stage.in_a_row(jobs(&stage, network, "DEL", &slots)?)?);
            stage.barrier()?;
        }
    }
    for (verb, who, goal) in
        [("ADD", Agent, 0.12), ("ADD", Alone, 0.7), ("DEL", Agent, 0.15), ("DEL", Alone, 0.8)]
    {
        let how = who.name().trim_start_matches("podwire ");
        let what = format!("{} {verb}s in a row, {how}, to the reference", size.row);
        report.compare(&what, Some(goal), &table.of(verb, who)?, &table.of(verb, Reference)?);
    }
    table.report(&format!("{} in a row: ", size.row), report)
}

/// GC of dead pods, whose interfaces are still there, and as many single DELs.
fn gc(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::PLUGINS, "gc", Gives::Link)?;
    let slots = stage.slots(size.crowd / 5)?;
    let mut table = Table::default();
    for round in 0..size.few * 2 {
        for who in turns(&Contestant::PLUGINS, round) {
            let network = network(&networks, who)?;
            stage.in_a_row(jobs(&stage, network, "ADD", &slots)?)?;
            table.add("single DELs", who, stage.in_a_row(jobs(&stage, network, "DEL", &slots)?)?);
            stage.barrier()?;
            if who == Reference {
                continue;
            }
            stage.in_a_row(jobs(&stage, network, "ADD", &slots)?)?;
            let call = stage.call_of_none(network, "GC", &json!({ "cni.dev/valid-attachments": [] }))?;
            table.add("GC", who, stage.one(call)?.0);
            let left = stage.ports(network)?;
            if left != 0 {
                return Err(LabError::new(format!(
                    "{}: GC returned while the bridge had {left} ports",
                    who.name()
                )));
            }
            stage.barrier()?;
        }
    }
    for who in Contestant::OURS {
        let what = format!("GC of {} dead pods, {}, to as many single DELs", slots.len(), who.name());
        report.compare(&what, Some(0.1), &table.of("GC", who)?, &table.of("single DELs", who)?);
        let what = format!("GC of {} dead pods, {}, to the reference's single DELs", slots.len(), who.name());
        report.compare(&what, None, &table.of("GC", who)?, &table.of("single DELs", Reference)?);
    }
    table.report(&format!("{} dead pods: ", slots.len()), report)
}

/// ADD with many pods on the bridge and with none.
fn crowd(size: &Size, report: &mut Report) -> Result<()> {
    let mut grown = BTreeMap::new();
    for who in Contestant::PLUGINS {
        let mut stage = Stage::new()?;
        let networks =
            [stage.network(who, "none", "s", Gives::Link)?, stage.network(who, "many", "s", Gives::Link)?];
        let [none, many] = &networks;
        if who == Agent {
            stage.agent(none, &[])?;
        }
        let crowd = stage.slots(size.crowd)?;
        stage.in_a_row(jobs(&stage, many, "ADD", &crowd)?)?;
        let slot = stage.slot()?;
        let mut table = Table::default();
        for round in 0..size.rounds + 2 {
            for (network, what) in turns(&[(none, "none"), (many, "many")], round) {
                let took = stage.one(stage.call(network, "ADD", &slot)?)?.0;
                stage.one(stage.call(network, "DEL", &slot)?)?;
                stage.barrier()?;
                // The first two make the bridge and warm up.
                if round >= 2 {
                    table.add(what, who, took);
                }
            }
        }
        let (without, with) = (table.of("none", who)?, table.of("many", who)?);
        report.figures(&format!("ADD with no pod on the bridge, {}", who.name()), &without);
        report.figures(&format!("ADD with {} pods on the bridge, {}", size.crowd, who.name()), &with);
        let what = format!("ADD with {} pods on the bridge, {}, to none", size.crowd, who.name());
        report.compare(&what, (who != Reference).then_some(1.9), &with, &without);
        grown.insert(who, with.median() - without.median());
    }
    let reference = grown.get(&Reference).copied().unwrap_or(f64::NAN);
    for who in Contestant::OURS {
        let mine = grown.get(&who).copied().unwrap_or(f64::NAN);
        let what =
            format!("what {} pods on the bridge add to an ADD, {}, to the reference", size.crowd, who.name());
        report.ratio(&what, Some(0.5), mine, reference, "ms");
    }
    Ok(())
}

/// DEL and ADD of the same owners again and again, until the kernel has ended all that it was left to do.
fn churn(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::ALL, "churn", Gives::Link)?;
    let mut owners = BTreeMap::new();
    for who in Contestant::ALL {
        let slots = stage.slots(10)?;
        stage.in_a_row(jobs(&stage, network(&networks, who)?, "ADD", &slots)?)?;
        owners.insert(who, slots);
    }
    let mut table = Table::default();
    for round in 0..size.few {
        for who in turns(&Contestant::ALL, round) {
            let network = network(&networks, who)?;
            let mut calls = Vec::new();
            for slot in owners.get(&who).into_iter().flatten().cycle().take(size.churn as usize) {
                calls.push(stage.call(network, "DEL", slot)?);
                calls.push(stage.call(network, "ADD", slot)?);
            }
            stage.barrier()?;
            let took = stage.in_a_row(calls)?;
            let rest = stage.barrier()?;
            table.add("DEL + ADD", who, took + rest);
            table.add("of which the kernel's rest", who, rest);
        }
    }
    for who in Contestant::OURS {
        let how = who.name().trim_start_matches("podwire ");
        let what = format!("{} × (DEL + ADD) of the same owners, {how}, to the reference", size.churn);
        report.compare(&what, Some(0.5), &table.of("DEL + ADD", who)?, &table.of("DEL + ADD", Reference)?);
    }
    table.report(&format!("{} × ", size.churn), report)
}

/// ADD with many leases in the store and with few.
fn leases(size: &Size, report: &mut Report) -> Result<()> {
    for who in Contestant::PLUGINS {
        let mut stage = Stage::new()?;
        let mut few = stage.network(who, "few", "few", Gives::Link)?;
        let mut many = stage.network(who, "many", "many", Gives::Link)?;
        stage.fill(&mut few, 10)?;
        stage.fill(&mut many, size.leases)?;
        let slot = stage.slot()?;
        for network in [&few, &many] {
            if who == Agent {
                stage.agent(network, &[])?;
            }
            // The first call imports the directory.
            for verb in ["ADD", "DEL", "ADD", "DEL"] {
                stage.one(stage.call(network, verb, &slot)?)?;
            }
        }
        let mut table = Table::default();
        for round in 0..size.rounds {
            for (network, what) in turns(&[(&few, "few"), (&many, "many")], round) {
                table.add(what, who, stage.one(stage.call(network, "ADD", &slot)?)?.0);
                stage.one(stage.call(network, "DEL", &slot)?)?;
                stage.barrier()?;
            }
        }
        let (few, many) = (table.of("few", who)?, table.of("many", who)?);
        report.figures(&format!("ADD with 10 leases, {}", who.name()), &few);
        report.figures(&format!("ADD with {} leases, {}", size.leases, who.name()), &many);
        let what = format!("ADD with {} leases in the store, {}, to 10", size.leases, who.name());
        report.compare(&what, (who != Reference).then_some(1.2), &many, &few);
    }
    Ok(())
}

/// ADD with time added to each fdatasync, as a slow disk does.
fn fsync(size: &Size, report: &mut Report) -> Result<()> {
    const INSIDE: &str = "/run/hooked";
    let built = std::env::var_os("PODWIRE_BENCH_HOOKED").map(PathBuf::from).ok_or_else(|| {
        LabError::new("PODWIRE_BENCH_HOOKED names no programs that can be delayed: scripts/bench builds them")
    })?;
    for who in Contestant::OURS {
        let mut stage = Stage::with_programs(INSIDE.into(), &[(built.clone(), INSIDE.into())])?;
        let slot = stage.slot()?;
        let mut networks = Vec::new();
        for (delay, what) in [("0", "no delay"), ("2", "2 ms"), ("10", "10 ms")] {
            let mut network = stage.network(who, &format!("d{delay}"), &format!("d{delay}"), Gives::Link)?;
            let env = ("PODWIRE_STEP_DELAY", format!("commit-flushed:{delay}"));
            if who == Agent {
                stage.agent(&network, &[(env.0, &env.1)])?;
            } else {
                network.env.push((env.0.into(), env.1));
            }
            for verb in ["ADD", "DEL"] {
                stage.one(stage.call(&network, verb, &slot)?)?;
            }
            networks.push((network, what));
        }
        let mut table = Table::default();
        let networks: Vec<_> = networks.iter().collect();
        for round in 0..size.rounds {
            for (network, what) in turns(&networks, round) {
                table.add(what, who, stage.one(stage.call(network, "ADD", &slot)?)?.0);
                stage.one(stage.call(network, "DEL", &slot)?)?;
                stage.barrier()?;
            }
        }
        if table.of("10 ms", who)?.median() < 10.0 {
            return Err(LabError::new(
                "an ADD took less than the delay of its fdatasync: these programs have no delay",
            ));
        }
        for what in ["2 ms", "10 ms"] {
            let line = format!("ADD with {what} added to each fdatasync, {}, to none", who.name());
            report.compare(&line, None, &table.of(what, who)?, &table.of("no delay", who)?);
        }
        table.report("ADD, added to each fdatasync: ", report)?;
    }
    Ok(())
}

/// Peak memory of an ADD, and the size of the program.
fn size(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::PLUGINS, "mem", Gives::Link)?;
    for who in Contestant::PLUGINS {
        let network = network(&networks, who)?;
        let mut most = 0;
        for _ in 0..size.rounds.min(10) {
            let slot = stage.slot()?;
            most = most.max(stage.peak(stage.call(network, "ADD", &slot)?)?);
            stage.one(stage.call(network, "DEL", &slot)?)?;
        }
        let goal = Contestant::OURS.contains(&who).then_some(8.0);
        report.amount(&format!("peak memory of one ADD, {}", who.name()), goal, most as f64 / 1024.0, "MiB");
    }
    for (program, goal) in [("podwire", Some(6.0)), ("podwire-ipam", None), ("podwired", None)] {
        let path = podwire_netns_tests::dist_dir().join(program);
        let bytes =
            std::fs::metadata(&path).map_err(LabError::because(format!("look at {}", path.display())))?.len();
        report.amount(&format!("size of {program}"), goal, bytes as f64 / 1_048_576.0, "MiB");
    }
    Ok(())
}
