//! Two nodes with a pod each and packets between them: what most faults are done to.

use std::time::Duration;

use crate::error::{LabError, Result};
use crate::process::wait_for;
use crate::traffic::{Flows, Lap};
use crate::underlay::{Families, UNDERLAY_LINK};

use super::{Cluster, ClusterPod, Options};

/// In how much time what an event tells of is repaired, on any machine. It was seen to take 5 to 60 ms.
pub const AT_ONCE: Duration = Duration::from_secs(3);
/// In how much time anything is repaired: the pass every 10 s, and that again.
pub const AT_LAST: Duration = Duration::from_secs(20);

/// Two nodes, a pod on each, and packets between them both ways in each family.
pub struct Scene {
    /// What sends and counts packets. First, so that it ends first.
    pub flows: Flows,
    /// A pod of each node.
    pub pods: [ClusterPod; 2],
    /// The nodes; there may be more than two.
    pub cluster: Cluster,
    /// The tunnel's device.
    pub device: &'static str,
    /// What [`super::Member::dataplane`] said of node 0 at the beginning.
    pub before: Vec<String>,
}

impl Scene {
    /// With nodes that have such addresses.
    ///
    /// # Errors
    /// If packets do not flow.
    pub fn new(name: &str, underlay: Families) -> Result<Self> {
        Self::with(name, &Options { underlay, ..Options::default() })
    }

    /// With such nodes.
    ///
    /// # Errors
    /// If packets do not flow.
    pub fn with(name: &str, options: &Options) -> Result<Self> {
        Self::of(Cluster::start(name, options)?)
    }

    /// Of a cluster whose agents run.
    ///
    /// # Errors
    /// If packets do not flow.
    pub fn of(cluster: Cluster) -> Result<Self> {
        let pods = [cluster.pod(0, "a")?, cluster.pod(1, "b")?];
        let flows = cluster.flows(&pods[0], &pods[1]).map_err(|error| {
            LabError::new(format!("{error:?}; the log of node 0 is\n{}", log_of(&cluster)))
        })?;
        let device = if cluster.options.underlay.ipv4() { "podwire.1" } else { "podwire6.1" };
        let before = cluster.member(0).dataplane()?;
        let mut scene = Self { flows, pods, cluster, device, before };
        scene.settle()?;
        Ok(scene)
    }

    /// Waits until packets flow, and begins a new lap of each flow.
    ///
    /// # Errors
    /// If they do not.
    pub fn settle(&mut self) -> Result<()> {
        self.all_flow()?;
        self.flows.laps();
        Ok(())
    }

    /// Waits until packets flow.
    ///
    /// # Errors
    /// If they do not, with the log of node 0.
    pub fn all_flow(&self) -> Result<()> {
        let explain = |error| LabError::new(format!("{error:?}; the log is\n{}", self.log()));
        self.flows.all_flow(AT_LAST).map_err(explain)
    }

    /// Fails unless the packets that flow from now on all arrive.
    ///
    /// # Errors
    /// With those that did not.
    pub fn assert_steady(&mut self) -> Result<()> {
        self.settle()?;
        self.all_flow()?;
        self.flows.assert_none_lost()
    }

    /// The log of node 0's agent.
    pub fn log(&self) -> String {
        log_of(&self.cluster)
    }

    /// Runs a script in node 0, in which `$device` is the tunnel's device and `$parent` the link below it. Packets flow
    /// again, with no pause longer than the limit, and the kernel's state is what it was. Gives the lap of the flow that lost
    /// most.
    ///
    /// # Errors
    /// If not, with the log of node 0.
    pub fn break_and_repair(&mut self, script: &str, limit: Duration) -> Result<Lap> {
        let device = self.device;
        self.cluster.member(0).sh(&format!("device={device}; parent={UNDERLAY_LINK}; {script}"))?;
        self.comes_back(script, limit)
    }

    /// The same after something was broken already.
    ///
    /// # Errors
    /// If it does not come back, with the log of node 0.
    pub fn comes_back(&mut self, what: &str, limit: Duration) -> Result<Lap> {
        self.all_flow()?;
        self.state_comes_back()?;
        let lap = self.flows.worst();
        println!("{}: {what}: {lap}", self.device);
        if lap.longest_outage() > limit {
            return Err(LabError::new(format!("{what}: repaired late: {lap}; the log is\n{}", self.log())));
        }
        self.assert_steady()?;
        Ok(lap)
    }

    /// Waits until the kernel's state in node 0 is what it was.
    ///
    /// # Errors
    /// With the differences, and the log of node 0.
    pub fn state_comes_back(&self) -> Result<()> {
        let mut now = Vec::new();
        let same = wait_for(AT_LAST, || {
            now = self.cluster.member(0).dataplane().unwrap_or_default();
            now == self.before
        });
        if same {
            return Ok(());
        }
        let lacks: Vec<_> = self.before.iter().filter(|line| !now.contains(line)).collect();
        let more: Vec<_> = now.iter().filter(|line| !self.before.contains(line)).collect();
        let log = self.log();
        Err(LabError::new(format!("not as before: lacks {lacks:#?}, has {more:#?}; the log is\n{log}")))
    }
}

fn log_of(cluster: &Cluster) -> String {
    cluster.member(0).agent().map(|agent| agent.log()).unwrap_or_default()
}
