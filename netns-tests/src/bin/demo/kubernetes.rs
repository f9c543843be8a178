//! What there is with the Kubernetes API alone: the steps of the DaemonSet, the API gone, what it says of the nodes.

use std::time::{Duration, Instant};

use podwire_netns_tests::cluster::{Cluster, Meeting};
use podwire_netns_tests::containerd::Containerd;
use podwire_netns_tests::kubernetes::{ControlPlane, RECORD, UNAVAILABLE};
use podwire_netns_tests::traffic::{Flow, Flows};
use podwire_netns_tests::{LabError, Node, Result};

use crate::pods::DemoPod;
use crate::screen::{Screen, milliseconds};

const LIMIT: Duration = Duration::from_secs(60);

/// What the init container of the DaemonSet does. The agent writes the network's configuration when it is ready.
pub(crate) fn install(node: &Node) -> Result<()> {
    let podwired = Node::dist("podwired").to_string_lossy().into_owned();
    node.run(&podwired, &["install", "--to", "/opt/cni/bin"])?.success("podwired install").map(drop)
}

/// The API refuses connections, an agent dies and comes back, and a pod starts.
pub(crate) fn without_the_api(
    screen: &mut Screen,
    api: &mut ControlPlane,
    cluster: &mut Cluster,
    runtimes: &mut [Containerd],
    pods: &[DemoPod],
) -> Result<()> {
    screen
        .title("Without the API server, while 1,000 packets a second flow from client to web in each family");
    let (web, client) = (&pods[0], &pods[1]);
    let mut flows = Flows::default();
    let at_web = runtimes[0].place(&web.id, &web.name)?;
    let at_client = runtimes[1].place(&client.id, &client.name)?;
    for address in &web.addresses {
        flows.0.push(Flow::start(&at_client, &at_web, *address)?);
    }
    flows.all_flow(LIMIT)?;
    flows.laps();

    let began = Instant::now();
    api.vanish()?;
    cluster.member_mut(1).kill_agent()?;
    cluster.member_mut(1).spawn_agent()?;
    cluster.member(1).serves()?;
    let (late, took) = DemoPod::run(&mut runtimes[1], 1, "late".to_owned(), &Default::default())?;
    let at_late = runtimes[1].place(&late.id, &late.name)?;
    for address in &late.addresses {
        Flow::start(&at_web, &at_late, *address)?;
    }
    screen.done("kill -9", "podwired of node1, with no API server to ask; and start", began);
    screen.done("late", format!("a new pod, reached from web; its network in {}", milliseconds(took)), began);
    runtimes[1].cri().stop_pod(&late.id)?;
    runtimes[1].cri().remove_pod(&late.id)?;
    let began = Instant::now();
    api.come_back()?;
    cluster.member_mut(1).agent_mut()?.wait_until_ready(LIMIT)?;
    flows.all_flow(LIMIT)?;
    flows.assert_none_lost()?;
    screen.done("API server", "is back; 0 packets lost", began);
    Ok(())
}

/// What `kubectl describe node` would show: the condition, the Events, and the agent's annotation.
pub(crate) fn shown_by_the_api(screen: &mut Screen, api: &ControlPlane, cluster: &Cluster) -> Result<()> {
    screen.title("What the API says of the nodes");
    for member in cluster.members() {
        let name = member.name();
        let began = Instant::now();
        let reason = api.says_unavailable(name, "False", LIMIT)?;
        screen.done(name, format!("{UNAVAILABLE}=False ({reason})"), began);
        let record = api.server().annotation(name, RECORD);
        let record = record.ok_or_else(|| LabError::new(format!("{name} has no annotation {RECORD}")))?;
        screen.line(format!("    {RECORD}: {record}"));
        for (reason, message) in api.events_of(name) {
            screen.line(format!("    Event {reason}: {message}"));
        }
    }
    Ok(())
}
