//! Somebody breaks what the agent made, while packets flow.

use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::Cluster;
use podwire_netns_tests::containerd::Containerd;
use podwire_netns_tests::traffic::{Flow, Flows, Lap};
use podwire_netns_tests::{LabError, Result};

use crate::pods::DemoPod;
use crate::screen::{Screen, milliseconds};

/// Longer no repair may take that an event causes: the pass that looks at everything comes every 10 s.
const AT_ONCE: Duration = Duration::from_secs(3);
const AT_LAST: Duration = Duration::from_secs(20);

pub(crate) fn broken_and_repaired(
    screen: &mut Screen,
    cluster: &mut Cluster,
    runtimes: &mut [Containerd],
    pods: &[DemoPod],
) -> Result<()> {
    let (web, client) = (&pods[0], &pods[1]);
    let at_web = runtimes[0].place(&web.id, &web.name)?;
    let at_client = runtimes[1].place(&client.id, &client.name)?;
    let mut flows = Flows::default();
    for address in &web.addresses {
        flows.0.push(Flow::start(&at_client, &at_web, *address)?);
    }
    for address in &client.addresses {
        flows.0.push(Flow::start(&at_web, &at_client, *address)?);
    }
    flows.all_flow(AT_LAST)?;
    flows.laps();

    screen.title("While 4 × 1,000 packets a second flow between client and web, both families, both ways");
    let mut show = |what: &str, with: String, lap: Lap, most: Duration, began: Instant| -> Result<()> {
        if lap.longest_outage() > most {
            return Err(LabError::new(format!("{with}: {lap}")));
        }
        let outage = milliseconds(lap.longest_outage());
        let lost = match lap.lost {
            0 => "0 lost".to_owned(),
            lost => format!("{lost} of {} lost, back after {outage}", lap.sent),
        };
        screen.done(what, format!("{with:<28} {lost}"), began);
        Ok(())
    };

    let began = Instant::now();
    cluster.member_mut(1).kill_agent()?;
    flows.all_flow(AT_LAST)?;
    show("kill -9", "podwired of node1".to_owned(), flows.worst(), Duration::ZERO, began)?;
    let began = Instant::now();
    cluster.member_mut(1).start_agent()?;
    flows.all_flow(AT_LAST)?;
    show("start", "podwired of node1".to_owned(), flows.worst(), Duration::ZERO, began)?;

    let device = "podwire.1";
    for (what, shown, script) in [
        (
            "routes",
            "ip route flush proto 112",
            "ip -4 route flush proto 112; ip -6 route flush proto 112".to_owned(),
        ),
        ("device down", "ip link set podwire.1 down", format!("ip link set {device} down")),
        ("device gone", "ip link del podwire.1", format!("ip link del {device}")),
        ("rules", "nft flush ruleset", "nft flush ruleset".to_owned()),
    ] {
        let began = Instant::now();
        cluster.member(1).sh(&script)?;
        flows.all_flow(AT_LAST)?;
        show(what, shown.to_owned(), flows.worst(), AT_ONCE, began)?;
    }
    flows.all_flow(AT_LAST)?;
    flows.assert_none_lost()
}
