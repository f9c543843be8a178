//! Bandwidth, measured: TCP for 5 s, payload per second within 5 % of the limit (for the reference plugins 10 %).

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use podwire_netns_tests::cases::Reference::{Differs, Same};
use podwire_netns_tests::cases::{Case, Expect, Scene, Text, act, add, check, del, look, ok, script};
use podwire_netns_tests::traffic::{Sink, send_for};
use podwire_netns_tests::{LabError, Result, uses_reference};
use serde_json::json;

use crate::{network, row};

const TIME: Duration = Duration::from_secs(5);
const MEGA: f64 = 1e6;

/// What arrives of one stream, in bits per second.
fn rate(scene: &Scene, from: &str, to: &str, address: &str, time: Duration) -> Result<f64> {
    // A port that has just been used may not be free yet.
    static PORT: AtomicU16 = AtomicU16::new(5000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let at = |host: &str| format!("{host}:{port}").parse().map_err(LabError::because("an address"));
    let sink = Sink::start(scene.place(to)?, at("[::]")?)?;
    send_for(scene.client(from)?, at(address)?, &sink, time)
}

fn is_near(what: &str, rate: f64, limit: f64) -> Result<()> {
    let tolerance = if uses_reference() { 0.10 } else { 0.05 };
    let ratio = rate / limit;
    println!("{what}: {:.2} of {:.2} Mbit/s, {ratio:.3}", rate / MEGA, limit / MEGA);
    if (ratio - 1.0).abs() <= tolerance {
        return Ok(());
    }
    Err(LabError::new(format!("{what}: {:.2} Mbit/s instead of {:.2}", rate / MEGA, limit / MEGA)))
}

/// Twice if need be: a sender that gets no processor for a while on a busy machine does not use its rate.
fn twice(measure: impl Fn() -> Result<()>) -> Result<()> {
    measure().or_else(|_| measure())
}

fn is_unlimited(what: &str, rate: f64) -> Result<()> {
    println!("{what}: {:.0} Mbit/s", rate / MEGA);
    if rate > 200.0 * MEGA {
        Ok(())
    } else {
        Err(LabError::new(format!("{what}: only {:.2} Mbit/s", rate / MEGA)))
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let of_runtime = |ingress: Option<u64>, egress: Option<u64>| {
        let mut bandwidth = json!({});
        if let Some(rate) = ingress {
            bandwidth["ingressRate"] = json!(rate);
            bandwidth["ingressBurst"] = json!(rate / 10);
        }
        if let Some(rate) = egress {
            bandwidth["egressRate"] = json!(rate);
            bandwidth["egressBurst"] = json!(rate / 10);
        }
        json!({ "runtimeConfig": { "bandwidth": bandwidth } })
    };
    vec![
        row(
            "each direction alone, and others as before",
            network(json!({})),
            vec![
                add("a").config(of_runtime(Some(20_000_000), None)).into(),
                add("b").config(of_runtime(None, Some(15_000_000))).into(),
                add("c").into(),
                act("two limits at once", |scene| {
                    twice(|| {
                    let (to_a, from_b) = std::thread::scope(|scope| {
                        let to_a = scope.spawn(|| rate(scene, "outside", "a", "10.1.0.2", TIME));
                        let from_b = rate(scene, "b", "outside", "198.51.100.2", TIME);
                        (to_a.join(), from_b)
                    });
                    is_near("to a", to_a.map_err(|_| LabError::new("panicked"))??, 20.0 * MEGA)?;
                    is_near("from b", from_b?, 15.0 * MEGA)
                    })
                })
                .into(),
                act("the other directions and another pod", |scene| {
                    let time = Duration::from_millis(700);
                    is_unlimited("from a", rate(scene, "a", "outside", "198.51.100.2", time)?)?;
                    is_unlimited("to b", rate(scene, "outside", "b", "[fd01::3]", time)?)?;
                    is_unlimited("to c", rate(scene, "outside", "c", "10.1.0.4", time)?)
                })
                .into(),
                check("a").config(of_runtime(Some(20_000_000), None)).into(),
                check("b").config(of_runtime(None, Some(15_000_000))).into(),
                look("tc qdisc | grep -c tbf", Text::Is("2")).into(),
                del("b").config(of_runtime(None, Some(15_000_000))).into(),
                look("ip -br link show type ifb; tc qdisc | grep -c tbf", Text::Is("1")).into(),
            ],
            Same,
        ),
        row(
            "static, which beats the runtime's, without a burst of anybody's choice",
            network(json!({ "egressRate": 30_000_000, "egressBurst": 4_294_967_295_u64, "ingressRate": 50_000_000, "ingressBurst": 5_000_000 })),
            vec![
                add("a").config(of_runtime(Some(1_000_000), Some(1_000_000))).into(),
                act("both limits", |scene| {
                    twice(|| is_near("from a", rate(scene, "a", "outside", "198.51.100.2", TIME)?, 30.0 * MEGA))?;
                    twice(|| is_near("to a", rate(scene, "outside", "a", "10.1.0.2", TIME)?, 50.0 * MEGA))
                })
                .podwire_alone()
                .into(),
            ],
            Differs("It takes the runtimes' \"no burst\" (4294967295) for a bucket of 512 MiB, so that nothing is slowed down for minutes."),
        ),
        row(
            "capitals, as containerd writes them",
            network(json!({})),
            vec![
                add("a").config(json!({ "runtimeConfig": { "bandwidth": {
                    "IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 5_000_000, "EgressBurst": 4_294_967_295_u64
                } } })).into(),
                look("tc qdisc | grep tbf | grep -o 'rate [0-9]*Mbit' | sort", Text::Is("rate 10Mbit rate 5Mbit")).into(),
            ],
            Same,
        ),
        row(
            "CHECK finds a limit that is gone",
            network(json!({})),
            vec![
                add("a").config(of_runtime(Some(20_000_000), Some(20_000_000))).into(),
                check("a").config(of_runtime(Some(20_000_000), Some(20_000_000))).into(),
                script("tc qdisc del dev {port:a} root"),
                check("a").config(of_runtime(Some(20_000_000), Some(20_000_000))).fails(101, &["not limited"]).reference(Expect::Anything).into(),
            ],
            Differs("It says which qdisc is missing in its own words."),
        ),
        row(
            "gone after DEL, also without the runtime's words and without a netns",
            network(json!({})),
            vec![
                add("a").config(of_runtime(Some(20_000_000), Some(20_000_000))).into(),
                script("umount /run/netns/a; rm /run/netns/a"),
                del("a").forgotten().reference(ok(&[])).into(),
                look("ip -br link show type ifb", Text::Is("")).reference(Text::Has("bwp")).into(),
            ],
            Differs("A chain's bandwidth is not even called where the runtime names no limits, and leaves its ifb."),
        ),
    ]
}
