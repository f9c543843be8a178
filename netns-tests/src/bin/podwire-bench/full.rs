//! The measurements of pods with masquerade, host ports and a rate each way.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use podwire_netns_tests::{LabError, Pod, Result};

use crate::report::{Report, Samples};
use crate::rows::{Size, Table, jobs, network, ready, turns};
use crate::stage::{Contestant, Gives, Network, OUTSIDE, PODS_PORTS, Slot, Stage, UPLINK, Way};

use Contestant::{Agent, Alone, Chain, Floor};

/// What the lines call it.
const FULL: &str = "masquerade, 2 ports and shaping";

fn how(who: Contestant) -> &'static str {
    who.name().trim_start_matches("podwire ")
}

/// One ADD and one DEL with everything.
pub(crate) fn single(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::FULL, "full", Gives::Everything)?;
    let slots: BTreeMap<_, _> =
        Contestant::FULL.iter().map(|&who| Ok((who, stage.slot()?))).collect::<Result<_>>()?;
    let mut table = Table::default();
    for round in 0..size.rounds {
        for who in turns(&Contestant::FULL, round) {
            let (network, Some(slot)) = (network(&networks, who)?, slots.get(&who)) else { continue };
            table.add("ADD", who, stage.one(stage.call(network, "ADD", slot)?)?.0);
            if round == 0 {
                expect_shaped(&stage, who)?;
            }
            stage.barrier()?;
            table.add("DEL", who, stage.one(stage.call(network, "DEL", slot)?)?.0);
            stage.barrier()?;
        }
    }
    for (who, to, goals) in [
        (Agent, Chain, [Some(0.06), Some(0.3)]),
        (Agent, Floor, [Some(4.0), None]),
        (Alone, Chain, [None, None]),
        (Alone, Floor, [None, None]),
    ] {
        for (verb, goal) in ["ADD", "DEL"].into_iter().zip(goals) {
            let to_whom = if to == Floor { "the floor" } else { to.name() };
            let what = format!("{verb} with {FULL}, {}, to {to_whom}", how(who));
            report.compare(&what, goal, &table.of(verb, who)?, &table.of(verb, to)?);
        }
    }
    table.report(&format!("with {FULL}: "), report)
}

/// A contestant that makes no queues would have an easy time.
fn expect_shaped(stage: &Stage, who: Contestant) -> Result<()> {
    match stage.buckets()? {
        2 => Ok(()),
        count => Err(LabError::new(format!("{}: a shaped pod has {count} token buckets, not 2", who.name()))),
    }
}

/// Many at once with everything, until all are done.
pub(crate) fn burst(size: &Size, report: &mut Report) -> Result<()> {
    let (stage, networks) = ready(&Contestant::FULL, "fat", Gives::Everything)?;
    let slots = stage.slots(size.burst)?;
    let mut table = Table::default();
    for round in 0..size.few {
        for who in turns(&Contestant::FULL, round) {
            let network = network(&networks, who)?;
            table.add("ADD", who, stage.at_once(jobs(&stage, network, "ADD", &slots)?)?);
            table.add("DEL", who, stage.at_once(jobs(&stage, network, "DEL", &slots)?)?);
            stage.barrier()?;
        }
    }
    let count = size.burst;
    for (verb, who, goal) in
        [("ADD", Agent, Some(0.06)), ("ADD", Alone, None), ("DEL", Agent, None), ("DEL", Alone, None)]
    {
        let what = format!("{count} {verb}s with {FULL} at once, {}, to the reference chain", how(who));
        report.compare(&what, goal, &table.of(verb, who)?, &table.of(verb, Chain)?);
    }
    table.report(&format!("{count} with {FULL} at once: "), report)
}

/// A network of one contestant alone on a stage, and pods on it.
struct Crowd {
    stage: Stage,
    network: Network,
    pods: Vec<Slot>,
}

impl Crowd {
    fn new(who: Contestant, purpose: &str, count: u32, gives: Gives) -> Result<Self> {
        let mut stage = Stage::new()?;
        let network = stage.network(who, purpose, "s", gives)?;
        if who == Agent {
            stage.agent(&network, &[])?;
        }
        let pods = stage.slots(count)?;
        stage.in_a_row(jobs(&stage, &network, "ADD", &pods)?)?;
        stage.barrier()?;
        Ok(Self { stage, network, pods })
    }
}

/// ADD with everything where many pods have ports, and where as many have none.
pub(crate) fn crowd(size: &Size, report: &mut Report) -> Result<()> {
    for who in Contestant::OURS {
        let (bare, with_ports) = ("none", "2 each");
        let crowds = [(bare, Gives::Link), (with_ports, Gives::Ports)].map(|(what, gives)| {
            let crowd = Crowd::new(who, "crowd", size.crowd, gives)?;
            let slot = crowd.stage.slot()?;
            let network = crowd.network.giving(Gives::Everything);
            Ok((what, crowd, network, slot))
        });
        let crowds = crowds.into_iter().collect::<Result<Vec<_>>>()?;
        let mut table = Table::default();
        for round in 0..size.rounds + 2 {
            for (what, Crowd { stage, .. }, network, slot) in turns(&crowds.iter().collect::<Vec<_>>(), round)
            {
                let took = stage.one(stage.call(network, "ADD", slot)?)?.0;
                stage.one(stage.call(network, "DEL", slot)?)?;
                stage.barrier()?;
                // The first two warm up.
                if round >= 2 {
                    table.add(what, who, took);
                }
            }
        }
        let count = size.crowd;
        let what =
            format!("ADD with {count} pods × 2 ports present, {}, to {count} pods without ports", how(who));
        let goal = (who == Agent).then_some(1.15);
        report.compare(&what, goal, &table.of(with_ports, who)?, &table.of(bare, who)?);
        table.report(&format!("ADD with {FULL}, {count} pods present, their ports: "), report)?;
    }
    Ok(())
}

/// What is measured of traffic: the line's words, the meter's word, and what turns its figure into the table's.
const TRAFFIC: [(&str, &str, f64, &str); 2] =
    [("throughput", "stream", 8e-9, "Gbit/s"), ("connections", "connect", 1.0, "/s")];

/// Throughput and connections per second, out of a pod and in by a port of the node, with many ports and with few.
pub(crate) fn traffic(size: &Size, report: &mut Report) -> Result<()> {
    let (rounds, time) = if size.is_quick() { (1, 100) } else { (7, 500) };
    let few = 5;
    let mut sides = Vec::new();
    for (who, count) in [(Chain, few), (Agent, size.crowd)] {
        let crowd = Crowd::new(who, "way", count, Gives::Ports)?;
        let outside = crowd.stage.outside()?;
        sides.push((who, crowd, outside));
    }
    let mut measured = BTreeMap::<_, Vec<f64>>::new();
    // Neighbours and routes are found in a round that does not count.
    for round in 0..=rounds {
        for (out, meter) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
            let (_, word, scale, _) = TRAFFIC[meter];
            for (who, crowd, outside) in turns(&sides.iter().collect::<Vec<_>>(), round) {
                let rate = measure(crowd, outside, out, word, Duration::from_millis(time))
                    .map_err(LabError::because(who.name()))?;
                if round > 0 {
                    measured.entry((out, meter, *who)).or_default().push(rate * scale);
                }
            }
        }
    }
    let ways = [(true, "pod → outside, masqueraded"), (false, "outside → host port")];
    for (out, way) in ways {
        for (meter, (what, _, _, unit)) in TRAFFIC.into_iter().enumerate() {
            let of = |who| measured.get(&(out, meter, who)).cloned().unwrap_or_default();
            let (ours, theirs) = (of(Agent), of(Chain));
            let line = format!(
                "{way}: {what} per CPU with {} ports present, to the reference's with {}",
                size.crowd * 2,
                few * 2
            );
            report.at_least(&line, 1.0, &ours, &theirs, unit)?;
            for (who, samples) in [(Chain, theirs), (Agent, ours)] {
                report.figures_in(&format!("{way}: {what}, {}", who.name()), unit, &Samples::new(samples)?);
            }
        }
    }
    Ok(())
}

/// One run of the meter with the pod in the middle of a crowd: out of it, or in by its port of the node.
fn measure(crowd: &Crowd, outside: &Pod, out: bool, word: &str, time: Duration) -> Result<f64> {
    let slot = crowd
        .pods
        .get(crowd.pods.len() / 2)
        .ok_or_else(|| LabError::new("nobody is there to be measured"))?;
    let port = u16::try_from(slot.port()).map_err(LabError::because("a host port"))?;
    let (way, expected) = if out {
        let to = SocketAddrV4::new(OUTSIDE, 5201);
        (Way { client: &slot.pod, server: outside, listen: to.port(), to }, UPLINK)
    } else {
        let to = SocketAddrV4::new(UPLINK, port);
        (Way { client: outside, server: &slot.pod, listen: PODS_PORTS[0], to }, OUTSIDE)
    };
    let metered = crowd.stage.meter(word, time, &way)?;
    if metered.seen != expected {
        return Err(LabError::new(format!("the server saw {} and not {expected}", metered.seen)));
    }
    Ok(metered.rate)
}
